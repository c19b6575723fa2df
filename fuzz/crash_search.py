"""Every state of a situation, judged with as few runs of the oracle as it takes.

What the oracle finds depends on what it looks at, and on nothing else.  Its runs
are kept in a tree: each node is a page that was looked at, each edge what it held.

    size 6 --- page 0 =a= page 5 =d= ... ends well        one run, all states that
                 |          +=e= ... ends well            agree with it on what
                 +==b= page 1 =c= ... ends well           it looked at

`Search.explore` walks through that tree along all contents that a situation
allows; where an edge is missing, it runs the oracle once more and the tree
grows.  So each state is covered by exactly one leaf, none is left out, and
states that agree in all that is looked at share one run.  This is exact, for the
engine is deterministic and a look that was missed fails (`crash_disk`).

A second crash begins anew from what the first run had written: `deeper`.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Final

from fuzz.crash_disk import PAGE, SIZE, LazyFile, Situation, Step
from fuzz.crash_model import Doubt
from fuzz.crash_run import History, Model, Verdict, survive

__all__ = ["COUNTED", "STRATEGIES", "Mode", "Place", "Search", "Trouble", "id_of", "summary"]

COUNTED: Final = 4096
"""States of one moment that are counted at most; a large value in doubt has 2 ** 200 of them."""

KEPT_RUNS: Final = 60_000
"""Runs that are kept in the tree; then it begins anew."""

KEPT_MOMENTS: Final = 500_000
"""Moments that are remembered, so that equal ones are not explored again."""


@dataclass(frozen=True)
class Mode:
    """How the disk behaves: bytes of a sector; zeros, garbage and tears or not; crashes on top of each other."""

    sector: int = PAGE
    hostile: bool = False
    deep: int = 1

    def __str__(self) -> str:
        return f"{self.sector}{'h' if self.hostile else ''}"

    @staticmethod
    def parse(text: str) -> Mode:
        """The mode that `str` gave. Raises `ValueError`."""
        sector = int(text.removesuffix("h"))
        if sector not in {512, PAGE}:
            raise ValueError(f"sectors have 512 or {PAGE} bytes here, not {sector}")
        return Mode(sector, text.endswith("h"))


Place = tuple[int, dict[int, int]]
"""A power cut: behind how many steps, and for pages (`SIZE`: the size) which of their contents."""


@dataclass(frozen=True)
class Trouble:
    """A state that the oracle does not accept: the power cuts that lead to it, and what is wrong."""

    places: tuple[Place, ...]
    story: str


@dataclass(slots=True)
class _Run:
    """A leaf: the looks below the last node, what was found; what was written, as long as somebody may go deeper.

    That is kept no longer: it is thousands of times the rest, and most runs are the deepest ones.
    """

    rest: tuple[tuple[int, int], ...]
    verdict: Verdict
    written: tuple[tuple[Step, ...], History] | None
    met: tuple[tuple[int, int], ...]
    deeper: bool = False  # a second crash has been tried everywhere in it


@dataclass(slots=True)
class _Node:
    """A page that was looked at, and what follows, by what it held."""

    page: int
    after: dict[int, _Node | _Run]


@dataclass
class Counts:
    """What a search has done."""

    moments: int = 0
    states: int = 0
    runs: int = 0
    second: int = 0
    drawn: int = 0
    sampled: int = 0


class Search:
    """Runs of the oracle, and the situations that were explored with them."""

    def __init__(self, expired: Callable[[], bool] = lambda: False, *, seed: int = 0, most_runs: int = 128) -> None:
        self.counts = Counts()
        self.expired = expired
        self.seed = seed
        self._root: _Node | _Run | None = None
        self._models: dict[int, Model] = {}  # what was found, each once
        self._kept = 0
        self._seen: set[Hashable] = set()
        self.most_runs = most_runs
        self._left = 0
        self._was_sampled = False

    # ------------------------------------------------------------ traces

    def cut_everywhere(
        self,
        start: Situation,
        trace: list[Step] | tuple[Step, ...],
        history: History,
        mode: Mode,
        *,
        first: int = 0,
        met: tuple[tuple[int, int], ...] = (),
        last: int | None = None,
        depth: int = 0,
    ) -> Trouble | None:
        """Cut the power behind each step of `trace` from `first` on; the first state that the oracle refuses."""
        doubt = Doubt(start, sector=mode.sector, hostile=mode.hostile, seed=self.seed)
        doubt.settle(list(met))
        counted = 0
        last = len(trace) if last is None else last
        for index in range(last + 1):
            if index:
                step = trace[index - 1]
                doubt.apply(step)
                if step[0] == "begin":
                    continue  # nothing has changed but a promise that is not due
            before, counted = counted, doubt.count(COUNTED)
            if index < first:
                continue
            if self.expired():
                return None
            allowed = history.allowed(index)
            key = (doubt.key(), tuple(map(id_of, allowed)))
            if key in self._seen:
                continue
            if len(self._seen) >= KEPT_MOMENTS:
                self._seen.clear()
            self._seen.add(key)
            self.counts.moments += 1
            trouble = self.explore(doubt.situation(), allowed, mode, depth)
            # What could be there before this step still can be, and was counted; a flush only takes away. Where
            # only samples were judged, nothing counts.
            if not self._was_sampled:
                self.counts.states += max(0, counted - before) if index > first or not first else counted
            if trouble is not None:
                (_, choice), *more = trouble.places
                return Trouble(((index, choice), *more), trouble.story)
        self.counts.drawn += doubt.drawn
        return None

    # ------------------------------------------------------------ one situation

    def explore(self, situation: Situation, allowed: list[Model], mode: Mode, depth: int = 0) -> Trouble | None:
        """Judge every state of `situation`; at most `most_runs` runs of the oracle, then samples by each strategy.

        O(looks) for states that agree with others in these, a run of the oracle elsewhere.
        """
        if self._kept > KEPT_RUNS:
            self._root = None
            self._models.clear()
            self._kept = 0
        outer, self._left = self._left, self.most_runs if depth == 0 else self.most_runs // 4
        try:
            return self._explore(situation, allowed, mode, depth)
        finally:
            self._left = outer

    def _explore(self, situation: Situation, allowed: list[Model], mode: Mode, depth: int) -> Trouble | None:
        if self._root is None:
            self._root = self._run(situation, {}, deeper=depth + 1 < mode.deep)
        root = self._root
        if isinstance(root, _Run):
            self._root = root = _split(root)
        trouble = self._walk(root, situation, {}, allowed, mode, depth)
        sampled = self._left <= 0
        if trouble is None and sampled:
            self.counts.sampled += 1
            trouble = self._sample(root, situation, allowed, mode, depth)
        self._was_sampled = sampled  # behind all second crashes, which have set it for themselves
        return trouble

    def _sample(
        self, node: _Node, situation: Situation, allowed: list[Model], mode: Mode, depth: int
    ) -> Trouble | None:
        """Too much for all: some states by each strategy."""
        rng = random.Random(f"{self.seed} {self.counts.moments}")
        for strategy in STRATEGIES.values():
            for _ in range(SAMPLES):
                self._left = 1
                forced = strategy(situation, rng)
                pages: dict[int, tuple[bytes, ...]] = {
                    page: (choice,) for page, choice in forced.items() if isinstance(choice, bytes)
                }
                size = forced[SIZE]
                assert isinstance(size, int)
                one = Situation((size,), pages)
                trouble = self._walk(node, one, {}, allowed, mode, depth)
                if trouble is not None:
                    place: Place = (0, _choice_indices(situation, forced))
                    return Trouble((place, *trouble.places[1:]), trouble.story)
        return None

    def _walk(
        self,
        node: _Node,
        situation: Situation,
        forced: dict[int, bytes | int],
        allowed: list[Model],
        mode: Mode,
        depth: int,
    ) -> Trouble | None:
        page = node.page
        choices: tuple[bytes | int, ...]
        choices = situation.sizes if page == SIZE else situation.pages.get(page, _NOTHING)
        for choice in choices:
            if self.expired():
                return None
            forced[page] = choice
            seen = choice if isinstance(choice, int) else hash(choice)
            after = node.after.get(seen)
            if after is None:
                if self._left <= 0:
                    break
                self._left -= 1
                after = node.after[seen] = self._run(situation, forced, deeper=depth + 1 < mode.deep)
            while isinstance(after, _Run) and after.rest and not _agrees(after.rest, situation):
                after = node.after[seen] = _split(after)
            trouble = (
                self._walk(after, situation, forced, allowed, mode, depth)
                if isinstance(after, _Node)
                else self._judge(after, situation, forced, allowed, mode, depth)
            )
            if trouble is not None:
                return trouble
        del forced[page]
        return None

    def _run(self, situation: Situation, forced: dict[int, bytes | int], *, deeper: bool) -> _Run:
        """Run the oracle, which looks at the pages of `forced` first. What it wrote is kept for who goes `deeper`."""
        path = tuple(forced)
        file = LazyFile(situation, dict(forced))
        verdict, history = survive(file)
        self.counts.runs += 1
        self._kept += 1
        if verdict.found is not None:  # thousands of runs find the same few
            known = self._models.setdefault(id_of(verdict.found), verdict.found)
            if known == verdict.found:
                verdict = Verdict(known, verdict.problem)
        met = tuple(file.met)
        if tuple(page for page, _ in met[: len(path)]) != path:
            raise AssertionError(f"the engine looked at {met[: len(path)]} where it had looked at {path} before")
        return _Run(met[len(path) :], verdict, (tuple(file.trace), history) if deeper else None, met)

    def _judge(
        self,
        run: _Run,
        situation: Situation,
        forced: dict[int, bytes | int],
        allowed: list[Model],
        mode: Mode,
        depth: int,
    ) -> Trouble | None:
        verdict = run.verdict
        problem = verdict.problem
        if verdict.found not in allowed and problem is None:
            problem = f"{summary(verdict.found)} is none of {', '.join(map(summary, allowed))}"
        if problem is not None:
            return Trouble(((0, choice_of(situation, run.met)),), problem)
        if depth + 1 < mode.deep and not run.deeper:
            run.deeper = True
            if run.written is None:  # it was met as the deepest one first
                run.written = self._run(situation, forced, deeper=True).written
                assert run.written is not None
            (trace, history), run.written = run.written, None
            before = self.counts.runs
            # Up to the end of the first commit after the recovery; what comes later is as after any commit.
            last = next(at for at, number in history.promised if number)
            only = Situation((run.met[0][1],), situation.pages)
            trouble = self.cut_everywhere(
                only, trace, _certain(history), mode, first=1, met=run.met, last=last, depth=depth + 1
            )
            self.counts.second += self.counts.runs - before
            if trouble is not None:
                here: Place = (0, choice_of(situation, run.met))
                return Trouble((here, *trouble.places), f"after a second power cut: {trouble.story}")
        return None


_NOTHING: Final = (bytes(PAGE),)


def _certain(history: History) -> History:
    """After the first crash it is certain what is there."""
    return History(history.states, [(0, 0), *history.promised])


def _split(run: _Run) -> _Node:
    """The first look below a leaf becomes a node."""
    (page, seen), *_ = run.rest
    run.rest = run.rest[1:]
    return _Node(page, {seen: run})


def _agrees(rest: tuple[tuple[int, int], ...], situation: Situation) -> bool:
    """Whether the situation leaves no choice in these looks but what was seen."""
    for page, seen in rest:
        choices = situation.pages.get(page, _NOTHING)
        if len(choices) != 1 or hash(choices[0]) != seen:
            return False
    return True


def choice_of(situation: Situation, met: tuple[tuple[int, int], ...]) -> dict[int, int]:
    """Which contents were seen, where there was a choice."""
    found = {}
    for page, seen in met:
        if page == SIZE:
            if len(situation.sizes) > 1:
                found[page] = situation.sizes.index(seen)
        else:
            choices = situation.pages.get(page, _NOTHING)
            if len(choices) > 1:
                found[page] = [hash(choice) for choice in choices].index(seen)
    return found


def id_of(model: Model) -> int:
    """Equal for equal models, nearly always different for others."""
    return hash(tuple((name, frozenset(tree.items())) for name, tree in model.items()))


def summary(model: Model | None) -> str:
    """A model in a few words."""
    if model is None:
        return "nothing"
    trees = [f"{'main' if name is None else name}: {len(tree)} entries" for name, tree in model.items()]
    # Not `id_of`: a replay in another process is to print the same.
    content = repr([(name, sorted(tree.items())) for name, tree in model.items()])
    return f"[{', '.join(trees)}, {zlib.crc32(content.encode()) & 0xFFFF:04x}]"


# ---------------------------------------------------------------- strategies

Choice = dict[int, bytes | int]
"""For each page one of its contents, for `SIZE` one of the sizes."""


def _oldest(situation: Situation, _rng: random.Random) -> Choice:
    return {SIZE: situation.sizes[0], **{page: contents[0] for page, contents in situation.pages.items()}}


def _newest(situation: Situation, _rng: random.Random) -> Choice:
    return {SIZE: situation.sizes[-1], **{page: contents[-1] for page, contents in situation.pages.items()}}


def _uniform(situation: Situation, rng: random.Random) -> Choice:
    return {
        SIZE: rng.choice(situation.sizes),
        **{page: rng.choice(contents) for page, contents in situation.pages.items()},
    }


def _one_old(situation: Situation, rng: random.Random) -> Choice:
    choice = _newest(situation, rng)
    page, contents = rng.choice([(page, contents) for page, contents in situation.pages.items() if len(contents) > 1])
    choice[page] = rng.choice(contents[:-1])
    return choice


def _one_new(situation: Situation, rng: random.Random) -> Choice:
    choice = {**_oldest(situation, rng), SIZE: situation.sizes[-1]}
    page, contents = rng.choice([(page, contents) for page, contents in situation.pages.items() if len(contents) > 1])
    choice[page] = rng.choice(contents[1:])
    return choice


def _low_new(situation: Situation, rng: random.Random) -> Choice:
    edge = rng.choice(list(situation.pages))
    new, old = _newest(situation, rng), _oldest(situation, rng)
    return {page: new[page] if page < edge else old[page] for page in new}


def _high_new(situation: Situation, rng: random.Random) -> Choice:
    edge = rng.choice(list(situation.pages))
    new, old = _newest(situation, rng), _oldest(situation, rng)
    return {page: new[page] if page >= edge or page == SIZE else old[page] for page in new}


STRATEGIES: Final[dict[str, Callable[[Situation, random.Random], Choice]]] = {
    "oldest": _oldest,
    "newest": _newest,
    "uniform": _uniform,
    "one old among new": _one_old,
    "one new among old": _one_new,
    "low pages new": _low_new,
    "high pages new": _high_new,
}
"""Ways to choose what survives, where there is too much to try all."""

SAMPLES: Final = 4
"""States that are tried by each strategy."""


def _only(forced: Choice) -> Situation:
    """The situation with this one state."""
    size = forced[SIZE]
    assert isinstance(size, int)
    return Situation((size,), {page: (choice,) for page, choice in forced.items() if isinstance(choice, bytes)})


def _choice_indices(situation: Situation, forced: Choice) -> dict[int, int]:
    """A choice by numbers, where there was one."""
    found = {}
    for page, value in forced.items():
        choices: tuple[bytes | int, ...] = situation.sizes if page == SIZE else situation.pages[page]
        if len(choices) > 1:
            found[page] = choices.index(value)
    return found
