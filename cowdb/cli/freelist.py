"""Making the free list of a state anew, from what is reachable.

What no tree leads to is free.  Its runs go into the carry list of the meta page; if they
are too many for it, into a free tree that is built here, in free pages.

    reached   ##..###.....####      runs  2+2  7+5       nobody sees them: born and freed in 0
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeVar

from cowdb import format as fmt
from cowdb.cli.output import CommandError
from cowdb.cli.stat import every_tree
from cowdb.page import Page
from cowdb.pagemap import PageMap

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cowdb.cli.output import Progress
    from cowdb.inspection import State
    from cowdb.meta import CarriedRun, Meta

__all__ = ["rebuilt"]

_T = TypeVar("_T")
_ELSE: Final = "cowdb recover saves the entries instead"


def rebuilt(state: State, tick: Progress) -> tuple[Meta, list[tuple[int, bytes]]]:
    """The meta of `state` with a new free list, and the pages of it that must be written: (number, bytes).

    Raises `CommandError` if a page of a tree is damaged: what it led to would count as free.  O(pages).
    """
    reached = _reached(state, tick)
    meta = state.meta
    runs: list[tuple[int, int]] = []
    at = fmt.FIRST_DATA_PAGE
    while (start := reached.first_unmarked(at, meta.page_count)) < meta.page_count:
        at = reached.first_marked(start, meta.page_count)
        runs.append((start, at - start))
    room = fmt.carry_capacity(meta.page_size)
    if len(runs) <= room:
        return meta._replace(free=fmt.EMPTY_TREE, carry=fmt.pack_runs(_carried(runs))), []
    # The longest run gives the pages of the tree; taking from its end changes no other.
    longest = max(range(len(runs)), key=lambda index: runs[index][1])
    pages = _pages_needed(len(runs) - room + 1, meta.page_size)
    start, length = runs[longest]
    if length < pages:
        raise CommandError(f"no free run has the {pages} pages that a new free tree takes; {_ELSE}")
    runs[longest] = (start, length - pages)
    runs = [run for run in runs if run[1]]
    carried, listed = runs[: room - 1], runs[room - 1 :]
    first = start + length - pages
    tree, written = _free_tree(_carried(listed), meta, first)
    if len(written) < pages:  # not all were needed
        carried.append((first + len(written), pages - len(written)))
    return meta._replace(free=tree, carry=fmt.pack_runs(_carried(carried))), written


def _reached(state: State, tick: Progress) -> PageMap:
    """The pages that the trees of the data lead to, each verified but for the insides of overflow runs."""
    trees, broken = every_tree(state)
    if broken:
        raise CommandError(f"{broken}; {_ELSE}")
    seen = PageMap()
    done = 0
    for tree in trees[:-1]:  # without the free tree
        for visit in state.walk(tree, seen):
            done += visit.pages
            if not done % 500:
                tick(done, state.meta.page_count)
            if visit.damage:
                raise CommandError(
                    f"page {visit.ref.number} of a tree is damaged ({visit.damage}), so nobody can tell what is free; "
                    f"{_ELSE}"
                )
    return seen


def _carried(runs: list[tuple[int, int]]) -> tuple[CarriedRun, ...]:
    return tuple((start, length, 0, 0) for start, length in runs)


def _fan_out(size: int) -> tuple[int, int]:
    """Records of a leaf and children of a branch that fit for certain."""
    record = fmt.runs_per_record(size) * fmt.FREE_RUN.size
    overhead = fmt.SLOT_SIZE + fmt.FREE_KEY.size
    leaf = (size - fmt.HEADER_SIZE) // (record + overhead + fmt.CELL_HEAD_SIZE)
    return leaf, (size - fmt.HEADER_SIZE) // (fmt.REFERENCE_SIZE + overhead)


def _pages_needed(runs: int, size: int) -> int:
    """Pages of the tree that holds so many runs."""
    leaf, branch = _fan_out(size)
    level = -(-runs // fmt.runs_per_record(size))
    level = -(-level // leaf)
    pages = level
    while level > 1:
        level = -(-level // branch)
        pages += level
    return pages


def _free_tree(runs: tuple[CarriedRun, ...], meta: Meta, first: int) -> tuple[fmt.Descriptor, list[tuple[int, bytes]]]:
    """Build the tree from its leaves up, in the pages from `first` on."""
    size, birth = meta.page_size, meta.transaction
    leaf_width, branch_width = _fan_out(size)
    records = []
    for chunk, part in enumerate(_rows(runs, fmt.runs_per_record(size))):
        value = fmt.pack_runs(part)
        records.append((fmt.FREE_KEY_STRUCT.pack(birth, chunk), len(value), value))
    written: list[tuple[int, bytes]] = []

    def sealed(page: Page) -> bytes:
        bits = page.seal(first + len(written), birth)
        written.append((first + len(written), bytes(page.data)))
        return bits.to_bytes(fmt.REFERENCE_SIZE, "little")

    level = [(leaf[0][0], sealed(Page.build_leaf(leaf, size))) for leaf in _rows(records, leaf_width)]
    leaves, depth = len(level), 1
    while len(level) > 1:
        above = []
        for kids in _rows(level, branch_width):
            page = Page.build_branch([(key, ref, None) for key, ref in kids], size, depth)
            above.append((kids[0][0], sealed(page)))
        level = above
        depth += 1
    root = fmt.unpack_reference(level[0][1])
    return fmt.Descriptor(root, depth, len(written) - leaves, leaves, 0), written


def _rows(items: Sequence[_T], width: int) -> list[list[_T]]:
    """`items` in as few rows of at most `width` as can be, all about equally long."""
    count = -(-len(items) // width)
    return [list(items[len(items) * row // count : len(items) * (row + 1) // count]) for row in range(count)]
