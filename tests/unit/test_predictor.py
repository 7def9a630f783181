"""KronosPredictor: what users bring in, what comes out, and what each refusal says."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pandas as pd
import pytest
import torch

from kronos_qlib.data.calendar.stamps import stamps_of
from kronos_qlib.data.windows.scale import WindowScale
from kronos_qlib.errors import BarDataError, CalendarError, CheckpointError, ConfigError
from kronos_qlib.inference.graphs.cuda_graphs import CudaRecorder
from kronos_qlib.inference.predictor import KronosPredictor
from kronos_qlib.inference.products.int8_product import can_multiply_int8
from kronos_qlib.inference.sampling import SamplingConfig
from kronos_qlib.schema import BAR_COLUMNS

PAST, AHEAD = 10, 4
DAYS = pd.bdate_range("2024-01-01", periods=120)


@pytest.fixture
def forecaster(tiny_pair):
    tokenizer, model = tiny_pair
    return KronosPredictor(model, tokenizer, device="cpu", max_context=32)


def bars(length=PAST, seed=0, columns=BAR_COLUMNS):
    rng = np.random.default_rng(seed)
    values = 50 + rng.normal(size=(length, 6)).cumsum(axis=0)
    return pd.DataFrame(values, columns=list(BAR_COLUMNS))[list(columns)]


def forecast(forecaster, frame=None, length=PAST, ahead=AHEAD, **options):
    frame = bars(length) if frame is None else frame
    times = DAYS[: len(frame)], DAYS[len(frame) : len(frame) + ahead]
    options = {"sample_count": 2, "verbose": False} | options
    return forecaster.predict(frame, *times, ahead, **options)


def test_a_forecast_has_its_times_and_columns(forecaster):
    found = forecast(forecaster)
    assert list(found.columns) == list(BAR_COLUMNS)
    assert list(found.index) == list(DAYS[PAST : PAST + AHEAD])
    assert np.isfinite(found.to_numpy()).all()


def test_unequal_lengths_in_one_batch(forecaster):
    """The published padding mask has the wrong sense: unequal lengths were silently wrong."""
    frames = [bars(length, seed=length) for length in (12, 7, 12, 40)]
    times = [(DAYS[: len(frame)], DAYS[len(frame) : len(frame) + AHEAD]) for frame in frames]
    past, ahead = zip(*times, strict=True)
    options = {"sample_count": 2, "verbose": False}
    together = forecaster.predict_batch(frames, past, ahead, AHEAD, **options)
    for frame, found in zip(frames, together, strict=True):
        pd.testing.assert_frame_equal(found, forecast(forecaster, frame), rtol=1e-4)


@pytest.mark.parametrize(
    "kind", [pd.Series, pd.DatetimeIndex, np.asarray, list, lambda times: times.strftime("%F")]
)
def test_every_kind_of_timestamps(forecaster, kind):
    """The published code refuses a DatetimeIndex."""
    past, ahead = kind(DAYS[:PAST]), kind(DAYS[PAST : PAST + AHEAD])
    found = forecaster.predict(bars(), past, ahead, AHEAD, sample_count=2, verbose=False)
    pd.testing.assert_frame_equal(found, forecast(forecaster), check_freq=False)


def test_an_amount_without_volume_is_kept(forecaster):
    """The published code zeroes the amount as soon as the volume lacks."""
    without = forecast(forecaster, bars(columns=[*BAR_COLUMNS[:4], "amount"]))
    zeroed = forecast(forecaster, bars().assign(volume=0.0))
    pd.testing.assert_frame_equal(without, zeroed)
    assert abs(without["amount"].mean() - bars()["amount"].mean()) < 20


def test_a_missing_amount_is_volume_times_the_mean_price(forecaster):
    full = bars()
    filled = full.assign(amount=full["volume"] * full[list(BAR_COLUMNS[:4])].mean(axis=1))
    pd.testing.assert_frame_equal(
        forecast(forecaster, full.drop(columns="amount")), forecast(forecaster, filled)
    )


@pytest.mark.parametrize(("length", "ahead"), [(10, 31), (10, 32), (10, 33), (10, 70), (50, 4)])
def test_more_bars_than_the_context(forecaster, length, ahead):
    """The published code crashes when pred_len exceeds max_context."""
    found = forecast(forecaster, length=length, ahead=ahead)
    assert len(found) == ahead
    assert np.isfinite(found.to_numpy()).all()


def test_the_seed_decides(forecaster):
    once, again, other = (forecast(forecaster, seed=seed, T=1.0) for seed in (1, 1, 2))
    pd.testing.assert_frame_equal(once, again)
    assert not np.allclose(once, other)


def test_the_global_random_state_is_left_alone(forecaster):
    torch_before, numpy_before = torch.get_rng_state(), np.random.get_state()  # noqa: NPY002
    forecast(forecaster)
    assert torch.equal(torch.get_rng_state(), torch_before)
    assert (np.random.get_state()[1] == numpy_before[1]).all()  # noqa: NPY002


@pytest.mark.parametrize("way", [copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))])
def test_a_copy_of_a_predictor_that_has_drawn_draws_the_same(forecaster, way):
    """Weights as a library packs them, and what records CUDA graphs, belong to a process."""
    expected = forecast(forecaster)
    forecaster._recorder = CudaRecorder(torch.device("cuda"))
    again = way(forecaster)
    assert again._recorder is None, "made anew for the copy's own device, a CPU"
    pd.testing.assert_frame_equal(forecast(again), expected)


def test_a_predictor_pickled_before_there_were_graphs_can_be_opened(forecaster):
    state = forecaster.__getstate__()
    del state["cuda_graphs"]
    again = KronosPredictor.__new__(KronosPredictor)
    again.__setstate__(state)
    assert again.cuda_graphs
    pd.testing.assert_frame_equal(forecast(again), forecast(forecaster))


def test_a_network_in_training_mode_is_put_right(make_pair):
    """Left in training mode it would drop out, and no two forecasts would agree."""
    tokenizer, model = make_pair(dropout=0.5)
    tokenizer.train(), model.train()
    forecaster = KronosPredictor(model, tokenizer, device="cpu")
    once = forecast(forecaster)
    tokenizer.train(), model.train()  # as a training loop between two forecasts does
    pd.testing.assert_frame_equal(once, forecast(forecaster))


@pytest.mark.parametrize("how", ["in place", "loaded", "replaced"])
def test_weights_changed_since_the_last_forecast_count(tiny_pair, how):
    """Packed copies must not outlive the weights: finetune, then forecast with the same object."""
    tokenizer, model = tiny_pair
    forecaster = KronosPredictor(model, tokenizer, device="cpu")
    before = forecast(forecaster)
    changed = {name: value.clone() for name, value in model.state_dict().items()}
    changed["head.proj_s1.bias"][0] += 100
    if how == "in place":
        with torch.no_grad():
            model.head.proj_s1.bias[0] += 100
    else:
        model.load_state_dict(changed, assign=how == "replaced")
    after = forecast(forecaster)
    assert not after.equals(before)
    pd.testing.assert_frame_equal(after, forecast(KronosPredictor(model, tokenizer, device="cpu")))


def _with_an_adapter(net):
    peft = pytest.importorskip("peft")
    peft.inject_adapter_in_model(peft.LoraConfig(r=2, target_modules=["w1"]), net)
    return "transformer.0.ffn.w1"


def _with_another_block(net):
    net.transformer[1] = torch.nn.TransformerEncoderLayer(16, 2)
    return "transformer.1"


class _Within(torch.nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x)


def _with_another_table_of_times(net):
    net.time_emb.minute_embed = _Within(net.time_emb.minute_embed)
    return "time_emb.minute_embed"


def _with_another_norm(net):
    net.dep_layer.norm = torch.nn.LayerNorm(16)
    return "dep_layer.norm"


class _Around(torch.nn.Module):
    """A wrapper whose class has no `forward`, as that of `torch.compile` on a module."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner
        self.forward = inner.forward


def _with_a_wrapper(net):
    net.transformer[0] = _Around(net.transformer[0])
    return "transformer.0"


def _with_a_compiled_block(net):
    net.transformer[0] = torch.compile(net.transformer[0])  # of which nothing is compiled here
    return "transformer.0"


def _with_a_plain_map_for_a_block(net):
    net.transformer[1] = torch.nn.Linear(16, 16)
    return "transformer.1"


class _AlwaysDropping(torch.nn.Dropout):
    def forward(self, x):
        return torch.nn.functional.dropout(x, 0.5, training=True)


@pytest.mark.parametrize(
    "change",
    [
        _with_an_adapter,
        _with_another_block,
        _with_another_norm,
        _with_another_table_of_times,
        _with_a_wrapper,
        _with_a_compiled_block,
        _with_a_plain_map_for_a_block,
    ],
)
def test_a_part_that_no_forecast_would_call_is_refused(tiny_pair, change):
    """Forecasts were those of the weights below an adapter, and of the blocks beside another."""
    tokenizer, model = tiny_pair
    forecaster = KronosPredictor(model, tokenizer, device="cpu")
    forecast(forecaster)
    path = change(model)
    with pytest.raises(
        ConfigError, match=rf"^{path} is a .* its own `forward` would not be called"
    ):
        forecast(forecaster)


def test_dropout_of_its_own_kind_is_refused(tiny_pair):
    tokenizer, model = tiny_pair
    model.transformer[0].ffn.dropout = _AlwaysDropping()
    with pytest.raises(ConfigError, match=r"^transformer\.0\.ffn\.dropout is a .*_AlwaysDropping"):
        forecast(KronosPredictor(model, tokenizer, device="cpu"))


def test_parts_that_change_no_forecast_may_be_others(tiny_pair):
    tokenizer, model = tiny_pair
    expected = forecast(KronosPredictor(model, tokenizer, device="cpu"))
    model.token_dropout = torch.nn.Identity()
    model.value_head = torch.nn.Sequential(torch.nn.Linear(16, 1))  # of another training
    torch.nn.utils.parametrizations.weight_norm(model.transformer[0].ffn.w1)
    same = torch.nn.Identity()
    torch.nn.utils.parametrize.register_parametrization(model.norm, "weight", same)
    found = forecast(KronosPredictor(model, tokenizer, device="cpu"))
    pd.testing.assert_frame_equal(found, expected)


def test_everything_may_happen_in_inference_mode(tiny_pair, make_pair):
    """Torch counts no changes of weights that were made there, and raised when asked for them."""
    expected = forecast(KronosPredictor(tiny_pair[1], tiny_pair[0], device="cpu"))
    with torch.inference_mode():
        tokenizer, model = make_pair(0)
        forecaster = KronosPredictor(model, tokenizer, device="cpu")
        pd.testing.assert_frame_equal(forecast(forecaster), expected)
    pd.testing.assert_frame_equal(forecast(forecaster), expected)


@pytest.mark.parametrize("device", ["cuda:7", "gpu"])
def test_a_device_that_is_not_here_is_named(tiny_pair, device, monkeypatch):
    """A model pickled with device cuda, opened on a laptop."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    tokenizer, model = tiny_pair
    with pytest.raises(ConfigError, match=rf"'{device}'.*'auto' or 'cpu'"):
        KronosPredictor(model, tokenizer, device=device)


def test_halves_in_the_wrong_order_are_named(tiny_pair):
    tokenizer, model = tiny_pair
    with pytest.raises(ConfigError, match="got KronosTokenizer and Kronos"):
        KronosPredictor(tokenizer, model)


@pytest.mark.parametrize("price", [1e-6, 1e-12])
def test_a_cheap_coin_is_forecast_as_a_dear_one(tiny_pair, price):
    """Fault 8: at a price of 1e-5 the floor of the scale was ten times the spread."""
    tokenizer, model = tiny_pair
    forecaster = KronosPredictor(model, tokenizer, device="cpu")
    bars, stamps = dear_series()

    def paths(scaled):
        return forecaster.paths(scaled, stamps[:, :20], stamps[:, 20:], 4, sample_count=3)

    cheap = bars.copy()
    cheap[..., :4] *= price
    dear = paths(bars)
    dear[..., :4] *= price
    np.testing.assert_allclose(paths(cheap), dear, rtol=1e-4)
    # Nor does an ordinary price notice: a bar at one deviation is the published one.
    scale, one = WindowScale.of(bars), np.ones((1, 1, 6), dtype=np.float32)
    published = bars.mean(axis=1, keepdims=True) + bars.std(axis=1, keepdims=True) + 1e-5
    np.testing.assert_allclose(scale.to_bars(one), published, rtol=2e-6)


def dear_series():
    rng = np.random.default_rng(4)
    bars = (30 + rng.normal(size=(1, 20, 6)).cumsum(axis=1)).astype(np.float32)
    bars[..., 4:] *= 1000
    stamps = rng.integers(0, (60, 24, 7, 32, 13), (1, 24, 5))
    return bars, stamps


@pytest.mark.parametrize(
    ("half", "name", "what"),
    [
        ("tokenizer", "quant_embed.weight", "codes of the tokenizer"),
        ("tokenizer", "head.weight", "bars of the tokenizer"),
        ("model", "head.proj_s1.weight", "s1 logits"),
        ("model", "head.proj_s2.weight", "s2 logits"),
        ("model", "transformer.0.ffn.w2.weight", "s1 logits"),
    ],
)
@pytest.mark.parametrize("temperature", [0, 1])
def test_finite_weights_too_large_to_compute_with_are_no_forecast(
    forecaster, half, name, what, temperature
):
    """Infinity among the logits chose a token all the same, and the bars looked plausible."""
    weight = getattr(forecaster, half).get_parameter(name)
    with torch.no_grad():
        weight.copy_(torch.sign(weight) * 3e38)
    bars, stamps = dear_series()
    with pytest.raises(CheckpointError, match=f"{what}.* are not finite"):
        forecaster.paths(bars, stamps[:, :20], stamps[:, 20:], 4, T=temperature)


def test_paths_are_kept_and_predict_is_their_mean(forecaster):
    stamps = stamps_of(DAYS[: PAST + AHEAD])[None]
    x = bars().to_numpy(np.float32)[None]
    paths = forecaster.paths(x, stamps[:, :PAST], stamps[:, PAST:], AHEAD, sample_count=3)
    assert paths.shape == (1, 3, AHEAD, 6)
    assert not np.allclose(paths[0, 0], paths[0, 1])
    np.testing.assert_allclose(paths[0].mean(axis=0), forecast(forecaster, sample_count=3))


def test_what_was_sampled_comes_back_by_name(forecaster):
    """Averaging inside generation destroyed the distribution that users asked for."""
    frames, names = [bars(12, seed=1), bars(seed=2)], ["SH600000", "SZ000001"]
    past = [DAYS[:12], DAYS[:PAST]]
    ahead = [DAYS[12 : 12 + AHEAD], DAYS[PAST : PAST + AHEAD]]
    options = {"sample_count": 5, "verbose": False}
    found = forecaster.predict_paths(frames, past, ahead, keys=names, **options)
    assert [one.name for one in found] == names
    for one, frame, times in zip(found, frames, ahead, strict=True):
        assert one.paths.shape == (5, AHEAD, 6)
        assert list(one.times) == list(times)
        assert one.last_close == np.float32(frame["close"].iloc[-1])
    # A key gives the same random numbers to the array interface.
    stamps = stamps_of(DAYS[: PAST + AHEAD])[None]
    x = frames[1].to_numpy(np.float32)[None]
    alone = forecaster.paths(
        x, stamps[:, :PAST], stamps[:, PAST:], AHEAD, sample_count=5, keys=names[1:]
    )
    np.testing.assert_allclose(alone[0], found[1].paths, rtol=1e-4)
    means = forecaster.predict_batch(frames, past, ahead, AHEAD, **options)
    unnamed = forecaster.predict_paths(frames, past, ahead, AHEAD, **options)
    for mean, one in zip(means, unnamed, strict=True):
        pd.testing.assert_frame_equal(mean, one.mean)


def test_bars_make_sense_unless_the_raw_numbers_are_asked_for(forecaster):
    """Published forecasts have highs below closes and negative volumes."""
    frame = bars()
    frame[["volume", "amount"]] = np.abs(frame[["volume", "amount"]] - 50)
    found = forecast(forecaster, frame, sample_count=4)
    raw = forecast(forecaster, frame, sample_count=4, coherent=False)
    prices = list(BAR_COLUMNS[:4])

    def is_coherent(table):
        return (
            (table["high"] == table[prices].max(axis=1))
            & (table["low"] == table[prices].min(axis=1))
            & (table[["volume", "amount"]] >= 0).all(axis=1)
        )

    assert is_coherent(found).all()
    assert not is_coherent(raw).all()
    pd.testing.assert_series_equal(found["close"], raw["close"])


def test_the_bars_to_come_from_an_exchange_or_a_frequency(forecaster):
    """The newest dates got no forecast: the published code needs future rows."""
    past = pd.bdate_range(end="2024-02-08", periods=PAST)
    options = {"pred_len": 3, "verbose": False}
    festival = forecaster.predict(bars(), past, exchange="XSHG", **options)
    assert list(festival.index.strftime("%m-%d")) == ["02-19", "02-20", "02-21"]
    shenzhen = forecaster.predict(bars(), past, exchange="XSHE", **options)
    pd.testing.assert_frame_equal(shenzhen, festival)
    with pytest.raises(ConfigError, match=r"exchange is a code such as 'XSHG', got \['XSHG'\]"):
        forecaster.predict(bars(), past, exchange=["XSHG"], **options)
    weekdays = forecaster.predict(bars(), past, freq="B", **options)
    assert list(weekdays.index.strftime("%m-%d")) == ["02-09", "02-12", "02-13"]
    with pytest.raises(ConfigError, match="without y_timestamp, pred_len"):
        forecaster.predict(bars(), past, freq="B")
    with pytest.raises(ConfigError, match="y_timestamp is given: leave out"):
        forecaster.predict(bars(), past, past + pd.Timedelta(days=30), freq="B")
    as_before = forecaster.predict(bars(), past, **options)  # neither is given: the past's pattern
    pd.testing.assert_frame_equal(as_before, weekdays)


def test_bars_to_come_that_are_doubtful_are_logged(forecaster, caplog):
    """Weekly bars were forecast as days: the series, and why, are named; what is given is kept."""
    weeks = pd.date_range("2024-01-05", periods=PAST, freq="W-FRI")
    options = {"pred_len": 3, "verbose": False}
    with pytest.raises(CalendarError, match=r"series 0: freq 'B'.*weekly, on Fridays"):
        forecaster.predict(bars(), weeks, freq="B", **options)
    days = weeks[-1] + pd.to_timedelta([1, 2, 3], unit="D")
    sound = bars().assign(high=60.0, low=40.0)
    found = forecaster.predict_batch([sound] * 2, [weeks] * 2, [days] * 2, verbose=False)
    assert list(found[1].index) == list(days)
    (record,) = caplog.records
    assert record.getMessage().startswith("series 0 and 1 more: the bars to come stand 1 day apart")
    caplog.clear()
    forecaster.predict(sound, weeks, weeks[-3:] + pd.Timedelta(days=21), 3, verbose=False)
    forecaster.predict(sound, weeks, freq="W-FRI", **options)
    assert not caplog.records
    friday = forecaster.predict(sound, weeks, **options).index[0]
    assert f"{friday:%a %m-%d}" == "Fri 03-15"
    assert "knows no holidays" in caplog.text


def test_utc_does_not_fit_an_exchange(forecaster):
    """Times in UTC are refused, rather than shifted: stamps are wall-clock time."""
    day = pd.date_range("2024-05-20 09:30", periods=PAST, freq="30min", tz="America/New_York")
    with pytest.raises(CalendarError, match="x_timestamp is in UTC and XNYS keeps the time"):
        forecaster.predict(
            bars(), day.tz_convert("UTC"), pred_len=2, exchange="XNYS", verbose=False
        )


def test_larger_units_of_volume_change_nothing_else(forecaster):
    bars, stamps = dear_series()
    larger = bars.copy()
    larger[..., 4:] *= 1e6
    asked = (stamps[:, :20], stamps[:, 20:], 4)
    usual = forecaster.paths(bars, *asked, sample_count=3)  # without keys, too
    found = forecaster.paths(larger, *asked, sample_count=3)
    usual[..., 4:] *= 1e6
    np.testing.assert_allclose(found, usual, rtol=1e-4)


def test_bars_beyond_the_context_decide_nothing(forecaster, caplog):
    """They set the mean and spread: 400 bars of a rising share gave a first bar 4 % off."""
    long = bars(50)
    long.iloc[:18] *= 10
    times = DAYS[:50], DAYS[50 : 50 + AHEAD]
    found = forecaster.predict(long, *times, AHEAD, sample_count=3, verbose=False)
    assert "50 bars" in caplog.text and "last 32" in caplog.text
    cut = forecaster.predict(
        long[-32:], DAYS[18:50], times[1], AHEAD, sample_count=3, verbose=False
    )
    pd.testing.assert_frame_equal(found, cut)


@pytest.mark.parametrize("ahead", [AHEAD, 40])  # 40 is more than the context, decoded in stretches
def test_an_anchored_forecast_begins_where_the_bars_end(forecaster, ahead):
    """What the tokens lose of the last close is the same for all bars to come: no return."""
    x = bars(20).to_numpy(np.float32)[None] + 100
    stamps = stamps_of(DAYS[: 20 + ahead])[None]
    asked = {"sample_count": 3, "coherent": False, "top_k": 1}
    plain, anchored = (
        forecaster.paths(x, stamps[:, :20], stamps[:, 20:], ahead, anchor=anchor, **asked)
        for anchor in (False, True)
    )
    scale = WindowScale.of(x)
    tokens = forecaster.tokenizer.encode(torch.from_numpy(scale.to_z(x)))
    with torch.no_grad():
        seen = scale.to_bars(forecaster.tokenizer.decode(tokens).numpy())[0, -1, 3]
    lost = x[0, -1, 3] - seen
    assert abs(lost) > 0.01
    moved = anchored - plain
    np.testing.assert_allclose(moved[..., :4], lost, atol=1e-3)
    np.testing.assert_array_equal(moved[..., 4:], 0)


@pytest.mark.parametrize("length", [20, 50])
def test_an_embedding_is_the_context_after_the_last_bar(tiny_pair, length):
    """Of a lookback longer than the context the last bars are read, and they alone normalised."""
    tokenizer, model = tiny_pair
    forecaster = KronosPredictor(model, tokenizer, device="cpu", max_context=32)
    x = np.stack([bars(length, seed).to_numpy(np.float32) for seed in range(3)])
    stamps = np.repeat(stamps_of(DAYS[:length])[None], 3, axis=0)
    found = forecaster.embed(x, stamps)
    assert found.shape == (3, model.config.d_model)
    seen, moments = x[:, -32:], torch.from_numpy(stamps)[:, -32:]
    tokens = tokenizer.encode(torch.from_numpy(WindowScale.of(seen).to_z(seen)))
    with torch.no_grad():
        _, context = model.decode_s1(*tokens, moments)
    np.testing.assert_allclose(found, context[:, -1].numpy(), rtol=1e-4, atol=1e-5)
    # A finetuned head must not see another series' bars.
    np.testing.assert_allclose(forecaster.embed(x[1:2], stamps[1:2]), found[1:2], rtol=1e-5)
    assert forecaster.embed(x[:0], stamps[:0]).shape == (0, model.config.d_model)
    x[2, 3, 1] = np.inf
    with pytest.raises(BarDataError, match="series 2: high of bar 3"):
        forecaster.embed(x, stamps)


NARROW = [
    "bfloat16",
    pytest.param(
        "int8", marks=pytest.mark.skipif(not can_multiply_int8(), reason="this CPU has no VNNI")
    ),
]


@pytest.mark.parametrize("narrow", NARROW)
def test_a_narrow_type_draws_from_nearly_the_same_distribution(tiny_pair, narrow):
    """Rounded weights and activations, but positions and chances as exact as ever."""
    tokenizer, model = tiny_pair
    x = np.stack([bars(20, seed).to_numpy(np.float32) for seed in range(40)])
    stamps = np.repeat(stamps_of(DAYS[:24])[None], 40, axis=0)
    found = {}
    for dtype in ("float32", narrow):
        forecaster = KronosPredictor(model, tokenizer, device="cpu", dtype=dtype)
        drawn = forecaster.paths(x, stamps[:, :20], stamps[:, 20:], 4, sample_count=20)
        assert drawn.dtype == np.float32
        found[dtype] = drawn[..., 3] - x[:, None, -1:, 3]
    assert not np.array_equal(*found.values())
    exact, rounded = (moves.mean(axis=1) for moves in found.values())
    assert np.corrcoef(exact.ravel(), rounded.ravel())[0, 1] > 0.95
    assert abs(rounded.std() / exact.std() - 1) < 0.1
    with pytest.raises(
        ConfigError, match="dtype must be one of float32, bfloat16, int8, got 'half'"
    ):
        KronosPredictor(model, tokenizer, device="cpu", dtype="half")


def test_no_series_is_no_error(forecaster):
    none = np.zeros((0, PAST, 6)), np.zeros((0, PAST, 5), int), np.zeros((0, AHEAD, 5), int)
    assert forecaster.paths(*none, AHEAD, sample_count=3).shape == (0, 3, AHEAD, 6)
    assert forecaster.predict_batch([], [], [], AHEAD, verbose=False) == []


NAN = bars()
NAN.iloc[3, 2] = np.nan


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (bars().to_numpy(), "expected a DataFrame of bars, got ndarray"),
        (bars().drop(columns=["low", "close"]), "lacks low, close; it has open, high, volume"),
        (bars().assign(high="x"), "row 1, column 'high': expected a number, got 'x'"),
        (NAN, r"low is missing, not finite or beyond float32 in row 3 \(1 such rows\)"),
        (bars().assign(volume=np.inf), "volume is missing, not finite or beyond float32 in row 0"),
        (bars().assign(close=1e300), "close is missing, not finite or beyond float32 in row 0"),
        (bars().rename(columns={"volume": "buy_volume"}), "'buy_volume' looks like it: rename it"),
        (bars().rename(columns={"volume": "volumn"}), "'volumn' looks like it: rename it"),
        (bars().assign(tic=["A", "B"] * (PAST // 2)), r"2 instruments \(A, B\), by 'tic'"),
        (bars().assign(gp=["A"] * 5 + ["B"] * (PAST - 5)), r"'gp' has several values \(A, B\)"),
        (pd.concat([bars(), bars()["close"]], axis=1), "several columns named close"),
        (bars(1), "at least 2 bars, got 1"),
        (bars(0), "at least 2 bars, got 0"),
    ],
)
def test_bars_that_are_refused(forecaster, frame, message):
    """In a batch of hundreds, the error must say which series to look at."""
    frames = [bars(), frame]
    times = [DAYS[:PAST], DAYS[: len(frame)]], [DAYS[20:24], DAYS[20:24]]
    with pytest.raises(BarDataError, match=f"series 1[:,] .*{message}"):
        forecaster.predict_batch(frames, *times, AHEAD, verbose=False)


@pytest.mark.parametrize(
    ("past", "ahead", "message"),
    [
        (DAYS[:9], DAYS[10:14], "x_timestamp has 9 timestamps, expected 10"),
        (DAYS[:10], DAYS[10:13], "y_timestamp has 3 timestamps, expected 4"),
        (DAYS[:10], DAYS[9:13], "the time does not increase at number 11"),
        (DAYS[:10][::-1], DAYS[10:14], "x_timestamp does not increase at number 2: 2024-01-12"),
        (None, DAYS[10:14], "x_timestamp is missing"),
        (
            pd.date_range("2024-10-26 20:00", periods=10, freq="h", tz="Europe/London"),
            DAYS[200:204],
            "x_timestamp does not increase at number 7.*repeats when clocks go back",
        ),
        (range(10), DAYS[10:14], "x_timestamp: expected timestamps, got numbers such as 0"),
        (DAYS[:10], [pd.NaT] * 4, "y_timestamp: timestamp number 1 is missing"),
    ],
)
def test_timestamps_that_are_refused(forecaster, past, ahead, message):
    with pytest.raises(CalendarError, match=f"series 0[:,] {message}"):
        forecaster.predict(bars(), past, ahead, AHEAD, verbose=False)


def test_lists_of_unequal_length_are_refused(forecaster):
    with pytest.raises(BarDataError, match="got 2 frames, 1 x_timestamps and 1 y_timestamps"):
        forecaster.predict_batch([bars(), bars()], [DAYS[:10]], [DAYS[10:14]], AHEAD)


@pytest.mark.parametrize(
    "options",
    [{"top_p": 0}, {"top_p": 1.5}, {"sample_count": 0}, {"T": -1}, {"top_k": -1}, {"seed": None}],
)
def test_sampling_that_cannot_work_is_refused(forecaster, options):
    with pytest.raises(ConfigError):
        forecast(forecaster, **options)


def test_settings_that_cannot_work_are_refused(forecaster, tiny_pair):
    with pytest.raises(ConfigError, match="pred_len must be at least 1"):
        forecast(forecaster, ahead=0)
    with pytest.raises(ConfigError, match="max_context must be at least 1"):
        KronosPredictor(tiny_pair[1], tiny_pair[0], device="cpu", max_context=0)
    with pytest.raises(ConfigError, match=r"pred_len must be a whole number, got 2.5"):
        forecaster.predict(bars(), DAYS[:PAST], None, 2.5, freq="B", verbose=False)
    with pytest.raises(ConfigError, match="memory_mb must be a whole number, got '50'"):
        KronosPredictor(tiny_pair[1], tiny_pair[0], device="cpu", memory_mb="50")
    with pytest.raises(ConfigError, match="clip must be above 0"):
        KronosPredictor(tiny_pair[1], tiny_pair[0], device="cpu", clip=0)


def test_arrays_that_are_refused(forecaster):
    x, past, ahead = np.ones((2, 5, 6)), np.ones((2, 5, 5), int), np.ones((2, 3, 5), int)
    with pytest.raises(BarDataError, match=r"at least 2 bars, 6\), got \(2, 5, 4\)"):
        forecaster.paths(x[..., :4], past, ahead, 3)
    with pytest.raises(BarDataError, match=r"expected y_stamp of shape \(2, 3, 5\).* \(2, 2, 5\)"):
        forecaster.paths(x, past, ahead[:, :2], 3)
    with pytest.raises(BarDataError, match=r"expected x_stamp of shape \(2, 5, 5\).* \(1, 5, 5\)"):
        forecaster.paths(x, past[:1], ahead, 3)
    past[1, 2] = (0, 15, 7, 2, 1)  # Sunday is 6 where Monday is 0
    with pytest.raises(BarDataError, match="x_stamp of series 1, bar 2: weekday is 7"):
        forecaster.paths(x, past, ahead, 3)
    past[1, 2] = 1
    with pytest.raises(BarDataError, match="x_stamp holds whole numbers, got float64"):
        forecaster.paths(x, past * 0.5, ahead, 3)
    with pytest.raises(
        BarDataError, match="keys is a list of names, one for each series, got 'ab'"
    ):
        forecaster.paths(x, past, ahead, 3, keys="ab")
    with pytest.raises(BarDataError, match="expected 2 keys, one for each series, got 1"):
        forecaster.paths(x, past, ahead, 3, keys=["a"])
    x[1, 4, 3] = np.nan
    with pytest.raises(BarDataError, match="SH600000: close of bar 4 is missing"):
        forecaster.paths(x, past, ahead, 3, keys=["a", "SH600000"])


def test_sampling_may_be_given_whole(forecaster):
    """`sampling` is the published arguments in one object; both at once is a question."""
    x = np.stack([bars(seed=seed).to_numpy(np.float32) for seed in (0, 1)])
    stamps = np.repeat(stamps_of(DAYS[: PAST + AHEAD])[None], 2, axis=0)
    asked = (x, stamps[:, :PAST], stamps[:, PAST:], AHEAD)
    how = SamplingConfig(paths=3, temperature=0.8, top_k=5, top_p=0.95, anchor=False)
    one = forecaster.paths(*asked, sampling=how, seed=4)
    other = forecaster.paths(
        *asked, T=0.8, top_k=5, top_p=0.95, sample_count=3, anchor=False, seed=4
    )
    np.testing.assert_array_equal(one, other)
    for twice in ({"T": 0.8}, {"sample_count": 3}, {"anchor": False}):
        with pytest.raises(ConfigError, match=f"give `sampling` or {next(iter(twice))}, not both"):
            forecaster.paths(*asked, sampling=how, **twice)
    with pytest.raises(ConfigError, match="must be a SamplingConfig, got 'paper'"):
        forecaster.paths(*asked, sampling="paper")
    means = forecaster.predict(bars(), DAYS[:PAST], freq="B", pred_len=2, sampling=how)
    assert len(means) == 2
    with pytest.raises(TypeError, match="unexpected option 'temperature'; known: sampling, anchor"):
        forecaster.paths(*asked, temperature=0.8)
