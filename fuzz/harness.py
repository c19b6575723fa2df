"""What the parts of the harness share: options, results, progress, and work spread over processes.

A part is a module with ``run(options, progress) -> Result``.  It cuts its work into
cases, hands a top-level function to `spread`, and adds up what comes back:

    run --> spread --+--> worker 0: work(share) yields Result, Result, ...  --+
                     +--> worker 1: ...                                       +--> one Result
                     +--> (a worker that dies or hangs is a Failure as well) --+

Each failure carries the argument of ``--replay`` that repeats it, already shrunk.
"""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import signal
import sys
import time
import traceback
from dataclasses import dataclass, field
from multiprocessing import connection as connections
from typing import TYPE_CHECKING, Any, Final, Protocol, Self

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import TracebackType

__all__ = [
    "Bar",
    "Failure",
    "Options",
    "Progress",
    "Quiet",
    "Result",
    "Share",
    "describe_exit",
    "spread",
]

GRACE_SECONDS: Final = 30.0
"""A worker that is still at it so long after its deadline hangs."""

KEPT_FAILURES: Final = 50
"""More are counted and forgotten: one bug may fail in a million cases."""

_ANNOUNCED_BYTES: Final = 4096
_AT_ONCE: Final = 1000


# ---------------------------------------------------------------- options and results


@dataclass(frozen=True)
class Options:
    """What was asked for: how long, from which seed, in how many processes; or one case only.

    Every part obeys `seconds`, also when they are few.  The same seed tries the same cases in the same order; how far
    it gets depends on the machine.
    """

    seconds: float
    seed: int
    jobs: int
    replay: str | None = None
    kinds: tuple[str, ...] = ()
    """Only these kinds of cases, where a part has kinds; none named: all."""


@dataclass(frozen=True)
class Failure:
    """Something that must not be: `story` in a sentence or two, `replay` for ``python -m fuzz PART --replay``."""

    story: str
    replay: str


@dataclass
class Result:
    """What a part, or a piece of one, has tried and found.

    `cases` are disk states, calls, mutations or rounds; `counts` the same by kind;
    `skipped` says why something could not run here.
    """

    cases: int = 0
    failures: list[Failure] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    skipped: str | None = None

    def merge(self, other: Result) -> None:
        """Add the other's figures to these. At most `KEPT_FAILURES` failures are kept, the others counted."""
        self.cases += other.cases
        room = max(0, KEPT_FAILURES - len(self.failures))
        self.failures += other.failures[:room]
        for kind, count in other.counts.items():
            self.count(kind, count)
        if len(other.failures) > room:
            self.count("failures not kept", len(other.failures) - room)
        if other.skipped is not None and (self.skipped is None or other.skipped not in self.skipped):
            self.skipped = other.skipped if self.skipped is None else f"{self.skipped}; {other.skipped}"

    def count(self, kind: str, amount: int = 1) -> None:
        """Add to one of the counts."""
        self.counts[kind] = self.counts.get(kind, 0) + amount


# ---------------------------------------------------------------- progress


class Progress(Protocol):
    """Shows how far a part is."""

    def total(self, cases: int | None) -> None:
        """So many cases there will be; None: as many as the time allows."""

    def advance(self, cases: int) -> None:
        """So many more are done."""

    def say(self, text: str) -> None:
        """A line for the reader, at once."""


class Quiet:
    """A `Progress` that keeps to itself, for tests; `done` counts, `said` remembers."""

    def __init__(self) -> None:
        self.done = 0
        self.said: list[str] = []

    def total(self, cases: int | None) -> None:
        """See `Progress`."""

    def advance(self, cases: int) -> None:
        """See `Progress`."""
        self.done += cases

    def say(self, text: str) -> None:
        """See `Progress`."""
        self.said.append(text)


class Bar:
    """A bar on a terminal if rich is there; elsewhere one line at the end of the part.

    A context manager.  The bar shows the time that has passed as long as the number of cases is not known.
    """

    def __init__(self, part: str, seconds: float) -> None:
        self._part = part
        self._seconds = seconds
        self._begun = time.monotonic()
        self._done = 0
        self._total: int | None = None
        self._rich: Any = None
        self._task: Any = None

    def __enter__(self) -> Self:
        self._begun = time.monotonic()
        if sys.stdout.isatty():
            try:
                from rich import progress  # noqa: PLC0415 - optional, and slow to import
            except ImportError:
                return self
            self._rich = progress.Progress(
                progress.TextColumn("{task.description:>8}"),
                progress.BarColumn(),
                progress.TextColumn("{task.fields[cases]:>14,} cases"),
                progress.TimeElapsedColumn(),
            )
            self._rich.start()
            self._task = self._rich.add_task(self._part, total=self._seconds, cases=0)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        elapsed = time.monotonic() - self._begun
        if self._rich is not None:
            self._rich.stop()
        else:
            rate = self._done / elapsed if elapsed else 0.0
            print(f"{self._part:>8}: {self._done:,} cases in {elapsed:.1f} s, {rate:,.0f} a second", flush=True)

    def total(self, cases: int | None) -> None:
        """See `Progress`."""
        self._total = cases

    def advance(self, cases: int) -> None:
        """See `Progress`."""
        self._done += cases
        if self._rich is not None:
            if self._total is None:
                share = min(1.0, (time.monotonic() - self._begun) / max(self._seconds, 0.001))
            else:
                share = min(1.0, self._done / max(self._total, 1))
            self._rich.update(self._task, completed=share * self._seconds, cases=self._done)

    def say(self, text: str) -> None:
        """See `Progress`."""
        if self._rich is not None:
            self._rich.console.print(text, highlight=False, markup=False, soft_wrap=True)
        else:
            print(text, flush=True)


# ---------------------------------------------------------------- work in several processes


@dataclass(frozen=True)
class Share:
    """One worker's part of the work: number `index` of `jobs`, until `deadline` (of `time.monotonic`)."""

    index: int
    jobs: int
    seed: int
    deadline: float
    announced: Any = field(default=None, repr=False)

    def announce(self, case: str) -> None:
        """Say which case comes next, so that it is known if this process dies of it. Well under a microsecond."""
        if self.announced is not None:
            self.announced.value = case.encode("utf-8", "replace")[: _ANNOUNCED_BYTES - 1]

    def expired(self) -> bool:
        """Whether the time is up. Cheap: call it after every case."""
        return time.monotonic() >= self.deadline

    def mine(self, number: int) -> bool:
        """Whether the case with this number is for this worker."""
        return number % self.jobs == self.index


def spread(
    work: Callable[[Share], Iterator[Result]],
    options: Options,
    progress: Progress,
    *,
    environment: dict[str, str] | None = None,
    total: Result | None = None,
) -> Result:
    """Run `work` in `options.jobs` processes and add up what they yield.

    `work` is a top-level function (or a `functools.partial` of one): the processes are
    spawned, with these variables in their `environment`.  With one job, and none of
    them, it runs in this process.  It should yield every few hundred milliseconds,
    and end by itself at its deadline.  An exception in it is a failure, as is a worker
    that dies by a signal or that still runs `GRACE_SECONDS` after the deadline; both name the
    case that was announced last.  `total` is added to, if a part has a kind of `Result` of its own.
    """
    deadline = time.monotonic() + options.seconds
    total = Result() if total is None else total
    if options.jobs <= 1 and not environment:
        share = Share(0, 1, options.seed, deadline, ctypes.create_string_buffer(_ANNOUNCED_BYTES))
        return _here(work, share, progress, total)
    workers: list[_Worker] = []
    try:
        with _variables(environment or {}):
            workers += [_Worker(work, index, options, deadline) for index in range(options.jobs)]
        while running := [worker for worker in workers if not worker.ended]:
            patience = deadline + GRACE_SECONDS - time.monotonic()
            connections.wait([handle for worker in running for handle in worker.handles()], max(0.0, patience))
            for worker in running:
                for result in worker.results(late=patience <= 0):
                    total.merge(result)
                    progress.advance(result.cases)
    finally:
        for worker in workers:
            worker.stop()
    return total


class _Worker:
    """A process, the pipe that its results come through, and the memory in which it announces its cases."""

    def __init__(
        self, work: Callable[[Share], Iterator[Result]], index: int, options: Options, deadline: float
    ) -> None:
        context = multiprocessing.get_context("spawn")
        announced = context.RawArray(ctypes.c_char, _ANNOUNCED_BYTES)
        self._share = Share(index, options.jobs, options.seed, deadline, announced)
        self._results, send = context.Pipe(duplex=False)
        self._process = context.Process(target=_worker, args=(work, self._share, send), name=f"fuzz-{index}")
        self._process.start()
        send.close()
        self.ended = False

    def handles(self) -> list[Any]:
        """What becomes ready when there is a result, or when the process ends."""
        return [self._results, self._process.sentinel]

    def results(self, *, late: bool) -> Iterator[Result]:
        """What has come in; at the end the failure if it died, or if it is `late`, for which it is killed."""
        alive = self._process.is_alive()  # asked first, so that nothing it wrote before it ended is overlooked
        try:
            for _ in range(_AT_ONCE):
                if not self._results.poll():
                    break
                yield self._results.recv()
            else:
                if not late:
                    return  # there is more; the others have their turn first
        except EOFError:
            self._process.join(GRACE_SECONDS)
            alive = self._process.is_alive()
        if alive and not late:
            return
        how = f"still running {GRACE_SECONDS:.0f} s after its time was up" if alive else ""
        self.stop()
        if self._process.exitcode:
            yield Result(failures=[_ended(self._share, how or describe_exit(self._process.exitcode))])

    def stop(self) -> None:
        """Kill the process if it still runs."""
        if not self.ended:
            self.ended = True
            self._process.kill()
            self._process.join()
            self._results.close()


@contextlib.contextmanager
def _variables(environment: dict[str, str]) -> Iterator[None]:
    """Have these in the environment while processes are started."""
    before = {name: os.environ.get(name) for name in environment}
    os.environ.update(environment)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _here(work: Callable[[Share], Iterator[Result]], share: Share, progress: Progress, total: Result) -> Result:
    for result in _guarded(work, share):
        total.merge(result)
        progress.advance(result.cases)
    return total


def _worker(work: Callable[[Share], Iterator[Result]], share: Share, send: Any) -> None:
    """The main function of a worker."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent kills us; two stories of one Ctrl-C help nobody
    with contextlib.suppress(BrokenPipeError):
        for result in _guarded(work, share):
            send.send(result)
    send.close()


def _guarded(work: Callable[[Share], Iterator[Result]], share: Share) -> Iterator[Result]:
    try:
        yield from work(share)
    except Exception as error:  # noqa: BLE001 - whatever it is, it is a finding
        yield Result(failures=[_ended(share, "".join(traceback.format_exception(error)).rstrip())])


def _ended(share: Share, how: str) -> Failure:
    case = bytes(share.announced.value).decode("utf-8", "replace")
    return Failure(f"a worker ended in the middle: {how}", case or "(no case was announced)")


def describe_exit(code: int) -> str:
    """How a process ended, in words: the signal's name, or the exit code."""
    if code < 0:
        try:
            return f"killed by {signal.Signals(-code).name}"
        except ValueError:
            return f"killed by signal {-code}"
    return f"exit code {code}"
