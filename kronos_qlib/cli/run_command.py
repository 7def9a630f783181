"""`kronos-qlib run`: a workflow on a market, by Qlib's own qrun."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from kronos_qlib.cli.parsers import add_changes, describe

if TYPE_CHECKING:
    from kronos_qlib.plugin.workflows.execution import Plan


def add_arguments(parser: argparse.ArgumentParser) -> None:
    describe(
        parser,
        "Run a workflow on a market: render it with the market's profile, check it, say what it "
        "will do and about how long it takes, and hand it to Qlib's own qrun. A value is taken "
        "from --set, else from a KRONOS_ variable of the environment, else from the profile, else "
        "from the file.",
        "kronos-qlib run kronos_alpha",
        "kronos-qlib run lightgbm --market us --set provider_uri=data/mine --set topk=30",
        "kronos-qlib run my.yaml --market mine.yaml --dry-run",
    )
    add_workflow(parser)
    parser.set_defaults(command=run)


def run(arguments: argparse.Namespace) -> None:
    from kronos_qlib.plugin.workflows.execution import plan_run

    plan = plan_run(arguments.workflow, arguments.market, arguments.changes, arguments.fit_dates)
    carry_out(plan, dry_run=arguments.dry_run)


def add_workflow(parser: argparse.ArgumentParser) -> None:
    """The workflow, its market and dates, and whether to stop before the work."""
    parser.add_argument(
        "workflow",
        metavar="WORKFLOW",
        help="a name that `kronos-qlib workflow` lists, or a file as qrun takes it",
    )
    add_changes(parser)
    parser.add_argument(
        "--fit-dates",
        action="store_true",
        help="train on the first 60 %% of the days that the bars have, choose on the next 20, test "
        "on the last 20; a date given by --set wins",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="stop before the work, when all is checked"
    )


def carry_out(plan: Plan, *, dry_run: bool) -> None:
    """Say what a plan is going to do, and do it unless told otherwise."""
    from kronos_qlib.plugin.workflows.execution import run_plan

    width = max(len(name) for name, _ in plan.lines)
    for name, text in plan.lines:
        print(f"{name:{width}}  {text}")
    for note in plan.notes:
        print(f"note: {note}")
    if dry_run:
        print("dry run: nothing was trained or written")
        return
    sys.stdout.flush()  # before what Qlib logs
    run_id = run_plan(plan)
    ended = f", run {run_id[:8]}" if run_id else ""
    print(
        f"done: experiment {plan.experiment}{ended}; read signal_report/summary.md of it first, "
        f"or `kronos-qlib compare {plan.experiment}`"
    )
