"""Which state to believe when a file is opened, and how to make it certain again.

One rule covers a clean close, a kill and a power cut: *a meta page is believed
only if every page born after its `durable` verifies from its root down*.  A
commit writes pages and meta and flushes once, so a power cut may leave the meta
without its pages; then the walk finds a page that is not what its reference
says (I3), and the meta in the other slot, which was never touched (I8), is the
state.

    slot 0: 41, durable 40   whole                     slot 1: 42, durable 41
                                          R (42)
                                         /      \\
                                     A (17)     B (42) torn   ->  42 is not believed

References carry births, so the walk enters only subtrees younger than
`durable`: its cost is the work that was not known to be on disk, not the file.

Reading starts at once from the believed state.  Before the first write, it is
*re-asserted* (P3): after a failed flush the page cache can show bytes that are
not on disk, so the pages born after `durable` and the meta are written again and
flushed, and a torn or rejected meta in the other slot is overwritten with a copy
of the chosen one, so that no later crash can bring it back.

A torn one is blanked first.  Meta pages end in the same zeros, so a copy of which
only the end arrives could complete one of which only the beginning had.

    torn        [ 43 ][ ? ][ ? ]          blanked     [ -- ][ ? ][ ? ]
    copy of 42  [    ][ 0 ][ 0 ]  = 43!   copy of 42  [    ][ 0 ][ 0 ]  = nothing
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Final

from cowdb import format as fmt
from cowdb import meta as meta_page
from cowdb.checksum import crc32c
from cowdb.errors import CorruptionError, NotADatabaseError, VersionError
from cowdb.lockfile import MAGIC as LOCK_FILE
from cowdb.page import Page

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cowdb.meta import Meta
    from cowdb.storage import Storage

__all__ = ["Believed", "believe", "reassert", "refuse_stranger", "take_over", "young_runs"]

_HEADER: Final = fmt.PAGE_HEADER.struct
_PIECE: Final = 1 << 20
_SECTOR: Final = 512
"""Bytes that a disk writes as a whole or not at all; the checksum of a page lies in its first ones."""


@dataclasses.dataclass(frozen=True, slots=True)
class Believed:
    """The state that a file holds: its meta, the slot it lies in, and what is in the other slot."""

    meta: Meta
    slot: int
    other: Meta | None  # None: torn, or never written
    rejected: bool  # the other slot decodes, but its tree does not
    torn: frozenset[int]  # slots that hold no meta


def believe(storage: Storage) -> Believed:
    """The newest state of the file that holds; reads only.

    Raises `NotADatabaseError`, `VersionError`, `CorruptionError`.
    O(pages born after the meta's `durable`).
    """
    slots = _read_slots(storage)
    order = [slot for slot in (0, 1) if slots[slot] is not None]
    order.sort(key=lambda slot: _age(slots[slot]), reverse=True)
    damage: CorruptionError | None = None
    for slot in order:
        meta = slots[slot]
        assert meta is not None
        try:
            for _ in young_runs(storage, meta):
                pass
        except CorruptionError as error:
            damage = damage or error
            continue
        return Believed(meta, slot, slots[1 - slot], rejected=damage is not None, torn=_torn(slots))
    assert damage is not None
    raise CorruptionError(damage.page_number, f"no meta page leads to a whole tree; the newest one: {damage.reason}")


def _torn(slots: list[Meta | None]) -> frozenset[int]:
    return frozenset(slot for slot, meta in enumerate(slots) if meta is None)


def _age(meta: Meta | None) -> tuple[int, int]:
    assert meta is not None
    return meta.transaction, meta.durable


def _read_slots(storage: Storage) -> list[Meta | None]:
    """The metas of both slots; None where a slot is torn."""
    refuse_stranger(storage)
    reasons: list[str] = []
    first = _read_slot(storage, 0, 0, reasons)
    # The second page follows the first. If that one is torn, the smallest size that fits is the right one: up to
    # there is only the first meta page, while further on a value may hold what looks like a meta page.
    second = None
    for offset in (first.page_size,) if first is not None else fmt.PAGE_SIZES:
        second = _read_slot(storage, 1, offset, reasons)
        if second is not None:
            break
    found = [first, second]
    if first is not None and second is not None and not _same_database(first, second):
        found[0 if _age(first) < _age(second) else 1] = None
    if first is None and second is None:
        raise CorruptionError(-1, f"both meta pages are destroyed ({reasons[0]})")
    return found


def refuse_stranger(storage: Storage) -> None:
    """`NotADatabaseError` if neither meta page begins like one. O(1)."""
    path = storage.path
    at = fmt.META.offset("magic")
    head = storage.read(0, at + len(fmt.MAGIC))
    if head.startswith(LOCK_FILE.to_bytes(8, "little")):  # it has copies of meta pages
        raise NotADatabaseError(path, "it is the lock file of one; name the database itself")
    if head[at:] == fmt.MAGIC:
        return
    if any(storage.read(offset + at, len(fmt.MAGIC)) == fmt.MAGIC for offset in fmt.PAGE_SIZES):
        return
    size = storage.size()
    if not size:
        raise NotADatabaseError(path, "it is empty")
    short = f" ({size} bytes)" if size < fmt.PAGE_SIZES[0] else ""
    raise NotADatabaseError(path, f"it does not begin like one{short}")


def _read_slot(storage: Storage, slot: int, offset: int, reasons: list[str]) -> Meta | None:
    """The meta page at `offset`; None, and one reason more, if it is torn.

    One that is whole, but of a format that this code does not know, ends it all: `VersionError`.  The older state
    in the other slot must not be believed in its place, for the first writer would overwrite the newer one.
    """
    try:
        meta = meta_page.decode(storage.read(offset, fmt.PAGE_SIZES[-1]), slot)
    except meta_page.UnknownFormat as error:
        raise VersionError(storage.path, str(error)) from None
    except meta_page.BadMeta as error:
        reasons.append(f"meta page {slot}: {error}")
        return None
    if slot and meta.page_size != offset:
        reasons.append(f"meta page {slot}: it names a page size of {meta.page_size}, but lies at {offset}")
        return None
    return meta


def _same_database(one: Meta, other: Meta) -> bool:
    return one.database_id == other.database_id and one.page_size == other.page_size


# ---------------------------------------------------------------- the walk


def young_runs(storage: Storage, meta: Meta) -> Iterator[tuple[int, int]]:
    """Every run (page number, pages) that is reachable from `meta` and was born after its `durable`.

    Each is verified on the way; raises `CorruptionError` at the first that does
    not hold (I3, I4).
    """
    seen: set[int] = set()
    named = meta.catalog.root.birth > meta.durable
    for tree, is_catalog in ((meta.main, False), (meta.free, False), (meta.catalog, named)):
        yield from _young_tree(storage, meta, tree, meta.transaction, seen, is_catalog=is_catalog)


def _young_tree(
    storage: Storage, meta: Meta, tree: fmt.Descriptor, newest: int, seen: set[int], *, is_catalog: bool
) -> Iterator[tuple[int, int]]:
    durable = meta.durable
    size = meta.page_size
    if tree.root.number == 0 or tree.root.birth <= durable:
        return
    stack = [(tree.root, tree.depth - 1, newest)]
    while stack:
        reference, level, limit = stack.pop()
        number = reference.number
        if number in seen:
            raise CorruptionError(number, "two references lead to it")
        seen.add(number)
        if reference.birth > limit:
            raise CorruptionError(number, f"born in {reference.birth}, after what refers to it ({limit})")
        if not fmt.FIRST_DATA_PAGE <= number < meta.page_count:
            raise CorruptionError(number, f"a reference leads outside the {meta.page_count} pages")
        raw = storage.read(number * size, size)
        page = _verified(raw, reference, level, size)
        yield number, 1
        # The page itself raises where its cells lead outside of it.
        if level:
            for index in range(page.cells):
                child = fmt.unpack_reference(page.reference(index).to_bytes(fmt.REFERENCE_SIZE, "little"))
                if child.birth > durable:
                    stack.append((child, level - 1, reference.birth))
            continue
        for _, packed in page.overflow_entries():
            value = fmt.unpack_reference(packed)
            if value.birth > durable:
                yield _verified_value(storage, meta, value, seen)
        named = [page.payload(index)[1] for index in range(page.cells)] if is_catalog else []
        for descriptor in named:
            yield from _young_named(storage, meta, number, descriptor, reference.birth, seen)


def _young_named(
    storage: Storage, meta: Meta, number: int, raw: bytes, birth: int, seen: set[int]
) -> Iterator[tuple[int, int]]:
    """The young runs of the named tree whose descriptor stands in catalog leaf `number`."""
    if len(raw) != fmt.DESCRIPTOR_SIZE:
        raise CorruptionError(number, "an entry of the catalog is no tree descriptor")
    tree = fmt.unpack_descriptor(raw)
    try:
        meta_page.check_descriptor(tree, "named", meta.transaction, meta.page_count)
    except meta_page.BadMeta as error:
        raise CorruptionError(number, str(error)) from None
    yield from _young_tree(storage, meta, tree, birth, seen, is_catalog=False)


def _verified(raw: bytes, reference: fmt.Reference, level: int, size: int) -> Page:
    """The page in `raw` if it is the one that `reference` means."""
    number = reference.number
    if len(raw) < size:
        raise CorruptionError(number, "the file ends before it")
    checksum, kind, own_level, cells, own_number, birth, prefix, heap, _, _ = _HEADER.unpack_from(raw)
    actual = crc32c(memoryview(raw)[fmt.CHECKSUM_SIZE :])
    if (own_number, birth, checksum, actual) != (number, reference.birth, reference.checksum, reference.checksum):
        raise CorruptionError(number, "it is not the page that the reference to it names")
    if kind != (fmt.BRANCH_KIND if level else fmt.LEAF_KIND) or own_level != level or level < 0:
        raise CorruptionError(number, f"kind {kind} level {own_level} where level {level} belongs")
    if not cells or not fmt.HEADER_SIZE + (prefix + 7 & -8) + cells * fmt.SLOT_SIZE <= heap <= size:
        raise CorruptionError(number, "its header does not fit together")
    return Page(raw, memoryview(raw).cast("Q"), 0)


def _verified_value(storage: Storage, meta: Meta, reference: fmt.Reference, seen: set[int]) -> tuple[int, int]:
    """The overflow run behind `reference`, read piece by piece."""
    number, birth, length, wanted = reference
    size = meta.page_size
    pages = fmt.overflow_pages(length, size)
    if not (fmt.FIRST_DATA_PAGE <= number < meta.page_count and pages <= meta.page_count - number):
        raise CorruptionError(number, f"an overflow run of {pages} pages leads outside the file")
    offset = number * size
    header = storage.read(offset, fmt.HEADER_SIZE)
    end = offset + pages * size
    if len(header) < fmt.HEADER_SIZE or storage.size() < end:
        raise CorruptionError(number, "the file ends before the end of its overflow run")
    run = range(number, number + pages)
    if not seen.isdisjoint(run):  # else a forged file could have the same gigabyte read for each of its entries
        raise CorruptionError(number, "two references lead to it")
    seen.update(run)
    stored, kind, _, _, own_number, own_birth, *_ = _HEADER.unpack(header)
    checksum = crc32c(header[fmt.CHECKSUM_SIZE :])
    offset += fmt.HEADER_SIZE
    while offset < end:
        piece = storage.read(offset, min(_PIECE, end - offset))
        if not piece:
            raise CorruptionError(number, "the file ends before the end of its overflow run")
        checksum = crc32c(piece, checksum)
        offset += len(piece)
    if (kind, own_number, own_birth, stored, checksum) != (fmt.OVERFLOW_KIND, number, birth, wanted, wanted):
        raise CorruptionError(number, "it is not the overflow run that the reference to it names")
    return number, pages


# ---------------------------------------------------------------- making it certain


def take_over(storage: Storage, published: Meta, durable: tuple[int, int] | None) -> Believed:
    """The state to go on from after a writer that did not end cleanly, or before the first write of all (P3).

    The newest that holds of both slots and the published meta; so it never goes
    back behind what readers have seen.  `durable` is D where it is known.
    O(pages born after its `durable`), reads only.
    """
    slots = _read_slots(storage)
    candidates = [(meta, slot) for slot, meta in enumerate(slots) if meta is not None]
    candidates.sort(key=lambda pair: (*_age(pair[0]), -pair[1]), reverse=True)
    if durable is not None:
        # The published meta may be in no slot any more: its place is the one that is not D's.
        behind = sum(_age(meta) >= _age(published) for meta, _ in candidates)
        candidates.insert(behind, (published, 1 - durable[1]))
    damage: CorruptionError | None = None
    for meta, slot in candidates:
        try:
            for _ in young_runs(storage, meta):
                pass
        except CorruptionError as error:
            damage = damage or error
            if meta.transaction <= published.transaction:
                break
            continue
        return Believed(meta, slot, slots[1 - slot], rejected=damage is not None, torn=_torn(slots))
    assert damage is not None
    raise CorruptionError(damage.page_number, f"the published state is not whole any more: {damage.reason}")


def reassert(storage: Storage, state: Believed, durable: tuple[int, int] | None = None) -> int:
    """Write the believed state again and flush it (P3); how many flushes it took.

    Idempotent; a crash in the middle changes nothing.

    Where D is known (`durable`), its slot and its pages are left alone.  Where
    it is not, nobody in this session has seen to the name of the file either: who
    made it may have died before he could, and what is committed under a name that
    a power cut takes back is lost.
    O(pages born after its `durable`).  Raises `OSError`.
    """
    if durable is None:
        storage.flush_name()
    meta = state.meta
    size = meta.page_size
    other = state.other
    again = durable is None or meta.transaction != durable[0]
    # Where both slots hold this very state, as in a new file, one of them stays as it is: a device that spoils the
    # sectors that it is rewriting must not spoil both.
    spoilt = other is None or state.rejected or _age(other) > _age(meta)
    copied = (spoilt or (_age(other) == _age(meta) and other != meta)) and (durable is None or durable[1] == state.slot)
    wanted = ({state.slot} if again else set()) | ({1 - state.slot} if copied else set())
    flushes = 1 + _blank(storage, wanted & state.torn, size)
    if again:
        since = meta.durable if durable is None else max(meta.durable, durable[0])
        for number, pages in young_runs(storage, meta._replace(durable=since)):
            offset, end = number * size, (number + pages) * size
            while offset < end:
                piece = storage.read(offset, min(_PIECE, end - offset))
                storage.write(offset, [piece])
                offset += len(piece)
        storage.write(state.slot * size, [meta_page.encode(meta, state.slot)])
    if copied:
        storage.write((1 - state.slot) * size, [meta_page.encode(meta, 1 - state.slot)])
    storage.flush()
    return flushes


def _blank(storage: Storage, torn: set[int], size: int) -> int:
    """Zero the beginning of these meta pages, a sector, and flush that; the number of flushes."""
    for slot in torn:
        storage.write(slot * size, [bytes(_SECTOR)])
    if torn:
        storage.flush()
    return bool(torn)
