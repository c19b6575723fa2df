"""A store as the benchmark sees it: the same few methods for each, written as that store's manual has it.

A method is a whole loop, not one operation, so that no wrapper of ours stands between the loop and the store: `get`
takes many keys and calls ``txn.get`` of LMDB, ``connection.execute`` of SQLite and so on, once a key.  Nobody uses
calls that do many operations at once (py-lmdb's ``putmulti``, sqlite3's ``executemany``), for most programs cannot.
Everybody gives and takes `bytes`.

All settings are as they come, but for what is said in `SETTINGS`.  Durability is the same for all: with ``lazy=False``
a transaction that has returned survives a power cut, with ``lazy=True`` nothing waits for the disk.

    worker --> Store.get(keys), scan(), batch(), put_each(pairs), ...
                 |
               Cowdb  Lmdb  Sqlite  Plyvel  Rocksdict
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from records import Operation, Pair


class Batch:
    """One write transaction, or what the store has instead of one, to be filled."""

    def __init__(self, txn: Any) -> None:
        self.txn = txn

    def put(self, pairs: Sequence[Pair]) -> None:
        """Put each of `pairs`."""
        put = self.txn.put
        for key, value in pairs:
            put(key, value)

    def delete(self, keys: Sequence[bytes]) -> None:
        """Delete each of `keys`."""
        delete = self.txn.delete
        for key in keys:
            delete(key)


class Store:
    """One store at `path`, to be opened with `open`."""

    MODULE: ClassVar[str]
    SETTINGS: ClassVar[str]
    """What is not as it comes, and how durability is had."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def version(cls) -> str:
        """The version of the binding and of what it binds. Raises `ImportError` if it is not installed."""
        importlib.import_module(cls.MODULE)
        return importlib.metadata.version(cls.MODULE)

    def open(self, *, lazy: bool = False) -> None:
        """Open it, or make it."""
        raise NotImplementedError

    def close(self) -> None:
        """Let it go."""
        raise NotImplementedError

    def settle(self) -> None:
        """Bring what is written to the disk and let work in the background come to its end. Never timed."""
        raise NotImplementedError

    def files(self) -> list[Path]:
        """Its files: those with its name, alone or with an ending such as -lock, or all in its directory."""
        if self.path.is_dir():
            return [path for path in self.path.rglob("*") if path.is_file()]
        name = self.path.name
        return [each for each in self.path.parent.iterdir() if each.name == name or each.name.startswith(name + "-")]

    def size(self) -> int:
        """The length of all its files in bytes."""
        return sum(path.stat().st_size for path in self.files())

    def remove(self) -> None:
        """Remove its files; it is closed."""
        if self.path.is_dir():
            shutil.rmtree(self.path)
        else:
            for path in self.files():
                path.unlink()

    # ------------------------------------------------------------ reading: each returns how much it found

    def get(self, keys: Sequence[bytes]) -> int:
        """A get a key, all in one read transaction."""
        raise NotImplementedError

    def begin_get(self, keys: Sequence[bytes]) -> int:
        """A get a key, each in a read transaction of its own."""
        raise NotImplementedError

    def scan(self, *, reverse: bool) -> int:
        """All records in order."""
        raise NotImplementedError

    def ranges(self, starts: Sequence[bytes], length: int) -> int:
        """For each of `starts` the next `length` records, in one read transaction."""
        raise NotImplementedError

    def prefixes(self, prefixes: Sequence[bytes]) -> int:
        """For each of `prefixes` all records that begin with it, in one read transaction."""
        raise NotImplementedError

    def snapshot(self) -> contextlib.AbstractContextManager[object]:
        """An old reader: what is written in the block, its snapshot does not see."""
        raise NotImplementedError

    # ------------------------------------------------------------ writing

    def batch(self) -> contextlib.AbstractContextManager[Batch]:
        """One write transaction; it commits at the end of the block."""
        raise NotImplementedError

    def put_each(self, pairs: Sequence[Pair]) -> None:
        """A put each, each in a write transaction of its own. Threads may call it at the same time."""
        raise NotImplementedError

    def put_calls(self, pairs: Sequence[Pair]) -> None:
        """The same by the store's shortest call, where it has one that is a write transaction of its own."""
        self.put_each(pairs)

    def mixed(self, operations: Sequence[Operation]) -> int:
        """Gets and puts, each in a transaction of its own; how many gets found something."""
        raise NotImplementedError
