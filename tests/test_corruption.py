"""Damaged and forged files that the fuzzers found to hurt: each test begins with its story.

What must come out is an answer or a typed error, in bounded time and memory (promise 5).
"""

from __future__ import annotations

import itertools
import struct
import sys
import tracemalloc

import pytest
from crashing import ID, PATH, opened, vanish

import cowdb
from cowdb import format as fmt
from cowdb import meta as meta_page
from cowdb.checksum import crc32c
from cowdb.testing import MemoryDisk

SIZE = 4096
LEVELS = 40
CELLS = 100


def sealed(page):
    checksum = crc32c(bytes(page[4:]))
    page[:4] = checksum.to_bytes(4, "little")
    return checksum


def bomb():
    """A file whose every branch leads a hundred times to the same child; each checksum holds."""
    pages = []
    below = fmt.NO_PAGE
    for level in range(LEVELS):
        page = bytearray(SIZE)
        heap = SIZE
        for index in range(CELLS):
            suffix = b"" if level and not index else b"%04d" % index
            body = suffix + below.pack() if level else struct.pack("<H", 3) + suffix + b"abc"
            heap -= len(body)
            page[heap : heap + len(body)] = body
            head = int.from_bytes(suffix.ljust(4, b"\0"), "big")
            struct.pack_into("<Q", page, 32 + 8 * index, head << 32 | heap << 16 | len(suffix))
        kind = fmt.BRANCH_KIND if level else fmt.LEAF_KIND
        number = 2 + level
        fmt.PAGE_HEADER.struct.pack_into(page, 0, 0, kind, level, CELLS, number, 1, 0, heap, 0, 0)
        checksum = sealed(page)
        below = fmt.Reference(number, 1, min(CELLS * max(1, below.count), fmt.MAX_U48), checksum)
        pages.append(bytes(page))
    tree = fmt.Descriptor(below, LEVELS, 20, 20, 0)
    meta = meta_page.Meta(SIZE, ID, 2, 2, LEVELS + 2, 0, tree, fmt.EMPTY_TREE, fmt.EMPTY_TREE, b"")
    return MemoryDisk({PATH: b"".join([meta_page.encode(meta, 0), meta_page.encode(meta, 1), *pages])})


@pytest.mark.guarantee
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("view", ["keys", "values", "items"])
def test_a_scan_of_a_few_pages_that_claim_endless_entries_ends(view, reverse):
    """Forty branches, each of whose cells lead to one and the same child: 42 pages gave 100 ** 40 entries, for ever."""
    db = opened(bomb(), read_only=True)
    with db.read() as snapshot:
        entries = iter(getattr(snapshot, view)(reverse=reverse))
        with pytest.raises(cowdb.CorruptionError):
            for _ in range((LEVELS + 2) * CELLS + 1):
                next(entries)
    vanish(db)


@pytest.mark.guarantee
def test_a_writer_that_scans_such_a_file_comes_to_an_end():
    db = opened(bomb())
    transaction = db.write()
    with pytest.raises(cowdb.CorruptionError):
        for number, key in enumerate(transaction):
            assert number < (LEVELS + 2) * CELLS
            if not number % 10:
                transaction[key] = b"other"
    with pytest.raises(cowdb.CorruptionError):
        for number, _ in enumerate(transaction.items(reverse=True)):
            assert number < (LEVELS + 2) * CELLS
    transaction.abort()
    vanish(db)


@pytest.mark.guarantee
@pytest.mark.parametrize("forward", [True, False])
def test_a_cursor_in_such_a_file_comes_to_an_end_and_stays_where_it_is(forward):
    db = opened(bomb(), read_only=True)
    with db.read() as snapshot:
        cursor = snapshot.cursor()
        move = cursor.next if forward else cursor.prev
        with pytest.raises(cowdb.CorruptionError):
            for _ in range((LEVELS + 2) * CELLS):
                assert move()
        assert cursor.key == (b"0099" if forward else b"0000")
    vanish(db)


@pytest.mark.guarantee
def test_a_compact_copy_of_such_a_file_is_refused(tmp_path):
    """It wrote on until the disk was full."""
    db = opened(bomb(), read_only=True)
    with pytest.raises(cowdb.CorruptionError):
        db.copy(tmp_path / "copy", compact=True)
    assert list(tmp_path.iterdir()) == []
    vanish(db)


@pytest.mark.guarantee
@pytest.mark.parametrize("reverse", [False, True])
def test_a_writer_that_changes_what_it_scans_ends_where_keys_do_not_rise(reverse):
    """After each change the scan seeks its place again, by the last key. Forged keys that go up and down led it
    round and round."""
    disk = MemoryDisk()
    db = opened(disk)
    with db.write() as transaction:
        transaction.update((b"%04d" % number, b"v") for number in range(50))
    db.close()
    raw = bytearray(disk.content(PATH))
    meta = meta_page.decode(bytes(raw[:SIZE]), 0)
    root = meta.main.root
    page = raw[root.number * SIZE : (root.number + 1) * SIZE]
    first = 32 + (int.from_bytes(page[24:26], "little") + 7 & -8)
    early, late = slice(first + 80, first + 88), slice(first + 240, first + 248)
    page[early if reverse else late] = page[late if reverse else early]
    reference = root._replace(checksum=sealed(page))
    raw[root.number * SIZE : (root.number + 1) * SIZE] = page
    for slot in (0, 1):
        meta = meta_page.decode(bytes(raw[slot * SIZE : (slot + 1) * SIZE]), slot)
        changed = meta_page.encode(
            meta_page.Meta(
                SIZE, ID, meta.transaction, meta.transaction, meta.page_count, 0,
                meta.main._replace(root=reference), meta.catalog, meta.free, meta.carried,
            ), slot,
        )  # fmt: skip
        raw[slot * SIZE : (slot + 1) * SIZE] = changed
    db = opened(MemoryDisk({PATH: bytes(raw)}))
    transaction = db.write()
    with pytest.raises(cowdb.CorruptionError):
        for steps, key in enumerate(transaction.keys(reverse=reverse)):
            assert steps < 1000
            if key in (b"0010", b"0030"):
                transaction[key] = b"w"
    transaction.abort()
    vanish(db)


def with_main(raw, change, transaction=None):
    """The file with another descriptor of the main tree, and another id, in both meta pages."""
    raw = bytearray(raw)
    for slot in (0, 1):
        meta = meta_page.decode(bytes(raw[slot * SIZE : (slot + 1) * SIZE]), slot)
        newest = transaction or meta.transaction
        changed = meta._replace(transaction=newest, durable=newest, main=change(meta.main))
        raw[slot * SIZE : (slot + 1) * SIZE] = meta_page.encode(changed, slot)
    return bytes(raw)


def small_file():
    """One leaf, with a large value behind it; where the leaf lies."""
    disk = MemoryDisk()
    db = opened(disk)
    with db.write() as transaction:
        transaction[b"a"] = b"1"
        transaction[b"large"] = b"L" * 5000
    db.close()
    raw = disk.content(PATH)
    return raw, meta_page.decode(raw[:SIZE], 0).main.root.number * SIZE


@pytest.mark.guarantee
@pytest.mark.parametrize("birth", [0, 1 << 32, 5 << 32])
def test_a_reference_born_in_a_transaction_that_never_was_is_not_believed(birth):
    """ "Not met yet" is kept as birth 0, so a forged reference with such a birth led past every check of its page: a
    page with a prefix of 65,000 bytes gave IndexError."""
    raw, leaf = small_file()
    raw = with_main(raw, lambda main: main._replace(root=main.root._replace(birth=birth)), transaction=(9 << 32) + 1)
    raw = bytearray(raw)
    raw[leaf + 24 : leaf + 26] = b"\xf0\xff"
    db = opened(MemoryDisk({PATH: bytes(raw)}))
    with db.read() as snapshot:
        acts = (lambda: snapshot[b"a"], lambda: list(snapshot), snapshot.first, lambda: snapshot.bisect(b"b"))
        for act in acts:
            with pytest.raises(cowdb.CorruptionError):
                act()
    assert db.check()
    with db.write() as transaction:
        for act in (lambda: transaction.put(b"a", b"2"), transaction.clear):
            with pytest.raises(cowdb.CorruptionError):
                act()
        transaction.abort()
    vanish(db)


@pytest.mark.guarantee
def test_a_value_born_in_a_transaction_that_never_was_is_not_believed():
    """The same for the reference to a large value: whatever lay there was given as the value."""
    raw, leaf = small_file()
    page = bytearray(raw[leaf : leaf + SIZE])
    root = meta_page.decode(raw[:SIZE], 0).main.root
    place = page.index((5000).to_bytes(6, "little")) - 12
    page[place + 6 : place + 12] = bytes(6)
    reference = root._replace(checksum=sealed(page))
    raw = bytearray(with_main(raw, lambda main: main._replace(root=reference)))
    raw[leaf : leaf + SIZE] = page
    raw[raw.index(b"L" * 5000)] = 0
    db = opened(MemoryDisk({PATH: bytes(raw)}))
    with db.read() as snapshot:
        assert snapshot[b"a"] == b"1"
        for act in (lambda: snapshot[b"large"], lambda: snapshot.get_view(b"large"), lambda: list(snapshot.items())):
            with pytest.raises(cowdb.CorruptionError):
                act()
    assert db.check()
    vanish(db)


@pytest.mark.guarantee
def test_a_compact_copy_of_a_catalog_out_of_order_is_refused(tmp_path):
    """A name that the list of trees gave, and that a search did not find, was an AssertionError in the copy."""
    disk = MemoryDisk()
    db = opened(disk)
    with db.write() as transaction:
        for name in "abcdefgh":
            transaction.tree(name, create=True)
    db.close()
    raw = bytearray(disk.content(PATH))
    for slot in (0, 1):
        meta = meta_page.decode(bytes(raw[slot * SIZE : (slot + 1) * SIZE]), slot)
        at = meta.catalog.root.number * SIZE
        page = raw[at : at + SIZE]
        if not slot:
            page[32:40], page[32 + 56 : 32 + 64] = page[32 + 56 : 32 + 64], page[32:40]
        root = meta.catalog.root._replace(checksum=sealed(page))
        raw[at : at + SIZE] = page
        changed = meta._replace(durable=meta.transaction, catalog=meta.catalog._replace(root=root))
        raw[slot * SIZE : (slot + 1) * SIZE] = meta_page.encode(changed, slot)
    db = opened(MemoryDisk({PATH: bytes(raw)}), read_only=True)
    with pytest.raises(cowdb.CorruptionError):
        db.copy(tmp_path / "copy", compact=True)
    assert list(tmp_path.iterdir()) == []
    assert db.check()
    vanish(db)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("writing", [False, True])
def test_a_scan_holds_one_large_value_at_a_time(reverse, writing):
    """A leaf's entries are taken apart together, and with them all its large values were read: a hundred values of
    50 MB needed 5 GB to look at the first.  A forged leaf could name one long run in each of its cells."""
    disk = MemoryDisk()
    length, count = 1 << 20, 20
    db = opened(disk)
    with db.write() as transaction:
        for number in range(count):
            transaction[b"%04d" % number] = bytes([number]) * length
            transaction[b"%04d small" % number] = b"s"
    with db.write() if writing else db.read() as snapshot:
        expected = [(b"%04d" % number, number) for number in range(count)]
        tracemalloc.start()
        try:
            found = [(key, value[0]) for key, value in snapshot.items(reverse=reverse) if len(value) == length]
            peak = tracemalloc.get_traced_memory()[1]
            some = list(itertools.islice(snapshot.values(reverse=reverse), 3))
        finally:
            tracemalloc.stop()
        assert found == (expected[::-1] if reverse else expected)
        assert peak < 6 * length
        assert sorted(map(len, some)) == ([1, 1, length] if reverse else [1, length, length])
    vanish(db)


# ---------------------------------------------------------------- interrupts and no memory


class StruckError(MemoryError):
    """What comes out of nowhere."""


def strike(act, place, module, function):
    """Call `act`, and raise at line number `place` of those that it runs through in a function; whether it got there."""
    lines = itertools.count()

    def trace(frame, event, _argument):
        if frame.f_code.co_name != function or not frame.f_code.co_filename.endswith(module):
            return None
        if event == "line" and next(lines) == place:
            sys.settrace(None)
            raise StruckError
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        act()
    except StruckError:
        return True
    finally:
        sys.settrace(before)
    return False


@pytest.mark.parametrize("durability", ["full", "lazy"])
def test_a_commit_that_is_interrupted_at_any_line_leaves_its_free_list_to_nobody(durability):
    """No memory for one integer, behind "the free list is not the draft's any more" and before that list's new base: the
    next transaction took its pages from the free list of a commit that never was, and pages were free twice."""
    for place in itertools.count():
        db = opened(MemoryDisk())
        for number in range(4):
            with db.write() as transaction:
                transaction.update((b"%04d" % key, bytes([number]) * 90) for key in range(number, 200, 4))
        transaction = db.write(durability=durability)
        transaction.update((b"%04d" % key, b"struck") for key in range(0, 200, 20))
        struck = strike(transaction.commit, place, "pager.py", "commit")
        try:
            for number in range(3):
                with db.write(timeout=1) as after:
                    after[b"next"] = b"%d" % number * 3000
                assert db.check() == []
        except cowdb.PoisonedError:
            pass
        vanish(db)
        if not struck:
            assert place > 30
            return


@pytest.mark.guarantee
@pytest.mark.parametrize("change", ["put", "delete", "delete_range"])
def test_a_change_that_meets_a_damaged_leaf_spreads_no_damage(tmp_path, change):
    """The root was copied and its page was free, but the tree counted no change: its old root stayed in the state.

    The next commits used that page again, and the whole tree was lost (I1).
    """
    path = tmp_path / "db"
    keys = [b"%06d" % number for number in range(2000)]
    with cowdb.open(path, page_size=SIZE) as db, db.write() as transaction:
        transaction.update((key, b"v" * 20) for key in keys)
        transaction.tree("other", create=True)[b"a"] = b"b"
    image = bytearray(path.read_bytes())
    leaves = [
        number
        for number in range(2, len(image) // SIZE)
        if image[number * SIZE + 4] == fmt.LEAF_KIND and b"v" * 20 in image[number * SIZE : (number + 1) * SIZE]
    ]
    damaged = leaves[-1]
    image[damaged * SIZE + 4000] ^= 0xFF
    path.write_bytes(image)

    def reachable():
        with db.read() as snapshot:
            return [key for key in keys if answers(snapshot, key)]

    def answers(snapshot, key):
        try:
            return snapshot[key] == b"v" * 20
        except cowdb.CorruptionError:
            return False

    with cowdb.open(path) as db:
        sound = reachable()
        bad = next(key for key in keys if key not in sound)
        with db.write() as transaction:
            with pytest.raises(cowdb.CorruptionError):
                if change == "put":
                    transaction[bad] = b"new"
                elif change == "delete":
                    del transaction[bad]
                else:
                    transaction.delete_range(bad, bad + b"1")
            if not transaction.changes.torn:  # else only an abort is left
                transaction.tree("other")[b"c"] = b"d"
            else:
                transaction.abort()
        for number in range(8):
            with db.write() as transaction:
                transaction.tree("other")[b"%d" % number] = b"e" * 50
        assert {(finding.invariant, finding.page_number) for finding in db.check()} == {("I3", damaged)}
        assert reachable() == sound
