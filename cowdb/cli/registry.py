"""Which commands there are: one line each, in the order in which help shows them.

A command's module is imported only when the command is used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol, cast

if TYPE_CHECKING:
    import argparse

    from cowdb.cli.output import Output

__all__ = ["COMMANDS", "Command", "overview"]


class Module(Protocol):
    """What a subcommand's module has; see `cowdb.cli`."""

    DESCRIPTION: str
    EXAMPLES: tuple[tuple[str, str], ...]

    def arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the command's arguments."""

    def run(self, args: argparse.Namespace, out: Output) -> int:
        """Do it; the exit code."""


class Command(NamedTuple):
    """A subcommand: its name, its group in the help, one line that says what it does, its module."""

    name: str
    group: str
    summary: str
    module: str

    def load(self) -> Module:
        """Import its module."""
        return cast("Module", importlib.import_module(f"cowdb.cli.{self.module}"))


LOOK: Final = "look"
DATA: Final = "data"
INSIDE: Final = "inside"
CARE: Final = "care"

COMMANDS: Final = (
    Command("info", LOOK, "what this file is: format, sizes, both meta pages, what snapshots pin", "info"),
)


def overview() -> str:
    """All commands by group, for the help."""
    lines = ["commands:"]
    group = None
    for command in COMMANDS:
        if command.group != group:
            group = command.group
            lines.append(f"  {group}")
        lines.append(f"    {command.name:<11} {command.summary}")
    return "\n".join(lines)
