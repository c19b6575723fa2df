r"""The text format of ``mdb_dump`` and ``mdb_load``, which LMDB has from Berkeley DB.

    VERSION=3
    format=bytevalue           or print
    database=cows              a named database; without it, the main one
    type=btree
    mapsize=33554432           how large mdb_load makes the map; Berkeley DB does not know it
    HEADER=END
     616461                    a blank, then the key in hex
     416e677573                a blank, then the value
    DATA=END

Sections follow each other, one for each database; the main one must come
first, because mdb_load keeps the last name that it saw.  In the print form a
byte that prints stands for itself and each other one is ``\hh``.

The backslash itself is written ``\5c`` here, which every program of this kind
reads, and both ``\\`` and ``\5c`` are read.  LMDB's own mdb_dump wrote
it bare for a long time (0.9.24 does), so in its print form ``\ab`` may be one
byte or three characters: take the form with bytevalue where you can.
"""

from __future__ import annotations

import re
from binascii import hexlify, unhexlify
from typing import TYPE_CHECKING, Any, Final

from cowdb.cli.lines import BadInputError
from cowdb.cli.output import CommandError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from cowdb.cli.formats import Entry
    from cowdb.cli.lines import Lines, OnBad

__all__ = ["DumpReader", "refuse_duplicates", "write_dump"]

_PRINTS: Final = re.compile(rb"[^ -\[\]-~]")  # what does not print in ASCII, and the backslash
_ESCAPE: Final = re.compile(rb"\\(\\|[0-9a-fA-F]{2})?")
_HEADER_LINE: Final = re.compile(rb"([A-Za-z_0-9]+)=(.*)")
_D: Final = ord("D")
_ESCAPED: Final = [b"\\%02x" % byte for byte in range(256)]


def refuse_duplicates(name: str | None) -> CommandError:
    """A database keeps several values under a key, and nobody has said which of them counts."""
    what = "the main database" if name is None else f"the database {name!r}"
    return CommandError(
        f"{what} may hold several values under one key, and cowdb keeps one: say --duplicates first or last"
    )


def escaped(data: bytes) -> bytes:
    """`data` in the print form."""
    return _PRINTS.sub(lambda found: _ESCAPED[found[0][0]], data)


def write_dump(
    tree: str | None, items: Iterable[tuple[bytes, bytes]], *, printable: bool, map_size: int | None
) -> Iterator[bytes]:
    """One section; `map_size` in bytes for LMDB, None for Berkeley DB. ValueError if the name has an end of line."""
    head = [b"VERSION=3", b"format=print" if printable else b"format=bytevalue"]
    if tree is not None:
        if "\n" in tree or "\0" in tree:
            raise ValueError(f"this format has no way to write the name {tree!r}")
        head.append(b"database=" + tree.encode())
    head.append(b"type=btree")
    if map_size is not None:
        head += [b"mapsize=%d" % map_size, b"maxreaders=126"]
    head.append(b"HEADER=END\n")
    yield b"\n".join(head)
    form: Callable[[bytes], bytes] = escaped if printable else hexlify
    for key, value in items:
        yield b" %b\n %b\n" % (form(key), form(value))
    yield b"DATA=END\n"


class DumpReader:
    """Reads the sections; `section` is the one that it is in, or the one in which an earlier run ended.

    `duplicates` says which value counts where a key may have several: "first",
    "last", or None to refuse such a database.  With `big_endian` the keys of a
    database of integers are turned so that they sort as numbers.
    """

    def __init__(
        self,
        lines: Lines,
        bad: OnBad,
        *,
        duplicates: str | None = None,
        big_endian: bool = False,
        section: dict[str, Any] | None = None,
    ) -> None:
        self._lines = lines
        self._bad = bad
        self._duplicates = duplicates
        self._big_endian = big_endian
        self.section = section

    def __iter__(self) -> Iterator[Entry]:
        """The entries; at the beginning of each section its tree alone, so that an empty one is made, too."""
        lines, bad = self._lines, self._bad
        taken = iter(lines)
        search = False  # after a bad header, for the next one
        while True:
            section = self.section
            if section is None:
                try:
                    section = self._header(taken, search)
                except BadInputError as error:
                    bad(error)
                    search = True
                    continue
                search = False
                if section is None:
                    return
                self.section = section
                yield section["database"], None, b""
            yield from self._data(taken, section)
            if self.section is not None:
                ends = "the input ends in the middle of a database: there is no DATA=END"
                bad(BadInputError(lines.number, ends, lines.number + 1))
                self.section = None
                return

    def _data(self, taken: Iterator[bytes], section: dict[str, Any]) -> Iterator[Entry]:
        """The entries up to DATA=END, which ends the section, or to the end of the input, which does not."""
        lines, bad = self._lines, self._bad
        tree: str | None = section["database"]
        decode = _print_form if section["print"] else _hex_form
        first_only = section["duplicates"] and self._duplicates == "first"
        turn = section["integers"] and self._big_endian
        last = unhexlify(section["last"]) if section.get("last") is not None else None
        for line in taken:
            if line[0] == _D and _is_end(line):
                self.section = None
                return
            value_line = next(taken, b"")
            number = lines.number
            try:
                if not value_line or _is_end(value_line):
                    raise BadInputError(number, "the key in the line before has no value", number - bool(value_line))
                try:
                    key = decode(line)
                except ValueError as error:
                    raise BadInputError(number - 1, str(error)) from None
                try:
                    value = decode(value_line)
                except ValueError as error:
                    raise BadInputError(number, str(error), number - 1) from None
            except BadInputError as error:
                bad(error)
                if not value_line:
                    return
                if _is_end(value_line):
                    self.section = None
                    return
                continue
            if first_only:
                if key == last:
                    continue
                last = key
                section["last"] = hexlify(key).decode()
            yield tree, key[::-1] if turn else key, value

    def _header(self, taken: Iterator[bytes], search: bool) -> dict[str, Any] | None:
        """What the next header says; None at the end of the input. `search` passes over lines until one begins."""
        lines = self._lines
        found: dict[bytes, bytes] = {}
        start = None
        for raw in taken:
            line = raw.rstrip(b"\r\n")
            if start is None:
                if not line or (search and not line.startswith(b"VERSION=")):
                    continue
                start = lines.number
                if line not in (b"VERSION=3", b"VERSION=2"):
                    raise BadInputError(start, "a database begins with VERSION=3, and this line is something else")
                continue
            if line == b"HEADER=END":
                return self._section(found, start)
            match = _HEADER_LINE.fullmatch(line)
            if match is None:
                raise BadInputError(lines.number, "it is no name=value, and the header has not ended", start)
            found[match[1].lower()] = match[2]
        if start is None:
            return None
        raise BadInputError(lines.number, "the input ends within a header", start)

    def _section(self, found: dict[bytes, bytes], start: int) -> dict[str, Any]:
        kind = found.get(b"type", b"btree")
        if kind not in (b"btree", b"hash") or found.get(b"keys") == b"0":
            raise BadInputError(
                self._lines.number,
                f"databases of type {kind.decode(errors='replace')} have no keys of their own",
                start,
            )
        form = found.get(b"format", b"bytevalue")
        if form not in (b"bytevalue", b"print"):
            raise BadInputError(
                self._lines.number, f"the format is bytevalue or print, not {form.decode(errors='replace')}", start
            )
        try:
            name = found[b"database"].decode() if found.get(b"database") else None
        except UnicodeDecodeError:
            raise BadInputError(self._lines.number, "the name of the database is no UTF-8", start) from None
        several = any(found.get(flag) == b"1" for flag in (b"duplicates", b"dupsort"))
        if several and self._duplicates is None:
            raise refuse_duplicates(name)
        return {
            "database": name,
            "print": form == b"print",
            "duplicates": several,
            "integers": found.get(b"integerkey") == b"1",
        }


def _is_end(line: bytes) -> bool:
    return line.rstrip(b"\r\n") == b"DATA=END"


def _hex_form(line: bytes) -> bytes:
    """The bytes of a line in the bytevalue form; ValueError."""
    if line[:1] != b" ":
        raise ValueError("it does not begin with a blank, as keys and values do")
    try:
        return unhexlify(line[1:].rstrip(b"\r\n"))
    except ValueError:
        raise ValueError("it is no hex: two digits 0-9 or a-f for each byte") from None


def _print_form(line: bytes) -> bytes:
    """The bytes of a line in the print form; ValueError."""
    if line[:1] != b" ":
        raise ValueError("it does not begin with a blank, as keys and values do")
    text = line[1:].rstrip(b"\r\n")  # as data they are escaped
    return _ESCAPE.sub(_unescape, text) if b"\\" in text else text


def _unescape(found: re.Match[bytes]) -> bytes:
    what = found[1]
    if what is None:
        raise ValueError(r"it has a \ that is neither \\ nor \hh; an older mdb_dump -p writes such: leave out its -p")
    return b"\\" if what == b"\\" else unhexlify(what)
