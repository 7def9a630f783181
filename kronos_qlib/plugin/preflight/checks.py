"""What would fail late in a run, looked for before its first window is made.

`check_run` takes a workflow as Qlib reads it, and reads files alone: it needs no `qlib.init`, and
nothing is written. `KronosExpManager` calls it in every run of `qrun`, so a misspelt benchmark is
reported before the training and not after it.
"""

from __future__ import annotations

import datetime as dt
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import import_module
from typing import Any

import numpy as np
from qlib.utils.time import Freq

from kronos_qlib.data.calendar.time_text import show_time
from kronos_qlib.data.windows.segments import (
    ORDER,
    bounds_of,
    first_instant,
    last_instant,
    order_problems,
    places_of,
)
from kronos_qlib.errors import ConfigError, KronosError, RefusedRunError
from kronos_qlib.evaluation.ranking.uncertainty import LEAST_DAYS
from kronos_qlib.extras import check_extra
from kronos_qlib.plugin.preflight.planned_run import PlannedData, PlannedRun
from kronos_qlib.plugin.preflight.run_outputs import (
    halves_of,
    kept_folders,
    outputs_of,
    short_of_disk,
    why_unwritable,
)
from kronos_qlib.plugin.provider.faults import (
    check_benchmark,
    check_folder,
    check_frequency,
    check_market,
    why_missing,
)
from kronos_qlib.plugin.task_sections import class_of, mapping_of, value_at
from kronos_qlib.settings import from_mapping

logger = logging.getLogger(__name__)

OURS = __name__.partition(".")[0]
"""This package, whose records are made to check their settings."""
CROWDED = 2
"""Names of the universe to one held: where there are fewer, the log says so."""
STRAY_DAYS = 31
"""Days of a segment that may lie outside the calendar without a word."""


def check_run(config: Mapping[str, Any]) -> None:
    """Refuse a run that would fail later: everything that is wrong, a line for each.

    Looked at are: the folders of bars; the market's file; train, valid and test (in order, apart,
    within the calendar); processors fitted on days after train; what BacktestRecord or Qlib's
    PortAnaRecord is to trade (settings, benchmark, names in the universe of the test segment);
    settings of this package's other records; packages of extras that records and training need;
    that checkpoints are there; that the MLflow store, its artifacts and resume folders can be
    written; and free disk. What is on a network (an MLflow server, the Hub, mounted bars) is not
    asked for, and what a task gives as made objects is not looked into. What works and is
    probably not meant (a universe little larger than topk, a segment that reaches beyond the
    calendar) is logged as a warning.

    Free disk is compared with an estimate of what the run writes: 20 MiB of reports, 200 bytes for
    each bar and name of the test segment, twice the weights of a model that is trained (weights are
    kept whole), and 12 times its weights in its resume folder. A RollingModel is trained as often
    as its test segment has stretches: it keeps the weights of each training in the run and in its
    folder, and each training has a resume folder.

    Args:
        config: as Qlib reads a workflow file, jinja rendered and BASE_CONFIG_PATH merged:
            `qlib_init`, `task`, `experiment_name`. Without `task` folders and store are checked.

    Raises:
        RefusedRunError: a ConfigError with `problems`, one line each, that name the key, path or
            date and the remedy.
    """
    run = PlannedRun(
        mapping_of(config.get("qlib_init")), config.get("task"), config.get("experiment_name")
    )
    problems: list[str] = []
    for check in CHECKS:
        try:
            for problem in check(run):
                if problem not in problems:
                    problems.append(problem)
        except Exception as odd:  # of a task that Qlib itself may take or refuse
            if not isinstance(odd, KronosError):
                logger.warning(
                    "not checked before the run: %s (%s: %s)",
                    check.__name__.strip("_"),
                    type(odd).__name__,
                    odd,
                )
            elif str(odd) not in problems:
                problems.append(str(odd))
    if problems:
        raise RefusedRunError(problems)


# What is looked at


def _bars(run: PlannedRun) -> Iterator[str]:
    for folder in dict.fromkeys(run.folders.values()):
        yield from _problems(check_folder, folder)
    sound = {folder for folder in run.folders.values() if not [*_problems(check_folder, folder)]}
    for data in run.data:
        if data.folder in sound:
            yield from _problems(check_frequency, data.folder, data.freq)


def _universe(run: PlannedRun) -> Iterator[str]:
    for data in run.data:
        if not data.is_sound:
            continue
        instruments = data.handler.get("instruments", "all")
        market = instruments.get("market") if isinstance(instruments, Mapping) else instruments
        if isinstance(market, str):
            yield from _problems(check_market, data.folder, market)
        names = data.universe if data.is_tested else None
        if names is not None and not names:
            what = f"market {market!r}" if isinstance(market, str) else f"{len(instruments)} names"
            cause = ""
            if isinstance(instruments, list | tuple) and data.folder is not None and instruments:
                cause = f"; {why_missing(data.folder, data.freq, [*map(str, instruments)])}"
            yield (
                f"instruments: no name of the {what} is in {data.folder} in the test segment, "
                f"{_shown_span(data, 'test')}{cause}; move the segment or name another market"
            )


def _segments(run: PlannedRun) -> Iterator[str]:
    for data in run.data:
        names = [name for name in ORDER if name in data.segments]
        bad = {name: [*_problems(bounds_of, data.segments, name)] for name in names}
        for problems in bad.values():
            yield from problems
        good = {name: data.segments[name] for name in names if not bad[name]}
        if not data.is_sound:
            yield from order_problems(good, np.array([], dtype="datetime64[ns]"))
            continue
        yield from order_problems(good, data.calendar)
        for name in good:
            yield from _outside(data, name)


def _outside(data: PlannedData, name: str) -> Iterator[str]:
    """A segment without a bar, by the calendar or by the handler's own span."""
    calendar, span = data.calendar, data.span(name)
    assert span is not None
    reach = f"{_day(calendar[0])} to {_day(calendar[-1])}"
    start, stop = places_of(calendar, *bounds_of(data.segments, name))
    if start == stop:
        yield (
            f"segments.{name}, {_shown_span(data, name)}, lies outside the calendar of "
            f"{data.folder}, {reach}: move it into that, or bring the bars up to date"
        )
        return
    stray = max(calendar[0] - span[0], span[1] - calendar[-1])
    if stray > np.timedelta64(STRAY_DAYS, "D"):
        logger.warning(
            "segments.%s, %s, reaches beyond the calendar of %s, %s: it is that much shorter",
            name,
            _shown_span(data, name),
            data.folder,
            reach,
        )
    first, last = data.handler.get("start_time"), data.handler.get("end_time")
    if first is not None and span[1] < first_instant(first):
        yield (
            f"segments.{name}, {_shown_span(data, name)}, ends before the handler's start_time "
            f"{first}: begin it earlier"
        )
    if last is not None and span[0] > last_instant(last, calendar):
        yield (
            f"segments.{name}, {_shown_span(data, name)}, begins after the handler's end_time "
            f"{last}: end it later"
        )


def _fit_times(run: PlannedRun) -> Iterator[str]:
    for data in run.data:
        fitted = data.handler.get("fit_end_time")
        if fitted is None or "train" not in data.segments:
            continue
        end = bounds_of(data.segments, "train")[1]
        empty = np.array([], dtype="datetime64[ns]")
        if end is not None and last_instant(fitted, empty) > last_instant(end, empty):
            yield (
                f"handler.fit_end_time {fitted} lies after the end of segments.train, {end}: its "
                f"processors would learn from what is judged by; set it to {end} or earlier"
            )


def _backtest(run: PlannedRun) -> Iterator[str]:
    for record in run.records:
        if (asked := _traded(record, run.task)) is None:
            continue
        problems, settings = asked
        yield from problems
        names = settings.get("benchmark")
        names = [names] if isinstance(names, str) else names
        for data in run.data[:1]:
            if not data.is_tested:
                continue
            if isinstance(names, list | tuple):
                yield from _benchmark(run, data, settings, [*map(str, names)])
            yield from _size(data, settings)


def _traded(
    record: Mapping[str, Any], task: Mapping[str, Any]
) -> tuple[list[str], dict[str, Any]] | None:
    """What a record is to trade, by BacktestConfig's names; None for one that does not trade."""
    kwargs = mapping_of(record.get("kwargs"))
    if class_of(record) == "BacktestRecord":
        from kronos_qlib.plugin.records.backtest_record import BacktestConfig

        given = kwargs.get("backtest", task.get("backtest"))
        if given is None:
            return ["task.backtest is missing, and BacktestRecord trades by it"], {}
        return [*_problems(from_mapping, BacktestConfig, given, where="backtest")], dict(given)
    config = mapping_of(kwargs.get("config"))
    if class_of(record) != "PortAnaRecord" or not config:
        return None
    strategy = mapping_of(value_at(config, "strategy", "kwargs"))
    keys = ("benchmark", "start_time", "end_time")
    backtest = mapping_of(config.get("backtest"))
    settings = {key: backtest[key] for key in keys if backtest.get(key) is not None}
    settings |= {key: strategy[key] for key in ("topk", "n_drop") if key in strategy}
    topk, n_drop = (settings.get(key) for key in ("topk", "n_drop"))
    if isinstance(topk, int) and isinstance(n_drop, int) and n_drop > topk:
        return [f"strategy.n_drop {n_drop} is more than topk {topk}: lower it"], settings
    return [], settings


def _benchmark(
    run: PlannedRun, data: PlannedData, settings: Mapping[str, Any], names: Sequence[str]
) -> Iterator[str]:
    first, last = bounds_of(data.segments, "test")
    first, last = settings.get("start_time") or first, settings.get("end_time") or last
    freq = str(settings.get("freq") or data.freq)
    if str(Freq(freq)) != str(Freq(data.freq)):  # bars of another folder, whose calendar it is not
        folder = run.folders.get(str(Freq(freq)), data.folder)
        data = PlannedData(data.segments, data.handler, folder, freq)
        if not data.is_sound:
            yield from _problems(check_frequency, data.folder, freq)
            return
    for name in names:
        found = _problems(check_benchmark, data.folder, freq, name, data.calendar, first, last)
        yield from (f"backtest.benchmark: {problem}" for problem in found)


def _packages(run: PlannedRun) -> Iterator[str]:
    """Extras that are not installed; a record's class says in `needs_extra` which it needs."""
    if any(_adapts(model) for model in run.models):
        yield from _problems(check_extra, "train", for_="LoRA")
    for record in run.records:
        module, name = record.get("module_path"), record.get("class")
        if isinstance(module, str) and isinstance(name, str) and module.startswith(f"{OURS}."):
            extra = getattr(getattr(_module(module), name, None), "needs_extra", None)
            if extra is not None:
                yield from _problems(check_extra, extra, for_=name)


def _adapts(settings: Mapping[str, Any]) -> bool:
    """Whether a model trains adapters, by its own preset where the file names none."""
    from kronos_qlib.plugin.model import KronosModel

    try:
        return KronosModel(**settings).training.has_adapters
    except (KronosError, TypeError, ValueError):  # others say what is wrong with it
        return False


def _module(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError:  # `_reports` says so
        return None


def _reports(run: PlannedRun) -> Iterator[str]:
    """Settings of this package's records, as the records themselves check them when made."""
    for record in run.records:
        module, name = record.get("module_path"), record.get("class")
        if not isinstance(module, str) or not module.startswith(f"{OURS}."):
            continue
        if not isinstance(name, str) or class_of(record) == "BacktestRecord":  # see `_backtest`
            continue
        kwargs = dict(mapping_of(record.get("kwargs")))
        try:
            made = getattr(import_module(module), name)(recorder=None, **kwargs)
            if class_of(record) == "ForecastReportRecord":
                from kronos_qlib.inference.sampling import SamplingConfig  # and with it torch

                own = mapping_of(run.models[0].get("sampling")) if run.models else {}
                made.checked_paths(own.get("paths", SamplingConfig().paths))
        except (ImportError, AttributeError, TypeError) as unknown:
            yield f"task.record: {name} cannot be made: {unknown}"
        except KronosError as problem:
            text = str(problem)
            yield text if text.startswith(name) else f"{name}: {text}"


def _test_days(run: PlannedRun) -> Iterator[str]:
    """Days of the test, of which a report on scores needs some for a standard error."""
    if not any(class_of(record) == "SignalReportRecord" for record in run.records):
        return
    for data in run.data:
        if not data.is_tested:
            continue
        start, stop = places_of(data.calendar, *bounds_of(data.segments, "test"))
        days = len(np.unique(data.calendar[start:stop].astype("datetime64[D]")))
        if days < LEAST_DAYS:
            yield (
                f"segments.test, {_shown_span(data, 'test')}, has {days} days of the calendar, and "
                f"SignalReportRecord needs {LEAST_DAYS} for a standard error: test on more, or "
                "leave the record out"
            )


def _size(data: PlannedData, settings: Mapping[str, Any]) -> Iterator[str]:
    topk, names = settings.get("topk"), data.universe
    if not isinstance(topk, int) or not names:
        return
    where = f"{len(names)} names of the universe in the test segment, {_shown_span(data, 'test')}"
    if topk > len(names):
        yield (
            f"backtest.topk {topk} is more than the {where}: hold fewer, or name a larger market"
        )
    elif len(names) < CROWDED * topk:
        logger.warning(
            "backtest.topk %d holds more than half of the %s: scores decide little", topk, where
        )


def _store(run: PlannedRun) -> Iterator[str]:
    for what, folder in outputs_of(run):
        if problem := why_unwritable(folder):
            yield f"{what} cannot be written: {problem}"


def _resume(run: PlannedRun) -> Iterator[str]:
    for name, folder in kept_folders(run):
        if problem := why_unwritable(folder):
            yield f"{name} {folder} cannot be written: {problem}; name another"


def _checkpoints(run: PlannedRun) -> Iterator[str]:
    from kronos_qlib.calibration.calibration import Calibration
    from kronos_qlib.inference.options import AUTO
    from kronos_qlib.plugin.model import FIT

    for model in run.models:
        lacking: set[str] = set()
        for role, name, revision in halves_of(model):
            if name in lacking:  # reported for its predictor
                continue
            from kronos_qlib.model.checkpoints.pretrained import check_there, sizes_of

            if model.get("from_scratch") and not (role == "tokenizer" and model.get("tokenizer")):
                found = [*_problems(sizes_of, name, role)]
            else:
                found = [*_problems(check_there, role, name, revision)]
            lacking |= {name} if found else set()
            yield from found
        if head := model.get("alpha_head"):
            yield from _problems(_check_head, head)
        if (file := model.get("calibration")) not in (None, AUTO, FIT):
            yield from _problems(Calibration.load, str(file))


def _check_head(path: Any) -> None:
    from kronos_qlib.model.checkpoints.pretrained import CONFIG_FILE, WEIGHTS_FILE, folder_of

    folder = folder_of(path)
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if not (folder / name).is_file():
            raise ConfigError(
                f"alpha_head {folder} holds no {name}: name the folder `alpha` that `kronos-qlib "
                "finetune` or save_pretrained wrote"
            )


CHECKS: tuple[Callable[[PlannedRun], Iterator[str]], ...] = (
    _packages,
    _bars,
    _universe,
    _segments,
    _fit_times,
    _backtest,
    _reports,
    _test_days,
    _checkpoints,
    _store,
    _resume,
    short_of_disk,
)


def _problems(check: Callable[..., Any], *given: Any, **more: Any) -> Iterator[str]:
    """What one of our checks says; nothing where all is well."""
    try:
        check(*given, **more)
    except KronosError as problem:
        yield str(problem)


def _shown_span(data: PlannedData, name: str) -> str:
    first, last = bounds_of(data.segments, name)
    return f"{_day(first)} to {_day(last)}"


def _day(moment: Any) -> str:
    if isinstance(moment, np.datetime64 | dt.datetime):
        return show_time(moment)
    return str(moment)
