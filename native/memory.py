"""Bytes, seen as C sees them: windows on buffers, and the search in one page.

Every pointer of the kernel comes from a `Window`, which holds its buffer for as
long as it lives: no pointer outlives what it points into.  Whoever keeps a
pointer keeps the window.

A page's header is read and checked again at each visit (I10): cells and prefix
must leave the slots inside the page.  A cell's offset and lengths are checked
where the cell is used.  So whatever bytes lie in the file, and even if they change
while they are looked at, nothing outside of the page is read.
"""

from __future__ import annotations

import cython
from cython.cimports.cpython.buffer import PyBUF_SIMPLE, PyBuffer_FillInfo, PyBuffer_Release, PyObject_GetBuffer
from cython.cimports.cpython.bytes import PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cython.cimports.cpython.exc import PyErr_CheckSignals
from cython.cimports.cpython.list import PyList_GET_SIZE
from cython.cimports.cpython.mem import PyMem_Free, PyMem_Malloc, PyMem_Realloc
from cython.cimports.cpython.tuple import PyTuple_Check, PyTuple_GET_SIZE
from cython.cimports.libc.string import memcmp, memcpy, memmove, memset, strlen

from cowdb import format as fmt
from cowdb.errors import ClosedError, CorruptionError, Error, KeyNotFoundError, KeySizeError
from cowdb.space import FORKED, refuse
from cowdb.tree import as_key, lookup_key

crc_prepare()

HEADER = cython.declare(cython.int, fmt.HEADER_SIZE)
REFERENCE = cython.declare(cython.int, fmt.REFERENCE_SIZE)
LENGTH_MASK = cython.declare(cython.int, fmt.LENGTH_MASK)
OVERFLOW = cython.declare(cython.int, fmt.OVERFLOW)
BRANCH_KIND = cython.declare(cython.int, fmt.BRANCH_KIND)
LEAF_KIND = cython.declare(cython.int, fmt.LEAF_KIND)
RUN_SIZE = cython.declare(cython.int, fmt.CARRIED_RUN.size)
OVERFLOW_KIND = cython.declare(cython.int, fmt.OVERFLOW_KIND)
OVERFLOW_INFO = cython.declare(cython.int, fmt.OVERFLOW << fmt.LENGTH_BITS | fmt.REFERENCE_SIZE)
MAX_U48 = cython.declare(u64, fmt.MAX_U48)


def crc32c(data, value: u32 = 0, *, portable: cython.bint = False):
    """CRC-32C of `data`, which follows bytes whose checksum is `value`; `portable` computes it by tables. O(length)."""
    window = Window(data)
    return crc_of(window.at, window.length, value, portable)


@cython.final
@cython.no_gc
@cython.cclass
class Window:
    """A pinned buffer: its bytes stay where they are while this lives.

    The garbage collector has nothing to do here, and must not let the buffer go before its time: what is pinned refers
    to nobody.  For the same reason it clears nothing that holds a pointer and the window that it points into.
    """

    data = cython.declare(object, visibility="readonly")
    at = cython.declare(Bytes)
    length = cython.declare(cython.Py_ssize_t)
    _buffer: Py_buffer

    def __cinit__(self, data):
        PyObject_GetBuffer(data, cython.address(self._buffer), PyBUF_SIMPLE)
        self.data = data
        self.at = cython.cast(Bytes, self._buffer.buf)
        self.length = self._buffer.len

    def __dealloc__(self):
        PyBuffer_Release(cython.address(self._buffer))


@cython.cfunc
@cython.inline
def as_bytes(at: Bytes, length: cython.Py_ssize_t) -> bytes:
    return PyBytes_FromStringAndSize(cython.cast(cython.p_char, at), length)


@cython.cfunc
@cython.inline
def joined(a: Bytes, a_length: cython.Py_ssize_t, b: Bytes, b_length: cython.Py_ssize_t) -> bytes:
    """Two pieces as one `bytes`: a page's prefix and a cell's suffix."""
    if not a_length:
        return as_bytes(b, b_length)
    both: bytes = PyBytes_FromStringAndSize(cython.NULL, a_length + b_length)
    at: Bytes = cython.cast(Bytes, PyBytes_AS_STRING(both))
    memcpy(at, a, a_length)
    memcpy(at + a_length, b, b_length)
    return both


@cython.cfunc
@cython.inline
@cython.exceptval(check=False)
def bytes_at(data: bytes) -> Bytes:
    return cython.cast(Bytes, PyBytes_AS_STRING(data))


@cython.cfunc
@cython.inline
@cython.exceptval(check=False)
def padded(length: cython.int) -> cython.int:
    """Bytes that a prefix of `length` takes: a multiple of a slot's size."""
    return (length + 7) & -8


@cython.cfunc
@cython.inline
@cython.exceptval(check=False)
def common(a: Bytes, a_length: cython.int, b: Bytes, b_length: cython.int) -> cython.int:
    """Number of leading bytes that two keys share."""
    length: cython.int = a_length if a_length < b_length else b_length
    same: cython.int = 0
    while same < length and a[same] == b[same]:
        same += 1
    return same


@cython.cfunc
@cython.inline
@cython.exceptval(check=False)
def read_ref(at: Bytes, ref: cython.pointer[Ref]) -> cython.void:
    """Take the 22 bytes of a reference apart."""
    ref.number = get48(at)
    ref.birth = get48(at + 6)
    ref.count = get48(at + 12)
    ref.checksum = cython.cast(u32, get32(at + 18))


@cython.cfunc
@cython.inline
@cython.exceptval(check=False)
def write_ref(at: Bytes, ref: cython.pointer[Ref]) -> cython.void:
    """Write the 22 bytes of a reference."""
    put48(at, ref.number)
    put48(at + 6, ref.birth)
    put48(at + 12, ref.count)
    put32(at + 18, ref.checksum)


@cython.cfunc
def pack_ref(ref: cython.pointer[Ref]):
    """A reference as the plain kernel has it: one integer."""
    raw: u8[22]
    write_ref(cython.cast(Bytes, raw), ref)
    return int.from_bytes(as_bytes(cython.cast(Bytes, raw), 22), "little")


@cython.cfunc
@cython.exceptval(-1, check=False)
def unpack_ref(bits, ref: cython.pointer[Ref]) -> cython.int:
    raw: bytes = bits.to_bytes(22, "little")
    read_ref(bytes_at(raw), ref)
    return 0


# ---------------------------------------------------------------- one page


@cython.cfunc
@cython.inline
@cython.exceptval(check=False)
def open_view(view: cython.pointer[View], at: Bytes, size: cython.int) -> cython.bint:
    """Read the header of the page at `at`; False if its slots would not end inside the page (I10)."""
    lead: u64 = get64(at)
    prefix: cython.int = cython.cast(cython.int, get16(at + 24))
    start: cython.int = HEADER + padded(prefix)
    view.at = at
    view.size = size
    view.kind = lead >> 32 & 0xFF
    view.level = lead >> 40 & 0xFF
    view.cells = lead >> 48
    view.prefix = prefix
    view.slots = at + start
    return start + 8 * view.cells <= size


@cython.cfunc
@cython.exceptval(check=False)
def boundary(
    view: cython.pointer[View],
    key: Bytes,
    length: cython.Py_ssize_t,
    low: cython.int,
    skip: cython.int,
    after: cython.int,
) -> cython.int:
    """Index of the first cell, from `low` on, whose key is >= `key` (> if `after`); -1 if a cell leads outside.

    `skip` bytes stand in a cell before its key.  `view.exact` says whether the cell there has this very key, unless
    `after` is asked for.  O(log cells).
    """
    prefix: cython.int = view.prefix
    cells: cython.int = view.cells
    order: cython.int
    view.exact = 0
    if prefix:
        order = order_of(key, prefix if prefix < length else length, view.at + HEADER, prefix)
        if order:
            return low if order < 0 else cells
        key += prefix
        length -= prefix
    slots: Bytes = view.slots
    head: u64 = head_of(key, length)
    wanted: u64 = head << 32
    first: cython.int = low
    left: cython.int = cells - low
    if left <= 0:
        return low
    if skip:
        prefetch_all(slots, 8 * left)  # of a leaf, which few look at: its slots are far away
    first = narrow(slots, first, left, wanted)
    slot: u64 = get64(slots + 8 * first)
    if slot < wanted:
        first += 1
        if first == cells:
            return first
        slot = get64(slots + 8 * first)
    if slot >> 32 != head:
        return first
    # Heads are equal from `first` to `last`: their cells decide.
    last: cython.int = first + 1
    middle: cython.int
    stop: cython.int
    if last < cells and get64(slots + 8 * last) >> 32 == head:
        last += 1
        stop = cells
        while last < stop:
            middle = (last + stop) >> 1
            if get64(slots + 8 * middle) >> 32 <= head:
                last = middle + 1
            else:
                stop = middle
    at: cython.int
    size: cython.int
    while first < last:
        middle = (first + last) >> 1
        slot = get64(slots + 8 * middle)
        at = cython.cast(cython.int, slot >> 16 & 0xFFFF) + skip
        size = cython.cast(cython.int, slot & 0xFFFF)
        if at + size > view.size:
            return -1
        order = order_of(view.at + at, size, key, length)
        if order < 0 or (after and order == 0):
            first = middle + 1
        elif order:
            last = middle
        else:
            view.exact = 1
            return middle
    return first


@cython.cfunc
@cython.inline
@cython.exceptval(check=False)
def holds(view: cython.pointer[View], index: cython.int, key: Bytes, length: cython.Py_ssize_t) -> cython.int:
    """1 if leaf entry `index` exists and has this key, which `boundary` led to; 0 if not; -1 if it leads outside."""
    if index >= view.cells or length < view.prefix:
        return 0
    slot: u64 = get64(view.slots + 8 * index)
    at: cython.int = cython.cast(cython.int, slot >> 16 & 0xFFFF) + 2
    size: cython.int = cython.cast(cython.int, slot & 0xFFFF)
    if size != length - view.prefix:
        return 0
    if at + size > view.size:
        return -1
    return memcmp(view.at + at, key + view.prefix, size) == 0 and memcmp(view.at + HEADER, key, view.prefix) == 0


@cython.cfunc
@cython.inline
@cython.exceptval(check=False)
def entry_at(view: cython.pointer[View], index: cython.int, found: cython.pointer[Found]) -> cython.bint:
    """Where the payload of leaf entry `index` lies; False if its cell leads outside of the page (I10)."""
    slot: u64 = get64(view.slots + 8 * index)
    at: cython.int = cython.cast(cython.int, slot >> 16 & 0xFFFF)
    if at + 2 > view.size:
        return False
    found.info = cython.cast(cython.int, get16(view.at + at))
    found.length = found.info & LENGTH_MASK
    at += 2 + cython.cast(cython.int, slot & 0xFFFF)
    found.payload = view.at + at
    return at + found.length <= view.size


@cython.cfunc
@cython.inline
@cython.exceptval(check=False)
def child_at(view: cython.pointer[View], index: cython.int) -> Bytes:
    """Where the reference of child `index` lies; NULL if its cell leads outside of the page (I10)."""
    slot: u64 = get64(view.slots + 8 * index)
    at: cython.int = cython.cast(cython.int, slot >> 16 & 0xFFFF) + cython.cast(cython.int, slot & 0xFFFF)
    if at + REFERENCE > view.size:
        return cython.NULL
    return view.at + at


@cython.cfunc
@cython.inline
def key_at(view: cython.pointer[View], index: cython.int, skip: cython.int) -> bytes:
    """The whole key of cell `index`."""
    slot: u64 = get64(view.slots + 8 * index)
    at: cython.int = cython.cast(cython.int, slot >> 16 & 0xFFFF) + skip
    size: cython.int = cython.cast(cython.int, slot & 0xFFFF)
    if at + size > view.size:
        raise broken(view)
    return joined(view.at + HEADER, view.prefix, view.at + at, size)


@cython.cfunc
def broken(view: cython.pointer[View]):
    """What is raised when a cell turns out to lie outside of its page: the page is forged (I10)."""
    return CorruptionError(get64(view.at + 8), "a cell or a count of it makes no sense: it leads outside")


@cython.final
@cython.no_gc
@cython.cclass
class Scratch:
    """Memory for as long as a call takes, however that ends."""

    at: cython.p_void

    def __cinit__(self, size: cython.Py_ssize_t):
        self.at = PyMem_Malloc(size)
        if self.at == cython.NULL:
            raise MemoryError

    def __dealloc__(self):
        PyMem_Free(self.at)


@cython.cfunc
@cython.inline
def tuple_of(value, length: cython.Py_ssize_t) -> tuple:
    """A named tuple as the tuple that it is: its own way of being indexed is a slow one."""
    if not PyTuple_Check(value) or PyTuple_GET_SIZE(value) != length:
        raise TypeError(f"a tuple of {length} was expected, not {value!r}")
    return cython.cast(tuple, value)
