"""The benchmarks run and print their tables; how fast anything is, is not tested here."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

RUN = Path(__file__).parents[1] / "tools" / "bench" / "run.py"

ROWS = {
    "sqlite": ["random get", "full scan", "load, random order, one transaction", "durable transaction of one put"],
    "opening": ["open, get, close", "the same, read-only"],
    "memory": ["random reads"],
    "old_reader": ["growth under an old reader"],
    "sharing": [
        "durable transactions, 16 threads",
        "random gets while a process commits, 2 processes",
        "lazy commit, 20 snapshots in 4 processes: added ms",
    ],
}


def run(*arguments):
    return subprocess.run([sys.executable, str(RUN), *arguments], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("name", ROWS)
def test_prints_its_table(name, tmp_path):
    done = run(name, "--records", "200", "--runs", "2", "--dir", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Measured on ")
    assert "Median of 2 paired runs." in done.stdout
    lines = done.stdout.splitlines()
    assert f"## {name}" in lines
    table = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    head, rule, *rows = table
    assert len(head) == len(rule) == 7
    assert [row[0] for row in rows] == ROWS[name]
    for row in rows:
        assert float(row[3]) > 0
        low, _, high = row[4].partition(" to ")
        assert float(low) <= float(row[3]) <= float(high)
        assert row[6] in ("yes", "**no**")
    assert not list(tmp_path.iterdir()), "it leaves files behind"


@pytest.fixture
def harness(monkeypatch):
    monkeypatch.syspath_prepend(RUN.parent)
    return importlib.import_module("harness")


def test_pairs_take_turns_at_going_first(harness):
    order = []

    def side(name):
        def measure():
            order.append(name)
            return float(len(order))

        return measure

    first, second = harness.pairs(side("a"), side("b"), 3)
    assert order == ["a", "b", "b", "a", "a", "b"]
    assert (first, second) == ([1, 4, 5], [2, 3, 6])


@pytest.mark.parametrize(
    ("direction", "ratios", "met"),
    [(">=", [3, 0.5, 1], True), (">=", [3, 0.5, 0.9], False), ("<=", [1, 9, 0], True), ("<=", [1.1, 9, 0], False)],
)
def test_the_median_decides_whether_a_goal_is_met(harness, direction, ratios, met):
    figure = harness.Figure("what", "1", "2", ratios, direction, 1.0)
    assert figure.met is met
    assert figure.cells()[-1] == ("yes" if met else "**no**")


def test_unknown_name_is_an_error():
    done = run("sqlight")
    assert done.returncode == 2
    assert "unknown benchmark: sqlight" in done.stderr
