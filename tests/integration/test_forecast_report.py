"""ForecastReportRecord on a small market: what it leaves, which windows it takes, and refusals."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from kronos_qlib.calibration.calibration import Calibration
from kronos_qlib.calibration.market_state import states_of
from kronos_qlib.data.windows import known
from kronos_qlib.data.windows.bar_table import BarTable
from kronos_qlib.data.windows.known import known_windows, sample_windows
from kronos_qlib.data.windows.window_dataset import WindowDataset
from kronos_qlib.errors import (
    BarDataError,
    ConfigError,
    UndefinedMetricError,
)
from kronos_qlib.evaluation.forecasts.day_means import by_day
from kronos_qlib.evaluation.forecasts.distributions import PathDistribution
from kronos_qlib.inference.calibrating import checkpoint_of
from kronos_qlib.pipeline.outcomes import (
    draw_closes,
    outcomes_of,
)
from kronos_qlib.plugin.dataset import KronosDataset
from kronos_qlib.plugin.lookahead import open_provider
from kronos_qlib.plugin.model import KronosModel
from kronos_qlib.plugin.records.forecast_report import FIGURES, ForecastReportRecord
from kronos_qlib.plugin.records.run_check import RunCheckRecord, await_metrics
from kronos_qlib.schema import CLOSE

pytestmark = pytest.mark.integration

SEGMENTS = {
    "train": ("2020-01-01", "2020-07-31"),
    "valid": ("2020-08-03", "2020-09-30"),
    "test": ("2020-10-01", "2020-12-30"),
}
LOOKBACK, HORIZON = 25, 3
SETTINGS = {
    "windows": 120,
    "calibration_windows": 100,
    "spread_windows": 240,
    "levels": [0.5, 0.8],
}


@pytest.fixture(scope="module")
def dataset(provider):
    open_provider(provider)
    handler = {"class": "KronosHandler", "module_path": "kronos_qlib.plugin.dataset"}
    return KronosDataset(handler, SEGMENTS, lookback=LOOKBACK, horizon=HORIZON)


def model_of(**sampling):
    how = {"paths": 9, "temperature": 1.0, "top_p": 1.0, **sampling}
    return KronosModel(sampling=how, device="cpu", show_progress=False)


def test_a_run_is_left_metrics_tables_and_figures(recorder, dataset):
    record = ForecastReportRecord(recorder, model_of(), dataset, **SETTINGS)
    found = record.generate()
    await_metrics(recorder)
    logged = recorder.list_metrics()
    expected = {f"forecast.{name}": value for name, value in found.metrics().items()}
    assert {name: logged[name] for name in expected} == pytest.approx(expected)
    for name in (
        "forecast.crps_last_price",
        "forecast.crps_historical_volatility",
        "forecast.coverage_80",
        "forecast.coverage_80_calibrated",
        "forecast.volatility_r2",
        "forecast.qlike",
        "forecast.crps_ewma_calibrated",
        "forecast.crps_garch_calibrated",
        "forecast.crps_har_calibrated",
        "forecast.crps_oracle_scale",
        "forecast.garch_fallbacks",
    ):
        assert np.isfinite(logged[name])
    RunCheckRecord(recorder, metrics=sorted(expected)).generate()
    counts = {name: logged[f"forecast.{name}"] for name in ("windows", "paths")}
    assert counts == {"windows": 120, "paths": 9}

    def read(name, **how):
        return pd.read_csv(recorder.download_artifact(f"forecast_report/{name}"), **how)

    scores = read("scores.csv", index_col=["measure", "horizon"])
    assert scores.loc[("crps", "all"), "kronos"] == pytest.approx(logged["forecast.crps"])
    assert set(scores.index.get_level_values("horizon")) == {"1", "2", "3", "all"}
    methods = read("methods.csv", index_col=["horizon", "method"])
    assert methods.loc[("all", "kronos"), "crps"] == pytest.approx(logged["forecast.crps"])
    assert {"ewma", "garch", "har", "oracle_scale"} < set(methods.loc["1"].index)
    assert {"var_5_kupiec", "qlike", "energy", "low", "high"} < set(methods.columns)
    sample = read("windows.csv", parse_dates=["datetime"])
    # The horizon lies in the segment: the last bar seen may be the one before it.
    assert sample["datetime"].min() >= pd.Timestamp("2020-09-30")
    assert sample["datetime"].max() < pd.Timestamp("2020-12-28")
    file = recorder.download_artifact("forecast_report/calibration.json")
    kept = Calibration.load(file)
    fit = kept.fits["day"]
    assert fit.own.windows == fit.market.windows == logged["forecast.spread_windows"] == 240
    assert fit.paths.windows == logged["forecast.calibration_windows"] == 100
    assert kept.until == "2020-09-30", "the last horizon of the valid segment"
    assert kept.checkpoint == checkpoint_of(record.model.predictor)
    for name in FIGURES:
        picture = Path(recorder.download_artifact(f"forecast_report/{name}"))
        assert picture.read_bytes()[:4] == b"\x89PNG"
    left = {name.split("/")[-1] for name in recorder.list_artifacts("forecast_report")}
    assert left == set(record.list())


def test_calibrated_paths_of_the_record_are_those_of_the_file_it_leaves(recorder, dataset):
    model = model_of()
    record = ForecastReportRecord(recorder, model, dataset, **SETTINGS)
    found = record.generate()
    source = dataset.source
    windows = sample_windows(known_windows(source, "test")[0], 120, 0)
    outcomes = outcomes_of(source, windows, 20)
    file = recorder.download_artifact("forecast_report/calibration.json")
    bars, stamps = windows.seen()
    drawn = model.predictor.paths(
        bars, stamps, source.future_stamps(windows), HORIZON, sampling=model.sampling, seed=0,
        keys=[f"{name} {moment.isoformat()}" for moment, name in windows.index],
    )  # fmt: skip
    moved = Calibration.load(file).apply(
        drawn, bars, stamps, source.future_stamps(windows), market=states_of(windows)
    )
    closes = moved[..., CLOSE].astype(np.float64)
    one = PathDistribution(closes, outcomes.last_close, stratified=True)
    expected = by_day(one.crps(outcomes.returns), outcomes).mean()["2"]
    assert found.scores.loc[("crps", "2"), "kronos_calibrated"] == pytest.approx(expected, rel=1e-4)


def test_too_few_windows_to_calibrate_on_are_named(recorder, dataset):
    record = ForecastReportRecord(
        recorder, model_of(), dataset, calibration_windows=20, spread_windows=20, levels=[0.5]
    )
    with pytest.raises(BarDataError, match=r"cannot calibrate on valid: 20 windows .* on 220 at"):
        record.generate()


def test_the_record_loads_no_saved_model_by_itself(recorder, dataset):
    """A model is a pickle: of a stranger's run it would do as it likes when it is read."""
    recorder.save_objects(**{"params.pkl": model_of(), "dataset": dataset})
    with pytest.raises(ConfigError, match=r"model: <MODEL>.*got no model"):
        ForecastReportRecord(recorder).generate()
    with pytest.raises(ConfigError, match=r"got no dataset"):
        ForecastReportRecord(recorder, model=model_of()).generate()


def test_other_models_and_datasets_are_refused(recorder, dataset):
    from qlib.contrib.model.gbdt import LGBModel

    with pytest.raises(ConfigError, match="run's model is a LGBModel: it gives scores"):
        ForecastReportRecord(recorder, LGBModel(), dataset).generate()
    with pytest.raises(ConfigError, match="KronosDataset, and the run has a dict"):
        ForecastReportRecord(recorder, model_of(), {}).generate()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"levels": [0.9], "paths": 18}, "level 0.9 needs 19 paths a window at least, got 18"),
        ({"levels": [0.9]}, "needs 19 paths a window at least, got 9"),
        ({"levels": [1.0]}, "levels lie between 0 and 1"),
        ({"spread_windows": 0}, "spread_windows must be a whole number above 0"),
        ({"windows": 0}, "windows must be a whole number above 0"),
        ({"volatility_bars": LOOKBACK}, "volatility_bars must lie from 1 to 24"),
        ({"calibration_segment": "test", "segment": "valid"}, "must end before the other begins"),
        ({"calibration_segment": "test"}, "must end before the other begins"),
    ],
)
def test_settings_that_cannot_work_are_refused(recorder, dataset, settings, message):
    with pytest.raises(ConfigError, match=message):
        settings = {"levels": [0.5], "windows": 20, "calibration_windows": 20, **settings}
        ForecastReportRecord(recorder, model_of(), dataset, **settings).generate()


def test_a_segment_of_too_few_days_is_named_before_paths_are_drawn(recorder, dataset, monkeypatch):
    monkeypatch.setattr("kronos_qlib.plugin.records.forecast_report.draw_closes", None)
    segment = ("2020-12-14", "2020-12-28")  # 11 days, and a horizon of 3
    with pytest.raises(UndefinedMetricError, match=r"2020-12-28.* lie on 9 days, and 10 are"):
        ForecastReportRecord(
            recorder, model_of(), dataset, segment=segment, levels=[0.5]
        ).generate()


def test_a_segment_without_such_windows_is_named(recorder, dataset):
    with pytest.raises(BarDataError, match=r"2020-12-30.*no window with 25 bars seen"):
        segment = ("2020-12-29", "2020-12-30")
        ForecastReportRecord(
            recorder, model_of(), dataset, segment=segment, levels=[0.5]
        ).generate()


# Which windows.


def table_of(closes, missing=()):
    """A bar a day for each instrument, but for (instrument, place) in `missing`."""
    days = pd.bdate_range("2024-01-01", periods=len(next(iter(closes.values()))))
    rows = []
    for name, prices in closes.items():
        for place, (day, price) in enumerate(zip(days, prices, strict=True)):
            if (name, place) not in missing:
                rows.append((name, day, price, price, price, price, 100.0, 100.0 * price))
    columns = ["symbol", "date", "open", "high", "low", "close", "volume", "amount"]
    bars = pd.DataFrame(rows, columns=columns)
    return BarTable.from_bars(bars, invalid="keep", untraded="keep"), days


def test_a_window_into_a_suspension_is_left_out_and_counted():
    """Its bars came, but not when the model was told they would."""
    walk = np.linspace(10, 12, 12)
    table, days = table_of({"A": walk, "B": walk}, missing={("B", 8)})
    source = WindowDataset(table=table, segments={"all": (None, None)}, lookback=3, horizon=2)
    windows, left_out = known_windows(source, "all")
    ends = {name: [] for name in "AB"}
    for moment, name in windows.index:
        ends[name].append(days.get_loc(moment))
    assert ends["A"] == [2, 3, 4, 5, 6, 7, 8, 9]
    # B's windows that end on places 6 and 7 would have had the 8th next, or next but one.
    assert ends["B"] == [2, 3, 4, 5, 9]
    assert left_out == 2


def test_a_stray_bar_on_a_holiday_is_warned_of(caplog, monkeypatch):
    """One instrument's bar on a Saturday makes it a day of the calendar: all others lack it."""
    monkeypatch.setattr(known.logger, "warning", logging.getLogger("seen").warning)
    walk = np.linspace(10, 12, 9)
    missing = {(name, 5) for name in "ABC"}
    table, days = table_of(dict.fromkeys("ABCD", walk), missing)
    source = WindowDataset(table=table, segments={"all": (None, None)}, lookback=3, horizon=3)
    with caplog.at_level("WARNING"):
        _, left_out = known_windows(source, "all")
    assert left_out == 9  # A, B and C have three windows each, and all look ahead to place 5
    assert f"fewest bars is {days[5]:%Y-%m-%d}" in caplog.text
    assert "with 1 of 4 names: is it a trading day?" in caplog.text


def test_the_sample_is_even_in_time_and_by_lot_among_instruments(dataset):
    windows, _ = known_windows(dataset.source, "test")
    sample = sample_windows(windows, 120, seed=0)
    again = sample_windows(windows, 120, seed=0)
    assert sample.index.equals(again.index)
    assert not sample.index.equals(sample_windows(windows, 120, seed=1).index)
    assert len(sample.index.unique()) == 120
    assert sample.index.isin(windows.index).all()
    assert (np.diff(sample.times) >= np.timedelta64(0)).all()
    of_day = pd.Series(1, index=sample.index).groupby(level="datetime").sum()
    assert len(of_day) == len(np.unique(windows.times)), "every day has its part"
    assert of_day.max() <= 3
    names = sample.index.get_level_values("instrument").value_counts()
    assert len(names) == len(set(windows.index.get_level_values("instrument")))
    assert names.max() < 2.5 * names.min()
    assert sample_windows(windows, 10**6, seed=0) is windows


def test_outcomes_are_the_bars_seen_and_those_that_came(dataset, bars):
    source = dataset.source
    windows = sample_windows(known_windows(source, "test")[0], 30, 0)
    outcomes = outcomes_of(source, windows, 20)
    for place in (0, 13, 29):
        moment, name = windows.index[place]
        own = bars[bars["symbol"] == name].set_index("date")["close"]
        at = own.index.get_loc(moment)
        assert outcomes.past[place] == pytest.approx(own.iloc[at - 20 : at + 1], rel=1e-6)
        assert outcomes.closes[place] == pytest.approx(own.iloc[at + 1 : at + 4], rel=1e-6)
        assert list(outcomes.until[place]) == list(own.index[at + 1 : at + 4])


def test_a_history_reaches_back_to_the_instruments_first_bar_and_no_further(dataset, bars):
    """Bars stand one instrument after another: a history must not read its neighbour."""
    source = dataset.source
    windows = sample_windows(known_windows(source, "test")[0], 40, 0)
    whole = outcomes_of(source, windows, 20).history
    for place in (0, 17, 39):
        moment, name = windows.index[place]
        own = bars[(bars["symbol"] == name) & (bars["date"] <= moment)]
        own = own[["open", "high", "low", "close"]].to_numpy()[-whole.shape[1] :]
        assert whole[place, -len(own) :] == pytest.approx(own, rel=1e-6)
        assert np.isnan(whole[place, : -len(own)]).all()
    short = outcomes_of(source, windows, 20, history_bars=50).history
    assert short.shape == (40, 50, 4)
    assert (short == whole[:, -50:]).all()
    few = outcomes_of(source, windows, 20, history_bars=1).history
    assert few.shape[1] == 21, "at least what the historical volatility reads"


def test_a_price_without_a_log_ends_the_history_before_it():
    walk = np.linspace(10, 12, 12)
    walk[3] = -1
    table, _ = table_of({"A": walk, "B": np.abs(walk)})
    source = WindowDataset(table=table, segments={"all": (None, None)}, lookback=3, horizon=2)
    windows, _ = known_windows(source, "all")
    last = windows.take(np.flatnonzero(np.asarray(windows.ends[:]) % 12 == 9))
    history = outcomes_of(source, last, 2).history
    known = np.isfinite(history[..., CLOSE]).sum(axis=1)
    assert known.tolist() == [6, 10]


def test_another_price_without_a_log_is_the_bars_close():
    """Only closes must be positive: a window was judged whatever its opens, and still is."""
    table, _ = table_of({"A": np.linspace(10, 12, 12)})
    table.values[8:10, 0] = 0
    source = WindowDataset(table=table, segments={"all": (None, None)}, lookback=3, horizon=2)
    windows, _ = known_windows(source, "all")
    history = outcomes_of(source, windows.take([-1]), 2).history[0]
    assert np.isfinite(history).all()
    assert history[8:, 0] == pytest.approx(history[8:, CLOSE])


def test_paths_are_those_of_predict_paths(dataset, bars):
    """Coherent, keyed by instrument and moment, and each window's independent of each other."""
    source = dataset.source
    windows = sample_windows(known_windows(source, "test")[0], 6, 0)
    model = model_of(stratified=True)
    how = replace(model.sampling, paths=9)
    closes = draw_closes(model.predictor, source, windows, how, seed=5)
    moment, name = windows.index[2]
    own = bars[(bars["symbol"] == name) & (bars["date"] <= moment)].tail(LOOKBACK)
    ahead = pd.Series(source.future_times(windows)[2])
    (forecast,) = model.predictor.predict_paths(
        [own], [own["date"]], [ahead], HORIZON, T=1.0, top_p=1.0, sample_count=9, seed=5,
        verbose=False, keys=[f"{name} {moment.isoformat()}"], calibration=None,
    )  # fmt: skip
    assert closes[2] == pytest.approx(forecast.paths[..., CLOSE], rel=1e-4)


def test_windows_of_several_lengths_are_drawn_too(bars):
    table = BarTable.from_bars(bars[bars["date"] >= "2020-09-01"])
    source = WindowDataset(
        table=table, segments={"all": (None, "2020-10-15")}, lookback=30, min_bars=24, horizon=2
    )
    windows, _ = known_windows(source, "all")
    assert windows.lengths is not None
    assert len(set(windows.lengths.tolist())) > 1
    model = model_of(paths=3)
    closes = draw_closes(model.predictor, source, windows, model.sampling, 0)
    assert closes.shape == (len(windows), 3, 2)
    ratio = closes[:, 0, 0] / windows.last_close
    assert ((ratio > 0.7) & (ratio < 1.4)).all(), "each window has its own paths"


def test_a_price_that_has_no_return_is_named():
    walk = np.linspace(10, 12, 10)
    walk[7] = -1
    table, _ = table_of({"A": walk})
    source = WindowDataset(table=table, segments={"all": (None, None)}, lookback=3, horizon=2)
    windows, _ = known_windows(source, "all")
    with pytest.raises(BarDataError, match=r"window of A at 2024-01-08 .* has a close of -1"):
        outcomes_of(source, windows, 2)
