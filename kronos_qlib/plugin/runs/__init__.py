"""Runs in MLflow: begun, described, read back without executing what they hold."""

from __future__ import annotations

from importlib import import_module
from typing import Any

PLACES = {
    "KronosExpManager": "manager",
}
"""Each public name and its module, imported when first asked for."""

__all__ = list(PLACES)


def __getattr__(name: str) -> Any:
    if name not in PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{PLACES[name]}"), name)
