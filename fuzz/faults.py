"""Errors at every call to the disk, flushes that fail, writes that are cut short.

For each scenario of `faults_scenarios` and each k, the k-th call fails: with
EIO, ENOSPC, EDQUOT or EINTR, with nothing, a part or all of a write done, once
or for good.  The play goes on as a user would, and afterwards:

    while it lasts     each error is typed and says what became of the transaction;
                       readers see what was acknowledged; snapshots do not change
    the disk is well   a writer that is not poisoned writes on; else opening again helps
    the next process   finds an allowed state; checker; three commits; checker
    a power cut        the same, for states that the cut may leave

A flush that fails leaves each sector old or new for good, while the cache shows
the new one and the next flush claims success (PostgreSQL's story).  So behind each of those
the power is cut at every operation that follows.

The order is shuffled by the seed, and a long run comes to the end of it; then random
scenarios follow.  A part of the time goes to the same through real system calls (`faults_strace`).
"""

from __future__ import annotations

import random
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from fuzz import faults_strace
from fuzz.faults_cases import KINDS, SHORT, Case, calls_of, parse, play, shrink, writes_of
from fuzz.faults_oracle import PromiseError
from fuzz.faults_scenarios import SCENARIOS
from fuzz.harness import Failure, Result, spread

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fuzz.harness import Options, Progress, Share

__all__ = ["all_cases", "run"]

WEIGHTS: Final = {"calls": 5, "close": 1, "flush": 3, "short": 1}
"""How the time is shared among the modes."""

STRACE_SHARE: Final = 0.25
KEPT: Final = 20
"""Failures are shrunk, which takes a while; with so many in one process the run ends."""

NAMES: Final = {
    "calls": "calls that fail",
    "close": "calls of a clean end that fail",
    "flush": "flushes that fail",
    "short": "short writes",
}


def run(options: Options, progress: Progress) -> Result:
    """Play all cases, or as many as the time allows; with `options.replay`, that one."""
    if options.replay is not None:
        return _replay(options.replay, progress)
    reason = faults_strace.unavailable()
    fakes = options.seconds * (1.0 if reason else 1.0 - STRACE_SHARE)
    begun = time.monotonic()
    result = spread(_work, replace(options, seconds=fakes), progress)
    if reason:
        result.merge(Result(skipped=f"real system calls: {reason}"))
    else:
        left = max(1.0, options.seconds - (time.monotonic() - begun))
        result.merge(spread(faults_strace.work, replace(options, seconds=left), progress))
    return result


def _replay(text: str, progress: Progress) -> Result:
    if text.startswith("strace:"):
        return faults_strace.replay(text, progress)
    case = parse(text)
    result = Result(cases=1)
    progress.say(f"playing {case}")
    try:
        judged, struck = play(case)
    except PromiseError as error:
        result.failures.append(Failure(str(error), text))
    else:
        progress.say(f"nothing wrong: {judged} states judged, the fault {'struck' if struck else 'was never reached'}")
    return result


# ---------------------------------------------------------------- which cases


def all_cases(mode: str, name: str) -> list[Case]:
    """Every case of a mode for one scenario."""
    if mode == "short":
        places = range(1, writes_of(name) + 1)
        return [Case(mode, name, kind, forever, at) for at in places for kind in SHORT for forever in (False, True)]
    calls = calls_of(name)
    if mode == "flush":
        places = range(1, calls.count("flush") + 1)
        return [Case(mode, name, kind, forever=False, at=at) for at in places for kind in ("EIO", "ENOSPC")]
    cases = []
    if mode == "close":
        everything = calls_of(name, close=True)
        places = range(len(calls) + 1, len(everything) + 1)
        calls = everything
    else:
        places = range(1, len(calls) + 1)
    for at in places:
        for kind in KINDS:
            if calls[at - 1] == "write" or "." not in kind:  # only a write can be done in part
                cases.append(Case(mode, name, kind, forever=False, at=at))
            cases.append(Case(mode, name, kind, forever=True, at=at))
    return cases


def _shuffled(mode: str, seed: int) -> Iterator[Case]:
    """Every case of every scenario once; the scenarios take turns, so that a short run has seen them all."""
    rng = random.Random(f"{mode} {seed}")
    names = list(SCENARIOS)
    rng.shuffle(names)
    rest: dict[str, list[Case]] = {}
    while names:
        for name in list(names):
            if name not in rest:
                rest[name] = all_cases(mode, name)
                rng.shuffle(rest[name])
            if rest[name]:
                yield rest[name].pop()
            else:
                names.remove(name)


def _random(mode: str, seed: int) -> Iterator[Case]:
    """Random scenarios without end, struck anywhere."""
    rng = random.Random(f"random {mode} {seed}")
    while True:
        name = f"random-{rng.randrange(1 << 32)}-{rng.randrange(3, 25)}"
        kind = rng.choice(list(SHORT if mode == "short" else KINDS))
        often = rng.random() < 0.3
        most = {"calls": 150, "close": 150, "flush": 12, "short": 40}[mode]
        yield Case(mode, name, kind, often and mode != "flush", rng.randrange(1, most))


def _mine(share: Share, cases: Iterator[Case]) -> Iterator[Case]:
    return (case for number, case in enumerate(cases) if share.mine(number))


def _work(share: Share) -> Iterator[Result]:
    """One process: the modes take turns by the time that they have used."""
    queues = {mode: _mine(share, _shuffled(mode, share.seed)) for mode in WEIGHTS}
    endless = {mode: _mine(share, _random(mode, share.seed)) for mode in WEIGHTS}
    used = dict.fromkeys(WEIGHTS, 0.0)
    kept = 0
    result = Result()
    begun = time.monotonic()
    while kept < KEPT:
        mode = min(WEIGHTS, key=lambda mode: used[mode] / WEIGHTS[mode])
        start = time.monotonic()
        case = next(queues[mode], None)
        if case is None:
            case = next(endless[mode])
            result.count("of random scenarios")
        share.announce(str(case))
        try:
            judged, struck = play(case)
        except PromiseError as error:
            kept += 1
            smaller = shrink(case, seconds=min(10.0, max(1.0, share.deadline - time.monotonic())))
            result.failures.append(Failure(str(error), str(smaller)))
        else:
            result.count("states judged", judged)
            result.count(NAMES[mode], int(struck))
        result.cases += 1
        used[mode] += time.monotonic() - start
        if share.expired():  # asked here, so that the shortest run tries something
            break
        if time.monotonic() - begun > 0.3:
            yield result
            result = Result()
            begun = time.monotonic()
    yield result
