"""What the crash tests share: workloads that keep a model beside the database, and the oracle.

A `Run` drives a database on a disk that records every store.  It notes for each
transaction at which length of the trace it was begun and from which length on it
is promised to survive.  So for a power cut at any index it knows which states
are allowed:

    trace      0 ......... 12 ........ 20 ........ 31
    states     empty       A begun     A durable   B begun
    allowed    empty       empty, A    A           A, B

`judge` opens what a power cut has left, compares, runs the checker, and lives on.
"""

from __future__ import annotations

import contextlib
import itertools

import cowdb
from cowdb import core as core_module
from cowdb.database import open_on
from cowdb.testing import CrashDisk

PATH = "/db"
ID = bytes(range(16))


def clock():
    return 1_700_000_000_000_000_000


def opened(disk, **options):
    return open_on(disk, PATH, clock=clock, database_id=ID, **{"page_size": 4096, **options})


def content(database):
    """Everything: the main tree under None, each named tree under its name."""
    with database.read() as snapshot:
        found = {None: dict(snapshot.items())}
        for name in snapshot.trees():
            found[name] = dict(snapshot.tree(name).items())
    return found


def vanish(database):
    """The process is gone: nothing is closed, nothing is written."""
    core, database._core = database._core, None
    if core is not None:
        core_module.cores.pop(core.key, None)


class Run:
    """A workload on `disk`, with the states that it goes through."""

    def __init__(self, disk=None, below=None, **options):
        self.disk = CrashDisk() if disk is None else disk
        self.recorder = self.disk if below is None else below  # the one with the trace, if another stands before it
        self.options = options
        self.states = [(0, {None: {}})]  # (begun at, state)
        self.promised = []  # (from this length of the trace on, index in states)
        self.model = {None: {}}
        self.readers = []
        self.db = None
        self.open()
        self.promise()

    @property
    def now(self):
        return len(self.recorder.trace)

    def promise(self):
        self.promised.append((self.now, len(self.states) - 1))

    def open(self):
        self.db = opened(self.disk, **self.options)

    def close(self):
        for snapshot, _ in self.readers:
            snapshot.close()
        self.readers.clear()
        self.db.close()
        self.promise()

    def reopen(self):
        self.close()
        self.open()

    def change(self, work, durability="full"):
        """One transaction: `work` gets the transaction and the model, and changes both alike."""
        after = {name: dict(tree) for name, tree in self.model.items()}
        with self.db.write(durability=durability) as transaction:
            work(transaction, after)
            self.states.append((self.now, after))
        self.model = after
        if durability == "full":
            self.promise()

    def put(self, key, value, durability="full", tree=None):
        def work(transaction, model):
            target = transaction if tree is None else transaction.tree(tree, create=True)
            target.put(key, value)
            model.setdefault(tree, {})[key] = value

        self.change(work, durability)

    def delete(self, key, durability="full"):
        def work(transaction, model):
            assert transaction.delete(key) == (key in model[None])
            model[None].pop(key, None)

        self.change(work, durability)

    def delete_range(self, start, stop, durability="full"):
        def work(transaction, model):
            transaction.delete_range(start, stop)
            model[None] = {
                key: value
                for key, value in model[None].items()
                if not ((start is None or key >= start) and (stop is None or key < stop))
            }

        self.change(work, durability)

    def fill(self, count, size=40, durability="full", first=0):
        def work(transaction, model):
            for number in range(first, first + count):
                key, value = b"%06d" % number, bytes([number % 251]) * size
                transaction.put(key, value)
                model[None][key] = value

        self.change(work, durability)

    def drop(self, name, durability="full"):
        def work(transaction, model):
            transaction.drop(name)
            del model[name]

        self.change(work, durability)

    def sync(self):
        self.db.sync()
        self.promise()

    def begin_reader(self):
        self.readers.append((self.db.read(), {name: dict(tree) for name, tree in self.model.items()}))

    def end_reader(self):
        snapshot, model = self.readers.pop(0)
        assert dict(snapshot.items()) == model[None]
        snapshot.close()

    def finish(self):
        """End without the writes of a clean close."""
        for snapshot, model in self.readers:
            assert dict(snapshot.items()) == model[None]
            snapshot.close()
        self.readers.clear()
        if self.db is not None:
            vanish(self.db)

    def allowed(self, index):
        """The states that a power cut behind `index` operations may leave, oldest first; None: no file as well."""
        least = max((state for at, state in self.promised if at <= index), default=None)
        newest = max(number for number, (at, _) in enumerate(self.states) if at <= index)
        return [None] * (least is None) + [state for _, state in self.states[least or 0 : newest + 1]]


def judge(disk, allowed, *, create=False, live_on=True):
    """Open what is left, compare it with the allowed states, check it, and live on.  Gives the state it found."""
    if PATH not in disk.paths():
        assert create, "the file is gone"
    db = opened(disk)
    try:
        found = content(db)
        assert found in allowed, f"{summary(found)} is none of {[summary(state) for state in allowed]}"
        assert db.check() == []
        if live_on:
            after = live(db, found)
            db.close()
            db = opened(disk)
            assert content(db) == after, "what was committed after the recovery is gone"
            assert db.check() == []
            db.close()
    finally:
        vanish(db)
    return found


def live(db, model):
    """Three more commits: damage to the free list shows late."""
    model = {name: dict(tree) for name, tree in model.items()}
    for number in range(3):
        with db.write() as transaction:
            transaction[b"after%d" % number] = bytes([number]) * 30
            model[None][b"after%d" % number] = bytes([number]) * 30
            if number == 1:
                transaction[b"long"] = b"L" * 9000
                model[None][b"long"] = b"L" * 9000
                first = transaction.first()[0]
                if first != b"long":
                    del transaction[first]
                    del model[None][first]
        assert db.check() == []
    assert content(db) == model
    return model


def summary(state):
    if state is None:
        return "no file"
    return {name: f"{len(tree)} entries, {hash(frozenset(tree.items())) & 0xFFFF:x}" for name, tree in state.items()}


def cut_everywhere(run, *, limit=24, sector=4096, hostile=(), seed=0, seen=None, live_on=True, every=1):
    """Cut the power before each operation of the run's trace, in up to `limit` ways; how many states were judged."""
    seen = set() if seen is None else seen
    judged = 0
    recorder = run.recorder
    for index in range(0, len(recorder.trace) + 1, every):
        allowed = run.allowed(index)
        names = repr([summary(state) for state in allowed])
        for image in recorder.images(index, limit=limit, sector=sector, hostile=hostile, seed=seed):
            key = (image.digest(), names)
            if key in seen:
                continue
            seen.add(key)
            judged += 1
            try:
                judge(image, allowed, create=None in allowed or not index_has_file(run, index), live_on=live_on)
            except (AssertionError, cowdb.Error, OSError) as error:
                raise AssertionError(f"after a power cut at {image.origin}: {type(error).__name__}: {error}") from error
    return judged


def index_has_file(run, index):
    return any(at <= index for at, _ in run.promised)


def cut_twice(run, *, limit=6, inner=4, sector=4096, seen=None):
    """As `cut_everywhere`, but the power is cut again everywhere in the recovery and the first commit after it."""
    seen = set() if seen is None else seen
    judged = 0
    for index in range(len(run.recorder.trace) + 1):
        allowed = run.allowed(index)
        for image in run.recorder.images(index, limit=limit, sector=sector):
            if PATH not in image.paths() or image.digest() in seen:
                continue
            seen.add(image.digest())
            second = CrashDisk(image)
            db = opened(second)
            before = content(db)
            assert before in allowed
            begun = len(second.trace)
            with db.write() as transaction:
                transaction[b"again"] = b"x" * 5000
            after = {**before, None: {**before[None], b"again": b"x" * 5000}}
            done = len(second.trace)
            vanish(db)
            for place in range(begun, done + 1):
                expected = [after] if place == done else [before, after]
                for other in second.images(place, limit=inner, sector=sector):
                    key = (other.digest(), place == done)
                    if key in seen:
                        continue
                    seen.add(key)
                    judged += 1
                    try:
                        judge(other, expected)
                    except (AssertionError, cowdb.Error, OSError) as error:
                        raise AssertionError(f"after {image.origin} and then {other.origin}: {error!r}") from error
    return judged


@contextlib.contextmanager
def running(*arguments, **options):
    """A run that ends without a clean close, whatever happens."""
    run = Run(*arguments, **options)
    try:
        yield run
    finally:
        run.finish()


def sequences(alphabet, length):
    for size in range(1, length + 1):
        yield from itertools.product(sorted(alphabet), repeat=size)
