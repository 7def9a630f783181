"""What a workflow's task can be refused for before any of its work is done."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qlib.utils import fill_placeholder
from qlib.utils.mod import get_callable_kwargs

from kronos_qlib.errors import ConfigError, shown
from kronos_qlib.extras import check_extra


def check_task(task: Mapping[str, Any]) -> None:
    """Look whether every record of a task is there, and what its work needs is installed.

    Qlib makes records after the model is trained: hours, and then a missing package.

    Raises:
        ConfigError: a record's class is not to be found.
        MissingDependencyError: it needs an extra (its class says which in `needs_extra`) that is
            not installed, or the model is to be trained without the extra "train".
    """
    if _is_trained(task.get("model")):
        check_extra("train", for_="training")
    for record in records_of(task):
        kind = _class_of(record)
        extra = getattr(kind, "needs_extra", None)
        if extra is not None:
            check_extra(extra, for_=getattr(kind, "__name__", type(kind).__name__))


def records_of(task: Mapping[str, Any]) -> list[Any]:
    """A task's records as Qlib will make them, names in angle brackets filled in."""
    # Model and data set are not there yet, and Qlib would complain in the log.
    nothing = {"<MODEL>": None, "<DATASET>": None}
    found = fill_placeholder(_copied(task), nothing).get("record") or []
    return [found] if isinstance(found, Mapping | str) else list(found)


def _is_trained(model: Any) -> bool:
    if not isinstance(model, Mapping) or model.get("class") != "KronosModel":
        return False
    return bool((model.get("kwargs") or {}).get("training"))


def _class_of(record: Any) -> Any:
    if not isinstance(record, Mapping | str):
        return record
    try:
        return get_callable_kwargs(record, default_module="qlib.workflow.record_temp")[0]
    except (ImportError, AttributeError, KeyError, TypeError, ValueError) as problem:
        raise ConfigError(
            f"the record {shown(record)} of the task cannot be found: {problem}; check its class "
            "and module_path"
        ) from problem


def _copied(value: Any) -> Any:
    """A copy of mappings and lists alone, since Qlib fills in its argument."""
    if isinstance(value, Mapping):
        return {key: _copied(inner) for key, inner in value.items()}
    return [_copied(inner) for inner in value] if isinstance(value, list) else value
