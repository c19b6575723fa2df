"""What the README shows works, and what it names is there."""

from __future__ import annotations

import inspect
import re
import tomllib
from pathlib import Path

import pytest

import cowdb

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    [ROOT / "README.md", ROOT / "tools/bench/README.md", ROOT / "fuzz/README.md", *ROOT.glob("docs/**/*.md")]
)


def test_the_python_blocks_of_the_readme_run(tmp_path, monkeypatch):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert blocks
    monkeypatch.chdir(tmp_path)
    for block in blocks:
        exec(compile(block, "README.md", "exec"), {})
    assert (tmp_path / "app.cowdb").exists()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#\s]+)", text):
        if "://" not in target:
            assert (page.parent / target).exists(), target


def test_make_knows_the_commands_that_the_readme_names():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    named = set(re.findall(r"\bmake (\w+)", (ROOT / "README.md").read_text(encoding="utf-8")))
    assert {"demo", "test"} <= named
    for target in named - {"what"}:
        assert f"\n{target}:" in makefile, target


def test_the_architecture_page_names_every_module():
    text = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    drawing = text[text.index("## The layers") : text.index("Two further rules")]
    modules = {path.stem for path in (ROOT / "cowdb").glob("*.py")} - {"__init__"} | {"testing"}
    assert modules <= set(re.findall(r"\w+", drawing))


def test_the_architecture_page_draws_the_layers_that_are_enforced():
    text = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    drawing = text[text.index("## The layers") : text.index("Two further rules")]
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
    layers = next(contract["layers"] for contract in contracts["contracts"] if contract["type"] == "layers")
    line = iter(drawing.splitlines())
    for layer in layers:
        names = layer.split(" | ")
        assert any(set(names) <= set(row.split()) for row in line), f"{layer} is not drawn, or not in this order"


def test_the_python_blocks_of_the_interface_page_run(tmp_path, monkeypatch):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs/api.md").read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 3
    monkeypatch.chdir(tmp_path)
    exec(compile("".join(blocks), "api.md", "exec"), {})
    with cowdb.open("app.cowdb", create=False) as db, db.read() as snap:
        assert snap.trees() == ["cows", "users"]
        assert db.check() == []


def test_the_interface_page_names_what_there_is():
    text = (ROOT / "docs/api.md").read_text(encoding="utf-8")
    words = set(re.findall(r"\w+", text))
    assert set(cowdb.__all__) - {"Finding", "Stats", "Tree", "WriteTree"} <= words
    inside = {
        "abandon",
        "cut_off",
        "has_turn",
        "see_to",
        "pinning",
        "committing",
        "readings",
        "part",
    }  # between modules
    for kind in (cowdb.Database, cowdb.Transaction, cowdb.WriteTransaction, cowdb.Tree, cowdb.WriteTree, cowdb.Cursor):
        own = {name for name in vars(kind) if not name.startswith("_")}
        assert own - inside <= words, kind
    options = set(inspect.signature(cowdb.open).parameters) | set(inspect.signature(cowdb.Tree.items).parameters)
    assert options - {"self"} <= words
