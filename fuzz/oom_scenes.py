"""The moments at which memory runs out: what stands before them, the one call that is struck, what may come of it.

A `Stage` is a file, a handle, a transaction; `act` is the call.  Afterwards

    the call has raised MemoryError, or has done all that it should
    abort works, and so does the next writer (a commit that failed may have stopped writing)
    the file opens, holds the state before or the state after, and its check is clean
"""

from __future__ import annotations

import contextlib
import gc
import os
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import cowdb
from fuzz.corrupt_victim import everything

if TYPE_CHECKING:
    from collections.abc import Callable

    from fuzz.corrupt_victim import Model

__all__ = ["SCENES", "Stage", "image", "judge"]

NO_LOCK: Final = "can't allocate lock"
"""A `RuntimeError` that means the same: CPython's words where a lock finds no memory."""

LOST: Final = re.compile(r"error return without exception set|<function .* returned NULL without setting an exception")
"""A `SystemError` that means the same: CPython 3.11 had no memory where an exception was raised again, and lost it.

    def again():
        try:
            os.open("missing", 0)
        except BaseException:
            raise

Called where `FileNotFoundError` is caught, allocation 6 does it, without any of cowdb.  Only these words, of the
interpreter's loop and of a plain function, are taken for it: a compiled function that lost one is named otherwise.
"""

PATIENCE: Final = 2.0
"""Seconds that the next writer waits for a lock that should be free."""


@dataclass
class Stage:
    """What a scene needs, and what it may leave."""

    path: str
    before: Model
    after: Model
    db: Any = None
    transaction: Any = None
    reader: Any = None
    act: Callable[[], object] = field(default=lambda: None)
    answer: Any = None  # what `act` must give, if it gives anything
    may_stop_writing: bool = False
    may_be_missing: bool = False
    may_be_forgotten: bool = False  # the transaction can be lost before anybody holds it; see `_block`
    commits: bool = False  # `act` acknowledges `after`


def image(path: str) -> Model:
    """Make the file that the scenes begin with; what it holds."""
    with cowdb.open(path, page_size=4096) as db:
        with db.write() as transaction:
            for number in range(150):
                transaction[b"%04d" % number] = b"v" * (number % 90)
            transaction[b"large"] = b"L" * 9000
            transaction.tree("named", create=True)[b"k"] = b"v"
            transaction.tree("other", create=True).update((b"%d" % number, b"w" * 50) for number in range(60))
        for number in range(4):
            db[b"%04d" % (30 * number)] = b"again" * 20
        return everything(db)


def _copy(model: Model) -> Model:
    return {name: dict(tree) for name, tree in model.items()}


def _opened(stage: Stage, **options: Any) -> Any:
    stage.db = cowdb.open(stage.path, lock_timeout=PATIENCE, **options)
    return stage.db


def _written(stage: Stage) -> Any:
    """A write transaction that has changed something already."""
    _opened(stage)
    stage.transaction = stage.db.write()
    stage.transaction[b"first"] = b"change"
    return stage.transaction


# ---------------------------------------------------------------- scenes


def _open(stage: Stage) -> None:
    def act() -> None:
        stage.db = cowdb.open(stage.path, lock_timeout=PATIENCE)

    stage.act = act


def _open_read_only(stage: Stage) -> None:
    def act() -> None:
        stage.db = cowdb.open(stage.path, read_only=True)

    stage.act = act


def _create(stage: Stage) -> None:
    os.unlink(stage.path)
    stage.before = stage.after = {None: {}}
    stage.may_be_missing = True
    _open(stage)


def _begin(stage: Stage) -> None:
    _opened(stage)

    def act() -> None:
        stage.transaction = stage.db.write()

    stage.act = act


def _begin_again(stage: Stage) -> None:
    _begin(stage)
    stage.db[b"0001"] = b"before"
    stage.before[None][b"0001"] = b"before"


def _read(stage: Stage) -> None:
    _opened(stage)

    def act() -> None:
        stage.reader = stage.db.read()

    stage.act = act


def _get(stage: Stage) -> None:
    _opened(stage)
    stage.reader = stage.db.read()
    stage.answer = [stage.before[None][b"0100"], stage.before[None][b"large"]]
    stage.act = lambda: [stage.reader.get(b"0100"), stage.reader[b"large"]]


def _scan(stage: Stage) -> None:
    _opened(stage)
    stage.reader = stage.db.read()
    stage.answer = sorted(stage.before[None].items())
    stage.act = lambda: list(stage.reader.items())


def _end_of_read(stage: Stage) -> None:
    _opened(stage)
    stage.reader = stage.db.read()
    stage.act = stage.reader.close


def _put(stage: Stage) -> None:
    transaction = _written(stage)
    stage.act = lambda: transaction.put(b"0100", b"new")


def _put_large(stage: Stage) -> None:
    transaction = _written(stage)
    stage.act = lambda: transaction.put(b"large", b"N" * 20_000)


def _put_many(stage: Stage) -> None:
    transaction = _written(stage)
    stage.act = lambda: transaction.update((b"0050 %d" % number, b"x" * 900) for number in range(12))


def _delete(stage: Stage) -> None:
    transaction = _written(stage)
    stage.act = lambda: [transaction.delete(b"%04d" % number) for number in range(40, 80)]


def _delete_range(stage: Stage) -> None:
    transaction = _written(stage)
    stage.act = lambda: transaction.delete_range(b"0020", b"z")


def _trees(stage: Stage) -> None:
    transaction = _written(stage)

    def act() -> None:
        transaction.tree("new", create=True)[b"k"] = b"v"
        transaction.rename("named", "renamed")
        transaction.drop("other")

    stage.act = act


def _changes(stage: Stage) -> Any:
    transaction = _written(stage)
    transaction[b"large"] = b"N" * 20_000
    transaction.delete_range(b"0020", b"0060")
    transaction.tree("other")[b"more"] = b"m" * 500
    after = stage.after = _copy(stage.before)
    after[None] = {key: value for key, value in after[None].items() if not b"0020" <= key < b"0060"}
    after[None].update({b"first": b"change", b"large": b"N" * 20_000})
    after["other"][b"more"] = b"m" * 500
    return transaction


def _commit(stage: Stage) -> None:
    stage.act = _changes(stage).commit
    stage.may_stop_writing = stage.commits = True


def _commit_lazily(stage: Stage) -> None:
    _opened(stage, durability="lazy")
    stage.transaction = stage.db.write()
    stage.transaction[b"first"] = b"change"
    stage.after = _copy(stage.before)
    stage.after[None][b"first"] = b"change"
    stage.act = stage.transaction.commit
    stage.may_stop_writing = stage.commits = True


def _block(stage: Stage) -> None:
    """A whole transaction as a block.

    Between the end of `write` and the beginning of the block Python itself needs
    memory, for `__enter__` and `__exit__`.  If there is none, it drops the
    transaction without calling either.  Then it is a forgotten one, which the
    garbage collector ends; so in this scene alone the collector runs before the
    next writer comes.
    """
    _opened(stage)
    stage.after = _copy(stage.before)
    stage.after[None][b"block"] = b"b"

    def act() -> None:
        with stage.db.write() as transaction:
            transaction[b"block"] = b"b"

    stage.act = act
    stage.may_stop_writing = stage.commits = stage.may_be_forgotten = True


def _abort(stage: Stage) -> None:
    stage.act = _changes(stage).abort
    stage.after = stage.before


def _lazy(stage: Stage) -> None:
    _opened(stage, durability="lazy")
    stage.db[b"lazy"] = b"l"
    stage.before[None][b"lazy"] = b"l"
    stage.after = stage.before
    stage.may_stop_writing = True


def _sync(stage: Stage) -> None:
    _lazy(stage)
    stage.act = stage.db.sync


def _close(stage: Stage) -> None:
    _lazy(stage)
    stage.act = stage.db.close


def _close_with_writer(stage: Stage) -> None:
    _changes(stage)
    stage.after = stage.before
    stage.reader = stage.db.read()
    stage.act = stage.db.close
    stage.may_stop_writing = True


SCENES: Final[dict[str, Callable[[Stage], None]]] = {
    "open": _open,
    "open-read-only": _open_read_only,
    "create": _create,
    "begin": _begin,
    "begin-again": _begin_again,
    "read": _read,
    "get": _get,
    "scan": _scan,
    "end-of-read": _end_of_read,
    "put": _put,
    "put-large": _put_large,
    "put-many": _put_many,
    "delete": _delete,
    "delete-range": _delete_range,
    "trees": _trees,
    "commit": _commit,
    "commit-lazily": _commit_lazily,
    "block": _block,
    "abort": _abort,
    "sync": _sync,
    "close": _close,
    "close-with-writer": _close_with_writer,
}


# ---------------------------------------------------------------- afterwards


def judge(stage: Stage, raised: BaseException | None, answer: object) -> str:
    """What is wrong with what came of it; empty if nothing is."""
    lost = isinstance(raised, SystemError) and LOST.fullmatch(str(raised))
    if raised is not None and not isinstance(raised, MemoryError) and str(raised) != NO_LOCK and not lost:
        return f"it raised {type(raised).__name__}: {raised}"
    if raised is None and stage.answer is not None and answer != stage.answer:
        return "a wrong answer"
    if stage.reader is not None:
        stage.reader.close()
    if stage.transaction is not None:
        stage.transaction.abort()
    if raised is not None and stage.may_be_forgotten:
        gc.collect()
    stopped = False
    if stage.db is not None and not stage.db.closed:
        if not stage.db._read_only:
            try:
                with stage.db.write(timeout=PATIENCE) as transaction:
                    transaction[b"afterwards"] = b"1"
            except cowdb.PoisonedError:
                stopped = True
        with contextlib.suppress(cowdb.PoisonedError):
            stage.db.close()
    if stopped and not stage.may_stop_writing:
        return "writing has stopped, though nothing was being committed"
    with cowdb.open(stage.path, create=stage.may_be_missing, lock_timeout=PATIENCE) as db:
        found = everything(db)
        found[None].pop(b"afterwards", None)
        allowed = [stage.after] if raised is None and stage.commits else [stage.before, stage.after]
        if found not in allowed:
            return f"the file holds neither the state before nor the one after ({len(found[None])} entries)"
        findings = db.check()
        if findings:
            return f"the checker says {findings[:3]}"
        with db.write() as transaction:
            transaction[b"life"] = b"goes on"
        findings = db.check()
        if findings:
            return f"after one more commit the checker says {findings[:3]}"
    return ""
