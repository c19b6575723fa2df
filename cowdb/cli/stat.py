"""``cowdb stat``: how each tree uses its pages."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from cowdb.cli.measure import Measure
from cowdb.cli.opening import add_path, add_timeout, add_tree, looking, tree_of
from cowdb.cli.output import FINDINGS, FINE, Column, CommandError
from cowdb.errors import CorruptionError
from cowdb.pagemap import PageMap

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from cowdb.cli.opening import Look
    from cowdb.cli.output import Output
    from cowdb.inspection import State
    from cowdb.lookup import Tree

__all__ = ["DESCRIPTION", "EXAMPLES", "arguments", "every_tree", "run", "state_of"]

DESCRIPTION: Final = """
For each tree: depth, pages by kind, how full they are, the bytes of keys and
values, the longest of both, and what lies in overflow runs. Reads every page
but the overflow runs. Damaged pages are counted and left out, with exit code 1.
"""

EXAMPLES: Final = (
    ("cowdb stat app.cowdb", "all trees, also the catalog and the free tree"),
    ("cowdb stat app.cowdb --tree users", "one tree"),
)

PAGES: Final = (
    Column("tree", "tree"),
    Column("depth", "depth", "number"),
    Column("entries", "entries", "number"),
    Column("branch_pages", "branches", "number"),
    Column("leaf_pages", "leaves", "number"),
    Column("leaf_fill", "full", "percent"),
    Column("overflow_pages", "overflow", "number"),
    Column("size", "size", "size"),
    Column("damaged_pages", "damaged", "number"),
)
CONTENT: Final = (
    Column("tree", "tree"),
    Column("key_bytes", "keys", "size"),
    Column("longest_key", "longest", "size"),
    Column("value_bytes", "values", "size"),
    Column("longest_value", "longest", "size"),
    Column("overflow_values", "in overflow", "number"),
    Column("overflow_bytes", "of size", "size"),
)


def arguments(parser: argparse.ArgumentParser) -> None:
    """See `cowdb.cli`."""
    add_path(parser)
    add_tree(parser, "all trees")
    add_timeout(parser)


def run(args: argparse.Namespace, out: Output) -> int:
    """See `cowdb.cli`."""
    with looking(args.file, args.timeout) as look:
        state = state_of(look, out)
        trees, broken = [tree_of(state, args.tree)], ""
        if args.tree is None:
            trees, broken = every_tree(state)
        rows = list(_measured(state, trees, out))
    if out.machine:
        out.records(rows)
    else:
        out.line("pages", "bold")
        damage = any(row["damaged_pages"] for row in rows)
        out.table(PAGES if damage else PAGES[:-1], rows)
        out.heading("keys and values")
        out.table(CONTENT, [row for row in rows if not row["system"]])
    if broken:
        out.note(broken)
    return FINDINGS if broken or look.problem or any(row["damaged_pages"] for row in rows) else FINE


def state_of(look: Look, out: Output) -> State:
    """The state of a file to look at; a note if it is damaged."""
    if look.state is None:
        raise CommandError(
            f"{look.problem or 'no meta page can be read'}; cowdb recover finds what is whole without them"
        )
    if look.problem:
        out.note(f"{look.problem}; shown is the newest meta page that can be read")
    return look.state


def every_tree(state: State) -> tuple[list[Tree], str]:
    """All trees of a state, the catalog and the free tree among them; and a sentence if the catalog is damaged."""
    trees = [state.main]
    broken = ""
    try:
        for tree in state.trees():
            if tree.name is not None:
                trees.append(tree)  # noqa: PERF401 - those before the damage are kept
    except CorruptionError as error:
        broken = f"named trees may be missing: {error}"
    return [*trees, state.catalog, state.free], broken


def _measured(state: State, trees: list[Tree], out: Output) -> Iterator[dict[str, Any]]:
    seen = PageMap()
    total = sum(sum(tree.descriptor[2:4]) for tree in trees)
    done = 0
    with out.progress("measuring", "pages") as tick:
        for tree in trees:
            measure = Measure(tree)
            for visit in state.walk(tree, seen):
                measure.add(visit)
                done += 1
                if not done % 500:
                    tick(done, total)
            yield measure.facts(state.page_size)
