"""The stores that are logs, sorted in the background: LevelDB and RocksDB.

A batch is gathered in memory and written as one record of the log.
"""

# ruff: noqa: D102 - `Store` says what each method does

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator, Sequence
from itertools import islice

from records import Operation, Pair
from store import Batch, Store

# ---------------------------------------------------------------- LevelDB


class Plyvel(Store):
    """LevelDB through plyvel. It has no transactions but batches, and a get of its own snapshot is just a get."""

    MODULE = "plyvel"
    SETTINGS = (
        "its default caches (4 MB to write, 8 MB of blocks), Snappy, no Bloom filter; durable: `sync=True`; "
        "lazy: as it comes, a power cut loses the end of the log"
    )

    @classmethod
    def version(cls) -> str:
        return f"{super().version()}, LevelDB {importlib.import_module('plyvel').__leveldb_version__}"

    def open(self, *, lazy: bool = False) -> None:
        self.sync = not lazy
        self.db = importlib.import_module("plyvel").DB(str(self.path), create_if_missing=True)

    def close(self) -> None:
        self.db.close()

    def settle(self) -> None:
        self.db.compact_range()

    def get(self, keys: Sequence[bytes]) -> int:
        found = 0
        get = self.db.get
        for key in keys:
            if get(key) is not None:
                found += 1
        return found

    begin_get = get

    def scan(self, *, reverse: bool) -> int:
        found = 0
        with self.db.iterator(reverse=reverse) as iterator:
            for _key, _value in iterator:
                found += 1
        return found

    def ranges(self, starts: Sequence[bytes], length: int) -> int:
        found = 0
        for start in starts:
            with self.db.iterator(start=start) as iterator:
                for _key, _value in islice(iterator, length):
                    found += 1
        return found

    def prefixes(self, prefixes: Sequence[bytes]) -> int:
        found = 0
        for prefix in prefixes:
            with self.db.iterator(prefix=prefix) as iterator:
                for _key, _value in iterator:
                    found += 1
        return found

    def snapshot(self) -> contextlib.AbstractContextManager[object]:
        return contextlib.closing(self.db.snapshot())

    @contextlib.contextmanager
    def batch(self) -> Iterator[Batch]:
        with self.db.write_batch(sync=self.sync) as batch:
            yield Batch(batch)

    def put_each(self, pairs: Sequence[Pair]) -> None:
        put, sync = self.db.put, self.sync
        for key, value in pairs:
            put(key, value, sync=sync)

    def mixed(self, operations: Sequence[Operation]) -> int:
        found = 0
        get, put, sync = self.db.get, self.db.put, self.sync
        for key, value in operations:
            if value is None:
                if get(key) is not None:
                    found += 1
            else:
                put(key, value, sync=sync)
        return found


# ---------------------------------------------------------------- RocksDB


class Rocksdict(Store):
    """RocksDB through rocksdict in raw mode, which takes bytes as they are."""

    MODULE = "rocksdict"
    SETTINGS = (
        "raw mode, rocksdict's default options; durable: `WriteOptions.sync`; "
        "lazy: as it comes, a power cut loses the end of the log"
    )

    def open(self, *, lazy: bool = False) -> None:
        self.rocks = importlib.import_module("rocksdict")
        self.db = self.rocks.Rdict(str(self.path), self.rocks.Options(raw_mode=True))
        options = self.rocks.WriteOptions()
        options.sync = not lazy
        self.db.set_write_options(options)

    def close(self) -> None:
        self.db.close()

    def settle(self) -> None:
        self.db.flush()
        self.db.compact_range(None, None)

    def get(self, keys: Sequence[bytes]) -> int:
        found = 0
        get = self.db.get
        for key in keys:
            if get(key) is not None:
                found += 1
        return found

    begin_get = get

    def scan(self, *, reverse: bool) -> int:
        found = 0
        for _key, _value in self.db.items(backwards=reverse):
            found += 1
        return found

    def ranges(self, starts: Sequence[bytes], length: int) -> int:
        found = 0
        items = self.db.items
        for start in starts:
            for _key, _value in islice(items(from_key=start), length):
                found += 1
        return found

    def prefixes(self, prefixes: Sequence[bytes]) -> int:
        found = 0
        items = self.db.items
        for prefix in prefixes:
            for key, _value in items(from_key=prefix):
                if not key.startswith(prefix):
                    break
                found += 1
        return found

    @contextlib.contextmanager
    def snapshot(self) -> Iterator[object]:
        snapshot = self.db.snapshot()
        yield snapshot
        del snapshot

    @contextlib.contextmanager
    def batch(self) -> Iterator[Batch]:
        batch = self.rocks.WriteBatch(raw_mode=True)
        yield Batch(batch)
        self.db.write(batch)

    def put_each(self, pairs: Sequence[Pair]) -> None:
        put = self.db.put
        for key, value in pairs:
            put(key, value)

    def mixed(self, operations: Sequence[Operation]) -> int:
        found = 0
        get, put = self.db.get, self.db.put
        for key, value in operations:
            if value is None:
                if get(key) is not None:
                    found += 1
            else:
                put(key, value)
        return found
