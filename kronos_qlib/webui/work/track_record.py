"""How far it has been right here: scores of windows whose bars have come, beside baselines.

Shape letters: N windows, P paths, H bars of the horizon.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd

from kronos_qlib.errors import KronosError
from kronos_qlib.evaluation.forecasts.baselines.baseline_distributions import (
    LastPrice,
    VolatilityWalk,
)
from kronos_qlib.evaluation.forecasts.baselines.named_baselines import LAST_PRICE, WALK
from kronos_qlib.evaluation.forecasts.distributions import (
    VOLATILITY_BARS,
    Distribution,
    Outcomes,
    PathDistribution,
    interval,
)
from kronos_qlib.schema import CLOSE
from kronos_qlib.webui.schemas import MethodScore, PastWindows, Settings, WindowScore
from kronos_qlib.webui.work.forecast_answer import Plan, Series, draw, time_of
from kronos_qlib.webui.work.held_models import Held

Doubles = npt.NDArray[np.float64]

BANDS = (0.5, 0.8, 0.9)
KRONOS = "kronos"
LEAST_PAST = 3
"""Closes that a historical volatility is made of, at least."""


def methods_of(outcomes: Outcomes, paths: Doubles, stratified: bool) -> dict[str, Distribution]:
    """The forecast and its two baselines. paths: (N, P, H) closes."""
    return {
        KRONOS: PathDistribution(paths, outcomes.last_close, stratified),
        LAST_PRICE: LastPrice(*outcomes.closes.shape),
        WALK: VolatilityWalk.of(outcomes),
    }


def outcomes_of_closes(
    times: Sequence[np.datetime64], past: Doubles, came: Doubles, until: npt.NDArray[np.datetime64]
) -> Outcomes:
    """As `Outcomes`, with as many past returns as there are, a month's at most.

    Args:
        times: (N,) of the last bars seen. past: (N, L) closes seen. came: (N, H) closes that came.
        until: (N,) times of the newest of them.
    """
    return Outcomes(
        np.asarray(times, dtype="datetime64[ns]"),
        past,
        came,
        until,
        volatility_bars=min(VOLATILITY_BARS, past.shape[1] - 1),
    )


def scores_of(methods: Mapping[str, Distribution], outcomes: Outcomes) -> list[MethodScore]:
    """CRPS and coverage of each method, over all windows and bars."""
    came = outcomes.returns
    return [
        MethodScore(
            method=name,  # type: ignore[arg-type]  # one of the three
            crps=float(method.crps(came).mean()),
            coverage=None if name == LAST_PRICE else coverage_of(method, came),
        )
        for name, method in methods.items()
    ]


def coverage_of(method: Distribution, came: Doubles) -> dict[str, float]:
    """Share of bars within each band that the number of paths supports."""
    found = {}
    for level in BANDS:
        try:
            low, high = interval(method, level)
        except KronosError:
            continue  # too few paths for this band
        found[f"{level:g}"] = float(((low <= came) & (came <= high)).mean())
    return found


def score_window(
    sample: Sequence[Sequence[float]],
    past: Doubles,
    came: Doubles,
    stratified: bool,
) -> list[MethodScore]:
    """Of one window, as far as its bars have come.

    Args:
        sample: closes of the paths for each bar to come, at least as many bars as `came`.
        past: (at least `LEAST_PAST`) closes seen. came: (n) closes from the first bar on.
    """
    bars = len(came)
    paths = np.array(sample[:bars], dtype=np.float64).T[None]
    # Times matter to label days alone, which are not asked here.
    until = np.arange(1, bars + 1).astype("datetime64[D]").astype("datetime64[ns]")
    outcomes = outcomes_of_closes(
        [np.datetime64(0, "ns")], np.asarray(past)[None], np.asarray(came)[None], until[None]
    )
    return scores_of(methods_of(outcomes, paths, stratified), outcomes)


def past_windows(
    series: Series,
    asked: Settings,
    lookback: int,
    windows: int,
    held: Held,
    on_progress: Callable[[float], None],
) -> PastWindows | str:
    """Draw the last windows before the forecast's, and score them; or why that cannot be.

    They do not overlap in the bars that they forecast, and see as many bars as the forecast does,
    which is drawn with the same settings.
    """
    bars, horizon = series.bars, asked.horizon
    ends = [len(bars) - horizon * back for back in range(1, windows + 1)]
    seen = max(lookback, LEAST_PAST)
    ends = [end for end in ends if end >= seen][::-1]
    if not ends:
        return (
            f"{series.source_name} has {len(bars)} bars up to the forecast; one past window of "
            f"{lookback} bars and {horizon} to come needs {seen + horizon}"
        )
    plans = []
    for end in ends:
        before = Series(bars.iloc[:end], bars.iloc[end:], series.source, series.source_name, ())
        plans.append(Plan.of(before, asked.model_copy(update={"lookback": lookback}), held))
    drawn = draw(
        [plan.window for plan in plans],
        [plan.times for plan in plans],
        series.name,
        asked,
        held,
        on_progress,
    )
    closes = bars["close"].to_numpy(dtype=np.float64)
    dates = bars["date"].to_numpy()
    kept = min(min(ends), VOLATILITY_BARS + 1)
    past = np.stack([closes[end - kept : end] for end in ends])
    came = np.stack([closes[end : end + horizon] for end in ends])
    until = np.stack([dates[end : end + horizon] for end in ends])
    outcomes = outcomes_of_closes([dates[end - 1] for end in ends], past, came, until)
    paths = np.stack([one.paths[:, :, CLOSE].astype(np.float64) for one in drawn])
    methods = methods_of(outcomes, paths, all(one.is_calibrated for one in drawn))
    lost = {name: method.crps(outcomes.returns).mean(axis=1) for name, method in methods.items()}
    is_intraday = bool((bars["date"] != bars["date"].dt.normalize()).any())
    shown = [time_of(dates[end - 1], is_intraday) for end in ends]
    return PastWindows(
        windows=len(ends),
        first=shown[0],
        last=shown[-1],
        scores=scores_of(methods, outcomes),
        by_window=[
            WindowScore(
                date=date, crps={name: float(values[place]) for name, values in lost.items()}
            )
            for place, date in enumerate(shown)
        ],
        better_than={
            name: float((lost[KRONOS] < lost[name]).mean()) for name in (LAST_PRICE, WALK)
        },
        notes=_flattery(drawn[-1].calibration, outcomes, len(ends), windows),
    )


def _flattery(calibration: str, outcomes: Outcomes, found: int, asked: int) -> list[str]:
    """What makes these scores better than those of days to come would be.

    Args:
        calibration: what the forecasts say of it: "calibrated on ..., until 2002-06-28".
    """
    notes = []
    if found < asked:
        notes.append(f"the bars reach back to {found} such windows, {asked} were asked for")
    _, is_until, until = calibration.rpartition(", until ")
    if calibration.startswith("calibrated") and is_until:
        inside = int((outcomes.times <= pd.Timestamp(until).to_datetime64()).sum())
        if inside:
            notes.append(
                f"{inside} of these windows lie before {until}, up to which the calibration was "
                "fitted"
            )
    return notes
