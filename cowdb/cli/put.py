"""``cowdb put``: store one entry."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Final

from cowdb.cli.batches import named_tree
from cowdb.cli.opening import add_path, add_timeout, add_tree, writing
from cowdb.cli.output import FINDINGS, FINE, IO_ERROR, USAGE, CommandError
from cowdb.cli.ranges import add_hex, given_key, mix

if TYPE_CHECKING:
    import argparse

    from cowdb.cli.output import Output

__all__ = ["DESCRIPTION", "EXAMPLES", "arguments", "run"]

DESCRIPTION: Final = """
Stores VALUE under KEY, in a durable transaction of its own. A named tree that is
not there is made. For many entries take cowdb load.
"""

EXAMPLES: Final = (
    ("cowdb put app.cowdb motto moo", "one entry in the main tree"),
    ("cowdb put app.cowdb --create motto moo", "the same, and the file is made if there is none"),
    ("cowdb put app.cowdb --tree photos 42.jpg --value-file 42.jpg", "a file as the value"),
    ("date | cowdb put app.cowdb today --value-file -", "the standard input as the value"),
)


def arguments(parser: argparse.ArgumentParser) -> None:
    """See `cowdb.cli`."""
    add_path(parser)
    parser.add_argument("key", metavar="KEY", help="the key")
    parser.add_argument("value", metavar="VALUE", nargs="?", help="the value")
    parser.add_argument("--value-file", metavar="PATH", help="take the value from this file; - is the standard input")
    add_tree(parser)
    parser.add_argument(
        "--keep", action="store_true", help="leave a value that is there already; the exit code is then 1"
    )
    parser.add_argument("--create", action="store_true", help="make the database if there is none")
    add_hex(parser)
    add_timeout(parser)
    mix(parser)


def run(args: argparse.Namespace, out: Output) -> int:
    """See `cowdb.cli`."""
    if (args.value is None) == (args.value_file is None):
        raise CommandError("give either a VALUE or --value-file PATH", USAGE)
    key = given_key(args, args.key)
    value = _from_file(args.value_file) if args.value is None else given_key(args, args.value)
    if not args.create and not os.path.exists(args.file):
        raise CommandError(f"there is no file {args.file!r}; --create makes it", IO_ERROR)
    with writing(args.file, args.timeout, create=args.create) as db, db.write() as txn:
        named_tree(args.tree, db)
        tree = txn if args.tree is None else txn.tree(args.tree, create=True)
        stored = tree.put(key, value, overwrite=not args.keep)
    if out.machine:
        out.document({"tree": args.tree, "key": key, "stored": stored})
    elif not stored:
        out.note(f"{out.key(key, 200)} is there already; it was left as it is")
    return FINE if stored else FINDINGS


def _from_file(path: str) -> bytes:
    if path == "-":
        return sys.stdin.buffer.read()
    with open(path, "rb") as file:
        return file.read()
