"""A database that is open in a process which forks, or starts others that get it as a pickle.

The child opens the file for itself, what was open is the parent's, and the end of either is in nobody's way (promise 6).
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import weakref

import pytest
from child import Child
from loader import Loader, Records, add_one, read_here, read_one, start_worker
from opened import OPEN, checked

import cowdb
from cowdb.bytelocks import INSIDE, ByteLocks
from cowdb.errors import ForkedError, LockTimeoutError


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "test.cowdb")


# ---------------------------------------------------------------- forks


def in_a_fork(act):
    """Run `act` in a forked child, which then ends at once; fails with what it raised."""
    read, write = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            act()
            os.write(write, b"fine")
        except BaseException as error:  # noqa: BLE001 - told to the parent
            os.write(write, repr(error).encode())
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        told = pipe.read()
    os.waitpid(pid, 0)
    assert told == b"fine"


@pytest.mark.guarantee
def test_a_forked_child_opens_the_file_for_itself(path, opening):
    with cowdb.open(path) as db:
        db[b"n"] = b"0"
        core = db._core

        def child():
            assert db[b"n"] == b"0"
            assert db._core is not core
            db[b"n"] = b"1"
            with db.read() as snapshot:
                assert [reader["pid"] for reader in db.readers()] == [os.getpid()]
                assert snapshot[b"n"] == b"1"
            assert db.check() == []
            db.close()

        in_a_fork(child)
        assert db[b"n"] == b"1"
        db[b"n"] = b"2"
        assert db.check() == []
    assert checked(path)[b"n"] == b"2"


@pytest.mark.filterwarnings("ignore:a write transaction was forgotten:ResourceWarning")
def test_a_child_that_forgets_a_handle_and_its_open_transaction_keeps_neither(path):
    """Without the garbage collector: dirty pages are memory."""
    held = [cowdb.open(path)]
    held.append(held[0].write())
    held[1][b"k"] = b"v"
    known = [weakref.ref(one) for one in held]

    def child():
        gc.disable()
        held.clear()
        assert [one() for one in known] == [None, None]

    in_a_fork(child)
    held[1].commit()
    held[0].close()
    assert checked(path)[b"k"] == b"v"


@pytest.mark.guarantee
def test_transactions_that_were_open_at_a_fork_raise_in_the_child_and_live_on_in_the_parent(path):
    with cowdb.open(path) as db:
        db[b"n"] = b"0"
        reader, writer = db.read(), db.write()
        writer[b"n"] = b"1"
        handles = len(db.readers())

        def child():
            with pytest.raises(ForkedError):
                reader[b"n"]
            with pytest.raises(ForkedError):
                writer[b"n"] = b"2"
            with pytest.raises(ForkedError):
                del writer[b"n"]
            with pytest.raises(ForkedError):
                writer.commit()
            reader.close()
            writer.abort()
            assert db[b"n"] == b"0"
            with pytest.raises(LockTimeoutError, match=f"process {os.getppid()} holds it"):
                db.write(timeout=0.02)
            db.close()

        in_a_fork(child)
        assert len(db.readers()) == handles
        assert reader[b"n"] == b"0"
        with Child(path=path) as other:
            other(OPEN)
            with pytest.raises(LockTimeoutError):  # the end of the child has let nothing of ours go
                other("db.write(timeout=0.02)")
            assert {found["pid"] for found in other("db.readers()")} == {os.getpid()}
        writer.commit()
        reader.close()
    assert checked(path)[b"n"] == b"1"


@pytest.mark.guarantee
@pytest.mark.parametrize(
    "end", ["sys.exit(0)", "del s, t, view, db; gc.collect(); sys.exit(0)", "db.close(); sys.exit(0)"]
)
def test_the_end_of_a_child_releases_nothing_of_its_parents(path, opening, end):
    """The child ends as a program does, with all its finalizers; the parent has the turn, a snapshot and a view."""
    begin = """
import gc, warnings
warnings.simplefilter("error")
db[b"large"] = b"L" * 50_000
s = db.read()
with db.read() as other:
    view = other.get_view(b"large")
del other
t = db.write()
t[b"n"] = b"1"
"""
    with Child(path=path) as parent, cowdb.open(path) as db:
        parent(opening)
        parent(begin)
        before = db.readers()
        assert {reader["pid"] for reader in before} == {parent.pid}
        parent(f"pid = os.fork()\nif not pid:\n    {end}\nstatus = os.waitpid(pid, 0)[1]")
        assert parent("status") == 0
        assert db.readers() == before
        with pytest.raises(LockTimeoutError) as caught:
            db.write(timeout=0.01)
        assert caught.value.holder == parent.pid
        db.get(b"")
        parent("t.commit()")
        assert parent("bytes(view) == s[b'large'] == b'L' * 50_000")
        assert db[b"n"] == b"1"
        db[b"n"] = b"2"
        parent("s.close(); del view; db.close()")
    checked(path)


@pytest.mark.guarantee
def test_a_view_that_ends_in_a_forked_child_still_pins_in_the_parent(path):
    """The story: the child's copy of the view took the parent's word out of the lock file."""
    with cowdb.open(path, page_size=4096) as db, Child(path=path) as other:
        db[b"large"] = b"L" * 50_000
        with db.read() as snapshot:
            view = snapshot.get_view(b"large")
        other(OPEN)

        def end():
            nonlocal view
            assert view == b"L" * 50_000
            del view
            gc.collect()

        in_a_fork(end)
        assert [reader["pid"] for reader in other("db.readers()")] == [os.getpid()]
        for number in range(10):
            other("db[b'large'] = b'%d' % number * 50_000", number=number)
        assert view == b"L" * 50_000
        del view
        gc.collect()
        assert other("db.readers()") == []
    checked(path)


def test_a_child_that_never_touches_the_database_disturbs_nobody(path):
    with cowdb.open(path) as db, Child(path=path) as other:
        db[b"n"] = b"0"
        held = db.read()
        in_a_fork(lambda: None)
        other(OPEN)
        for number in range(10):
            other("db[b'n'] = b'%d' % number", number=number)
        assert held[b"n"] == b"0"
        held.close()


@pytest.mark.guarantee
def test_a_killed_parent_leaves_no_lock_behind_in_its_forked_child(path):
    with Child(path=path) as parent:
        parent(OPEN)
        parent("db[b'n'] = b'0'; s = db.read(); t = db.write()")
        parent(
            """
def fork():
    ready, tell = os.pipe()
    pid = os.fork()
    if not pid:
        os.write(tell, b"!")
        signal.pause()
        os._exit(0)
    os.read(ready, 1)
    return pid
"""
        )
        grandchild = parent("fork()")
        try:
            parent.kill()
            with cowdb.open(path, lock_timeout=10) as db:
                assert db.readers() == []
                db[b"n"] = b"1"
        finally:
            os.kill(grandchild, signal.SIGKILL)
    assert checked(path)[b"n"] == b"1"


OPENING_WHILE_FORKING = """
import threading
from cowdb.sharing import FileSharing

entered, go_on, enter = threading.Event(), threading.Event(), FileSharing._enter

def enter_slowly(*arguments):
    enter(*arguments)
    entered.set()
    go_on.wait()

FileSharing._enter = enter_slowly
threading.Thread(target=lambda: cowdb.open(path), daemon=True).start()
entered.wait()

def fork():
    ready, tell = os.pipe()
    pid = os.fork()
    if not pid:
        os.write(tell, b"!")
        signal.pause()
        os._exit(0)
    os.read(ready, 1)
    return pid
"""


def test_a_fork_while_another_thread_opens_the_file_takes_no_lock_along(path):
    """The story: the child kept the locks of a database that was half open, also after its parent was killed."""
    cowdb.open(path).close()
    with Child(path=path) as parent:
        parent(OPENING_WHILE_FORKING)
        grandchild = parent("fork()")
        try:
            parent.kill()
            locks = ByteLocks(path, writable=True)
            assert not locks.is_taken(INSIDE)
            locks.close()
        finally:
            os.kill(grandchild, signal.SIGKILL)
    checked(path)


def test_a_child_of_a_child(path):
    with cowdb.open(path) as db:
        db[b"n"] = b"0"

        def grandchild():
            db[b"n"] = b"%d" % (int(db[b"n"]) + 1)

        def child():
            grandchild()
            with db.read():
                in_a_fork(grandchild)
            grandchild()

        in_a_fork(child)
        assert db[b"n"] == b"3"


# ---------------------------------------------------------------- pickles, pools and loaders

METHODS = multiprocessing.get_all_start_methods()


@pytest.mark.guarantee
@pytest.mark.parametrize("method", METHODS)
def test_a_data_loader_reads_in_four_worker_processes(path, method):
    with cowdb.open(path) as db:
        with db.write() as txn:
            txn.update({b"%03d" % number: os.urandom(50) for number in range(40)})
        with db.read() as snapshot:
            wanted = list(enumerate(snapshot.items()))
        dataset = Records(db)
        assert len(dataset) == 40
        for _ in range(1 if method == "spawn" else 2):
            found = list(Loader(dataset, multiprocessing.get_context(method)))
            assert sorted((index, record) for _, index, record in found) == wanted
            assert len({pid for pid, *_ in found}) == 4
            assert os.getpid() not in {pid for pid, *_ in found}
        db[b"still"] = b"ours"
        assert db.readers() == []
    checked(path)


@pytest.mark.parametrize("method", METHODS)
def test_a_pool_gets_the_database_as_a_pickle(path, method):
    context = multiprocessing.get_context(method)
    with cowdb.open(path, durability="lazy") as db:
        db[b"n"] = b"0"
        with context.Pool(2) as pool:
            assert {value for _, value in pool.starmap(read_one, [(db, b"n")] * 6)} == {b"0"}
            pool.starmap(add_one, [(db, b"n")] * 12)
            assert db[b"n"] == b"12"
        with context.Pool(2, initializer=start_worker, initargs=(db,)) as pool:
            assert pool.map(read_here, [b"n"] * 6) == [b"12"] * 6
        assert db.check() == []
    assert checked(path)[b"n"] == b"12"
