"""StreamingPredictor: what each bar does, and which forecast is in force after it."""

from __future__ import annotations

import importlib.util
import sys
import warnings
from argparse import Namespace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from kronos_qlib.data.calendar.stamps import stamps_of
from kronos_qlib.data.windows.scale import WindowScale
from kronos_qlib.errors import BarDataError, ConfigError
from kronos_qlib.inference.generate import decode_drawn, generate
from kronos_qlib.inference.packed import PackedKronos, PackedTokenizer
from kronos_qlib.inference.predictor import KronosPredictor, in_units
from kronos_qlib.inference.products.int8_product import can_multiply_int8
from kronos_qlib.inference.sampling import SamplingConfig, path_uniforms
from kronos_qlib.inference.streaming.streaming_predictor import StreamingPredictor
from kronos_qlib.schema import BAR_COLUMNS, CLOSE

LOOKBACK, HORIZON, HOLD = 12, 3, 4
NAMES = ("AAA", "BBB", "CCC")
TIMES = pd.date_range("2024-01-01 09:00", periods=60, freq="h")
HOW = SamplingConfig(paths=5, temperature=1.0, top_p=0.9)


@pytest.fixture(scope="module")
def market():
    """Steady enough that no bar lies beyond 5 deviations of the window before it."""
    rng, tables = np.random.default_rng(0), []
    for name in NAMES:
        close = 50 + rng.uniform(-1, 1, len(TIMES))
        opened = 50 + rng.uniform(-1, 1, len(TIMES))
        table = pd.DataFrame({"symbol": name, "date": TIMES, "open": opened})
        table["high"] = np.maximum(opened, close) + rng.uniform(0, 0.5, len(TIMES))
        table["low"] = np.minimum(opened, close) - rng.uniform(0, 0.5, len(TIMES))
        table["close"], table["volume"] = close, rng.uniform(50, 100, len(TIMES))
        table["amount"] = table["volume"] * close
        tables.append(table)
    return pd.concat(tables, ignore_index=True)


@pytest.fixture
def predictor(tiny_pair):
    tokenizer, model = tiny_pair
    return KronosPredictor(model, tokenizer, device="cpu", max_context=32)


def stream_of(predictor, mode="exact", **settings):
    settings = {"lookback": LOOKBACK, "horizon": HORIZON, "hold": HOLD, "freq": "h"} | settings
    return StreamingPredictor(predictor, mode=mode, sampling=HOW, **settings)


def begun(predictor, market, at=20, mode="exact", **settings):
    stream = stream_of(predictor, mode, **settings)
    stream.begin(market[market["date"] < TIMES[at]])
    return stream


def at(market, hour, *names):
    now = market[market["date"] == TIMES[hour]]
    return now[now["symbol"].isin(names or NAMES)]


def bar(market, name, hour, **changed):
    [row] = at(market, hour, name).to_dict("records")
    return row | changed


def full_read(predictor, market, hour, name="AAA"):
    """What `predict_paths` makes of the last bars up to an hour."""
    window = market[(market["symbol"] == name) & (market["date"] <= TIMES[hour])].tail(LOOKBACK)
    [found] = predictor.predict_paths(
        [window], [window["date"]], pred_len=HORIZON, keys=[name], sampling=HOW,
        freq="h", warn=False, verbose=False,
    )  # fmt: skip
    return found


def same(pushed, expected):
    assert np.array_equal(pushed.forecast.paths, expected.paths)
    assert (pushed.forecast.times == expected.times).all()
    assert pushed.forecast.calibration == expected.calibration
    assert pushed.forecast.last_close == expected.last_close
    return True


def test_one_bar_gives_the_quantiles_of_the_next(predictor, market):
    stream = begun(predictor, market, levels=(0.1, 0.9))
    pushed = stream.push(pd.Series(bar(market, "AAA", 20)))
    assert (pushed.outcome, pushed.time, pushed.note) == ("read", TIMES[20], "")
    assert same(pushed, full_read(predictor, market, 20))
    expected = full_read(predictor, market, 20).quantiles([0.1, 0.9])
    pd.testing.assert_frame_equal(pushed.quantiles, expected)
    together = begun(predictor, market, levels=(0.1, 0.9)).push_many(at(market, 20))
    pd.testing.assert_frame_equal(
        together.quantiles().loc["AAA"], expected, check_freq=False, check_names=False
    )


def test_a_forecast_waits_for_its_bars_and_instruments_come_at_any_time(predictor, market):
    stream = stream_of(predictor)
    for hour in range(LOOKBACK - 1):
        pushed = stream.push(bar(market, "AAA", hour))
        assert (pushed.outcome, pushed.forecast) == ("waiting", None)
    assert pushed.reason == f"{LOOKBACK - 1} of {LOOKBACK} bars"
    with pytest.raises(BarDataError, match="AAA: no forecast yet: 11 of 12 bars"):
        _ = pushed.quantiles
    found = stream.push_many(at(market, LOOKBACK - 1))
    assert [found[name].outcome for name in NAMES] == ["read", "waiting", "waiting"]
    assert list(found.quantiles().index.unique(0)) == ["AAA"]
    assert stream.instruments == NAMES


def test_the_scale_is_held_and_then_read_anew(predictor, market):
    stream = begun(predictor, market, mode="fast")
    for hour in range(20, 20 + 2 * (HOLD + 1)):
        found = stream.push_many(at(market, hour))
        age = (hour - 20) % (HOLD + 1)
        for name in NAMES:
            assert found[name].age == age
            if age > 1:
                continue
            exact = full_read(predictor, market, hour, name)
            if age == 0:
                assert found[name].outcome == "read" and same(found[name], exact)
                continue
            assert (found[name].outcome, found[name].reason) == ("appended", "")
            assert (found[name].forecast.times == exact.times).all()
            assert not np.array_equal(found[name].forecast.paths, exact.paths)
            # Another scale, but of the same bars: no forecast leaves what they span.
            prices = found[name].forecast.paths[..., : CLOSE + 1]
            assert prices.min() > 45 and prices.max() < 55
    assert found["AAA"].reason == "" and stream.push(bar(market, "AAA", 30)).reason == (
        f"the scale was held for {HOLD} bars"
    )


@pytest.mark.parametrize("rotate", [False, True])
def test_an_appended_bar_is_what_a_read_by_the_held_scale_gives(tiny_pair, market, rotate):
    """Kept keys must be those that a fresh read of the grown window would give, whatever the
    lengths of the other prompts of the batch."""
    tokenizer, model = tiny_pair
    predictor = KronosPredictor(model, tokenizer, device="cpu", max_context=32)
    how = SamplingConfig(paths=5, temperature=1.0, top_p=0.9, rotate_s2=rotate)
    stream = StreamingPredictor(
        predictor, lookback=LOOKBACK, horizon=HORIZON, hold=HOLD, freq="h", mode="fast",
        sampling=how, calibration=None, coherent=False,
    )  # fmt: skip
    for name, read in (("AAA", 20), ("CCC", 21), ("BBB", 22)):
        stream.begin(market[(market["symbol"] == name) & (market["date"] < TIMES[read])])
    stream.push(bar(market, "AAA", 20))
    stream.push_many(at(market, 21, "AAA", "CCC"))
    stream.push_many(at(market, 22))
    found = stream.push_many(at(market, 23, "AAA", "CCC", "BBB"))
    for name, read in (("AAA", 20), ("CCC", 21), ("BBB", 22)):
        assert found[name].age == 23 - read
        own = market[market["symbol"] == name]
        bars = own[list(BAR_COLUMNS)].to_numpy(np.float32)[None, read + 1 - LOOKBACK : 24]
        scale = WindowScale.of(bars[:, :LOOKBACK])
        z = torch.from_numpy(scale.to_z(bars, predictor.clip))
        packed, decoder = PackedKronos(model), PackedTokenizer(tokenizer)
        tokens = decoder.encode(z)
        stamps = torch.from_numpy(stamps_of(TIMES[read + 1 - LOOKBACK : 24 + HORIZON]))[None]
        uniforms = path_uniforms(0, [name.encode()], how.paths, HORIZON)
        drawn = generate(packed, tokens, stamps, HORIZON, how, uniforms, 32)
        ahead, newest = decode_drawn(decoder, tokens, drawn, how.paths, 32)
        expected = in_units(scale, ahead, newest, bars[:, -1, CLOSE], how)[0]
        np.testing.assert_allclose(found[name].forecast.paths, expected, rtol=1e-4)


@pytest.mark.parametrize(
    "dtype",
    [
        "float32",
        pytest.param(
            "int8", marks=pytest.mark.skipif(not can_multiply_int8(), reason="this CPU has no VNNI")
        ),
    ],
)
def test_a_forecast_is_the_same_whatever_else_is_in_the_batch(tiny_pair, market, dtype):
    tokenizer, model = tiny_pair
    predictor = KronosPredictor(model, tokenizer, device="cpu", max_context=32, dtype=dtype)
    together, alone = (begun(predictor, market, mode="fast") for _ in range(2))
    for hour in range(20, 24):
        found = together.push_many(at(market, hour))
        for name in NAMES[::-1]:
            one = alone.push(bar(market, name, hour))
            assert one.outcome == found[name].outcome and same(one, found[name].forecast)


@pytest.mark.parametrize("mode", ["exact", "fast"])
def test_a_bar_once_more_changes_nothing(predictor, market, mode):
    stream = begun(predictor, market, mode=mode)
    first = [stream.push(bar(market, "AAA", hour)) for hour in (20, 21)][-1]
    for hour in (21, 15):
        again = stream.push(bar(market, "AAA", hour))
        assert (again.outcome, again.reason) == ("repeated", "")
        assert again.forecast is first.forecast and again.age == first.age


@pytest.mark.parametrize("mode", ["exact", "fast"])
@pytest.mark.parametrize("hour", [21, 15])
def test_a_correction_is_read_anew(predictor, market, mode, hour):
    stream = begun(predictor, market, mode=mode)
    for now in (20, 21):
        stream.push_many(at(market, now))
    pushed = stream.push(bar(market, "AAA", hour, volume=77.0))
    assert pushed.outcome == "read" and pushed.reason == ("corrected" if mode == "fast" else "")
    changed = market.copy()
    changed.loc[(market["symbol"] == "AAA") & (market["date"] == TIMES[hour]), "volume"] = 77.0
    assert same(pushed, full_read(predictor, changed, 21))
    assert pushed.forecast.times[0] == TIMES[22]


@pytest.mark.parametrize("mode", ["exact", "fast"])
def test_a_late_bar_is_put_in_its_place_or_is_too_late(predictor, market, mode):
    late = market.drop(market.index[(market["symbol"] == "AAA") & (market["date"] == TIMES[18])])
    stream = begun(predictor, late, mode=mode)
    before = [stream.push(bar(market, "AAA", hour)) for hour in (20, 21)][-1]
    assert not np.array_equal(before.forecast.paths, full_read(predictor, market, 21).paths)
    pushed = stream.push(bar(market, "AAA", 18))
    assert pushed.outcome == "read" and same(pushed, full_read(predictor, market, 21))
    early = stream.push(bar(market, "AAA", 2))
    assert early.outcome == "too late" and early.reason.startswith("bars are kept from 2024-01-0")
    assert early.forecast is pushed.forecast


def test_gaps_are_told_and_no_error(predictor, market):
    stream = begun(predictor, market)
    stream.push_many(at(market, 20))
    pushed = stream.push(bar(market, "AAA", 23))
    assert pushed.note == "2 expected before it did not come, the first at 2024-01-02 06:00"
    gone = market[~market["date"].isin(TIMES[21:23])]
    assert same(pushed, full_read(predictor, gone, 23))
    assert stream.push(bar(market, "BBB", 26)).note.startswith("at least 3 expected before it")
    half = TIMES[20] + pd.Timedelta("30min")
    note = stream.push(bar(market, "CCC", 21, date=half)).note
    assert note == "none was expected before 2024-01-02 06:00"


def test_bars_that_break_a_rule_are_treated_as_in_tables(predictor, market):
    stream = begun(predictor, market)
    before = stream.push_many(at(market, 20))
    still = {"volume": 0.0, "amount": 0.0, "open": 50.0, "high": 50.0, "low": 50.0, "close": 50.0}
    for changed, why in (
        (still, "untraded"),
        (dict.fromkeys(("open", "high", "low", "close"), np.nan), "incomplete"),
    ):
        pushed = stream.push(bar(market, "AAA", 21, **changed))
        assert (pushed.outcome, pushed.reason) == ("left out", why)
        assert pushed.forecast is before["AAA"].forecast
    wrong = at(market, 21).copy()
    wrong.loc[wrong["symbol"] == "BBB", "high"] = 1.0
    message = r"BBB at 2024-01-02 06:00: high-below-low: .*\(1 such bar of BBB\).*invalid='skip'"
    with pytest.raises(BarDataError, match=message):
        stream.push_many(wrong)
    after = stream.push_many(at(market, 21))  # nothing of that push was taken in
    assert [one.outcome for one in after.values()] == ["read"] * 3
    skipping = begun(predictor, market, invalid="skip")
    found = skipping.push_many(wrong)
    assert [one.outcome for one in found.values()] == ["read", "left out", "read"]


def test_two_bars_of_one_instrument_are_two_pushes(predictor, market):
    stream = begun(predictor, market)
    with pytest.raises(BarDataError, match="AAA: two bars in one push"):
        stream.push_many(pd.concat([at(market, 20), at(market, 21, "AAA")]))
    assert stream.push(bar(market, "AAA", 20)).outcome == "read"


def test_a_bar_beyond_the_held_scale_is_read_anew(predictor, market):
    stream = begun(predictor, market, mode="fast")
    stream.push_many(at(market, 20))
    high = market.copy()
    high.loc[(market["symbol"] == "BBB") & (market["date"] == TIMES[21]), "volume"] = 1000.0
    found = stream.push_many(at(high, 21))
    assert [found[name].outcome for name in NAMES] == ["appended", "read", "appended"]
    assert found["BBB"].reason == "beyond 5 deviations of the held scale"
    assert same(found["BBB"], full_read(predictor, high, 21, "BBB"))


def test_changed_weights_are_read_anew(make_pair, market):
    tokenizer, model = make_pair(seed=3)
    predictor = KronosPredictor(model, tokenizer, device="cpu", max_context=32)
    stream = begun(predictor, market, mode="fast")
    stream.push(bar(market, "AAA", 20))
    with torch.no_grad():
        model.head.proj_s1.weight *= 1.5
    pushed = stream.push(bar(market, "AAA", 21))
    assert (pushed.outcome, pushed.reason) == ("read", "the weights changed")
    assert same(pushed, full_read(predictor, market, 21))


@pytest.mark.parametrize("mode", ["exact", "fast"])
@pytest.mark.parametrize("part", ["draw", "engine"])
def test_a_push_that_fails_midway_is_made_good(predictor, market, monkeypatch, mode, part):
    """The old forecast, or a prompt without that bar, would look as if nothing had happened."""
    stream = begun(predictor, market, mode=mode)
    stream.push_many(at(market, 20))
    with monkeypatch.context() as patch:
        patch.setattr(predictor, part, lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            stream.push_many(at(market, 21))
    again = stream.push(bar(market, "AAA", 21))
    assert again.outcome in ("read", "appended")
    assert again.age or same(again, full_read(predictor, market, 21))
    after = stream.push(bar(market, "BBB", 22))
    came = [21, 22] if part == "draw" else [22]
    known = market[(market["date"] < TIMES[21]) | market["date"].isin(TIMES[came])]
    assert after.age or same(after, full_read(predictor, known, 22, "BBB"))
    assert part == "engine" or after.outcome == "read"


def test_memory_is_bounded_and_given_back(predictor, market):
    stream = begun(predictor, market, mode="fast")
    stream.push_many(at(market, 20))
    full = stream.nbytes
    for hour in range(21, 27):
        stream.push_many(at(market, hour))
    assert stream.nbytes <= full + len(NAMES) * HOLD * (6 * 4 + 8)
    stream.forget("BBB")
    assert stream.instruments == ("AAA", "CCC")
    renamed = market.replace("BBB", "DDD")
    stream.begin(renamed[(renamed["symbol"] == "DDD") & (renamed["date"] < TIMES[27])])
    found = stream.push_many(at(renamed, 27, "AAA", "CCC", "DDD"))
    assert same(found["DDD"], full_read(predictor, renamed, 27, "DDD"))
    assert stream.nbytes <= full + len(NAMES) * HOLD * (6 * 4 + 8), "the place of BBB is used again"
    with pytest.raises(BarDataError, match="BBB: no bar of it has come"):
        stream.forget("BBB")


def test_a_restart_with_the_last_bars_gives_the_same(predictor, market):
    first, again = begun(predictor, market), begun(predictor, market, at=30)
    for hour in range(20, 31):
        found = first.push_many(at(market, hour))
    restarted = again.push_many(at(market, 30))
    assert all(same(restarted[name], found[name].forecast) for name in NAMES)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mode": "quick"}, "mode must be 'exact' or 'fast'"),
        ({"lookback": 1}, "lookback must be at least 2"),
        ({"lookback": 33}, "lookback 33 is more than the 32 bars"),
        ({"mode": "fast", "hold": 18}, r"and are 33: take hold at most 17"),
        ({"mode": "fast", "lookback": 30}, r"take a shorter lookback"),
        ({"mode": "fast", "hold": 0}, "hold must be at least 1"),
        ({"levels": (0.5, 2)}, "quantile levels lie in"),
        ({"exchange": "XSHG"}, "give exchange or freq, not both"),
        ({"invalid": "no"}, "invalid must be"),
        ({"calibration": "nowhere.json"}, "nowhere.json"),
    ],
)
def test_settings_that_cannot_work(predictor, market, settings, message):
    with pytest.raises(ConfigError, match=message):
        begun(predictor, market, **settings).push(bar(market, "AAA", 20))


def test_what_is_no_predictor_and_times_that_are_not_known(predictor, market):
    with pytest.raises(ConfigError, match="expected a KronosPredictor, got str"):
        StreamingPredictor("nano")
    stream = begun(predictor, market, freq=None)
    pushed = stream.push(bar(market, "AAA", 20))  # the bars of others go on
    assert pushed.outcome == "waiting" and "give the exchange" in pushed.reason
    with pytest.raises(BarDataError, match="AAA: no forecast yet: the past, "):
        _ = pushed.quantiles
    assert repr(stream) == "<StreamingPredictor exact, lookback=12, horizon=3: 3 instruments>"


def test_the_benchmark_compares_what_it_says(predictor, market):
    path = Path(__file__).parents[2] / "benchmarks" / "streaming.py"
    spec = importlib.util.spec_from_file_location("benchmarks_streaming", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    bars = np.stack(
        [market.loc[market["symbol"] == name, list(BAR_COLUMNS)].to_numpy() for name in NAMES], 1
    )
    table = module.Market(bars, TIMES, list(NAMES))
    args = Namespace(
        lookback=LOOKBACK, hold=2, horizon=HORIZON, paths=20, starts=2, freq="h", exchange=None,
        instruments=4, calibrated=False,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        rows = module.measure_difference(table, predictor, args)
        speeds = module.measure_speed(table, predictor, args)
    found = module.summary(rows)
    assert list(found.index) == ["0", "1", "2", "all"]
    assert (found.loc["0", ["median", "band", "difference"]] == 0).all()
    assert (found.loc["1":"2", "band"] > 0).all() and (found["exact"] > 0).all()
    assert found.loc["all", "forecasts"] == 2 * 3 * 3
    assert [row["bars"] for row in speeds] == [4 * 3] * 2
