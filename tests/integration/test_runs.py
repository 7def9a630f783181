"""Runs that begin where their bars are, and killed ones that stay RUNNING no longer."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import mlflow
import pytest

from kronos_qlib.owners import Owner
from kronos_qlib.plugin.runs import manager as runs
from kronos_qlib.plugin.runs.manager import HOST, PROCESS, STARTED, mark_killed_runs

pytestmark = pytest.mark.integration

WORKFLOWS = Path(__file__).parents[2] / "workflows"

BEGIN = """
import logging, sys, tempfile, time
tempfile.tempdir = sys.argv[3]
import qlib
from qlib.workflow import R
uri = {"uri": sys.argv[2], "default_exp_name": "some"}
how = {"class": "KronosExpManager", "module_path": "kronos_qlib.plugin.runs.manager", "kwargs": uri}
qlib.init(provider_uri=sys.argv[1], region="us", exp_manager=how, logging_level=logging.WARNING)
with R.start(experiment_name="some"):
    print(R.get_recorder().id, flush=True)
    if sys.argv[4] == "wait":
        time.sleep(120)
"""


@pytest.fixture
def begin(provider, tmp_path):
    uri = f"sqlite:///{(tmp_path / 'mlflow.db').as_posix()}"
    mlflow.MlflowClient(uri).create_experiment("some", (tmp_path / "artifacts").as_uri())
    begun = []

    def start(how):
        process = subprocess.Popen(
            [sys.executable, "-c", BEGIN, str(provider), uri, str(tmp_path), how],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        begun.append(process)
        return process

    yield start, uri
    for process in begun:
        process.kill()
        process.communicate()


def first_line(process):
    for line in process.stdout:
        if len(line.strip()) == 32:
            return line.strip()
    raise AssertionError(process.stderr.read())


def test_the_next_run_marks_a_killed_one_and_no_live_one(begin, tmp_path, monkeypatch):
    """MLflow had them RUNNING for ever: nobody was left to say that they were not."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    start, uri = begin
    killed, alive = start("wait"), start("wait")
    gone, stays = first_line(killed), first_line(alive)
    client = mlflow.MlflowClient(uri)
    assert client.get_run(gone).data.tags[PROCESS] == str(killed.pid)
    killed.kill()
    killed.wait()
    assert client.get_run(gone).info.status == "RUNNING"

    last = start("end")
    third = first_line(last)
    _, told = last.communicate(timeout=120)
    assert f"run {gone} stayed RUNNING in MLflow" in told and "marked KILLED" in told
    assert client.get_run(gone).info.status == "KILLED"
    assert client.get_run(stays).info.status == "RUNNING"
    assert client.get_run(third).info.status == "FINISHED"

    # Whatever its tags say, a run whose lock this machine does not have may be at work elsewhere.
    experiment = client.get_run(gone).info.experiment_id
    foreign = client.create_run(experiment).info.run_id
    untagged = client.create_run(experiment).info.run_id
    for name, value in ((HOST, Owner.here().host), (PROCESS, "999999999"), (STARTED, "1")):
        client.set_tag(foreign, name, value)
    assert mark_killed_runs(client, experiment) == []
    assert {client.get_run(each).info.status for each in (foreign, untagged)} == {"RUNNING"}


def test_a_run_of_another_machine_is_left_alone(tmp_path, monkeypatch):
    """Its lock may lie in a shared home, and be free here."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    client = mlflow.MlflowClient(f"sqlite:///{(tmp_path / 'mlflow.db').as_posix()}")
    experiment = client.create_experiment("some", (tmp_path / "artifacts").as_uri())
    run_id = client.create_run(experiment).info.run_id
    runs._lock_path(run_id).touch()
    for name, value in ((HOST, "elsewhere"), (PROCESS, "1"), (STARTED, "1")):
        client.set_tag(run_id, name, value)
    assert mark_killed_runs(client, experiment) == []
    client.set_tag(run_id, HOST, Owner.here().host)
    client.set_tag(run_id, PROCESS, "999999999")
    assert mark_killed_runs(client, experiment) == [run_id]
    assert runs._lock_path("../../etc/passwd") is None


ELSEWHERE = """
import os, sys, traceback
from qlib.cli.run import run, workflow
os.chdir(sys.argv[2])
try:
    workflow(sys.argv[1])
except Exception:
    traceback.print_exc()
os.chdir(sys.argv.pop())
sys.argv.pop()
run()
"""


def test_qrun_from_another_folder_says_what_it_looked_for_and_makes_no_store(tmp_path):
    """It made an empty mlflow.db there, and failed much later for want of a calendar."""
    empty, without = tmp_path / "empty", tmp_path / "without"
    empty.mkdir()
    (without / "demo" / "market").mkdir(parents=True)
    before = sorted(tmp_path.rglob("*"))
    clean = {name: value for name, value in os.environ.items() if not name.startswith("KRONOS_")}
    workflow = str(WORKFLOWS / "workflow_kronos_zero_shot.yaml")
    done = subprocess.run(
        [sys.executable, "-c", ELSEWHERE, workflow, str(empty), str(without)],
        env=clean,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    for folder, says in ((empty, "there is no Qlib folder {}"), (without, "{} is no Qlib folder")):
        looked_for = says.format(folder.resolve() / "demo" / "market")
        assert f"RefusedRunError: this run would fail: {looked_for}" in done.stdout + done.stderr
    assert sorted(tmp_path.rglob("*")) == before


WITHOUT = """
import sys
sys.modules["statsmodels"] = None  # as if it were not installed
from qlib.cli.run import workflow
workflow(sys.argv[1])
"""


def test_qrun_without_a_package_of_its_records_fails_before_the_work(provider, tmp_path):
    """Any model's run, not Kronos' alone: records are made last, after hours of training."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("KRONOS_")}
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, str(WORKFLOWS / "workflow_lightgbm.yaml")],
        cwd=tmp_path,
        env=clean | {"KRONOS_PROVIDER_URI": str(provider)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert 'statsmodels: pip install "kronos-qlib[report]"' in done.stderr, done.stderr
    assert "Training until" not in done.stderr + done.stdout
