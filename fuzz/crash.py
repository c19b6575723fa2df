"""Power cuts: at every moment of every short workload, in every legal way, and in many long ones.

    workload  --> trace --> for each step: the situation --> every state of it --> the oracle
    (crash_run)  (crash_disk)              (crash_model)     (crash_search)       (crash_run)

First all sequences of one operation, in several modes of the disk; then all of two, with a second crash everywhere in
the recovery from the first; then, turn by turn, all of three in the same way, and random longer ones in random
modes, with up to three crashes on top of each other.  How a new file comes to be is in `crash_birth`.

A case is written ``put+lazy/plain/4096/0@17:0=1,5=0@4:1=1``: operations, tuning, mode of
the disk, seed; then for each power cut behind how many steps it comes, and which of their contents the pages
hold.  Without power cuts it stands for all of them.
"""

from __future__ import annotations

import functools
import itertools
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Final, Self

from fuzz.crash_birth import births
from fuzz.crash_disk import PLAIN, SIZE, LazyFile, Situation, installed
from fuzz.crash_model import Doubt
from fuzz.crash_run import ALPHABET, TUNINGS, History, Verdict, empty, run_words, survive
from fuzz.crash_search import Mode, Place, Search, Trouble, summary
from fuzz.harness import Failure, Options, Progress, Result, Share, spread

__all__ = ["Case", "attempt", "run", "sequences", "work"]

MODES: Final = (Mode(), Mode(512), Mode(hostile=True), Mode(512, hostile=True))
_SHRINK_SECONDS: Final = 20.0
_LONGEST: Final = 9
_KINDS: Final = {
    "moments": "moments between two steps, of which each state was judged or samples were",
    "runs": "runs of the oracle: states that differ in what recovery looks at",
    "second": "runs of the oracle after a second crash, in the recovery",
    "sampled": "moments with too many states for all of them",
}


@dataclass(frozen=True)
class Case:
    """A workload and a mode of the disk; with `places`, one state that a power cut, or two, have left."""

    words: tuple[str, ...]
    tuning: str = "plain"
    mode: Mode = MODES[0]
    seed: int = 0
    places: tuple[Place, ...] = ()

    def __str__(self) -> str:
        places = "".join(
            f"@{index}:" + ",".join(f"{page}={choice}" for page, choice in sorted(choices.items()))
            for index, choices in self.places
        )
        return f"{'+'.join(self.words)}/{self.tuning}/{self.mode}/{self.seed}{places}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """The case that `str` gave. Raises `ValueError`."""
        head, *tail = text.split("@")
        parts = head.split("/")
        if len(parts) != 4:
            raise ValueError(f"{text!r} is not operations/tuning/mode/seed@step:page=choice,...")
        words, tuning, mode, seed = parts
        places = []
        for place in tail:
            index, choices = place.split(":")
            pairs = [pair.split("=") for pair in choices.split(",") if pair]
            places.append((int(index), {int(page): int(choice) for page, choice in pairs}))
        names = tuple(word for word in words.split("+") if word)
        unknown = set(names) - set(ALPHABET) | {tuning} - set(TUNINGS)
        if unknown:
            raise ValueError(f"no operation or tuning is called {', '.join(sorted(unknown))}")
        return cls(names, tuning, Mode.parse(mode), int(seed), tuple(places))


def run(options: Options, progress: Progress) -> Result:
    """Search for a power cut that loses something, or repeat one case."""
    if options.replay is not None:
        if options.replay != "birth":
            Case.parse(options.replay)  # what cannot be read is said here
        return spread(functools.partial(_replay, options.replay), replace(options, jobs=1), progress, environment=PLAIN)
    return spread(work, options, progress, environment=PLAIN)


# ---------------------------------------------------------------- the order of things


def sequences(length: int) -> Iterator[tuple[str, ...]]:
    """All sequences of so many operations; none that begins by ending a reader that is not there."""
    for words in itertools.product(ALPHABET, repeat=length):
        if _sensible(words):
            yield words


def _sensible(words: tuple[str, ...]) -> bool:
    """Whether each operation that needs another one before it has it; else a shorter sequence does the same."""
    readers = 0
    for word in words:
        if word == "end":
            if not readers:
                return False
            readers -= 1
        elif word == "reader":
            readers += 1
        elif word in {"reopen", "kill"}:
            readers = 0
    return "drop" not in words or bool({"tree", "several"} & set(words[: words.index("drop")]))


def work(share: Share) -> Iterator[Result]:
    """The work of one process."""
    with installed():
        if share.index == 0:
            share.announce("birth")
            yield from _be_born(share)
        searches: dict[tuple[Mode, str], Search] = {}
        for case in cases(share.seed, share.jobs, share.index):
            if share.expired():
                return
            share.announce(str(case))
            search = searches.get((case.mode, case.tuning))
            if search is None:
                search = searches[case.mode, case.tuning] = Search(share.expired, seed=case.seed)
            yield judged(case, search)


def judged(case: Case, search: Search) -> Result:
    """The result of one case, with its failure shrunk."""
    before = replace(search.counts)
    trouble = attempt(case, search)
    after = search.counts
    result = Result(after.states - before.states)
    for field, kind in _KINDS.items():
        if amount := getattr(after, field) - getattr(before, field):
            result.count(kind, amount)
    result.count(f"sequences of {len(case.words)} operations" if len(case.words) < 4 else "longer sequences")
    if trouble is not None:
        result.failures.append(shrunk(replace(case, places=trouble.places), trouble.story))
    return result


def cases(seed: int, jobs: int, index: int) -> Iterator[Case]:
    """The cases of one worker, without end."""
    mine = itertools.count()

    def own() -> bool:
        return next(mine) % jobs == index

    deep = replace(MODES[0], deep=2)
    for mode in (MODES[0], MODES[2], MODES[1]):
        yield from (Case(words, "plain", mode, seed) for words in sequences(1) if own())
    yield from (Case(words, tuning, MODES[0], seed) for tuning in list(TUNINGS)[1:] for words in sequences(1) if own())
    yield from (Case(words, "plain", deep, seed) for length in (1, 2) for words in sequences(length) if own())
    threes = list(sequences(3))
    random.Random(seed).shuffle(threes)
    rest = (Case(words, "plain", deep, seed) for words in threes if own())
    rng = random.Random(f"{seed} {index}")
    while True:
        yield from itertools.islice(rest, 40)
        yield Case(
            _longer(rng), rng.choice(list(TUNINGS)), replace(rng.choice(MODES), deep=rng.choice((1, 2, 3))), seed
        )


def _longer(rng: random.Random) -> tuple[str, ...]:
    """A sequence by one of several strategies: any words; few words often; much that is lazy; much that is freed."""
    favourites = rng.choice(
        (
            list(ALPHABET),
            rng.sample(list(ALPHABET), 3),
            ["lazy", "sync", "kill", "reopen", "put"],
            ["fill", "range", "reader", "end", "replace", "delete"],
            ["group", "put", "lazy", "large"],
        )
    )
    length = rng.randrange(4, _LONGEST + 1)
    return tuple(rng.choice(favourites if rng.random() < 0.8 else list(ALPHABET)) for _ in range(length))


def _be_born(share: Share) -> Iterator[Result]:
    result = Result()
    for problem in births(share.seed):
        result.cases += 1
        if problem is not None:
            result.failures.append(Failure(f"while a database is made: {problem}", "birth"))
            break
        if share.expired():
            break
    result.count("states of a file that is being made", result.cases)
    yield result


# ---------------------------------------------------------------- one case


def attempt(case: Case, search: Search) -> Trouble | None:
    """Cut the power everywhere in the last operation of a short sequence, and everywhere in a long one."""
    at: list[int] = []
    try:
        done = run_words(case.words, case.tuning, at)
    except Exception as error:  # noqa: BLE001 - whatever it is, it is a finding
        return Trouble((), f"without any power cut: {type(error).__name__}: {error}")
    # The moments before the last operation are those of a shorter sequence. The one right before it is not: an
    # operation that promises something and writes nothing is seen there.
    first = at[-2] if 1 < len(case.words) < 4 else 0
    return search.cut_everywhere(empty(), done.file.trace, done.history, case.mode, first=first)


def whole(case: Case, expired: Callable[[], bool]) -> Trouble | None:
    """Cut the power everywhere in a sequence, from the beginning."""
    try:
        done = run_words(case.words, case.tuning)
    except Exception as error:  # noqa: BLE001 - whatever it is, it is a finding
        return Trouble((), f"without any power cut: {type(error).__name__}: {error}")
    search = Search(expired, seed=case.seed)
    return search.cut_everywhere(empty(), done.file.trace, done.history, case.mode)


def shrunk(case: Case, story: str) -> Failure:
    """The same failure with fewer operations, and with as much on disk as there can be."""
    deadline = time.monotonic() + _SHRINK_SECONDS

    def expired() -> bool:
        return time.monotonic() >= deadline

    smaller = True
    while smaller and not expired():
        smaller = False
        for index in range(len(case.words)):
            fewer = replace(case, words=case.words[:index] + case.words[index + 1 :], places=())
            trouble = whole(fewer, expired)
            if trouble is not None:
                case, story = replace(fewer, places=trouble.places), trouble.story
                smaller = True
                break
    for number, (index, choices) in enumerate(case.places):
        for page in list(choices):
            if expired():
                break
            less = {other: choice for other, choice in choices.items() if other != page}
            places = (*case.places[:number], (index, less), *case.places[number + 1 :])
            problem = problem_of(replace(case, places=places))
            if problem is not None:
                choices, story = less, problem  # noqa: PLW2901 - it shrinks on
                case = replace(case, places=places)
    return Failure(story, str(case))


def problem_of(case: Case, say: Callable[[str], None] = lambda _: None) -> str | None:
    """What is wrong with the one state that the case describes; None if nothing is."""
    try:
        done = run_words(case.words, case.tuning)
    except Exception as error:  # noqa: BLE001 - whatever it is, it is a finding
        return f"without any power cut: {type(error).__name__}: {error}"
    start, trace, history = empty(), done.file.trace, done.history
    met: list[tuple[int, int]] = []
    problem = None
    for number, (index, choices) in enumerate(case.places, 1):
        doubt = Doubt(start, sector=case.mode.sector, hostile=case.mode.hostile, seed=case.seed)
        doubt.settle(met)
        if index > len(trace):
            return f"this case cannot be replayed: there is no step {index}, the trace has {len(trace)}"
        for step in trace[:index]:
            doubt.apply(step)
        situation = doubt.situation()
        allowed = history.allowed(index)
        say(f"power cut {number}, behind step {index} of {len(trace)}:")
        for place, (kind, at, data) in enumerate(trace[max(0, index - 8) : index], max(0, index - 8) + 1):
            say(f"  step {place}: {kind} {at}" + (f", {len(data)} bytes" if data else ""))
        file = _chosen(situation, choices, say)
        if file is None:
            return None
        verdict, after = survive(file)
        problem = _problem(verdict, allowed)
        say(f"  found: {summary(verdict.found)}; allowed: {', '.join(map(summary, allowed))}")
        say(f"  {problem or 'nothing is wrong'}")
        if problem is not None:
            break
        start, trace, met = Situation((file.met[0][1],), situation.pages), file.trace, file.met
        history = History(after.states, [(0, 0), *after.promised])
    return problem


def _chosen(situation: Situation, choices: dict[int, int], say: Callable[[str], None]) -> LazyFile | None:
    """A file in which the pages hold what `choices` says, and the newest content elsewhere."""
    forced: dict[int, bytes | int] = {page: contents[-1] for page, contents in situation.pages.items()}
    forced[SIZE] = situation.sizes[-1]
    for page, choice in choices.items():
        contents: tuple[bytes | int, ...] = situation.sizes if page == SIZE else situation.pages.get(page, ())
        if not 0 <= choice < len(contents):
            say(f"there is no version {choice} of page {page}: it has {len(contents)}")
            return None
        forced[page] = contents[choice]
        what = "the file's size" if page == SIZE else f"page {page}"
        say(f"  {what} is as in version {choice} of 0 to {len(contents) - 1}, oldest first")
    return LazyFile(situation, forced)


def _problem(verdict: Verdict, allowed: list[dict[str | None, dict[bytes, bytes]]]) -> str | None:
    if verdict.problem is None and verdict.found not in allowed:
        return f"{summary(verdict.found)} is none of {', '.join(map(summary, allowed))}"
    return verdict.problem


def _replay(text: str, _share: Share) -> Iterator[Result]:
    result = Result(1)
    with installed():
        if text == "birth":
            problem = next((problem for problem in births(0) if problem is not None), None)
        else:
            case = Case.parse(text)
            if case.places:
                problem = problem_of(case, print)
            else:
                trouble = whole(replace(case, mode=replace(case.mode, deep=2)), lambda: False)
                problem = None if trouble is None else trouble.story
                if trouble is not None:
                    text = str(replace(case, places=trouble.places))
    print(f"{text}: {problem or 'nothing is wrong'}", flush=True)
    if problem is not None:
        result.failures.append(Failure(problem, text))
    yield result
