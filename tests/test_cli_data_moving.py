"""load, dump and import: whole, exact, and continued after an interruption."""

from __future__ import annotations

import gc
import io
import json
import os
import random
import signal
import sqlite3
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

import cowdb
import cowdb.cli.load
from cowdb.cli import main
from cowdb.cli.batches import MARKS

ROOT = Path(__file__).parents[1]
WORDS = Path("/usr/share/dict/american-english")


@pytest.fixture
def run(capfdbinary, monkeypatch):
    """Runs a command in this process: exit code, output, error output."""

    def call(*arguments, stdin=None):
        capfdbinary.readouterr()
        with open(os.dup(1), "w", encoding="utf-8") as out:
            monkeypatch.setattr(sys, "stdout", out)
            if stdin is not None:
                monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BufferedReader(io.BytesIO(stdin))))
            code = main([str(argument) for argument in arguments])
        monkeypatch.undo()
        captured = capfdbinary.readouterr()
        return code, captured.out, captured.err.decode()

    return call


def content(path):
    """All trees of a database, which is sound."""
    with cowdb.open(path, read_only=True) as db, db.read() as snapshot:
        assert db.check() == []
        return {None: dict(snapshot.items())} | {name: dict(snapshot.tree(name).items()) for name in snapshot.trees()}


AWKWARD = [
    b"",
    b"text",
    b"\xff\0",
    b"two\nlines\r\n",
    "Zürich".encode(),
    b"base64:",
    b"\\x00",
    bytes(range(256)),
    b"x" * 30_000,
]


@pytest.fixture
def base(tmp_path):
    path = tmp_path / "app.cowdb"
    with cowdb.open(path) as db, db.write() as txn:
        txn.update({b"%d-" % number + value[:500]: value for number, value in enumerate(AWKWARD)})
        txn[b""] = b"the empty key"
        txn.tree("cows & co", create=True).update({b"ada": b"Angus", b"bess": b"\xff"})
        txn.tree("empty", create=True)
    return path


# ---------------------------------------------------------------- there and back


@pytest.mark.parametrize(("form", "options"), [("jsonl", []), ("csv", []), ("mdb", []), ("mdb", ["--print"])])
def test_what_is_dumped_loads_as_the_same(run, base, tmp_path, form, options):
    want = content(base)
    if form == "csv":
        del want["empty"]
    text = run("dump", base, "--as", form, *options)[1]
    assert run("dump", base, tmp_path / "text", "--as", form, *options)[0] == 0
    assert (tmp_path / "text").read_bytes() == text
    assert run("load", tmp_path / "new.cowdb", tmp_path / "text", "--from", "csv" if form == "csv" else form)[0] == 0
    assert content(tmp_path / "new.cowdb") == want
    assert run("load", tmp_path / "piped.cowdb", "-", "--from", form, stdin=text)[0] == 0
    assert content(tmp_path / "piped.cowdb") == want


def test_dump_chooses_the_form_by_the_name(run, base, tmp_path):
    for name, begin in (
        ("a.jsonl", b'{"key"'),
        ("a.csv", b"tree,key"),
        ("a.tsv", b"tree\tkey"),
        ("a.dump", b"VERSION=3"),
        ("a", b'{"key"'),
    ):
        assert run("dump", base, tmp_path / name)[0] == 0
        assert (tmp_path / name).read_bytes().startswith(begin)


def test_dump_of_chosen_trees(run, base):
    assert run("dump", base, "--tree", "cows & co")[1].splitlines() == [
        b'{"tree": "cows & co", "key": "ada", "value": "Angus"}',
        b'{"tree": "cows & co", "key": "bess", "value": {"base64": "/w=="}}',
    ]
    assert (
        run("dump", base, "-t", "cows & co", "--plain", "--as", "csv")[1]
        == b"key,value\r\nada,Angus\r\nbess,base64:/w==\r\n"
    )
    assert b"cows" not in run("dump", base, "--main")[1]
    assert run("dump", base, "-t", "empty", "--main", "--as", "csv")[1].startswith(b"tree,key,value\r\n,,the empty key")
    assert run("dump", base, "-t", "pigs")[0] == 1
    assert run("dump", base, "--plain")[0] == 2


def test_dump_replaces_no_file_unless_told_to(run, base, tmp_path):
    target = tmp_path / "out.jsonl"
    target.write_bytes(b'{"key": "mine"')
    code, _, err = run("dump", base, target)
    assert (code, target.read_bytes()) == (2, b'{"key": "mine"')
    assert "is there already; --force replaces it" in err
    assert run("dump", base, target, "--force")[0] == 0
    assert target.read_bytes().startswith(b"{")
    assert stat.S_IMODE(target.stat().st_mode) == 0o600, "it is as private as the database"
    assert run("dump", base, tmp_path / "nowhere" / "x")[0] == 5
    assert (
        sorted(os.listdir(tmp_path)) == ["app.cowdb", "app.cowdb-lock", "out.jsonl"]
        or not (tmp_path / "app.cowdb-lock").exists()
    )


def test_dump_into_a_device_does_not_replace_it(run, base):
    assert run("dump", base, "/dev/null", "--force")[0] == 0
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


def test_a_name_that_the_format_cannot_say(run, tmp_path):
    with cowdb.open(tmp_path / "a.cowdb") as db, db.write() as txn:
        txn.tree("two\nlines", create=True)[b"k"] = b"v"
    assert run("dump", tmp_path / "a.cowdb", tmp_path / "out", "--as", "mdb")[0] == 1
    assert not (tmp_path / "out").exists()
    assert run("dump", tmp_path / "a.cowdb", tmp_path / "out.jsonl")[0] == 0
    assert run("load", tmp_path / "b.cowdb", tmp_path / "out.jsonl")[0] == 0
    assert content(tmp_path / "b.cowdb") == content(tmp_path / "a.cowdb")


def test_a_reader_of_the_dump_that_goes_away(base):
    with cowdb.open(base) as db, db.write() as txn:
        txn.update({b"%06d" % number: bytes(100) for number in range(20_000)})
    done = subprocess.run(
        f"{sys.executable} -m cowdb dump {base} | head -c 10", shell=True, capture_output=True, cwd=ROOT, check=False
    )
    assert (len(done.stdout), done.stderr) == (10, b"")


def test_dump_tells_of_keys_that_lmdb_does_not_take(run, base):
    assert "1 key is empty or longer than 511 bytes" in run("dump", base, "--as", "mdb")[2]
    assert run("dump", base, "--as", "mdb", "--quiet")[2] == ""
    assert run("dump", base, "--as", "bdb")[2] == ""


# ---------------------------------------------------------------- what load does


def lines_of(pairs):
    return b"".join(b'{"key": "%s", "value": "%s"}\n' % pair for pair in pairs)


def test_of_equal_keys_the_last_counts_or_the_first_with_keep(run, tmp_path):
    text = tmp_path / "in.jsonl"
    text.write_bytes(lines_of([(b"b", b"1"), (b"a", b"2"), (b"b", b"3")]))
    assert run("load", tmp_path / "a", text)[1].startswith(b"3 entries stored")
    assert content(tmp_path / "a") == {None: {b"a": b"2", b"b": b"3"}}
    text.write_bytes(lines_of([(b"b", b"4"), (b"c", b"5"), (b"c", b"6")]))
    assert run("load", tmp_path / "a", text, "--keep")[0] == 0
    assert content(tmp_path / "a") == {None: {b"a": b"2", b"b": b"3", b"c": b"5"}}


def test_all_into_one_tree(run, base, tmp_path):
    text = run("dump", base)[1]
    assert run("load", tmp_path / "b", "-", "--tree", "all", stdin=text)[0] == 0
    found = content(tmp_path / "b")
    assert set(found) == {None, "all"}
    assert found["all"] == content(base)[None] | content(base)["cows & co"]
    assert found[None] == {}


def test_load_reports_as_json(run, tmp_path):
    text = lines_of([(b"%d" % number, b"") for number in range(10)]) + b"bad\n"
    code, out, err = run("load", tmp_path / "a", "-", "--batch", 3, "--skip-bad", "--format", "json", stdin=text)
    facts = json.loads(out)
    assert code == 1
    assert (facts["stored"], facts["bad"], facts["transactions"]) == (10, 1, 4)
    assert err == "-, line 11: it is no JSON (character 1)\n"


@pytest.mark.parametrize(
    ("arguments", "stdin", "code", "words"),
    [
        (["-"], b"a,b", 2, "--from"),
        (["-", "--value", "x"], b"{}", 2, "--value needs --key"),
        (["-", "--from", "csv", "--delimiter", "ab"], b"", 2, "one character"),
        (["-", "--key", "a"], b"VERSION=3", 2, "for JSON Lines and CSV"),
        (["-"], b"\0\0\0", 2, "cowdb import"),
        (["/nowhere/x"], b"", 5, "there is no directory"),
        (["-", "--tree", ""], b"{}", 2, "leave out --tree for the main tree"),
        (["-", "--batch", "-1"], b"{}", 2, "--batch"),
        (["-", "--from", "xml"], b"{}", 2, "--from"),
    ],
)
def test_load_of_what_cannot_be(run, tmp_path, arguments, stdin, code, words):
    got, out, err = run("load", tmp_path / "a", *arguments, stdin=stdin)
    assert (got, out) == (code, b"")
    assert words in err


def test_an_empty_input_is_no_entries(run, tmp_path):
    for form in ("jsonl", "csv", "mdb"):
        assert run("load", tmp_path / form, "-", "--from", form, stdin=b"")[1].startswith(b"0 entries")
        assert content(tmp_path / form) == {None: {}}


def test_a_bad_line_stops_and_the_mended_file_goes_on(run, tmp_path):
    text, path = tmp_path / "in.jsonl", tmp_path / "a.cowdb"
    pairs = [(b"%03d" % number, b"v") for number in range(100)]
    text.write_bytes(lines_of(pairs[:50]) + b"oops\n" + lines_of(pairs[50:]))
    code, out, err = run("load", path, text, "--batch", 20)
    assert (code, out) == (1, b"")
    assert (
        f"{text}, line 51: it is no JSON (character 1); the 50 entries before it are stored; give --skip-bad to leave it out, or mend it and give the same command again"
        in err
    )
    assert content(path)[None] == dict(pairs[:50])
    code, _, err = run("load", path, text, "--batch", 20)
    assert (code, "going on after line 50" in err, "line 51" in err) == (1, True, True)
    text.write_bytes(lines_of(pairs))
    code, out, err = run("load", path, text, "--batch", 20)
    assert (code, out[:17]) == (0, b"50 entries stored")
    assert err == "going on after line 50: 50 entries are stored already\n"
    assert content(path) == {None: dict(pairs)}, "the mark is gone"


@pytest.mark.parametrize("form", ["csv", "bdb"])  # the header of mdb says how large the map is
@pytest.mark.parametrize("batch", [1, 2, 100])
@pytest.mark.parametrize("where", range(6))
def test_a_key_that_is_too_long_stops_and_the_mended_file_goes_on(run, tmp_path, form, batch, where):
    source, text, path = tmp_path / "source", tmp_path / "in", tmp_path / "a.cowdb"
    with cowdb.open(source, page_size=32768) as db, db.write() as txn:
        keys = [b"%d\n\n" % number for number in range(6)]
        txn.update({key: key for key in keys[:3]})
        txn.tree("t", create=True).update({key: key for key in keys[3:]})
        good = dict(txn.items()), dict(txn.tree("t").items())
    whole = run("dump", source, "--as", form)[1]
    with cowdb.open(source) as db, db.write() as txn:
        tree = txn if where < 3 else txn.tree("t")
        del tree[keys[where]]
        tree[keys[where] + b"x" * 5000] = keys[where]
    text.write_bytes(run("dump", source, "--as", form)[1])
    code, _, err = run("load", path, text, "--from", "csv" if form == "csv" else "mdb", "--batch", batch)
    assert code == 1
    assert "its key has 5003 bytes; this file takes 2000" in err
    stored = content(path) if where else {None: {}}
    assert path.exists() == (where > 0)
    assert stored[None] == dict(list(good[0].items())[:where])
    text.write_bytes(whole)
    assert run("load", path, text, "--from", "csv" if form == "csv" else "mdb", "--batch", batch)[0] == 0
    assert content(path) == {None: good[0], "t": good[1]}


def test_all_or_nothing(run, tmp_path):
    text = lines_of([(b"%03d" % number, b"v") for number in range(100)])
    code, _, err = run("load", tmp_path / "a", "-", "--batch", 0, stdin=text + b"oops\n")
    assert code == 1
    assert err.endswith("nothing was stored; --skip-bad leaves out what is bad\n")
    assert os.listdir(tmp_path) == []
    assert run("load", tmp_path / "a", "-", "--batch", 0, stdin=text)[0] == 0
    assert len(content(tmp_path / "a")[None]) == 100


def test_bad_names_of_trees_are_bad_lines(run, tmp_path):
    text = b'{"tree": "%s", "key": "a", "value": ""}\n' % (b"t" * 3000) + lines_of([(b"a", b"")])
    code, _, err = run("load", tmp_path / "a", "-", "--skip-bad", stdin=text)
    assert (code, "line 1: the name of the tree" in err) == (1, True)
    assert content(tmp_path / "a") == {None: {b"a": b""}}


# ---------------------------------------------------------------- interruptions


class StopError(Exception):
    pass


def interrupted(monkeypatch, after):
    """From now on the transaction number `after` does not come about."""
    commit = cowdb.WriteTransaction.commit
    count = 0

    def stop(self):
        nonlocal count
        count += 1
        if count > after:
            raise KeyboardInterrupt
        commit(self)

    monkeypatch.setattr(cowdb.WriteTransaction, "commit", stop)


@pytest.mark.parametrize("form", ["jsonl", "csv", "mdb"])
@pytest.mark.parametrize("after", [0, 1, 2, 5])
def test_the_same_command_goes_on_after_an_interruption(run, tmp_path, monkeypatch, form, after):
    source, text, path = tmp_path / "source", tmp_path / "in", tmp_path / "a.cowdb"
    with cowdb.open(source) as db, db.write() as txn:
        txn.update({b"%03d\n" % number: b"\0%d" % number for number in range(40)})
        txn.tree("t", create=True).update({b"%03d\n" % number: b"" for number in range(40)})
    want = content(source)
    text.write_bytes(run("dump", source, "--as", form)[1])
    arguments = ("load", path, text, "--from", form, "--batch", 12)
    interrupted(monkeypatch, after)
    code, out, err = run(*arguments)  # it undoes the patch
    assert (code, out) == (130, b"")
    assert f"{12 * after} entries are stored; the same command goes on there" in err
    assert path.exists() == (after > 0)
    found = content(path) if after else {}
    assert sum(len(entries) for name, entries in found.items() if name != MARKS) == 12 * after
    assert (MARKS in found) == (after > 0)
    code, out, _ = run(*arguments, "--format", "json")
    facts = json.loads(out)
    assert (code, facts["stored"], facts["stored_before"]) == (0, 80 - 12 * after, 12 * after)
    assert content(path) == want


def half_loaded(run, monkeypatch, tmp_path):
    text, path = tmp_path / "in.jsonl", tmp_path / "a.cowdb"
    text.write_bytes(lines_of([(b"%03d" % number, b"v") for number in range(40)]))
    interrupted(monkeypatch, 1)
    assert run("load", path, text, "--batch", 12)[0] == 130
    return text, path


def test_an_input_that_changed_where_it_was_read_is_refused(run, monkeypatch, tmp_path):
    text, path = half_loaded(run, monkeypatch, tmp_path)
    changed = text.read_bytes().replace(b'"003"', b'"x03"')
    text.write_bytes(changed)
    code, _, err = run("load", path, text)
    assert (code, "--restart" in err) == (1, True)
    assert len(content(path)[None]) == 12
    assert run("load", path, text, "--restart")[0] == 0
    found = content(path)
    assert set(found) == {None}
    assert len(found[None]) == 41


def test_other_options_are_refused_when_going_on(run, monkeypatch, tmp_path):
    text, path = half_loaded(run, monkeypatch, tmp_path)
    code, _, err = run("load", path, text, "--key", "value")
    assert code == 1
    assert "its key differed" in err
    assert run("load", path, text, "--batch", 7)[0] == 0
    assert len(content(path)[None]) == 40


def test_an_input_that_has_grown_goes_on(run, monkeypatch, tmp_path):
    text, path = half_loaded(run, monkeypatch, tmp_path)
    with open(text, "ab") as file:
        file.write(lines_of([(b"more", b"v")]))
    assert run("load", path, text)[0] == 0
    assert len(content(path)[None]) == 41


def test_a_damaged_mark_is_told(run, monkeypatch, tmp_path):
    text, path = half_loaded(run, monkeypatch, tmp_path)
    for wrong in (b"", b"[]", b"{}", b'{"source": 1, "place": 2, "stored": "x"}'):
        with cowdb.open(path) as db, db.write() as txn:
            marks = txn.tree(MARKS)
            marks[marks.first()[0]] = wrong
        code, _, err = run("load", path, text)
        assert (code, "--restart" in err) == (1, True)
    assert run("load", path, text, "--restart")[0] == 0
    assert set(content(path)) == {None}


def test_two_at_once_do_not_store_the_same_input(run, monkeypatch, tmp_path):
    text, path = half_loaded(run, monkeypatch, tmp_path)
    real = cowdb.Database.write

    def write(self, **options):
        monkeypatch.setattr(cowdb.Database, "write", real)
        with self.write() as txn:  # another process is quicker
            marks = txn.tree(MARKS)
            marks[marks.first()[0]] = b"{}"
        return real(self, **options)

    monkeypatch.setattr(cowdb.Database, "write", write)
    code, _, err = run("load", path, text)
    assert code == 1
    assert "another process is storing the same input" in err
    assert len(content(path)[None]) == 12


def test_marks_are_not_dumped(run, monkeypatch, tmp_path):
    _, path = half_loaded(run, monkeypatch, tmp_path)
    assert len(run("dump", path)[1].splitlines()) == 12


def words():
    """A word list: Debian's where it is there, else one that is as long."""
    if WORDS.exists():
        return WORDS.read_bytes().split(b"\n")[:-1]
    rng = random.Random(1)
    return sorted({bytes(rng.choices(b"abcdefghijklmnopqrstuvwxyz'", k=rng.randint(2, 14))) for _ in range(100_000)})


def transaction(path):
    """How many transactions there were."""
    if not path.exists():
        return 1
    with cowdb.open(path, read_only=True) as db:
        return db.info()["transaction"]


def test_killed_at_any_moment_and_started_again(tmp_path):
    found = words()
    text, path = tmp_path / "words.csv", tmp_path / "words.cowdb"
    text.write_bytes(b"key,value\r\n" + b"".join(b'"%s",%d\r\n' % (word, number) for number, word in enumerate(found)))
    command = [sys.executable, "-m", "cowdb", "load", str(path), str(text), "--batch", "2000", "--format", "json"]
    rng = random.Random(7)
    kills = 0
    for _ in range(60):
        child = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        if kills < 4:
            before = transaction(path)
            while child.poll() is None and transaction(path) == before:
                time.sleep(0.001)
            time.sleep(0.05 * rng.random())  # when exactly does not matter: any moment must do
            child.send_signal(signal.SIGKILL)
        out, err = child.communicate()
        if child.returncode == 0:
            break
        assert child.returncode == -signal.SIGKILL, err
        kills += 1
    facts = json.loads(out)
    assert facts["stored"] + facts["stored_before"] == len(found), "nothing twice, nothing lost"
    assert content(path) == {None: {word: b"%d" % number for number, word in enumerate(found)}}
    assert kills > 0
    assert facts["stored_before"] >= 2000


# ---------------------------------------------------------------- import from LMDB


@pytest.fixture
def lmdb():
    return pytest.importorskip("lmdb", reason="the Python package lmdb is not installed (extra lmdb)")


@pytest.fixture
def environment(lmdb, tmp_path):
    """An LMDB environment and what is in it."""
    path = tmp_path / "env"
    want = {
        None: {b"plain": b"x" * 48, b"%d" % 7: b"\0" * 48} | {b"%05d" % number: b"m" for number in range(100)},
        "cows": {b"c%05d" % number: b"\xff%d" % number for number in range(500)} | {b"large": bytes(100_000)},
        "empty": {},
    }
    with lmdb.open(str(path), max_dbs=10, map_size=64 << 20) as env:
        handles = {name: env.open_db(None if name is None else name.encode()) for name in want}
        with env.begin(write=True) as txn:
            for name, entries in want.items():
                for key, value in entries.items():
                    txn.put(key, value, db=handles[name])
    return path, want


def test_import_of_an_lmdb_directory_and_file(run, environment, tmp_path):
    path, want = environment
    assert run("import", tmp_path / "a", path)[1].startswith(b"603 entries stored")
    assert content(tmp_path / "a") == want
    (path / "data.mdb").rename(tmp_path / "single.mdb")
    assert run("import", tmp_path / "b", tmp_path / "single.mdb")[0] == 0
    assert content(tmp_path / "b") == want


def test_import_of_chosen_databases(run, environment, tmp_path):
    path, want = environment
    assert run("import", tmp_path / "a", path, "--database", "cows")[0] == 0
    assert content(tmp_path / "a") == {None: {}, "cows": want["cows"]}
    assert run("import", tmp_path / "b", path, "--database", "cows", "--tree", "herd")[0] == 0
    assert content(tmp_path / "b") == {None: {}, "herd": want["cows"]}
    code, _, err = run("import", tmp_path / "c", path, "--database", "pigs")
    assert (code, "named ones are: 'cows', 'empty'" in err) == (1, True)
    assert run("import", tmp_path / "c", path, "--table", "x")[0] == 2
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize("after", [1, 3, 7, 11])
def test_import_from_lmdb_goes_on(run, environment, tmp_path, monkeypatch, after):
    path, want = environment
    interrupted(monkeypatch, after)
    assert run("import", tmp_path / "a", path, "--batch", 50)[0] == 130
    code, out, _ = run("import", tmp_path / "a", path, "--batch", 50, "--format", "json")
    facts = json.loads(out)
    assert (code, facts["stored"], facts["stored_before"]) == (0, 603 - 50 * after, 50 * after)
    assert content(tmp_path / "a") == want


def test_import_does_not_go_on_if_the_environment_changed(run, lmdb, environment, tmp_path, monkeypatch):
    path, _ = environment
    interrupted(monkeypatch, 2)
    assert run("import", tmp_path / "a", path, "--batch", 50)[0] == 130
    with lmdb.open(str(path), max_dbs=10) as env, env.begin(write=True) as txn:
        txn.put(b"new", b"1")
    code, _, err = run("import", tmp_path / "a", path)
    assert (code, "its snapshot differed" in err) == (1, True)
    assert run("import", tmp_path / "a", path, "--restart")[0] == 0
    assert content(tmp_path / "a")[None][b"new"] == b"1"


def test_databases_with_several_values_and_with_integers(run, lmdb, tmp_path):
    with lmdb.open(str(tmp_path / "env"), max_dbs=4) as env:
        several, numbers = env.open_db(b"several", dupsort=True), env.open_db(b"numbers", integerkey=True)
        with env.begin(write=True) as txn:
            for value in (b"1", b"2", b"3"):
                txn.put(b"a", value, db=several)
            txn.put(b"b", b"4", db=several)
            for number in (1, 256, 70_000):
                txn.put(number.to_bytes(8, sys.byteorder), b"%d" % number, db=numbers)
    code, _, err = run("import", tmp_path / "no", tmp_path / "env")
    assert (code, "'several' may hold several values" in err) == (1, True)
    assert not (tmp_path / "no").exists()
    assert run("import", tmp_path / "first", tmp_path / "env", "--duplicates", "first", "--big-endian")[0] == 0
    found = content(tmp_path / "first")
    assert found["several"] == {b"a": b"1", b"b": b"4"}
    assert list(found["numbers"].values()) == [b"1", b"256", b"70000"]
    assert run("import", tmp_path / "last", tmp_path / "env", "--duplicates", "last")[0] == 0
    assert content(tmp_path / "last")["several"] == {b"a": b"3", b"b": b"4"}
    assert content(tmp_path / "last")["numbers"][(256).to_bytes(8, sys.byteorder)] == b"256"
    assert run("import", tmp_path / "x", tmp_path / "env", "--duplicates", "last", "--keep")[0] == 2


def test_import_without_the_package_says_so(run, tmp_path, monkeypatch):
    (tmp_path / "data.mdb").write_bytes(bytes(16) + (0xBEEFC0DE).to_bytes(4, "little") + bytes(8172))
    monkeypatch.setitem(sys.modules, "lmdb", None)
    code, _, err = run("import", tmp_path / "a", tmp_path)
    assert code == 5
    assert "pip install lmdb" in err
    assert "mdb_dump" in err


def test_a_broken_lmdb_file_is_told(run, lmdb, tmp_path):
    (tmp_path / "data.mdb").write_bytes(bytes(16) + (0xBEEFC0DE).to_bytes(4, "little") + bytes(8172))
    code, _, err = run("import", tmp_path / "a", tmp_path)
    assert code == 3, err
    assert "LMDB cannot read" in err


# ---------------------------------------------------------------- import from SQLite


@pytest.fixture
def sqlite(tmp_path):
    path = tmp_path / "old.sqlite"
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE people (id INTEGER PRIMARY KEY, name TEXT, photo BLOB)")
        db.executemany("INSERT INTO people VALUES (?, ?, ?)", [(2, "Ada", b"\xff"), (10, "Zoë", None), (-1, None, b"")])
        db.execute("CREATE TABLE kv (k BLOB PRIMARY KEY, v BLOB) WITHOUT ROWID")
        db.executemany(
            "INSERT INTO kv VALUES (?, ?)", [(b"%05d" % number, b"\xff%d" % number) for number in range(500)]
        )
        db.execute('CREATE TABLE "odd ""name" (a TEXT COLLATE NOCASE, "b c" REAL)')
        db.executemany(
            'INSERT INTO "odd ""name" VALUES (?, ?)',
            [("x", 1.5), ("X", 2.0), ("x", 3.0), (None, 1.0), ("z", float("inf"))],
        )
    db.close()
    return path


def test_import_of_a_table(run, sqlite, tmp_path):
    assert run("import", tmp_path / "a", sqlite, "--table", "people", "--tree", "people")[0] == 0
    found = content(tmp_path / "a")["people"]
    assert {key: json.loads(value) for key, value in found.items()} == {
        b"-1": {"name": None, "photo": {"base64": ""}},
        b"10": {"name": "Zoë", "photo": None},
        b"2": {"name": "Ada", "photo": {"base64": "/w=="}},
    }
    assert (
        run("import", tmp_path / "b", sqlite, "--table", "people", "--big-endian", "--skip-bad", "--value", "name")[0]
        == 1
    )
    assert list(content(tmp_path / "b")[None].values()) == [b"Ada", "Zoë".encode()]


def test_import_of_a_key_value_table(run, sqlite, tmp_path):
    assert run("import", tmp_path / "a", sqlite, "--table", "kv")[0] == 0
    assert content(tmp_path / "a")[None] == {b"%05d" % number: b"\xff%d" % number for number in range(500)}


@pytest.mark.parametrize("after", [1, 4, 9])
def test_import_from_sqlite_goes_on(run, sqlite, tmp_path, monkeypatch, after):
    interrupted(monkeypatch, after)
    assert run("import", tmp_path / "a", sqlite, "--table", "kv", "--batch", 50)[0] == 130
    code, out, _ = run("import", tmp_path / "a", sqlite, "--table", "kv", "--batch", 50, "--format", "json")
    facts = json.loads(out)
    assert (code, facts["stored"], facts["stored_before"]) == (0, 500 - 50 * after, 50 * after)
    assert content(tmp_path / "a") == {None: {b"%05d" % number: b"\xff%d" % number for number in range(500)}}


def test_rows_that_cannot_be_entries(run, sqlite, tmp_path):
    arguments = ("import", tmp_path / "a", sqlite, "--table", 'odd "name', "--key", "a")
    code, _, err = run(*arguments)
    assert (code, "row 1: its 'a' is NULL" in err) == (1, True)
    code, _, err = run(*arguments, "--skip-bad")
    assert (code, "row 4: its 'a' is that of the row before" in err) == (1, True)
    assert content(tmp_path / "a")[None] == {b"X": b"2.0", b"x": b"1.5", b"z": b"inf"}
    assert run(*arguments, "--skip-bad", "--duplicates", "last")[0] == 1
    assert content(tmp_path / "a")[None][b"x"] == b"3.0"
    assert run(*arguments, "--skip-bad", "--duplicates", "first")[0] == 1
    assert content(tmp_path / "a")[None][b"x"] == b"1.5"


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ([], 2, "which table"),
        (["--table", "pigs"], 1, "there is no table 'pigs'"),
        (["--table", "people", "--key", "x"], 2, "has no column 'x'"),
        (["--table", 'odd "name'], 2, "which column"),
        (["--table", "kv", "--database", "x"], 2, "LMDB"),
    ],
)
def test_import_wants_to_know_what(run, sqlite, tmp_path, arguments, code, words):
    got, _, err = run("import", tmp_path / "a", sqlite, *arguments)
    assert (got, words in err) == (code, True), err
    assert not (tmp_path / "a").exists()


def test_import_of_what_is_neither(run, tmp_path):
    (tmp_path / "text").write_bytes(b"hello")
    assert run("import", tmp_path / "a", tmp_path / "text")[0] == 3
    assert run("import", tmp_path / "a", tmp_path)[0] == 3
    assert run("import", tmp_path / "a", tmp_path / "none")[0] == 5
    (tmp_path / "bad.sqlite").write_bytes(b"SQLite format 3\0" + b"\xff" * 5000)
    assert run("import", tmp_path / "a", tmp_path / "bad.sqlite")[0] == 3
    assert not (tmp_path / "a").exists()


def test_a_table_that_is_locked_is_told(run, sqlite, tmp_path):
    db = sqlite3.connect(sqlite, isolation_level=None)
    db.execute("BEGIN EXCLUSIVE")
    code, _, err = run("import", tmp_path / "a", sqlite, "--table", "kv", "--timeout", "0.1")
    db.close()
    assert (code, "locked" in err) == (4, True)


def test_a_pipe_under_a_name_leaves_no_mark(run, tmp_path):
    text = lines_of([(b"%03d" % number, b"v") for number in range(10)]) + b"oops\n"
    os.mkfifo(tmp_path / "pipe")
    writer = subprocess.Popen(["sh", "-c", 'cat > "$0"', str(tmp_path / "pipe")], stdin=subprocess.PIPE)
    writer.stdin.write(text)
    writer.stdin.close()
    code, _, err = run("load", tmp_path / "a", tmp_path / "pipe", "--batch", 3)
    writer.wait()
    assert (code, "or mend it and load all of it again\n" in err) == (1, True)
    assert set(content(tmp_path / "a")) == {None}


def test_the_tree_of_marks_takes_no_entries(run, tmp_path):
    text = b'{"tree": "%s", "key": "a", "value": ""}\n' % MARKS.encode()
    assert "line 1: the tree 'cowdb.unfinished' is for the marks" in run("load", tmp_path / "a", "-", stdin=text)[2]
    assert run("load", tmp_path / "a", "-", "--tree", MARKS, stdin=text)[0] == 2
    assert run("put", tmp_path / "a", "--create", "--tree", MARKS, "a", "b")[0] == 2
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "arguments", [["dump"], ["dump", "--as", "csv"], ["dump", "--as", "mdb", "--print"], ["get", "KEY"], ["scan"]]
)
def test_a_terminal_gets_nothing_that_it_would_obey(tmp_path, arguments):
    path = tmp_path / "a.cowdb"
    key, value = b"\x1b]0;owned\x07", "\x1b[31mred\x9b2J\u202e\r".encode()
    with cowdb.open(path) as db, db.write() as txn:
        txn[key] = value
    ours, theirs = os.openpty()
    words = [str(path), *(word.replace("KEY", r"\x1b]0;owned\x07") for word in arguments[1:])]
    child = subprocess.Popen(
        [sys.executable, "-m", "cowdb", arguments[0], *words, "--color", "never"],
        cwd=ROOT,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    seen = b""
    while True:
        try:
            block = os.read(ours, 65536)
        except OSError:  # the other end is closed
            break
        if not block:
            break
        seen += block
    os.close(ours)
    assert child.wait() == 0, seen
    text = seen.decode().replace("\x1b[1m", "").replace("\x1b[0m", "")  # the heads of a table are bold
    assert "red" in text or "base64:" in text
    for char in "\x1b\x07\x9b\u202e":
        assert char not in text, ascii(text)


# ---------------------------------------------------------------- what must not happen


@pytest.mark.parametrize("target", ["itself", "another"])
def test_a_dump_never_replaces_a_database(run, tmp_path, target):
    """`dump a.cowdb a.cowdb --force` made JSON Lines of the database that it was reading."""
    for name in ("a.cowdb", "b.cowdb"):
        with cowdb.open(tmp_path / name) as db:
            db[b"k"] = name.encode()
    output = tmp_path / ("a.cowdb" if target == "itself" else "b.cowdb")
    code, _, err = run("dump", tmp_path / "a.cowdb", output, "--force")
    assert (code, "does not begin like a dump, so it stays as it is" in err) == (2, True)
    assert content(output) == {None: {b"k": output.name.encode()}}


@pytest.mark.parametrize("force", [[], ["--force"]])
def test_a_dump_replaces_nothing_that_is_no_dump(run, base, tmp_path, force):
    """A database whose first page was damaged, its lock file and an SQLite file were all overwritten."""
    with cowdb.open(tmp_path / "torn") as db:
        db[b"k"] = b"v"
        lock = (tmp_path / "torn-lock").read_bytes()
        code, _, err = run("dump", base, tmp_path / "torn-lock", *force)
        assert (code, (tmp_path / "torn-lock").read_bytes()) == (2, lock)
    with (tmp_path / "torn").open("r+b") as file:
        file.write(bytes(4096))
    with sqlite3.connect(tmp_path / "sqlite") as connection:
        connection.execute("CREATE TABLE t (k)")
    connection.close()
    (tmp_path / "json").write_bytes(b'{"name": "a package"}')
    (tmp_path / "text").write_bytes(b"mine")
    for name in ("torn", "sqlite", "json", "text"):
        before = (tmp_path / name).read_bytes()
        code, _, err = run("dump", base, tmp_path / name, *force)
        assert (code, (tmp_path / name).read_bytes()) == (2, before)
        assert "does not begin like a dump" in err
        assert "--force replaces it" not in err
    os.symlink("nowhere", tmp_path / "link")
    assert run("dump", base, tmp_path / "link", *force)[0] == 2
    assert run("dump", base, tmp_path, *force)[0] == 2
    assert (tmp_path / "link").is_symlink()


@pytest.mark.parametrize("form", ["jsonl", "csv", "tsv", "mdb", "bdb"])
@pytest.mark.parametrize("trees", [["--main"], ["--tree", "cows & co"], ["--tree", "empty"], ["--tree", "no entry"]])
def test_a_dump_from_before_is_known_by_its_beginning(run, base, tmp_path, form, trees):
    with cowdb.open(base) as db, db.write() as txn:
        txn.tree("no entry", create=True)
    target = tmp_path / f"out.{form}"
    arguments = ("dump", base, target, *trees, "--as", "csv" if form == "tsv" else form)
    assert run(*arguments)[0] == 0
    code, _, err = run(*arguments)
    assert (code, "is there already; --force replaces it" in err) == (2, True)
    assert run(*arguments, "--force")[0] == 0
    target.write_bytes(b"")
    assert run(*arguments)[0] == 2
    assert run(*arguments, "--force")[0] == 0


def test_a_file_that_comes_during_a_dump_stays(run, base, tmp_path, monkeypatch):
    target = tmp_path / "out.jsonl"

    def slow(*arguments, **options):
        target.write_bytes(b"somebody else's")
        yield "{}"

    monkeypatch.setattr("cowdb.cli.dump.write", slow)
    code, _, err = run("dump", base, target)
    assert (code, target.read_bytes()) == (2, b"somebody else's")
    assert "has come meanwhile" in err
    target.unlink()
    monkeypatch.setattr("cowdb.cli.dump.write", slow)
    assert run("dump", base, target, "--force")[0] == 2
    assert target.read_bytes() == b"somebody else's"
    assert not list(tmp_path.glob(".out*"))


def test_a_dump_to_a_dash_goes_to_the_output(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with cowdb.open("a.cowdb") as db:
        db[b"k"] = b"v"
    assert run("dump", "a.cowdb", "-")[:2] == (0, b'{"key": "k", "value": "v"}\n')
    assert not Path("-").exists()


def test_a_dump_does_not_pretend_to_hide_anything(run, tmp_path):
    with cowdb.open(tmp_path / "a.cowdb") as db:
        db[b"secret"] = b"v"
    code, out, err = run("dump", tmp_path / "a.cowdb", "--show", "redacted")
    assert (code, out) == (2, b"")
    assert "--show redacted" in err


def test_a_load_that_stored_nothing_leaves_no_mark(run, tmp_path):
    """The wrong --key stopped a load at the header; the right one then was told that its options differed."""
    source = tmp_path / "words.csv"
    source.write_text("word,meaning\nmoo,what cows say\n", encoding="utf-8")
    path = tmp_path / "a.cowdb"
    cowdb.open(path).close()
    code, _, err = run("load", path, source, "--key", "nope")
    assert (code, "nothing was stored" in err) == (1, True)
    assert content(path) == {None: {}}
    assert run("load", path, source, "--key", "word", "--value", "meaning")[0] == 0
    assert content(path) == {None: {b"moo": b"what cows say"}}


# ---------------------------------------------------------------- a new file in which nothing was stored


@pytest.mark.parametrize(
    ("text", "options"),
    [
        (b"oops", ["--from", "jsonl"]),
        (b'{"key": "a", "value": ""}', ["--from", "csv"]),
        (b'{"key": "a", "value": ""}\noops', ["--batch", "0"]),
        (b"a,b\n1,2\n", ["--from", "csv", "--key", "nope"]),
    ],
)
def test_a_load_that_stored_nothing_leaves_no_new_file(run, tmp_path, text, options):
    (tmp_path / "in").write_bytes(text)
    code, _, err = run("load", tmp_path / "a.cowdb", tmp_path / "in", *options)
    assert (code, "nothing was stored" in err) == (1, True)
    assert os.listdir(tmp_path) == ["in"]


def test_a_file_that_was_there_stays_however_empty(run, tmp_path):
    path = tmp_path / "a.cowdb"
    cowdb.open(path).close()
    os.symlink("b.cowdb", tmp_path / "link")
    for target in (path, tmp_path / "link"):
        assert run("load", target, "-", "--from", "jsonl", stdin=b"oops")[0] == 1
        assert content(target) == {None: {}}


def test_a_new_file_that_somebody_else_has_opened_stays(run, tmp_path, monkeypatch):
    path = tmp_path / "a.cowdb"
    other = []
    take = cowdb.cli.load.Batches.take

    def slow(self, *arguments, **options):
        other.append(OtherProcess(path))
        take(self, *arguments, **options)

    monkeypatch.setattr("cowdb.cli.load.Batches.take", slow)
    (tmp_path / "in").write_bytes(b"oops")
    assert run("load", path, tmp_path / "in", "--from", "jsonl")[0] == 1
    other[0].end()
    assert content(path) == {None: {b"other": b"stored"}}


class OtherProcess:
    """Opens a database, and stores an entry in it when it is told to end."""

    PROGRAM = """
import sys, cowdb
with cowdb.open(sys.argv[1]) as db:
    print(flush=True)
    sys.stdin.readline()
    db[b"other"] = b"stored"
"""

    def __init__(self, path):
        self.process = subprocess.Popen(
            [sys.executable, "-c", self.PROGRAM, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        self.process.stdout.readline()

    def end(self):
        self.process.communicate(b"\n", timeout=60)
        assert self.process.returncode == 0


def test_an_import_that_meets_a_bad_row_says_the_way_on(run, tmp_path):
    source, path = tmp_path / "s.sqlite", tmp_path / "a.cowdb"
    with sqlite3.connect(source) as db:
        db.execute("CREATE TABLE t (k TEXT PRIMARY KEY, v TEXT)")
        db.executemany("INSERT INTO t VALUES (?, ?)", [("a", None), ("b", "2"), ("c", None)])
    db.close()
    arguments = ("import", path, source, "--batch", 1)

    def mend(statement):
        gc.collect()  # the rows that the command had not taken hold a lock in this process
        with sqlite3.connect(source) as db:
            db.execute(statement)
        db.close()

    code, _, err = run(*arguments)
    assert (code, "row 1: its 'v' is NULL; nothing was stored; --skip-bad leaves out what is bad" in err) == (1, True)
    assert sorted(os.listdir(tmp_path)) == ["s.sqlite"]
    mend("UPDATE t SET v = '1' WHERE k = 'a'")
    code, _, err = run(*arguments)
    assert code == 1
    assert err.endswith(
        "row 3: its 'v' is NULL; the 2 entries before it are stored; give --skip-bad to leave it out, "
        "or mend it and give the same command again, which then begins anew\n"
    )
    assert run(*arguments, "--skip-bad")[0] == 1
    mend("UPDATE t SET v = '3' WHERE k = 'c'")
    assert run(*arguments)[0] == 0
    assert content(path) == {None: {b"a": b"1", b"b": b"2", b"c": b"3"}}


def test_load_of_a_directory_of_lmdb_names_import(run, tmp_path):
    lmdb = pytest.importorskip("lmdb")
    with lmdb.open(str(tmp_path / "env")) as env, env.begin(write=True) as txn:
        txn.put(b"k", b"v")
    for options in ([], ["--from", "jsonl"]):
        code, _, err = run("load", tmp_path / "a.cowdb", tmp_path / "env", *options)
        assert (code, "is an LMDB environment; cowdb import takes it" in err) == (2, True)
    (tmp_path / "plain").mkdir()
    assert "is a directory; name a file inside it" in run("load", tmp_path / "a.cowdb", tmp_path / "plain")[2]
