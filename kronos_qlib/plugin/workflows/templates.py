"""Workflow files as text: read, rendered by jinja, to YAML and back."""

from __future__ import annotations

import re
from collections.abc import Mapping
from io import StringIO
from pathlib import Path
from typing import Any

from jinja2 import Environment, TemplateError, meta
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from kronos_qlib.errors import ConfigError
from kronos_qlib.plugin.workflows.shipped import BASE_FILE, shipped_folder, workflows

BASE = "BASE_CONFIG_PATH"
JINJA = re.compile(r"\{[{%#]")


def load_yaml(text: str, where: str) -> Any:
    """YAML as Qlib reads it: of version 1.2, where 1e-5 is a number.

    Raises:
        ConfigError: it is none; names `where` it is from and the line.
    """
    try:
        return YAML(typ="safe", pure=True).load(text)
    except (YAMLError, ValueError) as problem:
        raise ConfigError(f"{where} cannot be read: {problem}") from problem


def dump_yaml(config: Mapping[str, Any]) -> str:
    """A workflow as text that qrun reads back as it is, on any system: ASCII, no anchors."""
    writer = YAML(typ="safe", pure=True)
    writer.default_flow_style = False
    writer.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    writer.allow_unicode = False
    writer.width = 10_000
    writer.representer.ignore_aliases = lambda data: True
    out = StringIO()
    writer.dump(config, out)
    text = out.getvalue()
    # qrun renders it once more.
    return "{% raw %}" + text + "{% endraw %}" if JINJA.search(text) else text


def variables_in(text: str, path: Path) -> set[str]:
    """Names that a template leaves open.

    Raises:
        ConfigError: it is no template of jinja.
    """
    try:
        return set(meta.find_undeclared_variables(Environment().parse(text)))
    except TemplateError as problem:
        raise ConfigError(f"{path} is no template of jinja: {problem}") from problem


def read_text(path: Path) -> str:
    """A UTF-8 file's text.

    Raises:
        ConfigError: it cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as problem:
        raise ConfigError(f"{path} cannot be read: {problem}") from problem


def render_template(text: str, context: Mapping[str, str], path: Path) -> str:
    """A template with its variables filled in.

    Args:
        path: of its file, for messages.

    Raises:
        ConfigError: jinja cannot render it.
    """
    try:
        return Environment(keep_trailing_newline=True).from_string(text).render(context)
    except TemplateError as problem:
        raise ConfigError(f"{path} cannot be rendered: {problem}") from problem


def quoted(text: str, values: Mapping[str, str]) -> dict[str, str]:
    """Apostrophes doubled in those values that a template has in single quotes."""
    inside = set(re.findall(r"'\{\{\s*(\w+)", text))
    return {
        name: value.replace("'", "''") if name in inside else value
        for name, value in values.items()
    }


def base_path(base: str, path: Path) -> Path:
    """Where qrun would find a base: from the working folder, or beside the file at `path`.

    Raises:
        ConfigError: it is in neither.
    """
    beside = path.absolute().parent / base
    is_shipped = path in workflows().values()
    for place in (beside,) if is_shipped else (Path(base), beside):
        if place.is_file():
            return place
    ours = (
        f"; the package's own is {shipped_folder() / BASE_FILE}, and `kronos-qlib workflow NAME` "
        "prints files that need none"
        if Path(base).name == BASE_FILE
        else ""
    )
    raise ConfigError(f"{path}: {BASE} {base} is neither in {Path.cwd()} nor beside the file{ours}")
