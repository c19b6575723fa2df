"""``cowdb compact``: all entries in a new, dense file."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from cowdb import format as fmt
from cowdb.catalog import tree_names
from cowdb.cli.newfile import new_database, refuse_existing
from cowdb.cli.opening import add_path, add_timeout, natural, reading
from cowdb.cli.output import FINE, counted, size_text

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from cowdb.cli.output import Output, Progress
    from cowdb.lookup import Tree

__all__ = ["DESCRIPTION", "EXAMPLES", "arguments", "run"]

DESCRIPTION: Final = """
Writes every entry of the newest state into a new file in key order: full leaves,
neighbours side by side, no free pages. The old file stays as it is, and may be in
use meanwhile; what is committed to it afterwards is not in the new one. The new
file appears under its name when it is whole and on disk, and overwrites nothing.
"""

EXAMPLES: Final = (
    ("cowdb compact app.cowdb small.cowdb", "a dense copy"),
    ("cowdb compact app.cowdb large.cowdb --page-size 16384", "a copy with larger pages"),
    ("cowdb compact app.cowdb new.cowdb && mv new.cowdb app.cowdb", "in place, when nobody has it open"),
)


def arguments(parser: argparse.ArgumentParser) -> None:
    """See `cowdb.cli`."""
    add_path(parser)
    parser.add_argument("new", metavar="NEW", help="the file to make")
    parser.add_argument(
        "--page-size",
        metavar="BYTES",
        type=natural,
        choices=fmt.PAGE_SIZES,
        help="pages of 4096, 8192, 16384 or 32768 bytes (default: as they are)",
    )
    add_timeout(parser)


def run(args: argparse.Namespace, out: Output) -> int:
    """See `cowdb.cli`."""
    refuse_existing(args.new)
    with reading(args.file, args.timeout) as state, out.progress("compacting", "entries") as tick:
        before = state.source.size()
        trees = list(state.trees())
        # A name that the engine would not give is damage: the new file shall not have it either.
        tree_names([tree.name.encode(errors="surrogateescape") for tree in trees if tree.name is not None])
        told = _Told(tick, sum(map(len, trees)))
        with (
            new_database(args.new, args.page_size or state.page_size, state.meta.database_id) as db,
            db.write() as txn,
        ):
            for tree in trees:
                target = txn if tree.name is None else txn.tree(tree.name, create=True)
                target.update(told.items(tree))
    facts = {
        "path": args.file,
        "new": args.new,
        "entries": told.done,
        "trees": len(trees),
        "size_before": before,
        "size_after": os.path.getsize(args.new),
    }
    if out.machine:
        out.document(facts)
    else:
        out.line(
            f"{counted(told.done, 'entry')} in {counted(len(trees), 'tree')} written to {args.new}: "
            f"{size_text(before)} before, {size_text(facts['size_after'])} after"
        )
    return FINE


class _Told:
    """Entries on their way, with progress."""

    def __init__(self, tick: Progress, total: int) -> None:
        self._tick = tick
        self._total = total
        self.done = 0

    def items(self, tree: Tree) -> Iterator[tuple[bytes, bytes]]:
        """The entries of a tree."""
        for entry in tree.items():
            yield entry
            self.done += 1
            if not self.done % 1000:
                self._tick(self.done, self._total)
