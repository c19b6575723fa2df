"""Every order in which a reader of one process and a writer of another can touch what they share (I2, P6, P9).

Two cores on one file in one process act like two processes: their locks belong to two descriptions.  The shared
words, the size of the file and its mapping are wrapped with yield points; a scheduler hands a baton from one thread
to the other there, and goes through all schedules with a few switches by backtracking.  (Nearly all real bugs of this
kind need no more than two.)  Three switches while a reader registers, two where the file changes its size; more by
hand: ``python tests/test_interleavings.py --switches 4``.

    reader    load published . [load copy .] store pin . load published . read
              measure . map . measure again . [take the mapping that there is]
    writer    store published . scan pins . write pages . store published . scan pins . cut, or grow
"""

from __future__ import annotations

import argparse
import os
import tempfile
import threading
import time

import pytest

import cowdb
from cowdb import core as core_module
from cowdb.lockfile import _BLOCKS_AT, _PUBLISHED
from cowdb.readers import Gate

FIRST_PIN = _BLOCKS_AT // 8
LIMIT = 3000
SWITCHES = 3
FILE_SWITCHES = 2


class Scheduler:
    """Runs actors so that one at a time goes on, and goes through all ways of choosing."""

    def __init__(self, switches=None):
        self.switches = switches or SWITCHES  # an actor that could go on gives the baton away at most so often
        self.choices = []  # (chosen, of how many), of the schedule that runs
        self._prefix = []
        self._back = threading.Semaphore(0)
        self._go = {}
        self.schedules = 0

    def pause(self):
        """A yield point: another actor may go on here."""
        go = self._go.get(threading.get_ident())
        if go is not None:
            self._back.release()
            assert go.acquire(timeout=5)

    def run(self, *actors):
        """One schedule; the actors' results."""
        results = [None] * len(actors)
        gates = [threading.Semaphore(0) for _ in actors]
        done = [False] * len(actors)

        def work(number):
            self._go[threading.get_ident()] = gates[number]
            gates[number].acquire()
            try:
                results[number] = actors[number]()
            except BaseException as error:  # noqa: BLE001 - the test looks at it
                results[number] = error
            del self._go[threading.get_ident()]
            done[number] = True
            self._back.release()

        threads = [threading.Thread(target=work, args=(number,), daemon=True) for number in range(len(actors))]
        for thread in threads:
            thread.start()
        self.choices = []
        last = switches = 0
        while not all(done):
            ready = [number for number, ended in enumerate(done) if not ended]
            if last in ready:
                ready.remove(last)
                ready = [last, *ready] if switches < self.switches or not self.choices else [last]
            step = len(self.choices)
            chosen = self._prefix[step] if step < len(self._prefix) else 0
            self.choices.append((chosen, len(ready)))
            switches += bool(self.choices[1:]) and chosen > 0
            last = ready[chosen]
            gates[last].release()
            assert self._back.acquire(timeout=5), "an actor waits for the other one"
        for thread in threads:
            thread.join()
        self.schedules += 1
        return results

    def more(self):
        """True if there is another schedule; `run` takes it then."""
        while self.choices:
            chosen, ways = self.choices.pop()
            if chosen + 1 < ways:
                self._prefix = [way for way, _ in self.choices] + [chosen + 1]
                return True
        return False


class Words:
    """The shared words, with a yield point before each one that matters."""

    def __init__(self, words, pause, *, loads):
        self._words = words
        self._pause = pause
        self._loads = loads

    def __getitem__(self, where):
        if isinstance(where, slice) or (self._loads and where == _PUBLISHED):
            self._pause()
        return self._words[where]

    def __setitem__(self, where, value):
        if where == _PUBLISHED or where >= FIRST_PIN:
            self._pause()
        self._words[where] = value

    def release(self):
        self._words.release()


class Copies:
    """The mapping of the lock file, with a yield point before a published copy is read."""

    def __init__(self, mapping, pause):
        self._mapping = mapping
        self._pause = pause

    def __len__(self):
        return len(self._mapping)

    def __getitem__(self, where):
        self._pause()
        return self._mapping[where]

    def __setitem__(self, where, value):
        self._mapping[where] = value

    def close(self):
        self._mapping.close()


class PausingStorage:
    """A storage with yield points where the file is measured, mapped and cut."""

    def __init__(self, storage, pause):
        self._storage = storage
        self._pause = pause

    def __getattr__(self, name):
        return getattr(self._storage, name)

    def size(self):
        self._pause()
        return self._storage.size()

    def map(self, length):
        self._pause()
        mapping = self._storage.map(length)
        self._pause()
        return mapping

    def resize(self, size):
        self._pause()
        self._storage.resize(size)


class Two:
    """A writing and a reading "process" on one file."""

    def __init__(self, path):
        self.path = path
        self.scheduler = Scheduler()
        self.writer = self.process("writer", page_size=4096, durability="lazy")
        self.reader = self.process("reader")
        self.states = {}
        self.number = 0
        self.writer[b"first"] = b"0"
        self.writer.sync()
        self.reader.read().close()  # claims the block
        self.watched = []
        self.watch(self.writer, loads=False)
        self.words = self.watch(self.reader, loads=True)
        self.words._mapping = Copies(self.words._mapping, self.scheduler.pause)

    def process(self, name, **options):
        """A handle with a core of its own, which nobody finds who opens the file next."""
        db = cowdb.open(self.path, **options)
        core = db._core
        del core_module.cores[core.key]
        core.key = (*core.key, name)
        core_module.cores[core.key] = core
        return db

    def watch(self, db, *, loads):
        words = db._core.pager.words.words
        words._words = Words(words._words, self.scheduler.pause, loads=loads)
        db._core.pager.gate.let_go()  # the compiled one has looked at the words, and would go past these
        self.watched.append(words)
        return words

    def pausing_files(self):
        self.scheduler.switches = min(self.scheduler.switches, FILE_SWITCHES)
        for db in (self.writer, self.reader):
            pager = db._core.pager
            pager.storage = pager.extent.storage = PausingStorage(pager.storage, self.scheduler.pause)

    def commit(self, pages=1):
        """A lazy transaction that writes every page anew, so that the last state's can be used again."""
        self.number += 1
        with self.writer.write() as transaction:
            transaction[b"first"] = b"%d" % self.number
            transaction[b"long"] = b"%d" % (self.number % 10) * (4096 * pages - 100)
            self.states[transaction.id] = (self.number, pages)

    def right(self, snapshot):
        """True if `snapshot` shows what its transaction wrote."""
        number, pages = self.states[snapshot.id]
        size = os.path.getsize(self.path)
        pages_of_it = snapshot._snapshot.meta.page_count
        if size < pages_of_it * 4096 or snapshot.space.pages < pages_of_it:
            return False  # to look would kill the process
        try:
            found = dict(snapshot.items())
        except cowdb.Error:
            return False
        return found == {b"first": b"%d" % number, b"long": b"%d" % (number % 10) * (4096 * pages - 100)}

    def close(self):
        for words in self.watched:
            if isinstance(words._words, Words):  # else its handle was closed
                words._words = words._words._words
        self.words._mapping = self.words._mapping._mapping
        self.reader.close()
        assert self.writer.check() == []
        self.writer.close()


@pytest.fixture
def two(tmp_path):
    two = Two(tmp_path / "test.cowdb")
    yield two
    two.close()


def explore(two, write, *, prepare=lambda: None):
    """Schedules of a reader that begins and `write`; (schedules whose snapshot broke, transactions that were read)."""
    broken, behind = [], set()
    scheduler = two.scheduler
    limit = LIMIT
    while True:
        prepare()
        two.reader.read().close()  # so that each schedule begins alike
        before = two.writer._core.pager.meta.transaction
        snapshot, error = scheduler.run(two.reader.read, write)
        assert error is None, (error, scheduler.choices)
        assert not isinstance(snapshot, BaseException), (snapshot, scheduler.choices)
        behind.add(snapshot.id - before)
        if not two.right(snapshot):
            broken.append([chosen for chosen, _ in scheduler.choices])
            limit = 0  # one is enough
        snapshot.close()
        if not scheduler.more() or scheduler.schedules >= limit:
            return broken, behind


def two_commits(two):
    def write():
        two.commit()
        two.commit()

    return write


@pytest.mark.untraced
@pytest.mark.guarantee
def test_no_schedule_lets_the_writer_reuse_a_page_that_the_reader_sees(two):
    two.commit()
    two.commit()
    broken, behind = explore(two, two_commits(two))
    assert broken == []
    assert behind == {0, 1, 2}, "the schedules do not reach every state"
    assert 100 < two.scheduler.schedules < LIMIT, "not all schedules were tried"


def test_a_reader_that_does_not_look_again_is_found(two, monkeypatch):
    """The seeded bug: it says what it uses, and trusts that this is still the newest."""

    def begin(self, held=None):
        with self._lock:
            snapshot = self._current
            if snapshot.word != self._sharing.published:
                snapshot = self._current = self._newest(snapshot)
            if not snapshot.users:
                snapshot.pin = self._sharing.pin(snapshot.meta.transaction, snapshot.meta.page_count)
                self._used.add(snapshot)
            snapshot.users += 1
            if held is not None:
                held.append(snapshot)
            return snapshot

    two.commit()
    two.commit()
    monkeypatch.setattr(Gate, "begin", begin)
    broken, _ = explore(two, two_commits(two))
    assert broken


def test_a_writer_that_looks_before_it_publishes_is_found(two, monkeypatch):
    """The seeded bug: the pins are scanned once, before the states that they must protect are replaced."""
    two.commit()
    two.commit()
    sharing = two.writer._core.pager.words
    others = sharing.others
    stale = []

    def write():
        stale[:] = [others()]
        two.commit()
        two.commit()

    monkeypatch.setattr(sharing, "others", lambda: stale[0] if stale else others())
    broken, _ = explore(two, write)
    assert broken


def large_and_small(two, sizes):
    """The file is large, then the writer makes it small; `sizes` gets what it was in between."""
    two.pausing_files()

    def prepare():
        two.commit(pages=300)
        two.commit(pages=300)

    def write():
        for _ in range(4):
            two.commit()
            sizes.add(os.path.getsize(two.path))

    return prepare, write


@pytest.mark.untraced
@pytest.mark.guarantee
def test_no_schedule_lets_a_reader_stumble_over_a_file_that_is_cut(two):
    """P9: the file grows and is cut while the reader measures it, maps it and says what it uses."""
    sizes = set()
    prepare, write = large_and_small(two, sizes)
    broken, behind = explore(two, write, prepare=prepare)
    assert broken == []
    assert len(sizes) > 1, "it was never cut"
    assert behind == {0, 1, 2, 3, 4}
    assert 200 < two.scheduler.schedules < LIMIT, "not all schedules were tried"


@pytest.mark.untraced
def test_a_snapshot_that_is_open_keeps_the_file_under_every_schedule(two):
    """The reader has one snapshot of the large file, and begins another one while the file becomes small."""
    sizes = set()
    prepare, write = large_and_small(two, sizes)
    held = []

    def prepare_and_hold():
        for snapshot in held:
            assert two.right(snapshot)
            snapshot.close()
        prepare()
        held[:] = [two.reader.read()]

    broken, _ = explore(two, write, prepare=prepare_and_hold)
    assert broken == []
    assert min(sizes) >= 300 * 4096, "the snapshot's pages are above that"
    assert two.right(held[0])
    held[0].close()


def test_a_writer_that_cuts_without_a_look_at_the_pins_is_found(two, monkeypatch):
    """The seeded bug: the file is cut down to what this process itself needs."""
    pager = two.writer._core.pager
    monkeypatch.setattr(pager, "_pages_in_use", lambda snapshots: pager.meta.page_count)
    prepare, write = large_and_small(two, set())
    broken, _ = explore(two, write, prepare=prepare)
    assert broken


def test_a_mapping_of_a_file_that_was_cut_under_it_is_made_anew(two):
    """Between the measuring and the mapping, and right after it, a cut leaves nothing mapped beyond the end."""
    sizes = set()
    prepare, write = large_and_small(two, sizes)
    pager = two.reader._core.pager
    prepare()
    for calls in range(1, 4):
        prepare()
        storage = pager.storage._storage
        left = [calls]

        class Cutting(PausingStorage):
            def __init__(self, storage, left=left):
                super().__init__(storage, lambda: self.count(left))

            def count(self, left):
                left[0] -= 1
                if not left[0]:
                    write()

        pager.storage = pager.extent.storage = Cutting(storage)
        meta = pager.meta
        left[0] = calls
        space = pager.extent.cover(meta, None)
        assert left[0] <= 0
        assert len(space.data) <= os.path.getsize(two.path)
        pager.storage = pager.extent.storage = PausingStorage(storage, two.scheduler.pause)


@pytest.mark.untraced
@pytest.mark.guarantee
def test_no_schedule_lets_a_reader_miss_pages_by_which_the_file_has_grown(two):
    """The file grows while the reader measures it and maps it: a mapping that is too short is not kept."""
    two.pausing_files()
    grown = set()
    turn = 0

    def prepare():
        for _ in range(5):
            two.commit()

    def write():
        nonlocal turn
        turn += 1
        before = os.path.getsize(two.path)
        two.commit(pages=60 + turn % 7)
        two.commit(pages=130 + turn % 7)
        grown.add(os.path.getsize(two.path) - before)

    broken, behind = explore(two, write, prepare=prepare)
    assert broken == []
    assert behind == {0, 1, 2}
    assert 150 < two.scheduler.schedules < LIMIT, "not all schedules were tried"
    assert max(grown) > 0, "it never grew"


def test_a_reader_that_keeps_a_mapping_that_is_too_short_is_found(two, monkeypatch):
    """The seeded bug: the mapping of the snapshot before is taken, although the file has grown."""
    two.pausing_files()
    pager = two.reader._core.pager
    space_for = pager.extent.cover
    monkeypatch.setattr(pager.gate, "_mapper", lambda meta, before: before or space_for(meta, None))
    two.commit()
    broken, _ = explore(two, lambda: two.commit(pages=2000))
    assert broken


@pytest.mark.untraced
@pytest.mark.parametrize(("point", "newest"), [("write meta", 2), ("publish", 3)])
def test_no_schedule_lets_a_takeover_disturb_a_reader(two, point, newest):
    """P3: a writer dies at a point of its commit, another process takes over and writes, a third one begins to read."""
    two.commit()
    two.commit()
    two.scheduler.switches = min(two.scheduler.switches, FILE_SWITCHES)
    first, pager = two.writer, two.writer._core.pager
    third = two.process("third", durability="lazy")
    two.watch(third, loads=False)

    def failpoint(name):
        if name == point:
            raise KeyboardInterrupt

    def prepare():
        # Who has died is poisoned, and its locks are free; here it comes back to life for the next schedule.
        two.writer, pager.poison.reason = first, None
        two.commit()
        pager.failpoint = failpoint
        with pytest.raises(KeyboardInterrupt):
            two.commit()
        pager.failpoint = lambda _: None
        two.writer = third
        assert third._core.pager.words.busy

    def write():
        two.commit()
        two.commit()

    try:
        broken, behind = explore(two, write, prepare=prepare)
        assert broken == []
        assert behind >= {0, newest}
        assert max(behind) == newest, "the takeover publishes what the dead one had written to its end"
        assert third.check() == []
    finally:
        two.writer, pager.poison.reason = first, None
        third.close()


def everything(switches):
    """All schedules of each kind with so many switches; by hand, it takes minutes."""
    global SWITCHES, FILE_SWITCHES, LIMIT
    SWITCHES, FILE_SWITCHES, LIMIT = switches, switches, 1_000_000
    growth = {"registration": two_commits, "cut": None, "growth": None}
    for kind in growth:
        with tempfile.TemporaryDirectory() as scratch:
            two = Two(os.path.join(scratch, "test.cowdb"))
            two.commit()
            two.commit()
            begun = time.perf_counter()
            prepare, write = lambda: None, two_commits(two)
            if kind == "cut":
                prepare, write = large_and_small(two, set())
            elif kind == "growth":
                two.pausing_files()

                def prepare(two=two):
                    for _ in range(5):
                        two.commit()

                def write(two=two):
                    two.commit(pages=60 + two.number % 7)
                    two.commit(pages=130 + two.number % 7)

            broken, behind = explore(two, write, prepare=prepare)
            seconds = time.perf_counter() - begun
            print(
                f"{kind}: {two.scheduler.schedules} schedules, {len(broken)} broken, states {sorted(behind)}, {seconds:.0f} s"
            )
            two.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--switches", type=int, default=SWITCHES)
    everything(parser.parse_args().switches)
