"""`kronos-qlib data table`: a Qlib folder's bars as files that training maps into memory."""

from __future__ import annotations

import argparse
from pathlib import Path

from kronos_qlib.cli.parsers import describe
from kronos_qlib.errors import ConfigError, KronosError

WAYS = {
    "incomplete": ("error", "skip"),
    "invalid": ("error", "skip", "keep"),
    "untraded": ("skip", "error", "keep"),
}
"""What may become of bars at fault, the default first."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    describe(
        parser,
        "Write the bars of a Qlib folder into files from which windows are read by memory map, so "
        "that no machine has to hold them. KronosHandler reads it by its setting `table`; market, "
        "span and the other settings are the handler's. A start that was killed is gone on from by "
        "the same command.",
        f"{parser.prog} data/cn --out data/cn.table",
        f"{parser.prog} data/cn --out data/csi300.table --market csi300 --last 2020-12-31",
    )
    parser.add_argument("folder", type=Path, help="a Qlib folder, as data convert makes it")
    parser.add_argument("--out", type=Path, required=True, metavar="TABLE", help="folder to write")
    parser.add_argument("--market", default="all", help="whose instruments (%(default)s)")
    parser.add_argument("--freq", default="day", help="of the bars (%(default)s)")
    parser.add_argument(
        "--first",
        metavar="TIME",
        help="first bar: the handler's start_time less its history_days, where that is given",
    )
    parser.add_argument("--last", metavar="TIME", help="last bar: the handler's end_time")
    parser.add_argument(
        "--field",
        action="append",
        default=[],
        metavar="COLUMN=$FIELD",
        help="where a column comes from if not from the field of its name, such as amount=$money",
    )
    parser.add_argument(
        "--raw-volume", action="store_true", help="multiply volume by $factor: shares as traded"
    )
    for name, words in WAYS.items():
        parser.add_argument(
            f"--{name}",
            choices=words,
            default=words[0],
            help=f"what becomes of {name} bars, as of KronosHandler (%(default)s)",
        )
    parser.add_argument("--overwrite", action="store_true", help="replace an older table")
    parser.set_defaults(command=write, bad_input=(KronosError, OSError))


def write(chosen: argparse.Namespace) -> None:
    from kronos_qlib.plugin.lookahead import open_provider  # imports qlib: not for --help
    from kronos_qlib.plugin.provider.mapped_bars import names_of, write_table
    from kronos_qlib.plugin.provider.reader import STORED

    fields = dict(STORED)
    for text in chosen.field:
        column, equals, field = text.partition("=")
        if not equals or column not in STORED:
            raise ConfigError(f"--field is COLUMN=$FIELD, of {', '.join(STORED)}; got {text!r}")
        fields[column] = field
    open_provider(chosen.folder.expanduser().absolute(), chosen.freq)
    table = write_table(
        chosen.out,
        names_of(chosen.market, chosen.freq),
        chosen.freq,
        fields=fields,
        raw_volume=chosen.raw_volume,
        first=chosen.first,
        last=chosen.last,
        incomplete=chosen.incomplete,
        invalid=chosen.invalid,
        untraded=chosen.untraded,
        overwrite=chosen.overwrite,
        show_progress=True,
    )
    size = sum(path.stat().st_size for path in table.file.iterdir()) if table.file else 0
    print(
        f"{chosen.out}: {len(table):,} bars of {len(table.instruments):,} instruments, "
        f"{size / 1e6:,.1f} MB"
    )
