"""The asyncio form: the same answers as the engine, a loop that is never blocked, and cancellation at every stage.

Threads are held where a test wants them by a fake disk (`Hold`), or by a key that takes its time (`SlowKey`), never by
a clock.
"""

# ruff: noqa: ASYNC110, BLE001
# What is waited for happens in threads, any error of the engine is compared, and a block is what raises.

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import gc
import os
import pickle
import random
import threading
import warnings
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, Self

import pytest

import cowdb
import cowdb.aio
from cowdb.aio.trees import refuse_fork
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


@pytest.fixture(autouse=True)
def nothing_left_behind() -> Iterator[None]:
    """After each test all threads have ended, and nothing was forgotten."""
    yield
    gc.collect()
    assert threads() == []


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


# ---------------------------------------------------------------- the same answers


@pytest.fixture
def filled(database: Callable[..., cowdb.Database], tmp_path: Path) -> Path:
    """A file with `ENTRIES` in the main tree and, with other values, in the tree "named"."""
    with database() as db, db.write() as txn:
        txn.update(ENTRIES)
        txn.tree("named", create=True).update({key: value * 2 for key, value in ENTRIES.items()})
        txn.tree("empty", create=True)
    return tmp_path / "test.cowdb"


QUESTIONS: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = [
    ("get", (b"00007",), {}),
    ("get", (b"none",), {}),
    ("get", (b"none", 7), {}),
    ("get", (bytearray(b"00007"),), {}),
    ("get", ("00007",), {}),
    ("first", (), {}),
    ("last", (), {}),
    ("floor", (b"00007x",), {}),
    ("floor", (b"",), {}),
    ("floor", (7,), {}),
    ("ceiling", (b"00007x",), {}),
    ("ceiling", (b"x",), {}),
    ("peekitem", (), {}),
    ("peekitem", (17,), {}),
    ("peekitem", (-3,), {}),
    ("peekitem", (10**9,), {}),
    ("bisect_left", (b"00007",), {}),
    ("bisect_right", (b"00007",), {}),
    ("bisect", (b"00007",), {}),
    ("count", (), {}),
    ("count", (b"00007", b"00100"), {}),
    ("count", (), {"prefix": b"001"}),
    ("get_view", (b"00007",), {}),
    ("get_view", (b"none",), {}),
]


def outcome(function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    try:
        return function(*arguments, **options)
    except Exception as error:
        return type(error), str(error)


async def awaited(function: Callable[..., Awaitable[Any]], *arguments: Any, **options: Any) -> Any:
    try:
        return await function(*arguments, **options)
    except Exception as error:
        return type(error), str(error)


async def same_answers(tree: Any, below: Any) -> None:
    for method, arguments, options in QUESTIONS:
        expected = outcome(getattr(below, method), *arguments, **options)
        assert await awaited(getattr(tree, method), *arguments, **options) == expected, (method, arguments)
    for key in (b"00007", b"none", bytearray(b"00008"), "text", None):
        assert await awaited(tree.contains, key) == outcome(below.__contains__, key)
        assert await awaited(tree.__getitem__, key) == outcome(below.__getitem__, key)
    assert [item async for item in tree[b"00007":b"00100"]] == list(below[b"00007":b"00100"])
    assert [item async for item in tree[:]] == list(below[:])
    assert [key async for key in tree] == list(below)
    with pytest.raises(ValueError, match="step"):
        tree[b"a":b"b":2]
    with pytest.raises(TypeError):
        iter(tree)
    assert "cowdb" in repr(tree)


@pytest.mark.parametrize("writing", [False, True])
def test_every_question_has_the_engines_answer(filled, writing):
    async def main() -> None:
        async with cowdb.aio.open(filled) as db:
            async with db.write() if writing else db.read() as txn:
                with db._below.read() as below:
                    for name in (None, "named", "empty"):
                        tree = txn if name is None else await txn.tree(name)
                        await same_answers(tree, below if name is None else below.tree(name))
                    assert await txn.trees() == below.trees()
                    assert txn.id == below.id + writing
                assert isinstance(txn, cowdb.aio.WriteTransaction if writing else cowdb.aio.Transaction)
                with pytest.raises(cowdb.KeyNotFoundError):
                    await txn.tree("none")
                assert not txn.closed
            assert txn.closed

    run(main)


RANGES: list[dict[str, Any]] = [
    {},
    {"prefix": b"01"},
    {"prefix": b"none"},
    {"start": b"00100", "stop": b"02500"},
    {"start": b"00100", "stop": b"02500", "include_start": False, "include_stop": True},
    {"start": b"00100", "stop": b"02500", "include_start": False, "include_stop": True, "reverse": True},
    {"start": bytearray(b"01000"), "prefix": memoryview(b"01"), "reverse": True},
    {"limit": 0},
    {"limit": 1500},
    {"limit": 1500, "reverse": True},
    {"stop": b"00000"},
    {"reverse": True},
]


@pytest.mark.parametrize("writing", [False, True])
def test_iteration_gives_what_the_engine_gives(filled, writing):
    async def main() -> None:
        async with cowdb.aio.open(filled) as db, db.write() if writing else db.read() as txn:
            with db._below.read() as below:
                for kind in ("items", "keys", "values"):
                    for options in RANGES:
                        view = getattr(txn, kind)(**options)
                        expected = list(getattr(below, kind)(**options))
                        assert [entry async for entry in view] == expected
                        assert [entry async for entry in view] == expected, "a view may be used again"
                        assert await view.count() == len(expected)
                        batches = [batch async for batch in view.batches(700)]
                        assert [entry for batch in batches for entry in batch] == expected
                        assert all(1 <= len(batch) <= 700 for batch in batches)
                        assert len(batches) == -(-len(expected) // 700)

    run(main)


def test_wrong_arguments_of_a_range_are_told_at_once(filled):
    async def main() -> None:
        async with cowdb.aio.open(filled) as db, db.read() as snap:
            with pytest.raises(TypeError, match="encode"):
                snap.items(prefix="text")
            with pytest.raises(TypeError):
                snap.keys(7)
            with pytest.raises(TypeError):
                snap.values(nonsense=7)
            with pytest.raises(ValueError, match="at least 1"):
                snap.keys().batches(0)
            buffer = bytearray(b"00100")
            view = snap.keys(buffer, limit=1)
            buffer[:] = b"00200"
            assert [key async for key in view] == [b"00100"], "bounds are taken when the view is made"

    run(main)


def test_changes_are_the_engines(tmp_path):
    """The same changes, to a database of the engine and to one for asyncio, have the same results."""
    changes: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = [
        ("put", (b"a", b"1"), {}),
        ("put", (b"a", b"2"), {"overwrite": False}),
        ("put", (b"z", b"3"), {"append": True}),
        ("put", (b"b", b"3"), {"append": True}),
        ("put", ("text", b""), {}),
        ("put", (b"x" * 5000, b""), {}),
        ("update", ({b"c": b"3", b"d": b"4"},), {}),
        ("update", ([(b"e", b"5"), (b"f", bytearray(b"6"))],), {}),
        ("update", ((),), {}),
        ("update", ([1],), {}),
        ("delete", (b"c",), {}),
        ("delete", (b"c",), {}),
        ("pop", (b"d",), {}),
        ("pop", (b"d",), {}),
        ("pop", (b"d", None), {}),
        ("pop", (b"d", b"default"), {}),
        ("popitem", (), {}),
        ("popitem", (0,), {}),
        ("popitem", (99,), {}),
        ("setdefault", (b"g", b"7"), {}),
        ("setdefault", (b"g", b"8"), {}),
        ("setdefault", (b"h",), {}),
        ("delete_range", (b"e", b"g"), {}),
        ("delete_range", (), {}),
        ("popitem", (), {}),
        ("update", ({b"left": b"over"},), {}),
        ("clear", (), {}),
        ("update", ({b"left": b"over" * 5000},), {}),
    ]

    async def main() -> None:
        async with cowdb.aio.open(tmp_path / "a") as db, db.write() as txn:
            with cowdb.open(tmp_path / "b") as below, below.write() as expected:
                for method, arguments, options in changes:
                    result = outcome(getattr(expected, method), *arguments, **options)
                    assert await awaited(getattr(txn, method), *arguments, **options) == result, (method, arguments)
                    assert [item async for item in txn.items()] == list(expected.items())
        async with cowdb.aio.open(tmp_path / "a", create=False) as db:
            assert await db[b"left"] == b"over" * 5000
            assert await db.check() == []

    run(main)


def test_named_trees_are_made_renamed_and_dropped(tmp_path):
    async def main() -> None:
        async with cowdb.aio.open(tmp_path / "db") as db:
            async with db.write() as txn:
                users = await txn.tree("users", create=True)
                assert await txn.tree("users") is users
                await users.update({b"1": b"Ada", b"2": b"Grace"})
                await (await txn.tree("old", create=True)).put(b"k", b"v")
                await txn.tree("gone", create=True)
                await txn.rename("old", "new")
                await txn.drop("gone")
                with pytest.raises(ValueError, match="already"):
                    await txn.rename("new", "users")
                with pytest.raises(cowdb.KeyNotFoundError):
                    await txn.drop("gone")
                assert await txn.trees() == ["new", "users"]
            async with db.read() as snap:
                assert await snap.trees() == ["new", "users"]
                assert await (await snap.tree("new")).get(b"k") == b"v"
                assert [v async for v in (await snap.tree("users")).values()] == [b"Ada", b"Grace"]
                with pytest.raises(TypeError, match=r"write\(\)"):
                    await snap.tree("another", create=True)
            async with db.write() as txn:
                users = await txn.tree("users")
                walk = aiter(users)
                assert await anext(walk) == b"1"
                await txn.drop("users")
                with pytest.raises(cowdb.ClosedError):
                    await anext(walk)
                with pytest.raises(cowdb.ClosedError):
                    await users.get(b"1")

    run(main)


def test_one_call_is_one_transaction(tmp_path):
    async def main() -> None:
        async with cowdb.aio.open(tmp_path / "db") as db:
            assert await db.get(b"k") is None
            assert await db.get(b"k", 7) == 7
            assert await db.put(b"k", b"v") is True
            assert await db.put(b"k", b"w", overwrite=False) is False
            assert await db[b"k"] == b"v"
            assert await db.contains(b"k")
            assert await db.count() == 1
            assert await db.delete(b"k") is True
            assert await db.delete(b"k") is False
            assert not await db.contains(b"k")
            with pytest.raises(cowdb.KeyNotFoundError):
                await db[b"k"]
            with pytest.raises(TypeError, match="encode"):
                await db.put("k", b"v")
            with pytest.raises(cowdb.KeySizeError):
                await db.put(b"k" * (db.max_key_size + 1), b"v")
            with pytest.raises(TypeError):
                iter(db)
            await works(db)

    run(main)


def test_questions_about_the_whole_file(filled, tmp_path):
    async def main() -> None:
        async with cowdb.aio.open(filled, durability="lazy") as db:
            assert db.path == str(filled)
            assert db.max_key_size == db._below.max_key_size
            assert not db.closed
            assert "test.cowdb" in repr(db)
            await db.put(b"k", b"v")
            assert (await db.stats()).durable_transaction < (await db.stats()).transaction
            await db.sync()
            assert (await db.stats()).durable_transaction == (await db.stats()).transaction
            assert (await db.info())["entries"] == len(ENTRIES) + 1
            async with db.read() as snap:
                assert [reader["transaction"] for reader in await db.readers()] == [snap.id]
            assert await db.readers() == []
            loop_thread = threading.get_ident()
            told: list[tuple[int, int, bool]] = []

            def progress(done: int, total: int) -> None:
                told.append((done, total, threading.get_ident() == loop_thread))

            assert await db.check() == []
            assert await db.check(progress) == []
            assert told
            for compact in (False, True):
                told.clear()
                target = tmp_path / f"copy {compact}"
                await db.copy(target, compact=compact, progress=progress)
                assert told[-1][0] == told[-1][1]
                assert all(in_loop for _, _, in_loop in told)
                async with cowdb.aio.open(target, create=False) as copied:
                    assert await copied.count() == len(ENTRIES) + 1
                with pytest.raises(FileExistsError):
                    await db.copy(target)
        assert db.closed

    run(main)


def test_opening(tmp_path):
    async def main() -> None:
        db = await cowdb.aio.open(tmp_path / "db")
        async with db:
            await db.put(b"k", b"v")
        with pytest.raises(FileNotFoundError):
            await cowdb.aio.open(tmp_path / "none", create=False)
        with pytest.raises(ValueError, match="durability"):
            await cowdb.aio.open(tmp_path / "db", durability="some")
        with pytest.raises(TypeError):
            await cowdb.aio.open(tmp_path / "db", lock_timeout="soon")
        with pytest.raises(TypeError):
            await cowdb.aio.open(tmp_path / "db", nonsense=1)
        with pytest.raises(ValueError):
            await cowdb.aio.open(tmp_path / "db", threads=0)
        (tmp_path / "other").write_bytes(b"no database" * 10000)
        with pytest.raises(cowdb.NotADatabaseError):
            await cowdb.aio.open(tmp_path / "other")
        async with cowdb.aio.open(tmp_path / "db", read_only=True, lock_timeout=1.0) as db:
            assert await db.get(b"k") == b"v"
            with pytest.raises(cowdb.ReadOnlyError):
                await db.put(b"k", b"w")
            with pytest.raises(cowdb.ReadOnlyError):
                async with db.write():
                    pass
            await db.sync()
            assert await db.check() == []
        block = cowdb.aio.open(tmp_path / "db")
        async with block:
            with pytest.raises(RuntimeError, match="begun already"):
                await block
        with pytest.raises(TypeError, match="pickle its path"):
            pickle.dumps(db)

    run(main)


# ---------------------------------------------------------------- iteration


def test_the_next_batch_is_fetched_ahead_and_no_more(filled):
    async def main() -> None:
        async with cowdb.aio.open(filled) as db, db.read() as snap:
            walk = aiter(snap.items())
            for number in range(3):
                assert (await anext(walk))[0] == b"%05d" % number
            await until(walk._pending.done)
            assert len(walk._batch) == 64
            assert [len(walk._pending.result()), walk._pending.result()[0][0]] == [128, b"00064"]
            for _ in range(61):
                await anext(walk)
            assert len(walk._batch) == 64, "the second batch is taken when it is needed"

    run(main)


def test_a_batch_is_bounded_in_bytes(tmp_path):
    async def main() -> None:
        async with cowdb.aio.open(tmp_path / "db") as db:
            async with db.write() as txn:
                await txn.update({b"%d" % number: bytes(100_000) for number in range(9)})
            async with db.read() as snap:
                sizes = [len(batch) async for batch in snap.items().batches()]
                assert sizes == [3, 3, 3]
                assert [len(batch) async for batch in snap.keys().batches()] == [9]

    run(main)


def test_a_cancelled_iteration_loses_nothing(filled):
    async def main() -> None:
        async with cowdb.aio.open(filled, threads=1) as db, db.read() as snap:
            slow = SlowKey(b"00001")
            blocker = asyncio.create_task(snap.get(slow))
            await until(slow.reached.is_set)  # the only thread is taken now
            walk = aiter(snap.keys())
            waiting = asyncio.create_task(anext(walk))
            await until(lambda: walk._pending)
            with pytest.raises(RuntimeError, match="another task"):
                await anext(walk)
            await cancel(waiting)
            slow.go.set()
            assert [key async for key in walk] == list(ENTRIES)
            assert await blocker == ENTRIES[b"00001"]
            assert [key async for key in walk] == [], "the end stays the end"

    run(main)


def test_damage_met_by_an_iteration_stays_an_error(filled, database):
    database.forget()
    data = bytearray(filled.read_bytes())
    victim = data.index(b"value 1500")
    data[victim : victim + 5] = b"wrong"
    filled.write_bytes(data)

    async def main() -> None:
        async with cowdb.aio.open(filled) as db, db.read() as snap:
            walk = aiter(snap.keys())
            given = []
            with pytest.raises(cowdb.CorruptionError):
                while True:
                    given.append(await anext(walk))
            assert given == list(ENTRIES)[: len(given)]
            for _ in range(2):
                with pytest.raises(cowdb.CorruptionError):
                    await anext(walk)

    run(main)


def script(seed: int) -> dict[int, list[tuple[str, tuple[Any, ...]]]]:
    """What to do to a tree after which step of an iteration over it."""
    rng = random.Random(seed)
    actions: dict[int, list[tuple[str, tuple[Any, ...]]]] = {}
    for _ in range(rng.choice([0, 3, 40])):
        key = b"%04d" % rng.randrange(400)
        action = rng.choice(
            [("delete", (key,)), ("put", (key, b"new")), ("delete_range", (key, b"%s5" % key[:-1])), ("clear", ())]
            if rng.random() < 0.1
            else [("delete", (key,)), ("put", (key, b"new")), ("put", (key + b"x", b"newer"))]
        )
        actions.setdefault(rng.randrange(250), []).append(action)
    return actions


@pytest.mark.parametrize("kind", ["items", "keys", "values"])
@pytest.mark.parametrize("reverse", [False, True])
def test_a_tree_changed_under_an_iteration_gives_what_the_engine_gives(kind, reverse):
    """What was fetched before a change is not given after it."""

    async def main() -> None:
        for seed in range(25):
            actions = script(seed)
            options = {"reverse": reverse, "limit": random.Random(seed).choice([None, 7, 150])}
            start = {b"%04d" % number: b"old %d" % number for number in range(0, 400, 2)}
            expected, given = [], []
            with cowdb.database.open_on(MemoryDisk(), NAME) as below, below.write() as txn:
                txn.update(start)
                for step, entry in enumerate(getattr(txn, kind)(**options)):
                    expected.append(entry)
                    for method, arguments in actions.get(step, []):
                        getattr(txn, method)(*arguments)
            async with cowdb.aio.open_on(MemoryDisk(), NAME) as db, db.write() as txn:
                await txn.update(start)
                step = 0
                async for entry in getattr(txn, kind)(**options):
                    given.append(entry)
                    for method, arguments in actions.get(step, []):
                        await getattr(txn, method)(*arguments)
                    step += 1
            assert given == expected, seed

    run(main)


def test_what_is_put_behind_the_last_batch_is_met(tmp_path):
    async def main() -> None:
        async with cowdb.aio.open(tmp_path / "db") as db, db.write() as txn:
            await txn.update({b"a1": b"", b"a2": b"", b"a3": b"", b"b": b""})
            prefix = bytearray(b"a")
            view = txn.keys(prefix=prefix)
            prefix[:] = b"x"
            given = []
            async for key in view:
                given.append(key)
                if key in (b"a1", b"a3"):
                    await txn.put(key + b"x", b"")
            assert given == [b"a1", b"a1x", b"a2", b"a3", b"a3x"]

    run(main)


def test_batches_of_a_tree_that_changes_meanwhile(tmp_path):
    async def main() -> None:
        async with cowdb.aio.open(tmp_path / "db") as db, db.write() as txn:
            await txn.update(ENTRIES)
            given: list[bytes] = []
            async for batch in txn.keys().batches(1000):
                given += batch
                await txn.delete_range(b"01000", b"02000")
            assert given == [key for key in ENTRIES if not b"01000" <= key < b"02000"]
            backwards = [batch async for batch in txn.values(reverse=True, limit=3).batches(2)]
            assert backwards == [[b"value 2999", b"value 2998"], [b"value 2997"]]

    run(main)


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
            writing = txn.below._writing
            failures = [ZeroDivisionError]

            class Broken:
                @staticmethod
                def end() -> None:
                    writing.end()
                    while failures:
                        raise failures.pop()

            txn.below._writing = Broken()
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
