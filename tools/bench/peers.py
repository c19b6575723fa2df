"""cowdb beside LMDB, SQLite, LevelDB and RocksDB, all from Python, in processes that take turns.

Each store has a process of its own (`worker`), since the form of cowdb's kernel is chosen when it is imported.  One
works while the others wait, moments apart, so that the noise of the machine falls on all; every other run goes
backwards through them.  So a ratio is one of neighbours in time:

    run 1:  cowdb  plain  lmdb  sqlite3  plyvel  rocksdict
    run 2:  rocksdict  plyvel  sqlite3  lmdb  plain  cowdb        ratio = median of theirs/ours
"""

from __future__ import annotations

import dataclasses
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import charts
import harness
from harness import AT_LEAST, AT_MOST, Figure, Options, Report, Section
from plan import Row, Workload, workloads
from stores import KINDS
from worker import RELEASE

WORKER = Path(__file__).with_name("worker.py")

Results = dict[str, dict[str, list[float]]]
"""Row, store, a figure a run."""


@dataclasses.dataclass(frozen=True)
class Goal:
    """A row's goals: a ratio that must be reached and one that is wanted."""

    row: str
    direction: str
    must: float
    wanted: float | None = None


COMPILED = (
    Goal("get", AT_LEAST, 1.4, 1.8),
    Goal("missing", AT_LEAST, 1.4, 1.8),
    Goal("hot", AT_LEAST, 1.5, 2),
    Goal("begin_get", AT_LEAST, 1, 1.5),
    Goal("scan", AT_LEAST, 1.6, 2),
    Goal("back", AT_LEAST, 1.6, 2),
    Goal("range", AT_LEAST, 1.2, 2),
    Goal("load", AT_LEAST, 1.5, 2.2),
    Goal("load_sorted", AT_LEAST, 1.3, 2),
    Goal("replace", AT_LEAST, 1.4, 1.9),
    Goal("delete", AT_LEAST, 1.4, 2.4),
    Goal("put_durable", AT_MOST, 0.75, 0.55),
    Goal("put_lazy", AT_MOST, 2.5, 1),
    Goal("threads", AT_LEAST, 5, 10),
    Goal("thread_calls", AT_LEAST, 5, 10),
    Goal("size", AT_MOST, 1, 0.8),
    Goal("growth", AT_MOST, 0.01, 0.001),
)
"""Compiled, against LMDB."""

PLAIN = (
    *(
        Goal(row, AT_LEAST, 1)
        for row in ("get_small", "get", "missing", "hot", "begin_get", "range", "prefix", "get_8k", "get_64k", "get_1m")
    ),
    *(Goal(row, AT_LEAST, 0.7) for row in ("scan", "back")),
    *(
        Goal(row, AT_LEAST, 0.3)
        for row in (
            "load",
            "load_sorted",
            "replace",
            "delete",
            "put_durable",
            "put_lazy",
            "put_8k",
            "put_64k",
            "put_1m",
        )
    ),
)
"""Plain Python, against SQLite."""


class Worker:
    """A store's process."""

    def __init__(self, name: str, directory: Path, records: int, *, full: bool) -> None:
        environment = {key: value for key, value in os.environ.items() if key != "COWDB_PURE"}
        if name == "plain":
            environment["COWDB_PURE"] = "1"
        self.name = name
        self.process = subprocess.Popen(
            [sys.executable, str(WORKER), name, str(directory), str(records), "full" if full else "-"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        self.hello = self._answer()

    def ask(self, workload: str, run: int) -> dict[str, Any]:
        """Have it done; what it answers. A process that died answers with an error, too."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps({"workload": workload, "run": run}) + "\n")
            self.process.stdin.flush()
        except OSError:
            return {"error": "its process is gone"}
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            return {"error": f"its process ended with {self.process.wait()}"}
        answer: dict[str, Any] = json.loads(line)
        return answer

    def end(self) -> None:
        """Let it end, and wait until it has."""
        try:
            self.process.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.communicate()


class Race:
    """All workers, and what they measured."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.records = options.records or 1_000_000
        self.workers: list[Worker] = []
        self.hellos: dict[str, dict[str, Any]] = {}
        self.failures: list[str] = []
        self.results: Results = {}

    def start(self) -> None:
        """Start a worker for each store that is there."""
        for name in KINDS:
            worker = self._worker(name)
            self.hellos[name] = worker.hello
            if "version" in worker.hello:
                self.workers.append(worker)
            else:
                worker.end()

    def _worker(self, name: str) -> Worker:
        return Worker(name, self.options.directory, self.records, full=self.options.full)

    def end(self) -> None:
        """End all of them."""
        for worker in self.workers:
            worker.end()

    def do(self, name: str, workload: Workload) -> None:
        """All runs of one workload."""
        failed: set[str] = set()
        if workload.alone:
            for worker in self.workers:
                worker.ask(RELEASE, 0)
        for run in range(self.options.runs):
            found: dict[str, int] = {}
            for worker in self.workers if run % 2 == 0 else reversed(self.workers):
                if worker.name in failed:
                    continue
                answer = self._ask_alone(worker.name, name, run) if workload.alone else worker.ask(name, run)
                if "error" in answer:
                    failed.add(worker.name)
                    self.failures.append(f"{worker.name} failed in {name}: {answer['error']}.")
                    continue
                found[worker.name] = answer["found"]
                for row, value in answer["values"].items():
                    self.results.setdefault(row, {}).setdefault(worker.name, []).append(value)
            if len(set(found.values())) > 1:
                raise AssertionError(f"{name}: the stores do not find the same: {found}")
        for row in workload.rows:  # half a row would be paired wrongly
            for store in failed:
                self.results.get(row.key, {}).pop(store, None)

    def _ask_alone(self, store: str, name: str, run: int) -> dict[str, Any]:
        worker = self._worker(store)
        try:
            return worker.ask(name, run) if "version" in worker.hello else worker.hello
        finally:
            worker.end()


def run(options: Options) -> list[Report | Section]:
    """Measure and report."""
    race = Race(options)
    known = workloads(race.records)
    if not options.full:
        del known["get_large"]
    unknown = sorted(set(options.only) - known.keys())
    if unknown:
        raise SystemExit(f"peers has no workload {', '.join(unknown)}; it has {', '.join(known)}")
    try:
        race.start()
        for name, workload in known.items():
            if not options.only or name in options.only:
                harness.say(f"peers: {name}")
                race.do(name, workload)
    finally:
        race.end()
    rows = {row.key: row for workload in known.values() for row in workload.rows}
    flush = harness.time_unit(harness.flush_time(options.directory))
    return [
        stores(race),
        goals(
            "peers goals", "cowdb", "lmdb", COMPILED, race, rows, f"Here the disk keeps one page of 8 KiB in {flush}."
        ),
        goals("peers plain", "plain", "sqlite3", PLAIN, race, rows, ""),
        everything(race, rows),
    ]


def stores(race: Race) -> Section:
    """Who takes part, with which settings, and who does not."""
    names = {"cowdb": "cowdb, compiled kernel", "plain": "cowdb, plain Python"}
    cells = [
        [names.get(name, name), hello["version"], hello["settings"]]
        for name, hello in race.hellos.items()
        if "version" in hello
    ]
    said = [
        f"{names.get(name, name)} is left out: {hello.get('missing') or hello.get('error')}."
        for name, hello in race.hellos.items()
        if "version" not in hello
    ]
    text = harness.table(["", "version", "what is not as it comes, and durability"], cells)
    return Section("peers stores", "\n\n".join([text, *said, *race.failures]))


def goals(
    name: str, ours: str, theirs: str, wanted: Sequence[Goal], race: Race, rows: Mapping[str, Row], note: str
) -> Report | Section:
    """The rows that have goals."""
    figures = []
    for goal in wanted:
        row, results = rows[goal.row], race.results.get(goal.row, {})
        if ours in results and theirs in results:
            a, b = results[ours], results[theirs]
            ratios = harness.quotients(b, a) if goal.direction == AT_LEAST else harness.quotients(a, b)
            figures.append(
                Figure(row.title, shown(row, a), shown(row, b), ratios, goal.direction, goal.must, goal.wanted)
            )
    missing = [each for each in (ours, theirs) if not any(each in row for row in race.results.values())]
    if not figures:
        return Section(name, f"Not measured: {' and '.join(missing) or 'none of these rows'} did not take part.")
    words = (
        f"{race.records:,} records of 16-byte random keys and 100-byte values. Where the goal is at least (>=), the "
        "ratio says how many times as fast cowdb is; where it is at most (<=), it is cowdb's time or size by "
        f"{theirs}'s."
    )
    return Report(
        name, "cowdb" if ours == "cowdb" else "cowdb, plain", theirs, "ratio", f"{words} {note}".rstrip(), figures
    )


def everything(race: Race, rows: Mapping[str, Row]) -> Section:
    """All rows and all stores, as ratios to LMDB, or to SQLite where LMDB is not there."""
    taking = [worker.name for worker in race.workers]
    base = "lmdb" if "lmdb" in taking else "sqlite3"
    others = [name for name in taking if name != base]
    cells = []
    pictures: dict[str, dict[str, dict[str, list[float]]]] = {}
    for key, row in rows.items():
        results = race.results.get(key, {})
        if base not in results:
            continue
        ratios = {name: harness.quotients(results[base], results[name]) for name in others if name in results}
        values = [
            f"{harness.digits(statistics.median(ratios[name]))} ({harness.spread(ratios[name])})"
            if name in ratios
            else "-"
            for name in others
        ]
        cells.append([row.title, shown(row, results[base]), *values])
        if ratios:
            pictures.setdefault(row.chart, {})[row.title] = ratios
    text = (
        f"How many times as fast as {base}, or as small: median of the paired runs, and their spread; above 1 is "
        f"better than {base}. The columns cowdb and plain are the compiled kernel and the one in plain Python.\n\n"
        + harness.table(["", base, *others], cells)
    )
    drawn = {}
    if charts.available():
        for chart, lines in pictures.items():
            label = f"times as {'small' if chart == 'space' else 'fast'} as {base}: right is better"
            drawn[f"peers-{chart}.svg"] = charts.dots(chart.capitalize(), label, lines, base)
    else:
        text += "\n\nCharts are left out: matplotlib is not installed."
    return Section("peers all", text, drawn)


def shown(row: Row, values: Sequence[float]) -> str:
    """The median of what a store measured, in units of the row."""
    middle = statistics.median(values)
    return harness.size_unit(middle) if row.unit == "bytes" else harness.rate([middle], 1)
