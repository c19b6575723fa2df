"""Threads that a test can hold in the middle of a flush, and ask how they ended."""

from __future__ import annotations

import threading
import time

PATIENCE = 5.0


class Brake:
    """Called in each flush: while it is on, the flush waits until it is let go."""

    def __init__(self):
        self.on = False
        self._begun = threading.Semaphore(0)
        self._go = threading.Semaphore(0)

    def __call__(self, call="flush", number=0):
        if self.on and call == "flush":
            self._begun.release()
            assert self._go.acquire(timeout=PATIENCE), "nobody let this flush go"

    def wait(self):
        """Until a flush is held."""
        assert self._begun.acquire(timeout=PATIENCE), "no flush began"

    def release(self):
        """Let the flush go that is held; later ones are not held."""
        self.on = False
        self._go.release()

    def step(self):
        """Let the flush go that is held; the next one is held too."""
        self._go.release()


class Job(threading.Thread):
    """A thread whose outcome can be asked for."""

    def __init__(self, work):
        super().__init__(daemon=True)
        self.work = work
        self.result = self.error = None
        self.start()

    def run(self):
        try:
            self.result = self.work()
        except BaseException as error:  # noqa: BLE001 - the test looks at it
            self.error = error

    def end(self):
        self.join(PATIENCE)
        assert not self.is_alive(), "the thread hangs"
        return self

    def outcome(self):
        self.end()
        if self.error is not None:
            raise self.error
        return self.result


def until(condition):
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it does not come about"
        time.sleep(0.0005)
