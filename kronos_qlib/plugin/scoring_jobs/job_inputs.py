"""Digests of what a model reads in a job: bars, universes, columns, tables, calibration, sectors.

A job's folder may be gone on with where they are the same, and a worker may do blocks where it sees
what the command saw.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from qlib.config import C
from qlib.data import D
from qlib.utils import init_instance_by_config

from kronos_qlib.data.windows.find import Spans
from kronos_qlib.data.windows.segments import places_of
from kronos_qlib.errors import ConfigError, some_of
from kronos_qlib.plugin.baselines import BaselineModel, GRUModel
from kronos_qlib.plugin.blend import BlendModel
from kronos_qlib.plugin.dataset import KronosDataset
from kronos_qlib.plugin.model import KronosModel
from kronos_qlib.plugin.provider.feature_files import FeatureFiles
from kronos_qlib.plugin.provider.handler_columns import HandlerColumns
from kronos_qlib.plugin.provider.reader import local_folder, read_calendar
from kronos_qlib.plugin.runs.about_run import frame_digest, table_digest

OF_WINDOWS = (KronosModel, GRUModel, BaselineModel)
"""Models that read a data set's windows, and no table of its handler."""
STORED_FIELD = re.compile(r"\$\w+", re.ASCII)
FAR = re.compile(r"ChangeInstrument|\$\$")
SHOWN = 6


def inputs_of(model: Any, dataset: Any, end: pd.Timestamp) -> dict[str, str]:
    """What decides a model's scores beside its weights and settings: digests by names for people.

    Bars are those that the data set reads. Of columns beside them that are expressions it is the
    stored fields that they are made of; of a handler's own columns, and of the table that LightGBM
    scores, what its processors have made of them. So its cost is that of opening the data set,
    a member's own data set too, and of reading those files once.

    Args:
        model: of a blend each member counts.
        end: later members of a universe, and later values of stored fields, do not count.
    """
    return dict(_found(model, dataset, end, ""))


def universe_digest(spans: Spans | None, end: pd.Timestamp) -> str:
    """Of who is in a universe when, up to a moment; the bars' own digest does not have it."""
    if spans is None:
        return "its names, always"
    text = "\n".join(
        f"{name} {first} {end if last is None else min(pd.Timestamp(last), end)}"
        for name in sorted(spans)
        for first, last in spans[name]
        if first is None or pd.Timestamp(first) <= end
    )
    return f"universe {_short(text.encode())}"


def check_inputs(expected: Mapping[str, str], model: Any, dataset: Any, end: pd.Timestamp) -> None:
    """Refuse to work where a model would read something else than it did in the command.

    Raises:
        ConfigError: names what differs.
    """
    here = inputs_of(model, dataset, end)
    differ = [
        f"{name}: {expected.get(name, 'none')} there, {here.get(name, 'none')} here"
        for name in dict.fromkeys([*expected, *here])
        if expected.get(name) != here.get(name)
    ]
    if differ:
        raise ConfigError(
            "this worker reads other data than the command that began it: "
            f"{some_of(differ, SHOWN, '; ')}. Give all machines the same folder of bars "
            f"({', '.join(sorted(map(str, C.provider_uri.values())))})"
        )


def provider_digest(folders: Sequence[str | Path]) -> str:
    """Of every file of Qlib folders, read whole; "" where none is on this machine."""
    found = hashlib.sha256()
    some = False
    for folder in sorted({Path(each).expanduser().absolute() for each in folders}):
        paths = [path for path in folder.rglob("*") if path.is_file()]
        for path in sorted(paths):
            some = True
            found.update(f"{path.relative_to(folder).as_posix()} {path.stat().st_size}\n".encode())
            found.update(path.read_bytes())
    return f"folder {found.hexdigest()[:16]}" if some else ""


def _found(model: Any, dataset: Any, end: pd.Timestamp, whose: str) -> Iterator[tuple[str, str]]:
    """What a model reads; of a member that has no data set of its own without the bars."""
    of = f" of {whose}" if whose else ""
    if isinstance(dataset, KronosDataset):
        yield f"bars{of}", table_digest(dataset.bar_handler.bars)
        yield f"universe{of}", universe_digest(dataset.bar_handler.spans, end)
    yield from _read_by(model, dataset, end, whose)


def _read_by(model: Any, dataset: Any, end: pd.Timestamp, whose: str) -> Iterator[tuple[str, str]]:
    if isinstance(model, BlendModel):
        for name, member in model.members.items():
            inner = f"{whose}.{name}" if whose else name
            if name in model.dataset_configs:
                yield from _found(member, _own_dataset(model, name), end, inner)
            else:
                yield from _read_by(member, dataset, end, inner)
        return
    of = f" of {whose}" if whose else ""
    if not isinstance(model, OF_WINDOWS):
        yield f"table{of}", _table(dataset)
        return
    if names := _columns_beside(model):
        yield f"columns{of}", _columns(dataset, names, end)
    if isinstance(model, KronosModel):
        if model.calibration is not None:
            yield f"calibration{of}", _calibration(model)
        if model.signal_settings.sectors is not None:
            sectors = sorted(model.sectors().items())
            yield f"sectors{of}", f"sectors {_short(json.dumps(sectors).encode())}"


def _own_dataset(model: BlendModel, name: str) -> Any:
    """A member's data set: the one that it has, or one that is forgotten after this."""
    if model.has_dataset(name):
        return model.dataset_of(name, None)
    return init_instance_by_config(model.dataset_configs[name])


def _columns_beside(model: Any) -> tuple[str, ...]:
    from kronos_qlib.pipeline.stages import columns_of

    head = getattr(model, "head", None) if isinstance(model, KronosModel) else None
    if isinstance(model, GRUModel):
        head = model.net.head
    return () if head is None else tuple(columns_of(head.names))


def _columns(dataset: Any, names: Sequence[str], end: pd.Timestamp) -> str:
    """Of what a head reads beside the bars."""
    source = HandlerColumns(dataset.handler, dataset.bar_handler.freq)
    written = source.expressions(names)
    fields = sorted({field for text in written.values() if text for field in _fields_in(text)})
    parts = [f"{name} {text}" for name, text in written.items()]
    parts.append(_fields(dataset.bar_handler.bars.instruments, fields, source.freq, end))
    # Of another instrument, or of what was known when: no file of a field says it all.
    if far := [text for text in written.values() if text and FAR.search(text)]:
        instruments = list(dataset.bar_handler.bars.instruments)
        parts.append(frame_digest(D.features(instruments, far, None, end, freq=source.freq)))
    if own := [name for name, text in written.items() if text is None]:
        parts.append(frame_digest(source.frame()[own]))
    return f"columns {_short(json.dumps(parts).encode())}"


def _table(dataset: Any) -> str:
    """Of the features of all days, as processors for inference have left them."""
    handler = getattr(dataset, "handler", None)
    if handler is None:
        return f"a {type(dataset).__name__} without a handler: not compared"
    return f"table {frame_digest(HandlerColumns(handler).frame())[:16]}"


def _fields_in(expression: str) -> list[str]:
    return STORED_FIELD.findall(expression)


def _fields(names: Sequence[str], fields: Sequence[str], freq: str, end: pd.Timestamp) -> str:
    """Of the values of stored fields up to a moment."""
    digest = hashlib.sha256()
    calendar = read_calendar(freq)
    stop = places_of(calendar, None, end)[1]
    folder = local_folder(freq)
    if folder is None:
        frame = D.features(list(names), list(fields), None, end, freq=freq)
        return frame_digest(frame) if fields else ""
    files = FeatureFiles(folder, freq, fields or ["$close"], calendar)
    for name in names:
        for field in fields:
            kept = files.field(name, field)
            digest.update(f"{name} {field} {None if kept is None else kept[0]}\n".encode())
            if kept is not None:
                digest.update(np.ascontiguousarray(kept[1][: max(0, stop - kept[0])]).data)
    return digest.hexdigest()


def _calibration(model: KronosModel) -> str:
    """Of the calibration that paths are put through."""
    from kronos_qlib.pipeline.calibrated_paths import shipped_calibration

    found = model.predictor.calibration or shipped_calibration(model.predictor).calibration
    if found is None:
        return "none"
    return f"calibration {_short(json.dumps(asdict(found), sort_keys=True).encode())}"


def _short(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]
