"""How many bits a predictor needs for the next bar, beside simple densities on the same tokens.

A bar is two tokens, so its cost is -log2 p(s1 | past) - log2 p(s2 | s1, past): the mean over
windows of `--lookback` bars, the next bar being the one judged. A lower number is a better
forecast; all densities are charged for the same tokens, so the differences are what was learned.
One window is taken from each of `--windows` equally long stretches of the windows by (day, name).

- model: teacher-forced, the s2 attention rotated as in training.
- token frequencies: p(s1) and p(s2 | s1) of the bar after the lookback, counted over windows up to
  `--train-last`. Last token: p(s1 | s1 of the last bar) in place of p(s1).
- walk: the six numbers of a bar relative to the bar before it, Gaussian, with mean and covariance
  of the window's own lookback: log open / last close; log close / open; the square roots of the
  logs of both shadows (a negative draw is no shadow); log volume / last volume; log of the mean
  price paid / mean of the four prices. `--samples` bars are drawn, normalised by the window's scale
  and encoded after the window's true bars, and hits are counted.
- volume returns: the same, regressed on the last bar's log volume, since volume is no walk.
- GARCH: gap and body of either times r, shadows too, where r is the volatility that a GARCH(1,1)
  on the lookback's log returns forecasts for the next bar over their standard deviation. Where no
  fit converges r is 1, and the windows where that happened are counted.

Hits among few samples are no density yet: they are mixed with the token frequencies, p(s1) =
(hits + a frequency) / (samples + a), and p(s2 | s1) with b. Each walk has its own a and b, and the
frequencies their own smoothing: the best ones in hindsight on windows in the last fifth of the
training period, with frequencies of the rest. Nothing is chosen by the judged windows.

Errors are standard errors of means clustered by day, since the shares of a day move together.
Windows are left out, and counted, where volume and amount of a bar contradict its prices (the mean
price paid twice or half what it usually is) or fewer than 30 bars of the lookback were traded. Bars
without trade are passed over by the walks, which step from one traded bar to the next.

No bar later than `--last` is read. Whether the checkpoint was trained on bars up to `--train-last`
only is for the caller to know; nano was, and was chosen by the first half of 2002.

Example:
    python benchmarks/likelihood.py cn_daily_2000_2002.parquet --checkpoint nano \
        --train-last 2001-12-31 --first 2002-01-01 --last 2002-06-30 --json likelihood.json
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from kronos_qlib import Kronos, KronosTokenizer
from kronos_qlib.data.files.read import read_bars
from kronos_qlib.data.windows.bar_table import BarTable
from kronos_qlib.data.windows.find import windows_to_train
from kronos_qlib.data.windows.gather import gather
from kronos_qlib.data.windows.scale import WindowScale
from kronos_qlib.data.windows.window import Windows
from kronos_qlib.evaluation.forecasts.baselines.volatility_forecasts import fit_garch
from kronos_qlib.inference.kv_cache import KeyValueStore
from kronos_qlib.inference.packed import PackedTokenizer
from kronos_qlib.schema import AMOUNT, CLOSE, HIGH, LOW, OPEN, VOLUME

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

LEAST_TRADED = 30
"""Bars of a lookback that must have been traded, or its window is left out."""
MOST_APART = math.log(2)
"""How far the log of the mean price paid may lie from its median in the window."""
STEP_LIMIT = 20.0
"""No log or root of a step is beyond, so that nothing overflows."""
BATCH = 100
"""Windows that go through a network at a time."""
WEIGHTS = 2.0 ** np.arange(-4, 13)
"""Among which a, b and the smoothing of frequencies are chosen."""
LATE_SHARE = 0.2
"""Of the training windows, by time: among these are the ones that weights are chosen by."""
WALKS = {
    "Gaussian walk": (False, False),
    "GARCH walk": (False, True),
    "Gaussian walk, volume returns": (True, False),
    "GARCH walk, volume returns": (True, True),
}
"""Each walk: whether volume returns, whether GARCH gives its volatility."""
FREQUENCIES, LAST_TOKEN = "token frequencies", "last token"


# Chosen windows and their tokens


@dataclass(frozen=True)
class Sample:
    """Some windows with their next bar, tokenized. Shape letters: W windows, T bars seen.

    bars: (W, T + 1, 6) float64. days: (W,) which place of the calendar the next bar has.
    z: (W, T + 1, 6) float32, normalised by the T bars. stamps: (W, T + 1, 5) int64.
    s1, s2: (W, T + 1) int64. rows: (W,) of the last bars seen; they seed the window's draws.
    """

    bars: Floats
    days: Ints
    z: torch.Tensor
    stamps: torch.Tensor
    s1: Ints
    s2: Ints
    rows: Ints

    @classmethod
    def of(cls, windows: Windows, tokenizer: KronosTokenizer) -> Sample:
        which = np.arange(len(windows))
        batch = gather(windows, which)
        z = torch.from_numpy(batch.z)
        s1, s2 = encode(tokenizer, z)
        rows = windows.ends[which].astype(np.int64)
        return cls(
            bars=windows.bars(which).astype(np.float64),
            days=windows.table.places[rows + 1].astype(np.int64),
            z=z,
            stamps=torch.from_numpy(batch.stamps),
            s1=s1,
            s2=s2,
            rows=rows,
        )

    def __len__(self) -> int:
        return len(self.rows)


def encode(tokenizer: KronosTokenizer, z: torch.Tensor) -> tuple[Ints, Ints]:
    """(W, T) ids of s1 and s2, a batch of windows at a time."""
    parts = [tokenizer.encode(part) for part in z.split(BATCH)]
    s1, s2 = (torch.cat(ids).numpy() for ids in zip(*parts, strict=True))
    return s1, s2


def spread_out(windows: Windows, most: int, rng: np.random.Generator) -> Windows:
    """One window out of each of `most` equal stretches of (time, instrument).

    At random within its stretch: at even steps near the number of names, one name would fill most
    of the sample.
    """
    if len(windows) <= most:
        return windows.by_time()
    bounds = np.linspace(0, len(windows), most + 1).round().astype(np.int64)
    return windows.by_time().take(rng.integers(bounds[:-1], bounds[1:]))


def is_traded(bars: Floats) -> npt.NDArray[np.bool_]:
    """Which bars (..., 6) have prices, volume and amount."""
    return np.asarray((bars > 0).all(axis=-1))


def log_price_paid(bars: Floats) -> Floats:
    """Log of amount / volume over the mean of the four prices, of traded bars (..., 6)."""
    mean = bars[..., : CLOSE + 1].mean(axis=-1)
    return np.asarray(np.log(bars[..., AMOUNT]) - np.log(bars[..., VOLUME]) - np.log(mean))


def is_sound(window: Floats) -> bool:
    """Whether a window (T + 1, 6) can be judged by: see the head of this file."""
    traded = is_traded(window)
    if traded[:-1].sum() < LEAST_TRADED:
        return False
    paid = log_price_paid(window[traded])
    return bool(np.abs(paid - np.median(paid)).max() < MOST_APART)


def take_sound(windows: Windows) -> Windows:
    """The windows that can be judged by."""
    bars = windows.bars(slice(None)).astype(np.float64)
    return windows.take(np.flatnonzero([is_sound(window) for window in bars]))


# Densities


@torch.inference_mode()
def bits_of_model(net: Kronos, sample: Sample) -> Floats:
    """(W, 2) bits of the next bar's s1, and of its s2 given that s1."""
    s1, s2 = torch.from_numpy(sample.s1), torch.from_numpy(sample.s2)
    parts = []
    for start in range(0, len(sample), BATCH):
        part = slice(start, start + BATCH)
        past = s1[part, :-1], s2[part, :-1], sample.stamps[part, :-1]
        logits = net(*past, use_teacher_forcing=True, s1_targets=s1[part, 1:])
        truth = s1[part, -1:], s2[part, -1:]
        nats = [
            -ids_logits[:, -1].double().log_softmax(dim=-1).gather(1, ids)
            for ids_logits, ids in zip(logits, truth, strict=True)
        ]
        parts.append(torch.cat(nats, dim=1).numpy() / math.log(2))
    return np.concatenate(parts)


def mixed(hits: Any, total: Any, prior: Any, weight: float) -> Any:
    """A share of hits, drawn to its prior as if by `weight` more trials."""
    return (hits + weight * prior) / (total + weight)


def best_weight(cost: Callable[[float], Floats]) -> float:
    """The weight of least mean bits."""
    return float(WEIGHTS[int(np.argmin([cost(weight).mean() for weight in WEIGHTS]))])


@dataclass(frozen=True)
class Frequencies:
    """How often tokens came, as densities: s1 (V1,); s2 given s1; s1 given the last bar's s1."""

    s1: Floats
    s2_given_s1: Floats
    s1_given_last: Floats

    @classmethod
    def of(
        cls, pairs: Ints, sizes: tuple[int, int], s2_weight: float, last_weight: float
    ) -> Frequencies:
        """
        Args:
            pairs: (N, 3) s1 of the last bar, s1 and s2 of the next.
            sizes: of both vocabularies.
            s2_weight, last_weight: with which the conditional ones are mixed with p(s2), p(s1).
        """
        last, s1, s2 = pairs.T
        both, follows = np.zeros(sizes), np.zeros((sizes[0], sizes[0]))
        np.add.at(both, (s1, s2), 1)
        np.add.at(follows, (last, s1), 1)
        p1, p2 = (
            mixed(both.sum(axis=axis), len(pairs), 1 / size, size / 2)
            for axis, size in ((1, sizes[0]), (0, sizes[1]))
        )
        return cls(
            s1=p1,
            s2_given_s1=mixed(both, both.sum(axis=1, keepdims=True), p2, s2_weight),
            s1_given_last=mixed(follows, follows.sum(axis=1, keepdims=True), p1, last_weight),
        )

    def priors(self, sample: Sample) -> Floats:
        """(W, 2) p(s1) and p(s2 | s1) of each window's next bar."""
        s1, s2 = sample.s1[:, -1], sample.s2[:, -1]
        return np.stack((self.s1[s1], self.s2_given_s1[s1, s2]), axis=1)

    def bits(self, sample: Sample) -> dict[str, Floats]:
        """(W, 2) bits of both densities."""
        plain = self.priors(sample)
        following = plain.copy()
        following[:, 0] = self.s1_given_last[sample.s1[:, -2], sample.s1[:, -1]]
        return {FREQUENCIES: -np.log2(plain), LAST_TOKEN: -np.log2(following)}


def count_pairs(windows: Windows, tokenizer: KronosTokenizer) -> Ints:
    """(N, 3) s1 of the last bar seen, s1 and s2 of the next bar.

    Only these positions: tokens inside a lookback are distributed otherwise, being part of what
    the window is normalised by.
    """
    parts = []
    for start in range(0, len(windows), BATCH):
        which = np.arange(start, min(start + BATCH, len(windows)))
        s1, s2 = encode(tokenizer, torch.from_numpy(gather(windows, which).z))
        parts.append(np.stack((s1[:, -2], s1[:, -1], s2[:, -1]), axis=1))
    return np.concatenate(parts)


def steps_of(bars: Floats) -> Floats:
    """(T - 1, 6) what each traded bar is relative to the one before: see the head of this file."""
    before, bars = bars[:-1], bars[1:]
    top = np.maximum(bars[:, OPEN], bars[:, CLOSE])
    bottom = np.minimum(bars[:, OPEN], bars[:, CLOSE])
    steps = (
        np.log(bars[:, OPEN] / before[:, CLOSE]),
        np.log(bars[:, CLOSE] / bars[:, OPEN]),
        np.sqrt(np.log(np.maximum(bars[:, HIGH] / top, 1))),
        np.sqrt(np.log(np.maximum(bottom / bars[:, LOW], 1))),
        np.log(bars[:, VOLUME]) - np.log(before[:, VOLUME]),
        log_price_paid(bars),
    )
    return np.stack(steps, axis=1)


def bars_from(last: Floats, steps: Floats) -> Floats:
    """(n, 6) bars that follow the bar `last` (6,) by these steps."""
    gap, body, upper, lower, volume, paid = np.clip(steps, -STEP_LIMIT, STEP_LIMIT).T
    bars = np.empty_like(steps)
    bars[:, OPEN] = last[CLOSE] * np.exp(gap)
    bars[:, CLOSE] = bars[:, OPEN] * np.exp(body)
    ends = bars[:, [OPEN, CLOSE]]
    bars[:, HIGH] = ends.max(axis=1) * np.exp(np.maximum(upper, 0) ** 2)
    bars[:, LOW] = ends.min(axis=1) * np.exp(-(np.maximum(lower, 0) ** 2))
    bars[:, VOLUME] = last[VOLUME] * np.exp(volume)
    bars[:, AMOUNT] = bars[:, VOLUME] * bars[:, : CLOSE + 1].mean(axis=1) * np.exp(paid)
    return bars


@dataclass(frozen=True)
class Walk:
    """A Gaussian law of the next step.

    last: (6,) the bar that it starts from. mean: (6,). root: (6, 6), covariance = root root^T.
    ratio: by which the price part is more volatile than that.
    """

    last: Floats
    mean: Floats
    root: Floats
    ratio: float = 1.0

    @classmethod
    def fit(cls, past: Floats, reverting: bool = False, ratio: float = 1.0) -> Walk:
        """From the traded ones among the bars (T, 6) of a lookback."""
        bars = past[is_traded(past)]
        steps = steps_of(bars)
        known = np.ones((len(bars), 1 + reverting))
        if reverting:
            level = np.log(bars[:, VOLUME])
            known[:, 1] = level - level.mean()
        weights = np.linalg.lstsq(known[:-1], steps, rcond=None)[0]
        rest = steps - known[:-1] @ weights
        values, vectors = np.linalg.eigh(rest.T @ rest / (len(rest) - known.shape[1]))
        root = vectors * np.sqrt(np.maximum(values, 0))  # a column that never changes is fine
        return cls(bars[-1], known[-1] @ weights, root, ratio)

    def draw(self, normals: Floats) -> Floats:
        """(n, 6) bars from (n, 6) independent standard normal numbers."""
        rest = normals @ self.root.T
        rest[:, :2] *= self.ratio
        steps = self.mean + rest
        steps[:, 2:4] *= math.sqrt(self.ratio)  # roots of shadows
        return bars_from(self.last, steps)


def garch_ratio(past: Floats) -> float | None:
    """Forecast volatility of the next return over that of the lookback; None where no fit is."""
    returns = np.diff(np.log(past[is_traded(past), CLOSE]))
    found = fit_garch(returns, 1, mean="Constant", dist="normal", least=LEAST_TRADED - 1)
    return None if found is None else float(np.sqrt(found.variance[0]) / returns.std())


@torch.inference_mode()
def encode_after(net: PackedTokenizer, past: torch.Tensor, z: torch.Tensor) -> tuple[Ints, Ints]:
    """Ids of bars (n, 6) that each follow the same bars (T, 6), which are read once: (n,) each."""
    stores = [KeyValueStore(len(z), steps=0) for _ in net.encoder]
    x = net.embed(past[None])
    for block, store in zip(net.encoder, stores, strict=True):
        x = block.read_prompt(x, store)
    x = net.embed(z[:, None])
    for block, store in zip(net.encoder, stores, strict=True):
        x = block.read_ahead(x, store)
    s1, s2 = net.quantizer.to_ids(net.to_code(x).float())
    return s1[:, 0].numpy(), s2[:, 0].numpy()


def count_hits(drawn: tuple[Ints, Ints], s1: Any, s2: Any) -> Ints:
    """(..., 2) draws that have this s1, and that have this s1 and s2."""
    same = drawn[0][:, None] == np.ravel(s1)
    both = same & (drawn[1][:, None] == np.ravel(s2))
    return np.stack((same.sum(axis=0), both.sum(axis=0)), axis=-1).reshape(*np.shape(s1), 2)


@dataclass(frozen=True)
class Hits:
    """What draws from the walks hit: counts (W, 2) by walk, and windows without a GARCH fit."""

    of: dict[str, Ints]
    without_garch: int

    @classmethod
    def count(cls, sample: Sample, net: PackedTokenizer, samples: int, seed: int) -> Hits:
        of: dict[str, list[Ints]] = {name: [] for name in WALKS}
        without = 0
        for place, row in enumerate(sample.rows.tolist()):
            past = sample.bars[place, :-1]
            ratio = garch_ratio(past)
            without += ratio is None
            scale = WindowScale.of(past[None])
            # The same numbers for every walk: the difference between them is not noise.
            normals = np.random.default_rng((seed, row)).standard_normal((samples, 6))
            for name, (reverting, has_garch) in WALKS.items():
                walk = Walk.fit(past, reverting, ratio if has_garch and ratio else 1.0)
                z = torch.from_numpy(scale.to_z(walk.draw(normals)[None])[0])
                drawn = encode_after(net, sample.z[place, :-1], z)
                of[name].append(count_hits(drawn, sample.s1[place, -1], sample.s2[place, -1]))
        return cls({name: np.stack(hits) for name, hits in of.items()}, without)


def bits_of_walk(
    hits: Ints, samples: int, priors: Floats, s1_weight: float, s2_weight: float
) -> Floats:
    """(..., 2) bits of s1, and of s2 given s1, from hits (..., 2) and the frequencies' priors."""
    p1 = mixed(hits[..., 0], samples, priors[..., 0], s1_weight)
    p2 = mixed(hits[..., 1], hits[..., 0], priors[..., 1], s2_weight)
    return np.asarray(-np.log2(np.stack((p1, p2), axis=-1)))


# Judging


def clustered_error(values: Floats, days: Ints) -> float:
    """Standard error of the mean, windows of one day being dependent; NaN for a single day."""
    _, day = np.unique(days, return_inverse=True)
    sums = np.bincount(day, weights=values - values.mean())
    if len(sums) < 2:
        return math.nan
    few = len(sums) / (len(sums) - 1)
    return float(np.sqrt(few * np.square(sums).sum()) / len(values))


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Everything the table shows."""
    began = time.perf_counter()
    # The filter is applied while reading: later bars never reach this process.
    end = pd.Timestamp(args.last).normalize() + pd.Timedelta(days=1)
    frame = pd.read_parquet(args.bars, filters=[("date", "<", end)])
    bars = read_bars(frame, as_is=True).bars  # derives the amount where a market has none
    table = BarTable.from_bars(bars, incomplete="skip", invalid="skip")
    net = Kronos.from_pretrained(args.checkpoint)
    tokenizer = KronosTokenizer.from_pretrained(args.checkpoint)
    context = net.origin.max_context if net.origin else None
    if context is not None and args.lookback > context:
        raise SystemExit(f"{args.checkpoint} attends to {context} bars: lower --lookback")
    sizes = 2**tokenizer.s1_bits, 2**tokenizer.s2_bits
    packed = PackedTokenizer(tokenizer)

    training = windows_to_train(table, args.lookback, 1, None, args.train_last).by_time()
    ahead = windows_to_train(table, args.lookback, 1, args.first, args.last)
    late = round(len(training) * (1 - LATE_SHARE))
    if not late or not len(ahead):
        raise SystemExit(f"{len(training)} windows to train on, {len(ahead)} to judge by: too few")
    rng = np.random.default_rng(args.seed)
    picked = spread_out(ahead, args.windows, rng)
    tuning_picked = spread_out(training.take(np.arange(late, len(training))), args.windows, rng)
    chosen, tuning = (take_sound(windows) for windows in (picked, tuning_picked))
    if not len(chosen) or not len(tuning):
        raise SystemExit("no window is sound: see the head of benchmarks/likelihood.py")
    judged, tuned_by = Sample.of(chosen, tokenizer), Sample.of(tuning, tokenizer)

    early = count_pairs(spread_out(training.take(np.arange(late)), args.counted, rng), tokenizer)
    all_pairs = count_pairs(spread_out(training, args.counted, rng), tokenizer)
    smoothing = (
        best_weight(lambda w: Frequencies.of(early, sizes, w, w).bits(tuned_by)[FREQUENCIES][:, 1]),
        best_weight(lambda w: Frequencies.of(early, sizes, w, w).bits(tuned_by)[LAST_TOKEN][:, 0]),
    )
    rehearsed = Frequencies.of(early, sizes, *smoothing).priors(tuned_by)
    frequencies = Frequencies.of(all_pairs, sizes, *smoothing)
    rehearsal = Hits.count(tuned_by, packed, args.samples, args.seed)
    hits = Hits.count(judged, packed, args.samples, args.seed)

    bits = {"model": bits_of_model(net, judged), **frequencies.bits(judged)}
    weights = {}
    for name in WALKS:

        def cost(part: int, weight: float, seen: Ints = rehearsal.of[name]) -> Floats:
            return bits_of_walk(seen, args.samples, rehearsed, weight, weight)[:, part]

        a, b = (best_weight(lambda w, part=part: cost(part, w)) for part in (0, 1))
        weights[name] = {"a": a, "b": b}
        bits[name] = bits_of_walk(hits.of[name], args.samples, frequencies.priors(judged), a, b)
    return {
        "checkpoint": str(args.checkpoint),
        "train_last": args.train_last, "first": args.first, "last": args.last,
        "lookback": args.lookback, "samples": args.samples, "seed": args.seed,
        "windows": len(judged), "left_out": len(picked) - len(judged),
        "days": len(np.unique(judged.days)),
        "tuning_windows": len(tuned_by), "tuning_left_out": len(tuning_picked) - len(tuned_by),
        "counted": len(all_pairs), "garch_failed": hits.without_garch,
        "tuning_garch_failed": rehearsal.without_garch,
        "frequency_weights": dict(zip(("s2", "last"), smoothing, strict=True)),
        "walk_weights": weights,
        "rows": [row_of(name, bits, judged.days) for name in bits],
        "seconds": time.perf_counter() - began,
    }  # fmt: skip


def row_of(name: str, bits: dict[str, Floats], days: Ints) -> dict[str, Any]:
    """Mean bits of one density with their errors, and what the model needs less or more."""
    row: dict[str, Any] = {"density": name}
    for part, values in (*zip(("s1", "s2"), bits[name].T, strict=True), ("bar", bits[name].sum(1))):
        row[part], row[f"{part}_error"] = float(values.mean()), clustered_error(values, days)
    if name != "model":
        less = (bits["model"] - bits[name]).sum(axis=1)
        row["difference"], row["difference_error"] = float(less.mean()), clustered_error(less, days)
    return row


def show(result: dict[str, Any]) -> None:
    print("| density | s1 | s2 given s1 | bar | model less this |\n|---|---|---|---|---|")
    for row in result["rows"]:
        name = row["density"]
        cells = [f"{row[part]:.2f} ± {row[f'{part}_error']:.2f}" for part in ("s1", "s2", "bar")]
        less = "-"
        if "difference" in row:
            less = f"{row['difference']:+.2f} ± {row['difference_error']:.2f}"
        name = f"{name}, {result['checkpoint']}" if name == "model" else name
        print(f"| {name} | {' | '.join(cells)} | {less} |")
    print(
        f"\nBits; ± standard error, clustered by day. {result['windows']} windows on "
        f"{result['days']} days ({result['left_out']} more left out), {result['first']} to "
        f"{result['last']}, {result['lookback']} bars seen; {result['samples']} samples of each "
        f"walk; GARCH without a fit in {result['garch_failed']} windows (volatility of the "
        f"lookback there). Counted over {result['counted']:,} windows to {result['train_last']}; "
        f"weights chosen by {result['tuning_windows']} of its last fifth "
        f"({result['tuning_left_out']} left out, GARCH without a fit in "
        f"{result['tuning_garch_failed']})."
    )
    smoothing = result["frequency_weights"]
    chosen = [f"s2 given s1 {smoothing['s2']:g}", f"last token {smoothing['last']:g}"]
    for name, found in result["walk_weights"].items():
        chosen.append(f"{name} a {found['a']:g}, b {found['b']:g}")
    print(f"\nWeights chosen: {'; '.join(chosen)}. {result['seconds']:.0f} s.")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bars", type=Path, help="Parquet: symbol, date, open ... amount")
    parser.add_argument("--checkpoint", default="nano", help="alias, Hub id or folder")
    parser.add_argument("--train-last", default="2001-12-31", help="last day of frequencies")
    parser.add_argument("--first", default="2002-01-01", help="first day of judged bars")
    parser.add_argument("--last", default="2002-06-30", help="last day that is read at all")
    parser.add_argument("--lookback", type=int, default=90)
    parser.add_argument("--windows", type=int, default=300, help="to judge, and to choose by")
    parser.add_argument("--samples", type=int, default=1000, help="bars drawn for a window")
    parser.add_argument("--counted", type=int, default=20_000, help="windows for frequencies")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write the table here too")
    args = parser.parse_args(argv)
    days = [pd.Timestamp(day) for day in (args.train_last, args.first, args.last)]
    if not days[0] < days[1] <= days[2]:
        parser.error("--train-last must be before --first, and --first not after --last")
    if min(args.windows, args.samples, args.counted) < 1:
        parser.error("--windows, --samples and --counted must be at least 1")

    result = measure(args)
    show(result)
    if args.json:
        args.json.write_text(json.dumps(result, indent=1), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
