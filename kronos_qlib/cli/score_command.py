"""`kronos-qlib score`: the newest day, ranked by the model of a finished run; or a span of days."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kronos_qlib.cli.parsers import add_changes, add_tracking, check_output, describe
from kronos_qlib.errors import ConfigError

if TYPE_CHECKING:
    from kronos_qlib.pipeline.block_jobs.run_blocks import JobResult
    from kronos_qlib.plugin.runs.newest_day import OpenedDay
    from kronos_qlib.plugin.scoring_jobs.backend_settings import BackendConfig


def add_arguments(parser: argparse.ArgumentParser) -> None:
    describe(
        parser,
        "Score the newest day of a Qlib folder with the model of a finished run, as a backtest "
        "over that day would: bit for bit. Prints the ranking with the age of each name's bars and "
        "writes it as CSV. Nothing of the run is unpickled. With --backend a span of days is "
        "scored in blocks into a folder, on this machine or a cluster; the same command goes on "
        "with what was stopped.",
        "kronos-qlib score kronos_alpha --top 20",
        "kronos-qlib score 1f0c2a9b --provider-uri data/mine --out today.csv",
        "kronos-qlib score kronos_alpha --why SH600519",
        "kronos-qlib score models:/csi300@champion --provider-uri data/mine",
        "kronos-qlib score kronos_alpha --backend ray --from 2015-01-01 --to 2024-12-31 "
        "--out scores",
        "kronos-qlib score my.yaml --backend ray --address auto --what paths --out /shared/paths",
        "kronos-qlib score my.yaml --backend ray --sweep task.dataset.kwargs.lookback=60,90 "
        "--sweep seed=0,1,2 --out sweep",
    )
    parser.add_argument(
        "run",
        metavar="RUN",
        help="an experiment's name, for its newest finished run; the id of a run; a registered "
        "model, models:/NAME@ALIAS; or with --backend the file of a workflow whose model needs no "
        "training",
    )
    parser.add_argument(
        "--top", type=int, default=20, help="names, or inputs, that are printed (%(default)s)"
    )
    parser.add_argument(
        "--out",
        type=Path,
        help="all names, as CSV (score.csv); with --why every input of the name; with --backend "
        "the folder of the job",
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
    _add_span(parser)
    parser.set_defaults(command=score)


def _add_span(parser: argparse.ArgumentParser) -> None:
    span = parser.add_argument_group("a span of days")
    span.add_argument(
        "--backend",
        choices=("local", "ray"),
        help="score a span in blocks: one after another here, or by workers of Ray, which needs "
        "the extra ray",
    )
    span.add_argument(
        "--sweep",
        metavar="KEY=A,B,C",
        action="append",
        default=[],
        help="run a workflow at every combination of settings, keys as of --set (seed=0,1,2); may "
        "be repeated. Each is a run in MLflow with its records, as of `kronos-qlib run`, and a "
        "start that was stopped goes on",
    )
    span.add_argument("--from", dest="first", metavar="DAY", help="first day (the test segment's)")
    span.add_argument("--to", dest="last", metavar="DAY", help="last day (the test segment's)")
    span.add_argument(
        "--what",
        choices=("scores", "signals", "contexts", "paths"),
        help="what is kept of each window (scores); signals are all that the model keeps beside "
        "its score, contexts and paths are Kronos' own",
    )
    span.add_argument(
        "--moments",
        type=int,
        metavar="N",
        help="days of a block, or times of bars of minutes (5; more for smoothed scores)",
    )
    span.add_argument(
        "--threads",
        type=int,
        metavar="N",
        help="of a CPU that batches are planned for (this machine's): scores agree to the last bit "
        "among all that were planned alike",
    )
    span.add_argument(
        "--address", help="of a Ray cluster, or auto; without it Ray is begun on this machine"
    )
    span.add_argument("--workers", type=int, metavar="N", help="of Ray (as many as there is room)")
    span.add_argument(
        "--cpus-per-worker", type=int, metavar="N", help="CPUs of each, and its threads (1)"
    )
    span.add_argument(
        "--gpus-per-worker", type=float, metavar="X", help="GPUs of each: 0.5 puts two on one (0)"
    )
    add_changes(parser)


NEWEST = ("why", "day", "overwrite")
SPAN = ("sweep", "first", "last", "what", "moments", "threads", "market", "changes")
RAY = ("address", "workers", "cpus_per_worker", "gpus_per_worker")
OPTIONS = {"first": "from", "last": "to", "changes": "set"}
"""Options whose names here are others."""


def score(arguments: argparse.Namespace) -> int:
    """Exit code 1 where blocks failed."""
    if arguments.backend is not None:
        _refuse(arguments, NEWEST, "the newest day's: leave --backend out")
        if arguments.backend != "ray":
            _refuse(arguments, RAY, "of --backend ray")
        return _score_span(arguments)
    _refuse(arguments, (*SPAN, *RAY), "of a span: say --backend local or --backend ray")
    _score_newest(arguments)
    return 0


def _refuse(arguments: argparse.Namespace, names: Sequence[str], why: str) -> None:
    given = [name for name in names if getattr(arguments, name) not in (None, False, [])]
    if given:
        shown = ", ".join("--" + OPTIONS.get(name, name).replace("_", "-") for name in given)
        raise ConfigError(f"{shown}: {why}")


def _score_span(arguments: argparse.Namespace) -> int:
    from kronos_qlib.plugin.scoring_jobs.backend_settings import BackendConfig
    from kronos_qlib.plugin.scoring_jobs.score_span import score_span

    if arguments.out is None:
        raise ConfigError("a span of days needs --out FOLDER, where its blocks are kept")
    for name in ("moments", "threads"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            raise ConfigError(f"--{name} must be at least 1, got {value}")
    given = {name: getattr(arguments, name) for name in RAY if getattr(arguments, name) is not None}
    how = BackendConfig(name=arguments.backend, folder=str(arguments.out), **given)
    how.check_packages()
    if arguments.sweep:
        return _sweep(arguments, how)
    found = score_span(
        arguments.run,
        arguments.out,
        tracking_uri=arguments.tracking_uri,
        what=arguments.what or "scores",
        backend=how.make(),
        first=arguments.first,
        last=arguments.last,
        moments=arguments.moments,
        threads=arguments.threads,
        provider_uri=arguments.provider_uri,
        beyond_calendar=arguments.beyond_calendar,
        market=arguments.market,
        changes=arguments.changes,
        trust=arguments.trust,
        show_progress=True,
        report=lambda line: print(line, file=sys.stderr, flush=True),
    )
    result = found.result
    done = result.blocks - len(result.failed)
    print(
        f"{found.whose}: {result.rows:,} rows from {found.first:%Y-%m-%d} to "
        f"{found.last:%Y-%m-%d}, {done} of {result.blocks} blocks ({result.new} of them now, in "
        f"{result.seconds:.0f} seconds), in {arguments.out}"
    )
    return _failures(result)


def _sweep(arguments: argparse.Namespace, how: BackendConfig) -> int:
    from kronos_qlib.plugin.scoring_jobs.sweep import run_sweep

    none = ("first", "last", "what", "threads", "provider_uri", "beyond_calendar", "trust")
    _refuse(arguments, none, "a sweep runs a workflow as it is: --set changes it")
    result = run_sweep(
        arguments.run,
        arguments.sweep,
        arguments.out,
        backend=replace(how, moments=arguments.moments),
        market=arguments.market,
        changes=arguments.changes,
        report=print,
    )
    done = result.blocks - len(result.failed)
    print(f"{done} of {result.blocks} runs done ({result.new} of them now), in {arguments.out}")
    return _failures(result)


def _failures(result: JobResult) -> int:
    """Name what failed; the exit code."""
    for name, why in result.failed.items():
        print(f"failed: {name}: {why}", file=sys.stderr)
    if result.failed:
        print("the same command tries these alone", file=sys.stderr)
    return 1 if result.failed else 0


def _score_newest(arguments: argparse.Namespace) -> None:
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
