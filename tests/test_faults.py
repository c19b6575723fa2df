"""Errors of the disk at every call: nothing is lost, the error says what happened, and the database goes on when it can."""

from __future__ import annotations

import errno
import gc
import itertools
from collections.abc import Callable
from typing import NamedTuple

import pytest
from crashing import PATH, clock, content, opened, vanish

import cowdb
from cowdb.testing import FaultyDisk, MemoryDisk, SimulatedKill

EMPTY = {None: {}}

# ---------------------------------------------------------------- scenarios

# Each is a list of steps.


class Step(NamedTuple):
    """What is done to the database, and what it makes of a model of it."""

    work: Callable
    after: Callable


def put(key, value, durability="full", tree=None):
    def work(db, _model):
        with db.write(durability=durability) as transaction:
            target = transaction if tree is None else transaction.tree(tree, create=True)
            target[key] = value

    return Step(work, lambda model: {**model, tree: {**model.get(tree, {}), key: value}})


def fill(count, size=60):
    entries = {b"%05d" % number: b"f" * size for number in range(count)}

    def work(db, _model):
        with db.write() as transaction:
            transaction.update(entries)

    return Step(work, lambda model: {**model, None: {**model[None], **entries}})


def _clear(db, _model):
    with db.write() as transaction:
        transaction.clear()


def _look(db, model):
    assert content(db) == model


clear = Step(_clear, lambda model: {**model, None: {}})
sync = Step(lambda db, _model: db.sync(), lambda model: model)
look = Step(_look, lambda model: model)

SCENARIOS = {
    "small": [put(b"a", b"1"), put(b"b", b"2" * 9000), put(b"a", b"3"), look],
    "trees": [put(b"a", b"1", tree="t"), put(b"b", b"2", tree="u"), put(b"a", b"3", tree="t"), look],
    "lazy": [put(b"a", b"1", "lazy"), put(b"b", b"2" * 3000, "lazy"), sync, put(b"c", b"3", "lazy"), look, sync],
    "growth": [fill(200), fill(400, size=150), put(b"large", b"x" * 100_000), look],
    "shrink": [put(b"large", b"x" * 1_300_000), clear, put(b"a", b"1"), put(b"b", b"2"), put(b"c", b"3"), look],
}
TUNED = {
    "early writes": ([fill(300), put(b"a", b"b"), fill(300, size=200), look], {"memory_budget": 9000}),
    "two flushes": ([put(b"a", b"1"), put(b"b", b"2" * 9000, "lazy"), put(b"c", b"3"), look], {"two_flush_limit": 0}),
}
ALL = {**{name: (steps, {}) for name, steps in SCENARIOS.items()}, **TUNED}


class Play:
    """A scenario on a disk that may fail, with what is allowed to be found afterwards."""

    def __init__(self, disk, steps, options):
        self.disk = disk
        self.steps = steps
        self.options = options
        self.model = EMPTY
        self.allowed = [EMPTY]  # any of these may be found by who opens the file next
        self.errors = []
        self.db = None

    def run(self):
        """Play it; errors that a caller may expect are noted, others get through."""
        try:
            self.db = opened(self.disk, **self.options)
        except OSError as error:
            self.errors.append(error)
            return
        for step in self.steps:
            self._step(step)
        try:
            self.db.close()
        except cowdb.Error as error:
            self.errors.append(error)
        else:
            if not any(isinstance(error, cowdb.PoisonedError) for error in self.errors):
                self.allowed = [self.model]

    def _step(self, step):
        after = step.after(self.model)
        poisoned = self.db._core.pager.poison.reason is not None
        try:
            step.work(self.db, self.model)
        except cowdb.FullError as error:
            self.errors.append(error)
            assert error.errno in {errno.ENOSPC, errno.EDQUOT}
            assert "not committed" in str(error)
            assert self.db._core.pager.poison.reason is None
        except cowdb.PoisonedError as error:
            self.errors.append(error)
            assert self.db._core.pager.poison.reason is not None
            if "not committed" in str(error) or poisoned:
                return
            self.allowed = [*self.allowed, self.model, after]
        else:
            if poisoned:
                return
            self.model = after
            lazy = self.db._core.pager.meta.transaction != (self.db._core.pager.words.durable or [0])[0]
            self.allowed = [*self.allowed, self.model] if lazy else [self.model]


def after_the_end(play, below):
    """The next process: it opens the file, finds an allowed state, and can write."""
    if play.db is not None:
        vanish(play.db)
    db = opened(below)
    try:
        found = content(db)
        assert found in play.allowed, (len(play.allowed), play.errors)
        assert db.check() == []
        db[b"after"] = b"x" * 3000
        assert db.check() == []
        assert content(db) == {**found, None: {**found[None], b"after": b"x" * 3000}}
        db.close()
    finally:
        vanish(db)


def each_call(name, arm, every=1):
    """Play the scenario with a fault at each call in turn."""
    steps, options = ALL[name]
    struck = 0
    for at in itertools.count(1, every):
        below = MemoryDisk()
        faulty = FaultyDisk(below)
        fault = arm(faulty, at)
        play = Play(faulty, steps, options)
        play.run()
        faulty.heal()
        if PATH in below.paths():
            after_the_end(play, below)
        else:
            assert play.allowed == [EMPTY]
        if not fault.fired:
            assert play.errors == []
            return struck
        struck += 1
    raise AssertionError


# ---------------------------------------------------------------- a fault at every call

KINDS = [(errno.EIO, 0), (errno.ENOSPC, 0), (errno.EDQUOT, None), (errno.EIO, 700)]


@pytest.mark.untraced
@pytest.mark.guarantee
@pytest.mark.parametrize("forever", [False, True], ids=["once", "for good"])
@pytest.mark.parametrize(("error", "partial"), KINDS, ids=["EIO", "ENOSPC", "EDQUOT, half written", "EIO, torn"])
@pytest.mark.parametrize("name", ALL)
def test_a_fault_at_every_call_that_changes_something(name, error, partial, forever):
    struck = 0
    for call in ("write", "resize", "reserve", "flush"):
        struck += each_call(
            name,
            lambda disk, at, call=call: disk.fail(error, call=call, at=at, forever=forever, partial=partial),
        )
    assert struck >= 8


@pytest.mark.parametrize("error", [errno.EIO, errno.ENOMEM])
@pytest.mark.parametrize("name", ["growth", "early writes"])
def test_a_mapping_that_fails(name, error):
    assert each_call(name, lambda disk, at: disk.fail(error, call="map", at=at)) >= 2


@pytest.mark.parametrize("call", ["open", "create", "link", "remove", "flush_directory", "size", "read", "identity"])
def test_a_fault_while_opening_leaves_nothing_half_made(call):
    for at in itertools.count(1):
        below = MemoryDisk()
        faulty = FaultyDisk(below)
        fault = faulty.fail(errno.EIO, call=call, at=at)
        try:
            db = opened(faulty)
            db.close()
        except OSError as error:
            assert error.errno == errno.EIO
        faulty.heal()
        again = opened(faulty)
        assert content(again) == EMPTY
        assert again.check() == []
        again.close()
        if not fault.fired:
            assert at > 1
            return


@pytest.mark.untraced
@pytest.mark.guarantee
@pytest.mark.parametrize("partial", [0, None])
@pytest.mark.parametrize("name", ALL)
def test_a_kill_at_every_call(name, partial):
    steps, options = ALL[name]
    for at in itertools.count(1):
        below = MemoryDisk()
        faulty = FaultyDisk(below)
        fault = faulty.kill(at=at, partial=partial)
        play = Play(faulty, [], options)
        try:
            play.db = opened(faulty, **options)
            for step in steps:
                after = step.after(play.model)
                play.allowed = [*play.allowed, after] if at_risk(play) else [play.model, after]
                step.work(play.db, play.model)
                play.model = after
                if not at_risk(play):
                    play.allowed = [play.model]
            play.db.close()
        except SimulatedKill:
            pass
        if PATH in below.paths():
            after_the_end(play, below)
        gc.collect()
        if not fault.fired:
            return


def at_risk(play):
    pager = play.db._core.pager
    return pager.words.durable is None or pager.meta.transaction != pager.words.durable[0]


# ---------------------------------------------------------------- full, and room again


@pytest.mark.guarantee
@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("call", ["write", "resize", "reserve"])
def test_room_again_without_opening_again(call, error):
    faulty = FaultyDisk(MemoryDisk())
    db = opened(faulty)
    db[b"a"] = b"1"
    faulty.fail(error, call=call, forever=True)
    for _ in range(3):
        with pytest.raises(cowdb.FullError, match="not committed") as caught:
            db[b"large"] = b"x" * 200_000
        assert caught.value.errno == error
        assert content(db) == {None: {b"a": b"1"}}
    faulty.heal()
    db[b"large"] = b"x" * 200_000
    assert len(db[b"large"]) == 200_000
    assert db.check() == []
    db.close()


def test_a_full_disk_is_no_reason_to_poison_but_a_failed_meta_is():
    faulty = FaultyDisk(MemoryDisk())
    db = opened(faulty)
    db[b"a"] = b"1"
    faulty.fail(errno.ENOSPC, call="write", at=2)  # the first one writes pages, the second the meta page
    with pytest.raises(cowdb.PoisonedError, match="unknown until"):
        db[b"a"] = b"2"
    with pytest.raises(cowdb.PoisonedError, match="writing has stopped"):
        db[b"a"] = b"3"
    assert db[b"a"] == b"1"
    db.close()
    db = opened(faulty)
    assert db[b"a"] in {b"1", b"2"}
    db.close()


@pytest.mark.untraced
@pytest.mark.guarantee
@pytest.mark.parametrize("kind", ["max_size", "disk"])
@pytest.mark.parametrize("page_size", [4096, 8192])
@pytest.mark.parametrize(
    ("pages", "size", "batch"), [(16, 900, 1), (16, 30, 10), (64, 900, 1), (64, 20_000, 1), (300, 100, 50)]
)
def test_deleting_works_on_a_full_database(kind, page_size, pages, size, batch):
    disk = MemoryDisk(capacity=pages * page_size if kind == "disk" else None)
    options = {"page_size": page_size, "max_size": pages * page_size if kind == "max_size" else None}
    db = opened(disk, **options)
    numbers = itertools.count()
    with pytest.raises(cowdb.FullError):
        while True:
            with db.write() as transaction:
                for _ in range(batch):
                    number = next(numbers)
                    transaction[b"%08d" % (number * 7919 % 100_000)] = b"v" * size
    keys = list(content(db)[None])
    assert len(keys) * size > pages * page_size // (32 if pages == 16 else 8), "it was full too early"
    for key in keys[::3]:
        del db[key]
    left = [key for key in keys if key not in set(keys[::3])]
    assert list(content(db)[None]) == left
    assert db.check() == []
    db.close()
    db = opened(disk, **options)
    for key in left[::2]:
        del db[key]
    assert list(content(db)[None]) == left[1::2]
    with db.write() as transaction:
        transaction.clear()
    db[b"room"] = b"again" * 100
    assert content(db) == {None: {b"room": b"again" * 100}}
    assert db.check() == []
    assert db.stats().file_size <= pages * page_size
    db.close()


@pytest.mark.guarantee
def test_max_size_is_never_exceeded_and_a_larger_one_helps():
    disk = MemoryDisk()
    db = opened(disk, max_size=40 * 4096)
    with pytest.raises(cowdb.FullError, match="max_size"):
        db[b"large"] = b"x" * 200_000
    assert content(db) == EMPTY
    with pytest.raises(cowdb.FullError, match="max_size"):
        for number in itertools.count():
            db[b"%d" % number] = b"x" * 1000
    assert disk.open(PATH, read_only=True).size() <= 40 * 4096
    db.close()
    db = opened(disk, max_size=400 * 4096)
    db[b"large"] = b"x" * 200_000
    assert db.check() == []
    db.close()


def test_a_full_free_tree_is_searched_to_its_end_before_the_database_counts_as_full():
    """The story: the search for free pages gave up after a few records that an old reader held, and began
    at the first one again each time; with `max_size` reached, a database with much room said that it was full."""
    disk = MemoryDisk()
    db = opened(disk, max_size=1000 * 4096)
    with db.write() as transaction:
        for number in range(12_000):
            transaction[b"%06d" % number] = b"v" * 100
    reader = db.read()
    for first in range(0, 1600, 400):  # pages that the reader sees go to the free tree
        with db.write() as transaction:
            for number in range(first, first + 400, 2):
                transaction[b"%06d" % number] = b"w" * 100
    db.close()
    assert reader.closed
    db = opened(disk, max_size=1000 * 4096)
    for number in range(300):
        db[b"%06d" % (number * 40)] = b"x" * 100
    assert db.check() == []
    db.close()


# ---------------------------------------------------------------- a failed flush


@pytest.mark.guarantee
def test_a_failed_flush_is_never_retried_and_readers_go_on():
    faulty = FaultyDisk(MemoryDisk())
    db = opened(faulty)
    db[b"a"] = b"1"
    before = faulty.calls["flush"]
    faulty.fail(errno.EIO, call="flush")
    with pytest.raises(cowdb.PoisonedError) as caught:
        db[b"a"] = b"2"
    assert caught.value.errno == errno.EIO
    for act in (db.sync, db.write):
        with pytest.raises(cowdb.PoisonedError, match="open it again"):
            act()
    assert db[b"a"] == b"1"
    assert db.check() == []
    assert db.stats().transaction == 2
    db.close()
    assert faulty.calls["flush"] == before + 1


def test_a_failed_sync_poisons_too():
    faulty = FaultyDisk(MemoryDisk())
    db = opened(faulty, durability="lazy")
    db[b"a"] = b"1"
    faulty.fail(errno.EIO, call="flush")
    with pytest.raises(cowdb.PoisonedError):
        db.sync()
    assert db._core.pager.words.busy
    with pytest.raises(cowdb.PoisonedError):
        db[b"b"] = b"2"
    assert db[b"a"] == b"1"
    db.close()


def test_a_failed_re_assertion_poisons():
    disk = MemoryDisk()
    db = opened(disk)
    db[b"a"] = b"1"
    vanish(db)
    faulty = FaultyDisk(disk)
    db = opened(faulty)
    faulty.fail(errno.EIO, call="flush")
    with pytest.raises(cowdb.PoisonedError, match="re-asserting"):
        db[b"b"] = b"2"
    with pytest.raises(cowdb.PoisonedError):
        db.write()
    assert db[b"a"] == b"1"
    db.close()


def test_damage_that_is_found_while_re_asserting_is_reported_as_damage():
    disk = MemoryDisk()
    db = opened(disk)
    db[b"a"] = b"1"
    vanish(db)
    db = opened(disk)
    page = db._core.pager.meta.main.root.number
    storage = disk.open(PATH, read_only=False)
    storage.write(page * 4096 + 2000, [b"damage"])
    with pytest.raises(cowdb.CorruptionError):
        db[b"b"] = b"2"
    db.close()


@pytest.mark.parametrize("call", ["write", "flush"])
def test_an_error_while_closing_says_that_nothing_is_lost(call):
    faulty = FaultyDisk(MemoryDisk())
    db = opened(faulty)
    db[b"a"] = b"1"
    faulty.fail(errno.EIO, call=call)
    with pytest.raises(cowdb.PoisonedError, match="nothing is lost"):
        db.close()
    faulty.heal()
    db = opened(faulty)
    assert db[b"a"] == b"1"
    db.close()


def test_a_tail_that_cannot_be_cut_only_costs_space():
    faulty = FaultyDisk(MemoryDisk())
    db = opened(faulty)
    db[b"large"] = b"x" * 2_000_000
    db[b"a"] = b"1"
    faulty.fail(errno.EIO, call="resize", forever=True)
    del db[b"large"]
    for number in range(3):
        db[b"%d" % number] = b"2"
    assert db.stats().file_size > 2_000_000
    assert db.check() == []
    faulty.heal()
    db[b"b"] = b"3"
    assert db.stats().file_size < 1_000_000
    db[b"c"] = b"y" * 700_000
    assert len(db[b"c"]) == 700_000
    assert db.check() == []
    db.close()


# ---------------------------------------------------------------- early writes


def test_early_writes_that_fail_leave_a_transaction_that_can_only_be_aborted():
    faulty = FaultyDisk(MemoryDisk())
    db = opened(faulty, memory_budget=9000)
    db[b"a"] = b"1"
    faulty.fail(errno.ENOSPC, call="write")
    transaction = db.write()
    with pytest.raises(cowdb.FullError):
        for number in range(1000):
            transaction[b"%d" % number] = b"x" * 100
    with pytest.raises(cowdb.ClosedError):  # its pages are in part neither in memory nor on the disk
        transaction.get(b"a")
    with pytest.raises(cowdb.Error):
        transaction.commit()
    db[b"b"] = b"2"
    assert content(db) == {None: {b"a": b"1", b"b": b"2"}}
    assert db.check() == []
    db.close()


def test_the_clock_of_these_tests_stands_still():
    assert clock() == clock()
