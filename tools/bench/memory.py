"""Reading a large file at random takes little of Python's heap: the data stays in the operating system's page cache.

Each run is a new process that opens a file of about 1 GB, reads records at random and tells the peak of what
`tracemalloc` saw.  The other side of the pair is the limit, 64 MiB, so the ratio is the share of it that was used.
"""

from __future__ import annotations

import random
import subprocess
import sys
import tracemalloc

import cowdb
import harness
from harness import AT_MOST, Figure, Options, Report

LIMIT = 64 << 20


def run(options: Options) -> Report:
    """Measure and report."""
    count = options.records or 1_000_000
    reads = min(count, 100_000)
    path = harness.filled(options.directory, count)
    harness.say("memory")
    peaks = []
    for seed in range(options.runs):
        command = [sys.executable, __file__, str(path), str(count), str(reads), str(seed)]
        peaks.append(int(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout))
    peaks.sort()
    return Report(
        "memory",
        "peak of the heap",
        "limit",
        "share",
        f"{reads:,} reads at random in a file of {harness.size_unit(harness.file_size(path))}, each run in a process "
        "of its own. Counted is all that Python allocated after its start, by tracemalloc.",
        [
            Figure(
                "random reads",
                harness.size_unit(peaks[len(peaks) // 2]),
                harness.size_unit(LIMIT),
                [peak / LIMIT for peak in peaks],
                AT_MOST,
                1.0,
            )
        ],
    )


def read(path: str, count: int, reads: int, seed: int) -> int:
    """Peak of the traced memory in bytes while reading `reads` of `count` records."""
    rng = random.Random(seed)
    tracemalloc.start()
    with cowdb.open(path, read_only=True) as db, db.read() as snap:
        for _ in range(reads):
            snap[rng.randrange(count).to_bytes(8, "big")]
        return tracemalloc.get_traced_memory()[1]


if __name__ == "__main__":
    print(read(sys.argv[1], *map(int, sys.argv[2:])))
