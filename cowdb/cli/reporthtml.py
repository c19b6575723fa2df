"""The page of a report: template, style, script and facts put together.

    <meta Content-Security-Policy>   nothing is loaded; the one script and the one style, by their hashes, and no other
    <style> report.css
    <script type="application/json"> the facts, with < > & escaped
    <script> report.js, ...          builds the page, with textContent alone

So no key, name or message can become markup: not by the parser, since no ``<`` is in the
facts; not by the script, which makes no markup out of text; and if one did, it would not be run.
"""

from __future__ import annotations

import base64
import hashlib
import json
from importlib import resources
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["BEGINNING", "html"]

BEGINNING: Final = b"<!doctype html>\n<!-- a report of cowdb -->\n"
"""What every report begins with, and by which an old one is known."""

_SCRIPTS: Final = ("report.js", "reportmap.js", "reporttree.js", "reportsums.js")
"""The parts of the script; each uses what stands in those before it."""

_ESCAPED: Final = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026"}


def html(facts: Mapping[str, Any]) -> bytes:
    """The page that shows these facts, in ASCII. O(facts)."""
    style, script = _part("report.css"), "".join(map(_part, _SCRIPTS))
    data = json.dumps(facts, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    for char, escape in _ESCAPED.items():
        data = data.replace(char, escape)
    policy = (
        f"default-src 'none'; style-src '{_hash(style)}'; script-src '{_hash(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    fields = {"policy": policy, "style": style, "data": data, "script": script}
    # Cut at the marks once: what is put in is not searched for marks again.
    pieces = _part("report.html").split("@@")
    filled = [fields[piece] if index % 2 else piece for index, piece in enumerate(pieces)]
    return BEGINNING + "".join(filled).encode("ascii")


def _part(name: str) -> str:
    return resources.files("cowdb.cli").joinpath(name).read_text("ascii")


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
