"""A real file system that can be cut off: an image file, mounted through a loop device.

    image file --> /dev/loopN --> ext4 or xfs --> the database
                                     |
                              FS_IOC_SHUTDOWN     nothing more reaches the image, the journal is not flushed

The call stops a mounted file system dead, as if its device had been pulled; it is
what the tests of file systems use for a power cut.  What was flushed is in
the image, what only lay in the page cache is gone.  Mounting it again replays the
journal.  It takes root, loop devices and the tools that make file systems.

The mounts are seen by this process and its children alone (a mount namespace of
their own), and so they vanish with it, however it ends.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import gc
import os
import shutil
import struct
import subprocess
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Self

try:
    import fcntl
except ImportError:  # pragma: no cover - a platform without it has no such devices either
    fcntl = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["SYSTEMS", "Device", "unavailable"]

FS_IOC_SHUTDOWN: Final = 0x8004587D
"""``_IOR('X', 125, __u32)``; the same number for ext4, f2fs and xfs."""

WITHOUT_JOURNAL: Final = 2
"""Do not flush the journal first: what was not flushed is lost."""

SYSTEMS: Final[dict[str, tuple[int, tuple[str, ...]]]] = {
    "ext4": (64 << 20, ("mkfs.ext4", "-q", "-F")),
    "xfs": (320 << 20, ("mkfs.xfs", "-q", "-f")),
}
"""For each file system how large its image is, and what makes it."""

PATIENCE: Final = 60.0
ATTEMPTS: Final = 9
CLONE_NEWNS: Final = 0x00020000


@dataclass
class Device:
    """A file system in an image in `directory`; a context manager, mounted within."""

    system: str
    directory: str
    mounted: bool = field(default=False, init=False)

    @property
    def mount(self) -> str:
        """Where it is mounted."""
        return os.path.join(self.directory, "mount")

    @property
    def _image(self) -> str:
        return os.path.join(self.directory, "image")

    def __enter__(self) -> Self:
        _own_namespace()
        size, make = SYSTEMS[self.system]
        os.makedirs(self.mount, exist_ok=True)
        with open(self._image, "wb") as image:
            image.truncate(size)
        _call(*make, self._image)
        self.attach()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.mounted:
            with contextlib.suppress(OSError, subprocess.SubprocessError):
                _call("umount", "-l", self.mount)

    def attach(self) -> None:
        """Mount it; the file system replays its journal."""
        _call("mount", "-t", self.system, "-o", "loop", self._image, self.mount)
        self.mounted = True

    def cut(self) -> None:
        """Stop it dead; who uses it meets errors from now on."""
        fd = os.open(self.mount, os.O_RDONLY)
        try:
            fcntl.ioctl(fd, FS_IOC_SHUTDOWN, struct.pack("I", WITHOUT_JOURNAL))
        finally:
            os.close(fd)

    def revive(self) -> None:
        """Let go of what is left of it and mount it afresh. Nobody may have a file of it open."""
        gc.collect()  # a mapping of ours that waits for the collector keeps it busy
        for attempt in range(ATTEMPTS):
            try:
                _call("umount", self.mount)
            except OSError:
                if attempt + 1 == ATTEMPTS:
                    raise
                time.sleep(0.01 * 2**attempt)  # the loop device, too, takes its time
            else:
                break
        self.mounted = False
        self.attach()


def unavailable(system: str, directory: str) -> str | None:
    """Why this file system cannot be made, mounted and cut off here; None if it can."""
    if not hasattr(fcntl, "ioctl") or not hasattr(os, "geteuid") or os.geteuid():
        return "it takes root"
    missing = [tool for tool in (SYSTEMS[system][1][0], "mount", "umount") if shutil.which(tool) is None]
    if missing:
        return f"there is no {missing[0]}"
    place = os.path.join(directory, f"try-{system}")
    os.makedirs(place)
    try:
        with Device(system, place) as device:
            device.cut()
            device.revive()
    except (OSError, subprocess.SubprocessError) as error:
        return f"it cannot be mounted or cut off here ({error})"
    finally:
        shutil.rmtree(place, ignore_errors=True)
    return None


@functools.cache
def _own_namespace() -> None:
    """From now on this process mounts for itself. Raises `OSError`."""
    libc = ctypes.CDLL(None, use_errno=True)  # Python has it from 3.12 on
    if libc.unshare(CLONE_NEWNS):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    _call("mount", "--make-rprivate", "/")


def _call(*command: str) -> None:
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=PATIENCE)
    if done.returncode:
        raise OSError(f"{command[0]} says: {(done.stderr.strip().splitlines() or ['nothing'])[-1]}")
