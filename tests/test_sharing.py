"""Coming in, being seen, taking turns, leaving: one user of a file beside others in processes of their own (P1, P10).

Most tests run with both kinds of locks: those of open file descriptions, and the record locks that stand in for them.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import signal
import time
from pathlib import Path

import pytest
from child import Child, until
from test_lockfile import state

from cowdb import sharing as sharing_module
from cowdb.bytelocks import NEXT, TIMED, ByteLocks, RecordLocks
from cowdb.errors import Error, LockTimeoutError
from cowdb.kernel import FileSharing
from cowdb.lockfile import PINS_PER_BLOCK, LockFile
from cowdb.meta import encode
from cowdb.sharing import LocalSharing, lock_file_path

KINDS = [ByteLocks, RecordLocks] if ByteLocks.available() else [RecordLocks]

ENTER = """
from cowdb import bytelocks
from cowdb.kernel import FileSharing
from test_lockfile import state

def enter(read_only=False, timeout=None):
    made = []
    sharing = FileSharing(
        path, read_only=read_only, mode=0o600, timeout=timeout, make=lambda: made.append(1) or state(5),
        locks_type=getattr(bytelocks, kind),
    )
    sharing.first = bool(made)
    return sharing

def read_only_medium():
    def refuse(*_):
        raise OSError(30, "Read-only file system")
    import cowdb.sharing
    cowdb.sharing.LockFile = refuse
"""


def nothing():
    pass


@pytest.fixture(params=KINDS, ids=lambda kind: kind.__name__)
def kind(request):
    return request.param


@pytest.fixture
def path(tmp_path):
    name = tmp_path / "x.cowdb"
    name.write_bytes(b"")
    return str(name)


@pytest.fixture
def child(kind, path):
    with Child(path=path, kind=kind.__name__) as other:
        other(ENTER)
        yield other


@pytest.fixture
def enter(kind, path):
    """Come in; the sharing knows whether it was the first one inside."""
    entered = []

    def come_in(**options):
        made = []
        sharing = FileSharing(
            path,
            **{
                "read_only": False,
                "mode": 0o600,
                "timeout": None,
                "make": lambda: made.append(1) or state(5),
                "locks_type": kind,
                **options,
            },
        )
        sharing.first = bool(made)
        entered.append(sharing)
        return sharing

    yield come_in
    for sharing in entered:
        sharing.abandon()


# ---------------------------------------------------------------- coming and going


def test_the_first_one_inside_makes_the_words_and_the_next_one_finds_them(enter, child):
    mine = enter()
    assert mine.first
    assert mine.durable is None
    assert mine.busy, "the file is as the last user left it, and nobody has looked yet"
    mine.durable, mine.busy = (5, 1), False
    word = mine.publish(state(6), encode(state(6), 0))
    child("s = enter()")
    assert not child("s.first")
    assert child("(s.durable, s.busy, s.published)") == ((5, 1), False, word)
    assert child("s.published_meta(s.published)") == state(6)


def test_when_all_have_left_the_next_one_is_the_first_again(enter, child):
    mine = enter()
    child("s = enter()")
    mine.publish(state(9), encode(state(9), 0))
    mine.leave(nothing)
    child("s.leave(lambda: None)")
    again = enter()
    assert again.first
    assert again.durable is None
    assert again.published_meta(again.published).transaction == 5


def test_a_killed_last_one_does_not_keep_the_words_alive(enter, child):
    child("s = enter(); s.durable = (5, 0); s.pin(5, 10)")
    child.kill()
    mine = enter()
    assert mine.first
    assert mine.durable is None
    assert mine.others() == []


def test_the_last_one_settles_and_nobody_else(enter, child):
    settled = []
    mine = enter()
    child("s = enter()")
    mine.leave(lambda: settled.append("mine"))
    assert settled == []
    child("settled = []; s.leave(lambda: settled.append(1))")
    assert child("settled") == [1]


def test_who_settles_is_alone(enter, child):
    """Nobody comes in meanwhile; he waits at the door."""
    mine = enter()
    seen = []

    def settle():
        child.begin("s = enter()")
        seen.append(child.busy(0.1))

    mine.leave(settle)
    child.end()
    assert seen == [True]
    assert child("s.first")


def test_an_error_while_settling_passes_and_everything_is_let_go(enter, child):
    mine = enter()

    def fail():
        raise OSError(errno.EIO, "no")

    with pytest.raises(OSError, match="no"):
        mine.leave(fail)
    assert child("enter(timeout=5).first")


def test_a_make_that_fails_lets_everything_go(enter, child):
    def fail():
        raise Error("not today")

    with pytest.raises(Error, match="not today"):
        enter(make=fail)
    assert child("enter(timeout=5).first")


def test_who_cannot_come_in_in_time_says_so(enter, child):
    child("s = enter(); s._locks.try_lock(0)")
    with pytest.raises(LockTimeoutError, match="open or close") as caught:
        enter(timeout=0.05)
    assert caught.value.timeout == 0.05
    child("s._locks.unlock(0)")
    assert not enter(timeout=5).first


def test_a_process_that_dies_at_the_door_blocks_nobody(enter, child):
    child("s = enter(); s._locks.try_lock(0)")
    child.kill()
    assert enter(timeout=5).first


def test_a_process_that_dies_while_it_makes_the_words_leaves_them_to_the_next(enter, child):
    child("locks_type = getattr(bytelocks, kind)")
    child.dies("FileSharing(path, read_only=False, mode=0o600, timeout=None, make=die, locks_type=locks_type)")
    mine = enter()
    assert mine.first
    assert mine.published_meta(mine.published).transaction == 5


# ---------------------------------------------------------------- the lock file (P10)


@pytest.mark.guarantee
@pytest.mark.parametrize("how", ["deleted", "empty", "copied", "garbage"])
def test_a_lock_file_that_is_not_the_one_in_use_raises_an_error_that_names_it(path, how):
    """The locks are on the data file, so whoever comes later notices, instead of going his own way."""
    locks = lock_file_path(path)
    mine = FileSharing(path, read_only=False, mode=0o600, timeout=None, make=lambda: state(5))
    try:
        if how == "copied":
            shutil.copy(locks, locks + "-copy")
            os.replace(locks + "-copy", locks)
        else:
            os.remove(locks)
        if how in {"empty", "garbage"}:
            with open(locks, "wb") as file:
                file.write(os.urandom(500_000) if how == "garbage" else b"")
        for _ in range(2):
            with Child(path=path, kind="ByteLocks") as other:
                other(ENTER)
                with pytest.raises(Error, match="its lock file") as caught:
                    other("enter()")
                assert repr(locks) in str(caught.value)
        assert mine.published_meta(mine.published).transaction == 5, "who is inside goes on"
        mine.lock_writer(1)
        mine.unlock_writer()
    finally:
        mine.leave(nothing)
    with Child(path=path, kind="ByteLocks") as other:
        other(ENTER)
        assert other("enter().first"), "when all have left, any lock file will do"


@pytest.mark.parametrize("content", [b"", b"x", b"y" * 400_000, "old"])
def test_a_lock_file_of_before_is_harmless(enter, child, path, content):
    locks = lock_file_path(path)
    if content == "old":
        child("s = enter(); s.durable = (77, 1); s.pin(60, 10); s.publish(state(77), b'damaged')")
        child.kill()
    else:
        with open(locks, "wb") as file:
            file.write(content)
    mine = enter()
    assert mine.first
    assert mine.durable is None
    assert mine.others() == []
    assert mine.published_meta(mine.published).transaction == 5


# ---------------------------------------------------------------- pins


def test_a_pin_is_seen_by_others_until_it_is_taken_back(enter, child):
    mine = enter()
    child("s = enter(); a = s.pin(5, 10); b = s.pin(6, 12)")
    found = [(pin.owner, pin.transaction, pin.page_count) for pin in mine.others()]
    assert sorted(found) == [(child.pid, 5, 10), (child.pid, 6, 12)]
    assert abs(mine.others()[0].started - time.time()) < 60
    assert child("s.others()") == []
    child("s.unpin(a)")
    assert [pin.transaction for pin in mine.others()] == [6]
    child("s.unpin(b)")
    assert mine.others() == []


@pytest.mark.guarantee
def test_a_killed_process_pins_nothing(enter, child):
    mine = enter()
    child("s = enter(); s.pin(5, 10)")
    assert len(mine.others()) == 1
    child.kill()
    assert mine.others() == []


def test_a_stopped_process_still_pins(enter, child):
    mine = enter()
    child("s = enter(); s.pin(5, 10)")
    child.signal(signal.SIGSTOP)
    assert len(mine.others()) == 1


def test_who_leaves_pins_nothing(enter, child):
    mine = enter()
    child("s = enter(); s.pin(5, 10); s.leave(lambda: None)")
    assert mine.others() == []


def test_the_block_of_a_dead_process_is_used_again(enter, child, kind, path):
    mine = enter()
    child("s = enter(); s.pin(5, 10)")
    child.kill()
    for _ in range(3):
        with Child(path=path, kind=kind.__name__) as another:
            another(ENTER)
            another("s = enter(); s.pin(8, 10)")
            assert [(pin.owner, pin.transaction) for pin in mine.others()] == [(another.pid, 8)]
            assert another("s._blocks") == {0}


def test_one_process_may_pin_any_number_of_snapshots(enter, child):
    mine = enter()
    mine.pin(3, 10)
    many = 40 * PINS_PER_BLOCK  # more than the blocks that there are at first
    child("s = enter(); handles = [s.pin(5 + i, 10) for i in range(many)]", many=many)
    assert sorted(pin.transaction for pin in mine.others()) == list(range(5, 5 + many))
    assert [pin.transaction for pin in mine.others() if pin.owner != child.pid] == []
    assert child("[pin.transaction for pin in s.others()]") == [3], "the words grew under somebody else's pins"
    handles = [mine.pin(1000 + number, 10) for number in range(PINS_PER_BLOCK + 5)]
    assert len(child("s.others()")) == 1 + len(handles)
    child("[s.unpin(handle) for handle in handles]")
    assert mine.others() == []
    child("[s.pin(5 + i, 10) for i in range(many)]", many=many)
    assert child("len(s._blocks)") == many // PINS_PER_BLOCK, "words that are free again are used again"


def test_who_has_left_does_not_speak_for_a_lock_file_any_more(kind, enter, child, path):
    """The story: his mapping of the lock file lived on, and with it the lock that says that it is the one in use."""
    mine = enter()
    mine.leave(nothing)
    os.rename(lock_file_path(path), path + "-old")
    child("s = enter()")
    os.rename(path + "-old", lock_file_path(path))
    if kind is ByteLocks:  # record locks are on the lock file: who comes by another one meets nobody
        for _ in range(2):  # nor does one who was refused
            with pytest.raises(Error, match="lock file") as caught:
                enter()
            assert caught.traceback, "which keeps what was opened alive"
    assert mine.words is not None


def test_a_forked_child_that_lives_on_does_not_speak_for_its_parents_lock_file(kind, child, path):
    if kind is not ByteLocks:
        pytest.skip("record locks are on the lock file: who comes by another one meets nobody")
    with Child(path=path, kind=kind.__name__) as parent:
        parent(ENTER)
        parent("s = enter()")
        fork = """
read, write = os.pipe()
pid = os.fork()
if not pid:
    s.abandon()
    os.write(write, b"x")
    time.sleep(60)
os.read(read, 1)
"""
        parent(fork)
        grandchild = parent("pid")
        try:
            parent.kill()
            os.rename(lock_file_path(path), path + "-old")
            child("s = enter()")
            os.rename(path + "-old", lock_file_path(path))
            with Child(path=path, kind=kind.__name__) as late:
                late(ENTER)
                with pytest.raises(Error, match="lock file"):
                    late("enter()")
        finally:
            os.kill(grandchild, signal.SIGKILL)


# ---------------------------------------------------------------- turns


def test_one_process_writes_at_a_time_and_the_error_names_it(enter, child):
    mine = enter()
    child("s = enter(); s.lock_writer(None)")
    with pytest.raises(LockTimeoutError, match=f"process {child.pid}") as caught:
        mine.lock_writer(0.05)
    assert caught.value.holder == child.pid
    assert caught.value.timeout == 0.05
    with pytest.raises(LockTimeoutError):
        mine.lock_writer(0)
    child("s.unlock_writer()")
    mine.lock_writer(0)
    with pytest.raises(LockTimeoutError, match=f"process {os.getpid()}"):
        child("s.lock_writer(0.05)")
    mine.unlock_writer()
    child("s.lock_writer(None)")


@pytest.mark.guarantee
def test_a_killed_writer_lets_the_next_one_write(enter, child):
    mine = enter()
    child("s = enter(); s.lock_writer(None)")
    child.kill()
    mine.lock_writer(5)


def test_contended_says_that_somebody_waits(enter, child):
    mine = enter()
    child("s = enter()")
    assert not mine.contended()
    mine.lock_writer(None)
    assert not mine.contended(), "one does not wait for oneself"
    child.begin("s.lock_writer(None)")
    until(mine.contended)
    mine.unlock_writer()
    child.end()
    assert not mine.contended(), "who has his turn waits no more"


def test_one_that_was_killed_while_it_waited_is_in_nobodys_way(enter, child):
    mine = enter()
    child("s = enter()")
    mine.lock_writer(None)
    child.begin("s.lock_writer(None)")
    until(mine.contended)
    child.kill()
    assert not mine.contended()
    mine.unlock_writer()
    mine.lock_writer(1)


@pytest.fixture
def line(enter, child, path, kind):
    """I write; `child` is the next; `timed` waits with a timeout, `late` has come last, and waits without one."""
    mine = enter()
    child("s = enter()")
    with Child(path=path, kind=kind.__name__) as timed, Child(path=path, kind=kind.__name__) as late:
        for other in (timed, late):
            other(ENTER)
            other("s = enter()")
        mine.lock_writer(None)
        child.begin("s.lock_writer(None)")
        until(mine.contended)
        timed.begin("s.lock_writer(20)")
        until(lambda: mine._locks.is_taken(TIMED))
        yield mine, child, timed, late


def test_who_waits_with_a_timeout_is_let_past_when_too_many_turns_have_gone_past_him(line):
    """The story: the kernel wakes the others one after the other, and who has to ask finds the lock taken each time."""
    mine, child, timed, late = line
    mine.words.passed = 4
    late.begin("s.lock_writer(None)")
    time.sleep(0.05)
    mine.unlock_writer()
    child.end()
    until(mine.contended)
    child("s.unlock_writer()")
    timed.end()
    assert late.busy(0.05)
    timed("s.unlock_writer()")
    late.end()
    assert mine.words.passed == 1
    late("s.unlock_writer()")
    assert not mine._locks.is_taken(TIMED)
    assert not mine._locks.is_taken(NEXT)


def test_one_who_was_let_past_and_is_killed_is_in_nobodys_way(line):
    mine, child, timed, late = line
    mine.words.passed = 4
    late.begin("s.lock_writer(None)")
    time.sleep(0.05)
    timed.kill()
    mine.unlock_writer()
    child.end()
    child("s.unlock_writer()")
    late.end()
    late("s.unlock_writer()")
    mine.lock_writer(0)


def test_a_wait_that_was_given_up_leaves_nothing_behind(enter, child):
    mine = enter()
    child("s = enter(); s.lock_writer(None)")
    for _ in range(3):
        with pytest.raises(LockTimeoutError):
            mine.lock_writer(0.01)
    assert not child("s.contended()")
    child("s.unlock_writer(); s.lock_writer(1)")
    assert mine._locks.try_lock(NEXT)
    assert mine._locks.try_lock(TIMED)


# ---------------------------------------------------------------- who cannot register


@pytest.fixture
def static(enter, path, monkeypatch):
    """Come in where nothing can be written beside the data file; others were here before."""
    Path(lock_file_path(path)).touch()

    def come_in(**options):
        def refuse(*_):
            raise OSError(errno.EROFS, "Read-only file system")

        with monkeypatch.context() as patch:
            patch.setattr(sharing_module, "LockFile", refuse)
            return enter(read_only=True, **options)

    return come_in


def test_a_reader_that_cannot_register_keeps_writers_out(static, child):
    mine = static()
    assert mine.published_meta(mine.published).transaction == 5
    child("s = enter()")
    begun = time.monotonic()
    with pytest.raises(LockTimeoutError, match="cannot register"):
        child("s.lock_writer(0.1)")
    assert time.monotonic() - begun >= 0.1
    assert child("s._locks.try_lock(2)"), "who gave up has let the writer's lock go"
    child("s.unlock_writer()")
    mine.leave(nothing)
    child("s.lock_writer(5)")


def test_a_writer_waits_until_such_a_reader_has_left(static, child):
    mine = static()
    child("s = enter()")
    child.begin("s.lock_writer(None)")
    assert child.busy(0.1)
    mine.leave(nothing)
    child.end()


def test_such_a_reader_waits_for_the_writer(static, child):
    child("s = enter(); s.lock_writer(None)")
    with pytest.raises(LockTimeoutError, match="somebody writes"):
        static(timeout=0.05)
    child("s.unlock_writer()")
    mine = static(timeout=5)
    with pytest.raises(LockTimeoutError):
        child("s.lock_writer(0.05)")
    mine.leave(nothing)


def test_without_a_lock_file_a_read_only_medium_can_be_read(static, path):
    os.remove(lock_file_path(path))
    mine = static()
    assert mine.published_meta(mine.published).transaction == 5


def test_a_killed_reader_of_this_kind_is_in_nobodys_way(enter, child):
    mine = enter()
    child("read_only_medium(); s = enter(read_only=True)")
    with pytest.raises(LockTimeoutError):
        mine.lock_writer(0.05)
    child.kill()
    mine.lock_writer(5)


def test_any_number_of_them_read_together(static, child):
    static()
    child("read_only_medium(); s = enter(read_only=True, timeout=1)")
    assert child("s.published_meta(s.published).transaction") == 5
    assert child("(s.durable, s.busy, s.others(), s.pin(5, 10))") == (None, True, [], 0)


def test_a_writer_needs_the_lock_file(enter, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(sharing_module, "LockFile", refuse)
    with pytest.raises(OSError, match="Read-only file system"):
        enter()


# ---------------------------------------------------------------- alone


def test_a_file_that_nobody_else_can_see_has_the_same_words():
    alone = LocalSharing()
    assert alone.durable is None
    assert alone.busy
    word = alone.publish(state(6), b"")
    assert alone.published == word
    assert alone.published_meta(word) == state(6)
    later = alone.publish(state(6), b"")
    assert later != word
    assert alone.published_meta(word) is None
    alone.lock_writer(0)
    assert not alone.contended()
    alone.unlock_writer()
    alone.unpin(alone.pin(5, 10))
    assert alone.others() == []
    settled = []
    alone.leave(lambda: settled.append(1))
    assert settled == [1]
    alone.abandon()


@pytest.mark.guarantee
@pytest.mark.parametrize("how", ["interrupted", "a thread in the middle"])
def test_pins_of_others_are_seen_while_a_block_is_claimed(enter, child, monkeypatch, how):
    """The story: who had a block of words in his list before the words counted it took himself for the only one who has
    blocks. He saw no pins of others, and wrote over pages that they were reading."""
    child("other = enter(); pin = other.pin(5, 9)")
    sharing = enter()
    real = LockFile.own
    seen = []

    def own(self, *arguments):
        if how == "interrupted":
            raise KeyboardInterrupt
        seen.append([pin.transaction for pin in sharing.others()])
        return real(self, *arguments)

    monkeypatch.setattr(LockFile, "own", own)
    with contextlib.suppress(KeyboardInterrupt):
        sharing.pin(6, 9)
    monkeypatch.setattr(LockFile, "own", real)
    seen.append([pin.transaction for pin in sharing.others()])
    assert seen == [[5]] * len(seen)
    assert sharing.pin(6, 9)
    assert [pin.transaction for pin in sharing.others()] == [5]
