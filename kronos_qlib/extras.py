"""Packages that only some of the work needs: their extras, and one error where one is missing.

    plotly = require("plotly.graph_objects", for_="the page of a comparison")

Code outside `training` gets them by `require` alone, inside the function that uses them: a plain
`pip install kronos-qlib` imports every module and forecasts. The modules of `webui` that are the
server, of the page or of MCP, are an extra as a whole: their commands check it first.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType

from kronos_qlib.errors import MissingDependencyError

EXTRAS: Mapping[str, tuple[str, ...]] = {
    "train": ("peft",),
    "members": ("index_constitution",),
    "akshare": ("akshare",),
    "baostock": ("baostock",),
    "yfinance": ("yfinance",),
    "ccxt": ("ccxt",),
    "report": ("arch", "empyrical", "plotly", "scoringrules", "statsmodels"),
    "web": ("defusedxml", "flask", "flask_openapi3", "openpyxl", "waitress"),
    "mcp": ("mcp",),
    "ray": ("ray",),
}
"""Extras of pyproject.toml and the modules that they bring, by the name one imports."""

SERVICES = ("akshare", "baostock", "yfinance", "ccxt")
"""Extras that `all` leaves out: services of which one takes one, if any."""


def require(module: str, *, for_: str) -> ModuleType:
    """Import a module of an extra.

    Args:
        module: such as "peft" or "plotly.graph_objects".
        for_: what it is needed for, as a message begins: "LoRA".

    Raises:
        MissingDependencyError: its package is not installed; names the extra and the command. Of a
            package that is there but broken its own error comes.
    """
    root = module.partition(".")[0]
    try:
        return import_module(module)
    except ModuleNotFoundError as missing:
        if (missing.name or "").partition(".")[0] != root:
            raise
        raise _missing([root], extra_of(root), for_) from missing


def check_extra(extra: str, *, for_: str) -> None:
    """Look whether all of an extra is installed, importing nothing: before work that ends in it.

    Raises:
        MissingDependencyError: names all that is missing.
    """
    missing = [root for root in EXTRAS[extra] if find_spec(root) is None]
    if missing:
        raise _missing(missing, extra, for_)


def extra_of(root: str) -> str:
    """The extra that brings a module: "train" of "peft"."""
    return next(extra for extra, roots in EXTRAS.items() if root in roots)


def _missing(roots: list[str], extra: str, for_: str) -> MissingDependencyError:
    what = "a package that is" if len(roots) == 1 else "packages that are"
    return MissingDependencyError(
        f"{for_} needs {what} not installed, {', '.join(roots)}: "
        f'pip install "kronos-qlib[{extra}]"',
        name=roots[0],
    )
