"""The simulated market of the demo, opened in Qlib with one call: what notebooks begin with."""

from __future__ import annotations

import logging
from pathlib import Path

import pandas as pd
import qlib

from kronos_qlib.data.synthetic import MarketConfig, make_market
from kronos_qlib.errors import ConfigError
from kronos_qlib.plugin.storage import write_provider

BENCHMARK = "BENCHMARK"
"""Instrument of the market's equal-weight mean."""


def open_demo(folder: str | Path, config: MarketConfig | None = None) -> pd.DataFrame:
    """Open a market in Qlib, after simulating it where there is none; Qlib then logs errors only.

    Args:
        folder: the provider folder. One that is there is opened as it is, whatever made it.
        config: of a market that is made; None: that of `make demo`.

    Returns:
        The market's bars, `schema.LONG_COLUMNS`, from bars.parquet in the folder.

    Raises:
        ConfigError: the folder exists and holds no market of `kronos-qlib data demo`.
    """
    folder = Path(folder)
    if not folder.exists():
        market = make_market(config or MarketConfig())
        write_provider(
            market.bars,
            folder,
            benchmark=BENCHMARK,
            beside={"bars": market.bars, "oracle": market.oracle.to_frame()},
        )
    bars = folder / "bars.parquet"
    if not bars.is_file():
        raise ConfigError(
            f"{folder.absolute()} has no bars.parquet, so it is not the simulated market; name "
            "another folder, or remove this one to have the market made"
        )
    qlib.init(provider_uri=str(folder), region="us", logging_level=logging.ERROR)
    return pd.read_parquet(bars)
