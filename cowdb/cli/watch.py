"""``cowdb watch``: what a database does, live."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

from cowdb.cli.opening import add_path, add_timeout, natural, seconds
from cowdb.cli.output import FINE, USAGE, Column, CommandError
from cowdb.cli.watching import Watch

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from cowdb.cli.output import Output

__all__ = ["DESCRIPTION", "EXAMPLES", "arguments", "run"]

DESCRIPTION: Final = """
One line every few seconds: commits, the pages that they wrote and that are still
in use, entries of the main tree, the size of the file, free space, and the free
space that snapshots of other processes hold back (that of the one that holds
back most). Ctrl-C ends it. Between two lines it holds nothing open.
"""

EXAMPLES: Final = (
    ("cowdb watch app.cowdb", "a line every two seconds"),
    ("cowdb watch app.cowdb --every 0.5 --count 20 --format jsonl", "ten seconds, for a script"),
)

COLUMNS: Final = (
    Column("clock", "time"),
    Column("transaction", "transaction", "number"),
    Column("commits", "commits", "number"),
    Column("commits_per_second", "per s", "number"),
    Column("pages_written", "written", "number"),
    Column("entries", "entries", "number"),
    Column("file_size", "file", "size"),
    Column("free_size", "free", "size"),
    Column("pinned_size", "pinned", "size"),
    Column("snapshots", "readers", "number"),
)
WIDTHS: Final = (8, 11, 7, 8, 8, 11, 10, 10, 10, 7)


def arguments(parser: argparse.ArgumentParser) -> None:
    """See `cowdb.cli`."""
    add_path(parser)
    parser.add_argument("--every", metavar="SECONDS", type=seconds, default=2.0, help="between two lines (default: 2)")
    parser.add_argument("--count", "-n", metavar="N", type=natural, help="end after so many lines (default: go on)")
    add_timeout(parser)


def run(args: argparse.Namespace, out: Output) -> int:
    """See `cowdb.cli`."""
    if not 0.01 <= args.every <= 86_400 or (args.count is not None and args.count < 1):
        raise CommandError("--every is 0.01 to 86400 seconds, --count at least 1", USAGE)
    looks = _looks(args.file, args.every, args.count, args.timeout, out)
    if out.machine:
        out.records(looks)
        return FINE
    for index, facts in enumerate(looks):
        if index % 20 == 0:
            titles = (column.title.rjust(width) for column, width in zip(COLUMNS, WIDTHS, strict=True))
            out.line(" ".join(titles), "bold")
        cells = (
            out.cell(column, facts.get(column.key)).rjust(width) for column, width in zip(COLUMNS, WIDTHS, strict=True)
        )
        out.line(" ".join(cells))
        out.flush()
    return FINE


def _looks(path: str, every: float, count: int | None, timeout: float, out: Output) -> Iterator[dict[str, Any]]:
    watch = Watch(path, timeout)
    done = 0
    due = time.monotonic()
    while True:
        facts = watch.look()
        if not out.machine:
            facts["clock"] = time.strftime("%H:%M:%S", time.localtime(facts["time"]))
        yield facts
        out.flush()
        done += 1
        if count is not None and done >= count:
            return
        due = max(due + every, time.monotonic())
        time.sleep(max(due - time.monotonic(), 0.0))
