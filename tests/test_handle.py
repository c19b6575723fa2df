"""Beginning and ending reads: who is counted, who is found at the end, and that threads may close in between."""

from __future__ import annotations

import gc
import threading

import pytest

import cowdb
from cowdb.errors import ClosedError, KeyNotFoundError
from cowdb.kernel import Handle, Reading


@pytest.fixture
def db(tmp_path):
    with cowdb.open(tmp_path / "db", page_size=4096, durability="lazy") as db:
        db[b"k"] = b"0"
        yield db
        assert db.closed or db.stats().readers == 0


def test_a_database_and_a_transaction_are_made_of_the_kernels_halves(db):
    assert isinstance(db, Handle)
    with db.read() as snapshot:
        assert isinstance(snapshot, Reading)
        assert isinstance(snapshot, cowdb.Tree)


@pytest.mark.parametrize("order", [[0, 1, 2, 3, 4], [4, 3, 2, 1, 0], [2, 0, 4, 1, 3], [1, 1, 3, 1, 3]])
def test_readings_are_those_that_are_open(db, order):
    open_ones = [db.read() for _ in range(5)]
    ended = set()
    for number in order:
        open_ones[number].close()
        ended.add(number)
        left = {id(one) for number, one in enumerate(open_ones) if number not in ended}
        assert {id(one) for one in db.readings() if not one.closed} == left
        assert db.stats().readers == len(left)
    for one in open_ones:
        one.close()
    assert [one for one in db.readings() if not one.closed] == []


def test_closing_ends_every_reader_and_nobody_elses(tmp_path):
    one = cowdb.open(tmp_path / "db")
    two = cowdb.open(tmp_path / "db")
    one[b"k"] = b"1"
    of_one = [one.read() for _ in range(3)]
    of_two = two.read()
    of_one[1].close()
    del of_one[0]
    one.close()
    assert all(reader.closed for reader in of_one)
    assert of_two[b"k"] == b"1"
    assert two.stats().readers == 1
    for act in (one.read, lambda: one[b"k"], lambda: one.get(b"k"), lambda: b"k" in one):
        with pytest.raises(ClosedError, match="db' is closed"):
            act()
    two.close()
    assert of_two.closed


def test_a_handle_that_is_forgotten_ends_its_readers(tmp_path):
    db = cowdb.open(tmp_path / "db")
    reader = db.read()
    del db
    gc.collect()
    assert reader.closed
    reader.close()
    with pytest.raises(ClosedError):
        reader.get(b"k")


def test_a_reader_that_is_forgotten_is_counted_out(db):
    db.read()
    assert db.stats().readers == 0
    ring = [db.read()]
    ring.append(ring)
    assert db.stats().readers == 1
    del ring
    gc.collect()
    assert db.stats().readers == 0
    assert db.readings() == []


def test_a_reader_that_is_forgotten_while_somebody_is_inside_the_gate_is_counted_out_later(db):
    gate = db._core.pager.gate
    reader, other = db.read(), db.read()
    with gate._lock:
        del reader
        assert other._snapshot.users == 2
    assert db.stats().readers == 1
    other.close()


def test_what_began_while_somebody_was_inside_the_gate_waits_for_him(db):
    gate = db._core.pager.gate
    found = []
    acts = [lambda: found.append(db[b"k"]), lambda: found.append(db.read())]
    threads = [threading.Thread(target=act) for act in acts]
    with gate._lock:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(0.05)
        assert found == []
    for thread in threads:
        thread.join()
    assert len(found) == 2
    for one in db.readings():
        one.close()


def test_reads_of_one_call_are_counted_out_whatever_comes_of_them(db):
    assert db[b"k"] == db.get(bytearray(b"k")) == b"0"
    assert db.get(b"x") is None
    assert db.get(b"x", 7) == 7
    assert db.get(7, "no key") == "no key"
    assert b"k" in db
    assert 7 not in db
    with pytest.raises(KeyNotFoundError, match="x"):
        db[b"x"]
    with pytest.raises(KeyNotFoundError, match="7"):
        db[7]
    for act in (db.get, db.__getitem__, db.__contains__):
        with pytest.raises(TypeError, match="encode"):
            act("k")
    assert db.stats().readers == 0
    assert [snapshot.users for snapshot in db._core.pager.gate.snapshots()] == [0]


def test_more_snapshots_than_a_block_of_words_has_room_for(db):
    held = []
    for number in range(150):
        db[b"k"] = b"%d" % number
        held.append(db.read())
    assert [snapshot[b"k"] for snapshot in held] == [b"%d" % number for number in range(150)]
    assert len(db.readers()) == 150
    for snapshot in held[::2] + held[1::2]:
        snapshot.close()
    assert db.readers() == []
    free = db._core.pager.words._free_pins
    assert len(free) == len(set(free))
    with db.read() as snapshot:
        assert snapshot[b"k"] == b"149"


def _cursor_values(snapshot):
    cursor = snapshot.cursor()
    found = []
    while cursor.next():
        found.append(cursor.value)
    return found


LOOKS = {
    "get": lambda snapshot: [snapshot[b"%03d" % number] for number in range(0, 100, 9)],
    "scan": lambda snapshot: list(snapshot.values()),
    "backward": lambda snapshot: [value for _, value in reversed(snapshot.items())],
    "cursor": _cursor_values,
    "order": lambda snapshot: [
        snapshot.first()[1],
        snapshot.floor(b"0505")[1],
        snapshot.select(snapshot.rank(b"070"))[1],
        snapshot.last()[1],
    ],
    "tree": lambda snapshot: list(snapshot.tree("t").values()),
    "large": lambda snapshot: [snapshot.tree("large")[b"%03d" % number].strip() for number in range(3)],
}


@pytest.mark.untraced
@pytest.mark.guarantee
@pytest.mark.parametrize("look", LOOKS)
@pytest.mark.usefixtures("many_switches")
def test_threads_begin_and_end_reads_while_others_close_and_write(tmp_path, look):
    path = tmp_path / "db"
    keeper = cowdb.open(path, page_size=4096, durability="lazy")

    def write(number):
        with keeper.write() as transaction:
            for tree in (transaction, transaction.tree("t", create=True)):
                tree.update((b"%03d" % key, b"%d" % number) for key in range(100))
            transaction.tree("large", create=True).update((b"%03d" % key, b"%-5000d" % number) for key in range(3))

    write(0)
    handles = [cowdb.open(path)]
    wrong, over = [], threading.Event()

    def read():
        while not over.is_set():
            handle = handles[0]
            try:
                with handle.read() as snapshot:
                    if len(set(LOOKS[look](snapshot))) != 1:
                        wrong.append("a snapshot changed")
                handle.get(b"001")
                handle.read()
            except ClosedError:
                pass
            except BaseException as error:  # noqa: BLE001 - the test looks at it
                wrong.append(error)
                return

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for number in range(40):
        write(number)
        before = handles[0]
        if number % 2:
            handles[0] = cowdb.open(path)
        before.close()
        if not number % 2:
            handles[0] = cowdb.open(path)
    over.set()
    for thread in threads:
        thread.join()
    handles[0].close()
    gc.collect()
    assert wrong == []
    assert keeper.stats().readers == 0
    assert len(keeper._core.pager.gate.snapshots()) == 1
    assert keeper.check() == []
    keeper.close()
