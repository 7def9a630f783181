"""The command line's page, read off its parsers: `<!-- commands -->` becomes every command."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from importlib import import_module

from settings_page import as_cards


def commands() -> str:
    """Every command with what it takes, as Markdown."""
    from kronos_qlib.cli.main import build_parser

    return "\n\n".join(_section(build_parser(), level=2))


def _section(parser: argparse.ArgumentParser, level: int) -> Iterator[str]:
    _load(parser)
    yield f"{'#' * level} {parser.prog} {{ #{parser.prog.replace(' ', '-')} }}"
    if parser.description:
        yield parser.description
    if level > 2 and not _below(parser):
        usage = " ".join(parser.format_usage().removeprefix("usage: ").split())
        yield f"```text\n{_wrapped(usage)}\n```"
    if parser.epilog:
        examples = parser.epilog.removeprefix("example:\n")
        yield "```text\n" + "\n".join(line.strip() for line in examples.splitlines()) + "\n```"
    rows = [row for action in parser._actions for row in _row(parser, action)]
    if level > 2:
        rows = [row for row in rows if not row.startswith("| `--debug`")]  # every command's
    if rows:
        yield as_cards(["| argument | meaning |", "|---|---|", *rows], columns=2)
    for below in _below(parser).values():
        yield from _section(below, level + 1)


def _load(parser: argparse.ArgumentParser) -> None:
    """A command's module is imported when its name is typed; here nobody types."""
    module = getattr(parser, "module", None)
    if module is not None:
        parser.module = None  # type: ignore[attr-defined]
        import_module(module).add_arguments(parser)


def _below(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    return {}


def _row(parser: argparse.ArgumentParser, action: argparse.Action) -> Iterator[str]:
    if isinstance(action, (argparse._SubParsersAction, argparse._HelpAction)):
        return
    shown = ", ".join(f"`{one}`" for one in action.option_strings) or f"`{_value(action)}`"
    if action.option_strings and action.nargs != 0:
        shown = f"`{', '.join(action.option_strings)} {_value(action)}`"
    # What argparse itself would print, %(default)s filled in.
    text = parser._get_formatter()._expand_help(action) if action.help else ""
    must = "required. " if action.required and action.option_strings else ""
    yield f"| {shown} | {must}{' '.join(text.split()).replace('|', chr(92) + '|')} |"


def _value(action: argparse.Action) -> str:
    if action.choices is not None:
        name = " / ".join(map(str, action.choices))
    else:
        name = action.metavar if isinstance(action.metavar, str) else None
        name = name or (action.dest.upper() if action.option_strings else action.dest)
    return f"{name} …" if action.nargs in ("+", "*") else name


def _wrapped(usage: str, width: int = 88) -> str:
    """A usage line broken between its arguments."""
    lines = [""]
    for part in usage.replace(" [", "\n[").replace(" --", "\n--").split("\n"):
        if lines[-1] and len(lines[-1]) + len(part) + 1 > width:
            lines.append(f"    {part}")
        else:
            lines[-1] = f"{lines[-1]} {part}".strip() if not lines[-1] else f"{lines[-1]} {part}"
    return "\n".join(lines)
