"""What the processes do that are going to be killed, and the model of what they have done.

Every transaction is a function of the life's seed, the writer and its number, so
whoever reads the writer's counter in the file knows what all of its entries must be:

    changes(seed, writer 1, number 7)  -->  into a transaction, and later into a dictionary

A writer tells through a pipe what it was promised, in small records that a pipe
never mixes: ``S`` where it started, ``A`` after each commit, ``D`` after each sync,
``E`` with an error.  A reader tells ``R`` after each look.

A process can also be its own killer: in the middle of its j-th write to the file
(which is then done in part), or just before or after its j-th flush.  Random
moments seldom fall between two calls that follow each other closely.
"""

from __future__ import annotations

import faulthandler
import os
import random
import signal
import struct
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NoReturn

import cowdb
import cowdb.storage as storage_module

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from cowdb.storage import Buffer

__all__ = ["RECORD", "Job", "apply", "counter", "run"]

RECORD: Final = struct.Struct("<cHQ")
"""Kind, writer, number."""

KEYS: Final = 60
"""Entries of one writer in a tree at most, so that a file stays small."""

Change = tuple[str, str | None, bytes, bytes]
"""What (put, delete, range), in which tree, key (or first key), value (or the key behind the last)."""

Trees = dict[str | None, dict[bytes, bytes]]


@dataclass(frozen=True)
class Job:
    """One process: `writers` are its threads, none for a reader; it kills itself in call `suicide` to the disk."""

    seed: int
    path: str
    writers: tuple[int, ...]
    all_writers: int
    durability: str
    page_size: int = 4096
    suicide: int | None = None
    read_only: bool = False
    doomed: bool = False  # its device is going to be cut off, so a SIGBUS needs no report


def counter(writer: int) -> bytes:
    """The key under which a writer counts its transactions."""
    return b"n%d" % writer


def changes(seed: int, writer: int, number: int) -> Iterator[Change]:
    """What transaction `number` of a writer does."""
    rng = random.Random((seed << 40) ^ (writer << 32) ^ number)
    yield "put", None, counter(writer), b"%d" % number
    for _ in range(rng.choice((0, 1, 1, 2, 8))):
        tree = rng.choice((None, None, f"tree {writer}"))
        at = rng.randrange(KEYS)
        key = b"%d-%03d" % (writer, at)
        what = rng.random()
        if what < 0.7:
            size = rng.choice((0, 10, 100, 1000, 3000, 9000 if at % 7 == 0 else 50))
            yield "put", tree, key, bytes([number & 0xFF]) * size
        elif what < 0.9:
            yield "delete", tree, key, b""
        else:
            yield "range", tree, key, b"%d-%03d" % (writer, at + rng.randrange(20))
    if number % 50 == 0:
        yield "put", None, b"%d-large" % writer, b"L" * rng.randrange(20_000, 200_000)
    elif number % 50 == 20:
        yield "delete", None, b"%d-large" % writer, b""


def apply(model: Trees, seed: int, writer: int, number: int) -> None:
    """Do the same to a model."""
    for what, tree, key, value in changes(seed, writer, number):
        entries = model.setdefault(tree, {})
        if what == "put":
            entries[key] = value
        elif what == "delete":
            entries.pop(key, None)
        else:
            for found in [found for found in entries if key <= found < value]:
                del entries[found]


# ---------------------------------------------------------------- in the process


def run(job: Job, pipe: int) -> NoReturn:
    """Work until killed. Only an error ends it before."""
    if job.doomed:
        faulthandler.disable()
    try:
        if job.suicide is not None:
            _die_at(job.suicide)
        if job.writers:
            _write(job, pipe)
        else:
            _read(job, pipe)
    except BaseException as error:  # noqa: BLE001 - told to who judges
        _tell_error(pipe, error)
    finally:
        os._exit(0)


def _tell(pipe: int, kind: bytes, writer: int, number: int) -> None:
    os.write(pipe, RECORD.pack(kind, writer, number))


def _tell_error(pipe: int, error: BaseException) -> None:
    text = repr(error).encode()[:400]
    os.write(pipe, RECORD.pack(b"E", len(text), 0) + text)


def _write(job: Job, pipe: int) -> None:
    db = cowdb.open(job.path, durability=job.durability, page_size=job.page_size)
    with db.read() as snapshot:
        started = {writer: int(snapshot.get(counter(writer), b"0")) for writer in job.writers}
    for writer, number in started.items():
        _tell(pipe, b"S", writer, number)
    others = [
        threading.Thread(target=_guarded, args=(job, pipe, db, writer, started[writer]), daemon=True)
        for writer in job.writers[1:]
    ]
    for thread in others:
        thread.start()
    _commit_for_ever(job, pipe, db, job.writers[0], started[job.writers[0]])


def _guarded(job: Job, pipe: int, db: cowdb.Database, writer: int, started: int) -> None:
    try:
        _commit_for_ever(job, pipe, db, writer, started)
    except BaseException as error:  # noqa: BLE001 - told to who judges
        _tell_error(pipe, error)
        os._exit(0)


def _commit_for_ever(job: Job, pipe: int, db: cowdb.Database, writer: int, started: int) -> None:
    """Commits, tells, and goes on; what a dead process left in flight may appear with the first transaction.

    Where there are other threads, every other transaction may be made together with theirs.
    """
    number = started
    while True:
        if number % 2 and len(job.writers) > 1:
            number = db._combiner.write(db, _next, job.seed, writer)
        else:
            with db.write() as transaction:
                number = _next(transaction, job.seed, writer)
        _tell(pipe, b"A", writer, number)
        if job.durability == "lazy" and number % 9 == 0:
            db.sync()
            _tell(pipe, b"D", writer, number)


def _next(transaction: Any, seed: int, writer: int) -> int:
    """The writer's next transaction; its number."""
    number = int(transaction.get(counter(writer), b"0")) + 1
    _into(transaction, seed, writer, number)
    return number


def _into(transaction: Any, seed: int, writer: int, number: int) -> None:
    transaction[b"total"] = b"%d" % (int(transaction.get(b"total", b"0")) + 1)
    for what, tree, key, value in changes(seed, writer, number):
        target = transaction if tree is None else transaction.tree(tree, create=True)
        if what == "put":
            target[key] = value
        elif what == "delete":
            target.delete(key)
        else:
            target.delete_range(key, value)


def _read(job: Job, pipe: int) -> None:
    """Look at one state after the other: each is whole, none goes back, and none changes."""
    rng = random.Random(job.seed)
    while True:
        try:
            db = cowdb.open(job.path, read_only=job.read_only, page_size=job.page_size)
        except FileNotFoundError:  # nobody has made it yet, and a reader may not
            time.sleep(0.001)
        else:
            break
    held: list[tuple[cowdb.Transaction, int]] = []
    last = number = 0
    while True:
        snapshot = db.read()
        total = int(snapshot.get(b"total", b"0"))
        if total != sum(int(snapshot.get(counter(writer), b"0")) for writer in range(job.all_writers)):
            raise AssertionError("a reader sees a mix of two states")
        if total < last:
            raise AssertionError(f"a reader was at {last} and is back at {total}")
        last = total
        held.append((snapshot, hash(tuple(snapshot.items()))))
        if len(held) > 4:
            old, content = held.pop(rng.randrange(len(held)))
            if hash(tuple(old.items())) != content:
                raise AssertionError("a snapshot has changed under its reader (I1)")
            old.close()
        number += 1
        _tell(pipe, b"R", 0, number)


# ---------------------------------------------------------------- suicide


def _die() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("somebody has survived SIGKILL")


def _die_at(call: int) -> None:
    """Have this process kill itself in its `call`-th write, flush or change of size."""
    left = call
    real_write, real_flush, real_resize = (
        storage_module._write_some,
        storage_module._flush_data,
        storage_module.FileStorage.resize,
    )

    def due() -> bool:
        nonlocal left
        left -= 1
        return left == 0

    def write(storage: storage_module.FileStorage, views: Sequence[Buffer], offset: int) -> int:
        if due():
            data = b"".join(views)
            real_write(storage, [data[: random.randrange(len(data) // 512 + 1) * 512]], offset)
            _die()
        return real_write(storage, views, offset)

    def flush(storage: storage_module.FileStorage) -> None:
        if due():
            if random.random() < 0.5:
                real_flush(storage)
            _die()
        real_flush(storage)

    def resize(storage: storage_module.FileStorage, size: int) -> None:
        if due():
            _die()
        real_resize(storage, size)

    storage_module._write_some = write
    storage_module._flush_data = flush
    setattr(storage_module.FileStorage, "resize", resize)  # noqa: B010 - a method is not assigned to, says mypy
