"""``cowdb top``: what takes the room.

Keys come in order, so the entries of a prefix lie together: a group is complete
when the next one begins, and no more than the greatest few are ever kept.

    user:1 user:2 user:3 | video:1 ...        groups by what stands before the first delimiter
"""

from __future__ import annotations

import heapq
import re
from typing import TYPE_CHECKING, Any, Final

from cowdb.cli.data import given
from cowdb.cli.measure import leaf_pages, sizes
from cowdb.cli.opening import add_path, add_timeout, add_tree, natural, reading, tree_of
from cowdb.cli.output import FINE, USAGE, Column, CommandError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    from cowdb.cli.output import Output, Progress
    from cowdb.lookup import Tree

__all__ = ["DESCRIPTION", "EXAMPLES", "arguments", "run"]

DESCRIPTION: Final = r"""
The largest keys, the largest values, and the prefixes under which most bytes
lie. A prefix ends with the first of the characters of --delimiters, or after
--length bytes. Reads every leaf of one tree; values in overflow runs are not read.
"""

EXAMPLES: Final = (
    ("cowdb top app.cowdb", "the ten largest of each in the main tree"),
    ("cowdb top app.cowdb -t users --count 3 --length 2", "three of each in users, prefixes of two bytes"),
    ("cowdb top app.cowdb --show redacted", "sizes only, for output that others may read"),
)

PREFIXES: Final = (
    Column("prefix", "prefix", "data"),
    Column("entries", "entries", "number"),
    Column("key_bytes", "keys", "size"),
    Column("value_bytes", "values", "size"),
    Column("share", "share", "percent"),
)
ENTRIES: Final = (
    Column("key", "key", "data"),
    Column("key_bytes", "key size", "size"),
    Column("value_bytes", "value size", "size"),
)


def arguments(parser: argparse.ArgumentParser) -> None:
    """See `cowdb.cli`."""
    add_path(parser)
    add_tree(parser)
    parser.add_argument("--count", "-n", metavar="N", type=natural, default=10, help="how many of each (default: 10)")
    parser.add_argument(
        "--delimiters", metavar="CHARS", default=r":/.|\0", help=r"what ends a prefix (default: : / . | and \0)"
    )
    parser.add_argument("--length", metavar="BYTES", type=natural, help="cut prefixes after so many bytes instead")
    add_timeout(parser)


def run(args: argparse.Namespace, out: Output) -> int:
    """See `cowdb.cli`."""
    if args.count < 1 or (args.length is not None and args.length < 1):
        raise CommandError("--count and --length are at least 1", USAGE)
    try:
        delimiters = given(args.delimiters)
    except ValueError as error:
        raise CommandError(str(error), USAGE) from None
    with reading(args.file, args.timeout) as state:
        tree = tree_of(state, args.tree)
        with out.progress("reading", "entries") as tick:
            found = largest(tree, args.count, _prefixer(delimiters, args.length), tick)
    if out.machine:
        out.document(found)
        return FINE
    for row in found["prefixes"]:
        row["prefix"] = row["prefix"] or "(no delimiter)"
    for title, columns in (("prefixes", PREFIXES), ("values", ENTRIES), ("keys", ENTRIES)):
        out.heading(f"largest {title}")
        out.table(columns, found[title])
    return FINE


def _prefixer(delimiters: bytes, length: int | None) -> Callable[[bytes], bytes]:
    if length is not None:
        return lambda key: key[:length]
    if not delimiters:
        return lambda key: key
    search = re.compile(b"[" + re.escape(delimiters) + b"]").search

    def prefix(key: bytes) -> bytes:
        found = search(key)
        return key[: found.end()] if found else b""

    return prefix


def largest(tree: Tree, count: int, prefix_of: Callable[[bytes], bytes], tick: Progress) -> dict[str, Any]:
    """The `count` largest prefixes, values and keys of a tree. O(entries log count) time, O(count) memory."""
    keys: list[tuple[int, bytes, int]] = []
    values: list[tuple[int, bytes, int]] = []
    groups = _Groups(count)
    done = total = 0
    for page in leaf_pages(tree):
        names = [page.prefix + suffix for suffix in page.suffixes]
        lengths = list(map(len, names))
        weights = sizes(page)
        keys = heapq.nlargest(count, [*keys, *zip(lengths, names, weights, strict=True)])
        values = heapq.nlargest(count, [*values, *zip(weights, names, lengths, strict=True)])
        groups.add(names, lengths, weights, prefix_of)
        total += sum(lengths) + sum(weights)
        done += len(names)
        tick(done, len(tree))
    return {
        "tree": tree.name,
        "entries": done,
        "prefixes": [
            {
                "prefix": prefix,
                "entries": entries,
                "key_bytes": key_bytes,
                "value_bytes": size - key_bytes,
                "share": size / total if total else 0.0,
            }
            for size, prefix, entries, key_bytes in groups.finish()
        ],
        "values": [{"key": key, "key_bytes": length, "value_bytes": size} for size, key, length in values],
        "keys": [{"key": key, "key_bytes": size, "value_bytes": weight} for size, key, weight in keys],
    }


class _Groups:
    """The greatest groups of entries whose keys share a prefix, told in key order."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._greatest: list[tuple[int, bytes, int, int]] = []
        self._without: list[int] = [0, 0, 0]  # keys without a delimiter do not lie together
        self._prefix: bytes | None = None
        self._sums = [0, 0, 0]

    def add(
        self, keys: list[bytes], lengths: list[int], weights: list[int], prefix_of: Callable[[bytes], bytes]
    ) -> None:
        """Count the entries of a leaf."""
        first, last = prefix_of(keys[0]), prefix_of(keys[-1])
        if first and first == last:  # keys are in order, so all between have it too
            self._count_in(first, len(keys), sum(lengths), sum(weights))
            return
        for key, length, weight in zip(keys, lengths, weights, strict=True):
            self._count_in(prefix_of(key), 1, length, weight)

    def _count_in(self, prefix: bytes, entries: int, key_bytes: int, value_bytes: int) -> None:
        if not prefix:
            sums = self._without
        else:
            if prefix != self._prefix:
                self._end()
                self._prefix = prefix
            sums = self._sums
        sums[0] += entries
        sums[1] += key_bytes
        sums[2] += value_bytes

    def _end(self) -> None:
        if self._prefix is not None and self._sums[0]:
            entries, key_bytes, value_bytes = self._sums
            group = (key_bytes + value_bytes, self._prefix, entries, key_bytes)
            self._greatest = heapq.nlargest(self._count, [*self._greatest, group])
        self._sums = [0, 0, 0]

    def finish(self) -> list[tuple[int, bytes, int, int]]:
        """The greatest groups: (bytes, prefix, entries, bytes of keys)."""
        self._end()
        entries, key_bytes, value_bytes = self._without
        rest = [(key_bytes + value_bytes, b"", entries, key_bytes)] if entries else []
        return heapq.nlargest(self._count, [*self._greatest, *rest])
