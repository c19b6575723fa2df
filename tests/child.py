"""Another process for a test to play with: it runs what it is told, line by line, and can be killed at any moment.

    with Child() as other:
        other("db = cowdb.open(path)", path=path)       # runs it there; errors are raised here
        assert other("db[b'k']") == b"v"                # an expression gives its value
        other.begin("db.write()")                       # do not wait for the end ...
        other.end()                                     # ... but here
        other.kill()                                    # SIGKILL, and wait until it is gone

`tell(line)` writes a line to the pipe at once, for who goes on until it is killed.

A failpoint that kills: ``other("die_at('flush')")`` for the database `db` of the child.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

PATIENCE = 30
"""Seconds until a test gives a child up; nothing here should take one."""

TESTS = Path(__file__).parent


class Child:
    """A Python process with `cowdb` imported, that obeys."""

    def __init__(self, **values):
        paths = [str(TESTS.parent), str(TESTS), os.environ.get("PYTHONPATH", "")]
        self.process = subprocess.Popen(
            [sys.executable, str(TESTS / "child.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
        )
        if values:
            self("None", **values)

    @property
    def pid(self):
        return self.process.pid

    def begin(self, code, **values):
        """Have `code` run, with `values` as names; go on at once."""
        pickle.dump((code, values), self.process.stdin)
        self.process.stdin.flush()

    def busy(self, seconds=0.0):
        """True if it still has not answered after so many seconds."""
        return not select.select([self.process.stdout], [], [], seconds)[0]

    def end(self):
        """What `code` gave; raises what it raised."""
        assert not self.busy(PATIENCE), "the child does not answer"
        kind, value = pickle.load(self.process.stdout)
        if kind == "error":
            raise value
        return value

    def __call__(self, code, **values):
        self.begin(code, **values)
        return self.end()

    def dies(self, code, **values):
        """Have `code` run, which is going to kill the child."""
        self.begin(code, **values)
        assert self.process.wait(PATIENCE) == -signal.SIGKILL

    def signal(self, number):
        self.process.send_signal(number)

    def kill(self):
        self.process.kill()
        self.process.wait(PATIENCE)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait(PATIENCE)
        for pipe in (self.process.stdin, self.process.stdout):
            with contextlib.suppress(BrokenPipeError):
                pipe.close()


def until(condition):
    """Wait for another thread or process."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "the other one did not get there"
        time.sleep(0.001)


# ---------------------------------------------------------------- inside the child


def serve():
    import cowdb

    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what is printed does not disturb the answers
    names = {"cowdb": cowdb, "os": os, "signal": signal, "sys": sys, "time": time}

    def die():
        os.kill(os.getpid(), signal.SIGKILL)

    def die_at(point):
        names["db"]._core.pager.failpoint = lambda name: die() if name == point else None

    def tell(line):
        os.write(answers.fileno(), line + b"\n")

    names.update(die=die, die_at=die_at, tell=tell)
    while True:
        try:
            code, values = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        names.update(values)
        try:
            try:
                body = compile(code, "<child>", "eval")
            except SyntaxError:
                exec(compile(code, "<child>", "exec"), names)
                value = None
            else:
                value = eval(body, names)
            try:
                answer = pickle.dumps(("value", value))
            except Exception:  # noqa: BLE001 - such as a transaction
                answer = pickle.dumps(("value", None))
        except Exception as error:  # noqa: BLE001 - raised on the other side
            answer = pickle.dumps(("error", error))
        answers.write(answer)
        answers.flush()


if __name__ == "__main__":
    serve()
