"""What retraining is worth on real A-shares: trained again every 20 days of 2023, or never.

The market is `cn2023` of alpha.py: names of CSI300 and CSI500 on each day, learned from 2020-01 to
2022-06 and chosen on 2022-07 to 2022-12 the first time; 2023 is scored. Rows, each by
`RollingModel`:
- head: an alpha head on nano's context, whose backbone is frozen; lightgbm: on Alpha158, as
  workflows/workflow_lightgbm.yaml sets it.
- never: trained once, before 2023. anew: trained again every --every trading days, from new weights
  or trees. warm: from the weights or trees of the training before.

Training and validation move on together (--train), and what a label of the scored days reaches into
is left out. Columns and tests are those of alpha.py; differences are of the same days and rows. CPU
s: of all cores, the trainings of one seed and the contexts that were not there yet; the first
training is the same in all rows of a model, and the first of these has it.

What cannot be seen: settings are those that validation of 2022 chose for training once, and 20 days
are nobody's choice among others; 2023 was read by alpha.py before. The folder of bars ends with the
last judged day, and tests/integration/test_rolling.py shows that no training reads beyond its own.

Folders, contexts (read once for all rows), trainings and scores stay in --work: a run goes on where
it was stopped. alpha.py's --work may be named, for its contexts and bars.

Example:
    python benchmarks/rolling.py --data ../shared/data
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
from alpha import MARKETS, Bench, judged, log, note_reading, show
from finetuning import digest_of, forget, keep, recall
from qlib.data.dataset import DatasetH
from qlib.data.dataset.handler import DataHandlerLP
from qlib.data.dataset.loader import StaticDataLoader

from kronos_qlib.plugin.dataset import NEXT_DAY_RETURN
from kronos_qlib.plugin.provider.expression_label import ExpressionLabel
from kronos_qlib.plugin.qlib_internals import metrics_dropped
from kronos_qlib.plugin.rolling import RollingModel

MARKET = "cn2023"
NEVER = 10**6
"""Trading days that no test has."""
MODELS = ("head", "lightgbm")
WAYS: Mapping[str, Mapping[str, Any]] = {
    "never": {"every": NEVER},
    "anew": {"start": "anew"},
    "warm": {"start": "warm"},
}
ROWS = {f"{model}, {way}": (model, way) for model in MODELS for way in WAYS}
USUAL = ("head, never", "head, anew", "head, warm", "lightgbm, never", "lightgbm, anew")
AGAINST = ("head, never", "lightgbm, never", "lightgbm, anew")


@dataclass(frozen=True)
class RollingBench(Bench):
    """Rows that are trained again over the test."""

    every: int = 20
    train: str = "expanding"
    threads: int = 1

    def settings(self, row: str, seed: int) -> dict[str, Any]:
        """What decides a row's scores."""
        kind, way = ROWS[row]
        known = {"seed": seed, **self.source, "segments": dict(self.market.segments)}
        how = {"every": self.every, "train": self.train, **WAYS[way]}
        return {**known, "how": how, "model": self.config(kind, seed)}

    def config(self, kind: str, seed: int) -> dict[str, Any]:
        """A model's section of a task."""
        if kind == "lightgbm":
            usual = self.workflow["model"]
            own = {"seed": seed, "num_threads": self.threads}
            return {**usual, "kwargs": {**usual["kwargs"], **own}}
        kwargs = {
            "checkpoint": self.checkpoint,
            "training": {"alpha": {"seed": seed}},
            "device": self.device,
            "show_progress": False,
            "contexts_folder": str(self.work / "contexts"),
        }
        return {"class": "KronosModel", "module_path": "kronos_qlib.plugin.model", "kwargs": kwargs}

    def scored(self, row: str, seed: int) -> tuple[pd.Series, float]:
        """A row's scores of the test, made unless they are there; seconds of its trainings."""
        settings = self.settings(row, seed)
        path = self.place(row, seed) / f"{digest_of(settings)[:12]}.parquet"
        if (note := recall(path, settings)) is None:
            forget(path)
            log(f"{row}, seed {seed}: training")
            self.open("test")
            kind, _ = ROWS[row]
            model = RollingModel(
                settings["model"],
                **settings["how"],
                folder=str(self.work / "rolls"),
                purge=ExpressionLabel(NEXT_DAY_RETURN).ahead,
            )
            dataset = self.dataset(kind)
            began = time.process_time()
            with metrics_dropped(), redirect_stdout(sys.stderr):
                model.fit(dataset)
            seconds = time.process_time() - began
            log(f"{row}, seed {seed}: {len(model.rolls)} trainings, {seconds:.0f} s; scoring")
            scores = model.predict(dataset, self.segment("test", purged=True))
            scores.rename("score").to_frame().to_parquet(path)
            note = keep(path, settings, seconds=seconds)
        return pd.read_parquet(path)["score"], float(note["seconds"])

    def dataset(self, kind: str) -> Any:
        """Of the open folder, its segments those of the first training and of the whole test."""
        names = ("train", "valid", "test")
        if kind != "lightgbm":
            return self.windows_dataset(*names)
        segments = {name: self.segment(name) for name in names}
        frame = self.table(segments["train"][0], segments["test"][1])
        learned = self.workflow["dataset"]["kwargs"]["handler"]["kwargs"]["learn_processors"]
        handler = DataHandlerLP(data_loader=StaticDataLoader(frame), learn_processors=learned)
        return DatasetH(handler, segments)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of the market's file")
    parser.add_argument("--work", type=Path, help="what is kept (demo/rolling)")
    parser.add_argument(
        "--rows", nargs="+", metavar="ROW", choices=ROWS, default=USUAL, help="some of them"
    )
    parser.add_argument("--every", type=int, default=20, help="trading days (%(default)s)")
    parser.add_argument("--train", choices=("expanding", "sliding"), default="expanding")
    parser.add_argument("--seeds", type=int, default=1, help="of each row (%(default)s)")
    parser.add_argument("--until", metavar="DAY", help="the last day that is scored (2023-12-31)")
    parser.add_argument("--threads", type=int, default=1, help="of LightGBM (%(default)s)")
    parser.add_argument("--lookback", type=int, default=90, help="bars of a window (%(default)s)")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--no-backtest", action="store_true", help="order alone, no money")
    args = parser.parse_args(argv)
    market = MARKETS[MARKET]
    if args.until:
        ends = (market.segments["test"][0], args.until)
        market = replace(market, segments={**market.segments, "test": ends})
    bench = RollingBench(
        market=market,
        bars=(args.data / market.file).resolve(),
        work=(args.work or Path("demo/rolling")).resolve(),
        rows={},
        judge="test",
        device=args.device,
        lookback=args.lookback,
        every=args.every,
        train=args.train,
        threads=args.threads,
    )
    if not bench.bars.is_file():
        parser.error(f"there is no file {bench.bars}")
    if args.seeds < 1:
        parser.error("--seeds must be 1 or more")
    known = digest_of([bench.settings(row, 0) for row in args.rows])
    before = note_reading(bench.work, args.rows, known)
    seeds = range(args.seeds)
    result = judged(bench, args.rows, seeds, not args.no_backtest, AGAINST)
    first, last = market.segments["test"]
    one = result["rows"][0]
    text = (
        f"{MARKET}, {first} to {last}: {one['days']} days, {one['pairs']:,} rows, {args.seeds} "
        f"seeds; trained again every {args.every} trading days, train {args.train}.\n"
        f"The test was read {len(before)} times before with other rows or settings.\n\n"
        f"{show(result)}"
    )
    print(text)
    pd.DataFrame(result["rows"]).to_csv(bench.work / "rolling_rows.csv", index=False)
    pd.DataFrame(result["differences"]).to_csv(bench.work / "rolling_differences.csv", index=False)
    (bench.work / "rolling.txt").write_text(text + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
