"""One case of the part `faults`: a scenario, and where it is struck.

A case is a line of text, so that it can be replayed, and made smaller while it
still fails:

    calls:small and large:ENOSPC.half:once:17:0,1        the 17th call to the disk
    close:lazy:EIO:once:44:*                             a call of the clean end
    flush:lazy:EIO:once:4:*                              the 4th flush, then power cuts everywhere behind it
    short:growth:1:once:9:*                              the 9th write call takes 1 byte and says so

The last field names the steps that are played, `*` for all.  `calls`, `close` and
`flush` play on a fake disk that records its trace, and end with power cuts; `short` plays
on a real file, below whose `FileStorage` the system's write takes too little.
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
import tempfile
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import cowdb.storage as storage_module
from cowdb.storage import FileDisk
from cowdb.testing import CrashDisk, FaultyDisk, FlushFailed
from fuzz.faults_oracle import PATH, PromiseError, live_on
from fuzz.faults_play import Play
from fuzz.faults_scenarios import scenario

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from cowdb.storage import Buffer
    from cowdb.testing import Fault

__all__ = ["KINDS", "SHORT", "Case", "calls_of", "parse", "play", "scratch", "shrink", "writes_of"]

WHOLE: Final = 1 << 40

KINDS: Final[dict[str, tuple[int, int | None]]] = {
    "EIO": (errno.EIO, 0),
    "EIO.torn": (errno.EIO, 700),
    "EIO.whole": (errno.EIO, WHOLE),
    "ENOSPC": (errno.ENOSPC, 0),
    "ENOSPC.half": (errno.ENOSPC, None),
    "EDQUOT": (errno.EDQUOT, 0),
    "EDQUOT.half": (errno.EDQUOT, None),
    "EINTR": (errno.EINTR, 0),
    "EINTR.half": (errno.EINTR, None),
}
"""For each kind of fault its error, and how many bytes of a write are done before it (None: half)."""

SHORT: Final[dict[str, int]] = {"0": 0, "1": 1, "512": 512, "half": -2, "all but 1": -1}
"""How many bytes a short write takes; half of them, or all but one, where negative."""

LEAST_FOR_GOOD: Final = 100
"""Bytes that each of many short writes takes: a megabyte byte by byte tries no more."""

CUTS_AT_THE_END: Final = 2
CUTS_BEHIND_A_FLUSH: Final = 6


@dataclass(frozen=True)
class Case:
    """What is played, and which call fails how; `steps` None: all of the scenario's."""

    mode: str
    scenario: str
    kind: str
    forever: bool
    at: int
    steps: tuple[int, ...] | None = None

    def __str__(self) -> str:
        steps = "*" if self.steps is None else ",".join(map(str, self.steps))
        return f"{self.mode}:{self.scenario}:{self.kind}:{'for good' if self.forever else 'once'}:{self.at}:{steps}"


def parse(text: str) -> Case:
    """The case that this line stands for. Raises `ValueError`."""
    try:
        mode, name, kind, often, at, chosen = text.split(":")
        scenario(name)
        steps = None if chosen == "*" else tuple(int(one) for one in chosen.split(",") if one)
        case = Case(mode, name, kind, often == "for good", int(at), steps)
    except (KeyError, ValueError) as error:
        raise ValueError(f"no case of this part: {text!r} ({error})") from error
    if case.mode not in {"calls", "close", "flush", "short"} or kind not in (SHORT if case.mode == "short" else KINDS):
        raise ValueError(f"no case of this part: {text!r}")
    return case


# ---------------------------------------------------------------- on a fake disk


def calls_of(name: str, *, close: bool = False) -> list[str]:
    """The calls to the disk that the scenario makes while nothing fails, by kind, in order; with the clean end too."""
    calls: list[str] = []
    play = Play(FaultyDisk(CrashDisk(), before=lambda call, _: calls.append(call)), dict(scenario(name).options))
    play.run(scenario(name).steps)
    if close:
        play.close()
    _expect_no_errors(play)
    calls = [call for call in calls if call != "close"]
    play.kill()
    return calls


def play(case: Case) -> tuple[int, bool]:
    """Play a case; how many states were judged, and whether its fault has struck. Raises `PromiseError`."""
    try:
        return _play_short(case) if case.mode == "short" else _play(case)
    except PromiseError:
        raise
    except Exception as error:
        raise PromiseError(f"an error that nobody expects: {error!r}") from error


def _play(case: Case) -> tuple[int, bool]:
    found = scenario(case.scenario)
    steps = found.steps if case.steps is None else [found.steps[index] for index in case.steps]
    below = CrashDisk()
    disk = FaultyDisk(below)
    error, partial = KINDS[case.kind]
    call = "flush" if case.mode == "flush" else None
    fault = disk.fail(error, call=call, at=case.at, forever=case.forever, partial=partial)
    played = Play(disk, dict(found.options), now=lambda: len(below.trace))
    try:
        played.run(steps)
        if case.mode == "close":
            played.close()
        disk.heal()
        _expect_the_fault(played, fault, error)
        played.usable()
    finally:
        played.kill()
    end = len(below.trace)
    live_on(below.copy(), played.standing, options=found.options)
    if not fault.fired:
        return 1, False
    # A string seeds the same generator in every process, whatever its hash seed.
    rng = random.Random(str(case))
    if case.mode == "flush":
        failed = next(index for index, operation in enumerate(below.trace) if isinstance(operation, FlushFailed))
        return 1 + _cut(below, played, range(failed + 1, end + 1), CUTS_BEHIND_A_FLUSH, rng), True
    return 1 + _cut(below, played, sorted({rng.randrange(end + 1), end}), CUTS_AT_THE_END, rng), True


def _expect_no_errors(play: Play) -> None:
    for error in play.errors:
        if "max_size" not in str(error):
            raise PromiseError(f"nothing fails, and yet there is {error!r}") from error


def _expect_the_fault(play: Play, fault: Fault, number: int) -> None:
    """Every error carries the number of the one that was injected."""
    if not fault.fired:
        _expect_no_errors(play)
        return
    for error in play.errors:
        if isinstance(error, OSError) and error.errno not in {number, errno.EIO} and "max_size" not in str(error):
            raise PromiseError(f"the disk said {errno.errorcode[number]}, and the caller is told {error!r}") from error


def _cut(disk: CrashDisk, play: Play, indexes: Sequence[int], limit: int, rng: random.Random) -> int:
    """Cut the power at these moments, in up to `limit` ways each, and let the next process live on."""
    judged = 0
    seen: set[tuple[bytes, int]] = set()
    for index in indexes:
        allowed = play.lasting_at(index)
        seed = rng.randrange(1 << 30)
        for image in disk.images(index, limit=limit, sector=rng.choice((512, 4096)), seed=seed):
            key = (image.digest(), id(allowed))
            if key in seen:
                continue
            seen.add(key)
            judged += 1
            try:
                if PATH not in image.paths() and None not in allowed:
                    raise PromiseError("the file is gone")
                live_on(image, allowed, options=play.options)
            except PromiseError as error:
                raise PromiseError(f"after the fault, and a power cut at {image.origin}: {error}") from error
    return judged


# ---------------------------------------------------------------- short writes, on a real file


def scratch() -> tempfile.TemporaryDirectory[str]:
    """A directory for real files, in memory where the system has such a place."""
    memory = "/dev/shm"
    return tempfile.TemporaryDirectory(prefix="cowdb-fuzz-", dir=memory if os.access(memory, os.W_OK) else None)


class _ShortWrites:
    """In place of the system's write: counts, and takes too little where it is told to."""

    def __init__(self, kind: str, at: int, *, forever: bool) -> None:
        self.kind = kind
        self.at = at
        self.forever = forever
        self.calls = 0
        self.struck = False
        self._real = storage_module._write_some

    def __call__(self, storage: storage_module.FileStorage, views: Sequence[Buffer], offset: int) -> int:
        self.calls += 1
        if self.calls != self.at and not (self.forever and self.calls > self.at):
            return self._real(storage, views, offset)
        data = b"".join(views)
        taken = SHORT[self.kind]
        if self.forever and taken > 0:
            taken = max(taken, LEAST_FOR_GOOD)
        wanted = {-2: max(1, len(data) // 2), -1: max(1, len(data) - 1)}.get(taken, min(taken, len(data)))
        self.struck = True
        return self._real(storage, [data[:wanted]], offset) if wanted else 0

    @contextlib.contextmanager
    def instead(self) -> Iterator[_ShortWrites]:
        """Stand in for the system's write."""
        storage_module._write_some = self
        try:
            yield self
        finally:
            storage_module._write_some = self._real


def writes_of(name: str) -> int:
    """How many write calls the system gets in the scenario while nothing fails."""
    with scratch() as directory, _ShortWrites("0", 0, forever=False).instead() as writes:
        played = Play(FileDisk(), dict(scenario(name).options), path=f"{directory}/db", real=True)
        played.run(scenario(name).steps)
        calls = writes.calls  # without those of the end, which no case strikes
        played.close()
        return calls


def _play_short(case: Case) -> tuple[int, bool]:
    found = scenario(case.scenario)
    steps = found.steps if case.steps is None else [found.steps[index] for index in case.steps]
    with scratch() as directory:
        path = f"{directory}/db"
        played = Play(FileDisk(), dict(found.options), path=path, real=True)
        try:
            with _ShortWrites(case.kind, case.at, forever=case.forever).instead() as writes:
                played.run(steps)
            if SHORT[case.kind]:
                _expect_no_errors(played)  # a short write is no error: the rest is written with the next call
            played.usable()
        finally:
            played.close()
        live_on(FileDisk(), played.standing, path=path, options=found.options)
        return 1, writes.struck


# ---------------------------------------------------------------- smaller


def _fails(case: Case) -> bool:
    try:
        play(case)
    except PromiseError:
        return True
    return False


def shrink(case: Case, *, seconds: float = 10.0) -> Case:
    """A case with fewer steps that still fails; the call that fails may then be another one."""
    smallest = case
    index = 0
    end = time.monotonic() + seconds
    while index < len(_steps(smallest)) and time.monotonic() < end:
        steps = _steps(smallest)
        fewer = steps[:index] + steps[index + 1 :]
        for at in range(1, smallest.at + 1):
            candidate = replace(smallest, steps=fewer, at=at)
            if _fails(candidate):
                smallest = candidate
                break
        else:
            index += 1
    return smallest


def _steps(case: Case) -> tuple[int, ...]:
    return tuple(range(len(scenario(case.scenario).steps))) if case.steps is None else case.steps
