"""`docs/format.md` and `cowdb/format.py` say the same."""

from __future__ import annotations

import re
import struct
from pathlib import Path

import pytest
from handmade import LEAF, Bytes, Handmade

from cowdb import format as fmt
from cowdb.check import check
from cowdb.checksum import crc32c

TEXT = (Path(__file__).parent.parent / "docs" / "format.md").read_text(encoding="utf-8")
LAYOUTS = {value.name: value for value in vars(fmt).values() if isinstance(value, fmt.Layout)}
LIMITS = (fmt.max_key_size, fmt.max_inline_value, fmt.carry_capacity, fmt.runs_per_record)
EXAMPLE = [(b"user:ada", b"1815"), (b"user:alan", b"1912"), (b"user:grace", b"1906")]


def tables() -> list[tuple[str, list[list[str]]]]:
    """Each table of the document: the last heading above it, and its rows of cells, the head first."""
    found: list[tuple[str, list[list[str]]]] = []
    heading, inside = "", False
    for line in TEXT.splitlines():
        if line.startswith("#"):
            heading = line.lstrip("#").strip()
        if not line.startswith("|"):
            inside = False
            continue
        if not inside:
            found.append((heading, []))
            inside = True
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if set(line) - set("|- "):
            found[-1][1].append(cells)
    return found


def dumps() -> list[bytes]:
    """The hexadecimal blocks of the document; what they leave out is zero."""
    found = []
    for block in re.findall(r"```hex\n(.*?)```", TEXT, re.DOTALL):
        data = bytearray()
        for line in block.splitlines():
            where, rest = line.split(":", 1)
            row = bytes.fromhex(re.match(r"(?: [0-9a-f]{2})+(?=  |$)", rest)[0])  # type: ignore[index]
            data.extend(bytes(int(where, 16) - len(data)))
            data += row
        found.append(bytes(data))
    return found


# ---------------------------------------------------------------- the document


def test_each_layout_has_its_table() -> None:
    documented = {}
    for heading, (head, *rows) in tables():
        if head[:3] == ["offset", "size", "field"]:
            assert heading.startswith("Layout: "), "a table of fields belongs to a layout"
            assert all(row[3] for row in rows), "each field has a meaning"
            documented[heading.removeprefix("Layout: ")] = [(int(row[0]), int(row[1]), row[2]) for row in rows]
    assert documented == {name: [tuple(field) for field in layout.fields] for name, layout in LAYOUTS.items()}


def test_each_constant_is_told() -> None:
    documented: dict[str, str] = {}
    for _, (head, *rows) in tables():
        if head[:2] == ["constant", "value"]:
            for name, value, *_ in rows:
                assert name.strip("`") not in documented
                documented[name.strip("`")] = value
    for name, value in documented.items():
        real = getattr(fmt, name)
        if isinstance(real, bytes):
            assert value == f"`{real.hex(' ')}`"
        else:
            assert value == str(real).strip("()")
    plain = {name for name, real in vars(fmt).items() if name.isupper() and type(real) in (int, bytes, tuple)}
    assert plain == set(documented)


def test_the_limits_are_told() -> None:
    ((head, *rows),) = [table for heading, table in tables() if heading == "Limits"]
    assert tuple(map(int, head[1:])) == fmt.PAGE_SIZES
    documented = {row[0].split("`")[1]: tuple(map(int, row[1:])) for row in rows}
    assert documented == {limit.__name__: tuple(map(limit, fmt.PAGE_SIZES)) for limit in LIMITS}


def test_the_version_is_in_the_history() -> None:
    ((_, *rows),) = [table for heading, table in tables() if heading == "History"]
    assert int(rows[-1][0]) == fmt.FORMAT_VERSION
    assert TEXT.startswith(f"# The file format, version {fmt.FORMAT_VERSION}\n")


def test_the_example_is_a_valid_page() -> None:
    page, root = dumps()
    assert len(page) == 4096
    assert page == example_page()
    ref = fmt.unpack_reference(root)
    assert ref == fmt.Reference(2, 1, len(EXAMPLE), crc32c(page[4:]))
    # And an engine that reads by the layouts finds the entries.
    header = dict(
        zip((field.name for field in fmt.PAGE_HEADER.fields), fmt.PAGE_HEADER.struct.unpack_from(page), strict=True)
    )
    assert (header["kind"], header["cells"], header["page number"], header["birth"]) == (fmt.LEAF_KIND, 3, 2, 1)
    assert header["checksum"] == ref.checksum
    prefix = page[fmt.HEADER_SIZE : fmt.HEADER_SIZE + header["prefix length"]]
    found = []
    for slot in struct.unpack_from("<3Q", page, fmt.HEADER_SIZE + 8):
        offset, length = slot >> 16 & 0xFFFF, slot & 0xFFFF
        (word,) = fmt.LEAF_CELL.struct.unpack_from(page, offset)
        assert word >> fmt.LENGTH_BITS == fmt.INLINE
        key_end = offset + fmt.CELL_HEAD_SIZE + length
        suffix = page[offset + fmt.CELL_HEAD_SIZE : key_end]
        assert slot >> 32 == int.from_bytes(suffix[:4].ljust(4, b"\0"), "big")
        found.append((prefix + suffix, page[key_end : key_end + (word & fmt.LENGTH_MASK)]))
    assert found == EXAMPLE


def example_page() -> bytes:
    """The page of the example as the plain writer makes it; the checker finds nothing wrong with its file."""
    file = Handmade(4096)
    file.commit(0)
    file.commit(1, main=file.tree(EXAMPLE, 1))
    assert check(Bytes(file.data)) == []
    (number,) = file.pages(LEAF)
    return file.page(number)


# ---------------------------------------------------------------- the layouts


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_a_layout_has_no_holes(layout: fmt.Layout) -> None:
    offset = 0
    for field in layout.fields:
        assert field.offset == offset == layout.offset(field.name)
        offset += field.size
    assert layout.size == offset
    assert layout.struct.size in (0, layout.size)
    assert len({field.name for field in layout.fields}) == len(layout.fields)


def test_sizes_that_others_compute_with() -> None:
    assert fmt.HEADER_SIZE % 8 == 0, "slots are aligned"
    assert fmt.META.size % 8 == 0, "so are carried runs"
    assert fmt.REFERENCE.struct.size == 0, "struct has no integers of 48 bits"
    assert fmt.runs_struct(3).size == 3 * fmt.CARRIED_RUN.size
    assert fmt.FREE_KEY_STRUCT.size == fmt.FREE_KEY.size
    assert fmt.FREE_KEY_STRUCT.pack(1, 2) < fmt.FREE_KEY_STRUCT.pack(256, 0)


@pytest.mark.parametrize("page_size", fmt.PAGE_SIZES)
def test_the_limits_leave_room(page_size: int) -> None:
    key, value = fmt.max_key_size(page_size), fmt.max_inline_value(page_size)
    room = page_size - fmt.HEADER_SIZE
    leaf_cell = fmt.SLOT_SIZE + fmt.CELL_HEAD_SIZE + key + value
    branch_cell = fmt.SLOT_SIZE + key + fmt.REFERENCE_SIZE
    assert 2 * leaf_cell <= room, "a leaf can always be split"
    assert 3 * branch_cell <= room, "a branch can always be split"
    assert value <= fmt.LENGTH_MASK, "an inline length fits into its field"
    assert fmt.runs_per_record(page_size) * fmt.FREE_RUN.size <= value, "a record of the free tree is inline"
    assert fmt.META.size + fmt.carry_capacity(page_size) * fmt.CARRIED_RUN.size <= page_size
    assert page_size < 1 << 16, "offsets in a page, even its end, fit into 16 bits"


@pytest.mark.parametrize("page_size", fmt.PAGE_SIZES)
def test_pages_of_an_overflow_value(page_size: int) -> None:
    first = page_size - fmt.HEADER_SIZE
    lengths = {0: 1, 1: 1, first: 1, first + 1: 2, first + page_size: 2, first + page_size + 1: 3}
    assert {length: fmt.overflow_pages(length, page_size) for length in lengths} == lengths
    assert fmt.overflow_pages(fmt.MAX_U48, page_size) * page_size >= fmt.MAX_U48 + fmt.HEADER_SIZE


# ---------------------------------------------------------------- references and descriptors


def test_a_reference_comes_back() -> None:
    for ref in (
        fmt.NO_PAGE,
        fmt.Reference(1, 2, 3, 4),
        fmt.Reference(fmt.MAX_U48, fmt.MAX_U48, fmt.MAX_U48, 0xFFFFFFFF),
        fmt.Reference(fmt.MAX_U48, 0, fmt.MAX_U48, 0),
    ):
        raw = ref.pack()
        assert len(raw) == fmt.REFERENCE_SIZE
        assert fmt.unpack_reference(raw) == ref
        for field, value in zip(fmt.REFERENCE.fields, ref, strict=True):
            assert int.from_bytes(raw[field.offset : field.offset + field.size], "little") == value
    assert fmt.NO_PAGE.pack() == bytes(22)


@pytest.mark.parametrize("ref", [(0, 0, 0, 1 << 32), (-1, 0, 0, 0)])
def test_a_reference_that_does_not_fit_is_refused(ref: tuple[int, int, int, int]) -> None:
    with pytest.raises(OverflowError):
        fmt.Reference(*ref).pack()


def test_a_descriptor_comes_back() -> None:
    tree = fmt.Descriptor(fmt.Reference(9, 8, 7, 6), 5, 4, 3, (1 << 64) - 1)
    raw = tree.pack()
    assert len(raw) == fmt.DESCRIPTOR_SIZE
    assert fmt.unpack_descriptor(raw) == tree
    assert raw[: fmt.REFERENCE_SIZE] == tree.root.pack()
    assert raw[fmt.TREE_DESCRIPTOR.offset("reserved") :] == bytes(16)
    assert fmt.EMPTY_TREE.pack() == bytes(64)
    assert fmt.unpack_descriptor(bytes(64)) == fmt.EMPTY_TREE
