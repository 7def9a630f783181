"""`kronos-qlib data demo`: a simulated market, whose true expected returns are known."""

from __future__ import annotations

import argparse
from pathlib import Path

from kronos_qlib.cli.parsers import describe
from kronos_qlib.data.synthetic import MarketConfig, make_market
from kronos_qlib.errors import KronosError

BENCHMARK = "BENCHMARK"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    usual = MarketConfig()
    describe(
        parser,
        "Make a Qlib data folder with a simulated market, whose true expected returns are known.",
        f"{parser.prog} demo/market --years 5 --overwrite",
    )
    parser.add_argument(
        "target",
        nargs="?",
        type=Path,
        default=Path("demo/market"),
        help="folder to write, demo/market if not given",
    )
    parser.add_argument(
        "--instruments", type=int, default=usual.instruments, help="how many (%(default)s)"
    )
    parser.add_argument("--start", default=usual.start, help="first date (%(default)s)")
    parser.add_argument("--years", type=float, default=usual.years, help="length (%(default)s)")
    parser.add_argument(
        "--effect",
        type=float,
        default=usual.effect,
        help="strength of the planted reversal, about the IC to be had; 0 is noise (%(default)s)",
    )
    parser.add_argument("--seed", type=int, default=usual.seed, help="(%(default)s)")
    parser.add_argument("--overwrite", action="store_true", help="replace an older market")
    parser.set_defaults(command=make_demo, bad_input=(KronosError, OSError))


def make_demo(chosen: argparse.Namespace) -> None:
    config = MarketConfig(
        instruments=chosen.instruments,
        start=chosen.start,
        years=chosen.years,
        effect=chosen.effect,
        seed=chosen.seed,
    )
    from kronos_qlib.plugin.storage import write_provider  # imports qlib: not for --help

    market = make_market(config)
    summary = write_provider(
        market.bars,
        chosen.target,
        benchmark=BENCHMARK,
        beside={"bars": market.bars, "oracle": market.oracle.to_frame()},
        overwrite=chosen.overwrite,
    )
    print(
        f"{chosen.target}: {summary.instruments} instruments, {summary.times} days from "
        f"{summary.first:%Y-%m-%d} to {summary.last:%Y-%m-%d}, {summary.bars} bars, "
        f"benchmark {BENCHMARK}"
    )
    print(f"planted effect {config.effect:g}; what a perfect model would say is in oracle.parquet")
    print(f'open it with: qlib.init(provider_uri="{chosen.target.as_posix()}", region="us")')
