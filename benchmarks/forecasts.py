"""How good forecasts are, by market, bar of the horizon and method, beside volatility models.

On windows of real bars whose next bars are known. Whatever is fitted (a factor on the spread and
the degrees of freedom of each baseline, HAR's regression, the calibration of the paths) is fitted
on the market's valid segment and before; no bar after the test segment is read.

`kronos` is paths as drawn. `kronos_calibrated` has a calibration fitted on this market: the spread
on all bars before the test segment, what the paths add on the valid segment. `kronos_shipped`
has the one beside the checkpoint's weights, where there is one.

The table is that of `evaluation.forecasts.method_table`: CRPS and its difference to the baseline
that was best in hindsight, coverage, QLIKE, value at risk with its tests, the energy score of the
path, and an oracle that knows the volatility to come: how much room there was. Intervals are of
95 %, days being what is counted; `relative` intervals take the baseline's own CRPS as known.

Example:
    python benchmarks/forecasts.py --data ../shared/data --markets cn2002 us --windows 300 \
        --paths 50 --json forecasts.json
    python benchmarks/forecasts.py bars.parquet --valid 2002-01-01 2002-03-31 \
        --test 2002-04-01 2002-06-30 --windows 1000 --paths 50 --weekdays
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from kronos_qlib import WindowDataset
from kronos_qlib.calibration.calibration import Calibration
from kronos_qlib.data.files.read import read_bars
from kronos_qlib.data.windows.bar_table import BarTable
from kronos_qlib.data.windows.known import known_windows, sample_windows
from kronos_qlib.data.windows.window import Windows
from kronos_qlib.errors import BarDataError
from kronos_qlib.evaluation.forecasts.baselines.named_baselines import ORACLE, Baselines
from kronos_qlib.evaluation.forecasts.distributions import (
    LEVELS,
    VOLATILITY_BARS,
    Outcomes,
    PathDistribution,
)
from kronos_qlib.evaluation.forecasts.method_table import method_table
from kronos_qlib.evaluation.forecasts.risk import TAILS
from kronos_qlib.inference.calibrating import WINDOWS, fit_calibration, sample_of
from kronos_qlib.pipeline.calibrated_paths import calibrated_closes, shipped_calibration
from kronos_qlib.pipeline.outcomes import draw_closes, outcomes_of
from kronos_qlib.plugin.model import KronosModel

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Market:
    """Where a market's bars are, what is fitted on, and what is judged; days are included."""

    file: str
    valid: tuple[str, str]
    test: tuple[str, str]
    freq: str = "B"
    """"B": days, of which those of a weekend are stray and left out. "h": hours of all days."""


MARKETS = {
    "cn2002": Market(
        "cn_daily_2000_2002.parquet", ("2002-01-01", "2002-06-30"), ("2002-07-01", "2002-12-31")
    ),
    "cn2022": Market(
        "cn_daily_2020_2023.parquet", ("2022-01-01", "2022-06-30"), ("2022-07-01", "2023-12-31")
    ),
    "us": Market(
        "us_daily_2013_2016.parquet", ("2013-06-01", "2013-12-31"), ("2014-01-01", "2016-12-31")
    ),
    "crypto_1h": Market(
        "crypto_1h_2021_2022.parquet",
        ("2022-07-01", "2022-09-30"),
        ("2022-10-01", "2022-12-31"),
        freq="h",
    ),
}


@dataclass(frozen=True)
class Part:
    """Sampled windows of a segment, what came of them, and raw paths."""

    windows: Windows
    outcomes: Outcomes
    closes: Floats
    """(N, P, H) in money, drawn independently of each other."""


@dataclass(frozen=True)
class PathMethod:
    """A method that gives paths for the test windows."""

    name: str
    closes: Floats
    """(N, P, H) in money, windows as of the test part."""
    dependent: bool = False
    """Paths are equidistant quantiles, not independent draws: scored by the empirical CRPS."""
    note: str = ""
    """How it was fitted, for the printed page."""


def path_methods(source: WindowDataset, model: KronosModel, test: Part) -> list[PathMethod]:
    """METHODS FROM PATHS: the one place where a method is added; fit on earlier, apply to `test`.

    `source` has the segments "before" (all bars up to the last of valid), "valid" and "test".
    Everything else, the table and what is printed, follows from this list.
    """
    methods = [PathMethod("kronos", test.closes)]
    sample = sample_of(
        model.predictor,
        source,
        "before",
        model.sampling,
        windows=WINDOWS,
        drawn=len(test.windows),
        drawn_from=source.segments["valid"][0],
        seed=model.seed,
    )
    fitted = {"kronos_calibrated": fit_calibration(model.predictor, [sample], model.sampling)}
    if (shipped := shipped_calibration(model.predictor).calibration) is not None:
        fitted["kronos_shipped"] = shipped
    for name, calibration in fitted.items():
        try:
            closes = calibrated_closes(
                calibration, source, test.windows, test.closes, model.sampling
            )
        except BarDataError as reason:  # fitted on bars of another kind
            print(f"{name} is left out: {reason}")
            continue
        methods.append(PathMethod(name, closes, dependent=True, note=_fitted_on(calibration)))
    return methods


def _fitted_on(calibration: Calibration) -> str:
    """A line: what a calibration was fitted on, and what the paths are worth in it."""
    parts = []
    for kind, fit in calibration.fits.items():
        text = f"{kind}: spread of {fit.own.windows} windows"
        if fit.paths is not None:
            factors = f"spread x {fit.paths.spread:.2f}, centre x {fit.paths.centre:.2f}"
            text += f", paths of {fit.paths.windows} add {factors}"
        parts.append(text)
    return f"up to {calibration.until}; {'; '.join(parts)}"


@dataclass(frozen=True)
class Judged:
    """One market's table, and what is to be known of it."""

    table: pd.DataFrame
    notes: dict[str, Any] = field(default_factory=dict)


def source_of(file: Path, market: Market, lookback: int, horizon: int) -> WindowDataset:
    """Windows over bars to the last day of the test segment; bars that break a rule are no bars."""
    end = pd.Timestamp(market.test[1]) + pd.Timedelta(days=1)
    # The filter is applied while reading: later bars never reach this process.
    is_parquet = file.suffix == ".parquet"
    frame = pd.read_parquet(file, filters=[("date", "<", end)]) if is_parquet else file
    bars = read_bars(frame, as_is=True).bars
    bars = bars[bars["date"] < end]
    if market.freq == "B":
        bars = bars[bars["date"].dt.day_of_week < 5]
    return WindowDataset(
        table=BarTable.from_bars(bars, incomplete="skip", invalid="skip"),
        segments={
            "before": (None, market.valid[1]),
            "valid": market.valid,
            "test": market.test,
        },
        lookback=lookback,
        horizon=horizon,
    )


def judge_market(file: Path, market: Market, args: argparse.Namespace) -> Judged:
    """Draw, fit and judge."""
    source = source_of(file, market, args.lookback, args.horizon)
    sampling = {"paths": args.paths, "temperature": args.temperature, "top_p": args.top_p}
    model = KronosModel(args.checkpoint, sampling=sampling, seed=args.seed, show_progress=False)
    taken: dict[str, tuple[Windows, Outcomes]] = {}
    notes: dict[str, Any] = {}
    for segment in ("valid", "test"):
        known, left_out = known_windows(source, segment)
        windows = sample_windows(known, args.windows, args.seed)
        taken[segment] = windows, outcomes_of(source, windows, VOLATILITY_BARS)
        notes[segment] = {
            "windows": len(windows),
            "of": len(known),
            "days": int(taken[segment][1].days.nunique()),
            "left_out": left_out,
        }
    windows, outcomes = taken["test"]
    began = time.perf_counter()
    test = Part(
        windows, outcomes, draw_closes(model.predictor, source, windows, model.sampling, args.seed)
    )
    methods = path_methods(source, model, test)
    notes["paths"] = {
        "seconds": round(time.perf_counter() - began, 1),
        "fitted": {one.name: one.note for one in methods if one.note},
    }
    began = time.perf_counter()
    baselines = Baselines.of_windows(outcomes, taken["valid"][1])
    notes["baselines"] = {
        "seconds": round(time.perf_counter() - began, 1),
        "garch_fallbacks": baselines.garch_fallbacks,
        "garch_fallbacks_valid": baselines.earlier_garch_fallbacks,
        "left_out": dict(baselines.left_out),
        "fitted": {
            name: {
                "factors": np.round(walk.scale, 3).tolist(),
                "degrees": [_number(one) for one in np.ravel(walk.degrees)],
            }
            for name, walk in baselines.fitted.items()
        },
    }
    forecasts = {
        one.name: PathDistribution(one.closes, outcomes.last_close, stratified=one.dependent)
        for one in methods
    }
    table = method_table(
        {**forecasts, **baselines.of, **baselines.bounds},
        outcomes,
        baselines=baselines.of,
        bounds=baselines.bounds,
        seed=args.seed,
    )
    return Judged(table, notes)


# Showing


def show(name: str, market: Market, judged: Judged) -> None:
    """Print a market's table, a block for each horizon."""
    notes = judged.notes
    print(f"\n## {name}\n")
    for segment in ("valid", "test"):
        of = notes[segment]
        print(
            f"{segment} {' to '.join(getattr(market, segment))}: {of['windows']} of {of['of']} "
            f"windows on {of['days']} days, {of['left_out']} left out"
        )
    of = notes["paths"]
    print(f"paths drawn and calibrated in {of['seconds']:.0f} s")
    for method, note in of["fitted"].items():
        print(f"{method}: {note}")
    of = notes["baselines"]
    print(
        f"baselines in {of['seconds']:.0f} s; GARCH is the EWMA in {of['garch_fallbacks']} windows "
        f"of test and {of['garch_fallbacks_valid']} of valid"
    )
    for baseline, reason in of["left_out"].items():
        print(f"{baseline} is left out: {reason}")
    for horizon, rows in judged.table.groupby(level="horizon", sort=False):
        print(f"\n{name}, bar {horizon}; best baseline: {rows['best_baseline'].iloc[0]}\n")
        print(_markdown(rows.droplevel("horizon"), str(horizon)))


def _markdown(rows: pd.DataFrame, horizon: str) -> str:
    is_bar = horizon.isdigit()
    tails = [f"VaR {level:.0%}: share, p, p" for level in TAILS] + ["FZ 5%"]
    head = ["method", "CRPS, bp", "to best, %", *(f"in {level:.0%}" for level in LEVELS), "QLIKE"]
    head += tails if is_bar else ["energy, bp", "to best, %"]
    lines = [_line(head), _line(["---"] * len(head))]
    for method, row in rows.iterrows():
        cells = [f"{method}", _cell(1e4 * row["crps"], ".1f"), _relative(row)]
        cells += [_cell(100 * row[f"coverage_{100 * level:g}"], ".1f") for level in LEVELS]
        cells += [_cell(row["qlike"], ".3f")]
        if is_bar:
            cells += [_risk(row, f"var_{100 * level:g}") for level in TAILS]
            cells += [_cell(row.get("var_5_fz", math.nan), ".3f")]
        else:
            ends = [100 * row[f"energy_{what}"] for what in ("relative", "low", "high")]
            cells += [_cell(1e4 * row["energy"], ".1f"), _interval(*ends)]
        lines.append(_line(cells))
    return "\n".join(lines)


def _relative(row: pd.Series[Any]) -> str:
    reference = row["crps"] - row["difference"]
    return _interval(*(100 * row[what] / reference for what in ("difference", "low", "high")))


def _interval(middle: float, low: float, high: float) -> str:
    return "best" if math.isnan(low) else f"{middle:+.1f} ({low:+.1f} to {high:+.1f})"


def _risk(row: pd.Series[Any], name: str) -> str:
    if math.isnan(row.get(name, math.nan)):
        return "-"
    ps = [_cell(row[f"{name}_{test}"], ".2f") for test in ("kupiec", "christoffersen")]
    return f"{100 * row[name]:.1f} %, {', '.join(ps)}"


def _cell(value: float, form: str) -> str:
    return "-" if math.isnan(value) else f"{value:{form}}"


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _number(value: float) -> float | None:
    """As JSON has it: it knows no infinity and no NaN."""
    return float(value) if math.isfinite(value) else None


def records_of(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows as JSON has them."""
    rows = table.reset_index().to_dict("records")
    return [
        {key: _number(one) if isinstance(one, float) else one for key, one in row.items()}
        for row in rows
    ]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bars", type=Path, nargs="?", help="one file of your own, of bars")
    parser.add_argument("--valid", nargs=2, metavar=("FIRST", "LAST"), help="of that file")
    parser.add_argument("--test", nargs=2, metavar=("FIRST", "LAST"), help="of that file")
    parser.add_argument("--weekdays", action="store_true", help="leave its weekend bars out")
    parser.add_argument("--data", type=Path, help="folder of the markets' files")
    parser.add_argument("--markets", nargs="+", choices=MARKETS, default=list(MARKETS))
    parser.add_argument("--checkpoint", default="nano", help="alias, Hub id or folder")
    parser.add_argument("--windows", type=int, default=1000, help="of each segment")
    parser.add_argument("--paths", type=int, default=50)
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--top-p", type=float, default=1.0)
    parser.add_argument("--lookback", type=int, default=90)
    parser.add_argument("--horizon", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write the tables here too")
    args = parser.parse_args(argv)
    if (args.bars is None) == (args.data is None):
        parser.error("give a file of bars with --valid and --test, or --data and --markets")
    if args.bars is None:
        chosen = {name: (args.data / MARKETS[name].file, MARKETS[name]) for name in args.markets}
    else:
        if args.valid is None or args.test is None:
            parser.error("a file of bars needs --valid and --test")
        freq = "B" if args.weekdays else "any"
        market = Market(args.bars.name, tuple(args.valid), tuple(args.test), freq)
        chosen = {args.bars.stem: (args.bars, market)}

    judged = {}
    for name, (file, market) in chosen.items():
        judged[name] = judge_market(file, market, args)
        show(name, market, judged[name])
    print(
        "\nCRPS and energy in basis points; differences to the best baseline of that horizon, in "
        "hindsight, with 95 % by day. p of Kupiec's and of Christoffersen's test. "
        f"{ORACLE} knows the volatility that came: no forecast."
    )
    if args.json:
        result = {
            "checkpoint": str(args.checkpoint), "windows": args.windows, "paths": args.paths,
            "temperature": args.temperature, "top_p": args.top_p, "lookback": args.lookback,
            "horizon": args.horizon, "seed": args.seed,
            "markets": {
                name: {
                    "market": asdict(chosen[name][1]),
                    "notes": one.notes,
                    "rows": records_of(one.table),
                }
                for name, one in judged.items()
            },
        }  # fmt: skip
        text = json.dumps(result, indent=1, allow_nan=False) + "\n"
        args.json.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
