"""Truth tests: pure noise holds no signal, a planted effect is found, a leak does not pass.

Many small markets in place of one long one: a signal's mean IC in one market says little, since
its days share the names and their traits, but markets of different seeds are independent. So the
mean ICs of a signal, one per market, are a plain sample, and Student's t of it is exact enough.

LightGBM learns from the head's own features (returns, volatilities, places in the range, amounts
over many bars) and not from Alpha158, which takes Qlib seconds a market to compute.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import lightgbm
import numpy as np
import pandas as pd
import pytest
from scipy.stats import t as student

from kronos_qlib.data.files.synthetic import MarketConfig, make_market
from kronos_qlib.data.windows.bar_table import BarTable
from kronos_qlib.data.windows.scale_features import standardised_over_day
from kronos_qlib.data.windows.window_dataset import WindowDataset
from kronos_qlib.evaluation.ranking.day_tables import to_wide
from kronos_qlib.evaluation.ranking.information_coefficient import daily_ic
from kronos_qlib.plugin.model import ALPHA, KronosModel
from kronos_qlib.signals.past_bars import BASELINES, baseline_of
from kronos_qlib.signals.paths import DEFAULT_SIGNALS
from kronos_qlib.training.alpha import day_features

pytestmark = pytest.mark.integration

SEEDS = 20
NAMES = 24
LOOKBACK, HORIZON = 24, 5
SCORED_DAYS = 15
TOP = 5
"""Names held, of equal weight, from the close after the score to the next."""
CHANCE = 0.01
"""That one or more of all the figures judged together is called distinguishable from 0 though
none is: Bonferroni's share of it goes to each. The figures are dependent, so the true chance is
smaller; and as the seeds are fixed the test does not come and go, it can only change with the
code or with a library's draws."""


def measured(effect: float, seed: int) -> pd.Series:
    """One market's mean IC, Rank IC and daily excess return of the best names, by signal."""
    market = make_market(
        MarketConfig(
            instruments=NAMES, sectors=4, years=0.41, effect=effect, late_share=0.0, seed=seed
        )
    )
    table = BarTable.from_bars(market.bars)
    days = table.calendar
    first = len(days) - SCORED_DAYS - 2  # two days on, the last score's return is known
    segments = {
        "train": (days[0], days[first - 11]),
        "valid": (days[first - 10], days[first - 1]),
        "test": (days[first], days[-3]),
    }
    dataset = WindowDataset(
        table=table,
        segments=segments,
        lookback=LOOKBACK,
        horizon=HORIZON,
        beyond_calendar="weekdays",
    )
    model = KronosModel(
        sampling={"paths": 4, "temperature": 1.0, "top_p": 1.0, "stratified": True},
        training={"alpha": {"epochs": 2, "seed": seed}},
        signals={"keep": [ALPHA, *DEFAULT_SIGNALS]},
        device="cpu",
        seed=seed,
        show_progress=False,
    )
    model.fit(dataset)
    scores = model.signals(dataset).drop(columns="score")
    windows = dataset.windows("test").by_time()
    assert scores.index.equals(windows.index)
    for kind in BASELINES:
        found = np.empty(len(windows))
        for which, group in windows.by_length():
            found[which] = baseline_of(kind, group.bars(slice(None)))
        scores[kind] = found
    scores["lightgbm"] = trees(dataset, seed).predict(day_features(windows))
    # What no backtest shows by itself: reversal as it stands when the return to earn is known.
    closes = market.bars.pivot(index="date", columns="symbol", values="close")
    late = (closes / closes.shift(5) - 1).shift(-2).rename_axis("datetime")
    scores["leak"] = late.stack().reindex(scores.index).to_numpy()

    returns = (closes.shift(-2) / closes.shift(-1) - 1).rename_axis("datetime")
    told = {}
    for name in scores:
        wide = to_wide(scores[name])
        daily = daily_ic(wide, returns.reindex_like(wide))
        known = wide.where(returns.reindex_like(wide).notna())
        best = known.rank(axis=1, ascending=False) <= TOP
        came = returns.reindex_like(wide).where(known.notna())
        excess = came.where(best).mean(axis=1) - came.mean(axis=1)
        told[name, "ic"] = daily["ic"].mean()
        told[name, "rank_ic"] = daily["rank_ic"].mean()
        told[name, "excess"] = excess.mean()
    return pd.Series(told)


def trees(dataset: WindowDataset, seed: int) -> lightgbm.Booster:
    windows = dataset.labelled_windows("train").by_time()
    returns = dataset.label.of(windows)
    target = np.full(len(windows), np.nan)
    for day in windows.moments():
        known = day.start + np.flatnonzero(np.isfinite(returns[day]))
        target[known] = standardised_over_day(returns[known, None])[:, 0]
    there = np.isfinite(target)
    table = lightgbm.Dataset(day_features(windows)[there], target[there])
    how = {
        "learning_rate": 0.05,
        "num_leaves": 8,
        "min_data_in_leaf": 40,
        "num_threads": 1,
        "seed": seed,
        "deterministic": True,
        "verbose": -1,
    }
    return lightgbm.train(how, table, num_boost_round=40)


def markets(effect: float, seeds: range) -> pd.DataFrame:
    """A row per market."""
    with ThreadPoolExecutor(2) as crew:
        rows = list(crew.map(lambda seed: measured(effect, seed), seeds))
    return pd.DataFrame(rows, index=seeds)


def t_of(sample: pd.DataFrame) -> pd.Series:
    return sample.mean() / sample.std(ddof=1) * np.sqrt(len(sample))


def bound(figures: int, markets: int) -> float:
    """The |t| that the largest of so many figures passes by chance in CHANCE of all cases."""
    return float(student.isf(CHANCE / figures / 2, markets - 1))


@pytest.fixture(scope="module")
def noise():
    return markets(0.0, range(SEEDS))


def test_pure_noise_holds_no_signal_and_earns_nothing(noise):
    honest = noise.drop(columns="leak", level=0)
    assert honest.columns.get_level_values(0).nunique() == len(DEFAULT_SIGNALS) + 4 + 2
    assert honest.notna().all(axis=None)
    t = t_of(honest)
    limit = bound(len(t), SEEDS)
    assert t.abs().max() < limit, t[t.abs() >= limit]
    # Nor may figures be too good to be chance: with any spread at all some t lie past 1.
    assert t.abs().max() > 1


def test_a_leak_is_distinguishable_from_noise(noise):
    t = t_of(noise["leak"])
    assert (t > bound(noise.shape[1], SEEDS)).all(), t


def test_the_same_code_finds_a_planted_effect():
    found = markets(0.3, range(100, 106))
    t, mean = t_of(found), found.mean()
    limit = bound(3, len(found))
    for name in ("reversal", "alpha", "lightgbm"):
        assert t[name, "rank_ic"] > limit, t[name]
        assert mean[name, "excess"] > 0
    assert mean["momentum", "rank_ic"] < 0, "the planted effect is a reversal"
