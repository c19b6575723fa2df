"""The two forms of the page kernel are twins: the same operations give the same results, errors and bytes.

These tests hold the plain and the compiled form side by side, whichever of them the rest of the tests uses.  They are
skipped where the compiled one was not built.
"""

from __future__ import annotations

import ast
import contextlib
import gc
import os
import random
import subprocess
import sys
from pathlib import Path as File
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kernel import far_items

from cowdb import bytelocks, cursor, freelist, kernel, meta, page, path, sharing, space, tree, writer
from cowdb import format as fmt
from cowdb.checksum import crc32c
from cowdb.errors import ClosedError, CorruptionError, Error, KeyNotFoundError, KeySizeError, LockTimeoutError
from cowdb.sealed import Sealed
from cowdb.space import FORKED

native = pytest.importorskip("cowdb._kernel", reason="the compiled kernel was not built")
if kernel.stamp(File(kernel.__file__).parent.parent) != native.STAMP:
    pytest.skip("the compiled kernel was built from other sources", allow_module_level=True)

PLAIN = SimpleNamespace(
    Changes=writer.Changes,
    Page=page.Page,
    Path=path.Path,
    Reader=tree.Reader,
    Space=space.Space,
    Writer=writer.Writer,
    scan=cursor.scan,
)
FORMS = {"plain": PLAIN, "compiled": native}
LIMIT = fmt.max_key_size(4096)


class Twin:
    """A file with one tree in it, written by one of the forms."""

    def __init__(self, form, page_size=4096, budget=1 << 40, early=1 << 40):
        self.form = form
        self.page_size = page_size
        self.budget = budget
        self.early = early
        self.image = bytearray(2 * page_size)
        self.descriptor = fmt.EMPTY_TREE
        self.birth = 0
        self.freed = []
        self.begin()

    def begin(self):
        form = self.form
        self.birth += 1
        self.changes = form.Changes(self.birth, self.budget, self.spill)
        self.changes.early = self.early
        self.space = form.Space(bytes(self.image), self.page_size)
        self.writer = form.Writer(self.space, self.descriptor, self.changes)
        self.reader = form.Reader(self.space, self.descriptor)

    def spill(self):
        self.seal()
        self.writer.space = self.form.Space(bytes(self.image), self.page_size)
        self.changes.written()

    def seal(self):
        size = self.page_size
        pages, runs = self.writer.dirty_pages()
        first = at = len(self.image) // size
        at += pages
        places = {}
        for length in runs:
            places.setdefault(length, []).append(at)
            at += length
        self.image += bytes((at - first) * size)

        numbers = iter(range(first, first + pages))
        sealed = Sealed()
        self.descriptor = self.writer.seal(numbers, lambda length: places[length].pop(), sealed)
        for start, length, buffers in sealed.runs(size):
            self.image[start * size : (start + length) * size] = b"".join(map(bytes, buffers))
        assert next(numbers, None) is None

    def commit(self):
        self.seal()
        self.freed.append(list(self.changes.freed))
        self.begin()


def outcome(call):
    """What a call gives or raises, in a form that can be compared."""
    try:
        return call()
    except (Error, KeyError, ValueError, TypeError, IndexError, OverflowError) as error:
        return type(error), str(error)


def state(twin):
    """All that a writer and its changes count."""
    changes, tree_ = twin.changes, twin.writer
    counted = changes.birth, changes.dirty, changes.copied, changes.operations, changes.inserted, changes.torn
    counted += changes.ended, changes.due
    pages = tree_.branch_pages, tree_.leaf_pages, tree_.overflow_pages, tree_.depth, tree_.pending, tree_.version
    return len(tree_), counted, pages, changes.freed, tree_.changed, sorted(tree_.large)


class Pair:
    """The same done to both."""

    def __init__(self, page_size=4096, budget=1 << 40, early=1 << 40):
        self.twins = [Twin(form, page_size, budget, early) for form in FORMS.values()]

    def both(self, call):
        plain, compiled = (outcome(lambda twin=twin: call(twin)) for twin in self.twins)
        assert plain == compiled
        assert state(self.twins[0]) == state(self.twins[1])
        return plain

    def commit(self):
        for twin in self.twins:
            twin.commit()
        plain, compiled = self.twins
        assert plain.descriptor == compiled.descriptor
        assert plain.freed == compiled.freed
        assert plain.image == compiled.image, "the files are equal to the byte"


keys = st.one_of(
    st.integers(0, 400).map(lambda number: b"key%05d" % number),
    st.binary(max_size=6),
    st.text("ab\0\xff", max_size=9).map(lambda text: text.encode("latin-1")),
    st.builds(
        lambda number, fill, end: b"%02d" % number + fill * (LIMIT - 4) + b"%d" % end,
        st.integers(0, 30),
        st.sampled_from([b"x", b"\0", b"\xff"]),
        st.integers(0, 9),
    ),
)
values = st.one_of(
    st.binary(max_size=20), st.sampled_from([0, 1, 22, 300, 700, 1023, 1024, 1025, 4064, 4065, 9000]).map(bytes)
)
bounds = st.none() | keys
steps = st.lists(
    st.one_of(
        st.tuples(st.just("put"), keys, values),
        st.tuples(st.just("put new"), keys, values),
        st.tuples(st.just("append"), keys, values),
        st.tuples(st.just("delete"), keys),
        st.tuples(st.just("range"), bounds, bounds),
        st.tuples(st.just("many"), st.integers(0, 400), st.integers(0, 60), st.integers(0, 1100)),
        st.tuples(st.just("far"), st.integers(0, 60), st.integers(0, 40), st.integers(0, 1000)),
        st.tuples(st.just("thin"), st.integers(1, 9), st.integers(0, 8)),
        st.tuples(st.just("read"), keys, bounds, bounds),
        st.tuples(st.just("commit")),
    ),
    max_size=25,
)


def apply(pair, step):
    what = step[0]
    if what == "put":
        pair.both(lambda twin: twin.writer.put(step[1], step[2]))
    elif what == "put new":
        pair.both(lambda twin: twin.writer.put(step[1], step[2], overwrite=False))
    elif what == "append":
        pair.both(lambda twin: twin.writer.put(step[1], step[2], append=True))
    elif what == "delete":
        pair.both(lambda twin: twin.writer.delete(step[1]))
    elif what == "range":
        pair.both(lambda twin: twin.writer.delete_range(step[1], step[2]))
    elif what == "many":
        items = [(b"key%05d" % number, b"v" * step[3]) for number in range(step[1], step[1] + step[2])]
        pair.both(lambda twin: twin.writer.update(items))
    elif what == "far":
        items = far_items(step[1] + step[2], step[3])[step[1] :]
        pair.both(lambda twin: twin.writer.update(items))
    elif what == "thin":
        gone = pair.both(lambda twin: list(twin.form.scan(twin.writer, 0, None, None)))
        for at, key in enumerate(gone):
            if at % 10 < step[1]:
                pair.both(lambda twin, key=key: twin.writer.delete(key))
    elif what == "read":
        look(pair, *step[1:])
    else:
        pair.commit()


def look(pair, key, low, high):
    """Every way to look into a tree, clean and dirty."""
    for name in ("reader", "writer"):

        def here(twin, name=name):
            return getattr(twin, name)

        for call in (
            lambda twin: here(twin).get(key),
            lambda twin: here(twin).find(key),
            lambda twin: key in here(twin),
            lambda twin: here(twin).rank(key),
            lambda twin: here(twin).floor(key),
            lambda twin: here(twin).ceiling(key),
            lambda twin: here(twin).edge(last=False),
            lambda twin: here(twin).edge(last=True),
            lambda twin: len(here(twin)),
            lambda twin: here(twin).bits,
            *(lambda twin, at=at: here(twin).select(at) for at in (-1, 0, 3, 70)),
            *(
                lambda twin, kind=kind, reverse=reverse, limit=limit: list(
                    twin.form.scan(here(twin), kind, low, high, reverse=reverse, limit=limit)
                )
                for kind in (0, 1, 2)
                for reverse in (False, True)
                for limit in (None, 0, 3)
            ),
        ):
            pair.both(call)


@pytest.mark.untraced
@given(steps)
def test_any_operations_give_equal_files(what):
    pair = Pair()
    for step in what:
        apply(pair, step)
    pair.commit()
    look(pair, b"key00100", None, None)


@pytest.mark.untraced
@pytest.mark.parametrize("page_size", fmt.PAGE_SIZES)
@pytest.mark.parametrize("seed", range(3))
def test_long_histories_give_equal_files(page_size, seed):
    rng = random.Random(f"{page_size} {seed}")
    pair = Pair(page_size, budget=rng.choice([1 << 40, 40 * page_size]), early=rng.choice([1 << 40, 5 * page_size]))
    limit = fmt.max_key_size(page_size)
    pool = [b"%06d" % rng.randrange(10**6) for _ in range(700)]
    pool += [rng.randbytes(rng.randrange(limit + 1)) for _ in range(150)]
    pool += [b"stem" * 9 + rng.randbytes(2) for _ in range(200)]
    following = [0] * 6
    for _ in range(5):
        for _ in range(500):
            key = rng.choice(pool)
            if rng.random() < 0.6:
                length = rng.choice([0, 5, 22, 100, 100, page_size // 4, page_size // 4 + 1, 2 * page_size])
                pair.both(lambda twin, key=key, length=length: twin.writer.put(key, bytes(length)))
            else:
                pair.both(lambda twin, key=key: twin.writer.delete(key))
        for number in range(200):
            pair.both(lambda twin, number=number: twin.writer.put(b"\xff%06d" % number, bytes(page_size // 5)))
        for _ in range(400):
            which, value = rng.randrange(6), bytes(rng.choice([10, page_size // 30]))
            following[which] += 1
            at = following[which] if which < 3 else 10**6 - following[which]
            key = b"%d series, %07d" % (which, at)
            pair.both(lambda twin, key=key, value=value: twin.writer.put(key, value))
        low, high = sorted(rng.sample(pool, 2))
        if rng.random() < 0.5:
            pair.both(lambda twin, low=low, high=high: twin.writer.delete_range(low, high))
        look(pair, rng.choice(pool), low, high)
        pair.commit()
    pair.both(lambda twin: twin.writer.delete_range(None, None))
    pair.commit()


SCRIPT = """
import random, sys, time, secrets
time.time_ns = lambda: 1_700_000_000_000_000_000
secrets.token_bytes = lambda count: bytes(range(count))
import cowdb
from cowdb import kernel
from cowdb.database import open_on
from cowdb.testing import MemoryDisk
rng = random.Random(sys.argv[1])
disk = MemoryDisk()
with open_on(disk, "/db", page_size=4096) as db:
    for _ in range(25):
        with db.write(durability=rng.choice(["full", "lazy"])) as txn:
            trees = [txn, txn.tree("a", create=True), txn.tree("b" * 50, create=True)]
            for _ in range(rng.choice([1, 5, 200])):
                tree = rng.choice(trees)
                key = b"%05d" % rng.randrange(3000)
                what = rng.random()
                if what < 0.6:
                    tree[key] = bytes(rng.choice([0, 10, 100, 900, 5000]))
                elif what < 0.9:
                    tree.delete(key)
                elif what < 0.92:
                    tree.delete_range(key, key + b"9")
                else:
                    tree.update((b"%05d" % number, key) for number in range(rng.randrange(3000), 3000, 7))
    findings = db.check()
    stats = db.stats()
sys.stdout.write(f"{kernel.FORM}\\n{findings}\\n{stats}\\n")
sys.stdout.flush()
storage = disk.open("/db", read_only=True)
sys.stdout.buffer.write(storage.read(0, storage.size()))
"""


@pytest.mark.untraced
@pytest.mark.parametrize("seed", range(2))
def test_whole_databases_are_equal_to_the_byte(seed):
    found = []
    for form, pure in (("plain", "1"), ("compiled", "0")):
        environment = {**os.environ, "COWDB_PURE": pure, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        run = subprocess.run(
            [sys.executable, "-c", SCRIPT, str(seed)], capture_output=True, env=environment, check=False
        )
        assert not run.returncode, run.stderr.decode()
        name, findings, rest = run.stdout.split(b"\n", 2)
        assert name == form.encode()
        assert findings == b"[]"
        found.append(rest)
    assert found[0] == found[1], "counters and file are equal"


# ---------------------------------------------------------------- damage


@pytest.mark.untraced
@pytest.mark.parametrize("seed", range(40))
def test_damaged_and_forged_pages_give_values_or_typed_errors_in_both_forms(seed):
    """Bytes are changed, and half of the time the checksums above them are made to fit (I3, I10)."""
    rng = random.Random(seed)
    base = Twin(PLAIN)
    base.writer.update([(b"key%05d" % number, b"v" * (number % 70)) for number in range(900)])
    base.writer.update([(b"large%d" % number, bytes(3000)) for number in range(9)])
    base.writer.update(far_items(20))
    base.commit()
    for _ in range(12):
        image = bytearray(base.image)
        number = rng.randrange(2, len(image) // 4096)
        start = number * 4096
        for _ in range(rng.choice([1, 1, 2, 8])):
            place = rng.choice([rng.randrange(4, 48), rng.randrange(4, 4096), rng.randrange(32, 200)])
            image[start + place] = rng.choice([0, 1, 255, rng.randrange(256)])
        if rng.random() < 0.5:
            image[start : start + 4] = crc32c(bytes(image[start + 4 : start + 4096])).to_bytes(4, "little")
        for form in FORMS.values():
            for verify in (True, False):
                use(form, bytes(image), base.descriptor, rng, verify)


def use(form, image, descriptor, rng, verify):
    """Do everything to a damaged tree; only errors of ours may come of it."""

    def allowed(call):
        try:
            return call()
        except Error:
            return None

    probes = [b"key%05d" % rng.randrange(1000), b"large3", far_items(20)[7][0], b"", b"\xff"]
    reader = form.Reader(form.Space(image, 4096, verify=verify), descriptor)
    for probe in probes:
        for call in (reader.get, reader.rank, reader.floor, reader.ceiling, reader.__contains__):
            allowed(lambda call=call, probe=probe: call(probe))
    for at in range(0, 900, 100):
        allowed(lambda at=at: reader.select(at))
    for reverse in (False, True):
        allowed(lambda reverse=reverse: list(form.scan(reader, 2, None, None, reverse=reverse)))
        allowed(lambda reverse=reverse: list(form.scan(reader, 2, b"key00300", b"large5", reverse=reverse)))
    changes = form.Changes(2, 1 << 40, lambda: None)
    tree_ = form.Writer(form.Space(image, 4096, verify=verify), descriptor, changes)
    for probe in probes:
        allowed(lambda probe=probe: tree_.delete(probe))
        allowed(lambda probe=probe: tree_.put(probe, bytes(rng.choice([3, 500, 2000]))))
    allowed(lambda: tree_.delete_range(b"key00200", b"key00700"))
    allowed(lambda: list(form.scan(tree_, 2, None, None)))
    counted = allowed(tree_.dirty_pages)
    if counted is not None:
        pages, runs = counted
        places = {}
        for at, length in enumerate(runs):
            places.setdefault(length, []).append(9000 + 1000 * at)
        allowed(lambda: tree_.seal(iter(range(100, 100 + pages)), lambda length: places[length].pop(), Sealed()))
    allowed(lambda: tree_.delete_range(None, None))


# ---------------------------------------------------------------- the compiled form alone


@pytest.mark.parametrize("length", [0, 1, 3, 4, 7, 8, 9, 63, 1000, 4079, 4080, 4081, 8156, 8188, 8192, 30_000])
def test_the_checksum(length):
    data = random.Random(length).randbytes(length)
    for value in (0, 1, 0xFFFFFFFF, 0x12345678):
        assert native.crc32c(data, value) == crc32c(data, value)
        assert native.crc32c(data, value, portable=True) == crc32c(data, value)
    assert native.crc32c(memoryview(data)[length // 3 :]) == crc32c(data[length // 3 :])


def test_a_buffer_stays_as_long_as_it_is_looked_at():
    image = bytearray(3 * 4096)
    looked = native.Space(image, 4096)
    with pytest.raises(BufferError):
        image.append(0)
    del looked
    image.append(0)


def test_the_memory_of_a_dirty_page_is_not_used_again_while_anybody_looks_at_it():
    twin = Twin(native)
    frames = twin.space.frames
    twin.writer.update([(b"%05d" % number, b"v" * 50) for number in range(1000)])
    assert frames.out == twin.writer.leaf_pages + twin.writer.branch_pages
    looked = twin.writer.page.data
    pages = Sealed()
    twin.writer.dirty_pages()
    twin.writer.seal(iter(range(2, 1000)), None, pages)
    sealed = [(frame, bytes(frame)) for frame in pages.parts]
    del pages
    before = bytes(looked)
    twin.writer.close()
    twin.writer = native.Writer(twin.space, fmt.EMPTY_TREE, twin.changes)
    twin.writer.update([(b"%05d" % number, b"w" * 60) for number in range(2000)])
    assert bytes(looked) == before
    assert all(bytes(frame) == raw and len(frame) == 4096 for frame, raw in sealed)
    sealed.clear()
    twin.writer = None
    assert frames.out == 1
    looked.release()
    assert frames.out == 0


def test_memory_of_dirty_pages_is_used_again_and_given_back_by_and_by():
    space_ = native.Space(bytes(8192), 4096)
    frames = space_.frames

    def transaction(pages):
        writer_ = native.Writer(space_, fmt.EMPTY_TREE, native.Changes(1, 1 << 40, None))
        writer_.changes.early = 1 << 40
        writer_.update([(b"%07d" % number, bytes(900)) for number in range(4 * pages)])  # of which a page holds four
        held = frames.held
        assert pages <= frames.out < 1.3 * pages + 3
        assert frames.out * 4096 <= held < frames.out * 4096 + (4 << 20)
        del writer_
        assert frames.out == 0
        return held

    assert frames.held == 0
    assert transaction(1) == 64 << 10
    most = transaction(5000)
    assert frames.held == most
    assert transaction(5000) == most
    space_ = native.Space(bytes(8192 + 4096), 4096, before=space_)
    assert space_.frames is frames
    assert native.Space(bytes(8192), 8192, before=space_).frames is not frames
    writer_ = native.Writer(space_, fmt.EMPTY_TREE, native.Changes(1, 1 << 40, None))
    sizes = []
    for _ in range(30):
        writer_.put(b"k", b"v")
        writer_.delete(b"k")
        sizes.append(frames.held)
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] < most
    assert sizes[-1] == 64 << 10


def test_a_page_of_used_memory_holds_nothing_of_what_stood_there_before():
    twin = Twin(native)
    twin.writer.update([(b"%05d" % number, b"secret" * 20) for number in range(500)])
    twin.writer.delete_range(None, None)
    twin.writer.put(b"key", b"value")
    twin.writer.put(b"kez", b"value")
    assert b"secret" not in bytes(twin.writer.page.data)


@pytest.mark.parametrize("size", [-1, 0, 31, 65537, 1 << 40])
def test_no_page_is_made_of_a_size_that_none_has(size):
    with pytest.raises((ValueError, OverflowError)):
        native.Page.build_leaf([], size)


# ---------------------------------------------------------------- free list and meta page

FREE_STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.integers(2, 300), st.integers(1, 6), st.integers(0, 10)),
        st.tuples(
            st.just("release"),
            st.lists(st.tuples(st.integers(2, 300), st.integers(1, 3), st.integers(0, 12)), max_size=9),
        ),
        st.tuples(st.just("many"), st.integers(400, 900), st.integers(2, 3)),
        st.tuples(st.sampled_from(["take", "tail", "spill"]), st.integers(0, 60)),
        st.tuples(st.just("run"), st.integers(1, 60)),  # no value has no pages
        st.tuples(st.just("read")),
        st.tuples(st.just("end"), st.integers(0, 5)),
    ),
    max_size=50,
)


@given(FREE_STEPS)
def test_the_free_lists_do_the_same(steps):
    with contextlib.suppress(CorruptionError):  # a page twice: nobody goes on with such a list
        run_free_lists(steps)


def run_free_lists(steps):
    lists, live, now = [freelist.FreeList(), native.FreeList()], [], 12

    def both(call):
        found = []
        for free in lists:
            try:
                found.append(call(free))
            except CorruptionError:
                found.append("twice")
        assert found[0] == found[1]
        if found[0] == "twice":
            raise CorruptionError(-1, "twice")

    for what, *arguments in steps:
        now += 1
        if what == "add":
            start, length, age = arguments
            both(lambda free: free.add((start, length, now - age, now), live))  # noqa: B023 - called at once
        elif what == "release":
            both(lambda free: free.release(list(arguments[0]), now, live))  # noqa: B023
        elif what == "many":
            first, step = arguments
            for start in range(first, first + 60 * step, step):
                both(lambda free: free.add((start, 1, 0, 0), live))  # noqa: B023
        elif what == "read":
            live = sorted({*live, now})
        elif what == "end":
            if live:
                live = [reader for place, reader in enumerate(live) if place != arguments[0] % len(live)]
            both(lambda free: free.settle(live))  # noqa: B023
        elif what == "tail":
            ends = [run[0] + run[1] for run in lists[0].runs()]
            both(lambda free: free.take_tail(max(ends, default=5) + arguments[0] // 50))  # noqa: B023
        else:
            call = {"take": "take", "run": "take_run", "spill": "spill"}[what]
            both(lambda free: getattr(free, call)(arguments[0]))  # noqa: B023
        both(lambda free: (len(free), free.ready_pages, free.held_pages, free.held_runs, free.blockers()))
        assert lists[0].runs() == lists[1].runs()


def test_the_free_lists_are_the_same_when_they_are_long():
    lists = [freelist.FreeList(), native.FreeList()]
    rng = random.Random(4)
    starts = rng.sample(range(2, 1_000_000, 3), 5000)
    for free in lists:
        for start in starts:
            free.add((start, 1 + start % 2, 0, 0), [])
    for _ in range(300):
        what, size = rng.choice(["take", "take_run"]), rng.randrange(1, 4)
        assert getattr(lists[0], what)(size) == getattr(lists[1], what)(size)
    assert lists[0].runs() == lists[1].runs() == fmt.unpack_runs(lists[0].carry())
    assert lists[0].carry() == lists[1].carry()
    assert lists[0].spill(100) == lists[1].spill(100)
    assert lists[0].runs() == lists[1].runs()


@pytest.mark.parametrize("page_size", fmt.PAGE_SIZES)
def test_the_meta_pages_are_the_same(page_size):
    rng = random.Random(page_size)
    for carried in (0, 1, fmt.carry_capacity(page_size)):
        words = [rng.randrange(1 << 48) for _ in range(20)]
        trees = [
            fmt.Descriptor(fmt.Reference(*words[at : at + 3], words[at] & 0xFFFFFFFF), 3, *words[at + 1 : at + 4])
            for at in (0, 4, 8)
        ]
        carry = rng.randbytes(carried * fmt.CARRIED_RUN.size)
        state = meta.Meta(page_size, rng.randbytes(16), *words[:3], 1 << 63, *trees, carry, words[5])
        assert native.encode(state, 1) == meta.encode(state, 1)
    for encode in native.encode, meta.encode:
        with pytest.raises(ValueError, match="do not fit"):
            encode(state._replace(carry=carry * 2), 0)
    with pytest.raises(ValueError, match="bytes where 16 belong"):
        native.encode(state._replace(database_id=b"short"), 0)
    with pytest.raises(OverflowError):
        native.encode(state._replace(durable=-1), 0)
    for field, value in (("number", 1 << 48), ("birth", 1 << 48), ("checksum", 1 << 32), ("count", -1)):
        tree = state.main._replace(root=state.main.root._replace(**{field: value}))
        with pytest.raises(OverflowError):
            native.encode(state._replace(main=tree), 0)


def sharing_of(form, path, made=None, **options):
    """One user of the file, in that form."""
    kind = native.FileSharing if form == "compiled" else sharing.FileSharing
    state = meta.Meta(4096, bytes(16), 5, 5, 9, 0, *[fmt.EMPTY_TREE] * 3, b"")
    return kind(str(path), read_only=False, mode=0o600, timeout=0.1, make=lambda: made or state, **options)


@pytest.fixture
def shared(tmp_path):
    """Two users of a file, the second one of the compiled form; let go at the end."""
    (tmp_path / "f").write_bytes(b"")
    users = [sharing_of(form, tmp_path / "f") for form in ("plain", "compiled")]
    yield users
    for user in users:
        user.let_go()


def test_shared_words_are_the_same_to_both_forms(shared):
    plain, compiled = shared
    for value in ((7, 0), (8, 1), (fmt.MAX_U48, 1), None):
        compiled.durable = value
        assert plain.durable == compiled.durable == value
        plain.durable = value
        assert compiled.durable == value
    for value in (True, False, 1, 0):
        compiled.busy = value
        assert plain.busy is compiled.busy is bool(value)
    assert plain.published == compiled.published == 5 << 1 | plain.published & 1
    pin = plain.pin(3, 4)
    assert [found.transaction for found in compiled.others()] == [3]
    plain.unpin(pin)
    assert compiled.others() == []
    for wrong in (5, "ab", (1,), (-1, 0), (1 << 70, 1)):
        with pytest.raises((TypeError, ValueError, OverflowError, IndexError)):
            compiled.durable = wrong


def test_the_turn_of_one_form_keeps_the_other_out(shared):
    for one, other in (shared, shared[::-1]):
        one.lock_writer(None)
        assert other.words.writer == os.getpid()
        assert not other._locks.try_lock(bytelocks.WRITER, count=2)
        with pytest.raises(LockTimeoutError, match="writer lock"):
            other.lock_writer(0.05)
        assert not one.contended()
        one.unlock_writer()
        one.unlock_writer()  # harmless when repeated
        assert other.words.writer == 0
        other.lock_writer(0.05)
        assert one.words.writer == os.getpid()
        other.unlock_writer()
    other.words.waiting = True  # somebody is said to wait, who has died
    one.lock_writer(1.0)
    assert not one.words.waiting
    one.unlock_writer()


def test_words_that_are_no_plain_memory_are_left_to_the_plain_form(shared, monkeypatch):
    plain, compiled = shared
    plain.durable = (9, 1)

    class Words:
        """Memory that notices who looks."""

        def __init__(self, words):
            self.words, self.looks = words, 0

        def __getitem__(self, place):
            self.looks += 1
            return self.words[place]

        def __setitem__(self, place, value):
            self.words[place] = value

    watched = Words(compiled.words._words)
    monkeypatch.setattr(compiled.words, "_words", watched)
    assert compiled.durable == (9, 1)
    assert not compiled.contended()
    compiled.busy = True
    assert watched.looks >= 2
    assert plain.busy


def test_shared_words_that_were_let_go_are_not_looked_at_through_old_pointers(shared):
    _, compiled = shared
    compiled.durable = (9, 1)
    compiled.let_go()
    assert compiled.durable == (9, 1), "a copy is kept"
    compiled.durable = (10, 0)
    assert compiled.durable == (10, 0)
    compiled.words.unmap()
    with pytest.raises(IndexError):
        compiled.durable  # noqa: B018 - it looks


def test_record_locks_are_left_to_the_plain_form(tmp_path):
    (tmp_path / "g").write_bytes(b"")
    user = sharing_of("compiled", tmp_path / "g", locks_type=bytelocks.RecordLocks)
    user.lock_writer(None)
    assert user.words.writer == os.getpid()
    user.unlock_writer()
    user.let_go()


def sources():
    """The kernel's parts, as Python reads them."""
    for part in sorted((File(kernel.__file__).parent.parent / "native").glob("*.py")):
        yield part.name, ast.parse(part.read_text(encoding="utf-8"))


def test_no_list_is_made_by_a_comprehension():
    """Cython 3.3 lets go of an item twice when memory fails there, and whoever else has it then has freed memory."""
    wrong = []
    for name, source in sources():
        for node in ast.walk(source):
            starred = isinstance(node, ast.List) and any(isinstance(element, ast.Starred) for element in node.elts)
            if starred or isinstance(node, ast.ListComp):
                wrong.append(f"{name}:{node.lineno}")
    assert not wrong


NO_MEMORY = """
import _testcapi, sys
from cowdb._kernel import FreeList
for question in "carry", "runs", "spill":
    for start in range(1, 3000):
        free = FreeList()
        free.release([(10 * i, 1 + i % 3, 1 + i % 19) for i in range(1, 120)], 20, [5, 9, 14])
        before = sorted(free.runs()), len(free), free.held_runs, free.held_pages, free.blockers()
        call = getattr(free, question)
        arguments = (20,) if question == "spill" else ()
        failed = True
        _testcapi.set_nomemory(start, start + 1)
        try:
            call(*arguments)
            failed = False
        except MemoryError:
            pass
        finally:
            _testcapi.remove_mem_hooks()
        if not failed:
            break
        after = sorted(free.runs()), len(free), free.held_runs, free.held_pages, free.blockers()
        assert after == before, (question, start)
    else:
        raise AssertionError(question)
    assert start > 1, "something failed"
print("sound")
"""


@pytest.mark.skipif(native.FREE_THREADED, reason="CPython 3.13 itself frees twice what it finds no memory for there")
def test_a_free_list_that_finds_no_memory_is_as_it_was():
    pytest.importorskip("_testcapi")
    done = subprocess.run([sys.executable, "-c", NO_MEMORY], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr, done.returncode) == ("sound\n", "", 0)


def test_a_sealed_descriptor_is_as_good_as_one_that_its_class_has_made():
    twin = Twin(native)
    twin.writer.update([(b"%d" % number, b"v") for number in range(500)])
    twin.commit()
    found = twin.descriptor
    assert type(found) is fmt.Descriptor
    assert type(found.root) is fmt.Reference
    made = fmt.Descriptor(fmt.Reference(*found.root), *found[1:])
    assert found == made
    assert hash(found) == hash(made)
    assert {made: 1}[found] == 1


def test_the_garbage_collector_lets_no_buffer_go_before_its_time(capfd):
    for _ in range(3):
        twin = Twin(native)
        twin.writer.update([(b"%05d" % number, b"v" * 50) for number in range(2000)])
        twin.commit()
        twin.writer.put(b"00700", b"w")
        found = native.Path(twin.writer)
        found.seek(b"01000")
        items = native.scan(twin.writer, 2, None, None)
        next(items)
        cycle = [twin, twin.writer.page, found, items, found.leaf, twin.space]
        cycle.append(cycle)
        twin.changes.spill = cycle
        del cycle, twin, found, items
        gc.collect()
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("cls", [native.Reader, native.Writer])
def test_what_was_made_without_its_constructor_refuses(cls):
    bare = cls.__new__(cls)
    calls = [
        lambda: bare.get(b"a"),
        lambda: bare[b"a"],
        lambda: b"a" in bare,
        lambda: len(bare),
        lambda: bare.rank(b"a"),
        lambda: bare.edge(last=True),
        lambda: native.scan(bare, 2, None, None),
    ]
    if cls is native.Writer:
        calls += [
            lambda: bare.put(b"a", b"b"),
            lambda: bare.put(b"a" * 5000, b"b"),
            lambda: bare.update([(b"a", b"b")]),
            lambda: bare.delete(b"a"),
            lambda: bare.delete_range(None, None),
        ]
    for call in calls:
        with pytest.raises(ClosedError):
            call()


@pytest.mark.parametrize("end", ["close", "fork"])
@pytest.mark.parametrize("kind", ["reader", "writer"])
def test_an_ended_transaction_is_not_looked_into(kind, end):
    twin = Twin(native)
    twin.writer.update([(b"%03d" % number, b"v" * 50) for number in range(500)])
    twin.commit()
    looked = getattr(twin, kind)
    items = native.scan(looked, 2, None, None)
    next(items)
    found = native.Path(looked)
    found.seek(b"400")
    if end == "close":
        looked.close()
    else:
        looked.space = FORKED
        assert looked.space is FORKED
    for call in (lambda: next(items), lambda: looked.get(b"1"), found.previous_leaf, lambda: len(looked)):
        with pytest.raises(Error):
            call()
    with pytest.raises(StopIteration):
        next(items)


@pytest.mark.parametrize("wrong", [None, 5, "text", 1.5, [], object()])
def test_wrong_types(wrong):
    pair = Pair()
    pair.both(lambda twin: twin.writer.put(b"a", b"b"))
    for call in (
        lambda twin: twin.writer.put(wrong, b"v"),
        lambda twin: twin.writer.put(b"k", wrong),
        lambda twin: twin.writer.put(bytes(5000), wrong),
        lambda twin: twin.writer.delete(wrong),
        lambda twin: twin.writer.get(wrong),
        lambda twin: twin.writer.get(wrong, 3),
        lambda twin: wrong in twin.writer,
    ):
        pair.both(call)
    for call in (
        lambda: native.Writer(Twin(native).space, fmt.EMPTY_TREE, wrong),
        lambda: native.Reader(wrong, fmt.EMPTY_TREE) if wrong is not None else native.Space(wrong, 4096),
        lambda: native.scan(wrong, 2, None, None),
        lambda: native.Path(wrong),
        lambda: native.Page(wrong, wrong, 0),
    ):
        with pytest.raises(TypeError):
            call()


def test_pages_refuse_what_is_outside_of_them():
    leaf = native.Page.build_leaf([(b"a", 1, b"x"), (b"b", 1, b"y")], 4096)
    for index in (-1, 2, 1 << 40):
        for call in (leaf.key, leaf.payload, leaf.reference, leaf.child_count, leaf.remove):
            with pytest.raises((IndexError, OverflowError)):
                call(index)
        with pytest.raises((IndexError, OverflowError)):
            leaf.set_payload(index, b"z")
        with pytest.raises((IndexError, OverflowError)):
            leaf.replace(index, 1, b"z")
    with pytest.raises(CorruptionError):
        leaf.set_payload(1, bytes(5000))
    with pytest.raises(ValueError, match="as long"):
        leaf.replace(0, 1, b"xyz")
    for number, birth in ((1 << 48, 1), (2, 1 << 48)):
        with pytest.raises(OverflowError):
            leaf.seal(number, birth)
    leaf.seal(2, 2)
    raw = bytes(leaf.data)
    for at in (-1, 4096, 4080):
        with pytest.raises(ValueError, match="no page"):
            native.Page(raw, None, at)
    clean = native.Page(raw, None, 0)
    for call in (lambda: clean.remove(0), lambda: clean.insert(0, b"", 0, b""), lambda: clean.seal(3, 3)):
        with pytest.raises(TypeError, match="clean"):
            call()
    assert bytes(leaf.data) == raw


def test_a_mapping_of_looking_up():
    twin = Twin(native)
    twin.writer[b"a"] = b"b"
    assert twin.writer[b"a"] == twin.writer[bytearray(b"a")] == b"b"
    with pytest.raises(KeyNotFoundError):
        twin.writer[b"c"]
    with pytest.raises(KeyNotFoundError):
        twin.writer[5]
    with pytest.raises(TypeError):
        twin.writer["a"]
    with pytest.raises(ValueError, match="step"):
        twin.writer[b"a":b"b":b"c"]
    with pytest.raises(KeySizeError):
        twin.writer[bytes(LIMIT + 1)] = b""
    del twin.writer[b"a"]
    with pytest.raises(KeyNotFoundError):
        del twin.writer[b"a"]


@pytest.mark.parametrize(("pure", "form"), [("1", "plain"), ("0", "compiled"), ("", "compiled")])
def test_the_form_is_chosen_at_import(pure, form):
    environment = {**os.environ, "COWDB_PURE": pure, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    code = "from cowdb import kernel; print(kernel.FORM, bool(kernel.REASON))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert run.stdout.split() == [form, str(form == "plain")]
