"""How a command comes to a database: to read one state safely, to write, or to look at what is damaged.

    reading(path)     a pinned snapshot, read with `pread`: for every command that only reads
    writing(path)     an open `cowdb.Database`
    looking(path)     the bytes and both meta slots, whatever they are
    quiet(path)       the same, while nobody writes

A mapping of a file that shrinks, or whose disk cannot read a sector, kills the
process that looks at it.  So nothing here is mapped for reading: `reading` takes
part in the sharing of the file, so that writers leave the pages of its snapshot
alone, but every page comes from a `read` call and is verified (`cowdb.inspection`).
A file that is no database is found out before anything is made beside it.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import os
import stat
from typing import TYPE_CHECKING, Final

from cowdb.cli.measure import tree_label
from cowdb.cli.output import IO_ERROR, USAGE, CommandError
from cowdb.errors import CorruptionError, Error, LockTimeoutError, NotADatabaseError
from cowdb.inspection import State, slots
from cowdb.recovery import believe, refuse_stranger
from cowdb.sharing import FileSharing, lock_file_path
from cowdb.storage import FileDisk, FileStorage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from cowdb.database import Database
    from cowdb.inspection import Slot
    from cowdb.lookup import Tree
    from cowdb.meta import Meta

__all__ = [
    "Forgiving",
    "Look",
    "add_path",
    "add_timeout",
    "add_tree",
    "looking",
    "natural",
    "open_file",
    "quiet",
    "reading",
    "seconds",
    "tree_of",
    "writing",
]

TIMEOUT: Final = 10.0
"""Seconds that a command waits for others, unless ``--timeout`` says something else."""

_PATIENCE: Final = 10_000
_SECTOR: Final = 512

_NEW: Final = 1
"""The transaction of a new database."""


# ---------------------------------------------------------------- arguments that many commands have


def add_path(parser: argparse.ArgumentParser, name: str = "FILE", what: str = "the database file") -> None:
    """Add the argument FILE, ``args.file``, or what else it shall be called."""
    parser.add_argument("file", metavar=name, help=what)


def add_tree(parser: argparse.ArgumentParser, default: str = "the main tree") -> None:
    """Add ``--tree NAME``, ``args.tree``: None for `default`."""
    parser.add_argument("--tree", "-t", metavar="NAME", help=f"the named tree (default: {default})")


def add_timeout(parser: argparse.ArgumentParser) -> None:
    """Add ``--timeout SECONDS``, ``args.timeout``."""
    parser.add_argument(
        "--timeout",
        metavar="SECONDS",
        type=seconds,
        default=TIMEOUT,
        help=f"how long to wait for others that have it locked (default: {TIMEOUT:g})",
    )


def natural(text: str) -> int:
    """A whole number from 0 on, for argparse."""
    try:
        value = int(text)
    except ValueError:
        value = -1
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 0 on")
    return value


def seconds(text: str) -> float:
    """A number of seconds, for argparse."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1e9:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds from 0 on")
    return value


def tree_of(state: State, name: str | None) -> Tree:
    """The tree called `name` (None: the main tree); a `CommandError` that says which there are, if it is not one."""
    tree = state.tree(name)
    if tree is None and name == tree_label(None):
        return state.main  # so it stands in tables; a tree that is really called so goes first
    if tree is None:
        names = state.names()
        there = f"there are {', '.join(map(repr, names[:10]))}{' and more' if len(names) > 10 else ''}"
        raise CommandError(f"there is no tree {name!r}; {there if names else 'there are no named trees'}")
    return tree


# ---------------------------------------------------------------- reading


@contextlib.contextmanager
def reading(path: str, timeout: float | None = TIMEOUT) -> Iterator[State]:
    """The newest state of the database at `path`, pinned as long as the block runs.

    Raises `NotADatabaseError`, `VersionError`, `CorruptionError`, `LockTimeoutError`, `OSError`.
    """
    with sharing(path, timeout) as (storage, words):
        meta, pin = _pinned(words)
        try:
            yield State(storage, meta)
        finally:
            words.unpin(pin)


@contextlib.contextmanager
def sharing(path: str, timeout: float | None = TIMEOUT) -> Iterator[tuple[FileStorage, FileSharing]]:
    """The file at `path`, opened for reading, and its other users. Nothing is pinned yet."""
    storage = open_file(path)
    try:
        refuse_stranger(storage)
        if not any(slot.meta for slot in slots(storage)):
            believe(storage)  # it raises, with the right words, and no lock file was made beside what is none
        words = _come_in(storage, timeout)
        try:
            yield storage, words
        finally:
            words.leave(lambda: None)  # a reader has nothing to settle
    finally:
        storage.close()


def _come_in(storage: FileStorage, timeout: float | None) -> FileSharing:
    mode = stat.S_IMODE(os.stat(storage.path).st_mode) & 0o666
    return FileSharing(storage.path, read_only=True, mode=mode, timeout=timeout, make=lambda: believe(storage).meta)


def open_file(path: str) -> FileStorage:
    """The file at `path`, for reading alone."""
    if not path:
        raise CommandError("name a database file: the name given is empty", USAGE)
    name = os.path.abspath(path)
    try:
        return FileDisk().open(name, read_only=True)
    except FileNotFoundError:
        raise CommandError(f"there is no file {path!r}", IO_ERROR) from None
    except IsADirectoryError:
        raise NotADatabaseError(path, "it is a directory; name a file inside it") from None
    except OSError as error:
        if error.errno in {errno.EINVAL, errno.ENXIO}:
            raise NotADatabaseError(path, "it is a pipe, a socket or a device") from None
        raise


def _pinned(words: FileSharing) -> tuple[Meta, int]:
    """The newest published state and what pins it: say first what we use, then see that it is still the newest (I2)."""
    for _ in range(_PATIENCE):
        word = words.published
        meta = words.published_meta(word)
        if meta is not None:
            pin = words.pin(meta.transaction, meta.page_count)
            if words.published == word:
                return meta, pin
            words.unpin(pin)
    raise CorruptionError(-1, "the lock file holds no published state; close the database in every process")


# ---------------------------------------------------------------- writing


@contextlib.contextmanager
def writing(
    path: str, timeout: float | None = TIMEOUT, *, create: bool = False, **options: object
) -> Iterator[Database]:
    """The database at `path`, open for writing; `create` and `options` are those of `cowdb.open`.

    A file that was made here is removed again if the command fails and nothing was stored.
    """
    import cowdb  # noqa: PLC0415 - commands that read do without

    made = create and not os.path.lexists(path)
    try:
        db = cowdb.open(path, create=create, lock_timeout=timeout, **options)  # type: ignore[arg-type]
    except FileNotFoundError:
        raise CommandError(f"there is no file {path!r}", IO_ERROR) from None
    try:
        with db:
            yield db
    except (CommandError, KeyboardInterrupt):
        if made:
            with contextlib.suppress(Error, OSError):
                _remove_new(path)
        raise


def _remove_new(path: str) -> None:
    """Remove a database in which nothing was ever stored, and its lock file, unless somebody else has it open."""
    storage = open_file(path)

    def remove() -> None:  # nobody is inside, and nobody comes in meanwhile
        if believe(storage).meta.transaction == _NEW:
            os.unlink(path)
            os.unlink(lock_file_path(path))

    try:
        _come_in(storage, TIMEOUT).leave(remove)
    finally:
        storage.close()


# ---------------------------------------------------------------- looking at what may be damaged


class Forgiving:
    """A source that gives zeros for what the disk cannot read: then the checksum of that page does not hold."""

    def __init__(self, source: FileStorage) -> None:
        self._source = source

    def size(self) -> int:
        """Bytes of the file."""
        return self._source.size()

    def read(self, offset: int, length: int) -> bytes:
        """The bytes at `offset`, zeros for sectors that cannot be read."""
        try:
            return self._source.read(offset, length)
        except OSError:
            if length <= _SECTOR:
                return bytes(max(min(length, self.size() - offset), 0))
        pieces = (self.read(at, min(_SECTOR, offset + length - at)) for at in range(offset, offset + length, _SECTOR))
        return b"".join(pieces)


class Look:
    """A file that may be damaged: its bytes, both meta slots, and the state to look at."""

    def __init__(self, storage: FileStorage, both: tuple[Slot, Slot], state: State | None, problem: str) -> None:
        self.storage = storage
        self.source = Forgiving(storage)
        self.slots = both
        self.state = state
        self.problem = problem
        """Why the state cannot be opened as the engine would; '' if it can."""


@contextlib.contextmanager
def looking(
    path: str,
    timeout: float | None = TIMEOUT,
    *,
    slot: int | None = None,
    wiped: Callable[[Forgiving], object] = lambda _source: False,
) -> Iterator[Look]:
    """The file at `path` as it is, damaged or not.

    Where the engine would open it, the state is its newest and is pinned.  Where
    not, it is that of the newest meta page that can be read.  `slot` asks for the state of one
    meta slot; that one is not pinned, so a writer may use its pages meanwhile.
    Sectors that cannot be read count as damage.
    Raises `NotADatabaseError` if it does not begin like a database, unless `wiped`
    says of its bytes that it was one.
    """
    storage = open_file(path)
    with contextlib.ExitStack() as stack:
        stack.callback(storage.close)
        source = Forgiving(storage)
        both = slots(source)
        try:
            refuse_stranger(storage)
        except NotADatabaseError:
            if not wiped(source):
                raise
        problem = ""
        state = None
        if slot is None:
            try:
                pinned = stack.enter_context(reading(path, timeout))
                state = State(source, pinned.meta)
            except (CorruptionError, NotADatabaseError, OSError) as error:
                if isinstance(error, (LockTimeoutError, PermissionError)):
                    raise
                problem = str(error)
                metas = [found.meta for found in both if found.meta is not None]
                if metas:
                    state = State(source, max(metas, key=lambda meta: (meta.transaction, meta.durable)))
        else:
            chosen = both[slot]
            if chosen.meta is None:
                raise CommandError(f"meta page {slot} cannot be read: {chosen.reason}")
            state = State(source, chosen.meta)
        yield Look(storage, both, state, problem)


@contextlib.contextmanager
def quiet(path: str, timeout: float | None = TIMEOUT) -> Iterator[Look]:
    """As `looking`, while nobody writes: the writer lock is held, where the file can be shared at all.

    Where the engine would not open the file, nobody can be writing to it.
    Raises `LockTimeoutError` as well.
    """
    with contextlib.ExitStack() as stack:
        try:
            _, words = stack.enter_context(sharing(path, timeout))
        except CorruptionError:
            pass  # nobody is inside, and nobody can come in
        else:
            if words.words is not None:  # else we keep writers out by being there
                words.lock_writer(timeout)
                stack.callback(words.unlock_writer)
        yield stack.enter_context(looking(path, timeout))
