"""Which calibration a forecast takes, and what the result says of it.

Shape letters: N series, L bars seen, P paths, H bars of the horizon.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from kronos_qlib.calibration.calibration import FILE, MOST_STEP, Calibration
from kronos_qlib.data.calendar.time_text import duration
from kronos_qlib.errors import ConfigError
from kronos_qlib.inference.calibrating import settings_of
from kronos_qlib.inference.options import AUTO, CalibrationChoice, Request
from kronos_qlib.inference.sampling import SamplingConfig
from kronos_qlib.markup import one_line
from kronos_qlib.schema import CLOSE
from kronos_qlib.strict_json import is_file

Floats = npt.NDArray[np.float32]
Stamps = npt.NDArray[np.integer]

CALIBRATED, UNCALIBRATED = "calibrated", "uncalibrated"
"""How what a forecast says of itself begins."""
BYTES_A_BAR = 250
"""Working memory of `Calibration.apply` for each bar of a path, and of the past: numbers of 8
bytes, and copies of them."""

LEAST_COINCIDENCES = 5
"""Bars that agree with those of the first path before all paths are called the same."""


@dataclass(frozen=True)
class Chosen:
    """The calibration of one call."""

    calibration: Calibration | None
    """None: paths stay as drawn."""
    reason: str = ""
    """Why there is none."""
    note: str = ""
    """What else is to be known of it; empty: nothing."""
    required: str = ""
    """What was asked for by name, which must work; empty where it is left out if it cannot."""

    @property
    def text(self) -> str:
        """What a result says of it."""
        if self.calibration is None:
            return uncalibrated(self.reason)
        about = one_line(self.calibration.about)  # out of a file, which a stranger may have written
        about = f" on {about}" if about else ""
        note = f"; {self.note}" if self.note else ""
        return f"{CALIBRATED}{about}, until {self.calibration.until}{note}"

    def without(self, reason: str) -> Chosen:
        """The same left out.

        Raises:
            ConfigError: it was asked for by name.
        """
        if self.required:
            raise ConfigError(f"{self.required} cannot be used: {reason}")
        return Chosen(None, reason)

    def apply(
        self,
        paths: Floats,
        bars: Floats,
        stamps: Stamps,
        ahead: Stamps,
        sampling: SamplingConfig,
        memory_mb: int,
    ) -> None:
        """Calibrate paths in place, each series by itself.

        Args:
            paths: (N, P, H, 6) coherent, of series that can be calibrated.
            bars, stamps, ahead: (N, L, 6), (N, L, 5) and (N, H, 5).
            memory_mb: budget in MiB, which sets how many series are taken at once.
        """
        if self.calibration is None:
            return
        each = BYTES_A_BAR * (paths.shape[1] * paths.shape[2] + bars.shape[1])
        step = max(1, memory_mb * 2**20 // each)
        settings = settings_of(sampling)
        for start in range(0, len(paths), step):
            rows = slice(start, start + step)
            paths[rows] = self.calibration.apply(
                paths[rows], bars[rows], stamps[rows], ahead[rows], settings
            )


def uncalibrated(reason: str) -> str:
    """What a result says of paths that are as they were drawn."""
    return f"{UNCALIBRATED}: {reason}" if reason else UNCALIBRATED


def choose(
    asked: CalibrationChoice,
    own: Calibration | None,
    folder: Path | None,
    checkpoint: Callable[[], str],
) -> Chosen:
    """The calibration that is meant.

    Args:
        own: the predictor's, which "auto" takes first.
        folder: of the predictor's weights, where "auto" looks for `FILE`; None: they are new.
        checkpoint: gives the fingerprint of the weights; called if there is a calibration, for it
            reads them all.

    Raises:
        ConfigError: what was asked for by name is no calibration, or that of other weights.
    """
    if asked is None:
        return Chosen(None)
    if isinstance(asked, str) and asked == AUTO:
        return _automatic(own, folder, checkpoint)
    if isinstance(asked, Calibration):
        found, name = asked, "the calibration given"
    elif isinstance(asked, (str, Path)) and asked:
        found, name = Calibration.load(Path(asked).expanduser()), f"the calibration in {asked}"
    else:
        raise ConfigError(
            f'calibration is "{AUTO}", None, a Calibration or the file of one, got {asked!r}'
        )
    chosen = Chosen(found, required=name)
    return _fitting(chosen, "", checkpoint)


def check_request(chosen: Chosen, how: Request) -> Chosen:
    """Leave out, or refuse, a calibration of paths that have no order to keep.

    Raises:
        ConfigError: it was asked for by name.
    """
    if chosen.calibration is None:
        return chosen
    if not how.coherent:
        return chosen.without("raw numbers were asked for (coherent=False), which may be no bars")
    if how.sampling.paths < 2:
        return chosen.without("one path has no spread; draw more")
    if how.sampling.temperature == 0:
        return chosen.without("at temperature 0 every path is the same")
    return chosen


def sort_out(
    chosen: Chosen, bars: Floats, stamps: Stamps, names: Callable[[int], str]
) -> list[Chosen]:
    """What each of N series takes: whatever else is in a batch decides nothing of it.

    Args:
        bars, stamps: (N, L, 6) and (N, L, 5) seen.
        names: what errors call a series.

    Raises:
        ConfigError: a series cannot be calibrated, and a calibration was asked for by name.
    """
    calibration = chosen.calibration
    if calibration is None or not len(bars):
        return [chosen] * len(bars)
    reasons = calibration.reasons_against(bars, stamps, refuse_still=True)
    steps = calibration.unlike_steps(stamps).tolist()
    return [
        _left_out(chosen, reason, names(place))
        if reason is not None
        else replace(chosen, note=_step_note(calibration, step))
        for place, (reason, step) in enumerate(zip(reasons, steps, strict=True))
    ]


def _step_note(calibration: Calibration, step: int) -> str:
    if not step:
        return ""
    known = sorted({one for fit in calibration.fits.values() for one in fit.steps or ()})
    fitted = " and ".join(_step_text(one) for one in known)
    return (
        f"fitted on bars of {fitted}, these are of {_step_text(step)}, where its bands were not "
        "checked: KronosPredictor.calibrate fits one on such bars"
    )


def _step_text(minutes: int) -> str:
    text = duration(np.timedelta64(minutes, "m"))
    return f"{text} or longer" if minutes == MOST_STEP else text


def check_drawn(taken: list[Chosen], paths: Floats, names: Callable[[int], str]) -> list[Chosen]:
    """Leave out, or refuse, a calibration of paths that are all the same: they have no order.

    Two paths of a bar or two may agree by accident, and are left alone.

    Args:
        taken: of N series. paths: (N, P, H, 6) as drawn. names: as of `sort_out`.

    Raises:
        ConfigError: a calibration was asked for by name.
    """
    found = list(taken)
    if (paths.shape[1] - 1) * paths.shape[2] < LEAST_COINCIDENCES:
        return found
    for place, chosen in enumerate(taken):
        closes = paths[place, ..., CLOSE]
        if chosen.calibration is not None and (closes == closes[0]).all():
            reason = "every path drawn is the same; raise temperature, top_k or top_p"
            found[place] = _left_out(chosen, reason, names(place))
    return found


def _left_out(chosen: Chosen, reason: str, name: str) -> Chosen:
    return chosen.without(f"{name}: {reason}" if chosen.required else reason)


@lru_cache(maxsize=8)
def _kept(path: Path, *written: int) -> Calibration:
    """A file read once for as long as it is the same: reading takes as long as drawing a bar.

    Args:
        written: when, how much, and under which number of the file system.
    """
    return Calibration.load(path)


def _automatic(
    own: Calibration | None, folder: Path | None, checkpoint: Callable[[], str]
) -> Chosen:
    if own is not None and not isinstance(own, Calibration):
        raise ConfigError(
            f"KronosPredictor.calibration is a Calibration or None, got {own!r}; Calibration.load "
            "reads a file"
        )
    if own is not None:
        return _fitting(Chosen(own), "the predictor's calibration", checkpoint)
    path = None if folder is None else folder / FILE
    if path is None or not is_file(path):
        where = "these weights are new" if path is None else f"no {FILE} lies beside the weights"
        return Chosen(None, f"{where}; KronosPredictor.calibrate fits one")
    try:
        known = path.stat()
        found = _kept(path, known.st_mtime_ns, known.st_size, known.st_ino)
    except ConfigError as bad:
        return Chosen(None, str(bad))
    return _fitting(Chosen(found), str(path), checkpoint)


def _fitting(chosen: Chosen, name: str, checkpoint: Callable[[], str]) -> Chosen:
    assert chosen.calibration is not None
    theirs, ours = chosen.calibration.checkpoint, checkpoint()
    if theirs == ours:
        return chosen
    reason = f"it was fitted on paths of other weights (fingerprint {theirs}, these have {ours})"
    return chosen.without(f"{name}: {reason}" if name else reason)
