"""``cowdb trees``: which trees there are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from cowdb.cli.measure import tree_label
from cowdb.cli.opening import add_path, add_timeout, reading
from cowdb.cli.output import FINE, Column

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from cowdb.cli.output import Output
    from cowdb.inspection import State

__all__ = ["DESCRIPTION", "EXAMPLES", "arguments", "run"]

DESCRIPTION: Final = """
The main tree and the named ones, in order of their names, with entries, depth
and pages. Reads the catalog only.
"""

EXAMPLES: Final = (
    ("cowdb trees app.cowdb", "all of them"),
    ("cowdb trees app.cowdb --format jsonl | jq -r .tree", "their names"),
)

COLUMNS: Final = (
    Column("tree", "tree"),
    Column("entries", "entries", "number"),
    Column("depth", "depth", "number"),
    Column("branch_pages", "branches", "number"),
    Column("leaf_pages", "leaves", "number"),
    Column("overflow_pages", "overflow", "number"),
    Column("size", "size", "size"),
    Column("birth", "changed in", "number"),
)


def arguments(parser: argparse.ArgumentParser) -> None:
    """See `cowdb.cli`."""
    add_path(parser)
    add_timeout(parser)


def run(args: argparse.Namespace, out: Output) -> int:
    """See `cowdb.cli`."""
    with reading(args.file, args.timeout) as state:
        out.table(COLUMNS, _rows(state))
    return FINE


def _rows(state: State) -> Iterator[dict[str, Any]]:
    for tree in state.trees():
        root, depth, branches, leaves, overflow = tree.descriptor
        yield {
            "tree": tree_label(tree.name),
            "main": tree.name is None,
            "entries": root.count,
            "depth": depth,
            "branch_pages": branches,
            "leaf_pages": leaves,
            "overflow_pages": overflow,
            "size": (branches + leaves + overflow) * state.page_size,
            "birth": root.birth,
        }
