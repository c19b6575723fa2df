"""A snapshot in use: the main tree that it leads to, counted in at the gate until it is closed.

    gate.begin() --> snapshot --> Reading --> close() --> gate.end(snapshot)

It is the part of a read transaction that every `with db.read()` goes through, so
the kernel has a compiled twin of it.  What a transaction offers besides is in `transaction`.
"""

from __future__ import annotations

import contextlib
import functools
from typing import TYPE_CHECKING, Any, Protocol, Self

from cowdb.space import FORKED
from cowdb.tree import Reader

if TYPE_CHECKING:
    from _thread import RLock
    from collections.abc import Callable
    from types import TracebackType

    from cowdb.readers import Gate, Snapshot
    from cowdb.space import Space

__all__ = ["Keeper", "Reading", "main_tree"]


def main_tree(snapshot: Snapshot) -> Reader:
    """What looks into the main tree of a snapshot that is used; made once for all who use it."""
    reader = snapshot.main
    if reader is None:
        reader = snapshot.main = Reader(snapshot.space, snapshot.meta.main)
    return reader


class Keeper(Protocol):
    """Who can keep a snapshot alive for longer than the transaction that uses it."""

    naming: RLock  # held for a moment by a thread that is the first to ask a transaction for a named tree

    def pin(self, snapshot: Snapshot) -> Any:
        """A mapping of the file that keeps `snapshot` alive as long as it is held."""


class Reading(Reader):
    """The main tree of a snapshot that is in use until `close`; any thread may use it."""

    __slots__ = ("_gate", "_keeper", "_names", "_snapshot", "_trees")

    def __init__(self, snapshot: Snapshot, keeper: Keeper, gate: Gate) -> None:
        """`gate` is told once, when this ends, that `snapshot` has a user less."""
        self._gate: Gate | None = None  # until all is ready
        main = main_tree(snapshot)
        self.space = main.space
        self.bits = main.bits
        self.depth = main.depth
        self.page = None
        self._pin = None
        self._snapshot = snapshot
        self._keeper = keeper
        self._names: Reader | None = None  # looks into the catalog
        self._trees: dict[str, Any] | None = None
        self._gate = gate

    def pinning(self) -> Callable[[], Any]:
        """What gives a mapping that keeps the snapshot alive as long as it is held. Made when it is asked for."""
        pin: Callable[[], Any] | None = self._pin
        if pin is None:
            pin = self._pin = functools.partial(self._keeper.pin, self._snapshot)
        return pin

    def named(self) -> dict[str, Any]:
        """The named trees that were asked for, which end with the transaction. All threads get the same."""
        trees = self._trees
        if trees is None:
            fresh: dict[str, Any] = {}
            with self._keeper.naming:
                trees = self._trees
                if trees is None:
                    trees = self._trees = fresh
        return trees

    def close(self) -> None:
        """End the transaction; its trees and cursors refuse from then on. Harmless when repeated."""
        gate, self._gate = self._gate, None
        self._let_go(None)
        if gate is not None:
            gate.end(self._snapshot)

    def abort(self) -> None:
        """End the transaction, as `close` does."""
        self.close()

    def abandon(self) -> None:
        """In a forked child: the snapshot is the parent's, who knows nothing of this copy, so every use raises."""
        self._gate = None
        self._let_go(FORKED)

    def _let_go(self, space: Space | None) -> None:
        self.space = space
        if self._names is not None:
            self._names.space = space
        trees = self._trees
        while trees:
            with contextlib.suppress(KeyError):  # another thread ends it too
                trees.popitem()[1].space = space

    def __enter__(self) -> Self:
        """Use it as a block; it ends with it."""
        self.open_space()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        # A reader that was forgotten pins its snapshot no longer than it can be reached.  The garbage collector may
        # call this while this very thread is inside the gate, so nothing here may take a lock.
        gate = getattr(self, "_gate", None)
        if gate is not None:
            self._gate = None
            self._let_go(None)
            gate.leave(self._snapshot)
