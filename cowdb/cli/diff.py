r"""``cowdb diff``: what the newest state has that the one in the other meta slot has not.

Copy-on-write leaves what did not change where it is, under the same reference.
So the two trees are compared by their references: what the newer one wrote is what
is younger than the older one, and what the older one lost is what hangs in it without
being reached again.

       old R             new R'          written: R' B'
        /  \              /  \           let go:  R  B
       A    B            A    B'         A is the same reference in both: not entered
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from cowdb import format as fmt
from cowdb.cli.measure import tree_label
from cowdb.cli.opening import add_path, add_timeout, quiet
from cowdb.cli.output import FINDINGS, FINE, Column, CommandError, time_text
from cowdb.errors import CorruptionError
from cowdb.inspection import State
from cowdb.lookup import child_bounds, references, separators
from cowdb.pagecheck import Bounds

if TYPE_CHECKING:
    import argparse

    from cowdb.cli.output import Output
    from cowdb.lookup import Tree
    from cowdb.meta import Meta

__all__ = ["DESCRIPTION", "EXAMPLES", "arguments", "run"]

DESCRIPTION: Final = """
Compares the states of the two meta slots: transactions, times and page counts,
and tree by tree the entries, the pages that the newer state wrote, and those of the
older one that it let go. Only what differs is read. The pages of an old state may
be in use again by now; then they cannot be compared, and the remark says so. A
clean close makes both slots name the same state: there is something to compare
while others have the file open, or after a crash. Writers wait meanwhile.
"""

EXAMPLES: Final = (("cowdb diff app.cowdb", "what did the last commit change?"),)

META: Final = (Column("field", "meta page"), Column("older", "older"), Column("newer", "newer"))
TREES: Final = (
    Column("tree", "tree"),
    Column("entries", "entries", "number"),
    Column("change", "change", "number"),
    Column("written", "pages written", "number"),
    Column("let_go", "pages let go", "number"),
    Column("remark", "remark"),
)


def arguments(parser: argparse.ArgumentParser) -> None:
    """See `cowdb.cli`."""
    add_path(parser)
    add_timeout(parser)


def run(args: argparse.Namespace, out: Output) -> int:
    """See `cowdb.cli`."""
    with quiet(args.file, args.timeout) as look:  # else the meta pages could change under us
        both = [slot for slot in look.slots if slot.meta is not None]
        for slot in look.slots:
            if slot.meta is None and not both:
                raise CommandError(f"meta page {slot.number} cannot be read: {slot.reason}")
        facts: dict[str, Any] = {"same": False, "meta": [], "trees": [], "problem": look.problem or None}
        if len(both) == 2:
            both.sort(key=lambda slot: (slot.meta.transaction, slot.meta.durable) if slot.meta else (0, 0))
            older, newer = both[0].meta, both[1].meta
            assert older is not None
            assert newer is not None
            facts["slots"] = {"older": both[0].number, "newer": both[1].number}
            facts["meta"] = _fields(older, newer)
            facts["same"] = older.transaction == newer.transaction
            if not facts["same"]:
                facts["trees"] = _trees(State(look.storage, older), State(look.storage, newer))
        else:
            missing = next(slot for slot in look.slots if slot.meta is None)
            facts["problem"] = f"meta page {missing.number} cannot be read: {missing.reason}"
    if out.machine:
        out.document(facts)
    else:
        _show(facts, out)
    return FINDINGS if facts["problem"] else FINE


def _fields(older: Meta, newer: Meta) -> list[dict[str, Any]]:
    def facts(meta: Meta) -> dict[str, Any]:
        return {
            "transaction": meta.transaction,
            "durable": meta.durable,
            "commit time": time_text(meta.commit_time / 1e9),
            "page count": meta.page_count,
            "carried runs": len(meta.carried),
            "carried pages": sum(run[1] for run in meta.carried),
        }

    one, two = facts(older), facts(newer)
    return [{"field": name, "older": one[name], "newer": two[name]} for name in one]


# ---------------------------------------------------------------- pages


def _trees(older: State, newer: State) -> list[dict[str, Any]]:
    """What differs, tree by tree."""
    remark = ""
    try:
        old = {tree.name: tree for tree in older.trees()}
    except CorruptionError:
        old = {None: older.main}
        remark = "the older catalog is in use again"
    new = {tree.name: tree for tree in newer.trees()}
    pairs: list[tuple[str, Tree | None, Tree | None]] = [
        (tree_label(name), old.get(name), new.get(name)) for name in {**new, **old}
    ]
    pairs += [("the catalog", older.catalog, newer.catalog), ("the free tree", older.free, newer.free)]
    rows = []
    for name, was, now in pairs:
        if was is not None and now is not None and was.descriptor == now.descriptor:
            continue
        rows.append(
            _compare(name, was, now, older.meta.transaction) | ({"remark": remark} if remark and not was else {})
        )
    return rows


def _compare(name: str, was: Tree | None, now: Tree | None, old: int) -> dict[str, Any]:
    entries = len(now) if now else 0
    facts: dict[str, Any] = {
        "tree": name,
        "entries": entries,
        "change": entries - (len(was) if was else 0),
        "written": 0,
        "let_go": 0,
        "remark": "new" if was is None else "dropped" if now is None else None,
    }
    shared: set[fmt.Reference] = set()
    if now is not None:
        for ref, pages in _young(now, old, shared):
            del ref
            facts["written"] += pages
    if was is not None:
        try:
            facts["let_go"] = sum(_left(was, shared))
        except CorruptionError:
            facts["let_go"] = None
            facts["remark"] = "older pages are in use again"
    return facts


def _young(tree: Tree, old: int, shared: set[fmt.Reference]) -> list[tuple[fmt.Reference, int]]:
    """References to pages of `tree` younger than transaction `old`; `shared` gets the older ones that they lead to."""
    found = []
    for ref, pages, is_old in _below(tree, lambda ref: ref.birth <= old):
        if is_old:
            shared.add(ref)
        else:
            found.append((ref, pages))
    return found


def _left(tree: Tree, shared: set[fmt.Reference]) -> list[int]:
    """Pages of `tree` that are not below a reference in `shared`."""
    return [pages for _, pages, again in _below(tree, shared.__contains__) if not again]


def _below(tree: Tree, stop_at: Any) -> Any:
    """The references of a tree, each with its pages, and whether the walk stopped there."""
    if not tree.descriptor.depth:
        return
    state = tree.state
    stack = [(tree.descriptor.root, Bounds(tree.descriptor.depth - 1, b"", None), tree.limit)]
    while stack:
        ref, bounds, limit = stack.pop()
        if stop_at(ref):
            yield ref, 1, True
            continue
        page = state.page(ref, bounds, limit)
        yield ref, 1, False
        if bounds.level:
            keys = separators(page)
            for index, kid in enumerate(references(page)):
                stack.append((kid, child_bounds(bounds, keys, index), page.birth))
            continue
        for run in state.runs_of(page):
            yield run, fmt.overflow_pages(run.count, state.page_size), stop_at(run)


def _show(facts: dict[str, Any], out: Output) -> None:
    if facts["problem"]:
        out.line(f"DAMAGED: {facts['problem']}", "bold red")
    if facts["meta"]:
        out.table(META, facts["meta"])
    if facts["same"]:
        out.line("Both meta pages name the same transaction: the file was closed cleanly, or is new.")
    elif facts["trees"]:
        out.line()
        out.table(TREES, facts["trees"])
    elif facts["meta"]:
        out.line("The trees are the same in both.")
