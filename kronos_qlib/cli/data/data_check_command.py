"""`kronos-qlib data check`: report what is wrong with bars in files; repair what is named."""

from __future__ import annotations

import argparse
from pathlib import Path

from kronos_qlib.cli.parsers import describe
from kronos_qlib.cli.sources import add_source, read_source
from kronos_qlib.data.calendar.steps import step_notes
from kronos_qlib.data.files.advice import advise, describe_advice
from kronos_qlib.data.files.check import check_bars, describe_report
from kronos_qlib.data.files.read import check_apart, write_bars
from kronos_qlib.data.files.repair import join_reports, repair_bars
from kronos_qlib.errors import KronosError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    describe(
        parser,
        "Report what is wrong with bars in files; repair what is named, into a new file.",
        f"{parser.prog} bars.csv --max-move 0.2 --no-gaps",
        f"{parser.prog} bars.csv --repair drop-duplicates --output good.parquet",
    )
    add_source(parser)
    parser.add_argument(
        "--no-gaps", action="store_true", help="do not report missing bars: shares get suspended"
    )
    parser.add_argument(
        "--output", type=Path, help="where repaired bars go, a file named like a source"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an older output")
    parser.set_defaults(command=check, bad_input=(KronosError, OSError), refuse_usage=parser.error)


def check(chosen: argparse.Namespace) -> int:
    """Returns: 0 if no error is left (warnings may be), 1 if one is."""
    if bool(chosen.repair) != bool(chosen.output):
        chosen.refuse_usage(
            "--repair and --output go together: name the rules and the file to write"
        )
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
    report = found if left is None else left
    for note in (*table.notes, *step_notes(bars)):
        print(f"note: {note}")
    if len(record):
        print(f"repaired:\n{describe_report(record, in_full=('drop-duplicates',))}\nleft:")
    if len(report):
        print(describe_report(report, in_full=("duplicate",)))
        if advice := advise(bars, report[report["rule"] != "gap"]):
            print(f"what to do:\n{describe_advice(advice)}")
    errors = int((report["severity"] == "error").sum())
    print(
        f"{chosen.output or chosen.source}: {len(bars)} bars of {bars['symbol'].nunique()} "
        f"instruments, {errors} errors, {len(report) - errors} warnings"
    )
    return 1 if errors else 0
