"""Hot copies: a snapshot into a new file, whole or compact, while writers go on."""

from __future__ import annotations

import errno
import os
import threading

import pytest
from crashing import content

import cowdb
from cowdb.database import open_on
from cowdb.storage import FileDisk, FileStorage
from cowdb.testing import MemoryDisk

BOTH = pytest.mark.parametrize("compact", [False, True], ids=["whole", "compact"])


@pytest.fixture
def db(database):
    db = database(page_size=4096)
    with db.write() as transaction:
        transaction.update((b"%05d" % (number * 7919 % 10_000), b"v" * (number % 90)) for number in range(3000))
        transaction[b"large"] = b"L" * 100_000
        transaction.tree("users", create=True).update((b"%d" % number, b"u" * 2000) for number in range(50))
        transaction.tree("empty", create=True)
    with db.write() as transaction:
        transaction.delete_range(b"00100", b"03000")
        transaction.tree("users")[b"1"] = b"changed"
    return db


@pytest.mark.guarantee
@BOTH
def test_a_copy_equals_its_original_and_passes_the_checker(db, tmp_path, compact):
    db.copy(tmp_path / "copy", compact=compact)
    with cowdb.open(tmp_path / "copy", create=False) as copy:
        assert content(copy) == content(db)
        assert copy.check() == []
        assert copy.info()["database_id"] == db.info()["database_id"]
        copy[b"new"] = b"1" * 5000
        assert copy.check() == []
    assert b"new" not in db
    assert {"copy", "test.cowdb"} <= set(os.listdir(tmp_path))
    assert not [name for name in os.listdir(tmp_path) if name.endswith(".tmp")]


def test_a_compact_copy_is_small_and_dense(db, tmp_path):
    db.copy(tmp_path / "whole")
    db.copy(tmp_path / "compact", compact=True)
    sizes = {name: os.path.getsize(tmp_path / name) for name in ("whole", "compact")}
    assert sizes["compact"] < sizes["whole"]
    with cowdb.open(tmp_path / "compact", read_only=True) as copy:
        assert copy.stats().free_pages <= 6
        assert copy.stats().transaction == 2
        assert copy.info()["file_size"] == copy.info()["page_count"] * 4096
        assert copy.check() == []


@pytest.mark.parametrize("page_size", [4096, 8192, 16384, 32768])
def test_a_compact_copy_may_have_pages_of_another_size(db, tmp_path, page_size):
    db.copy(tmp_path / "copy", compact=True, page_size=page_size)
    with cowdb.open(tmp_path / "copy", create=False) as copy:
        assert copy.info()["page_size"] == page_size
        assert content(copy) == content(db)
        assert copy.check() == []
        copy[b"new"] = b"1" * 50_000
        assert copy.check() == []
    assert os.path.getsize(tmp_path / "copy") % page_size == 0


def test_a_key_that_is_too_long_for_smaller_pages_ends_the_copy(database, tmp_path):
    db = database(page_size=32768)
    db[b"k" * db.max_key_size] = b"v"
    with pytest.raises(cowdb.KeySizeError):
        db.copy(tmp_path / "copy", compact=True, page_size=4096)
    with pytest.raises(ValueError, match="compact=True"):
        db.copy(tmp_path / "copy", page_size=4096)
    with pytest.raises(ValueError, match="4096, 8192"):
        db.copy(tmp_path / "copy", compact=True, page_size=5000)
    with pytest.raises(TypeError, match="int"):
        db.copy(tmp_path / "copy", compact=True, page_size="8192")
    assert not [name for name in os.listdir(tmp_path) if name.startswith("copy")]


def test_a_copy_into_no_directory_names_it(db, tmp_path):
    for compact in (False, True):
        with pytest.raises(FileNotFoundError, match=r"no such directory.*nowhere'$"):
            db.copy(tmp_path / "nowhere" / "copy", compact=compact)
        (tmp_path / "file").touch()
        with pytest.raises(NotADirectoryError):
            db.copy(tmp_path / "file" / "copy", compact=compact)


@pytest.mark.skipif(not hasattr(os.stat_result, "st_blocks"), reason="no blocks to count")
def test_free_pages_are_holes_in_a_whole_copy(db, tmp_path):
    with db.write() as transaction:
        del transaction[b"large"]
    db[b"a"] = b"1"
    db.copy(tmp_path / "copy")
    found = os.stat(tmp_path / "copy")
    assert found.st_blocks * 512 < found.st_size


@BOTH
def test_a_copy_of_an_empty_database(database, tmp_path, compact):
    database().copy(tmp_path / "copy", compact=compact)
    with cowdb.open(tmp_path / "copy") as copy:
        assert content(copy) == {None: {}}
        copy[b"a"] = b"1"
        assert copy.check() == []


@BOTH
def test_a_copy_overwrites_nothing(db, tmp_path, compact):
    (tmp_path / "there").write_bytes(b"mine")
    for name in ("there", "test.cowdb"):
        before = (tmp_path / name).read_bytes()
        with pytest.raises(FileExistsError):
            db.copy(tmp_path / name, compact=compact)
        assert (tmp_path / name).read_bytes() == before
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(FileExistsError):
        db.copy(tmp_path / "link", compact=compact)


@BOTH
def test_a_target_that_appears_meanwhile_is_not_overwritten_either(db, tmp_path, compact):
    def progress(_done, _total):
        (tmp_path / "copy").write_bytes(b"mine")

    with pytest.raises(FileExistsError):
        db.copy(tmp_path / "copy", compact=compact, progress=progress)
    assert (tmp_path / "copy").read_bytes() == b"mine"
    assert not [name for name in os.listdir(tmp_path) if name.endswith(".tmp")]


@BOTH
def test_a_wrong_target(db, tmp_path, compact):
    with pytest.raises(FileNotFoundError):
        db.copy(tmp_path / "missing" / "copy", compact=compact)
    with pytest.raises(TypeError):
        db.copy(b"copy", compact=compact)
    assert db.readers() == []


@pytest.mark.guarantee
@BOTH
def test_writers_go_on_during_a_copy_and_do_not_show_in_it(db, tmp_path, compact):
    before = content(db)
    stop = threading.Event()

    def work():
        number = 0
        while not stop.is_set():
            with db.write(durability="lazy") as transaction:
                transaction[b"%05d" % (number % 5000)] = b"%d" % number * 20
                transaction[b"large"] = b"%d" % number * 20_000
            number += 1

    started = []

    def progress(_done, _total):
        if not started:
            started.append(threading.Thread(target=work))
            started[0].start()
        started.append(db.stats().transaction)

    try:
        db.copy(tmp_path / "copy", compact=compact, progress=progress)
    finally:
        stop.set()
        started[0].join()
    with cowdb.open(tmp_path / "copy") as copy:
        assert content(copy) == before
        assert copy.check() == []


@BOTH
def test_a_copy_inside_a_write_transaction_is_of_the_state_before_it(db, tmp_path, compact):
    before = content(db)
    with db.write() as transaction:
        transaction[b"uncommitted"] = b"1"
        db.copy(tmp_path / "copy", compact=compact)
    with cowdb.open(tmp_path / "copy") as copy:
        assert content(copy) == before


@BOTH
def test_progress_rises_and_ends_at_the_whole(db, tmp_path, compact):
    calls = []
    db.copy(tmp_path / "copy", compact=compact, progress=lambda *call: calls.append(call))
    assert calls[-1][0] == calls[-1][1] > 0
    assert [done for done, _ in calls] == sorted(done for done, _ in calls)
    assert len({total for _, total in calls}) == 1


@BOTH
@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError])
def test_an_interrupted_copy_leaves_nothing(db, tmp_path, compact, error):
    def progress(_done, _total):
        raise error

    with pytest.raises(error):
        db.copy(tmp_path / "copy", compact=compact, progress=progress)
    assert not [name for name in os.listdir(tmp_path) if "copy" in name]
    assert db.readers() == []
    db.copy(tmp_path / "copy", compact=compact)


@pytest.mark.guarantee
@BOTH
@pytest.mark.parametrize("call", ["write", "flush", "resize"])
def test_a_copy_that_finds_the_disk_full_leaves_nothing_and_harms_nobody(db, tmp_path, monkeypatch, compact, call):
    real = getattr(FileStorage, call)

    def full(self, *arguments):
        if "copy" in os.path.basename(self.path):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self.path)
        return real(self, *arguments)

    monkeypatch.setattr(FileStorage, call, full)
    with pytest.raises(OSError) as caught:
        db.copy(tmp_path / "copy", compact=compact)
    assert caught.value.errno == errno.ENOSPC
    assert not [name for name in os.listdir(tmp_path) if "copy" in name]
    db[b"more"] = b"1"
    assert db.check() == []


@pytest.mark.guarantee
@BOTH
def test_a_damaged_page_is_not_copied(database, tmp_path, compact):
    db = database("damaged", page_size=4096)
    with db.write() as transaction:
        transaction.update((b"%05d" % number, b"v" * 50) for number in range(1000))
    db.close()
    with open(tmp_path / "damaged", "r+b") as file:
        file.seek(4096 * 8 + 2000)
        file.write(b"damage")
    db = database("damaged")
    with pytest.raises(cowdb.CorruptionError):
        db.copy(tmp_path / "copy", compact=compact)
    assert not (tmp_path / "copy").exists()
    db.close()
    os.unlink(tmp_path / "damaged")


@BOTH
def test_a_copy_where_there_are_no_hard_links(db, tmp_path, monkeypatch, compact):
    def no_links(*_arguments):
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", no_links)
    db.copy(tmp_path / "copy", compact=compact)
    with cowdb.open(tmp_path / "copy") as copy:
        assert content(copy) == content(db)


@BOTH
def test_a_copy_from_a_disk_in_memory_goes_to_a_file(tmp_path, compact):
    with open_on(MemoryDisk(), "/db") as db:
        db[b"a"] = b"1"
        db.copy(tmp_path / "copy", compact=compact)
    with cowdb.open(tmp_path / "copy") as copy:
        assert copy[b"a"] == b"1"
    assert isinstance(FileDisk(), FileDisk)


def test_a_whole_copy_of_a_state_with_held_pages(db, tmp_path):
    reader = db.read()
    db[b"00001"] = b"1"
    db[b"00002"] = b"2"
    assert db.stats().pinned_pages
    db.copy(tmp_path / "copy")
    with cowdb.open(tmp_path / "copy") as copy:
        assert copy.check() == []
        assert copy.stats().pinned_pages == 0
        copy[b"a"] = b"1"
        assert copy.check() == []
    reader.close()
