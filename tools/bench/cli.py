"""`cowdb check` and `cowdb info` as a user runs them: a process each.

The goals are absolute: `check` at more than 150 MB a second with less than 100 MB
of memory, `info` within 0.3 s on any size.  Beside each run of `check` a bare
process reads the same file and computes the checksum of each page, and beside each run of
`info` one only starts Python and imports cowdb: so one sees what is the work and what
is the machine.

    python tools/bench/cli.py [--records N] [--runs N] [--dir PATH]
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import cowdb
import harness
from harness import AT_LEAST, AT_MOST, Figure, Options, Report

SPEED = 150.0
"""MB a second, at least, a MB of 1,000,000 bytes."""
MEMORY = 100.0
"""MB of resident memory, at most."""
SECONDS = 0.3
"""For `info`, at most."""

BARE_CHECK = """
import sys
from crc32c import crc32c
with open(sys.argv[1], "rb") as file:
    while block := file.read(1 << 20):
        for at in range(0, len(block), 8192):
            crc32c(memoryview(block)[at + 4 : at + 8192])
"""
BARE_INFO = "import cowdb"


MEMORY_CHECK = """
import sys
from cowdb.cli import main
code = main(sys.argv[1:])
with open("/proc/self/status") as status:
    print(next(line.split()[1] for line in status if line.startswith("VmHWM")), file=sys.stderr)
sys.exit(code)
"""
"""A process says itself how much it had at most: what its parent sees begins with what the parent had."""


class Run(NamedTuple):
    """One process: seconds on the clock, and seconds of a processor."""

    seconds: float
    processor: float


def run(options: Options) -> Report:
    """Measure and report."""
    count = options.records or 1_000_000
    large = harness.filled(options.directory, count)
    many = harness.filled(options.directory, 2 * count, 100)
    small = harness.filled(options.directory, max(count // 1000, 1))
    figures = [*checks("1000-byte values", large, options.runs), *checks("100-byte values", many, options.runs)]
    figures += checks("100-byte values, keys at random", hashed(options.directory, 2 * count), options.runs)
    figures += [infos(path, options.runs) for path in (large, small)]
    return Report(
        "cli",
        "cowdb",
        "bare",
        "figure",
        "Each is a whole process, its start included; the files are in the page cache. The goals are MB/s, MB and "
        "seconds. Bare: a process that reads the file and computes the checksum of each page, or only imports cowdb.",
        figures,
    )


def hashed(directory: Path, records: int) -> Path:
    """A file with `records` records of 16-byte keys, random but stored in order, and 100-byte values: full pages."""
    path = directory / f"hashed-{records}.cowdb"
    harness.say(f"filling {path.name}")
    rng = random.Random(1)
    keys = sorted(rng.randbytes(16) for _ in range(records))
    with cowdb.open(path) as db:
        for start in range(0, records, 50_000):
            with db.write(durability="lazy") as txn:
                txn.update([(key, os.urandom(100)) for key in keys[start : start + 50_000]])
        db.sync()
    return path


def checks(what: str, path: Path, runs: int) -> list[Figure]:
    """Speed and memory of a check."""
    harness.say(f"cli: check, {what}")
    size = path.stat().st_size
    ours: list[Run] = []
    bare: list[Run] = []

    def check() -> float:
        ours.append(process("-m", "cowdb", "check", str(path), "--quiet"))
        return ours[-1].seconds

    def read() -> float:
        bare.append(process("-c", BARE_CHECK, str(path)))
        return bare[-1].seconds

    harness.pairs(check, read, runs)
    name = f"check of {harness.size_unit(size)}, {what}"
    figures = []
    for clock, pick in (("", 0), (", per second of a processor", 1)):
        speeds = [size / 1e6 / one[pick] for one in ours]
        beside = statistics.median(size / 1e6 / one[pick] for one in bare)
        cells = f"{statistics.median(speeds):.0f} MB/s", f"{beside:.0f} MB/s"
        figures.append(Figure(name + clock, *cells, speeds, AT_LEAST, SPEED))
    if sys.platform == "linux":
        most = memory("check", str(path), "--quiet")
        figures.append(Figure(f"{name}: memory", f"{most:.0f} MB", "", [most], AT_MOST, MEMORY))
    return figures


def memory(*arguments: str) -> float:
    """The most memory that a command had, in MB."""
    done = subprocess.run([sys.executable, "-c", MEMORY_CHECK, *arguments], capture_output=True, check=True, text=True)
    return int(done.stderr.split()[-1]) * 1024 / 1e6


def infos(path: Path, runs: int) -> Figure:
    """The time of `info`."""
    name = f"info, {harness.size_unit(path.stat().st_size)}"
    harness.say(f"cli: {name}")
    ours, bare = harness.pairs(
        lambda: process("-m", "cowdb", "info", str(path)).seconds, lambda: process("-c", BARE_INFO).seconds, runs
    )
    return Figure(name, f"{statistics.median(ours):.3f} s", f"{statistics.median(bare):.3f} s", ours, AT_MOST, SECONDS)


def process(*arguments: str) -> Run:
    """Run Python with `arguments`; it must end well."""
    usage = None

    def all_of_it() -> None:
        nonlocal usage
        child = subprocess.Popen([sys.executable, *arguments], stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode:
            raise AssertionError(f"{arguments} ended with {child.returncode}")

    seconds = harness.timed(all_of_it)
    assert usage is not None
    return Run(seconds, usage.ru_utime + usage.ru_stime)


def main() -> None:
    """By itself: print the table."""
    parser = argparse.ArgumentParser(description="Measure cowdb check and info; a Markdown table on standard output.")
    parser.add_argument("--records", type=int, help="size of the data (default: 1000000, a file of 1 GB)")
    parser.add_argument("--runs", type=int, default=5, help="runs a figure (default: 5)")
    parser.add_argument("--dir", type=Path, help="where to make the files (default: the system's temporary directory)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="cowdb-bench-", dir=arguments.dir) as scratch:
        directory = Path(scratch)
        print(f"{harness.machine(directory)}\n")
        print(run(Options(directory, arguments.records, arguments.runs)).markdown())


if __name__ == "__main__":
    main()
