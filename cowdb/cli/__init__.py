r"""The command ``cowdb``: one module a subcommand, and what they share.

    main(argv)  parse --> open the output --> run --> exit code
                  |                            |
              registry: which commands     cowdb/cli/info.py, page.py, ...
              there are                        |
                                           output   text, tables, JSON, progress
                                           data     keys and values as people see them
                                           opening  which state is read, and how safely

**A subcommand** is a module of this package and a line in `registry.COMMANDS`
(its name, its group, one line of help, its module).  Only the module of the command that was given is
imported, so that ``cowdb info`` stays quick; a module imports what is heavy
inside of its functions.  It has

    DESCRIPTION: str                  a few sentences for the head of its help
    EXAMPLES: ((command, what it does), ...)   at least one, for the end of its help
    def arguments(parser) -> None     adds its arguments to an `argparse.ArgumentParser`
    def run(args, out) -> int         does it; the exit code

`run` gets the parsed arguments and an `output.Output`, the only way to say
something: nothing else prints.  Each parser has ``--format``, ``--show``,
``--color`` and ``--quiet`` already.  Every command that shows something gives the same in JSON: build
plain dictionaries first, and let `Output` show them.

**Exit codes**: `FINE` 0, `FINDINGS` 1 (also: damage was met, or no such key or
tree), `USAGE` 2, `NOT_A_DATABASE` 3, `LOCKED` 4, `IO_ERROR` 5.  Ctrl-C gives 130,
and a closed pipe 141, as shells have it.

**Errors**: raise `output.CommandError(sentence, code)`, or let `cowdb.Error` and
`OSError` pass: `main` turns each into one sentence and the right code.

**Reading commands** use `opening.reading(path)`.  It takes part in the sharing of
the file, so that its snapshot is pinned, but reads pages with `pread` and verifies
each; a damaged or a shrinking file can give an error, never a signal.
Commands that write use `opening.writing`.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from typing import TYPE_CHECKING, NoReturn

from cowdb.cli import registry
from cowdb.cli.output import FINDINGS, IO_ERROR, LOCKED, NOT_A_DATABASE, USAGE, CommandError, Output, shown_text
from cowdb.errors import (
    CorruptionError,
    Error,
    KeyNotFoundError,
    KeySizeError,
    LockTimeoutError,
    NotADatabaseError,
    ReadOnlyError,
    VersionError,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["build_parser", "main"]

INTERRUPTED = 130
BROKEN_PIPE = 141

_WITH_KEYS = ("get", "put", "delete", "path")
"""Commands with an argument KEY."""

EXIT_CODES = """exit codes:
  0 fine   1 findings, damage, or no such key or tree   2 wrong usage
  3 not a database   4 locked by others   5 error of the disk or file system
  130 stopped with Ctrl-C   141 nobody reads the output"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with the arguments `argv` (default: those of the process); its exit code."""
    arguments = _command_first(list(sys.argv[1:] if argv is None else argv))
    out: Output | None = None
    try:
        args = build_parser(_wanted(arguments)).parse_args(arguments)
        out = Output(
            format=args.format, show=args.show, color=args.color, quiet=args.quiet, stdout=sys.stdout, stderr=sys.stderr
        )
        code: int = args.run(args, out)
        out.close()
    except SystemExit as stop:  # argparse has said what it had to say
        return stop.code if isinstance(stop.code, int) else USAGE
    except BrokenPipeError:
        _silence(sys.stdout)
        return BROKEN_PIPE
    except KeyboardInterrupt:
        _say(out, "stopped")
        return INTERRUPTED
    except (CommandError, Error, OSError, MemoryError) as error:
        return _fail(out, error)
    return code


def build_parser(wanted: str | None = None) -> argparse.ArgumentParser:
    """The parser; only the command `wanted` knows its arguments then, None: all do.

    If there is such a command, the others are left out: a parser each would take
    longer than many a command itself.
    """
    parser = _Parser(
        prog="cowdb",
        description="See inside, check, move, repair and measure cowdb databases.",
        epilog=f"cowdb COMMAND --help has examples of each.\n\n{EXIT_CODES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="cowdb COMMAND ... | cowdb help [COMMAND] | cowdb --version",
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="say which cowdb this is, and which page kernel")
    parser.wanted = wanted
    commands = parser.add_subparsers(
        metavar="COMMAND", dest="command", required=True, help=argparse.SUPPRESS, parser_class=_Parser, prog="cowdb"
    )
    groups = parser.epilog or ""
    parser.epilog = f"{registry.overview()}\n\n{groups}"
    known = any(command.name == wanted for command in registry.COMMANDS)
    for command in registry.COMMANDS:
        if wanted is None or wanted == command.name:
            _add(commands, command)
        elif not known:
            commands.add_parser(command.name, add_help=False)
    helper = commands.add_parser("help", help="the help of a command", add_help=False)
    helper.add_argument("topic", nargs="?", metavar="COMMAND")
    helper.set_defaults(run=_help, format="text", show="text", color="auto", quiet=False)
    return parser


def _add(commands: argparse._SubParsersAction[_Parser], command: registry.Command) -> None:
    module = command.load()
    examples = "\n".join(f"  {line}\n      {what}" for line, what in module.EXAMPLES)
    parser = commands.add_parser(
        command.name,
        help=command.summary,
        description=f"{command.summary[0].upper()}{command.summary[1:]}.\n\n{module.DESCRIPTION.strip()}",
        epilog=f"examples:\n{examples}\n\n{EXIT_CODES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    module.arguments(parser)
    shared = parser.add_argument_group("how it is shown")
    shared.add_argument(
        "--format",
        choices=("text", "json", "jsonl"),
        default="text",
        help="text for people (default), one JSON document, or a JSON document a line; "
        "keys and values are escaped there as in the text: take dump, or --show hex, for exact bytes",
    )
    shared.add_argument(
        "--show",
        choices=("text", "hex", "redacted"),
        default="text",
        help=r"keys and values as text with \xNN for what is none (default), as hex, or only their lengths",
    )
    shared.add_argument(
        "--color",
        choices=("auto", "always", "never"),
        default="auto",
        help="colour: on a terminal (default), always or never; NO_COLOR is obeyed",
    )
    shared.add_argument("--quiet", "-q", action="store_true", help="no progress and no remarks on the error output")
    parser.set_defaults(run=module.run)


class _Parser(argparse.ArgumentParser):
    """Complains in one sentence, and says where help is."""

    wanted: str | None = None
    """The command that is called."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong with the arguments; exit code 2."""
        known = [command.name for command in registry.COMMANDS]
        if "invalid choice" in message and "argument COMMAND" in message:
            given = message.partition("'")[2].partition("'")[0]
            near = _nearest(given, known)
            message = f"there is no command {given!r}" + (f"; did you mean {near!r}?" if near else "")
        elif "required: COMMAND" in message:
            self.print_help(sys.stderr)
            self.exit(USAGE)
        prog = self.prog
        if message.startswith("unrecognized arguments") and self.wanted in known:
            prog = f"{prog} {self.wanted}"  # the command has left them over, and nobody else wants them
        message += _hint_for_keys(prog.rpartition(" ")[2], message)
        self.exit(USAGE, f"{prog}: {shown_text(message)}\n{prog} --help says more.\n")


def _hint_for_keys(command: str, message: str) -> str:
    """How a key is given that begins with a dash, where one was taken for an option, or may have been."""
    if command not in _WITH_KEYS:
        return ""
    taken = message.startswith("unrecognized arguments") and re.search(r" -(?!-)", message)
    if taken or (message.startswith("the following arguments are required") and "KEY" in message):
        return f"; a key that begins with - goes behind --, as in: cowdb {command} FILE -- -x"
    return ""


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: object, **__: object) -> None:
        print(version())  # noqa: T201 - the answer
        parser.exit()


def version() -> str:
    """One line: version, form of the page kernel, file format, Python."""
    import importlib.util  # noqa: PLC0415 - for this line alone
    import platform  # noqa: PLC0415

    import cowdb  # noqa: PLC0415
    from cowdb import format as fmt  # noqa: PLC0415

    form = "plain"
    if importlib.util.find_spec("cowdb.kernel") is not None:
        form = str(importlib.import_module("cowdb.kernel").FORM)
    return (
        f"cowdb {cowdb.__version__} ({form} kernel, file format {fmt.FORMAT_VERSION}), "
        f"{platform.python_implementation()} {platform.python_version()}"
    )


def _help(args: argparse.Namespace, _out: Output) -> int:
    parser = build_parser(args.topic)
    if args.topic in {None, "help"}:
        parser.print_help()
        return 0
    if args.topic not in {command.name for command in registry.COMMANDS}:
        raise CommandError(f"there is no command {args.topic!r}; cowdb help lists them", USAGE)
    parser.parse_args([args.topic, "--help"])
    return 0  # pragma: no cover - argparse has ended it


def _command_first(arguments: list[str]) -> list[str]:
    """What all commands share may stand before the command as well: ``cowdb --format json info FILE``."""
    place = 0
    while place < len(arguments):
        if arguments[place] in {"--format", "--show", "--color"}:
            place += 2
        elif arguments[place].startswith(("--format=", "--show=", "--color=", "--quiet", "-q")):
            place += 1
        else:
            before = [] if arguments[place] == "help" else arguments[:place]
            return [arguments[place], *before, *arguments[place + 1 :]]
    return []


def _wanted(arguments: Sequence[str]) -> str:
    """The command in the arguments, '' if there is none: the others need not be imported."""
    return next((word for word in arguments if not word.startswith("-")), "")


def _nearest(given: str, known: list[str]) -> str | None:
    import difflib  # noqa: PLC0415 - for a mistyped command alone

    return next(iter(difflib.get_close_matches(given, known, 1)), None)


# ---------------------------------------------------------------- errors


def _fail(out: Output | None, error: BaseException) -> int:
    sentence, code = explain(error)
    if os.environ.get("COWDB_DEBUG"):
        import traceback  # noqa: PLC0415 - for this alone

        traceback.print_exception(error)
    try:
        if out is not None:
            out.close(failed=True)
    except OSError:
        _silence(sys.stdout)
    _say(out, sentence)
    return code


def explain(error: BaseException) -> tuple[str, int]:
    """An error as one sentence and its exit code."""
    if isinstance(error, CommandError):
        return str(error), error.code
    if isinstance(error, (NotADatabaseError, VersionError)):
        return str(error), NOT_A_DATABASE
    if isinstance(error, LockTimeoutError):
        return f"{error}; try again later, or wait longer with --timeout", LOCKED
    if isinstance(error, CorruptionError):
        return f"{error}; cowdb check lists all damage, cowdb recover saves what can be saved", FINDINGS
    if isinstance(error, KeyNotFoundError):
        return f"there is no {error.key!r} in it", FINDINGS
    if isinstance(error, KeySizeError):
        return str(error), USAGE
    if isinstance(error, MemoryError):
        return "there is not enough memory for this", IO_ERROR
    if isinstance(error, ReadOnlyError):
        return (error.strerror or str(error)).replace(": open it with read_only=True", ""), IO_ERROR
    if isinstance(error, OSError) and not isinstance(error, Error) and error.strerror:
        return _of_the_system(error), IO_ERROR
    return str(error), IO_ERROR


def _of_the_system(error: OSError) -> str:
    name = os.fsdecode(error.filename) if isinstance(error.filename, (str, bytes)) else None
    if name is None:
        return f"the system says: {error.strerror}"
    folder = os.path.dirname(os.path.abspath(name))
    if isinstance(error, FileNotFoundError):
        return f"there is no file {name!r}" if os.path.isdir(folder) else f"there is no directory {folder!r}"
    if isinstance(error, PermissionError):
        there = os.path.lexists(name)
        return f"you may not read or write {name!r}" if there else f"you may not make a file in {folder!r}"
    if isinstance(error, IsADirectoryError):
        return f"{name!r} is a directory; name a file inside it"
    return f"{name!r}: {error.strerror}"


def _say(out: Output | None, sentence: str) -> None:
    """One sentence on the error output, if there still is one."""
    try:
        if out is not None:
            out.error(sentence)
        else:
            print(f"cowdb: {shown_text(sentence)}", file=sys.stderr)  # noqa: T201 - there is no output yet
    except (OSError, ValueError):
        _silence(sys.stderr)


def _silence(stream: object) -> None:
    """Nobody reads what we write: let the rest of it vanish, also what Python would flush at its end."""
    try:
        target = stream.fileno()  # type: ignore[attr-defined]
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, target)
        os.close(nowhere)
    except (OSError, ValueError, AttributeError):
        pass
