"""Reading a state from beside the engine: the same answers as the engine's, and never a surprise on damaged files."""

from __future__ import annotations

import random

import pytest
from commands import sample
from handmade import Bytes, Handmade, simple
from hypothesis import given, settings
from hypothesis import strategies as st

import cowdb
from cowdb import format as fmt
from cowdb.errors import CorruptionError
from cowdb.inspection import State, slots
from cowdb.pagemap import PageMap

SIZE = 4096


def state_of(data: bytes, number: int | None = None) -> State:
    source = Bytes(data)
    metas = [slot.meta for slot in slots(source) if slot.meta is not None]
    chosen = max(metas, key=lambda meta: meta.transaction) if number is None else metas[number]
    return State(source, chosen)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    path = tmp_path_factory.mktemp("inspection") / "a.cowdb"
    trees = sample(path)
    return path.read_bytes(), trees


def test_the_trees_are_those_of_the_engine(made):
    data, trees = made
    state = state_of(data)
    assert state.names() == sorted(name for name in trees if name is not None)
    assert [tree.name for tree in state.trees()] == [None, *state.names()]
    for name, entries in trees.items():
        tree = state.tree(name)
        assert len(tree) == len(entries)
        assert list(tree.items()) == sorted(entries.items())
        assert list(tree.items(reverse=True)) == sorted(entries.items(), reverse=True)
        assert list(tree.keys()) == sorted(entries)
        assert list(tree.keys(reverse=True)) == sorted(entries, reverse=True)
    assert state.tree("nobody") is None
    assert state.tree("") is None


def test_lookups_are_those_of_a_dictionary(made):
    data, trees = made
    state = state_of(data)
    for name, entries in trees.items():
        tree = state.tree(name)
        order = sorted(entries)
        rng = random.Random(1)
        for key in [*rng.sample(order, min(len(order), 60)), b"", b"k", b"key:0009", b"zzz", b"\xff" * 30]:
            assert tree.get(key) == entries.get(key)
            assert tree.rank(key) == sum(other < key for other in order)
            steps = tree.path(key)
            assert len(steps) == tree.descriptor.depth
            assert [step.level for step in steps] == list(range(len(steps)))[::-1]


@settings(max_examples=60)
@given(
    start=st.none() | st.integers(0, 3100),
    stop=st.none() | st.integers(0, 3100),
    reverse=st.booleans(),
    skip=st.integers(0, 3100),
)
def test_ranges_are_slices(made, start, stop, reverse, skip):
    data, trees = made
    tree = state_of(data).main
    low = None if start is None else b"key:%06d" % start
    high = None if stop is None else b"key:%06d" % stop
    wanted = [key for key in sorted(trees[None]) if (low is None or key >= low) and (high is None or key < high)]
    assert tree.count(low, high) == len(wanted)
    if reverse:
        wanted.reverse()
    assert list(tree.keys(low, high, reverse=reverse, skip=skip)) == wanted[skip:]
    found = list(tree.items(low, high, reverse=reverse, skip=skip))
    assert found == [(key, trees[None][key]) for key in wanted[skip:]]
    gathered = [entry for _, entries in tree.leaves(low, high, reverse=reverse, skip=skip) for entry in entries]
    assert gathered == found


def test_a_walk_and_the_free_runs_make_up_the_whole_file(made):
    data, _ = made
    state = state_of(data)
    seen = PageMap()
    pages = 0
    for tree in [*state.trees(), state.catalog, state.free]:
        for visit in state.walk(tree, seen, values=True):
            assert not visit.damage
            pages += visit.pages
    for run in state.free_runs():
        assert seen.first_marked(run.start, run.start + run.length) == run.start + run.length
        pages += run.length
    assert pages == state.meta.page_count - fmt.META_PAGES


def test_a_walk_since_a_transaction_enters_only_what_is_younger(tmp_path):
    path = tmp_path / "a.cowdb"
    sample(path)
    with cowdb.open(path) as db:
        with db.read() as snap:
            before = snap.id
        with db.write() as txn:
            txn[b"key:000500"] = b"x" * 5000
    state = state_of(path.read_bytes())
    young = list(state.walk(state.main, since=before))
    assert young[0].kind == fmt.BRANCH_KIND
    assert {visit.kind for visit in young} == {fmt.BRANCH_KIND, fmt.LEAF_KIND, fmt.OVERFLOW_KIND}
    assert len(young) < 6 < sum(1 for _ in state.walk(state.main))
    assert all(visit.ref.birth > before for visit in young)


def test_what_is_in_a_slot_is_said_whatever_it_is(made):
    data, _ = made
    for broken, reason in ((b"", "short"), (bytes(20000), "magic"), (data[:SIZE] + bytes(SIZE), "magic")):
        both = slots(Bytes(broken))
        assert reason in (both[0].reason + both[1].reason)
    torn = bytearray(data)
    torn[100] ^= 1
    first, second = slots(Bytes(torn))
    assert first.meta is None
    assert "checksum" in first.reason
    assert second.meta is not None
    assert second.offset == SIZE


def test_a_newer_format_is_told_apart_from_damage():
    file = simple([(b"a", b"1")], SIZE)
    file.data[fmt.META.offset("format version")] = 9
    from cowdb.checksum import crc32c

    file.data[:4] = crc32c(bytes(file.data[4:SIZE])).to_bytes(4, "little")
    first, _ = slots(Bytes(file.data))
    assert first.unknown
    assert "version 9" in first.reason


# ---------------------------------------------------------------- damage


def read_all(state: State) -> dict[str | None, dict[bytes, bytes]]:
    list(state.free_runs())
    return {tree.name: dict(tree.items()) for tree in state.trees()}


@pytest.mark.untraced
def test_a_changed_byte_gives_an_error_or_the_truth(made):
    data, trees = made
    rng = random.Random(3)
    noticed = 0
    for _ in range(250):
        spoilt = bytearray(data)
        at = rng.randrange(2 * SIZE, len(data))
        spoilt[at] ^= 1 << rng.randrange(8)
        state = state_of(bytes(spoilt))
        try:
            assert read_all(state) == trees
        except CorruptionError:
            noticed += 1
        damaged = [
            visit for tree in (state.main, state.catalog) for visit in state.walk(tree, values=True) if visit.damage
        ]
        for visit in damaged:
            assert visit.page is None
            assert visit.ref.number >= fmt.FIRST_DATA_PAGE
    assert noticed > 150


def test_a_file_that_is_cut_off_gives_an_error(made):
    data, _ = made
    rng = random.Random(4)
    for _ in range(40):
        state = state_of(data)
        state.source = Bytes(data[: rng.randrange(2 * SIZE, len(data) - 50 * SIZE)])
        with pytest.raises(CorruptionError):
            read_all(state)
        assert any(visit.damage for tree in (state.main, state.catalog) for visit in state.walk(tree))


def forged(change) -> State:
    """A file whose main tree has three levels, forged with all checksums right again."""
    file = Handmade(SIZE)
    items = [(b"key%04d" % i, b"value %d" % i) for i in range(600)]
    main = file.tree(items, 1, fanout=6)
    file.commit(1, main=main)
    change(file)
    return state_of(bytes(file.data))


def reference_places(file: Handmade, branch: int) -> list[int]:
    """Where in a branch the references to its children stand."""
    raw = file.page(branch)
    cells = int.from_bytes(raw[6:8], "little")
    first = fmt.HEADER_SIZE + (int.from_bytes(raw[24:26], "little") + 7) // 8 * 8
    words = [int.from_bytes(raw[first + 8 * i : first + 8 * i + 8], "little") for i in range(cells)]
    return [(word >> 16 & 0xFFFF) + (word & 0xFFFF) for word in words]


def test_a_branch_that_leads_to_a_page_twice_is_refused():
    def change(file):
        branch = file.pages(2, 1)[0]
        first, second, *_ = reference_places(file, branch)
        file.patch(branch, second, file.page(branch)[first : first + fmt.REFERENCE_SIZE])

    state = forged(change)
    with pytest.raises(CorruptionError):
        list(state.main.items())
    damage = [visit.damage for visit in state.walk(state.main) if visit.damage]
    assert len(damage) == 1
    assert "another reference" in damage[0]


def test_a_branch_that_leads_to_itself_ends():
    def change(file):
        branch = file.pages(2, 2)[0]
        file.patch(branch, reference_places(file, branch)[0], branch.to_bytes(6, "little"))

    state = forged(change)
    with pytest.raises(CorruptionError):
        list(state.main.items())
    assert "another reference" in "".join(visit.damage for visit in state.walk(state.main))


def test_wrong_counts_are_refused_by_what_relies_on_them():
    def change(file):
        branch = file.pages(2, 2)[0]
        at = reference_places(file, branch)[0] + fmt.REFERENCE.offset("count")
        file.patch(branch, at, (12345).to_bytes(6, "little"))

    state = forged(change)
    with pytest.raises(CorruptionError, match="I6"):
        list(state.main.items())


@pytest.mark.parametrize("number", [0, 1, 1 << 40, (1 << 48) - 1])
def test_references_outside_of_the_file_are_not_followed(number):
    def change(file):
        branch = file.pages(2, 1)[0]
        file.patch(branch, reference_places(file, branch)[1], number.to_bytes(6, "little"))

    state = forged(change)
    with pytest.raises(CorruptionError):
        list(state.main.items())
    assert sum(bool(visit.damage) for visit in state.walk(state.main)) == 1


def test_an_overflow_value_of_a_wild_length_is_not_read():
    file = Handmade(SIZE)
    main = file.tree([(b"a", b"1" * 5000), (b"b", b"2")], 1)
    file.commit(1, main=main)
    (leaf,) = file.pages(3)
    at = file.page(leaf).index(b"\x16\x40a") + 3
    file.patch(leaf, at + fmt.REFERENCE.offset("count"), (1 << 47).to_bytes(6, "little"))
    state = state_of(bytes(file.data))
    with pytest.raises(CorruptionError, match="outside"):
        state.main.get(b"a")
    assert state.main.get(b"b") == b"2"
    assert [visit.kind for visit in state.walk(state.main) if visit.damage] == [fmt.OVERFLOW_KIND]


def test_an_empty_tree_has_nothing():
    file = Handmade(SIZE)
    file.commit(1)
    tree = state_of(bytes(file.data)).main
    assert (len(tree), list(tree.items()), tree.get(b"x"), tree.rank(b"x"), tree.path(b"x")) == (0, [], None, 0, [])
    assert list(tree.state.walk(tree)) == []
