"""What the disk alone takes to keep a small commit, by where its pages lie: the floor under all durable rows.

No database runs here: bare loops write and flush as cowdb, LMDB and SQLite's log do for one put in a tree of three
levels.  A store cannot be quicker than its loop on the same disk.
"""

from __future__ import annotations

import os
import random
import statistics
from collections.abc import Callable

import harness
from cowdb.storage import GATHERED, FileStorage
from harness import Options, Section

FILE = 64 << 20
PAGE = 8192
SMALL = 4096


def run(options: Options) -> Section:
    """Measure and report."""
    rounds = min(options.records or 300, 300)
    harness.say("flushing")
    path = options.directory / "flushing"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    storage = FileStorage(str(path), os.O_RDWR, 0, read_only=False)
    try:
        for start in range(0, FILE, GATHERED):  # by as much as cowdb writes at a time: the system's cache remembers
            os.pwrite(descriptor, os.urandom(GATHERED), start)
        os.fsync(descriptor)
        layouts = Layouts(descriptor, storage)
        found = harness.in_turn(tuple(layouts.known), lambda name, _: [layouts.measure(name, rounds)], options.runs)
    finally:
        storage.close()
        os.close(descriptor)
        path.unlink()
    first = [figures[0] for figures in found[next(iter(found))]]
    rows = []
    for name, runs in found.items():
        times = [figures[0] for figures in runs]
        ratios = harness.quotients(times, first)
        ratio = harness.digits(statistics.median(ratios))
        rows.append([name, harness.time_unit(statistics.median(times)), ratio, harness.spread(ratios)])
    note = (
        f"Bare loops without a database, in a file of {harness.size_unit(FILE)}: the pages that one put changes in a "
        "tree of three levels, and what makes them durable. The ratio is the time by that of the first row."
    )
    return Section("flushing", f"{note}\n\n{harness.table(['', 'a commit', 'ratio', 'spread'], rows)}")


class Layouts:
    """The ways to write a small commit; each leaves the file as long as it is."""

    def __init__(self, descriptor: int, storage: FileStorage) -> None:
        """`storage` is the same file, of which the disk can be asked to begin with what was written."""
        self.descriptor = descriptor
        self.storage = storage
        self.rng = random.Random(1)
        self.end = 0  # of the log
        self.known: dict[str, Callable[[], None]] = {
            "cowdb: three pages of 8 KB far apart, the disk begins, the meta page, a flush": self.begun,
            "the same, but the disk begins when it is flushed": self.scattered,
            "as the first, but the three lie side by side": self.together,
            "LMDB: three pages of 4 KB far apart, a flush, the meta page, a flush": self.two_flushes,
            "SQLite: 4 KB behind those before, a flush": self.log,
            "cowdb, sixteen puts in one commit: 33 pages far apart, the meta page, a flush": self.sixteen,
        }

    def measure(self, name: str, rounds: int) -> float:
        """Seconds that one commit of a layout takes, the median."""
        return statistics.median(harness.timed(self.known[name]) for _ in range(rounds))

    def write(self, offset: int, length: int) -> None:
        """New bytes in place."""
        os.pwrite(self.descriptor, os.urandom(32) * (length // 32), offset)

    def anywhere(self, pages: int = 1) -> int:
        """The offset of a page that lies in no folio with the two meta pages."""
        return self.rng.randrange(GATHERED // PAGE, FILE // PAGE - pages) * PAGE

    def meta(self, size: int) -> None:
        """One of the two meta pages."""
        self.write(self.rng.randrange(2) * PAGE, size)

    def begun(self) -> None:
        """As cowdb does: the free pages lie far apart."""
        for _ in range(3):
            self.write(self.anywhere(), PAGE)
        self.storage.begin_writing(GATHERED)
        self.meta(PAGE)
        os.fdatasync(self.descriptor)

    def scattered(self, pages: int = 3) -> None:
        """As it does with more pages."""
        for _ in range(pages):
            self.write(self.anywhere(), PAGE)
        self.meta(PAGE)
        os.fdatasync(self.descriptor)

    def together(self) -> None:
        """As it would if a run of free pages were always long enough."""
        self.write(self.anywhere(3), 3 * PAGE)
        self.storage.begin_writing(GATHERED)
        self.meta(PAGE)
        os.fdatasync(self.descriptor)

    def sixteen(self) -> None:
        """A leaf and a branch each, and the root, in a tree with some hundred branches."""
        self.scattered(33)

    def two_flushes(self) -> None:
        """As LMDB does."""
        for _ in range(3):
            self.write(self.anywhere(), SMALL)
        os.fdatasync(self.descriptor)
        self.meta(SMALL)
        os.fdatasync(self.descriptor)

    def log(self) -> None:
        """As SQLite does between two checkpoints, when the log has been as long before."""
        self.write(self.end, SMALL)
        self.end = (self.end + SMALL) % FILE
        os.fdatasync(self.descriptor)
