"""Calls that write, of many threads: done together, each with its own result, and each exactly once.

The writer lock is held by the test while the threads come.  The first leads, and waits for it; the others leave what
they want in the queue:

    test       begin ............................ commit
    thread 1         leads, waits for its turn ..........  its call, and the others', in one transaction
    thread 2, 3            in the queue, asleep ..........  return
"""

from __future__ import annotations

import contextlib
import errno
import gc
import linecache
import os
import random
import signal
import sys
import threading
import time
import weakref

import pytest
from crashing import content, judge, opened, vanish
from threads import Brake, Job, until

import cowdb
from cowdb import combining as combining_module
from cowdb.errors import ClosedError, Error, FullError, KeyNotFoundError, KeySizeError, LockTimeoutError, PoisonedError
from cowdb.testing import CrashDisk, FaultyDisk, MemoryDisk

SIZE = 4096


@pytest.fixture
def db(tmp_path):
    with cowdb.open(tmp_path / "db", page_size=SIZE) as database:
        database[b"first"] = b"0"
        yield database
        idle(database)
        assert database.check() == []


def idle(db):
    """Whether nothing has stayed behind."""
    combiner = db._combiner
    assert not combiner._waiting
    assert not combiner._lead.locked()
    assert combiner._full is None


def waiting(db, count):
    """Until one leads, and so many wait."""
    until(lambda: len(db._combiner._waiting) == count)


def together(db, *calls):
    """A thread for each call, made one after the other, which are done in one transaction."""
    with db.write():
        return queued(db, *calls)


def queued(db, *calls):
    """The threads, the first of which leads, while the others are in the queue."""
    jobs = [Job(calls[0])]
    until(lambda: pager_of(db).writer_lock._waiting)
    for number, call in enumerate(calls[1:], 1):
        jobs.append(Job(call))
        waiting(db, number)
    return jobs


def pager_of(db):
    return db._core.pager


def count(transaction, key):
    """A change that tells how often it was committed."""
    value = int(transaction.get(key, b"0")) + 1
    transaction[key] = b"%d" % value
    return value


def counting(db, key):
    return lambda: db._combiner.write(db, count, key)


# ---------------------------------------------------------------- done together


@pytest.mark.guarantee
def test_calls_that_wait_are_done_in_one_transaction_and_each_has_its_own_outcome(db):
    before = db.stats()
    jobs = together(
        db,
        lambda: db.put(b"a", b"1"),
        lambda: db.put(b"first", b"9", overwrite=False),
        lambda: db.delete(b"first"),
        lambda: db.delete(b"first"),
        lambda: db.__delitem__(b"nobody"),
        lambda: db.__setitem__(b"b", b"2"),
        lambda: db.put(b"", b"empty"),
        lambda: db.put(b"k" * 5000, b""),
        lambda: db.put(b"large", b"v" * 50_000),
    )
    for job in jobs:
        job.end()
    after = db.stats()
    assert [job.result for job in jobs] == [True, False, True, False, None, None, True, None, True]
    assert [type(job.error) for job in jobs] == [
        type(None), type(None), type(None), type(None), KeyNotFoundError,
        type(None), type(None), KeySizeError, type(None),
    ]  # fmt: skip
    assert (after.commits - before.commits, after.flushes - before.flushes) == (1, 1)
    with db.read() as snapshot:
        assert dict(snapshot.items()) == {b"": b"empty", b"a": b"1", b"b": b"2", b"large": b"v" * 50_000}


def test_a_transaction_of_nothing_but_errors(db):
    before = db.stats().commits
    jobs = together(db, *[lambda: db.__delitem__(b"nobody")] * 3, lambda: db.delete(b"nobody"))
    assert [type(job.end().error) for job in jobs] == [KeyNotFoundError] * 3 + [type(None)]
    assert jobs[3].result is False
    assert db.stats().commits == before


def test_an_error_goes_when_it_was_looked_at(db):
    """It has the frames of the call, which have the value; they must not have it."""

    class Value(bytearray):
        pass

    value = Value(b"v")
    known = weakref.ref(value)
    gc.disable()
    try:
        with pytest.raises(TypeError):
            db.put("text", value)
        del value
        assert known() is None
    finally:
        gc.enable()


@pytest.mark.guarantee
def test_nobody_returns_before_it_is_durable_and_nobody_reads_it_earlier():
    brake = Brake()
    db = opened(CrashDisk(during_flush=brake))
    with db.write():
        jobs = queued(db, *[lambda key=key: db.put(key, b"v") for key in (b"a", b"b", b"c")])
        brake.on = True
    brake.wait()
    time.sleep(0.12)  # longer than a thread sleeps without looking
    assert all(job.is_alive() for job in jobs)
    assert content(db) == {None: {}}
    brake.release()
    assert [job.outcome() for job in jobs] == [True] * 3
    assert content(db) == {None: {b"a": b"v", b"b": b"v", b"c": b"v"}}
    idle(db)
    db.close()


def test_threads_that_were_served_together_are_waited_for(db, monkeypatch):
    """The second transaction has as many calls as the first, though its leader found nobody in the queue."""
    combiner = db._combiner
    for job in together(db, *[counting(db, b"%d" % n) for n in range(4)]):
        job.outcome()
    assert combiner._last == 4
    before = db.stats().commits
    monkeypatch.setattr(combiner, "_seconds", 30.0)
    monkeypatch.setattr(combining_module, "_PATIENCE", 30.0)
    leader = Job(counting(db, b"0"))
    until(lambda: combiner._full is not None)
    others = [Job(counting(db, b"%d" % n)) for n in range(1, 4)]
    for job in [leader, *others]:
        assert job.outcome() == 2
    assert db.stats().commits == before + 1


def test_threads_that_do_not_come_back_are_not_waited_for_long(db):
    combiner = db._combiner
    for job in together(db, *[counting(db, b"%d" % n) for n in range(4)]):
        job.outcome()
    combiner._seconds = 0.01
    assert Job(counting(db, b"0")).outcome() == 2
    assert combiner._last == 1
    for job in together(db, *[counting(db, b"%d" % n) for n in range(2)]):
        job.outcome()
    combiner._ended -= 100
    combiner._seconds = 50.0
    assert Job(counting(db, b"0")).outcome() == 4  # at once: those have other things to do


@pytest.mark.parametrize("durability", ["full", "lazy"])
def test_a_storm(tmp_path, durability):
    """Each thread has keys of its own, so that it knows what it must find; some blocks come in between."""
    with cowdb.open(tmp_path / "db", page_size=SIZE, durability=durability) as db:

        def work(number):
            rng = random.Random(number)
            model = {}
            for turn in range(150):
                key = b"%d-%d" % (number, rng.randrange(20))
                kind = rng.randrange(6)
                if kind < 3:
                    model[key] = b"%d" % turn * rng.choice((1, 30, 700))
                    db[key] = model[key]
                elif kind == 3:
                    assert db.delete(key) == (model.pop(key, None) is not None)
                elif kind == 4:
                    assert db.put(key, b"new", overwrite=False) == (key not in model)
                    model.setdefault(key, b"new")
                else:
                    with db.write() as transaction:
                        model[key] = transaction[key] = b"block"
                with db.read() as snapshot:
                    assert snapshot.get(key) == model.get(key)
            return model

        jobs = [Job(lambda number=number: work(number)) for number in range(8)]
        for job in jobs:
            job.join(60)
        expected = {key: value for job in jobs for key, value in job.outcome().items()}
        assert content(db) == {None: expected}
        assert db.check() == []
        idle(db)


# ---------------------------------------------------------------- failures


@pytest.mark.guarantee
def test_a_failed_flush_fails_them_all():
    disk = CrashDisk()
    faulty = FaultyDisk(disk)
    db = opened(faulty)
    db[b"first"] = b"0"
    with db.write():
        jobs = queued(db, *[lambda key=key: db.put(key, b"v") for key in (b"a", b"b", b"c")])
        faulty.fail(errno.EIO, call="flush")
    for job in jobs:
        job.end()
        assert isinstance(job.error, PoisonedError), job.error
        assert "unknown" in str(job.error)
    assert len({id(job.error) for job in jobs}) == 3
    with pytest.raises(PoisonedError):
        db[b"d"] = b"v"
    assert content(db) == {None: {b"first": b"0"}}
    idle(db)
    vanish(db)
    allowed = [{None: {b"first": b"0"}}, {None: {b"first": b"0", b"a": b"v", b"b": b"v", b"c": b"v"}}]
    for image in disk.images(len(disk.trace), limit=20):
        judge(image, allowed)


@pytest.mark.guarantee
def test_who_finds_no_room_fails_alone(tmp_path):
    with cowdb.open(tmp_path / "db", page_size=SIZE, max_size=60 * SIZE) as db:
        db[b"first"] = b"0"
        for place in range(3):
            values = [b"v", b"v", b"v"]
            values[place] = b"v" * 60 * SIZE
            jobs = together(db, *[lambda n=n, value=value: db.put(b"%d" % n, value) for n, value in enumerate(values)])
            assert [type(job.end().error) for job in jobs] == [
                FullError if n == place else type(None) for n in range(3)
            ]
            assert content(db) == {None: {b"first": b"0"} | {b"%d" % n: b"v" for n in range(3) if n != place}}
            for n in range(3):
                db.delete(b"%d" % n)
        idle(db)


def test_a_change_that_breaks_off_in_the_middle_takes_no_other_along(db):
    class BrokenError(Error):
        pass

    def broken(transaction):
        transaction[b"half"] = b"done"
        transaction.changes.torn = True
        raise BrokenError

    for place in range(3):
        calls = [counting(db, b"%d" % n) for n in range(3)]
        calls[place] = lambda: db._combiner.write(db, broken)
        jobs = together(db, *calls)
        for n, job in enumerate(jobs):
            job.end()
            assert type(job.error) is (BrokenError if n == place else type(None)), job.error
    assert b"half" not in db.read()
    assert {key: value for key, value in content(db)[None].items() if key != b"first"} == dict.fromkeys(
        (b"0", b"1", b"2"), b"2"
    )


@pytest.mark.guarantee
def test_a_deadline_is_kept_and_what_was_given_up_is_not_done_later(tmp_path):
    with cowdb.open(tmp_path / "db", lock_timeout=0.2) as db:
        with db.write() as transaction:
            begun = time.monotonic()
            jobs = [Job(lambda key=key: db.put(key, b"v")) for key in (b"a", b"b", b"c", b"d")]
            for job in jobs:
                assert isinstance(job.end().error, LockTimeoutError)
            assert 0.15 < time.monotonic() - begun < 2.0
            transaction[b"mine"] = b"1"
        assert content(db) == {None: {b"mine": b"1"}}
        db[b"later"] = b"2"
        idle(db)


def test_closing_tells_all_who_wait(tmp_path):
    db = cowdb.open(tmp_path / "db")
    transaction = db.write()
    jobs = queued(db, *[lambda key=key: db.put(key, b"v") for key in (b"a", b"b", b"c")])
    closing = Job(db.close)
    until(lambda: db.closed)
    transaction.abort()
    closing.outcome()
    for job in jobs:
        assert isinstance(job.end().error, ClosedError)
    with pytest.raises(ClosedError):
        db[b"d"] = b"v"
    idle(db)


def test_a_thread_that_writes_already_is_refused_whoever_waits(db):
    with db.write() as transaction:
        jobs = queued(db, *[counting(db, b"%d" % n) for n in range(3)])
        for _ in range(2):
            with pytest.raises(Error, match="this thread has a write transaction open already"):
                db[b"k"] = b"v"
        transaction[b"k"] = b"w"
    for job in jobs:
        job.outcome()
    with db.read() as snapshot:
        assert snapshot[b"k"] == b"w"


def test_another_handle_of_the_same_file(db):
    with cowdb.open(db.path) as other:
        with db.write() as transaction:
            jobs = queued(db, *[counting(db, b"%d" % n) for n in range(2)])
            theirs = [Job(counting(other, b"%d" % n)) for n in range(2)]
            waiting(other, 1)
            with pytest.raises(Error, match="this thread has a write transaction open already"):
                other[b"k"] = b"v"
            transaction[b"k"] = b"w"
        assert sorted(job.outcome() for job in jobs + theirs) == [1, 1, 2, 2]


def test_a_read_only_handle(tmp_path):
    cowdb.open(tmp_path / "db").close()
    with cowdb.open(tmp_path / "db", read_only=True) as db:
        for _ in range(2):
            with pytest.raises(cowdb.ReadOnlyError):
                db[b"k"] = b"v"
        idle(db)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_does_not_wait_for_the_parents_leader(db):
    with db.write():
        jobs = queued(db, *[counting(db, b"%d" % n) for n in range(3)])
        child = os.fork()
        if not child:
            code = 1
            with contextlib.suppress(BaseException):
                assert not db._combiner._lead.locked()
                assert not db._combiner._waiting
                code = 0
            os._exit(code)
        assert os.waitpid(child, 0)[1] == 0
    for job in jobs:
        job.outcome()
    child = os.fork()
    if not child:
        with contextlib.suppress(BaseException):
            db[b"child"] = b"1"
            os._exit(0)
        os._exit(1)
    assert os.waitpid(child, 0)[1] == 0
    with db.read() as snapshot:
        assert snapshot[b"child"] == b"1"


# ---------------------------------------------------------------- power cuts


@pytest.mark.guarantee
def test_power_cuts_leave_what_was_done_together_whole():
    """What was acknowledged is there; what was done in one transaction is there as a whole, or not at all."""
    disk = CrashDisk()
    db = opened(disk)
    db[b"first"] = b"0"
    states = [{None: {b"first": b"0"}}]
    promised = [(len(disk.trace), 0)]
    begin = len(disk.trace)
    for turn in range(8):
        with db.write():
            keys = [b"%d-%d" % (turn, n) for n in range(5)]
            jobs = queued(db, *[lambda key=key: db.put(key, key * 60) for key in keys])
        for job in jobs:
            job.outcome()
        states.append({None: states[-1][None] | {key: key * 60 for key in keys}})
        promised.append((len(disk.trace), len(states) - 1))
    seen = set()
    for index in range(begin, len(disk.trace) + 1):
        least = max(number for at, number in promised if at <= index)
        for image in disk.images(index, limit=8, sector=SIZE):
            if (image.digest(), least) not in seen:
                seen.add((image.digest(), least))
                judge(image, states[least:])
    assert len(seen) > 20
    db.close()


# ---------------------------------------------------------------- interrupts


NOT_LOOKED_AT = (
    "with ",
    "try:",
    "finally:",
    "if mine:",
    "self._lead.release(",
    "raise",
    "except",
)
"""No signal is looked at there: nothing was called since the line before, or it is a call that ends before one is."""


def interrupting(number, where):
    """A trace function that raises at the `number`-th line of this module's code; it notes the line."""
    lines = 0

    def trace(frame, event, _argument):
        nonlocal lines
        if frame.f_code.co_filename != combining_module.__file__:
            return None
        if event == "line":
            text = linecache.getline(frame.f_code.co_filename, frame.f_lineno).strip()
            if not text.startswith(NOT_LOOKED_AT):
                lines += 1
                if lines == number:
                    where.append(f"{frame.f_code.co_name}: {text}")
                    sys.settrace(None)
                    raise KeyboardInterrupt
        return trace

    return trace


@pytest.mark.guarantee
@pytest.mark.parametrize("victim", [0, 1, 2])
def test_an_interrupt_at_any_line_leaves_nobody_waiting_and_no_call_is_done_twice(victim):
    """Ctrl-C may hit the leader or who waits, between any two lines."""
    struck = 0
    for number in range(1, 500):
        db = opened(MemoryDisk())
        where = []

        def interrupted(number=number, where=where, db=db):
            sys.settrace(interrupting(number, where))
            try:
                return counting(db, b"victim")()
            finally:
                sys.settrace(None)

        calls = [counting(db, b"%d" % n) for n in range(3)]
        calls[victim] = interrupted
        with db.write():
            jobs = []
            for call in calls:
                jobs.append(Job(call))
                until(lambda: not jobs[-1].is_alive() or len(db._combiner._waiting) + 1 >= len(jobs) or where)  # noqa: B023
        for n, job in enumerate(jobs):
            job.end()
            if n != victim:
                assert job.error is None, (where, job.error)
                assert job.result == 1, where
        found = content(db)[None]
        others = {b"%d" % n: b"1" for n in range(3) if n != victim}
        assert found in (others, others | {b"victim": b"1"}), where
        if jobs[victim].error is None:
            assert found[b"victim"] == b"1"
        db[b"after"] = b"1"
        idle(db)
        db.close()
        if not where:
            assert struck > 20
            return
        struck += 1
    raise AssertionError("it never ended")


def test_a_leader_that_is_interrupted_after_the_commit_hides_it_from_nobody(db, monkeypatch):
    """The story that it must not become: who waits does not hear of it, and does it once more."""
    release = combining_module._release
    told = []

    def interrupt(lock):
        if threading.current_thread() is jobs[0] and not told:
            told.append(lock)
            raise KeyboardInterrupt
        release(lock)

    jobs = []
    with db.write():
        jobs += queued(db, *[counting(db, b"%d" % n) for n in range(4)])
        monkeypatch.setattr(combining_module, "_release", interrupt)
    assert isinstance(jobs[0].end().error, KeyboardInterrupt)
    assert told
    assert [job.outcome() for job in jobs[1:]] == [1, 1, 1]
    assert content(db)[None] == {b"first": b"0"} | {b"%d" % n: b"1" for n in range(4)}


def test_a_leader_that_is_interrupted_twice_while_it_is_flushed():
    """What is sealed is flushed later: who waits makes sure before he does it once more."""
    disk = CrashDisk()
    db = opened(disk)
    db[b"first"] = b"0"
    pager = pager_of(db)
    wait_for = pager.group.wait_for
    seen = []

    def interrupt(*arguments):
        if not seen:
            seen.append(arguments)
            raise KeyboardInterrupt
        return wait_for(*arguments)

    pager.group.wait_for = interrupt
    pager._see_to_the_others = lambda error: (_ for _ in ()).throw(KeyboardInterrupt)
    with db.write():
        jobs = queued(db, *[counting(db, b"%d" % n) for n in range(3)])
    assert isinstance(jobs[0].end().error, KeyboardInterrupt)
    del pager._see_to_the_others
    assert [job.outcome() for job in jobs[1:]] == [1, 1]
    assert content(db)[None] == {b"first": b"0"} | {b"%d" % n: b"1" for n in range(3)}
    idle(db)
    db.close()


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="there are no timers here")
def test_a_signals_handler_that_writes_while_its_thread_waits_is_served_or_refused(db):
    """It must not wait for its own thread, which would lead when the handler has returned."""
    refused, done = [], []

    def handler(*_):
        try:
            db[b"handler"] = b"1"
            done.append(1)
        except Error as error:
            refused.append(error)

    before = signal.signal(signal.SIGALRM, handler)
    try:
        for leads in (True, False):
            transaction = Job(db.write).outcome()  # another thread's, so that this one may wait for it
            jobs = [] if leads else [Job(counting(db, b"leader"))]
            until(lambda: leads or pager_of(db).writer_lock._waiting)  # noqa: B023
            signal.setitimer(signal.ITIMER_REAL, 0.05)
            Job(lambda: (time.sleep(0.4), transaction.abort()))  # noqa: B023
            db[b"mine"] = b"1"
            for job in jobs:
                job.outcome()
            assert len(refused) + len(done) == 2 - leads
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert "this thread" in str(refused[0])


def test_a_signals_handler_that_writes_in_the_middle_of_what_its_thread_does_for_others(db):
    refused = []

    def change(transaction):
        with pytest.raises(Error, match="this thread is in the middle of a call") as caught:
            db[b"handler"] = b"1"
        refused.append(caught.value)
        transaction[b"k"] = b"v"

    jobs = together(db, lambda: db._combiner.write(db, change), counting(db, b"1"))
    for job in jobs:
        job.outcome()
    assert len(refused) == 1
    assert b"handler" not in db.read()


# ---------------------------------------------------------------- what a review found


class AlarmError(Exception):
    """What a signal's handler raises; no error of ours."""


class SlowFlush(FaultyDisk):
    """A disk whose flush takes so many seconds."""

    def __init__(self, seconds=0.0):
        self.seconds = seconds
        self.flushing = threading.Event()
        super().__init__(CrashDisk(), before=self.wait)

    def wait(self, call, _number):
        if call == "flush" and self.seconds:
            self.flushing.set()
            time.sleep(self.seconds)


def raising(transaction, key):
    """A change in whose middle the leader's handler raises, when it is done for another thread."""
    transaction[key] = b"1"
    if threading.current_thread() is not raising.of:
        raise AlarmError


@pytest.mark.guarantee
def test_what_a_handler_raises_while_its_thread_does_it_for_others_is_not_theirs(db):
    """The story: the other thread got the alarm, its entry was committed, and the leader never heard of it."""

    def theirs():
        raising.of = threading.current_thread()
        return db._combiner.write(db, raising, b"theirs")

    jobs = together(db, lambda: db.put(b"leader", b"1"), theirs)
    assert isinstance(jobs[0].end().error, AlarmError)
    assert jobs[1].end().error is None
    assert content(db)[None] == {b"first": b"0", b"theirs": b"1"}


def test_what_a_handler_raises_after_the_commit_makes_nobody_do_it_once_more(db, monkeypatch):
    """The story: `put` of a new key said that it was there already."""
    pager = pager_of(db)
    end_group = pager._end_group

    def raise_once(turn):
        end_group(turn)
        if jobs and threading.current_thread() is jobs[0]:
            monkeypatch.undo()
            raise AlarmError

    jobs = []
    with db.write():
        jobs += queued(db, *[lambda key=key: db.put(key, b"v", overwrite=False) for key in (b"a", b"b", b"c")])
        monkeypatch.setattr(pager, "_end_group", raise_once)
    assert isinstance(jobs[0].end().error, AlarmError)
    assert [job.outcome() for job in jobs[1:]] == [True, True]
    assert content(db)[None] == {b"first": b"0", b"a": b"v", b"b": b"v", b"c": b"v"}


@pytest.mark.guarantee
def test_closing_while_they_are_flushed_tells_nobody_that_it_failed():
    """The story: who was asleep for longer than a moment got `ClosedError`, and its entry was durable."""
    disk = SlowFlush()
    db = opened(disk)
    with db.write():
        jobs = queued(db, *[lambda key=key: db.put(key, b"v") for key in (b"a", b"b")])
        disk.seconds = 0.2
    assert disk.flushing.wait(5)
    closing = Job(db.close)
    assert [job.outcome() for job in jobs] == [True, True]
    closing.outcome()
    disk.seconds = 0.0
    again = opened(disk)
    assert content(again) == {None: {b"a": b"v", b"b": b"v"}}
    again.close()


@pytest.mark.guarantee
def test_a_handler_that_closes_while_its_thread_leads_loses_nothing_that_was_acknowledged(tmp_path):
    """The story: the leader's transaction was aborted, and both were told that it was committed."""
    path = tmp_path / "db"
    db = cowdb.open(path)

    def closing(transaction):
        transaction[b"leader"] = b"1"
        with contextlib.suppress(Error):
            db.close()
        return True

    jobs = together(db, lambda: db._combiner.write(db, closing), lambda: db.put(b"other", b"1"))
    told = {key for key, job in zip((b"leader", b"other"), jobs, strict=True) if job.end().error is None}
    db.close()
    with cowdb.open(path) as again, again.read() as snapshot:
        assert set(snapshot) == told


def test_nobody_waits_for_threads_that_were_held_up_by_something_else(db):
    """The story: after a lock that had been held for two seconds, the next call, alone, waited as long."""
    with db.write():
        jobs = queued(db, *[counting(db, b"%d" % n) for n in range(4)])
        time.sleep(0.3)
    for job in jobs:
        job.outcome()
    assert db._combiner._last == 4
    assert db._combiner._seconds < 0.25
    begun = time.perf_counter()
    db[b"k"] = b"v"
    assert time.perf_counter() - begun < 0.25


def test_a_flush_is_no_lock_that_somebody_holds():
    """The story: calls that came while a flush took longer than their `lock_timeout` were refused."""
    disk = SlowFlush()
    db = opened(disk, lock_timeout=0.05)
    db[b"first"] = b"0"
    disk.seconds = 0.3
    leader = Job(lambda: db.put(b"leader", b"v"))
    assert disk.flushing.wait(5)
    jobs = [Job(lambda key=key: db.put(key, b"v")) for key in (b"a", b"b", b"c")]
    assert [job.outcome() for job in [leader, *jobs]] == [True] * 4
    disk.seconds = 0.0
    idle(db)
    db.close()


@pytest.mark.parametrize("where", ["flush", "gate"])
def test_a_handler_in_the_middle_of_what_the_leader_needs_is_refused(where):
    """The story: both threads waited for each other for ever."""
    brake = Brake()
    disk = CrashDisk(during_flush=brake)
    db = opened(disk)
    db[b"first"] = b"0"
    refused = []

    def handler(*_):
        leader.append(Job(counting(db, b"leader")))
        until(db._combiner._lead.locked)
        time.sleep(0.02)  # it has the lead, and needs what this thread has
        with pytest.raises(Error, match="in the middle of a call to this database") as caught:
            db[b"handler"] = b"1"
        refused.append(caught.value)

    leader = []
    if where == "flush":
        disk.during_flush = lambda: leader or handler()
        with db.write() as transaction:
            transaction[b"block"] = b"1"
        disk.during_flush = brake
    else:
        with pager_of(db).gate._lock:  # as in the middle of one of its methods
            exec(compile("handler()", "readers.py", "exec"), {"__name__": "cowdb.readers", "handler": handler})
    assert leader[0].outcome() == 1
    assert len(refused) == 1
    assert b"handler" not in db.read()
    idle(db)
    db.close()


def test_what_a_key_is_made_of_is_found_out_by_its_own_thread(db):
    """The story: `__bytes__` of a subclass ran in the leader's thread, with the writer lock held."""
    ran = []

    class Key(bytes):
        def __bytes__(self):
            ran.append(threading.current_thread())
            return b"key"

    jobs = together(db, lambda: db.put(b"leader", b"1"), lambda: db.put(Key(b"k"), Key(b"v")))
    for job in jobs:
        job.outcome()
    assert set(ran) == {jobs[1]}
    with pytest.raises(TypeError, match="keys and values are bytes-like, not str"):
        db["text"] = b"v"
    with pytest.raises(TypeError, match="keys and values are bytes-like, not int"):
        db.put(b"k", 5)
    del db[b"k":b"l"]
    assert content(db)[None] == {b"first": b"0", b"leader": b"1"}


def test_an_error_has_nothing_of_the_leaders(db):
    def leading():
        try:
            raise ValueError("the leader's")
        except ValueError:
            return db.put(b"a", b"1")

    jobs = together(db, leading, lambda: db.put(b"k" * 5000, b"v"))
    jobs[0].outcome()
    error = jobs[1].end().error
    assert isinstance(error, KeySizeError)
    assert error.__context__ is None
    trace = error.__traceback__
    while trace is not None:
        assert trace.tb_frame.f_code.co_name not in {"leading", "_make_others", "make"}
        trace = trace.tb_next


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_fork_in_the_middle_of_the_wait_ends_it_in_the_child(db, monkeypatch):
    transaction = Job(db.write).outcome()
    leader = Job(counting(db, b"leader"))
    until(lambda: pager_of(db).writer_lock._waiting)
    real = threading.Lock
    children = []

    class Forking:
        """As a signal's handler that forks while its thread sleeps."""

        def __init__(self):
            self.below = real()

        def acquire(self, *arguments, **options):
            if options and not children:
                children.append(os.fork())
            return self.below.acquire(*arguments, **options)

        def __getattr__(self, name):
            return getattr(self.below, name)

    def call():
        monkeypatch.setattr(combining_module.threading, "Lock", Forking)
        try:
            return counting(db, b"forked")()
        except cowdb.ForkedError:
            os._exit(7)
        finally:
            monkeypatch.undo()
            if children == [0]:
                os._exit(1)

    job = Job(call)
    until(lambda: children)
    assert os.waitstatus_to_exitcode(os.waitpid(children[0], 0)[1]) == 7
    transaction.abort()
    assert [leader.outcome(), job.outcome()] == [1, 1]
