"""The table of the benchmark against the peers: which workloads there are and which rows they give."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import workloads as work
from workloads import HOT, RANGE, THREADS, Bench, Outcome


@dataclasses.dataclass(frozen=True)
class Row:
    """A line of the table: its key, its words, what it counts (time or bytes), the chart that it is in."""

    key: str
    title: str
    chart: str
    unit: str = "time"


@dataclasses.dataclass(frozen=True)
class Workload:
    """A function and the rows that it gives; `alone` if it needs a process of its own."""

    rows: tuple[Row, ...]
    function: Callable[[Bench], Outcome]
    alone: bool = False


def workloads(count: int) -> dict[str, Workload]:
    """All of them, in the order in which they run, for `count` records."""
    few = f"{min(count, 1000):,}"

    def one(row: str, title: str, chart: str, function: Callable[[Bench], Outcome]) -> Workload:
        return Workload((Row(row, title, chart),), function)

    def large(name: str, size: str, function: Callable[[Bench], Outcome]) -> Workload:
        return Workload(
            (
                Row(f"put_{name}", f"put values of {size}, one transaction", "writing"),
                Row(f"get_{name}", f"get values of {size}", "reading"),
            ),
            function,
        )

    def size(row: str, title: str) -> Row:
        return Row(row, title, "space", "bytes")

    return {
        "load": Workload(
            (Row("load", "load in random order, one transaction", "writing"), size("size", "file size after it")),
            work.load,
        ),
        "get_small": one("get_small", f"random get, {few} records", "reading", work.get_small),
        "get": one("get", f"random get, {count:,} records", "reading", work.get),
        "missing": one("missing", "get of a missing key", "reading", work.missing),
        "hot": one("hot", f"hot get, {HOT} keys", "reading", work.hot),
        "begin_get": one("begin_get", "begin and get", "reading", work.begin_get),
        "scan": Workload((Row("scan", "scan forward", "reading"), Row("back", "scan backward", "reading")), work.scan),
        "range": one("range", f"range of {RANGE}", "reading", work.ranges),
        "prefix": one("prefix", "prefix scan", "reading", work.prefixes),
        "replace": one("replace", "replace at random, one transaction", "writing", work.replace),
        "delete": one("delete", "delete at random, one transaction", "writing", work.delete),
        "put_durable": one("put_durable", "durable transaction of one put", "transactions", work.put_durable),
        "threads": Workload(
            (
                Row("threads", f"the same by {THREADS} threads", "transactions"),
                Row("thread_calls", f"the same by {THREADS} threads, one call each", "transactions"),
            ),
            work.threads,
        ),
        "put_lazy": one("put_lazy", "lazy transaction of one put", "transactions", work.put_lazy),
        "mixed_5": one("mixed_5", "mixed, 95 % gets, lazy transactions of one", "transactions", work.mixed_5),
        "mixed_50": one("mixed_50", "mixed, 50 % gets, lazy transactions of one", "transactions", work.mixed_50),
        "opening": one("open", "open, get, close", "transactions", work.opening),
        "load_sorted": Workload(
            (
                Row("load_sorted", "load in order, one transaction", "writing"),
                size("size_sorted", "file size after it"),
            ),
            work.load_sorted,
        ),
        "large_8k": large("8k", "8 KB", work.large_8k),
        "large_64k": large("64k", "64 KB", work.large_64k),
        "large_1m": large("1m", "1 MB", work.large_1m),
        "churn": Workload((size("size_churn", "file size after churn"),), work.churn),
        "growth": Workload((size("growth", "growth of the file under an old reader"),), work.growth),
        "memory": Workload(
            (size("memory_read", "memory, reading"), size("memory_load", "memory, one transaction that loads")),
            work.memory,
            alone=True,
        ),
        "get_large": one("get_large", f"random get, {10 * count:,} records", "reading", work.get_large),
    }
