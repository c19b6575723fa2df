"""Threads whose commits share flushes, while the disk may fail.

While the first one flushes, the others seal, one after the other, so that the
order of calls to the disk is the same in every run:

    thread 0   seal, meta, [ flush ............................. ]
    thread 1                     seal, wait                        } meta, [ flush ]
    thread 2                               seal, wait              }

Who is told "committed" is in every state that may be found.  Who is told that it
is not known may be there, with all who came before him.
"""

from __future__ import annotations

import itertools
import threading
import time
from typing import TYPE_CHECKING, Final

import cowdb
from fuzz.faults_oracle import PromiseError, State, cloned

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from cowdb.pager import Pager
    from fuzz.faults_play import Play

__all__ = ["Group"]

PATIENCE: Final = 20.0
"""Seconds until a thread of a group counts as hanging."""


class Group:
    """Threads whose commits share flushes: while the first flush is on, the others seal."""

    def __init__(self, play: Play, count: int, size: int) -> None:
        self.play = play
        self.size = size
        self.keys = [b"group %d" % number for number in range(count)]
        self.base = play.model
        self.before = (play.standing, play.lasting)
        self.outcomes: dict[int, BaseException | None] = {}
        self.lock = threading.Lock()
        self.threads: list[threading.Thread] = []
        self.holding = False

    def state(self, members: Iterable[int]) -> State:
        """What it was before, with what these threads have put in."""
        after = cloned(self.base)
        for number in members:
            after[None][self.keys[number]] = self.keys[number] * self.size
        return after

    def run(self) -> None:
        """The first one commits in this thread; when its flush begins, the others come."""
        self._allow()
        self._commit(0)
        if not self.threads and self.outcomes[0] is None:  # no flush that could be waited for: one after the other
            for number in range(1, len(self.keys)):
                self._commit(number)
        for thread in self.threads:
            thread.join(PATIENCE)
            if thread.is_alive():
                raise PromiseError("a thread hangs that commits in a group")
        self._judge()

    def beside(self, hook: Callable[[str, int], None] | None) -> Callable[[str, int], None]:
        """What the disk is to call before each call: `at`, after the one that it called so far."""

        def before(call: str, number: int) -> None:
            if hook is not None:
                hook(call, number)
            self.at(call, number)

        return before

    def at(self, call: str, _number: int) -> None:
        """The disk is about to do `call`: at the first flush, let the others seal, in order."""
        if call != "flush" or self.holding or 0 in self.outcomes or not self._pager().group.in_flight:
            return
        self.holding = True
        for number in range(1, len(self.keys)):
            thread = threading.Thread(target=self._commit, args=(number,), daemon=True)
            self.threads.append(thread)
            thread.start()
            self._until_sealed(number)

    def _pager(self) -> Pager:
        db = self.play.db
        assert db is not None
        assert db._core is not None
        return db._core.pager

    def _until_sealed(self, number: int) -> None:
        """Until it waits for a flush to come, or has failed."""
        pager = self._pager()
        end = time.monotonic() + PATIENCE
        while len(pager.group.pending) + len(self.outcomes) < number:
            if time.monotonic() > end:
                raise PromiseError("a thread does not get to seal while another one flushes (group commit)")
            time.sleep(0.0002)

    def _commit(self, number: int) -> None:
        key = self.keys[number]
        db = self.play.db
        assert db is not None
        error: BaseException | None = None
        try:
            with db.write(durability="full") as transaction:
                transaction[key] = key * self.size
        except BaseException as caught:  # noqa: BLE001 - judged below
            error = caught
        with self.lock:
            self.outcomes[number] = error
            self._allow()

    def _allow(self) -> None:
        """Who has been told "committed" is in every state; of the others any may be."""
        done = [number for number, error in self.outcomes.items() if error is None]
        rest = [number for number in range(len(self.keys)) if number not in done]
        mixtures = [
            self.state([*done, *some]) for size in range(len(rest) + 1) for some in itertools.combinations(rest, size)
        ]
        standing, lasting = self.before
        self.play.allow(mixtures if done else [*standing, *mixtures], mixtures if done else [*lasting, *mixtures])

    def _judge(self) -> None:
        """Who was told "not committed" is in no state; who is unknown may be there, with all who came before him."""
        play = self.play
        errors = [error for _, error in sorted(self.outcomes.items()) if error is not None]
        play.errors += errors
        for error in errors:
            if not isinstance(error, OSError) or isinstance(error, cowdb.CorruptionError):
                raise PromiseError(f"a commit of a group ended with {error!r}") from error
        sure = [number for number, error in sorted(self.outcomes.items()) if error is None]
        unknown = [number for number, error in sorted(self.outcomes.items()) if _unknown(error)]
        allowed = [self.state([*sure, *unknown[:end]]) for end in range(len(unknown) + 1)]
        standing, lasting = self.before
        play.model = allowed[0]
        if sure:
            play.settled = True
            play.allow(allowed, allowed)
        else:
            play.allow([*(lasting if unknown else standing), *allowed[1:]], [*lasting, *allowed[1:]])
        play.poisoned = play.poisoned or any(isinstance(error, cowdb.PoisonedError) for error in errors)


def _unknown(error: BaseException | None) -> bool:
    return isinstance(error, cowdb.PoisonedError) and "not committed" not in str(error)
