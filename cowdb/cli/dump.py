"""``cowdb dump``: all entries as text, exact, from one snapshot."""

from __future__ import annotations

import contextlib
import os
import stat
import sys
from typing import TYPE_CHECKING, Any, Final, TextIO

from cowdb.cli.batches import MARKS
from cowdb.cli.formats import BEGINNINGS, FORMATS, recognise, write
from cowdb.cli.opening import add_path, add_timeout, reading, tree_of
from cowdb.cli.output import FINE, USAGE, CommandError, are, counted
from cowdb.cli.outputfile import OutputFile
from cowdb.cli.ranges import mix

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable, Iterator

    from cowdb.cli.output import Output, Progress
    from cowdb.inspection import State
    from cowdb.lookup import Tree

__all__ = ["DESCRIPTION", "EXAMPLES", "arguments", "run"]

DESCRIPTION: Final = """
Writes every entry of every tree, from one snapshot, in a form that cowdb load reads
back exactly, whatever bytes they are: JSON Lines (jsonl), CSV (csv), or the text of
mdb_dump for LMDB (mdb) and of db_dump for Berkeley DB (bdb). A file appears under
its name when it is whole. --force replaces an earlier dump, and no other file.

JSON Lines are complete. CSV leaves out named trees that are empty. LMDB takes keys
of 1 to 511 bytes, unless it was built for more; Berkeley DB has either the main
tree or named ones in a file: choose with --tree.
"""

EXAMPLES: Final = (
    ("cowdb dump app.cowdb entries.jsonl", "everything, as JSON Lines"),
    ("cowdb dump app.cowdb --tree cows --as csv", "one tree as a table"),
    ("mkdir lmdb; cowdb dump app.cowdb --as mdb | mdb_load lmdb", "into LMDB, named trees as named databases"),
    ("cowdb dump app.cowdb --tree cows --plain --as bdb | db_load cows.db", "a tree into a Berkeley DB file"),
)

LMDB_KEY: Final = 511
"""Bytes of the longest key of LMDB as it is usually built."""

_BUFFER: Final = 1 << 18


def arguments(parser: argparse.ArgumentParser) -> None:
    """See `cowdb.cli`."""
    add_path(parser)
    parser.add_argument("output", metavar="OUTPUT", nargs="?", help="the file to write (default or -: standard output)")
    parser.add_argument(
        "--as", dest="form", choices=FORMATS, help="the format (default: by the ending of OUTPUT, else jsonl)"
    )
    parser.add_argument(
        "--tree", "-t", metavar="NAME", action="append", help="only this tree; may be given more than once"
    )
    parser.add_argument("--main", action="store_true", help="only the main tree, or beside --tree the main tree, too")
    parser.add_argument("--plain", action="store_true", help="with one --tree: leave its name out of the output")
    parser.add_argument(
        "--print",
        dest="printable",
        action="store_true",
        help="of mdb and bdb: bytes that print as they are, not in hex",
    )
    parser.add_argument("--force", action="store_true", help="replace OUTPUT, if it is a dump from before")
    add_timeout(parser)
    mix(parser)


def run(args: argparse.Namespace, out: Output) -> int:
    """See `cowdb.cli`."""
    form = args.form or (recognise(args.output) if args.output else None) or "jsonl"
    delimiter = "\t" if args.output and args.output.lower().endswith(".tsv") else ","
    if args.output == "-":
        args.output = None
    if out.show != "text":
        raise CommandError(f"dump writes keys and values whole, so --show {out.show} cannot be kept", USAGE)
    if args.plain and (args.main or len(args.tree or ()) != 1):
        raise CommandError("--plain is for one --tree", USAGE)
    if args.output is not None and not _is_stream(args.output):
        _output_file(args).refuse()
    with reading(args.file, args.timeout) as state:
        trees = _chosen(state, args)
        total = sum(len(tree) for _, tree in trees)
        watch = _Watch()
        with _progress(args, out) as tick:
            pieces = write(
                form,
                [(name, watch.over(tree, form, total, tick)) for name, tree in trees],
                ascii_only=args.output is None and out.terminal,
                printable=args.printable,
                map_size=_map_size(state),
                delimiter=delimiter,
            )
            try:
                _deliver(pieces, args, out)
            except ValueError as error:
                raise CommandError(str(error)) from None
    if watch.unfit and form == "mdb":
        out.note(
            f"{counted(watch.unfit, 'key')} {are(watch.unfit)} empty or longer than {LMDB_KEY} bytes: "
            "an LMDB that was not built for such stops there"
        )
    if args.output:
        _tell(args.output, watch.done, out)
    return FINE


@contextlib.contextmanager
def _progress(args: argparse.Namespace, out: Output) -> Iterator[Progress]:
    """Progress, unless the entries themselves go to the terminal, or to a program that may write there."""
    if args.output is None and not _is_file(sys.stdout):
        yield _no_progress
        return
    with out.progress(f"dumping {os.path.basename(args.file)}", "entries") as tick:
        yield tick


def _output_file(args: argparse.Namespace) -> OutputFile:
    return OutputFile(args.output, "dump", BEGINNINGS, force=args.force)


def _is_stream(path: str) -> bool:
    """Whether there is a pipe or a terminal: it is written to, and has no other name meanwhile."""
    try:
        mode = os.stat(path).st_mode
    except OSError:  # what is wrong is said when it is opened
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISCHR(mode)


def _is_file(stream: TextIO) -> bool:
    try:
        return stat.S_ISREG(os.fstat(stream.fileno()).st_mode)
    except OSError:  # it is no file of the system at all
        return False


def _no_progress(done: int, total: int) -> None:
    """Nobody looks."""


def _chosen(state: State, args: argparse.Namespace) -> list[tuple[str | None, Tree]]:
    """The trees to write, each with the name that it is written under; the main tree first."""
    if args.tree:
        names: list[str | None] = list(dict.fromkeys(args.tree))
        if args.main:
            names.insert(0, None)
    elif args.main:
        names = [None]
    else:
        names = [None, *(name for name in state.names() if name != MARKS)]
    return [(None if args.plain else name, tree_of(state, name)) for name in names]


def _map_size(state: State) -> int:
    """Bytes of a map that LMDB can hold this in. Its pages are smaller, and an empty map costs no disk."""
    return (3 * state.meta.page_count * state.page_size + (16 << 20)) // 4096 * 4096


class _Watch:
    """Counts the entries that go by."""

    def __init__(self) -> None:
        self.done = 0
        self.unfit = 0

    def over(self, tree: Tree, form: str, total: int, tick: Progress) -> Iterator[tuple[bytes, bytes]]:
        """The items of `tree`."""
        look = form == "mdb"
        for item in tree.items():
            if look and not 1 <= len(item[0]) <= LMDB_KEY:
                self.unfit += 1
            yield item
            self.done += 1
            if not self.done & 4095:
                tick(self.done, total)


def _deliver(pieces: Iterable[Any], args: argparse.Namespace, out: Output) -> None:
    """Write the pieces to where they are wanted."""
    if args.output is None:
        blocks = _blocks(pieces)
        if out.terminal:
            for block in blocks:
                for line in block.decode().splitlines():
                    out.line(line)
            return
        for block in blocks:
            out.raw(block)
        return
    with open(args.output, "wb") if _is_stream(args.output) else _output_file(args).writing() as file:
        for block in _blocks(pieces):
            file.write(block)


def _blocks(pieces: Iterable[Any]) -> Iterator[bytes]:
    """Text or bytes in small pieces, as bytes in larger ones."""
    gathered: list[Any] = []
    size = 0
    for piece in pieces:
        gathered.append(piece)
        size += len(piece)
        if size >= _BUFFER:
            yield _joined(gathered)
            gathered.clear()
            size = 0
    if gathered:
        yield _joined(gathered)


def _joined(pieces: list[Any]) -> bytes:
    return b"".join(pieces) if isinstance(pieces[0], bytes) else "".join(pieces).encode()


def _tell(path: str, entries: int, out: Output) -> None:
    if out.machine:
        out.document({"path": os.path.abspath(path), "entries": entries, "size": os.path.getsize(path)})
    else:
        out.line(f"{counted(entries, 'entry')} in {path}")
