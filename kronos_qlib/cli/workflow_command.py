"""`kronos-qlib workflow`: what there is to run, and each as a file of one's own."""

from __future__ import annotations

import argparse
from pathlib import Path

from kronos_qlib.cli.parsers import check_output, describe


def add_arguments(parser: argparse.ArgumentParser) -> None:
    describe(
        parser,
        "List the workflows and market profiles that come with the package; or print one to keep "
        "and change: a workflow that needs no other file beside it, with its KRONOS_ variables, "
        "or, with --market, with that market's values in their places; or a market's profile.",
        "kronos-qlib workflow",
        "kronos-qlib workflow kronos_alpha > my.yaml",
        "kronos-qlib workflow kronos_alpha --market us --out my.yaml",
        "kronos-qlib workflow --market us > mine.yaml",
    )
    parser.add_argument("name", nargs="?", metavar="NAME", help="a workflow; or a file of one")
    parser.add_argument("--market", metavar="NAME_OR_FILE", help="a profile to fill in, or print")
    parser.add_argument(
        "--set",
        dest="changes",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="another value for a key of the market's profile; may be repeated",
    )
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="write it there instead of printing it"
    )
    parser.set_defaults(command=workflow)


def workflow(arguments: argparse.Namespace) -> None:
    from kronos_qlib.errors import ConfigError
    from kronos_qlib.plugin.workflows.shipped import find_market, first_line, markets, workflows

    if arguments.name is not None:
        from kronos_qlib.plugin.workflows.workflow_copy import own_workflow

        text = own_workflow(arguments.name, arguments.market, arguments.changes)
    elif arguments.market is not None:
        text = find_market(arguments.market).read_text(encoding="utf-8")
    else:
        if arguments.out is not None:
            raise ConfigError("--out takes one workflow or market; name it")
        for title, shipped in (("workflows", workflows()), ("markets", markets())):
            print(f"{title}:")
            width = max(map(len, shipped))
            for name, path in shipped.items():
                print(f"  {name:{width}}  {first_line(path)}")
        return
    if arguments.out is None:
        print(text, end="")
        return
    check_output(arguments.out)
    arguments.out.write_text(text, encoding="utf-8", newline="\n")
    print(
        f"{arguments.out}: run it with `kronos-qlib run` or `qrun`, in the folder that its "
        "relative paths begin from"
    )
