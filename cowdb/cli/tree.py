"""``cowdb tree``: a tree, drawn.

    page 9  level 2, 3 children, 40,000 entries
    |-- page 4  level 1, 80 children, 13,000 entries   from the beginning
    |   |-- page 2  leaf, 160 entries
    ...

Children that are not drawn are not read, so a drawing costs what it shows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from cowdb.cli.measure import fill, tree_label
from cowdb.cli.opening import add_path, add_timeout, add_tree, looking, natural, tree_of
from cowdb.cli.output import FINDINGS, FINE, USAGE, CommandError, counted
from cowdb.cli.stat import state_of
from cowdb.errors import CorruptionError
from cowdb.lookup import child_bounds, references, separators
from cowdb.pagecheck import Bounds

if TYPE_CHECKING:
    import argparse

    from cowdb import format as fmt
    from cowdb.cli.output import Output
    from cowdb.inspection import State

__all__ = ["DESCRIPTION", "EXAMPLES", "arguments", "run"]

DESCRIPTION: Final = """
Draws a tree from its root: each page with its level, children or entries, birth,
how full it is, and the key that its part begins with. --depth and --width bound
the drawing; what is not drawn is not read. Damaged pages are drawn as such, with
exit code 1.
"""

EXAMPLES: Final = (
    ("cowdb tree app.cowdb", "the main tree: three levels, eight children of each page"),
    ("cowdb tree app.cowdb -t users --depth 9 --width 1000", "all of a small tree"),
)

_KEY: Final = 32


def arguments(parser: argparse.ArgumentParser) -> None:
    """See `cowdb.cli`."""
    add_path(parser)
    add_tree(parser)
    parser.add_argument("--depth", "-d", metavar="N", type=natural, default=3, help="levels to draw (default: 3)")
    parser.add_argument("--width", "-w", metavar="N", type=natural, default=8, help="children to draw (default: 8)")
    add_timeout(parser)


def run(args: argparse.Namespace, out: Output) -> int:
    """See `cowdb.cli`."""
    if args.depth < 1 or args.width < 1:
        raise CommandError("--depth and --width are at least 1", USAGE)
    with looking(args.file, args.timeout) as look:
        state = state_of(look, out)
        tree = tree_of(state, args.tree)
        descriptor = tree.descriptor
        drawn = _Drawing(state, args.depth, args.width)
        root = None
        if descriptor.depth:
            root = drawn.node(descriptor.root, Bounds(descriptor.depth - 1, b"", None), tree.limit, 0)
    if out.machine:
        out.document({"tree": tree_label(tree.name), "entries": len(tree), "depth": descriptor.depth, "root": root})
    else:
        out.line(f"{tree_label(tree.name)}: {counted(len(tree), 'entry')}, depth {descriptor.depth}", "bold")
        if root is None:
            out.line("  empty: there is no page")
        else:
            _draw(root, "", "", out)
    return FINDINGS if drawn.damaged else FINE


class _Drawing:
    def __init__(self, state: State, depth: int, width: int) -> None:
        self._state = state
        self._depth = depth
        self._width = width
        self.damaged = False

    def node(self, ref: fmt.Reference, bounds: Bounds, limit: int, depth: int) -> dict[str, Any]:
        """A page and what is drawn below it, as plain dictionaries."""
        facts: dict[str, Any] = {
            "page": ref.number,
            "kind": "branch" if bounds.level else "leaf",
            "level": bounds.level,
            "birth": ref.birth,
            "entries": ref.count,
            "from": bounds.low or None,
        }
        try:
            page = self._state.page(ref, bounds, limit)
            refs = references(page) if bounds.level else []
        except CorruptionError as error:
            self.damaged = True
            return facts | {"damage": error.reason}
        facts["cells"] = page.cells
        facts["fill"] = round(fill(page), 4)
        if not bounds.level or depth + 1 >= self._depth:
            return facts
        keys = separators(page)
        shown = list(range(len(refs)))
        if len(refs) > self._width:  # the first ones, and the last
            shown = [*shown[: self._width - 1], shown[-1]] if self._width > 1 else shown[:1]
        facts["left_out"] = len(refs) - len(shown)
        facts["children"] = [
            self.node(refs[index], child_bounds(bounds, keys, index), page.birth, depth + 1) for index in shown
        ]
        return facts


def _draw(node: dict[str, Any], lead: str, below: str, out: Output) -> None:
    what = f"branch at level {node['level']}" if node["kind"] == "branch" else "leaf"
    text = f"page {node['page']}  {what}"
    if "damage" in node:
        out.line(f"{lead}{text}, DAMAGED: {node['damage']}", "bold red")
        return
    if node["kind"] == "branch":
        text += f", {counted(node['cells'], 'child')}"
    text += f", {counted(node['entries'], 'entry')}, born in {node['birth']}, {100 * node['fill']:.0f} % full"
    if node["from"] is not None:
        text += f", from {out.data(node['from'], _KEY)}"
    out.line(lead + text)
    children = node.get("children", [])
    left_out = node.get("left_out", 0)
    tee, corner, bar = ("├── ", "└── ", "│   ") if out.fancy else ("|-- ", "`-- ", "|   ")
    for index, child in enumerate(children):
        last = index + 1 == len(children)
        if last and left_out and len(children) > 1:
            out.line(f"{below}{bar.rstrip()}   ... {left_out:,} more", "dim")
        _draw(child, below + (corner if last else tee), below + ("    " if last else bar), out)
    if left_out and len(children) == 1:
        out.line(f"{below}    ... {left_out:,} more", "dim")
