"""The storage protocol: one suite that the real disk and all fakes must pass, then what only the real one has."""

from __future__ import annotations

import contextlib
import errno
import itertools
import mmap
import os
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cowdb import storage as storage_module
from cowdb.storage import Disk, FileDisk, FileStorage, Storage, create_file
from cowdb.testing import CrashDisk, FaultyDisk, MemoryDisk, SimulatedKill

PAGE = 4096

DISKS: dict[str, Callable[[], Disk]] = {
    "file": FileDisk,
    "memory": MemoryDisk,
    "crash": CrashDisk,
    "faulty memory": lambda: FaultyDisk(MemoryDisk()),
    "faulty crash": lambda: FaultyDisk(CrashDisk()),
    "faulty file": lambda: FaultyDisk(FileDisk()),
}


@dataclass
class Place:
    """A disk and a directory; storages that are opened through it are closed after the test."""

    disk: Disk
    directory: str
    opened: list[Storage] = field(default_factory=list)

    def path(self, name: str = "a") -> str:
        return os.path.join(self.directory, name)

    def create(self, name: str = "a", content: bytes = b"", mode: int = 0o600) -> Storage:
        self.opened.append(self.disk.create(self.path(name), mode))
        self.opened[-1].write(0, [content])
        return self.opened[-1]

    def open(self, name: str = "a", *, read_only: bool = False) -> Storage:
        self.opened.append(self.disk.open(self.path(name), read_only=read_only))
        return self.opened[-1]


@pytest.fixture(params=DISKS)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    made = Place(DISKS[request.param](), str(tmp_path))
    yield made
    for storage in made.opened:
        storage.close()


@pytest.fixture
def real(tmp_path: Path) -> Iterator[Place]:
    made = Place(FileDisk(), str(tmp_path))
    yield made
    for storage in made.opened:
        storage.close()


# ---------------------------------------------------------------- reading and writing


def test_new_file_is_empty_and_writable(place: Place) -> None:
    storage = place.create()
    assert storage.size() == 0
    assert storage.read(0, 10) == b""
    assert not storage.read_only
    assert storage.path == place.path()


def test_create_is_exclusive_and_leaves_the_other_file(place: Place) -> None:
    place.create(content=b"first")
    with pytest.raises(FileExistsError) as caught:
        place.disk.create(place.path(), 0o600)
    assert caught.value.errno == errno.EEXIST
    assert caught.value.filename == place.path()
    assert place.open().read(0, 10) == b"first"


def test_opening_what_is_not_there(place: Place) -> None:
    for read_only in (True, False):
        with pytest.raises(FileNotFoundError) as caught:
            place.disk.open(place.path(), read_only=read_only)
        assert caught.value.errno == errno.ENOENT
        assert caught.value.filename == place.path()


def test_read_is_short_at_the_end_only(place: Place) -> None:
    storage = place.create(content=b"0123456789")
    assert storage.read(0, 10) == b"0123456789"
    assert storage.read(3, 4) == b"3456"
    assert storage.read(8, 100) == b"89"
    assert storage.read(8, 1 << 40) == b"89"
    assert storage.read(10, 1) == b""
    assert storage.read(1 << 40, 1) == b""
    assert storage.read(5, 0) == b""
    assert type(storage.read(0, 3)) is bytes


@pytest.mark.parametrize(("offset", "length"), [(-1, 1), (0, -1)])
def test_reading_nonsense(place: Place, offset: int, length: int) -> None:
    with pytest.raises(OSError) as caught:
        place.create(content=b"x").read(offset, length)
    assert caught.value.errno == errno.EINVAL


def test_write_takes_all_buffers_in_a_row(place: Place) -> None:
    storage = place.create()
    words = memoryview(b"01234567").cast("Q")
    storage.write(2, [b"ab", b"", bytearray(b"cd"), memoryview(b"xefx")[1:3], memoryview(b""), words])
    assert storage.read(0, 100) == b"\0\0abcdef01234567"
    storage.write(3, (bytes([0xFF]),))
    assert storage.read(0, 100) == b"\0\0a\xffcdef01234567"


def test_write_beyond_the_end_leaves_a_hole_of_zeros(place: Place) -> None:
    storage = place.create(content=b"x")
    storage.write(10_000, [b"y"])
    assert storage.size() == 10_001
    assert storage.read(0, 20_000) == b"x" + bytes(9_999) + b"y"


def test_writing_nothing_changes_nothing(place: Place) -> None:
    storage = place.create(content=b"x")
    storage.write(100, [])
    storage.write(100, [b"", bytearray()])
    assert storage.size() == 1


def test_writing_at_a_negative_offset(place: Place) -> None:
    storage = place.create(content=b"x")
    with pytest.raises(OSError) as caught:
        storage.write(-1, [b"ab"])
    assert caught.value.errno == errno.EINVAL
    assert storage.read(0, 9) == b"x"


@pytest.mark.parametrize("wrong", ["text", 7, memoryview(b"abcd")[::2]])
def test_what_is_no_row_of_bytes_is_a_type_error(place: Place, wrong: object) -> None:
    storage = place.create(content=b"x")
    with pytest.raises(TypeError):
        storage.write(0, [wrong])  # type: ignore[list-item]
    assert storage.read(0, 9) == b"x"


def test_large_and_many_buffers(place: Place) -> None:
    storage = place.create()
    large = bytes(range(256)) * 4096
    many = [bytes([index % 251]) * 3 for index in range(3000)]
    storage.write(0, [b"head", large, *many, large])
    assert storage.read(0, 1 << 30) == b"head" + large + b"".join(many) + large


def test_the_caller_keeps_its_buffers(place: Place) -> None:
    storage = place.create()
    page = bytearray(b"a" * PAGE)
    storage.write(0, [page])
    page[:] = b"b" * PAGE
    page.append(0)  # nobody holds a view of it any more
    assert storage.read(0, PAGE) == b"a" * PAGE


def test_resize(place: Place) -> None:
    storage = place.create(content=b"0123456789")
    storage.resize(4)
    assert storage.read(0, 100) == b"0123"
    storage.resize(8)
    assert storage.read(0, 100) == b"0123\0\0\0\0"
    storage.resize(8)
    assert storage.size() == 8
    storage.resize(0)
    assert storage.size() == 0
    with pytest.raises(OSError) as caught:
        storage.resize(-1)
    assert caught.value.errno == errno.EINVAL


def test_reserve_changes_the_size_at_most(place: Place) -> None:
    storage = place.create(content=b"0123456789")
    storage.reserve(0, 5)
    assert storage.read(0, 100) == b"0123456789"
    storage.reserve(PAGE, PAGE)
    assert storage.read(0, 3 * PAGE) == b"0123456789".ljust(2 * PAGE, b"\0")
    for offset, length in ((-1, 5), (0, 0), (0, -1)):
        with pytest.raises(OSError) as caught:
            storage.reserve(offset, length)
        assert caught.value.errno == errno.EINVAL


def test_flush_keeps_what_is_there(place: Place) -> None:
    storage = place.create(content=b"x")
    storage.flush()
    storage.flush()
    assert storage.read(0, 9) == b"x"


# ---------------------------------------------------------------- read-only, closed

CHANGES: dict[str, Callable[[Storage], None]] = {
    "write": lambda storage: storage.write(0, [b"y"]),
    "write nothing": lambda storage: storage.write(0, []),
    "resize": lambda storage: storage.resize(0),
    "reserve": lambda storage: storage.reserve(0, 100),
    "flush": lambda storage: storage.flush(),
}
QUESTIONS: dict[str, Callable[[Storage], object]] = {
    "size": lambda storage: storage.size(),
    "read": lambda storage: storage.read(0, 1),
    "identity": lambda storage: storage.identity(),
    "is_current": lambda storage: storage.is_current(),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_read_only_refuses_changes(place: Place, change: Callable[[Storage], None]) -> None:
    writer = place.create(content=b"x")
    reader = place.open(read_only=True)
    assert reader.read_only
    with pytest.raises(OSError) as caught:
        change(reader)
    assert caught.value.errno == errno.EBADF
    writer.write(1, [b"z"])
    assert reader.read(0, 9) == b"xz"


@pytest.mark.parametrize("call", [*CHANGES.values(), *QUESTIONS.values()], ids=[*CHANGES, *QUESTIONS])
def test_closed_refuses_everything(place: Place, call: Callable[[Storage], object]) -> None:
    storage = place.create(content=b"x")
    storage.close()
    storage.close()
    with pytest.raises(OSError) as caught:
        call(storage)
    assert caught.value.errno == errno.EBADF
    assert place.open().read(0, 9) == b"x"


def test_closed_cannot_map(place: Place) -> None:
    storage = place.create(content=bytes(PAGE))
    storage.close()
    with pytest.raises(OSError) as caught:
        storage.map(PAGE)
    assert caught.value.errno == errno.EBADF


# ---------------------------------------------------------------- mappings


def test_mapping_gives_bytes_and_views(place: Place) -> None:
    mapping = place.create(content=b"a" * PAGE + b"b" * PAGE).map(2 * PAGE)
    assert len(mapping) == 2 * PAGE
    assert mapping[PAGE - 1 : PAGE + 1] == b"ab"
    assert type(mapping[0:3]) is bytes
    words = memoryview(mapping).cast("Q")
    assert len(words) == PAGE // 4
    assert words[0] == int.from_bytes(b"a" * 8, "little")


def test_mappings_are_live_also_after_growth_and_close(place: Place) -> None:
    storage = place.create(content=b"a" * PAGE)
    first = place.open(read_only=True).map(PAGE)
    view = memoryview(first)
    storage.resize(3 * PAGE)
    second = storage.map(3 * PAGE)
    storage.write(PAGE - 2, [b"xx", b"yy"])
    assert first[PAGE - 3 : PAGE] == b"axx"
    assert second[PAGE - 3 : PAGE + 3] == b"axxyy\0"
    storage.close()
    assert second[PAGE - 3 : PAGE + 3] == b"axxyy\0"
    other = place.open()
    other.write(0, [b"Z"])
    other.close()
    del first
    assert view[0] == second[0:1][0] == ord("Z")


def test_cut_and_regrown_space_is_zero_in_old_mappings(place: Place) -> None:
    storage = place.create(content=b"a" * (4 * PAGE))
    mapping = storage.map(4 * PAGE)
    storage.resize(PAGE)
    assert mapping[0:PAGE] == b"a" * PAGE
    storage.resize(3 * PAGE)
    assert mapping[0 : 3 * PAGE] == b"a" * PAGE + bytes(2 * PAGE)
    storage.write(3 * PAGE, [b"b" * PAGE])
    assert mapping[3 * PAGE : 4 * PAGE] == b"b" * PAGE


def test_cut_inside_a_memory_page_leaves_zeros(place: Place) -> None:
    storage = place.create(content=b"a" * PAGE)
    mapping = storage.map(PAGE)
    storage.resize(100)
    assert mapping[0:PAGE] == b"a" * 100 + bytes(PAGE - 100)


def test_a_mapping_cannot_be_assigned_to(place: Place) -> None:
    storage = place.create(content=b"a" * PAGE)
    mapping = storage.map(PAGE)
    with pytest.raises(TypeError):
        mapping[0:1] = b"x"  # type: ignore[index]
    assert storage.read(0, 1) == b"a"


@pytest.mark.parametrize("length", [0, -1, -PAGE, 2 * PAGE, 1 << 50])
def test_mapping_what_is_not_there(place: Place, length: int) -> None:
    storage = place.create(content=bytes(PAGE))
    with pytest.raises(ValueError):
        storage.map(length)


# ---------------------------------------------------------------- names


def test_identity_is_the_file_not_the_path(place: Place) -> None:
    first = place.create("a")
    other = place.create("b")
    assert first.identity() == place.open("a", read_only=True).identity()
    assert first.identity() != other.identity()
    place.disk.link(place.path("a"), place.path("c"))
    assert place.open("c").identity() == first.identity()


def test_is_current_notices_removal_and_replacement(place: Place) -> None:
    storage = place.create("a", b"old")
    assert storage.is_current()
    place.disk.remove(place.path("a"))
    assert not storage.is_current()
    place.create("a", b"new")
    assert not storage.is_current()
    assert storage.read(0, 9) == b"old"
    assert place.open("a").read(0, 9) == b"new"
    assert place.open("a").is_current()


def test_link_names_the_same_file(place: Place) -> None:
    storage = place.create("a", b"x")
    place.disk.link(place.path("a"), place.path("b"))
    place.disk.remove(place.path("a"))
    storage.write(1, [b"y"])
    assert place.open("b").read(0, 9) == b"xy"
    with pytest.raises(FileNotFoundError):
        place.disk.open(place.path("a"), read_only=True)


def test_link_never_replaces(place: Place) -> None:
    place.create("a", b"a")
    place.create("b", b"b")
    with pytest.raises(FileExistsError):
        place.disk.link(place.path("a"), place.path("b"))
    assert place.open("a").read(0, 9) == b"a"
    assert place.open("b").read(0, 9) == b"b"


def test_link_and_remove_of_nothing(place: Place) -> None:
    with pytest.raises(FileNotFoundError):
        place.disk.link(place.path("a"), place.path("b"))
    with pytest.raises(FileNotFoundError):
        place.disk.remove(place.path("a"))


def test_removed_file_lives_while_it_is_open(place: Place) -> None:
    storage = place.create("a", b"x" * PAGE)
    mapping = storage.map(PAGE)
    place.disk.remove(place.path("a"))
    storage.write(0, [b"y"])
    assert storage.read(0, 2) == mapping[0:2] == b"yx"


def test_relative_paths_are_made_absolute(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place.directory)
    place.opened.append(place.disk.create("a", 0o600))
    place.disk.link("a", "b")
    place.disk.flush_directory("b")
    place.disk.remove("./a")
    place.opened.append(place.disk.open("b", read_only=False))
    assert place.opened[-1].path == place.path("b")
    monkeypatch.chdir("/")
    assert place.opened[-1].is_current()


# ---------------------------------------------------------------- creation


def test_create_file_makes_the_whole_file(place: Place) -> None:
    create_file(place.disk, place.path(), b"x" * 10_000, 0o600)
    assert place.open().read(0, 20_000) == b"x" * 10_000
    with pytest.raises(FileNotFoundError):
        place.open("a-new0")


def test_create_file_leaves_a_file_that_is_there(place: Place) -> None:
    place.create("a", b"theirs")
    create_file(place.disk, place.path(), b"ours", 0o600)
    assert place.open().read(0, 20) == b"theirs"
    with pytest.raises(FileNotFoundError):
        place.open("a-new0")


def test_create_file_passes_by_what_a_crash_left(place: Place) -> None:
    place.create("a-new0", b"half")
    create_file(place.disk, place.path(), b"ours", 0o600)
    assert place.open().read(0, 20) == b"ours"
    assert place.open("a-new0").read(0, 20) == b"half"


def test_create_file_gives_up_among_too_many_leftovers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage_module, "_TEMPORARY_NAMES", 2)
    disk = MemoryDisk({"/a-new0": b"", "/a-new1": b""})
    with pytest.raises(FileExistsError):
        create_file(disk, "/a", b"x", 0o600)
    assert disk.paths() == ["/a-new0", "/a-new1"]


def test_create_file_cleans_up_after_each_failure() -> None:
    for at in itertools.count(1):
        disk = MemoryDisk()
        faulty = FaultyDisk(disk)
        fault = faulty.fail(errno.EIO, at=at, partial=None)
        with contextlib.suppress(OSError):
            create_file(faulty, "/a", b"whole", 0o600)
        if not fault.fired:
            break
        assert disk.paths() in ([], ["/a"]) or fault.seen == 5, "only a failing removal leaves the temporary name"
        if "/a" in disk.paths():
            assert disk.content("/a") == b"whole"
        create_file(disk, "/a", b"whole", 0o600)
        assert disk.content("/a") == b"whole"
    assert at == 7, "create, write, flush, link, remove, flush_directory"


def test_create_file_killed_anywhere_leaves_nothing_or_all() -> None:
    for at in itertools.count(1):
        disk = MemoryDisk()
        faulty = FaultyDisk(disk)
        fault = faulty.kill(at=at)
        with contextlib.suppress(SimulatedKill):
            create_file(faulty, "/a", b"whole", 0o600)
        if not fault.fired:
            break
        assert "/a" not in disk.paths() or disk.content("/a") == b"whole"
        create_file(disk, "/a", b"whole", 0o600)
        assert disk.content("/a") == b"whole"
    assert at == 7


@pytest.mark.parametrize("sector", [512, 4096])
def test_create_file_survives_a_power_cut_anywhere(sector: int) -> None:
    """etcd 16596: a power cut while bbolt created its file left one that never opened."""
    disk = CrashDisk()
    create_file(disk, "/a", b"x" * 2048, 0o600)
    for index in range(len(disk.trace) + 1):
        for image in disk.every_image(index, sector=sector):
            assert "/a" not in image.paths() or image.content("/a") == b"x" * 2048
            again = CrashDisk(image)
            create_file(again, "/a", b"x" * 2048, 0o600)
            assert again.content("/a") == b"x" * 2048
    assert all(image.content("/a") == b"x" * 2048 for image in disk.every_image(len(disk.trace)))


# ---------------------------------------------------------------- all disks do the same

numbers = st.integers(0, 5 * PAGE // 2)
operations = st.one_of(
    st.tuples(st.just("write"), numbers, st.lists(st.binary(max_size=700), max_size=3)),
    st.tuples(st.just("fill"), numbers, st.integers(1, 2 * PAGE)),
    st.tuples(st.just("resize"), numbers),
    st.tuples(st.just("reserve"), numbers, st.integers(1, PAGE)),
    st.tuples(st.just("map")),
    st.tuples(st.just("flush")),
)


def run(storage: Storage, steps: list[tuple[object, ...]]) -> list[object]:
    """What can be seen of a storage while it does `steps`."""
    seen: list[object] = []
    mappings = []
    for step in steps:
        match step:
            case "write", int(offset), list(buffers):
                storage.write(offset, buffers)
            case "fill", int(offset), int(length):
                storage.write(offset, [bytes([len(seen) % 255 + 1]) * length])
            case "resize", int(size):
                storage.resize(size)
            case "reserve", int(offset), int(length):
                storage.reserve(offset, length)
            case ("flush",):
                storage.flush()
            case _:
                if size := storage.size() // mmap.PAGESIZE * mmap.PAGESIZE:
                    mappings.append(storage.map(size))
        size = storage.size()
        seen.append((size, storage.read(0, size + 1), [mapping[0 : min(len(mapping), size)] for mapping in mappings]))
    return seen


@given(st.lists(operations, max_size=12))
def test_fakes_do_what_the_real_disk_does(tmp_path_factory: pytest.TempPathFactory, steps: list) -> None:
    directory = str(tmp_path_factory.mktemp("same"))
    results = []
    for make in (FileDisk, MemoryDisk, CrashDisk):
        storage = make().create(os.path.join(directory, "a"), 0o600)
        results.append(run(storage, steps))
        storage.close()
    assert results[0] == results[1] == results[2]


# ---------------------------------------------------------------- the real disk alone


def test_mode_and_umask(real: Place) -> None:
    real.create("a", mode=0o640)
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE(os.stat(real.path("a")).st_mode) == 0o640 & ~mask


def test_descriptor_is_not_inherited_and_is_closed(real: Place) -> None:
    storage = real.create()
    assert isinstance(storage, FileStorage)
    fd = storage._fd
    assert not os.get_inheritable(fd)
    storage.close()
    with pytest.raises(OSError):
        os.fstat(fd)


@pytest.mark.parametrize("read_only", [True, False])
def test_only_regular_files_open(real: Place, *, read_only: bool) -> None:
    with pytest.raises(IsADirectoryError):
        real.disk.open(real.directory, read_only=read_only)
    os.mkfifo(real.path("pipe"))
    with pytest.raises(OSError) as caught:
        real.disk.open(real.path("pipe"), read_only=read_only)
    assert caught.value.errno == errno.EINVAL


def test_mapping_is_read_only_for_good(real: Place) -> None:
    mapping = real.create(content=bytes(PAGE)).map(PAGE)
    view = memoryview(mapping)
    assert view.readonly
    with pytest.raises(TypeError):
        view[0] = 1


def test_is_current_when_a_directory_on_the_way_is_gone(real: Place) -> None:
    os.mkdir(real.path("d"))
    storage = real.create("d/a")
    os.rename(real.path("d"), real.path("e"))
    assert not storage.is_current()
    Path(real.path("d")).write_bytes(b"")
    assert not storage.is_current()


def test_reserve_allocates_blocks(real: Place) -> None:
    storage = real.create()
    storage.resize(1 << 20)
    before = os.stat(real.path()).st_blocks
    storage.reserve(0, 1 << 20)
    after = os.stat(real.path()).st_blocks
    if after == before:
        pytest.skip("this file system does not reserve")
    assert after * 512 >= 1 << 20


def test_reserve_where_the_file_system_cannot(real: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "unsupported")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "full")

    storage = real.create(content=b"x")
    monkeypatch.setattr(os, "posix_fallocate", unsupported)
    storage.reserve(0, PAGE)
    assert storage.read(0, 2 * PAGE) == b"x".ljust(PAGE, b"\0")
    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError) as caught:
        storage.reserve(0, 2 * PAGE)
    assert caught.value.errno == errno.ENOSPC
    monkeypatch.delattr(os, "posix_fallocate")
    storage.reserve(PAGE, PAGE)
    assert storage.size() == 2 * PAGE


def test_unclosed_storage_warns_and_is_closed(real: Place) -> None:
    storage = FileDisk().create(real.path(), 0o600)
    fd = storage._fd
    with pytest.warns(ResourceWarning, match="unclosed"):
        storage.__del__()
    with pytest.raises(OSError):
        os.fstat(fd)


def test_repr_says_what_it_is(real: Place) -> None:
    storage = real.create()
    assert "open" in repr(storage)
    assert "read-only" in repr(real.open(read_only=True))
    storage.close()
    assert "closed" in repr(storage)


def test_flush_calls_the_system(real: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is the one call that nobody can see the effect of, so here the system's own is replaced."""
    called = []
    storage = real.create()
    monkeypatch.setattr(os, "fsync", lambda fd: called.append(("fsync", fd)))
    monkeypatch.setattr(os, "fdatasync", lambda fd: called.append(("fdatasync", fd)))
    if sys.platform == "linux":
        storage.flush()
        assert called == [("fdatasync", storage._fd)]  # type: ignore[attr-defined]
        called.clear()
        monkeypatch.delattr(os, "fdatasync")
        storage.flush()
        assert called == [("fsync", storage._fd)]  # type: ignore[attr-defined]
        called.clear()
        real.disk.flush_directory(real.path())
        assert [name for name, _ in called] == ["fsync"]


@pytest.mark.parametrize(
    ("answer", "calls", "raised"),
    [(None, ["full"], None), (errno.ENOTSUP, ["full", "fsync"], None), (errno.EIO, ["full"], errno.EIO)],
)
def test_flush_on_macos_goes_through_the_drive(
    real: Place, monkeypatch: pytest.MonkeyPatch, answer: int | None, calls: list[str], raised: int | None
) -> None:
    """Its fsync stops at the drive's cache.  An error of the medium must not be asked about a second time."""
    fcntl = pytest.importorskip("fcntl")
    made = []

    def full(_fd: int, command: int) -> None:
        assert command == 51
        made.append("full")
        if answer is not None:
            raise OSError(answer, os.strerror(answer))

    storage = real.create()
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(fcntl, "F_FULLFSYNC", 51, raising=False)
    monkeypatch.setattr(fcntl, "fcntl", full)
    monkeypatch.setattr(os, "fsync", lambda _fd: made.append("fsync"))
    if raised is None:
        storage.flush()
    else:
        with pytest.raises(OSError) as caught:
            storage.flush()
        assert caught.value.errno == raised
    assert made == calls


def test_directories_that_cannot_be_flushed_need_not(real: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(number: int) -> Callable[[int], None]:
        def fsync(_fd: int) -> None:
            raise OSError(number, os.strerror(number))

        return fsync

    monkeypatch.setattr(os, "fsync", fail(errno.EINVAL))
    real.disk.flush_directory(real.path())
    monkeypatch.setattr(os, "fsync", fail(errno.EIO))
    with pytest.raises(OSError) as caught:
        real.disk.flush_directory(real.path())
    assert caught.value.errno == errno.EIO


def test_the_name_of_an_open_file_is_flushed_where_it_lies(real: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkdir(real.path("elsewhere"))
    real.disk.create(real.path("elsewhere/a"), 0o600).close()
    os.symlink(real.path("elsewhere/a"), real.path("link"))
    storage = real.disk.open(real.path("link"), read_only=False)
    real.opened.append(storage)
    flushed = []
    monkeypatch.setattr(os, "fsync", lambda fd: flushed.append(os.fstat(fd).st_ino))
    storage.flush_name()
    assert flushed == [os.stat(real.path("elsewhere")).st_ino], "the directory of the file, not that of the link"

    def refuse(path: str, flags: int) -> int:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)

    monkeypatch.setattr(os, "open", refuse)
    storage.flush_name()  # it cannot be flushed by this user, who may write all the same


def test_link_without_hard_links_renames(real: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(source: str, target: str) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM), source, None, target)

    monkeypatch.setattr(os, "link", no_links)
    create_file(real.disk, real.path("a"), b"first", 0o600)
    create_file(real.disk, real.path("a"), b"second", 0o600)
    assert os.listdir(real.directory) == ["a"]
    assert real.open("a").read(0, 9) == b"first"


def test_link_passes_other_errors_on(real: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_source: str, _target: str) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "link", broken)
    with pytest.raises(OSError) as caught:
        create_file(real.disk, real.path("a"), b"x", 0o600)
    assert caught.value.errno == errno.EIO
    assert os.listdir(real.directory) == []


# ---------------------------------------------------------------- write calls


@pytest.fixture
def write_calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, list[int]]]:
    """Offset and lengths of each write call that is really made."""
    calls: list[tuple[int, list[int]]] = []
    write_some = storage_module._write_some

    def observed(storage: storage_module.FileStorage, views: list[memoryview], offset: int) -> int:
        calls.append((offset, [len(view) for view in views]))
        return write_some(storage, views, offset)

    monkeypatch.setattr(storage_module, "_write_some", observed)
    return calls


def test_calls_are_capped_in_bytes(real: Place, write_calls: list[tuple[int, list[int]]]) -> None:
    limit = storage_module.WRITE_LIMIT
    data = os.urandom(3 * limit + 5)
    real.create().write(0, [b"a" * 8192] * 101 + [data] + [b"b" * 8192])
    assert [lengths for _, lengths in write_calls[:26]] == [[8192] * 4] * 25 + [[8192]], "no page is split without need"
    assert [lengths for _, lengths in write_calls[26:]] == [[limit]] * 3 + [[5, 8192]]
    assert real.open().read(0, 1 << 30) == b"a" * 827_392 + data + b"b" * 8192


@pytest.mark.parametrize("length", [20_000, 32_700, 32 * 1024, 33_000, 100_000, 262_000])
def test_a_value_and_what_stands_around_it_go_in_one_call(
    real: Place, write_calls: list[tuple[int, list[int]]], length: int
) -> None:
    """Parts of a page would be read from the disk first."""
    rest = -(length + 32) % 8192
    real.create().write(0, [b"h" * 32, b"v" * length, b"r" * rest])
    assert [sum(lengths) for _, lengths in write_calls] == [32 + length + rest]
    assert real.open().read(0, 1 << 30) == b"h" * 32 + b"v" * length + b"r" * rest


def test_a_long_value_is_cut_where_pages_end(real: Place, write_calls: list[tuple[int, list[int]]]) -> None:
    length = 1_000_000
    rest = -(length + 32) % 8192
    data = os.urandom(length)
    real.create().write(0, [b"h" * 32, data, b"r" * rest, *[b"p" * 8192] * 9])
    assert all(offset % 8192 == sum(lengths) % 8192 == 0 for offset, lengths in write_calls)
    assert len(write_calls) == 4 + 3
    assert real.open().read(0, 1 << 30) == b"h" * 32 + data + b"r" * rest + b"p" * 8192 * 9


def test_calls_are_capped_in_buffers(real: Place, write_calls: list[tuple[int, list[int]]]) -> None:
    count = storage_module.IOV_MAX * 2 + 1
    real.create().write(0, [b"xy"] * count)
    assert [len(lengths) for _, lengths in write_calls] == [storage_module.IOV_MAX, storage_module.IOV_MAX, 1]
    assert real.open().read(0, 1 << 20) == b"xy" * count


@pytest.mark.parametrize("step", [1, 3, 4, 7, 100])
def test_short_writes_are_continued(real: Place, monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """py-lmdb 476: a short write was taken for an error."""
    storage = real.create()

    def short(storage: storage_module.FileStorage, views: list[memoryview], offset: int) -> int:
        return os.pwrite(storage._fd, b"".join(views)[:step], offset)

    monkeypatch.setattr(storage_module, "_write_some", short)
    storage.write(5, [b"abcd", bytearray(b"efghij"), b"k"])
    assert storage.read(0, 100) == b"\0\0\0\0\0abcdefghijk"


@pytest.mark.parametrize("call", ["_write_some", "_flush_data"])
def test_who_closes_the_storage_just_before_a_call_turns_it_against_no_other_file(
    real: Place, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, call: str
) -> None:
    """As a signal's handler may: what is opened next gets the same descriptor."""
    storage = real.create()
    assert isinstance(storage, storage_module.FileStorage)
    before = storage._fd
    made = getattr(storage_module, call)
    opened = []

    def closing(closed: storage_module.FileStorage, *arguments: object) -> object:
        closed.close()
        opened.append(os.open(tmp_path / "other", os.O_RDWR | os.O_CREAT))
        return made(closed, *arguments)

    monkeypatch.setattr(storage_module, call, closing)
    with pytest.raises(OSError, match="Bad file descriptor"):
        if call == "_flush_data":
            storage.flush()
        else:
            storage.write(0, [b"x"])
    assert opened == [before]
    assert os.fstat(before).st_size == 0
    os.close(before)


def test_a_write_without_progress_is_an_error_not_a_hang(real: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = real.create()
    monkeypatch.setattr(storage_module, "_write_some", lambda *_: 0)
    with pytest.raises(OSError) as caught:
        storage.write(0, [b"x"])
    assert caught.value.errno == errno.EIO


def test_systems_without_pwritev(real: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = real.create()
    monkeypatch.delattr(os, "pwritev")
    storage.write(1, [b"ab", b"", b"cde", b"x" * 300_000])
    assert storage.read(0, 1 << 20) == b"\0abcde" + b"x" * 300_000


def test_reads_longer_than_one_call(real: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """py-lmdb 474: values over 2 GiB were cut short."""
    monkeypatch.setattr(storage_module, "READ_LIMIT", 7)
    storage = real.create(content=bytes(range(100)))
    assert storage.read(1, 50) == bytes(range(1, 51))
    assert storage.read(90, 50) == bytes(range(90, 100))
    assert storage.read(0, 14) == bytes(range(14))


def test_a_real_short_write_then_an_error(tmp_path: Path) -> None:
    """The system's own limit on file sizes: it takes what fits, then says EFBIG."""
    program = """
import errno, resource, sys
from cowdb.storage import FileDisk
storage = FileDisk().create(sys.argv[1], 0o600)
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
try:
    storage.write(0, [b"a" * 4096] * 4)
except OSError as error:
    assert error.errno == errno.EFBIG, error
else:
    raise SystemExit("no error")
assert storage.size() == 10_000, storage.size()
storage.close()
"""
    subprocess.run([sys.executable, "-c", program, str(tmp_path / "a")], check=True, timeout=60)


def test_signals_interrupt_nothing(tmp_path: Path) -> None:
    """A timer fires thousands of times while large writes and reads go on."""
    program = """
import signal, sys
from cowdb.storage import FileDisk
fired = 0
def handler(*_):
    global fired
    fired += 1
signal.signal(signal.SIGALRM, handler)
signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
storage = FileDisk().create(sys.argv[1], 0o600)
pages = [bytes([index]) * 8192 for index in range(256)] * 4
while fired < 50:
    storage.write(0, pages)
    storage.flush()
    assert storage.read(0, 1 << 30) == b"".join(pages)
signal.setitimer(signal.ITIMER_REAL, 0)
storage.close()
"""
    subprocess.run([sys.executable, "-c", program, str(tmp_path / "a")], check=True, timeout=60)
