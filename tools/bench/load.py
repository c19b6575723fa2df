"""`cowdb load` and `cowdb dump` of JSON Lines, as a user runs them: a process each, from file to file.

The goal is a time: a million entries within 20 s.  Beside each run a bare loop
of Python reads the same file and parses each line into a dict, so that one sees
how much of the time is JSON and this machine's mood.

    python tools/bench/load.py [--records N] [--runs N] [--dir PATH]
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import harness
from harness import AT_MOST, Figure, Options, Report

GOAL = 20.0
"""Seconds for a million entries."""

BARE = "import json, sys; print(len({entry['key']: entry['value'] for entry in map(json.loads, open(sys.argv[1]))}))"


def run(options: Options) -> Report:
    """Measure and report."""
    count = options.records or 1_000_000
    ordered, shuffled = write_inputs(options.directory, count)
    target, out = options.directory / "loaded.cowdb", options.directory / "dumped.jsonl"

    def load(source: Path) -> float:
        for path in (target, target.with_name(f"{target.name}-lock")):
            path.unlink(missing_ok=True)
        return harness.timed(lambda: cowdb("load", target, source))

    def dump() -> float:
        seconds = harness.timed(lambda: cowdb("dump", target, out, "--force"))
        if out.read_bytes() != ordered.read_bytes():
            raise AssertionError("what was dumped is not what was loaded")
        return seconds

    figures = [
        figure("load, in key order", lambda: load(ordered), ordered, count, options.runs),
        figure("dump", dump, ordered, count, options.runs),
        figure("load, in random order", lambda: load(shuffled), shuffled, count, options.runs),
    ]
    for path in (ordered, shuffled, target, target.with_name(f"{target.name}-lock"), out):
        path.unlink(missing_ok=True)
    return Report(
        "load",
        "cowdb",
        "bare loop",
        "s a million",
        f"{count:,} entries of 14-byte keys and 100-byte values, {harness.size_unit(len(line(0, b'')) + 100)} a line; "
        "each time is that of a whole process.",
        figures,
    )


def line(number: int, value: bytes) -> bytes:
    """One entry as a line."""
    return b'{"key": "user:%09d", "value": "%s"}\n' % (number, value)


def write_inputs(directory: Path, count: int) -> tuple[Path, Path]:
    """Two files of the same entries: in key order, and in random order."""
    harness.say("load: making the input")
    rng = random.Random(1)
    lines = [line(number, rng.randbytes(50).hex().encode()) for number in range(count)]
    json.loads(lines[0])
    ordered, shuffled = directory / "ordered.jsonl", directory / "shuffled.jsonl"
    ordered.write_bytes(b"".join(lines))
    rng.shuffle(lines)
    shuffled.write_bytes(b"".join(lines))
    return ordered, shuffled


def cowdb(*arguments: object) -> None:
    """Run the command in a process of its own."""
    subprocess.run(
        [sys.executable, "-m", "cowdb", *map(str, arguments), "--quiet"], stdout=subprocess.DEVNULL, check=True
    )


def figure(what: str, ours: Callable[[], float], source: Path, count: int, runs: int) -> Figure:
    """The row of one piece of work, in seconds a million."""
    harness.say(f"load: {what}")
    bare = [sys.executable, "-c", BARE, str(source)]
    a, b = harness.pairs(
        ours, lambda: harness.timed(lambda: subprocess.run(bare, stdout=subprocess.DEVNULL, check=True)), runs
    )
    seconds = [time * 1_000_000 / count for time in a]
    return Figure(what, harness.rate(a, count), harness.rate(b, count), seconds, AT_MOST, GOAL)


def main() -> None:
    """By itself: print the table."""
    parser = argparse.ArgumentParser(description="Measure cowdb load and dump; a Markdown table on standard output.")
    parser.add_argument("--records", type=int, help="size of the data (default: 1000000)")
    parser.add_argument("--runs", type=int, default=5, help="runs a figure (default: 5)")
    parser.add_argument("--dir", type=Path, help="where to make the files (default: the system's temporary directory)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="cowdb-bench-", dir=arguments.dir) as scratch:
        directory = Path(scratch)
        print(f"{harness.machine(directory)}\n")
        print(run(Options(directory, arguments.records, arguments.runs)).markdown())


if __name__ == "__main__":
    main()
