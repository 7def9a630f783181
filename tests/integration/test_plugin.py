"""Qlib storage to windows to scores, on a small simulated market in a temporary folder."""

from __future__ import annotations

import pickle
import shutil
import types

import numpy as np
import pandas as pd
import pytest

from kronos_qlib.data.files.synthetic import MarketConfig, make_market
from kronos_qlib.errors import BarDataError, CalendarError, CheckpointError, ConfigError
from kronos_qlib.plugin.dataset import KronosDataset
from kronos_qlib.plugin.lookahead import open_provider
from kronos_qlib.plugin.model import KronosModel
from kronos_qlib.plugin.provider.writer import write_provider
from kronos_qlib.schema import BAR_COLUMNS, CLOSE

pytestmark = pytest.mark.integration

LOOKBACK, HORIZON = 30, 5
SEGMENTS = {
    "train": ("2020-01-01", "2020-08-31"),
    "valid": ("2020-09-01", "2020-10-15"),
    "test": ("2020-10-16", "2020-12-30"),
}
SAMPLING = {"paths": 2}
TRAINING = {
    "predictor": {
        "epochs": 1,
        "windows_per_epoch": 64,
        "validation_windows": 32,
        "batch_size": 16,
        "learning_rate": 1e-3,
    }
}


def dataset_of(folder, *, instruments="all", segments=SEGMENTS, **kwargs) -> KronosDataset:
    open_provider(folder)
    handler = {
        "class": "KronosHandler",
        "module_path": "kronos_qlib.plugin.dataset",
        "kwargs": {"instruments": instruments},
    }
    return KronosDataset(handler, segments, lookback=LOOKBACK, horizon=HORIZON, **kwargs)


def model_of(**kwargs) -> KronosModel:
    return KronosModel(sampling=SAMPLING, device="cpu", show_progress=False, **kwargs)


def trained_scores(folder) -> pd.Series:
    dataset = dataset_of(folder)
    model = model_of(training=TRAINING)
    model.fit(dataset)
    return model.predict(dataset)


@pytest.fixture(scope="module")
def scores(provider):
    return trained_scores(provider)


@pytest.mark.parametrize("seed", [0, 1])
def test_no_score_changes_when_every_later_bar_does(bars, scores, tmp_path, seed):
    """Look-ahead: t drawn at random, all bars after it replaced; finetuning included."""
    days = scores.index.get_level_values("datetime").unique()
    t = np.random.default_rng(seed).choice(days[5:-5])
    later = bars["date"] > t
    other = make_market(
        MarketConfig(instruments=8, sectors=2, years=1.0, suspended_share=0.02, seed=99)
    ).bars
    columns = [*BAR_COLUMNS[:4], "volume", "amount"]
    changed = bars.copy()
    drawn = other.sample(later.sum(), replace=True, random_state=seed)
    changed.loc[later, columns] = drawn[columns].to_numpy()
    target = tmp_path / "qlib"
    write_provider(changed, target, benchmark="BENCH", future_bars=20)

    again = trained_scores(target)
    moments = again.index.get_level_values("datetime")
    assert again[moments <= t].equals(scores[scores.index.get_level_values("datetime") <= t])
    after = again[moments > t]
    assert (after != scores.reindex(after.index)).mean() > 0.9, "the later bars did change"


def test_a_day_scored_alone_is_scored_as_in_the_backtest(provider, scores):
    """Daily updates append to old scores: the same bits, or a run could not be audited."""
    day = scores.index.get_level_values("datetime").unique()[7]
    dataset = dataset_of(provider)
    model = model_of(training=TRAINING)
    model.fit(dataset)
    alone = model.predict(dataset, (day, day))
    assert alone.equals(scores[scores.index.get_level_values("datetime") == day])


def test_scores_were_the_same_before_later_bars_existed(bars, provider, tmp_path):
    """Look-ahead, the other way: the market ends at t, and the scores up to t are what they are."""
    t = pd.Timestamp("2020-11-20")
    write_provider(bars[bars["date"] <= t], tmp_path / "qlib", future_bars=20)
    then = model_of().predict(dataset_of(tmp_path / "qlib"))
    now = model_of().predict(dataset_of(provider))
    assert then.index.get_level_values("datetime").max() == t
    assert then.equals(now[now.index.get_level_values("datetime") <= t])


def test_the_newest_day_has_a_score_for_every_share_that_traded(bars, scores):
    newest = bars["date"].max()
    traded = set(bars.loc[bars["date"] == newest, "symbol"])
    assert set(scores.xs(newest, level="datetime").index) == traded


def test_a_suspended_day_is_no_bar(provider, bars):
    dataset = dataset_of(provider)
    windows = dataset.windows("test")
    gathered = windows.bars(slice(None))
    checked = 0
    for place, (moment, name) in enumerate(windows.index):
        own = bars[(bars["symbol"] == name) & (bars["date"] <= moment)].tail(LOOKBACK)
        np.testing.assert_allclose(
            gathered[place],
            own[list(BAR_COLUMNS)].to_numpy(),
            rtol=1e-6,
            err_msg=f"{name} {moment}",
        )
        checked += len(pd.bdate_range(own["date"].iloc[0], moment)) > LOOKBACK
    assert checked > 10, "no window spans a suspended day: the test would prove nothing"


def test_a_share_is_scored_only_while_in_the_universe_and_with_its_older_bars(
    provider, bars, tmp_path
):
    """Point in time: a name that joined on a day has a window that very day."""
    folder = tmp_path / "qlib"
    shutil.copytree(provider, folder)
    names = sorted(bars["symbol"].unique())
    joined, left = pd.Timestamp("2020-11-02"), pd.Timestamp("2020-11-30")
    (folder / "instruments" / "index.txt").write_text(
        f"{names[0]}\t{joined:%Y-%m-%d}\t{left:%Y-%m-%d}\n{names[1]}\t2020-01-01\t2020-12-30\n"
    )
    dataset = dataset_of(folder, instruments="index")
    index = dataset.windows("test").index
    mine = index[index.get_level_values("instrument") == names[0]].get_level_values("datetime")
    traded = bars.loc[(bars["symbol"] == names[0]), "date"]
    assert list(mine) == list(traded[(traded >= joined) & (traded <= left)])
    assert set(index.get_level_values("instrument")) == set(names[:2])


def test_training_and_validation_share_no_target(provider):
    """Fault 5: the published split lets training targets reach into validation."""
    dataset = dataset_of(provider)
    last_trained = pd.Timestamp(SEGMENTS["train"][1])
    windows = dataset.training_windows("train")
    times = windows.table.times[windows.rows(slice(None))]
    assert times.max() <= np.datetime64(last_trained)
    valid = dataset.training_windows("valid")
    ahead = valid.table.times[valid.rows(slice(None))[:, LOOKBACK:]]
    assert ahead.min() > np.datetime64(last_trained)


def test_stamps_ahead_are_the_calendars_not_those_of_bars_that_came(provider, bars):
    """A share suspended tomorrow must not tell the model so."""
    dataset = dataset_of(provider)
    windows = dataset.windows("test")
    stamps = dataset.future_stamps(windows)
    for place, (moment, _) in enumerate(windows.index):
        days = pd.bdate_range(moment, periods=HORIZON + 1)[1:]
        assert list(stamps[place, :, 3]) == list(days.day)
        assert list(stamps[place, :, 2]) == list(days.day_of_week)


def test_a_calendar_that_ends_is_an_error_or_weekdays_when_told(provider, tmp_path):
    folder = tmp_path / "qlib"
    shutil.copytree(provider, folder)
    (folder / "calendars" / "day_future.txt").unlink()
    dataset = dataset_of(folder)
    with pytest.raises(CalendarError, match=r"ends at 2020-12-30.*_future\.txt"):
        model_of().predict(dataset)
    lenient = dataset_of(folder, beyond_calendar="weekdays")
    newest = lenient.windows("test")
    assert lenient.future_stamps(newest).shape == (len(newest), HORIZON, 5)


def test_the_score_is_the_mean_predicted_close_over_the_last_close(provider):
    """Fault 6: published scores are differences of z-scores, which no two shares share."""
    dataset = dataset_of(provider)
    model = model_of()
    windows = dataset.windows("test")

    def paths(x, x_stamp, y_stamp, pred_len, **_):
        futures = np.zeros((len(x), 2, pred_len, 6), dtype=np.float32)
        last = x[:, -1, CLOSE]
        futures[:, 0, :, CLOSE] = last[:, None] * 1.10
        futures[:, 1, :, CLOSE] = last[:, None] * 1.30
        return futures

    model._predictor = types.SimpleNamespace(paths=paths, max_context=100)
    scores = model.predict(dataset)
    assert len(scores) == len(windows)
    assert scores.name == "score"
    assert scores.index.names == ["datetime", "instrument"]
    np.testing.assert_allclose(scores, 0.20, rtol=1e-5)


def test_a_young_share_is_scored_with_what_it_has_and_others_as_before(provider, bars, tmp_path):
    """Variable lookback: a window of 20 bars is the same whether 20 or 30 were asked for."""
    folder, young = tmp_path / "qlib", sorted(bars["symbol"].unique())[0]
    listed = bars[(bars["symbol"] != young) | (bars["date"] >= "2020-09-21")]
    write_provider(listed, folder, benchmark="BENCH", future_bars=20)
    segments = {"test": ("2020-10-16", "2020-10-26")}
    model = model_of()
    full = model.predict(dataset_of(folder, segments=segments))
    both = model.predict(dataset_of(folder, segments=segments, min_bars=20))
    assert young not in full.index.get_level_values("instrument")
    assert both.reindex(full.index).equals(full)
    extra = both.drop(full.index)
    assert set(extra.index.get_level_values("instrument")) == {young}
    own = listed.loc[listed["symbol"] == young, "date"]
    for day in extra.index.get_level_values("datetime"):
        seen = int((own <= day).sum())
        assert 20 <= seen < LOOKBACK
        dataset = dataset_of(folder, segments=segments)
        dataset.lookback = seen
        alone = model.predict(dataset, (day, day))
        assert alone[(day, young)] == pytest.approx(extra[(day, young)], rel=1e-5)
    dropped = dataset_of(folder, segments=segments, min_bars=20).windows("test").dropped
    assert dropped.get("too few bars before", 0) < len(own)


def test_labels_come_with_the_dataset(provider, bars):
    dataset = dataset_of(provider)
    labels = dataset.prepare("test", col_set="label", data_key="raw")
    name = bars["symbol"].iloc[0]
    closes = bars[bars["symbol"] == name].set_index("date")["close"]
    closes = closes.reindex(sorted(bars["date"].unique()))
    expected = (closes.shift(-2) / closes.shift(-1) - 1).loc["2020-10-16":]
    got = labels.xs(name, level="instrument").iloc[:, 0].reindex(expected.index)
    np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-5)


def test_zero_shot_fit_does_nothing_and_pickles_small(provider):
    dataset = dataset_of(provider)
    model = model_of()
    before = model.predict(dataset)
    model.fit(dataset)
    blob = pickle.dumps(model)
    assert len(blob) < 5_000
    again = pickle.loads(blob)
    assert again.predict(dataset).equals(before)
    with pytest.raises(ConfigError, match="zero-shot"):
        model.finetune(dataset)


def test_a_finetuned_model_survives_its_pickle(provider):
    dataset = dataset_of(provider)
    gentle = TRAINING["predictor"] | {"windows_per_epoch": 256, "learning_rate": 3e-4}
    model = model_of(training={"predictor": gentle})
    model.fit(dataset)
    first = model.history["predictor"]
    assert first[1]["valid_loss"] < first[0]["valid_loss"], "an untrained market: it must learn"
    scores = model.predict(dataset)
    assert not scores.equals(model_of().predict(dataset))
    again = pickle.loads(pickle.dumps(model))
    assert again.predict(dataset).equals(scores)
    again.finetune(dataset)
    # Epoch 0 is what it began with: the validation loss that the first training ended on.
    start = again.history["predictor"][0]["valid_loss"]
    assert start == pytest.approx(first[1]["valid_loss"], rel=1e-6)


def test_fit_twice_is_fit_once(provider):
    dataset = dataset_of(provider)
    model = model_of(training=TRAINING)
    model.fit(dataset)
    once = model.trained_weights["predictor"]
    model.fit(dataset)
    assert model.trained_weights["predictor"] == once


def test_weights_that_changed_under_a_pickle_are_refused(provider, tmp_path):
    """A zero-shot pickle names a folder; other weights there would score differently, silently."""
    from kronos_qlib import Kronos, KronosTokenizer

    tokenizer, net = KronosTokenizer.from_pretrained("nano"), Kronos.from_pretrained("nano")
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    net.save_pretrained(tmp_path / "predictor", tokenizer)
    dataset = dataset_of(provider)
    model = model_of(checkpoint=str(tmp_path))
    model.fit(dataset)  # zero-shot; Qlib pickles right after it
    blob = pickle.dumps(model)
    net.head.proj_s1.bias.data += 1
    net.save_pretrained(tmp_path / "predictor", tokenizer)
    again = pickle.loads(blob)
    with pytest.raises(CheckpointError, match="not the one this model was made with"):
        again.predict(dataset)
    again.fit(dataset)  # what the message advises
    assert len(again.predict(dataset, ("2020-12-28", "2020-12-30")))


def test_the_saved_halves_are_what_was_trained(provider, tmp_path):
    dataset = dataset_of(provider)
    model = model_of(training={**TRAINING, "tokenizer": TRAINING["predictor"]})
    model.fit(dataset)
    assert set(model.trained_weights) == {"tokenizer", "predictor"}
    model.save_pretrained(tmp_path)
    saved = model_of(checkpoint=str(tmp_path))
    assert saved.predict(dataset).equals(model.predict(dataset))


def test_settings_that_could_not_take_effect_are_refused(provider):
    with pytest.raises(ConfigError, match="teacher_forcing belongs to"):
        model_of(training={"tokenizer": {"teacher_forcing": False}, "predictor": {}})
    with pytest.raises(ConfigError, match="shift_dates belongs to"):
        model_of(training={"tokenizer": {"shift_dates": True}, "predictor": {}})
    with pytest.raises(ConfigError, match="max_context 300 is more than the 256 bars"):
        model_of(max_context=300).fit(dataset_of(provider))


def test_training_the_tokenizer_alone_is_refused():
    with pytest.raises(ConfigError, match="tokens it does not know"):
        model_of(training={"tokenizer": {}})


def test_another_dataset_is_refused():
    with pytest.raises(ConfigError, match="or a WindowDataset, got SimpleNamespace"):
        model_of().predict(types.SimpleNamespace())


def test_a_dataset_pickles_without_its_bars(provider):
    dataset = dataset_of(provider)
    expected = dataset.windows("test").index
    dataset.config(dump_all=False, recursive=True)
    blob = pickle.dumps(dataset)
    assert len(blob) < 5_000
    again = pickle.loads(blob)
    assert again.windows("test").index.equals(expected)


def test_a_typo_in_the_dataset_is_an_error(provider):
    """Qlib's base class takes any keyword and drops it: lookbak=400 would run with 90."""
    for typo in ({"lookbak": 400}, {"step_len": 3}):
        with pytest.raises(TypeError, match=next(iter(typo))):
            dataset_of(provider, **typo)


def test_a_typo_in_a_workflow_is_named():
    with pytest.raises(ConfigError, match="did you mean 'learning_rate'"):
        model_of(training={"predictor": {"learning_rte": 1e-4}})
    with pytest.raises(ConfigError, match="did you mean 'temperature'"):
        KronosModel(sampling={"temprature": 1})


@pytest.mark.parametrize(
    ("changed", "story"),
    [
        ({"train": ("2020-01-01", "2020-11-30")}, "train ends at 2020-11-30 and valid begins"),
        ({"valid": ("2020-09-01", "2020-10-16")}, "valid ends at 2020-10-16 and test begins"),
        ({"test": ("2020-12-01", "2020-11-01")}, "test ends at 2020-11-01, before it begins"),
        ({"train": (None, None)}, "train ends at None"),
    ],
)
def test_segments_that_overlap_are_refused_before_training(provider, changed, story):
    """One date edited wrongly must not train on the test period in silence."""
    with pytest.raises(ConfigError, match=story):
        model_of(training=TRAINING).fit(dataset_of(provider, segments=SEGMENTS | changed))


def test_a_test_segment_beyond_the_bars_fails_before_training(provider):
    segments = SEGMENTS | {"test": ("2024-01-01", "2024-06-30")}
    with pytest.raises(BarDataError, match="the bars go from 2020-01-01 to 2020-12-30"):
        model_of(training=TRAINING).fit(dataset_of(provider, segments=segments))


def test_windows_longer_than_the_network_knows_are_not_trained_on(provider):
    """Positions beyond its context would be trained, and cut off again when scoring."""
    dataset = dataset_of(provider)
    dataset.lookback = 110
    with pytest.raises(ConfigError, match="train 114 positions at once and the network attends"):
        model_of(training=TRAINING, max_context=100).fit(dataset)


def test_a_segment_without_windows_says_what_to_do(provider):
    dataset = dataset_of(provider)
    with pytest.raises(BarDataError, match="shorten the lookback"):
        model_of().predict(dataset, ("2020-01-02", "2020-01-10"))
    with pytest.raises(ConfigError, match="no segment 'tset'"):
        dataset.windows("tset")


def test_storage_without_amount_gets_volume_times_price(provider, tmp_path, monkeypatch):
    folder = tmp_path / "qlib"
    shutil.copytree(provider, folder)
    for path in folder.glob("features/*/amount.day.bin"):
        path.unlink()
    said: list[str] = []
    monkeypatch.setattr(
        "kronos_qlib.plugin.provider.reader.logger", types.SimpleNamespace(warning=said.append)
    )
    table = dataset_of(folder).handler.bars
    prices = table.values[:, :4].astype(np.float64).mean(axis=1)
    np.testing.assert_allclose(table.values[:, 5], table.values[:, 4] * prices, rtol=1e-4)
    assert said == ["the storage has no amount: taken as volume x the mean of the four prices"]


def test_a_run_that_was_stopped_goes_on_from_its_folder(provider, tmp_path, monkeypatch):
    """Tokenizer done, predictor in the middle: the weights are those of a run left alone."""
    from kronos_qlib.training.losses import PredictorStep

    stage = {"epochs": 2, "windows_per_epoch": 48, "validation_windows": 16, "batch_size": 16}
    training = {"tokenizer": stage, "predictor": stage, "alpha": {"epochs": 2, "hidden": 8}}
    dataset = dataset_of(provider)
    alone = model_of(training=training)
    alone.fit(dataset)

    folder = tmp_path / "run"
    ask, count = PredictorStep.losses, []

    def stopped(self, batch, rng=None):
        count.append(self.net.training)
        if sum(count) == 5:
            raise KeyboardInterrupt
        return ask(self, batch, rng)

    with monkeypatch.context() as patch:
        patch.setattr(PredictorStep, "losses", stopped)
        with pytest.raises(KeyboardInterrupt):
            model_of(training=training, resume_folder=str(folder), resume_every=2).fit(dataset)
    assert {path.name for path in folder.iterdir()} == {"tokenizer", "predictor"}
    other = {**training, "predictor": {**stage, "learning_rate": 1e-5}}
    with pytest.raises(
        ConfigError, match=r"of a run with other settings\.learning_rate; it cannot go on"
    ):
        model_of(training=other, resume_folder=str(folder)).fit(dataset)

    again = model_of(training=training, resume_folder=str(folder), resume_every=2)
    again.fit(dataset)
    assert again.trained_weights == alone.trained_weights
    assert again.history == alone.history
    monkeypatch.setattr(PredictorStep, "losses", None)  # ended: not trained again
    ended = model_of(training=training, resume_folder=str(folder))
    ended.fit(dataset)
    assert ended.trained_weights == alone.trained_weights
