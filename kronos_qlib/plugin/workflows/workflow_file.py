"""Workflow files as qrun reads them: rendered, with their base, a market's values and changes.

Where a value comes from, the first that says something: `--set`, a KRONOS_ variable of the
environment, the market's profile, the file's own default.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any

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
from kronos_qlib.plugin.workflows.shipped import find_workflow, workflows
from kronos_qlib.plugin.workflows.templates import (
    BASE,
    base_path,
    load_yaml,
    quoted,
    read_text,
    render_template,
    variables_in,
)
from kronos_qlib.plugin.workflows.workflow_changes import change

logger = logging.getLogger(__name__)
BACKTEST_KEYS = {"hold": "hold_thresh"}
"""Keys of a profile that BacktestConfig calls otherwise."""


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
    text = read_text(path)
    variables = variables_in(text, path)
    given, paths = _sorted_changes(changes, variables, path)
    environment = {name: os.environ[name] for name in variables if name in os.environ}
    context, profile, notes = _values(path, variables, market, given, environment)
    found = load_yaml(render_template(text, context, path), str(path))
    if not isinstance(found, Mapping):
        raise ConfigError(f"{path} holds no sections")
    config = _with_base(dict(found), path)
    if "task" not in config and set(found) & set(PROFILE_KEYS):
        raise ConfigError(f"{path} is the profile of a market, not a workflow: name it by --market")
    _resolve_sys(config, path)
    for key, value in paths:
        change(config, key, value, str(path))
    return Workflow(path, config, profile, (*notes, *_strange_variables()))


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
    """What the file's variables stand for; the market; notes on it."""
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
    return quoted(read_text(path), context | rest), profile, notes


def _strange_variables() -> Iterator[str]:
    """KRONOS_ variables of the environment that nothing reads: misspelt, or of older files."""
    here = [name for name in os.environ if name.startswith(VARIABLE_PREFIX)]
    if not here:
        return
    known = {TOKENIZER_VARIABLE, *map(variable_of, PROFILE_KEYS)}
    for path in workflows().values():
        known |= variables_in(read_text(path), path)
    for name in sorted(set(here) - known):
        near = get_close_matches(name, known, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        yield f"{printable(name)} of the environment is read by no workflow{hint}"


def _with_base(config: dict[str, Any], path: Path) -> dict[str, Any]:
    from qlib.utils.data import update_config

    base = config.pop(BASE, None)
    if not base:
        return config
    place = base_path(str(base), path)
    below = load_yaml(read_text(place), str(place))
    if not isinstance(below, Mapping):
        raise ConfigError(f"{place} holds no sections")
    merged: dict[str, Any] = update_config(dict(below), config)
    merged.pop(BASE, None)
    return merged


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
