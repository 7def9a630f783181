"""ForecastReportRecord: how good the paths of a run's KronosModel are as forecasts.

record:
  - class: ForecastReportRecord
    module_path: kronos_qlib.plugin.records
    kwargs: {model: <MODEL>, dataset: <DATASET>, windows: 2000, paths: 50}
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pandas as pd
from qlib.log import get_module_logger
from qlib.workflow.record_temp import RecordTemp
from qlib.workflow.recorder import Recorder

from kronos_qlib.calibration.calibration import FILE as CALIBRATION_FILE
from kronos_qlib.calibration.calibration import LEAST_WINDOWS, Calibration
from kronos_qlib.calibration.past_volatility import LEAST_BARS
from kronos_qlib.data.windows.known import known_windows, sample_windows, times_ahead
from kronos_qlib.data.windows.segments import Segment
from kronos_qlib.data.windows.window import Windows
from kronos_qlib.data.windows.window_dataset import WindowDataset
from kronos_qlib.errors import BarDataError, ConfigError, UndefinedMetricError
from kronos_qlib.evaluation.forecasts.baselines.named_baselines import Baselines
from kronos_qlib.evaluation.forecasts.distributions import LEVELS, VOLATILITY_BARS, Outcomes
from kronos_qlib.evaluation.forecasts.forecast_figures import (
    coverage_figure,
    crps_figure,
    fan_figure,
    pit_figure,
)
from kronos_qlib.evaluation.forecasts.forecast_tables import ForecastQuality, judge
from kronos_qlib.evaluation.ranking.uncertainty import LEAST_DAYS
from kronos_qlib.inference.calibrating import WINDOWS, fit_calibration, sample_of
from kronos_qlib.inference.sampling import SamplingConfig
from kronos_qlib.pipeline.calibrated_paths import calibrated_closes
from kronos_qlib.pipeline.outcomes import draw_closes, outcomes_of
from kronos_qlib.plugin.dataset import KronosDataset
from kronos_qlib.plugin.model import KronosModel
from kronos_qlib.plugin.records.artifacts import experiment_of, saved_files
from kronos_qlib.schema import CLOSE

logger = get_module_logger(__name__)

Floats = npt.NDArray[np.float64]

SHOWN_PAST = 60
"""Bars seen that a fan is drawn behind."""
EXAMPLES = 4
"""Fans drawn: windows evenly spaced over the sample, not chosen."""

TABLES = (
    "scores.csv",
    "coverage.csv",
    "differences.csv",
    "pit.csv",
    "methods.csv",
    "windows.csv",
)
FIGURES = ("crps.png", "coverage.png", "pit.png", "fans.png")


class ForecastReportRecord(RecordTemp):
    """Judge a run's paths, as drawn and calibrated, beside volatility models.

    The baselines are the last price and random walks with a volatility: of the past, EWMA,
    GARCH(1,1)-t (some 30 ms for each window of both segments) and log-range HAR, each as it is and
    calibrated; see `named_baselines.Baselines`. All are judged on windows of the test segment whose
    horizon has come. `Calibration` is fitted on windows of the valid segment: its spread on many,
    what the paths add on those that paths are drawn for; the baselines' factors are fitted on as
    many as the latter. These are samples: evenly spaced over the segment's time, drawn among the
    instruments of a moment. Left out, and counted in the log and in `forecast.left_out`, are
    windows whose instrument did not trade on each of the calendar's next
    bars: the model reads the calendar, which announces no suspension.

    Paths are those that users get: coherent bars (`predict_paths(coherent=True)`), drawn as the
    model's `sampling` says, except that the paths of a window are independent of each other
    (neither `stratified` nor `common`), because CRPS, coverage and ranks take them for that, and
    of the whole window: not those of `signals.ensemble`. With an alpha head they are the
    predictor's below it.

    Metrics are named `forecast.crps`, `forecast.crps_calibrated`, `forecast.crps_last_price`,
    `forecast.coverage_90` and so on, see `ForecastQuality.metrics`. Leaves in `forecast_report`
    the tables of `ForecastQuality` by bar of the horizon, the windows, `calibration.json` (for
    `Calibration.load`) and figures.
    """

    artifact_path = "forecast_report"
    needs_extra = "report"
    reads = ()
    leaves = (*TABLES, CALIBRATION_FILE, *FIGURES)

    def __init__(
        self,
        recorder: Recorder,
        model: object = None,
        dataset: object = None,
        windows: int = 2000,
        calibration_windows: int = 2000,
        paths: int | None = None,
        levels: Sequence[float] = LEVELS,
        segment: Segment = "test",
        calibration_segment: Segment = "valid",
        volatility_bars: int = VOLATILITY_BARS,
        seed: int = 0,
        spread_windows: int = WINDOWS,
        title: str | None = None,
    ) -> None:
        """
        Args:
            model, dataset: `<MODEL>` and `<DATASET>` of the workflow. Of a run that is over they
                are yours to load: they are pickles, which run what their writer put there.
            windows, calibration_windows: at most this many of each segment, with paths.
            paths: drawn for each window; None: as many as the model's `sampling`. An interval of
                level q needs 2 / (1 - q) - 1 of them at least: 19 for 90 %.
            levels: central intervals.
            segment, calibration_segment: what is reported on, and what calibration is fitted on;
                the latter is to lie before.
            volatility_bars: past bars that make the historical volatility.
            seed: of the sample of windows and the paths.
            spread_windows: at most this many of the calibration segment that the spread is
                regressed on; they cost no paths.
            title: above the figures; None takes the experiment's name.
        """
        super().__init__(recorder=recorder)
        counts = {
            "windows": windows,
            "calibration_windows": calibration_windows,
            "spread_windows": spread_windows,
        }
        for name, value in counts.items():
            if not isinstance(value, int) or value < 1:
                raise ConfigError(f"{name} must be a whole number above 0, got {value!r}")
        if not levels or not all(0 < level < 1 for level in levels):
            raise ConfigError(f"levels lie between 0 and 1, at least one, got {levels!r}")
        self.model = model
        self.dataset = dataset
        self.windows = windows
        self.calibration_windows = calibration_windows
        self.paths = paths
        self.levels = tuple(levels)
        self.segment = segment
        self.calibration_segment = calibration_segment
        self.volatility_bars = volatility_bars
        self.seed = seed
        self.spread_windows = spread_windows
        self.title = title

    def list(self) -> list[str]:
        """Files of the record."""
        return [*self.leaves]

    def checked_paths(self, of_model: int) -> int:
        """Paths that are drawn for a window.

        Args:
            of_model: of the model's `sampling`.

        Raises:
            ConfigError: they are too few for the widest interval.
        """
        paths = of_model if self.paths is None else self.paths
        needed = int(np.ceil(2 / (1 - max(self.levels)) - 1 - 1e-9))
        if paths < needed:
            raise ConfigError(
                f"ForecastReportRecord: an interval of level {max(self.levels):g} needs {needed} "
                f"paths a window at least, got {paths}; set `paths`"
            )
        return paths

    def generate(self, **kwargs: object) -> ForecastQuality:
        """Draw, judge, log and save.

        Raises:
            ConfigError: no model or data set is given, the model is no KronosModel, or a setting
                cannot work.
            BarDataError: a segment has no window whose horizon has come.
            UndefinedMetricError: too few days for a standard error.
        """
        model, source = self._model(), self._source()
        paths = self.checked_paths(model.sampling.paths)
        sampling = replace(model.sampling, paths=paths)
        judged = self._take(source, self.segment, self.windows)
        self._check_days(judged)
        earlier = self._take(source, self.calibration_segment, self.calibration_windows)
        if earlier.reaches >= judged.outcomes.until.min():
            raise ConfigError(
                "the calibration segment must end before the other begins: its windows' horizons "
                f"reach to {_day(earlier.reaches)}, and forecasts to be judged begin at "
                f"{_day(judged.outcomes.until.min())}"
            )
        calibration = self._calibrate(model, source, sampling)
        closes = draw_closes(
            model.predictor, source, judged.windows, sampling, self.seed, model.show_progress
        )
        drawn = Drawn(
            judged, closes, calibrated_closes(calibration, source, judged.windows, closes, sampling)
        )
        found = judge(
            drawn.closes,
            drawn.calibrated,
            judged.outcomes,
            earlier.outcomes,
            self.levels,
            self.seed,
        )
        self._log_baselines(found.baselines, judged, earlier)
        self._save(found, drawn, calibration)
        fits = calibration.fits.values()
        counts = {
            "windows": len(judged.windows),
            "calibration_windows": len(earlier.windows),
            "spread_windows": sum(fit.own.windows for fit in fits),
            "paths": paths,
            "left_out": judged.left_out,
        }
        metrics = {f"forecast.{name}": value for name, value in found.metrics().items()}
        self.recorder.log_metrics(
            **{f"forecast.{name}": float(count) for name, count in counts.items()}, **metrics
        )
        return found

    def _log_baselines(self, baselines: Baselines, judged: Taken, earlier: Taken) -> None:
        for name, reason in baselines.left_out.items():
            logger.warning(f"baseline {name} is left out: {reason}")
        failed, before = baselines.garch_fallbacks, baselines.earlier_garch_fallbacks
        if failed or before:
            logger.info(
                f"GARCH has no fit, and is the EWMA, in {failed} of {len(judged.windows)} windows "
                f"of {self.segment} and {before} of {len(earlier.windows)} of "
                f"{self.calibration_segment}"
            )

    def _model(self) -> KronosModel:
        model = self._given("model", self.model)
        if not isinstance(model, KronosModel):
            raise ConfigError(
                "ForecastReportRecord judges the paths of a KronosModel, and the run's model is a "
                f"{type(model).__name__}: it gives scores, not distributions; leave the record out"
            )
        return model

    def _source(self) -> WindowDataset:
        dataset = self._given("dataset", self.dataset)
        if not isinstance(dataset, KronosDataset):
            raise ConfigError(
                "ForecastReportRecord reads windows from a KronosDataset, and the run has a "
                f"{type(dataset).__name__}"
            )
        return dataset.source

    def _given(self, name: str, found: object) -> object:
        if found is None:
            raise ConfigError(
                "ForecastReportRecord: give it model: <MODEL> and dataset: <DATASET>. A run keeps "
                'both as pickles, and reading one (recorder.load_object("params.pkl")) runs what '
                f"its writer put there, so that is left to you; got no {name}"
            )
        return found

    def _take(self, source: WindowDataset, segment: Segment, count: int) -> Taken:
        known, left_out = known_windows(source, segment)
        windows = sample_windows(known, count, self.seed)
        logger.info(
            f"{len(windows)} windows of {segment} to judge forecasts by; left out: {left_out} "
            "whose instrument did not trade on each of the calendar's next bars"
        )
        outcomes = outcomes_of(source, windows, self.volatility_bars)
        return Taken(windows, outcomes, left_out, times_ahead(known).max())

    def _check_days(self, judged: Taken) -> None:
        """Before paths are drawn in vain."""
        days = judged.outcomes.days.nunique()
        if days < LEAST_DAYS:
            raise UndefinedMetricError(
                f"ForecastReportRecord: the windows of {self.segment} lie on {days} days, and "
                f"{LEAST_DAYS} are the fewest for a standard error; test on a longer segment, or "
                "set more `windows`"
            )

    def _calibrate(
        self, model: KronosModel, source: WindowDataset, sampling: SamplingConfig
    ) -> Calibration:
        shortest = source.min_bars or source.lookback
        if shortest < LEAST_BARS:  # before paths are drawn in vain
            raise ConfigError(
                f"ForecastReportRecord: a calibration takes windows of {LEAST_BARS} bars at least, "
                f"and the data set's have {shortest}: raise lookback or min_bars"
            )
        about = f"{self.calibration_segment} of {experiment_of(self.recorder)}"
        try:
            sample = sample_of(
                model.predictor,
                source,
                self.calibration_segment,
                sampling,
                windows=max(self.spread_windows, self.calibration_windows),
                drawn=self.calibration_windows,
                least=LEAST_WINDOWS,
                seed=self.seed,
                show_progress=model.show_progress,
            )
            return fit_calibration(model.predictor, [sample], sampling, about)
        except (BarDataError, ConfigError) as problem:
            raise type(problem)(
                f"ForecastReportRecord cannot calibrate on {self.calibration_segment}: {problem}"
            ) from problem

    def _save(self, found: ForecastQuality, drawn: Drawn, calibration: Calibration) -> None:
        windows, outcomes = drawn.of.windows, drawn.of.outcomes
        fitted_on = sum(fit.own.windows for fit in calibration.fits.values())
        title = (
            f"{self.title or experiment_of(self.recorder)}: {len(windows)} windows of "
            f"{self.segment}, {drawn.closes.shape[1]} paths; calibrated on {fitted_on} of "
            f"{self.calibration_segment}"
        )
        figures = {
            "crps.png": crps_figure(found.scores, found.differences, title),
            "coverage.png": coverage_figure(found.coverage, title),
            "pit.png": pit_figure(found.pit, title),
            "fans.png": fan_figure(_examples(drawn), self.levels, title),
        }
        tables = {
            "scores.csv": found.scores,
            "coverage.csv": found.coverage,
            "differences.csv": found.differences,
            "pit.csv": found.pit,
            "methods.csv": found.methods,
            "windows.csv": pd.DataFrame({"last_close": outcomes.last_close}, index=windows.index),
        }
        with saved_files(self) as folder:
            for name, table in tables.items():
                table.to_csv(folder / name)
            calibration.save(folder / CALIBRATION_FILE)
            for name, figure in figures.items():
                figure.savefig(folder / name)


@dataclass(frozen=True, eq=False)
class Taken:
    """A sample of windows and what came."""

    windows: Windows
    outcomes: Outcomes
    left_out: int
    """Windows of the whole segment that were not traded on each of the next bars."""
    reaches: np.datetime64
    """The last time that a horizon of the whole segment reaches to."""


@dataclass(frozen=True, eq=False)
class Drawn:
    """A sample of windows with their paths."""

    of: Taken
    closes: Floats
    """(N, P, H) of paths, in money."""
    calibrated: Floats
    """(N, P, H) of the same, calibrated."""


def _examples(drawn: Drawn) -> list[tuple[str, Floats, Floats, Floats, Floats]]:
    """Windows evenly spaced over the sample, for `fan_figure`."""
    outcomes, windows = drawn.of.outcomes, drawn.of.windows
    places = np.linspace(0, len(windows) - 1, 2 * EXAMPLES + 1).round().astype(int)[1::2]
    places = np.unique(places)
    examples = []
    for place, (moment, name) in zip(places, windows.take(places).index, strict=True):
        end = int(windows.ends[:][place])
        length = windows.lookback if windows.lengths is None else int(windows.lengths[place])
        seen = windows.table.values[end + 1 - min(length, SHOWN_PAST) : end + 1, CLOSE]
        title = f"{name}, {_day(moment)}"
        paths = drawn.closes[place], drawn.calibrated[place]
        examples.append((title, seen.astype(np.float64), *paths, outcomes.closes[place]))
    return examples


def _day(moment: pd.Timestamp | np.datetime64) -> str:
    stamp = pd.Timestamp(moment)
    return f"{stamp:%Y-%m-%d}" if stamp == stamp.normalize() else f"{stamp:%Y-%m-%d %H:%M}"
