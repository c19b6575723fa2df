"""One process among the users of a file: coming in, being seen, taking turns, leaving.

`Sharing` is what the engine asks of the other users; there are two forms.
`FileSharing` is for a real file and any number of processes, by byte locks
(`bytelocks`) and shared words (`lockfile`).  `LocalSharing` is for a file that
only this process can see, such as one on a fake disk.

    enter    OPEN; first inside (INSIDE is free)?  make the words from the file
             else find the words of the others; INSIDE shared; let OPEN go
    read     pin a snapshot in the own block, look again, go on
    write    WRITER (through NEXT if somebody waits); BUSY, write, publish, QUIET, let WRITER go
    leave    OPEN; last inside?  settle the file; let everything go

Who cannot write beside the data file (a read-only medium) cannot register what
it reads; it keeps every writer out instead as long as it is there (STATIC).
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from typing import TYPE_CHECKING, Final, Protocol

from cowdb import meta as meta_page
from cowdb.bytelocks import FIRST_BLOCK, INSIDE, NEXT, OPEN, STATIC, TIMED, WRITER, ByteLocks, RecordLocks
from cowdb.errors import Error, LockTimeoutError
from cowdb.lockfile import LockFile, Pin

try:
    import fcntl
except ImportError:  # pragma: no cover - a platform without POSIX locks
    fcntl = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from collections.abc import Callable

    from cowdb.meta import Meta

__all__ = ["FileSharing", "LocalSharing", "Sharing", "lock_file_path"]

_WRITER_AND_STATIC: Final = 1 + STATIC - WRITER
"""A writer takes both bytes in one call."""

_PATIENCE: Final = 4
"""So many turns go past one who waits with a timeout, and then the others let him pass."""

_SHORT_PAUSE: Final = 0.001
"""Seconds between two tries of the one whom the others let pass."""


class Sharing(Protocol):
    """The other users of the file, and the words shared with them (P1)."""

    durable: tuple[int, int] | None
    busy: bool
    in_vain: int

    @property
    def published(self) -> int:
        """The word of the published state; it changes with each."""

    def publish(self, meta: Meta, raw: bytes) -> int:
        """Let every user see `meta`, whose page is `raw`; its word."""

    def published_meta(self, word: int) -> Meta | None:
        """The meta that `word` published; None if another one was published meanwhile."""

    def pin(self, transaction: int, page_count: int) -> int:
        """Say that this process uses a snapshot; what to hand to `unpin`."""

    def unpin(self, handle: int) -> None:
        """Say that it uses it no longer."""

    def others(self) -> list[Pin]:
        """The snapshots that other live processes use."""

    def lock_writer(self, timeout: float | None) -> None:
        """Become the process that writes; `LockTimeoutError` after `timeout` seconds."""

    def unlock_writer(self) -> None:
        """Let another process write."""

    def contended(self) -> bool:
        """True if another process waits to write."""

    def leave(self, settle: Callable[[], None]) -> None:
        """Leave the file; `settle` is called first if nobody else is inside."""

    def let_go(self) -> None:
        """Leave it as a process does that dies. Harmless when repeated, and it needs no memory."""

    def abandon(self) -> None:
        """In a forked child: forget all this without letting anything of the parent's go."""


class LocalSharing:
    """Nobody else can see the file."""

    def __init__(self) -> None:
        self.durable: tuple[int, int] | None = None
        self.busy = True
        self.in_vain = 0
        self.published = 0
        self._meta: Meta | None = None

    def publish(self, meta: Meta, raw: bytes) -> int:  # noqa: ARG002 - nobody else reads it
        """See `Sharing`."""
        self._meta = meta
        self.published += 1
        return self.published

    def published_meta(self, word: int) -> Meta | None:
        """See `Sharing`."""
        return self._meta if word == self.published else None

    def pin(self, transaction: int, page_count: int) -> int:  # noqa: ARG002 - nobody else asks
        """See `Sharing`."""
        return 0

    def unpin(self, handle: int) -> None:
        """See `Sharing`."""

    def others(self) -> list[Pin]:
        """See `Sharing`."""
        return []

    def lock_writer(self, timeout: float | None) -> None:
        """See `Sharing`."""

    def unlock_writer(self) -> None:
        """See `Sharing`."""

    def contended(self) -> bool:
        """See `Sharing`."""
        return False

    def leave(self, settle: Callable[[], None]) -> None:
        """See `Sharing`."""
        settle()

    def let_go(self) -> None:
        """See `Sharing`."""

    def abandon(self) -> None:
        """See `Sharing`."""


def lock_file_path(path: str) -> str:
    """Where the lock file of the database at `path` lies: beside the file itself, where links lead to it."""
    return os.path.realpath(path) + "-lock"


def _static_locks(path: str, locks_type: type[ByteLocks]) -> ByteLocks:
    """The locks of one who can write neither file: on the file where the others have theirs."""
    if locks_type is not ByteLocks:
        try:
            return locks_type(lock_file_path(path), writable=False)
        except OSError:
            pass  # nobody has ever written here; where record locks have to do, a later writer is not kept out
    return locks_type(path, writable=False)


def _let_go(words: LockFile) -> None:
    """Close the lock file and its mapping, and say before that it is not ours any more: a mapping may live on."""
    if words.fd >= 0:
        try:
            fcntl.flock(words.fd, fcntl.LOCK_UN)
        finally:
            words.close()
        with contextlib.suppress(MemoryError):  # the garbage collector does it then
            words.unmap(keep=True)


class FileSharing:
    """Byte locks on the data file, words in the lock file; see the module's text.

    The methods for one snapshot or one turn are called with the gate's or the
    writer queue's own lock held, so they need none themselves.
    """

    def __init__(
        self,
        path: str,
        *,
        read_only: bool,
        mode: int,
        timeout: float | None,
        make: Callable[[], Meta],
        locks_type: type[ByteLocks] | None = None,
    ) -> None:
        """Come in; `make` gives the state of the file, and is called if nobody is inside.

        `mode` has the permissions of the lock file, which are best those of the
        data file.

        Raises `LockTimeoutError` if somebody is entering or leaving for longer
        than `timeout` seconds, `Error` if the others' lock file is gone.
        """
        self._path = path
        self._static = False
        self._free_pins: list[int] = []
        self._blocks: set[int] = set()
        self._claiming = threading.Lock()
        if locks_type is None:
            locks_type = ByteLocks if ByteLocks.available() else RecordLocks
        writable = os.access(path, os.W_OK)
        self.words: LockFile | None = None
        try:
            if writable or not read_only:
                try:
                    self.words = LockFile(lock_file_path(path), mode)
                except OSError:
                    if not read_only:
                        raise
            if self.words is None:
                self._locks = _static_locks(path, locks_type)
                self._enter_static(timeout)
                self._local = LocalSharing()
                self._local.publish(make(), b"")
            else:
                self._locks = locks_type(path if locks_type is ByteLocks else self.words.path, writable=True)
                self._enter(timeout, make)
        except BaseException:
            self.let_go()
            raise

    # ------------------------------------------------------------ coming and going

    def _enter(self, timeout: float | None, make: Callable[[], Meta]) -> None:
        words = self._shared()
        locks = self._locks
        try:
            self._lock_open(timeout)
            if locks.try_lock(INSIDE):
                fcntl.flock(words.fd, fcntl.LOCK_SH)
                words.make()
                meta = make()
                words.publish(meta, meta_page.encode(meta, 0))
                locks.try_lock(INSIDE, shared=True)
            else:
                self._join(words)
                locks.try_lock(INSIDE, shared=True)
        finally:
            locks.unlock(OPEN)

    def _lock_open(self, timeout: float | None) -> None:
        deadline = None if timeout is None else time.monotonic() + timeout
        if not self._locks.lock(OPEN, deadline):
            assert timeout is not None
            raise LockTimeoutError(f"the right to open or close {self._path!r}", timeout)

    def _join(self, words: LockFile) -> None:
        """Use the words of those who are inside, and make sure that they are theirs (P10)."""
        try:
            fcntl.flock(words.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            theirs = words.made
        else:
            theirs = False
        fcntl.flock(words.fd, fcntl.LOCK_SH)
        if not theirs:
            raise Error(
                f"{self._path!r} is open in another process, but its lock file {words.path!r} is not the one that "
                "it uses: it was deleted, replaced, or the database was renamed; close the database everywhere first"
            )

    def _enter_static(self, timeout: float | None) -> None:
        """Keep writers out, since nobody could see what we read."""
        self._static = True
        locks = self._locks
        deadline = None if timeout is None else time.monotonic() + timeout
        try:
            if not locks.lock(STATIC, deadline, shared=True):
                raise LockTimeoutError(f"{self._path!r}, which somebody writes,", timeout or 0.0)
        except BaseException:
            locks.close()
            raise

    def leave(self, settle: Callable[[], None]) -> None:
        """See `Sharing`."""
        try:
            if self.words is not None:
                self._locks.lock(OPEN, None)
                if self._locks.try_lock(INSIDE):
                    settle()
        finally:
            self.let_go()

    def let_go(self) -> None:
        """See `Sharing`. What it has pinned counts no more, as nobody holds the lock of its blocks."""
        words = self.words
        locks = getattr(self, "_locks", None)  # there are none yet if it could not come in
        try:
            if locks is not None:
                locks.close()
        finally:
            if words is not None:
                _let_go(words)

    def __del__(self) -> None:
        if hasattr(self, "words"):
            self.let_go()  # it came in, and an interrupt came before anybody had it

    def abandon(self) -> None:
        """See `Sharing`."""
        self._locks.abandon()
        if self.words is not None:
            self.words.close()  # not unlocked: the description is the parent's too
            self.words.unmap()

    # ------------------------------------------------------------ words

    def _shared(self) -> LockFile:
        assert self.words is not None
        return self.words

    @property
    def published(self) -> int:
        """See `Sharing`."""
        words = self.words
        return self._local.published if words is None else words.published

    @property
    def durable(self) -> tuple[int, int] | None:
        """D; see `Sharing`."""
        return None if self.words is None else self.words.durable

    @durable.setter
    def durable(self, value: tuple[int, int] | None) -> None:
        self._shared().durable = value

    @property
    def busy(self) -> bool:
        """See `Sharing`."""
        return self.words is None or self.words.busy

    @busy.setter
    def busy(self, value: bool) -> None:
        self._shared().busy = value

    @property
    def in_vain(self) -> int:
        """See `LockFile.in_vain`."""
        return 0 if self.words is None else self.words.in_vain

    @in_vain.setter
    def in_vain(self, word: int) -> None:
        self._shared().in_vain = word

    def publish(self, meta: Meta, raw: bytes) -> int:
        """See `Sharing`."""
        return self._shared().publish(meta, raw)

    def published_meta(self, word: int) -> Meta | None:
        """See `Sharing`."""
        words = self.words
        return self._local.published_meta(word) if words is None else words.published_meta(word)

    # ------------------------------------------------------------ snapshots

    def pin(self, transaction: int, page_count: int) -> int:
        """See `Sharing`. No system call, but when a block more is needed."""
        if self.words is None:
            return 0
        if not self._free_pins:
            self._claim(self.words)
        handle = self._free_pins.pop()
        try:
            self.words.pin(handle, transaction, page_count)
        except BaseException:
            self.unpin(handle)
            raise
        return handle

    def unpin(self, handle: int) -> None:
        """See `Sharing`."""
        if self.words is not None:
            self.words.unpin(handle)
            try:  # noqa: SIM105 - `suppress` needs memory
                self._free_pins.append(handle)
            except MemoryError:
                pass  # a word less, of very many

    def _claim(self, words: LockFile) -> None:
        """Get one more block: the lock of a free one, which says as long as it is held that we live."""
        with self._claiming:
            try:
                self._locks.lock(OPEN, None)
                while True:
                    for block in range(words.blocks()):
                        if block not in self._blocks and self._locks.try_lock(FIRST_BLOCK + block):
                            pins = words.own(block, os.getpid(), int(time.time()))
                            self._blocks.add(block)  # only now: see `others`
                            self._free_pins += pins
                            return
                    words.add_blocks()
            finally:
                self._locks.unlock(OPEN)

    def others(self) -> list[Pin]:
        """See `Sharing`. A system call for each block with pins, to ask whether its owner lives."""
        words = self.words
        own = len(self._blocks)  # first: another thread may just be claiming one more, which counts as used before
        if words is None or words.used <= own:
            return []  # nobody has blocks but we
        found: list[Pin] = []
        for block, pins in words.pins(self._blocks):
            if self._locks.is_taken(FIRST_BLOCK + block):
                found += pins
        return found

    # ------------------------------------------------------------ turns

    def lock_writer(self, timeout: float | None) -> None:
        """See `Sharing`. One system call when nobody is in the way.

        Who waits holds NEXT and says so, so that who has just written cannot overtake him.
        """
        words = self.words
        if words is None:
            return  # writers are kept out as long as we are here
        if words.waiting or not self._locks.try_lock(WRITER, count=_WRITER_AND_STATIC):
            self._stand_in_line(words, timeout)
        words.writer = os.getpid()

    def _stand_in_line(self, words: LockFile, timeout: float | None) -> None:
        """Wait for NEXT, and with it for WRITER.

        The kernel wakes who waits without a timeout, in the order in which they
        came.  Who has a timeout must ask again and again, and would find NEXT
        taken each time.  So one of those has TIMED, and when too many turns have
        gone past him the others line up behind TIMED until he has had his.
        """
        locks = self._locks
        if timeout is None:
            if words.passed >= _PATIENCE and locks.is_taken(TIMED):
                locks.lock(TIMED, None)
                locks.unlock(TIMED)
            self._wait_for_turn(words, None, None)
            words.passed += 1
            return
        deadline = time.monotonic() + timeout
        try:
            if not locks.lock(TIMED, deadline):
                raise LockTimeoutError("the writer lock", timeout, words.writer or None)
            self._wait_for_turn(words, timeout, deadline)
            words.passed = 0
        finally:
            locks.unlock(TIMED)

    def _wait_for_turn(self, words: LockFile, timeout: float | None, deadline: float | None) -> None:
        locks = self._locks
        hinted = False
        try:
            if not locks.lock(NEXT, deadline, longest_pause=_SHORT_PAUSE):
                raise LockTimeoutError("the writer lock", timeout or 0.0, words.writer or None)
            hinted = True
            words.waiting = True
            if not locks.lock(WRITER, deadline, count=_WRITER_AND_STATIC, longest_pause=_SHORT_PAUSE):
                if not locks.is_taken(WRITER):
                    raise LockTimeoutError("a reader that cannot register, on a read-only medium,", timeout or 0.0)
                raise LockTimeoutError("the writer lock", timeout or 0.0, words.writer or None)
        finally:
            if hinted:
                words.waiting = False
            locks.unlock(NEXT)

    def unlock_writer(self) -> None:
        """See `Sharing`."""
        if self.words is not None:
            try:
                self.words.writer = 0
            finally:
                self._locks.unlock(WRITER, count=_WRITER_AND_STATIC)

    def contended(self) -> bool:
        """See `Sharing`. One system call, if there is a hint that somebody waits."""
        return self.words is not None and self.words.waiting and self._locks.is_taken(NEXT)
