"""What all benchmarks share: paired runs, the table and the machine's description.

A figure is a ratio of two things that were measured in turn, moments apart, in one process tree: the noise of a busy
machine falls on both.  Each pair gives one ratio; the median of at least five and their spread are shown.

    pair 1:  A B      pair 2:  B A      pair 3:  A B    ...    ratio = median of A/B
"""

from __future__ import annotations

import dataclasses
import gc
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import cowdb

Point = TypeVar("Point")

AT_LEAST = ">="
AT_MOST = "<="


@dataclasses.dataclass
class Options:
    """What the command line says; a benchmark's own defaults stand where it says nothing."""

    directory: Path
    records: int | None = None
    runs: int = 5
    full: bool = False
    tuned: bool = False
    only: Sequence[str] = ()


@dataclasses.dataclass
class Figure:
    """One row: what was measured, both sides in readable units, the ratios of the pairs and the goal."""

    what: str
    ours: str
    theirs: str
    ratios: Sequence[float]
    direction: str
    goal: float
    wanted: float | None = None
    """A second goal, which is what we are after."""

    @property
    def ratio(self) -> float:
        """The median of the pairs."""
        return statistics.median(self.ratios)

    @property
    def met(self) -> bool:
        """Whether the median reaches the goal."""
        return self.reaches(self.goal)

    def reaches(self, goal: float) -> bool:
        """Whether the median is as good as `goal`."""
        return self.ratio >= goal if self.direction == AT_LEAST else self.ratio <= goal

    def cells(self) -> list[str]:
        """The row of the table."""
        goal, met = f"{self.direction} {self.goal:g}", "yes" if self.met else "**no**"
        if self.wanted is not None:
            goal += f", wanted {self.wanted:g}"
            met += ", both" if self.met and self.reaches(self.wanted) else ""
        return [self.what, self.ours, self.theirs, digits(self.ratio), spread(self.ratios), goal, met]


@dataclasses.dataclass
class Report:
    """One benchmark's outcome: two column heads, a few words, the figures."""

    name: str
    ours: str
    theirs: str
    ratio: str
    note: str
    figures: Sequence[Figure]
    charts: dict[str, bytes] = dataclasses.field(default_factory=dict)

    def body(self) -> str:
        """What stands below the heading: the words and the table."""
        head = ["", self.ours, self.theirs, self.ratio, "spread", "goal", "met"]
        return f"{self.note}\n\n{table(head, [figure.cells() for figure in self.figures])}\n"

    def markdown(self) -> str:
        """A Markdown section with a table."""
        return f"## {self.name}\n\n{self.body()}"


@dataclasses.dataclass
class Section:
    """A part of an outcome that has no goals: Markdown, and charts by their file names."""

    name: str
    text: str
    charts: dict[str, bytes] = dataclasses.field(default_factory=dict)
    figures: Sequence[Figure] = ()

    def body(self) -> str:
        """What stands below the heading."""
        return self.text.rstrip() + "\n"

    def markdown(self) -> str:
        """A Markdown section."""
        return f"## {self.name}\n\n{self.body()}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows))


def pairs(ours: Callable[[], float], theirs: Callable[[], float], runs: int) -> tuple[list[float], list[float]]:
    """What `ours` and `theirs` measured, `runs` times each, in turn; each side goes first every other time."""
    first: list[float] = []
    second: list[float] = []
    for run in range(runs):
        sides = [(first, ours), (second, theirs)]
        for results, measure in sides if run % 2 == 0 else reversed(sides):
            gc.collect()
            results.append(measure())
    return first, second


def in_turn(
    points: Sequence[Point], measure: Callable[[Point, int], list[float]], runs: int
) -> dict[Point, list[list[float]]]:
    """For each of several points the figures of each run; every other run goes backward."""
    found: dict[Point, list[list[float]]] = {point: [] for point in points}
    for number in range(runs):
        for point in points if number % 2 == 0 else reversed(points):
            gc.collect()
            found[point].append(measure(point, number))
    return found


def middle(runs: Sequence[Sequence[float]], place: int) -> float:
    """The median over the runs of one figure of a point."""
    return statistics.median(figures[place] for figures in runs)


def quotients(above: Sequence[float], below: Sequence[float]) -> list[float]:
    """The ratio of each pair."""
    return [a / b for a, b in zip(above, below, strict=True)]


def timed(function: Callable[[], object]) -> float:
    """Seconds that one call of `function` takes."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def rate(seconds: Sequence[float], operations: int) -> str:
    """The median of `seconds` for `operations` operations, as time for one and operations a second."""
    one = statistics.median(seconds) / operations
    return f"{time_unit(one)} ({1 / one:,.0f}/s)"


def digits(ratio: float) -> str:
    """A ratio with two decimals, or two digits if it is smaller than that shows."""
    return f"{ratio:.2f}" if ratio >= 0.1 else f"{ratio:.2g}"


def spread(ratios: Sequence[float]) -> str:
    """The least and the greatest of `ratios`."""
    return f"{digits(min(ratios))} to {digits(max(ratios))}"


def time_unit(seconds: float) -> str:
    """Seconds in a unit that reads well."""
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-9:.3g} ns"


def size_unit(size: float) -> str:
    """Bytes in a unit that reads well, powers of 1024."""
    for unit in ("bytes", "KiB", "MiB"):
        if abs(size) < 1024:
            return f"{size:.4g} {unit}"
        size /= 1024
    return f"{size:.4g} GiB"


def file_size(path: Path) -> int:
    """Length of the file in bytes, holes included."""
    return path.stat().st_size


def flush_time(directory: Path) -> float:
    """Seconds that the disk takes to keep one page: write 8 KiB in place and flush, the median of 100."""
    path = directory / "flush"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        os.write(descriptor, bytes(8192))
        os.fsync(descriptor)

        def keep() -> None:
            os.pwrite(descriptor, os.urandom(8192), 0)
            os.fsync(descriptor)

        return statistics.median(timed(keep) for _ in range(100))
    finally:
        os.close(descriptor)
        path.unlink()


def say(text: str) -> None:
    """Tell what goes on, beside the table, which goes to standard output."""
    print(text, file=sys.stderr, flush=True)


# ---------------------------------------------------------------- shared data


def filled(directory: Path, records: int, value_size: int = 1000) -> Path:
    """A file with `records` records: 8-byte keys 0, 1, 2 ... big-endian; `value_size` bytes each. Made once."""
    path = directory / f"filled-{records}-{value_size}.cowdb"
    if path.exists():
        return path
    say(f"filling {path.name}")
    with cowdb.open(path) as db:
        for start in range(0, records, 50_000):
            with db.write(durability="lazy") as txn:
                for number in range(start, min(start + 50_000, records)):
                    txn[number.to_bytes(8, "big")] = os.urandom(value_size)
        db.sync()
    return path


# ---------------------------------------------------------------- the machine


def machine(directory: Path) -> str:
    """A sentence on where this ran: figures mean nothing without it."""
    system = f"{platform.system()} {platform.release()}"
    python = f"{platform.python_implementation()} {platform.python_version()}"
    return (
        f"Measured on {processor()}, {os.cpu_count()} cores, {memory()}, {filesystem(directory)}, {system}, {python}, "
        f"cowdb {cowdb.__version__}{load()}."
    )


def load() -> str:
    """What else the machine does: its load, before anything is measured."""
    try:
        return f"; the load average was {os.getloadavg()[0]:.1f} when it began"
    except (AttributeError, OSError):
        return ""


def processor() -> str:
    """The processor's name."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def memory() -> str:
    """How much memory there is."""
    try:
        return size_unit(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")) + " of memory"
    except (OSError, ValueError):
        return "unknown memory"


def filesystem(directory: Path) -> str:
    """The type of the file system that `directory` is on."""
    best, kind = "", "unknown file system"
    try:
        mounts = Path("/proc/mounts").read_text(encoding="utf-8").splitlines()
    except OSError:
        return kind
    for line in mounts:
        _, point, name, *_ = line.split(" ")
        inside = str(directory.resolve()).startswith(point.rstrip("/") + "/")
        if inside and len(point) > len(best):
            best, kind = point, name
    return kind
