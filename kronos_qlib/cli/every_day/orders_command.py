"""`kronos-qlib orders`: the next day's orders, from scores and from what is held."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

from kronos_qlib.cli.parsers import check_output, describe
from kronos_qlib.errors import ConfigError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    describe(
        parser,
        "Write the next day's orders: those that Qlib's TopK-dropout backtest would give with "
        "these scores and this book. Scores are the CSV of `kronos-qlib score`; positions a CSV "
        "of instrument, quantity (real shares) and days (closes since the purchase) or bought.",
        "kronos-qlib orders score.csv --day 2024-06-18 --positions held.csv --cash 250000 "
        "--provider-uri data/mine --region cn --set topk=50 --set n_drop=5 --set hold_thresh=5",
    )
    parser.add_argument("scores", type=Path, metavar="SCORES", help="CSV: instrument, score")
    parser.add_argument("--day", required=True, help="of the scores: the last close known")
    parser.add_argument("--positions", type=Path, metavar="FILE", help="what is held (nothing)")
    parser.add_argument("--cash", type=float, required=True, help="money that can be spent")
    parser.add_argument("--provider-uri", metavar="FOLDER", required=True, help="of the bars")
    parser.add_argument(
        "--region",
        choices=("cn", "us", "tw"),
        required=True,
        help="whose limits and lots hold where the settings name none",
    )
    parser.add_argument(
        "--set",
        dest="settings",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="a setting of the strategy, as under `backtest:` in a workflow; may be repeated",
    )
    parser.add_argument(
        "--limit-distance",
        type=float,
        default=0.02,
        metavar="FRACTION",
        help="of limits from the close (%(default)s)",
    )
    parser.add_argument(
        "--market-orders", action="store_true", help="no limits: the column stays empty"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("orders.csv"), help="the orders, as CSV (%(default)s)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an older file")
    parser.set_defaults(command=orders)


def orders(arguments: argparse.Namespace) -> None:
    check_output(arguments.out, arguments.overwrite)
    import pandas as pd
    from ruamel.yaml import YAML

    from kronos_qlib.evaluation.text_table import format_rows
    from kronos_qlib.plugin.lookahead import open_provider
    from kronos_qlib.plugin.orders.book import Book
    from kronos_qlib.plugin.orders.making import OrderConfig, make_orders, read_scores
    from kronos_qlib.plugin.provider.faults import check_folder
    from kronos_qlib.plugin.records.backtest_record import BacktestConfig
    from kronos_qlib.plugin.runs.quiet import quiet_libraries
    from kronos_qlib.settings import from_mapping

    settings = {"benchmark": "none: orders need no benchmark"}
    for change in arguments.settings:
        name, mark, text = change.partition("=")
        if not mark:
            raise ConfigError(f"--set takes KEY=VALUE, got {change!r}")
        settings[name] = YAML(typ="safe").load(text)
    try:
        evening = pd.Timestamp(arguments.day)
    except ValueError as bad:
        raise ConfigError(f"--day is a date, such as 2024-06-18, got {arguments.day!r}") from bad
    chosen = from_mapping(BacktestConfig, settings, where="--set")
    distance = None if arguments.market_orders else arguments.limit_distance
    scores = read_scores(arguments.scores)
    quiet_libraries()
    folder = Path(arguments.provider_uri).expanduser()
    check_folder(folder)
    open_provider(folder, region=arguments.region, logging_level="ERROR")
    book = Book.of_cash(arguments.cash)
    if arguments.positions is not None:
        book = Book.read(arguments.positions, arguments.cash, evening)
    how = OrderConfig(limit_distance=distance)
    found = make_orders(scores, book, chosen, evening=evening, how=how)
    found.write(arguments.out)
    rows = [["", "side", "quantity", "limit", "reason"]]
    row: Any
    for row in found.table.itertuples():
        limit = "market" if math.isnan(row.limit) else f"{row.limit:g}"
        rows.append([str(row.instrument), str(row.side), f"{row.quantity:g}", limit, row.reason])
    if len(rows) > 1:
        print(format_rows(rows))
    for name, reason in found.left_alone.itertuples(index=False):
        print(f"left alone: {name}, {reason}")
    for note in found.notes:
        print(f"note: {note}")
    print(f"{len(found.table)} orders for {found.day:%Y-%m-%d}, in {arguments.out}")
