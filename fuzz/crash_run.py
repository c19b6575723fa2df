"""Small workloads with a model beside them, and the oracle that judges what a power cut has left.

A `Workload` drives a database on a disk that records every store.  Its `History`
knows for each transaction at which length of the trace it was begun, and from which
length on it is promised to survive; so it knows which states are allowed when
the power is cut:

    trace      0 ......... 12 ........ 20 ........ 31
    states     empty       A begun     A durable   B begun
    allowed    empty       empty, A    A           A, B

`survive` is the oracle: open, read everything, check; then three more commits,
reopen, read, check again, because damage to the free list shows late.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import cowdb
from cowdb import backup
from cowdb import core as core_module
from cowdb.database import Database, open_on
from cowdb.opening import empty_image
from cowdb.testing import CrashDisk
from fuzz.crash_disk import PAGE, LazyDisk, LazyFile, Situation, replaced

__all__ = ["ALPHABET", "PATH", "TUNINGS", "History", "Model", "Verdict", "Workload", "empty", "run_words", "survive"]

PATH: Final = "/db"
Model = dict[str | None, dict[bytes, bytes]]
"""What a database holds: the main tree under None, each named tree under its name."""

TUNINGS: Final[dict[str, dict[str, int]]] = {
    "plain": {},
    "two": {"two_flush_limit": 0},
    "early": {"memory_budget": 9000},
}
"""Ways to open: as it comes; two flushes in each commit; dirty pages written early."""

_PATIENCE: Final = 20.0


def clock() -> int:
    """A clock that stands still, so that a workload gives the same trace again."""
    return 1_700_000_000_000_000_000


def opened(disk: Any, **options: Any) -> Database:
    """The database on a disk, the same to the byte each time."""
    return open_on(disk, PATH, clock=clock, database_id=bytes(range(16)), **{"page_size": PAGE, **options})


def empty() -> Situation:
    """A new database, durable."""
    image = empty_image(PAGE, bytes(range(16)), clock())
    return Situation((2,), {0: (image[:PAGE],), 1: (image[PAGE:],)})


def content(db: Database) -> Model:
    """Everything in it."""
    with db.read() as snapshot:
        found: Model = {None: dict(snapshot.items())}
        for name in snapshot.trees():
            found[name] = dict(snapshot.tree(name).items())
    return found


def vanish(db: Database) -> None:
    """The process is gone: nothing is closed, nothing is written."""
    core, db._core = db._core, None
    if core is not None:
        core_module.cores.pop(core.key, None)


@dataclass
class History:
    """The states that a database goes through, oldest first, with the lengths of the trace at which they begin."""

    states: list[tuple[int, Model]]
    promised: list[tuple[int, int]] = field(default_factory=lambda: [(0, 0)])

    def begin(self, at: int, state: Model) -> int:
        """`state` may be found from here on; its number."""
        self.states.append((at, state))
        return len(self.states) - 1

    def promise(self, at: int, number: int | None = None) -> None:
        """The state with this number, or the newest, survives from here on."""
        self.promised.append((at, len(self.states) - 1 if number is None else number))

    def allowed(self, at: int) -> list[Model]:
        """What a power cut behind `at` steps may leave, oldest first."""
        least = max(number for when, number in self.promised if when <= at)
        return [state for number, (begun, state) in enumerate(self.states) if number >= least and begun <= at]


# ---------------------------------------------------------------- workloads


class Workload:
    """A database on a recording disk, its model, and the open readers with what they must go on to see."""

    def __init__(self, tuning: str = "plain") -> None:
        self.file = LazyFile(empty())
        self.disk = LazyDisk(self.file)
        self.options = TUNINGS[tuning]
        self.model: Model = {None: {}}
        self.history = History([(0, self.model)])
        self.readers: list[tuple[Any, Model]] = []
        self.words = 0
        self.wrote = False
        """Whether this session has begun to write; only then does a clean end make durable what it found."""
        self.db = opened(self.disk, **self.options)

    @property
    def now(self) -> int:
        """The length of the trace."""
        return len(self.file.trace)

    def change(self, work: Callable[[Any, Model], None], durability: str = "full") -> None:
        """One transaction; `work` changes it and the model alike."""
        after = {name: dict(tree) for name, tree in self.model.items()}
        self.wrote = True
        with self.db.write(durability=durability) as transaction:
            work(transaction, after)
            number = self.history.begin(self.now, after)
        self.model = after
        if durability == "full":
            self.history.promise(self.now, number)

    def put(self, key: bytes, value: bytes, durability: str = "full", tree: str | None = None) -> None:
        """One entry, in a transaction of its own."""

        def work(transaction: Any, model: Model) -> None:
            target = transaction if tree is None else transaction.tree(tree, create=True)
            target.put(key, value)
            model.setdefault(tree, {})[key] = value

        self.change(work, durability)

    def delete(self, key: bytes, durability: str = "full") -> None:
        """One entry less, if it is there."""

        def work(transaction: Any, model: Model) -> None:
            assert transaction.delete(key) == (key in model[None]), f"delete({key!r}) said the opposite"
            model[None].pop(key, None)

        self.change(work, durability)

    def delete_range(self, start: bytes | None, stop: bytes | None) -> None:
        """The entries from `start` up to `stop`, without it."""

        def work(transaction: Any, model: Model) -> None:
            transaction.delete_range(start, stop)
            model[None] = {
                key: value
                for key, value in model[None].items()
                if (start is not None and key < start) or (stop is not None and key >= stop)
            }

        self.change(work)

    def drop(self, name: str) -> None:
        """A named tree less, if it is there."""
        if name in self.model:

            def work(transaction: Any, model: Model) -> None:
                transaction.drop(name)
                del model[name]

            self.change(work)

    def fill(self, first: int, count: int, size: int) -> None:
        """Many entries in one transaction."""

        def work(transaction: Any, model: Model) -> None:
            for number in range(first, first + count):
                key, value = b"%06d" % number, bytes([number % 251]) * size
                transaction.put(key, value)
                model[None][key] = value

        self.change(work)

    def sync(self) -> None:
        """Make all durable."""
        self.wrote = True
        self.db.sync()
        self.history.promise(self.now)

    def begin_reader(self) -> None:
        """A reader that stays."""
        self.readers.append((self.db.read(), self.model))

    def end_reader(self) -> None:
        """The oldest reader must still see what it saw."""
        if self.readers:
            snapshot, model = self.readers.pop(0)
            assert dict(snapshot.items()) == model[None], "the snapshot of a long reader has changed"
            snapshot.close()

    def reopen(self) -> None:
        """A clean end, and a new beginning."""
        while self.readers:
            self.end_reader()
        self.db.close()
        if self.wrote:
            self.history.promise(self.now)
        self._open()

    def _open(self) -> None:
        self.db = opened(self.disk, **self.options)
        self.wrote = False

    def kill(self) -> None:
        """The process dies; the page cache survives, and the next process goes on with it."""
        self.finish()
        self._open()
        found = content(self.db)
        assert found == self.model, "a killed process has lost what it had committed"

    def fail(self) -> None:
        """A flush fails, the program ends, and the next one goes on with what the page cache shows."""
        before = self.model
        self.file.failing = True
        try:
            self.put(b"failed", b"%d" % self.words * 50)
        except cowdb.PoisonedError:
            pass
        else:
            raise AssertionError("a flush failed, and the commit says nothing")
        finally:
            self.file.failing = False
        self.finish()
        self._open()
        found = content(self.db)
        after = self.history.states[-1][1]
        assert found in (before, after), "after a failed flush there is neither the state before nor the one behind"
        self.model = found
        if found is not after and found != after:
            self.history.begin(self.now, found)

    def group(self) -> None:
        """Three threads commit; two of them seal while the first one's flush is in flight, and share the next."""
        # The flush that is shared is to be a commit's, not that of the recovery before it, which holds the lock.
        self.db.write().abort()
        self.wrote = True
        file, mine = self.file, threading.get_ident()
        first_returned = threading.Event()
        pager = self.db._core.pager  # type: ignore[union-attr]
        threads: list[threading.Thread] = []
        errors: list[BaseException] = []
        numbers: list[int] = []
        sealed = len(self.history.states)

        def follow(key: bytes) -> None:
            try:
                self.put_of_group(key, numbers)
            except BaseException as error:  # noqa: BLE001 - it is raised again below
                errors.append(error)

        def meanwhile() -> None:
            file.during_flush = None
            for waiting, key in enumerate((b"group 2", b"group 3"), 1):
                thread = threading.Thread(target=follow, args=(key,), daemon=True)
                thread.start()
                threads.append(thread)
                deadline = cowdb_time() + _PATIENCE
                while len(pager.group.pending) < waiting and thread.is_alive() and cowdb_time() < deadline:
                    thread.join(0.0002)
                assert len(pager.group.pending) >= waiting, "a thread could not seal during the flush of another"

            def hold() -> None:
                if threading.get_ident() != mine:
                    first_returned.wait(_PATIENCE)

            file.before_change = hold

        file.during_flush = meanwhile
        try:
            self.put(b"group 1", b"%d" % self.words)
            if self.file.during_flush is not None:
                file.during_flush = None  # there was no flush
        finally:
            first_returned.set()
            for thread in threads:
                thread.join(_PATIENCE)
            file.during_flush = file.before_change = None
        if errors:
            raise errors[0]
        assert len(numbers) == len(threads)
        self.model = self.history.states[-1][1] if len(self.history.states) > sealed else self.model

    def put_of_group(self, key: bytes, numbers: list[int]) -> None:
        """What a thread of `group` does: build on the newest sealed state."""
        with self.db.write() as transaction:
            after = {name: dict(tree) for name, tree in self.history.states[-1][1].items()}
            # Too large for the leaf that the next one writes again: a page that is only here.
            value = b"%d" % self.words * (1 if key.endswith(b"3") else 3000)
            transaction.put(key, value)
            after[None][key] = value
            number = self.history.begin(self.now, after)
        self.history.promise(self.now, number)
        numbers.append(number)

    def copy(self) -> None:
        """A copy on a disk of its own: whole and equal, or not there, wherever the power is cut."""
        target = CrashDisk()
        name = "/copy"
        with replaced(backup, "FileDisk", lambda: target):
            self.db.copy(name, compact=bool(self.words % 2))
        for index in range(len(target.trace) + 1):
            for image in target.images(index, limit=3, sector=PAGE):
                if name in image.paths():
                    db = open_on(image, name, create=False, page_size=PAGE)
                    try:
                        assert content(db) == self.model, f"the copy differs after a power cut at {image.origin}"
                        assert db.check() == [], f"the copy does not check after a power cut at {image.origin}"
                    finally:
                        vanish(db)
                else:
                    assert index < len(target.trace), "the copy is not there"

    def finish(self) -> None:
        """The process ends here, without the writes of a clean close."""
        while self.readers:
            self.end_reader()
        vanish(self.db)


def cowdb_time() -> float:
    """Seconds, for patience alone."""
    import time  # noqa: PLC0415 - the clock of the workloads stands still; nothing else here may look at another

    return time.monotonic()


def _several(work: Workload) -> None:
    """Replaces, deletes, puts in two trees: one transaction."""

    def change(transaction: Any, model: Model) -> None:
        for number in range(3):
            key, value = b"several %d" % number, b"%d" % work.words * (1 + 700 * number)
            transaction.put(key, value)
            model[None][key] = value
        first = min(model[None])
        transaction.delete(first)
        del model[None][first]
        transaction.tree("t", create=True).put(b"several", b"%d" % work.words)
        model.setdefault("t", {})[b"several"] = b"%d" % work.words

    work.change(change)


def _scatter(work: Workload) -> None:
    """Short runs all over the file are freed, so that the list of them reaches beyond a meta page's first sector."""
    work.fill(0, 300, 160)

    def change(transaction: Any, model: Model) -> None:
        for number in range(0, 300, 45):
            key, value = b"%06d" % number, b"scattered %d" % work.words
            transaction.put(key, value)
            model[None][key] = value

    work.change(change)


def _cut(work: Workload) -> None:
    """So much comes and goes that the file's tail is cut."""
    work.put(b"~cut", b"c" * (100 * PAGE))
    work.delete(b"~cut")
    work.put(b"cut", b"1")  # only now the older states do not need the tail any more
    work.put(b"cut", b"2")


ALPHABET: Final[dict[str, Callable[[Workload], None]]] = {
    "put": lambda work: work.put(b"%d" % work.words, b"v" * 100),
    "large": lambda work: work.put(b"large", bytes([work.words % 251]) * 5000),
    "replace": lambda work: work.put(min(work.model[None], default=b"new"), b"replaced %d" % work.words),
    "delete": lambda work: work.delete(min(work.model[None], default=b"none")),
    "range": lambda work: (
        work.delete_range(sorted(work.model[None])[len(work.model[None]) // 3 :][0], None) if work.model[None] else None
    ),
    "tree": lambda work: work.put(b"k", b"%d" % work.words, tree="t"),
    "drop": lambda work: work.drop("t"),
    "reader": Workload.begin_reader,
    "end": Workload.end_reader,
    "several": _several,
    "lazy": lambda work: work.put(b"lazy", b"%d" % work.words, durability="lazy"),
    "lazylarge": lambda work: work.put(b"lazy large", bytes([work.words % 251]) * 5000, durability="lazy"),
    "sync": Workload.sync,
    "fill": lambda work: work.fill(work.words * 100, 120, 60),
    "scatter": _scatter,
    "grow": lambda work: work.put(b"~grow", b"g" * (12 * PAGE)),
    "cut": _cut,
    "copy": Workload.copy,
    "reopen": Workload.reopen,
    "kill": Workload.kill,
    "fail": Workload.fail,
    "group": Workload.group,
}
"""The operations that sequences are made of."""


def run_words(words: tuple[str, ...], tuning: str = "plain", at: list[int] | None = None) -> Workload:
    """Run a sequence on a small database; `at` gets the lengths of the trace before each operation and at the end."""
    work = Workload(tuning)
    try:
        work.put(b"first", b"1" * 1500)
        for word in words:
            if at is not None:
                at.append(work.now)
            work.words += 1
            ALPHABET[word](work)
        if at is not None:
            at.append(work.now)
    finally:
        work.finish()
    return work


# ---------------------------------------------------------------- the oracle


@dataclass(frozen=True)
class Verdict:
    """What one run of the oracle found: the state (None: it did not open), and what was wrong, if anything."""

    found: Model | None
    problem: str | None


def survive(file: LazyFile) -> tuple[Verdict, History]:
    """Open what a power cut left, read and check it, live on, and check again; also the history of that life."""
    disk = LazyDisk(file)
    history = History([])
    found: Model | None = None
    db = None
    try:
        db = opened(disk)
        found = content(db)
        history.begin(0, found)
        findings = db.check()
        if findings:
            return Verdict(found, f"the checker: {findings[0]}"), history
        after = _live(db, file, history)
        db.close()
        history.promise(len(file.trace))
        db = opened(disk)
        if content(db) != after:
            return Verdict(found, "what was committed after the recovery is gone"), history
        findings = db.check()
        if findings:
            return Verdict(found, f"the checker, after three more commits: {findings[0]}"), history
    except Exception as error:  # noqa: BLE001 - nothing may be raised here, so all of it is a finding
        return Verdict(found, f"{type(error).__name__}: {error}"), history
    finally:
        if db is not None:
            vanish(db)
    return Verdict(found, None), history


def _live(db: Database, file: LazyFile, history: History) -> Model:
    model = history.states[0][1]
    for number in range(3):
        model = {name: dict(tree) for name, tree in model.items()}
        with db.write() as transaction:
            key = b"after %d" % number
            transaction.put(key, bytes([number]) * 30)
            model[None][key] = bytes([number]) * 30
            if number == 1:
                transaction.put(b"long", b"L" * 5000)
                model[None][b"long"] = b"L" * 5000
                first = min(model[None])
                transaction.delete(first)
                del model[None][first]
            history.begin(len(file.trace), model)
        history.promise(len(file.trace))
    return model
