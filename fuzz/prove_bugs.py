"""Bugs of the commit protocol that can be switched on, for `fuzz.prove`.

Each is a function that gives the changes: whose attribute, its name, another
value.  They are made from here and undone again; nothing of them is in the
engine, so nothing of them can be installed.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from cowdb import format as fmt
from cowdb import meta as meta_page
from cowdb import pager as pager_module
from cowdb import poison, recovery
from cowdb.checksum import crc32c
from cowdb.freelist import FreeList
from cowdb.group import Group
from cowdb.kernel import Gate
from cowdb.pager import Pager
from cowdb.sharing import LocalSharing
from cowdb.testing import CrashDisk

__all__ = ["BUGS", "Bug", "Change"]

Change = tuple[Any, str, Any]
"""Owner, name of the attribute, what to put there."""


def _skip_the_flush() -> list[Change]:
    """A commit returns without a flush."""

    def flush(self: Any, *_state: Any) -> None:
        self.counters.flushes += 1

    return [(Pager, "_flush", flush)]


def _acknowledge_before_the_flush() -> list[Change]:
    """Each commit flushes what the one before has written."""
    real = Pager._flush

    def late(self: Any, *state: Any) -> None:
        if self.__dict__.get("_owed"):
            real(self, *state)
        self.__dict__["_owed"] = True

    return [(Pager, "_flush", late)]


def _meta_before_data() -> list[Change]:
    """With two flushes: the meta says that its pages are durable, and no flush lies between them and it."""
    real = Pager._flush

    def flush(self: Any, state: str = poison.UNKNOWN) -> None:
        if state != poison.NOT_COMMITTED:
            real(self, state)

    return [(Pager, "_flush", flush)]


def _one_slot() -> list[Change]:
    """Every meta goes over the one before."""
    real = Pager._write_meta

    def write(self: Any, slot: int, raw: bytes, *state: Any) -> None:
        real(self, 0, meta_page.encode(meta_page.decode(raw, slot), 0), *state)

    return [(Pager, "_write_meta", write)]


def _slots_by_parity() -> list[Change]:
    """The slot is chosen by the transaction's last bit, and not by where the durable meta lies (P5, I8)."""
    real = Pager._write_meta

    def write(self: Any, slot: int, raw: bytes, *state: Any) -> None:
        meta = meta_page.decode(raw, slot)
        real(self, meta.transaction & 1, meta_page.encode(meta, meta.transaction & 1), *state)

    return [(Pager, "_write_meta", write)]


def _durable_is_the_one_before() -> list[Change]:
    """`durable` in a meta is simply the transaction before it (P4)."""
    real = Pager._write_meta

    def write(self: Any, slot: int, raw: bytes, *state: Any) -> None:
        meta = meta_page.decode(raw, slot)
        real(self, slot, meta_page.encode(meta.with_durable(meta.transaction - 1), slot), *state)

    return [(Pager, "_write_meta", write)]


def _reuse_at_once() -> list[Change]:
    """A freed page is used again by the very transaction that frees it."""
    real = FreeList._take_in
    return [(FreeList, "_take_in", lambda self, runs, _live: real(self, runs, []))]


def _reuse_one_early() -> list[Change]:
    """A freed page is used again one transaction early: the published state is not counted as live (P6)."""

    def live(self: Any) -> list[int]:
        used = {snap.meta.transaction for snap in self.gate._used if snap.users > (snap is self.gate._current)}
        return sorted(used | {self.words.durable[0]} - {self.meta.transaction})

    return [(Pager, "live", live)]


def _durable_not_live() -> list[Change]:
    """The durable state behind lazy ones is not counted as live (P6)."""

    def live(self: Any) -> list[int]:
        return sorted({snap.meta.transaction for snap in self.gate.snapshots()})

    return [(Pager, "live", live)]


def _readers_not_live() -> list[Change]:
    """Long readers are not counted as live (I2)."""
    return [(Gate, "transactions", lambda self: [self._current.meta.transaction])]


def _torn_meta_believed() -> list[Change]:
    """A meta page is believed whatever its checksum says."""
    real = meta_page.decode

    def lenient(page: bytes, slot: int) -> meta_page.Meta:
        raw = bytearray(page)
        size = int.from_bytes(raw[fmt.META.offset("page size") :][:4], "little")
        if size in fmt.PAGE_SIZES and len(raw) >= size:
            raw[: fmt.CHECKSUM_SIZE] = crc32c(memoryview(raw)[fmt.CHECKSUM_SIZE : size]).to_bytes(4, "little")
        return real(bytes(raw), slot)

    return [(meta_page, "decode", lenient)]


def _nothing_verified() -> list[Change]:
    """A meta is believed without a look at its pages."""
    return [(recovery, "young_runs", lambda _storage, _meta: iter(()))]


def _only_roots_verified() -> list[Change]:
    """A meta is believed when its roots are whole."""
    real = recovery._young_tree

    def root_only(*arguments: Any, **options: Any) -> Any:
        yield from itertools.islice(real(*arguments, **options), 1)

    return [(recovery, "_young_tree", root_only)]


def _size_not_verified() -> list[Change]:
    """Pages that the file is too short for are taken for granted (redb 1276)."""
    real = recovery.young_runs

    def trusting(storage: Any, meta: meta_page.Meta) -> Any:
        whole = storage.size() >= meta.page_count * meta.page_size
        return real(storage, meta) if whole else iter(())

    return [(recovery, "young_runs", trusting)]


def _directory_not_flushed() -> list[Change]:
    """The name of a new file is not made durable (bbolt 16596)."""
    return [(CrashDisk, "flush_directory", lambda _self, _path: None)]


def _free_list_leaks() -> list[Change]:
    """A page is taken from the free list and never used."""
    real = FreeList.take

    def leaky(self: FreeList, pages: int) -> Any:
        taken = real(self, pages)
        real(self, 1)
        return taken

    return [(FreeList, "take", leaky)]


def _free_list_gives_twice() -> list[Change]:
    """A page stays in the free list when it is taken."""
    real = FreeList.take

    def twice(self: FreeList, pages: int) -> Any:
        taken = real(self, pages)
        for start, length in taken[:1]:
            self.add((start, length, 0, 0), [])
        return taken

    return [(FreeList, "take", twice)]


def _sync_forgets() -> list[Change]:
    """After a sync, the next lazy meta goes over the one that was just made durable."""

    def sync(self: Any) -> None:
        if self._fresh_turn:
            self._recover()
        self.storage.flush()

    def forget(self: Any, value: tuple[int, int] | None) -> None:
        self.__dict__["durable"] = value and (value[0], 1)

    return [
        (Pager, "sync", sync),
        (LocalSharing, "durable", property(lambda self: self.__dict__.get("durable"), forget)),
    ]


def _sync_without_flush() -> list[Change]:
    """`sync` returns without a flush."""
    real = Pager.sync

    def sync(self: Any) -> None:
        storage = self.storage
        self.storage = _Deaf(storage)
        try:
            real(self)
        finally:
            self.storage = storage

    return [(Pager, "sync", sync)]


class _Deaf:
    """A storage that hears no flush."""

    def __init__(self, storage: Any) -> None:
        self._storage = storage

    def flush(self) -> None:
        """Nothing."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._storage, name)


def _takeover_without_flush() -> list[Change]:
    """Who goes on after a killed process takes what it finds for durable."""

    def reassert(_storage: Any, _state: Any, _durable: Any = None) -> int:
        return 0

    return [(pager_module, "reassert", reassert)]


def _group_not_live() -> list[Change]:
    """States that are sealed, and wait for the flush of their group, are not counted as live (P6)."""
    real = Pager.live

    def live(self: Any) -> list[int]:
        waiting = self.group.transactions()
        return [one for one in real(self) if one not in waiting]

    return [(Pager, "live", live)]


def _group_acknowledged_together() -> list[Change]:
    """When a flush ends, those who were sealed while it ran are told that they are durable, too."""
    real = Group._end_flush

    def end(self: Any) -> None:
        for member in self.pending:
            member.done = True
        real(self)

    return [(Group, "_end_flush", end)]


def _no_reassertion() -> list[Change]:
    """After a flush that failed, the next process flushes but writes nothing again (P3, PostgreSQL 2018)."""

    def reassert(storage: Any, _state: Any, _durable: Any = None) -> int:
        storage.flush_name()
        storage.flush()
        return 1

    return [(pager_module, "reassert", reassert)]


def _torn_meta_completed() -> list[Change]:
    """A torn meta page is written over at once, so what arrives of that can complete what had arrived before."""
    return [(recovery, "_blank", lambda *_: 0)]


def _flush_retried() -> list[Change]:
    """A flush that failed is tried again, and the second one says that all is well."""
    real = Pager._flush

    def retry(self: Any, *state: Any) -> None:
        try:
            self.storage.flush()
        except OSError:
            real(self, *state)

    return [(Pager, "_flush", retry)]


def _writer_not_stopped() -> list[Change]:
    """After a flush that failed, the writer goes on."""
    return [(poison.Poison, "refuse", lambda _self: None)]


@dataclass(frozen=True)
class Bug:
    """A bug: its changes, the part that must see it, and a case in which it shows."""

    part: str
    changes: Callable[[], list[Change]]
    known: str
    rare: bool = False
    """It shows in one of tens of millions of states, so a search that is else blind is told the case."""


BUGS: Final[dict[str, Bug]] = {
    "skip the flush": Bug("crash", _skip_the_flush, "put/plain/4096/0"),
    "acknowledge before the flush": Bug("crash", _acknowledge_before_the_flush, "put/plain/4096/0"),
    "meta before data": Bug("crash", _meta_before_data, "put/two/4096/0"),
    "all metas in one slot": Bug("crash", _one_slot, "put/plain/4096/0"),
    "choose slots by parity": Bug("crash", _slots_by_parity, "group/plain/4096/0"),
    "durable is the transaction before": Bug("crash", _durable_is_the_one_before, "group/plain/4096/0"),
    "reuse a page at once": Bug("crash", _reuse_at_once, "put/plain/4096/0"),
    "reuse a page one transaction early": Bug("crash", _reuse_one_early, "put/plain/4096/0"),
    "the durable state is not live": Bug("crash", _durable_not_live, "group/plain/4096/0"),
    "long readers are not live": Bug("crash", _readers_not_live, "reader+put+put/plain/4096/0"),
    "believe a torn meta": Bug("crash", _torn_meta_believed, "lazylarge/plain/4096h/1"),
    "verify nothing": Bug("crash", _nothing_verified, "put/plain/4096/0"),
    "verify only the root": Bug("crash", _only_roots_verified, "put/plain/4096/0"),
    "grow without verifying size": Bug("crash", _size_not_verified, "put/plain/4096/0"),
    "forget the directory flush": Bug("birth", _directory_not_flushed, "birth"),
    "leak in the free list": Bug("crash", _free_list_leaks, "replace/plain/4096/0"),
    "double-free in the free list": Bug("crash", _free_list_gives_twice, "put/plain/4096/0"),
    "sync forgets where it is": Bug("crash", _sync_forgets, "put/plain/4096/0"),
    "sync without a flush": Bug("crash", _sync_without_flush, "lazy+sync/plain/4096/0"),
    "take over without a flush": Bug("crash", _takeover_without_flush, "lazy+kill+put/plain/4096/0"),
    "sealed states are not live": Bug("crash", _group_not_live, "group/plain/4096/0"),
    "a group acknowledged too early": Bug("crash", _group_acknowledged_together, "group/plain/4096/0"),
    "skip the re-assertion": Bug("crash", _no_reassertion, "fail+put/plain/4096/0"),
    "complete a torn meta": Bug(
        "crash",
        _torn_meta_completed,
        "group+lazy+group+range+large+kill+delete/two/512h/2028@59:1=2@2:1=1",
        rare=True,
    ),
    "retry a failed flush": Bug("crash", _flush_retried, "fail/plain/4096/0"),
    "the writer goes on after a failed flush": Bug("faults", _writer_not_stopped, "flush:one put:EIO:once:2:*"),
}
"""The bugs by name."""
