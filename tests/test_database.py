"""The public database: opening of every kind, locks between threads and processes, pickle, closing."""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import pathlib
import pickle
import random
import subprocess
import sys
import threading
import time
import warnings
import weakref

import pytest

import cowdb
from cowdb import core as core_module
from cowdb import database as database_module
from cowdb import format as fmt
from cowdb import opening
from cowdb.checksum import crc32c
from cowdb.database import open_on
from cowdb.storage import FileDisk
from cowdb.testing import MemoryDisk


def in_thread(work):
    """Run `work` in another thread; what it returned or raised."""
    result = []

    def run():
        try:
            result.append(work())
        except BaseException as error:  # noqa: BLE001 - whatever it was, the test looks at it
            result.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(30)
    assert not thread.is_alive(), "it waits for ever"
    return result[0]


def until(condition):
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.002)


class Child:
    """Another Python that runs `code` with a database in `path`; it says "ready" and ends when told to."""

    def __init__(self, code, path, *options):
        program = f"import sys, cowdb, os\npath = sys.argv[1]\n{code}\nprint('ready', flush=True)\nsys.stdin.read()\n"
        self.process = subprocess.Popen(
            [sys.executable, *options, "-c", program, str(path)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        line = self.process.stdout.readline()
        assert line == "ready\n", self.process.stderr.read()

    def end(self):
        out, err = self.process.communicate(timeout=30)
        assert self.process.returncode == 0, err
        return out

    def kill(self):
        self.process.kill()
        self.process.communicate()


@contextlib.contextmanager
def child(code, path):
    process = Child(code, path)
    try:
        yield process
    finally:
        process.kill()


# ---------------------------------------------------------------- opening: arguments


@pytest.mark.guarantee
@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"page_size": 0}, ValueError),
        ({"page_size": 1000}, ValueError),
        ({"page_size": 65536}, ValueError),
        ({"page_size": 8192.0}, TypeError),
        ({"page_size": "8192"}, TypeError),
        ({"page_size": None}, TypeError),
        ({"durability": "none"}, ValueError),
        ({"durability": None}, ValueError),
        ({"durability": ["full"]}, ValueError),
        ({"max_size": 0}, ValueError),
        ({"max_size": -1}, ValueError),
        ({"max_size": 16 * 8192 - 1}, ValueError),
        ({"max_size": 1e9}, TypeError),
        ({"max_size": "1G"}, TypeError),
        ({"mode": "0600"}, TypeError),
        ({"mode": None}, TypeError),
        ({"lock_timeout": "1"}, TypeError),
        ({"unknown": 1}, TypeError),
    ],
)
def test_a_wrong_argument_is_refused_and_makes_no_file(tmp_path, options, error):
    with pytest.raises(error):
        cowdb.open(tmp_path / "db", **options)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("path", [b"db", 3, None, ["db"]])
def test_a_path_is_a_str_or_a_path(path):
    with pytest.raises(TypeError):
        cowdb.open(path)


def test_a_pathlike_of_bytes_is_refused():
    class Bytes:
        def __fspath__(self):
            return b"db"

    with pytest.raises(TypeError, match="str"):
        cowdb.open(Bytes())


def test_a_str_and_a_path_are_as_good(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with cowdb.open("db") as db:
        assert db.path == str(tmp_path / "db")
        db[b"a"] = b"1"
    with cowdb.open(pathlib.Path("db")) as db:
        assert db[b"a"] == b"1"


# ---------------------------------------------------------------- opening: files


def test_the_file_has_the_permissions_that_were_asked_for(tmp_path):
    for mode in (0o600, 0o640):
        with cowdb.open(tmp_path / f"db{mode}", mode=mode):
            pass
        assert (tmp_path / f"db{mode}").stat().st_mode & 0o777 == mode & ~umask()
    assert sorted(os.listdir(tmp_path)) == ["db384", "db384-lock", "db416", "db416-lock"]  # nothing else is left


def umask():
    old = os.umask(0)
    os.umask(old)
    return old


@pytest.mark.parametrize("options", [{"create": False}, {"read_only": True}])
def test_without_leave_to_create_a_missing_file_stays_missing(tmp_path, options):
    with pytest.raises(FileNotFoundError, match="no such database"):
        cowdb.open(tmp_path / "db", **options)
    assert os.listdir(tmp_path) == []


def test_a_missing_directory_is_not_made(tmp_path):
    with pytest.raises(FileNotFoundError):
        cowdb.open(tmp_path / "missing" / "db")


@pytest.mark.guarantee
def test_a_directory_is_no_database(tmp_path):
    for read_only in (False, True):
        with pytest.raises(cowdb.NotADatabaseError, match="directory"):
            cowdb.open(tmp_path, read_only=read_only)


@pytest.mark.guarantee
@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes")
def test_a_pipe_is_no_database_and_nobody_waits_for_its_other_end(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for read_only in (False, True):
        with pytest.raises(OSError) as caught:
            cowdb.open(tmp_path / "pipe", read_only=read_only)
        assert caught.value.errno in (errno.EINVAL, errno.ENXIO)


@pytest.mark.guarantee
@pytest.mark.parametrize("content", [b"", b"\0", b"hello\n", bytes(8192), bytes(100_000), b"\x89COW\r\n\x1a\n" * 4])
def test_another_file_is_called_no_database_and_not_touched(tmp_path, content):
    path = tmp_path / "file"
    path.write_bytes(content)
    for read_only in (False, True):
        with pytest.raises(cowdb.NotADatabaseError) as caught:
            cowdb.open(path, read_only=read_only)
        assert isinstance(caught.value, ValueError)
        assert str(path) in str(caught.value)
    assert path.read_bytes() == content
    assert os.listdir(tmp_path) == ["file"], "no lock file beside what is no database"
    assert not core_module.cores


@pytest.mark.parametrize("page_size", [4096, 32768])
def test_a_lock_file_is_no_database(tmp_path, page_size):
    """The story: it has copies of the meta pages, so it passed for a database whose meta pages are destroyed."""
    with cowdb.open(tmp_path / "db", page_size=page_size) as db:
        for _ in range(3):
            for read_only in (False, True):
                with pytest.raises(cowdb.NotADatabaseError, match="lock file of one; name the database itself"):
                    cowdb.open(tmp_path / "db-lock", read_only=read_only)
            db[b"k"] = b"v"
        assert sorted(os.listdir(tmp_path)) == ["db", "db-lock"]


def test_what_the_caller_has_not_named_is_in_no_message(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no such directory.*missing'$"):
        cowdb.open(tmp_path / "missing" / "db")
    with pytest.raises(FileNotFoundError, match="with create=False none is made"):
        cowdb.open(tmp_path / "db", create=False)
    with pytest.raises(FileNotFoundError, match="with read_only=True none is made"):
        cowdb.open(tmp_path / "db", read_only=True)
    with pytest.raises(ValueError, match="the path is empty"):
        cowdb.open("")
    assert os.listdir(tmp_path) == []


def test_a_timeout_that_is_none(database):
    for option in ("1", b"", [], object()):
        with pytest.raises(TypeError, match="timeout is a number of seconds or None"):
            database().write(timeout=option)


def test_one_call_conveniences(database):
    db = database()
    assert db.put(b"k", b"1") is True
    assert db.put(b"k", b"2", overwrite=False) is False
    assert db[b"k"] == b"1"
    assert db.put(b"k", b"3") is True
    assert db.get(b"k") == b"3"
    assert db.delete(b"k") is True
    assert db.delete(b"k") is False
    assert len(db) == 0
    with pytest.raises(TypeError, match="encode"):
        db.put("k", b"")


def test_a_failed_opening_lets_the_file_go(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"no database")
    for _ in range(3):
        with pytest.raises(cowdb.NotADatabaseError):
            cowdb.open(path)
    path.unlink()
    cowdb.open(path).close()


@pytest.mark.guarantee
def test_a_file_of_the_future_is_refused(tmp_path):
    path = tmp_path / "db"
    cowdb.open(path).close()
    raw = bytearray(path.read_bytes())
    for slot in (0, 1):
        page = raw[slot * 8192 : (slot + 1) * 8192]
        at = fmt.META.offset("format version")
        page[at : at + 2] = (2).to_bytes(2, "little")
        page[:4] = crc32c(bytes(page[4:])).to_bytes(4, "little")
        raw[slot * 8192 : (slot + 1) * 8192] = page
    path.write_bytes(raw)
    with pytest.raises(cowdb.VersionError, match="newer cowdb"):
        cowdb.open(path)
    assert path.read_bytes() == raw


@pytest.mark.guarantee
def test_a_file_cut_at_any_length_gives_a_typed_error_or_the_data(tmp_path):
    path = tmp_path / "db"
    with cowdb.open(path, page_size=4096) as db, db.write() as transaction:
        transaction.update((b"%03d" % number, b"v" * 100) for number in range(100))
    whole = path.read_bytes()
    for length in [0, 1, 31, 100, 4095, 4096, 5000, 8191, 8192, *range(8192, len(whole), 3000), len(whole) - 1]:
        cut = tmp_path / "cut"
        cut.write_bytes(whole[:length])
        with contextlib.suppress(cowdb.Error), cowdb.open(cut) as db:
            for key, value in db.read().items():
                assert value == b"v" * 100, key
        cut.unlink()


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
def test_a_file_that_may_only_be_read_says_how_to_open_it(tmp_path, monkeypatch):
    path = tmp_path / "db"
    with cowdb.open(path) as db:
        db[b"a"] = b"1"

    def refuse(self, path, *, read_only):
        if not read_only:
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return opened(self, path, read_only=True)

    opened = FileDisk.open
    monkeypatch.setattr(FileDisk, "open", refuse)
    with pytest.raises(cowdb.ReadOnlyError, match="read_only=True"):
        cowdb.open(path)
    with cowdb.open(path, read_only=True) as db:
        assert db[b"a"] == b"1"
    monkeypatch.setattr(database_module.os, "access", lambda *_: False)
    with pytest.raises(PermissionError):
        cowdb.open(path)
    monkeypatch.setattr(database_module.os, "access", lambda *_: 1 / 0)
    monkeypatch.setattr(database_module.os, "stat", lambda *_: 1 / 0)

    def broken(*_):
        raise OSError

    monkeypatch.setattr(database_module.os, "access", broken)
    with pytest.raises(PermissionError):
        cowdb.open(path)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="needs to be root, to be somebody else")
def test_without_permission_a_plain_user_gets_an_os_error(tmp_path):
    path = tmp_path / "db"
    cowdb.open(path).close()
    os.chmod(path, 0o600)
    pid = os.fork()
    if not pid:
        status = 1
        try:
            os.setuid(65534)
            cowdb.open(path)
        except PermissionError:
            status = 0
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_the_page_size_is_for_a_new_file_only(tmp_path):
    with cowdb.open(tmp_path / "db", page_size=4096) as db:
        assert db.info()["page_size"] == 4096
        assert db.max_key_size == fmt.max_key_size(4096)
    with cowdb.open(tmp_path / "db", page_size=32768) as db:
        assert db.info()["page_size"] == 4096


def test_clock_and_id_make_a_file_repeatable():
    images = []
    for _ in range(2):
        disk = MemoryDisk()
        with open_on(disk, "/db", clock=lambda: 5, database_id=b"i" * 16) as db:
            db[b"a"] = b"1"
        images.append(disk.content("/db"))
    assert images[0] == images[1]
    with open_on(disk, "/db") as db:
        assert db.info()["database_id"] == (b"i" * 16).hex()


# ---------------------------------------------------------------- other processes


@pytest.mark.guarantee
def test_another_process_waits_for_the_writer_here_only_as_long_as_it_was_told(tmp_path):
    path = tmp_path / "db"
    other = Child("db = cowdb.open(path)\ndb[b'a'] = b'1'\nt = db.write()\nt[b'a'] = b'2'", path)
    with cowdb.open(path, lock_timeout=0.05) as db:
        assert db[b"a"] == b"1"
        for timeout in (None, 0, 0.05):
            with pytest.raises(cowdb.LockTimeoutError) as caught:
                db.write(timeout=timeout)
        assert caught.value.holder == other.process.pid
        other.kill()
        with db.write(timeout=20) as transaction:  # the kernel lets go of the locks of the dead
            assert transaction[b"a"] == b"1"
            transaction[b"b"] = b"2"
        assert db.check() == []
    with cowdb.open(path) as db:
        assert db[b"b"] == b"2"


@pytest.mark.guarantee
@pytest.mark.parametrize("durability", ["full", "lazy"])
def test_kill_9_of_the_process_that_has_it(tmp_path, durability):
    path = tmp_path / "db"
    code = f"""
db = cowdb.open(path, durability={durability!r}, page_size=4096)
for number in range(50):
    db[b'%d' % number] = b'x' * 500
open_transaction = db.write()
open_transaction[b'uncommitted'] = b'y' * 100_000
"""
    with child(code, path) as other:
        other.kill()
    with cowdb.open(path, lock_timeout=10) as db:
        assert len(db) == 50
        assert db.check() == []
        db[b"after"] = b"1"
        assert db.check() == []


@pytest.mark.guarantee
def test_kill_9_in_the_middle_of_commits(tmp_path):
    path = tmp_path / "db"
    code = """
import threading
db = cowdb.open(path, page_size=4096)
def work():
    number = 0
    while True:
        with db.write() as t:
            t[b'a'] = b'%d' % number; t[b'%d' % (number % 500)] = b'v' * (number % 3000); t[b'b'] = b'%d' % number
        number += 1
threading.Thread(target=work, daemon=True).start()
"""
    for delay in (0.05, 0.15, 0.3):
        with child(code, path) as other:
            time.sleep(delay)
            other.kill()
        with cowdb.open(path, lock_timeout=10) as db:
            with db.read() as snapshot:
                assert snapshot.get(b"a") == snapshot.get(b"b")
            assert db.check() == []
            db[b"check"] = b"1"
            assert db.check() == []


def test_a_file_that_is_replaced_while_it_is_opened_is_not_used(tmp_path, monkeypatch):
    path = tmp_path / "db"
    cowdb.open(path).close()
    cowdb.open(tmp_path / "other").close()
    real = opening.FileSharing

    def replaced(*arguments, **options):
        os.replace(tmp_path / "other", path)
        return real(*arguments, **options)

    monkeypatch.setattr(opening, "FileSharing", replaced)
    with pytest.raises(cowdb.Error, match="replaced"):
        cowdb.open(path)
    monkeypatch.setattr(opening, "FileSharing", real)
    cowdb.open(path).close()


@pytest.mark.guarantee
@pytest.mark.parametrize("what", ["renamed", "removed", "replaced"])
def test_a_file_that_is_renamed_removed_or_replaced_while_it_is_open(tmp_path, what):
    path = tmp_path / "db"
    db = cowdb.open(path)
    db[b"a"] = b"1"
    if what == "renamed":
        os.rename(path, tmp_path / "elsewhere")
    elif what == "removed":
        os.unlink(path)
    else:
        cowdb.open(tmp_path / "new").close()
        os.replace(tmp_path / "new", path)
    assert db[b"a"] == b"1"  # what is open can be read
    with pytest.raises(cowdb.Error, match="replaced, renamed or deleted"):
        db[b"b"] = b"2"
    assert db[b"a"] == b"1"
    db.close()
    with cowdb.open(path) as other:  # and the path leads to another database now
        assert len(other) == 0
        other[b"c"] = b"3"
        assert other.check() == []
    if what == "renamed":
        with cowdb.open(tmp_path / "elsewhere") as db:
            assert db[b"a"] == b"1"
            assert db.check() == []


@pytest.mark.parametrize("how", ["renamed", "hard link", "link that leads elsewhere"])
def test_each_handle_has_its_own_path(tmp_path, how):
    """One file, one core, two names: what happens to one of them is the business of its handles alone."""
    path, other = tmp_path / "db", tmp_path / "other"
    cowdb.open(path).close()
    if how == "renamed":
        first = cowdb.open(path)
        os.rename(path, other)
    elif how == "hard link":
        os.link(path, other)
        first = cowdb.open(path)
        os.unlink(path)
    else:
        os.symlink(path, tmp_path / "link")
        first = cowdb.open(tmp_path / "link")
        os.unlink(tmp_path / "link")
        os.symlink(tmp_path / "nowhere", tmp_path / "link")
        other = path
    with first, cowdb.open(other) as second:
        assert first._core is second._core
        second[b"a"] = b"1"
        assert first[b"a"] == b"1"
        with pytest.raises(cowdb.Error, match="replaced, renamed or deleted") as caught:
            first[b"b"] = b"2"
        assert repr(first.path) in str(caught.value)
        second[b"b"] = b"2"
    with cowdb.open(other) as db:
        assert dict(db.read().items()) == {b"a": b"1", b"b": b"2"}
        assert db.check() == []


def test_a_link_to_a_file_that_is_not_there_yet(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere" / "db")
    with cowdb.open(tmp_path / "link") as db:
        db[b"a"] = b"1"
    assert (tmp_path / "link").is_symlink()
    with cowdb.open(tmp_path / "elsewhere" / "db", create=False) as db:
        assert db[b"a"] == b"1"
    (tmp_path / "lost").symlink_to(tmp_path / "missing" / "db")
    with pytest.raises(FileNotFoundError):
        cowdb.open(tmp_path / "lost")


# ---------------------------------------------------------------- pickle


def test_a_database_pickles_as_path_and_options(database):
    db = database(durability="lazy", max_size=1 << 30)
    db[b"a"] = b"1"
    again = pickle.loads(pickle.dumps(db))
    assert again[b"a"] == b"1"
    assert again.info()["durability"] == "lazy"
    assert again.path == db.path
    again.close()
    db.close()
    third = pickle.loads(pickle.dumps(db))
    assert third[b"a"] == b"1"
    third.close()


def test_a_pickle_creates_no_file(database):
    db = database()
    text = pickle.dumps(db)
    db.close()
    os.unlink(db.path)
    with pytest.raises(FileNotFoundError):
        pickle.loads(text)


def test_a_database_on_a_disk_of_its_own_does_not_pickle():
    with open_on(MemoryDisk(), "/db") as db, pytest.raises(TypeError):
        pickle.dumps(db)


def test_transactions_do_not_pickle(database):
    db = database()
    with db.read() as snapshot, pytest.raises(TypeError, match="Database"):
        pickle.dumps(snapshot)
    with db.write() as transaction, pytest.raises(TypeError, match="Database"):
        pickle.dumps(transaction)


# ---------------------------------------------------------------- writers


def test_a_second_writer_in_one_thread_raises_at_once(database):
    db = database()
    with db.write():
        with pytest.raises(cowdb.Error, match="open already"):
            db.write()
        with pytest.raises(cowdb.Error, match="open already"):
            db[b"a"] = b"1"
        with pytest.raises(cowdb.Error, match="open already"):
            db.sync()
        with pytest.raises(cowdb.Error, match="open already"):
            db.check()
    db[b"a"] = b"1"


@pytest.mark.parametrize("how", ["argument", "option"])
def test_a_writer_in_another_thread_waits_only_so_long(database, how):
    db = database(lock_timeout=0.02 if how == "option" else None)
    timeout = 0.02 if how == "argument" else None
    with db.write() as transaction:
        error = in_thread(lambda: db.write(timeout=timeout))
        assert isinstance(error, cowdb.LockTimeoutError)
        assert isinstance(error, TimeoutError)
        transaction[b"a"] = b"1"
    assert in_thread(lambda: db.write(timeout=1).abort()) is None
    assert db[b"a"] == b"1"


@pytest.mark.guarantee
def test_writers_of_many_threads_take_turns_and_none_is_lost(database):
    db = database(durability="lazy")

    def work(name):
        for _ in range(50):
            with db.write() as transaction:
                transaction[b"count"] = b"%d" % (int(transaction.get(b"count", b"0")) + 1)
                transaction[name] = transaction[b"count"]

    threads = [threading.Thread(target=work, args=(b"%d" % number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert db[b"count"] == b"300"


@pytest.mark.untraced
@pytest.mark.guarantee
def test_a_snapshot_never_changes_while_writers_go_on(database):
    db = database(durability="lazy", page_size=4096)
    with db.write() as transaction:
        transaction.update((b"%04d" % number, b"0") for number in range(500))
    stop = threading.Event()
    errors = []

    def read():
        try:
            while not stop.is_set():
                with db.read() as snapshot:
                    values = set(snapshot.values())
                    assert len(values) == 1, values
                    assert set(snapshot.values(reverse=True)) == values
        except BaseException as error:  # noqa: BLE001 - whatever it was, the test looks at it
            errors.append(error)

    threads = [threading.Thread(target=read) for _ in range(3)]
    for thread in threads:
        thread.start()
    for number in range(40):
        with db.write() as transaction:
            for key in list(transaction.keys()):
                transaction[key] = b"%d" % number
    stop.set()
    for thread in threads:
        thread.join()
    assert errors == []


def test_a_durability_for_one_transaction(database):
    db = database()
    with db.write(durability="lazy") as transaction:
        transaction[b"a"] = b"1"
    assert db.stats().durable_transaction < db.stats().transaction
    with pytest.raises(ValueError, match="durability"):
        db.write(durability="some")
    db.sync()
    assert db.stats().durable_transaction == db.stats().transaction
    with cowdb.open(db.path, durability="lazy") as lazy:
        lazy[b"b"] = b"2"
        assert lazy.stats().durable_transaction < lazy.stats().transaction
        with lazy.write(durability="full") as transaction:
            transaction[b"c"] = b"3"
        assert lazy.stats().durable_transaction == lazy.stats().transaction


# ---------------------------------------------------------------- forgotten transactions


def forget(things):
    """Let go of them; the collector may have come by before, or come now."""
    things.clear()
    gc.collect()


def test_a_forgotten_writer_warns_and_lets_the_lock_go(database):
    db = database()
    forgotten = [db.write()]
    forgotten[0][b"a"] = b"1"
    with pytest.warns(ResourceWarning, match="forgotten"):
        forget(forgotten)
    db[b"b"] = b"2"
    assert b"a" not in db


@pytest.mark.parametrize("raised", [SystemExit, KeyboardInterrupt, ZeroDivisionError])
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_what_is_raised_while_a_forgotten_writer_ends_goes_to_the_hook_for_it(database, monkeypatch, raised):
    """As from any finalizer: it is told once, nobody else sees it, and the lock is let go."""
    db = database()
    told, hooked = [], []

    def show(*_):
        raise raised

    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: told.append(unraisable.exc_type))
    monkeypatch.setattr(sys, "excepthook", lambda *error: hooked.append(error[0]))
    forgotten = [db.write()]
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        monkeypatch.setattr(warnings, "showwarning", show)
        forget(forgotten)
    assert (told, hooked) == ([raised], [])
    db[b"a"] = b"1"


def test_a_forgotten_reader_pins_nothing(database):
    db = database()
    snapshot = db.read()
    assert db.stats().readers == 1
    del snapshot
    gc.collect()
    assert db.readers() == []


@pytest.mark.guarantee
def test_a_forgotten_reader_may_be_collected_inside_the_gate(database):
    """The story: the garbage collector ended a forgotten reader while the same thread was inside the gate's lock."""
    db = database()
    gate = db._core.pager.gate

    def collected_inside():
        snapshot = db.read()
        with gate._lock:
            del snapshot
            gc.collect()

    assert in_thread(collected_inside) is None
    assert db.readers() == []


def test_a_forgotten_writer_may_be_collected_inside_the_locks(database):
    db = database()
    core = db._core

    def collected_inside():
        transaction = db.write()
        transaction[b"a"] = b"1"
        with core.pager.gate._lock, core.pager.writer_lock._mutex, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            del transaction
            gc.collect()

    assert in_thread(collected_inside) is None
    core.pager.writer_lock._act()
    db[b"b"] = b"1"


def test_a_forgotten_database_lets_the_file_go(tmp_path):
    db = cowdb.open(tmp_path / "db")
    db[b"a"] = b"1"
    del db
    gc.collect()
    assert not core_module.cores


def test_a_writer_of_a_thread_that_died_does_not_stop_the_close(tmp_path):
    db = cowdb.open(tmp_path / "db")
    kept = []
    in_thread(lambda: kept.append(db.write()))
    db.close()
    assert kept[0].closed
    with cowdb.open(tmp_path / "db") as db:
        assert len(db) == 0


# ---------------------------------------------------------------- closing


def test_close_ends_the_transactions(tmp_path):
    db = cowdb.open(tmp_path / "db")
    db[b"a"] = b"1"
    reader = db.read()
    writer = db.write()
    writer[b"b"] = b"2"
    db.close()
    db.close()
    assert reader.closed
    assert writer.closed
    for act in (lambda: reader[b"a"], lambda: writer.put(b"c", b"3"), writer.commit, db.read, db.write, db.sync,
                db.stats, db.info, db.check, db.readers, lambda: db[b"a"], lambda: db.copy(tmp_path / "c"), db.__enter__,
                lambda: db.max_key_size):  # fmt: skip
        with pytest.raises(cowdb.ClosedError):
            act()
    assert "closed" in repr(db)
    with cowdb.open(tmp_path / "db") as db:
        assert dict(db.read().items()) == {b"a": b"1"}


def test_close_waits_for_a_writer_in_another_thread(tmp_path):
    db = cowdb.open(tmp_path / "db")
    begun, go = threading.Event(), threading.Event()

    def work():
        with db.write() as transaction:
            transaction[b"a"] = b"1"
            begun.set()
            go.wait(10)

    thread = threading.Thread(target=work)
    thread.start()
    begun.wait(10)
    closer = threading.Thread(target=db.close)
    closer.start()
    time.sleep(0.05)
    assert closer.is_alive()
    go.set()
    thread.join(10)
    closer.join(10)
    with cowdb.open(tmp_path / "db") as db:
        assert db[b"a"] == b"1"


@pytest.mark.parametrize("act", ["write", "sync", "check"])
def test_who_waits_for_the_lock_while_the_database_is_closed_is_told_so(tmp_path, act):
    """The story: a thread waited for the writer lock, another one closed the database, and the first one got the lock."""
    db = cowdb.open(tmp_path / "db")
    other = cowdb.open(tmp_path / "db")
    holder = other.write()
    waiting = []
    thread = threading.Thread(target=lambda: waiting.append(catch(getattr(db, act))))
    thread.start()
    until(lambda: db._core is None or db._core.pager.writer_lock._waiting)
    db.close()
    holder.abort()
    other.close()
    thread.join(10)
    assert isinstance(waiting[0], cowdb.ClosedError)
    cowdb.open(tmp_path / "db").close()


def catch(act):
    try:
        return act()
    except BaseException as error:  # noqa: BLE001 - whatever it was, the test looks at it
        return error


def test_a_close_from_inside_a_check_is_refused(database):
    db = database()
    db[b"a"] = b"1"
    caught = []

    def progress(_done, _total):
        caught.append(catch(db.close))

    assert db.check(progress) == []
    assert isinstance(caught[-1], cowdb.Error)
    assert not db.closed


def test_a_close_while_a_copy_goes_on_waits_for_its_end(tmp_path):
    db = cowdb.open(tmp_path / "db")
    db[b"a"] = b"x" * 100_000
    db.copy(tmp_path / "copy", progress=lambda *_: db.close())
    assert db.closed
    assert not core_module.cores
    with cowdb.open(tmp_path / "copy") as copy:
        assert copy[b"a"] == b"x" * 100_000
    cowdb.open(tmp_path / "db").close()


def test_an_error_while_closing_lets_the_file_go_all_the_same(tmp_path, monkeypatch):
    db = cowdb.open(tmp_path / "db")
    db[b"a"] = b"1"

    def fail():
        raise OSError(errno.EIO, "no")

    monkeypatch.setattr(db._core.storage, "flush", fail)
    with pytest.raises(cowdb.PoisonedError):
        db.close()
    with cowdb.open(tmp_path / "db") as db:
        assert db[b"a"] == b"1"


def test_readers_of_many_threads_and_a_close(tmp_path):
    for _ in range(10):
        db = cowdb.open(tmp_path / "db")
        db[b"a"] = b"1"
        errors = []

        def read(db=db, errors=errors):
            try:
                while True:
                    with db.read() as snapshot:
                        assert snapshot[b"a"] == b"1"
            except cowdb.ClosedError:
                pass
            except BaseException as error:  # noqa: BLE001 - whatever it was, the test looks at it
                errors.append(error)

        threads = [threading.Thread(target=read) for _ in range(4)]
        for thread in threads:
            thread.start()
        time.sleep(0.01)
        db.close()
        for thread in threads:
            thread.join()
        assert errors == []
    assert not core_module.cores


def test_calls_of_many_threads_and_a_close(tmp_path, seconds=1.0):
    """The story: a call that the close overtook used locks and descriptors that were closed, or closed a second time.

    Errors came out that nobody could expect (EBADF, KeyError), and where the last one to leave was a writer, nobody
    closed the file at all.
    """
    rng = random.Random(1)
    errors = []
    acknowledged = {}
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    end = time.monotonic() + seconds
    try:
        while time.monotonic() < end:
            db = cowdb.open(tmp_path / "db", durability=rng.choice(["full", "lazy"]))

            def work(number, db=db):
                count = acknowledged.get(number, 0)
                try:
                    while True:
                        with db.write() as transaction:
                            transaction[b"%d" % number] = b"%d" % (count + 1)
                        count += 1
                except cowdb.ClosedError:
                    acknowledged[number] = count
                except BaseException as error:  # noqa: BLE001 - whatever it was, the test looks at it
                    errors.append(error)

            def call(act):
                try:
                    while True:
                        act()
                except cowdb.ClosedError:
                    pass
                except BaseException as error:  # noqa: BLE001 - whatever it was, the test looks at it
                    errors.append(error)

            acts = rng.sample([db.stats, db.info, db.readers, db.sync, db.check, lambda db=db: db.get(b"1")], 2)
            threads = [threading.Thread(target=work, args=(number,)) for number in range(rng.choice([1, 3]))]
            threads += [threading.Thread(target=call, args=(act,)) for act in acts]
            for thread in threads:
                thread.start()
            time.sleep(rng.random() * 0.02)
            db.close()
            for thread in threads:
                thread.join(30)
                assert not thread.is_alive(), "a thread hangs"
            assert errors == []
            assert not core_module.cores, "nobody has closed the file"
            with cowdb.open(tmp_path / "db") as db:
                for number, count in acknowledged.items():
                    assert int(db.get(b"%d" % number, b"0")) == count
                assert db.check() == []
    finally:
        sys.setswitchinterval(interval)


def test_a_close_from_a_signal_handler_in_the_middle_of_a_commit_lets_the_commit_end(tmp_path):
    db = cowdb.open(tmp_path / "db")
    pager = db._core.pager
    pager.failpoint = lambda point: db.close() if point == "flush" else None
    db[b"a"] = b"1"
    assert db.closed
    assert not core_module.cores
    with cowdb.open(tmp_path / "db") as db:
        assert db[b"a"] == b"1"


# ---------------------------------------------------------------- conveniences, info


def test_one_call_one_transaction(database):
    db = database()
    assert b"a" not in db
    assert db.get(b"a") is None
    assert db.get(b"a", b"?") == b"?"
    with pytest.raises(cowdb.KeyNotFoundError):
        db[b"a"]
    db[b"a"] = b"1"
    assert db[b"a"] == b"1"
    assert bytearray(b"a") in db
    assert len(db) == 1
    del db[b"a"]
    with pytest.raises(KeyError):
        del db[b"a"]
    assert len(db) == 0
    assert db  # an empty database is true
    with pytest.raises(TypeError):
        iter(db)
    with pytest.raises(TypeError, match="encode"):
        db["a"] = b"1"
    db[b"x"] = b"1"
    assert db.stats().transaction == 4


def test_an_exception_in_a_block_aborts(database):
    db = database()
    with pytest.raises(ZeroDivisionError), db.write() as transaction:
        transaction[b"a"] = b"1"
        raise ZeroDivisionError
    assert transaction.closed
    assert len(db) == 0


def test_info_and_readers(database):
    db = database(page_size=4096)
    before = time.time()
    with db.write() as transaction:
        transaction.tree("genres", create=True)[b"rock"] = b"1"
        transaction[b"a"] = b"1"
    info = db.info()
    assert info["path"] == db.path
    assert info["format_version"] == 1
    assert info["page_size"] == 4096
    assert len(bytes.fromhex(info["database_id"])) == 16
    assert info["transaction"] == info["durable_transaction"] == 2
    assert before - 1 <= info["commit_time"] <= time.time() + 1
    assert info["trees"] == ["genres"]
    assert info["entries"] == 1
    assert info["used_pages"] == 3
    assert info["page_count"] == 2 + info["used_pages"] + info["free_pages"]
    assert info["file_size"] == os.path.getsize(db.path)
    assert info["max_key_size"] == db.max_key_size
    assert info["durability"] == "full"
    first, second = db.read(), db.read()
    db[b"b"] = b"2"
    assert db.readers() == [{"pid": os.getpid(), "transaction": 2, "users": 2, "behind": 1}]
    first.close()
    second.close()
    assert db.readers() == []
    assert repr(db) == f"<cowdb.Database {db.path!r}, full durability>"


def test_check_tells_how_far_it_is(database):
    db = database(page_size=4096)
    with db.write() as transaction:
        transaction.update((b"%06d" % number, b"v" * 200) for number in range(2000))
    calls = []
    assert db.check(lambda *call: calls.append(call)) == []
    assert calls[-1][0] == calls[-1][1] >= 100


def test_check_finds_damage(database, tmp_path):
    db = database(page_size=4096)
    db[b"a"] = b"1" * 100
    with open(db.path, "r+b") as file:
        file.seek(db._core.pager.meta.main.root.number * 4096 + 3000)
        file.write(b"damage")
    found = db.check()
    assert found
    with pytest.raises(cowdb.CorruptionError):
        cowdb.open(tmp_path / "other")  # a file of its own is no trouble
        with db.read() as snapshot:
            for number in range(snapshot._snapshot.space.pages):
                snapshot._snapshot.space.verified[number] = 0
            snapshot[b"a"]
    db.close()
    os.unlink(db.path)


def test_the_handle_can_be_referred_to_weakly_and_goes(tmp_path):
    db = cowdb.open(tmp_path / "db")
    ref = weakref.ref(db)
    with db.write() as transaction:
        transaction[b"a"] = b"1"
    db.close()
    del db, transaction
    gc.collect()
    assert ref() is None
