"""`docs/guarantees.md` names tests that exist and are marked, so that no promise is without one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
PAGE = (TESTS.parent / "docs" / "guarantees.md").read_text(encoding="utf-8")
LINES = re.findall(r"^\* `(test_\w+\.py)`: (.+)$", PAGE, re.MULTILINE)
NAMED = [(file, name) for file, names in LINES for name in re.findall(r"`(test_\w+)`", names)]


def test_every_promise_names_its_tests():
    promises = re.split(r"^## \d+\. ", PAGE.split("## Limits")[0], flags=re.MULTILINE)[1:]
    assert len(promises) == 7
    assert all(re.search(r"`test_\w+\.py`: `test_", promise) for promise in promises)
    assert len(NAMED) > 40


@pytest.mark.parametrize(("file", "name"), NAMED)
def test_the_named_test_exists_and_is_marked(file, name):
    source = (TESTS / file).read_text(encoding="utf-8")
    decorated = re.search(rf"((?:^@.*\n(?:^[ )\]].*\n)*)*)^def {name}\(", source, re.MULTILINE)
    assert decorated, f"{file} has no {name}"
    assert "@pytest.mark.guarantee" in decorated.group(1), f"{name} is not marked as a guarantee"


def test_every_marked_test_is_named():
    marked = set()
    for path in TESTS.glob("test_*.py"):
        # A marker and its test may have other decorators between them, but never an empty line.
        for block in re.split(r"\n\n", path.read_text(encoding="utf-8")):
            name = re.search(r"^def (test_\w+)\(", block, re.MULTILINE)
            if name and "\n@pytest.mark.guarantee\n" in "\n" + block[: name.start()]:
                marked.add((path.name, name.group(1)))
    assert len(marked) > 60
    assert marked - set(NAMED) == set()
