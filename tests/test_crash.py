"""Power cuts at every moment of small and larger workloads, on a disk that remembers every store.

The oracle is in `crashing`; the legal states are those of `docs/crash-model.md`.  The last part proves the oracle: bugs
are put into the engine, and each must be caught.  Longer sequences:  python tests/test_crash.py 3
"""

from __future__ import annotations

import errno
import itertools
import os
import sys

import pytest
from crashing import Run, content, cut_everywhere, cut_twice, judge, live, opened, running, sequences, vanish

import cowdb
from cowdb import format as fmt
from cowdb import kernel, recovery
from cowdb import meta as meta_page
from cowdb import pager as pager_module
from cowdb.freelist import FreeList
from cowdb.kernel import Gate
from cowdb.pager import Pager
from cowdb.sharing import LocalSharing
from cowdb.testing import HOSTILE, CrashDisk, FaultyDisk, FlushEnd, Resize, Write
from cowdb.testing.crash import CrashStorage

pytestmark = pytest.mark.untraced

# ---------------------------------------------------------------- workloads


def small_and_large(run):
    run.put(b"a", b"1")
    run.put(b"large", b"2" * 9000)
    run.put(b"a", b"3")
    run.put(b"large", b"4" * 5000)
    run.delete(b"large")
    run.delete(b"a")


def ranges(run):
    run.fill(150)
    run.delete_range(b"000010", b"000140")
    run.fill(60, first=200)
    run.delete_range(None, None)


def trees(run):
    run.put(b"k", b"v", tree="one")
    run.put(b"k", b"v" * 3000, tree="two")
    run.put(b"k", b"w", tree="one")
    run.drop("two")
    run.put(b"k", b"again", tree="two")
    run.drop("one")


def long_reader(run):
    run.fill(60)
    run.begin_reader()
    for number in range(4):
        run.put(b"%06d" % number, b"new")
    run.begin_reader()
    run.delete_range(b"000010", None)
    run.end_reader()
    run.put(b"x", b"y" * 4500)
    run.end_reader()
    run.put(b"z", b"")


def lazy(run):
    for number in range(3):
        run.put(b"%d" % number, b"lazy", durability="lazy")
    run.sync()
    run.put(b"large", b"l" * 6000, durability="lazy")
    run.delete(b"0", durability="lazy")
    run.put(b"3", b"full")
    run.put(b"4", b"lazy", durability="lazy")
    run.put(b"5", b"lazy", durability="lazy")
    run.close()
    run.open()
    run.put(b"6", b"lazy", durability="lazy")


def reopened(run):
    run.put(b"a", b"1")
    run.reopen()
    run.put(b"b", b"2" * 3000)
    run.reopen()
    run.reopen()
    run.delete(b"a")
    run.close()
    run.open()


def killed(run):
    """The process dies now and then; the page cache survives."""
    run.put(b"a", b"1")
    for number in range(3):
        run.put(b"b%d" % number, b"2" * 2000, durability="full" if number else "lazy")
        vanish(run.db)
        run.open()
    run.put(b"c", b"3", durability="lazy")
    vanish(run.db)
    run.open()
    run.put(b"d", b"4")


def growth(run):
    run.fill(120, size=200)
    run.fill(120, size=200, first=120)
    run.put(b"huge", b"h" * 40_000)
    run.delete_range(b"000050", None)
    run.put(b"last", b"1")


def tail_cut(run):
    run.put(b"a", b"keep")
    run.put(b"z", b"h" * 1_200_000)
    run.delete(b"z")
    for number in range(3):
        run.put(b"%d" % number, b"cut")
    run.put(b"y", b"h" * 20_000)
    run.close()
    run.open()
    run.delete(b"y")


def scattered(run):
    """Many short runs, so that the carry list reaches into more than one sector of the meta page."""
    run.fill(300, size=200)
    run.begin_reader()
    for first in range(0, 30, 10):
        run.change(lambda transaction, model, first=first: spread(transaction, model, range(first, 300, 30)))
    run.end_reader()
    for number in range(4):
        run.put(b"%06d" % (number * 70), b"y")


def spread(transaction, model, numbers):
    for number in numbers:
        transaction.put(b"%06d" % number, b"changed")
        model[None][b"%06d" % number] = b"changed"


def free_tree(run):
    """So many runs are freed while a reader holds them that the carry list overflows."""
    run.fill(3000, size=100)
    run.begin_reader()
    for first in range(0, 60, 20):
        run.change(lambda transaction, model, first=first: spread(transaction, model, range(first, 3000, 60)))
    assert run.db._core.pager.meta.free.depth
    run.end_reader()
    for number in range(3):
        run.put(b"%06d" % number, b"once more")
    run.put(b"large", b"x" * 30_000)


WORKLOADS = [small_and_large, ranges, trees, long_reader, lazy, reopened, killed, growth, tail_cut, scattered]
SMALL = [small_and_large, trees, lazy, reopened, killed]
TUNING = {
    "plain": {},
    "two flushes": {"two_flush_limit": 0},
    "early writes": {"memory_budget": 9000},
}


def recorded(workload, **options):
    with running(**options) as run:
        workload(run)
    return run


@pytest.mark.guarantee
@pytest.mark.parametrize("workload", WORKLOADS, ids=lambda workload: workload.__name__)
def test_a_power_cut_leaves_the_last_acknowledged_state_or_the_one_in_flight(workload):
    assert cut_everywhere(recorded(workload), limit=40) > 20


@pytest.mark.guarantee
def test_a_power_cut_while_the_free_list_moves_to_its_tree():
    assert cut_everywhere(recorded(free_tree), limit=3, every=5) > 50


def test_the_workloads_do_what_their_names_say():
    def sizes(run):
        return [operation.size for operation in run.disk.trace if isinstance(operation, Resize)]

    assert sizes(recorded(growth)) == sorted(sizes(recorded(growth)))
    assert sizes(recorded(tail_cut)) != sorted(sizes(recorded(tail_cut)))
    flushes = [
        sum(isinstance(one, FlushEnd) for one in recorded(small_and_large, **TUNING[name]).disk.trace)
        for name in TUNING
    ]
    assert flushes[1] > flushes[0]
    writes = [sum(isinstance(one, Write) for one in recorded(growth, **TUNING[name]).disk.trace) for name in TUNING]
    assert writes[2] > writes[0]


@pytest.mark.guarantee
@pytest.mark.parametrize("tuning", ["two flushes", "early writes"])
@pytest.mark.parametrize(
    "workload", [small_and_large, ranges, lazy, growth, long_reader], ids=lambda work: work.__name__
)
def test_the_same_with_two_flushes_a_commit_and_with_early_writes(workload, tuning):
    run = recorded(workload, **TUNING[tuning])
    assert cut_everywhere(run, limit=20) > 20


@pytest.mark.guarantee
@pytest.mark.parametrize("kind", HOSTILE)
@pytest.mark.parametrize("workload", [small_and_large, lazy, long_reader], ids=lambda workload: workload.__name__)
def test_sectors_in_doubt_may_hold_anything(workload, kind):
    assert cut_everywhere(recorded(workload), limit=10, sector=512, hostile=(kind,)) > 50


def test_small_sectors_tear_a_page():
    assert cut_everywhere(recorded(small_and_large), limit=30, sector=512) > 100


def test_each_state_of_a_short_workload():
    """Exhaustive: every combination of old and new sectors, none left out."""
    with running() as run:
        run.put(b"a", b"1")
        run.put(b"b", b"2" * 5000)
    judged = 0
    for index in range(len(run.disk.trace) + 1):
        allowed = run.allowed(index)
        for image in run.disk.every_image(index, sector=4096):
            judge(image, allowed, create=None in allowed, live_on=judged % 4 == 0)
            judged += 1
    assert judged > 60


@pytest.mark.guarantee
@pytest.mark.parametrize("workload", SMALL, ids=lambda workload: workload.__name__)
def test_a_power_cut_during_the_recovery_of_another(workload):
    assert cut_twice(recorded(workload)) > 30


# ---------------------------------------------------------------- all short sequences

ALPHABET = {
    "put": lambda run: run.put(b"%d" % len(run.states), b"v" * 100),
    "large": lambda run: run.put(b"large", bytes([len(run.states)]) * 5000),
    "lazy": lambda run: run.put(b"lazy", b"%d" % len(run.states), durability="lazy"),
    "sync": Run.sync,
    "delete": lambda run: run.delete(next(iter(run.model[None]), b"none")),
    "clear": lambda run: run.delete_range(None, None),
    "tree": lambda run: run.put(b"k", b"%d" % len(run.states), tree="t"),
    "drop": lambda run: run.drop("t") if "t" in run.model else None,
    "reader": Run.begin_reader,
    "end reader": lambda run: run.end_reader() if run.readers else None,
    "reopen": Run.reopen,
    "grow": lambda run: run.put(b"grow", b"g" * 60_000),
    "many": lambda run: run.fill(120, size=60, first=len(run.states) * 100),
}


@pytest.mark.guarantee
def test_all_short_sequences_of_operations(depth=2):
    seen = set()
    judged = 0
    for names in sequences(ALPHABET, depth):
        with running() as run:
            run.put(b"first", b"1" * 1500)
            for name in names:
                ALPHABET[name](run)
        judged += cut_everywhere(run, limit=6, seen=seen)
    assert judged > 300 * depth


# ---------------------------------------------------------------- a flush that fails


@pytest.mark.guarantee
@pytest.mark.parametrize("after", ["reopen", "kill"])
@pytest.mark.parametrize("at", [1, 2])
def test_a_failed_flush_and_then_a_power_cut(at, after):
    """PostgreSQL's story of 2018: a flush fails, the next one says that all is well and has written nothing.

    What the page cache shows then is on the disk or not, for good.  So nothing is retried, and who opens the file next
    writes again what is not certain before building on it.
    """
    disk = CrashDisk()
    faulty = FaultyDisk(disk)
    with running(faulty, below=disk) as run:
        run.put(b"a", b"1" * 100)
        run.put(b"b", b"2" * 3000)
        fault = faulty.fail(errno.EIO, call="flush", at=at)
        with pytest.raises(cowdb.PoisonedError, match="unknown until"):
            for number in range(at):
                run.put(b"c%d" % number, b"3" * 3000)
        assert fault.fired == 1
        with pytest.raises(cowdb.PoisonedError):
            run.db.write()
        with pytest.raises(cowdb.PoisonedError):
            run.db.sync()
        if after == "kill":
            vanish(run.db)
        else:
            run.db.close()
        run.open()
        found = content(run.db)
        assert found in [state for _, state in run.states]
        run.model = found
        run.put(b"d", b"4")
        run.put(b"e", b"5" * 2500)
    assert cut_everywhere(run, limit=40) > 20


# ---------------------------------------------------------------- the oracle is proved: bugs that it must see


def ends_in_loss(workload, **options):
    """Whether the oracle finds something wrong with the workload."""
    try:
        run = recorded(workload, **options)
        for sector in (4096, 512):
            cut_everywhere(run, limit=60, sector=sector)
        cut_twice(run)
    except (AssertionError, cowdb.Error, KeyError, IndexError):
        return True
    return False


def no_flush(patch):
    patch.setattr(CrashStorage, "flush", lambda self: None)


def meta_into_one_slot(patch):
    real = Pager._write_meta

    def write(self, slot, raw, *state):
        real(self, 0, meta_page.encode(meta_page.decode(raw, slot), 0), *state)

    patch.setattr(Pager, "_write_meta", write)


def slots_by_parity(patch):
    real = Pager._write_meta

    def write(self, slot, raw, *state):
        meta = meta_page.decode(raw, slot)
        real(self, meta.transaction & 1, meta_page.encode(meta, meta.transaction & 1), *state)

    patch.setattr(Pager, "_write_meta", write)


def own_pages_used_at_once(patch):
    real = FreeList._take_in
    patch.setattr(FreeList, "_take_in", lambda self, runs, live: real(self, runs, []))


def durable_state_not_pinned(patch):
    patch.setattr(Pager, "live", lambda self: sorted({snap.meta.transaction for snap in self.gate.snapshots()}))


def published_state_not_pinned(patch):
    def live(self):
        used = {snap.meta.transaction for snap in self.gate._used if snap.users > (snap is self.gate._current)}
        return sorted(used | {self.words.durable[0]} - {self.meta.transaction})

    patch.setattr(Pager, "live", live)


def readers_not_pinned(patch):
    patch.setattr(Gate, "transactions", lambda self: [self._current.meta.transaction])


def young_pages_not_verified(patch):
    patch.setattr(recovery, "young_runs", lambda storage, meta: iter(()))


def only_roots_verified(patch):
    real = recovery._young_tree

    def root_only(*arguments, **options):
        yield from itertools.islice(real(*arguments, **options), 1)

    patch.setattr(recovery, "_young_tree", root_only)


def torn_meta_believed(patch):
    real = meta_page.decode

    def lenient(page, slot):
        page = bytearray(page)
        size = int.from_bytes(page[fmt.META.offset("page size") :][:4], "little")
        if size in fmt.PAGE_SIZES:
            page[:4] = meta_page.crc32c(memoryview(page)[4:size]).to_bytes(4, "little")
        return real(bytes(page), slot)

    patch.setattr(meta_page, "decode", lenient)


def page_lost_from_the_free_list(patch):
    real = FreeList.take

    def leaky(self, pages):
        taken = real(self, pages)
        real(self, 1)
        return taken

    patch.setattr(FreeList, "take", leaky)


def page_given_out_twice(patch):
    real = FreeList.take

    def twice(self, pages):
        taken = real(self, pages)
        for start, length in taken[:1]:
            self.add((start, length, 0, 0), [])
        return taken

    patch.setattr(FreeList, "take", twice)


def directory_not_flushed(patch):
    patch.setattr(CrashDisk, "flush_directory", lambda self, path: None)


def acknowledged_before_the_flush(patch):
    real = Pager._flush
    owed = []

    def late(self, *state):
        if owed:
            real(self, *state)
        owed.append(1)

    patch.setattr(Pager, "_flush", late)


def durable_is_the_transaction_before(patch):
    """The text of the first design: `durable` in a meta is simply the transaction before (P4)."""
    real = Pager._write_meta

    def write(self, slot, raw, *state):
        meta = meta_page.decode(raw, slot)
        real(self, slot, meta_page.encode(meta._replace(durable=meta.transaction - 1), slot), *state)

    patch.setattr(Pager, "_write_meta", write)


def sync_moves_nothing(patch):
    """After a sync the next lazy meta goes over the one that was just made durable."""

    def sync(self):
        if self._fresh_turn:
            self._recover()
        self.storage.flush()

    patch.setattr(Pager, "sync", sync)

    def forget(self, value):
        self.__dict__["durable"] = value and (value[0], 1)

    patch.setattr(LocalSharing, "durable", property(lambda self: self.__dict__["durable"], forget), raising=False)


IN_THE_FREE_LIST = (own_pages_used_at_once, page_lost_from_the_free_list, page_given_out_twice)
BUGS = [
    (no_flush, small_and_large),
    (meta_into_one_slot, small_and_large),
    (slots_by_parity, lazy),
    (own_pages_used_at_once, small_and_large),
    (durable_state_not_pinned, lazy),
    (published_state_not_pinned, small_and_large),
    (readers_not_pinned, long_reader),
    (young_pages_not_verified, small_and_large),
    (only_roots_verified, small_and_large),
    (page_lost_from_the_free_list, small_and_large),
    (page_given_out_twice, small_and_large),
    (directory_not_flushed, small_and_large),
    (acknowledged_before_the_flush, small_and_large),
    (durable_is_the_transaction_before, lazy),
    (sync_moves_nothing, lazy),
]


@pytest.mark.parametrize(("bug", "workload"), BUGS, ids=lambda value: value.__name__)
def test_the_oracle_sees_the_bug(monkeypatch, bug, workload):
    if kernel.FORM == "compiled" and bug in IN_THE_FREE_LIST:
        pytest.skip("the compiled free list cannot be patched")
    with monkeypatch.context() as patch:
        bug(patch)
        assert ends_in_loss(workload)


def test_the_oracle_sees_a_torn_meta_page_that_is_believed(monkeypatch):
    run = recorded(scattered)
    metas = [
        index + 1
        for index, operation in enumerate(run.disk.trace)
        if isinstance(operation, Write) and operation.offset < 2 * 4096 and index > len(run.disk.trace) // 2
    ]
    torn_meta_believed(monkeypatch)
    with pytest.raises(AssertionError):
        for index in metas:
            for image in run.disk.images(index, limit=60, sector=512, strategy="one_old_among_new"):
                judge(image, run.allowed(index), live_on=False)


@pytest.mark.parametrize("workload", [small_and_large, lazy, long_reader], ids=lambda workload: workload.__name__)
def test_without_a_bug_the_oracle_sees_nothing(workload):
    assert not ends_in_loss(workload)


@pytest.mark.parametrize("bug", ["no re-assertion", "a failed flush is retried"])
def test_the_oracle_sees_what_goes_wrong_after_a_failed_flush(monkeypatch, bug):
    with monkeypatch.context() as patch:
        if bug == "no re-assertion":
            patch.setattr(pager_module, "reassert", lambda storage, *_: storage.flush() or 1)
        else:
            real = Pager._flush

            def retry(self, *state):
                try:
                    self.storage.flush()
                except OSError:
                    real(self, *state)

            patch.setattr(Pager, "_flush", retry)
        with pytest.raises(AssertionError, match="after a power cut|is none of"):
            failed_flush()


def failed_flush():
    """A flush fails, the program opens the file again and goes on."""
    disk = CrashDisk()
    faulty = FaultyDisk(disk)
    with running(faulty, below=disk) as run:
        run.put(b"a", b"1" * 100)
        faulty.fail(errno.EIO, call="flush")
        try:
            run.put(b"b", b"2" * 3000)
        except cowdb.PoisonedError:
            run.db.close()
            run.open()
            run.model = content(run.db)
        run.put(b"c", b"3")
        run.put(b"d", b"4")
    cut_everywhere(run, limit=60)


def test_without_a_bug_the_failed_flush_loses_nothing():
    failed_flush()


# ---------------------------------------------------------------- the oracle's own tools


def test_the_allowed_states_follow_the_promises():
    with running() as run:
        begun = run.now
        run.put(b"a", b"1")
        assert run.allowed(0) == [None, {None: {}}]
        assert run.allowed(begun) == [{None: {}}]
        assert run.allowed(run.now - 1) == [{None: {}}, {None: {b"a": b"1"}}]
        assert run.allowed(run.now) == [{None: {b"a": b"1"}}]
        run.put(b"a", b"2", durability="lazy")
        run.put(b"a", b"3", durability="lazy")
        assert [state[None][b"a"] for state in run.allowed(run.now)] == [b"1", b"2", b"3"]
        run.sync()
        assert run.allowed(run.now) == [{None: {b"a": b"3"}}]


def test_no_lines_are_counted_while_states_are_searched():
    """They took more than half of the time; see the mark `untraced`."""
    assert sys.gettrace() is None
    assert "COVERAGE_PROCESS_CONFIG" not in os.environ


def test_life_after_death_changes_what_it_says_that_it_changes():
    disk = CrashDisk()
    db = opened(disk)
    after = live(db, {None: {}})
    assert content(db) == after
    assert len(after[None]) == 3
    db.close()


if __name__ == "__main__":
    test_all_short_sequences_of_operations(int(sys.argv[1]) if sys.argv[1:] else 3)
