"""Runs one case after the other, within bounds of time and memory, and shrinks what fails.

    time     a timer of this process's own computing: `SECONDS` a case, so a busy machine is no hang
    memory   a limit of the address space: `ROOM` more than before, else MemoryError
    signals  end the process; whoever started it names the case that it had announced

A failure is made small by leaving out edits and bytes of edits as long as it stays
the same failure: the same kind of exception, from the same line of the engine.
"""

from __future__ import annotations

import contextlib
import shutil
import signal
import sys
import tempfile
import threading
import traceback
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, Self

import cowdb
from cowdb.errors import KeyNotFoundError
from fuzz.corrupt_bench import Bench
from fuzz.corrupt_case import Case, apply, bytes_of, find_victim
from fuzz.corrupt_cli import cli_targets
from fuzz.corrupt_targets import TARGETS, Trial, Wrong
from fuzz.harness import Failure

try:
    import resource
except ImportError:  # pragma: no cover - a platform without limits
    resource = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType, TracebackType

__all__ = ["Runner", "Verdict"]

SECONDS: Final = 5.0
ROOM: Final = 384 << 20
SHRINKING: Final = 400
KEPT: Final = 3


class Hang(BaseException):
    """A case computes for longer than any should."""


@dataclass(frozen=True)
class Verdict:
    """How a case went: `story` is empty if it went well, `mark` tells failures apart."""

    outcome: str
    story: str = ""
    mark: str = ""
    trace: str = ""


class Runner:
    """Benches, a folder for real files, limits; a context manager."""

    def __init__(self) -> None:
        self._benches: dict[str, Bench] = {}
        self._folder = ""
        self._marks: dict[str, int] = {}
        self._undo: list[Callable[[], Any]] = []
        self._timed = False
        self._unraisable: list[str] = []
        self.targets = {name: function for name, (function, _) in TARGETS.items()}

    def __enter__(self) -> Self:
        shared = "/dev/shm"
        try:
            self._folder = tempfile.mkdtemp(prefix="cowdb-fuzz-", dir=shared)
        except OSError:
            self._folder = tempfile.mkdtemp(prefix="cowdb-fuzz-")
        self.targets.update(cli_targets(self._folder))
        if threading.current_thread() is threading.main_thread() and hasattr(signal, "SIGVTALRM"):
            before = signal.signal(signal.SIGVTALRM, _ring)
            self._undo.append(lambda: signal.signal(signal.SIGVTALRM, before))
            self._timed = True
        hook = sys.unraisablehook
        sys.unraisablehook = self._note_unraisable
        self._undo.append(lambda: setattr(sys, "unraisablehook", hook))
        self._limit_memory()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for undo in reversed(self._undo):
            undo()
        self._undo.clear()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _limit_memory(self) -> None:
        if resource is None:
            return
        try:
            with open("/proc/self/statm", encoding="ascii") as file:
                now = int(file.read().split()[0]) * resource.getpagesize()
        except OSError:
            return
        soft, hard = resource.getrlimit(resource.RLIMIT_AS)
        wanted = now + ROOM
        if hard != resource.RLIM_INFINITY and wanted > hard:
            return
        resource.setrlimit(resource.RLIMIT_AS, (wanted, hard))
        self._undo.append(lambda: resource.setrlimit(resource.RLIMIT_AS, (soft, hard)))

    def _note_unraisable(self, unraisable: Any) -> None:
        self._unraisable.append(f"{unraisable.exc_value!r} in {unraisable.object!r}")

    # ------------------------------------------------------------ one case

    def run(self, case: Case) -> Verdict:
        """Do the damage, ask, judge, and make the bench whole again."""
        of = find_victim(case.victim)
        bench = self._benches.get(case.victim)
        if bench is None:
            bench = self._benches[case.victim] = Bench(of.raw)
        target = self.targets[case.target]
        try:
            apply(case, of, bench)
            if self._timed:
                signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)
            try:
                target(Trial(case, of, bench, self._folder))
            finally:
                if self._timed:
                    signal.setitimer(signal.ITIMER_VIRTUAL, 0)
            verdict = Verdict("answered")
        except KeyNotFoundError as error:
            verdict = _failed(error, "a key is denied") if case.strict else Verdict("refused")
        except cowdb.Error as error:
            verdict = Verdict("refused", trace=str(error))
        except Wrong as error:
            verdict = _failed(error, "a wrong answer")
        except Hang as error:
            verdict = _failed(error, f"it computed for {SECONDS} s")
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # noqa: BLE001 - whatever else it is, it is a finding
            verdict = _failed(error, "not a typed error")
        finally:
            bench.restore()
        if self._unraisable:
            verdict = Verdict("failed", f"an exception in a finalizer: {self._unraisable[0]}", "finalizer")
            self._unraisable.clear()
        return verdict

    # ------------------------------------------------------------ failures

    def failure(self, case: Case, verdict: Verdict) -> Failure | None:
        """The failure, shrunk; None if there are enough of its kind."""
        seen = self._marks[verdict.mark] = self._marks.get(verdict.mark, 0) + 1
        if seen > KEPT:
            return None
        small = self._shrink(case, verdict.mark) if seen == 1 else case
        return Failure(self.run(small).story or verdict.story, str(small))

    def _shrink(self, case: Case, mark: str) -> Case:
        tries = SHRINKING

        def fails(candidate: Case) -> bool:
            nonlocal tries
            tries -= 1
            return tries >= 0 and self.run(candidate).mark == mark

        if "computed" in mark:
            tries = 12  # each costs the whole time
        if case.cut is not None and case.edits and fails(candidate := replace(case, cut=None)):
            case = candidate
        for index in range(len(case.edits) - 1, -1, -1):
            candidate = replace(case, edits=case.edits[:index] + case.edits[index + 1 :])
            if fails(candidate):
                case = candidate
        of = find_victim(case.victim)
        for index in range(len(case.edits) - 1, -1, -1):
            at, what = case.edits[index]
            raw = bytes_of(of, what)
            was = of.raw[at : at + len(raw)].ljust(len(raw), b"\0")
            step = len(raw)
            pieces = [(at, raw)]
            while step > 1 and tries > 0:  # halves of halves go back to what they were
                step = (step + 1) // 2
                pieces = [
                    (start + low, part[low : low + step])
                    for start, part in pieces
                    for low in range(0, len(part), step)
                    if part[low : low + step] != was[start + low - at : start + low - at + step]
                ]
                for piece in list(pieces):
                    rest = [other for other in pieces if other != piece]
                    candidate = replace(case, edits=(*case.edits[:index], *rest, *case.edits[index + 1 :]))
                    if rest and fails(candidate):
                        pieces = rest
            candidate = replace(case, edits=(*case.edits[:index], *pieces, *case.edits[index + 1 :]))
            if len(pieces) <= 64 and candidate != case and fails(candidate):
                case = candidate
        return case


def _ring(_signal: int, _frame: FrameType | None) -> None:
    raise Hang


def _failed(error: BaseException, what: str) -> Verdict:
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "/cowdb/" in frame.filename]
    last = own[-1] if own else frames[-1]
    place = f"{last.filename.rpartition('/')[2]}:{last.lineno} {last.name}"
    story = f"{what}: {type(error).__name__}: {str(error)[:300]} (at {place})"
    if isinstance(error, Wrong):
        mark = f"{what} {str(error)[:12]}"
    elif isinstance(error, Hang):
        mark = "computed too long"
    else:
        mark = f"{type(error).__name__} {place}"
    trace = ""
    with contextlib.suppress(MemoryError):
        trace = "".join(traceback.format_exception(error))
    return Verdict("failed", story, mark, trace)
