"""What the tests of the asyncio form share.

Threads are held where a test wants them by a fake disk (`Hold`), or by a key that takes its time (`SlowKey`), never by
a clock.
"""

# ruff: noqa: ASYNC110
# What is waited for happens in threads.

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import Any, Self

import pytest

import cowdb
import cowdb.aio
from cowdb.testing import FaultyDisk, MemoryDisk

ENTRIES = {b"%05d" % number: b"value %d" % number for number in range(3000)}
NAME = "memory.cowdb"


def run(main: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    """Run `main` in a loop of its own, which must not use an executor of its own."""

    async def guarded() -> Any:
        result = await asyncio.wait_for(main(), 60)
        assert asyncio.get_running_loop()._default_executor is None
        return result

    return asyncio.run(guarded())


async def until(true: Callable[[], object]) -> None:
    while not true():
        await asyncio.sleep(0.001)


def threads(name: str = "cowdb-") -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith(name)]


class Hold:
    """A disk that stops a call of one kind, once it is armed, until it is let go."""

    def __init__(self) -> None:
        self.disk = FaultyDisk(MemoryDisk(), before=self._before)
        self.reached = threading.Event()
        self.go = threading.Event()
        self._call = ""

    def arm(self, call: str) -> None:
        self._call = call
        self.reached.clear()
        self.go.clear()

    def _before(self, call: str, _number: int) -> None:
        if call == self._call:
            self._call = ""
            self.reached.set()
            assert self.go.wait(30)

    def open(self, **options: Any) -> cowdb.aio.Block[cowdb.aio.Database]:
        return cowdb.aio.open_on(self.disk, NAME, **options)

    async def reach(self) -> None:
        await until(self.reached.is_set)


class SlowKey(bytes):
    """A key whose lookup stops in its thread until it is let go."""

    reached: threading.Event
    go: threading.Event

    def __new__(cls, key: bytes) -> Self:
        self = super().__new__(cls, key)
        self.reached = threading.Event()
        self.go = threading.Event()
        return self

    def __bytes__(self) -> bytes:
        self.reached.set()
        assert self.go.wait(30)
        return self[:]


async def cancel(task: asyncio.Task[Any]) -> None:
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def works(db: cowdb.aio.Database) -> None:
    """The database takes and gives back an entry, by tasks and by others; no writing thread is left behind."""
    assert threads("cowdb-write") + threads("cowdb-call") == []
    assert await db.put(b"works", b"yes")
    async with db.write(timeout=5) as txn:
        assert await txn.get(b"works") == b"yes"
        assert await txn.delete(b"works")
    assert await db.get(b"works") is None
    with db._below.write(timeout=0):
        pass
    assert await db.check() == []
