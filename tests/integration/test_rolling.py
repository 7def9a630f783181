"""A model that is trained again as the days go on: each roll sees what was known, and no more."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
import yaml
from qlib.utils import init_instance_by_config
from qlib.workflow.task.gen import RollingGen

from kronos_qlib.cli.main import main
from kronos_qlib.data.files.synthetic import MarketConfig, make_market
from kronos_qlib.errors import ConfigError, KronosError
from kronos_qlib.plugin.lookahead import check_lookahead, open_provider
from kronos_qlib.plugin.provider.reader import read_calendar
from kronos_qlib.plugin.provider.writer import write_provider
from kronos_qlib.plugin.qlib_internals import metrics_dropped
from kronos_qlib.plugin.registry.newest_scores import newest_scores
from kronos_qlib.plugin.registry.registered_models import register
from kronos_qlib.plugin.rolling import RollingModel
from kronos_qlib.plugin.rolling.kept_rolls import RollStore
from kronos_qlib.plugin.rolling.rolled_workflow import RolledWorkflow
from kronos_qlib.plugin.rolling.rolls import moved_to, purged, rolls_of
from kronos_qlib.plugin.runs.newest_day import score_newest
from kronos_qlib.plugin.runs.run_comparison import compare
from kronos_qlib.plugin.runs.stored_runs import read_signal
from kronos_qlib.plugin.workflows import estimate

pytestmark = pytest.mark.integration

SEGMENTS = {
    "train": ("2020-03-02", "2020-03-31"),
    "valid": ("2020-04-01", "2020-04-30"),
    "test": ("2020-05-01", "2020-06-12"),
}
GRU = {
    "class": "GRUModel",
    "module_path": "kronos_qlib.plugin.baselines",
    "kwargs": {
        "hidden": 4,
        "device": "cpu",
        "show_progress": False,
        "training": {"epochs": 1, "hidden": 4, "learning_rate": 1e-2},
    },
}
KRONOS = {
    "class": "KronosModel",
    "module_path": "kronos_qlib.plugin.model",
    "kwargs": {
        "device": "cpu",
        "show_progress": False,
        "training": {"alpha": {"epochs": 1, "hidden": 4}},
    },
}
TREES = {
    "class": "LGBModel",
    "module_path": "qlib.contrib.model.gbdt",
    "kwargs": {"num_boost_round": 4, "num_leaves": 4, "num_threads": 1, "seed": 0, "verbose": -1},
}
HANDLER = {
    "class": "DataHandlerLP",
    "module_path": "qlib.data.dataset.handler",
    "kwargs": {
        "instruments": "all",
        "start_time": "2020-01-20",
        "end_time": "2020-06-12",
        "data_loader": {
            "class": "QlibDataLoader",
            "kwargs": {
                "config": {
                    "feature": (["$close / Ref($close, 5) - 1", "$high / $low"], ["R5", "RANGE"]),
                    "label": (["Ref($close, -2) / Ref($close, -1) - 1"], ["LABEL0"]),
                }
            },
        },
        "learn_processors": [{"class": "DropnaLabel"}],
    },
}


@pytest.fixture(scope="module")
def bars():
    config = MarketConfig(instruments=7, sectors=2, years=0.6, effect=0.4, seed=4)
    return make_market(config).bars


@pytest.fixture(scope="module")
def provider(bars, tmp_path_factory):
    folder = tmp_path_factory.mktemp("rolling") / "qlib"
    write_provider(bars, folder, benchmark="MEAN")
    return folder


@pytest.fixture(autouse=True)
def opened(provider):
    open_provider(provider)
    with metrics_dropped():
        yield


def windows() -> object:
    return init_instance_by_config(
        {
            "class": "KronosDataset",
            "module_path": "kronos_qlib.plugin.dataset",
            "kwargs": {
                "handler": {
                    "class": "KronosHandler",
                    "module_path": "kronos_qlib.plugin.dataset",
                },
                "segments": SEGMENTS,
                "lookback": 10,
                "horizon": 2,
            },
        }
    )


def table(handler: dict = HANDLER) -> object:
    return init_instance_by_config(
        {
            "class": "DatasetH",
            "module_path": "qlib.data.dataset",
            "kwargs": {"handler": handler, "segments": SEGMENTS},
        }
    )


def blend() -> dict:
    members = [
        {**GRU, "name": "gru"},
        {
            **TREES,
            "name": "trees",
            "dataset": {
                "class": "DatasetH",
                "module_path": "qlib.data.dataset",
                "kwargs": {"handler": HANDLER, "segments": SEGMENTS},
            },
        },
    ]
    return {
        "class": "BlendModel",
        "module_path": "kronos_qlib.plugin.blend",
        "kwargs": {"members": members},
    }


def trained(folder: Path | None, config: dict = GRU, dataset: object = None, **how) -> RollingModel:
    how = {"every": 12, **how}
    model = RollingModel(config, folder=None if folder is None else str(folder), **how)
    model.fit(dataset if dataset is not None else windows())
    return model


# Segments.


@pytest.mark.parametrize("train", ["expanding", "sliding"])
def test_rolls_are_those_of_qlibs_generator(train):
    calendar = read_calendar("day")
    given = {name: tuple(map(pd.Timestamp, ends)) for name, ends in SEGMENTS.items()}
    generator = RollingGen(step=10, rtype=train, ds_extra_mod_func=None)
    expected = generator.generate({"dataset": {"kwargs": {"segments": given}}})
    found = rolls_of(SEGMENTS, calendar, 10, train)
    assert len(found) == len(expected) == 4
    for ours, theirs in zip(found, expected, strict=True):
        for name, ends in theirs["dataset"]["kwargs"]["segments"].items():
            first, last = map(pd.Timestamp, ours[name])
            assert first == ends[0]
            assert last == min(ends[1], pd.Timestamp("2020-06-12"))
    scored = pd.DatetimeIndex(calendar)
    days = [scored[(scored >= one["test"][0]) & (scored <= one["test"][1])] for one in found]
    whole = scored[(scored >= SEGMENTS["test"][0]) & (scored <= SEGMENTS["test"][1])]
    assert whole.equals(days[0].append(days[1:])), "each day is scored once"


def test_a_calendar_that_ends_with_a_roll_is_no_error():
    """Qlib's generator compares None with a date there."""
    calendar = read_calendar("day")
    last = str(calendar[-1])[:10]
    first = str(calendar[-20])[:10]
    segments = {**SEGMENTS, "test": (first, last), "valid": ("2020-04-01", "2020-05-15")}
    found = rolls_of(segments, calendar, 10, "expanding")
    assert [one["test"] for one in found][-1] == (str(calendar[-10])[:10], last)
    assert len(found) == 2


def test_what_a_label_reaches_into_is_left_out():
    calendar = read_calendar("day")
    cut = purged(SEGMENTS, calendar, 2)
    assert cut == {
        **SEGMENTS,
        "train": ("2020-03-02", "2020-03-27"),
        "valid": ("2020-04-01", "2020-04-28"),
    }
    assert purged(SEGMENTS, calendar, 0) == SEGMENTS
    short = {**SEGMENTS, "valid": ("2020-04-29", "2020-04-30")}
    with pytest.raises(ConfigError, match="segment valid, 2020-04-29 to 2020-04-30, has no time"):
        purged(short, calendar, 2)


def test_segments_for_an_evening_end_with_it():
    calendar = read_calendar("day")
    day = pd.Timestamp("2020-05-06")
    assert moved_to(SEGMENTS, calendar, day, "sliding") == {
        "train": ("2020-03-06", "2020-04-06"),
        "valid": ("2020-04-07", "2020-05-06"),
    }
    assert moved_to(SEGMENTS, calendar, day, "expanding")["train"] == ("2020-03-02", "2020-04-06")
    with pytest.raises(ConfigError, match="has seen this day"):
        moved_to(SEGMENTS, calendar, pd.Timestamp("2020-04-01"), "sliding")


@pytest.mark.parametrize(
    ("segments", "message"),
    [
        ({"train": SEGMENTS["train"], "test": SEGMENTS["test"]}, "valid is missing"),
        ({**SEGMENTS, "train": (None, "2020-03-31")}, "segment train on, and it has an open end"),
        ({**SEGMENTS, "test": ("2021-05-01", "2021-06-12")}, "segment test, 2021-05-01 to"),
        ({**SEGMENTS, "valid": ("2020-04-01", "2020-05-04")}, "would be known in the next"),
    ],
)
def test_segments_that_cannot_be_rolled_are_refused_before_any_training(segments, message):
    dataset = windows()
    dataset.segments = segments
    with pytest.raises(ConfigError, match=message):
        RollingModel(GRU).fit(dataset)


@pytest.mark.parametrize(
    ("model", "how", "message"),
    [
        ({**GRU, "kwargs": {"weights": "x"}}, {}, "nothing of this GRUModel is trained"),
        ({**KRONOS, "kwargs": {}}, {}, "nothing of this KronosModel is trained"),
        (GRU, {"retrain": "heads"}, "trains the alpha head of a KronosModel again"),
        (GRU, {"every": 0}, "every must be a whole number"),
        (GRU, {"train": "growing"}, "train"),
        (GRU, {"purge": -1}, "purge is a number of bars"),
        (
            {"class": "LinearModel", "module_path": "qlib.contrib.model.linear", "kwargs": {}},
            {"start": "warm"},
            "LinearModel learns anew each time",
        ),
        ("GRUModel", {}, "is the config of a model"),
    ],
)
def test_what_cannot_be_trained_again_is_refused(model, how, message):
    with pytest.raises(ConfigError, match=message):
        RollingModel(model, **how)


def test_a_label_that_is_not_to_be_found_is_asked_for(bars):
    frame = table().handler.fetch(col_set=["feature", "label"], data_key="raw")
    from qlib.data.dataset import DatasetH
    from qlib.data.dataset.handler import DataHandlerLP
    from qlib.data.dataset.loader import StaticDataLoader

    dataset = DatasetH(DataHandlerLP(data_loader=StaticDataLoader(frame)), SEGMENTS)
    with pytest.raises(ConfigError, match="say with RollingModel's `purge`"):
        RollingModel(TREES, every=12).fit(dataset)
    model = RollingModel(TREES, every=12, purge=2)
    model.fit(dataset)
    assert [roll.segments["valid"][1] for roll in model.rolls] == [
        "2020-04-28",
        "2020-05-14",
        "2020-06-01",
    ]


# Trainings.


@pytest.fixture(scope="module")
def rolled(provider, tmp_path_factory):
    """Trees, rolled once, and where their trainings are kept."""
    open_provider(provider)
    folder = tmp_path_factory.mktemp("kept") / "rolls"
    with metrics_dropped():
        return trained(folder, TREES, table()), folder


def test_each_day_is_scored_by_the_training_in_force(rolled):
    model, _ = rolled
    dataset = table()
    scores = model.predict(dataset)
    days = scores.index.get_level_values("datetime")
    calendar = pd.DatetimeIndex(read_calendar("day"))
    assert days.unique().equals(
        calendar[(calendar >= "2020-05-01") & (calendar <= "2020-06-12")].rename("datetime")
    )
    assert scores.index.is_unique
    for number, roll in enumerate(model.rolls):
        part = dict(zip(("first", "last"), roll.segments["test"], strict=True))
        dataset.segments = {**SEGMENTS, "test": (part["first"], part["last"])}
        alone = model._model_of(roll).predict(dataset).sort_index()
        np.testing.assert_array_equal(scores.loc[alone.index].to_numpy(), alone.to_numpy())
        if number:
            before = model._model_of(model.rolls[number - 1]).predict(dataset).sort_index()
            assert (before.to_numpy() != alone.to_numpy()).any()
    # A day before the first roll is its own, as in any run; one beyond the last is the newest's.
    dataset.segments = SEGMENTS
    early = model.predict(dataset, ("2020-04-30", "2020-05-01"))
    assert early.index.get_level_values("datetime").nunique() == 2
    with pytest.raises(KronosError, match="has no day to score"):
        model.predict(dataset, ("2031-01-01", "2031-02-01"))


def test_a_pickle_scores_alike(rolled):
    model, _ = rolled
    again = pickle.loads(pickle.dumps(model))
    pd.testing.assert_series_equal(again.predict(table()), model.predict(table()))


def test_a_start_after_a_kill_does_the_missing_rolls_alone(rolled, tmp_path, monkeypatch):
    model, _ = rolled
    folder, kept, keep = tmp_path / "rolls", [], RollStore.keep

    def killed(store, key, what, about):
        if len(kept) == 2:
            raise KeyboardInterrupt
        kept.append(key)
        keep(store, key, what, about)

    monkeypatch.setattr(RollStore, "keep", killed)
    with pytest.raises(KeyboardInterrupt):
        trained(folder, TREES, table())
    monkeypatch.setattr(RollStore, "keep", keep)
    again = trained(folder, TREES, table())
    assert [roll.seconds > 0 for roll in again.rolls] == [False, False, True]
    assert [roll.kept.files for roll in again.rolls] == [roll.kept.files for roll in model.rolls]
    other = trained(folder, {**TREES, "kwargs": {**TREES["kwargs"], "num_leaves": 5}}, table())
    assert all(roll.seconds > 0 for roll in other.rolls), "other settings are other trainings"


@pytest.mark.parametrize(("config", "data"), [(TREES, table), (GRU, windows)], ids=["trees", "gru"])
def test_bars_after_a_rolls_start_change_nothing_in_what_it_learned(bars, config, data, tmp_path):
    """To the folder of finished trainings too: a later bar is no reason to train again."""
    folder = tmp_path / "rolls"
    every = 12 if config is TREES else 20
    model = trained(folder, config, data(), every=every)
    begun = model.rolls[1].segments["test"][0]
    changed = bars.copy()
    later = changed["date"] >= begun
    rng = np.random.default_rng(0)
    columns = ["open", "high", "low", "close"]
    changed.loc[later, columns] = changed.loc[later, columns].to_numpy() * np.exp(
        rng.normal(0, 0.1, (later.sum(), 1))
    )
    write_provider(changed, tmp_path / "qlib", benchmark="MEAN")
    open_provider(tmp_path / "qlib")
    again = trained(folder, config, data(), every=every)
    assert [roll.seconds > 0 for roll in again.rolls] == [False, False, True][: len(model.rolls)]
    if config is TREES:
        anew = trained(None, config, data())
        assert [one.kept.files for one in anew.rolls[:2]] == [
            one.kept.files for one in model.rolls[:2]
        ]


def test_no_score_of_a_roll_knows_a_later_bar_and_trees_are_purged(bars):
    """Moments: the first days of rolls, on which labels of the days before are half known."""

    def scores_of(folder: Path) -> pd.Series:
        return trained(None, TREES, table()).predict(table())

    calendar = pd.DatetimeIndex(read_calendar("day"))
    firsts = [one["test"][0] for one in rolls_of(SEGMENTS, calendar.to_numpy(), 12, "expanding")]
    assert check_lookahead(bars, scores_of, firsts[:2]).moved > 0.5


@pytest.mark.parametrize("config", [TREES, blend()], ids=["trees", "gru and trees"])
def test_warm_goes_on_and_is_the_same_after_a_kill(config, tmp_path, monkeypatch):
    data = table if config is TREES else windows
    model = trained(tmp_path / "one", config, data(), start="warm", every=20)
    cold = trained(None, config, data(), every=20) if config is TREES else None
    keep, kept = RollStore.keep, []

    def killed(store, key, what, about):
        if kept:
            raise KeyboardInterrupt
        kept.append(key)
        keep(store, key, what, about)

    monkeypatch.setattr(RollStore, "keep", killed)
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "two", config, data(), start="warm", every=20)
    monkeypatch.setattr(RollStore, "keep", keep)
    again = trained(tmp_path / "two", config, data(), start="warm", every=20)
    assert [roll.seconds > 0 for roll in again.rolls] == [False, True]
    assert again.rolls[1].kept.files == model.rolls[1].kept.files
    if cold is not None:  # trees are added to those that were there
        texts = [roll.kept.files["lightgbm.txt"].decode() for roll in model.rolls]
        assert texts[1].count("Tree=") > texts[0].count("Tree=")
        assert model.rolls[0].kept.files == cold.rolls[0].kept.files
        assert model.rolls[1].kept.files != cold.rolls[1].kept.files


def test_heads_alone_leave_the_backbone_of_the_first_training(tmp_path):
    backbone = {**KRONOS, "kwargs": {**KRONOS["kwargs"]}}
    backbone["kwargs"]["training"] = {"alpha": {"epochs": 1, "hidden": 4, "backbone": "whole"}}
    model = trained(tmp_path, backbone, windows(), retrain="heads", every=20)
    one, other = (roll.kept.files for roll in model.rolls)
    assert one["predictor.safetensors"] == other["predictor.safetensors"]
    assert one["alpha.safetensors"] != other["alpha.safetensors"]
    assert list((tmp_path / "contexts").rglob("*")), "contexts are read once"
    assert np.isfinite(model.predict(windows())).all()


def test_a_damaged_training_is_said(rolled, tmp_path):
    _, folder = rolled
    place = next(path for path in folder.iterdir() if (path / "weights").is_dir())
    copy = tmp_path / "abc"
    (copy / "weights").mkdir(parents=True)
    (copy / "weights" / "state.json").write_text("{")
    with pytest.raises(KronosError, match="move it away, and it is trained again"):
        RollStore(tmp_path).find("abc")
    assert RollStore(folder).find(place.name) is not None
    assert RollStore(folder).find("none") is None


# As a run.


def test_a_workflow_is_rolled_as_one_run_beside_the_one_that_is_not(
    provider, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(estimate, "PROBE_SECONDS", 0.0)  # a few windows will do
    for name in [name for name in os.environ if name.startswith("KRONOS_")]:
        monkeypatch.delenv(name)
    records = [
        {
            "class": "KronosSignalRecord",
            "module_path": "kronos_qlib.plugin.records",
            "kwargs": {"model": "<MODEL>", "dataset": "<DATASET>"},
        },
        {
            "class": "ForecastReportRecord",
            "module_path": "kronos_qlib.plugin.records",
            "kwargs": {"model": "<MODEL>", "dataset": "<DATASET>"},
        },
        {"class": "SigAnaRecord", "module_path": "qlib.workflow.record_temp", "kwargs": {}},
    ]
    uri = f"sqlite:///{Path.cwd().as_posix()}/mlflow.db"  # MLflow keeps a relative one open
    config = {
        "qlib_init": {
            "provider_uri": str(provider),
            "region": "us",
            "exp_manager": {
                "class": "KronosExpManager",
                "module_path": "kronos_qlib.plugin.runs",
                "kwargs": {"uri": uri, "default_exp_name": "workflow"},
            },
        },
        "experiment_name": "gru",
        "task": {
            "model": GRU,
            "dataset": {
                "class": "KronosDataset",
                "module_path": "kronos_qlib.plugin.dataset",
                "kwargs": {
                    "handler": {
                        "class": "KronosHandler",
                        "module_path": "kronos_qlib.plugin.dataset",
                        "kwargs": {"end_time": "2020-06-12"},
                    },
                    "segments": {name: list(ends) for name, ends in SEGMENTS.items()},
                    "lookback": 10,
                    "horizon": 2,
                },
            },
            "record": records,
        },
    }
    Path("gru.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    before = mlflow.get_tracking_uri()
    try:
        assert main(["roll", "gru.yaml", "--every", "12"]) == 0
        said = capsys.readouterr().out
        assert "rolls     3: the first scores 2020-05-01 to 2020-05-18, the last" in said
        assert "note: ForecastReportRecord is left out" in said
        assert "done: experiment gru_rolled" in said
        config["task"]["record"] = [records[0], records[2]]
        Path("gru.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
        assert main(["run", "gru.yaml"]) == 0
        found = compare(["gru", "gru_rolled"], tracking_uri=uri)
        assert found.signals is not None
        assert found.signals.pairs[0].difference is not None
        scored = score_newest("gru_rolled", tracking_uri=uri, day="2020-06-12")
        version, _ = register("gru_rolled", "gru", tracking_uri=uri)
        registered = newest_scores("models:/gru@champion", tracking_uri=uri, day="2020-06-12")
    finally:
        mlflow.set_tracking_uri(before)
    assert "Trained again" in found.settings.index
    assert "every 12" in found.settings.loc["Trained again", "gru_rolled"]
    client = mlflow.MlflowClient(uri)
    run = client.get_run(version.run_id)
    assert run.info.run_name.startswith("GRUModel retrained every 12")
    assert len(list(Path("rolls", "gru_rolled").glob("*/about.json"))) == 3
    # The newest day is scored by the newest roll's model, as the run itself scored it.
    signal = read_signal(client, run)
    last = signal.score.xs(pd.Timestamp("2020-06-12"), level="datetime")
    for table in (scored.table.set_index("instrument")["score"], registered.table["score"]):
        np.testing.assert_allclose(table.reindex(last.index), last, rtol=1e-5)
    assert signal.score.index.get_level_values("datetime").nunique() == 31


def test_a_rolling_model_is_not_rolled_again():
    model = {"class": "RollingModel", "kwargs": {"model": GRU}}
    with pytest.raises(ConfigError, match="run it with kronos-qlib run"):
        RolledWorkflow().of({"task": {"model": model}}, Path("own.yaml"))
