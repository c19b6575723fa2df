"""Reading a tree: one key, and order statistics, in clean and dirty trees; damage gives typed errors everywhere."""

from __future__ import annotations

import random

import handmade
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kernel import Kernel, audit, far_items, met, numbered
from sortedcontainers import SortedDict

import cowdb
from cowdb import cursor as plain_cursor
from cowdb import format as fmt
from cowdb import space as plain_space
from cowdb import tree as plain
from cowdb.checksum import crc32c
from cowdb.database import open_on
from cowdb.errors import ClosedError, CorruptionError
from cowdb.kernel import FORM
from cowdb.testing import MemoryDisk
from cowdb.tree import as_key, lookup_key

SIZES = pytest.mark.parametrize("size", fmt.PAGE_SIZES)


def content(style):
    rng = random.Random(6)
    if style == "numbered":
        return numbered(3000)
    if style == "far":
        return far_items(80)
    if style == "odd":
        stems = [b"", b"\0", b"\0\0\0\0\0", b"\xff\xff\xff\xff\xff", b"same head and more", b"same head, other"]
        odd = {rng.choice(stems) + rng.randbytes(rng.randint(0, 3)): rng.randbytes(30) for _ in range(900)}
        return sorted(odd.items())
    return [(b"", b"the empty key")]


def trees(size, style):
    """The same entries as a clean tree, as a dirty one, and as one of which a part is dirty."""
    model = SortedDict(content(style))
    kernel = Kernel(size)
    kernel.put(model.items())
    dirty = Kernel(size).writer()
    dirty.update(model.items())
    mixed = kernel.writer()
    for key in list(model)[:: max(1, len(model) // 3)]:
        mixed.put(key, model[key])
    return model, [kernel.reader(), dirty, mixed]


@SIZES
@pytest.mark.parametrize("style", ["numbered", "far", "odd", "empty key"])
def test_every_question_in_clean_and_dirty_trees(size, style):
    model, all_trees = trees(size, style)
    keys = list(model)
    rng = random.Random(size)
    probes = [rng.choice(keys) for _ in range(40)]
    probes += [key + b"\0" for key in probes] + [key[:-1] for key in probes] + [b"", b"\0", b"\xff" * 40, b"same"]
    for tree in all_trees:
        assert len(tree) == len(model)
        assert audit(tree) == list(model.items())
        for probe in probes:
            assert tree.get(probe) == model.get(probe)
            assert (probe in tree) == (probe in model)
            rank = model.bisect_left(probe)
            assert tree.rank(probe) == rank
            assert tree.ceiling(probe) == (model.peekitem(rank) if rank < len(model) else None)
            after = model.bisect_right(probe)
            assert tree.floor(probe) == (model.peekitem(after - 1) if after else None)
        for rank in {0, len(model) - 1, *rng.sample(range(len(model)), min(40, len(model)))}:
            assert tree.select(rank) == model.peekitem(rank)
        for rank in (-1, len(model)):
            with pytest.raises(IndexError):
                tree.select(rank)
        assert tree.edge(last=False) == model.peekitem(0)
        assert tree.edge(last=True) == model.peekitem(-1)


def test_an_empty_tree():
    for tree in (Kernel().reader(), Kernel().writer()):
        assert len(tree) == 0
        assert tree.get(b"a") is None
        assert tree.get(b"a", 5) == 5
        assert b"a" not in tree
        assert tree.rank(b"a") == 0
        assert tree.ceiling(b"") is tree.floor(b"\xff") is None
        assert tree.edge(last=True) is tree.edge(last=False) is None
        with pytest.raises(IndexError):
            tree.select(0)


def test_a_lookup_looks_at_one_path():
    kernel = Kernel()
    kernel.put(numbered(3000, 500))
    reader = kernel.reader()
    assert reader.depth == 3
    reader.rank(b"key00001234")
    assert met(reader) == [2, 1, 0]
    reader = kernel.reader()
    assert len(reader) == 3000
    assert met(reader) == []


@given(st.data())
def test_get_with_a_prefix_that_the_page_does_not_share(data):
    stem = data.draw(st.binary(min_size=9, max_size=12))
    kernel = Kernel()
    kernel.put([(stem + b"%04d" % number, b"v" * 30) for number in range(300)])
    reader = kernel.reader()
    cut = data.draw(st.integers(0, len(stem)))
    probe = stem[:cut] + data.draw(st.binary(max_size=6))
    held = probe[: len(stem)] == stem and probe[len(stem) :] in {b"%04d" % number for number in range(300)}
    assert (probe in reader) == held
    assert (reader.get(probe) is not None) == held


# ---------------------------------------------------------------- types


@pytest.mark.parametrize("wrong", [None, 5, 1.5, object, [1], (b"a",), {b"a"}])
def test_wrong_types(wrong):
    with pytest.raises(TypeError, match=f"bytes-like, not {type(wrong).__name__}$"):
        as_key(wrong)
    assert lookup_key(wrong) is None
    kernel = Kernel()
    kernel.put(numbered(3))
    assert wrong not in kernel.reader()
    assert kernel.reader().get(wrong, 7) == 7


def test_str_says_to_encode():
    kernel = Kernel()
    kernel.put(numbered(3))
    for call in (as_key, lookup_key, kernel.reader().get, kernel.reader().__contains__):
        with pytest.raises(TypeError, match="encode"):
            call("key")


class Text(bytes):
    """A kind of bytes."""

    __slots__ = ()


def test_everything_with_a_buffer_is_a_key():
    kernel = Kernel()
    kernel.put([(b"abcd", b"v")])
    reader = kernel.reader()
    for key in (bytearray(b"abcd"), memoryview(b"abcd"), memoryview(b"xabcdx")[1:5], Text(b"abcd")):
        assert reader.get(key) == b"v"
        assert key in reader
        assert type(as_key(key)) is bytes
    assert as_key(memoryview(b"a.b.c.d.")[::2]) == b"abcd"
    assert as_key(memoryview(bytes(8)).cast("Q")) == bytes(8)


# ---------------------------------------------------------------- endings


@pytest.mark.parametrize("items", [[], numbered(5)], ids=["empty", "full"])
def test_a_closed_reader_refuses(items):
    kernel = Kernel()
    kernel.put(items)
    reader = kernel.reader()
    reader.close()
    reader.close()
    for call in (
        lambda: len(reader),
        lambda: reader.get(b"a"),
        lambda: b"a" in reader,
        lambda: reader.rank(b"a"),
        lambda: reader.floor(b"a"),
        lambda: reader.ceiling(b"a"),
        lambda: reader.edge(last=True),
        lambda: reader.select(0),
        lambda: reader.fetch(bytes(22)),
        reader.open_space,
    ):
        with pytest.raises(ClosedError):
            call()


class Watched:
    """The bytes of a mapping; after every look at them, `then` is called."""

    def __init__(self, data, then):
        self.data = data
        self.then = then

    def __getitem__(self, where):
        found = self.data[where]
        self.then()
        return found


def plain_tree():
    """A clean tree of the plain form, of several leaves with large values among the small ones, all pages met."""
    kernel = Kernel()
    kernel.put([(b"key %03d" % number, b"v" * (5000 if number % 40 == 7 else 20)) for number in range(200)])
    tree = plain.Reader(plain_space.Space(bytes(kernel.image), kernel.page_size), kernel.descriptor)
    assert len(list(plain_cursor.scan(tree, plain_cursor.ITEMS, None, None))) == 200
    return tree


QUESTIONS = {
    "get": lambda tree: tree.get(b"key 100"),
    "get large": lambda tree: tree.get(b"key 047"),
    "get nothing": lambda tree: tree.get(b"key 1000", b"nothing"),
    "find": lambda tree: tree.find(b"key 100"),
    "in": lambda tree: b"key 1000" in tree,
    "rank": lambda tree: tree.rank(b"key 150"),
    "select": lambda tree: tree.select(60),
    "floor": lambda tree: tree.floor(b"key 0071"),
    "ceiling": lambda tree: tree.ceiling(b"key 0071"),
    "edge": lambda tree: tree.edge(last=True),
    "keys": lambda tree: list(plain_cursor.scan(tree, plain_cursor.KEYS, b"key 190", None)),
    "values": lambda tree: list(plain_cursor.scan(tree, plain_cursor.VALUES, b"key 040", b"key 050")),
    "items back": lambda tree: list(plain_cursor.scan(tree, plain_cursor.ITEMS, b"key 1", b"key 12", reverse=True)),
    "cursor": lambda tree: cursor_walk(plain_cursor.Cursor(tree)),
}


def cursor_walk(cursor):
    found = []
    cursor.seek(b"key 005")
    for _ in range(4):
        found.append(cursor.item)
        cursor.next()
    cursor.seek_exact(b"key 1000")
    cursor.prev()
    return found, cursor.key


@pytest.mark.parametrize("question", QUESTIONS)
def test_what_is_read_while_another_thread_closes_is_not_believed(question):
    """The story: a thread was inside `get` while another one closed the database.

    The snapshot was let go, a third process used its pages again, and the first thread gave out what lay there then.
    (The compiled form keeps other threads out during a call.)
    """
    ask = QUESTIONS[question]
    answer = ask(plain_tree())
    looks = 0
    while True:
        tree = plain_tree()
        space = tree.open_space()
        left = looks

        def then(tree=tree):
            nonlocal left
            if not left:
                tree.close()
            left -= 1

        space.data = Watched(space.data, then)
        if ask_and_tell(ask, tree) == answer:
            break
        looks += 1
    assert left >= 0, "an answer came although the tree was closed meanwhile"
    assert looks >= 2


def ask_and_tell(ask, tree):
    try:
        return ask(tree)
    except ClosedError as error:
        return error


# ---------------------------------------------------------------- damage


def big_file():
    """A file of three levels, with overflow values, a named tree and a free tree, whose pages nothing verifies yet."""
    rng = random.Random(1)
    file = handmade.Handmade(4096)
    items = [(b"k%05d" % number, b"v" * rng.randint(0, 60)) for number in range(0, 2400, 2)]
    items += [(b"o%03d" % number, bytes([number]) * (1500 + number * 700)) for number in range(6)]
    items += far_items(30)
    named = {"users": file.tree([(b"q%04d" % number, b"w" * (number % 9)) for number in range(300)], 1)}
    named["large"] = file.tree([(b"z%d" % number, b"w" * 3000) for number in range(3)], 1)
    named["none"] = file.tree([], 1)
    file.commit(0)
    file.skip(5)
    file.commit(1, durable=1, main=file.tree(items, 1), named=named, free_tree=True)
    return file


BIG = big_file()
KEYS = [b"", b"k00001", b"k00002", b"k01500", b"o003", b"020" + b"x" * 930 + b"1", b"zzz", b"q0100", b"k"]


def reading(tree):
    """Calls that look at all of a tree, from every side."""
    cursor = tree.cursor()
    yield lambda: len(tree)
    yield lambda: list(tree.items())
    yield lambda: list(tree.items(reverse=True))
    yield lambda: list(tree.keys(b"k01", b"o002"))
    yield lambda: list(tree.values(b"k01", reverse=True))
    yield lambda: [tree.peekitem(len(tree) * at // 7) for at in range(7) if len(tree)]
    yield cursor.last
    yield lambda: [cursor.prev() for _ in range(200)]
    for key in KEYS:
        yield lambda key=key: tree.get(key)
        yield lambda key=key: key in tree
        yield lambda key=key: tree.floor(key)
        yield lambda key=key: tree.ceiling(key)
        yield lambda key=key: tree.bisect_left(key)
        yield lambda key=key: tree.get_view(key)
        yield lambda key=key: cursor.seek(key)
        yield lambda: [cursor.next() for _ in range(80)]
        yield lambda: cursor.item


def changing(rng, txn, names):
    """One random change of a random tree."""
    tree = txn.tree(rng.choice(names)) if names and rng.random() < 0.4 else txn
    key = rng.choice(KEYS) if rng.random() < 0.3 else rng.choice([b"k%05d", b"q%04d"]) % rng.randrange(2400)
    what = rng.random()
    if what < 0.4:
        tree.put(key, b"n" * rng.choice([0, 5, 500, 5000]))
    elif what < 0.7:
        tree.delete(key)
    elif what < 0.85:
        tree.delete_range(min(key, KEYS[3]), max(key, KEYS[3]))
    elif what < 0.9:
        tree.clear()
    elif what < 0.95 and names:
        txn.drop(rng.choice(names))
    else:
        cursor = tree.cursor()
        cursor.seek(key)
        cursor.delete()
        cursor.next()


def allowed(call):
    """The result of `call`, or None if it raised an error of ours. Any other error fails the test."""
    try:
        return call()
    except cowdb.Error:
        return None


def use(image, rng):
    """Open a file and do everything to it: nothing but values and typed errors may come of it."""
    disk = MemoryDisk({"/db": image})
    options = {"memory_budget": 30000} if rng.random() < 0.3 else {}
    db = allowed(lambda: open_on(disk, "/db", durability=rng.choice(["full", "lazy"]), **options))
    if db is None:
        return
    with db.read() as snapshot:
        names = [name for name in allowed(snapshot.trees) or [] if name][:5]
        for tree in [snapshot, *(allowed(lambda name=name: snapshot.tree(name)) for name in names)]:
            if tree is not None:
                for call in reading(tree):
                    allowed(call)
    for _ in range(4):
        txn = allowed(db.write)
        if txn is None:
            break
        for _ in range(rng.choice([1, 3, 12])):
            allowed(lambda txn=txn: changing(rng, txn, names))
        allowed(lambda txn=txn: list(txn.items()))
        allowed(rng.choice([txn.commit, txn.commit, txn.abort]))
        txn.abort()
    allowed(db.stats)
    allowed(db.info)
    allowed(db.check)
    allowed(db.close)
    assert len(disk.content("/db")) < 40 * len(image), "no forged number makes the file huge"


@pytest.mark.untraced
@pytest.mark.parametrize("seed", range(30))
def test_flipped_bytes_are_met_as_typed_errors(seed):
    rng = random.Random(seed)
    image = bytearray(BIG.data)
    for _ in range(rng.choice([1, 3, 30])):
        image[rng.randrange(2 * 4096, len(image))] ^= 1 << rng.randrange(8)
    use(bytes(image), rng)


@pytest.mark.untraced
@pytest.mark.parametrize("seed", range(120))
def test_forged_pages_give_forged_values_or_typed_errors(seed):
    """Pages with other bytes and all checksums right again, up to the meta page."""
    rng = random.Random(seed)
    file = handmade.Handmade(4096)
    file.__dict__.update(BIG.__dict__)
    file.data = bytearray(BIG.data)
    for _ in range(rng.choice([1, 1, 2, 4])):
        what = rng.random()
        if what < 0.35:
            offset = rng.choice([4, 5, 6, 7, 8, 16, 24, 25, 26, 27, 28, 29, 30])
            raw = bytes([rng.choice([0, 1, 2, 255, rng.randrange(256)])])
        elif what < 0.75:
            offset = 32 + rng.randrange(400)
            raw = rng.choice([rng.randbytes(rng.choice([1, 2, 8])), b"\xff" * rng.choice([1, 2, 8])])
        else:
            offset = rng.randrange(32, 4000)
            raw = rng.choice([b"\0" * 50, b"\xff" * 50, rng.randbytes(3)])
        file.patch(rng.randrange(2, file.page_count), offset, raw)
    use(bytes(file.data), rng)


def test_every_page_with_a_flipped_byte_is_named_by_the_error():
    kernel = Kernel()
    items = [*numbered(3000, 100), (b"large", b"x" * 9000)]
    kernel.put(items)
    for number in range(2, len(kernel.image) // 4096):
        kernel.image[number * 4096 + 2000] ^= 4
        with pytest.raises(CorruptionError) as caught:
            audit(kernel.reader())
        assert caught.value.page_number in (number, number - 1, number - 2), "or the first page of its run"
        kernel.image[number * 4096 + 2000] ^= 4
    assert audit(kernel.reader()) == sorted(items)


def test_a_level_that_does_not_fit_is_found_in_a_page_that_was_met():
    kernel = Kernel()
    kernel.put(numbered(3000, 100))
    reader = kernel.reader()
    reader.get(b"key00000001")
    reader.depth += 1
    with pytest.raises(CorruptionError, match="level"):
        reader.get(b"key00000001")
    with pytest.raises(CorruptionError, match="level"):
        reader.rank(b"key00000001")
    reader.depth -= 2
    with pytest.raises(CorruptionError, match="not a leaf"):
        reader.get(b"key00000001")


def test_an_entry_of_a_kind_that_is_reserved():
    reader = Kernel().reader()
    for info in (fmt.NESTED << fmt.LENGTH_BITS | 22, 3 << fmt.LENGTH_BITS | 22, fmt.OVERFLOW << fmt.LENGTH_BITS | 21):
        with pytest.raises(CorruptionError, match="kind"):
            reader.value(info, bytes(info & fmt.LENGTH_MASK))


def test_a_count_that_promises_more_than_there_is():
    file = handmade.simple(numbered(400), 4096)
    root = file.pages(handmade.BRANCH, 1)[0]
    _, _, cell, length = file.slot(root, 0)
    file.edit(root, cell + length + 12, "I", lambda count: count + 1000)
    file.commit(2, durable=2, main=file_root(file, root, 1400))
    with open_on(MemoryDisk({"/db": bytes(file.data)}), "/db") as db, db.read() as snapshot:
        assert len(snapshot) == 1400
        with pytest.raises(CorruptionError, match="counts more"):
            snapshot.peekitem(500)
        assert snapshot.peekitem(1399) == numbered(400)[-1], "behind the lie all is well"


def test_a_root_that_counts_more_than_its_children():
    kernel = Kernel()
    kernel.put(numbered(400))
    root = kernel.descriptor.root
    kernel.descriptor = kernel.descriptor._replace(root=root._replace(count=401))
    for tree in (kernel.reader(), kernel.writer()):
        with pytest.raises(CorruptionError, match="counts more"):
            tree.select(400)


def file_root(file, number, count):
    """A descriptor of a tree of two levels whose root is page `number`."""
    raw = file.page(number)
    birth = int.from_bytes(raw[16:24], "little")
    leaves = len(file.pages(handmade.LEAF))
    descriptor = handmade.reference(number, birth, count, int.from_bytes(raw[:4], "little"))
    descriptor += (2).to_bytes(2, "little") + (1).to_bytes(8, "little") + leaves.to_bytes(8, "little") + bytes(24)
    file.pages_of[descriptor] = {number, *file.pages(handmade.LEAF)}
    return descriptor


@pytest.mark.parametrize("number", [3, 1000, fmt.MAX_U48])
def test_a_root_behind_the_end_of_the_file(number):
    kernel = Kernel()
    kernel.put(numbered(3))
    assert len(kernel.image) == 3 * 4096
    kernel.descriptor = kernel.descriptor._replace(root=kernel.descriptor.root._replace(number=number))
    for call in (kernel.reader().get, kernel.reader().rank, kernel.reader().find, kernel.writer().delete):
        with pytest.raises(CorruptionError, match="outside the file of 3 pages"):
            call(b"key00000001")


def test_a_branch_that_is_visited_often_is_still_the_same_branch():
    """The lookup may keep branches unpacked; what it finds must not depend on how often it looked."""
    model = SortedDict(far_items(60, 0) + numbered(900, 30))
    kernel = Kernel()
    kernel.put(model.items())
    reader = kernel.reader()
    for _ in range(12):
        for key in list(model)[::7]:
            assert reader.get(key) == model[key]
            assert reader.get(key + b"\0") is None
    for step in range(5):
        old = reader
        writer = kernel.writer()
        for key in list(model)[step::11]:
            model[key] = b"changed in %d" % step
            writer.put(key, model[key])
            assert writer.get(key) == model[key]
        kernel.seal(writer)
        reader = kernel.reader()
        reader.space.branches.update(old.space.branches)
        for key in list(model)[::5]:
            assert reader.get(key) == model[key]


@pytest.mark.parametrize("style", ["numbered", "far", "odd", "empty key"])
def test_a_leaf_that_is_visited_very_often_is_still_the_same_leaf(style):
    """The lookup may keep leaves unpacked, in the next state too; of those that were written anew it finds the new."""
    model = SortedDict(content(style)[:200])
    kernel = Kernel()
    kernel.put(model.items())
    reader = kernel.reader()
    for step in range(3):
        for _ in range(60):
            for key, value in model.items():
                assert reader.get(key) == value
                assert reader.get(key + b"\0not there") is None
        if FORM == "plain" and style != "far":  # whose keys are long
            assert reader.space.leaves
        writer = kernel.writer()
        for key in list(model)[step::9]:
            model[key] = b"changed in %d" % step
            writer.put(key, model[key])
        kernel.seal(writer)
        old, reader = reader, kernel.reader()
        if FORM == "plain":
            reader.space.leaves.update(old.space.leaves)


@pytest.mark.skipif(FORM == "compiled", reason="the compiled kernel has no need to unpack pages")
def test_leaves_that_are_visited_now_and_then_are_not_unpacked(monkeypatch):
    monkeypatch.setattr(plain, "LATELY", 10)
    kernel = Kernel()
    kernel.put(numbered(3000))
    reader = kernel.reader()
    keys = [key for key, _ in numbered(3000)]
    for _ in range(2):
        for key in keys[::5]:
            reader.get(key)
    assert not reader.space.leaves
    assert 0 < len(reader.space.visits) <= 10
    for _ in range(2000):
        reader.get(keys[7])
    assert len(reader.space.leaves) == 1


def forged_leaf(offset, word):
    """A tree of one leaf, of which eight bytes were changed and sealed again."""
    kernel = Kernel()
    kernel.put([(b"", b"v"), (b"abcde", b"w")])
    root = kernel.descriptor.root
    at = root.number * 4096
    kernel.image[at + offset : at + offset + 8] = word.to_bytes(8, "little")
    checksum = crc32c(bytes(kernel.image[at + 4 : at + 4096]))
    kernel.image[at : at + 4] = checksum.to_bytes(4, "little")
    kernel.descriptor = kernel.descriptor._replace(root=root._replace(checksum=checksum))
    return kernel


@pytest.mark.parametrize("offset", [65535, 4096, 4095, 4094])
def test_a_cell_behind_the_end_of_the_file(offset):
    """An empty key matches anywhere, also where there is nothing to be read."""
    kernel = forged_leaf(32, offset << 16)
    for call in (kernel.reader().get, kernel.reader().find, kernel.reader().floor, kernel.writer().delete):
        with pytest.raises(CorruptionError):
            call(b"")


def test_a_value_that_ends_outside_of_its_leaf():
    """The cell of the empty key are the last three bytes of the page."""
    kernel = forged_leaf(4096 - 8, int.from_bytes(b"bcdew" + b"\xff\x3f" + b"v", "little"))
    with pytest.raises(CorruptionError, match="outside"):
        kernel.reader().get(b"")
    assert kernel.reader().get(b"abcde") == b"w"
