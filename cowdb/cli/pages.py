"""``cowdb pages``: one line a page."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from cowdb.cli.measure import tree_label
from cowdb.cli.opening import add_path, add_timeout, looking, natural, tree_of
from cowdb.cli.output import FINDINGS, FINE, USAGE, Column, CommandError
from cowdb.cli.stat import every_tree, state_of
from cowdb.cli.walks import Census

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from cowdb.cli.output import Output

__all__ = ["DESCRIPTION", "EXAMPLES", "arguments", "run"]

DESCRIPTION: Final = """
Every page of the file in order: its kind, its tree, its level, the transaction
that wrote it, its cells, how full it is, and the page that refers to it (0 is the
meta page). "free" pages name who lists them; "unreachable" pages are neither in use
nor free: nothing leads to them, or a damaged page alone does. Damaged pages say
what is wrong, with exit code 1.
"""

EXAMPLES: Final = (
    ("cowdb pages app.cowdb --start 2 --stop 50", "a part of the file"),
    ("cowdb pages app.cowdb --kind branch", "the branches only"),
    ("cowdb pages app.cowdb --damaged", "what is damaged, and where it hangs"),
    ("cowdb pages app.cowdb --format jsonl | jq -r .kind | sort | uniq -c", "pages by kind"),
)

COLUMNS: Final = (
    Column("page", "page", "number"),
    Column("kind", "kind"),
    Column("tree", "tree"),
    Column("level", "level", "number"),
    Column("birth", "birth", "number"),
    Column("cells", "cells", "number"),
    Column("fill", "fill", "percent"),
    Column("parent", "parent", "number"),
    Column("damage", "damage"),
)


def arguments(parser: argparse.ArgumentParser) -> None:
    """See `cowdb.cli`."""
    add_path(parser)
    parser.add_argument("--start", metavar="N", type=natural, default=0, help="the first page to show (default: 0)")
    parser.add_argument("--stop", metavar="N", type=natural, help="the page to stop before (default: the end)")
    parser.add_argument(
        "--kind", choices=("meta", "branch", "leaf", "overflow", "free", "unreachable", "lost"),
        help="only pages of this kind; lost is another word for unreachable",
    )  # fmt: skip
    parser.add_argument("--tree", "-t", metavar="NAME", help="only pages of this tree; (main) is the main one")
    parser.add_argument("--damaged", action="store_true", help="only damaged pages")
    parser.add_argument(
        "--slot", type=natural, choices=(0, 1), help="the state of this meta slot (default: the newest)"
    )
    add_timeout(parser)


def run(args: argparse.Namespace, out: Output) -> int:
    """See `cowdb.cli`."""
    if args.stop is not None and args.stop < args.start:
        raise CommandError("--stop is not before --start", USAGE)
    with looking(args.file, args.timeout, slot=args.slot) as look:
        state = state_of(look, out)
        trees, broken = every_tree(state)
        if args.tree is not None and not broken and args.tree not in {tree_label(tree.name) for tree in trees}:
            tree_of(state, args.tree)  # it says which there are
        census = Census(state, trees)
        with out.progress("walking", "pages") as tick:
            census.take(tick)
    columns = COLUMNS if census.damage else COLUMNS[:-1]
    out.table(columns, _chosen(census, args))
    problems = [*census.problems, broken] if broken else census.problems
    for problem in problems[:20]:
        out.note(problem)
    return FINDINGS if look.problem or census.damage or problems else FINE


def _chosen(census: Census, args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    kind = "unreachable" if args.kind == "lost" else args.kind
    for record in census.records(args.start, args.stop):
        if kind is not None and record["kind"] != kind:
            continue
        if args.tree is not None and record["tree"] != args.tree:
            continue
        if args.damaged and record["damage"] is None:
            continue
        yield record
