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
from typing import TYPE_CHECKING, Any, Final

from cowdb.cli.opening import add_path, add_timeout, looking
from cowdb.cli.output import FINDINGS, FINE, size_text
from cowdb.cli.outputfile import OutputFile
from cowdb.cli.reportfacts import Survey, gather
from cowdb.cli.reportholders import holders
from cowdb.cli.reporthtml import BEGINNING, html
from cowdb.cli.stat import every_tree, state_of

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
    target = OutputFile(args.output, "report", (BEGINNING,), force=args.force)
    target.refuse()
    with looking(args.file, args.timeout) as look:
        state = state_of(look, out)
        trees, broken = every_tree(state)
        survey = Survey(state, trees, holders(args.file, shared=not look.problem))
        with out.progress("walking", "pages") as tick:
            survey.take(tick)
        survey.judge(look, broken)
        facts = gather(args.file, look, survey, out)
    page = html(facts)
    with target.writing() as file:
        file.write(page)
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
