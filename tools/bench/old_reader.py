"""A reader that stays holds back only what it can see, however much is written meanwhile.

A thousand records are put over and over, one put a transaction, while a reader keeps the first snapshot.  A page that
is born and freed after the snapshot is reused at once, so the file may grow by about what the snapshot pins and no
more.  What it pins is the size of a compact file of the same records.
"""

from __future__ import annotations

import random
from pathlib import Path

import cowdb
import harness
from harness import AT_MOST, Figure, Options, Report

KEYS = 1000


def run(options: Options) -> Report:
    """Measure and report."""
    puts = options.records or 100_000
    growths: list[float] = []
    pinned: list[float] = []
    alone: list[float] = []
    for number in range(options.runs):
        harness.say(f"old_reader: run {number + 1}")
        before, after = churn(
            options.directory / f"read-{number}.cowdb", puts, number, with_reader=True, full=options.full
        )
        pinned.append(before)
        growths.append(after - before)
        before, after = churn(
            options.directory / f"alone-{number}.cowdb", puts, number, with_reader=False, full=options.full
        )
        alone.append(after)
    durability = "full" if options.full else "lazy"
    return Report(
        "old_reader",
        "growth of the file",
        "what the snapshot pins",
        "ratio",
        f"{puts:,} transactions of one put each (durability {durability}) over {KEYS:,} keys while a reader keeps the "
        f"snapshot from before. Without a reader the file ends at {harness.size_unit(median(alone))}.",
        [
            Figure(
                "growth under an old reader",
                harness.size_unit(median(growths)),
                harness.size_unit(median(pinned)),
                harness.quotients(growths, pinned),
                AT_MOST,
                2.0,
            )
        ],
    )


def median(numbers: list[float]) -> float:
    """The one in the middle."""
    return sorted(numbers)[len(numbers) // 2]


def churn(path: Path, puts: int, seed: int, *, with_reader: bool, full: bool) -> tuple[int, int]:
    """Size of the file in bytes before and after `puts` transactions."""
    rng = random.Random(seed)
    keys = [rng.randbytes(16) for _ in range(KEYS)]
    with cowdb.open(path) as db, db.write() as txn:
        txn.update({key: rng.randbytes(100) for key in keys})
    before = harness.file_size(path)
    with cowdb.open(path, durability="full" if full else "lazy") as db:
        reader = db.read() if with_reader else None
        seen = dict(reader.items()) if reader is not None else {}
        for _ in range(puts):
            with db.write() as txn:
                txn[rng.choice(keys)] = rng.randbytes(100)
        after = harness.file_size(path)
        if reader is not None:
            if dict(reader.items()) != seen:
                raise AssertionError("the old snapshot changed")
            reader.close()
    return before, after
