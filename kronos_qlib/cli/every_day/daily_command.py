"""`kronos-qlib daily`: what an evening asks for, once, however often it is started."""

from __future__ import annotations

import argparse
import datetime as dt
import sys
from pathlib import Path

from kronos_qlib.cli.parsers import describe
from kronos_qlib.errors import ConfigError, DailyBusyError, MissingDependencyError

WAITING = 3
"""Exit code: nothing failed, and something waits: a day that is not complete, another process."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    describe(
        parser,
        "Bring new bars into a Qlib folder, score the newest day by the model in force, write the "
        "orders that follow, and append all to the ledger. For cron: started again it does what is "
        "not done yet, and nothing twice. Exit codes: 0 done, 1 failed, 2 settings, 3 waiting.",
        "kronos-qlib daily daily.yaml",
        "kronos-qlib daily daily.yaml --accept 2024-03-05",
    )
    parser.add_argument("config", type=Path, metavar="CONFIG", help="a YAML file: see the docs")
    parser.add_argument(
        "--accept",
        metavar="DAY",
        action="append",
        default=[],
        help="take this day although it looks incomplete; may be repeated",
    )
    parser.add_argument(
        "--wait",
        type=float,
        default=0.0,
        metavar="SECONDS",
        help="for another start that is at work (%(default)s: leave at once)",
    )
    parser.add_argument(
        "--at",
        metavar="TIME",
        help="another time than this machine's, such as 2024-03-05T18:00+08:00: for replays; it "
        "stands in the ledger",
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="read the settings, positions and cash, do nothing, and leave",
    )
    parser.set_defaults(command=daily, bad_input=(ConfigError, MissingDependencyError))


def daily(arguments: argparse.Namespace) -> int:
    """Returns: 0 if all that came is done, 3 if something waits."""
    now = _moment(arguments.at)
    if arguments.wait < 0:
        raise ConfigError(f"--wait must not be negative, got {arguments.wait:g}")
    from kronos_qlib.daily.daily_settings import read_daily
    from kronos_qlib.ledger.ledger import utc_now

    config = read_daily(arguments.config)
    accepted = [_day(text) for text in arguments.accept]
    import pandas as pd

    from kronos_qlib.daily.daily_run import check_book, run_daily

    if arguments.check:
        check_book(config, now or utc_now())
        print(f"{arguments.config}: the settings can be used")
        return 0

    try:
        report = run_daily(
            config,
            now=now,
            accepted=[pd.Timestamp(day) for day in accepted],
            patience=arguments.wait,
            say=lambda line: print(line, flush=True),
        )
    except DailyBusyError as busy:
        print(f"kronos-qlib: {busy}", file=sys.stderr)
        return WAITING
    return WAITING if report.waiting else 0


def _moment(text: str | None) -> dt.datetime | None:
    if text is None:
        return None
    try:
        moment = dt.datetime.fromisoformat(text)
    except ValueError:
        raise ConfigError(f"--at is a time such as 2024-03-05T18:00+08:00, got {text!r}") from None
    if moment.tzinfo is None:
        raise ConfigError(f"--at needs its zone, such as {text}+00:00")
    return moment


def _day(text: str) -> dt.date:
    try:
        return dt.date.fromisoformat(text)
    except ValueError:
        raise ConfigError(f"--accept is a day such as 2024-03-05, got {text!r}") from None
