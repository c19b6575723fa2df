"""Who holds free pages back, for the report.

A free run waits for the oldest live snapshot in [birth, freed) (I2).  Live are the
readers of all processes and the newest durable state (P6).

    runs      [3,5) ....... [4,9) .......... [7,9)
    live            5              8
    waits for  nobody: 5 is not in [3,5)   5     8
"""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING, Any, Final

from cowdb.cli.users import durable_transaction, other_pins

if TYPE_CHECKING:
    from cowdb.inspection import FreeRun

__all__ = ["MOST", "NOBODY", "Holders", "holders"]

NOBODY: Final = 0
"""The index of the pages that the next commit may use."""

MOST: Final = 100
"""Snapshots that are told apart; newer ones are counted as one."""

_PIDS: Final = 20


class Holders:
    """The live snapshots, oldest first, and how many free pages wait for each."""

    def __init__(self, readers: dict[int, list[int]], durable: int | None) -> None:
        self._readers = readers
        self.durable: Final = durable
        self._order = sorted({*readers, *(() if durable is None else (durable,))})
        self.pages = [0] * (min(len(self._order), MOST) + 1)
        self.runs = [0] * len(self.pages)

    def add(self, run: FreeRun) -> int:
        """Count a free run; the index of who holds it back, `NOBODY` if nobody does. O(log snapshots)."""
        at = bisect_left(self._order, run.birth)
        held = at < len(self._order) and self._order[at] < run.freed
        index = min(at + 1, MOST) if held else NOBODY
        self.pages[index] += run.length
        self.runs[index] += 1
        return index

    def facts(self) -> list[dict[str, Any]]:
        """One plain dictionary an index."""
        found: list[dict[str, Any]] = [{"label": "nobody: the next commits use it"}]
        for transaction in self._order[: len(self.pages) - 1]:
            pids = sorted(set(self._readers.get(transaction, ())))
            who = []
            if pids:
                more = f" and {len(pids) - _PIDS} more" if len(pids) > _PIDS else ""
                word = "process" if len(pids) == 1 else "processes"
                who.append(f"read by {word} {', '.join(map(str, pids[:_PIDS]))}{more}")
            if transaction == self.durable:
                who.append("the durable state")
            found.append({"label": f"transaction {transaction}, {' and '.join(who)}"})
        if len(self._order) > MOST:
            found[-1] = {"label": f"transaction {self._order[MOST - 1]} and {len(self._order) - MOST} newer snapshots"}
        for index, facts in enumerate(found):
            facts["pages"] = self.pages[index]
            facts["runs"] = self.runs[index]
        return found


def holders(path: str, *, shared: bool) -> Holders:
    """The live snapshots of the file at `path`; none if it cannot be `shared`, as then nobody can have it open."""
    readers: dict[int, list[int]] = {}
    durable = None
    if shared:
        for pin in other_pins(path):
            readers.setdefault(pin.transaction, []).append(pin.owner)
        durable = durable_transaction(path)
    return Holders(readers, durable)
