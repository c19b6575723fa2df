"""``cowdb count``: how many entries a range has, without reading them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from cowdb.cli.opening import add_path, add_timeout, add_tree, reading, tree_of
from cowdb.cli.output import FINE, USAGE, CommandError
from cowdb.cli.ranges import add_range, given_key, range_of

if TYPE_CHECKING:
    import argparse

    from cowdb.cli.output import Output

__all__ = ["DESCRIPTION", "EXAMPLES", "arguments", "run"]

DESCRIPTION: Final = """
Counts the keys of a range, or with --rank the keys below one. The pages carry
counts, so this reads a few pages, not the entries.
"""

EXAMPLES: Final = (
    ("cowdb count app.cowdb", "the entries of the main tree"),
    ("cowdb count app.cowdb --tree log --start 2024 --stop 2025", "those of a year"),
    ("cowdb count app.cowdb --rank motto", "how many keys are less than motto"),
)


def arguments(parser: argparse.ArgumentParser) -> None:
    """See `cowdb.cli`."""
    add_path(parser)
    add_tree(parser)
    add_range(parser)
    parser.add_argument("--rank", metavar="KEY", help="the keys that are less than this one")
    add_timeout(parser)


def run(args: argparse.Namespace, out: Output) -> int:
    """See `cowdb.cli`."""
    low, high = range_of(args)
    if args.rank is not None:
        if (low, high) != (None, None):
            raise CommandError("--rank counts from the first key of the tree; leave out the range", USAGE)
        high = given_key(args, args.rank)
    with reading(args.file, args.timeout) as state:
        count = tree_of(state, args.tree).count(low, high)
    if out.machine:
        out.document({"tree": args.tree, "start": low, "stop": high, "count": count})
    else:
        out.line(str(count))
    return FINE
