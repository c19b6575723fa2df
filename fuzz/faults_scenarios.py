"""What is played while the disk fails: the steps, and a table of named scenarios.

Each scenario is short, so that a fault can be tried at every one of its calls
to the disk, and has an end that would show what went wrong before: it looks,
reopens, or writes over the same places again.

    SCENARIOS["drop"].steps    put t, put u, drop t, put u, look

`scenario` also makes long random ones: ``random-7-20`` are twenty steps drawn
by the generator with seed 7.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any, Final

from fuzz.faults_play import Play, Scenario, Step

if TYPE_CHECKING:
    from collections.abc import Callable

    from cowdb.transaction import WriteTransaction
    from fuzz.faults_oracle import State

__all__ = ["SCENARIOS", "scenario"]

# ---------------------------------------------------------------- steps


def _change(name: str, work: Callable[[WriteTransaction, State], None], durability: str | None = None) -> Step:
    return Step(f"{name} ({durability})" if durability else name, lambda play: play.change(work, durability))


def _put_into(transaction: WriteTransaction, model: State, tree: str | None, key: bytes, value: bytes) -> None:
    target: Any = transaction if tree is None else transaction.tree(tree, create=True)
    target[key] = value
    model.setdefault(tree, {})[key] = value


def put(key: bytes, value: bytes, durability: str | None = None, tree: str | None = None) -> Step:
    """One entry, in the main tree or a named one."""

    def work(transaction: WriteTransaction, model: State) -> None:
        _put_into(transaction, model, tree, key, value)

    return _change(f"put {tree or ''}{key!r} {len(value)}", work, durability)


def fill(count: int, size: int, first: int = 0, durability: str | None = None) -> Step:
    """Many entries at once."""

    def work(transaction: WriteTransaction, model: State) -> None:
        entries = {b"%05d" % number: bytes([number % 251]) * size for number in range(first, first + count)}
        transaction.update(entries)
        model[None].update(entries)

    return _change(f"fill {first}+{count} x {size}", work, durability)


def touch(numbers: range, size: int = 40, durability: str | None = None) -> Step:
    """Change scattered entries: many leaves are copied."""

    def work(transaction: WriteTransaction, model: State) -> None:
        for number in numbers:
            transaction[b"%05d" % number] = model[None][b"%05d" % number] = b"t" * size

    return _change(f"touch {numbers}", work, durability)


def delete(key: bytes, durability: str | None = None) -> Step:
    """One entry out."""

    def work(transaction: WriteTransaction, model: State) -> None:
        transaction.delete(key)
        model[None].pop(key, None)

    return _change(f"delete {key!r}", work, durability)


def delete_range(low: bytes | None, high: bytes | None, durability: str | None = None) -> Step:
    """A range out."""

    def work(transaction: WriteTransaction, model: State) -> None:
        transaction.delete_range(low, high)
        for key in [key for key in model[None] if (low is None or key >= low) and (high is None or key < high)]:
            del model[None][key]

    return _change(f"delete_range {low!r} {high!r}", work, durability)


def _clear(transaction: WriteTransaction, model: State) -> None:
    transaction.clear()
    model[None].clear()


def drop(name: str, durability: str | None = None) -> Step:
    """A named tree out, if it is there (it may not be, if its creation failed)."""

    def work(transaction: WriteTransaction, model: State) -> None:
        if name in model:
            transaction.drop(name)
            del model[name]

    return _change(f"drop {name}", work, durability)


def rename(old: str, new: str) -> Step:
    """A named tree under another name."""

    def work(transaction: WriteTransaction, model: State) -> None:
        if old in model and new not in model:
            transaction.rename(old, new)
            model[new] = model.pop(old)

    return _change(f"rename {old} {new}", work)


def trees(count: int, size: int) -> Step:
    """Many named trees in one transaction."""

    def work(transaction: WriteTransaction, model: State) -> None:
        for number in range(count):
            _put_into(transaction, model, f"tree {number}", b"k", b"v" * size)

    return _change(f"trees {count}", work)


def _rename_and_restore(transaction: WriteTransaction, model: State) -> None:
    """Rename a tree and make a new one under its old name, in one transaction (redb 4.x)."""
    if "t" in model and "u" not in model:
        transaction.rename("t", "u")
        model["u"] = model.pop("t")
        _put_into(transaction, model, "t", b"new", b"n" * 300)


def _mixed(transaction: WriteTransaction, model: State) -> None:
    """A bit of everything in one transaction."""
    _put_into(transaction, model, None, b"mixed", b"m" * 5000)
    _put_into(transaction, model, "t", b"mixed", b"m" * 50)
    for key in sorted(model[None])[:3]:
        transaction.delete(key)
        del model[None][key]


def _nothing(transaction: WriteTransaction, model: State) -> None:
    """A transaction without a change."""


def _abandoned(transaction: WriteTransaction, model: State) -> None:
    """What an aborted transaction does: pages are allotted and given back."""
    del model
    transaction.update((b"%05d" % number, b"gone" * 60) for number in range(150))
    transaction.tree("gone", create=True)[b"k"] = b"v" * 9000


def _read_only(play: Play) -> None:
    """Close, look through a read-only handle, and open for writing again (promise 4)."""
    play.close()
    before = dict(play.options)
    play.options["read_only"] = True
    try:
        play.open()
        if play.db is not None:
            play.look()
            play.close()
    finally:
        play.options.clear()
        play.options.update(before)


def _reopen(play: Play) -> None:
    play.close()
    play.open()


def _kill(play: Play) -> None:
    play.kill()
    play.open()


clear = _change("clear", _clear)
mixed = _change("mixed", _mixed)
nothing = _change("nothing", _nothing)
rename_and_restore = _change("rename and restore", _rename_and_restore)
abort = Step("abort", lambda play: play.abort(_abandoned))
sync = Step("sync", Play.sync)
look = Step("look", Play.look)
check = Step("check", Play.check)
reopen = Step("reopen", _reopen)
kill = Step("kill", _kill)
reader = Step("reader", Play.begin_reader)
end_readers = Step("end readers", Play.end_readers)
read_only = Step("read only", _read_only)


def view(key: bytes) -> Step:
    """A view of a value, held until the readers end."""
    return Step(f"view {key!r}", lambda play: play.take_view(key))


def group(count: int, size: int = 40) -> Step:
    """So many threads commit at the same time."""
    return Step(f"group of {count} x {size}", lambda play: play.group(count, size))


# ---------------------------------------------------------------- the table

L: Final = "lazy"
A, B, C = b"a", b"b", b"c"
EARLY: Final = {"memory_budget": 9000}
TWICE: Final = {"two_flush_limit": 0}

_TABLE: Final[list[tuple[str, list[Step], dict[str, Any]]]] = [
    ("created", [look], {}),
    ("created and opened again", [reopen, put(A, b"1"), look], {}),
    ("one put", [put(A, b"1"), look], {}),
    ("replaced", [put(A, b"1"), put(A, b"2"), put(A, b"3"), put(A, b"4"), look], {}),
    ("small and large", [put(A, b"1"), put(B, b"2" * 9000), put(A, b"3"), look], {}),
    ("large replaced", [put(A, b"1" * 9000), put(A, b"2" * 9000), put(A, b"3" * 500), put(A, b"4" * 20_000), look], {}),
    ("empty key and value", [put(b"", b""), put(b"", b"1"), delete(b""), put(b"", b"2"), look], {}),
    ("longest keys", [put(bytes([number]) * 900, b"v" * 900) for number in range(6)], {}),
    ("deleted", [put(A, b"1"), put(B, b"2"), delete(A), delete(B), put(C, b"3"), look], {}),
    ("delete of what is not there", [put(A, b"1"), delete(B), nothing, delete(A), delete(A), look], {}),
    ("a split", [fill(60, 40), fill(60, 60, 60), put(A, b"1"), look], {}),
    ("a merge", [fill(200, 40), delete_range(b"00050", b"00190"), put(A, b"1"), look], {}),
    ("a range", [fill(300, 30), delete_range(b"00010", b"00290"), fill(100, 30, 20), look], {}),
    ("cleared", [fill(200, 40), clear, put(A, b"1"), clear, put(B, b"2"), look], {}),
    ("trees", [put(A, b"1", tree="t"), put(B, b"2", tree="u"), put(A, b"3", tree="t"), look], {}),
    ("many trees", [trees(40, 30), put(A, b"1", tree="tree 7"), drop("tree 9"), look], {}),
    ("a tree dropped", [put(A, b"1" * 5000, tree="t"), drop("t"), put(A, b"2", tree="t"), look], {}),
    ("a tree renamed", [put(A, b"1", tree="t"), rename("t", "u"), put(B, b"2", tree="u"), look], {}),
    ("renamed and restored", [put(A, b"1", tree="t"), rename_and_restore, put(B, b"2", tree="u"), reopen, look], {}),
    ("everything at once", [fill(50, 40), mixed, mixed, check, look], {}),
    ("lazy", [put(A, b"1", L), put(B, b"2" * 3000, L), put(C, b"3", L), look], {}),
    ("lazy and synced", [put(A, b"1", L), put(B, b"2", L), sync, put(C, b"3", L), look, sync, put(A, b"4", L)], {}),
    ("lazy by option", [put(A, b"1"), put(B, b"2"), sync, put(C, b"3"), sync, sync, look], {"durability": L}),
    ("lazy and then full", [put(A, b"1", L), put(B, b"2"), put(C, b"3", L), put(A, b"4"), look], {}),
    ("lazy and killed", [put(A, b"1", L), put(B, b"2" * 5000, L), kill, put(C, b"3", L), kill, put(A, b"4"), look], {}),
    ("lazy trees", [put(A, b"1", L, "t"), put(A, b"2", L, "u"), drop("t", L), sync, put(A, b"3", L, "t"), look], {}),
    ("lazy growth", [fill(300, 100, 0, L), fill(300, 100, 300, L), sync, touch(range(0, 600, 50)), look], {}),
    ("opened again and again", [put(A, b"1"), reopen, put(B, b"2"), reopen, reopen, put(C, b"3"), reopen, look], {}),
    ("killed", [put(A, b"1"), kill, put(B, b"2" * 3000), kill, kill, put(A, b"3"), look], {}),
    ("killed while lazy", [put(A, b"1"), put(B, b"2", L), kill, look, put(C, b"3", L), reopen, look], {}),
    ("opened read-only", [put(A, b"1"), read_only, put(B, b"2", L), read_only, put(C, b"3"), look], {}),
    ("aborted", [put(A, b"1"), abort, put(B, b"2"), abort, abort, put(C, b"3"), check, look], {}),
    ("growth", [fill(200, 60), fill(400, 150), put(b"large", b"x" * 100_000), look], {}),
    ("a tail that is cut", [put(b"large", b"x" * 700_000), clear, put(A, b"1"), put(B, b"2"), put(C, b"3"), look], {}),
    ("grown, cut and grown", [put(A, b"x" * 600_000), clear, put(B, b"1"), put(C, b"2"), put(A, b"y" * 500_000)], {}),
    ("a long reader", [fill(200, 40), reader, touch(range(0, 200, 9)), touch(range(0, 200, 7)), look, end_readers,
                       touch(range(0, 200, 5)), look], {}),
    ("readers of every age", [put(A, b"1"), reader, put(B, b"2"), reader, put(A, b"3"), reader, put(C, b"4" * 5000),
                              end_readers, put(A, b"5"), look], {}),
    ("a view that is held", [put(A, b"1" * 20_000), view(A), put(A, b"2" * 20_000), put(A, b"3" * 20_000), look], {}),
    ("a long free list", [fill(900, 100), reader, *[touch(range(first, 900, 31)) for first in range(3)], end_readers,
                          put(A, b"1"), put(B, b"2" * 9000), check], {}),
    ("checked and looked at", [put(A, b"1"), check, put(B, b"2" * 9000), check, look, put(C, b"3"), check], {}),
    ("early writes", [fill(300, 60), put(A, b"b"), fill(300, 200), look], EARLY),
    ("early writes of a large tree", [fill(900, 40), delete_range(b"00100", b"00800"), fill(700, 30, 100)], EARLY),
    ("early writes, aborted", [put(A, b"1"), abort, put(B, b"2"), abort, check, look], EARLY),
    ("two flushes", [put(A, b"1"), put(B, b"2" * 9000), put(C, b"3"), look], TWICE),
    ("two flushes after lazy", [put(A, b"1", L), put(B, b"2" * 9000, L), put(C, b"3"), put(A, b"4", L), look], TWICE),
    ("two flushes and early writes", [fill(200, 100), fill(200, 120), touch(range(0, 200, 20))], {**TWICE, **EARLY}),
    ("a group", [put(A, b"1"), group(3), put(B, b"2"), look], {}),
    ("a large group", [put(A, b"1"), group(3, 2000), group(3), reopen, look], {}),
    ("a group with two flushes", [put(A, b"1"), group(3), put(B, b"2"), look], TWICE),
    ("a group after lazy", [put(A, b"1", L), group(3), put(B, b"2", L), sync, look], {}),
    ("max_size", [fill(100, 60), put(b"large", b"x" * 150_000), put(A, b"1"), delete_range(b"00010", None),
                  fill(60, 60)],
     {"max_size": 40 * 4096}),
    ("pages of 8 KiB", [fill(200, 60), put(A, b"1" * 20_000), delete_range(b"00050", b"00150"), look],
     {"page_size": 8192}),
    ("pages of 32 KiB", [put(A, b"1"), put(B, b"2" * 40_000), delete(B), put(C, b"3"), look], {"page_size": 32768}),
]  # fmt: skip

SCENARIOS: Final[dict[str, Scenario]] = {name: Scenario(name, tuple(steps), options) for name, steps, options in _TABLE}

# ---------------------------------------------------------------- random ones


def _random_step(rng: random.Random) -> Step:
    key = b"%05d" % rng.randrange(400)
    durability = rng.choice(["full", "full", "lazy"])
    tree = rng.choice([None, None, "t", "u"])
    return rng.choice(
        (
            lambda: put(key, b"r" * rng.choice((1, 60, 900, 3000, 9000)), durability, tree),
            lambda: put(key, b"s" * rng.choice((1, 60, 900, 3000, 9000)), durability, tree),
            lambda: fill(rng.randrange(10, 300), rng.choice((20, 100)), rng.randrange(200), durability),
            lambda: delete(key, durability),
            lambda: delete_range(key, b"%05d" % (int(key) + rng.randrange(200)), durability),
            lambda: touch(range(rng.randrange(20), 400, rng.randrange(9, 90)), durability=durability),
            lambda: drop(rng.choice(["t", "u"]), durability),
            lambda: put(b"large", b"L" * rng.randrange(50_000, 600_000), durability),
            lambda: rng.choice([clear, mixed, rename_and_restore, abort, nothing]),
            lambda: rng.choice([sync, look, check, reopen, kill, read_only]),
            lambda: rng.choice([reader, end_readers, view(b"large"), view(key)]),
            lambda: group(rng.randrange(2, 4), rng.choice((40, 2000))),
        )
    )()


def scenario(name: str) -> Scenario:
    """The scenario of that name, from the table or random. Raises `KeyError`."""
    if not name.startswith("random-"):
        return SCENARIOS[name]
    _, seed, count = name.split("-")
    rng = random.Random(name)
    steps = [_random_step(rng) for _ in range(int(count))]
    options: dict[str, Any] = {}
    for change in (EARLY, TWICE, {"durability": "lazy"}, {"page_size": 8192}):
        if rng.random() < 0.2:
            options.update(change)
    return Scenario(f"random-{seed}-{count}", tuple(steps), options)
