"""What the commands for looking say is true: compared with the engine, and with what was put in."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from commands import cow, cow_json, pages_of, sample, spoil

import cowdb

ROOT = Path(__file__).parents[1]
READER = """
import sys, cowdb
with cowdb.open(sys.argv[1], read_only=True) as db, db.read() as snap:
    print(snap.id, flush=True)
    sys.stdin.readline()
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    path = tmp_path_factory.mktemp("look") / "a.cowdb"
    return path, sample(path)


class Reader:
    """Another process that holds the newest snapshot."""

    def __init__(self, path):
        self.process = subprocess.Popen(
            [sys.executable, "-c", READER, str(path)],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.transaction = int(self.process.stdout.readline())

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.communicate("\n", timeout=60)


def test_info_agrees_with_the_engine(made):
    path, trees = made
    facts = cow_json("info", path)
    with cowdb.open(path, read_only=True) as db:
        info = db.info()
    for name in (
        "page_size", "database_id", "transaction", "durable_transaction", "commit_time", "page_count", "used_pages",
        "free_pages", "file_size", "max_key_size", "entries", "format_version",
    ):  # fmt: skip
        assert facts[name] == info[name], name
    assert facts["trees"] == {name: len(entries) for name, entries in trees.items() if name}
    assert [slot["readable"] for slot in facts["slots"]] == [True, True]
    assert facts["problem"] is None


@pytest.mark.parametrize("durability", ["full", "lazy"])
def test_info_knows_what_is_durable_while_the_file_is_open(tmp_path, durability):
    """The meta page of transaction 4 says that 3 is on disk; that 4 is, too, stands in the lock file."""
    path = tmp_path / "a.cowdb"
    with cowdb.open(path, durability=durability) as db:
        for step in range(3):
            db[b"k"] = b"%d" % step
            if step == 1:
                db.sync()
            facts, info = cow_json("info", path), db.info()
            assert facts["transaction"] == info["transaction"]
            assert facts["durable_transaction"] == info["durable_transaction"]
        assert f"transaction {info['durable_transaction']} is known to be on disk" in cow("info", path).out
    assert cow_json("info", path)["durable_transaction"] == info["transaction"]


def test_info_shows_what_a_snapshot_pins(tmp_path):
    path = tmp_path / "a.cowdb"
    sample(path, 600)
    with Reader(path) as reader:
        with cowdb.open(path) as db:
            for i in range(3):
                with db.write() as txn:
                    txn[b"key:%06d" % (100 * i + 50)] = b"new"
        facts = cow_json("info", path)
        (snapshot,) = facts["snapshots"]
        assert snapshot["pid"] == reader.process.pid
        assert snapshot["transaction"] == reader.transaction
        assert snapshot["behind"] == 3
        assert snapshot["held_pages"] >= 3
        assert f"process {reader.process.pid} reads" in cow("info", path).out

        (row,) = cow_json("readers", path)
        assert (row["pid"], row["behind"], row["held_pages"]) == (reader.process.pid, 3, snapshot["held_pages"])
        assert row["held_size"] == row["held_pages"] * 4096
        assert str(reader.process.pid) in cow("readers", path).out

        held = [run for run in cow_json("free", path) if run["held_by"]]
        by_reader = [run for run in held if f"process {reader.process.pid}" in run["held_by"]]
        assert sum(run["length"] for run in by_reader) == row["held_pages"]
        facts = cow_json("watch", path, "--count", "1")[0]
        assert (facts["snapshots"], facts["oldest_snapshot"]) == (1, reader.transaction)
        assert facts["pinned_pages"] == row["held_pages"]
    assert cow_json("readers", path) == []
    assert "Nobody reads" in cow("readers", path).out


def test_trees_and_stat_count_what_is_there(made):
    path, trees = made
    rows = {row["tree"]: row for row in cow_json("trees", path)}
    assert {name: row["entries"] for name, row in rows.items()} == {
        name or "(main)": len(entries) for name, entries in trees.items()
    }
    stats = {row["tree"]: row for row in cow_json("stat", path)}
    for name, entries in trees.items():
        row = stats[name or "(main)"]
        assert row["entries"] == len(entries)
        assert row["key_bytes"] == sum(map(len, entries))
        assert row["value_bytes"] == sum(map(len, entries.values()))
        assert row["longest_key"] == max(map(len, entries), default=0)
        assert row["longest_value"] == max(map(len, entries.values()), default=0)
        long = [value for value in entries.values() if len(value) > 1024]
        assert row["overflow_values"] == len(long)
        assert row["overflow_bytes"] == sum(map(len, long))
        assert sum(row["leaves_by_fill"]) == row["leaf_pages"]
        for kind in ("branch_pages", "leaf_pages", "overflow_pages"):
            assert row[kind] == rows[name or "(main)"][kind]
    assert cow_json("stat", path, "--tree", "names")[0] == stats["names"]
    assert cow("stat", path, "--tree", "nobody").code == 1


def test_fill_is_what_the_page_says(made):
    path, _ = made
    for record in pages_of(path, "(main)", "leaf")[:5]:
        header = cow_json("page", path, record["page"])["header"]
        slots = cow_json("page", path, record["page"])["slots"]
        front = 32 + (header["prefix_length"] + 7) // 8 * 8 + 8 * len(slots)
        assert record["fill"] == pytest.approx((front + 4096 - header["heap"] - header["dead"]) / 4096, abs=1e-4)


def test_stat_goes_on_behind_damage(made, tmp_path):
    path, _ = made
    copy = tmp_path / "b.cowdb"
    copy.write_bytes(path.read_bytes())
    leaf = pages_of(path, "(main)", "leaf")[3]
    spoil(copy, leaf["page"])
    rows = {row["tree"]: row for row in cow_json("stat", copy, code=1)}
    whole = {row["tree"]: row for row in cow_json("stat", path)}
    assert rows["(main)"]["damaged_pages"] == 1
    assert rows["(main)"]["entries"] == whole["(main)"]["entries"] - leaf["cells"]
    assert rows["names"] == whole["names"]


def test_top_finds_the_largest(tmp_path):
    path = tmp_path / "a.cowdb"
    entries = {b"user:%d" % i: b"u" * (i % 50) for i in range(500)}
    entries |= {b"video/%d" % i: b"v" * 3000 for i in range(20)}
    entries |= {b"nothing%d" % i: b"" for i in range(30)}
    entries |= {b"user:" + b"long" * 40: b"1", b"zz|" * 50: b""}
    with cowdb.open(path) as db, db.write() as txn:
        txn.update(entries)
    found = cow_json("top", path, "--count", "4")
    by_prefix = {row["prefix"]: row for row in found["prefixes"]}
    assert [row["prefix"] for row in found["prefixes"]] == ["video/", "user:", "", "zz|"]
    assert by_prefix["video/"]["entries"] == 20
    assert by_prefix["video/"]["value_bytes"] == 60000
    assert by_prefix["user:"]["entries"] == 501
    assert by_prefix["user:"]["key_bytes"] == sum(len(key) for key in entries if key.startswith(b"user:"))
    assert by_prefix[""]["entries"] == 30
    assert sum(row["share"] for row in found["prefixes"]) == pytest.approx(1)
    assert [row["value_bytes"] for row in found["values"]] == [3000] * 4
    assert [row["key_bytes"] for row in found["keys"]][:2] == [165, 150]
    by_length = cow_json("top", path, "--length", "1")["prefixes"]
    assert {row["prefix"]: row["entries"] for row in by_length} == {"u": 501, "v": 20, "n": 30, "z": 1}
    assert cow_json("top", path, "--delimiters", "")["prefixes"][0]["prefix"].startswith("video/")
    assert cow("top", path, "--delimiters", "\\q").code == 2


def test_top_of_an_empty_tree(made):
    found = cow_json("top", made[0], "--tree", "empty")
    assert found == {"tree": "empty", "entries": 0, "prefixes": [], "values": [], "keys": []}
    assert cow("top", made[0], "--tree", "empty").code == 0


def test_watch_sees_commits(tmp_path):
    path = tmp_path / "a.cowdb"
    sample(path, 600)
    begun, done = threading.Event(), threading.Event()

    def write():
        with cowdb.open(path) as db:
            begun.wait()
            for i in range(5):
                with db.write() as txn:
                    txn[b"watched%d" % i] = b"x"
            done.set()

    from cowdb.cli.watching import Watch

    watch = Watch(str(path), 5.0)
    first = watch.look()
    assert first["commits"] is None
    thread = threading.Thread(target=write)
    thread.start()
    begun.set()
    done.wait()
    second = watch.look()
    thread.join()
    assert second["transaction"] == first["transaction"] + 5
    assert second["commits"] == 5
    assert second["entries"] == first["entries"] + 5
    assert 2 <= second["pages_written"] <= 12
    assert watch.look()["commits"] == 0


def test_reading_commands_leave_the_file_as_it_is(made):
    path, _ = made
    before = path.read_bytes()
    stamp = path.stat().st_mtime_ns
    for arguments in (
        ("info",), ("stat",), ("trees",), ("readers",), ("top",), ("pages",), ("page", "4"), ("tree",), ("path", "k"),
        ("free",), ("diff",), ("check",), ("watch", "--count", "1"),
    ):  # fmt: skip
        cow(arguments[0], path, *arguments[1:])
    assert path.read_bytes() == before
    assert path.stat().st_mtime_ns == stamp


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everything")
def test_files_that_may_only_be_read_can_be_looked_at(made, tmp_path):
    copy = tmp_path / "dir" / "b.cowdb"
    copy.parent.mkdir()
    copy.write_bytes(made[0].read_bytes())
    copy.chmod(0o400)
    copy.parent.chmod(0o500)
    try:
        assert cow("info", copy).code == 0
        assert cow("check", copy).code == 0
    finally:
        copy.parent.chmod(0o700)


def test_a_snapshot_stays_whole_while_a_writer_goes_on(tmp_path):
    from cowdb.cli.opening import reading

    path = tmp_path / "a.cowdb"
    trees = sample(path, 900)
    with reading(str(path)) as state:
        with cowdb.open(path) as db:
            for i in range(40):
                with db.write() as txn:
                    for j in range(30):
                        txn[b"key:%06d" % ((i * 37 + j * 11) % 900)] = b"changed" * 20
        assert {tree.name: dict(tree.items()) for tree in state.trees()} == trees


def test_commands_beside_a_busy_writer_see_no_damage(tmp_path):
    path = tmp_path / "a.cowdb"
    sample(path, 600)
    stop = threading.Event()

    def write():
        with cowdb.open(path, durability="lazy") as db:
            count = 0
            while not stop.is_set():
                count += 1
                with db.write() as txn:
                    txn[b"key:%06d" % (count * 17 % 600)] = b"x" * (count * 131 % 5000)
                    if count % 20 == 0:
                        txn.delete_range(b"key:000300", None)

    thread = threading.Thread(target=write)
    thread.start()
    try:
        for _ in range(3):
            for name in ("info", "stat", "trees", "pages", "tree", "free", "diff", "top", "check"):
                result = cow(name, path)
                assert result.code == 0, (name, result)
    finally:
        stop.set()
        thread.join()
