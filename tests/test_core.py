"""What all handles of one file in one process share: two names of a file, fork, the end of the last who looks in."""

from __future__ import annotations

import errno
import gc
import os
import signal
import sysconfig
import threading
import warnings

import pytest

import cowdb
from cowdb import core as core_module
from cowdb.kernel import Turn

fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


# ---------------------------------------------------------------- two handles in one process


@pytest.mark.guarantee
@pytest.mark.parametrize("kind", ["same path", "symbolic link", "hard link", "relative path"])
def test_two_handles_of_one_file_are_one_database(database, tmp_path, monkeypatch, kind):
    first = database()
    other = tmp_path / "other"
    if kind == "symbolic link":
        other.symlink_to(first.path)
    elif kind == "hard link":
        os.link(first.path, other)
    elif kind == "relative path":
        monkeypatch.chdir(tmp_path)
        other = "test.cowdb"
    else:
        other = first.path
    second = cowdb.open(other)
    first[b"a"] = b"1"
    assert second[b"a"] == b"1"
    with second.write() as transaction:
        with pytest.raises(cowdb.Error, match="open already"):
            first.write()
        transaction[b"b"] = b"2"
    assert first[b"b"] == b"2"
    first.close()
    assert second[b"a"] == b"1"
    second[b"c"] = b"3"
    second.close()
    assert second.closed
    assert not core_module.cores


def test_a_read_only_handle_reads_what_the_other_writes(database):
    writer = database()
    reader = cowdb.open(writer.path, read_only=True)
    writer[b"a"] = b"1"
    assert reader[b"a"] == b"1"
    with pytest.raises(cowdb.ReadOnlyError):
        reader.write()
    with pytest.raises(cowdb.ReadOnlyError):
        reader[b"a"] = b"2"
    reader.sync()
    assert reader.check() == []
    reader.close()


def test_a_file_that_is_open_for_reading_is_not_opened_for_writing_beside_it(database):
    database().close()
    reader = database(read_only=True)
    with pytest.raises(cowdb.ReadOnlyError, match="close that handle first"):
        database()
    reader.close()
    database()[b"a"] = b"1"


def test_read_only(database, tmp_path):
    with database() as db:
        db[b"a"] = b"1"
    before = (tmp_path / "test.cowdb").read_bytes()
    db = database(read_only=True)
    assert db[b"a"] == b"1"
    assert db.info()["read_only"]
    assert db.check() == []
    with pytest.raises(cowdb.ReadOnlyError) as caught:
        db.write()
    assert caught.value.errno == errno.EROFS
    db.sync()
    db.copy(tmp_path / "copy")
    db.close()
    assert (tmp_path / "test.cowdb").read_bytes() == before


def test_a_read_only_pager_refuses_by_itself(database):
    database().close()
    db = database(read_only=True)
    pager = db._core.pager
    with pytest.raises(cowdb.ReadOnlyError):
        pager.begin(Turn())
    pager.sync()


# ---------------------------------------------------------------- fork


@fork
@pytest.mark.guarantee
def test_transactions_refuse_in_a_forked_child_and_the_parent_is_unharmed(database):
    """LMDB ITS 8505, 8844: close after fork damaged the parent."""
    db = database()
    db[b"a"] = b"1"
    reader = db.read()
    tree = reader.tree  # noqa: F841
    writer = db.write()
    writer[b"b"] = b"2"
    cursor = reader.cursor()
    cursor.first()

    def in_child():
        for act in (lambda: reader[b"a"], lambda: list(reader), reader.trees, lambda: reader.get_view(b"a"),
                    lambda: cursor.seek(b"a"), lambda: writer[b"x"], writer.commit):  # fmt: skip
            with pytest.raises(cowdb.ForkedError):
                act()
        writer.abort()
        reader.close()
        assert db[b"a"] == b"1"  # the handle opens the file again by itself
        assert len(db) == 1
        with pytest.raises(cowdb.LockTimeoutError):
            db.write(timeout=0)
        db.close()
        db.close()

    child_does(in_child)
    assert reader[b"a"] == b"1"
    writer.commit()
    assert db[b"b"] == b"2"
    reader.close()
    assert db.check() == []


@fork
@pytest.mark.guarantee
def test_the_end_of_a_block_in_a_forked_child_commits_nothing(database):
    """The story: a child that was forked inside a `with db.write()` came to the end of the block and committed, too."""
    db = database()
    db[b"a"] = b"1"
    with db.write() as transaction:
        transaction[b"a"] = b"2"
        pid = os.fork()
        if not pid:
            status = 1
            try:
                transaction.__exit__(None, None, None)
            except cowdb.ForkedError:
                status = 0
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert db[b"a"] == b"1"
    assert db[b"a"] == b"2"


@fork
@pytest.mark.guarantee
def test_a_child_opens_the_file_anew_and_shares_it_with_its_parent(tmp_path):
    path = tmp_path / "db"
    db = cowdb.open(path)
    db[b"a"] = b"1"

    def in_child():
        with cowdb.open(path, lock_timeout=10) as again:
            assert again[b"a"] == b"1"
            again[b"b"] = b"2"

    child_does(in_child)
    assert db[b"b"] == b"2"
    db[b"c"] = b"3"
    assert db.check() == []
    db.close()


@fork
def test_a_child_that_lives_on_does_not_keep_the_file_locked(tmp_path):
    path = tmp_path / "db"
    db = cowdb.open(path)
    out, into = os.pipe()

    def in_parent():
        os.close(out)
        db.close()
        cowdb.open(path).close()
        os.close(into)

    def in_child():
        os.close(into)
        os.read(out, 1)

    child_does(in_child, in_parent)


@fork
def test_a_fork_while_other_threads_are_at_work(database):
    """Locks that another thread of the parent holds are held for ever in the child, so it must not touch them."""
    db = database()
    db[b"a"] = b"1"
    stop = threading.Event()

    def work():
        while not stop.is_set():
            db[b"a"] = b"1"
            with db.read() as snapshot:
                snapshot.get(b"a")

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(15):
            reader = db.read()

            def in_child(reader=reader):
                with pytest.raises(cowdb.ForkedError):
                    reader[b"a"]
                reader.close()
                assert db[b"a"] == b"1"
                db.close()
                gc.collect()

            child_does(in_child)
            reader.close()
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def child_does(work, meanwhile=lambda: None):
    """Fork; the child does `work` and must end well within half a minute."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # a fork with threads, from Python 3.12 on
        pid = os.fork()
    if not pid:
        status = 1
        try:
            signal.alarm(30)
            work()
            status = 0
        except BaseException as error:  # noqa: BLE001 - whatever it was, the test looks at it
            os.write(2, repr(error).encode())
        finally:
            os._exit(status)
    meanwhile()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


# ---------------------------------------------------------------- closing


def test_an_error_that_nobody_waits_for_is_logged(tmp_path, caplog, monkeypatch):
    db = cowdb.open(tmp_path / "db")
    db[b"large"] = b"L" * 50_000
    with db.read() as snapshot:
        view = snapshot.get_view(b"large")
    storage = db._core.storage
    db.close()

    def fail():
        raise OSError(errno.EIO, "no")

    monkeypatch.setattr(storage, "flush", fail)
    del view
    gc.collect()
    assert not core_module.cores
    assert "closing" in caplog.text
    monkeypatch.undo()
    with cowdb.open(tmp_path / "db") as db:
        assert len(db[b"large"]) == 50_000


def test_a_core_that_a_finalizer_closes_in_the_moment_of_opening_is_opened_anew(tmp_path):
    db = cowdb.open(tmp_path / "db")
    core = db._core

    class Vanishing(dict):
        def get(self, key):
            found = super().get(key)
            if found is not None and not done:
                done.append(1)
                found.handles = set()
                db._core = None
                found.close_if_unused()
            return found

    done = []
    cores = core_module.cores
    core_module.cores = Vanishing(cores)
    try:
        again = cowdb.open(tmp_path / "db")
        assert again._core is not core
        again[b"a"] = b"1"
        again.close()
    finally:
        core_module.cores = cores
        cores.clear()


# ---------------------------------------------------------------- views


@pytest.mark.guarantee
def test_a_view_pins_its_snapshot_as_long_as_it_is_held(database):
    db = database(page_size=4096)
    db[b"large"] = b"L" * 50_000
    with db.read() as snapshot:
        view = snapshot.get_view(b"large")
    part = view[100:200]
    for number in range(20):
        db[b"large"] = b"%d" % (number % 10) * 50_000
    assert bytes(part) == b"L" * 100
    assert view == b"L" * 50_000
    assert view.readonly
    assert len(db.readers()) == 1
    del view
    gc.collect()
    assert bytes(part) == b"L" * 100
    assert len(db.readers()) == 1
    del part
    gc.collect()
    assert db.readers() == []


@pytest.mark.guarantee
def test_a_view_is_good_also_after_the_database_was_closed(tmp_path):
    db = cowdb.open(tmp_path / "db")
    db[b"large"] = b"L" * 50_000
    with db.read() as snapshot:
        view = snapshot.get_view(b"large")
    db.close()
    assert view == b"L" * 50_000
    with cowdb.open(tmp_path / "db") as again:  # the same core: somebody still looks at it
        for number in range(10):
            again[b"large"] = b"%d" % number * 50_000
        assert view == b"L" * 50_000
        assert len(again.readers()) == 1
    assert core_module.cores
    del view
    gc.collect()
    assert not core_module.cores


def test_a_view_of_a_writer(database):
    db = database()
    db[b"large"] = b"L" * 50_000
    with db.write() as transaction:
        old = transaction.get_view(b"large")
        transaction[b"new"] = b"N" * 50_000
        new = transaction.get_view(b"new")
        del transaction[b"large"]
    for _ in range(5):
        db[b"x"] = b"y" * 50_000
    assert old == b"L" * 50_000
    assert new == b"N" * 50_000
    del old, new
    gc.collect()


def test_the_end_of_a_view_does_not_wait_for_an_opening(tmp_path):
    db = cowdb.open(tmp_path / "db")
    db[b"large"] = b"L" * 50_000
    with db.read() as snapshot:
        view = snapshot.get_view(b"large")
    db.close()
    held, go = threading.Event(), threading.Event()

    def hold():
        with core_module.registry():
            held.set()
            go.wait(10)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(10)
    view.release()
    del view
    gc.collect()
    assert core_module.cores
    go.set()
    thread.join()
    assert not core_module.cores, "who was opening closes it"


# ---------------------------------------------------------------- the gate, as this kernel has it


def test_who_leaves_the_gate_without_waiting_tries_the_lock_that_all_others_take(database):
    """The compiled gate puts another lock into the place of the plain one; a finalizer once went on with the old."""
    db = database()
    db[b"a"] = b"1"
    gate = db._core.pager.gate
    got = []
    reader = threading.Thread(target=lambda: got.append(db.get(b"a")))
    assert next(gate._tries)
    try:
        assert not next(gate._tries)
        reader.start()
        reader.join(0.2)
        assert got == [], "a reader went in beside us"
    finally:
        gate._lock.release()
    reader.join(20)
    assert got == [b"1"]


def test_what_is_held_is_dropped_also_while_somebody_is_in_the_gate(database):
    db = database()
    db[b"a"] = b"1"
    gate = db._core.pager.gate
    held = []
    gate.hold(held)
    gate.hold(held)
    assert (len(held), gate.users()) == (2, 2)
    gate._lock.acquire()
    try:
        gate.drop(held)
        assert held == []
    finally:
        gate._lock.release()
    assert gate.transactions() == [db._core.pager.meta.transaction]
    assert gate.users() == 0
    gate.drop(held)
    assert gate.users() == 0


@pytest.mark.filterwarnings("ignore:a write transaction was forgotten:ResourceWarning")
def test_closing_does_not_keep_a_transaction_that_its_thread_forgets(database):
    """The story: `close` waited for the end of a transaction that only its own frame still held."""
    db = database()
    begun, go = threading.Event(), threading.Event()

    def forget():
        transaction = db.write()
        transaction[b"a"] = b"1"
        begun.set()
        go.wait(20)
        del transaction

    writer = threading.Thread(target=forget)
    writer.start()
    assert begun.wait(20)
    closer = threading.Thread(target=db.close, daemon=True)
    closer.start()
    closer.join(0.2)
    assert closer.is_alive(), "a transaction of another thread is waited for"
    go.set()
    writer.join(20)
    closer.join(20)
    assert not closer.is_alive()
    assert not core_module.cores


@pytest.mark.filterwarnings("ignore:a write transaction was forgotten:ResourceWarning")
def test_a_finalizer_that_could_cut_the_file_waits_for_nobody(database):
    """The story: a forgotten transaction in a cycle was ended by the garbage collector while this thread was inside
    the gate. There was much to cut off the file, and for that the gate was asked who reads.
    """
    db = database()
    with db.write() as transaction:
        transaction.update((b"%06d" % number, bytes(1000)) for number in range(3000))
    with db.write() as transaction:
        transaction.clear()
    reader = db.read()  # the file is as long as its state says
    for number in range(3):
        db[b"a"] = b"%d" % number
    pager = db._core.pager
    assert pager.extent.worth_cutting(pager.meta.page_count), "else the test tests nothing"
    forgotten = [db.write()]

    def inside():
        with pager.gate._lock:
            forgotten.clear()
        pager.gate._settle()

    thread = threading.Thread(target=inside, daemon=True)
    thread.start()
    thread.join(20)
    assert not thread.is_alive()
    reader.close()
    size = pager.storage.size()
    for number in range(3):
        db[b"b"] = b"%d" % number
    assert pager.storage.size() < size, "it is cut later"


@pytest.mark.skipif(not os.path.exists("/proc/self/maps"), reason="needs /proc")
@pytest.mark.skipif(
    bool(sysconfig.get_config_var("Py_GIL_DISABLED")), reason="there a tree keeps what another thread may look at"
)
@pytest.mark.parametrize("durability", ["full", "lazy"])
def test_a_write_transaction_that_has_ended_keeps_no_mapping(database, durability):
    db = database()
    with db.write(durability=durability) as writing:
        writing[b"a"] = b"1"
    path = db.path
    db.close()
    assert writing.closed
    with open("/proc/self/maps") as maps:
        assert path not in maps.read()


def test_a_file_that_is_opened_again_while_its_last_handle_is_closed_has_one_core(tmp_path):
    """The story: out of a signal's handler; the one that was closed took the new one out of the registry."""
    path = tmp_path / "db"
    db = cowdb.open(path)
    db[b"k"] = b"v"
    pager = db._core.pager
    again = []

    def quiesce(below=pager.quiesce):
        if not again:
            again.append(None)
            again[0] = cowdb.open(path)
        below()

    pager.quiesce = quiesce
    db.close()
    third = cowdb.open(path)
    assert third._core is again[0]._core
    assert third[b"k"] == again[0][b"k"] == b"v"
    third.close()
    again[0].close()
    assert not core_module.cores
