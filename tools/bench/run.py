"""Run benchmarks and print their tables as Markdown: ``python tools/bench/run.py NAME ...``."""

from __future__ import annotations

import argparse
import importlib
import sys
import tempfile
from pathlib import Path

import harness

NAMES = ("sqlite", "opening", "memory", "old_reader", "sharing")


def main() -> int:
    """Run what the command line names; the exit code."""
    parser = argparse.ArgumentParser(description="Measure cowdb; a Markdown table a benchmark on standard output.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which: {', '.join(NAMES)} (default: all)")
    parser.add_argument("--records", type=int, help="size of the data, for smaller runs (default: each one's own)")
    parser.add_argument("--runs", type=int, default=5, help="paired runs a figure (default and sensible minimum: 5)")
    parser.add_argument("--dir", type=Path, help="where to make the files (default: the system's temporary directory)")
    parser.add_argument("--full", action="store_true", help="old_reader: commit durably, which takes much longer")
    parser.add_argument("--tuned", action="store_true", help="sqlite: give SQLite 1 GiB of cache and memory map")
    parser.add_argument("--strict", action="store_true", help="exit with 1 if a goal is not met")
    arguments = parser.parse_args()
    unknown = sorted(set(arguments.names) - set(NAMES))
    if unknown or arguments.runs < 1 or (arguments.records is not None and arguments.records < 1):
        parser.error(f"unknown benchmark: {', '.join(unknown)}" if unknown else "--runs and --records start at 1")
    if arguments.dir:
        arguments.dir.mkdir(parents=True, exist_ok=True)

    met = True
    with tempfile.TemporaryDirectory(prefix="cowdb-bench-", dir=arguments.dir) as scratch:
        directory = Path(scratch)
        print(f"{harness.machine(directory)} Median of {arguments.runs} paired runs.\n")
        options = harness.Options(directory, arguments.records, arguments.runs, arguments.full, arguments.tuned)
        for name in arguments.names or NAMES:
            report = importlib.import_module(name).run(options)
            print(report.markdown(), flush=True)
            met = met and all(figure.met for figure in report.figures)
    return 1 if arguments.strict and not met else 0


if __name__ == "__main__":
    sys.exit(main())
