"""Group commit by bare threads, without a database: how much sharing a flush can gain under one interpreter's lock.

Each thread waits for its turn, writes three pages, lets the next one have the turn, and waits until a flush has ended
that began after that.  One thread flushes for all who wait; who comes meanwhile shares the next.
"""

from __future__ import annotations

import os
import random
import threading
from pathlib import Path

import harness
from together import in_threads

PAGE = 8192
PAGES = 2000


class Waiting:
    """A thread that waits for a flush, or to be told to flush."""

    __slots__ = ("leads", "wake")

    def __init__(self) -> None:
        self.wake = threading.Lock()
        self.wake.acquire()
        self.leads = False


class Commits:
    """Durable writes of three pages, in turn."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.page = os.urandom(PAGE)
        self.turn = threading.Lock()
        self.mutex = threading.Lock()
        self.waiting: list[Waiting] = []
        self.flushing = False

    def commit(self, rng: random.Random) -> None:
        """Write, and return when it is durable."""
        own = Waiting()
        with self.turn:
            for _ in range(3):
                os.pwrite(self.descriptor, self.page, rng.randrange(1, PAGES) * PAGE)
            with self.mutex:
                self.waiting.append(own)
                first = not self.flushing
                self.flushing = True
        if not first:
            own.wake.acquire()
            if not own.leads:
                return
        self.flush(own)

    def flush(self, own: Waiting) -> None:
        """Flush for all who wait, tell one of those who came meanwhile to go on with it, and wake the others."""
        with self.mutex:
            group, self.waiting = self.waiting, []
        os.pwrite(self.descriptor, self.page, 0)
        os.fdatasync(self.descriptor)
        with self.mutex:
            if self.waiting:
                self.waiting[0].leads = True
                self.waiting[0].wake.release()
            else:
                self.flushing = False
        for other in group:
            if other is not own:
                other.wake.release()


def gain(directory: Path, threads: int, commits: int, runs: int) -> list[float]:
    """How many times as many commits a second `threads` threads make as one, for each of several runs."""
    path = directory / "bare"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        os.pwrite(descriptor, bytes(PAGES * PAGE), 0)
        os.fsync(descriptor)

        def seconds(count: int) -> float:
            each = -(-commits // count)
            shared = Commits(descriptor)

            def work(number: int) -> None:
                rng = random.Random(number)
                for _ in range(each):
                    shared.commit(rng)

            return in_threads(count, work) / (each * count)

        many, one = harness.pairs(lambda: seconds(threads), lambda: seconds(1), runs)
        return harness.quotients(one, many)
    finally:
        os.close(descriptor)
        path.unlink()
