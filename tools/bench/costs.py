"""The parts of `copying` that are about writing: batches, shares of records, shares of writes, sizes of pages."""

from __future__ import annotations

import dataclasses
import shutil
import statistics
from collections.abc import Callable
from pathlib import Path

import charts
import cowdb
import harness
import records
from charts import chart
from harness import Options, Section, in_turn, middle
from store import Store
from store_trees import Cowdb, Sqlite
from worker import form
from workloads import clock

BATCHES = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000)
PORTIONS = (0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
MIXES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
PAGE_SIZES = (4096, 8192, 16_384, 32_768)
USUAL = 8192
MOST_PUTS = 4000
"""Puts for one figure of `batch`, unless a single transaction has more."""


def base(options: Options) -> int:
    """Records of the databases here: a tenth of what the command line says."""
    return max(1, (options.records or 1_000_000) // 10)


def loaded(directory: Path, name: str, count: int, page_size: int = USUAL, value: int = records.VALUE) -> Path:
    """A new file with `count` records, put in random order in one transaction."""
    path = directory / name
    with cowdb.open(path, page_size=page_size, durability="lazy") as db:
        with db.write() as txn:
            for number, length in records.chunks(count):
                put = txn.put
                for key, data in records.pairs(number, length, value):
                    put(key, data)
        db.sync()
    return path


# ---------------------------------------------------------------- pages copied for a put


def batch(options: Options) -> Section:
    """Puts at random in transactions of more and more of them."""
    count = base(options)
    path = loaded(options.directory, "batch.cowdb", count)
    sizes = [size for size in BATCHES if size <= count] or [1]
    with cowdb.open(path, durability="lazy") as db:

        def measure(size: int, run: int) -> list[float]:
            turns = max(1, min(MOST_PUTS, count) // size)
            keys = records.sample(count, size * turns, f"{run}-{size}")
            pairs = records.replacements(keys, run)
            before = db.stats()

            def work() -> None:
                for start in range(0, len(pairs), size):
                    with db.write() as txn:
                        put = txn.put
                        for key, value in pairs[start : start + size]:
                            put(key, value)

            seconds = clock(work) / len(pairs)
            after = db.stats()
            copied = (after.pages_copied - before.pages_copied) / len(pairs)
            written = (after.bytes_written - before.bytes_written) / len(pairs)
            db.sync()
            return [seconds, copied, written / (records.KEY + records.VALUE)]

        found = in_turn(sizes, measure, options.runs)
    path.unlink()
    rows = [
        [
            f"{size:,}",
            f"{middle(runs, 1):.3g}",
            f"{middle(runs, 2):.3g}",
            harness.time_unit(middle(runs, 0)),
            f"{harness.time_unit(min(r[0] for r in runs))} to {harness.time_unit(max(r[0] for r in runs))}",
        ]
        for size, runs in found.items()
    ]
    best = min(middle(runs, 0) for runs in found.values())
    enough = next(size for size, runs in found.items() if middle(runs, 0) <= 2 * best)
    text = (
        f"{count:,} records of 100 bytes, values replaced at random in lazy transactions, {form()} kernel.\n\n"
        + harness.table(
            [
                "puts in a transaction",
                "pages copied for one",
                "bytes written for one of the user's",
                "time of one",
                "spread",
            ],
            rows,
        )
        + f"\n\nThe best time of one put is {harness.time_unit(best)}; from {enough:,} puts in a transaction on, "
        "one takes at most twice that."
    )
    drawn = chart(
        "copying-batch.svg",
        lambda: charts.lines(
            "Pages copied for a put",
            "puts in a transaction",
            "pages copied, bytes written by bytes put",
            {
                "pages copied for a put": [(size, middle(runs, 1)) for size, runs in found.items()],
                "bytes written for a byte put": [(size, middle(runs, 2)) for size, runs in found.items()],
            },
            logarithmic="xy",
        ),
    )
    return Section("copying batch", text, drawn)


def share(options: Options) -> Section:
    """One transaction that replaces some of all records at random: how many of all pages it writes."""
    count = base(options)
    path = loaded(options.directory, "share.cowdb", count)
    portions = sorted({max(1, round(portion * count)) for portion in PORTIONS})
    with cowdb.open(path, durability="lazy") as db:
        pages = db.stats().used_pages

        def measure(changed: int, run: int) -> list[float]:
            pairs = records.replacements(records.sample(count, changed, f"{run}-{changed}"), run)
            before = db.stats()
            with db.write() as txn:
                put = txn.put
                for key, value in pairs:
                    put(key, value)
            after = db.stats()
            db.sync()
            return [(after.pages_copied - before.pages_copied) / before.used_pages]

        found = in_turn(portions, measure, options.runs)
    path.unlink()
    each = count / pages

    def expected(changed: int) -> float:
        return 1 - (1 - changed / count) ** each

    rows = [
        [
            f"{changed:,}",
            f"{changed / count:.2%}",
            f"{middle(runs, 0):.1%}",
            f"{min(r[0] for r in runs):.1%} to {max(r[0] for r in runs):.1%}",
            f"{expected(changed):.1%}",
        ]
        for changed, runs in found.items()
    ]
    most = next((changed for changed, runs in found.items() if middle(runs, 0) > 0.5), None)
    text = (
        f"{count:,} records of 100 bytes in {pages:,} pages, {each:.0f} in a page; one transaction replaces some of "
        "them at random. Expected is 1 - (1 - share of records)^(records in a page).\n\n"
        + harness.table(["records changed", "of all", "pages copied, of all", "spread", "expected"], rows)
    )
    if most is not None:
        text += (
            f"\n\nOf the points measured, {most / count:.2%} of the records is the first at which more than half of "
            "the pages are copied."
        )
    drawn = chart(
        "copying-share.svg",
        lambda: charts.lines(
            "Pages copied when records change at random",
            "records changed by one transaction, per cent",
            "pages copied, per cent",
            {
                "a copy of the file": [(100 * changed / count, 100.0) for changed in found],
                "measured": [(100 * changed / count, 100 * middle(runs, 0)) for changed, runs in found.items()],
                "expected": [(100 * changed / count, 100 * expected(changed)) for changed in found],
            },
            logarithmic="x",
        ),
    )
    return Section("copying share", text, drawn)


# ---------------------------------------------------------------- where write-heavy work stops gaining


def writes(options: Options) -> Section:
    """Reads and writes, each in a transaction of its own, beside SQLite, which writes in place and keeps a log."""
    count = base(options)
    kinds: tuple[type[Store], ...] = (Cowdb, Sqlite)
    opened = {kind: kind(options.directory / f"writes-{kind.MODULE}") for kind in kinds}
    for store in opened.values():
        store.open(lazy=True)
        for number, length in records.chunks(count):
            with store.batch() as filled:
                filled.put(records.pairs(number, length))
        store.settle()

    def measure(mix: float, run: int) -> list[float]:
        operations = records.mixture(records.sample(count, 4000, f"{run}-{mix}"), mix, run)
        seconds = {}
        for kind in kinds if run % 2 == 0 else reversed(kinds):
            store = opened[kind]
            store.mixed(operations[:200])
            seconds[kind] = clock(lambda store=store: store.mixed(operations)) / len(operations)
            store.settle()
        return [seconds[kind] for kind in kinds]

    try:
        found = in_turn(MIXES, measure, options.runs)
    finally:
        for store in opened.values():
            store.close()
            store.remove()
    ratios = {mix: [theirs / ours for ours, theirs in runs] for mix, runs in found.items()}
    rows = [
        [
            f"{mix:.0%}",
            harness.rate([middle(runs, 0)], 1),
            harness.rate([middle(runs, 1)], 1),
            harness.digits(statistics.median(ratios[mix])),
            harness.spread(ratios[mix]),
        ]
        for mix, runs in found.items()
    ]
    behind = next((mix for mix in found if statistics.median(ratios[mix]) < 1), None)
    if behind is None:
        told = "No share of writes that was measured makes cowdb the slower one."
    else:
        told = f"Of the shares measured, {behind:.0%} of writes is the first at which SQLite is the faster one."
    text = (
        f"{count:,} records of 100 bytes; gets and puts at random, each in a lazy transaction of its own; cowdb with "
        f"the {form()} kernel, SQLite in WAL mode with `synchronous=NORMAL`. The ratio is SQLite's time by cowdb's: "
        "above 1 cowdb is faster.\n\n"
        + harness.table(["writes", "cowdb", "SQLite", "ratio", "spread"], rows)
        + f"\n\n{told}"
    )
    drawn = chart(
        "copying-writes.svg",
        lambda: charts.lines(
            "Copy-on-write beside writing in place",
            "writes among the transactions, per cent",
            "times as fast as SQLite",
            {
                "cowdb": [(100 * mix, statistics.median(ratios[mix])) for mix in found],
                "SQLite": [(100 * mix, 1.0) for mix in found],
            },
            logarithmic="y",
        ),
    )
    return Section("copying writes", text, drawn)


# ---------------------------------------------------------------- page sizes


@dataclasses.dataclass(frozen=True)
class Line:
    """What is measured for each page size: its words, and how a figure is written."""

    title: str
    show: Callable[[float], str]


LINES = (
    Line("load in random order, one transaction", harness.time_unit),
    Line("file size after it", harness.size_unit),
    Line("random get", harness.time_unit),
    Line("scan, one record", harness.time_unit),
    Line("range of 100", harness.time_unit),
    Line("put, 1,000 in a lazy transaction", harness.time_unit),
    Line("lazy transaction of one put", harness.time_unit),
    Line("durable transaction of one put", harness.time_unit),
    Line("bytes written by it", harness.size_unit),
    Line("file size with values of 1,500 bytes", harness.size_unit),
)


def pages(options: Options) -> Section:
    """The same work with each page size."""
    count = base(options)

    def measure(page_size: int, run: int) -> list[float]:
        return _measure_pages(options.directory, page_size, count, run)

    found = in_turn(PAGE_SIZES, measure, options.runs)
    usual = found[USUAL]
    rows = []
    for place, line in enumerate(LINES):
        row = [line.title]
        for runs in found.values():
            ratios = [mine[place] / theirs[place] for mine, theirs in zip(runs, usual, strict=True)]
            shown = line.show(middle(runs, place))
            row.append(
                shown if runs is usual else f"{shown}; {statistics.median(ratios):.2f} ({harness.spread(ratios)})"
            )
        rows.append(row)
    text = (
        f"{count:,} records of 16-byte random keys and 100-byte values, {form()} kernel. Each figure, and in the other "
        f"columns the ratio to {USUAL >> 10} KB with its spread; below 1 is better than {USUAL >> 10} KB.\n\n"
        + harness.table(["", *(f"{size >> 10} KB" for size in PAGE_SIZES)], rows)
    )
    drawn = chart(
        "copying-pages.svg",
        lambda: charts.dots(
            "Page sizes",
            f"times the time or the size with {USUAL >> 10} KB: left is better",
            {
                line.title: {
                    f"{size >> 10} KB": [a[place] / b[place] for a, b in zip(runs, usual, strict=True)]
                    for size, runs in found.items()
                    if runs is not usual
                }
                for place, line in enumerate(LINES)
            },
            f"{USUAL >> 10} KB",
        ),
    )
    return Section("copying pages", text, drawn)


def _measure_pages(directory: Path, page_size: int, count: int, run: int) -> list[float]:
    """The figures of `LINES`."""
    scratch = directory / "pages"
    scratch.mkdir()
    load = clock(lambda: loaded(scratch, "loaded", count, page_size)) / count
    path = scratch / "loaded"
    size = harness.file_size(path)
    keys = records.sample(count, 20_000, run)
    batched = records.replacements(records.sample(count, min(1000, count), f"batch {run}"), run)
    single = records.replacements(records.sample(count, 300, f"single {run}"), run)
    store = Cowdb(path)
    store.open(lazy=True)
    store.get(keys)
    get = clock(lambda: store.get(keys)) / len(keys)
    scan = clock(lambda: store.scan(reverse=False)) / count
    ranges = clock(lambda: store.ranges(keys[:500], 100)) / len(keys[:500])

    def put_batch() -> None:
        with store.batch() as filled:
            filled.put(batched)

    put_batch()
    put = clock(put_batch) / len(batched)
    lazy = clock(lambda: store.put_each(single)) / len(single)
    store.close()
    with cowdb.open(path) as db:
        before = db.stats()

        def durable() -> None:
            for key, value in single[:100]:
                db[key] = value

        seconds = clock(durable) / len(single[:100])
        after = db.stats()
    written = (after.bytes_written - before.bytes_written) / (after.commits - before.commits)
    large = harness.file_size(loaded(scratch, "large", max(1, count // 10), page_size, 1500))
    shutil.rmtree(scratch)
    return [load, float(size), get, scan, ranges, put, lazy, seconds, written, float(large)]
