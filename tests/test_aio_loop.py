"""The asyncio form never blocks the loop that it runs in, and works in several loops and in forked children."""

# ruff: noqa: BLE001
# Any error of the engine is compared, whatever it is.

from __future__ import annotations

import asyncio
import functools
import os
import threading
from pathlib import Path

import pytest
from looping import Hold, SlowKey, cancel, run, threads, until, works

import cowdb
import cowdb.aio
from cowdb.aio.trees import refuse_fork

pytestmark = pytest.mark.usefixtures("nothing_left_behind")

# ---------------------------------------------------------------- the loop is not blocked


def test_the_loop_goes_on_while_a_reader_is_slow(filled):
    async def main() -> None:
        beats = 0

        async def heart() -> None:
            nonlocal beats
            while True:
                beats += 1
                await asyncio.sleep(0)

        async with cowdb.aio.open(filled) as db, db.read() as snap:
            heartbeat = asyncio.create_task(heart())
            slow = SlowKey(b"00007")
            task = asyncio.create_task(snap.get(slow))
            await until(slow.reached.is_set)
            before = beats
            await until(lambda: beats > before + 100)
            assert await snap.get(b"00008") == b"value 8", "other threads of the pool go on"
            assert not task.done()
            slow.go.set()
            assert await task == b"value 7"
            await cancel(heartbeat)

    run(main)


@pytest.mark.parametrize("call", ["flush", "write", "open"])
def test_the_loop_goes_on_while_the_disk_is_slow(call):
    async def main() -> None:
        hold = Hold()
        if call == "open":
            hold.arm(call)

        async def user() -> None:
            async with hold.open() as db, db.write() as txn:
                await txn.put(b"k", b"v")
                if call != "open":
                    hold.arm(call)

        task = asyncio.create_task(user())
        await hold.reach()
        for _ in range(100):
            await asyncio.sleep(0)
        assert not task.done()
        hold.go.set()
        await task

    run(main)


def test_many_tasks_read_and_write_side_by_side(tmp_path):
    """A counter and its double change together; no reader sees them apart, and no increment is lost."""
    writers, readers = 40, 10
    most = 0

    async def main() -> None:
        async with cowdb.aio.open(tmp_path / "db", durability="lazy") as db:
            done = False

            async def write() -> None:
                nonlocal most
                async with db.write() as txn:
                    value = int(await txn.get(b"single", b"0")) + 1
                    await txn.put(b"single", b"%d" % value)
                    most = max(most, len(threads("cowdb-write")))
                    await (await txn.tree("other", create=True)).put(b"double", b"%d" % (2 * value))

            async def read() -> None:
                last = 0
                while not done:
                    async with db.read() as snap:
                        single = int(await snap.get(b"single", b"0"))
                        if single:
                            assert int(await (await snap.tree("other"))[b"double"]) == 2 * single
                        assert last <= single
                        last = single

            async with asyncio.TaskGroup() as tasks:
                for _ in range(readers):
                    tasks.create_task(read())
                async with asyncio.TaskGroup() as inner:
                    for _ in range(writers):
                        inner.create_task(write())
                done = True
            assert await db[b"single"] == b"%d" % writers
            assert most < 10, "waiting for another task's transaction costs no thread, but an end takes a moment"
            await works(db)

    run(main)


def test_writers_come_in_their_order(tmp_path):
    async def main() -> None:
        async with cowdb.aio.open(tmp_path / "db") as db:
            places: dict[int, int] = {}

            async def write(number: int) -> None:
                if number % 3 == 2:
                    await db.put(b"k", b"%d" % number)  # takes a place too
                else:
                    async with db.write() as txn:
                        places[number] = txn.id
                        await txn.put(b"k", b"%d" % number)

            async with db.write() as txn:
                tasks = []
                for number in range(20):
                    tasks.append(asyncio.create_task(write(number)))
                    await asyncio.sleep(0)
                await txn.put(b"k", b"first")
                assert not places
            await asyncio.gather(*tasks)
            assert places == {number: txn.id + 1 + number for number in range(20) if number % 3 != 2}
            assert await db[b"k"] == b"19"

    run(main)


@pytest.mark.parametrize("block", [False, True])
def test_commits_share_a_flush(block):
    """While one commit flushes, the next tasks go on; the engine makes their commits durable together."""

    async def main() -> None:
        hold = Hold()
        async with hold.open() as db:

            async def write(number: int) -> None:
                if block:
                    async with db.write() as txn:
                        await txn.put(b"%d" % number, b"")
                else:
                    await db.put(b"%d" % number, b"")

            await write(0)
            before = (await db.stats()).flushes
            hold.arm("flush")
            tasks = [asyncio.create_task(write(number)) for number in range(1, 21)]
            await hold.reach()
            await until(lambda: len(db._queue.commits()) == 20)
            assert not any(task.done() for task in tasks)
            assert await db.count() == 1
            hold.go.set()
            await asyncio.gather(*tasks)
            assert (await db.stats()).flushes - before <= 3
            assert await db.count() == 21
            await works(db)

    run(main)


def test_closing_waits_for_a_commit(tmp_path):
    async def main() -> None:
        hold = Hold()
        db = await hold.open()
        await db.put(b"k", b"before")
        hold.arm("flush")
        task = asyncio.create_task(db.put(b"k", b"after"))
        await hold.reach()
        closing = asyncio.create_task(db.close())
        await until(lambda: threads("cowdb-call") and db._closing)
        closing.cancel()
        await asyncio.sleep(0)
        assert not closing.done()
        assert not db.closed
        hold.go.set()
        await task
        with pytest.raises(asyncio.CancelledError):
            await closing
        assert db.closed
        async with hold.open() as db:
            assert await db[b"k"] == b"after"

    run(main)


def test_tasks_share_a_write_transaction(tmp_path):
    async def main() -> None:
        async with cowdb.aio.open(tmp_path / "db") as db:
            async with db.write() as txn, asyncio.TaskGroup() as tasks:
                for number in range(50):
                    tasks.create_task(txn.put(b"%d" % number, b""))
            assert await db.count() == 50

    run(main)


# ---------------------------------------------------------------- loops and processes


def test_one_handle_in_one_loop_after_another(tmp_path):
    db = run(lambda: begin(tmp_path / "db"))

    async def use(number: int) -> None:
        await db.put(b"%d" % number, b"")
        async with db.write() as txn:
            assert await txn.count() == number + 1
        await works(db)

    for number in range(3):
        run(functools.partial(use, number))
    run(db.close)


async def begin(path: Path) -> cowdb.aio.Database:
    return await cowdb.aio.open(path)


def test_one_handle_in_several_loops_at_once(tmp_path):
    db = run(lambda: begin(tmp_path / "db"))
    errors: list[BaseException] = []

    async def count(_number: int) -> None:
        async with db.write() as txn:
            value = int(await txn.get(b"count", b"0"))
            await asyncio.sleep(0)
            await txn.put(b"count", b"%d" % (value + 1))
        async with db.read() as snap:
            assert int(await snap[b"count"]) > value

    async def main() -> None:
        async with asyncio.TaskGroup() as tasks:
            for number in range(10):
                tasks.create_task(count(number))

    def loop() -> None:
        try:
            run(main)
        except BaseException as error:
            errors.append(error)

    loops = [threading.Thread(target=loop) for _ in range(4)]
    for thread in loops:
        thread.start()
    for thread in loops:
        thread.join()
    assert errors == []

    async def end() -> None:
        assert await db[b"count"] == b"40"
        await works(db)
        await db.close()

    run(end)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform has no fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_child_after_a_fork_has_a_handle_of_its_own(tmp_path):
    async def enter() -> tuple[cowdb.aio.Database, cowdb.aio.Transaction, cowdb.aio.WriteTransaction]:
        db = await begin(tmp_path / "db")
        await db.put(b"k", b"v")
        return db, await db.read(), await db.write()

    db, snap, txn = run(enter)

    async def child() -> None:
        for use in (functools.partial(snap.get, b"k"), functools.partial(txn.get, b"k"), txn.commit, txn.abort):
            with pytest.raises(cowdb.ForkedError):
                await use()
        async with db.read() as own:
            assert await own[b"k"] == b"v"
        assert await db.get(b"k") == b"v"
        with pytest.raises(cowdb.LockTimeoutError):
            await db.write(timeout=0)
        await snap.close()
        await db.close()

    pid = os.fork()
    if not pid:
        status = 1
        try:
            asyncio.run(asyncio.wait_for(child(), 20))
            status = 0
        finally:
            os._exit(status)
    _, status = os.waitpid(pid, 0)
    assert status == 0

    async def parent() -> None:
        await txn.put(b"k", b"w")
        await txn.commit()
        assert await snap[b"k"] == b"v"
        await snap.close()
        assert await db[b"k"] == b"w"
        await works(db)
        await db.close()

    run(parent)


@pytest.mark.parametrize("first", ["get", "read", "close"])
def test_a_forked_handle_starts_anew(tmp_path, first):
    """What the child of a fork does, without a fork."""
    with pytest.raises(cowdb.ForkedError):
        refuse_fork(os.getpid() + 1)

    async def main() -> None:
        db = await begin(tmp_path / "db")
        db._process = -1
        if first == "get":
            assert await db.get(b"k") is None
        elif first == "read":
            async with db.read() as snap:
                assert await snap.get(b"k") is None
        await db.close()
        assert db.closed

    run(main)
