"""``cowdb readers``: who reads, how old their snapshots are, and what these hold back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from cowdb.cli.opening import add_path, add_timeout, reading
from cowdb.cli.output import FINE, Column
from cowdb.cli.users import live_snapshots

if TYPE_CHECKING:
    import argparse

    from cowdb.cli.output import Output

__all__ = ["DESCRIPTION", "EXAMPLES", "arguments", "run"]

DESCRIPTION: Final = """
The snapshots that live processes use now, oldest first: the process, how long
it has had the file open, how many transactions it is behind the newest state,
and how many free pages wait for it to end. A long reader holds back only pages
that it can see. Processes that died are not listed: they hold nothing.
"""

EXAMPLES: Final = (
    ("cowdb readers app.cowdb", "who holds space back?"),
    ("cowdb readers app.cowdb --format jsonl", "the same for a script"),
)

COLUMNS: Final = (
    Column("pid", "process", "number"),
    Column("transaction", "reads", "number"),
    Column("behind", "behind", "number"),
    Column("held_pages", "holds back", "number"),
    Column("held_size", "size", "size"),
    Column("open", "open since", "time"),
    Column("process", "command"),
)


def arguments(parser: argparse.ArgumentParser) -> None:
    """See `cowdb.cli`."""
    add_path(parser)
    add_timeout(parser)


def run(args: argparse.Namespace, out: Output) -> int:
    """See `cowdb.cli`."""
    with reading(args.file, args.timeout) as state:
        rows = live_snapshots(args.file, state)
        for row in rows:
            row["open"] = row["started"]
            held = row["held_pages"]
            row["held_size"] = None if held is None else held * state.page_size
        newest = state.meta.transaction
    if rows or out.machine:
        out.table(COLUMNS, rows)
    else:
        out.line(f"Nobody reads it now; the newest state is transaction {newest}.")
    return FINE
