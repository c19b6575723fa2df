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
from cowdb.cli.output import FINDINGS, FINE, USAGE, CommandError, counted, size_text
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
pages, coloured by kind, tree, fill or age; the trees, to zoom and click through;
how full the pages are and how long keys and values; the free pages and who holds
them back. It has the separators of branches in it, which are pieces of keys, but
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
    parser.add_argument(
        "output", metavar="OUTPUT", help="the page to write, such as app.html; - is the standard output"
    )
    parser.add_argument("--force", action="store_true", help="replace OUTPUT, if it is a report from before")
    add_timeout(parser)


def run(args: argparse.Namespace, out: Output) -> int:
    """See `cowdb.cli`."""
    target = None if args.output == "-" else OutputFile(args.output, "report", (BEGINNING,), force=args.force)
    if target is not None:
        target.refuse()
    elif out.terminal:
        raise CommandError("a report is a page for a browser, not for a terminal: name a file to write", USAGE)
    with looking(args.file, args.timeout) as look:
        state = state_of(look, out)
        trees, broken = every_tree(state)
        survey = Survey(state, trees, holders(args.file, shared=not look.problem))
        with out.progress("walking", "pages") as tick:
            survey.take(tick)
        survey.judge(look, broken)
        facts = gather(args.file, look, survey, out)
    page = html(facts)
    if target is None:
        out.raw(page)
    else:
        with target.writing() as file:
            file.write(page)
    _tell(args, out, survey, facts["problems"], len(page))
    return FINDINGS if survey.damage or survey.problems else FINE


def _tell(args: argparse.Namespace, out: Output, survey: Survey, problems: list[str], size: int) -> None:
    """What was written, and what is wrong; on the error output if the page itself went to the other one."""
    to_output = args.output == "-"

    def say(text: str, style: str | None = None) -> None:
        if to_output:
            out.note(text)
        else:
            out.line(text, style)

    transaction = survey.state.meta.transaction
    if out.machine and not to_output:
        answer: dict[str, Any] = {
            "path": os.path.abspath(args.file),
            "report": os.path.abspath(args.output),
            "size": size,
            "transaction": transaction,
            "pages": survey.pages,
            "damaged_pages": len(survey.damage),
            "problems": problems,
        }
        out.document(answer)
    else:
        where = "the standard output" if to_output else args.output
        say(f"{counted(survey.pages, 'page')} of transaction {transaction} in {where}, {size_text(size)}")
        damaged = len(survey.damage)
        if damaged:
            them = "it" if damaged == 1 else "them"
            say(f"{counted(damaged, 'damaged page')}: the report lists {them}", "bold red")
    for problem in problems[:20]:
        out.note(problem)
