"""What would fail hours into a run is said before it begins, at once, and what works is let be."""

from __future__ import annotations

import copy
import logging
import re
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kronos_qlib.cli.main import _one_line
from kronos_qlib.errors import ConfigError, RefusedRunError
from kronos_qlib.model.checkpoints import pretrained as checkpoint
from kronos_qlib.plugin.preflight import run_outputs
from kronos_qlib.plugin.preflight.checks import check_run
from kronos_qlib.plugin.preflight.run_outputs import why_unwritable
from kronos_qlib.plugin.workflows.workflow_file import read_workflow

pytestmark = pytest.mark.integration

WORKFLOWS = Path(__file__).parents[2] / "workflows"
SEGMENTS = {
    "train": ["2020-01-01", "2020-06-30"],
    "valid": ["2020-07-01", "2020-09-30"],
    "test": ["2020-10-01", "2020-12-01"],
}


@pytest.fixture
def config(provider, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    handler = {"instruments": "all", "start_time": "2020-01-01", "end_time": "2020-12-30"}
    return {
        "qlib_init": {
            "provider_uri": str(provider),
            "exp_manager": {"kwargs": {"uri": "sqlite:///mlflow.db"}},
        },
        "experiment_name": "some",
        "task": {
            "model": {"class": "KronosModel", "kwargs": {"checkpoint": "nano"}},
            "dataset": {
                "class": "KronosDataset",
                "kwargs": {
                    "handler": {"class": "KronosHandler", "kwargs": handler},
                    "segments": copy.deepcopy(SEGMENTS),
                },
            },
            "backtest": {"benchmark": "BENCH", "topk": 4, "n_drop": 1},
            "record": "<records.of_scores>",
            "records": {"of_scores": [{"class": "BacktestRecord"}]},
        },
    }


def put(config, path, value):
    *names, last = path.split(".")
    for name in names:
        config = config[int(name) if isinstance(config, list) else name]
    config[last] = value


def put_of(config, path):
    for name in path.split("."):
        config = config[name]
    return config


HANDLER = "task.dataset.kwargs.handler.kwargs"
SPANS = "task.dataset.kwargs.segments"


def problems_of(config):
    with pytest.raises(RefusedRunError) as refused:
        check_run(config)
    assert isinstance(refused.value, ConfigError)
    return list(refused.value.problems)


def test_a_run_that_can_work_is_let_go_and_leaves_nothing(config, tmp_path, caplog):
    check_run(config)
    assert not list(tmp_path.iterdir()) and not caplog.records


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        ("qlib_init.provider_uri", "no/where", r"no Qlib folder .*no/where .*convert"),
        (f"{HANDLER}.instruments", "al", r"market 'al' has no file .*did you mean 'all'\?"),
        (f"{HANDLER}.instruments", "csi300", r"'csi300' has no file .*; there are all"),
        (f"{HANDLER}.instruments", ["NOBODY"], r"no name of the 1 names is in .*features/nobody"),
        (f"{HANDLER}.freq", "5min", r"no bars of freq '5min'.*only day.txt; give freq"),
        (f"{HANDLER}.freq", "hourly", r"no freq 'hourly', give day"),
        ("task.backtest.benchmark", "BENHC", r"benchmark BENHC has no bars.*write BENCH for"),
        ("task.backtest.benchmark", ["BENCH", "NO"], r"benchmark NO has no bars"),
        ("task.backtest.benchmark", None, r"backtest.benchmark is missing"),
        ("task.backtest", None, r"task.backtest is missing"),
        ("task.backtest.start_time", "2031-01-01", r"BENCH has no bars.*go from 2020-01-0\d to"),
        ("task.backtest.topk", 9, r"topk 9 is more than the 8 names .*2020-10-01 to 2020-12-01"),
        ("task.backtest.n_drop", 5, r"n_drop lie between 1 and topk, got 4 and 5"),
        ("task.backtest.tpok", 5, r"'tpok'; did you mean 'topk'"),
        (f"{SPANS}.train", ["2020-01-01", "2020-07-01"], r"train ends at 2020-07-01 and valid be"),
        (f"{SPANS}.valid", ["2020-09-30", "2020-07-01"], r"valid ends at .*before it begins"),
        (f"{SPANS}.test", ["2023-01-01", "2023-02-01"], r"segments.test, 2023-01-01 to 2023-02-01"),
        (f"{SPANS}.test", "2020", r"the segment test is a pair"),
        (f"{HANDLER}.end_time", "2020-09-30", r"segments.test.*after the handler's end_time"),
        (f"{HANDLER}.start_time", "2020-07-01", r"segments.train.*before the handler's start_time"),
        (f"{HANDLER}.fit_end_time", "2020-07-01", r"fit_end_time 2020-07-01 lies after .*06-30"),
        ("task.model.kwargs.checkpoint", "nanoo", r"no predictor at 'nanoo'.*mean 'nano'"),
        ("task.model.kwargs.checkpoint", "empty", r"config.json is missing.*holds nothing"),
        ("task.model.kwargs.tokenizer", "smal", r"no tokenizer at 'smal'"),
        ("task.model.kwargs.alpha_head", "empty", r"alpha_head empty holds no config.json"),
        ("task.model.kwargs.calibration", "none.json", r"none.json holds no calibration"),
        ("task.model.kwargs.calibration", "file", r"file holds no calibration"),
        ("task.model.kwargs.resume_folder", "file", r"resume_folder .*file is no folder; name"),
        ("task.model.kwargs.resume_folder", "file/in", r"resume_folder .*file is no folder; name"),
        ("task.model.kwargs.contexts_folder", "file", r"contexts_folder .*file is no folder; name"),
        ("qlib_init.exp_manager.kwargs.uri", "sqlite:///file/a.db", r"MLflow store.*is no folder"),
        ("qlib_init.exp_manager.kwargs.uri", "sqlite:///empty", r"names a folder.*empty/mlflow.db"),
        ("qlib_init.exp_manager.kwargs.uri", "file:file", r"MLflow store file:file cannot be"),
    ],
)
def test_what_would_fail_late_is_said_with_its_remedy(config, tmp_path, path, value, says):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    put(config, path, value)
    (problem,) = problems_of(config)
    assert "\n" not in problem
    assert re.search(says, problem), problem


def test_everything_is_said_at_once_a_line_for_each(config, tmp_path):
    """One error a run, each after minutes of training, were three evenings."""
    put(config, "task.backtest.benchmark", "BENHC")
    put(config, "task.backtest.topk", 90)
    put(config, f"{SPANS}.train", ["2020-01-01", "2020-08-01"])
    put(config, "task.model.kwargs.checkpoint", "nanoo")
    (tmp_path / "mlruns").touch()
    found = problems_of(config)
    assert len(found) == 5
    for words in ("train ends", "BENHC", "topk 90", "predictor at", "artifacts"):
        assert any(words in problem for problem in found), words
    said = str(RefusedRunError(found)).splitlines()
    assert said[0].startswith("this run would fail for 5 reasons") and len(said) == 6
    assert _one_line(RefusedRunError(found)).count("\n") == 5


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (f"{SPANS}.test", ["2020-10-01", "2020-12-31"]),
        (f"{SPANS}.test", ["2020-10-01", None]),
        (f"{SPANS}.later", ["1990-01-01", "1991-01-01"]),
        (f"{HANDLER}.instruments", {"market": "all", "filter_pipe": []}),
        (f"{HANDLER}.instruments", ["SYM0001", "SYM0002", "SYM0003", "SYM0004", "NOBODY"]),
        ("task.dataset.kwargs.handler", object()),
        ("task.dataset", object()),
        ("task.model", object()),
        ("task.backtest.benchmark", ["SYM0001", "SYM0002"]),
        ("task.record", {"class": "SigAnaRecord"}),
        ("task.record", None),
        ("task.model.kwargs.checkpoint", "somebody/somewhere"),
        ("task.model.kwargs.tokenizer", ""),
        ("qlib_init.calendar_provider", {"class": "Other"}),
        ("qlib_init.exp_manager.kwargs.uri", "http://localhost:1"),
        ("task", None),
    ],
)
def test_what_works_or_is_not_known_here_is_let_be(config, path, value, monkeypatch):
    monkeypatch.setattr(checkpoint, "fetch", lambda *_: pytest.fail("the Hub was asked"))
    put(config, path, value)
    check_run(config)


def test_a_crowded_book_and_a_cut_segment_are_worth_a_word_alone(config, caplog):
    put(config, "task.backtest.topk", 7)
    put(config, f"{SPANS}.test", ["2020-10-01", "2022-12-31"])
    check_run(config)
    said = caplog.text
    assert "topk 7 holds more than half of the 8 names" in said
    assert "segments.test, 2020-10-01 to 2022-12-31, reaches beyond the calendar" in said


def test_names_that_left_before_the_test_segment_are_not_of_its_universe(
    config, provider, tmp_path
):
    folder = tmp_path / "left"
    shutil.copytree(provider, folder)
    path = folder / "instruments" / "all.txt"
    lines = path.read_text(encoding="utf-8").splitlines()
    gone = [f"{line.split(chr(9))[0]}\t2020-01-01\t2020-09-01" for line in lines[:6]]
    path.write_text("\n".join([*gone, *lines[6:]]) + "\n", encoding="utf-8")
    put(config, "qlib_init.provider_uri", str(folder))
    assert "topk 4 is more than the 2 names" in problems_of(config)[0]
    path.write_text("\n".join(gone) + "\n", encoding="utf-8")
    assert "no name of the market 'all' is in" in problems_of(config)[0]


def test_qlibs_own_record_is_looked_at_too(config):
    strategy = {"class": "TopkDropoutStrategy", "kwargs": {"topk": 9, "n_drop": 10}}
    record = {
        "class": "PortAnaRecord",
        "kwargs": {"config": {"strategy": strategy, "backtest": {"benchmark": "SH000300"}}},
    }
    put(config, "task.record", [record])
    found = problems_of(config)
    assert [any(word in each for each in found) for word in ("n_drop 10", "SH000300", "topk 9")]
    assert len(found) == 3


@pytest.mark.parametrize(
    ("name", "module", "kwargs", "says"),
    [
        ("ForecastReportRecord", "forecast_report", {"paths": 5}, "needs 19 paths .* got 5"),
        ("ForecastReportRecord", "forecast_report", {}, "needs 19 paths .* got 3"),
        ("ForecastReportRecord", "forecast_report", {"pahts": 5}, "cannot be made: .*pahts"),
        ("SignalReportRecord", "signal_report", {"horizons": [0]}, "horizons count bars"),
        ("SignalReport", "signal_report", {}, "SignalReport cannot be made"),
    ],
)
def test_reports_that_cannot_be_made_are_said(config, name, module, kwargs, says):
    """5 paths for a band of 90 % were refused by the fifth record, 12 minutes in."""
    put(config, "task.model.kwargs.sampling", {"paths": 3})
    place = f"kronos_qlib.plugin.records.{module}"
    record = {"class": name, "module_path": place, "kwargs": kwargs}
    put(config, "task.record", [record])
    (problem,) = problems_of(config)
    assert re.search(says, problem), problem


def test_members_of_a_blend_are_looked_at_and_their_data_sets(config):
    model = config["task"]["model"]
    other = copy.deepcopy(config["task"]["dataset"])
    other["kwargs"]["handler"]["kwargs"]["instruments"] = "al"
    members = [{**model, "name": "a"}, {**copy.deepcopy(model), "name": "b", "dataset": other}]
    members[1]["kwargs"]["checkpoint"] = "nanoo"
    put(config, "task.model", {"class": "BlendModel", "kwargs": {"members": members}})
    assert ["'al'" in each for each in problems_of(config)] == [True, False]


def test_a_full_disk_is_said_before_it_is_full(config, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(run_outputs.shutil, "disk_usage", lambda _: usage(1, 1, 21 * 2**20))
    check_run(config)  # 20 MiB of pages, and the scores of 8 names
    put(config, "task.model.kwargs.training", {"predictor": {"epochs": 1}})
    put(config, "task.model.kwargs.resume_folder", str(tmp_path / "states"))
    (problem,) = problems_of(config)
    # nano's predictor, 3.3 MB: twice with the run, and twelve times in its states.
    assert "has 21 MiB free, and the run writes about" in problem
    said = int(problem.split("about ")[1].split(" MiB")[0])
    size = checkpoint.check_there("predictor", "nano")
    assert said == pytest.approx(20 + 14 * size / 2**20, abs=1)


def test_every_training_of_a_roll_takes_its_disk(config, tmp_path, monkeypatch):
    """One training was counted, and the disk was full after some of them."""
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(run_outputs.shutil, "disk_usage", lambda _: usage(1, 1, 21 * 2**20))
    inner = put_of(config, "task.model")
    inner["kwargs"]["training"] = {"predictor": {"epochs": 1}}
    kwargs = {"every": 20, "folder": str(tmp_path / "rolls"), "model": inner}
    place = "kronos_qlib.plugin.rolling"
    put(config, "task.model", {"class": "RollingModel", "module_path": place, "kwargs": kwargs})
    (problem,) = problems_of(config)
    said = int(problem.split("about ")[1].split(" MiB")[0])
    size = checkpoint.check_there("predictor", "nano") / 2**20
    # 44 weekdays of the test, so 3 trainings: in params.pkl, in their folder, the newest as files.
    assert said == pytest.approx(20 + (3 + 3 + 1) * size, abs=1)
    inner["kwargs"]["resume_folder"] = str(tmp_path / "states")
    (problem,) = problems_of(config)
    said = int(problem.split("about ")[1].split(" MiB")[0])
    assert said == pytest.approx(20 + (3 + 3 + 1 + 3 * 12) * size, abs=1)


def test_artifacts_of_an_old_experiment_lie_where_the_store_says(config, tmp_path):
    (tmp_path / "other").touch()
    client = mlflow.MlflowClient("sqlite:///mlflow.db")
    client.create_experiment("some", (tmp_path / "other" / "runs").as_uri())
    (problem,) = problems_of(config)
    assert "the MLflow artifacts cannot be written" in problem and "other" in problem
    config["experiment_name"] = "another"
    check_run(config)


def test_a_folder_that_cannot_be_written_says_why(tmp_path):
    assert why_unwritable(tmp_path) == why_unwritable(tmp_path / "yet" / "to be") == ""
    (tmp_path / "file").touch()
    assert why_unwritable(tmp_path / "file" / "in") == f"{tmp_path / 'file'} is no folder"
    if Path("/proc").is_dir():  # where root cannot write either
        assert "/proc" in why_unwritable(Path("/proc/nowhere"))
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("name", ["kronos", "kronos_alpha", "kronos_zero_shot", "lightgbm"])
def test_shipped_workflows_pass(name, provider, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    dates = [day for span in SEGMENTS.values() for day in span]
    names = [f"{part}_{end}" for part in ("TRAIN", "VALID", "TEST") for end in ("START", "END")]
    given = dict(zip(names, dates, strict=True))
    given |= {"PROVIDER_URI": str(provider), "BENCHMARK": "BENCH", "TOPK": "3", "N_DROP": "1"}
    for key, value in (given | {"START": "2020-01-01"}).items():
        monkeypatch.setenv(f"KRONOS_{key}", value)
    config = read_workflow(WORKFLOWS / f"workflow_{name}.yaml").config
    check_run(config)
    config["task"]["backtest"]["benchmark"] = "NOBODY"
    assert len(problems_of(config)) == 1


def test_work_grows_with_names_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "large"
    for name in ("calendars", "instruments", "features/bench"):
        (folder / name).mkdir(parents=True)
    days = pd.bdate_range("2010-01-04", "2020-12-30")
    (folder / "calendars/day.txt").write_text("\n".join(days.strftime("%Y-%m-%d")) + "\n")
    names = [f"SH{number:06d}" for number in range(5000)]
    lines = [f"{name}\t2010-01-04\t2020-12-30" for name in names]
    (folder / "instruments/all.txt").write_text("\n".join(lines) + "\n")
    for name in names:
        (folder / "features" / name.lower()).mkdir()
    closes = np.ones(len(days) + 1, dtype="<f4")
    closes[0] = 0
    closes.tofile(folder / "features/bench/close.day.bin")
    handler = {"class": "Alpha158", "kwargs": {"instruments": "all"}}
    dataset = {"class": "DatasetH", "kwargs": {"handler": handler, "segments": SEGMENTS}}
    config = {
        "qlib_init": {"provider_uri": str(folder)},
        "task": {
            "dataset": dataset,
            "record": {"class": "BacktestRecord"},
            "backtest": {"benchmark": "BENCH", "topk": 50, "n_drop": 5},
        },
    }
    check_run(config)  # imports
    calls = 0

    def count(frame, event, argument):
        nonlocal calls
        calls += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        check_run(config)
    finally:
        sys.setprofile(None)
    assert calls < 100 * len(names)


scalars = st.none() | st.booleans() | st.integers(-5, 5) | st.floats() | st.text(max_size=4)
KEYS = """
    class kwargs handler segments instruments freq test train market topk benchmark members backtest
    dataset model record config checkpoint resume_folder training start_time
"""
keys = st.sampled_from(KEYS.split())
sections = st.recursive(
    scalars | st.dates() | st.sampled_from(["KronosModel", "BacktestRecord", "day", "<model>"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=5),
    max_leaves=25,
)


@given(task=st.dictionaries(keys, sections, max_size=6))
def test_no_task_breaks_the_check_itself(task, provider):
    """A run that Qlib takes must not fall over what was to protect it."""
    logging.disable(logging.CRITICAL)
    try:
        check_run({"qlib_init": {"provider_uri": str(provider)}, "task": task})
    except RefusedRunError as refused:
        assert refused.problems and all(refused.problems)
    finally:
        logging.disable(logging.NOTSET)


RUN = """
import logging, sys
import qlib
from qlib.model.trainer import task_train
uri = {"uri": "sqlite:///mlflow.db", "default_exp_name": "some"}
how = {"class": "KronosExpManager", "module_path": "kronos_qlib.plugin.runs.manager", "kwargs": uri}
qlib.init(provider_uri=sys.argv[1], region="us", exp_manager=how, logging_level=logging.WARNING)
task = {
    "model": {"class": "NoSuchModel", "module_path": "no.such.module"},
    "dataset": {"class": "DatasetH", "module_path": "qlib.data.dataset", "kwargs": {
        "handler": {"class": "Alpha158", "kwargs": {"instruments": "al"}},
        "segments": {"test": ["2020-10-01", "2020-12-01"]}}},
    "record": [{"class": "BacktestRecord"}],
    "backtest": {"benchmark": "BENHC"},
}
task_train(task, experiment_name="some")
"""


def test_a_run_of_qlib_is_refused_before_its_model_is_made(provider, tmp_path):
    """The benchmark was looked for in the last record, after the training."""
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(provider)], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode != 0
    assert "RefusedRunError: this run would fail for 2 reasons:" in done.stderr
    assert "market 'al' has no file" in done.stderr and "no.such.module" not in done.stderr
    client = mlflow.MlflowClient(f"sqlite:///{(tmp_path / 'mlflow.db').as_posix()}")
    experiment = client.get_experiment_by_name("some")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FAILED"
    assert "benchmark BENHC has no bars" in run.data.tags["mlflow.note.content"]


RECORD = {
    "class": "SignalReportRecord",
    "module_path": "kronos_qlib.plugin.records.signal_report",
}


def test_a_package_that_a_record_needs_is_missed_before_the_run(config, monkeypatch):
    """A plain install trained for hours, and then a record missed its package."""
    put(config, "task.records.of_scores", [RECORD])
    check_run(config)
    for name in [name for name in sys.modules if name.partition(".")[0] == "statsmodels"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "statsmodels", None)
    (said,) = problems_of(config)
    assert said.startswith("SignalReportRecord needs ")
    assert said.endswith('statsmodels: pip install "kronos-qlib[report]"')


@pytest.mark.parametrize(
    ("training", "needs_it"),
    [
        (None, False),
        ({"predictor": {"epochs": 1}}, False),
        ({"predictor": {"epochs": 1, "lora_rank": 4}}, True),
        ({"preset": "gentle", "predictor": {}}, True),
        ({"alpha": {"backbone": "lora"}}, True),
        ({"alpha": {}}, False),
    ],
)
def test_a_package_that_adapters_need_is_missed_before_the_run(
    config, training, needs_it, monkeypatch
):
    put(config, "task.model.kwargs.training", training)
    for name in [name for name in sys.modules if name.partition(".")[0] == "peft"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "peft", None)
    if not needs_it:
        check_run(config)
    else:
        (said,) = problems_of(config)
        assert said.endswith(
            'LoRA needs a package that is not installed, peft: pip install "kronos-qlib[train]"'
        )
