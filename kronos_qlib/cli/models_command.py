"""`kronos-qlib models`: which checkpoints have a short name, and which are here already."""

from __future__ import annotations

import argparse

from kronos_qlib.cli.parsers import describe


def add_arguments(parser: argparse.ArgumentParser) -> None:
    describe(
        parser,
        "List the checkpoints that have a short name: bundled with the package, cached on this "
        "machine (HF_HOME says where), or available from the Hugging Face Hub, from which they "
        "are fetched when first used. Asks no network. A folder or any Hub id will do as well "
        "wherever a name is taken.",
        "kronos-qlib models",
    )
    parser.set_defaults(command=models)


def models(arguments: argparse.Namespace) -> None:
    from kronos_qlib.evaluation.text_table import format_rows
    from kronos_qlib.model.checkpoints.catalogue import known_models

    rows = [["", "parameters", "context", "revision", "state", "where"]]
    for each in known_models():
        pinned = each.revision[:8] if each.revision else "newest"
        rows.append(
            [
                each.alias,
                f"{each.parameters / 1e6:.1f} M",
                f"{each.max_context} bars",
                "-" if each.state == "bundled" else pinned,
                each.state,
                str(each.folder or f"{each.predictor}, {each.tokenizer}"),
            ]
        )
    print(format_rows(rows))
