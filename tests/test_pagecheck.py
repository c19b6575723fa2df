"""A page, judged by whole columns, against a judge that looks at one cell after the other.

The judge of the checker works on columns, which is quick and easy to get wrong by a bit.  The second one here is slow
and plain; both are shown sound pages, damaged ones, and pages of nonsense with a good outline.  So is the third, which
is the quickest and only ever says that a leaf is sound.
"""

from __future__ import annotations

import random
import struct
from itertools import pairwise

import pytest
from handmade import common

from cowdb import format as fmt
from cowdb.pagecheck import Bounds, check_heap, sound_alike, take_apart

SIZE = 4096
ALL = Bounds(0, b"", None)
LONGEST = fmt.max_key_size(SIZE)


def plain_judge(raw, level):
    """The rules that `take_apart` and `check_heap` found broken, and the suffixes; in loops, without bounds of keys."""
    _, _, _, cells, _, _, prefix, heap, dead, reserved = fmt.PAGE_HEADER.struct.unpack_from(raw)
    slots = 32 + (prefix + 7) // 8 * 8
    stop = slots + 8 * cells
    if not stop <= heap <= SIZE or cells < (2 if level else 1) or prefix > LONGEST:
        return {"outline"}, None
    broken = set()
    if reserved or any(raw[32 + prefix : slots]) or any(raw[stop:heap]):
        broken.add("unused")
    lead = 0 if level else 2
    offsets, suffixes, stops = [], [], []
    for at in range(slots, stop, 8):
        slot = int.from_bytes(raw[at : at + 8], "little")
        head, offset, length = slot >> 32, slot >> 16 & 0xFFFF, slot & 0xFFFF
        end = offset + lead + length
        if offset < heap or end > SIZE:
            return broken & {"unused"} | {"slot"}, None
        suffix = raw[offset + lead : end]
        if head.to_bytes(4, "big") != suffix[:4].ljust(4, b"\0"):
            broken.add("head")
        if prefix + length > LONGEST:
            broken.add("long")
        payload = 22 if level else int.from_bytes(raw[offset : offset + 2], "little") & 0x3FFF
        offsets.append(offset)
        suffixes.append(suffix)
        stops.append(end + payload)
    if level and suffixes[0]:
        broken.add("first")
    if any(one >= two for one, two in pairwise(suffixes[1:] if level else suffixes)):
        broken.add("order")
    covered = [0] * (SIZE + 1)
    for start, end in zip(offsets, stops, strict=True):
        if end > SIZE:
            return broken | {"overlap"}, suffixes
        for at in range(start, end):
            covered[at] += 1
    if max(covered) > 1:
        return broken | {"overlap"}, suffixes
    holes = [at for at in range(heap, SIZE) if not covered[at]]
    if len(holes) != dead:
        broken.add("dead")
    if any(raw[at] for at in holes):
        broken.add("holes")
    return broken, suffixes


WORDS = {
    "the page cannot have": "outline",
    "bytes of the page": "unused",
    "a slot leads outside": "slot",
    "the head in a slot": "head",
    "it has a key of more": "long",
    "the first cell of a branch": "first",
    "is not above the one": "order",
    "cells overlap": "overlap",
    "are dead, the page counts": "dead",
    "dead bytes of the heap are not": "holes",
}


def judge(raw, level):
    """The same by the module."""
    told = []
    page = take_apart(raw, Bounds(level, b"", None), lambda _, message: told.append(message))
    if page is not None:
        whole = check_heap(page, lambda _, message: told.append(message))
        assert whole == (max(page.stops) <= SIZE)
    broken = {
        next(name for words, name in WORDS.items() if words in message) for message in told if "low" not in message
    }
    return broken, None if page is None else page.suffixes


def keys_of(rng, kind):
    """Some keys in order, in one of the ways in which keys look alike or do not."""
    count = rng.randrange(2, 40)
    if kind == "numbers":
        first = rng.randrange(1 << 40)
        return [(first + step).to_bytes(8, "big") for step in range(count)]
    if kind == "hashes":
        return sorted({rng.randbytes(16) for _ in range(count)})
    if kind == "long":
        return [b"the same for a long while, and then %04d" % step for step in range(count)]
    if kind == "words":
        return sorted({rng.randbytes(rng.randrange(9)) for _ in range(count)} | {b"", b"a"})
    return sorted({bytes(rng.choices(b"\0\1a", k=rng.randrange(1, 7))) for _ in range(count)} | {b"\0", b"a"})


def page_of(rng, kind, level, value=None):
    """A sound page with its cells in some order in the heap, perhaps with dead bytes; and where its slots begin.

    With the length of a value given, all cells have such a one, and there are no dead bytes.
    """
    keys = keys_of(rng, kind)
    prefix = common(keys[1] if level else keys[0], keys[-1]) if rng.randrange(2) else b""
    suffixes = [key[len(prefix) :] for key in keys]
    if level:
        suffixes[0] = b""
    slots = 32 + (len(prefix) + 7) // 8 * 8
    page = bytearray(SIZE)
    places = list(range(len(keys)))
    order = rng.randrange(3)
    if order == 1:
        places.reverse()
    elif order == 2:
        rng.shuffle(places)
    heap, dead = SIZE, 0
    for place in places:
        suffix, payload = (
            suffixes[place],
            rng.randbytes(22 if level else rng.choice((3, 3, 30)) if value is None else value),
        )
        cell = suffix + payload if level else len(payload).to_bytes(2, "little") + suffix + payload
        heap -= len(cell)
        page[heap : heap + len(cell)] = cell
        head = suffix[:4].ljust(4, b"\0")
        struct.pack_into("<HH4s", page, slots + 8 * place, len(suffix), heap, head[::-1])
        if value is None and rng.randrange(40) == 0:
            heap, dead = heap - 5, dead + 5
    page[32 : 32 + len(prefix)] = prefix
    struct.pack_into("<BBH", page, 4, fmt.BRANCH_KIND if level else fmt.LEAF_KIND, level, len(keys))
    struct.pack_into("<HHH", page, 24, len(prefix), heap, dead)
    return page, slots


def damage(rng, page, slots):
    """Change one thing: in the header, in a slot, in the heap, or two slots with each other."""
    cells, heap = page[6], min(int.from_bytes(page[26:28], "little"), SIZE - 1)
    place, other = (slots + 8 * rng.randrange(max(cells, 1)) for _ in range(2))
    what = rng.randrange(6)
    if what == 0:
        page[place : place + 8], page[other : other + 8] = page[other : other + 8], page[place : place + 8]
    elif what == 1:  # a length or an offset, by a little or to anything
        at = place + 2 * rng.randrange(2)
        value = rng.choice(
            (int.from_bytes(page[at : at + 2], "little") + rng.choice((-1, 1, 8)), rng.randrange(1 << 16))
        )
        page[at : at + 2] = (value & 0xFFFF).to_bytes(2, "little")
    elif what == 2:
        page[place + rng.randrange(8)] = rng.randrange(256)
    elif what == 3:
        page[rng.randrange(heap, SIZE)] = rng.randrange(256)
    elif what == 4:
        page[rng.choice((6, 24, 25, 26, 27, 28, 29, 30))] = rng.randrange(256)
    else:
        page[rng.randrange(32, SIZE)] = rng.randrange(256)


@pytest.mark.parametrize("level", [0, 1])
@pytest.mark.parametrize("kind", ["numbers", "hashes", "long", "words", "zeros"])
def test_columns_and_loops_find_the_same(kind, level):
    rng = random.Random(f"{kind}{level}")
    seen = set()
    for _ in range(300):
        page, slots = page_of(rng, kind, level)
        assert judge(bytes(page), level) == plain_judge(page, level), "a sound page"
        assert judge(bytes(page), level)[0] == set()
        for _ in range(rng.randrange(1, 3)):
            damage(rng, page, slots)
        found = judge(bytes(page), level)
        assert found == plain_judge(page, level)
        assert found[0] == set() or level or not sound_alike(page, ALL, page[6])
        seen |= found[0]
    assert seen >= {"outline", "slot", "head", "order", "overlap", "dead"}, "every rule was tried"


def test_a_slot_that_leads_almost_out_of_the_page_is_refused():
    # The first bytes of the cells are looked at all together; of this one fewer than eight are left.
    rng = random.Random(1)
    page, slots = page_of(rng, "hashes", 0)
    for offset in range(SIZE - 20, SIZE + 40):
        struct.pack_into("<H", page, slots + 2, offset)
        assert judge(bytes(page), 0) == plain_judge(page, 0)


def test_keys_that_part_late_are_looked_at_to_their_ends():
    # Equal heads, equal first bytes: only the last byte of the keys, behind what is looked at first, is in disorder.
    rng = random.Random(2)
    page, slots = page_of(rng, "long", 0)
    page[slots : slots + 8], page[slots + 8 : slots + 16] = page[slots + 8 : slots + 16], page[slots : slots + 8]
    assert "order" in judge(bytes(page), 0)[0]


@pytest.mark.parametrize("value", [0, 3, 40])
@pytest.mark.parametrize("kind", ["numbers", "hashes", "long"])
def test_a_leaf_of_cells_of_one_shape_is_seen_to_be_sound(kind, value):
    rng = random.Random(f"{kind}{value}")
    seen = set()
    for _ in range(300):
        page, slots = page_of(rng, kind, 0, value)
        assert sound_alike(bytes(page), ALL, page[6])
        assert not any(sound_alike(bytes(page), ALL, page[6] + more) for more in (-1, 1, -page[6]))
        damage(rng, page, slots)
        if sound_alike(bytes(page), ALL, page[6]):
            assert plain_judge(page, 0)[0] == set()
        seen |= plain_judge(page, 0)[0]
    assert seen >= {"outline", "slot", "head"}


@pytest.mark.parametrize("flip", [1, 0x80])
def test_no_changed_byte_of_a_leaf_of_cells_of_one_shape_passes_for_sound(flip):
    rng = random.Random(flip)
    page, _ = page_of(rng, "hashes", 0, 3)
    passed = set()
    for at in range(6, SIZE):
        page[at] ^= flip
        if sound_alike(bytes(page), ALL, page[6]):
            assert plain_judge(page, 0)[0] == set(), at
            passed.add(at)
        page[at] ^= flip
    heap = int.from_bytes(page[26:28], "little")
    cell = (SIZE - heap) // page[6]
    assert passed >= {at for at in range(heap, SIZE) if (at - heap) % cell >= cell - 3}, "a value may be anything"
    assert all(at >= heap or at in range(8, 24) for at in passed), "only keys, values, birth and page number"


def test_a_leaf_is_not_of_one_shape_with_a_value_too_long_or_a_key_out_of_bounds():
    page = page_of(random.Random(3), "numbers", 0, 3)[0]
    whole = take_apart(bytes(page), ALL, print)
    first, last = (whole.prefix + suffix for suffix in (whole.suffixes[0], whole.suffixes[-1]))
    assert sound_alike(bytes(page), Bounds(0, first, last + b"\0"), page[6])
    assert not sound_alike(bytes(page), Bounds(0, first + b"\0", None), page[6])
    assert not sound_alike(bytes(page), Bounds(0, b"", last), page[6])

    for longer in range(2):
        value = fmt.max_inline_value(SIZE) + longer
        page = bytearray(SIZE)
        struct.pack_into("<BBH", page, 4, fmt.LEAF_KIND, 0, 1)
        struct.pack_into("<HHH", page, 24, 0, SIZE - 3 - value, 0)
        struct.pack_into("<HH4s", page, 32, 1, SIZE - 3 - value, b"\0\0\0k")
        struct.pack_into("<H1s", page, SIZE - 3 - value, value, b"k")
        assert sound_alike(bytes(page), ALL, 1) != bool(longer)
