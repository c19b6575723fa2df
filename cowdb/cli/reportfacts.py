"""The facts of a report: one walk over the file, and plain data of bounded size out of it.

    Survey   a census that weighs keys and values on its way
    gather   its columns, sums and lists, ready to become JSON

Up to `SQUARES` pages there is a square a page in the map; above, a square is several
neighbours, which shows the kind and the tree that most of them have.
"""

from __future__ import annotations

import base64
import os
import re
import sys
import time
from array import array
from collections import Counter
from typing import TYPE_CHECKING, Any, Final

import cowdb
from cowdb import format as fmt
from cowdb.cli.info import gather as glance
from cowdb.cli.measure import fill, sizes, tree_label
from cowdb.cli.output import are, counted, shown_text, size_text, time_text
from cowdb.cli.reportholders import NOBODY
from cowdb.cli.reporttree import Nodes
from cowdb.cli.walks import Census
from cowdb.errors import CorruptionError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cowdb.cli.opening import Look
    from cowdb.cli.output import Output
    from cowdb.cli.reportholders import Holders
    from cowdb.inspection import State, Visit
    from cowdb.lookup import Tree

    _Column = bytearray | array[int] | array[float]

__all__ = ["SQUARES", "Survey", "gather"]

SQUARES: Final = 120_000
TREES: Final = 100
"""Trees that are told apart, the largest ones; the others are counted as one."""

LISTED: Final = 1000
"""Damaged pages that are listed with the reason."""

KINDS: Final = ("unreachable", "meta", "branch", "leaf", "overflow", "free")
NONE: Final = 255
DAMAGED: Final = 128
BINS: Final = 20

_CODES: Final = {kind: code for code, kind in enumerate(KINDS)}
_QUOTED: Final = re.compile(r"""b?['"].*['"]""", re.DOTALL)


class Weights:
    """How full the pages of a tree are, and how long its keys and values."""

    def __init__(self) -> None:
        self.pages = Counter[int]()
        self.leaf_fill = [0] * BINS
        self.branch_fill = [0] * BINS
        self.keys = Counter[int]()
        self.values = Counter[int]()
        self.value_bytes = 0
        self.longest_value = 0

    def add(self, visit: Visit) -> None:
        """Count a page or an overflow run. O(cells)."""
        self.pages[visit.kind] += visit.pages
        page = visit.page
        if page is None:
            return
        bins = self.branch_fill if visit.level else self.leaf_fill
        bins[min(max(int(fill(page) * BINS), 0), BINS - 1)] += 1
        if visit.level:
            return
        prefix = len(page.prefix)
        self.keys.update([prefix + len(suffix) for suffix in page.suffixes])
        values = sizes(page)
        self.values.update(map(int.bit_length, values))
        self.value_bytes += sum(values)
        self.longest_value = max(self.longest_value, *values)

    def facts(self) -> dict[str, Any]:
        """Sums as a plain dictionary; values are counted by the bits of their length."""
        return {
            "branches": self.pages[fmt.BRANCH_KIND],
            "leaves": self.pages[fmt.LEAF_KIND],
            "overflow": self.pages[fmt.OVERFLOW_KIND],
            "leaf_fill": self.leaf_fill,
            "branch_fill": self.branch_fill,
            "keys": sorted(self.keys.items()),
            "values": sorted(self.values.items()),
            "value_bytes": self.value_bytes,
            "longest_value": self.longest_value,
        }


class Survey(Census):
    """A census that also weighs, and that knows who holds each free page back."""

    def __init__(self, state: State, trees: Sequence[Tree], live: Holders) -> None:
        super().__init__(state, trees)
        self.state: Final = state
        self.trees: Final = trees
        self.live = live
        self.held = bytearray(self.pages)
        self.carried = 0
        self.longest_run = 0
        self.place, self.told_apart = _places(trees)
        self.weights = [Weights() for _ in range(len(self.told_apart) + 1)]

    def _note(self, tree: int, visit: Visit) -> None:
        super()._note(tree, visit)
        if not visit.damage:
            self.weights[self.place[tree]].add(visit)

    def _runs(self) -> None:
        super()._runs()
        try:
            for run in self.state.free_runs():
                holder = self.live.add(run)
                stop = min(run.start + run.length, self.pages)
                if holder and run.start < stop:
                    self.held[run.start : stop] = bytes((holder,)) * (stop - run.start)
                self.carried += run.length if run.carried else 0
                self.longest_run = max(self.longest_run, run.length)
        except CorruptionError:
            pass  # the census has told it

    def judge(self, look: Look, broken: str) -> None:
        """Add what is wrong beside the pages of the trees: with the file, its catalog, pages that are unreachable.

        One meta page that cannot be read is told in the head alone: a crash may leave that by right.
        """
        self.problems[:0] = [problem for problem in (look.problem, broken) if problem]
        count = self._kind.count(0)
        if count:
            problem = f"{counted(count, 'page')} {are(count)} unreachable: neither in use nor free (I5)"
            if self.damage:
                problem += "; damaged pages may lead to them, and cowdb recover may find their entries again"
            self.problems.append(problem)

    def place_of(self, page: int, record: dict[str, Any]) -> int:
        """The place of the tree that a page of this record belongs to, `NONE` if it belongs to none."""
        return self.place[self._tree[page]] if record["parent"] is not None else NONE


def _places(trees: Sequence[Tree]) -> tuple[list[int], list[int]]:
    """For each tree its place among those that are told apart; and which these are. The last place is all others'."""
    claims = [sum(tree.descriptor[2:5]) + (1 << 64 if tree.system or tree.name is None else 0) for tree in trees]
    chosen = sorted(sorted(range(len(trees)), key=lambda index: -claims[index])[:TREES])
    place = [len(chosen)] * len(trees)
    for at, index in enumerate(chosen):
        place[index] = at
    return place, chosen


class _Words:
    """What may stand in the report of the words that the file has."""

    def __init__(self, out: Output) -> None:
        self.redacted = out.show == "redacted"

    def tree(self, tree: Tree, index: int) -> str:
        """The name of a tree, which is a key of the catalog."""
        if self.redacted and tree.name is not None and not tree.system:
            return f"tree {index} <{counted(len(tree.name.encode(errors='surrogateescape')), 'byte')}>"
        return shown_text(tree_label(tree.name))

    def reason(self, text: str) -> str:
        """Why a page is damaged. Keys and names stand in quotes there: redacted, what is between them goes."""
        return shown_text(_QUOTED.sub("<redacted>", text) if self.redacted else text)


def gather(path: str, look: Look, survey: Survey, out: Output) -> dict[str, Any]:
    """Everything that the page shows, as plain data of bounded size. O(pages)."""
    words = _Words(out)
    meta = survey.state.meta
    nodes = Nodes(survey.state, survey, out.data)
    trees = _trees(survey, nodes, words)
    damage = []
    for page in sorted(survey.damage)[:LISTED]:
        record = survey.record(page)
        damage.append([page, record["kind"], survey.place_of(page, record), words.reason(survey.damage[page])])
    return {
        "version": cowdb.__version__,
        "name": shown_text(os.path.basename(os.path.abspath(path))),
        "made": time_text(time.time()),
        "show": out.show,
        "facts": [[label, shown_text(text)] for label, text in _head(path, look, survey, words)],
        "page_size": meta.page_size,
        "transaction": meta.transaction,
        "pages": survey.pages,
        "kinds": KINDS,
        "trees": trees,
        "nodes": nodes.facts(),
        "slots": [words.reason(slot.reason) if slot.meta is None else None for slot in look.slots],
        "holders": survey.live.facts(),
        "free": {"carried": survey.carried, "longest": survey.longest_run},
        "damaged": len(survey.damage),
        "damage": damage,
        "problems": [words.reason(problem) for problem in survey.problems[:LISTED]],
        "more_problems": max(len(survey.problems) - LISTED, 0),
        **squares(survey),
    }


def _trees(survey: Survey, nodes: Nodes, words: _Words) -> list[dict[str, Any]]:
    """The trees that are told apart, then what is summed up of the others."""
    apart = [survey.trees[index] for index in survey.told_apart]
    facts = []
    for index, (tree, root) in enumerate(zip(apart, nodes.grow(apart), strict=True)):
        own = {"entries": len(tree), "depth": tree.descriptor.depth, "root": root}
        facts.append({"name": words.tree(tree, index), "system": tree.system, **own, **survey.weights[index].facts()})
    others = [tree for index, tree in enumerate(survey.trees) if survey.place[index] == len(apart)]
    if others:
        own = {"entries": sum(map(len, others)), "depth": None, "root": None}
        facts.append(
            {"name": counted(len(others), "smaller tree"), "system": False, **own, **survey.weights[-1].facts()}
        )
    return facts


def _head(path: str, look: Look, survey: Survey, words: _Words) -> list[tuple[str, str]]:
    """The facts at the head of the page."""
    facts = glance(path, look)
    free = sum(survey.live.pages)
    held = free - survey.live.pages[NOBODY]
    size = survey.state.page_size
    on_disk = facts["allocated_size"]
    rows = [
        ("File", os.path.basename(facts["path"]) if words.redacted else facts["path"]),
        ("Size", size_text(facts["file_size"]) + (f", {size_text(on_disk)} on disk" if on_disk is not None else "")),
        ("Transaction", f"{facts['transaction']:,}, of {time_text(facts['commit_time'])}"),
        ("On disk for certain", f"transaction {facts['durable_transaction']:,}"),
        ("Trees", f"(main) with {counted(facts['entries'], 'entry')}, and {facts['named_trees']:,} named"),
        ("Pages", f"{survey.pages:,} of {size:,} bytes"),
        ("Free", f"{counted(free, 'page')}, {size_text(free * size)}; {held:,} held back"),
        ("Format", f"version {facts['format_version']}, keys up to {facts['max_key_size']:,} bytes"),
        ("Database id", facts["database_id"]),
    ]
    for slot in facts["slots"]:
        what = f"cannot be read: {words.reason(slot['reason'])}" if not slot["readable"] else (
            f"transaction {slot['transaction']:,}, durable {slot['durable']:,}"
        )  # fmt: skip
        rows.append((f"Meta page {slot['slot']}", what))
    return rows


# ---------------------------------------------------------------- the map


def squares(survey: Survey, most: int = SQUARES) -> dict[str, Any]:
    """The columns of the map: for each square its kind, tree, fill, birth and so on, as base64. O(pages)."""
    group = max(-(-survey.pages // most), 1)
    count = -(-survey.pages // group)
    kind, tree, full, held = (bytearray(count) for _ in range(4))
    birth, parent = array("d", bytes(8 * count)), array("I", bytes(4 * count))
    cells, level = array("H", bytes(2 * count)), bytearray(count)
    mix = array("H", bytes(2 * len(KINDS) * count)) if group > 1 else array("H")
    run: float | None = None
    for at in range(count):
        kinds, places, waits = Counter[int](), Counter[int](), Counter[int]()
        fills, damaged = [], 0
        for page in range(at * group, min((at + 1) * group, survey.pages)):
            record = survey.record(page)
            what = _CODES[record["kind"]]
            kinds[what] += 1
            places[survey.place_of(page, record)] += 1
            if record["kind"] == "free":
                waits[survey.held[page]] += 1
            further = record["kind"] == "overflow" and record["fill"] is None and not record["damage"]
            run = run if further else record["fill"]  # a run is as full in each of its pages
            if run is not None:
                fills.append(run)
            birth[at] = max(birth[at], record["birth"] or 0)
            if record["damage"]:
                damaged = DAMAGED
            if group == 1:
                parent[at] = record["parent"] or 0
                cells[at] = record["cells"] or 0
                level[at] = record["level"] or int(further)
        kind[at] = kinds.most_common(1)[0][0] | damaged
        tree[at] = places.most_common(1)[0][0]
        full[at] = min(round(200 * sum(fills) / len(fills)), 200) if fills else NONE
        held[at] = waits.most_common(1)[0][0] if waits else NONE
        for what, number in kinds.items() if group > 1 else ():
            mix[len(KINDS) * at + what] = number
    columns: dict[str, _Column] = {"kind": kind, "tree": tree, "fill": full, "held": held, "birth": birth}
    columns |= {"parent": parent, "cells": cells, "level": level} if group == 1 else {"mix": mix}
    sums = Counter(_CODES[record["kind"]] for record in survey.records())
    return {
        "group": group,
        "sums": [sums[code] for code in range(len(KINDS))],
        "columns": {name: _base64(column) for name, column in columns.items()},
    }


def _base64(column: _Column) -> str:
    """A column in little-endian order, as browsers have it."""
    if isinstance(column, array) and sys.byteorder == "big":
        column = column[:]
        column.byteswap()
    return base64.b64encode(column).decode()
