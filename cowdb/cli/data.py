r"""Keys and values as people see and type them.

They are bytes, and a terminal must never get bytes of a file as they are: an
escape sequence in a value could rewrite the screen.  So what is shown is

    text      UTF-8 that prints, and \xNN for each byte of what does not; \\ for \
    hex       two digits a byte
    redacted  <12 bytes>: for output that others may read

The text form can be typed in again: `given` undoes what `shown` did, so a key
that was copied from a table finds its entry.
"""

from __future__ import annotations

import os
import re
from typing import Final

__all__ = ["given", "shown", "shown_text"]

_SIMPLE: Final = {"n": b"\n", "t": b"\t", "r": b"\r", "0": b"\0", "\\": b"\\"}
_ESCAPE: Final = re.compile(r"\\(x[0-9a-fA-F]{2}|[ntr0\\]|.|$)", re.DOTALL)


def shown(data: bytes, how: str = "text", limit: int | None = None) -> str:
    """`data` as ``"text"``, ``"hex"`` or ``"redacted"``; cut to `limit` characters, with "..." then. O(shown)."""
    if how == "redacted":
        return f"<{len(data)} byte{'' if len(data) == 1 else 's'}>"
    if limit is not None and len(data) > limit:  # each byte gives a character at least, or a quarter of one
        head = data[: 4 * limit]
        cut = len(head) < len(data)
    else:
        head, cut = data, False
    text = head.hex() if how == "hex" else _text(head)
    if limit is not None and (cut or len(text) > limit):
        return text[: max(limit - 3, 0)] + "..."
    return text


def _text(data: bytes) -> str:
    try:
        text = data.decode()
    except UnicodeDecodeError:
        text = data.decode(errors="surrogateescape")
    if text.isprintable() and "\\" not in text:
        return text
    return text.translate(_shown_characters)


class _Shown(dict[int, str]):
    """How each character is shown, by its number, for `str.translate`; found out when one comes up."""

    _MOST = 4096

    def __missing__(self, code: int) -> str:
        char = chr(code)
        if char == "\\":
            text = "\\\\"
        elif char.isprintable():
            text = char
        else:
            text = _escaped(char)
        if len(self) < self._MOST:
            self[code] = text
        return text


_shown_characters: Final = _Shown()


def _escaped(char: str) -> str:
    try:
        raw = os.fsencode(char)  # what stood for a byte in a path or an argument becomes that byte again
    except UnicodeEncodeError:
        raw = char.encode(errors="surrogatepass")
    return "".join([f"\\x{byte:02x}" for byte in raw])


def shown_text(text: str) -> str:
    """Text that came from outside (a path, a name, a message), safe for a terminal; lines stay lines."""
    if text.isprintable():
        return text
    return "".join([char if char == "\n" or char.isprintable() else _escaped(char) for char in text])


def given(text: str, how: str = "text") -> bytes:
    r"""The bytes that a person typed as ``"text"`` (with \xNN, \n, \t, \r, \0 and \\) or ``"hex"``.

    Raises `ValueError` with a sentence.
    """
    if how == "hex":
        try:
            return bytes.fromhex(text)
        except ValueError:
            raise ValueError(f"{text!r} is no hex: it takes two digits 0-9 or a-f for each byte") from None
    if "\\" not in text:
        return os.fsencode(text)
    pieces: list[bytes] = []
    at = 0
    for found in _ESCAPE.finditer(text):
        pieces.append(os.fsencode(text[at : found.start()]))
        what = found[1]
        if len(what) == 3:
            pieces.append(bytes((int(what[1:], 16),)))
        elif what in _SIMPLE:
            pieces.append(_SIMPLE[what])
        else:
            raise ValueError(rf"{text!r} has a \ before {what!r}: it takes \xNN, \n, \t, \r, \0, or \\ for itself")
        at = found.end()
    pieces.append(os.fsencode(text[at:]))
    return b"".join(pieces)
