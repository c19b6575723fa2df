"""Real processes, killed at random moments; real file systems, cut off.

A *life* is one file with forty rounds.  In a round processes work on the file
until one or all of them are killed: after a random time, after a random number of
commits, or in the middle of a write or beside a flush of their own choice.  Then the next
round goes on with what is left, and every other time the file is judged first: all
of its content, the checker, three more commits, the checker again.

    full, lazy    one writer                       killed
    group         three threads that share flushes, and transactions, killed
    herd          two writers, three readers       one of them killed at a time, then all
    ext4, xfs     one or three writers             the file system cut off below them

The page cache survives a killed process, so whatever a writer was told must be there.
Under lazy durability, too, but for what a meta page took along that its own process
tore in the middle (suicide does that, a kill does not).  A file system that is cut off
loses what was not flushed: there the last sync counts.  While they are being cut off,
file systems have been seen to acknowledge flushes that they did not do (a program of a
few lines shows it), so only a promise counts that came before the cut began.

When a process is hit depends on the machine.  So ``--replay`` repeats a life, with the same
transactions and the same suicides, up to fifty times.  A failure also keeps the file that it was found in.
"""

from __future__ import annotations

import functools
import itertools
import os
import random
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from fuzz.faults_cases import scratch
from fuzz.faults_oracle import PromiseError
from fuzz.harness import Failure, Result, spread
from fuzz.kill_device import SYSTEMS, Device, unavailable
from fuzz.kill_life import PATIENCE, Life, Process

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fuzz.harness import Options, Progress, Share

__all__ = ["run"]

ROUNDS: Final = 40
REPLAYS: Final = 50
KEPT: Final = 10
REPORT_SECONDS: Final = 0.5

WEIGHTS: Final = {"full": 3, "lazy": 2, "group": 2, "herd": 3, "ext4": 2, "xfs": 2}
"""How the time is shared among the kinds of lives."""

NAMES: Final = {
    "full": "kills of a writer",
    "lazy": "kills of a lazy writer",
    "group": "kills of three threads that share flushes",
    "herd": "kills among writers and readers",
    "ext4": "cuts of ext4",
    "xfs": "cuts of xfs",
}


def run(options: Options, progress: Progress) -> Result:
    """Lives until the time is up; with `options.replay`, that one again and again."""
    if not hasattr(os, "fork"):
        return Result(skipped="it takes fork")
    if options.replay is not None:
        return _replay(options.replay, progress)
    return spread(_work, options, progress)


def _replay(text: str, progress: Progress) -> Result:
    kind, _, seed = text.partition(":")
    if kind not in WEIGHTS or not seed.isdigit():
        raise ValueError(f"no case of this part: {text!r}")
    result = Result()
    for number in range(REPLAYS):
        for piece in _life(kind, int(seed)):
            result.merge(piece)
            progress.advance(piece.cases)
            if piece.failures:
                progress.say(f"it failed the {number + 1}. time")
                return result
    progress.say(f"{REPLAYS} lives with this seed, and nothing wrong; when a process is hit is up to the machine")
    return result


def _work(share: Share) -> Iterator[Result]:
    """One process: the kinds take turns by the time that they have used."""
    kinds = dict(WEIGHTS)
    with scratch() as directory:
        for system in SYSTEMS:
            reason = unavailable(system, directory)
            if reason is not None:
                del kinds[system]
                yield Result(skipped=f"cutting off {system}: {reason}")
    used = dict.fromkeys(kinds, 0.0)
    # A short run has shorter lives, so that each kind has its turn.
    longest = max(0.1, (share.deadline - time.monotonic()) / (2 * len(kinds)))
    rng = random.Random(f"kill {share.seed} {share.index}")
    kept = 0
    while kept < KEPT:
        kind = min(kinds, key=lambda kind: used[kind] / kinds[kind])
        seed = rng.randrange(1 << 32)
        share.announce(f"{kind}:{seed}")
        begun = time.monotonic()
        end = min(share.deadline, begun + longest)
        for result in _life(kind, seed, functools.partial(_past, end)):
            kept += len(result.failures)
            yield result
        used[kind] += time.monotonic() - begun
        if share.expired():  # asked here, so that the shortest run tries something
            break


def _past(end: float) -> bool:
    return time.monotonic() >= end


def _life(kind: str, seed: int, expired: Callable[[], bool] = lambda: False) -> Iterator[Result]:
    """The rounds of one life."""
    result = Result()
    with scratch() as directory:
        rounds = _cut(kind, seed, directory, expired) if kind in SYSTEMS else _killed(kind, seed, directory, expired)
        reported = time.monotonic()
        try:
            for life in rounds:
                result.cases += 1
                result.count(NAMES[kind])
                result.count("commits acknowledged", life.acknowledged)
                result.count("looks of readers", life.looks)
                life.acknowledged = life.looks = 0
                if time.monotonic() - reported > REPORT_SECONDS:
                    yield result
                    result = Result()
                    reported = time.monotonic()
        except PromiseError as error:
            result.cases += 1
            result.failures.append(Failure(f"{error} ({error.__notes__[0]})", f"{kind}:{seed}"))
    yield result


def _judge(life: Life, processes: list[Process]) -> None:
    """Kill who is left, and judge the file."""
    for process in processes:
        life.end(process)
    processes.clear()
    life.judge()


def _killed(kind: str, seed: int, directory: str, expired: Callable[[], bool]) -> Iterator[Life]:
    """Rounds in which processes are killed."""
    writers = {"full": 1, "lazy": 1, "group": 3, "herd": 2}[kind]
    durability = {"full": "full", "lazy": "lazy"}.get(kind) or random.Random(seed).choice(("full", "full", "lazy"))
    life = Life(seed, os.path.join(directory, "db"), writers, durability)
    rounds = _herd(life) if kind == "herd" else _alone(life)
    try:
        for _ in itertools.islice(rounds, ROUNDS):
            yield life
            if expired():
                break
        rounds.close()  # type: ignore[attr-defined]
        life.judge()
    except PromiseError as error:
        error.add_note(f"the file is kept in {life.keep()}")
        raise


def _alone(life: Life) -> Iterator[None]:
    """One process at a time, with all writers as its threads."""
    rng = life.rng
    while True:
        suicide = rng.random() < 0.5
        process = life.start(range(life.writers), suicide=suicide)
        try:
            if suicide:
                _until_dead(process)
            else:
                process.wait_for(rng.randrange(2, 30), PATIENCE)
                time.sleep(rng.choice((0.0, rng.random() * 0.001, rng.random() * 0.01)))
        finally:
            life.end(process)
        if rng.random() < 0.5:
            life.judge()
        yield


def _until_dead(process: Process) -> None:
    end = time.monotonic() + PATIENCE
    while process.listen(max(0.0, end - time.monotonic())):
        if time.monotonic() >= end:
            raise PromiseError(f"a process hangs: no death and no end in {PATIENCE:.0f} s")


def _herd(life: Life) -> Iterator[None]:
    """Two writers and three readers; one is killed at a time, and now and then all."""
    rng = life.rng
    roles: list[tuple[int, ...]] = [(0,), (1,), (), (), ()]
    processes: list[Process] = []
    try:
        while True:
            if not processes:
                processes = [life.start(role, read_only=index == 4) for index, role in enumerate(roles)]
            time.sleep(rng.choice((0.0, 0.003, 0.01, 0.03)) * rng.random() + 0.001)
            for process in processes:
                process.listen(0.0)
            index = rng.choice((0, 0, 1, 1, 2, 3, 4))
            life.end(processes[index])
            processes[index] = life.start(roles[index], suicide=index < 2 and rng.random() < 0.3, read_only=index == 4)
            if rng.random() < 0.1:
                if rng.random() < 0.5:
                    processes[rng.randrange(2)].wait_for(3, PATIENCE)
                _judge(life, processes)
            yield
    finally:
        for process in processes:
            life.end(process)


def _cut(system: str, seed: int, directory: str, expired: Callable[[], bool]) -> Iterator[Life]:
    """Rounds in which the file system is cut off."""
    rng = random.Random(seed)
    writers, durability = rng.choice(((1, "full"), (3, "full"), (1, "lazy"), (2, "lazy")))
    apart = writers > 1 and rng.random() < 0.5
    with Device(system, directory) as device:
        life = Life(seed, os.path.join(device.mount, "db"), writers, durability, survives=False)
        try:
            for _ in range(ROUNDS):
                roles = [(writer,) for writer in range(writers)] if apart else [tuple(range(writers))]
                processes = [life.start(role) for role in roles]
                processes[0].wait_for(rng.choice((0, 1, 2, 5, 20, 60)), PATIENCE)
                time.sleep(rng.choice((0.0, rng.random() * 0.002, rng.random() * 0.02)))
                for process in processes:
                    process.close_the_book()
                device.cut()
                for process in processes:
                    life.end(process, broken=True)
                device.revive()
                life.judge()
                yield life
                if expired():
                    return
        except PromiseError as error:
            error.add_note(f"the file is kept in {life.keep()}")
            raise
