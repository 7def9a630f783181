"""Fit the calibration that ships with `kronos-nano`.

The spread is fitted on the years that the weights were trained on and on the half years that chose
them: it is a regression on past volatility. What the paths add is fitted on the latter alone, whose
bars the weights have not seen. No later bar is read.

Example:
    python data_prep/calibrate_nano.py --data ../shared/data --checkpoint nano --out nano.json
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Iterator
from pathlib import Path

from train_nano import HORIZON, LOOKBACK, MARKETS, Market, Stretch, read_stretch

from kronos_qlib import Kronos, KronosPredictor, KronosTokenizer, WindowDataset
from kronos_qlib.calibration.calibration import Sample
from kronos_qlib.data.files.repair import repair_bars
from kronos_qlib.inference.calibrating import fit_calibration, sample_of
from kronos_qlib.inference.sampling import SamplingConfig

SAMPLING = SamplingConfig(paths=20, temperature=1.0, top_p=1.0)
"""How the paths are drawn whose spread and mean are looked at."""
TITLES = {
    "cn2000": "A-shares 2000-2002",
    "cn2020": "A-shares 2020-2022",
    "us": "US shares 2000-2013",
    "crypto_1h": "hourly crypto 2021-2022",
}
REPAIRS = ("drop-bracket", "drop-nan", "drop-nonpositive", "drop-untraded")


def stretches(market: Market) -> Iterator[tuple[Stretch, bool]]:
    """Of one file each, and whether paths are drawn for its windows."""
    if market.train.file == market.valid.file:
        yield Stretch(market.valid.file, market.valid.first, market.valid.last), True
    else:
        yield market.train, False
        yield market.valid, True


def samples_of(
    predictor: KronosPredictor, folder: Path, name: str, args: argparse.Namespace
) -> Iterator[Sample]:
    """Windows of a market whose future has come."""
    for stretch, is_drawn in stretches(MARKETS[name]):
        bars = read_stretch(folder, stretch)
        if not name.startswith("crypto"):  # stray bars of a weekend belong to no calendar
            bars = bars[bars["date"].dt.day_of_week < 5]
        bars, _ = repair_bars(bars, REPAIRS)
        source = WindowDataset.from_file(
            bars, {"past": (None, stretch.last)}, lookback=LOOKBACK, horizon=HORIZON
        )
        sample = sample_of(
            predictor,
            source,
            "past",
            SAMPLING,
            windows=args.windows,
            drawn=args.drawn if is_drawn else 0,
            drawn_from=stretch.first,
        )
        print(f"{name}: {len(sample.times)} windows of {stretch.file}, {len(sample.drawn)} drawn")
        yield sample


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the bars")
    parser.add_argument("--checkpoint", default="nano", help="alias or folder")
    parser.add_argument("--out", type=Path, required=True, help="file to write")
    parser.add_argument("--markets", nargs="+", choices=MARKETS, default=list(MARKETS))
    parser.add_argument("--windows", type=int, default=8_000, help="of each file")
    parser.add_argument("--drawn", type=int, default=1_000, help="of them, with paths")
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.WARNING)
    predictor = KronosPredictor(
        Kronos.from_pretrained(args.checkpoint), KronosTokenizer.from_pretrained(args.checkpoint)
    )
    samples = [
        sample for name in args.markets for sample in samples_of(predictor, args.data, name, args)
    ]
    about = ", ".join(TITLES[name] for name in args.markets)
    calibration = fit_calibration(predictor, samples, SAMPLING, about)
    calibration.save(args.out)
    for kind, fit in calibration.fits.items():
        print(kind, fit)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
