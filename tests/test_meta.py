"""The meta page: every field that comes back, every one that is refused, every byte that may rot."""

from __future__ import annotations

import struct
from typing import Any

import pytest

from cowdb import format as fmt
from cowdb import meta as metas
from cowdb.checksum import crc32c

ROOT = fmt.Reference(5, 6, 70, 0xDEADBEEF)
TREE = fmt.Descriptor(ROOT, 2, 1, 3, 4)
OFFSETS = {field.name: field.offset for field in fmt.META.fields}
SIZES = {field.name: field.size for field in fmt.META.fields}


def make(page_size: int = 4096, **changes: Any) -> metas.Meta:
    values: dict[str, Any] = {
        "page_size": page_size,
        "database_id": bytes(range(16)),
        "transaction": 42,
        "durable": 41,
        "page_count": 100,
        "commit_time": 1_700_000_000_000_000_000,
        "main": TREE,
        "catalog": fmt.EMPTY_TREE,
        "free": fmt.Descriptor(fmt.Reference(99, 42, 1, 1), 1, 0, 1, 0),
        "carry": fmt.pack_runs([(2, 3, 0, 40), (98, 2, 42, 42)]),
    }
    return metas.Meta(**{**values, **changes})


def seal(page: bytes | bytearray) -> bytes:
    """`page` with the right checksum."""
    return crc32c(bytes(page[4:])).to_bytes(4, "little") + bytes(page[4:])


def patched(offset: int, raw: bytes, page: bytes | None = None) -> bytes:
    """A sealed meta page with some bytes changed."""
    changed = bytearray(metas.encode(make(), 0) if page is None else page)
    changed[offset : offset + len(raw)] = raw
    return seal(changed)


def refuse(page: bytes, reason: str, slot: int = 0) -> None:
    with pytest.raises(metas.BadMeta, match=reason) as caught:
        metas.decode(page, slot)
    assert type(caught.value) is metas.BadMeta


@pytest.mark.parametrize("page_size", fmt.PAGE_SIZES)
@pytest.mark.parametrize("slot", [0, 1])
def test_what_goes_in_comes_out(page_size: int, slot: int) -> None:
    full = tuple((2 + i, 1, i, i + 1) for i in range(fmt.carry_capacity(page_size)))
    for carried in ((), full[:1], full):
        meta = make(
            page_size, carry=fmt.pack_runs(carried), page_count=5000, transaction=5000, optional_features=1 << 63
        )
        page = metas.encode(meta, slot)
        assert len(page) == page_size
        assert metas.decode(page, slot) == meta
        assert metas.decode(page + b"what follows in the file", slot) == meta


def test_the_largest_numbers_come_back() -> None:
    top = fmt.MAX_U48
    root = fmt.Reference(top - 1, top, top, 0xFFFFFFFF)
    meta = make(
        transaction=top,
        durable=top,
        page_count=top,
        commit_time=(1 << 64) - 1,
        main=fmt.Descriptor(root, fmt.MAX_DEPTH, 1, 2, top - 3),
        carry=fmt.pack_runs([(2, top - 2, top, top)]),
    )
    assert metas.decode(metas.encode(meta, 1), 1) == meta


def test_a_new_database_is_a_valid_meta() -> None:
    meta = make(transaction=0, durable=0, page_count=2, main=fmt.EMPTY_TREE, free=fmt.EMPTY_TREE, carry=b"")
    assert metas.decode(metas.encode(meta, 0), 0) == meta


def test_the_fields_lie_where_the_layout_says() -> None:
    page = metas.encode(make(), 1)
    header = fmt.PAGE_HEADER.struct.unpack_from(page)
    assert header[1:] == (fmt.META_KIND, 0, 0, 1, 42, 0, 0, 0, 0)
    assert page[OFFSETS["magic"] :].startswith(fmt.MAGIC)
    assert struct.unpack_from("<QQQ", page, OFFSETS["transaction"]) == (42, 41, 100)
    assert page[OFFSETS["main tree"] : OFFSETS["catalog tree"]] == TREE.pack()
    assert struct.unpack_from("<8Q", page, fmt.META.size) == (2, 3, 0, 40, 98, 2, 42, 42)
    assert not any(page[fmt.META.size + 64 :])


def test_every_changed_byte_is_noticed() -> None:
    page = bytearray(metas.encode(make(), 0))
    for offset in range(len(page)):
        for flip in (0x01, 0x80, 0xFF):
            page[offset] ^= flip
            with pytest.raises(metas.BadMeta):
                metas.decode(bytes(page), 0)
            page[offset] ^= flip
    assert metas.decode(bytes(page), 0) == make()


@pytest.mark.parametrize("page_size", fmt.PAGE_SIZES)
def test_a_page_that_was_cut_is_refused(page_size: int) -> None:
    page = metas.encode(make(page_size), 0)
    for length in {0, 1, 31, fmt.META.size, 4095, page_size // 2, page_size - 512, page_size - 1}:
        refuse(page[:length], "too short" if length < page_size else "checksum")


def test_a_page_torn_at_any_sector_is_refused() -> None:
    """The old page and the new one, mixed at sectors, is neither."""
    old, new = (
        metas.encode(make(), 0),
        metas.encode(make(transaction=44, durable=43, carry=fmt.pack_runs([(50, 1, 1, 44)] * 60)), 0),
    )
    for cut in range(512, 4096, 512):
        head, tail = old[:cut] + new[cut:], new[:cut] + old[cut:]
        for torn in {head, tail} - {old, new}:
            refuse(torn, "checksum")


def test_zeros_and_noise_are_refused() -> None:
    refuse(bytes(4096), "no cowdb magic")
    refuse(b"\xff" * 32768, "no cowdb magic")


def test_a_page_from_the_other_slot_is_refused() -> None:
    refuse(metas.encode(make(), 1), "written for page 1", slot=0)
    refuse(metas.encode(make(), 0), "written for page 0", slot=1)


@pytest.mark.parametrize(
    ("field", "code", "value", "reason"),
    [
        ("page size", "I", 0, "page size of 0"),
        ("page size", "I", 2048, "page size of 2048"),
        ("page size", "I", 4097, "page size of 4097"),
        ("page size", "I", 65536, "page size of 65536"),
        ("page size", "I", 8192, "too short"),
        ("durable", "Q", 43, "durable transaction 43"),
        ("durable", "Q", (1 << 64) - 1, "durable transaction"),
        ("page count", "Q", 0, "counts 0 pages"),
        ("page count", "Q", 1, "counts 1 pages"),
        ("page count", "Q", 1 << 48, "counts"),
        ("page count", "Q", 5, "root at page 5 of 5"),
        ("carried runs", "Q", 1 << 63, "more than fit"),
        ("carried runs", "Q", fmt.carry_capacity(4096) + 1, "more than fit"),
        ("carried runs", "Q", 3, "run of 0 pages at 0"),
    ],
)
def test_senseless_fields_are_refused(field: str, code: str, value: int, reason: str) -> None:
    raw = struct.pack("<" + code, value)
    assert len(raw) == SIZES[field]
    refuse(patched(OFFSETS[field], raw), reason)


def test_a_transaction_that_is_not_the_birth_of_the_page_is_refused() -> None:
    refuse(patched(OFFSETS["transaction"], struct.pack("<Q", 43)), "written for page")


def test_a_transaction_beyond_48_bits_is_refused() -> None:
    page = patched(fmt.PAGE_HEADER.offset("birth"), struct.pack("<Q", 1 << 48))
    refuse(patched(OFFSETS["transaction"], struct.pack("<Q", 1 << 48), page), "durable transaction")


def test_another_kind_of_page_is_refused() -> None:
    refuse(patched(fmt.PAGE_HEADER.offset("kind"), bytes([fmt.LEAF_KIND])), "written for page")


@pytest.mark.parametrize(("field", "raw"), [("format version", b"\2\0"), ("required features", b"\1" + bytes(7))])
def test_an_unknown_format_is_told_from_damage(field: str, raw: bytes) -> None:
    with pytest.raises(metas.UnknownFormat, match="the file"):
        metas.decode(patched(OFFSETS[field], raw), 0)
    torn = bytearray(metas.encode(make(), 0))
    torn[OFFSETS[field] : OFFSETS[field] + len(raw)] = raw
    refuse(bytes(torn), "checksum")


def test_unknown_optional_features_are_let_through() -> None:
    page = patched(OFFSETS["optional features"], b"\x05" + bytes(7))
    assert metas.decode(page, 0).optional_features == 5


@pytest.mark.parametrize("name", ["main", "catalog", "free"])
@pytest.mark.parametrize(
    ("tree", "reason"),
    [
        (TREE._replace(depth=0), "root 5 and depth 0"),
        (TREE._replace(depth=fmt.MAX_DEPTH + 1), "depth 49"),
        (TREE._replace(root=ROOT._replace(number=0)), "root 0 and depth 2"),
        (TREE._replace(root=ROOT._replace(number=1)), "root at page 1 of 100"),
        (TREE._replace(root=ROOT._replace(number=100)), "root at page 100 of 100"),
        (TREE._replace(root=ROOT._replace(number=fmt.MAX_U48)), "root at page"),
        (TREE._replace(root=ROOT._replace(birth=43)), "born in 43, after transaction 42"),
        (TREE._replace(branch_pages=101), "more pages than the file"),
        (TREE._replace(leaf_pages=(1 << 64) - 1), "more pages than the file"),
        (TREE._replace(branch_pages=50, leaf_pages=30, overflow_pages=21), "more pages than the file"),
    ],
)
def test_senseless_trees_are_refused(name: str, tree: fmt.Descriptor, reason: str) -> None:
    refuse(metas.encode(make(4096, **{name: tree}), 0), f"the {name} tree .*{reason}")


@pytest.mark.parametrize(
    "run",
    [
        (0, 1, 0, 0),
        (1, 5, 0, 0),
        (100, 1, 0, 0),
        (2, 0, 0, 0),
        (2, 99, 0, 0),
        (99, 2, 0, 0),
        (2, (1 << 64) - 1, 0, 0),
        ((1 << 64) - 1, 2, 0, 0),
        (2, 1, 5, 4),
        (2, 1, 5, 43),
        (2, 1, 43, 43),
    ],
)
def test_senseless_runs_are_refused(run: metas.CarriedRun) -> None:
    refuse(metas.encode(make(carry=fmt.pack_runs([(2, 3, 0, 40), run])), 0), "it carries a run")
