"""``cowdb load``: entries from a text file, one transaction a batch, to be continued after an interruption."""

from __future__ import annotations

import contextlib
import os
import stat
import sys
import time
from typing import TYPE_CHECKING, Any, BinaryIO, Final

from cowdb.cli.batches import BATCH, Batches, named_tree
from cowdb.cli.formats import READABLE, Reading, recognise
from cowdb.cli.lines import START, BadInputError, Lines, Position
from cowdb.cli.lmdbfile import is_lmdb
from cowdb.cli.opening import add_path, add_timeout, natural, writing
from cowdb.cli.output import FINDINGS, FINE, USAGE, CommandError, are, counted

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator

    from cowdb.cli.output import Output, Progress
    from cowdb.database import Database

__all__ = [
    "DESCRIPTION",
    "EXAMPLES",
    "BadEntries",
    "add_batch_options",
    "arguments",
    "run",
    "stored_text",
    "tell",
    "tell_stop",
]

DESCRIPTION: Final = r"""
Stores the entries of INPUT: JSON Lines, CSV, or the text of mdb_dump and db_dump.
The database is made if there is none. Each batch is one durable transaction, with
a mark in the database that says how far it came; so after an interruption, also by
kill -9 or a power cut, the same command goes on where it stopped: nothing is lost
and nothing is stored twice. The standard input cannot be read again: save it in a
file first, if you want to go on after an interruption.

JSON Lines: {"key": "k", "value": "v"}, with "tree" for a named tree. A string is
its UTF-8; other bytes are {"base64": "..."}. CSV: a header with key, value and
perhaps tree; cells that begin with base64: are other bytes. Files with members or
columns of their own are read with --key and --value; without --value the value is
the whole line (JSON) or an object of the other columns (CSV).

A line that cannot be read ends the command with its number and the reason; what
comes before it is stored. Mend the line, and the same command goes on there; or
leave such lines out with --skip-bad. A new database in which nothing was stored is
removed again.
"""

EXAMPLES: Final = (
    ("cowdb load app.cowdb entries.jsonl", "what cowdb dump wrote, or you did"),
    ("cowdb load app.cowdb people.jsonl --key id --tree people", "any JSON Lines: the member id is the key"),
    ("cowdb load app.cowdb words.csv --key word --value meaning", "two columns of a table"),
    ("mdb_dump -a old-lmdb | cowdb load app.cowdb - --from mdb", "all named databases of LMDB"),
    ("db_dump -p old.db | cowdb load app.cowdb - --from mdb", "a Berkeley DB file"),
)

_GO_ON: Final = "give the same command again to go on"
_BEGIN_ANEW: Final = "load all of it again"

_TOLD: Final = 20
"""Bad entries that are told one by one."""


def arguments(parser: argparse.ArgumentParser) -> None:
    """See `cowdb.cli`."""
    add_path(parser)
    parser.add_argument("input", metavar="INPUT", help="the file to load; - is the standard input")
    parser.add_argument(
        "--from",
        dest="form",
        choices=READABLE,
        help="the format of INPUT (default: by its first bytes, else by the ending of its name)",
    )
    parser.add_argument("--key", metavar="NAME", help="the member (JSON) or column (CSV) that is the key")
    parser.add_argument("--value", metavar="NAME", help="the member or column that is the value")
    parser.add_argument("--delimiter", metavar="CHARACTER", default=",", help=r"of CSV: a comma (default), ';', '\t'")
    add_batch_options(parser)


def add_batch_options(parser: argparse.ArgumentParser) -> None:
    """Add what `load` and `import` have in common."""
    parser.add_argument("--tree", "-t", metavar="NAME", help="store all entries in this tree, whatever tree they name")
    parser.add_argument("--keep", action="store_true", help="leave entries as they are whose key is there already")
    parser.add_argument(
        "--skip-bad", action="store_true", help="leave out entries that cannot be read; the exit code is then 1"
    )
    parser.add_argument(
        "--duplicates",
        choices=("first", "last"),
        help="which value counts in an LMDB or Berkeley DB database with several under one key (default: refuse it)",
    )
    parser.add_argument(
        "--big-endian",
        action="store_true",
        help="store the keys of databases of integers so that they sort as numbers here, too",
    )
    parser.add_argument(
        "--batch", metavar="N", type=natural, default=BATCH,
        help=f"entries in one transaction (default: {BATCH}); 0: all in one, so all or nothing",
    )  # fmt: skip
    parser.add_argument("--restart", action="store_true", help="begin anew, where an earlier run was interrupted")
    add_timeout(parser)


class BadEntries:
    """Is told of bad entries: the first one stops the command, or all are counted and the first few told."""

    def __init__(self, out: Output, name: str, unit: str, *, skip: bool) -> None:
        self._out = out
        self._name = name
        self._unit = unit
        self._skip = skip
        self.count = 0

    def __call__(self, bad: BadInputError) -> None:
        """See `lines.OnBad`."""
        if not self._skip:
            raise bad
        self.count += 1
        if self.count <= _TOLD:
            self._out.note(self.sentence(bad))
        elif self.count == _TOLD + 1:
            self._out.note("more are left out; they are counted")

    def sentence(self, bad: BadInputError) -> str:
        """What is bad, for a person."""
        return f"{self._name}, {self._unit} {bad.line}: {bad.reason}"


def run(args: argparse.Namespace, out: Output) -> int:
    """See `cowdb.cli`."""
    delimiter = "\t" if args.delimiter in ("\\t", "tab") else args.delimiter
    if len(delimiter) != 1 or delimiter in '"\r\n':
        raise CommandError("a delimiter is one character, and neither a quote nor an end of line", USAGE)
    if args.value is not None and args.key is None:
        raise CommandError("--value needs --key", USAGE)
    with _input(args.input) as file:
        form = args.form or recognise(args.input, file)
        if form is None and b"\0" in file.peek(100)[:100]:  # type: ignore[attr-defined]  # it is buffered
            raise CommandError(f"{args.input!r} is no text; cowdb import takes files of LMDB and SQLite", USAGE)
        if form is None:
            raise CommandError(f"what format {args.input!r} has cannot be seen; say it with --from", USAGE)
        if args.key is not None and form == "mdb":
            raise CommandError("--key and --value are for JSON Lines and CSV", USAGE)
        source = {
            "path": "-" if args.input == "-" else os.path.realpath(args.input),
            "format": form,
            "key": args.key,
            "value": args.value,
            "delimiter": delimiter,
            "tree": args.tree,
            "keep": args.keep,
            "duplicates": args.duplicates,
            "big_endian": args.big_endian,
        }
        with writing(args.file, args.timeout, create=True) as db:
            return _load(db, file, source, args, out)


@contextlib.contextmanager
def _input(path: str) -> Iterator[BinaryIO]:
    if path == "-":
        yield sys.stdin.buffer
        return
    if os.path.isdir(path) and is_lmdb(path):
        raise CommandError(f"{path!r} is an LMDB environment; cowdb import takes it", USAGE)
    with open(path, "rb", buffering=1 << 20) as file:
        yield file


def _load(db: Database, file: BinaryIO, source: dict[str, Any], args: argparse.Namespace, out: Output) -> int:
    """Read and store; the exit code."""
    named_tree(args.tree, db)
    # A pipe, under whatever name, gives its bytes once.
    seekable = args.input != "-" and stat.S_ISREG(os.fstat(file.fileno()).st_mode)
    batches = Batches(db, source, tree=args.tree, keep=args.keep, size=args.batch)
    earlier = batches.earlier(restart=args.restart) if seekable else None
    try:
        position, state = (START, None) if earlier is None else (Position(*earlier[0]), earlier[1])
        lines = Lines(file, position)
    except (ValueError, TypeError):
        raise CommandError(
            f"{args.input!r} was loaded in part before, and that part has changed since; --restart begins anew"
        ) from None
    if earlier is not None:
        out.note(f"going on after line {position.lines:,}: {stored_text(batches)} already")
    bad = BadEntries(out, args.input, "line", skip=args.skip_bad)
    try:
        reading = Reading(
            source["format"], lines, bad, key=args.key, value=args.value, delimiter=source["delimiter"],
            duplicates=args.duplicates, big_endian=args.big_endian, state=state,
        )  # fmt: skip
        begun, before = time.monotonic(), batches.stored
        size = os.fstat(file.fileno()).st_size if seekable else 0

        def place(upto: int | None = None) -> Any:
            done = lines.settle(upto)
            return [list(done), reading.state] if seekable else None

        with out.progress(f"loading {os.path.basename(args.input)}", "bytes") as tick:
            batches.take(reading.entries, place, number=lambda: lines.number, bad=bad, tick=_ticker(lines, size, tick))
            batches.finish()
    except BadInputError as error:
        if args.batch:
            batches.finish(place(error.start - 1))
        raise CommandError(
            f"{bad.sentence(error)}; " + tell_stop(batches, _GO_ON if seekable else _BEGIN_ANEW, atomic=not args.batch)
        ) from None
    except KeyboardInterrupt:
        out.note(stored_text(batches) + ("; the same command goes on there" if seekable else ""))
        raise
    finally:
        batches.abandon()
    tell(out, batches, before, time.monotonic() - begun, bad.count)
    return FINDINGS if bad.count else FINE


def _ticker(lines: Lines, size: int, tick: Progress) -> Callable[[], None]:
    """Settles what is read, so that its lines need not be kept: what is bad later begins later."""
    return lambda: tick(lines.settle().offset, size)


def stored_text(batches: Batches) -> str:
    """How many entries are stored, as a sentence."""
    return f"{counted(batches.stored, 'entry')} {are(batches.stored)} stored"


def tell_stop(batches: Batches, way_on: str, *, atomic: bool) -> str:
    """What is stored when an input ended at a bad entry, and the `way_on` from there."""
    if atomic or not batches.stored:
        return "nothing was stored; --skip-bad leaves out what is bad"
    count = batches.stored
    before = f"the {counted(count, 'entry')} before it {are(count)} stored"
    return f"{before}; give --skip-bad to leave it out, or mend it and {way_on}"


def tell(out: Output, batches: Batches, before: int, seconds: float, bad: int) -> None:
    """What was stored, and how fast."""
    stored = batches.stored - before
    if out.machine:
        out.document(
            {
                "stored": stored,
                "stored_before": before,
                "bad": bad,
                "transactions": batches.transactions,
                "seconds": round(seconds, 3),
            }
        )
        return
    rate = f", {stored / seconds:,.0f}/s" if seconds > 0.05 else ""
    out.line(f"{counted(stored, 'entry')} stored in {seconds:.1f} s{rate}" + (f"; {bad:,} left out" if bad else ""))
