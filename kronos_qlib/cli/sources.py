"""The arguments that commands which read bars share, and reading as they say."""

from __future__ import annotations

import argparse
from pathlib import Path

from kronos_qlib.cli.reading import add_reading, reading_of
from kronos_qlib.data.files.read import BarFile, read_bars
from kronos_qlib.data.files.repair import REPAIRS
from kronos_qlib.data.rules import MAX_MOVE


def add_source(parser: argparse.ArgumentParser) -> None:
    """Everything that says what to read, how, and what to repair; `describe` comes before."""
    repairs = "\n".join(f"  {name:16} {repair.what}" for name, repair in REPAIRS.items())
    parser.epilog = f"repairs:\n{repairs}\n\n{parser.epilog}"
    parser.add_argument(
        "source", type=Path, help="a .csv, .parquet or .feather file, or a folder of them"
    )
    add_reading(parser)
    parser.add_argument(
        "--extra", nargs="+", default=[], metavar="COLUMN", help="further columns to keep"
    )
    parser.add_argument(
        "--repair", nargs="+", default=[], choices=REPAIRS, metavar="RULE", help="see below"
    )
    parser.add_argument(
        "--max-move",
        type=float,
        default=MAX_MOVE,
        help="largest believable return from close to close (%(default)s)",
    )
    parser.add_argument(
        "--report", type=Path, help="save every problem and repair as CSV here, refused or not"
    )


def read_source(chosen: argparse.Namespace) -> BarFile:
    """The bars as they are, for checks to report and repairs to mend."""
    return read_bars(chosen.source, extra=chosen.extra, as_is=True, **reading_of(chosen))
