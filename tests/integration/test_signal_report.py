"""SignalReportRecord on a market whose truth is known, on minutes, and on runs that lack a part."""

import io
import logging
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from qlib.data import D
from qlib.workflow.record_temp import SigAnaRecord

from kronos_qlib.data.files.synthetic import MarketConfig, make_market
from kronos_qlib.errors import ConfigError, MissingArtifactError, UndefinedMetricError
from kronos_qlib.evaluation.ranking.day_tables import to_wide
from kronos_qlib.evaluation.ranking.exposure import attribution
from kronos_qlib.evaluation.ranking.information_coefficient import rank_correlation
from kronos_qlib.evaluation.ranking.uncertainty import daily_mean
from kronos_qlib.plugin.baselines import BaselineModel
from kronos_qlib.plugin.dataset import KronosDataset, KronosHandler
from kronos_qlib.plugin.lookahead import open_provider
from kronos_qlib.plugin.provider.writer import write_provider
from kronos_qlib.plugin.records.artifacts import count_signals, first_of_equals
from kronos_qlib.plugin.records.baseline_scores import baselines_at
from kronos_qlib.plugin.records.run_check import RunCheckRecord, await_metrics
from kronos_qlib.plugin.records.signal_report import (
    FILES,
    SIGNAL_REPORT_METRICS,
    SignalReportRecord,
)
from kronos_qlib.plugin.records.signal_rows import neutralised
from kronos_qlib.plugin.records.style_report import sectors_of_task
from kronos_qlib.signals.past_bars import BASELINES, STYLES

pytestmark = pytest.mark.integration

LABEL = "Ref($close, -2) / Ref($close, -1) - 1"


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """A market with an effect twice the usual, 24 names and a year; its oracle lies beside it."""
    config = MarketConfig(instruments=24, years=1.0, effect=0.2, seed=1)
    market = make_market(config)
    folder = tmp_path_factory.mktemp("planted") / "qlib"
    write_provider(
        market.bars, folder, benchmark="BENCH", beside={"oracle": market.oracle.to_frame()}
    )
    return folder, market.oracle


def labels_of(names, freq="day"):
    frame = D.features(names, [LABEL], freq=freq)
    return frame.swaplevel().sort_index().set_axis(["LABEL0"], axis=1)


def save_run(recorder, pred, label, signals=None, tmp_path=None):
    recorder.save_objects(**{"pred.pkl": pred, "label.pkl": label})
    if signals is not None:
        signals.to_parquet(tmp_path / "signals.parquet")
        recorder.save_objects(local_path=str(tmp_path / "signals.parquet"), artifact_path="signals")


def read_csv(recorder, name):
    return pd.read_csv(recorder.download_artifact(f"signal_report/{name}.csv"), index_col=0)


def test_the_report_on_a_market_whose_truth_is_known(recorder, planted, tmp_path):
    folder, oracle = planted
    open_provider(folder)
    rng = np.random.default_rng(0)
    seen = oracle[oracle.index.get_level_values("datetime") >= "2020-06-01"]
    score = (seen + rng.normal(scale=seen.std(), size=len(seen))).rename("score")
    label = labels_of(sorted(seen.index.get_level_values("instrument").unique()))
    label = label[label.index.get_level_values("datetime") >= "2020-06-01"]
    signals = pd.DataFrame(
        {
            "score": score,
            "expected_return": score,
            "truth": seen,
            "noise": rng.normal(size=len(seen)),
            "flat": 0.0,
        }
    )
    save_run(recorder, score.to_frame(), label, signals, tmp_path)
    SigAnaRecord(recorder).generate()
    record = SignalReportRecord(recorder)
    record.generate()
    record.check(include_self=True)
    RunCheckRecord(recorder, metrics=SIGNAL_REPORT_METRICS).generate()

    logged = recorder.list_metrics()
    # Whatever Qlib measures too is the same.
    for ours, qlibs in (
        ("ic.mean", "IC"),
        ("ic.ratio", "ICIR"),
        ("rank_ic.mean", "Rank IC"),
        ("rank_ic.ratio", "Rank ICIR"),
    ):
        assert logged[ours] == pytest.approx(logged[qlibs], rel=1e-6)
    # The usual label is the return over one bar.
    assert logged["rank_ic.h1"] == pytest.approx(logged["rank_ic.mean"])
    assert logged["rank_ic.y2020"] == pytest.approx(logged["rank_ic.mean"])
    assert 0 < logged["rank_ic.low"] < logged["rank_ic.mean"] < logged["rank_ic.high"]
    # Noise as large as the truth leaves 1 / sqrt(2) of what the truth reaches.
    assert 0.5 < logged["oracle_share"] < 0.9
    assert logged["oracle_rank_ic"] == pytest.approx(
        logged["rank_ic.mean"] / logged["oracle_share"], rel=0.01
    )
    assert logged["signals_tried"] == 4, "expected_return is the score"
    assert logged["monotonicity"] > 0.5
    assert logged["coverage"] == pytest.approx(
        (score.index.intersection(label.dropna().index)).size / label["LABEL0"].notna().sum()
    )

    daily = pd.read_parquet(recorder.download_artifact("signal_report/daily_ic.parquet"))
    assert list(daily) == ["ic", "rank_ic", "pairs"]
    assert daily.index.name == "datetime"
    assert daily["rank_ic"].mean() == pytest.approx(logged["rank_ic.mean"])
    table = read_csv(recorder, "signals")
    assert table.index.to_list() == [*signals, *BASELINES]
    assert table["kind"].to_list() == ["score", *["signal"] * 4, *["baseline"] * 4]
    assert table.loc[list(BASELINES), "p_holm"].isna().all(), "they were not tried"
    assert table.loc["score", "rank_ic"] == pytest.approx(logged["rank_ic.mean"], rel=1e-4)
    assert table.loc["truth", "rank_ic"] > table.loc["score", "rank_ic"]
    assert table.loc["truth", "with_score"] == pytest.approx(0.7, abs=0.1)
    assert table.loc["noise", "p_holm"] >= table.loc["noise", "p"] > 0.01
    assert table.loc["score", "p_holm"] <= 3 * table.loc["score", "p"] * 1.001
    assert np.isnan(table.loc["flat", "rank_ic"])
    assert table.loc["flat", "left_out"] == len(daily)
    assert len(read_csv(recorder, "groups")) == 10
    assert read_csv(recorder, "by_horizon").index.to_list() == [1, 2, 5, 10]
    assert (
        read_csv(recorder, "by_horizon").loc[10, "days"]
        == read_csv(recorder, "by_horizon").loc[1, "days"] - 9
    ), "the last nine days have no return over ten bars yet"
    exposures, parts = read_csv(recorder, "exposures"), read_csv(recorder, "attribution")
    assert exposures.index.to_list() == list(STYLES)
    assert parts.index.to_list() == ["total", *STYLES, "rest"]
    assert parts["mean"].iloc[1:].sum() == pytest.approx(parts.loc["total", "mean"], rel=1e-3)
    conditions = pd.read_csv(
        recorder.download_artifact("signal_report/conditions.csv"), index_col=[0, 1]
    )["mean"]
    assert conditions[("all days", np.nan)] == pytest.approx(logged["rank_ic.mean"], rel=1e-4)
    assert logged["rank_ic.lost_by_delay"] == pytest.approx(
        logged["rank_ic.delayed"] - logged["rank_ic.mean"], abs=0.005
    )
    assert logged["long_short_net_low"] > 0
    days = pd.read_parquet(recorder.download_artifact("signal_report/style_days.parquet"))
    assert days["exposure.reversal"].mean() == pytest.approx(logged["exposure.reversal"])
    for name in FILES:
        if name.endswith(".png"):
            path = recorder.download_artifact(f"signal_report/{name}")
            assert io.FileIO(path).read(4) == b"\x89PNG"


def test_a_score_that_never_varies_fails_the_run(recorder, planted):
    folder, oracle = planted
    open_provider(folder)
    label = labels_of(["SYM0001", "SYM0002", "SYM0003", "SYM0004", "SYM0005"])
    save_run(recorder, oracle.to_frame("score") * 0, label)
    with pytest.raises(UndefinedMetricError, match=r"none of \d+ days has a value"):
        SignalReportRecord(recorder).generate()
    assert recorder.list_artifacts("signal_report") == []


def test_books_pass_over_a_day_of_two_names_and_what_is_left_is_of_the_label(recorder, planted):
    """A stray Saturday would sell the whole book and buy it back."""
    folder, oracle = planted
    open_provider(folder)
    label = labels_of(sorted(oracle.index.get_level_values("instrument").unique()))
    days = label.index.get_level_values("datetime")
    label = label[days >= sorted(days.unique())[-60]]
    days = label.index.get_level_values("datetime")
    stray = days.unique()[20]
    score = pd.DataFrame({"score": np.random.default_rng(0).normal(size=len(label))}, label.index)
    is_stray = days == stray
    score = score[~is_stray | (np.cumsum(is_stray) <= 2)]
    save_run(recorder, score, label)
    few = {"horizons": [1], "groups": 4, "baselines": [], "styles": ["momentum"]}
    SignalReportRecord(recorder, **few, label_bars=3).generate()
    days = pd.read_parquet(recorder.download_artifact("signal_report/style_days.parquet"))
    assert stray not in days.index and len(days) == 59
    # Rank IC of the rest is of the same return as the whole score's, three bars here.
    wide = to_wide(score["score"]).drop(stray)
    style = {"momentum": to_wide(baselines_at(score.index, ["momentum"])["momentum"])}
    text = "Ref($close, -4) / Ref($close, -1) - 1"
    returns = to_wide(D.features(list(wide), [text]).swaplevel().sort_index().iloc[:, 0])
    rest = attribution(wide, returns, style).rest_rank_ic
    found = read_csv(recorder, "conditions")["mean"]
    assert found["styles taken out"] == pytest.approx(rest.mean(), abs=1e-6)
    np.testing.assert_allclose(days["rank_ic.rest"].dropna(), rest, atol=1e-9)


def test_a_truth_of_nothing_has_no_share(recorder, planted, tmp_path, caplog):
    """With no effect planted the oracle says 0 of every name, and no share of it can be had."""
    folder, oracle = planted
    open_provider(folder)
    pred = oracle.to_frame("score")
    label = labels_of(sorted(oracle.index.get_level_values("instrument").unique()))
    record = SignalReportRecord(recorder)
    score, labels = to_wide(pred["score"]), to_wide(label["LABEL0"])
    found = record._against_oracle(pred, labels, score)
    assert found["oracle_share"] == pytest.approx(1.0)
    assert "oracle_share" not in record._against_oracle(pred, -labels, score)
    truth = folder / "oracle.parquet"
    kept = truth.read_bytes()
    try:
        with caplog.at_level(logging.INFO, "kronos_qlib.plugin.records.signal_report"):
            (oracle * 0).to_frame().to_parquet(truth)
            assert record._against_oracle(pred, labels, score) == {}
        assert "nothing was planted" in caplog.text
        truth.unlink()
        assert record._against_oracle(pred, labels, score) == {}
    finally:
        truth.write_bytes(kept)


def test_bars_of_five_minutes(recorder, make_minutes, tmp_path):
    bars = make_minutes(instruments=10, days=12)
    write_provider(bars, tmp_path / "minutes", freq="5min", benchmark="BENCH")
    open_provider(tmp_path / "minutes", "5min")
    names = [f"SH60000{number}" for number in range(10)]
    label = labels_of(names, "5min")
    rng = np.random.default_rng(0)
    score = label["LABEL0"].fillna(0) + rng.normal(scale=0.002, size=len(label))
    save_run(recorder, score.to_frame("score"), label)
    SignalReportRecord(recorder, groups=2, top=3, horizons=[1, 4]).generate()
    await_metrics(recorder)
    logged = recorder.list_metrics()
    assert logged["rank_ic.mean"] > 0.3
    assert logged["rank_ic.h1"] == pytest.approx(logged["rank_ic.mean"], abs=0.01)
    assert logged["rank_ic.h4"] < logged["rank_ic.h1"]
    assert logged["rank_ic.days"] + logged["rank_ic.days_left_out"] == 12, "days, not their bars"
    daily = pd.read_parquet(recorder.download_artifact("signal_report/daily_ic.parquet"))
    assert len(daily) > 12 * 40, "a row a bar"
    by_days = daily["rank_ic"].groupby(daily.index.normalize()).mean()
    assert logged["rank_ic.mean"] == pytest.approx(by_days.mean())
    assert logged["rank_ic.t"] == pytest.approx(daily_mean(by_days).t)
    assert (daily_mean(by_days).interval()) == pytest.approx(
        (logged["rank_ic.low"], logged["rank_ic.high"])
    )
    assert logged["signals_tried"] == 1
    assert "oracle_ic" not in logged


def test_many_bars_of_few_days_are_few_days(recorder, make_minutes, tmp_path):
    """144 bars of three days once had a t as if of 144 days."""
    write_provider(
        make_minutes(instruments=6, days=3), tmp_path / "minutes", freq="5min", benchmark="BENCH"
    )
    open_provider(tmp_path / "minutes", "5min")
    label = labels_of([f"SH60000{number}" for number in range(6)], "5min")
    noise = np.random.default_rng(0).normal(size=len(label))
    save_run(recorder, pd.DataFrame({"score": noise}, index=label.index), label)
    words = r"3 days of 3 have a Rank IC, and 10 are the fewest .* longer segment$"
    with pytest.raises(UndefinedMetricError, match=words):
        SignalReportRecord(recorder, groups=2).generate()


def test_a_run_without_labels_or_scores_says_so(recorder):
    with pytest.raises(MissingArtifactError, match=r"SignalReportRecord reads pred\.pkl"):
        SignalReportRecord(recorder).generate()
    index = pd.MultiIndex.from_product(
        [pd.bdate_range("2024-01-01", periods=3), ["A"]], names=["datetime", "instrument"]
    )
    recorder.save_objects(**{"pred.pkl": pd.DataFrame({"score": 1.0}, index=index)})
    with pytest.raises(MissingArtifactError, match=r"reads label\.pkl, .*KronosSignalRecord"):
        SignalReportRecord(recorder).generate()


def test_settings_that_cannot_work(recorder):
    with pytest.raises(ConfigError, match="horizons count bars"):
        SignalReportRecord(recorder, horizons=[0, 5])
    with pytest.raises(ConfigError, match="label_bars must be 1"):
        SignalReportRecord(recorder, label_bars=0)


def test_baselines_at_rows_are_those_of_the_model(provider, bars):
    """One definition: what stands beside a score is what BaselineModel scores."""
    open_provider(provider)
    handler = KronosHandler("all", end_time="2020-12-31")
    dataset = KronosDataset(handler, {"test": ("2020-06-01", "2020-09-30")}, 22, 2)
    for kind in BASELINES:
        scored = BaselineModel(kind).predict(dataset)
        index = scored.sample(frac=1, random_state=0).index
        found = baselines_at(index, [kind])[kind]
        assert found.index.equals(index)
        np.testing.assert_array_equal(found.sort_index(), scored.sort_index())


def test_a_baseline_is_unknown_before_its_bars_and_on_a_day_without_one(provider):
    open_provider(provider)
    calendar = D.calendar()
    names = D.list_instruments(D.instruments("all"), as_list=True)
    every = D.features(names, ["$close"])["$close"].unstack("instrument")
    name = every.isna().sum().idxmax()
    closes = every[name].dropna()
    index = pd.MultiIndex.from_product(
        [calendar, [name, "NOBODY"]], names=["datetime", "instrument"]
    )
    found = baselines_at(index)
    assert found.xs("NOBODY", level=1).isna().all(axis=None)
    own = found.xs(name, level=1)
    assert own["reversal"].first_valid_index() == closes.index[5]
    assert own["momentum"].first_valid_index() == closes.index[21]
    assert own["low_amount"].first_valid_index() == closes.index[19]
    suspended = pd.DatetimeIndex(calendar).difference(closes.index)
    assert len(suspended)
    assert own.loc[suspended].isna().all(axis=None)
    day = closes.index[60]
    assert own.loc[day, "reversal"] == pytest.approx(1 - closes.iloc[60] / closes.iloc[55])


def test_styles_know_no_later_bar(provider, bars, tmp_path):
    """What a score holds on a day is the same whatever the market did after its close."""
    open_provider(provider)
    names = sorted(bars["symbol"].unique())
    days = pd.DatetimeIndex(
        [day for day in D.calendar() if "2020-03" <= f"{day:%Y-%m}" <= "2020-06"]
    )
    index = pd.MultiIndex.from_product([days, names], names=["datetime", "instrument"])
    whole = baselines_at(index, tuple(STYLES))
    assert whole.notna().to_numpy().mean() > 0.8
    write_provider(bars[bars["date"] <= days[-1]], tmp_path / "past")
    wild = bars.copy()
    later = wild["date"] > days[-1]
    wild.loc[later, ["open", "high", "low", "close"]] *= 3
    write_provider(wild, tmp_path / "wild")
    for folder in ("past", "wild"):
        open_provider(tmp_path / folder)
        found = baselines_at(index, tuple(STYLES))
        pd.testing.assert_frame_equal(found, whole, check_exact=True)


def test_a_market_without_volume_has_the_styles_of_prices(
    recorder, bars, dump_folder, tmp_path, caplog
):
    fields = ("open", "high", "low", "close", "factor")
    open_provider(dump_folder(tmp_path / "qlib", bars, fields))
    names = sorted(bars["symbol"].unique())
    label = labels_of(names)
    label = label[label.index.get_level_values("datetime") >= "2020-06-01"]
    score = pd.DataFrame({"score": np.random.default_rng(0).normal(size=len(label))}, label.index)
    save_run(recorder, score, label)
    SignalReportRecord(recorder, horizons=[1], groups=4).generate()
    assert read_csv(recorder, "exposures").index.to_list() == ["volatility", "momentum", "reversal"]
    assert "size is unknown: the provider has neither $amount nor $volume" in caplog.text
    page = Path(recorder.download_artifact("signal_report/summary.md")).read_text(encoding="utf-8")
    assert "nan" not in page and "not significant" in page
    # Eight names are too few for a regression on three styles: nothing is attributed.
    assert read_csv(recorder, "attribution")["mean"].isna().all()
    bare = SignalReportRecord(recorder, horizons=[1], groups=4, baselines=[], styles=[])
    bare.generate()
    parts = read_csv(recorder, "attribution")["mean"]
    assert parts["rest"] == parts["total"] and list(parts.index) == ["total", "rest"]
    page = Path(recorder.download_artifact("signal_report/summary.md")).read_text(encoding="utf-8")
    assert "No style is known" in page and "nan" not in page


def test_sectors_are_those_that_the_workflow_names(tmp_path):
    def task(sectors):
        return {"model": {"kwargs": {"signals": {"sectors": sectors}}}}

    assert sectors_of_task({}) is None and sectors_of_task(task(None)) is None
    assert sectors_of_task(task({"of": {"A": "energy"}})) == {"A": "energy"}
    file = tmp_path / "sectors.csv"
    file.write_text("instrument,sector\nA,banks\n", encoding="utf-8")
    assert sectors_of_task(task({"file": str(file)})) == {"A": "banks"}
    with pytest.raises(ConfigError, match="styles are size, volatility"):
        SignalReportRecord(None, styles=["value"])
    with pytest.raises(ConfigError, match="no file of sectors"):
        sectors_of_task(task({"file": str(tmp_path / "none.csv")}))


def test_a_score_that_is_a_baseline_has_nothing_of_its_own(recorder, planted, tmp_path):
    folder, oracle = planted
    open_provider(folder)
    names = sorted(oracle.index.get_level_values("instrument").unique())
    label = labels_of(names)
    label = label[label.index.get_level_values("datetime") >= "2020-06-01"]
    score = baselines_at(label.index, ["reversal"])["reversal"].dropna()
    save_run(recorder, (10 * score + 3).to_frame("score"), label)
    SignalReportRecord(recorder, horizons=[1]).generate()
    await_metrics(recorder)
    logged = recorder.list_metrics()
    for name in ("rank_ic.less_reversal", "rank_ic.neutralised"):
        assert [logged[name], logged[f"{name}_low"], logged[f"{name}_high"]] == [0, 0, 0]
        assert f"{name}_t" not in logged
    assert logged["baseline.reversal.rank_ic"] == pytest.approx(logged["rank_ic.mean"])
    assert logged["baseline.reversal.with_score"] == pytest.approx(1)
    assert logged["rank_ic.less_momentum_low"] < logged["rank_ic.less_momentum"]
    page = Path(recorder.download_artifact("signal_report/summary.md")).read_text(encoding="utf-8")
    assert "Without the baselines nothing is left of it" in page
    assert "It is not significantly different from" in page
    for heading in ("Beside baselines", "By year", "By bars of the return", "Signals tried"):
        assert f"## {heading}" in page
    assert "nan" not in page
    assert logged["exposure.reversal"] == pytest.approx(1)
    assert "rank_ic.rest" not in logged, "nothing is left"
    assert "What they leave has no Rank IC" in page


def test_knowledge_beyond_the_baselines_is_left_by_neutralising(recorder, planted):
    folder, oracle = planted
    open_provider(folder)
    index = oracle[oracle.index.get_level_values("datetime") >= "2020-06-01"].index
    known = baselines_at(index)
    rng = np.random.default_rng(0)
    extra = pd.Series(rng.normal(size=len(index)), index=index)
    left = neutralised((100 * known["momentum"] + extra).sort_index(), known.sort_index())
    for kind in BASELINES:
        alike = rank_correlation(to_wide(left), to_wide(known[kind])).mean()
        assert abs(alike) < 0.05, kind
    assert rank_correlation(to_wide(left), to_wide(extra)).mean() > 0.3


def test_a_segment_that_is_too_short_says_what_would_help(recorder, planted):
    folder, oracle = planted
    open_provider(folder)
    names = sorted(oracle.index.get_level_values("instrument").unique())
    days = oracle.index.get_level_values("datetime").unique()[100:110]
    pred = oracle[oracle.index.get_level_values("datetime").isin(days)].to_frame("score")
    label = labels_of(names)
    save_run(recorder, pred, label)
    with pytest.raises(UndefinedMetricError, match=r"10 days of 10 .*, or set shorter `horizons`"):
        SignalReportRecord(recorder).generate()
    label.loc[label.index.get_level_values("datetime") >= days[-2]] = np.nan
    recorder.save_objects(**{"label.pkl": label})
    with pytest.raises(UndefinedMetricError, match=r"8 days of 8 .* longer segment$"):
        SignalReportRecord(recorder, horizons=[1]).generate()


def test_a_column_under_two_names_is_one_trial():
    index = pd.MultiIndex.from_product(
        [pd.bdate_range("2024-01-01", periods=2), ["A", "B"]], names=["datetime", "instrument"]
    )
    one = pd.Series([1.0, np.nan, 3, 4], index=index)
    signals = pd.DataFrame(
        {"score": one, "expected_return": one, "last_return": -one, "return_at@10": -one}
    )
    pred = one.to_frame("score")
    first = first_of_equals(pred, signals)
    assert first["expected_return"] == "score"
    assert first["return_at@10"] == "last_return"
    assert count_signals(pred, signals) == 2
    assert count_signals(pred, None) == 1
