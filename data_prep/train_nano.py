"""Train `kronos-nano`, the small checkpoint that ships with the package, on several markets.

Each market gives the same number of windows, and is judged by the half year after. No later bar is
read: what comes then is kept for tests. Stopped, the same command goes on where it was.

Example:
    python data_prep/train_nano.py --data ../shared/data --out nano
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from kronos_qlib.data.files.read import read_bars
from kronos_qlib.data.windows.bar_table import BarTable
from kronos_qlib.data.windows.find import windows_to_train
from kronos_qlib.data.windows.window import Windows
from kronos_qlib.model.tokenizer import KronosTokenizer
from kronos_qlib.model.transformer import Kronos
from kronos_qlib.training.batches import Segment
from kronos_qlib.training.loop import train
from kronos_qlib.training.losses import PredictorStep, Step, TokenizerStep, evaluate
from kronos_qlib.training.resume import RunStore
from kronos_qlib.training.stage_settings import TrainingConfig

LOOKBACK, HORIZON = 90, 10
"""Of the windows that choose the weights; only their horizons count."""
LOOKBACKS = (30, 45, 60, 90, 90, 120, 180, 246)
"""Of training batches, equally often."""
MAX_CONTEXT = max(LOOKBACKS) + HORIZON
EPOCH_WINDOWS = 20_000
VALID_WINDOWS = 1_000
"""Of each market."""

TOKENIZER = {
    "d_in": 6, "d_model": 64, "n_heads": 4, "ff_dim": 128, "n_enc_layers": 3, "n_dec_layers": 3,
    "ffn_dropout_p": 0.0, "attn_dropout_p": 0.0, "resid_dropout_p": 0.0, "s1_bits": 8,
    "s2_bits": 8, "beta": 0.05, "gamma0": 1.0, "gamma": 1.1, "zeta": 0.05, "group_size": 4,
}  # fmt: skip
PREDICTOR = {
    "s1_bits": 8, "s2_bits": 8, "n_layers": 4, "d_model": 128, "n_heads": 4, "ff_dim": 192,
    "ffn_dropout_p": 0.1, "attn_dropout_p": 0.0, "resid_dropout_p": 0.1, "token_dropout_p": 0.0,
    "learn_te": True,
}  # fmt: skip


@dataclass(frozen=True)
class Stretch:
    """The bars of one file whose windows have their horizon between two days, both included."""

    file: str
    first: str | None
    last: str


@dataclass(frozen=True)
class Market:
    """What is learned from, and the half year after, by which weights are chosen."""

    train: Stretch
    valid: Stretch


MARKETS = {
    "cn2000": Market(
        Stretch("cn_daily_2000_2002.parquet", None, "2001-12-31"),
        Stretch("cn_daily_2000_2002.parquet", "2002-01-01", "2002-06-30"),
    ),
    "cn2020": Market(
        Stretch("cn_daily_2020_2023.parquet", None, "2021-12-31"),
        Stretch("cn_daily_2020_2023.parquet", "2022-01-01", "2022-06-30"),
    ),
    # The file of the years after begins in February 2013: its first windows end in June.
    "us": Market(
        Stretch("us_daily_2000_2012.parquet", None, "2012-12-31"),
        Stretch("us_daily_2013_2016.parquet", None, "2013-12-31"),
    ),
    # The last quarter of 2022 is left for tests: there are no later bars.
    "crypto_1h": Market(
        Stretch("crypto_1h_2021_2022.parquet", None, "2022-06-30"),
        Stretch("crypto_1h_2021_2022.parquet", "2022-07-01", "2022-09-30"),
    ),
}


def read_stretch(folder: Path, stretch: Stretch) -> pd.DataFrame:
    """Bars to the last day. The filter is applied while reading: later ones are never seen."""
    end = pd.Timestamp(stretch.last) + pd.Timedelta(days=1)
    frame = pd.read_parquet(folder / stretch.file, filters=[("date", "<", end)])
    return read_bars(frame, as_is=True).bars


def windows_of(bars: pd.DataFrame, stretch: Stretch, lookback: int, min_bars: int) -> Windows:
    """Windows with their horizon in the stretch; bars that break a rule are left out."""
    table = BarTable.from_bars(bars, incomplete="skip", invalid="skip")
    ends = stretch.first, stretch.last
    return windows_to_train(table, lookback, HORIZON, *ends, min_bars=min_bars)


def evenly(windows: Windows, most: int) -> Windows:
    """At most `most` of the windows, evenly spaced."""
    places = np.linspace(0, len(windows) - 1, min(most, len(windows))).round().astype(np.int64)
    return windows.take(places)


def joined(parts: Sequence[Windows]) -> Windows:
    """Windows of several tables as those of one table."""
    places = [part.table.calendar[part.table.places] for part in parts]
    calendar, inverse = np.unique(np.concatenate(places), return_inverse=True)
    starts = np.cumsum([0, *(len(part.table) for part in parts)])
    table = BarTable(
        np.concatenate([part.table.values for part in parts]),
        inverse.astype(np.uint16 if len(calendar) < 2**16 else np.uint32),
        calendar,
        tuple(
            f"{number}:{name}"
            for number, part in enumerate(parts)
            for name in part.table.instruments
        ),
        np.concatenate(
            [part.table.offsets[:-1] + start for part, start in zip(parts, starts, strict=False)]
            + [starts[-1:]]
        ),
    )
    lookback = max(part.lookback for part in parts)
    lengths = [
        np.full(len(part), part.lookback, dtype=np.int32) if part.lengths is None else part.lengths
        for part in parts
    ]
    ends = [part.ends[:] + start for part, start in zip(parts, starts, strict=False)]
    seen = np.concatenate(lengths)
    return Windows(
        table,
        np.concatenate(ends).astype(np.int64),
        lookback,
        HORIZON,
        None if (seen == lookback).all() else seen,
    )


def load(folder: Path, names: Sequence[str]) -> tuple[Segment, dict[str, Segment]]:
    """Windows of all markets to train on, and those of each to choose by."""
    training, validation = [], {}
    for name in names:
        market = MARKETS[name]
        bars = read_stretch(folder, market.train)
        training.append(windows_of(bars, market.train, max(LOOKBACKS), min(LOOKBACKS)))
        bars = read_stretch(folder, market.valid)
        found = windows_of(bars, market.valid, LOOKBACK, LOOKBACK).by_time()
        # Only horizons count: lookbacks may be bars that were trained on.
        validation[name] = Segment(evenly(found, VALID_WINDOWS), newest=HORIZON)
        print(f"{name}: {len(training[-1])} windows to train on, {len(found)} to choose by")
    most = min(map(len, training))
    chosen = joined([evenly(part, most) for part in training])
    return Segment(chosen, lookbacks=LOOKBACKS), validation


def run_stage(
    step: Step,
    training: Segment,
    validation: dict[str, Segment],
    args: argparse.Namespace,
    windows: int,
) -> None:
    """Train one half and leave its losses, an epoch a row, beside the weights."""
    config = TrainingConfig(
        epochs=max(1, round(windows / EPOCH_WINDOWS)),
        windows_per_epoch=min(windows, EPOCH_WINDOWS),
        validation_windows=VALID_WINDOWS * len(validation),
        batch_size=50,
        learning_rate=args.learning_rate,
        weight_decay=0.05,
        clip_norm=2.0,
        seed=args.seed,
    )
    name = type(step.net).__name__
    together = joined([part.windows for part in validation.values()])
    store = RunStore(args.out / "states" / name, {"settings": repr((config, vars(args)))})
    report = train(
        step,
        training,
        Segment(together, newest=HORIZON),
        config,
        show_progress=True,
        store=store,
    )
    history = pd.DataFrame(report.history).round(5)
    history.to_csv(args.out / f"{name}_losses.csv", index=False)
    print(f"{name}: best epoch {report.best_epoch}\n{history.iloc[report.best_epoch].to_string()}")
    by_market = {}
    for market, part in validation.items():
        by_market[market] = evaluate(step, part, replace(config, batch_size=250), "cpu")
    (args.out / f"{name}_by_market.json").write_text(json.dumps(by_market, indent=1) + "\n")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the bars")
    parser.add_argument("--out", type=Path, required=True, help="folder for the two halves")
    parser.add_argument("--markets", nargs="+", choices=MARKETS, default=list(MARKETS))
    parser.add_argument("--tokenizer-windows", type=int, default=300_000)
    parser.add_argument("--predictor-windows", type=int, default=600_000)
    parser.add_argument("--learning-rate", type=float, default=2e-3, help="peak")
    parser.add_argument("--dropout", type=float, default=PREDICTOR["ffn_dropout_p"])
    parser.add_argument("--tokenizer", help="alias or folder of one to keep instead of a new one")
    parser.add_argument("--true-dates", action="store_true", help="no shift of the dates")
    parser.add_argument(
        "--time-tables-std", type=float, help="of new time tables, in place of the published"
    )
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    args.out.mkdir(parents=True, exist_ok=True)

    training, validation = load(args.data, args.markets)
    print(f"{len(training)} windows to train on", flush=True)

    torch.manual_seed(args.seed)  # the initial weights
    dropouts = {"ffn_dropout_p": args.dropout, "resid_dropout_p": args.dropout}
    tokenizer, predictor = KronosTokenizer(**TOKENIZER), Kronos(**PREDICTOR | dropouts)
    if args.time_tables_std:
        for table in predictor.time_emb.tables():
            torch.nn.init.normal_(table, std=args.time_tables_std)
    if args.tokenizer:
        tokenizer = KronosTokenizer.from_pretrained(args.tokenizer)
    elif (args.out / "tokenizer" / "model.safetensors").exists():
        print(f"resuming: the tokenizer in {args.out} is kept")
        tokenizer = KronosTokenizer.from_pretrained(args.out)
    else:
        step = TokenizerStep(tokenizer)
        run_stage(step, training, validation, args, args.tokenizer_windows)
        tokenizer.save_pretrained(args.out / "tokenizer")
    if not args.predictor_windows:
        return 0
    step = PredictorStep(predictor, tokenizer, shift_dates=not args.true_dates)
    run_stage(step, training, validation, args, args.predictor_windows)
    predictor.save_pretrained(args.out / "predictor", tokenizer, max_context=MAX_CONTEXT)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
