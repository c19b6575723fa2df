"""The bytes of a meta page: the twin of `cowdb.meta.encode`."""

from __future__ import annotations

from native.memory import *

AT_MAGIC = cython.declare(cython.int, fmt.META.offset("magic"))
AT_VERSION = cython.declare(cython.int, fmt.META.offset("format version"))
AT_PAGE_SIZE = cython.declare(cython.int, fmt.META.offset("page size"))
AT_FEATURES = cython.declare(cython.int, fmt.META.offset("optional features"))
AT_IDENTITY = cython.declare(cython.int, fmt.META.offset("database id"))
AT_TRANSACTION = cython.declare(cython.int, fmt.META.offset("transaction"))
AT_DURABLE = cython.declare(cython.int, fmt.META.offset("durable"))
AT_PAGES = cython.declare(cython.int, fmt.META.offset("page count"))
AT_TIME = cython.declare(cython.int, fmt.META.offset("commit time"))
AT_MAIN = cython.declare(cython.int, fmt.META.offset("main tree"))
AT_CATALOG = cython.declare(cython.int, fmt.META.offset("catalog tree"))
AT_FREE = cython.declare(cython.int, fmt.META.offset("free tree"))
AT_RUNS = cython.declare(cython.int, fmt.META.offset("carried runs"))
META_SIZE = cython.declare(cython.int, fmt.META.size)
META_KIND = cython.declare(cython.int, fmt.META_KIND)
MAGIC = cython.declare(bytes, fmt.MAGIC)
FORMAT_VERSION = cython.declare(cython.int, fmt.FORMAT_VERSION)


@cython.cfunc
@cython.exceptval(-1, check=False)
def put_raw(at: Bytes, data: bytes, length: cython.Py_ssize_t) -> cython.int:
    if PyBytes_GET_SIZE(data) != length:
        raise ValueError(f"{len(data)} bytes where {length} belong")
    memcpy(at, bytes_at(data), length)
    return 0


@cython.cfunc
@cython.exceptval(-1, check=False)
def put_tree(at: Bytes, tree) -> cython.int:
    """The 64 bytes of a tree descriptor; the last 16 are zero already."""
    fields: tuple = tuple_of(tree, 5)
    root: tuple = tuple_of(fields[0], 4)
    number: u64 = root[0]
    birth: u64 = root[1]
    count: u64 = root[2]
    checksum: u64 = root[3]
    depth: u64 = fields[1]
    if (number | birth | count) >> 48 or checksum >> 32 or depth >> 16:
        raise OverflowError("a number of a tree descriptor is too large")
    put48(at, number)
    put48(at + 6, birth)
    put48(at + 12, count)
    put32(at + 18, checksum)
    put16(at + 22, depth)
    put64(at + 24, fields[2])
    put64(at + 32, fields[3])
    put64(at + 40, fields[4])
    return 0


def encode(meta, slot: u64) -> bytes:
    """The page of `meta` for slot 0 or 1, checksum included. O(page size)."""
    (
        page_size, identity, transaction, durable, pages, time, main, catalog, free, carried, features,
    ) = tuple_of(meta, 11)  # fmt: skip
    size: cython.Py_ssize_t = page_size
    if type(carried) is not bytes:
        raise TypeError(f"a carry list is bytes, not {carried!r}")
    carry: bytes = carried
    length: cython.Py_ssize_t = PyBytes_GET_SIZE(carry)
    written: u64 = transaction
    if size < META_SIZE + length:
        raise ValueError(f"{length // RUN_SIZE} runs do not fit into a meta page of {size} bytes")
    page: bytes = PyBytes_FromStringAndSize(cython.NULL, size)
    at: Bytes = bytes_at(page)
    memset(at, 0, META_SIZE)
    at[4] = META_KIND
    put64(at + 8, slot)
    put64(at + 16, written)
    put_raw(at + AT_MAGIC, MAGIC, 8)
    put16(at + AT_VERSION, FORMAT_VERSION)
    put32(at + AT_PAGE_SIZE, size)
    put64(at + AT_FEATURES, features)
    put_raw(at + AT_IDENTITY, identity, 16)
    put64(at + AT_TRANSACTION, written)
    put64(at + AT_DURABLE, durable)
    put64(at + AT_PAGES, pages)
    put64(at + AT_TIME, time)
    put_tree(at + AT_MAIN, main)
    put_tree(at + AT_CATALOG, catalog)
    put_tree(at + AT_FREE, free)
    put64(at + AT_RUNS, length // RUN_SIZE)
    memcpy(at + META_SIZE, bytes_at(carry), length)
    memset(at + META_SIZE + length, 0, size - META_SIZE - length)
    put32(at, crc_of(at + 4, size - 4, 0, 0))
    return page
