"""Kept forecasts: written whole, read strictly, scored against what came."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from kronos_qlib.data.files.read import BarFile
from kronos_qlib.schema import BAR_COLUMNS
from kronos_qlib.webui.schemas import LEVELS, Forecast, ShownBar, TrackRecord
from kronos_qlib.webui.work.forecast_answer import NOT_COME, NOT_RUN, Answer, FieldError, sample_of
from kronos_qlib.webui.work.kept_forecasts import (
    KeptForecasts,
    UnknownForecastError,
    score_known,
)
from kronos_qlib.webui.work.reconciling import reconciled, with_realised

DAYS = pd.bdate_range("2024-01-01", periods=60)
SEEN, HORIZON = 40, 5


def closes_of(seed=0):
    rng = np.random.default_rng(seed)
    return 10 * np.exp(np.cumsum(rng.normal(0, 0.02, len(DAYS))))


def table_of(closes, days=DAYS, symbol="ABC"):
    frame = pd.DataFrame({"symbol": symbol, "date": days[: len(closes)]})
    for name in ("open", "high", "low", "close"):
        frame[name] = closes
    frame["volume"], frame["amount"], frame["factor"] = 100.0, 1000.0, 1.0
    return BarFile(frame, ())


def answer_of(number=1, seed=0, paths=100, spread=0.02, **changes):
    """A forecast of a random walk that is right about its spread."""
    closes = closes_of(seed)
    last = closes[SEEN - 1]
    rng = np.random.default_rng(seed + 1000)
    drawn = last * np.exp(np.cumsum(rng.normal(0, spread, (paths, HORIZON)), axis=1))
    times = [f"{day:%Y-%m-%d}" for day in DAYS]
    history = [
        ShownBar(timestamp=time, open=c, high=c, low=c, close=c, volume=100, amount=1000)
        for time, c in zip(times[:SEEN], closes[:SEEN], strict=True)
    ]
    quantiles = {f"{level:g}": np.quantile(drawn, level, axis=0).tolist() for level in LEVELS}
    fields = {
        "id": f"{number:020x}",
        "created": f"2024-03-{number % 28 + 1:02d}T00:00:00Z",
        "instrument": "ABC",
        "source": "bars",
        "source_name": "the request",
        "is_intraday": False,
        "rule": "B",
        "settings": {"horizon": HORIZON, "paths": paths},
        "checkpoint": {"name": "nano", "revision": None, "digest": "0" * 16},
        "calibrated": False,
        "calibration": "uncalibrated",
        "anchored": True,
        "notes": [],
        "bars_digest": "0" * 64,
        "bars_seen": SEEN,
        "last_timestamp": times[SEEN - 1],
        "last_close": last,
        "timestamps": times[SEEN : SEEN + HORIZON],
        "quantiles": dict.fromkeys(BAR_COLUMNS, quantiles),
        "mean": dict.fromkeys(BAR_COLUMNS, drawn.mean(axis=0).tolist()),
        "paths": None,
        "prob_up": [0.5] * HORIZON,
        "outlook": {
            "last_return": 0.0,
            "prob_up": 0.5,
            "volatility": 0.02,
            "shortfall_5": -0.05,
        },
        "history": history,
        "realised": None,
        "track_record": TrackRecord(this_window_reason=NOT_COME, past_reason=NOT_RUN),
        "kept": False,
    }
    return Answer(Forecast(**{**fields, **changes}), sample_of(drawn))


def came(seed=0, bars=HORIZON):
    return table_of(closes_of(seed)).bars.iloc[SEEN : SEEN + bars]


@pytest.fixture
def store(tmp_path):
    return KeptForecasts(tmp_path / "kept")


def test_what_is_kept_is_read_back_by_another_store(store):
    kept = store.keep(answer_of())
    assert kept.kept
    again = KeptForecasts(store.folder)
    assert again.read(kept.id).forecast == kept
    assert [one.id for one in again.list().forecasts] == [kept.id]


def test_a_file_from_before_the_outlook_s_return_had_its_name_is_read(store):
    """It was called expected_return, as the paper's signal is, which is another figure."""
    kept = store.keep(answer_of())
    path = store.folder / f"{kept.id}.json"
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace('"last_return":0.0', '"expected_return":0.03'), encoding="utf-8")
    again = KeptForecasts(store.folder)
    assert again.read(kept.id).forecast.outlook.last_return == 0.03
    assert again.list().forecasts[0].last_return == 0.03


def test_a_choice_among_many_paths_is_scored_as_the_quantiles_it_is():
    few, many = answer_of(paths=200), answer_of(paths=1000)
    assert not few.is_stratified
    assert many.is_stratified
    whole = answer_of(paths=1000)
    closes = np.array(closes_of()[SEEN : SEEN + HORIZON])
    every = np.random.default_rng(1000).normal(0, 0.02, (1000, HORIZON)).cumsum(axis=1)
    returns = np.exp(every) - 1
    true = closes / whole.forecast.last_close - 1
    gaps = np.abs(returns[:, None] - returns[None]).mean(axis=(0, 1))
    crps = np.abs(returns - true).mean(axis=0) - gaps / 2
    scored = score_known(with_realised(many, came()))
    np.testing.assert_allclose(scored.crps, crps, rtol=2e-3)


def test_nothing_is_made_before_the_first_forecast(store):
    assert store.list().total == 0
    assert store.calibration().reason == "nothing is kept yet"
    assert not store.folder.exists()


def test_the_list_is_newest_first_filtered_and_in_pages(store):
    for number in range(1, 8):
        name = "XYZ" if number % 2 else "ABC"
        store.keep(answer_of(number, instrument=name))
    assert [int(one.id, 16) for one in store.list().forecasts] == [7, 6, 5, 4, 3, 2, 1]
    assert [int(one.id, 16) for one in store.list("xy", 1, 2).forecasts] == [5, 3]
    assert store.list("xy").total == 4
    assert store.list("<script>").total == 0


def test_files_that_come_and_go_are_followed(store):
    first = store.keep(answer_of(1))
    store.keep(answer_of(2))
    path = store.folder / f"{first.id}.json"
    copy = path.read_bytes()
    path.unlink()
    assert store.list().total == 1
    path.write_bytes(copy)
    assert store.list().total == 2


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        '{"format": 99}',
        '{"format": 1}',
        '{"format": 1, "forecast": {}, "sample": []}',
        "[" * 100_000,
        "\x00",
    ],
)
def test_a_file_that_is_no_forecast_is_named_left_alone_and_stops_nothing(store, text):
    good = store.keep(answer_of(1))
    path = store.folder / f"{2:020x}.json"
    path.write_text(text, encoding="utf-8")
    (store.folder / "notes.txt").write_text("mine", encoding="utf-8")
    found = store.list()
    assert [one.id for one in found.forecasts] == [good.id]
    assert found.unreadable == [path.name]
    assert path.exists()
    with pytest.raises(UnknownForecastError):
        store.read(f"{2:020x}")


@pytest.mark.parametrize("change", ["sample", "short", "negative", "text", "other id"])
def test_a_forecast_that_somebody_changed_badly_is_refused(store, change):
    kept = store.keep(answer_of())
    path = store.folder / f"{kept.id}.json"
    about = json.loads(path.read_text(encoding="utf-8"))
    if change == "sample":
        about["sample"] = "none"
    elif change == "short":
        about["sample"][0] = about["sample"][0][:-1]
    elif change == "negative":
        about["sample"][0][0] = -1.0
    elif change == "text":
        about["sample"][1][1] = "10"
    else:
        about["forecast"]["id"] = "f" * 20
    path.write_text(json.dumps(about), encoding="utf-8")
    with pytest.raises(UnknownForecastError, match="no kept forecast"):
        KeptForecasts(store.folder).read(kept.id)


@pytest.mark.parametrize("bad", ["../../etc/passwd", "..", "", "A" * 20, "0" * 19, "0" * 21, "é"])
def test_an_id_is_an_id_and_no_path(store, bad):
    for ask in (store.read, store.delete):
        with pytest.raises(UnknownForecastError):
            ask(bad)


def test_deleting_takes_one_file(store):
    one, two = store.keep(answer_of(1)), store.keep(answer_of(2))
    store.delete(one.id)
    assert [each.id for each in store.list().forecasts] == [two.id]
    with pytest.raises(UnknownForecastError):
        store.delete(one.id)
    assert [path.name for path in store.folder.iterdir()] == [f"{two.id}.json"]


def test_asking_again_keeps_the_first_day_and_what_has_come(store):
    first = store.keep(with_realised(answer_of(), came()))
    again = store.keep(answer_of(created="2025-01-01T00:00:00Z"))
    assert again.created == first.created
    assert again.realised == first.realised
    assert again.track_record.this_window == first.track_record.this_window


def test_updating_what_was_deleted_brings_nothing_back(store):
    answer = answer_of()
    store.keep(answer)
    store.delete(answer.forecast.id)
    with pytest.raises(UnknownForecastError):
        store.update(answer)
    assert store.list().total == 0


def test_a_window_is_scored_once_all_its_bars_have_come():
    part = with_realised(answer_of(), came(bars=3)).forecast
    assert part.track_record.this_window is None
    assert "2 of 5" in part.track_record.this_window_reason
    whole = with_realised(answer_of(), came()).forecast
    by_name = {one.method: one for one in whole.track_record.this_window}
    assert set(by_name) == {"kronos", "last_price", "historical_volatility"}
    moves = np.array([bar.close for bar in whole.realised]) / whole.last_close - 1
    assert by_name["last_price"].crps == pytest.approx(np.abs(moves).mean())
    assert by_name["last_price"].coverage is None
    low, high = (np.array(whole.quantiles["close"][level]) for level in ("0.05", "0.95"))
    real = np.array([bar.close for bar in whole.realised])
    assert by_name["kronos"].coverage["0.9"] == pytest.approx(
        ((low <= real) & (real <= high)).mean(), abs=0.21
    )


def test_bars_at_other_times_than_forecast_are_told():
    moved = came().assign(date=lambda bars: bars["date"] + pd.Timedelta(days=7))
    notes = with_realised(answer_of(), moved).forecast.notes
    assert "came at other times than forecast: 5 of 5" in notes[0]
    again = with_realised(with_realised(answer_of(), moved), moved).forecast.notes
    assert again == notes


def test_reconciling_takes_what_came_after_the_forecast():
    found = reconciled(answer_of(), table_of(closes_of())).forecast
    assert [bar.timestamp for bar in found.realised] == found.timestamps
    np.testing.assert_allclose(
        [bar.close for bar in found.realised], closes_of()[SEEN : SEEN + HORIZON], rtol=1e-6
    )


def test_prices_that_were_adjusted_anew_are_brought_back():
    """A split halves all prices of a file, and a forecast of before must not look wrong."""
    plain = reconciled(answer_of(), table_of(closes_of())).forecast
    halved = reconciled(answer_of(), table_of(closes_of() / 2)).forecast
    np.testing.assert_allclose(
        [bar.close for bar in halved.realised], [bar.close for bar in plain.realised], rtol=1e-6
    )
    assert "adjusted anew" in halved.notes[0]
    assert halved.track_record.this_window[0].crps == pytest.approx(
        plain.track_record.this_window[0].crps, rel=1e-4
    )


def test_bars_of_another_series_are_refused():
    with pytest.raises(FieldError, match="not those of ABC"):
        reconciled(answer_of(), table_of(closes_of(seed=5)))


def test_bars_that_end_before_are_refused():
    with pytest.raises(FieldError, match="no bar after"):
        reconciled(answer_of(), table_of(closes_of()[:SEEN]))


def test_the_calibration_over_all_is_right_of_right_forecasts_and_wrong_of_bold_ones(store):
    for number in range(1, 301):
        answer = answer_of(number, seed=number)
        store.keep(with_realised(answer, came(seed=number)))
    right = store.calibration()
    assert (right.forecasts, right.bars) == (300, 1500)
    for row in right.by_horizon:
        assert row.coverage["0.9"] == pytest.approx(0.9, abs=0.07)
        assert row.coverage["0.5"] == pytest.approx(0.5, abs=0.1)
    assert [row.bar for row in right.by_horizon] == [1, 2, 3, 4, 5]
    assert right.by_horizon[4].crps > right.by_horizon[0].crps
    assert sum(right.pit) == 1500
    assert max(right.pit) < 1.6 * min(right.pit)
    bold = KeptForecasts(store.folder.with_name("bold"))
    for number in range(1, 101):
        answer = answer_of(number, seed=number, spread=0.005)
        bold.keep(with_realised(answer, came(seed=number)))
    assert bold.calibration().by_horizon[0].coverage["0.9"] < 0.6
    pit = bold.calibration().pit
    assert pit[0] + pit[-1] > 2 * (pit[4] + pit[5])


def test_few_paths_are_not_asked_for_bands_that_they_cannot_have():
    scored = score_known(with_realised(answer_of(paths=4), came()))
    assert np.isnan(scored.covered[:, 2]).all(), "4 paths have no band of 90 %"
    assert not np.isnan(scored.covered[:, 0]).any()


def test_many_paths_are_kept_as_their_quantiles():
    drawn = np.random.default_rng(0).lognormal(0, 0.1, (5000, 3))
    kept = np.array(sample_of(drawn)).T
    assert kept.shape == (200, 3)
    for level in (0.05, 0.5, 0.95):
        np.testing.assert_allclose(
            np.quantile(kept, level, axis=0), np.quantile(drawn, level, axis=0), rtol=0.01
        )
