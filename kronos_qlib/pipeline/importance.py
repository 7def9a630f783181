"""Permutation importance: what a head's Rank IC loses when a group of its inputs is shuffled.

Shape letters: B names of a day, F features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from kronos_qlib.data.windows.scale_features import SCALE_FEATURES
from kronos_qlib.errors import BarDataError, ConfigError
from kronos_qlib.evaluation.ranking.day_tables import LEAST_PAIRS
from kronos_qlib.evaluation.ranking.information_coefficient import SUMMARY, summarise_if_enough
from kronos_qlib.log import progress
from kronos_qlib.pipeline.head_inputs import HeadInputs, head_inputs, scores_of

if TYPE_CHECKING:
    from kronos_qlib.data.windows.label import Label
    from kronos_qlib.data.windows.window import Windows
    from kronos_qlib.inference.predictor import KronosPredictor
    from kronos_qlib.model.alpha_head import AlphaHead

CONTEXT_GROUP, SCALE_GROUP, COLUMN_GROUP = "context", "scale features", "columns"


@dataclass(frozen=True)
class Importance:
    """What each group of a head's inputs is worth.

    rank_ic: the head's daily Rank IC with all inputs as they are.
    drops: on the same days, a column a group: rank_ic less the mean over the shuffles of the Rank
        IC with this group shuffled among the day's names.
    table: on the groups, SUMMARY of the drops as columns and the number of `inputs`.
    shuffles: of each group and day.
    """

    rank_ic: pd.Series[float]
    drops: pd.DataFrame
    table: pd.DataFrame
    shuffles: int


def input_groups(names: Sequence[str], reads_context: bool) -> dict[str, tuple[int, ...]]:
    """Groups of a head's inputs by name: the columns of its features, () for the context.

    The context; all scale features, then their families (`return`, `volatility`, ...); all further
    columns, then each.
    """
    groups: dict[str, tuple[int, ...]] = {CONTEXT_GROUP: ()} if reads_context else {}
    scale = [at for at, name in enumerate(names) if name in SCALE_FEATURES]
    others = [at for at, name in enumerate(names) if name not in SCALE_FEATURES]
    if scale:
        groups[SCALE_GROUP] = tuple(scale)
    families: dict[str, list[int]] = {}
    for at in scale:
        families.setdefault(f"scale: {names[at].partition('_')[0]}", []).append(at)
    groups |= {name: tuple(own) for name, own in families.items()}
    if others:
        groups[COLUMN_GROUP] = tuple(others)
        groups |= {f"column: {names[at]}": (at,) for at in others}
    return groups


def permutation_importance(
    predictor: KronosPredictor,
    head: AlphaHead,
    windows: Windows,
    label: Label,
    *,
    shuffles: int = 5,
    seed: int = 0,
    most_days: int | None = None,
    label_bars: int = 1,
    show_progress: bool = False,
) -> Importance:
    """Shuffle each group of inputs among the names of a day, and see what Rank IC is left.

    A group that stands in for another loses little though both matter: a drop says what the head
    would miss, not what the input knows. One order a shuffle and day is used for all columns of a
    group, so that these stay together.

    Args:
        predictor, head: fitted.
        windows: by time, of a segment that the head was not trained on.
        label: what Rank IC is with.
        shuffles: of each group and day; their mean is one day's number.
        seed: of the orders. A day's depend on its date alone.
        most_days: at most so many days, evenly spaced; None takes all.
        label_bars: bars of the label, see `information_coefficient.summarise`.

    Raises:
        BarDataError: no day has LEAST_PAIRS names with a label.
        ConfigError: shuffles or most_days is below 1.

    Source:
        Breiman, "Random forests" (2001); Fisher, Rudin and Dominici, "All models are wrong, but
        many are useful" (2019).
    """
    if shuffles < 1 or (most_days is not None and most_days < 1):
        raise ConfigError(f"shuffles and most_days are 1 or more, got {shuffles} and {most_days}")
    returns = np.asarray(label.of(windows), dtype=np.float64)
    known = [day for day in windows.moments() if np.isfinite(returns[day]).sum() >= LEAST_PAIRS]
    if not known:
        raise BarDataError(
            f"no day of {len(windows)} windows has {LEAST_PAIRS} names with a label: there is no "
            "Rank IC to lose"
        )
    if most_days is not None and len(known) > most_days:
        chosen = np.linspace(0, len(known) - 1, most_days).round().astype(int)
        known = [known[place] for place in chosen]
    head = head.to(predictor.device).eval()
    times, whole, rows = [], [], []
    groups: Mapping[str, tuple[int, ...]] = {}
    for day in progress(known, "Importance of inputs", unit="day", show=show_progress):
        one = windows.take(day)
        inputs = head_inputs(predictor, head, one)
        groups = groups or input_groups(inputs.names, head.reads_context)
        moment = one.times[0]
        rng = np.random.default_rng((seed, int(moment.astype("datetime64[s]").astype(np.int64))))
        orders = [rng.permutation(len(one)) for _ in range(shuffles)]
        rank_ic = _rank_ic(head, predictor, inputs, returns[day])
        rows.append(
            [
                np.mean(
                    [
                        rank_ic
                        - _rank_ic(head, predictor, _shuffled(inputs, group, order), returns[day])
                        for order in orders
                    ]
                )
                for group in groups.values()
            ]
        )
        times.append(moment)
        whole.append(rank_ic)
    index = pd.DatetimeIndex(times, name="datetime")
    drops = pd.DataFrame(rows, index=index, columns=list(groups), dtype=np.float64)
    # Days that are left out between those chosen only make neighbours less alike.
    table = pd.DataFrame(
        [summarise_if_enough(drops[name], horizon=label_bars) for name in drops],
        index=pd.Index(list(groups), name="group"),
        columns=list(SUMMARY),
    )
    table.insert(0, "inputs", [max(1, len(group)) for group in groups.values()])
    return Importance(pd.Series(whole, index=index, name="rank_ic"), drops, table, shuffles)


def _shuffled(inputs: HeadInputs, group: tuple[int, ...], order: np.ndarray) -> HeadInputs:
    """Inputs whose group, () being the context, comes from other names of the day."""
    if not group:
        return HeadInputs(inputs.contexts[order], inputs.features, inputs.names)
    features = inputs.features.copy()
    features[:, group] = inputs.features[order][:, group]
    return HeadInputs(inputs.contexts, features, inputs.names)


def _rank_ic(
    head: AlphaHead, predictor: KronosPredictor, inputs: HeadInputs, returns: np.ndarray
) -> float:
    import torch

    from kronos_qlib.training.alpha import correlations

    with torch.inference_mode():
        scores = head(*inputs.tensors(predictor.device)).float().cpu().numpy()
    known = np.isfinite(returns)
    return correlations(scores[known], returns[known])[1]
