"""`kronos-qlib score`: the newest day has the bits that a backtest would give it."""

from __future__ import annotations

import copy
import json

import mlflow
import pandas as pd
import pytest
from qlib.model.trainer import task_train

from kronos_qlib.cli.main import main
from kronos_qlib.errors import ConfigError, MissingArtifactError, UnsafeArtifactError
from kronos_qlib.plugin.explain.reasons import reasons_of
from kronos_qlib.plugin.explain.reasons_text import reasons_text
from kronos_qlib.plugin.expressions import is_expression
from kronos_qlib.plugin.lookahead import open_provider
from kronos_qlib.plugin.runs import newest_day as score
from kronos_qlib.plugin.runs.known_tasks import check_known
from kronos_qlib.plugin.runs.newest_day import open_run, score_newest, score_opened

pytestmark = pytest.mark.integration

NEWEST = "2020-12-30"
SEGMENTS = {
    "train": ("2020-01-01", "2020-08-31"),
    "valid": ("2020-09-01", "2020-10-15"),
    "test": ("2020-12-15", NEWEST),
}
QUIET = {"device": "cpu", "show_progress": False}
HANDLER = {
    "class": "KronosHandler",
    "module_path": "kronos_qlib.plugin.dataset",
    "kwargs": {"instruments": "all", "end_time": NEWEST},
}
WINDOWS = {
    "class": "KronosDataset",
    "module_path": "kronos_qlib.plugin.dataset",
    "kwargs": {"handler": HANDLER, "segments": SEGMENTS, "lookback": 20, "horizon": 3},
}
TABLES = {
    "class": "DatasetH",
    "module_path": "qlib.data.dataset",
    "kwargs": {
        "handler": {
            "class": "Alpha158",
            "module_path": "qlib.contrib.data.handler",
            "kwargs": {
                "instruments": "all",
                "start_time": "2020-01-01",
                "end_time": NEWEST,
                "fit_start_time": "2020-01-01",
                "fit_end_time": "2020-08-31",
                "label": ["Ref($close, -2) / Ref($close, -1) - 1"],
                "infer_processors": [
                    {"class": "RobustZScoreNorm", "kwargs": {"fields_group": "feature"}},
                    {"class": "Fillna", "kwargs": {"fields_group": "feature"}},
                ],
                "learn_processors": [{"class": "DropnaLabel"}],
            },
        },
        "segments": SEGMENTS,
    },
}


def kronos(**kwargs):
    return {
        "class": "KronosModel",
        "module_path": "kronos_qlib.plugin.model",
        "kwargs": {**QUIET, "sampling": {"paths": 2}, **kwargs},
    }


TREES = {
    "class": "LGBModel",
    "module_path": "qlib.contrib.model.gbdt",
    "kwargs": {"num_boost_round": 12, "early_stopping_rounds": 4, "num_leaves": 6},
}
LINEAR = {"class": "LinearModel", "module_path": "qlib.contrib.model.linear"}
REVERSAL = {
    "class": "BaselineModel",
    "module_path": "kronos_qlib.plugin.baselines",
    "kwargs": {"kind": "reversal"},
}
STAGE = {"epochs": 1, "windows_per_epoch": 32, "validation_windows": 16, "batch_size": 16}
HEAD = {"epochs": 1, "hidden": 8, "context_width": 2, "windows_per_day": 6}
BLEND = {
    "class": "BlendModel",
    "module_path": "kronos_qlib.plugin.blend",
    "kwargs": {"members": [REVERSAL, {**TREES, "dataset": TABLES}], "weights": [1, 2]},
}
RUNS = {
    "zero_shot": (kronos(), WINDOWS),
    "tuned": (kronos(training={"predictor": {**STAGE, "learning_rate": 0.001}}), WINDOWS),
    "alpha": (kronos(training={"alpha": HEAD}), WINDOWS),
    "trees": (TREES, TABLES),
    "linear": (LINEAR, TABLES),
    "reversal": (REVERSAL, WINDOWS),
    "blend": (BLEND, WINDOWS),
}
RECORD = {
    "class": "KronosSignalRecord",
    "module_path": "kronos_qlib.plugin.records.signal_record",
    "kwargs": {"model": "<MODEL>", "dataset": "<DATASET>"},
}


@pytest.fixture(scope="module")
def place(provider, tmp_path_factory):
    """Where runs are kept, by their URI; a run is made when it is first asked for."""
    folder = tmp_path_factory.mktemp("runs")
    return f"sqlite:///{(folder / 'mlflow.db').as_posix()}"


def run(place, provider, name, model, dataset):
    """One run of a workflow, without a backtest."""
    manager = {
        "class": "KronosExpManager",
        "module_path": "kronos_qlib.plugin.runs.manager",
        "kwargs": {"uri": place, "default_exp_name": "workflow"},
    }
    before = mlflow.get_tracking_uri()
    open_provider(provider, exp_manager=manager)
    try:
        task = copy.deepcopy({"model": model, "dataset": dataset, "record": [RECORD]})
        recorder = task_train(task, experiment_name=name)
    finally:
        mlflow.set_tracking_uri(before)
    return recorder


def kept_scores(place, recorder) -> pd.Series:
    path = mlflow.MlflowClient(place).download_artifacts(recorder.id, "scores.parquet")
    return pd.read_parquet(path).set_index(["datetime", "instrument"])["score"]


@pytest.mark.parametrize("name", RUNS)
def test_a_day_is_scored_as_in_the_run_that_covers_it(place, provider, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    recorder = run(place, provider, name, *RUNS[name])
    expected = kept_scores(place, recorder)
    before = sorted(tmp_path.iterdir())
    for day in (None, "2020-12-21"):
        found = score_newest(name, tracking_uri=place, day=day)
        assert found.day == pd.Timestamp(day or NEWEST) and found.run_id == recorder.id
        scores = found.table.set_index("instrument")["score"].sort_index()
        wanted = expected.xs(found.day).dropna().sort_index()
        if name == "linear":
            # Qlib multiplies all rows of a segment at once, in float32: how they round depends on
            # how many there are, in a backtest too.
            pd.testing.assert_series_equal(scores, wanted, rtol=1e-3, check_names=False)
        else:
            pd.testing.assert_series_equal(scores, wanted, check_exact=True, check_names=False)
        assert found.table["rank"].tolist() == list(range(1, len(wanted) + 1))
        assert found.table["score"].is_monotonic_decreasing
    assert sorted(tmp_path.iterdir()) == before


def test_a_run_that_ended_before_scores_the_day_of_one_that_covers_it(
    place, provider, tmp_path, monkeypatch
):
    """Tomorrow's ranking comes from the run of last month."""
    monkeypatch.chdir(tmp_path)
    config = json.loads(json.dumps(WINDOWS))
    config["kwargs"]["segments"]["test"] = ["2020-12-01", "2020-12-10"]
    config["kwargs"]["handler"]["kwargs"]["end_time"] = "2020-12-10"
    model = kronos(training={"alpha": HEAD})
    run(place, provider, "early", model, config)
    late = kept_scores(place, run(place, provider, "late", model, WINDOWS))
    found = score_newest("early", tracking_uri=place)
    scores = found.table.set_index("instrument")["score"].sort_index()
    wanted = late.xs(pd.Timestamp(NEWEST)).sort_index()
    pd.testing.assert_series_equal(scores, wanted, check_exact=True, check_names=False)


def test_the_command_prints_and_writes_the_ranking(place, provider, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    recorder = run(place, provider, "shown", *RUNS["reversal"])
    capsys.readouterr()
    asked = ["score", "shown", "--tracking-uri", place, "--top", "2"]
    assert main(asked) == 0
    said = capsys.readouterr().out.splitlines()
    table = pd.read_csv(tmp_path / "score.csv", dtype={"instrument": str})
    expected = ["rank", "instrument", "score", "last_bar", "age_days"]
    assert table.columns.to_list() == expected
    assert table["age_days"].eq(0).all() and set(table["last_bar"]) == {NEWEST}
    shown = [line.split() for line in said if line.split()[:1] in (["1"], ["2"], ["3"])]
    assert [row[1] for row in shown] == table["instrument"].head(2).to_list()
    assert said[-1].startswith(f"shown, run {recorder.id[:8]}: {len(table)} names scored on 2020-")
    assert main(asked) == 2
    assert "score.csv exists" in capsys.readouterr().err
    assert main(["score", recorder.id[:10], *asked[2:], "--overwrite"]) == 0
    assert main(["score", "shwon", *asked[2:], "--overwrite"]) == 2
    assert "did you mean 'shown'" in capsys.readouterr().err
    for more, told in (
        (["--day", "2020-12-26"], "has no bars at 2020-12-26"),
        (["--provider-uri", "nowhere"], "nowhere (a relative path is looked for from"),
        (["--top", "0"], "--top must be at least 1"),
    ):
        assert main([*asked, "--overwrite", *more]) == 2
        assert told in capsys.readouterr().err


def test_names_without_a_bar_of_the_day_are_told_with_their_age(place, bars, tmp_path, monkeypatch):
    from kronos_qlib.plugin.provider.writer import write_provider

    monkeypatch.chdir(tmp_path)
    first, second = sorted(bars["symbol"].unique())[:2]
    late = bars[~((bars["symbol"] == first) & (bars["date"] > "2020-12-24"))]
    late = late[~((late["symbol"] == second) & (late["date"] < "2020-12-22"))]
    write_provider(late, tmp_path / "qlib", benchmark="BENCH", future_bars=20)
    run(place, tmp_path / "qlib", "stale", *RUNS["reversal"])
    found = score_newest("stale", tracking_uri=place)
    assert not {first, second} & set(found.table["instrument"])
    assert f"{first} 2020-12-24 (6 days old)" in " ".join(found.notes)
    assert any(f"and no score: {second}" in note for note in found.notes)


# Why a name stands where it stands.


@pytest.mark.parametrize("name", ["alpha", "trees", "blend"])
def test_reasons_are_of_the_score_that_the_ranking_shows(
    place, provider, tmp_path, monkeypatch, name
):
    monkeypatch.chdir(tmp_path)
    run(place, provider, f"{name}_why", *RUNS[name])
    opened = open_run(f"{name}_why", tracking_uri=place)
    ranking = score_opened(opened).table.set_index("instrument")
    for instrument in (ranking.index[0], ranking.index[-1]):
        found = reasons_of(opened.model, opened.dataset, instrument, opened.day)
        shown = ranking.loc[instrument]
        assert found.score == shown["score"] and found.names == len(ranking)
        assert found.rank == 1 + (ranking["score"] > shown["score"]).sum()
        text = reasons_text(found, top=3)
        assert text.startswith(f"{instrument} is number {found.rank} of {len(ranking)} on {NEWEST}")
        if name == "blend":
            assert list(found.parts) == ["LGBModel"] and list(found.unexplained) == [
                "BaselineModel"
            ]
            assert found.weights == {"BaselineModel": 1 / 3, "LGBModel": 2 / 3}
            assert "BaselineModel (33%) and LGBModel (67%)" in text
            continue
        [part] = found.parts.values()
        assert part.score == pytest.approx(found.score, rel=1e-5, abs=1e-6)
        assert (part.rank, part.names) == (found.rank, found.names)
        assert ("context" in part.table.index) == (name == "alpha")
        if name == "trees":
            assert {"KMID", "ROC5"} < set(part.table.index)
            assert part.rest == pytest.approx(0, abs=1e-9)


def test_the_command_says_why(place, provider, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run(place, provider, "said", *RUNS["alpha"])
    instrument = score_newest("said", tracking_uri=place).table["instrument"][0]
    capsys.readouterr()
    asked = ["score", "said", "--tracking-uri", place, "--why"]
    assert main([*asked, instrument, "--top", "4"]) == 0
    said = capsys.readouterr().out
    assert f"{instrument} is number 1 of" in said and "Kronos' context" in said
    assert "others" in said and not (tmp_path / "score.csv").exists()
    assert main([*asked, instrument, "--out", "why.csv"]) == 0
    table = pd.read_csv("why.csv")
    assert set(table["kind"]) == {"context", "scale"} and table["model"].eq("KronosModel").all()
    assert main([*asked, "NOBODY"]) == 1
    assert "NOBODY has no score on 2020-12-30" in capsys.readouterr().err
    run(place, provider, "unexplained", *RUNS["reversal"])
    assert main(["score", "unexplained", *asked[2:], instrument]) == 2
    assert "a BaselineModel is not parted among its inputs" in capsys.readouterr().err


# What is not made again unasked.


def test_a_model_that_is_a_pickle_alone_is_not_read_unasked(place, provider, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recorder = run(place, provider, "old", *RUNS["trees"])
    expected = kept_scores(place, recorder).xs(pd.Timestamp(NEWEST)).sort_index()
    listed = score.artifacts
    monkeypatch.setattr(
        "kronos_qlib.plugin.runs.newest_day.artifacts",
        lambda client, run_id, folder=None: [] if folder == "weights" else listed(client, run_id),
    )
    with pytest.raises(ConfigError, match="--provider-uri"):
        score_newest("old", tracking_uri=place)
    where = {"tracking_uri": place, "provider_uri": str(provider)}
    with pytest.raises(MissingArtifactError, match=r"as a pickle alone.*--trust"):
        score_newest("old", **where)
    scores = score_newest("old", **where, trust=True).table.set_index("instrument")["score"]
    pd.testing.assert_series_equal(
        scores.sort_index(), expected, check_exact=True, check_names=False
    )


@pytest.mark.parametrize(
    "dataset",
    [
        {"class": "Popen", "module_path": "subprocess", "kwargs": {"args": "ls"}},
        {"class": "subprocess.Popen", "kwargs": {"args": "ls"}},
        {"class": "KronosDataset", "module_path": "evil.py"},
        {"class": "DatasetH", "module_path": "qlib.data.dataset", "kwargs": {"handler": "a.Evil"}},
        {"class": "KronosDataset"},
        {"func": "system", "module_path": "os"},
        {**WINDOWS, "kwargs": {"handler": "file:///tmp/evil.pkl"}},
        {**WINDOWS, "kwargs": {"handler": {**HANDLER, "kwargs": {"label": "__import__('os')"}}}},
        {**WINDOWS, "kwargs": {"handler": {**HANDLER, "kwargs": {"label": "().__class__"}}}},
        {**TABLES, "kwargs": {"learn_processors": ["evil.Processor"]}},
        {**TABLES, "kwargs": {"infer_processors": [{"class": "Popen"}]}},
        {**WINDOWS, "kwargs": {"bar_handler": {"fields": {"amount": "(lambda: 1)()"}}}},
        {**TABLES, "kwargs": {"data_loader": "qlib.data.dataset.loader.StaticDataLoader"}},
    ],
)
def test_a_task_that_names_what_is_not_known_is_refused(dataset):
    """A task is a program: Qlib imports what it names and evaluates its expressions."""
    with pytest.raises(UnsafeArtifactError, match="--trust"):
        check_known({"model": REVERSAL, "dataset": dataset})
    with pytest.raises(UnsafeArtifactError):
        check_known({"model": dataset, "dataset": WINDOWS})


@pytest.mark.parametrize("name", RUNS)
def test_the_tasks_of_our_workflows_are_known(name):
    model, dataset = RUNS[name]
    check_known({"model": model, "dataset": dataset})


@pytest.mark.parametrize(
    ("text", "is_one"),
    [
        ("Ref($close, -2) / Ref($close, -1) - 1", True),
        ("If($close > $open, $$roe, -Mean($volume, 5))", True),
        ("$volume * $vwap", True),
        ("Ref($close, -2).__class__()", False),
        ("eval('1')()", False),
        ("[Ref($close, 1) for x in y]", False),
        ("Ref($close, N=1)", False),
        ("__import__('os')", False),
        ("Ref($close", False),
    ],
)
def test_an_expression_is_operators_on_fields(text, is_one):
    assert is_expression(text) is is_one
