"""A workflow as a file of one's own, which needs no base beside it."""

from __future__ import annotations

import re
from collections.abc import Mapping, MutableMapping, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from kronos_qlib.errors import ConfigError, printable
from kronos_qlib.plugin.workflows.markets import (
    read_market,
)
from kronos_qlib.plugin.workflows.shipped import find_workflow
from kronos_qlib.plugin.workflows.templates import (
    BASE,
    base_path,
    load_yaml,
    quoted,
    read_text,
    render_template,
)

HIDDEN = re.compile(r"\{\{.*?\}\}", re.DOTALL)


def standalone(path: Path) -> str:
    """A workflow file as text that needs no base beside it; comments and jinja stay.

    Raises:
        ConfigError: the file or its base is missing or no YAML.
    """
    text = read_text(path)
    hidden: list[str] = []

    def hide(found: re.Match[str]) -> str:
        hidden.append(found[0])
        return f"J{len(hidden) - 1}J"

    if "{%" in text:
        raise ConfigError(f"{path} has blocks of jinja, which cannot be joined with its base")
    writer = YAML(typ="rt")
    writer.preserve_quotes = True
    writer.width = 10_000
    writer.indent(mapping=2, sequence=4, offset=2)
    try:
        own = writer.load(HIDDEN.sub(hide, text))
        if not isinstance(own, MutableMapping):
            raise ConfigError(f"{path} holds no sections")
        base = own.pop(BASE, None)
        if base is None:
            return text
        _add_missing(own, writer.load(read_text(base_path(str(base), path))))
        out = StringIO()
        writer.dump(own, out)
    except (YAMLError, ValueError) as problem:
        raise ConfigError(f"{path} cannot be read: {problem}") from problem
    return re.sub(r"J(\d+)J", lambda found: hidden[int(found[1])], out.getvalue())


def own_workflow(
    name: str | Path, market: str | Path | None = None, changes: Sequence[str] = ()
) -> str:
    """A workflow as the file of somebody who will change it: needs no base, runs in any folder.

    Args:
        market: whose values stand in the place of the variables; None leaves the variables.
        changes: "KEY=VALUE" for keys of the profile, with a market alone.

    Raises:
        ConfigError: there is no such workflow or market.
    """
    path = find_workflow(name)
    text = re.sub(r"^# +(qrun|kronos-qlib run) .*\n", "", standalone(path), flags=re.MULTILINE)
    if market is None:
        if changes:
            raise ConfigError("--set changes a market's values: name the market by --market")
        return _headed(text, "#   kronos-qlib run my.yaml --market us\n#   qrun my.yaml\n")
    given = dict(one.partition("=")[::2] for one in changes)
    profile = read_market(market, {key: load_yaml(text, key) for key, text in given.items()})
    values = quoted(text, profile.variables())
    filled = render_template(text, values, path)
    filled = re.sub(r"^# KRONOS_ names are .*\n", "", filled, flags=re.MULTILINE)
    return _headed(filled, f"# Market: {printable(str(market))}.\n#   qrun my.yaml\n")


def _headed(text: str, more: str) -> str:
    """With lines after the comment that it begins with."""
    lines = text.splitlines(keepends=True)
    end = next((place for place, line in enumerate(lines) if not line.startswith("#")), 0)
    return "".join([*lines[:end], more, *lines[end:]])


def _add_missing(own: MutableMapping[str, Any], base: Mapping[str, Any]) -> None:
    for key, value in base.items():
        if key not in own:
            own[key] = value
        elif isinstance(own[key], MutableMapping) and isinstance(value, Mapping):
            _add_missing(own[key], value)
