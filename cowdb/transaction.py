"""What a caller does inside one transaction.

A `Transaction` is the main tree of a snapshot, and leads to its named trees.  A
`WriteTransaction` is the same of a draft: alone in the file, seeing its own
changes, invisible to everybody else until `commit`.

    db.read()   --> Transaction       -- tree("users") --> Tree
    db.write()  --> WriteTransaction  -- tree("users") --> WriteTree

Both are context managers: a reader ends at the end of the block; a writer
commits, or aborts if the block raised.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Concatenate, Final, ParamSpec, TypeVar

from cowdb import format as fmt
from cowdb.catalog import find_tree, name_key, names_in
from cowdb.errors import Error, KeyNotFoundError
from cowdb.kernel import Reader, Reading, Writing
from cowdb.space import FORKED, refuse
from cowdb.views import Tree, WriteTree
from cowdb.writer import BUSY
from cowdb.writing import BEING_WRITTEN

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Transaction", "WriteTransaction"]

_P = ParamSpec("_P")
_T = TypeVar("_T")
DURABILITIES: Final = ("full", "lazy")


class Transaction(Reading, Tree):
    """A snapshot: the main tree as a `Mapping`, and the named trees. It never changes.

    Any thread may use it.  `id` is the transaction that wrote this state.
    """

    __slots__ = ("__weakref__",)

    @property
    def id(self) -> int:
        """The id of the transaction that wrote this state."""
        return self._snapshot.meta.transaction

    @property
    def closed(self) -> bool:
        """True once the transaction has ended."""
        return self.space is None

    def tree(self, name: str, *, create: bool = False) -> Tree:
        """The tree called `name`; `KeyNotFoundError` if there is none. O(log trees)."""
        space = self.open_space()
        if create:
            raise TypeError("a read transaction creates nothing; use write()")
        trees = self.named()
        tree = trees.get(name)
        if tree is None:
            descriptor = self._from_catalog(find_tree, name, self._snapshot.meta)
            if descriptor is None:
                raise KeyNotFoundError(name, "tree")
            tree = trees.setdefault(name, Tree(space, descriptor, self.pinning()))
        # It is among those that end with us now; if another thread has ended us meanwhile, perhaps too late.
        if self.space is not space:
            tree.space = self.space
            self.open_space()
        assert isinstance(tree, Tree)
        return tree

    def trees(self) -> list[str]:
        """The names of the named trees, in the order of their UTF-8. O(trees)."""
        return self._from_catalog(names_in)

    def get_view(self, key: object) -> memoryview | None:
        """The value of `key` as a read-only memoryview; see `Tree.get_view`."""
        self.pinning()
        return super().get_view(key)

    def _from_catalog(self, look: Callable[Concatenate[Reader, _P], _T], *args: _P.args, **options: _P.kwargs) -> _T:
        """What `look` finds in the catalog; `ClosedError` if another thread has ended the transaction meanwhile."""
        space = self.open_space()
        names = self._names  # made when it is first asked for: most reads never do
        if names is None:
            names = self._names = Reader(space, self._snapshot.meta.catalog)
        try:
            return look(names, *args, **options)
        finally:
            if self.space is not space:
                names.space = self.space
                self.open_space()

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"{len(self)} entries in the main tree"
        return f"<cowdb.Transaction {self._snapshot.meta.transaction}, {state}>"

    def __reduce_ex__(self, protocol: object) -> Any:
        raise TypeError("a transaction cannot be pickled; pickle the Database and begin another one there")


class WriteTransaction(Writing, WriteTree):
    """The next state, while it is being made: the main tree as a `MutableMapping`, and the named trees.

    Use it in one thread at a time.  `id` is the transaction id that it will have.
    """

    __slots__ = ("__weakref__",)

    @property
    def id(self) -> int:
        """The transaction id that this state will have."""
        return self.changes.birth

    @property
    def closed(self) -> bool:
        """True once the transaction was committed or aborted."""
        return self._owner is None

    @property
    def committed(self) -> bool:
        """True once its changes are the state of the database, also if an exception came out of the commit then."""
        return self._draft.committed

    @property
    def committing(self) -> bool:
        """True once a commit has let the writer lock go; it may still be on its way to the disk."""
        return self._draft.handed_on

    def cut_off(self) -> None:
        """Abort it because the database is closed; the end of its block will say so."""
        self._draft.dropped = True
        self.abort()

    # ------------------------------------------------------------ named trees

    def tree(self, name: str, *, create: bool = False) -> WriteTree:
        """The tree called `name`; made if there is none and `create` is true, else `KeyNotFoundError`. O(log trees)."""
        self.open_space()
        self._refuse_if_busy()
        draft = self._draft
        key = name_key(name, self.key_limit)
        writer = draft.named.get(name)
        if writer is None:
            descriptor = find_tree(draft.catalog, name, draft.meta)
            if descriptor is None:
                if not create:
                    raise KeyNotFoundError(name, "tree")
                descriptor = fmt.EMPTY_TREE
                draft.catalog.put(key, descriptor.pack())
            pin = self.pinning()
            self.open_space()  # it may have ended meanwhile, out of a signal's handler
            writer = draft.named[name] = WriteTree(draft.space, descriptor, draft.changes)
            writer._pin = pin  # noqa: SLF001 - they are one
        assert isinstance(writer, WriteTree)
        return writer

    def trees(self) -> list[str]:
        """The names of the named trees, in the order of their UTF-8. O(trees)."""
        self.open_space()
        return names_in(self._draft.catalog)

    def drop(self, name: str) -> None:
        """Remove the tree called `name` with all its entries; `KeyNotFoundError` if there is none. O(its pages)."""
        tree = self.tree(name)
        tree.clear()
        self._draft.catalog.delete(name_key(name, self.key_limit))
        del self._draft.named[name]
        tree.close()

    def rename(self, old: str, new: str) -> None:
        """Give the tree called `old` the name `new`, which must be free (`ValueError`). O(log trees)."""
        draft = self._draft
        tree = self.tree(old)
        key = name_key(new, self.key_limit)
        if old == new:
            return
        if key in draft.catalog:
            raise ValueError(f"there is a tree called {new!r} already; drop it first")
        old_key = name_key(old, self.key_limit)
        raw = draft.catalog.get(old_key)
        assert raw is not None
        draft.catalog.put(key, raw)
        draft.catalog.delete(old_key)
        draft.named[new] = draft.named.pop(old)
        assert draft.named[new] is tree

    def _refuse_if_busy(self) -> None:
        """Out of a signal's handler: a change of the catalog would write early what is half changed."""
        if self.changes.busy:
            raise Error(BEING_WRITTEN if self.being_written else BUSY)

    # ------------------------------------------------------------ ending

    close = Writing.abort

    def abandon(self) -> None:
        """In a forked child: the transaction is the parent's, so every use of the file raises."""
        for writer in self._draft.writers():
            writer.space = FORKED
            writer.page = None  # nor may what is dirty be looked at
        self._draft.space = FORKED  # for trees that are asked for later
        # A page that is dirty lies in memory, where a change would look at no file: so let each ask first.
        self._draft.changes.budget = -1
        self._draft.changes.spill = refuse

    def pinning(self) -> Callable[[], Any] | None:
        """What gives a mapping that keeps the state it was begun on alive; None if there is none to keep."""
        owner = self._owner
        if self._pin is None and owner is not None:
            self._pin = owner.pin()
        return WriteTree.pinning(self)

    def __repr__(self) -> str:
        return f"<cowdb.WriteTransaction {self.changes.birth}, {'closed' if self.closed else 'open'}>"

    def __reduce_ex__(self, protocol: object) -> Any:
        raise TypeError("a transaction cannot be pickled; pickle the Database and begin another one there")
