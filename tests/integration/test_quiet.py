"""Of 900 lines that the demo printed, 500 were bars, an advertisement and the usage of git."""

from __future__ import annotations

import io
import subprocess
import sys
import warnings
from importlib import import_module

import numpy as np
import pytest
from qlib.log import get_module_logger
from qlib.workflow.recorder import MLflowRecorder

from kronos_qlib.log import progress
from kronos_qlib.plugin.runs.quiet import no_git_usage, quiet_backtest

pytestmark = pytest.mark.integration


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(("kind", "is_shown"), [(io.StringIO, False), (Terminal, True)])
def test_a_bar_is_for_terminals(kind, is_shown, monkeypatch):
    for show in (True, False):
        stream = kind()
        monkeypatch.setattr(sys, "stderr", stream)
        assert list(progress([1, 2], "counting", unit="one", show=show)) == [1, 2]
        assert ("counting" in stream.getvalue()) == (is_shown and show)


RUN = """
import os
from kronos_qlib.plugin.runs.quiet import quiet_libraries
quiet_libraries()
import gym
print(os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"])
"""


def test_a_run_has_no_advertisement_and_no_bar_per_file():
    pytest.importorskip("gym_notices", reason="gym is not installed")
    done = subprocess.run([sys.executable, "-c", RUN], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "false\n" and "Gym has been unmaintained" not in done.stderr


COMMAND = """
import gym_notices.notices as notices
import kronos_qlib, kronos_qlib.cli.main, kronos_qlib.cli.parsers, kronos_qlib.plugin.runs.quiet
assert notices.notices, "importing the package changed what others print"
from kronos_qlib.cli.parsers import run_script
"""
DOORS = {
    "command": "kronos_qlib.cli.main.main(['data', 'check', 'nowhere.csv'])",
    "script": "run_script('x.py', lambda own: own.set_defaults(command=int, bad_input=()), [])",
}


@pytest.mark.parametrize("door", DOORS)
def test_our_commands_have_no_advertisement_and_our_package_leaves_it_alone(door):
    """`make_demo_market.py` and `kronos-qlib forecast` began with four lines of it."""
    pytest.importorskip("gym_notices", reason="gym is not installed")
    code = f"{COMMAND}\ntry:\n    {DOORS[door]}\nexcept TypeError:\n    pass\nimport gym"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Gym has been unmaintained" not in done.stderr


def test_git_is_asked_in_a_repository_alone(tmp_path, monkeypatch):
    asked = []
    asks = MLflowRecorder._log_uncommitted_code
    monkeypatch.setattr(MLflowRecorder, "_log_uncommitted_code", asked.append)
    (tmp_path / "inner").mkdir()
    monkeypatch.chdir(tmp_path / "inner")
    with no_git_usage():
        MLflowRecorder._log_uncommitted_code("outside")
    (tmp_path / ".git").mkdir()
    with no_git_usage():
        MLflowRecorder._log_uncommitted_code("inside")
    MLflowRecorder._log_uncommitted_code("afterwards")
    assert asked == ["inside", "afterwards"] and asks is not None


def test_a_backtest_prints_no_tables_and_gives_all_back(monkeypatch, capsys):
    backtest = import_module("qlib.backtest.backtest")
    before = backtest.tqdm
    with pytest.raises(ZeroDivisionError), quiet_backtest():
        assert list(backtest.tqdm([1], desc="backtest loop")) == [1]
        sys.stdout.write("risk 0.1")
        with warnings.catch_warnings(record=True) as found:
            np.nanmean(np.array([]))
        raise ZeroDivisionError
    assert backtest.tqdm is before and not found
    said = capsys.readouterr()
    assert said.out == said.err == ""


def test_days_without_a_bar_are_no_warning_while_qlib_trades(caplog):
    logger = get_module_logger("online operator").logger  # as its exchange does
    with caplog.at_level("WARNING"):
        with quiet_backtest():
            logger.warning("$close field data contains nan.")
            logger.warning("another")
        logger.warning("$close field data contains nan.")
    assert [record.getMessage() for record in caplog.records if record.name == logger.name] == [
        "another",
        "$close field data contains nan.",
    ]
