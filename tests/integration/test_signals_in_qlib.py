"""Signals, baselines, blends and Kronos features through Qlib, on a small simulated market."""

from __future__ import annotations

import pickle
import types
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from qlib.contrib.model.linear import LinearModel

from kronos_qlib.errors import BarDataError, ConfigError, MissingArtifactError
from kronos_qlib.plugin.baselines import BaselineModel
from kronos_qlib.plugin.blend import BlendModel
from kronos_qlib.plugin.dataset import KronosDataset
from kronos_qlib.plugin.features import KronosFeatureDataset
from kronos_qlib.plugin.lookahead import open_provider
from kronos_qlib.plugin.model import KronosModel
from kronos_qlib.plugin.provider.writer import write_provider
from kronos_qlib.plugin.qlib_internals import logged_under
from kronos_qlib.plugin.records.run_check import await_metrics
from kronos_qlib.plugin.records.signal_record import KronosSignalRecord
from kronos_qlib.schema import CLOSE
from kronos_qlib.signals.paths import DEFAULT_SIGNALS, signals_of
from kronos_qlib.signals.shaping import shaped, steps_of

pytestmark = pytest.mark.integration

LOOKBACK, HORIZON = 30, 3
SEGMENTS = {
    "train": ("2020-08-03", "2020-10-30"),
    "valid": ("2020-11-02", "2020-11-30"),
    "test": ("2020-12-01", "2020-12-08"),
}
HANDLER = {"class": "KronosHandler", "module_path": "kronos_qlib.plugin.dataset", "kwargs": {}}
TABLE = {
    "class": "Alpha158",
    "module_path": "qlib.contrib.data.handler",
    "kwargs": {
        "instruments": "all",
        "start_time": "2020-08-03",
        "end_time": "2020-12-08",
        "fit_start_time": "2020-08-03",
        "fit_end_time": "2020-10-30",
        "learn_processors": [
            {"class": "DropnaLabel"},
            {"class": "CSRankNorm", "kwargs": {"fields_group": "label"}},
        ],
    },
}
TREES = {
    "class": "LGBModel",
    "module_path": "qlib.contrib.model.gbdt",
    "kwargs": {"num_boost_round": 3, "num_threads": 1, "num_leaves": 4},
}
NANO = {"sampling": {"paths": 2}, "device": "cpu", "show_progress": False}
KRONOS = {"class": "KronosModel", "module_path": "kronos_qlib.plugin.model", "kwargs": NANO}


def open_once(folder) -> None:
    """Qlib refuses to be opened again while a run is open."""
    from qlib.config import C

    if not C.registered or Path(C.dpm.get_data_uri("day")) != Path(folder):
        open_provider(folder)


def dataset_of(folder, handler=HANDLER, kind=KronosDataset, **kwargs) -> KronosDataset:
    open_once(folder)
    kwargs = {"lookback": LOOKBACK, "horizon": HORIZON, "segments": SEGMENTS, **kwargs}
    return kind(handler=handler, **kwargs)


def model_of(signals=None, **kwargs) -> KronosModel:
    return KronosModel(**{**NANO, **kwargs}, signals=signals)


def days_of(frame) -> pd.DatetimeIndex:
    return frame.index.get_level_values("datetime")


@pytest.fixture(scope="module")
def dataset(provider):
    return dataset_of(provider)


@pytest.fixture(autouse=True)
def opened(provider):
    open_once(provider)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """One MLflow store for all: to make one takes longer than all runs in it."""
    return tmp_path_factory.mktemp("store")


@pytest.fixture
def run(store, opened, monkeypatch):
    """The recorder of a run that is open."""
    from qlib.workflow import R

    monkeypatch.chdir(store)
    uri = f"sqlite:///{(store / 'mlflow.db').as_posix()}"
    with R.start(experiment_name="signals", uri=uri):
        yield R.get_recorder()


@pytest.fixture(scope="module")
def frame(dataset):
    return model_of().signals(dataset)


def drawn(dataset, model, windows) -> np.ndarray:
    """Paths as they were always drawn: a day is a batch, keyed by instrument and day."""
    parts = []
    for day in windows.moments():
        one = windows.take(day)
        rows = one.rows(slice(None))
        parts.append(
            model.predictor.paths(
                one.table.values[rows],
                one.table.stamps_at(rows),
                dataset.future_stamps(one),
                HORIZON,
                T=0.6,
                top_p=0.9,
                sample_count=2,
                seed=0,
                keys=[f"{name} {moment.isoformat()}" for moment, name in one.index],
                coherent=False,
            )
        )
    return np.concatenate(parts)


def test_every_signal_is_of_the_paths_that_the_score_is_of(dataset, frame):
    assert list(frame.columns) == ["score", *DEFAULT_SIGNALS]
    model = model_of()
    windows = dataset.windows("test")
    paths = drawn(dataset, model, windows)
    closes = paths[..., CLOSE].astype(np.float64)
    expected = closes.mean(axis=(1, 2)) / windows.last_close - 1
    assert frame.index.equals(windows.index)
    assert (frame["score"].to_numpy() == expected).all(), "bit for bit"
    for name, values in signals_of(paths, windows.last_close, DEFAULT_SIGNALS).items():
        np.testing.assert_array_equal(frame[name].to_numpy(), values, err_msg=name)
    assert model.predict(dataset).equals(frame["score"])


def test_a_day_alone_has_the_same_signals(dataset, frame):
    day = days_of(frame)[-1]
    assert model_of().signals(dataset, (day, day)).equals(frame[days_of(frame) == day])


def test_any_signal_can_be_the_score_and_what_is_kept_is_chosen(dataset, frame):
    found = model_of({"score": "skew", "keep": ["volatility", "quantile@0.05"]}).signals(dataset)
    assert list(found.columns) == ["score", "volatility", "quantile@0.05"]
    assert found["score"].equals(frame["skew"].rename("score"))
    assert found["volatility"].equals(frame["volatility"])


def test_an_ensemble_pools_the_paths_of_its_members(dataset, frame):
    """Shorter lookbacks are the last bars of the same window, normalised by these."""
    day = days_of(frame)[0]
    settings = {"lookbacks": [LOOKBACK, 12], "temperatures": [0.6, 1.0]}
    both = model_of({"ensemble": settings}).signals(dataset, (day, day))
    seen = {}
    model = model_of({"ensemble": settings})
    draw = model.predictor.paths

    def watched(x, x_stamp, y_stamp, pred_len, **how):
        paths = draw(x, x_stamp, y_stamp, pred_len, **how)
        seen[x.shape[1], how["sampling"].temperature] = (x, how["keys"], paths)
        return paths

    model._predictor = types.SimpleNamespace(paths=watched, max_context=100)
    assert model.signals(dataset, (day, day)).equals(both)
    assert set(seen) == {(LOOKBACK, 0.6), (LOOKBACK, 1.0), (12, 0.6), (12, 1.0)}
    np.testing.assert_array_equal(seen[12, 0.6][0], seen[LOOKBACK, 0.6][0][:, -12:])
    assert len({keys[0] for _, keys, _ in seen.values()}) == 4, "members share no chance"
    pooled = np.concatenate([paths for _, _, paths in seen.values()], axis=1)
    last_close = seen[12, 0.6][0][:, -1, CLOSE]
    again = signals_of(pooled, last_close, DEFAULT_SIGNALS)
    for name in DEFAULT_SIGNALS:
        np.testing.assert_array_equal(both[name].to_numpy(), again[name])
    usual = model_of({"ensemble": {"lookbacks": [LOOKBACK]}}).predict(dataset, (day, day))
    assert usual.equals(frame.loc[days_of(frame) == day, "score"]), "one usual member: as ever"


def test_a_lookback_beyond_the_windows_is_refused(dataset):
    with pytest.raises(ConfigError, match=r"lookback of 60 bars.*windows have 30"):
        model_of({"ensemble": {"lookbacks": [60]}}).predict(dataset)
    with pytest.raises(ConfigError, match=r"lookback of 60 bars"):
        model_of({"ensemble": {"lookbacks": [60]}}).fit(dataset)
    with pytest.raises(ConfigError, match="return_at@4: the paths have 3 bars"):
        model_of({"keep": ["return_at@4"]}).fit(dataset)


def test_shaped_scores_are_of_the_windows_own_exposures(dataset, frame, bars, tmp_path):
    names = sorted(bars["symbol"].unique())
    path = tmp_path / "sectors.csv"
    table = pd.DataFrame({"instrument": names, "sector": ["x", "y"] * (len(names) // 2)})
    table.to_csv(path, index=False)
    shape = [{"winsorise": 0.1}, {"neutralise": ["sector", "size"]}, "zscore"]
    found = model_of({"shape": shape, "sectors": {"file": str(path)}}).signals(dataset)
    assert list(found.columns[:2]) == ["score", "raw_score"]
    assert found["raw_score"].equals(frame["score"].rename("raw_score"))
    sizes = []
    for moment, name in frame.index:
        own = bars[(bars["symbol"] == name) & (bars["date"] <= moment)].tail(LOOKBACK)
        sizes.append(np.log1p(own["amount"].mean()))
    sector = table.set_index("instrument")["sector"]
    exposures = pd.DataFrame(
        {"size": sizes, "sector": sector[frame.index.get_level_values(1)].to_numpy()}, frame.index
    )
    expected = shaped(frame["score"], steps_of(shape), exposures)
    np.testing.assert_allclose(found["score"], expected, atol=1e-4)
    short = {"of": {names[0]: "x"}}
    with pytest.raises(ConfigError, match=f"7 instruments have no sector, {names[1]}"):
        model_of({"shape": shape, "sectors": short}).predict(dataset)
    alike = {**short, "unknown": "group"}
    assert model_of({"shape": shape, "sectors": alike}).predict(dataset).notna().all()


def test_a_smoothed_day_scored_alone_is_scored_as_in_the_backtest(provider, frame):
    """Smoothing reaches back before the segment, and before the handler's own start."""
    model = model_of({"shape": ["zscore", {"smooth": 3}]})
    whole = model.predict(dataset_of(provider))
    day = days_of(frame).unique()[1]
    starts_there = {**HANDLER, "kwargs": {"start_time": str(day.date())}}
    alone = model.predict(dataset_of(provider, starts_there), (day, day))
    assert alone.equals(whole[days_of(whole) == day])
    unsmoothed = model_of({"shape": ["zscore"]}).predict(dataset_of(provider))
    first = days_of(whole) == days_of(whole)[0]
    assert not whole[first].equals(unsmoothed[first]), "the first day has a history too"


def test_no_smoothed_score_changes_when_every_later_bar_does(bars, provider, tmp_path):
    shape = [{"neutralise": ["size", "volatility"]}, "zscore", {"smooth": 3}]
    t = pd.Timestamp("2020-12-03")
    changed = bars.copy()
    later = changed["date"] > t
    factors = np.random.default_rng(0).uniform(0.5, 2, later.sum())
    for column in ("open", "high", "low", "close", "amount"):
        changed.loc[later, column] *= factors
    write_provider(changed, tmp_path / "qlib", benchmark="BENCH", future_bars=20)
    then = model_of({"shape": shape}).predict(dataset_of(provider))
    now = model_of({"shape": shape}).predict(dataset_of(tmp_path / "qlib"))
    assert now[days_of(now) <= t].equals(then[days_of(then) <= t])
    assert (now[days_of(now) > t] != then[days_of(then) > t]).mean() > 0.9


def test_with_an_alpha_head_paths_are_drawn_only_for_what_is_kept(dataset, frame):
    training = {"alpha": {"epochs": 1, "hidden": 8}}
    model = model_of(training=training)
    model.fit(dataset)
    found = model.signals(dataset)
    assert list(found.columns) == ["score", "alpha"]
    assert found["score"].equals(found["alpha"].rename("score"))
    model.signal_settings = model_of({"keep": ["alpha", "skew"]}, training=training).signal_settings
    both = model.signals(dataset)
    assert both["score"].equals(found["score"])
    assert both["skew"].equals(frame["skew"])


@pytest.mark.parametrize(
    ("signals", "message"),
    [
        ({"keep": ["expected_retrun"]}, "did you mean 'expected_return'"),
        ({"score": "alpha"}, "there is no alpha head"),
        ({"shape": [{"neutralise": ["sector"]}]}, r"say with signals\.sectors"),
        ({"shape": ["zscores"]}, "no step 'zscores'"),
    ],
)
def test_signals_that_cannot_be_had_are_refused_before_anything_is_read(signals, message):
    with pytest.raises(ConfigError, match=message):
        model_of(signals)


def test_a_close_without_returns_is_named(provider):
    day = pd.Timestamp("2020-12-01")
    broken = dataset_of(provider)
    table = broken.source.table
    windows = broken.windows((day, day))
    table.values[windows.ends[2], CLOSE] = -1.0
    name = windows.index[2][1]
    with pytest.raises(BarDataError, match=f"{name} at 2020-12-01.*positive last close, got -1"):
        model_of().predict(broken, (day, day))
    with pytest.raises(BarDataError, match=f"{name}, window up to 2020-12-01.*positive"):
        BaselineModel("reversal").predict(broken, (day, day))


def test_a_baseline_scores_kronos_windows(dataset, frame, bars):
    model = BaselineModel("reversal")
    model.fit(dataset)
    scores = pickle.loads(pickle.dumps(model)).predict(dataset)
    assert scores.index.equals(frame.index)
    for moment, name in scores.index[::7]:
        own = bars[(bars["symbol"] == name) & (bars["date"] <= moment)]["close"].tail(6)
        expected = -(own.iloc[-1] / own.iloc[0] - 1)
        assert scores[(moment, name)] == pytest.approx(expected, abs=1e-5)
    with pytest.raises(ConfigError, match=r"reads 41 bars.*have 30"):
        BaselineModel("low_volatility", bars=40).predict(dataset)
    with pytest.raises(ConfigError, match="cannot rank"):
        BaselineModel("last_price")


def test_a_blend_is_the_mean_of_ranks_and_its_members_log_apart(provider, run):
    dataset = dataset_of(provider, TABLE)
    own = {"class": "KronosDataset", "module_path": "kronos_qlib.plugin.dataset"}
    own["kwargs"] = {"handler": HANDLER, "segments": SEGMENTS, "lookback": 40, "horizon": HORIZON}
    blend = BlendModel(
        [
            TREES,
            {**TREES, "name": "again"},
            {
                "class": "BaselineModel",
                "module_path": "kronos_qlib.plugin.baselines",
                "kwargs": {"kind": "momentum"},
                "dataset": own,
            },
        ],
        weights=[1, 1, 2],
    )
    blend.fit(dataset)
    KronosSignalRecord(blend, dataset, run).generate()
    await_metrics(run)
    logged = set(run.list_metrics())
    assert logged == {f"{name}.l2.{part}" for name in ("LGBModel", "again") for part in PARTS}
    found = read_signals(run)
    assert list(found.columns) == ["score", "LGBModel", "again", "BaselineModel"]
    ranks = found.groupby(level="datetime").rank(pct=True)
    expected = (ranks["LGBModel"] + ranks["again"] + 2 * ranks["BaselineModel"]) / 4
    np.testing.assert_allclose(found["score"], expected)
    windows = dataset_of(provider, lookback=40).windows("test")
    assert set(found.index) <= set(windows.index), "the baseline's own data set decides its rows"
    again = pickle.loads(pickle.dumps(blend))
    np.testing.assert_array_equal(again.predict(dataset), found["score"])


def test_a_members_figures_lie_apart_too(run):
    from matplotlib.figure import Figure

    for name in ("one", "other"):
        with logged_under(name):
            run.client.log_figure(run.id, Figure(), "training/predictor.png")
    run.client.log_figure(run.id, Figure(), "training/predictor.png")
    for folder in ("one/training", "other/training", "training"):
        assert run.list_artifacts(folder) == [f"{folder}/predictor.png"]


PARTS = ("train", "valid")


def read_signals(recorder) -> pd.DataFrame:
    return pd.read_parquet(recorder.download_artifact("signals/signals.parquet"))


def test_members_of_a_blend_that_cannot_be_told_apart_are_refused():
    with pytest.raises(ConfigError, match="called 'LGBModel'; give them names"):
        BlendModel([TREES, TREES])
    with pytest.raises(ConfigError, match="one above 0 for each of its 2 members"):
        BlendModel([TREES, {**TREES, "name": "b"}], weights=[1, 0])
    with pytest.raises(ConfigError, match="two members or more"):
        BlendModel([TREES])


def test_the_record_keeps_what_qlibs_keeps_and_every_signal(dataset, frame, run):
    record = KronosSignalRecord(model_of(), dataset, run)
    record.generate()
    record.check(include_self=True)
    assert run.load_object("pred.pkl").equals(frame[["score"]])
    labels = dataset.prepare("test", col_set="label", data_key="raw")
    assert run.load_object("label.pkl").equals(labels)
    assert read_signals(run).equals(frame)
    plain = types.SimpleNamespace(predict=lambda dataset, segment: frame["skew"].iloc[:0])
    with pytest.raises(MissingArtifactError, match="scored nothing"):
        KronosSignalRecord(plain, dataset, run).generate()


@pytest.fixture(scope="module")
def features(provider):
    settings = {"model": KRONOS, "signals": ["expected_return", "quantile@0.05"]}
    return dataset_of(provider, TABLE, KronosFeatureDataset, **settings)


def test_kronos_features_stand_beside_the_tables(features, frame, run):
    """LightGBM reads them as it reads Alpha158's."""
    from qlib.utils import init_instance_by_config

    plain = KronosDataset(features.handler, SEGMENTS, lookback=LOOKBACK, horizon=HORIZON)
    columns = features.columns
    train = features.prepare("train", col_set=["feature", "label"], data_key="learn")
    bare = plain.prepare("train", col_set=["feature", "label"], data_key="learn")
    assert train.index.equals(bare.index)
    assert list(train["feature"].columns) == [*bare["feature"].columns, *columns]
    pd.testing.assert_frame_equal(train[bare.columns], bare)
    test = features.prepare("test", col_set="feature", data_key="infer")
    with_window = test.loc[frame.index, columns]
    assert np.abs(with_window).max().max() < np.sqrt(3)
    ranks = frame["expected_return"].groupby(level="datetime").rank()
    sizes = ranks.groupby(level="datetime").transform("size")
    expected = (ranks / (sizes + 1) - 0.5) * np.sqrt(12)
    np.testing.assert_allclose(with_window["KRONOS_expected_return"], expected, atol=1e-6)
    model = init_instance_by_config(TREES)
    model.params |= {"min_data_in_leaf": 5, "feature_fraction": 1.0}
    model.fit(features, verbose_eval=0)
    used = dict(zip(train["feature"].columns, model.model.feature_importance(), strict=True))
    assert sum(used[name] for name in columns) > 0, "the trees do read them"
    assert model.predict(features).index.equals(test.index)


def test_a_linear_model_scores_what_has_every_feature(features, run):
    """Qlib's, as it is: of a row without a window it says NaN, and the record keeps that."""
    model = LinearModel()
    model.fit(features)
    KronosSignalRecord(model, features, run).generate()
    table = features.prepare("test", col_set="feature", data_key="infer")
    lacking = table.isna().any(axis=1)
    assert lacking.any()
    scores = read_signals(run)["score"].reindex(table.index)
    assert scores.isna().equals(lacking)
    assert scores[~lacking].groupby(level="datetime").nunique().min() > 1


def test_features_are_of_calibrated_paths_where_the_model_says_so(provider):
    """The model's setting was accepted, and its signals as features were of paths as drawn."""
    names = ["volatility", "prob_up"]
    found = {}
    for how in (None, "auto"):
        model = model_of(calibration=how, sampling={"paths": 12, "temperature": 1.0})
        one = dataset_of(
            provider, TABLE, KronosFeatureDataset, model=model, signals=names, embeddings=False,
            lookback=23,
        )  # fmt: skip
        found[how] = one.prepare(SEGMENTS["test"], col_set="feature")[one.columns].dropna()
        ranks = model.signals_of(one.source, one.source.windows("test"), names)
        ranks = ranks["volatility"].groupby(level="datetime").rank().sort_index()
        ours = found[how]["KRONOS_volatility"].groupby(level="datetime").rank().sort_index()
        assert ours.corr(ranks) == pytest.approx(1)
    assert found[None].index.equals(found["auto"].index)
    assert not np.allclose(found[None], found["auto"])
    with pytest.raises(ConfigError, match="KronosFeatureDataset fits nothing"):
        dataset_of(
            provider, TABLE, KronosFeatureDataset, model=model_of(calibration="fit"), signals=names
        )


def test_features_are_computed_once_and_travel_without_their_numbers(features, monkeypatch):
    first = features.prepare("test", col_set="feature")
    features.config(dump_all=False, recursive=True)  # as Qlib does before it saves one
    blob = pickle.dumps(features)
    assert len(blob) < 50_000
    with monkeypatch.context() as patched:
        patched.setattr("kronos_qlib.plugin.features.contexts_of", None)  # would raise
        assert features.prepare("test", col_set="feature").equals(first)
        both = features.prepare(["test", "test"], col_set="feature")
        assert both[1].equals(first)
        labels = features.prepare("valid", col_set="label")
        assert list(labels.columns) == ["LABEL0"], "nobody asked for features"
    again = pickle.loads(blob)
    again.config(handler_kwargs={"start_time": "2020-08-03", "end_time": "2020-12-08"})
    again.setup_data(handler_kwargs={"init_type": "fit_seq"})
    columns = features.columns
    assert again.prepare("test", col_set="feature")[columns].equals(first[columns])


def test_no_feature_changes_when_every_later_bar_does(bars, features, tmp_path):
    t = pd.Timestamp("2020-12-03")
    then = features.prepare("test", col_set="feature")[features.columns]
    changed = bars.copy()
    later = changed["date"] > t
    factors = np.random.default_rng(1).uniform(0.5, 2, later.sum())
    for column in ("open", "high", "low", "close"):
        changed.loc[later, column] *= factors
    write_provider(changed, tmp_path / "qlib", benchmark="BENCH", future_bars=20)
    settings = {"model": KRONOS, "signals": ["expected_return", "quantile@0.05"]}
    other = dataset_of(tmp_path / "qlib", TABLE, KronosFeatureDataset, **settings)
    now = other.prepare("test", col_set="feature")[features.columns]
    assert now[days_of(now) <= t].equals(then[days_of(then) <= t])
    assert not now[days_of(now) > t].equals(then[days_of(then) > t])


def test_features_of_a_model_to_be_trained_are_refused(provider):
    trained = {**KRONOS, "kwargs": {**NANO, "training": {"predictor": {}}}}
    with pytest.raises(ConfigError, match="trains nothing"):
        dataset_of(provider, TABLE, KronosFeatureDataset, model=trained)
    with pytest.raises(ConfigError, match="adds embeddings, or a list of signals"):
        dataset_of(provider, TABLE, KronosFeatureDataset, model=KRONOS, embeddings=False)
    with pytest.raises(ConfigError, match="no signal 'alpha'"):
        dataset_of(provider, TABLE, KronosFeatureDataset, model=KRONOS, signals=["alpha"])
