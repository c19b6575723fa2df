"""Changing a tree: whatever is done to it, it stays a tree, and a change that was interrupted is never committed."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel import Kernel, audit, damage, database, far_items, heal, met, numbered
from sortedcontainers import SortedDict

import cowdb
from cowdb import format as fmt
from cowdb import kernel
from cowdb.errors import ClosedError, CorruptionError, FullError, KeySizeError
from cowdb.kernel import Page
from cowdb.testing import MemoryDisk

SIZES = pytest.mark.parametrize("size", fmt.PAGE_SIZES)


def same(writer, model):
    assert audit(writer) == list(model.items())


# ---------------------------------------------------------------- put


def test_a_first_put_makes_a_leaf():
    kernel = Kernel()
    writer = kernel.writer()
    assert audit(writer) == []
    assert not writer.changed
    assert writer.put(b"k", b"v")
    assert writer.changed
    assert (writer.depth, writer.leaf_pages, writer.branch_pages) == (1, 1, 0)
    assert audit(writer) == [(b"k", b"v")]
    assert writer.changes.dirty == 4096


def test_a_put_copies_one_path_and_frees_the_old_one():
    kernel = Kernel()
    kernel.put(numbered(3000, 500))
    assert kernel.descriptor.depth == 3
    writer = kernel.writer()
    writer.put(b"key00002500", b"x" * 20)
    assert writer.changes.copied == len(writer.changes.freed) == 3
    assert {length for _, length, _ in writer.changes.freed} == {1}
    writer.put(b"key00002500", b"y" * 20)
    writer.put(b"key00002501", b"y" * 20)
    assert writer.changes.copied <= 4, "what is dirty is edited in place"
    before = bytes(kernel.image)
    kernel.seal(writer)
    assert bytes(kernel.image[: len(before)]) == before, "no page of the old tree was touched (I1)"
    assert kernel.reader().get(b"key00002501") == b"y" * 20


def test_overwrite_false_leaves_what_is_there():
    kernel = Kernel()
    writer = kernel.writer()
    assert writer.put(b"k", b"1", overwrite=False)
    version = writer.version
    assert not writer.put(b"k", b"2", overwrite=False)
    assert writer.version == version
    assert writer.get(b"k") == b"1"
    assert writer.put(b"l", b"2", overwrite=False)


def test_append_wants_rising_keys():
    writer = Kernel().writer()
    for number in range(2000):
        assert writer.put(b"%06d" % number, b"v", append=True)
    for key in (b"001999", b"000000", b""):
        with pytest.raises(ValueError, match="not greater than the last key"):
            writer.put(key, b"w", append=True)
    assert len(audit(writer)) == 2000
    assert writer.get(b"001999") == b"v"
    writer.delete(b"001999")
    assert writer.put(b"001998\0", b"v", append=True)
    with pytest.raises(ValueError, match="append"):
        writer.put(b"001998\0", b"v", append=True)


def test_wrong_types_and_sizes_change_nothing():
    writer = Kernel().writer()
    limit = fmt.max_key_size(4096)
    for key, value in (("k", b"v"), (b"k", "v"), (1, b"v"), (b"k", None), (None, b""), ([1], b"")):
        said = "encode" if isinstance(key, str) or isinstance(value, str) else "bytes-like"
        with pytest.raises(TypeError, match=said):
            writer.put(key, value)
    with pytest.raises(KeySizeError) as caught:
        writer.put(b"k" * (limit + 1), b"")
    assert (caught.value.size, caught.value.limit) == (limit + 1, limit)
    with pytest.raises(TypeError, match="encode"):
        writer.delete("k")
    assert not writer.changed
    assert writer.put(bytearray(b"k" * limit), memoryview(b"v"))
    assert writer.delete(memoryview(b"k" * limit))


@pytest.mark.untraced
@SIZES
def test_sorted_input_leaves_pages_well_filled(size):
    kernel = Kernel(size)
    items = numbered(20000)
    writer = kernel.put(items)
    assert kernel.reader().select(12345) == items[12345]
    assert audit(kernel.reader()) == items
    cell = 2 + 3 + 20 + 8  # at the most: kind and length, what the prefix leaves of the key, value, slot
    least = 20000 * cell / size
    assert writer.leaf_pages <= least * 1.12 + 1
    backward = kernel_of(size, reversed(items))
    assert backward.leaf_pages <= writer.leaf_pages * 2


def kernel_of(size, items):
    kernel = Kernel(size)
    writer = kernel.put(items)
    audit(kernel.reader())
    return writer


def test_sorted_input_behind_what_is_there_leaves_pages_filled_too():
    kernel = Kernel()
    kernel.put([(b"a%04d" % number, b"v" * 20) for number in range(3000)])
    before = kernel.descriptor.leaf_pages
    kernel.put([(b"b%04d" % number, b"v" * 20) for number in range(3000)])
    assert kernel.descriptor.leaf_pages - before <= before + 2


def test_one_at_a_time_sorted_input_in_many_transactions():
    kernel = Kernel()
    for number in range(400):
        kernel.put([(b"%05d" % number, b"v" * 100)])
    assert kernel.descriptor.leaf_pages <= 400 * 115 / 4096 + 3
    assert len(audit(kernel.reader())) == 400


def series(count, each, rising, rng):
    """Keys of `count` series that come at random, in order within each."""
    following = [0] * count
    keys = []
    for number in rng.choices(range(count), k=count * each):
        following[number] += 1
        at = following[number] if rising else 10**6 - following[number]
        keys.append(b"sensor %03d, %07d" % (number, at))
    return keys


def leaves_of(keys, batch, value=bytes(60)):
    """How many leaves they make, in transactions of `batch` puts."""
    kernel = Kernel()
    for first in range(0, len(keys), batch):
        kernel.put((key, value) for key in keys[first : first + batch])
    assert [key for key, _ in audit(kernel.reader())] == sorted(keys)
    return kernel.descriptor.leaf_pages


@pytest.mark.untraced
@pytest.mark.parametrize("rising", [True, False])
@pytest.mark.parametrize("batch", [10**6, 37])
def test_many_series_that_come_in_order_leave_pages_filled(rising, batch):
    """The story: what followed went to the right half of a divided leaf alone, and the left one stayed half empty."""
    keys = series(12, 500, rising, random.Random(9))
    cell = 2 + 12 + 60 + 8  # at the most: kind and length, what the prefix leaves of the key, value, slot
    assert leaves_of(keys, batch) <= len(keys) * cell / 4096 * 1.2 + 12


@pytest.mark.untraced
def test_no_keys_get_a_leaf_each():
    """The story: each of these looks like the end of a series that filled the leaf before it, and stayed alone."""
    long = [b"%02d" % group + b"a" * 100 + b"%02d" % number for group in range(10) for number in range(30)]
    short = [b"%02d" % group + b"a" * length + b"b" for group in range(10) for length in range(100)]
    kernel = Kernel()
    writer = kernel.writer()
    writer.update((key, bytes(400)) for key in long)
    before = writer.leaf_pages
    writer.update((key, b"") for key in short)
    kernel.seal(writer)
    assert [key for key, _ in audit(kernel.reader())] == sorted(long + short)
    assert writer.leaf_pages < before + len(short) / 10


@pytest.mark.untraced
def test_short_series_and_random_keys_divide_in_the_middle():
    rng = random.Random(10)
    cell = 2 + 12 + 60 + 8
    keys = series(300, 20, True, rng)
    assert leaves_of(keys, 500) <= len(keys) * cell / 4096 / 0.6
    keys = [rng.randbytes(12) for _ in range(6000)]
    assert leaves_of(keys, 10**6) <= len(keys) * cell / 4096 / 0.64


# ---------------------------------------------------------------- values


@SIZES
def test_values_of_every_length_at_an_edge(size):
    kernel = Kernel(size)
    quarter = size // 4
    lengths = [0, 1, quarter - 1, quarter, quarter + 1, size - 33, size - 32, size - 31, 2 * size - 32, 2 * size - 31,
               7 * size - 32, 7 * size]  # fmt: skip
    rng = random.Random(size)
    model = SortedDict({b"%06d" % length: rng.randbytes(length) for length in lengths})
    writer = kernel.writer()
    writer.update(model.items())
    same(writer, model)
    assert writer.overflow_pages == 1 + 1 + 1 + 2 + 2 + 3 + 7 + 8
    kernel.seal(writer)
    same(kernel.reader(), model)
    writer = kernel.writer()
    for key, other in zip(model, reversed(model.values()), strict=True):
        model[key] = other
        writer.put(key, other)
        same(writer, model)
    kernel.seal(writer)
    same(kernel.reader(), model)
    writer = kernel.writer()
    for key in list(model):
        assert writer.delete(key)
    assert writer.overflow_pages == writer.leaf_pages == 0
    assert writer.depth == 0
    freed = sorted(writer.changes.freed)
    assert sum(length for _, length, _ in freed) >= 25
    assert len({start for start, _, _ in freed}) == len(freed), "no page is freed twice"


def test_an_overflow_value_of_the_same_transaction_is_replaced_and_removed():
    kernel = Kernel()
    writer = kernel.writer()
    empty = writer.changes.dirty
    writer.put(b"a", b"x" * 5000)
    writer.put(b"a", b"y" * 6000)
    writer.put(b"b", b"z" * 7000)
    assert writer.delete(b"b")
    assert writer.get(b"a") == b"y" * 6000
    assert writer.overflow_pages == 2
    assert writer.changes.dirty == empty + 4096 + 6000
    assert writer.changes.freed == []
    kernel.seal(writer)
    assert kernel.reader().get(b"a") == b"y" * 6000
    assert len(kernel.image) == (2 + 1 + 2) * 4096


@SIZES
def test_replace_with_another_size_in_a_full_page(size):
    kernel = Kernel(size)
    model = SortedDict()
    writer = kernel.writer()
    number = 0
    while writer.leaf_pages < 2:
        key = b"%05d" % number
        model[key] = b"v" * 50
        writer.put(key, model[key])
        number += 1
    for length in (49, 51, 0, size // 4, 50, size // 4 + 1, 3):
        for key in list(model)[1::7]:
            model[key] = b"w" * length
            writer.put(key, model[key])
    same(writer, model)
    kernel.seal(writer)
    same(kernel.reader(), model)


# ---------------------------------------------------------------- split, merge, share


@SIZES
@pytest.mark.parametrize("order", ["rising", "falling", "middle out", "random"])
def test_the_longest_keys_split_everywhere(size, order):
    kernel = Kernel(size)
    limit = fmt.max_key_size(size)
    keys = [b"%04d" % number + b"x" * (limit - 8) + b"%04d" % number for number in range(120)]
    if order == "falling":
        keys.reverse()
    elif order == "middle out":
        keys = [key for pair in zip(keys[60:], reversed(keys[:60]), strict=True) for key in pair]
    elif order == "random":
        random.Random(1).shuffle(keys)
    model = SortedDict()
    writer = kernel.writer()
    for key in keys:
        model[key] = key[:4]
        writer.put(key, key[:4])
    same(writer, model)
    assert writer.depth >= 2
    kernel.seal(writer)
    writer = kernel.writer()
    random.Random(2).shuffle(keys)
    for count, key in enumerate(keys):
        assert writer.delete(key)
        del model[key]
        if count % 10 == 0:
            same(writer, model)
    assert writer.depth == 0


def test_separators_of_the_greatest_length_make_a_deep_tree():
    """Keys that differ in their last byte alone, so that separators are as long as keys."""
    kernel = Kernel()
    stem = b"x" * 900
    model = SortedDict()
    for block in range(40):
        writer = kernel.writer()
        for number in range(30):
            # A short key between two long ones forces whole keys into the branches.
            key = bytes([block]) + stem + bytes([number, 255 - number]) * 4
            model[key] = b"v" * (number * 20)
            writer.put(key, model[key])
        kernel.seal(writer)
    assert kernel.descriptor.depth >= 4
    same(kernel.reader(), model)
    rng = random.Random(3)
    while model:
        writer = kernel.writer()
        for key in rng.sample(list(model), min(97, len(model))):
            assert writer.delete(key)
            del model[key]
        same(writer, model)
        kernel.seal(writer)
    assert kernel.descriptor == fmt.EMPTY_TREE


@pytest.mark.parametrize("stranger", [b"", b"\0", b"a", b"\xff" * 50])
def test_a_key_that_breaks_the_prefix_of_a_full_page(stranger):
    kernel = Kernel()
    stem = b"middle/" * 30
    model = SortedDict({stem + b"%03d" % number: b"v" * 20 for number in range(115)})
    writer = kernel.writer()
    writer.update(model.items())
    assert writer.leaf_pages == 1
    model[stranger] = b"here"
    writer.put(stranger, b"here")
    same(writer, model)
    kernel.seal(writer)
    same(kernel.reader(), model)


def test_equal_heads_of_more_than_four_bytes():
    kernel = Kernel()
    rng = random.Random(4)
    model = SortedDict()
    writer = kernel.writer()
    for _ in range(3000):
        key = b"p" + rng.choice([b"same", b"sam\0", b"\0\0\0\0", b"\xff\xff\xff\xff"]) * rng.randint(0, 3)
        key += rng.choice([b"", b"\0", b"\0\0", b"\xff", rng.randbytes(1)])
        model[key] = rng.randbytes(rng.randint(0, 90))
        writer.put(key, model[key])
    same(writer, model)


def test_a_page_below_a_quarter_joins_its_neighbour():
    kernel = Kernel()
    items = numbered(300, 50)
    kernel.put(items)
    leaves = kernel.descriptor.leaf_pages
    assert leaves >= 4
    writer = kernel.writer()
    model = SortedDict(items)
    for key, _ in items:
        if len(model) <= 20:
            break
        writer.delete(key)
        del model[key]
    same(writer, model)
    assert writer.leaf_pages == 1
    assert writer.depth == 1, "a root with one child gives way to it"


def test_a_page_below_a_quarter_shares_with_a_full_neighbour():
    kernel = Kernel()
    kernel.put(numbered(150, 50))
    assert kernel.descriptor.leaf_pages == 3
    writer = kernel.writer()
    model = SortedDict(numbered(150, 50))
    first = writer.child(writer.root_page(), 0).cells
    for key in list(model)[: first - 12]:
        writer.delete(key)
        del model[key]
    same(writer, model)
    assert writer.leaf_pages == 3
    root = writer.root_page()
    left, right = writer.child(root, 0).cells, writer.child(root, 1).cells
    assert abs(left - right) <= 2, "evenly"


def test_the_last_entry_of_a_leaf_among_others():
    kernel = Kernel()
    items = [(b"%02d" % number + b"k" * 900, b"v" * 1000) for number in range(20)]
    for where in (0, 10, 19):
        kernel.put(items)
        writer = kernel.writer()
        model = SortedDict(items)
        keys = list(model)
        for key in keys[where:] + keys[:where]:
            writer.delete(key)
            del model[key]
            same(writer, model)
        assert writer.depth == 0
        kernel.seal(writer)


def test_deleting_what_is_not_there_copies_nothing():
    kernel = Kernel()
    kernel.put(numbered(5000))
    writer = kernel.writer()
    assert not writer.delete(b"nowhere")
    assert not writer.changed
    assert writer.changes.copied == 0
    assert writer.delete_range(b"b", b"a") == 0
    assert not writer.changed


# ---------------------------------------------------------------- delete a range


def values_for(style):
    def value(number):
        if style == "overflow" and number % 50 == 3:
            return b"%d" % number * 3000
        return b"%d" % number * 5

    return value


BOUNDS = [
    (None, None), (None, b"key00001500"), (b"key00001500", None), (b"key00000001", b"key00002999"),
    (b"key00000500", b"key00000501"), (b"key00000500", b"key00000700"), (b"", b"\xff"), (b"a", b"b"), (b"z", None),
    (b"key00000000", b"key00002999"), (None, b"key00000001"), (b"key00002999", None), (b"key000005005", b"key00002"),
    (b"key00001", b"key00002"), (None, b""), (b"key00001000", b"key00001000"),
]  # fmt: skip


@pytest.mark.untraced
@pytest.mark.parametrize("style", ["inline", "overflow"])
@pytest.mark.parametrize("dirty", ["clean", "dirty", "mixed"])
@pytest.mark.parametrize("bounds", BOUNDS, ids=repr)
def test_delete_range(style, dirty, bounds):
    start, stop = bounds
    value = values_for(style)
    model = SortedDict({b"key%08d" % number: value(number) for number in range(3000)})
    kernel = Kernel()
    if dirty == "dirty":
        writer = kernel.writer()
        writer.update(model.items())
    else:
        kernel.put(model.items())
        writer = kernel.writer()
        if dirty == "mixed":
            for number in range(0, 3000, 301):
                key = b"key%08d" % number
                model[key] = b"changed" * (600 if style == "overflow" else 1)
                writer.put(key, model[key])
    pages_before = {start for start, _, _ in writer.changes.freed}
    gone = [key for key in model if (start is None or key >= start) and (stop is None or key < stop)]
    assert writer.delete_range(start, stop) == len(gone)
    for key in gone:
        del model[key]
    same(writer, model)
    freed = [first for first, _, _ in writer.changes.freed]
    assert len(freed) == len(set(freed)) >= len(pages_before)
    used = set(range(2, len(kernel.image) // 4096))
    assert set(freed) <= used
    if not model:
        assert writer.depth == writer.leaf_pages == writer.branch_pages == writer.overflow_pages == 0
        assert writer.dirty_pages() == (0, [])
        pages = sum(length for _, length, _ in writer.changes.freed)
        assert pages == len(used), "every page of the old tree is free, once"
    kernel.seal(writer)
    same(kernel.reader(), model)
    assert not writer.changes.torn


def test_delete_range_frees_subtrees_without_reading_their_leaves():
    kernel = Kernel()
    kernel.put(numbered(60000))
    descriptor = kernel.descriptor
    assert descriptor.depth == 3
    writer = kernel.writer()
    assert writer.delete_range(b"key00000100", b"key00059900") == 59800
    assert met(writer).count(0) <= 6, "the leaves at both edges and their neighbours"
    assert met(writer).count(1) <= descriptor.branch_pages
    assert len(writer.changes.freed) >= descriptor.leaf_pages + descriptor.branch_pages - 6
    assert len(audit(writer)) == 200
    writer = kernel.writer()
    assert writer.delete_range(None, None) == 60000
    assert met(writer).count(0) == 0
    assert len(writer.changes.freed) == descriptor.leaf_pages + descriptor.branch_pages


def test_delete_range_reads_leaves_where_there_are_overflow_values():
    kernel = Kernel()
    kernel.put([*numbered(5000), (b"key00004999", b"x" * 9000)])
    writer = kernel.writer()
    assert writer.delete_range(None, None) == 5000
    assert met(writer).count(0) == kernel.descriptor.leaf_pages
    assert any(length == 3 for _, length, _ in writer.changes.freed)


@pytest.mark.parametrize("seed", range(12))
def test_delete_range_of_a_deep_tree_of_long_keys(seed):
    """Branches of two or three children: cuts leave lone children, empty branches and low roots."""
    rng = random.Random(seed)
    kernel = Kernel()
    model = SortedDict()
    model.update(far_items(rng.choice([30, 300]), rng.choice([0, 900])))
    kernel.put(model.items() if rng.random() < 0.7 else rng.sample(list(model.items()), len(model)))
    writer = kernel.writer()
    while model:
        keys = list(model)
        first, last = sorted(rng.choices(range(len(keys)), k=2))
        start = rng.choice([None, keys[first]])
        stop = rng.choice([None, keys[last]]) if rng.random() < 0.3 else keys[last] + rng.choice([b"", b"\0"])
        gone = [key for key in keys if (start is None or key >= start) and (stop is None or key < stop)]
        assert writer.delete_range(start, stop) == len(gone)
        for key in gone:
            del model[key]
        same(writer, model)
        if rng.random() < 0.4:
            kernel.seal(writer)
            same(kernel.reader(), model)
            writer = kernel.writer()
    assert writer.depth == 0


def test_putting_after_a_range_was_cut_off_the_end():
    """The way to the last leaf must not outlive that leaf."""
    kernel = Kernel()
    writer = kernel.writer()
    writer.update(numbered(1000))
    assert writer.delete_range(b"key00000500", None) == 500
    writer.put(b"key00000700", b"new")
    assert audit(writer)[-1] == (b"key00000700", b"new")
    assert writer.delete(b"key00000700")
    writer.put(b"key00000600", b"new")
    assert audit(writer)[-2:] == [(b"key00000499", b"v" * 20), (b"key00000600", b"new")]
    writer.delete_range(None, None)
    writer.put(b"a", b"1")
    assert audit(writer) == [(b"a", b"1")]


@pytest.mark.parametrize("left", [700, 501, 30, 1, 0])
def test_putting_after_the_end_was_deleted_one_by_one(left):
    kernel = Kernel()
    writer = kernel.writer()
    model = SortedDict(numbered(1000))
    writer.update(model.items())
    for key in reversed(model.keys()[left:]):
        assert writer.delete(key)
        del model[key]
        if len(model) % 97 == left % 97:
            other = b"key00001%03d" % (len(model) % 1000)
            writer.put(other, b"w")
            assert writer.delete(other)
    for number in range(1000, 1300):
        model[b"key%08d" % number] = b"n"
        writer.put(b"key%08d" % number, b"n")
    same(writer, model)
    kernel.seal(writer)
    same(kernel.reader(), model)


# ---------------------------------------------------------------- any sequence

KEYS = (
    st.binary(max_size=6)
    | st.integers(0, 400).map(lambda number: b"%04d" % number)
    | st.builds(
        lambda number, fill: b"%02d" % number + fill * 900, st.integers(0, 60), st.sampled_from([b"x", b"\0", b"\xff"])
    )
)
VALUES = st.binary(max_size=20) | st.integers(0, 9000).map(lambda length: b"%d" % length * (length // 4))
STEPS = st.lists(
    st.tuples(st.just("put"), KEYS, VALUES)
    | st.tuples(st.just("put"), KEYS, VALUES)
    | st.tuples(st.just("delete"), KEYS, st.none())
    | st.tuples(st.just("range"), KEYS, KEYS)
    | st.tuples(st.just("many"), st.integers(0, 300), st.integers(0, 200))
    | st.tuples(st.just("seal"), st.none(), st.none()),
    max_size=40,
)


@pytest.mark.untraced
@settings(max_examples=200)
@given(STEPS)
def test_any_sequence_of_changes_equals_a_sorted_dictionary(steps):
    kernel = Kernel()
    writer = kernel.writer()
    model = SortedDict()
    for what, one, two in steps:
        if what == "put":
            writer.put(one, two)
            model[one] = two
        elif what == "delete":
            assert writer.delete(one) == (one in model)
            model.pop(one, None)
        elif what == "range":
            gone = list(model.irange(one, two, inclusive=(True, False)))
            assert writer.delete_range(one, two) == len(gone)
            for key in gone:
                del model[key]
        elif what == "many":
            items = [(b"%04d" % number, b"v" * 60) for number in range(one, one + two)]
            writer.update(items)
            model.update(items)
        else:
            kernel.seal(writer)
            writer = kernel.writer()
    same(writer, model)
    kernel.seal(writer)
    same(kernel.reader(), model)


def test_a_transaction_with_nothing_dirty_seals_to_what_was():
    kernel = Kernel()
    kernel.put(numbered(100))
    before = kernel.descriptor
    writer = kernel.writer()
    assert writer.dirty_pages() == (0, [])
    assert kernel.seal(writer) == before


def test_patch_overwrites_in_place():
    kernel = Kernel()
    kernel.put(numbered(500))
    writer = kernel.writer()
    writer.patch(b"key00000250", b"P" * 20)
    assert writer.get(b"key00000250") == b"P" * 20
    assert len(audit(writer)) == 500


# ---------------------------------------------------------------- interrupted changes


class ThrownError(Exception):
    """What the tests throw into the middle of a change."""


METHODS = [
    "insert", "insert_child", "replace", "remove", "build_leaf", "build_branch", "leaf_entries", "branch_entries",
    "copy", "overflow_entries", "payload",
]  # fmt: skip


@pytest.mark.untraced
@pytest.mark.skipif(kernel.FORM == "compiled", reason="nothing interrupts a change in the middle of a call into C")
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_a_change_that_was_interrupted_is_whole_or_never_committed(method, after, monkeypatch):
    """At each call of a page's method an exception: the commit refuses, or what it commits is a sound tree."""
    original = getattr(Page, method)
    refused = committed = 0
    for nth in range(1, 40):
        with database() as db:
            model = SortedDict({key: value if at % 9 else b"v" * 3000 for at, (key, value) in enumerate(far_items(60))})
            with db.write() as txn:
                txn.update(model.items())
            rng = random.Random(nth // 8)
            left = nth
            tree = db.write()

            def broken(*arguments):
                nonlocal left
                left -= 1
                if not left and not after:
                    raise ThrownError
                found = original(*arguments)
                if not left:
                    raise ThrownError
                return found

            monkeypatch.setattr(Page, method, broken)
            possible = [SortedDict(model)]
            hit = False
            try:
                for _ in range(30):
                    possible = [SortedDict(possible[-1])]
                    change(rng, tree, possible)
            except ThrownError:
                hit = True
            monkeypatch.undo()
            if not hit:
                tree.abort()
                break
            torn = tree.changes.torn
            if torn:
                with pytest.raises(cowdb.Error, match="interrupted"):
                    tree.commit()
                refused += 1
                possible = [model]
            else:
                tree.commit()
                committed += 1
            with db.read() as snapshot:
                found = list(snapshot.items())
            assert found in [list(state.items()) for state in possible], (nth, method)
    assert refused + committed > 0 or method == "overflow_entries"


def change(rng, tree, possible):
    """One change of `tree`; the states that it may leave behind are appended to `possible` first."""
    state = possible[-1]
    then = SortedDict(state)
    key = rng.choice(list(state)) if rng.random() < 0.7 and state else rng.choice(far_items(90))[0] + b"n"
    what = rng.random()
    if what < 0.4:
        value = b"w" * rng.choice([3, 250, 1024, 3000])
        then[key] = value
        possible.append(then)
        tree.put(key, value)
    elif what < 0.8:
        then.pop(key, None)
        possible.append(then)
        tree.delete(key)
    else:
        stop = rng.choice(list(state)) if state else key
        for gone in list(then.irange(key, stop, inclusive=(True, False))):
            del then[gone]
        possible.append(then)
        tree.delete_range(key, stop)


@pytest.mark.parametrize("seed", range(40))
def test_a_damaged_page_met_by_a_change_leaves_a_sound_tree_or_no_commit(seed):
    """Keys so long that branches have few children; one page of the tree does not verify any more."""
    rng = random.Random(seed)
    kernel = Kernel()
    model = SortedDict(far_items(rng.choice([12, 40, 120]), rng.choice([0, 0, 900])))
    kernel.put(model.items())
    damaged = rng.randrange(2, len(kernel.image) // 4096)
    good = damage(kernel, damaged)
    writer = kernel.writer()
    for _ in range(60):
        if not model:
            break
        before = len(model)
        keys = list(model)
        key = rng.choice(keys)
        what = rng.random()
        try:
            if what < 0.7:
                gone = [key]
                writer.delete(key)
            elif what < 0.8:
                gone = []
                writer.put(key, model[key])
            else:
                stop = rng.choice(keys)
                gone = list(model.irange(key, stop, inclusive=(True, False)))
                writer.delete_range(key, stop)
        except CorruptionError as error:
            assert error.page_number == damaged
            if writer.changes.torn:
                return
            if len(writer) == before:
                continue
        for one in gone:
            del model[one]
        assert len(writer) == len(model)
    heal(writer, good)
    same(writer, model)


def test_a_branch_left_alone_by_a_damaged_neighbour_is_not_committed():
    """Its last but one child goes, and the branch beside it, which it would join, does not verify."""
    kernel = Kernel()
    kernel.put(far_items(30))
    reader = kernel.reader()
    root = reader.root_page()
    assert [reader.child(root, at).cells for at in range(root.cells)] == [4, 4, 4, 3]
    good = damage(kernel, root.reference(2) & fmt.MAX_U48)
    keys = [key for key, _ in far_items(30)]
    writer = kernel.writer()
    for key in keys[24:28]:
        try:
            writer.delete(key)
        except CorruptionError:
            break
    else:
        pytest.fail("the damaged page was not met")
    assert writer.changes.torn, "a branch with one child is no tree to commit"
    heal(writer, good)
    version = writer.version
    for call in (
        lambda: writer.put(b"a", b"b"),
        lambda: writer.delete(keys[0]),
        lambda: writer.delete(b"nowhere"),
        lambda: writer.delete_range(None, None),
    ):
        with pytest.raises(cowdb.Error, match="can only be aborted"):
            call()
    assert writer.version == version


def test_a_cut_range_that_meets_a_damaged_page_is_not_committed():
    kernel = Kernel()
    kernel.put(far_items(30))
    root = kernel.reader().root_page()
    keys = [key for key, _ in far_items(30)]
    for child in range(root.cells):
        for first in range(0, 30, 3):
            for last in range(first + 1, 30, 4):
                image = bytes(kernel.image)
                good = damage(kernel, root.reference(child) & fmt.MAX_U48)
                writer = kernel.writer()
                kernel.image[:] = image
                try:
                    writer.delete_range(keys[first], keys[last])
                except CorruptionError:
                    assert writer.changes.torn
                else:
                    heal(writer, good)
                    same(writer, SortedDict(far_items(30)[:first] + far_items(30)[last:]))


# ---------------------------------------------------------------- the memory budget


@pytest.mark.parametrize("budget", [0, 1, 20000])
def test_a_small_memory_budget_writes_early_and_changes_nothing_else(budget):
    rng = random.Random(budget)
    model = SortedDict()
    with database(memory_budget=budget) as db:
        for _ in range(3):
            with db.write() as txn:
                cursor = txn.cursor()
                for _ in range(150):
                    key = b"%03d" % rng.randrange(300)
                    if rng.random() < 0.7:
                        model[key] = rng.randbytes(rng.choice([5, 500, 5000]))
                        txn.put(key, model[key])
                    else:
                        assert txn.delete(key) == (key in model)
                        model.pop(key, None)
                    cursor.seek(key)
                assert list(txn.items()) == list(model.items())
            with db.read() as snapshot:
                assert list(snapshot.items()) == list(model.items())


def test_an_early_write_without_room_ends_the_transaction_and_harms_nothing():
    with database(max_size=16 * 4096, memory_budget=20000) as db:
        with db.write() as txn:
            txn[b"kept"] = b"yes"
        txn = db.write()
        with pytest.raises(FullError):
            txn.update((b"%04d" % number, bytes(900)) for number in range(1000))
        with pytest.raises(ClosedError):
            txn.get(b"kept")
        for call in (lambda: txn.put(b"a", b"b"), lambda: txn.delete(b"kept"), txn.clear):
            with pytest.raises(cowdb.Error):
                call()
        with pytest.raises(cowdb.Error):
            txn.commit()
        with db.read() as snapshot:
            assert list(snapshot.items()) == [(b"kept", b"yes")]
        with db.write() as txn:
            txn[b"more"] = b"room"
        assert db[b"more"] == b"room"


def test_a_value_that_waits_for_its_page_is_forged():
    """A cell that says "not written yet" in a page that was read from the file."""
    kernel = Kernel()
    kernel.put([(b"a", b"x" * 5000), (b"b", b"v")])
    raw = fmt.Reference(0, 1, 5000, 0).pack()
    writer = kernel.writer()
    with pytest.raises(CorruptionError, match="without a page"):
        writer.fetch(raw)
    writer = kernel.writer()
    writer.put(b"b", b"w")
    page = writer.root_page()
    page.set_payload(0, raw)
    for call in (lambda: writer.get(b"a"), lambda: writer.put(b"a", b"")):
        with pytest.raises(CorruptionError, match="without a page"):
            call()
    assert writer.changes.torn


def test_a_reference_that_frees_what_is_not_in_the_file_is_forged():
    kernel = Kernel()
    kernel.put([(b"a", b"x" * 5000), (b"b", b"v")])
    for forged in (
        fmt.Reference(4, 1, 1 << 40, 0), fmt.Reference(fmt.MAX_U48, 1, 5000, 0), fmt.Reference(1, 1, 5000, 0),
        fmt.Reference(3, 7, 5000, 0),
    ):  # fmt: skip
        writer = kernel.writer()
        writer.put(b"b", b"w")
        writer.root_page().set_payload(0, forged.pack())
        freed = list(writer.changes.freed)
        with pytest.raises(CorruptionError, match="makes no sense"):
            writer.put(b"a", b"")
        assert writer.changes.torn
        assert writer.changes.freed == freed


def test_a_tree_that_leads_to_one_page_again_and_again_is_not_freed_for_ever():
    kernel = Kernel()
    kernel.put(numbered(60000))
    kernel.descriptor = kernel.descriptor._replace(leaf_pages=10)
    writer = kernel.writer()
    with pytest.raises(CorruptionError, match="more pages than"):
        writer.delete_range(None, None)
    assert len(writer.changes.freed) < 30


def test_a_descriptor_that_counts_too_few_pages_is_not_sealed():
    kernel = Kernel()
    kernel.put(numbered(300))
    kernel.descriptor = kernel.descriptor._replace(leaf_pages=0)
    writer = kernel.writer()
    for key, _ in numbered(250):
        writer.delete(key)
    with pytest.raises(CorruptionError, match="fewer pages"):
        kernel.seal(writer)


@pytest.mark.parametrize("items", [[], numbered(10)], ids=["empty", "full"])
def test_a_closed_writer_refuses(items):
    kernel = Kernel()
    kernel.put(items)
    writer = kernel.writer()
    writer.close()
    for call in (
        lambda: writer.put(b"a", b"b"),
        lambda: writer.delete(b"a"),
        lambda: writer.delete_range(None, None),
        lambda: writer.get(b"a"),
        lambda: len(writer),
    ):
        with pytest.raises(ClosedError):
            call()


def test_nothing_is_left_over_on_the_disk_after_all_is_deleted():
    disk = MemoryDisk()
    with database(disk=disk) as db:
        for _ in range(4):
            with db.write() as txn:
                txn.update(numbered(2000))
                txn.put(b"large", bytes(100000))
            with db.write() as txn:
                txn.clear()
                assert len(txn) == 0
        used = db.stats().used_pages
        assert used <= 2, "free tree at the most"
