"""The pages of a transaction, and the commit that makes them the state.

A `Draft` holds what one write transaction has changed, all of it in memory.
`Pager.commit` turns it into the next state with one flush.  Its eight steps are
numbered in the code as they are here:

    1  finish the trees: descriptors into the catalog
    2  update the free list: numbers for the dirty pages, old runs to the free tree
    3  seal: number, birth and checksum into every dirty page, children first
    4  extend the file if needed
    5  write the dirty pages, neighbours together
    6  write the meta page into the slot that does not hold the newest durable meta
    7  flush
    8  publish

Until step 6 nothing that any state refers to has changed (I1): a crash or an
error leaves the old state.  From step 6 on the new state may be found by a
recovery, which believes it only if all of it is there.  So one flush is enough,
and a caller is told "committed" only after it (I9).  A small commit that is alone
has the disk begin with its pages before step 6: that promises nothing, but if the
system cannot even begin, it is a failed flush.

    slots      [ 41 ] [ 40 ]     commit 42      [ 41 ] [ 42 ]     commit 43 ...
    durable D    ^               -- flush -->            ^ D

With ``durability="lazy"`` step 7 is left out.  Every lazy meta goes to the slot
that is not D's (I8), so the last durable state survives any crash.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import sys
import time
from typing import TYPE_CHECKING, Final

from cowdb import format as fmt
from cowdb.allocation import Allocator, blocker, spare_pages
from cowdb.catalog import descriptors, name_key
from cowdb.errors import ClosedError, CorruptionError, Error, LockTimeoutError, PoisonedError, ReadOnlyError
from cowdb.extent import LEAST_GROWTH, Extent
from cowdb.kernel import (
    Draft,
    Gate,
    Group,
    Member,
    Reader,
    WriterLock,
    begin_writing,
    encode,
    seal_usual,
    write_page,
    write_sealed,
)
from cowdb.meta import Meta
from cowdb.poison import NOT_COMMITTED, NOTHING_LOST, UNKNOWN, Poison
from cowdb.recovery import reassert, take_over
from cowdb.sealed import Sealed
from cowdb.space import BIRTH_MASK
from cowdb.stats import Counters, Stats
from cowdb.storage import GATHERED, SOON
from cowdb.writer import EARLY

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from cowdb.kernel import Turn, Writer
    from cowdb.readers import Snapshot
    from cowdb.sharing import Sharing
    from cowdb.storage import Storage

__all__ = ["Pager"]

_FEW: Final = 16
"""Pages of a commit with which the disk begins before the meta page is written."""


class Pager:
    """One open data file: its state, its free list, its commits.

    Reading goes through `gate`; everything that writes is called with the
    writer lock held.
    """

    def __init__(
        self,
        storage: Storage,
        sharing: Sharing,
        *,
        verify: bool = True,
        max_size: int | None = None,
        memory_budget: int = 256 << 20,
        two_flush_limit: int = 64 << 20,
        clock: Callable[[], int] = time.time_ns,
    ) -> None:
        self.storage = storage
        self.memory_budget = memory_budget
        self.two_flush_limit = two_flush_limit
        self._clock = clock
        self.words = sharing
        self.writer_lock = WriterLock()
        self.failpoint: Callable[[str], object] = len  # tests put something else here; this does nothing
        self.poison = Poison()
        self.extent = Extent(storage, self.poison, verify=verify)
        self.gate = Gate(sharing, self.extent.cover)
        meta = self.gate.current.meta
        self.extent.begin(meta, max_size)
        self.page_size: int = meta.page_size
        self._begin_at = max(fmt.FIRST_DATA_PAGE * self.page_size, GATHERED)
        self.next_transaction: int = _next_id(meta.transaction)
        self.allocator = Allocator(self.page_size, self.extent.max_pages)
        self._closed = self._left = False
        self.closed = False  # ... and nothing of it is open any more
        self._has_turn = False  # this process may write (it holds the lock between processes)
        self._fresh_turn = False  # ... and has not looked yet how the one before it left the file
        self.group = Group(self.gate, self.poison)
        self._durable_pages = meta.page_count
        self._unsynced = 0
        self._settled = -1  # the word of the state that this process has committed, and no writer died since
        self.counters = Counters()

    # ------------------------------------------------------------ the states that count

    @property
    def meta(self) -> Meta:
        """The newest published state."""
        return self.gate.current.meta

    @property
    def unsettled(self) -> int | None:
        """The published transaction, if the state before it may be in pieces; None if both must be whole."""
        current = self.gate.current
        whole = self._settled == current.word != self.words.in_vain and self.poison.reason is None
        return None if whole else current.meta.transaction

    def live(self) -> list[int]:
        """Transactions that a freed page must wait for, ascending (P6); see `Gate.live`."""
        return self.gate.live(self.group.transactions())

    # ------------------------------------------------------------ begin and end of a write

    def lock(self, timeout: float | None, turn: Turn) -> None:
        """Become the one who may write, in this process and over all; `LockTimeoutError` after `timeout` seconds.

        While a group of this process is being flushed, the process keeps its turn,
        unless another process waits for it.  If an interrupt comes just when this
        returns, `unlock` of the same `turn` is what undoes it.
        """
        begun = 0.0 if timeout is None else time.monotonic()
        self.group.clear_up()
        try:
            self.writer_lock.acquire(timeout, turn)
        except BaseException:
            self.writer_lock.release(turn)
            self._end_group(turn)  # who let go meanwhile may have taken us for the next one
            raise
        try:
            if self._closed:
                raise ClosedError("the database was closed while this thread waited to write")
            if self._has_turn and self.words.contended():
                self.group.drain(self._publish)
                self._give_turn()
            if not self._has_turn:
                self.words.lock_writer(None if timeout is None else max(0.0, timeout - (time.monotonic() - begun)))
                self._fresh_turn = True  # first: a turn that was not looked at must never be taken for one that was
                self._has_turn = True
                if self.words.busy:
                    self._settled = -1
        except BaseException as error:
            if not self._has_turn and not isinstance(error, LockTimeoutError):
                self.words.unlock_writer()  # it may have become ours in this very moment
            self.unlock(turn)
            raise

    def unlock(self, turn: Turn) -> None:
        """Let the next one write. A finalizer may call it: it waits for nothing.

        Harmless when repeated, as after an interrupt.  What lets the others go on
        needs no memory.
        """
        lock = self.writer_lock
        try:
            if lock.holds(turn) and self._has_turn and self.group.idle():
                try:
                    if self.extent.perhaps_long and not self.storage.read_only and self.poison.reason is None:
                        self._cut_file()
                except MemoryError:
                    pass  # the next cut tries again
                finally:
                    self._give_turn()
        finally:
            lock.release(turn)
        if self._has_turn:
            self._end_group(turn)  # the flush that was in flight may have ended while we let go

    def _give_turn(self) -> None:
        """Let another process write: QUIET, unless something failed here (P2)."""
        if self.poison.reason is None and not self._fresh_turn:
            self.words.busy = False
        self._has_turn = False  # first: what is not ours any more must never be taken for ours
        self.words.unlock_writer()

    def begin(self, turn: Turn) -> Draft:
        """A draft of the next transaction. The caller holds the writer lock, for this `turn`.

        The first one after opening re-asserts the state of the file (P3).
        """
        if self.storage.read_only:
            raise ReadOnlyError(errno.EROFS, "the database was opened read-only")
        if self.poison.reason is not None:
            self.poison.refuse()
        if self._fresh_turn:
            self._recover()
        newest: Member | Snapshot | None = self.group.newest()
        if newest is None:
            newest = self.gate.current
        meta, space = newest.meta, newest.space
        allocator = self.allocator
        if allocator.base != meta.transaction:
            # Another process has written since, or nobody yet.
            self.extent.forget()
            self.extent.look()
            self._durable_pages = max(self._durable_pages, meta.page_count)
            self.next_transaction = max(self.next_transaction, _next_id(meta.transaction))
        if self.next_transaction > fmt.MAX_U48:
            # A thousand commits a second reach this in 8,900 years, so it is damage; the next id would fit no field.
            raise CorruptionError(-1, "its transaction ids are used up; copy it with compact=True")
        if allocator.free is None or allocator.base != meta.transaction:
            allocator.load(meta, self.live())
        self.words.busy = True
        birth = self.next_transaction
        draft = Draft(meta, space, birth, self.memory_budget, self.spill, turn=turn, following=_next_id(birth))
        if allocator.max_pages is not None:
            draft.changes.early = sys.maxsize  # what it may delete again needs no room before
        return draft

    def finish(self, draft: Draft) -> None:
        """The end of a draft, committed or not: what it allotted and did not commit is free again, as is the lock.

        Harmless when repeated, as after an interrupt.
        """
        try:
            draft.stop()  # nothing of it is written from here on, whatever else fails
            if draft.allotted:
                self.words.in_vain = self.words.published  # its pages may lie where the state before that had its own
                self.allocator.free = None
                self.next_transaction = draft.following
                self.extent.forget()  # it may have grown for nothing
                draft.allotted = False
        finally:
            self.unlock(draft.turn)  # nothing, if it was handed on
        draft.close()

    def _recover(self) -> None:
        """Make the state certain if nobody has in this session, or if a writer did not end cleanly (P3)."""
        words = self.words
        if words.durable is not None and not words.busy:
            self.extent.look()  # who had the turn before may have cut the file without a commit
            self._fresh_turn = False
            return
        published = self.gate.current
        words.busy = True
        state = take_over(self.storage, published.meta, words.durable)
        try:
            self.counters.flushes += reassert(self.storage, state, words.durable)
        except CorruptionError:
            raise
        except OSError as error:
            self.poison.fail("re-asserting the state of the file", error)
        meta = state.meta
        words.durable = (meta.transaction, state.slot)
        self._durable_pages = meta.page_count
        self.extent.look()
        if meta.transaction != published.meta.transaction:
            # A writer died between its meta and its publishing.
            space = self.extent.cover(meta, published.space)
            self.gate.publish(meta, encode(meta, state.slot), space)
        self._fresh_turn = False

    # ------------------------------------------------------------ commit

    def commit(self, draft: Draft, *, lazy: bool, hand_on: Callable[[], None] | None = None) -> None:
        """Make `draft` the state of the database; see the recipe at the top of the module.

        `hand_on` is called when the writer lock is let go, which is before the
        flush.  Raises `FullError` (not committed), or `OSError` with the state unknown
        until the file is opened again; then the writer is poisoned.
        """
        if self.poison.reason is not None:
            self.poison.refuse()
        draft.main.open_space()  # an abort that was interrupted has ended it all the same
        changes = draft.changes
        if changes.torn:
            raise Error("a change was interrupted in the middle, so this transaction can only be aborted")
        changes.close()
        if not draft.changed():
            return
        allocator = self.allocator
        free = allocator.free
        assert free is not None
        base = draft.meta
        transaction = changes.birth

        # 1. Finish the trees: descriptors into the catalog (blank until their roots are sealed).
        changed = [name for name, tree in draft.named.items() if tree.changed] if draft.named else ()
        for name in changed:
            draft.catalog.put(name_key(name, draft.catalog.key_limit), bytes(fmt.DESCRIPTOR_SIZE))

        # 2. Update the free list: numbers for the dirty pages, then old runs to the free tree.
        # 3. Seal: number, birth and checksum into every dirty page, children before parents.
        draft.allotted = True  # from here on the free list is the draft's, and is loaded anew if it is not committed
        live = self.live()
        durable = self.words.durable
        sealed = Sealed()
        usual = None
        if allocator.max_pages is None:
            usual = seal_usual(draft, free, live, allocator.room(lazy=lazy), sealed)
        if usual is not None:
            main, draft.page_count = usual
            catalog, free_tree = base.catalog, base.free
        else:
            main, catalog, free_tree = self._number_and_seal(draft, changed, live, sealed, lazy=lazy)
        known = durable[0] if durable is not None else 0  # as it is now; step 6 looks again (P4)
        pages = draft.page_count
        meta = Meta(
            self.page_size, base.database_id, transaction, known, pages, self._clock(),
            main, catalog, free_tree, free.carry(), base.optional_features,
        )  # fmt: skip

        # 4. Extend the file if needed.
        space = draft.space
        self.failpoint("extend")
        self._extend(draft)
        if pages > space.pages:
            space = self.extent.map(space)

        # 5. Write the dirty pages, neighbours together.
        self.failpoint("write pages")
        written = self._write_pages(sealed, flushed=not lazy)
        self.failpoint("hand on")
        space.trust(sealed.numbers, transaction)
        self.next_transaction = draft.following
        allocator.base = transaction
        draft.allotted = False  # only now: interrupted in between, the next draft must not use this one's free list
        member = draft.member = Member(meta, space, written + draft.written, changes.copied, changes.operations)
        if lazy:
            self.group.drain(self._publish)
            self._publish([member], lazy=True)
            member.done = True
            return

        # From here on the next writer of this process builds on this state, while it becomes durable (group commit).
        self._wait_until_durable(draft, member, hand_on)

    def _number_and_seal(
        self, draft: Draft, changed: Iterable[str], live: list[int], sealed: Sealed, *, lazy: bool
    ) -> tuple[fmt.Descriptor, fmt.Descriptor, fmt.Descriptor]:
        """Steps 2 and 3, one by one, into `sealed`: the main, catalog and free trees.

        `changed` has the names of the named trees that were.
        """
        allocator = self.allocator
        free = allocator.free
        assert free is not None

        # 2.
        free.settle(live)
        allocator.release(draft, live)
        writers = draft.writers()  # step 1 may have brought the catalog in
        numbers, runs = allocator.allot(draft, writers, live)
        allocator.save(draft, live, lazy=lazy)
        if draft.free_changed():
            more, _ = allocator.allot(draft, [draft.free], live, fetch=False)
            numbers = itertools.chain(numbers, more)
        allocator.keep_spare(draft)
        draft.page_count = free.take_tail(draft.page_count)

        # 3.
        place = _placer(runs)
        main = writers[0].seal(numbers, place, sealed)
        for name in changed:
            _set_descriptor(draft.catalog, name, draft.named[name].seal(numbers, place, sealed))
        catalog, free_tree = draft.descriptors(lambda writer: writer.seal(numbers, place, sealed))
        return main, catalog, free_tree

    def _publish(self, group: list[Member], *, lazy: bool) -> None:
        """Steps 6 to 8, for the newest of `group`, whose members build on each other.

        Whatever goes wrong poisons the writer: the file may hold a state that
        nobody here knows, and writing on from the one before could lose either.
        """
        try:
            self._write_and_publish(group, lazy=lazy)
        except BaseException as error:
            self.poison.interrupted(error)
            raise

    def _write_and_publish(self, group: list[Member], *, lazy: bool) -> None:
        words = self.words
        durable = words.durable
        assert durable is not None
        newest = group[-1]
        transaction = newest.meta.transaction
        written = 0
        for member in group:
            written += member.written
        slot = 1 - durable[1]
        known = durable[0]
        flushes = 0
        if not lazy and (self._unsynced + written) * self.page_size > self.two_flush_limit:
            # Too much to verify quickly after a crash: flush the pages first.  From here on the published state is
            # durable too (P4), and its slot is not to be written.
            self.failpoint("first flush")
            self._flush(NOT_COMMITTED)
            flushes = 1
            published = self.gate.current.meta
            self._durable_pages = published.page_count
            if published.transaction > durable[0]:
                words.durable = (published.transaction, slot)
                slot = 1 - slot
            known = transaction
        if not lazy and written <= _FEW and len(group) == 1 and self._nothing_else():
            self._begin_writing(self._begin_at, little=True)
        meta = newest.meta if newest.meta.durable == known else newest.meta.with_durable(known)
        raw = encode(meta, slot)
        self.failpoint("write meta")

        # 6. Write the meta page into the slot that does not hold the newest durable meta (I8).
        self._write_meta(slot, raw)

        # 7. Flush.
        if not lazy:
            self.failpoint("flush")
            self._flush()
            flushes += 1
            words.durable = (transaction, slot)
            self._durable_pages = meta.page_count

        # 8. Publish.
        self.failpoint("publish")
        self.gate.publish(meta, raw, newest.space)
        self._unsynced = self._unsynced + written if lazy else 0
        self.counters.publish(group, flushes)
        self._settled = self.gate.current.word

    # ------------------------------------------------------------ group commit

    def _wait_until_durable(self, draft: Draft, member: Member, hand_on: Callable[[], None] | None) -> None:
        """Let the writer lock go, and return when `member` is durable and published (I9).

        It flushes for the group if nobody does.
        """
        group = self.group
        try:
            group.add(member)
            draft.close()
            draft.handed_on = True
            try:
                if hand_on is not None:
                    hand_on()
            finally:
                self.writer_lock.release(draft.turn)
            group.wait_for(member, self._publish)
        except BaseException as error:
            # The others, and the next writer, must not wait for a thread that was interrupted.
            try:
                self._see_to_the_others(error)
            except BaseException:
                self._see_to_the_others(error)  # interrupted once more: else it is left to the next commit here
                raise
            raise
        finally:
            self._end_group(draft.turn)

    def _see_to_the_others(self, error: BaseException) -> None:
        """This thread's commit ended with `error`: let those go on that wait for it."""
        if not isinstance(error, PoisonedError) and self.poison.reason is None:
            self.group.drain(self._publish)
        elif self.group.in_flight:
            self.group.tidy()

    def _end_group(self, turn: Turn) -> None:
        """If nobody of this process writes any more, let the other processes have their turn.

        `turn` is one that is over: for this it is used once more.
        """
        if self._has_turn and self.group.idle():
            try:
                if self.writer_lock.acquire_if_free(turn):
                    self.unlock(turn)
            except BaseException:
                self.writer_lock.release(turn)
                raise

    def quiesce(self) -> None:
        """Return when no commit is on its way any more. The caller holds the writer lock, so that none begins."""
        with contextlib.suppress(PoisonedError):
            self.group.drain(self._publish)

    # ------------------------------------------------------------ the file

    def _extend(self, draft: Draft) -> None:
        """Make the file hold the draft's pages, and what it takes to delete them."""
        free = self.allocator.free
        assert free is not None
        self.extent.grow(
            draft.page_count,
            inserted=draft.changes.inserted,
            ready_pages=free.ready_pages,
            closely=draft.written * self.page_size >= EARLY,
        )

    def _write_pages(self, sealed: Sealed, *, flushed: bool) -> int:
        """Write sealed pages, neighbours in one call; how many that was. `flushed`: a flush will follow.

        With many of them the disk begins at once, while more is computed.
        """
        try:
            written = write_sealed(self.storage, sealed, self.page_size, flushed=flushed)
        except OSError as error:
            self.poison.not_committed("writing pages", error)
        except BaseException as error:  # noqa: BLE001 - a kill from the keyboard poisons too
            self.poison.fail("writing pages", error)
        if flushed and written * self.page_size >= SOON:
            self._begin_writing(0, little=False)
        return written

    def _nothing_else(self) -> bool:
        """Whether nothing but the last transaction can wait for the disk: no lazy one, and no early writes in vain."""
        before = self.gate.current
        durable = self.words.durable
        return durable is not None and durable[0] == before.meta.transaction and self.words.in_vain != before.word

    def _begin_writing(self, start: int, *, little: bool) -> None:
        """Have the disk begin with what was written from byte `start` on. It can fail as a flush can."""
        try:
            begin_writing(self.storage, start, little=little)
        except BaseException as error:  # noqa: BLE001 - a kill from the keyboard poisons too
            self.poison.fail("flushing", error)

    def _write_meta(self, slot: int, raw: bytes, state: str = UNKNOWN) -> None:
        try:
            write_page(self.storage, slot, raw)
        except BaseException as error:  # noqa: BLE001 - a kill from the keyboard poisons too
            self.poison.fail("writing the meta page", error, state)

    def _flush(self, state: str = UNKNOWN) -> None:
        """Flush, once: a flush that failed is never retried, for the next one may lie."""
        try:
            self.storage.flush()
        except BaseException as error:  # noqa: BLE001 - a kill from the keyboard poisons too
            self.poison.fail("flushing", error, state)
        self.counters.flushes += 1

    def _cut_file(self) -> None:
        """Give free space at the file's end back, when it is a good part of the file.

        Never below what a live snapshot may use: each is bounded by its own page count.
        """
        latest = self.gate.latest
        if not self.extent.worth_cutting(latest.meta.page_count) or self.words.durable is None:
            return
        if latest.word != self.words.published:
            return  # another process has written since; who is a finalizer must not wait to hear what
        snapshots = self.gate.snapshots_now()
        if snapshots is None:
            return  # perhaps it is this very thread that is inside the gate
        wanted = max(self._durable_pages, self._pages_in_use(snapshots))
        wanted += max(LEAST_GROWTH, wanted // 8)
        if self.extent.worth_cutting(wanted):
            self.extent.cut(wanted, [snapshot.space for snapshot in snapshots])

    def _pages_in_use(self, snapshots: list[Snapshot]) -> int:
        """The page count that no live snapshot exceeds: one of these, or in another process."""
        own = max(snapshot.meta.page_count for snapshot in snapshots)
        return max([own, *(pin.page_count for pin in self.words.others())])

    def spill(self, draft: Draft) -> None:
        """Write the dirty pages of `draft` early; its trees go on from the written pages."""
        main = draft.main  # kept: forgotten in the middle of this, it would end at once
        main.open_space()  # an early write that failed has ended the draft
        try:
            draft.writing = True
            self._write_early(draft)
        except BaseException:
            draft.changes.torn = True  # whatever strikes next, it is never committed
            draft.writing = False
            draft.close()  # its trees name pages that were not written
            raise
        draft.writing = False
        draft.changes.torn = False

    def _write_early(self, draft: Draft) -> None:
        allocator = self.allocator
        free = allocator.free
        assert free is not None
        changes = draft.changes
        live = self.live()
        draft.allotted = True
        free.settle(live)
        free.release(changes.take_own(), changes.birth, live)
        writers = draft.writers()
        budget, changes.budget = changes.budget, sys.maxsize
        changes.due = False  # reading records changes the free tree, which is not to begin this once more
        numbers, runs = allocator.allot(draft, writers, live)
        changes.budget = budget
        changes.torn = True  # trees whose pages have numbers, and may not be in the file
        sealed = Sealed()
        place = _placer(runs)
        for writer in writers:
            writer.seal(numbers, place, sealed)
        self._extend(draft)
        draft.written += self._write_pages(sealed, flushed=draft.flushed)
        space = draft.main.open_space()
        if draft.page_count > space.pages:
            draft.move(self.extent.map(space))
        changes.written()

    # ------------------------------------------------------------ sync and close

    def sync(self) -> None:
        """Make everything that was committed so far durable (P8: with the writer lock held)."""
        if self.storage.read_only:
            return
        self.poison.refuse()
        self.group.drain(self._publish)
        if self._fresh_turn:
            self._recover()
        durable = self.words.durable
        assert durable is not None
        meta = self.meta
        if meta.transaction == durable[0]:
            return
        self.words.busy = True
        self._flush()
        self.words.durable = (meta.transaction, 1 - durable[1])
        self._durable_pages = meta.page_count
        self._unsynced = 0

    def close(self) -> None:
        """Leave the file; who is the last one inside ends it cleanly. Harmless when repeated, as after an interrupt."""
        self._closed = True
        try:
            self.gate.let_go()
            self.quiesce()  # the writer lock is kept until the flush is done
            left, self._left = self._left, True
            if not left:
                self.words.leave(self.settle)
        finally:
            try:
                self.words.let_go()
            finally:
                self.storage.close()
                self.closed = True

    def abandon(self) -> None:
        """In a forked child: all this is the parent's."""
        self.gate.let_go()
        self.words.abandon()
        self.storage.close()

    def settle(self) -> None:
        """Sync, cut the tail, and write a meta whose `durable` is its own transaction: opening it verifies nothing.

        Nothing to do for a reader, a poisoned writer, or one that never wrote.
        """
        if self.poison.reason is not None or self.storage.read_only or self.words.durable is None:
            return
        self.extent.look()
        self._fresh_turn = True
        self.sync()
        durable = self.words.durable
        meta = self.meta
        if meta.durable == meta.transaction:
            return
        snapshots = self.gate.snapshots()
        pages = self._pages_in_use(snapshots)
        pages = max(pages, min(self.extent.backed, pages + spare_pages(pages)))
        if pages < self.extent.pages:
            self.extent.cut(pages, [snapshot.space for snapshot in snapshots])
        slot = 1 - durable[1]
        clean = meta.with_durable(meta.transaction)
        self._write_meta(slot, encode(clean, slot), NOTHING_LOST)
        self._flush(NOTHING_LOST)

    # ------------------------------------------------------------ counting

    def stats(self) -> Stats:
        """The counters now. O(named trees)."""
        with self.gate.using() as snapshot:
            meta = snapshot.meta
            trees = [meta.main, meta.catalog, meta.free, *descriptors(Reader(snapshot.space, meta.catalog))]
        used = sum(tree.branch_pages + tree.leaf_pages + tree.overflow_pages for tree in trees)
        live = self.live()
        durable = self.words.durable
        counters = self.counters
        return Stats(
            page_size=self.page_size,
            transaction=meta.transaction,
            durable_transaction=durable[0] if durable else meta.durable,
            commits=counters.commits,
            pages_written=counters.pages_written,
            bytes_written=counters.pages_written * self.page_size,
            flushes=counters.flushes,
            pages_copied=counters.pages_copied,
            operations=counters.operations,
            pages_written_last_commit=counters.pages_written_last_commit,
            flushes_last_commit=counters.flushes_last_commit,
            dirty_ratios=counters.ratios,
            page_count=meta.page_count,
            used_pages=used,
            free_pages=meta.page_count - fmt.META_PAGES - used,
            pinned_pages=sum(run[1] for run in meta.carried if blocker(run, live) is not None),
            carried_pages=sum(run[1] for run in meta.carried),
            carried_runs=len(meta.carried),
            shared_pages=max(0, used - max(0, counters.pages_written_last_commit - 1)),
            snapshots=len(self.gate.snapshots()),
            readers=self.gate.users(),
            file_size=self.storage.size(),
        )


def _next_id(transaction: int) -> int:
    """The id after `transaction`; never one whose low 32 bits are zero (see `space`)."""
    following = transaction + 1
    return following if following & BIRTH_MASK else following + 1


def _placer(runs: dict[int, list[int]]) -> Callable[[int], int]:
    def place(pages: int) -> int:
        try:
            return runs[pages].pop()
        except (KeyError, IndexError):
            # Each value that waits for its pages was counted once, so a forged page refers to one twice.
            raise CorruptionError(-1, "two entries refer to one overflow value") from None

    return place


def _set_descriptor(catalog: Writer, name: str, descriptor: fmt.Descriptor) -> None:
    """Put a sealed tree's descriptor where its blank stands; the page is dirty already."""
    catalog.patch(name_key(name, catalog.key_limit), descriptor.pack())
