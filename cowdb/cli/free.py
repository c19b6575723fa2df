"""``cowdb free``: the free pages, and who holds each run back.

A run may be used again when no live snapshot lies in [birth, freed) (I2).  Live
are: every reader of any process, and the newest durable state (P6).
"""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING, Any, Final

from cowdb.cli.opening import add_path, add_timeout, looking
from cowdb.cli.output import FINDINGS, FINE, Column, counted, size_text
from cowdb.cli.stat import state_of
from cowdb.cli.users import durable_transaction, other_pins
from cowdb.errors import CorruptionError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from cowdb.cli.output import Output
    from cowdb.inspection import State

__all__ = ["DESCRIPTION", "EXAMPLES", "arguments", "run"]

DESCRIPTION: Final = """
Each run of free pages: where it is, the transactions that wrote and that freed
it, where it is listed (the carry list in the meta page, or the free tree), and
the snapshot that holds it back, if one does: one that can still see what the pages
held. A run that nobody holds is used by the next commits.
"""

EXAMPLES: Final = (
    ("cowdb free app.cowdb", "all runs, and the sums"),
    ("cowdb free app.cowdb --summary", "the sums only"),
)

COLUMNS: Final = (
    Column("start", "first page", "number"),
    Column("length", "pages", "number"),
    Column("birth", "born", "number"),
    Column("freed", "freed", "number"),
    Column("listed", "listed in"),
    Column("held_by", "held back by"),
)


def arguments(parser: argparse.ArgumentParser) -> None:
    """See `cowdb.cli`."""
    add_path(parser)
    parser.add_argument("--summary", "-s", action="store_true", help="sums only, no list of runs")
    add_timeout(parser)


class _Live:
    """The live snapshots: which one holds a run back."""

    def __init__(self, readers: dict[int, list[int]], durable: int | None) -> None:
        self._readers = readers
        self._durable = durable
        self._order = sorted({*readers, *([durable] if durable is not None else [])})

    def holder(self, birth: int, freed: int) -> str | None:
        """Who keeps a run with this interval from use; None if nobody does."""
        at = bisect_left(self._order, birth)
        if at == len(self._order) or self._order[at] >= freed:
            return None
        transaction = self._order[at]
        pids = self._readers.get(transaction)
        if pids:
            return f"transaction {transaction}, read by process {', '.join(map(str, sorted(set(pids))))}"
        return f"transaction {transaction}, the durable state"


def run(args: argparse.Namespace, out: Output) -> int:
    """See `cowdb.cli`."""
    sums: dict[str, Any] = {"runs": 0, "pages": 0, "held_pages": 0, "carried_pages": 0, "longest_run": 0}
    with looking(args.file, args.timeout) as look:
        state = state_of(look, out)
        pins: dict[int, list[int]] = {}
        durable = None
        if not look.problem:
            for pin in other_pins(args.file):
                pins.setdefault(pin.transaction, []).append(pin.owner)
            durable = durable_transaction(args.file)
        rows = _rows(state, _Live(pins, durable), sums)
        if args.summary:
            for _ in rows:
                pass
        else:
            out.table(COLUMNS, rows)
        size = state.page_size
    if args.summary and out.machine:
        out.document(sums)
    elif not out.machine:
        out.line(
            f"{counted(sums['runs'], 'run')}, {counted(sums['pages'], 'free page')} "
            f"({size_text(sums['pages'] * size)}); "
            f"{sums['held_pages']:,} held back; {sums['carried_pages']:,} in the carry list; "
            f"the longest run has {counted(sums['longest_run'], 'page')}"
        )
    if "problem" in sums:
        out.note(sums["problem"])
    return FINDINGS if look.problem or "problem" in sums else FINE


def _rows(state: State, live: _Live, sums: dict[str, Any]) -> Iterator[dict[str, Any]]:
    try:
        for run in state.free_runs():
            holder = live.holder(run.birth, run.freed)
            sums["runs"] += 1
            sums["pages"] += run.length
            sums["held_pages"] += run.length if holder else 0
            sums["carried_pages"] += run.length if run.carried else 0
            sums["longest_run"] = max(sums["longest_run"], run.length)
            yield {
                "start": run.start,
                "length": run.length,
                "birth": run.birth,
                "freed": run.freed,
                "listed": "carry list" if run.carried else "free tree",
                "held_by": holder,
            }
    except CorruptionError as error:
        sums["problem"] = f"the free list cannot be read to its end: {error}"
