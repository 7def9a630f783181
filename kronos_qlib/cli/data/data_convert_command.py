"""`kronos-qlib data convert`: bars in CSV, Parquet or Feather files to a Qlib data folder."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from kronos_qlib.cli.parsers import describe
from kronos_qlib.cli.sources import add_source, read_source
from kronos_qlib.data.calendar.stamps import future_times
from kronos_qlib.data.calendar.steps import as_days
from kronos_qlib.data.files.advice import advise, describe_advice
from kronos_qlib.data.files.check import WARNINGS, check_bars, describe_report, errors_of
from kronos_qlib.data.files.read import check_apart, read_times
from kronos_qlib.data.files.repair import join_reports, repair_bars
from kronos_qlib.data.rules import JUMP
from kronos_qlib.errors import CalendarError, KronosError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    describe(
        parser,
        "Turn bars in CSV, Parquet or Feather files into a Qlib data folder.",
        f"{parser.prog} bars/ data/mine --columns date=trade_date volume=vol --benchmark MEAN "
        "--repair drop-nan bracket",
    )
    add_source(parser)
    parser.add_argument("target", type=Path, help="Qlib data folder to write")
    parser.add_argument("--freq", default="day", help='"day" or like "5min" (%(default)s)')
    parser.add_argument("--market", default="all", help="name of the market file (%(default)s)")
    parser.add_argument(
        "--benchmark", help="an instrument kept out of the market; made equal-weight if new"
    )
    parser.add_argument(
        "--future-bars",
        type=int,
        default=60,
        help="length of the future calendar: the weekdays and times of the bars, holidays unknown, "
        "or --exchange's (%(default)s)",
    )
    future = parser.add_mutually_exclusive_group()
    future.add_argument(
        "--exchange",
        metavar="CODE",
        help="take the future from exchange-calendars: XSHG, XNYS, ...; knows holidays and breaks",
    )
    future.add_argument(
        "--future-calendar",
        type=Path,
        metavar="FILE",
        help="take the future from here: the exchange's days or times, one per line",
    )
    parser.add_argument(
        "--refuse",
        nargs="+",
        default=[],
        choices=WARNINGS,
        metavar="RULE",
        help=f"count these warnings as errors: {', '.join(WARNINGS)}",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an older data folder")
    parser.set_defaults(command=convert, bad_input=(KronosError, OSError))


def convert(chosen: argparse.Namespace) -> int:
    """Returns: 0 if the folder was written, 1 if bars break a rule."""
    if chosen.report:
        check_apart(chosen.report, chosen.source, chosen.target)
    table = read_source(chosen)
    future = read_times(chosen.future_calendar) if chosen.future_calendar else None
    bars, record, left = mend(table.bars, chosen)
    refused = left[is_refused(left, chosen.refuse)]
    if len(refused):
        for note in table.notes:  # a column that was left out may be the cause
            print(f"note: {note}", file=sys.stderr)
        print(describe_report(refused), file=sys.stderr)
        print(
            f"{chosen.source}: {len(refused)} errors, nothing written; --report FILE lists "
            f"them all\n{describe_advice(advise(bars, refused))}",
            file=sys.stderr,
        )
        return 1
    if chosen.exchange:
        future = days_ahead(bars, chosen.future_bars, chosen.exchange)
    from kronos_qlib.plugin.provider.writer import write_provider  # imports qlib: not for --help

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
    for note in (*table.notes, *summary.notes):
        print(f"note: {note}")
    # A Qlib folder has no order of rows: scattered ones are no harm, only worth a word.
    scattered = int((left["rule"] == "order").sum())
    if scattered:
        print(f"note: the rows of {scattered} instruments were out of order: sorted")
    if len(record):
        print(f"repaired:\n{describe_report(record, in_full=('drop-duplicates',))}")
    if repeated := int((left["rule"] == "repeated").sum()):
        print(
            f"note: {repeated} bars are the bar before once more, volume and all, and are stored "
            "as they are: --repair drop-untraded leaves them out"
        )
    jumps = left[left["rule"] == JUMP]
    if len(jumps):
        print(f"left as they are:\n{describe_report(jumps, examples=10)}")
    print(
        f"{chosen.target}: {summary.instruments} instruments, {summary.times} times from "
        f"{summary.first:%Y-%m-%d} to {summary.last:%Y-%m-%d}, {summary.bars} bars"
    )
    return 0


def mend(
    bars: pd.DataFrame, chosen: argparse.Namespace
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Repair what is named; the bars, the record of it, and the problems left."""
    # Looking for gaps takes its time, and shares get suspended: only when they are asked for.
    find_gaps = "gap" in chosen.refuse or chosen.report is not None
    mended, record = repair_bars(bars, chosen.repair, max_move=chosen.max_move)
    left = check_bars(mended, max_move=chosen.max_move, find_gaps=find_gaps)
    if chosen.report and chosen.repair:
        found = check_bars(bars, max_move=chosen.max_move, find_gaps=find_gaps)
        join_reports(found, record, left).to_csv(chosen.report, index=False)
    elif chosen.report:
        join_reports(left, record).to_csv(chosen.report, index=False)
    return mended, record, left


def is_refused(report: pd.DataFrame, refuse: Sequence[str]) -> pd.Series:
    """Which problems keep bars out of Qlib: all errors but the order of rows, and what is named."""
    is_error = report.index.isin(errors_of(report).index)
    return report["rule"].isin(list(refuse)) | is_error


def days_ahead(bars: pd.DataFrame, count: int, exchange: str) -> pd.DatetimeIndex:
    """The times that an exchange has after the last bar."""
    dates = as_days(bars)[0]["date"]
    past = pd.DatetimeIndex(dates.unique()).sort_values()
    try:
        return pd.DatetimeIndex(future_times(past, count, exchange=exchange))
    except CalendarError as problem:
        raise CalendarError(
            f"the bars do not fit --exchange {exchange}: {problem}; or give the days yourself with "
            "--future-calendar FILE"
        ) from problem
