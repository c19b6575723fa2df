"""``cowdb check``: whether everything in a file is as it must be.

The checker (`cowdb.check`) looks at every page and names the invariant that does
not hold.  Where pages cannot be believed, a second walk counts the keys that cannot
be reached because of them: a reference carries the number of entries below it.  They
need not be lost: below a damaged branch the leaves may well be whole.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

from cowdb import format as fmt
from cowdb.check import check
from cowdb.cli.measure import tree_label
from cowdb.cli.opening import add_path, add_timeout, natural, quiet
from cowdb.cli.output import FINDINGS, FINE, Column, counted, size_text
from cowdb.cli.stat import every_tree
from cowdb.pagemap import PageMap

if TYPE_CHECKING:
    import argparse

    from cowdb.cli.opening import Look
    from cowdb.cli.output import Output
    from cowdb.findings import Finding
    from cowdb.inspection import State

__all__ = ["DESCRIPTION", "EXAMPLES", "arguments", "run", "unreachable_keys"]

DESCRIPTION: Final = """
Reads every page of the file and checks all invariants: each page against the
reference that leads to it, each key against its neighbours, each count, each
page used or free and never both. Both meta pages are checked, and the state of
the older one too where it must be whole. If pages are damaged, the keys that
are unreachable because of it are counted; cowdb recover may find many of them
again. Writers wait meanwhile, readers do not. Exit code 1 if anything is wrong.
Nothing is repaired.
"""

EXAMPLES: Final = (
    ("cowdb check app.cowdb", "is it sound?"),
    ("cowdb check app.cowdb -q || mail -s 'damaged!' me@example.org", "in a nightly job"),
    ("cowdb check app.cowdb --format jsonl", "the findings, one a line"),
)

UNREACHABLE: Final = (
    Column("tree", "tree"),
    Column("unreachable_keys", "unreachable keys", "number"),
    Column("entries", "of", "number"),
)


def arguments(parser: argparse.ArgumentParser) -> None:
    """See `cowdb.cli`."""
    add_path(parser)
    parser.add_argument(
        "--both", action="store_true",
        help="also the state of the older meta page after a crash, when it may be in pieces by right",
    )  # fmt: skip
    parser.add_argument("--most", metavar="N", type=natural, default=50, help="findings to show as text (default: 50)")
    add_timeout(parser)


def run(args: argparse.Namespace, out: Output) -> int:
    """See `cowdb.cli`."""
    begun = time.monotonic()
    with quiet(args.file, args.timeout) as look:
        only = None if args.both else _only(look)
        with out.progress("checking", "pages") as tick:
            findings = check(look.storage, progress=tick, only=only)
        unreachable: list[dict[str, Any]] = []
        if findings and look.state is not None:
            with out.progress("counting unreachable keys", "pages") as tick:
                unreachable = unreachable_keys(look.state, tick)
        size = look.storage.size()
        remarks = [] if only is None else _remarks(look)
    seconds = time.monotonic() - begun
    facts = {
        "path": args.file,
        "sound": not findings,
        "findings": [_plain(finding) for finding in findings],
        "unreachable_keys": unreachable,
        "remarks": remarks,
        "file_size": size,
        "seconds": round(seconds, 3),
    }
    if out.format == "jsonl":
        out.records([*facts["findings"], *unreachable])
    elif out.machine:
        out.document(facts)
    else:
        _show(findings, facts, args.most, out)
    return FINDINGS if findings else FINE


def _only(look: Look) -> int | None:
    """The one state to check: after a crash the older one may be in pieces by right."""
    metas = [slot.meta for slot in look.slots if slot.meta is not None]
    if look.problem or not metas:
        return None
    assert look.state is not None
    meta = look.state.meta
    return None if meta.durable == meta.transaction else meta.transaction


def _remarks(look: Look) -> list[str]:
    """What is no finding, but worth a word: the last writer did not end cleanly, or is still there."""
    remarks = ["the file is in use, or was not closed cleanly: only the newest state was checked (--both checks both)"]
    remarks += [
        f"meta page {slot.number} cannot be read ({slot.reason}); the next writer makes it good"
        for slot in look.slots
        if slot.meta is None
    ]
    return remarks


def unreachable_keys(state: State, tick: Any = None) -> list[dict[str, Any]]:
    """For each tree with damage: the keys below damaged pages, and those whose value cannot be read. O(pages)."""
    trees, _ = every_tree(state)
    seen = PageMap()
    rows = []
    done = 0
    total = state.meta.page_count
    for tree in trees:
        count = 0
        for visit in state.walk(tree, seen, values=True):
            done += visit.pages
            if tick is not None and not done % 500:
                tick(done, total)
            if visit.damage:
                count += 1 if visit.kind == fmt.OVERFLOW_KIND else visit.ref.count
        if count:
            row = {"tree": tree_label(tree.name), "unreachable_keys": min(count, len(tree)), "entries": len(tree)}
            rows.append(row)
    return rows


def _plain(finding: Finding) -> dict[str, Any]:
    return {
        "invariant": finding.invariant,
        "page": finding.page_number if finding.page_number >= 0 else None,
        "slot": finding.meta_slot if finding.meta_slot >= 0 else None,
        "message": finding.message,
    }


def _show(findings: list[Finding], facts: dict[str, Any], most: int, out: Output) -> None:
    for finding in findings[:most]:
        out.line(str(finding), "red")
    if len(findings) > most:
        out.line(f"... and {len(findings) - most} more; --most and --format jsonl show them")
    if facts["unreachable_keys"]:
        out.line()
        out.table(UNREACHABLE, facts["unreachable_keys"])
        out.line(
            "cowdb recover may find many of the unreachable keys again: what hangs below a damaged page may be whole."
        )
    speed = facts["file_size"] / max(facts["seconds"], 1e-3)
    if findings:
        out.line(
            f"DAMAGED: {counted(len(findings), 'finding')} in {size_text(facts['file_size'])}. "
            "cowdb recover saves what is whole.",
            "bold red",
        )
    else:
        out.line(
            f"sound: {size_text(facts['file_size'])} checked in {facts['seconds']:.1f} s, {size_text(speed)}/s",
            "bold green",
        )
    for remark in facts["remarks"]:
        out.note(remark)
