"""The command ``python -m fuzz PART``; ``--help`` lists the parts."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import os
import random
import sys
import time
from dataclasses import dataclass
from typing import Final

from fuzz.harness import Bar, Options, Result

PARTS: Final = {
    "crash": (90, "power cuts at every moment of every short workload, and of many long ones"),
    "faults": (50, "errors at every call to the disk, flushes that fail, and the same by real system calls"),
    "corrupt": (60, "damaged, forged, truncated and shuffled files"),
    "kill": (40, "real processes killed at random moments, real file systems cut off"),
    "oom": (20, "no memory, at every point"),
    "prove": (40, "bugs switched on one by one: does the harness see them?"),
}
"""For each part its share of ``all`` and its sentence."""

CORRUPT_KINDS: Final = ("flip", "forge", "cut", "page", "sector")
"""The kinds of damage of ``corrupt``."""


@dataclass(frozen=True)
class Line:
    """One line of the table at the end."""

    part: str
    result: Result
    seconds: float


def main(arguments: list[str] | None = None) -> int:
    """Run what the command line asks for; 0 if nothing was found, 1 if something was, 2 for a wrong command line."""
    parser = argparse.ArgumentParser(
        prog="python -m fuzz",
        description="Try to make cowdb lose, mix up or damage data.",
        epilog="\n".join([f"  {part:8} {text}" for part, (_, text) in PARTS.items()] + ["  all      all of these"]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("part", choices=[*PARTS, "all"], help="what to run, see below")
    parser.add_argument("--seconds", type=float, default=None, help="how long (default: 60; all: 300)")
    parser.add_argument(
        "--seed", type=int, default=None, help="where to begin (default: a fresh one, which is printed)"
    )
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes (default: one a core)")
    parser.add_argument("--replay", default=None, metavar="CASE", help="run one case only, as a failure has printed it")
    parser.add_argument(
        "--kind",
        action="append",
        default=[],
        choices=CORRUPT_KINDS,
        help="corrupt: only damage of this kind; may be repeated. With flip alone it ends when each byte was tried",
    )
    given = parser.parse_args(arguments)
    if given.seconds is not None and given.seconds <= 0:
        parser.error("--seconds has to be more than 0")
    if given.jobs < 1:
        parser.error("--jobs has to be at least 1")
    if given.kind and given.part != "corrupt":
        parser.error("--kind is for corrupt alone")
    if given.replay is not None and given.part == "all":
        parser.error("--replay needs the part that printed the case")
    seed = random.SystemRandom().randrange(1 << 32) if given.seed is None else given.seed
    parts = list(PARTS) if given.part == "all" else [given.part]
    missing = [part for part in parts if importlib.util.find_spec(f"fuzz.{part}") is None]
    for part in missing:
        print(f"{part}: not here: there is no module fuzz/{part}.py")
    parts = [part for part in parts if part not in missing]
    if not parts:
        return 2
    seconds = given.seconds or (300.0 if given.part == "all" else 60.0)
    if given.replay is None:
        print(f"seed {seed}, {given.jobs} processes, {seconds:g} s", flush=True)
    weights = sum(PARTS[part][0] for part in parts)
    lines = []
    for part in parts:
        options = Options(seconds * PARTS[part][0] / weights, seed, given.jobs, given.replay, tuple(given.kind))
        try:
            lines.append(_run(part, options))
        except ValueError as error:
            if given.replay is None:
                raise
            parser.error(f"--replay: {error}")
    if given.replay is None:
        _table(lines)
    failures = _failures(lines)
    return 1 if failures else 0


def _run(part: str, options: Options) -> Line:
    module = importlib.import_module(f"fuzz.{part}")
    begun = time.monotonic()
    with Bar(part, options.seconds) as bar:
        result = module.run(options, bar)
    return Line(part, result, time.monotonic() - begun)


def _table(lines: list[Line]) -> None:
    print()
    print(f"{'part':8} {'cases':>12} {'seconds':>8} {'a second':>9} {'failures':>8}")
    for line in lines:
        rate = line.result.cases / max(line.seconds, 0.001)
        bad = len(line.result.failures)
        print(f"{line.part:8} {line.result.cases:>12,} {line.seconds:>8.1f} {rate:>9,.0f} {bad:>8}")
        for kind, count in sorted(line.result.counts.items()):
            print(f"{'':8} {count:>12,} {kind}")
        if line.result.skipped is not None:
            print(f"{'':8} skipped: {line.result.skipped}")


def _failures(lines: list[Line]) -> int:
    number = 0
    for line in lines:
        for failure in line.result.failures:
            number += 1
            print(f"\n{line.part} failure {number}: {failure.story}")
            print(f"  replay:  python -m fuzz {line.part} --replay '{failure.replay}'")
    return number


if __name__ == "__main__":
    sys.exit(main())
