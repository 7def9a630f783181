"""Parsers of commands, each imported when its name is typed; arguments that commands share."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from kronos_qlib.errors import ConfigError
from kronos_qlib.log import quiet_gym


class LazyParser(argparse.ArgumentParser):
    """A subcommand's parser; the command's module is imported when its name was typed.

    The module has `add_arguments(parser)`, which describes the command, adds what it takes and
    sets `command`, a function of the parsed arguments that returns an exit code or None for 0.
    """

    def __init__(self, *, module: str, **kwargs: Any) -> None:
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, **kwargs)
        self.module: str | None = module
        add_debug(self)

    def parse_known_args(  # type: ignore[override]  # typeshed has overloads for the namespace
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> tuple[argparse.Namespace, list[str]]:
        if self.module is not None:
            module, self.module = self.module, None
            import_module(module).add_arguments(self)
        return super().parse_known_args(args, namespace)


def add_commands(parser: argparse.ArgumentParser, commands: Mapping[str, tuple[str, str]]) -> None:
    """Give a parser subcommands: the name of each, its line in --help, and its module."""
    chosen = parser.add_subparsers(
        title="commands", metavar="COMMAND", required=True, parser_class=LazyParser
    )
    for name, (line, module) in commands.items():
        chosen.add_parser(name, help=line, module=module)


def add_debug(parser: argparse.ArgumentParser) -> None:
    # No default of its own, or a subcommand's would overwrite what stood before its name.
    parser.add_argument(
        "--debug",
        action="store_true",
        default=argparse.SUPPRESS,
        help="show a failure's traceback",
    )


def describe(parser: argparse.ArgumentParser, description: str, *examples: str) -> None:
    """Say what a command does and how it is typed."""
    parser.description = description
    parser.epilog = "\n".join(["example:", *(f"  {example}" for example in examples)])


def add_changes(parser: argparse.ArgumentParser) -> None:
    """The market that a workflow is rendered for, and single values."""
    parser.add_argument(
        "--market",
        metavar="NAME_OR_FILE",
        help="a profile in place of the file's own market; `kronos-qlib workflow` lists them",
    )
    parser.add_argument(
        "--set",
        dest="changes",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="another value, in YAML: of a key of the profile (topk=30, test_end=2016-06-30), of a "
        "variable in lower case (paths=5), of the model (training.predictor.epochs=3), or of a "
        "path in the file (task.dataset.kwargs.min_bars=60); may be repeated",
    )


def add_tracking(parser: argparse.ArgumentParser) -> None:
    """The store that holds the runs."""
    parser.add_argument(
        "--tracking-uri",
        default=os.environ.get("KRONOS_MLFLOW_URI", "sqlite:///mlflow.db"),
        help="where MLflow keeps the runs (default: KRONOS_MLFLOW_URI, else sqlite:///mlflow.db)",
    )


def check_output(target: Path, overwrite: bool | None = None) -> None:
    """Refuse a file to write that is there or a folder, or whose folder is missing or read-only.

    Args:
        overwrite: whether it may be replaced; None where the command has no --overwrite.

    Raises:
        ConfigError: names the file or the folder.
    """
    if target.is_dir():
        raise ConfigError(f"{target} is a folder; name a file")
    if target.exists() and not overwrite:
        way = "" if overwrite is None else " or say --overwrite"
        raise ConfigError(f"{target} exists; name another file{way}")
    if not target.parent.is_dir():
        raise ConfigError(f"{target.parent} is no folder to write {target.name} in")
    if not os.access(target.parent, os.W_OK):
        raise ConfigError(f"{target.parent} is read-only: {target.name} cannot be written there")


def run_script(
    path: str, add_arguments: Callable[[argparse.ArgumentParser], None], argv: Sequence[str] | None
) -> int:
    """Run a command's arguments and function as a script of its own, such as those of data_prep.

    Args:
        path: how the script is called in its examples.

    Returns:
        The command's exit code; 2 for input or a setting that is bad.
    """
    quiet_gym()
    parser = argparse.ArgumentParser(
        prog=f"python {path}", formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_arguments(parser)
    chosen = parser.parse_args(argv)
    try:
        return chosen.command(chosen) or 0
    except chosen.bad_input as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 2
