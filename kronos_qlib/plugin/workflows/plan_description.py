"""What a run is going to do, in words for before it begins."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from kronos_qlib.data.windows.segments import describe_segments, first_instant
from kronos_qlib.data.windows.window import Windows
from kronos_qlib.data.windows.window_dataset import WindowDataset
from kronos_qlib.plugin.baselines import GRUModel
from kronos_qlib.plugin.model import KronosModel
from kronos_qlib.plugin.rolling.retraining import HEADS
from kronos_qlib.plugin.rolling.rolled_workflow import RolledWorkflow, rolled_model
from kronos_qlib.plugin.rolling.rolling_model import RollingModel
from kronos_qlib.plugin.runs.about_run import model_name, universe_of
from kronos_qlib.plugin.task_sections import class_of, freq_of, is_map, value_at
from kronos_qlib.plugin.workflows.estimate import Part, describe_estimate
from kronos_qlib.plugin.workflows.workflow_file import Workflow
from kronos_qlib.training.stage_settings import AlphaConfig

ALL_MEAN = "MEAN"
"""The name that documentation gives to the mean of all names."""
SEEN_TO = pd.Timestamp("2024-06-01")
"""Published weights have seen bars before: trained to 2024-02, chosen by those to 2024-05."""


def described_plan(
    workflow: Workflow, source: WindowDataset, found: Mapping[str, Windows], parts: list[Part]
) -> Iterator[tuple[str, str]]:
    """Lines on a checked run: a word, and what it is.

    Args:
        found: windows by segment.
        parts: of the estimate.
    """
    config, table = workflow.config, source.table
    task, backtest = config["task"], config["task"].get("backtest")
    provider = config["qlib_init"].get("provider_uri")
    universe = universe_of(task) or "all"
    yield "workflow", str(workflow.path)
    yield (
        "market",
        (
            f"{universe} of {provider}, region {config['qlib_init'].get('region', 'cn')}"
            + (f", benchmark {backtest.get('benchmark')}" if is_map(backtest) else "")
        ),
    )
    freq = freq_of(task)
    bars = table.places
    reach = table.calendar[[bars.min(), bars.max()]].astype("datetime64[D]")
    yield (
        "bars",
        (
            f"{len(bars):,} of {freq}, {len(table.instruments)} instruments, "
            f"{reach[0]} to {reach[1]}"
        ),
    )
    for name, windows in found.items():
        first, last = (str(day)[:10] for day in source.bounds(name))
        if not len(windows):
            yield name, f"{first} to {last}, no windows"
            continue
        moments, each = np.unique(windows.times, return_counts=True)
        names = len(np.unique(table.instrument_of(windows.ends[:])))
        yield (
            name,
            (
                f"{first} to {last}, {len(windows):,} windows at {len(moments):,} times, {names} "
                f"instruments, {int(np.median(each))} at a time"
            ),
        )
    if is_map(backtest):
        yield (
            "traded",
            (
                f"top {backtest.get('topk', 50)} of them, "
                f"{backtest.get('n_drop', 5)} replaced a bar, "
                f"costs {_points(backtest.get('open_cost', 0.0005))} and "
                f"{_points(backtest.get('close_cost', 0.0015))} bp"
            ),
        )
    yield "model", f"{model_name(task['model'])}; {described_training(task['model'])}"
    if rolled_model(task) is not None:
        model = RollingModel(**task["model"]["kwargs"])
        rolls = model.planned(source.segments, freq)
        begun, ended = (" to ".join(each["test"]) for each in (rolls[0], rolls[-1]))
        yield (
            "rolls",
            (
                f"{len(rolls)}: the first scores {begun}, the last {ended}; finished ones are kept "
                f"in {model.folder or 'no folder'}"
            ),
        )
    yield (
        "estimate",
        f"{describe_estimate(parts)} (rates measured here just now; on a busy machine far longer)",
    )
    yield (
        "results",
        (
            f"experiment {config.get('experiment_name', 'workflow')} in {store_of(config)}, with "
            "the rendered workflow.yaml"
        ),
    )


def described_training(section: Mapping[str, Any]) -> str:
    """What a model's section trains, in words."""
    kwargs = section.get("kwargs") or {}
    if class_of(section) == RollingModel.__name__:
        again = RollingModel(**kwargs).how
        which = "the alpha head alone" if again.retrain == HEADS else "all"
        return (
            f"{described_training(kwargs['model'])}; {which} again every {again.every} trading "
            f"days, {again.start}, train {again.train}"
        )
    if kwargs.get("members"):
        return "; ".join(
            f"{member.get('name', class_of(member))}: {described_training(member)}"
            for member in kwargs["members"]
        )
    if class_of(section) == GRUModel.__name__:
        epochs = value_at(kwargs, "training", "epochs") or AlphaConfig().epochs
        return f"trains a GRU {epochs} epoch{'s' if epochs != 1 else ''}"
    if class_of(section) != KronosModel.__name__:
        return "trained on the segment train"
    stages = {stage: how for stage, how in (kwargs.get("training") or {}).items() if is_map(how)}
    if not stages:
        return "nothing is trained"
    stages_shown = []
    for stage, how in stages.items():
        of = f" of {how['windows_per_epoch']} windows" if how.get("windows_per_epoch") else ""
        epochs = how.get("epochs")
        count = f" {epochs} epoch{'s' if epochs != 1 else ''}{of}" if epochs else ""
        stages_shown.append(f"trains the {'alpha head' if stage == 'alpha' else stage}{count}")
    return ", then ".join(stages_shown)


def doubts_about(
    model: Any, source: WindowDataset, task: Mapping[str, Any] | None = None
) -> Iterator[str]:
    """What is no error, and yet better known before than after."""
    from kronos_qlib.model.checkpoints.pretrained import is_published

    model = model.make() if isinstance(model, RollingModel) else model
    members = getattr(model, "members", None)
    models = members.values() if isinstance(members, Mapping) else [model]
    for one in models:
        if not isinstance(one, KronosModel) or one.from_scratch:
            continue
        begin = source.bounds("test")[0]
        if is_published(one.checkpoint) and (
            begin is None or pd.Timestamp(first_instant(begin)) < SEEN_TO
        ):
            yield (
                f"the published weights {one.checkpoint} have seen bars to 2024-05, and the test "
                f"begins {str(begin)[:10]}: its results say nothing of days to come"
            )
    benchmark = value_at(task, "backtest", "benchmark")
    universe = universe_of(task) if task else None
    if benchmark == ALL_MEAN and universe not in (None, "all"):
        yield (
            f"the benchmark {benchmark} is what `data convert` makes of all names of the folder, "
            f"and the universe is {universe}: the excess holds the difference between the two. "
            "`data members ... --mean NAME` writes the mean of the members alone"
        )
    last = source.table.calendar[source.table.places.max()]
    end = source.bounds("test")[1]
    if end is not None and pd.Timestamp(str(end)[:10]) > pd.Timestamp(last) + pd.Timedelta(days=10):
        yield (
            f"the bars end on {pd.Timestamp(last):%Y-%m-%d}, before the test does "
            f"({describe_segments(source.segments)})"
        )


def header_of(
    name: str | Path,
    market: str | Path | None,
    changes: Sequence[str],
    rolled: RolledWorkflow | None = None,
) -> str:
    """Comment above a rendered file: the command that rendered it."""
    words = ["kronos-qlib run" if rolled is None else "kronos-qlib roll", str(name)]
    words += [f"--market {market}"] if market is not None else []
    words += [f"--set {change}" for change in changes]
    if rolled is not None:
        words += [f"--{key} {value}" for key, value in asdict(rolled.how).items()]
    line = " ".join(words).encode("ascii", "backslashreplace").decode()
    line = "".join(letter for letter in line if letter.isprintable())
    for mark in ("{{", "{%", "{#"):  # qrun renders comments too
        line = line.replace(mark, "{ " + mark[1])
    return f"# Rendered by: {line}\n# `qrun` on this file does it again.\n"


def store_of(config: Mapping[str, Any]) -> str:
    """Where MLflow keeps the runs of a workflow, as `--tracking-uri` takes it."""
    return str(value_at(config, "qlib_init", "exp_manager", "kwargs", "uri") or "mlruns")


def _points(fraction: object) -> str:
    return f"{fraction * 1e4:g}" if isinstance(fraction, int | float) else str(fraction)
