"""The whole file, a page at a time: what each page is, and who refers to it.

    walk over every tree --> columns --> one record a page, in the order of the file
    carry list, free tree -/

The columns are arrays, some twenty bytes a page, so that a large file does not
need much memory.
"""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING, Any, Final

from cowdb import format as fmt
from cowdb.cli.measure import fill, tree_label
from cowdb.cli.output import USAGE, CommandError
from cowdb.errors import CorruptionError
from cowdb.pagemap import PageMap

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from cowdb.cli.output import Progress
    from cowdb.inspection import State
    from cowdb.lookup import Tree

__all__ = ["KINDS", "Census"]

KINDS: Final = {
    fmt.META_KIND: "meta",
    fmt.BRANCH_KIND: "branch",
    fmt.LEAF_KIND: "leaf",
    fmt.OVERFLOW_KIND: "overflow",
}

_CONTINUED: Final = 5  # a further page of an overflow run
_FREE: Final = 6
_CARRIED: Final = 7
_UNREACHABLE: Final = 0
_NAMES: Final = {**KINDS, _CONTINUED: "overflow", _FREE: "free", _CARRIED: "free", _UNREACHABLE: "unreachable"}
_LIMIT: Final = 1 << 26


class Census:
    """What every page of a state is; see the module's text."""

    def __init__(self, state: State, trees: Sequence[Tree]) -> None:
        self._state = state
        self._trees = trees
        pages = min(state.meta.page_count, -(-state.source.size() // state.page_size))
        if pages > _LIMIT:
            raise CommandError(f"the file has {pages} pages, more than the {_LIMIT} that can be listed", USAGE)
        self.pages: Final = pages
        self._kind = bytearray(pages)
        self._tree = array("L", bytes(array("L").itemsize * pages))
        self._level = bytearray(pages)
        self._cells = array("H", bytes(2 * pages))
        self._fill = array("f", bytes(4 * pages))
        self._birth = array("Q", bytes(8 * pages))
        self._parent = array("Q", bytes(8 * pages))
        self.damage: dict[int, str] = {}
        self.problems: list[str] = []

    def take(self, tick: Progress) -> None:
        """Walk over everything. O(pages)."""
        for slot in range(min(fmt.META_PAGES, self.pages)):
            self._kind[slot] = fmt.META_KIND
        seen = PageMap()
        done = 0
        for index, tree in enumerate(self._trees):
            for visit in self._state.walk(tree, seen, values=True):
                done += visit.pages
                if not done % 500:
                    tick(done, self.pages)
                if not 0 <= visit.ref.number < self.pages:
                    self.problems.append(f"page {visit.parent} refers to page {visit.ref.number}: {visit.damage}")
                    continue
                self._note(index, visit)
        self._runs()

    def _note(self, tree: int, visit: Any) -> None:
        number = visit.ref.number
        if visit.damage:
            self.damage.setdefault(number, visit.damage)
            if self._kind[number]:
                return  # it was met before, and keeps what it was
        for page in range(number, min(number + visit.pages, self.pages)):
            self._kind[page] = visit.kind if page == number else _CONTINUED
            self._tree[page] = tree
            self._birth[page] = visit.ref.birth
            self._parent[page] = visit.parent
        self._level[number] = visit.level
        if visit.page is not None:
            self._cells[number] = visit.page.cells
            self._fill[number] = fill(visit.page)
        elif visit.kind == fmt.OVERFLOW_KIND and visit.pages:
            self._fill[number] = (fmt.HEADER_SIZE + visit.ref.count) / (visit.pages * self._state.page_size)

    def _runs(self) -> None:
        """Mark the free pages."""
        try:
            for run in self._state.free_runs():
                for page in range(run.start, min(run.start + run.length, self.pages)):
                    if self._kind[page]:
                        self.damage.setdefault(page, "it is in use, and in the free list as well (I5)")
                        continue
                    self._kind[page] = _CARRIED if run.carried else _FREE
                    self._birth[page] = run.birth
        except CorruptionError as error:
            self.problems.append(f"the free list cannot be read to its end: {error}")

    def record(self, page: int) -> dict[str, Any]:
        """What page `page` is, as a plain dictionary."""
        kind = self._kind[page]
        facts: dict[str, Any] = {
            "page": page,
            "kind": _NAMES[kind],
            "tree": None,
            "level": None,
            "birth": None,
            "cells": None,
            "fill": None,
            "parent": None,
            "damage": self.damage.get(page),
        }
        if kind in {fmt.META_KIND, _UNREACHABLE}:
            return facts
        facts["birth"] = self._birth[page]
        if kind in {_FREE, _CARRIED}:
            facts["tree"] = "carry list" if kind == _CARRIED else "free tree"
            return facts
        facts["tree"] = tree_label(self._trees[self._tree[page]].name)
        facts["parent"] = self._parent[page]
        if kind == _CONTINUED:
            return facts
        if kind != fmt.OVERFLOW_KIND:
            facts["level"] = self._level[page]
            facts["cells"] = self._cells[page]
        if page not in self.damage:
            facts["fill"] = round(self._fill[page], 4)
        return facts

    def records(self, start: int = 0, stop: int | None = None) -> Iterator[dict[str, Any]]:
        """The records of pages start <= page < stop."""
        for page in range(max(start, 0), self.pages if stop is None else min(stop, self.pages)):
            yield self.record(page)
