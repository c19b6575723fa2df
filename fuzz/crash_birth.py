"""The making of a new database, with the power cut everywhere in it, twice.

Here names matter: a created file can be missing, and a removed one be back, until
the directory is flushed.  So this uses the general disks of `cowdb.testing`.

    open   Create tmp | Write | Flush | Link | Remove tmp | FlushDirectory   the file is there
    put    ... Flush                                                        the entry is there

etcd 16596: bbolt wrote its first pages straight into place, and a power cut left a file that never opened.
"""

from __future__ import annotations

from collections.abc import Iterator

import cowdb
from cowdb.testing import CrashDisk, MemoryDisk
from fuzz.crash_run import PATH, Model, content, opened, vanish  # first: it chooses the plain kernel

__all__ = ["births"]

_ENTRY: Model = {None: {b"first": b"entry"}}
_EMPTY: Model = {None: {}}
_OUTER, _INNER = 48, 12


def births(seed: int) -> Iterator[str | None]:
    """Judge states of a database that is being made; for each None, or what is wrong with it."""
    seen: set[tuple[bytes, bool]] = set()
    disk = CrashDisk()
    made, done = _be_born(disk)
    for index in range(len(disk.trace) + 1):
        for sector in (4096, 512):
            for image in disk.images(index, limit=_OUTER, sector=sector, seed=seed):
                key = image.digest(), index >= done
                if key in seen:
                    continue
                seen.add(key)
                problem = _judge(image.copy(), named=index >= made, stored=index >= done)
                yield None if problem is None else f"after a power cut at {image.origin}: {problem}"
                second = CrashDisk(image)
                stored = PATH in image.paths() and _holds(image)
                remade, redone = _be_born(second)
                for place in range(len(second.trace) + 1):
                    for other in second.images(place, limit=_INNER, sector=sector, seed=seed):
                        key = other.digest(), place >= redone
                        if key in seen:
                            continue
                        seen.add(key)
                        named = place >= remade or index >= made
                        problem = _judge(other.copy(), named=named, stored=place >= redone or stored)
                        yield None if problem is None else f"after {image.origin} and then {other.origin}: {problem}"


def _be_born(disk: CrashDisk) -> tuple[int, int]:
    """Open, make if need be, and commit one entry; the lengths of the trace when each was done."""
    db = opened(disk)
    made = len(disk.trace)
    with db.write() as transaction:
        transaction.put(b"first", b"entry")
    done = len(disk.trace)
    vanish(db)
    return made, done


def _holds(disk: MemoryDisk) -> bool:
    db = opened(disk.copy())
    try:
        return content(db) == _ENTRY
    finally:
        vanish(db)


def _judge(disk: MemoryDisk, *, named: bool, stored: bool) -> str | None:
    if PATH not in disk.paths() and (named or stored):
        return "the file is gone"
    db = None
    try:
        db = opened(disk)
        found = content(db)
        if found != _ENTRY and (stored or found != _EMPTY):
            return f"it holds {found}"
        findings = db.check()
        if findings:
            return f"the checker: {findings[0]}"
        with db.write() as transaction:
            transaction.put(b"after", b"that")
        db.close()
        db = opened(disk)
        if content(db) != {None: {**found[None], b"after": b"that"}}:
            return "what was committed after the recovery is gone"
    except (cowdb.Error, OSError, AssertionError) as error:
        return f"{type(error).__name__}: {error}"
    finally:
        if db is not None:
            vanish(db)
    return None
