"""`kronos-qlib mcp`: forecasts, rankings and comparisons for programs that speak MCP."""

from __future__ import annotations

import argparse

from kronos_qlib.cli.parsers import describe
from kronos_qlib.cli.web_command import add_places, check_places, places_of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    describe(
        parser,
        "Serve the Model Context Protocol by standard input and output, as a client starts it: the "
        "tools forecast, rank, compare and models, over the same service as kronos-qlib web. It "
        "listens to no network.",
        "kronos-qlib mcp --data demo/market",
    )
    add_places(parser)
    parser.add_argument("--device", help="a torch device (CUDA, Apple's or the CPU, as found)")
    parser.set_defaults(command=mcp)


def mcp(arguments: argparse.Namespace) -> None:
    check_places(arguments)
    from kronos_qlib.extras import check_extra

    check_extra("mcp", for_="the MCP server")
    from kronos_qlib.webui.mcp_server import run
    from kronos_qlib.webui.service import Service

    service = Service(places_of(arguments), arguments.device)
    service.warm()
    run(service)
