"""Turn bars in CSV or Parquet files into a Qlib data folder."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from kronos_qlib.data.bars import REPAIRS, check_bars, describe_report, repair_bars
from kronos_qlib.data.tables import columns_from_pairs, read_bars, read_times
from kronos_qlib.errors import KronosError


def make_parser() -> argparse.ArgumentParser:
    repairs = "\n".join(f"  {name:16} {repair.what}" for name, repair in REPAIRS.items())
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=f"repairs:\n{repairs}\n\n"
        "example:\n  python data_prep/csv_to_qlib.py bars/ data/mine --columns date=trade_date "
        "volume=vol --benchmark MEAN --repair drop-nan bracket",
    )
    parser.add_argument("source", type=Path, help="a .csv or .parquet file, or a folder of them")
    parser.add_argument("target", type=Path, help="Qlib data folder to write")
    parser.add_argument("--freq", default="day", help='"day" or like "5min" (%(default)s)')
    parser.add_argument(
        "--columns", nargs="+", default=[], metavar="OURS=THEIRS", help="names in the source"
    )
    parser.add_argument(
        "--extra", nargs="+", default=[], metavar="COLUMN", help="further columns to store"
    )
    parser.add_argument("--market", default="all", help="name of the market file (%(default)s)")
    parser.add_argument(
        "--benchmark", help="an instrument kept out of the market; made equal-weight if new"
    )
    parser.add_argument(
        "--future-bars",
        type=int,
        default=60,
        help="length of a future calendar of weekdays, holidays unknown (%(default)s)",
    )
    parser.add_argument(
        "--future-calendar",
        type=Path,
        metavar="FILE",
        help="take the future from here: the exchange's days or times, one per line",
    )
    parser.add_argument(
        "--repair", nargs="+", default=[], choices=REPAIRS, metavar="RULE", help="see below"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an older data folder")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Returns: 0 if the folder was written, 1 if bars break a rule, 2 for bad input or usage."""
    chosen = make_parser().parse_args(argv)
    try:
        table = read_bars(
            chosen.source,
            columns=columns_from_pairs(chosen.columns),
            extra=chosen.extra,
            as_is=True,
        )
        future = read_times(chosen.future_calendar) if chosen.future_calendar else None
        bars, record = repair_bars(table.bars, chosen.repair)
        report = check_bars(bars, max_move=None, find_gaps=False)
        # A Qlib folder has no order of rows: scattered ones are no harm, only worth a word.
        scattered = int((report["rule"] == "order").sum())
        errors = report[(report["severity"] == "error") & (report["rule"] != "order")]
        if len(errors):
            print(describe_report(errors), file=sys.stderr)
            print(
                f"{chosen.source}: {len(errors)} errors, nothing written; --repair RULE mends, "
                "check_bars.py --report FILE lists them all",
                file=sys.stderr,
            )
            return 1
        from kronos_qlib.plugin.storage import write_provider  # imports qlib: not for --help

        summary = write_provider(
            bars,
            chosen.target,
            freq=chosen.freq,
            market=chosen.market,
            benchmark=chosen.benchmark,
            future_bars=chosen.future_bars,
            future_times=future,
            extra=chosen.extra,
            overwrite=chosen.overwrite,
        )
    except (KronosError, OSError) as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 2
    for note in (*table.notes, *summary.notes):
        print(f"note: {note}")
    if scattered:
        print(f"note: the rows of {scattered} instruments were out of order: sorted")
    if len(record):
        print(f"repaired:\n{describe_report(record, in_full=('drop-duplicates',))}")
    print(
        f"{chosen.target}: {summary.instruments} instruments, {summary.times} times from "
        f"{summary.first:%Y-%m-%d} to {summary.last:%Y-%m-%d}, {summary.bars} bars"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
