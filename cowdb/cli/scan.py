"""``cowdb scan``: the entries of a range, in key order."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Any, Final

from cowdb.cli.opening import add_path, add_timeout, add_tree, natural, reading, tree_of
from cowdb.cli.output import FINE, Column
from cowdb.cli.ranges import add_range, range_of

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from cowdb.cli.output import Output
    from cowdb.lookup import Tree

__all__ = ["DESCRIPTION", "EXAMPLES", "arguments", "run"]

DESCRIPTION: Final = """
Shows entries in the order of their keys, from one snapshot. With --ranks each has
its rank, the number of keys below it; --rank begins at one. Finding the place takes
a few pages, however large the tree is. To move data take cowdb dump, which is
exact.
"""

EXAMPLES: Final = (
    ("cowdb scan app.cowdb --limit 10", "the first ten entries of the main tree"),
    ("cowdb scan app.cowdb --prefix user: --keys", "all keys that begin so"),
    ("cowdb scan app.cowdb --tree log --reverse --limit 20", "the last twenty, last first"),
    ("cowdb scan app.cowdb --rank 500000 --limit 3 --ranks", "three entries from the middle of a million"),
)


def arguments(parser: argparse.ArgumentParser) -> None:
    """See `cowdb.cli`."""
    add_path(parser)
    add_tree(parser)
    add_range(parser)
    parser.add_argument("--limit", "-n", metavar="N", type=natural, help="at most so many entries")
    parser.add_argument("--reverse", "-r", action="store_true", help="against the order of the keys")
    parser.add_argument(
        "--rank", metavar="N", type=natural, default=0, help="leave out the first N entries, without reading them"
    )
    parser.add_argument("--ranks", action="store_true", help="show the rank of each entry in the whole tree")
    parser.add_argument("--keys", action="store_true", help="keys only; values are not read")
    add_timeout(parser)


def run(args: argparse.Namespace, out: Output) -> int:
    """See `cowdb.cli`."""
    low, high = range_of(args)
    columns = [Column("key", "key", "data")]
    if args.ranks:
        columns.insert(0, Column("rank", "rank", "number"))
    if not args.keys:
        columns.append(Column("value", "value", "data"))
    with reading(args.file, args.timeout) as state:
        tree = tree_of(state, args.tree)
        rows = _rows(tree, low, high, args)
        out.table(columns, rows if args.limit is None else islice(rows, args.limit))
    return FINE


def _rows(tree: Tree, low: bytes | None, high: bytes | None, args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    rank = step = 0
    if args.ranks:
        first = 0 if low is None else tree.rank(low)
        rank = first + tree.count(low, high) - 1 - args.rank if args.reverse else first + args.rank
        step = -1 if args.reverse else 1
    pairs: Any = (
        ((key, None) for key in tree.keys(low, high, reverse=args.reverse, skip=args.rank))
        if args.keys
        else tree.items(low, high, reverse=args.reverse, skip=args.rank)
    )
    for key, value in pairs:
        row = {"key": key} if args.keys else {"key": key, "value": value}
        yield {"rank": rank, **row} if args.ranks else row
        rank += step
