r"""Entries as CSV (RFC 4180), exact for any bytes.

    key,value                          tree,key,value
    ada,Angus                          cows,ada,Angus
    bess,"two, or more"                ,motto,moo              no tree: the main one
    base64:AAEC/w==,Jersey

CSV knows only text.  A cell stands for its UTF-8, except that what begins with
``base64:`` stands for the bytes of that base64.  So written as base64 is what

    is no UTF-8,
    begins with base64: itself, or
    has control characters other than tab and newline, which tools tend to lose.

Tables that were not written by cowdb are read by the names of their columns:
the key is one, the value another, or all others as a JSON object; their cells
are taken as they are.
"""

from __future__ import annotations

import binascii
import csv
import json
import re
from typing import TYPE_CHECKING, Any, Final

from cowdb.cli.lines import LONGEST, BadInputError
from cowdb.cli.output import counted

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from cowdb.cli.formats import Entry
    from cowdb.cli.lines import Lines, OnBad

__all__ = ["CsvReader", "csv_cell", "write_csv"]

_MARK: Final = "base64:"
_FRAGILE: Final = re.compile("[\0-\x08\x0b-\x1f\x7f]")
_COLUMNS: Final = ("tree", "key", "value")


def csv_cell(data: bytes) -> str:
    """The cell that stands for `data`."""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        pass
    else:
        if not text.startswith(_MARK) and not _FRAGILE.search(text):
            return text
    return _MARK + binascii.b2a_base64(data, newline=False).decode()


class _Sink:
    """A file that hands on what the csv module writes into it."""

    def __init__(self) -> None:
        self.pieces: list[str] = []
        self.write = self.pieces.append

    def take(self) -> str:
        text = "".join(self.pieces)
        self.pieces.clear()
        return text


def write_csv(
    trees: Iterable[tuple[str | None, Iterable[tuple[bytes, bytes]]]], *, with_tree: bool, delimiter: str = ","
) -> Iterator[str]:
    """A table of all entries of `trees`, its header first; `with_tree` gives it the column of the tree's name."""
    sink = _Sink()
    row = csv.writer(sink, delimiter=delimiter).writerow  # ends each line with \r\n, so it quotes both of them
    row(_COLUMNS if with_tree else _COLUMNS[1:])
    yield sink.take()
    pieces = sink.pieces
    for tree, items in trees:
        name = tree or ""
        for key, value in items:
            if with_tree:
                row((name, csv_cell(key), csv_cell(value)))
            else:
                row((csv_cell(key), csv_cell(value)))
            yield pieces.pop()


class CsvReader:
    """Reads a table; `columns` are its header's, which is the first line or comes from an earlier run.

    `key` and `value` name the columns of a table that is not cowdb's own.
    """

    def __init__(
        self,
        lines: Lines,
        bad: OnBad,
        *,
        key: str | None = None,
        value: str | None = None,
        delimiter: str = ",",
        columns: list[str] | None = None,
    ) -> None:
        self._lines = lines
        self._bad = bad
        self._foreign = key is not None or value is not None
        self._key = "key" if key is None else key
        self._value = value if self._foreign else "value"
        self._delimiter = delimiter
        self.columns = columns

    def _text(self) -> Iterator[str]:
        for line in self._lines:
            # What is no UTF-8 passes here and fails in its cell, where the line is known.
            text = line.decode(errors="surrogateescape")
            yield text.removeprefix("\ufeff") if self._lines.number == 1 else text

    def __iter__(self) -> Iterator[Entry]:
        """The entries."""
        lines, bad = self._lines, self._bad
        csv.field_size_limit(LONGEST - 1)
        rows = csv.reader(self._text(), delimiter=self._delimiter, strict=True)
        make = None if self.columns is None else self._maker(self.columns)
        start = lines.number + 1
        while True:
            try:
                row = next(rows)
                if not row:
                    pass
                elif make is None:
                    make = self._maker(row)
                    self.columns = row
                    yield None, None, b""  # no entry, but a place from which one can go on
                else:
                    entry = make(row)
                    yield entry
            except StopIteration:
                return
            except csv.Error as error:
                bad(BadInputError(start, f"it is no CSV: {error}", start))
            except ValueError as error:
                if isinstance(error, BadInputError):
                    raise
                bad(BadInputError(start, str(error), start))
                if make is None:
                    return  # without its header the table means nothing
            start = lines.number + 1

    def _maker(self, columns: list[str]) -> Any:
        """Makes entries of rows; ValueError if the columns are not there."""
        width = len(columns)
        wanted = [self._key, *([] if self._value is None else [self._value])]
        for name in wanted:
            if columns.count(name) != 1:
                many = "no column" if name not in columns else "more than one column"
                hint = "" if self._foreign else "; name the columns with --key and --value"
                raise ValueError(f"the header has {many} {name!r}, but {_names(columns)}{hint}")
        key_at = columns.index(self._key)
        value_at = None if self._value is None else columns.index(self._value)
        others = [index for index in range(width) if index != key_at]
        if value_at is None and len(others) == 1:
            value_at = others[0]
        tree_at = None
        if not self._foreign:
            unknown = [name for name in columns if name not in _COLUMNS]
            if unknown:
                raise ValueError(f"the header has a column {unknown[0]!r}; name the columns with --key and --value")
            tree_at = columns.index("tree") if "tree" in columns else None
        read = _plain if self._foreign else _bytes

        def make(row: list[str]) -> Entry:
            if len(row) != width:
                raise ValueError(f"it has {counted(len(row), 'cell')}, where the header has {width}")
            tree = row[tree_at] if tree_at is not None else None
            if value_at is not None:
                return tree or None, read(row[key_at]), read(row[value_at])
            others_of = {columns[index]: row[index] for index in others}
            return tree or None, read(row[key_at]), read(json.dumps(others_of, ensure_ascii=False))

        return make


def _names(columns: list[str]) -> str:
    """The names of the columns, for a sentence."""
    shown = [repr(name if len(name) <= 40 else f"{name[:37]}...") for name in columns[:10]]
    return ", ".join(shown) + (f" and {len(columns) - 10} more" if len(columns) > 10 else "")


def _plain(cell: str) -> bytes:
    try:
        return cell.encode()
    except UnicodeEncodeError:
        raise ValueError("it is no UTF-8; save the table as UTF-8 first") from None


def _bytes(cell: str) -> bytes:
    """The bytes that a cell of cowdb's own stands for; ValueError."""
    if cell.startswith(_MARK):
        try:
            return binascii.a2b_base64(cell[len(_MARK) :], strict_mode=True)
        except ValueError as error:
            raise ValueError(f"the base64 of {cell[:40]!r} is broken: {error}") from None
    return _plain(cell)
