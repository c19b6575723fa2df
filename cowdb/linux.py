"""Calls of Linux that Python has no names for, by way of the C library.

The compiled kernel makes them itself.  The plain form loads `ctypes` at the first
of them; where that cannot be, whatever the reason, it does without.
"""

from __future__ import annotations

import errno
import functools
import os
import struct
import sys
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["device_and_inode", "sync_file_range"]

_SYNC_FILE_RANGE_WRITE: Final = 2
_HERE: Final = -100  # AT_FDCWD: paths are taken as anywhere else
_STATX_INO: Final = 0x100
_FOUND: Final = struct.Struct("=32xQ96xII112x")
"""What `statx` answers: here inode, and the two halves of the device."""


@functools.cache
def _call(name: str, *kinds: str) -> tuple[Callable[..., int], Callable[[], int], type[Exception]] | None:
    """A function of the C library that takes arguments of these kinds; None without it.

    Then what tells its error, and what is raised, too, where there is no memory for its arguments.
    """
    if sys.platform != "linux":
        return None
    try:
        import ctypes  # noqa: PLC0415 - not every Python has it

        call = getattr(ctypes.CDLL(None, use_errno=True), name)
        call.argtypes = [getattr(ctypes, kind) for kind in kinds]
    except Exception:  # noqa: BLE001 - an audit hook may raise anything
        return None
    return call, ctypes.get_errno, ctypes.ArgumentError


@functools.cache
def _room() -> Callable[[], Any]:
    """Makes memory for what `statx` answers."""
    import ctypes  # noqa: PLC0415 - it is there: see `_call`

    return ctypes.c_char * _FOUND.size


def sync_file_range(fd: int, start: int) -> int:
    """Have the disk begin with what was written from byte `start` on. 0, or what errno says."""
    found = _call("sync_file_range", "c_int", "c_int64", "c_int64", "c_uint")
    if found is None:
        return errno.ENOSYS
    call, error, unmade = found
    try:
        return error() if call(fd, start, 0, _SYNC_FILE_RANGE_WRITE) else 0
    except (unmade, MemoryError):
        return errno.ENOMEM


def device_and_inode(path: str) -> tuple[int, int] | None:
    """Which file `path` leads to, without a look at its times; None if that fails, for whatever reason."""
    found = _call("statx", "c_int", "c_char_p", "c_int", "c_uint", "c_void_p")
    raw = os.fsencode(path)
    if found is None or b"\0" in raw:
        return None
    call, _, unmade = found
    try:
        answer = _room()()
        if call(_HERE, raw, 0, _STATX_INO, answer):
            return None
    except (unmade, MemoryError):
        return None
    inode, major, minor = _FOUND.unpack_from(answer)
    return os.makedev(major, minor), inode
