"""The cost of opening does not depend on the size of the file.

A file of about 1 GB and one of a thousandth of that are opened, asked for one record and closed again, in turn.
"""

from __future__ import annotations

import random
from pathlib import Path

import cowdb
import harness
from harness import AT_MOST, Figure, Options, Report

REPEATS = 20


def run(options: Options) -> Report:
    """Measure and report."""
    count = options.records or 1_000_000
    small_count = max(count // 1000, 1)
    large = harness.filled(options.directory, count)
    small = harness.filled(options.directory, small_count)
    harness.say("opening")
    rng = random.Random(1)

    def open_get_close(path: Path, records: int, *, read_only: bool) -> float:
        keys = [rng.randrange(records).to_bytes(8, "big") for _ in range(REPEATS)]

        def all_of_it() -> None:
            for key in keys:
                with cowdb.open(path, read_only=read_only) as db, db.read() as snap:
                    snap[key]

        return harness.timed(all_of_it)

    figures = []
    for what, read_only in (("open, get, close", False), ("the same, read-only", True)):
        open_get_close(large, count, read_only=read_only)  # so that both are in the page cache
        open_get_close(small, small_count, read_only=read_only)
        a, b = harness.pairs(
            lambda read_only=read_only: open_get_close(large, count, read_only=read_only),
            lambda read_only=read_only: open_get_close(small, small_count, read_only=read_only),
            options.runs,
        )
        figures.append(
            Figure(what, harness.rate(a, REPEATS), harness.rate(b, REPEATS), harness.quotients(a, b), AT_MOST, 2.0)
        )
    return Report(
        "opening",
        f"file of {harness.size_unit(harness.file_size(large))}",
        f"file of {harness.size_unit(harness.file_size(small))}",
        "time ratio",
        f"{REPEATS} times a run; the time of one. The files are in the page cache.",
        figures,
    )
