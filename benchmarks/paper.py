"""The yardsticks of the Kronos paper, for a checkpoint on one's own bars, beside simple forecasts.

arXiv 2508.02739 reports three measures of zero-shot forecasts. Where it is silent they are read so:

- price Rank IC: Spearman's correlation, along the bars of the horizon, of the mean path of closes
  and the closes that came; one number a window (the last close seen is in neither), averaged over
  windows. It is not cross-sectional. Windows in which either path is flat have none.
- return Rank IC: Spearman's correlation over all windows pooled, whatever their day or name, of the
  predicted and the true return from the last close seen to the end of the horizon. "by bar" is the
  same of the returns from bar to bar along the mean path, all bars of all windows pooled.
- volatility: the root mean squared log return of the horizon's closes, no mean taken off, per bar;
  not annualised (daily bars: times 15.6 for a year of 242; R2 has no unit). Predicted is the mean
  over paths of each path's own. MAE; R2 is 1 - squared error / squares about the mean of all
  windows, pooled over days and names, so that knowing which name is the wilder counts; and the
  squared correlation, the R2 after a linear regression in hindsight, which forgives bias and scale.

Rows:
- Kronos, the paper's settings: T 0.6, top-p 0.9, 10 paths, no anchor, as the published code draws.
- Kronos, ours: T 1, top-p 1, `--paths` paths, anchored to the last close.
- GARCH(1,1): normal, with a constant mean, fitted to the log returns of each window's lookback. Its
  mean path is that constant; its volatility the root of the mean variance forecast, times what the
  root of a mean of normal squares is short of it. Where no fit converges (counted) the variance is
  the lookback's.
- GRU: one layer of 32 units over the lookback and a linear map, 4,404 numbers, trained here on bars
  of `--train` only. It sees returns, ranges and gaps (each over the deviation of the lookback's
  returns), volume and that deviation, and predicts the mean and deviation of each next log return
  (normal likelihood, Adam at 3e-3, batches of 256, gradients clipped at 1). The epoch with the
  least loss on the last tenth of the training windows is kept; windows whose horizon reaches into
  that tenth are not learned from. It is a baseline, not a tuned one.
- historical volatility: a walk with that of the last 20 bars, which costs nothing. Its mean path is
  flat and orders nothing.
- last price: a flat path that expects no volatility; its MAE is the mean of what came.

Intervals of 95 % leave out one day after another (a day's windows are one piece of evidence) and
count how days depend on each other; the differences are of the same windows. Windows are spread
evenly over time, names drawn by `--seed`. Bars that break a rule are left out (see `REPAIRS`), and
so are windows in whose lookback or horizon a close moves by more than 40 % to the next, as at an
unadjusted split: one would decide every R2. Both are counted. No bar after the last day of `--test`
is used. Which bars a checkpoint was trained on is for the caller to know.

The published figures are of other names, later dates and perhaps other frequencies: they are
printed for scale, and only rows of one run compare. Needs `arch`, which the extra "dev" brings.

Example:
    python benchmarks/paper.py cn_daily_2020_2023.parquet --checkpoint nano \
        --train 2020-01-01 2022-12-31 --test 2023-01-01 2023-12-31 --json paper.json
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from arch import arch_model

from kronos_qlib import WindowDataset
from kronos_qlib.data.files.read import read_bars
from kronos_qlib.data.files.repair import repair_bars
from kronos_qlib.data.rules import MAX_MOVE
from kronos_qlib.data.windows.known import known_windows, sample_windows
from kronos_qlib.data.windows.window import Windows
from kronos_qlib.evaluation.forecasts.baselines.baseline_distributions import (
    LastPrice,
    VolatilityWalk,
)
from kronos_qlib.evaluation.forecasts.distributions import (
    STILL,
    VOLATILITY_BARS,
    Outcomes,
    PathDistribution,
)
from kronos_qlib.evaluation.forecasts.path_measures import (
    clustered_by_day,
    path_rank_ic,
    pooled_rank_ic,
    r_squared,
    squared_correlation,
)
from kronos_qlib.inference.sampling import SamplingConfig
from kronos_qlib.pipeline.outcomes import draw_closes, outcomes_of
from kronos_qlib.plugin.model import KronosModel
from kronos_qlib.schema import CLOSE, HIGH, LOW, OPEN, VOLUME

Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]

REPAIRS = ("drop-nan", "drop-nonpositive", "drop-duplicates", "drop-bracket", "drop-untraded")
"""Whatever breaks a rule is left out, nothing is mended."""
UNITS = 32
"""Width of the GRU."""
BATCH, RATE, CLIP = 256, 3e-3, 1.0
"""Windows of a step, Adam's rate, and the norm that gradients are clipped at."""
LIMIT = 10.0
"""Deviations at which what the GRU sees and learns is clipped."""
LATE_SHARE = 0.1
"""Of the training windows, by time: the epoch that is kept has the least loss on these."""

PRICE, RETURN, BY_BAR = "price Rank IC", "return Rank IC", "return Rank IC by bar"
MAE, R2, FITTED_R2 = "volatility MAE %", "volatility R2", "R2 after regression"
PAPER, OURS = "Kronos, the paper's", "Kronos, ours"
GARCH, GRU, WALK, LAST = "GARCH", "GRU", "historical volatility", "last price"
PUBLISHED = {
    "small": (0.0254, 0.0622, 0.2490),
    "base": (0.0258, 0.0634, 0.2470),
    "large": (0.0267, 0.0675, 0.2624),
    "best other": (0.0143, 0.0533, 0.2323),
}
"""arXiv 2508.02739: price Rank IC, return Rank IC, volatility R2 (the best other is GARCH)."""


@dataclass(frozen=True, eq=False)
class Prediction:
    """What one method says of N windows: returns (N, H) of its mean path from the last close, and
    volatility (N,), expected, realised, per bar."""

    returns: Floats
    volatility: Floats


# Forecasts


def of_paths(closes: Floats, last_close: Floats) -> Prediction:
    """Of sampled closes (N, P, H): their mean path, and their mean volatility."""
    paths = PathDistribution(closes, last_close)
    return Prediction(paths.mean(), paths.volatility()[:, -1])


def of_normals(means: Floats, variances: Floats) -> Prediction:
    """Of normal log returns of these means (N, H) and variances (N, H)."""
    spread = np.sqrt((variances + means**2).mean(axis=1))
    walk = VolatilityWalk(spread, np.ones(means.shape[1]))
    return Prediction(np.expm1(np.cumsum(means, axis=1)), walk.volatility()[:, -1])


def of_baseline(baseline: LastPrice | VolatilityWalk) -> Prediction:
    return Prediction(baseline.mean(), baseline.volatility()[:, -1])


def of_garch(closes: Floats, horizon: int) -> tuple[Prediction, int]:
    """By a fit to each row of closes seen (N, T), and how many did not converge."""
    means, variances = np.empty((2, len(closes), horizon))
    failed = 0
    for place, returns in enumerate(100 * np.diff(np.log(closes), axis=1)):
        found = fit_garch(returns, horizon)
        failed += found is None
        mean, variance = found or (returns.mean(), np.full(horizon, returns.var()))
        means[place], variances[place] = mean / 100, variance / 1e4
    return of_normals(means, np.maximum(variances, STILL**2)), failed


def fit_garch(returns: Floats, horizon: int) -> tuple[float, Floats] | None:
    """The mean, and the variances (H,) that are forecast, of returns in percent; None: no fit."""
    if returns.std() < 100 * STILL:
        return None
    model = arch_model(returns, mean="Constant", vol="GARCH", p=1, q=1, rescale=False)
    found = model.fit(disp="off", show_warning=False)
    variances = found.forecast(horizon=horizon).variance.to_numpy()[-1]
    is_good = found.convergence_flag == 0 and np.isfinite(variances).all() and variances.min() > 0
    return (float(found.params["mu"]), variances) if is_good else None


# The GRU


class NextReturns(torch.nn.Module):
    """A GRU over the lookback to the mean and log deviation of each next log return."""

    def __init__(self, features: int, horizon: int) -> None:
        super().__init__()
        self.gru = torch.nn.GRU(features, UNITS, batch_first=True)
        self.head = torch.nn.Linear(UNITS, 2 * horizon)

    def forward(self, seen: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, T, features) to two of (B, H)."""
        mean, log_deviation = self.head(self.gru(seen)[0][:, -1]).chunk(2, dim=-1)
        return mean, log_deviation.clamp(-5, 5)


@dataclass(frozen=True, eq=False)
class Lessons:
    """What the GRU sees and learns: seen (N, T - 1, 5), ahead (N, H) log returns over unit (N,)."""

    seen: torch.Tensor
    ahead: torch.Tensor
    unit: Floats

    @classmethod
    def of(cls, windows: Windows) -> Lessons:
        bars = windows.bars(slice(None)).astype(np.float64)
        prices = np.log(bars[..., : CLOSE + 1])
        moves = np.diff(prices[..., CLOSE], axis=1)
        seen = windows.lookback
        unit = np.maximum(moves[:, : seen - 1].std(axis=1), STILL)
        volume = bars[:, :seen, VOLUME]
        spread = volume.std(axis=1, keepdims=True)
        volume = (volume - volume.mean(axis=1, keepdims=True)) / np.where(spread > 0, spread, 1)
        relative = (
            moves[:, : seen - 1],
            prices[:, 1:seen, HIGH] - prices[:, 1:seen, LOW],
            prices[:, 1:seen, OPEN] - prices[:, : seen - 1, CLOSE],
        )
        level = np.broadcast_to(np.log(unit)[:, None] + 4, moves[:, : seen - 1].shape)
        columns = [*(one / unit[:, None] for one in relative), volume[:, 1:], level]
        inputs = np.stack(columns, axis=-1).clip(-LIMIT, LIMIT)
        ahead = (moves[:, seen - 1 :] / unit[:, None]).clip(-LIMIT, LIMIT)
        return cls(torch.tensor(inputs).float(), torch.tensor(ahead).float(), unit)

    def __len__(self) -> int:
        return len(self.unit)


def loss_of(net: NextReturns, lessons: Lessons, which: torch.Tensor) -> torch.Tensor:
    """Mean negative log likelihood of a normal return, less a constant."""
    mean, log_deviation = net(lessons.seen[which])
    missed = (lessons.ahead[which] - mean) * torch.exp(-log_deviation)
    loss: torch.Tensor = (log_deviation + missed.square() / 2).mean()
    return loss


@torch.inference_mode()
def mean_loss(net: NextReturns, lessons: Lessons) -> float:
    parts = torch.arange(len(lessons)).split(BATCH)
    return sum(float(loss_of(net, lessons, part)) * len(part) for part in parts) / len(lessons)


def split_late(windows: Windows) -> tuple[Windows, Windows]:
    """Windows by time, to learn from and to choose the epoch by: no bar ahead of the first ones is
    later than the last bar seen of any of the second."""
    first_late = windows.times[round(len(windows) * (1 - LATE_SHARE))]
    until = windows.table.times_at(windows.ends[:].astype(np.int64) + windows.ahead)
    early, late = np.flatnonzero(until <= first_late), np.flatnonzero(windows.times >= first_late)
    if not len(early):
        raise SystemExit(f"{len(windows)} windows to train the GRU on: too few; widen --train")
    return windows.take(early), windows.take(late)


def train_gru(windows: Windows, epochs: int, seed: int) -> tuple[NextReturns, dict[str, Any]]:
    """Trained on windows by time, and what is to be said of that."""
    began = time.perf_counter()
    early, late = split_late(windows)
    lessons, judged = Lessons.of(early), Lessons.of(late)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = NextReturns(lessons.seen.shape[-1], windows.ahead)
    rng = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(net.parameters(), lr=RATE)
    losses, best = [], net.state_dict()
    for _ in range(epochs):
        for which in torch.randperm(len(lessons), generator=rng).split(BATCH):
            optimizer.zero_grad()
            loss_of(net, lessons, which).backward()
            torch.nn.utils.clip_grad_norm_(net.parameters(), CLIP)
            optimizer.step()
        losses.append(mean_loss(net, judged))
        if losses[-1] == min(losses):
            best = {name: values.clone() for name, values in net.state_dict().items()}
    net.load_state_dict(best)
    return net, {
        "numbers": sum(values.numel() for values in net.parameters()),
        "windows": len(lessons), "windows_late": len(judged),
        "epochs": epochs, "epoch_kept": int(np.argmin(losses)) + 1, "losses": losses,
        "seconds": time.perf_counter() - began,
    }  # fmt: skip


@torch.inference_mode()
def of_gru(net: NextReturns, windows: Windows) -> Prediction:
    lessons = Lessons.of(windows)
    parts = [net(part) for part in lessons.seen.split(BATCH)]
    mean, log_deviation = (torch.cat(one).double().numpy() for one in zip(*parts, strict=True))
    unit = lessons.unit[:, None]
    return of_normals(mean * unit, np.exp(2 * log_deviation) * unit**2)


# Judging


def measures_of(prediction: Prediction, outcomes: Outcomes) -> dict[str, Callable[[Flags], float]]:
    """Each measure, of the windows that a flag keeps."""
    realised = outcomes.realised_volatility[:, -1]
    along = path_rank_ic(prediction.returns, outcomes.returns)
    predicted, came = bar_returns(prediction.returns), bar_returns(outcomes.returns)

    def price(kept: Flags) -> float:
        known = along[kept & np.isfinite(along)]
        return float(known.mean()) if len(known) else math.nan

    return {
        PRICE: price,
        RETURN: lambda kept: pooled_rank_ic(
            prediction.returns[kept, -1], outcomes.returns[kept, -1]
        ),
        BY_BAR: lambda kept: pooled_rank_ic(predicted[kept], came[kept]),
        MAE: lambda kept: float(100 * np.abs(prediction.volatility[kept] - realised[kept]).mean()),
        R2: lambda kept: r_squared(prediction.volatility[kept], realised[kept]),
        FITTED_R2: lambda kept: squared_correlation(prediction.volatility[kept], realised[kept]),
    }


def remembered(measure: Callable[[Flags], float]) -> Callable[[Flags], float]:
    """The same, once for each choice of windows: rows of differences ask for them again."""
    known: dict[bytes, float] = {}

    def of(kept: Flags) -> float:
        key = kept.tobytes()
        if key not in known:
            known[key] = measure(kept)
        return known[key]

    return of


def bar_returns(returns: Floats) -> Floats:
    """(N, H) from bar to bar, of returns from the last close."""
    prices = np.concatenate((np.ones((len(returns), 1)), 1 + returns), axis=1)
    return np.asarray(prices[:, 1:] / prices[:, :-1] - 1)


def table_of(predictions: dict[str, Prediction], outcomes: Outcomes) -> list[dict[str, Any]]:
    """A row a method and measure, and a row for each difference of a Kronos from the others."""
    label_days = outcomes.label_days(outcomes.horizon)
    measures = {
        name: {measure: remembered(of) for measure, of in measures_of(one, outcomes).items()}
        for name, one in predictions.items()
    }
    pairs = [(name, "") for name in measures]
    pairs += [(one, other) for one in (PAPER, OURS) for other in (GARCH, GRU, WALK)]
    rows = []
    for name, other in pairs:
        for measure, ours in measures[name].items():
            theirs = measures[other][measure] if other else lambda kept: 0.0

            def apart(kept: Flags, ours: Any = ours, theirs: Any = theirs) -> float:
                return float(ours(kept) - theirs(kept))

            found = clustered_by_day(apart, outcomes.days, label_days=label_days)
            rows.append({"method": name, "less": other, "measure": measure, **asdict(found)})
    return rows


def without_jumps(windows: Windows) -> tuple[Windows, int]:
    """Those without a jump of a close, in what was seen or what came; how many have one."""
    closes = windows.bars(slice(None))[..., CLOSE].astype(np.float64)
    moves = np.abs(closes[:, 1:] / closes[:, :-1] - 1).max(axis=1)
    return windows.take(np.flatnonzero(moves <= MAX_MOVE)), int((moves > MAX_MOVE).sum())


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Everything the tables show."""
    began = time.perf_counter()
    bars = read_bars(args.market, as_is=True).bars
    bars = bars[bars["date"] < pd.Timestamp(args.test[1]).normalize() + pd.Timedelta(days=1)]
    kept, _ = repair_bars(bars, REPAIRS)
    source = WindowDataset.from_file(
        kept,
        {"train": tuple(args.train), "test": tuple(args.test)},
        lookback=args.lookback,
        horizon=args.horizon,
    )
    known, unknown = known_windows(source, "test")
    windows, jumps = without_jumps(sample_windows(known, args.windows, args.seed))
    learned, jumps_learned = without_jumps(
        sample_windows(source.training_windows("train").by_time(), args.gru_windows, args.seed)
    )
    outcomes = outcomes_of(source, windows, min(VOLATILITY_BARS, args.lookback - 1))
    settings = {
        PAPER: SamplingConfig(paths=10, temperature=0.6, top_p=0.9, anchor=False),
        OURS: SamplingConfig(paths=args.paths, temperature=1.0, top_p=1.0),
    }
    seconds: dict[str, float] = {"reading": time.perf_counter() - began}
    predictions = {}
    predictor = KronosModel(args.checkpoint, args.tokenizer, seed=args.seed).predictor
    for name, sampling in settings.items():
        began = time.perf_counter()
        closes = draw_closes(predictor, source, windows, sampling, args.seed)
        predictions[name] = of_paths(closes, outcomes.last_close)
        seconds[name] = time.perf_counter() - began
    began = time.perf_counter()
    seen = windows.seen()[0][..., CLOSE].astype(np.float64)
    predictions[GARCH], failed = of_garch(seen, args.horizon)
    seconds[GARCH] = time.perf_counter() - began
    net, training = train_gru(learned, args.epochs, args.seed)
    seconds[GRU] = training.pop("seconds")
    predictions[GRU] = of_gru(net, windows)
    predictions[WALK] = of_baseline(VolatilityWalk.of(outcomes))
    predictions[LAST] = of_baseline(LastPrice(*outcomes.closes.shape))
    began = time.perf_counter()
    rows = table_of(predictions, outcomes)
    seconds["judging"] = time.perf_counter() - began
    return {
        "market": Path(args.market).stem, "checkpoint": str(args.checkpoint),
        "train": args.train, "test": args.test, "lookback": args.lookback,
        "horizon": args.horizon, "paths": args.paths, "seed": args.seed,
        "windows": len(windows), "of": len(known), "days": len(outcomes.days.unique()),
        "bars_left_out": len(bars) - len(kept), "windows_without_next_bars": unknown,
        "jumps_left_out": jumps, "jumps_left_out_of_training": jumps_learned,
        "garch_failed": failed, "gru": training,
        "came_flat": int((np.ptp(outcomes.closes, axis=1) == 0).sum()),
        "mean_volatility": float(100 * outcomes.realised_volatility[:, -1].mean()),
        "expected_volatility": {
            name: float(100 * one.volatility.mean()) for name, one in predictions.items()
        },
        "rows": rows, "seconds": seconds,
    }  # fmt: skip


# The tables


def show(result: dict[str, Any]) -> None:
    table = pd.DataFrame(result["rows"])
    methods = table[table["less"] == ""]
    names = " | ".join(methods["measure"].unique())
    print(f"| {result['market']}, {result['checkpoint']} | {names} |")
    print("|" + "---|" * 7)
    for name in methods["method"].unique():
        print(line_of(name, methods[methods["method"] == name], signed=False))
    for name, other in table.loc[table["less"] != "", ["method", "less"]].drop_duplicates().values:
        chosen = table[(table["method"] == name) & (table["less"] == other)]
        print(line_of(f"{name}, less {other}", chosen, signed=True))
    for name, (price, returns, explained) in PUBLISHED.items():
        print(f"| published, {name} | {price:.4f} | {returns:.4f} | | | {explained:.4f} | |")
    gru = result["gru"]
    expected = ", ".join(
        f"{name} {value:.2f}" for name, value in result["expected_volatility"].items()
    )
    print(
        f"\n95 % intervals by day. {result['windows']} of {result['of']:,} windows on "
        f"{result['days']} days, {result['test'][0]} to {result['test'][1]}; {result['lookback']} "
        f"bars seen, {result['horizon']} ahead; ours: {result['paths']} paths. Left out: "
        f"{result['bars_left_out']} bars that break a rule, {result['jumps_left_out']} windows "
        f"with a jump, {result['windows_without_next_bars']} without the calendar's next bars. "
        f"Volatility that came: {result['mean_volatility']:.2f} % a bar (expected: {expected}); "
        f"{result['came_flat']} windows came flat. GARCH without a fit in "
        f"{result['garch_failed']}. GRU: {gru['numbers']:,} numbers, {gru['windows']:,} windows of "
        f"{result['train'][0]} to {result['train'][1]}, epoch {gru['epoch_kept']} of "
        f"{gru['epochs']} kept (chosen by {gru['windows_late']:,} later ones)."
    )
    print("; ".join(f"{name} {spent:.0f} s" for name, spent in result["seconds"].items()))


def line_of(name: str, rows: pd.DataFrame, signed: bool) -> str:
    cells = []
    for measure, value, low, high in rows[["measure", "value", "low", "high"]].itertuples(
        index=False
    ):
        digits, sign = 2 if measure == MAE else 3, "+" if signed else ""
        if math.isnan(value):
            cells.append("-")
            continue
        cell = f"{value:{sign}.{digits}f}"
        if not math.isnan(low):
            cell += f" ({low:{sign}.{digits}f} to {high:{sign}.{digits}f})"
        cells.append(cell)
    return f"| {name} | {' | '.join(cells)} |"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("market", type=Path, help="its bars: a file or folder that read_bars takes")
    parser.add_argument("--checkpoint", default="nano", help="alias, Hub id or folder")
    parser.add_argument("--tokenizer", help="the same, where it lies elsewhere")
    ends = ("FIRST", "LAST")
    train, test = ["2020-01-01", "2022-12-31"], ["2023-01-01", "2023-12-31"]
    parser.add_argument("--train", nargs=2, metavar=ends, default=train, help="days, of the GRU")
    parser.add_argument("--test", nargs=2, metavar=ends, default=test, help="days to judge by")
    parser.add_argument("--windows", type=int, default=2000, help="to judge by (%(default)s)")
    parser.add_argument("--paths", type=int, default=50, help="of our settings (%(default)s)")
    parser.add_argument("--lookback", type=int, default=90)
    parser.add_argument("--horizon", type=int, default=10)
    parser.add_argument("--gru-windows", type=int, default=20_000, help="(%(default)s)")
    parser.add_argument("--epochs", type=int, default=12, help="of the GRU (%(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write the tables here too")
    args = parser.parse_args(argv)
    days = [pd.Timestamp(day) for day in (*args.train, *args.test)]
    if not days[0] <= days[1] < days[2] <= days[3]:
        parser.error("--train must end before --test begins, and neither before it begins")
    if min(args.windows, args.gru_windows, args.epochs) < 1 or args.paths < 2 or args.horizon < 2:
        parser.error("--windows, --gru-windows and --epochs from 1, --paths and --horizon from 2")
    result = measure(args)
    show(result)
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
