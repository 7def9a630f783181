"""What a Kronos context is worth in an alpha head, against the rivals that count, on real A-shares.

Markets, by the file that --data holds:
- cn2023: names of CSI300 and CSI500 on each day (package `index-constitution`; the file has main
  boards alone), learned 2020-01 to 2022-06, chosen on 2022-07 to 2022-12, 2023 read once.
- cn2002: all names, learned 2000-01 to 2001-12, chosen on 2002-01 to 2002-06, 2002-07 to 2002-12
  read once.
The label is the return from the next close to the close after it.

Rows, each trained from every seed of --seeds:
- lightgbm: on Alpha158, as workflows/workflow_lightgbm.yaml sets it.
- gru: `GRUModel`, the same windows, features, days, loss and early choice as the head's.
- head: an alpha head on nano's context; head without context: the same head on the scale alone.
- of --settings, a YAML file of a name and a mapping each: {alpha: fields of AlphaConfig}, {gru:
  settings of GRUModel}, {lightgbm: settings of LGBModel}, {blend: [rows]}, or {residual: {of:
  lightgbm, folds: 5}, alpha or gru: ...}, which learns what LightGBM leaves. A name that is there
  already is replaced. Settings of `gru` are laid over those of the usual row.
- blends: means of percentiles within the day, of seeds with each other; in equal parts, or by
  {blend: [rows], weights: [...]}.
- {neutralised: row}: what the scale features leave of that row's scores, by least squares of each
  day's ranks; {lightgbm: ..., neutral: true} learns what they leave of the label, and is scored so,
  as a head of `neutral` is.

Columns: mean daily Rank IC, the mean over seeds of each day, with three intervals of 95 % over
days: `daily_mean`'s, Newey and West's, and a stationary bootstrap's (benchmarks/intervals.py
compares them: the second and third are too narrow, and asked for). ICIR: the mean over a day's
deviation. Seeds: the lowest and highest seed's. Together: Rank IC of the mean percentile of all
seeds. Turnover: share of the best tenth that is new each day. Excess and IR: of Qlib's TopK-dropout
backtest (50 names, 5 replaced a day, limits of 9.5 %), after 10 basis points of the money traded on
either side, over the mean of all names of the day, per year, mean over seeds; t of the daily
excess, the seeds' mean. CPU s: of all cores, to train one seed; contexts where they were not there
yet. Differences are of the same days and rows.

What cannot be seen:
- Bars are read from a Qlib folder that ends with the judged segment. --choose reads no bar of the
  test. Models are trained in the folder that ends with validation, whatever is judged.
- --choose prints validation alone, by which epochs and trees were chosen too: its figures flatter
  every row. It counts the settings that were ever scored there, in this --work.
- --test says how often the test was read before, with which rows; the list stays in --work.

Folders, contexts, models and scores stay in --work: a run goes on where it was stopped. What was
made with other settings or bars is made anew; changed code is not noticed.

Example:
    python benchmarks/alpha.py --data ../shared/data --market cn2023 --choose --settings own.yaml
    python benchmarks/alpha.py --data ../shared/data --market cn2023 --test
"""

from __future__ import annotations

import argparse
import hashlib
import json
import pickle
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import yaml
from finetuning import digest_of, forget, keep, log, recall, versions
from intervals import newey_west, stationary
from jinja2 import Template
from qlib.backtest import backtest
from qlib.data import D
from qlib.data.dataset import DatasetH
from qlib.data.dataset.handler import DataHandlerLP
from qlib.data.dataset.loader import StaticDataLoader
from qlib.utils import init_instance_by_config

from kronos_qlib.data.files.read import read_bars
from kronos_qlib.data.files.repair import repair_bars
from kronos_qlib.data.windows.scale_features import standardised_over_day
from kronos_qlib.errors import ConfigError, UndefinedMetricError
from kronos_qlib.evaluation.compare.comparison import excess_test
from kronos_qlib.evaluation.portfolio.costs import cost_table
from kronos_qlib.evaluation.portfolio.metrics import net_returns
from kronos_qlib.evaluation.ranking.day_tables import to_wide
from kronos_qlib.evaluation.ranking.information_coefficient import (
    daily_ic,
    summarise,
    summarise_difference,
)
from kronos_qlib.evaluation.ranking.stability import top_turnover
from kronos_qlib.evaluation.text_table import format_rows
from kronos_qlib.model.alpha_head import neutralised
from kronos_qlib.plugin.baselines import GRUModel
from kronos_qlib.plugin.dataset import NEXT_DAY_RETURN, KronosDataset, KronosHandler
from kronos_qlib.plugin.lookahead import open_provider
from kronos_qlib.plugin.model import KronosModel
from kronos_qlib.plugin.provider.expression_label import ExpressionLabel
from kronos_qlib.plugin.provider.members import write_members
from kronos_qlib.plugin.provider.writer import write_provider
from kronos_qlib.plugin.qlib_internals import metrics_dropped
from kronos_qlib.plugin.records.backtest_record import BacktestConfig, qlib_config
from kronos_qlib.plugin.residual import ResidualConfig, residual_source, scores_out_of_fold
from kronos_qlib.plugin.runs.quiet import quiet_backtest
from kronos_qlib.settings import from_mapping
from kronos_qlib.training.alpha import day_features

ROOT = Path(__file__).resolve().parents[1]
REPAIRS = ("drop-nan", "drop-nonpositive", "drop-duplicates", "drop-bracket", "drop-untraded")
"""Whatever breaks a rule is left out, nothing is mended."""
MEAN = "MEAN"
COST_BP = 10.0
DRAWS = 2000
"""Of the bootstrap."""


@dataclass(frozen=True)
class Market:
    """A file of bars, who is in the universe, and what is learned, chosen and judged."""

    file: str
    segments: Mapping[str, tuple[str, str]]
    indices: tuple[str, ...] = ()
    least_share: float = 0.0
    """A day on which fewer names trade than this share of the usual day's is left out."""


MARKETS = {
    "cn2023": Market(
        "cn_daily_2020_2023.parquet",
        {
            "train": ("2020-01-01", "2022-06-30"),
            "valid": ("2022-07-01", "2022-12-31"),
            "test": ("2023-01-01", "2023-12-31"),
        },
        indices=("csi300", "csi500"),
    ),
    "cn2002": Market(
        "cn_daily_2000_2002.parquet",
        {
            "train": ("2000-01-01", "2001-12-31"),
            "valid": ("2002-01-01", "2002-06-30"),
            "test": ("2002-07-01", "2002-12-31"),
        },
        least_share=0.05,  # Saturdays of one to four bars, a fault of the file
    ),
}
GRU: dict[str, Any] = {
    "hidden": 64,
    # Read bar by bar: a sample of each day, or an epoch takes as long as all of the head's.
    "training": {"epochs": 8, "windows_per_day": 200, "validation_days": 60},
}
ROWS: dict[str, dict[str, Any]] = {
    "lightgbm": {"lightgbm": {}},
    "gru": {"gru": {}},
    "head": {"alpha": {}},
    "head without context": {"alpha": {"context_width": 0}},
    "lightgbm + gru": {"blend": ["lightgbm", "gru"]},
    "lightgbm + head": {"blend": ["lightgbm", "head"]},
    "lightgbm + head without context": {"blend": ["lightgbm", "head without context"]},
    "lightgbm + gru + head": {"blend": ["lightgbm", "gru", "head"]},
}
KINDS = ("lightgbm", "gru", "alpha", "blend", "neutralised")
BESIDE = {"residual": ("alpha", "gru"), "weights": ("blend",), "neutral": ("lightgbm",)}
"""Keys that a row may have beside its kind, and of which kinds."""
AGAINST = ("lightgbm", "gru", "head without context")
"""Rows that each other row is held against, where they are judged."""


def merged(usual: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """`own` over `usual`, mappings within too."""
    result = dict(usual)
    for name, value in own.items():
        both = isinstance(value, Mapping) and isinstance(usual.get(name), Mapping)
        result[name] = merged(usual[name], value) if both else value
    return result


def rows_of(settings: Path | None) -> dict[str, dict[str, Any]]:
    """The usual rows and those of a file.

    Raises:
        SystemExit: a row is not as this page says; names it.
    """
    own = yaml.safe_load(settings.read_text(encoding="utf-8")) or {} if settings else {}
    if not isinstance(own, Mapping):
        raise SystemExit(f"{settings} must map names of rows to their settings")
    rows = {**ROWS, **own}
    for name, how in rows.items():
        if not isinstance(how, Mapping):
            raise SystemExit(f"{name}: must be a mapping with one of {', '.join(KINDS)}")
        kinds = [kind for kind in KINDS if kind in how]
        if len(kinds) != 1 or set(how) - {*kinds, *BESIDE}:
            raise SystemExit(
                f"{name}: has one of {', '.join(KINDS)}, and may have {', '.join(BESIDE)} beside "
                f"it; got {', '.join(map(str, how))}"
            )
        if "neutral" in how and how["neutral"] is not True:
            raise SystemExit(f"{name}: neutral is true, or left out")
        if not all(0 < weight < np.inf for weight in how.get("weights", ())):
            raise SystemExit(f"{name}: weights are above 0")
        if not isinstance(how.get("neutralised", ""), str):
            raise SystemExit(f"{name}: neutralised names one row")
        for key, of in BESIDE.items():
            if key in how and kinds[0] not in of:
                raise SystemExit(f"{name}: {key} goes with {' or '.join(of)}, not with {kinds[0]}")
        if "residual" in how:
            of = from_mapping(ResidualConfig, how["residual"], where=f"{name}: residual").of
            if "lightgbm" not in rows.get(of, {}):
                raise SystemExit(f"{name}: residual.of {of!r} is no row of LightGBM")
        if "weights" in how and len(how["weights"]) != len(how["blend"]):
            raise SystemExit(f"{name}: weights are one for each row that is blended")
        for member in made_of(how):
            if member not in rows or made_of(rows[member]):
                raise SystemExit(f"{name}: {member!r} is no row that can be blended or neutralised")
    return {str(name): dict(how) for name, how in rows.items()}


def made_of(how: Mapping[str, Any]) -> list[str]:
    """Rows whose scores a row's own are made of, without training."""
    return list(how.get("blend", ())) or [how[key] for key in ("neutralised",) if key in how]


@dataclass(frozen=True)
class Bench:
    """Bars, rows and the folder in which everything is kept."""

    market: Market
    bars: Path
    work: Path
    rows: Mapping[str, Mapping[str, Any]]
    judge: str
    """Segment whose scores are made and read."""
    device: str = "auto"
    lookback: int = 90
    checkpoint: str = "nano"

    @cached_property
    def source(self) -> dict[str, Any]:
        """What decides the bars and who counts."""
        known = self.bars.stat()
        digest = hashlib.sha256(self.bars.read_bytes()).hexdigest() if known.st_size else ""
        return {"bars": digest, "indices": self.market.indices, "share": self.market.least_share}

    @property
    def universe(self) -> str:
        return "members" if self.market.indices else "all"

    def open(self, segment: str) -> None:
        """Qlib on the bars up to the end of this segment, and none after it."""
        folder, last = self.work / segment / "qlib", self.market.segments[segment][1]
        made_with = {**self.source, "last": last}
        if recall(folder, made_with) is None:
            forget(folder)
            upto = [("date", "<", pd.Timestamp(last) + pd.Timedelta(days=1))]
            raw = pd.read_parquet(self.bars, filters=upto)
            traded = raw.groupby("date").size()
            stray = traded.index[traded < self.market.least_share * traded.median()]
            bars, _ = repair_bars(
                read_bars(raw[~raw["date"].isin(stray)], as_is=True).bars, REPAIRS
            )
            log(f"{segment}: {len(bars)} of {len(raw)} bars to {last}; days left out {len(stray)}")
            own = None if self.market.indices else MEAN
            write_provider(bars, folder, benchmark=own, overwrite=True)
            if self.market.indices:
                [found] = write_members(
                    folder, self.market.indices, name="members", mean=MEAN, overwrite=True
                )
                log(f"{segment}: {found}")
            keep(folder, made_with)
        open_provider(folder, region="cn")

    def segment(self, name: str, *, purged: bool = False) -> tuple[str, str]:
        """First and last day; without those whose label lies outside if `purged`."""
        first, last = self.market.segments[name]
        if purged:
            days = D.calendar(first, last)
            last = f"{days[-1 - ExpressionLabel(NEXT_DAY_RETURN).ahead]:%Y-%m-%d}"
        return first, last

    def windows_dataset(self, *names: str) -> KronosDataset:
        segments = {name: self.segment(name) for name in names}
        handler = KronosHandler(self.universe, segments[names[0]][0], segments[names[-1]][1])
        return KronosDataset(handler, segments, lookback=self.lookback, horizon=10)

    def styles(self, *names: str) -> pd.DataFrame:
        """Scale features of the open folder's windows of these segments, standardised by day."""
        source = self.windows_dataset(*names).source
        windows = [source.labelled_windows(name, source.label.ahead) for name in names]
        return pd.concat([pd.DataFrame(day_features(one), one.index) for one in windows])

    @cached_property
    def judged_styles(self) -> pd.DataFrame:
        """Of the judged segment, whatever the seed."""
        self.open(self.judge)
        return self.styles(self.judge)

    def table_dataset(self, *names: str, neutral: bool = False) -> DatasetH:
        """Alpha158's features and the label, on the open folder's rows of these segments.

        Args:
            neutral: the label is what the scale features leave of it.
        """
        segments = {name: self.segment(name, purged=True) for name in names}
        # One frame for training and validation, whose folder is the same.
        spanned = ("test", "test") if names == ("test",) else ("train", "valid")
        first, last = (self.segment(name, purged=True) for name in spanned)
        frame = self.table(first[0], last[1])
        if neutral:
            [label] = [column for column in frame.columns if column[0] == "label"]
            left = neutralised_by_day(frame[label].dropna(), self.styles(*names))
            frame = frame.copy()
            frame[label] = left.reindex(frame.index).astype(np.float32)
        learned = self.workflow["dataset"]["kwargs"]["handler"]["kwargs"]["learn_processors"]
        loader = StaticDataLoader(frame)
        return DatasetH(DataHandlerLP(data_loader=loader, learn_processors=learned), segments)

    def table(self, first: str, last: str) -> pd.DataFrame:
        """Alpha158 of the open folder, in float32; read once, which is most of LightGBM's time."""
        path = self.work / f"alpha158_{first}_{last}.parquet"
        settings = {**self.source, "universe": self.universe}
        if recall(path, settings) is None:
            forget(path)
            log(f"Alpha158 from {first} to {last}")
            handler = self.workflow["dataset"]["kwargs"]["handler"]
            train = self.market.segments["train"]
            kwargs = {
                **handler["kwargs"], "instruments": self.universe,
                "start_time": first, "end_time": last,
                "fit_start_time": train[0], "fit_end_time": train[1],
            }  # fmt: skip
            made = init_instance_by_config({**handler, "kwargs": kwargs})
            found = made.fetch(col_set=DataHandlerLP.CS_RAW, data_key=DataHandlerLP.DK_R)
            found.columns = ["|".join(pair) for pair in found.columns]
            found.astype(np.float32).to_parquet(path)
            keep(path, settings)
        frame = pd.read_parquet(path)
        pairs = [tuple(name.split("|")) for name in frame.columns]
        frame.columns = pd.MultiIndex.from_tuples(pairs)
        return frame

    @cached_property
    def workflow(self) -> dict[str, Any]:
        """The task of the shipped LightGBM."""
        text = (ROOT / "workflows" / "workflow_lightgbm.yaml").read_text(encoding="utf-8")
        task: dict[str, Any] = yaml.safe_load(Template(text).render())["task"]
        return task

    def settings(self, row: str, seed: int) -> dict[str, Any]:
        """What decides a trained model."""
        how = self.rows[row]
        known = {"seed": seed, **self.source, "segments": dict(self.market.segments)}
        if "lightgbm" in how:
            model = {**self.workflow["model"]["kwargs"], **how["lightgbm"], "seed": seed}
            return {**known, "lightgbm": model, **({"neutral": True} if how.get("neutral") else {})}
        known |= {"lookback": self.lookback}
        if "residual" in how:
            residual = from_mapping(ResidualConfig, how["residual"])
            of = self.settings(residual.of, seed)
            known |= {"residual": {"folds": residual.folds, "of": of}}
        if "gru" in how:
            return {**known, "gru": merged(merged(GRU, how["gru"]), {"training": {"seed": seed}})}
        alpha = {**how["alpha"], "seed": seed}
        return {**known, "alpha": alpha, "checkpoint": self.checkpoint}

    def decided_by(self, row: str) -> Any:
        """What decides a row's scores, whatever the seed; of a blend what decides its members'."""
        how = self.rows[row]
        members = [self.settings(member, 0) for member in made_of(how)]
        if not members:
            return self.settings(row, 0)
        extra = [how[key] for key in ("weights", "neutralised") if key in how]
        return [*members, *extra]

    def model(self, settings: Mapping[str, Any]) -> Any:
        """Untrained."""
        if "lightgbm" in settings:
            usual = self.workflow["model"]
            return init_instance_by_config({**usual, "kwargs": settings["lightgbm"]})
        if "gru" in settings:
            return GRUModel(
                **settings["gru"],
                device=self.device,
                show_progress=False,
                resume_folder=str(self.work / "states" / digest_of(settings)[:16]),
            )
        return KronosModel(
            self.checkpoint,
            # Of published weights the usual preset would train adapters along.
            training={"alpha": {"backbone": "frozen", **settings["alpha"]}},
            device=self.device,
            show_progress=False,
            contexts_folder=str(self.work / "contexts"),
        )

    def fitted(self, row: str, seed: int) -> tuple[Any, dict[str, Any]]:
        """A row's model, trained unless it is there."""
        path, settings = self.place(row, seed) / "model.pkl", self.settings(row, seed)
        if (note := recall(path, settings)) is not None:
            model = pickle.loads(path.read_bytes())
            if isinstance(model, KronosModel):  # a pickle names no folder of this machine
                model.keep_contexts(self.work / "contexts")
            return model, note
        forget(path)
        log(f"{row}, seed {seed}: training")
        self.open("valid")
        began, model = time.process_time(), self.model(settings)
        with metrics_dropped(), redirect_stdout(sys.stderr):  # what LightGBM prints is no table
            if "lightgbm" in settings:
                table = self.table_dataset("train", "valid", neutral="neutral" in settings)
                model.fit(table, verbose_eval=0)
            else:
                source = self.windows_dataset("train", "valid").source
                if "residual" in settings:
                    source = residual_source(source, self.out_of_fold(row, seed))
                model.fit(source)
        seconds = time.process_time() - began
        path.write_bytes(pickle.dumps(model))
        return model, keep(path, settings, seconds=seconds, **versions())

    def out_of_fold(self, row: str, seed: int) -> pd.Series:
        """LightGBM's scores of the days that a residual head learns from, kept for other rows."""
        residual = from_mapping(ResidualConfig, self.rows[row]["residual"])
        settings = self.settings(row, seed)["residual"]
        name = f"{residual.of} out of fold {residual.folds}"
        path = self.place(name, seed) / "scores.parquet"
        if recall(path, settings) is None:
            fitted, _ = self.fitted(residual.of, seed)
            forget(path)
            log(f"{residual.of}, seed {seed}: scores of {residual.folds} folds")
            self.open("valid")
            ahead = ExpressionLabel(NEXT_DAY_RETURN).ahead
            with metrics_dropped(), redirect_stdout(sys.stderr):
                scores = scores_out_of_fold(
                    lambda: self.model(settings["of"]),
                    fitted,
                    self.table_dataset("train", "valid"),
                    residual.folds,
                    ahead,
                )
            scores.rename("score").to_frame().to_parquet(path)
            keep(path, settings)
        return pd.read_parquet(path)["score"]

    def scored(self, row: str, seed: int) -> tuple[pd.Series, float]:
        """A row's scores of the judged segment, made unless they are there; seconds of training."""
        how = self.rows[row]
        if members := made_of(how):
            parts = [self.scored(member, seed) for member in members]
            scores, seconds = [part[0] for part in parts], sum(part[1] for part in parts)
            if "neutralised" in how:
                return neutralised_by_day(scores[0], self.judged_styles), seconds
            return mean_percentile(scores, how.get("weights")), seconds
        path = self.place(row, seed) / f"{self.judge}.parquet"
        settings = {"model": self.settings(row, seed), "judged": self.judge}
        if (note := recall(path, settings)) is None:
            model, trained = self.fitted(row, seed)
            forget(path)
            log(f"{row}, seed {seed}: scoring {self.judge}")
            self.open(self.judge)
            days = self.segment(self.judge, purged=True)
            if "lightgbm" in how:
                scores = model.predict(self.table_dataset(self.judge), self.judge)
                if how.get("neutral"):
                    scores = neutralised_by_day(scores, self.judged_styles)
            else:
                scores = model.predict(self.windows_dataset(self.judge), days)
            scores.rename("score").to_frame().to_parquet(path)
            note = keep(path, settings, seconds=trained["seconds"])
        return pd.read_parquet(path)["score"], float(note["seconds"])

    def labels(self) -> pd.Series:
        """What came, of each window of the judged segment."""
        path = self.work / self.judge / "labels.parquet"
        settings = {**self.source, "segments": dict(self.market.segments)}
        if recall(path, settings) is None:
            forget(path)
            self.open(self.judge)
            source = self.windows_dataset(self.judge).source
            windows = source.labelled_windows(self.judge)
            known = pd.Series(source.label.of(windows), index=windows.index, name="label").dropna()
            known.to_frame().to_parquet(path)
            keep(path, settings)
        return pd.read_parquet(path)["label"]

    def traded(self, row: str, seed: int, scores: pd.Series) -> pd.DataFrame:
        """Daily report of a backtest of these scores, made unless it is there."""
        path = self.place(row, seed) / f"{self.judge}_backtest.parquet"
        values = hashlib.sha256(scores.to_numpy().tobytes()).hexdigest()
        settings = {"scores": values, "rows": len(scores), "cost": COST_BP}
        if recall(path, settings) is None:
            forget(path)
            self.open(self.judge)
            trading = BacktestConfig(
                benchmark=MEAN, topk=min(50, scores.groupby("datetime").size().min() // 2),
                limit_threshold=0.095, open_cost=COST_BP / 1e4, close_cost=COST_BP / 1e4,
                min_cost=0.0,
            )  # fmt: skip
            config = qlib_config(trading, scores.to_frame())
            config["strategy"]["kwargs"]["signal"] = scores.to_frame()
            with quiet_backtest():
                portfolio, _ = backtest(
                    executor=config["executor"], strategy=config["strategy"], **config["backtest"]
                )
            report: pd.DataFrame = portfolio["1day"][0]
            report.to_parquet(path)
            keep(path, settings)
        return pd.read_parquet(path)

    def place(self, row: str, seed: int) -> Path:
        words = "".join(letter if letter.isalnum() else "_" for letter in row)
        return (
            self.work
            / "rows"
            / f"{words}-{hashlib.sha256(row.encode()).hexdigest()[:6]}"
            / str(seed)
        )


def mean_percentile(
    parts: Sequence[pd.Series], weights: Sequence[float] | None = None
) -> pd.Series:
    """Of the rows that all have."""
    table = pd.concat(parts, axis=1, join="inner").dropna()
    ranks = table.groupby(level="datetime").rank(pct=True)
    found = pd.Series(np.average(ranks, axis=1, weights=weights), ranks.index, name="score")
    return found.sort_index()


def neutralised_by_day(values: pd.Series, styles: pd.DataFrame) -> pd.Series:
    """What styles leave of each day's standardised ranks, of the rows that both have."""
    order = list(styles.index.names)
    values = values.reorder_levels(order) if values.index.names != order else values
    both = values.index.intersection(styles.index).sort_values()
    ranks, known = values.loc[both], styles.loc[both].to_numpy(np.float64)
    left = np.empty(len(both))
    for day in ranks.groupby(level="datetime").indices.values():
        columns = standardised_over_day(ranks.to_numpy()[day, None]).astype(np.float64)
        found = neutralised(torch.from_numpy(columns), torch.from_numpy(known[day]))
        left[day] = found[:, 0].numpy()
    return pd.Series(left, both, name="score")


def add_market(parser: argparse.ArgumentParser) -> None:
    """Arguments of a benchmark that reads a market's days to learn from and to choose by."""
    parser.add_argument("--data", type=Path, required=True, help="folder of the markets' files")
    parser.add_argument("--market", choices=MARKETS, default="cn2023")
    parser.add_argument("--work", type=Path, help="what is kept (demo/alpha/MARKET)")


def bench_to_choose(args: argparse.Namespace) -> Bench:
    """The usual rows on the market of those arguments, open up to the end of validation."""
    market = MARKETS[args.market]
    work = (args.work or Path("demo/alpha") / args.market).resolve()
    bars = (args.data / market.file).resolve()
    bench = Bench(market=market, bars=bars, work=work, rows=rows_of(None), judge="valid")
    bench.open("valid")
    return bench


# Judging.


def judged(
    bench: Bench,
    rows: Sequence[str],
    seeds: Sequence[int],
    money: bool,
    against: Sequence[str] = AGAINST,
) -> dict[str, Any]:
    """Everything the tables say; each row is held against those of `against`."""
    scores: dict[tuple[str, int], pd.Series] = {}
    seconds: dict[str, float] = {}
    for row in rows:
        for seed in seeds:
            scores[row, seed], took = bench.scored(row, seed)
            seconds[row] = seconds.get(row, 0.0) + took / len(seeds)
    alike = pd.concat([*scores.values(), bench.labels()], axis=1, join="inner").dropna()
    alike.columns = pd.Index([*range(len(scores)), "label"])
    alike = alike.sort_index()
    label = to_wide(alike["label"])
    common = dict(zip(scores, (alike[place] for place in range(len(scores))), strict=True))
    daily: dict[str, pd.Series] = {}
    table = []
    rng = np.random.default_rng(0)
    for row in rows:
        own = [daily_ic(to_wide(common[row, seed]), label)["rank_ic"] for seed in seeds]
        daily[row] = pd.concat(own, axis=1).mean(axis=1)
        together = mean_percentile([common[row, seed] for seed in seeds])
        found = {"row": row, "seconds": seconds[row], "days": len(daily[row]), "pairs": len(alike)}
        found |= of_series(daily[row], rng)
        found |= {
            "seed_low": min(one.mean() for one in own),
            "seed_high": max(one.mean() for one in own),
            "together": float(daily_ic(to_wide(together), label)["rank_ic"].mean()),
            "turnover": float(
                np.mean([top_turnover(to_wide(common[row, seed])).mean() for seed in seeds])
            ),
        }
        if money:
            found |= money_of([bench.traded(row, seed, scores[row, seed]) for seed in seeds])
        table.append(found)
        log(f"{row}: Rank IC {found['rank_ic']:.4f}")
    pairs = [(one, other) for one in rows for other in against if other in rows and one != other]
    differences = [
        {"of": one, "less": other, **difference(daily[one], daily[other])} for one, other in pairs
    ]
    return {"rows": table, "differences": differences}


def of_series(daily: pd.Series, rng: np.random.Generator) -> dict[str, float]:
    """Mean of a daily Rank IC, and its intervals by three methods."""
    try:
        found = summarise(daily)
    except UndefinedMetricError:
        return {"rank_ic": float(daily.mean())}
    series = daily.dropna().to_numpy()[None]
    result = {"rank_ic": found["mean"], "icir": found["ratio"], "t": found["t"]}
    result |= {"low": found["low"], "high": found["high"]}
    for name, method in (("nw", newey_west), ("bootstrap", stationary(rng, DRAWS))):
        low, high = method(series, 1)
        result |= {f"{name}_low": float(low[0]), f"{name}_high": float(high[0])}
    return result


def difference(one: pd.Series, other: pd.Series) -> dict[str, float]:
    try:
        found = summarise_difference(one, other)
    except UndefinedMetricError:
        return {"mean": float((one - other).mean())}
    return {name: found[name] for name in ("mean", "low", "high", "t", "p")}


def money_of(reports: Sequence[pd.DataFrame]) -> dict[str, float]:
    """Means over seeds after cost; the test is of the seeds' mean daily excess."""
    tables = [cost_table(report, [0.0, COST_BP]) for report in reports]
    excess = pd.concat([net_returns(report) - report["bench"] for report in reports], axis=1)
    test = excess_test(excess.mean(axis=1))
    return {
        "excess_gross": float(np.mean([each.loc[0.0, "excess_return"] for each in tables])),
        "excess_net": float(np.mean([each.loc[COST_BP, "excess_return"] for each in tables])),
        "ir_net": float(np.mean([each.loc[COST_BP, "information_ratio"] for each in tables])),
        "excess_t": float("nan") if test is None else test.t,
        "traded": float(np.mean([report["turnover"].mean() for report in reports])),
    }


# What was looked at.


def count_tried(work: Path, bench: Bench, rows: Sequence[str]) -> int:
    """Settings, whatever their seed, that validation has ever judged in this folder, these too."""
    path = work / "tried.json"
    tried: dict[str, str] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    for row in rows:
        tried.setdefault(digest_of(bench.decided_by(row)), row)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(tried, indent=1), encoding="utf-8")
    return len(tried)


def note_reading(work: Path, rows: Sequence[str], settings: str) -> list[dict[str, Any]]:
    """Say that the test is read now, and by which rows; the readings before, other than this."""
    path = work / "test_read.json"
    read = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    before = [each for each in read if each["settings"] != settings]
    if len(before) == len(read):
        now = {"at": time.strftime("%Y-%m-%d %H:%M"), "rows": list(rows), "settings": settings}
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps([*read, now], indent=1), encoding="utf-8")
    return before


def show(result: Mapping[str, Any]) -> str:
    """Both tables as text."""

    def number(value: float | None, how: str = "{:.4f}") -> str:
        return "-" if value is None or not np.isfinite(value) else how.format(value)

    def between(row: Mapping[str, float], name: str) -> str:
        return f"{number(row.get(f'{name}low'))} to {number(row.get(f'{name}high'))}"

    header = ["row", "Rank IC", "95 %", "Newey-West", "bootstrap", "t", "ICIR", "seeds", "together",
              "turnover", "excess net", "IR net", "t", "CPU s"]  # fmt: skip
    lines = [
        [
            row["row"], number(row["rank_ic"]), between(row, ""), between(row, "nw_"),
            between(row, "bootstrap_"), number(row.get("t"), "{:.1f}"),
            number(row.get("icir"), "{:.2f}"), between(row, "seed_"), number(row["together"]),
            number(row["turnover"], "{:.2f}"), number(row.get("excess_net"), "{:+.1%}"),
            number(row.get("ir_net"), "{:+.2f}"), number(row.get("excess_t"), "{:+.1f}"),
            number(row["seconds"], "{:.0f}"),
        ]
        for row in result["rows"]
    ]  # fmt: skip
    apart = [
        [pair["of"], pair["less"], number(pair["mean"], "{:+.4f}"),
         f"{number(pair.get('low'), '{:+.4f}')} to {number(pair.get('high'), '{:+.4f}')}",
         number(pair.get("t"), "{:+.1f}"), number(pair.get("p"), "{:.3f}")]
        for pair in result["differences"]
    ]  # fmt: skip
    parts = [format_rows([header, *lines])]
    if apart:
        heading = ["Rank IC of", "less that of", "mean", "95 %", "t", "p"]
        parts.append(format_rows([heading, *apart]))
    return "\n\n".join(parts)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of the markets' files")
    parser.add_argument("--market", choices=MARKETS, required=True)
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--choose", action="store_true", help="judge on validation")
    which.add_argument("--test", action="store_true", help="judge on the test, once")
    parser.add_argument("--work", type=Path, help="what is kept (demo/alpha/MARKET)")
    parser.add_argument("--settings", type=Path, help="YAML of further rows")
    parser.add_argument("--rows", nargs="+", metavar="ROW", help="some of them; all by default")
    parser.add_argument(
        "--against", nargs="+", metavar="ROW", default=list(AGAINST),
        help="rows that each other row is held against (%(default)s)",
    )  # fmt: skip
    parser.add_argument("--seeds", type=int, default=3, help="of each row (%(default)s)")
    parser.add_argument("--checkpoint", default="nano", help="whose contexts (%(default)s)")
    parser.add_argument("--lookback", type=int, default=90, help="bars of a window (%(default)s)")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--no-backtest", action="store_true", help="order alone, no money")
    args = parser.parse_args(argv)
    market = MARKETS[args.market]
    try:
        rows = rows_of(args.settings)
    except ConfigError as problem:
        raise SystemExit(str(problem)) from problem
    if args.seeds < 1:
        parser.error("--seeds must be 1 or more")
    if strange := [name for name in (*(args.rows or ()), *args.against) if name not in rows]:
        parser.error(f"no row is called {strange[0]!r}: {', '.join(rows)}")
    chosen = [name for name in rows if name in (args.rows or rows)]
    judge = "valid" if args.choose else "test"
    work = (args.work or Path("demo/alpha") / args.market).resolve()
    bench = Bench(
        market=market,
        bars=(args.data / market.file).resolve(),
        work=work,
        rows=rows,
        judge=judge,
        device=args.device,
        lookback=args.lookback,
        checkpoint=args.checkpoint,
    )
    if not bench.bars.is_file():
        parser.error(f"there is no file {bench.bars}")
    seeds = range(args.seeds)
    notes = []
    if args.choose:
        tried = count_tried(work, bench, chosen)
        notes.append(f"Settings tried on validation in {work.name}, blends too: {tried}.")
    else:
        settings = digest_of([bench.decided_by(row) for row in chosen])
        before = note_reading(work, chosen, settings)
        notes.append(f"The test was read {len(before)} times before with other rows or settings.")
        notes += [f"- {each['at']}: {', '.join(each['rows'])}" for each in before]
    result = judged(bench, chosen, seeds, not args.no_backtest, args.against)
    first, last = market.segments[judge]
    pairs = result["rows"][0]
    notes.insert(0, f"{args.market}, {judge} {first} to {last}: {pairs['days']} days, "
                    f"{pairs['pairs']:,} rows, {args.seeds} seeds.")  # fmt: skip
    text = "\n".join(notes) + "\n\n" + show(result)
    print(text)
    pd.DataFrame(result["rows"]).to_csv(work / f"{judge}_rows.csv", index=False)
    pd.DataFrame(result["differences"]).to_csv(work / f"{judge}_differences.csv", index=False)
    (work / f"{judge}.txt").write_text(text + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
