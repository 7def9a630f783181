"""Train `kronos-nano`, the small checkpoint that ships with the package.

Trains on bars to 2001-12-31 and chooses by the first half of 2002. No later bar is read: the
second half of 2002 is the workflows' test segment.

Example:
    python data_prep/train_nano.py --bars cn_daily_2000_2002.parquet --out nano
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

import pandas as pd
import torch

from kronos_qlib.data.windows.bar_table import BarTable
from kronos_qlib.data.windows.find import windows_to_train
from kronos_qlib.model.tokenizer import KronosTokenizer
from kronos_qlib.model.transformer import Kronos
from kronos_qlib.training.batches import Segment
from kronos_qlib.training.loop import train
from kronos_qlib.training.losses import PredictorStep, Step, TokenizerStep
from kronos_qlib.training.resume import RunStore
from kronos_qlib.training.stage_settings import TrainingConfig

LOOKBACK, HORIZON = 90, 10
EPOCH_WINDOWS = 20_000
TRAIN_LAST = "2001-12-31"
VALID_FIRST, VALID_LAST = "2002-01-01", "2002-06-30"

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


def run_stage(
    step: Step,
    training: Segment,
    validation: Segment,
    args: argparse.Namespace,
    windows: int,
) -> None:
    """Train one half and leave its losses, an epoch a row, beside the weights."""
    config = TrainingConfig(
        epochs=max(1, round(windows / EPOCH_WINDOWS)),
        windows_per_epoch=min(windows, EPOCH_WINDOWS),
        validation_windows=4_000,
        batch_size=50,
        learning_rate=args.learning_rate,
        weight_decay=0.05,
        clip_norm=2.0,
        seed=args.seed,
    )
    name = type(step.net).__name__
    store = RunStore(args.out / "states" / name, {"settings": repr((config, vars(args)))})
    report = train(step, training, validation, config, show_progress=True, store=store)
    history = pd.DataFrame(report.history).round(5)
    history.to_csv(args.out / f"{name}_losses.csv", index=False)
    print(f"{name}: best epoch {report.best_epoch}\n{history.iloc[report.best_epoch].to_string()}")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--bars", type=Path, required=True, help="long table of bars (Parquet)")
    parser.add_argument("--out", type=Path, required=True, help="folder for the two halves")
    parser.add_argument("--tokenizer-windows", type=int, default=200_000)
    parser.add_argument("--predictor-windows", type=int, default=240_000)
    parser.add_argument("--learning-rate", type=float, default=2e-3, help="peak")
    parser.add_argument("--dropout", type=float, default=PREDICTOR["ffn_dropout_p"])
    parser.add_argument("--tokenizer", help="alias or folder of one to keep instead of a new one")
    parser.add_argument("--true-dates", action="store_true", help="no shift of the dates")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    args.out.mkdir(parents=True, exist_ok=True)

    # The filter is applied while reading: later bars never reach this process.
    frame = pd.read_parquet(args.bars, filters=[("date", "<=", pd.Timestamp(VALID_LAST))])
    table = BarTable.from_frame(frame.set_index(["symbol", "date"]))
    training = Segment(windows_to_train(table, LOOKBACK, HORIZON, None, TRAIN_LAST))
    validation = Segment(windows_to_train(table, LOOKBACK, HORIZON, VALID_FIRST, VALID_LAST))
    print(f"{len(table)} bars, {len(training)} windows to train on, {len(validation)} to choose by")

    torch.manual_seed(args.seed)  # the initial weights
    dropouts = {"ffn_dropout_p": args.dropout, "resid_dropout_p": args.dropout}
    tokenizer, predictor = KronosTokenizer(**TOKENIZER), Kronos(**PREDICTOR | dropouts)
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
    predictor.save_pretrained(args.out / "predictor", tokenizer, max_context=LOOKBACK + HORIZON)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
