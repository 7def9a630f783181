"""Frozen settings, checked at birth, that YAML keys, fields and flags share name for name."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields
from difflib import get_close_matches
from typing import Any, TypeVar

from kronos_qlib.errors import ConfigError, short_repr

T = TypeVar("T")


def from_mapping(kind: type[T], values: Mapping[str, Any], where: str | None = None) -> T:
    """Build a setting from a file's mapping; an unknown or a missing key is an error.

    Args:
        kind: a dataclass.
        values: what the file says.
        where: the file or section to name in an error; the class' name by default.

    Raises:
        ConfigError: a key is unknown (with the nearest known one), missing, or has a bad value.
    """
    where = where or kind.__name__
    if not isinstance(values, Mapping):
        raise ConfigError(f"{where} must be a mapping of settings, got {short_repr(values)}")
    known = {field.name: field for field in fields(kind)}  # type: ignore[arg-type]
    for key in values:
        if key not in known:
            near = get_close_matches(str(key)[:80], known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
            raise ConfigError(f"{where} has no setting {short_repr(key)}; {hint}")
    missing = [
        name
        for name, field in known.items()
        if name not in values and field.default is MISSING and field.default_factory is MISSING
    ]
    if missing:
        raise ConfigError(f"{where} lacks {', '.join(missing)}")
    try:
        return kind(**values)
    except ConfigError as bad:
        raise ConfigError(f"{where}: {bad}") from bad


def require(holds: bool, message: str) -> None:
    """Check a condition on settings.

    Raises:
        ConfigError: it does not hold; with the message.
    """
    if not holds:
        raise ConfigError(message)


def check_whole(owner: object, *names: str, least: int = 1, most: int | None = None) -> None:
    """Check that attributes of `owner` are whole numbers from `least` to `most`, and no booleans.

    Raises:
        ConfigError: names the first that is not.
    """
    for name in names:
        value = getattr(owner, name)
        is_whole = isinstance(value, int) and not isinstance(value, bool)
        require(
            is_whole and value >= least,
            f"{name} must be a whole number of at least {least}, got {short_repr(value)}",
        )
        require(
            most is None or value <= most, f"{name} must be at most {most}, got {short_repr(value)}"
        )


def check_number(owner: object, *names: str) -> None:
    """Check that attributes of `owner` are finite numbers, and no booleans.

    Raises:
        ConfigError: names the first that is not.
    """
    for name in names:
        value = getattr(owner, name)
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        # A whole number may be larger than any float.
        is_finite = is_number and abs(value) <= sys.float_info.max
        require(is_finite, f"{name} must be a number, got {short_repr(value)}")


def check_numbers(owner: object, *names: str, count: int | None = None, most: float) -> None:
    """Check that attributes of `owner` are tuples of numbers from -`most` to `most`.

    Args:
        count: how many there are; None: one at least.

    Raises:
        ConfigError: names the first that is not.
    """
    for name in names:
        values = getattr(owner, name)
        is_good = isinstance(values, tuple) and (
            bool(values) if count is None else len(values) == count
        )
        how_many = "numbers" if count is None else f"{count} numbers"
        require(is_good, f"{name} must be {how_many}, got {short_repr(values)}")
        for value in values:
            is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
            require(
                is_number and abs(value) <= most,
                f"{name} must be numbers from {-most:g} to {most:g}, got {short_repr(value)}",
            )


def check_choice(owner: object, *names: str) -> None:
    """Check that attributes of `owner` are true or false.

    Raises:
        ConfigError: names the first that is not.
    """
    for name in names:
        value = getattr(owner, name)
        require(isinstance(value, bool), f"{name} must be true or false, got {short_repr(value)}")


def check_names(owner: object, *names: str) -> None:
    """Check that attributes of `owner` are lists of texts, each once; they are made tuples.

    Raises:
        ConfigError: names the first that is not.
    """
    for name in names:
        values = getattr(owner, name)
        is_list = isinstance(values, (list, tuple)) and all(isinstance(one, str) for one in values)
        require(is_list, f"{name} must be a list of names, got {short_repr(values)}")
        twice = [one for one in values if values.count(one) > 1]
        require(not twice, f"{name} has {short_repr(twice[:1])} more than once")
        object.__setattr__(owner, name, tuple(values))


def check_known(owner: object, **known: Sequence[str]) -> None:
    """Check that attributes of `owner` are among their known values, given by name.

    Raises:
        ConfigError: names the first that is not, with the known values.
    """
    for name, choices in known.items():
        value = getattr(owner, name)
        require(value in choices, f"{name} is one of {', '.join(choices)}, got {value!r}")


def check_dropouts(owner: object, *names: str) -> None:
    """Check that attributes of `owner` are probabilities of dropout, in [0, 1).

    Raises:
        ConfigError: names the first that is not.
    """
    check_number(owner, *names)
    for name in names:
        value = getattr(owner, name)
        require(0 <= value < 1, f"{name} must lie in [0, 1), got {value}")
