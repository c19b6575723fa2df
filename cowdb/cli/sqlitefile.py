"""The rows of a table of an SQLite file as entries, read through Python's `sqlite3`.

key    a column: text as its UTF-8, a blob as it is, a number in decimal digits
value  a column in the same way, or all other columns as a JSON object
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import sqlite3
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

from cowdb.cli.lines import BadInputError
from cowdb.cli.output import IO_ERROR, LOCKED, NOT_A_DATABASE, USAGE, CommandError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cowdb.cli.formats import Entry
    from cowdb.cli.lines import OnBad

__all__ = ["SqliteFile", "is_sqlite"]

_MAGIC: Final = b"SQLite format 3\0"
_SIGN: Final = 1 << 63
_NONE: Final = object()
"""No row before: unlike NULL, it equals no key."""


def is_sqlite(path: str) -> bool:
    """Whether the file begins as SQLite's do."""
    try:
        with open(path, "rb") as file:
            return file.read(len(_MAGIC)) == _MAGIC
    except IsADirectoryError:
        return False


def _text(raw: bytes) -> str:
    """Text as SQLite gives it; what is no UTF-8 is kept."""
    return raw.decode(errors="surrogateescape")


def _name(name: str) -> str:
    """A name in SQL."""
    return '"' + name.replace('"', '""') + '"'


class SqliteFile:
    """The rows of one table, in the order of their keys."""

    def __init__(
        self,
        path: str,
        bad: OnBad,
        *,
        table: str | None,
        key: str | None,
        value: str | None,
        duplicates: str | None,
        big_endian: bool,
        timeout: float,
    ) -> None:
        """`table` None: the only one there is; `key` None: the primary key. Raises `CommandError`."""
        self._bad = bad
        self._duplicates = duplicates
        self._big_endian = big_endian
        self._path = path
        self.number = 0
        """Rows read so far."""
        with contextlib.ExitStack() as stack, self._errors():
            base = sqlite3.connect(
                f"file:{quote(os.fsencode(path))}?mode=ro", uri=True, isolation_level=None, timeout=timeout
            )
            stack.callback(base.close)
            base.text_factory = _text
            base.execute("BEGIN")  # all that follows sees one state
            self._base = base
            self._table = self._find_table(table)
            self._find_columns(key, value)
            self.total: int = base.execute(f"SELECT count(*) FROM {_name(self._table)}").fetchone()[0]  # noqa: S608 - quoted
            self.snapshot = [_stamp(path), _stamp(f"{path}-wal")]
            self._stack = stack.pop_all()

    def close(self) -> None:
        """Let the file go."""
        self._stack.close()

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            name = getattr(error, "sqlite_errorname", None) or ""
            code = IO_ERROR
            if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
                code = LOCKED
            elif name.startswith(("SQLITE_NOTADB", "SQLITE_CORRUPT")):
                code = NOT_A_DATABASE
            raise CommandError(f"SQLite cannot read {self._path!r}: {error}", code) from None

    def _find_table(self, table: str | None) -> str:
        query = (
            "SELECT name FROM sqlite_master WHERE type IN ('table', 'view') AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\'"
        )
        names = [row[0] for row in self._base.execute(query)]
        if table is None and len(names) == 1:
            return str(names[0])
        if table in names:
            return str(table)
        there = f"there are {', '.join(map(repr, names))}" if names else "there is none"
        if table is None:
            raise CommandError(f"say with --table which table of {self._path!r} is meant; {there}", USAGE)
        raise CommandError(f"there is no table {table!r} in {self._path!r}; {there}")

    def _find_columns(self, key: str | None, value: str | None) -> None:
        rows = self._base.execute(f"PRAGMA table_info({_name(self._table)})").fetchall()
        columns = [row[1] for row in rows]
        primary = [row[1] for row in rows if row[5]]
        if key is None:
            if len(primary) != 1:
                raise CommandError(
                    f"say with --key which column of {self._table!r} is the key: {', '.join(map(repr, columns))}", USAGE
                )
            key = primary[0]
        for name in (key, value):
            if name is not None and name not in columns:
                raise CommandError(
                    f"{self._table!r} has no column {name!r}, but {', '.join(map(repr, columns))}", USAGE
                )
        others = [name for name in columns if name != key]
        self._as_json = value is None and len(others) != 1
        self._key: str = key
        self._values: list[str] = others if value is None else [value]

    @property
    def place(self) -> Any:
        """How far the rows were read, as JSON."""
        return self.number

    def entries(self, place: Any = None) -> Iterator[Entry]:
        """The rows as entries, or those after `place`. Raises `CommandError`."""
        self.number = skip = int(place or 0)
        columns = ", ".join(map(_name, [self._key, *self._values]))
        query = (
            f"SELECT {columns} FROM {_name(self._table)} ORDER BY {_name(self._key)} COLLATE BINARY "  # noqa: S608 - quoted
            f"LIMIT -1 OFFSET {max(skip - 1, 0)}"
        )
        before: object = _NONE
        yield None, None, b""
        with self._errors():
            rows = self._base.execute(query)
            if skip:  # the row that was last: the next one may have its key
                last = rows.fetchone()
                before = _NONE if last is None else last[0]
            for row in rows:
                self.number += 1
                try:
                    entry = self._entry(row, before)
                except ValueError as error:
                    self._bad(BadInputError(self.number, str(error)))
                    continue
                before = row[0]
                if entry is not None:
                    yield entry

    def _entry(self, row: tuple[Any, ...], before: object) -> Entry | None:
        """The entry of a row; None if another row of its key counts. ValueError."""
        found = row[0]
        if found == before and type(found) is type(before):
            if self._duplicates is None:
                raise ValueError(
                    f"its {self._key!r} is that of the row before, and there is one value for a key: "
                    "say --duplicates first or last"
                )
            if self._duplicates == "first":
                return None
        key = self._bytes(found, self._key, key=True)
        if self._as_json:
            rest = {name: _in_json(cell) for name, cell in zip(self._values, row[1:], strict=True)}
            try:
                return None, key, json.dumps(rest, ensure_ascii=False, allow_nan=False).encode()
            except ValueError:
                raise ValueError("a number in it is infinite, which JSON does not know") from None
        return None, key, self._bytes(row[1], self._values[0])

    def _bytes(self, cell: Any, name: str, *, key: bool = False) -> bytes:
        if isinstance(cell, str):
            return cell.encode(errors="surrogateescape")
        if isinstance(cell, bytes):
            return cell
        if cell is None:
            raise ValueError(f"its {name!r} is NULL")
        if key and self._big_endian and isinstance(cell, int):
            return (cell + _SIGN).to_bytes(8, "big")
        return repr(cell).encode()


def _in_json(cell: Any) -> Any:
    if isinstance(cell, str):
        try:
            cell.encode()
        except UnicodeEncodeError:
            cell = cell.encode(errors="surrogateescape")
    if isinstance(cell, bytes):
        return {"base64": base64.b64encode(cell).decode()}
    return cell


def _stamp(path: str) -> list[int] | None:
    """What changes when a file does."""
    try:
        facts = os.stat(path)
    except FileNotFoundError:
        return None
    return [facts.st_size, facts.st_mtime_ns]
