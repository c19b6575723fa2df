"""One store in a process of its own; it does what `peers` says on its standard input and answers in JSON.

    {"workload": "get", "run": 3}  -->  {"values": {"get": 1.2e-06}, "found": 100000}
                                        or {"error": "OSError: ..."}

cowdb is in two of these processes: the form of its kernel is chosen when it is imported.  By hand it serves to look
into one line of the table; it works in DIRECTORY/cowdb-bench-plain and leaves that behind:

    echo '{"workload": "begin_get", "run": 0}' |
        COWDB_PURE=1 python -m cProfile -s tottime worker.py plain DIRECTORY 100000 -
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any

from plan import workloads
from stores import KINDS
from workloads import Bench

RELEASE = "release"
"""Not a workload: let the files go, for another process is going to use them."""


def form() -> str:
    """The form of cowdb's page kernel in this process, "compiled" or "plain"."""
    if importlib.util.find_spec("cowdb.kernel") is None:
        return "plain"
    return str(importlib.import_module("cowdb.kernel").FORM)


def hello(name: str) -> dict[str, Any]:
    """Which version this is, or why it cannot take part."""
    kind = KINDS[name]
    try:
        version = kind.version()
    except ImportError:
        return {"missing": f"{kind.MODULE} is not installed"}
    if name == "cowdb" and form() != "compiled":
        return {"missing": "the compiled kernel is not there"}
    if name == "plain" and form() != "plain":
        return {"missing": "COWDB_PURE=1 did not choose the plain kernel"}
    return {"version": version, "settings": kind.SETTINGS}


def main() -> None:
    """Say hello, then answer until the input ends."""
    name, directory, records, full = sys.argv[1:]
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a store may print is no answer
    greeting = hello(name)
    print(json.dumps(greeting), file=answers, flush=True)
    if "missing" in greeting:
        return
    # A directory of our own: the workloads make and remove files and would not ask whose they are.
    own = Path(directory) / f"cowdb-bench-{name}"
    own.mkdir(exist_ok=True)
    bench = Bench(KINDS[name], own, int(records), full == "full")
    known = workloads(bench.records)
    for line in sys.stdin:
        task = json.loads(line)
        bench.run = task["run"]
        try:
            if task["workload"] == RELEASE:
                bench.release()
                print(json.dumps({"values": {}, "found": 0}), file=answers, flush=True)
                continue
            values, found = known[task["workload"]].function(bench)
            answer: dict[str, Any] = {"values": values, "found": found}
        except Exception as error:  # noqa: BLE001 - whatever a peer raises, the others go on
            traceback.print_exc()
            bench.start_over()
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers, flush=True)
    bench.release()


if __name__ == "__main__":
    main()
