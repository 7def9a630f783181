"""KronosModel with a calibration: what it changes, where it comes from, and what it may not see."""

from __future__ import annotations

import json
import pickle
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from kronos_qlib.calibration.calibration import Calibration
from kronos_qlib.data.files.synthetic import MarketConfig, make_market
from kronos_qlib.data.windows.bar_table import BarTable
from kronos_qlib.data.windows.window_dataset import WindowDataset
from kronos_qlib.errors import BarDataError, CheckpointError, ConfigError
from kronos_qlib.plugin import model as model_module
from kronos_qlib.plugin.dataset import KronosDataset
from kronos_qlib.plugin.lookahead import check_lookahead
from kronos_qlib.plugin.model import KronosModel
from kronos_qlib.plugin.runs.kept_models import needs_state, restore, write_model
from kronos_qlib.plugin.workflows.estimate import Counts, Rates, _of_model
from kronos_qlib.schema import CLOSE

pytestmark = pytest.mark.integration

LOOKBACK, HORIZON, NAMES = 25, 3, 22
SEGMENTS = {"valid": ("2020-03-02", "2020-05-29"), "test": ("2020-06-01", "2020-06-30")}
DAYS = ("2020-06-15", "2020-06-16")
KEPT = ("expected_return", "prob_up", "volatility", "expected_shortfall@0.1")


@pytest.fixture(scope="module")
def bars():
    """As many names as make a market."""
    return make_market(MarketConfig(instruments=NAMES, sectors=2, years=0.6, seed=5)).bars


@pytest.fixture(scope="module")
def source(bars):
    return WindowDataset.from_file(bars, SEGMENTS, lookback=LOOKBACK, horizon=HORIZON)


@pytest.fixture(scope="module", autouse=True)
def few_windows():
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(model_module, "DRAWN", 60)
        yield


def model_of(checkpoint="nano", **settings):
    given = {"sampling": {"paths": 12, "temperature": 1.0, "top_p": 1.0}, **settings}
    given = {"signals": {"keep": [*KEPT]}, **given}
    return KronosModel(checkpoint, device="cpu", show_progress=False, **given)


@pytest.fixture(scope="module")
def fitted(source):
    model = model_of(calibration="fit")
    model.fit(source)
    return model


@pytest.fixture(scope="module")
def signals(fitted, source):
    return fitted.signals(source)


@pytest.fixture(scope="module")
def drawn(source):
    return model_of().signals(source)


def test_expected_returns_still_rank_and_the_spread_is_another(signals, drawn, bars):
    by_day = signals["score"].groupby(level="datetime")
    ranks = by_day.rank().corr(drawn["score"].groupby(level="datetime").rank())
    assert ranks > 0.98
    assert signals["score"].to_numpy() == pytest.approx(drawn["score"].to_numpy(), abs=5e-3)
    closes = bars.set_index(["date", "symbol"])["close"].unstack()
    known = np.log(closes).diff().loc["2020-06-01":].std().mean()
    apart = {
        name: abs(np.log(one["volatility"].mean() / known))
        for name, one in (("calibrated", signals), ("drawn", drawn))
    }
    assert apart["calibrated"] < 0.2
    assert apart["calibrated"] < apart["drawn"]
    assert not np.allclose(signals["expected_shortfall@0.1"], drawn["expected_shortfall@0.1"])


def test_without_one_scores_are_of_the_closes_as_they_were_drawn(source):
    """The default: bit for bit the paper's score, whatever calibration ships with the weights."""
    model = model_of()
    assert model.calibration is None
    day = ("2020-06-15", "2020-06-15")
    windows = source.windows(day)
    bars, stamps = windows.seen()
    paths = model.predictor.paths(
        bars, stamps, source.future_stamps(windows), HORIZON, sampling=model.sampling, seed=0,
        keys=[f"{name} {moment.isoformat()}" for moment, name in windows.index], coherent=False,
    )  # fmt: skip
    closes = paths[..., CLOSE].astype(np.float64)
    expected = closes.mean(axis=(1, 2)) / windows.last_close - 1
    found = model.predict(source, day).reindex(windows.index)
    assert (found.to_numpy() == expected).all()


def test_an_ensemble_is_calibrated_by_past_volatility_alone(source):
    """Pooled paths are like none of those that their terms would have been fitted on."""
    signals = {"keep": [*KEPT], "ensemble": {"temperatures": [0.8, 1.0]}}
    model = model_of(calibration="fit", signals=signals)
    model.fit(source)
    fit = model.kept_calibration.fits["day"]
    assert fit.paths is None
    assert fit.market is not None
    found = model.signals(source, DAYS)
    drawn = model_of(signals=signals).signals(source, DAYS)
    assert not np.allclose(found["volatility"], drawn["volatility"])
    assert found["score"].corr(drawn["score"], method="spearman") > 0.95


def test_a_day_has_the_same_signals_whatever_others_are_asked_for(fitted, source, signals):
    one = fitted.signals(source, ("2020-06-15", "2020-06-15"))
    assert len(one) == NAMES
    pd.testing.assert_frame_equal(one, signals.loc[one.index], check_exact=True)


def test_the_market_counts(fitted, source, signals, monkeypatch):
    """Its state is in the spread, where there are names enough to make a market."""
    assert fitted.kept_calibration.fits["day"].market is not None
    monkeypatch.setattr(
        "kronos_qlib.pipeline.scoring.states_of", lambda windows: np.full((len(windows), 2), 1.0)
    )
    wild = fitted.signals(source, DAYS)
    assert not np.allclose(wild["volatility"], signals.loc[wild.index, "volatility"])


def test_a_calibration_travels_with_the_pickle_and_with_the_plain_files(
    fitted, source, signals, tmp_path, monkeypatch
):
    expected = signals.loc["2020-06-15":"2020-06-16"]
    again = pickle.loads(pickle.dumps(fitted))
    pd.testing.assert_frame_equal(again.signals(source, DAYS), expected, check_exact=True)

    opened = SimpleNamespace(provider_uri={}, region="us")
    monkeypatch.setattr("kronos_qlib.plugin.runs.kept_models.C", opened)
    write_model(fitted, tmp_path)
    read = {path.name: path.read_bytes() for path in (tmp_path / "weights").iterdir()}
    state = json.loads(read["state.json"])["model"]
    rebuilt = model_of(calibration="fit")
    assert needs_state(rebuilt)
    assert not needs_state(model_of())
    restore(rebuilt, state, read)
    assert rebuilt.kept_calibration == fitted.kept_calibration
    pd.testing.assert_frame_equal(rebuilt.signals(source, DAYS), expected, check_exact=True)


def test_saved_weights_have_theirs_beside_them(fitted, source, signals, drawn, tmp_path):
    fitted.save_pretrained(str(tmp_path))
    file = tmp_path / "predictor" / "calibration.json"
    assert Calibration.load(file) == fitted.kept_calibration
    for how in ("auto", str(file)):
        found = model_of(str(tmp_path), calibration=how).signals(source, DAYS)
        pd.testing.assert_frame_equal(found, signals.loc[found.index], check_exact=True)
    # Of other weights it is not taken by itself, and named it is refused.
    changed = file.read_text(encoding="utf-8").replace(fitted.kept_calibration.checkpoint, "0-0")
    file.write_text(changed, encoding="utf-8")
    found = model_of(str(tmp_path), calibration="auto").signals(source, DAYS)
    pd.testing.assert_frame_equal(found, drawn.loc[found.index], check_exact=True)
    for act in ("fit", "predict"):
        with pytest.raises(CheckpointError, match="was fitted on other weights"):
            getattr(model_of(str(tmp_path), calibration=str(file)), act)(source)


def test_the_estimate_of_a_run_counts_what_calibrating_draws():
    counts, rates = Counts({"valid": 300, "test": 50}, 10), Rates(read=0.1, path=0.01)
    parts = {
        how: {part.what: part.seconds for part in _of_model(model, counts, lambda _: rates, 90)}
        for how, model in (("fit", model_of(calibration="fit")), ("none", model_of()))
    }
    assert parts["fit"].pop("calibrating") == pytest.approx(300 * 20 * 0.01)
    assert parts["fit"] == parts["none"]


def test_what_cannot_work_is_said_before_the_work(source, tmp_path):
    no_valid = WindowDataset(
        table=source.table, segments={"test": SEGMENTS["test"]}, lookback=LOOKBACK, horizon=HORIZON
    )
    with pytest.raises(ConfigError, match="on the segment 'valid', and the data set has test"):
        model_of(calibration="fit").fit(no_valid)
    with pytest.raises(ConfigError, match="call `fit` before scoring"):
        model_of(calibration="fit").predict(source)
    few = WindowDataset(
        table=source.table,
        segments={**SEGMENTS, "valid": ("2020-05-18", "2020-05-29")},
        lookback=LOOKBACK,
        horizon=HORIZON,
    )
    with pytest.raises(BarDataError, match="takes 220 windows of the segment 'valid'"):
        model_of(calibration="fit").fit(few)
    short = WindowDataset(table=source.table, segments=SEGMENTS, lookback=22, horizon=HORIZON)
    with pytest.raises(ConfigError, match="windows of 23 bars at least"):
        model_of(calibration="fit").fit(short)
    for name, text in (("missing.json", None), ("other.json", "{}")):
        if text is not None:
            (tmp_path / name).write_text(text, encoding="utf-8")
        with pytest.raises(ConfigError, match=f"{name} holds no calibration"):
            model_of(calibration=str(tmp_path / name))
    with pytest.raises(ConfigError, match="of weights that `training` changes"):
        model_of(calibration="some.json", training={"predictor": {"epochs": 1}})


def test_windows_that_cannot_be_calibrated_are_named_or_left_as_drawn(
    fitted, bars, tmp_path, monkeypatch
):
    """An open of 0 has no logarithm; whether that is an error depends on what was asked for."""
    faulty = bars.copy()
    where = (faulty["symbol"] == "SYM0003") & (faulty["date"] == "2020-06-10")
    faulty.loc[where, ["open", "low"]] = 0.0
    source = WindowDataset(
        table=BarTable.from_bars(faulty, invalid="keep", untraded="keep"),
        segments=SEGMENTS,
        lookback=LOOKBACK,
        horizon=HORIZON,
    )
    with pytest.raises(BarDataError, match=r"SYM0003 at 2020-06-10.*a price is not positive"):
        fitted.predict(source)
    fitted.save_pretrained(str(tmp_path))
    warned = []
    monkeypatch.setattr(model_module.logger, "warning", warned.append)
    found = model_of(str(tmp_path), calibration="auto").signals(source)
    assert np.isfinite(found).all(axis=None)
    seen = found.xs("SYM0003", level="instrument").index >= pd.Timestamp("2020-06-10")
    expected = f"paths of {seen.sum()} of {len(found)} windows are as drawn, not calibrated: "
    assert [each for each in warned if expected in each and "a price is not positive" in each]
    before = found.xs(pd.Timestamp("2020-06-09"))["volatility"]
    after = found.xs(pd.Timestamp("2020-06-10"))["volatility"]
    others = before.index != "SYM0003"
    assert (np.abs(np.log(after / before))[others] < 0.5).all()


def test_what_was_fitted_on_later_bars_is_warned_of(fitted, source, monkeypatch):
    warned = []
    monkeypatch.setattr(model_module.logger, "warning", warned.append)
    fitted.predict(source, DAYS)
    assert not warned
    fitted.predict(source, ("2020-05-04", "2020-05-05"))
    assert any("has seen bars up to 2020-05-2" in each for each in warned)


def test_a_calibration_fitted_on_the_way_looks_at_no_later_bar(bars):
    """Every bar after a moment is replaced, and no signal up to it may change."""
    handler = {"class": "KronosHandler", "module_path": "kronos_qlib.plugin.dataset"}

    def scores_of(folder):
        dataset = KronosDataset(handler, SEGMENTS, lookback=LOOKBACK, horizon=HORIZON)
        model = model_of(calibration="fit")
        model.fit(dataset)
        assert model.kept_calibration.fits["day"].market is not None
        return model.signals(dataset)

    report = check_lookahead(bars, scores_of, ["2020-06-10"], suspended=0.1)
    assert report.compared > 5 * NAMES
    assert report.moved > 0.8
