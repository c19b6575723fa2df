"""Entries as text: JSON Lines, CSV, the text of mdb_dump. What was written reads as the same bytes."""

from __future__ import annotations

import io
import json
import shutil
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cowdb.cli import csvtext, dumptext, formats
from cowdb.cli.dumptext import DumpReader
from cowdb.cli.formats import Reading, recognise
from cowdb.cli.lines import START, BadInputError, Lines, Position, stop_at_once
from cowdb.cli.output import CommandError

AWKWARD = [
    b"",
    b"plain",
    b"two words, and a comma",
    b'"quoted"',
    "Zürich ☃ 𝄞".encode(),
    b"\0",
    b"\xff\xfe",
    b"line\nline",
    b"\r\n",
    b"\r",
    b"\t",
    b" ",
    b" leading and trailing ",
    b"base64:AAAA",
    b"base64:",
    b"\\",
    b"\\\\",
    b"\\5c",
    b"\\ab",
    b"=1+1",
    b"\x7f\x1b[2J",
    "\u2028\x85\ufeff".encode(),
    b"\xed\xa0\x80",  # half of a surrogate pair, as no UTF-8 has it
    bytes(range(256)),
    b"DATA=END",
    b"x" * 200_000,
]
TEXTUAL = st.one_of(st.binary(max_size=40), st.text(max_size=20).map(str.encode), st.sampled_from(AWKWARD[:-1]))
NAMES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\n\r"), min_size=1, max_size=8)


def written(form, trees, **options):
    pieces = list(formats.write(form, trees, **options))
    return b"".join(piece if isinstance(piece, bytes) else piece.encode() for piece in pieces)


def read(form, text, bad=stop_at_once, **options):
    lines = Lines(io.BytesIO(text))
    return [entry for entry in Reading(form, lines, bad, **options).entries if entry != (None, None, b"")]


def entries_of(trees):
    return [(name, key, value) for name, items in trees for key, value in items]


def without_names(entries):
    return [entry for entry in entries if entry[1] is not None]


FORMS = [
    ("jsonl", {}),
    ("jsonl", {"ascii_only": True}),
    ("csv", {}),
    ("csv", {"delimiter": "\t"}),
    ("mdb", {}),
    ("mdb", {"printable": True}),
    ("bdb", {}),
]


@pytest.mark.parametrize(("form", "options"), FORMS)
def test_awkward_bytes_come_back_exactly(form, options):
    trees = [(None, [(value, value[::-1]) for value in AWKWARD]), ("cows", [(b"k", value) for value in AWKWARD])]
    text = written(form, trees, **options)
    reading = {"delimiter": options["delimiter"]} if "delimiter" in options else {}
    assert without_names(read("mdb" if form == "bdb" else form, text, **reading)) == entries_of(trees)


@pytest.mark.parametrize(("form", "options"), FORMS)
@given(
    main=st.lists(st.tuples(TEXTUAL, TEXTUAL), max_size=6),
    name=NAMES,
    named=st.lists(st.tuples(TEXTUAL, TEXTUAL), max_size=3),
)
def test_any_bytes_come_back_exactly(form, options, main, name, named):
    trees = [(None, main), (name, named)]
    reading = {"delimiter": options["delimiter"]} if "delimiter" in options else {}
    text = written(form, trees, **options)
    assert without_names(read("mdb" if form == "bdb" else form, text, **reading)) == entries_of(trees)


def test_an_empty_named_tree_is_told_by_json_lines_and_mdb_dump():
    for form in ("jsonl", "mdb"):
        assert read(form, written(form, [(None, []), ("empty", [])])) == [("empty", None, b"")]


def test_json_lines_for_a_terminal_are_ascii():
    text = written("jsonl", [("é", [("☃".encode(), b"\x1b[2J\x7f"), (b"\x9b", b"")])], ascii_only=True)
    assert text.isascii()
    assert b"\x1b" not in text


def test_the_columns_of_csv():
    assert written("csv", [(None, [(b"a", b"1")])]) == b"key,value\r\na,1\r\n"
    assert written("csv", [(None, [(b"a", b"1")]), ("t", [])]) == b"tree,key,value\r\n,a,1\r\n"
    assert read("csv", b"value,key\n1,a\n") == [(None, b"a", b"1")]
    assert read("csv", b"\xef\xbb\xbfkey,value\r\n\r\na,1") == [(None, b"a", b"1")]


def test_json_lines_are_taken_as_others_write_them():
    text = b'\xef\xbb\xbf{"value":"1","key":"a"}\r\n\n  { "tree" : null, "key" : {"hex":"00fF"}, "value" : "\\u00e9" }'
    assert read("jsonl", text) == [(None, b"a", b"1"), (None, b"\0\xff", "é".encode())]


# ---------------------------------------------------------------- what is bad


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"{", "no JSON"),
        (b"nonsense", "no JSON"),
        (b"{}", "has no key"),
        (b"[1]", "an array, not an object"),
        (b"null", "null, not an object"),
        (b'{"key": "a"}', "has no value"),
        (b'{"value": "a"}', "has no key"),
        (b'{"key": "a", "value": 1}', "its value is a number"),
        (b'{"key": null, "value": ""}', "its key is null"),
        (b'{"key": "a", "value": true}', "true or false"),
        (b'{"key": "a", "value": {"base64": "A"}}', "the base64 of its value is broken"),
        (b'{"key": "a", "value": {"base64": "AA==\\n"}}', "the base64 of its value is broken"),
        (b'{"key": "a", "value": {"hex": "0"}}', "the hex of its value is broken"),
        (b'{"key": "a", "value": {"hex": "00", "base64": ""}}', "its value is an object"),
        (b'{"key": "a", "value": "", "more": 1}', "it has a member 'more'"),
        (b'{"key": "a", "val": ""}', "it has a member 'val'"),
        (b'{"key": "\\ud800", "value": ""}', "half of a surrogate pair"),
        (b'{"tree": "", "key": "a", "value": ""}', "its tree is not a name"),
        (b'{"tree": 1, "key": "a", "value": ""}', "its tree is not a name"),
        (b'{"key": "a", "value": ""} {}', "there is more"),
        (b'{"key": "\xff", "value": ""}', "no UTF-8 (byte 10)"),
        (b'{"key": ' + b"[" * 100_000 + b"}", "nested too deeply"),
        (b'{"key": ' + b"1" * 10_000 + b"}", "no JSON"),
    ],
)
def test_a_bad_json_line_says_what_is_wrong(line, reason):
    good = b'{"key": "k", "value": "v"}\n'
    with pytest.raises(BadInputError) as caught:
        read("jsonl", good + b"\n" + line + b"\n" + good)
    assert (caught.value.line, caught.value.start) == (3, 3)
    assert reason in caught.value.reason
    told = []
    assert read("jsonl", good + line + b"\n" + good, told.append) == [(None, b"k", b"v")] * 2
    assert [bad.line for bad in told] == [2]


@pytest.mark.parametrize(
    ("text", "line", "reason"),
    [
        (b"a,b\n1,2\n", 1, "no column 'key'"),
        (b"key,value,value\n1,2,3\n", 1, "more than one column 'value'"),
        (b"key,value,extra\n1,2,3\n", 1, "a column 'extra'"),
        (b"key,value\na\n", 2, "1 cell, where the header has 2"),
        (b"key,value\na,b,c\n", 2, "3 cells"),
        (b'key,value\n"a"b,c\n', 2, "no CSV"),
        (b'key,value\nx,y\n"a\nb', 3, "no CSV"),
        (b"key,value\n\xff,c\n", 2, "no UTF-8"),
        (b"key,value\nbase64:A,c\n", 2, "base64"),
    ],
)
def test_a_bad_row_says_what_is_wrong(text, line, reason):
    with pytest.raises(BadInputError) as caught:
        read("csv", text)
    assert caught.value.line == line
    assert reason in caught.value.reason


def test_bad_rows_can_be_left_out():
    told = []
    text = b'key,value\na,1\nb\n"c\nc",2\n"d"x,3\ne,4\n'
    assert read("csv", text, told.append) == [(None, b"a", b"1"), (None, b"c\nc", b"2"), (None, b"e", b"4")]
    assert [bad.line for bad in told] == [3, 6]


HEAD = b"VERSION=3\nformat=bytevalue\ntype=btree\nHEADER=END\n"


@pytest.mark.parametrize(
    ("text", "line", "start", "reason"),
    [
        (b"nonsense\n", 1, 1, "begins with VERSION=3"),
        (b"VERSION=3\nnonsense\n", 2, 1, "no name=value"),
        (b"VERSION=3\nformat=xml\nHEADER=END\n", 3, 1, "bytevalue or print"),
        (b"VERSION=3\ntype=recno\nHEADER=END\n", 3, 1, "no keys of their own"),
        (b"VERSION=3\nformat=print\n", 2, 1, "ends within a header"),
        (b"VERSION=3\ndatabase=\xff\nHEADER=END\n", 3, 1, "no UTF-8"),
        (HEAD + b" 61\n", 5, 5, "has no value"),
        (HEAD + b" 61\nDATA=END\n", 6, 5, "has no value"),
        (HEAD + b" 61\n 62\n", 6, 7, "ends in the middle"),
        (HEAD + b"61\n 62\nDATA=END\n", 5, 5, "begin with a blank"),
        (HEAD + b" 61\n 6\nDATA=END\n", 6, 5, "no hex"),
        (HEAD + b" 6 1\n 62\nDATA=END\n", 5, 5, "no hex"),
        (HEAD.replace(b"bytevalue", b"print") + b" a\\b\\c\n 62\nDATA=END\n", 5, 5, r"neither \\ nor \hh"),
    ],
)
def test_a_bad_dump_says_what_is_wrong(text, line, start, reason):
    with pytest.raises(BadInputError) as caught:
        read("mdb", text)
    assert (caught.value.line, caught.value.start) == (line, start)
    assert reason in caught.value.reason


def test_bad_pairs_and_headers_can_be_left_out():
    told = []
    text = (
        HEAD
        + b" 61\n 6\n 62\n 63\n 64\nDATA=END\nVERSION=3\ntype=heap\nHEADER=END\n 00\n 00\nDATA=END\n"
        + HEAD
        + b" 65\n 66\nDATA=END\n"
    )
    assert read("mdb", text, told.append) == [(None, b"b", b"c"), (None, b"e", b"f")]
    assert [bad.line for bad in told] == [6, 10, 13]


def test_several_values_under_a_key_are_refused_unless_one_is_chosen():
    head = HEAD.replace(b"HEADER", b"database=d\nduplicates=1\nHEADER")
    text = head + b" 61\n 31\n 61\n 32\n 62\n 33\nDATA=END\n"
    with pytest.raises(CommandError, match="'d' may hold several values under one key"):
        read("mdb", text)
    assert without_names(read("mdb", text, duplicates="first")) == [("d", b"a", b"1"), ("d", b"b", b"3")]
    assert dict(pair[1:] for pair in without_names(read("mdb", text, duplicates="last"))) == {b"a": b"2", b"b": b"3"}


def test_keys_that_are_integers_can_be_turned():
    head = HEAD.replace(b"HEADER", b"integerkey=1\nHEADER")
    text = head + b" 0100\n 61\nDATA=END\n"
    assert read("mdb", text) == [(None, b"\1\0", b"a")]
    assert read("mdb", text, big_endian=True) == [(None, b"\0\1", b"a")]


def test_a_name_with_an_end_of_line_cannot_be_dumped_for_lmdb():
    with pytest.raises(ValueError, match="no way to write the name"):
        written("mdb", [("a\nb", [])])


def test_both_ways_to_write_a_backslash_are_read():
    head = HEAD.replace(b"bytevalue", b"print")
    assert read("mdb", head + b" a\\\\b\\5Cc\n \nDATA=END\n") == [(None, b"a\\b\\c", b"")]
    assert dumptext.escaped(b"a\\b\n") == b"a\\5cb\\0a"


# ---------------------------------------------------------------- tables and documents of others


def test_documents_of_others():
    text = b'{"id": 7, "name": "Ada", "tags": ["x"]}\n{"id": "b", "name": null}\n{"name": "c"}\n'
    told = []
    assert read("jsonl", text, told.append, key="id") == [
        (None, b"7", text.splitlines()[0]),
        (None, b"b", text.splitlines()[1]),
    ]
    assert [str(bad) for bad in told] == ["line 3: it has no member 'id'"]
    told.clear()
    assert read("jsonl", text, told.append, key="id", value="tags") == [(None, b"7", b'["x"]')]
    assert len(told) == 2


def test_tables_of_others():
    text = b"id,name,herd\n1,base64:x,north\n2,,south\n"
    assert read("csv", text, key="id", value="name") == [(None, b"1", b"base64:x"), (None, b"2", b"")]
    (_, key, value), _ = read("csv", text, key="id")
    assert (key, json.loads(value)) == (b"1", {"name": "base64:x", "herd": "north"})
    assert read("csv", b"k;v\na;b\n", key="k", delimiter=";") == [(None, b"a", b"b")]
    with pytest.raises(BadInputError, match="no column 'x'"):
        read("csv", text, key="x")


def test_formats_are_recognised(tmp_path):
    def look(name, text):
        return recognise(name, io.BufferedReader(io.BytesIO(text)))

    assert look("x", b"VERSION=3\n") == "mdb"
    assert look("x", b'\n {"key"') == "jsonl"
    assert look("x.CSV", b"a,b") == "csv"
    assert look("x", b"a,b") is None
    assert look("data.mdb", b"\0\0\0\0") is None
    assert recognise("x.ndjson") == "jsonl"


# ---------------------------------------------------------------- positions


def test_reading_goes_on_after_a_position():
    text = b"one\ntwo\nthree\nfour"
    lines = Lines(io.BytesIO(text))
    flow = iter(lines)
    assert [next(flow), next(flow)] == [b"one\n", b"two\n"]
    assert (lines.number, lines.offset) == (2, 8)
    place = lines.settle(1)
    assert place[:2] == (4, 1)
    again = Lines(io.BytesIO(text), place)
    assert list(again) == [b"two\n", b"three\n", b"four"]
    assert again.number == 4
    grown = Lines(io.BytesIO(text + b"\nfive"), again.settle())
    assert list(grown) == [b"\n", b"five"]
    assert lines.done == place


@pytest.mark.parametrize("text", [b"One\ntwo", b"on", b""])
def test_an_input_whose_beginning_changed_is_refused(text):
    lines = Lines(io.BytesIO(b"one\ntwo"))
    next(iter(lines))
    place = lines.settle()
    with pytest.raises(ValueError, match="not what it was"):
        Lines(io.BytesIO(text), place)
    with pytest.raises(ValueError, match="not what it was"):
        Lines(io.BytesIO(b"one\ntwo"), Position(place.offset, 1, place.checksum ^ 1))


def test_a_line_without_an_end_does_not_fill_the_memory(monkeypatch):
    monkeypatch.setattr("cowdb.cli.lines.LONGEST", 100)
    with pytest.raises(BadInputError, match="more than 100 bytes"):
        list(Lines(io.BytesIO(b"ok\n" + b"x" * 1000)))


@pytest.mark.parametrize("form", ["jsonl", "csv", "mdb"])
def test_going_on_at_every_entry_gives_the_same_entries(form):
    trees = [(None, [(b"a\nb", b"1"), (b"b", b"\n\n"), (b"c", b"")]), ("t", [(b"x", b"\0"), (b"y", b"y")])]
    text = written(form, trees)
    want = without_names(read(form, text))
    for stop in range(1, len(want) + 1):
        got, place, state = [], START, None
        for _ in range(len(want) + 2):
            lines = Lines(io.BytesIO(text), place)
            reading = Reading(form, lines, stop_at_once, state=state)
            here = []
            for entry in reading.entries:
                if entry[1] is not None:
                    here.append(entry)
                if len(here) == stop:
                    break
            got += here
            place, state = lines.settle(), json.loads(json.dumps(reading.state))
            if len(here) < stop:
                break
        assert got == want, stop


def test_the_first_of_several_values_is_also_found_when_reading_goes_on():
    text = HEAD.replace(b"HEADER", b"duplicates=1\nHEADER") + b" 61\n 31\n 61\n 32\n 62\n 33\nDATA=END\n"
    lines = Lines(io.BytesIO(text))
    reader = DumpReader(lines, stop_at_once, duplicates="first")
    flow = iter(reader)
    assert [next(flow), next(flow)][1] == (None, b"a", b"1")
    place, section = lines.settle(), json.loads(json.dumps(reader.section))
    again = DumpReader(Lines(io.BytesIO(text), place), stop_at_once, duplicates="first", section=section)
    assert list(again) == [(None, b"b", b"3")]


# ---------------------------------------------------------------- the programs whose format it is


def need(program):
    path = shutil.which(program)
    if path is None:
        pytest.skip(f"{program} is not installed (on Debian: apt-get install lmdb-utils db-util)")
    return path


SOLID = {(b"%03d-" % number) + value[:300]: value for number, value in enumerate(AWKWARD)}


@pytest.mark.parametrize("printable", [False, True])
def test_mdb_load_takes_what_is_written_and_mdb_dump_gives_it_back(tmp_path, printable):
    load, dump = need("mdb_load"), need("mdb_dump")
    target = tmp_path / "lmdb"
    target.mkdir()
    text = written("mdb", [(None, SOLID.items()), ("cows & co", SOLID.items())], printable=printable, map_size=64 << 20)
    (tmp_path / "text").write_bytes(text)
    done = subprocess.run([load, "-f", str(tmp_path / "text"), str(target)], capture_output=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    named = subprocess.run([dump, "-a", str(target)], capture_output=True, check=True).stdout
    assert {key: value for _, key, value in without_names(read("mdb", named))} == SOLID
    assert {name for name, _, _ in read("mdb", named)} == {"cows & co"}
    main = subprocess.run([dump, str(target)], capture_output=True, check=True).stdout
    found = {key: value for _, key, value in read("mdb", main)}
    del found[b"cows & co"]  # LMDB keeps its named databases there
    assert found == SOLID


def test_what_mdb_dump_prints_is_read(tmp_path):
    lmdb = pytest.importorskip("lmdb", reason="the Python package lmdb is not installed")
    dump = need("mdb_dump")
    # No backslashes: this form of older versions does not tell them from escapes.
    pairs = {key: value for key, value in SOLID.items() if b"\\" not in key + value}
    with lmdb.open(str(tmp_path / "env"), map_size=64 << 20) as env, env.begin(write=True) as txn:
        for key, value in pairs.items():
            txn.put(key, value)
    for options in ([], ["-p"]):
        text = subprocess.run([dump, *options, str(tmp_path / "env")], capture_output=True, check=True).stdout
        assert {key: value for _, key, value in read("mdb", text)} == pairs


@pytest.mark.parametrize("printable", [False, True])
def test_berkeley_db_takes_what_is_written_and_gives_it_back(tmp_path, printable):
    load = shutil.which("db_load") or need("db5.3_load")
    dump = shutil.which("db_dump") or need("db5.3_dump")
    (tmp_path / "text").write_bytes(written("bdb", [(None, SOLID.items())], printable=printable))
    base = str(tmp_path / "base.db")
    done = subprocess.run([load, "-f", str(tmp_path / "text"), base], capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    for options in ([], ["-p"]):
        text = subprocess.run([dump, *options, base], capture_output=True, check=True).stdout
        assert {key: value for _, key, value in read("mdb", text)} == SOLID


def test_a_cell_that_csv_would_lose_is_written_as_base64():
    assert csvtext.csv_cell(b"a\rb") == "base64:YQ1i"
    assert csvtext.csv_cell(b"base64:") == "base64:YmFzZTY0Og=="
    assert csvtext.csv_cell("ü\t\n,".encode()) == "ü\t\n,"


@pytest.mark.parametrize("form", ["jsonl", "csv", "mdb"])
@given(data=st.data())
def test_no_input_does_more_than_be_refused(form, data):
    text = bytearray(written(form, [(None, [(b"a", b"1"), (b"\xff", b"\n")]), ("t", [(b"b", b"\\")])], printable=True))
    for _ in range(data.draw(st.integers(0, 4))):
        at = data.draw(st.integers(0, len(text)))
        text[at : at + data.draw(st.integers(0, 3))] = data.draw(
            st.one_of(st.binary(max_size=3), st.sampled_from([b"\n", b'"', b"\\", b"{", b","]))
        )
    told = []
    found = read(form, bytes(text), told.append)
    for tree, key, value in found:
        assert tree is None or isinstance(tree, str)
        assert isinstance(value, bytes)
        assert key is None or isinstance(key, bytes)
    lines = text.count(b"\n") + 1
    assert all(1 <= bad.start <= bad.line + 1 <= lines + 1 for bad in told)
    try:
        strict = read(form, bytes(text))
    except BadInputError as bad:
        assert str(bad) == str(told[0])
    else:
        assert strict == found
        assert told == []
