"""Any span of days, by the model of a run, of the registry or of a workflow, in blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from kronos_qlib.data.calendar.time_text import show_span
from kronos_qlib.data.windows.segments import places_of
from kronos_qlib.errors import ConfigError, MissingArtifactError
from kronos_qlib.pipeline.block_jobs.job_folder import JobFolder
from kronos_qlib.pipeline.block_jobs.run_blocks import Backend, JobResult, OneProcess, run_job
from kronos_qlib.plugin.registry.registered_models import REGISTRY
from kronos_qlib.plugin.runs.about_run import weights_digest
from kronos_qlib.plugin.runs.newest_day import (
    ModelSource,
    freq_of_dataset,
    make_model,
    moved,
    open_bars,
    source_of_run,
    without_backend,
)
from kronos_qlib.plugin.scoring_jobs.block_scoring import (
    ScoringWork,
    What,
    blocks_of,
    check_what,
    qlib_settings,
    usual_moments,
)
from kronos_qlib.plugin.scoring_jobs.job_inputs import inputs_of
from kronos_qlib.plugin.task_sections import class_of, is_map, mapping_of, value_at

if TYPE_CHECKING:
    from kronos_qlib.data.calendar.stamps import Times

WORKFLOWS = (".yaml", ".yml")
ASIDE = (
    "show_progress",
    "contexts_folder",
    "resume_folder",
    "resume_every",
    "log_every",
    "backend",
)
"""Settings of a model that no score depends on."""
LONGEST = 200
"""Letters of a setting that a job's file keeps as they are; of longer ones a digest."""


@dataclass(frozen=True)
class SpanScores:
    """What `score_span` did.

    whose: the model in words. first, last: moments of the calendar that were scored.
    """

    whose: str
    first: pd.Timestamp
    last: pd.Timestamp
    result: JobResult


def score_span(
    asked: str,
    folder: Path,
    *,
    tracking_uri: str = "",
    what: What = "scores",
    backend: Backend | None = None,
    first: str | None = None,
    last: str | None = None,
    moments: int | None = None,
    threads: int | None = None,
    provider_uri: str | None = None,
    beyond_calendar: str | None = None,
    market: str | None = None,
    changes: Sequence[str] = (),
    trust: bool = False,
    show_progress: bool = False,
    report: Callable[[str], None] | None = None,
) -> SpanScores:
    """Score a span of days, block by block, into a folder that a later start goes on with.

    Args:
        asked: a run, as `open_run` takes it; a registered model, "models:/NAME@ALIAS"; or a file of
            a workflow whose model needs no training.
        folder: of this job alone.
        what: "scores"; "signals", all that the model keeps beside; "contexts" or "paths" of a
            KronosModel.
        backend: who does the blocks; None: this process.
        first, last: days or moments, both inclusive; None: of the task's segment "test".
        moments: of a block; None: `usual_moments`.
        threads: that batches on a CPU are planned for; None: this process' own. A job that goes on
            keeps those it was begun with.
        provider_uri: of the bars; None: the model's own.
        beyond_calendar: of the data set, where Qlib's calendar of days to come ends.
        market, changes: of a workflow, as of `read_workflow`.
        trust: as of `open_run`.
        show_progress, report: as of `run_job`.

    Raises:
        ConfigError: something asked for cannot be; or the folder holds another job, says what
            differs.
        JobBusyError: another process works in the folder.
        JobError: the job cannot begin or go on. Blocks that failed are in the result.
        MissingArtifactError: the model would have to be trained first.
        UnsafeArtifactError: as of `open_run`.
    """
    import torch
    from qlib.utils import init_instance_by_config

    from kronos_qlib.plugin.runs.quiet import quiet_imports, quiet_libraries
    from kronos_qlib.plugin.scoring_jobs.model_on_backend import versions
    from kronos_qlib.plugin.scoring_jobs.shipped_model import ShippedModel

    quiet_libraries()
    with _source(asked, tracking_uri, trust, market, changes) as (source, inside):
        own_config = source.task["dataset"]
        bars_folder = open_bars(provider_uri, source)
        days = _moments(own_config, first, last, bars_folder)
        begin, end = pd.Timestamp(days[0]), pd.Timestamp(days[-1])
        model = make_model(source, end, begin)
        check_what(model, what)
        config = moved(own_config, end, begin)
        if beyond_calendar is not None:
            config.setdefault("kwargs", {})["beyond_calendar"] = beyond_calendar
        with quiet_imports():
            dataset = init_instance_by_config(config)
        each = moments or usual_moments(model)
        planned = threads or torch.get_num_threads()
        inputs = inputs_of(model, dataset, end)
        shipped = ShippedModel.of(model)
        work = ScoringWork(shipped, config, qlib_settings(), what, planned, end, inputs)
        facts = {
            "what": what,
            "weights": weights_digest(model),
            **inputs,
            "from": begin.isoformat(),
            "to": end.isoformat(),
            "moments of a block": str(each),
            **_settings("model", source.task["model"], inside),
            **_settings("dataset", config, inside),
        }
        words = source.words
        del dataset  # each worker opens its own
        with JobFolder.open(folder, facts, blocks_of(days, each), planned, versions()) as job:
            if job.threads != planned:
                work = replace(work, threads=job.threads)
            result = run_job(
                job,
                work,
                backend or OneProcess(),
                show_progress=show_progress,
                report=report,
                unit="row" if what in ("scores", "signals") else "window",
            )
    if not result.rows and not result.failed:
        raise ConfigError(
            f"{words} scores nothing from {begin} to {end}: no name of the universe has enough "
            "bars before these days"
        )
    return SpanScores(words, begin, end, result)


@contextmanager
def _source(
    asked: str, tracking_uri: str, trust: bool, market: str | None, changes: Sequence[str]
) -> Iterator[tuple[ModelSource, str | None]]:
    """What is scored, and the folder that its own files lie in for as long as this lasts."""
    from kronos_qlib.plugin.runs.tracking import find_run, open_tracking

    if Path(asked).suffix.lower() in WORKFLOWS:
        yield source_of_workflow(asked, market, changes), None
        return
    if market is not None or changes:
        raise ConfigError(
            f"--market and --set are of a workflow's file, and {asked} is a run: its settings are "
            "those it was trained with"
        )
    client = open_tracking(tracking_uri)
    if not asked.startswith(REGISTRY):
        run_id = find_run(client, asked).info.run_id
        yield source_of_run(client, run_id, trust=trust), None
        return
    from kronos_qlib.plugin.registry.model_folder import source_of_folder
    from kronos_qlib.plugin.registry.registered_models import find_registered, registered_folder

    found = find_registered(client, asked)
    with registered_folder(client, found) as place:
        yield source_of_folder(place, found.uri, trust=trust), str(place.resolve())


def source_of_workflow(
    path: str, market: str | None = None, changes: Sequence[str] = ()
) -> ModelSource:
    """The model and the data set of a workflow whose model is used as it is.

    Raises:
        ConfigError: it is no workflow.
    """
    from kronos_qlib.plugin.workflows.workflow_file import read_workflow

    config = read_workflow(path, market, changes).config
    task, init = mapping_of(config.get("task")), mapping_of(config.get("qlib_init"))
    if not is_map(task.get("model")) or not is_map(task.get("dataset")):
        raise ConfigError(f"{path} lacks task.model or task.dataset: it is no workflow")
    plain = {"model": _plain(task["model"]), "dataset": _plain(task["dataset"])}
    plain["model"] = without_backend(plain["model"])
    state = {"provider_uri": init.get("provider_uri"), "region": init.get("region")}

    def untrained() -> Any:
        raise MissingArtifactError(
            f"{path} trains its {class_of(plain['model'])}: run it first (kronos-qlib run {path}), "
            "and score its run"
        )

    return ModelSource(f"workflow {path}", plain, state, dict, untrained)


def _plain(value: Any) -> Any:
    """Mappings and lists of a YAML reader as Python's own."""
    if isinstance(value, Mapping):
        return {str(name): _plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return value


def _moments(
    dataset: Mapping[str, Any], first: str | None, last: str | None, folder: str
) -> npt.NDArray[np.datetime64]:
    """The calendar's moments that are asked for."""
    from kronos_qlib.plugin.provider.reader import read_calendar

    test = value_at(dataset, "kwargs", "segments", "test")
    usual = list(test) if isinstance(test, list | tuple) and len(test) == 2 else [None, None]
    calendar: Times = read_calendar(freq_of_dataset(dataset))
    bounds = [asked or own for asked, own in zip((first, last), usual, strict=True)]
    days = calendar[slice(*places_of(calendar, *bounds))]
    if not len(days):
        raise ConfigError(
            f"{folder} has no bars from {bounds[0]} to {bounds[1]}: they go from "
            f"{show_span(calendar)}"
        )
    return np.asarray(days)


def _settings(section: str, value: Any, inside: str | None) -> dict[str, str]:
    """What a section says, a line for each value, so that a message can say which one differs.

    Args:
        inside: a folder whose place is another at each start.
    """
    import hashlib

    found: dict[str, str] = {}

    def walk(name: str, one: Any) -> None:
        if isinstance(one, Mapping):
            for key, inner in one.items():
                if key not in ASIDE:
                    walk(f"{name}.{key}", inner)
        elif isinstance(one, list | tuple) and any(isinstance(each, Mapping) for each in one):
            for place, inner in enumerate(one):
                walk(f"{name}.{place}", inner)
        else:
            text = ", ".join(map(str, one)) if isinstance(one, list | tuple) else str(one)
            if inside is not None:
                text = text.replace(inside, "folder:")
            if len(text) > LONGEST:
                text = f"{text[:40]}… {hashlib.sha256(text.encode()).hexdigest()[:16]}"
            found[name] = text

    walk(section, value)
    return found
