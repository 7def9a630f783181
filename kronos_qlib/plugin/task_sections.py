"""Sections of a workflow's task, looked up without trusting their form: a task is as written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeGuard

from kronos_qlib.errors import ConfigError
from kronos_qlib.plugin.expressions import reach_of


def is_map(found: object) -> TypeGuard[Mapping[str, Any]]:
    """Whether it is a mapping."""
    return isinstance(found, Mapping)


def mapping_of(found: object) -> Mapping[str, Any]:
    """A section; {} where there is none, or something else stands in its place."""
    return found if isinstance(found, Mapping) else {}


def value_at(found: object, *keys: str) -> Any:
    """What a nested mapping holds under these keys; None where one of them is missing."""
    for key in keys:
        found = found.get(key) if isinstance(found, Mapping) else None
    return found


def class_of(section: object) -> str:
    """The class that a section names, without its module; "" where it names none."""
    return str(value_at(section, "class") or "").rpartition(".")[2]


def records_of(task: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The task's records; `<records.of_paths>` names, as to Qlib, a place in the task."""
    records: Any = task.get("record") or []
    if isinstance(records, str):
        records = value_at(task, *records.strip("<>").split(".")) or []
    records = [records] if isinstance(records, Mapping) else records
    return [one for one in records if is_map(one)] if isinstance(records, list | tuple) else []


def label_of(task: Mapping[str, Any]) -> str | None:
    """The expression of the task's label, the first if it has several; None if it names none."""
    found = value_at(task, "dataset", "kwargs", "handler", "kwargs", "label")
    while isinstance(found, list | tuple) and found:  # Alpha158 writes [[expressions], [names]]
        found = found[0]
    return found if isinstance(found, str) else None


def freq_of(task: Mapping[str, Any]) -> str:
    """The frequency of the bars that the task's handler reads; "day" where it names none."""
    return str(value_at(task, "dataset", "kwargs", "handler", "kwargs", "freq") or "day")


def label_bars_of(task: Mapping[str, Any]) -> int:
    """Bars that the label's return runs over, see `Reach.bars`.

    1, as of Qlib's usual label, where the task names none or no expression.
    """
    try:
        return reach_of(label_of(task) or "0").bars
    except ConfigError:
        return 1
