"""Samples to calibrate on: their windows, their paths, and what they must not have seen."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pandas as pd
import pytest
from calibration_markets import hourly_stamps, sample_from, volatile_scales, walk_bars

from kronos_qlib.calibration.calibration import DAY, INTRADAY, Sample
from kronos_qlib.data.windows.bar_table import BarTable
from kronos_qlib.data.windows.known import times_ahead
from kronos_qlib.data.windows.window_dataset import WindowDataset
from kronos_qlib.errors import BarDataError, ConfigError
from kronos_qlib.inference.calibrating import (
    checkpoint_of,
    fit_calibration,
    sample_of,
    settings_of,
)
from kronos_qlib.inference.predictor import KronosPredictor
from kronos_qlib.inference.sampling import SamplingConfig
from kronos_qlib.schema import BAR_COLUMNS, PRICE_COLUMNS

DAYS = pd.bdate_range("2020-01-01", periods=120)
END = str(DAYS[89].date())
LOOKBACK, HORIZON = 30, 3
SAMPLING = SamplingConfig(paths=3)


@pytest.fixture(scope="module")
def predictor(make_pair):
    tokenizer, model = make_pair()
    return KronosPredictor(model, tokenizer, device="cpu", max_context=64)


@pytest.fixture(scope="module")
def bars():
    rng = np.random.default_rng(0)
    return walk_bars(rng, volatile_scales(rng, 25, len(DAYS))).astype(np.float32)


def source_of(bars, keep=None, **more):
    frames = []
    for name, own in enumerate(bars):
        index = pd.MultiIndex.from_product(
            [[f"N{name:02d}"], DAYS[: len(own)]], names=["instrument", "datetime"]
        )
        frame = pd.DataFrame(own, index=index, columns=list(BAR_COLUMNS))
        frames.append(frame if keep is None else frame[keep[name]])
    options = {"lookback": LOOKBACK, "horizon": HORIZON, "segments": {"past": (None, END)}} | more
    table = BarTable.from_frame(pd.concat(frames), invalid="skip")
    return WindowDataset(table=table, **options)


def sample(predictor, source, **options):
    options = {"windows": 200, "drawn": 5} | options
    return sample_of(predictor, source, "past", SAMPLING, **options)


def assert_same(left: Sample, right: Sample):
    for one in fields(Sample):
        first, second = getattr(left, one.name), getattr(right, one.name)
        assert np.array_equal(first, second), one.name


def test_bars_after_the_end_of_the_segment_decide_nothing(predictor, bars):
    later = bars.copy()
    later[:, 90:, :4] *= 3
    later[:, 95:, 4:] *= 7
    first = sample(predictor, source_of(bars))
    assert_same(first, sample(predictor, source_of(later)))
    assert_same(first, sample(predictor, source_of(bars[:, :90])))


def test_no_window_has_seen_what_it_is_to_forecast(predictor, bars):
    source = source_of(bars)
    found = sample(predictor, source)
    closes = pd.DataFrame(bars[..., 3].T, index=DAYS)
    for row in range(0, len(found.closes), 20):
        place = DAYS.get_loc(pd.Timestamp(found.times[row]))
        name = np.flatnonzero((closes.iloc[place] == found.bars[row, -1, 3]).to_numpy())[0]
        assert (found.bars[row] == bars[name, place - LOOKBACK + 1 : place + 1]).all()
        assert (found.closes[row] == bars[name, place + 1 : place + 1 + HORIZON, 3]).all()
    assert found.newest == np.datetime64(DAYS[89], "ns")
    assert found.times.max() == np.datetime64(DAYS[89 - HORIZON], "ns")


def test_paths_belong_to_their_windows(predictor, bars):
    apart = bars.copy()
    apart[..., :4] *= 2.0 ** np.arange(len(bars))[:, None, None]
    found = sample(predictor, source_of(apart), drawn=60)
    assert found.paths.shape == (60, 3, HORIZON)
    ratio = found.paths / found.bars[found.drawn, -1, 3][:, None, None]
    assert np.abs(np.log(ratio)).max() < np.log(2)
    assert (np.diff(found.times[found.drawn]) >= np.timedelta64(0)).all()


def test_the_seed_decides_windows_and_paths(predictor, bars):
    source = source_of(bars)
    first = sample(predictor, source, seed=4)
    assert_same(first, sample(predictor, source, seed=4))
    other = sample(predictor, source, seed=5)
    assert not np.array_equal(first.bars, other.bars)
    assert not np.array_equal(first.paths, other.paths)


def test_paths_are_drawn_from_a_moment_on(predictor, bars):
    source = source_of(bars)
    found = sample(predictor, source, drawn_from=DAYS[70], drawn=50)
    assert len(found.drawn) == 50
    assert (found.times[found.drawn] >= np.datetime64(DAYS[70])).all()
    assert (found.times < np.datetime64(DAYS[70])).any()
    for none in (
        sample(predictor, source, drawn_from="2031-01-01"),
        sample(predictor, source, drawn=0),
    ):
        assert none.paths is None
        assert not len(none.drawn)


def test_windows_with_a_price_that_is_not_positive_are_left_out(predictor, bars):
    source = source_of(bars)
    source.table.values[50, 2] = -1  # N00's
    found = sample(predictor, source, windows=10**6, drawn=0)
    whole = sample(predictor, source_of(bars), windows=10**6, drawn=0)
    left_out = [end for end in range(LOOKBACK - 1, 90 - HORIZON) if end + 1 - LOOKBACK <= 50]
    touched = [end for end in left_out if end + HORIZON >= 50]
    assert len(whole.bars) - len(found.bars) == len(touched)
    source.table.values[:, 2] = -1
    with pytest.raises(BarDataError, match="no window has positive prices"):
        sample(predictor, source)


def test_windows_whose_prices_stood_still_are_left_out(predictor, bars):
    """A halted name's windows, without any volatility, decided half of a calibration."""
    halted = bars.copy()
    halted[0, :, : len(PRICE_COLUMNS)] = 10
    found = sample(predictor, source_of(halted), windows=10**6, drawn=0)
    whole = sample(predictor, source_of(bars), windows=10**6, drawn=0)
    assert len(found.bars) == len(whole.bars) * (len(bars) - 1) / len(bars)
    halted[..., : len(PRICE_COLUMNS)] = 10
    with pytest.raises(BarDataError, match="no price of any window has moved"):
        sample(predictor, source_of(halted))


def test_windows_of_several_lengths_are_cut_to_what_half_of_them_have(predictor, bars):
    """The shortest of all once cut the others: one new listing made a sample of 23 bars."""
    keep = np.ones(bars.shape[:2], dtype=bool)
    keep[:5, :40] = False  # listed later
    found = sample(predictor, source_of(bars, keep, min_bars=24), windows=10**6, drawn=3)
    assert found.bars.shape[1] == LOOKBACK
    keep[:, :40] = False
    found = sample(
        predictor, source_of(bars, keep, lookback=60, min_bars=10), windows=10**6, drawn=3
    )
    assert 23 <= found.bars.shape[1] < 60
    assert len(found.bars) > 100


@pytest.mark.parametrize("more", [{"lookback": 22}, {"lookback": 22, "min_bars": 5}])
def test_windows_of_few_bars_are_refused(predictor, bars, more):
    with pytest.raises(BarDataError, match="see 22 bars at most, and a calibration takes 23"):
        sample(predictor, source_of(bars, **more))


def test_the_state_of_the_market_is_that_of_the_last_bar_seen(predictor, bars):
    wild = bars.copy()
    wild[:, 60:, :4] *= 1.3
    found = sample(predictor, source_of(wild), windows=10**6, drawn=0)
    on_the_day = found.times == np.datetime64(DAYS[60])
    before = found.times == np.datetime64(DAYS[59])
    assert (found.market[on_the_day, 0] > 1).all()
    assert (np.abs(found.market[before, 0]) < 0.8).all()


def test_a_calibration_of_a_predictor_says_what_it_belongs_to(predictor, bars):
    found = sample(predictor, source_of(bars), windows=1000)
    calibration = fit_calibration(predictor, [found], SAMPLING, "a test")
    assert list(calibration.fits) == [DAY]
    assert calibration.checkpoint == checkpoint_of(predictor)
    assert calibration.sampling == settings_of(SAMPLING)
    assert calibration.about == "a test"
    # Not the last bar seen: the closes after it were fitted on.
    assert calibration.until == END
    assert fit_calibration(predictor, [found], SAMPLING, "a test") == calibration


def test_each_kind_of_bars_is_fitted_by_itself(predictor):
    rng = np.random.default_rng(0)
    daily = sample_from(walk_bars(rng, np.full((20, 200), 0.02)), 60, 3)
    stamps = hourly_stamps(len(daily.bars), 63)
    hourly = replace(daily, stamps=stamps[:, :60], ahead=stamps[:, 60:])
    calibration = fit_calibration(predictor, [daily, hourly], SAMPLING)
    assert set(calibration.fits) == {DAY, INTRADAY}
    assert calibration.fits[DAY].season is None
    assert calibration.fits[INTRADAY].season is not None
    mixed = replace(daily, stamps=np.concatenate((stamps[:5, :60], daily.stamps[5:])))
    with pytest.raises(ConfigError, match="in one sample"):
        fit_calibration(predictor, [mixed], SAMPLING)
    with pytest.raises(ConfigError, match="got none"):
        fit_calibration(predictor, [], SAMPLING)


def test_times_ahead_are_those_of_the_bars_that_came(bars):
    keep = np.ones(bars.shape[:2], dtype=bool)
    keep[0, 50] = False  # suspended for a day
    source = source_of(bars, keep)
    windows = source.training_windows("past").by_time()
    of_first = windows.take(
        np.flatnonzero(
            (windows.index.get_level_values(1) == "N00")
            & (windows.times == np.datetime64(DAYS[49]))
        )
    )
    assert list(pd.DatetimeIndex(times_ahead(of_first)[0])) == list(DAYS[[51, 52, 53]])
