"""What a workflow's task asked for, in words that a comparison shows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kronos_qlib.markup import one_line
from kronos_qlib.plugin.task_sections import label_of, mapping_of, records_of, value_at

LONGEST_SETTING = 300
"""Letters of a setting that are shown."""

ROLLING = ("every", "train", "start", "retrain")
"""Settings of a RollingModel that are shown."""

MUST_AGREE = (
    "Universe",
    "Label",
    "Test segment",
    "Names held",
    "Replaced a bar",
    "Bars held at least",
    "Cost to buy",
    "Cost to sell",
    "Deal price",
    "Benchmark",
)
"""Settings without which two runs' numbers answer different questions."""


def settings_of(task: Mapping[str, Any]) -> dict[str, str]:
    """What a workflow's task asked for, in words; "" where it says nothing."""
    model = mapping_of(task.get("model")) or {"class": task.get("model")}
    kwargs = mapping_of(model.get("kwargs"))
    rolled: str | None = None
    if inner := mapping_of(kwargs.get("model")):  # of a RollingModel
        rolled = _pairs({name: kwargs[name] for name in ROLLING if name in kwargs})
        model, kwargs = inner, mapping_of(inner.get("kwargs"))
    data = mapping_of(value_at(task, "dataset", "kwargs"))
    handler = mapping_of(value_at(data, "handler", "kwargs"))
    segments = mapping_of(data.get("segments"))
    trade = _trading(task)
    found = {
        "Model": model.get("class"),
        "Checkpoint": kwargs.get("checkpoint"),
        "Training": ", ".join(map(str, mapping_of(kwargs.get("training")))) or None,
        "Trained again": rolled,
        "Sampling": _pairs(kwargs.get("sampling")),
        "Seed": kwargs.get("seed"),
        "Lookback, bars": data.get("lookback"),
        "Horizon, bars": data.get("horizon"),
        "Universe": handler.get("instruments"),
        "Label": label_of(task),
        "Training segment": _span(segments.get("train")),
        "Test segment": _span(segments.get("test")),
        "Names held": trade.get("topk"),
        "Replaced a bar": trade.get("n_drop"),
        "Bars held at least": trade.get("hold_thresh"),
        "Deal price": trade.get("deal_price"),
        "Cost to buy": trade.get("open_cost"),
        "Cost to sell": trade.get("close_cost"),
        "Benchmark": trade.get("benchmark"),
    }
    return {name: "" if value is None else _shown(value) for name, value in found.items()}


def _shown(value: object) -> str:
    """A setting in a line that a page can hold."""
    text = one_line(str(value))
    return text if len(text) <= LONGEST_SETTING else f"{text[: LONGEST_SETTING - 1]}…"


def _trading(task: Mapping[str, Any]) -> dict[str, Any]:
    """The strategy's and the exchange's settings, wherever a workflow has them."""
    found: dict[str, Any] = {}
    for record in records_of(task):
        kwargs = mapping_of(record.get("kwargs"))
        config = mapping_of(kwargs.get("config"))  # PortAnaRecord's
        backtest = mapping_of(config.get("backtest"))
        found |= mapping_of(value_at(config, "strategy", "kwargs"))
        found |= {**backtest, **mapping_of(backtest.get("exchange_kwargs"))}
        found |= mapping_of(kwargs.get("backtest"))  # BacktestRecord's
    return {**mapping_of(task.get("backtest")), **found}


def _pairs(values: object) -> str | None:
    if not isinstance(values, Mapping):
        return None
    return ", ".join(f"{name} {value}" for name, value in values.items())


def _span(segment: object) -> str | None:
    return (
        " to ".join(str(each)[:10] for each in segment[:2])
        if isinstance(segment, list | tuple)
        else None
    )
