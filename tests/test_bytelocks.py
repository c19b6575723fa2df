"""Locks between processes (P10): both kinds, held against a process of its own, which is also killed."""

from __future__ import annotations

import fcntl
import os
import signal
import time

import pytest
from child import Child, until

from cowdb import bytelocks
from cowdb.bytelocks import FIRST_BLOCK, INSIDE, NEXT, OPEN, STATIC, WRITER, ByteLocks, RecordLocks

KINDS = [ByteLocks, RecordLocks] if ByteLocks.available() else [RecordLocks]


@pytest.fixture(params=KINDS, ids=lambda kind: kind.__name__)
def kind(request):
    return request.param


@pytest.fixture
def path(tmp_path):
    name = tmp_path / "file"
    name.write_bytes(b"")
    return str(name)


@pytest.fixture
def other(kind, path):
    with Child() as child:
        child(f"from cowdb.bytelocks import {kind.__name__}")
        child(f"locks = {kind.__name__}(path, writable=True)", path=path)
        yield child


@pytest.fixture
def locks(kind, path):
    mine = kind(path, writable=True)
    yield mine
    mine.close()


def test_the_bytes_are_all_different():
    assert len({OPEN, INSIDE, WRITER, NEXT, STATIC}) == 5
    assert max(OPEN, INSIDE, WRITER, NEXT, STATIC) < FIRST_BLOCK


def test_one_process_has_a_byte_and_another_does_not(locks, other):
    assert locks.try_lock(WRITER)
    assert not other("locks.try_lock(2)")
    assert other("locks.try_lock(3)"), "another byte is another lock"
    locks.unlock(WRITER)
    assert other("locks.try_lock(2)")
    assert not locks.try_lock(WRITER)


def test_taking_it_twice_and_letting_go_of_what_is_not_held_are_harmless(locks, other):
    locks.unlock(WRITER)
    assert locks.try_lock(WRITER)
    assert locks.try_lock(WRITER)
    locks.unlock(WRITER)
    assert other("locks.try_lock(2)")
    locks.unlock(WRITER)
    assert not locks.try_lock(WRITER)


def test_many_share_a_byte_and_nobody_has_it_alone_meanwhile(locks, other):
    assert locks.try_lock(INSIDE, shared=True)
    assert other("locks.try_lock(1, shared=True)")
    assert not locks.try_lock(INSIDE)
    assert not other("locks.try_lock(1)")
    other("locks.unlock(1)")
    assert locks.try_lock(INSIDE), "the last one of them may have it alone"
    assert not other("locks.try_lock(1, shared=True)")


def test_a_failed_upgrade_leaves_the_shared_lock(locks, other):
    assert locks.try_lock(INSIDE, shared=True)
    assert other("locks.try_lock(1, shared=True)")
    assert not locks.try_lock(INSIDE)
    other("locks.unlock(1)")
    assert other("locks.is_taken(1)")
    assert not other("locks.try_lock(1)")


def test_a_downgrade_lets_the_others_share(locks, other):
    assert locks.try_lock(INSIDE)
    assert not other("locks.try_lock(1, shared=True)")
    assert locks.try_lock(INSIDE, shared=True)
    assert other("locks.try_lock(1, shared=True)")


def test_is_taken_asks_without_taking(locks, other):
    assert not locks.is_taken(WRITER)
    assert locks.try_lock(WRITER)
    assert not locks.is_taken(WRITER), "the own lock stands in nobody's way"
    assert other("locks.is_taken(2)")
    assert other("locks.is_taken(2, shared=True)")
    assert locks.try_lock(WRITER, shared=True)
    assert other("locks.is_taken(2)")
    assert not other("locks.is_taken(2, shared=True)")
    locks.unlock(WRITER)
    assert not other("locks.is_taken(2)")


def test_the_wait_ends_at_the_deadline(locks, other):
    assert other("locks.try_lock(2)")
    begun = time.monotonic()
    assert not locks.lock(WRITER, begun + 0.05)
    assert time.monotonic() >= begun + 0.05
    assert not locks.lock(WRITER, begun), "a deadline in the past asks once"
    other("locks.unlock(2)")
    assert locks.lock(WRITER, begun), "... and takes what is free"


@pytest.mark.parametrize("seconds", [None, 20])
def test_who_waits_gets_it_when_it_is_let_go(locks, other, seconds):
    assert locks.try_lock(WRITER)
    other.begin(f"locks.lock(2, {'None' if seconds is None else f'time.monotonic() + {seconds}'})")
    assert other.busy(0.05)
    locks.unlock(WRITER)
    assert other.end() is True


@pytest.mark.guarantee
def test_the_kernel_frees_the_locks_of_a_killed_process(locks, other):
    other("locks.try_lock(2); locks.try_lock(1, shared=True); locks.try_lock(64)")
    assert locks.is_taken(WRITER)
    assert locks.is_taken(INSIDE)
    other.kill()
    assert locks.lock(WRITER, time.monotonic() + 10)
    assert locks.try_lock(INSIDE)
    assert locks.try_lock(FIRST_BLOCK)


def test_a_stopped_process_keeps_its_locks(locks, other):
    other("locks.try_lock(2)")
    other.signal(signal.SIGSTOP)
    assert not locks.lock(WRITER, time.monotonic() + 0.05)
    other.signal(signal.SIGCONT)
    other("locks.unlock(2)")
    assert locks.try_lock(WRITER)


def test_closing_lets_everything_go_and_may_be_repeated(kind, path, other):
    locks = kind(path, writable=True)
    assert locks.try_lock(WRITER)
    assert locks.try_lock(FIRST_BLOCK + 100_000)
    locks.close()
    locks.close()
    locks.abandon()
    assert other("locks.try_lock(2)")
    assert other("locks.try_lock(64 + 100_000)")


def in_a_fork(act):
    """Run `act` in a forked child that ends without any cleaning up; what it returns is its exit status."""
    pid = os.fork()
    if not pid:
        status = 99
        try:
            status = int(act() or 0)
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_a_forked_child_that_abandons_them_takes_nothing_from_its_parent(locks, other):
    assert locks.try_lock(WRITER)
    assert in_a_fork(locks.abandon) == 0
    assert not other("locks.try_lock(2)")
    locks.unlock(WRITER)
    assert other("locks.try_lock(2)")


@pytest.mark.parametrize("abandons", [True, False])
def test_closing_lets_go_although_a_forked_child_lives_on(kind, path, other, abandons):
    locks = kind(path, writable=True)
    assert locks.try_lock(WRITER)
    ready, tell = os.pipe()
    pid = os.fork()
    if not pid:
        if abandons:
            locks.abandon()
        os.write(tell, b"!")
        signal.pause()
        os._exit(0)
    try:
        os.read(ready, 1)
        locks.close()
        assert other("locks.try_lock(2)")
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(ready)
        os.close(tell)


def test_a_killed_parent_leaves_nothing_behind_in_a_child_that_abandoned(locks, other):
    """The descriptor that the child inherits is the same description: if it stayed open, so would the locks."""
    other("locks.try_lock(2)")
    grandchild = other(
        """
def fork():
    ready, tell = os.pipe()
    pid = os.fork()
    if not pid:
        locks.abandon()
        os.write(tell, b"!")
        signal.pause()
        os._exit(0)
    os.read(ready, 1)
    return pid
"""
    )
    grandchild = other("fork()")
    try:
        other.kill()
        until(lambda: locks.try_lock(WRITER))
    finally:
        os.kill(grandchild, signal.SIGKILL)


def test_without_writable_only_shared_locks_can_be_had(kind, path, other):
    locks = kind(path, writable=False)
    assert locks.try_lock(STATIC, shared=True)
    assert other(f"locks.is_taken({STATIC})")
    with pytest.raises(OSError, match="Bad file descriptor"):
        locks.try_lock(WRITER)
    assert not locks.is_taken(WRITER)
    assert other("locks.try_lock(2)")
    assert locks.is_taken(WRITER, shared=True)
    locks.close()


def test_a_file_that_is_not_there(kind, tmp_path):
    with pytest.raises(FileNotFoundError):
        kind(str(tmp_path / "none"), writable=True)


def test_the_identity_is_that_of_the_file(locks, path):
    found = os.stat(path)
    assert locks.identity() == (found.st_dev, found.st_ino)


@pytest.mark.skipif(not ByteLocks.available(), reason="this platform has no open-file-description locks")
def test_two_descriptions_in_one_process_exclude_each_other(path):
    one, two = ByteLocks(path, writable=True), ByteLocks(path, writable=True)
    assert one.try_lock(WRITER)
    assert not two.try_lock(WRITER)
    with open(path, "rb"):
        pass  # closing another descriptor of the file would end a record lock
    assert not two.try_lock(WRITER)
    one.close()
    assert two.try_lock(WRITER)
    two.close()


def test_a_request_is_laid_out_as_each_system_has_it():
    """On Linux the kind comes first, on the BSDs and macOS the range."""
    linux = bytelocks._request(1, 2, 3, linux=True)
    assert (linux[:2], linux[8:16], linux[16:24]) == (b"\1\0", b"\2" + bytes(7), b"\3" + bytes(7))
    bsd = bytelocks._request(1, 2, 3, linux=False)
    assert (bsd[:8], bsd[8:16], bsd[20:22]) == (b"\2" + bytes(7), b"\3" + bytes(7), b"\1\0")
    assert bytelocks._kind(linux, linux=True) == bytelocks._kind(bsd, linux=False) == 1


def test_a_platform_without_them_is_noticed(monkeypatch):
    monkeypatch.delattr(fcntl, "F_OFD_SETLK", raising=False)
    assert not ByteLocks.available()
