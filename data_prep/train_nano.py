"""Train `kronos-nano`, the small checkpoint that ships with the package.

Trains on bars to 2001-12-31 and chooses by the first half of 2002. No later bar is read: the
second half of 2002 is the workflows' test segment.

Example:
    python data_prep/train_nano.py --bars cn_daily_2000_2002.parquet --out nano
"""

from __future__ import annotations

import argparse
import json
import logging
import time
from pathlib import Path

import pandas as pd
import torch

from kronos_qlib.configs import TrainingConfig
from kronos_qlib.data.windows import BarTable, windows_to_train
from kronos_qlib.model.tokenizer import KronosTokenizer
from kronos_qlib.model.transformer import Kronos
from kronos_qlib.training.batches import Segment
from kronos_qlib.training.loop import train
from kronos_qlib.training.steps import PredictorStep, TokenizerStep

LOOKBACK, HORIZON = 90, 10
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


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--bars", type=Path, required=True, help="long table of bars (Parquet)")
    parser.add_argument("--out", type=Path, required=True, help="folder for the two halves")
    parser.add_argument("--tokenizer-epochs", type=int, default=20, help="of 10,000 windows")
    parser.add_argument("--predictor-epochs", type=int, default=60, help="of 10,000 windows")
    parser.add_argument("--windows-per-epoch", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")

    # The filter is applied while reading: later bars never reach this process.
    frame = pd.read_parquet(args.bars, filters=[("date", "<=", pd.Timestamp(VALID_LAST))])
    table = BarTable.from_frame(frame.set_index(["symbol", "date"]))
    training = Segment(windows_to_train(table, LOOKBACK, HORIZON, None, TRAIN_LAST))
    validation = Segment(
        windows_to_train(table, LOOKBACK, HORIZON, VALID_FIRST, VALID_LAST), VALID_FIRST
    )
    print(f"{len(table)} bars, {len(training)} windows to train on, {len(validation)} to choose by")

    torch.manual_seed(args.seed)  # the initial weights
    tokenizer, predictor = KronosTokenizer(**TOKENIZER), Kronos(**PREDICTOR)
    log: dict[str, object] = {}
    stages = (
        ("tokenizer", TokenizerStep(tokenizer), args.tokenizer_epochs, 2e-3),
        ("predictor", PredictorStep(predictor, tokenizer), args.predictor_epochs, 2e-3),
    )
    for name, step, epochs, learning_rate in stages:
        config = TrainingConfig(
            epochs=epochs,
            windows_per_epoch=args.windows_per_epoch,
            validation_windows=4_000,
            batch_size=50,
            learning_rate=learning_rate,
            weight_decay=0.05,
            clip_norm=2.0,
            seed=args.seed,
        )
        began = time.perf_counter()
        report = train(step, training, validation, config, show_progress=True)
        log[name] = {
            "seconds": round(time.perf_counter() - began),
            "best_epoch": report.best_epoch,
            "history": report.history,
        }
        if name == "tokenizer":
            tokenizer.save_pretrained(args.out / "tokenizer")
    predictor.save_pretrained(args.out / "predictor", tokenizer)
    (args.out / "training_log.json").write_text(json.dumps(log, indent=1), encoding="utf-8")
    for name in ("tokenizer", "predictor"):
        size = (args.out / name / "model.safetensors").stat().st_size
        print(f"{name}: {size / 1e6:.2f} MB, {log[name]}"[:200])
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
