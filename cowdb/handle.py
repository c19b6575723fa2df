"""The reading half of an open database: beginning a read, and reads of one call.

It is what a program calls most often, so the kernel has a compiled twin of it.
Everything else about a database is in `database`.

    read()    newest snapshot, counted in --> a transaction, which is noted --> counted out when it ends
    get(k)    newest snapshot, counted in --> a look into its main tree     --> counted out
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Final, Generic, Protocol, TypeVar, cast, overload

from cowdb.errors import ClosedError, KeyNotFoundError
from cowdb.reading import Keeper, Reading, main_tree

if TYPE_CHECKING:
    from cowdb.readers import Gate

__all__ = ["Handle"]

_T = TypeVar("_T")
_R = TypeVar("_R", bound=Reading)
_C = TypeVar("_C", bound="Core")
_MISSING: Final = object()


class _Gated(Protocol):
    @property
    def gate(self) -> Gate: ...


class Core(Keeper, Protocol):
    """What all handles of one file share, as far as reads need it."""

    @property
    def pager(self) -> _Gated:
        """Who has the gate."""


class Handle(Generic[_C, _R]):
    """Begins reads of the newest state, and knows which are open; safe to use from any thread."""

    _core: _C | None

    def __init__(self, kind: type[_R]) -> None:
        """`kind` of transaction is what `read` gives."""
        self._core = None  # until all is ready
        self._kind = kind
        self._readings: set[weakref.ref[_R]] = set()
        self._forget = self._readings.discard  # what a WeakSet does for each, without its call of Python

    def _live(self) -> _C:
        """The core; `ClosedError` if there is none any more."""
        raise NotImplementedError

    def _refusal(self) -> ClosedError:
        """What is raised when the database was closed."""
        return ClosedError("the database is closed")

    def part(self) -> None:
        """In a forked child: the next call finds out anew what it may use. Here, every call does."""

    def readings(self) -> list[_R]:
        """The transactions of `read` that are open, or were a moment ago."""
        while True:
            try:
                return [found for known in list(self._readings) if (found := known()) is not None]
            except RuntimeError:  # another thread began or ended one meanwhile
                continue

    # ------------------------------------------------------------ reading

    def read(self) -> _R:
        """A snapshot of the newest state. It never blocks and is never blocked. O(1), no system call."""
        core = self._live()
        gate = core.pager.gate
        snapshot = gate.begin()
        try:
            transaction = self._kind(snapshot, core, gate)
        except BaseException:
            gate.leave(snapshot)
            raise
        self._readings.add(weakref.ref(transaction, self._forget))
        if self._core is None:  # closed by another thread since we looked, perhaps too early to see this transaction
            transaction.close()
            raise self._refusal()
        return transaction

    def __getitem__(self, key: object) -> bytes:
        """The value of `key` in the main tree's newest state; `KeyNotFoundError` if there is none."""
        value = self.get(key, _MISSING)
        if value is _MISSING:
            raise KeyNotFoundError(key)
        return cast("bytes", value)

    @overload
    def get(self, key: object) -> bytes | None: ...
    @overload
    def get(self, key: object, default: _T) -> bytes | _T: ...
    def get(self, key: object, default: object = None) -> object:
        """The value of `key` in the main tree's newest state, or `default`."""
        gate = self._live().pager.gate
        snapshot = gate.begin()
        try:
            return main_tree(snapshot).get(key, default)
        finally:
            gate.end(snapshot)

    def __contains__(self, key: object) -> bool:
        """True if the main tree's newest state has `key`."""
        gate = self._live().pager.gate
        snapshot = gate.begin()
        try:
            return key in main_tree(snapshot)
        finally:
            gate.end(snapshot)
