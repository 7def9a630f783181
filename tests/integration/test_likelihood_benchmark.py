"""The benchmark of likelihoods: its densities are densities, and near the truth where it is known.

The truth is known of a market made by the very walk that the benchmark fits: nobody can need fewer
bits there than the walk with its true numbers.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from kronos_qlib import KronosTokenizer
from kronos_qlib.data.files.synthetic import MarketConfig, make_market
from kronos_qlib.data.windows.bar_table import BarTable
from kronos_qlib.data.windows.find import windows_to_train
from kronos_qlib.data.windows.scale import WindowScale
from kronos_qlib.inference.packed import PackedTokenizer
from kronos_qlib.schema import AMOUNT, BAR_COLUMNS, CLOSE, VOLUME

pytest.importorskip("arch", reason="the benchmark fits GARCH with arch: it is NOT tested")
pytestmark = pytest.mark.integration

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "likelihood.py"
MEAN = np.array([0.0, 0.0, 0.08, 0.08, 0.0, 4.6])
WINDOWS = 50
SPREAD = np.array([0.008, 0.02, 0.05, 0.05, 0.4, 0.004])


@pytest.fixture(scope="module")
def likelihood(load_benchmark):
    return load_benchmark("likelihood")


@pytest.fixture(scope="module")
def tokenizer():
    return KronosTokenizer.from_pretrained("nano")


@pytest.fixture(scope="module")
def root():
    """Of a covariance: volume rises with the body, upper shadows fall with it."""
    correlation = np.eye(6)
    correlation[1, 4] = correlation[4, 1] = 0.4
    correlation[1, 2] = correlation[2, 1] = -0.3
    return SPREAD[:, None] * np.linalg.cholesky(correlation)


@pytest.fixture(scope="module")
def walked(likelihood, root):
    """A table of six instruments that walk by `MEAN` and `root`."""
    rng, days, tables = np.random.default_rng(0), pd.bdate_range("2020-01-01", periods=400), []
    for number in range(6):
        last = np.array([10, 10.1, 9.9, 10, 1e6, 1e9], dtype=np.float64)
        bars = []
        for normals in rng.standard_normal((len(days), 1, 6)):
            last = likelihood.Walk(last, MEAN, root).draw(normals)[0]
            bars.append(last)
        table = pd.DataFrame(np.stack(bars), columns=list(BAR_COLUMNS))
        tables.append(table.assign(symbol=f"S{number}", date=days))
    return BarTable.from_bars(pd.concat(tables))


@pytest.fixture(scope="module")
def market():
    """A year of eight names, with bars in which nothing was traded."""
    config = MarketConfig(instruments=8, sectors=2, years=1.0, start="2021-01-01", seed=3)
    bars = make_market(config).bars
    bars.loc[np.arange(len(bars)) % 29 == 7, ["volume", "amount"]] = 0.0
    return bars


def test_steps_and_bars_are_inverse(likelihood, walked):
    bars = walked.values[:120].astype(np.float64)
    for last, bar, step in zip(bars[:-1], bars[1:], likelihood.steps_of(bars), strict=True):
        np.testing.assert_allclose(likelihood.bars_from(last, step[None])[0], bar, rtol=1e-9)


def test_bars_encoded_after_a_prefix_are_encoded_as_ever(likelihood, tokenizer):
    rng = np.random.default_rng(1)
    past = torch.from_numpy(rng.standard_normal((90, 6), dtype=np.float32))
    z = torch.from_numpy(rng.standard_normal((200, 6), dtype=np.float32))
    whole = torch.cat((past.expand(200, -1, -1), z[:, None]), dim=1)
    found = likelihood.encode_after(PackedTokenizer(tokenizer), past, z)
    for ids, expected in zip(found, tokenizer.encode(whole), strict=True):
        # A component within rounding of zero may change its sign.
        assert (ids == expected[:, -1].numpy()).mean() >= 0.99


def test_densities_sum_to_one(likelihood):
    rng = np.random.default_rng(2)
    s1, s2, sizes = np.arange(16), np.arange(8), (16, 8)
    pairs = np.stack([rng.integers(0, 12, 300), *rng.integers(0, 7, (2, 300))], axis=1)
    frequencies = likelihood.Frequencies.of(pairs, sizes, 4.0, 64.0)
    assert frequencies.s1.sum() == pytest.approx(1) and (frequencies.s1 > 0).all()
    for table in (frequencies.s2_given_s1, frequencies.s1_given_last):
        np.testing.assert_allclose(table.sum(axis=1), 1)
    drawn = rng.integers(3, 9, 100), rng.integers(0, 8, 100)
    every = np.meshgrid(s1, s2, indexing="ij")
    priors = np.stack(np.broadcast_arrays(frequencies.s1[:, None], frequencies.s2_given_s1), -1)
    hits = likelihood.count_hits(drawn, *every)
    assert hits[..., 1].sum() == 100
    for weights in ((0.1, 30.0), (30.0, 0.1)):
        bits = likelihood.bits_of_walk(hits, 100, priors, *weights)
        np.testing.assert_allclose((2.0 ** -bits[..., 1]).sum(axis=1), 1)
        assert (2.0 ** -bits.sum(axis=-1)).sum() == pytest.approx(1)


def test_a_gaussian_walk_is_judged_near_its_ideal(likelihood, walked, tokenizer, root):
    """Fitted to 90 bars and counted in 1,000 draws, a walk must not need much more than itself."""
    rng, sizes = np.random.default_rng(3), (256, 256)
    training = windows_to_train(walked, 90, 1, None, "2020-12-31")
    ahead = windows_to_train(walked, 90, 1, "2021-01-01", None)
    chosen = likelihood.take_sound(likelihood.spread_out(ahead, WINDOWS, rng))
    assert len(chosen) == WINDOWS
    sample, net = likelihood.Sample.of(chosen, tokenizer), PackedTokenizer(tokenizer)
    pairs = likelihood.count_pairs(likelihood.spread_out(training, 400, rng), tokenizer)
    frequencies = likelihood.Frequencies.of(pairs, sizes, 4.0, 64.0)
    priors = frequencies.priors(sample)
    hits = likelihood.Hits.count(sample, net, samples=1000, seed=0)
    found = likelihood.bits_of_walk(hits.of["Gaussian walk"], 1000, priors, 32.0, 2.0).sum(axis=1)

    ideal, many = np.empty((WINDOWS, 2), dtype=np.int64), 4_000
    for place in range(WINDOWS):
        past = sample.bars[place, :-1]
        bars = likelihood.Walk(past[-1], MEAN, root).draw(rng.standard_normal((many, 6)))
        z = torch.from_numpy(WindowScale.of(past[None]).to_z(bars[None])[0])
        drawn = likelihood.encode_after(net, sample.z[place, :-1], z)
        ideal[place] = likelihood.count_hits(drawn, sample.s1[place, -1], sample.s2[place, -1])
    least = likelihood.bits_of_walk(ideal, many, priors, 4.0, 1.0).sum(axis=1)
    plain = frequencies.bits(sample)["token frequencies"].sum(axis=1)
    above = found - least
    error = above.std() / WINDOWS**0.5
    assert -3 * error < above.mean() < 0.5
    assert (plain - found).mean() > 1.0


def test_volume_that_returns_is_drawn_to_return(likelihood, root):
    """A regression on the last log volume sees that the next one is independent of it."""
    rng = np.random.default_rng(4)
    bars = np.tile([10, 10.1, 9.9, 10, 1e6, 1e7], (90, 1)) * np.exp(rng.normal(0, 0.01, (90, 1)))
    bars[:, VOLUME:] *= np.exp(rng.normal(0, 0.3, (90, 1)))
    bars[-1, VOLUME:] *= 8
    normals = rng.standard_normal((4000, 6))
    walking, reverting = (
        np.median(likelihood.Walk.fit(bars, flag).draw(normals)[:, VOLUME])
        for flag in (False, True)
    )
    assert walking > 6e6 and reverting < 2e6


def test_garch_scales_prices_and_says_where_it_fails(likelihood, root):
    rng = np.random.default_rng(5)
    calm, wild = rng.normal(0, 0.004, 60), rng.normal(0, 0.03, 30)
    for returns, is_wild in (((calm, wild), True), ((wild, calm), False)):
        closes = 10 * np.exp(np.cumsum(np.concatenate(returns)))
        bars = closes[:, None] * np.array([1, 1.01, 0.99, 1, 1e5, 1e6])
        assert (likelihood.garch_ratio(bars) > 1.1) == is_wild
        assert (likelihood.garch_ratio(bars) < 0.9) == (not is_wild)
    bars[:, : CLOSE + 1] = 10.0
    assert likelihood.garch_ratio(bars) is None
    normals = rng.standard_normal((4000, 6))
    usual, twice = (likelihood.Walk(bars[-1], MEAN, root, r).draw(normals) for r in (1.0, 2.0))
    for move in (lambda b: np.log(b[:, CLOSE] / 10), lambda b: np.log(b[:, 1] / b[:, 2])):
        assert np.std(move(twice)) / np.std(move(usual)) == pytest.approx(2, rel=0.02)
    np.testing.assert_array_equal(twice[:, VOLUME], usual[:, VOLUME])


def test_windows_without_a_garch_fit_are_counted(likelihood, walked, tokenizer, monkeypatch):
    """There the volatility is the lookback's, so both walks draw the same bars."""
    ahead = windows_to_train(walked, 90, 1).take(np.arange(5))
    sample, net = likelihood.Sample.of(ahead, tokenizer), PackedTokenizer(tokenizer)
    usual = likelihood.Hits.count(sample, net, samples=20, seed=0)
    assert usual.without_garch == 0
    fit = SimpleNamespace(convergence_flag=4)
    model = SimpleNamespace(fit=lambda **options: fit)
    monkeypatch.setattr("arch.arch_model", lambda *args, **options: model)
    hits = likelihood.Hits.count(sample, net, samples=20, seed=0)
    assert hits.without_garch == 5
    for name in ("Gaussian walk", "Gaussian walk, volume returns"):
        np.testing.assert_array_equal(hits.of[name], usual.of[name])
        np.testing.assert_array_equal(hits.of[name.replace("Gaussian", "GARCH")], hits.of[name])


def test_windows_that_cannot_be_judged_are_left_out(likelihood, walked):
    window = walked.values[:91].astype(np.float64)
    assert likelihood.is_sound(window)
    quiet, junk = window.copy(), window.copy()
    quiet[:70, VOLUME:] = 0
    junk[-1, AMOUNT] *= 1e20
    assert not likelihood.is_sound(quiet) and not likelihood.is_sound(junk)


def test_errors_are_clustered_by_day(likelihood):
    values = np.random.default_rng(6).normal(size=50)
    usual = values.std(ddof=1) / 50**0.5
    assert likelihood.clustered_error(values, np.arange(50)) == pytest.approx(usual)
    thrice = likelihood.clustered_error(np.tile(values, 3), np.tile(np.arange(50), 3))
    assert thrice == pytest.approx(usual)
    assert math.isnan(likelihood.clustered_error(values, np.zeros(50)))


def test_the_benchmark_reads_nothing_later_than_its_last_day(likelihood, market, tmp_path, capsys):
    """Later bars may say anything, or nothing: the table stays the same."""
    small = [
        "--train-last", "2021-09-30", "--first", "2021-10-01", "--last", "2021-11-15",
        "--windows", "10", "--samples", "50", "--counted", "200",
    ]  # fmt: skip
    later = market["date"] > "2021-11-15"
    spoiled = market.copy()
    spoiled.loc[later, list(BAR_COLUMNS)] = np.nan
    spoiled.loc[later & (market["symbol"] == "SYM0001"), "close"] = 1.0  # would be refused
    results = {}
    for name, bars in (("all", market), ("cut", market[~later]), ("spoiled", spoiled)):
        bars.to_parquet(tmp_path / f"{name}.parquet")
        target = tmp_path / f"{name}.json"
        assert (
            likelihood.main([str(tmp_path / f"{name}.parquet"), "--json", str(target), *small]) == 0
        )
        results[name] = json.loads(target.read_text(encoding="utf-8"))
        assert results[name].pop("seconds") > 0
    assert results["all"] == results["cut"] == results["spoiled"]
    result = results["all"]
    assert result["windows"] + result["left_out"] == 10
    names = ["model", likelihood.FREQUENCIES, likelihood.LAST_TOKEN, *likelihood.WALKS]
    assert [row["density"] for row in result["rows"]] == names
    for row in result["rows"]:
        assert row["s1"] > 0 and row["bar"] == pytest.approx(row["s1"] + row["s2"])
        shown = row["bar"] - result["rows"][0]["bar"] + row.get("difference", 0)
        assert shown == pytest.approx(0, abs=1e-9)
    assert "| model, nano |" in capsys.readouterr().out


def test_segments_must_not_overlap(likelihood, capsys):
    with pytest.raises(SystemExit):
        likelihood.main(["none.parquet", "--train-last", "2002-01-01", "--first", "2002-01-01"])
    assert "--train-last must be before --first" in capsys.readouterr().err
