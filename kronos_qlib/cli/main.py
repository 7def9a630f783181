"""The console command `kronos-qlib`: parse, call one function, print one summary."""

from __future__ import annotations

import argparse
import sys
import traceback
from collections.abc import Sequence

from kronos_qlib.cli.parsers import add_commands, add_debug
from kronos_qlib.errors import ConfigError, KronosError, RefusedRunError
from kronos_qlib.log import quiet_gym
from kronos_qlib.markup import one_line
from kronos_qlib.version import __version__

FAILED, BAD_INPUT, INTERRUPTED = 1, 2, 130
"""Exit codes beside 0. BAD_INPUT is argparse's for an argument it refuses, and ours for what
cannot be asked; INTERRUPTED is what a shell makes of Ctrl-C."""

COMMANDS = {
    "forecast": ("draw the bars to come of a file's series", "kronos_qlib.cli.forecast_command"),
    "calibrate": (
        "fit the spread of a checkpoint's forecasts on past bars",
        "kronos_qlib.cli.calibrate_command",
    ),
    "run": (
        "run a workflow on a market: checked, estimated, by qrun",
        "kronos_qlib.cli.run_command",
    ),
    "roll": (
        "run a workflow whose model is trained again every N trading days",
        "kronos_qlib.cli.every_day.roll_command",
    ),
    "workflow": (
        "list workflows and markets, or print one to edit",
        "kronos_qlib.cli.workflow_command",
    ),
    "finetune": (
        "train the model of a workflow file and save its weights",
        "kronos_qlib.cli.finetune_command",
    ),
    "compare": ("set runs side by side, with paired tests", "kronos_qlib.cli.compare_command"),
    "score": ("rank the newest day by the model of a run", "kronos_qlib.cli.score_command"),
    "web": (
        "open a local page: forecasts, rankings, runs, kept forecasts",
        "kronos_qlib.cli.web_command",
    ),
    "mcp": (
        "offer forecasts and rankings to programs that speak MCP",
        "kronos_qlib.cli.mcp_command",
    ),
    "daily": (
        "new bars in, scores, orders, ledger: what an evening asks for",
        "kronos_qlib.cli.every_day.daily_command",
    ),
    "register": (
        "make a run's model the one in force, in MLflow's registry",
        "kronos_qlib.cli.every_day.register_command",
    ),
    "orders": (
        "write the next day's orders, as the backtest would trade",
        "kronos_qlib.cli.every_day.orders_command",
    ),
    "ledger": (
        "verify what was forecast before it came, and report what came",
        "kronos_qlib.cli.every_day.ledger_command",
    ),
    "models": (
        "list the checkpoints: bundled, cached, available",
        "kronos_qlib.cli.models_command",
    ),
    "data": (
        "check bars, turn them into a Qlib folder, simulate a market",
        "kronos_qlib.cli.data_command",
    ),
}
"""Each command's name, its line in --help, and its module, imported when it is asked for."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        0; 1 when it failed; 2 when it was asked for what cannot be; 130 when it was interrupted.
    """
    quiet_gym()
    arguments = build_parser().parse_args(argv)
    debug = getattr(arguments, "debug", False)
    # Commands that read bars have 1 for bars that break a rule, and 2 for what cannot be read.
    bad_input = getattr(arguments, "bad_input", (ConfigError,))
    try:
        return arguments.command(arguments) or 0
    except KeyboardInterrupt:
        message, code = "interrupted", INTERRUPTED
    except Exception as error:
        message, code = _one_line(error), BAD_INPUT if isinstance(error, bad_input) else FAILED
        if debug:
            traceback.print_exc()
    print(f"kronos-qlib: {message}", file=sys.stderr)
    return code


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="kronos-qlib",
        description="Kronos as a Qlib model: what one does beside qrun.",
        epilog="example:\n  kronos-qlib forecast bars.csv --exchange XSHG --out forecast.csv",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"kronos-qlib {__version__}")
    add_debug(parser)
    add_commands(parser, COMMANDS)
    return parser


def _one_line(error: Exception) -> str:
    """What went wrong, a line for each reason; where we did not expect it, how to see more."""
    if isinstance(error, RefusedRunError) and len(error.problems) > 1:
        return "\n- ".join(map(one_line, ("this run would fail:", *error.problems)))
    text = one_line(str(error))  # it may hold names out of files and stores
    if isinstance(error, KronosError):
        return text
    return f"{type(error).__name__}: {text or 'no message'} (--debug shows where)"


if __name__ == "__main__":
    sys.exit(main())
