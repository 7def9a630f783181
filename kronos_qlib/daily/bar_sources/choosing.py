"""Services by name, and what each of them answers."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Protocol

import pandas as pd

from kronos_qlib.errors import ConfigError, short_repr

SOURCES: Mapping[str, str] = {
    name: f"kronos_qlib.daily.bar_sources.{name}_source"
    for name in ("akshare", "baostock", "yfinance", "ccxt")
}
"""Each service's module; its class is `Source`, and its extra has the service's name."""


class BarSource(Protocol):
    """A service that has daily bars."""

    def bars(self, symbols: Sequence[str], first: dt.date, last: dt.date) -> pd.DataFrame:
        """Bars of instruments from the first day to the last, both inclusive.

        Args:
            symbols: as the Qlib folder spells them.

        Returns:
            `schema.LONG_COLUMNS`: price x factor, shares / factor, money. Days without trade, and
            instruments of which nothing is known, have no row.
        """
        ...


def check_source(name: str) -> None:
    """Refuse a service that there is no adapter for.

    Raises:
        ConfigError: names those there are.
    """
    if name not in [*SOURCES]:  # whatever a file has in a name's place
        raise ConfigError(f"source: {short_repr(name)} is none of {', '.join(SOURCES)}")


def make_source(name: str) -> BarSource:
    """The adapter of a service.

    Raises:
        ConfigError: there is none of that name.
        MissingDependencyError: its package is not installed.
    """
    check_source(name)
    source: BarSource = import_module(SOURCES[name]).Source()
    return source
