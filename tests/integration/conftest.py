"""A small market and its provider, for the tests that only need some bars in Qlib storage."""

from __future__ import annotations

import pytest

from kronos_qlib.data.synthetic import MarketConfig, make_market
from kronos_qlib.plugin.storage import write_provider


@pytest.fixture(scope="module")
def bars():
    config = MarketConfig(instruments=8, sectors=2, years=1.0, suspended_share=0.02, seed=3)
    return make_market(config).bars


@pytest.fixture(scope="module")
def provider(bars, tmp_path_factory):
    target = tmp_path_factory.mktemp("market") / "qlib"
    write_provider(bars, target, benchmark="BENCH", future_bars=20)
    return target
