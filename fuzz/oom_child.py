"""The process in which memory runs out: it forks for every case, so that none can spoil the next.

It reads cases from its input, a line each, ``scene way k``, and answers each
with a line of JSON.  `way` is ``once`` (allocation k alone fails) or ``on`` (all
do from k on, until the call has ended, but no more than `MANY`: CPython tries some
for ever).  ``count scene`` finds how many allocations the call makes.

    parent --"commit once 17"--> server --fork--> child: stage, strike, judge --> result
                                       <--wait--  (a signal is told apart from a result)
"""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import importlib
import json
import os
import signal
import sys
import tempfile
from typing import Any, Final

from fuzz.oom_scenes import SCENES, Stage, image, judge

try:
    _testcapi: Any = importlib.import_module("_testcapi")
except ImportError:  # pragma: no cover - Pythons without it are told so by the parent
    _testcapi = None

ALARM: Final = 5
FAR: Final = 200_000
MANY: Final = 100_000


def strike(stage: Stage, k: int, stop: int) -> tuple[BaseException | None, object]:
    """Call `act` while the allocations behind the `k`-th fail, up to the one numbered `stop`."""
    act = stage.act
    answer: object = None
    raised: BaseException | None = None
    arm, disarm = _testcapi.set_nomemory, _testcapi.remove_mem_hooks
    arm(k, stop)
    try:
        answer = act()
    except BaseException as error:  # noqa: BLE001 - what it is, is judged
        raised = error
    disarm()
    return raised, answer


class Server:
    """Forks a child for every case."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._path = os.path.join(folder, "db")
        self._model = image(self._path)
        with open(self._path, "rb") as file:
            self._image = file.read()

    def run(self, scene: str, way: str, k: int) -> dict[str, Any]:
        """One case, in a child of its own."""
        for name in os.listdir(self._folder):
            os.unlink(os.path.join(self._folder, name))
        with open(self._path, "wb") as file:
            file.write(self._image)
        reading, writing = os.pipe()
        gc.disable()  # a collection at a moment of its own would move the numbers of the allocations
        gc.freeze()
        child = os.fork()
        if not child:
            os.close(reading)
            with open(writing, "w", encoding="utf-8") as out:
                try:
                    json.dump(self._play(scene, way, k), out)
                except BaseException as error:  # noqa: BLE001 - it has to be told
                    json.dump({"story": f"afterwards: {type(error).__name__}: {error}", "trace": _trace(error)}, out)
            os._exit(0)
        os.close(writing)
        with open(reading, encoding="utf-8") as answer:
            text = answer.read()
        _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status):
            found: dict[str, Any] = {"signal": os.WTERMSIG(status), "where": self._where()}
        else:
            found = json.loads(text) if text else {"story": f"the child ended with {status}"}
        return found

    def _where(self) -> str:
        """The line of Python that ran when the process died."""
        try:
            with open(os.path.join(self._folder, "died"), encoding="utf-8", errors="replace") as file:
                lines = [line.strip() for line in file if "File" in line]
        except OSError:
            return ""
        return "; ".join(lines[:6])

    def _play(self, scene: str, way: str, k: int) -> dict[str, Any]:
        signal.alarm(ALARM)
        died = open(os.path.join(self._folder, "died"), "w", encoding="utf-8")  # noqa: SIM115 - until the end
        faulthandler.enable(died)
        faulthandler.register(signal.SIGALRM, died, chain=True)  # says where, and then it ends
        sys.unraisablehook = lambda _unraisable: None  # a finalizer without memory can do no better
        before = {name: dict(tree) for name, tree in self._model.items()}
        stage = Stage(self._path, before, {name: dict(tree) for name, tree in before.items()})
        SCENES[scene](stage)
        files = _files()
        if way == "count":
            return {"count": allocations(stage)}
        raised, answer = strike(stage, k, k + 1 if way == "once" else k + MANY)
        reached = raised is not None
        if reached and stage.db is None and files:
            where = _trace(raised) if raised is not None else ""
            error = raised
            while error is not None:  # or the frames of its traceback hold what they opened
                error.__traceback__ = None
                error = error.__context__
            gc.collect()
            left = [file for file in _files() if file not in files]
            if left:
                return {"story": f"opening failed and left {left} open", "reached": True, "trace": where}
        story = judge(stage, raised, answer)
        trace = _trace(raised) if story and raised is not None else ""
        return {"story": story, "reached": reached, "trace": trace}

    def count(self, scene: str) -> int:
        """How many allocations the call makes."""
        return int(self.run(scene, "count", FAR).get("count", 0))


def allocations(stage: Stage) -> int:
    """How many allocations `act` makes: allocation `FAR` is to fail, and after `act` so many were left until it did."""
    act = stage.act
    left = 0
    numbers = list(range(FAR + 1))  # made before, so that counting allocates nothing
    arm, disarm = _testcapi.set_nomemory, _testcapi.remove_mem_hooks
    arm(FAR, FAR + 1)
    act()
    try:
        for left in numbers:  # noqa: B007 - it is looked at behind the loop
            object()
    except MemoryError:
        disarm()
    return max(0, FAR - left)


def _files() -> list[str]:
    """What the open descriptors lead to, where the system tells."""
    found = []
    with contextlib.suppress(OSError):
        for number in os.listdir("/proc/self/fd"):
            with contextlib.suppress(OSError):
                found.append(os.readlink(f"/proc/self/fd/{number}"))
    return found


def _trace(error: BaseException) -> str:
    import traceback  # noqa: PLC0415 - for failures alone

    return "".join(traceback.format_exception(error))[-3000:]


def main() -> None:
    """Serve until the input ends."""
    shared = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="cowdb-fuzz-", dir=shared) as folder:
        server = Server(folder)
        for line in sys.stdin:
            words = line.split()
            if words[0] == "count":
                print(json.dumps(server.count(words[1])), flush=True)
            else:
                print(json.dumps(server.run(words[0], words[1], int(words[2]))), flush=True)


if __name__ == "__main__":
    main()
