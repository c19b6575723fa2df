"""Opening a file, and what is asked of the whole of it.

`open` gives a `Database`, a handle.  All handles of one file in one process
share a core (see `core`): the pager with the mapping, the snapshots and the
writer lock.

    open() --> Database -- read()  --> Transaction         any number, in any thread
                        -- write() --> WriteTransaction    one at a time, over all processes
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import secrets
import threading
import time
import weakref
from typing import TYPE_CHECKING, Any, Self

from cowdb import core as shared
from cowdb import format as fmt
from cowdb.backup import copy_compact, copy_whole
from cowdb.check import Finding, check
from cowdb.combining import Combiner
from cowdb.core import Core
from cowdb.errors import (
    ClosedError,
    Error,
    ForkedError,
    KeyNotFoundError,
    PoisonedError,
    ReadOnlyError,
)
from cowdb.kernel import Handle, Turn, leads_to
from cowdb.locks import me
from cowdb.opening import (
    absolute,
    alone,
    check_options,
    check_page_size,
    check_timeout,
    empty_image,
    enter,
    open_storage,
)
from cowdb.pager import Pager
from cowdb.storage import Disk, FileDisk
from cowdb.transaction import DURABILITIES, Transaction, WriteTransaction
from cowdb.tree import as_key
from cowdb.writing import BEING_WRITTEN

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import TracebackType

    from cowdb.draft import Draft
    from cowdb.readers import Snapshot
    from cowdb.stats import Stats

__all__ = ["Database", "open", "open_on"]


class _Owner:
    """A write transaction as its handle sees it: whose it is, and what its commit and its end mean there."""

    __slots__ = ("_core", "_database", "_forks", "_held", "_lazy", "draft")

    def __init__(self, database: Database, core: Core, draft: Draft, held: list[Snapshot], *, lazy: bool) -> None:
        """It was begun by this thread, while what it has `held` was the newest snapshot."""
        self._database = database
        self._forks = shared.forks
        self._held = held
        self._lazy = lazy
        self._core = core
        self.draft = draft

    def pin(self) -> Callable[[], Any] | None:
        """What keeps the state alive that it was begun on; None if that is not published, and so nobody's snapshot."""
        held = self._held
        if not held:
            raise ClosedError("this transaction has ended already")
        snapshot = held[0]
        if snapshot.meta.transaction != self.draft.meta.transaction:
            return None
        return functools.partial(self._core.pin, snapshot)

    def commit(self) -> None:
        """Make the draft the state."""
        if self._forks != shared.forks:
            raise ForkedError(
                f"this transaction on {self._database.path!r} was begun before a fork, by the parent process"
            )
        self._core.pager.commit(self.draft, lazy=self._lazy, hand_on=self._hand_on)

    def _hand_on(self) -> None:
        """The commit lets the turn go, and goes on."""
        flushed = threading.Lock()
        flushed.acquire()
        database = self._database
        database._flushing[self.draft.turn] = threading.current_thread(), flushed  # noqa: SLF001 - they are one
        database._writing = None  # noqa: SLF001

    def end(self) -> None:
        """The end, committed or not. Harmless when repeated, as after an interrupt."""
        if self._forks == shared.forks:
            self._database._end_of(self._core.pager, self.draft, self.draft.turn, self._held)  # noqa: SLF001


class Database(Handle[Core, Transaction]):
    """A handle of one open file; made by `cowdb.open`, safe to use from any thread.

    It pickles as path and options, and opens the file again where it is unpickled.
    """

    def __init__(self, core: Core, path: str, options: dict[str, Any], handle: object) -> None:
        """`handle` is what stands for this one in the core."""
        super().__init__(Transaction)  # with no core until all is ready: it is left only by who is in
        self._handle = handle
        self._path = path
        self._options = options
        self._durability: str = options["durability"]
        self._lazy = _is_lazy(self._durability)
        self.lock_timeout: float | None = options["lock_timeout"]
        self._read_only: bool = options["read_only"]
        self._forks = shared.forks
        self._open: dict[Turn, tuple[weakref.ref[WriteTransaction], _Owner]] = {}
        self._writing: Turn | None = None
        self._flushing: dict[Turn, tuple[threading.Thread, threading.Lock]] = {}  # commits that let the turn go
        self._combiner = Combiner()
        shared.handles.add(self)
        self._core = core

    # ------------------------------------------------------------ what it is

    @property
    def path(self) -> str:
        """The path that it was opened with, made absolute."""
        return self._path

    @property
    def max_key_size(self) -> int:
        """The longest key in bytes that this file takes."""
        return fmt.max_key_size(self._pager().page_size)

    @property
    def closed(self) -> bool:
        """True after `close`, also if an interrupt let it get no further than leaving the others."""
        core = self._core
        return core is None or self._handle not in core.handles

    def _live(self) -> Core:
        core = self._core
        if core is None:
            raise self._refusal()
        if self._forks != shared.forks:
            core = self._reopen()
        return core

    def _refusal(self) -> ClosedError:
        return ClosedError(f"the database {self._path!r} is closed")

    def _reopen(self) -> Core:
        """In a forked child, at the first use: the core is the parent's, so open the file for ourselves."""
        with shared.registry():
            if self._forks == shared.forks:
                assert self._core is not None
                return self._core
            if "disk" in self._options:
                raise ForkedError(f"the database {self._path!r} lies on a disk that the parent process alone has")
            handle = open(self._path, **{**self._options, "create": False})
            core, handle._core = handle._core, None  # noqa: SLF001 - one Database takes over from another
            assert core is not None
            self._core = core
            self._handle = handle._handle  # noqa: SLF001
            self._writing = None
            self._flushing = {}
            self._open = {}
            self._forks = shared.forks
            return core

    def _pager(self) -> Pager:
        return self._live().pager

    @contextlib.contextmanager
    def _staying(self) -> Iterator[Core]:
        """The core, which is not closed meanwhile, whoever closes this handle."""
        core = self._live()
        with core.pager.gate.guest():
            yield core

    @contextlib.contextmanager
    def _turn(self) -> Iterator[Core]:
        """The core and the writer lock, for something other than a transaction."""
        with self._staying() as core:
            self._end_forgotten()
            turn = Turn()
            try:
                core.pager.lock(self.lock_timeout, turn)
                self._writing = turn
                self._live()  # it may have been closed while we waited
                yield core
                self._writing = None
                core.pager.unlock(turn)
            except BaseException:  # also if it was the end that was interrupted: then it goes on here
                if self._writing is turn:
                    self._writing = None
                core.pager.unlock(turn)
                raise

    def abandon(self) -> None:
        """In a forked child: what is open of this handle is the parent's."""
        for transaction in self._transactions():
            transaction.abandon()
        self._open = {}  # their owners have this handle, and would keep it until the garbage collector comes by
        self._combiner.abandoned = True
        self._combiner = Combiner()

    def _transactions(self) -> list[Transaction | WriteTransaction]:
        """Those of this handle that are open, or were a moment ago."""
        while True:
            with contextlib.suppress(RuntimeError):  # another thread began or ended one meanwhile
                writing = [found for known, _ in self._open.values() if (found := known()) is not None]
                return [*self.readings(), *writing]

    def _end_forgotten(self) -> None:
        """End a transaction of this thread that nobody holds, and whose finalizer an interrupt has broken off."""
        writing = self._writing
        if writing is not None and writing.me is me():
            known, owner = self._open.get(writing, (None, None))
            if known is not None and owner is not None and known() is None:
                owner.end()

    # ------------------------------------------------------------ transactions

    def write(self, *, timeout: float | None = None, durability: str | None = None) -> WriteTransaction:
        """Begin the one write transaction that there can be; waits for the one before.

        `timeout` in seconds (default: the `lock_timeout` of `open`), then
        `LockTimeoutError`.  `durability` for this transaction alone.  Raises
        `ReadOnlyError`, `PoisonedError`, and `Error` at once if this thread has a
        write transaction open.
        """
        core = self._live()
        if self._read_only:
            raise ReadOnlyError(errno.EROFS, f"{self._path!r} was opened with read_only=True")
        if timeout is not None:
            check_timeout("timeout", timeout)
        lazy = self._lazy if durability is None else _is_lazy(durability)
        pager = core.pager
        gate = pager.gate
        if self._writing is not None:
            self._end_forgotten()
        turn = Turn()
        held: list[Snapshot] = []
        draft = None
        try:
            gate.enter(turn)  # whoever closes this handle meanwhile, the file stays open
            self._refuse_another_file(core)
            pager.lock(self.lock_timeout if timeout is None else timeout, turn)
            self._writing = turn
            self._live()  # it may have been closed while we waited
            draft = pager.begin(turn)
            draft.flushed = not lazy
            gate.hold(held)
            owner = _Owner(self, core, draft, held, lazy=lazy)
            transaction = WriteTransaction(owner)
            self._open[turn] = weakref.ref(transaction), owner
            gate.exit(turn)
            return transaction  # noqa: TRY300 - an interrupt here must find the handler, too
        except BaseException:  # whatever comes in between, the writer lock does not stay behind
            try:
                try:
                    self._end_of(pager, draft, turn, held)
                except BaseException:  # interrupted as it began
                    self._end_of(pager, draft, turn, held)
                    raise
            finally:
                gate.exit(turn)
            raise

    def _end_of(self, pager: Pager, draft: Draft | None, turn: Turn, held: list[Snapshot]) -> None:
        """The end of a write transaction, or of its beginning.

        The garbage collector may call this at any moment, so it waits for no lock.
        What was interrupted goes on when it is called again.  Letting the lock go
        needs no memory.
        """
        try:
            if self._writing is turn:
                self._writing = None
            if draft is None:
                pager.unlock(turn)
            else:
                pager.finish(draft)
        finally:
            try:
                if held:
                    pager.gate.drop(held)
            finally:
                self._open.pop(turn, None)
                flushing = self._flushing.pop(turn, None)
                if flushing is not None:
                    flushing[1].release()

    def _refuse_another_file(self, core: Core) -> None:
        """Raise if the path of this handle leads to another file by now. Other handles may have other paths."""
        if not (core.storage.is_current() if "disk" in self._options else leads_to(self._path, core.identity)):
            raise Error(
                f"{self._path!r} is another file now, or gone: it was replaced, renamed or deleted while it was open; "
                "what is open can still be read; close it and open the right file"
            )

    def sync(self) -> None:
        """Make every transaction so far durable. One flush, or none if they are."""
        self._live()
        if self._read_only:
            return
        with self._turn() as core:
            core.pager.sync()

    # ------------------------------------------------------------ one call, one transaction

    def __len__(self) -> int:
        """Number of entries of the main tree's newest state."""
        with self.read() as snapshot:
            return len(snapshot)

    def __bool__(self) -> bool:
        """A database is true, also an empty one."""
        return True

    __iter__ = None  # not a sequence: iterate over a transaction

    # Threads that write at the same time share a transaction, and so a flush: see `combining`.  What a key or a value
    # is made of is found out here, by the thread that calls.

    def __setitem__(self, key: object, value: object) -> None:
        """Store one entry in the main tree, in a transaction of its own."""
        if key.__class__ is not bytes or value.__class__ is not bytes:
            key, value = as_key(key), as_key(value)
        self._combiner.write(self, _put, key, value, True)

    def __delitem__(self, key: object) -> None:
        """Remove one entry from the main tree, or a slice of it, in a transaction of its own."""
        if isinstance(key, slice):
            with self.write() as transaction:
                del transaction[key]
        elif not self.delete(key):
            raise KeyNotFoundError(key)

    def put(self, key: object, value: object, *, overwrite: bool = True) -> bool:
        """Store one entry in the main tree, in a transaction of its own; see `WriteTree.put`."""
        stored: bool = self._combiner.write(self, _put, as_key(key), as_key(value), bool(overwrite))
        return stored

    def delete(self, key: object) -> bool:
        """Remove one entry from the main tree, in a transaction of its own; False if there is none."""
        found: bool = self._combiner.write(self, WriteTransaction.delete, as_key(key))
        return found

    def has_turn(self) -> bool:
        """Whether the calling thread is the one who may write to this file."""
        core = self._core
        return core is not None and core.pager.writer_lock.is_mine()

    def see_to(self, transaction: WriteTransaction) -> None:
        """Have a transaction of another thread come to its end, whose commit was interrupted.

        `PoisonedError` if writing has stopped, and with it any knowledge of how that ends.
        """
        if not transaction.committed:
            with self._turn() as core:
                core.pager.quiesce()
                if not transaction.committed:
                    core.pager.poison.refuse_member()

    # ------------------------------------------------------------ about the whole file

    def stats(self) -> Stats:
        """What copy-on-write costs and saves, counted since this process opened the file. O(named trees)."""
        with self._staying() as core:
            return core.pager.stats()

    def info(self) -> dict[str, Any]:
        """The facts of the file: format, sizes, transactions, trees. O(named trees)."""
        pager = self._pager()
        meta = pager.meta
        stats = self.stats()
        with self.read() as snapshot:
            trees = snapshot.trees()
            entries = len(snapshot)
        return {
            "path": self._path,
            "format_version": fmt.FORMAT_VERSION,
            "page_size": meta.page_size,
            "database_id": meta.database_id.hex(),
            "transaction": meta.transaction,
            "durable_transaction": stats.durable_transaction,
            "commit_time": meta.commit_time / 1e9,
            "page_count": meta.page_count,
            "used_pages": stats.used_pages,
            "free_pages": stats.free_pages,
            "file_size": stats.file_size,
            "max_key_size": self.max_key_size,
            "entries": entries,
            "trees": trees,
            "read_only": self._read_only,
            "durability": self._durability,
        }

    def readers(self) -> list[dict[str, Any]]:
        """The snapshots that are in use, oldest first: process, transaction, users, age in transactions."""
        with self._staying() as core:
            pager = core.pager
            newest = pager.meta.transaction
            found = [
                (os.getpid(), snapshot.meta.transaction, snapshot.users)
                for snapshot in pager.gate.snapshots()
                if snapshot.users
            ]
            found += [(pin.owner, pin.transaction, 1) for pin in pager.words.others()]
        return [
            {"pid": pid, "transaction": transaction, "users": users, "behind": newest - transaction}
            for pid, transaction, users in found
        ]

    def check(self, progress: Callable[[int, int], None] | None = None) -> list[Finding]:
        """Walk over the whole file, both states of it, and report every violation of I3 to I7. O(file).

        It takes a writer's turn, with `lock_timeout`, also if the database is
        read-only; readers do not wait.  `progress` gets pages done and pages in all.
        An empty list says that all is well.
        """
        with self._turn() as core:
            core.pager.quiesce()  # who let the turn go before his flush would still write meta pages
            return check(core.storage, progress=progress, only=core.pager.unsettled)

    def copy(
        self,
        path: str | os.PathLike[str],
        *,
        compact: bool = False,
        page_size: int | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        """Write the newest state to a new file at `path`, while writers go on.

        `compact` writes a dense file, leaves in key order, without free pages;
        then `page_size` may choose other pages than those of this file, in bytes.
        `progress` gets pages (compact: entries) done and in all.  The file
        appears under its name when it is whole and durable; `FileExistsError` if
        there is one already.  O(file).
        """
        if page_size is not None:
            check_page_size(page_size)
            if not compact:
                raise ValueError("a copy of pages keeps their size; give compact=True to choose another page_size")
        core = self._live()
        target = absolute(path)
        with core.pager.gate.using() as snapshot:
            if compact:
                copy_compact(snapshot, target, progress, page_size)
            else:
                copy_whole(core.storage, snapshot, target, progress)

    # ------------------------------------------------------------ ending

    def close(self) -> None:
        """End the transactions of this handle (a writer aborts) and let the file go. Harmless when repeated.

        Waits for a write transaction that another thread has open, and for its
        commit.  Threads that wait for their turn, or are in other calls, get
        `ClosedError`.
        """
        if self._forks != shared.forks:
            self._core = None  # the parent's: nothing of it is ours to end
            return
        self._end_forgotten()
        writers = self._writers_to_end()
        if any(transaction.being_written for transaction in writers):
            raise Error(BEING_WRITTEN)  # now, for afterwards we have ended it by halves
        writing = self._writing
        if not writers and writing is not None and writing.thread is threading.current_thread():
            raise Error("the database is being written, checked or synced in this very thread; close it afterwards")
        del writers
        core = None
        try:
            core, self._core = self._core, None
            if core is not None:
                try:
                    self._end_transactions(core)
                finally:
                    core.leave(self._handle)
        except BaseException:
            if core is not None and core.owes(self._handle):
                self._core = core  # it was interrupted, and goes on when it is called again
            raise

    def _writers_to_end(self) -> list[WriteTransaction]:
        """The write transactions that are open and no other thread's to end."""
        writing = self._writing
        writer = None if writing is None else writing.thread
        if writer is not None and writer is not threading.current_thread() and writer.is_alive():
            return []
        return [
            transaction
            for transaction in self._transactions()
            if isinstance(transaction, WriteTransaction) and not transaction.closed and not transaction.committing
        ]

    def _end_transactions(self, core: Core) -> None:
        for transaction in self._transactions():
            if isinstance(transaction, Transaction):
                transaction.close()
            del transaction  # who has forgotten his, ends it only when nobody holds it
        for writer in self._writers_to_end():
            writer.cut_off()
            del writer
        if self._writing is not None:
            # Another thread is writing: it may finish.
            turn = Turn()
            try:
                with contextlib.suppress(PoisonedError):
                    core.pager.lock(None, turn)
            finally:
                core.pager.unlock(turn)
        for thread, flushed in list(self._flushing.values()):
            if thread is not threading.current_thread():
                with flushed:
                    pass  # its commit has come to its end

    def __enter__(self) -> Self:
        """Use it as a block; it closes at the end."""
        self._live()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_core", None) is not None:
            with contextlib.suppress(Error, OSError):
                self.close()

    def __repr__(self) -> str:
        state = "closed" if self._core is None else f"{self._durability} durability"
        return f"<cowdb.Database {self._path!r}, {state}>"

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickles as path and options."""
        if "disk" in self._options:
            raise TypeError("a database on a disk of its own cannot be pickled")
        return _reopen, (self._path, {**self._options, "create": False})


def _put(transaction: WriteTransaction, key: object, value: object, overwrite: bool) -> bool:
    return transaction.put(key, value, overwrite=overwrite)


def _reopen(path: str, options: dict[str, Any]) -> Database:
    return open(path, **options)


# ---------------------------------------------------------------- opening


def open(  # noqa: A001 - the natural name, used as cowdb.open
    path: str | os.PathLike[str],
    *,
    read_only: bool = False,
    create: bool = True,
    page_size: int = fmt.DEFAULT_PAGE_SIZE,
    durability: str = "full",
    max_size: int | None = None,
    mode: int = 0o600,
    lock_timeout: float | None = None,
    verify: bool = True,
) -> Database:
    """Open the database in the file `path`; make it if there is none and `create` is true.

    `page_size` in bytes and `mode` are for a new file.  ``durability="full"``: a
    commit survives a power cut; ``"lazy"``: commits do not flush, and a power cut
    goes back to the last `sync`, never to a mix.  `max_size` in bytes bounds the
    file.  `lock_timeout` in seconds bounds the wait for the writer lock (None:
    wait).  ``verify=False`` leaves out the checksums of pages on first meeting.

    Raises `NotADatabaseError`, `VersionError`, `CorruptionError`,
    `LockTimeoutError` (another process has it), `ReadOnlyError`, `OSError`.
    O(what the last commit wrote).
    """
    return open_on(
        FileDisk(),
        path,
        read_only=read_only,
        create=create,
        page_size=page_size,
        durability=durability,
        max_size=max_size,
        mode=mode,
        lock_timeout=lock_timeout,
        verify=verify,
    )


def open_on(
    disk: Disk,
    path: str | os.PathLike[str],
    *,
    read_only: bool = False,
    create: bool = True,
    page_size: int = fmt.DEFAULT_PAGE_SIZE,
    durability: str = "full",
    max_size: int | None = None,
    mode: int = 0o600,
    lock_timeout: float | None = None,
    verify: bool = True,
    clock: Callable[[], int] = time.time_ns,
    database_id: bytes | None = None,
    **tuning: int,
) -> Database:
    """`open` on a disk of one's own, such as the fakes of `cowdb.testing`.

    `clock` (nanoseconds) and `database_id` (16 bytes, for a new file) make what
    is written repeatable; `tuning` sets the pager's `memory_budget` and
    `two_flush_limit` in bytes.
    """
    check_options(page_size, max_size, mode, lock_timeout)
    _is_lazy(durability)
    real = isinstance(disk, FileDisk)
    target = absolute(path) if real else os.fspath(path)
    options: dict[str, Any] = {
        "read_only": read_only,
        "create": create,
        "page_size": page_size,
        "durability": durability,
        "max_size": max_size,
        "mode": mode,
        "lock_timeout": lock_timeout,
        "verify": verify,
    }
    if not real:
        options["disk"] = disk
    # Plain blocks, not `core.registry`: the end of a generator needs memory, and what was opened would be lost.
    try:
        with shared.registry_lock:
            return _open_inside(disk, target, options, clock=clock, database_id=database_id, tuning=tuning)
    finally:
        shared.close_idle()


def _open_inside(
    disk: Disk,
    target: str,
    options: dict[str, Any],
    *,
    clock: Callable[[], int],
    database_id: bytes | None,
    tuning: dict[str, int],
) -> Database:
    """A handle. The caller is in the registry. Whatever fails, also for want of memory, nothing stays open."""
    real = isinstance(disk, FileDisk)
    read_only = options["read_only"]
    handle = object()
    storage = core = sharing = None
    try:
        storage = open_storage(
            disk,
            target,
            read_only=read_only,
            create=options["create"],
            mode=options["mode"],
            image=lambda: empty_image(options["page_size"], database_id or secrets.token_bytes(16), clock()),
        )
        identity = storage.identity()
        key = identity if real else (id(disk), *identity)
        core = shared.cores.get(key)
        if core is not None:
            core.handles.add(handle)
            core.pager.gate.when_idle = None
            if core.pager.gate.is_shut:  # its closing was interrupted
                core.handles.discard(handle)
                core.close_if_unused()
            if shared.cores.get(key) is not core:  # or a finalizer has closed it in this very moment
                core = None
        if core is not None:
            storage.close()
            if core.storage.read_only and not read_only:
                raise ReadOnlyError(
                    errno.EROFS, f"{target!r} is open with read_only=True in this process; close that handle first"
                )
        else:
            timeout = options["lock_timeout"]
            sharing = enter(storage, target, read_only=read_only, timeout=timeout) if real else alone(storage)
            if real and not storage.is_current():
                raise Error(f"{target!r} was replaced while it was being opened; open it again")
            pager = Pager(
                storage, sharing, verify=options["verify"], max_size=options["max_size"], clock=clock, **tuning
            )
            made = Core(key, identity, storage, pager)
            made.handles.add(handle)
            database = Database(made, target, options, handle)
            shared.cores[key] = core = made  # in this order: only what is there can be left
            return database
        return Database(core, target, options, handle)
    except BaseException:
        # Without memory nothing here may ask for any.
        if core is not None:
            core.handles.discard(handle)
            core.leave(handle)
        else:
            try:
                if sharing is not None:
                    sharing.let_go()
            finally:
                if storage is not None:
                    storage.close()
        raise


def _is_lazy(durability: object) -> bool:
    if durability not in DURABILITIES:
        raise ValueError(f"durability is one of {', '.join(map(repr, DURABILITIES))}, not {durability!r}")
    return durability == "lazy"
