"""`kronos-qlib roll`: a workflow over the past, its model trained again as the days go on."""

from __future__ import annotations

import argparse

from kronos_qlib.cli.parsers import describe
from kronos_qlib.cli.run_command import add_workflow, carry_out


def add_arguments(parser: argparse.ArgumentParser) -> None:
    describe(
        parser,
        "Run a workflow as `kronos-qlib run` does, its model trained again every N trading days of "
        "the test segment: each training sees what was known by then and nothing that a label of "
        "the days it scores reaches into. One run in MLflow with the records of the workflow, for "
        "`kronos-qlib compare` beside the one that was never trained again. Finished trainings are "
        "kept: started again after a kill it does the missing ones.",
        "kronos-qlib roll kronos_alpha",
        "kronos-qlib roll lightgbm --every 60 --train sliding --set provider_uri=data/mine",
        "kronos-qlib roll my.yaml --start warm --retrain heads --dry-run",
    )
    add_workflow(parser)
    parser.add_argument(
        "--every", type=int, metavar="DAYS", help="trading days from one training to the next (20)"
    )
    parser.add_argument(
        "--train",
        choices=("expanding", "sliding"),
        help="whether the training segment keeps its beginning (expanding) or moves on as a whole",
    )
    parser.add_argument(
        "--start",
        "--from",
        choices=("anew", "warm"),
        help="where a training begins: as the workflow's (anew), or from the weights of the one "
        "before (warm)",
    )
    parser.add_argument(
        "--retrain",
        choices=("all", "heads"),
        help="all that the workflow trains, or after the first time alpha heads alone (all)",
    )
    parser.add_argument(
        "--experiment",
        metavar="NAME",
        help="the MLflow experiment's name (WORKFLOW's with _rolled)",
    )
    parser.add_argument(
        "--folder",
        metavar="FOLDER",
        help="where finished trainings and contexts are kept (rolls/EXPERIMENT); remove it to "
        "begin anew",
    )
    parser.set_defaults(command=roll)


def roll(arguments: argparse.Namespace) -> None:
    from kronos_qlib.plugin.rolling.retraining import RetrainConfig
    from kronos_qlib.plugin.rolling.rolled_workflow import RolledWorkflow
    from kronos_qlib.plugin.workflows.execution import plan_run
    from kronos_qlib.settings import from_mapping

    names = ("every", "train", "start", "retrain")
    given = {name: getattr(arguments, name) for name in names}
    how = from_mapping(
        RetrainConfig, {name: each for name, each in given.items() if each is not None}, "roll"
    )
    rolled = RolledWorkflow(how=how, experiment=arguments.experiment, folder=arguments.folder)
    carry_out(
        plan_run(
            arguments.workflow, arguments.market, arguments.changes, arguments.fit_dates, rolled
        ),
        dry_run=arguments.dry_run,
    )
