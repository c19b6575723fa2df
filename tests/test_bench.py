"""The benchmarks run and print their tables; how fast anything is, is not tested here."""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

pytestmark = pytest.mark.untraced

RUN = Path(__file__).parents[1] / "tools" / "bench" / "run.py"

ROWS = {
    "sqlite": ["random get", "full scan", "load, random order, one transaction", "durable transaction of one put"],
    "opening": ["open, get, close", "the same, read-only"],
    "memory": ["random reads"],
    "old_reader": ["growth under an old reader"],
    "sharing": [
        "durable transactions, 16 threads",
        "one call each, 16 threads",
        "durable transactions, where a flush takes 1 ms more",
        "one call each, where a flush takes 1 ms more",
        "durable transactions, where a flush takes 4 ms more",
        "one call each, where a flush takes 4 ms more",
        "random gets while a process commits every 5 ms, 2 processes",
        "random gets while a process commits without a pause, 2 processes",
        "lazy commit, 20 snapshots in 4 processes: added ms",
    ],
}


def run(*arguments, **environment):
    command = [sys.executable, str(RUN), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **environment})


@pytest.fixture
def bench(monkeypatch):
    """Import a module of the benchmarks."""
    monkeypatch.syspath_prepend(RUN.parent)
    return importlib.import_module


@pytest.fixture
def harness(bench):
    return bench("harness")


@pytest.fixture(scope="module")
def quick():
    """A directory in memory where there is one: thousands of flushes are none of what is tested here."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as directory:
        yield Path(directory)


def sections(text):
    """Heading to the tables below it, each a list of rows of cells."""
    found = {}
    for part in re.split(r"^## ", text, flags=re.MULTILINE)[1:]:
        name, _, body = part.partition("\n")
        blocks = re.findall(r"(?:^\|.*\n?)+", body, re.MULTILINE)
        found[name] = [[[cell.strip() for cell in line[1:-1].split(" | ")] for line in b.splitlines()] for b in blocks]
    return found


@pytest.mark.parametrize("name", ROWS)
def test_prints_its_table(name, quick):
    tmp_path = quick / name
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


def test_the_floor_under_a_durable_commit_is_the_disks(quick):
    done = run("flushing", "--records", "5", "--runs", "2", "--dir", str(quick / "flushing"))
    assert done.returncode == 0, done.stderr
    ((head, _, *rows),) = sections(done.stdout)["flushing"]
    assert head == ["", "a commit", "ratio", "spread"]
    assert [row[0].partition(":")[0] for row in rows] == [
        "cowdb",
        "the same, but the disk begins when it is flushed",
        "as the first, but the three lie side by side",
        "LMDB",
        "SQLite",
        "cowdb, sixteen puts in one commit",
    ]
    assert rows[0][2:] == ["1.00", "1.00 to 1.00"]
    for row in rows:
        low, _, high = row[3].partition(" to ")
        assert 0 < float(low) <= float(row[2]) <= float(high)
    assert not list((quick / "flushing").iterdir()), "it leaves files behind"


# ---------------------------------------------------------------- beside the peers, and copy-on-write


PEERS = {"plain": "cowdb", "lmdb": "lmdb", "sqlite3": "sqlite3", "plyvel": "plyvel", "rocksdict": "rocksdict"}


@pytest.fixture(scope="module")
def raced(quick):
    """What a run of all workloads over all stores printed, and its charts."""
    directory, pictures = quick / "peers", quick / "peers-charts"
    done = run("peers", "--records", 12, "--runs", 1, "--dir", directory, "--charts", pictures)
    assert done.returncode == 0, done.stderr
    assert not list(directory.iterdir()), "it leaves files behind"
    return done, pictures


@pytest.fixture(scope="module")
def copied(quick):
    """The same of the measurements of copy-on-write."""
    directory, pictures = quick / "copying", quick / "copying-charts"
    done = run("copying", "--records", 100, "--runs", 1, "--dir", directory, "--charts", pictures)
    assert done.returncode == 0, done.stderr
    assert not list(directory.iterdir()), "it leaves files behind"
    return done, pictures


@pytest.mark.parametrize("store", PEERS)
def test_every_workload_runs_with_every_store(store, raced, bench):
    if importlib.util.find_spec(PEERS[store]) is None:
        pytest.skip(f"{PEERS[store]} is not installed")
    if store == "plain" and "COWDB_PURE=1 did not choose" in raced[0].stdout:
        pytest.fail("COWDB_PURE=1 is not obeyed")
    assert " failed in " not in raced[0].stdout
    [[head, _rule, *rows]] = sections(raced[0].stdout)["peers all"]
    known = bench("plan").workloads(12)
    del known["get_large"]  # for --full
    titles = [row.title for workload in known.values() for row in workload.rows]
    if not Path("/proc/self/status").exists():
        titles = [title for title in titles if not title.startswith("memory")]
    assert [row[0] for row in rows] == titles
    place = head.index(store)
    for row in rows:
        assert len(row) == len(head)
        if row[place].endswith(")") and "(" in row[place] and "/s" not in row[place]:
            middle, low, high = map(float, re.fullmatch(r"(\S+) \((\S+) to (\S+)\)", row[place]).groups())
            assert 0 < low <= middle <= high
        else:  # what all are compared with
            assert place == 1
            assert row[place][0].isdigit()


def test_who_takes_part_is_said(raced):
    [[_head, _rule, *rows]] = sections(raced[0].stdout)["peers stores"]
    named = [row[0] for row in rows]
    for name in ("cowdb, compiled kernel", "cowdb, plain Python", "lmdb", "sqlite3", "plyvel", "rocksdict"):
        assert (name in named) is not (f"{name} is left out: " in raced[0].stdout)
    assert all(row[1] and "durable: " in row[2] and "lazy: " in row[2] for row in rows)


def test_goals_of_plain_python(raced):
    [[head, _rule, *rows]] = sections(raced[0].stdout)["peers plain"]
    assert head[1:3] == ["cowdb, plain", "sqlite3"]
    goals = {row[0]: row[5] for row in rows}
    assert goals["begin and get"] == ">= 1"
    assert goals["scan forward"] == ">= 0.7"
    assert goals["durable transaction of one put"] == ">= 0.3"


def test_a_store_that_is_not_installed_is_left_out(tmp_path, quick):
    for name in ("lmdb", "rocksdict"):
        (tmp_path / f"{name}.py").write_text("raise ImportError('not here')\n")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    done = run("peers", "--records", 10, "--runs", 1, "--only", "get", "--dir", quick / "fewer", PYTHONPATH=path)
    assert done.returncode == 0, done.stderr
    assert "lmdb is left out: lmdb is not installed." in done.stdout
    assert "rocksdict is left out: rocksdict is not installed." in done.stdout
    [[head, _rule, row]] = sections(done.stdout)["peers all"]
    assert head[1] == "sqlite3"
    assert row[0] == "random get, 10 records"


def test_a_store_that_dies_does_not_end_the_run(bench, tmp_path):
    race = bench("peers").Race(bench("harness").Options(tmp_path, records=10, runs=2))
    known = bench("plan").workloads(10)
    try:
        race.start()
        victim = next(worker for worker in race.workers if worker.name == "sqlite3")
        victim.process.kill()
        victim.process.wait()
        race.do("get", known["get"])
    finally:
        race.end()
    assert "sqlite3" not in race.results["get"]
    assert len(race.results["get"]["plain"]) == 2
    assert len(race.failures) == 1
    assert race.failures[0].startswith("sqlite3 failed in get: its process ")


def test_a_workload_that_fails_leaves_nothing_half_done(bench, tmp_path):
    (tmp_path / "base-100").write_bytes(b"somebody else's")
    work = bench("workloads").Bench(bench("store_trees").Cowdb, tmp_path, 10, full=False)
    with work.base().batch() as batch:
        batch.delete(bench("records").sample(10, 5, "some"))
    assert work.base().scan(reverse=False) == 5
    work.start_over()
    assert work.base().scan(reverse=False) == 10
    work.start_over()
    assert [path.name for path in tmp_path.iterdir()] == ["base-100"]


def test_the_files_of_a_store_are_those_with_its_name(bench, tmp_path):
    for name in ("base-10", "base-10-lock", "base-100", "base-1"):
        (tmp_path / name).write_bytes(b"12345")
    store = bench("store_trees").Cowdb(tmp_path / "base-10")
    assert store.size() == 10
    store.remove()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base-1", "base-100"]


def test_a_worker_stays_in_a_directory_of_its_own(tmp_path):
    (tmp_path / "large").mkdir()
    (tmp_path / "large" / "precious").write_bytes(b"")
    command = [sys.executable, str(RUN.with_name("worker.py")), "sqlite3", str(tmp_path), "3", "-"]
    tasks = '{"workload": "large_8k", "run": 0}\n{"workload": "nonsense", "run": 0}\n'
    done = subprocess.run(command, input=tasks, capture_output=True, text=True, check=True)
    assert [line.split('"')[1] for line in done.stdout.splitlines()] == ["version", "values", "error"]
    assert (tmp_path / "large" / "precious").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cowdb-bench-sqlite3", "large"]


class Finding:
    """A worker that finds what it is told to find."""

    def __init__(self, name, found):
        self.name = name
        self.found = found

    def ask(self, _workload, _run):
        return {"values": {"get": 1.0}, "found": self.found}


def test_stores_that_find_different_things_stop_the_run(bench, tmp_path):
    race = bench("peers").Race(bench("harness").Options(tmp_path, records=10, runs=1))
    race.workers = [Finding("plain", 10), Finding("sqlite3", 9)]
    with pytest.raises(AssertionError, match="do not find the same"):
        race.do("get", bench("plan").workloads(10)["get"])


@pytest.mark.parametrize(("name", "part", "found"), [("copying", "share", ["copying share"]), ("peers", "got", None)])
def test_only_one_part(name, part, found, bench, tmp_path):
    options = bench("harness").Options(tmp_path, records=100, runs=1, only=(part,))
    if found is None:
        with pytest.raises(SystemExit, match=f"{name} has no workload {part}; it has load, "):
            bench(name).run(options)
    else:
        assert [report.name for report in bench(name).run(options)] == found


@pytest.mark.parametrize(
    ("name", "rows"), [("snapshot", 3), ("space", 7), ("batch", 4), ("share", 3), ("writes", 7), ("pages", 10)]
)
def test_copy_on_write_is_measured(name, rows, copied):
    found = sections(copied[0].stdout)[f"copying {name}"]
    head, _rule, *cells = found[0]
    assert len(cells) == rows
    assert all(len(row) == len(head) for row in cells)
    if name == "snapshot":
        assert found[1][2][5:] in (["<= 1.5", "yes"], ["<= 1.5", "**no**"])
    if name == "space":  # all pages written: all of them are there twice
        assert float(cells[-1][1].rstrip("%")) >= 90
    if name == "share":  # all records changed: all pages copied
        assert float(cells[-1][2].rstrip("%")) == 100


def test_charts_are_drawings(raced, copied):
    if importlib.util.find_spec("matplotlib") is None:
        assert not raced[1].exists()
        pytest.skip("matplotlib is not installed")
    names = {path.name for pictures in (raced[1], copied[1]) for path in pictures.iterdir()}
    assert names == {
        *(f"peers-{name}.svg" for name in ("reading", "writing", "transactions", "space")),
        *(f"copying-{name}.svg" for name in ("snapshot", "space", "batch", "share", "writes", "pages")),
    }
    for pictures in (raced[1], copied[1]):
        for path in pictures.iterdir():
            assert path.stat().st_size < 60_000
            drawing = ET.parse(path).getroot()
            assert drawing.tag == "{http://www.w3.org/2000/svg}svg"
            assert [text.text for text in drawing.iter("{http://www.w3.org/2000/svg}text")], "its text is text"
            assert b"<dc:date>" not in path.read_bytes(), "the same figures give the same file"


# ---------------------------------------------------------------- the records


def test_records_are_the_same_everywhere(bench):
    records = bench("records")
    pairs = records.pairs(3, 100)
    assert pairs == records.pairs(3, 100)
    assert len({key for key, _ in pairs}) == 100
    assert {(len(key), len(value)) for key, value in pairs} == {(16, 100)}
    assert [key for key, _ in pairs] != sorted(key for key, _ in pairs)


@pytest.mark.parametrize("count", [1, 7, 100])
def test_samples_are_of_the_records(count, bench, monkeypatch):
    records = bench("records")
    monkeypatch.setattr(records, "CHUNK", 30)
    keys = {key for number, length in records.chunks(count) for key, _ in records.pairs(number, length)}
    assert len(keys) == count
    sample = records.sample(count, 50, "seed")
    assert len(set(sample)) == len(sample) == min(count, 50)
    assert set(sample) <= keys
    assert not keys & set(records.missing(50, "seed"))


def test_sorted_records_rise_over_the_chunks(bench, monkeypatch):
    records = bench("records")
    monkeypatch.setattr(records, "CHUNK", 30)
    keys = [key for number, length in records.chunks(100) for key, _ in records.sorted_pairs(number, length, 100)]
    assert len(keys) == 100
    assert keys == sorted(set(keys))


def test_the_key_after_a_prefix(bench):
    after = bench("store_trees").after
    assert after(b"a") == b"b"
    assert after(b"a\xff") == b"b"
    assert after(b"\xff\xff") > b"\xff" * 16


# ---------------------------------------------------------------- the documents


def test_parts_of_a_document_are_replaced(bench, tmp_path):
    documents = bench("documents")
    for name in documents.FILES:
        (tmp_path / name).write_text(f"# {name}\n<!-- begin {name} x -->\nold\n<!-- end {name} x -->\nby hand\n")
    first, second = documents.FILES
    documents.write({f"{first} x": "new\n"}, {"a.svg": b"<svg/>"}, tmp_path)
    documents.write({f"{first} x": "newer | with \\1"}, {}, tmp_path)
    assert (tmp_path / first).read_text() == (
        f"# {first}\n<!-- begin {first} x -->\n\nnewer | with \\1\n\n<!-- end {first} x -->\nby hand\n"
    )
    assert "old" in (tmp_path / second).read_text()
    assert (tmp_path / "charts" / "a.svg").read_bytes() == b"<svg/>"
    with pytest.raises(KeyError, match="no document has marks for: other"):
        documents.write({"other": ""}, {}, tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        "<!-- begin a -->\n",
        "<!-- end a -->\n",
        "<!-- begin a -->\n<!-- end b -->\n",
        "<!-- begin a -->\n<!-- begin b -->\n<!-- end b -->\n<!-- end a -->\n",
        "<!-- begin a -->\n<!-- end a -->\n" * 2,
    ],
)
def test_marks_without_a_partner_are_errors(text, bench):
    with pytest.raises(ValueError, match="mark|part"):
        bench("documents").marked(text)


def test_the_documents_have_a_place_for_everything(raced, copied, bench):
    documents = bench("documents")
    texts = {name: (documents.DOCS / name).read_text(encoding="utf-8") for name in documents.FILES}
    marks = [mark for text in texts.values() for mark in documents.marked(text)]
    made = ["peers machine", *sections(raced[0].stdout), "copying machine", *sections(copied[0].stdout)]
    assert sorted(marks) == sorted(made)
    linked = [link for text in texts.values() for link in re.findall(r"\]\(charts/([^)]+)\)", text)]
    assert sorted(linked) == sorted(path.name for path in (documents.DOCS / documents.CHARTS).iterdir())


@pytest.mark.parametrize("arguments", [["sqlite", "--write-docs"], ["peers", "--only", "get", "--write-docs"]])
def test_half_a_table_is_not_written_into_the_documents(arguments, bench, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["run.py", *arguments])
    with pytest.raises(SystemExit):
        bench("run").main()
    assert "--write-docs" in capsys.readouterr().err


# ---------------------------------------------------------------- what all share


def test_points_are_measured_forward_and_backward(harness):
    order = []

    def measure(point, number):
        order.append(point)
        return [float(10 * point + number)]

    found = harness.in_turn([1, 2, 3], measure, 2)
    assert order == [1, 2, 3, 3, 2, 1]
    assert found == {1: [[10.0], [11.0]], 2: [[20.0], [21.0]], 3: [[30.0], [31.0]]}
    assert harness.middle(found[2], 0) == 20.5


@pytest.mark.parametrize(
    ("direction", "ratio", "goal", "wanted", "cell"),
    [
        (">=", 2.0, 1.4, 1.8, "yes, both"),
        (">=", 1.5, 1.4, 1.8, "yes"),
        (">=", 1.0, 1.4, 1.8, "**no**"),
        ("<=", 0.5, 0.75, 0.55, "yes, both"),
        ("<=", 0.6, 0.75, 0.55, "yes"),
        ("<=", 0.8, 0.75, 0.55, "**no**"),
    ],
)
def test_two_goals(direction, ratio, goal, wanted, cell, harness):
    cells = harness.Figure("what", "1", "2", [ratio], direction, goal, wanted).cells()
    assert cells[5:] == [f"{direction} {goal:g}, wanted {wanted:g}", cell]


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


def test_a_thread_that_fails_stops_the_run(bench):
    done = []
    assert bench("together").in_threads(3, done.append) > 0
    assert sorted(done) == [0, 1, 2]
    with pytest.raises(ZeroDivisionError):
        bench("together").in_threads(2, lambda number: 1 // number)
