"""``cowdb recover``: out of a damaged file into a new one, everything that is whole."""

from __future__ import annotations

import dataclasses
import os
from typing import TYPE_CHECKING, Any, Final

from cowdb import format as fmt
from cowdb.check import check
from cowdb.cli.measure import tree_label
from cowdb.cli.newfile import new_database, refuse_existing
from cowdb.cli.opening import add_path, add_timeout, looking, natural, open_file
from cowdb.cli.orphans import guess_page_size
from cowdb.cli.output import FINDINGS, FINE, NOT_A_DATABASE, Column, CommandError, are, counted, size_text
from cowdb.cli.salvage import Gap, Salvage
from cowdb.inspection import State
from cowdb.meta import Meta

if TYPE_CHECKING:
    import argparse

    from cowdb.cli.opening import Look
    from cowdb.cli.output import Output

__all__ = ["DESCRIPTION", "EXAMPLES", "arguments", "run"]

DESCRIPTION: Final = """
Reads DAMAGED and writes every entry whose page verifies into the new file NEW.
Pages below a damaged branch are found by reading the whole file. It says tree by
tree what was saved and what is lost; trees whose name is lost are called
recovered-N, after their topmost page. It works with one meta page and, as far as
possible, with none, and takes sectors that the disk cannot read for damaged. Exit
code 1 if anything is lost.

When you have seen which tree recovered-N is (cowdb scan NEW --tree recovered-N),
put it back into its place. This makes one the main tree of a new file; give
cowdb load --tree NAME as well, and it becomes a named tree:
  cowdb dump saved.cowdb --tree recovered-43 --plain |
      cowdb load new.cowdb - --from jsonl
"""

EXAMPLES: Final = (
    ("cowdb recover broken.cowdb saved.cowdb", "save what is whole"),
    (
        "cowdb recover broken.cowdb saved.cowdb --older",
        "fill gaps with older versions, where free pages still have some",
    ),
    ("cowdb recover broken.cowdb saved.cowdb --format json > lost.json", "the full account of what is lost"),
)

TREES: Final = (
    Column("tree", "tree"),
    Column("expected", "entries", "number"),
    Column("saved", "saved", "number"),
    Column("found_again", "of these found again", "number"),
    Column("older", "of these older", "number"),
    Column("lost", "lost", "number"),
)
GAPS: Final = (
    Column("tree", "tree"),
    Column("page", "page", "number"),
    Column("entries", "entries", "number"),
    Column("found_again", "found again", "number"),
    Column("from", "keys from", "data"),
    Column("to", "up to", "data"),
    Column("reason", "what is wrong"),
)
_SHOWN: Final = 20


def arguments(parser: argparse.ArgumentParser) -> None:
    """See `cowdb.cli`."""
    add_path(parser, "DAMAGED", "the database file that is damaged; it is only read")
    parser.add_argument("new", metavar="NEW", help="the file to make")
    parser.add_argument(
        "--older", action="store_true", help="for what is lost, take older versions that free pages still hold"
    )
    parser.add_argument(
        "--slot", type=natural, choices=(0, 1), help="the state of this meta slot (default: the newest)"
    )
    add_timeout(parser)


def run(args: argparse.Namespace, out: Output) -> int:
    """See `cowdb.cli`."""
    refuse_existing(args.new)
    with looking(args.file, args.timeout, slot=args.slot, wiped=guess_page_size) as look:
        blind = look.state is None
        state = look.state or _blind_state(look)
        salvage = Salvage(state, older=args.older, blind=blind)
        if blind:
            salvage.remarks.append("no meta page can be read: the main tree is among those called recovered-N")
        with out.progress("looking for what is whole", "pages") as tick:
            salvage.prepare(tick)
        with out.progress("saving", "entries") as tick:
            total = sum(len(tree) for tree in salvage.whole_trees)
            database_id = None if blind else state.meta.database_id
            with new_database(args.new, state.page_size, database_id) as db, db.write() as txn:
                done = 0
                for name, entries in salvage.trees():
                    target = txn if name is None else txn.tree(_free_name(name, set(txn.trees())), create=True)
                    for key, value in entries:
                        target.put(key, value)
                        done += 1
                        if not done % 1000:
                            tick(done, max(total, done))
    _assure(args.new)
    facts = _facts(salvage, look, args)
    if out.machine:
        out.document(facts)
    else:
        _show(facts, out)
    return FINDINGS if facts["lost"] or facts["remarks"] or facts["without_their_tree"] else FINE


def _blind_state(look: Look) -> State:
    """A stand-in for the state of a file whose meta pages are both destroyed."""
    if any(slot.unknown for slot in look.slots):
        raise CommandError(next(slot.reason for slot in look.slots if slot.unknown), NOT_A_DATABASE)
    size = guess_page_size(look.source)
    if size is None:
        raise CommandError("no meta page can be read, and no page of any size is whole: nothing can be saved")
    meta = Meta(
        page_size=size, database_id=bytes(16), transaction=fmt.MAX_U48, durable=fmt.MAX_U48,
        page_count=look.storage.size() // size, commit_time=0, main=fmt.EMPTY_TREE, catalog=fmt.EMPTY_TREE,
        free=fmt.EMPTY_TREE, carry=b"",
    )  # fmt: skip
    return State(look.source, meta)


def _free_name(name: str, taken: set[str]) -> str:
    """A name that UTF-8 has, and no tree yet."""
    clean = name.encode(errors="backslashreplace").decode()
    while clean in taken:
        clean += "'"
    return clean


def _assure(path: str) -> None:
    """The new file passes the checker, or it must not be taken for good."""
    storage = open_file(path)
    try:
        findings = check(storage)
    finally:
        storage.close()
    if findings:
        raise CommandError(f"the new file is not sound, which is a bug of cowdb: {findings[0]}")


def _facts(salvage: Salvage, look: Look, args: argparse.Namespace) -> dict[str, Any]:
    trees = [account.facts() for account in salvage.accounts]
    homeless = sum(tree["saved"] for tree in trees if tree["expected"] is None)
    missing = sum(tree["lost"] or 0 for tree in trees)
    values = sum(tree["lost_values"] for tree in trees if tree["expected"] is None)
    # What turned up without its tree is not lost; where the catalog is, nobody knows how much there was.
    lost = (missing if salvage.unknown else max(missing - homeless, 0)) + values
    return {
        "path": args.file,
        "new": args.new,
        "problem": look.problem or None,
        "transaction": look.state.meta.transaction if look.state else None,
        "saved": sum(tree["saved"] for tree in trees),
        "lost": lost,
        "lost_is_known": not salvage.unknown,
        "without_their_tree": homeless,
        "trees": trees,
        "damaged_pages": [_gap(gap) for gap in salvage.gaps],
        "lost_values": salvage.lost_keys,
        "remarks": salvage.remarks,
        "new_size": os.path.getsize(args.new),
    }


def _gap(gap: Gap) -> dict[str, Any]:
    facts = dataclasses.asdict(gap)
    return {
        "tree": tree_label(gap.tree),
        "page": gap.page,
        "level": gap.level,
        "birth": gap.birth,
        "from": facts["low"] or None,
        "to": facts["high"],
        "entries": gap.entries,
        "found_again": gap.filled,
        "reason": gap.reason,
    }


def _show(facts: dict[str, Any], out: Output) -> None:
    columns = [
        column
        for column in TREES
        if column.key not in {"older", "found_again"} or any(tree[column.key] for tree in facts["trees"])
    ]
    out.table(columns, facts["trees"])
    gaps = facts["damaged_pages"]
    if gaps:
        out.heading("damaged pages")
        out.table(GAPS, gaps[:_SHOWN])
    values = facts["lost_values"]
    if values:
        out.heading("values that cannot be read")
        columns = [Column("tree", "tree"), Column("key", "key", "data"), Column("reason", "what is wrong")]
        out.table(columns, values[:_SHOWN])
    if len(gaps) > _SHOWN or len(values) > _SHOWN:
        out.line("... and more; --format json has the full account")
    out.line()
    size = size_text(facts["new_size"])
    saved = f"{counted(facts['saved'], 'entry')} saved in {facts['new']} ({size})"
    if facts["lost"]:
        out.line(f"{saved}, {facts['lost']:,} lost.", "bold yellow")
    elif facts["lost_is_known"]:
        out.line(f"{saved}; nothing is lost.", "bold green")
    else:
        out.line(f"{saved}; nobody can tell how many there were.", "bold yellow")
    if facts["without_their_tree"]:
        count = facts["without_their_tree"]
        out.line(
            f"{count:,} of them {are(count)} in trees called recovered-N: what led to them is lost. "
            "cowdb help recover says how such a tree gets its place again."
        )
    for remark in facts["remarks"]:
        out.line(f"Mind: {remark}.", "yellow")
