"""``cowdb info``: what a file is, in the time that it takes to read two pages.

It reads both meta pages, the catalog and, where others have the file open, the
words of the lock file; never the data.  So it takes the same time for any size.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Final

from cowdb import format as fmt
from cowdb.cli.opening import Look, add_path, add_timeout, looking
from cowdb.cli.output import FINDINGS, FINE, counted, size_text, time_text
from cowdb.cli.users import durable_transaction, live_snapshots
from cowdb.errors import CorruptionError

if TYPE_CHECKING:
    import argparse

    from cowdb.cli.output import Output
    from cowdb.inspection import Slot, State

__all__ = ["DESCRIPTION", "EXAMPLES", "arguments", "run"]

DESCRIPTION: Final = """
Shows the format, the sizes, both meta pages, which state is durable, the trees
in short, and what each live snapshot holds back. Reads a few pages only, so it
is as quick on a large file as on a small one. A damaged file is shown as far as
it can be read, with exit code 1.
"""

EXAMPLES: Final = (
    ("cowdb info app.cowdb", "everything at a glance"),
    ("cowdb info app.cowdb --format json | jq .free_pages", "one fact, for a script"),
)

TREES_SHOWN: Final = 1000


def arguments(parser: argparse.ArgumentParser) -> None:
    """See `cowdb.cli`."""
    add_path(parser)
    add_timeout(parser)


def run(args: argparse.Namespace, out: Output) -> int:
    """See `cowdb.cli`."""
    with looking(args.file, args.timeout) as look:
        facts = gather(args.file, look)
        facts["snapshots"] = live_snapshots(args.file, look.state) if look.state and not look.problem else []
    if out.machine:
        out.document(facts)
    else:
        _show(facts, out)
    return FINDINGS if facts["problem"] else FINE


def gather(path: str, look: Look) -> dict[str, Any]:
    """The facts of a file as a plain dictionary. O(named trees)."""
    facts: dict[str, Any] = {
        "path": os.path.abspath(path),
        "file_size": look.storage.size(),
        "allocated_size": _allocated(look.storage.path),
        "problem": look.problem or None,
        "slots": [describe_slot(slot) for slot in look.slots],
    }
    state = look.state
    if state is not None:
        meta = state.meta
        facts |= {
            "format_version": fmt.FORMAT_VERSION,
            "page_size": meta.page_size,
            "database_id": meta.database_id.hex(),
            "transaction": meta.transaction,
            "durable_transaction": _durable(path, look),
            "commit_time": meta.commit_time / 1e9,
            "page_count": meta.page_count,
            "entries": meta.main.root.count,
            "max_key_size": fmt.max_key_size(meta.page_size),
            "optional_features": meta.optional_features,
        }
        facts |= _trees(state, facts)
    return facts


def _durable(path: str, look: Look) -> int:
    """The newest transaction that is known to be on disk: by a meta page, or by those who have the file open."""
    known = [slot.meta.durable for slot in look.slots if slot.meta is not None]
    if not look.problem:
        known.append(durable_transaction(path) or 0)
    return max(known, default=0)


def _trees(state: State, facts: dict[str, Any]) -> dict[str, Any]:
    meta = state.meta
    used = _pages(meta.main) + _pages(meta.catalog) + _pages(meta.free)
    named = 0
    trees: dict[str, int] = {}
    more: dict[str, Any] = {}
    try:
        for tree in state.trees():
            if tree.name is None:
                continue
            named += 1
            used += _pages(tree.descriptor)
            if named <= TREES_SHOWN:
                trees[tree.name] = len(tree)
    except CorruptionError as error:
        more["problem"] = facts["problem"] or f"the catalog cannot be read: {error}"
    free = max(meta.page_count - fmt.META_PAGES - used, 0)
    return {
        **more,
        "named_trees": named,
        "trees": trees,
        "used_pages": used,
        "free_pages": free,
        "carried_runs": len(meta.carried),
        "carried_pages": sum(run[1] for run in meta.carried),
        "free_tree_entries": meta.free.root.count,
    }


def describe_slot(slot: Slot) -> dict[str, Any]:
    """A meta slot as a plain dictionary."""
    facts: dict[str, Any] = {"slot": slot.number, "offset": slot.offset, "readable": slot.meta is not None}
    if slot.meta is None:
        return facts | {"reason": slot.reason}
    meta = slot.meta
    return facts | {
        "transaction": meta.transaction,
        "durable": meta.durable,
        "page_count": meta.page_count,
        "commit_time": meta.commit_time / 1e9,
        "carried_runs": len(meta.carried),
    }


def _pages(tree: fmt.Descriptor) -> int:
    return tree.branch_pages + tree.leaf_pages + tree.overflow_pages


def _allocated(path: str) -> int | None:
    """Bytes that the file takes on its disk, holes not counted."""
    blocks = getattr(os.stat(path), "st_blocks", None)
    return None if blocks is None else blocks * 512


def _show(facts: dict[str, Any], out: Output) -> None:
    out.line(facts["path"], "bold")
    if facts["problem"]:
        out.line(f"  DAMAGED: {facts['problem'].removeprefix('the file is damaged: ')}", "bold red")
    sizes = size_text(facts["file_size"])
    if facts["allocated_size"] is not None and facts["allocated_size"] < facts["file_size"]:
        sizes += f", of which {size_text(facts['allocated_size'])} on disk (the rest are holes)"
    rows = [("size", sizes)]
    if "page_size" in facts:
        limits = f"pages of {facts['page_size']} bytes, keys up to {facts['max_key_size']}"
        rows += [
            ("format", f"version {facts['format_version']}, {limits}"),
            ("database id", facts["database_id"]),
            ("transaction", f"{facts['transaction']}, committed {time_text(facts['commit_time'])}"),
            ("durable", f"transaction {facts['durable_transaction']} is known to be on disk"),
            ("entries", f"{facts['entries']:,} in the main tree"),
            ("named trees", f"{facts['named_trees']:,}" + _first_names(facts["trees"])),
            ("pages", f"{facts['page_count']:,}: {facts['used_pages']:,} used, {_free(facts)}"),
            ("carry list", f"{counted(facts['carried_runs'], 'run')}, {counted(facts['carried_pages'], 'page')}"),
        ]  # fmt: skip
    for slot in facts["slots"]:
        rows.append((f"meta slot {slot['slot']}", _slot_text(slot)))
    out.facts(rows)
    _show_snapshots(facts, out)


def _free(facts: dict[str, Any]) -> str:
    return f"{facts['free_pages']:,} free ({size_text(facts['free_pages'] * facts['page_size'])})"


def _first_names(trees: dict[str, int]) -> str:
    if not trees:
        return ""
    names = ", ".join(list(trees)[:5])
    return f": {names}{', ...' if len(trees) > 5 else ''}"


def _slot_text(slot: dict[str, Any]) -> str:
    if not slot["readable"]:
        return f"cannot be read: {slot['reason']}"
    return f"transaction {slot['transaction']}, durable {slot['durable']}, {counted(slot['page_count'], 'page')}"


def _show_snapshots(facts: dict[str, Any], out: Output) -> None:
    for snapshot in facts["snapshots"]:
        held = snapshot["held_pages"]
        what = "pages cannot be counted" if held is None else f"holds back {counted(held, 'free page')}"
        out.line(
            f"  process {snapshot['pid']} reads transaction {snapshot['transaction']}, "
            f"{snapshot['behind']} behind: {what}"
        )
