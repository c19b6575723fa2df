"""The commit, step by step: slots, durable, free pages, early writes, the size of the file (P2 to P7, I1, I2, I5, I8, I9)."""

from __future__ import annotations

import errno
import itertools

import pytest
from crashing import PATH, content, opened, vanish

import cowdb
from cowdb import format as fmt
from cowdb import meta as meta_page
from cowdb import pager
from cowdb.allocation import Allocator
from cowdb.recovery import believe
from cowdb.sharing import LocalSharing
from cowdb.testing import CrashDisk, FlushBegin, FlushEnd, MemoryDisk, Resize, Write

SIZE = 4096


@pytest.fixture
def disk():
    return CrashDisk()


@pytest.fixture
def db(disk):
    db = opened(disk)
    yield db
    db.close()
    disk.check_mappings()
    db = opened(disk)
    assert db.check() == []
    db.close()


def pager_of(db):
    return db._core.pager


def put(db, key=b"k", value=b"v", durability="full"):
    with db.write(durability=durability) as transaction:
        transaction[key] = value


def fill(db, count, size=100, step=1):
    with db.write() as transaction:
        for number in range(0, count, step):
            transaction[b"%06d" % number] = bytes([number % 256]) * size


def meta_writes(disk, begin=0):
    """Slot, transaction and durable of the metas that were written from trace index `begin` on."""
    found = []
    for operation in disk.trace[begin:]:
        if isinstance(operation, Write) and operation.offset in (0, SIZE):
            slot = operation.offset // SIZE
            meta = meta_page.decode(operation.data[:SIZE], slot)
            found.append((slot, meta.transaction, meta.durable))
    return found


def kinds(disk, begin):
    """What was done to the file from trace index `begin` on, in order."""
    names = []
    for operation in disk.trace[begin:]:
        if isinstance(operation, Write):
            names.append("meta" if operation.offset < 2 * SIZE else "pages")
        elif isinstance(operation, FlushEnd):
            names.append("flush")
    return [name for name, _ in itertools.groupby(names)]


# ---------------------------------------------------------------- the recipe


@pytest.mark.guarantee
def test_a_durable_commit_writes_pages_then_meta_then_flushes_once(db, disk):
    put(db)
    begin = len(disk.trace)
    put(db)
    assert kinds(disk, begin) == ["pages", "meta", "flush"]
    assert db.stats().flushes_last_commit == 1


def test_metas_of_durable_commits_take_turns_and_name_the_one_before_as_durable(db, disk):
    put(db)
    begin = len(disk.trace)
    for _ in range(4):
        put(db)
    written = meta_writes(disk, begin)
    assert [slot for slot, _, _ in written] in ([0, 1, 0, 1], [1, 0, 1, 0])
    assert all(durable == transaction - 1 for _, transaction, durable in written)


def test_lazy_metas_all_go_to_the_slot_that_is_not_the_durable_one(db, disk):
    put(db)
    durable = pager_of(db).words.durable
    begin = len(disk.trace)
    for number in range(3):
        put(db, value=b"%d" % number, durability="lazy")
    assert meta_writes(disk, begin) == [(1 - durable[1], durable[0] + 1 + step, durable[0]) for step in range(3)]
    assert kinds(disk, begin) == ["pages", "meta"] * 3
    db.sync()
    assert pager_of(db).words.durable == (durable[0] + 3, 1 - durable[1])
    assert kinds(disk, begin)[-1] == "flush"
    put(db)
    assert meta_writes(disk, begin)[-1] == (durable[1], durable[0] + 4, durable[0] + 3)


def test_a_durable_commit_covers_the_lazy_ones_before_it(db, disk):
    put(db)
    durable = pager_of(db).words.durable
    put(db, b"lazy", durability="lazy")
    begin = len(disk.trace)
    put(db, b"full")
    assert meta_writes(disk, begin) == [(1 - durable[1], durable[0] + 2, durable[0])]
    assert kinds(disk, begin) == ["pages", "meta", "flush"]


def test_two_flushes_for_a_commit_that_is_too_large_to_be_verified(disk):
    db = opened(disk, two_flush_limit=SIZE * 4)
    put(db)
    put(db, b"lazy", durability="lazy")
    durable = pager_of(db).words.durable
    begin = len(disk.trace)
    put(db, b"large", b"x" * SIZE * 5)
    assert kinds(disk, begin) == ["pages", "flush", "meta", "flush"]
    # After the first flush the lazy one is durable, so its slot is not to be written any more (P4).
    assert meta_writes(disk, begin) == [(durable[1], durable[0] + 2, durable[0] + 2)]
    assert db.stats().flushes_last_commit == 2
    begin = len(disk.trace)
    put(db, b"large", b"y" * SIZE * 5)
    assert meta_writes(disk, begin) == [(1 - durable[1], durable[0] + 3, durable[0] + 3)]
    db.close()


def test_pages_that_were_written_early_count_for_the_two_flushes(disk):
    db = opened(disk, two_flush_limit=SIZE * 50, memory_budget=SIZE * 3)
    begin = len(disk.trace)
    fill(db, 4000, 80)
    assert db.stats().flushes_last_commit == 2
    assert [transaction for _, transaction, durable in meta_writes(disk, begin) if transaction == durable][-1] == 2
    db.close()


def test_lazy_work_that_adds_up_is_flushed_twice_at_the_end(disk):
    db = opened(disk, two_flush_limit=SIZE * 20)
    for number in range(8):
        put(db, b"%d" % number, b"x" * SIZE * 3, durability="lazy")
    put(db)
    assert db.stats().flushes_last_commit == 2
    put(db)
    assert db.stats().flushes_last_commit == 1
    db.close()


def test_a_transaction_without_changes_writes_nothing(db, disk):
    put(db)
    begin = len(disk.trace)
    with db.write() as transaction:
        assert not transaction.delete(b"not there")
        transaction.get(b"k")
        transaction.trees()
    assert disk.trace[begin:] == []
    assert db.stats().transaction == 2


def test_the_first_write_after_opening_makes_the_state_certain_and_reading_does_not(disk):
    opened(disk).close()
    begin = len(disk.trace)
    db = opened(disk)
    assert len(db) == 0
    assert pager_of(db).words.durable is None
    assert disk.trace[begin:] == []
    with db.write():
        pass
    assert kinds(disk, begin) == ["meta", "flush"]
    with db.write():
        pass
    assert kinds(disk, begin) == ["meta", "flush"]
    db.close()


def test_a_sync_before_any_write_makes_the_state_certain_too(disk):
    db = opened(disk)
    put(db)
    vanish(db)
    begin = len(disk.trace)
    db = opened(disk)
    db.sync()
    assert kinds(disk, begin)[-1] == "flush"
    count = len(disk.trace)
    db.sync()
    assert len(disk.trace) == count
    db.close()


# ---------------------------------------------------------------- busy and quiet


def test_busy_stands_while_a_writer_is_at_work(db):
    put(db)
    words = pager_of(db).words
    assert not words.busy
    with db.write() as transaction:
        assert words.busy
        transaction.abort()
    assert not words.busy
    assert LocalSharing().busy


# ---------------------------------------------------------------- failpoints


FAILPOINTS = ["extend", "write pages", "hand on", "first flush", "write meta", "flush", "publish"]


class Stop(BaseException):
    """As a KeyboardInterrupt, which may come between any two steps."""


@pytest.mark.guarantee
@pytest.mark.parametrize("durability", ["full", "lazy"])
@pytest.mark.parametrize("interruption", [KeyboardInterrupt, Stop, MemoryError])
@pytest.mark.parametrize("point", FAILPOINTS)
def test_an_interruption_at_each_step_of_a_commit(disk, point, interruption, durability):
    """Until it is handed on, the transaction is gone and the next one works. From then on others may build on it, and
    the file may hold a state that this process does not know; so the writer stops, and who opens the file again finds
    one of the two."""
    db = opened(disk, two_flush_limit=0 if point == "first flush" else 1 << 26)
    put(db, b"a", b"1")
    pager = pager_of(db)
    reached = []

    def interrupt(name):
        reached.append(name)
        if name == point:
            raise interruption

    pager.failpoint = interrupt
    left_out = durability == "lazy" and point in ("first flush", "flush")
    if left_out:
        put(db, b"a", b"2", durability)
        assert point not in reached
        db.close()
        return
    with pytest.raises(interruption):
        put(db, b"a", b"2", durability)
    pager.failpoint = lambda name: None
    assert db[b"a"] == b"1"
    if point in ("first flush", "write meta", "flush", "publish"):
        with pytest.raises(cowdb.PoisonedError, match="interrupted"):
            put(db, b"b", b"3")
        db.close()
        db = opened(disk)
        assert db[b"a"] in (b"1", b"2")
    put(db, b"b", b"3")
    assert db[b"b"] == b"3"
    assert db.check() == []
    db.close()
    db = opened(disk)
    assert db.check() == []
    db.close()


def test_a_lone_small_durable_commit_has_the_disk_begin_before_its_meta_page_is_written(db, disk, monkeypatch):
    """Beyond the pages that may lie in one folio of the system's cache with the meta pages."""
    fill(db, 2000)
    asked = []
    begin = 0

    def watched(storage, start, *, little):
        assert little
        asked.append((storage, start, kinds(disk, begin)))

    monkeypatch.setattr(pager, "begin_writing", watched)
    begin = len(disk.trace)
    put(db)
    assert asked == [(pager_of(db).storage, 32768, ["pages"])]
    assert kinds(disk, begin) == ["pages", "meta", "flush"]
    begin = len(disk.trace)
    put(db, durability="lazy")
    assert len(asked) == 1, "no flush waits for it"
    fill(db, 2000, step=20)
    assert len(asked) == 1, "so many pages take the disk longer than what is done meanwhile"
    put(db)
    assert len(asked) == 2
    put(db, durability="lazy")
    put(db)
    assert len(asked) == 2, "what lazy transactions have left may be much, and the call covers all"
    put(db)
    assert len(asked) == 3
    transaction = db.write()
    transaction.update((b"%06d" % number, bytes(500)) for number in range(3000))
    pager_of(db)._write_early(transaction._draft)
    transaction.abort()
    put(db)
    assert len(asked) == 3, "and so may what was written early in vain"
    put(db)
    assert len(asked) == 4


@pytest.mark.guarantee
@pytest.mark.parametrize("case", ["lone", "early"])
@pytest.mark.parametrize("error", [OSError(errno.EIO, "gone"), OSError(errno.ENOSPC, "full"), KeyboardInterrupt()])
def test_what_the_disk_cannot_begin_with_is_a_failed_flush(disk, monkeypatch, case, error):
    """Lack of room neither passes here: what the system has forgotten may be of lazy transactions before this one."""

    def fails(storage, start, *, little):
        raise error

    with opened(disk) as db:
        db[b"before"] = b"1"
        monkeypatch.setattr(pager, "begin_writing", fails)
        if case == "early":
            monkeypatch.setattr(pager, "SOON", 1)
        with pytest.raises(KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else cowdb.PoisonedError):
            fill(db, 2000 if case == "early" else 1)
        monkeypatch.undo()
        with pytest.raises(cowdb.PoisonedError):
            put(db)
        assert content(db) == {None: {b"before": b"1"}}
    with opened(disk) as db:
        assert content(db) == {None: {b"before": b"1"}}
        put(db)
        assert db.check() == []


@pytest.mark.parametrize("size", fmt.PAGE_SIZES)
def test_the_disk_does_not_begin_with_a_meta_page(size):
    db = opened(CrashDisk(), page_size=size)
    assert pager_of(db)._begin_at >= fmt.FIRST_DATA_PAGE * size
    assert pager_of(db)._begin_at % size == 0
    db.close()


@pytest.mark.parametrize("call", ["write", "resize", "flush"])
def test_an_interruption_in_the_middle_of_a_call_poisons(disk, monkeypatch, call):
    db = opened(disk)
    put(db, b"a", b"1")

    def interrupt(*_arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(pager_of(db).storage, call, interrupt)
        with pytest.raises(KeyboardInterrupt):
            put(db, b"a", b"2" * 200_000)
    with pytest.raises(cowdb.PoisonedError):
        put(db, b"a", b"3")
    assert db[b"a"] == b"1"
    db.close()


@pytest.mark.guarantee
@pytest.mark.parametrize("tree", [None, "named"])
@pytest.mark.parametrize("error", [cowdb.CorruptionError(5, "twice"), KeyboardInterrupt(), MemoryError()])
def test_the_free_list_of_a_transaction_that_was_not_committed_is_forgotten(disk, monkeypatch, error, tree):
    """The story: a commit was interrupted while it gave its old pages to the free list. The list kept them, and the next
    transaction wrote over pages of the living state."""
    db = opened(disk)
    fill(db, 400)
    fill(db, 400, step=10)
    before = content(db)
    real = Allocator.release

    def release(self, draft, live):
        real(self, draft, live)
        raise error

    def fail(name):
        if name == "extend":
            raise error

    if tree is None:
        pager_of(db).failpoint = fail  # behind what the compiled kernel does in one go
    else:
        monkeypatch.setattr(Allocator, "release", release)
    with pytest.raises(type(error)), db.write() as txn:
        for number in range(0, 400, 7):
            txn[b"%06d" % number] = bytes(90)
        if tree is not None:
            txn.tree(tree, create=True)[b"a"] = b"b"
    pager_of(db).failpoint = lambda name: None
    monkeypatch.setattr(Allocator, "release", real)
    assert content(db) == before
    for number in range(5):
        put(db, b"%d" % number)
        assert db.check() == []
    assert content(db) == {None: {**before[None], **{b"%d" % number: b"v" for number in range(5)}}}
    db.close()


# ---------------------------------------------------------------- free pages


def test_the_file_of_a_key_that_is_written_over_and_over_does_not_grow(db):
    for number in range(300):
        put(db, b"k", b"%d" % number * 100)
    assert db.stats().page_count < 12


@pytest.mark.guarantee
def test_a_long_reader_pins_only_what_it_can_see(db):
    fill(db, 1000)
    reader = db.read()
    before = dict(reader.items())
    put(db)
    count = db.stats().page_count
    for number in range(200):
        put(db, b"k", b"%d" % number)
    assert db.stats().page_count <= count + 4
    assert dict(reader.items()) == before
    pinned = db.stats().pinned_pages
    assert 0 < pinned < 20
    reader.close()
    put(db)
    put(db)
    assert db.stats().pinned_pages < pinned


def test_two_readers_pin_the_union_and_no_more(db):
    fill(db, 1000)
    first = db.read()
    fill(db, 1000, step=100)
    second = db.read()
    fill(db, 1000, size=99, step=90)
    both = content_of(first), content_of(second)
    count = db.stats().page_count
    for number in range(50):
        put(db, b"%06d" % 3, b"%d" % number)
    assert db.stats().page_count <= count + 8
    assert (content_of(first), content_of(second)) == both
    first.close()
    second.close()


def content_of(snapshot):
    return dict(snapshot.items())


@pytest.mark.guarantee
def test_the_free_tree_takes_what_the_carry_list_cannot_and_gives_it_back(db):
    fill(db, 5000)
    reader = db.read()
    for first in range(4):
        with db.write() as transaction:
            for number in range(first, 5000, 80):
                transaction[b"%06d" % number] = b"changed"
        assert db.check() == []
    meta = pager_of(db).meta
    assert meta.free.depth
    assert len(meta.carried) <= fmt.carry_capacity(SIZE)
    assert len(reader) == 5000
    put(db)  # the reader is still there: records are looked at in vain, a bounded number of them
    reader.close()
    count = db.stats().page_count
    for number in range(30):
        put(db, b"large", b"%d" % number * 20_000)
        assert db.check() == []
    assert db.stats().page_count <= count + 2 * 25
    with db.write() as transaction:
        transaction.clear()
    put(db)
    assert db.stats().used_pages < 5


def test_a_lazy_meta_is_whole_in_what_the_system_writes_whole():
    """The story (fuzz/kill): a kill in the middle of a lazy meta tore it, and took the lazy commits before it along."""
    db = opened(MemoryDisk(), page_size=16384)
    fill(db, 60_000)
    with db.read(), db.write() as transaction:
        for number in range(0, 60_000, 300):
            transaction[b"%06d" % number] = b"changed"
    assert len(pager_of(db).meta.carried) > fmt.carry_capacity(4096), "a durable one may be longer"
    for _ in range(3):
        for number in range(40):
            with db.write(durability="lazy") as transaction:
                transaction[b"%06d" % (number * 1499)] = b"lazy"
            assert len(pager_of(db).meta.carried) <= fmt.carry_capacity(4096)
        assert db.check() == []
    db.close()


def test_free_records_that_a_reader_holds_are_not_searched_over_and_over(db, monkeypatch):
    fill(db, 20_000)
    reader = db.read()
    for first in range(0, 120, 40):
        with db.write() as transaction:
            for number in range(first, 20_000, 120):
                transaction[b"%06d" % number] = b"changed"
    looked = []
    real = Allocator._decode_record
    monkeypatch.setattr(
        Allocator, "_decode_record", lambda self, meta, key, value: looked.append(key) or real(self, meta, key, value)
    )
    for number in range(10):
        put(db, b"large%d" % number, b"x" * 1_000_000)
    assert 0 < len(looked) < 10
    reader.close()
    put(db, b"large", b"x" * 600_000)
    assert db.check() == []


def test_a_forged_record_of_the_free_tree_is_reported_before_it_is_used(disk, monkeypatch):
    db = opened(disk)
    fill(db, 5000)
    reader = db.read()
    for first in range(4):
        with db.write() as transaction:
            for number in range(first, 5000, 80):
                transaction[b"%06d" % number] = b"changed"
    reader.close()
    assert pager_of(db).meta.free.depth
    decode = Allocator._decode_record
    for flat in ((1, 1, 0, 0), (1 << 40, 1, 0, 0), (5, 1 << 40, 0, 0), (5, 0, 0, 0), (5, 1, 9, 3), (5, 1, 1, 1 << 40)):
        with monkeypatch.context() as patch:
            patch.setattr(
                Allocator,
                "_decode_record",
                lambda self, meta, key, value, flat=flat: decode(self, meta, key, fmt.runs_struct(1).pack(*flat)),
            )
            with pytest.raises(cowdb.CorruptionError, match="no sensible run"):
                put(db, b"large", b"x" * 3_000_000)
    put(db, b"large", b"x" * 3_000_000)
    assert db.check() == []
    db.close()


def test_a_carry_list_that_names_a_page_twice_is_damage_not_a_disaster(disk):
    db = opened(disk)
    put(db)
    put(db)
    pager = pager_of(db)
    meta, slot = pager.meta, pager.words.durable[1]
    vanish(db)

    free = meta.carried[0]
    twice = meta._replace(carry=fmt.pack_runs([*meta.carried, free]), durable=meta.transaction)
    storage = disk.open(PATH, read_only=False)
    storage.write(slot * SIZE, [meta_page.encode(twice, slot)])
    db = opened(disk)
    with pytest.raises(cowdb.CorruptionError, match="twice"):
        put(db)
    with pytest.raises(cowdb.CorruptionError, match="twice"):
        put(db)
    assert db[b"k"] == b"v"
    vanish(db)


@pytest.mark.guarantee
def test_an_abort_gives_back_all_that_it_took(db):
    """bbolt 797: the free list was not rolled back when a transaction was aborted."""
    fill(db, 300)
    before = db.stats()
    for _ in range(5):
        with pytest.raises(ZeroDivisionError), db.write() as transaction:
            transaction.clear()
            transaction[b"large"] = b"x" * 50_000
            raise ZeroDivisionError
    put(db)
    assert db.check() == []
    assert db.stats().page_count <= before.page_count + 8


# ---------------------------------------------------------------- early writes


@pytest.mark.parametrize("then", ["nothing", "a commit"])
def test_an_abort_cuts_off_what_early_writes_have_added(disk, then):
    """Also if the last commit before it found that there was nothing to cut."""
    db = opened(disk, memory_budget=SIZE * 4)
    for number in range(5):
        put(db, b"%d" % number, b"before")
    storage = pager_of(db).storage
    before = storage.size()
    transaction = db.write()
    for number in range(5000):
        transaction[b"%06d" % number] = b"x" * 200
    assert storage.size() > before + 300 * SIZE
    transaction.abort()
    if then == "a commit":
        put(db, b"4", b"after")
    assert storage.size() < before + 100 * SIZE
    assert db.check() == []
    vanish(db)


@pytest.mark.parametrize("end", ["commit", "abort", "error in commit"])
def test_a_transaction_larger_than_its_memory_is_written_early(disk, end):
    db = opened(disk, memory_budget=SIZE * 4)
    put(db, b"before", b"1")
    begin = len(disk.trace)
    transaction = db.write()
    tree = transaction.tree("t", create=True)
    expected = {}
    for number in range(2000):
        transaction[b"%06d" % (number * 37 % 1000)] = b"%d" % number * 10
        expected[b"%06d" % (number * 37 % 1000)] = b"%d" % number * 10
        if number % 10 == 0:
            tree[b"%d" % number] = b"x" * (number % 30) * 100
    assert "pages" in kinds(disk, begin)
    assert dict(transaction.items()) == {**expected, b"before": b"1"}
    assert content(db) == {None: {b"before": b"1"}}  # nobody else sees it
    assert db._core.pager.gate.users() == 1
    if end == "commit":
        transaction.commit()
        assert content(db)[None] == {**expected, b"before": b"1"}
        assert len(content(db)["t"]) == 200
    else:
        if end == "error in commit":
            pager_of(db).failpoint = lambda name: 1 / 0
            with pytest.raises(ZeroDivisionError):
                transaction.commit()
            pager_of(db).failpoint = lambda name: None
        transaction.abort()
        assert content(db) == {None: {b"before": b"1"}}
    assert db.check() == []
    put(db, b"after", b"2")
    assert db.check() == []
    db.close()


def test_numbers_of_a_commit_are_not_given_out_twice_when_it_fills_the_memory(disk):
    """The story: saving the free list, in the middle of a commit, began an early write. Pages were lost for ever."""
    db = opened(disk, memory_budget=SIZE * 3)
    with db.write() as transaction:
        for number in range(3000):
            transaction[b"%06d" % number] = b"v" * 100
            if number % 30 == 0:
                transaction.tree("t%d" % number, create=True)[b"k"] = b"v"
    reader = db.read()
    for first in range(3):
        with db.write() as transaction:
            for number in range(first, 3000, 45):
                transaction[b"%06d" % number] = b"c" * 100
                if number % 30 == 0:
                    transaction.tree("t%d" % number)[b"k"] = b"w"
        assert db.check() == []
    reader.close()
    with db.write() as transaction:
        transaction.update((b"%06d" % number, b"x" * 120) for number in range(3000))
    assert db.check() == []
    db.close()


# ---------------------------------------------------------------- the size of the file


def resizes(disk, begin=0):
    return [operation.size // SIZE for operation in disk.trace[begin:] if isinstance(operation, Resize)]


def test_the_file_grows_geometrically(db, disk):
    for number in range(600):
        put(db, b"%d" % number, b"x" * 3000)
    grown = resizes(disk)
    assert len(grown) < 60
    assert grown == sorted(grown)
    assert grown[-1] < db.stats().page_count * 1.3 + 40


@pytest.mark.guarantee
def test_the_file_shrinks_by_itself(db, disk):
    put(db, b"large", b"x" * 2_000_000)
    assert db.stats().file_size > 2_000_000
    del db[b"large"]
    put(db)
    put(db)
    put(db)
    assert db.stats().file_size < 200_000
    assert db[b"k"] == b"v"
    put(db, b"large", b"y" * 2_000_000)
    assert db[b"large"] == b"y" * 2_000_000


def test_a_sync_cuts_the_file_too(disk):
    db = opened(disk, durability="lazy")
    put(db, b"large", b"x" * 2_000_000, durability="lazy")
    with db.write() as transaction:
        transaction.clear()
        transaction[b"k"] = b"v"
    for _ in range(4):
        put(db, durability="lazy")
        db.sync()
    assert db.stats().file_size < 200_000
    assert db.check() == []
    db.close()


def test_the_file_is_not_cut_below_a_snapshot_that_is_read(db):
    fill(db, 200)
    put(db, b"large", b"x" * 2_000_000)
    reader = db.read()
    del db[b"large"]
    for _ in range(4):
        put(db)
    assert db.stats().file_size > 2_000_000
    assert reader[b"large"] == b"x" * 2_000_000
    reader.close()
    put(db)
    put(db)
    put(db)
    assert db.stats().file_size < 400_000


@pytest.mark.guarantee
def test_a_view_can_be_taken_after_the_file_was_cut(db):
    """The story: a view mapped as many bytes as its snapshot's mapping once had; the file had been cut since then."""
    put(db, b"view", b"V" * 20_000)
    put(db, b"large", b"x" * 2_000_000)
    del db[b"large"]
    for _ in range(3):
        put(db)
    assert db.stats().file_size < 400_000
    with db.read() as snapshot:
        view = snapshot.get_view(b"view")
    assert view == b"V" * 20_000
    view.release()


def test_a_clean_close_cuts_the_tail_and_leaves_nothing_to_verify(disk):
    db = opened(disk)
    fill(db, 2000)
    with db.write() as transaction:
        transaction.delete_range(b"000100", None)
    put(db)
    put(db)
    db.close()
    state = believe(disk.open(PATH, read_only=True))
    assert state.meta.durable == state.meta.transaction
    size = len(disk.content(PATH)) // SIZE
    assert state.meta.page_count <= size <= state.meta.page_count + 4 + state.meta.page_count // 8
    assert [meta.transaction for meta in (state.meta, state.other)] == [state.meta.transaction] * 2


def test_who_never_wrote_writes_nothing_at_the_end(disk):
    opened(disk).close()
    count = len(disk.trace)
    opened(disk).close()
    assert len(disk.trace) == count


def test_a_commit_while_another_flush_runs_is_not_begun(disk):
    """P5: no meta is written between the beginning and the end of a flush."""
    db = opened(disk)
    put(db)
    running = False
    for operation in disk.trace:
        if isinstance(operation, FlushBegin):
            running = True
        elif isinstance(operation, FlushEnd):
            running = False
        elif isinstance(operation, Write):
            assert not running
    db.close()


# ---------------------------------------------------------------- ids


def test_ids_never_have_only_zeros_in_their_low_half():
    """Zero means "not met yet" in the array of verified births."""
    from cowdb.pager import _next_id

    assert _next_id(1) == 2
    assert _next_id((1 << 32) - 1) == (1 << 32) + 1
    assert _next_id((5 << 32) - 2) == (5 << 32) - 1


def test_an_id_is_not_used_again_in_a_process_once_pages_were_written_under_it(db):
    put(db)
    pager_of(db).failpoint = lambda name: 1 / 0 if name == "hand on" else None
    with pytest.raises(ZeroDivisionError):
        put(db, b"k", b"lost")
    pager_of(db).failpoint = lambda name: None
    with db.write() as transaction:
        assert transaction.id == 4
        transaction[b"k"] = b"w"
    assert db[b"k"] == b"w"


def test_verification_can_be_left_out():
    disk = MemoryDisk()
    db = opened(disk)
    put(db, b"k", b"v" * 50)
    number = pager_of(db).meta.main.root.number
    db.close()
    raw = disk.content(PATH)
    at = raw.index(b"v" * 50, number * SIZE)
    disk.open(PATH, read_only=False).write(at, [b"w"])
    db = opened(disk)
    with pytest.raises(cowdb.CorruptionError):
        db[b"k"]
    db.close()
    db = opened(disk, verify=False)
    assert db[b"k"] == b"w" + b"v" * 49
    db.close()
