"""A play: a scenario on a disk that may fail, beside a model of what is promised after each step.

The steps say what to do (`faults_scenarios`); the `Play` does it, sorts every
error that comes out, and keeps two lists of states that somebody may find who
opens the file next:

    standing   the power stayed on: what was published, and what is unknown
    lasting    after a power cut: from the newest acknowledged state on

                 model   standing     lasting
    full commit    B     B            B
    lazy commit    C     C            B C
    a commit that
    fails, unknown C     B C D        B C D
    "not committed" C    C            B C         as if nobody had tried

Every error has to be one that a caller can understand: `FullError` that says
"not committed", `PoisonedError`, or at a call that changes nothing (opening,
looking, beginning) the disk's own `OSError` with its own number.  Anything
else, and any state that is not on the list, is a `PromiseError`.
"""

from __future__ import annotations

import contextlib
import errno
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import cowdb
from fuzz.faults_group import Group
from fuzz.faults_oracle import (
    EMPTY,
    PATH,
    Allowed,
    PromiseError,
    State,
    cloned,
    content,
    content_of,
    opened,
    summary,
    vanish,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from cowdb.storage import Disk
    from cowdb.transaction import Transaction, WriteTransaction

__all__ = ["Play", "Scenario", "Step"]

ROOM: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


@dataclass(frozen=True)
class Step:
    """One thing to do; `name` is for stories and replays."""

    name: str
    act: Callable[[Play], None]


@dataclass(frozen=True)
class Scenario:
    """A named list of steps, and the options that the database is opened with."""

    name: str
    steps: tuple[Step, ...]
    options: dict[str, Any] = field(default_factory=dict)


class Play:
    """A scenario on `disk`.

    `now` gives the length of the disk's trace, if it has one.  `real`: the file
    is one of the operating system, so that the end of a process cannot be
    played in this one.
    """

    def __init__(
        self,
        disk: Disk,
        options: dict[str, Any],
        *,
        path: str = PATH,
        now: Callable[[], int] = lambda: 0,
        real: bool = False,
    ) -> None:
        self.disk = disk
        self.options = options
        self.path = path
        self.now = now
        self.real = real
        self.db: cowdb.Database | None = None
        self.model: State = EMPTY
        self.standing: Allowed = [None, EMPTY]
        self.lasting: Allowed = [None, EMPTY]
        self.history: list[tuple[int, Allowed]] = [(0, self.lasting)]
        self.poisoned = False
        self.settled = False  # this handle has made certain what it found
        self.errors: list[BaseException] = []
        self.readers: list[tuple[Transaction, State]] = []
        self.views: list[tuple[memoryview, bytes]] = []

    # ------------------------------------------------------------ what is promised

    def allow(self, standing: Iterable[State | None], lasting: Iterable[State | None]) -> None:
        """From now on these may be found, with the power on and after a cut."""
        self.standing = list(standing)
        self.lasting = list(lasting)
        self.history.append((self.now(), self.lasting))

    def lasting_at(self, index: int) -> Allowed:
        """What may be found after a power cut behind `index` operations of the trace."""
        return next(lasting for at, lasting in reversed(self.history) if at <= index)

    def promise(self) -> None:
        """The model is on disk."""
        self.allow([self.model], [self.model])

    # ------------------------------------------------------------ playing

    def run(self, steps: Iterable[Step]) -> None:
        """Open, and take the steps; what fails is noted, and the next step is taken. Raises `PromiseError`."""
        self.open()
        for step in steps:
            self.take(step)

    def take(self, step: Step) -> None:
        """One step; a database that is not open is opened first, as a user would."""
        if self.db is None:
            self.open()
        if self.db is not None:
            step.act(self)

    def open(self) -> None:
        """Open the file; what is found has to be one of the standing states."""
        try:
            self.db = opened(self.disk, self.path, **self.options)
        except OSError as error:
            self.errors.append(error)
            if isinstance(error, (cowdb.CorruptionError, cowdb.NotADatabaseError)):
                raise PromiseError(f"opening says {error!r}, and the file was never damaged") from error
            return
        self.poisoned = self.settled = False
        try:
            found = content(self.db)
        except OSError as error:
            self.unharmed(error, "reading")
            self.drop_handle()
            return
        if found not in self.standing:
            raise PromiseError(
                f"opening finds {summary(found)}, which is none of {[summary(one) for one in self.standing]}"
            )
        # Whose first opening has failed half-way may have a file without a lasting name, until he commits.
        made = None in self.standing and not self.errors
        self.model = found
        self.allow([found], [found] if made else [one for one in self.lasting if not self.newer(one, found)])

    def newer(self, state: State | None, found: State) -> bool:
        """Whether `state` was tried after `found`, which is what everybody sees now: then it can never come back."""
        return found in self.lasting and self.lasting.index(state) > _last_index(self.lasting, found)

    def drop_handle(self) -> None:
        """Close a handle that is of no use."""
        db, self.db = self.db, None
        if db is not None:
            with contextlib.suppress(cowdb.Error, OSError):
                db.close()

    def unharmed(self, error: OSError, what: str) -> None:
        """Note an error of a call that changes nothing."""
        self.errors.append(error)
        if isinstance(error, cowdb.CorruptionError):
            raise PromiseError(f"{what} says {error!r}, and the file was never damaged") from error

    # ------------------------------------------------------------ one transaction

    def change(self, work: Callable[[WriteTransaction, State], None], durability: str | None = None) -> None:
        """One transaction: `work` changes the transaction and the model alike."""
        db = self.db
        assert db is not None
        after = cloned(self.model)
        before = (self.standing, self.lasting)
        began = tried = False
        lazy = (durability or self.options.get("durability", "full")) == "lazy"
        try:
            with db.write(durability=durability) as transaction:
                began = True
                if self.poisoned:
                    raise PromiseError("a poisoned writer began a transaction (promise 3)")
                work(transaction, after)
                tried = True
                self.allow([*self.standing, after], [*self.lasting, after])
        except cowdb.FullError as error:
            self._not_committed(error, before)
            if error.errno not in ROOM or self.poisoned:
                raise PromiseError(f"{error!r} from a writer that is poisoned, or without a lack of room") from error
        except cowdb.PoisonedError as error:
            if self.poisoned or not tried or "not committed" in str(error):
                self._not_committed(error, before)
            else:
                self.errors.append(error)
                # The meta page may be torn that was in its place: that of the lazy commits so far.
                self.allow(self.lasting, self.lasting)
            self.poisoned = True
        except (cowdb.ClosedError, OSError) as error:
            if began or isinstance(error, cowdb.CorruptionError):
                raise PromiseError(f"a transaction ended with {error!r}, which says nothing of its fate") from error
            self.errors.append(error)
        else:
            self.model = after
            self.settled = True
            if lazy:
                self.allow([after], self.lasting)
            else:
                self.promise()

    def _not_committed(self, error: OSError, before: tuple[Allowed, Allowed]) -> None:
        self.errors.append(error)
        self.allow(*before)
        if isinstance(error, cowdb.FullError) and not ("not committed" in str(error) or "max_size" in str(error)):
            raise PromiseError(f"it does not say what became of the transaction: {error}") from error

    def abort(self, work: Callable[[WriteTransaction, State], None]) -> None:
        """A transaction that is not committed."""
        db = self.db
        assert db is not None
        try:
            transaction = db.write()
        except OSError as error:
            self.failed(error)
            return
        try:
            work(transaction, cloned(self.model))
        except OSError as error:  # an early write
            self.failed(error)
        finally:
            transaction.abort()

    def failed(self, error: OSError) -> None:
        """Note an error of a call that may poison."""
        self.unharmed(error, "a change")
        if isinstance(error, cowdb.PoisonedError):
            self.poisoned = True

    def group(self, count: int, size: int) -> None:
        """`count` threads commit, so that all but the first are sealed while the first one flushes."""
        db = self.db
        assert db is not None
        if self.poisoned:
            return
        group = Group(self, count, size)
        hook = getattr(self.disk, "before", None)
        if hasattr(self.disk, "before"):
            self.disk.before = group.beside(hook)
        try:
            group.run()
        finally:
            if hasattr(self.disk, "before"):
                self.disk.before = hook

    # ------------------------------------------------------------ other steps

    def sync(self) -> None:
        """Make all that was committed durable."""
        assert self.db is not None
        try:
            self.db.sync()
        except OSError as error:
            self.failed(error)
        else:
            if self.poisoned:
                raise PromiseError("a poisoned writer said that it has synced (promise 3)")
            self.settled = True
            self.promise()

    def look(self) -> None:
        """Readers see the newest acknowledged state, whatever has failed."""
        assert self.db is not None
        try:
            found = content(self.db)
        except OSError as error:
            self.unharmed(error, "reading")
            return
        if found != self.model:
            raise PromiseError(f"a reader sees {summary(found)} instead of {summary(self.model)}")

    def check(self) -> None:
        """The checker finds nothing (I1 to I10)."""
        assert self.db is not None
        try:
            findings = self.db.check()
        except OSError as error:
            self.unharmed(error, "the checker")
            return
        # A meta page that was torn by a failed write is no longer there, and the checker says so.
        if findings and not self.poisoned:
            raise PromiseError(f"the checker says {findings[0]}")

    def close(self) -> None:
        """Close cleanly; what comes next opens it anew."""
        self.end_readers()
        db, self.db = self.db, None
        if db is None:
            return
        poisoned, self.poisoned = self.poisoned, False
        try:
            db.close()
        except OSError as error:
            self.unharmed(error, "closing")
            if "nothing is lost" in str(error):
                self.allow([self.model], [self.model])
            return
        if not poisoned and self.settled:  # who has written nothing makes nothing certain
            self.promise()

    def kill(self) -> None:
        """The process dies and the next one opens the file; the page cache survives."""
        if self.real:
            self.close()
            return
        self.readers.clear()
        self.views.clear()
        db, self.db = self.db, None
        self.poisoned = False
        if db is not None:
            vanish(db)

    def begin_reader(self) -> None:
        """A reader that stays."""
        assert self.db is not None
        try:
            self.readers.append((self.db.read(), self.model))
        except OSError as error:
            self.unharmed(error, "beginning to read")

    def take_view(self, key: bytes) -> None:
        """A view of a value, which pins its snapshot."""
        assert self.db is not None
        try:
            with self.db.read() as snapshot:
                view = snapshot.get_view(key)
                if view is not None:
                    self.views.append((view, self.model[None][key]))
        except KeyError as error:
            if key in self.model[None]:
                raise PromiseError(f"{key!r} is gone") from error
        except OSError as error:
            self.unharmed(error, "taking a view")

    def end_readers(self) -> None:
        """Every snapshot is still what it was (promise 6)."""
        for snapshot, state in self.readers:
            found = content_of(snapshot)
            snapshot.close()
            if found != state:
                raise PromiseError(f"a snapshot changed from {summary(state)} to {summary(found)} (I1)")
        self.readers.clear()
        for view, value in self.views:
            if bytes(view) != value:
                raise PromiseError("a view of a value changed under its reader (I1)")
        self.views.clear()

    # ------------------------------------------------------------ the end

    def usable(self) -> None:
        """All faults are gone: what still works, and after opening again everything does. Raises `PromiseError`."""
        if self.db is not None:
            self.look()
            poisoned, errors = self.poisoned, len(self.errors)
            self.change(_afterwards)
            full = "max_size" in self.options and isinstance([None, *self.errors][-1], cowdb.FullError)
            if poisoned != self.poisoned or (len(self.errors) > errors and not poisoned and not full):
                raise PromiseError(
                    f"there is nothing wrong with the disk any more, and a commit says {self.errors[-1]!r}"
                )
            self.look()
            self.check()
        if len(self.errors) % 2:  # both ends, and never by chance
            self.kill()
        else:
            errors = len(self.errors)
            self.close()
            if len(self.errors) > errors:
                raise PromiseError(
                    f"there is nothing wrong with the disk any more, and closing says {self.errors[-1]!r}"
                )


def _afterwards(transaction: WriteTransaction, model: State) -> None:
    transaction[b"afterwards"] = model[None][b"afterwards"] = b"!" * 1500


def _last_index(states: Allowed, state: State) -> int:
    return max(index for index, one in enumerate(states) if one == state)
