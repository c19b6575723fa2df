"""A tree as a Python mapping: every method as its namesake in dict and SortedDict, and wrong types as promised."""

from __future__ import annotations

import contextlib
from collections.abc import ItemsView, KeysView, Mapping, MutableMapping, ValuesView

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel import database, numbered
from sortedcontainers import SortedDict

import cowdb
from cowdb import format as fmt
from cowdb.database import open_on
from cowdb.errors import ClosedError, KeyNotFoundError
from cowdb.testing import MemoryDisk

KEYS = [b"", b"\0", b"\0\0", b"a", b"a\0", b"a\0\0\0\0\0", b"ab", b"ab\xff", b"ab\xff\xff", b"ac", b"b", b"\xff",
        b"\xff\xff", b"\xff\xff\xff\xff\xff"]  # fmt: skip
MODEL = SortedDict({key: b"value of " + key for key in KEYS})
STRANGERS = [None, 5, 2.5, object, (), [b"a"]]


ITEMS = tuple(MODEL.items())


@contextlib.contextmanager
def tree_of(kind, items=ITEMS):
    """The items in a tree of a snapshot, in an untouched one of a write transaction, or in one that was just filled."""
    with database() as db:
        if kind != "fresh":
            with db.write() as txn:
                txn.update(items)
                txn.tree("named", create=True).update(items)
        if kind == "snapshot":
            with db.read() as snapshot:
                yield snapshot
        elif kind == "named":
            with db.read() as snapshot:
                yield snapshot.tree("named")
        else:
            with db.write() as txn:
                if kind == "fresh":
                    txn.update(items)
                yield txn


@pytest.fixture(params=["snapshot", "named", "writing", "fresh"])
def tree(request):
    with tree_of(request.param) as tree:
        yield tree


@pytest.fixture(params=["writing", "fresh"])
def writing(request):
    with tree_of(request.param) as tree:
        yield tree


# ---------------------------------------------------------------- reading


def test_it_is_a_mapping(tree):
    assert isinstance(tree, Mapping)
    assert isinstance(tree, MutableMapping) == hasattr(tree, "put")
    assert dict(tree) == MODEL
    assert tree == MODEL
    assert dict(tree.items()) == MODEL
    assert list(tree) == list(MODEL)
    assert list(reversed(tree)) == list(reversed(MODEL))
    assert len(tree) == len(MODEL)
    assert tree
    assert {tree: 1}[tree] == 1, "hashable, by identity"
    assert tree == tree  # noqa: PLR0124 - it is the shortest way
    assert tree != {**MODEL, b"a": b"other"}
    assert tree != {**MODEL, b"more": b""}
    assert tree != 5
    assert (tree == [1]) is False


def test_get_and_in_and_item(tree):
    for key in KEYS:
        for form in (key, bytearray(key), memoryview(key)):
            assert tree[form] == tree.get(form) == MODEL[key]
            assert form in tree
    for key in (b"aa", b"\0\0\0", b"c"):
        assert key not in tree
        assert tree.get(key) is None
        assert tree.get(key, 7) == 7
        with pytest.raises(KeyNotFoundError) as caught:
            tree[key]
        assert caught.value.key == key
        assert isinstance(caught.value, KeyError)


@pytest.mark.parametrize("wrong", STRANGERS, ids=repr)
def test_wrong_keys_for_looking(tree, wrong):
    assert wrong not in tree
    assert tree.get(wrong) is None
    assert tree.get(wrong, b"x") == b"x"
    assert tree.get_view(wrong) is None
    with pytest.raises(KeyError):
        tree[wrong]
    assert wrong not in tree.keys()  # noqa: SIM118 - the view is meant
    assert (wrong, b"v") not in tree.items()
    for call in (tree.floor, tree.ceiling, tree.bisect_left, tree.bisect_right):
        with pytest.raises(TypeError):
            call(wrong)
    if wrong is not None:
        for call in (tree.items, tree.keys, tree.values, tree.count):
            with pytest.raises(TypeError):
                call(wrong)
            with pytest.raises(TypeError):
                call(None, wrong)
            with pytest.raises(TypeError):
                call(prefix=wrong)


def test_str_is_refused_everywhere(tree):
    calls = [
        lambda: tree["a"],
        lambda: tree.get("a"),
        lambda: tree.get("a", None),
        lambda: "a" in tree,
        lambda: tree.floor("a"),
        lambda: tree.ceiling("a"),
        lambda: tree.bisect_left("a"),
        lambda: tree.bisect_right("a"),
        lambda: tree.count("a"),
        lambda: tree.count(prefix="a"),
        lambda: tree.items("a"),
        lambda: tree.keys(None, "a"),
        lambda: tree.values(prefix="a"),
        lambda: tree["a":],
        lambda: tree[:"a"],
        lambda: "a" in tree.keys(),  # noqa: SIM118 - the view is meant
        lambda: ("a", b"") in tree.items(),
        lambda: tree.get_view("a"),
        lambda: tree.cursor().seek("a"),
        lambda: tree.cursor().seek_exact("a"),
    ]
    if hasattr(tree, "put"):
        calls += [
            lambda: tree.__setitem__("a", b""),
            lambda: tree.__setitem__(b"a", ""),
            lambda: tree.__delitem__("a"),
            lambda: tree.put("a", b""),
            lambda: tree.put(b"a", ""),
            lambda: tree.delete("a"),
            lambda: tree.pop("a"),
            lambda: tree.pop("a", None),
            lambda: tree.setdefault("a", b""),
            lambda: tree.setdefault(b"new", ""),
            lambda: tree.update({"a": b""}),
            lambda: tree.update([(b"a", "")]),
            lambda: tree.delete_range("a"),
            lambda: tree.delete_range(None, "a"),
            lambda: tree.cursor().put("a", b""),
        ]
    for call in calls:
        with pytest.raises(TypeError, match="encode"):
            call()
    assert tree == MODEL


def test_order_statistics(tree):
    for probe in [*KEYS, b"aa", b"\0\0\0", b"zz", b"\xff" * 9, b"ab\xfe"]:
        left, right = MODEL.bisect_left(probe), MODEL.bisect_right(probe)
        assert tree.bisect_left(probe) == left
        assert tree.bisect_right(probe) == tree.bisect(probe) == right
        assert tree.floor(probe) == (MODEL.peekitem(right - 1) if right else None)
        assert tree.ceiling(probe) == (MODEL.peekitem(left) if left < len(MODEL) else None)
        assert tree.count(probe) == len(MODEL) - left
        assert tree.count(None, probe) == left
        assert tree.count(prefix=probe) == sum(key.startswith(probe) for key in MODEL)
    for index in range(-len(MODEL), len(MODEL)):
        assert tree.peekitem(index) == MODEL.peekitem(index)
    assert tree.peekitem() == MODEL.peekitem()
    for index in (-len(MODEL) - 1, len(MODEL), 1 << 70):
        with pytest.raises(IndexError):
            tree.peekitem(index)
    assert tree.first() == MODEL.peekitem(0)
    assert tree.last() == MODEL.peekitem(-1)
    assert tree.count(b"b", b"a") == 0


@pytest.mark.parametrize("kind", ["snapshot", "writing"])
def test_an_empty_tree(kind):
    with tree_of(kind, ()) as tree:
        assert not tree
        assert len(tree) == 0
        assert list(tree.items()) == list(reversed(tree.items())) == list(tree.keys(reverse=True)) == []
        assert tree.first() is tree.last() is tree.floor(b"a") is tree.ceiling(b"a") is None
        assert tree.bisect_left(b"a") == tree.bisect_right(b"a") == tree.count() == 0
        assert tree == {}
        assert tree.get_view(b"a") is None
        with pytest.raises(IndexError):
            tree.peekitem()


# ---------------------------------------------------------------- views

BOUND = st.none() | st.sampled_from([*KEYS, b"aa", b"a\xff", b"zz"])


@pytest.mark.untraced
@settings(max_examples=100)
@given(
    st.sampled_from(["snapshot", "fresh"]),
    st.lists(
        st.tuples(BOUND, BOUND, BOUND, st.booleans(), st.booleans(), st.booleans(), st.none() | st.integers(-1, 16)),
        max_size=20,
    ),
)
def test_views_of_every_range(kind, ranges):
    with tree_of(kind) as tree:
        for start, stop, prefix, reverse, include_start, include_stop, limit in ranges:
            options = {
                "prefix": prefix,
                "reverse": reverse,
                "include_start": include_start,
                "include_stop": include_stop,
                "limit": limit,
            }
            keys = [
                key
                for key in MODEL
                if (start is None or key > start or (include_start and key == start))
                and (stop is None or key < stop or (include_stop and key == stop))
                and (prefix is None or key.startswith(prefix))
            ]
            if reverse:
                keys.reverse()
            if limit is not None:
                keys = keys[: max(0, limit)]
            view = tree.keys(start, stop, **options)
            values = tree.values(start, stop, **options)
            items = tree.items(start, stop, **options)
            for _ in range(2):
                assert list(view) == keys
                assert list(values) == [MODEL[key] for key in keys]
                assert list(items) == [(key, MODEL[key]) for key in keys]
            assert len(view) == len(values) == len(items) == len(keys)
            for key in [*KEYS, b"aa", b"zz"]:
                assert (key in view) == (key in keys)
                assert (MODEL.get(key, b"") in values) == (key in keys)
                assert ((key, MODEL.get(key)) in items) == (key in keys)
                assert (key, b"other") not in items
            if limit is None:
                assert list(reversed(view)) == keys[::-1]
                assert list(reversed(values)) == [MODEL[key] for key in keys[::-1]]
                assert list(reversed(items)) == [(key, MODEL[key]) for key in keys[::-1]]
            else:
                with pytest.raises(TypeError, match="reverse=True"):
                    reversed(view)


def test_views_are_views(tree):
    assert isinstance(tree.keys(), KeysView)
    assert isinstance(tree.values(), ValuesView)
    assert isinstance(tree.items(), ItemsView)
    assert tree.keys() == MODEL.keys()
    assert tree.keys() & {b"a", b"zz"} == {b"a"}
    assert tree.items(b"a", b"b") - {(b"a", MODEL[b"a"])} == set(MODEL.items()) & {
        (key, MODEL[key]) for key in MODEL.irange(b"a", b"b", inclusive=(False, False))
    }
    assert b"a" not in tree.items()
    assert (b"a",) not in tree.items()
    assert [b"a", MODEL[b"a"]] not in tree.items()
    assert repr(tree.keys(b"a", b"m", reverse=True)) == "<TreeKeys of keys from b'a' to b'm', in reverse>"
    assert repr(tree.items()) == "<TreeItems of keys from None to None>"


def test_a_slice_is_a_view_of_items(tree):
    assert list(tree[b"a":b"b"]) == list(tree.items(b"a", b"b"))
    assert list(tree[:]) == list(MODEL.items())
    assert len(tree[b"b":]) == 4
    assert list(tree[:b"\0"]) == [(b"", MODEL[b""])]
    with pytest.raises(ValueError, match="step"):
        tree[b"a":b"b":2]
    with pytest.raises(TypeError):
        tree[1:2]


def test_a_view_sees_what_its_transaction_changes():
    with database() as db, db.write() as txn:
        view = txn.items(b"b", b"d")
        assert len(view) == 0
        txn.update({b"a": b"1", b"b": b"2", b"c": b"3", b"d": b"4"})
        assert list(view) == [(b"b", b"2"), (b"c", b"3")]
        assert len(view) == 2
        del txn[b"b"]
        assert list(view) == [(b"c", b"3")]


# ---------------------------------------------------------------- changing


def test_changing_like_a_dictionary(writing):
    writing[b"new"] = b"1"
    writing[bytearray(b"newer")] = memoryview(b"2")
    assert writing[b"newer"] == b"2"
    del writing[b"new"]
    with pytest.raises(KeyNotFoundError):
        del writing[b"new"]
    assert writing.pop(b"newer") == b"2"
    assert writing.pop(b"newer", None) is None
    with pytest.raises(KeyNotFoundError):
        writing.pop(b"newer")
    assert writing.setdefault(b"d") == b""
    assert writing.setdefault(b"d", b"other") == b""
    assert writing.setdefault(b"e", bytearray(b"set")) == b"set"
    assert writing.pop(memoryview(b"e")) == b"set"
    assert writing.popitem() == MODEL.peekitem()
    assert writing.popitem(0) == (b"", MODEL[b""])
    assert writing.delete(b"d")
    assert not writing.delete(b"d")
    assert writing.put(b"x", b"1")
    assert not writing.put(b"x", b"2", overwrite=False)
    assert writing[b"x"] == b"1"
    assert writing.delete_range(b"a", b"b") == 7
    assert writing.delete_range(prefix_stop := b"\xff") == 3 - 1
    assert prefix_stop not in writing
    assert list(writing) == [b"\0", b"\0\0", b"b", b"x"]
    assert writing.delete_range(stop=b"b") == 2
    writing.clear()
    assert len(writing) == 0
    with pytest.raises(KeyNotFoundError):
        writing.popitem()
    writing.clear()


def test_update_takes_mappings_and_pairs(writing):
    writing.clear()
    writing.update({b"a": b"1"})
    writing.update([(b"b", b"2"), [b"c", b"3"]])
    writing.update((bytes([65 + at]), b"generated") for at in range(3))
    writing.update(SortedDict({b"d": b"4"}))
    writing.update()
    writing.update([])
    assert dict(writing) == {
        b"A": b"generated", b"B": b"generated", b"C": b"generated", b"a": b"1", b"b": b"2", b"c": b"3", b"d": b"4",
    }  # fmt: skip
    writing.update(writing.items(prefix=b"z"))
    other = dict(writing)
    writing.update(writing)
    assert dict(writing) == other


@pytest.mark.parametrize("wrong", [5, None, [1], [(b"a",)], [(b"a", b"b", b"c")], [None]])
def test_update_of_what_are_no_pairs(writing, wrong):
    with pytest.raises(TypeError):
        writing.update(wrong)
    assert dict(writing) == MODEL


def test_update_passes_on_what_its_source_raises(writing):
    def source():
        yield b"a", b"1"
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        writing.update(source())
    assert writing[b"a"] == b"1", "what came before it is there"


@pytest.mark.parametrize("wrong", STRANGERS, ids=repr)
def test_wrong_types_for_changing(writing, wrong):
    for call in (
        lambda: writing.__setitem__(wrong, b""),
        lambda: writing.__setitem__(b"a", wrong),
        lambda: writing.put(wrong, b""),
        lambda: writing.put(b"a", wrong),
        lambda: writing.delete(wrong),
        lambda: writing.setdefault(wrong, b""),
        lambda: writing.setdefault(b"new", wrong),
    ):
        with pytest.raises(TypeError):
            call()
    with pytest.raises(KeyError):
        del writing[wrong]
    with pytest.raises(KeyError):
        writing.pop(wrong)
    assert writing.pop(wrong, 3) == 3
    assert dict(writing) == MODEL


def test_keys_of_the_greatest_length(writing):
    limit = fmt.max_key_size(4096)
    writing[b"k" * limit] = b"v"
    with pytest.raises(cowdb.KeySizeError):
        writing[b"k" * (limit + 1)] = b"v"
    assert writing.get(b"k" * (limit + 1)) is None
    assert b"k" * 100_000 not in writing
    assert writing.floor(b"k" * 100_000) == (b"k" * limit, b"v")
    assert not writing.delete(b"k" * 100_000)
    assert writing.delete_range(b"k" * 100_000, b"l" * 100_000) == 0


# ---------------------------------------------------------------- get_view


@pytest.mark.parametrize("length", [0, 10, 1024, 1025, 100_000])
def test_a_view_outlives_its_transaction_and_the_database(length):
    disk = MemoryDisk()
    db = open_on(disk, "/db", page_size=4096)
    value = bytes(range(256)) * (length // 256) + bytes(length % 256)
    with db.write() as txn:
        txn[b"k"] = value
        own = txn.get_view(b"k")
        assert own == value
        assert own.readonly
    with db.read() as snapshot:
        view = snapshot.get_view(bytearray(b"k"))
    assert view.readonly
    part = view[length // 3 : length // 2]
    for _ in range(5):
        with db.write() as txn:
            txn[b"k"] = b"\xee" * length
            txn[b"other"] = b"\xdd" * 50_000
    assert view == value
    with db.write() as txn:
        held = txn.get_view(b"other")
        assert held == b"\xdd" * 50_000
        txn[b"other"] = b"new" * 20_000
        assert txn.get_view(b"other") == b"new" * 20_000
        assert held == b"\xdd" * 50_000
    db.close()
    assert view == value
    del view
    assert part == value[length // 3 : length // 2]
    assert held == b"\xdd" * 50_000
    assert own == value


def test_get_view_of_what_was_written_early():
    with database(memory_budget=0) as db, db.write() as txn:
        txn[b"k"] = b"x" * 9000
        txn[b"l"] = b"y" * 9000
        assert txn.get_view(b"k") == b"x" * 9000
        assert txn.get_view(b"nothing") is None


def test_a_tree_that_ended_refuses(tree):
    view = tree.items()
    tree.close()
    calls = [
        lambda: len(tree),
        lambda: len(view),
        lambda: list(view),
        lambda: tree[b"a"],
        tree.first,
        tree.peekitem,
        tree.count,
        lambda: tree.get_view(b"a"),
        tree.cursor,
        lambda: list(tree),
        lambda: list(reversed(tree)),
        lambda: b"a" in tree,
        lambda: b"a" in tree.keys(),  # noqa: SIM118 - the view is meant
    ]
    if hasattr(tree, "put"):
        calls += [
            lambda: tree.__setitem__(b"a", b"b"),
            lambda: tree.__delitem__(b"a"),
            lambda: tree.pop(b"a"),
            tree.popitem,
            tree.clear,
            lambda: tree.delete_range(b"a", b"b"),
            lambda: tree.setdefault(b"a", b"b"),
            lambda: tree.update({b"a": b"b"}),
        ]
    for call in calls:
        with pytest.raises(ClosedError):
            call()


def test_many_entries_as_a_mapping():
    items = numbered(3000)
    with database() as db:
        with db.write() as txn:
            txn.update(items)
            assert txn == dict(items)
        with db.read() as snapshot:
            assert snapshot == dict(items)
            assert list(snapshot.keys(limit=3)) == [key for key, _ in items[:3]]
            assert len(snapshot.items(b"key00001000", b"key00002000")) == 1000


@pytest.mark.parametrize("kind", ["writing", "fresh"])
def test_a_slice_or_a_prefix_is_deleted_as_it_is_read(kind):
    with tree_of(kind) as tree:
        model = dict(MODEL)
        for low, high in ((b"ab", b"ac"), (b"x", b"y"), (None, b"a"), (b"b", None)):
            for key in list(tree.keys(low, high)):
                del model[key]
            del tree[low:high]
            assert dict(tree.items()) == model
        tree.update(MODEL)
        assert tree.delete_range(prefix=b"ab") == 3
        assert tree.delete_range(prefix=b"ab") == 0
        assert tree.delete_range(b"ac", prefix=b"a") == 1
        assert tree.delete_range(prefix=b"\xff") == 3
        assert dict(tree.items()) == {
            k: v for k, v in MODEL.items() if k[:2] not in {b"ab", b"ac"} and k[:1] != b"\xff"
        }
        del tree[:]
        assert len(tree) == 0
        with pytest.raises(ValueError, match="no step"):
            del tree[b"a":b"b":2]
        with pytest.raises(TypeError, match="encode"):
            del tree["a":]
        with pytest.raises(TypeError, match="slice"):
            tree[b"a":b"b"] = b""


def test_what_is_shown_of_trees_and_cursors():
    with database() as db:
        with db.write() as txn:
            named = txn.tree("named", create=True)
            named.update(MODEL)
            cursor = named.cursor()
            assert repr(named) == f"<cowdb.WriteTree, {len(MODEL)} entries>"
            assert repr(cursor) == "<cowdb.Cursor, at no entry>"
            cursor.seek(b"ab")
            assert repr(cursor) == "<cowdb.Cursor, at b'ab'>"
        assert repr(named) == "<cowdb.WriteTree, closed>"
        with db.read() as snap:
            assert repr(snap.tree("named")) == f"<cowdb.Tree, {len(MODEL)} entries>"


@pytest.mark.parametrize("limit", ["x", 1.5, b"1", [], object()])
@pytest.mark.parametrize("view", ["keys", "values", "items"])
def test_a_limit_that_is_no_whole_number_is_refused_where_it_is_given(view, limit):
    with tree_of("snapshot") as tree:
        with pytest.raises(TypeError, match="limit is a whole number of entries or None, not "):
            getattr(tree, view)(limit=limit)
        assert len(list(getattr(tree, view)(limit=True))) == 1  # as in a slice
