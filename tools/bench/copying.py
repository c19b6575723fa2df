"""What copy-on-write costs and saves, for docs/copy-on-write.md: a section and a chart a question.

    snapshot   how long it takes to begin one, against the size of the file
    space      what an old one costs, against the share of the pages that is written meanwhile
    batch      how many pages a put copies, against the number of puts in its transaction
    share      how many of all pages are copied when some of all records change at random
    writes     speed beside a store that writes in place, against the share of writes
    pages      page sizes of 4, 8, 16 and 32 KB

Each run measures all points of a line one after the other, forward and then backward, so that ratios between points
are ratios of neighbours in time.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable

import charts
import costs
import cowdb
import harness
from charts import chart
from harness import AT_MOST, Figure, Options, Report, Section, in_turn, middle
from worker import form
from workloads import anonymous

SNAPSHOTS = 2000
"""Snapshots that are begun and ended for one figure."""
FLAT = 1.5
"""What beginning a snapshot of the largest file may take, beside one of the smallest."""
SHARES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)


def run(options: Options) -> list[Report | Section]:
    """Measure and report."""
    parts: dict[str, Callable[[Options], Report | Section]] = {
        "snapshot": snapshot,
        "space": space,
        "batch": costs.batch,
        "share": costs.share,
        "writes": costs.writes,
        "pages": costs.pages,
    }
    unknown = sorted(set(options.only) - parts.keys())
    if unknown:
        raise SystemExit(f"copying has no part {', '.join(unknown)}; it has {', '.join(parts)}")
    found = []
    for name, part in parts.items():
        if not options.only or name in options.only:
            harness.say(f"copying: {name}")
            found.append(part(options))
    return found


# ---------------------------------------------------------------- the time to take a snapshot


def snapshot(options: Options) -> Report:
    """Begin and end a snapshot in files of four sizes; and copy the file, which is the other way to have one."""
    most = options.records or 1_000_000
    counts = sorted({max(1, most // divisor) for divisor in (1000, 100, 10, 1)})
    paths = {count: harness.filled(options.directory, count) for count in counts}
    handles = {count: cowdb.open(path) for count, path in paths.items()}
    target = options.directory / "copy"

    def measure(count: int, _run: int) -> list[float]:
        read = handles[count].read

        def begin() -> None:
            for _ in range(SNAPSHOTS):
                read().close()

        begin()
        seconds = harness.timed(begin) / SNAPSHOTS
        copying = harness.timed(lambda: shutil.copyfile(paths[count], target))
        target.unlink()
        return [seconds, copying]

    try:
        found = in_turn(counts, measure, options.runs)
    finally:
        for handle in handles.values():
            handle.close()
    sizes = {count: harness.file_size(path) for count, path in paths.items()}
    rows = [
        [
            harness.size_unit(sizes[count]),
            harness.time_unit(middle(runs, 0)),
            f"{harness.time_unit(min(r[0] for r in runs))} to {harness.time_unit(max(r[0] for r in runs))}",
            harness.time_unit(middle(runs, 1)),
        ]
        for count, runs in found.items()
    ]
    small, large = counts[0], counts[-1]
    first, last = [r[0] for r in found[small]], [r[0] for r in found[large]]
    figure = Figure(
        "begin and end a snapshot",
        harness.time_unit(statistics.median(last)),
        harness.time_unit(statistics.median(first)),
        harness.quotients(last, first),
        AT_MOST,
        FLAT,
    )
    for path in paths.values():
        path.unlink()
    drawn = chart(
        "copying-snapshot.svg",
        lambda: charts.lines(
            "Time to have a snapshot",
            "size of the database",
            "time",
            {
                "copy of the file": [(sizes[count], middle(runs, 1)) for count, runs in found.items()],
                "snapshot": [(sizes[count], middle(runs, 0)) for count, runs in found.items()],
            },
            logarithmic="xy",
            name_x=lambda size: f"{size / 1e6:g} MB",
            name_y=harness.time_unit,
        ),
    )
    note = (
        f"With the {form()} kernel. "
        f"Each figure is of {SNAPSHOTS:,} snapshots, begun and ended; the copy is one of the file, all in memory.\n\n"
        + harness.table(["database", "begin and end a snapshot", "spread", "copy the file"], rows)
        + "\n\nThe largest beside the smallest:"
    )
    names = [harness.size_unit(sizes[count]) for count in (large, small)]
    return Report("copying snapshot", names[0], names[1], "time ratio", note, [figure], drawn)


# ---------------------------------------------------------------- what an old snapshot costs


def space(options: Options) -> Section:
    """What file and process grow by when a transaction writes to some leaves while an old snapshot is held."""
    count = max(1, (options.records or 1_000_000) // 10)
    base = harness.filled(options.directory, count, 100)

    def measure(portion: float, run: int) -> list[float]:
        path = options.directory / "space.cowdb"
        shutil.copyfile(base, path)
        command = [sys.executable, __file__, str(path), str(count), str(portion), str(run)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
        for each in (path, path.with_name(path.name + "-lock")):
            each.unlink(missing_ok=True)
        figures: list[float] = json.loads(done.stdout)
        return figures

    found = in_turn(SHARES, measure, options.runs)
    size = next(iter(found.values()))[0][4]
    base.unlink()
    rows = [
        [
            f"{middle(runs, 0):.1%}",
            f"{middle(runs, 1) / size:.1%}",
            f"{min(r[1] for r in runs) / size:.1%} to {max(r[1] for r in runs) / size:.1%}",
            f"{middle(runs, 2) / size:.1%}",
            f"{middle(runs, 3) / size:.1%}",
        ]
        for runs in found.values()
    ]
    text = (
        f"A database of {harness.size_unit(size)}, {count:,} records of 100 bytes; one transaction puts one record in "
        "each of some leaves, spread evenly, while a snapshot from before is held. All in per cent of the database, "
        f"with the {form()} kernel; a process of its own a figure. Memory is what no file stands behind.\n\n"
        + harness.table(
            ["pages written", "extra space", "spread", "memory before the commit", "memory after it"],
            rows,
        )
    )
    drawn = chart(
        "copying-space.svg",
        lambda: charts.lines(
            "What an old snapshot costs",
            "pages written while it is held, per cent",
            "per cent of the database",
            {
                "a copy of the file instead": [(100 * middle(runs, 0), 100.0) for runs in found.values()],
                "extra space": [(100 * middle(r, 0), 100 * middle(r, 1) / size) for r in found.values()],
                "memory before the commit": [(100 * middle(r, 0), 100 * middle(r, 2) / size) for r in found.values()],
                "memory after it": [(100 * middle(r, 0), 100 * middle(r, 3) / size) for r in found.values()],
            },
        ),
    )
    return Section("copying space", text, drawn)


def write_beside(path: str, count: int, portion: float, seed: int) -> list[float]:
    """The work of a process of its own.

    The share of the pages that was written, and in bytes the extra space, the memory before and after the commit, and
    the pages that were in use.
    """
    with cowdb.open(path, durability="lazy") as db, db.read() as old:
        before = db.stats()
        leaves = max(1, before.used_pages)
        stride = max(1, count // leaves)
        places = list(range(0, count, stride))
        chosen = random.Random(seed).sample(places, max(1, round(portion * len(places))))
        checked = old[chosen[0].to_bytes(8, "big")]
        memory = anonymous() or 0
        with db.write() as txn:
            for place in chosen:
                txn[place.to_bytes(8, "big")] = os.urandom(100)
            dirty = (anonymous() or 0) - memory
        held = (anonymous() or 0) - memory
        after = db.stats()
        if old[chosen[0].to_bytes(8, "big")] != checked:
            raise AssertionError("the old snapshot changed")
        extra = (after.page_count - before.page_count) * after.page_size
        return [
            min(1.0, (after.pages_written_last_commit - 1) / before.used_pages),
            float(extra),
            float(max(dirty, 0)),
            float(max(held, 0)),
            float(before.used_pages * before.page_size),
        ]


if __name__ == "__main__":
    print(json.dumps(write_beside(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4]))))
