"""Workflow files as qrun reads them: rendered, with their base, a market's values and changes.

Where a value comes from, the first that says something: `--set`, a KRONOS_ variable of the
environment, the market's profile, the file's own default.
"""

from __future__ import annotations

import inspect
import logging
import os
import re
from collections.abc import Iterator, Mapping, MutableMapping, MutableSequence, Sequence
from dataclasses import dataclass, fields
from difflib import get_close_matches
from io import StringIO
from pathlib import Path
from typing import Any

from jinja2 import Environment, TemplateError, meta
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from kronos_qlib.errors import ConfigError, printable, short_repr
from kronos_qlib.model.checkpoints.published import TOKENIZER_VARIABLE
from kronos_qlib.plugin.records.backtest_record import BacktestConfig
from kronos_qlib.plugin.workflows.markets import (
    PROFILE_KEYS,
    VARIABLE_PREFIX,
    MarketProfile,
    as_yaml,
    checked_value,
    read_market,
    variable_of,
)
from kronos_qlib.plugin.workflows.shipped import BASE_FILE, find_workflow, shipped_folder, workflows

logger = logging.getLogger(__name__)

BASE = "BASE_CONFIG_PATH"
MODEL_SETTINGS = ("task", "model", "kwargs")
"""Where a path that begins at no section of the file begins."""
BACKTEST_KEYS = {"hold": "hold_thresh"}
"""Keys of a profile that BacktestConfig calls otherwise."""
HIDDEN = re.compile(r"\{\{.*?\}\}", re.DOTALL)
JINJA = re.compile(r"\{[{%#]")


@dataclass(frozen=True)
class Workflow:
    """A workflow file with all its values in place."""

    path: Path
    """The file that it was read from."""
    config: dict[str, Any]
    """As qrun would have it, its base merged in."""
    profile: MarketProfile | None
    """The market's, with what the environment and changes replaced; None where none was named."""
    notes: tuple[str, ...]
    """What the environment replaced, and which of its variables no workflow reads."""


def read_workflow(
    name: str | Path, market: str | Path | None = None, changes: Sequence[str] = ()
) -> Workflow:
    """A workflow by its shipped name or its file.

    Args:
        market: a profile's shipped name or its file, in the place of the file's own defaults.
        changes: "KEY=VALUE", the value in YAML. A key is a variable of the file in lower case
            (`topk`, `test_end`, `paths`); a path from a section of the file
            (`task.dataset.kwargs.min_bars`); or a path from `task.model.kwargs`
            (`training.predictor.epochs`).

    Raises:
        ConfigError: a file, a key or a value is missing, unknown or cannot work; names the file
            and the nearest known key.
    """
    path = find_workflow(name)
    text = _read_text(path)
    variables = _variables_in(text, path)
    given, paths = _sorted_changes(changes, variables, path)
    environment = {name: os.environ[name] for name in variables if name in os.environ}
    context, profile, notes = _values(path, variables, market, given, environment)
    found = load_yaml(_render(text, context, path), str(path))
    if not isinstance(found, Mapping):
        raise ConfigError(f"{path} holds no sections")
    config = _with_base(dict(found), path)
    if "task" not in config and set(found) & set(PROFILE_KEYS):
        raise ConfigError(f"{path} is the profile of a market, not a workflow: name it by --market")
    _resolve_sys(config, path)
    for key, value in paths:
        change(config, key, value, str(path))
    return Workflow(path, config, profile, (*notes, *_strange_variables()))


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


def change(config: MutableMapping[str, Any], key: str, value: Any, where: str) -> None:
    """Put another value into a workflow, in place.

    Args:
        key: a dotted path from one of its sections, or from `task.model.kwargs`. Places in a list
            are numbers. What is not there yet is added among the settings of a class alone.

    Raises:
        ConfigError: nothing is there, and nothing of that name can be; names the nearest.
    """
    parts = key.split(".")
    is_absolute = parts[0] in config
    names = parts if is_absolute else [*MODEL_SETTINGS, *parts]
    place: Any = config
    owner: Mapping[str, Any] | None = None  # of the settings that `place` lies in
    for depth, name in enumerate(names):
        is_last = depth == len(names) - 1
        if isinstance(place, MutableSequence):
            if not name.isdecimal() or int(name) >= len(place):
                raise ConfigError(
                    f"{where}: {'.'.join(names[:depth])} has {len(place)} entries, numbered from "
                    f"0; there is no {name!r}"
                )
            slot: int | str = int(name)
        elif isinstance(place, MutableMapping):
            if name not in place:
                _check_addable(place, names, depth, owner, key, is_absolute, where)
                place[name] = None if is_last else {}
            elif place[name] is None and not is_last and owner is not None:
                place[name] = {}
            slot = name
        else:
            raise ConfigError(
                f"{where}: {'.'.join(names[:depth])} is {short_repr(place)} and has no {name!r} "
                "inside"
            )
        if is_last:
            place[slot] = value
            return
        if name == "kwargs" and "class" in place:
            owner = place
        place = place[slot]


def standalone(path: Path) -> str:
    """A workflow file as text that needs no base beside it; comments and jinja stay.

    Raises:
        ConfigError: the file or its base is missing or no YAML.
    """
    text = _read_text(path)
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
        _add_missing(own, writer.load(_read_text(_base_path(str(base), path))))
        out = StringIO()
        writer.dump(own, out)
    except (YAMLError, ValueError) as problem:
        raise ConfigError(f"{path} cannot be read: {problem}") from problem
    return re.sub(r"J(\d+)J", lambda found: hidden[int(found[1])], out.getvalue())


def own_workflow(name: str | Path, market: str | Path | None = None) -> str:
    """A workflow as the file of somebody who will change it: needs no base, runs in any folder.

    Args:
        market: whose values stand in the place of the variables; None leaves the variables.

    Raises:
        ConfigError: there is no such workflow or market.
    """
    path = find_workflow(name)
    text = re.sub(r"^# +(qrun|kronos-qlib run) .*\n", "", standalone(path), flags=re.MULTILINE)
    if market is None:
        return _headed(text, "#   kronos-qlib run my.yaml --market us\n#   qrun my.yaml\n")
    values = _quoted(text, read_market(market).variables())
    rendered = _render(text, values, path)
    rendered = re.sub(r"^# KRONOS_ names are .*\n", "", rendered, flags=re.MULTILINE)
    return _headed(rendered, f"# Market: {printable(str(market))}.\n#   qrun my.yaml\n")


def _headed(text: str, more: str) -> str:
    """With lines after the comment that it begins with."""
    lines = text.splitlines(keepends=True)
    end = next((place for place, line in enumerate(lines) if not line.startswith("#")), 0)
    return "".join([*lines[:end], more, *lines[end:]])


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as problem:
        raise ConfigError(f"{path} cannot be read: {problem}") from problem


def _variables_in(text: str, path: Path) -> set[str]:
    try:
        return set(meta.find_undeclared_variables(Environment().parse(text)))
    except TemplateError as problem:
        raise ConfigError(f"{path} is no template of jinja: {problem}") from problem


def _render(text: str, context: Mapping[str, str], path: Path) -> str:
    try:
        return Environment(keep_trailing_newline=True).from_string(text).render(context)
    except TemplateError as problem:
        raise ConfigError(f"{path} cannot be rendered: {problem}") from problem


def _sorted_changes(
    changes: Sequence[str], variables: set[str], path: Path
) -> tuple[dict[str, Any], list[tuple[str, Any]]]:
    """Changes of the file's variables by their keys, and those of paths in it."""
    # A profile is whole: train_start is a market's, though a zero-shot workflow has no such day.
    is_template = bool(variables & set(map(variable_of, PROFILE_KEYS)))
    given: dict[str, Any] = {}
    paths: list[tuple[str, Any]] = []
    for text in changes:
        key, is_set, value = text.partition("=")
        key = key.strip()
        if not is_set or not key or not all(key.split(".")):
            raise ConfigError(f"a change is KEY=VALUE, such as seed=1, got {short_repr(text)}")
        loaded = load_yaml(value, f"the value of {key}")
        if variable_of(key) in variables or (key in PROFILE_KEYS and is_template):
            if isinstance(loaded, Mapping | list):
                raise ConfigError(f"{key} takes one value, got {short_repr(value)}")
            given[key] = loaded
        elif key in PROFILE_KEYS:
            raise ConfigError(_no_variable(key, path))
        else:
            paths.append((key, loaded))
    return given, paths


def _no_variable(key: str, path: Path) -> str:
    names = [field.name for field in fields(BacktestConfig)]
    name = BACKTEST_KEYS.get(key, key)
    instead = f"say --set task.backtest.{name}=… instead" if name in names else "change it there"
    return f"{path} has no variable {variable_of(key)}, its own value stands in it: {instead}"


def _values(
    path: Path,
    variables: set[str],
    market: str | Path | None,
    given: Mapping[str, Any],
    environment: Mapping[str, str],
) -> tuple[dict[str, str], MarketProfile | None, list[str]]:
    """What the file's variables stand for; the market; what is to be said of it."""
    keys = {variable_of(key): key for key in PROFILE_KEYS}
    ours = {
        keys[name]: load_yaml(text, name) if text else None
        for name, text in environment.items()
        if name in keys and keys[name] not in given
    }
    replaced = {key: value for key, value in given.items() if key in PROFILE_KEYS}
    notes = []
    if market is None:
        profile = None
        checked = {}
        for key, value in {**ours, **replaced}.items():
            where = variable_of(key) if key in ours else f"--set {key}"
            try:
                checked[key] = checked_value(key, value)
            except ConfigError as bad:
                raise ConfigError(f"{where}: {bad}") from bad
        freq = str(checked.get("freq", "day"))
        context = {variable_of(key): as_yaml(key, value, freq) for key, value in checked.items()}
    else:
        if not variables & set(keys):
            raise ConfigError(
                f"{path} names no {VARIABLE_PREFIX} variable, so a market has nothing to fill in: "
                "its own values hold. `kronos-qlib workflow NAME` prints one that has them"
            )
        profile = read_market(market, {**ours, **replaced})
        context = profile.variables()
        notes += [
            f"{variable_of(key)}={environment[variable_of(key)]} of the environment is taken in "
            f"place of the market's {key}"
            for key in sorted(ours)
        ]
    rest = {name: text for name, text in environment.items() if name not in keys}
    rest |= {
        variable_of(key): as_yaml(key, value)
        for key, value in given.items()
        if key not in PROFILE_KEYS
    }
    return _quoted(_read_text(path), context | rest), profile, notes


def _quoted(text: str, values: Mapping[str, str]) -> dict[str, str]:
    """Apostrophes doubled in those values that a template has in single quotes."""
    inside = set(re.findall(r"'\{\{\s*(\w+)", text))
    return {
        name: value.replace("'", "''") if name in inside else value
        for name, value in values.items()
    }


def _strange_variables() -> Iterator[str]:
    """KRONOS_ variables of the environment that nothing reads: misspelt, or of older files."""
    here = [name for name in os.environ if name.startswith(VARIABLE_PREFIX)]
    if not here:
        return
    known = {TOKENIZER_VARIABLE, *map(variable_of, PROFILE_KEYS)}
    for path in workflows().values():
        known |= _variables_in(_read_text(path), path)
    for name in sorted(set(here) - known):
        near = get_close_matches(name, known, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        yield f"{printable(name)} of the environment is read by no workflow{hint}"


def _with_base(config: dict[str, Any], path: Path) -> dict[str, Any]:
    from qlib.utils.data import update_config

    base = config.pop(BASE, None)
    if not base:
        return config
    place = _base_path(str(base), path)
    below = load_yaml(_read_text(place), str(place))
    if not isinstance(below, Mapping):
        raise ConfigError(f"{place} holds no sections")
    merged: dict[str, Any] = update_config(dict(below), config)
    merged.pop(BASE, None)
    return merged


def _base_path(base: str, path: Path) -> Path:
    """Where qrun would find it: from the working folder, or beside the file."""
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


def _resolve_sys(config: MutableMapping[str, Any], path: Path) -> None:
    """Paths relative to the file, which is rendered into another folder, become whole ones."""
    section = config.get("sys")
    if not isinstance(section, Mapping) or "rel_path" not in section:
        return
    one, more = section.get("path", []), section["rel_path"]
    own = [one] if isinstance(one, str) else list(one or [])
    relative = [more] if isinstance(more, str) else list(more or [])
    home = path.resolve().parent
    rest = {key: value for key, value in section.items() if key != "rel_path"}
    config["sys"] = {**rest, "path": [*own, *(str(home / each) for each in relative)]}


def _add_missing(own: MutableMapping[str, Any], base: Mapping[str, Any]) -> None:
    for key, value in base.items():
        if key not in own:
            own[key] = value
        elif isinstance(own[key], MutableMapping) and isinstance(value, Mapping):
            _add_missing(own[key], value)


def _check_addable(
    place: Mapping[str, Any],
    names: Sequence[str],
    depth: int,
    owner: Mapping[str, Any] | None,
    key: str,
    is_absolute: bool,
    where: str,
) -> None:
    """Whether a setting that the file does not have can be one."""
    name, path = names[depth], ".".join(names[:depth])
    known: set[str] = {str(each) for each in place}
    if path == "task.backtest":
        known |= {field.name for field in fields(BacktestConfig)}
        if name in known:
            return
    elif path == "qlib_init":
        return  # whatever qlib.init takes
    elif list(names[:depth]) == list(MODEL_SETTINGS)[:depth] and name in MODEL_SETTINGS:
        return  # a model without kwargs has none yet
    elif owner is not None and place is owner.get("kwargs"):
        settings, is_open = settings_of(owner)
        # A typing error in a short path must not pass for one of LightGBM's many settings.
        if name in settings or (is_open and (is_absolute or not settings)):
            return
        known |= settings
    elif owner is not None:
        return  # inside a setting: the class itself refuses what it does not know
    choices = known if is_absolute else known | _short_names()
    near = get_close_matches(name, choices, n=1, cutoff=0.6)
    hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(sorted(choices)[:40])}"
    raise ConfigError(
        f"{where}: --set {key}: {path or 'the file'} has no {printable(name)!r}; {hint}"
    )


def _short_names() -> set[str]:
    """What a key without dots may be, beside the settings of the model."""
    return set(PROFILE_KEYS)


def settings_of(section: Mapping[str, Any]) -> tuple[set[str], bool]:
    """Arguments that the class of a section takes by name, and whether it takes any other too."""
    from qlib.utils import get_callable_kwargs

    try:
        kind, _ = get_callable_kwargs(dict(section))
        signature = inspect.signature(kind.__init__ if inspect.isclass(kind) else kind)
    except Exception:  # a class that cannot be imported is refused where it is made
        return set(), True
    kinds = {name: parameter.kind for name, parameter in signature.parameters.items()}
    is_open = inspect.Parameter.VAR_KEYWORD in kinds.values()
    named = {
        name
        for name, how in kinds.items()
        if how in (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    }
    return named - {"self"}, is_open
