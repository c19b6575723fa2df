"""cowdb beside SQLite as Python ships it: random gets, a full scan, a load, durable puts.

Both hold the same records (16 random bytes to 100 bytes), SQLite in a WITHOUT ROWID table.  Both are used through
their Python interface with one call an operation: for SQLite `connection.execute(sql, parameters)` with the same SQL
text each time, so that its statement cache hits.  SQLite runs in WAL mode with synchronous=FULL, so that a commit of
either means the same: it survives a power cut.  All else is as it comes; with --tuned SQLite gets a page cache and a
memory map of 1 GiB.
"""

from __future__ import annotations

import random
import sqlite3
from pathlib import Path

import cowdb
import harness
from harness import AT_LEAST, AT_MOST, Figure, Options, Report

CREATE = "CREATE TABLE records (key BLOB PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID"
GET = "SELECT value FROM records WHERE key = ?"
PUT = "INSERT OR REPLACE INTO records VALUES (?, ?)"
SCAN = "SELECT key, value FROM records ORDER BY key"


def connect(path: Path, *, tuned: bool) -> sqlite3.Connection:
    """A connection in autocommit mode: transactions begin and end where we say."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL").fetchone()
    connection.execute("PRAGMA synchronous = FULL")
    if tuned:
        connection.execute(f"PRAGMA cache_size = -{1 << 20}")
        connection.execute(f"PRAGMA mmap_size = {1 << 30}").fetchone()
    return connection


def run(options: Options) -> Report:
    """Measure and report."""
    count = options.records or 1_000_000
    rng = random.Random(1)
    records = [(rng.randbytes(16), rng.randbytes(100)) for _ in range(count)]
    sample = [key for key, _ in rng.sample(records, min(count, 200_000))]
    ours, theirs = options.directory / "records.cowdb", options.directory / "records.sqlite"

    flush = harness.time_unit(harness.flush_time(options.directory))
    figures = [load(ours, theirs, records, options)]
    with cowdb.open(ours) as db:
        connection = connect(theirs, tuned=options.tuned)
        try:
            figures.insert(0, gets(db, connection, sample, options.runs))
            figures.insert(1, scan(db, connection, count, options.runs))
            figures.append(durable(db, connection, options.runs, min(count, 2000)))
        finally:
            connection.close()
    settings = "with 1 GiB of page cache and of memory map" if options.tuned else "with its default cache"
    return Report(
        "sqlite",
        "cowdb",
        "sqlite3",
        "ratio",
        f"{count:,} records of 16-byte random keys and 100-byte values; SQLite {sqlite3.sqlite_version} {settings}. "
        "In the rows with a goal of at least (>=) the ratio is cowdb's speed by SQLite's, in those with at most (<=) "
        f"cowdb's time by SQLite's. Here the disk keeps one page of 8 KiB in {flush}.",
        figures,
    )


def load(ours: Path, theirs: Path, records: list[tuple[bytes, bytes]], options: Options) -> Figure:
    """All records in one durable transaction, in random order, into a new file."""
    harness.say("sqlite: load")

    def load_ours() -> None:
        with cowdb.open(ours) as db, db.write() as txn:
            for key, value in records:
                txn[key] = value

    def load_theirs() -> None:
        connection = connect(theirs, tuned=options.tuned)
        connection.execute(CREATE)
        connection.execute("BEGIN IMMEDIATE")
        for record in records:
            connection.execute(PUT, record)
        connection.execute("COMMIT")
        connection.close()

    def fresh_ours() -> float:
        remove(ours, "", "-lock")
        return harness.timed(load_ours)

    def fresh_theirs() -> float:
        remove(theirs, "", "-wal", "-shm")
        return harness.timed(load_theirs)

    a, b = harness.pairs(fresh_ours, fresh_theirs, options.runs)
    count = len(records)
    return Figure(
        "load, random order, one transaction",
        harness.rate(a, count),
        harness.rate(b, count),
        harness.quotients(b, a),
        AT_LEAST,
        0.3,
    )


def remove(path: Path, *endings: str) -> None:
    """Remove `path` with each of `endings`, where it is there."""
    for ending in endings:
        path.with_name(path.name + ending).unlink(missing_ok=True)


def gets(db: cowdb.Database, connection: sqlite3.Connection, sample: list[bytes], runs: int) -> Figure:
    """Keys that are there, in random order, within one read transaction."""
    harness.say("sqlite: random get")

    def get_ours() -> None:
        with db.read() as snap:
            for key in sample:
                snap[key]

    def get_theirs() -> None:
        connection.execute("BEGIN")
        for key in sample:
            connection.execute(GET, (key,)).fetchone()[0]
        connection.execute("COMMIT")

    get_ours()  # both begin with warm caches
    get_theirs()
    a, b = harness.pairs(lambda: harness.timed(get_ours), lambda: harness.timed(get_theirs), runs)
    return Figure(
        "random get",
        harness.rate(a, len(sample)),
        harness.rate(b, len(sample)),
        harness.quotients(b, a),
        AT_LEAST,
        1.0,
    )


def scan(db: cowdb.Database, connection: sqlite3.Connection, count: int, runs: int) -> Figure:
    """Every record in key order."""
    harness.say("sqlite: full scan")

    def scan_ours() -> None:
        found = 0
        with db.read() as snap:
            for _key, _value in snap.items():
                found += 1
        if found != count:
            raise AssertionError(found)

    def scan_theirs() -> None:
        found = 0
        for _key, _value in connection.execute(SCAN):
            found += 1
        if found != count:
            raise AssertionError(found)

    a, b = harness.pairs(lambda: harness.timed(scan_ours), lambda: harness.timed(scan_theirs), runs)
    return Figure("full scan", harness.rate(a, count), harness.rate(b, count), harness.quotients(b, a), AT_LEAST, 0.7)


def durable(db: cowdb.Database, connection: sqlite3.Connection, runs: int, commits: int) -> Figure:
    """Transactions of one put each, every one on disk before the next begins."""
    harness.say("sqlite: durable puts")
    rng = random.Random(2)

    def put_ours() -> None:
        for _ in range(commits):
            with db.write() as txn:
                txn[rng.randbytes(16)] = rng.randbytes(100)

    def put_theirs() -> None:
        for _ in range(commits):
            connection.execute("BEGIN IMMEDIATE")
            connection.execute(PUT, (rng.randbytes(16), rng.randbytes(100)))
            connection.execute("COMMIT")

    a, b = harness.pairs(lambda: harness.timed(put_ours), lambda: harness.timed(put_theirs), runs)
    return Figure(
        "durable transaction of one put",
        harness.rate(a, commits),
        harness.rate(b, commits),
        harness.quotients(a, b),
        AT_MOST,
        1.5,
    )
