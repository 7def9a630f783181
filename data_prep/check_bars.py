"""Report what is wrong with bars in files; repair what is named, into a new file."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from kronos_qlib.cli.sources import parser_of, read_source
from kronos_qlib.data.bars import check_bars, describe_report
from kronos_qlib.data.repairs import join_reports, repair_bars
from kronos_qlib.data.tables import check_apart, write_bars
from kronos_qlib.errors import KronosError


def make_parser() -> argparse.ArgumentParser:
    parser = parser_of(
        __doc__,
        "  python data_prep/check_bars.py bars.csv --max-move 0.2 --no-gaps\n"
        "  python data_prep/check_bars.py bars.csv --repair drop-duplicates --output good.parquet",
    )
    parser.add_argument(
        "--no-gaps", action="store_true", help="do not report missing bars: shares get suspended"
    )
    parser.add_argument(
        "--output", type=Path, help="where repaired bars go, a file named like a source"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an older output")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Returns: 0 if no error is left (warnings may be), 1 if one is, 2 for bad input or usage."""
    parser = make_parser()
    chosen = parser.parse_args(argv)
    if bool(chosen.repair) != bool(chosen.output):
        parser.error("--repair and --output go together: name the rules and the file to write")
    try:
        for written in filter(None, (chosen.output, chosen.report)):
            check_apart(written, chosen.source)
        if chosen.report and chosen.output:
            check_apart(chosen.report, chosen.output)
        table = read_source(chosen)
        found = check_bars(table.bars, max_move=chosen.max_move, find_gaps=not chosen.no_gaps)
        bars, record = repair_bars(table.bars, chosen.repair, max_move=chosen.max_move)
        left = None
        if chosen.repair:
            left = check_bars(bars, max_move=chosen.max_move, find_gaps=not chosen.no_gaps)
            write_bars(bars, chosen.output, overwrite=chosen.overwrite)
        if chosen.report:
            join_reports(found, record, left).to_csv(chosen.report, index=False)
    except (KronosError, OSError) as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 2
    report = found if left is None else left
    for note in table.notes:
        print(f"note: {note}")
    if len(record):
        print(f"repaired:\n{describe_report(record, in_full=('drop-duplicates',))}\nleft:")
    if len(report):
        print(describe_report(report, in_full=("duplicate",)))
    errors = int((report["severity"] == "error").sum())
    print(
        f"{chosen.output or chosen.source}: {len(bars)} bars of {bars['symbol'].nunique()} "
        f"instruments, {errors} errors, {len(report) - errors} warnings"
    )
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(main())
