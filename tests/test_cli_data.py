"""The commands that work on data: get, put, delete, scan, count, and completion and bench."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import cowdb
from cowdb.cli import build_parser, completion, main
from cowdb.cli.registry import COMMANDS

ROOT = Path(__file__).parents[1]


@pytest.fixture
def run(capfdbinary, monkeypatch):
    """Runs a command in this process: exit code, output, error output."""

    def call(*arguments, stdin=None):
        capfdbinary.readouterr()
        # A stream of its own on the captured descriptor, so that bytes and text go the way they go in a real process.
        with open(os.dup(1), "w", encoding="utf-8") as out:
            monkeypatch.setattr(sys, "stdout", out)
            if stdin is not None:
                monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
            code = main([str(argument) for argument in arguments])
        monkeypatch.undo()
        captured = capfdbinary.readouterr()
        return code, captured.out, captured.err.decode()

    return call


@pytest.fixture
def base(tmp_path):
    path = tmp_path / "app.cowdb"
    with cowdb.open(path) as db, db.write() as txn:
        txn.update({b"%04d" % number: b"v%d" % number for number in range(1000)})
        txn.tree("cows", create=True).update({b"ada": b"Angus", b"bess": b"\xff\0\n", b"cleo": b"x" * 50_000})
    return path


def items(path, tree=None):
    with cowdb.open(path, read_only=True) as db, db.read() as snapshot:
        return dict((snapshot if tree is None else snapshot.tree(tree)).items())


# ---------------------------------------------------------------- get


def test_get_gives_the_bytes_and_nothing_else(run, base):
    assert run("get", base, "0042") == (0, b"v42", "")
    assert run("get", base, "--tree", "cows", "bess") == (0, b"\xff\0\n", "")
    assert run("get", base, "-t", "cows", "cleo") == (0, b"x" * 50_000, "")
    assert run("get", base, "--hex", "30303432") == (0, b"v42", "")
    assert run("get", base, r"\x30042") == (0, b"v42", "")


def test_get_of_what_is_not_there(run, base):
    assert run("get", base, "nope\x1b") == (1, b"", "cowdb: there is no key nope\\x1b\n")
    code, out, err = run("get", base, "--tree", "pigs", "a")
    assert (code, out) == (1, b"")
    assert "there is no tree 'pigs'; there are 'cows'" in err
    assert run("get", base.with_name("none"), "a")[0] == 5
    assert not base.with_name("none").exists()
    assert run("get", __file__, "a")[0] == 3


@pytest.mark.parametrize(("rank", "key"), [(0, b"0000"), (999, b"0999"), (-1, b"0999"), (-1000, b"0000")])
def test_get_by_rank(run, base, rank, key):
    code, out, _ = run("get", base, "--rank", rank, "--format", "json")
    assert code == 0
    assert json.loads(out) == {"tree": None, "key": key.decode(), "value": f"v{int(key)}"}


def test_get_by_rank_outside(run, base):
    for rank in (1000, -1001):
        assert run("get", base, "--rank", rank)[::2] == (1, f"cowdb: there is no entry at {rank}: the tree has 1,000\n")
    assert run("get", base)[0] == 2
    assert run("get", base, "a", "--rank", 0)[0] == 2


def test_get_shows_hex_and_nothing_when_asked(run, base):
    assert run("get", base, "0042", "--show", "hex")[1] == b"763432\n"
    assert run("get", base, "0042", "--show", "redacted")[1] == b"<3 bytes>\n"


# ---------------------------------------------------------------- put, delete


@pytest.mark.parametrize(
    "arguments", [["put", "-x", "y"], ["put", "-x"], ["get", "-x"], ["delete", "-x"], ["path", "-x"]]
)
def test_a_key_that_begins_with_a_dash_is_told_where_to_go(run, base, arguments):
    command, *keys = arguments
    code, _, err = run(command, base, *keys)
    assert (code, f"cowdb {command} FILE -- -x" in err) == (2, True), err
    assert run("put", base, "--", "-x", "y")[0] == 0
    assert run(command, base, "--", *keys)[0] == (2 if keys == ["-x"] and command == "put" else 0)


def test_a_mistyped_option_is_no_key(run, base):
    code, _, err = run("get", base, "0001", "--tre", "cows", "--wrong")
    assert (code, "FILE --" in err) == (2, False)


@pytest.mark.parametrize("command", [["put", "k", "v"], ["load", os.devnull, "--from", "csv"]])
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("", "--tree: the name of a tree is not empty; leave out --tree for the main tree"),
        ("t" * 3000, "--tree: the name of the tree takes 3000 bytes of UTF-8; it may take 1 to 2000"),
        ("cowdb.unfinished", "--tree: the tree 'cowdb.unfinished' is for the marks of unfinished moves"),
    ],
)
def test_a_name_that_no_tree_can_have(run, base, command, name, said):
    name_of, *rest = command
    code, _, err = run(name_of, base, *rest, "--tree", name)
    assert (code, err) == (2, f"cowdb: {said}\n")


def test_put_stores(run, base, tmp_path):
    assert run("put", base, "0042", "new") == (0, b"", "")
    assert run("put", base, "--tree", "pigs", r"a\x00", "plain") == (0, b"", "")
    (tmp_path / "value").write_bytes(bytes(range(256)) * 1000)
    assert run("put", base, "file", "--value-file", tmp_path / "value")[0] == 0
    assert run("put", base, "input", "--value-file", "-", stdin=b"\0\xff")[0] == 0
    assert run("put", base, "--hex", "00ff", "0102")[0] == 0
    found = items(base)
    assert found[b"0042"] == b"new"
    assert found[b"file"] == bytes(range(256)) * 1000
    assert found[b"input"] == b"\0\xff"
    assert found[b"\0\xff"] == b"\1\2"
    assert items(base, "pigs") == {b"a\0": b"plain"}


def test_put_keeps_what_is_there_when_asked(run, base):
    assert run("put", base, "0042", "new", "--keep")[0] == 1
    assert run("put", base, "9999", "new", "--keep")[0] == 0
    assert (items(base)[b"0042"], items(base)[b"9999"]) == (b"v42", b"new")


def test_put_makes_a_database_only_when_asked(run, tmp_path):
    path = tmp_path / "new.cowdb"
    code, _, err = run("put", path, "a", "1")
    assert code == 5
    assert "--create" in err
    assert not path.exists()
    assert run("put", path, "a", "1", "--create")[0] == 0
    assert items(path) == {b"a": b"1"}


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["a"], 2, "a VALUE or --value-file"),
        (["a", "1", "--value-file", "x"], 2, "a VALUE or --value-file"),
        (["a", "--value-file", "/nowhere/x"], 5, "there is no directory"),
        (["a", "--value-file", "nowhere-at-all"], 5, "there is no file"),
        (["k" * 5000, "1"], 2, "too long"),
        (["a", "1", "--tree", ""], 2, "leave out --tree for the main tree"),
        (["a", "1", "--tree", "t" * 5000], 2, "--tree: the name of the tree takes 5000"),
        ([r"\q", "1"], 2, r"has a \ before"),
        (["--hex", "0", "1"], 2, "no hex"),
    ],
)
def test_put_of_what_cannot_be(run, base, arguments, code, words):
    before = items(base)
    got, out, err = run("put", base, *arguments)
    assert (got, out) == (code, b"")
    assert words in err
    assert err.startswith("cowdb: ")
    assert err.count("\n") == 1
    assert items(base) == before


def test_put_says_that_others_have_the_lock(run, base):
    with cowdb.open(base) as db, db.write():
        done = subprocess.run(
            [sys.executable, "-m", "cowdb", "put", base, "a", "1", "--timeout", "0.05"],
            capture_output=True,
            cwd=ROOT,
            check=False,
            text=True,
        )
        assert done.returncode == 4, done.stderr
        assert run("get", base, "0001")[1] == b"v1"


def test_delete_keys(run, base):
    assert run("delete", base, "0001", "0002", "0002") == (0, b"2 entries removed\n", "")
    assert run("delete", base, "0001", "0003") == (1, b"1 entry removed\n", "there is no key 0001\n")
    assert len(items(base)) == 997


def test_delete_ranges_and_trees(run, base):
    assert run("delete", base, "--prefix", "00", "--dry-run")[1] == b"100 entries would be removed\n"
    assert len(items(base)) == 1000
    assert run("delete", base, "--prefix", "00")[1] == b"100 entries removed\n"
    assert run("delete", base, "--start", "0900", "--stop", "0950", "--format", "json")[0] == 0
    assert len(items(base)) == 850
    assert run("delete", base, "--all")[1] == b"850 entries removed\n"
    assert run("delete", base, "--tree", "cows", "--drop")[1] == b"3 entries removed\n"
    with cowdb.open(base) as db, db.read() as snapshot:
        assert (snapshot.trees(), len(snapshot)) == ([], 0)
        assert db.check() == []


@pytest.mark.parametrize(
    "arguments", [[], ["a", "--all"], ["--all", "--prefix", "x"], ["--drop"], ["a", "--drop", "-t", "cows"]]
)
def test_delete_wants_to_be_told_one_thing(run, base, arguments):
    assert run("delete", base, *arguments)[0] == 2
    assert len(items(base)) == 1000


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--prefix", ""], "an empty --prefix means every key; say --all"),
        (["--prefix", "", "--stop", "0010"], "an empty --prefix means every key; say --all"),
        (["--prefix", " ", "--hex"], "an empty --prefix means every key; say --all"),
        (["--start", ""], "an empty --start means from the first key on; leave it out, or say --all"),
        (["--start", "", "--stop", "0010"], "an empty --start"),
        (["--stop", ""], "an empty --stop means no key at all; leave it out, or say --all"),
    ],
)
def test_a_variable_of_the_shell_that_is_not_set_deletes_nothing(run, base, arguments, said):
    before = items(base)
    for more in ([], ["--dry-run"]):
        code, out, err = run("delete", base, *arguments, *more)
        assert (code, out) == (2, b"")
        assert said in err
    assert items(base) == before
    assert run("delete", base, "") == (1, b"0 entries removed\n", "there is no key (the empty key)\n")


def test_delete_in_what_is_not_there(run, base, tmp_path):
    assert run("delete", base, "--tree", "pigs", "a")[0] == 1
    assert run("delete", tmp_path / "none", "a")[0] == 5
    assert not (tmp_path / "none").exists()


# ---------------------------------------------------------------- scan, count


RANGES = [
    ([], range(1000)),
    (["--prefix", "00"], range(100)),
    (["--start", "0990"], range(990, 1000)),
    (["--stop", "0010"], range(10)),
    (["--start", "0095", "--prefix", "00"], range(95, 100)),
    (["--start", "5", "--stop", "1"], range(0)),
    (["--hex", "--prefix", "303039"], range(90, 100)),
]


@pytest.mark.parametrize(("arguments", "numbers"), RANGES)
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(("skip", "limit"), [(0, None), (3, 4), (0, 0), (5000, None)])
def test_scan_of_ranges(run, base, arguments, numbers, reverse, skip, limit):
    more = ["--reverse"] * reverse + ["--rank", skip] + ([] if limit is None else ["--limit", limit])
    code, out, err = run("scan", base, *arguments, *more, "--ranks", "--format", "jsonl")
    assert (code, err) == (0, "")
    want = (list(reversed(numbers)) if reverse else list(numbers))[skip:][:limit]
    rows = [json.loads(line) for line in out.splitlines()]
    assert rows == [{"rank": number, "key": f"{number:04}", "value": f"v{number}"} for number in want]


@pytest.mark.parametrize(("arguments", "numbers"), RANGES)
def test_count_of_ranges(run, base, arguments, numbers):
    assert run("count", base, *arguments) == (0, b"%d\n" % len(numbers), "")


def test_count_of_what_is_less_than_a_key(run, base):
    assert run("count", base, "--rank", "0500")[1] == b"500\n"
    assert run("count", base, "--rank", "zzz", "--format", "json")[0] == 0
    assert run("count", base, "--rank", "0500", "--prefix", "0")[0] == 2
    assert run("count", base, "-t", "cows", "--rank", "b")[1] == b"1\n"


def test_scan_shows_nothing_that_a_terminal_would_obey(run, base):
    out = run("scan", base, "--tree", "cows", "--limit", 2)[1]
    assert out == b"key   value\nada   Angus\nbess  \\xff\\x00\\x0a\n"
    assert run("scan", base, "--tree", "cows", "--keys", "--show", "hex", "--limit", 1)[1] == b"key\n616461\n"


def test_reading_commands_write_nothing(run, base):
    before = base.read_bytes(), base.stat().st_mtime_ns
    for arguments in (
        ["get", base, "0001"],
        ["scan", base],
        ["count", base],
        ["dump", base],
        ["delete", base, "--all", "-n"],
    ):
        assert run(*arguments)[0] == 0
    assert (base.read_bytes(), base.stat().st_mtime_ns) == before


def test_damage_is_told_and_kills_nothing(run, base):
    raw = bytearray(base.read_bytes())
    for at in range(2 * 8192 + 100, len(raw), 8192):
        raw[at] ^= 0xFF
    base.write_bytes(raw)
    for arguments in (["get", base, "0001"], ["scan", base], ["dump", base], ["dump", base, base.with_name("out")]):
        code, _, err = run(*arguments)
        assert code == 1
        assert "damaged" in err
    assert os.listdir(base.parent) == [base.name] or not base.with_name("out").exists()


# ---------------------------------------------------------------- completion


def test_completion_knows_every_command_and_option():
    found = {command.name: command for command in completion.commands(build_parser())}
    assert set(found) == {command.name for command in COMMANDS} | {"help"}
    assert {flag for option in found["load"].options for flag in option.flags} >= {"--from", "--tree", "-t", "--help"}
    forms = next(option for option in found["dump"].options if "--as" in option.flags)
    assert (forms.takes, forms.choices) == (True, ("jsonl", "csv", "mdb", "bdb"))
    assert [place.path for place in found["load"].places] == [True, True]
    assert all(command.summary for command in COMMANDS)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_are_in_the_language_of_the_shell(run, tmp_path, shell):
    code, script, err = run("completion", shell)
    assert (code, err) == (0, "")
    for command in COMMANDS:
        assert re.search(rb"\b%s\b" % command.name.encode(), script)
    program = shutil.which(shell)
    if program is None:
        pytest.skip(f"{shell} is not installed")
    (tmp_path / "script").write_bytes(script)
    done = subprocess.run([program, "-n", tmp_path / "script"], capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


def test_bash_completes(run, tmp_path):
    program = shutil.which("bash")
    if program is None:
        pytest.skip("bash is not installed")
    (tmp_path / "script").write_bytes(run("completion", "bash")[1])
    for name in ("one.cowdb", "two words.jsonl", "other"):
        (tmp_path / name).touch()
    asked = """
        source ./script
        compopt() { :; }
        ask() { COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _cowdb; (IFS='|'; echo "${COMPREPLY[*]}"); }
        ask cowdb dum
        ask cowdb dump --as ''
        ask cowdb dump --as=
        ask cowdb dump o
        ask cowdb load --tree x on
        ask cowdb load one.cowdb two
        ask cowdb load one.cowdb two more
        ask cowdb completion ''
        ask cowdb help comp
        ask cowdb nonsense ''
    """
    done = subprocess.run([program, "--norc", "-c", asked], capture_output=True, cwd=tmp_path, text=True, check=True)
    assert done.stderr == ""
    answers = [set(line.split("|")) for line in done.stdout.splitlines()]
    assert answers == [
        {"dump"},
        {"jsonl", "csv", "mdb", "bdb"},
        {""},
        {"one.cowdb", "other"},
        {"one.cowdb"},
        {"two words.jsonl"},
        {""},
        {"bash", "zsh", "fish"},
        {name for name in ("compact", "completion") if name in {command.name for command in COMMANDS}},
        {""},
    ]


def test_fish_completes(run, tmp_path):
    program = shutil.which("fish")
    if program is None:
        pytest.skip("fish is not installed")
    (tmp_path / "script").write_bytes(run("completion", "fish")[1])
    asked = 'source ./script; complete -C "cowdb dum"; complete -C "cowdb dump --as "'
    done = subprocess.run(
        [program, "--no-config", "-c", asked], capture_output=True, cwd=tmp_path, text=True, check=True
    )
    assert [line.split("\t")[0] for line in done.stdout.splitlines()] == ["dump", "bdb", "csv", "jsonl", "mdb"]


# ---------------------------------------------------------------- bench


def test_bench_compares_what_is_installed(run, tmp_path):
    code, out, _ = run("bench", "--dir", tmp_path, "--records", 300, "--runs", 2, "--format", "json")
    assert code == 0
    facts = json.loads(out)
    assert {"cowdb", "sqlite3"} <= set(facts["versions"])
    assert [row["work"] for row in facts["results"]] == ["load", "get", "scan", "range", "put"]
    for row in facts["results"]:
        assert set(row["per_second"]) == set(facts["versions"])
        for name, ratio in row["ratio"].items():
            low, high = row["spread"][name]
            assert 0 < low <= ratio <= high
    assert os.listdir(tmp_path) == []


def test_bench_of_one_kind_without_lmdb(run, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "lmdb", None)
    code, out, err = run("bench", "--dir", tmp_path, "--records", 50, "--runs", 1, "--only", "get", "--only", "put")
    assert code == 0
    assert "get, random" in out.decode()
    assert "load" not in out.decode()
    assert "the Python package lmdb is not installed" in err
    assert run("bench", "--runs", 0)[0] == 2
    assert run("bench", "--dir", tmp_path / "nowhere")[0] == 5
    assert os.listdir(tmp_path) == []


def test_the_examples_of_the_help_are_commands_that_are_understood():
    import shlex

    parser = build_parser()
    names = {"get", "put", "delete", "scan", "count", "load", "dump", "import", "bench", "completion"}
    for command in COMMANDS:
        if command.name not in names:
            continue
        for line, what in command.load().EXAMPLES:
            assert what
            piece = next(part for part in re.split(r'[|>;]|\$\(|\)"', line) if part.strip().startswith("cowdb "))
            words = shlex.split(piece)
            assert parser.parse_args(words[1:]).command == command.name


def test_the_benchmark_of_load_and_dump_prints_its_table(tmp_path):
    tool = ROOT / "tools" / "bench" / "load.py"
    done = subprocess.run(
        [sys.executable, str(tool), "--records", "200", "--runs", "1", "--dir", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    rows = [line.split("|")[1].strip() for line in done.stdout.splitlines() if line.startswith("| ")]
    assert rows[2:] == ["load, in key order", "dump", "load, in random order"]
    assert os.listdir(tmp_path) == []
