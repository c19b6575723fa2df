"""Group commit: threads share a flush, and none is told more than the disk knows (P4 to P8, I2, I5, I9).

A `Brake` in the middle of each flush is the yield point.  While it holds one,
other threads commit; what they may and may not see is then looked at in peace.

    thread 1   seal 7, meta 7, [ flush ............... held ]
    thread 2              seal 8, wait                        meta 9, [ flush ]
    thread 3                      seal 9, wait
    readers                  see 6                            see 7             see 9
"""

from __future__ import annotations

import errno
import linecache
import random
import sys
import threading
import time

import pytest
from crashing import judge, opened, vanish
from threads import PATIENCE, Brake, Job, until

import cowdb
from cowdb import database as database_module
from cowdb import group as group_module
from cowdb import meta as meta_page
from cowdb import pager as pager_module
from cowdb.errors import PoisonedError
from cowdb.stats import Counters
from cowdb.testing import CrashDisk, FaultyDisk, FlushBegin, FlushEnd, Write

SIZE = 4096


def pager_of(db):
    return db._core.pager


def waiting(db, count):
    """Until `count` sealed transactions wait for a flush to come."""
    until(lambda: len(pager_of(db).group.pending) == count)


def put(db, key=b"k", value=b"v", durability="full", **options):
    with db.write(durability=durability, **options) as transaction:
        transaction[key] = value


def putting(db, *arguments, **options):
    return Job(lambda: put(db, *arguments, **options))


@pytest.fixture
def brake():
    return Brake()


@pytest.fixture
def disk(brake):
    return CrashDisk(during_flush=brake)


@pytest.fixture
def db(disk):
    db = opened(disk)
    put(db, b"first", b"0")
    yield db
    if disk.during_flush.on:
        disk.during_flush.release()
    db.close()
    disk.check_mappings()
    db = opened(disk)
    assert db.check() == []
    db.close()


def held(db, brake, key=b"leader", value=b"v", **options):
    """A thread whose commit is in the middle of its flush."""
    brake.on = True
    job = putting(db, key, value, **options)
    brake.wait()
    return job


def held_with_followers(db, brake, count):
    """The same, and `count` threads more that sleep until it has ended."""
    jobs = [held(db, brake)]
    for number in range(count):
        jobs.append(putting(db, b"%d" % number))
        waiting(db, number + 1)
    until(lambda: len(pager_of(db).group._asleep) == count)
    return jobs


def everything(db):
    with db.read() as snapshot:
        return dict(snapshot.items())


# ---------------------------------------------------------------- flushes are shared


def test_who_waits_for_the_next_flush_is_not_woken_by_this_one(db, brake, monkeypatch):
    """One of them is, who leads; the others would look in vain and sleep again."""
    monkeypatch.setattr(group_module, "_LOOK_AGAIN", 10 * PATIENCE)
    group = pager_of(db).group
    looks = []
    real = group._lead_or_wait
    monkeypatch.setattr(group, "_lead_or_wait", lambda *arguments: looks.append(1) or real(*arguments))
    leader, *others = held_with_followers(db, brake, 5)
    brake.step()
    leader.outcome()
    brake.wait()  # in the flush of the five
    assert len(group._asleep) == 4
    brake.release()
    for job in others:
        job.outcome()
    assert len(looks) == 1 + 5 + 1
    assert not group._asleep


def test_who_is_woken_by_nobody_looks_by_himself(db, brake, monkeypatch):
    group = pager_of(db).group
    jobs = held_with_followers(db, brake, 5)
    monkeypatch.setattr(group, "_wake", lambda: None)
    brake.release()
    for job in jobs:
        job.outcome()
    assert not group._asleep, "who wakes by himself must not be called later"
    assert everything(db).keys() >= {b"%d" % number for number in range(5)}


@pytest.mark.guarantee
@pytest.mark.parametrize("members", [1, 2, 16])
def test_all_that_is_sealed_during_a_flush_shares_the_next_one(db, brake, members):
    before = db.stats().flushes
    jobs = [held(db, brake)]
    jobs += [putting(db, b"%d" % number) for number in range(members)]
    waiting(db, members)
    brake.release()
    for job in jobs:
        job.outcome()
    assert db.stats().flushes - before == 2
    assert db.stats().commits == 2 + members
    assert everything(db).keys() == {b"first", b"leader", *(b"%d" % number for number in range(members))}


def test_the_disk_begins_early_for_one_and_not_for_a_group(db, brake, monkeypatch):
    """To ask takes the interpreter's lock, for which the others of a group wait."""
    asked = []
    monkeypatch.setattr(pager_module, "begin_writing", lambda *_, **options: asked.append(options))
    jobs = [held(db, brake)]
    assert asked == [{"little": True}]
    jobs += [putting(db, b"%d" % number) for number in range(5)]
    waiting(db, 5)
    brake.release()
    for job in jobs:
        job.outcome()
    assert len(asked) == 1


def test_the_group_writes_one_meta_that_of_its_newest_member(db, disk, brake):
    job = held(db, brake)
    begin = len(disk.trace)
    jobs = [job] + [putting(db, b"%d" % number) for number in range(5)]
    waiting(db, 5)
    newest = pager_of(db).group.pending[-1].meta.transaction
    brake.release()
    for job in jobs:
        job.outcome()
    metas = [meta for _, meta in metas_of(disk.trace[begin:])]
    assert [meta.transaction for meta in metas] == [newest]
    assert metas[0].durable == newest - 5


def metas_of(trace):
    """(Index, meta) of each meta page that is written."""
    found = []
    for index, operation in enumerate(trace):
        if isinstance(operation, Write) and operation.offset < 2 * SIZE:
            assert operation.offset in (0, SIZE)
            found.append((index, meta_page.decode(operation.data[:SIZE], operation.offset // SIZE)))
    return found


@pytest.mark.guarantee
def test_nobody_returns_before_his_own_transaction_is_durable(db, brake):
    leader = held(db, brake)
    follower = putting(db, b"follower")
    waiting(db, 1)
    assert leader.is_alive()
    assert follower.is_alive()
    brake.step()
    leader.outcome()
    brake.wait()  # the follower's own flush is held now
    assert follower.is_alive()
    assert everything(db).keys() == {b"first", b"leader"}
    brake.release()
    follower.outcome()
    assert b"follower" in everything(db)


@pytest.mark.guarantee
def test_readers_see_only_what_is_durable(db, brake):
    jobs = [held(db, brake)]
    jobs += [putting(db, b"%d" % number) for number in range(3)]
    waiting(db, 3)
    snapshot = db.read()
    assert dict(snapshot.items()) == everything(db) == {b"first": b"0"}
    assert db.stats().durable_transaction == snapshot.id
    brake.step()
    brake.wait()
    assert everything(db).keys() == {b"first", b"leader"}
    brake.release()
    for job in jobs:
        job.outcome()
    assert len(everything(db)) == 5
    assert dict(snapshot.items()) == {b"first": b"0"}
    snapshot.close()


def test_a_writer_sees_what_is_sealed_before_it(db, brake):
    def add():
        with db.write() as transaction:
            count = int(transaction.get(b"count", b"0"))
            transaction[b"count"] = b"%d" % (count + 1)
            return count

    jobs = [held(db, brake)] + [Job(add) for _ in range(8)]
    waiting(db, 8)
    brake.release()
    jobs[0].outcome()
    assert sorted(job.outcome() for job in jobs[1:]) == list(range(8))
    assert everything(db)[b"count"] == b"8"


# ---------------------------------------------------------------- what comes in between


def test_a_view_of_a_sealed_value_is_a_copy(db, brake):
    """The story: it pinned the snapshot before, which does not have these pages, so they were used again under it."""
    put(db, b"large", b"0" * 20_000)
    leader = held(db, brake, b"large", b"1" * 20_000)
    with db.write() as transaction:
        assert transaction.id == db._core.pager.meta.transaction + 2
        view = transaction.get_view(b"large")
        brake.release()
        leader.outcome()
        del transaction[b"large"]
    for number in range(2, 10):
        put(db, b"large", b"%d" % number * 20_000)
    assert view == b"1" * 20_000


def test_an_abort_between_members(db, brake):
    def abort():
        transaction = db.write()
        transaction[b"gone"] = b"x" * 20_000
        transaction.delete_range(None, None)
        transaction.abort()

    jobs = [held(db, brake), putting(db, b"a")]
    waiting(db, 1)
    Job(abort).outcome()  # an abort waits for no flush
    jobs.append(putting(db, b"b"))
    waiting(db, 2)
    brake.release()
    for job in jobs:
        job.outcome()
    assert everything(db).keys() == {b"first", b"leader", b"a", b"b"}
    assert db.check() == []


def test_a_transaction_that_failed_after_allotting_between_members(brake):
    disk = CrashDisk(during_flush=brake)
    db = opened(disk, max_size=40 * SIZE)
    put(db, b"first", b"0")
    jobs = [held(db, brake), putting(db, b"a")]
    waiting(db, 1)
    with pytest.raises(cowdb.FullError):
        put(db, b"large", b"x" * 300_000)
    jobs.append(putting(db, b"b"))
    waiting(db, 2)
    brake.release()
    for job in jobs:
        job.outcome()
    assert everything(db).keys() == {b"first", b"leader", b"a", b"b"}
    assert db.check() == []
    db.close()


def test_a_lazy_commit_waits_for_the_group_before_it(db, disk, brake):
    jobs = [held(db, brake), putting(db, b"a")]
    waiting(db, 1)
    lazy = putting(db, b"lazy", durability="lazy")
    brake.release()
    for job in [*jobs, lazy]:
        job.outcome()
    assert everything(db).keys() == {b"first", b"leader", b"a", b"lazy"}
    durable = pager_of(db).words.durable
    assert metas_of(disk.trace)[-1][1].transaction == durable[0] + 1
    put(db, b"z")
    assert db.check() == []


def test_sync_covers_what_is_sealed(db, brake):
    jobs = [held(db, brake), putting(db, b"a")]
    waiting(db, 1)
    sync = Job(db.sync)
    brake.step()
    brake.wait()
    assert sync.is_alive()
    brake.release()
    for job in [*jobs, sync]:
        job.outcome()
    assert db.stats().durable_transaction == pager_of(db).meta.transaction


def test_check_during_a_group(db, brake):
    for number in range(30):
        put(db, b"%04d" % number, b"x" * 1500)
    jobs = [held(db, brake), *(putting(db, b"%04d" % number, b"y" * 1500) for number in range(5))]
    waiting(db, 5)
    check = Job(db.check)
    brake.release()
    for job in jobs:
        job.outcome()
    assert check.outcome() == []


def test_check_begins_when_no_flush_is_on_its_way(db, brake, monkeypatch):
    """The story: a group that had been sealed before wrote its meta pages while the check read them."""
    pager = pager_of(db)
    check = database_module.check

    def looking(*arguments, **options):
        assert not pager.group.in_flight
        assert not pager.group.pending
        return check(*arguments, **options)

    monkeypatch.setattr(database_module, "check", looking)
    jobs = [held(db, brake), putting(db, b"a")]
    waiting(db, 1)
    checking = Job(db.check)
    until(lambda: pager.writer_lock._holder is not None)
    brake.release()
    assert checking.outcome() == []
    for job in jobs:
        job.outcome()


def test_check_asks_little_of_a_slot_whose_pages_were_written_over():
    """A writer reuses pages of the last but one state while the leader still counts: that slot is in pieces."""
    disk = CrashDisk()
    db = opened(disk)
    for turn in range(3):
        for number in range(40):
            put(db, b"%04d" % number, b"%d" % turn * 1500)
    pager = pager_of(db)
    counting, go = threading.Event(), threading.Event()
    counters = pager.counters

    class Slow(Counters):
        def publish(self, group, flushes):
            counting.set()
            assert go.wait(PATIENCE)
            super().publish(group, flushes)

    def failpoint(name):
        if name == "hand on":  # its pages are written, but it is not sealed yet
            pager.failpoint = lambda name: None
            go.set()
            leader.outcome()
            raise KeyboardInterrupt

    pager.counters = Slow()
    leader = putting(db, b"0001", b"z" * 1500)
    assert counting.wait(PATIENCE)  # it is durable and published: D has moved on
    pager.counters = counters
    pager.failpoint = failpoint
    with pytest.raises(KeyboardInterrupt):
        putting(db, b"0002", b"y" * 1500).outcome()
    assert pager.unsettled == pager.meta.transaction
    assert db.check() == []
    db.close()


@pytest.mark.parametrize("failing", [False, True])
def test_closing_while_a_group_is_on_its_way(brake, failing):
    """A close waits for it: who has sealed is told the truth."""
    disk = CrashDisk()
    faulty = FaultyDisk(disk, before=brake)
    db = opened(faulty)
    put(db, b"first", b"0")
    jobs = [held(db, brake), putting(db, b"a")]
    waiting(db, 1)
    if failing:
        faulty.fail(errno.EIO, call="flush")
    close = Job(db.close)
    brake.release()
    close.outcome()
    for job in jobs:
        job.end()
        assert isinstance(job.error, PoisonedError) if failing else job.error is None
    vanish(db)
    again = opened(disk)
    if not failing:
        assert everything(again).keys() == {b"first", b"leader", b"a"}
    assert again.check() == []
    again.close()


def test_a_member_that_needs_two_flushes(brake):
    disk = CrashDisk(during_flush=brake)
    db = opened(disk)
    pager_of(db).two_flush_limit = 8 * SIZE
    put(db, b"first", b"0")
    put(db, b"lazy", b"0", durability="lazy")
    jobs = [held(db, brake)]
    jobs += [putting(db, b"large%d" % number, b"x" * 20_000) for number in range(3)]
    waiting(db, 3)
    before = db.stats().flushes
    begin = len(disk.trace)
    brake.release()
    for job in jobs:
        job.outcome()
    assert db.stats().flushes - before == 3  # the one that was held, and two for the group
    ((_, meta),) = metas_of(disk.trace[begin:])
    assert meta.durable == meta.transaction  # P4
    assert len(everything(db)) == 6
    assert db.check() == []
    db.close()


def test_a_free_tree_record_may_be_younger_than_what_is_published(brake):
    """What a sealed transaction wrote into the free tree is read by the next, before either is published (P6)."""
    disk = CrashDisk(during_flush=brake)
    db = opened(disk)
    model = {}
    for number in range(3000):
        model[b"%06d" % number] = b"x" * 400
    with db.write() as transaction:
        transaction.update(model)
    snapshot = db.read()
    jobs = [held(db, brake)]
    model[b"leader"] = b"v"
    for turn in range(12):
        keys = [b"%06d" % number for number in range(turn, 3000, 17)]

        def change(keys=keys, turn=turn):
            with db.write() as transaction:
                for key in keys:
                    transaction[key] = b"%d" % turn * 300

        model.update(dict.fromkeys(keys, b"%d" % turn * 300))
        jobs.append(Job(change))
        until(lambda turn=turn: len(pager_of(db).group.pending) == turn + 1 or jobs[-1].error)
    assert pager_of(db).group.pending[-1].meta.free.depth, "the test is too small: nothing went to the free tree"
    brake.release()
    for job in jobs:
        job.outcome()
    assert everything(db) == model
    snapshot.close()
    for number in range(5):
        put(db, b"later", b"%d" % number)
    assert db.check() == []
    db.close()


# ---------------------------------------------------------------- failures


@pytest.mark.guarantee
@pytest.mark.parametrize("at", [1, 2])
def test_a_failed_flush_fails_its_group_and_what_was_built_on_it(brake, at):
    disk = CrashDisk()
    faulty = FaultyDisk(disk, before=brake)
    db = opened(faulty)
    put(db, b"first", b"0")
    pager = pager_of(db)
    leader = held(db, brake)
    jobs = [putting(db, b"%d" % number) for number in range(4)]
    waiting(db, 4)
    faulty.fail(errno.EIO, call="flush", at=at)
    begin = len(disk.trace)
    brake.release()
    leader.end()
    assert isinstance(leader.error, PoisonedError) == (at == 1)
    for job in jobs:
        job.end()
        assert isinstance(job.error, PoisonedError), job.error
        assert "unknown" in str(job.error)
    with pytest.raises(PoisonedError):
        db.write()
    expected = {b"first": b"0"} if at == 1 else {b"first": b"0", b"leader": b"v"}
    assert everything(db) == expected
    assert not pager._has_turn, "other processes are kept out"
    assert pager.writer_lock._holder is None
    assert (pager.group.pending, pager.group.in_flight) == ([], [])
    assert len(metas_of(disk.trace[begin:])) == at - 1, "nothing may be written after a failed flush"
    vanish(db)
    # No meta but the held one's (at 1) was written; the group's is lost or not (at 2), but whole if it is there.
    with_leader = {None: {b"first": b"0", b"leader": b"v"}}
    with_all = {None: {**with_leader[None], **{b"%d" % number: b"v" for number in range(4)}}}
    allowed = [{None: {b"first": b"0"}}, with_leader] if at == 1 else [with_leader, with_all]
    for image in disk.images(len(disk.trace), limit=20):
        judge(image, allowed)


def test_a_meta_that_cannot_be_written_fails_the_group(brake):
    disk = CrashDisk()
    faulty = FaultyDisk(disk, before=brake)
    db = opened(faulty)
    put(db, b"first", b"0")
    jobs = [held(db, brake), *(putting(db, b"%d" % number) for number in range(3))]
    waiting(db, 3)
    faulty.fail(errno.EIO, call="write")
    brake.release()
    jobs[0].outcome()
    for job in jobs[1:]:
        assert isinstance(job.end().error, PoisonedError)
    assert everything(db).keys() == {b"first", b"leader"}
    assert not pager_of(db)._has_turn
    vanish(db)


def test_a_member_sealed_while_the_flush_fails_is_told(brake):
    """It has its pages written, sees the poison, and is not committed."""
    disk = CrashDisk()
    faulty = FaultyDisk(disk, before=brake)
    db = opened(faulty)
    put(db, b"first", b"0")
    leader = held(db, brake)
    sealing, sealed = threading.Event(), threading.Event()

    def failpoint(name):
        if name == "hand on":
            sealing.set()
            assert sealed.wait(PATIENCE)

    pager_of(db).failpoint = failpoint
    late = putting(db, b"late")
    assert sealing.wait(PATIENCE)
    faulty.fail(errno.EIO, call="flush")
    brake.release()
    assert isinstance(leader.end().error, PoisonedError)
    sealed.set()
    assert isinstance(late.end().error, PoisonedError)
    assert everything(db) == {b"first": b"0"}
    pager = pager_of(db)
    assert not pager._has_turn
    assert pager.writer_lock._holder is None
    vanish(db)
    again = opened(disk)
    assert b"late" not in everything(again)
    assert again.check() == []
    again.close()


# ---------------------------------------------------------------- interrupts


INTERRUPTED = {
    "_wait_until_durable", "_see_to_the_others", "_publish", "_write_and_publish",
    "add", "wait_for", "drain", "newest", "_lead_or_wait", "tidy", "_end_flush", "_wake",
}  # fmt: skip
CLEANING_UP = (
    "with ",
    "try:",
    "self._end_group(",
    "self._end_flush(",
    "group.drain(",
    "self.writer_lock.release(",
    "if group:",
    "raise",
    "self.poison",
    "except",
    "if not isinst",
)


def cleaning_up(frame):
    """A second interrupt, while the first one is dealt with, is not tried."""
    return linecache.getline(frame.f_code.co_filename, frame.f_lineno).strip().startswith(CLEANING_UP)


def interrupt_at(number):
    """A trace function that raises `KeyboardInterrupt` at the `number`-th line behind the sealing; lines seen."""
    seen = []

    def lines(frame, event, argument):
        if event == "line" and not cleaning_up(frame):
            seen.append((frame.f_code.co_name, frame.f_lineno))
            if len(seen) == number:
                raise KeyboardInterrupt
        return lines

    def calls(frame, event, argument):
        code = frame.f_code
        if code.co_filename.endswith(("pager.py", "group.py")) and code.co_name in INTERRUPTED:
            return lines
        return None

    return calls, seen


def interrupted_run(number, *, follow):
    """A commit that is interrupted; then others commit. Gives (lines seen, error)."""
    disk = CrashDisk()
    db = opened(disk)
    put(db, b"first", b"0")
    pager = pager_of(db)
    tracer, seen = interrupt_at(number)

    def work():
        sys.settrace(tracer)
        try:
            put(db, b"victim")
        finally:
            sys.settrace(None)

    if follow:
        brake = disk.during_flush = Brake()
        others = [held(db, brake)]
        victim = Job(work)
        until(lambda: pager.group.pending or len(seen) >= number or not victim.is_alive())
        brake.release()
    else:
        others = []
        victim = Job(work)
    victim.end()
    for job in others:
        job.end()
    after = putting(db, b"after").end()
    where = seen[number - 1] if len(seen) >= number else None
    if pager.poison.reason is None:
        assert after.error is None, (where, after.error)
        assert all(job.error is None for job in others), where
        found = everything(db)
        assert b"after" in found
        if victim.error is None:
            assert b"victim" in found
    else:
        assert isinstance(after.error, PoisonedError), (where, after.error)
        assert victim.error is not None
    assert not pager._has_turn, where
    assert (pager.group.pending, pager.group.in_flight) == ([], []), where
    db.close()
    vanish(db)
    again = opened(disk)
    assert again.check() == []
    if pager.poison.reason is None:
        assert {b"first", b"after"} <= everything(again).keys()
    again.close()
    return where


@pytest.mark.parametrize("follow", [False, True])
def test_an_interrupt_at_any_line_of_the_group_leaves_no_thread_hanging(follow):
    """Ctrl-C can come between any two lines; the group must go on without that thread, or fail as a whole."""
    for number in range(1, 400):
        if interrupted_run(number, follow=follow) is None:
            assert number > 10
            return
    raise AssertionError("it never ended")


def test_a_poisoned_writer_keeps_no_turn_for_a_member_that_was_interrupted_before_he_could_wait():
    """His transaction stayed on the list of a group that nobody would ever flush, and all other processes waited."""
    flushing, go, sealing, failed = (threading.Event() for _ in range(4))
    armed = False

    def before(call, _number):
        if call == "flush" and armed:
            flushing.set()
            assert go.wait(PATIENCE)

    disk = FaultyDisk(CrashDisk(), before=before)
    db = opened(disk)
    put(db, b"first", b"0")
    pager = pager_of(db)
    armed = True

    def failpoint(name):
        if name == "hand on":
            sealing.set()
            assert failed.wait(PATIENCE)

    def release(turn=None):
        real(turn)
        if threading.current_thread() is late:
            raise KeyboardInterrupt

    leader = putting(db, b"leader")
    assert flushing.wait(PATIENCE)
    pager.failpoint = failpoint
    real = pager.writer_lock.release
    late = putting(db, b"late")
    assert sealing.wait(PATIENCE)
    disk.fail(errno.EIO, call="flush")
    go.set()
    leader.end()
    pager.writer_lock.release = release
    failed.set()
    late.end()
    pager.writer_lock.release = real
    assert isinstance(leader.error, PoisonedError)
    assert isinstance(late.error, KeyboardInterrupt)
    assert not pager._has_turn
    with pytest.raises(PoisonedError):
        db.write()
    db.close()


# ---------------------------------------------------------------- the trace, power cuts, the free list


def storm(db, threads, turns, seed):
    """Threads that put, delete and abort at random; what each has left under its own keys."""

    def work(me):
        rng = random.Random(seed * 100 + me)
        model = {}
        for _ in range(turns):
            draft = dict(model)
            with db.write(durability="lazy" if rng.random() < 0.1 else "full") as transaction:
                for _ in range(rng.randint(1, 4)):
                    key = b"%d-%02d" % (me, rng.randrange(20))
                    if rng.random() < 0.35:
                        transaction.delete(key)
                        draft.pop(key, None)
                    else:
                        draft[key] = transaction[key] = rng.randbytes(rng.choice([5, 300, 1500, 9000]))
                if rng.random() < 0.2:
                    transaction.abort()
                    continue
            model = draft
        return model

    jobs = [Job(lambda me=me: work(me)) for me in range(threads)]
    model = {}
    for job in jobs:
        model.update(job.outcome())
    return model


@pytest.mark.parametrize("seed", range(3))
def test_the_free_list_stays_right_under_a_storm(seed):
    switch = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        disk = CrashDisk(during_flush=lambda: time.sleep(0))
        db = opened(disk)
        model = storm(db, 6, 30, seed)
    finally:
        sys.setswitchinterval(switch)
    assert everything(db) == model
    assert db.check() == []
    stats = db.stats()
    assert stats.flushes < stats.commits
    assert_protocol(disk)
    db.close()
    db = opened(disk)
    assert everything(db) == model
    assert db.check() == []
    db.close()


def assert_protocol(disk):
    """P5 and I8: no meta during a flush, none into D's slot. I1: nothing is written that D's tree may need."""
    flushing = 0
    slots = {}
    written = {}
    durable = None
    for operation in disk.trace:
        if isinstance(operation, FlushBegin):
            flushing += 1
            assert flushing == 1, "two flushes at once"
            written = dict(slots)
        elif isinstance(operation, FlushEnd):
            flushing -= 1
            if written:
                durable = max(written.items(), key=lambda item: item[1])
        elif isinstance(operation, Write) and operation.offset < 2 * SIZE and len(operation.data) == SIZE:
            assert not flushing, "a meta was written while a flush was in flight (P5)"
            slot = operation.offset // SIZE
            transaction = meta_page.decode(operation.data, slot).transaction
            if durable is not None and transaction != durable[1]:
                assert slot != durable[0], "the slot of D was written (I8)"
            slots[slot] = transaction


@pytest.mark.guarantee
def test_pages_of_sealed_states_are_not_written_again(db, disk, brake):
    """P6: while a group waits, later writers find other pages than those of the published, the sealed and D."""
    for turn in range(3):
        for number in range(20):
            put(db, b"%04d" % number, b"%d" % turn * 1500)
    jobs = [held(db, brake)]
    begin = len(disk.trace)
    for number in range(12):
        jobs.append(putting(db, b"%04d" % number, b"y" * 1500))
        waiting(db, number + 1)
    pages = []
    for operation in disk.trace[begin:]:
        if isinstance(operation, Write):
            assert operation.offset >= 2 * SIZE, "a meta was written while a flush was in flight (P5)"
            first = operation.offset // SIZE
            pages += range(first, first + len(operation.data) // SIZE)
    assert len(pages) >= 12
    assert len(pages) == len(set(pages)), "a page of a sealed state was written again"
    assert everything(db)[b"0003"] == b"2" * 1500
    brake.release()
    for job in jobs:
        job.outcome()
    assert db.check() == []


@pytest.mark.guarantee
def test_a_state_that_moves_on_while_it_is_looked_for_is_live(db, brake):
    """P6.  The story: the readers were asked first and the sealed states last, and in between one became the other.

    Two flushes ended in that moment, so that the first of the two states was neither sealed, nor published, nor D.
    """
    pager = pager_of(db)
    leader = held(db, brake, b"1")
    second = putting(db, b"2")
    waiting(db, 1)
    transactions = pager.gate.transactions
    between = []

    def slowly():
        found = transactions()
        if not between:
            brake.step()
            leader.outcome()
            brake.wait()
            between.append(db.read())
            brake.release()
            second.outcome()
        return found

    with db.write() as transaction:
        pager.gate.transactions = slowly
        live = pager.live()
        pager.gate.transactions = transactions
        assert pager.meta.transaction == transaction.id - 1
        assert between[0].id == transaction.id - 2
        assert between[0].id in live
    between[0].close()


@pytest.mark.guarantee
def test_power_cuts_under_group_commit_leave_a_prefix(brake):
    """Whatever was acknowledged is there; what is there is a prefix of the order of sealing."""
    disk = CrashDisk(during_flush=brake)
    db = opened(disk)
    put(db, b"first", b"0")
    order = [{b"first": b"0"}]
    promised = [(len(disk.trace), 0)]
    expected = []

    def extend(keys):
        for key in keys:
            order.append({**order[-1], key: b"v" * 200})

    begin = len(disk.trace)
    for turn in range(3):
        jobs = [held(db, brake, b"l%d" % turn, value=b"v" * 200)]
        keys = [b"l%d" % turn]
        for number in range(4):
            key = b"m%d%d" % (turn, number)
            jobs.append(putting(db, key, b"v" * 200))
            keys.append(key)
            waiting(db, number + 1)
        brake.step()
        brake.wait()
        jobs[0].outcome()
        extend(keys[:1])
        promised.append((len(disk.trace), len(order) - 1))
        brake.release()
        for job in jobs[1:]:
            job.outcome()
        extend(keys[1:])
        promised.append((len(disk.trace), len(order) - 1))
    expected = [{None: state} for state in order]
    seen = set()
    for index in range(begin, len(disk.trace) + 1):
        least = max(number for at, number in promised if at <= index)
        for image in disk.images(index, limit=8, sector=SIZE):
            key = (image.digest(), least)
            if key not in seen:
                seen.add(key)
                judge(image, expected[least:], live_on=len(seen) % 7 == 0)
    assert len(seen) > 20
    db.close()


# ---------------------------------------------------------------- a signal's handler, in the middle of a commit


@pytest.mark.guarantee
@pytest.mark.parametrize("act", ["put", "sync", "check"])
@pytest.mark.parametrize("step", ["first flush", "write meta", "flush", "publish"])
def test_a_signals_handler_writes_nothing_while_its_thread_flushes(step, act):
    """The story: the thread that led the flush was taken for one that had been interrupted and had left it. The
    handler's commit was acknowledged and then lost, or that of another process, which was given the turn."""
    disk = CrashDisk()
    db = opened(disk)
    put(db, b"before", b"1")
    pager = pager_of(db)
    pager.two_flush_limit = 0 if step == "first flush" else 64 << 20
    refused = []

    def failpoint(name):
        if name == step:
            pager.failpoint = lambda name: None
            with pytest.raises(cowdb.Error, match="in the middle of a call to this database, further up") as caught:
                {"put": lambda: put(db, b"handler", b"h"), "sync": db.sync, "check": db.check}[act]()
            refused.append(caught.value)
            assert pager._has_turn
            assert pager.group.in_flight

    pager.failpoint = failpoint
    put(db, b"main", b"m")
    assert len(refused) == 1
    assert db[b"main"] == b"m"
    assert b"handler" not in db
    durable = pager.words.durable[0]
    assert durable == pager.meta.transaction
    put(db, b"after", b"a")
    assert db.check() == []
    db.close()
    with opened(disk) as again:
        assert len(again) == 3
        assert again.check() == []
