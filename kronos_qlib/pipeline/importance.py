"""Permutation importance: what a head's Rank IC loses when a group of its inputs is shuffled.

Shape letters: B names of a day, F features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pandas as pd

from kronos_qlib.data.windows.scale_features import SCALE_FEATURES
from kronos_qlib.errors import BarDataError, ConfigError
from kronos_qlib.evaluation.ranking.day_tables import LEAST_PAIRS
from kronos_qlib.evaluation.ranking.information_coefficient import SUMMARY, summarise_if_enough
from kronos_qlib.pipeline.contexts import Report
from kronos_qlib.pipeline.contributions import CONTEXT, context_parts
from kronos_qlib.pipeline.head_inputs import HeadInputs, head_inputs, scores_of

if TYPE_CHECKING:
    from kronos_qlib.data.windows.label import Label
    from kronos_qlib.data.windows.window import Windows
    from kronos_qlib.inference.predictor import KronosPredictor
    from kronos_qlib.model.alpha_head import Head

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]

CONTEXT_GROUP, SCALE_GROUP, COLUMN_GROUP = CONTEXT, "scale features", "columns"
MARKET_GROUP = "market"


@dataclass(frozen=True)
class Group:
    """Inputs that are shuffled together.

    contexts: columns of the contexts. features: columns of the features. market: whether the
    market's state is meant, which all names of a day share: it comes from another day.
    inputs: how many they are, a context counting as one.
    """

    inputs: int
    contexts: tuple[slice, ...] = ()
    features: tuple[int, ...] = ()
    market: bool = False


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


def input_groups(
    names: Sequence[str],
    contexts: Mapping[str, slice] | None = None,
    reads_market: bool = False,
) -> dict[str, Group]:
    """Groups of a head's inputs by name.

    The context, then its parts where it has several; all scale features, then their families
    (`return`, `volatility`, ...); all further columns, then each; the market's state.

    Args:
        names: of the features.
        contexts: of `contributions.context_parts`; None or {} where none is read.
    """
    groups: dict[str, Group] = {}
    if contexts:
        groups[CONTEXT_GROUP] = Group(len(contexts), contexts=tuple(contexts.values()))
        groups |= {name: Group(1, contexts=(own,)) for name, own in contexts.items()}
    scale = tuple(at for at, name in enumerate(names) if name in SCALE_FEATURES)
    others = tuple(at for at, name in enumerate(names) if name not in SCALE_FEATURES)
    if scale:
        groups[SCALE_GROUP] = Group(len(scale), features=scale)
    families: dict[str, list[int]] = {}
    for at in scale:
        families.setdefault(f"scale: {names[at].partition('_')[0]}", []).append(at)
    groups |= {name: Group(len(own), features=tuple(own)) for name, own in families.items()}
    if others:
        groups[COLUMN_GROUP] = Group(len(others), features=others)
        groups |= {f"column: {names[at]}": Group(1, features=(at,)) for at in others}
    if reads_market:
        groups[MARKET_GROUP] = Group(1, market=True)
    return groups


def permutation_importance(
    predictor: KronosPredictor,
    head: Head,
    windows: Windows,
    label: Label,
    *,
    shuffles: int = 5,
    seed: int = 0,
    most_days: int | None = None,
    label_bars: int = 1,
    show_progress: bool = False,
    features: Floats | None = None,
    contexts_folder: Path | None = None,
    report: Report | None = None,
) -> Importance:
    """Shuffle each group of inputs among the names of a day, and see what Rank IC is left.

    A group that stands in for another loses little though both matter: a drop says what the head
    would miss, not what the input knows. One order a shuffle and day is used for all columns of a
    group, so that these stay together. The market's state, which all names of a day share, is
    taken from other days among those that are looked at; of one day alone it has no group.

    Args:
        predictor, head: fitted.
        windows: by time, of a segment that the head was not trained on.
        label: what Rank IC is with.
        shuffles: of each group and day; their mean is one day's number.
        seed: of the orders. A day's depend on its date alone.
        most_days: at most so many days, evenly spaced; None takes all.
        label_bars: bars of the label, see `information_coefficient.summarise`.
        features: (N, F) beside the context; it, contexts_folder and report as of `head_inputs`.

    Raises:
        BarDataError: no day has LEAST_PAIRS names with a label.
        ConfigError: shuffles or most_days is below 1, or `features` are not those of the head.

    Source:
        Breiman, "Random forests" (2001); Fisher, Rudin and Dominici, "All models are wrong, but
        many are useful" (2019).
    """
    from kronos_qlib.training.alpha import day_inputs

    if shuffles < 1 or (most_days is not None and most_days < 1) or seed < 0:
        raise ConfigError(
            f"shuffles and most_days are 1 or more and seed is 0 or more, got {shuffles}, "
            f"{most_days} and {seed}"
        )
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
    rows = np.concatenate([np.arange(day.start, day.stop) for day in known])
    windows, returns = windows.take(rows), returns[rows]
    reads_market = head.usual_market is not None and len(known) > 1
    markets = day_inputs(windows)[1] if reads_market else np.empty((0, 0), dtype=np.float32)
    times, whole, drops_of = [], [], []
    groups: Mapping[str, Group] = {}
    days = head_inputs(
        predictor,
        head,
        windows,
        show_progress,
        contexts_folder=contexts_folder,
        report=report,
        features=None if features is None else features[rows],
        what="Importance of inputs",
    )
    for number, (day, inputs) in enumerate(days):
        groups = groups or input_groups(
            inputs.names, context_parts(head.reads, inputs.contexts.shape[1]), reads_market
        )
        moment = windows.times[day.start]
        stamp = int(moment.astype("datetime64[s]").astype(np.int64))
        rng = np.random.default_rng((seed, stamp % 2**63))  # a day before 1970 is below 0
        orders = [rng.permutation(len(inputs.features)) for _ in range(shuffles)]
        elsewhere = np.flatnonzero(np.arange(len(markets)) != number)
        states = [markets[rng.choice(elsewhere)] if len(elsewhere) else None for _ in orders]
        judge = (returns[day], inputs.features)
        rank_ic = _rank_ic(head, predictor, inputs, *judge)
        drops_of.append(
            [
                np.mean(
                    [
                        rank_ic
                        - _rank_ic(head, predictor, _shuffled(inputs, group, order, state), *judge)
                        for order, state in zip(orders, states, strict=True)
                    ]
                )
                for group in groups.values()
            ]
        )
        times.append(moment)
        whole.append(rank_ic)
    index = pd.DatetimeIndex(times, name="datetime")
    drops = pd.DataFrame(drops_of, index=index, columns=list(groups), dtype=np.float64)
    # Days that are left out between those chosen only make neighbours less alike.
    table = pd.DataFrame(
        [summarise_if_enough(drops[name], horizon=label_bars) for name in drops],
        index=pd.Index(list(groups), name="group"),
        columns=list(SUMMARY),
    )
    table.insert(0, "inputs", [group.inputs for group in groups.values()])
    return Importance(pd.Series(whole, index=index, name="rank_ic"), drops, table, shuffles)


def _shuffled(
    inputs: HeadInputs, group: Group, order: npt.NDArray[np.int64], market: Floats | None
) -> HeadInputs:
    """Inputs whose group comes from other names of the day, or whose market is this one."""
    contexts, features = inputs.contexts, inputs.features
    if group.contexts:
        contexts = contexts.copy()
        for columns in group.contexts:
            contexts[:, columns] = inputs.contexts[order, columns]
    if group.features:
        features = features.copy()
        features[:, group.features] = inputs.features[order][:, group.features]
    return replace(
        inputs,
        contexts=contexts,
        features=features,
        market=market if group.market else inputs.market,
    )


def _rank_ic(
    head: Head,
    predictor: KronosPredictor,
    inputs: HeadInputs,
    returns: Doubles,
    styles: Floats,
) -> float:
    """Of scores that are neutral to the features as they are, where the head is neutral."""
    from kronos_qlib.training.alpha import correlations

    scores = scores_of(head, inputs, predictor.device, styles)
    known = np.isfinite(returns)
    return correlations(scores[known], returns[known].astype(np.float32))[1]
