"""One workflow on one market: rendered, checked, estimated, and handed to Qlib's own qrun."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from kronos_qlib.data.calendar.time_text import Times
from kronos_qlib.data.windows.segments import bounds_of, places_of
from kronos_qlib.data.windows.window import Windows
from kronos_qlib.data.windows.window_dataset import WindowDataset, no_windows
from kronos_qlib.errors import BarDataError, ConfigError, printable
from kronos_qlib.pipeline.stages import check_segments
from kronos_qlib.plugin.blend import BlendModel
from kronos_qlib.plugin.dataset import KronosDataset, KronosHandler
from kronos_qlib.plugin.model import KronosModel
from kronos_qlib.plugin.preflight.checks import check_run
from kronos_qlib.plugin.provider.reader import read_calendar
from kronos_qlib.plugin.rolling.retraining import check_learnable
from kronos_qlib.plugin.rolling.rolled_workflow import RolledWorkflow, records_left_out
from kronos_qlib.plugin.rolling.rolling_model import RollingModel
from kronos_qlib.plugin.runs.manager import keeping_workflow
from kronos_qlib.plugin.runs.quiet import quiet_libraries
from kronos_qlib.plugin.task_sections import class_of, freq_of, is_map, value_at
from kronos_qlib.plugin.workflows.estimate import estimate, models_of
from kronos_qlib.plugin.workflows.plan_description import (
    described_plan,
    doubts_about,
    header_of,
    store_of,
)
from kronos_qlib.plugin.workflows.templates import dump_yaml
from kronos_qlib.plugin.workflows.workflow_changes import arguments_of
from kronos_qlib.plugin.workflows.workflow_file import Workflow, read_workflow

HANDLED = ("instruments", "start_time", "end_time", "freq")
"""Settings that any handler of Qlib has, and windows follow."""
WINDOWED = ("lookback", "horizon", "min_bars", "max_age_days", "beyond_calendar")
SHARES = (0.6, 0.2, 0.2)
"""Of the calendar, for dates that are proposed."""
LEAST_DAYS = 10
TOO_FEW_DAYS = "these bars are too few to be split"


@dataclass(frozen=True)
class Plan:
    """What a run is going to do, all of it checked."""

    workflow: Workflow
    lines: tuple[tuple[str, str], ...]
    """What to say of it before it begins: a word, and what it is."""
    notes: tuple[str, ...]
    text: str
    """The rendered file, which qrun reads and the run keeps as workflow.yaml."""

    @property
    def experiment(self) -> str:
        """The MLflow experiment's name."""
        return str(self.workflow.config.get("experiment_name", "workflow"))

    @property
    def store(self) -> str:
        """Where MLflow keeps the runs, as `--tracking-uri` takes it."""
        return store_of(self.workflow.config)


def plan_run(
    name: str | Path,
    market: str | Path | None = None,
    changes: Sequence[str] = (),
    fit_dates: bool = False,
    rolled: RolledWorkflow | None = None,
) -> Plan:
    """Everything before the work: the file rendered, settings and bars checked, time estimated.

    Args:
        name, market, changes: as of `read_workflow`.
        fit_dates: train, valid and test are the first 60 %, the next 20 % and the last 20 % of the
            days that the folder has, whatever the market's profile says; `changes` still win.
        rolled: train its model again as time goes on; None runs the workflow as it is.

    Raises:
        ConfigError: a setting cannot work, or there are no bars; names what and where.
        BarDataError: a segment that is to be learned from, judged by or scored has no windows.
        TrainingError: a roll has nothing to learn from.
        CheckpointError: weights cannot be loaded.
    """
    with _environment():  # libraries set some as they are imported
        workflow = read_workflow(name, market, changes)
        if fit_dates:
            changes = (*_fitted(workflow), *changes)
            workflow = read_workflow(name, market, changes)
        task = _checked_task(workflow.config, workflow.path)
        quiet_libraries()
        _open(workflow.config["qlib_init"])
        model = _made(task["model"], f"{workflow.path}: task.model")
        notes = list(workflow.notes)
        if rolled is not None:
            notes += [
                f"{name} is left out: it judges one model, and each roll has its own"
                for name in records_left_out(task)
            ]
            workflow = replace(workflow, config=rolled.of(workflow.config, workflow.path))
            task = workflow.config["task"]
            model = _made(task["model"], f"{workflow.path}: task.model")
        config = workflow.config
        _check_dates(task, model)
        check_run(config)
        source = windows_of(task["dataset"], workflow.path)
        found = _windows(source, model)
        trained, every = model, None
        if isinstance(model, RollingModel):
            _check_rolls(model, source, freq_of(task))
            trained, every = model.make(), model.how.every
        for one in models_of(trained):
            if isinstance(one, KronosModel):
                one.check_stages(source)
        parts = estimate(task, trained, task["dataset"], source, found, every)
    return Plan(
        workflow,
        tuple(described_plan(workflow, source, found, parts)),
        (*notes, *doubts_about(model, source, task)),
        header_of(name, market, changes, rolled) + dump_yaml(config),
    )


def run_plan(plan: Plan) -> str | None:
    """Hand a plan to `qlib.cli.run.workflow`; the environment is afterwards as it was.

    Returns:
        The id of its run; None where its experiment manager is not KronosExpManager.
    """
    from qlib.cli.run import workflow

    with tempfile.TemporaryDirectory(prefix="kronos-qlib-") as folder:
        path = Path(folder) / f"{plan.workflow.path.stem}.yaml"
        path.write_text(plan.text, encoding="ascii", newline="\n")
        with _environment(), keeping_workflow(plan.text) as run_ids:
            workflow(str(path))
    return run_ids[-1] if run_ids else None


def windows_of(section: Mapping[str, Any], where: Path) -> WindowDataset:
    """The windows that a workflow's data set has, or would have if it had any: of the universe and
    the segments of LightGBM too. Bars are read when they are asked for; features are not made.

    Raises:
        ConfigError: the section has no handler or segments, or a setting cannot work.
    """
    kwargs = section.get("kwargs") or {}
    handler = value_at(kwargs, "handler")
    if not is_map(handler) or not is_map(kwargs.get("segments")):
        raise ConfigError(f"{where}: task.dataset.kwargs needs a handler and segments")
    own = handler.get("kwargs") or {}
    if class_of(handler) != KronosHandler.__name__:
        own = {name: own[name] for name in HANDLED if name in own} | dict(
            kwargs.get("bar_handler") or {}
        )
    settings = {name: kwargs[name] for name in WINDOWED if name in kwargs}
    try:
        bars = KronosHandler(**own)
        return KronosDataset(bars, kwargs["segments"], **settings).source
    except TypeError as unknown:
        raise ConfigError(f"{where}: task.dataset: {unknown}") from unknown


def _checked_task(config: Mapping[str, Any], path: Path) -> Mapping[str, Any]:
    task = config.get("task")
    missing = [
        f"task.{name}" for name in ("model", "dataset") if not is_map(value_at(task, name))
    ] + [name for name in ("qlib_init",) if not is_map(config.get(name))]
    if missing or not is_map(task):
        raise ConfigError(f"{path} lacks {', '.join(missing)}: it is no workflow")
    for name in ("model", "dataset"):
        if not task[name].get("class"):
            raise ConfigError(f"{path}: task.{name} names no class")
    return task


def _open(settings: Mapping[str, Any]) -> None:
    """Qlib on the workflow's bars, without its greetings."""
    import qlib

    qlib.init(**{"logging_level": logging.ERROR, **settings})


def _made(section: Mapping[str, Any], where: str) -> Any:
    """An object of a section, its settings checked against its class first."""
    from difflib import get_close_matches

    from qlib.utils import init_instance_by_config

    known, is_open = arguments_of(section)
    for key in section.get("kwargs") or {}:
        if known and key not in known and not is_open:
            near = get_close_matches(str(key), known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(sorted(known))}"
            raise ConfigError(
                f"{where}.kwargs: {section['class']} has no {printable(str(key))!r}; {hint}"
            )
    try:
        return init_instance_by_config(section)
    except (ImportError, AttributeError, TypeError) as problem:
        raise ConfigError(f"{where} cannot be made: {problem}") from problem


def _check_rolls(model: RollingModel, source: WindowDataset, freq: str) -> None:
    """Refuse rolls that have nothing to learn from or to score."""
    inner = model.make()
    for segments in model.planned(source.segments, freq):
        if not isinstance(inner, BlendModel):  # whose members may have windows of their own
            check_learnable(inner, replace(source, segments=segments))


def _needed(model: Any, segments: Sequence[str]) -> list[str]:
    """Segments that a model learns from, is judged by or scores."""
    is_trained = not isinstance(model, KronosModel) or not model.training.is_zero_shot
    order = ("train", "valid", "test") if is_trained else ("test",)
    return [name for name in order if name in segments]


def _check_dates(task: Mapping[str, Any], model: Any) -> None:
    """Refuse segments in which the folder has no day, before its bars are read."""
    segments = value_at(task, "dataset", "kwargs", "segments")
    if not is_map(segments):
        return  # `windows_of` says it
    calendar = read_calendar(freq_of(task))
    for name in _needed(model, list(segments)):
        first, last = bounds_of(segments, name)
        start, stop = places_of(calendar, first, last)
        if start == stop:
            raise ConfigError(
                f"the segment {name}, {first} to {last}, has no bar: the bars go from "
                f"{str(calendar[0])[:10]} to {str(calendar[-1])[:10]}. {_proposed(calendar)}"
            )


def _windows(source: WindowDataset, model: Any) -> dict[str, Windows]:
    """By segment; refused where what is to be learned from or scored is empty."""
    segments = [name for name in ("train", "valid", "test") if name in source.segments]
    found = {name: source.windows(name) for name in segments}
    needed = _needed(model, segments)
    for name in needed:
        if not len(found[name]):
            raise BarDataError(
                f"{no_windows(source, name, found[name].dropped)}. "
                f"{_proposed(source.table.calendar)}"
            )
    if {"train", "valid"} <= set(needed):
        check_segments(source)
    return found


def _dates_of(calendar: Times) -> list[str]:
    """The bars' days shared out, as changes of a workflow; none where there are too few."""
    days = np.unique(calendar.astype("datetime64[D]"))
    if len(days) < LEAST_DAYS:
        return []
    cuts = [0, *(int(len(days) * part) for part in np.cumsum(SHARES)[:-1]), len(days)]
    return [f"start={days[0]}"] + [
        f"{name}_{end}={days[place]}"
        for name, start, stop in zip(("train", "valid", "test"), cuts[:-1], cuts[1:], strict=True)
        for end, place in (("start", start), ("end", stop - 1))
    ]


def _fitted(workflow: Workflow) -> list[str]:
    """Dates of a workflow's own bars, as changes."""
    task = _checked_task(workflow.config, workflow.path)
    quiet_libraries()
    _open(workflow.config["qlib_init"])
    calendar = read_calendar(freq_of(task))
    if not (fitted := _dates_of(calendar)):
        raise BarDataError(f"{workflow.path}: {TOO_FEW_DAYS}")
    return fitted


def _proposed(calendar: Times) -> str:
    """Dates that fit these bars, as they would be typed."""
    fitted = _dates_of(calendar)
    if not fitted:
        return f"T{TOO_FEW_DAYS[1:]}"
    typed = " ".join(f"--set {change}" for change in fitted)
    return f"Dates that fit, for example (--fit-dates takes them): {typed}"


@contextmanager
def _environment() -> Iterator[None]:
    """What MLflow and others set for the processes that they start ends with the block."""
    before = dict(os.environ)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
