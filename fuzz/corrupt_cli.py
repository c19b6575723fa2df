"""The commands of ``cowdb`` as targets: each, on a real damaged file, ends with one of its exit codes.

Which commands there are is asked of the command's own registry, so a new one is
tried at once.  A command takes part if its arguments can be filled in and it is
fine with a sound file; what it says then is what it must say again, or refuse.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib
import io
import os
from typing import TYPE_CHECKING, Any, Final

from fuzz.corrupt_targets import Trial, Wrong
from fuzz.corrupt_victim import victim

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["cli_targets"]

EXIT_CODES: Final = frozenset(range(6))
LEFT_OUT: Final = frozenset({"watch", "top", "bench", "help", "completion"})
"""They go on for ever, measure, or read no file."""

_FORMATS: Final = (["--format", "text"], ["--format", "json"], ["--format", "jsonl"])


def _commands() -> list[Any]:
    """The registry's commands; none where there is no such package yet."""
    try:
        registry = importlib.import_module("cowdb.cli.registry")
    except ImportError:
        return []
    return [command for command in registry.COMMANDS if command.name not in LEFT_OUT]


def _words(command: Any, file: str, folder: str, key: bytes, page: int) -> list[str] | None:
    """Arguments for the command; None if it wants something that is not known here."""
    parser = argparse.ArgumentParser(add_help=False)
    command.load().arguments(parser)
    words: list[str] = []
    files = 0
    for action in parser._actions:
        if action.option_strings:
            if action.required:
                return None
            continue
        name = action.dest.lower()
        if action.nargs in ("?", "*") and files:
            continue
        if action.choices:
            words.append(str(next(iter(action.choices))))
        elif "key" in name or "prefix" in name:
            words.append(key.decode("ascii", "ignore").replace("-", "") or "k")
        elif "page" in name or "number" in name:
            words.append(str(page))
        elif "value" in name:
            words.append("value")
        elif "tree" in name:
            words.append("deep")
        elif not files:
            words.append(file)
            files = 1
        elif any(part in name for part in ("new", "target", "copy", "to", "out")):
            words.append(os.path.join(folder, "made"))
        else:
            return None
    return words if files else None


def _call(words: list[str]) -> tuple[int, str]:
    """Exit code and output of the command in this very process."""
    main = importlib.import_module("cowdb.cli").main
    out, error = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
        code = main(words)
    return code, out.getvalue() + error.getvalue()


def _clear(folder: str) -> None:
    for name in ("cli", "cli-lock", "made", "made-lock"):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(os.path.join(folder, name))


def _run(command: Any, content: bytes, folder: str, key: bytes, page: int, form: list[str]) -> tuple[int, str]:
    file = os.path.join(folder, "cli")
    _clear(folder)
    with open(file, "wb") as out:
        out.write(content)
    try:
        words = _words(command, file, folder, key, page)
        assert words is not None
        return _call([command.name, *words, *form])
    finally:
        _clear(folder)


def _target(command: Any, expected: dict[str, tuple[int, str]], trial: Trial) -> None:
    name, key = trial.places[0]
    if trial.strict or name is not None:
        key = b"000030"
    page = trial.damaged[0] if trial.damaged and not trial.strict else 2
    form = _FORMATS[trial.rng.randrange(3)]
    code, text = _run(command, trial.bench.content(), trial.folder, key, page, form)
    if code not in EXIT_CODES:
        raise Wrong(f"cowdb {command.name} ended with {code}: {text[:200]}")
    if code == 2:
        raise Wrong(f"cowdb {command.name} takes damage for wrong usage: {text[:200]}")
    if "Traceback" in text:
        raise Wrong(f"cowdb {command.name} shows a traceback: {text[-300:]}")
    if trial.case.victim == "settled" and command.group == "data":
        want = expected[form[1]]
        if trial.strict and not code and want != (code, text):
            raise Wrong(f"cowdb {command.name} says {text[:200]!r}")


def cli_targets(folder: str) -> dict[str, Callable[[Trial], None]]:
    """A target for each command that is fine with a sound file."""
    sound = victim("settled")
    found: dict[str, Callable[[Trial], None]] = {}
    for command in _commands():
        expected = {}
        try:
            if _words(command, "", folder, b"", 2) is None:
                continue
            for form in _FORMATS:
                expected[form[1]] = _run(command, sound.raw, folder, b"000030", 2, form)
        except (ImportError, AttributeError):  # it is in the making
            continue
        if all(code == 0 for code, _ in expected.values()):
            found[f"cli:{command.name}"] = functools.partial(_target, command, expected)
    return found
