"""The fake disks: what a crash may leave, how calls fail, and that the simulator catches what it is for."""

from __future__ import annotations

import errno
import itertools
import random
import re
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cowdb.storage import Disk, FileDisk, create_file
from cowdb.testing import (
    HOSTILE,
    POISON,
    STRATEGIES,
    CrashDisk,
    Create,
    FaultyDisk,
    FlushBegin,
    FlushDirectory,
    FlushEnd,
    FlushFailed,
    Link,
    MemoryDisk,
    MemoryStorage,
    Remove,
    Resize,
    SimulatedKill,
    Write,
)

S = 512
A, B, C, D = (bytes([letter]) * S for letter in b"abcd")


def started(content: bytes = A * 4) -> tuple[CrashDisk, MemoryStorage]:
    """A disk with one durable file, open."""
    disk = CrashDisk(MemoryDisk({"/f": content}))
    return disk, disk.open("/f", read_only=False)


def states(disk: CrashDisk, index: int | None = None, sector: int = S) -> set[bytes | None]:
    """Every content that /f may have after a power cut (None: it is not there)."""
    index = len(disk.trace) if index is None else index
    images = disk.every_image(index, sector=sector)
    return {image.content("/f") if "/f" in image.paths() else None for image in images}


def letters(content: bytes | None, sector: int = S) -> str:
    """The first byte of each sector."""
    return "-" if content is None else content[::sector].decode()


def short(disk: CrashDisk, index: int | None = None) -> set[str]:
    return {letters(content) for content in states(disk, index)}


# ---------------------------------------------------------------- memory


def test_install_copy_and_digest() -> None:
    disk = MemoryDisk({"/a": b"x", "/b": b"x"})
    disk.open("/a", read_only=False).write(1, [b"y"])
    disk.link("/a", "/c")
    twin = disk.copy()
    assert twin.paths() == ["/a", "/b", "/c"]
    assert twin.digest() == disk.digest()
    twin.open("/c", read_only=False).write(0, [b"z"])
    assert twin.content("/a") == b"zy", "hard links stay links"
    assert disk.content("/a") == b"xy"
    assert twin.digest() != disk.digest()
    disk.install("/a", b"new")
    assert disk.content("/a") == b"new"
    assert disk.content("/c") == b"xy"


def test_digest_tells_links_from_equal_files() -> None:
    linked = MemoryDisk({"/a": b"x"})
    linked.link("/a", "/b")
    assert linked.digest() != MemoryDisk({"/a": b"x", "/b": b"x"}).digest()


def test_cut_space_is_poison_in_mappings() -> None:
    disk = MemoryDisk({"/f": b"a" * 12_288})
    storage = disk.open("/f", read_only=False)
    mapping = storage.map(12_288)
    storage.resize(4096)
    assert mapping[0:4096] == b"a" * 4096
    assert mapping[4096:12_288] == bytes([POISON]) * 8192
    disk.check_mappings()


def test_check_mappings_finds_a_stray_write() -> None:
    disk = MemoryDisk({"/f": b"a" * 4096})
    storage = disk.open("/f", read_only=False)
    mapping = storage.map(4096)
    disk.check_mappings()
    memoryview(mapping)[7] = 0
    with pytest.raises(AssertionError, match="byte 7"):
        disk.check_mappings()


def test_a_closed_mapping_is_left_alone() -> None:
    storage = MemoryDisk({"/f": b"a" * 4096}).open("/f", read_only=False)
    mapping = storage.map(4096)
    mapping.close()
    storage.write(0, [b"b"])
    assert storage.read(0, 1) == b"b"


def test_mappings_die_with_their_last_user() -> None:
    disk = MemoryDisk({"/f": b"a" * 4096})
    storage = disk.open("/f", read_only=False)
    view = memoryview(storage.map(4096))
    assert len(disk.names["/f"].live_mappings()) == 1
    storage.write(0, [b"b"])
    assert view[0] == ord("b")
    view.release()
    assert disk.names["/f"].live_mappings() == []


def test_full_disk() -> None:
    disk = MemoryDisk(capacity=3 * 4096)
    storage = disk.create("/f", 0o600)
    storage.resize(100 * 4096)  # a hole costs nothing
    storage.write(0, [b"a" * 8192])
    with pytest.raises(OSError) as caught:
        storage.write(2 * 4096, [b"b" * 8192])
    assert caught.value.errno == errno.ENOSPC
    assert storage.read(2 * 4096, 8192) == b"b" * 4096 + bytes(4096), "a full disk takes what fits"
    storage.write(0, [b"c" * 8192])  # blocks that are there can be written again
    with pytest.raises(OSError) as caught:
        storage.reserve(0, 4 * 4096)
    assert caught.value.errno == errno.ENOSPC
    storage.resize(4096)
    storage.reserve(4096, 8192)
    other = disk.create("/g", 0o600)
    with pytest.raises(OSError):
        other.write(0, [b"x"])
    assert other.size() == 0
    storage.write(4096, [b"d" * 8192])  # what was reserved cannot fail
    disk.remove("/f")
    other.write(0, [b"x"])
    disk.capacity = None
    other.write(0, [b"x" * 100_000])


def test_copy_keeps_holes() -> None:
    disk = MemoryDisk(capacity=8192)
    disk.create("/f", 0o600).resize(1 << 20)
    assert disk.copy().used_blocks() == 0


# ---------------------------------------------------------------- the trace


def test_trace_is_complete_and_in_order() -> None:
    disk = CrashDisk()
    create_file(disk, "/d/f", b"abc", 0o640)
    storage = disk.open("/d/f", read_only=False)
    storage.write(5, [b"x", b"", b"yz"])
    storage.resize(4)
    storage.reserve(0, 2)
    storage.reserve(0, 9)
    storage.lose_flush()
    disk.remove("/d/f")
    assert disk.trace == [
        Create(1, "/d/f-new0", 0o640),
        Write(1, 0, b"abc"),
        FlushBegin(1, 1),
        FlushEnd(1, 1),
        Link(1, "/d/f-new0", "/d/f"),
        Remove(1, "/d/f-new0"),
        FlushDirectory("/d"),
        Write(1, 5, b"x"),
        Write(1, 6, b"yz"),
        Resize(1, 4),
        Resize(1, 9),
        FlushBegin(1, 2),
        FlushFailed(1, 2),
        Remove(1, "/d/f"),
    ]


def test_what_the_trace_holds_cannot_change() -> None:
    disk, storage = started()
    page = bytearray(B)
    storage.write(0, [page])
    page[:] = C
    assert disk.trace == [Write(1, 0, B)]


def test_installed_files_are_durable() -> None:
    disk, storage = started()
    storage.write(0, [B])
    disk.install("/f", D)
    disk.install("/g", C)
    assert states(disk) == {D}
    assert all(image.content("/g") == C for image in disk.every_image(len(disk.trace)))


# ---------------------------------------------------------------- sectors


def test_nothing_in_doubt_is_one_state() -> None:
    disk, storage = started()
    assert short(disk) == {"aaaa"}
    storage.write(0, [B * 4])
    storage.flush()
    assert short(disk) == {"bbbb"}
    assert disk.at(len(disk.trace)).count() == 1


def test_sectors_are_independent_and_hold_any_version() -> None:
    disk, storage = started()
    storage.write(S, [B * 2])
    storage.write(2 * S, [C])
    assert short(disk) == {"a" + one + two + "a" for one in "ab" for two in "abc"}
    assert short(disk, 1) == {"aaaa", "abaa", "aaba", "abba"}
    assert short(disk, 0) == {"aaaa"}
    assert disk.at(2).count() == 6


def test_the_sector_size_is_the_unit() -> None:
    disk, storage = started(b"a" * 8192)
    storage.write(0, [b"b" * 4096])
    assert states(disk, sector=4096) == {b"a" * 8192, b"b" * 4096 + b"a" * 4096}
    assert len(states(disk, sector=512)) == 1 << 8


def test_a_part_of_a_sector_is_written_with_the_rest_of_it() -> None:
    disk, storage = started()
    storage.write(10, [b"x"])
    storage.write(20, [b"y"])
    first, second = bytearray(A * 4), bytearray(A * 4)
    first[10:11] = second[10:11] = b"x"
    second[20:21] = b"y"
    assert states(disk) == {A * 4, bytes(first), bytes(second)}


def test_a_flush_covers_what_was_written_before_it_began() -> None:
    disk, storage = started()
    disk.during_flush = lambda: storage.write(0, [D * 2])
    storage.write(0, [B])
    storage.flush()
    assert [type(step) for step in disk.trace] == [Write, FlushBegin, Write, FlushEnd]
    assert short(disk, 3) == {"aaaa", "baaa", "daaa", "adaa", "bdaa", "ddaa"}
    assert short(disk, 4) == {"baaa", "daaa", "bdaa", "ddaa"}
    disk.during_flush = None
    storage.flush()
    assert short(disk) == {"ddaa"}


def test_two_flushes_at_once() -> None:
    disk, storage = started()
    inside = threading.Event()
    proceed = threading.Event()

    def wait() -> None:
        disk.during_flush = None
        inside.set()
        assert proceed.wait(10)

    disk.during_flush = wait
    storage.write(0, [B])
    thread = threading.Thread(target=storage.flush)
    thread.start()
    assert inside.wait(10)
    storage.write(0, [C])
    storage.flush()
    assert short(disk) == {"caaa"}
    storage.write(0, [D])
    proceed.set()
    thread.join()
    assert short(disk) == {"caaa", "daaa"}, "the slow flush began before c and d"


def test_files_are_flushed_one_by_one() -> None:
    disk = CrashDisk(MemoryDisk({"/f": A, "/g": A}))
    storage = disk.open("/f", read_only=False)
    other = disk.open("/g", read_only=False)
    storage.write(0, [B])
    other.write(0, [B])
    other.flush()
    assert states(disk) == {A, B}
    assert {image.content("/g") for image in disk.every_image(len(disk.trace))} == {B}


# ---------------------------------------------------------------- sizes


def test_size_is_independent_of_the_data() -> None:
    """redb 1276: the header was durable before the file's extension, and the file never opened again."""
    disk, storage = started(A * 2)
    storage.resize(4 * S)
    storage.write(0, [B])
    assert short(disk) == {"aa", "ba", "aa\0\0", "ba\0\0"}
    storage.write(2 * S, [C])
    assert short(disk) == {"aa", "ba", "aa\0\0", "ba\0\0", "aac\0", "bac\0"}
    storage.flush()
    assert short(disk) == {"bac\0"}


def test_any_size_since_the_flush() -> None:
    disk, storage = started(A * 3)
    for size in (4, 1, 2):
        storage.resize(size * S)
    assert {len(content or b"") // S for content in states(disk)} == {1, 2, 3, 4}


def test_new_space_is_zeros_or_old_bytes_until_the_flush() -> None:
    disk, storage = started(A * 3)
    storage.resize(S)
    storage.flush()
    assert short(disk) == {"a"}
    storage.resize(3 * S)
    assert short(disk) == {"a", "a\0\0", "aa\0", "a\0a", "aaa"}
    storage.flush()
    assert short(disk) == {"a\0\0"}


def test_a_write_past_the_end_brings_old_bytes_into_the_gap() -> None:
    disk, storage = started(A * 3)
    storage.resize(S)
    storage.flush()
    storage.write(2 * S, [B])
    assert short(disk) == {"a"} | {"a" + gap + last for gap in "\0a" for last in "ab"} | {
        "a" + gap + "b" for gap in "\0a"
    }


def test_a_size_that_is_no_multiple_of_a_sector() -> None:
    disk, storage = started(b"a" * 700)
    storage.write(690, [b"b" * 20])
    old, new = b"a" * 700, b"a" * 690 + b"b" * 20
    assert states(disk) == {old, new, old + bytes(10), new[:700]}


def test_huge_holes_are_cheap() -> None:
    disk, storage = started(A)
    storage.resize(64 << 20)
    assert disk.at(1).count() == 2
    assert sum(1 for cell in disk.at(1).cells if cell.kind == "sector") <= 2048


def test_data_far_behind_a_hole() -> None:
    disk, storage = started(A)
    far = 5000 * S
    storage.write(far, [B])
    assert {image.content("/f")[far:] for image in disk.images(1, strategy="uniform", limit=50)} == {b"", bytes(S), B}
    storage.flush()
    assert states(disk) == {A + bytes(far - S) + B}


# ---------------------------------------------------------------- names


def test_a_created_file_can_be_missing_until_the_directory_is_flushed() -> None:
    disk = CrashDisk()
    storage = disk.create("/f", 0o600)
    storage.write(0, [A])
    assert states(disk) == {None, b"", bytes(S), A}
    storage.flush()
    assert states(disk) == {None, A}, "a file's flush says nothing of its name"
    disk.flush_directory("/other/f")
    assert states(disk) == {None, A}, "nor does the flush of another directory"
    disk.flush_directory("/f")
    assert states(disk) == {A}


def test_removing_and_renaming_can_be_undone() -> None:
    disk, _ = started(A)
    disk.link("/f", "/g")
    disk.remove("/f")
    assert {tuple(image.paths()) for image in disk.every_image(2)} == {("/f",), ("/g",), ("/f", "/g"), ()}
    disk.flush_directory("/f")
    assert {tuple(image.paths()) for image in disk.every_image(3)} == {("/g",)}


def test_a_name_that_led_to_several_files() -> None:
    disk, _ = started(A)
    disk.remove("/f")
    storage = disk.create("/f", 0o600)
    storage.write(0, [B])
    storage.flush()
    assert states(disk) == {None, A, B}


def test_links_in_an_image_are_links() -> None:
    disk, _ = started(A)
    disk.link("/f", "/g")
    disk.flush_directory("/f")
    (image,) = disk.every_image(len(disk.trace))
    image.open("/f", read_only=False).write(0, [B])
    assert image.content("/g") == B


# ---------------------------------------------------------------- a failed flush


def test_after_a_failed_flush_the_next_one_lies() -> None:
    """PostgreSQL's story: the second fsync said it succeeded, and had written nothing."""
    disk, storage = started()
    storage.write(0, [B * 2])
    storage.lose_flush()
    everything = {"aaaa", "baaa", "abaa", "bbaa"}
    assert short(disk) == everything
    assert storage.read(0, 4 * S) == B * 2 + A * 2, "the cache shows what is perhaps not there"
    storage.flush()
    storage.flush()
    assert short(disk) == everything
    storage.write(0, [B])
    assert short(disk) == everything
    storage.flush()
    assert short(disk) == {"baaa", "bbaa"}, "only what was written again is on disk"


def test_a_failed_flush_spares_what_was_durable_and_what_comes_later() -> None:
    disk, storage = started()
    storage.write(0, [B])
    storage.flush()
    storage.write(S, [C])
    storage.lose_flush()
    storage.write(2 * S, [D])
    storage.flush()
    assert short(disk) == {"bada", "bcda"}


def test_a_failed_flush_can_lose_the_size_but_not_under_later_data() -> None:
    disk, storage = started(A)
    storage.resize(4 * S)
    storage.lose_flush()
    storage.flush()
    assert short(disk) == {"a", "a\0\0\0"}
    storage.write(S, [B])
    storage.flush()
    assert short(disk) == {"ab", "ab\0\0"}
    storage.resize(4 * S)
    storage.flush()
    assert short(disk) == {"ab\0\0"}


# ---------------------------------------------------------------- images


def test_strategies() -> None:
    """Four stores, each one sector: a letter in the state is a store that survived."""
    disk, storage = started()
    for index, new in enumerate((B, B, B, B)):
        storage.write(index * S, [new])
    seen = {
        strategy: {letters(image.content("/f")) for image in disk.images(4, strategy=strategy, limit=100)}
        for strategy in STRATEGIES
    }
    one_missing = {"abbb", "babb", "bbab", "bbba"}
    assert seen["none"] == {"aaaa"}
    assert seen["all"] == {"bbbb"}
    assert seen["prefix"] == {"aaaa", "baaa", "bbaa", "bbba", "bbbb"}
    assert seen["suffix"] == {"aaaa", "aaab", "aabb", "abbb", "bbbb"}
    assert seen["all_but_one"] == one_missing
    assert seen["only_one"] == {"baaa", "abaa", "aaba", "aaab"}
    assert seen["one_old_among_new"] == one_missing
    assert len(seen["uniform"]) == 16


def test_stores_of_several_sectors_go_as_one_in_the_strategies_of_stores() -> None:
    disk, storage = started()
    storage.write(0, [B * 2])
    storage.write(S, [C * 2])
    seen = {
        strategy: {letters(image.content("/f")) for image in disk.images(2, strategy=strategy, limit=100)}
        for strategy in STRATEGIES
    }
    assert seen["prefix"] == {"aaaa", "bbaa", "bcca"}
    assert seen["suffix"] == {"aaaa", "acca", "bcca"}
    assert seen["all_but_one"] == {"acca", "bbaa"}
    assert seen["only_one"] == {"bbaa", "acca"}
    assert seen["one_old_among_new"] == {"acca", "baca", "bbca", "bcaa"}


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_strategies_need_nothing_in_doubt(strategy: str) -> None:
    disk, _ = started()
    assert [image.content("/f") for image in disk.images(0, strategy=strategy, hostile=HOSTILE)] == [A * 4]


def test_few_states_are_all_tried_and_many_are_sampled() -> None:
    disk, storage = started()
    storage.write(0, [B * 4])
    assert len(list(disk.images(1, limit=16))) == 16
    sample = list(disk.images(1, limit=15))
    assert 10 <= len(sample) <= 15
    assert len({image.digest() for image in sample}) == len(sample)
    assert {image.origin.strategy for image in sample} >= {"none", "all", "uniform"}
    with pytest.raises(ValueError, match="16 choices"):
        next(disk.every_image(1, limit=15))


def test_the_same_seed_gives_the_same_images() -> None:
    runs = []
    for seed in (0, 0, 1):
        disk, storage = started(A * 100)
        storage.write(0, [B * 100])
        storage.write(0, [C * 50])
        images = list(disk.images(2, seed=seed, limit=20, hostile=HOSTILE))
        runs.append([image.content("/f") for image in images])
        for image in images[::7]:
            assert disk.rebuild(image.origin).digest() == image.digest()
            assert disk.rebuild(image.origin).origin == image.origin
    assert runs[0] == runs[1] != runs[2]


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_sectors(kind: str) -> None:
    disk, storage = started()
    storage.write(S, [B * 2])
    strange = 0
    for image in disk.images(1, hostile=[kind], limit=200):
        content = image.content("/f")
        assert content[:S] == content[3 * S :] == A, "what is not in doubt is never spoiled"
        for sector in (content[S : 2 * S], content[2 * S : 3 * S]):
            if sector in (A, B):
                continue
            strange += 1
            if kind == "zeros":
                assert sector == bytes(S)
            if kind == "torn":
                assert all(sector[at : at + 8] in (b"a" * 8, b"b" * 8) for at in range(0, S, 8))
            if kind == "garbage":
                assert len(set(sector)) > 50
    assert strange


def test_new_space_can_be_garbage() -> None:
    disk, storage = started(A)
    storage.resize(3 * S)
    images = [image.content("/f") for image in disk.images(1, hostile=["garbage"], limit=50)]
    assert any(content[S:].strip(b"\0") for content in images)
    storage.flush()
    assert [image.content("/f") for image in disk.images(3, hostile=["garbage"])] == [A + bytes(2 * S)]


def test_images_are_disks_of_their_own_and_crash_again() -> None:
    disk, storage = started()
    storage.write(0, [B])
    found = set()
    for image in disk.every_image(1):
        again = CrashDisk(image)
        again.open("/f", read_only=False).write(S, [C])
        found |= {letters(second.content("/f")) for second in again.every_image(1)}
        assert short(again, 0) == {letters(image.content("/f"))}, "what an image holds is settled"
        image.open("/f", read_only=False).write(0, [D * 4])
    assert found == {"aaaa", "acaa", "baaa", "bcaa"}
    assert disk.content("/f") == B + A * 3
    assert short(disk) == {"aaaa", "baaa"}


def test_moments_in_any_order() -> None:
    disk, storage = started()
    for letter in (B, C, D):
        storage.write(0, [letter])
        storage.flush()
    rising = [short(disk, index) for index in range(len(disk.trace) + 1)]
    falling = [short(disk, index) for index in reversed(range(len(disk.trace) + 1))]
    assert rising == falling[::-1]
    assert rising[-1] == {"daaa"}


def test_a_process_that_dies_leaves_its_cache() -> None:
    disk, storage = started()
    storage.write(0, [B * 2])
    disk.create("/g", 0o600)
    assert disk.after_kill(0).content("/f") == A * 4
    assert disk.after_kill(0, partial=S + 1).content("/f") == B + b"b" + A[1:] + A * 2
    assert disk.after_kill(1, partial=99).digest() == disk.after_kill(1).digest()
    assert disk.after_kill(2).digest() == disk.digest()
    with pytest.raises(IndexError):
        disk.after_kill(3)


def test_wrong_arguments() -> None:
    disk, storage = started()
    storage.write(0, [B])
    for call in (
        lambda: next(disk.images(1, strategy="best")),
        lambda: next(disk.images(1, hostile=["evil"])),
        lambda: disk.at(1, sector=0),
        lambda: disk.at(1, sector=100),
    ):
        with pytest.raises(ValueError):
            call()
    for index in (-1, 2):
        with pytest.raises(IndexError):
            disk.at(index)


# ---------------------------------------------------------------- against a simpler model

steps = st.lists(
    st.one_of(
        st.tuples(st.just("write"), st.integers(0, 5), st.integers(1, 3)),
        st.tuples(st.just("resize"), st.integers(0, 6)),
        st.tuples(st.just("flush")),
        st.tuples(st.just("lose")),
    ),
    max_size=9,
)


@given(steps, st.integers(0, 1000))
def test_images_hold_what_was_there_since_the_flush(todo: list, seed: int) -> None:
    """Slow and simple: keep the whole file after each step, and look each sector up there."""
    disk, storage = started(A * 3)
    snapshots = [disk.content("/f")]  # since the last flush that may be believed
    failed = False
    for number, step in enumerate(todo):
        match step:
            case "write", at, count:
                storage.write(at * S, [bytes([ord("b") + number]) * (count * S)])
            case "resize", size:
                storage.resize(size * S)
            case ("flush",):
                storage.flush()
                if not failed:
                    snapshots = []
            case _:
                storage.lose_flush()
                failed = True
        snapshots.append(disk.content("/f"))
    index = len(disk.trace)
    images = [image.content("/f") for image in disk.images(index, limit=20, seed=seed)]
    sizes = {len(content) for content in snapshots}
    ever = {bytes(S), A} | {step.data[:S] for step in disk.trace if isinstance(step, Write)}
    for image in images:
        assert failed or len(image) in sizes
        for at in range(0, len(image), S):
            sector = image[at : at + S]
            if len(sizes) == 1:
                assert sector in {content[at : at + S] for content in snapshots}
            assert sector in ever
    newest, oldest = (next(disk.images(index, strategy=name)).content("/f") for name in ("all", "none"))
    assert newest == disk.content("/f") == disk.after_kill(index).content("/f")
    if not failed:
        common = min(map(len, snapshots))
        assert len(oldest) == len(snapshots[0])
        assert oldest[:common] == snapshots[0][:common]
        for content in snapshots[1:] if len(images) < 20 else []:
            assert content in images or len(content) > common, "an exhaustive list has each state that really was"


# ---------------------------------------------------------------- the simulator catches bugs


def create_in_place(disk: Disk, path: str, content: bytes) -> None:
    storage = disk.create(path, 0o600)
    storage.write(0, [content])
    storage.flush()
    disk.flush_directory(path)


def create_without_flush(disk: Disk, path: str, content: bytes) -> None:
    disk.create(path + "-new", 0o600).write(0, [content])
    disk.link(path + "-new", path)
    disk.remove(path + "-new")
    disk.flush_directory(path)


def create_without_directory_flush(disk: Disk, path: str, content: bytes) -> None:
    storage = disk.create(path + "-new", 0o600)
    storage.write(0, [content])
    storage.flush()
    disk.link(path + "-new", path)
    disk.remove(path + "-new")


def create_with_a_retried_flush(disk: Disk, path: str, content: bytes) -> None:
    storage = disk.create(path + "-new", 0o600)
    storage.write(0, [content])
    storage.lose_flush()  # type: ignore[attr-defined]
    storage.flush()
    disk.link(path + "-new", path)
    disk.flush_directory(path)


def create_well(disk: Disk, path: str, content: bytes) -> None:
    create_file(disk, path, content, 0o600)


@pytest.mark.parametrize(
    ("create", "torn", "missing"),
    [
        (create_well, False, False),
        (create_in_place, True, False),
        (create_without_flush, True, False),
        (create_without_directory_flush, False, True),
        (create_with_a_retried_flush, True, False),
    ],
)
def test_bugs_of_a_small_protocol_are_caught(
    create: Callable[[Disk, str, bytes], None], *, torn: bool, missing: bool
) -> None:
    disk = CrashDisk()
    create(disk, "/f", A * 4)
    moments = range(len(disk.trace) + 1)
    found = {content for index in moments for content in states(disk, index)}
    assert bool(found - {None, A * 4}) == torn, "a torn file under its final name"
    assert (None in states(disk)) == missing, "a file that was acknowledged and is gone"


# ---------------------------------------------------------------- faults


def script(disk: Disk) -> None:
    """One call of each kind that can fail."""
    storage = disk.create("/a", 0o600)
    try:
        storage.write(0, [bytes(4096), b"y" * 4096])
        storage.resize(8192)
        storage.reserve(0, 4096)
        storage.flush()
        storage.size()
        storage.read(0, 1)
        storage.map(4096)
        storage.identity()
        storage.is_current()
        disk.link("/a", "/b")
        disk.remove("/a")
        disk.flush_directory("/b")
        disk.open("/b", read_only=True).close()
    finally:
        storage.close()


KINDS = ["create", "write", "resize", "reserve", "flush", "size", "read", "map", "identity", "is_current",
         "link", "remove", "flush_directory", "open"]  # fmt: skip


@pytest.mark.parametrize("error", [errno.EIO, errno.ENOSPC, errno.EDQUOT])
def test_each_call_can_fail(error: int) -> None:
    failed = []
    for at in itertools.count(1):
        seen: list[str] = []
        disk = FaultyDisk(MemoryDisk(), before=lambda call, _, seen=seen: seen.append(call))
        fault = disk.fail(error, at=at)
        try:
            script(disk)
        except OSError as caught:
            failed.append(seen[at - 1])
            assert (caught.errno, fault.fired) == (error, 1)
        if not fault.fired:
            break
    assert failed == KINDS


@pytest.mark.parametrize("call", [*KINDS, "close"])
def test_a_fault_can_wait_for_one_kind_of_call(call: str) -> None:
    disk = FaultyDisk(MemoryDisk())
    fault = disk.fail(errno.EIO, call=call)
    with pytest.raises(OSError) as caught:
        script(disk)
    assert caught.value.errno == errno.EIO
    assert fault.fired == 1
    assert disk.calls[call] >= 1


def test_once_for_good_and_healed() -> None:
    disk = FaultyDisk(MemoryDisk())
    storage = disk.create("/f", 0o600)
    disk.fail(errno.EIO, call="write", at=2)
    storage.write(0, [b"a"])
    with pytest.raises(OSError):
        storage.write(0, [b"b"])
    storage.write(0, [b"c"])
    fault = disk.fail(errno.ENOSPC, call="write", forever=True)
    for _ in range(3):
        with pytest.raises(OSError) as caught:
            storage.write(0, [b"d"])
        assert caught.value.errno == errno.ENOSPC
    assert storage.read(0, 9) == b"c"
    assert fault.fired == 3
    disk.heal()
    storage.write(0, [b"e"])
    assert storage.read(0, 9) == b"e"
    assert disk.calls == {"create": 1, "write": 7, "read": 2}
    assert disk.total == 10


@pytest.mark.parametrize(("partial", "left"), [(0, b""), (3, b"abc"), (None, b"abcd"), (100, b"abcdefgh")])
def test_short_writes_then_an_error(partial: int | None, left: bytes) -> None:
    disk = FaultyDisk(MemoryDisk())
    storage = disk.create("/f", 0o600)
    disk.fail(errno.ENOSPC, call="write", partial=partial)
    with pytest.raises(OSError):
        storage.write(0, [b"abc", bytearray(b"de"), memoryview(b"fgh")])
    assert storage.read(0, 100) == left


def test_a_kill_ends_the_process_and_nothing_else() -> None:
    disk = MemoryDisk({"/f": b"old-old-"})
    faulty = FaultyDisk(disk)
    storage = faulty.open("/f", read_only=False)
    faulty.kill(call="write")
    with pytest.raises(SimulatedKill):
        storage.write(0, [b"new-new-"])
    for call in (storage.size, storage.flush, lambda: faulty.create("/g", 0o600), lambda: faulty.remove("/f")):
        with pytest.raises(SimulatedKill):
            call()
    storage.close()
    faulty.heal()
    with pytest.raises(SimulatedKill):
        faulty.open("/f", read_only=True)
    assert disk.content("/f") == b"new-old-"
    assert not issubclass(SimulatedKill, Exception)


def test_a_kill_goes_before_an_error() -> None:
    disk = FaultyDisk(MemoryDisk())
    disk.fail(errno.EIO)
    disk.kill()
    with pytest.raises(SimulatedKill):
        disk.create("/f", 0o600)


def test_close_does_not_count_for_faults_of_any_call() -> None:
    disk = FaultyDisk(MemoryDisk())
    storage = disk.create("/f", 0o600)
    fault = disk.fail(errno.EIO)
    storage.close()
    assert not fault.fired
    with pytest.raises(OSError):
        disk.open("/f", read_only=True)


def test_a_failing_flush_loses_what_it_should_have_written() -> None:
    crash, _ = started()
    faulty = FaultyDisk(FaultyDisk(crash))
    storage = faulty.open("/f", read_only=False)
    storage.write(0, [B])
    faulty.fail(errno.EIO, call="flush")
    with pytest.raises(OSError):
        storage.flush()
    storage.flush()
    assert short(crash) == {"aaaa", "baaa"}
    assert [type(step) for step in crash.trace] == [Write, FlushBegin, FlushFailed, FlushBegin, FlushEnd]


def test_a_kill_in_a_flush_loses_nothing_for_good() -> None:
    crash, _ = started()
    faulty = FaultyDisk(crash)
    storage = faulty.open("/f", read_only=False)
    storage.write(0, [B])
    faulty.kill(call="flush")
    with pytest.raises(SimulatedKill):
        storage.flush()
    crash.open("/f", read_only=False).flush()
    assert short(crash) == {"baaa"}


def test_faults_on_a_real_disk(tmp_path: Path) -> None:
    disk = FaultyDisk(FileDisk())
    storage = disk.create(str(tmp_path / "f"), 0o600)
    disk.fail(errno.EIO, call="flush")
    storage.write(0, [b"x"])
    with pytest.raises(OSError):
        storage.flush()
    storage.flush()
    assert storage.read(0, 9) == b"x"
    storage.close()


@pytest.mark.parametrize("arguments", [{"call": "fsync"}, {"at": 0}, {"partial": -1}])
def test_impossible_faults(arguments: dict) -> None:
    with pytest.raises(ValueError):
        FaultyDisk(MemoryDisk()).fail(errno.EIO, **arguments)


def test_before_is_a_yield_point_for_threads() -> None:
    """A second thread writes exactly between two writes of the first."""
    disk = MemoryDisk({"/f": b"...."})
    other = disk.open("/f", read_only=False)

    def before(call: str, number: int) -> None:
        if call == "write" and number == 3:
            thread = threading.Thread(target=other.write, args=(0, [b"TTTT"]))
            thread.start()
            thread.join()

    storage = FaultyDisk(disk, before=before).open("/f", read_only=False)
    storage.write(0, [b"1"])
    storage.write(1, [b"2"])
    assert disk.content("/f") == b"T2TT"


def test_reprs() -> None:
    disk = MemoryDisk({"/f": b""})
    storage = FaultyDisk(disk).open("/f", read_only=True)
    assert "read-only" in repr(storage)
    storage.close()
    assert "closed" in repr(storage)
    assert "open" in repr(disk.open("/f", read_only=False))
    assert "around" in repr(storage)


# ---------------------------------------------------------------- the page in docs/


def test_the_examples_of_the_documentation_run() -> None:
    page = Path(__file__).parent.parent / "docs" / "crash-model.md"
    examples = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    assert len(examples) == 3
    names: dict[str, object] = {}
    for example in examples:
        exec(example, names)
    assert names["k"] == 7, "all six calls were made to fail"
    broken = examples[0].replace("create_file(disk, ", "in_place(disk, ")
    with pytest.raises(AssertionError):
        exec(broken, {"in_place": lambda disk, path, content, _mode: create_in_place(disk, path, content)})


# ---------------------------------------------------------------- many threads


def test_threads_write_and_flush_at_once() -> None:
    disk, storage = started(A * 64)

    def work(number: int) -> None:
        rng = random.Random(number)
        for _ in range(100):
            storage.write(rng.randrange(64) * S, [bytes([ord("a") + number]) * S])
            if rng.random() < 0.2:
                storage.flush()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    storage.flush()
    assert states(disk) == {storage.read(0, 64 * S)}
    for index in random.Random(0).sample(range(len(disk.trace)), 20):
        assert disk.after_kill(index).content("/f") == next(disk.images(index, strategy="all")).content("/f")
