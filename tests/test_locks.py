"""Who may write: the queue of threads, and the lock that keeps other processes out (P2, P10)."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time

import pytest

from cowdb.errors import Error, LockTimeoutError
from cowdb.locks import FileLock, SharedWords, WriterLock

LOCK = threading.Lock


def until(condition):
    """Wait for another thread, for at most ten seconds."""
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end, "the other thread did not get there"
        time.sleep(0.001)


# ---------------------------------------------------------------- the writer lock


def test_it_is_free_again_after_a_release():
    lock = WriterLock()
    for _ in range(3):
        lock.acquire(0)
        lock.release()


def test_a_second_time_in_one_thread_raises_at_once_instead_of_waiting_for_itself():
    lock = WriterLock()
    lock.acquire(None)
    with pytest.raises(Error, match="open already"):
        lock.acquire(None)
    lock.release()
    lock.acquire(0)


@pytest.mark.parametrize("timeout", [0, -5, 0.01, True])
def test_another_thread_is_told_that_it_waited_in_vain(timeout):
    lock = WriterLock()
    lock.acquire(None)
    caught = []

    def wait():
        try:
            lock.acquire(timeout)
        except LockTimeoutError as error:
            caught.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    thread.join()
    assert caught[0].timeout == timeout
    assert caught[0].holder == os.getpid()
    lock.release()
    lock.acquire(0)  # the one who gave up is not in the queue any more


def test_a_timeout_longer_than_the_platform_knows_is_a_long_wait():
    lock = WriterLock()
    lock.acquire(None)
    done = []

    def wait():
        lock.acquire(1e300)
        done.append(True)

    thread = threading.Thread(target=wait)
    thread.start()
    until(lambda: lock._waiting)
    lock.release()
    thread.join()
    assert done


def test_first_come_first_served():
    lock = WriterLock()
    lock.acquire(None)
    order = []

    def wait(number):
        lock.acquire(None)
        order.append(number)
        lock.release()

    threads = []
    for number in range(5):
        threads.append(threading.Thread(target=wait, args=(number,)))
        threads[-1].start()
        until(lambda: len(lock._waiting) == len(threads))
    lock.release()
    for thread in threads:
        thread.join()
    assert order == [0, 1, 2, 3, 4]


def test_a_newcomer_does_not_overtake_the_one_to_whom_the_lock_was_handed():
    lock = WriterLock()
    lock.acquire(None)
    got, go = threading.Event(), threading.Event()

    def wait():
        lock.acquire(None)
        got.set()
        go.wait(10)
        lock.release()

    thread = threading.Thread(target=wait)
    thread.start()
    until(lambda: lock._waiting)
    lock.release()
    with pytest.raises(LockTimeoutError):
        lock.acquire(0)
    assert got.wait(10)
    go.set()
    thread.join()
    lock.acquire(0)


class Interrupting:
    """A turn whose wait ends with an interruption, after the lock was handed over or before."""

    def __init__(self, before):
        self._real = LOCK()
        self._before = before

    def acquire(self, *arguments, timeout=None):
        if timeout is None:
            return self._real.acquire(*arguments)
        self._before()
        raise KeyboardInterrupt

    def release(self):
        self._real.release()


@pytest.mark.parametrize("handed_over", [False, True])
def test_an_interrupted_wait_neither_keeps_the_lock_nor_a_place_in_the_queue(monkeypatch, handed_over):
    # The story: control-C struck while a thread waited, and in the same moment the holder handed the lock over to it.
    # The waiter went away with the lock, and nobody could write again.
    lock = WriterLock()
    thread = threading.Thread(target=lock.acquire, args=(None,))
    thread.start()
    thread.join()
    before = lock.release if handed_over else lambda: None
    monkeypatch.setattr("cowdb.locks.threading.Lock", lambda: Interrupting(before))
    with pytest.raises(KeyboardInterrupt):
        lock.acquire(5)
    monkeypatch.setattr("cowdb.locks.threading.Lock", LOCK)
    if not handed_over:
        lock.release()
    lock.acquire(0)


def test_a_timeout_in_the_moment_of_the_handing_over_keeps_the_lock(monkeypatch):
    class Late(Interrupting):
        def acquire(self, *arguments, timeout=None):
            if timeout is None:
                return self._real.acquire(*arguments)
            self._before()
            return False

    lock = WriterLock()
    thread = threading.Thread(target=lock.acquire, args=(None,))
    thread.start()
    thread.join()
    monkeypatch.setattr("cowdb.locks.threading.Lock", lambda: Late(lock.release))
    lock.acquire(5)
    monkeypatch.setattr("cowdb.locks.threading.Lock", LOCK)
    assert lock._holder == threading.get_ident()
    lock.release()
    lock.acquire(0)


def test_a_finalizer_may_release_it_while_its_own_thread_is_inside():
    # The story: a forgotten write transaction is part of a cycle, so the garbage collector ends it, at any moment;
    # also while this thread was inside `acquire` and had the mutex. It then waited for itself.
    lock = WriterLock()
    lock.acquire(None)

    def collected_inside():
        with lock._mutex:
            lock.release()  # must not wait
        lock._act_on_notes()  # as everybody does who had the mutex

    thread = threading.Thread(target=collected_inside, daemon=True)
    thread.start()
    thread.join(10)
    assert not thread.is_alive()
    lock.acquire(0)


def test_the_words_start_as_before_a_recovery():
    words = SharedWords()
    assert words.durable is None
    assert words.busy


# ---------------------------------------------------------------- the lock of the file


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"")
    return str(path)


def test_one_writer_or_many_readers(path):
    writer = FileLock(path, shared=False, timeout=0)
    for shared in (True, False):
        with pytest.raises(LockTimeoutError, match="another process"):
            FileLock(path, shared=shared, timeout=0)
    writer.close()
    writer.close()
    readers = [FileLock(path, shared=True, timeout=0) for _ in range(3)]
    with pytest.raises(LockTimeoutError):
        FileLock(path, shared=False, timeout=0.03)
    for reader in readers:
        reader.close()
    FileLock(path, shared=False, timeout=0).close()


def test_it_waits_for_the_one_before(path):
    first = FileLock(path, shared=False, timeout=0)
    timer = threading.Timer(0.05, first.close)
    timer.start()
    FileLock(path, shared=False, timeout=10).close()
    timer.join()


def test_an_error_that_is_no_other_holder_passes_through(path, monkeypatch):
    def refuse(*_arguments):
        raise OSError(37, "no locks available")

    monkeypatch.setattr("cowdb.locks.fcntl.fcntl", refuse)
    with pytest.raises(OSError, match="no locks available"):
        FileLock(path, shared=False, timeout=0)


def test_an_interruption_leaves_no_descriptor(path, monkeypatch):
    def interrupt(*_arguments):
        raise KeyboardInterrupt

    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    monkeypatch.setattr("cowdb.locks.fcntl.fcntl", interrupt)
    with pytest.raises(KeyboardInterrupt):
        FileLock(path, shared=False, timeout=0)
    if before:
        assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.guarantee
def test_the_kernel_lets_go_of_the_lock_of_a_killed_process(path):
    code = "import sys\nfrom cowdb.locks import FileLock\nx = FileLock(sys.argv[1], shared=False, timeout=0)\nprint(flush=True)\nsys.stdin.read()"
    child = subprocess.Popen([sys.executable, "-c", code, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    child.stdout.readline()
    with pytest.raises(LockTimeoutError):
        FileLock(path, shared=False, timeout=0)
    child.kill()
    child.wait()
    child.stdin.close()
    child.stdout.close()
    FileLock(path, shared=False, timeout=10).close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_child_that_has_the_descriptor_does_not_keep_the_file_locked(path):
    # The story: a lock belongs to the open file description, which a fork shares. The parent closed its database, and
    # nobody could open the file as long as any worker process lived that was forked before.
    lock = FileLock(path, shared=False, timeout=0)
    out, into = os.pipe()
    child = os.fork()
    if not child:
        os.close(into)
        os.read(out, 1)
        os._exit(0)
    os.close(out)
    lock.close()
    FileLock(path, shared=False, timeout=0).close()
    os.close(into)
    os.waitpid(child, 0)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_child_abandons_the_lock_without_letting_it_go(path):
    lock = FileLock(path, shared=False, timeout=0)
    child = os.fork()
    if not child:
        lock.abandon()
        lock.abandon()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    with pytest.raises(LockTimeoutError):
        FileLock(path, shared=False, timeout=0)
    lock.close()
