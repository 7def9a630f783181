"""What Qlib asks of a handler, a dataset and a model, each on a small simulated market.

prepare, config and setup_data, pickles, online updates, rolling tasks, instances from plain
settings, qrun on a base file, Alpha158 in the same run, frequencies side by side.
"""

from __future__ import annotations

import importlib.util
import io
import json
import os
import pickle
import pickletools
import shutil
import subprocess
import sys
import types

import mlflow
import numpy as np
import pandas as pd
import pytest
from qlib.contrib.model.gbdt import LGBModel
from qlib.data import D
from qlib.data.cache import H
from qlib.data.dataset import DatasetH
from qlib.data.dataset.handler import DataHandlerLP
from qlib.data.dataset.loader import QlibDataLoader
from qlib.data.filter import NameDFilter
from qlib.model.trainer import task_train
from qlib.utils import init_instance_by_config
from qlib.workflow import R
from qlib.workflow.online.update import LabelUpdater, PredUpdater
from qlib.workflow.task.gen import RollingGen, task_generator

from kronos_qlib.plugin.dataset import KronosDataset, KronosHandler
from kronos_qlib.plugin.lookahead import open_provider
from kronos_qlib.plugin.model import KronosModel
from kronos_qlib.plugin.provider.writer import write_provider
from kronos_qlib.plugin.records.portfolio_report import SIGNAL_METRICS
from kronos_qlib.schema import BAR_COLUMNS, CLOSE, HIGH, LOW, OPEN

pytestmark = pytest.mark.integration

LOOKBACK, HORIZON = 30, 5
SEGMENTS = {
    "train": ("2020-01-01", "2020-08-31"),
    "valid": ("2020-09-01", "2020-10-15"),
    "test": ("2020-10-16", "2020-12-30"),
}
WEEK = ("2020-12-21", "2020-12-25")
PLUGIN = "kronos_qlib.plugin"
MODEL = {
    "class": "KronosModel",
    "module_path": f"{PLUGIN}.model",
    "kwargs": {"sampling": {"paths": 2}, "device": "cpu", "show_progress": False},
}
LIGHTGBM = {
    "class": "LGBModel",
    "module_path": "qlib.contrib.model.gbdt",
    "kwargs": {"num_threads": 1, "num_boost_round": 10, "seed": 1},
}
SIGNAL = {
    "class": "SignalRecord",
    "module_path": "qlib.workflow.record_temp",
    "kwargs": {"model": "<MODEL>", "dataset": "<DATASET>"},
}


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    """One MLflow database for the file: making it is what takes the time."""
    folder = tmp_path_factory.mktemp("mlflow")
    uri = f"sqlite:///{(folder / 'mlflow.db').as_posix()}"
    with pytest.MonkeyPatch.context() as moved:
        moved.chdir(folder)  # MLflow makes ./mlruns
        mlflow.MlflowClient(uri).search_experiments()
    return uri


@pytest.fixture
def tracking(database, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # Qlib records `git diff` of where it stands
    before = mlflow.get_tracking_uri()
    yield database
    mlflow.set_tracking_uri(before)


def open_tracked(folder, tracking: str | None = None) -> None:
    settings = {}
    if tracking is not None:
        settings["exp_manager"] = {
            "class": "MLflowExpManager",
            "module_path": "qlib.workflow.expm",
            "kwargs": {"uri": tracking, "default_exp_name": "default"},
        }
    open_provider(folder, **settings)


def handler_config(**kwargs) -> dict:
    settings = {"instruments": "all", **kwargs}
    return {"class": "KronosHandler", "module_path": f"{PLUGIN}.dataset", "kwargs": settings}


def alpha158_config(**kwargs) -> dict:
    settings = {"instruments": "all", "fit_start_time": None, "fit_end_time": None, **kwargs}
    return {"class": "Alpha158", "module_path": "qlib.contrib.data.handler", "kwargs": settings}


def dataset_config(handler, segments=None, **kwargs) -> dict:
    settings = {
        "handler": handler,
        "segments": segments or SEGMENTS,
        "lookback": LOOKBACK,
        "horizon": HORIZON,
        **kwargs,
    }
    return {"class": "KronosDataset", "module_path": f"{PLUGIN}.dataset", "kwargs": settings}


def dataset_of(folder, segments=None, **kwargs) -> KronosDataset:
    open_tracked(folder)
    return init_instance_by_config(dataset_config(handler_config(**kwargs), segments))


def model_of(**kwargs) -> KronosModel:
    return KronosModel(**{**MODEL["kwargs"], **kwargs})


def days_of(table) -> pd.DatetimeIndex:
    return table.index.get_level_values("datetime")


def names_of(table) -> pd.Index:
    return table.index.get_level_values("instrument")


def frame_of(bars: pd.DataFrame) -> pd.DataFrame:
    """What Qlib should return: a row a day from an instrument's first bar to its last."""
    calendar = np.sort(bars["date"].unique())
    parts = {}
    for name, own in bars.groupby("symbol"):
        own = own.set_index("date")[list(BAR_COLUMNS)]
        closes = own["close"].reindex(calendar)
        own = own.reindex(calendar[(calendar >= own.index[0]) & (calendar <= own.index[-1])])
        parts[name] = own.assign(LABEL0=closes.shift(-2) / closes.shift(-1) - 1)
    table = pd.concat(parts, names=["instrument", "datetime"]).swaplevel().sort_index()
    return table.astype(np.float32)


def assert_frame(got: pd.DataFrame, expected: pd.DataFrame) -> None:
    """Same rows in the same order, bars to the bit, the label to float32."""
    assert got.index.names == ["datetime", "instrument"]
    assert list(got.index) == list(expected.index)
    bars = list(BAR_COLUMNS)
    np.testing.assert_array_equal(got[bars].to_numpy(np.float32), expected[bars].to_numpy())
    np.testing.assert_allclose(got["LABEL0"], expected["LABEL0"], rtol=1e-3, atol=1e-5)


def ends_of(bars: pd.DataFrame, first: str, last: str) -> list[tuple[pd.Timestamp, str]]:
    """(datetime, instrument) at which a window should end."""
    whole = bars[bars.groupby("symbol").cumcount() >= LOOKBACK - 1]
    due = whole[whole["date"].between(first, last)]
    return sorted(zip(due["date"], due["symbol"], strict=True))


def answers_of(dataset: KronosDataset, segment="test") -> dict:
    """All that a dataset answers, to be compared."""
    windows = dataset.windows(segment)
    return {
        "index": list(windows.index),
        "bars": windows.bars(slice(None)).tobytes(),
        "ahead": dataset.future_stamps(windows).tobytes(),
        "frame": dataset.prepare(segment).to_csv(),
    }


# prepare


def test_prepare_returns_the_bars_that_were_written(provider, bars):
    """A segment by name: rows by (datetime, instrument), a suspended day as a row of NaN."""
    expected = frame_of(bars).loc[SEGMENTS["test"][0] :]
    assert expected["close"].isna().sum() > 2, "nobody is suspended: the test would prove less"
    got = dataset_of(provider).prepare("test")
    assert list(got.columns) == [*BAR_COLUMNS, "LABEL0"]
    assert_frame(got, expected)


@pytest.mark.parametrize("key", ["raw", "infer", "learn"])
def test_prepare_without_processors_has_one_answer_for_every_key(provider, bars, key):
    got = dataset_of(provider).prepare("valid", data_key=key)
    assert_frame(got, frame_of(bars).loc[slice(*SEGMENTS["valid"])])


def test_prepare_takes_several_segments_and_slices(provider, bars):
    """A list of names gives a frame for each; a slice that is no segment gives its days."""
    dataset = dataset_of(provider)
    for name, got in zip(
        ("train", "test"), dataset.prepare(["train", "test"], data_key="learn"), strict=True
    ):
        assert_frame(got, frame_of(bars).loc[slice(*SEGMENTS[name])])
    assert_frame(dataset.prepare(slice(*WEEK)), frame_of(bars).loc[slice(*WEEK)])
    assert_frame(dataset.prepare(slice(None, None)), frame_of(bars))


def test_prepare_keeps_features_and_label_apart(provider):
    """col_set by name has plain columns, by list has both levels; all hold the same numbers."""
    dataset = dataset_of(provider)
    whole = dataset.prepare("test")
    feature = dataset.prepare("test", col_set="feature")
    label = dataset.prepare("test", col_set="label")
    both = dataset.prepare("test", col_set=["feature", "label"])
    assert list(feature.columns) == list(BAR_COLUMNS)
    assert list(label.columns) == ["LABEL0"]
    assert list(both.columns) == [("feature", name) for name in BAR_COLUMNS] + [("label", "LABEL0")]
    pd.testing.assert_frame_equal(both["feature"], feature)
    pd.testing.assert_frame_equal(both["label"], label)
    pd.testing.assert_frame_equal(pd.concat([feature, label], axis=1), whole)


def test_prepare_knows_members_of_the_day_only(provider, tmp_path):
    """A share that joined late and left early has rows on its days in the index alone."""
    folder = tmp_path / "qlib"
    shutil.copytree(provider, folder)
    (folder / "instruments" / "index.txt").write_text(
        "SYM0002\t2020-11-02\t2020-11-30\nSYM0003\t2020-01-01\t2020-12-30\n"
    )
    dataset = dataset_of(folder, instruments="index")
    got = dataset.prepare("test")
    assert set(names_of(got)) == {"SYM0002", "SYM0003"}
    mine = days_of(got)[names_of(got) == "SYM0002"]
    assert list(mine) == list(pd.bdate_range("2020-11-02", "2020-11-30"))
    assert set(dataset.windows("test").index) <= set(got.index)


# config and setup_data; what is read, and when


def test_the_windows_side_is_made_once_until_a_setting_changes(provider):
    """It was built anew, calendar and universe included, at every access."""
    dataset = dataset_of(provider)
    source = dataset.source
    assert dataset.source is source
    dataset.config(segments={"test": ("2020-06-01", "2020-06-05")})
    assert dataset.source is not source
    assert dataset.source.segments == {"test": ("2020-06-01", "2020-06-05")}
    source = dataset.source
    dataset.horizon = source.horizon + 1
    assert dataset.source.horizon == source.horizon + 1
    source = dataset.source
    dataset.setup_data(handler_kwargs={})
    assert dataset.source.table is not source.table


def test_config_and_setup_move_frame_and_windows(provider, bars, monkeypatch):
    """What Qlib's updater does; until setup_data what was read stays, and IT_LS fits nothing."""
    dataset = dataset_of(provider)
    dataset.prepare("test")
    dataset.windows("test")
    dataset.config(
        handler_kwargs={"start_time": "2020-11-02", "end_time": "2020-11-11"},
        segments={"test": ("2020-10-28", "2020-11-20")},
    )
    for index in (dataset.prepare("test").index, dataset.windows("test").index):
        days = index.get_level_values("datetime")
        assert (days.min(), days.max()) == (pd.Timestamp("2020-10-28"), pd.Timestamp("2020-11-20"))

    def refuse(handler):
        raise AssertionError("IT_LS must not fit")

    monkeypatch.setattr(DataHandlerLP, "fit_process_data", refuse)
    dataset.setup_data(handler_kwargs={"init_type": DataHandlerLP.IT_LS})
    assert_frame(dataset.prepare("test"), frame_of(bars).loc["2020-11-02":"2020-11-11"])
    # start_time bounds where windows end too; the bars before it are still seen.
    expected = ends_of(bars, "2020-11-02", "2020-11-11")
    assert list(dataset.windows("test").index) == expected


def test_history_is_bounded_from_the_moved_start(provider):
    """history_days counts from the start_time that config set: no more is read than asked for."""
    dataset = dataset_of(provider, start_time="2020-06-01", history_days=60)
    before = dataset.handler.bars
    assert before.times.min() == np.datetime64("2020-04-02")
    dataset.config(handler_kwargs={"start_time": "2020-12-01"})
    dataset.setup_data(handler_kwargs={"init_type": DataHandlerLP.IT_LS})
    assert dataset.handler.bars.times.min() == np.datetime64("2020-10-02")


@pytest.fixture
def loads(monkeypatch):
    """Qlib's loader, counted."""
    seen = []
    load = QlibDataLoader.load

    def counted(self, *args, **kwargs):
        seen.append(args)
        return load(self, *args, **kwargs)

    monkeypatch.setattr(QlibDataLoader, "load", counted)
    return seen


def test_only_prepare_waits_for_qlibs_loader(provider, loads):
    """Making a dataset, its windows and scores read files alone; two calls of prepare load once."""
    dataset = dataset_of(provider)
    model_of().predict(dataset, WEEK)
    assert loads == []
    dataset.prepare("test")
    dataset.prepare(["train", "valid"], col_set="label", data_key="learn")
    assert len(loads) == 1


def test_qlib_finds_the_frame_where_it_looks(provider, bars):
    """Qlib's own methods reach past `fetch` for the frame, which has not been read yet."""
    handler = dataset_of(provider).handler
    picked = handler.get_range_selector(pd.Timestamp("2020-11-06"), 5)
    assert picked == slice(pd.Timestamp("2020-11-02"), pd.Timestamp("2020-11-06"))
    assert_frame(DataHandlerLP.cast(dataset_of(provider).handler).fetch(), frame_of(bars))
    assert dataset_of(provider).handler.get_cols("feature") == list(BAR_COLUMNS)


def test_a_reading_that_failed_is_tried_again(provider, bars, monkeypatch):
    """After the storage was out of reach, the next call must not return the frame of before."""
    dataset = dataset_of(provider)
    dataset.prepare("test")
    dataset.config(handler_kwargs={"end_time": "2020-11-11"})
    dataset.setup_data(handler_kwargs={"init_type": DataHandlerLP.IT_LS})
    with monkeypatch.context() as broken:
        broken.setattr(QlibDataLoader, "load", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            dataset.prepare("test")
    assert_frame(dataset.prepare("test"), frame_of(bars).loc["2020-10-16":"2020-11-11"])


# Pickles

FRESH_PROCESS = """
import pickle, sys
from pathlib import Path
import qlib
if __name__ == "__main__":
    provider, source, target = sys.argv[1:]
    qlib.init(provider_uri=provider, region="us", kernels=1)
    dataset, model, segment = pickle.loads(Path(source).read_bytes())
    windows = dataset.windows(segment)
    answer = {
        "index": list(windows.index),
        "bars": windows.bars(slice(None)).tobytes(),
        "ahead": dataset.future_stamps(windows).tobytes(),
        "frame": dataset.prepare(segment).to_csv(),
        "scores": model.predict(dataset, segment),
    }
    Path(target).write_bytes(pickle.dumps(answer))
"""


def run_python(script: str, *args: object, **variables: str) -> str:
    """What a fresh process prints."""
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, args)],
        env={**os.environ, "OMP_NUM_THREADS": "1", **variables},
        capture_output=True,
        text=True,
        encoding="utf-8",
        errors="replace",
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_a_pickle_answers_alike_here_and_in_a_fresh_process(provider, tmp_path):
    """Small, without bars, although all was read before; windows, frame and scores to the bit."""
    dataset, model = dataset_of(provider), model_of()
    scores = model.predict(dataset, WEEK)
    expected = answers_of(dataset, WEEK)
    dataset.config(dump_all=False, recursive=True)
    assert len(pickle.dumps(dataset)) < 5_000
    blob = pickle.dumps((dataset, model, WEEK))
    here, other, _ = pickle.loads(blob)
    assert answers_of(here, WEEK) == expected
    assert other.predict(here, WEEK).equals(scores)

    (tmp_path / "pair.pkl").write_bytes(blob)
    run_python(FRESH_PROCESS, provider, tmp_path / "pair.pkl", tmp_path / "answer.pkl")
    answer = pickle.loads((tmp_path / "answer.pkl").read_bytes())
    assert answer.pop("scores").equals(scores)
    assert answer == expected


def test_a_full_pickle_needs_no_storage(provider, tmp_path):
    """dump_all keeps what was read: bars, members, calendar and frame, after the folder is gone."""
    folder = tmp_path / "qlib"
    shutil.copytree(provider, folder)
    dataset = dataset_of(folder)
    expected = answers_of(dataset)
    scores = model_of().predict(dataset, WEEK)
    dataset.config(dump_all=True, recursive=True)
    blob = pickle.dumps(dataset)
    shutil.rmtree(folder)
    H.clear()
    again = pickle.loads(blob)
    assert answers_of(again) == expected
    assert model_of().predict(again, WEEK).equals(scores)


# Online updates


def task_of(dataset: dict, model: dict | None = None) -> dict:
    return {"model": model or MODEL, "dataset": dataset, "record": [SIGNAL]}


def test_an_update_restores_scores_and_adds_those_of_new_days(bars, tracking, tmp_path):
    """What was cut off comes back to the bit, by bars of 90 days; then the market goes on."""
    folder, newest = tmp_path / "qlib", pd.Timestamp("2020-12-11")
    write_provider(bars[bars["date"] <= newest], folder, future_bars=20)
    open_tracked(folder, tracking)
    handler = handler_config(end_time="2020-12-30", history_days=90)
    recorder = task_train(task_of(dataset_config(handler)), "online")
    scores, labels = (recorder.load_object(f"{name}.pkl") for name in ("pred", "label"))
    assert days_of(scores).max() == newest

    kept = days_of(scores).unique()[-8]
    cut = {
        "pred.pkl": scores[days_of(scores) <= kept],
        "label.pkl": labels[days_of(labels) <= kept],
    }
    assert all(len(table) for table in cut.values())
    recorder.save_objects(**cut)
    PredUpdater(recorder).update()
    LabelUpdater(recorder).update()
    for name, whole in (("pred.pkl", scores), ("label.pkl", labels)):
        pd.testing.assert_frame_equal(recorder.load_object(name), whole, check_exact=True)

    write_provider(bars, folder, future_bars=20, overwrite=True)
    open_tracked(folder, tracking)
    recorder = R.get_recorder(recorder_id=recorder.id, experiment_name="online")
    PredUpdater(recorder).update()
    LabelUpdater(recorder).update()
    later, later_labels = (recorder.load_object(f"{name}.pkl") for name in ("pred", "label"))
    assert later.loc[scores.index].equals(scores)
    fresh = dataset_of(folder)
    pd.testing.assert_series_equal(later["score"], model_of().predict(fresh), check_exact=True)
    assert days_of(later).max() == bars["date"].max()
    truth = fresh.prepare("test", col_set="label", data_key="raw")
    pd.testing.assert_frame_equal(later_labels, truth, check_exact=True)
    assert labels.loc[newest, "LABEL0"].isna().all(), "nobody knew them at the time"
    assert later_labels.loc[newest, "LABEL0"].notna().any()


# Rolling tasks


@pytest.mark.parametrize("rtype", [RollingGen.ROLL_EX, RollingGen.ROLL_SD])
def test_rolling_tasks_follow_one_another(provider, bars, rtype):
    """Tests do not overlap and miss no day, the last one reaches past the bars; targets are apart.

    The handler of the template ends before the tests do: Qlib moves its end.
    """
    open_tracked(provider)
    handler = handler_config(end_time="2020-11-13")
    template = task_of(dataset_config(handler, {k: list(v) for k, v in SEGMENTS.items()}))
    tasks = task_generator(template, RollingGen(step=15, rtype=rtype))
    assert len(tasks) == 4
    tested, starts = [], []
    for task in tasks:
        dataset = init_instance_by_config(task["dataset"])
        assert dataset.segments == task["dataset"]["kwargs"]["segments"]
        due = max(pd.Timestamp("2020-11-13"), dataset.segments["test"][1])
        assert pd.Timestamp(dataset.handler.end_time) == due
        tested.append(list(dataset.windows("test").index))
        starts.append(dataset.segments["train"][0])

        for name in ("train", "valid"):
            windows = dataset.training_windows(name)
            first, last = dataset.segments[name]
            targets = windows.table.times_at(windows.rows(slice(None))[:, LOOKBACK:])
            assert np.datetime64(first) <= targets.min()
            assert targets.max() <= np.datetime64(last)
        order = [moment for name in SEGMENTS for moment in dataset.segments[name]]
        assert order == sorted(set(order)), "segments overlap"
    assert dataset.segments["test"][1] > bars["date"].max(), "the last one should end past the bars"
    assert [one for each in tested for one in each] == ends_of(bars, *SEGMENTS["test"])
    assert len(set(starts)) == (1 if rtype == RollingGen.ROLL_EX else 4)


def test_rolled_scores_are_those_of_one_long_test(provider):
    """The last task's test has no end, its calendar being too short, and is scored all the same."""
    open_tracked(provider)
    template = task_of(dataset_config(handler_config(end_time=SEGMENTS["test"][1])))
    tasks = task_generator(template, RollingGen(step=40))
    assert [task["dataset"]["kwargs"]["segments"]["test"][1] for task in tasks][1:] == [None]
    model = model_of()
    rolled = [model.predict(init_instance_by_config(task["dataset"])) for task in tasks]
    whole = model.predict(dataset_of(provider))
    pd.testing.assert_series_equal(pd.concat(rolled), whole, check_exact=True)


# Instances from plain settings


def test_plain_settings_make_handler_dataset_and_model(provider, bars):
    """As out of JSON, where dates are text and segments lists."""
    open_tracked(provider)
    segments = {name: list(span) for name, span in SEGMENTS.items()}
    settings = json.loads(
        json.dumps([handler_config(end_time="2020-12-18"), dataset_config("<handler>", segments)])
    )
    handler = init_instance_by_config(settings[0])
    assert type(handler) is KronosHandler
    settings[1]["kwargs"]["handler"] = handler
    dataset = init_instance_by_config(settings[1])
    assert dataset.handler is handler
    model = init_instance_by_config(json.loads(json.dumps(MODEL)))
    scores = model.predict(dataset, ["2020-12-14", "2020-12-31"])
    assert list(scores.index) == ends_of(bars, "2020-12-14", "2020-12-18")
    assert scores.notna().all()


@pytest.mark.parametrize("dump_all", [False, True])
def test_a_handler_comes_out_of_a_file(provider, loads, tmp_path, dump_all):
    """file://handler.pkl, as Qlib's rolling caches one; with all dumped nothing is read again."""
    dataset = dataset_of(provider, end_time="2020-12-18")
    expected = answers_of(dataset)
    dataset.handler.to_pickle(tmp_path / "handler.pkl", dump_all=dump_all)
    loads.clear()
    again = init_instance_by_config(dataset_config(f"file://{tmp_path / 'handler.pkl'}"))
    assert answers_of(again) == expected
    assert len(loads) == (0 if dump_all else 1)


# qrun

BASE = """
qlib_init:
  provider_uri: nowhere
  region: us
  exp_manager:
    class: MLflowExpManager
    module_path: qlib.workflow.expm
    kwargs: {uri: "sqlite:///base.db", default_exp_name: base}
experiment_name: base
note: "{{ CONTRACT_NAME }}"
task:
  model:
    class: KronosModel
    module_path: kronos_qlib.plugin.model
    kwargs:
      device: cpu
      show_progress: false
      sampling: {paths: 7, temperature: 0.9}
      training: {predictor: {epochs: 3, windows_per_epoch: 32, validation_windows: 16}}
  dataset:
    class: KronosDataset
    module_path: kronos_qlib.plugin.dataset
    kwargs:
      handler:
        class: KronosHandler
        module_path: kronos_qlib.plugin.dataset
        kwargs: {instruments: all, end_time: 2020-12-30}
      segments:
        train: [2020-01-01, 2020-08-31]
        valid: [2020-09-01, 2020-10-15]
        test: [2020-10-16, 2020-12-30]
      lookback: 30
      horizon: 5
  record:
    - class: SignalRecord
      module_path: qlib.workflow.record_temp
      kwargs: {model: <MODEL>, dataset: <DATASET>}
    - class: SigAnaRecord
      module_path: qlib.workflow.record_temp
    - class: RunCheckRecord
      module_path: kronos_qlib.plugin.records
      kwargs: {metrics: [IC, ICIR, Rank IC, Rank ICIR]}
"""

CHILD = """
BASE_CONFIG_PATH: base.yaml
experiment_name: '{{ CONTRACT_NAME }}'
qlib_init:
  provider_uri: '{{ CONTRACT_MARKET }}'
  exp_manager: {kwargs: {uri: '{{ CONTRACT_DATABASE }}'}}
task:
  model:
    kwargs:
      sampling: {paths: {{ CONTRACT_PATHS | default(2) }}}
      training: {predictor: {epochs: 1}}
  dataset:
    kwargs:
      segments: {test: [2020-12-01, 2020-12-30]}
"""


def test_qrun_takes_a_base_file_and_the_childs_few_changes(provider, bars, tracking, tmp_path):
    """Only the child is a template; its settings win, the rest is the base's, metrics are there."""
    files = tmp_path / "files"
    files.mkdir()
    (files / "base.yaml").write_text(BASE, encoding="utf-8")
    (files / "child.yaml").write_text(CHILD, encoding="utf-8")
    variables = {
        "CONTRACT_NAME": "child",
        "CONTRACT_MARKET": str(provider),
        "CONTRACT_DATABASE": tracking,
    }
    run_python("from qlib.cli.run import run; run()", files / "child.yaml", **variables)

    open_tracked(provider, tracking)
    (recorder,) = R.list_recorders(experiment_name="child").values()
    assert recorder.info["status"] == "FINISHED"
    told = recorder.client.get_run(recorder.id).data
    assert told.params["model.kwargs.sampling.paths"] == "2"
    assert told.params["model.kwargs.sampling.temperature"] == "0.9"
    assert told.params["model.kwargs.training.predictor.epochs"] == "1"
    assert {*SIGNAL_METRICS, "predictor.valid_loss"} <= set(told.metrics)
    model = recorder.load_object("params.pkl")
    assert (model.sampling.paths, model.sampling.temperature) == (2, 0.9)
    assert [row["epoch"] for row in model.history["predictor"]] == [0, 1]
    scores = recorder.load_object("pred.pkl")
    assert list(scores.index) == ends_of(bars, "2020-12-01", "2020-12-30")
    assert recorder.load_object("config")["note"] == "{{ CONTRACT_NAME }}", "the base is plain YAML"


# Alpha158 in the same run, of some names: each takes Qlib a quarter of a second

SOME = ["SYM0001", "SYM0002", "SYM0003", "SYM0004"]


def fit_lightgbm(dataset) -> pd.Series:
    model = LGBModel(**LIGHTGBM["kwargs"])
    with R.start(experiment_name="lightgbm"):  # LGBModel logs its losses
        model.fit(dataset)
    return model.predict(dataset)


def test_lightgbm_and_kronos_score_one_dataset(provider, tracking):
    """Alpha158's frame for one, windows of its bars for the other: each as if it were alone."""
    open_tracked(provider, tracking)
    plain = DatasetH(init_instance_by_config(alpha158_config(instruments=SOME)), SEGMENTS)
    alone = fit_lightgbm(plain)
    windows = init_instance_by_config(dataset_config(handler_config(instruments=SOME)))
    kronos_alone = model_of().predict(windows)

    shared = init_instance_by_config(dataset_config(alpha158_config(instruments=SOME)))
    model = model_of()
    assert model.predict(shared).equals(kronos_alone)
    together = fit_lightgbm(shared)
    assert together.equals(alone)
    assert together.nunique() > 10, "trees without a split would agree with anything"
    assert model.predict(shared).equals(kronos_alone)


def test_runs_of_both_kinds_share_an_experiment(provider, tracking):
    """Three tasks in one process, one experiment: each leaves the scores that it leaves alone."""
    open_tracked(provider, tracking)
    tables = dataset_config(alpha158_config(instruments=SOME))
    tasks = {
        "lightgbm": task_of(tables, LIGHTGBM),
        "kronos on alpha158": task_of(tables),
        "kronos": task_of(dataset_config(handler_config(instruments=SOME))),
    }
    left = {
        name: task_train(task, "shared").load_object("pred.pkl") for name, task in tasks.items()
    }
    assert len(R.list_recorders(experiment_name="shared")) == 3
    assert left["kronos on alpha158"].equals(left["kronos"])
    for name in ("kronos", "lightgbm"):
        open_tracked(provider, tracking)
        alone = task_train(tasks[name], "alone").load_object("pred.pkl")
        pd.testing.assert_frame_equal(left[name], alone, check_exact=True)


def test_windows_and_alpha158_see_the_same_bars(provider):
    """KLEN and OPEN0 of a day are those of the last bar in its window; D.features agrees too."""
    open_tracked(provider)
    dataset = init_instance_by_config(dataset_config(alpha158_config()))
    windows = dataset.windows("test")
    assert len(windows) > 300
    last = windows.bars(slice(None))[:, -1].astype(np.float64)
    features = dataset.prepare("test", col_set="feature", data_key="raw").loc[windows.index]
    body = (last[:, HIGH] - last[:, LOW]) / last[:, OPEN]
    np.testing.assert_allclose(features["KLEN"], body, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(features["OPEN0"], last[:, OPEN] / last[:, CLOSE], rtol=1e-5)
    stored = D.features(D.instruments("all"), [f"${name}" for name in BAR_COLUMNS])
    stored = stored.swaplevel().loc[windows.index]
    np.testing.assert_array_equal(stored.to_numpy(np.float32), last.astype(np.float32))


def test_windows_follow_another_handler(provider, bars):
    """Its times, filters and universe are the windows' too, at first and after config."""
    open_tracked(provider)
    loader = {
        "class": "QlibDataLoader",
        "kwargs": {
            "config": (["$close"], ["close"]),
            "filter_pipe": [NameDFilter("SYM000[1-3]")],
        },
    }
    handler = DataHandlerLP("all", None, "2020-12-11", data_loader=loader)
    dataset = KronosDataset(handler, SEGMENTS, lookback=LOOKBACK, horizon=HORIZON)
    few = bars[bars["symbol"].isin(["SYM0001", "SYM0002", "SYM0003"])]
    assert list(dataset.windows("test").index) == ends_of(few, "2020-10-16", "2020-12-11")
    assert set(names_of(dataset.prepare("test"))) == set(few["symbol"])

    dataset.config(handler_kwargs={"end_time": "2020-12-18"}, segments={"test": WEEK})
    dataset.setup_data(handler_kwargs={"init_type": DataHandlerLP.IT_LS})
    assert list(dataset.windows(("2020-12-14", "2020-12-30")).index) == ends_of(
        few, "2020-12-14", "2020-12-18"
    )
    assert days_of(dataset.prepare(slice(None))).max() == pd.Timestamp("2020-12-18")


# Frequencies side by side


def minute_bars() -> pd.DataFrame:
    """Two names that trade 8 bars a day through a part of December, one of them from the 8th."""
    rng = np.random.default_rng(11)
    parts = []
    for name, first in (("SYM0001", "2020-12-08"), ("MIN0001", "2020-12-01")):
        days = pd.bdate_range(first, "2020-12-18")
        times = [day + pd.Timedelta(minutes=575 + 5 * bar) for day in days for bar in range(8)]
        close = 30 * np.exp(rng.normal(0, 0.002, len(times)).cumsum())
        table = pd.DataFrame({"symbol": name, "date": times, "open": close, "close": close})
        table = table.assign(high=close * 1.001, low=close * 0.999, volume=1e4, factor=1.0)
        parts.append(table.assign(amount=table["volume"] * table["close"]))
    return pd.concat(parts, ignore_index=True)


@pytest.fixture(scope="module")
def frequencies(provider, tmp_path_factory):
    folder = tmp_path_factory.mktemp("minutes") / "qlib"
    write_provider(minute_bars(), folder, freq="5min", future_bars=40)
    return {"day": provider, "5min": folder}


@pytest.mark.parametrize("order", [("day", "5min"), ("5min", "day")], ids="-".join)
def test_a_market_of_two_frequencies_is_not_mixed_up(frequencies, bars, order):
    """Qlib remembers "all" by its name: daily members and dates would serve minutes, or the other
    way round, whichever is read first, and whatever Qlib itself read in between."""
    tables = {"day": bars, "5min": minute_bars()}
    spans = {"day": SEGMENTS["test"], "5min": ("2020-12-10", "2020-12-18 23:00")}
    open_tracked(frequencies)
    datasets = {
        freq: init_instance_by_config(
            dataset_config(handler_config(freq=freq), {"test": spans[freq]})
        )
        for freq in order
    }
    expected = {freq: ends_of(tables[freq], *spans[freq]) for freq in order}

    def read(freq: str, what: str) -> None:
        if what == "windows":
            assert list(datasets[freq].windows("test").index) == expected[freq]
        else:
            assert_frame(
                datasets[freq].prepare("test"), frame_of(tables[freq]).loc[slice(*spans[freq])]
            )

    def ask_qlib(freq: str) -> None:
        H["i"].clear()
        D.list_instruments(D.instruments("all"), freq=freq)

    for first, second in (("windows", "frame"), ("frame", "windows")):
        for between in (None, *order):
            for dataset in datasets.values():
                dataset.setup_data(handler_kwargs={})
            for what in (first, second):
                for freq in order:
                    if between:
                        ask_qlib(between)
                    read(freq, what)


def test_bars_beside_a_minute_handler_are_minutes(frequencies):
    """Left to its default, the bars' handler would read days beside a frame of minutes."""
    open_tracked(frequencies)
    config = {"class": "QlibDataLoader", "kwargs": {"config": (["$close"], ["c"]), "freq": "5min"}}
    handler = DataHandlerLP(["SYM0001"], data_loader=config)
    segments = {"test": ("2020-12-14", "2020-12-18")}
    dataset = KronosDataset(handler, segments, lookback=LOOKBACK, horizon=HORIZON)
    windows = dataset.windows("test")
    closes = dataset.prepare("test").loc[windows.index, "c"]
    assert len(windows) == 40
    np.testing.assert_array_equal(windows.last_close, closes.to_numpy(np.float32))
    assert dataset.future_stamps(windows).shape == (40, HORIZON, 5)


# The list of what Qlib's main branch unpickles

MAIN_BRANCH = {
    *(("builtins", name) for name in ("bytearray", "dict", "list", "set", "slice", "tuple")),
    ("datetime", "date"),
    ("qlib.data.dataset.handler", "DataHandler"),
    ("qlib.data.dataset.handler", "DataHandlerLP"),
    ("qlib.data.dataset.loader", "StaticDataLoader"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy.core.numeric", "_frombuffer"),
    ("numpy._core.numeric", "_frombuffer"),
    ("pandas._libs.tslibs.timestamps", "_unpickle_timestamp"),
}
"""Of `SAFE_PICKLE_CLASSES` in its qlib/utils/pickle_utils.py, what our pickles need."""


def names_in(blob: bytes) -> set[tuple[str, str]]:
    """Module and name of everything that a pickle would import."""
    found: set[tuple[str, str]] = set()
    pushed: list = []
    memo: list = []
    for code, value, _ in pickletools.genops(blob):
        if code.name == "MEMOIZE":
            memo.append(pushed[-1])
        elif code.name in ("BINGET", "LONG_BINGET"):
            pushed.append(memo[value])
        elif code.name == "STACK_GLOBAL":
            found.add((pushed[-2], pushed[-1]))
            pushed.append(None)
        else:
            assert code.name not in ("GLOBAL", "INST"), "written by an old protocol"
            pushed.append(value)
    return found


def pickles_of(dataset: KronosDataset) -> dict[str, bytes]:
    blobs = {}
    for dump_all in (False, True):
        dataset.config(dump_all=dump_all, recursive=True)
        for kind, what in (("handler", dataset.handler), ("dataset", dataset)):
            blobs[f"{kind}-{dump_all}"] = pickle.dumps(what)
    return blobs


def run_anew(name: str) -> types.ModuleType:
    """A module's code run again, without a trace in sys.modules."""
    spec = importlib.util.find_spec(name)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def listed_by_us(monkeypatch) -> set[tuple[str, str]]:
    listed = set()
    stub = types.ModuleType("qlib.utils.pickle_utils")
    stub.add_safe_class = lambda module, name: listed.add((module, name))
    monkeypatch.setitem(sys.modules, stub.__name__, stub)
    run_anew(f"{PLUGIN}.dataset")
    return listed


def test_every_class_in_our_pickles_is_on_the_list(provider, monkeypatch):
    """A class that is put into a handler or dataset later, and not on the list, fails here."""
    listed = listed_by_us(monkeypatch) | MAIN_BRANCH
    asked = set()
    for settings in (
        {},
        {"start_time": pd.Timestamp("2020-01-06"), "history_days": 60},
        {"instruments": ["SYM0001", "SYM0002"], "fields": {"amount": "$volume * $vwap"}},
        {"instruments": {"market": "all", "filter_pipe": []}, "raw_volume": True},
    ):
        dataset = dataset_of(provider, **settings)
        dataset.future_stamps(dataset.windows("test"))
        pickles = pickles_of(dataset)
        asked |= set().union(*map(names_in, pickles.values()))
        dataset.prepare("test")  # the frame is pandas' and pyarrow's affair: ours are looked at
        framed = set().union(*map(names_in, pickles_of(dataset).values()))
        asked |= {name for name in framed if name[0].split(".")[0] in ("kronos_qlib", "qlib")}
    assert (f"{PLUGIN}.dataset", "KronosHandler") in asked
    assert ("kronos_qlib.data.windows.bar_table", "BarTable") in asked
    assert asked <= listed, f"not on the list: {asked - listed}"


def test_the_plugin_imports_where_qlib_has_no_list(monkeypatch):
    """0.9.7 has no qlib.utils.pickle_utils."""
    monkeypatch.setitem(sys.modules, "qlib.utils.pickle_utils", None)
    assert run_anew(f"{PLUGIN}.dataset").KronosHandler is not KronosHandler


RESTRICTED = """
import io, pickle, sys, types
from pathlib import Path
import qlib
SAFE = set(pickle.loads(bytes.fromhex(sys.argv[3])))
class RestrictedUnpickler(pickle.Unpickler):
    def find_class(self, module, name):
        if (module, name) not in SAFE:
            raise pickle.UnpicklingError(f"Forbidden class: {module}.{name}")
        return super().find_class(module, name)
stub = types.ModuleType("qlib.utils.pickle_utils")
stub.add_safe_class = lambda module, name: SAFE.add((module, name))
sys.modules[stub.__name__] = stub
import kronos_qlib.plugin.dataset
if __name__ == "__main__":
    provider, source = sys.argv[1:3]
    qlib.init(provider_uri=provider, region="us", kernels=1)
    for name, blob in pickle.loads(Path(source).read_bytes()).items():
        loaded = RestrictedUnpickler(io.BytesIO(blob)).load()
        if name.startswith("dataset"):
            print(name, len(loaded.windows("test")), len(loaded.prepare("test")))
        else:
            print(name, len(loaded.bars), len(loaded.fetch()))
"""


def test_qlibs_main_branch_loads_our_pickles(provider, bars, tmp_path):
    """Through an unpickler that lets through its own names and those that the plugin put there."""
    dataset = dataset_of(provider)
    dataset.future_stamps(dataset.windows("test"))
    pickles = pickles_of(dataset)
    (tmp_path / "pickles.pkl").write_bytes(pickle.dumps(pickles))
    known = pickle.dumps(sorted(MAIN_BRANCH)).hex()
    printed = run_python(RESTRICTED, provider, tmp_path / "pickles.pkl", known)
    of_test, whole = frame_of(bars).loc["2020-10-16":], frame_of(bars)
    ends = ends_of(bars, *SEGMENTS["test"])
    assert printed.splitlines() == [
        line
        for dump_all in (False, True)
        for line in (
            f"handler-{dump_all} {len(bars)} {len(whole)}",
            f"dataset-{dump_all} {len(ends)} {len(of_test)}",
        )
    ]
    unlisted = pickle.dumps(io.StringIO)
    assert names_in(unlisted) == {("_io", "StringIO")}, "names_in would overlook a class"
