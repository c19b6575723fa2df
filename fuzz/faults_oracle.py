"""Who comes next: what the next process has to find in a file, and that it can go on.

The data oracle of the parts `faults` and `kill`.  A state is plain dictionaries;
`live_on` opens what was left, compares it with the states that are allowed, runs
the checker, and lives on: three more commits, opened again, checked again, since
damage to the free list shows late.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, Final

import cowdb
from cowdb import core as core_module
from cowdb.database import open_on

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cowdb.storage import Disk
    from cowdb.transaction import Transaction, WriteTransaction

__all__ = [
    "EMPTY",
    "PATH",
    "Allowed",
    "PromiseError",
    "State",
    "clean",
    "cloned",
    "content",
    "content_of",
    "live_on",
    "opened",
    "summary",
    "vanish",
]

PATH: Final = "/db"

State = dict[str | None, dict[bytes, bytes]]
"""The main tree under None, each named tree under its name."""

EMPTY: Final[State] = {None: {}}
Allowed = list[State | None]
"""States that may be found; None: no file."""

_ID: Final = bytes(range(16))


class PromiseError(AssertionError):
    """A promise was broken; the text says which."""


def _clock() -> int:
    return 1_700_000_000_000_000_000


def opened(disk: Disk, path: str = PATH, **options: Any) -> cowdb.Database:
    """The database on `disk`; what is written is the same in every run."""
    return open_on(disk, path, clock=_clock, database_id=_ID, **{"page_size": 4096, **options})


def content(database: cowdb.Database) -> State:
    """All that it holds. O(entries)."""
    with database.read() as snapshot:
        return content_of(snapshot)


def content_of(snapshot: Transaction | WriteTransaction) -> State:
    """All that a transaction sees. O(entries)."""
    found: State = {None: dict(snapshot.items())}
    if len(found[None]) != len(snapshot):
        raise PromiseError(f"len() says {len(snapshot)}, a scan gives {len(found[None])} entries (I6)")
    for name in snapshot.trees():
        found[name] = dict(snapshot.tree(name).items())
    return found


def vanish(database: cowdb.Database) -> None:
    """The process is gone: nothing is closed, nothing is written. For fake disks only."""
    core, database._core = database._core, None
    if core is not None:
        core_module.cores.pop(core.key, None)


def cloned(state: State) -> State:
    """A copy that may be changed."""
    return {name: dict(tree) for name, tree in state.items()}


def summary(state: State | None) -> str:
    """A state in a few words."""
    if state is None:
        return "no file"
    trees = [
        f"{name or 'main'}: {len(tree)}#{hash(frozenset(tree.items())) & 0xFFFF:x}" for name, tree in state.items()
    ]
    return "{" + ", ".join(trees) + "}"


def live_on(disk: Disk, allowed: Allowed, *, path: str = PATH, options: dict[str, Any] | None = None) -> State:
    """The next process: it finds an allowed state, the checker is content, and life goes on. Gives what it found.

    Three more commits, opened again, checked again: damage to the free list shows
    late.  Raises `PromiseError`.
    """
    # Who lives on needs room.
    options = {name: value for name, value in (options or {}).items() if name not in {"read_only", "max_size"}}
    with _handle(disk, path, options) as db:
        found = content(db)
        if found not in allowed and not (None in allowed and found == EMPTY):
            raise PromiseError(f"{summary(found)} is found, which is none of {[summary(one) for one in allowed]}")
        clean(db, "what was left")
        after = cloned(found)
        for number in range(3):
            with db.write(durability="full") as transaction:
                if number == 1 and after[None]:
                    first = min(after[None])
                    del transaction[first]
                    del after[None][first]
                transaction[b"life %d" % number] = after[None][b"life %d" % number] = bytes([number]) * 700
    with _handle(disk, path, options) as db:
        if content(db) != after:
            raise PromiseError("what was committed after it was opened again is gone")
        clean(db, "three commits later")
    return found


@contextlib.contextmanager
def _handle(disk: Disk, path: str, options: dict[str, Any]) -> Iterator[cowdb.Database]:
    try:
        db = opened(disk, path, **options)
    except (cowdb.Error, OSError) as error:
        raise PromiseError(f"the file does not open any more: {error!r}") from error
    try:
        yield db
        db.close()
    except (cowdb.Error, OSError) as error:
        raise PromiseError(f"the database does not go on: {error!r}") from error
    finally:
        vanish(db)


def clean(db: cowdb.Database, when: str) -> None:
    """The checker finds nothing (I1 to I10). Raises `PromiseError`."""
    findings = db.check()
    if findings:
        raise PromiseError(f"the checker says, {when}: {findings[0]}")
