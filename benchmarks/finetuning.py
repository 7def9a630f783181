"""What finetuning is worth as a signal on real A-shares: rows judged on the same days and names.

Train 2000-01 to 2001-12, validate 2002-01 to 2002-06, test 2002-07 to 2002-12; the label is the
return from the next close to the close after it. Rows:
- zero-shot: nano as it ships, scores from sampled paths.
- predictor: tokenizer and predictor finetuned, then sampled paths.
- alpha frozen, alpha lora, alpha whole: a head on the context, the backbone as it is, with low-rank
  additions, or trained along.
- scale alone: the same head without the context: all that such a head has without Kronos.
- lightgbm: on Alpha158, as workflows/workflow_lightgbm.yaml sets it but for the purge (below).
- lightgbm + embeddings: the same with the frozen nano's context vectors as further columns, each as
  its rank over the day: stamps and the market's own move are in a context too, and by these trees
  would know a day again, while the label, normalised over each day, holds nothing of them.
- blend, blend 30: the mean of two percentiles within the day, --best's and lightgbm's, in equal
  parts, and with 30 % of --best's.

Columns: mean daily correlation with the label (IC) and of ranks (Rank IC), each over its deviation
(ICIR, Rank ICIR), t of the mean Rank IC (by `daily_mean`), days, (day, instrument) pairs, and
seconds: training from opening the data set to a model, predicting likewise to its scores. Beneath,
differences of Rank IC on the same days with 95 % intervals. All rows are judged on the pairs that
every row shown has scored and whose label is known; a score that is the same for all has a
correlation of 0.

What cannot be seen:
- Models are trained in a Qlib folder whose bars end with the validation segment, whatever is
  judged. --judge valid reads no bar of the test segment at all.
- Labels lie inside their segment: of each, for LightGBM too, the last two days have none.
- Epochs and trees are chosen on the validation segment, so its figures flatter every trained row;
  --best is to be chosen there too. --judge test is for once, at the end.
- nano was itself trained on the training segment's bars and chosen by the validation segment's.

Folders, models, scores, times and settings stay in --work: a run goes on where it was stopped, and
what was made with other settings or bars is made anew. Changed code is not noticed: take a new
folder, or remove that row's.

Example:
    python benchmarks/finetuning.py cn_daily_2000_2002.parquet --work demo/finetuning
    python benchmarks/finetuning.py bars.parquet --rows "alpha frozen" lightgbm --settings my.json
"""

from __future__ import annotations

import argparse
import hashlib
import json
import pickle
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pandas as pd
import qlib
import yaml
from jinja2 import Template
from qlib.contrib.model import gbdt
from qlib.data import D
from qlib.data.cache import H

from kronos_qlib.data.windows.scale_features import standardised_over_day
from kronos_qlib.errors import UndefinedMetricError
from kronos_qlib.evaluation.ranking.uncertainty import daily_mean, paired_difference
from kronos_qlib.pipeline.contexts import contexts_of
from kronos_qlib.plugin.dataset import NEXT_DAY_RETURN, KronosDataset, KronosHandler
from kronos_qlib.plugin.model import KronosModel
from kronos_qlib.plugin.provider.expression_label import ExpressionLabel
from kronos_qlib.training.alpha import LEAST_WINDOWS, correlations

ROOT = Path(__file__).resolve().parents[1]
MARKET = {
    "KRONOS_REGION": "cn",
    "KRONOS_MARKET": "all",
    "KRONOS_BENCHMARK": "MEAN",
    "KRONOS_START": "2000-01-04",
    "KRONOS_TRAIN_START": "2000-01-04",
    "KRONOS_TRAIN_END": "2001-12-31",
    "KRONOS_VALID_START": "2002-01-01",
    "KRONOS_VALID_END": "2002-06-30",
    "KRONOS_TEST_START": "2002-07-01",
    "KRONOS_TEST_END": "2002-12-31",
    "KRONOS_TOPK": "50",
    "KRONOS_N_DROP": "5",
    "KRONOS_LIMIT_THRESHOLD": "0.095",
    "KRONOS_OPEN_COST": "0.0005",
    "KRONOS_CLOSE_COST": "0.0015",
}
"""The workflows' settings."""

FEW = {"epochs": 2, "windows_per_day": 48, "validation_days": 16}

SETTINGS: dict[str, Any] = {
    "region": MARKET["KRONOS_REGION"],
    "segments": {
        name: [MARKET[f"KRONOS_{name.upper()}_{end}"] for end in ("START", "END")]
        for name in ("train", "valid", "test")
    },
    # A day on which fewer names trade than this share of the usual day's (median) is left out. The
    # file has Saturdays of one to four bars in 2002, a fault: to Qlib they are trading days, and
    # labels of the two days before each, and Alpha158's latest changes after it, are not known.
    # 0 leaves them in.
    "least_share": 0.05,
    "checkpoint": "nano",
    "lookback": 90,
    "horizon": 10,
    "device": "auto",
    "seed": 0,
    # Of the rows that draw paths.
    "sampling": {"paths": 5, "temperature": 1.0, "top_p": 1.0, "stratified": True},
    # As `training` of KronosModel; what is not said is its default.
    "training": {
        "zero-shot": None,
        "predictor": {
            "tokenizer": {"epochs": 1, "windows_per_epoch": 4000, "learning_rate": 1e-4},
            "predictor": {
                "epochs": 3,
                "windows_per_epoch": 4000,
                "learning_rate": 3e-4,
                "shift_dates": True,
            },
        },
        "alpha frozen": {"alpha": {"backbone": "frozen"}},
        # Each epoch reads the windows anew, forwards and back: few, and few epochs.
        "alpha lora": {
            "alpha": {"backbone": "lora", "backbone_learning_rate": 1e-3, "learning_rate": 2e-3}
            | FEW
        },
        "alpha whole": {
            "alpha": {"backbone": "whole", "backbone_learning_rate": 1e-4, "learning_rate": 2e-3}
            | FEW
        },
        "scale alone": {"alpha": {"context_width": 0}},
    },
    # Beyond what the workflow says.
    "lightgbm": {},
}
SAMPLED = ("zero-shot", "predictor")
TREES = ("lightgbm", "lightgbm + embeddings")
ALPHAS = ("alpha frozen", "alpha lora", "alpha whole", "scale alone")
BLENDS = {"blend": 0.5, "blend 30": 0.3}
"""Rows, and the share of --best in them."""
ROWS = (*SAMPLED, *ALPHAS, *TREES, *BLENDS)

Note = dict[str, Any]
"""What is kept beside a file: the settings it was made with, seconds, and what else there is."""


# What is kept in the work folder.


def folder_command(bars: Path, folder: Path) -> list[str]:
    """What makes the Qlib folder anew, for a Python to run: a script and its arguments."""
    script = str(ROOT / "data_prep" / "csv_to_qlib.py")
    benchmark = MARKET["KRONOS_BENCHMARK"]
    return [script, str(bars), str(folder), "--benchmark", benchmark, "--overwrite"]


def digest_of(settings: Any) -> str:
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def recall(path: Path, settings: Any) -> Note | None:
    """The note of what is there already, if it was made with these settings."""
    place = path.with_suffix(".json")
    if not (path.exists() and place.exists()):
        return None
    note: Note = json.loads(place.read_text(encoding="utf-8"))
    return note if note["digest"] == digest_of(settings) else None


def forget(path: Path) -> None:
    """Before it is made anew: half of it must not pass for the whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".json").unlink(missing_ok=True)


def keep(path: Path, settings: Any, **more: Any) -> Note:
    """Say that `path` is whole now, and what it was made with."""
    note = {"digest": digest_of(settings), "settings": settings, **more}
    passing = path.with_suffix(".passing")
    passing.write_text(json.dumps(note, indent=1), encoding="utf-8")
    passing.replace(path.with_suffix(".json"))
    return note


# The models.


class ContextDataset(KronosDataset):
    """A handler's columns, and beside them each window's context vector, ranked over the day.

    A row without a window, of a young or suspended share, has none: NaN, which the trees take.

    Args:
        model: whose network reads the windows, its weights as they are.
        others: of `KronosDataset`.
    """

    def __init__(self, model: KronosModel, **others: Any) -> None:
        super().__init__(**others)
        self._model = model

    def prepare(self, segments: Any, col_set: Any = "__all", **others: Any) -> pd.DataFrame:
        frame = super().prepare(segments, col_set=col_set, **others)
        contexts = self._contexts(segments).reindex(frame.index)
        if isinstance(frame.columns, pd.MultiIndex):
            contexts.columns = pd.MultiIndex.from_product([["feature"], contexts.columns])
        return pd.concat([frame, contexts], axis=1)

    def _contexts(self, segment: str) -> pd.DataFrame:
        windows = self.source.windows(segment)
        ranks = contexts_of(self._model.predictor, windows)
        for day in windows.moments():
            ranks[day] = standardised_over_day(ranks[day])
        names = [f"CONTEXT{number}" for number in range(ranks.shape[1])]
        return pd.DataFrame(ranks, index=windows.index, columns=names)


@dataclass(frozen=True)
class Bench:
    """Bars, settings and the folder in which everything is kept."""

    bars: Path
    work: Path
    settings: Mapping[str, Any]
    judge: str
    """The segment whose scores are made and read."""
    best: str
    """The row that is blended with LightGBM."""
    kernels: int

    @cached_property
    def source(self) -> Note:
        """What decides the bars: the file's digest, and which of its days count."""
        digest = hashlib.sha256(self.bars.read_bytes()).hexdigest()
        return {"bars": digest, "least_share": self.settings["least_share"]}

    def open(self, segment: str) -> None:
        """Qlib on the bars up to the end of this segment, and none after it."""
        folder, last = self.work / segment / "qlib", self.settings["segments"][segment][1]
        made_with = {**self.source, "last": last}
        if recall(folder, made_with) is None:
            forget(folder)
            cut = folder.with_name("bars.parquet")
            up_to = [("date", "<", pd.Timestamp(last) + pd.Timedelta(days=1))]
            bars = pd.read_parquet(self.bars, filters=up_to)
            traded = bars.groupby("date").size()
            stray = traded.index[traded < self.settings["least_share"] * traded.median()]
            log(f"{segment}: {len(bars)} bars to {last}; days left out: {len(stray)}")
            bars[~bars["date"].isin(stray)].to_parquet(cut)
            command = [sys.executable, *folder_command(cut, folder)]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            print(done.stdout, end="", file=sys.stderr)  # no part of the table
            cut.unlink()
            keep(folder, made_with)
        H.clear()  # Qlib remembers markets and features by name, whatever the folder
        qlib.init(
            provider_uri=str(folder),
            region=self.settings["region"],
            kernels=self.kernels,
            clear_mem_cache=True,
            skip_if_reg=False,
        )

    def segment(self, name: str, *, purged: bool = False) -> tuple[str, str]:
        """First and last day of a segment, without those whose label lies outside if `purged`."""
        first, last = self.settings["segments"][name]
        if purged:
            days = D.calendar(first, last)
            last = f"{days[-1 - ExpressionLabel(NEXT_DAY_RETURN).ahead]:%Y-%m-%d}"
        return first, last

    def row_settings(self, row: str) -> Note:
        """What decides a trained model."""
        known = self.settings
        segments = {name: known["segments"][name] for name in ("train", "valid")}
        settings = {"row": row, **self.source, "segments": segments}
        network = ("checkpoint", "lookback", "device")
        if row not in TREES:
            names = (*network, "horizon", "seed", *(["sampling"] if row in SAMPLED else []))
            settings |= {name: known[name] for name in names}
            return settings | {"training": known["training"][row]}
        if row != "lightgbm":
            settings |= {name: known[name] for name in network}
        return settings | {"model": self.tree_settings, "handler": self.tables["handler"]}

    @cached_property
    def tables(self) -> dict[str, Any]:
        """What the workflow says of LightGBM: "model", "handler"."""
        text = (ROOT / "workflows" / "workflow_lightgbm.yaml").read_text(encoding="utf-8")
        task = yaml.safe_load(Template(text).render(MARKET))["task"]
        handler = task["dataset"]["kwargs"]["handler"]
        train, valid = (self.settings["segments"][name] for name in ("train", "valid"))
        handler["kwargs"] |= {
            "start_time": train[0], "end_time": valid[1],
            "fit_start_time": train[0], "fit_end_time": train[1],
        }  # fmt: skip
        return {"model": task["model"]["kwargs"], "handler": handler}

    @property
    def tree_settings(self) -> dict[str, Any]:
        return {**self.tables["model"], **self.settings["lightgbm"]}

    def bar_dataset(self, *names: str) -> KronosDataset:
        segments = {name: self.segment(name) for name in names}
        handler = KronosHandler("all", segments[names[0]][0], segments[names[-1]][1])
        sizes = {name: self.settings[name] for name in ("lookback", "horizon")}
        return KronosDataset(handler, segments, **sizes)

    def table_dataset(self, row: str, *names: str) -> KronosDataset:
        """Alpha158's frames; windows of the same days, for contexts."""
        segments = {name: self.segment(name, purged=True) for name in names}
        handler = self.tables["handler"]
        span = {"start_time": segments[names[0]][0], "end_time": segments[names[-1]][1]}
        settings = {
            "handler": {**handler, "kwargs": {**handler["kwargs"], **span}},
            "segments": segments,
            "lookback": self.settings["lookback"],
        }
        if row == "lightgbm":
            return KronosDataset(**settings)
        return ContextDataset(self.kronos(None), **settings)

    def kronos(self, row: str | None) -> KronosModel:
        """Untrained; of no row: to read contexts with."""
        known = self.settings
        return KronosModel(
            known["checkpoint"],
            sampling=known["sampling"],
            training=known["training"][row] if row else None,
            device=known["device"],
            seed=known["seed"],
            show_progress=False,
        )

    def fitted(self, row: str) -> tuple[Any, Note]:
        """A row's model, trained unless it is there."""
        path, settings = self.place(row) / "model.pkl", self.row_settings(row)
        if (note := recall(path, settings)) is not None:
            return pickle.loads(path.read_bytes()), note
        forget(path)
        log(f"{row}: training")
        self.open("valid")
        began = time.perf_counter()
        if row in TREES:
            model = gbdt.LGBModel(**self.tree_settings)
            with patch.object(gbdt, "R"):  # it logs to MLflow, which nothing else here needs
                model.fit(self.table_dataset(row, "train", "valid"), verbose_eval=0)
            history: Any = {"trees": model.model.num_trees(), "used": model.model.best_iteration}
        else:
            model = self.kronos(row)
            model.fit(self.bar_dataset("train", "valid"))
            history = model.history
        seconds = time.perf_counter() - began
        path.write_bytes(pickle.dumps(model))
        return model, keep(path, settings, seconds=seconds, history=history, **versions())

    def scored(self, row: str) -> tuple[pd.Series, Note]:
        """A row's scores of the judged segment, made unless they are there."""
        if row in BLENDS:
            return self.blended(row)
        path, settings = self.place(row) / f"{self.judge}.parquet", self.score_settings(row)
        if (note := recall(path, settings)) is None:
            model, trained = self.fitted(row)
            forget(path)
            log(f"{row}: scoring {self.judge}")
            self.open(self.judge)
            days = self.segment(self.judge, purged=True)
            began = time.perf_counter()
            if row in TREES:
                scores = model.predict(self.table_dataset(row, self.judge), self.judge)
            else:
                scores = model.predict(self.bar_dataset(self.judge), days)
            seconds = {"train": trained["seconds"], "predict": time.perf_counter() - began}
            scores.rename("score").to_frame().to_parquet(path)
            note = keep(path, settings, seconds=seconds, **versions())
        return pd.read_parquet(path)["score"], note

    def blended(self, row: str) -> tuple[pd.Series, Note]:
        """The weighted mean of two percentiles within the day, over what both have scored."""
        parts, notes = zip(*(self.scored(row) for row in (self.best, "lightgbm")), strict=True)
        both = pd.concat(parts, axis=1, join="inner", keys=["best", "lightgbm"])
        ranks = both.groupby(level="datetime").rank(pct=True)
        share = BLENDS[row]
        scores = (share * ranks["best"] + (1 - share) * ranks["lightgbm"]).rename("score")
        path = self.place(row) / f"{self.judge}.parquet"
        forget(path)
        scores.to_frame().to_parquet(path)
        seconds = {
            what: sum(note["seconds"][what] for note in notes) for what in ("train", "predict")
        }
        parts_of = [note["digest"] for note in notes]
        settings = {"blend": [self.best, "lightgbm"], "share": share, "of": parts_of}
        return scores, keep(path, settings, seconds=seconds)

    def score_settings(self, row: str) -> Note:
        judged = self.settings["segments"][self.judge]
        return {"model": self.row_settings(row), "judged": [self.judge, *judged]}

    def labels(self) -> pd.Series:
        """What is to be foretold of each window of the judged segment, where it is known."""
        path = self.work / self.judge / "labels.parquet"
        names = ("segments", "lookback")
        settings = {**self.source, **{name: self.settings[name] for name in names}}
        if recall(path, settings) is None:
            forget(path)
            self.open(self.judge)
            source = self.bar_dataset(self.judge).source
            windows = source.labelled_windows(self.judge)
            known = pd.Series(source.label.of(windows), index=windows.index, name="label").dropna()
            known.to_frame().to_parquet(path)
            keep(path, settings)
        return pd.read_parquet(path)["label"]

    def place(self, row: str) -> Path:
        return self.work / "rows" / row.replace(" + ", "_").replace(" ", "_")


# Judging.


def daily_correlations(scores: pd.DataFrame, labels: pd.Series) -> dict[str, pd.DataFrame]:
    """Of each column of scores, "ic" and "rank_ic" by day; and "pairs" a day.

    Args:
        scores, labels: on the same (datetime, instrument).
    """
    rows: dict[str, dict[pd.Timestamp, tuple[float, float]]] = {name: {} for name in scores}
    for moment, day in scores.groupby(level="datetime"):
        if len(day) < LEAST_WINDOWS:
            continue
        returns = labels.loc[day.index].to_numpy()
        for name in scores:
            rows[name][moment] = correlations(day[name].to_numpy(), returns)
    return {
        name: pd.DataFrame.from_dict(found, orient="index", columns=["ic", "rank_ic"])
        for name, found in rows.items()
    }


def judged(bench: Bench, rows: list[str]) -> dict[str, Any]:
    """Everything the table says."""
    scores, notes = {}, {}
    for row in rows:
        scores[row], notes[row] = bench.scored(row)
    labels = bench.labels()
    alike = pd.concat([*scores.values(), labels], axis=1, join="inner", keys=[*scores, "label"])
    alike = alike.dropna().sort_index()
    daily = daily_correlations(alike[rows], alike["label"])
    table = []
    for row in rows:
        ic, rank_ic = daily[row]["ic"], daily[row]["rank_ic"]
        table.append({
            "row": row, "ic": ic.mean(), "rank_ic": rank_ic.mean(),
            "icir": ic.mean() / ic.std(), "rank_icir": rank_ic.mean() / rank_ic.std(),
            "t": known(lambda found: daily_mean(found).t, rank_ic),
            "days": len(rank_ic), "pairs": len(alike), **notes[row]["seconds"],
        })  # fmt: skip
    pairs = [
        *((row, "lightgbm") for row in BLENDS), (bench.best, "lightgbm"),
        ("lightgbm + embeddings", "lightgbm"), ("alpha frozen", "scale alone"),
    ]  # fmt: skip
    differences = [
        {"of": one, "less": other, "found": known(paired, *(daily[row]["rank_ic"] for row in pair))}
        for pair in pairs
        for one, other in [pair]
        if one in rows and other in rows
    ]
    return {
        "judge": bench.judge, "best": bench.best, "rows": table, "differences": differences,
        "settings": bench.settings, **bench.source, **versions(),
    }  # fmt: skip


def paired(one: pd.Series, other: pd.Series) -> dict[str, Any]:
    found = paired_difference(one, other)
    more = {"t": found.t, "p": found.p, "interval": found.interval(), "covers": found.covers}
    return {**asdict(found), **more}


def known(measure: Any, *series: pd.Series) -> Any:
    """What it says, or why there is nothing to say."""
    try:
        return measure(*series)
    except UndefinedMetricError as problem:
        return str(problem)


def show(result: Mapping[str, Any]) -> None:
    print(
        "| row | IC | ICIR | Rank IC | Rank ICIR | t | days | rows | train s | predict s |\n"
        + "|---" * 10
        + "|"
    )
    for row in result["rows"]:
        t = f"{row['t']:.2f}" if isinstance(row["t"], float) else "-"
        print(
            f"| {row['row']} | {row['ic']:.4f} | {row['icir']:.3f} | {row['rank_ic']:.4f} "
            f"| {row['rank_icir']:.3f} | {t} | {row['days']} | {row['pairs']:,} "
            f"| {row['train']:,.0f} | {row['predict']:,.0f} |"
        )
    print(f"\nJudged: {result['judge']}. Differences of the mean daily Rank IC, 95 % intervals:")
    for pair in result["differences"]:
        found = pair["found"]
        if isinstance(found, str):
            print(f"- {pair['of']} - {pair['less']}: {found}")
            continue
        low, high = found["interval"]
        print(
            f"- {pair['of']} - {pair['less']}: {found['mean']:+.4f}, {low:+.4f} to {high:+.4f} "
            f"(t {found['t']:.2f}, p {found['p']:.3f})"
        )


def versions() -> dict[str, str]:
    return {name: version(name) for name in ("kronos-qlib", "torch", "lightgbm", "pyqlib")}


def log(what: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {what}", file=sys.stderr, flush=True)


# The whole of it.


def merged(usual: Mapping[str, Any], own: Mapping[str, Any], where: str = "") -> dict[str, Any]:
    """`usual` with what `own` says otherwise; a mapping is merged, anything else replaced.

    A name that is new is refused; in the settings of a model, it is for the model to know.
    """
    result = dict(usual)
    for name, value in own.items():
        if name not in usual and where in ("", "segments", "training"):
            raise SystemExit(f"--settings: {where or 'it'} has no {name!r}: {', '.join(usual)}")
        both = isinstance(value, Mapping) and isinstance(usual.get(name), Mapping)
        path = f"{where}.{name}" if where else name
        result[name] = merged(usual[name], value, path) if both else value
    return result


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bars", type=Path, help="cn_daily_2000_2002.parquet")
    parser.add_argument("--work", type=Path, default=Path("demo/finetuning"), help="what is kept")
    parser.add_argument("--judge", choices=("valid", "test"), default="valid")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=[*ROWS], metavar="ROW",
                        help=", ".join(ROWS))  # fmt: skip
    parser.add_argument("--best", choices=ALPHAS, default="alpha frozen",
                        help="the alpha to blend, chosen on valid (%(default)s)")  # fmt: skip
    parser.add_argument("--settings", type=Path, help="JSON: what differs from SETTINGS")
    parser.add_argument("--kernels", type=int, default=1, help="processes in which Qlib reads")
    parser.add_argument("--json", type=Path, help="write the table here too")
    args = parser.parse_args(argv)
    own = json.loads(args.settings.read_text(encoding="utf-8")) if args.settings else {}
    bench = Bench(
        bars=args.bars.resolve(),
        work=args.work.resolve(),
        settings=merged(SETTINGS, own),
        judge=args.judge,
        best=args.best,
        kernels=args.kernels,
    )
    wanted = {*args.rows, *((args.best, "lightgbm") if {*args.rows} & {*BLENDS} else ())}
    result = judged(bench, [row for row in ROWS if row in wanted])
    show(result)
    if args.json:
        args.json.write_text(json.dumps(result, indent=1), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
