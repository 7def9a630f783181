"""Random numbers: how far paths repeat, what steadies a score, what the choices cost.

Four tables, with nano on windows of real or simulated bars:
1. Batches: share of paths whose bars are the same, bit for bit, when the same series are drawn in
   batches of other sizes, or with the paths split over several batches.
2. Draws: variance over seeds of a day's cross-sectional score (score less the day's mean), against
   independent draws, as the number of independent paths that one path is worth.
3. The s2 attention while generating: cross-entropy of the true next s2 given the true next s1, as
   published (keys not rotated) and as trained (rotated), on held-out bars.
4. Narrow types: share of prompt tokens that differ from float32, and the cross-entropy of each;
   int8 where the CPU multiplies it.

Use bars that nano was not trained on: its training ended with 2001 (assets/nano/README.md).

Example:
    python benchmarks/draws.py demo/market/bars.parquet --first 2022-01-03 --last 2022-12-30
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F  # noqa: N812

from kronos_qlib import Kronos, KronosPredictor, KronosTokenizer
from kronos_qlib.data.calendar.stamps import stamps_of
from kronos_qlib.data.windows.bar_table import BarTable
from kronos_qlib.data.windows.find import windows_to_score
from kronos_qlib.data.windows.scale import WindowScale
from kronos_qlib.data.windows.window import Windows
from kronos_qlib.inference.devices import DTYPES
from kronos_qlib.inference.packed import PackedKronos, PackedTokenizer, Reader, kept_dtype
from kronos_qlib.inference.products.int8_product import can_multiply_int8
from kronos_qlib.schema import BAR_COLUMNS, CLOSE

LOOKBACK, HORIZON = 90, 5
WAYS = {
    "independent": {},
    "stratified": {"stratified": True},
    "common": {"common": True},
    "stratified and common": {"stratified": True, "common": True},
}


class Day:
    """One day's windows, ready to draw."""

    def __init__(self, windows: Windows) -> None:
        rows = windows.rows(slice(None))
        self.bars, self.stamps = windows.table.values[rows], windows.table.stamps_at(rows)
        ends = pd.DatetimeIndex(windows.times)
        ahead = [stamps_of(ends + pd.offsets.BDay(step)) for step in range(1, HORIZON + 1)]
        self.ahead = np.stack(ahead, axis=1)
        self.names = [f"{name} {moment}" for moment, name in windows.index]

    def paths(
        self, forecaster: KronosPredictor, which: slice = slice(None), **options: Any
    ) -> np.ndarray:
        if options.pop("common", False):
            options["keys"] = ["the day"] * len(self.names[which])
        options = {"keys": self.names[which], "coherent": False} | options
        return forecaster.paths(
            self.bars[which], self.stamps[which], self.ahead[which], HORIZON, **options
        )

    def score(self, forecaster: KronosPredictor, **options: Any) -> np.ndarray:
        closes = self.paths(forecaster, **options)[..., CLOSE].astype(np.float64)
        return closes.mean(axis=(1, 2)) / self.bars[:, -1, CLOSE] - 1


def types() -> list[str]:
    return [name for name in DTYPES if name != "int8" or can_multiply_int8()]


def batches(day: Day, pair: tuple[Kronos, KronosTokenizer]) -> list[dict]:
    rows = []
    for dtype in types():
        forecaster = KronosPredictor(*pair, "cpu", dtype=dtype)
        whole = day.paths(forecaster, sample_count=10)
        same, close, count = 0.0, 0.0, 0
        for size in (1, 2, 3, 7, 16, 33):
            for start in range(0, len(whole) - size + 1, max(size, len(whole) // 6)):
                part = slice(start, start + size)
                found = day.paths(forecaster, part, sample_count=10)
                same += (found == whole[part]).all(axis=(2, 3)).sum()
                close += np.isclose(found, whole[part], rtol=1e-4).all(axis=(2, 3)).sum()
                count += found[..., 0, 0].size
        rows.append({"dtype": dtype, "split": "series", "same_bits": same / count,
                     "within_1e-4": close / count, "paths": count})  # fmt: skip
        # The first n of a series' independent paths are the same whatever the number of paths.
        same, close, count = 0.0, 0.0, 0
        for paths in (1, 2, 3, 5, 7):
            found, expected = day.paths(forecaster, sample_count=paths), whole[:, :paths]
            same += (found == expected).all(axis=(2, 3)).sum()
            close += np.isclose(found, expected, rtol=1e-4).all(axis=(2, 3)).sum()
            count += found[..., 0, 0].size
        rows.append({"dtype": dtype, "split": "paths", "same_bits": same / count,
                     "within_1e-4": close / count, "paths": count})  # fmt: skip
    return rows


def variances(days: list[Day], forecaster: KronosPredictor, seeds: int) -> list[dict]:
    rows = []
    for settings in ({"T": 1.0, "top_p": 1.0}, {"T": 0.6, "top_p": 0.9}):
        for paths in (8, 20):
            usual = None
            for name, way in WAYS.items():
                variance = []
                for day in days:
                    scores = np.stack([
                        day.score(forecaster, seed=seed, sample_count=paths, **settings, **way)
                        for seed in range(seeds)
                    ])  # fmt: skip
                    cross = scores - scores.mean(axis=1, keepdims=True)
                    variance.append(cross.var(axis=0, ddof=1).mean())
                found = float(np.mean(variance))
                usual = found if usual is None else usual
                rows.append({**settings, "paths": paths, "draws": name,
                             "deviation": found**0.5, "worth": usual / found})  # fmt: skip
    return rows


@torch.inference_mode()
def s2_attention(windows: Windows, pair: tuple[Kronos, KronosTokenizer]) -> dict:
    net, tokenizer = pair
    bars = windows.table.values[windows.rows(slice(None))]
    z = torch.from_numpy(WindowScale.of(bars).to_z(bars))
    s1, s2 = tokenizer.encode(z)
    stamps = torch.from_numpy(windows.table.stamps_at(windows.rows(slice(None))))
    _, context = net.decode_s1(s1[:, :-1], s2[:, :-1], stamps[:, :-1])
    losses = {}
    for rotate in (False, True):
        each = []
        for at in range(20, LOOKBACK - 1, 3):
            logits = net.decode_s2(context[:, : at + 1], s1[:, at + 1 : at + 2], rotate)[:, 0]
            each.append(F.cross_entropy(logits, s2[:, at + 1], reduction="none"))
        losses[rotate] = torch.stack(each).mean(dim=0).double().numpy()
    gain = losses[False] - losses[True]  # one number a window: its positions are not independent
    return {
        "published": losses[False].mean(), "as_trained": losses[True].mean(),
        "difference": gain.mean(), "standard_error": gain.std(ddof=1) / len(gain) ** 0.5,
        "windows": len(gain),
    }  # fmt: skip


@torch.inference_mode()
def rounding(windows: Windows, pair: tuple[Kronos, KronosTokenizer]) -> list[dict]:
    bars = windows.table.values[windows.rows(slice(None))]
    z = torch.from_numpy(WindowScale.of(bars).to_z(bars))
    stamps = torch.from_numpy(windows.table.stamps_at(windows.rows(slice(None))))
    exact = pair[1].encode(z)
    rows = []
    for name in types():
        net = PackedKronos(pair[0], DTYPES[name])
        tokenizer = PackedTokenizer(pair[1], kept_dtype(DTYPES[name]))
        own = tokenizer.encode(z)
        reader = Reader(net, paths=1, steps=0)
        newest = reader.read(exact[0][:, :-1], exact[1][:, :-1], stamps[:, :-1])
        s1, s2 = exact[0][:, -1], exact[1][:, -1]
        entropy = F.cross_entropy(reader.s1_logits(newest), s1)
        entropy += F.cross_entropy(reader.s2_logits(newest, s1), s2)
        rows.append({
            "dtype": name, "nats_a_bar": float(entropy),
            "s1_differ": float((own[0] != exact[0]).float().mean()),
            "s2_differ": float((own[1] != exact[1]).float().mean()), "windows": len(z),
        })  # fmt: skip
    return rows


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bars", type=Path, help="Parquet: symbol, date, open ... amount")
    parser.add_argument("--first", required=True)
    parser.add_argument("--last", required=True)
    parser.add_argument("--seeds", type=int, default=12)
    parser.add_argument("--instruments", type=int, default=150, help="at most, a day")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(argv)

    frame = pd.read_parquet(args.bars).set_index(["symbol", "date"])[list(BAR_COLUMNS)].dropna()
    windows = windows_to_score(
        BarTable.from_frame(frame), LOOKBACK, args.first, args.last, max_age_days=250
    )
    moments = windows.moments()
    chosen = [moments[int(place)] for place in np.linspace(0, len(moments) - 1, 3)]
    days = [Day(windows.take(slice(day.start, min(day.stop, day.start + args.instruments))))
            for day in chosen]  # fmt: skip
    held_out = windows.take(np.linspace(0, len(windows) - 1, 2000).astype(np.int64))
    pair = Kronos.from_pretrained("nano"), KronosTokenizer.from_pretrained("nano")
    forecaster = KronosPredictor(*pair, "cpu")

    result = {
        "batches": batches(days[0], pair),
        "draws": variances(days, forecaster, args.seeds),
        "s2_attention": s2_attention(held_out, pair),
        "rounding": rounding(held_out, pair),
    }
    for name, table in result.items():
        print(f"\n{name}")
        print(pd.DataFrame(table if isinstance(table, list) else [table]).round(4).to_string())
    if args.json:
        args.json.write_text(json.dumps(result, indent=1), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
