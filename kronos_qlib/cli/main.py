"""The console command `kronos-qlib`: parse, call one function, print one summary.

A subcommand is a function in COMMANDS that adds a parser and sets `command`, what to call. Whatever
it needs beyond the standard library it imports when called, so that `--help` answers at once.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from kronos_qlib.errors import ConfigError, KronosError
from kronos_qlib.version import __version__

if TYPE_CHECKING:
    import pandas as pd

BAD_INPUT = 2
"""Exit code of argparse for an argument it refuses, and ours for a setting that cannot work."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand.

    Returns:
        0; 1 when it failed; 2 when it was asked for what cannot be.
    """
    arguments = build_parser().parse_args(argv)
    try:
        arguments.command(arguments)
    except KronosError as error:
        print(f"kronos-qlib: {' '.join(str(error).split())}", file=sys.stderr)
        return BAD_INPUT if isinstance(error, ConfigError) else 1
    return 0


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="kronos-qlib", description="Kronos as a Qlib model: what one does beside qrun."
    )
    parser.add_argument("--version", action="version", version=f"kronos-qlib {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for add_command in COMMANDS:
        add_command(commands)
    return parser


def add_compare(commands: Any) -> None:
    parser = commands.add_parser(
        "compare",
        help="set the latest finished run of each experiment side by side",
        description="Set the latest finished run of each MLflow experiment side by side.",
        epilog="example:\n  kronos-qlib compare --tracking-uri sqlite:///mlflow.db kronos lightgbm",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("experiments", metavar="EXPERIMENT", nargs="*", help="experiment's name")
    parser.add_argument(
        "--run",
        dest="run_ids",
        metavar="RUN_ID",
        action="append",
        default=[],
        help="also this run, whichever experiment it is of; may be repeated",
    )
    parser.add_argument(
        "--tracking-uri",
        default=os.environ.get("KRONOS_MLFLOW_URI", "sqlite:///mlflow.db"),
        help="where MLflow keeps the runs (default: KRONOS_MLFLOW_URI, else sqlite:///mlflow.db)",
    )
    parser.add_argument("--markdown", action="store_true", help="print a Markdown table")
    parser.set_defaults(command=compare)


def compare(arguments: argparse.Namespace) -> None:
    from kronos_qlib.plugin.compare import compare_runs

    table = compare_runs(
        arguments.experiments, tracking_uri=arguments.tracking_uri, run_ids=arguments.run_ids
    )
    print(format_comparison(table, markdown=arguments.markdown))
    print(f"\nTo look closer: mlflow ui --backend-store-uri {arguments.tracking_uri}")


COMPARISON_LINES: dict[str, tuple[str, Callable[[float], str]]] = {
    "ic": ("IC", "{:.4f}".format),
    "icir": ("ICIR", "{:.4f}".format),
    "rank_ic": ("Rank IC", "{:.4f}".format),
    "rank_icir": ("Rank ICIR", "{:.4f}".format),
    "excess_return": ("Excess return a year, after cost", "{:.2%}".format),
    "information_ratio": ("Information ratio, after cost", "{:.2f}".format),
    "sharpe": ("Sharpe ratio, after cost", "{:.2f}".format),
    "max_drawdown": ("Maximum drawdown, after cost", "{:.2%}".format),
    "turnover": ("Turnover a day", "{:.2%}".format),
    "wall_seconds": ("Wall time", "{:.1f} s".format),
    "run_id": ("MLflow run", "{:.8}".format),
}
"""Column of `compare_runs`, what a reader calls it, and how its value is written."""


def format_comparison(table: pd.DataFrame, *, markdown: bool = False) -> str:
    """A line per measure and a column per run, aligned; or the same as a Markdown table."""
    rows = [["", *map(str, table.index)]]
    for column, (name, write) in COMPARISON_LINES.items():
        rows.append([name, *(write(value) for value in table[column])])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *values in rows:
        cells = [first.ljust(widths[0])]
        cells += [value.rjust(width) for value, width in zip(values, widths[1:], strict=True)]
        lines.append(f"| {' | '.join(cells)} |" if markdown else "  ".join(cells).rstrip())
    rule = "-" * (sum(widths) + 2 * len(widths) - 2)
    if markdown:
        dashes = [":" + "-" * (widths[0] - 1), *("-" * (width - 1) + ":" for width in widths[1:])]
        rule = f"| {' | '.join(dashes)} |"
    lines.insert(1, rule)
    return "\n".join(lines)


def add_finetune(commands: Any) -> None:
    parser = commands.add_parser(
        "finetune",
        help="train the model of a workflow file and save its weights",
        description=(
            "Train what task.model of a workflow file asks for, on its task.dataset, and save the "
            "weights; no backtest. The same command on several devices or machines, begun by "
            "torchrun or accelerate launch."
        ),
        epilog=(
            "examples:\n"
            "  kronos-qlib finetune workflows/workflow_kronos.yaml --out tuned\n"
            "  kronos-qlib finetune my.yaml --out tuned --set training.predictor.epochs=3\n"
            "  torchrun --nproc-per-node 2 -m kronos_qlib.cli finetune my.yaml --out tuned"
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("config", metavar="FILE", help="a workflow, as qrun takes it")
    parser.add_argument("--out", required=True, metavar="FOLDER", help="for the weights")
    parser.add_argument(
        "--set",
        dest="changes",
        metavar="PATH=VALUE",
        action="append",
        default=[],
        help="another value for a setting of the model; may be repeated",
    )
    parser.set_defaults(command=finetune)


def finetune(arguments: argparse.Namespace) -> None:
    import logging

    from kronos_qlib.plugin.finetune import finetune as run
    from kronos_qlib.training.team import process_rank

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    history = run(arguments.config, arguments.out, arguments.changes)
    if process_rank() == 0:
        for stage, rows in history.items():
            best = min(rows, key=lambda row: row["valid_loss"])
            print(
                f"{stage}: validation loss {rows[0]['valid_loss']:.5f} before, lowest "
                f"{best['valid_loss']:.5f} after epoch {best['epoch']:.0f} of {len(rows) - 1}"
            )
        print(f"saved in {arguments.out}")


COMMANDS: tuple[Callable[[Any], None], ...] = (add_compare, add_finetune)

if __name__ == "__main__":
    sys.exit(main())
