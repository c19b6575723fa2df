"""Every order in which a reader of one process and a writer of another can touch what they share (I2, P6, P9).

Two cores on one file in one process act like two processes: their locks belong to two descriptions.  The shared
words, the size of the file and its mapping are wrapped with yield points; a scheduler hands a baton from one thread
to the other there, and goes through all schedules with a few switches by backtracking.  (Nearly all real bugs of this
kind need no more than two.)

    reader    load published . [load copy .] store pin . load published . read
    writer    store published . scan pins . write pages . store published . scan pins . cut
"""

from __future__ import annotations

import threading

import pytest

import cowdb
from cowdb import database as database_module
from cowdb.lockfile import _BLOCKS_AT, _PUBLISHED
from cowdb.readers import Gate

FIRST_PIN = _BLOCKS_AT // 8
LIMIT = 3000


class Scheduler:
    """Runs actors so that one at a time goes on, and goes through all ways of choosing."""

    def __init__(self, switches=3):
        self.switches = switches  # an actor that could go on gives the baton away at most so often
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


class PausingStorage:
    """A storage with yield points where the file is measured, mapped and cut."""

    def __init__(self, storage, pause):
        self._storage = storage
        self._pause = pause

    def __getattr__(self, name):
        return getattr(self._storage, name)

    def map(self, length):
        self._pause()
        return self._storage.map(length)

    def resize(self, size):
        self._pause()
        self._storage.resize(size)


class Two:
    """A writing and a reading "process" on one file."""

    def __init__(self, path):
        self.scheduler = Scheduler()
        self.writer = cowdb.open(path, page_size=4096, durability="lazy")
        hidden = dict(database_module._cores)
        database_module._cores.clear()  # the second one must not find the first one's core
        self.reader = cowdb.open(path)
        self.hidden, self.seen = hidden, dict(database_module._cores)
        database_module._cores.update({(*key, "writer"): core for key, core in hidden.items()})
        for core in hidden.values():
            core.key = (*core.key, "writer")
        self.states = {}
        self.number = 0
        self.writer[b"first"] = b"0"
        self.writer.sync()
        self.reader.read().close()  # claims the block
        pause = self.scheduler.pause
        for db, loads in ((self.writer, False), (self.reader, True)):
            words = db._core.pager.words.words
            words._words = Words(words._words, pause, loads=loads)
        self.words = self.reader._core.pager.words.words
        self.words._mapping = Copies(self.words._mapping, pause)

    def pausing_files(self):
        for db in (self.writer, self.reader):
            db._core.pager.storage = PausingStorage(db._core.pager.storage, self.scheduler.pause)

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
        try:
            found = dict(snapshot.items())
        except cowdb.Error:
            return False
        return found == {b"first": b"%d" % number, b"long": b"%d" % (number % 10) * (4096 * pages - 100)}

    def close(self):
        for db in (self.writer, self.reader):
            words = db._core.pager.words.words
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


def explore(two, write, *, prepare=lambda: None, limit=LIMIT):
    """All schedules of a reader that begins and `write`; (schedules whose snapshot broke, transactions that were read)."""
    broken, behind = [], set()
    scheduler = two.scheduler
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

    def begin(self):
        with self._lock:
            snapshot = self._current
            if snapshot.word != self._sharing.published:
                snapshot = self._current = self._newest(snapshot)
            if not snapshot.users:
                snapshot.pin = self._sharing.pin(snapshot.meta.transaction, snapshot.meta.page_count)
                self._used.add(snapshot)
            snapshot.users += 1
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


@pytest.mark.guarantee
def test_no_schedule_lets_a_reader_stumble_over_a_file_that_is_cut(two):
    """P9: the file grows and is cut while the reader measures it, maps it and says what it uses."""
    two.pausing_files()
    sizes = set()

    def prepare():
        two.commit(pages=300)
        two.commit(pages=300)

    def write():
        for _ in range(4):
            two.commit()
            sizes.add(two.writer._core.pager.storage.size())

    broken, _ = explore(two, write, prepare=prepare, limit=300)
    assert broken == []
    assert len(sizes) > 1, "it was never cut"
