"""`kronos-qlib ledger`: what was forecast before it came, verified and set beside what came."""

from __future__ import annotations

import argparse
from pathlib import Path

from kronos_qlib.cli.parsers import add_debug, check_output, describe

WHOLE, CHANGED = 0, 1
"""Exit codes of `verify`."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    describe(
        parser,
        "Verify the ledger of daily scores and orders, print its head, or report what came of it.",
        "kronos-qlib ledger head daily/ledger",
        "kronos-qlib ledger verify daily/ledger --head 42-5f…",
        "kronos-qlib ledger report daily/ledger --provider-uri data/mine --html live.html",
    )
    chosen = parser.add_subparsers(
        title="commands", metavar="COMMAND", required=True, parser_class=argparse.ArgumentParser
    )

    def command(name: str, line: str) -> argparse.ArgumentParser:
        made = chosen.add_parser(
            name, help=line, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        made.add_argument("ledger", type=Path, metavar="LEDGER", help="its folder")
        add_debug(made)
        return made

    verify = command("verify", "say where it was changed, cut or written anew")
    describe(
        verify,
        "Look at every byte of every entry, at the chain and at the index. Exit code 0 if all is "
        "as it was left, 1 if not. Who can write to the folder can also write all of it anew: keep "
        "a head elsewhere, and give it here.",
        "kronos-qlib ledger verify daily/ledger --head 42-5f…",
    )
    verify.add_argument("--head", help="a head that was kept elsewhere: number and digest")
    verify.set_defaults(command=_verify)
    head = command("head", "print number and hash of the newest entry")
    describe(
        head,
        "Print number and hash of the newest entry, to be kept elsewhere: in a mail, a commit.",
        "kronos-qlib ledger head daily/ledger",
    )
    head.set_defaults(command=_head)
    reindex = command("reindex", "make the index anew from the entries")
    describe(
        reindex,
        "Make the SQLite index anew from the entries' files. The old index stays beside it.",
        "kronos-qlib ledger reindex daily/ledger",
    )
    reindex.set_defaults(command=_reindex)
    report = command("report", "set what came beside what was promised")
    describe(
        report,
        "Join the entries with the bars that came: live IC, coverage and CRPS beside baselines, "
        "what orders would have earned after cost, each beside what the backtest promised, with "
        "intervals; and drift of scores and inputs.",
        "kronos-qlib ledger report daily/ledger --provider-uri data/mine",
        "kronos-qlib ledger report daily/ledger --provider-uri data/mine --html live.html",
    )
    report.add_argument(
        "--provider-uri", metavar="FOLDER", required=True, help="of the bars, as they are now"
    )
    report.add_argument(
        "--model-version", metavar="VERSION", help="whose days (that of the newest scores)"
    )
    report.add_argument("--head", help="a head that was kept elsewhere: number and digest")
    report.add_argument("--markdown", action="store_true", help="print Markdown tables")
    report.add_argument(
        "--html",
        type=Path,
        metavar="FILE",
        help="also write one page with curves, which loads nothing (5 MB)",
    )
    report.add_argument("--overwrite", action="store_true", help="replace an older page")
    report.set_defaults(command=_report)


def _verify(arguments: argparse.Namespace) -> int:
    from kronos_qlib.ledger.verification import verify

    found = verify(arguments.ledger, arguments.head)
    for fault in found.faults:
        print(f"{fault.what}: {fault.words}")
    for note in found.notes:
        print(f"note: {note}")
    if found.late:
        numbers = ", ".join(map(str, found.late))
        print(f"note: came after the market had opened: entries {numbers}")
    count = len(found.faults)
    faults = f"{count} fault{'s' if count != 1 else ''}"
    state = "as it was left" if found.is_whole else f"not as it was left: {faults}"
    entries = f"{found.entries} entr{'ies' if found.entries != 1 else 'y'}"
    print(f"{arguments.ledger}: {entries}, {state}; head {found.head}")
    if found.is_whole and arguments.head is None:
        print("note: without --head a ledger that was written anew as a whole looks whole")
    return WHOLE if found.is_whole else CHANGED


def _head(arguments: argparse.Namespace) -> None:
    from kronos_qlib.errors import ConfigError
    from kronos_qlib.ledger.ledger import Ledger

    if not arguments.ledger.is_dir():
        raise ConfigError(f"there is no ledger at {arguments.ledger}")
    print(Ledger(arguments.ledger).head())


def _reindex(arguments: argparse.Namespace) -> None:
    from kronos_qlib.errors import ConfigError
    from kronos_qlib.ledger.ledger import Ledger

    if not arguments.ledger.is_dir():
        raise ConfigError(f"there is no ledger at {arguments.ledger}")
    ledger = Ledger(arguments.ledger)
    aside = ledger.reindex()
    kept = "" if aside is None else f"; the old index is {aside}"
    print(f"{arguments.ledger}: an index of {len(ledger.entries())} entries{kept}")


def _report(arguments: argparse.Namespace) -> None:
    if arguments.html:
        from kronos_qlib.extras import check_extra

        check_extra("report", for_="the page of a report")  # before anything is read
        check_output(arguments.html, arguments.overwrite)
    from kronos_qlib.evaluation.live.live_text import live_text
    from kronos_qlib.plugin.live.live_report import live_report

    found = live_report(
        arguments.ledger,
        provider_uri=arguments.provider_uri,
        version=arguments.model_version,
        head=arguments.head,
    )
    print(live_text(found, markdown=arguments.markdown))
    if arguments.html:
        from kronos_qlib.evaluation.live.live_page import live_page

        arguments.html.write_text(live_page(found), encoding="utf-8")
        print(f"\nThe page is {arguments.html}")
