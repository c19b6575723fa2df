"""``cowdb bench``: this disk, this machine, cowdb beside what else is installed.

A time alone means little on a machine that does other things.  So every store
does the same work in turn, moments apart, and the ratio of each such pair is
taken: the noise falls on both.  Who goes first changes from run to run.

    run 1:  cowdb lmdb sqlite3    run 2:  lmdb sqlite3 cowdb    run 3: ...
    ratio to lmdb = median over the runs of (time of lmdb / time of cowdb)
"""

from __future__ import annotations

import gc
import os
import platform
import random
import statistics
import tempfile
import time
from typing import TYPE_CHECKING, Any, Final

from cowdb.cli.contenders import RANGE, contenders
from cowdb.cli.opening import natural
from cowdb.cli.output import FINE, USAGE, Column, CommandError, counted

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    from cowdb.cli.contenders import Contender
    from cowdb.cli.output import Output

__all__ = ["DESCRIPTION", "EXAMPLES", "arguments", "run"]

DESCRIPTION: Final = """
Loads the same random entries into cowdb, SQLite, and LMDB where its Python package
is installed, and lets each do the same work in turn. A ratio above 1 says that
cowdb is faster by so much. Everything is made in a directory below --dir, so choose
one on the disk that you want to measure, and is removed at the end.
"""

EXAMPLES: Final = (
    ("cowdb bench", "in the current directory, a few minutes at most"),
    ("cowdb bench --dir /mnt/fast --records 1000000 --value-size 1000", "larger than usual, on another disk"),
    ("cowdb bench --only get --runs 11 --format json", "one piece of work, more runs, for a program"),
)

WORK: Final = ("load", "get", "scan", "range", "put")
_WHAT: Final = {
    "load": "load, random order, one transaction",
    "get": "get, random",
    "scan": "scan, all entries",
    "range": f"range of {RANGE}, random start",
    "put": "put, each in a durable transaction",
}


def arguments(parser: argparse.ArgumentParser) -> None:
    """See `cowdb.cli`."""
    parser.add_argument("--dir", metavar="PATH", default=".", help="where to make the files (default: here)")
    parser.add_argument("--records", metavar="N", type=natural, default=100_000, help="entries (default: 100000)")
    parser.add_argument("--value-size", metavar="BYTES", type=natural, default=100, help="of a value (default: 100)")
    parser.add_argument("--runs", metavar="N", type=natural, default=5, help="pairs of runs (default: 5)")
    parser.add_argument("--only", choices=WORK, action="append", help="only this work; may be given more than once")
    parser.add_argument(
        "--against",
        choices=("lmdb", "sqlite3"),
        action="append",
        help="only this store; may be given more than once (default: all)",
    )


def run(args: argparse.Namespace, out: Output) -> int:
    """See `cowdb.cli`."""
    if args.records < 1 or args.runs < 1:
        raise CommandError("it takes at least one entry and one run", USAGE)
    wanted = args.against or ["lmdb", "sqlite3"]
    kinds = [name for name in WORK if args.only is None or name in args.only]
    # Pages of 4 KB that hold one large value and a half each are the worst that can be, and put adds a few entries.
    size = 3 * (args.records + 1000 * args.runs) * (args.value_size + 4200) + (64 << 20)
    with tempfile.TemporaryDirectory(dir=args.dir, prefix="cowdb-bench-") as directory:
        stores, missing = contenders(directory, size, list(dict.fromkeys(wanted)))
        for name in missing:
            out.note(f"the Python package {name} is not installed, so {name} is not measured: pip install {name}")
        try:
            times = _measure(stores, kinds, args, out)
        finally:
            for store in stores:
                store.close()
    rows = _rows(stores, kinds, times)
    if out.machine:
        out.document(
            {
                "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} processors",
                "python": platform.python_version(),
                "versions": {store.name: store.version for store in stores},
                "records": args.records,
                "value_size": args.value_size,
                "runs": args.runs,
                "results": rows,
            }
        )
    else:
        _show(stores, rows, args, out)
    return FINE


def _measure(
    stores: list[Contender], kinds: list[str], args: argparse.Namespace, out: Output
) -> dict[str, dict[str, list[float]]]:
    """Seconds an operation: by kind of work, then by store, one for each run."""
    rng = random.Random(1)  # noqa: S311 - data to measure with
    pairs = [(rng.randbytes(16), rng.randbytes(args.value_size)) for _ in range(args.records)]
    sample = [key for key, _ in rng.sample(pairs, min(args.records, 100_000))]
    times: dict[str, dict[str, list[float]]] = {kind: {store.name: [] for store in stores} for kind in kinds}
    steps = args.runs * len(stores) * len(kinds)
    done = 0
    with out.progress("measuring", "steps") as tick:
        if "load" not in kinds:
            for store in stores:
                store.load(pairs)
        for kind in kinds:
            for turn in range(args.runs):
                fresh = [(rng.randbytes(16), rng.randbytes(args.value_size)) for _ in range(100)]
                work: dict[str, Callable[[Contender], int]] = {
                    "load": lambda store: store.load(pairs),
                    "get": lambda store: store.get(sample),
                    "scan": lambda store: store.scan(),
                    "range": lambda store: store.ranges(sample[: max(len(sample) // 50, 1)]),
                    "put": lambda store, fresh=fresh: store.put(fresh),  # type: ignore[misc]  # bound here on purpose
                }
                first = turn % len(stores)
                for store in stores[first:] + stores[:first]:
                    gc.collect()
                    begun = time.perf_counter()
                    operations = work[kind](store)
                    times[kind][store.name].append((time.perf_counter() - begun) / operations)
                    done += 1
                    tick(done, steps)
    return times


def _rows(stores: list[Contender], kinds: list[str], times: dict[str, dict[str, list[float]]]) -> list[dict[str, Any]]:
    rows = []
    for kind in kinds:
        row: dict[str, Any] = {"work": kind, "per_second": {}, "ratio": {}, "spread": {}}
        ours = times[kind]["cowdb"]
        for store in stores:
            theirs = times[kind][store.name]
            row["per_second"][store.name] = round(1 / statistics.median(theirs), 1)
            if store.name != "cowdb":
                ratios = [a / b for a, b in zip(theirs, ours, strict=True)]
                row["ratio"][store.name] = round(statistics.median(ratios), 3)
                row["spread"][store.name] = [round(min(ratios), 3), round(max(ratios), 3)]
        rows.append(row)
    return rows


def _show(stores: list[Contender], rows: list[dict[str, Any]], args: argparse.Namespace, out: Output) -> None:
    columns = [Column("work", "work"), Column("cowdb", "cowdb", "number")]
    for store in stores[1:]:
        columns += [
            Column(store.name, store.name, "number"),
            Column(f"{store.name} ratio", "ratio", "number"),
            Column(f"{store.name} spread", "spread"),
        ]
    table = []
    for row in rows:
        cells: dict[str, Any] = {"work": _WHAT[row["work"]]}
        for name, rate in row["per_second"].items():
            cells[name] = f"{rate:,.0f}/s"
            if name in row["ratio"]:
                cells[f"{name} ratio"] = f"{row['ratio'][name]:.2f}"
                cells[f"{name} spread"] = "{:.2f} to {:.2f}".format(*row["spread"][name])
        table.append(cells)
    versions = ", ".join(f"{store.name} {store.version}" for store in stores)
    out.line(f"{counted(args.records, 'entry')}, 16-byte keys, {args.value_size}-byte values; {versions}")
    out.line(
        f"{counted(args.runs, 'paired run')}; "
        "the ratio is the speed of cowdb by that of the other, the median of the pairs"
    )
    out.line()
    out.table(columns, table)
