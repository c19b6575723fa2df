"""The page that `cowdb report` writes: what is in it, and what a browser makes of it."""

from __future__ import annotations

import base64
import html.parser
import json
import os
import re
import shutil
import struct
import subprocess
import sys
from array import array
from pathlib import Path

import pytest
from commands import cow, cow_json, pages_of, sample, spoil
from handmade import Handmade, simple

import cowdb
from cowdb import format as fmt
from cowdb.cli import report, reportfacts, reporthtml, reporttree
from cowdb.cli.reportholders import MOST, Holders
from cowdb.cli.reporthtml import BEGINNING
from cowdb.inspection import FreeRun

ROOT = Path(__file__).parents[1]
EVIL = b"</script><script>document.title='owned'</script><img src=x onerror=alert(1)>"
SECRET = b"top-secret"


def facts_of(page):
    """The JSON in a report, found by a real parser of HTML."""

    class Finder(html.parser.HTMLParser):
        inside = False
        text = ""

        def handle_starttag(self, tag, attrs):
            self.inside = tag == "script" and ("id", "data") in attrs

        def handle_data(self, data):
            self.text += data if self.inside else ""

        def handle_endtag(self, tag):
            self.inside = False

    finder = Finder()
    finder.feed(page.read_text("ascii"))
    return json.loads(finder.text)


def column(facts, name):
    raw = base64.b64decode(facts["columns"][name])
    if name == "birth":
        return [int(value) for (value,) in struct.iter_unpack("<d", raw)]
    return list(array({"parent": "I", "cells": "H", "mix": "H"}.get(name, "B"), raw))


def reported(path, page, *options, code=0):
    """The facts of the report of a database."""
    result = cow("report", path, page, "--force", *options)
    assert result.code == code, result
    assert "Traceback" not in result.err
    return facts_of(page)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "a.cowdb"
    return path, sample(path)


@pytest.fixture(scope="module")
def evil(tmp_path_factory):
    """A database whose keys, tree names and file name would like to be markup."""
    path = tmp_path_factory.mktemp("evil") / "a<b>&amp;.cowdb"
    with cowdb.open(path, page_size=4096) as db, db.write() as txn:
        txn.update({EVIL + b"%05d" % i: b"v" * 90 for i in range(300)})
        txn.tree(EVIL.decode() + SECRET.decode(), create=True).update({SECRET + b"%05d" % i: b"v" for i in range(3000)})
    return path


# ---------------------------------------------------------------- what is in it


def test_the_map_says_of_each_page_what_pages_says(made, tmp_path):
    path, _ = made
    records = cow_json("pages", path)
    facts = reported(path, tmp_path / "a.html")
    assert facts["group"] == 1
    assert facts["pages"] == len(records)
    names = [tree["name"] for tree in facts["trees"]]
    assert [facts["kinds"][kind] for kind in column(facts, "kind")] == [record["kind"] for record in records]
    for record, owner in zip(records, column(facts, "tree"), strict=True):
        if record["kind"] in {"branch", "leaf", "overflow"}:
            assert names[owner] == record["tree"]
        else:
            assert owner == 255
    assert column(facts, "birth") == [record["birth"] or 0 for record in records]
    assert column(facts, "parent") == [record["parent"] or 0 for record in records]
    assert column(facts, "cells") == [record["cells"] or 0 for record in records]
    for record, fill in zip(records, column(facts, "fill"), strict=True):
        if record["fill"] is not None:
            assert fill == round(200 * record["fill"])
        else:
            assert (fill != 255) == (record["kind"] == "overflow")  # each page of a run has the run's
    assert facts["sums"] == [sum(record["kind"] == kind for record in records) for kind in facts["kinds"]]
    assert (facts["damaged"], facts["damage"], facts["problems"]) == (0, [], [])


def test_sums_and_histograms_are_those_of_the_entries(made, tmp_path):
    path, trees = made
    facts = reported(path, tmp_path / "a.html")
    rows = {row["tree"]: row for row in cow_json("stat", path)}
    for tree in facts["trees"]:
        row = rows[tree["name"]]
        assert (tree["branches"], tree["leaves"]) == (row["branch_pages"], row["leaf_pages"])
        assert (tree["overflow"], tree["entries"]) == (row["overflow_pages"], row["entries"])
        assert (sum(tree["leaf_fill"]), sum(tree["branch_fill"])) == (tree["leaves"], tree["branches"])
        assert tree["leaf_fill"][0::2] == [
            n - m for n, m in zip(row["leaves_by_fill"], tree["leaf_fill"][1::2], strict=True)
        ]
    for name, content in trees.items():
        tree = next(tree for tree in facts["trees"] if tree["name"] == (name or "(main)"))
        keys, values = map(len, content), [len(value) for value in content.values()]
        lengths = list(keys)
        assert dict(tree["keys"]) == {length: lengths.count(length) for length in set(lengths)}
        bits = [value.bit_length() for value in values]
        assert dict(tree["values"]) == {bit: bits.count(bit) for bit in set(bits)}
        assert (tree["value_bytes"], tree["longest_value"]) == (sum(values), max(values, default=0))


def test_the_trees_lead_from_the_root_to_every_leaf_in_order(made, tmp_path):
    path, _ = made
    facts = reported(path, tmp_path / "a.html")
    nodes = facts["nodes"]
    for tree in facts["trees"]:
        if tree["root"] is None:
            assert tree["depth"] == 0
            continue
        stack, leaves = [tree["root"]], []
        while stack:
            node = stack.pop()
            first, kids = nodes["first"][node], nodes["children"][node]
            if nodes["level"][node]:
                assert kids == nodes["cells"][node]
                assert sum(nodes["entries"][first : first + kids]) == nodes["entries"][node]
                stack.extend(reversed(range(first, first + kids)))
            else:
                leaves.append(node)
        assert len(leaves) == tree["leaves"]
        starts = [nodes["from"][node] for node in leaves]
        assert starts[0] is None
        assert None not in starts[1:]
        if not tree["system"]:
            assert starts[1:] == sorted(starts[1:])


def test_a_large_file_has_several_pages_a_square_and_says_what_they_are(made, tmp_path, monkeypatch):
    path, _ = made
    whole = reported(path, tmp_path / "a.html")
    monkeypatch.setattr(reportfacts.squares, "__defaults__", (100,))
    monkeypatch.setattr(reporttree.Nodes.__init__, "__defaults__", (20,))
    facts = reported(path, tmp_path / "b.html")
    group = facts["group"]
    assert group == -(-whole["pages"] // 100)
    assert (facts["pages"], facts["sums"]) == (whole["pages"], whole["sums"])
    mix = column(facts, "mix")
    kinds = column(whole, "kind")
    for at, kind in enumerate(column(facts, "kind")):
        there = kinds[at * group : (at + 1) * group]
        assert mix[6 * at : 6 * at + 6] == [there.count(code) for code in range(6)]
        assert there.count(kind) == max(there.count(code) for code in range(6))
    assert len(facts["nodes"]["page"]) == 20
    assert max(facts["nodes"]["level"]) == max(whole["nodes"]["level"])


def test_many_trees_are_summed_up(made, tmp_path, monkeypatch):
    path, _ = made
    monkeypatch.setattr(reportfacts, "TREES", 4)
    facts = reported(path, tmp_path / "a.html")
    assert [tree["name"] for tree in facts["trees"]] == [
        "(main)",
        "blobs",
        "the catalog",
        "the free tree",
        "2 smaller trees",
    ]
    assert facts["trees"][-1]["leaves"] == len(pages_of(path, "names", "leaf"))
    assert max(owner for owner in column(facts, "tree") if owner != 255) == 4


def test_free_pages_are_counted_by_who_holds_them_back(tmp_path):
    path = tmp_path / "a.cowdb"
    sample(path, 1000)
    script = """
import sys, cowdb
with cowdb.open(sys.argv[1], create=False) as db, db.read() as snap:
    with db.write() as txn:
        for i in range(400, 600):
            txn[b"key:%06d" % i] = b"new"
    with db.write() as txn:
        txn[b"a"] = b"b"
    print("ready", snap.id, flush=True)
    sys.stdin.read()
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    child = subprocess.Popen(
        [sys.executable, "-c", script, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    )
    with child:
        transaction = int(child.stdout.readline().split()[1])
        facts = reported(path, tmp_path / "a.html")
        runs = cow_json("free", path)
        child.stdin.close()
    held = [run for run in runs if run["held_by"] and f"process {child.pid}" in run["held_by"]]
    assert held
    index = next(i for i, holder in enumerate(facts["holders"]) if str(child.pid) in holder["label"])
    assert facts["holders"][index]["label"].startswith(f"transaction {transaction}, read by process {child.pid}")
    assert facts["holders"][index]["pages"] == sum(run["length"] for run in held)
    assert facts["holders"][index]["runs"] == len(held)
    marked = {page for page, holder in enumerate(column(facts, "held")) if holder == index}
    assert marked == {page for run in held for page in range(run["start"], run["start"] + run["length"])}
    assert sum(holder["pages"] for holder in facts["holders"]) == sum(run["length"] for run in runs)


@pytest.mark.parametrize("dead", [0, 5000, 65535])
def test_a_page_that_claims_more_dead_bytes_than_it_has_is_empty_on_the_map(tmp_path, dead):
    """Found by fuzz/corrupt: a forged header counted more dead bytes than the page has. Its fill became a number below
    zero, which fits no byte of the map, and the report ended in a traceback."""
    file = simple([(b"%03d" % number, bytes(50)) for number in range(60)])
    leaf = fmt.FIRST_DATA_PAGE
    file.patch(leaf, fmt.PAGE_HEADER.offset("dead"), dead.to_bytes(2, "little"))
    path = tmp_path / "forged.cowdb"
    path.write_bytes(bytes(file.data))
    result = cow("report", path, tmp_path / "forged.html")
    assert "Traceback" not in result.err
    facts = facts_of(tmp_path / "forged.html")
    assert 0 <= column(facts, "fill")[leaf] <= 200
    assert (column(facts, "fill")[leaf] == 0) == (dead > 0)


def test_holders_beyond_those_told_apart_are_one():
    live = Holders({transaction: [1, 2] for transaction in range(10, 10 + MOST + 5)}, 10)
    assert live.add(FreeRun(2, 3, 0, 5, carried=False)) == 0
    assert live.add(FreeRun(5, 1, 5, 11, carried=False)) == 1
    assert live.add(FreeRun(6, 4, 10 + MOST + 4, 10 + MOST + 5, carried=False)) == MOST
    facts = live.facts()
    assert [facts[0]["pages"], facts[1]["pages"], facts[MOST]["pages"]] == [3, 1, 4]
    assert facts[1]["label"] == "transaction 10, read by processes 1, 2 and the durable state"
    assert facts[-1]["label"] == f"transaction {10 + MOST - 1} and 5 newer snapshots"
    many = Holders({1: list(range(30))}, None).facts()
    assert many[1]["label"].endswith("19 and 10 more")


def test_an_empty_database(tmp_path):
    path = tmp_path / "a.cowdb"
    cowdb.open(path).close()
    facts = reported(path, tmp_path / "a.html")
    assert facts["pages"] >= 2
    assert [tree["root"] for tree in facts["trees"]] == [None] * 3


# ---------------------------------------------------------------- nothing gets out of its place


def test_no_key_and_no_name_is_markup(evil, tmp_path):
    page = tmp_path / "a.html"
    facts = reported(evil, page)
    text = page.read_text("ascii")
    assert facts["name"] == evil.name
    assert EVIL.decode() in facts["trees"][1]["name"]
    assert any(EVIL[:20].decode() in (start or "") for start in facts["nodes"]["from"])
    assert "<img" not in text
    assert text.count("<script") == text.count("</script>") == 2
    text = re.sub(r'(?s)(id="data">).*?(</script>)', r"\1\2", text)
    assert re.search(r"(?:src|href)\s*=|url\(|@import|https?://(?!www\.w3\.org/2000/svg)", text) is None
    assert not re.search(
        r"\b(?:innerHTML|outerHTML|insertAdjacentHTML|eval|document\.write|fetch|XMLHttpRequest)\b", text
    )
    assert text.startswith(BEGINNING.decode())


def test_redacted_has_no_key_and_no_name(evil, tmp_path):
    page = tmp_path / "a.html"
    facts = reported(evil, page, "--show", "redacted")
    text = page.read_text("ascii")
    for piece in (SECRET, EVIL[:14], b"owned"):
        assert piece.decode() not in json.dumps(facts)
        assert piece.hex() not in text
    assert SECRET.decode() not in text
    assert facts["trees"][1]["name"] == f"tree 1 <{len(EVIL + SECRET)} bytes>"
    assert re.fullmatch(r"<\d+ bytes>", next(start for start in facts["nodes"]["from"] if start))
    assert str(evil.parent) not in text


def test_redacted_has_no_key_in_the_reasons_of_damage_either(tmp_path):
    path = tmp_path / "a.cowdb"
    file = simple([(b"secret'\"%05d" % i, b"value" * 20) for i in range(300)])
    leaf = file.pages(3)[0] if file.pages(3) else file.pages(2)[0]
    at, _, cell, length = file.slot(leaf, 5)
    file.edit(leaf, cell + 2 + length - 1, "B", lambda byte: 0)
    file.edit(
        leaf,
        at + 4,
        "I",
        lambda head: int.from_bytes(file.page(leaf)[cell + 2 : cell + 2 + length][:4].ljust(4, b"\0"), "big"),
    )
    path.write_bytes(file.data)
    plain = reported(path, tmp_path / "a.html", code=1)
    assert "secret" in plain["damage"][0][3]
    page = tmp_path / "b.html"
    redacted = reported(path, page, "--show", "redacted", code=1)
    assert "<redacted>" in redacted["damage"][0][3]
    assert "secret" not in page.read_text("ascii")


def test_hex(evil, tmp_path):
    facts = reported(evil, tmp_path / "a.html", "--show", "hex")
    assert any((start or "").startswith(EVIL[:10].hex()) for start in facts["nodes"]["from"])


def test_all_parts_of_the_page_are_installed():
    import tomllib

    globs = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["cowdb"]
    installed = {path for glob in globs for path in (ROOT / "cowdb").glob(glob)}
    parts = {path for path in (ROOT / "cowdb" / "cli").glob("report*") if path.suffix not in {".py", ".pyc"}}
    assert parts <= installed
    assert {path.name for path in parts} >= {"report.html", "report.css", *reporthtml._SCRIPTS}


# ---------------------------------------------------------------- damage


@pytest.mark.parametrize("kind", ["leaf", "branch", "overflow"])
def test_damaged_pages_are_listed(made, tmp_path, kind):
    path = tmp_path / "b.cowdb"
    path.write_bytes(made[0].read_bytes())
    number = pages_of(path, "blobs" if kind == "overflow" else "(main)", kind)[0]["page"]
    spoil(path, number)
    facts = reported(path, tmp_path / "b.html", code=1)
    assert facts["damaged"] == 1
    page, what, owner, reason = facts["damage"][0]
    assert (page, what) == (number, kind)
    assert facts["trees"][owner]["name"] == ("blobs" if kind == "overflow" else "(main)")
    assert "checksum" in reason
    assert [at for at, code in enumerate(column(facts, "kind")) if code & 128] == [number]
    if kind == "branch":
        (problem,) = facts["problems"]
        assert "unreachable: neither in use nor free" in problem
        assert "cowdb recover may find their entries again" in problem
        assert "lost" not in facts["kinds"]
    if kind != "overflow":
        nodes = facts["nodes"]
        assert [p for p, bad in zip(nodes["page"], nodes["damaged"], strict=True) if bad] == [number]


def test_a_meta_page_that_cannot_be_read_is_told(made, tmp_path):
    path = tmp_path / "b.cowdb"
    path.write_bytes(made[0].read_bytes())
    spoil(path, 0)
    facts = reported(path, tmp_path / "b.html", code=cow("check", path).code)
    assert "checksum" in facts["slots"][0]
    assert facts["slots"][1] is None
    assert "cannot be read" in dict(facts["facts"])["Meta page 0"]
    spoil(path, 1)
    result = cow("report", path, tmp_path / "c.html")
    assert result.code == cow("pages", path).code != 0
    assert "both meta pages are destroyed" in result.err
    assert not (tmp_path / "c.html").exists()


def test_a_damaged_catalog_and_a_damaged_free_list_are_told(made, tmp_path):
    path = tmp_path / "b.cowdb"
    path.write_bytes(made[0].read_bytes())
    spoil(path, *[record["page"] for record in pages_of(path, "the catalog", "leaf")])
    facts = reported(path, tmp_path / "b.html", code=1)
    assert any("named trees may be missing" in problem for problem in facts["problems"])
    assert [tree["name"] for tree in facts["trees"]] == ["(main)", "the catalog", "the free tree"]


@pytest.mark.parametrize("where", ["itself", "outside", "twice"])
def test_references_that_lead_astray_end(tmp_path, where):
    path = tmp_path / "a.cowdb"
    file = Handmade(4096)
    file.commit(0)
    file.commit(1, durable=1, main=file.tree([(b"%05d" % i, b"v" * 50) for i in range(4000)], 1, fanout=20))
    top = max(range(2, file.page_count), key=lambda number: file.page(number)[5])
    (_, _, first, none), (_, _, cell, length) = file.slot(top, 0), file.slot(top, 1)
    changed = {
        "itself": top.to_bytes(6, "little"),
        "outside": (1 << 40).to_bytes(6, "little"),
        "twice": file.page(top)[first + none : first + none + 22],
    }
    file.patch(top, cell + length, changed[where])
    path.write_bytes(file.data)
    facts = reported(path, tmp_path / "a.html", code=1)
    assert facts["transaction"] == 1
    assert facts["damaged"] or facts["problems"]
    assert sum(facts["nodes"]["damaged"]) >= 1


@pytest.mark.parametrize("seed", range(12))
def test_no_damage_whatever_gives_a_traceback(made, tmp_path, seed):
    import random

    rng = random.Random(seed)
    data = bytearray(made[0].read_bytes())
    for _ in range(rng.choice((1, 30, 1000))):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    if seed % 3 == 0:
        del data[rng.randrange(len(data)) :]
    path = tmp_path / "b.cowdb"
    path.write_bytes(data)
    result = cow("report", path, tmp_path / "b.html", "--format", "json")
    assert result.code in {0, 1, 3}, result
    assert "Traceback" not in result.err
    assert (tmp_path / "b.html").exists() == bool(result.out)
    if result.out:
        assert facts_of(tmp_path / "b.html")["damaged"] == result.json["damaged_pages"]


# ---------------------------------------------------------------- the file that it writes


def test_what_is_there_stays(made, tmp_path):
    path, _ = made
    page = tmp_path / "a.html"
    assert cow("report", path, page).code == 0
    assert page.stat().st_mode & 0o077 == 0
    before = page.read_bytes()
    result = cow("report", path, page)
    assert result.code == 2
    assert "--force" in result.err
    assert page.read_bytes() == before
    assert cow("report", path, page, "--force").code == 0
    other = tmp_path / "notes.txt"
    other.write_text("mine")
    for force in ([], ["--force"]):
        result = cow("report", path, other, *force)
        assert (result.code, other.read_text()) == (2, "mine")
        assert "does not begin like a report" in result.err
        assert "--force replaces it" not in result.err
    whole = path.read_bytes()
    assert cow("report", path, path, "--force").code == 2
    assert path.read_bytes() == whole
    assert cow("report", path, tmp_path, "--force").code == 2
    assert cow("report", path, f"{tmp_path}/").code == 2
    assert cow("report", path, tmp_path / "no" / "a.html").code == 5
    assert cow("report", tmp_path / "none.cowdb", tmp_path / "x.html").code == 5
    assert sorted(os.listdir(tmp_path)) == ["a.html", "notes.txt"]


def test_a_page_that_comes_meanwhile_stays_and_nothing_is_left(made, tmp_path, monkeypatch):
    page = tmp_path / "a.html"

    def slow(facts):
        page.write_bytes(b"somebody else's")
        return BEGINNING

    monkeypatch.setattr(report, "html", slow)
    assert cow("report", made[0], page).code == 2
    assert page.read_bytes() == b"somebody else's"

    def full(descriptor):
        raise OSError(28, "No space left on device")

    page.unlink()
    monkeypatch.setattr(report, "html", lambda facts: BEGINNING)
    monkeypatch.setattr(os, "fsync", full)
    assert cow("report", made[0], page).code == 5
    assert os.listdir(tmp_path) == []


def test_it_says_what_it_did(made, tmp_path):
    result = cow("report", made[0], tmp_path / "a.html", "--format", "json")
    assert result.json["size"] == (tmp_path / "a.html").stat().st_size
    assert result.json["damaged_pages"] == 0
    assert result.json["report"] == str(tmp_path / "a.html")
    assert "a.html" in cow("report", made[0], tmp_path / "a.html", "--force").out


def _without_its_time(text):
    """A report without the second in which it was made: the next one may be of the next second."""
    told, count = re.subn(r'"made":"[^"]+"', "", text)
    assert count == 1
    return told


def test_a_report_to_a_dash_goes_to_the_output(made, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = tmp_path / "a.html"
    assert cow("report", made[0], page).code == 0
    result = cow("report", made[0], "-")
    assert result.code == 0
    assert result.out.startswith(BEGINNING.decode())
    assert result.out.rstrip().endswith("</html>")
    assert os.listdir(tmp_path) == ["a.html"]
    assert "in the standard output" in result.err
    again = cow("report", made[0], "-", "--format", "json", "--quiet")
    assert (again.code, again.err) == (0, "")
    assert _without_its_time(again.out) == _without_its_time(result.out)
    path = tmp_path / "b.cowdb"
    path.write_bytes(made[0].read_bytes())
    spoil(path, pages_of(path, "names", "leaf")[0]["page"])
    result = cow("report", path, "-")
    assert (result.code, result.out.startswith(BEGINNING.decode())) == (1, True)
    assert "1 damaged page: the report lists it" in result.err


def test_a_report_does_not_fill_a_terminal(made, monkeypatch):
    monkeypatch.setattr("cowdb.cli.output._is_terminal", lambda stream: True)
    result = cow("report", made[0], "-")
    assert (result.code, result.out) == (2, "")
    assert "name a file" in result.err


# ---------------------------------------------------------------- in a browser


BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
needs_browser = pytest.mark.skipif(BROWSER is None, reason="no chromium or chrome is installed")


def headless(directory, *options):
    """A run of the browser without a window; what it said."""
    fixed = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-dev-shm-usage"]
    profile = f"--user-data-dir={directory / 'profile'}"
    return subprocess.run([BROWSER, *fixed, profile, *map(str, options)], capture_output=True, timeout=120, check=True)


@needs_browser
def test_a_browser_builds_the_page_without_an_error_and_takes_a_picture(evil, tmp_path):
    page = tmp_path / "a.html"
    facts = reported(evil, page)
    logging = ("--enable-logging=stderr", "--v=0")
    done = headless(tmp_path, *logging, "--virtual-time-budget=3000", "--dump-dom", page.as_uri())
    assert b"CONSOLE" not in done.stderr, done.stderr
    dom = done.stdout.decode()
    rendered = dom.partition('id="data"')[0]
    assert "<title>a&lt;b&gt;&amp;amp;.cowdb - cowdb report</title>" in rendered
    assert ">Sound<" in rendered
    assert "&lt;img src=x onerror=alert(1)&gt;" in rendered
    assert "<img" not in dom
    assert rendered.count('class="cell"') > facts["trees"][0]["leaves"]
    picture = tmp_path / "a.png"
    headless(
        tmp_path, f"--screenshot={picture}", "--window-size=1200,2400", "--virtual-time-budget=3000", page.as_uri()
    )
    assert picture.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">II", picture.read_bytes()[16:24]) == (1200, 2400)


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api", reason="the Python package playwright is not installed")
    with sync_api.sync_playwright() as player:
        found = player.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture
def opened(browser, tmp_path):
    """Open a report in a page; at the end there were no errors, and nothing but the file was asked for."""
    complaints, requests, contexts = [], [], []

    def show(page, scheme="light", **options):
        context = browser.new_context(color_scheme=scheme, viewport={"width": 1200, "height": 900}, **options)
        contexts.append(context)
        tab = context.new_page()
        tab.on("console", lambda message: complaints.append(message.text) if READBACK not in message.text else None)
        tab.on("pageerror", lambda error: complaints.append(str(error)))
        tab.on("dialog", lambda dialog: complaints.append(dialog.message))
        tab.on("request", lambda request: requests.append(request.url))
        tab.goto(page.as_uri())
        return tab

    yield show
    assert complaints == []
    assert all(url.startswith("file:") for url in requests)
    assert len(requests) == len(contexts)
    for context in contexts:
        context.close()


READBACK = "Canvas2D: Multiple readback operations"  # the tests' own looks at pixels
PIXEL = """at => {
  const ratio = window.devicePixelRatio, canvas = document.getElementById('pages');
  const x = (at % across) * step + 1, y = Math.floor(at / across) * step + 1;
  const rgb = canvas.getContext('2d').getImageData(x * ratio, y * ratio, 1, 1).data;
  return '#' + [...rgb].slice(0, 3).map(part => part.toString(16).padStart(2, '0')).join('');
}"""


@needs_browser
def test_every_square_has_the_colour_of_its_kind_in_light_and_in_dark(made, tmp_path, opened):
    page = tmp_path / "a.html"
    reported(made[0], page)
    records = cow_json("pages", made[0])
    for scheme in ("light", "dark"):
        tab = opened(page, scheme)
        assert tab.evaluate("document.documentElement.dataset.theme") == scheme
        palette = tab.evaluate("colors.kinds")
        names = ["unreachable", "meta", "branch", "leaf", "overflow", "free"]
        for record in records[::7]:
            if record["kind"] != "free":
                assert tab.evaluate(PIXEL, record["page"]) == palette[names.index(record["kind"])], record
        seen = {"kind": tab.evaluate("document.getElementById('pages').toDataURL()")}
        for mode in ("tree", "fill", "age"):
            tab.click(f"#mode-{mode}")
            assert tab.get_attribute(f"#mode-{mode}", "aria-pressed") == "true"
            seen[mode] = tab.evaluate("document.getElementById('pages').toDataURL()")
        assert len(set(seen.values())) == 4
    assert tab.inner_text("#theme") == "Theme: as the system"
    for theme in ("light", "dark"):
        tab.click("#theme")
        assert tab.evaluate("document.documentElement.dataset.theme") == theme
        assert tab.inner_text("#theme") == f"Theme: {theme}"


@needs_browser
def test_pointing_and_keys_tell_what_a_page_is(made, tmp_path, opened):
    page = tmp_path / "a.html"
    reported(made[0], page)
    records = cow_json("pages", made[0])
    tab = opened(page)
    step = tab.evaluate("step")
    leaf = next(record for record in records if record["kind"] == "leaf" and record["tree"] == "names")
    across = tab.evaluate("across")
    tab.hover("#pages", position={"x": leaf["page"] % across * step + 2, "y": leaf["page"] // across * step + 2})
    tip = tab.inner_text("#tip")
    for piece in (f"Page {leaf['page']:,}", "leaf", "names", f"page {leaf['parent']:,}", str(leaf["cells"])):
        assert piece in tip
    tab.fill("#goto", str(leaf["page"]))
    tab.press("#goto", "Enter")
    assert f"Page {leaf['page']:,}" in tab.inner_text("#chosen")
    for number, at in (("999999", len(records) - 1), ("-5", 0), ("3", 3)):
        tab.fill("#goto", number)
        tab.press("#goto", "Enter")
        assert tab.input_value("#goto") == str(at)
        assert tab.inner_text("#chosen h3") == f"Page {at:,}"
        assert tab.inner_text("#goto-note") == (f"the last page is {at:,}" if number == "999999" else "")
    tab.evaluate("at => choose(at)", leaf["page"])
    tab.focus("#pages")
    for key, at in (
        ("ArrowRight", leaf["page"] + 1),
        ("ArrowLeft", leaf["page"]),
        ("End", len(records) - 1),
        ("Home", 0),
    ):
        tab.press("#pages", key)
        assert tab.inner_text("#chosen h3") == f"Page {at:,}"
    tab.evaluate("at => choose(at)", leaf["page"])
    tab.press("#pages", "Enter")
    assert f"page {leaf['page']:,}" in tab.inner_text("#way")
    assert tab.evaluate("document.getElementById('tree').selectedOptions[0].textContent").startswith("names")


@needs_browser
def test_one_thing_is_no_things(tmp_path, opened):
    path, page = tmp_path / "a.cowdb", tmp_path / "a.html"
    with cowdb.open(path) as db:
        db[b"k"] = b"v"
    reported(path, page)
    tab = opened(page)
    titles = (
        "Array.from(document.querySelectorAll('[title], title, option'), (at) => at.title || at.textContent).join()"
    )
    text = tab.inner_text("body") + tab.evaluate(titles)
    assert "1 entry" in text
    assert not re.search(
        r"\b1 (more )?(pages|entries|bytes|leaves|branches|transactions|children)\b|1 page [^;]*are", text
    )


@needs_browser
def test_the_tree_can_be_gone_through_to_a_leaf_and_back(made, tmp_path, opened):
    page = tmp_path / "a.html"
    reported(made[0], page)
    root = pages_of(made[0], "(main)", "branch")
    tab = opened(page)
    top = max(root, key=lambda record: record["level"])
    assert tab.inner_text("#way") == f"root page {top['page']:,}"
    for level in range(top["level"]):
        tab.click("#children tbody tr:nth-child(2) .link")
        assert len(tab.locator("#way > :not(span)").all()) == level + 2
    assert "leaf" in tab.inner_text("#children")
    tab.click("#children button:has-text('Show on the map')")
    assert "leaf" in tab.inner_text("#chosen")
    tab.click("#way .link >> nth=0")
    assert tab.inner_text("#way") == f"root page {top['page']:,}"
    tab.focus("#icicle button >> nth=0")
    tab.keyboard.press("ArrowDown")
    tab.keyboard.press("ArrowRight")
    assert tab.evaluate("document.activeElement.getAttribute('aria-label')").startswith("page ")
    tab.keyboard.press("Enter")
    assert len(tab.locator("#way > :not(span)").all()) == 2
    tab.select_option("#tree", label="empty (0 entries)")
    assert "is empty" in tab.inner_text("#children")


@needs_browser
def test_a_browser_shows_evil_words_as_words_in_every_part(evil, tmp_path, opened):
    page = tmp_path / "a.html"
    reported(evil, page)
    tab = opened(page)
    tab.click("#mode-tree")
    for option in tab.locator("#weigh option").all():
        tab.select_option("#weigh", value=option.get_attribute("value"))
    for index in range(2):
        tab.select_option("#tree", str(index))
        tab.hover("#icicle button >> nth=1")
    for at in range(0, tab.evaluate("squares"), 5):
        tab.evaluate("at => choose(at)", at)
    assert "owned" not in tab.title()
    assert tab.locator("img").count() == 0
    assert EVIL.decode() in tab.inner_text("#legend")


@needs_browser
def test_a_browser_shows_damage_and_several_pages_a_square(made, tmp_path, opened, monkeypatch):
    path = tmp_path / "b.cowdb"
    path.write_bytes(made[0].read_bytes())
    leaf = pages_of(path, "names", "leaf")[0]["page"]
    spoil(path, leaf)
    page = tmp_path / "a.html"
    reported(path, page, code=1)
    tab = opened(page)
    assert tab.inner_text("#verdict") == "1 damaged page"
    assert "checksum" in tab.inner_text("#damage-list")
    assert tab.evaluate(PIXEL, leaf) == tab.evaluate("colors.damaged")
    tab.click("#damage-list .link")
    assert f"Page {leaf:,}" in tab.inner_text("#chosen")
    assert "Damaged" in tab.inner_text("#chosen")
    tab.click("#legend button:has-text('damaged')")
    assert tab.evaluate("focus") == 255
    monkeypatch.setattr(reportfacts.squares, "__defaults__", (50,))
    facts = reported(path, page, code=1)
    tab = opened(page)
    at = leaf // facts["group"]
    assert f"a square is {facts['group']} neighbours" in tab.inner_text("#map-note")
    assert tab.evaluate(PIXEL, at) == tab.evaluate("colors.damaged")
    tab.evaluate("at => choose(at)", at)
    assert f"{leaf}: " in tab.inner_text("#chosen")
    for mode in ("tree", "fill", "age"):
        tab.click(f"#mode-{mode}")


@needs_browser
def test_the_policy_of_the_page_lets_no_other_script_run_and_nothing_load(made, tmp_path, browser):
    page = tmp_path / "a.html"
    reported(made[0], page)
    foreign = "<script>document.title = 'owned'</script><img src='b.png' onerror=\"document.title = 'owned'\">"
    page.write_text(page.read_text("ascii").replace("</body>", foreign + "</body>"), "ascii")
    (tmp_path / "b.png").write_bytes(b"")
    tab = browser.new_page()
    refused = []
    tab.on("console", lambda message: refused.append(message.text))
    tab.goto(page.as_uri())
    assert tab.title() == "a.cowdb - cowdb report"
    assert tab.inner_text("#verdict") == "Sound"
    assert sum("Content Security Policy" in text for text in refused) >= 2
    tab.close()
