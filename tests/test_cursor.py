"""Scans and cursors: ordered movement, also while their own transaction changes the tree under them."""

from __future__ import annotations

import random
from bisect import bisect_left
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel import Kernel, database, far_items, met, numbered
from sortedcontainers import SortedDict

import cowdb
from cowdb.cursor import ITEMS, KEYS, VALUES, Cursor, _clean_leaves, after_prefix
from cowdb.errors import ClosedError, CorruptionError, KeySizeError, ReadOnlyError
from cowdb.kernel import scan
from cowdb.page import Page
from cowdb.testing import MemoryDisk


def readers(items):
    """The same entries in a clean tree and in a dirty one."""
    kernel = Kernel()
    kernel.put(items)
    dirty = Kernel().writer()
    dirty.update(items)
    return kernel.reader(), kernel.writer(), dirty


# ---------------------------------------------------------------- bounds


@pytest.mark.parametrize(
    ("prefix", "after"),
    [
        (b"", None), (b"\xff", None), (b"\xff\xff\xff", None), (b"a", b"b"), (b"a\xff", b"b"), (b"a\xff\xff", b"b"),
        (b"\0", b"\1"), (b"a\0", b"a\1"), (b"\xfe\xff", b"\xff"), (b"ab", b"ac"),
    ],
)  # fmt: skip
def test_after_prefix(prefix, after):
    assert after_prefix(prefix) == after


@given(st.binary(max_size=4), st.binary(max_size=8))
def test_after_prefix_is_the_end_of_what_has_the_prefix(prefix, key):
    after = after_prefix(prefix)
    below = after is None or key < after
    assert key.startswith(prefix) == (prefix <= key and below)


BOUNDS = [None, b"", b"key00000000", b"key00000007", b"key000000070", b"key00000123", b"key00000399", b"key0000039",
          b"key00000400", b"\xff"]  # fmt: skip


@pytest.mark.parametrize("low", BOUNDS)
@pytest.mark.parametrize("high", BOUNDS)
def test_scans_over_every_range(low, high):
    items = [(key, b"%d" % at) for at, (key, _) in enumerate(numbered(400))]
    wanted = [item for item in items if (low is None or item[0] >= low) and (high is None or item[0] < high)]
    for tree in readers(items):
        assert list(scan(tree, ITEMS, low, high)) == wanted
        assert list(scan(tree, KEYS, low, high)) == [key for key, _ in wanted]
        assert list(scan(tree, VALUES, low, high)) == [value for _, value in wanted]
        assert list(scan(tree, ITEMS, low, high, reverse=True)) == wanted[::-1]
        assert list(scan(tree, KEYS, low, high, reverse=True)) == [key for key, _ in wanted[::-1]]
        assert list(scan(tree, VALUES, low, high, reverse=True, limit=5)) == [value for _, value in wanted[::-1]][:5]
        for limit in (-1, 0, 1, 300, 10000):
            assert list(scan(tree, KEYS, low, high, limit=limit)) == [key for key, _ in wanted][: max(0, limit)]


def test_scans_over_edges_of_branches():
    items = far_items(120)
    for tree in readers(items):
        for first in range(0, 120, 13):
            for last in range(first, 120, 11):
                low, high = items[first][0], items[last][0]
                assert list(scan(tree, ITEMS, low, high)) == items[first:last]
                assert list(scan(tree, ITEMS, low, high, reverse=True)) == items[first:last][::-1]


def test_scans_through_branches_that_were_visited_often():
    """Such branches are kept unpacked; nothing else may come out."""
    items = far_items(120)
    kernel = Kernel()
    kernel.put(items)
    tree = kernel.reader()
    for turn in range(40):
        low, high = items[turn][0], items[-1 - turn][0]
        assert list(scan(tree, ITEMS, None, None)) == items
        assert list(scan(tree, ITEMS, low, high)) == items[turn : -1 - turn]
        assert (
            list(scan(tree, ITEMS, low + b"\0", high + b"\0", reverse=True))
            == items[turn + 1 : len(items) - turn][::-1]
        )
        assert list(scan(tree, KEYS, None, low, reverse=True)) == [key for key, _ in items[:turn]][::-1]


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("separator", [b"k", b"kk"])
def test_separators_that_lead_round_and_round_are_damage(reverse, separator):
    leaf = Page.build_leaf([(b"k", 1, b"v")], 4096)
    found = leaf, *((None, separator) if not reverse else (separator, None)), None, 0
    looks = []

    def look(key):
        looks.append(key)
        return found

    tree = SimpleNamespace(open_space=lambda: SimpleNamespace(pages=1000), leaf_at=look, leaf_before=look)
    with pytest.raises(CorruptionError, match="do not rise"):
        list(_clean_leaves(tree, None, None, reverse=reverse))
    assert len(looks) == 2, "it is found out at once"


@pytest.mark.parametrize("reverse", [False, True])
def test_neighbours_within_an_unpacked_branch_are_found_without_a_search(reverse):
    """Those at its ends are searched for: what bounds them stands in another branch."""
    keys = [b"%d" % number for number in range(6)]
    pages = [Page.build_leaf([(key, 1, b"v")], 4096) for key in keys]
    branch = keys[1:], list(range(6))
    looks = []

    def place(index):
        return pages[index], branch[0][index - 1] if index else None, branch[0][index] if index < 5 else None

    def look(key):
        looks.append(key)
        index = (
            bisect_left(branch[0], key) if reverse and key is not None else 5 if reverse else keys.index(key or b"0")
        )
        return *place(index), branch, index

    tree = SimpleNamespace(
        open_space=lambda: SimpleNamespace(pages=1000), leaf_at=look, leaf_before=look, load=lambda bits, _: pages[bits]
    )
    found = [leaf.key(0) for leaf, _, _ in _clean_leaves(tree, None, None, reverse=reverse)]
    assert found == (keys[::-1] if reverse else keys)
    assert looks == ([None, b"1"] if reverse else [b"", b"5"])
    looks.clear()
    found = [leaf.key(0) for leaf, _, _ in _clean_leaves(tree, b"1", b"4", reverse=reverse)]
    assert found == ([b"3", b"2", b"1"] if reverse else [b"1", b"2", b"3"])
    assert len(looks) == 1


@pytest.mark.parametrize("reverse", [False, True])
def test_an_unpacked_branch_whose_separators_do_not_rise_is_damage(reverse):
    leaf = Page.build_leaf([(b"k", 1, b"v")], 4096)
    branch = [b"b", b"d", b"c", b"a", b"e", b"f"], list(range(7))
    index = 5 if reverse else 1
    found = leaf, branch[0][index - 1], branch[0][index], branch, index
    tree = SimpleNamespace(
        open_space=lambda: SimpleNamespace(pages=1000),
        leaf_at=lambda key: found,
        leaf_before=lambda key: found,
        load=lambda bits, level: leaf,
    )
    with pytest.raises(CorruptionError, match="do not rise"):
        list(_clean_leaves(tree, None, None, reverse=reverse))


def test_an_unpacked_branch_that_leads_to_more_leaves_than_the_file_has_pages_is_damage():
    leaf = Page.build_leaf([(b"k", 1, b"v")], 4096)
    branch = [b"%03d" % number for number in range(100)], list(range(101))
    for reverse in False, True:
        index = 99 if reverse else 1
        found = leaf, branch[0][index - 1], branch[0][index], branch, index
        tree = SimpleNamespace(
            open_space=lambda: SimpleNamespace(pages=50),
            leaf_at=lambda key, found=found: found,
            leaf_before=lambda key, found=found: found,
            load=lambda bits, level: leaf,
        )
        with pytest.raises(CorruptionError, match="more leaves than the file has pages"):
            list(_clean_leaves(tree, None, None, reverse=reverse))


@pytest.mark.parametrize("size", [4096, 32768])
def test_a_scan_that_is_repeated_gives_the_same(size):
    """The lookup of its leaves may keep branches unpacked, at first of some levels only."""
    items = far_items(60, 0) + numbered(4000, 30)
    kernel = Kernel(size)
    kernel.put(items)
    tree = kernel.reader()
    keys = [key for key, _ in items]
    rng = random.Random(size)
    for _ in range(40):
        low, high = sorted(rng.sample(range(len(keys)), 2))
        assert list(scan(tree, KEYS, keys[low], keys[high])) == keys[low:high]
        assert list(scan(tree, ITEMS, keys[low], keys[high], reverse=True)) == items[low:high][::-1]
    assert list(scan(tree, ITEMS, None, None)) == items
    assert list(scan(tree, ITEMS, None, None, reverse=True)) == items[::-1]


def test_scans_give_overflow_values():
    items = [(b"%02d" % number, b"%d" % number * (number * 300)) for number in range(30)]
    for tree in readers(items):
        assert list(scan(tree, ITEMS, None, None)) == items
        assert list(scan(tree, VALUES, None, None, reverse=True)) == [value for _, value in items[::-1]]


def test_a_scan_reads_only_what_it_is_asked_for():
    kernel = Kernel()
    kernel.put(numbered(3000, 100))
    reader = kernel.reader()
    found = scan(reader, KEYS, None, None)
    assert met(reader) == []
    next(found)
    assert met(reader).count(0) == 1


# ---------------------------------------------------------------- changes during a scan


@pytest.mark.parametrize("reverse", [False, True])
def test_deleting_what_a_scan_gives(reverse):
    writer = readers(numbered(2000))[1]
    seen = []
    for key, _ in scan(writer, ITEMS, None, None, reverse=reverse):
        seen.append(key)
        assert writer.delete(key)
    keys = [key for key, _ in numbered(2000)]
    assert seen == (keys[::-1] if reverse else keys)
    assert len(writer) == 0


@pytest.mark.parametrize("reverse", [False, True])
def test_what_is_put_ahead_is_seen_and_what_is_put_behind_is_not(reverse):
    writer = readers([(b"%03d" % number, b"") for number in range(0, 400, 2)])[2]
    seen = []
    for key in scan(writer, KEYS, None, None, reverse=reverse):
        seen.append(key)
        number = int(key[:3])
        if number % 2 == 0:
            writer.put(b"%03d" % (number + 1), b"odd")
            writer.put(b"%03d" % max(0, number - 1), b"odd")
    assert seen == sorted(set(seen), reverse=reverse)
    ahead = {b"%03d" % (number - 1 if reverse else number + 1) for number in range(2, 398, 2)}
    assert ahead <= set(seen)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("seed", range(6))
def test_a_scan_under_random_changes_gives_what_stays(seed, reverse):
    """Each key comes at most once, in order; what was there all the time comes."""
    rng = random.Random(seed)
    model = SortedDict(far_items(40) if seed % 2 else numbered(500, 60))
    kernel = Kernel()
    kernel.put(model.items())
    writer = kernel.writer()
    stayed = set(model)
    born = set()
    seen = []
    for key, value in scan(writer, ITEMS, None, None, reverse=reverse):
        assert model[key] == value
        seen.append(key)
        for _ in range(rng.choice([0, 1, 5])):
            other = rng.choice(list(model)) if model else b"a"
            what = rng.random()
            if what < 0.4:
                writer.delete(other)
                model.pop(other, None)
                stayed.discard(other)
            elif what < 0.8 and len(born) < 100:
                other = other[:20] + rng.randbytes(2)
                born.add(other)
                model[other] = rng.randbytes(rng.choice([3, 900, 3000]))
                writer.put(other, model[other])
            elif what < 0.85:
                gone = list(model.irange(other, other + b"\xff"))
                writer.delete_range(other, other + b"\xff\0")
                for one in gone:
                    del model[one]
                    stayed.discard(one)
            elif other in model:
                model[other] = b"changed"
                writer.put(other, b"changed")
    assert seen == sorted(set(seen), reverse=reverse)
    assert stayed <= set(seen)


def test_a_range_scan_keeps_its_bounds_when_the_tree_changes():
    writer = readers(numbered(300))[1]
    seen = []
    for key in scan(writer, KEYS, b"key00000100", b"key00000200"):
        seen.append(key)
        if not key.endswith(b"\0"):
            writer.put(key + b"\0", b"")
        writer.put(b"key000001995", b"")
        writer.put(b"key00000200\0", b"")
    assert seen[0] == b"key00000100"
    assert seen[-1] < b"key00000200"
    assert b"key000001995" in seen


def test_a_scan_over_a_transaction_that_ended_raises():
    with database() as db:
        txn = db.write()
        txn.update(numbered(10))
        found = iter(txn.items())
        view = txn.items()
        cursor = txn.cursor()
        assert cursor.first()
        next(found)
        txn.commit()
        for call in (lambda: next(found), lambda: list(view), cursor.next, lambda: cursor.key, lambda: cursor.item):
            with pytest.raises(ClosedError):
                call()
        snapshot = db.read()
        view = snapshot.items()
        cursor = snapshot.cursor()
        cursor.last()
        snapshot.close()
        for call in (lambda: list(view), cursor.first, cursor.prev, lambda: cursor.value, snapshot.cursor):
            with pytest.raises(ClosedError):
                call()


def test_a_scan_goes_on_over_an_early_write():
    with database(memory_budget=0) as db, db.write() as txn:
        txn.update(numbered(200))
        seen = []
        for key in txn:
            seen.append(key)
            if len(seen) % 50 == 0:
                txn.put(b"a%d" % len(seen), b"behind")
            txn.put(key, b"large" * 1000, overwrite=False)
        assert seen == [key for key, _ in numbered(200)]


# ---------------------------------------------------------------- cursors


@pytest.fixture(params=["clean", "untouched", "dirty"])
def tree(request):
    items = [(key, b"%d" % at) for at, (key, _) in enumerate(numbered(400))]
    return dict(zip(["clean", "untouched", "dirty"], readers(items), strict=True))[request.param]


def test_a_new_cursor_is_nowhere(tree):
    cursor = Cursor(tree)
    assert cursor.key is cursor.value is cursor.item is None
    assert cursor.next()
    assert cursor.item == (b"key00000000", b"0")
    cursor = Cursor(tree)
    assert cursor.prev()
    assert cursor.item == (b"key00000399", b"399")


def test_a_cursor_walks_to_both_ends_and_starts_again(tree):
    cursor = Cursor(tree)
    keys = [key for key, _ in numbered(400)]
    for _ in range(2):
        found = []
        while cursor.next():
            found.append(cursor.key)
        assert found == keys
        assert cursor.key is None
    for _ in range(2):
        found = []
        while cursor.prev():
            found.append(cursor.key)
        assert found == keys[::-1]
        assert cursor.item is None


def test_first_last_and_seeks(tree):
    cursor = Cursor(tree)
    assert cursor.last()
    assert (cursor.key, cursor.value) == (b"key00000399", b"399")
    assert not cursor.next()
    assert cursor.first()
    assert not cursor.prev()
    assert cursor.seek(bytearray(b"key0000005"))
    assert cursor.key == b"key00000050"
    assert cursor.seek_exact(b"key00000060")
    assert cursor.value == b"60"
    assert cursor.prev()
    assert cursor.key == b"key00000059"
    assert not cursor.seek_exact(b"key0000006")
    assert cursor.key is None
    assert not cursor.seek(b"z")
    assert cursor.key is None
    assert not cursor.seek_exact(b"z")
    for call in (cursor.seek, cursor.seek_exact):
        with pytest.raises(TypeError, match="encode"):
            call("key")
        with pytest.raises(TypeError):
            call(None)


def test_an_empty_tree():
    for tree in (Kernel().reader(), Kernel().writer()):
        cursor = Cursor(tree)
        for call in (cursor.first, cursor.last, cursor.next, cursor.prev):
            assert not call()
        assert not cursor.seek(b"")
        assert cursor.item is None


def test_a_reader_s_cursor_changes_nothing():
    cursor = Cursor(readers(numbered(3))[0])
    cursor.first()
    for call in (cursor.delete, lambda: cursor.put(b"a", b"b")):
        with pytest.raises(ReadOnlyError, match=r"write\(\)"):
            call()


def test_delete_moves_on_with_next_and_prev():
    writer = readers(numbered(10))[1]
    cursor = Cursor(writer)
    assert not cursor.delete()
    cursor.seek(b"key00000005")
    assert cursor.delete()
    assert cursor.item is None
    assert not cursor.delete()
    assert cursor.next()
    assert cursor.key == b"key00000006"
    assert cursor.delete()
    assert cursor.prev()
    assert cursor.key == b"key00000004"
    cursor.last()
    cursor.delete()
    assert not cursor.next()
    cursor.first()
    cursor.delete()
    assert not cursor.prev()
    assert len(writer) == 6


def test_a_whole_tree_goes_by_cursor():
    for items in (numbered(1000), far_items(60)):
        writer = readers(items)[1]
        cursor = Cursor(writer)
        while cursor.next():
            assert cursor.delete()
        assert len(writer) == 0
        writer = readers(items)[2]
        cursor = Cursor(writer)
        while cursor.prev():
            assert cursor.delete()
        assert len(writer) == 0


def test_put_goes_to_the_entry():
    writer = readers(numbered(10))[1]
    cursor = Cursor(writer)
    assert cursor.put(b"key000000055", b"new")
    assert cursor.item == (b"key000000055", b"new")
    assert cursor.next()
    assert cursor.key == b"key00000006"
    assert not cursor.put(b"key00000002", b"x", overwrite=False)
    assert cursor.key == b"key00000006", "it stays"
    assert cursor.put(b"z", b"last", append=True)
    assert not cursor.next()
    with pytest.raises(ValueError, match="append"):
        cursor.put(b"a", b"", append=True)
    with pytest.raises(TypeError):
        cursor.put("a", b"")
    with pytest.raises(KeySizeError):
        cursor.put(b"a" * 2000, b"")
    assert cursor.put(b"a", b"")
    assert not cursor.prev()


def test_an_entry_that_is_deleted_and_put_again_is_back():
    writer = readers(numbered(10))[1]
    cursor = Cursor(writer)
    cursor.seek(b"key00000005")
    writer.delete(b"key00000005")
    assert cursor.key is None
    writer.put(b"key00000005", b"back")
    assert cursor.item == (b"key00000005", b"back")


def test_a_value_that_changes_is_seen():
    writer = readers(numbered(10))[1]
    cursor = Cursor(writer)
    cursor.seek(b"key00000005")
    for value in (b"", b"x" * 20, b"y" * 3000, b"z" * 20):
        writer.put(b"key00000005", value)
        assert cursor.value == value


class Machine:
    """What a cursor should do, on a sorted dictionary."""

    def __init__(self, model):
        self.model = model
        self.key = None

    def go(self, at):
        found = 0 <= at < len(self.model)
        self.key = self.model.keys()[at] if found else None
        return found

    def next(self):
        return self.go(0 if self.key is None else self.model.bisect_right(self.key))

    def prev(self):
        return self.go((len(self.model) if self.key is None else self.model.bisect_left(self.key)) - 1)

    def seek(self, key):
        return self.go(self.model.bisect_left(key))

    @property
    def item(self):
        return (self.key, self.model[self.key]) if self.key in self.model else None


MOVES = st.sampled_from(["next", "next", "prev", "prev", "first", "last", "delete", "item"])
SOME_KEYS = st.integers(0, 120).map(lambda number: far_items(121)[number][0]) | st.binary(max_size=2)


@settings(max_examples=100)
@given(
    st.integers(0, 90),
    st.lists(
        st.tuples(st.integers(0, 2), MOVES)
        | st.tuples(st.integers(0, 2), st.sampled_from(["seek", "seek_exact", "put"]), SOME_KEYS)
        | st.tuples(st.just(-1), st.sampled_from(["put", "delete"]), SOME_KEYS),
        max_size=60,
    ),
)
def test_three_cursors_under_any_changes(count, steps):
    model = SortedDict(far_items(count))
    kernel = Kernel()
    kernel.put(model.items())
    writer = kernel.writer()
    cursors = [Cursor(writer) for _ in range(3)]
    twins = [Machine(model) for _ in range(3)]
    for which, what, *arguments in steps:
        key = arguments[0] if arguments else None
        if which < 0:
            if what == "put":
                writer.put(key, b"put")
                model[key] = b"put"
            else:
                assert writer.delete(key) == (model.pop(key, None) is not None)
            continue
        cursor, twin = cursors[which], twins[which]
        if what in ("next", "prev"):
            assert getattr(cursor, what)() == getattr(twin, what)()
        elif what == "first":
            assert cursor.first() == twin.go(0)
        elif what == "last":
            assert cursor.last() == twin.go(len(model) - 1)
        elif what == "seek":
            assert cursor.seek(key) == twin.seek(key)
        elif what == "seek_exact":
            assert cursor.seek_exact(key) == (key in model)
            twin.key = key if key in model else None
        elif what == "put":
            assert cursor.put(key, b"by cursor")
            model[key] = b"by cursor"
            twin.key = key
        elif what == "delete":
            assert cursor.delete() == (twin.item is not None)
            if twin.item is not None:
                del model[twin.key]
        for one, other in zip(cursors, twins, strict=True):
            assert one.item == other.item
    assert list(scan(writer, ITEMS, None, None)) == list(model.items())


def test_a_cursor_over_an_early_write():
    disk = MemoryDisk()
    with database(disk=disk, memory_budget=0) as db, db.write() as txn:
        txn.update(numbered(100))
        cursor = txn.cursor()
        other = txn.cursor()
        assert cursor.first()
        assert other.last()
        keys = []
        while True:
            keys.append(cursor.key)
            txn.put(b"z%d" % len(keys), b"large" * 1000)
            assert other.value == b"v" * 20
            if not cursor.next() or cursor.key.startswith(b"z"):
                break
        assert keys == [key for key, _ in numbered(100)]


class _Damaged:
    """A path whose next step meets damage; `then` happens in that moment, as if by another thread."""

    def __init__(self, then):
        self.then = then

    def forward(self):
        self.then()
        raise cowdb.CorruptionError(7, "the page was written again")


@pytest.fixture
def reader(tmp_path):
    with cowdb.open(tmp_path / "db", durability="lazy") as db:
        with db.write() as transaction:
            transaction.update({b"a": b"1", b"b": b"2"})
        with db.read() as reader:
            yield reader


def test_damage_that_a_cursor_meets_in_a_tree_which_was_closed_meanwhile_is_none(reader):
    cursor = reader.cursor()
    assert cursor.first()
    cursor._path = _Damaged(reader.close)
    with pytest.raises(ClosedError, match="has ended"):
        cursor.next()


def test_a_cursor_that_met_damage_stays_at_its_key_and_seeks_anew(reader):
    cursor = reader.cursor()
    assert cursor.first()
    cursor._path = _Damaged(lambda: None)
    with pytest.raises(cowdb.CorruptionError, match="written again"):
        cursor.next()
    assert cursor.item == (b"a", b"1")
    assert cursor.next()
    assert cursor.item == (b"b", b"2")
