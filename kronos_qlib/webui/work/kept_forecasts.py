"""Kept forecasts: each a JSON file of its own, written whole or not at all."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kronos_qlib.errors import ConfigError, KronosError
from kronos_qlib.evaluation.forecasts.distributions import PathDistribution
from kronos_qlib.files import replacing
from kronos_qlib.webui.schemas import (
    CoverageByHorizon,
    Forecast,
    Kept,
    KeptCalibration,
    KeptSummary,
)
from kronos_qlib.webui.work.forecast_answer import Answer
from kronos_qlib.webui.work.track_record import BANDS, coverage_of

FORMAT = 1
"""Of a file; one of another format is left alone."""
NAME = re.compile(r"[0-9a-f]{20}\.json", re.ASCII)
MOST_BYTES = 2**24
"""Of one file that is read: 512 bars of 200 closes, and as many of everything else."""
BINS = 10
"""Of the histogram of the PIT."""


@dataclass(frozen=True)
class Scored:
    """What a kept forecast adds to the calibration of all: (n) for its bars that are known."""

    covered: np.ndarray
    """(n, bands) whether each band held the bar; NaN where the paths are too few for it."""
    crps: np.ndarray
    pit: np.ndarray


class UnknownForecastError(KronosError, LookupError):
    """There is no such forecast."""


class KeptForecasts:
    """A folder of forecasts. What is in it that is no forecast of ours is left as it is.

    Args:
        folder: made with the first forecast.

    A list of what is there is held in memory and follows the files: they may be copied in, or
    deleted, while this runs.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._summaries: dict[str, tuple[int, KeptSummary | None, Scored | None]] = {}
        self._lock = threading.RLock()

    def keep(self, answer: Answer) -> Forecast:
        """Write a forecast, or add to the one of the same id what is now known of it.

        Returns:
            It as it is kept: with the day it was first made, and the longer of both `realised`.
        """
        with self._lock:
            forecast = answer.forecast
            try:
                before = self.read(forecast.id).forecast
            except KronosError:
                before = None
            changed: dict[str, Any] = {"kept": True}
            if before is not None:
                changed["created"] = before.created
                if len(before.realised or []) > len(forecast.realised or []):
                    changed["realised"] = before.realised
                record, older = forecast.track_record, before.track_record
                changed["track_record"] = record.model_copy(
                    update={
                        **(
                            {"past": older.past, "past_reason": None}
                            if record.past is None and older.past is not None
                            else {}
                        ),
                        **(
                            {"this_window": older.this_window, "this_window_reason": None}
                            if "realised" in changed
                            else {}
                        ),
                    }
                )
            kept = Answer(forecast.model_copy(update=changed), answer.sample)
            self._write(kept)
            return kept.forecast

    def read(self, forecast_id: str) -> Answer:
        """One forecast.

        Raises:
            UnknownForecastError: there is none of this id, or its file is none.
        """
        path = self._path(forecast_id)
        try:
            answer = _read(path)
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as problem:
            kind = "is no kept forecast" if path.is_file() else "is not kept"
            raise UnknownForecastError(f"the forecast {forecast_id} {kind}") from problem
        if answer.forecast.id != forecast_id:
            raise UnknownForecastError(f"the forecast {forecast_id} is no kept forecast")
        return answer

    def update(self, answer: Answer) -> None:
        """Write a forecast that is kept, as it is now.

        Raises:
            UnknownForecastError: it was deleted meanwhile.
        """
        with self._lock:
            if not self._path(answer.forecast.id).is_file():
                raise UnknownForecastError(f"the forecast {answer.forecast.id} is not kept")
            self._write(answer)

    def delete(self, forecast_id: str) -> None:
        """Remove a forecast's file.

        Raises:
            UnknownForecastError: there is none of this id.
        """
        with self._lock:
            try:
                self._path(forecast_id).unlink()
            except OSError as problem:
                raise UnknownForecastError(f"the forecast {forecast_id} is not kept") from problem
            self._summaries.pop(forecast_id, None)

    def list(self, q: str = "", offset: int = 0, limit: int = 100) -> Kept:
        """Those of instruments whose name holds `q`, the newest first."""
        with self._lock:
            self._follow()
            found = [one for _, one, _ in self._summaries.values() if one is not None]
            unreadable = [f"{key}.json" for key, (_, one, _) in self._summaries.items() if not one]
        wanted = [one for one in found if q.strip().upper() in one.instrument.upper()]
        wanted.sort(key=lambda one: (one.created, one.id), reverse=True)
        return Kept(
            forecasts=wanted[offset : offset + limit],
            total=len(wanted),
            unreadable=sorted(unreadable)[:20],
        )

    def calibration(self) -> KeptCalibration:
        """How all kept forecasts have done against what came."""
        with self._lock:
            self._follow()
            scored = [one for _, _, one in self._summaries.values() if one is not None]
            total = sum(one is not None for _, one, _ in self._summaries.values())
        if not scored:
            return KeptCalibration(
                forecasts=0,
                bars=0,
                by_horizon=[],
                pit=[0] * BINS,
                reason=f"of {total} kept forecasts none has a bar that has come: reconcile them "
                "when it has"
                if total
                else "nothing is kept yet",
            )
        longest = max(len(one.crps) for one in scored)
        by_horizon = []
        for bar in range(longest):
            there = [one for one in scored if len(one.crps) > bar]
            covered = np.array([one.covered[bar] for one in there])
            shares = {
                f"{level:g}": float(column[known].mean())
                for level, column in zip(BANDS, covered.T, strict=True)
                if (known := ~np.isnan(column)).any()
            }
            by_horizon.append(
                CoverageByHorizon(
                    bar=bar + 1,
                    forecasts=len(there),
                    coverage=shares,
                    crps=float(np.mean([one.crps[bar] for one in there])),
                )
            )
        pit = np.concatenate([one.pit for one in scored])
        counts, _ = np.histogram(pit, bins=BINS, range=(0, 1))
        return KeptCalibration(
            forecasts=len(scored),
            bars=len(pit),
            by_horizon=by_horizon,
            pit=[int(count) for count in counts],
            reason=None,
        )

    def _path(self, forecast_id: str) -> Path:
        if not NAME.fullmatch(f"{forecast_id}.json"):
            raise UnknownForecastError(f"{forecast_id!r} is no id of a forecast")
        return self.folder / f"{forecast_id}.json"

    def _write(self, answer: Answer) -> None:
        about = {
            "format": FORMAT,
            "forecast": answer.forecast.model_dump(mode="json"),
            "sample": answer.sample,
        }
        text = json.dumps(about, separators=(",", ":"), allow_nan=False)
        path = self._path(answer.forecast.id)
        try:
            with replacing(path) as draft:
                draft.write_text(text, encoding="utf-8")
        except OSError as problem:
            raise ConfigError(f"the forecast cannot be kept: {problem.strerror}") from problem
        self._summaries[answer.forecast.id] = (_stamp(path), *_about(answer))

    def _follow(self) -> None:
        """Bring what is in memory to what is on the disk."""
        there = {}
        for path in self._files():
            try:
                there[path.stem] = _stamp(path)
            except OSError:
                continue  # deleted meanwhile
        for gone in set(self._summaries) - set(there):
            del self._summaries[gone]
        for key, stamp in there.items():
            if key in self._summaries and self._summaries[key][0] == stamp:
                continue
            try:
                self._summaries[key] = (stamp, *_about(self.read(key)))
            except KronosError:
                self._summaries[key] = (stamp, None, None)

    def _files(self) -> Iterator[Path]:
        try:
            yield from (path for path in self.folder.iterdir() if NAME.fullmatch(path.name))
        except FileNotFoundError:
            return


def score_known(answer: Answer) -> Scored | None:
    """How a forecast has done at each of its bars that is known; None where none is."""
    forecast = answer.forecast
    came = np.array([bar.close for bar in forecast.realised or []])[: len(answer.sample)]
    if not len(came) or not (came > 0).all():
        return None
    last = np.array([forecast.last_close])
    paths = np.array(answer.sample[: len(came)], dtype=np.float64).T[None]
    method = PathDistribution(paths, last, answer.is_stratified)
    returns = came[None] / last - 1
    rng = np.random.default_rng(int(forecast.id, 16))
    covered = np.full((len(came), len(BANDS)), np.nan)
    for bar in range(len(came)):
        # Which bands the number of paths supports is the same for every bar.
        one = PathDistribution(paths[..., bar : bar + 1], last, answer.is_stratified)
        for level, share in coverage_of(one, returns[:, bar : bar + 1]).items():
            covered[bar, BANDS.index(float(level))] = share
    return Scored(covered, method.crps(returns)[0], method.pit(returns, rng)[0])


def _about(answer: Answer) -> tuple[KeptSummary, Scored | None]:
    forecast = answer.forecast
    scored = score_known(answer)
    known = len(forecast.realised or [])
    is_complete = known >= len(forecast.timestamps) and scored is not None
    summary = KeptSummary(
        id=forecast.id,
        created=forecast.created,
        instrument=forecast.instrument,
        source=forecast.source,
        source_name=forecast.source_name,
        checkpoint=forecast.checkpoint.name,
        calibrated=forecast.calibrated,
        last_timestamp=forecast.last_timestamp,
        last_close=forecast.last_close,
        until=forecast.timestamps[-1],
        horizon=len(forecast.timestamps),
        paths=int(forecast.settings.get("paths", 0)),
        last_return=forecast.outlook.last_return,
        realised=known,
        crps=float(scored.crps.mean()) if is_complete and scored is not None else None,
    )
    return summary, scored


def _read(path: Path) -> Answer:
    with path.open("rb") as file:
        data = file.read(MOST_BYTES + 1)
    if len(data) > MOST_BYTES:
        raise ValueError(f"it has more than {MOST_BYTES} bytes")
    about = json.loads(data)
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        raise ValueError("it is of another format")
    forecast = Forecast.model_validate(about["forecast"])
    sample = about["sample"]
    bars = len(forecast.timestamps)
    if (
        not isinstance(sample, list)
        or len(sample) != bars
        or len({len(bar) if isinstance(bar, list) else -1 for bar in sample}) != 1
        or len(sample[0]) < 2
        or not all(isinstance(one, int | float) and one > 0 for bar in sample for one in bar)
    ):
        raise ValueError("its sample is none")
    return Answer(forecast, sample)


def _stamp(path: Path) -> int:
    return path.stat().st_mtime_ns
