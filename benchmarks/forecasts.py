"""How good paths are as forecasts, before and after calibration, beside two free baselines.

CRPS, coverage and the rest of `evaluation.forecasts.forecast_tables`, on windows of real bars whose
next bars are known; calibration is fitted on earlier windows. No bar after the last date is used.

Example:
    python benchmarks/forecasts.py bars.parquet --valid 2002-01-01 2002-03-31 \
        --test 2002-04-01 2002-06-30 --windows 1000 --paths 50 --weekdays
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import pandas as pd

from kronos_qlib import WindowDataset
from kronos_qlib.data.files.read import read_bars
from kronos_qlib.evaluation.forecasts.day_means import ALL
from kronos_qlib.evaluation.forecasts.distributions import Outcomes
from kronos_qlib.evaluation.forecasts.forecast_tables import judge
from kronos_qlib.pipeline.outcomes import (
    draw_closes,
    known_windows,
    outcomes_of,
    sample_windows,
)
from kronos_qlib.plugin.model import KronosModel


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bars", type=Path, help="a file that read_bars takes")
    parser.add_argument("--valid", nargs=2, required=True, metavar=("FIRST", "LAST"))
    parser.add_argument("--test", nargs=2, required=True, metavar=("FIRST", "LAST"))
    parser.add_argument("--checkpoint", default="nano")
    parser.add_argument("--windows", type=int, default=1000, help="of each stretch")
    parser.add_argument("--paths", type=int, default=50)
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--top-p", type=float, default=1.0)
    parser.add_argument("--lookback", type=int, default=90)
    parser.add_argument("--horizon", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--weekdays", action="store_true", help="leave stray weekend bars out")
    parser.add_argument("--json", type=Path, help="write the metrics here too")
    args = parser.parse_args()

    bars = read_bars(args.bars, as_is=True).bars
    bars = bars[bars["date"] < pd.Timestamp(args.test[1]) + pd.Timedelta(days=1)]
    if args.weekdays:
        bars = bars[bars["date"].dt.dayofweek < 5]
    source = WindowDataset.from_file(
        bars,
        {"valid": tuple(args.valid), "test": tuple(args.test)},
        lookback=args.lookback,
        horizon=args.horizon,
    )
    sampling = {"paths": args.paths, "temperature": args.temperature, "top_p": args.top_p}
    model = KronosModel(args.checkpoint, sampling=sampling, seed=args.seed)
    closes: dict[str, np.ndarray] = {}
    outcomes: dict[str, Outcomes] = {}
    for segment in ("valid", "test"):
        known, left_out = known_windows(source, segment)
        windows = sample_windows(known, args.windows, args.seed)
        began = time.perf_counter()
        closes[segment] = draw_closes(model.predictor, source, windows, model.sampling, args.seed)
        outcomes[segment] = outcomes_of(source, windows, 20)
        print(
            f"{segment}: {len(windows)} of {len(known)} windows on "
            f"{len(outcomes[segment].days.unique())} days, {left_out} left out; drawn in "
            f"{time.perf_counter() - began:.0f} s"
        )
    metrics = {}
    for centre in (False, True):
        found = judge(
            *(closes["test"], outcomes["test"], closes["valid"], outcomes["valid"]),
            seed=args.seed,
            calibrate_centre=centre,
        )
        metrics["centre" if centre else "spread"] = found.metrics()
        print(f"\nCalibrated: {'spread and centre' if centre else 'spread'}: {found.calibration}")
        for table in (found.scores, found.coverage):
            print(table.xs(ALL, level="horizon").round(4).to_string())
        crps = found.differences.xs("crps", level="measure").xs(ALL, level="horizon")
        print(crps.round(4).to_string())
    if args.json:
        args.json.write_text(json.dumps(metrics, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
