"""The checker: silent about good files, exact about bad ones, never at a loss.

The files are made by hand (`handmade.py`), then damaged with all checksums put right again, so that each rule has
to be noticed for what it is.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from itertools import pairwise

import pytest
from handmade import BRANCH, EMPTY, LEAF, OVERFLOW, Bytes, Handmade, reference, simple
from hypothesis import given, settings
from hypothesis import strategies as st

from cowdb import format as fmt
from cowdb.check import MAX_FINDINGS, Finding, check
from cowdb.checksum import crc32c
from cowdb.pagemap import PageMap

SIZE = 4096
HEADER = {field.name: field.offset for field in fmt.PAGE_HEADER.fields}
META = {field.name: field.offset for field in fmt.META.fields}
TREE = {field.name: field.offset for field in fmt.TREE_DESCRIPTOR.fields}
COUNT = fmt.REFERENCE.offset("count")
BIRTH = fmt.REFERENCE.offset("birth")

ITEMS = [(b"key%04d" % i, b"value %d" % i * (i % 7)) for i in range(600)]
LONG = [(b"key0200+%d" % i, bytes([65 + i]) * (3000 * i)) for i in range(1, 5)]


def three_levels() -> Handmade:
    """Transaction 3: a main tree of three levels, two named trees, overflow values, a free tree of two runs."""
    file = Handmade(SIZE)
    file.commit(2, durable=2)
    main = file.tree(ITEMS + LONG, 3, fanout=12)
    file.skip(3)
    named = {"names": file.tree(ITEMS[:40], 3), "nothing": EMPTY, "über": file.tree([(b"", b"")], 3)}
    file.skip(2)
    file.commit(3, durable=2, main=main, named=named, free_tree=True)
    return file


def one_leaf(items: list[tuple[bytes, bytes]] | None = None) -> tuple[Handmade, int]:
    """A file whose main tree is one leaf, and the leaf."""
    file = simple(ITEMS[:20] if items is None else items, SIZE)
    (leaf,) = file.pages(LEAF)
    return file, leaf


def found(file: Handmade | bytes) -> list[Finding]:
    return check(Bytes(file.data if isinstance(file, Handmade) else file))


def names(findings: list[Finding]) -> set[tuple[str, int]]:
    return {(finding.invariant, finding.page_number) for finding in findings}


def only(file: Handmade, invariant: str, page: int, message: str) -> None:
    """There is exactly this finding, about the newest state in slot 1."""
    findings = found(file)
    assert [(one.invariant, one.page_number, one.meta_slot) for one in findings] == [(invariant, page, 1)]
    assert message in findings[0].message
    assert findings[0].message in str(findings[0])


# ---------------------------------------------------------------- good files


@pytest.mark.parametrize("page_size", fmt.PAGE_SIZES)
@pytest.mark.parametrize("free_tree", [False, True])
def test_a_good_file_has_no_findings(page_size: int, *, free_tree: bool) -> None:
    quarter = page_size // 4
    items = [*ITEMS, (b"", b""), (b"edge", bytes(quarter)), (b"over", bytes(quarter + 1)), (b"\xff" * 900, b"x")]
    items += [(b"whole", b"w" * (page_size - 32)), (b"whole+", b"w" * (page_size - 31)), (b"huge", b"h" * 3_000_000)]
    file = Handmade(page_size)
    file.commit(0)
    file.skip(1)
    main = file.tree(items, 1, fanout=9)
    file.skip(5)
    file.commit(1, main=main, named={"a": file.tree(ITEMS, 1), "b": EMPTY}, free_tree=free_tree)
    assert found(file) == []


@given(
    st.dictionaries(st.binary(max_size=12), st.binary(max_size=2500), max_size=60),
    st.integers(3, 20),
    st.sampled_from(fmt.PAGE_SIZES),
)
@settings(max_examples=60)
def test_no_entries_upset_the_checker(entries: dict[bytes, bytes], fanout: int, page_size: int) -> None:
    file = Handmade(page_size)
    file.commit(0)
    file.commit(1, main=file.tree(entries.items(), 1, fanout=fanout))
    assert found(file) == []


def test_a_new_file_has_no_findings() -> None:
    file = Handmade(SIZE)
    file.commit(0, slot=0)
    file.commit(0, slot=1)
    assert found(file) == []


def test_the_tail_may_be_missing_if_it_is_free() -> None:
    """P9: room to grow, and a tail that was cut."""
    file = simple(ITEMS[:20], SIZE)
    file.skip(4)
    file.commit(2, main=file.tree(ITEMS[:20], 2))
    file.skip(2)
    file.commit(3, durable=3, main=file.tree([], 3))
    assert found(file) == []
    assert found(bytes(file.data) + bytes(10_000)) == []
    assert found(bytes(file.data[: 2 * SIZE])) == []


def test_each_page_is_read_once() -> None:
    file = three_levels()
    source = Bytes(file.data)
    assert check(source) == []
    touched = [page for offset, length in source.reads for page in range(offset // SIZE, -(-(offset + length) // SIZE))]
    data_pages = [page for page in touched[9:] if page >= 2]  # the first nine are the search for the page size
    assert sorted(set(data_pages)) == sorted(data_pages)
    assert len(source.reads) < file.page_count / 2, "pages side by side are read at once"


# ---------------------------------------------------------------- two states


def shared() -> tuple[Handmade, bytes, bytes]:
    """Transaction 3 in slot 1 changes one leaf of transaction 2 in slot 0 and shares all others."""
    file = Handmade(SIZE)
    first = file.tree(ITEMS + LONG, 2, fanout=8)
    file.commit(2, main=first)
    changed = [(key, b"changed" if key == b"key0300" else value) for key, value in ITEMS] + LONG
    second = file.tree(changed, 3, fanout=8, share=first)
    file.commit(3, durable=2, main=second)
    return file, first, second


def test_both_states_are_checked_and_shared_leaves_read_once() -> None:
    file, first, second = shared()
    source = Bytes(file.data)
    assert check(source) == []
    common = file.pages_of[first] & file.pages_of[second]
    leaves = [page for page in file.pages(LEAF) if page in common]
    read = [offset // SIZE + i for offset, length in source.reads[2:] for i in range(length // SIZE)]
    assert len(leaves) > 50
    assert sum(read.count(page) == 1 for page in leaves) > len(leaves) // 2
    assert set(range(2, file.page_count)) <= set(read)


def test_damage_to_the_older_state_alone_is_found_in_it() -> None:
    file, first, second = shared()
    own = min(file.pages_of[first] - file.pages_of[second])
    file.data[own * SIZE + 40] ^= 1
    findings = found(file)
    assert {(one.invariant, one.page_number, one.meta_slot) for one in findings} >= {("I3", own, 0)}
    assert {one.meta_slot for one in findings} == {0}


def test_damage_that_both_states_share_is_found() -> None:
    file, first, second = shared()
    for page in sorted(file.pages_of[first] & file.pages_of[second]):
        file.data[page * SIZE + 2000] ^= 1
        assert any(one.meta_slot == 1 for one in found(file)), page
        file.data[page * SIZE + 2000] ^= 1
    assert found(file) == []


def test_a_leaf_that_was_sound_in_one_state_may_be_free_in_the_other() -> None:
    """Known leaves are not read again, but they are still counted once (I5)."""
    file, first, second = shared()
    leaf = sorted(file.pages_of[first] & file.pages_of[second])[5]
    page = bytearray(file.page(0))
    (runs,) = struct.unpack_from("<Q", page, META["carried runs"])
    struct.pack_into("<4Q", page, fmt.META.size + 32 * runs, leaf, 1, 0, 2)
    struct.pack_into("<Q", page, META["carried runs"], runs + 1)
    file.patch(0, 0, bytes(page))
    assert [(one.invariant, one.page_number, one.meta_slot) for one in found(file)] == [("I5", leaf, 0)]


def test_a_known_leaf_met_twice_is_found() -> None:
    file, first, second = shared()
    low = [page for page in file.pages(BRANCH, 1) if page in file.pages_of[first] - file.pages_of[second]]
    branch = low[0]
    _, _, cell, length = file.slot(branch, 3)
    _, _, other, other_length = file.slot(branch, 4)
    raw = file.page(branch)[cell + length : cell + length + 22]
    file.patch(branch, other + other_length, raw)
    assert ("I5", int.from_bytes(raw[:6], "little")) in names(found(file))


def test_an_older_state_is_left_alone() -> None:
    """Below the newest `durable`, pages may be in use again."""
    file = simple(ITEMS[:20], SIZE)
    file.commit(2, durable=2, main=file.tree(ITEMS[:30], 2))
    for page in (2, 3):
        assert file.page(page)[4] == LEAF
    file.data[2 * SIZE + 100] ^= 255  # of transaction 1
    assert found(file) == []
    file.patch(1, 4000, b"\1")
    assert names(found(file)) == {("I10", 1)}


def test_the_newest_meta_that_fails_the_rule_of_durable_is_named() -> None:
    file, _, second = shared()
    root = int.from_bytes(second[:6], "little")
    file.data[root * SIZE + 100] ^= 255
    findings = found(file)
    assert [(one.invariant, one.page_number, one.meta_slot) for one in findings] == [
        ("I3", root, 1), ("I5", -1, 1), ("I3", -1, 1),
    ]  # fmt: skip
    assert "rule of durable" in findings[-1].message


def test_when_the_newest_fails_the_other_is_checked_however_old() -> None:
    file = simple(ITEMS[:20], SIZE)
    main = file.tree(ITEMS[:30], 4)
    file.commit(4, durable=3, main=main)
    young = int.from_bytes(main[:6], "little")
    file.data[2 * SIZE + 4000] ^= 255
    assert found(file) == []
    file.data[young * SIZE + 4000] ^= 255
    assert {(one.invariant, one.page_number, one.meta_slot) for one in found(file)} == {
        ("I3", young, 0), ("I3", -1, 0), ("I3", 2, 1),
    }  # fmt: skip


def test_damage_to_an_old_page_does_not_break_the_rule_of_durable() -> None:
    file, first, second = shared()
    page = min(file.pages_of[first] & file.pages_of[second])
    file.data[page * SIZE + 2000] ^= 1
    assert not any("rule of durable" in one.message for one in found(file))


def test_only_one_state_is_looked_at_if_so_asked() -> None:
    """Where the other one may be in pieces by right, neither its pages nor its meta page matter."""
    file, first, second = shared()
    own = min(file.pages_of[first] - file.pages_of[second])
    file.data[own * SIZE + 40] ^= 1
    assert found(file)
    assert check(Bytes(file.data), only=3) == []
    assert ("I3", own) in names(check(Bytes(file.data), only=2))
    file.data[100] ^= 1
    assert check(Bytes(file.data), only=3) == []
    findings = check(Bytes(file.data), only=2)
    assert [str(one) for one in findings] == ["the file is not sound: no meta page of transaction 2 can be read"]


# ---------------------------------------------------------------- meta pages


def test_nothing_to_read() -> None:
    for data in (b"", b"x", bytes(100), bytes(8192), b"\xff" * 70_000, fmt.MAGIC * 9000):
        findings = found(data)
        assert [(one.invariant, one.page_number) for one in findings] == [("file", 0), ("file", 1), ("file", -1)]
        assert str(findings[-1]) == "the file is not sound: no meta page can be read"


@pytest.mark.parametrize("page_size", fmt.PAGE_SIZES)
@pytest.mark.parametrize("slot", [0, 1])
def test_a_torn_slot_is_told_and_the_other_is_walked(page_size: int, slot: int) -> None:
    file = Handmade(page_size)
    file.commit(1, slot=1 - slot, main=file.tree(ITEMS, 1))
    findings = found(file)
    assert [(one.invariant, one.page_number, one.meta_slot) for one in findings] == [("file", slot, slot)]
    file.data[2 * page_size + 64] ^= 1
    assert ("I3", 2, 1 - slot) in {(one.invariant, one.page_number, one.meta_slot) for one in found(file)}


def test_a_slot_of_another_page_size_or_format_is_refused() -> None:
    file = simple([], 8192)
    small = Handmade(4096)
    small.commit(1)
    file.data[8192 : 8192 + 4096] = small.page(1)
    only(file, "file", 1, "page size of 4096")
    file = simple([], SIZE)
    file.patch(1, META["format version"], b"\2")
    findings = found(file)
    assert [(one.invariant, one.page_number, one.meta_slot) for one in findings] == [("file", 1, 1)]
    assert "format version 2" in findings[0].message


def test_slots_of_two_databases() -> None:
    file = simple([], SIZE)
    file.patch(0, META["database id"], b"other")
    assert names(found(file)) == {("file", 0)}


@pytest.mark.parametrize(
    "offset",
    [META["reserved"], META["reserved for later"] + 23, META["main tree"] + TREE["reserved"], HEADER["heap"], SIZE - 1],
)
def test_unused_bytes_of_a_meta_page(offset: int) -> None:
    file, _ = one_leaf()
    file.patch(1, offset, b"\1")
    only(file, "I10", 1, "not zero")


# ---------------------------------------------------------------- I3


def test_i3_checksum_of_each_page() -> None:
    file = three_levels()
    for page in range(2, file.page_count):
        spot = page * SIZE + random.Random(page).randrange(SIZE)
        file.data[spot] ^= 0x10
        free = bytes(file.page(page)).count(0) == SIZE - 1
        assert free or any(one.invariant == "I3" and one.page_number <= page for one in found(file)), page
        file.data[spot] ^= 0x10


def test_i3_each_field_of_a_reference() -> None:
    file, leaf = one_leaf()
    good = bytes(file.data)
    for offset, message in ((HEADER["page number"], "written for page"), (HEADER["birth"], "was born in")):
        file.data[:] = good
        file.edit(leaf, offset, "Q", lambda value: value + 1)
        findings = found(file)
        assert ("I3", leaf) in names(findings)
        assert message in findings[0].message
    file.data[:] = good
    file.edit(1, META["main tree"] + 18, "I", lambda value: value ^ 1)
    findings = found(file)
    assert ("I3", leaf) in names(findings)
    assert "the reference says" in findings[0].message


@pytest.mark.parametrize(
    ("offset", "value"), [("kind", BRANCH), ("kind", OVERFLOW), ("kind", 1), ("kind", 77), ("level", 1)]
)
def test_i3_kind_and_level(offset: str, value: int) -> None:
    file, leaf = one_leaf()
    file.patch(leaf, HEADER[offset], bytes([value]))
    only(file, "I3", leaf, "but a leaf at level 0 belongs here")


def test_i3_a_branch_in_the_place_of_a_leaf() -> None:
    file = simple(ITEMS, SIZE)
    (root,) = file.pages(BRANCH, 1)
    file.edit(1, META["main tree"] + TREE["depth"], "H", lambda depth: depth - 1)
    findings = found(file)
    assert names(findings) == {("I3", root), ("I5", -1)}
    assert "it is a branch at level 1" in findings[0].message


@pytest.mark.parametrize("number", [0, 1, "end", fmt.MAX_U48])
def test_i3_a_reference_to_nowhere(number: int | str) -> None:
    file = simple(ITEMS, SIZE)
    (root,) = file.pages(BRANCH, 1)
    _, _, cell, length = file.slot(root, 2)
    page = file.page_count if isinstance(number, str) else number
    file.patch(root, cell + length, page.to_bytes(6, "little"))
    findings = found(file)
    assert names(findings) == {("I3", page), ("I5", -1), ("I3", -1)}


def test_i3_the_file_ends_too_early() -> None:
    file = simple(ITEMS, SIZE)
    last = file.page_count - 1
    for cut in (1, SIZE - 1, SIZE):
        assert ("I3", last) in names(found(bytes(file.data[:-cut])))


def test_i3_a_file_that_shrinks_while_it_is_read() -> None:
    class Shrinking(Bytes):
        def size(self) -> int:
            return super().size() + 100 * SIZE

    file, leaf = one_leaf()
    assert ("I3", leaf) in names(check(Shrinking(file.data[:-1000])))


def test_i3_the_header_of_an_overflow_run() -> None:
    for offset, raw in ((4, bytes([LEAF])), (5, b"\1"), (6, b"\1"), (24, b"\1"), (26, b"\1"), (28, b"\1"), (30, b"\1")):
        file = simple([(b"k", b"v" * 9000)], SIZE)
        run = 2
        file.patch(run, offset, raw)
        only(file, "I3", run, "header of an overflow run")


def test_i3_any_page_of_an_overflow_run() -> None:
    file = simple([(b"k", b"v" * 3_000_000)], SIZE)
    for offset in (0, 2, 31, 32, 5000, 1 << 20, (1 << 20) + 1, 2_999_999):
        file.data[2 * SIZE + offset] ^= 4
        assert ("I3", 2) in names(found(file)), offset
        file.data[2 * SIZE + offset] ^= 4
    assert found(file) == []


# ---------------------------------------------------------------- I4


def test_i4_a_page_younger_than_the_one_that_refers_to_it() -> None:
    file = Handmade(SIZE)
    file.commit(8, durable=8)
    file.commit(9, durable=8, main=file.tree(ITEMS, 9))
    (root,) = file.pages(BRANCH, 1)
    _, _, cell, length = file.slot(root, 0)
    first = int.from_bytes(file.page(root)[cell + length : cell + length + 6], "little")
    file.edit(root, HEADER["birth"], "Q", lambda _: 7)
    file.edit(1, META["main tree"] + BIRTH, "I", lambda _: 7)
    findings = found(file)
    assert {one.invariant for one in findings} == {"I4"}
    assert ("I4", first) in names(findings)
    assert "born in 9, after 7" in findings[0].message


def test_i4_a_named_tree_younger_than_its_catalog_leaf() -> None:
    file = Handmade(SIZE)
    file.commit(8, durable=8)
    tree = file.tree(ITEMS[:5], 9)
    file.commit(9, durable=8, named={"young": tree})
    leaf = file.pages(LEAF)[-1]
    file.edit(leaf, HEADER["birth"], "Q", lambda _: 7)
    file.edit(1, META["catalog tree"] + BIRTH, "I", lambda _: 7)
    only(file, "I4", int.from_bytes(tree[:6], "little"), "tree 'young': it was born in 9, after 7")


def test_i4_an_overflow_run_younger_than_its_leaf() -> None:
    file = Handmade(SIZE)
    file.commit(8, durable=8)
    file.commit(9, durable=8, main=file.tree([(b"k", b"v" * 9000)], 9))
    (leaf,) = file.pages(LEAF)
    file.edit(leaf, HEADER["birth"], "Q", lambda _: 7)
    file.edit(1, META["main tree"] + BIRTH, "I", lambda _: 7)
    only(file, "I4", 2, "born in 9, after 7")


@pytest.mark.parametrize(("field", "value"), [(0, 9), (24, 9), (16, 4)])
def test_i4_free_runs_of_the_future(field: int, value: int) -> None:
    """Born after they were freed, freed or recorded after the meta's transaction."""
    file = three_levels()
    leaf = file.pages(LEAF)[-1]
    _, _, cell, length = file.slot(leaf, 0)
    prefix = 32
    at = prefix if field == 0 else cell + 2 + length + field
    code, old = (">Q", 3) if field == 0 else ("<Q", 0 if field == 16 else 3)
    assert struct.unpack_from(code, file.page(leaf), at) == (old,)
    file.patch(leaf, at, struct.pack(code, value))
    only(file, "I4", leaf, "free tree")


# ---------------------------------------------------------------- I5


def free_leaf(file: Handmade) -> tuple[int, int]:
    """The leaf of the free tree and the offset of its first run."""
    leaf = file.pages(LEAF)[-1]
    _, _, cell, length = file.slot(leaf, 0)
    return leaf, cell + 2 + length


def test_i5_lost_pages() -> None:
    file = three_levels()
    leaf, at = free_leaf(file)
    start, length = struct.unpack_from("<QQ", file.page(leaf), at)
    assert length == 3
    file.patch(leaf, at + 8, struct.pack("<Q", 2))
    only(file, "I5", start + 2, f"page {start + 2} is neither reachable nor free")
    file.patch(leaf, at, struct.pack("<QQ", start + 2, 1))
    only(file, "I5", start, f"pages {start} to {start + 1} are neither")


def test_i5_lost_tail() -> None:
    file, _ = one_leaf()
    count = file.page_count
    file.edit(1, META["page count"], "Q", lambda _: count + (1 << 40))
    only(file, "I5", count, f"pages {count} to {count + (1 << 40) - 1} are neither")


def test_i5_free_and_reachable() -> None:
    file = three_levels()
    leaf, at = free_leaf(file)
    start, _ = struct.unpack_from("<QQ", file.page(leaf), at)
    file.patch(leaf, at, struct.pack("<QQ", start - 1, 4))
    only(file, "I5", start - 1, "it is reachable and")
    file.patch(leaf, at, struct.pack("<QQ", start, 4))
    only(file, "I5", start + 3, "in the free tree")


def test_i5_free_twice() -> None:
    file = three_levels()
    leaf, at = free_leaf(file)
    start, length = struct.unpack_from("<QQ", file.page(leaf), at)
    second, _ = struct.unpack_from("<QQ", file.page(leaf), at + 32)
    file.patch(leaf, at + 32, struct.pack("<QQ", start + length - 1, 1))
    findings = found(file)
    assert names(findings) == {("I5", start + length - 1), ("I5", second)}
    assert "free twice: in the free tree and in the free tree" in findings[0].message


def test_i5_carried_and_in_the_free_tree() -> None:
    file = three_levels()
    leaf, at = free_leaf(file)
    start, _ = struct.unpack_from("<QQ", file.page(leaf), at)
    file.patch(1, fmt.META.size, struct.pack("<4Q", start, 1, 0, 3))
    file.patch(1, META["carried runs"], b"\1")
    only(file, "I5", start, "free twice: in the carry list and in the free tree")


@pytest.mark.parametrize("run", [(0, 1), (1, 1), (2, 0), (1 << 63, 1 << 63), (2, (1 << 64) - 1), (1 << 40, 1)])
def test_i5_runs_outside_of_the_file(run: tuple[int, int]) -> None:
    file = three_levels()
    leaf, at = free_leaf(file)
    file.patch(leaf, at, struct.pack("<QQ", *run))
    assert ("I5", leaf) in names(found(file))


def test_i5_two_branches_share_a_leaf() -> None:
    file = simple(ITEMS, SIZE)
    (root,) = file.pages(BRANCH, 1)
    _, _, cell, length = file.slot(root, 1)
    _, _, other, other_length = file.slot(root, 5)
    raw = file.page(root)[cell + length : cell + length + 22]
    twice = int.from_bytes(raw[:6], "little")
    lost = int.from_bytes(file.page(root)[other + other_length :][:6], "little")
    file.patch(root, other + other_length, raw)
    findings = found(file)
    assert ("I5", twice) in names(findings)
    assert lost not in {one.page_number for one in findings}, "what hangs below damage is not called lost"


def test_i5_two_values_share_a_run() -> None:
    file = simple([(b"a", b"1" * 9000), (b"b", b"2" * 9000)], SIZE)
    (leaf,) = file.pages(LEAF)
    first, second = (file.slot(leaf, index)[2] + 3 for index in (0, 1))
    assert file.slot(leaf, 0)[3] == 1
    file.patch(leaf, second, file.page(leaf)[first : first + 22])
    assert ("I5", 2) in names(found(file))


def test_i5_two_names_for_one_tree() -> None:
    file = Handmade(SIZE)
    file.commit(0)
    tree = file.tree(ITEMS[:5], 1)
    file.commit(1, named={"a": tree, "b": tree})
    only(file, "I5", int.from_bytes(tree[:6], "little"), "tree 'b'")


def test_cycles_end() -> None:
    """A branch that leads to itself, to its parent and to the other child: found, not followed."""
    file = three_levels()
    (root,) = file.pages(BRANCH, 2)
    middle = file.pages(BRANCH, 1)[0]
    good = bytes(file.data)
    for page, child in ((root, root), (middle, root), (middle, middle), (root, 1), (middle, file.pages(BRANCH, 1)[1])):
        for index in range(2):
            file.data[:] = good
            _, _, cell, length = file.slot(page, index)
            target = file.page(child)
            birth = int.from_bytes(target[16:24], "little")
            file.patch(page, cell + length, reference(child, birth, 1, int.from_bytes(target[:4], "little")))
            findings = found(file)
            assert any(one.page_number == child for one in findings), (page, child)


def test_cycle_whose_checksum_holds() -> None:
    """The checksum is linear, so a page can be forged that refers to itself and verifies."""
    file = three_levels()
    (root,) = file.pages(BRANCH, 2)
    _, _, cell, length = file.slot(root, 0)
    page = bytearray(file.page(root))
    page[cell + length : cell + length + 6] = root.to_bytes(6, "little")
    at = cell + length + 18

    def checksum(value: int) -> int:
        page[at : at + 4] = value.to_bytes(4, "little")
        return crc32c(bytes(page[4:]))

    for spare in range(256):  # a byte of the count, to be tried until the equation has a solution
        page[cell + length + 12] = spare
        start = checksum(0)
        rows = [checksum(1 << bit) ^ start ^ 1 << bit for bit in range(32)]  # images of the unit vectors
        pairs = [(row, 1 << bit) for bit, row in enumerate(rows)]
        basis: dict[int, tuple[int, int]] = {}
        for row, name in pairs:
            vector, origin = row, name
            while vector and (top := vector.bit_length()) in basis:
                vector, origin = vector ^ basis[top][0], origin ^ basis[top][1]
            if vector:
                basis[vector.bit_length()] = vector, origin
        want, solution = start, 0
        while want and (top := want.bit_length()) in basis:
            want, solution = want ^ basis[top][0], solution ^ basis[top][1]
        if not want:
            break
    assert checksum(solution) == solution
    file.data[root * SIZE + 4 : (root + 1) * SIZE] = page[4:]
    file._parents[root] = {(1, META["main tree"])}
    file.reseal(root)
    assert int.from_bytes(file.page(root)[:4], "little") == solution
    assert ("I5", root) in names(found(file))


# ---------------------------------------------------------------- I6


def test_i6_entries_of_a_leaf() -> None:
    file, leaf = one_leaf()
    file.edit(1, META["main tree"] + COUNT, "I", lambda count: count + 1)
    only(file, "I6", leaf, "it has 20 entries, the reference says 21")


def test_i6_entries_below_a_branch() -> None:
    file = simple(ITEMS, SIZE)
    (root,) = file.pages(BRANCH, 1)
    file.edit(1, META["main tree"] + COUNT, "I", lambda count: count - 1)
    only(file, "I6", root, "600 entries below it, the reference says 599")


@pytest.mark.parametrize("field", ["branch pages", "leaf pages", "overflow pages"])
def test_i6_pages_of_a_tree(field: str) -> None:
    file = simple([*ITEMS, (b"x", b"y" * 9000)], SIZE)
    file.edit(1, META["main tree"] + TREE[field], "Q", lambda pages: pages + 1)
    only(file, "I6", -1, "its descriptor counts")


def test_i6_an_empty_tree_that_counts() -> None:
    file = simple([], SIZE)
    file.edit(1, META["main tree"] + COUNT, "I", lambda _: 5)
    only(file, "I6", -1, "the main tree is empty")


# ---------------------------------------------------------------- I7


def test_i7_keys_do_not_rise() -> None:
    file, leaf = one_leaf()
    first, second = file.slot(leaf, 3)[0], file.slot(leaf, 4)[0]
    page = file.page(leaf)
    file.patch(leaf, first, page[second : second + 8] + page[first : first + 8])
    only(file, "I7", leaf, "is not above the one before it")


def test_i7_equal_keys() -> None:
    file, leaf = one_leaf([(b"a", b"1"), (b"b", b"2")])
    at, _, cell, _ = file.slot(leaf, 1)
    file.patch(leaf, cell + 2, b"a")
    file.patch(leaf, at + 4, (ord("a") << 24).to_bytes(4, "little"))
    only(file, "I7", leaf, "is not above")


@pytest.mark.parametrize("length", [1, 3, 4, 5, 9])
def test_i7_a_head_that_is_not_the_start_of_its_key(length: int) -> None:
    file, leaf = one_leaf([(bytes([65 + i]) * length, b"v") for i in range(9)] + [(b"Z" * 9, b"")] * (length == 3))
    at, _, _, _ = file.slot(leaf, 8)
    file.edit(leaf, at + 4, "I", lambda head: head ^ 1)
    only(file, "I7", leaf, "the head in a slot")


@pytest.mark.parametrize(("change", "message"), [(-1, "its first key b'key0200' lies below"), (1, "its last key")])
def test_i7_keys_outside_of_their_separators(change: int, message: str) -> None:
    file = simple(ITEMS, SIZE)
    leaf = file.pages(LEAF)[3]
    assert file.page(leaf)[32:37] == b"key03", "a leaf holds the keys from key0300 to key0399"
    file.edit(leaf, 36, "B", lambda byte: byte + change)
    only(file, "I7", leaf, message)


def test_i7_the_first_cell_of_a_branch() -> None:
    file = simple(ITEMS, SIZE)
    (root,) = file.pages(BRANCH, 1)
    first, _, _, _ = file.slot(root, 0)
    second, _, _, _ = file.slot(root, 1)
    good = bytes(file.data)
    file.patch(root, first + 4, b"\1")
    only(file, "I7", root, "the head in a slot")
    file.data[:] = good
    file.patch(root, first, file.page(root)[second : second + 8])
    assert any(one.message.endswith("the first cell of a branch has a key") for one in found(file))


def test_i7_a_separator_equal_to_the_bound() -> None:
    """It would leave no room for the keys of the child on its left."""
    file = Handmade(SIZE)
    file.commit(0)
    file.commit(1, main=file.tree([(struct.pack(">H", i), b"") for i in range(60)], 1, fanout=4))
    (root,) = file.pages(BRANCH, 2)
    _, _, cell, length = file.slot(root, 1)
    bound = file.page(root)[32:33] + file.page(root)[cell : cell + length]
    child = int.from_bytes(file.page(root)[cell + length : cell + length + 6], "little")
    at, _, cell, length = file.slot(child, 1)
    assert (len(bound), length, file.page(child)[24]) == (2, 1, 1), "the separators have one length"
    file.patch(child, cell, bound[1:])
    file.patch(child, at + 7, bound[1:])
    findings = found(file)
    assert ("I7", child) in names(findings)
    assert "below the separator that leads to it" in findings[0].message


# ---------------------------------------------------------------- I10: the layout of a page


@pytest.mark.parametrize(
    ("field", "code", "value"),
    [
        ("cells", "H", 0),
        ("cells", "H", 65535),
        ("prefix length", "H", 65535),
        ("prefix length", "H", fmt.max_key_size(SIZE) + 1),
        ("heap", "H", 0),
        ("heap", "H", 65535),
        ("heap", "H", SIZE + 1),
        ("heap", "H", SIZE),
        ("dead", "H", 1),
        ("dead", "H", 65535),
        ("reserved", "H", 1),
    ],
)
def test_i10_outline(field: str, code: str, value: int) -> None:
    file, leaf = one_leaf()
    file.patch(leaf, HEADER[field], struct.pack("<" + code, value))
    findings = found(file)
    assert names(findings) == {("I10", leaf)}


def test_i10_a_branch_of_one_cell() -> None:
    file = simple(ITEMS, SIZE)
    (root,) = file.pages(BRANCH, 1)
    file.patch(root, HEADER["cells"], b"\1\0")
    assert ("I10", root) in names(found(file))


@pytest.mark.parametrize("cell", [0, 31, 32, SIZE - 1, SIZE, 65535])
@pytest.mark.parametrize("kind", [LEAF, BRANCH])
def test_i10_a_slot_that_leads_outside(cell: int, kind: int) -> None:
    file = simple(ITEMS, SIZE)
    page = file.pages(kind, 1 if kind == BRANCH else 0)[0]
    at, *_ = file.slot(page, 1)
    file.patch(page, at + 2, struct.pack("<H", cell))
    assert ("I10", page) in names(found(file))


def test_i10_a_reference_that_reaches_over_the_end() -> None:
    file = simple(ITEMS, SIZE)
    (root,) = file.pages(BRANCH, 1)
    at, _, _, length = file.slot(root, 1)
    file.patch(root, at + 2, struct.pack("<H", SIZE - length - 10))
    findings = found(file)
    assert any(one.invariant == "I10" and "reach over the end" in one.message for one in findings)


def test_i10_suffix_lengths() -> None:
    for kind in (LEAF, BRANCH):
        file = simple(ITEMS, SIZE)
        page = file.pages(kind, 1 if kind == BRANCH else 0)[0]
        at, *_ = file.slot(page, 1)
        file.patch(page, at, b"\xff\xff")
        assert ("I10", page) in names(found(file))


def test_i10_overlapping_cells() -> None:
    file, leaf = one_leaf([(b"a", b"x" * 50), (b"b", b"y" * 50)])
    _, _, cell, _ = file.slot(leaf, 1)
    file.edit(leaf, cell, "H", lambda length: length + 1)
    only(file, "I10", leaf, "overlap")
    file.edit(leaf, cell, "H", lambda length: length - 2)
    findings = found(file)
    assert names(findings) == {("I10", leaf)}
    assert {one.message.split(": ")[1][:10] for one in findings} == {"1 bytes of", "dead bytes"}


def test_dead_bytes_that_are_counted_and_zero_are_fine() -> None:
    file, leaf = one_leaf([(b"a", b"x" * 50), (b"b", b"y" * 49 + b"\0")])
    _, _, cell, _ = file.slot(leaf, 1)
    file.edit(leaf, cell, "H", lambda length: length - 1)
    file.patch(leaf, HEADER["dead"], b"\1")
    assert found(file) == []
    # Dead bytes at the low end of the heap, too.
    file.edit(leaf, HEADER["heap"], "H", lambda heap: heap - 7)
    file.patch(leaf, HEADER["dead"], b"\x08")
    assert found(file) == []


def test_i10_unused_bytes() -> None:
    file, leaf = one_leaf([(b"abc", b"1"), (b"abd", b"2")])
    good = bytes(file.data)
    slots_end = file.slot(leaf, 1)[0] + 8
    for offset in (34, 39, slots_end, 2000, struct.unpack_from("<H", file.page(leaf), 26)[0] - 1):
        file.data[:] = good
        file.patch(leaf, offset, b"\1")
        only(file, "I10", leaf, "not in use are not zero")


def test_i10_keys_too_long() -> None:
    limit = fmt.max_key_size(SIZE)
    assert found(simple([(b"k" * limit, b"")], SIZE)) == []
    file, leaf = one_leaf([(b"a" * (limit + 1), b""), (b"b", b"")])
    only(file, "I10", leaf, f"more than {limit} bytes")


def test_i10_values_too_long_for_a_leaf() -> None:
    file, leaf = one_leaf([(b"a", b"x" * 1000), (b"b", b"y" * 1000)])
    _, _, cell, _ = file.slot(leaf, 1)
    file.patch(leaf, cell, struct.pack("<H", 2003))
    findings = found(file)
    assert ("I10", leaf) in names(findings)
    assert any("longer than 1024" in one.message for one in findings)


def test_i10_short_values_in_a_run() -> None:
    file = simple([(b"k", b"v" * 1025)], SIZE)
    (leaf,) = file.pages(LEAF)
    _, _, cell, length = file.slot(leaf, 0)
    file.edit(leaf, cell + 2 + length + COUNT, "H", lambda _: 1024)
    findings = found(file)
    assert names(findings) == {("I10", leaf), ("I10", 2)}, "the value is too short, and its last byte is left over"


def test_i10_bytes_after_the_end_of_a_value() -> None:
    file = simple([(b"k", b"v" * 9000)], SIZE)
    for offset in (9032, 3 * SIZE - 1):
        good = bytes(file.data)
        file.patch(2, offset, b"\1")
        only(file, "I10", 2, "after the end of the value")
        file.data[:] = good


@pytest.mark.parametrize("word", [2 << 14 | 22, 3 << 14 | 22, 1 << 14 | 21, 1 << 14])
def test_i10_payloads_that_there_are_not(word: int) -> None:
    file, leaf = one_leaf([(b"a", b"x" * 22), (b"b", b"y" * 22)])
    _, _, cell, _ = file.slot(leaf, 1)
    file.patch(leaf, cell, struct.pack("<H", word))
    findings = found(file)
    assert ("I10", leaf) in names(findings)
    assert any(f"payload of kind {word >> 14} and {word & 0x3FFF} bytes" in one.message for one in findings)


def test_an_overflow_reference_cut_by_the_end_of_the_page() -> None:
    file, leaf = one_leaf([(b"a", b"x" * 5), (b"b", b"y" * 5)])
    _, _, cell, _ = file.slot(leaf, 0)
    file.patch(leaf, cell, struct.pack("<H", 1 << 14 | 22))
    findings = found(file)
    assert {one.invariant for one in findings} == {"I10"}


@pytest.mark.parametrize("count", [fmt.MAX_U48, 1 << 40, 20 * SIZE, 3 * SIZE])
def test_huge_lengths_of_overflow_values_are_not_read(count: int) -> None:
    file = simple([(b"k", b"v" * 9000)], SIZE)
    (leaf,) = file.pages(LEAF)
    _, _, cell, length = file.slot(leaf, 0)
    file.patch(leaf, cell + 2 + length + COUNT, count.to_bytes(6, "little"))
    assert ("I3", 2) in names(found(file)) or ("I5", leaf) in names(found(file))


# ---------------------------------------------------------------- catalog and free tree


def catalog_leaf(names: dict[str, bytes] | None = None) -> tuple[Handmade, int, int]:
    """A file with one named tree, its catalog leaf and the offset of the descriptor."""
    file = Handmade(SIZE)
    file.commit(0)
    file.commit(1, named={"name": file.tree(ITEMS[:5], 1)} if names is None else names)
    leaf = file.pages(LEAF)[-1]
    _, _, cell, length = file.slot(leaf, 0)
    return file, leaf, cell + 2 + length


def test_catalog_names() -> None:
    file, leaf, _ = catalog_leaf()
    file.patch(leaf, 32, b"\xff")
    findings = found(file)
    assert names(findings) == {("file", leaf)}
    assert "not UTF-8" in findings[0].message
    file, leaf, _ = catalog_leaf({"": EMPTY})
    only(file, "file", leaf, "empty name")


def test_catalog_values() -> None:
    file, leaf, at = catalog_leaf()
    file.patch(leaf, at + 63, b"\1")
    assert names(found(file)) == {("I10", leaf), ("I5", -1)}
    file, leaf = one_leaf()
    file.data[SIZE + META["catalog tree"] : SIZE + META["free tree"]] = file.page(1)[
        META["main tree"] : META["catalog tree"]
    ]
    file.patch(1, META["main tree"], bytes(64))
    findings = found(file)
    assert names(findings) == {("I10", leaf)}
    assert len(findings) == 20
    assert "not a tree descriptor" in findings[0].message


@pytest.mark.parametrize(
    ("field", "raw", "invariant"),
    [
        (0, b"\0\0\0\0\0\0", "I10"),
        (0, b"\1\0\0\0\0\0", "I10"),
        (0, b"\xff\xff\xff\xff\xff\xff", "I10"),
        (BIRTH, b"\2", "I4"),
        (TREE["depth"], b"\x31", "I10"),
        (TREE["depth"], b"\0", "I10"),
        (TREE["leaf pages"], b"\xff", "I10"),
    ],
)
def test_catalog_descriptors(field: int, raw: bytes, invariant: str) -> None:
    file, leaf, at = catalog_leaf()
    file.patch(leaf, at + field, raw)
    findings = found(file)
    assert names(findings) == {(invariant, leaf), ("I5", -1)}
    assert "tree 'name'" in findings[0].message


def test_an_overflow_value_in_the_catalog() -> None:
    file = simple([(b"name", b"v" * 2000)], SIZE)
    page = file.page(1)
    tree = page[META["main tree"] : META["catalog tree"]]
    file._parents[3] = {(1, META["catalog tree"])}
    file.patch(1, META["main tree"], bytes(64) + tree)
    assert names(found(file)) == {("I10", 3)}


def test_i6_pages_of_a_named_tree() -> None:
    file, _, at = catalog_leaf()
    leaf = file.pages(LEAF)[-1]
    file.patch(leaf, at + TREE["leaf pages"], b"\2")
    only(file, "I6", -1, "tree 'name' has 0 branch, 1 leaf and 0 overflow pages; its descriptor counts 0, 2 and 0")


def test_free_records_of_odd_sizes() -> None:
    file = simple([(b"short key", bytes(32))], SIZE)
    tree = file.page(1)[META["main tree"] : META["catalog tree"]]
    file.patch(1, META["main tree"], bytes(64))
    file.patch(1, META["free tree"], tree)
    only(file, "I10", 2, "a key of 9 and a value of 32 bytes")
    for value in (b"", bytes(31), bytes(33)):
        file = simple([(bytes(16), value)], SIZE)
        tree = file.page(1)[META["main tree"] : META["catalog tree"]]
        file.patch(1, META["main tree"], bytes(64))
        file.patch(1, META["free tree"], tree)
        only(file, "I10", 2, f"a value of {len(value)} bytes")


# ---------------------------------------------------------------- bounds of the checker itself


def test_findings_are_capped() -> None:
    items = [(b"%05d" % i, b"v" * 1000) for i in range(4000)]
    file = simple(items, SIZE)
    for page in file.pages(LEAF):
        file.data[page * SIZE + 100] ^= 1
    told: list[tuple[int, int]] = []
    findings = check(Bytes(file.data), progress=lambda done, total: told.append((done, total)))
    assert len(findings) == MAX_FINDINGS + 1
    assert "more than 1000 findings" in str(findings[-1])
    assert told[-1][0] == told[-1][1]


def test_progress_rises_to_the_total() -> None:
    items = [(b"%05d" % i, b"v" * 1000) for i in range(9000)]
    file = Handmade(SIZE)
    file.commit(1, slot=0)
    file.commit(2, durable=2, main=file.tree(items, 2), slot=1)
    told: list[tuple[int, int]] = []
    assert check(Bytes(file.data), progress=lambda done, total: told.append((done, total))) == []
    assert len(told) >= 3
    assert all(done <= total == file.page_count for done, total in told)
    assert told == sorted(told)
    assert told[-1] == (file.page_count, file.page_count)
    steps = [later[0] - earlier[0] for earlier, later in pairwise(told[:-1])]
    assert all(step >= 1000 for step in steps)


def test_progress_of_nothing() -> None:
    told: list[tuple[int, int]] = []
    check(Bytes(b""), progress=lambda done, total: told.append((done, total)))
    assert told == [(0, 0)]


def test_errors_of_the_storage_pass() -> None:
    class Broken(Bytes):
        def read(self, offset: int, length: int) -> bytes:
            if offset >= 2 * SIZE:
                raise OSError(5, "Input/output error")
            return super().read(offset, length)

    with pytest.raises(OSError, match="Input/output"):
        check(Broken(simple(ITEMS, SIZE).data))


def test_huge_page_counts_cost_nothing() -> None:
    file, _ = one_leaf()
    count = file.page_count
    file.edit(1, META["page count"], "Q", lambda _: fmt.MAX_U48)
    file.patch(1, META["carried runs"], b"\2")
    file.patch(1, fmt.META.size, struct.pack("<8Q", count, 1 << 47, 0, 1, count + (1 << 47), 5, 0, 1))
    assert names(found(file)) == {("I5", count + (1 << 47) + 5)}
    file.patch(1, fmt.META.size, struct.pack("<8Q", 2, fmt.MAX_U48 - 2, 0, 1, count, fmt.MAX_U48 - count, 0, 1))
    assert names(found(file)) == {("I5", 2), ("I5", count)}


# ---------------------------------------------------------------- random damage


def spoilers() -> list[Callable[[bytearray, random.Random], None]]:
    def flip(data: bytearray, chance: random.Random) -> None:
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)

    def sector(data: bytearray, chance: random.Random) -> None:
        at = chance.randrange(len(data) // 512) * 512
        data[at : at + 512] = chance.choice([bytes(512), b"\xff" * 512, chance.randbytes(512)])

    def misdirect(data: bytearray, chance: random.Random) -> None:
        source, target = (chance.randrange(len(data) // SIZE) * SIZE for _ in range(2))
        data[target : target + SIZE] = data[source : source + SIZE]

    def cut(data: bytearray, chance: random.Random) -> None:
        del data[chance.randrange(len(data)) :]

    return [flip, sector, misdirect, cut]


@pytest.mark.untraced
@pytest.mark.parametrize("spoil", spoilers(), ids=lambda spoil: spoil.__name__)
def test_random_damage_never_raises(spoil: Callable[[bytearray, random.Random], None]) -> None:
    file, *_ = shared()
    good = bytes(file.data)
    chance = random.Random(7)
    for _ in range(60):
        data = bytearray(good)
        spoil(data, chance)
        for finding in found(bytes(data)):
            assert str(finding)


@pytest.mark.untraced
def test_random_sense_never_raises() -> None:
    """Damage behind checksums that hold: whatever the page says, the checker has an answer."""
    file = three_levels()
    good = bytes(file.data)
    chance = random.Random(11)
    pages = [0, 1, *file.pages(LEAF), *file.pages(BRANCH, 1), *file.pages(BRANCH, 2), *file.pages(OVERFLOW)]
    noticed = 0
    for _ in range(700):
        file.data[:] = good
        page = chance.choice(pages)
        at = chance.choice([chance.randrange(4, 64), chance.randrange(4, 340), chance.randrange(4, SIZE - 8)])
        raw = chance.choice([b"\0", b"\xff", b"\xff\xff", b"\x01", bytes(8), b"\xff" * 8, chance.randbytes(4)])
        file.patch(page, at, raw)
        noticed += bool(found(file))
    assert noticed > 350


@given(st.binary(max_size=400), st.integers(0, 1))
@settings(max_examples=60)
def test_any_page_behind_a_checksum_that_holds(noise: bytes, kind: int) -> None:
    file = simple(ITEMS, SIZE)
    page = file.pages(BRANCH, 1)[0] if kind else file.pages(LEAF)[2]
    good = file.page(page)
    for at in (24, 32, SIZE - len(noise)):
        file.patch(page, at, noise)
        assert all(isinstance(one, Finding) for one in found(file))
        file.patch(page, 0, good)
    assert found(file) == []


# ---------------------------------------------------------------- parts


def test_findings_read_like_sentences() -> None:
    assert str(Finding("I3", 17, 1, "torn")) == "I3 does not hold at page 17 in the state of meta slot 1: torn"
    assert str(Finding("I5", 0, -1, "lost")) == "I5 does not hold at page 0: lost"
    assert str(Finding("file", -1, -1, "gone")) == "the file is not sound: gone"


@given(st.lists(st.tuples(st.integers(2, 20_000), st.integers(1, 9000)), max_size=6), st.data())
@settings(max_examples=60)
def test_the_page_map_is_a_set(runs: list[tuple[int, int]], data: st.DataObject) -> None:
    pages, marked = PageMap(), set[int]()
    for start, length in runs:
        pages.mark(start, length, 1)
        marked |= set(range(start, start + length))
    start = data.draw(st.integers(2, 30_000))
    stop = data.draw(st.integers(start, 40_000))
    inside = sorted(page for page in marked if start <= page < stop)
    assert pages.first_marked(start, stop) == (inside[0] if inside else stop)
    missing = next((page for page in range(start, stop) if page not in marked), stop)
    assert pages.first_unmarked(start, stop) == missing
    assert pages.get(start) == (start in marked)
    assert pages.take(start, 2) == (start not in marked), "a page is taken once"
    assert pages.get(start) == (1 if start in marked else 2)
    assert not pages.take(start, 2)
    assert pages.first_marked(50_000, 1 << 48) == 1 << 48
    assert pages.first_unmarked(50_000, 1 << 48) == 50_000
