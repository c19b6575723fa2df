"""``cowdb surgery``: put a meta page or a free list right, in a copy.

The patient is never touched: NEW is a copy of all its bytes, in which both meta
slots name the state that was chosen.  A copy has no other users and no older
snapshots, so its state is durable and nothing is held back.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Final

from cowdb import format as fmt
from cowdb import meta as metas
from cowdb.check import check
from cowdb.cli.freelist import rebuilt
from cowdb.cli.newfile import new_storage, refuse_existing
from cowdb.cli.opening import add_path, add_timeout, quiet
from cowdb.cli.output import FINDINGS, FINE, USAGE, CommandError, counted, size_text
from cowdb.inspection import State

if TYPE_CHECKING:
    import argparse

    from cowdb.cli.opening import Look
    from cowdb.cli.output import Output, Progress
    from cowdb.inspection import Source
    from cowdb.storage import FileStorage

__all__ = ["DESCRIPTION", "EXAMPLES", "arguments", "run"]

DESCRIPTION: Final = """
Makes NEW, a copy of FILE, and operates on the copy; FILE is only read.
  --meta other      the state of the older meta page becomes the state
  --meta 0, 1       the state of this meta slot becomes the state
  --free-list       the free list is made anew: all that no tree leads to is free
A clean close makes both meta pages name the same state; then there is no other one.
Writers wait meanwhile. The copy is checked at the end. Exit code 1 if it is not
sound: an older state may have lost pages to newer ones. Try cowdb recover first; it
saves entries, surgery saves a file.
"""

EXAMPLES: Final = (
    ("cowdb surgery app.cowdb fixed.cowdb --meta other", "go back to the commit before"),
    (
        "cowdb surgery app.cowdb fixed.cowdb --free-list",
        "when cowdb check says that pages are neither reachable nor free, or both",
    ),
)

_PIECE: Final = 1 << 20


def arguments(parser: argparse.ArgumentParser) -> None:
    """See `cowdb.cli`."""
    add_path(parser)
    parser.add_argument("new", metavar="NEW", help="the copy to make and to operate on")
    parser.add_argument("--meta", choices=("0", "1", "other", "newest"), default="newest", help="the state to choose")
    parser.add_argument("--free-list", action="store_true", help="make the free list anew")
    add_timeout(parser)


def run(args: argparse.Namespace, out: Output) -> int:
    """See `cowdb.cli`."""
    if args.meta == "newest" and not args.free_list:
        raise CommandError("say what to do: --meta other, 0 or 1, or --free-list, or both", USAGE)
    refuse_existing(args.new)
    with quiet(args.file, args.timeout) as look:
        meta = _chosen(look, args.meta)
        state = State(look.source, meta)
        pages: list[tuple[int, bytes]] = []
        if args.free_list:
            with out.progress("finding what is in use", "pages") as tick:
                meta, pages = rebuilt(state, tick)
        meta = meta._replace(durable=meta.transaction)
        with new_storage(args.new) as target:
            with out.progress("copying", "pages") as tick:
                _copy_bytes(look.source, target, meta.page_size, tick)
            for number, raw in pages:
                target.write(number * meta.page_size, [raw])
            for slot in range(fmt.META_PAGES):
                target.write(slot * meta.page_size, [metas.encode(meta, slot)])
            with out.progress("checking the copy", "pages") as tick:
                findings = check(target, progress=tick)
    facts: dict[str, Any] = {
        "path": args.file,
        "new": args.new,
        "transaction": meta.transaction,
        "entries": meta.main.root.count,
        "free_runs": len(meta.carried) if args.free_list else None,
        "free_tree_pages": len(pages) if args.free_list else None,
        "sound": not findings,
        "findings": [str(finding) for finding in findings],
        "size": os.path.getsize(args.new),
    }
    if out.machine:
        out.document(facts)
    else:
        _show(facts, out)
    return FINDINGS if findings else FINE


def _chosen(look: Look, which: str) -> metas.Meta:
    """The meta that shall be the state."""
    usable = [slot for slot in look.slots if slot.meta is not None]
    if which in {"0", "1"}:
        slot = look.slots[int(which)]
        if slot.meta is None:
            raise CommandError(f"meta page {which} cannot be read: {slot.reason}")
        return slot.meta
    if not usable:
        raise CommandError("no meta page can be read; cowdb recover finds the pages without them")
    if which == "newest":
        if look.state is not None:
            return look.state.meta
        raise CommandError(look.problem)
    newest = look.state.meta if look.state is not None else None
    others = [slot.meta for slot in usable if newest is None or slot.meta.transaction != newest.transaction]  # type: ignore[union-attr]  # they were just filtered
    if not others or others[0] is None:
        raise CommandError("there is no other state: both meta pages name the same one, or only one can be read")
    return others[0]


def _copy_bytes(source: Source, target: FileStorage, page_size: int, tick: Progress) -> None:
    """All bytes of the file; what is zero becomes a hole."""
    size = source.size()
    pages = -(-size // page_size)
    target.resize(pages * page_size)
    for at in range(0, size, _PIECE):
        block = source.read(at, min(_PIECE, size - at))
        if block.strip(b"\0"):
            target.write(at, [block])
        tick(at // page_size, pages)


def _show(facts: dict[str, Any], out: Output) -> None:
    for finding in facts["findings"][:20]:
        out.line(finding, "red")
    text = f"{facts['new']}: transaction {facts['transaction']}, {counted(facts['entries'], 'entry')} in the main tree"
    if facts["free_runs"] is not None:
        text += f", {counted(facts['free_runs'], 'run')} in the carry list"
        text += f", {counted(facts['free_tree_pages'], 'page')} of free tree"
    out.line(f"{text}, {size_text(facts['size'])}")
    if facts["sound"]:
        out.line("The copy is sound.", "bold green")
    else:
        number = counted(len(facts["findings"]), "finding")
        out.line(f"The copy is NOT sound ({number}): do not use it.", "bold red")
