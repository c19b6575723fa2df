"""What copy-on-write costs and saves, counted as it happens."""

from __future__ import annotations

import dataclasses

__all__ = ["Stats"]


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
