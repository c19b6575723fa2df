"""Charts as SVG, drawn with matplotlib: dots beside a line of reference, and lines.

A chart is small, the same for the same figures, and its text stays text.  Without matplotlib there are no charts, and
`available` says so.
"""

from __future__ import annotations

import importlib.util
import io
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Point = tuple[float, float]
Ratios = Sequence[float]

COLOURS = ("#d55e00", "#e69f00", "#0072b2", "#009e73", "#cc79a7", "#56b4e9")
"""Okabe and Ito's, which colour-blind people can tell apart."""
MARKS = "oDsv^P"


def available() -> bool:
    """Whether charts can be drawn here."""
    return importlib.util.find_spec("matplotlib") is not None


def chart(name: str, draw: Callable[[], bytes]) -> dict[str, bytes]:
    """One chart under its file name, if charts can be drawn."""
    return {name: draw()} if available() else {}


def dots(title: str, label: str, rows: Mapping[str, Mapping[str, Ratios]], reference: str) -> bytes:
    """A line a row and a mark a series at the median of its ratios, with their spread; 1 is `reference`."""
    series = list(dict.fromkeys(name for row in rows.values() for name in row))
    figure, axes = _figure(0.34 * len(rows) + 1.5)
    for index, name in enumerate(series):
        colour = COLOURS[index % len(COLOURS)]
        shift = 0.5 * (index / max(len(series) - 1, 1) - 0.5)
        places = [place + shift for place, row in enumerate(rows.values()) if name in row]
        ratios = [row[name] for row in rows.values() if name in row]
        axes.hlines(places, [min(r) for r in ratios], [max(r) for r in ratios], colors=colour, linewidth=1)
        middle = [statistics.median(r) for r in ratios]
        mark = MARKS[index % len(MARKS)]
        axes.plot(middle, places, mark, color=colour, markersize=5, label=name)
    axes.axvline(1, color="#444444", linewidth=1.2)
    axes.set_xscale("log")
    axes.set_yticks(range(len(rows)), list(rows))
    axes.set_ylim(len(rows) - 0.5, -0.5)
    ends = [ratio for row in rows.values() for ratios in row.values() for ratio in ratios]
    _finer(axes.xaxis, ends)
    _plain_numbers(axes.xaxis)
    axes.set_xlabel(label)
    axes.grid(visible=True, axis="x", linewidth=0.4, color="#cccccc")
    axes.set_title(f"{title} (1 = {reference})", fontsize=11)
    axes.legend(
        fontsize=8, loc="upper center", bbox_to_anchor=(0.4, -0.55 / (0.34 * len(rows))), ncols=6, frameon=False
    )
    return _svg(figure)


def lines(
    title: str,
    across: str,
    up: str,
    series: Mapping[str, Sequence[Point]],
    *,
    logarithmic: str = "",
    name_x: Callable[[float], str] | None = None,
    name_y: Callable[[float], str] | None = None,
) -> bytes:
    """A line a series; `logarithmic` has the letters of the axes that are ("x", "y", "xy")."""
    figure, axes = _figure(3.6)
    for index, (name, points) in enumerate(series.items()):
        axes.plot(
            [x for x, _ in points],
            [y for _, y in points],
            marker=MARKS[index % len(MARKS)],
            color=COLOURS[index % len(COLOURS)],
            markersize=4,
            linewidth=1.4,
            label=name,
        )
    for place, (letter, axis, set_scale, name_of) in enumerate(
        (("x", axes.xaxis, axes.set_xscale, name_x), ("y", axes.yaxis, axes.set_yscale, name_y))
    ):
        if letter in logarithmic:
            set_scale("log")
            _finer(axis, [point[place] for points in series.values() for point in points])
        _plain_numbers(axis, name_of, logarithmic=letter in logarithmic)
    if "y" not in logarithmic:
        axes.set_ylim(bottom=0)
    axes.set_xlabel(across)
    axes.set_ylabel(up)
    axes.grid(visible=True, linewidth=0.4, color="#cccccc")
    axes.set_title(title, fontsize=11)
    axes.legend(fontsize=8, frameon=False)
    return _svg(figure)


def _figure(height: float) -> tuple[Any, Any]:
    from matplotlib.figure import Figure  # noqa: PLC0415 - only where there are charts

    figure = Figure(figsize=(7.6, height))
    return figure, figure.subplots()


def _finer(axis: Any, values: Sequence[float]) -> None:
    """Label 2 and 5 as well on a logarithmic `axis` that is short."""
    from matplotlib.ticker import LogLocator  # noqa: PLC0415

    if values and max(values) < 50 * min(values):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))


def _plain_numbers(axis: Any, name: Callable[[float], str] | None = None, *, logarithmic: bool = True) -> None:
    """Label `axis` with 0.5 and 20, not with powers."""
    from matplotlib.ticker import FuncFormatter, NullFormatter  # noqa: PLC0415

    axis.set_major_formatter(FuncFormatter(lambda value, _: name(value) if name else f"{value:,.5g}"))
    if logarithmic:
        axis.set_minor_formatter(NullFormatter())


def _svg(figure: Any) -> bytes:
    import matplotlib as mpl  # noqa: PLC0415

    buffer = io.BytesIO()
    settings = {"svg.fonttype": "none", "svg.hashsalt": "cowdb", "font.family": "sans-serif"}
    with mpl.rc_context(settings):
        figure.savefig(buffer, format="svg", bbox_inches="tight", metadata={"Date": None, "Creator": None})
    # Trailing blanks would be noise in the history of the charts.
    return b"\n".join(line.rstrip() for line in buffer.getvalue().splitlines()) + b"\n"
