"""Calibration in the predictor: which one a forecast takes, what the result says, what is kept."""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from tiny_networks import build_pair

from kronos_qlib.calibration.calibration import FILE, LEAST_WINDOWS, Calibration, Fit, Sample
from kronos_qlib.calibration.past_volatility import LEAST_BARS
from kronos_qlib.data.calendar.stamps import stamps_of
from kronos_qlib.data.files.synthetic import MarketConfig, make_market
from kronos_qlib.errors import BarDataError, ConfigError
from kronos_qlib.inference import predictor as predictor_module
from kronos_qlib.inference.choice import Chosen, check_drawn
from kronos_qlib.inference.predictor import KronosPredictor
from kronos_qlib.inference.sampling import SamplingConfig
from kronos_qlib.schema import AMOUNT, BAR_COLUMNS, CLOSE, HIGH, LOW, PRICE_COLUMNS, VOLUME

LOOKBACK, HORIZON = 30, 4
LAST = "2020-12-31"
HOW = {"pred_len": HORIZON, "freq": "B", "verbose": False, "sample_count": 12}
QUICK = {"lookback": LOOKBACK, "horizon": HORIZON, "windows": 300, "show_progress": False}


@pytest.fixture(scope="module")
def bars():
    return make_market(MarketConfig(instruments=5, sectors=2, years=1.3, seed=4)).bars


def new_predictor(seed=0, **settings):
    tokenizer, model = build_pair(seed)
    return KronosPredictor(model, tokenizer, device="cpu", max_context=64, **settings)


@pytest.fixture
def forecaster():
    return new_predictor()


@pytest.fixture(scope="module")
def calibration(bars):
    """Of `forecaster`'s weights, which a seed makes."""
    return new_predictor().calibrate(bars, last=LAST, drawn=10, **QUICK)


@pytest.fixture(scope="module")
def frames(bars):
    return [own.tail(LOOKBACK) for _, own in bars.groupby("symbol")]


def draw(forecaster, frames, **options):
    return forecaster.predict_paths(frames, [one["date"] for one in frames], **{**HOW, **options})


def spread_of(found):
    return np.log(found.paths[:, -1, CLOSE] / found.last_close).std()


# Which calibration is taken, and what the result says.


def test_a_calibrated_forecast_has_the_scale_of_past_volatility(forecaster, calibration, frames):
    raw = draw(forecaster, frames, calibration=None)
    found = draw(forecaster, frames, calibration=calibration)
    bars = np.stack([one[list(BAR_COLUMNS)].to_numpy() for one in frames]).astype(np.float32)
    stamps = stamps_of(np.stack([one["date"].to_numpy() for one in frames]))
    ahead = stamps_of(np.stack([one.times for one in found]))
    expected = calibration.apply(np.stack([one.paths for one in raw]), bars, stamps, ahead)
    for one, paths in zip(found, expected, strict=True):
        assert one.is_calibrated
        np.testing.assert_array_equal(one.paths, paths)
        assert one.returns().mean() == pytest.approx(0, abs=1e-5)
        assert one.quantiles(0.9)["close", 0.9].to_numpy() == pytest.approx(
            np.quantile(paths[..., CLOSE], 0.9, axis=0, method="hazen")
        )
        assert one.prob(lambda bars: bars.close > bars.last_close).between(0.3, 0.7).all()
    assert all(not one.is_calibrated for one in raw)
    assert not np.allclose(found[0].paths, raw[0].paths)


@pytest.mark.parametrize("paths", [10, 20, 300])
def test_the_band_of_a_calibrated_forecast_does_not_hang_on_the_number_of_paths(
    forecaster, calibration, frames, paths
):
    """Read as draws, 20 calibrated paths gave a 90 % band that holds 85 %, shown as 90."""
    [found] = draw(forecaster, frames[:1], calibration=calibration, sample_count=paths)
    [many] = draw(forecaster, frames[:1], calibration=calibration, sample_count=5000)
    few, true = (
        np.log(one.quantiles([0.05, 0.95])["close"].iloc[-1].to_numpy(float) / one.last_close)
        for one in (found, many)
    )
    assert np.diff(few) == pytest.approx(np.diff(true), rel=0.04)  # straight between two paths


def test_bars_stay_bars_and_paths_keep_their_order(forecaster, calibration, frames):
    raw = draw(forecaster, frames, calibration=None)[0].paths
    found = draw(forecaster, frames, calibration=calibration)[0].paths
    prices = found[..., : len(PRICE_COLUMNS)]
    assert (prices > 0).all()
    assert (found[..., HIGH] == prices.max(axis=-1)).all()
    assert (found[..., LOW] == prices.min(axis=-1)).all()
    np.testing.assert_array_equal(found[..., VOLUME], raw[..., VOLUME])
    factor = found[..., CLOSE].astype(float) / raw[..., CLOSE]
    np.testing.assert_allclose(found[..., AMOUNT], raw[..., AMOUNT] * factor, rtol=1e-5)
    order = np.argsort(raw[..., CLOSE], axis=0, kind="stable")
    assert (np.diff(np.take_along_axis(found[..., CLOSE], order, axis=0), axis=0) >= 0).all()


def test_only_what_draws_a_band_is_calibrated_unless_asked(forecaster, calibration, frames):
    """`predict` has published numbers; a band of raw paths covers too little."""
    forecaster.calibration = calibration
    frame, times = frames[0], frames[0]["date"]
    raw = draw(forecaster, frames[:1], calibration=None)[0]
    [usual] = draw(forecaster, frames[:1])
    assert usual.is_calibrated and not raw.is_calibrated
    pd.testing.assert_frame_equal(forecaster.predict(frame, times, **HOW), raw.mean)
    [batch] = forecaster.predict_batch([frame], [times], **HOW)
    pd.testing.assert_frame_equal(batch, raw.mean)
    asked = forecaster.predict(frame, times, calibration="auto", **HOW)
    pd.testing.assert_frame_equal(asked, usual.mean)

    x = frame[list(BAR_COLUMNS)].to_numpy(np.float32)[None]
    stamps, ahead = stamps_of(times.to_numpy()[None]), stamps_of(usual.times[None])
    for choice, expected in (({}, raw), ({"calibration": "auto"}, usual)):
        paths = forecaster.paths(x, stamps, ahead, HORIZON, sample_count=12, **choice)
        np.testing.assert_array_equal(paths[0], expected.paths)


def test_the_result_says_on_what_it_was_calibrated_or_why_not(forecaster, calibration, frames):
    [found] = draw(forecaster, frames[:1])
    assert found.calibration.startswith("uncalibrated: these weights are new; KronosPredictor.")
    assert found.calibration in repr(found)
    forecaster.calibration = calibration
    [found] = draw(forecaster, frames[:1])
    expected = f"calibrated on 300 windows of 30 + 4 bars of 5 instruments, until {LAST}"
    assert found.calibration == expected
    assert f"anchored, {expected}; expected return" in repr(found)
    [found] = draw(forecaster, frames[:1], calibration=None)
    assert found.calibration == "uncalibrated"


def test_results_that_cannot_say_it_leave_it_to_the_log(forecaster, frames, caplog):
    for _ in range(2):
        forecaster.predict(frames[0], frames[0]["date"], calibration="auto", **HOW)
    assert [one.message[:33] for one in caplog.records] == ["uncalibrated: these weights are n"]
    caplog.clear()
    draw(forecaster, frames[:1])
    forecaster.predict(frames[0], frames[0]["date"], **HOW)
    assert not caplog.records


def without_price(frame):
    return frame.assign(low=np.where(np.arange(len(frame)) == 3, 0.0, frame["low"]))


def of_minutes(frame):
    return frame.assign(date=pd.date_range("2024-01-03 09:00", periods=len(frame), freq="min"))


@pytest.mark.parametrize(
    ("change", "more", "reason"),
    [
        (lambda frame: frame.tail(12), {}, f"12 bars were seen, and volatility takes {LEAST_BARS}"),
        (without_price, {}, "a price is not positive"),
        (of_minutes, {"freq": "min"}, "it was not fitted on intraday bars"),
        (lambda frame: frame, {"sample_count": 1}, "one path has no spread"),
        (lambda frame: frame, {"T": 0.0}, "at temperature 0 every path is the same"),
        (
            lambda frame: frame,
            {"coherent": False},
            r"raw numbers were asked for \(coherent=False\)",
        ),
        (lambda frame: frame, {"T": 1e-9}, "every path drawn is the same; raise temperature"),
        (lambda frame: frame, {"top_k": 1}, "every path drawn is the same"),
        (
            lambda frame: frame.assign(**dict.fromkeys(PRICE_COLUMNS, 10.0)),
            {},
            "no price has moved, which says nothing of how far the next move goes",
        ),
    ],
)
def test_what_cannot_be_calibrated_stays_as_drawn_or_is_refused(
    forecaster, calibration, frames, tmp_path, change, more, reason
):
    file = tmp_path / "mine.json"
    calibration.save(file)
    series = [change(frames[0])]
    forecaster.calibration = calibration
    more = {"warn": False, **more}
    [found] = draw(forecaster, series, **more)
    [raw] = draw(forecaster, series, calibration=None, **more)
    np.testing.assert_array_equal(found.paths, raw.paths)
    assert found.calibration.startswith("uncalibrated: ")
    with pytest.raises(ConfigError, match=f"the calibration given cannot be used: .*{reason}"):
        draw(forecaster, series, calibration=calibration, **more)
    with pytest.raises(ConfigError, match=rf"mine\.json cannot be used: .*{reason}"):
        draw(forecaster, series, calibration=file, **more)


def test_one_series_that_cannot_be_calibrated_leaves_the_others_alone(
    forecaster, calibration, frames
):
    mixed = [frames[0], without_price(frames[1]), frames[2].tail(10), frames[3]]
    forecaster.calibration = calibration
    found = draw(forecaster, mixed, warn=False)
    assert [one.is_calibrated for one in found] == [True, False, False, True]
    for frame, one in zip(mixed, found, strict=True):
        [alone] = draw(forecaster, [frame], warn=False)
        np.testing.assert_allclose(one.paths, alone.paths, rtol=1e-5)
        assert alone.calibration == one.calibration
    with pytest.raises(ConfigError, match="given cannot be used: BBB: a price is not positive"):
        draw(forecaster, mixed[:2], warn=False, calibration=calibration, keys=["AAA", "BBB"])


def test_a_forecast_says_that_no_such_bars_were_fitted_on(forecaster, calibration, frames):
    """Weekly bars were called calibrated without a word, and their bands were too narrow."""
    weekly = frames[1].assign(date=pd.date_range("2020-01-03", periods=LOOKBACK, freq="W-FRI"))
    forecaster.calibration = calibration
    found = draw(forecaster, [frames[0], weekly], warn=False, freq=None)
    assert [one.is_calibrated for one in found] == [True, True]
    assert "not checked" not in found[0].calibration
    assert "fitted on bars of 1 day, these are of 7 days or longer" in found[1].calibration


def test_paths_that_agree_by_accident_are_calibrated(calibration):
    """Two paths of one bar often draw the same token; that is no setting to be refused."""
    chosen = Chosen(calibration, required="x")
    assert check_drawn([chosen], np.ones((1, 2, 1, 6), np.float32), str) == [chosen]
    with pytest.raises(ConfigError, match="x cannot be used: 0: every path"):
        check_drawn([chosen], np.ones((1, 2, 5, 6), np.float32), str)


def test_what_a_file_says_of_itself_is_one_line_and_orders_no_terminal(calibration):
    """`about` was printed as it stood in the file, with its line ends and escape sequences."""
    text = Chosen(replace(calibration, about="mine\nnote: \x1b[31m")).text
    assert text.isprintable() and text.startswith("calibrated on mine note: ")


def test_small_budgets_change_nothing(forecaster, calibration, frames, monkeypatch):
    forecaster.calibration = calibration
    whole = draw(forecaster, frames)
    monkeypatch.setattr("kronos_qlib.inference.choice.BYTES_A_BAR", 2**40)  # one series at a time
    for one, other in zip(whole, draw(forecaster, frames), strict=True):
        np.testing.assert_array_equal(one.paths, other.paths)


def test_a_calibration_of_other_weights_is_not_taken(calibration, frames, tmp_path):
    other = new_predictor(seed=1)
    other.calibration = calibration
    [found] = draw(other, frames[:1])
    assert "calibration: it was fitted on paths of other weights (fingerprint" in found.calibration
    calibration.save(tmp_path / "theirs.json")
    with pytest.raises(
        ConfigError, match=r"theirs\.json cannot be used: it was fitted on paths of"
    ):
        draw(other, frames[:1], calibration=str(tmp_path / "theirs.json"))


def test_weights_trained_since_have_no_calibration(forecaster, calibration, frames):
    forecaster.calibration = calibration
    assert draw(forecaster, frames[:1])[0].is_calibrated
    with torch.no_grad():
        forecaster.model.head.proj_s1.weight += 0.01
    assert "other weights" in draw(forecaster, frames[:1])[0].calibration


def test_weights_are_read_once_and_only_where_there_is_a_calibration(
    forecaster, calibration, frames, monkeypatch
):
    read = []
    real = predictor_module.checkpoint_of
    monkeypatch.setattr(predictor_module, "checkpoint_of", lambda one: read.append(1) or real(one))
    draw(forecaster, frames[:1])
    draw(forecaster, frames[:1], calibration=None)
    assert not read
    forecaster.calibration = calibration
    for _ in range(3):
        draw(forecaster, frames[:1])
    assert len(read) == 1


@pytest.mark.parametrize("wrong", [True, 3, "", {}, ["auto"]])
def test_what_is_no_calibration_is_refused(forecaster, frames, wrong):
    with pytest.raises(ConfigError, match='calibration is "auto", None, a Calibration or the file'):
        draw(forecaster, frames[:1], calibration=wrong)


def test_the_predictors_own_is_a_calibration(forecaster, frames):
    forecaster.calibration = "mine.json"
    with pytest.raises(ConfigError, match=r"is a Calibration or None, got 'mine\.json'"):
        draw(forecaster, frames)


def test_a_file_that_is_none_is_refused_by_name(forecaster, frames, tmp_path):
    with pytest.raises(ConfigError, match=r"absent\.json holds no calibration"):
        draw(forecaster, frames[:1], calibration=tmp_path / "absent.json")


def test_paths_drawn_otherwise_take_past_volatility_alone(forecaster, calibration, frames):
    """What paths add was learned of paths of one temperature."""
    terms = Fit.of([sample_with_paths()]).paths
    fit = replace(calibration.fits["day"], paths=replace(terms, spread=0.8, centre=0.5))
    weighed = replace(calibration, fits={"day": fit})
    same = [draw(forecaster, frames[:1], calibration=one)[0] for one in (weighed, calibration)]
    assert not np.allclose(same[0].paths, same[1].paths)
    other = [
        draw(forecaster, frames[:1], T=0.7, calibration=one)[0] for one in (weighed, calibration)
    ]
    np.testing.assert_array_equal(other[0].paths, other[1].paths)


def sample_with_paths():
    rng = np.random.default_rng(0)
    windows = 250
    closes = 10 * np.exp(rng.normal(0, 0.01, (windows, LOOKBACK + HORIZON)).cumsum(axis=1))
    prices = np.repeat(closes[..., None], 6, axis=-1)
    days = pd.bdate_range("2020-01-01", periods=LOOKBACK + HORIZON).to_numpy()
    stamps = stamps_of(np.tile(days, (windows, 1)))
    paths = closes[:, None, LOOKBACK - 1, None] * np.exp(
        rng.normal(0, 0.01, (windows, 12, HORIZON)).cumsum(axis=2)
    )
    return Sample(
        bars=prices[:, :LOOKBACK],
        stamps=stamps[:, :LOOKBACK],
        ahead=stamps[:, LOOKBACK:],
        closes=closes[:, LOOKBACK:],
        times=np.repeat(days[LOOKBACK - 1], windows),
        drawn=np.arange(windows),
        paths=paths,
    )


# Beside the weights.


def test_a_calibration_beside_the_weights_is_found(forecaster, calibration, frames, tmp_path):
    forecaster.calibration = calibration
    folder = forecaster.save_pretrained(tmp_path / "mine")
    assert (folder / "predictor" / FILE).is_file()
    again = KronosPredictor.from_pretrained(folder, device="cpu")
    assert again.calibration is None
    [found], [expected] = draw(again, frames[:1]), draw(forecaster, frames[:1])
    assert found.is_calibrated
    np.testing.assert_array_equal(found.paths, expected.paths)
    copied = again.save_pretrained(tmp_path / "copy")
    assert Calibration.load(copied / "predictor" / FILE) == Calibration.load(
        folder / "predictor" / FILE
    )
    [halves] = draw(
        KronosPredictor.from_pretrained(folder / "predictor", folder / "tokenizer", "cpu"),
        frames[:1],
    )
    assert halves.is_calibrated


def test_a_file_beside_the_weights_is_read_again_once_it_is_another(
    forecaster, calibration, frames, tmp_path, monkeypatch
):
    forecaster.calibration = calibration
    folder = forecaster.save_pretrained(tmp_path / "kept")
    file, read = folder / "predictor" / FILE, []
    load = Calibration.load
    monkeypatch.setattr(Calibration, "load", lambda path: read.append(path) or load(path))
    loaded = KronosPredictor.from_pretrained(folder, device="cpu")
    first, again = draw(loaded, frames)[0], draw(loaded, frames)[0]
    assert read == [file], "every call would spend as long on it as on a bar"
    np.testing.assert_array_equal(first.paths, again.paths)
    replace(calibration, checkpoint="0-0").save(file)
    assert "other weights" in draw(loaded, frames)[0].calibration
    assert read == [file, file]


def test_a_file_beside_the_weights_that_cannot_be_used_says_why(
    forecaster, calibration, frames, tmp_path
):
    folder = forecaster.save_pretrained(tmp_path / "mine")
    loaded = KronosPredictor.from_pretrained(folder, device="cpu")
    file = folder / "predictor" / FILE
    assert not file.exists()
    [found] = draw(loaded, frames[:1])
    assert found.calibration.startswith(f"uncalibrated: no {FILE} lies beside the weights")
    file.write_text('{"fits": 3}', encoding="utf-8")
    [found] = draw(loaded, frames[:1])
    assert f"{FILE} holds no calibration" in found.calibration
    replace(calibration, checkpoint="0123").save(file)
    [found] = draw(loaded, frames[:1])
    assert f"{FILE}: it was fitted on paths of other weights (fingerprint 0123" in found.calibration
    copied = loaded.save_pretrained(tmp_path / "copy")
    assert not (copied / "predictor" / FILE).exists(), "it would be of no use there"


# Calibrating.


def test_calibrating_again_gives_the_same_and_it_is_taken(forecaster, calibration, bars, tmp_path):
    again = forecaster.calibrate(bars, last=LAST, drawn=10, **QUICK)
    assert again == calibration
    assert forecaster.calibration is again
    again.save(tmp_path / "c.json")
    assert Calibration.load(tmp_path / "c.json") == again
    path = tmp_path / "bars.csv"
    bars.to_csv(path, index=False)
    from_file = forecaster.calibrate(path, last=LAST, drawn=10, **QUICK)
    assert from_file.fits["day"].own.slopes == pytest.approx(again.fits["day"].own.slopes, abs=1e-3)


def test_calibrating_covers_what_came_later(calibration, bars):
    """Raw paths of new weights are noise; calibrated bands cover their share on days after."""
    forecaster = new_predictor()
    later = bars[bars["date"] > LAST]
    windows, came = [], []
    for _, own in later.groupby("symbol"):
        for start in range(0, len(own) - LOOKBACK - HORIZON, HORIZON):
            windows.append(own.iloc[start : start + LOOKBACK])
            came.append(own["close"].iloc[start + LOOKBACK + HORIZON - 1])
    covered = {}
    for choice in (None, calibration):
        found = draw(forecaster, windows, calibration=choice, sample_count=20)
        inside = [
            np.quantile(one.paths[:, -1, CLOSE], 0.05)
            <= close
            <= np.quantile(one.paths[:, -1, CLOSE], 0.95)
            for one, close in zip(found, came, strict=True)
        ]
        covered[choice is not None] = np.mean(inside)
    assert len(windows) >= 50
    assert covered[True] == pytest.approx(0.87, abs=0.1)  # of 20 paths the 90 % band holds 87
    assert abs(covered[False] - 0.9) > abs(covered[True] - 0.9)


def test_no_bar_after_the_last_decides_a_calibration(bars):
    """Not its prices, nor whether its volume is known, nor its errors, nor a name that comes."""
    expected = new_predictor().calibrate(bars, last=LAST, drawn=10, **QUICK)
    after = bars["date"] > LAST
    changed = bars.copy()
    changed.loc[after, ["open", "high", "low", "close"]] *= 3
    changed.loc[after, ["volume", "amount"]] = 0.0
    changed.loc[after & (bars["symbol"] == bars["symbol"].iloc[0]), "high"] = -1.0
    newcomer = changed[after].tail(40).assign(symbol="NEW")
    changed = pd.concat([changed, newcomer], ignore_index=True)
    assert new_predictor().calibrate(changed, last=LAST, drawn=10, **QUICK) == expected
    moved = bars.copy()
    newest = bars["date"] == bars.loc[~after, "date"].max()
    moved.loc[newest, ["open", "high", "low", "close"]] *= 1.01
    assert new_predictor().calibrate(moved, last=LAST, drawn=10, **QUICK) != expected
    assert expected.until == LAST


def test_bars_after_a_windows_last_change_nothing_of_its_forecast(forecaster, calibration, bars):
    forecaster.calibration = calibration
    day = bars["date"].drop_duplicates().sort_values().iloc[-20]
    changed = bars.copy()
    after = bars["date"] > day
    changed.loc[after, ["open", "high", "low", "close", "volume", "amount"]] *= 2
    seen = [
        [own[own["date"] <= day].tail(LOOKBACK) for _, own in table.groupby("symbol")]
        for table in (bars, changed)
    ]
    for one, other in zip(*(draw(forecaster, frames) for frames in seen), strict=True):
        np.testing.assert_array_equal(one.paths, other.paths)
        assert one.is_calibrated


def test_too_few_bars_are_refused_before_any_path_is_drawn(forecaster, bars, monkeypatch):
    monkeypatch.setattr(forecaster, "paths", lambda *_, **__: pytest.fail("it drew paths"))
    few = bars[bars["date"] <= "2020-03-10"]
    message = f"windows of 30 bars seen and 4 .* is fitted on {LEAST_WINDOWS} at least: give more"
    with pytest.raises(BarDataError, match=message):
        forecaster.calibrate(few, **QUICK)
    with pytest.raises(BarDataError, match="no window with 30 bars seen"):
        forecaster.calibrate(bars[bars["date"] <= "2020-01-20"], **QUICK)
    with pytest.raises(BarDataError, match="no bar lies at or before 2019-01-01"):
        forecaster.calibrate(bars, last="2019-01-01", **QUICK)
    assert forecaster.calibration is None


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"lookback": 20}, "lookback must lie in 23 to 64, the bars that the predictor sees"),
        ({"lookback": 65}, "lookback must lie in 23 to 64"),
        ({"horizon": 0}, "horizon must be at least 1"),
        ({"drawn": -1}, "drawn must be at least 0"),
        ({"windows": 2.5}, "windows must be a whole number"),
        ({"windows": 219}, "windows must be at least 220, got 219"),
        ({"first": "2021-01-01", "last": "2020-06-01"}, "ends at .* before it begins"),
    ],
)
def test_settings_of_calibrating_that_cannot_work_are_refused(forecaster, bars, wrong, message):
    with pytest.raises(ConfigError, match=message):
        forecaster.calibrate(bars, **{**QUICK, **wrong})


@pytest.mark.parametrize("last", [None, LAST])
def test_settings_of_windows_are_taken_whatever_the_last_bar(forecaster, bars, last):
    """With `last` they met the reader of files, which knows none: a TypeError."""
    how = {"last": last, "drawn": 0, **QUICK}
    assert forecaster.calibrate(bars, min_bars=25, **how).fits["day"].own.windows == 300
    with pytest.raises(ConfigError, match="min_bars"):
        forecaster.calibrate(bars, min_bars=99, **how)
    with pytest.raises(ConfigError, match="has no setting 'min_bar'"):
        forecaster.calibrate(bars, min_bar=25, **how)


def test_calibrating_without_paths_draws_none(forecaster, bars, monkeypatch, caplog):
    monkeypatch.setattr(forecaster, "paths", lambda *_, **__: pytest.fail("it drew paths"))
    caplog.set_level(logging.WARNING)
    found = forecaster.calibrate(bars, drawn=0, **QUICK)
    assert found.fits["day"].paths is None
    assert found.sampling["top_p"] == 0.9, "as predict_paths draws"


def test_calibrating_by_other_paths_says_which(forecaster, bars):
    how = SamplingConfig(paths=11, temperature=0.8, top_p=1.0)
    found = forecaster.calibrate(bars, drawn=5, sampling=how, **QUICK)
    assert found.sampling == {"temperature": 0.8, "top_k": 0.0, "top_p": 1.0, "anchor": 1.0}
