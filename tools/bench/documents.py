"""Put outcomes into the documents: a part between two comments is replaced, all else is written by hand.

    <!-- begin peers goals -->     the name of a report or a section
    ... made by the benchmark ...
    <!-- end peers goals -->

Charts go beside the documents, into `charts/`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"
FILES = ("performance.md", "copy-on-write.md")
CHARTS = "charts"


def marked(text: str) -> list[str]:
    """The names of the parts that `text` has. Raises `ValueError` if a mark has no partner."""
    names = []
    open_name: str | None = None
    for kind, name in re.findall(r"^<!-- (begin|end) (.+) -->$", text, re.MULTILINE):
        if (kind == "begin") is not (open_name is None) or (kind == "end" and name != open_name):
            raise ValueError(f"the mark {kind} {name!r} has no partner")
        open_name = name if kind == "begin" else None
        if kind == "begin":
            names.append(name)
    if open_name is not None or len(set(names)) != len(names):
        raise ValueError(f"a part is not ended or is there twice: {names}")
    return names


def replaced(text: str, name: str, body: str) -> str:
    """`text` with `body` between the marks of `name`."""
    begin, end = f"<!-- begin {name} -->\n", f"<!-- end {name} -->"
    head, _, rest = text.partition(begin)
    _, _, tail = rest.partition(end)
    return f"{head}{begin}\n{body.strip()}\n\n{end}{tail}"


def write(parts: Mapping[str, str], charts: Mapping[str, bytes], docs: Path = DOCS) -> None:
    """Write each of `parts` where a document has its marks, and the charts. `KeyError` if a part has none."""
    texts = {docs / name: (docs / name).read_text(encoding="utf-8") for name in FILES}
    places = {name: path for path, text in texts.items() for name in marked(text)}
    homeless = sorted(parts.keys() - places.keys())
    if homeless:
        raise KeyError(f"no document has marks for: {', '.join(homeless)}")
    for name, body in parts.items():
        path = places[name]
        texts[path] = replaced(texts[path], name, body)
    for path, text in texts.items():
        path.write_text(text, encoding="utf-8")
    save(charts, docs / CHARTS)


def save(charts: Mapping[str, bytes], directory: Path) -> None:
    """Write the charts into `directory`."""
    if charts:
        directory.mkdir(parents=True, exist_ok=True)
    for name, chart in charts.items():
        (directory / name).write_bytes(chart)
