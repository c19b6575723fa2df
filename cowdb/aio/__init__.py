"""The same database for asyncio: what may touch the file is awaited, and nothing blocks the event loop.

    import cowdb.aio

    async with cowdb.aio.open("app.cowdb") as db:       # or: db = await cowdb.aio.open("app.cowdb")
        async with db.write() as txn:
            await txn.put(b"k", b"v")
        async with db.read() as snap:
            async for key, value in snap.items(prefix=b"a"): ...

Nothing of the engine is asynchronous, nor need it be.  Threads do the work; the modules here say which, and what a
cancellation does to it:

    database    the handle; opening and closing
    trees       transactions and their trees
    views       iteration
    waiting     how a task waits for a thread, and for its turn to write
"""

from __future__ import annotations

from cowdb.aio.database import Database, OpenOptions, open, open_on  # noqa: A004 - used as cowdb.aio.open
from cowdb.aio.trees import Transaction, Tree, WriteTransaction, WriteTree
from cowdb.aio.views import RangeOptions, View
from cowdb.aio.waiting import Block

__all__ = [
    "Block",
    "Database",
    "OpenOptions",
    "RangeOptions",
    "Transaction",
    "Tree",
    "View",
    "WriteTransaction",
    "WriteTree",
    "open",
    "open_on",
]
