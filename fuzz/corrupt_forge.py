"""Damage that knows the format: fields, slots, cells, references, descriptors, runs.

A forger knows what a page means, so he changes what hurts: a count, a level, an
offset, a length, a birth, where a reference leads.  `forge` gives edits; whoever
applies them puts the checksums right again up to the meta pages, so that the
damage gets past them and meets the code behind.

    page header   kind, level, cells, number, birth, prefix, heap, dead
    slot          head, offset, length; two of them exchanged; one doubled
    cell          kind and length, key, value; an overflow reference in place of a value
    reference     number, birth, count; that of another page, whole; its own page (a cycle)
    meta page     every field, descriptors, the carry list
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

from cowdb import format as fmt
from cowdb.checksum import crc32c
from fuzz.corrupt_victim import cell_bodies, cells_of

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

    from fuzz.corrupt_case import Edit
    from fuzz.corrupt_victim import Victim

__all__ = ["Forger", "cycle"]

_HEADER_FIELDS: Final = [field for field in fmt.PAGE_HEADER.fields if field.name != "checksum"]
_META_FIELDS: Final = [field for field in fmt.META.fields if field.name != "page header"]
_DESCRIPTOR_FIELDS: Final = [field for field in fmt.TREE_DESCRIPTOR.fields if field.name != "root"]
_REFERENCE_FIELDS: Final = list(fmt.REFERENCE.fields)
_RUN_FIELDS: Final = list(fmt.CARRIED_RUN.fields)
_TREES: Final = ("main tree", "catalog tree", "free tree")
_OVERFLOW_INFO: Final = (fmt.OVERFLOW << fmt.LENGTH_BITS | fmt.REFERENCE_SIZE).to_bytes(2, "little")


def odd_number(rng: random.Random, old: int, width: int) -> int:
    """A number of `width` bytes that is likely to hurt where `old` stands."""
    top = (1 << 8 * width) - 1
    pick = rng.randrange(12)
    if pick < 5:
        return (0, 1, top, top - 1, top >> 1)[pick]
    if pick < 8:
        return old + (1, -1, 2)[pick - 5] & top
    if pick == 8:
        return old ^ 1 << rng.randrange(8 * width)
    if pick == 9:
        return rng.randrange(200) & top
    if pick == 10:
        return old * 2 & top
    return rng.getrandbits(8 * width)


class Forger:
    """Makes forged pages of one victim."""

    def __init__(self, victim: Victim) -> None:
        self._victim = victim
        self._size = victim.page_size
        anatomy = victim.anatomy
        self._links = [(page, offset) for links in anatomy.links.values() for page, offset in links]
        self._values = [
            (page, offset) for number in anatomy.spans for page, offset in anatomy.links[number]
        ]  # references to overflow runs
        weights = {"meta": 6, "leaf of the catalog tree": 5, "leaf of the free tree": 5, "free page": 0}
        self._pages: list[int] = []
        for page, kind in anatomy.kinds.items():
            if anatomy.owner.get(page, page) == page:
                self._pages += [page] * weights.get(kind, 4 if kind.startswith("branch") else 1)
        self._bodies: dict[int, list[int]] = {}
        self._cells: dict[int, list[tuple[int, bytes]]] = {}

    def forge(self, rng: random.Random) -> tuple[Edit, ...]:
        """One to three changes, mostly of one page."""
        page = rng.choice(self._pages)
        edits: list[Edit] = []
        for _ in range(rng.choice((1, 1, 1, 1, 2, 3))):
            edits += self._change(rng, page)
            if not rng.randrange(4):
                page = rng.choice(self._pages)
        return tuple(edits)

    # ------------------------------------------------------------ one page

    def _change(self, rng: random.Random, page: int) -> list[Edit]:
        kind = self._victim.anatomy.kinds[page]
        if kind == "meta":
            return self._meta(rng)
        if kind == "overflow run":
            return self._header(rng, page) if rng.randrange(3) else self._noise(rng, page)
        ways: list[Callable[[random.Random, int], list[Edit]]] = [
            self._header, self._slot, self._slots, self._noise, self._birth, self._splice,
        ]  # fmt: skip
        if kind.startswith(("branch", "bomb")):
            ways += [self._reference, self._reference, self._relink, self._relink]
        else:
            ways += [self._cell, self._cell, self._key]
            if kind == "leaf of the catalog tree":
                ways += [self._descriptor] * 5
            elif kind == "leaf of the free tree":
                ways += [self._record] * 5
            else:
                ways += [self._overflow, self._overflow]
        return rng.choice(ways)(rng, page)

    def _old(self, at: int, width: int) -> int:
        return int.from_bytes(self._victim.raw[at : at + width], "little")

    def _number(self, rng: random.Random, at: int, width: int) -> Edit:
        return at, odd_number(rng, self._old(at, width), width).to_bytes(width, "little")

    def _page(self, page: int) -> bytes:
        return self._victim.raw[page * self._size : (page + 1) * self._size]

    def _places(self, page: int) -> tuple[list[tuple[int, bytes]], list[int]]:
        """Cells and what follows their keys, of a sound page."""
        if page not in self._bodies:
            raw = self._page(page)
            self._bodies[page] = list(cell_bodies(raw))
            self._cells[page] = list(cells_of(raw))
        return self._cells[page], self._bodies[page]

    def _header(self, rng: random.Random, page: int) -> list[Edit]:
        field = rng.choice(_HEADER_FIELDS)
        return [self._number(rng, page * self._size + field.offset, field.size)]

    def _birth(self, rng: random.Random, page: int) -> list[Edit]:
        """Another birth, the same in the page and in every reference to it."""
        at = page * self._size + fmt.PAGE_HEADER.offset("birth")
        birth = odd_number(rng, self._old(at, 8), 6)
        edits: list[Edit] = [(at, birth.to_bytes(8, "little"))]
        field = fmt.REFERENCE.offset("birth")
        for parent, offset in self._victim.anatomy.links.get(page, ()):
            edits.append((parent * self._size + offset + field, birth.to_bytes(6, "little")))
        return edits

    def _first_slot(self, page: int) -> int:
        at = page * self._size
        prefix = self._old(at + fmt.PAGE_HEADER.offset("prefix length"), 2)
        return at + fmt.HEADER_SIZE + (prefix + 7 & -8)

    def _slot(self, rng: random.Random, page: int) -> list[Edit]:
        cells, _ = self._places(page)
        at = self._first_slot(page) + 8 * rng.randrange(len(cells))
        field, width = rng.choice(((0, 2), (2, 2), (4, 4)))
        if field == 2 and rng.randrange(2):  # an offset near one of the page's edges
            near = rng.choice((self._size, self._size - 1, self._size - 22, self._size - 2, fmt.HEADER_SIZE, 0))
            return [(at + 2, near.to_bytes(2, "little"))]
        return [self._number(rng, at + field, width)]

    def _slots(self, rng: random.Random, page: int) -> list[Edit]:
        """Two slots exchanged, or one in place of another, or one in place of all."""
        cells, _ = self._places(page)
        first = self._first_slot(page)
        one, two = first + 8 * rng.randrange(len(cells)), first + 8 * rng.randrange(len(cells))
        raw = self._victim.raw
        if not rng.randrange(4):
            return [(first, raw[one : one + 8] * len(cells))]
        edits: list[Edit] = [(one, raw[two : two + 8])]
        if rng.randrange(2):
            edits.append((two, raw[one : one + 8]))
        return edits

    def _noise(self, rng: random.Random, page: int) -> list[Edit]:
        length = rng.choice((1, 1, 2, 4, 8, 64, 512))
        span = self._victim.anatomy.spans.get(page, 1) * self._size
        at = page * self._size + rng.randrange(4, span - length)
        return [(at, rng.randbytes(length))]

    def _splice(self, rng: random.Random, page: int) -> list[Edit]:
        """Bytes of the page somewhere else in the page."""
        length = rng.choice((2, 8, 22, 64, 300))
        base = page * self._size
        source, target = (base + rng.randrange(4, self._size - length) for _ in range(2))
        return [(target, self._victim.raw[source : source + length])]

    def _cell(self, rng: random.Random, page: int) -> list[Edit]:
        cells, _ = self._places(page)
        return [self._number(rng, page * self._size + rng.choice(cells)[0], 2)]

    def _key(self, rng: random.Random, page: int) -> list[Edit]:
        cells, bodies = self._places(page)
        index = rng.randrange(len(cells))
        start, stop = cells[index][0] + 2, bodies[index]
        if start == stop:
            return self._cell(rng, page)
        return [(page * self._size + rng.randrange(start, stop), rng.randbytes(1))]

    def _overflow(self, rng: random.Random, page: int) -> list[Edit]:
        """An overflow reference in place of a value: one that there is, or one that is made up."""
        cells, bodies = self._places(page)
        index = rng.randrange(len(cells))
        base = page * self._size
        if self._values and rng.randrange(3):
            parent, offset = rng.choice(self._values)
            raw = self._victim.raw[parent * self._size + offset :][: fmt.REFERENCE_SIZE]
        else:
            number, birth = rng.randrange(self._victim.pages), rng.randrange(12)
            raw = fmt.Reference(number, birth, odd_number(rng, 5000, 6), rng.getrandbits(32)).pack()
        edits: list[Edit] = [(base + cells[index][0], _OVERFLOW_INFO), (base + bodies[index], raw)]
        if not rng.randrange(4):
            field = rng.choice(_REFERENCE_FIELDS)
            edits.append(self._number(rng, base + bodies[index] + field.offset, field.size))
        return edits

    def _reference(self, rng: random.Random, page: int) -> list[Edit]:
        _, bodies = self._places(page)
        field = rng.choice(_REFERENCE_FIELDS)
        return [self._number(rng, page * self._size + rng.choice(bodies) + field.offset, field.size)]

    def _relink(self, rng: random.Random, page: int) -> list[Edit]:
        """A reference to another page, with the right birth and checksum; sometimes the same one in every cell."""
        _, bodies = self._places(page)
        parent, offset = rng.choice(self._links)
        if rng.randrange(2):
            parent, offset = page, rng.choice(bodies)
        raw = self._victim.raw[parent * self._size + offset :][: fmt.REFERENCE_SIZE]
        chosen = bodies if not rng.randrange(4) else [rng.choice(bodies)]
        if not rng.randrange(8):
            return list(cycle(self._victim, page, rng.choice(bodies)))
        return [(page * self._size + body, raw) for body in chosen]

    def _descriptor(self, rng: random.Random, page: int) -> list[Edit]:
        _, bodies = self._places(page)
        return self._descriptor_at(rng, page * self._size + rng.choice(bodies))

    def _descriptor_at(self, rng: random.Random, at: int) -> list[Edit]:
        pick = rng.randrange(4)
        if not pick:
            parent, offset = rng.choice(self._links)
            return [(at, self._victim.raw[parent * self._size + offset :][: fmt.REFERENCE_SIZE])]
        if pick == 1:
            field = rng.choice(_REFERENCE_FIELDS)
            return [self._number(rng, at + field.offset, field.size)]
        field = rng.choice(_DESCRIPTOR_FIELDS)
        return [self._number(rng, at + field.offset, min(field.size, 8))]

    def _record(self, rng: random.Random, page: int) -> list[Edit]:
        """A run in a record of the free tree."""
        cells, bodies = self._places(page)
        index = rng.randrange(len(cells))
        length = self._old(page * self._size + cells[index][0], 2) & fmt.LENGTH_MASK
        runs = max(1, length // fmt.FREE_RUN.size)
        return self._run(rng, page * self._size + bodies[index] + fmt.FREE_RUN.size * rng.randrange(runs))

    def _run(self, rng: random.Random, at: int) -> list[Edit]:
        field = rng.choice(_RUN_FIELDS)
        if field.name == "start" and rng.randrange(2):  # a page that is in use
            return [(at, rng.randrange(self._victim.pages).to_bytes(8, "little"))]
        return [self._number(rng, at + field.offset, field.size)]

    # ------------------------------------------------------------ meta pages

    def _meta(self, rng: random.Random) -> list[Edit]:
        """The same change in both slots, or in one."""
        pick = rng.randrange(6)
        slots = [0, 1] if rng.randrange(4) else [rng.randrange(2)]
        edits: list[Edit] = []
        if pick < 2:
            field = rng.choice(_META_FIELDS)
            edits = [self._number(rng, field.offset, min(field.size, 8))]
            if field.name == "transaction":  # the header says it too
                edits.append((fmt.PAGE_HEADER.offset("birth"), edits[0][1]))
        elif pick < 4:
            edits = self._descriptor_at(rng, fmt.META.offset(rng.choice(_TREES)))
        else:
            count = self._old(fmt.META.offset("carried runs"), 8)
            run = rng.randrange(count + 1)
            edits = self._run(rng, fmt.META.size + run * fmt.CARRIED_RUN.size)
            if run == count:
                edits.append((fmt.META.offset("carried runs"), (count + 1).to_bytes(8, "little")))
        return [(slot * self._size + at, raw) for slot in slots for at, raw in edits]


def cycle(victim: Victim, page: int, body: int) -> tuple[Edit, ...]:
    """Let the reference at `body` of a branch lead to the branch itself, with the checksum that it will have.

    A page that holds its own checksum: CRC is linear, so four bytes of the gap
    are found by elimination that make it come true.  No edits if there is no gap.
    """
    size = victim.page_size
    raw = bytearray(victim.raw[page * size : (page + 1) * size])
    header = fmt.PAGE_HEADER.struct.unpack_from(raw)
    gap, heap, birth = fmt.HEADER_SIZE + (header[6] + 7 & -8) + 8 * header[3], header[7], header[5]
    if heap - gap < 4:
        return ()
    count = int.from_bytes(raw[body + 12 : body + 18], "little")
    wanted = 0xC0FFEE
    reference = fmt.Reference(page, birth, count, wanted).pack()
    raw[body : body + fmt.REFERENCE_SIZE] = reference
    raw[gap : gap + 4] = bytes(4)
    base = crc32c(bytes(raw[4:]))
    rows: list[tuple[int, int]] = []  # (what a bit of the gap changes, the bits)
    for bit in range(32):
        raw[gap : gap + 4] = (1 << bit).to_bytes(4, "little")
        rows.append((crc32c(bytes(raw[4:])) ^ base, 1 << bit))
    left, answer = wanted ^ base, 0
    for bit in range(31, -1, -1):
        pivot = next((row for row in rows if row[0] >> bit & 1), None)
        if pivot is None:
            continue
        rows = [(a ^ pivot[0], b ^ pivot[1]) if a >> bit & 1 else (a, b) for a, b in rows if (a, b) != pivot]
        if left >> bit & 1:
            left ^= pivot[0]
            answer ^= pivot[1]
    assert not left, "32 bits of a gap reach every checksum"
    assert struct.calcsize("I") == 4
    return ((page * size + body, reference), (page * size + gap, answer.to_bytes(4, "little")))
