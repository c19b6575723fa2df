"""What a damaged file is asked, and what may come of it.

A target is a function of a `Trial`.  It opens the file, asks near the damage, and
hands every answer to `Trial.same`.  After raw damage an answer is right, by the
model of the state that was opened, or it is a `cowdb.Error`.  After sealed damage
it may be anything of the right type.

    answered    every answer was right           refused    a typed error
    Wrong, or any other exception: a failure, and so is more work than `BOUND` allows

`TARGETS` maps names to functions, with how often each is chosen.
"""

from __future__ import annotations

import contextlib
import os
import random
from typing import TYPE_CHECKING, Any, Final

import cowdb
from cowdb.database import open_on
from cowdb.errors import KeyNotFoundError
from fuzz.corrupt_victim import PATH, everything

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from cowdb.database import Database
    from cowdb.transaction import Transaction
    from fuzz.corrupt_bench import Bench
    from fuzz.corrupt_case import Case
    from fuzz.corrupt_victim import Model, Place, Victim

__all__ = ["TARGETS", "Trial", "Wrong"]

_MISSING: Final = object()
_NEAR: Final = 12


class Wrong(Exception):  # noqa: N818 - it is a verdict
    """An answer that differs from the model, or that has no end."""


class Trial:
    """One case on the bench: the file, the model, the places near the damage."""

    def __init__(self, case: Case, victim: Victim, bench: Bench, folder: str) -> None:
        self.case = case
        self.victim = victim
        self.bench = bench
        self.folder = folder
        self.strict = case.strict
        size = victim.page_size
        self.damaged = [offset // size for offset, _ in case.edits]
        page = self.damaged[0] if self.damaged else (case.cut or 0) // size
        first = case.edits[0][0] if case.edits else case.cut or 0
        self.rng = random.Random(first)
        self.places: list[Place] = victim.places(page)
        if len(self.places) > 4:
            self.places = self.rng.sample(self.places, 4)
        self.most = victim.pages * 600
        self.path: str | None = None  # where the file lies if it is a real one

    # ------------------------------------------------------------ opening

    @contextlib.contextmanager
    def open(self, *, read_only: bool = True, verify: bool = True) -> Iterator[Database]:
        """The damaged file, open."""
        if self.path is None:
            database = open_on(self.bench, PATH, read_only=read_only, verify=verify, clock=_clock)
        else:
            database = cowdb.open(self.path, read_only=read_only, verify=verify, create=False)
        try:
            yield database
        finally:
            database.close()

    @contextlib.contextmanager
    def read(self, **options: bool) -> Iterator[tuple[Transaction, Model]]:
        """A snapshot, and the model that it must equal."""
        with self.open(**options) as database, database.read() as snapshot:
            yield snapshot, self.model(snapshot.id)

    def model(self, transaction: int) -> Model:
        """What the state of this transaction holds."""
        states = self.victim.states
        if self.strict and transaction not in states:
            raise Wrong(f"it opened as transaction {transaction}, of which there is no state")
        return states.get(transaction) or self.victim.newest

    # ------------------------------------------------------------ judging

    def same(self, question: str, got: object, want: object) -> None:
        """After raw damage, `got` must be what is wanted."""
        if self.strict and got != want:
            raise Wrong(f"{question}: {_short(got)}, and not {_short(want)}")

    def collect(self, question: str, found: Iterable[Any], want: list[Any]) -> None:
        """Each item must be right, also those before an error; and they must come to an end."""
        count = 0
        for item in found:
            if self.strict and (count >= len(want) or item != want[count]):
                what = _short(want[count]) if count < len(want) else "the end"
                raise Wrong(f"{question}: item {count} is {_short(item)}, and not {what}")
            count += 1
            if count > self.most:
                raise Wrong(f"{question}: more than {self.most} items of a file of {self.victim.pages} pages")
        if self.strict and count != len(want):
            raise Wrong(f"{question}: it ended after {count} of {len(want)} items")

    def tree(self, snapshot: Any, name: str | None, model: Model) -> Any:
        """A tree of the snapshot. None where the damage, sealed, has hidden it."""
        if name is None:
            return snapshot
        try:
            return snapshot.tree(name)
        except KeyNotFoundError:
            if self.strict and name in model:
                raise Wrong(f"there is no tree {name!r} any more") from None
            raise


def _around(keys: list[bytes], place: int, width: int) -> tuple[bytes, bytes]:
    """The bounds of a range around `place`."""
    if not keys:
        return b"", b"~"
    return keys[max(0, place - width)], keys[min(len(keys) - 1, place + width)]


def _clock() -> int:
    return 1_700_000_001_000_000_000


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) < 100 else f"{text[:90]}... ({len(text)} characters)"


# ---------------------------------------------------------------- reading


def look(trial: Trial) -> None:
    """Open, and ask about the whole."""
    with trial.open() as database:
        database.info()
        database.stats()
        database.readers()
        with database.read() as snapshot:
            model = trial.model(snapshot.id)
            trial.same("trees", snapshot.trees(), [name for name in model if name is not None])
            trial.same("length", len(snapshot), len(model[None]))


def get(trial: Trial, **options: bool) -> None:
    """Single keys whose way leads through the damage, and keys beside them."""
    with trial.read(**options) as (snapshot, model):
        for name, key in trial.places:
            tree = trial.tree(snapshot, name, model)
            want = model.get(name, {})
            for wanted in (key, key + b"\0", key[:-1], b""):
                trial.same(f"get {wanted!r}", tree.get(wanted, _MISSING), want.get(wanted, _MISSING))
            trial.same(f"{key!r} in", key in tree, key in want)
            if key in want:
                try:
                    trial.same(f"[{key!r}]", tree[key], want[key])
                except KeyNotFoundError as error:
                    trial.same(f"[{key!r}]", error, want[key])


def view(trial: Trial, **options: bool) -> None:
    """Values without a copy: near the damage, and all large ones."""
    with trial.read(**options) as (snapshot, model):
        large = [(None, key) for key, value in model[None].items() if len(value) > 1024]
        for name, key in [*trial.places, *large]:
            tree = trial.tree(snapshot, name, model)
            found = tree.get_view(key)
            trial.same(f"view of {key!r}", found if found is None else bytes(found), model.get(name, {}).get(key))


def scan(trial: Trial, **options: bool) -> None:
    """A range around the damage, in both directions."""
    with trial.read(**options) as (snapshot, model):
        for name, key in trial.places[:2]:
            tree = trial.tree(snapshot, name, model)
            keys = sorted(model.get(name, {}))
            place = keys.index(key) if key in keys else 0
            low, high = _around(keys, place, _NEAR)
            want = [(each, model[name][each]) for each in keys if low <= each < high]
            trial.collect("items", tree.items(low, high), want)
            trial.collect("items, in reverse", tree.items(low, high, reverse=True), want[::-1])
            trial.collect("values", tree.values(low, high), [value for _, value in want])
            trial.same("length of a range", len(tree.keys(low, high)), len(want))


def scan_all(trial: Trial, **options: bool) -> None:
    """Every entry of every tree, in both directions."""
    with trial.read(**options) as (snapshot, model):
        for name in [None, *snapshot.trees()]:
            tree = trial.tree(snapshot, name, model)
            want = list(model.get(name, {}).items())
            if name is None or trial.strict:
                want.sort()
            trial.collect(f"items of {name!r}", tree.items(), want)
            trial.collect(f"keys of {name!r}, in reverse", reversed(tree), [key for key, _ in reversed(want)])


def order(trial: Trial, **options: bool) -> None:
    """First, last, floor, ceiling, rank, select, counts of ranges."""
    with trial.read(**options) as (snapshot, model):
        for name, key in trial.places[:2]:
            tree = trial.tree(snapshot, name, model)
            keys = sorted(model.get(name, {}))
            values = model.get(name, {})
            rank = sum(each < key for each in keys)
            item = (key, values[key]) if key in values else None
            trial.same("length", len(tree), len(keys))
            trial.same("first", tree.first(), (keys[0], values[keys[0]]) if keys else None)
            trial.same("last", tree.last(), (keys[-1], values[keys[-1]]) if keys else None)
            trial.same("bisect_left", tree.bisect_left(key), rank)
            trial.same("bisect_right", tree.bisect_right(key), rank + (key in values))
            trial.same("count", tree.count(None, key), rank)
            if item is not None:
                trial.same("floor", tree.floor(key), item)
                trial.same("ceiling", tree.ceiling(key), item)
            for index in (rank, 0, -1):
                with contextlib.suppress(IndexError):
                    found = tree.peekitem(index)
                    want = keys[index] if -len(keys) <= index < len(keys) else None
                    trial.same(f"peekitem({index})", found[0], want)


def cursor(trial: Trial, **options: bool) -> None:
    """A cursor that walks over the damage, there and back."""
    with trial.read(**options) as (snapshot, model):
        for name, key in trial.places[:2]:
            tree = trial.tree(snapshot, name, model)
            keys = sorted(model.get(name, {}))
            values = model.get(name, {})
            place = tree.cursor()
            begin = max(0, sum(each < key for each in keys) - _NEAR)
            if not place.seek(keys[begin] if keys else b""):
                trial.same("whether seek found anything", False, bool(keys))
                continue
            want = [(each, values[each]) for each in keys[begin : begin + 2 * _NEAR]]
            trial.collect("a cursor forward", _steps(place, place.next), want)
            place.seek_exact(key)
            place.last()
            trial.same("last", place.key, keys[-1] if keys else None)
            trial.collect(
                "a cursor backward",
                _steps(place, place.prev),
                [(each, values[each]) for each in keys[: -2 * _NEAR - 1 : -1]],
            )


def _steps(place: Any, move: Callable[[], bool]) -> Iterator[Any]:
    for _ in range(2 * _NEAR):
        yield place.item
        if not move():
            return


def unverified(trial: Trial) -> None:
    """Without checksums, raw damage meets the code as forged damage does."""
    trial.rng.choice((get, scan, scan_all, order, cursor, view))(trial, verify=False)


# ---------------------------------------------------------------- writing


def write(trial: Trial) -> None:
    """Put, replace and delete near the damage; commit; everything that can be read is right, also after reopening."""
    with trial.open(read_only=False) as database:
        with database.write() as transaction:
            model = {name: dict(tree) for name, tree in trial.model(transaction.id - 1).items()} if trial.strict else {}
            for number, (name, key) in enumerate(trial.places):
                tree = trial.tree(transaction, name, model or trial.victim.newest)
                want = model.setdefault(name, {})
                near = key[:60] + b"+"
                tree[near] = b"n" * (40 + 3000 * (number == 1))
                want[near] = b"n" * (40 + 3000 * (number == 1))
                if number % 2:
                    trial.same("delete", tree.delete(key), key in want)
                    want.pop(key, None)
                else:
                    tree[key] = b"replaced"
                    want[key] = b"replaced"
        _judge_writes(trial, database, model)
    with trial.open() as database:
        _judge_writes(trial, database, model)


def _judge_writes(trial: Trial, database: Database, model: Model) -> None:
    with database.read() as snapshot:
        for name, key in trial.places:
            near = key[:60] + b"+"
            tree = trial.tree(snapshot, name, model)
            for wanted in (key, near):
                trial.same(
                    f"{wanted!r} after a commit", tree.get(wanted, _MISSING), model.get(name, {}).get(wanted, _MISSING)
                )


def cut_ranges(trial: Trial) -> None:
    """Ranges deleted around the damage, a tree dropped, another cleared."""
    with trial.open(read_only=False) as database:
        name, key = trial.places[0]
        with database.write() as transaction:
            model = trial.model(transaction.id - 1) if trial.strict else trial.victim.newest
            tree = trial.tree(transaction, name, model)
            keys = sorted(model.get(name, {}))
            place = keys.index(key) if key in keys else 0
            low, high = _around(keys, place, 30)
            gone = tree.delete_range(low, high)
            trial.same("delete_range", gone, sum(low <= each < high for each in keys))
            trial.same("length", len(tree), len(keys) - gone)
        with database.write() as transaction:
            names = transaction.trees()
            if names:
                transaction.drop(trial.rng.choice(names))
        with database.write() as transaction:
            transaction.clear()
        with database.read() as snapshot:
            trial.collect("items after clear", snapshot.items(), [])


def churn(trial: Trial) -> None:
    """Several commits, each with pages from the free list; another opening in between."""
    last = {}
    for opening in range(2):
        with trial.open(read_only=False) as database:
            for number in range(3):
                with database.write() as transaction:
                    for each in range(25):
                        last[b"churn %d" % (each * 7 % 25)] = b"%d" % (opening + number) * trial.rng.randrange(1, 900)
                        transaction[b"churn %d" % (each * 7 % 25)] = last[b"churn %d" % (each * 7 % 25)]
                    transaction.tree(f"new {number}", create=True)[b"k"] = b"v" * 7000
            with database.write() as transaction:
                transaction.delete_range(b"0", b"1")
            with database.read() as snapshot:
                for key, value in last.items():
                    trial.same(f"{key!r} after commits", snapshot.get(key), value)


# ---------------------------------------------------------------- the whole file


def check(trial: Trial, *, read_only: bool = True) -> None:
    """The checker finds damage to every page that the state uses, and none where there is none."""
    with trial.open(read_only=read_only) as database:
        newest = database.info()["transaction"] == max(trial.victim.states)
        findings = database.check()
        if not trial.strict or not newest:
            return
        size = trial.victim.page_size
        used = trial.victim.anatomy.used
        hit = any(
            page in used and trial.bench.content()[page * size : (page + 1) * size]
            != trial.victim.raw[page * size : (page + 1) * size]
            for page in trial.damaged
        ) or (trial.case.cut is not None and any(page * size + size > trial.case.cut for page in used))  # fmt: skip
        if hit != bool(findings):
            raise Wrong(f"the checker says {findings or 'that all is well'}; the damage was in pages {trial.damaged}")


def check_for_writing(trial: Trial) -> None:
    """The checker on a file that is open for writing."""
    check(trial, read_only=False)


def copy(trial: Trial, *, compact: bool = False) -> None:
    """A copy holds the whole state, and is sound; or there is none."""
    target = os.path.join(trial.folder, "copy")
    with contextlib.suppress(FileNotFoundError):
        os.unlink(target)
    try:
        with trial.open() as database:
            state = database.info()["transaction"]
            database.copy(target, compact=compact)
        if trial.strict:
            with cowdb.open(target, create=False) as database:
                trial.same("the copy", everything(database), trial.model(state))
                trial.same("findings in the copy", database.check(), [])
    finally:
        left = [name for name in os.listdir(trial.folder) if name.startswith("copy.")]
        for name in ("copy", "copy-lock", *left):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(os.path.join(trial.folder, name))
    if left:
        raise Wrong(f"a copy has left {left} behind")


def compact(trial: Trial) -> None:
    """A compact copy."""
    copy(trial, compact=True)


def real(trial: Trial) -> None:
    """The same questions to a real file, really mapped, where damage can also kill."""
    trial.path = os.path.join(trial.folder, "real")
    with open(trial.path, "wb") as file:
        file.write(trial.bench.content())
    targets: list[Callable[[Trial], None]] = [look, get, scan, scan_all, order, cursor, view, write, churn, check]
    try:
        trial.rng.choice(targets)(trial)
    finally:
        for name in (trial.path, trial.path + "-lock"):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name)


TARGETS: Final[dict[str, tuple[Callable[[Trial], None], int]]] = {
    "look": (look, 16),
    "get": (get, 60),
    "scan": (scan, 40),
    "scan_all": (scan_all, 5),
    "order": (order, 30),
    "cursor": (cursor, 20),
    "view": (view, 20),
    "unverified": (unverified, 16),
    "write": (write, 16),
    "cut_ranges": (cut_ranges, 6),
    "churn": (churn, 1),
    "check": (check, 8),
    "check_for_writing": (check_for_writing, 2),
    "copy": (copy, 2),
    "compact": (compact, 1),
    "real": (real, 3),
}
"""By name: what is asked, and how often out of the sum of all."""
