"""``cowdb get``: one value."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Final

from cowdb.cli.opening import add_path, add_timeout, add_tree, reading, tree_of
from cowdb.cli.output import FINE, USAGE, CommandError
from cowdb.cli.ranges import add_hex, given_key, mix

if TYPE_CHECKING:
    from cowdb.cli.output import Output
    from cowdb.lookup import Tree

__all__ = ["DESCRIPTION", "EXAMPLES", "arguments", "run"]

DESCRIPTION: Final = """
Prints the value of KEY. Into a pipe or a file it goes byte for byte, with nothing
added; a terminal gets it escaped, with an end of line. If there is no such key the
exit code is 1.
"""

EXAMPLES: Final = (
    ("cowdb get app.cowdb motto", "the value of motto in the main tree"),
    ("cowdb get app.cowdb --tree photos 42.jpg > 42.jpg", "a value into a file, byte for byte"),
    ("cowdb get app.cowdb --rank -1", "the entry with the greatest key"),
    (r"cowdb get app.cowdb 'a\x00b'", "a key with a zero byte in it"),
)


def arguments(parser: argparse.ArgumentParser) -> None:
    """See `cowdb.cli`."""
    add_path(parser)
    parser.add_argument("key", metavar="KEY", nargs="?", help="the key; none with --rank")
    add_tree(parser)
    parser.add_argument(
        "--rank", metavar="N", type=_whole, help="the entry at this place in key order: 0 is the first, -1 the last"
    )
    add_hex(parser)
    add_timeout(parser)
    mix(parser)


def run(args: argparse.Namespace, out: Output) -> int:
    """See `cowdb.cli`."""
    if (args.key is None) == (args.rank is None):
        raise CommandError("give either a KEY or --rank N", USAGE)
    with reading(args.file, args.timeout) as state:
        tree = tree_of(state, args.tree)
        if args.rank is None:
            key = given_key(args, args.key)
            found = tree.get(key)
            if found is None:
                raise CommandError(f"there is no key {out.key(key, 200)}")
            value = found
        else:
            key, value = _at(tree, args.rank)
    if out.machine:
        out.document({"tree": args.tree, "key": key, "value": value})
    elif args.rank is not None:
        out.facts([("key", out.key(key)), ("value", out.data(value))])
    elif out.terminal or out.show != "text":
        out.line(out.data(value))
    else:
        out.raw(value)
    return FINE


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number") from None


def _at(tree: Tree, rank: int) -> tuple[bytes, bytes]:
    place = rank + len(tree) if rank < 0 else rank
    if 0 <= place < len(tree):
        for item in tree.items(skip=place):
            return item
    raise CommandError(f"there is no entry at {rank}: the tree has {len(tree):,}")
