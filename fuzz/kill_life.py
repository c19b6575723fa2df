"""A life: one file, and the processes that are killed while they use it.

    fork --> writer  ----- S 0, A 1, A 2, A 3 ----> pipe     killed at any moment
    fork --> writer  ----- S 0, A 1 --------------> pipe     what it told is promised
    fork --> reader  ----- R 1, R 2 --------------> pipe     what it saw was whole

For each writer the file must hold the transaction that it told last, or the one
after it, which was in flight; and as each transaction follows from its number,
all of the file's content is known (promise 2).  Processes fork off this one, which
holds nothing open meanwhile, so a round takes milliseconds.
"""

from __future__ import annotations

import gc
import os
import random
import select
import shutil
import signal
import tempfile
import time
import warnings
from typing import TYPE_CHECKING, Final

import cowdb
from fuzz.faults_oracle import PromiseError, clean
from fuzz.kill_child import RECORD, Job, Trees, apply, counter, run

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["Life", "Process"]

PATIENCE: Final = 30.0
"""Seconds without a word until a process counts as hanging."""


class Process:
    """A child that works until it is killed, and what it has told."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.raw = b""
        self.promised: int | None = None  # bytes of `raw` that came before the device was cut off; None: all count
        self._pipe, send = os.pipe()
        with warnings.catch_warnings():
            # Newer Pythons warn of forks beside threads; the child uses nothing that a thread of ours could hold.
            warnings.simplefilter("ignore", DeprecationWarning)
            self.pid = os.fork()
        if not self.pid:
            os.close(self._pipe)
            run(job, send)
        os.close(send)

    def listen(self, seconds: float) -> bool:
        """Take in what it tells within so many seconds; False at the end of it."""
        ready, _, _ = select.select([self._pipe], [], [], seconds)
        if not ready:
            return True
        piece = os.read(self._pipe, 1 << 16)
        self.raw += piece
        return bool(piece)

    def close_the_book(self) -> None:
        """What it has told so far is promised; what comes later may be a lie of a file system that is being cut off."""
        while select.select([self._pipe], [], [], 0)[0] and self.listen(0):
            pass
        self.promised = len(self.raw)

    def wait_for(self, records: int, seconds: float) -> None:
        """Until it has told so much, has died, or the time is up."""
        end = time.monotonic() + seconds
        while len(self.raw) < records * RECORD.size and (left := end - time.monotonic()) > 0:
            if not self.listen(left):
                return

    def kill(self) -> list[tuple[bytes, int, int]]:
        """SIGKILL; all that it has told. Raises `PromiseError` if it had ended with an error."""
        os.kill(self.pid, signal.SIGKILL)
        _, status = os.waitpid(self.pid, 0)
        while self.listen(PATIENCE):
            pass
        os.close(self._pipe)
        records = []
        raw = self.raw
        while len(raw) >= RECORD.size:
            kind, writer, number = RECORD.unpack_from(raw)
            raw = raw[RECORD.size :]
            if kind == b"E":
                raise _ChildError(raw[:writer].decode(errors="replace"))
            records.append((kind, writer, number))
        # Who reads through a mapping of a device that is gone is killed by SIGBUS: no program can help that.
        expected = {signal.SIGKILL} if self.promised is None else {signal.SIGKILL, signal.SIGBUS}
        if not os.WIFSIGNALED(status) or os.WTERMSIG(status) not in expected:
            raise PromiseError(f"a process ended with status {status}, not by our kill")
        return records


class _ChildError(PromiseError):
    """A process met an error before it was killed."""


class Life:
    """One file with `writers` writers; `judge` says what it must hold.

    `survives`: the page cache does, so that also what was committed lazily must be there.
    """

    def __init__(self, seed: int, path: str, writers: int, durability: str, *, survives: bool = True) -> None:
        self.rng = random.Random(seed)
        self.seed = seed
        self.path = path
        self.writers = writers
        self.durability = durability
        self.survives = survives
        self.page_size = self.rng.choice((4096, 4096, 8192, 32768))
        self.told = [0] * writers  # committed, as the writers were told
        self.least = [0] * writers  # what must be there
        self.synced = [0] * writers  # what was told to be durable, or was found by who made it so
        self.done = [0] * writers  # what the model holds
        self.models: list[Trees] = [{None: {}} for _ in range(writers)]
        self.opened = False  # somebody was told that the file is open
        self.acknowledged = 0
        self.looks = 0
        self.after = 0

    # ------------------------------------------------------------ processes

    def start(self, writers: Iterable[int], *, suicide: bool = False, read_only: bool = False) -> Process:
        """A process with a thread for each of `writers`, or a reader if there are none."""
        gc.disable()  # no finalizer of ours in a child
        try:
            return Process(
                Job(
                    self.seed,
                    self.path,
                    tuple(writers),
                    self.writers,
                    self.durability,
                    self.page_size,
                    self.rng.choice((self.rng.randrange(1, 12), self.rng.randrange(1, 120))) if suicide else None,
                    read_only,
                    doomed=not self.survives,
                )
            )
        finally:
            gc.enable()

    def end(self, process: Process, *, broken: bool = False) -> None:
        """Kill it and note what it told. `broken`: its file system is gone, so it may have met an error."""
        try:
            records = process.kill()
        except _ChildError as error:
            if not broken:
                raise PromiseError(f"a process met an error: {error}") from error
            records = [RECORD.unpack_from(process.raw, at) for at in _before_the_error(process.raw)]
        for index, (kind, writer, number) in enumerate(records):
            promised = process.promised is None or (index + 1) * RECORD.size <= process.promised
            if kind == b"S":
                self.opened = True
                self._within(writer, number, "a writer starts and finds")
                self.told[writer] = number
                if self.survives:
                    self.least[writer] = number
            elif kind == b"A":
                self.acknowledged += 1
                if number not in (self.told[writer] + 1, self.told[writer] + 2) and self.survives:
                    raise PromiseError(f"writer {writer} was at {self.told[writer]}, and then commits {number}")
                self.told[writer] = number
                if self.survives or (self.durability == "full" and promised):
                    self.least[writer] = number
            elif kind == b"D" and promised:
                self.least[writer] = max(self.least[writer], number)
                self.synced[writer] = number
            elif kind == b"R":
                self.looks += 1

        if self.durability == "lazy" and process.job.suicide is not None:
            # A meta page torn in the middle takes the lazy commits along whose meta pages were in its place.  The
            # system writes whole pages of its own, and a lazy meta is in the first of them: only suicide tears it.
            self.least = list(self.synced)

    def _within(self, writer: int, found: int, who: str) -> None:
        least, most = self.least[writer], self.told[writer] + 1
        if not least <= found <= most:
            raise PromiseError(
                f"{who} transaction {found} of writer {writer}, where {least} was promised and {most} is the most"
            )

    # ------------------------------------------------------------ the oracle

    def judge(self) -> None:
        """Open the file, compare all of it, check it, and live on. Raises `PromiseError`."""
        if not os.path.exists(self.path) and not self.opened:
            return
        try:
            with cowdb.open(self.path, create=False) as db:
                self._compare(db)
                clean(db, "after the kill")
                for _ in range(3):
                    self.after += 1
                    db[b"life"] = b"%d" % self.after * 300
            with cowdb.open(self.path, create=False) as db:
                clean(db, "three commits later")
                if db[b"life"] != b"%d" % self.after * 300:
                    raise PromiseError("what was committed after the kill is gone")
        except (cowdb.Error, OSError) as error:
            raise PromiseError(f"the file does not open, or does not go on: {error!r}") from error

    def _compare(self, db: cowdb.Database) -> None:
        with db.read() as snapshot:
            found: Trees = {None: dict(snapshot.items())}
            found.update((name, dict(snapshot.tree(name).items())) for name in snapshot.trees())
        total = int(found[None].pop(b"total", b"0"))
        found[None].pop(b"life", None)
        expected: Trees = {None: {}}
        for writer in range(self.writers):
            number = int(found[None].get(counter(writer), b"0"))
            self._within(writer, number, "the file holds")
            self._advance(writer, number)
            # From here on the file is certain: who opened it has made it so.
            self.told[writer] = self.least[writer] = self.synced[writer] = number
            total -= number
            for tree, entries in self.models[writer].items():
                expected.setdefault(tree, {}).update(entries)
        if total:
            raise PromiseError(f"the counters of the writers differ from their sum by {total}: a mix of two states")
        if found != expected:
            raise PromiseError(f"the numbers are right and the content is not: {_difference(found, expected)}")

    def _advance(self, writer: int, number: int) -> None:
        if number < self.done[writer]:  # after a power cut under lazy durability
            self.models[writer] = {None: {}}
            self.done[writer] = 0
        for one in range(self.done[writer] + 1, number + 1):
            apply(self.models[writer], self.seed, writer, one)
        self.done[writer] = number

    def keep(self) -> str:
        """Save the file for whoever looks into the failure; where it is."""
        directory = tempfile.mkdtemp(prefix="cowdb-fuzz-kept-")
        for suffix in ("", "-lock"):
            if os.path.exists(self.path + suffix):
                shutil.copy(self.path + suffix, directory)
        return directory


def _before_the_error(raw: bytes) -> Iterable[int]:
    at = 0
    while at + RECORD.size <= len(raw) and raw[at : at + 1] != b"E":
        yield at
        at += RECORD.size


def _difference(found: Trees, expected: Trees) -> str:
    for tree in sorted(set(found) | set(expected), key=str):
        one, other = found.get(tree, {}), expected.get(tree, {})
        for key in sorted(set(one) | set(other)):
            if one.get(key) != other.get(key):
                sizes = [None if value is None else len(value) for value in (one.get(key), other.get(key))]
                return f"tree {tree!r}, key {key!r}: {sizes[0]} bytes where {sizes[1]} belong"
        if (tree in found) != (tree in expected):
            return f"tree {tree!r} is {'there' if tree in found else 'missing'}"
    return "nothing"
