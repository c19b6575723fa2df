"""``cowdb report``: a page for the browser that shows the whole file.

    one walk over every page --> Survey    what each page is, sums, who holds free pages back
    the branches again       --> nodes     the trees to click through
                                 |
    report.html, style, scripts + the facts as JSON --> OUTPUT

The page is one file and asks nothing of any network.  Its size is bounded: a large
file is shown with several pages a square, and the lower parts of large trees are left out;
the page says so.  Whatever comes from the database is text in there, never markup.
"""

from __future__ import annotations

import os
import tempfile
from typing import TYPE_CHECKING, Any, Final

from cowdb.cli.opening import add_path, add_timeout, looking
from cowdb.cli.output import FINDINGS, FINE, IO_ERROR, USAGE, CommandError, size_text
from cowdb.cli.reportfacts import Survey, gather
from cowdb.cli.reportholders import holders
from cowdb.cli.reporthtml import BEGINNING, html
from cowdb.cli.stat import every_tree, state_of
from cowdb.storage import FileDisk

if TYPE_CHECKING:
    import argparse

    from cowdb.cli.output import Output

__all__ = ["DESCRIPTION", "EXAMPLES", "arguments", "run"]

DESCRIPTION: Final = """
Writes one HTML page, to be opened in a browser, with nothing to load: a map of all
pages, coloured by kind, tree, fill or age; the trees, to zoom and click through; how
full the pages are and how long keys and values; the free pages and who holds them
back. It has the separators of branches in it, which are pieces of keys, but
no values; with --show redacted it has no keys and no names of trees either.
Damaged pages are shown as such, with exit code 1.
"""

EXAMPLES: Final = (
    ("cowdb report app.cowdb app.html", "all that can be seen, in one page"),
    ("cowdb report app.cowdb app.html --show redacted", "a page for others: sizes, but no keys and no names"),
    ("cowdb report app.cowdb app.html --force", "again, in place of the report from before"),
)


def arguments(parser: argparse.ArgumentParser) -> None:
    """See `cowdb.cli`."""
    add_path(parser)
    parser.add_argument("output", metavar="OUTPUT", help="the page to write, such as app.html")
    parser.add_argument("--force", action="store_true", help="replace OUTPUT, if it is a report from before")
    add_timeout(parser)


def run(args: argparse.Namespace, out: Output) -> int:
    """See `cowdb.cli`."""
    _refuse(args.output, force=args.force)
    with looking(args.file, args.timeout) as look:
        state = state_of(look, out)
        trees, broken = every_tree(state)
        survey = Survey(state, trees, holders(args.file, shared=not look.problem))
        with out.progress("walking", "pages") as tick:
            survey.take(tick)
        survey.judge(look, broken)
        facts = gather(args.file, look, survey, out)
    page = html(facts)
    _deliver(page, args.output, force=args.force)
    answer: dict[str, Any] = {
        "path": os.path.abspath(args.file),
        "report": os.path.abspath(args.output),
        "size": len(page),
        "transaction": state.meta.transaction,
        "pages": survey.pages,
        "damaged_pages": len(survey.damage),
        "problems": facts["problems"],
    }
    if out.machine:
        out.document(answer)
    else:
        out.line(
            f"{survey.pages:,} pages of transaction {state.meta.transaction} in {args.output}, {size_text(len(page))}"
        )
        if survey.damage:
            out.line(f"{len(survey.damage):,} damaged pages: the report lists them", "bold red")
    for problem in facts["problems"][:20]:
        out.note(problem)
    return FINDINGS if survey.damage or survey.problems else FINE


def _refuse(path: str, *, force: bool) -> None:
    """A `CommandError` if nothing may be written at `path`: what is there stays, unless it is an old report."""
    if not os.path.basename(path):
        raise CommandError(f"{path!r} names no file to write", USAGE)
    folder = os.path.dirname(os.path.abspath(path))
    if not os.path.isdir(folder):
        raise CommandError(f"there is no directory {folder!r}", IO_ERROR)
    if not os.path.lexists(path):
        return
    if not force:
        raise CommandError(f"{path!r} is there already; --force replaces it", USAGE)
    if not os.path.isfile(path):
        raise CommandError(f"{path!r} is no file, so it cannot be replaced", USAGE)
    with open(path, "rb") as file:
        if file.read(len(BEGINNING)) != BEGINNING:
            raise CommandError(f"{path!r} is no report; it stays as it is", USAGE)


def _deliver(page: bytes, path: str, *, force: bool) -> None:
    """Let `path` name the page when it is whole and on disk, or leave everything as it was."""
    disk = FileDisk()
    target = os.path.abspath(path)
    descriptor, name = tempfile.mkstemp(dir=os.path.dirname(target), prefix=f".{os.path.basename(target)}.")
    try:
        with open(descriptor, "wb") as file:
            file.write(page)
            file.flush()
            os.fsync(file.fileno())
        if force:
            _refuse(path, force=True)  # it may be another file by now
            os.replace(name, target)
            return
        try:
            disk.link(name, target)
        except FileExistsError:
            raise CommandError(f"{path!r} has come meanwhile; --force replaces it", USAGE) from None
    finally:
        if os.path.lexists(name):
            os.unlink(name)
