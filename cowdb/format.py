"""The bytes of a cowdb file: layouts, offsets and limits, and nothing else.

`docs/format.md` shows the same tables to people, and a test compares the two.
Every struct format of the project stands here; offsets are computed from the
layouts, never typed in.  All integers are little-endian.

    page 0   page 1   page 2 ...
    +------+ +------+ +--------------------------------------------------+
    | meta | | meta | | branch, leaf and overflow pages, and free ones   |
    +------+ +------+ +--------------------------------------------------+

A slotted page, branch or leaf:

    0        32        prefix, padded   slots ->        <- cell heap   P
    +--------+---------+----------------+----------+----+--------------+
    | header | prefix  | zero to 8n     | u64 u64  |    | cell cell .. |
    +--------+---------+----------------+----------+----+--------------+

    slot = head << 32 | cell offset << 16 | length of the key suffix
    head = the first four bytes of the suffix, big-endian, zero-padded
"""

from __future__ import annotations

import functools
import itertools
import struct
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

# ---------------------------------------------------------------- layouts


class Field(NamedTuple):
    """One field of a layout: its byte offset, its size in bytes, its name."""

    offset: int
    size: int
    name: str


class Layout:
    """A fixed sequence of fields.

    `codes` pairs a struct code with a name; the code ``"u48"`` is a 6-byte
    integer, which `struct` lacks, so a layout that uses it has no `struct`.
    """

    def __init__(self, name: str, codes: tuple[tuple[str, str], ...]) -> None:
        self.name = name
        fields = []
        offset = 0
        for code, field in codes:
            size = 6 if code == "u48" else struct.calcsize("<" + code)
            fields.append(Field(offset, size, field))
            offset += size
        self.fields: Final = tuple(fields)
        self.size: Final = offset
        names = {field.name: field for field in fields}
        self._named: Final = names
        plain = all(code != "u48" for code, _ in codes)
        self.struct: Final = struct.Struct("<" + "".join(code for code, _ in codes)) if plain else struct.Struct("")

    def offset(self, field: str) -> int:
        """Byte offset of `field` from the start of the layout."""
        return self._named[field].offset


PAGE_HEADER: Final = Layout(
    "page header",
    (
        ("I", "checksum"),
        ("B", "kind"),
        ("B", "level"),
        ("H", "cells"),
        ("Q", "page number"),
        ("Q", "birth"),
        ("H", "prefix length"),
        ("H", "heap"),
        ("H", "dead"),
        ("H", "reserved"),
    ),
)

REFERENCE: Final = Layout(
    "reference",
    (("u48", "page number"), ("u48", "birth"), ("u48", "count"), ("I", "checksum")),
)

TREE_DESCRIPTOR: Final = Layout(
    "tree descriptor",
    (
        (f"{REFERENCE.size}s", "root"),
        ("H", "depth"),
        ("Q", "branch pages"),
        ("Q", "leaf pages"),
        ("Q", "overflow pages"),
        ("16s", "reserved"),
    ),
)

META: Final = Layout(
    "meta page",
    (
        (f"{PAGE_HEADER.size}s", "page header"),
        ("8s", "magic"),
        ("H", "format version"),
        ("H", "reserved"),
        ("I", "page size"),
        ("Q", "required features"),
        ("Q", "optional features"),
        ("16s", "database id"),
        ("Q", "transaction"),
        ("Q", "durable"),
        ("Q", "page count"),
        ("Q", "commit time"),
        (f"{TREE_DESCRIPTOR.size}s", "main tree"),
        (f"{TREE_DESCRIPTOR.size}s", "catalog tree"),
        (f"{TREE_DESCRIPTOR.size}s", "free tree"),
        ("Q", "carried runs"),
        ("24s", "reserved for later"),
    ),
)

CARRIED_RUN: Final = Layout("carried run", (("Q", "start"), ("Q", "length"), ("Q", "birth"), ("Q", "freed")))

FREE_KEY: Final = Layout("free tree key", (("Q", "written"), ("Q", "chunk")))
FREE_RUN: Final = CARRIED_RUN
"""A run in a record of the free tree has the same four fields as a carried one."""

LEAF_CELL: Final = Layout("leaf cell", (("H", "kind and length"),))

FREE_KEY_STRUCT: Final = struct.Struct(">QQ")
"""Keys of the free tree are big-endian, so that they sort by transaction."""


@functools.cache
def runs_struct(runs: int) -> struct.Struct:
    """Struct of `runs` free runs in a row, four integers each: in the carry list or in a record."""
    return struct.Struct(f"<{4 * runs}Q")


@functools.lru_cache(maxsize=256)
def leaf_cell(suffix: int, value: int) -> struct.Struct:
    """Struct of a leaf cell: kind and length, the key's last `suffix` bytes, a value of `value` bytes."""
    return struct.Struct(f"<H{suffix}s{value}s")


def pack_runs(runs: Sequence[tuple[int, int, int, int]]) -> bytes:
    """Free runs in a row, as they lie in the carry list or in a record."""
    return runs_struct(len(runs)).pack(*itertools.chain.from_iterable(runs))


def unpack_runs(raw: bytes) -> list[tuple[int, int, int, int]]:
    """The free runs that `raw` holds, whose length is a multiple of a run's: start, length, birth and freed of each."""
    flat = runs_struct(len(raw) // CARRIED_RUN.size).unpack(raw)
    return list(zip(flat[0::4], flat[1::4], flat[2::4], flat[3::4], strict=True))


# ---------------------------------------------------------------- constants

MAGIC: Final = b"\x89COW\r\n\x1a\n"
FORMAT_VERSION: Final = 1
KNOWN_REQUIRED_FEATURES: Final = 0

HEADER_SIZE: Final = PAGE_HEADER.size
REFERENCE_SIZE: Final = REFERENCE.size
DESCRIPTOR_SIZE: Final = TREE_DESCRIPTOR.size
SLOT_SIZE: Final = 8
CHECKSUM_SIZE: Final = 4
CELL_HEAD_SIZE: Final = LEAF_CELL.size

META_KIND: Final = 1
BRANCH_KIND: Final = 2
LEAF_KIND: Final = 3
OVERFLOW_KIND: Final = 4

INLINE: Final = 0
OVERFLOW: Final = 1
NESTED: Final = 2
"""Payload kinds of a leaf cell: the two high bits of its first field."""
LENGTH_BITS: Final = 14
LENGTH_MASK: Final = (1 << LENGTH_BITS) - 1

META_PAGES: Final = 2
FIRST_DATA_PAGE: Final = 2
MAX_U48: Final = (1 << 48) - 1
MAX_DEPTH: Final = 48

PAGE_SIZES: Final = (4096, 8192, 16384, 32768)
DEFAULT_PAGE_SIZE: Final = 8192


# ---------------------------------------------------------------- limits


def max_key_size(page_size: int) -> int:
    """Longest key in bytes: a quarter page less what two full cells need."""
    return page_size // 4 - 48


def max_inline_value(page_size: int) -> int:
    """Longest value in bytes that lies in its leaf: a quarter page."""
    return page_size // 4


def overflow_pages(length: int, page_size: int) -> int:
    """Pages of the run that holds a value of `length` bytes."""
    return (HEADER_SIZE + length + page_size - 1) // page_size


def carry_capacity(page_size: int) -> int:
    """Free runs that the meta page has room for."""
    return (page_size - META.size) // CARRIED_RUN.size


def runs_per_record(page_size: int) -> int:
    """Free runs that one record of the free tree holds at most, so that its value stays inline."""
    return max_inline_value(page_size) // FREE_RUN.size


# ---------------------------------------------------------------- references


class Reference(NamedTuple):
    """What leads to a page: its number, its birth, what is below it, its checksum.

    `count` is the number of entries of the subtree, or the byte length of an
    overflow value.  Number 0 means "no page".
    """

    number: int
    birth: int
    count: int  # type: ignore[assignment]  # hides tuple.count, which nobody needs here
    checksum: int

    def pack(self) -> bytes:
        """Its 22 bytes."""
        return (self.number | self.birth << 48 | self.count << 96 | self.checksum << 144).to_bytes(
            REFERENCE_SIZE, "little"
        )


def unpack_reference(raw: bytes) -> Reference:
    """The reference that `raw`, 22 bytes, holds."""
    bits = int.from_bytes(raw, "little")
    return Reference(bits & MAX_U48, bits >> 48 & MAX_U48, bits >> 96 & MAX_U48, bits >> 144)


NO_PAGE: Final = Reference(0, 0, 0, 0)


class Descriptor(NamedTuple):
    """A tree: the reference to its root, its depth (0: empty, 1: one leaf), its pages by kind."""

    root: Reference
    depth: int
    branch_pages: int
    leaf_pages: int
    overflow_pages: int

    def pack(self) -> bytes:
        """Its 64 bytes."""
        if self is EMPTY_TREE:
            return bytes(DESCRIPTOR_SIZE)
        return TREE_DESCRIPTOR.struct.pack(
            self.root.pack(), self.depth, self.branch_pages, self.leaf_pages, self.overflow_pages, b""
        )


def unpack_descriptor(raw: bytes) -> Descriptor:
    """The tree descriptor that `raw`, 64 bytes, holds."""
    if raw == bytes(DESCRIPTOR_SIZE):
        return EMPTY_TREE
    root, depth, branch, leaf, overflow, _ = TREE_DESCRIPTOR.struct.unpack(raw)
    return Descriptor(unpack_reference(root), depth, branch, leaf, overflow)


EMPTY_TREE: Final = Descriptor(NO_PAGE, 0, 0, 0, 0)
