"""Entries into a database, one transaction a batch, so that an interrupted move can go on.

The place in the input up to which entries are stored is stored itself, in the
same transaction: a *mark*, in a tree of its own.  Whatever happens, also
``kill -9`` and a power cut, the mark and the entries agree.

    transaction n:     100,000 entries of the input  +  mark: "done up to here"
    transaction n + 1: 100,000 more                 +  mark: "done up to there"
    the last one:      the rest                     -  mark

So the same command, given again, goes on with the first entry that is not
there: nothing is lost and nothing is done twice.  The last transaction takes
the mark away, and the tree with it.
"""

from __future__ import annotations

import hashlib
import json
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Final

from cowdb.cli.lines import BadInputError
from cowdb.cli.output import USAGE, CommandError
from cowdb.errors import KeyNotFoundError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from cowdb.cli.formats import Entry
    from cowdb.database import Database
    from cowdb.transaction import WriteTransaction
    from cowdb.views import WriteTree

__all__ = ["BATCH", "MARKS", "Batches", "named_tree"]

MARKS: Final = "cowdb.unfinished"
"""The tree of the marks of moves that are not finished."""

BATCH: Final = 100_000
"""Entries a transaction, if nothing else is said."""

_MOST_BYTES: Final = 32 << 20
"""Bytes of keys and values that are gathered before they are put into the trees."""

_KEY: Final = itemgetter(0)


def check_name(name: str, limit: int) -> None:
    """ValueError if no tree can be called so."""
    if name == MARKS:
        raise ValueError(f"the tree {MARKS!r} is for the marks of unfinished moves")
    size = len(name.encode(errors="surrogatepass"))
    if not 1 <= size <= limit:
        raise ValueError(f"the name of the tree takes {size} bytes of UTF-8; it may take 1 to {limit}")


def named_tree(name: str | None, db: Database) -> None:
    """`CommandError` if no tree can be called `name`."""
    if name == "":
        raise CommandError("--tree: the name of a tree is not empty; leave out --tree for the main tree", USAGE)
    try:
        if name is not None:
            check_name(name, db.max_key_size)
    except ValueError as error:
        raise CommandError(f"--tree: {error}", USAGE) from None


class Batches:
    """Puts entries into `db`. `source` names the input and the way in which it is read.

    `tree` takes all entries, whatever tree they name; `keep` leaves entries
    that are there as they are; `size` is the number of entries a transaction, 0
    for one transaction of everything.
    """

    def __init__(
        self, db: Database, source: dict[str, Any], *, tree: str | None = None, keep: bool = False, size: int = BATCH
    ) -> None:
        self._db = db
        self._source = source
        self._tree = tree
        self._keep = keep
        self._size = size
        self._key = hashlib.blake2b(f"{source['path']}\0{tree or ''}".encode(errors="surrogateescape")).digest()[:16]
        self._mark: bytes | None = None
        self._txn: WriteTransaction | None = None
        self._groups: dict[str | None, list[tuple[bytes, bytes]]] = {}
        self._unbound = 0  # entries of the transaction that is being made
        self.stored = 0
        """Entries in all, those of earlier runs included."""
        self.transactions = 0

    # ------------------------------------------------------------ the mark

    def earlier(self, *, restart: bool = False) -> Any:
        """Where an earlier, interrupted run stopped: what was given to `finish` or by `place`. None: there is none.

        `restart` forgets it.  Raises `CommandError` if that run read the input in another way.
        """
        with self._db.read() as snapshot:
            try:
                self._mark = snapshot.tree(MARKS).get(self._key)
            except KeyNotFoundError:
                self._mark = None
        if self._mark is None or restart:
            return None
        try:
            found = json.loads(self._mark)
            source, place, stored = found["source"], found["place"], int(found["stored"])
        except (ValueError, KeyError, TypeError):
            raise CommandError(
                f"the mark of an earlier run is damaged (tree {MARKS!r}); begin anew with --restart"
            ) from None
        if source != json.loads(json.dumps(self._source)):
            names = [name for name in sorted({*source, *self._source}) if source.get(name) != self._source.get(name)]
            raise CommandError(
                f"an earlier run with this input was interrupted, and its {' and '.join(names)} differed: "
                "give the same options again to go on, or --restart to begin anew"
            )
        self.stored = stored
        return place

    # ------------------------------------------------------------ entries

    def take(
        self,
        entries: Iterable[Entry],
        place: Callable[[], Any],
        *,
        number: Callable[[], int],
        bad: Callable[[BadInputError], None],
        tick: Callable[[], None],
    ) -> None:
        """Store `entries`, all but the last batch, which `finish` stores.

        `place` says, as JSON, how far the input is read; `number` the line (or
        row) of it; `bad` is told of entries that no database takes; `tick` is
        called now and then.
        """
        limit = self._db.max_key_size
        size = min(self._size or BATCH, BATCH)
        groups = self._groups
        only = self._tree
        current: str | None = None
        pairs = groups.setdefault(only, [])
        count = volume = 0
        before = number()
        for tree, key, value in entries:
            if only is None and tree != current:
                try:
                    if tree is not None:
                        check_name(tree, limit)
                except ValueError as error:
                    bad(BadInputError(number(), str(error), before + 1))
                    before = number()
                    continue
                current = tree
                pairs = groups.setdefault(tree, [])
            if key is None:
                before = number()
                continue
            if len(key) > limit:
                bad(BadInputError(number(), f"its key has {len(key)} bytes; this file takes {limit}", before + 1))
                before = number()
                continue
            pairs.append((key, value))
            count += 1
            volume += len(key) + len(value)
            if count >= size or volume > _MOST_BYTES:
                self._put()
                if self._size and (self._unbound >= self._size or volume > _MOST_BYTES):
                    self._commit(place())
                current, pairs = only, groups.setdefault(only, [])
                count = volume = 0
                tick()
            elif not count % 4096:
                tick()
            before = number()
        # The rest is stored by `finish`, with or without a mark.

    def _put(self) -> None:
        txn = self._txn
        if txn is None:
            txn = self._txn = self._db.write()
        for name, pairs in self._groups.items():
            if name is None and not pairs:
                continue
            tree = txn if name is None else txn.tree(name, create=True)
            # Neighbours in key order are neighbours on pages. Of equal keys the order stays, so the last one counts.
            pairs.sort(key=_KEY)
            if self._keep:
                for key, value in pairs:
                    tree.put(key, value, overwrite=False)
            else:
                tree.update(pairs)
            self._unbound += len(pairs)
        self._groups.clear()

    def _commit(self, place: Any) -> None:
        txn = self._txn
        if txn is None:
            txn = self._txn = self._db.write()
        marks: WriteTree | None
        try:
            marks = txn.tree(MARKS, create=place is not None)
            found = marks.get(self._key)
        except KeyNotFoundError:
            marks, found = None, None
        if found != self._mark:
            raise CommandError("another process is storing the same input in this database; this one stops")
        stored = self.stored + self._unbound
        self._mark = None
        if marks is not None:
            if place is not None:
                self._mark = json.dumps({"source": self._source, "place": place, "stored": stored}).encode()
                marks[self._key] = self._mark
            elif found is not None:
                del marks[self._key]
            if not marks:
                txn.drop(MARKS)
        self._txn = None
        txn.commit()
        self.stored = stored
        self._unbound = 0
        self.transactions += 1

    def finish(self, place: Any = None) -> None:
        """Store the rest; `place` leaves a mark there, for a run that goes on later. None: all is done."""
        if self._size == 0 and place is not None:
            self.abandon()
            return
        begun = self.stored or self._unbound or self._mark is not None or any(self._groups.values())
        if place is not None and not begun:
            self.abandon()  # there is nothing to go on from
            return
        self._put()
        self._commit(place)

    def abandon(self) -> None:
        """Forget what is not committed."""
        txn, self._txn = self._txn, None
        self._groups.clear()
        if txn is not None:
            txn.abort()
        self._unbound = 0
