"""`kronos-qlib finetune`: train what a workflow file asks for, without a backtest."""

from __future__ import annotations

import argparse

from kronos_qlib.cli.parsers import add_changes, describe


def add_arguments(parser: argparse.ArgumentParser) -> None:
    describe(
        parser,
        "Train what task.model of a workflow file asks for, on its task.dataset, and save the "
        "weights; no backtest. The same command on several devices or machines, begun by "
        "torchrun.",
        "kronos-qlib finetune workflows/workflow_kronos.yaml --out tuned",
        "kronos-qlib finetune my.yaml --out tuned --set training.predictor.epochs=3",
        "torchrun --nproc-per-node 2 -m kronos_qlib.cli finetune my.yaml --out tuned",
    )
    parser.add_argument(
        "config", metavar="WORKFLOW", help="a file as qrun takes it, or a name as of run"
    )
    parser.add_argument("--out", required=True, metavar="FOLDER", help="for the weights")
    add_changes(parser)
    parser.set_defaults(command=finetune)


def finetune(arguments: argparse.Namespace) -> None:
    import logging

    from kronos_qlib.plugin.workflows.training_only import finetune as run
    from kronos_qlib.training.parallel.distributed import process_rank

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    history = run(arguments.config, arguments.out, arguments.changes, arguments.market)
    if process_rank() == 0:
        for stage, rows in history.items():
            best = min(rows, key=lambda row: row["valid_loss"])
            epochs = rows[-1]["epoch"]
            print(
                f"{stage}: validation loss {rows[0]['valid_loss']:.5f} before, lowest "
                f"{best['valid_loss']:.5f} after epoch {best['epoch']:.0f} of {epochs:.0f}"
            )
        print(f"saved in {arguments.out}")
