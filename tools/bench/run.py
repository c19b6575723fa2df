"""Run benchmarks and print their tables as Markdown: ``python tools/bench/run.py NAME ...``."""

from __future__ import annotations

import argparse
import importlib
import sys
import tempfile
from pathlib import Path

import charts
import documents
import harness

NAMES = ("peers", "copying", "sqlite", "opening", "memory", "old_reader", "sharing", "flushing")


def main() -> int:
    """Run what the command line names; the exit code."""
    parser = argparse.ArgumentParser(description="Measure cowdb; Markdown tables on standard output.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which: {', '.join(NAMES)} (default: all)")
    parser.add_argument("--records", type=int, help="size of the data, for smaller runs (default: each one's own)")
    parser.add_argument("--runs", type=int, default=5, help="paired runs a figure (default and sensible minimum: 5)")
    parser.add_argument("--dir", type=Path, help="where to make the files (default: the system's temporary directory)")
    parser.add_argument(
        "--full",
        action="store_true",
        help="peers: also with ten times the records, and more puts under the old reader; "
        "old_reader: commit durably; all this takes much longer",
    )
    parser.add_argument("--tuned", action="store_true", help="sqlite: give SQLite 1 GiB of cache and memory map")
    parser.add_argument("--only", metavar="PART,...", help="peers and copying: only these workloads or parts")
    parser.add_argument("--charts", type=Path, metavar="DIR", help="write the charts (SVG) into this directory")
    parser.add_argument("--write-docs", action="store_true", help="write tables and charts into docs/")
    parser.add_argument("--strict", action="store_true", help="exit with 1 if a goal is not met")
    arguments = parser.parse_args()
    names = arguments.names or NAMES
    unknown = sorted(set(arguments.names) - set(NAMES))
    if unknown or arguments.runs < 1 or (arguments.records is not None and arguments.records < 1):
        parser.error(f"unknown benchmark: {', '.join(unknown)}" if unknown else "--runs and --records start at 1")
    if arguments.write_docs and (set(names) - {"peers", "copying"} or not charts.available()):
        parser.error("--write-docs is for peers and copying, and needs matplotlib")
    if arguments.write_docs and arguments.only and "peers" in names:
        parser.error("--write-docs writes whole tables: leave --only out with peers")
    if arguments.dir:
        arguments.dir.mkdir(parents=True, exist_ok=True)

    met = True
    with tempfile.TemporaryDirectory(prefix="cowdb-bench-", dir=arguments.dir) as scratch:
        directory = Path(scratch)
        machine = f"{harness.machine(directory)} Median of {arguments.runs} paired runs."
        print(f"{machine}\n")
        only = tuple(arguments.only.split(",")) if arguments.only else ()
        options = harness.Options(directory, arguments.records, arguments.runs, arguments.full, arguments.tuned, only)
        for name in names:
            outcome = importlib.import_module(name).run(options)
            reports = outcome if isinstance(outcome, list) else [outcome]
            parts = {f"{name} machine": machine} if name in ("peers", "copying") else {}
            drawn: dict[str, bytes] = {}
            for report in reports:
                print(report.markdown(), flush=True)
                parts[report.name] = report.body()
                drawn.update(report.charts)
                met = met and all(figure.met for figure in report.figures)
            if arguments.charts:
                documents.save(drawn, arguments.charts)
            if arguments.write_docs:
                documents.write(parts, drawn)
    return 1 if arguments.strict and not met else 0


if __name__ == "__main__":
    sys.exit(main())
