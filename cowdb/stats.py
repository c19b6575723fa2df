"""What copy-on-write costs and saves, counted as it happens."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from cowdb.draft import Member

__all__ = ["Counters", "Stats"]

_REMEMBERED: Final = 64
"""Commits whose dirty-page ratio is kept."""


@dataclasses.dataclass(frozen=True, slots=True)
class Stats:
    """Counters of one open database; see `Database.stats`.

    The totals count from when this process opened the file.  Pages are pages
    of `page_size` bytes; meta pages are included in what was written.
    """

    page_size: int
    transaction: int
    durable_transaction: int
    commits: int
    pages_written: int
    bytes_written: int
    flushes: int
    pages_copied: int
    operations: int
    pages_written_last_commit: int
    flushes_last_commit: int
    dirty_ratios: tuple[float, ...]
    page_count: int
    used_pages: int
    free_pages: int
    pinned_pages: int
    carried_pages: int
    carried_runs: int
    shared_pages: int
    snapshots: int
    readers: int
    file_size: int

    @property
    def pages_per_commit(self) -> float:
        """Pages written for each commit, on average."""
        return self.pages_written / self.commits if self.commits else 0.0

    @property
    def bytes_per_commit(self) -> float:
        """Bytes written for each commit, on average."""
        return self.bytes_written / self.commits if self.commits else 0.0

    @property
    def flushes_per_commit(self) -> float:
        """Flushes for each commit, on average."""
        return self.flushes / self.commits if self.commits else 0.0

    @property
    def copies_per_operation(self) -> float:
        """Pages copied for each put or delete, on average."""
        return self.pages_copied / self.operations if self.operations else 0.0


class Counters:
    """What has been written, by this process since it opened the file. Whoever publishes a commit counts it."""

    __slots__ = (
        "_ratios",
        "commits",
        "flushes",
        "flushes_last_commit",
        "operations",
        "pages_copied",
        "pages_written",
        "pages_written_last_commit",
    )

    def __init__(self) -> None:
        self.commits = self.flushes = self.operations = self.pages_copied = self.pages_written = 0
        self.pages_written_last_commit = self.flushes_last_commit = 0
        self._ratios: list[float] = []

    def publish(self, group: list[Member], flushes: int) -> None:
        """These transactions were published; they share a meta page and so many flushes."""
        ratios = self._ratios
        for member in group:
            self.commits += 1
            self.pages_written += member.written
            self.pages_copied += member.copied
            self.operations += member.operations
            ratios.append(member.written / (member.meta.page_count or 1))
            if len(ratios) >= 2 * _REMEMBERED:
                del ratios[:_REMEMBERED]
            self.pages_written_last_commit = member.written + 1
        self.pages_written += 1
        self.flushes_last_commit = flushes

    @property
    def ratios(self) -> tuple[float, ...]:
        """The dirty-page ratios of the last commits. Any thread may ask: one step takes them all."""
        return tuple(self._ratios[-_REMEMBERED:])
