"""Report what is wrong with bars in CSV or Parquet files."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from kronos_qlib.data.bars import check_bars, describe_report
from kronos_qlib.data.tables import columns_from_pairs, read_bars
from kronos_qlib.errors import KronosError


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="example: python data_prep/check_bars.py bars.csv --max-move 0.2 --no-gaps",
    )
    parser.add_argument("source", type=Path, help="a .csv or .parquet file, or a folder of them")
    parser.add_argument(
        "--columns", nargs="+", default=[], metavar="OURS=THEIRS", help="names in the source"
    )
    parser.add_argument(
        "--max-move", type=float, default=0.4, help="largest believable return (%(default)s)"
    )
    parser.add_argument(
        "--no-gaps", action="store_true", help="do not report missing bars: shares get suspended"
    )
    parser.add_argument("--report", type=Path, help="save every problem as CSV here")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Returns: 0 if there is no error (warnings may be), 1 if there is one, 2 for bad input."""
    chosen = make_parser().parse_args(argv)
    try:
        table = read_bars(chosen.source, columns=columns_from_pairs(chosen.columns))
        report = check_bars(table.bars, max_move=chosen.max_move, find_gaps=not chosen.no_gaps)
    except KronosError as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 2
    for note in table.notes:
        print(f"note: {note}")
    if chosen.report is not None:
        report.to_csv(chosen.report, index=False)
    if len(report):
        print(describe_report(report))
    errors = int((report["severity"] == "error").sum())
    print(
        f"{chosen.source}: {len(table.bars)} bars of {table.bars['symbol'].nunique()} instruments, "
        f"{errors} errors, {len(report) - errors} warnings"
    )
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(main())
