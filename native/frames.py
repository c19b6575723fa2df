"""Memory for dirty pages, which is used again.

A write transaction copies every page that it changes, and new memory costs more than the copy does: the system clears
it, 4 KiB a fault, and takes it back at the end.  So a database keeps the memory of its last transactions here, in
blocks that grow to the size of one of the processor's large pages, where few faults and few misses in its table of
pages are needed.

    blocks:   [64K] [128K] ... [1M] [2M] [2M] [2M]       what a transaction left, the next one fills from the start
                                 ^ filled up to here      frames that come back in between: a list through themselves

What is kept is what the last transactions needed, a quarter of the rest goes at the end of each; and the system may
take what lies idle whenever it is short of memory.
"""

from __future__ import annotations

from native.memory import *

LEAST_BLOCK = cython.declare(cython.size_t, 64 << 10)
BLOCK = cython.declare(cython.size_t, 2 << 20)


@cython.final
@cython.no_gc
@cython.cclass
class Frames:
    """Memory for pages of `size` bytes. A frame may come back in any thread."""

    size = cython.declare(cython.size_t)
    lock = cython.declare(Mutex)
    blocks = cython.declare(cython.pointer[Block])
    count = cython.declare(cython.Py_ssize_t)  # of blocks
    current = cython.declare(cython.Py_ssize_t)  # the block that is being filled
    filled = cython.declare(cython.size_t)  # bytes of it that were given out
    spare = cython.declare(Bytes)  # the first of the frames that came back; each begins with where the next one is
    out = cython.declare(cython.longlong, visibility="readonly")  # frames that are in use

    def __cinit__(self, size: cython.size_t):
        if not 32 <= size <= LEAST_BLOCK:
            raise ValueError(f"no page has {size} bytes")
        self.size = size

    def __dealloc__(self):
        self.shrink(0)
        PyMem_Free(self.blocks)

    @property
    def held(self):
        """Bytes of all blocks."""
        total: cython.size_t = 0
        index: cython.Py_ssize_t
        for index in range(self.count):
            total += self.blocks[index].length
        return total

    @cython.cfunc
    @cython.exceptval(check=False)
    def shrink(self, count: cython.Py_ssize_t) -> cython.void:
        """Give all blocks but the first `count` back to the system."""
        while self.count > count:
            self.count -= 1
            free_block(cython.address(self.blocks[self.count]))

    @cython.cfunc
    @cython.exceptval(check=False)
    def take(self) -> Bytes:
        """A frame, in which anything may stand; NULL if there is no memory. O(1), amortised."""
        at: Bytes
        lock_mutex(cython.address(self.lock))
        if self.spare != cython.NULL:
            at = self.spare
            self.spare = cython.cast(cython.pointer[Bytes], at)[0]
        else:
            at = self.untouched()
        if at != cython.NULL:
            self.out += 1
        unlock_mutex(cython.address(self.lock))
        return at

    @cython.cfunc
    @cython.exceptval(check=False)
    def untouched(self) -> Bytes:
        """The next frame of the blocks."""
        while self.current < self.count and self.filled + self.size > self.blocks[self.current].length:
            self.current += 1
            self.filled = 0
        if self.current == self.count and not self.grow():
            return cython.NULL
        at: Bytes = self.blocks[self.current].at + self.filled
        self.filled += self.size
        return at

    @cython.cfunc
    @cython.exceptval(check=False)
    def grow(self) -> cython.bint:
        """One more block; False if there is no memory."""
        blocks = cython.cast(cython.pointer[Block], PyMem_Realloc(self.blocks, (self.count + 1) * cython.sizeof(Block)))
        if blocks == cython.NULL:
            return False
        self.blocks = blocks
        length: cython.size_t = LEAST_BLOCK << self.count if self.count < 5 else BLOCK
        if not new_block(cython.address(blocks[self.count]), length, BLOCK):
            return False
        self.count += 1
        self.filled = 0
        return True

    @cython.cfunc
    @cython.exceptval(check=False)
    def give(self, at: Bytes) -> cython.void:
        """Take a frame back. O(1), amortised."""
        lock_mutex(cython.address(self.lock))
        self.out -= 1
        if self.out:
            cython.cast(cython.pointer[Bytes], at)[0] = self.spare
            self.spare = at
        else:
            self.start_over()
        unlock_mutex(cython.address(self.lock))

    @cython.cfunc
    @cython.exceptval(check=False)
    def start_over(self) -> cython.void:
        """All frames are back."""
        needed: cython.Py_ssize_t = min(self.current + 1, self.count)  # less if the last block could not be had
        index: cython.Py_ssize_t
        self.shrink(self.count - (self.count - needed + 3) // 4)
        for index in range(needed):
            offer_block(cython.address(self.blocks[index]))
        self.spare = cython.NULL
        self.current = 0
        self.filled = 0


@cython.final
@cython.no_gc
@cython.cclass
class Frame:
    """The memory of one dirty page, a buffer to Python; it goes back when nobody holds it any more."""

    frames = cython.declare(Frames)
    at = cython.declare(Bytes)

    def __cinit__(self, frames: Frames):
        self.at = frames.take()
        if self.at == cython.NULL:
            raise MemoryError
        self.frames = frames

    def __dealloc__(self):
        if self.at != cython.NULL:
            self.frames.give(self.at)

    def __len__(self):
        return self.frames.size

    def __getbuffer__(self, buffer: cython.pointer[Py_buffer], flags: cython.int):
        PyBuffer_FillInfo(buffer, self, self.at, self.frames.size, 0, flags)
