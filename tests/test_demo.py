"""`make demo` shows what it promises, and would say so if it were not so."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

DEMO = Path(__file__).parents[1] / "tools" / "demo.py"


@pytest.fixture
def demo():
    spec = importlib.util.spec_from_file_location("demo", DEMO)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.untraced
def test_it_runs_and_leaves_nothing_behind(tmp_path):
    done = subprocess.run(
        [sys.executable, str(DEMO), "--rounds", "2", "--dir", str(tmp_path)],
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    assert "All as promised" in done.stdout
    assert done.stdout.count("killed after") == 2
    assert "\x1b" not in done.stdout, "no colours in a pipe"
    assert not list(tmp_path.iterdir())


def test_a_lost_or_torn_transaction_would_be_noticed(demo, database):
    db = database()
    assert demo.survivors(db) == (0, True)
    with db.write() as txn:
        stream = txn.tree("stream", create=True)
        for number in (1, 2, 3):
            stream.update({b"%012d/%d" % (number, part): b"x" for part in range(5)})
        txn[b"last"] = b"3"
    assert demo.survivors(db) == (3, True)
    with db.write() as txn:
        txn.tree("stream").delete(b"%012d/%d" % (2, 4))
    assert demo.survivors(db) == (3, False)


def test_a_victim_that_cannot_commit_is_an_error(demo, tmp_path):
    path = tmp_path / "a directory.cowdb"
    path.mkdir()
    with pytest.raises(demo.DemoError, match="did not commit"):
        demo.kill(path, 1)
