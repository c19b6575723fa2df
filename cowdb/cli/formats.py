"""The text formats that entries are moved in, by name.

    jsonl   JSON Lines                          cowdb/cli/jsonlines.py
    csv     comma-separated values              cowdb/cli/csvtext.py
    mdb     the format of mdb_dump/mdb_load     cowdb/cli/dumptext.py
    bdb     the same, as Berkeley DB's db_load takes it

An entry is a tree's name (None: the main tree), a key and a value.  A key of
None says only that there is such a tree.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import BinaryIO

    from cowdb.cli.lines import Lines, OnBad

__all__ = ["BEGINNINGS", "FORMATS", "READABLE", "Entry", "Reading", "recognise", "write"]

Entry = tuple[str | None, bytes | None, bytes]

READABLE: Final = ("jsonl", "csv", "mdb")
FORMATS: Final = (*READABLE, "bdb")

BEGINNINGS: Final = (
    b'{"key": ', b'{"tree": ',
    b"key,value\r\n", b"tree,key,value\r\n", b"key\tvalue\r\n", b"tree\tkey\tvalue\r\n",
    b"VERSION=3\nformat=",
)  # fmt: skip
"""What everything that `write` writes begins with, but for what is empty."""

_ENDINGS: Final = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".csv": "csv",
    ".tsv": "csv",
    ".dump": "mdb",
}


def recognise(path: str, file: BinaryIO | None = None) -> str | None:
    """The format of an input by its first bytes (`file` has `peek`), else by the ending of its name; None: unknown."""
    head = b"" if file is None else file.peek(64)[:64]  # type: ignore[attr-defined]  # it is buffered
    head = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if head.startswith(b"VERSION="):
        return "mdb"
    if head.startswith(b"{"):
        return "jsonl"
    return _ENDINGS.get(os.path.splitext(path)[1].lower())


class Reading:
    """The entries of an input in one format; `state` is what goes with a position in it, for going on later."""

    def __init__(
        self,
        name: str,
        lines: Lines,
        bad: OnBad,
        *,
        key: str | None = None,
        value: str | None = None,
        delimiter: str = ",",
        duplicates: str | None = None,
        big_endian: bool = False,
        state: Any = None,
    ) -> None:
        """`key` and `value` name members or columns of what is not cowdb's own; see each format."""
        self._csv = self._dump = None
        self.entries: Iterable[Entry]
        if name == "jsonl":
            from cowdb.cli.jsonlines import read_documents, read_json_lines  # noqa: PLC0415 - one format of three

            if key is None:
                self.entries = read_json_lines(lines, bad)
            else:
                self.entries = read_documents(lines, bad, key, value)
        elif name == "csv":
            from cowdb.cli.csvtext import CsvReader  # noqa: PLC0415 - one format of three

            self._csv = CsvReader(lines, bad, key=key, value=value, delimiter=delimiter, columns=state)
            self.entries = self._csv
        else:
            from cowdb.cli.dumptext import DumpReader  # noqa: PLC0415 - one format of three

            self._dump = DumpReader(lines, bad, duplicates=duplicates, big_endian=big_endian, section=state)
            self.entries = self._dump

    @property
    def state(self) -> Any:
        """What the format has to know besides the position, as JSON."""
        if self._csv is not None:
            return self._csv.columns
        return None if self._dump is None else self._dump.section


def write(
    name: str,
    trees: list[tuple[str | None, Iterable[tuple[bytes, bytes]]]],
    *,
    ascii_only: bool = False,
    printable: bool = False,
    map_size: int = 1 << 20,
    delimiter: str = ",",
) -> Iterator[str] | Iterator[bytes]:
    """The text of all `trees`, in small pieces; ValueError where the format cannot say something."""
    if name == "jsonl":
        return _json_lines(trees, ascii_only)
    if name == "csv":
        from cowdb.cli.csvtext import write_csv  # noqa: PLC0415 - one format of three

        with_tree = any(tree is not None for tree, _ in trees)
        return write_csv(trees, with_tree=with_tree, delimiter=delimiter)
    from cowdb.cli.dumptext import write_dump  # noqa: PLC0415 - one format of three

    sizes = map_size if name == "mdb" else None
    return (piece for tree, items in trees for piece in write_dump(tree, items, printable=printable, map_size=sizes))


def _json_lines(trees: list[tuple[str | None, Iterable[tuple[bytes, bytes]]]], ascii_only: bool) -> Iterator[str]:
    import json  # noqa: PLC0415 - one format of three

    from cowdb.cli.jsonlines import write_json_lines  # noqa: PLC0415 - one format of three

    for tree, items in trees:
        empty = True
        for line in write_json_lines(tree, items, ascii_only=ascii_only):
            empty = False
            yield line
        if empty and tree is not None:
            yield json.dumps({"tree": tree}, ensure_ascii=ascii_only) + "\n"
