"""What a command says, for a person at a terminal, for a pipe, or for a program.

    command --> Output --+--> text at a terminal   rich, where it is installed: tables, colour, progress
                         +--> text into a pipe     plain columns, nothing cut off
                         +--> json, jsonl          the same facts as documents

A command hands over plain dictionaries (`document`, `records`) or rows of them
(`table`).  Whatever came from a file is escaped here or by `Output.data`, so no
byte of a file reaches a terminal as a control character.  Results go to the
standard output; remarks, progress and errors to the error output.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import sys
import time
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol, TextIO

from cowdb.cli.data import shown, shown_text

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

__all__ = [
    "FINDINGS",
    "FINE",
    "IO_ERROR",
    "LOCKED",
    "NOT_A_DATABASE",
    "USAGE",
    "Column",
    "CommandError",
    "Output",
    "Progress",
    "are",
    "counted",
    "shown_text",
    "size_text",
    "time_text",
]

FINE: Final = 0
FINDINGS: Final = 1
USAGE: Final = 2
NOT_A_DATABASE: Final = 3
LOCKED: Final = 4
IO_ERROR: Final = 5

_ROWS_LAID_OUT: Final = 500
"""Rows that are gathered to find the width of the columns; longer tables stream on with those widths."""

_LEAST: Final = 16
"""Characters that a column of text keeps in a drawn table, if it needs them."""

_SOON: Final = 0.5
"""Seconds of work before progress is shown."""

_OFTEN: Final = 0.1
"""Seconds between two looks at the progress."""

_CELL: Final = 60
"""Characters of a key or value in a table at a terminal."""


class CommandError(Exception):
    """A command cannot go on: one sentence for a person, and the exit code."""

    def __init__(self, sentence: str, code: int = FINDINGS) -> None:
        super().__init__(sentence)
        self.code = code


class Column(NamedTuple):
    """A column of a table: the key in the rows, the title, and the kind of what is in it.

    Kinds: ``text``, ``data`` (bytes of a key or value), ``number``, ``size``
    (bytes), ``percent`` (a ratio), ``time`` (seconds since 1970).
    """

    key: str
    title: str
    kind: str = "text"


class Progress(Protocol):
    """Told how far a command is; shows rate and time left."""

    def __call__(self, done: int, total: int) -> None:
        """So much is done of so much (0: not known)."""


class Output:
    """See the module's text."""

    def __init__(
        self,
        *,
        format: str = "text",  # noqa: A002 - the option is called so
        show: str = "text",
        color: str = "auto",
        quiet: bool = False,
        stdout: TextIO | None = None,
        stderr: TextIO | None = None,
    ) -> None:
        self.format = format
        self.show = show
        self.quiet = quiet
        self._stdout = stdout or sys.stdout or _nowhere()
        self._stderr = stderr or sys.stderr or _nowhere()
        for stream in (self._stdout, self._stderr):
            with contextlib.suppress(AttributeError, ValueError):  # a stream that a test put there
                stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
        self.terminal = _is_terminal(self._stdout)
        plain = bool(os.environ.get("NO_COLOR")) or os.environ.get("TERM") == "dumb"
        self._color = color == "always" or (color == "auto" and self.terminal and not plain)
        self._rich: Any = self._console() if self.format == "text" and (self.terminal or self._color) else None

    def _console(self) -> Any:
        try:
            from rich.console import Console  # noqa: PLC0415 - an extra, and slow to import
        except ImportError:
            return None
        return Console(
            file=self._stdout, force_terminal=self.terminal or self._color, no_color=not self._color,
            highlight=False, markup=False, emoji=False, soft_wrap=False,
        )  # fmt: skip

    @property
    def machine(self) -> bool:
        """True if a program reads the output: documents and records are wanted, no text."""
        return self.format != "text"

    @property
    def fancy(self) -> bool:
        """True if the terminal can show box drawing characters."""
        return "utf" in (getattr(self._stdout, "encoding", None) or "").lower()

    @property
    def width(self) -> int:
        """Characters of a line: the terminal's, else 100."""
        if not self.terminal:
            return 100
        try:
            return max(os.get_terminal_size(self._stdout.fileno()).columns or 80, 40)
        except (OSError, ValueError):
            return 80

    def data(self, data: bytes, limit: int | None = None) -> str:
        """A key or value as ``--show`` wants it, safe for a terminal."""
        return shown(data, self.show, limit)

    def key(self, key: bytes, limit: int | None = None) -> str:
        """A key in a sentence: as `data`, but the empty one can be seen."""
        return self.data(key, limit) or "(the empty key)"

    # ------------------------------------------------------------ for programs

    def document(self, value: Mapping[str, Any]) -> None:
        """The one JSON document of a command; bytes are shown as ``--show`` wants it."""
        self._write(self._json(value, 2 if self.format == "json" else None) + "\n")

    def records(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Many JSON documents: a list, or one a line. They are written as they come."""
        if self.format == "jsonl":
            for row in rows:
                self._write(self._json(row) + "\n")
            return
        before = "["
        for row in rows:
            self._write(f"{before}\n  {self._json(row)}")
            before = ","
        self._write("[]\n" if before == "[" else "\n]\n")

    def _json(self, value: Mapping[str, Any], indent: int | None = None) -> str:
        """JSON whose strings are exact, but print: what does not is escaped the JSON way."""
        text = json.dumps(self._plain(value), indent=indent, ensure_ascii=False, allow_nan=False)
        if text.isprintable():
            return text
        return "".join([char if char.isprintable() or char == "\n" else json.dumps(char)[1:-1] for char in text])

    def _plain(self, value: Any) -> Any:
        if isinstance(value, (bytes, bytearray)):
            return self.data(bytes(value))
        if isinstance(value, dict):
            return {str(key): self._plain(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [self._plain(item) for item in value]
        return value

    # ------------------------------------------------------------ for people

    def line(self, text: str = "", style: str | None = None) -> None:
        """One line of text; `style` is rich's word for it (``bold``, ``red``, ``dim``...)."""
        text = shown_text(text)
        if self._rich is None or style is None:
            self._write(text + "\n")
            return
        self._rich.print(text, style=style, soft_wrap=True)

    def heading(self, text: str) -> None:
        """The title of a part, after an empty line."""
        self.line()
        self.line(text, "bold")

    def facts(self, facts: Iterable[tuple[str, str]]) -> None:
        """Pairs of a label and what it is, one a line, in two columns."""
        pairs = [(shown_text(label), shown_text(text)) for label, text in facts]
        width = max((len(label) for label, _ in pairs), default=0)
        for label, text in pairs:
            if self._rich is None:
                self._write(f"  {label:<{width}}  {text}\n")
            else:
                from rich.text import Text  # noqa: PLC0415 - an extra, and slow to import

                row = Text.assemble(("  " + label.ljust(width) + "  ", "cyan"), text)
                self._rich.print(row, soft_wrap=True)

    def table(self, columns: Sequence[Column], rows: Iterable[Mapping[str, Any]]) -> None:
        """Rows of dictionaries as a table, or as records. Memory does not grow with the rows."""
        if self.machine:
            self.records(rows)
            return
        flow = ([self.cell(column, row.get(column.key)) for column in columns] for row in rows)
        first = list(itertools.islice(flow, _ROWS_LAID_OUT + 1))
        if self._rich is not None and len(first) <= _ROWS_LAID_OUT and self._fits(columns, first):
            self._rich_table(columns, first)
            return
        titles = [column.title for column in columns]
        widths = [max(map(len, cells)) for cells in zip(titles, *first, strict=True)]
        right = [column.kind in {"number", "size", "percent"} for column in columns]
        for cells in itertools.chain([titles], first, flow):
            pieces = [
                cell.rjust(width) if to_right else cell.ljust(width)
                for cell, width, to_right in zip(cells, widths, right, strict=True)
            ]
            self._write("  ".join(pieces).rstrip() + "\n")

    def _fits(self, columns: Sequence[Column], rows: list[list[str]]) -> bool:
        """Whether a drawn table has room for its numbers, and for something of each text."""
        need = 0
        for index, column in enumerate(columns):
            width = max(len(column.title), *(len(row[index]) for row in rows), 1)
            need += 3 + (width if column.kind not in {"text", "data"} else min(width, _LEAST))
        return need <= int(self._rich.width)

    def _rich_table(self, columns: Sequence[Column], rows: list[list[str]]) -> None:
        from rich import box  # noqa: PLC0415 - an extra, and slow to import
        from rich.table import Table  # noqa: PLC0415
        from rich.text import Text  # noqa: PLC0415

        style = box.SIMPLE_HEAD if self.fancy else box.ASCII2
        table = Table(box=style, show_edge=False, pad_edge=False, header_style="bold")
        for column in columns:
            number = column.kind in {"number", "size", "percent"}
            table.add_column(
                column.title, justify="right" if number else "left", no_wrap=number or column.kind == "time",
                style="cyan" if column.kind == "data" else None, overflow="fold",
                min_width=min(max((len(row[len(table.columns)]) for row in rows), default=0), _LEAST),
            )  # fmt: skip
        for row in rows:
            table.add_row(*[Text(cell) for cell in row])
        self._rich.print(table)

    def cell(self, column: Column, value: Any) -> str:
        """A value of a table as text."""
        if value is None:
            return "-"
        if column.kind == "size":
            return size_text(value)
        if column.kind == "percent":
            return f"{100 * value:.1f} %"
        if column.kind == "time":
            return time_text(value)
        if column.kind == "number":
            return f"{value:,}" if self.terminal and isinstance(value, int) else str(value)
        if isinstance(value, (bytes, bytearray)):
            return self.data(bytes(value), _CELL if self.terminal else None)
        return shown_text(str(value)).replace("\n", " ")

    # ------------------------------------------------------------ bytes, remarks, the end

    def raw(self, data: bytes) -> None:
        """Bytes as they are, for a pipe or a file; never for a terminal."""
        assert not self.terminal
        self._stdout.flush()
        stream = getattr(self._stdout, "buffer", None)
        if stream is None:
            self._write(data.decode(errors="surrogateescape"))
        else:
            stream.write(data)

    def note(self, text: str) -> None:
        """A remark on the error output."""
        if not self.quiet:
            self._stdout.flush()
            self._stderr.write(shown_text(text) + "\n")

    def error(self, text: str) -> None:
        """Why the command ends, on the error output."""
        self._stderr.write(f"cowdb: {shown_text(text)}\n")
        self._stderr.flush()

    def flush(self) -> None:
        """Let what was said so far be seen."""
        self._stdout.flush()

    def close(self, *, failed: bool = False) -> None:  # noqa: ARG002 - what was begun stays as it is
        """The command is over. Raises `BrokenPipeError` if nobody listened."""
        self._stdout.flush()
        self._stderr.flush()

    def _write(self, text: str) -> None:
        self._stdout.write(text)

    # ------------------------------------------------------------ progress

    @contextlib.contextmanager
    def progress(self, what: str, unit: str = "pages") -> Iterator[Progress]:
        """A bar with rate and time left on the error output, if that is a terminal; else nothing is shown.

        ``with out.progress("checking") as tick: db.check(tick)``
        """
        if self.quiet or not _is_terminal(self._stderr):
            yield _no_progress
            return
        bar = _Bar(self._stderr, what, unit, plain=bool(os.environ.get("NO_COLOR")))
        try:
            yield bar
        finally:
            bar.clear()


def _rate_column(bars: Any, unit: str) -> Any:
    class Rate(bars.ProgressColumn):  # type: ignore[misc]  # a class of a module that may be missing
        def render(self, task: Any) -> Any:
            from rich.text import Text  # noqa: PLC0415 - an extra, and slow to import

            speed = task.finished_speed or task.speed
            return Text(f"{speed:,.0f} {unit}/s" if speed else f"{task.completed:,.0f} {unit}", style="dim")

    return Rate()


def _no_progress(done: int, total: int) -> None:
    """Nobody looks."""


class _Bar:
    """Progress at a terminal, from when it takes long: rich's bar, or one line that is written over again and again."""

    def __init__(self, stream: TextIO, what: str, unit: str, *, plain: bool) -> None:
        self._stream = stream
        self._what = what
        self._unit = unit
        self._plain = plain
        self._begun = time.monotonic()
        self._told = self._begun + _SOON - _OFTEN
        self._bars: Any = None
        self._task: Any = None
        self._shown = False

    def __call__(self, done: int, total: int) -> None:
        """Show it, unless that was a moment ago."""
        now = time.monotonic()
        if now - self._told < _OFTEN:
            return
        self._told = now
        if not self._shown:
            self._shown = True
            self._begin()
        if self._bars is not None:
            self._bars.update(self._task, completed=done, total=total or None)
            return
        rate = done / max(now - self._begun, 1e-9)
        text = f"{self._what}: {done:,}"
        if total:
            text += f" of {total:,} {self._unit}, {rate:,.0f}/s, {max(total - done, 0) / max(rate, 1e-9):.0f} s left"
        else:
            text += f" {self._unit}, {rate:,.0f}/s"
        self._stream.write(f"\r\x1b[K{text}")
        self._stream.flush()

    def _begin(self) -> None:
        try:
            import rich.progress as bars  # noqa: PLC0415 - an extra, and slow to import
            from rich.console import Console  # noqa: PLC0415
        except ImportError:
            return
        columns = [bars.TextColumn("{task.description}"), bars.BarColumn(), bars.TaskProgressColumn()]
        columns += [_rate_column(bars, self._unit), bars.TimeRemainingColumn()]
        console = Console(file=self._stream, no_color=self._plain)
        self._bars = bars.Progress(*columns, console=console, transient=True)
        self._task = self._bars.add_task(self._what, total=None)
        self._bars.start()

    def clear(self) -> None:
        """Take it away."""
        if self._bars is not None:
            self._bars.stop()
        elif self._shown:
            self._stream.write("\r\x1b[K")
            self._stream.flush()


# ---------------------------------------------------------------- words for numbers


def _nowhere() -> TextIO:
    """Stands for an output that was closed before we began, as in ``cowdb ... >&-``."""
    return open(os.devnull, "w", encoding="utf-8")


def _is_terminal(stream: TextIO) -> bool:
    try:
        return stream.isatty()
    except ValueError:  # closed
        return False


_PLURALS: Final = {"entry": "entries", "child": "children"}


def counted(number: int, what: str) -> str:
    """A number and what it counts: 0 pages, 1 page, 1,234 pages."""
    return f"{number:,} {what if number == 1 else _PLURALS.get(what, what + 's')}"


def are(number: int) -> str:
    """The verb that follows `counted`."""
    return "is" if number == 1 else "are"


def size_text(size: float) -> str:
    """A number of bytes for people: 512 B, 8.0 KiB, 1.2 GiB."""
    if size < 1024:
        return f"{size:.0f} B"
    for unit in ("KiB", "MiB", "GiB", "TiB", "PiB"):
        size /= 1024
        if size < 1023.95 or unit == "PiB":
            return f"{size:,.1f} {unit}"
    raise AssertionError


def time_text(seconds: float) -> str:
    """A time since 1970 as local date and time; what cannot be one, as a number."""
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))
    except (OverflowError, ValueError, OSError):
        return f"{seconds:g} s after 1970"
