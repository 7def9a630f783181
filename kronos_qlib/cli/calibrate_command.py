"""`kronos-qlib calibrate`: past bars in; the calibration of a checkpoint's forecasts out."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from kronos_qlib.cli.parsers import check_output, describe
from kronos_qlib.cli.reading import add_reading, reading_of
from kronos_qlib.errors import ConfigError

if TYPE_CHECKING:
    from kronos_qlib.calibration.calibration import Calibration


def add_arguments(parser: argparse.ArgumentParser) -> None:
    describe(
        parser,
        "Fit how wide forecasts of a checkpoint are to be, on bars whose future has come, and "
        "save it as JSON: for `kronos-qlib forecast --calibration`, for `calibration=` in Python, "
        "or as calibration.json beside the weights, where it is found by itself. 220 windows at "
        "least, of bars of one kind: of a day and longer, or shorter. The same bars, settings and "
        "seed give the same file.",
        "kronos-qlib calibrate bars.parquet --checkpoint small --out small.json",
        "kronos-qlib calibrate coins.csv --checkpoint nano --last 2022-06-30 --out coins.json",
        "kronos-qlib calibrate shares --checkpoint tuned --out tuned/predictor/calibration.json",
    )
    parser.add_argument(
        "source",
        metavar="BARS",
        type=Path,
        help="a .csv, .parquet or .feather file, or a folder of them; many instruments are best",
    )
    parser.add_argument(
        "--checkpoint",
        default="nano",
        help="alias, Hub id or folder; see kronos-qlib models (nano)",
    )
    parser.add_argument("--tokenizer", help="its tokenizer, if not under the same name")
    parser.add_argument("--device", help="a torch device (CUDA, Apple's or the CPU, as found)")
    parser.add_argument("--out", type=Path, required=True, help="the calibration, a .json file")
    parser.add_argument("--overwrite", action="store_true", help="replace an older one")
    parser.add_argument(
        "--lookback", type=int, default=90, help="bars seen, 23 at least (%(default)s)"
    )
    parser.add_argument("--horizon", type=int, default=10, help="bars to come (%(default)s)")
    parser.add_argument("--first", metavar="DAY", help="first bar that is forecast")
    parser.add_argument("--last", metavar="DAY", help="last one; no later bar is used")
    parser.add_argument(
        "--windows", type=int, default=10_000, help="to fit on, at most (%(default)s)"
    )
    parser.add_argument(
        "--drawn",
        type=int,
        default=300,
        help="windows that paths are drawn for, to learn what they add to past volatility; 0 for "
        "none, which takes seconds (%(default)s)",
    )
    parser.add_argument("--paths", type=int, default=20, help="of each (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="(%(default)s)")
    add_reading(parser)
    parser.set_defaults(command=calibrate)


def calibrate(arguments: argparse.Namespace) -> None:
    _check_target(arguments)
    from kronos_qlib.inference.predictor import KronosPredictor
    from kronos_qlib.inference.sampling import SamplingConfig

    predictor = KronosPredictor.from_pretrained(
        arguments.checkpoint, arguments.tokenizer, arguments.device
    )
    found = predictor.calibrate(
        arguments.source,
        lookback=arguments.lookback,
        horizon=arguments.horizon,
        first=arguments.first,
        last=arguments.last,
        windows=arguments.windows,
        drawn=arguments.drawn,
        # As `kronos-qlib forecast` draws.
        sampling=SamplingConfig(paths=arguments.paths, temperature=1.0, top_p=1.0),
        seed=arguments.seed,
        **reading_of(arguments),
    )
    found.save(arguments.out)
    print(f"{arguments.checkpoint} calibrated on {found.about}, until {found.until}")
    for line in _fits(found):
        print(line)
    print(arguments.out)


def _check_target(arguments: argparse.Namespace) -> None:
    from kronos_qlib.data.files.read import check_apart

    out: Path = arguments.out
    if out.suffix.lower() != ".json":
        raise ConfigError(f"--out {out}: expected a name ending in .json")
    check_apart(out, arguments.source)
    check_output(out, arguments.overwrite)


def _fits(found: Calibration) -> list[str]:
    """What was fitted, in a line for each kind of bars."""
    lines = []
    for kind, fit in found.fits.items():
        drawn = "no paths were drawn"
        if fit.paths is not None:
            adds = fit.paths.spread or fit.paths.centre
            drawn = "paths add to past volatility" if adds else "paths add nothing significant"
            drawn += f" ({fit.paths.windows} windows)"
        lines.append(f"{kind} bars: t of {fit.own.dof:.1f} degrees of freedom; {drawn}")
    return lines
