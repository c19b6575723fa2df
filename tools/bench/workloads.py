"""The workloads: what one store is asked to do, and what of it is measured.

A workload is a function over a `Bench`, which is one store in one process.  It returns a number a row of the table:
seconds for one operation, or bytes; less is better.  It also returns what it found, which has to be the same for
all stores: one that skips its work would be quick.

    peers.py --(name, run)--> worker.py --> plan.py: name --> get(bench) --> {"get": 1.2e-06}, found 100000
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import gc
import os
import random
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import records
from records import Pair
from store import Store
from together import in_threads

Values = dict[str, float]
Outcome = tuple[Values, int]

THREADS = 16
HOT = 100
RANGE = 100


@dataclasses.dataclass
class Bench:
    """One store in one process, and the sizes of what it is asked to do."""

    kind: type[Store]
    directory: Path
    records: int
    full: bool
    run: int = 0
    opened: tuple[Store, int, bool] | None = None
    warm: set[str] = dataclasses.field(default_factory=set)
    made: list[Store] = dataclasses.field(default_factory=list)

    def base(self, count: int | None = None, *, lazy: bool = False) -> Store:
        """The store with `count` records, open; it stays open, so that its caches stay warm."""
        count = count or self.records
        if self.opened is not None and self.opened[1:] == (count, lazy):
            return self.opened[0]
        self.release()
        store = self.kind(self.directory / f"base-{count}")
        there = store.path.exists()
        self.made.append(store)
        store.open(lazy=lazy)
        if not there:
            for number, length in records.chunks(count):
                with store.batch() as batch:
                    batch.put(records.pairs(number, length))
            store.settle()
        self.opened = (store, count, lazy)
        self.warm.clear()
        return store

    def release(self) -> None:
        """Close what is open."""
        if self.opened is not None:
            self.opened[0].close()
            self.opened = None

    def start_over(self) -> None:
        """After a failure: nobody knows what is in the stores that were made here, so they go, and nothing else."""
        with contextlib.suppress(Exception):
            self.release()
        self.opened = None
        for store in self.made:
            store.remove()
        self.made.clear()

    def fresh(self, name: str, *, lazy: bool = False) -> Store:
        """A new, empty store, open."""
        store = self.kind(self.directory / name)
        self.made.append(store)
        if store.path.exists():
            store.remove()
        store.open(lazy=lazy)
        return store

    def timed(self, name: str, operations: int, function: Callable[[], int]) -> tuple[float, int]:
        """Seconds for one of `operations` operations of `function`, which is run once more at first; what it found."""
        if name not in self.warm:
            function()
            self.warm.add(name)
        gc.collect()
        start = time.perf_counter()
        found = function()
        return (time.perf_counter() - start) / max(operations, 1), found

    def few(self, most: int, count: int | None = None) -> int:
        """How many operations: `most`, or what there is if that is less."""
        return max(1, min(most, count or self.records))


def clock(function: Callable[[], object]) -> float:
    """Seconds that one call takes, garbage of before collected first."""
    gc.collect()
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


# ---------------------------------------------------------------- reading


def _get(bench: Bench, count: int, row: str) -> Outcome:
    store = bench.base(count)
    keys = records.sample(count, bench.few(100_000, count), bench.run)
    repeats = -(-bench.few(100_000) // len(keys))
    keys *= repeats
    seconds, found = bench.timed(row, len(keys), lambda: store.get(keys))
    return {row: seconds}, found


def get_small(bench: Bench) -> Outcome:
    """Random keys out of a thousand."""
    return _get(bench, bench.few(1000), "get_small")


def get(bench: Bench) -> Outcome:
    """Random keys out of all."""
    return _get(bench, bench.records, "get")


def get_large(bench: Bench) -> Outcome:
    """Random keys out of ten times as many."""
    return _get(bench, 10 * bench.records, "get_large")


def missing(bench: Bench) -> Outcome:
    """Keys that are not there."""
    store = bench.base()
    keys = records.missing(bench.few(100_000), bench.run)
    seconds, found = bench.timed("missing", len(keys), lambda: store.get(keys))
    return {"missing": seconds}, found


def hot(bench: Bench) -> Outcome:
    """The same few keys again and again."""
    store = bench.base()
    keys = records.sample(bench.records, bench.few(HOT), bench.run)
    keys *= -(-bench.few(100_000) // len(keys))
    seconds, found = bench.timed("hot", len(keys), lambda: store.get(keys))
    return {"hot": seconds}, found


def begin_get(bench: Bench) -> Outcome:
    """Each get in a transaction of its own."""
    store = bench.base()
    keys = records.sample(bench.records, bench.few(50_000), bench.run)
    seconds, found = bench.timed("begin_get", len(keys), lambda: store.begin_get(keys))
    return {"begin_get": seconds}, found


def scan(bench: Bench) -> Outcome:
    """All records, forward and backward."""
    store = bench.base()
    forward, found = bench.timed("scan", bench.records, lambda: store.scan(reverse=False))
    backward, again = bench.timed("back", bench.records, lambda: store.scan(reverse=True))
    return {"scan": forward, "back": backward}, found + again


def ranges(bench: Bench) -> Outcome:
    """A hundred records from a random key on."""
    store = bench.base()
    starts = records.sample(bench.records, bench.few(2000), bench.run)
    seconds, found = bench.timed("range", len(starts), lambda: store.ranges(starts, RANGE))
    return {"range": seconds}, found


def prefixes(bench: Bench) -> Outcome:
    """All records that begin with one byte, or with two where one would be very many."""
    store = bench.base()
    length = 2 if bench.records >= 200_000 else 1
    keys = records.sample(bench.records, bench.few(2000 if length == 2 else 100), bench.run)
    starts = [key[:length] for key in keys]
    seconds, found = bench.timed("prefix", len(starts), lambda: store.prefixes(starts))
    return {"prefix": seconds}, found


# ---------------------------------------------------------------- writing


def _load(store: Store, chunks: Sequence[tuple[int, int]], make: Callable[[int, int], list[records.Pair]]) -> float:
    """Seconds that one transaction takes; making the records does not count, nor what others left to be written."""
    os.sync()
    seconds = 0.0
    batch = store.batch()
    filled = batch.__enter__()
    for number, length in chunks:
        pairs = make(number, length)
        seconds += clock(functools.partial(filled.put, pairs))
        del pairs
    return seconds + clock(lambda: batch.__exit__(None, None, None))


def load(bench: Bench) -> Outcome:
    """All records in random order in one durable transaction; what the file takes then."""
    bench.release()
    store = bench.fresh(f"base-{bench.records}")
    seconds = _load(store, list(records.chunks(bench.records)), records.pairs)
    store.settle()
    store.close()
    size = float(store.size())
    return {"load": seconds / bench.records, "size": size}, bench.base().scan(reverse=False)


def load_sorted(bench: Bench) -> Outcome:
    """The same with keys that rise."""
    store = bench.fresh("sorted")
    count = bench.records
    make = functools.partial(records.sorted_pairs, count=count)
    seconds = _load(store, list(records.chunks(count)), make)
    store.settle()
    found = store.scan(reverse=False)
    store.close()
    size = float(store.size())
    store.remove()
    return {"load_sorted": seconds / count, "size_sorted": size}, found


def replace(bench: Bench) -> Outcome:
    """New values for random keys, in one durable transaction."""
    store = bench.base()
    pairs = records.replacements(records.sample(bench.records, bench.few(100_000), bench.run), bench.run)

    def work() -> None:
        with store.batch() as batch:
            batch.put(pairs)

    seconds = clock(work)
    store.settle()
    return {"replace": seconds / len(pairs)}, store.get([key for key, _ in pairs])


def delete(bench: Bench) -> Outcome:
    """Random keys, in one durable transaction; afterwards they are put back."""
    store = bench.base()
    keys = records.sample(bench.records, bench.few(100_000), bench.run)

    def work() -> None:
        with store.batch() as batch:
            batch.delete(keys)

    seconds = clock(work)
    found = store.get(keys)
    with store.batch() as batch:
        batch.put(records.replacements(keys, bench.run))
    store.settle()
    return {"delete": seconds / len(keys)}, found


# ---------------------------------------------------------------- small transactions


def _mixed(bench: Bench, writes: float, row: str) -> Outcome:
    store = bench.base(lazy=True)
    operations = records.mixture(records.sample(bench.records, bench.few(10_000), bench.run), writes, bench.run)
    seconds, found = bench.timed(row, len(operations), lambda: store.mixed(operations))
    store.settle()
    return {row: seconds}, found


def mixed_5(bench: Bench) -> Outcome:
    """Nineteen reads to a write."""
    return _mixed(bench, 0.05, "mixed_5")


def mixed_50(bench: Bench) -> Outcome:
    """As many writes as reads."""
    return _mixed(bench, 0.5, "mixed_50")


def _put_each(bench: Bench, row: str, most: int, *, lazy: bool) -> Outcome:
    store = bench.base(lazy=lazy)
    pairs = records.replacements(records.sample(bench.records, bench.few(most), bench.run), bench.run)
    seconds = clock(lambda: store.put_each(pairs))
    store.settle()
    return {row: seconds / len(pairs)}, store.get([key for key, _ in pairs])


def put_durable(bench: Bench) -> Outcome:
    """A put a transaction, on the disk before the next begins."""
    return _put_each(bench, "put_durable", 500, lazy=False)


def put_lazy(bench: Bench) -> Outcome:
    """A put a transaction, without waiting for the disk."""
    return _put_each(bench, "put_lazy", 5000, lazy=True)


def threads(bench: Bench) -> Outcome:
    """The durable transactions by sixteen threads, each begun and committed, or by the store's shortest call."""
    store = bench.base()
    each = bench.few(50)
    values: Values = {}
    found = 0
    for row, put in ("threads", store.put_each), ("thread_calls", store.put_calls):
        keys = records.sample(bench.records, each * THREADS, f"{bench.run} {row}")
        pairs = records.replacements(keys, f"{bench.run} {row}")
        gc.collect()
        values[row] = _by_threads(put, pairs)
        store.settle()
        found += store.get(keys)
    return values, found


def _by_threads(put: Callable[[Sequence[Pair]], object], pairs: list[Pair]) -> float:
    """Seconds a pair."""
    return in_threads(THREADS, lambda number: put(pairs[number::THREADS])) / len(pairs)


def _large(bench: Bench, size: int, most: int, name: str) -> Outcome:
    count = bench.few(most)
    pairs = records.pairs(bench.run, count, size)
    keys = [key for key, _ in pairs]
    random.Random(bench.run).shuffle(keys)
    store = bench.fresh("large")

    def work() -> None:
        with store.batch() as batch:
            batch.put(pairs)

    put = clock(work)
    store.settle()
    store.get(keys)
    found = 0

    def read() -> None:
        nonlocal found
        found = store.get(keys)

    seconds = clock(read)
    store.close()
    store.remove()
    return {f"put_{name}": put / count, f"get_{name}": seconds / count}, found


def large_8k(bench: Bench) -> Outcome:
    """Values of 8 KB."""
    return _large(bench, 8 << 10, 1000, "8k")


def large_64k(bench: Bench) -> Outcome:
    """Values of 64 KB."""
    return _large(bench, 64 << 10, 300, "64k")


def large_1m(bench: Bench) -> Outcome:
    """Values of 1 MB."""
    return _large(bench, 1 << 20, 30, "1m")


# ---------------------------------------------------------------- space and the rest


def churn(bench: Bench) -> Outcome:
    """Fifty lazy transactions that replace, delete and add a few per cent, with values of many lengths."""
    count = bench.few(50_000)
    few = max(1, count // 50)
    rng = random.Random(bench.run)
    store = bench.fresh("churn", lazy=True)
    pairs = records.pairs(0, count)
    keys = [key for key, _ in pairs]
    with store.batch() as batch:
        batch.put(pairs)
    for _ in range(50):
        gone = set(rng.sample(keys, few))
        keys = [key for key in keys if key not in gone]
        new = [rng.randbytes(records.KEY) for _ in gone]
        keys += new
        changed = new + rng.sample(keys, few)
        with store.batch() as batch:
            batch.delete(sorted(gone))
            batch.put([(key, rng.randbytes(rng.randrange(50, 151))) for key in changed])
    store.settle()
    found = store.scan(reverse=False)
    store.close()
    size = float(store.size())
    store.remove()
    return {"size_churn": size}, found


def growth(bench: Bench) -> Outcome:
    """What the file grows by while a reader keeps the snapshot from before."""
    puts = 100_000 if bench.full else bench.few(20_000)
    rng = random.Random(bench.run)
    pairs = records.pairs(bench.run, 1000)
    store = bench.fresh("growth", lazy=True)
    with store.batch() as batch:
        batch.put(pairs)
    store.settle()
    before = store.size()
    with store.snapshot():
        for start in range(0, puts, 1000):
            some = [rng.choice(pairs)[0] for _ in range(min(1000, puts - start))]
            store.put_each([(key, rng.randbytes(records.VALUE)) for key in some])
        after = store.size()
    store.close()
    store.remove()
    return {"growth": float(max(after - before, 1))}, puts


def opening(bench: Bench) -> Outcome:
    """Open, get one record, close."""
    bench.base()
    bench.release()
    keys = records.sample(bench.records, bench.few(20), bench.run)
    store = bench.kind(bench.directory / f"base-{bench.records}")
    found = 0

    def work() -> None:
        nonlocal found
        for key in keys:
            store.open()
            found += store.get([key])
            store.close()

    work()
    found = 0
    return {"open": clock(work) / len(keys)}, found


def memory(bench: Bench) -> Outcome:
    """What the process takes for itself: the pages of the file that it has mapped are not counted."""
    keys = records.sample(bench.records, bench.few(100_000), bench.run)
    count = bench.few(200_000)
    for number, length in records.chunks(count):
        records.pairs(number, length)  # so that the room for the records themselves is there before we look
    bench.base()
    bench.release()
    gc.collect()
    start = anonymous()
    found = bench.base().get(keys)
    reading = anonymous()
    bench.release()
    gc.collect()
    before = anonymous()
    store = bench.fresh("memory")
    with store.batch() as batch:
        for number, length in records.chunks(count):
            batch.put(records.pairs(number, length))
        gc.collect()
        after = anonymous()
    store.close()
    store.remove()
    if start is None or reading is None or before is None or after is None:
        return {}, found
    least = 64 << 10  # less than that is chance
    return {"memory_read": float(max(reading - start, least)), "memory_load": float(max(after - before, least))}, found


def anonymous() -> int | None:
    """Bytes of memory of this process that no file stands behind, or None where the system does not say."""
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
    except OSError:
        return None
    found = re.search(r"^RssAnon:\s+(\d+) kB", status, re.MULTILINE)
    return int(found.group(1)) * 1024 if found else None
