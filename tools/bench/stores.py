"""All stores, in the order of the tables."""

from __future__ import annotations

from store import Store
from store_logs import Plyvel, Rocksdict
from store_trees import Cowdb, Lmdb, Sqlite

KINDS: dict[str, type[Store]] = {
    "cowdb": Cowdb,
    "plain": Cowdb,
    "lmdb": Lmdb,
    "sqlite3": Sqlite,
    "plyvel": Plyvel,
    "rocksdict": Rocksdict,
}
"""The columns of the table. The first two are cowdb with the compiled kernel and without."""
