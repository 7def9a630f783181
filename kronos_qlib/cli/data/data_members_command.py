"""`kronos-qlib data members`: who was in an index on which days, as a market of a Qlib folder."""

from __future__ import annotations

import argparse
from pathlib import Path

from kronos_qlib.cli.parsers import describe
from kronos_qlib.errors import KronosError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    describe(
        parser,
        "Write the members of an index, point in time, into a Qlib folder: instruments/csi300.txt. "
        "Indices: csi300, csi500, sp500, nasdaq100, dow30, from the package index-constitution.",
        f"{parser.prog} data/cn csi300 --mean CSI300_MEAN",
        f"{parser.prog} data/cn csi300 csi500 --name csi800",
    )
    parser.add_argument("folder", type=Path, help="a Qlib folder, as data convert makes it")
    parser.add_argument("indices", nargs="+", metavar="INDEX", help="csi300, sp500, ...")
    parser.add_argument("--name", help="one market of this name with the members of all of them")
    parser.add_argument(
        "--mean",
        metavar="INSTRUMENT",
        help="also write the equal-weight mean of the day's members as an instrument of this name, "
        "for a benchmark",
    )
    parser.add_argument("--freq", default="day", help="of the folder's calendar (%(default)s)")
    parser.add_argument("--overwrite", action="store_true", help="replace a market that is there")
    parser.set_defaults(command=write, bad_input=(KronosError, OSError))


def write(chosen: argparse.Namespace) -> None:
    from kronos_qlib.plugin.provider.members import write_members

    for summary in write_members(
        chosen.folder,
        chosen.indices,
        name=chosen.name,
        freq=chosen.freq,
        mean=chosen.mean,
        overwrite=chosen.overwrite,
    ):
        print(summary)
