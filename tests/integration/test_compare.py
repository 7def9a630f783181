"""Runs side by side, from a real MLflow database with made-up metrics."""

import subprocess
import sys

import mlflow
import pytest

from kronos_qlib.cli.main import main
from kronos_qlib.errors import ConfigError, MissingArtifactError
from kronos_qlib.plugin.compare import COMPARED, compare_runs, sqlite_path

pytestmark = pytest.mark.integration

NOON = 1_700_000_000_000  # ms
VALUES = [0.05, 0.4, 0.06, 0.5, 0.123, 1.1, 1.2, -0.08, 0.4]
METRICS = dict(zip(COMPARED.values(), VALUES, strict=True))


def add_run(client, experiment, metrics=METRICS, *, start=NOON, seconds=90, status="FINISHED"):
    found = client.get_experiment_by_name(experiment)
    number = found.experiment_id if found else client.create_experiment(experiment)
    run_id = client.create_run(number, start_time=start).info.run_id
    for name, value in metrics.items():
        client.log_metric(run_id, name, value)
    client.set_terminated(run_id, status, end_time=start + 1000 * seconds)
    return run_id


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A database where every experiment is a case of its own, and the runs worth naming."""
    uri = f"sqlite:///{(tmp_path_factory.mktemp('store') / 'mlflow.db').as_posix()}"
    client = mlflow.MlflowClient(uri)
    runs = {
        "old": add_run(client, "kronos", METRICS | {"IC": 0.01}, start=NOON - 10_000_000),
        "new": add_run(client, "kronos"),
        "failed": add_run(client, "kronos", {}, start=NOON + 10_000_000, status="FAILED"),
        "lightgbm": add_run(client, "lightgbm", METRICS | {"sharpe": -0.5}, seconds=12.5),
    }
    add_run(client, "unfinished", {}, status="KILLED")
    add_run(client, "partial", {name: METRICS[name] for name in METRICS if name != "Rank IC"})
    add_run(client, "broken", METRICS | {"IC": float("nan")})
    add_run(client, "endless", METRICS | {"sharpe": float("inf")})
    return uri, runs


def test_the_latest_finished_runs_side_by_side(store):
    uri, runs = store
    table = compare_runs(["kronos", "lightgbm"], tracking_uri=uri)
    assert table.index.to_list() == ["kronos", "lightgbm"]
    assert table.columns.to_list() == [*COMPARED, "wall_seconds", "run_id"]
    assert table["run_id"].to_list() == [runs["new"], runs["lightgbm"]]
    assert table["ic"].to_list() == [0.05, 0.05]
    assert table["sharpe"].to_list() == [1.2, -0.5]
    assert table["max_drawdown"].to_list() == [-0.08, -0.08]
    assert table["wall_seconds"].to_list() == [90.0, 12.5]


def test_a_run_can_be_named(store):
    uri, runs = store
    table = compare_runs(["kronos"], tracking_uri=uri, run_ids=[runs["old"]])
    assert table.index.to_list() == ["kronos", f"kronos/{runs['old'][:8]}"]
    assert table["ic"].to_list() == [0.05, 0.01]


@pytest.mark.parametrize(
    ("experiment", "error", "words"),
    [
        ("lightgbn", ConfigError, "no MLflow experiment 'lightgbn'; did you mean 'lightgbm'"),
        ("zzz", ConfigError, "known: .*kronos, lightgbm"),
        ("unfinished", MissingArtifactError, "'unfinished' has no finished run"),
        ("partial", MissingArtifactError, "no metric Rank IC; its workflow needs SigAnaRecord"),
        ("broken", MissingArtifactError, "has IC = nan, no finite number"),
        ("endless", MissingArtifactError, "has sharpe = .*, no finite number"),
    ],
)
def test_what_cannot_be_compared_says_why(store, experiment, error, words):
    with pytest.raises(error, match=words):
        compare_runs([experiment], tracking_uri=store[0])


def test_a_named_run_must_exist_and_have_finished(store):
    uri, runs = store
    with pytest.raises(ConfigError, match="no MLflow run 'nope'"):
        compare_runs(tracking_uri=uri, run_ids=["nope"])
    with pytest.raises(MissingArtifactError, match="is FAILED, and only finished runs"):
        compare_runs(tracking_uri=uri, run_ids=[runs["failed"]])


def test_a_wrong_path_creates_no_database(tmp_path):
    with pytest.raises(ConfigError, match=r"no MLflow database at .*none\.db"):
        compare_runs(["kronos"], tracking_uri=f"sqlite:///{(tmp_path / 'none.db').as_posix()}")
    assert list(tmp_path.iterdir()) == []


def test_a_database_path_is_read_from_its_uri():
    assert sqlite_path("sqlite:///mlflow.db").as_posix() == "mlflow.db"
    assert sqlite_path("sqlite:////data/mlflow.db").as_posix() == "/data/mlflow.db"
    assert sqlite_path("sqlite:///C:/data/mlflow.db").as_posix() == "C:/data/mlflow.db"
    assert sqlite_path("http://localhost:5000") is None


def test_the_command_prints_an_aligned_table(store, capsys):
    uri, _ = store
    assert main(["compare", "--tracking-uri", uri, "kronos", "lightgbm"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["kronos", "lightgbm"]
    table = {line[:34].strip(): line[34:].split() for line in lines[2:-2]}
    assert table["IC"] == ["0.0500", "0.0500"]
    assert table["Excess return a year, after cost"] == ["12.30%", "12.30%"]
    assert table["Maximum drawdown, after cost"] == ["-8.00%", "-8.00%"]
    assert len({len(line) for line in lines[:-2]}) == 1, "right edges differ"
    assert lines[-1].endswith(f"mlflow ui --backend-store-uri {uri}")


def test_the_command_prints_markdown(store, capsys):
    assert main(["compare", "--markdown", "--tracking-uri", store[0], "lightgbm"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].startswith("| :---") and lines[1].endswith("-: |")
    cells = [line.strip("| ").split("|") for line in lines[2:-2]]
    assert ["Sharpe ratio, after cost", "-0.50"] in [
        [cell.strip() for cell in row] for row in cells
    ]


@pytest.mark.parametrize(
    ("experiments", "code", "words"),
    [(["lightgbn"], 2, "did you mean"), (["partial"], 1, "no metric Rank IC"), ([], 2, "nothing")],
)
def test_an_error_is_one_line_and_an_exit_code(store, capsys, experiments, code, words):
    assert main(["compare", "--tracking-uri", store[0], *experiments]) == code
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("kronos-qlib: ") and printed.err.count("\n") == 1
    assert words in printed.err


def test_help_shows_an_example_without_loading_qlib():
    script = """
import sys
from kronos_qlib.cli.main import main
try:
    main(["compare", "--help"])
finally:
    heavy = {"mlflow", "qlib", "pandas", "torch"} & set(sys.modules)
    assert not heavy, heavy
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "kronos-qlib compare --tracking-uri sqlite:///mlflow.db kronos lightgbm" in done.stdout


def test_the_package_runs_as_a_module():
    command = [sys.executable, "-m", "kronos_qlib.cli", "compare", "--no-such-flag"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert "unrecognized arguments: --no-such-flag" in done.stderr
