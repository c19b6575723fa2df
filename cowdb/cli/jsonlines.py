r"""Entries as JSON Lines: one object a line, exact for any bytes.

    {"key": "ada", "value": "Angus"}                               of the main tree
    {"tree": "cows", "key": "ada", "value": "Angus"}               of a named tree
    {"key": {"base64": "AAEC/w=="}, "value": ""}                   bytes that are no UTF-8
    {"tree": "empty"}                                              a tree, that there is such a one

A string stands for its UTF-8.  So bytes that are UTF-8 are written as a
string, all others as an object with their base64; {"hex": "00ff"} is taken,
too.  What was written reads as the same bytes, and each way of reading has one
meaning only.

Documents that were not written by cowdb are read with the names of their own
members: the key is one of them, the value another, or the whole line.
"""

from __future__ import annotations

import binascii
import json
from json.encoder import encode_basestring, encode_basestring_ascii
from typing import TYPE_CHECKING, Any, Final

from cowdb.cli.lines import BadInputError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from cowdb.cli.formats import Entry
    from cowdb.cli.lines import Lines, OnBad

__all__ = ["read_documents", "read_json_lines", "write_json_lines"]

_MEMBERS: Final = {"tree", "key", "value"}
_KINDS: Final = {bool: "true or false", int: "a number", float: "a number", list: "an array", dict: "an object"}
_BLANK: Final = " \t\r\n"


def write_json_lines(tree: str | None, items: Iterable[tuple[bytes, bytes]], *, ascii_only: bool) -> Iterator[str]:
    """The lines of `items`; `ascii_only` escapes all but ASCII, for a terminal."""
    quote = encode_basestring_ascii if ascii_only else encode_basestring
    head = "{" if tree is None else f'{{"tree": {quote(tree)}, '

    def form(data: bytes) -> str:
        try:
            return quote(data.decode())
        except UnicodeDecodeError:
            return f'{{"base64": "{binascii.b2a_base64(data, newline=False).decode()}"}}'

    for key, value in items:
        # Most bytes are text or are not: the exception is left to the function.
        try:
            yield f'{head}"key": {quote(key.decode())}, "value": {quote(value.decode())}}}\n'
        except UnicodeDecodeError:
            yield f'{head}"key": {form(key)}, "value": {form(value)}}}\n'


def _parse(line: bytes, number: int, scan: Any) -> dict[str, Any] | None:
    """The object of one line, None for a blank one; BadInputError."""
    try:
        text = line.decode()
        if number == 1:
            text = text.removeprefix("\ufeff")
        text = text.strip(_BLANK)
        if not text:
            return None
        found, end = scan(text, 0)
    except UnicodeDecodeError as error:
        raise BadInputError(number, f"it is no UTF-8 (byte {error.start + 1})") from None
    except StopIteration as error:
        raise BadInputError(number, f"it is no JSON (character {error.value + 1})") from None
    except json.JSONDecodeError as error:
        raise BadInputError(number, f"it is no JSON: {error.msg} (character {error.pos + 1})") from None
    except RecursionError:
        raise BadInputError(number, "it is nested too deeply") from None
    except ValueError as error:  # a number with thousands of digits
        raise BadInputError(number, f"it is no JSON: {error}") from None
    if end != len(text):
        raise BadInputError(number, f"after the JSON there is more (character {end + 1})")
    if found.__class__ is not dict:
        raise BadInputError(number, f"it is {_kind(found)}, not an object")
    return found


def _kind(found: object) -> str:
    return "text" if isinstance(found, str) else _KINDS.get(type(found), "null")


def _bytes(found: Any, what: str) -> bytes:
    """The bytes that a string or an object with base64 or hex stands for; ValueError."""
    if found.__class__ is str:
        try:
            return found.encode()
        except UnicodeEncodeError:
            raise ValueError(f"its {what} has half of a surrogate pair, which no UTF-8 has") from None
    if found.__class__ is dict and len(found) == 1:
        ((form, digits),) = found.items()
        if form in ("base64", "hex") and isinstance(digits, str):
            try:
                return binascii.a2b_base64(digits, strict_mode=True) if form == "base64" else binascii.unhexlify(digits)
            except ValueError as error:
                raise ValueError(f"the {form} of its {what} is broken: {error}") from None
    raise ValueError(f'its {what} is {_kind(found)}; it takes text or {{"base64": "..."}}')


def read_json_lines(lines: Lines, bad: OnBad) -> Iterator[Entry]:
    """The entries of lines that `write_json_lines` wrote, or others in the same form."""
    scan = json.JSONDecoder().scan_once  # type: ignore[attr-defined]  # `decode` would look for blanks once more
    for line in lines:
        try:
            found = _parse(line, lines.number, scan)
            if found is None:
                continue
            entry = _quick_entry(found) or _entry(found)
        except BadInputError as error:
            bad(error)
        except ValueError as error:
            bad(BadInputError(lines.number, str(error)))
        else:
            yield entry


def _quick_entry(found: dict[str, Any]) -> Entry | None:
    """The entry of an object that has a text key and a text value and nothing else, as nearly all have."""
    if len(found) == 2:
        key, value = found.get("key"), found.get("value")
        if key.__class__ is str and value.__class__ is str:
            try:
                return None, key.encode(), value.encode()
            except UnicodeEncodeError:
                return None  # `_entry` has the sentence
    return None


def _entry(found: dict[str, Any]) -> Entry:
    """The entry of one object, looked at with care; ValueError."""
    for name in found:
        if name not in _MEMBERS:
            raise ValueError(
                f"it has a member {name!r}, and takes key, value and tree; for other members name the key's with --key"
            )
    tree = found.get("tree")
    if tree is not None:
        if not isinstance(tree, str) or not tree:
            raise ValueError("its tree is not a name")
        _bytes(tree, "tree")
        if len(found) == 1:
            return tree, None, b""
    for name in ("key", "value"):
        if name not in found:
            raise ValueError(f"it has no {name}")
    return tree, _bytes(found["key"], "key"), _bytes(found["value"], "value")


def read_documents(lines: Lines, bad: OnBad, key_name: str, value_name: str | None) -> Iterator[Entry]:
    """Entries of any JSON objects: the key is the member `key_name`, the value a member or else the whole line."""
    scan = json.JSONDecoder().scan_once  # type: ignore[attr-defined]  # see above
    for line in lines:
        try:
            found = _parse(line, lines.number, scan)
            if found is None:
                continue
            key = _plain(found, key_name)
            value = line.strip().removeprefix(b"\xef\xbb\xbf") if value_name is None else _plain(found, value_name)
        except BadInputError as error:
            bad(error)
        except ValueError as error:
            bad(BadInputError(lines.number, str(error)))
        else:
            yield None, key, value


def _plain(found: dict[str, Any], name: str) -> bytes:
    """A member as bytes: text as UTF-8, a whole number in decimal digits, all else as JSON; no key is made of null."""
    if name not in found:
        raise ValueError(f"it has no member {name!r}")
    value = found[name]
    if value is None:
        raise ValueError(f"its {name!r} is null")
    if value.__class__ is str:
        return _bytes(value, repr(name))
    try:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeEncodeError:  # half of a surrogate pair: JSON can say that in ASCII
        return json.dumps(value, separators=(",", ":")).encode()
