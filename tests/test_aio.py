"""The asyncio form gives the same answers as the engine, one by one and while it iterates."""

# ruff: noqa: BLE001
# Any error of the engine is compared, whatever it is.

from __future__ import annotations

import asyncio
import pickle
import random
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from looping import ENTRIES, NAME, SlowKey, cancel, run, until, works

import cowdb
import cowdb.aio
from cowdb.testing import MemoryDisk

pytestmark = pytest.mark.usefixtures("nothing_left_behind")

# ---------------------------------------------------------------- the same answers


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
        ("delete_range", (), {"prefix": b"a"}),
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
