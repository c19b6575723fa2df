"""No memory, at every point: allocation k of a call fails, for every k and every call.

CPython's own tests have a switch for this, ``_testcapi.set_nomemory``.  Each case runs
in a child (`oom_child`): one call of `oom_scenes` is struck, once (allocation k alone
fails) or for good (all from k on, until it has ended).  Then

    the call has raised MemoryError or has done its work
    abort works, and so do the next writer, closing and opening
    the file holds the state before or after, and its check is clean

A child that dies of SIGSEGV or SIGABRT has met a bug of the interpreter itself where the
engine is plain Python, for then there is no other native code that could die;
it is counted, not taken for a failure.  With the compiled kernel the same allocations of
the same scene are tried in the plain form; only if that one never dies it is ours.
A child that hangs, or ends in any other way, is always ours.

A replay names scene, way and allocation: ``commit once 117``.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

from fuzz.harness import Failure, Options, Progress, Result, Share, spread
from fuzz.oom_scenes import SCENES

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

__all__ = ["missing", "run"]

WAYS: Final = ("once", "on")
DEADLY: Final = frozenset({signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS})
AROUND: Final = 20
"""Allocations on each side of a crash that are tried in the plain form."""

KEPT: Final = 2
REPORT_SECONDS: Final = 0.3


def missing() -> str | None:
    """Why this part cannot run here; None if it can."""
    if not hasattr(os, "fork"):
        return "this system has no fork"
    try:
        testing = importlib.import_module("_testcapi")
    except ImportError:
        return "this Python has no _testcapi, which lets allocations fail"
    return None if hasattr(testing, "set_nomemory") else "its _testcapi has no set_nomemory"


def run(options: Options, progress: Progress) -> Result:
    """Strike until every case was tried or the time is up; with ``options.replay``, one case."""
    reason = missing()
    if reason is not None:
        return Result(skipped=reason)
    if options.replay is not None:
        return _replay(options.replay, progress)
    return spread(work, options, progress)


def _replay(text: str, progress: Progress) -> Result:
    words = text.split()
    if len(words) != 3 or words[0] not in SCENES or words[1] not in WAYS or not words[2].isdigit():
        raise ValueError(f"not a case: {text!r}; it is a scene, {' or '.join(WAYS)}, and a number")
    with Children() as children:
        outcome, story, trace = children.judge(words[0], words[1], int(words[2]))
    progress.say(f"{text}: {outcome}. {story}\n{trace}".rstrip())
    return Result(1, [Failure(story, text)] if story else [], {outcome: 1})


def work(share: Share) -> Iterator[Result]:
    """One worker's part."""
    result = Result()
    reported = time.monotonic()
    seen: dict[str, int] = {}
    with Children() as children:
        for scene, way, k in _cases(share, children):
            if share.expired():
                break
            share.announce(f"{scene} {way} {k}")
            outcome, story, _ = children.judge(scene, way, k)
            result.cases += 1
            result.count(outcome)
            if story:
                mark = f"{scene} {way} {story[:40]}"
                seen[mark] = seen.get(mark, 0) + 1
                if seen[mark] <= KEPT:
                    result.failures.append(Failure(story, f"{scene} {way} {k}"))
            if time.monotonic() - reported > REPORT_SECONDS:
                yield result
                result = Result()
                reported = time.monotonic()
    yield result


def _cases(share: Share, children: Children) -> Iterator[tuple[str, str, int]]:
    """Every scene, way and allocation once; the scenes take turns, each in an order that spreads from the beginning."""
    orders = []
    for scene in SCENES:
        if share.expired():
            return
        share.announce(f"{scene} once 0")
        count = children.ask(f"count {scene}")
        if not isinstance(count, int):
            raise TypeError(f"{scene}: {count}")
        orders.append(_order(scene, count, share))
    while orders:
        for order in list(orders):
            case = next(order, None)
            if case is None:
                orders.remove(order)
            else:
                yield case


def _order(scene: str, count: int, share: Share) -> Iterator[tuple[str, str, int]]:
    total = 2 * (count + 1)
    step = int(total * 0.618) | 1
    while math.gcd(step, total) != 1:
        step += 2
    for number in range(share.index, total, share.jobs):
        way, k = divmod((share.seed + number * step) % total, count + 1)
        yield scene, WAYS[way], k


class Children:
    """The server process that forks for each case; a context manager."""

    def __init__(self, *, plain: bool = False) -> None:
        self._plain = plain
        self._process: subprocess.Popen[str] | None = None
        self._twin: Children | None = None

    def __enter__(self) -> Self:
        # Nobody measures coverage in there: that needs memory of its own.
        environment = {name: value for name, value in os.environ.items() if not name.startswith("COV")}
        root = str(Path(__file__).resolve().parent.parent)
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, (root, environment.get("PYTHONPATH"))))
        if self._plain:
            environment["COWDB_PURE"] = "1"
        self._process = subprocess.Popen(
            [sys.executable, "-m", "fuzz.oom_child"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=root,
            env=environment,
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        process, self._process = self._process, None
        if process is not None and process.stdin is not None and process.stdout is not None:
            with contextlib.suppress(OSError):
                process.stdin.close()
            process.wait()
            process.stdout.close()
        if self._twin is not None:
            self._twin.__exit__(None, None, None)
            self._twin = None

    def ask(self, line: str) -> Any:
        """The server's answer to a line."""
        process = self._process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(line + "\n")
        process.stdin.flush()
        answer = process.stdout.readline()
        if not answer:
            raise RuntimeError(f"the process that forks the children ended with {process.wait()} at {line!r}")
        return json.loads(answer)

    def judge(self, scene: str, way: str, k: int) -> tuple[str, str, str]:
        """Outcome, story and trace of one case; the story is empty if all is well."""
        found = self.ask(f"{scene} {way} {k}")
        number = found.get("signal")
        if number is None:
            story = found["story"]
            outcome = "failed" if story else "MemoryError" if found.get("reached") else "done"
            return outcome, story, found.get("trace", "")
        name = signal.Signals(number).name
        where = found.get("where", "")
        if number == signal.SIGALRM:
            return "failed", f"it hangs (at {where})", ""
        if number in DEADLY and (self._plain or _form() == "plain" or self._plain_dies(scene, way, k)):
            return f"the interpreter itself died ({name})", "", where
        return "failed", f"killed by {name} (at {where})", ""

    def _plain_dies(self, scene: str, way: str, k: int) -> bool:
        """Whether the plain form dies as well, near this allocation: then it is the interpreter's doing."""
        if self._twin is None:
            self._twin = Children(plain=True).__enter__()
        near = range(max(0, k - AROUND), k + AROUND)
        return any(self._twin.ask(f"{scene} {way} {each}").get("signal") in DEADLY for each in near)


def _form() -> str:
    """The form of the page kernel that children use."""
    try:
        return str(importlib.import_module("cowdb.kernel").FORM)
    except ImportError:
        return "plain"
