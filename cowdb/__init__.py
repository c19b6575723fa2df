"""cowdb: a sorted dictionary that lives in one file.

ACID transactions, snapshots that never change, crash-proof, no server, nothing
to set up.

    import cowdb

    with cowdb.open("app.cowdb") as db:
        with db.write() as txn:
            txn[b"k"] = b"v"
        with db.read() as snap:
            snap[b"k"]
"""

from __future__ import annotations

from cowdb.check import Finding
from cowdb.cursor import Cursor
from cowdb.database import Database, open  # noqa: A004 - used as cowdb.open
from cowdb.errors import (
    ClosedError,
    CorruptionError,
    Error,
    ForkedError,
    FullError,
    KeyNotFoundError,
    KeySizeError,
    LockTimeoutError,
    NotADatabaseError,
    PoisonedError,
    ReadOnlyError,
    VersionError,
)
from cowdb.stats import Stats
from cowdb.transaction import Transaction, WriteTransaction
from cowdb.views import Tree, WriteTree

__version__ = "0.1.0"

__all__ = [
    "ClosedError",
    "CorruptionError",
    "Cursor",
    "Database",
    "Error",
    "Finding",
    "ForkedError",
    "FullError",
    "KeyNotFoundError",
    "KeySizeError",
    "LockTimeoutError",
    "NotADatabaseError",
    "PoisonedError",
    "ReadOnlyError",
    "Stats",
    "Transaction",
    "Tree",
    "VersionError",
    "WriteTransaction",
    "WriteTree",
    "open",
]
