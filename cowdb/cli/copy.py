"""``cowdb copy``: a hot copy, while others go on."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Final, cast

from cowdb.backup import copy_whole
from cowdb.cli.newfile import refuse_existing
from cowdb.cli.opening import add_path, add_timeout, reading
from cowdb.cli.output import FINE, size_text

if TYPE_CHECKING:
    import argparse

    from cowdb.cli.output import Output

__all__ = ["DESCRIPTION", "EXAMPLES", "arguments", "run"]

DESCRIPTION: Final = """
Copies the newest state, page by page, each verified on the way, while readers and
writers go on. The new file has the same pages at the same places; free pages are
holes. It appears under its name when it is whole and on disk, and overwrites
nothing. A damaged page ends it: cowdb recover goes on behind damage.
"""

EXAMPLES: Final = (("cowdb copy app.cowdb backup/monday.cowdb", "a backup of a database in use"),)


def arguments(parser: argparse.ArgumentParser) -> None:
    """See `cowdb.cli`."""
    add_path(parser)
    parser.add_argument("new", metavar="NEW", help="the file to make")
    add_timeout(parser)


def run(args: argparse.Namespace, out: Output) -> int:
    """See `cowdb.cli`."""
    refuse_existing(args.new)
    with reading(args.file, args.timeout) as state, out.progress("copying", "pages") as tick:
        target = os.path.abspath(args.new)
        copy_whole(cast("Any", state.source), cast("Any", state), target, tick)  # it looks at the meta alone
        transaction = state.meta.transaction
    facts = {
        "path": args.file,
        "new": args.new,
        "transaction": transaction,
        "file_size": os.path.getsize(args.new),
        "allocated_size": getattr(os.stat(args.new), "st_blocks", 0) * 512,
    }
    if out.machine:
        out.document(facts)
    else:
        out.line(f"copied transaction {transaction} to {args.new}: {size_text(facts['file_size'])}")
    return FINE
