"""The workflows and market profiles that come with the package: where they are, what each is."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path

from kronos_qlib.errors import ConfigError, printable

BASE_FILE = "workflow_base.yaml"
PREFIX, SUFFIX = "workflow_", ".yaml"
WORKFLOW, MARKET = "workflow", "market"
SUFFIXES = (".yaml", ".yml")


def shipped_folder() -> Path:
    """The folder of the workflow files: inside the installed package, or the clone's own.

    Raises:
        ConfigError: neither is there, so the installation is broken.
    """
    package = Path(__file__).parents[2]
    # A wheel has it inside; of a clone it lies beside the package.
    for folder in (package / "workflows", package.parent / "workflows"):
        if (folder / BASE_FILE).is_file():
            return folder
    raise ConfigError(
        f"the workflow files are neither in {package} nor beside it: install the package anew"
    )


def workflows() -> Mapping[str, Path]:
    """The shipped workflows by name, `kronos` being `workflow_kronos.yaml`; the base is none."""
    found = sorted(shipped_folder().glob(f"{PREFIX}*{SUFFIX}"))
    return {path.stem.removeprefix(PREFIX): path for path in found if path.name != BASE_FILE}


def markets() -> Mapping[str, Path]:
    """The shipped market profiles by name."""
    return {path.stem: path for path in sorted((shipped_folder() / "markets").glob(f"*{SUFFIX}"))}


def find_workflow(name: str | Path) -> Path:
    """A workflow's file, by a shipped name or a path.

    Raises:
        ConfigError: there is no such name or file; names the nearest.
    """
    return _find(str(name), workflows(), WORKFLOW)


def find_market(name: str | Path) -> Path:
    """A market profile's file, by a shipped name or a path.

    Raises:
        ConfigError: there is no such name or file; names the nearest.
    """
    return _find(str(name), markets(), MARKET)


def first_line(path: Path) -> str:
    """What a file is, by the sentence that it begins with."""
    text = path.read_text(encoding="utf-8")
    return text.partition("\n")[0].removeprefix("#").strip()


def _find(name: str, shipped: Mapping[str, Path], what: str) -> Path:
    if name in shipped:
        return shipped[name]
    path = Path(name).expanduser()
    if path.is_file():
        return path
    if path.is_dir():
        raise ConfigError(f"{printable(name)} is a folder, not the file of a {what}")
    known = f"the {what}s that come with the package: {', '.join(shipped)}"
    if path.suffix in SUFFIXES or len(path.parts) > 1:
        raise ConfigError(f"there is no file {path.absolute()}; {known}")
    near = get_close_matches(name.removeprefix(PREFIX), shipped, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise ConfigError(
        f"there is no {what} {printable(name)!r}; {hint}{known[0].upper()}{known[1:]}; a file of "
        "one's own is named by its path"
    )
