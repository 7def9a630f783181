"""The arguments that say how a file of bars is written."""

from __future__ import annotations

import argparse
from typing import Any


def add_reading(parser: argparse.ArgumentParser) -> None:
    """Everything that says how a file of bars is written; `reading_of` hands it to `read_bars`."""
    parser.add_argument(
        "--columns",
        nargs="+",
        default=[],
        metavar="OURS=THEIRS",
        help='names in the source, such as date="<DATE>" time="<TIME>"; volume= says there is none',
    )
    parser.add_argument(
        "--encoding",
        default="utf-8",
        help="of CSV files; gb18030 for many Chinese ones (%(default)s)",
    )
    parser.add_argument(
        "--delimiter", metavar="MARK", help="of CSV files, or the word tab; found if not given"
    )
    parser.add_argument(
        "--decimal",
        choices=(".", ","),
        help="the decimal mark; the other one parts thousands; found where cells show it",
    )
    parser.add_argument(
        "--date-order",
        choices=("ymd", "dmy", "mdy"),
        default="ymd",
        help="dmy or mdy where dates do not begin with the year (%(default)s)",
    )
    parser.add_argument(
        "--zone",
        metavar="NAME",
        help="the exchange's time zone, such as Asia/Shanghai, to which UTC times and counts since "
        "1970 are converted; UTC for coins",
    )


def reading_of(chosen: argparse.Namespace) -> dict[str, Any]:
    """The arguments of `read_bars` that `add_reading` asked for."""
    from kronos_qlib.data.files.read import columns_from_pairs  # imports pandas: not for --help

    return {
        "columns": columns_from_pairs(chosen.columns),
        "encoding": chosen.encoding,
        "delimiter": chosen.delimiter,
        "decimal": chosen.decimal,
        "date_order": chosen.date_order,
        "zone": chosen.zone,
    }
