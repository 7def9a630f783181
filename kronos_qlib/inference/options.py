"""A forecast's arguments: the published ones, or a `SamplingConfig`, resolved once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

from kronos_qlib.calibration.calibration import Calibration
from kronos_qlib.errors import ConfigError
from kronos_qlib.inference.frames import whole
from kronos_qlib.inference.sampling import SamplingConfig

PUBLISHED = {"T": 1.0, "top_k": 0, "top_p": 0.9}
"""Published arguments and their published defaults; `SamplingConfig` has the paper's."""


AUTO = "auto"
CalibrationChoice = Calibration | str | Path | None
"""`AUTO`, a calibration, the file of one, or None."""


class PathOptions(TypedDict, total=False):
    """Options beside the published arguments, by keyword.

    sampling: a `SamplingConfig`, in place of T, top_k, top_p, sample_count and the three below.
    anchor, stratified, rotate_s2: fields of `SamplingConfig`, where none is given.
    coherent: make each bar one: high its highest and low its lowest price, prices positive, volume
        and amount not negative. True by default; False gives the network's raw numbers, which
        are the published ones together with `anchor=False`.
    calibration: "auto", a `Calibration`, the file of one, or None, which leaves paths as they were
        drawn. "auto" takes the predictor's own (`KronosPredictor.calibrate`), else the
        `calibration.json` beside the weights; where neither is of these weights, or it cannot be
        used on a series, its paths stay as drawn and the result says why. What is given by name
        must work: otherwise it is a ConfigError.
    """

    sampling: SamplingConfig | None
    anchor: bool
    stratified: bool
    rotate_s2: bool
    coherent: bool
    calibration: CalibrationChoice


class FrameOptions(PathOptions, total=False):
    """`PathOptions`, and what frames need.

    exchange: a code of exchange-calendars such as "XSHG", whose holidays, half days and lunch
        break the times of the bars to come keep.
    freq: or a pandas frequency such as "5min" or "B", refused where it is not the step of the past.
    warn: log what looks wrong in a lookback or in the times to come; False for callers that have
        checked them.
    seed: the same seed and bars give the same forecast, whatever else is in a batch; 0 by
        default.
    on_progress: called with the share of the drawing that is done, in (0, 1], after every bar of
        every micro-batch, from several threads in turn; what it raises ends the forecast. Where a
        CUDA graph draws a micro-batch, it is called for all of its bars after it.
    """

    exchange: str | None
    freq: str | None
    warn: bool
    seed: int
    on_progress: Callable[[float], None] | None


@dataclass(frozen=True)
class Request:
    """The arguments of one call, in one form."""

    sampling: SamplingConfig
    coherent: bool = True
    calibration: CalibrationChoice = None
    seed: int = 0
    exchange: str | None = None
    freq: str | None = None
    warn: bool = True
    verbose: bool = False
    on_progress: Callable[[float], None] | None = None

    @classmethod
    def of(
        cls,
        published: tuple[float, int, float],
        paths: int,
        verbose: bool,
        options: Mapping[str, object],
        usual_paths: int = 1,
    ) -> Request:
        """Resolve the arguments of a call.

        Args:
            published: T, top_k and top_p.
            paths: their number, `sample_count`.
            options: by keyword.
            usual_paths: the default of `sample_count`.

        Raises:
            ConfigError: a value cannot work, or both a `SamplingConfig` and one of its fields are
                given.
            TypeError: an option has no such name.
        """
        rest: dict[str, Any] = dict(options)
        sampling = rest.pop("sampling", None)
        fields = {name: rest.pop(name) for name in _FIELDS if name in rest}
        known = FrameOptions.__annotations__
        if unknown := [name for name in rest if name not in known]:
            raise TypeError(f"unexpected option {unknown[0]!r}; known: {', '.join(known)}")
        rest["seed"] = whole("seed", rest.get("seed", 0), least=None)
        if sampling is None:
            T, top_k, top_p = published  # noqa: N806
            sampling = SamplingConfig(
                paths=paths, temperature=T, top_k=top_k, top_p=top_p, **fields
            )
            return cls(sampling, verbose=verbose, **rest)
        if not isinstance(sampling, SamplingConfig):
            raise ConfigError(f"sampling must be a SamplingConfig, got {sampling!r}")
        given = dict(zip(PUBLISHED, published, strict=True)) | {"sample_count": paths}
        usual = PUBLISHED | {"sample_count": usual_paths}
        twice = [name for name, value in given.items() if value != usual[name]] + list(fields)
        if twice:
            raise ConfigError(f"give `sampling` or {twice[0]}, not both: it is one of its fields")
        return cls(sampling, verbose=verbose, **rest)


_FIELDS = ("anchor", "stratified", "rotate_s2")
