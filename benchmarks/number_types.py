"""What a narrower number type costs a forecast: nano in float32, bfloat16 and int8, same windows.

1. Bars: nats of the true next bar, p(s1) and p(s2 | s1), from the tokens of float32, so that all
   types are charged for the same; and the share of tokens that the type's own tokenizer gives
   another id.
2. Forecasts: fair CRPS of the return over the horizon, in basis points, of paths drawn with the
   same random numbers, and Spearman's correlation of the paths' mean returns with those in float32;
   `again` is float32 with other random numbers.
3. Contexts: an alpha head trained on float32's contexts of `--train` days, on those of each type of
   the days judged; and one trained on the type's own. Rank IC by day with the return that its label
   names, and Spearman's correlation by day with the scores from float32.

Differences to float32 are of the same windows or days, with standard errors clustered by day.

Take bars that nano was not trained on and was not chosen by (assets/nano/README.md).

Example:
    python benchmarks/number_types.py cn_daily_2020_2023.parquet --train 2022-07-01 2022-12-31 \
        --test 2023-02-01 2023-06-30
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F  # noqa: N812
from likelihood import clustered_error
from scipy.stats import spearmanr

from kronos_qlib import KronosPredictor, WindowDataset
from kronos_qlib.data.files.read import read_bars
from kronos_qlib.data.windows.bar_table import BarTable
from kronos_qlib.data.windows.find import windows_to_train
from kronos_qlib.data.windows.gather import gather
from kronos_qlib.data.windows.known import sample_windows
from kronos_qlib.data.windows.window import Windows
from kronos_qlib.evaluation.forecasts.distributions import PathDistribution
from kronos_qlib.inference.packed import Reader
from kronos_qlib.pipeline.contexts import contexts_of
from kronos_qlib.pipeline.scoring import scores_from_alpha
from kronos_qlib.pipeline.stages import make_head
from kronos_qlib.schema import CLOSE
from kronos_qlib.training.alpha import AlphaNet, AlphaSegment, AlphaStep
from kronos_qlib.training.loop import train
from kronos_qlib.training.stage_settings import AlphaConfig

LOOKBACK, HORIZON, BATCH = 90, 5, 100
PARTS = ("bars", "forecasts", "contexts")
Row = dict[str, Any]


def compared(name: str, values: np.ndarray, exact: np.ndarray, days: np.ndarray) -> Row:
    """Mean, and the paired difference to float32 with its error."""
    less = values - exact
    return {
        name: float(values.mean()), "difference": float(less.mean()),
        "error": clustered_error(less, days), "relative": float(less.mean() / exact.mean()),
    }  # fmt: skip


def by_day(one: np.ndarray, other: np.ndarray, days: np.ndarray) -> np.ndarray:
    """(days,), of those with ten at least."""
    places = [np.flatnonzero(days == day) for day in np.unique(days)]
    return np.array([spearmanr(one[at], other[at])[0] for at in places if len(at) >= 10])


@torch.inference_mode()
def bars(windows: Windows, predictors: dict[str, KronosPredictor]) -> list[Row]:
    """What the true next bar costs in nats."""
    every = np.arange(len(windows))
    days = windows.table.places[windows.ends[every].astype(np.int64) + 1].astype(np.int64)
    nats: dict[str, list[np.ndarray]] = {name: [] for name in predictors}
    others: dict[str, list[np.ndarray]] = {name: [] for name in predictors}
    exact = predictors["float32"].engine().tokenizer
    for start in range(0, len(windows), BATCH):
        batch = gather(windows, every[start : start + BATCH])
        z, stamps = torch.from_numpy(batch.z), torch.from_numpy(batch.stamps)
        s1, s2 = exact.encode(z)
        for name, predictor in predictors.items():
            packed = predictor.engine()
            reader = Reader(packed.net, paths=1, steps=0, rotate_s2=True)
            newest = reader.read(s1[:, :-1], s2[:, :-1], stamps[:, :-1])
            cost = F.cross_entropy(reader.s1_logits(newest), s1[:, -1], reduction="none")
            logits = reader.s2_logits(newest, s1[:, -1])
            cost += F.cross_entropy(logits, s2[:, -1], reduction="none")
            nats[name].append(cost.double().numpy())
            own = packed.tokenizer.encode(z)
            differ = [
                (one != other).float().mean() for one, other in zip(own, (s1, s2), strict=True)
            ]
            others[name].append(np.array(differ))
    found = {name: np.concatenate(each) for name, each in nats.items()}
    rows = []
    for name, each in found.items():
        s1_differ, s2_differ = np.mean(others[name], axis=0)
        row = compared("nats a bar", each, found["float32"], days)
        rows.append({"type": name, "windows": len(each), **row,
                     "s1 differ": s1_differ, "s2 differ": s2_differ})  # fmt: skip
    return rows


def forecasts(windows: Windows, predictors: dict[str, KronosPredictor], paths: int) -> list[Row]:
    """CRPS of the return over the horizon."""
    every = np.arange(len(windows))
    batch = windows.bars(every)
    seen, came = batch[:, :LOOKBACK].astype(np.float32), batch[:, LOOKBACK:]
    stamps = gather(windows, every).stamps
    ends = windows.ends[every].astype(np.int64)
    days = windows.table.places[ends].astype(np.int64)
    last = seen[:, -1, CLOSE].astype(np.float64)
    true = came[:, -1:, CLOSE] / last[:, None] - 1
    keys = [str(place) for place in ends]
    ways = {name: (predictor, 0) for name, predictor in predictors.items()}
    ways["again"] = predictors["float32"], 1
    losses, means = {}, {}
    for name, (predictor, seed) in ways.items():
        drawn = predictor.paths(
            seen, stamps[:, :LOOKBACK], stamps[:, LOOKBACK:], HORIZON,
            sample_count=paths, seed=seed, keys=keys,
        )  # fmt: skip
        closes = drawn[..., -1:, CLOSE].astype(np.float64)
        forecast = PathDistribution(closes, last)
        losses[name], means[name] = 1e4 * forecast.crps(true)[:, 0], forecast.mean()[:, 0]
    rows = []
    for name in ways:
        rows.append({
            "type": name, "windows": len(windows), "paths": paths,
            **compared("CRPS, bp", losses[name], losses["float32"], days),
            "same order": float(spearmanr(means[name], means["float32"])[0]),
        })  # fmt: skip
    return rows


def heads(source: WindowDataset, predictors: dict[str, KronosPredictor], seed: int) -> list[Row]:
    """Rank IC of an alpha head's scores."""
    learned, judged = (source.labelled_windows(name) for name in ("train", "test"))
    config, heads = AlphaConfig(seed=seed), {}
    for name, predictor in predictors.items():
        segment = AlphaSegment.of(learned, source.label, contexts_of(predictor, learned))
        torch.manual_seed(seed)
        head = make_head(config, predictor)
        step = AlphaStep(AlphaNet(head), predictor.tokenizer)
        # Its last days choose the epoch, in every type the same ones.
        cut = len(segment.days) * 4 // 5
        parts = (
            replace(segment, days=segment.days[:cut]),
            replace(segment, days=segment.days[cut:]),
        )
        train(step, *parts, config)
        heads[name] = head.eval()
    scores = {}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        for name, predictor in predictors.items():
            for of_head in dict.fromkeys(("float32", name)):
                scores[f"{of_head} head, {name}"] = scores_from_alpha(
                    predictor, heads[of_head], judged, contexts_folder=Path(folder)
                )
    returns = source.label.of(judged)
    usual = scores["float32 head, float32"]
    days = np.concatenate([np.full(day.stop - day.start, at)
                           for at, day in enumerate(judged.moments())])  # fmt: skip
    known = np.isfinite(returns)
    ics = {name: by_day(each[known], returns[known], days[known]) for name, each in scores.items()}
    exact, rows = ics["float32 head, float32"], []
    for name, each in ics.items():
        rows.append({
            "type": name, "windows": len(judged), "days": len(each),
            **compared("Rank IC", each, exact, np.arange(len(each))),
            "same order": float(by_day(scores[name], usual, days).mean()),
        })  # fmt: skip
    return rows


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bars", type=Path, help="Parquet: symbol, date, open ... volume")
    parser.add_argument("--train", nargs=2, required=True, metavar="DAY", help="heads learn from")
    parser.add_argument("--test", nargs=2, required=True, metavar="DAY", help="what is judged")
    parser.add_argument("--types", nargs="+", default=["bfloat16", "int8"], help="beside float32")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--checkpoint", default="nano")
    parser.add_argument("--windows", type=int, default=4000, help="of the next bar")
    parser.add_argument("--drawn", type=int, default=1000, help="windows that paths are drawn for")
    parser.add_argument("--paths", type=int, default=50)
    parser.add_argument("--instruments", type=int, default=200, help="of the heads, the first ones")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(argv)

    # The filter is applied while reading: later bars never reach this process.
    end = pd.Timestamp(args.test[1]) + pd.Timedelta(days=1)
    frame = read_bars(pd.read_parquet(args.bars, filters=[("date", "<", end)]), as_is=True).bars
    table = BarTable.from_bars(frame, incomplete="skip", invalid="skip")
    names = sorted(frame["symbol"].unique())
    few = frame[frame["symbol"].isin(names[:: max(1, len(names) // args.instruments)])]
    source = WindowDataset(
        table=BarTable.from_bars(few, incomplete="skip", invalid="skip"),
        segments={"train": tuple(args.train), "test": tuple(args.test)},
        lookback=LOOKBACK,
    )
    half = KronosPredictor.from_pretrained(args.checkpoint, device="cpu")
    predictors = {
        name: KronosPredictor(half.model, half.tokenizer, "cpu", dtype=name)
        for name in ("float32", *args.types)
    }
    next_bar = windows_to_train(table, LOOKBACK, 1, *args.test).by_time()
    ahead = windows_to_train(table, LOOKBACK, HORIZON, *args.test).by_time()
    parts = {
        "bars": lambda: bars(sample_windows(next_bar, args.windows, args.seed), predictors),
        "forecasts": lambda: forecasts(
            sample_windows(ahead, args.drawn, args.seed), predictors, args.paths
        ),
        "contexts": lambda: heads(source, predictors, args.seed),
    }
    result = {}
    for name in args.parts:
        rows = result[name] = parts[name]()
        print(f"\n{name}\n{pd.DataFrame(rows).round(5).to_string(index=False)}", flush=True)
    if args.json:
        args.json.write_text(json.dumps(result, indent=1), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
