"""Single values put into a workflow that is read."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, MutableMapping, MutableSequence, Sequence
from dataclasses import fields
from difflib import get_close_matches
from typing import Any

from kronos_qlib.errors import ConfigError, printable, short_repr
from kronos_qlib.plugin.records.backtest_record import BacktestConfig
from kronos_qlib.plugin.workflows.markets import (
    PROFILE_KEYS,
)

MODEL_SETTINGS = ("task", "model", "kwargs")
"""Where a path that begins at no section of the file begins."""


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
        settings, is_open = arguments_of(owner)
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


def arguments_of(section: Mapping[str, Any]) -> tuple[set[str], bool]:
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
