"""The lock file: words that all users of one data file share, in memory.

It lies beside the data file as ``<name>-lock``, is mapped by every user, and is
never flushed: nothing in it outlasts the last user, and whoever is first inside
makes it anew.  It holds no lock; those are bytes of the data file (`bytelocks`).

    words     published   transaction << 1 | which copy        one 8-byte store publishes
              durable     D: transaction << 1 | slot; 0: not known (P1)
              busy        a writer is at work, or failed (P2)
              writer      process id of the writer, for error messages
              blocks      how many blocks there are
              used        blocks from here on were never used
              waiting     a hint: somebody waits for the writer lock, so stand in line
              passed      turns since one was taken by a process that waited with a timeout
              in_vain     the word published when a writer last gave up with pages written (P6)
    copies    two, of the published meta page: the new one goes where the old one is not
    blocks    one a process (more when it needs more), each with words for the
              snapshots that it uses: (transaction, page count); 0: free

To begin a read: store the snapshot's transaction into a free word of the own
block, fence, look at `published` again; if it moved, repeat with the new one.
The writer publishes first and looks at the words afterwards.  So either the
writer sees the reader's word, or the reader sees that it must take another
snapshot.  No system call is made.  (LMDB ITS 7635, 7969 and 7970 are about
getting this wrong.)

A process that dies leaves its words behind; they count only while somebody
holds the lock of their block.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import threading
from typing import TYPE_CHECKING, Final, NamedTuple

from cowdb import format as fmt
from cowdb import meta as meta_page
from cowdb.errors import FullError
from cowdb.storage import UNSUPPORTED

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cowdb.meta import Meta

__all__ = ["LockFile", "Pin"]

MAGIC: Final = int.from_bytes(b"COWLOCK\x02", "little")

_MAGIC: Final = 0
_PUBLISHED: Final = 1
_DURABLE: Final = 2
_BUSY: Final = 3
_WRITER: Final = 4
_BLOCKS: Final = 5
_USED: Final = 6
_WAITING: Final = 7
_PASSED: Final = 8
_IN_VAIN: Final = 9

COPY_SIZE: Final = fmt.PAGE_SIZES[-1]
COPIES_AT: Final = 4096
_BLOCKS_AT: Final = COPIES_AT + 2 * COPY_SIZE
_BLOCK_WORDS: Final = 128
_OWNER: Final = 0
_STARTED: Final = 1
_FIRST_PIN: Final = 2
PINS_PER_BLOCK: Final = (_BLOCK_WORDS - _FIRST_PIN) // 2
_LEAST_BLOCKS: Final = 32
_BLOCK_OF_STAT: Final = 512
"""Bytes that `st_blocks` counts in."""


class Pin(NamedTuple):
    """A snapshot in use: the process, its start time, the transaction, the pages it may touch."""

    owner: int
    started: int
    transaction: int
    page_count: int


class LockFile:
    """The mapped words; see the module's text. Who may call what is for `sharing` to say."""

    def __init__(self, path: str, mode: int) -> None:
        """Open the lock file at `path`, making it with the permissions `mode`, those of the data file, if need be."""
        self.path = path
        self.fd = -1
        self._fence = threading.Lock()
        self._old: list[mmap.mmap] = []  # mappings that grew out of use; their words are the same memory
        try:
            self.fd = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), mode)
            found = os.fstat(self.fd)
            if found.st_mode & 0o777 != mode and found.st_uid == os.geteuid():
                os.fchmod(self.fd, mode)  # who may write the data file may share it, whatever the umask says
            size = max(os.fstat(self.fd).st_size, _BLOCKS_AT + _LEAST_BLOCKS * _BLOCK_WORDS * 8)
            self._make_room(size)
            self._map(size)
        except BaseException:
            self.close()
            raise

    def _make_room(self, size: int) -> None:
        """Let the file have `size` bytes, and the disk room for each; `FullError` if it has not.

        Where a mapping has a hole and the disk is full, the first store kills the process (SIGBUS).
        """
        found = os.fstat(self.fd)
        if found.st_size >= size and found.st_blocks * _BLOCK_OF_STAT >= size:
            return
        try:
            try:
                os.posix_fallocate(self.fd, 0, size)
            except (AttributeError, OSError) as error:
                if isinstance(error, OSError) and error.errno not in UNSUPPORTED:
                    raise
                if found.st_size < size:  # what is there already is somebody's, perhaps
                    os.pwrite(self.fd, bytes(size - found.st_size), found.st_size)
        except OSError as error:
            if error.errno in {errno.ENOSPC, errno.EDQUOT}:
                reason = f"there is no room on the disk for the lock file {self.path!r}, which takes {size} bytes"
                raise FullError(error.errno, reason) from None
            raise

    def _map(self, size: int) -> None:
        self._mapping = mmap.mmap(self.fd, size)
        self._words = memoryview(self._mapping).cast("Q")

    # ------------------------------------------------------------ beginning

    @property
    def made(self) -> bool:
        """True if somebody has made the words and published a state."""
        return self._words[_MAGIC] == MAGIC and self._words[_PUBLISHED] != 0

    def make(self) -> None:
        """Make the words anew: nothing published, D not known, busy, no block in use. For the first one inside."""
        words = self._words
        words[_MAGIC] = 0
        for index in (_PUBLISHED, _DURABLE, _WRITER, _USED, _WAITING, _PASSED, _IN_VAIN):
            words[index] = 0
        words[_BUSY] = 1
        words[_BLOCKS] = (len(self._mapping) - _BLOCKS_AT) // (8 * _BLOCK_WORDS)
        self._mapping[_BLOCKS_AT:] = bytes(len(self._mapping) - _BLOCKS_AT)
        words[_MAGIC] = MAGIC

    # ------------------------------------------------------------ the words

    @property
    def published(self) -> int:
        """The word of the published state; it changes with each."""
        return self._words[_PUBLISHED]

    @property
    def durable(self) -> tuple[int, int] | None:
        """D, the newest durable transaction and its slot; None if that is not known."""
        word = self._words[_DURABLE]
        return (word >> 1, word & 1) if word else None

    @durable.setter
    def durable(self, value: tuple[int, int] | None) -> None:
        self._words[_DURABLE] = value[0] << 1 | value[1] if value else 0

    @property
    def busy(self) -> bool:
        """True while a writer is at work, and after one has failed or died."""
        return self._words[_BUSY] != 0

    @busy.setter
    def busy(self, value: bool) -> None:
        self._words[_BUSY] = int(value)

    @property
    def writer(self) -> int:
        """Process id of the writer; 0 if there is none."""
        return self._words[_WRITER]

    @writer.setter
    def writer(self, pid: int) -> None:
        self._words[_WRITER] = pid

    @property
    def waiting(self) -> bool:
        """A hint that somebody waits for the writer lock. Who dies waiting leaves it behind, for the next to clear."""
        return self._words[_WAITING] != 0

    @waiting.setter
    def waiting(self, value: bool) -> None:
        self._words[_WAITING] = int(value)

    @property
    def passed(self) -> int:
        """Turns that were waited for without a timeout since one was with it. The writer counts."""
        return self._words[_PASSED]

    @passed.setter
    def passed(self, value: int) -> None:
        self._words[_PASSED] = value

    @property
    def in_vain(self) -> int:
        """The word that was published when a writer last gave up with pages written; 0 if none has."""
        return self._words[_IN_VAIN]

    @in_vain.setter
    def in_vain(self, word: int) -> None:
        self._words[_IN_VAIN] = word

    # ------------------------------------------------------------ the published meta

    def publish(self, meta: Meta, raw: bytes) -> int:
        """Let every process see `meta`, whose page is `raw`; its word. The caller holds the writer lock, or OPEN."""
        copy = 1 - (self._words[_PUBLISHED] & 1)
        at = COPIES_AT + copy * COPY_SIZE
        self._mapping[at : at + len(raw)] = raw
        word = meta.transaction << 1 | copy
        self.fence()
        self._words[_PUBLISHED] = word
        self.fence()
        return word

    def published_meta(self, word: int) -> Meta | None:
        """The meta that `word` published; None if another one was published meanwhile."""
        copy = word & 1
        at = COPIES_AT + copy * COPY_SIZE
        raw = self._mapping[at : at + COPY_SIZE]
        self.fence()
        if self._words[_PUBLISHED] != word:
            return None
        try:
            return meta_page.decode(raw, raw[fmt.PAGE_HEADER.offset("page number")])
        except meta_page.BadMeta:
            return None

    def fence(self) -> None:
        """Order what was stored before against what is loaded after: an atomic operation of the processor."""
        with self._fence:
            pass

    # ------------------------------------------------------------ blocks

    def blocks(self) -> int:
        """How many blocks there are now; other processes may have added some."""
        count = self._words[_BLOCKS]
        if len(self._mapping) < _BLOCKS_AT + count * _BLOCK_WORDS * 8:
            self._old.append(self._mapping)
            self._map(_BLOCKS_AT + count * _BLOCK_WORDS * 8)
        return count

    def add_blocks(self) -> None:
        """Double the number of blocks. The caller holds OPEN. `FullError`: nothing has changed."""
        count = 2 * self.blocks()
        size = _BLOCKS_AT + count * _BLOCK_WORDS * 8
        self._make_room(size)
        self._words[_BLOCKS] = count
        self.blocks()

    @property
    def used(self) -> int:
        """How many blocks have ever been used."""
        return self._words[_USED]

    def own(self, block: int, owner: int, started: int) -> list[int]:
        """Clear a block whose lock the caller has got; the words of its pins."""
        base = _BLOCKS_AT // 8 + block * _BLOCK_WORDS
        words = self._words
        for index in range(base, base + _BLOCK_WORDS):
            words[index] = 0
        words[_USED] = max(words[_USED], block + 1)
        words[base + _STARTED] = started
        words[base + _OWNER] = owner
        return list(range(base + _FIRST_PIN, base + _FIRST_PIN + 2 * PINS_PER_BLOCK, 2))

    def pin(self, word: int, transaction: int, page_count: int) -> None:
        """Say in a word of an own block that a snapshot is used."""
        words = self._words
        words[word + 1] = page_count
        words[word] = transaction
        self.fence()

    def unpin(self, word: int) -> None:
        """Say that it is used no longer."""
        self._words[word] = 0

    def pins(self, own: set[int]) -> Iterator[tuple[int, list[Pin]]]:
        """Every block that has pins, with them, but for the blocks `own`. They count while the owner lives."""
        self.blocks()
        words = self._words
        for block in range(words[_USED]):
            if block in own:
                continue
            base = _BLOCKS_AT // 8 + block * _BLOCK_WORDS
            found = words[base : base + _BLOCK_WORDS].tolist()
            if not any(found[_FIRST_PIN::2]):
                continue
            pairs = zip(found[_FIRST_PIN::2], found[_FIRST_PIN + 1 :: 2], strict=True)
            yield block, [Pin(found[_OWNER], found[_STARTED], *pair) for pair in pairs if pair[0]]

    def close(self) -> None:
        """Let the file go. The words can still be looked at, until nobody refers to them any more."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def unmap(self, *, keep: bool = False) -> None:
        """Let the words go too, which keep the file's description open, and so whatever lock is on it.

        With `keep`, a copy of them stays for who still looks at them.  A mapping has a
        descriptor of its own, and a process loses its record locks on a file whenever
        it closes one: so that is done now, and not when the garbage collector comes by
        and another handle of ours has locks there.
        """
        copy = memoryview(bytearray(self._mapping[:]) if keep else b"").cast("Q")
        words, self._words = self._words, copy
        with contextlib.suppress(BufferError):  # a thread that did not come along in a fork was just looking at them
            words.release()
            for mapping in (*self._old, self._mapping):
                mapping.close()
