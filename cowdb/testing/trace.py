"""The record of a disk: every operation that a crash could fall between.

The trace is a list of these, in the order in which they took effect.  Files are
known by number, since names come and go.  A flush has two ends, because stores
by other threads may fall between them; it covers those before its beginning.

    Create 1 "a-new0" | Write 1 @0 | FlushBegin | FlushEnd | Link "a" | Remove "a-new0" | FlushDirectory
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Create", "FlushBegin", "FlushDirectory", "FlushEnd", "FlushFailed", "Link", "Operation", "Remove",
           "Resize", "Write"]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Create:
    """An empty file appeared under a path."""

    file: int
    path: str
    mode: int


@dataclass(frozen=True, slots=True)
class Write:
    """One buffer of a `write` call: bytes stored at an offset, the file grown if they lie past its end."""

    file: int
    offset: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Resize:
    """The file was cut or grown to a size in bytes."""

    file: int
    size: int


@dataclass(frozen=True, slots=True)
class FlushBegin:
    """A flush was asked for; `flush` is its number on this disk."""

    file: int
    flush: int


@dataclass(frozen=True, slots=True)
class FlushEnd:
    """That flush is done: all stores before its beginning are durable."""

    file: int
    flush: int


@dataclass(frozen=True, slots=True)
class FlushFailed:
    """That flush failed: each store before its beginning is durable or lost, for good."""

    file: int
    flush: int


@dataclass(frozen=True, slots=True)
class Link:
    """A file got a second name."""

    file: int
    source: str
    target: str


@dataclass(frozen=True, slots=True)
class Remove:
    """A name of a file went away."""

    file: int
    path: str


@dataclass(frozen=True, slots=True)
class FlushDirectory:
    """All names in a directory are durable as they are."""

    directory: str


Operation = Create | Write | Resize | FlushBegin | FlushEnd | FlushFailed | Link | Remove | FlushDirectory
