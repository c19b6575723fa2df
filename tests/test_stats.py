"""The counters: what copy-on-write costs and saves."""

from __future__ import annotations

import dataclasses
import os
from types import SimpleNamespace

import pytest
from crashing import PATH, opened

import cowdb
from cowdb.stats import Counters, Stats
from cowdb.testing import CrashDisk, FlushEnd, MemoryDisk, Write


def test_a_new_database(database):
    stats = database().stats()
    assert stats.transaction == stats.durable_transaction == 1
    assert stats.commits == stats.pages_written == stats.flushes == stats.operations == 0
    assert stats.page_count == 2
    assert stats.used_pages == stats.free_pages == 0
    assert (stats.pages_per_commit, stats.bytes_per_commit, stats.flushes_per_commit) == (0.0, 0.0, 0.0)
    assert stats.copies_per_operation == 0.0
    assert stats.dirty_ratios == ()


def test_what_is_counted_is_what_the_disk_saw():
    disk = CrashDisk()
    db = opened(disk)
    begin = len(disk.trace)
    for number in range(30):
        with db.write() as transaction:
            for step in range(5):
                transaction[b"%d" % (number * step)] = b"v" * 300 * step
    stats = db.stats()
    written = [operation for operation in disk.trace[begin:] if isinstance(operation, Write)]
    flushes = [operation for operation in disk.trace[begin:] if isinstance(operation, FlushEnd)]
    # The first transaction made the state certain first: one page and one flush, and no commit.
    assert stats.bytes_written == sum(len(one.data) for one in written) - 4096
    assert stats.pages_written == stats.bytes_written // 4096
    assert stats.flushes == len(flushes)
    assert stats.commits == 30
    assert stats.operations == 150
    assert stats.pages_per_commit == stats.pages_written / 30
    assert stats.flushes_last_commit == 1
    assert len(stats.dirty_ratios) == 30
    assert all(ratio > 0 for ratio in stats.dirty_ratios)
    db.close()


def test_the_ratios_of_the_last_commits_are_kept():
    counters = Counters()
    for number in range(1, 1000):
        meta = SimpleNamespace(page_count=1000)
        counters.publish([SimpleNamespace(written=number, copied=0, operations=1, meta=meta)], 1)
        kept = counters.ratios
        assert len(kept) == min(number, 64)
        assert kept[-1] == number / 1000
        assert kept[0] == max(1, number - 63) / 1000


def test_pages_that_were_written_early_are_counted():
    disk = CrashDisk()
    db = opened(disk, memory_budget=9000)
    db[b"a"] = b"1"
    before = db.stats()
    begin = len(disk.trace)
    with db.write() as transaction:
        transaction.update((b"%06d" % number, b"v" * 100) for number in range(1000))
        transaction[b"large"] = b"x" * 50_000
    after = db.stats()
    written = sum(len(one.data) for one in disk.trace[begin:] if isinstance(one, Write))
    assert after.bytes_written - before.bytes_written == written
    assert after.pages_written_last_commit == written // 4096
    db.close()


def test_used_free_and_pinned_pages_add_up(database):
    db = database(page_size=4096)
    with db.write() as transaction:
        transaction.update((b"%05d" % number, b"v" * 50) for number in range(2000))
        transaction.tree("t", create=True)[b"large"] = b"x" * 50_000
    reader = db.read()
    with db.write() as transaction:
        transaction.delete_range(b"00500", b"01500")
    stats = db.stats()
    assert stats.page_count == 2 + stats.used_pages + stats.free_pages
    assert 0 < stats.pinned_pages <= stats.carried_pages <= stats.free_pages
    assert stats.snapshots == 2
    assert stats.readers == 1
    assert stats.file_size == os.path.getsize(db.path) >= stats.page_count * 4096
    assert 0 < stats.shared_pages < stats.used_pages
    reader.close()
    db[b"a"] = b"1"
    assert db.stats().pinned_pages < stats.pinned_pages
    assert db.stats().snapshots == 1


def test_the_ratios_of_the_last_commits_only(database):
    db = database(durability="lazy")
    for number in range(80):
        db[b"%d" % number] = b"v"
    assert len(db.stats().dirty_ratios) == 64


def test_the_figures_do_not_change_afterwards(database):
    stats = database().stats()
    assert isinstance(stats, Stats)
    with pytest.raises(dataclasses.FrozenInstanceError):
        stats.commits = 5


def test_lazy_commits_flush_nothing(database):
    db = database(durability="lazy")
    db[b"a"] = b"1"
    flushes = db.stats().flushes
    for number in range(10):
        db[b"%d" % number] = b"v"
    assert db.stats().flushes == flushes
    assert db.stats().flushes_last_commit == 0
    assert db.stats().durable_transaction < db.stats().transaction
    db.sync()
    assert db.stats().flushes == flushes + 1
    assert db.stats().durable_transaction == db.stats().transaction


def test_a_catalog_entry_that_is_no_descriptor_is_damage(monkeypatch):
    db = opened(MemoryDisk())
    with db.write() as transaction:
        transaction.tree("t", create=True)[b"k"] = b"v"
    with monkeypatch.context() as patch:
        patch.setattr("cowdb.catalog.scan", lambda *_: iter([b"short"]))
        with pytest.raises(cowdb.CorruptionError, match="descriptor"):
            db.stats()
    assert db.readers() == []
    assert db.path == PATH
    db.close()
