"""The calls of the system that every small transaction makes: the same in both forms of the kernel.

The compiled form asks the system itself, where the storage is a plain file; the plain one asks the storage.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import random
import signal
import subprocess
import sys
import threading
import time

import pytest

from cowdb import linux
from cowdb import sealed as plain
from cowdb import storage as storage_module
from cowdb.sealed import Sealed
from cowdb.storage import FileDisk
from cowdb.testing import MemoryDisk

try:
    from cowdb import _kernel as native
except ImportError:  # it was not built
    native = None

SIZE = 4096
FORMS = [
    pytest.param(plain.write_sealed, plain.write_page, bytearray, id="plain"),
    pytest.param(
        getattr(native, "write_sealed", None),
        getattr(native, "write_page", None),
        None,
        id="compiled",
        marks=pytest.mark.skipif(native is None, reason="the compiled kernel was not built"),
    ),
]


def both(name):
    """A function of `cowdb.storage` and its twin."""
    return [
        pytest.param(getattr(storage_module, name), id="plain"),
        pytest.param(
            getattr(native, name, None),
            id="compiled",
            marks=pytest.mark.skipif(native is None, reason="the compiled kernel was not built"),
        ),
    ]


def page_of(content, form):
    """A dirty page's memory in that form."""
    raw = content.ljust(SIZE, b".")
    if form is not None:
        return form(raw)
    frame = native.Frame(native.Frames(SIZE))
    memoryview(frame)[:] = raw
    return frame


def sealed_of(pages, form):
    sealed = Sealed()
    for number, content in pages:
        sealed.add(number, page_of(content, form))
    return sealed


@pytest.fixture
def storage(tmp_path):
    made = FileDisk().create(str(tmp_path / "f"), 0o600)
    made.resize(300 * SIZE)
    yield made
    made.close()


def reads(storage, number):
    return storage.read(number * SIZE, SIZE).rstrip(b".")


@pytest.mark.parametrize(("write_sealed", "write_page", "form"), FORMS)
@pytest.mark.parametrize("count", [1, 2, 3, 63, 64, 65, 200])
def test_pages_come_to_their_places_in_any_order(storage, write_sealed, write_page, form, count):
    numbers = random.Random(count).sample(range(2, 300), count)
    assert (
        write_sealed(storage, sealed_of([(number, b"%d" % number) for number in numbers], form), SIZE, flushed=True)
        == count
    )
    for number in range(2, 300):
        assert reads(storage, number) == (b"%d" % number if number in numbers else bytes(SIZE)), number
    assert storage.size() == 300 * SIZE


@pytest.mark.parametrize(("write_sealed", "write_page", "form"), FORMS)
@pytest.mark.parametrize("flushed", [True, False])
def test_very_many_pages_with_gaps_between_them(storage, write_sealed, write_page, form, flushed):
    """So many that the disk is asked to begin before all are written, if a flush follows."""
    storage.resize(9000 * SIZE)
    numbers = random.Random(1).sample(range(2, 9000), 5000)
    pages = sealed_of([(number, b"%d" % number) for number in numbers], form)
    assert write_sealed(storage, pages, SIZE, flushed=flushed) == 5000
    written = set(numbers)
    for number in range(2, 9000):
        assert reads(storage, number) == (b"%d" % number if number in written else bytes(SIZE)), number
    assert storage.size() == 9000 * SIZE


def write_calls():
    """How many calls that write this thread has made so far."""
    with open("/proc/thread-self/io") as counters:
        return next(int(line.split()[1]) for line in counters if line.startswith("syscw:"))


@pytest.mark.skipif(not os.path.exists("/proc/thread-self/io"), reason="the system does not count a thread's calls")
@pytest.mark.parametrize(("write_sealed", "write_page", "form"), FORMS)
def test_neighbours_go_in_one_call(storage, write_sealed, write_page, form):
    sealed = sealed_of([(number, b"x") for number in (9, 5, 7, 30, 6, 31, 50)], form)
    before = write_calls()
    write_sealed(storage, sealed, SIZE, flushed=True)
    assert write_calls() - before == 4


@pytest.mark.parametrize(("write_sealed", "write_page", "form"), FORMS)
def test_nothing_is_nothing(storage, write_sealed, write_page, form):
    assert write_sealed(storage, Sealed(), SIZE, flushed=True) == 0


@pytest.mark.parametrize(("write_sealed", "write_page", "form"), FORMS)
def test_one_page(storage, write_sealed, write_page, form):
    write_page(storage, 7, b"seven".ljust(SIZE, b"."))
    assert reads(storage, 7) == b"seven"
    assert reads(storage, 6) == reads(storage, 8) == bytes(SIZE)


@pytest.mark.parametrize(("write_sealed", "write_page", "form"), FORMS)
def test_values_of_several_buffers_too(storage, write_sealed, write_page, form):
    sealed = sealed_of([(4, b"four")], form)
    sealed.add(5, (b"f" * 100, b"." * (2 * SIZE - 100)))
    assert write_sealed(storage, sealed, SIZE, flushed=True) == 3
    assert [reads(storage, number) for number in (4, 5, 6)] == [b"four", b"f" * 100, b""]


@pytest.mark.parametrize(("write_sealed", "write_page", "form"), FORMS)
def test_what_takes_no_writes_says_so(storage, write_sealed, write_page, form):
    reader = FileDisk().open(storage.path, read_only=True)
    for closed in reader, storage:
        if closed is storage:
            closed.close()
        with pytest.raises(OSError, match="Bad file descriptor"):
            write_sealed(closed, sealed_of([(4, b"four")], form), SIZE, flushed=True)
        with pytest.raises(OSError, match="Bad file descriptor"):
            write_page(closed, 4, bytes(SIZE))
    reader.close()


@pytest.mark.parametrize(("write_sealed", "write_page", "form"), FORMS)
def test_a_disk_of_another_kind_is_asked(write_sealed, write_page, form):
    disk = MemoryDisk({"/f": bytes(10 * SIZE)})
    storage = disk.open("/f", read_only=False)
    write_sealed(storage, sealed_of([(4, b"four"), (2, b"two")], form), SIZE, flushed=True)
    write_page(storage, 5, b"five".ljust(SIZE, b"."))
    assert [reads(storage, number) for number in (2, 4, 5)] == [b"two", b"four", b"five"]


@pytest.mark.parametrize(("write_sealed", "write_page", "form"), FORMS)
def test_who_watches_each_call_sees_them(storage, monkeypatch, write_sealed, write_page, form):
    """Fault injectors and kills between two calls put something in the place of `_write_some`."""
    real, seen = storage_module._write_some, []

    def some(storage, views, offset):
        seen.append(offset)
        return real(storage, views, offset)

    monkeypatch.setattr(storage_module, "_write_some", some)
    write_sealed(storage, sealed_of([(4, b"four"), (9, b"nine")], form), SIZE, flushed=True)
    write_page(storage, 5, bytes(SIZE))
    assert seen == [4 * SIZE, 9 * SIZE, 5 * SIZE]


@pytest.mark.parametrize("turn", range(4))  # now and then it strikes between two calls, where nothing can go wrong
@pytest.mark.parametrize(("write_sealed", "write_page", "form"), FORMS)
def test_a_storage_that_a_signals_handler_closes_writes_into_no_other_file(
    tmp_path, storage, write_sealed, write_page, form, turn
):
    """The file that is opened next has the number of its descriptor."""
    fd = storage._fd
    other = []

    def close(*_):
        if not other:
            storage.close()
            other.append(os.open(tmp_path / "other", os.O_RDWR | os.O_CREAT))

    sealed = sealed_of([(number, b"x") for number in range(2, 300)], form)
    before = signal.signal(signal.SIGALRM, close)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.01 + 0.001 * turn)
        with pytest.raises(OSError, match="Bad file descriptor"):
            while True:  # it strikes in the middle of one of them, mostly
                write_sealed(storage, sealed, SIZE, flushed=True)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert other == [fd]
    assert os.fstat(fd).st_size == 0
    os.close(fd)


@pytest.mark.parametrize("size_of", both("size_of"))
def test_the_size_of_a_file(storage, size_of):
    assert size_of(storage) == 300 * SIZE
    storage.resize(7)
    assert size_of(storage) == 7
    storage.resize(5 << 32)
    assert size_of(storage) == 5 << 32
    assert size_of(MemoryDisk({"/f": bytes(10)}).open("/f", read_only=True)) == 10
    storage.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        size_of(storage)


LIMITED = """
import os, resource, signal, sys
sys.path.insert(0, {here!r})
from test_files import *
storage = FileDisk().create({path!r}, 0o600)
write_sealed, write_page, form = FORMS[{which}].values
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (5 * SIZE + 100, resource.RLIM_INFINITY))
for call in (
    lambda: write_sealed(storage, sealed_of([(number, b"%d" % number) for number in (3, 4, 5, 6)], form), SIZE, flushed=True),
    lambda: write_page(storage, 6, bytes(SIZE)),
):
    try:
        call()
    except OSError as error:
        print(error.errno == errno.EFBIG, error)
print([reads(storage, number) for number in (3, 4)], storage.size())
storage.close()
"""


@pytest.mark.parametrize(("write_sealed", "write_page", "form"), FORMS)
def test_a_short_write_goes_on_and_then_meets_the_limit(tmp_path, write_sealed, write_page, form):
    """The system takes part of a call, up to the limit, and refuses the next one."""
    script = "import errno\n" + LIMITED.format(
        here=os.path.dirname(__file__), path=str(tmp_path / "g"), which=0 if form else 1
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["True [Errno 27] File too large"] * 2 + [f"[b'3', b'4'] {5 * SIZE + 100}"]


@pytest.mark.parametrize(("write_sealed", "write_page", "form"), FORMS)
def test_signals_are_answered_between_two_writes_and_the_pages_are_whole(storage, write_sealed, write_page, form):
    seen = []
    before = signal.signal(signal.SIGUSR1, lambda *_: seen.append(1))
    stop = threading.Event()

    def shake():
        while not stop.is_set():
            os.kill(os.getpid(), signal.SIGUSR1)
            time.sleep(0)

    thread = threading.Thread(target=shake)
    thread.start()
    try:
        for turn in range(200):
            write_sealed(
                storage,
                sealed_of([(number, b"%d" % (turn + number)) for number in range(2, 60)], form),
                SIZE,
                flushed=True,
            )
    finally:
        stop.set()
        thread.join()
        signal.signal(signal.SIGUSR1, before)
    assert seen
    assert [reads(storage, number) for number in range(2, 60)] == [b"%d" % (199 + number) for number in range(2, 60)]


@pytest.mark.parametrize("begin_writing", both("begin_writing"))
def test_asking_the_disk_to_begin_changes_nothing_and_never_fails(storage, begin_writing):
    """It is a hint: whatever becomes of it, the flush tells."""
    storage.write(5 * SIZE, [b"five".ljust(SIZE, b".")])
    for little in (True, False):
        assert begin_writing(storage, 0, little=little) is None
        assert begin_writing(storage, 1 << 40, little=little) is None
    assert storage.read(5 * SIZE, 5) == b"five."
    assert begin_writing(MemoryDisk({"/f": bytes(10)}).open("/f", read_only=False), 0, little=True) is None
    storage.close()
    assert begin_writing(storage, 0, little=True) is None


@pytest.mark.skipif(sys.platform != "linux", reason="it is Linux's call")
def test_python_finds_the_call_that_has_the_disk_begin(storage, monkeypatch):
    asked = []
    real = linux.sync_file_range

    def watched(*arguments):
        asked.append((*arguments, real(*arguments)))
        return asked[-1][-1]

    monkeypatch.setattr(linux, "sync_file_range", watched)
    storage.begin_writing(SIZE)
    fd, storage._fd = storage._fd, -1
    storage.begin_writing(SIZE)
    storage._fd = fd
    assert asked == [(fd, SIZE, 0), (-1, SIZE, errno.EBADF)]


@pytest.mark.parametrize("gone", ["ctypes", "library", "system"])
def test_without_the_c_library_python_does_without(tmp_path, storage, monkeypatch, gone):
    """Whatever the reason: an audit hook may raise anything."""

    def refused(*_, **__):
        raise RuntimeError

    linux._call.cache_clear()
    if gone == "ctypes":
        monkeypatch.setitem(sys.modules, "ctypes", None)
    elif gone == "library":
        monkeypatch.setattr(ctypes, "CDLL", refused)
    else:
        monkeypatch.setattr(sys, "platform", "another")
    try:
        assert linux.sync_file_range(storage._fd, 0) == errno.ENOSYS
        assert linux.device_and_inode(storage.path) is None
        storage.begin_writing(0)
        assert storage.is_current()
        assert not storage_module.leads_to(str(tmp_path / "nothing"), storage.identity())
    finally:
        linux._call.cache_clear()


def test_what_the_system_cannot_begin_with_is_an_error(storage, monkeypatch):
    """It forgets such pages, and the next flush says nothing; where it could not even look, the flush does it all."""
    for error in (errno.EIO, errno.ENOSPC):
        monkeypatch.setattr(linux, "sync_file_range", lambda *_, error=error: error)
        with pytest.raises(OSError, match=os.strerror(error)) as caught:
            storage.begin_writing(0)
        assert caught.value.errno == error
        assert caught.value.filename == storage.path
    for error in (errno.EINVAL, errno.ENOSYS, errno.ENOMEM, errno.EINTR):
        monkeypatch.setattr(linux, "sync_file_range", lambda *_, error=error: error)
        storage.begin_writing(0)


def test_without_memory_for_arguments_python_does_without(storage, monkeypatch):
    """`ctypes` calls it an error of the argument: nobody who writes is to be told of that."""

    def refuses(*_):
        raise ctypes.ArgumentError("argument 2: MemoryError: ")

    monkeypatch.setattr(linux, "_call", lambda *_: (refuses, None, ctypes.ArgumentError))
    assert linux.sync_file_range(storage._fd, 0) == errno.ENOMEM
    assert linux.device_and_inode(storage.path) is None
    storage.begin_writing(0)
    assert storage.is_current()


# ---------------------------------------------------------------- where a path leads


def storage_of(path):
    return storage_module.FileStorage(path, os.O_RDWR, 0, read_only=False)


@pytest.mark.parametrize("leads_to", both("leads_to"))
def test_a_path_leads_to_its_file(tmp_path, leads_to):
    path = str(tmp_path / "f")
    (tmp_path / "f").write_bytes(b"one")
    found = os.stat(path)
    identity = found.st_dev, found.st_ino
    os.link(path, tmp_path / "second")
    os.symlink(path, tmp_path / "third")
    with contextlib.closing(storage_of(path)):
        assert leads_to(path, identity) is True
        assert leads_to(str(tmp_path / "second"), identity) is True
        assert leads_to(str(tmp_path / "third"), identity) is True
        os.rename(path, tmp_path / "elsewhere")
        assert leads_to(path, identity) is leads_to(str(tmp_path / "third"), identity) is False
        assert leads_to(str(tmp_path / "elsewhere"), identity) is True
        (tmp_path / "f").write_bytes(b"two")
        assert leads_to(path, identity) is False
        assert leads_to(path + "/below", identity) is False
        os.rename(tmp_path / "elsewhere", path)
        assert leads_to(path, identity) is True
        os.remove(path)
        os.remove(tmp_path / "second")
        assert leads_to(path, identity) is False
        (tmp_path / "f").write_bytes(b"three")
        assert leads_to(path, identity) is False


@pytest.mark.parametrize("leads_to", both("leads_to"))
def test_a_directory_on_the_way_is_renamed_or_becomes_a_link(tmp_path, leads_to):
    (tmp_path / "here").mkdir()
    path = str(tmp_path / "here" / "f")
    (tmp_path / "here" / "f").write_bytes(b"one")
    with contextlib.closing(storage_of(path)) as storage:
        identity = storage.identity()
        os.rename(tmp_path / "here", tmp_path / "there")
        assert leads_to(path, identity) is False
        os.symlink("there", tmp_path / "here")
        assert leads_to(path, identity) is True
        (tmp_path / "other").mkdir()
        (tmp_path / "other" / "f").write_bytes(b"two")
        os.remove(tmp_path / "here")
        os.symlink("other", tmp_path / "here")
        assert leads_to(path, identity) is False


@pytest.mark.parametrize("leads_to", both("leads_to"))
@pytest.mark.skipif(sys.platform != "linux", reason="the coarse clock and the times that are looked for are Linux's")
def test_a_look_where_a_path_leads_leaves_the_times_of_the_file_coarse(tmp_path, leads_to):
    """Since Linux 6.13, who has seen them makes the next write change the inode, which a flush may have to write."""
    coarse = 5  # CLOCK_REALTIME_COARSE: moves on every few milliseconds
    path = str(tmp_path / "f")
    (tmp_path / "f").write_bytes(b"one")
    with contextlib.closing(storage_of(path)) as storage:
        identity = storage.identity()
        kept = []
        for _ in range(300):
            time.sleep(0.01)
            began = time.clock_gettime_ns(coarse)
            storage.write(0, [b"two"])
            assert leads_to(path, identity) is True
            storage.write(0, [b"one"])
            if time.clock_gettime_ns(coarse) == began:
                # Other processes that look and write may have moved on what Linux takes for now.
                kept.append(os.stat(path).st_mtime_ns <= began)
                if kept[-1]:
                    break
    assert any(kept)


@pytest.mark.parametrize("leads_to", both("leads_to"))
def test_a_path_that_cannot_be_looked_at(tmp_path, leads_to):
    (tmp_path / "f").write_bytes(b"one")
    with contextlib.closing(storage_of(str(tmp_path / "f"))) as storage:
        with pytest.raises(ValueError, match="null"):
            leads_to(str(tmp_path / "a\0b"), (1, 2))
        os.symlink("loop", tmp_path / "loop")
        with pytest.raises(OSError, match="Too many levels") as caught:
            leads_to(str(tmp_path / "loop"), (1, 2))
        assert caught.value.filename == str(tmp_path / "loop")
        name = os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xfe")
        assert leads_to(name, (1, 2)) is False
        with open(name, "wb"):
            found = os.stat(name)
        assert leads_to(name, (found.st_dev, found.st_ino)) is True
    with contextlib.closing(storage_of(name)) as storage:
        assert leads_to(name, storage.identity()) is True
