"""What changed between two looks at a database: a look is a few reads.

A reference carries the birth of its page, so the pages that commits have written
since the last look are found by entering only what is younger.  Pages that were
written and freed again in between are not seen.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

from cowdb import format as fmt
from cowdb.cli.opening import looking
from cowdb.cli.output import CommandError
from cowdb.cli.users import held_by, other_pins
from cowdb.errors import CorruptionError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cowdb.inspection import State
    from cowdb.lookup import Tree

__all__ = ["Watch", "young_pages"]

_MOST: Final = 20_000
"""Pages that one look follows at most; behind that it says "more than"."""


def young_pages(state: State, tree: Tree, since: int, most: int = _MOST) -> Iterator[tuple[fmt.Reference, int]]:
    """References of `tree` to pages born after transaction `since`, each with its pages; at most `most` of them.

    O(young pages). Raises `CorruptionError`.
    """
    if not tree.descriptor.depth or tree.descriptor.root.birth <= since:
        return
    for visit in state.walk(tree, since=since):
        if visit.damage:
            raise CorruptionError(visit.ref.number, visit.damage)
        yield visit.ref, visit.pages
        most -= 1
        if not most:
            return


class Watch:
    """Looks at a file again and again; each look is compared with the one before."""

    def __init__(self, path: str, timeout: float) -> None:
        self._path = path
        self._timeout = timeout
        self._before: tuple[int, float] | None = None

    def look(self) -> dict[str, Any]:
        """The facts of this moment, and what happened since the last look."""
        with looking(self._path, self._timeout) as look:
            if look.problem or look.state is None:
                raise CommandError(look.problem or "no meta page can be read")
            state = look.state
            meta = state.meta
            pins = other_pins(self._path)
            pinned = held_by(state, sorted({pin.transaction for pin in pins})) if pins else {}
            now = time.monotonic()
            facts: dict[str, Any] = {
                "time": time.time(),
                "transaction": meta.transaction,
                "commits": None,
                "commits_per_second": None,
                "pages_written": None,
                "page_count": meta.page_count,
                "file_size": look.storage.size(),
                "entries": meta.main.root.count,
                "snapshots": len(pins),
                "oldest_snapshot": min((pin.transaction for pin in pins), default=None),
            }
            used = 0
            written: int | None = 0
            try:
                for tree in [*state.trees(), state.catalog, state.free]:
                    used += sum(tree.descriptor[2:])
                    if self._before is not None and written is not None:
                        written += sum(pages for _, pages in young_pages(state, tree, self._before[0]))
            except CorruptionError:
                written = None
            free = max(meta.page_count - fmt.META_PAGES - used, 0)
            facts["free_pages"] = free
            facts["free_size"] = free * meta.page_size
            held = None if pinned is None else max(pinned.values(), default=0)
            facts["pinned_pages"] = held
            facts["pinned_size"] = None if held is None else held * meta.page_size
        if self._before is not None:
            transaction, then = self._before
            facts["commits"] = max(meta.transaction - transaction, 0)
            facts["commits_per_second"] = round(facts["commits"] / max(now - then, 1e-9), 1)
            facts["pages_written"] = written
        self._before = (meta.transaction, now)
        return facts
