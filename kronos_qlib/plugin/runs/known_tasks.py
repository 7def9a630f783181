"""Which tasks of a run are made again: those that name nothing but classes and expressions we know.

A task names classes by text, Qlib imports what it names, and evaluates expressions as Python. Of a
run that somebody else may have written it is a program; checked here, it can only be a model, a
data set and a handler that are known, on expressions of Qlib's operators.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from kronos_qlib.errors import UnsafeArtifactError, printable
from kronos_qlib.plugin.expressions import is_expression

_PROCESSORS = (
    "DropnaProcessor",
    "DropnaLabel",
    "DropCol",
    "FilterCol",
    "TanhProcess",
    "ProcessInf",
    "Fillna",
    "MinMaxNorm",
    "ZScoreNorm",
    "RobustZScoreNorm",
    "CSZScoreNorm",
    "CSRankNorm",
    "CSZFillna",
    "HashStockFormat",
)
KNOWN: Mapping[str, str] = {
    "KronosModel": "kronos_qlib.plugin.model",
    "BaselineModel": "kronos_qlib.plugin.baselines",
    "GRUModel": "kronos_qlib.plugin.baselines",
    "BlendModel": "kronos_qlib.plugin.blend",
    "LGBModel": "qlib.contrib.model.gbdt",
    "LinearModel": "qlib.contrib.model.linear",
    "KronosDataset": "kronos_qlib.plugin.dataset",
    "KronosFeatureDataset": "kronos_qlib.plugin.features",
    "DatasetH": "qlib.data.dataset",
    "KronosHandler": "kronos_qlib.plugin.dataset",
    "Alpha158": "qlib.contrib.data.handler",
    "Alpha158vwap": "qlib.contrib.data.handler",
    "Alpha360": "qlib.contrib.data.handler",
    "Alpha360vwap": "qlib.contrib.data.handler",
    "NameDFilter": "qlib.data.filter",
    "ExpressionDFilter": "qlib.data.filter",
    **dict.fromkeys(_PROCESSORS, "qlib.data.dataset.processor"),
}
"""Classes that only read bars and compute, and the module of each."""

_MADE = ("model", "dataset", "handler", "data_loader")
"""Settings that are made into objects: Qlib takes a text there for a class, or unpickles a file."""
_PATHS = (
    "checkpoint",
    "tokenizer",
    "alpha_head",
    "weights",
    "resume_folder",
    "contexts_folder",
    "file",
)


def check_known(task: Mapping[str, Any]) -> None:
    """
    Raises:
        UnsafeArtifactError: its model or data set names something else; says what.
    """
    for section in ("model", "dataset"):
        _check(task.get(section), section)


def _check(value: Any, key: str) -> None:
    if isinstance(value, Mapping):
        if "class" in value or "func" in value or "module_path" in value:
            _check_class(value, key)
        for name, inner in value.items():
            _check(inner, str(name))
    elif isinstance(value, list | tuple):
        for inner in value:
            _check(inner, key)
    elif isinstance(value, str):
        if key.endswith("processors") and value not in _PROCESSORS:
            raise _refusal(f"the processor {value!r}")
        if key in _MADE or "://" in value:
            raise _refusal(f"{key} {value!r}")
        if key not in _PATHS and re.search(r"[($]", value) and not is_expression(value):
            raise _refusal(f"{key} {value!r}, which is no expression of Qlib's operators")


def _check_class(config: Mapping[str, Any], key: str) -> None:
    name = config.get("class")
    known = KNOWN.get(name) if isinstance(name, str) else None
    module = config.get("module_path", known if key.endswith("processors") else None)
    if known is None or module != known or "func" in config:
        raise _refusal(f"the class {config.get('module_path')}.{name}")


def _refusal(what: str) -> UnsafeArtifactError:
    return UnsafeArtifactError(
        f"the run's task names {printable(what)[:300]}, which is not on the list of what is made "
        "again unasked, since it may run what its writer likes. If the run is your own, say --trust"
    )
