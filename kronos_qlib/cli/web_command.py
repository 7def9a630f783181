"""`kronos-qlib web`: a local page to forecast, look at runs, and keep forecasts."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from kronos_qlib.cli.parsers import add_tracking, describe
from kronos_qlib.errors import ConfigError

if TYPE_CHECKING:
    from kronos_qlib.webui.service import Places


def add_arguments(parser: argparse.ArgumentParser) -> None:
    describe(
        parser,
        "Open a page in the browser: forecasts with their bands, how far they have been right, "
        "rankings, runs side by side, kept forecasts. It is served by this machine, to this "
        "machine alone unless --host and --token say otherwise, and loads nothing from a network. "
        "Its HTTP API is described at /openapi/openapi.json.",
        "kronos-qlib web --data demo/market",
        "kronos-qlib web --checkpoints models --store forecasts --no-browser",
    )
    parser.add_argument("--port", type=int, default=8000, help="(%(default)s; 0 takes a free one)")
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="the address to serve (%(default)s: this machine alone); another needs --token",
    )
    parser.add_argument(
        "--token",
        help="16 letters or more that requests must carry, as ?token= once or as Authorization: "
        "Bearer; the connection is not encrypted",
    )
    add_places(parser)
    parser.add_argument("--device", help="a torch device (CUDA, Apple's or the CPU, as found)")
    parser.add_argument("--no-browser", action="store_true", help="print the address alone")
    parser.set_defaults(command=web)


def add_places(parser: argparse.ArgumentParser) -> None:
    """Where the owner's data are: of the page and of the MCP server."""
    parser.add_argument(
        "--data", type=Path, metavar="QLIB_FOLDER", help="whose instruments may be forecast"
    )
    parser.add_argument(
        "--checkpoints",
        type=Path,
        metavar="FOLDER",
        help="whose folders are checkpoints that may be asked for, beside those of kronos-qlib "
        "models",
    )
    parser.add_argument(
        "--store",
        type=Path,
        metavar="FOLDER",
        default=Path("kronos_forecasts"),
        help="of kept forecasts, a JSON each (%(default)s; made with the first)",
    )
    add_tracking(parser)


def web(arguments: argparse.Namespace) -> None:
    check_places(arguments)
    from kronos_qlib.extras import check_extra

    check_extra("web", for_="the page")
    from kronos_qlib.webui.serving import ServerSettings, serve

    settings = ServerSettings(
        host=arguments.host,
        port=arguments.port,
        token=arguments.token,
        opens_browser=not arguments.no_browser,
        device=arguments.device,
    )

    def ready(address: str) -> None:
        print(f"{address}\nCtrl-C ends it", flush=True)

    serve(settings, places_of(arguments), ready)


def check_places(arguments: argparse.Namespace) -> None:
    """Refuse folders that are not there, before anything is imported.

    Raises:
        ConfigError: names the option.
    """
    for name in ("data", "checkpoints"):
        folder: Path | None = getattr(arguments, name)
        if folder is not None and not folder.is_dir():
            raise ConfigError(f"--{name} {folder}: there is no such folder")
    if arguments.data is not None and not (arguments.data / "calendars").is_dir():
        raise ConfigError(
            f"--data {arguments.data} is no Qlib folder: it has no calendars/; `kronos-qlib data "
            "convert` writes one from files, `kronos-qlib data demo` simulates one"
        )
    if arguments.store.exists() and not arguments.store.is_dir():
        raise ConfigError(f"--store {arguments.store} is a file; name a folder")


def places_of(arguments: argparse.Namespace) -> Places:
    """`Places` of the arguments."""
    from kronos_qlib.webui.service import Places

    return Places(
        data=arguments.data,
        checkpoints=arguments.checkpoints,
        store=arguments.store,
        tracking_uri=arguments.tracking_uri,
    )
