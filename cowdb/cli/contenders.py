"""The stores that ``cowdb bench`` compares, each behind the same five pieces of work.

All are used through their Python interface as a program would use them, one
call an operation, keys and values as bytes; a durable commit of each survives a
power cut.  LMDB is there where its package is installed.
"""

from __future__ import annotations

import importlib
import os
import shutil
import sqlite3
from typing import TYPE_CHECKING, Any, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from cowdb.database import Database

__all__ = ["RANGE", "Contender", "contenders"]

Pair = tuple[bytes, bytes]
RANGE: Final = 100
"""Entries of a range."""


class Contender(Protocol):
    """One store, in one directory of its own. Each method does its work and gives the number of operations."""

    name: str
    version: str

    def load(self, pairs: Sequence[Pair]) -> int:
        """Make it anew and store `pairs` in one durable transaction."""

    def get(self, keys: Sequence[bytes]) -> int:
        """Look up `keys` in one snapshot."""

    def scan(self) -> int:
        """Read every entry in order."""

    def ranges(self, starts: Sequence[bytes]) -> int:
        """Read the `RANGE` entries from each start on."""

    def put(self, pairs: Iterable[Pair]) -> int:
        """Store each pair in a durable transaction of its own."""

    def close(self) -> None:
        """Let the file go."""


class _Cowdb:
    name = "cowdb"

    def __init__(self, directory: str) -> None:
        import cowdb  # noqa: PLC0415 - when it runs

        self.version = cowdb.__version__
        self._open = cowdb.open
        self._directory = directory
        self._db: Database | None = None

    def load(self, pairs: Sequence[Pair]) -> int:
        self.close()
        _clear(self._directory)
        self._db = self._open(os.path.join(self._directory, "bench.cowdb"))
        with self._db.write() as txn:
            for key, value in pairs:
                txn[key] = value
        return len(pairs)

    def _live(self) -> Database:
        assert self._db is not None
        return self._db

    def get(self, keys: Sequence[bytes]) -> int:
        with self._live().read() as snapshot:
            for key in keys:
                snapshot[key]
        return len(keys)

    def scan(self) -> int:
        with self._live().read() as snapshot:
            return sum(1 for _ in snapshot.items())

    def ranges(self, starts: Sequence[bytes]) -> int:
        with self._live().read() as snapshot:
            for start in starts:
                for _ in snapshot.items(start, limit=RANGE):
                    pass
        return len(starts)

    def put(self, pairs: Iterable[Pair]) -> int:
        count = 0
        for key, value in pairs:
            with self._live().write() as txn:
                txn[key] = value
            count += 1
        return count

    def close(self) -> None:
        if self._db is not None:
            self._db.close()
            self._db = None


class _Lmdb:
    name = "lmdb"

    def __init__(self, directory: str, size: int) -> None:
        self._lmdb: Any = importlib.import_module("lmdb")
        self.version = f"{self._lmdb.__version__} ({'.'.join(map(str, self._lmdb.version()))})"
        self._directory = directory
        self._size = size
        self._env: Any = None

    def load(self, pairs: Sequence[Pair]) -> int:
        self.close()
        _clear(self._directory)
        self._env = self._lmdb.open(self._directory, map_size=self._size)
        with self._env.begin(write=True) as txn:
            for key, value in pairs:
                txn.put(key, value)
        return len(pairs)

    def get(self, keys: Sequence[bytes]) -> int:
        with self._env.begin() as txn:
            for key in keys:
                txn.get(key)
        return len(keys)

    def scan(self) -> int:
        with self._env.begin() as txn:
            return sum(1 for _ in txn.cursor())

    def ranges(self, starts: Sequence[bytes]) -> int:
        with self._env.begin() as txn:
            cursor = txn.cursor()
            for start in starts:
                cursor.set_range(start)
                for _, _ in zip(range(RANGE), cursor.iternext(), strict=False):
                    pass
        return len(starts)

    def put(self, pairs: Iterable[Pair]) -> int:
        count = 0
        for key, value in pairs:
            with self._env.begin(write=True) as txn:
                txn.put(key, value)
            count += 1
        return count

    def close(self) -> None:
        if self._env is not None:
            self._env.close()
            self._env = None


class _Sqlite:
    name = "sqlite3"
    version = sqlite3.sqlite_version

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._base: Any = None

    def load(self, pairs: Sequence[Pair]) -> int:
        self.close()
        _clear(self._directory)
        # A write-ahead log that is flushed at each commit: it survives a power cut, as the others do.
        self._base = sqlite3.connect(os.path.join(self._directory, "bench.sqlite"), isolation_level=None)
        self._base.execute("PRAGMA journal_mode = WAL").fetchone()
        self._base.execute("PRAGMA synchronous = FULL")
        self._base.execute("CREATE TABLE entries (key BLOB PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID")
        self._base.execute("BEGIN IMMEDIATE")
        for pair in pairs:
            self._base.execute("INSERT OR REPLACE INTO entries VALUES (?, ?)", pair)
        self._base.execute("COMMIT")
        return len(pairs)

    def get(self, keys: Sequence[bytes]) -> int:
        self._base.execute("BEGIN")
        for key in keys:
            self._base.execute("SELECT value FROM entries WHERE key = ?", (key,)).fetchone()
        self._base.execute("COMMIT")
        return len(keys)

    def scan(self) -> int:
        return sum(1 for _ in self._base.execute("SELECT key, value FROM entries ORDER BY key"))

    def ranges(self, starts: Sequence[bytes]) -> int:
        self._base.execute("BEGIN")
        for start in starts:
            query = "SELECT key, value FROM entries WHERE key >= ? ORDER BY key LIMIT ?"
            for _ in self._base.execute(query, (start, RANGE)):
                pass
        self._base.execute("COMMIT")
        return len(starts)

    def put(self, pairs: Iterable[Pair]) -> int:
        count = 0
        for pair in pairs:
            self._base.execute("BEGIN IMMEDIATE")
            self._base.execute("INSERT OR REPLACE INTO entries VALUES (?, ?)", pair)
            self._base.execute("COMMIT")
            count += 1
        return count

    def close(self) -> None:
        if self._base is not None:
            self._base.close()
            self._base = None


def contenders(directory: str, size: int, wanted: Sequence[str]) -> tuple[list[Contender], list[str]]:
    """Make cowdb and those of `wanted` that are installed, each with a directory below `directory`; what is missing.

    `size` is an upper bound in bytes of what they will hold.
    """
    found: list[Contender] = [_Cowdb(_folder(directory, "cowdb"))]
    missing: list[str] = []
    for name in wanted:
        if name == "sqlite3":
            found.append(_Sqlite(_folder(directory, name)))
            continue
        try:
            found.append(_Lmdb(_folder(directory, name), size))
        except ImportError:
            missing.append(name)
    return found, missing


def _folder(directory: str, name: str) -> str:
    path = os.path.join(directory, name)
    os.mkdir(path)
    return path


def _clear(directory: str) -> None:
    shutil.rmtree(directory)
    os.mkdir(directory)
