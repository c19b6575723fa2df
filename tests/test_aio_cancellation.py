"""The asyncio form can be cancelled at every stage, and goes on afterwards."""

# ruff: noqa: ASYNC110
# What is waited for happens in threads.

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import os
import random
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from looping import NAME, Hold, SlowKey, cancel, run, threads, until, works

import cowdb
import cowdb.aio
from cowdb.testing import FaultyDisk, MemoryDisk

pytestmark = pytest.mark.usefixtures("nothing_left_behind")

# ---------------------------------------------------------------- cancellation


def test_cancelled_while_another_task_writes(tmp_path):
    async def main() -> None:
        async with cowdb.aio.open(tmp_path / "db") as db:
            entered = False

            async def write() -> None:
                nonlocal entered
                async with db.write():
                    entered = True

            async with db.write() as txn:
                waiting = [asyncio.create_task(write()), asyncio.create_task(db.put(b"never", b""))]
                waiting += [asyncio.create_task(db.sync()), asyncio.create_task(db.check())]
                await until(lambda: len(db._queue.turns()) == 5)
                assert len(threads("cowdb-write") + threads("cowdb-call")) == 1
                for task in waiting:
                    await cancel(task)
                await txn.put(b"k", b"v")
            assert not entered
            assert await db[b"k"] == b"v"
            assert not await db.contains(b"never")
            await works(db)

    run(main)


@pytest.mark.parametrize("what", ["write", "put", "sync", "check"])
def test_cancelled_while_another_handle_writes(tmp_path, what):
    """The wait for the lock of the file ends, and its thread too, although the lock stays taken."""

    async def main() -> None:
        async with cowdb.aio.open(tmp_path / "db") as db:
            await db.put(b"k", b"v")
            with cowdb.open(tmp_path / "db") as other, other.write() as foreign:

                async def write() -> None:
                    async with db.write() as txn:
                        await txn.put(b"never", b"")

                waits = {"write": write, "put": functools.partial(db.put, b"never", b""), "sync": db.sync}
                task = asyncio.create_task(waits.get(what, db.check)())
                await until(lambda: threads("cowdb-write") + threads("cowdb-call"))
                await cancel(task)
                assert threads("cowdb-write") + threads("cowdb-call") == []
                foreign.put(b"k", b"w")
            assert await db[b"k"] == b"w"
            assert not await db.contains(b"never")
            await works(db)

    run(main)


@pytest.mark.parametrize("what", ["write", "put", "sync", "check"])
def test_waiting_for_another_handle_ends_well(tmp_path, what):
    async def main() -> None:
        async with cowdb.aio.open(tmp_path / "db", durability="lazy") as db:
            other = cowdb.open(tmp_path / "db")
            foreign = other.write()

            async def write() -> None:
                async with db.write() as txn:
                    await txn.put(b"mine", b"")

            waits = {"write": write, "put": functools.partial(db.put, b"mine", b""), "sync": db.sync}
            task = asyncio.create_task(waits.get(what, db.check)())
            await until(lambda: threads("cowdb-write") + threads("cowdb-call"))
            spells = [turn for turn in db._queue.turns() if turn.came.done()]
            await until(lambda: foreign.closed or len(spells) == 1)
            foreign.put(b"k", b"v")
            await asyncio.sleep(0.12)  # longer than a spell, so that there is more than one
            assert not task.done()
            foreign.commit()
            await task
            other.close()
            assert await db[b"k"] == b"v"
            assert await db.contains(b"mine") == (what in ("write", "put"))
            await works(db)

    run(main)


def test_cancelled_in_the_moment_of_getting_the_lock():
    async def main() -> None:
        hold = Hold()
        async with hold.open() as db:
            hold.arm("flush")  # the first write transaction re-asserts the state
            entered = False

            async def write() -> None:
                nonlocal entered
                async with db.write():
                    entered = True

            task = asyncio.create_task(write())
            await hold.reach()
            task.cancel()
            task.cancel()
            await asyncio.sleep(0)
            assert not task.done(), "the thread is awaited"
            hold.go.set()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert not entered
            await works(db)

    run(main)


def test_cancelled_just_after_getting_the_lock(tmp_path):
    """The thread has begun the transaction, but its task does not know yet."""

    async def main() -> None:
        async with cowdb.aio.open(tmp_path / "db") as db:
            task = asyncio.create_task(db.write().__aenter__())
            while not (db._queue.turns() and db._queue.turns()[0].abort):
                await asyncio.sleep(0)
            writing = db._queue.turns()[0].abort().__self__
            while not writing._begun:  # without a turn of the loop
                pass
            await cancel(task)
            await works(db)

    run(main)


@pytest.mark.parametrize("stage", ["sleep", "put", "get", "update", "tree", "iteration"])
def test_cancelled_inside_the_block(tmp_path, stage):
    async def main() -> None:
        async with cowdb.aio.open(tmp_path / "db") as db:
            await db.put(b"k", b"before")
            reached, go = threading.Event(), threading.Event()

            def pairs() -> Iterator[tuple[bytes, bytes]]:
                yield b"1", b""
                reached.set()
                assert go.wait(30)
                yield b"2", b""

            async def block(txn: cowdb.aio.WriteTransaction) -> None:
                await txn.put(b"k", b"after")
                if stage == "sleep":
                    reached.set()
                    await asyncio.sleep(60)
                    return
                slow = SlowKey(b"k")
                slow.reached, slow.go = reached, go
                if stage == "put":
                    await txn.put(slow, b"x")
                elif stage == "get":
                    await txn.get(slow)
                else:
                    # The thread is busy with another task's call.
                    busy = asyncio.create_task(txn.update(pairs()))
                    await until(reached.is_set)
                    if stage == "update":
                        await busy
                    elif stage == "tree":
                        await txn.tree("t", create=True)
                    else:
                        async for _ in txn.items():
                            pass

            seen: list[cowdb.aio.WriteTransaction] = []

            async def write() -> None:
                async with db.write() as txn:
                    seen.append(txn)
                    await block(txn)

            task = asyncio.create_task(write())
            await until(reached.is_set)
            for _ in range(3):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.sleep(0)
            go.set()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert seen[0].closed
            assert await db[b"k"] == b"before"
            assert await db.count() == 1
            await works(db)

    run(main)


def test_a_swallowed_cancellation_does_not_commit_half_a_transaction(tmp_path):
    async def main() -> None:
        async with cowdb.aio.open(tmp_path / "db") as db:
            with pytest.raises(cowdb.ClosedError, match="one of its calls was cancelled"):
                async with db.write() as txn:
                    await txn.put(b"k", b"v")
                    slow = SlowKey(b"k")
                    task = asyncio.create_task(txn.get(slow))
                    await until(slow.reached.is_set)
                    task.cancel()
                    await asyncio.sleep(0)
                    slow.go.set()
                    with contextlib.suppress(asyncio.CancelledError):
                        await task
                    assert txn.closed
                    assert threads("cowdb-write") == []
                    with pytest.raises(cowdb.ClosedError, match="one of its calls was cancelled"):
                        await txn.put(b"k", b"w")
                    with pytest.raises(cowdb.ClosedError, match="one of its calls was cancelled"):
                        await txn.commit()
                    await txn.abort()
            assert await db.count() == 0
            await works(db)

    run(main)


def test_a_cancelled_call_comes_out_when_the_transaction_has_ended(tmp_path):
    async def main() -> None:
        async with cowdb.aio.open(tmp_path / "db") as db:
            first, second = SlowKey(b"1"), SlowKey(b"2")
            txn = await db.write()
            task = asyncio.create_task(txn.get(first))
            other = asyncio.create_task(txn.get(second))
            await until(first.reached.is_set)
            task.cancel()
            first.go.set()
            await until(second.reached.is_set)
            await until(lambda: txn.closed)
            for _ in range(10):
                await asyncio.sleep(0)
            assert not task.done(), "the abort waits for the call before it, and the task for the abort"
            second.go.set()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await other is None
            await works(db)

    run(main)


@pytest.mark.parametrize("times", [1, 3])
@pytest.mark.parametrize("explicit", [False, True])
def test_cancelled_during_a_commit(times, explicit):
    """The commit runs its course, and then the cancellation comes out."""

    async def main() -> None:
        hold = Hold()
        async with hold.open() as db:
            await db.put(b"k", b"before")

            async def write() -> None:
                async with db.write() as txn:
                    await txn.put(b"k", b"after")
                    hold.arm("flush")
                    if explicit:
                        await txn.commit()

            task = asyncio.create_task(write())
            await hold.reach()
            for _ in range(times):
                task.cancel()
                await asyncio.sleep(0)
            assert not task.done()
            assert await db[b"k"] == b"before"
            hold.go.set()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await db[b"k"] == b"after"
            await works(db)

    run(main)


def test_cancelled_during_a_commit_that_fails():
    async def main() -> None:
        hold = Hold()
        async with hold.open() as db:
            await db.put(b"k", b"before")

            async def write() -> None:
                async with db.write() as txn:
                    await txn.put(b"k", b"after")
                    hold.arm("flush")
                    hold.disk.fail(errno.EIO, call="flush")

            task = asyncio.create_task(write())
            await hold.reach()
            task.cancel()
            await asyncio.sleep(0)
            hold.go.set()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await db[b"k"] == b"before"
            with pytest.raises(cowdb.PoisonedError):
                await db.put(b"k", b"after")
            assert threads("cowdb-write") + threads("cowdb-call") == []

    run(main)


def test_cancelled_during_an_abort(tmp_path):
    async def main() -> None:
        async with cowdb.aio.open(tmp_path / "db") as db:
            slow = SlowKey(b"k")

            async def write() -> None:
                async with db.write() as txn:
                    busy.append(asyncio.create_task(txn.put(slow, b"v")))
                    await until(slow.reached.is_set)
                    raise LookupError

            busy: list[asyncio.Task[bool]] = []
            task = asyncio.create_task(write())
            await until(lambda: db._queue.turns() and db._queue.turns()[0].abort)
            transaction = db._queue.turns()[0].abort().__self__
            await until(lambda: transaction.closed)
            task.cancel()
            await asyncio.sleep(0)
            assert not task.done()
            slow.go.set()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await busy[0] is True, "a call that was running is finished before the abort"
            assert await db.count() == 0
            await works(db)

    run(main)


@pytest.mark.parametrize("what", ["put", "delete"])
@pytest.mark.parametrize("stage", ["before the commit", "during the commit"])
def test_cancelled_one_call_transactions(what, stage):
    async def main() -> None:
        hold = Hold()
        async with hold.open() as db:
            await db.put(b"k", b"before")
            slow = SlowKey(b"k")
            if stage == "during the commit":
                hold.arm("flush")
                slow.go.set()
            task = asyncio.create_task(db.put(slow, b"after") if what == "put" else db.delete(slow))
            await until(slow.reached.is_set)
            if stage == "during the commit":
                await hold.reach()
            task.cancel()
            await asyncio.sleep(0)
            assert not task.done()
            slow.go.set()
            hold.go.set()
            with pytest.raises(asyncio.CancelledError):
                await task
            after = b"after" if what == "put" else None
            assert await db.get(b"k") == (b"before" if stage == "before the commit" else after)
            await works(db)

    run(main)


class SlowPath(os.PathLike):
    """A path that stops in its thread until it is let go."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.reached, self.go = threading.Event(), threading.Event()

    def __fspath__(self) -> str:
        self.reached.set()
        assert self.go.wait(30)
        return str(self.path)


@pytest.mark.parametrize("compact", [False, True])
def test_a_cancelled_copy_leaves_nothing(filled, tmp_path, compact):
    async def main() -> None:
        async with cowdb.aio.open(filled) as db:
            before = os.listdir(tmp_path)
            path = SlowPath(tmp_path / "copy")
            task = asyncio.create_task(db.copy(path, compact=compact))
            await until(path.reached.is_set)
            task.cancel()
            await asyncio.sleep(0)
            assert not task.done()
            path.go.set()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert os.listdir(tmp_path) == before
            await works(db)

    run(main)


def test_a_cancelled_check_stops_early():
    async def main() -> None:
        hold = Hold()
        async with hold.open() as db:
            async with db.write() as txn:
                await txn.update({b"%d" % number: bytes(3000) for number in range(3000)})
            reads = hold.disk.calls["read"]
            assert await db.check() == []
            whole = hold.disk.calls["read"] - reads
            hold.arm("read")
            task = asyncio.create_task(db.check())
            await hold.reach()
            reads = hold.disk.calls["read"]
            task.cancel()
            await asyncio.sleep(0)
            assert not task.done()
            hold.go.set()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert hold.disk.calls["read"] - reads < whole / 2
            await works(db)

    run(main)


def test_a_copy_that_has_not_begun_is_cancelled_at_once(filled, tmp_path):
    async def main() -> None:
        async with cowdb.aio.open(filled, threads=1) as db:
            slow = SlowKey(b"00001")
            busy = asyncio.create_task(db.get(slow))
            await until(slow.reached.is_set)
            task = asyncio.create_task(db.copy(tmp_path / "copy"))
            await asyncio.sleep(0)
            await cancel(task)
            slow.go.set()
            await busy
            assert not (tmp_path / "copy").exists()

    run(main)


@pytest.mark.parametrize("stage", ["open", "map"])
def test_cancelled_while_opening(stage):
    async def main() -> None:
        hold = Hold()
        async with hold.open() as db:
            await db.put(b"k", b"v")
        hold.arm(stage)

        async def user() -> None:
            async with hold.open():
                raise AssertionError

        task = asyncio.create_task(user())
        await hold.reach()
        task.cancel()
        await asyncio.sleep(0)
        assert not task.done()
        hold.go.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        opened = hold.disk.calls["open"] - 1 + hold.disk.calls["create"]  # the first open found no file
        assert hold.disk.calls["close"] == opened
        async with hold.open() as db:
            assert await db[b"k"] == b"v"
            await works(db)

    run(main)


def test_cancelled_while_opening_waits_for_a_lock():
    async def main() -> None:
        tried = 0

        def before(call: str, _number: int) -> None:
            nonlocal tried
            if call == "open":
                tried += 1
                raise cowdb.LockTimeoutError("the file", 0.05, 7)

        disk = FaultyDisk(MemoryDisk(), before=before)
        with pytest.raises(cowdb.LockTimeoutError) as caught:
            await cowdb.aio.open_on(disk, NAME)
        assert (tried, caught.value.timeout, caught.value.holder) == (1, 0.0, 7)

        async def user() -> None:
            async with cowdb.aio.open_on(disk, NAME, lock_timeout=3600):
                raise AssertionError

        task = asyncio.create_task(user())
        await until(lambda: tried > 3)
        await cancel(task)

    run(main)


def test_a_cancelled_read_lets_its_task_go_and_the_snapshot_end_later(filled):
    async def main() -> None:
        async with cowdb.aio.open(filled) as db:
            snap = await db.read()
            slow = SlowKey(b"00007")
            task = asyncio.create_task(snap.get(slow))
            await until(slow.reached.is_set)
            await cancel(task)
            closing = asyncio.create_task(snap.close())
            await until(lambda: snap._use._ending)
            again = asyncio.create_task(snap.close())
            await asyncio.sleep(0)
            assert not snap.closed, "a thread looks into it still"
            with pytest.raises(cowdb.ClosedError):
                await snap.get(b"00007")
            await cancel(closing)
            assert not snap.closed
            slow.go.set()
            await snap.close()
            await again
            assert snap.closed
            assert await db.readers() == []

    run(main)


def test_a_cancelled_read_that_has_not_begun_never_does(filled):
    async def main() -> None:
        async with cowdb.aio.open(filled, threads=1) as db, db.read() as snap:
            slow, never = SlowKey(b"00007"), SlowKey(b"00008")
            busy = asyncio.create_task(snap.get(slow))
            await until(slow.reached.is_set)
            task = asyncio.create_task(snap.get(never))
            await asyncio.sleep(0)
            await cancel(task)
            slow.go.set()
            assert await busy == b"value 7"
            assert await snap.get(b"00009") == b"value 9"
            assert not never.reached.is_set()

    run(main)


def test_a_timeout_around_a_read(filled):
    async def main() -> None:
        async with cowdb.aio.open(filled) as db, db.read() as snap:
            slow = SlowKey(b"00007")
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.01):
                    await snap.get(slow)
            slow.go.set()
            assert await snap.get(b"00007") == b"value 7"

    run(main)


@pytest.mark.parametrize("seed", range(8))
def test_cancelled_anywhere(seed):
    """Tasks that write are cancelled at any moment: what is there is a sum of whole transactions."""

    async def main() -> None:
        rng = random.Random(seed)
        async with cowdb.aio.open_on(MemoryDisk(), NAME) as db:
            finished: set[int] = set()

            async def write(number: int) -> None:
                async with db.write() as txn:
                    await txn.put(b"a%03d" % number, b"")
                    tree = await txn.tree("b", create=True)
                    await tree.put(b"%03d" % number, b"")
                    async for _ in tree.keys():
                        pass
                finished.add(number)

            tasks = [asyncio.create_task(write(number)) for number in range(60)]
            while not all(task.done() for task in tasks):
                rng.choice(tasks).cancel()
                for _ in range(rng.randrange(30)):
                    await asyncio.sleep(0)
            for task in tasks:
                with contextlib.suppress(asyncio.CancelledError):
                    await task
            async with db.read() as snap:
                first = {int(key[1:]) async for key in snap.keys(prefix=b"a")}
                second = {int(key) async for key in await snap.tree("b")} if await snap.trees() else set()
            assert first == second
            assert first >= finished
            await works(db)

    run(main)
