"""The benchmark of the paper's yardsticks: its rows are what they say, and see no later bar."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from kronos_qlib import WindowDataset
from kronos_qlib.data.files.synthetic import MarketConfig, make_market
from kronos_qlib.evaluation.forecasts.distributions import Outcomes, realised_volatility
from kronos_qlib.evaluation.forecasts.path_measures import pooled_rank_ic, squared_correlation
from kronos_qlib.schema import BAR_COLUMNS, CLOSE

pytest.importorskip("arch", reason="the benchmark fits GARCH with arch: it is NOT tested")
pytestmark = pytest.mark.integration

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "paper.py"
SMALL = [
    *("--train", "2021-01-01", "2021-10-31", "--test", "2021-11-01", "2021-12-20"),
    *("--windows", "40", "--gru-windows", "300", "--epochs", "2", "--paths", "3"),
    *("--lookback", "40", "--horizon", "4"),
]  # fmt: skip


@pytest.fixture(scope="module")
def paper(load_benchmark):
    return load_benchmark("paper")


@pytest.fixture(scope="module")
def market():
    config = MarketConfig(instruments=8, sectors=2, years=1.0, start="2021-01-01", seed=3)
    return make_market(config).bars


def bars_of(closes, symbol="S"):
    """A long table of bars that open at the close before."""
    opens = np.concatenate((closes[:1], closes[:-1]))
    both = np.stack((opens, closes))
    return pd.DataFrame(
        {
            "symbol": symbol,
            "date": pd.bdate_range("2015-01-01", periods=len(closes)),
            "open": opens,
            "high": both.max(axis=0) * 1.001,
            "low": both.min(axis=0) / 1.001,
            "close": closes,
            "volume": 1e6,
            "amount": 1e6 * closes,
        }
    )


def windows_of(bars, lookback=40, horizon=4):
    source = WindowDataset.from_file(
        bars, {"all": (None, None)}, lookback=lookback, horizon=horizon
    )
    return source.training_windows("all").by_time()


def test_it_prints_every_row_and_reads_nothing_later_than_its_last_day(
    paper, market, tmp_path, capsys
):
    """Later bars may say anything, or nothing: the tables stay the same."""
    later = market["date"] > "2021-12-20"
    spoiled = market.copy()
    spoiled.loc[later, list(BAR_COLUMNS)] = np.nan
    results = {}
    for name, bars in (("cut", market[~later]), ("spoiled", spoiled)):
        bars.to_parquet(tmp_path / "market.parquet")
        target = tmp_path / f"{name}.json"
        assert paper.main([str(tmp_path / "market.parquet"), "--json", str(target), *SMALL]) == 0
        results[name] = json.loads(target.read_text(encoding="utf-8"))
        assert results[name].pop("seconds")["judging"] > 0
    text = capsys.readouterr().out
    assert json.dumps(results["cut"]) == json.dumps(results["spoiled"])  # NaN is NaN in text
    result = results["cut"]
    assert result["windows"] == 40 and result["gru"]["epochs"] == 2
    table = pd.DataFrame(result["rows"])
    table = table.set_index(["method", "less", "measure"]).sort_index()
    own = table.xs("", level="less")
    methods = [paper.PAPER, paper.OURS, paper.GARCH, paper.GRU, paper.WALK, paper.LAST]
    assert set(own.index.get_level_values("method")) == set(methods)
    for name in (*methods, *(f"{paper.OURS}, less {paper.GARCH}", "published, base")):
        assert f"\n| {name} |" in text
    for measure in (paper.PRICE, paper.RETURN, paper.BY_BAR):
        # A flat path orders nothing: it has no rank correlation, rather than one of zero.
        assert own.loc[[(paper.WALK, measure), (paper.LAST, measure)], "value"].isna().all()
        assert own.loc[[(name, measure) for name in methods[:4]], "value"].abs().max() < 1
    assert result["expected_volatility"][paper.LAST] == 0 < result["expected_volatility"][paper.GRU]
    last = own.loc[paper.LAST]
    assert last.loc[paper.MAE, "value"] == pytest.approx(result["mean_volatility"])
    assert last.loc[paper.R2, "value"] < 0 and math.isnan(last.loc[paper.FITTED_R2, "value"])
    own = own["value"].unstack("measure")
    for one, other in ((paper.PAPER, paper.GARCH), (paper.OURS, paper.GRU)):
        apart = table.loc[(one, other), "value"]
        assert apart.to_dict() == pytest.approx((own.loc[one] - own.loc[other]).to_dict())


def test_who_knows_what_comes_has_every_measure_full(paper):
    rng = np.random.default_rng(0)
    past = 10 * np.exp(np.cumsum(rng.normal(0, 0.02, (30, 25)), axis=1))
    days = pd.bdate_range("2024-01-01", periods=20).to_numpy()
    until = days[np.arange(15).repeat(2)[:, None] + np.arange(1, 6)]
    outcomes = Outcomes(days[:15].repeat(2), past[:, :20], past[:, 20:], until, 10)
    every = np.ones(30, dtype=bool)
    known = paper.of_paths(np.repeat(outcomes.closes[:, None], 2, axis=1), outcomes.last_close)
    found = {name: one(every) for name, one in paper.measures_of(known, outcomes).items()}
    expected = {name: 1.0 for name in found} | {paper.MAE: 0.0}
    assert found == pytest.approx(expected, abs=1e-9)
    # Half the volatility: half of it missed, and after a regression nothing.
    timid = paper.Prediction(-known.returns, known.volatility / 2)
    found = {name: one(every) for name, one in paper.measures_of(timid, outcomes).items()}
    came = realised_volatility(outcomes.closes, outcomes.last_close)[:, -1]
    assert found[paper.MAE] == pytest.approx(50 * came.mean())
    assert found[paper.FITTED_R2] == pytest.approx(1) and found[paper.R2] < 0
    assert found[paper.PRICE] == found[paper.RETURN] == pytest.approx(-1)


def test_returns_are_taken_from_bar_to_bar(paper):
    returns = np.array([[0.1, 0.21, 0.089]])
    np.testing.assert_allclose(paper.bar_returns(returns), [[0.1, 0.1, -0.1]])


def test_garch_knows_calm_from_storm_and_says_where_it_fails(paper):
    rng = np.random.default_rng(1)
    calm, wild = rng.normal(0, 0.004, 60), rng.normal(0, 0.03, 30)
    moves = np.stack((np.concatenate((calm, wild)), np.concatenate((wild, calm)), np.zeros(90)))
    closes = 10 * np.exp(np.cumsum(np.pad(moves, ((0, 0), (1, 0))), axis=1))
    found, failed = paper.of_garch(closes, 5)
    assert failed == 1  # the price that never moved
    assert found.volatility[0] > 1.5 * found.volatility[1] > 50 * found.volatility[2]
    mean, variances = paper.fit_garch(100 * moves[0], 5)
    np.testing.assert_allclose(found.returns[0], np.expm1(mean / 100 * np.arange(1, 6)))
    assert found.volatility[0] == pytest.approx(
        0.951 * np.sqrt(variances.mean() + mean**2) / 100, rel=1e-3
    )  # the mean root of five normal squares' mean: (2 / 5)^(1/2) gamma(3) / gamma(2.5) = .9515


def test_the_gru_learns_what_is_there_to_learn(paper):
    """Returns that turn back by half, of names that are calm and wild in turns."""
    rng, tables = np.random.default_rng(2), []
    for number in range(6):
        volatility = np.repeat(rng.choice([0.005, 0.02], 30), 20)
        noise = rng.normal(size=600) * volatility
        moves = noise.copy()
        for bar in range(1, 600):
            moves[bar] -= 0.5 * moves[bar - 1]
        tables.append(bars_of(10 * np.exp(np.cumsum(moves)), f"S{number}"))
    windows = windows_of(pd.concat(tables))
    learned = windows.take(np.flatnonzero(windows.times < np.datetime64("2016-12-01")))
    ahead = windows.take(np.flatnonzero(windows.times > np.datetime64("2016-12-15")))
    net, said = paper.train_gru(learned, 6, seed=0)
    assert said["epoch_kept"] == 1 + int(np.argmin(said["losses"]))
    found = paper.of_gru(net, ahead)
    closes = ahead.bars(slice(None))[..., CLOSE].astype(np.float64)
    came, last = closes[:, 40:], closes[:, 39]
    first = came[:, 0] / last - 1
    assert pooled_rank_ic(found.returns[:, 0], first) > 0.3
    realised = realised_volatility(came, last)[:, -1]
    assert squared_correlation(found.volatility, realised) > 0.1
    again, _ = paper.train_gru(learned, 1, seed=0)
    twice, _ = paper.train_gru(learned, 1, seed=0)
    for one, other in zip(again.parameters(), twice.parameters(), strict=True):
        assert torch.equal(one, other)


def test_the_gru_sees_bars_of_the_lookback_alone(paper, market):
    windows = windows_of(market)
    seen = paper.Lessons.of(windows).seen
    spoiled = market.copy()
    last = market["date"] > market["date"].unique()[-5]
    spoiled.loc[last, ["open", "high", "low", "close"]] *= 1.1
    others = paper.Lessons.of(windows_of(spoiled)).seen
    until = windows.times == windows.times.max()
    assert until.any() and torch.equal(seen[until], others[until])


def test_no_bar_that_is_learned_lies_in_the_tenth_that_chooses(paper, market):
    windows = windows_of(market)
    early, late = paper.split_late(windows)
    until = windows.table.times_at(early.ends[:].astype(np.int64) + windows.ahead)
    assert until.max() <= late.times.min()
    assert len(early) > 0.8 * len(windows) and len(late) > 0.09 * len(windows)


def test_windows_with_a_jump_are_left_out(paper):
    closes = 10 * np.exp(np.cumsum(np.random.default_rng(4).normal(0, 0.01, 200)))
    closes[100:] /= 2
    kept, jumps = paper.without_jumps(windows_of(bars_of(closes)))
    assert jumps == 43  # 44 bars, seen and ahead, have 43 moves
    assert len(kept) == 200 - 43 - 43


def test_segments_must_not_overlap(paper, capsys):
    with pytest.raises(SystemExit):
        paper.main(["none.parquet", "--train", "2020-01-01", "2023-06-30"])
    assert "--train must end before --test begins" in capsys.readouterr().err
