"""Columns of a handler beside an alpha head's context: found, named, and never of later bars."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from qlib.data.dataset.handler import DataHandlerLP
from qlib.data.dataset.loader import NestedDataLoader, QlibDataLoader, StaticDataLoader

from kronos_qlib.data.files.synthetic import MarketConfig, make_market
from kronos_qlib.errors import BarDataError, CheckpointError, ConfigError, LookaheadError
from kronos_qlib.pipeline.stages import columns_of
from kronos_qlib.plugin.baselines import GRUModel
from kronos_qlib.plugin.dataset import KronosDataset, KronosHandler
from kronos_qlib.plugin.explain.reasons import reasons_of
from kronos_qlib.plugin.lookahead import check_lookahead, open_provider
from kronos_qlib.plugin.model import KronosModel
from kronos_qlib.plugin.provider.handler_columns import HandlerColumns
from kronos_qlib.plugin.provider.writer import write_provider

pytestmark = pytest.mark.integration

SEGMENTS = {
    "train": ("2020-01-01", "2020-08-31"),
    "valid": ("2020-09-01", "2020-10-30"),
    "test": ("2020-11-02", "2021-03-31"),
}
LOOKBACK = 20
QUICK = {"epochs": 4, "hidden": 8, "context_width": 0, "learning_rate": 5e-3}
NEWS = "$news"


@pytest.fixture(scope="module")
def bars():
    """Nothing in their prices foretells others."""
    return make_market(MarketConfig(instruments=16, sectors=2, years=1.3, effect=0.0, seed=5)).bars


@pytest.fixture(scope="module")
def news(bars):
    """What is known at each close, on (datetime, instrument), and foretells the label; gaps too."""
    closes = bars.pivot(index="date", columns="symbol", values="close")
    label = (closes.shift(-2) / closes.shift(-1) - 1).stack(future_stack=True)
    rng = np.random.default_rng(0)
    told = label + label.std() * rng.normal(size=len(label))
    told[rng.random(len(told)) < 0.2] = np.nan
    told.index.names = ["datetime", "instrument"]
    return told.sort_index()


@pytest.fixture(scope="module")
def provider(bars, news, tmp_path_factory):
    """Bars, and the news as a field of their own."""
    folder = tmp_path_factory.mktemp("columns") / "qlib"
    write_provider(bars, folder)
    calendar = (folder / "calendars" / "day.txt").read_text().split()
    for name, own in news.groupby(level="instrument"):
        file = next((folder / "features" / name.lower()).glob("close.day.bin"))
        start = int(np.fromfile(file, "<f4", 1)[0])
        length = len(np.fromfile(file, "<f4")) - 1
        days = pd.DatetimeIndex(calendar[start : start + length])
        values = own.droplevel("instrument").reindex(days).to_numpy("<f4")
        np.concatenate([[start], values]).astype("<f4").tofile(file.with_name("news.day.bin"))
    return folder


def dataset_of(folder: Path, handler=None, **others) -> KronosDataset:
    open_provider(folder)
    return KronosDataset(
        handler or KronosHandler(), SEGMENTS, lookback=LOOKBACK, horizon=3, **others
    )


def model_of(features, **alpha) -> KronosModel:
    settings = {**QUICK, "features": features, **alpha}
    return KronosModel("nano", training={"alpha": settings}, device="cpu", show_progress=False)


def rank_ic(scores: pd.Series, dataset: KronosDataset) -> pd.Series:
    windows = dataset.source.windows("test")
    label = pd.Series(dataset.source.label.of(windows), index=windows.index, name="label")
    both = pd.concat([scores, label], axis=1, join="inner").dropna()
    days = both.groupby(level="datetime")
    return days.apply(lambda day: day["score"].corr(day["label"], method="spearman"))


def t_of(daily: pd.Series) -> float:
    return float(daily.mean() / daily.std() * np.sqrt(len(daily)))


@pytest.fixture(scope="module")
def fitted(provider):
    model = model_of([NEWS, "KMID"])
    model.fit(dataset_of(provider))
    return model


def test_a_score_is_explained_by_its_columns(fitted, provider):
    """The planted one first; a name that has no value of it has no percentile."""
    dataset = dataset_of(provider)
    scores = fitted.predict(dataset)
    days = scores.index.get_level_values("datetime")
    source = dataset.source
    windows = source.windows("test")
    values = pd.Series(source.feature_values(windows, [NEWS])[:, 0], index=windows.index)
    gone = values[values.isna()]
    day, unknown = gone.index[0]
    best = scores[days == day].droplevel("datetime").idxmax()
    found = reasons_of(fitted, dataset, best, day)
    [part] = found.parts.values()
    assert part.score == pytest.approx(found.score, rel=1e-5, abs=1e-6)
    assert part.table.index[0] == NEWS and part.table["kind"].iloc[0] == "column"
    ranks = values[values.index.get_level_values("datetime") == day].droplevel("datetime").dropna()
    expected = (ranks < ranks[best]).sum() / (len(ranks) - 1)
    assert part.table.loc[NEWS, "percentile"] == pytest.approx(expected)
    [part] = reasons_of(fitted, dataset, unknown, day).parts.values()
    assert np.isnan(part.table.loc[NEWS, "percentile"])
    assert np.isfinite(part.table.loc["KMID", "percentile"])


def test_a_planted_column_is_found_and_nothing_without_it(fitted, provider):
    dataset = dataset_of(provider)
    daily = rank_ic(fitted.predict(dataset), dataset)
    assert daily.mean() > 0.35
    without = model_of([])
    without.fit(dataset)
    assert abs(t_of(rank_ic(without.predict(dataset), dataset))) < 3


def test_a_column_of_noise_finds_nothing(provider):
    dataset = dataset_of(provider)
    noise = f"{NEWS} - {NEWS}"  # the same for all that have it
    alike = model_of([noise, "$volume / Ref($volume, 3)"])
    alike.fit(dataset)
    assert abs(t_of(rank_ic(alike.predict(dataset), dataset))) < 3


def test_a_column_of_the_handler_is_found_too(provider, news):
    """As news and fundamentals come in: a frame of their own, whatever made it."""
    frame = news.rename("SENTIMENT").to_frame()
    frame.columns = pd.MultiIndex.from_product([["feature"], frame.columns])
    loader = StaticDataLoader(frame)
    open_provider(provider)
    handler = DataHandlerLP(data_loader=loader, learn_processors=[])
    dataset = dataset_of(provider, handler)
    model = model_of(["SENTIMENT"])
    model.fit(dataset)
    assert rank_ic(model.predict(dataset), dataset).mean() > 0.35
    with pytest.raises(ConfigError, match="KronosHandler has no column 'SENTIMENT'"):
        model.predict(dataset_of(provider))


def test_values_are_those_of_qlib_at_the_windows_last_bar(provider, news):
    dataset = dataset_of(provider)
    windows = dataset.source.windows("test")
    found = dataset.source.feature_values(windows, [NEWS, "ROC5", "Ref($close, 5) / $close"])
    np.testing.assert_allclose(found[:, 0], news.reindex(windows.index), rtol=1e-5)
    np.testing.assert_array_equal(found[:, 1], found[:, 2])
    assert np.isnan(found[:, 0]).mean() == pytest.approx(0.2, abs=0.05)


def test_a_head_keeps_the_names_of_its_columns(fitted, provider, tmp_path):
    dataset = dataset_of(provider)
    scores = fitted.predict(dataset)
    fitted.save_pretrained(str(tmp_path / "saved"))
    again = KronosModel("nano", alpha_head=str(tmp_path / "saved" / "alpha"), device="cpu",
                        show_progress=False)  # fmt: skip
    assert columns_of(again.head.names) == (NEWS, "KMID")
    assert again.predict(dataset).equals(scores)
    assert pickle.loads(pickle.dumps(fitted)).predict(dataset).equals(scores)
    other = KronosModel("nano", alpha_head=str(tmp_path / "saved" / "alpha"), device="cpu",
                        training={"alpha": {**QUICK, "features": ["KMID"]}})  # fmt: skip
    with pytest.raises(ConfigError, match=r"the head in .* reads \$news, KMID: name the same"):
        other.predict(dataset)


@pytest.mark.parametrize("kind", [KronosModel, GRUModel])
@pytest.mark.parametrize(
    ("features", "message"),
    [
        (["KMIDD"], "KronosHandler has no column 'KMIDD'; did you mean 'KMID'"),
        (["close"], "'close' is in the windows already"),
        (["$news +"], "no column"),
        (["Ref($close, -1) / $close"], r"reads 1 bar after its own"),
        (["Mean(Ref($close, -4), 3)"], r"reads 4 bars after its own"),
        (["Delta($close, -2)"], "reads 2 bars after"),
        (["Ref($close, 0-1) / $close"], "shifts by something else than a whole number"),
        (["Ref($close, -1.0) / $close"], "shifts by something else than a whole number"),
        (["Ref($close, N=-1)"], "no column"),
    ],
)
def test_a_column_that_is_not_to_be_had_is_refused_before_training(
    provider, features, message, kind, monkeypatch
):
    training = {"features": features}
    if kind is KronosModel:
        model = KronosModel("nano", training={"alpha": training}, device="cpu")
        monkeypatch.setattr(model, "_load", lambda: pytest.fail("weights were loaded first"))
    else:
        model = GRUModel(training=training, device="cpu")
    with pytest.raises(ConfigError, match=message):
        model.fit(dataset_of(provider))


WEEK, NEXT = "Ref($close, -6)/Ref($close, -1) - 1", "Ref($close, -2) / Ref($close, -1) - 1"


def test_a_head_learns_the_label_of_the_handler(provider):
    """With the usual one in its place it would learn another return than the trees beside it."""
    open_provider(provider)
    plain = QlibDataLoader({"feature": (["$close"], ["C"]), "label": ([WEEK], ["LABEL0"])})
    nested = NestedDataLoader([plain, StaticDataLoader(pd.DataFrame())])
    for loader in (plain, nested):
        handler = DataHandlerLP("all", data_loader=loader, learn_processors=[], init_data=False)
        label = dataset_of(provider, handler).source.label
        assert (label.expression, label.ahead, label.bars) == (WEEK, 6, 5)
    own = dataset_of(provider, handler, bar_handler={"label": NEXT}).source.label
    assert own.expression == NEXT
    bare = QlibDataLoader((["$close"], ["C"]))  # without groups all are features
    handler = DataHandlerLP("all", data_loader=bare, learn_processors=[], init_data=False)
    assert dataset_of(provider, handler).source.label.expression == NEXT


def test_a_column_is_called_as_no_scale_feature(provider):
    loader = QlibDataLoader({"feature": (["$close / $open"], ["return_5"])})
    handler = DataHandlerLP("all", data_loader=loader, learn_processors=[], init_data=False)
    dataset = dataset_of(provider, handler)
    with pytest.raises(ConfigError, match="'return_5' is what one of a head's scale features is"):
        dataset.source.check_features(["return_5"])


def test_a_handlers_own_column_of_later_bars_is_refused(provider):
    """Alpha158 in someone's own version, with a feature that looks ahead."""
    open_provider(provider)
    loader = QlibDataLoader({"feature": (["Ref($close, -3) / $close", "$close / $open"],
                                         ["AHEAD", "BODY"])})  # fmt: skip
    columns = HandlerColumns(DataHandlerLP("all", data_loader=loader, learn_processors=[]))
    columns.check(["BODY"])
    with pytest.raises(ConfigError, match=r"the handler's AHEAD: .* reads 3 bars after its own"):
        columns.check(["AHEAD"])


def test_what_code_of_a_handler_makes_of_later_bars_is_caught(bars):
    """No expression shows it: bars after a moment are replaced, and a score up to it moves."""

    def scores_of(folder: Path, shift: int) -> pd.Series:
        closes = QlibDataLoader({"feature": (["$close"], ["X"])}).load("all")
        closes.columns = pd.MultiIndex.from_product([["feature"], ["X"]])
        ahead = closes.groupby(level="instrument").shift(shift) / closes
        handler = DataHandlerLP(data_loader=StaticDataLoader(ahead), learn_processors=[])
        model = model_of(["X"], epochs=1)
        dataset = KronosDataset(handler, SEGMENTS, lookback=LOOKBACK, horizon=3)
        model.fit(dataset)
        return model.predict(dataset)

    moments = ["2020-12-01"]
    with pytest.raises(LookaheadError):
        check_lookahead(bars, lambda folder: scores_of(folder, -1), moments)
    assert check_lookahead(bars, lambda folder: scores_of(folder, 2), moments).moved > 0.5


def test_a_column_without_a_value_is_named(provider):
    with pytest.raises(BarDataError, match=r"features: \$nothing has no value for any of \d+"):
        model_of(["$nothing"]).fit(dataset_of(provider))


def test_windows_of_a_file_have_no_columns(bars):
    from kronos_qlib import WindowDataset

    source = WindowDataset.from_file(bars, SEGMENTS, lookback=LOOKBACK)
    with pytest.raises(ConfigError, match="'KMID', and these windows are of bars alone"):
        model_of(["KMID"]).fit(source)


@pytest.mark.parametrize(
    ("features", "message"),
    [("KMID", "features must be a list of names"), (["KMID", "KMID"], "more than once")],
)
def test_features_are_a_list_of_names(features, message):
    with pytest.raises(ConfigError, match=message):
        model_of(features)


def test_a_head_without_its_columns_is_no_file_of_another_version(tmp_path):
    from kronos_qlib.model.alpha_head import AlphaHead

    head = AlphaHead(4, 3, 2, 4, 0.0, names=["amount", "return_5", "NEWS"])
    head.save_pretrained(tmp_path)
    again = AlphaHead.from_pretrained(tmp_path, 4, ["amount", "return_5"])
    assert again.names == ("amount", "return_5", "NEWS")
    with pytest.raises(CheckpointError, match="other features than this version has"):
        AlphaHead.from_pretrained(tmp_path, 4, ["amount", "volatility_5"])
