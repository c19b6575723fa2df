"""Checking, copying, recovering and operating: nothing is lost that is whole, and what is lost is said."""

from __future__ import annotations

import os
import random
import shlex
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from commands import contents, cow, cow_json, pages_of, sample, spoil
from handmade import Bytes, Handmade

import cowdb
from cowdb import format as fmt
from cowdb import meta as metas
from cowdb.check import MAX_FINDINGS, check
from cowdb.cli import freelist
from cowdb.cli.newfile import appearing
from cowdb.cli.output import NOT_A_DATABASE, USAGE, CommandError
from cowdb.inspection import State, slots
from cowdb.pagemap import PageMap

SIZE = 4096
ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    path = tmp_path_factory.mktemp("care") / "a.cowdb"
    return path, sample(path)


@pytest.fixture
def copy(made, tmp_path):
    target = tmp_path / "b.cowdb"
    shutil.copy(made[0], target)
    return target


def saved(path, new, *options, code=0):
    """What ``cowdb recover`` saved, and its account."""
    facts = cow_json("recover", path, new, *options, code=code)
    return contents(new), facts


# ---------------------------------------------------------------- check


def test_a_sound_file(made):
    facts = cow_json("check", made[0])
    assert facts["sound"]
    assert facts["findings"] == facts["unreachable_keys"] == facts["remarks"] == []
    assert "sound" in cow("check", made[0]).out
    assert cow("check", made[0], "--both").code == 0


def test_unreachable_keys_are_counted_and_not_called_lost(copy, tmp_path):
    leaves = pages_of(copy, "(main)", "leaf")[:2]
    overflow = pages_of(copy, "blobs", "overflow")[0]
    branch = pages_of(copy, "names", "branch")[0]
    spoil(copy, *(leaf["page"] for leaf in leaves), overflow["page"], branch["page"])
    facts = cow_json("check", copy, code=1)
    unreachable = {row["tree"]: row["unreachable_keys"] for row in facts["unreachable_keys"]}
    assert unreachable == {"(main)": leaves[0]["cells"] + leaves[1]["cells"], "blobs": 1, "names": 750}
    assert {finding["page"] for finding in facts["findings"] if finding["invariant"] == "I3"} == {
        *(leaf["page"] for leaf in leaves), overflow["page"], branch["page"],
    }  # fmt: skip
    text = cow("check", copy)
    assert text.code == 1
    assert "DAMAGED" in text.out
    assert "unreachable keys" in text.out
    assert "cowdb recover may find many of the unreachable keys again" in text.out
    assert "lost" not in text.out
    assert cow_json("recover", copy, tmp_path / "new", code=1)["lost"] < sum(unreachable.values())
    assert "more; --most and --format jsonl show them" in cow("check", copy, "--most", "1").out
    assert len(cow("check", copy, "--format", "jsonl").jsonl) == len(facts["findings"]) + 3


def test_both_meta_pages_are_checked(copy):
    spoil(copy, 1)
    facts = cow_json("check", copy, code=1)
    assert [finding["page"] for finding in facts["findings"]] == [1]
    spoil(copy, 0)
    result = cow("check", copy)
    assert result.code == 1
    assert "meta page" in result.out


def test_a_file_that_was_not_closed_is_checked_with_a_remark(tmp_path):
    path, live = tmp_path / "a.cowdb", tmp_path / "live.cowdb"
    sample(path, 600)
    with cowdb.open(path) as db:
        for i in range(3):
            with db.write() as txn:
                txn[b"%d" % i] = b""
        result = cow("check", path)
        assert result.code == 0
        live.write_bytes(path.read_bytes())
    order = sorted(slots(Bytes(live.read_bytes())), key=lambda slot: slot.meta.transaction)
    data = live.read_bytes()
    for slot in order:  # torn by the crash; the other one is the state then
        live.write_bytes(data)
        spoil(live, slot.number)
        facts = cow_json("check", live)
        assert "not closed cleanly" in facts["remarks"][0]
        assert f"meta page {slot.number} cannot be read" in facts["remarks"][1]
        assert cow("check", live, "--both").code == 1


def test_the_check_waits_for_the_writer(made):
    with cowdb.open(made[0]) as db:
        txn = db.write()
        child = subprocess.Popen(
            [sys.executable, "-m", "cowdb", "check", str(made[0]), "--timeout", "50"],
            env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE,
        )  # fmt: skip
        with pytest.raises(subprocess.TimeoutExpired):
            child.wait(timeout=1)
        txn.abort()
        out, _ = child.communicate(timeout=60)
    assert child.returncode == 0
    assert b"sound" in out


# ---------------------------------------------------------------- copy and compact


def test_copies_hold_the_same(made, tmp_path):
    path, trees = made
    whole, dense = tmp_path / "whole.cowdb", tmp_path / "dense.cowdb"
    facts = cow_json("copy", path, whole)
    assert contents(whole) == trees
    assert facts["transaction"] == cow_json("info", path)["transaction"]
    facts = cow_json("compact", path, dense)
    assert contents(dense) == trees
    assert facts["size_after"] <= facts["size_before"]
    assert facts["entries"] == sum(map(len, trees.values()))
    assert cow_json("info", dense)["database_id"] == cow_json("info", path)["database_id"]
    assert cow_json("info", dense)["page_size"] == SIZE
    assert cow_json("info", dense)["free_pages"] <= 3
    for row in cow_json("stat", dense):
        if row["leaf_pages"] > 3:
            assert row["leaf_fill"] > 0.85
    assert sorted(name.name for name in tmp_path.iterdir() if "lock" not in name.name) == ["dense.cowdb", "whole.cowdb"]


def test_a_file_that_somebody_else_makes_meanwhile_is_left_alone(tmp_path):
    target = tmp_path / "there"
    with pytest.raises(CommandError, match="somebody else") as caught, appearing(str(target)) as temporary:
        Path(temporary).write_bytes(b"ours")
        target.write_bytes(b"theirs")
    assert caught.value.code == 2
    assert [(found.name, found.read_bytes()) for found in tmp_path.iterdir()] == [("there", b"theirs")]


@pytest.mark.parametrize("command", ["copy", "compact", "recover"])
def test_the_new_file_is_named_in_the_answer(made, tmp_path, command):
    new = tmp_path / "new.cowdb"
    assert str(new) in cow(command, made[0], new).out


@pytest.mark.parametrize("command", ["copy", "compact", "recover"])
def test_nothing_is_overwritten(made, tmp_path, command):
    target = tmp_path / "there"
    target.write_bytes(b"precious")
    result = cow(command, made[0], target)
    assert result.code == 2
    assert "exists already" in result.err
    assert target.read_bytes() == b"precious"
    assert cow(command, made[0], tmp_path / "no" / "dir").code == 5
    assert [found.name for found in tmp_path.iterdir()] == ["there"]
    assert cow(command, made[0], tmp_path / "new").code == 0


@pytest.mark.parametrize("command", ["copy", "compact"])
def test_a_damaged_file_is_not_copied_in_silence(copy, tmp_path, command):
    spoil(copy, pages_of(copy, "names", "leaf")[2]["page"])
    target = tmp_path / "new"
    result = cow(command, copy, target)
    assert result.code == 1
    assert "recover" in result.err
    assert not target.exists()
    assert not list(tmp_path.glob("*.tmp*"))


def test_a_name_that_is_not_utf8_is_damage_that_compact_does_not_copy(tmp_path):
    """Found by fuzz/corrupt: a byte of a name in a forged catalog was changed, and compact ended in a traceback."""
    file = Handmade(page_size=SIZE)
    name = b"na\xa4me".decode(errors="surrogateescape")
    file.commit(1, main=file.tree([(b"a", b"1")], 1), named={name: file.tree([(b"x", b"y")], 1)})
    path, target = tmp_path / "odd.cowdb", tmp_path / "new"
    path.write_bytes(bytes(file.data))
    result = cow("compact", path, target)
    assert result.code == 1
    assert "not UTF-8" in result.err
    assert "recover" in result.err
    assert not target.exists()
    trees, _ = saved(path, target)
    assert [entries for tree, entries in trees.items() if tree is not None] == [{b"x": b"y"}]


def test_a_copy_of_a_file_in_use_is_one_moment_of_it(tmp_path):
    path = tmp_path / "a.cowdb"
    sample(path, 600)
    stop = threading.Event()

    def write():
        with cowdb.open(path) as db:
            count = 0
            while not stop.is_set():
                count += 1
                with db.write() as txn:
                    txn[b"one"] = txn[b"two"] = b"%d" % count

    thread = threading.Thread(target=write)
    thread.start()
    try:
        for i in range(4):
            assert cow("copy", path, tmp_path / f"copy{i}").code == 0
            assert cow("compact", path, tmp_path / f"dense{i}").code == 0
    finally:
        stop.set()
        thread.join()
    for made in [*tmp_path.glob("copy?"), *tmp_path.glob("dense?")]:
        main = contents(made)[None]
        assert main.get(b"one") == main.get(b"two")


# ---------------------------------------------------------------- recover


def test_a_sound_file_is_saved_whole(made, tmp_path):
    found, facts = saved(made[0], tmp_path / "new")
    assert found == made[1]
    assert facts["lost"] == 0
    assert "nothing is lost" in cow("recover", made[0], tmp_path / "new2").out


def test_leaves_that_are_damaged_lose_their_entries_and_no_others(made, copy, tmp_path):
    leaves = pages_of(copy, "(main)", "leaf")
    lost_keys = set()
    for leaf in leaves[1:4]:
        lost_keys |= {slot["key"].encode() for slot in cow_json("page", copy, leaf["page"])["slots"]}
    spoil(copy, *(leaf["page"] for leaf in leaves[1:4]))
    found, facts = saved(copy, tmp_path / "new", code=1)
    assert found[None] == {key: value for key, value in made[1][None].items() if key not in lost_keys}
    assert {name: found[name] for name in ("names", "blobs", "empty")} == {
        name: made[1][name] for name in ("names", "blobs", "empty")
    }
    assert facts["lost"] == len(lost_keys)
    assert {gap["page"] for gap in facts["damaged_pages"]} == {leaf["page"] for leaf in leaves[1:4]}
    text = cow("recover", copy, tmp_path / "new2").out
    assert f"{len(lost_keys)} lost" in text


def test_a_damaged_value_is_named(made, copy, tmp_path):
    spoil(copy, pages_of(copy, "blobs", "overflow")[0]["page"])
    found, facts = saved(copy, tmp_path / "new", code=1)
    (value,) = facts["lost_values"]
    assert found["blobs"] == {key: data for key, data in made[1]["blobs"].items() if key != value["key"].encode()}
    assert len(found["blobs"]) == 19
    assert facts["lost"] == 1


@pytest.mark.parametrize("trees", [["(main)"], ["names"], ["(main)", "names"]])
def test_leaves_below_a_damaged_branch_are_found_again(made, copy, tmp_path, trees):
    spoil(copy, *(record["page"] for tree in trees for record in pages_of(copy, tree, "branch")))
    found, facts = saved(copy, tmp_path / "new")
    assert found == made[1]
    assert facts["lost"] == 0
    assert {row["tree"] for row in facts["trees"] if row["found_again"]} == set(trees)


def test_three_levels_with_branches_lost_in_the_middle(tmp_path):
    path = tmp_path / "a.cowdb"
    entries = {b"%06d" % i * 20: b"v" * (i % 90) for i in range(9000)}
    with cowdb.open(path, page_size=SIZE) as db, db.write() as txn:
        txn.update(entries)
    levels = [record["level"] for record in pages_of(path, "(main)", "branch")]
    assert max(levels) == 2
    middle = [record["page"] for record in pages_of(path, "(main)", "branch") if record["level"] == 1]
    assert len(middle) > 3
    spoil(path, *middle[1:-1])
    found, facts = saved(path, tmp_path / "new")
    assert found == {None: entries}
    assert len(facts["damaged_pages"]) == len(middle) - 2


def test_trees_that_lost_their_names_are_saved(made, copy, tmp_path):
    spoil(copy, *(record["page"] for record in pages_of(copy, "the catalog", "leaf")))
    found, facts = saved(copy, tmp_path / "new", code=1)
    assert found[None] == made[1][None]
    others = [entries for name, entries in found.items() if name is not None]
    assert made[1]["names"] in others
    assert made[1]["blobs"] in others
    assert facts["without_their_tree"] == 770
    assert not facts["lost_is_known"]
    assert all(name.startswith("recovered-") for name in found if name is not None)


def test_a_part_of_the_catalog_loses_the_names_in_it_only(tmp_path):
    path = tmp_path / "a.cowdb"
    trees = {f"tree{i:03d}": {b"%d" % i: b"x" * i} for i in range(150)}
    with cowdb.open(path, page_size=SIZE) as db, db.write() as txn:
        for name, entries in trees.items():
            txn.tree(name, create=True).update(entries)
    leaves = pages_of(path, "the catalog", "leaf")
    assert len(leaves) > 2
    lost = {slot["key"] for slot in cow_json("page", path, leaves[1]["page"])["slots"]}
    spoil(path, leaves[1]["page"])
    found, facts = saved(path, tmp_path / "new", code=1)
    kept = {name: entries for name, entries in trees.items() if name not in lost}
    assert {name: entries for name, entries in found.items() if name in trees} == kept
    again = {}
    for name, entries in found.items():
        if name is not None and name not in trees:
            again |= entries
    assert again.items() >= {b"%d" % int(name[4:]): b"x" * int(name[4:]) for name in lost}.items()
    assert facts["without_their_tree"] == len(lost)


def test_trees_whose_keys_mix_and_whose_roots_are_lost(tmp_path):
    path = tmp_path / "a.cowdb"
    one = {b"%05d" % i: b"one" * 5 for i in range(0, 4000, 2)}
    two = {b"%05d" % i: b"two" * 5 for i in range(1, 4000, 2)}
    with cowdb.open(path, page_size=SIZE) as db, db.write() as txn:
        txn.tree("one", create=True).update(one)
        txn.tree("two", create=True).update(two)
    roots = [record["page"] for tree in ("one", "two") for record in pages_of(path, tree, "branch")]
    assert len(roots) == 2
    spoil(path, *roots)
    found, facts = saved(path, tmp_path / "new", code=1)
    every = {}
    for entries in found.values():
        every |= entries
    assert every == one | two
    assert facts["lost"] == 0
    assert facts["without_their_tree"] == 4000
    assert len(found) < 8
    assert "recovered-" in cow("recover", path, tmp_path / "new2").out


def test_a_damaged_free_list_is_told(tmp_path):
    path, fragmented = tmp_path / "a.cowdb", tmp_path / "b.cowdb"
    with cowdb.open(path, page_size=SIZE) as db:
        with db.write() as txn:
            txn.update((b"%06d" % i, b"v" * 3000) for i in range(600))
            txn.update((b"z%06d" % i, b"v" * 3000) for i in range(60))
        with db.write() as txn:
            for i in range(0, 600, 2):
                del txn[b"%06d" % i]
            txn.delete_range(b"z", None)
    trees = contents(path)
    assert cow("surgery", path, fragmented, "--free-list").code == 0
    leaf = pages_of(fragmented, "the free tree", "leaf")[0]["page"]
    spoil(fragmented, leaf, pages_of(fragmented, "(main)", "branch")[0]["page"])
    found, facts = saved(fragmented, tmp_path / "new", code=1)
    assert found[None].items() <= trees[None].items()
    assert sum(len(entries) for entries in found.values()) >= len(trees[None])
    assert any("free list" in remark for remark in facts["remarks"])
    assert cow("free", fragmented).code == 1
    assert cow("pages", fragmented).code == 1
    assert cow("info", fragmented).code == 0


def test_without_any_meta_page(made, copy, tmp_path):
    spoil(copy, 0, 1)
    found, facts = saved(copy, tmp_path / "new", code=1)
    assert found["names"] == made[1]["names"]
    assert found["blobs"] == made[1]["blobs"]
    rest = [entries for name, entries in found.items() if name and name.startswith("recovered-")]
    assert any(made[1][None].items() <= entries.items() for entries in rest)
    assert facts["remarks"]
    text = cow("recover", copy, tmp_path / "new2")
    assert "nobody can tell" in text.out


def test_a_file_whose_first_pages_were_wiped_is_recovered(made, copy, tmp_path):
    """The story: it did not begin like a database any more, so nobody looked whether there were pages in it."""
    raw = bytearray(copy.read_bytes())
    raw[: 2 * SIZE] = bytes(2 * SIZE)
    copy.write_bytes(raw)
    found, facts = saved(copy, tmp_path / "new.cowdb", code=1)
    assert facts["problem"].endswith("it does not begin like one")
    assert facts["saved"] >= sum(len(tree) for tree in contents(made[0]).values())
    assert any(tree.items() >= contents(made[0])[None].items() for tree in found.values())
    assert cow_json("page", copy, 5, "--page-size", SIZE)["page"] == 5
    (tmp_path / "text").write_bytes(b"no database" * 5000)
    for command in (
        ["page", copy, 5], ["info", copy], ["check", copy], ["pages", copy],
        ["recover", tmp_path / "text", tmp_path / "other"],
    ):  # fmt: skip
        refused = cow(*command)
        assert refused.code == NOT_A_DATABASE
        assert "does not begin like one" in refused.err
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("command", ["info", "check", "pages", "recover", "compact"])
def test_a_lock_file_is_told_from_its_database(copy, tmp_path, command):
    with cowdb.open(copy) as db:
        db[b"k"] = b"v"
        new = [tmp_path / "new"] if command in {"recover", "compact"} else []
        refused = cow(command, f"{copy}-lock", *new)
        assert refused.code == NOT_A_DATABASE
        assert "it is the lock file of one" in refused.err
    assert sorted(os.listdir(tmp_path)) == ["b.cowdb", "b.cowdb-lock"]


@pytest.mark.parametrize("size", [8192, 32768])
def test_a_compact_copy_with_pages_of_another_size(made, tmp_path, size):
    facts = cow_json("compact", made[0], tmp_path / "new.cowdb", "--page-size", size)
    assert facts["entries"] == sum(len(tree) for tree in contents(made[0]).values())
    assert contents(tmp_path / "new.cowdb") == contents(made[0])
    assert cow_json("info", tmp_path / "new.cowdb")["page_size"] == size
    refused = cow("compact", made[0], tmp_path / "other", "--page-size", "5000")
    assert refused.code == USAGE
    assert "choose from 4096" in refused.err


def test_a_recovered_tree_becomes_the_main_tree_again_as_the_manual_says(made, copy, tmp_path):
    spoil(copy, 0, 1)
    saved(copy, tmp_path / "saved.cowdb", code=1)
    trees = contents(tmp_path / "saved.cowdb")
    name = next(name for name, entries in trees.items() if entries and made[1][None].items() <= entries.items())
    manual = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    told = "".join(cow("recover", "--help").out.split())
    for into in ("new.cowdb -", "saved.cowdb - --tree users"):
        line = f"cowdb dump saved.cowdb --tree recovered-43 --plain | cowdb load {into} --from jsonl"
        assert f"    {line}" in manual
        assert ("".join(line.split()) in told) == (into == "new.cowdb -")
        python = f"{shlex.quote(sys.executable)} -m cowdb"
        subprocess.run(
            ["sh", "-ec", line.replace("recovered-43", name).replace("cowdb dump", f"{python} dump", 1)
             .replace("cowdb load", f"{python} load")],
            cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True, timeout=60, capture_output=True,
        )  # fmt: skip
    assert contents(tmp_path / "new.cowdb") == {None: trees[name]}
    line = "cowdb delete saved.cowdb --tree recovered-43 --drop"
    assert f"    {line}" in manual
    assert cow("delete", tmp_path / "saved.cowdb", "--tree", name, "--drop").code == 0
    again = {key: value for key, value in trees.items() if key != name} | {"users": trees[name]}
    assert contents(tmp_path / "saved.cowdb") == again


def test_recover_calls_its_arguments_the_same_everywhere(copy, tmp_path):
    text = cow("recover", "--help").out
    assert "DAMAGED NEW" in text
    assert "FILE" not in text
    assert "arguments are required: DAMAGED, NEW" in cow("recover").err


def test_nothing_but_rubble(tmp_path, copy):
    data = bytearray(copy.read_bytes())
    data[2 * SIZE :] = random.Random(1).randbytes(len(data) - 2 * SIZE)
    copy.write_bytes(data)
    found, facts = saved(copy, tmp_path / "new", code=1)
    assert found == {None: {}}
    assert facts["lost"] == facts["trees"][0]["expected"]
    spoil(copy, 0, 1)
    result = cow("recover", copy, tmp_path / "new2")
    assert result.code == 1
    assert "nothing can be saved" in result.err
    assert not (tmp_path / "new2").exists()


def test_older_versions_fill_gaps_when_asked(tmp_path):
    path = tmp_path / "a.cowdb"
    entries = {b"%04d" % i: b"v" * 40 for i in range(2000)}
    with cowdb.open(path, page_size=SIZE) as db:
        with db.write() as txn:
            txn.update(entries)
        with db.write() as txn:
            txn[b"1000"] = b"changed"
    (leaf,) = [step["page"] for step in cow_json("path", path, "1000")["steps"] if step["kind"] == "leaf"]
    spoil(path, leaf)
    found, facts = saved(path, tmp_path / "new", code=1)
    assert facts["lost"] > 10
    found, again = saved(path, tmp_path / "new2", "--older", code=1)
    assert again["lost"] == facts["lost"]
    assert again["trees"][0]["older"] == facts["lost"]
    assert found[None] == entries  # with the value before the change


def test_random_damage_loses_only_what_it_hits(made, tmp_path):
    rng = random.Random(7)
    data = made[0].read_bytes()
    owner = {}
    for name in made[1]:
        for record in pages_of(made[0], name or "(main)", "leaf"):
            owner[record["page"]] = name
    for case in range(12):
        copy = tmp_path / f"c{case}"
        copy.write_bytes(data)
        hit = rng.sample(range(2, len(data) // SIZE), 4)
        spoil(copy, *hit, at=rng.randrange(40, SIZE))
        code = cow("recover", copy, tmp_path / f"n{case}").code
        assert code in {0, 1}
        found = contents(tmp_path / f"n{case}")
        gone = {name for page, name in owner.items() if page in hit}
        for name, entries in made[1].items():
            mine = found.get(name, {})
            assert mine.items() <= entries.items()
            homeless = [other for label, other in found.items() if label and label.startswith("recovered-")]
            if name not in gone and not homeless and name != "blobs":
                assert mine == entries


def test_a_cut_file_saves_what_is_left(made, copy, tmp_path):
    with copy.open("r+b") as file:
        file.truncate(copy.stat().st_size * 2 // 3)
    for command in ("info", "check", "stat", "pages", "free", "diff", "tree", "trees", "top", "copy"):
        more = [tmp_path / "never"] if command == "copy" else []
        assert cow(command, copy, *more).code in {0, 1}
    found, facts = saved(copy, tmp_path / "new", code=1)
    every = {key: value for entries in made[1].values() for key, value in entries.items()}
    kept = {key: value for entries in found.values() for key, value in entries.items()}
    assert kept.items() <= every.items()
    assert len(kept) > 500
    assert facts["saved"] == len(kept)


def test_a_disk_that_cannot_read_a_sector(made, tmp_path, monkeypatch):
    from cowdb.storage import FileStorage

    leaf = pages_of(made[0], "(main)", "leaf")[3]["page"]
    bad = range(leaf * SIZE + 512, leaf * SIZE + 1024)
    real = FileStorage.read

    def read(self, offset, length):
        if self.path == str(made[0]) and offset < bad.stop and offset + length > bad.start:
            raise OSError(5, "Input/output error")
        return real(self, offset, length)

    monkeypatch.setattr(FileStorage, "read", read)
    assert cow("check", made[0]).code == 5
    assert cow("pages", made[0], "--damaged").code == 1
    _, facts = saved(made[0], tmp_path / "new", code=1)
    assert [gap["page"] for gap in facts["damaged_pages"]] == [leaf]


# ---------------------------------------------------------------- surgery


def live_copy(tmp_path):
    """A file with two different states, as a crash leaves it, and the older state's content."""
    path, live = tmp_path / "a.cowdb", tmp_path / "live.cowdb"
    sample(path)
    older = contents(path)
    with cowdb.open(path) as db:
        for i in range(2):
            with db.write() as txn:
                txn[b"new%d" % i] = b"x"
        live.write_bytes(path.read_bytes())
    older[None][b"new0"] = b"x"
    return live, older


def test_going_back_to_the_other_meta_page(tmp_path):
    live, older = live_copy(tmp_path)
    before = live.read_bytes()
    facts = cow_json("surgery", live, tmp_path / "fixed", "--meta", "other")
    assert facts["sound"]
    assert contents(tmp_path / "fixed") == older
    assert live.read_bytes() == before
    newer = max(slots(Bytes(before)), key=lambda slot: slot.meta.transaction)
    facts = cow_json("surgery", live, tmp_path / "same", "--meta", str(newer.number))
    assert facts["transaction"] == newer.meta.transaction
    assert b"new1" in contents(tmp_path / "same")[None]
    assert "sound" in cow("surgery", live, tmp_path / "third", "--meta", "other").out


def test_surgery_refuses_what_makes_no_sense(made, copy, tmp_path):
    assert cow("surgery", copy, tmp_path / "new").code == 2
    assert "no other state" in cow("surgery", copy, tmp_path / "new", "--meta", "other").err
    spoil(copy, 1)
    assert cow("surgery", copy, tmp_path / "new", "--meta", "1").code == 1
    assert cow("surgery", copy, tmp_path / "new", "--meta", "0").code == 0
    spoil(copy, 0)
    assert cow("surgery", copy, tmp_path / "new2", "--free-list").code == 1
    assert cow("surgery", made[0], tmp_path / "new", "--meta", "0").code == 2
    assert not (tmp_path / "new2").exists()


def test_an_older_state_that_is_in_pieces_is_called_so(copy, tmp_path):
    spoil(copy, pages_of(copy, "names", "leaf")[0]["page"])
    result = cow("surgery", copy, tmp_path / "new", "--meta", "0")
    assert result.code == 1
    assert "NOT sound" in result.out


def test_a_free_list_is_made_anew(made, copy, tmp_path):
    data = bytearray(copy.read_bytes())
    meta = metas.decode(bytes(data[:SIZE]), 0)
    broken = meta._replace(carry=b"", durable=meta.transaction)  # every free page is lost
    for slot in (0, 1):
        data[slot * SIZE : (slot + 1) * SIZE] = metas.encode(broken, slot)
    copy.write_bytes(data)
    assert cow("check", copy).code == 1
    assert cow("surgery", copy, tmp_path / "new", "--free-list").code == 0
    assert contents(tmp_path / "new") == made[1]
    assert cow_json("info", tmp_path / "new")["free_pages"] == cow_json("info", made[0])["free_pages"]


def test_a_free_list_is_not_made_from_damaged_trees(copy, tmp_path):
    spoil(copy, pages_of(copy, "names", "leaf")[0]["page"])
    result = cow("surgery", copy, tmp_path / "new", "--free-list")
    assert result.code == 1
    assert "recover" in result.err
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("values", [300, 2400])
def test_a_free_list_too_long_for_the_meta_page_becomes_a_tree(tmp_path, values):
    path = tmp_path / "a.cowdb"
    with cowdb.open(path, page_size=SIZE) as db:
        with db.write() as txn:
            txn.update((b"%06d" % i, b"v" * 3000) for i in range(values))
            txn.update((b"z%06d" % i, b"v" * 3000) for i in range(60))
        with db.write() as txn:
            for i in range(0, values, 2):
                del txn[b"%06d" % i]
            txn.delete_range(b"z", None)
    trees = contents(path)
    facts = cow_json("surgery", path, tmp_path / "new", "--free-list")
    assert facts["sound"]
    assert facts["free_tree_pages"] > 0
    assert facts["free_runs"] <= fmt.carry_capacity(SIZE)
    assert contents(tmp_path / "new") == trees
    free = sum(run["length"] for run in cow_json("free", tmp_path / "new"))
    with cowdb.open(tmp_path / "new") as db:  # the engine uses what was made here
        for i in range(5):
            with db.write() as txn:
                txn.update((b"again%d-%04d" % (i, j), b"w" * 3000) for j in range(values // 20))
            assert db.check() == []
        assert db.info()["free_pages"] < free
    assert contents(tmp_path / "new")[None].items() >= trees[None].items()


def test_a_free_tree_of_several_levels(monkeypatch):
    """117 runs in the carry list, 32 a record, 3 records a leaf, 88 children a branch: 3 levels from 8,500 runs on."""
    alone, together = 20_000, 600  # pages: every second one free, and then a free run
    pages = fmt.FIRST_DATA_PAGE + alone + together
    file = Handmade(SIZE)
    file.commit(1)
    found = next(slot.meta for slot in slots(Bytes(file.data)) if slot.meta)
    meta = found._replace(page_count=pages)
    state = State(Bytes(bytes(file.data) + bytes((pages - 2) * SIZE)), meta)
    reached = PageMap()
    for page in range(fmt.FIRST_DATA_PAGE, fmt.FIRST_DATA_PAGE + alone, 2):
        reached.mark(page, 1, 1)
    monkeypatch.setattr(freelist, "_reached", lambda *_: reached)
    new, written = freelist.rebuilt(state, lambda *_: None)
    assert new.free.depth == 3
    data = bytearray(state.source.data)
    for number, raw in written:
        data[number * SIZE : (number + 1) * SIZE] = raw
    for slot in (0, 1):
        data[slot * SIZE : (slot + 1) * SIZE] = metas.encode(new._replace(durable=1), slot)
    runs = list(State(Bytes(data), new).free_runs())
    free = {page for run in runs for page in range(run.start, run.start + run.length)}
    assert sum(run.length for run in runs) == len(free) == alone // 2 + together - len(written)
    assert free | {number for number, _ in written} == {n for n in range(2, pages) if not reached.get(n)}
    # What is between the free pages belongs to nobody here; nothing else may be wrong.
    findings = check(Bytes(data))
    assert {finding.invariant for finding in findings[:MAX_FINDINGS]} == {"I5"}
    assert all("neither reachable nor free" in finding.message for finding in findings[:MAX_FINDINGS])
