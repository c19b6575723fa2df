"""Plays scenarios on a real file, in processes of their own: what strace lies to.

    fuzz --> strace --> this program --fork--> a play   (each with its own count of calls)
     ^                                           |
     +---------------- report -------------------+

It reads lines from its input, each the name of a scenario and ``once`` or ``for
good``, and answers each with a pickle: what the play promised, the errors that
it met, and what was wrong, if anything.  A play ends without closing the file: its
process simply ends.
"""

from __future__ import annotations

import gc
import os
import pickle
import sys
from typing import IO, Final

from cowdb.storage import FileDisk
from fuzz.faults_oracle import PromiseError
from fuzz.faults_play import Play
from fuzz.faults_scenarios import scenario

__all__ = ["Report", "main"]

Report = dict[str, object]
_OUT: Final = 1


def play(name: str, path: str, *, heals: bool) -> Report:
    """Play a scenario at `path` and say how it went; `heals`: the fault is over by the end."""
    found = scenario(name)
    played = Play(FileDisk(), dict(found.options), path=path, real=True)
    wrong = None
    try:
        played.run(found.steps)
        if heals and any("max_size" not in str(error) for error in played.errors):  # else it has not struck yet
            played.usable()
    except PromiseError as error:
        wrong = str(error)
    errors = [(getattr(error, "errno", None), repr(error)) for error in played.errors]
    return {"standing": played.standing, "errors": errors, "wrong": wrong}


def serve(path: str, lines: IO[str]) -> None:
    """Fork a play for each line; the answer goes out when its process is gone, and with it all its locks."""
    for line in lines:
        name, often = line.rstrip("\n").split("\t")
        receive, send = os.pipe()
        pid = os.fork()
        if not pid:
            _play_and_end(send, name, path, heals=often == "once")
        os.close(send)
        with os.fdopen(receive, "rb") as pipe:
            data = pipe.read()
        _, status = os.waitpid(pid, 0)
        if status or not data:
            data = _packed(f"the process ended with status {status}")
        _write_all(_OUT, len(data).to_bytes(8, "little") + data)


def _play_and_end(send: int, name: str, path: str, *, heals: bool) -> None:
    try:
        _write_all(send, pickle.dumps(play(name, path, heals=heals)))
    except BaseException as error:  # noqa: BLE001 - whatever it is, it is told
        _write_all(send, _packed(f"it raised {error!r}"))
    finally:
        os._exit(0)


def _packed(wrong: str) -> bytes:
    return pickle.dumps({"standing": [], "errors": [], "wrong": wrong})


def _write_all(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]


def main() -> int:
    """``python -m fuzz.faults_child PATH``."""
    gc.freeze()  # a forked child need not look at what it has inherited
    serve(sys.argv[1], sys.stdin)
    return 0


if __name__ == "__main__":
    sys.exit(main())
