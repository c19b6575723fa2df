"""The bytes of a meta page: the twin of `cowdb.meta.encode`."""

from __future__ import annotations

from native.memory import *

META = cython.declare(tuple, tuple(
    fmt.META.offset(field)
    for field in (
        "magic", "format version", "page size", "optional features", "database id", "transaction", "durable",
        "page count", "commit time", "main tree", "catalog tree", "free tree", "carried runs",
    )
))  # fmt: skip
META_SIZE = cython.declare(cython.int, fmt.META.size)


@cython.cfunc
@cython.exceptval(-1, check=False)
def put_raw(at: Bytes, data: bytes, length: cython.Py_ssize_t) -> cython.int:
    if PyBytes_GET_SIZE(data) != length:
        raise ValueError(f"{len(data)} bytes where {length} belong")
    memcpy(at, bytes_at(data), length)
    return 0


@cython.cfunc
@cython.inline
def tuple_of(value, length: cython.Py_ssize_t) -> tuple:
    """A named tuple as the tuple that it is: its own way of being indexed is a slow one."""
    if not PyTuple_Check(value) or PyTuple_GET_SIZE(value) != length:
        raise TypeError(f"a tuple of {length} was expected, not {value!r}")
    return cython.cast(tuple, value)


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
    size: cython.Py_ssize_t = meta.page_size
    carry: bytes = meta.carry
    if size < META_SIZE + len(carry):
        raise ValueError(f"{len(carry) // RUN_SIZE} runs do not fit into a meta page of {size} bytes")
    page: bytes = PyBytes_FromStringAndSize(cython.NULL, size)
    at: Bytes = bytes_at(page)
    memset(at, 0, size)
    magic: cython.int
    version: cython.int
    page_size: cython.int
    features: cython.int
    identity: cython.int
    transaction: cython.int
    durable: cython.int
    pages: cython.int
    time: cython.int
    main: cython.int
    catalog: cython.int
    free: cython.int
    runs: cython.int
    (
        magic, version, page_size, features, identity, transaction, durable, pages, time, main, catalog, free, runs,
    ) = META  # fmt: skip
    at[4] = fmt.META_KIND
    put64(at + 8, slot)
    put64(at + 16, meta.transaction)
    put_raw(at + magic, fmt.MAGIC, 8)
    put16(at + version, fmt.FORMAT_VERSION)
    put32(at + page_size, size)
    put64(at + features, meta.optional_features)
    put_raw(at + identity, meta.database_id, 16)
    put64(at + transaction, meta.transaction)
    put64(at + durable, meta.durable)
    put64(at + pages, meta.page_count)
    put64(at + time, meta.commit_time)
    put_tree(at + main, meta.main)
    put_tree(at + catalog, meta.catalog)
    put_tree(at + free, meta.free)
    put64(at + runs, len(carry) // RUN_SIZE)
    memcpy(at + META_SIZE, bytes_at(carry), len(carry))
    put32(at, crc_of(at + 4, size - 4, 0, 0))
    return page
