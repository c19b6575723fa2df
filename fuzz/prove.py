"""The proof of the harness: bugs are switched on one by one, and each must be seen.

    bug on    the part tries its cases in its own order ... case n fails        caught, after so long
    bug off   the part tries the same n cases           ... none fails          it was the bug

A harness that sees nothing may be blind.  So a bug that stays unseen is a failure here, as is a case
that fails without one.  The bugs are in `prove_bugs`; nothing of them is in the engine.
"""

from __future__ import annotations

import contextlib
import importlib
import itertools
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

from fuzz.crash import Case, attempt, cases, problem_of
from fuzz.crash_birth import births
from fuzz.crash_disk import PLAIN, installed, replaced
from fuzz.crash_search import Mode, Search
from fuzz.harness import Failure, Options, Progress, Result, Share, spread
from fuzz.prove_bugs import BUGS

__all__ = ["Proof", "Row", "caught", "run", "switched_on"]

_LEAST_SECONDS: Final = 2.0
BLIND_SECONDS: Final = 1800.0
"""With so much time in all, the search is blind; with less, the case in which a bug shows comes first."""

Judge = Callable[[], str | None]
"""Tries one case; what is wrong with it, or None."""


@dataclass(frozen=True)
class Row:
    """A bug: who saw it, in which case of how many, after how long; and how many cases were right without it."""

    bug: str
    part: str
    case: str
    tried: int
    seconds: float
    right: int


@dataclass
class Proof(Result):
    """A result with the table of the bugs."""

    rows: list[Row] = field(default_factory=list)

    def merge(self, other: Result) -> None:
        """See `Result`."""
        super().merge(other)
        if isinstance(other, Proof):
            self.rows += other.rows


def run(options: Options, progress: Progress) -> Result:
    """Switch every bug on and off, or with `replay` the one of this name; prints the table."""
    if options.replay is not None and options.replay not in BUGS:
        raise ValueError(f"there is no bug {options.replay!r}; there are {', '.join(BUGS)}")
    progress.total(len(BUGS) if options.replay is None else 1)
    proof = Proof()
    spread(_Work(options.replay, options.seconds >= BLIND_SECONDS), options, progress, environment=PLAIN, total=proof)
    proof.rows.sort(key=lambda row: list(BUGS).index(row.bug))
    progress.say(f"{'bug':40} {'seen by':8} {'cases':>6} {'seconds':>8} {'right without':>13}  in")
    for row in proof.rows:
        progress.say(f"{row.bug:40} {row.part:8} {row.tried:>6} {row.seconds:>8.2f} {row.right:>13}  {row.case}")
    return proof


@dataclass(frozen=True)
class _Work:
    """The work of one process: its share of the bugs, or the one."""

    only: str | None
    blind: bool

    def __call__(self, share: Share) -> Iterator[Result]:
        names = [self.only] if self.only is not None else list(BUGS)
        names = [name for number, name in enumerate(names) if share.mine(number)]
        for number, name in enumerate(names):
            share.announce(name)
            left = share.deadline - time.monotonic()
            patience = max(_LEAST_SECONDS, 2 * left / (len(names) - number))
            yield caught(name, share.seed, patience, blind=self.blind)


@contextlib.contextmanager
def switched_on(name: str) -> Iterator[None]:
    """The engine with this bug."""
    with contextlib.ExitStack() as stack:
        for owner, attribute, value in BUGS[name].changes():
            if not hasattr(owner, attribute):
                setattr(owner, attribute, None)
                stack.callback(delattr, owner, attribute)
            stack.enter_context(replaced(owner, attribute, value))
        yield


def caught(name: str, seed: int, seconds: float, *, blind: bool = True) -> Proof:
    """Look for a bug for so long; then try the same cases without it."""
    part = BUGS[name].part
    begun = time.monotonic()
    known = "" if blind and not BUGS[name].rare else BUGS[name].known
    tried = 0
    story: str | None = None
    case = ""
    with contextlib.ExitStack() as stack:
        if part != "faults":
            stack.enter_context(installed())
        with switched_on(name):
            for name_of_case, judge in _cases(part, seed, known):
                case = name_of_case
                tried += 1
                story = judge()
                if story is not None or time.monotonic() - begun > seconds:
                    break
        took = time.monotonic() - begun
        if story is None:
            return Proof(1, [Failure(f"the bug {name!r} was switched on and not seen in {tried} cases", name)])
        right = 0
        proof = Proof(1, counts={"bugs that were seen": 1})
        for other, judge in itertools.islice(_cases(part, seed, known), tried):
            problem = judge()
            if problem is not None:
                proof.failures.append(Failure(f"without a bug, {part} complains: {other}: {problem}", name))
                break
            right += 1
            if time.monotonic() - begun > 3 * (took + seconds):
                break  # it takes longer to find nothing; the part itself does that all the time
    proof.rows.append(Row(name, part, case, tried, took, right))
    return proof


def _cases(part: str, seed: int, known: str) -> Iterator[tuple[str, Judge]]:
    """The cases of a part in its own order, behind the one that is known."""
    if part == "birth":
        yield "birth", lambda: next((problem for problem in births(seed) if problem is not None), None)
        return
    if part == "faults":
        yield from _faults(seed, known)
        return
    searches: dict[tuple[Mode, str, int], Search] = {}
    first = [Case.parse(known)] if known else []
    for case in itertools.chain(first, cases(seed, 1, 0)):
        search = searches.setdefault((case.mode, case.tuning, case.seed), Search(seed=case.seed))

        def judge(case: Case = case, search: Search = search) -> str | None:
            if case.places:
                return problem_of(case)
            trouble = attempt(case, search)
            return None if trouble is None else trouble.story

        yield str(case), judge


def _faults(seed: int, known: str) -> Iterator[tuple[str, Judge]]:
    """Flushes that fail, in all scenarios of one thread, shuffled: with a bug, threads may wait for ever."""
    faults = importlib.import_module("fuzz.faults")
    play, parse = (getattr(importlib.import_module("fuzz.faults_cases"), name) for name in ("play", "parse"))
    scenarios = list(importlib.import_module("fuzz.faults_scenarios").SCENARIOS)
    random.Random(seed).shuffle(scenarios)
    everything = (case for name in scenarios if "group" not in name for case in faults.all_cases("flush", name))
    for case in itertools.chain([parse(known)] if known else [], everything):

        def judge(case: object = case) -> str | None:
            try:
                play(case)
            except AssertionError as error:
                return str(error) or repr(error)
            return None

        yield str(case), judge
