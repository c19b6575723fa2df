"""Many processes have one file open: real ones, that are killed and stopped at will.

What each process promises the others: a snapshot stays what it is, what was acknowledged stays, and whoever dies is in
nobody's way (promises 2, 3 and 6).
"""

from __future__ import annotations

import errno
import gc
import os
import platform
import random
import signal
import sys
import threading
import time
from pathlib import Path

import pytest
from child import Child, until
from opened import OPEN, checked

import cowdb
from cowdb import core as core_module
from cowdb.errors import Error, LockTimeoutError, PoisonedError
from cowdb.recovery import believe
from cowdb.sharing import lock_file_path
from cowdb.storage import FileDisk, FileStorage


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "test.cowdb")


# ---------------------------------------------------------------- reading and writing together


@pytest.mark.guarantee
def test_each_sees_what_the_other_has_committed(path, opening):
    with cowdb.open(path) as db, Child(path=path) as other:
        db[b"n"] = b"0"
        other(opening)
        for number in range(20):
            other("db[b'n'] = b'%d' % (int(db[b'n']) + 1)")
            assert db[b"n"] == b"%d" % (2 * number + 1)
            db[b"n"] = b"%d" % (int(db[b"n"]) + 1)
            assert other("db[b'n']") == b"%d" % (2 * number + 2)
        assert other("db.check()") == db.check() == []
        other("db.close()")
        db[b"n"] = b"end"
    assert checked(path)[b"n"] == b"end"


@pytest.mark.guarantee
def test_a_snapshot_of_another_process_pins_its_pages(path, opening):
    with cowdb.open(path, page_size=4096) as db, Child(path=path) as other:
        with db.write() as txn:
            txn.update({b"%04d" % number: b"old" * 200 for number in range(300)})
        other(opening)
        other("s = db.read(); before = list(s.items())")
        assert [reader["pid"] for reader in db.readers()] == [other.pid]
        for turn in range(40):
            with db.write() as txn:
                txn.update({b"%04d" % number: b"%d" % turn * 200 for number in range(turn % 7, 300, 7)})
                txn.delete_range(b"%04d" % turn, b"%04d" % (turn + 2))
        assert db.stats().pinned_pages > 0
        assert db.readers()[0]["behind"] == 40
        assert other("list(s.items()) == before"), "the snapshot changed under its reader (I2)"
        assert db.check() == []
        other("s.close()")
        assert db.readers() == []
        db[b"x"] = b"y"
        assert db.stats().pinned_pages == 0
    checked(path)


@pytest.mark.guarantee
def test_a_killed_reader_pins_nothing(path, opening):
    with cowdb.open(path, page_size=4096) as db, Child(path=path) as other:
        with db.write() as txn:
            txn.update({b"%04d" % number: b"old" * 200 for number in range(300)})
        other(opening)
        other("s = db.read()")
        db[b"0000"] = b"new"
        assert len(db.readers()) == 1
        other.kill()
        assert db.readers() == []
        sizes = set()
        for turn in range(60):
            db[b"%04d" % turn] = b"new" * 200
            sizes.add(db.stats().page_count)
        assert db.stats().pinned_pages == 0
        assert max(sizes) - min(sizes) < 20, "pages that only the dead process could see are used again"
    checked(path)


@pytest.mark.parametrize("end", ["abort", "died"])
def test_pages_that_another_process_wrote_in_vain_are_no_damage(path, opening, end):
    """The story: another process wrote early and gave up; the check reported I3 and I5 for the state before."""
    with cowdb.open(path, page_size=4096) as db, Child(path=path) as other:
        for turn in range(4):
            with db.write() as txn:
                txn.update((b"%04d" % number, b"%d" % turn * 100) for number in range(3000))
        pager = db._core.pager
        assert db.check() == []
        assert pager.unsettled is None, "both states were checked"
        other(opening)
        other("t = db.write()")
        other("t.changes.budget = 100_000")
        other("t.update((b'%04d' % number, b'z' * 100) for number in range(3000))")
        if end == "abort":
            other("t.abort()")
        else:
            other.kill()
        assert db.check() == []
        assert db.check() == [], "asked again, it is no other"
        assert pager.unsettled == pager.meta.transaction
        db[b"next"] = b"n"
        assert pager.unsettled is None
        assert db.check() == []
    checked(path)


@pytest.mark.parametrize("durability", ["lazy", "full"])
def test_a_state_that_was_written_and_not_published_is_no_damage(path, opening, durability):
    """The story: the published state was looked for, and its meta page was the one that had been written over."""
    with cowdb.open(path, page_size=4096) as db, Child(path=path) as other:
        db[b"a"] = b"1"
        other(opening)
        for number in range(3):
            other(f"with db.write(durability='lazy') as t: t[b'b'] = b'{number}'")
        other("die_at('publish')")
        other.dies(f"with db.write(durability={durability!r}) as t: t[b'c'] = b'2'")
        assert db.check() == []
        db[b"d"] = b"1"
        assert db.check() == []
        assert db[b"c"] == b"2"
    checked(path)


def test_a_process_may_hold_hundreds_of_snapshots(path):
    with cowdb.open(path, page_size=4096) as db, Child(path=path) as other:
        db[b"n"] = b"0"
        other(OPEN)
        other("held = []")
        for number in range(200):
            other("held.append(db.read())")
            db[b"n"] = b"%d" % (number + 1)
        assert len(db.readers()) == 200
        assert other("[int(s[b'n']) for s in held]") == list(range(200))
        assert other("len(db._core.pager.words._blocks)") == 4
        assert db.check() == []
        other("[s.close() for s in held[::2]]")
        assert len(db.readers()) == 100
        db[b"n"] = b"end"
        assert other("[int(s[b'n']) for s in held[1::2]]") == list(range(1, 200, 2))
        other("[s.close() for s in held]; db.close()")
    checked(path)


@pytest.mark.parametrize("end", ["t.commit()", "t.abort()", "del t; gc.collect()"])
def test_a_process_that_has_written_and_is_idle_pins_nothing(path, end):
    """The story: the snapshot that a write transaction began from stayed pinned until the next call of that process."""
    with cowdb.open(path) as db, Child(path=path) as other:
        other(OPEN)
        other("import gc, warnings; warnings.simplefilter('ignore'); t = db.write(); t[b'n'] = b'1'")
        assert [reader["pid"] for reader in db.readers()] == [other.pid]
        other(end)
        assert db.readers() == []


READ_AND_WRITE = {"x86_64": (0, 1), "aarch64": (63, 64)}
"""The numbers of these two calls, for the kernel's filter."""

ONLY_READ_AND_WRITE = """
import ctypes, gc, struct
prctl = ctypes.CDLL(None).prctl
def rule(code, yes, no, value):
    return struct.pack("HBBI", code, yes, no, value)
program = ctypes.create_string_buffer(
    rule(0x20, 0, 0, 0)  # load the number of the call
    + rule(0x15, 2, 0, numbers[0]) + rule(0x15, 1, 0, numbers[1])  # is it one of these?
    + rule(0x06, 0, 0, 0) + rule(0x06, 0, 0, 0x7FFF0000)  # no: kill; yes: allow
)
rules = ctypes.create_string_buffer(struct.pack("HP", 5, ctypes.addressof(program)))
def reads(count):
    for _ in range(count):
        with db.read() as s:
            assert s[b"n"] == b"1"
def run():
    gc.disable()
    reads(1000)
    if prctl(38, 1, 0, 0, 0) or prctl(22, 2, rules, 0, 0):
        tell(b"no filters here")
    reads(1000)
    tell(b"done")
    os.stat("/")
    tell(b"not watched")
"""


@pytest.mark.guarantee
@pytest.mark.skipif(platform.machine() not in READ_AND_WRITE, reason="the kernel's filter wants the numbers of calls")
@pytest.mark.skipif(sys.platform != "linux", reason="the kernel is asked to kill who makes a system call")
def test_to_begin_and_to_end_a_read_is_no_system_call(path, opening):
    with cowdb.open(path) as db, Child(path=path, numbers=READ_AND_WRITE[platform.machine()]) as other:
        db[b"n"] = b"1"
        other(opening)
        other(ONLY_READ_AND_WRITE)
        other.begin("run()")
        told = other.process.stdout.readline()
        if told == b"no filters here\n":
            pytest.skip("this kernel has no filters")
        assert told == b"done\n"
        assert other.process.wait(10) == -signal.SIGSYS
        assert other.process.stdout.read() == b"", "the kernel has not watched"
        assert db.readers() == []


def test_views_pin_for_another_process_too(path):
    with cowdb.open(path, page_size=4096) as db, Child(path=path) as other:
        db[b"large"] = b"1" * 50_000
        other(OPEN)
        other("with db.read() as s: view = s.get_view(b'large')")
        for number in range(10):
            db[b"large"] = b"%d" % number * 50_000
        assert [reader["pid"] for reader in db.readers()] == [other.pid]
        assert other("bytes(view) == b'1' * 50_000")
        other("del view; db.get(b'')")
        assert db.readers() == []


def test_a_view_of_a_snapshot_whose_file_another_process_has_cut(path):
    """The story: the view was to cover all that had been mapped, and the file was shorter by then."""
    with cowdb.open(path, page_size=4096) as db, Child(path=path) as other:
        db[b"view"] = b"V" * 20_000
        with db.write() as txn:
            txn.update({b"%04d" % number: b"x" * 1500 for number in range(3000)})
        mapped = db._core.pager.gate.current.space.pages
        other(OPEN)
        other("with db.write() as t: t.delete_range(b'0', b'a')")
        snapshots = []
        while os.path.getsize(path) >= mapped * 4096:
            snapshots[:-1] = []
            snapshots.append(db.read())
            other("db[b'n'] = b'1' * 5000")
        assert snapshots[-1]._snapshot.meta.page_count < mapped
        view = snapshots[-1].get_view(b"view")
        snapshots[-1].close()
        for number in range(10):
            other("db[b'view'] = b'%d' % number * 20_000", number=number)
        assert view == b"V" * 20_000
        del view, snapshots
    checked(path)


def test_a_file_that_another_process_has_cut_without_a_commit_is_measured_anew(path):
    """The story: an abort cut the file, and no transaction told of it. The next writer thought the file as long as before,
    and mapped more than there was."""
    with cowdb.open(path, page_size=4096) as db, Child(path=path) as other:
        with db.write() as txn:
            txn.update({b"%04d" % number: b"x" * 1500 for number in range(3000)})
        other(OPEN)
        with db.write() as txn:
            txn.clear()
        other("snap = db.read()")  # it sees next to nothing, and may look at every page of the file
        for number in range(6):
            db[b"n"] = b"%d" % number
        extent = db._core.pager.extent
        believed = extent.pages
        other("snap.close()")
        with Child(path=path) as third:
            third(OPEN)
            third("db.write().abort()")
            third("db.close()")
        real = os.path.getsize(path) // 4096
        assert real < believed == extent.pages, "nobody has told us"
        with db.write() as txn:
            assert extent.pages == real
            assert extent.backed <= real
            txn.update({b"%04d" % number: b"y" * 1500 for number in range(2900)})
        assert extent.pages == os.path.getsize(path) // 4096
    checked(path)


@pytest.mark.guarantee
def test_the_file_grows_and_shrinks_under_the_readers_of_another_process(path):
    with cowdb.open(path, page_size=4096) as db, Child(path=path) as other:
        db[b"n"] = b"0"
        other(OPEN)
        held = []
        largest = 0
        for turn in range(6):
            other("with db.write() as t: t.update({b'k%04d' % i: bytes([turn]) * 2000 for i in range(400)})", turn=turn)
            held.append((db.read(), 401, bytes([turn]) * 2000))
            largest = max(largest, os.path.getsize(path))
            other("with db.write() as t: t.delete_range(b'k', b'l'); t.put(b'n', b'%d' % turn)")
            held.append((db.read(), 1, None))
            if turn % 2:
                held.pop(turn % len(held))[0].close()
            for snapshot, length, value in held:
                assert len(list(snapshot.items())) == len(snapshot) == length
                assert value is None or snapshot[b"k0007"] == value
        assert db.check() == []
        for snapshot, *_ in held:
            snapshot.close()
        for _ in range(5):
            other("db[b'n'] = b'end'")
        assert os.path.getsize(path) < largest / 4
        assert db[b"n"] == b"end"
        assert db.check() == []
        other("db.close()")
    checked(path)


def test_a_read_only_process_follows_the_writers(path):
    with cowdb.open(path) as db, Child(path=path) as other:
        db[b"n"] = b"0"
        other("db = cowdb.open(path, read_only=True)")
        for number in range(5):
            db[b"n"] = b"%d" % number
            assert other("db[b'n']") == b"%d" % number
        other("s = db.read()")
        assert [reader["pid"] for reader in db.readers()] == [other.pid]
        db.close()
        assert other("s[b'n']") == b"4"
        other("s.close(); db.close()")
    checked(path)


def test_a_read_only_process_that_is_first_or_last_writes_nothing(path):
    with cowdb.open(path, durability="lazy") as db:
        db[b"n"] = b"1"
    content = Path(path).read_bytes()
    with Child(path=path) as other:
        other("db = cowdb.open(path, read_only=True)")
        with cowdb.open(path, read_only=True) as db:
            assert db[b"n"] == b"1"
        other("db.close()")
    assert Path(path).read_bytes() == content
    with Child(path=path) as other:
        other("db = cowdb.open(path, read_only=True)")
        db = cowdb.open(path)
        db[b"n"] = b"2"
        assert other("db[b'n']") == b"2"
        db.close()
        assert other("db[b'n']") == b"2"
    assert checked(path)[b"n"] == b"2"


def test_a_check_by_a_reader_waits_for_who_writes_and_finds_nothing(path):
    """The story: a process that only reads looked for a meta page that the writers had gone on from."""
    write = """
def write():
    turns = 0
    while not db.get(b"stop"):
        db[b"n"] = b"%d" % turns
        turns += 1
    return turns
"""
    cowdb.open(path).close()
    with cowdb.open(path, read_only=True) as db, Child(path=path) as other, Child(path=path) as last:
        for child in (other, last):
            child("db = cowdb.open(path)")
        other(write)
        other.begin("write()")
        for _ in range(30):
            assert db.check() == []
        last("db[b'stop'] = b'1'")
        assert other.end() > 0
        last("t = db.write()")
        with pytest.raises(LockTimeoutError), cowdb.open(path, read_only=True, lock_timeout=0.01) as impatient:
            impatient.check()
    checked(path)


def test_only_the_last_one_settles_the_file(path):
    def last():
        storage = FileDisk().open(path, read_only=True)
        meta = believe(storage).meta
        storage.close()
        return meta

    with Child(path=path) as other:
        other("db = cowdb.open(path, durability='lazy')")
        db = cowdb.open(path, durability="lazy")
        db[b"n"] = b"1"
        db[b"n"] = b"2"
        db.close()
        assert last().durable < last().transaction
        other("db.close()")
        assert last().durable == last().transaction
    assert checked(path)[b"n"] == b"2"


# ---------------------------------------------------------------- who dies, and who takes over

DEATHS = [
    *(("full", point, point in {"flush", "publish"}) for point in ("extend", "write pages", "hand on")),
    *(("full", point, point in {"flush", "publish"}) for point in ("write meta", "flush", "publish")),
    *(("lazy", point, point == "publish") for point in ("extend", "write pages", "hand on", "write meta", "publish")),
    *(("twice", point, point in {"flush", "publish"}) for point in ("first flush", "write meta", "flush", "publish")),
]


@pytest.mark.guarantee
@pytest.mark.parametrize(("durability", "point", "stays"), DEATHS)
def test_who_survives_a_killed_writer_takes_over(path, durability, point, stays):
    """Nothing that was acknowledged is lost, and nobody goes back behind what he has read (P3)."""
    mode = "lazy" if durability == "lazy" else "full"
    with cowdb.open(path, page_size=4096, durability=mode) as db, Child(path=path) as other:
        with db.write() as txn:
            txn.update({b"%03d" % number: b"old" * 100 for number in range(100)})
        other("db = cowdb.open(path, durability=mode)", mode=mode)
        if durability == "twice":
            other("db._core.pager.two_flush_limit = 0")
        for number in (1, 2):
            other("with db.write() as t: t.update({b'%03d' % i: b'%d' % n for i in range(100)})", n=number)
        held = db.read()
        before = dict(held.items())
        assert set(before.values()) == {b"2"}
        other("die_at(point)", point=point)
        other.dies("with db.write() as t: t.update({b'%03d' % i: b'3' * 500 for i in range(100)})")

        assert db[b"050"] == b"2", "what was never published is not seen"
        flushes = db.stats().flushes
        with db.write() as txn:
            assert {bytes(value) for value in txn.values()} == {b"3" * 500 if stays else b"2"}
            txn[b"new"] = b"4"
        assert db.stats().flushes > flushes, "the state was made certain first"
        assert db[b"050"] == (b"3" * 500 if stays else b"2")
        assert dict(held.items()) == before
        assert db.check() == []
        held.close()
        for number in range(3):
            db[b"new"] = b"%d" % number
        assert db.check() == []
    found = checked(path)
    assert found[b"050"] == (b"3" * 500 if stays else b"2")
    assert found[b"new"] == b"2"


@pytest.mark.guarantee
@pytest.mark.parametrize("point", ["write pages", "write meta", "publish"])
def test_when_the_survivor_only_closes_the_file_is_whole(path, point):
    with cowdb.open(path) as db, Child(path=path) as other:
        db[b"n"] = b"0"
        other(OPEN)
        other("db[b'n'] = b'1'; die_at(point)", point=point)
        other.dies("db[b'n'] = b'2'")
        assert db[b"n"] == b"1"
    assert checked(path)[b"n"] in {b"1", b"2"}


@pytest.mark.parametrize("mode", ["full", "lazy"])
def test_one_who_dies_while_he_takes_over_is_followed_by_the_next(path, mode):
    with (
        cowdb.open(path, durability=mode) as db,
        Child(path=path, mode=mode) as one,
        Child(path=path, mode=mode) as two,
    ):
        db[b"n"] = b"0"
        for child in (one, two):
            child("db = cowdb.open(path, durability=mode)")
        one("db[b'n'] = b'1'; die_at('publish')")
        one.dies("db[b'n'] = b'2'")
        two("from cowdb.storage import FileStorage; FileStorage.flush = lambda storage: die()")
        two.dies("db.write()")
        assert db[b"n"] == b"1"
        db[b"other"] = b"x"
        assert db[b"n"] == b"2"
        assert db.check() == []
    assert checked(path)[b"n"] == b"2"


def test_a_writer_that_dies_inside_its_transaction_changes_nothing(path):
    with cowdb.open(path) as db, Child(path=path) as other:
        db[b"n"] = b"0"
        other(OPEN)
        other("t = db.write(); t[b'n'] = b'1'")
        with pytest.raises(LockTimeoutError):
            db.write(timeout=0.01)
        other.kill()
        with db.write(timeout=10) as txn:
            assert txn[b"n"] == b"0"
            txn[b"n"] = b"2"
    assert checked(path)[b"n"] == b"2"


FAIL_TO_FLUSH = """
from cowdb.storage import FileStorage
def flush(storage):
    raise OSError(5, "Input/output error")
FileStorage.flush = flush
"""


@pytest.mark.guarantee
def test_a_poisoned_writer_leaves_the_file_to_the_others(path):
    with cowdb.open(path) as db, Child(path=path) as other:
        db[b"n"] = b"0"
        other(OPEN)
        other("db[b'n'] = b'1'")
        other(FAIL_TO_FLUSH)
        with pytest.raises(PoisonedError) as caught:
            other("db[b'n'] = b'2'")
        assert caught.value.errno == errno.EIO
        assert db._core.pager.words.busy, "nobody may take the file for certain (P2)"
        assert db[b"n"] == other("db[b'n']") == b"1"
        with pytest.raises(PoisonedError):
            other("db[b'n'] = b'3'")

        flushes = db.stats().flushes
        with db.write(timeout=10) as txn:  # the poisoned one holds no lock
            assert txn[b"n"] == b"2", "it was written whole, so it may stay"
            txn[b"n"] = b"4"
        assert db.stats().flushes == flushes + 2, "one for what was found, one for the commit"
        assert other("db[b'n']") == b"4", "reading goes on"
        with pytest.raises(PoisonedError):
            other("db[b'n'] = b'5'")
        assert db.check() == []
        db[b"n"] = b"6"
        other("db.close()")
    assert checked(path)[b"n"] == b"6"


def test_a_poisoned_writer_that_is_the_last_one_leaves_what_the_others_wrote(path):
    with Child(path=path) as other:
        db = cowdb.open(path)
        other(OPEN)
        other(FAIL_TO_FLUSH)
        with pytest.raises(PoisonedError):
            other("db[b'n'] = b'2'")
        db[b"n"] = b"3"
        db.close()
        other("db.close()")
    assert checked(path)[b"n"] == b"3"


def test_a_sync_that_failed_leaves_the_file_to_the_others(path):
    with cowdb.open(path, durability="lazy") as db, Child(path=path) as other:
        db[b"n"] = b"0"
        other("db = cowdb.open(path, durability='lazy')")
        other("db[b'n'] = b'1'")
        other(FAIL_TO_FLUSH)
        with pytest.raises(PoisonedError):
            other("db.sync()")
        flushes = db.stats().flushes
        db[b"m"] = b"2"
        assert db.stats().flushes == flushes + 1, "the state was made certain first"
        assert db[b"n"] == b"1"
        db.sync()
    assert checked(path)[b"n"] == b"1"


def test_sync_makes_the_lazy_commits_of_others_durable(path):
    with cowdb.open(path, durability="lazy") as db, Child(path=path) as other:
        db[b"n"] = b"0"
        other("db = cowdb.open(path, durability='lazy'); db[b'n'] = b'1'")
        stats = db.stats()
        assert stats.durable_transaction < stats.transaction
        db.sync()
        stats = db.stats()
        assert stats.durable_transaction == stats.transaction
        assert other("db.stats().durable_transaction") == stats.transaction
        other("db[b'n'] = b'2'")
        assert db.stats().durable_transaction == stats.transaction


# ---------------------------------------------------------------- taking turns


def test_who_does_not_get_his_turn_is_told_by_whom(path, opening):
    with cowdb.open(path) as db, Child(path=path) as other:
        other(opening)
        other("t = db.write()")
        for act in (lambda: db.write(timeout=0.02), lambda: db.write(timeout=0)):
            with pytest.raises(LockTimeoutError, match=f"process {other.pid} holds it") as caught:
                act()
            assert caught.value.holder == other.pid
        with cowdb.open(path, lock_timeout=0.01) as hasty:
            for act in (hasty.write, hasty.sync, hasty.check, lambda: hasty.__setitem__(b"k", b"v")):
                with pytest.raises(LockTimeoutError):
                    act()
            other("t.abort()")
            hasty[b"k"] = b"v"
        with db.write(), pytest.raises(LockTimeoutError, match=f"process {os.getpid()} holds it"):
            other("db.write(timeout=0.02)")
        other("db[b'k'] = b'w'")
        assert db[b"k"] == b"w"


def test_a_second_writer_in_a_thread_raises_at_once_also_beside_other_processes(path):
    with cowdb.open(path) as db, Child(path=path) as other:
        other(OPEN)
        with db.write() as txn:
            other.begin("db[b'k'] = b'other'")
            until(db._core.pager.words.contended)
            with pytest.raises(Error, match="write transaction open already"):
                db.write()
            txn[b"k"] = b"mine"
        other.end()
        assert db[b"k"] == b"other"


@pytest.mark.guarantee
@pytest.mark.parametrize("mode", ["full", "lazy"])
def test_of_four_writing_processes_none_starves_and_no_turn_is_lost(path, mode):
    loop = """
def loop(seconds):
    end, turns = time.monotonic() + seconds, 0
    while time.monotonic() < end:
        with db.write() as t:
            t[b"n"] = b"%d" % (int(t[b"n"]) + 1)
        turns += 1
    return turns
"""
    with cowdb.open(path) as db:
        db[b"n"] = b"0"
        children = [Child(path=path, mode=mode) for _ in range(4)]
        try:
            for child in children:
                child("db = cowdb.open(path, durability=mode)")
                child(loop)
            for child in children:
                child.begin("loop(0.8)")
            turns = [child.end() for child in children]
        finally:
            for child in children:
                child.__exit__()
        assert int(db[b"n"]) == sum(turns), "two have written at once"
        assert min(turns) >= sum(turns) / 20, turns
        assert db.check() == []


@pytest.mark.guarantee
@pytest.mark.parametrize("timeouts", [(None, None, None, 20), (None, None, 20, 20), (20, 20, 20, 20)], ids=str)
def test_who_asks_with_a_timeout_does_not_starve_among_four(path, timeouts):
    """Each goes on until all four have had their turns; nobody may be told to wait in vain, or wait for ever."""
    loop = """
def loop(me, wanted, timeout):
    turns = 0
    while True:
        with db.write(timeout=timeout) as t:
            turns += 1
            t[b"n"] = b"%d" % (int(t[b"n"]) + 1)
            if turns == wanted:
                t[b"done%d" % me] = b""
            if len(t) == 5:
                return turns
"""
    wanted = 25
    with cowdb.open(path) as db:
        db[b"n"] = b"0"
        children = [Child(path=path) for _ in timeouts]
        try:
            for child in children:
                child("db = cowdb.open(path)")
                child(loop)
            for me, (child, timeout) in enumerate(zip(children, timeouts, strict=True)):
                child.begin("loop(me, wanted, timeout)", me=me, wanted=wanted, timeout=timeout)
            turns = [child.end() for child in children]
        finally:
            for child in children:
                child.__exit__()
        assert int(db[b"n"]) == sum(turns), "two have written at once"
        assert min(turns) >= wanted
        assert db.check() == []


def test_a_close_while_another_process_writes_and_a_thread_waits_for_it(path):
    db = cowdb.open(path)
    with Child(path=path) as other:
        other("db = cowdb.open(path); t = db.write(); t[b'a'] = b'1'")
        waiting = []

        def wait():
            try:
                db.write()
            except BaseException as error:  # noqa: BLE001 - the test looks at it
                waiting.append(error)

        thread = threading.Thread(target=wait)
        thread.start()
        until(lambda: other("db._core.pager.words.contended()"))
        db.close()
        assert waiting == []
        assert other("t.commit()") is None
        thread.join(10)
        assert isinstance(waiting[0], cowdb.ClosedError)
        assert not core_module.cores, "who waited closes the file"
        other("db[b'b'] = b'2'; db.close()")
    assert checked(path) == {b"a": b"1", b"b": b"2"}


# ---------------------------------------------------------------- everything at once

WRITER = """
def run(number, seed):
    rng = random.Random(seed)
    db = cowdb.open(path, durability=rng.choice(["full", "lazy"]))
    own = b"n%d" % number
    with db.read() as s:
        n = int(s.get(own, b"0"))
    tell(b"start %d" % n)
    while True:
        n += 1
        with db.write(timeout=rng.choice([None, 60])) as t:
            t[own] = b"%d" % n
            t[b"k%d-%d" % (number, n % 300)] = b"%d" % n + b"x" * rng.randint(0, 3000)
            t[b"total"] = b"%d" % (int(t.get(b"total", b"0")) + 1)
            if n % 40 == 0:
                t.delete_range(b"k%d-" % number, b"k%d." % number)
        tell(b"%d" % n)
"""
READER = """
def run(number, seed):
    rng = random.Random(seed)
    db = cowdb.open(path + rng.choice(["", "-link"]), read_only=number % 2 == 0)
    held, last = [], 0
    while True:
        s = db.read()
        total = int(s.get(b"total", b"0"))
        assert total == sum(int(s.get(b"n%d" % writer, b"0")) for writer in range(2)), "a mix of two states"
        assert total >= last, "went back"
        last = total
        items = list(s.items())
        assert len(items) == len(s)
        held.append((s, hash(tuple(items))))
        if len(held) > 5:
            s, found = held.pop(rng.randrange(len(held)))
            assert hash(tuple(s.items())) == found, "a snapshot changed"
            s.close()
        tell(b"1")
"""


class Worker:
    """A child that goes on until it is killed; it acknowledges through its pipe."""

    def __init__(self, path, code, number, seed):
        self.child = Child(path=path)
        self.child("import random")
        self.child(code)
        self.raw = b""
        os.set_blocking(self.child.process.stdout.fileno(), False)
        self.child.begin(f"run({number}, {seed})")

    def drain(self):
        while piece := self.child.process.stdout.read1(1 << 16) if not self.child.busy() else b"":
            self.raw += piece

    def kill(self):
        """The lines that it told; nothing else may have come, such as an error."""
        ended = self.child.process.poll()
        self.child.kill()
        self.drain()
        self.child.__exit__()
        assert ended is None, self.raw[-500:]
        return self.raw.split(b"\n")[:-1]


@pytest.mark.guarantee
def test_two_writers_and_four_readers_are_killed_and_stopped_at_any_moment(path):
    seed = int(os.environ.get("COWDB_SEED") or random.randrange(1 << 32))
    print(f"COWDB_SEED={seed}")
    rng = random.Random(seed)
    cowdb.open(path, page_size=4096).close()
    os.symlink(path, path + "-link")
    codes = [WRITER, WRITER, READER, READER, READER, READER]
    numbers = [0, 1, 0, 1, 2, 3]
    acknowledged = [0, 0]
    reads = 0

    def start(index):
        return Worker(path, codes[index], numbers[index], rng.randrange(1 << 32))

    def kill(index):
        nonlocal reads
        lines = workers[index].kill()
        if index >= 2:
            reads += len(lines)
            return
        for line in lines:
            if line.startswith(b"start"):
                found = int(line[5:])
                assert found - acknowledged[index] in (0, 1), f"writer {index}: {acknowledged[index]} became {found}"
                acknowledged[index] = found
            else:
                acknowledged[index] = int(line)

    workers = [start(index) for index in range(6)]
    try:
        end = time.monotonic() + float(os.environ.get("COWDB_SECONDS") or 6)
        while time.monotonic() < end:
            time.sleep(rng.random() * 0.3)
            for worker in workers:
                worker.drain()
            index = rng.choice([0, 1, 0, 1, 2, 3, 4, 5])
            if rng.random() < 0.7:
                kill(index)
                workers[index] = start(index)
            else:
                workers[index].child.signal(signal.SIGSTOP)
                time.sleep(rng.random() * 0.3)
                workers[index].child.signal(signal.SIGCONT)
        for index in range(6):
            kill(index)
    finally:
        for worker in workers:
            worker.child.kill()
    assert reads > 0
    assert min(acknowledged) > 0
    found = checked(path)
    for index in range(2):
        assert int(found[b"n%d" % index]) - acknowledged[index] in (0, 1)
    assert int(found[b"total"]) == sum(int(found[b"n%d" % index]) for index in range(2))


# ---------------------------------------------------------------- files that go away


@pytest.mark.guarantee
@pytest.mark.parametrize("how", ["renamed", "replaced", "deleted"])
def test_writing_to_a_file_that_has_moved_names_it(path, how):
    with cowdb.open(path) as db, Child(path=path) as other:
        db[b"n"] = b"1"
        other(OPEN)
        if how == "renamed":
            os.rename(path, path + "-moved")
        elif how == "replaced":
            cowdb.open(path + "-new").close()
            os.replace(path + "-new", path)
        else:
            os.remove(path)
        for write in (db.write, lambda: other("db.write()")):
            with pytest.raises(Error, match="replaced, renamed or deleted") as caught:
                write()
            assert repr(path) in str(caught.value)
        assert db[b"n"] == other("db[b'n']") == b"1", "what is open can still be read"
        other("db.close()")
    if how == "renamed":
        assert checked(path + "-moved")[b"n"] == b"1"


@pytest.mark.guarantee
def test_who_opens_a_renamed_file_that_is_in_use_is_told_so(path):
    with cowdb.open(path) as db, Child(path=path) as other:
        db[b"n"] = b"1"
        os.rename(path, path + "-moved")
        with pytest.raises(Error, match="renamed"):
            other("cowdb.open(path + '-moved')")
        os.rename(path + "-moved", path)
        other(OPEN)
        other("db[b'n'] = b'2'")
        assert db[b"n"] == b"2"


def test_what_is_left_of_a_closed_handle_takes_no_lock_of_the_next_one_along(path, opening):
    """The story: the mapping of a closed handle's lock file has a descriptor, which the garbage collector closed later.

    With that a process loses all its record locks on the file, also those of a handle that it opened meanwhile.
    """
    first = cowdb.open(path)
    first[b"a"] = b"1"
    left = first._core, first._core.pager.words
    first.close()
    with cowdb.open(path) as db, db.read(), Child(path=path) as other:
        del left, first
        gc.collect()
        other(opening)
        assert [reader["pid"] for reader in other("db.readers()")] == [os.getpid()]
        other("db[b'a'] = b'2'")
        assert db[b"a"] == b"2"


@pytest.mark.guarantee
@pytest.mark.parametrize("first", ["the link", "the file"])
def test_a_link_to_a_file_leads_to_the_same_database(path, opening, first, tmp_path):
    cowdb.open(path).close()
    (tmp_path / "elsewhere").mkdir()
    os.symlink(os.path.dirname(path), tmp_path / "elsewhere" / "directory")
    link = str(tmp_path / "elsewhere" / "link")
    os.symlink(os.path.join("directory", os.path.basename(path)), link)
    mine, theirs = (link, path) if first == "the link" else (path, link)
    with cowdb.open(mine) as db, Child(path=theirs) as other:
        other(opening)
        for number in range(3):
            db[b"n"] = b"%d" % number
            assert other("db[b'n']") == b"%d" % number
            other("db[b'm'] = b'%d' % number", number=number)
            assert db[b"m"] == b"%d" % number
        other("s = db.read()")
        assert [reader["pid"] for reader in db.readers()] == [other.pid]
        assert other("db.check()") == []
    assert not os.path.lexists(link + "-lock")
    assert checked(path)[b"m"] == b"2"


def test_a_second_name_of_a_file_is_refused_as_long_as_the_first_is_in_use(path):
    """A hard link has a lock file of its own beside it, so the two would not see each other's readers."""
    with cowdb.open(path) as db, Child(path=path) as other:
        db[b"n"] = b"1"
        os.link(path, path + "-name")
        with pytest.raises(Error, match="lock file"):
            other("cowdb.open(path + '-name')")
        db[b"n"] = b"2"
        db.close()
        other("db = cowdb.open(path + '-name'); db[b'm'] = db[b'n']")
        with pytest.raises(Error, match="lock file"):
            cowdb.open(path)
        other("db.close()")
    assert checked(path)[b"m"] == b"2"


def test_a_deleted_lock_file_is_made_again_when_all_have_left(path):
    with cowdb.open(path) as db, Child(path=path) as other:
        db[b"n"] = b"1"
        os.remove(lock_file_path(path))
        with pytest.raises(Error, match="lock file"):
            other(OPEN)
        db[b"n"] = b"2"
        db.close()
        other(OPEN)
        assert other("db[b'n']") == b"2"
    checked(path)


def test_nothing_is_left_of_the_databases_of_these_tests():
    assert core_module.cores == {}
    assert FileStorage.flush.__module__ == "cowdb.storage"
