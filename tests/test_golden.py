"""Files of format version 1, as they were written once: every later cowdb must read them, and go on writing them."""

from __future__ import annotations

import json
import os
import runpy
from pathlib import Path

import pytest

import cowdb
from cowdb.errors import ReadOnlyError

GOLDEN = Path(__file__).parent / "golden"
FILES = sorted(GOLDEN.glob("*.cowdb"))

golden = pytest.mark.parametrize("file", FILES, ids=[file.stem for file in FILES])


def wanted(file):
    raw = json.loads(file.with_suffix(".json").read_text(encoding="utf-8"))
    return {
        name: {bytes.fromhex(key): bytes.fromhex(value) for key, value in tree.items()} for name, tree in raw.items()
    }


def compare(db, trees):
    with db.read() as snapshot:
        assert dict(snapshot.items()) == trees[""]
        assert len(snapshot) == len(trees[""])
        names = sorted((name for name in trees if name), key=str.encode)
        assert snapshot.trees() == names
        for name in names:
            tree = snapshot.tree(name)
            assert dict(tree.items()) == trees[name]
            assert all(tree[key] == value for key, value in trees[name].items())
            assert [tree.bisect_left(key) for key in tree] == list(range(len(tree)))


def copy_of(file, directory):
    target = directory / file.name
    target.write_bytes(file.read_bytes())
    return target


def test_there_are_golden_files():
    assert [file.stem for file in FILES] == ["v1-4096", "v1-8192"]
    assert sum(file.stat().st_size for file in FILES) < 1_000_000


@golden
def test_the_first_bytes_are_the_magic_of_version_1(file):
    raw = file.read_bytes()
    assert raw[32:40] == b"\x89COW\r\n\x1a\n"
    assert raw[40:42] == b"\1\0"
    assert f"v1-{int.from_bytes(raw[44:48], 'little')}" == file.stem


def test_there_is_a_free_tree_in_one_of_them():
    with cowdb.open(FILES[0], read_only=True) as db:
        stats = db.stats()
        assert stats.free_pages > stats.carried_pages + 20


@golden
def test_reading_changes_no_byte(file, tmp_path):
    path = copy_of(file, tmp_path)
    before = path.read_bytes()
    os.utime(path, ns=(10**18, 10**18))
    trees = wanted(file)
    assert len(trees[""]) > 100
    with cowdb.open(path, read_only=True) as db:
        compare(db, trees)
        assert db.check() == []
        assert db.info()["format_version"] == 1
        assert db.info()["database_id"] == bytes(range(16)).hex()
        with pytest.raises(ReadOnlyError):
            db.write()
    assert path.read_bytes() == before == file.read_bytes()
    assert path.stat().st_mtime_ns == 10**18, "not even written with the same bytes"


@golden
def test_a_file_without_permission_to_write_is_read(file, tmp_path):
    path = copy_of(file, tmp_path)
    path.chmod(0o400)
    with cowdb.open(path, read_only=True) as db:
        compare(db, wanted(file))


@golden
def test_writing_goes_on(file, tmp_path):
    path = copy_of(file, tmp_path)
    trees = wanted(file)
    with cowdb.open(path, page_size=16384) as db:
        assert db.info()["page_size"] == int(file.stem.removeprefix("v1-")), "the file's own"
        compare(db, trees)
        assert db.check() == []
        for number in range(30):
            with db.write() as txn:
                txn[b"new%d" % number] = bytes(number * 300)
                trees[""][b"new%d" % number] = bytes(number * 300)
                txn.tree("users").update({b"%d" % number: b"changed"})
                trees["users"][b"%d" % number] = b"changed"
                assert txn.delete(b"key%05d" % number)
                del trees[""][b"key%05d" % number]
        with db.write() as txn:
            txn.drop("größe 木")
            del trees["größe 木"]
        compare(db, trees)
        assert db.check() == []
    with cowdb.open(path) as db:
        compare(db, trees)
        assert db.check() == []


def test_the_script_that_made_them_still_makes_such_files(tmp_path):
    """Bytes may differ, the content may not."""
    make = runpy.run_path(str(GOLDEN / "make.py"))
    make["main"](str(tmp_path))
    for file in FILES:
        assert wanted(tmp_path / file.name) == wanted(file)
        assert (tmp_path / file.name).read_bytes()[32:42] == file.read_bytes()[32:42]
