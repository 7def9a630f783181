"""How fast alpha heads train, what their contexts cost on disk, and what float16 does to a ranking.

Bars are a simulated market's (`kronos-qlib data demo`); contexts of the epochs are random numbers,
since only their shape costs time. Threads are as `KronosModel.fit` sets them.

- epoch: an epoch of a head on a frozen backbone, 500 days of 800 names, for each option and width
  of the context: 128 is nano's, 512 small's. Seconds by the median over 20 steps, from step to
  step, without validation; "CPU s" is what the process itself computed, which is what counts where
  other work has the cores.
- contexts: nano's contexts of some days: read by the network, found again on disk, and with them
  a head's scores of days that it has not seen, trained and scored on float32 and on float16.
  "same" are Spearman's correlation by day of both, the lowest and the mean, and the share of each
  day's best fifth that both name.
- backbone: windows a second of a trained backbone, whole and lora, forwards and back, their tokens
  made beforehand and not; beside them, contexts read alone.

Example:
    python benchmarks/alpha_heads.py --task epoch
    python benchmarks/alpha_heads.py --task contexts backbone --json heads.json
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr

from kronos_qlib import KronosModel, KronosPredictor, WindowDataset
from kronos_qlib.data.files.synthetic import MarketConfig, make_market
from kronos_qlib.data.windows.bar_table import BarTable
from kronos_qlib.data.windows.scale_features import SCALE_FEATURES
from kronos_qlib.data.windows.window import Windows
from kronos_qlib.evaluation.text_table import format_rows
from kronos_qlib.model.alpha_head import AlphaHead
from kronos_qlib.model.sizes import ContextConfig
from kronos_qlib.pipeline.contexts import contexts_of, stored_contexts
from kronos_qlib.pipeline.scoring import scores_from_alpha
from kronos_qlib.pipeline.stages import make_head
from kronos_qlib.training.alpha import (
    ALPHA_LOSSES,
    AlphaNet,
    AlphaSegment,
    AlphaStep,
    with_day_tokens,
)
from kronos_qlib.training.hardware import threads_for
from kronos_qlib.training.loop import train
from kronos_qlib.training.lora import adapters, frozen
from kronos_qlib.training.stage_settings import AlphaConfig

OPTIONS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "rank": {"loss": "rank"},
    "linear_path": {"linear_path": True},
    "horizons of 4": {"horizons": [1, 2, 5, 10]},
    "context of 3": {"context": {"bars": 20, "layers": [2, 3]}},
    "attention 16": {"attention": 16},
    "neutral": {"neutral": True},
    "all": {
        "linear_path": True,
        "horizons": [1, 2, 5, 10],
        "drop_extremes": 0.02,
        "context": {"bars": 20, "layers": [2, 3]},
        "attention": 16,
        "neutral": True,
    },
}
LOOKBACK = 90
STEPS = 20
Row = dict[str, Any]


def market(names: int, days: int, seed: int = 1) -> WindowDataset:
    """Windows of so many days with a label, after their lookbacks."""
    years = (days + LOOKBACK + 15) / 250
    config = MarketConfig(instruments=names, sectors=8, years=years, effect=0.2, late_share=0.0,
                          seed=seed)  # fmt: skip
    table = BarTable.from_bars(make_market(config).bars)
    return WindowDataset(table=table, segments={"all": (None, None)}, lookback=LOOKBACK)


def first_days(windows: Windows, first: int, last: int) -> Windows:
    """Those of the days from the `first` up to, without, the `last`."""
    days = windows.moments()
    return windows.take(slice(days[first].start, days[min(last, len(days)) - 1].stop))


def epochs(args: argparse.Namespace) -> list[Row]:
    """Seconds an epoch by option and width."""
    source = market(args.names, args.days)
    windows = first_days(source.labelled_windows("all", 11), 0, args.days)
    labels = [source.label.over(bars) for bars in (2, 5, 10)]
    segment = AlphaSegment.of(windows, source.label, others=labels)
    judged = replace(segment, days=segment.days[:2])
    rng = np.random.default_rng(0)
    rows = []
    for width in args.widths:
        parts = {1: rng.standard_normal((len(windows), width), dtype=np.float32)}
        for name in args.options:
            config = AlphaConfig(epochs=1, **OPTIONS[name])
            parts.setdefault(count := config.context.parts, np.tile(parts[1], count))
            training, validation = (
                replace(
                    one,
                    contexts=parts[count],
                    others=one.others if config.horizons else None,
                )
                for one in (segment, judged)
            )
            training = training.without_extremes(config.drop_extremes)
            features = segment.features.shape[1]
            head = AlphaHead(
                width,
                features,
                config.context_width,
                config.hidden,
                config.dropout,
                linear_path=config.linear_path,
                attention=config.attention,
                market=features if config.attention else 0,
                outputs=config.outputs,
                context=config.context,
                neutral=len(SCALE_FEATURES) if config.neutral else 0,
            )
            step = AlphaStep(AlphaNet(head), args.predictor.tokenizer, ALPHA_LOSSES[config.loss])
            marks: list[tuple[float, float]] = []

            def mark(step: int, row: dict[str, float], marks: list[Any] = marks) -> None:
                marks.append((time.perf_counter(), time.process_time()))

            with threads_for(args.names * (count * width + features)):
                train(step, training, validation, config, on_steps=mark, log_every=STEPS)
            wall, busy = np.median(np.diff(np.array(marks), axis=0), axis=0) / STEPS
            days = len(training.days)
            rows.append(
                {
                    "option": name,
                    "width": width,
                    "days": days,
                    "names": round(len(windows) / days),
                    "epoch, s": round(float(wall) * days, 2),
                    "epoch, CPU s": round(float(busy) * days, 2),
                    "CPU ms a day": round(1e3 * float(busy), 2),
                }
            )
            print(rows[-1], flush=True)
    return rows


def contexts(args: argparse.Namespace) -> list[Row]:
    """Contexts read and found again, and rankings on either number type."""
    names, days = min(args.names, 200), min(args.days, 60)
    source = market(names, days + 20)
    windows = source.labelled_windows("all", 2)
    seen, unseen = first_days(windows, 0, days), first_days(windows, days, days + 20)
    predictor, rows, scores = args.predictor, [], {}
    for kind in ("float32", "float16"):
        pooling = ContextConfig(dtype=kind)
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            begun = time.perf_counter()
            read = stored_contexts(predictor, seen, Path(folder), pooling=pooling)
            middle = time.perf_counter()
            stored_contexts(predictor, seen, Path(folder), pooling=pooling)
            found = time.perf_counter() - middle
            size = sum(file.stat().st_size for file in Path(folder).iterdir())
            config = AlphaConfig(context={"dtype": kind})  # type: ignore[arg-type]
            segment = AlphaSegment.of(seen, source.label, read)
            head = make_head(config, predictor)
            step = AlphaStep(AlphaNet(head), predictor.tokenizer)
            with threads_for(names * 128):
                train(step, segment, replace(segment, days=segment.days[-10:]), config)
            scores[kind] = scores_from_alpha(predictor, head, unseen)
        rows.append(
            {
                "type": kind,
                "windows": len(seen),
                "read, windows/s": round(len(seen) / (middle - begun)),
                "found again, windows/s": round(len(seen) / found),
                "MB": round(size / 1e6, 1),
            }
        )
    same, best = [], []
    for day in unseen.moments():
        one, other = scores["float32"][day], scores["float16"][day]
        same.append(float(spearmanr(one, other)[0]))
        count = max(1, len(one) // 5)
        both = set(np.argsort(one)[-count:]) & set(np.argsort(other)[-count:])
        best.append(len(both) / count)
    rows[1] |= {
        "same, lowest": round(min(same), 5),
        "same, mean": round(float(np.mean(same)), 5),
        "best fifth": round(float(np.mean(best)), 4),
    }
    return rows


TRAINED_WAYS = (
    ("beforehand", 1, "float32"),
    ("in the step", 1, "float32"),
    ("in the step", 5, "float32"),
    ("in the step", 10, "float32"),
    ("in the step", 10, "bfloat16"),
)
"""Where tokens are made, days that a step reads together, number type."""


def backbones(args: argparse.Namespace) -> list[Row]:
    """Windows a second of a backbone that is trained along."""
    names, days = min(args.names, 200), 12
    source = market(names, days + 2)
    windows = first_days(source.labelled_windows("all", 2), 0, days)
    begun = time.perf_counter()
    contexts_of(args.predictor, first_days(windows, 0, 4))
    rate = 4 * names / (time.perf_counter() - begun)
    rows: list[Row] = [{"backbone": "read alone", "windows/s": round(rate)}]
    segment = AlphaSegment.of(windows, source.label)
    judged = replace(segment, days=segment.days[:1])
    for backbone in ("whole", "lora"):
        for tokens, span, precision in TRAINED_WAYS:
            predictor = KronosPredictor.from_pretrained("nano", device="cpu")
            config = AlphaConfig(backbone=backbone, epochs=1, span=span, precision=precision)
            net = predictor.model
            step = AlphaStep(AlphaNet(make_head(config, predictor), net), predictor.tokenizer)
            training = replace(segment, span=span)
            if tokens == "beforehand":
                training = with_day_tokens(segment, predictor.tokenizer, None, 2, "cpu")
            with ExitStack() as stack:
                stack.enter_context(frozen(net.head, net.dep_layer))
                rank = config.lora_rank if backbone == "lora" else None
                stack.enter_context(adapters(net, rank, config.lora_alpha, 0))
                report = train(step, training, judged, config, log_every=2 if span == 1 else 1)
            speed = statistics.median(row["windows_per_second"] for row in report.steps)
            rows.append(
                {
                    "backbone": backbone,
                    "tokens": tokens,
                    "days at once": span,
                    "type": precision,
                    "windows/s": round(speed),
                }
            )
            print(rows[-1], flush=True)
    return rows


TASKS = {"epoch": epochs, "contexts": contexts, "backbone": backbones}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--task", nargs="+", choices=TASKS, default=["epoch"])
    parser.add_argument("--names", type=int, default=800)
    parser.add_argument("--days", type=int, default=500)
    parser.add_argument("--widths", type=int, nargs="+", default=[128, 512])
    parser.add_argument("--options", nargs="+", choices=OPTIONS, default=list(OPTIONS))
    parser.add_argument("--json", type=Path, help="write the tables here too")
    args = parser.parse_args()
    args.predictor = KronosModel("nano", device="cpu").predictor
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}")
    result = {}
    for task in args.task:
        rows = result[task] = TASKS[task](args)
        names = list(dict.fromkeys(name for row in rows for name in row))
        print(f"\n{task}")
        print(format_rows([names, *([str(row.get(name, "")) for name in names] for row in rows)]))
    if args.json:
        args.json.write_text(json.dumps(result, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
