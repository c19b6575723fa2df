"""``cowdb path``: the pages that a lookup visits, and why."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from cowdb import format as fmt
from cowdb.cli.data import given
from cowdb.cli.opening import add_path, add_timeout, add_tree, looking, tree_of
from cowdb.cli.output import FINDINGS, FINE, USAGE, CommandError, are, counted, size_text
from cowdb.cli.stat import state_of
from cowdb.errors import CorruptionError
from cowdb.lookup import cell, separators

if TYPE_CHECKING:
    import argparse

    from cowdb.cli.output import Output
    from cowdb.lookup import Step, Tree

__all__ = ["DESCRIPTION", "EXAMPLES", "arguments", "run"]

DESCRIPTION: Final = r"""
Goes down from the root to where KEY is or would be, and says at each page why
it goes on as it does: child i of a branch holds the keys from separator i up to
the next one. KEY is text with \xNN for other bytes, or hex with --hex.
Exit code 1 if the key is not there, or a page on the way is damaged.
"""

EXAMPLES: Final = (
    ("cowdb path app.cowdb user:42", "in the main tree"),
    ("cowdb path app.cowdb -t users --hex 00ff", "two bytes, in a named tree"),
)

_SHOWN: Final = 40


def arguments(parser: argparse.ArgumentParser) -> None:
    """See `cowdb.cli`."""
    add_path(parser)
    parser.add_argument("keys", metavar="KEY", help="the key to look up")
    parser.add_argument("--key", choices=("text", "hex"), default="text", help="how KEY is written (default: text)")
    parser.add_argument("--hex", dest="key", action="store_const", const="hex", help="the same as --key hex")
    add_tree(parser)
    add_timeout(parser)


def run(args: argparse.Namespace, out: Output) -> int:
    """See `cowdb.cli`."""
    try:
        key = given(args.keys, args.key)
    except ValueError as error:
        raise CommandError(str(error), USAGE) from None
    with looking(args.file, args.timeout) as look:
        state = state_of(look, out)
        tree = tree_of(state, args.tree)
        meta = state.meta
        facts: dict[str, Any] = {
            "key": key,
            "tree": tree.name,
            "transaction": meta.transaction,
            "root": tree.descriptor.root.number,
            "steps": [],
            "found": False,
            "damage": None,
        }
        steps: list[Step] = []
        try:
            for step in tree.steps(key):
                steps.append(step)
                facts["steps"].append(_step(step))
            facts |= _ending(tree, steps, key)
        except CorruptionError as error:
            facts["damage"] = str(error)
    if out.machine:
        out.document(facts)
    else:
        _draw(facts, out)
    return FINE if facts["found"] else FINDINGS


def _step(step: Step) -> dict[str, Any]:
    page = step.page
    facts: dict[str, Any] = {
        "page": step.ref.number,
        "kind": "branch" if step.level else "leaf",
        "level": step.level,
        "birth": step.ref.birth,
        "checksum": f"{step.ref.checksum:08x}",
        "entries": step.ref.count,
        "cells": page.cells,
        "cell": step.cell,
        "prefix": page.prefix,
    }
    if step.level:
        keys = separators(page)
        facts["from"] = keys[step.cell - 1] if step.cell else step.bounds.low or None
        facts["to"] = keys[step.cell] if step.cell < len(keys) else step.bounds.high
    else:
        keys = [page.prefix + suffix for suffix in page.suffixes]
        facts["before"] = keys[step.cell - 1] if step.cell else None
        facts["at"] = keys[step.cell] if step.cell < len(keys) else None
    return facts


def _ending(tree: Tree, steps: list[Step], key: bytes) -> dict[str, Any]:
    if not steps or not tree.at(steps[-1], key):
        return {"found": False, "rank": tree.rank(key)}
    last = steps[-1]
    kind, start, stop = cell(last.page, last.cell)
    facts: dict[str, Any] = {"found": True, "rank": tree.rank(key), "value_size": stop - start, "overflow": None}
    if kind == fmt.OVERFLOW:
        ref = fmt.unpack_reference(last.page.raw[start:stop])
        facts["value_size"] = ref.count
        facts["overflow"] = {
            "page": ref.number,
            "pages": fmt.overflow_pages(ref.count, tree.state.page_size),
            "birth": ref.birth,
            "checksum": f"{ref.checksum:08x}",
        }
    return facts


def _draw(facts: dict[str, Any], out: Output) -> None:
    key = out.key(facts["key"], _SHOWN)
    where = "the main tree" if facts["tree"] is None else f"tree {facts['tree']!r}"
    out.line(f"{key} in {where}, transaction {facts['transaction']}", "bold")
    if not facts["root"]:
        out.line("  the tree is empty")
        return

    def show(data: bytes | None, otherwise: str) -> str:
        return otherwise if data is None else out.key(data, _SHOWN)

    for depth, step in enumerate(facts["steps"]):
        lead = "  " * (depth + 1)
        name = "root, " if not depth else ""
        out.line(
            f"{lead}page {step['page']}: {name}{step['kind']} at level {step['level']}, "
            f"{counted(step['cells'], 'cell')}, {counted(step['entries'], 'entry')}, born in {step['birth']}, "
            f"checksum {step['checksum']} verified",
            "cyan",
        )
        if step["kind"] == "branch":
            low, high = show(step["from"], "the beginning"), show(step["to"], "the end")
            out.line(f"{lead}  -> child {step['cell']} of {step['cells']}: keys from {low} up to {high}")
        elif facts["found"]:
            out.line(f"{lead}  -> cell {step['cell']} of {step['cells']}")
        else:
            before, after = show(step["before"], "the beginning"), show(step["at"], "the end")
            out.line(f"{lead}  -> not here; it would stand between {before} and {after}")
    if facts["damage"]:
        out.line(f"  {facts['damage']}", "bold red")
    elif facts["found"]:
        run = facts["overflow"]
        more = f", in {counted(run['pages'], 'overflow page')} from page {run['page']} on" if run else ", in the leaf"
        out.line(f"  found: entry {facts['rank']:,}, a value of {size_text(facts['value_size'])}{more}", "green")
    else:
        out.line(f"  not found: {counted(facts['rank'], 'key')} {are(facts['rank'])} less", "yellow")
