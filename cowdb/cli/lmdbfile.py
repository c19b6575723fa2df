"""The entries of an LMDB environment, read with the `lmdb` package from one snapshot.

LMDB keeps its named databases as records of its main one.  They are told from
other records by opening them; each becomes a named tree.
"""

from __future__ import annotations

import contextlib
import importlib
import os
from typing import TYPE_CHECKING, Any, Final

from cowdb.cli.dumptext import refuse_duplicates
from cowdb.cli.output import IO_ERROR, NOT_A_DATABASE, CommandError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cowdb.cli.formats import Entry

__all__ = ["LmdbFile", "is_lmdb"]

_MAGIC: Final = 0xBEEFC0DE
_MAGIC_AT: Final = 16
_RECORD: Final = 48
"""Bytes of what LMDB keeps of a named database, so of the values that may be one."""

_MOST: Final = 10_000
"""Named databases that are opened at most; LMDB wants to know it beforehand."""


def is_lmdb(path: str) -> bool:
    """Whether there is an LMDB environment: a directory with data.mdb in it, or such a file."""
    name = os.path.join(path, "data.mdb") if os.path.isdir(path) else path
    try:
        with open(name, "rb") as file:
            head = file.read(_MAGIC_AT + 4)
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        return False
    magic = head[_MAGIC_AT:]
    return len(magic) == 4 and _MAGIC in (int.from_bytes(magic, "little"), int.from_bytes(magic, "big"))


class LmdbFile:
    """One snapshot of the environment at `path`. `duplicates` and `big_endian` are as for `DumpReader`."""

    def __init__(self, path: str, *, only: list[str] | None, duplicates: str | None, big_endian: bool) -> None:
        """`only` names the databases that are wanted, None: all. Raises `CommandError`."""
        try:
            self._lmdb: Any = importlib.import_module("lmdb")
        except ImportError:
            raise CommandError(
                "reading files of LMDB takes the Python package lmdb, which is not installed: install it "
                "(pip install lmdb), or do without: mdb_dump -a DIRECTORY | cowdb load FILE - --from mdb",
                IO_ERROR,
            ) from None
        self._duplicates = duplicates
        self._big_endian = big_endian
        self._done: tuple[str | None, bytes] | None = None
        self.number = 0
        """Entries read so far."""
        folder = path if os.path.isdir(path) else os.path.dirname(os.path.abspath(path))
        with contextlib.ExitStack() as stack, self._errors(path):
            env = self._lmdb.open(
                path, subdir=os.path.isdir(path), readonly=True, create=False, max_dbs=_MOST,
                lock=os.access(folder, os.W_OK), readahead=True,
            )  # fmt: skip
            stack.callback(env.close)
            self._txn = env.begin()
            stack.callback(self._txn.abort)
            self.snapshot = self._txn.id()
            self._databases = self._find(env, only)
            self.total = sum(self._txn.stat(database)["entries"] for database, _, _ in self._databases.values())
            self._path = path
            self._stack = stack.pop_all()

    def close(self) -> None:
        """Let the environment go."""
        self._stack.close()

    @contextlib.contextmanager
    def _errors(self, path: str) -> Iterator[None]:
        try:
            yield
        except self._lmdb.Error as error:
            kinds = (self._lmdb.InvalidError, self._lmdb.VersionMismatchError, self._lmdb.CorruptedError)
            raise CommandError(
                f"LMDB cannot read {path!r}: {error}", NOT_A_DATABASE if isinstance(error, kinds) else IO_ERROR
            ) from None

    def _find(self, env: Any, only: list[str] | None) -> dict[str | None, tuple[Any, dict[str, bool], set[bytes]]]:
        """The databases by name, the main one first: handle, flags, and keys that are no entries."""
        txn = self._txn
        main = env.open_db(None, txn=txn)
        found: dict[str | None, tuple[Any, dict[str, bool], set[bytes]]] = {}
        inner: set[bytes] = set()
        names: list[tuple[str, Any]] = []
        flags = main.flags(txn)
        if not flags["dupsort"]:
            for key, value in txn.cursor(main):
                if len(value) != _RECORD or b"\0" in key or not key:
                    continue
                try:
                    database = env.open_db(key, txn=txn, create=False)
                except (self._lmdb.IncompatibleError, self._lmdb.NotFoundError):
                    continue
                inner.add(key)
                try:
                    names.append((key.decode(), database))
                except UnicodeDecodeError:
                    raise CommandError(f"the name of a database of it is no UTF-8: {key!r}") from None
        if only is None:
            found[None] = (main, flags, inner)
        for name, database in names:
            if only is None or name in only:
                found[name] = (database, database.flags(txn), set())
        for name in only or ():
            if name not in found:
                there = ", ".join(repr(name) for name, _ in names[:10]) or "none"
                raise CommandError(f"there is no database {name!r} in it; named ones are: {there}")
        for name_or_main, (_, kinds, _) in found.items():
            if kinds["dupsort"] and self._duplicates is None:
                raise refuse_duplicates(name_or_main)
        return found

    @property
    def place(self) -> Any:
        """How far the entries were read, as JSON."""
        if self._done is None:
            return None
        name, key = self._done
        return [name, key.hex(), self.number]

    def entries(self, place: Any = None) -> Iterator[Entry]:
        """The entries of all databases in order, or those after `place`. Raises `CommandError`."""
        after: tuple[str | None, bytes] | None = None
        if place is not None:
            after = (place[0], bytes.fromhex(place[1]))
            self._done, self.number = after, place[2]
        waiting = after is not None
        with self._errors(self._path):
            for name, (database, flags, inner) in self._databases.items():
                if waiting and after is not None and name != after[0]:
                    continue
                start = after[1] if waiting and after is not None else None
                waiting = False
                yield name, None, b""
                yield from self._items(name, database, flags, inner, start)

    def _items(
        self, name: str | None, database: Any, flags: dict[str, bool], inner: set[bytes], after: bytes | None
    ) -> Iterator[Entry]:
        cursor = self._txn.cursor(database)
        if after is None:
            there = cursor.first()
        else:
            there = cursor.set_range(after)
            if there and cursor.key() == after:
                there = cursor.next_nodup()
        if not there:
            return
        turn = flags["integerkey"] and self._big_endian
        several = flags["dupsort"]
        for key, value in cursor.iternext_nodup(keys=True, values=True) if several else cursor.iternext():
            if key in inner:
                continue
            kept = value
            if several and self._duplicates == "last":
                cursor.last_dup()
                kept = cursor.value()
            self._done = (name, key)
            self.number += 1
            yield name, key[::-1] if turn else key, kept
