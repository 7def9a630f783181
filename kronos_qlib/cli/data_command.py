"""`kronos-qlib data`: what the scripts of data_prep do, as commands."""

from __future__ import annotations

import argparse

from kronos_qlib.cli.parsers import add_commands, describe

COMMANDS = {
    "check": (
        "report what is wrong with bars, and repair it",
        "kronos_qlib.cli.data.data_check_command",
    ),
    "convert": (
        "turn bars in files into a Qlib data folder",
        "kronos_qlib.cli.data.data_convert_command",
    ),
    "table": (
        "write a folder's bars into files that training maps into memory",
        "kronos_qlib.cli.data.data_table_command",
    ),
    "members": (
        "write who was in an index, day by day",
        "kronos_qlib.cli.data.data_members_command",
    ),
    "demo": (
        "make a Qlib data folder with a simulated market",
        "kronos_qlib.cli.data.data_demo_command",
    ),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    describe(
        parser,
        "From bars to a Qlib data folder. Exit codes: 0 when all is well, 1 when bars break a "
        "rule, 2 when the input or a setting is bad.",
        "kronos-qlib data check bars.csv --no-gaps --report problems.csv",
        "kronos-qlib data convert bars.csv data/mine --benchmark MEAN --exchange XSHG",
        "kronos-qlib data table data/mine --out data/mine.table",
        "kronos-qlib data members data/mine csi300",
        "kronos-qlib data demo demo/market",
    )
    add_commands(parser, COMMANDS)
