"""Tables of settings, read off the classes that take them: a page cannot drift from the code.

In a page, `<!-- settings: SamplingConfig -->` becomes a table of that class' settings,
`<!-- presets -->` that of the training presets and `<!-- signals -->` that of the signals. A class
is found by its name alone.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import math
import re
import textwrap
from collections.abc import Mapping
from importlib import import_module
from typing import Any

from sources import home_of

HIDDEN = ("self", "recorder", "cls")
"""Arguments that Qlib or Python gives, not a file."""


@dataclasses.dataclass(frozen=True)
class Setting:
    """One key of a YAML file, as its class has it."""

    name: str
    kind: str
    default: str
    meaning: str


def table(name: str) -> str:
    """A Markdown table of a class' settings, or of a class method's as `Class.method`."""
    anchor = re.sub(r"\W", "-", name).lower()
    rows = [
        f'| <a id="{anchor}-{one.name}"></a>`{one.name}` | {one.kind} | {one.default} '
        f"| {one.meaning} |"
        for one in settings_of(name)
    ]
    head = ["| setting | type | default | meaning |", "|---|---|---|---|"]
    return as_cards([*head, *rows], columns=4)


def as_cards(lines: list[str], columns: int) -> str:
    """A table that the style sheet shows as cards where the screen is narrow."""
    kind = "settings four" if columns == 4 else "settings"
    return "\n".join([f'<div class="{kind}" markdown>', "", *lines, "", "</div>"])


def settings_of(name: str) -> list[Setting]:
    """Settings of a class, in its order.

    Raises:
        LookupError: there is no such class, or a setting has no line that says what it means.
    """
    head, _, method = name.partition(".")
    kind = getattr(import_module(home_of(head)), head)
    taker = getattr(kind, method) if method else kind
    meanings = _meanings(kind, taker)
    found = []
    for parameter in inspect.signature(taker).parameters.values():
        if parameter.name in HIDDEN or parameter.kind is parameter.VAR_KEYWORD:
            continue
        if parameter.name not in meanings:
            raise LookupError(f"{name}.{parameter.name} has no line that says what it means")
        found.append(
            Setting(
                parameter.name,
                _kind(parameter.annotation),
                _default(kind, parameter),
                _cell(meanings[parameter.name]),
            )
        )
    return found


def presets() -> str:
    """A Markdown table of what each training preset sets."""
    known: Mapping[str, Mapping[str, Mapping[str, Any]]]
    known = import_module(home_of("PRESETS")).PRESETS
    stages = list(next(iter(known.values())))
    lines = [f"| preset | {' | '.join(f'`{one}`' for one in stages)} |", "|---" * 4 + "|"]
    for name, values in known.items():
        cells = [
            ", ".join(f"`{key}: {_yaml(value)}`" for key, value in values[stage].items())
            or "the defaults"
            for stage in stages
        ]
        lines.append(f"| `{name}` | {' | '.join(cells)} |")
    return "\n".join(lines)


def signals() -> str:
    """A Markdown table of the signals and their definitions."""
    known = import_module(home_of("SIGNALS")).SIGNALS
    lines = ["| signal | definition |", "|---|---|"]
    for name, signal in known.items():
        shown = f"{name}@…" if signal.takes else name
        takes = f"; takes {signal.takes}, as `{signal.example}`" if signal.takes else ""
        lines.append(f"| `{shown}` | {_cell(signal.definition)}{takes} |")
    return "\n".join(lines)


def _meanings(kind: type, taker: Any) -> dict[str, str]:
    """What each setting means: the line under a field, or the section Args of a docstring."""
    found: dict[str, str] = {}
    texts = [kind.__doc__, taker.__doc__]
    for one in reversed(kind.__mro__):
        if one.__module__.split(".")[0] != kind.__module__.split(".")[0]:
            continue
        found |= _lines_under_fields(one)
        texts += [one.__doc__, one.__init__.__doc__]
    for text in texts:
        found |= _args(text or "")
    return found


def _lines_under_fields(kind: type) -> dict[str, str]:
    tree = ast.parse(textwrap.dedent(inspect.getsource(kind))).body[0]
    assert isinstance(tree, ast.ClassDef)
    found = {}
    for node, after in zip(tree.body, tree.body[1:], strict=False):
        if (
            isinstance(node, ast.AnnAssign)
            and isinstance(node.target, ast.Name)
            and isinstance(after, ast.Expr)
            and isinstance(after.value, ast.Constant)
            and isinstance(after.value.value, str)
        ):
            found[node.target.id] = after.value.value
    return found


def _args(text: str) -> dict[str, str]:
    """Entries of a docstring's section Args; one entry may be of several names."""
    section = re.search(r"^Args:\n((?:[ \t]+.*\n?|\n)*)", inspect.cleandoc(text), re.MULTILINE)
    if section is None:
        return {}
    found = {}
    entries = re.split(r"\n(?=\S)", textwrap.dedent(section[1]).strip())
    for entry in entries:
        names, _, meaning = entry.partition(":")
        for name in names.split(","):
            found[name.strip()] = meaning
    return found


def _kind(annotation: Any) -> str:
    text = str(annotation)
    for long, short in {
        "Mapping[str, Any]": "mapping",
        "Mapping[str, str]": "mapping of text",
        "Sequence[str]": "list of text",
        "Sequence[int]": "list of int",
        "Sequence[float]": "list of float",
        "bool": "true or false",
        "str": "text",
        "None": "null",
        "Any": "any",
    }.items():
        text = re.sub(rf"(?<![\w\[]){re.escape(long)}(?![\w\]])", short, text)
    return text.replace(" | ", ", ").replace("|", r"\|").replace("[", r"\[")


def _default(kind: type, parameter: inspect.Parameter) -> str:
    value = parameter.default
    if value is parameter.empty:
        return "required"
    if dataclasses.is_dataclass(kind):
        for one in dataclasses.fields(kind):
            if one.name == parameter.name and one.default_factory is not dataclasses.MISSING:
                value = one.default_factory()
    return f"`{_yaml(value)}`"


def _yaml(value: Any) -> str:
    """As a YAML file spells it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(_yaml(one) for one in value)}]"
    if dataclasses.is_dataclass(value):
        each = (
            f"{one.name}: {_yaml(getattr(value, one.name))}" for one in dataclasses.fields(value)
        )
        return f"{{{', '.join(each)}}}"
    if isinstance(value, float):
        return ".inf" if math.isinf(value) else f"{value:g}" if abs(value) < 1e-3 else repr(value)
    return str(value)


def _cell(text: str) -> str:
    for python, yaml in (("None", "null"), ("True", "true"), ("False", "false")):
        text = re.sub(rf"\b{python}\b", yaml, text)
    return " ".join(text.split()).replace("|", r"\|")
