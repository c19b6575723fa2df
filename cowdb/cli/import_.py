"""``cowdb import``: from a file of LMDB or SQLite, one transaction a batch, to be continued like ``cowdb load``."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any, Final

from cowdb.cli.batches import Batches, named_tree
from cowdb.cli.lines import BadInputError
from cowdb.cli.lmdbfile import LmdbFile, is_lmdb
from cowdb.cli.load import BadEntries, add_batch_options, stored_text, tell, tell_stop
from cowdb.cli.opening import add_path, writing
from cowdb.cli.output import FINDINGS, FINE, NOT_A_DATABASE, USAGE, CommandError
from cowdb.cli.sqlitefile import SqliteFile, is_sqlite

if TYPE_CHECKING:
    import argparse

    from cowdb.cli.output import Output
    from cowdb.database import Database

__all__ = ["DESCRIPTION", "EXAMPLES", "arguments", "run"]

DESCRIPTION: Final = """
Stores what SOURCE holds: an LMDB environment (its directory, or the file of one
without), or a table of an SQLite file. The database is made if there is none. The
source is read in one snapshot and left as it is; LMDB may make its lock file.

LMDB: the main database becomes the main tree, named ones named trees. It takes the
Python package lmdb. SQLite: a row becomes an entry; the key is the primary key or
--key, the value is --value, or the only other column, or a JSON object of the
others.

After an interruption, also by kill -9, the same command goes on where it stopped,
if the source is as it was; if not, give --restart. A row that cannot be stored ends
the command with its number and the reason: leave it out with --skip-bad, or mend it
and give the same command again, which then begins anew.
"""

EXAMPLES: Final = (
    ("cowdb import app.cowdb old-lmdb/", "a whole LMDB environment"),
    ("cowdb import app.cowdb old.mdb --database users", "one named database of an LMDB file"),
    ("cowdb import app.cowdb old.sqlite --table users --tree users", "a table: the primary key, and the rest as JSON"),
    ("cowdb import app.cowdb old.sqlite --table kv --key k --value v", "a table that was a key-value store"),
)

_BEGIN_ANEW: Final = "give the same command again, which then begins anew"


def arguments(parser: argparse.ArgumentParser) -> None:
    """See `cowdb.cli`."""
    add_path(parser)
    parser.add_argument("source", metavar="SOURCE", help="the LMDB directory or file, or the SQLite file")
    parser.add_argument("--table", metavar="NAME", help="SQLite: the table or view (default: the only one)")
    parser.add_argument("--key", metavar="COLUMN", help="SQLite: the column of the key (default: the primary key)")
    parser.add_argument("--value", metavar="COLUMN", help="SQLite: the column of the value (default: all others)")
    parser.add_argument(
        "--database", metavar="NAME", action="append",
        help="LMDB: only this named database; may be given more than once (default: all)",
    )  # fmt: skip
    add_batch_options(parser)


def run(args: argparse.Namespace, out: Output) -> int:
    """See `cowdb.cli`."""
    os.stat(args.source)  # says best what is wrong with the path
    lmdb = is_lmdb(args.source)
    if not lmdb and not is_sqlite(args.source):
        raise CommandError(
            f"{args.source!r} is neither an LMDB environment nor an SQLite file; for text take cowdb load",
            NOT_A_DATABASE,
        )
    if lmdb and (args.table or args.key or args.value):
        raise CommandError("--table, --key and --value are for SQLite, and this is LMDB", USAGE)
    if not lmdb and args.database:
        raise CommandError("--database is for LMDB, and this is SQLite: say --table", USAGE)
    if args.keep and args.duplicates == "last":
        raise CommandError("--keep leaves what is there, so the last of several cannot count: leave out one", USAGE)
    bad = BadEntries(out, args.source, "row" if not lmdb else "entry", skip=args.skip_bad)
    source: LmdbFile | SqliteFile
    if lmdb:
        source = LmdbFile(args.source, only=args.database, duplicates=args.duplicates, big_endian=args.big_endian)
    else:
        source = SqliteFile(
            args.source, bad, table=args.table, key=args.key, value=args.value, duplicates=args.duplicates,
            big_endian=args.big_endian, timeout=args.timeout,
        )  # fmt: skip
    try:
        with writing(args.file, args.timeout, create=True) as db:
            return _store(db, source, bad, args, out)
    finally:
        source.close()


def _store(db: Database, source: LmdbFile | SqliteFile, bad: BadEntries, args: argparse.Namespace, out: Output) -> int:
    named_tree(args.tree, db)
    options: dict[str, Any] = {
        "path": os.path.realpath(args.source),
        "snapshot": source.snapshot,
        "table": args.table,
        "key": args.key,
        "value": args.value,
        "database": args.database,
        "tree": args.tree,
        "keep": args.keep,
        "duplicates": args.duplicates,
        "big_endian": args.big_endian,
    }
    batches = Batches(db, options, tree=args.tree, keep=args.keep, size=args.batch)
    place = batches.earlier(restart=args.restart)
    if place is not None:
        out.note(f"going on: {stored_text(batches)} already")
    begun, before = time.monotonic(), batches.stored
    try:
        entries = source.entries(place)
        with out.progress(f"importing {os.path.basename(os.path.abspath(args.source))}", "entries") as tick:
            batches.take(
                entries, lambda: source.place, number=lambda: source.number, bad=bad,
                tick=lambda: tick(source.number, source.total),
            )  # fmt: skip
            batches.finish()
    except BadInputError as error:
        if args.batch:
            batches.finish()
        raise CommandError(f"{bad.sentence(error)}; {tell_stop(batches, _BEGIN_ANEW, atomic=not args.batch)}") from None
    except KeyboardInterrupt:
        out.note(f"{stored_text(batches)}; the same command goes on there")
        raise
    finally:
        batches.abandon()
    tell(out, batches, before, time.monotonic() - begun, bad.count)
    return FINDINGS if bad.count else FINE
