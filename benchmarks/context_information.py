"""What a context says of the next days' order beside the scale features, half year by half year.

An alpha head is a network, its seeds move its Rank IC by .005, and its scale features hold styles
whose luck moves each day. Here the question is put without either, on days to learn from and on
validation (no bar of a market's test is read):

- base: a ridge regression of the standardised ranked label on the scale features and their squares;
- context: a ridge of what the base leaves on the context after the newest bar, standardised over
  the day. Its Rank IC with the label is what the context knows beside the base, linearly.

Each half year is judged by regressions learned from all other half years, less EMBARGO days on
either side: later ones too, so this is no trading result but a measure of what is in the inputs.
Half years whose bars the network was pretrained on (up to --seen-to) are told apart: their next
days were targets of its pretraining, and a context there may know what came.

Intervals of 95 % over days are `daily_mean`'s. Contexts are read in spans of ten days, and kept in
--work by checkpoint.

Example:
    python benchmarks/context_information.py --data FOLDER --market cn2023 --seen-to 2021-12-31
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

import numpy as np
import pandas as pd
from alpha import add_market, bench_to_choose
from finetuning import digest_of, forget, keep, log, recall
from numpy.typing import NDArray

from kronos_qlib import KronosPredictor
from kronos_qlib.evaluation.ranking.information_coefficient import summarise
from kronos_qlib.evaluation.text_table import format_rows
from kronos_qlib.model.checkpoints.pretrained import fingerprint
from kronos_qlib.pipeline.contexts import contexts_of
from kronos_qlib.training.alpha import AlphaSegment, correlations

SPAN = 10
PENALTY = 0.1
"""Of either ridge, per window, of inputs of one deviation."""
EMBARGO = 12
"""Days left out beside the half year that is judged: the label's two, and ten of a span."""
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Days:
    """Whole days of a segment, flat.

    features, contexts: (N, F) and (N, C), standardised over the day. target: (N,) the label's
    standardised rank. returns: (N,) the label. day: (N,) number of the day. dates: of each day.
    """

    features: Floats
    contexts: Floats
    target: Floats
    returns: Floats
    day: NDArray[np.int64]
    dates: pd.DatetimeIndex

    @classmethod
    def of(cls, segment: AlphaSegment, contexts: Floats) -> Days:
        """Those windows of the segment's days whose label is known."""
        kept, number, times = [], [], []
        compared = np.empty_like(contexts)
        for place, day in enumerate(segment.days):
            block = contexts[day].astype(np.float64)
            spread = block.std(axis=0)
            compared[day] = (block - block.mean(axis=0)) / np.where(spread > 0, spread, 1)
            known = day.start + np.flatnonzero(np.isfinite(segment.target[day]))
            kept.append(known)
            number.append(np.full(len(known), place))
            times.append(segment.windows.take(slice(day.start, day.start + 1)).times[0])
        which = np.concatenate(kept)
        return cls(
            segment.features[which],
            compared[which],
            segment.target[which],
            segment.returns[which],
            np.concatenate(number),
            pd.DatetimeIndex(times),
        )

    @property
    def base(self) -> Floats:
        """(N, 2 F) features and squares."""
        return np.concatenate((self.features, self.features**2 - 1), axis=1)

    def daily_rank_ic(self, scores: Floats, days: NDArray[np.int64]) -> pd.Series[float]:
        """Of the days chosen, by date."""
        found = {}
        for place in days.tolist():
            rows = slice(*np.searchsorted(self.day, (place, place + 1)))
            found[self.dates[place]] = correlations(scores[rows], self.returns[rows])[1]
        return pd.Series(found)


def joined(parts: list[Days]) -> Days:
    """Segments one after the other."""
    begins = np.cumsum([0, *(len(part.dates) for part in parts[:-1])])
    return Days(
        **{
            name: np.concatenate([getattr(part, name) for part in parts])
            for name in ("features", "contexts", "target", "returns")
        },
        day=np.concatenate([part.day + begin for part, begin in zip(parts, begins, strict=True)]),
        dates=pd.DatetimeIndex(np.concatenate([part.dates for part in parts])),
    )


def half_years(dates: pd.DatetimeIndex) -> dict[str, NDArray[np.int64]]:
    """The numbers of each half year's days."""
    name = dates.year.astype(str) + np.where(dates.month <= 6, " H1", " H2")
    return {str(one): np.flatnonzero(name == one) for one in pd.unique(name)}


def ridge(inputs: Floats, target: Floats) -> NDArray[np.float64]:
    """(F,) weights of standardised inputs."""
    x = inputs.astype(np.float64)
    inner = x.T @ x + PENALTY * len(x) * np.eye(x.shape[1])
    weights: NDArray[np.float64] = np.linalg.solve(inner, x.T @ target)
    return weights


def measure(days: Days) -> dict[str, dict[str, pd.Series[float]]]:
    """Daily Rank IC of each half year: of the base, of the context beside it, and of their sum."""
    found, styles = {}, days.base
    for name, judged in half_years(days.dates).items():
        apart = (days.day < judged[0] - EMBARGO) | (days.day > judged[-1] + EMBARGO)
        of_base = styles @ ridge(styles[apart], days.target[apart])
        left = days.target - of_base
        of_context = days.contexts @ ridge(days.contexts[apart], left[apart])
        scores = {"base": of_base, "context": of_context, "sum": of_base + of_context}
        found[name] = {what: days.daily_rank_ic(one, judged) for what, one in scores.items()}
    return found


def shown(daily: pd.Series[float]) -> list[str]:
    found = summarise(daily)
    return [
        f"{found['mean']:+.4f} ({found['low']:+.4f} to {found['high']:+.4f})",
        f"{found['t']:.1f}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_market(parser)
    parser.add_argument("--checkpoint", default="nano", help="name or folder")
    parser.add_argument("--seen-to", required=True, help="last day of bars it was pretrained on")
    args = parser.parse_args()
    bench = bench_to_choose(args)
    source = bench.windows_dataset("train", "valid").source
    predictor = KronosPredictor.from_pretrained(args.checkpoint, device="cpu")
    weights = [fingerprint(part) for part in (predictor.model, predictor.tokenizer)]
    parts = []
    for name in ("train", "valid"):
        segment = AlphaSegment.of(source.labelled_windows(name, source.label.ahead), source.label)
        settings = {**bench.source, "days": bench.segment(name), "weights": weights}
        path = bench.work / "information" / f"{name}-{digest_of(settings)[:16]}.npy"
        if recall(path, settings) is None:
            forget(path)
            log(f"{name}: contexts of {len(segment):,} windows")
            path.parent.mkdir(parents=True, exist_ok=True)
            np.save(path, contexts_of(predictor, segment.windows, span=SPAN).astype(np.float16))
            keep(path, settings)
        parts.append(Days.of(segment, np.load(path).astype(np.float32)))
    days = joined(parts)
    found = measure(days)
    last = pd.Timestamp(args.seen_to)
    groups: dict[str, list[str]] = {}
    for name, judged in half_years(days.dates).items():
        seen = float((days.dates[judged] <= last).mean())
        group = "later" if seen == 0 else "pretrained on" if seen == 1 else "partly pretrained on"
        groups.setdefault(group, []).append(name)
    rows = [["bars", "half years", "days", "base: Rank IC (95 %)", "t",
             "context beside it", "t", "their sum", "t"]]  # fmt: skip
    lines = [(group, name, [name]) for group, names in groups.items() for name in names]
    lines += [(group, "together", names) for group, names in groups.items()]
    for group, label, names in lines:
        of = {
            what: pd.concat([found[name][what] for name in names])
            for what in ("base", "context", "sum")
        }
        cells = [cell for daily in of.values() for cell in shown(daily)]
        rows.append([group, label, str(len(of["base"])), *cells])
    print(f"{args.market}, {args.checkpoint}: {len(days.day):,} windows of {len(days.dates)} days")
    print(format_rows(rows))


if __name__ == "__main__":
    main()
