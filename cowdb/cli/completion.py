"""``cowdb completion``: what a shell needs to complete the command, made from the parsers themselves.

    parsers --> Command: name, help, options, places --> a script for bash, zsh or fish

A script knows all commands and options; it never runs cowdb while you type.
"""

from __future__ import annotations

import argparse
import shlex
from typing import TYPE_CHECKING, Final, NamedTuple

from cowdb.cli.output import FINE

if TYPE_CHECKING:
    from collections.abc import Callable

    from cowdb.cli.output import Output

__all__ = ["DESCRIPTION", "EXAMPLES", "Command", "Option", "arguments", "commands", "run"]

DESCRIPTION: Final = """
Prints a script that teaches your shell the commands and options of cowdb.
"""

EXAMPLES: Final = (
    ('eval "$(cowdb completion bash)"', "for bash: this line into ~/.bashrc"),
    ("cowdb completion zsh > ~/.zfunc/_cowdb", "for zsh: a directory that is in $fpath, before compinit"),
    ("cowdb completion fish > ~/.config/fish/completions/cowdb.fish", "for fish"),
)

_PATHS: Final = ("FILE", "PATH", "INPUT", "OUTPUT", "SOURCE", "NEW", "DAMAGED", "DIR", "TARGET", "COPY")
"""Metavars of arguments that name files."""


class Option(NamedTuple):
    """An option or a positional argument (no flags): its help, and what it takes: choices, a path, another word."""

    flags: tuple[str, ...]
    summary: str
    takes: bool
    choices: tuple[str, ...]
    path: bool
    many: bool


class Command(NamedTuple):
    """A subcommand."""

    name: str
    summary: str
    options: list[Option]
    places: list[Option]


def arguments(parser: argparse.ArgumentParser) -> None:
    """See `cowdb.cli`."""
    parser.add_argument("shell", choices=("bash", "zsh", "fish"), help="which shell")


def run(args: argparse.Namespace, out: Output) -> int:
    """See `cowdb.cli`."""
    from cowdb.cli import build_parser  # noqa: PLC0415 - it imports this module

    makers: dict[str, Callable[[list[Command]], str]] = {"bash": _bash, "zsh": _zsh, "fish": _fish}
    script = makers[args.shell](commands(build_parser()))
    if out.machine:
        out.document({"shell": args.shell, "script": script})
    else:
        for line in script.splitlines():
            out.line(line)
    return FINE


def commands(parser: argparse.ArgumentParser) -> list[Command]:
    """All subcommands of `parser`, with what each takes."""
    found = []
    for action in parser._actions:  # noqa: SLF001 - argparse has no other way to ask
        if not isinstance(action, argparse._SubParsersAction):  # noqa: SLF001 - the same
            continue
        summaries = {choice.dest: choice.help or "" for choice in action._choices_actions}  # noqa: SLF001 - the same
        names = tuple(action.choices)
        for name, sub in action.choices.items():
            options: list[Option] = []
            places: list[Option] = []
            for inner in sub._actions:  # noqa: SLF001 - the same
                option = _option(inner, names if name == "help" else ())
                (options if option.flags else places).append(option)
            found.append(Command(name, summaries.get(name, ""), options, places))
    return found


def _option(action: argparse.Action, choices: tuple[str, ...]) -> Option:
    metavar = action.metavar if isinstance(action.metavar, str) else action.dest.upper()
    return Option(
        tuple(action.option_strings),
        "" if action.help in (None, argparse.SUPPRESS) else " ".join(str(action.help).split()).replace("%%", "%"),
        action.nargs != 0,
        tuple(map(str, action.choices)) if action.choices else choices,
        any(metavar == name or metavar.startswith(f"{name}.") for name in _PATHS),
        action.nargs in ("*", "+"),
    )


# ---------------------------------------------------------------- bash


def _bash(found: list[Command]) -> str:
    cases = []
    for command in found:
        words = " ".join(flag for option in command.options for flag in option.flags)
        values = []
        for option in command.options:
            if option.takes:
                pattern = "|".join(option.flags)
                values.append(f"                {pattern}) {_bash_value(option)}; return ;;")
        places = "".join(
            f"                {number if not option.many else '*'}) {_bash_value(option)} ;;\n"
            for number, option in enumerate(command.places)
        )
        takers = " ".join(flag for option in command.options if option.takes for flag in option.flags)
        cases.append(
            f"        {command.name})\n"
            f"            takers={shlex.quote(f' {takers} ')}\n"
            '            case "$before" in\n' + "\n".join(values) + ("\n" if values else "") + "            esac\n"
            "            if [[ $word == -* ]]; then\n"
            f'                COMPREPLY=($(compgen -W {shlex.quote(words)} -- "$word"))\n'
            "                return\n"
            "            fi\n"
            "            _cowdb_place\n"
            '            case "$place" in\n' + places + "            esac\n"
            "            ;;"
        )
    names = " ".join(command.name for command in found)
    return "\n".join(
        (
            "# bash completion for cowdb",
            "_cowdb_place() {  # how many words that are no options come before this one",
            "    local index previous=",
            "    place=0",
            "    for ((index = 2; index < COMP_CWORD; index++)); do",
            '        if [[ ${COMP_WORDS[index]} != -* && $takers != *" $previous "* ]]; then ((place++)); fi',
            "        previous=${COMP_WORDS[index]}",
            "    done",
            "    return 0",
            "}",
            "_cowdb_files() {",
            "    compopt -o filenames 2>/dev/null",
            "    local IFS=$'\\n'",
            '    COMPREPLY=($(compgen -f -- "$word"))',
            "}",
            "_cowdb() {",
            "    local word=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD-1]} takers place",
            "    COMPREPLY=()",
            "    if ((COMP_CWORD == 1)); then",
            f'        COMPREPLY=($(compgen -W {shlex.quote(f"{names} --help --version")} -- "$word"))',
            "        return",
            "    fi",
            '    case "${COMP_WORDS[1]}" in',
            *cases,
            "    esac",
            "}",
            "complete -F _cowdb cowdb",
        )
    )


def _bash_value(option: Option) -> str:
    if option.choices:
        return f'COMPREPLY=($(compgen -W {shlex.quote(" ".join(option.choices))} -- "$word"))'
    return "_cowdb_files" if option.path else ":"


# ---------------------------------------------------------------- zsh


def _zsh(found: list[Command]) -> str:
    lines = ["#compdef cowdb", "_cowdb() {", "    local curcontext=$curcontext state line", "    local -a commands"]
    lines.append("    commands=(")
    lines += [f"        {shlex.quote(f'{command.name}:{command.summary}')}" for command in found]
    lines += [
        "    )",
        "    _arguments -C '--help[show help]' '--version[show the version]' \\",
        "        '1:command:->command' '*::argument:->argument'",
        "    case $state in",
        "        command) _describe command commands ;;",
        "        argument)",
        "            case $words[1] in",
    ]
    for command in found:
        specs = [_zsh_option(option, flag) for option in command.options for flag in option.flags]
        specs += [_zsh_place(option) for option in command.places]
        body = " ".join(map(shlex.quote, specs))
        lines.append(
            f"                {command.name}) _arguments -s {body} ;;"
            if body
            else f"                {command.name}) ;;"
        )
    lines += ["            esac", "            ;;", "    esac", "}"]
    # It works when it is autoloaded from $fpath, and when the script is evaluated.
    lines.append('if [[ $funcstack[1] == _cowdb ]]; then _cowdb "$@"; else compdef _cowdb cowdb; fi')
    return "\n".join(lines)


def _zsh_text(text: str) -> str:
    """Text where brackets and colons mean something."""
    return "".join("\\" + char if char in "[]:\\" else char for char in text)


def _zsh_action(option: Option) -> str:
    if option.choices:
        return f"({' '.join(option.choices)})"
    return "_files" if option.path else " "


def _zsh_option(option: Option, flag: str) -> str:
    spec = f"*{flag}[{_zsh_text(option.summary)}]"
    return f"{spec}:value:{_zsh_action(option)}" if option.takes else spec


def _zsh_place(option: Option) -> str:
    return f"{'*' if option.many else ''}:{_zsh_text(option.summary) or 'argument'}:{_zsh_action(option)}"


# ---------------------------------------------------------------- fish


def _fish(found: list[Command]) -> str:
    lines = ["# fish completion for cowdb", "complete -c cowdb -f"]
    lines.append("complete -c cowdb -n __fish_use_subcommand -l help -d 'show help'")
    lines.append("complete -c cowdb -n __fish_use_subcommand -l version -d 'show the version'")
    for command in found:
        lines.append(f"complete -c cowdb -n __fish_use_subcommand -a {command.name} -d {_fish_text(command.summary)}")
        condition = f"-n {_fish_text(f'__fish_seen_subcommand_from {command.name}')}"
        for option in command.options:
            words = " ".join(f"-l {flag[2:]}" if flag.startswith("--") else f"-s {flag[1:]}" for flag in option.flags)
            lines.append(f"complete -c cowdb {condition} {words}{_fish_takes(option)} -d {_fish_text(option.summary)}")
        for place in command.places:
            if place.choices:
                lines.append(f"complete -c cowdb {condition} -a {_fish_text(' '.join(place.choices))}")
            elif place.path:
                lines.append(f"complete -c cowdb {condition} -F")
    return "\n".join(lines)


def _fish_takes(option: Option) -> str:
    if not option.takes:
        return ""
    if option.choices:
        return f" -x -a {_fish_text(' '.join(option.choices))}"
    return " -r -F" if option.path else " -x"


def _fish_text(text: str) -> str:
    """A word of fish, where only the backslash and the quote mean something within quotes."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
