"""How long a workflow will take on this machine: windows counted, the network's rate measured.

A guess within a factor of two or so, to know before it starts whether it takes minutes or a night.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from qlib.utils import init_instance_by_config

from kronos_qlib.data.windows.window import Windows
from kronos_qlib.data.windows.window_dataset import WindowDataset
from kronos_qlib.evaluation.forecasts.baselines.volatility_forecasts import GARCH_SECONDS
from kronos_qlib.inference.calibrating import DRAWN
from kronos_qlib.inference.calibrating import PATHS as CALIBRATION_PATHS
from kronos_qlib.plugin.baselines import GRUModel
from kronos_qlib.plugin.features import KronosFeatureDataset
from kronos_qlib.plugin.model import FIT, KronosModel
from kronos_qlib.plugin.task_sections import class_of, records_of, value_at
from kronos_qlib.schema import BAR_COLUMNS, TIME_FIELDS
from kronos_qlib.training.stage_settings import AlphaConfig

PROBE_SECONDS = 0.4
"""A probe that took less is repeated with more windows."""
PROBE_WINDOWS = (4, 64)
PASSES = 3
GRU_TRAINED_AS_READ = 3.0
"""A window that a GRU is trained on, in windows read: forward, and backward over all its bars."""
TRAINED_AS_READ = 5.0
"""A window trained on costs as many read once: forward and backward over all its bars, for
which reading the context has a forward pass without the heads."""
JUDGED_AS_READ = 2.0
"""A validation window: both heads at all its bars."""
ROW_FEATURES, ROW_TREES = 4e-4, 1.2e-4
"""Seconds a row and core-pair of Alpha158's expressions, and of LightGBM's trees on them."""
DAY_REPORT, START = 0.03, 15.0
"""Seconds a bar of reports and backtest; of imports, figures and MLflow."""
REPORT_WINDOWS = 500
EACH_TRAINING = ("training", "calibrating")
"""Parts that come again with each training of a RollingModel."""


@dataclass(frozen=True)
class Part:
    """One thing that a run spends its time on."""

    what: str
    seconds: float


@dataclass(frozen=True)
class Rates:
    """Seconds of a network on this machine for one window."""

    read: float
    """Context vector after the last bar."""
    path: float
    """One sampled path."""


@dataclass(frozen=True)
class Counts:
    """Windows of each segment, and moments of the test."""

    windows: Mapping[str, int]
    moments: int

    def of(self, *names: str) -> int:
        """Windows of these segments together."""
        return sum(self.windows.get(name, 0) for name in names)


def estimate(
    task: Mapping[str, Any],
    model: Any,
    dataset: Mapping[str, Any],
    source: WindowDataset,
    found: Mapping[str, Windows],
    every: int | None = None,
) -> list[Part]:
    """Where the time of a workflow goes, the longest part first.

    Args:
        task: the workflow's, for its records.
        model: made from the task, or by its RollingModel, not trained yet.
        dataset: the task's section.
        source: windows of the same bars.
        found: its windows by segment.
        every: moments of the test after which it is trained again; None: it is not.
    """
    test = found.get("test")
    moments = len(np.unique(test.times)) if test is not None and len(test) else 0
    counts = Counts({name: len(windows) for name, windows in found.items()}, moments)
    parts = [Part("start, reports and backtest", START + DAY_REPORT * moments)]
    trainings = math.ceil(moments / every) if every else 1
    measured: dict[tuple[object, ...], Rates] = {}

    def rates_of(one: KronosModel) -> Rates:
        """Measured once for each network: members of a blend may share one."""
        key = (one.checkpoint, one.device, one.dtype, one.from_scratch)
        if key not in measured:
            measured[key] = probe(one, source, found)
        return measured[key]

    for one in models_of(model):
        parts += _of_model(one, counts, rates_of, source.lookback)
        if isinstance(one, GRUModel) and counts.of(*counts.windows):
            parts += _of_gru(one, counts, source.lookback)
    name = str(dataset.get("class"))
    if name == KronosFeatureDataset.__name__ and counts.of("train", "valid", "test"):
        kwargs = dataset.get("kwargs") or {}
        network = init_instance_by_config(kwargs["model"], accept_types=KronosModel)
        rates = rates_of(network)
        each = rates.read * bool(kwargs.get("embeddings", True))
        each += rates.path * network.sampling.paths * bool(kwargs.get("signals"))
        parts.append(Part("contexts and signals as features", each * counts.of(*counts.windows)))
    if class_of(value_at(dataset, "kwargs", "handler")) not in ("KronosHandler", ""):
        rows = counts.of(*counts.windows)
        seconds = rows * (ROW_FEATURES + trainings * ROW_TREES)
        parts.append(Part("features of tables, and trees on them", seconds))
    if draws_paths(task):
        network = next((one for one in models_of(model) if isinstance(one, KronosModel)), None)
        if network is not None and counts.moments:
            windows = int(value_at(task, "forecast", "windows") or REPORT_WINDOWS)
            paths = int(value_at(task, "forecast", "paths") or network.sampling.paths)
            segments = sum(min(windows, counts.of(name)) for name in ("valid", "test"))
            rate = rates_of(network).path
            parts.append(Part("judging forecasts", segments * (paths * rate + GARCH_SECONDS)))
    merged: dict[str, float] = {}
    for part in parts:
        times = trainings if part.what in EACH_TRAINING else 1
        merged[part.what] = merged.get(part.what, 0.0) + times * part.seconds
    return sorted((Part(*item) for item in merged.items()), key=lambda part: -part.seconds)


def describe_estimate(parts: list[Part]) -> str:
    """In a line: minutes in all, and what most of them are spent on."""
    total = sum(part.seconds for part in parts)
    shares = [
        f"{part.what} {part.seconds / total:.0%}" for part in parts if part.seconds > 0.1 * total
    ]
    return f"{describe_minutes(total)}, of which {', '.join(shares[:3])}"


def describe_minutes(seconds: float) -> str:
    """As "about 4 minutes", coarse as the estimate is."""
    minutes = seconds / 60
    if minutes < 1:
        return "less than a minute"
    if minutes < 90:
        rounded = round(minutes) if minutes < 10 else 5 * round(minutes / 5)
        return f"about {rounded} minute{'s' if rounded > 1 else ''}"
    hours = minutes / 60
    return f"about {hours:.0f} hours" if hours < 48 else f"about {hours / 24:.0f} days"


def probe(model: KronosModel, source: WindowDataset, found: Mapping[str, Windows]) -> Rates:
    """Measure a network on some windows of the newest moment that has any."""
    windows = next(found[name] for name in reversed(list(found)) if len(found[name]))
    last = windows.take(windows.times == windows.times.max())
    group = max((one for _, one in last.by_length()), key=len)
    bars, stamps = group.seen()
    predictor = model.predictor
    # Only their shape matters to the clock: the last bars' times stand for those to come.
    ahead = stamps[:, -min(source.horizon, stamps.shape[1]) :]
    ahead = np.repeat(ahead, -(-source.horizon // ahead.shape[1]), axis=1)[:, : source.horizon]
    paths = min(model.sampling.paths, 10)

    def draw(count: int) -> None:
        repeated = np.arange(count) % len(bars)
        predictor.paths(
            bars[repeated], stamps[repeated], ahead[repeated], source.horizon, sample_count=paths
        )

    def read(count: int) -> None:
        repeated = np.arange(count) % len(bars)
        predictor.embed(bars[repeated], stamps[repeated])

    return Rates(_seconds_each(read), _seconds_each(draw) / paths)


def draws_paths(task: Mapping[str, Any]) -> bool:
    """Whether the records judge drawn paths."""
    return any(class_of(one) == "ForecastReportRecord" for one in records_of(task))


def _seconds_each(work: Callable[[int], None]) -> float:
    """Seconds a window, of few where a network is slow and of many where it is fast.

    The first pass, which lays out weights and wakes threads, is not counted; of the others the
    quickest is: on a busy machine one may wait many times as long.
    """
    work(1)
    seconds, count = 0.0, 1
    for count in PROBE_WINDOWS:
        passes = []
        for _ in range(PASSES):
            begun = time.perf_counter()
            work(count)
            passes.append(time.perf_counter() - begun)
        seconds = min(passes)
        if seconds > PROBE_SECONDS:
            break
    return seconds / count


def models_of(model: Any) -> Iterator[Any]:
    """A model, or the members of a blend, whatever blends they are in."""
    members = getattr(model, "members", None)
    if isinstance(members, Mapping):
        for member in members.values():
            yield from models_of(member)
    else:
        yield model


def _of_gru(model: GRUModel, counts: Counts, lookback: int) -> list[Part]:
    rate = probe_gru(model, lookback)
    config, parts = model.training, [Part("scores", counts.of("test") * rate)]
    if model.weights is None:
        learned, judged = _read_in_training(config, counts, lookback)
        parts.append(Part("training", (learned * GRU_TRAINED_AS_READ + judged) * rate))
    return parts


def _read_in_training(config: AlphaConfig, counts: Counts, lookback: int) -> tuple[float, float]:
    """Windows that a network beside a head is trained on, and judged by, over all epochs."""
    # Windows and days bear a known proportion only where all names trade: a day has the mean.
    each = counts.windows.get("test", 0) / max(1, counts.moments)
    share = 1.0
    if each and config.windows_per_day is not None:
        share = min(1.0, config.windows_per_day / each)
    share *= _of_span(config, lookback)
    judged = counts.of("valid")
    if each and config.validation_days is not None:
        judged = min(judged, round(config.validation_days * each))
    return counts.of("train") * share * config.epochs, float(judged * (config.epochs + 1))


def probe_gru(model: GRUModel, lookback: int) -> float:
    """Seconds of a GRU of these sizes for one window, read on this machine."""
    import torch

    from kronos_qlib.inference.devices import pick_device
    from kronos_qlib.model.gru_reader import GRUReader

    device = pick_device(model.device)
    net = GRUReader(model.sizes).to(device).eval()

    def read(count: int) -> None:
        z = torch.zeros(count, lookback, len(BAR_COLUMNS), device=device)
        stamps = torch.zeros(count, lookback, len(TIME_FIELDS), dtype=torch.int64, device=device)
        lengths = torch.full((count,), lookback, dtype=torch.int64, device=device)
        with torch.inference_mode():
            net(z, stamps, lengths).sum().item()

    return _seconds_each(read)


def _of_span(config: AlphaConfig, lookback: int) -> float:
    """Bars read of a window to learn from, over those of a window by itself."""
    return (lookback + config.span - 1) / (config.span * lookback)


def _of_model(
    model: Any, counts: Counts, rates_of: Callable[[KronosModel], Rates], lookback: int
) -> list[Part]:
    if not isinstance(model, KronosModel) or not counts.of(*counts.windows):
        return []
    rates = rates_of(model)
    parts = []
    training = model.training
    train, valid = counts.of("train"), counts.of("valid")
    for stage in (training.tokenizer, training.predictor):
        if stage is not None:
            learned = float(min(stage.windows_per_epoch or train, train) * stage.epochs)
            judged = float(min(stage.validation_windows, valid) * (stage.epochs + 1))
            seconds = (learned * TRAINED_AS_READ + judged * JUDGED_AS_READ) * rates.read
            parts.append(Part("training", seconds))
    if training.alpha is not None:
        if training.alpha.backbone == "frozen":
            read = train * _of_span(training.alpha, lookback) + valid
            parts.append(Part("contexts of the days to learn from", read * rates.read))
        else:
            learned, judged = _read_in_training(training.alpha, counts, lookback)
            parts.append(Part("training", (learned * TRAINED_AS_READ + judged) * rates.read))
    if model.calibration == FIT and not model.signal_settings.ensemble:
        drawn = min(DRAWN, valid) * max(model.sampling.paths, CALIBRATION_PATHS)
        parts.append(Part("calibrating", drawn * rates.path))
    has_head = training.alpha is not None or bool(model.alpha_head)
    if has_head and model.signal_settings.keep is None:
        parts.append(Part("scores", counts.of("test") * rates.read))
    else:
        paths = model.sampling.paths
        parts.append(Part("drawing paths", counts.of("test") * paths * rates.path))
    return parts
