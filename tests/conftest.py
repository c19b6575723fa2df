"""What all tests share.

`database` makes databases whose end is checked: after the test each file is closed, opened again and walked by the
checker (I1 to I10), so that every test is a test of the file format too.
"""

from __future__ import annotations

import gc
import os
import sys
import threading
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import hypothesis
import pytest
from looping import ENTRIES, threads
from opened import OPEN, OPEN_WITH_RECORD_LOCKS

import cowdb
from cowdb.bytelocks import ByteLocks

# "ci" tries the same examples each time, so that a red run is red again; "dev" goes on looking for new ones.
hypothesis.settings.register_profile(
    "ci",
    derandomize=True,
    deadline=None,
    max_examples=100,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.register_profile("dev", deadline=None, max_examples=300, print_blob=True)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE") or ("ci" if os.environ.get("CI") else "dev"))


COVERED_CHILDREN = "COVERAGE_PROCESS_CONFIG"  # what asks the processes that a test starts to count lines as well


def pytest_collection_finish() -> None:
    """What is here by now stays: the garbage collector, which many tests call, need not look at it again and again."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """No lines are counted in an `untraced` test, in what is made for it, and in the processes that it starts.

    A worker of pytest-xdist counts twice, as one of pytest-cov's and as a process that was started, so pytest-cov's
    `no_cover` would stop one of the two.  Where `sys.monitoring` counts, it costs little, and goes on.
    """
    if item.get_closest_marker("untraced") is None:
        return (yield)
    asked = os.environ.pop(COVERED_CHILDREN, None)
    traces = sys.gettrace(), threading.gettrace()
    sys.settrace(None)
    threading.settrace(None)
    try:
        return (yield)
    finally:
        sys.settrace(traces[0])
        threading.settrace(traces[1])
        if asked is not None:
            os.environ[COVERED_CHILDREN] = asked


class Databases:
    """A factory: `database(name)` opens (and creates) a database in the test's directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._opened: list[cowdb.Database] = []
        self._paths: dict[Path, None] = {}

    def __call__(self, name: str | Path = "test.cowdb", **options: object) -> cowdb.Database:
        """Open `name` with `options`, those of `cowdb.open`; closed and checked after the test."""
        path = self.directory / name
        opened = cowdb.open(path, **options)
        self._opened.append(opened)
        self._paths[path] = None
        return opened

    def forget(self, name: str | Path = "test.cowdb") -> None:
        """Do not check this file at the end: the test damages it on purpose."""
        del self._paths[self.directory / name]

    def finish(self) -> None:
        """Close all, open each file again and check it."""
        for opened in reversed(self._opened):
            opened.close()
        for path in self._paths:
            if path.exists():
                with cowdb.open(path, create=False) as again:
                    findings = again.check()
                assert not findings, f"{path.name}: {findings}"


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Callable[..., cowdb.Database]]:
    """Open databases; after the test they are closed, opened again and must pass the checker."""
    databases = Databases(tmp_path)
    yield databases
    databases.finish()


@pytest.fixture
def filled(database: Callable[..., cowdb.Database], tmp_path: Path) -> Path:
    """A file with `ENTRIES` in the main tree and, with other values, in the tree "named"."""
    with database() as db, db.write() as txn:
        txn.update(ENTRIES)
        txn.tree("named", create=True).update({key: value * 2 for key, value in ENTRIES.items()})
        txn.tree("empty", create=True)
    return tmp_path / "test.cowdb"


@pytest.fixture
def nothing_left_behind() -> Iterator[None]:
    """After the test all threads of `cowdb.aio` have ended, and nothing was forgotten."""
    yield
    gc.collect()
    assert threads() == []


@pytest.fixture
def many_switches():
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


@pytest.fixture(params=["ByteLocks", "RecordLocks"])
def opening(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The line that opens the database in a child; with record locks in both processes, or neither."""
    if request.param == "ByteLocks":
        return OPEN
    monkeypatch.setattr(ByteLocks, "available", staticmethod(lambda: False))
    return OPEN_WITH_RECORD_LOCKS
