"""Group commit: transactions that were sealed one after the other become durable by one flush.

Sealed, a transaction lets the writer lock go before it is on the disk, and the
next writer builds on it.  Whoever finds no flush in flight leads: he takes all
that wait, and flushes for them, the newest of whom holds what the others wrote.
The rest sleep until he is done, and then one of those who were sealed meanwhile
is woken to lead.

    seal 41 --> pending --+
    seal 42 --> pending --+--> in flight, one leads, two wait --> durable, published
    seal 43 --------- pending ---------------------------------> in flight ...

A leader can be interrupted at any line, by Ctrl-C or for want of memory.  So
nothing is concluded from what he was about to do, only from what is so: the
state that is published, whether the writer is poisoned, and whether the leader
is still at it, further up the stack.  Who comes by next looks, and goes on with it.
"""

from __future__ import annotations

import sys
import threading
from collections import deque
from typing import TYPE_CHECKING, Final, Protocol

from cowdb.locks import me, reachable, refuse_inside

if TYPE_CHECKING:
    from types import FrameType

    from cowdb.draft import Member
    from cowdb.poison import Poison
    from cowdb.readers import Gate

__all__ = ["Group"]

_LOOK_AGAIN: Final = 0.05
"""Seconds that a thread sleeps at most before it looks by itself whether its flush is done, or nobody leads."""


class Publish(Protocol):
    """Steps 6 to 8 of a commit, for the newest of a group whose members build on each other."""

    def __call__(self, group: list[Member], *, lazy: bool) -> None:
        """Make it durable and the state, or poison the writer and raise."""


class Group:
    """Who is sealed and not durable yet, of one process.

    `pending` waits for a flush, `in_flight` is being flushed.  Both are changed
    under a mutex; who must see no member on his way from one to the other holds it.
    """

    def __init__(self, gate: Gate, poison: Poison) -> None:
        self._gate = gate
        self._poison = poison
        self._mutex = threading.Lock()  # guards the two below, and who leads
        self.pending: list[Member] = []
        self.in_flight: list[Member] = []
        self._leader: object = None  # the thread that flushes, and will say how it went; else who comes next finds out
        self._frame: FrameType | None = None  # where it does: as long as it is on the thread's stack, it goes on
        self._asleep: deque[tuple[threading.Lock, Member]] = deque()  # threads that wait, each for a lock of its own
        self._called: Member | None = None  # who was woken to lead the next flush

    def add(self, member: Member) -> None:
        """One more is sealed. The caller holds the writer lock."""
        with self._mutex:
            self.pending.append(member)

    def newest(self) -> Member | None:
        """The newest that is sealed and not durable yet: what the next transaction builds on."""
        with self._mutex:
            tip = self.pending or self.in_flight
            return tip[-1] if tip else None

    def transactions(self) -> list[int]:
        """The transactions that are sealed and not durable yet. They count as live (P6)."""
        with self._mutex:
            return [member.meta.transaction for member in self.in_flight + self.pending]

    def idle(self) -> bool:
        """Whether nobody is on his way any more: what waits for a flush after a failure waits in vain."""
        if self.in_flight or (self.pending and self._poison.reason is None):
            return False
        return not self.in_flight  # once more: without the interpreter's lock, a leader may have taken them in between

    def wait_for(self, member: Member, publish: Publish) -> None:
        """Return when `member` is durable and published (I9); `publish` for all who wait, if nobody does."""
        while not member.done:
            self._lead_or_wait(member, publish)

    def drain(self, publish: Publish) -> None:
        """Have everything that is sealed durable and published, and no flush in flight."""
        while True:
            last = self.newest()
            if last is None:
                return
            self._lead_or_wait(last, publish)

    def clear_up(self) -> None:
        """If who led a flush was interrupted and left it, tell its members how it went.

        `Error` if this very thread leads it, or has the mutex, further up: a signal's handler is asking.
        """
        if self._mutex.locked() and not reachable(self._mutex, self):
            refuse_inside()
        if not self.in_flight:
            return
        if self._not_led():
            self.tidy()
        elif self._leader is me():
            refuse_inside()

    def _lead_or_wait(self, member: Member, publish: Publish) -> None:
        """Flush for all that is sealed now, or wait for the thread that is flushing (P5: one at a time)."""
        group: list[Member] = []
        sleeper = None
        try:
            with self._mutex:
                if self.in_flight and self._not_led():
                    self._end_flush()
                if member.done:
                    return
                if self.in_flight:
                    sleeper = threading.Lock(), member
                    sleeper[0].acquire()
                    self._asleep.append(sleeper)
                    if self._leader is None:
                        return  # the leader may have looked whom to wake before he could see us
                else:
                    self._refuse_member()
                    following: list[Member] = []
                    # Choosing the newest and counting all of them as live is one step (P6).
                    group = self.pending
                    self._leader = me()
                    self._frame = sys._getframe()  # noqa: SLF001 - its documented name
                    self.in_flight = group
                    self.pending = following
            if sleeper is not None:
                sleeper[0].acquire(timeout=_LOOK_AGAIN)
            else:
                publish(group, lazy=False)
        finally:
            if group:
                self._frame = None
                self.tidy()
            if sleeper is not None and sleeper in self._asleep:
                self._forget(sleeper)

    def _forget(self, sleeper: tuple[threading.Lock, Member]) -> None:
        """He woke by himself; else he could be called to lead when he sleeps elsewhere, or no more."""
        try:  # noqa: SIM105 - `suppress` needs memory
            self._asleep.remove(sleeper)
        except ValueError:
            pass  # he was woken in this very moment

    def tidy(self) -> None:
        """Let who waits for a flush go on that has come to its end, however it did."""
        try:
            if self._not_led():
                self._leader = None  # first: whatever becomes of the rest of this, somebody will do it
            with self._mutex:
                if self._leader is None:
                    self._end_flush()
        finally:
            self._wake()

    def _not_led(self) -> bool:
        """Whether what is in flight was left there by a thread that was interrupted: perhaps our own, since it asks."""
        leader = self._leader
        if leader is not me():
            return leader is None
        led = self._frame
        if led is None:
            return True
        frame: FrameType | None = sys._getframe()  # noqa: SLF001 - its documented name
        while frame is not None and frame is not led:
            frame = frame.f_back
        return frame is None

    def _end_flush(self) -> None:
        """Tell the members in flight how it went; the caller has the mutex, and nobody leads them any more.

        An interrupt can have come at any moment, so look at what is so.  This can
        be interrupted as well, and is done again then.
        """
        group = self.in_flight
        if not group:
            return
        waiting = [] if self.pending is group else self.pending
        published = self._gate.latest.meta.transaction >= group[-1].meta.transaction
        for member in group:
            member.done = published
        if self._poison.reason is not None:
            waiting = []  # what was built on a state that is not known has failed with it
        elif not published:
            waiting = group + waiting  # interrupted before it began
        self.pending = waiting  # first: who finds neither list filled lets the turn go (`Pager.unlock`)
        self.in_flight = []
        self._leader = self._called = self._frame = None
        self._wake()

    def _wake(self) -> None:
        """Wake who need not wait any more, and one who leads the next flush. It waits for nothing and needs no memory.

        The others of that flush would only look and sleep again.  Should who was
        called be interrupted before he leads, somebody wakes by himself.
        """
        asleep = self._asleep
        place = 0
        while place < len(asleep):
            try:
                sleeper = asleep[place]
                wake, member = sleeper
                if not member.done and self._poison.reason is None:
                    if self.in_flight or self._called is not None:
                        place += 1
                        continue
                    self._called = member
                if wake.locked():
                    wake.release()
                asleep.remove(sleeper)
            except (IndexError, ValueError, RuntimeError):
                continue  # another thread has just woken the same one

    def _refuse_member(self) -> None:
        if self._poison.reason is not None:
            self.pending = []  # who was sealed since the failure is not on his way any more, and keeps no turn
            self._poison.refuse_member()
