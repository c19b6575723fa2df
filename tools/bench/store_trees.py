"""The stores that are trees in one file: cowdb, LMDB and SQLite."""

# ruff: noqa: D102 - `Store` says what each method does

from __future__ import annotations

import contextlib
import importlib
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from itertools import islice

import cowdb
from records import Operation, Pair
from store import Batch, Store

MAP_SIZE = 64 << 30
"""LMDB must be told a size that the file may grow to; it takes addresses, not memory."""


# ---------------------------------------------------------------- cowdb


class Cowdb(Store):
    """cowdb, in whichever form of its kernel this process has."""

    MODULE = "cowdb"
    SETTINGS = (
        'durable: as it comes, one flush a commit; lazy: `durability="lazy"`, a power cut goes back to an older commit'
    )

    @classmethod
    def version(cls) -> str:
        """The version of the source, which need not be installed."""
        return cowdb.__version__

    def open(self, *, lazy: bool = False) -> None:
        self.db = cowdb.open(self.path, durability="lazy" if lazy else "full")

    def close(self) -> None:
        self.db.close()

    def settle(self) -> None:
        self.db.sync()

    def get(self, keys: Sequence[bytes]) -> int:
        found = 0
        with self.db.read() as snap:
            get = snap.get
            for key in keys:
                if get(key) is not None:
                    found += 1
        return found

    def begin_get(self, keys: Sequence[bytes]) -> int:
        found = 0
        read = self.db.read
        for key in keys:
            with read() as snap:
                if snap.get(key) is not None:
                    found += 1
        return found

    def scan(self, *, reverse: bool) -> int:
        found = 0
        with self.db.read() as snap:
            for _key, _value in snap.items(reverse=reverse):
                found += 1
        return found

    def ranges(self, starts: Sequence[bytes], length: int) -> int:
        found = 0
        with self.db.read() as snap:
            items = snap.items
            for start in starts:
                for _key, _value in items(start, limit=length):
                    found += 1
        return found

    def prefixes(self, prefixes: Sequence[bytes]) -> int:
        found = 0
        with self.db.read() as snap:
            items = snap.items
            for prefix in prefixes:
                for _key, _value in items(prefix=prefix):
                    found += 1
        return found

    def snapshot(self) -> contextlib.AbstractContextManager[object]:
        return self.db.read()

    @contextlib.contextmanager
    def batch(self) -> Iterator[Batch]:
        with self.db.write() as txn:
            yield Batch(txn)

    def put_each(self, pairs: Sequence[Pair]) -> None:
        write = self.db.write
        for key, value in pairs:
            with write() as txn:
                txn.put(key, value)

    def put_calls(self, pairs: Sequence[Pair]) -> None:
        db = self.db
        for key, value in pairs:
            db[key] = value

    def mixed(self, operations: Sequence[Operation]) -> int:
        found = 0
        read, write = self.db.read, self.db.write
        for key, value in operations:
            if value is None:
                with read() as snap:
                    if snap.get(key) is not None:
                        found += 1
            else:
                with write() as txn:
                    txn.put(key, value)
        return found


# ---------------------------------------------------------------- LMDB


class Lmdb(Store):
    """LMDB through py-lmdb."""

    MODULE = "lmdb"
    SETTINGS = (
        f"`map_size` {MAP_SIZE >> 30} GiB, one file; durable: as it comes, `sync=True`; lazy: `sync=False`, "
        "after which a power cut may leave a broken file"
    )

    @classmethod
    def version(cls) -> str:
        return f"{super().version()}, LMDB {'.'.join(map(str, importlib.import_module('lmdb').version()[:3]))}"

    def open(self, *, lazy: bool = False) -> None:
        lmdb = importlib.import_module("lmdb")
        self.env = lmdb.open(str(self.path), subdir=False, map_size=MAP_SIZE, sync=not lazy)

    def close(self) -> None:
        self.env.close()

    def settle(self) -> None:
        self.env.sync(True)

    def get(self, keys: Sequence[bytes]) -> int:
        found = 0
        with self.env.begin() as txn:
            get = txn.get
            for key in keys:
                if get(key) is not None:
                    found += 1
        return found

    def begin_get(self, keys: Sequence[bytes]) -> int:
        found = 0
        begin = self.env.begin
        for key in keys:
            with begin() as txn:
                if txn.get(key) is not None:
                    found += 1
        return found

    def scan(self, *, reverse: bool) -> int:
        found = 0
        with self.env.begin() as txn, txn.cursor() as cursor:
            for _key, _value in cursor.iterprev() if reverse else cursor.iternext():
                found += 1
        return found

    def ranges(self, starts: Sequence[bytes], length: int) -> int:
        found = 0
        with self.env.begin() as txn, txn.cursor() as cursor:
            for start in starts:
                if cursor.set_range(start):
                    for _key, _value in islice(cursor.iternext(), length):
                        found += 1
        return found

    def prefixes(self, prefixes: Sequence[bytes]) -> int:
        found = 0
        with self.env.begin() as txn, txn.cursor() as cursor:
            for prefix in prefixes:
                if cursor.set_range(prefix):
                    for key, _value in cursor.iternext():
                        if not key.startswith(prefix):
                            break
                        found += 1
        return found

    def snapshot(self) -> contextlib.AbstractContextManager[object]:
        txn: contextlib.AbstractContextManager[object] = self.env.begin()
        return txn

    @contextlib.contextmanager
    def batch(self) -> Iterator[Batch]:
        with self.env.begin(write=True) as txn:
            yield Batch(txn)

    def put_each(self, pairs: Sequence[Pair]) -> None:
        begin = self.env.begin
        for key, value in pairs:
            with begin(write=True) as txn:
                txn.put(key, value)

    def mixed(self, operations: Sequence[Operation]) -> int:
        found = 0
        begin = self.env.begin
        for key, value in operations:
            if value is None:
                with begin() as txn:
                    if txn.get(key) is not None:
                        found += 1
            else:
                with begin(write=True) as txn:
                    txn.put(key, value)
        return found


# ---------------------------------------------------------------- SQLite

_GET = "SELECT value FROM records WHERE key = ?"
_PUT = "INSERT OR REPLACE INTO records VALUES (?, ?)"
_DELETE = "DELETE FROM records WHERE key = ?"
_SCAN = "SELECT key, value FROM records ORDER BY key"
_RANGE = "SELECT key, value FROM records WHERE key >= ? ORDER BY key LIMIT ?"
_PREFIX = "SELECT key, value FROM records WHERE key >= ? AND key < ? ORDER BY key"


class _SqliteBatch(Batch):
    def put(self, pairs: Sequence[Pair]) -> None:
        execute = self.txn.execute
        for pair in pairs:
            execute(_PUT, pair)

    def delete(self, keys: Sequence[bytes]) -> None:
        execute = self.txn.execute
        for key in keys:
            execute(_DELETE, (key,))


class Sqlite(Store):
    """SQLite through the standard library's sqlite3: one table, its key the primary key."""

    MODULE = "sqlite3"
    SETTINGS = (
        "a table WITHOUT ROWID, WAL mode, its default cache of 2 MB; durable: `synchronous=FULL`, one flush a commit; "
        "lazy: `synchronous=NORMAL`, a power cut goes back to an older commit; threads take turns with a lock, "
        "which is quicker than waiting for SQLite's"
    )

    @classmethod
    def version(cls) -> str:
        return f"Python's, SQLite {sqlite3.sqlite_version}"

    def open(self, *, lazy: bool = False) -> None:
        self.turn = threading.Lock()
        self.connection = self._connect()
        execute = self.connection.execute
        execute("PRAGMA journal_mode = WAL").fetchone()
        execute(f"PRAGMA synchronous = {'NORMAL' if lazy else 'FULL'}")
        execute("CREATE TABLE IF NOT EXISTS records (key BLOB PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID")

    def _connect(self) -> sqlite3.Connection:
        """In autocommit mode: transactions begin and end where we say."""
        return sqlite3.connect(self.path, isolation_level=None, check_same_thread=False)

    def close(self) -> None:
        self.connection.close()

    def settle(self) -> None:
        self.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()

    def get(self, keys: Sequence[bytes]) -> int:
        found = 0
        execute = self.connection.execute
        execute("BEGIN")
        for key in keys:
            if execute(_GET, (key,)).fetchone() is not None:
                found += 1
        execute("COMMIT")
        return found

    def begin_get(self, keys: Sequence[bytes]) -> int:
        found = 0
        execute = self.connection.execute
        for key in keys:
            if execute(_GET, (key,)).fetchone() is not None:
                found += 1
        return found

    def scan(self, *, reverse: bool) -> int:
        found = 0
        for _key, _value in self.connection.execute(_SCAN + (" DESC" if reverse else "")):
            found += 1
        return found

    def ranges(self, starts: Sequence[bytes], length: int) -> int:
        found = 0
        execute = self.connection.execute
        execute("BEGIN")
        for start in starts:
            for _key, _value in execute(_RANGE, (start, length)):
                found += 1
        execute("COMMIT")
        return found

    def prefixes(self, prefixes: Sequence[bytes]) -> int:
        found = 0
        execute = self.connection.execute
        execute("BEGIN")
        for prefix in prefixes:
            for _key, _value in execute(_PREFIX, (prefix, after(prefix))):
                found += 1
        execute("COMMIT")
        return found

    @contextlib.contextmanager
    def snapshot(self) -> Iterator[object]:
        with contextlib.closing(self._connect()) as reader:
            reader.execute("BEGIN")
            reader.execute("SELECT count(*) FROM records").fetchone()
            yield reader

    @contextlib.contextmanager
    def batch(self) -> Iterator[Batch]:
        self.connection.execute("BEGIN IMMEDIATE")
        yield _SqliteBatch(self.connection)
        self.connection.execute("COMMIT")

    def put_each(self, pairs: Sequence[Pair]) -> None:
        execute = self.connection.execute
        turn = self.turn
        for pair in pairs:
            with turn:
                execute(_PUT, pair)

    def mixed(self, operations: Sequence[Operation]) -> int:
        found = 0
        execute = self.connection.execute
        for key, value in operations:
            if value is None:
                if execute(_GET, (key,)).fetchone() is not None:
                    found += 1
            else:
                execute(_PUT, (key, value))
        return found


def after(prefix: bytes) -> bytes:
    """The least key above all that begin with `prefix`."""
    short = prefix.rstrip(b"\xff")
    return short[:-1] + bytes([short[-1] + 1]) if short else b"\xff" * 64
