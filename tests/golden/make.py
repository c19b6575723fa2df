"""Makes the golden files: databases of format version 1, as they were when the format was fixed.

    python tests/golden/make.py directory

Tests never call it to compare bytes: what counts is that every later cowdb reads the files that lie beside this
script.  Run it again only for a new format version, into new names.
"""

from __future__ import annotations

import json
import os
import random
import sys
from typing import Any

import cowdb
from cowdb.database import open_on
from cowdb.storage import FileDisk

PAGE_SIZES = (4096, 8192)


def fill(path: str, page_size: int) -> None:
    """A database with everything that the format has, from a dozen commits."""
    rng = random.Random(page_size)
    clock = iter(range(1_700_000_000_000_000_000, 1_800_000_000_000_000_000, 1_000_000_000))
    options: dict[str, Any] = {"clock": clock.__next__, "database_id": bytes(range(16))}
    with open_on(FileDisk(), path, page_size=page_size, **options) as db:
        with db.write() as txn:
            txn.update((b"key%05d" % number, b"value %d" % number) for number in range(300))
            txn[b""] = b"the empty key"
            txn[b"\0"] = b""
            txn[b"\0\0\0\0\0"] = b"zeros"
            txn[b"\xff" * 9] = b"\xff"
            txn[b"k" * db.max_key_size] = b"the longest key"
        with db.write() as txn:
            for length in (page_size // 4, page_size // 4 + 1, page_size - 32, page_size - 31):
                txn[b"length %d" % length] = rng.randbytes(length)
            users = txn.tree("users", create=True)
            users.update((b"%d" % number, rng.randbytes(20)) for number in range(40))
            txn.tree("empty", create=True)
            txn.tree("größe 木", create=True)[b"k"] = b"v"
            txn.tree("gone", create=True)[b"k"] = b"v"
        with db.write() as txn:
            txn.drop("gone")
            txn.delete_range(b"key00100", b"key00250")
            fill = b"x" * (page_size // 5)
            txn.update((b"far%02d" % (number // 2) + fill + b"%d" % (number % 2), b"") for number in range(12))
        if page_size == PAGE_SIZES[0]:
            free_in_pieces(db)
        for number in range(9):
            with db.write(durability="lazy" if number % 2 else "full") as txn:
                txn[b"commit"] = b"%d" % number
                txn.tree("users")[b"%d" % number] = rng.randbytes(number)


def free_in_pieces(db: cowdb.Database) -> None:
    """Free more runs than the meta page can carry, so that there is a free tree: of many births, while one reads."""
    names = [b"piece%03d" % number for number in range(130)]
    for name in names:
        with db.write(durability="lazy") as txn:
            txn[name] = name * 200
    with db.read() as reader:
        with db.write() as txn:
            for name in names[1:]:
                del txn[name]
        assert len(reader) > len(names)


def content(path: str) -> dict[str, dict[str, str]]:
    """Every tree of a database, in hexadecimal; the main tree has no name."""
    with open_on(FileDisk(), path, create=False) as db, db.read() as snapshot:
        trees = {"": snapshot, **{name: snapshot.tree(name) for name in snapshot.trees()}}
        return {name: {key.hex(): value.hex() for key, value in tree.items()} for name, tree in trees.items()}


def main(directory: str) -> None:
    """Write `v1-<page size>.cowdb` and `.json` for each page size."""
    for page_size in PAGE_SIZES:
        stem = os.path.join(directory, f"v1-{page_size}")
        fill(stem + ".cowdb", page_size)
        with open(stem + ".json", "w", encoding="utf-8") as file:
            json.dump(content(stem + ".cowdb"), file, ensure_ascii=False, indent=0)
            file.write("\n")


if __name__ == "__main__":
    main(sys.argv[1])
