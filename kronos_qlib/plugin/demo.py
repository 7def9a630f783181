"""The simulated market of the demo: written, and opened in Qlib, with one call each."""

from __future__ import annotations

import logging
from pathlib import Path

import pandas as pd
import qlib

from kronos_qlib.data.files.synthetic import MarketConfig, make_market
from kronos_qlib.errors import ConfigError
from kronos_qlib.plugin.provider.writer import ProviderSummary, write_provider

BENCHMARK = "BENCHMARK"
"""Instrument of the market's equal-weight mean."""


def write_demo(
    folder: str | Path, config: MarketConfig, overwrite: bool = False
) -> ProviderSummary:
    """Simulate a market into a Qlib folder, with bars.parquet and oracle.parquet beside.

    Raises:
        ConfigError: the folder is there and is not to be written over.
    """
    market = make_market(config)
    return write_provider(
        market.bars,
        folder,
        freq=config.freq,
        benchmark=BENCHMARK,
        beside={"bars": market.bars, "oracle": market.oracle.to_frame()},
        overwrite=overwrite,
    )


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
        write_demo(folder, config or MarketConfig())
    bars = folder / "bars.parquet"
    if not bars.is_file():
        raise ConfigError(
            f"{folder.absolute()} has no bars.parquet, so it is not the simulated market; name "
            "another folder, or remove this one to have the market made"
        )
    qlib.init(provider_uri=str(folder), region="us", logging_level=logging.ERROR)
    return pd.read_parquet(bars)
