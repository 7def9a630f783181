"""What a workflow says that its run will read: folders of bars, universe, segments, models."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from qlib.utils import fill_placeholder
from qlib.utils.time import Freq

from kronos_qlib.data.calendar.stamps import Times
from kronos_qlib.data.windows.segments import bounds_of, first_instant, last_instant, places_of
from kronos_qlib.errors import ConfigError, KronosError
from kronos_qlib.plugin.provider.faults import (
    check_frequency,
    check_market,
    feature_folder,
    stored_calendar,
)
from kronos_qlib.plugin.qlib_internals import DEFAULT_FREQ, local_folders
from kronos_qlib.plugin.task_sections import class_of, mapping_of, records_of

FILES: Mapping[str, str] = {
    "provider": "LocalProvider",
    "calendar_provider": "LocalCalendarProvider",
    "instrument_provider": "LocalInstrumentProvider",
    "feature_provider": "LocalFeatureProvider",
}
"""Settings of qlib.init, each as where bars are files. Bars from elsewhere are not checked."""
RUN_SETTINGS = ("provider_uri", "mount_path", "exp_manager", *FILES)
"""Settings of qlib.init that are looked at."""


@dataclass(frozen=True)
class PlannedData:
    """What one data set of a task reads: its settings, and the files that they mean."""

    segments: Mapping[str, Any]
    handler: Mapping[str, Any]
    folder: Path | None
    freq: str

    @cached_property
    def is_sound(self) -> bool:
        """Whether there are files to look at, of this frequency."""
        if self.folder is None:
            return False
        try:
            check_frequency(self.folder, self.freq)
        except ConfigError:
            return False
        return True

    @cached_property
    def calendar(self) -> Times:
        """Of the bars.

        Raises:
            CalendarError: its file cannot be used; names file and line.
        """
        assert self.folder is not None
        return stored_calendar(self.folder, self.freq)

    def span(self, name: str) -> tuple[np.datetime64, np.datetime64] | None:
        """First and last instant of a segment, an open end being the calendar's."""
        if name not in self.segments or not self.is_sound:
            return None
        first, last = bounds_of(self.segments, name)
        begin = self.calendar[0] if first is None else first_instant(first)
        return begin, self.calendar[-1] if last is None else last_instant(last, self.calendar)

    @cached_property
    def is_tested(self) -> bool:
        """Whether the test segment has a time of the calendar."""
        if self.span("test") is None:
            return False
        start, stop = places_of(self.calendar, *bounds_of(self.segments, "test"))
        return start < stop

    @cached_property
    def universe(self) -> set[str] | None:
        """The names that can be scored in the test segment; None where files do not show it."""
        instruments = self.handler.get("instruments", "all")
        if isinstance(instruments, Mapping):
            instruments = instruments.get("market")
        try:
            if (span := self.span("test")) is None or self.folder is None:
                return None
            if isinstance(instruments, str):
                names = check_market(self.folder, instruments).within(*span)
            elif isinstance(instruments, list | tuple):
                names = set(map(str, instruments))
            else:
                return None
            there = {each.name for each in (self.folder / "features").iterdir()}
        except (KronosError, OSError):  # which another check says
            return None
        return {name for name in names if feature_folder(name) in there}


@dataclass(frozen=True)
class PlannedRun:
    """A workflow, its placeholders filled in as Qlib will."""

    init: Mapping[str, Any]
    raw: Any
    experiment: Any

    @cached_property
    def task(self) -> dict[str, Any]:
        """The workflow's task, placeholders filled in; {} where it has none."""
        task = _copied(mapping_of(self.raw))
        same = {name: name for name in ("<MODEL>", "<DATASET>", "<PRED>")}
        return dict(fill_placeholder(task, same))

    @cached_property
    def folders(self) -> dict[str, Path]:
        """Folders of bars by frequency; {} where bars come from elsewhere."""
        if any(self.init.get(key, usual) != usual for key, usual in FILES.items()):
            return {}
        return local_folders(self.init.get("provider_uri") or "~/.qlib/qlib_data/cn_data")

    @cached_property
    def data(self) -> list[PlannedData]:
        """Of the task's data set, and of those that members of a blend have for themselves."""
        found = [mapping_of(self.task.get("dataset"))]
        for model in _walk(self.task.get("model")):
            found += [mapping_of(model.get("dataset"))] if "dataset" in model else []
        return [each for config in found if config for each in self._data_of(config)]

    def _data_of(self, config: Mapping[str, Any]) -> Iterator[PlannedData]:
        kwargs = mapping_of(config.get("kwargs"))
        if not isinstance(kwargs.get("handler"), Mapping):
            return  # made already, or a file
        handler = dict(mapping_of(kwargs["handler"].get("kwargs")))
        handler |= mapping_of(kwargs.get("bar_handler"))
        freq = handler.get("freq") or "day"
        if not isinstance(freq, str):  # several
            return
        try:
            Freq(freq)
        except ValueError as unknown:
            raise ConfigError(
                f"handler.freq: Qlib knows no freq {freq!r}, give day or as 5min"
            ) from unknown
        folder = self.folders.get(str(Freq(freq)), self.folders.get(DEFAULT_FREQ))
        yield PlannedData(mapping_of(kwargs.get("segments")), handler, folder, freq)

    @property
    def models(self) -> list[Mapping[str, Any]]:
        """The settings of every KronosModel, those of blends and of feature data sets too."""
        return self.settings_of("KronosModel")

    def settings_of(self, *classes: str) -> list[Mapping[str, Any]]:
        """The settings of every model of these classes, wherever in the task it is."""
        configs = (*_walk(self.task.get("model")), *_walk(self.task.get("dataset")))
        return [mapping_of(each.get("kwargs")) for each in configs if class_of(each) in classes]

    @property
    def records(self) -> list[Mapping[str, Any]]:
        """The task's records, in order."""
        return records_of(self.task)


def _walk(config: Any) -> Iterator[Mapping[str, Any]]:
    """Every mapping with a class in a section, at whatever depth."""
    if isinstance(config, Mapping):
        if "class" in config:
            yield config
        for inner in config.values():
            yield from _walk(inner)
    elif isinstance(config, list | tuple):
        for inner in config:
            yield from _walk(inner)


def _copied(config: Any) -> Any:
    """Mappings and lists anew, to fill placeholders in; objects as they are."""
    if isinstance(config, Mapping):
        return {key: _copied(inner) for key, inner in config.items()}
    return [_copied(inner) for inner in config] if isinstance(config, list) else config
