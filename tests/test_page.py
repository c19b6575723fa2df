"""One page: what is put in comes out, in order, whatever the keys; and forged cells are found out."""

from __future__ import annotations

import random
from bisect import bisect_left, bisect_right

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cowdb import format as fmt
from cowdb.checksum import crc32c
from cowdb.errors import CorruptionError
from cowdb.kernel import Page
from cowdb.page import (
    branch_size,
    common_prefix_length,
    leaf_size,
    middle,
    padded,
    series_end,
    shortest_separator,
)

SIZE = 4096
short_keys = st.binary(max_size=9) | st.text("ab\0\xff", max_size=12).map(lambda text: text.encode("latin-1"))
BLANK = bytes(22)

EDGE_KEYS = [
    b"",
    b"\0",
    b"\0\0",
    b"\0\0\0\0",
    b"\0\0\0\0\0",
    b"\0\0\0\0\0\0\0\0\0",
    b"\0\0\0\1",
    b"a",
    b"a\0",
    b"a\0\0\0",
    b"a\0\0\0\0",
    b"abcd",
    b"abcd\0",
    b"abcde",
    b"abcdef",
    b"abcdefg" * 9,
    b"abce",
    b"\xfe\xff\xff\xff",
    b"\xff",
    b"\xff\xff",
    b"\xff\xff\xff\xff",
    b"\xff\xff\xff\xff\0",
    b"\xff\xff\xff\xff\xff",
    b"\xff" * 40,
]


def leaf(keys, value=b"v", size=SIZE):
    return Page.build_leaf([(key, len(value), value) for key in sorted(keys)], size)


def reference(number=7, birth=3, count=5, checksum=9):
    return fmt.Reference(number, birth, count, checksum)


def branch(separators, size=SIZE, level=1):
    entries = [(b"", reference(100, 1, 10).pack(), None)]
    entries += [(key, reference(101 + at, 1, at).pack(), None) for at, key in enumerate(sorted(separators))]
    return Page.build_branch(entries, size, level)


def keys_of(page):
    return [page.key(index) for index in range(page.cells)]


def gap_is_zero(page):
    return not any(bytes(page.data)[page.start * 8 + 8 * page.cells : page.heap])


# ---------------------------------------------------------------- keys


@given(short_keys, short_keys)
def test_common_prefix(a, b):
    length = common_prefix_length(a, b)
    assert a[:length] == b[:length]
    assert a[length : length + 1] != b[length : length + 1] or length == len(a) == len(b)


@given(st.lists(short_keys, min_size=2, max_size=2, unique=True).map(sorted))
def test_the_shortest_separator_divides_and_nothing_shorter_does(pair):
    left, right = pair
    separator = shortest_separator(left, right)
    assert left < separator <= right
    assert right.startswith(separator)
    assert not left < separator[:-1] <= right


@pytest.mark.parametrize(("length", "room"), [(0, 0), (1, 8), (7, 8), (8, 8), (9, 16)])
def test_a_prefix_is_padded_to_slots(length, room):
    assert padded(length) == room


# ---------------------------------------------------------------- looking


@pytest.mark.parametrize("size", fmt.PAGE_SIZES)
def test_edge_keys_are_found_where_bisect_says(size):
    page = leaf(EDGE_KEYS, size=size)
    ordered = sorted(EDGE_KEYS)
    assert keys_of(page) == ordered
    probes = EDGE_KEYS + [key + b"\0" for key in EDGE_KEYS] + [key[:-1] for key in EDGE_KEYS]
    for probe in probes:
        index = bisect_left(ordered, probe)
        assert page.lower_bound(probe) == index
        assert page.has_key(index, probe) == (probe in EDGE_KEYS)


@given(st.sets(short_keys, min_size=1, max_size=40), short_keys, st.binary(max_size=12))
def test_a_leaf_finds_like_bisect(keys, probe, prefix):
    ordered = sorted(prefix + key for key in keys)
    page = leaf(ordered)
    for key in (probe, prefix + probe, prefix[:-1], prefix + b"\xff" * 13):
        index = page.lower_bound(key)
        assert index == bisect_left(ordered, key)
        assert page.has_key(index, key) == (key in ordered)
    assert keys_of(page) == ordered
    assert page.keys(0, page.cells, SIZE) == ordered
    middle_index = len(ordered) // 2
    assert page.keys(middle_index, page.cells, SIZE) == ordered[middle_index:]
    assert page.items(0, middle_index, SIZE, bytes) == [(key, b"v") for key in ordered[:middle_index]]


@given(st.sets(short_keys.filter(len), min_size=1, max_size=40), short_keys, st.binary(max_size=12))
def test_a_branch_leads_like_bisect(keys, probe, prefix):
    ordered = sorted(prefix + key for key in keys)
    page = branch(ordered)
    assert keys_of(page) == [b"", *ordered]
    for key in (probe, prefix + probe, prefix, b"", prefix + b"\xff" * 13):
        assert page.child_index(key) == bisect_right(ordered, key)
    assert [entry[0] for entry in page.branch_entries()] == [b"", *ordered]
    assert fmt.unpack_reference(page.reference(1).to_bytes(22, "little")) == reference(101, 1, 0)


def test_a_key_with_the_prefix_goes_in_without_it():
    page = leaf([b"prefix%d" % number for number in range(10)])
    used = page.used()
    assert page.insert(0, b"prefix", 1, b"v")
    assert page.insert(3, b"prefix1\0", 1, b"v")
    assert keys_of(page)[:5] == [b"prefix", b"prefix0", b"prefix1", b"prefix1\0", b"prefix2"]
    assert page.used() == used + 2 * (8 + 2 + 1) + len(b"1\0")


def test_a_clean_branch_counts_from_its_references():
    made = branch([b"d", b"m"])
    made.seal(9, 9)
    raw = bytes(made.data)
    page = Page(raw, memoryview(raw).cast("Q"), 0)
    assert page.kids is None
    assert page.count_before(3) == 11
    assert page.child_of_rank(10) == (2, 0)


def test_has_key_behind_the_end_is_false():
    page = leaf([b"a"])
    assert not page.has_key(1, b"a")


def test_has_key_looks_at_the_prefix_too():
    page = leaf([b"prefix%d" % number for number in range(10)])
    assert page.prefix == b"prefix"
    assert not page.has_key(0, b"PREFIX0")
    assert page.has_key(0, b"prefix0")


# ---------------------------------------------------------------- sizes and building


@given(st.sets(short_keys, min_size=1, max_size=60), st.binary(max_size=20), st.integers(0, 30))
def test_the_size_of_a_leaf_is_told_to_the_byte_before_it_is_built(keys, prefix, length):
    entries = [(prefix + key, length, bytes(length)) for key in sorted(keys)]
    page = Page.build_leaf(entries, SIZE)
    assert page.used() == leaf_size(entries)
    assert page.leaf_entries() == entries
    assert page.count == page.cells == len(entries)
    assert gap_is_zero(page)


@given(st.sets(short_keys.filter(len), min_size=1, max_size=60), st.binary(max_size=20))
def test_the_size_of_a_branch_is_told_to_the_byte_before_it_is_built(keys, prefix):
    page = branch([prefix + key for key in keys])
    entries = page.branch_entries()
    assert page.used() == branch_size(entries)
    again = Page.build_branch(entries, SIZE, 1)
    assert bytes(again.data) == bytes(page.data)
    assert page.count == 10 + sum(range(len(keys)))


def test_a_page_that_must_not_fit_is_refused():
    with pytest.raises(CorruptionError, match="overlap"):
        Page.build_leaf([(b"%d" % number, 1000, bytes(1000)) for number in range(5)], SIZE)


def test_a_prefix_is_used_only_where_it_saves_room():
    assert leaf([b"a1", b"a2"]).prefix == b"", "eight bytes for the prefix, two saved"
    assert leaf([b"abcdefghi1", b"abcdefghi2"]).prefix == b"abcdefghi"
    assert leaf([b"alone" * 9]).prefix == b"", "one key shares with nobody"


@pytest.mark.parametrize("size", fmt.PAGE_SIZES)
@pytest.mark.parametrize("least", [1, 2])
def test_the_largest_entries_divide(size, least):
    key = fmt.max_key_size(size)
    rng = random.Random(size)
    for _ in range(30):
        entries = []
        while leaf_size(entries) <= size if entries else True:
            name = rng.randbytes(2) + bytes([97 + len(entries)]) * rng.choice([1, key // 2, key - 2])
            value = bytes(rng.choice([0, size // 8, size // 4]))
            entries.append((name, len(value), value))
            entries.sort()
        if len({entry[0] for entry in entries}) < len(entries) or len(entries) < 2 * least:
            continue
        place = middle(entries, size, leaf_size, [len(one[0]) + len(one[2]) + 10 for one in entries], least)
        assert least <= place <= len(entries) - least
        assert leaf_size(entries[:place]) <= size
        assert leaf_size(entries[place:]) <= size


def test_an_even_division_is_chosen():
    entries = [(b"%03d" % number, 10, bytes(10)) for number in range(100)]
    assert middle(entries, SIZE, leaf_size, [23] * 100, 1) == 50
    assert middle(entries[:3], SIZE, leaf_size, [1, 1, 100], 1) == 2
    assert middle(entries[:3], SIZE, leaf_size, [100, 1, 1], 1) == 1


def test_entries_that_divide_nowhere_are_a_forgery():
    entries = [(b"%d" % number, 3000, bytes(3000)) for number in range(3)]
    with pytest.raises(CorruptionError, match="no two pages"):
        middle(entries, SIZE, leaf_size, [3010] * 3, 1)


# ---------------------------------------------------------------- changing


def test_insert_until_the_last_byte_is_used():
    page = Page.build_leaf([(b"", 0, b"")], SIZE)
    room = SIZE - 32 - 8 - 2
    assert page.insert(1, b"k", room - 11, bytes(room - 11)), "eight for the slot, two for the head, one for the key"
    assert page.used() == SIZE
    before = bytes(page.data)
    assert not page.insert(2, b"l", 0, b"")
    assert bytes(page.data) == before
    assert not page.insert(0, b"", 0, b"")


def test_one_byte_too_many_is_refused():
    page = Page.build_leaf([(b"", 0, b"")], SIZE)
    room = SIZE - 32 - 8 - 2
    assert not page.insert(1, b"k", room - 10, bytes(room - 10))
    assert page.cells == 1


def grouped(*groups):
    """`a3` stands for a0, a1, a2."""
    return [b"%s%d" % (group[:1].encode(), number) for group in groups for number in range(int(group[1:]))]


@pytest.mark.parametrize(
    ("groups", "key", "lower", "upper", "place"),
    [
        # A rising series that has filled a leaf before: little that follows it stays with it, much gets its own leaf.
        (["a8", "b1"], b"a7", b"a", b"b5", 7),
        (["a6", "b3"], b"a5", b"a", b"b5", 6),
        (["a9"], b"a8", b"a", b"b", 7),
        (["a5", "b4"], b"a4", b"a", b"b5", 5),
        # It has filled none, or is not the one that the key belongs to, or goes on behind the key.
        (["a8", "b1"], b"a7", b"9", b"b5", 0),
        (["a8", "b1"], b"a7", None, b"b5", 0),
        (["a4", "b5"], b"b4", b"a", b"b7", 0),
        (["a8", "b1"], b"a5", b"a", b"b5", 0),
        # At the right edge of the tree the writer knows better.
        (["a9"], b"a8", b"a", None, 0),
        # A falling one, the other way round.
        (["a1", "b8"], b"b0", b"a", b"b9", 2),
        (["a3", "b6"], b"b0", b"a", b"b9", 3),
        (["b9"], b"b0", b"a", b"b9", 2),
        (["a1", "b8"], b"b0", b"a", b"c", 0),
        (["a1", "b8"], b"b0", b"a", None, 0),
        (["b9"], b"b0", None, b"b9", 0),
        # The key is in the half of the leaf that is on the other side.
        (["a3", "b6"], b"a2", b"a", b"c", 0),
        (["a6", "b3"], b"b0", b"a", b"b9", 0),
    ],
)
def test_where_a_series_seems_to_end(groups, key, lower, upper, place):
    keys = grouped(*groups)
    assert series_end(keys, [30] * len(keys), keys.index(key), lower, upper) == place


@pytest.mark.parametrize(
    ("lengths", "place"),
    [([30] * 9, 7), ([30] * 8 + [5], 7), ([30] * 8 + [50], 8), ([400] + [5] * 8, 1), ([5] * 8 + [400], 8)],
)
def test_each_side_of_a_series_gets_an_eighth_of_the_bytes(lengths, place):
    assert series_end(grouped("a9"), lengths, 8, b"a", b"b") == place
    rest = len(lengths) - place
    assert series_end(grouped("b9"), lengths[::-1], 0, b"a", b"b9") == rest


@pytest.mark.parametrize("stranger", [b"", b"a", b"prefiw", b"prefi", b"prefix\xff"[:5], b"q", b"prefiy"])
def test_a_key_without_the_prefix_needs_a_rebuilt_page(stranger):
    keys = [b"prefix%02d" % number for number in range(20)]
    page = leaf(keys)
    before = bytes(page.data)
    index = page.lower_bound(stranger)
    assert index in (0, 20)
    assert not page.insert(index, stranger, 1, b"v")
    assert bytes(page.data) == before
    entries = page.leaf_entries()
    entries.insert(index, (stranger, 1, b"v"))
    assert keys_of(Page.build_leaf(entries, SIZE)) == sorted([*keys, stranger])


def test_replace_needs_the_same_length():
    page = leaf([b"a", b"b", b"c"], b"12345")
    assert page.replace(1, 5, b"abcde")
    before = bytes(page.data)
    assert not page.replace(1, 4, b"abcd")
    assert not page.replace(1, 6, b"abcdef")
    assert bytes(page.data) == before
    assert page.payload(1) == (5, b"abcde")
    assert page.payload(0) == page.payload(2) == (5, b"12345")


def test_replace_changes_the_kind_too():
    page = leaf([b"a"], bytes(22))
    info = fmt.OVERFLOW << fmt.LENGTH_BITS | 22
    raw = reference().pack()
    assert page.replace(0, info, raw)
    assert page.payload(0) == (info, raw)
    assert page.overflow_entries() == [(0, raw)]
    assert page.items(0, 1, SIZE, lambda packed: b"fetched " + packed) == [(b"a", b"fetched " + raw)]
    page.set_payload(0, reference(8).pack())
    assert page.overflow_entries() == [(0, reference(8).pack())]


def test_remove_leaves_zeros_and_counts_them():
    page = leaf(EDGE_KEYS, b"value")
    ordered = sorted(EDGE_KEYS)
    rng = random.Random(5)
    full = page.used()
    while ordered:
        index = rng.randrange(len(ordered))
        gone = ordered.pop(index)
        used = page.used()
        page.remove(index)
        assert keys_of(page) == ordered
        assert used - page.used() == 8 + 2 + len(gone) + 5
        assert gap_is_zero(page)
    assert page.used() == 32
    assert page.dead == full - 32 - 8 * len(EDGE_KEYS)
    assert not any(bytes(page.data)[32:])


@pytest.mark.untraced
@given(st.data())
def test_any_sequence_of_changes_keeps_a_leaf_right(data):
    model: dict[bytes, bytes] = {b"m": b""}
    page = leaf(model, b"")
    for _ in range(data.draw(st.integers(0, 30))):
        key = data.draw(short_keys)
        value = data.draw(st.binary(max_size=30))
        index = page.lower_bound(key)
        if page.has_key(index, key):
            if data.draw(st.booleans()) and len(model) > 1:
                page.remove(index)
                del model[key]
            elif page.replace(index, len(value), value):
                model[key] = value
        elif page.insert(index, key, len(value), value):
            model[key] = value
    wanted = [(key, len(value), value) for key, value in sorted(model.items())]
    assert page.leaf_entries() == wanted
    assert gap_is_zero(page)
    assert page.used() == SIZE - (page.heap - page.start * 8 - 8 * page.cells) - page.dead


def test_a_branch_changes_and_keeps_its_children():
    page = branch([b"d", b"m"])
    kid = leaf([b"f", b"g", b"h"])
    assert page.insert_child(2, b"f", kid)
    assert page.kids == [None, None, kid, None]
    assert keys_of(page) == [b"", b"d", b"f", b"m"]
    assert page.child_count(2) == 3
    assert [page.child_count(at) for at in range(4)] == [10, 0, 3, 1]
    assert page.count_before(3) == 13
    assert [page.child_of_rank(rank) for rank in (0, 9, 10, 12, 13)] == [(0, 0), (0, 9), (2, 0), (2, 2), (3, 0)]
    with pytest.raises(CorruptionError, match="counts more entries"):
        page.child_of_rank(14)
    page.set_reference(2, int.from_bytes(reference(55, 6, 77).pack(), "little"))
    assert fmt.unpack_reference(page.reference(2).to_bytes(22, "little")) == reference(55, 6, 77)
    page.remove(1)
    assert page.kids == [None, kid, None]
    assert keys_of(page) == [b"", b"f", b"m"]


def test_a_full_branch_refuses_a_child():
    page = branch([b"%03d" % number + b"x" * 900 for number in range(4)])
    before = bytes(page.data)
    assert not page.insert_child(1, b"0" * 900, leaf([b"a"]))
    assert bytes(page.data) == before
    assert len(page.kids) == page.cells


def test_a_child_without_the_prefix_needs_a_rebuilt_branch():
    page = branch([b"long prefix %03d" % number for number in range(10)])
    assert page.prefix
    assert not page.insert_child(1, b"elsewhere", leaf([b"a"]))


# ---------------------------------------------------------------- copies and seals


@pytest.mark.parametrize("size", fmt.PAGE_SIZES)
@pytest.mark.parametrize("at", [0, 3])
def test_a_sealed_page_reads_back_and_its_copy_is_equal(size, at):
    made = leaf([b"prefix%05d" % number for number in range(50)], b"value", size)
    bits = made.seal(12, 34)
    found = fmt.unpack_reference(bits.to_bytes(22, "little"))
    raw = bytes(made.data)
    assert found == fmt.Reference(12, 34, 50, crc32c(raw[4:]))
    assert fmt.PAGE_HEADER.struct.unpack_from(raw) == (
        found.checksum, fmt.LEAF_KIND, 0, 50, 12, 34, len(made.prefix), made.heap, 0, 0,
    )  # fmt: skip
    data = bytes(at * size) + raw
    page = Page(data, memoryview(data).cast("Q"), at * size)
    assert keys_of(page) == keys_of(made)
    assert page.payload(7) == (5, b"value")
    twin = page.copy(size, page.cells)
    assert bytes(twin.data) == raw
    assert keys_of(twin) == keys_of(made)
    twin.remove(0)
    assert page.cells == 50, "the clean page is another"
    assert data == bytes(at * size) + raw


def test_a_copied_branch_knows_no_dirty_children():
    made = branch([b"d", b"m"], level=2)
    raw = bytes(made.seal(9, 9) and made.data)
    page = Page(raw, memoryview(raw).cast("Q"), 0)
    assert page.level == 2
    twin = page.copy(SIZE, 11)
    assert twin.kids == [None, None, None]
    assert twin.count == 11
    assert keys_of(twin) == [b"", b"d", b"m"]


@pytest.mark.parametrize("count", [-1, 1 << 48])
def test_a_count_that_makes_no_sense_is_not_sealed(count):
    page = branch([b"d"])
    page.count = count
    with pytest.raises(CorruptionError):
        page.seal(2, 2)


@given(st.data())
def test_entries_taken_apart_many_at_once_are_those_taken_apart_one_by_one(data):
    """Cells of one shape go through one struct; the others do not."""
    shapes = data.draw(st.lists(st.tuples(st.integers(1, 3), st.integers(0, 3)), min_size=1, max_size=2))
    count = data.draw(st.integers(1, 40))
    keys, entries = [], []
    for number in range(count):
        length, size = data.draw(st.sampled_from(shapes))
        keys.append(b"prefix%03d" % number + b"k" * length)
        entries.append((keys[-1], size, b"v" * size))
    page = Page.build_leaf(entries, SIZE)
    first = data.draw(st.integers(0, count))
    last = data.draw(st.integers(first, count))
    wanted = [(key, value) for key, _, value in entries[first:last]]
    assert page.items(first, last, SIZE, bytes) == wanted
    assert page.keys(first, last, SIZE) == [key for key, _ in wanted]


@pytest.mark.parametrize("place", [0, 1, 5, 6, 11])
def test_one_cell_of_another_shape_among_many(place):
    entries = [(b"%02d" % number, 4, b"same") for number in range(12)]
    entries[place] = (b"%02d" % place, 5, b"other")
    assert Page.build_leaf(entries, SIZE).items(0, 12, SIZE, bytes) == [(key, value) for key, _, value in entries]
    entries[place] = (b"%02d" % place, fmt.OVERFLOW << fmt.LENGTH_BITS | 22, bytes(22))
    found = Page.build_leaf(entries, SIZE).items(0, 12, SIZE, lambda reference: reference + b"fetched")
    assert found[place] == (b"%02d" % place, bytes(22) + b"fetched")
    assert [value for _, value in found].count(b"same") == 11


# ---------------------------------------------------------------- forged cells


def forged(cell_offset, *, level=0, suffix_length=0):
    """A page whose cell 1 lies where it should not."""
    page = branch([b"d", b"m"]) if level else leaf([b"a", b"b", b"c"])
    page.seal(17, 1)
    page.words[page.start + 1] = page.words[page.start + 1] >> 32 << 32 | cell_offset << 16 | suffix_length
    return page


@pytest.mark.parametrize("offset", [SIZE, SIZE - 1, 65535])
@pytest.mark.parametrize(
    "call",
    [
        lambda page: page.payload(1),
        lambda page: page.items(0, 3, SIZE, bytes),
        lambda page: page.leaf_entries(),
        lambda page: page.replace(1, 1, b"x"),
        lambda page: page.remove(1),
        lambda page: page.overflow_entries(),
        lambda page: page.set_payload(1, b"x"),
    ],
)
def test_a_cell_outside_of_its_leaf_is_a_typed_error(offset, call):
    with pytest.raises(CorruptionError, match="page 17"):
        call(forged(offset))


@pytest.mark.parametrize("offset", [SIZE, SIZE - 1, 65535])
@pytest.mark.parametrize("place", [0, 7, 19])
def test_a_cell_outside_among_many_of_one_shape_is_a_typed_error(offset, place):
    page = leaf([b"%02d" % number for number in range(20)])
    page.seal(17, 1)
    slot = page.words[page.start + place]
    page.words[page.start + place] = slot >> 32 << 32 | offset << 16 | slot & 0xFFFF
    with pytest.raises(CorruptionError, match="page 17"):
        page.items(0, 20, SIZE, bytes)


def test_a_cell_that_ends_outside_of_its_leaf_is_a_typed_error():
    page = forged(SIZE - 2, suffix_length=50)
    page.data[SIZE - 2 : SIZE] = b"\1\0"
    for call in (lambda: page.remove(1), lambda: page.replace(1, 1, b"x"), lambda: page.set_payload(1, b"x")):
        with pytest.raises(CorruptionError, match="page 17"):
            call()


@pytest.mark.parametrize("offset", [SIZE, SIZE - 5, 65535])
def test_a_cell_outside_of_its_branch_is_a_typed_error(offset):
    with pytest.raises(CorruptionError, match="page 17"):
        forged(offset, level=1).remove(1)
    with pytest.raises(CorruptionError, match="page 17"):
        forged(offset, level=1).set_reference(1, 5)
    page = forged(offset, level=1)
    page.reference(1)  # any number: `Space.meet` is who believes it or not


def test_too_many_dead_bytes_are_not_sealed():
    page = leaf([b"a"])
    page.dead = 65536
    with pytest.raises(CorruptionError):
        page.seal(2, 2)
