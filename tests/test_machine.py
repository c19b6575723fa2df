"""A database against sorted dictionaries, under any sequence of what a program can do to it.

One write transaction at a time, with cursors and iterators in it, and snapshots of any age, each with the model of the
moment when it was taken.  The checker (I1 to I10) has the last word.
"""

from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
)
from kernel import far_items
from sortedcontainers import SortedDict

from cowdb import format as fmt
from cowdb.database import open_on
from cowdb.errors import KeyNotFoundError
from cowdb.testing import MemoryDisk

PAGE = 4096
LIMIT = fmt.max_key_size(PAGE)

keys = st.one_of(
    st.integers(0, 500).map(lambda number: b"key%05d" % number),
    st.binary(max_size=5),
    st.builds(
        lambda number, fill, end: b"%02d" % number + fill * (LIMIT - 4) + b"%d" % end,
        st.integers(0, 40),
        st.sampled_from([b"x", b"\0", b"\xff"]),
        st.integers(0, 9),
    ),
)
values = st.one_of(
    st.binary(max_size=30),
    st.sampled_from([0, 1, 500, 1023, 1024, 1025, 4064, 4065, 8160, 9000]).map(lambda length: b"%d" % length * length)
    .map(lambda raw: raw[: len(raw) // 4 + 1]),
    st.integers(0, 20_000).map(bytes),
)  # fmt: skip
bounds = st.none() | keys
CHANGES = st.sampled_from(["nothing", "delete", "delete the next", "put before", "put behind", "replace"])
BEGINNINGS = {
    "empty": [],
    "short": [(b"key%05d" % number, b"%d" % number * 20) for number in range(0, 500, 2)],
    "mixed": [(b"key%05d" % number, b"%d" % number * (number % 23 * 20)) for number in range(0, 500, 3)],
    "far": far_items(80, 900),
    "far keys": far_items(160, 0),
}
names = st.sampled_from([None, None, "users", "words", "größe", "x" * 300])


def opened(content):
    """A model that may be changed without changing `content`."""
    return {name: SortedDict(tree) for name, tree in content.items()}


class Machine(RuleBasedStateMachine):
    snapshots = Bundle("snapshots")
    cursors = Bundle("cursors")

    def __init__(self):
        super().__init__()
        self.disk = MemoryDisk()
        self.db = None
        self.txn = None
        self.committed = {None: SortedDict()}
        self.model = None
        self.live = []

    # ------------------------------------------------------------ opening and closing

    def open(self):
        self.db = open_on(self.disk, "/db", page_size=PAGE, durability=self.durability, **self.options)

    @initialize(
        durability=st.sampled_from(["full", "lazy"]),
        budget=st.sampled_from([None, None, 0, 30_000]),
        main=st.sampled_from(sorted(BEGINNINGS)),
        users=st.sampled_from(sorted(BEGINNINGS)),
    )
    def create(self, durability, budget, main, users):
        self.durability = durability
        self.options = {} if budget is None else {"memory_budget": budget}
        self.open()
        with self.db.write() as txn:
            txn.update(BEGINNINGS[main])
            txn.tree("users", create=True).update(BEGINNINGS[users])
        self.committed = {None: SortedDict(BEGINNINGS[main]), "users": SortedDict(BEGINNINGS[users])}
        self.write()

    @precondition(lambda self: self.txn is None)
    @rule(durability=st.sampled_from(["full", "lazy"]))
    def reopen(self, durability):
        for snapshot, _ in self.live:
            snapshot.close()
        self.live.clear()
        self.db.close()
        self.durability = durability
        self.open()
        assert self.db.check() == []
        with self.db.read() as snapshot:
            self.compare(snapshot, self.committed)

    @precondition(lambda self: self.txn is None)
    @rule()
    def sync(self):
        self.db.sync()

    @precondition(lambda self: self.txn is None)
    @rule()
    def check(self):
        assert self.db.check() == []

    # ------------------------------------------------------------ snapshots

    @rule(target=snapshots)
    def read(self):
        if len(self.live) >= 6:
            return multiple()
        pair = (self.db.read(), opened(self.committed))
        self.live.append(pair)
        return pair

    @rule(pair=snapshots, low=bounds, high=bounds, reverse=st.booleans())
    def look_into_a_snapshot(self, pair, low, high, reverse):
        snapshot, model = pair
        if snapshot.closed:
            return
        assert list(snapshot.items(low, high, reverse=reverse)) == ranged(model[None], low, high, reverse)

    @rule(pair=consumes(snapshots))
    def end_a_snapshot(self, pair):
        snapshot, model = pair
        if snapshot.closed:
            return
        self.compare(snapshot, model)
        snapshot.close()
        self.live = [other for other in self.live if other is not pair]

    # ------------------------------------------------------------ the write transaction

    @precondition(lambda self: self.txn is None)
    @rule()
    def write(self):
        self.txn = self.db.write()
        self.model = opened(self.committed)

    @precondition(lambda self: self.txn is not None)
    @rule()
    def commit(self):
        self.compare(self.txn, self.model)
        self.txn.commit()
        self.committed = self.model
        self.end()

    @precondition(lambda self: self.txn is not None)
    @rule()
    def abort(self):
        self.txn.abort()
        self.end()

    def end(self):
        self.txn = self.model = None

    def tree(self, name, *, create=False):
        """The tree in the transaction and its model; the main one if there is no such tree."""
        if name is None or (name not in self.model and not create):
            return self.txn, self.model[None]
        return self.txn.tree(name, create=create), self.model.setdefault(name, SortedDict())

    writing = precondition(lambda self: self.txn is not None)

    @writing
    @rule(name=names, key=keys, value=values, overwrite=st.booleans(), create=st.booleans())
    def put(self, name, key, value, overwrite, create):
        tree, model = self.tree(name, create=create)
        assert tree.put(key, value, overwrite=overwrite) == (overwrite or key not in model)
        if overwrite or key not in model:
            model[key] = value

    @writing
    @rule(name=names, key=keys)
    def delete(self, name, key):
        tree, model = self.tree(name)
        assert tree.delete(key) == (model.pop(key, None) is not None)

    @writing
    @rule(name=names, start=st.integers(-200, 200), count=st.integers(1, 120), step=st.sampled_from([1, -1, 3]))
    def delete_many(self, name, start, count, step):
        tree, model = self.tree(name)
        for key in model.keys()[start : start + count][::step]:
            assert tree.pop(key) == model.pop(key)

    @writing
    @rule(name=names, count=st.integers(1, 120), width=st.sampled_from([0, 300, 1500]))
    def append(self, name, count, width):
        tree, model = self.tree(name)
        last = model.peekitem()[0] if model else b""
        stem = last if len(last) < 30 else last[:30] + b"\xff"
        for number in range(count):
            key = stem + b"%03d" % number
            if key > last:
                assert tree.put(key, bytes(width), append=True)
                model[key] = bytes(width)

    @writing
    @rule(name=names, start=st.integers(0, 200), count=st.integers(1, 200), stop=st.booleans())
    def delete_a_stretch(self, name, start, count, stop):
        tree, model = self.tree(name)
        gone = model.keys()[start : start + count if stop else None]
        if gone:
            low, high = gone[0], model.keys()[start + len(gone)] if start + len(gone) < len(model) else None
            assert tree.delete_range(low, high) == len(gone)
            for key in gone:
                del model[key]

    @writing
    @rule(name=names, low=bounds, high=bounds)
    def delete_range(self, name, low, high):
        tree, model = self.tree(name)
        gone = [key for key, _ in ranged(model, low, high)]
        assert tree.delete_range(low, high) == len(gone)
        for key in gone:
            del model[key]

    @writing
    @rule(
        name=names,
        start=st.integers(0, 400),
        count=st.integers(0, 300),
        step=st.sampled_from([1, 3, -1]),
        width=st.sampled_from([3, 200]),
        create=st.booleans(),
    )
    def update(self, name, start, count, step, width, create):
        tree, model = self.tree(name, create=create)
        numbers = range(start, start + count)[::step]
        items = [(b"key%05d" % number, b"%d" % number * width) for number in numbers]
        tree.update(items)
        model.update(items)

    @writing
    @rule(name=names)
    def drop(self, name):
        if name is None:
            self.txn.clear()
            self.model[None].clear()
        elif name in self.model:
            self.txn.drop(name)
            del self.model[name]
        else:
            with pytest.raises(KeyNotFoundError):
                self.txn.drop(name)

    @writing
    @rule(old=names, new=names)
    def rename(self, old, new):
        if old is None or new is None or old not in self.model:
            return
        if new in self.model and new != old:
            with pytest.raises(ValueError, match="already"):
                self.txn.rename(old, new)
        else:
            self.txn.rename(old, new)
            self.model[new] = self.model.pop(old)

    # ------------------------------------------------------------ questions

    @writing
    @rule(name=names, key=keys, index=st.integers(-600, 600))
    def ask(self, name, key, index):
        tree, model = self.tree(name)
        left, right = model.bisect_left(key), model.bisect_right(key)
        assert tree.get(key) == model.get(key)
        assert (key in tree) == (key in model)
        assert len(tree) == len(model)
        assert tree.bisect_left(key) == left
        assert tree.bisect_right(key) == right
        assert tree.ceiling(key) == (model.peekitem(left) if left < len(model) else None)
        assert tree.floor(key) == (model.peekitem(right - 1) if right else None)
        if -len(model) <= index < len(model):
            assert tree.peekitem(index) == model.peekitem(index)

    @writing
    @rule(name=names, low=bounds, high=bounds, reverse=st.booleans(), pattern=st.lists(CHANGES, min_size=1, max_size=7))
    def scan_while_changing(self, name, low, high, reverse, pattern):
        """Each step of a scan gives what comes next in the tree as it is at that moment."""
        tree, model = self.tree(name)
        place = None
        for changes, (key, value) in enumerate(tree.items(low, high, reverse=reverse)):
            rest = ranged(model, low, high, reverse)
            if place is not None:
                rest = [item for item in rest if (item[0] < place if reverse else item[0] > place)]
            assert (key, value) == rest[0]
            place = key
            if changes > 40:
                break
            what = pattern[changes % len(pattern)]
            if what == "delete":
                tree.delete(key)
                del model[key]
            elif what == "delete the next":
                other = model.keys()[(model.index(key) + 1) % len(model)]
                tree.delete(other)
                del model[other]
            elif what in ("put before", "put behind"):
                other = key[: LIMIT - 2] + b"~" if what == "put behind" else key[:-1]
                tree.put(other, b"put" * 100)
                model[other] = b"put" * 100
            elif what == "replace":
                tree.put(key, b"r" * 1500)
                model[key] = b"r" * 1500
        else:
            rest = ranged(model, low, high, reverse)
            assert not [key for key, _ in rest if place is None or (key < place if reverse else key > place)]

    # ------------------------------------------------------------ cursors of the main tree

    @writing
    @rule(target=cursors)
    def cursor(self):
        return {"cursor": self.txn.cursor(), "key": None, "of": self.txn}

    @writing
    @rule(
        twin=cursors,
        what=st.sampled_from(["next", "prev", "first", "last", "seek", "exact", "delete", "put"]),
        key=keys,
        times=st.integers(1, 5),
    )
    def move(self, twin, what, key, times):
        if twin["of"] is not self.txn:
            return
        cursor, model = twin["cursor"], self.model[None]

        def at(index):
            twin["key"] = model.keys()[index] if 0 <= index < len(model) else None
            return twin["key"] is not None

        if what in ("next", "prev"):
            for _ in range(times):
                here = twin["key"]
                if what == "next":
                    assert cursor.next() == at(0 if here is None else model.bisect_right(here))
                else:
                    assert cursor.prev() == at((len(model) if here is None else model.bisect_left(here)) - 1)
        elif what == "first":
            assert cursor.first() == at(0)
        elif what == "last":
            assert cursor.last() == at(len(model) - 1)
        elif what == "seek":
            assert cursor.seek(key) == at(model.bisect_left(key))
        elif what == "exact":
            assert cursor.seek_exact(key) == (key in model)
            twin["key"] = key if key in model else None
        elif what == "delete":
            assert cursor.delete() == (model.pop(twin["key"], None) is not None)
        else:
            assert cursor.put(key, b"by cursor")
            model[key] = b"by cursor"
            twin["key"] = key

    @writing
    @rule(twin=cursors)
    def look_at_a_cursor(self, twin):
        if twin["of"] is self.txn:
            model = self.model[None]
            wanted = (twin["key"], model[twin["key"]]) if twin["key"] in model else None
            assert twin["cursor"].item == wanted

    # ------------------------------------------------------------ always

    @invariant()
    def the_newest_state_is_what_was_committed(self):
        if self.db is not None:
            with self.db.read() as snapshot:
                assert len(snapshot) == len(self.committed[None])

    def compare(self, transaction, model):
        assert transaction.trees() == sorted((name for name in model if name), key=str.encode)
        for name, wanted in model.items():
            tree = transaction if name is None else transaction.tree(name)
            assert list(tree.items()) == list(wanted.items())
            assert len(tree) == len(wanted)

    def teardown(self):
        if self.db is None:
            return
        if self.txn is not None:
            self.txn.abort()
        for snapshot, model in self.live:
            self.compare(snapshot, model)
            snapshot.close()
        assert self.db.check() == []
        self.db.close()
        self.open()
        assert self.db.check() == []
        with self.db.read() as snapshot:
            self.compare(snapshot, self.committed)
        self.db.close()
        self.disk.check_mappings()


def ranged(model, low, high, reverse=False):  # noqa: FBT002 - as the tree's own
    """The items of a model with low <= key < high."""
    found = [item for item in model.items() if (low is None or item[0] >= low) and (high is None or item[0] < high)]
    return found[::-1] if reverse else found


@pytest.mark.untraced
class TestMachine(Machine.TestCase):
    """Run by pytest; `COWDB_MACHINE_EXAMPLES` asks for more."""

    settings = settings(
        max_examples=int(os.environ.get("COWDB_MACHINE_EXAMPLES", "150")),
        stateful_step_count=50,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
