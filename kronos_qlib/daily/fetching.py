"""Bars from a service, kept as a file that is then read as those of the drop folder are."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable

import pandas as pd

from kronos_qlib.daily.arrivals import too_early
from kronos_qlib.daily.bar_sources.choosing import make_source
from kronos_qlib.daily.daily_settings import DailyConfig
from kronos_qlib.data.files.read import write_bars
from kronos_qlib.errors import BarDataError
from kronos_qlib.plugin.provider.faults import check_market, stored_calendar
from kronos_qlib.plugin.provider.writable_bars import ALL_MARKET
from kronos_qlib.schema import LONG_COLUMNS

FETCHED = "fetched"
"""Folder in the home folder."""


def fetch(config: DailyConfig, now: dt.datetime, say: Callable[[str], None]) -> None:
    """Ask the service for the days since the folder's last ones, and keep its answer.

    Raises:
        BarDataError: the answer is no table of bars.
        MissingDependencyError: the service's package is not installed.
    """
    settings = config.bars
    assert settings.source is not None
    symbols = settings.symbols or sorted(
        {name.upper() for name in check_market(config.provider_uri, ALL_MARKET).names}
    )
    calendar = stored_calendar(config.provider_uri, "day")
    first = pd.Timestamp(calendar[max(0, len(calendar) - settings.overlap)]).date()
    last = config.local(now).date()
    if too_early(pd.Timestamp(last), config, now):
        last -= dt.timedelta(days=1)  # services answer with the bar that is under way
    if last < first:
        return
    bars = make_source(settings.source).bars(symbols, first, last)
    lacking = [name for name in LONG_COLUMNS if name not in bars]
    if lacking:
        raise BarDataError(f"{settings.source} answered without {', '.join(lacking)}")
    say(f"{settings.source}: {len(bars)} bars from {first} to {last}")
    if len(bars):
        bars = bars.sort_values(["symbol", "date"], ignore_index=True)
        write_bars(bars, config.home / FETCHED / f"{settings.source}.parquet", overwrite=True)
