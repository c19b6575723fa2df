"""Who else has a file open: the snapshots in use, and what each holds back.

A free run waits for a snapshot in [birth, freed) (I2).  A snapshot *holds back*
the runs that wait for it; several may hold back the same.
"""

from __future__ import annotations

import os
import time
from bisect import bisect_left
from typing import TYPE_CHECKING, Any, Final

from cowdb.cli.opening import sharing
from cowdb.errors import CorruptionError

if TYPE_CHECKING:
    from cowdb.inspection import State
    from cowdb.lockfile import Pin

__all__ = ["durable_transaction", "held_by", "live_snapshots", "other_pins", "process_name"]

_RUNS_COUNTED: Final = 100_000
"""Free runs that are looked at to say what a snapshot holds back; more take too long for a glance."""


def other_pins(path: str) -> list[Pin]:
    """The snapshots that other live processes use now, oldest first. Our own is not among them."""
    with sharing(path) as (_, words):
        mine = os.getpid()
        pins = [pin for pin in words.others() if pin.owner != mine]
    return sorted(pins, key=lambda pin: (pin.transaction, pin.owner))


def durable_transaction(path: str) -> int | None:
    """The newest transaction that is known to be on disk, D, if those inside know it; else None."""
    with sharing(path) as (_, words):
        durable = words.durable
    return durable[0] if durable else None


def live_snapshots(path: str, state: State, *, count_held: bool = True) -> list[dict[str, Any]]:
    """The snapshots of other processes as plain dictionaries, oldest first.

    `held_pages` is the number of free pages of `state` that wait for the
    snapshot, None if the free list is damaged or too long.
    """
    pins = other_pins(path)
    held = held_by(state, sorted({pin.transaction for pin in pins})) if count_held and pins else {}
    now = time.time()
    return [
        {
            "pid": pin.owner,
            "process": process_name(pin.owner),
            "started": pin.started,
            "open_for": max(now - pin.started, 0.0),
            "transaction": pin.transaction,
            "behind": max(state.meta.transaction - pin.transaction, 0),
            "held_pages": held.get(pin.transaction) if held is not None else None,
        }
        for pin in pins
    ]


def held_by(state: State, transactions: list[int], limit: int = _RUNS_COUNTED) -> dict[int, int] | None:
    """For each of `transactions`, ascending: the free pages that wait for it. None if that cannot be known.

    O(free runs times snapshots).
    """
    held = dict.fromkeys(transactions, 0)
    try:
        for seen, run in enumerate(state.free_runs()):
            if seen >= limit:
                return None
            for transaction in transactions[
                bisect_left(transactions, run.birth) : bisect_left(transactions, run.freed)
            ]:
                held[transaction] += run.length
    except CorruptionError:
        return None
    return held


def process_name(pid: int) -> str | None:
    """The command line of a process, where the system tells it; None if not."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            raw = file.read(200)
    except OSError:
        return None
    return raw.replace(b"\0", b" ").strip().decode(errors="replace") or None
