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
MORE: Final = "more"

COMMANDS: Final = (
    Command("info", LOOK, "what this file is: format, sizes, both meta pages, snapshots", "info"),
    Command("stat", LOOK, "how each tree uses its pages: depth, fill, overflow, bytes", "stat"),
    Command("trees", LOOK, "which trees there are", "trees"),
    Command("readers", LOOK, "who reads, and what that holds back", "readers"),
    Command("watch", LOOK, "live: commits, pages written, free and pinned space", "watch"),
    Command("top", LOOK, "the largest keys, values and prefixes", "top"),
    Command("get", DATA, "one value, or the entry at a rank", "get"),
    Command("put", DATA, "store one entry", "put"),
    Command("delete", DATA, "remove keys, a range of them, or a tree", "delete"),
    Command("scan", DATA, "the entries of a range, in key order", "scan"),
    Command("count", DATA, "how many entries a range has, or the rank of a key", "count"),
    Command("load", DATA, "store the entries of JSON Lines, CSV, or an mdb_dump", "load"),
    Command("dump", DATA, "write all entries as JSON Lines, CSV, or for mdb_load", "dump"),
    Command("import", DATA, "store what is in a file of LMDB or SQLite", "import_"),
    Command("bench", DATA, "measure this disk: cowdb beside LMDB and SQLite", "bench"),
    Command("pages", INSIDE, "one line a page: kind, tree, birth, fill, who refers to it", "pages"),
    Command("page", INSIDE, "one page: header, slots, cells, hex", "page"),
    Command("tree", INSIDE, "a tree, drawn", "tree"),
    Command("path", INSIDE, "the pages that a lookup visits, and why", "path"),
    Command("free", INSIDE, "the free pages, and which snapshot holds each run back", "free"),
    Command("diff", INSIDE, "what the newest state changed: the two meta pages compared", "diff"),
    Command("report", INSIDE, "a page for the browser: map, trees, histograms, free space", "report"),
    Command("check", CARE, "is it sound? all invariants, both meta pages; unreachable keys", "check"),
    Command("copy", CARE, "a hot copy, page by page, while others go on", "copy"),
    Command("compact", CARE, "all entries in a new, dense file", "compact"),
    Command("recover", CARE, "save out of a damaged file what is whole, and say what is lost", "recover"),
    Command("surgery", CARE, "in a copy: choose the other meta page, make the free list anew", "surgery"),
    Command("completion", MORE, "teach your shell the commands: bash, zsh or fish", "completion"),
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
