"""The trees of a report: their branches read from the root down, level by level, as far as there is room.

             0             columns:  page 9 4 7 2 3 5 ...
          /     \\                    first child  1 3 5 . . .
         1       2                   children     2 2 1 . . .
        / \\      |
       3   4     5         the children of a node stand side by side

All trees grow together, so what is left out for lack of room is always at the bottom.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, Final

from cowdb.errors import CorruptionError
from cowdb.lookup import child_bounds, references, separators
from cowdb.pagecheck import Bounds

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from cowdb import format as fmt
    from cowdb.cli.walks import Census
    from cowdb.inspection import State
    from cowdb.lookup import Tree

__all__ = ["NODES", "Nodes"]

NODES: Final = 30_000
"""Pages of trees in a report."""

_KEY: Final = 48
"""Characters of a separator."""


class Nodes:
    """Columns of what is shown of each page of the trees; see the module's text."""

    def __init__(self, state: State, census: Census, shown: Callable[[bytes, int], str], most: int = NODES) -> None:
        self._state = state
        self._census = census
        self._shown = shown
        self._most = most
        self._queue: deque[tuple[int, fmt.Reference, Bounds, int]] = deque()
        self._entered: set[int] = set()
        self._columns: dict[str, list[Any]] = {
            name: []
            for name in ("page", "level", "entries", "birth", "cells", "fill", "from", "first", "children", "damaged")
        }

    def grow(self, trees: Sequence[Tree]) -> list[int | None]:
        """The node of each tree's root, None for an empty tree. O(nodes)."""
        roots: list[int | None] = []
        for tree in trees:
            descriptor = tree.descriptor
            roots.append(None)
            if descriptor.depth and len(self._columns["page"]) < self._most:
                roots[-1] = self._add(descriptor.root, Bounds(descriptor.depth - 1, b"", None), tree.limit)
        while self._queue:
            self._enter(*self._queue.popleft())
        return roots

    def facts(self) -> dict[str, list[Any]]:
        """The columns."""
        return self._columns

    def _add(self, ref: fmt.Reference, bounds: Bounds, limit: int) -> int:
        number = ref.number
        record: dict[str, Any] = {"cells": None, "fill": None, "damage": "it leads outside of the file"}
        if number < self._census.pages:
            record = self._census.record(number)
        fill = record["fill"]
        row = {
            "page": number,
            "level": bounds.level,
            "entries": ref.count,
            "birth": ref.birth,
            "cells": record["cells"] or 0,
            "fill": -1 if fill is None else round(1000 * fill),
            "from": self._shown(bounds.low, _KEY) if bounds.low else None,
            "first": 0,
            "children": 0,
            "damaged": 1 if record["damage"] else 0,
        }
        node = len(self._columns["page"])
        for name, column in self._columns.items():
            column.append(row[name])
        if bounds.level:
            self._queue.append((node, ref, bounds, limit))
        return node

    def _enter(self, node: int, ref: fmt.Reference, bounds: Bounds, limit: int) -> None:
        """Add the children of a branch, as many as there is room for."""
        room = self._most - len(self._columns["page"])
        if room <= 0:
            return
        try:
            if ref.number in self._entered:
                raise CorruptionError(ref.number, "another reference leads to it as well (I5)")
            self._entered.add(ref.number)
            page = self._state.page(ref, bounds, limit)
            refs = references(page)
        except CorruptionError:
            self._columns["damaged"][node] = 1
            return
        keys = separators(page)
        self._columns["first"][node] = len(self._columns["page"])
        self._columns["children"][node] = min(len(refs), room)
        for index, kid in enumerate(refs[:room]):
            self._add(kid, child_bounds(bounds, keys, index), page.birth)
