"""What a check found: one `Finding` a violation, gathered in a `Report`.

The report bounds itself: a file that is damaged all over gives a thousand
findings and a last one that says so, not a list as long as the file.

    check --> add() --> [Finding, Finding, ...]     at most MAX_FINDINGS + 1
          --> tick() --> progress(done, total)      about every 1,000 pages
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["MAX_FINDINGS", "Enough", "Finding", "Report"]

MAX_FINDINGS: Final = 1000
"""After so many findings a check stops and says so."""

TICK: Final = 1000
"""Pages between two reports of progress."""


@dataclasses.dataclass(frozen=True, slots=True)
class Finding:
    """One violation.

    `invariant` is "I3" to "I7", "I10" for a page whose inner layout is not
    what the format says, or "file" for what no invariant covers.
    `page_number` and `meta_slot` are -1 where there is none.
    """

    invariant: str
    page_number: int
    meta_slot: int
    message: str

    def __str__(self) -> str:
        what = "the file is not sound" if self.invariant == "file" else f"{self.invariant} does not hold"
        page = f" at page {self.page_number}" if self.page_number >= 0 else ""
        slot = f" in the state of meta slot {self.meta_slot}" if self.meta_slot >= 0 else ""
        return f"{what}{page}{slot}: {self.message}"


class Enough(Exception):  # noqa: N818 (it is no error)
    """The report is full; whoever gathers findings stops."""


class Report:
    """The findings so far, and the progress."""

    def __init__(self, progress: Callable[[int, int], None] | None = None) -> None:
        self.findings: list[Finding] = []
        self.total = 0
        self._done = 0
        self._told = 0
        self._progress = progress

    def add(self, invariant: str, page: int, slot: int, message: str) -> None:
        """Add a finding; raise `Enough` if there are `MAX_FINDINGS` already."""
        if len(self.findings) >= MAX_FINDINGS:
            message = f"there are more than {MAX_FINDINGS} findings; the check stopped here"
            self.findings.append(Finding("file", -1, -1, message))
            raise Enough
        self.findings.append(Finding(invariant, page, slot, message))

    def tick(self, pages: int) -> None:
        """Say that so many more pages were checked."""
        self._done += pages
        if self._progress is not None and self._done - self._told >= TICK:
            self._told = self._done
            self._progress(min(self._done, self.total), self.total)

    def finish(self) -> None:
        """Say that the check is over."""
        if self._progress is not None:
            self._progress(self.total, self.total)
