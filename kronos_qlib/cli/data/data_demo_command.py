"""`kronos-qlib data demo`: a simulated market, whose true expected returns are known."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from kronos_qlib.cli.parsers import describe
from kronos_qlib.data.files.synthetic import SESSIONS, MarketConfig
from kronos_qlib.errors import KronosError

USUAL = {
    "day": MarketConfig(),
    "5min": MarketConfig(instruments=20, sectors=4, start="2024-01-01", years=0.25, freq="5min"),
}
"""Defaults of each frequency: what the workflows' dates are for."""

SETTINGS = ("instruments", "start", "years", "effect", "seed")
"""Fields of MarketConfig that have a flag beside --freq."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    describe(
        parser,
        "Make a Qlib data folder with a simulated market, whose true expected returns are known.",
        f"{parser.prog} demo/market --years 5 --overwrite",
        f"{parser.prog} demo/market_5min --freq 5min",
    )
    parser.add_argument(
        "target",
        nargs="?",
        type=Path,
        default=Path("demo/market"),
        help="folder to write, demo/market if not given",
    )
    parser.add_argument(
        "--freq", choices=list(SESSIONS), default="day", help="how often bars come (%(default)s)"
    )
    parser.add_argument("--instruments", type=int, help=f"how many ({_usual('instruments')})")
    parser.add_argument("--start", help=f"first date ({_usual('start')})")
    parser.add_argument("--years", type=float, help=f"length ({_usual('years')})")
    parser.add_argument(
        "--effect",
        type=float,
        help="strength of the planted reversal, about the IC to be had; 0 is noise "
        f"({_usual('effect')})",
    )
    parser.add_argument("--seed", type=int, help=f"({_usual('seed')})")
    parser.add_argument("--overwrite", action="store_true", help="replace an older market")
    parser.set_defaults(command=make_demo, bad_input=(KronosError, OSError))


def make_demo(chosen: argparse.Namespace) -> None:
    asked = {name: getattr(chosen, name) for name in SETTINGS}
    config = replace(
        USUAL[chosen.freq], **{name: value for name, value in asked.items() if value is not None}
    )
    from kronos_qlib.plugin.demo import BENCHMARK, write_demo  # imports qlib: not for --help

    summary = write_demo(chosen.target, config, overwrite=chosen.overwrite)
    times = "days" if config.freq == "day" else f"bars of {config.freq}"
    print(
        f"{chosen.target}: {summary.instruments} instruments, {summary.times} {times} from "
        f"{summary.first:%Y-%m-%d} to {summary.last:%Y-%m-%d}, {summary.bars} bars, "
        f"benchmark {BENCHMARK}"
    )
    print(f"planted effect {config.effect:g}; what a perfect model would say is in oracle.parquet")
    print(f'open it with: qlib.init(provider_uri="{chosen.target.as_posix()}", region="us")')


def _usual(name: str) -> str:
    """A setting's default, for --help: of each frequency where they differ."""
    values = {freq: getattr(config, name) for freq, config in USUAL.items()}
    if len(set(values.values())) == 1:
        return str(values["day"])
    return ", ".join(f"{value} for {freq}" for freq, value in values.items())
