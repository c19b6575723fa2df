"""The asyncio form when something raises, and when it is closed."""

from __future__ import annotations

import asyncio
import errno
import functools
import gc
import os
import warnings
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from looping import ENTRIES, NAME, Hold, SlowKey, run, threads, until, works

import cowdb
import cowdb.aio
from cowdb.testing import FaultyDisk, MemoryDisk

pytestmark = pytest.mark.usefixtures("nothing_left_behind")

# ---------------------------------------------------------------- exceptions


def test_an_exception_aborts(tmp_path):
    async def main() -> None:
        async with cowdb.aio.open(tmp_path / "db") as db:
            with pytest.raises(LookupError):
                async with db.write() as txn:
                    await txn.put(b"k", b"v")
                    raise LookupError
            with pytest.raises(ExceptionGroup):
                async with db.write() as txn, asyncio.TaskGroup() as tasks:
                    tasks.create_task(txn.put(b"k", b"v"))
                    tasks.create_task(txn.put("text", b"v"))
            assert await db.count() == 0
            async with db.write() as txn:
                with pytest.raises(TypeError):
                    await txn.put("text", b"v")
                await txn.put(b"k", b"v")  # an error of one call leaves the transaction as it was
            assert await db[b"k"] == b"v"
            await works(db)

    run(main)


def test_ending_by_hand(tmp_path):
    async def main() -> None:
        async with cowdb.aio.open(tmp_path / "db") as db:
            async with db.write() as txn:
                await txn.put(b"k", b"v")
                await txn.commit()
                assert txn.closed
                with pytest.raises(cowdb.ClosedError, match="ended already"):
                    await txn.commit()
                await txn.abort()
                with pytest.raises(cowdb.ClosedError):
                    await txn.get(b"k")
            assert await db[b"k"] == b"v"
            async with db.write() as txn:
                await txn.delete(b"k")
                await txn.close()
            assert await db[b"k"] == b"v"
            txn = await db.write()
            async with txn:
                await txn.put(b"k", b"w")
            with pytest.raises(cowdb.ClosedError):
                async with txn:
                    pass
            assert await db[b"k"] == b"w"
            snap = await db.read()
            async with snap:
                tree = snap.keys()
                assert [key async for key in tree] == [b"k"]
            await snap.abort()
            with pytest.raises(cowdb.ClosedError):
                async with snap:
                    pass
            with pytest.raises(cowdb.ClosedError):
                await anext(aiter(tree))
            await works(db)

    run(main)


def test_a_commit_that_fails_raises():
    async def main() -> None:
        disk = FaultyDisk(MemoryDisk())
        async with cowdb.aio.open_on(disk, NAME, max_size=16 * 8192) as db:
            with pytest.raises(cowdb.FullError):
                async with db.write() as txn:
                    await txn.update({b"%d" % number: bytes(3000) for number in range(500)})
            await works(db)
            disk.fail(errno.EIO, call="flush")
            txn = await db.write()
            await txn.put(b"k", b"v")
            failing = asyncio.create_task(txn.commit())
            await asyncio.sleep(0)
            await txn.abort()  # waits for the commit, whose error is not its own
            with pytest.raises(cowdb.PoisonedError):
                await failing
            with pytest.raises(cowdb.PoisonedError):
                await db.write()
            with pytest.raises(cowdb.PoisonedError):
                await db.sync()
            assert await db.count() == 0
            assert threads("cowdb-write") + threads("cowdb-call") == []

    run(main)


def test_an_abort_that_fails_raises(tmp_path):
    async def main() -> None:
        async with cowdb.aio.open(tmp_path / "db") as db:
            txn = await db.write()
            writing = txn.below._owner
            failures = [ZeroDivisionError]

            class Broken:
                @staticmethod
                def end() -> None:
                    writing.end()
                    while failures:
                        raise failures.pop()

            txn.below._owner = Broken()
            with pytest.raises(ZeroDivisionError):
                await txn.abort()
            await txn.abort()
            await works(db)

    run(main)


def test_a_second_write_transaction_of_a_task_is_refused(tmp_path):
    async def main() -> None:
        async with cowdb.aio.open(tmp_path / "db") as db:
            async with db.write() as txn:
                for wait in (db.write().__aenter__, functools.partial(db.put, b"", b""), db.sync, db.check):
                    with pytest.raises(cowdb.Error, match="this task"):
                        await wait()
                await txn.put(b"k", b"v")
            await works(db)

    run(main)


def test_the_lock_timeout_holds_among_tasks_and_among_handles(tmp_path):
    async def main() -> None:
        async with cowdb.aio.open(tmp_path / "db", lock_timeout=0.01) as db:
            entered, leave = asyncio.Event(), asyncio.Event()

            async def write() -> None:
                async with db.write():
                    entered.set()
                    await leave.wait()

            async def refused() -> None:
                for timeout, expected in ((0, 0), (0.02, 0.02), (None, 0.01)):
                    with pytest.raises(cowdb.LockTimeoutError) as caught:
                        await db.write(timeout=timeout)
                    assert caught.value.timeout == expected
                    assert caught.value.holder == os.getpid()
                with pytest.raises(cowdb.LockTimeoutError):
                    await db.put(b"k", b"v")
                with pytest.raises(cowdb.LockTimeoutError):
                    await db.sync()
                with pytest.raises(cowdb.LockTimeoutError):
                    await db.check()

            task = asyncio.create_task(write())
            await entered.wait()
            await refused()
            leave.set()
            await task
            with cowdb.open(tmp_path / "db") as other, other.write():
                await refused()
            async with db.write(timeout=0, durability="lazy") as txn:
                await txn.put(b"k", b"v")
            with pytest.raises(ValueError, match="durability"):
                await db.write(durability="some")
            with pytest.raises(TypeError):
                await db.write(timeout="soon")
            await works(db)

    run(main)


def test_a_forgotten_write_transaction_is_aborted(tmp_path):
    async def main() -> None:
        async with cowdb.aio.open(tmp_path / "db") as db:
            txn = await db.write()
            await txn.put(b"k", b"v")
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                del txn
                while not caught:
                    gc.collect()
                    await asyncio.sleep(0)  # its thread may have been about to let go of it
            assert [warning.category for warning in caught] == [ResourceWarning]
            await until(lambda: not threads("cowdb-write"))
            assert await db.count() == 0
            await works(db)
            snap = await db.read()
            del snap
            gc.collect()
            assert await db.readers() == []

    run(main)


# ---------------------------------------------------------------- closing


def test_use_after_close(tmp_path):
    async def main() -> None:
        db = await cowdb.aio.open(tmp_path / "db")
        await db.put(b"k", b"v")
        snap = await db.read()
        view = snap.items()
        walk = aiter(view)
        await db.close()
        await db.close()
        assert db.closed
        assert snap.closed
        uses: list[Callable[[], Awaitable[Any]]] = [
            db.read().__aenter__,
            db.write().__aenter__,
            db.__aenter__,
            functools.partial(db.get, b"k"),
            functools.partial(db.put, b"k", b"v"),
            functools.partial(db.delete, b"k"),
            functools.partial(db.copy, tmp_path / "copy"),
            db.sync,
            db.stats,
            db.info,
            db.readers,
            db.check,
            functools.partial(snap.get, b"k"),
            snap.first,
            snap.trees,
            snap.__aenter__,
            view.count,
            functools.partial(anext, walk),
        ]
        for use in uses:
            with pytest.raises(cowdb.ClosedError):
                await use()
        with pytest.raises(cowdb.ClosedError):
            _ = db.max_key_size
        await snap.close()
        assert "closed" in repr(db)

    run(main)


def test_closing_waits_for_calls_and_for_the_transactions_of_other_tasks(filled):
    async def main() -> None:
        db = await cowdb.aio.open(filled)
        slow = SlowKey(b"00007")
        go_on = asyncio.Event()

        async def write() -> None:
            async with db.write() as txn:
                await txn.put(b"k", b"v")
                await go_on.wait()
                await txn.put(b"l", b"w")

        writing = asyncio.create_task(write())
        reading = asyncio.create_task(db.get(slow))
        await until(slow.reached.is_set)
        await until(db._queue.turns)
        snap = await db.read()
        closing = asyncio.create_task(db.close())
        again = asyncio.create_task(db.close())
        await until(lambda: db._closing)
        with pytest.raises(cowdb.ClosedError):
            await db.get(b"k")
        assert await snap.count() == len(ENTRIES), "what is open may go on"
        go_on.set()
        await writing
        await until(lambda: db._ended)
        assert not closing.done()
        assert not db.closed
        slow.go.set()
        assert await reading == b"value 7"
        await asyncio.gather(closing, again)
        assert db.closed
        assert snap.closed
        async with cowdb.aio.open(filled) as db:
            assert [await db[b"k"], await db[b"l"]] == [b"v", b"w"]
            await db.delete(b"k")
            await db.delete(b"l")

    run(main)


def test_closing_refuses_those_who_wait_to_write(tmp_path):
    async def main() -> None:
        db = await cowdb.aio.open(tmp_path / "db")
        with cowdb.open(tmp_path / "db") as other, other.write() as foreign:
            first = asyncio.create_task(db.write().__aenter__())
            await until(lambda: threads("cowdb-write"))
            others = [asyncio.create_task(wait()) for wait in (db.write().__aenter__, db.sync, db.check)]
            await until(lambda: len(db._queue.turns()) == 4)
            closing = asyncio.create_task(db.close())
            for task in (first, *others):
                with pytest.raises(cowdb.ClosedError):
                    await task
            foreign.put(b"k", b"v")
            await closing
            assert db.closed
        async with cowdb.aio.open(tmp_path / "db") as db:
            assert await db[b"k"] == b"v"

    run(main)


def test_closing_inside_the_own_write_transaction_aborts_it(tmp_path):
    async def main() -> None:
        db = await cowdb.aio.open(tmp_path / "db")
        with pytest.raises(cowdb.ClosedError, match="the database was closed"):
            async with db.write() as txn:
                await txn.put(b"k", b"v")
                await db.close()
                assert txn.closed
                with pytest.raises(cowdb.ClosedError, match="the database was closed"):
                    await txn.put(b"k", b"v")
        async with cowdb.aio.open(tmp_path / "db") as db:
            assert await db.count() == 0

    run(main)


def test_a_cancelled_close_aborts_what_others_have_open_and_closes(tmp_path):
    async def main() -> None:
        db = await cowdb.aio.open(tmp_path / "db")
        entered, leave = asyncio.Event(), asyncio.Event()

        async def write() -> None:
            async with db.write() as txn:
                await txn.put(b"k", b"v")
                entered.set()
                await leave.wait()

        task = asyncio.create_task(write())
        await entered.wait()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await db.close()
        assert db.closed
        leave.set()
        with pytest.raises(cowdb.ClosedError, match="the database was closed"):
            await task
        async with cowdb.aio.open(tmp_path / "db") as db:
            assert await db.count() == 0

    run(main)


def test_a_cancelled_close_meets_a_transaction_that_is_just_beginning():
    async def main() -> None:
        hold = Hold()
        db = await hold.open()
        hold.arm("flush")  # of the first write transaction
        writing = asyncio.create_task(db.write().__aenter__())
        await hold.reach()
        closing = asyncio.create_task(db.close())
        await until(lambda: db._closing)
        closing.cancel()
        await asyncio.sleep(0)
        hold.go.set()
        with pytest.raises(asyncio.CancelledError):
            await closing
        with pytest.raises(cowdb.ClosedError):
            await writing
        assert db.closed

    run(main)


def test_a_close_that_fails_raises_and_closes():
    async def main() -> None:
        disk = FaultyDisk(MemoryDisk())
        db = await cowdb.aio.open_on(disk, NAME, durability="lazy")
        await db.put(b"k", b"v")
        disk.fail(errno.EIO, call="flush", forever=True)
        with pytest.raises(OSError):
            await db.close()
        assert db.closed
        await db.close()

    run(main)
