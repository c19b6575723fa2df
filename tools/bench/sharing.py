"""What sharing a file gains and costs: threads that share flushes, processes that read, snapshots that are open.

Durable transactions of one put by 16 threads beside those of one thread, on the disk as it is and on one that takes
longer to flush; random reads by two processes beside one while another one commits; a lazy commit while 50 processes
hold 1,000 snapshots beside one without any.
"""

from __future__ import annotations

import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import bare
import cowdb
import harness
from cowdb.database import open_on
from cowdb.storage import FileDisk, FileStorage
from harness import AT_LEAST, AT_MOST, Figure, Options, Report
from together import in_threads

THREADS = 16
Put = Callable[[cowdb.Database, int, int], float]
PROCESSES = 50
SNAPSHOTS = 1000
ADDED_MS = 2.0
SLOWER_MS = (1, 4)
"""Milliseconds that a flush takes longer than here, such as on storage over a network, or on a disk that spins."""
PAUSE = 0.005
RECORDS = 10_000

READER = (
    """
import random, sys, time, cowdb
db = cowdb.open(sys.argv[1])
rng = random.Random(int(sys.argv[2]))
print("ready", flush=True)
while line := sys.stdin.readline():
    seconds, count = float(line), 0
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        for _ in range(20):
            with db.read() as snapshot:
                for _ in range(5):
                    snapshot[rng.randrange(%d).to_bytes(8, "big")]
        count += 100
    print(count, flush=True)
"""
    % RECORDS
)

WRITER = (
    """
import random, sys, time, cowdb
db = cowdb.open(sys.argv[1])
pause = float(sys.argv[2])
print("ready", flush=True)
while True:
    time.sleep(pause)
    with db.write() as txn:
        txn[random.randrange(%d).to_bytes(8, "big")] = bytes(100)
"""
    % RECORDS
)

HOLDER = """
import sys, cowdb
db = cowdb.open(sys.argv[1])
held = []
for line in sys.stdin:
    held.append(db.read())
    print("held", flush=True)
"""


def run(options: Options) -> Report:
    """Measure and report."""
    commits = min(options.records or 4000, 4000)
    flush = harness.flush_time(options.directory)
    harness.say("sharing: threads")
    with cowdb.open(options.directory / "threads.cowdb") as db:
        put_with_threads(db, 1, 50)
        start = time.process_time()
        put_with_threads(db, 1, commits // 4 or 1, durability="lazy")
        processor = (time.process_time() - start) / (commits // 4 or 1)
        before = db.stats()
        figures = [threads(db, commits, commits, options.runs, f"durable transactions, {THREADS} threads")]
        after = db.stats()
        what = f"one call each, {THREADS} threads"
        figures.append(threads(db, commits, commits, options.runs, what, put_calls))
    shared = (after.flushes - before.flushes) / (after.commits - before.commits)
    limit = bare.gain(options.directory, THREADS, commits, options.runs)
    for more in SLOWER_MS:
        with open_on(Slower(more / 1000), options.directory / f"slower-{more}.cowdb") as db:
            what = f"durable transactions, where a flush takes {more} ms more"
            figures.append(threads(db, commits // 2, commits // 8, options.runs, what))
            what = f"one call each, where a flush takes {more} ms more"
            figures.append(threads(db, commits // 2, commits // 8, options.runs, what, put_calls))

    path = filled(options.directory)
    seconds = 1.0 if (options.records or RECORDS) >= RECORDS else 0.1
    harness.say("sharing: readers")
    figures.append(readers(path, seconds, options.runs, PAUSE, "every 5 ms"))
    figures.append(readers(path, seconds, options.runs, 0, "without a pause"))
    path.unlink()
    harness.say("sharing: snapshots")
    figures.append(snapshots(options))
    return Report(
        "sharing",
        "shared",
        "alone",
        "ratio (ms for the last row)",
        f"A flush took {harness.time_unit(flush)}, a commit without one {harness.time_unit(processor)} of the "
        f"processor. Threads can at most gain their quotient, plus one, for Python runs one of them at a time. "
        f"Bare threads that take turns, write three pages and share a flush, without a database, gained "
        f"{statistics.median(limit):.2f} times as many here ({harness.spread(limit)}). "
        f"Each commit of the first row, of both sides together, made {shared:.2f} flushes. "
        "Where there are two cores, a writer that makes no pause takes its share of them from the two readers.",
        figures,
    )


class SlowFile(FileStorage):
    """A file that takes `seconds` more to flush."""

    def __init__(self, seconds: float, path: str, flags: int, mode: int, *, read_only: bool) -> None:
        self.seconds = seconds
        super().__init__(path, flags, mode, read_only=read_only)

    def flush(self) -> None:
        """See `FileStorage`."""
        super().flush()
        time.sleep(self.seconds)


class Slower(FileDisk):
    """The disk as it is, but that each flush takes `seconds` more."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def open(self, path: str, *, read_only: bool) -> FileStorage:
        """See `FileDisk`."""
        return SlowFile(self.seconds, path, os.O_RDONLY if read_only else os.O_RDWR, 0, read_only=read_only)

    def create(self, path: str, mode: int) -> FileStorage:
        """See `FileDisk`."""
        return SlowFile(self.seconds, path, os.O_RDWR | os.O_CREAT | os.O_EXCL, mode, read_only=False)


def threads(db: cowdb.Database, shared: int, alone: int, runs: int, what: str, put: Put | None = None) -> Figure:
    """Durable commits a second: `shared` of them made by many threads, beside `alone` made by one."""
    put = put or put_with_threads
    many, one = harness.pairs(
        lambda: put(db, THREADS, shared) / shared,
        lambda: put(db, 1, alone) / alone,
        runs,
    )
    return Figure(
        what, harness.rate(many, 1), harness.rate(one, 1) + " by one", harness.quotients(one, many), AT_LEAST, 5.0
    )


def put_with_threads(db: cowdb.Database, threads: int, commits: int, durability: str = "full") -> float:
    """Seconds for `commits` transactions of one put, by `threads` threads."""
    each = -(-commits // threads)

    def work(number: int) -> None:
        for turn in range(each):
            with db.write(durability=durability) as txn:
                txn[b"%d-%d" % (number, turn % 50)] = b"%d" % turn

    return in_threads(threads, work) * commits / (each * threads)


def put_calls(db: cowdb.Database, threads: int, commits: int) -> float:
    """The same, by one call each."""
    each = -(-commits // threads)

    def work(number: int) -> None:
        for turn in range(each):
            db[b"%d-%d" % (number, turn % 50)] = b"%d" % turn

    return in_threads(threads, work) * commits / (each * threads)


def filled(directory: Path) -> Path:
    """A file for the readers."""
    path = directory / "readers.cowdb"
    rng = random.Random(1)
    with cowdb.open(path) as db, db.write() as txn:
        for number in range(RECORDS):
            txn[number.to_bytes(8, "big")] = rng.randbytes(100)
    return path


class Child:
    """A Python process that runs a script and answers line by line."""

    def __init__(self, script: str, *arguments: object) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", script, *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def tell(self, line: str) -> None:
        """One line to the process."""
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def answer(self) -> str:
        """One line from it."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError("a process of the benchmark died")
        return line

    def end(self) -> None:
        """Stop it."""
        self.process.kill()
        self.process.communicate()


def readers(path: Path, seconds: float, runs: int, pause: float, how: str) -> Figure:
    """Reads a second by two processes and by one, while a third one commits, with a pause of so many seconds each."""
    writer = Child(WRITER, path, pause)
    children = [Child(READER, path, number) for number in range(2)]

    def reads(count: int) -> float:
        for child in children[:count]:
            child.tell(str(seconds))
        return sum(int(child.answer()) for child in children[:count]) / seconds

    try:
        for child in [writer, *children]:
            child.answer()
        two, one = harness.pairs(lambda: reads(2), lambda: reads(1), runs)
    finally:
        for child in [writer, *children]:
            child.end()
    return Figure(
        f"random gets while a process commits {how}, 2 processes",
        f"{statistics.median(two):,.0f}/s",
        f"{statistics.median(one):,.0f}/s by one",
        harness.quotients(two, one),
        AT_LEAST,
        1.8,
    )


def snapshots(options: Options) -> Figure:
    """Milliseconds that open snapshots add to a lazy commit."""
    small = (options.records or SNAPSHOTS) < SNAPSHOTS
    processes = 4 if small else PROCESSES
    count = 20 if small else SNAPSHOTS
    commits = 200
    with cowdb.open(options.directory / "held.cowdb") as db, cowdb.open(options.directory / "free.cowdb") as free:
        for each in (db, free):
            put_with_threads(each, 1, 100, durability="lazy")
        holders = [Child(HOLDER, options.directory / "held.cowdb") for _ in range(processes)]
        try:
            for turn in range(count):  # each snapshot is of another transaction
                holder = holders[turn % processes]
                holder.tell("hold")
                holder.answer()
                put_with_threads(db, 1, 1, durability="lazy")
                put_with_threads(free, 1, 1, durability="lazy")
            if len(db.readers()) != count:
                raise AssertionError("not all snapshots are seen")
            with_them, without = harness.pairs(
                lambda: put_with_threads(db, 1, commits, durability="lazy") / commits,
                lambda: put_with_threads(free, 1, commits, durability="lazy") / commits,
                options.runs,
            )
        finally:
            for holder in holders:
                holder.end()
    return Figure(
        f"lazy commit, {count:,} snapshots in {processes} processes: added ms",
        harness.time_unit(statistics.median(with_them)),
        harness.time_unit(statistics.median(without)) + " without",
        [max(1e-6, 1000 * (a - b)) for a, b in zip(with_them, without, strict=True)],
        AT_MOST,
        ADDED_MS,
    )
