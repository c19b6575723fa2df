"""Running the command ``cowdb`` inside of a test, and files for it to look at."""

from __future__ import annotations

import contextlib
import io
import json
import random
from pathlib import Path
from typing import Any, NamedTuple

import cowdb
from cowdb.cli import main


class Result(NamedTuple):
    """What a command answered."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def jsonl(self) -> list[Any]:
        return [json.loads(line) for line in self.out.splitlines()]


def cow(*arguments: object) -> Result:
    """Run ``cowdb`` with these arguments, in this process, as if into a pipe."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([str(argument) for argument in arguments])
    return Result(code, out.getvalue(), err.getvalue())


def cow_json(*arguments: object, code: int = 0) -> Any:
    """The JSON document that a command answers with exit code `code`."""
    result = cow(*arguments, "--format", "json")
    assert result.code == code, (result.code, result.err, result.out[:500])
    return result.json


def sample(path: Path, entries: int = 3000, page_size: int = 4096) -> dict[str | None, dict[bytes, bytes]]:
    """A database with three trees, overflow values and free pages at `path`; what is in it."""
    rng = random.Random(5)
    main_tree = {b"key:%06d" % i: b"%d;" % i * (i % 9) for i in range(entries)}
    names = {b"name/%d" % i: rng.randbytes(rng.choice((3, 30, 300))) for i in range(entries // 4)}
    blobs = {b"blob%02d" % i: rng.randbytes(900 * i) for i in range(20)}
    with cowdb.open(path, page_size=page_size) as db:
        with db.write() as txn:
            txn.update(main_tree)
            txn.tree("names", create=True).update(names)
            txn.tree("blobs", create=True).update(blobs)
            txn.tree("empty", create=True)
        for start in range(0, entries, 10):
            if start % 300 == 0:
                with db.write() as txn:
                    for i in range(start, start + 10):
                        del txn[b"key:%06d" % i]
                        del main_tree[b"key:%06d" % i]
    return {None: main_tree, "names": names, "blobs": blobs, "empty": {}}


def contents(path: Path) -> dict[str | None, dict[bytes, bytes]]:
    """All trees of a database, which must be sound."""
    with cowdb.open(path, create=False) as db:
        assert db.check() == []
        with db.read() as snap:
            found: dict[str | None, dict[bytes, bytes]] = {None: dict(snap.items())}
            for name in snap.trees():
                found[name] = dict(snap.tree(name).items())
    return found


def spoil(path: Path, *pages: int, page_size: int = 4096, at: int = 1000) -> None:
    """Change one byte in each of these pages."""
    with path.open("r+b") as file:
        for page in pages:
            file.seek(page * page_size + at)
            byte = file.read(1)
            file.seek(page * page_size + at)
            file.write(bytes((byte[0] ^ 0x55,)))


def pages_of(path: Path, tree: str, kind: str) -> list[dict[str, Any]]:
    """The records of ``cowdb pages`` for a tree and a kind of page."""
    return cow("pages", path, "--tree", tree, "--kind", kind, "--format", "jsonl").jsonl
