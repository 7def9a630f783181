"""No look-ahead: every bar after a random t is replaced, and nothing at or before t may change."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from kronos_qlib.data.gather import gather
from kronos_qlib.data.synthetic import MarketConfig, make_market
from kronos_qlib.plugin.dataset import KronosDataset
from kronos_qlib.plugin.model import KronosModel
from kronos_qlib.plugin.storage import write_provider
from kronos_qlib.schema import BAR_COLUMNS

pytestmark = pytest.mark.integration

LOOKBACK, LEAST, HORIZON = 40, 25, 5
SIZES = ["volume", "amount"]


@pytest.fixture(scope="module")
def markets(make_minutes):
    daily = make_market(MarketConfig(instruments=6, sectors=2, years=0.7, seed=11)).bars
    return {"day": daily, "5min": make_minutes(instruments=4, days=4)}


def replaced_after(bars: pd.DataFrame, t: pd.Timestamp, seed: int) -> pd.DataFrame:
    """Other prices and sizes after t, and other suspensions."""
    rng = np.random.default_rng(seed)
    later = (bars["date"] > t).to_numpy()
    changed = bars.copy()
    prices = list(BAR_COLUMNS[:4])
    jump = rng.uniform(0.5, 2.0, later.sum())
    changed.loc[later, prices] = changed.loc[later, prices].mul(jump, axis=0)
    changed.loc[later, SIZES] = rng.uniform(1, 1e6, (later.sum(), 2))
    first = bars["symbol"] == bars["symbol"].iloc[0]  # one name keeps its bars: the calendar's
    gone = later & (rng.random(len(bars)) < 0.15) & ~first.to_numpy()
    return changed[~gone]


def what_is_known(folder, freq: str, segments) -> dict[str, pd.DataFrame]:
    """Scores, windows as they are gathered, and the handler's fields, all by (time, name)."""
    import qlib
    from qlib.data.cache import H

    qlib.init(
        provider_uri={freq: str(folder)}, region="cn", clear_mem_cache=True, skip_if_reg=False,
        kernels=1,
    )  # fmt: skip
    H.clear()
    handler = {
        "class": "KronosHandler",
        "module_path": "kronos_qlib.plugin.dataset",
        "kwargs": {"freq": freq},
    }
    dataset = KronosDataset(
        handler, segments, lookback=LOOKBACK, horizon=HORIZON, min_bars=LEAST,
        beyond_calendar="XSHG",
    )  # fmt: skip
    known = {}
    for name, windows in (
        ("to score", dataset.windows("all")),
        ("to train", dataset.training_windows("all")),
    ):
        batch = gather(windows, np.arange(len(windows)))
        parts = (batch.z, batch.stamps, batch.counted)
        flat = np.concatenate([part.reshape(len(windows), -1) for part in parts], axis=1)
        index = windows.index
        if windows.ahead:  # known when its horizon is
            ended = windows.table.times_at(windows.ends[:] + windows.ahead)
            index = pd.MultiIndex.from_arrays([ended, index.get_level_values(1)])
        known[name] = pd.DataFrame(flat, index=index)
    known["fields"] = dataset.prepare("all", col_set="feature")
    model = KronosModel(sampling={"paths": 2}, device="cpu", show_progress=False, max_context=50)
    known["scores"] = model.predict(dataset, "scored").to_frame()
    return known


@pytest.mark.parametrize("freq", ["day", "5min"])
@pytest.mark.parametrize("seed", [0, 1])
def test_nothing_known_at_t_changes_when_every_later_bar_does(markets, tmp_path, freq, seed):
    bars = markets[freq]
    times = np.unique(bars["date"].to_numpy())
    t = pd.Timestamp(np.random.default_rng(seed).choice(times[LOOKBACK + 5 : -10]))
    at = np.searchsorted(times, t.to_datetime64())
    segments = {
        "all": (times[0], times[-1]),
        "scored": (times[at - 4], times[min(at + 4, len(times) - 1)]),
    }
    write_provider(bars, tmp_path / "before", freq=freq)
    write_provider(replaced_after(bars, t, seed), tmp_path / "after", freq=freq)
    before, after = (what_is_known(tmp_path / name, freq, segments) for name in ("before", "after"))
    assert len(before["scores"]) > 8
    for name in before:
        past, later = (
            [
                known[(known.index.get_level_values(0) > t) == is_later]
                for known in (before[name], after[name])
            ]
            for is_later in (False, True)
        )
        assert len(past[0]), name
        pd.testing.assert_frame_equal(*past, check_exact=True, obj=name)
        both = later[0].index.intersection(later[1].index)
        assert len(both), name
        same = (later[0].loc[both] == later[1].loc[both]).all(axis=1)
        assert same.mean() < 0.1, f"{name}: the later bars were to change something"
