"""`kronos-qlib score`: the newest day, ranked by the model of a finished run."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from kronos_qlib.cli.parsers import add_tracking, check_output, describe
from kronos_qlib.errors import ConfigError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    describe(
        parser,
        "Score the newest day of a Qlib folder with the model of a finished run, as a backtest "
        "over that day would: bit for bit. Prints the ranking with the age of each name's bars and "
        "writes it as CSV. Nothing of the run is unpickled.",
        "kronos-qlib score kronos_alpha --top 20",
        "kronos-qlib score 1f0c2a9b --provider-uri data/mine --out today.csv",
        "kronos-qlib score models:/csi300@champion --provider-uri data/mine",
    )
    parser.add_argument(
        "run",
        metavar="RUN",
        help="an experiment's name, for its newest finished run; the id of a run; or a registered "
        "model, models:/NAME@ALIAS",
    )
    parser.add_argument("--top", type=int, default=20, help="names printed (%(default)s)")
    parser.add_argument(
        "--out", type=Path, default=Path("score.csv"), help="all names, as CSV (%(default)s)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an older file")
    parser.add_argument("--day", help="another day than the newest")
    parser.add_argument("--provider-uri", metavar="FOLDER", help="of the bars (the run's)")
    parser.add_argument(
        "--beyond-calendar",
        metavar="RULE",
        help="whose days follow where the folder's calendar ends: XSHG, XNYS, pattern, weekdays "
        "(the run's); needed by scores from paths",
    )
    parser.add_argument(
        "--trust",
        action="store_true",
        help="run what the run's files say, pickles among them: for runs of your own alone",
    )
    add_tracking(parser)
    parser.set_defaults(command=score)


def score(arguments: argparse.Namespace) -> None:
    if arguments.top < 1:
        raise ConfigError(f"--top must be at least 1, got {arguments.top}")
    check_output(arguments.out, arguments.overwrite)
    from kronos_qlib.data.calendar.time_text import show_time
    from kronos_qlib.evaluation.text_table import format_rows

    asked: dict[str, Any] = {
        "tracking_uri": arguments.tracking_uri,
        "provider_uri": arguments.provider_uri,
        "day": arguments.day,
        "beyond_calendar": arguments.beyond_calendar,
        "trust": arguments.trust,
    }
    if arguments.run.startswith("models:/"):
        from kronos_qlib.plugin.registry.newest_scores import newest_scores

        scored = newest_scores(arguments.run, quantiles=None, **asked)
        day, table, notes = scored.day, scored.ranking, scored.notes
        who = f"{scored.model}, version {scored.version}"
    else:
        from kronos_qlib.plugin.runs.newest_day import score_newest

        found = score_newest(arguments.run, **asked)
        day, table, notes = found.day, found.table, found.notes
        who = f"{found.experiment}, run {found.run_id[:8]}"
    table.to_csv(arguments.out, index=False, lineterminator="\n")
    rows = [["", "instrument", "score", "last bar", "days old"]]
    for row in table.head(arguments.top).itertuples():
        rows.append(
            [
                str(row.rank),
                str(row.instrument),
                f"{row.score:.6g}",
                show_time(row.last_bar),
                str(row.age_days),
            ]
        )
    print(format_rows(rows))
    for note in notes:
        print(f"note: {note}")
    print(f"{who}: {len(table)} names scored on {show_time(day)}, in {arguments.out}")
