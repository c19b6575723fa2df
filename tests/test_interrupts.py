"""No memory, or Ctrl-C, at any line of begin, abort, commit, sync, open and close.

An exception that no line announces is raised at each line in turn.  Whatever it hits, the
writer lock does not stay behind, no descriptor does, and what was broken off can be repeated.
`fuzz/oom.py` does the same with allocations, in processes of its own; here it is every line, once.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import linecache
import os
import random
import signal
import sys
import threading
import time
import weakref

import pytest

import cowdb
from cowdb import core as core_module
from cowdb import kernel
from cowdb.database import open_on
from cowdb.locks import Turn, WriterLock
from cowdb.storage import FileDisk
from cowdb.testing import MemoryDisk

ENGINE = (
    "transaction.py",
    "writing.py",
    "pager.py",
    "draft.py",
    "group.py",
    "stats.py",
    "catalog.py",
    "database.py",
    "core.py",
    "opening.py",
    "locks.py",
    "sharing.py",
    "bytelocks.py",
    "lockfile.py",
    "storage.py",
    "poison.py",
)
CLEANING_UP = ("with ", "try:", "if mine:", "self._mutex.release(", "self._lock.release(")
"""A trace function can raise where no signal is looked at and nothing is allocated: on the way out of a block that
has a lock.  These lines are left out."""
DESCRIPTORS = ("storage.py", "bytelocks.py", "lockfile.py")
"""Nor is anything looked at between forgetting a descriptor and closing it, in the `close` and the finalizer of these."""


class StruckError(MemoryError):
    """What comes out of nowhere."""


def strike(act, place, modules=ENGINE):
    """Call `act`, and raise at the line number `place` of those that it runs through; where that was, or None."""
    lines = itertools.count()
    where = None

    def trace(frame, event, _argument):
        nonlocal where
        code = frame.f_code
        name = os.path.basename(code.co_filename)
        if name not in modules or "cowdb" not in code.co_filename:
            return None
        if event == "line":
            text = linecache.getline(code.co_filename, frame.f_lineno).strip()
            left_out = text.startswith(CLEANING_UP) or (code.co_name in {"close", "__del__"} and name in DESCRIPTORS)
            if not left_out and next(lines) == place:
                sys.settrace(None)
                where = f"{code.co_name}: {text}"
                raise StruckError(where)
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        act()
    except StruckError:
        pass
    finally:
        sys.settrace(before)
    return where


def struck(act_of, begin, least):
    """`begin()` gives what a case needs; each line of `act_of(it)` is struck once. Yields (it, where) for each."""
    for place in itertools.count():
        it = begin()
        where = strike(act_of(it), place)
        yield it, where
        if where is None:
            assert place > least, "nothing was struck: the lines have moved"
            return


pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture
def path(tmp_path):
    return os.fspath(tmp_path / "db")


@pytest.fixture(autouse=True)
def _no_collection():
    """A collection would move the lines."""
    gc.collect()
    gc.freeze()  # so that a collection looks only at what a case has made
    gc.disable()
    yield
    gc.enable()
    gc.unfreeze()


def files(path):
    """The descriptors of this process that lead to the database or its lock file."""
    found = []
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            found += [name for name in [os.readlink(f"/proc/self/fd/{number}")] if name.startswith(path)]
    return found


def goes_on(db, path, where):
    """The next writer finds the lock free, or is told that writing has stopped; the file is whole; nothing stays open."""
    with contextlib.suppress(cowdb.PoisonedError, cowdb.ClosedError), db.write(timeout=1) as transaction:
        transaction[b"next"] = b"n" * 3000
    with contextlib.suppress(cowdb.PoisonedError):
        db.close()
    disk = db._options.get("disk", FileDisk())
    del db
    assert not core_module.cores, where
    with open_on(disk, path, lock_timeout=1) as again:
        assert again.check() == [], where
        with again.write(timeout=1) as transaction:
            transaction[b"life"] = b"goes on"
        assert again[b"0"] in {b"0", b"struck"}
    if isinstance(disk, FileDisk):
        os.unlink(path)


def opened(path, disk=None):
    db = open_on(disk or MemoryDisk(), path, page_size=4096, lock_timeout=1)
    db.write(durability="lazy").abort()  # what is done once is not struck
    with db.write(durability="lazy") as transaction:
        transaction.update((b"%d" % number, b"%d" % number) for number in range(100))
    return db


def begun(path):
    db = opened(path)
    transaction = db.write(durability="lazy")
    transaction[b"0"] = b"struck"
    return db, transaction


@pytest.mark.untraced
@pytest.mark.parametrize("durability", ["full", "lazy"])
def test_a_beginning_that_is_interrupted_leaves_the_lock_free(path, durability):
    """The story: no memory for the transaction, when the lock was taken already; nobody could write any more."""

    def begin(db):
        return lambda: db.write(durability=durability).abort()

    for db, where in struck(begin, lambda: opened(path), 60):
        gc.collect()  # the line behind the beginning may be the one that was struck
        goes_on(db, path, where)


def test_an_abort_that_is_interrupted_can_be_repeated(path):
    """The story: no memory for a list in the middle of an abort; a second abort did nothing, and the lock was kept."""
    for (db, transaction), where in struck(lambda it: it[1].abort, lambda: begun(path), 20):
        transaction.abort()
        assert transaction.closed
        with pytest.raises(cowdb.ClosedError):
            transaction.commit()
        goes_on(db, path, where)


def test_an_abort_that_is_interrupted_and_forgotten_is_ended_by_its_finalizer(path):
    for it, where in struck(lambda it: it[1].abort, lambda: list(begun(path)), 20):
        del it[1]
        gc.collect()
        goes_on(it[0], path, where)


@pytest.mark.untraced
@pytest.mark.parametrize("durability", ["full", "lazy"])
def test_a_block_that_is_interrupted_leaves_the_lock_free(path, durability):
    """The story: the commit was broken off, and then its clean-up too; the block was left and the lock was kept."""

    def block(db):
        def act():
            with db.write(durability=durability) as transaction:
                transaction[b"0"] = b"struck"

        return act

    for db, where in struck(block, lambda: opened(path), 150):
        gc.collect()
        goes_on(db, path, where)


def test_a_sync_that_is_interrupted_leaves_the_lock_free(path):
    for db, where in struck(lambda db: db.sync, lambda: opened(path), 40):
        goes_on(db, path, where)


@pytest.mark.untraced
def test_a_close_that_is_interrupted_can_be_repeated(path):
    """The story: no memory while the file was let go; it stayed half open, and OPEN kept everybody out."""
    for db, where in struck(lambda db: db.close, lambda: opened(path, FileDisk()), 60):
        goes_on(db, path, where)


def test_a_close_that_is_interrupted_under_a_writer_can_be_repeated(path):
    for (db, _transaction), where in struck(lambda it: it[0].close, lambda: begun(path), 60):
        with contextlib.suppress(cowdb.PoisonedError):
            db.close()
        assert db.closed
        goes_on(db, path, where)


@pytest.mark.untraced
@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="the system does not tell what is open")
@pytest.mark.parametrize("create", [False, True])
def test_an_opening_that_is_interrupted_leaves_nothing_open(path, create):
    """The story: no memory between the descriptor and the object that was to own it."""
    if not create:
        cowdb.open(path).close()

    def opening(kept):
        return lambda: kept.append(cowdb.open(path, lock_timeout=1))

    for kept, where in struck(opening, list, 100):
        for db in kept:
            db.close()
        gc.collect()
        assert not core_module.cores, where
        assert files(path) == [], where
        cowdb.open(path, lock_timeout=1).close()
        if create:
            for name in os.listdir(os.path.dirname(path)):  # the temporary file may be left, as after a crash
                os.unlink(os.path.join(os.path.dirname(path), name))


# ---------------------------------------------------------------- the queue


def test_a_release_can_be_repeated_and_takes_the_lock_from_nobody_else():
    lock = WriterLock()
    first, second = Turn(), Turn()
    lock.acquire(0, first)
    lock.release(first)
    lock.acquire(0, second)
    lock.release(first)
    assert lock.holds(second)
    lock.release(second)
    assert lock._holder is None


def test_a_handing_over_that_is_interrupted_is_gone_on_with():
    """Whoever comes next wakes the thread that has the lock by now, and sleeps."""
    for place in itertools.count():
        lock = WriterLock()
        turn = Turn()
        lock.acquire(0, turn)
        got = threading.Event()

        def wait(lock=lock, got=got):
            mine = Turn()
            lock.acquire(5, mine)
            got.set()
            lock.release(mine)

        thread = threading.Thread(target=wait)
        thread.start()
        while not lock._waiting:
            pass
        where = strike(lambda lock=lock, turn=turn: lock.release(turn), place, ("locks.py",))
        lock.release(turn)
        assert got.wait(5), where
        thread.join()
        assert not lock._mutex.locked(), where
        lock.acquire(0)
        if where is None:
            assert place > 10
            return


# ---------------------------------------------------------------- by real signals


@pytest.mark.untraced
@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs interval timers")
@pytest.mark.parametrize("what", ["write", "read"])
def test_a_real_interrupt_at_any_moment_leaves_no_lock_behind(what, seconds=4.0):
    """Ctrl-C may come where a trace function never is: between the return of a call and the naming of its result."""
    rng = random.Random(what)
    armed = False

    def act():
        if what == "write":
            with db.write(durability="lazy") as transaction:
                transaction[b"k"] = b"v"
        else:
            snapshot = db.read()
            snapshot.get(b"a")
            snapshot.close()

    def ring(_signal, _frame):
        nonlocal armed
        if armed:
            armed = False
            raise KeyboardInterrupt

    def fresh():
        found = open_on(MemoryDisk(), "x", page_size=4096, lock_timeout=2.0)
        found[b"a"] = b"1"
        return found

    def locked():
        pager = db._core.pager
        found = (pager.writer_lock._mutex, pager.group._mutex, getattr(pager.gate, "_lock", None))
        return [lock for lock in found if hasattr(lock, "locked") and lock.locked()]

    db = fresh()
    begun = time.perf_counter()
    for _ in range(100):
        act()
    usual = (time.perf_counter() - begun) / 100
    before = signal.signal(signal.SIGALRM, ring)
    interrupts = 0
    try:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            try:
                try:
                    armed = True
                    signal.setitimer(signal.ITIMER_REAL, rng.random() * usual * 1.2 + 1e-6)
                    act()
                finally:
                    armed = False
            except KeyboardInterrupt:
                interrupts += 1
            assert not locked(), interrupts
            if db._core.pager.poison.reason is not None:  # it was in the middle of a meta page: the writer has stopped
                db.close()
                db = fresh()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert interrupts > 20
    db[b"after"] = b"1"
    assert db[b"after"] == b"1"
    gc.collect()
    if what == "write" or kernel.FORM == "compiled":
        assert db.readers() == []
    db.close()
    core_module.cores.clear()  # a plain read that was struck as it was closed has left a user behind, which is known


def test_a_write_transaction_that_is_forgotten_ends_at_once():
    """The garbage collector need not come by, which it may never do while all others wait for the lock."""
    db = open_on(MemoryDisk(), "x", page_size=4096, lock_timeout=0)
    gc.disable()
    try:
        transaction = db.write()
        transaction[b"k"] = b"v"
        with pytest.warns(ResourceWarning, match="forgotten"):
            del transaction
        db[b"a"] = b"1"
    finally:
        gc.enable()
    db.close()


def test_a_closed_file_is_let_go_at_once(tmp_path):
    db = cowdb.open(tmp_path / "db")
    db[b"a"] = b"1"
    pager = weakref.ref(db._core.pager)
    gc.disable()
    try:
        db.close()
        assert pager() is None
    finally:
        gc.enable()


@pytest.mark.skipif(kernel.FORM == "compiled", reason="nothing interrupts a finalizer of C as it begins")
@pytest.mark.parametrize("then", ["write", "sync", "check", "close"])
def test_a_finalizer_that_is_broken_off_as_it_begins_keeps_no_turn(path, monkeypatch, then):
    """The story: Ctrl-C struck the first line of it, and the thread was told for ever that it was writing already."""
    db = opened(path)
    transaction = db.write()
    transaction[b"0"] = b"forgotten"
    struck_at = []

    def trace(frame, event, _argument):
        if event == "call" and frame.f_code.co_name == "__del__" and frame.f_code.co_filename.endswith("writing.py"):
            sys.settrace(None)
            struck_at.append(frame.f_lineno)
            raise StruckError

    monkeypatch.setattr(sys, "unraisablehook", lambda _: None)  # who keeps the error keeps the transaction, too
    before = sys.gettrace()
    sys.settrace(trace)
    try:
        del transaction
    finally:
        sys.settrace(before)
    assert struck_at, "it has no finalizer"
    if then == "write":
        db[b"1"] = b"written"
    elif then == "sync":
        db.sync()
    elif then == "check":
        assert db.check() == []
    else:
        db.close()
        db = opened(path)
    goes_on(db, path, then)


@pytest.mark.skipif(kernel.FORM == "compiled", reason="there it is one step")
@pytest.mark.parametrize("act", ["stats", "info", "copy", "read", "write"])
def test_an_interrupt_just_when_a_snapshot_is_had_leaves_it_to_nobody(path, tmp_path, act):
    """The story: `stats` and `copy` had it before it had a name, so it stayed pinned, and the file stayed open."""
    db = cowdb.open(path, page_size=4096)
    db[b"0"] = b"0"
    gate = db._core.pager.gate
    real = gate.begin
    struck_at = []

    def begin(held=None):
        found = real(held)
        if held is not None:
            struck_at.append(found)
            raise KeyboardInterrupt
        return found

    gate.begin = begin
    acts = {"stats": db.stats, "info": db.info, "copy": lambda: db.copy(tmp_path / "copy"), "write": db.write}
    if act == "read":
        with db.read() as snapshot:
            assert snapshot[b"0"] == b"0"
    else:
        with pytest.raises(KeyboardInterrupt):
            acts[act]()
        assert len(struck_at) == 1
    del gate.begin
    assert db.readers() == []
    db.close()
    assert not core_module.cores
