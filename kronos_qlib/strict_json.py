"""JSON that a stranger may have written: bounded, no key twice, only numbers that can be used."""

from __future__ import annotations

import json
import math
import stat
from pathlib import Path
from typing import Any, NoReturn

from kronos_qlib.errors import CheckpointError, printable, short_repr

MOST_BYTES = 2**20
"""A config has about 500 bytes, the header of a network of 256 layers about 400,000."""
MOST_DIGITS = 18
"""Of a whole number: any size or offset of a file fits."""


def read_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        CheckpointError: the file cannot be read, is too large, or is no such object; names it.
    """
    try:
        if not is_file(path):
            raise OSError("there is no such file")
        with path.open("rb") as file:
            data = file.read(MOST_BYTES + 1)
    except OSError as broken:
        raise CheckpointError(
            f"{printable(str(path))} cannot be read as JSON: {broken}"
        ) from broken
    try:
        return parse_object(data)
    except ValueError as broken:
        raise CheckpointError(f"{path} cannot be read as JSON: {broken}") from broken


def is_file(path: Path) -> bool:
    """Whether it is a file or a link to one; a pipe is none, to open it would wait for its writer.

    False for a name that no file can have, too.
    """
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except (OSError, ValueError):
        return False


def parse_object(data: bytes) -> dict[str, Any]:
    """The object in the bytes of a JSON file.

    Raises:
        ValueError: names what is not allowed.
    """
    if len(data) > MOST_BYTES:
        raise ValueError(f"it has more than {MOST_BYTES} bytes")
    try:
        found = json.loads(
            data.decode("utf-8-sig"),
            object_pairs_hook=_unrepeated,
            parse_int=_whole,
            parse_float=_finite,
            parse_constant=_refuse,
        )
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(found, dict):
        raise ValueError(f"expected an object of settings, got {short_repr(found)}")
    return found


def _unrepeated(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"it has {short_repr(key)} twice")
        found[key] = value
    return found


def _whole(text: str) -> int:
    if len(text) > MOST_DIGITS:
        raise ValueError(f"the number {short_repr(text)} has more than {MOST_DIGITS} digits")
    return int(text)


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {short_repr(text)} is too large")
    return value


def _refuse(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")
