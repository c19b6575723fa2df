"""Damaged, forged, truncated and shuffled files: an answer is right, or a typed error, and nothing worse.

    valid     a corpus of sound files, asked everything: no errors at all
    flip      every byte of files of about 64 pages, four changes each
    forge     damage that knows the format; checksums made right again up to the meta pages
    cut       the file ends at every sector, and beside page edges
    page      a page in the place of another, or of an older version of itself
    sector    zeros, ones, noise, or a neighbour's bytes in each sector
    bomb      a small sealed file that claims 100 ** 40 entries

Each case is asked one target (see `corrupt_targets`), so that all of them meet all
kinds of damage within the time.  With raw damage wrong answers are failures; with
forged checksums, everything but a typed error or some answer.  In both, so are
signals, more than `SECONDS` of computing and more than `ROOM` of memory.
"""

from __future__ import annotations

import functools
import itertools
import math
import random
import time
from typing import TYPE_CHECKING, Final

from fuzz.corrupt_case import Case, parse
from fuzz.corrupt_forge import Forger
from fuzz.corrupt_run import Runner
from fuzz.corrupt_targets import TARGETS
from fuzz.corrupt_victim import corpus, victim, victims
from fuzz.harness import Failure, Options, Progress, Result, Share, spread

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fuzz.corrupt_case import Edit


__all__ = ["run"]

SECTOR: Final = 512
MIX: Final = (("flip", 30), ("forge", 60), ("cut", 2), ("page", 5), ("sector", 3))
"""Cases of each kind in a hundred, after those that are tried first."""

REPORT_SECONDS: Final = 0.3
CLI_EVERY: Final = 40
"""One case in so many goes to a command instead, when there are any."""


def run(options: Options, progress: Progress) -> Result:
    """Damage files until the time is up; with ``options.replay``, one case."""
    if options.replay is not None:
        return _replay(options.replay, progress)
    return spread(functools.partial(work, kinds=options.kinds), options, progress)


def _replay(text: str, progress: Progress) -> Result:
    case = parse(text)
    with Runner() as runner:
        verdict = runner.run(case)
        progress.say(f"{verdict.outcome}. {verdict.story}\n{verdict.trace}".rstrip())
    failures = [Failure(verdict.story, text)] if verdict.story else []
    return Result(1, failures, {verdict.outcome: 1})


def work(share: Share, kinds: tuple[str, ...] = ()) -> Iterator[Result]:
    """One worker's part; only damage of these `kinds`, if any are named."""
    result = Result()
    reported = time.monotonic()
    with Runner() as runner:
        for kind, case in _cases(share, runner, kinds):
            if share.expired():
                break
            share.announce(str(case))
            verdict = runner.run(case)
            result.cases += 1
            result.count(kind)
            result.count(f"{kind}: {verdict.outcome}")
            if verdict.story:
                failure = runner.failure(case, verdict)
                if failure is not None:
                    result.failures.append(failure)
            elif kind == "valid" and verdict.outcome != "answered":
                result.failures.append(Failure(f"a sound file was refused: {verdict.trace}", str(case)))
            if time.monotonic() - reported > REPORT_SECONDS:
                yield result
                result = Result()
                reported = time.monotonic()
    yield result


# ---------------------------------------------------------------- cases


def _cases(share: Share, runner: Runner, kinds: tuple[str, ...] = ()) -> Iterator[tuple[str, Case]]:
    """The worker's cases: first what is few, then the rest mixed, without end; with flips alone, each byte once."""
    for number, (kind, case) in enumerate(_first(runner)):
        if share.mine(number):
            yield kind, case
    commands = [name for name in runner.targets if name.startswith("cli:")]
    sources = {
        "flip": _shared(_flips(share.seed), share),
        "forge": _shared(_forged(share.seed), share),
        "cut": _shared(_cuts(share.seed), share),
        "page": _shared(_pages(share.seed), share),
        "sector": _shared(_sectors(share.seed), share),
    }
    rounds = [kind for kind, amount in MIX for _ in range(amount) if not kinds or kind in kinds]
    random.Random(share.seed).shuffle(rounds)
    for number in itertools.count():
        kind = rounds[number % len(rounds)]
        try:
            case = next(sources[kind])
        except StopIteration:  # every byte has been tried: forge instead
            if kinds and "forge" not in kinds:
                return
            kind = "forge"
            case = next(sources[kind])
        if commands and not number % CLI_EVERY:
            name = commands[number // CLI_EVERY % len(commands)]
            case = Case(case.victim, name, case.edits, case.sealed, case.cut)
        yield kind, case


def _shared(cases: Iterator[Case], share: Share) -> Iterator[Case]:
    return itertools.islice(cases, share.index, None, share.jobs)


def _first(runner: Runner) -> Iterator[tuple[str, Case]]:
    """Sound files, asked everything; and the bomb."""
    for one in corpus():
        for target in runner.targets:
            if not target.startswith("cli:") or one.name in ("settled", "crashed"):
                yield "valid", Case(one.name, target, ())
    for target in runner.targets:
        yield "bomb", Case("bomb", target, (), sealed=True)


def _schedule() -> list[str]:
    """Names of targets, as often as they are to be chosen."""
    names = [name for name, (_, weight) in TARGETS.items() for _ in range(weight)]
    random.Random(1).shuffle(names)
    return names


def _mixed(total: int, seed: int) -> Iterator[int]:
    """Every number below `total` once, in an order of the seed's, spread from the beginning on."""
    step = int(total * 0.618) | 1
    while math.gcd(step, total) != 1:
        step += 2
    return ((seed + number * step) % total for number in range(total))


def _flips(seed: int) -> Iterator[Case]:
    """Each byte of each victim, four changes: a low bit, a high bit, zero or ones, another value."""
    names = _schedule()
    of_all = [(one, _mixed(4 * len(one.raw), seed)) for one in victims()]
    for numbers in itertools.zip_longest(*(order for _, order in of_all)):
        for (one, _), number in zip(of_all, numbers, strict=True):
            if number is None:
                continue
            at, way = divmod(number, 4)
            old = one.raw[at]
            new = (old ^ 1, old ^ 0x80, 0xFF if not old else 0, (old * 7 + at % 251 + 3) & 0xFF)[way]
            if new == old:
                new ^= 0x55
            yield Case(one.name, names[(number * 31 + seed) % len(names)], ((at, bytes((new,))),))


def _forged(seed: int) -> Iterator[Case]:
    """Damage that knows the format, without end."""
    names = _schedule()
    forgers = [(one, Forger(one)) for one in (*victims(), victim("bomb"))]
    for number in itertools.count():
        rng = random.Random(seed << 40 | number)
        one, forger = forgers[2 if not number % 50 else number % 2]
        yield Case(one.name, rng.choice(names), forger.forge(rng), sealed=True)


def _cuts(seed: int) -> Iterator[Case]:
    """The end of the file at every sector and beside page edges; then cuts together with forged pages."""
    names = _schedule()
    rng = random.Random(seed)
    for one in victims():
        size = one.page_size
        places = {*range(0, len(one.raw), SECTOR)}
        places.update(edge + by for edge in range(0, len(one.raw), size) for by in (1, 31, size - 1))
        for place in rng.sample(sorted(places), len(places)):
            yield Case(one.name, rng.choice(names), (), cut=place)
    forgers = [(one, Forger(one)) for one in victims()]
    while True:
        one, forger = rng.choice(forgers)
        yield Case(one.name, rng.choice(names), forger.forge(rng), sealed=True, cut=rng.randrange(len(one.raw)))


def _pages(seed: int) -> Iterator[Case]:
    """A page in place of another, two exchanged, an older version, a lost write of a whole image's page."""
    names = _schedule()
    rng = random.Random(seed + 1)
    for number in itertools.count():
        one = victims()[number % 2]
        size = one.page_size
        target, source = rng.randrange(one.pages), rng.randrange(one.pages)
        old = rng.randrange(len(one.older))
        edits: tuple[Edit, ...] = (
            ((target * size, f"page{source}"),),
            ((target * size, f"page{source}"), (source * size, f"page{target}")),
            ((target * size, f"old{old}:{target}"),),
            ((target * size, f"old{old}:{target}"), (source * size, f"old{old}:{source}")),
        )[number // 2 % 4]
        # Old versions of pages are what a device does that loses writes; a meta page among them may lead to the
        # whole older state, so what comes then is judged like forged damage.
        sealed = rng.randrange(3) == 0 or target < 2 or source < 2
        yield Case(one.name, rng.choice(names), edits, sealed=sealed)


def _sectors(seed: int) -> Iterator[Case]:
    """Each sector zeroed, all ones, noise, or with its neighbour's bytes."""
    names = _schedule()
    rng = random.Random(seed + 2)
    while True:
        for one in victims():
            for place in rng.sample(range(0, len(one.raw), SECTOR), len(one.raw) // SECTOR):
                way = rng.randrange(4)
                neighbour = one.raw[place - SECTOR : place] if place else bytes(SECTOR)
                raw = (b"\0" * SECTOR, b"\xff" * SECTOR, rng.randbytes(SECTOR), neighbour)[way]
                yield Case(one.name, rng.choice(names), ((place, raw),))
