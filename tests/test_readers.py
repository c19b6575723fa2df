"""The gate: which snapshots live (P6), and that finalizers may use it at any moment."""

from __future__ import annotations

import threading
import time

import pytest

import cowdb
from cowdb import core as core_module
from cowdb import format as fmt
from cowdb import kernel, readers
from cowdb import locks as locks_module
from cowdb.errors import ClosedError
from cowdb.kernel import Space
from cowdb.meta import Meta
from cowdb.sharing import LocalSharing
from cowdb.testing import MemoryDisk

FIRST = Meta(4096, b"x" * 16, 1, 1, 2, 0, fmt.EMPTY_TREE, fmt.EMPTY_TREE, fmt.EMPTY_TREE, b"")


class Gate(readers.Gate):
    """A gate of a file that nobody else can see; what is published has no page."""

    def __init__(self, meta, space):
        sharing = LocalSharing()
        sharing.publish(meta, b"")
        super().__init__(sharing, lambda meta, before: before or space)

    def publish(self, meta, space):
        super().publish(meta, b"", space)


@pytest.fixture
def space():
    storage = MemoryDisk({"/f": bytes(8192)}).open("/f", read_only=True)
    return Space(storage.map(8192), 4096)


def ids(gate):
    return [snapshot.meta.transaction for snapshot in gate.snapshots()]


def test_the_current_snapshot_lives_without_users(space):
    gate = Gate(FIRST, space)
    assert ids(gate) == [1]
    assert gate.users() == 0
    gate.publish(FIRST._replace(transaction=2), space)
    assert ids(gate) == [2]


def test_an_older_snapshot_lives_as_long_as_it_has_users(space):
    gate = Gate(FIRST, space)
    one, two = gate.begin(), gate.begin()
    gate.publish(FIRST._replace(transaction=5), space)
    three = gate.begin()
    assert one is two
    assert ids(gate) == [1, 5]
    assert gate.users() == 3
    gate.end(one)
    gate.again(two)
    gate.end(two)
    assert ids(gate) == [1, 5]
    gate.end(two)
    assert ids(gate) == [5]
    gate.end(three)
    assert gate.users() == 0
    assert ids(gate) == [5]


@pytest.mark.parametrize("ask", [Gate.begin, Gate.users, Gate.snapshots])
def test_what_finalizers_left_is_counted_out_at_the_next_question(space, ask):
    gate = Gate(FIRST, space)
    snapshot = gate.begin()
    gate.publish(FIRST._replace(transaction=2), space)
    gate.leave(snapshot)
    ask(gate)
    assert snapshot.users == 0
    assert ids(gate) == [2]


def test_a_finalizer_may_leave_while_its_own_thread_is_inside(space):
    gate = Gate(FIRST, space)
    snapshot = gate.begin()

    def collected_inside():
        with gate._lock:
            gate.leave(snapshot)

    thread = threading.Thread(target=collected_inside, daemon=True)
    thread.start()
    thread.join(10)
    assert not thread.is_alive()
    assert gate.users() == 0


def test_many_threads_begin_and_end_and_the_counts_come_out_even(space):
    gate = Gate(FIRST, space)

    def work():
        for _ in range(2000):
            gate.end(gate.begin())
            gate.leave(gate.begin())

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for number in range(2, 200):
        gate.publish(FIRST._replace(transaction=number), space)
    for thread in threads:
        thread.join()
    assert gate.users() == 0
    assert ids(gate) == [199]


def test_a_gate_shuts_only_when_nobody_is_inside(space):
    gate = Gate(FIRST, space)
    snapshot = gate.begin()
    assert not gate.shut()
    other = gate.begin()
    gate.end(snapshot)
    gate.leave(other)
    assert gate.shut()
    with pytest.raises(ClosedError):
        gate.begin()


def test_what_a_finalizer_leaves_while_somebody_is_inside_is_ended_when_he_comes_out(space):
    """The story: it was left to the next call, so an idle process kept pages from the others."""
    gate = Gate(FIRST, space)
    old = gate.begin()
    sharing = gate._sharing

    def collect(act):
        def inside(*arguments):
            if old.users:
                gate.leave(old)
                assert old.users, "somebody is inside"
            return act(*arguments)

        return inside

    sharing.publish = collect(sharing.publish)
    gate.publish(FIRST._replace(transaction=2), space)
    assert not old.users
    old = gate.begin()
    gate.publish(FIRST._replace(transaction=3), space)
    sharing.pin = collect(sharing.pin)
    gate.begin()
    assert not old.users


def test_nobody_shuts_the_gate_behind_a_guest_and_the_last_one_out_tells(space):
    gate = Gate(FIRST, space)
    told = []
    with gate.guest(), gate.guest():
        gate.when_idle = lambda: told.append(gate.shut())
        assert not gate.shut()
        snapshot = gate.begin()
    gate.leave(gate.begin())
    assert told == []
    gate.leave(snapshot)
    assert told == [True]
    with pytest.raises(ClosedError), gate.guest():
        pass


def test_a_use_that_has_ended_is_not_shared(space):
    gate = Gate(FIRST, space)
    snapshot = gate.begin()
    gate.end(snapshot)
    with pytest.raises(ClosedError):
        gate.again(snapshot)
    assert gate.users() == 0


def test_a_gate_that_shuts_itself_while_it_is_being_shut_is_shut_once(space):
    """The story: who was left was counted out, that told the owner, who closed the file within the first closing."""
    gate = Gate(FIRST, space)
    snapshot = gate.begin()
    closed = []

    def close():
        if not closed and gate.shut():
            closed.append(1)

    gate.when_idle = close
    gate._left.append(snapshot)
    close()
    assert closed == [1]


@pytest.mark.parametrize("how", ["begin", "hold"])
def test_an_interrupt_as_a_read_has_begun_leaves_nobody_behind(tmp_path, how):
    """The story: who had counted himself in was lost if it came while he ended what others had left."""
    with cowdb.open(tmp_path / "db") as db:
        gate = db._core.pager.gate
        first = gate.begin()
        gate._left.append(gate.begin())

        def struck():
            del gate._settle
            raise KeyboardInterrupt

        gate._settle = struck
        held = []
        with pytest.raises(KeyboardInterrupt):
            gate.hold(held) if how == "hold" else gate.begin()
        gate.drop(held)
        assert gate.users() == 1
        gate.end(first)
        assert db.readers() == []


@pytest.mark.skipif(kernel.FORM == "plain", reason="plain Python can be interrupted between any two of its steps")
def test_what_a_finalizer_left_is_ended_without_python(tmp_path):
    with cowdb.open(tmp_path / "db") as db:
        gate, sharing = db._core.pager.gate, db._core.pager.words
        gate.end(gate.begin())
        free = len(sharing._free_pins)
        gate._left.append(gate.begin())
        assert len(sharing._free_pins) == free - 1
        sharing.unpin = None  # where Ctrl-C could strike first
        gate._settle()
        del sharing.unpin
        assert gate.users() == 0
        assert len(sharing._free_pins) == free


def test_what_a_freed_page_waits_for_in_a_file_that_processes_share(database):
    """Readers, the published state, D and what is sealed (P6); the compiled gate looks for itself."""
    db = database(durability="lazy")
    db[b"a"] = b"1"
    db.sync()
    pager = db._core.pager
    durable = pager.meta.transaction
    assert pager.live() == [durable]
    db[b"a"] = b"2"
    with db.read() as reader:
        for value in (b"3", b"4"):
            db[b"a"] = value
        published = pager.meta.transaction
        assert pager.live() == [durable, reader.id, published]
        assert pager.gate.live([published + 1]) == [durable, reader.id, published, published + 1]
        assert pager.gate.live([]) == readers.Gate.live(pager.gate, [])
    assert pager.live() == [durable, published]
    pin = pager.words.pin(durable + 1, 2)  # as another reader would
    assert pager.live() == [durable, published], "what this process says is known without the words"
    pager.words.unpin(pin)
    db.sync()
    assert pager.live() == [published]


@pytest.mark.parametrize("act", ["get", "read", "write", "sync", "check", "stats", "close"])
def test_a_signals_handler_in_the_middle_of_the_gate_waits_for_nothing(tmp_path, act):
    """The story: it waited for its own thread, for ever; so did a `close` of SIGTERM's handler."""
    db = cowdb.open(tmp_path / "db")
    db[b"k"] = b"v"
    gate = db._core.pager.gate
    told = []

    def in_the_middle(below=gate._end_left):
        if not told:
            told.append(None)
            if act == "close":
                db.close()
            else:
                with pytest.raises(cowdb.Error, match="in the middle of a call to this database"):
                    db.get(b"k") if act == "get" else getattr(db, act)()
        below()

    gate._end_left = in_the_middle
    db.readers()
    assert told
    if act == "close":
        assert not core_module.cores, "it was closed as the call came out"
    else:
        assert db[b"k"] == b"v"
        assert db.readers() == []
        db.close()


def test_who_waits_for_another_thread_is_not_taken_for_one_who_waits_for_himself(tmp_path, monkeypatch):
    """Also if that one takes long; and methods of the gate that call each other are no handler."""
    monkeypatch.setattr(locks_module, "_LONG", 0.01)
    with cowdb.open(tmp_path / "db") as db:
        db[b"k"] = b"v"
        gate = db._core.pager.gate
        began, done = threading.Event(), []

        def look():
            began.set()
            with gate.using() as snapshot:
                done.append(snapshot.meta.transaction)
            done.append(db.stats().commits)

        thread = threading.Thread(target=look)
        with gate._lock:
            thread.start()
            assert began.wait(5)
            time.sleep(0.1)
            waited = not done
        thread.join(5)
        assert done == [2, 1]
        assert waited or kernel.FORM == "compiled"
