"""Bugs that other stores have had, each told as a story and tried here.

Some have their place elsewhere, because they need that file's tools:

* redb PR 1276 (the header was durable before the file's extension), bolt 744 (the fallback meta pointed at reused pages): exhaustively in
  `test_crash`, `test_recovery`
* bbolt 797 (the free list was not rolled back on abort): `test_pager`
* LMDB ITS 7635, 7969, 7970 and SQLite's race over a shared header: here with real processes, in every order of steps in `test_interleavings`
* LMDB ITS 8505, 8844 (close after fork): `test_database`
* py-lmdb 474 (values over 2 GiB): the fields here, the calls of the system in `test_storage`
* PostgreSQL's fsync story: `test_crash`, `test_faults`
"""

from __future__ import annotations

import errno
import os
import random
import sys

import pytest
from child import Child, until
from crashing import PATH, Run, content, cut_everywhere, cut_twice, judge, opened, vanish

import cowdb
from cowdb import format as fmt
from cowdb import meta as meta_page
from cowdb.checksum import crc32c
from cowdb.database import open_on
from cowdb.recovery import believe
from cowdb.testing import CrashDisk, FaultyDisk, MemoryDisk, SimulatedKill, Write

SIZE = 4096

# ---------------------------------------------------------------- power cuts


@pytest.mark.guarantee
def test_a_power_cut_during_the_first_creation_leaves_nothing_or_a_database():
    """etcd 16596 (bbolt): a power cut during creation left a file that never opened again.

    The first pages were written straight into place.  Here they go to a temporary file, which gets its name when it is
    whole and on disk.
    """
    disk = CrashDisk()
    db = opened(disk)
    created = len(disk.trace)
    db[b"a"] = b"1"
    vanish(db)
    for index in range(created + 1):
        for image in disk.images(index, limit=100):
            db = opened(image)
            assert content(db) == {None: {}}
            db[b"a"] = b"1"
            assert db.check() == []
            db.close()
    for image in disk.images(created, limit=100):
        assert PATH in image.paths(), "the directory was not flushed before `open` returned"


@pytest.mark.untraced
@pytest.mark.guarantee
def test_the_file_is_longer_than_the_header_knows_and_the_other_way_round():
    """redb PR 1276: the header was durable before the extension of the file; the file never opened again.

    The size of the file and its content become durable independently of each other.
    """
    run = Run()
    for number in range(3):
        run.put(b"%d" % number, b"g" * 60_000)
    run.finish()
    assert cut_everywhere(run, limit=60) > 20


@pytest.mark.untraced
@pytest.mark.guarantee
def test_a_torn_slot_is_never_given_a_checksum_by_recovery():
    """redb PR 1290: recovery gave a torn slot a new checksum, and a second crash promoted it."""
    run = Run()
    run.put(b"a", b"1")
    run.put(b"b", b"2" * 9000)
    run.put(b"a", b"3")
    run.finish()
    assert cut_twice(run, limit=12, inner=6) > 30


@pytest.mark.guarantee
def test_the_state_to_fall_back_to_has_not_been_written_over():
    """bolt 744: after a power cut the older meta was believed, but its pages had been used again."""
    run = Run(durability="lazy")
    run.fill(100)
    for number in range(6):
        run.put(b"%06d" % number, b"x" * 200, durability="lazy")
    run.finish()
    for image in run.disk.images(run.now, strategy="only_one", limit=60):
        judge(image, run.allowed(run.now))
    # Even if the newest meta is destroyed by something else, the durable state is whole.
    image = run.disk.after_kill(run.now)
    slot = believe(image.open(PATH, read_only=True)).slot
    image.open(PATH, read_only=False).write(slot * SIZE + 700, [b"torn"])
    judge(image, [run.states[1][1]])


@pytest.mark.guarantee
@pytest.mark.parametrize("how", ["killed", "failed"])
def test_a_name_that_its_maker_did_not_see_to_is_made_certain_by_who_writes_next(how):
    """Found by `fuzz/faults`: the directory could not be flushed when the file was made (or its maker was killed just
    before); who opened it next found a file, committed, was told that it was durable, and a power cut took the file away.
    """
    disk = CrashDisk()
    faulty = FaultyDisk(disk)
    if how == "failed":
        faulty.fail(errno.EIO, call="flush_directory")
    else:
        faulty.kill(call="flush_directory")
    with pytest.raises((OSError, SimulatedKill)):
        opened(faulty)
    db = opened(disk)
    db[b"a"] = b"1"
    for image in disk.images(len(disk.trace), limit=100):
        judge(image, [{None: {b"a": b"1"}}])
    vanish(db)


@pytest.mark.untraced
@pytest.mark.guarantee
@pytest.mark.parametrize("durability", ["full", "lazy"])
def test_a_meta_page_may_be_torn_at_any_word(durability):
    """LMDB, found by ALICE: the meta page has no checksum, and half of it old and half of it new was believed.

    Here whoever finds such a page takes the other one: the state before, or the one that was synced.
    """
    disk = CrashDisk()
    db = opened(disk, durability=durability)
    db[b"a"] = b"1"
    db.sync()
    before = {None: {b"a": b"1"}}
    after = {None: {b"a": b"1", b"b": b"2" * 500}}
    begun = len(disk.trace)
    db[b"b"] = b"2" * 500
    vanish(db)
    index, meta = next(
        (index, operation)
        for index, operation in enumerate(disk.trace)
        if index >= begun
        and isinstance(operation, Write)
        and operation.offset in (0, SIZE)
        and len(operation.data) == SIZE
    )
    old = disk.after_kill(index).content(PATH)[meta.offset :][:SIZE]
    whole = disk.after_kill(len(disk.trace)).content(PATH)
    for edge in range(0, SIZE + 1, 8):
        for torn in (meta.data[:edge] + old[edge:], old[:edge] + meta.data[edge:]):
            image = MemoryDisk({PATH: whole[: meta.offset] + torn + whole[meta.offset + SIZE :]})
            found = judge(image, [after] if torn == meta.data else [before, after], live_on=edge % 512 == 0)
            assert found == (after if torn == meta.data else before)


@pytest.mark.untraced
@pytest.mark.guarantee
@pytest.mark.parametrize("seed", range(3))
def test_no_page_is_lost_or_named_twice_after_a_power_cut(seed):
    """bbolt 402, 446, 701, 705, 778: after a power loss pages were referenced twice or while they were free, and the
    free list had a cycle.  The checker looks for just that (I5), at once and after more commits."""
    rng = random.Random(seed)
    run = Run()
    run.fill(150)
    for number in range(8):
        key = b"%06d" % rng.randrange(150)
        durability = rng.choice(["full", "lazy"])
        if number % 4 == 0:
            run.begin_reader()
        rng.choice(
            [
                lambda key=key, durability=durability: run.put(key, b"v" * rng.randrange(6000), durability),
                lambda key=key, durability=durability: run.delete_range(key, key[:4] + b"\xff", durability),
                lambda key=key, durability=durability: run.fill(40, 90, durability, int(key)),
            ]
        )()
        if number % 4 == 3:
            run.end_reader()
    run.finish()
    assert cut_everywhere(run, limit=6, every=2, seed=seed) > 30


# ---------------------------------------------------------------- damage


def forged(change):
    """A database whose main root, a leaf, was changed by `change` and sealed again, with the meta pages."""
    disk = MemoryDisk()
    db = opened(disk)
    with db.write() as transaction:
        transaction[b"a"] = b"L" * 9000
        transaction[b"b"] = b"1"
    db.close()
    storage = disk.open(PATH, read_only=False)
    meta = believe(storage).meta
    number = meta.main.root.number
    raw = bytearray(storage.read(number * SIZE, SIZE))
    change(raw)
    checksum = crc32c(memoryview(raw)[4:])
    raw[:4] = checksum.to_bytes(4, "little")
    storage.write(number * SIZE, [bytes(raw)])
    root = meta.main.root._replace(checksum=checksum)
    changed = meta._replace(main=meta.main._replace(root=root))
    for slot in (0, 1):
        storage.write(slot * SIZE, [meta_page.encode(changed, slot)])
    return disk


def length_of_a_value(length):
    def change(raw):
        place = raw.index(fmt.Reference(0, 2, 9000, 0).pack()[6:18]) - 6
        raw[place + 12 : place + 18] = length.to_bytes(6, "little")

    return change


@pytest.mark.guarantee
@pytest.mark.parametrize("length", [20_000, 1 << 20, 8 << 40, (1 << 48) - 1])
def test_a_damaged_length_allocates_nothing(length):
    """redb 1331: a damaged length allocated 8 TiB."""
    db = opened(forged(length_of_a_value(length)))
    with pytest.raises(cowdb.CorruptionError):
        db[b"a"]
    with db.read() as snapshot:
        with pytest.raises(cowdb.CorruptionError):
            snapshot.get_view(b"a")
        assert snapshot[b"b"] == b"1"
    assert db.check()
    vanish(db)


@pytest.mark.guarantee
def test_a_cycle_in_the_tree_ends():
    """redb 1332: a cycle in the tree overflowed the stack.  Here each step down is one level lower, so none can last."""
    disk = MemoryDisk()
    db = opened(disk)
    with db.write() as transaction:
        transaction.update((b"%06d" % number, b"v" * 300) for number in range(3000))
    db.close()
    storage = disk.open(PATH, read_only=False)
    meta = believe(storage).meta
    assert meta.main.depth == 3
    number = meta.main.root.number
    raw = bytearray(storage.read(number * SIZE, SIZE))
    prefix = int.from_bytes(raw[24:26], "little")
    slot = int.from_bytes(raw[32 + (prefix + 7 & -8) :][:8], "little")
    place = slot >> 16 & 0xFFFF
    own = fmt.unpack_reference(bytes(raw[place : place + 22]))
    raw[place : place + 22] = own._replace(number=number).pack()
    checksum = crc32c(memoryview(raw)[4:])
    raw[:4] = checksum.to_bytes(4, "little")
    storage.write(number * SIZE, [bytes(raw)])
    root = meta.main.root._replace(checksum=checksum)
    changed = meta._replace(main=meta.main._replace(root=root), durable=meta.transaction)
    for place in (0, 1):
        storage.write(place * SIZE, [meta_page.encode(changed, place)])
    db = opened(disk)
    with db.read() as snapshot:
        for act in (lambda: list(snapshot), lambda: snapshot[b"000000"], snapshot.first, lambda: snapshot.peekitem(0)):
            with pytest.raises(cowdb.CorruptionError):
                act()
    assert db.check()
    with db.write() as transaction:
        with pytest.raises(cowdb.CorruptionError):
            transaction.clear()
        transaction.abort()
    vanish(db)


@pytest.mark.guarantee
@pytest.mark.parametrize("field", ["page count", "transaction", "durable", "carried runs", "commit time"])
def test_huge_but_well_sealed_numbers_in_the_meta_page_exhaust_nothing(field):
    """libmdbx 217: huge, valid-looking sizes in a meta page exhausted the memory."""
    for value in (1 << 33, (1 << 48) - 1, (1 << 64) - 1):
        disk = MemoryDisk()
        db = opened(disk)
        db[b"a"] = b"1"
        db.close()
        for slot in (0, 1):
            storage = disk.open(PATH, read_only=False)
            raw = bytearray(storage.read(slot * SIZE, SIZE))
            at = fmt.META.offset(field)
            raw[at : at + 8] = value.to_bytes(8, "little")
            if field == "transaction":
                raw[16:24] = value.to_bytes(8, "little")
            raw[:4] = crc32c(memoryview(raw)[4:]).to_bytes(4, "little")
            storage.write(slot * SIZE, [bytes(raw)])
        try:
            db = opened(disk, max_size=1 << 20)
        except cowdb.Error:
            continue
        try:
            assert db[b"a"] == b"1"
            db.check()
            db[b"b"] = b"2" * 9000  # the next transaction's id, too, must fit into its fields
            assert db[b"b"] == b"2" * 9000
        except cowdb.Error:
            pass
        assert db.stats().file_size < 1 << 20
        vanish(db)


@pytest.mark.guarantee
def test_an_iterator_ends_for_good_at_a_damaged_page():
    """redb 4.x: an iterator went on after a corruption error, and skipped data in silence."""
    disk = MemoryDisk()
    db = opened(disk)
    with db.write() as transaction:
        transaction.update((b"%06d" % number, b"v" * 100) for number in range(500))
    db.close()
    storage = disk.open(PATH, read_only=False)
    raw = disk.content(PATH)
    storage.write(raw.index(b"000250") // SIZE * SIZE + 3000, [b"damage"])
    db = opened(disk)
    with db.read() as snapshot:
        for items in (iter(snapshot.items()), iter(snapshot.items(reverse=True)), iter(snapshot.values())):
            seen = []
            with pytest.raises(cowdb.CorruptionError):
                seen.extend(items)
            after = list_or_error(items)
            assert after in ([], cowdb.CorruptionError)
            assert len(seen) < 300
    vanish(db)


def list_or_error(items):
    try:
        return list(items)
    except cowdb.Error as error:
        return type(error)


@pytest.mark.untraced
@pytest.mark.guarantee
@pytest.mark.parametrize("seed", range(4))
def test_random_byte_flips_never_give_a_wrong_answer(seed):
    """LMDB 0.9.36: of 2,000 random byte flips, 1,186 gave silently wrong data and 6 killed the process.

    Here each gives the data, a key that is missing by right of an older state, or a typed error.
    """
    disk = MemoryDisk()
    db = opened(disk)
    expected = {b"%05d" % number: b"value %d " % number * (number % 20) for number in range(600)}
    expected[b"large"] = b"large " * 5000
    with db.write() as transaction:
        transaction.update(expected)
        transaction.tree("t", create=True).update(expected)
    db.close()
    whole = disk.content(PATH)
    rng = random.Random(seed)
    errors = 0
    for trial in range(150):
        raw = bytearray(whole)
        # Half of the flips hit page headers, where they do most harm.
        at = rng.randrange(len(raw)) if trial % 2 else rng.randrange(len(raw) // SIZE) * SIZE + rng.randrange(32)
        raw[at] ^= 1 << rng.randrange(8)
        damaged = MemoryDisk({PATH: bytes(raw)})
        db = None
        try:
            db = opened(damaged)
            with db.read() as snapshot:
                for tree in (snapshot, snapshot.tree("t")):
                    for key in rng.sample(sorted(expected), 40):
                        assert tree[key] == expected[key]
                    assert dict(tree.items()) == expected
        except cowdb.Error:
            errors += 1
            assert raw != whole
        if db is not None:
            vanish(db)
    assert errors > 30


# ---------------------------------------------------------------- failures


@pytest.mark.guarantee
def test_a_failed_commit_stops_the_writer(monkeypatch):
    """redb 4.x: a failed commit did not poison, and the next one built on it."""
    db = opened(MemoryDisk())
    db[b"a"] = b"1"

    def fail():
        raise OSError(errno.EIO, "the disk is broken")

    monkeypatch.setattr(db._core.storage, "flush", fail)
    with pytest.raises(cowdb.PoisonedError):
        db[b"a"] = b"2"
    monkeypatch.undo()
    with pytest.raises(cowdb.PoisonedError):
        db[b"a"] = b"3"
    assert db[b"a"] == b"1"
    db.close()


@pytest.mark.skipif(not hasattr(os, "pwritev"), reason="needs pwritev")
@pytest.mark.guarantee
def test_a_short_write_is_not_an_error(database, monkeypatch):
    """py-lmdb 476: a short write was taken for an error, and a value was cut."""
    real = os.pwrite
    short = []

    def few(fd, buffer, offset):
        first = memoryview(buffer).cast("B")[:1000]
        short.append(len(first))
        return real(fd, first, offset)

    db = database()
    monkeypatch.setattr(os, "pwrite", few)
    monkeypatch.setattr(os, "pwritev", lambda fd, buffers, offset: few(fd, buffers[0], offset))
    db[b"large"] = b"x" * 100_000
    monkeypatch.undo()
    assert len(short) > 100
    assert db[b"large"] == b"x" * 100_000
    assert db.check() == []


def test_a_value_longer_than_a_length_field_of_32_bits_is_refused_or_kept_whole():
    """py-lmdb 474: values over 2 GiB were cut short.

    The length has 48 bits; the test looks at the fields, since a value of 2 GiB is too much for a test.
    """
    length = (1 << 31) + 5
    reference = fmt.Reference(2, 1, length, 0)
    assert fmt.unpack_reference(reference.pack()).count == length
    assert fmt.overflow_pages(length, SIZE) == (length + 32 + SIZE - 1) // SIZE
    assert sys.maxsize >> 16 < fmt.MAX_U48


# ---------------------------------------------------------------- processes

PAUSE = """
from cowdb.sharing import FileSharing

real = FileSharing.pin

def pause():
    os.remove(armed)
    open(reached, "w").close()
    while not os.path.exists(go):
        time.sleep(0.001)

def pin(sharing, *snapshot):
    paused = os.path.exists(armed)
    if paused and when == "before":
        pause()
    handle = real(sharing, *snapshot)
    if paused and when == "after":
        pause()
    return handle

FileSharing.pin = pin
"""


@pytest.mark.guarantee
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_reader_that_registers_while_the_writer_looks_for_readers_sees_one_whole_state(tmp_path, when):
    """LMDB ITS 7635, 7969, 7970: a reader had chosen its snapshot and was not in the table yet (or was, and nobody had
    looked again); the writer saw no reader and used the pages of that snapshot anew, under the reader's eyes.

    The reader of another process is held in that very moment, while this one commits until every page has been used again.
    """
    path = str(tmp_path / "db")
    places = {name: str(tmp_path / name) for name in ("armed", "reached", "go")}
    with cowdb.open(path, page_size=SIZE) as db, Child(path=path, when=when, **places) as other:
        with db.write() as transaction:
            transaction.update((b"%04d" % number, b"0" * 100) for number in range(200))
        other(PAUSE)
        other("db = cowdb.open(path); db.get(b'')")
        db[b"x"] = b"another state than the one that the reader knows"
        with open(places["armed"], "w"):
            pass
        other.begin(
            "s = db.read(); found = {bytes(value[:1]) for value in s.values(b'', b'x')}; count = len(list(s.items()))"
        )
        until(lambda: os.path.exists(places["reached"]))
        pages = db.stats().page_count
        for turn in b"123456789":
            with db.write() as transaction:
                transaction.update((b"%04d" % number, bytes([turn]) * 100) for number in range(200))
        assert db.stats().page_count < 4 * pages, "the old pages were not used again, so this tries nothing"
        with open(places["go"], "w"):
            pass
        other.end()
        assert other("(found, count)") == ({b"9"}, 201), "it looked again, and took the newest state"
        db[b"0000"] = b"later"
        assert other("{bytes(value[:1]) for value in s.values(b'', b'x')}") == {b"9"}
        other("s.close(); db.close()")
        assert db.check() == []


COMING_AND_GOING = """
def run(rounds):
    for number in range(rounds):
        db = cowdb.open(path, durability=("full", "lazy")[number % 2], lock_timeout=60)
        for _ in range(number % 3):
            with db.write() as t:
                t[b"n"] = b"%d" % (int(t[b"n"]) + 1)
                t[b"%d" % (number % 50)] = b"v" * 300
        seen = int(db[b"n"])
        db.close()
    return seen
"""


@pytest.mark.guarantee
def test_processes_that_come_and_go_at_once_never_disagree_on_the_shared_words(tmp_path):
    """SQLite 3.7.0 to 3.51.2: two processes raced over a header in shared memory, one resetting what the other went by.
    No crash test could see it in fifteen years.

    Here the first one to enter makes the words anew and the last one to leave settles the file, so the worst moment
    is when all come and go at once.  A lost update, or a state that goes back, would show in the count.
    """
    path = str(tmp_path / "db")
    with cowdb.open(path, page_size=SIZE) as db:
        db[b"n"] = b"0"
    rounds, children = 60, [Child(path=path) for _ in range(3)]
    try:
        for child in children:
            child(COMING_AND_GOING)
            child.begin("run(rounds)", rounds=rounds)
        seen = [child.end() for child in children]
    finally:
        for child in children:
            child.__exit__()
    with cowdb.open(path, create=False) as db:
        assert int(db[b"n"]) == max(seen) == 3 * sum(number % 3 for number in range(rounds))
        assert db.check() == []


# ---------------------------------------------------------------- free pages, mappings, cursors


@pytest.mark.guarantee
def test_readers_go_on_while_the_file_grows_and_shrinks(database):
    """py-lmdb 443, 475: resizing the map under readers crashed them.  Here the old mapping lives as long as it is used."""
    db = database(page_size=SIZE)
    with db.write() as transaction:
        transaction.update((b"%06d" % number, b"v" * 100) for number in range(500))
    snapshots = []
    for number in range(6):
        snapshot = db.read()
        snapshots.append((snapshot, dict(snapshot.items()), iter(snapshot.items())))
        next(snapshots[-1][2])
        db[b"large"] = b"%d" % number * (number % 3) * 700_000
        del db[b"large"]
    for snapshot, expected, iterator in snapshots:
        assert dict(snapshot.items()) == expected
        assert len(list(iterator)) == len(expected) - 1
        snapshot.close()
    for _ in range(3):
        db[b"a"] = b"1"
    assert db.stats().file_size < 1_000_000


@pytest.mark.guarantee
def test_cursors_survive_splits_merges_and_deletes_of_their_own_transaction(database):
    """LMDB ITS 7756, 8238, 8258 and others: cursors were left behind by changes of their own transaction."""
    db = database(page_size=SIZE)
    rng = random.Random(5)
    with db.write() as transaction:
        transaction.update((b"%06d" % (number * 10), b"v" * 60) for number in range(1000))
        keys = {b"%06d" % (number * 10) for number in range(1000)}
        cursors = []
        for key in rng.sample(sorted(keys), 30):
            cursor = transaction.cursor()
            assert cursor.seek_exact(key)
            cursors.append((cursor, key))
        for _ in range(30):
            for key in rng.sample(sorted(keys), 25):
                del transaction[key]
                keys.discard(key)
            for _ in range(15):
                key = b"%06d" % rng.randrange(10_000)
                transaction[key] = b"w" * rng.randrange(900)
                keys.add(key)
            ordered = sorted(keys)
            for cursor, key in cursors:
                assert cursor.key == (key if key in keys else None)
        for cursor, key in cursors:
            following = [other for other in ordered if other > key]
            assert cursor.next() == bool(following)
            assert cursor.key == (following[0] if following else None)
        transaction.delete_range(b"002000", b"008000")
        assert all(cursor.key is None or not b"002000" <= cursor.key < b"008000" for cursor, _ in cursors)


@pytest.mark.guarantee
def test_no_page_is_lost_or_named_twice_by_any_mixture_of_work():
    """bbolt 402, 446, 701, 705, 778: pages referenced twice, referenced while free, cycles in the free list."""
    rng = random.Random(11)
    db = opened(MemoryDisk())
    readers = []
    for number in range(120):
        with db.write(durability=rng.choice(["full", "lazy"])) as transaction:
            for _ in range(rng.randrange(1, 60)):
                key = b"%04d" % rng.randrange(2000)
                choice = rng.random()
                if choice < 0.6:
                    transaction[key] = b"v" * rng.randrange(200)
                elif choice < 0.65:
                    transaction[key] = b"L" * rng.randrange(20_000)
                elif choice < 0.9:
                    transaction.delete(key)
                else:
                    transaction.delete_range(key, b"%04d" % (int(key) + 30))
            if number % 10 == 9:
                transaction.abort()
        if rng.random() < 0.2:
            readers.append(db.read())
        if readers and rng.random() < 0.2:
            readers.pop(rng.randrange(len(readers))).close()
        if number % 4 == 0:
            assert db.check() == []
    for reader in readers:
        reader.close()
    assert db.check() == []
    db.close()


@pytest.mark.guarantee
def test_the_file_is_not_written_through_a_mapping():
    """LMDB's MDB_WRITEMAP: a stray pointer of the program damaged the file.  Here no mapping can be written to."""
    disk = CrashDisk()
    db = opened(disk)
    db[b"large"] = b"L" * 20_000
    with db.read() as snapshot:
        view = snapshot.get_view(b"large")
        with pytest.raises(TypeError):
            view[0] = 1
        del view
    db.close()
    disk.check_mappings()
    assert any(isinstance(operation, Write) for operation in disk.trace)


@pytest.mark.guarantee
def test_an_old_reader_does_not_stop_the_reuse_of_what_it_cannot_see():
    """LMDB, libmdbx: one old reader, and the file grows with every commit, for all that is freed after it is held."""
    db = opened(MemoryDisk())
    with db.write() as transaction:
        transaction.update((b"%06d" % number, b"v" * 100) for number in range(2000))
    with db.read() as reader:
        for number in range(300):
            db[b"%06d" % (number % 10)] = b"w" * 100
            if number == 20:
                early = db.stats().page_count
        assert db.stats().page_count <= early + 2
        assert len(reader) == 2000
    db.close()


@pytest.mark.guarantee
@pytest.mark.parametrize("end", ["commit", "abort", "power cut"])
def test_a_tree_renamed_and_restored_in_one_transaction(end):
    """redb 4.x: a table was renamed and restored in one transaction, and was gone, or there twice, afterwards."""
    run = Run()
    run.put(b"k", b"old" * 900, tree="t")
    run.put(b"k", b"other", tree="u")
    before = run.model

    def work(transaction, model):
        transaction.rename("t", "away")
        transaction.tree("t", create=True)[b"k"] = b"in between"
        transaction.drop("t")
        transaction.rename("away", "t")  # restored, with the same pages
        transaction.rename("u", "v")
        transaction.tree("u", create=True)[b"k"] = b"new"
        assert transaction.tree("t")[b"k"] == b"old" * 900
        assert transaction.tree("v")[b"k"] == b"other"
        assert sorted(transaction.trees()) == ["t", "u", "v"]
        model.update(u={b"k": b"new"}, v={b"k": b"other"})

    if end == "abort":
        with run.db.write() as transaction:
            work(transaction, {})
            transaction.abort()
        assert content(run.db) == before
    else:
        run.change(work)
        assert content(run.db) == run.model == {**before, "u": {b"k": b"new"}, "v": {b"k": b"other"}}
    assert run.db.check() == []
    run.put(b"k", b"and on", tree="t")
    run.finish()
    if end == "power cut":
        assert cut_everywhere(run, limit=20) > 20


def test_rename_into_itself_and_a_tree_called_like_a_path():
    db = open_on(MemoryDisk(), "/db")
    with db.write() as transaction:
        for name in ("../x", "-", "a/b", "\n"):
            transaction.tree(name, create=True)[b"k"] = b"v"
            transaction.rename(name, name)
    with db.read() as snapshot:
        assert len(snapshot.trees()) == 4
    db.close()
