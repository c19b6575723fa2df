"""Saving what can be saved: every entry whose page verifies, and an account of what is lost.

    1  walk over the trees of the newest meta page that can be read; note what is damaged (gaps)
    2  read the rest of the file for orphans: pages that only a damaged page led to
    3  give each tree of orphans to the gap that it fits; what fits no gap, or more than one, becomes a tree
       of its own, called recovered-N after its topmost page
    4  hand out the entries, tree by tree

Free pages are not looked at: they hold what was deleted or changed.  With `older` they
are, for keys of a gap that were found nowhere else; what is found so may be out of date.
Where no meta page can be read there is no state: every page that holds is an orphan, the
newest catalog among them gives the names.
"""

from __future__ import annotations

import dataclasses
import itertools
from typing import TYPE_CHECKING, Any, Final

from cowdb import format as fmt
from cowdb.cli.measure import tree_label
from cowdb.cli.orphans import Orphan, Orphans, entries_of, find_orphans
from cowdb.cli.stat import every_tree
from cowdb.errors import CorruptionError
from cowdb.lookup import cell
from cowdb.pagemap import PageMap

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cowdb.cli.output import Progress
    from cowdb.inspection import State, Visit
    from cowdb.lookup import Tree

__all__ = ["Account", "Gap", "Salvage"]

_LISTED: Final = 1000
"""Losses that are kept for the report, of each kind."""

_FEW: Final = 5
"""Gaps of which all orders are tried."""

_OWN_TREES: Final = 50
"""Trees that are made of orphans without a home; what is left goes into one more."""


@dataclasses.dataclass
class Gap:
    """A page that does not verify: what should be below it."""

    tree: str | None
    system: bool
    page: int
    level: int
    birth: int
    low: bytes
    high: bytes | None
    entries: int
    reason: str
    filled: int = 0
    roots: list[Orphan] = dataclasses.field(default_factory=list)
    older: list[Orphan] = dataclasses.field(default_factory=list)

    def fits(self, first: bytes, last: bytes) -> bool:
        """Whether keys from `first` to `last` lie within it."""
        return self.low <= first and (self.high is None or last < self.high)


@dataclasses.dataclass
class Account:
    """What was saved of a tree, and what was not."""

    tree: str
    expected: int | None
    saved: int = 0
    found_again: int = 0
    """Of `saved`: those that were found by reading the whole file."""
    older: int = 0
    """Of `saved`: those from older versions of pages, perhaps out of date."""
    lost_values: int = 0

    def facts(self) -> dict[str, Any]:
        """As a plain dictionary."""
        lost = None if self.expected is None else max(self.expected - self.saved + self.older, 0)
        return {**dataclasses.asdict(self), "lost": lost}


class Salvage:
    """See the module's text. `prepare`, then `trees` once; the accounts are complete when it is used up."""

    def __init__(self, state: State, *, older: bool = False, blind: bool = False) -> None:
        """`blind`: the state is only a stand-in, no meta page could be read."""
        self._state = state
        self._older = older
        self._blind = blind
        self._trees: list[Tree] = []
        self._reached = PageMap()
        self._free = PageMap()
        self.gaps: list[Gap] = []
        self.accounts: list[Account] = []
        self.lost_keys: list[dict[str, Any]] = []
        self.remarks: list[str] = []
        self._orphans = Orphans({})
        self._homeless: list[list[Orphan]] = []  # each becomes a tree
        self._doubtful: dict[tuple[int, ...], list[Orphan]] = {}  # by the pages of the gaps that they fit
        self._taken: set[int] = set()
        self._free_damaged = blind
        self.unknown = blind
        """True if nobody can tell which trees there were."""

    @property
    def whole_trees(self) -> list[Tree]:
        """The trees that have a name, as far as one is known."""
        return self._trees

    # ------------------------------------------------------------ looking

    def prepare(self, tick: Progress) -> None:
        """Steps 1 to 3. O(file)."""
        if not self._blind:
            self._survey(tick)
            if not self.gaps:
                return
            self._mark_free()
        if self._free_damaged:
            self.remarks.append("the free list cannot be read: what was deleted before may turn up again")
        self._orphans = Orphans(find_orphans(self._state.source, self._state.page_size, self._wanted, tick))
        if self._blind:
            self._find_names()
        for root in self._orphans.roots:
            self._place(root)
        for pages, roots in self._doubtful.items():
            self._place_together([gap for gap in self.gaps if gap.page in pages], roots)
        if self._older and not self._blind:
            self._look_for_older(tick)

    def _survey(self, tick: Progress) -> None:
        trees, broken = every_tree(self._state)
        if broken:
            trees = self._named_anyway(trees)
            self.unknown = True
            self.remarks.append("the catalog is damaged: trees may have lost their names, and are called recovered-N")
        self._trees = trees[:-2]  # what catalog and free tree hold is made anew
        done = 0
        for tree in trees:
            for visit in self._state.walk(tree, self._reached):
                done += visit.pages
                if not done % 500:
                    tick(done, self._state.meta.page_count)
                if visit.damage and visit.kind != fmt.OVERFLOW_KIND:
                    self._gap(tree, visit)

    def _gap(self, tree: Tree, visit: Visit) -> None:
        ref, bounds = visit.ref, visit.bounds
        self.gaps.append(
            Gap(
                tree.name, tree.system, ref.number, bounds.level, ref.birth, bounds.low, bounds.high, ref.count,
                visit.damage,
            )
        )  # fmt: skip
        if tree.system and tree.descriptor is self._state.meta.free:
            self._free_damaged = True

    def _named_anyway(self, trees: list[Tree]) -> list[Tree]:
        """The named trees whose records stand in catalog pages that verify."""
        state = self._state
        named: dict[str, Tree] = {}
        for visit in state.walk(state.catalog):
            if visit.page is None or visit.level:
                continue
            for index, suffix in enumerate(visit.page.suffixes):
                try:
                    raw = state.value(visit.page, index)
                    tree = state.named(visit.page.prefix + suffix, raw, visit.ref.birth)
                except CorruptionError:
                    continue
                named[tree.name or ""] = tree
        return [trees[0], *(named[name] for name in sorted(named)), *trees[-2:]]

    def _mark_free(self) -> None:
        pages = min(self._state.meta.page_count, self._state.source.size() // self._state.page_size)
        try:
            for run in self._state.free_runs():
                length = min(run.length, pages - run.start)
                if length > 0:
                    self._free.mark(run.start, length, 1)
        except CorruptionError:
            self._free_damaged = True

    def _wanted(self, number: int) -> bool:
        return not self._reached.get(number) and not self._free.get(number)

    # ------------------------------------------------------------ giving orphans a place

    def _place(self, root: Orphan) -> None:
        first, last = self._orphans.span(root)
        fitting = [
            gap
            for gap in self.gaps
            if root.level < max(gap.level, 1) and root.birth <= gap.birth and gap.fits(first, last)
        ]
        fitting = [gap for gap in fitting if gap.level and not gap.system]
        if len({gap.tree for gap in fitting}) == 1:
            fitting[0].roots.append(root)
        elif not self._is_system(root):
            if fitting:
                self._doubtful.setdefault(tuple(sorted(gap.page for gap in fitting)), []).append(root)
            else:
                self._homeless.append([root])

    def _place_together(self, gaps: list[Gap], roots: list[Orphan]) -> None:
        """Orphans that fit gaps of several trees.

        If they can be cut, in key order, into rows that have just as many entries as the gaps, that is how they
        belong.  Else those whose keys do not mix become trees together.
        """
        order = sorted(roots, key=self._orphans.span)
        sizes = [self._below([root]) for root in order]
        for row in itertools.permutations(gaps) if len(gaps) <= _FEW else ():
            cuts = _cuts(sizes, [gap.entries - self._below(gap.roots) for gap in row])
            if cuts is not None:
                for gap, (start, stop) in zip(row, cuts, strict=True):
                    gap.roots += order[start:stop]
                return
        chains: list[tuple[bytes, list[Orphan]]] = []
        for root in order:
            first, last = self._orphans.span(root)
            at = next((index for index, (end, _) in enumerate(chains) if end < first), None)
            if at is None:
                chains.append((last, [root]))
            else:
                chains[at] = (last, [*chains[at][1], root])
        self._homeless += [chain for _, chain in chains]

    def _below(self, roots: list[Orphan]) -> int:
        """The entries below orphans."""
        return sum(leaf.entries for root in roots for leaf in self._orphans.leaves(root, set()))

    def _is_system(self, root: Orphan) -> bool:
        """Whether an orphan looks like a part of the catalog or of the free tree, which are made anew."""
        leaf = next(self._orphans.leaves(root, set()), None)
        entries = list(entries_of(self._state, leaf)) if leaf else []
        return bool(entries) and (all(map(_is_tree, entries)) or all(map(_is_free, entries)))

    def _find_names(self) -> None:
        """Without a meta page: the trees that the newest catalog names, as far as their roots are there."""
        for root in self._orphans.roots:
            leaves = list(self._orphans.leaves(root, set()))
            entries = [(entry, leaf.birth) for leaf in leaves for entry in entries_of(self._state, leaf)]
            if not entries or not all(_is_tree(entry) for entry, _ in entries):
                continue
            for (key, value), birth in entries:
                assert value is not None
                try:
                    tree = self._state.named(key, value, birth)
                except CorruptionError:
                    continue
                if not tree.descriptor.depth or self._orphans.names(tree.descriptor.root):
                    self._trees.append(tree)
                    self._taken.update(visit.ref.number for visit in self._state.walk(tree) if not visit.damage)
            return

    def _look_for_older(self, tick: Progress) -> None:
        """Free pages with keys of gaps, newest first."""
        found = find_orphans(self._state.source, self._state.page_size, lambda page: self._free.get(page) == 1, tick)
        for orphan in sorted(found.values(), key=lambda orphan: -orphan.birth):
            if orphan.level:
                continue
            fitting = [gap for gap in self.gaps if gap.fits(orphan.first, orphan.last) and orphan.birth <= gap.birth]
            if len({gap.tree for gap in fitting}) == 1:
                fitting[0].older.append(orphan)

    # ------------------------------------------------------------ handing out

    def trees(self) -> Iterator[tuple[str | None, Iterator[tuple[bytes, bytes]]]]:
        """Name and entries of each tree to be made; the entries of one are to be used before the next is asked for."""
        for tree in self._trees:
            account = Account(tree_label(tree.name), len(tree))
            self.accounts.append(account)
            yield tree.name, self._entries(tree, account)
        for chain in self._homeless[:_OWN_TREES]:
            account = Account(f"recovered-{chain[0].number}", None)
            entries = self._chain_entries(chain, account)
            first = next(entries, None)
            if first is not None:
                self.accounts.append(account)
                yield account.tree, itertools.chain([first], entries)
        rest = self._homeless[_OWN_TREES:]
        if rest:
            account = Account("recovered-rest", None)
            self.accounts.append(account)
            parts = (self._chain_entries(chain, account) for chain in reversed(rest))  # the newest last: it wins
            yield account.tree, itertools.chain.from_iterable(parts)

    def _chain_entries(self, chain: list[Orphan], account: Account) -> Iterator[tuple[bytes, bytes]]:
        for root in chain:
            yield from self._orphan_entries(root, account)

    def _entries(self, tree: Tree, account: Account) -> Iterator[tuple[bytes, bytes]]:
        gaps = {gap.page: gap for gap in self.gaps if gap.tree == tree.name}
        state = self._state
        for visit in state.walk(tree):
            if visit.damage:
                gap = gaps.get(visit.ref.number)
                if gap is not None and visit.kind != fmt.OVERFLOW_KIND:
                    yield from self._fill(gap, account)
                continue
            page = visit.page
            if page is None or visit.level:
                continue
            inline = page.inline
            for index, suffix in enumerate(page.suffixes):
                key = page.prefix + suffix
                try:
                    if inline:
                        _, start, stop = cell(page, index)
                        value = page.raw[start:stop]
                    else:
                        value = state.value(page, index)
                except (CorruptionError, OSError) as error:
                    self._lose(account, key, str(error))
                    continue
                account.saved += 1
                yield key, value

    def _fill(self, gap: Gap, account: Account) -> Iterator[tuple[bytes, bytes]]:
        """What was found of the entries below a damaged page."""
        seen: set[bytes] | None = set() if gap.older else None
        for root in gap.roots:
            before = account.saved
            for key, value in self._orphan_entries(root, account):
                if seen is not None:
                    seen.add(key)
                yield key, value
            account.found_again += account.saved - before
            gap.filled += account.saved - before
        if seen is None:
            return
        for orphan in gap.older:
            for key, stale in entries_of(self._state, orphan):
                if stale is not None and key not in seen:
                    seen.add(key)
                    account.saved += 1
                    account.older += 1
                    yield key, stale

    def _orphan_entries(self, root: Orphan, account: Account) -> Iterator[tuple[bytes, bytes]]:
        for leaf in self._orphans.leaves(root, self._taken):
            for key, value in entries_of(self._state, leaf):
                if value is None:
                    self._lose(account, key, "its overflow run does not verify")
                    continue
                account.saved += 1
                yield key, value

    def _lose(self, account: Account, key: bytes, reason: str) -> None:
        account.lost_values += 1
        if len(self.lost_keys) < _LISTED:
            self.lost_keys.append({"tree": account.tree, "key": key, "reason": reason})


def _cuts(sizes: list[int], wanted: list[int]) -> list[tuple[int, int]] | None:
    """Where to cut `sizes` so that the parts add up to `wanted`, in this order; None if that cannot be."""
    cuts = []
    at = 0
    for total in wanted:
        start = at
        while total > 0 and at < len(sizes):
            total -= sizes[at]  # noqa: PLW2901 - what is still wanted
            at += 1
        if total:
            return None
        cuts.append((start, at))
    return cuts if at == len(sizes) else None


def _is_tree(entry: tuple[bytes, bytes | None]) -> bool:
    """Whether an entry looks like one of the catalog."""
    value = entry[1]
    return value is not None and len(value) == fmt.DESCRIPTOR_SIZE and fmt.unpack_descriptor(value).pack() == value


def _is_free(entry: tuple[bytes, bytes | None]) -> bool:
    """Whether an entry looks like one of the free tree."""
    key, value = entry
    if value is None or len(key) != fmt.FREE_KEY.size or not value or len(value) % fmt.FREE_RUN.size:
        return False
    return all(
        start >= fmt.FIRST_DATA_PAGE and length and birth <= freed
        for start, length, birth, freed in fmt.unpack_runs(value)
    )
