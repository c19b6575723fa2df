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
from fuzz.crash_run import PATH, Model, content, opened, vanish

__all__ = ["births"]

_OUTER, _INNER = 48, 12


def births(seed: int) -> Iterator[str | None]:
    """Judge states of a database that is being made; for each None, or what is wrong with it."""
    seen: set[tuple[bytes, int]] = set()
    disk = CrashDisk()
    made, done = _be_born(disk, b"one")
    for index in range(len(disk.trace) + 1):
        allowed = _allowed({None: {}}, b"one", stored=index >= done)
        for sector in (4096, 512):
            for image in disk.images(index, limit=_OUTER, sector=sector, seed=seed):
                key = image.digest(), int(index >= done)
                if key in seen:
                    continue
                seen.add(key)
                problem = _judge(image.copy(), allowed, named=index >= made)
                yield None if problem is None else f"after a power cut at {image.origin}: {problem}"
                # The second cut: in what the next one does who opens it, and makes it anew where it is missing.
                second = CrashDisk(image)
                before = _content(image.copy()) if PATH in image.paths() else {None: {}}
                remade, redone = _be_born(second, b"two")
                for place in range(len(second.trace) + 1):
                    after = _allowed(before, b"two", stored=place >= redone)
                    for other in second.images(place, limit=_INNER, sector=sector, seed=seed):
                        key = other.digest(), 2 + (place >= redone)
                        if key in seen:
                            continue
                        seen.add(key)
                        problem = _judge(other.copy(), after, named=place >= remade or index >= made)
                        yield None if problem is None else f"after {image.origin} and then {other.origin}: {problem}"


def _allowed(before: Model, value: bytes, *, stored: bool) -> list[Model]:
    after: Model = {None: {**before[None], b"entry": value}}
    return [after] if stored else [before, after]


def _be_born(disk: CrashDisk, value: bytes) -> tuple[int, int]:
    """Open, make if need be, and commit one entry; the lengths of the trace when each was done."""
    db = opened(disk)
    made = len(disk.trace)
    with db.write() as transaction:
        transaction.put(b"entry", value)
    done = len(disk.trace)
    vanish(db)
    return made, done


def _content(disk: MemoryDisk) -> Model:
    db = opened(disk)
    try:
        return content(db)
    finally:
        vanish(db)


def _judge(disk: MemoryDisk, allowed: list[Model], *, named: bool) -> str | None:
    if PATH not in disk.paths():
        return "the file is gone" if named or {None: {}} not in allowed else None
    db = None
    try:
        db = opened(disk)
        found = content(db)
        if found not in allowed:
            return f"it holds {found}, not {allowed}"
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
