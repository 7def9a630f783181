"""`kronos-qlib compare`: finished runs side by side."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from kronos_qlib.cli.parsers import add_tracking, describe


def add_arguments(parser: argparse.ArgumentParser) -> None:
    describe(
        parser,
        "Set the latest finished run of each MLflow experiment side by side: metrics, paired tests "
        "of the daily Rank IC, correlation of the signals, what a blend adds.",
        "kronos-qlib compare --tracking-uri sqlite:///mlflow.db kronos lightgbm",
        "kronos-qlib compare kronos lightgbm --html comparison.html",
        "kronos-qlib compare kronos --run 1f0c2a9b --markdown",
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
    add_tracking(parser)
    parser.add_argument("--markdown", action="store_true", help="print Markdown tables")
    parser.add_argument(
        "--html",
        type=Path,
        metavar="FILE",
        help="also write one page with curves, tests and settings, which loads nothing (5 MB)",
    )
    parser.set_defaults(command=compare)


def compare(arguments: argparse.Namespace) -> None:
    # No progress bar for every small file of every run.
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    from kronos_qlib.evaluation.compare.comparison_text import comparison_text
    from kronos_qlib.extras import check_extra
    from kronos_qlib.plugin.runs.run_comparison import compare as compare_all

    check_extra("report", for_="a comparison of runs")  # before they are read
    found = compare_all(
        arguments.experiments, tracking_uri=arguments.tracking_uri, run_ids=arguments.run_ids
    )
    print(comparison_text(found, markdown=arguments.markdown))
    if arguments.html:
        from kronos_qlib.evaluation.compare.page import comparison_page

        arguments.html.parent.mkdir(parents=True, exist_ok=True)
        arguments.html.write_text(comparison_page(found), encoding="utf-8")
        print(f"\nThe page is {arguments.html}")
    print(f"\nTo look closer: mlflow ui --backend-store-uri {arguments.tracking_uri}")
