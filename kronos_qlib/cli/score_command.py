"""`kronos-qlib score`: the newest day, ranked by the model of a finished run."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kronos_qlib.cli.parsers import add_tracking, check_output, describe
from kronos_qlib.errors import ConfigError

if TYPE_CHECKING:
    from kronos_qlib.plugin.runs.newest_day import OpenedDay


def add_arguments(parser: argparse.ArgumentParser) -> None:
    describe(
        parser,
        "Score the newest day of a Qlib folder with the model of a finished run, as a backtest "
        "over that day would: bit for bit. Prints the ranking with the age of each name's bars and "
        "writes it as CSV. Nothing of the run is unpickled.",
        "kronos-qlib score kronos_alpha --top 20",
        "kronos-qlib score 1f0c2a9b --provider-uri data/mine --out today.csv",
        "kronos-qlib score kronos_alpha --why SH600519",
        "kronos-qlib score models:/csi300@champion --provider-uri data/mine",
    )
    parser.add_argument(
        "run",
        metavar="RUN",
        help="an experiment's name, for its newest finished run; the id of a run; or a registered "
        "model, models:/NAME@ALIAS",
    )
    parser.add_argument(
        "--top", type=int, default=20, help="names, or inputs, that are printed (%(default)s)"
    )
    parser.add_argument(
        "--out",
        type=Path,
        help="all names, as CSV (score.csv); with --why every input of the name",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an older file")
    parser.add_argument(
        "--why",
        metavar="INSTRUMENT",
        help="say in place of the ranking what put this name where it stands: what each input of "
        "an alpha head, or each column of LightGBM, added to its score. Without --out no file "
        "is written",
    )
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
    out = arguments.out
    if out is None and arguments.why is None:
        out = Path("score.csv")
    if out is not None:
        check_output(out, arguments.overwrite)
    with _opened(arguments) as (opened, whose):
        if arguments.why is None:
            assert out is not None
            _print_ranking(opened, whose, arguments.top, out)
        else:
            _print_reasons(opened, whose, arguments.why, arguments.top, out)


@contextmanager
def _opened(arguments: argparse.Namespace) -> Iterator[tuple[OpenedDay, str]]:
    """What is scored, and whose it is in words."""
    asked: dict[str, Any] = {
        "tracking_uri": arguments.tracking_uri,
        "provider_uri": arguments.provider_uri,
        "day": arguments.day,
        "beyond_calendar": arguments.beyond_calendar,
        "trust": arguments.trust,
    }
    if arguments.run.startswith("models:/"):
        from kronos_qlib.plugin.registry.newest_scores import open_registered

        with open_registered(arguments.run, **asked) as registered:
            yield registered, f"{registered.name}, version {registered.version}"
        return
    from kronos_qlib.plugin.runs.newest_day import open_run

    run = open_run(arguments.run, **asked)
    yield run, f"{run.experiment}, run {run.run_id[:8]}"


def _print_ranking(opened: OpenedDay, whose: str, top: int, out: Path) -> None:
    from kronos_qlib.data.calendar.time_text import show_time
    from kronos_qlib.evaluation.text_table import format_rows
    from kronos_qlib.plugin.runs.newest_day import score_opened

    found = score_opened(opened)
    found.table.to_csv(out, index=False, lineterminator="\n")
    rows = [["", "instrument", "score", "last bar", "days old"]]
    for row in found.table.head(top).itertuples():
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
    for note in found.notes:
        print(f"note: {note}")
    print(f"{whose}: {len(found.table)} names scored on {show_time(found.day)}, in {out}")


def _print_reasons(
    opened: OpenedDay, whose: str, instrument: str, top: int, out: Path | None
) -> None:
    from kronos_qlib.plugin.explain.reasons import reasons_of
    from kronos_qlib.plugin.explain.reasons_text import reasons_table, reasons_text

    found = reasons_of(opened.model, opened.dataset, instrument, opened.day)
    print(reasons_text(found, top=top))
    print(whose)
    if out is not None:
        reasons_table(found).to_csv(out, index=False, lineterminator="\n")
        print(f"every input is in {out}")
