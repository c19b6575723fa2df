"""The same scenarios on real files, with real system calls that fail: strace's fault injection.

Below `FileStorage` there are calls that no fake disk makes: locks, the lock
file, mappings, directories.  ``strace -e inject=fdatasync:error=EIO:when=3``
makes the third one fail in each process that it follows, and ``3+`` all from the
third on.  One strace serves all scenarios: they run in children that
fork off `faults_child`, and each child counts anew.

A case is a line of text:

    strace:fdatasync:EIO:once:3:small and large

Interrupted calls (EINTR) are repeated by Python, so nothing may be seen of them.
A fault for good lasts to the end of its process, so that what follows is
the next process, which strace does not follow.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import pickle
import random
import select
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

from cowdb.storage import FileDisk
from fuzz.faults_cases import scratch
from fuzz.faults_oracle import PromiseError, live_on
from fuzz.faults_scenarios import SCENARIOS, scenario
from fuzz.harness import Failure, Result

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

    from fuzz.harness import Progress, Share

__all__ = ["replay", "unavailable", "work"]

_WRITE: Final = ("EIO", "ENOSPC", "EDQUOT", "EINTR")

CALLS: Final[dict[str, tuple[tuple[str, ...], int]]] = {
    "pwritev": (_WRITE, 40),
    "pwritev2": (_WRITE, 40),
    "pwrite64": (_WRITE, 40),
    "fdatasync": (_WRITE, 12),
    "sync_file_range": (("EIO", "ENOSPC", "EINVAL", "ENOMEM"), 8),
    "ftruncate": (("EIO", "ENOSPC", "EFBIG", "EINTR"), 8),
    "fallocate": (("EIO", "ENOSPC", "EDQUOT", "EINTR", "EOPNOTSUPP"), 8),
    "fsync": (("EIO", "EINVAL"), 6),
    "mmap": (("ENOMEM", "ENODEV"), 12),
    "pread64": (("EIO", "EINTR"), 30),
    "fstat": (("EIO", "ENOMEM"), 30),
    "newfstatat": (("EIO", "ENOMEM"), 30),
    "statx": (("EIO", "ENOMEM"), 4),
    "openat": (("EMFILE", "EIO", "EINTR"), 12),
    "link": (("EIO", "EPERM", "ENOSPC"), 1),
    "linkat": (("EIO", "EPERM", "ENOSPC"), 1),
    "unlink": (("EIO", "EACCES"), 1),
    "unlinkat": (("EIO", "EACCES"), 1),
}
"""Which calls fail, how, and up to which one of a play; only errors that a system does give there.

One call a fault, for strace counts each by itself: of two that both occur, the third of the second one would fail
after the fault was believed to be over.
"""

PATIENCE: Final = 60.0
KEPT: Final = 20


@dataclass(frozen=True)
class Fault:
    """Which calls fail how, from when on."""

    calls: str
    error: str
    forever: bool
    at: int

    def __str__(self) -> str:
        return f"strace:{self.calls}:{self.error}:{'for good' if self.forever else 'once'}:{self.at}"


@functools.cache
def unavailable() -> str | None:
    """Why strace cannot be used here, or None if it can."""
    if shutil.which("strace") is None:
        return "there is no strace"
    try:
        done = subprocess.run(
            [*_strace("/"), "-e", "trace=fsync", "-e", "inject=fsync:error=EIO:when=1", "true"],
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"strace does not run ({error})"
    if done.returncode:
        return f"strace may not trace, or not inject ({(done.stderr.splitlines() or ['no reason given'])[-1]})"
    return None


@functools.cache
def _filter() -> tuple[str, ...]:
    """The option that lets calls that are not traced run at full speed, where this strace has it."""
    done = subprocess.run(
        ["strace", "-f", "--seccomp-bpf", "-e", "trace=fsync", "true"], capture_output=True, check=False
    )
    return () if done.returncode else ("--seccomp-bpf",)


def _strace(*paths: str) -> list[str]:
    arguments = ["strace", "-f", "-qq", "-o", os.devnull, *_filter()]
    for path in paths:
        arguments += ["-P", path]
    return arguments


class Server:
    """`faults_child` under strace, with one fault; a context manager."""

    def __init__(self, fault: Fault, directory: str) -> None:
        self.fault = fault
        self.directory = directory
        self.path = os.path.join(directory, "db")
        when = f"{fault.at}+" if fault.forever else f"{fault.at}"
        traced = _strace(self.path, f"{self.path}-new0", f"{self.path}-lock", directory)
        inject = f"inject={fault.calls}:error={fault.error}:when={when}"
        program = [sys.executable, "-m", "fuzz.faults_child", self.path]
        root = str(Path(__file__).parent.parent)
        paths = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH", "")]))
        self.process = subprocess.Popen(
            [*traced, "-e", f"trace={fault.calls}", "-e", inject, *program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=root,
            env={**os.environ, "PYTHONPATH": paths},
            bufsize=0,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):
                pipe.close()  # the end of its input is the end of the child
        try:
            self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def play(self, name: str) -> dict[str, Any]:
        """Have a scenario played, on no file yet, and judge it. Raises `PromiseError`."""
        for left in os.listdir(self.directory):
            os.unlink(os.path.join(self.directory, left))
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(f"{name}\t{'for good' if self.fault.forever else 'once'}\n".encode())
            report: dict[str, Any] = pickle.loads(self._read(int.from_bytes(self._read(8), "little")))
        except (BrokenPipeError, EOFError) as error:
            raise PromiseError("the process that plays has died") from error
        if report["wrong"] is not None:
            raise PromiseError(report["wrong"])
        self._expect_the_fault(report["errors"], name)
        live_on(FileDisk(), report["standing"], path=self.path, options=scenario(name).options)
        return report

    def _expect_the_fault(self, errors: list[tuple[int | None, str]], name: str) -> None:
        number = getattr(errno, self.fault.error)
        for seen, text in errors:
            if "max_size" in scenario(name).options and "max_size" in text:
                continue
            if number == errno.EINTR:
                raise PromiseError(f"an interrupted call is to be repeated, and the caller is told {text}")
            if seen not in {number, errno.EIO}:
                raise PromiseError(f"{self.fault.calls} said {self.fault.error}, and the caller is told {text}")

    def _read(self, count: int) -> bytes:
        data = b""
        assert self.process.stdout is not None
        while len(data) < count:
            if not select.select([self.process.stdout], [], [], PATIENCE)[0]:
                raise PromiseError(f"no answer for {PATIENCE:.0f} s: it hangs")
            piece = self.process.stdout.read(count - len(data))
            if not piece:
                raise EOFError
            data += piece
        return data


# ---------------------------------------------------------------- the work


def _faults(seed: int) -> list[Fault]:
    """All faults; each kind of call has its turn early."""
    rng = random.Random(f"strace {seed}")
    queues = []
    for calls, (errors, most) in CALLS.items():
        queue = [
            Fault(calls, error, forever, at)
            for error in errors
            for at in range(1, most + 1)
            for forever in (False, True)
            if not (forever and error == "EINTR")  # it would be repeated for ever
        ]
        rng.shuffle(queue)
        queues.append(queue)
    rng.shuffle(queues)
    turns = max(map(len, queues))
    return [queue[turn] for turn in range(turns) for queue in queues if turn < len(queue)]


def work(share: Share) -> Iterator[Result]:
    """One process: a strace for each fault, all scenarios under it; only some of them while the time is short."""
    rng = random.Random(f"scenarios {share.seed} {share.index}")
    kept = 0
    slice_seconds = max(0.5, (share.deadline - time.monotonic()) / 20)
    for number, fault in enumerate(_faults(share.seed)):
        if share.expired() or kept >= KEPT:
            return
        if not share.mine(number):
            continue
        names = rng.sample(list(SCENARIOS), len(SCENARIOS))
        result = Result()
        end = min(share.deadline, time.monotonic() + slice_seconds)
        with scratch() as directory, Server(fault, directory) as server:
            while names and time.monotonic() < end:
                name = names.pop()
                share.announce(f"{fault}:{name}")
                result.cases += 1
                try:
                    report = server.play(name)
                except PromiseError as error:
                    kept += 1
                    result.failures.append(Failure(str(error), f"{fault}:{name}"))
                    break
                result.count("plays with real system calls that fail")
                result.count("of them with an error that shows", bool(report["errors"]))
        yield result


def replay(text: str, progress: Progress) -> Result:
    """Play one case. Raises `ValueError` if the text is none."""
    try:
        _, calls, error, often, at, name = text.split(":")
        scenario(name)
        fault = Fault(calls, error, often == "for good", int(at))
    except (KeyError, ValueError) as wrong:
        raise ValueError(f"no case of this part: {text!r}") from wrong
    reason = unavailable()
    if reason is not None:
        return Result(skipped=reason)
    result = Result(cases=1)
    with scratch() as directory, Server(fault, directory) as server:
        try:
            report = server.play(name)
        except PromiseError as wrong:
            result.failures.append(Failure(str(wrong), text))
        else:
            progress.say(f"nothing wrong; errors that came out: {[shown for _, shown in report['errors']] or 'none'}")
    return result
