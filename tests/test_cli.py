"""The frame of the command: help, formats, exit codes, errors in one sentence, and nothing raw on a terminal."""

from __future__ import annotations

import argparse
import io
import json
import os
import pty
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from commands import cow, cow_json, sample
from hypothesis import example, given
from hypothesis import strategies as st

import cowdb
from cowdb import errors
from cowdb.cli import build_parser, explain, main, registry
from cowdb.cli import output as output_module
from cowdb.cli.data import given as typed
from cowdb.cli.data import shown, shown_text
from cowdb.cli.output import Column, CommandError, Output, size_text, time_text

ROOT = Path(__file__).parents[1]
NAMES = [command.name for command in registry.COMMANDS]
ESCAPE = "\x1b[31m\x07\x9b\u202e\u200b"


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    made = tmp_path_factory.mktemp("cli") / "a.cowdb"
    sample(made, 600)
    return made


def start(*arguments, **options):
    """``python -m cowdb`` in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen([sys.executable, "-m", "cowdb", *map(str, arguments)], env=environment, **options)


# ---------------------------------------------------------------- help


@pytest.mark.parametrize("name", NAMES)
def test_every_command_has_help_with_examples(name):
    result = cow(name, "--help")
    assert result.code == 0
    assert f"cowdb {name}" in result.out
    assert "examples:" in result.out
    assert "exit codes:" in result.out
    assert cow("help", name).out == result.out


@pytest.mark.parametrize("name", [None, *NAMES])
def test_help_fits_into_84_columns_and_has_every_exit_code(name, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    text = cow("help", name).out if name else cow("help").out
    assert [line for line in text.splitlines() if len(line) > 84] == []
    for code in (0, 1, 2, 3, 4, 5, 130, 141):
        assert re.search(rf"^  (.*  )?{code} [a-z]", text, re.MULTILINE), code
    if name:
        assert "dump, or --show hex, for exact bytes" in " ".join(text.split())


@pytest.mark.parametrize("command", registry.COMMANDS, ids=NAMES)
def test_examples_parse(command):
    parser = build_parser()
    module = command.load()
    assert module.EXAMPLES
    for line, what in module.EXAMPLES:
        assert what
        own = re.search(r"cowdb [^|&<>)]*", line)[0]
        words = shlex.split(own)
        assert words[:2] == ["cowdb", command.name], line
        assert parser.parse_args(words[1:]).command == command.name


def test_help_lists_every_command_in_its_group():
    result = cow("--help")
    assert result.code == 0
    for command in registry.COMMANDS:
        assert command.summary in result.out
    assert cow("help").out == result.out


def test_version_names_the_kernel():
    result = cow("--version")
    assert result.code == 0
    assert result.out.startswith(f"cowdb {cowdb.__version__} (")
    assert "kernel" in result.out


def test_the_module_runs_as_the_command(path):
    process = start("info", path, "--format", "json", stdout=subprocess.PIPE)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert json.loads(out)["entries"] == cow_json("info", path)["entries"]


# ---------------------------------------------------------------- exit codes


def test_usage(path):
    assert cow().code == 2
    result = cow("inof", path)
    assert result.code == 2
    assert "did you mean 'info'" in result.err
    assert cow("info").code == 2
    assert cow("info", path, "--format", "xml").code == 2
    assert cow("help", "nothing").code == 2
    assert cow("top", path, "--count", "0").code == 2
    assert cow("page", path, "99999999").code == 2
    assert cow("info", path, "--timeout", "soon").code == 2


def _numbers():
    """Each option or argument of a command that takes a number, with the command."""
    for command in registry.COMMANDS:
        parser = argparse.ArgumentParser()
        command.load().arguments(parser)
        for action in parser._actions:
            if action.type is not None:
                yield pytest.param(command.name, action, id=f"{command.name} {action.dest}")


@pytest.mark.parametrize(("command", "action"), list(_numbers()))
def test_a_number_is_looked_at_with_care(path, command, action):
    for wrong in ("x", "1.5x", "-1"):
        if wrong == "-1" and (command, action.dest) == ("get", "rank"):  # the last one
            continue
        given = [f"{action.option_strings[0]}={wrong}"] if action.option_strings else [wrong]
        files = [] if command == "bench" else [path]
        result = cow(command, *files, *given, *(["new"] if command in ("load", "import", "recover") else []))
        assert result.code == 2
        assert f"{wrong!r} is no " in result.err, result.err
        assert "invalid" not in result.err


@pytest.mark.parametrize("before", [["--format", "json"], ["--format=json", "-q"], ["--quiet", "--color", "never"]])
def test_what_all_commands_share_may_stand_before_the_command(path, before):
    assert cow(*before, "get", path, "key:000100") == cow("get", path, "key:000100", *before)
    assert cow(*before, "get", path, "key:000100").code == 0


def test_help_does_not_mind_what_stands_before_it():
    assert cow("--format", "json", "help", "get") == cow("help", "get")


@pytest.mark.parametrize("before", [["--format"], ["--format", "json"], ["--format", "xml", "get"], ["--what", "get"]])
def test_options_without_a_command_are_wrong_usage(before):
    result = cow(*before)
    assert result.code == 2
    assert "there is no command 'json'" not in result.err
    assert "usage" in result.err or "--help says more" in result.err


def test_what_is_no_database_is_found_out_and_nothing_is_made_beside_it(tmp_path):
    for name, content in (("text", b"hello world, this is a text"), ("empty", b""), ("zeros", bytes(99999))):
        (tmp_path / name).write_bytes(content)
        for command in ("info", "check", "stat", "trees", "readers", "pages", "free", "diff"):
            result = cow(command, tmp_path / name)
            assert result.code == 3, (command, result)
            assert "is not a cowdb database" in result.err
            assert len(result.err.splitlines()) == 1
        assert cow("recover", tmp_path / name, tmp_path / "new").code == 3
    assert sorted(found.name for found in tmp_path.iterdir()) == ["empty", "text", "zeros"]
    assert cow("info", tmp_path).code == 3
    assert cow("info", tmp_path / "missing").code == 5


def test_a_newer_format_is_no_damage(tmp_path):
    from handmade import simple

    from cowdb import format as fmt
    from cowdb.checksum import crc32c

    file = simple([(b"a", b"1")], 4096)
    for slot in (0, 4096):
        file.data[slot + fmt.META.offset("format version")] = 9
        file.data[slot : slot + 4] = crc32c(bytes(file.data[slot + 4 : slot + 4096])).to_bytes(4, "little")
    path = tmp_path / "newer.cowdb"
    path.write_bytes(file.data)
    for command in ("info", "check", "stat", "pages"):
        result = cow(command, path)
        assert result.code == 3, (command, result)
        assert "version 9" in result.err
    assert cow("recover", path, tmp_path / "new").code == 3


def test_locked(path):
    with cowdb.open(path) as db, db.write():
        child = start("check", path, "--timeout", "0.1", stderr=subprocess.PIPE, text=True)
        _, err = child.communicate(timeout=60)
    assert child.returncode == 4
    assert f"process {os.getpid()} holds it" in err
    assert len(err.splitlines()) == 1


CASES = [
    (CommandError("a sentence", 2), 2, "a sentence"),
    (errors.NotADatabaseError("x", "no"), 3, "not a cowdb"),
    (errors.VersionError("x", "new"), 3, "newer cowdb"),
    (errors.LockTimeoutError("it", 1.0, 7), 4, "--timeout"),
    (errors.CorruptionError(7, "bad"), 1, "cowdb recover"),
    (errors.KeyNotFoundError(b"k"), 1, "b'k'"),
    (errors.KeySizeError(9999, 2000), 2, "too long"),
    (errors.FullError(28, "no room"), 5, "no room"),
    (errors.PoisonedError(5, "failed"), 5, "failed"),
    (FileNotFoundError(2, "No such file", "f"), 5, "no file 'f'"),
    (PermissionError(13, "Permission denied", "f"), 5, "may not"),
    (IsADirectoryError(21, "Is a directory", b"f"), 5, "is a directory"),
    (OSError(5, "Input/output error"), 5, "Input/output error"),
    (OSError(5, "Input/output error", "f"), 5, "'f': Input"),
    (MemoryError(), 5, "memory"),
]


@pytest.mark.parametrize(("error", "code", "part"), CASES, ids=[type(case[0]).__name__ for case in CASES])
def test_each_error_is_a_sentence_and_a_code(error, code, part):
    sentence, found = explain(error)
    assert found == code
    assert part in sentence
    assert "\n" not in sentence
    assert "Traceback" not in sentence


def test_a_traceback_is_there_for_who_asks(path, monkeypatch):
    monkeypatch.setenv("COWDB_DEBUG", "1")
    assert "Traceback" in cow("path", path, "x", "--tree", "nobody").err


def test_a_closed_pipe_ends_it_quietly(path):
    process = start("pages", path, "--format", "jsonl", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    err = process.stderr.read()
    process.stderr.close()
    assert process.wait(timeout=60) == 141
    assert err == b""


@pytest.mark.parametrize("end", [">&-", "2>&-", ">&- 2>&-", "</dev/null", "<&-"])
def test_outputs_that_are_closed_do_not_matter(path, end):
    command = f"{shlex.quote(sys.executable)} -m cowdb info {shlex.quote(str(path))} {end}"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(["sh", "-c", command], env=environment, capture_output=True, check=False)
    assert done.returncode == 0
    assert done.stderr == b""


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
def test_an_output_that_is_full_is_an_error(path):
    with open("/dev/full", "wb") as full:
        process = start("pages", path, stdout=full, stderr=subprocess.PIPE)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 5
    assert err == b"cowdb: the system says: No space left on device\n"


def test_what_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for name in (tmp_path / "pipe", "/dev/zero", tmp_path):
        assert cow("info", name).code == 3
    assert cow("info", "").code == 2
    assert "\udcff" not in cow("info", "\udcff").err


def test_ctrl_c_ends_it_quietly(path):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # tests in the background ignore it: so would it
    try:
        process = start("watch", path, "--every", "0.05", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    finally:
        signal.signal(signal.SIGINT, before)
    for _ in range(3):
        assert process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err == b"cowdb: stopped\n"


ONE_THING = re.compile(
    r"\b1 (free |damaged |overflow |paired |smaller )?"
    r"(pages|runs|entries|keys|bytes|cells|children|trees|findings|transactions|pages)\b|\b1 [a-z ]+ are\b"
)


@pytest.mark.parametrize(
    "command",
    [
        "info F", "stat F", "trees F", "free F", "tree F", "tree F -t t", "path F k", "path F x", "path F v -t v", "page F 2",
        "page F 3", "page F 4", "page F 5", "check F", "dump F N", "dump F N --as mdb", "copy F N", "compact F N",
        "recover F N", "surgery F N --free-list", "report F N", "report F -", "delete F k", "load N I", "load N I --batch 1",
        "load N J", "load N J --keep", "bench --records 1 --runs 1 --only get --against sqlite3 --dir D",
    ],
)  # fmt: skip
def test_one_thing_is_no_things(tmp_path, command):
    path = tmp_path / "F"
    with cowdb.open(path, page_size=4096) as db:
        with db.write() as txn:
            txn[b""] = b"v"
            txn.tree("t", create=True)[b"k"] = b"1"
            txn.tree("v", create=True)[b"v"] = b"x" * 2000
        with db.write() as txn:
            del txn[b""]
            txn[b""] = b"w"
    (tmp_path / "I").write_text('{"key": "a", "value": "1"}\n')
    (tmp_path / "J").write_text('{"key": "a", "value": "1"}\noops\n')
    files = {name: str(tmp_path / name) for name in "FNIJ"} | {"D": str(tmp_path)}
    result = cow(*(files.get(word, word) for word in command.split()))
    assert "Traceback" not in result.err
    assert not ONE_THING.search(result.err + result.out.partition("<html")[0])


def test_a_number_and_what_it_counts():
    assert [output_module.counted(n, "page") for n in (0, 1, 2, 1234)] == [
        "0 pages",
        "1 page",
        "2 pages",
        "1,234 pages",
    ]
    assert [output_module.counted(n, "child") for n in (1, 2)] == ["1 child", "2 children"]
    assert [output_module.are(n) for n in (0, 1, 2)] == ["are", "is", "are"]


# ---------------------------------------------------------------- formats


@pytest.mark.parametrize(
    "arguments",
    [
        ("info",),
        ("stat",),
        ("trees",),
        ("readers",),
        ("watch", "--count", "2", "--every", "0.01"),
        ("top",),
        ("pages",),
        ("page", "0"),
        ("page", "5", "--hex"),
        ("tree",),
        ("path", "key:000100"),
        ("free",),
        ("free", "--summary"),
        ("diff",),
        ("check",),
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("show", ["text", "hex", "redacted"])
def test_every_command_answers_in_every_format(path, arguments, show):
    name, *rest = arguments
    if show == "redacted" and "--hex" in rest:
        assert cow(name, path, *rest, "--show", show).code == 2
        return
    text = cow(name, path, *rest, "--show", show)
    assert text.code == 0, text.err
    assert text.out.strip()
    assert "\x1b" not in text.out
    as_json = cow(name, path, *rest, "--show", show, "--format", "json").json
    lines = cow(name, path, *rest, "--show", show, "--format", "jsonl").jsonl
    if isinstance(as_json, list):
        assert len(as_json) == len(lines)
    elif name != "check":
        assert len(lines) == 1
        assert lines[0].keys() == as_json.keys()
    if show == "redacted":
        secret = ("key:0001", "blob1", "name/1")
        assert not any(part in text.out.replace("key:000100 in", "") for part in secret)
        assert not any(part in json.dumps(as_json) for part in secret)


def test_text_can_be_read_by_programs_too(path):
    rows = [line.split() for line in cow("trees", path).out.splitlines()]
    assert rows[0][:2] == ["tree", "entries"]
    assert [row[0] for row in rows[1:]] == ["(main)", "blobs", "empty", "names"]
    assert rows[4][1] == "150"


def test_records_of_nothing_are_a_list(path):
    assert cow("pages", path, "--kind", "unreachable", "--format", "json").json == []
    assert cow("pages", path, "--kind", "unreachable", "--format", "jsonl").out == ""


# ---------------------------------------------------------------- what is shown


@example(b"\\x00")
@example(b"\\")
@given(st.binary(max_size=60))
def test_what_is_shown_can_be_typed_in(data):
    assert typed(shown(data)) == data
    assert shown(data).isprintable()
    assert typed(shown(data, "hex"), "hex") == data
    assert data.hex() == shown(data, "hex")
    if len(data) > 4:
        assert shown(data, "redacted") == f"<{len(data)} bytes>"


@given(st.binary(max_size=200), st.integers(4, 50), st.sampled_from(["text", "hex"]))
def test_a_limit_is_kept(data, limit, how):
    text = shown(data, how, limit)
    assert len(text) <= limit
    whole = shown(data, how)
    assert text == whole or (text.endswith("...") and whole.startswith(text[:-3][:-12]))


@given(st.text(max_size=40))
def test_no_text_brings_control_characters(text):
    assert all(char == "\n" or char.isprintable() for char in shown_text(text))


@pytest.mark.parametrize(
    ("text", "how"), [(r"\q", "text"), ("a\\", "text"), (r"\x0", "text"), ("0", "hex"), ("xy", "hex")]
)
def test_what_cannot_be_meant_is_refused(text, how):
    with pytest.raises(ValueError, match="it takes"):
        typed(text, how)


def test_names_keys_and_values_of_a_file_never_reach_the_terminal_as_they_are(tmp_path):
    path = tmp_path / f"evil{ESCAPE}.cowdb"
    evil = ESCAPE.encode()
    with cowdb.open(path) as db, db.write() as txn:
        txn[evil] = evil
        txn.tree(ESCAPE, create=True)[evil * 3] = evil * 500
    for arguments in (
        ("info",), ("stat",), ("trees",), ("top",), ("top", "-t", ESCAPE), ("pages",), ("tree", "-t", ESCAPE),
        ("path", evil.decode()), ("path", "x", "-t", f"no{ESCAPE}"), ("page", "2"), ("page", "3"), ("page", "4"), ("check",),
        ("diff",),
    ):  # fmt: skip
        for options in ((), ("--color", "always"), ("--format", "json"), ("--format", "jsonl")):
            result = cow(arguments[0], path, *arguments[1:], *options)
            out = result.out
            if "always" in options:  # colours are ours
                out = re.sub(r"\x1b\[[0-9;]*m", "", out)
                assert "\x1b[31m\\x07" not in result.out
            for char in "\x1b\x07\x9b\u202e\u200b":
                assert char not in out, (arguments, options)
                assert char not in result.err, (arguments, options)


# ---------------------------------------------------------------- a terminal, with rich and without


def on_a_terminal(*arguments, blocked=False, columns=100):
    """What the command writes to a terminal of so many columns."""
    code = "import sys, runpy\n"
    if blocked:
        code += "sys.modules['rich'] = None\n"
    code += f"sys.argv = {['cowdb', *map(str, arguments)]!r}\nrunpy.run_module('cowdb', run_name='__main__')\n"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": str(columns), "TERM": "xterm-256color"}
    environment.pop("NO_COLOR", None)
    main_end, end = pty.openpty()
    process = subprocess.Popen([sys.executable, "-c", code], stdout=end, stderr=end, stdin=end, env=environment)
    os.close(end)
    pieces = []
    while True:
        try:
            piece = os.read(main_end, 65536)
        except OSError:
            break
        if not piece:
            break
        pieces.append(piece)
    os.close(main_end)
    assert process.wait(timeout=60) == 0
    return b"".join(pieces).decode()


def test_a_terminal_gets_tables_and_colour(path):
    text = on_a_terminal("trees", path)
    assert "\x1b[" in text
    assert "─" in text or "━" in text
    assert "names" in text


def test_a_table_that_a_terminal_has_no_room_for_is_not_squeezed(path):
    text = re.sub(r"\x1b\[[0-9;]*m", "", on_a_terminal("stat", path, columns=40))
    for word in ("(main)", "entries", "overflow", "longest"):
        assert word in text


def test_without_rich_there_is_plain_text(path):
    text = on_a_terminal("trees", path, blocked=True)
    assert "\x1b" not in text
    assert text.replace("\r\n", "\n").splitlines()[0].split()[:2] == ["tree", "entries"]
    assert "sound" in on_a_terminal("check", path, blocked=True)


def test_long_tables_stream():
    out = io.StringIO()
    output = Output(stdout=out, stderr=io.StringIO())
    output.table((Column("a", "a", "number"), Column("b", "b")), ({"a": i, "b": i % 7} for i in range(5000)))
    lines = out.getvalue().splitlines()
    assert len(lines) == 5001
    assert lines[-1].split() == ["4999", "1"]


def test_words_for_numbers():
    assert [size_text(size) for size in (0, 1, 1023, 1024, 8192, 1 << 20, 1 << 30, 1 << 48)] == [
        "0 B", "1 B", "1023 B", "1.0 KiB", "8.0 KiB", "1.0 MiB", "1.0 GiB", "256.0 TiB",
    ]  # fmt: skip
    assert size_text(1024 * 1024 - 1) == "1.0 MiB"
    assert time_text(1e300) == "1e+300 s after 1970"
    assert len(time_text(time.time())) == 19


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_progress_is_told_where_somebody_looks(monkeypatch):
    monkeypatch.setattr(output_module, "_SOON", 0.0)
    err = Terminal()
    with Output(stdout=io.StringIO(), stderr=err, color="never").progress("checking", "pages") as tick:
        tick(10, 100)
    assert "checking" in err.getvalue()
    for quiet, stream in ((True, Terminal()), (False, io.StringIO())):
        with Output(stdout=io.StringIO(), stderr=stream, quiet=quiet).progress("checking") as tick:
            tick(10, 100)
        assert stream.getvalue() == ""


def test_short_work_shows_no_progress():
    err = Terminal()
    with Output(stdout=io.StringIO(), stderr=err).progress("checking", "pages") as tick:
        tick(10, 100)
    assert err.getvalue() == ""


def test_progress_without_rich(monkeypatch):
    monkeypatch.setattr(output_module, "_SOON", 0.0)
    monkeypatch.setattr(output_module, "_OFTEN", 0.0)
    monkeypatch.setitem(sys.modules, "rich", None)
    monkeypatch.setitem(sys.modules, "rich.progress", None)
    err = Terminal()
    with Output(stdout=io.StringIO(), stderr=err).progress("checking", "pages") as tick:
        tick(10, 100)
        tick(20, 0)
    assert "checking: 10 of 100 pages" in err.getvalue()
    assert "checking: 20 pages" in err.getvalue()
    assert err.getvalue().endswith("\r\x1b[K")


def test_every_module_has_what_the_frame_asks_for():
    for command in registry.COMMANDS:
        module = command.load()
        parser = argparse.ArgumentParser()
        module.arguments(parser)
        assert module.DESCRIPTION.strip()
        assert callable(module.run)
        assert command.summary[0].islower() or command.summary[0] in "(", command


def test_arguments_of_the_process_are_taken(path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["cowdb", "trees", str(path), "--format", "jsonl"])
    assert main() == 0
    assert len(capsys.readouterr().out.splitlines()) == 4


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["info", "FILE", "extra"], "cowdb info --help says more"),
        (["info", "FILE", "--timeout", "-1"], "'-1' is no number of seconds from 0 on"),
        (["info", "FILE", "--timeout", "nan"], "'nan' is no number of seconds from 0 on"),
        (["scan", "FILE", "--limit", "few"], "'few' is no whole number from 0 on"),
        (["delete", "FILE", "--all", "a"], "one of them, not more"),
    ],
)
def test_a_wrong_argument_is_named_in_words(tmp_path, arguments, words):
    path = tmp_path / "a.cowdb"
    cowdb.open(path).close()
    result = cow(*(str(path) if word == "FILE" else word for word in arguments))
    assert (result.code, result.out) == (2, "")
    assert words in result.err


def test_an_error_of_the_system_names_what_the_user_named(tmp_path):
    assert explain(PermissionError(13, "no", str(tmp_path / ".x.tmp"))) == (
        f"you may not make a file in {str(tmp_path)!r}",
        5,
    )
    assert explain(PermissionError(13, "no", str(tmp_path))) == (f"you may not read or write {str(tmp_path)!r}", 5)
    assert explain(FileNotFoundError(2, "no", str(tmp_path / "a" / "b"))) == (
        f"there is no directory {str(tmp_path / 'a')!r}",
        5,
    )
    assert explain(FileNotFoundError(2, "no", str(tmp_path / "b"))) == (f"there is no file {str(tmp_path / 'b')!r}", 5)
    assert explain(cowdb.ReadOnlyError(13, "'a' may be read but not written: open it with read_only=True")) == (
        "'a' may be read but not written", 5
    )  # fmt: skip


def test_help_of_help():
    assert cow("help", "help").out == cow("help").out
