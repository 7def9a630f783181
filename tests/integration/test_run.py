"""`kronos-qlib run` and `workflow`: rendering, precedence, changes, plans, and whole runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import jinja2
import mlflow
import pytest
import yaml

from kronos_qlib.cli.main import main
from kronos_qlib.errors import ConfigError
from kronos_qlib.plugin.workflows import shipped
from kronos_qlib.plugin.workflows.estimate import Part, describe_estimate, describe_minutes
from kronos_qlib.plugin.workflows.execution import plan_run
from kronos_qlib.plugin.workflows.templates import dump_yaml, load_yaml
from kronos_qlib.plugin.workflows.workflow_changes import change
from kronos_qlib.plugin.workflows.workflow_copy import own_workflow
from kronos_qlib.plugin.workflows.workflow_file import read_workflow

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
NAMES = list(shipped.workflows())
SMALL = {
    "provider_uri": "market",
    "region": "us",
    "benchmark": "BENCHMARK",
    "train_start": "2020-01-01",
    "train_end": "2020-10-30",
    "valid_start": "2020-11-02",
    "valid_end": "2020-12-31",
    "test_start": "2021-01-04",
    "test_end": "2021-02-12",
    "topk": 4,
    "n_drop": 1,
    "open_cost": 0.0005,
    "close_cost": 0.0015,
}
FEW = {"lookback": 30, "horizon": 5, "epochs": 1}


def sets(**changes: object) -> list[str]:
    return [word for key, value in changes.items() for word in ("--set", f"{key}={value}")]


@pytest.fixture(autouse=True)
def clean(monkeypatch):
    for name in [name for name in os.environ if name.startswith("KRONOS_")]:
        monkeypatch.delenv(name)
    before = environment()
    yield
    assert environment() == before, "the environment is as it was"


def environment() -> dict[str, str]:
    """Without what tests, pytest and the imports of scikit-learn and torch's optimizers set."""
    ours = ("KRONOS_", "PYTEST_", "KMP_", "TORCHINDUCTOR_")
    return {name: text for name, text in os.environ.items() if not name.startswith(ours)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small market, and a profile of it."""
    place = tmp_path_factory.mktemp("run")
    small = ["--instruments", "12", "--years", "1.25", "--effect", "0.3", "--seed", "1"]
    assert main(["data", "demo", str(place / "market"), *small]) == 0
    (place / "small.yaml").write_text(yaml.safe_dump(SMALL), encoding="utf-8")
    return place


@pytest.fixture
def here(folder, monkeypatch):
    monkeypatch.chdir(folder)
    return folder


# Where a value comes from.


def test_set_wins_over_the_environment_over_the_profile_over_the_default(monkeypatch):
    def topk(*changes, market=None):
        return read_workflow("lightgbm", market, changes).config["task"]["backtest"]["topk"]

    assert topk() == 10
    assert topk(market="us") == 50
    monkeypatch.setenv("KRONOS_TOPK", "20")
    assert topk() == topk(market="us") == 20
    assert topk("topk=30") == topk("topk=30", market="us") == 30


def test_it_is_said_when_the_environment_replaces_a_profile(monkeypatch):
    monkeypatch.setenv("KRONOS_TEST_END", "2016-06-30")
    monkeypatch.setenv("KRONOS_TOPKK", "3")
    said = "\n".join(read_workflow("kronos", "us").notes)
    assert "KRONOS_TEST_END=2016-06-30 of the environment is taken in place of the market's" in said
    assert (
        "KRONOS_TOPKK of the environment is read by no workflow; did you mean KRONOS_TOPK" in said
    )
    found = read_workflow("kronos", "us", ["test_end=2016-03-31"])
    assert "TEST_END" not in "\n".join(found.notes)
    assert str(found.config["segments"]["test"][1]) == "2016-03-31"


def test_dates_that_the_environment_puts_out_of_order_are_refused(monkeypatch):
    """A profile is checked with what replaces it: CSI300's train would end in the US test."""
    monkeypatch.setenv("KRONOS_TRAIN_END", "2016-06-30")
    with pytest.raises(ConfigError, match="train_end 2016-06-30 is not before valid_start 2015"):
        read_workflow("kronos", "us")
    monkeypatch.setenv("KRONOS_TRAIN_END", "soon")
    with pytest.raises(ConfigError, match="KRONOS_TRAIN_END: train_end must be a date"):
        read_workflow("kronos")


@pytest.mark.parametrize("name", NAMES)
def test_a_file_without_a_market_is_what_qrun_renders(name):
    from qlib.utils.data import update_config

    path = shipped.find_workflow(name)
    own = load_yaml(jinja2.Template(path.read_text(encoding="utf-8")).render(), "it")
    base = load_yaml(path.with_name(own.pop("BASE_CONFIG_PATH")).read_text("utf-8"), "base")
    assert read_workflow(name).config == update_config(base, own)


def test_a_path_with_an_apostrophe_survives():
    found = read_workflow("kronos", "us", ["provider_uri=/Users/O'Brien/us"])
    assert found.config["qlib_init"]["provider_uri"] == "/Users/O'Brien/us"


# Changes.


@pytest.mark.parametrize(
    ("text", "path", "value"),
    [
        ("training.predictor.epochs=7", "task.model.kwargs.training.predictor.epochs", 7),
        ("training.predictor.lora_rank=8", "task.model.kwargs.training.predictor.lora_rank", 8),
        ("sampling.paths=3", "task.model.kwargs.sampling.paths", 3),
        ("paths=3", "task.model.kwargs.sampling.paths", 3),
        ("device=cpu", "task.model.kwargs.device", "cpu"),
        ("signals.score=prob_up", "task.model.kwargs.signals.score", "prob_up"),
        ("task.dataset.kwargs.min_bars=30", "task.dataset.kwargs.min_bars", 30),
        ("task.backtest.risk_degree=0.5", "task.backtest.risk_degree", 0.5),
        ("task.forecast.windows=9", "task.forecast.windows", 9),
        ("forecast_windows=9", "task.forecast.windows", 9),
        ("experiment_name=mine", "experiment_name", "mine"),
        ("experiment=mine", "experiment_name", "mine"),
        ("qlib_init.kernels=1", "qlib_init.kernels", 1),
        ("learning_rate=1e-5", "task.model.kwargs.training.predictor.learning_rate", 1e-5),
        ("limit_threshold=.inf", "task.backtest.limit_threshold", float("inf")),
        ("task.records.of_paths.0.kwargs.model=x", "task.records.of_paths.0.kwargs.model", "x"),
        (
            "task.dataset.kwargs.handler.kwargs.history_days=400",
            "task.dataset.kwargs.handler.kwargs.history_days",
            400,
        ),
    ],
)
def test_a_change_reaches_its_place(text, path, value):
    found = read_workflow("kronos", None, [text]).config
    for name in path.split("."):
        found = found[int(name) if isinstance(found, list) else name]
    assert found == value


def test_a_date_moves_everything_that_hangs_on_it():
    config = read_workflow("lightgbm", None, ["test_end=2022-10-31"]).config
    kwargs = config["task"]["dataset"]["kwargs"]
    assert str(kwargs["segments"]["test"][1]) == "2022-10-31"
    assert str(kwargs["handler"]["kwargs"]["end_time"]) == "2022-10-31"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("kronos", "topkk=3", "has no 'topkk'; did you mean 'topk'"),
        ("kronos", "chekpoint=3", "no 'chekpoint'; did you mean 'checkpoint'"),
        ("kronos", "task.backtst.topk=3", "task has no 'backtst'; did you mean 'backtest'"),
        ("kronos", "task.backtest.top=3", "did you mean 'topk'"),
        ("kronos", "task.dataset.kwargs.minbars=3", "did you mean 'min_bars'"),
        ("kronos", "task.model.kwargs.sede=3", "did you mean 'seed'"),
        ("kronos", "task.bars_per_yer=3", "did you mean 'bars_per_year'"),
        ("kronos", "task.records.of_paths.99.class=A", "numbered from 0; there is no '99'"),
        ("kronos", "task.bars_per_year.x=3", "task.bars_per_year is 252 and has no 'x' inside"),
        ("lightgbm", "lamda_l1=3", "no 'lamda_l1'; did you mean 'lambda_l1'"),
        ("lightgbm", "paths=3", "has no 'paths'"),
        ("kronos", "topk", "a change is KEY=VALUE"),
        ("kronos", "=3", "a change is KEY=VALUE"),
        ("kronos", "a..b=3", "a change is KEY=VALUE"),
        ("kronos", "topk=[1, 2]", "topk takes one value"),
        ("kronos", "topk={a", "the value of topk cannot be read"),
        ("kronos", "test_end=tomorrow", "--set test_end: test_end must be a date"),
    ],
)
def test_a_change_that_cannot_be_names_the_nearest(name, text, message):
    with pytest.raises(ConfigError, match=message.replace("[", r"\[")):
        read_workflow(name, None, [text])


def test_a_change_by_an_absolute_path_may_be_any_of_lightgbm_s():
    text = "task.model.kwargs.min_data_in_leaf=50"
    found = read_workflow("lightgbm", None, [text]).config
    assert found["task"]["model"]["kwargs"]["min_data_in_leaf"] == 50


def test_a_zero_shot_file_can_be_told_to_train():
    changes = ["training.predictor.epochs=2"]
    kwargs = read_workflow("kronos_zero_shot", None, changes).config["task"]["model"]["kwargs"]
    assert kwargs["training"] == {"predictor": {"epochs": 2}}
    config: dict = {"task": {"model": {"class": "M"}}}
    change(config, "seed", 3, "it")
    assert config["task"]["model"]["kwargs"] == {"seed": 3}


# Files of one's own.


@pytest.mark.parametrize("market", [None, "demo_5min", "csi300"])
@pytest.mark.parametrize("name", NAMES)
def test_a_printed_workflow_is_the_shipped_one(name, market, tmp_path, capsys, monkeypatch):
    """It names no base, which would not lie beside it."""
    monkeypatch.chdir(tmp_path)
    asked = ["workflow", name, *(["--market", market] if market else [])]
    assert main(asked) == 0
    text = capsys.readouterr().out
    assert "BASE_CONFIG_PATH" not in text and "# names held" in text
    (tmp_path / "my.yaml").write_text(text, encoding="utf-8")
    assert read_workflow("my.yaml").config == read_workflow(name, market).config
    if market is None:
        assert read_workflow("my.yaml", "us").config == read_workflow(name, "us").config
    else:
        assert "KRONOS_" not in text.replace("KRONOS_ names", "")
        assert list(yaml.safe_load(text)) == list(read_workflow("my.yaml").config)


def test_a_file_with_its_own_values_takes_no_market(tmp_path):
    path = tmp_path / "my.yaml"
    path.write_text(own_workflow("kronos", "us"), encoding="utf-8")
    with pytest.raises(ConfigError, match="a market has nothing to fill in"):
        read_workflow(path, "demo")
    with pytest.raises(ConfigError, match=r"say --set task.backtest.hold_thresh=… instead"):
        read_workflow(path, None, ["hold=3"])
    found = read_workflow(path, None, ["task.backtest.hold_thresh=3"]).config
    assert found["task"]["backtest"]["hold_thresh"] == 3


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("kronos_alhpa", "no workflow 'kronos_alhpa'; did you mean 'kronos_alpha'"),
        ("workflow_kronos", "did you mean 'kronos'"),
        ("gone.yaml", "there is no file .*gone.yaml; the workflows that come"),
        (str(ROOT / "workflows" / "markets" / "us.yaml"), "is the profile of a market"),
        (str(ROOT / "workflows"), "is a folder"),
    ],
)
def test_a_workflow_that_is_not_there_names_the_nearest(name, message):
    with pytest.raises(ConfigError, match=message):
        read_workflow(name)


def test_a_base_that_is_not_there_says_how_to_do_without(tmp_path):
    path = tmp_path / "my.yaml"
    path.write_text(shipped.find_workflow("kronos").read_text("utf-8"), encoding="utf-8")
    with pytest.raises(ConfigError, match="prints files that need none"):
        read_workflow(path)


def test_paths_of_code_beside_a_file_stay_beside_it(tmp_path):
    """qrun is given a rendered copy, in a folder of its own."""
    path = tmp_path / "my.yaml"
    path.write_text("sys: {path: [a], rel_path: code}\ntask: {}", encoding="utf-8")
    found = read_workflow(path).config["sys"]
    assert found == {"path": ["a", str(tmp_path.resolve() / "code")]}


@pytest.mark.parametrize(
    "config",
    [
        {"a": 1e-5, "b": float("inf"), "c": "2020-01-01", "d": "1e-5", "e": "no", "f": None},
        {
            "path": r"C:\Users\new",
            "quoted": "it's",
            "unicode": "データ",
            "jinja": "{{ x }} {% y %}",
        },
        {"list": [[1, 2], {"a": "b: c #d"}], "lines": "a\nb\n", "empty": {}, "none": []},
    ],
)
def test_a_rendered_file_reads_back_as_it_was(config, tmp_path):
    from qlib.cli.run import render_template

    path = tmp_path / "rendered.yaml"
    path.write_text(dump_yaml(config), encoding="ascii")
    assert load_yaml(render_template(str(path)), "it") == config


def test_the_lists_name_every_workflow_and_market(capsys):
    assert main(["workflow"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert {line.split()[0] for line in lines} >= {*NAMES, *shipped.markets()}
    assert all(len(line.split()) > 3 for line in lines if line.startswith("  "))


# Plans.


def test_a_plan_says_what_will_be_done_and_does_nothing(here, capsys):
    before = sorted(here.rglob("*"))
    asked = ["run", "kronos", "--market", "small.yaml", "--dry-run", *sets(**FEW, paths=2)]
    assert main(asked) == 0
    said = dict(line.split(None, 1) for line in capsys.readouterr().out.splitlines())
    assert said["market"] == "all of market, region us, benchmark BENCHMARK"
    assert "12 instruments, 2020-01-01 to 2021-02-12" in said["bars"]
    assert said["test"].startswith("2021-01-04 to 2021-02-12, ") and "instruments" in said["test"]
    assert said["model"].startswith("KronosModel nano finetuned; trains the predictor 1 epoch of")
    assert "minute" in said["estimate"] and "measured here just now" in said["estimate"]
    assert said["results"].startswith("experiment kronos in sqlite:///mlflow.db")
    assert sorted(here.rglob("*")) == before


@pytest.mark.parametrize(
    ("name", "changes", "code", "message"),
    [
        ("kronos", {"provider_uri": "nowhere"}, 2, "there is no Qlib folder"),
        ("kronos", {"provider_uri": "."}, 2, "has no calendars/"),
        ("kronos", {"training.predictor.epoch": 1}, 2, "did you mean 'epochs'"),
        ("kronos", {"sampling.path": 1}, 2, "did you mean 'paths'"),
        ("kronos", {"lookback": 1}, 2, "a window needs lookback >= 2"),
        ("kronos", {"start": "2020-01-02"}, 2, "handler would begin after the segment"),
        ("kronos_alpha", {"training.alpha.span": 300}, 2, "the network attends to 256: lower it"),
        ("kronos_alpha", {"training.alpha.context": "{layers: [9]}"}, 2, "layers"),
        ("kronos", {"lookback": 60, "horizon": 200}, 2, "positions at once and the network"),
    ],
)
def test_what_cannot_run_is_refused_before_anything_is_made(
    here, capsys, name, changes, code, message
):
    before = sorted(here.rglob("*"))
    assert main(["run", name, "--market", "small.yaml", *sets(**changes)]) == code
    assert message in capsys.readouterr().err
    assert sorted(here.rglob("*")) == before


def test_dates_outside_the_bars_are_refused_with_dates_that_fit(here):
    """CSI300's profile on bars of other years: each date had to be found by hand."""
    ours = ["provider_uri=market", "benchmark=BENCHMARK", "topk=5", "n_drop=1", "paths=2"]
    ours += ["lookback=30", "horizon=5"]
    with pytest.raises(ConfigError, match="go from 2020-01-01 to 2021-04-01") as refused:
        plan_run("kronos_alpha", "us", [one for one in ours if one != "paths=2"])
    words = str(refused.value).split("takes them): ")[1].split()
    fitting = [word for word in words if word != "--set"]
    assert len(fitting) == 7
    plan = plan_run("kronos_zero_shot", "us", [*ours, *fitting])
    assert plan.experiment == "kronos_zero_shot"
    fitted = plan_run("kronos_zero_shot", "us", ours, fit_dates=True)
    assert fitted.workflow.config == plan.workflow.config
    moved = [*ours, "test_end=2021-03-01"]
    moved = plan_run("kronos_zero_shot", "us", moved, fit_dates=True).workflow.config
    assert str(moved["task"]["dataset"]["kwargs"]["segments"]["test"][1]) == "2021-03-01"


def test_published_weights_tested_on_days_that_they_have_seen_are_doubted(here, monkeypatch):
    monkeypatch.setattr(
        "kronos_qlib.plugin.workflows.execution.estimate", lambda *_: [Part("all", 1.0)]
    )
    plan = plan_run("kronos_zero_shot", "small.yaml", ["checkpoint=small"])
    assert any("have seen bars to 2024-05, and the test begins 2021-01-04" in n for n in plan.notes)
    plan = plan_run("kronos_zero_shot", "small.yaml", ["checkpoint=nano"])
    assert not plan.notes


def test_minutes_are_told_as_coarsely_as_they_are_known():
    told = {20: "less than a minute", 61: "about 1 minute", 250: "about 4 minutes"}
    told |= {1700: "about 30 minutes", 3 * 3600: "about 3 hours", 1e6: "about 12 days"}
    assert {seconds: describe_minutes(seconds) for seconds in told} == told
    said = describe_estimate([Part("drawing", 90.0), Part("rest", 10.0), Part("none", 0.0)])
    assert said == "about 2 minutes, of which drawing 90%"


# Whole runs.

DRIVER = """
import json, os, sys
from kronos_qlib.cli.main import main
before = dict(os.environ)
codes = [main(asked) for asked in json.load(open("asked.json", encoding="utf-8"))]
# Libraries add variables of their own as they are imported.
changed = {key for key in before if os.environ.get(key) != before[key] and key[0] != "_"}
added = {key for key in os.environ if key.startswith("KRONOS_")} - set(before)
print(json.dumps({"codes": codes, "changed": sorted(changed | added)}), file=sys.stderr)
"""


def run_in(folder, *asked):
    (folder / "asked.json").write_text(json.dumps(asked), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-c", DRIVER],
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stderr.splitlines()[-1]), done.stdout + done.stderr


def test_a_workflow_is_run_by_name_and_as_a_printed_file_elsewhere(folder, tmp_path):
    """One in the market's folder, its printed file in another, by run and by qrun: equal scores."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    profile = str(tmp_path / "short.yaml")
    Path(profile).write_text(yaml.safe_dump({**SMALL, "train_start": "2020-06-01"}), "utf-8")
    few = sets(lookback=30, horizon=5, provider_uri=(folder / "market").as_posix())
    told, log = run_in(
        elsewhere,
        ["run", "kronos_alpha", "--market", profile, *few, "--set", "epochs=2"],
        ["workflow", "kronos_alpha", "--market", profile, "--out", "my.yaml"],
        ["run", "my.yaml", *sets(experiment_name="printed"),
         *sets(**{"task.dataset.kwargs.lookback": 30, "task.dataset.kwargs.horizon": 5,
                  "training.alpha.epochs": 2,
                  "qlib_init.provider_uri": (folder / "market").as_posix()})],
    )  # fmt: skip
    assert told == {"codes": [0, 0, 0], "changed": []}, log[-3000:]
    client = mlflow.MlflowClient(f"sqlite:///{(elsewhere / 'mlflow.db').as_posix()}")
    runs = [one_run(client, name) for name in ("kronos_alpha", "printed")]
    one, other = (run.data.metrics for run in runs)
    assert one["rank_ic.mean"] == other["rank_ic.mean"]
    assert f"run {runs[0].info.run_id[:8]}" in log
    kept = client.download_artifacts(runs[0].info.run_id, "workflow.yaml", str(tmp_path))
    config = load_yaml(Path(kept).read_text(encoding="utf-8"), "it")
    assert config["task"]["backtest"]["topk"] == 4
    assert config["qlib_init"]["provider_uri"] == (folder / "market").as_posix()

    # What a run keeps, qrun does again: nothing but the name of the experiment is another.
    again = (
        Path(kept)
        .read_text(encoding="utf-8")
        .replace("experiment_name: kronos_alpha", "experiment_name: again")
    )
    (elsewhere / "again.yaml").write_text(again, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "qlib.cli.run", "again.yaml"],
        cwd=elsewhere,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert one_run(client, "again").data.metrics["rank_ic.mean"] == one["rank_ic.mean"]


def one_run(client, name):
    experiment = client.get_experiment_by_name(name)
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    return run


def test_finetune_takes_the_same_names_markets_and_keys(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    few = sets(**FEW, windows_per_epoch=40, validation_windows=20)
    asked = ["finetune", "kronos", "--market", "small.yaml", "--out", str(tmp_path / "out"), *few]
    assert main(asked) == 0
    assert "predictor: validation loss" in capsys.readouterr().out
    assert main([*asked, "--set", "traning.predictor.epochs=1"]) == 2
    assert "did you mean 'training'" in capsys.readouterr().err
