"""What Qlib, MLflow, gym and git print during a run, kept off the terminal.

Nothing here is done by importing: a run does it where it begins, a backtest for its own time.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import warnings
from collections.abc import Iterator
from pathlib import Path

from kronos_qlib.log import quiet_gym
from kronos_qlib.plugin.qlib_internals import (
    backtest_bar_on_terminals,
    quiet_timers,
    uncommitted_code_ignored,
)

EXCHANGE_LOGGER = "qlib.online operator"
"""Of `qlib.backtest.exchange`."""
MLFLOW_BARS = "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"


def quiet_libraries() -> None:
    """For the rest of the process: no bar for each small file, no advertisement, no timers.

    What somebody has set in the environment stays.
    """
    os.environ.setdefault(MLFLOW_BARS, "false")
    quiet_gym()
    quiet_timers()


@contextlib.contextmanager
def no_git_usage() -> Iterator[None]:
    """Where a run begins: outside a git repository nothing is asked of git.

    Qlib keeps uncommitted changes with a run; elsewhere git prints its whole usage, 80 lines.
    """
    here = Path.cwd()
    if any((folder / ".git").exists() for folder in (here, *here.parents)):
        yield
        return
    with uncommitted_code_ignored():
        yield


@contextlib.contextmanager
def quiet_backtest() -> Iterator[None]:
    """While Qlib trades: a bar on terminals alone, and no tables that MLflow and reports have.

    A bar without a trade has no mean price, of which numpy warns at each; that names have days
    without a bar is what every market has, and Qlib's exchange warns of it each time it is made.
    """
    with (
        backtest_bar_on_terminals(),
        _without_lines(EXCHANGE_LOGGER, "field data contains nan"),
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
    ):
        warnings.filterwarnings("ignore", message="Mean of empty slice")
        yield


def quiet_imports() -> contextlib.AbstractContextManager[object]:
    """Where models of Qlib's own may be imported: it prints which packages it has not, each time
    in two lines, whichever model is wanted."""
    return contextlib.redirect_stdout(io.StringIO())


@contextlib.contextmanager
def _without_lines(name: str, words: str) -> Iterator[None]:
    """A logger without lines that have these words."""
    logger = logging.getLogger(name)

    def others(record: logging.LogRecord) -> bool:
        return words not in record.getMessage()

    logger.addFilter(others)
    try:
        yield
    finally:
        logger.removeFilter(others)
