"""Who may write: the queue of threads, and the lock that keeps other processes out (P2, P10)."""

from __future__ import annotations

import os
import threading
import time

import pytest

from cowdb import locks
from cowdb.errors import Error, LockTimeoutError
from cowdb.kernel import WriterLock

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

    def locked(self):
        return self._real.locked()


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


def test_who_was_interrupted_may_wait_again_while_the_same_holder_has_it():
    lock = WriterLock()
    inside, done = threading.Event(), threading.Event()

    def hold():
        lock.acquire(None)
        inside.set()
        done.wait()
        lock.release()

    thread = threading.Thread(target=hold)
    thread.start()
    inside.wait()
    interrupted = lock._turn()
    lock._waiting.append(interrupted)  # it waits ...
    interrupted._wake = LOCK()
    lock.release(interrupted)  # ... and is interrupted
    assert not lock.holds(interrupted)
    again = lock._turn()
    threading.Timer(0.05, done.set).start()
    lock.acquire(10, again)
    assert lock.holds(again)
    thread.join()
    lock.release(again)


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
    assert lock._holder.me is locks.me()
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
        lock._act()  # as everybody does who had the mutex

    thread = threading.Thread(target=collected_inside, daemon=True)
    thread.start()
    thread.join(10)
    assert not thread.is_alive()
    lock.acquire(0)


def test_who_has_just_released_it_is_not_taken_for_its_holder():
    # The story: a release was only noted, because another thread had the mutex in that moment. The same thread asked
    # for the lock again before the note was acted on, and was told that it had a transaction open.
    lock = WriterLock()
    lock.acquire(None)
    with lock._mutex:
        lock.release()
    assert lock._holder is not None
    lock.acquire(0)
    lock.release()
    assert lock._holder is None


def test_a_thread_with_the_number_of_an_ended_holder_is_another_one():
    # The story: a thread ended with its transaction open; a later one had its number, and was told that it was its own.
    lock = WriterLock()
    numbers = []
    caught = []

    def hold():
        numbers.append(threading.get_ident())
        lock.acquire(None)

    def wait():
        numbers.append(threading.get_ident())
        try:
            lock.acquire(0)
        except Error as error:
            caught.append(error)

    for work in (hold, wait):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    if len(set(numbers)) > 1:
        pytest.skip("the number was not used again")
    assert isinstance(caught[0], LockTimeoutError)
