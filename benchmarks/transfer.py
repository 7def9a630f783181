"""What finetuning on one market is worth on another: zero-shot, home, away, all together.

Three markets, each learned from earlier years and judged on later ones (files of --data):
- cn: A-shares, daily, learned 2020-01 to 2021-12, chosen 2022-01 to 2022-06, judged 2023.
- us: US shares, daily, learned 2000 to 2010, chosen 2011 and 2012, judged 2014 to 2016.
- crypto: coins against USDT, hourly, learned 2021-04 to 2022-03, chosen 2022-04 to 2022-06, judged
  2022-10 to 2022-12.

Rows of each judged market, each with its method:
- zero-shot: the checkpoint as it is. home: finetuned on the same market's earlier years. away, one
  for each other market: finetuned on that one alone. all: on the three together, equally many
  moments of each.
- paths: the predictor finetuned (its tokenizer stays), score the expected return of drawn paths.
  head: an alpha head on the frozen checkpoint's contexts, which has no zero-shot row. head without
  context: the same head on the scale of the window alone, which is all that it has without Kronos.

Columns: learned to: the last day that training or choosing saw; "later" where that is after the
judged market's first, which no trader of that time had. Mean daily Rank IC with the return from the
next close to the close after it (several hours of a day are averaged first), and three intervals of
95 % over days: `daily_mean`'s, Newey and West's and a stationary bootstrap's (intervals.py compares
them: the second and third are too narrow, and asked for). Seeds: the lowest and highest of --seeds
heads, whose daily mean is judged; paths have one. Less home, less zero-shot: differences on the
same days and names with `daily_mean`'s interval.

Names are drawn once out of those that the files hold, nearly all of them survivors: for comparing
rows on equal terms, not for claims about returns.

What cannot be seen:
- Bars to learn from end with the months that chose, on 2022-06-30 at the latest: no judged month of
  2022 and 2023 is among them, in whatever market. A-shares therefore end half a year before 2023.
  US shares of 2014 to 2016 are judged by models that saw other markets later; such rows are marked.
- Labels and horizons lie inside their segment: its last moments are left out, so that nothing
  learned reaches into what chooses, and nothing that chose into what is judged.
- The bundled nano was itself pretrained on the three stretches that are learned from here (on US
  shares to 2012-12), and chosen by A-shares to 2022-06, US shares of 2013 and coins of 2022-07 to
  2022-09: judged stretches begin after these. To it no market is new; "zero-shot" is not finetuned.
- Settings are AlphaConfig's defaults and those of benchmarks/finetuning.py: none was looked for on
  what is judged. How often it was read with other settings is printed, and kept in --work.

One table holds several markets: each stretch is moved by a multiple of 28 years, after which every
date falls on the same weekday of the same month and day, all that a network reads of a date. So
moments of two markets never meet, and contexts are the same in every table.

Bars, contexts, models (the predictor's state within a training too) and scores stay in --work: a
run goes on where it was stopped. What was made with other settings or bars is made anew; changed
code is not noticed.

Example:
    python benchmarks/transfer.py --data ../shared/data
    python benchmarks/transfer.py --data ../shared/data --methods head --judge cn us
"""

from __future__ import annotations

import argparse
import hashlib
import pickle
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from alpha import REPAIRS, difference, note_reading, of_series
from finetuning import SETTINGS, digest_of, forget, keep, log, recall, versions

from kronos_qlib import KronosModel, WindowDataset
from kronos_qlib.data.calendar.stamps import Times
from kronos_qlib.data.files.read import read_bars
from kronos_qlib.data.files.repair import repair_bars
from kronos_qlib.data.windows.bar_table import BarTable
from kronos_qlib.data.windows.segments import Segment, places_of
from kronos_qlib.data.windows.window import Windows
from kronos_qlib.evaluation.ranking.day_tables import to_wide
from kronos_qlib.evaluation.ranking.information_coefficient import daily_ic
from kronos_qlib.evaluation.ranking.uncertainty import by_day

Span = tuple[str, str]
Sources = tuple[str, ...]

CYCLE = pd.Timedelta(days=28 * 365 + 7)
"""After which the Gregorian calendar repeats, from 1901 to 2099."""
BEFORE = pd.Timedelta(days=200)
"""Bars before what is judged, for the first lookbacks."""
METHODS = ("paths", "head", "head without context")
PREDICTOR: dict[str, Any] = SETTINGS["training"]["predictor"]["predictor"]


@dataclass(frozen=True)
class Market:
    """Files of a market, and which days are learned from, chosen by and judged."""

    file: str
    train: Span
    valid: Span
    judged: Span
    judged_file: str | None = None
    """Where the judged bars are; None: in `file`."""


MARKETS = {
    "cn": Market(
        "cn_daily_2020_2023.parquet",
        train=("2020-01-01", "2021-12-31"),
        valid=("2022-01-01", "2022-06-30"),
        judged=("2023-01-01", "2023-12-31"),
    ),
    "us": Market(
        "us_daily_2000_2012.parquet",
        train=("2000-01-01", "2010-12-31"),
        valid=("2011-01-01", "2012-12-31"),
        judged=("2014-01-01", "2016-12-31"),
        judged_file="us_daily_2013_2016.parquet",
    ),
    "crypto": Market(
        "crypto_1h_2021_2022.parquet",
        train=("2021-04-01", "2022-03-31"),
        valid=("2022-04-01", "2022-06-30"),
        judged=("2022-10-01", "2022-12-31"),
    ),
}


@dataclass(frozen=True, eq=False, kw_only=True)
class SomeMoments(WindowDataset):
    """Windows that end at some moments alone."""

    moments: Times

    def windows(self, segment: Segment = "test") -> Windows:
        return self._some(super().windows(segment))

    def training_windows(self, segment: Segment = "train") -> Windows:
        return self._some(super().training_windows(segment))

    def labelled_windows(self, segment: Segment = "train", ahead: int | None = None) -> Windows:
        return self._some(super().labelled_windows(segment, ahead))

    def _some(self, found: Windows) -> Windows:
        chosen = np.isin(self.table.calendar, self.moments)
        return found.take(np.flatnonzero(chosen[self.table.places[found.ends[:]]]))


@dataclass(frozen=True)
class Budget:
    """How much of each market is taken."""

    names: int
    train_moments: int
    valid_moments: int
    judged_moments: int
    drawn_moments: int
    """Of the judged, for which paths are drawn."""
    windows: int
    """An epoch of the predictor's."""
    epochs: int
    """Of the predictor."""
    paths: int
    horizon: int
    lookback: int


@dataclass(frozen=True)
class Row:
    """A line of the table."""

    name: str
    method: str
    sources: Sources


def rows_of(judged: str, methods: Sequence[str]) -> list[Row]:
    """Of one judged market, those of a method together."""
    rows = []
    for method in methods:
        if method == "paths":
            rows.append(Row("zero-shot", method, ()))
        rows.append(Row("home", method, (judged,)))
        others = [name for name in MARKETS if name != judged]
        rows += [Row(f"away, {name}", method, (name,)) for name in others]
        rows.append(Row("all", method, tuple(MARKETS)))
    return rows


@dataclass(frozen=True)
class Bench:
    """Bars, budget and the folder in which everything is kept."""

    data: Path
    work: Path
    budget: Budget
    seeds: int
    checkpoint: str = "nano"
    device: str = "auto"
    tables: dict[Sources | str, SomeMoments] = field(default_factory=dict)
    """Of those that were asked for."""

    # Bars and windows.

    @cached_property
    def files(self) -> dict[str, str]:
        """Digests of the markets' files by name."""
        names = {market.file for market in MARKETS.values()}
        names |= {market.judged_file for market in MARKETS.values() if market.judged_file}
        return {name: hashlib.sha256((self.data / name).read_bytes()).hexdigest() for name in names}

    def bars(self, name: str, part: str) -> pd.DataFrame:
        """A market's bars of some names up to the end of "valid" or of "judged", repaired; kept.

        Names begin with the market's.
        """
        market = MARKETS[name]
        file = market.file if part == "valid" else market.judged_file or market.file
        end = pd.Timestamp(getattr(market, part)[1]) + pd.Timedelta(days=1)
        begin = None if part == "valid" else pd.Timestamp(market.judged[0]) - BEFORE
        path = self.work / "bars" / f"{name}_{part}.parquet"
        settings = {"file": self.files[file], "end": str(end), "names": self.budget.names}
        if recall(path, settings) is None:
            forget(path)
            known = np.sort(
                pd.read_parquet(self.data / file, columns=["symbol"])["symbol"].unique()
            )
            rng = np.random.default_rng(0)
            many = min(self.budget.names, len(known))
            chosen = rng.choice(known, many, replace=False).tolist()
            # The filter is applied while reading: later bars never reach this process.
            filters: list[Any] = [("date", "<", end), ("symbol", "in", chosen)]
            filters += [("date", ">=", begin)] if begin is not None else []
            raw = pd.read_parquet(self.data / file, filters=filters)
            bars, _ = repair_bars(read_bars(raw, as_is=True).bars, REPAIRS)
            log(f"{name}, {part}: {len(bars)} of {len(raw)} bars of {many} names")
            bars["symbol"] = name + "." + bars["symbol"].astype(str)
            bars.to_parquet(path)
            keep(path, settings)
        return pd.read_parquet(path)

    def learned(self, sources: Sources) -> SomeMoments:
        """Windows of "train" and "valid" of these markets, in one table."""
        if sources not in self.tables:
            self.tables[sources] = self._learned(sources)
        return self.tables[sources]

    def _learned(self, sources: Sources) -> SomeMoments:
        frames, moments, spans = [], [], []
        for name in sources:
            market, bars = MARKETS[name], self.bars(name, "valid")
            moves = moves_of(name)
            learns = bars["date"] < pd.Timestamp(market.train[1]) + pd.Timedelta(days=1)
            bars["date"] += pd.Series(np.where(learns, *moves), index=bars.index)
            frames.append(bars)
            calendar = np.unique(bars["date"].to_numpy(dtype="datetime64[ns]"))
            own = {}
            for segment, move in zip(("train", "valid"), moves, strict=True):
                own[segment] = moved(getattr(market, segment), move)
                most = getattr(self.budget, f"{segment}_moments")
                moments.append(self.some_of(calendar, own[segment], most))
            spans.append(own)
        return SomeMoments(
            table=BarTable.from_bars(pd.concat(frames, ignore_index=True)),
            # Stretches of all markets to learn from lie before all that choose.
            segments={
                segment: (spans[0][segment][0], spans[-1][segment][1])
                for segment in ("train", "valid")
            },
            lookback=self.budget.lookback,
            horizon=self.budget.horizon,
            moments=np.concatenate(moments),
        )

    def judged(self, name: str, method: str) -> SomeMoments:
        """Windows of "test" of one market; of some of its judged moments where paths are drawn."""
        if name not in self.tables:
            self.tables[name] = self._judged(name)
        source = self.tables[name]
        return replace(source, moments=self.drawn(source.moments)) if method == "paths" else source

    def drawn(self, moments: Times) -> Times:
        many = min(self.budget.drawn_moments, len(moments))
        return moments[np.linspace(0, len(moments) - 1, many).round().astype(int)]

    def _judged(self, name: str) -> SomeMoments:
        table = BarTable.from_bars(self.bars(name, "judged"))
        span = MARKETS[name].judged
        return SomeMoments(
            table=table,
            segments={"test": span},
            lookback=self.budget.lookback,
            horizon=self.budget.horizon,
            moments=self.some_of(table.calendar, span, self.budget.judged_moments),
        )

    def some_of(self, calendar: Times, span: Span, most: int) -> Times:
        """Moments of a segment, evenly spaced, whose lookback is there and label inside."""
        ahead = max(self.budget.horizon, 2)  # the label's return ends at the close after the next
        start, stop = places_of(calendar, *span)
        places = np.arange(max(start, self.budget.lookback - 1), stop - ahead)
        if not len(places):
            raise SystemExit(
                f"{span[0]} to {span[1]} has no moment with {self.budget.lookback} before it and "
                f"{ahead} after it"
            )
        even = np.linspace(0, len(places) - 1, min(most, len(places))).round().astype(int)
        return calendar[places[even]]

    # Models and scores.

    def settings(self, method: str, sources: Sources, seed: int) -> dict[str, Any]:
        """What decides a trained model."""
        settings: dict[str, Any] = {
            "checkpoint": self.checkpoint,
            "lookback": self.budget.lookback,
            "training": self.training(method, sources, seed),
        }
        if sources:
            names = ("names", "horizon", "train_moments", "valid_moments")
            settings |= {name: getattr(self.budget, name) for name in names}
            spans = ("file", "train", "valid")
            settings["markets"] = {
                name: [getattr(MARKETS[name], part) for part in spans] for name in sources
            }
            settings["files"] = [self.files[MARKETS[name].file] for name in sources]
        return settings

    def training(self, method: str, sources: Sources, seed: int) -> dict[str, Any] | None:
        if not sources:
            return None
        if method == "paths":
            size = {"windows_per_epoch": self.budget.windows, "epochs": self.budget.epochs}
            return {"predictor": {**PREDICTOR, **size, "seed": seed}}
        width = {"context_width": 0} if method == "head without context" else {}
        # Of published weights the usual preset would train adapters along.
        return {"alpha": {"backbone": "frozen", **width, "seed": seed}}

    def model(self, settings: Mapping[str, Any]) -> KronosModel:
        """Untrained."""
        # A head takes seconds, and contexts are kept moment by moment.
        paths = "predictor" in (settings["training"] or {})
        states = self.work / "states" / digest_of(settings)[:16]
        return KronosModel(
            self.checkpoint,
            sampling={**SETTINGS["sampling"], "paths": self.budget.paths},
            training=settings["training"],
            device=self.device,
            show_progress=False,
            contexts_folder=str(self.work / "contexts"),
            resume_folder=str(states) if paths else None,
            resume_every=20,
        )

    def fitted(self, method: str, sources: Sources, seed: int) -> KronosModel:
        """Trained unless it is there."""
        settings = self.settings(method, sources, seed)
        path = self.place("models", method, sources, seed) / "model.pkl"
        if recall(path, settings) is not None:
            model: KronosModel = pickle.loads(path.read_bytes())
            model.keep_contexts(self.work / "contexts")  # no pickle has it
            return model
        forget(path)
        log(f"{method}, {' + '.join(sources) or 'zero-shot'}, seed {seed}: training")
        began, model = time.process_time(), self.model(settings)
        if sources:
            with redirect_stdout(sys.stderr):
                model.fit(self.learned(sources))
        path.write_bytes(pickle.dumps(model))
        keep(path, settings, seconds=time.process_time() - began, history=model.history,
             **versions())  # fmt: skip
        return model

    def scored(self, row: Row, judged: str, seed: int) -> pd.Series:
        """Scores of a judged market, made unless they are there."""
        market, budget, drawn = MARKETS[judged], self.budget, row.method == "paths"
        moments = budget.drawn_moments if drawn else budget.judged_moments
        settings = {
            "model": self.settings(row.method, row.sources, seed),
            "file": self.files[market.judged_file or market.file],
            "judged": market.judged,
            "budget": [budget.names, moments, budget.horizon],
            "paths": budget.paths if drawn else None,
        }
        path = self.place("scores", row.method, row.sources, seed) / f"{judged}.parquet"
        if recall(path, settings) is None:
            model = self.fitted(row.method, row.sources, seed)
            forget(path)
            log(f"{row.method}, {row.name}, seed {seed}: scoring {judged}")
            with redirect_stdout(sys.stderr):
                scores = model.predict(self.judged(judged, row.method))
            scores.rename("score").to_frame().to_parquet(path)
            keep(path, settings)
        return pd.read_parquet(path)["score"]

    def labels(self, judged: str, method: str) -> pd.Series:
        """What came, of each window of the judged market where it is known."""
        source = self.judged(judged, method)
        windows = source.windows("test")
        values = source.label.of(windows)
        return pd.Series(values, index=windows.index, name="label").dropna()

    def place(self, kind: str, method: str, sources: Sources, seed: int) -> Path:
        words = [*method.split(), *(sources or ("zero-shot",)), str(seed)]
        return self.work / kind / "-".join(words)


def moves_of(name: str) -> tuple[pd.Timedelta, pd.Timedelta]:
    """By how much a market's bars to learn from are moved, and those that choose.

    In cycles of which each holds one stretch alone: all to learn from come before all that choose.
    """
    number = list(MARKETS).index(name)
    return (number - len(MARKETS)) * CYCLE, number * CYCLE


def moved(span: Span, move: pd.Timedelta) -> Span:
    first, last = (f"{pd.Timestamp(day) + move:%Y-%m-%d}" for day in span)
    return first, last


# Judging.


def judge(bench: Bench, judged: str, method: str) -> list[dict[str, Any]]:
    """The rows of a method on one judged market, all on the same days and names."""
    rows = rows_of(judged, [method])
    seeds = {row: range(1 if method == "paths" else bench.seeds) for row in rows}
    scores = {(row, seed): bench.scored(row, judged, seed) for row in rows for seed in seeds[row]}
    alike = pd.concat(
        [*scores.values(), bench.labels(judged, method)], axis=1, join="inner"
    ).dropna()
    alike = alike.sort_index()
    label = to_wide(alike.iloc[:, -1])
    own = {
        key: by_day(daily_ic(to_wide(alike.iloc[:, place]), label)["rank_ic"].dropna())
        for place, key in enumerate(scores)
    }
    # A day on which a score is the same for all orders nothing: it is judged of none.
    days = pd.concat(own.values(), axis=1, join="inner").index
    daily = {
        row: pd.concat([own[row, seed].loc[days] for seed in seeds[row]], axis=1).mean(axis=1)
        for row in rows
    }
    begins = pd.Timestamp(MARKETS[judged].judged[0])
    found = []
    rng = np.random.default_rng(0)
    for row in rows:
        learned = max((MARKETS[name].valid[1] for name in row.sources), default="")
        means = [own[row, seed].loc[days].mean() for seed in seeds[row]]
        one = {
            "judged": judged, "method": row.method, "row": row.name, "learned_to": learned,
            "later": bool(learned) and pd.Timestamp(learned) >= begins,
            "days": len(days), "pairs": len(alike), **of_series(daily[row], rng),
            "seed_low": min(means), "seed_high": max(means),
        }  # fmt: skip
        for other in ("home", "zero-shot"):
            for each in [one for one in rows if one.name == other != row.name]:
                apart = difference(daily[row], daily[each])
                one |= {f"less_{other}_{name}": value for name, value in apart.items()}
        found.append(one)
    return found


def show(rows: Sequence[Mapping[str, Any]]) -> str:
    """The table in Markdown."""

    def number(value: float | None, how: str = "{:.4f}") -> str:
        return "-" if value is None or not np.isfinite(value) else how.format(value)

    def between(row: Mapping[str, Any], name: str, how: str = "{:.4f}") -> str:
        low, high = (row.get(f"{name}{end}") for end in ("low", "high"))
        return "-" if low is None else f"{number(low, how)} to {number(high, how)}"

    def less(row: Mapping[str, Any], other: str) -> str:
        name = f"less_{other}_"
        if f"{name}mean" not in row:
            return "-"
        return f"{number(row[f'{name}mean'], '{:+.4f}')} ({between(row, name, '{:+.4f}')})"

    head = ["judged", "days, rows", "method", "row", "learned to", "Rank IC", "95 %",
            "Newey-West", "bootstrap", "seeds", "less home", "less zero-shot"]  # fmt: skip
    lines = [head, ["---"] * len(head)]
    for row in rows:
        learned = f"{row['learned_to'][:7]}{', later' if row['later'] else ''}"
        lines.append([
            row["judged"], f"{row['days']}, {row['pairs']:,}", row["method"], row["row"],
            learned or "-", number(row["rank_ic"]),
            between(row, ""), between(row, "nw_"), between(row, "bootstrap_"),
            "-" if row["method"] == "paths" else between(row, "seed_"),
            less(row, "home"), less(row, "zero-shot"),
        ])  # fmt: skip
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )

    def count(name: str, usual: int, what: str) -> None:
        parser.add_argument(name, type=int, default=usual, help=f"{what} (%(default)s)")

    parser.add_argument("--data", type=Path, required=True, help="folder of the markets' files")
    parser.add_argument("--work", type=Path, default=Path("demo/transfer"), help="what is kept")
    parser.add_argument("--judge", nargs="+", choices=MARKETS, help="some markets alone")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    count("--names", 100, "names of each market, drawn once")
    count("--train-moments", 240, "days, of hourly bars hours, that a market is learned from")
    count("--valid-moments", 60, "that choose")
    count("--judged-moments", 240, "that are judged")
    count("--drawn-moments", 240, "of these, for which paths are drawn: most of the time")
    count("--windows", 4000, "windows of an epoch of the predictor's")
    count("--epochs", 2, "of the predictor")
    count("--paths", 5, "drawn of each window")
    count("--horizon", 2, "bars that they reach: those of the label")
    count("--lookback", 90, "bars of a window")
    count("--seeds", 3, "heads of each row")
    parser.add_argument("--checkpoint", default="nano", help="(%(default)s)")
    parser.add_argument("--device", default="auto")
    args = parser.parse_args(argv)
    amounts = {name: getattr(args, name) for name in Budget.__dataclass_fields__}
    for name, amount in {**amounts, "seeds": args.seeds}.items():
        if amount < 1:
            parser.error(f"--{name.replace('_', '-')} must be 1 or more, got {amount}")
    bench = Bench(
        data=args.data.resolve(),
        work=args.work.resolve(),
        budget=Budget(**amounts),
        seeds=args.seeds,
        checkpoint=args.checkpoint,
        device=args.device,
    )
    for market in MARKETS.values():
        for name in (market.file, market.judged_file or market.file):
            if not (bench.data / name).is_file():
                parser.error(f"there is no file {bench.data / name}")
    chosen = args.judge or list(MARKETS)
    known = digest_of([amounts, args.seeds, args.checkpoint, chosen, list(args.methods)])
    before = note_reading(bench.work, [*chosen, *args.methods], known)
    # A method at a time over all markets: what takes longest comes last.
    for method in sorted(args.methods, key=METHODS.index, reverse=True):
        for judged in chosen:
            for row in rows_of(judged, [method]):
                for seed in range(1 if method == "paths" else args.seeds):
                    bench.scored(row, judged, seed)
    found = [
        row for judged in chosen for method in args.methods for row in judge(bench, judged, method)
    ]
    size = ", ".join(f"{name} {amount}" for name, amount in amounts.items())
    text = (
        f"{args.checkpoint}; {size}; {args.seeds} seeds of each head.\n"
        f"They were read {len(before)} times before with other rows or settings.\n\n{show(found)}"
    )
    print(text)
    pd.DataFrame(found).to_csv(bench.work / "transfer.csv", index=False)
    (bench.work / "transfer.md").write_text(text + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
