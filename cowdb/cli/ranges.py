"""Ranges of keys and keys themselves, as arguments of the commands that work on data.

--start a --stop m      a <= key < m
--prefix user:          the keys that begin so; with --start and --stop, what is in both
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cowdb.cli.data import given
from cowdb.cli.output import USAGE, CommandError
from cowdb.cursor import after_prefix

if TYPE_CHECKING:
    import argparse

__all__ = ["add_hex", "add_range", "given_key", "mix", "range_of"]


def add_hex(parser: argparse.ArgumentParser) -> None:
    """Add ``--hex``, ``args.hex``: how keys and values are typed."""
    parser.add_argument(
        "--hex",
        action="store_true",
        help=r"keys and values are typed as hex (default: as text, with \xNN, \n, \t, \r, \0 and \\)",
    )


def add_range(parser: argparse.ArgumentParser, title: str = "which keys (default: all)") -> None:
    """Add ``--prefix``, ``--start``, ``--stop`` and ``--hex``; `range_of` reads them."""
    group = parser.add_argument_group(title)
    group.add_argument("--prefix", "-p", metavar="KEY", help="those that begin with it")
    group.add_argument("--start", metavar="KEY", help="from this key on")
    group.add_argument("--stop", metavar="KEY", help="up to this key, which is left out")
    add_hex(parser)


def mix(parser: argparse.ArgumentParser) -> None:
    """Let options stand between FILE and an argument that may be left out, as in ``get FILE --tree t KEY``.

    By itself argparse takes such an argument for left out as soon as it meets the option.
    """
    plain = parser.parse_known_args

    def parse(args: Any = None, namespace: Any = None) -> Any:
        setattr(parser, "parse_known_args", plain)  # noqa: B010 - it is a method; what follows calls it twice
        try:
            return parser.parse_known_intermixed_args(args, namespace)
        finally:
            setattr(parser, "parse_known_args", parse)  # noqa: B010 - the same

    setattr(parser, "parse_known_args", parse)  # noqa: B010 - the same


def given_key(args: argparse.Namespace, text: str) -> bytes:
    """The bytes of a key or value that was typed; `CommandError` if it cannot be read."""
    try:
        return given(text, "hex" if args.hex else "text")
    except ValueError as error:
        raise CommandError(str(error), USAGE) from None


def range_of(args: argparse.Namespace) -> tuple[bytes | None, bytes | None]:
    """The half-open range of keys that the arguments mean; None: no bound."""
    low = None if args.start is None else given_key(args, args.start)
    high = None if args.stop is None else given_key(args, args.stop)
    if args.prefix is not None:
        stem = given_key(args, args.prefix)
        end = after_prefix(stem)
        low = stem if low is None else max(low, stem)
        if end is not None:
            high = end if high is None else min(high, end)
    return low, high
