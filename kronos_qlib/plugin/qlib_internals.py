"""Every use of what Qlib does not promise: private attributes, caches, replaced methods.

All of it was seen in pyqlib 0.9.7. When a newer Qlib changes one of these, the test that its
docstring ends with fails (of tests/integration), and the remedy belongs here: the rest of the
plugin uses Qlib's public API. Methods that subclasses of ours override are listed in OVERRIDDEN.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import pandas as pd
from qlib.config import C, QlibConfig
from qlib.constant import REG_CN
from qlib.data import D
from qlib.data.cache import H
from qlib.data.data import (
    Cal,
    FeatureD,
    Inst,
    LocalCalendarProvider,
    LocalFeatureProvider,
    LocalInstrumentProvider,
    LocalProvider,
)
from qlib.data.storage.file_storage import (
    FileCalendarStorage,
    FileFeatureStorage,
    FileInstrumentStorage,
)
from qlib.log import TimeInspector
from qlib.utils.time import Freq
from qlib.workflow import R
from qlib.workflow.recorder import MLflowRecorder, Recorder

SEEN_IN = "0.9.7"
"""The version of pyqlib that this file was written against."""

OVERRIDDEN: Mapping[str, tuple[str, ...]] = {
    "qlib.data.dataset.DatasetH": ("_prepare_seg",),
    "qlib.workflow.record_temp.ACRecordTemp": ("_generate", "check", "list"),
    "qlib.workflow.expm.MLflowExpManager": ("_get_exp", "_start_exp", "_end_exp", "create_exp"),
    "qlib.workflow.exp.Experiment": ("create_recorder",),
    "qlib.workflow.recorder.Recorder": ("save_objects",),
    "qlib.backtest.exchange.Exchange": (
        "_update_limit",
        "_get_limit_type",
        "_get_vol_limit",
        "get_quote_from_qlib",
    ),
}
"""Methods of Qlib's classes that ours override or call, where they are not part of a documented
interface. test_qlib_internals.py::test_qlib_still_has_the_methods_that_are_overridden."""

ATTRIBUTES: Mapping[str, tuple[str, ...]] = {
    "qlib.workflow.exp.MLflowExperiment": ("_uri", "_default_rec_name"),
    "qlib.workflow.recorder.MLflowRecorder": ("_uri",),
}
"""Private attributes of Qlib's objects that subclasses of ours read.
test_qlib_internals.py::test_qlibs_objects_still_have_these_attributes."""

FILE_STORAGE: Mapping[type, str] = {
    LocalCalendarProvider: "FileCalendarStorage",
    LocalFeatureProvider: "FileFeatureStorage",
    LocalInstrumentProvider: "FileInstrumentStorage",
}
"""Qlib's providers of files, and the storage that each reads by default.
test_source.py::test_a_provider_that_is_not_files_here_is_asked_through_qlib."""


# Where bars are


def data_folder(freq: str) -> Path:
    """The folder of `qlib.init`'s provider_uri for a frequency, whatever provider reads it.

    Raises:
        ValueError: Qlib knows no such frequency.
        KeyError: provider_uri names no folder for it.

    `C.dpm`. test_source.py::test_each_frequency_has_its_own_folder_and_universe.
    """
    return Path(C.dpm.get_data_uri(Freq(freq)))


def reads_files(what: str = "feature") -> bool:
    """Whether Qlib reads the files of `provider_uri` itself, without a server or another storage.

    Args:
        what: "calendar", "feature" or "instrument". "feature" asks of `D` too.

    `_provider` and `backend` of Qlib's wrappers.
    test_source.py::test_a_provider_that_is_not_files_here_is_asked_through_qlib.
    """
    wrapper = {"calendar": Cal, "feature": FeatureD, "instrument": Inst}[what]
    provider: Any = getattr(wrapper, "_provider", None)
    usual = FILE_STORAGE.get(type(provider))
    if usual is None or (what == "feature" and type(D._provider) is not LocalProvider):
        return False
    backend = provider.backend or {"class": usual}
    return backend.get("class") == usual and not backend.get("kwargs")


def local_folders(provider_uri: Any) -> dict[str, Path]:
    """Folders by frequency that a `provider_uri` of `qlib.init` means; network paths left out.

    The frequency of a uri that is not a mapping is `DEFAULT_FREQ`.

    `QlibConfig.DataPathManager`. test_preflight.py::test_shipped_workflows_pass.
    """
    manager = QlibConfig.DataPathManager
    uris = manager.format_provider_uri(
        dict(provider_uri) if isinstance(provider_uri, Mapping) else provider_uri
    )
    return {
        str(freq): Path(uri)
        for freq, uri in uris.items()
        if manager.get_uri_type(uri) == QlibConfig.LOCAL_URI
    }


DEFAULT_FREQ = QlibConfig.DEFAULT_FREQ


# Caches


def clear_caches() -> None:
    """Forget calendars, markets and features that this process has read.

    `H`. test_qlib_internals.py::test_caches_are_forgotten.
    """
    H.clear()


@contextmanager
def market_read_anew(instruments: Any) -> Iterator[None]:
    """Let Qlib read a market's file anew inside the block, and forget it again.

    Qlib remembers a market by its name alone: after the daily "all" has been asked for, the
    5-minute "all" is the daily one, with its names and dates.

    Args:
        instruments: a market's name or a stock pool; of a list of names nothing is remembered.

    `H["i"]`. test_qlib_contracts.py::test_a_market_of_two_frequencies_is_not_mixed_up.
    """
    market = instruments.get("market") if isinstance(instruments, Mapping) else instruments

    def forget() -> None:
        if isinstance(market, str) and market in H["i"]:
            H["i"].pop(market)

    forget()
    try:
        yield
    finally:
        forget()


# Reading back what was written


def stored_calendar_lines(folder: Path, freq: str, future: bool) -> list[str]:
    """Lines of a folder's calendar as Qlib's own storage reads them, without `qlib.init`.

    `FileCalendarStorage`, uncached. test_storage.py::test_qlib_reads_back_what_was_written.
    """
    with _lent_settings():
        stored = FileCalendarStorage(freq, future, {freq: str(folder)})
        stored.enable_read_cache = False  # the cache is the process's own
        return list(stored.data)


def stored_market(folder: Path, freq: str, market: str) -> dict[str, list[tuple[str, str]]]:
    """Spans of each instrument of a market as Qlib's own storage reads them, without `qlib.init`.

    `FileInstrumentStorage`. test_storage.py::test_qlib_reads_back_what_was_written.
    """
    with _lent_settings():
        return dict(FileInstrumentStorage(market, freq, {freq: str(folder)}).data)


def stored_feature(folder: Path, freq: str, instrument: str, field: str) -> pd.Series[Any]:
    """A feature file as Qlib's own storage reads it, on places of the calendar.

    `FileFeatureStorage`. test_storage.py::test_qlib_reads_back_what_was_written.
    """
    with _lent_settings():
        found: pd.Series[Any] = FileFeatureStorage(instrument, field, freq, {freq: str(folder)})[:]
        return found


@contextmanager
def _lent_settings() -> Iterator[None]:
    """Give Qlib's storage classes the two settings they read, where `qlib.init` has not run.

    `C.__dict__["_config"]`.
    test_storage.py::test_writing_needs_no_qlib_init_and_leaves_its_state_alone.
    """
    settings = C.__dict__["_config"]
    lent = [name for name in ("region", "mount_path") if name not in settings]
    for name in lent:
        settings[name] = REG_CN if name == "region" else None
    try:
        yield
    finally:
        for name in lent:
            del settings[name]


# Runs and logs


def has_open_run() -> bool:
    """Whether Qlib has a run open. Without `qlib.init`, as with bars from a file, it has none.

    `R._provider`. test_qlib_internals.py::test_no_run_is_open_without_init.
    """
    return getattr(R, "_provider", None) is not None and R.exp_manager.active_experiment is not None


@contextmanager
def metrics_dropped() -> Iterator[None]:
    """Drop what models log by `R.log_metrics` inside the block.

    Qlib's LGBModel logs every round, and where no run is open begins one in ./mlruns for it.

    An attribute on `R`, in front of the recorder's own method.
    test_qlib_internals.py::test_metrics_are_dropped_without_a_run.
    """
    outer = "log_metrics" in vars(R)  # a block inside another changes nothing
    R.log_metrics = lambda **metrics: None
    try:
        yield
    finally:
        if not outer:
            del R.log_metrics


@contextmanager
def logged_under(name: str) -> Iterator[None]:
    """Put `name.` before metrics, and `name/` before figures, logged to the open run in the block.

    Attributes on the recorder and its client, in front of their methods.
    test_signals_in_qlib.py::test_a_blend_is_the_mean_of_ranks_and_its_members_log_apart.
    """
    if not has_open_run():
        yield
        return
    recorder = R.get_recorder()
    log_metrics, log_figure = recorder.log_metrics, recorder.client.log_figure

    def metrics_under(step: int | None = None, **metrics: float) -> None:
        log_metrics(step, **{f"{name}.{key}": value for key, value in metrics.items()})

    def figure_under(run_id: str, figure: Any, artifact_file: str, **options: Any) -> None:
        log_figure(run_id, figure, f"{name}/{artifact_file}", **options)

    recorder.log_metrics, recorder.client.log_figure = metrics_under, figure_under
    try:
        yield
    finally:
        del recorder.log_metrics, recorder.client.log_figure


def wait_for_log(recorder: Recorder) -> bool:
    """Wait until Qlib's logging thread has written all that was handed to it.

    Returns:
        False if the thread has died before that, and metrics with it.

    `async_log` of a recorder, and its thread `_t`.
    test_records.py::test_the_check_notices_a_dead_writing_thread.
    """
    caller: Any = getattr(recorder, "async_log", None)
    if caller is None:  # the run was reopened: Qlib then writes at once
        return True
    reached = threading.Event()
    caller(reached.set)  # the queue is first in, first out
    while not reached.wait(timeout=0.2):
        if not caller._t.is_alive() and not reached.is_set():
            return False
    return True


@contextmanager
def uncommitted_code_ignored() -> Iterator[None]:
    """Runs that begin in the block do not ask git for uncommitted changes.

    `MLflowRecorder._log_uncommitted_code`.
    test_quiet.py::test_git_is_asked_in_a_repository_alone.
    """
    original = MLflowRecorder._log_uncommitted_code
    MLflowRecorder._log_uncommitted_code = lambda self: None
    try:
        yield
    finally:
        MLflowRecorder._log_uncommitted_code = original


def quiet_timers() -> None:
    """Qlib's timers log warnings only, for the rest of the process.

    `TimeInspector.timer_logger`. test_qlib_internals.py::test_timers_are_quiet.
    """
    TimeInspector.timer_logger.setLevel("WARNING")


@contextmanager
def backtest_bar_on_terminals() -> Iterator[None]:
    """The progress bar of a backtest inside the block is drawn on terminals only.

    `tqdm` of `qlib.backtest.backtest`.
    test_quiet.py::test_a_backtest_prints_no_tables_and_gives_all_back.
    """
    backtest: Any = import_module("qlib.backtest.backtest")  # a function has its name there
    bar: Callable[..., Any] = backtest.tqdm
    backtest.tqdm = functools.partial(bar, disable=None)
    try:
        yield
    finally:
        backtest.tqdm = bar


def loaded_frame(handler: Any) -> pd.DataFrame | None:
    """The frame that a handler loaded, before processors; None where it keeps none.

    `DataHandler._data`. test_qlib_internals.py::test_a_handlers_frame_is_found.
    """
    frame = getattr(handler, "_data", None)
    return frame if isinstance(frame, pd.DataFrame) else None
