"""Fake disks, for the tests of cowdb and of programs that use it.

    MemoryDisk      a disk in memory, as good as a real one while the power is on
    CrashDisk       it records every store, and gives each state that a power cut may leave
    FaultyDisk      any disk, with errors and kills on command

They take the place of the real disk behind the protocols of `cowdb.storage`, so
nothing is patched: `open_on` opens a database on one.  What they promise and what
they do not is written in `docs/crash-model.md`.

    trace --+
            +--> states --> crash        faults
    memory -+----------------+------------+
"""

from __future__ import annotations

from cowdb.database import open_on
from cowdb.testing.crash import CrashDisk, CrashStorage, Image, Origin
from cowdb.testing.faults import CALLS, Fault, FaultyDisk, FaultyStorage, SimulatedKill
from cowdb.testing.memory import POISON, LiveMapping, MemoryDisk, MemoryFile, MemoryStorage
from cowdb.testing.states import HOSTILE, STRATEGIES, Cell, Moment
from cowdb.testing.trace import (
    Create,
    FlushBegin,
    FlushDirectory,
    FlushEnd,
    FlushFailed,
    Link,
    Operation,
    Remove,
    Resize,
    Write,
)

__all__ = [
    "CALLS",
    "HOSTILE",
    "POISON",
    "STRATEGIES",
    "Cell",
    "CrashDisk",
    "CrashStorage",
    "Create",
    "Fault",
    "FaultyDisk",
    "FaultyStorage",
    "FlushBegin",
    "FlushDirectory",
    "FlushEnd",
    "FlushFailed",
    "Image",
    "Link",
    "LiveMapping",
    "MemoryDisk",
    "MemoryFile",
    "MemoryStorage",
    "Moment",
    "Operation",
    "Origin",
    "Remove",
    "Resize",
    "SimulatedKill",
    "Write",
    "open_on",
]
