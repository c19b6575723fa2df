"""A page is believed only if number, birth and checksum are those of the reference (I3), and nothing leads outside."""

from __future__ import annotations

import struct

import pytest

from cowdb import format as fmt
from cowdb import space as space_module
from cowdb.checksum import crc32c
from cowdb.errors import CorruptionError, ForkedError
from cowdb.kernel import FORM, Page, Space
from cowdb.space import FORKED

SIZE = 4096
PAGES = 6


def image(*, seal=True, **fields):
    """A file whose page 3 is a leaf, page 4 on an overflow run of two pages; with the packed reference to page 3."""
    header = {
        "checksum": 0, "kind": fmt.LEAF_KIND, "level": 0, "cells": 1, "number": 3, "birth": 9, "prefix": 0,
        "heap": SIZE - 3, "dead": 0, "reserved": 0,
    }  # fmt: skip
    header.update(fields)
    data = bytearray(PAGES * SIZE)
    fmt.PAGE_HEADER.struct.pack_into(data, 3 * SIZE, *header.values())
    checksum = crc32c(bytes(data[3 * SIZE + 4 : 4 * SIZE]))
    if seal:
        struct.pack_into("<I", data, 3 * SIZE, checksum)
    return bytes(data), int.from_bytes(fmt.Reference(3, 9, 1, checksum).pack(), "little")


def run_image(length=5000, kind=fmt.OVERFLOW_KIND, birth=9, number=4):
    """A file with an overflow run of two pages at page 4, and the packed reference to it."""
    data = bytearray(PAGES * SIZE)
    start = 4 * SIZE
    fmt.PAGE_HEADER.struct.pack_into(data, start, 0, kind, 0, 0, number, birth, 0, 0, 0, 0)
    data[start + 32 : start + 32 + length] = b"x" * length
    checksum = crc32c(bytes(data[start + 4 : start + fmt.overflow_pages(length, SIZE) * SIZE]))
    struct.pack_into("<I", data, start, checksum)
    return data, fmt.Reference(4, 9, length, checksum).pack()


def test_a_true_page_is_believed_and_remembered():
    data, bits = image()
    space = Space(data, SIZE)
    assert space.pages == PAGES
    assert not any(space.verified)
    space.meet(bits, 0)
    assert list(space.verified) == [0, 0, 0, 9, 0, 0]


def test_only_the_low_half_of_a_birth_is_remembered():
    data, bits = image(birth=(5 << 32) + 7)
    bits = bits & ~(fmt.MAX_U48 << 48) | (5 << 32) + 7 << 48
    space = Space(data, SIZE)
    space.meet(bits, 0)
    assert space.verified[3] == 7


@pytest.mark.parametrize("number", [0, 1, PAGES, fmt.MAX_U48])
def test_a_reference_outside_of_the_file(number):
    data, bits = image()
    with pytest.raises(CorruptionError, match="outside") as caught:
        Space(data, SIZE).meet(bits & ~fmt.MAX_U48 | number, 0)
    assert caught.value.page_number == number


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"number": 2}, "written to the wrong place"),
        ({"birth": 8}, "born in transaction 8, not 9"),
        ({"kind": fmt.BRANCH_KIND}, "where level 0 belongs"),
        ({"kind": fmt.META_KIND}, "where level 0 belongs"),
        ({"level": 1}, "where level 0 belongs"),
        ({"cells": 0}, "do not fit together"),
        ({"cells": 600}, "do not fit together"),
        ({"prefix": 4096}, "do not fit together"),
        ({"heap": SIZE + 1}, "do not fit together"),
        ({"heap": 39}, "do not fit together"),
        ({"prefix": 1, "heap": 47}, "do not fit together"),
        ({"dead": SIZE + 1}, "do not fit together"),
    ],
)
def test_a_header_that_makes_no_sense(fields, message):
    data, bits = image(**fields)
    space = Space(data, SIZE)
    with pytest.raises(CorruptionError, match=message) as caught:
        space.meet(bits, 0)
    assert caught.value.page_number == 3
    assert not any(space.verified), "what is not believed is not remembered"


def test_the_smallest_header_that_fits():
    for fields in ({"heap": 40}, {"heap": 48, "prefix": 1}, {"heap": 48, "prefix": 8}, {"heap": SIZE, "dead": SIZE}):
        data, bits = image(**fields)
        Space(data, SIZE).meet(bits, 0)


def test_a_branch_where_a_branch_belongs():
    data, bits = image(kind=fmt.BRANCH_KIND, level=3)
    Space(data, SIZE).meet(bits, 3)
    with pytest.raises(CorruptionError, match="where level 2 belongs"):
        Space(data, SIZE).meet(bits, 2)


@pytest.mark.parametrize("offset", [4, 5, 8, 31, 32, 2000, SIZE - 1])
def test_every_flipped_byte_shows_in_the_checksum(offset):
    data, bits = image()
    damaged = bytearray(data)
    damaged[3 * SIZE + offset] ^= 1
    with pytest.raises(CorruptionError, match="checksum"):
        Space(bytes(damaged), SIZE).meet(bits, 0)


def test_another_version_of_the_page():
    data, bits = image()
    with pytest.raises(CorruptionError, match="another version"):
        Space(data, SIZE).meet(bits ^ 1 << 144, 0)


def test_without_verifying_the_checksum_goes_unseen_but_the_header_does_not():
    data, bits = image(seal=False)
    Space(data, SIZE, verify=False).meet(bits, 0)
    with pytest.raises(CorruptionError, match="checksum"):
        Space(data, SIZE).meet(bits, 0)
    data, bits = image(cells=0)
    with pytest.raises(CorruptionError):
        Space(data, SIZE, verify=False).meet(bits, 0)


# ---------------------------------------------------------------- overflow


@pytest.mark.parametrize("length", [1, SIZE - 32, SIZE - 31, 5000, 2 * SIZE - 32])
def test_an_overflow_run(length):
    data, raw = run_image(length)
    space = Space(bytes(data), SIZE)
    assert space.overflow(raw) == (4 * SIZE + 32, length)
    assert space.verified[4] == 9
    data[4 * SIZE + 40] ^= 1
    met = Space(bytes(data), SIZE)
    met.verified[4] = 9
    assert met.overflow(raw) == (4 * SIZE + 32, length), "what was met is not verified again"
    with pytest.raises(CorruptionError, match="checksum"):
        Space(bytes(data), SIZE).overflow(raw)


@pytest.mark.parametrize("length", [2 * SIZE - 31, 1 << 40, fmt.MAX_U48])
def test_an_overflow_run_that_leads_outside(length):
    data, raw = run_image()
    reference = fmt.unpack_reference(raw)._replace(count=length)
    with pytest.raises(CorruptionError, match="outside"):
        Space(bytes(data), SIZE).overflow(reference.pack())


@pytest.mark.parametrize("number", [0, 1, PAGES, fmt.MAX_U48])
def test_an_overflow_run_that_begins_outside(number):
    data, raw = run_image()
    reference = fmt.unpack_reference(raw)._replace(number=number)
    with pytest.raises(CorruptionError, match="outside"):
        Space(bytes(data), SIZE).overflow(reference.pack())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": fmt.LEAF_KIND}, "overflow run belongs"),
        ({"birth": 8}, "born in"),
        ({"number": 5}, "wrong place"),
    ],
)
def test_an_overflow_header_that_makes_no_sense(fields, message):
    data, raw = run_image(**fields)
    with pytest.raises(CorruptionError, match=message):
        Space(bytes(data), SIZE).overflow(raw)


def test_an_overflow_run_without_verifying():
    data, raw = run_image()
    data[4 * SIZE + 40] ^= 1
    assert Space(bytes(data), SIZE, verify=False).overflow(raw) == (4 * SIZE + 32, 5000)


# ---------------------------------------------------------------- mappings


def test_a_larger_mapping_takes_over_what_was_met():
    data, bits = image()
    space = Space(data, SIZE)
    space.meet(bits, 0)
    larger = Space(data + bytes(3 * SIZE), SIZE, before=space)
    assert list(larger.verified) == [0, 0, 0, 9, 0, 0, 0, 0, 0]
    smaller = Space(data[: 4 * SIZE], SIZE, before=larger)
    assert list(smaller.verified) == [0, 0, 0, 9]


def test_pages_that_are_cut_off_are_met_anew():
    data, bits = image()
    space = Space(data, SIZE)
    space.meet(bits, 0)
    space.cut(PAGES)
    assert len(space.verified) == space.pages == PAGES
    space.cut(3)
    assert len(space.verified) == space.pages == 3
    with pytest.raises(CorruptionError, match="outside the file of 3 pages"):
        space.meet(bits, 0)


def test_a_page_of_our_own_is_met_already():
    data, _ = image()
    space = Space(data, SIZE)
    space.trust([3], (7 << 32) + 5)
    assert list(space.verified) == [0, 0, 0, 5, 0, 0]
    space.trust([PAGES], 5)
    assert len(space.verified) == PAGES, "one behind the mapping is met in the next mapping"


plain_only = pytest.mark.skipif(FORM == "compiled", reason="the compiled kernel has no need to unpack pages")


def branch_page(cells):
    entries = [(b"%03d" % at if at else b"", fmt.Reference(100 + at, 1, at, 0).pack(), None) for at in range(cells)]
    return Page.build_branch(entries, SIZE, 1)


@plain_only
def test_a_branch_that_is_visited_often_is_kept_unpacked():
    space = Space(image()[0], SIZE)
    page = branch_page(5)
    visits = 0
    while 77 not in space.branches:
        space.warm(77, page)
        visits += 1
    assert visits > 1, "not at the first visit"
    keys, references = space.branches[77]
    assert keys == [b"001", b"002", b"003", b"004"]
    assert [bits & fmt.MAX_U48 for bits in references] == [100, 101, 102, 103, 104]
    assert Space(bytes(8 * SIZE), SIZE, before=space).branches == space.branches


@plain_only
def test_what_is_kept_is_bounded(monkeypatch):
    monkeypatch.setattr(space_module, "_KEPT_CELLS", 40)
    space = Space(image()[0], SIZE)
    page = branch_page(10)
    most = 0
    for bits in range(200):
        for _ in range(20):
            if bits not in space.branches:
                space.warm(bits, page)
        assert bits in space.branches
        most = max(most, len(space.branches))
    assert 2 <= most <= 6
    for bits in range(1000, 2000):
        space.warm(bits, page)
        assert len(space._visits) <= 41


def leaf_page(cells):
    page = Page.build_leaf([(b"%03d" % at, 2, b"%02d" % at) for at in range(cells)], SIZE)
    assert page.cells == cells
    return page


@plain_only
def test_an_unpacked_leaf_says_where_each_value_is():
    space = Space(image()[0], SIZE)
    page = leaf_page(5)
    space.take_apart(77, page)
    assert list(space.leaves[77]) == [b"%03d" % at for at in range(5)]
    for at in range(5):
        info, place = space.leaves[77][b"%03d" % at]
        assert (info, page.data[place : place + 2]) == (2, b"%02d" % at)
    assert Space(bytes(8 * SIZE), SIZE, before=space).leaves == space.leaves


@plain_only
def test_the_unpacked_leaves_are_bounded(monkeypatch):
    monkeypatch.setattr(space_module, "_KEPT_ENTRIES", 40)
    space = Space(image()[0], SIZE)
    page = leaf_page(10)
    for bits in range(50):
        space.take_apart(bits, page)
        assert bits in space.leaves
        assert len(space.leaves) <= 4
    assert len(space.leaves) > 1


@plain_only
def test_a_leaf_with_a_cell_that_leads_outside_is_not_unpacked():
    space = Space(image()[0], SIZE)
    for offset in (SIZE - 4, SIZE + 100):  # the payload ends outside, and all of the cell lies there
        page = leaf_page(5)
        page.words[page.start + 3] = page.words[page.start + 3] & ~(0xFFFF << 16) | offset << 16
        space.visits[77] = 5
        space.take_apart(77, page)
        assert 77 not in space.leaves
        assert 77 not in space.visits, "it is not tried again at once"


@plain_only
def test_a_leaf_with_long_keys_is_not_unpacked():
    """It would take memory for which what is kept has no bound."""
    space = Space(image()[0], SIZE)
    for length, kept in ((64, True), (65, False)):
        entries = [(b"%03d" % at + bytes(length - 3), 1, b"v") for at in range(20)]
        space.take_apart(length, Page.build_leaf(entries, SIZE))
        assert (length in space.leaves) == kept


def test_every_look_at_the_mapping_of_before_a_fork_raises():
    for name in ("data", "pages", "meet", "overflow"):
        with pytest.raises(ForkedError, match="open the database again"):
            getattr(FORKED, name)
