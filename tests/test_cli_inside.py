"""What the commands say about pages is what the bytes say."""

from __future__ import annotations

import pytest
from commands import cow, cow_json, pages_of, sample, spoil

import cowdb
from cowdb import format as fmt
from cowdb import meta as metas

SIZE = 4096


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    path = tmp_path_factory.mktemp("inside") / "a.cowdb"
    return path, sample(path)


def test_pages_lists_each_page_once_and_who_refers_to_it(made):
    path, trees = made
    records = cow_json("pages", path)
    facts = cow_json("info", path)
    assert [record["page"] for record in records] == list(range(facts["page_count"]))
    assert [record["kind"] for record in records[:2]] == ["meta", "meta"]
    kinds = [record["kind"] for record in records]
    assert "unreachable" not in kinds
    assert kinds.count("free") == facts["free_pages"]
    rows = {row["tree"]: row for row in cow_json("trees", path)}
    for name in trees:
        mine = [record for record in records if record["tree"] == (name or "(main)")]
        for kind in ("branch", "leaf", "overflow"):
            assert sum(r["kind"] == kind for r in mine) == rows[name or "(main)"][f"{kind}_pages"]
        assert sum(r["cells"] for r in mine if r["kind"] == "leaf") == len(trees[name])
    by_number = {record["page"]: record for record in records}
    for record in records:
        parent = record["parent"]
        if not parent:
            continue
        assert by_number[parent]["tree"] == record["tree"]
        if record["kind"] == "overflow":
            assert by_number[parent]["kind"] == "leaf"
        else:
            assert by_number[parent]["level"] == record["level"] + 1


def test_pages_can_be_chosen(made):
    path, _ = made
    assert [r["page"] for r in cow_json("pages", path, "--start", "3", "--stop", "6")] == [3, 4, 5]
    assert cow("pages", path, "--start", "6", "--stop", "3").code == 2
    assert {r["kind"] for r in cow_json("pages", path, "--kind", "branch")} == {"branch"}
    assert {r["tree"] for r in cow_json("pages", path, "--tree", "names")} == {"names"}
    assert cow_json("pages", path, "--damaged") == []
    assert cow("pages", path).out.splitlines()[0].split()[:3] == ["page", "kind", "tree"]


@pytest.mark.parametrize("kind", ["leaf", "branch", "overflow"])
def test_pages_names_damage_of_each_kind(made, tmp_path, kind):
    copy = tmp_path / "b.cowdb"
    copy.write_bytes(made[0].read_bytes())
    tree = "blobs" if kind == "overflow" else "(main)"
    record = pages_of(copy, tree, kind)[1 if kind == "overflow" else 0]
    spoil(copy, record["page"])
    result = cow("pages", copy, "--damaged", "--format", "jsonl")
    assert result.code == 1
    found = result.jsonl
    assert len(found) == 1
    assert "checksum" in found[0]["damage"]
    assert found[0]["kind"] == kind


def test_pages_names_unreachable_pages_and_pages_that_are_used_and_free(made, tmp_path):
    copy = tmp_path / "b.cowdb"
    data = bytearray(made[0].read_bytes())
    leaf = pages_of(made[0], "names", "leaf")[0]["page"]
    meta = metas.decode(bytes(data[:SIZE]), 0)
    (start, length, birth, freed), *rest = meta.carried
    forged = meta._replace(carry=fmt.pack_runs([(leaf, 1, birth, freed), *rest]), durable=meta.transaction)
    for slot in (0, 1):
        data[slot * SIZE : (slot + 1) * SIZE] = metas.encode(forged, slot)
    copy.write_bytes(data)
    records = {record["page"]: record for record in cow_json("pages", copy, code=1)}
    assert {record["page"] for record in records.values() if record["kind"] == "unreachable"} == set(
        range(start, start + length)
    )
    for word in ("unreachable", "lost"):
        chosen = cow_json("pages", copy, "--kind", word, code=1)
        assert [record["page"] for record in chosen] == list(range(start, start + length))
    assert "free list" in records[leaf]["damage"]
    assert records[leaf]["kind"] == "leaf"
    found = cow_json("check", copy, code=1)["findings"]
    assert {finding["invariant"] for finding in found} == {"I5"}


def test_a_page_is_what_its_bytes_say(made):
    path, trees = made
    data = path.read_bytes()
    for record in [*pages_of(path, "names", "leaf")[:3], *pages_of(path, "(main)", "branch")[:1]]:
        number = record["page"]
        facts = cow_json("page", path, number, "--hex")
        raw = data[number * SIZE : (number + 1) * SIZE]
        assert bytes.fromhex(facts["hex"]) == raw
        assert facts["kind"] == record["kind"]
        assert facts["checksum_holds"] is True
        assert facts["header"]["birth"] == record["birth"]
        assert len(facts["slots"]) == record["cells"]
    keys = [
        slot["key"] for r in pages_of(path, "(main)", "leaf") for slot in cow_json("page", path, r["page"])["slots"]
    ]
    assert sorted(key.encode() for key in keys) == sorted(trees[None])
    text = cow("page", path, number).out
    assert "checksum" in text
    assert "holds" in text
    dump = cow("page", path, number, "--hex").out
    assert "0000  " in dump


def test_meta_pages_are_taken_apart(made):
    facts = cow_json("page", made[0], "0")
    assert facts["kind"] == "meta"
    assert facts["meta"]["trees"]["main"]["root"]["count"] == len(made[1][None])
    assert "main tree      root" in cow("page", made[0], "1").out


def test_a_damaged_page_is_shown_with_its_damage(made, tmp_path):
    copy = tmp_path / "b.cowdb"
    copy.write_bytes(made[0].read_bytes())
    record = pages_of(copy, "(main)", "leaf")[0]
    with copy.open("r+b") as file:
        file.seek(record["page"] * SIZE + fmt.HEADER_SIZE)
        file.write(b"\xff" * 400)
    facts = cow_json("page", copy, record["page"], code=1)
    assert facts["checksum_holds"] is False
    assert any("outside" in slot["payload"] for slot in facts["slots"])
    assert "DOES NOT HOLD" in cow("page", copy, record["page"]).out
    with copy.open("r+b") as file:
        file.seek(record["page"] * SIZE)
        file.write(bytes(SIZE))
    assert "zeros" in cow_json("page", copy, record["page"])["remark"]


def test_a_page_that_was_cut_off_is_damage_and_one_that_never_was_is_a_mistake(made, tmp_path):
    """The story: asked for a page behind the cut, the command said that there was no such page."""
    copy = tmp_path / "c.cowdb"
    data = made[0].read_bytes()
    pages = cow_json("info", made[0])["page_count"]
    copy.write_bytes(data[: (pages - 2) * SIZE + 100])
    for page, code, sentence in (
        (pages - 2, 1, "ends in the middle of page"),
        (pages - 1, 1, "is missing"),
        (pages, 2, "the file has pages 0 to"),
    ):
        done = cow("page", copy, page)
        assert done.code == code
        assert sentence in done.err


def test_overflow_runs_find_their_length(made):
    record = max(pages_of(made[0], "blobs", "overflow"), key=lambda r: r["page"])
    first = cow_json("page", made[0], pages_of(made[0], "blobs", "overflow")[0]["page"])
    assert first["kind"] == "overflow"
    assert first["pages"] >= 1
    inner = cow_json("page", made[0], record["page"])
    assert inner["kind"] in {None, "overflow"}


def test_path_says_why(made):
    path, trees = made
    order = sorted(trees[None])
    for key in (order[0], order[1234], order[-1]):
        facts = cow_json("path", path, key.decode())
        assert facts["found"]
        assert facts["rank"] == order.index(key)
        assert facts["value_size"] == len(trees[None][key])
        levels = [step["level"] for step in facts["steps"]]
        assert levels == list(range(len(levels)))[::-1]
        for step in facts["steps"][:-1]:
            assert (step["from"] or "") <= key.decode()
            assert step["to"] is None or key.decode() < step["to"]
    blob = cow_json("path", path, "blob19", "--tree", "blobs")
    assert blob["overflow"]["pages"] == fmt.overflow_pages(900 * 19, SIZE)
    missing = cow_json("path", path, "key:000011x", code=1)
    assert not missing["found"]
    assert missing["rank"] == sum(key < b"key:000011x" for key in order)
    last = missing["steps"][-1]
    assert last["before"].encode() < b"key:000011x" < last["at"].encode()
    assert "not found" in cow("path", path, "nothing").out
    assert cow("path", path, "61", "--key", "hex").code == 1
    assert cow("path", path, "6", "--key", "hex").code == 2
    assert "the tree is empty" in cow("path", path, "x", "--tree", "empty").out


def test_path_shows_the_empty_key(tmp_path):
    path = tmp_path / "a.cowdb"
    with cowdb.open(path) as db:
        db[b"m"] = b""
    assert cow("path", path, "").out.startswith("(the empty key) in the main tree")
    with cowdb.open(path) as db:
        db[b""] = b""
    for show in ("text", "hex"):
        found = cow("path", path, "", "--show", show)
        assert (found.code, found.out.startswith("(the empty key) in the main tree")) == (0, True)
        assert "it would stand between (the empty key) and" in cow("path", path, "a", "--show", show).out
    assert cow("path", path, "", "--show", "redacted").out.startswith("<0 bytes> in the main tree")
    assert cow_json("path", path, "")["key"] == ""


def test_path_goes_as_far_as_it_can(made, tmp_path):
    copy = tmp_path / "b.cowdb"
    copy.write_bytes(made[0].read_bytes())
    steps = cow_json("path", copy, "key:000555")["steps"]
    spoil(copy, steps[-1]["page"])
    facts = cow_json("path", copy, "key:000555", code=1)
    assert facts["steps"] == steps[:-1]
    assert str(steps[-1]["page"]) in facts["damage"]


def test_the_drawn_tree_is_the_tree(made):
    path, trees = made
    facts = cow_json("tree", path, "--depth", "48", "--width", "100000")
    seen = []

    def visit(node):
        children = node.get("children", [])
        if children:
            assert sum(child["entries"] for child in children) == node["entries"]
            assert node["left_out"] == 0
        for child in children:
            visit(child)
        if not children:
            seen.append(node["page"])

    visit(facts["root"])
    assert sorted(seen) == [record["page"] for record in pages_of(path, "(main)", "leaf")]
    assert facts["entries"] == len(trees[None])
    text = cow("tree", path, "--width", "2").out
    assert "more" in text
    assert len(text.splitlines()) < 10
    assert cow_json("tree", path, "--tree", "empty")["root"] is None
    assert "empty" in cow("tree", path, "--tree", "empty").out
    assert cow("tree", path, "--depth", "0").code == 2
    assert len(cow("tree", path, "--width", "1").out.splitlines()) == 4


def test_a_damaged_tree_is_drawn(made, tmp_path):
    copy = tmp_path / "b.cowdb"
    copy.write_bytes(made[0].read_bytes())
    spoil(copy, pages_of(copy, "(main)", "leaf")[0]["page"])
    result = cow("tree", copy, "--width", "1000")
    assert result.code == 1
    assert result.out.count("DAMAGED") == 1


def test_free_lists_what_the_engine_counts(made):
    path, _ = made
    runs = cow_json("free", path)
    facts = cow_json("info", path)
    assert sum(run["length"] for run in runs) == facts["free_pages"]
    sums = cow_json("free", path, "--summary")
    assert sums["pages"] == facts["free_pages"]
    assert sums["runs"] == len(runs)
    assert sums["held_pages"] == 0
    assert "free pages" in cow("free", path).out


def test_diff_shows_what_the_last_commit_did(tmp_path):
    path, live = tmp_path / "a.cowdb", tmp_path / "live.cowdb"
    sample(path)
    with cowdb.open(path) as db:
        for _ in range(2):
            with db.write() as txn:
                txn[b"key:000500"] = b"x" * 5000
        with db.write() as txn:
            txn[b"key:000500+"] = b"y"
            txn.tree("names")[b"name/7"] = b"z"
            txn.tree("fresh", create=True)[b"1"] = b"2"
            txn.drop("blobs")
        live.write_bytes(path.read_bytes())  # before the close, which makes both meta pages the same
    facts = cow_json("diff", live)
    rows = {row["tree"]: row for row in facts["trees"]}
    assert rows["(main)"]["change"] == 1
    assert rows["names"]["change"] == 0
    assert rows["(main)"]["written"] >= rows["(main)"]["let_go"] >= 2
    assert rows["fresh"]["remark"] == "new"
    assert rows["fresh"]["written"] == 1
    assert rows["blobs"]["remark"] == "dropped"
    assert rows["blobs"]["let_go"] > 40
    assert "empty" not in rows
    text = cow("diff", live).out
    assert "dropped" in text
    same = cow_json("diff", path)
    assert same["same"]
    assert "closed cleanly" in cow("diff", path).out


def test_diff_with_one_meta_page(made, tmp_path):
    copy = tmp_path / "b.cowdb"
    copy.write_bytes(made[0].read_bytes())
    spoil(copy, 1)
    facts = cow_json("diff", copy, code=1)
    assert "meta page 1 cannot be read" in facts["problem"]
    spoil(copy, 0)
    assert cow("diff", copy).code == 1


def test_the_state_of_a_slot_can_be_chosen(made, tmp_path):
    copy = tmp_path / "b.cowdb"
    copy.write_bytes(made[0].read_bytes())
    assert cow_json("pages", copy, "--slot", "0") == cow_json("pages", copy)
    spoil(copy, 1)
    assert cow("pages", copy, "--slot", "1").code == 1
    assert cow_json("pages", copy) == cow_json("pages", made[0])


def test_a_redacted_page_shows_nothing_of_a_key(tmp_path):
    path = tmp_path / "a.cowdb"
    with cowdb.open(path) as db:
        db[b"secret"] = b"v"
    leaf = next(record["page"] for record in cow_json("pages", path) if record["kind"] == "leaf")
    assert b"secr".hex() in cow("page", path, leaf).out
    for form in ("text", "json"):
        result = cow("page", path, leaf, "--show", "redacted", "--format", form)
        assert result.code == 0
        assert b"secr".hex() not in result.out
        assert "secr" not in result.out


def test_the_name_that_the_main_tree_has_in_tables_is_understood(made):
    path, _ = made
    assert cow("count", path, "--tree", "(main)").out == cow("count", path).out
    assert cow("pages", path, "--tree", "(main)").code == 0
    result = cow("pages", path, "--tree", "nope")
    assert (result.code, "there is no tree 'nope'" in result.err) == (1, True)


def test_a_key_in_hex_is_asked_for_in_one_way(made):
    path, _ = made
    assert cow("path", path, "--hex", b"key:000001".hex()).out == cow("path", path, "key:000001").out
