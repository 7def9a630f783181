"""What StreamingPredictor takes for a bar, and what its fast mode changes.

Speed: `--instruments` names (those of the file, over and over) get a bar each by `push_many`, bar
by bar, for as many bars as a scale is held and one more, so that a full read of all is among them.
A first such round is not timed. Columns: bars a second over the round; milliseconds of the middle
push and of the slowest, for all instruments together; MiB kept. What is timed begins with a frame
of bars and ends with a table of quantiles.

Difference: at `--starts` moments, evenly spaced, both modes begin with the same bars and get the
same next ones; random numbers are common. By the age of the held scale, in bars: how far fast's
median and its 5-95 % band lie from exact's, as mean |difference| in shares of the width of exact's
band; CRPS of both, of closes as returns in basis points, and their difference with a standard error
over the moments. Age 0 is a read, and must be 0. Paths are as drawn; with `--calibrated` as users
get them: a calibration that takes its band from past volatility alone, as nano's does of hours,
makes the quantiles of both modes the same.

Example:
    python benchmarks/streaming.py --data crypto_1h_2021_2022.parquet --freq h
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from kronos_qlib.data.files.read import read_bars
from kronos_qlib.data.windows.bar_table import BarTable
from kronos_qlib.evaluation.forecasts.distributions import PathDistribution
from kronos_qlib.inference.options import AUTO
from kronos_qlib.inference.predictor import KronosPredictor
from kronos_qlib.inference.sampling import SamplingConfig
from kronos_qlib.inference.streaming.streaming_predictor import StreamingPredictor
from kronos_qlib.schema import BAR_COLUMNS, CLOSE

MODES = ("exact", "fast")
LEVELS = (0.05, 0.5, 0.95)
BASIS_POINTS = 1e4


@dataclass(frozen=True)
class Market:
    """Bars of all names at all times: (times, names, 6), NaN where one has no bar."""

    bars: np.ndarray
    times: pd.DatetimeIndex
    names: list[str]

    @classmethod
    def read(cls, path: Path) -> Market:
        """What `data check` would refuse is left out here, as if suspended."""
        table = BarTable.from_bars(read_bars(path).bars, "skip", "skip", "skip")
        bars = np.full((len(table.calendar), len(table.instruments), len(BAR_COLUMNS)), np.nan)
        owners = table.instrument_of(np.arange(len(table)))
        bars[table.places, owners] = table.values
        return cls(bars, pd.DatetimeIndex(table.calendar), list(table.instruments))

    def of(self, count: int) -> Market:
        """As many names, those that are there over and over."""
        which = np.arange(count) % len(self.names)
        names = [f"{self.names[one]}_{round_}" for round_, one in
                 zip(np.arange(count) // len(self.names), which, strict=True)]  # fmt: skip
        return Market(self.bars[:, which], self.times, names)

    def frame(self, start: int, stop: int) -> pd.DataFrame:
        """The bars at times from `start` up to, without, `stop`, as a long table."""
        bars = self.bars[start:stop]
        place, owner = np.nonzero(np.isfinite(bars).all(axis=2))
        table = pd.DataFrame(bars[place, owner], columns=list(BAR_COLUMNS))
        table.insert(0, "date", self.times[start:stop][place])
        table.insert(0, "symbol", np.array(self.names, dtype=object)[owner])
        return table


def stream_of(
    predictor: KronosPredictor, mode: str, args: argparse.Namespace
) -> StreamingPredictor:
    return StreamingPredictor(
        predictor,
        lookback=args.lookback,
        horizon=args.horizon,
        mode=mode,
        hold=args.hold,
        sampling=SamplingConfig(paths=args.paths, temperature=1.0, top_p=0.9),
        levels=LEVELS,
        freq=args.freq,
        exchange=args.exchange,
        calibration=AUTO if args.calibrated else None,
        invalid="skip",
        incomplete="skip",
    )


def measure_speed(market: Market, predictor: KronosPredictor, args: argparse.Namespace) -> list:
    rows = []
    many, pushes = market.of(args.instruments), args.hold + 1
    start = len(market.times) // 2
    frames = [many.frame(start + step, start + step + 1) for step in range(2 * pushes)]
    for mode in MODES:
        stream = stream_of(predictor, mode, args)
        stream.begin(many.frame(start - 2 * args.lookback, start))
        for frame in frames[:pushes]:
            stream.push_many(frame).quantiles()
        spent, bars = [], 0
        for frame in frames[pushes:]:
            began = time.perf_counter()
            stream.push_many(frame).quantiles()
            spent.append(time.perf_counter() - began)
            bars += len(frame)
        rows.append({
            "mode": mode, "bars_per_s": bars / sum(spent), "bars": bars,
            "middle_ms": 1e3 * statistics.median(spent), "slowest_ms": 1e3 * max(spent),
            "kept_mib": stream.nbytes / 2**20,
        })  # fmt: skip
    return rows


def measure_difference(
    market: Market, predictor: KronosPredictor, args: argparse.Namespace
) -> pd.DataFrame:
    """A row for each moment, age and name."""
    pushes = args.hold + 1
    first, last = 2 * args.lookback, len(market.times) - pushes - args.horizon
    found = []
    for start in np.linspace(first, last, args.starts).astype(int).tolist():
        streams = {mode: stream_of(predictor, mode, args) for mode in MODES}
        for stream in streams.values():
            stream.begin(market.frame(start - 2 * args.lookback, start))
        for age in range(pushes):
            frame = market.frame(start + age, start + age + 1)
            if frame.empty:
                continue
            found += compared(
                market, start + age, {mode: each.push_many(frame) for mode, each in streams.items()}
            )
            for row in found[-len(frame) :]:
                row["start"] = start
    return pd.DataFrame(found)


def compared(market: Market, now: int, pushed: dict) -> list[dict]:
    """Of one push: names that both forecast and whose bar at the end of the horizon came."""
    rows = []
    for name, exact in pushed["exact"].items():
        fast = pushed["fast"][name]
        if exact.forecast is None or fast.forecast is None:
            continue
        horizon = exact.forecast.paths.shape[1]
        came = market.bars[now + horizon, market.names.index(name), CLOSE]
        if not np.isfinite(came) or market.times[now + horizon] != exact.forecast.times[-1]:
            continue
        close = exact.forecast.last_close
        quantiles, scores = {}, {}
        for mode, one in (("exact", exact.forecast), ("fast", fast.forecast)):
            low, middle, high = one.quantiles(LEVELS)["close"].iloc[-1] / close
            quantiles[mode] = low, middle, high
            closes = one.paths[None, :, -1:, CLOSE].astype(np.float64)
            of = PathDistribution(closes, np.array([close]), stratified=one.is_calibrated)
            scores[mode] = float(of.crps(np.array([[came / close - 1]]))[0, 0])
        low, middle, high = quantiles["exact"]
        width = high - low
        if width <= 0:
            continue
        rows.append({
            "age": fast.age, "width": width,
            "median": abs(quantiles["fast"][1] - middle) / width,
            "band": (abs(quantiles["fast"][0] - low) + abs(quantiles["fast"][2] - high))
            / 2 / width,
            "exact": scores["exact"] * BASIS_POINTS, "fast": scores["fast"] * BASIS_POINTS,
        })  # fmt: skip
    return rows


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """By age, and of all: the columns of the second table."""
    parts = [(str(age), part) for age, part in rows.groupby("age")]
    table = {}
    for label, part in [*parts, ("all", rows)]:
        by_start = (part["fast"] - part["exact"]).groupby(part["start"]).mean()
        error = by_start.std(ddof=1) / np.sqrt(len(by_start)) if len(by_start) > 1 else np.nan
        table[label] = {
            "forecasts": len(part),
            "median": part["median"].mean(),
            "band": part["band"].mean(),
            "exact": part["exact"].mean(),
            "fast": part["fast"].mean(),
            "difference": by_start.mean(),
            "error": error,
        }
    return pd.DataFrame(table).T


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="a file of bars")
    parser.add_argument("--freq", help="of its bars, such as h or 5min")
    parser.add_argument("--exchange", help="or their exchange, such as XSHG")
    parser.add_argument("--checkpoint", default="nano")
    parser.add_argument("--instruments", type=int, default=500)
    parser.add_argument("--lookback", type=int, default=60)
    parser.add_argument("--hold", type=int, default=16)
    parser.add_argument("--horizon", type=int, default=1)
    parser.add_argument("--paths", type=int, default=20)
    parser.add_argument("--starts", type=int, default=40)
    parser.add_argument("--calibrated", action="store_true", help="paths as users get them")
    parser.add_argument("--json", type=Path, help="write both tables here too")
    args = parser.parse_args(argv)
    predictor = KronosPredictor.from_pretrained(args.checkpoint, device="cpu")
    market = Market.read(args.data)
    print(
        f"{args.checkpoint}, {torch.get_num_threads()} threads, {args.instruments} instruments, "
        f"lookback {args.lookback}, hold {args.hold}, horizon {args.horizon}, {args.paths} paths\n"
    )
    speeds = measure_speed(market, predictor, args)
    print("| mode | bars a second | a push: middle | slowest | kept |\n|---|---|---|---|---|")
    for row in speeds:
        print(
            f"| {row['mode']} | {row['bars_per_s']:,.0f} | {row['middle_ms']:,.0f} ms "
            f"| {row['slowest_ms']:,.0f} ms | {row['kept_mib']:,.1f} MiB |"
        )
    table = summary(measure_difference(market, predictor, args))
    print(
        f"\n{len(market.names)} names, {args.starts} moments; bar {args.horizon} ahead\n\n"
        "| age | forecasts | median moved | band moved | CRPS exact, bp | fast | difference |\n"
        "|---|---|---|---|---|---|---|"
    )
    for age, row in table.iterrows():
        print(
            f"| {age} | {row['forecasts']:,.0f} | {row['median']:.1%} | {row['band']:.1%} "
            f"| {row['exact']:.2f} | {row['fast']:.2f} "
            f"| {row['difference']:+.3f} \u00b1 {row['error']:.3f} |"
        )
    if args.json:
        result = {"speed": speeds, "difference": table.reset_index(names="age").to_dict("records")}
        args.json.write_text(json.dumps(result, indent=1), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
