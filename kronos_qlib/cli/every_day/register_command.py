"""`kronos-qlib register`: a run's model as a registered one, the one in force."""

from __future__ import annotations

import argparse

from kronos_qlib.cli.parsers import add_tracking, describe


def add_arguments(parser: argparse.ArgumentParser) -> None:
    describe(
        parser,
        "Make the model of a finished run a version of a registered model in MLflow, and let an "
        "alias point to it. The version has its checkpoint, weights and settings in plain files: "
        "it scores without the workflow, here or by mlflow.pyfunc.load_model. What the backtest "
        "promised goes with it.",
        "kronos-qlib register kronos_alpha csi300",
        "kronos-qlib register 1f0c2a9b csi300 --alias candidate",
        "kronos-qlib register models:/csi300@candidate csi300    # a candidate, promoted by hand",
    )
    parser.add_argument(
        "run",
        metavar="RUN",
        help="an experiment's name, for its newest finished run; or the id of a run; or "
        "models:/NAME@ALIAS or models:/NAME/VERSION: a version that is there, for another alias",
    )
    parser.add_argument("name", metavar="NAME", help="of the registered model")
    parser.add_argument("--alias", default="champion", help="that scoring asks for (%(default)s)")
    parser.add_argument("--provider-uri", metavar="FOLDER", help="of the bars (the run's)")
    add_tracking(parser)
    parser.set_defaults(command=register)


def register(arguments: argparse.Namespace) -> None:
    from kronos_qlib.plugin.registry.registered_models import register as make_version

    version, notes = make_version(
        arguments.run,
        arguments.name,
        tracking_uri=arguments.tracking_uri,
        alias=arguments.alias,
        provider_uri=arguments.provider_uri,
    )
    for note in notes:
        print(f"note: {note}")
    print(
        f"run {version.run_id[:8]} is version {version.version} of {version.name}: "
        f"models:/{version.name}@{arguments.alias}"
    )
