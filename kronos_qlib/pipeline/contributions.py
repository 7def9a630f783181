"""What each input added to one name's score of a day: of an alpha head, of boosted trees.

A score is a place among the day's names, so it is explained against the day's mean: what a name's
input adds is what moves its score away from there. Shape letters: B names of the day, D width of
the context, F features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.stats import rankdata

from kronos_qlib.data.windows.scale_features import SCALE_FEATURES
from kronos_qlib.errors import BarDataError

if TYPE_CHECKING:
    from torch import Tensor

    from kronos_qlib.model.alpha_head import Head
    from kronos_qlib.model.sizes import ContextConfig
    from kronos_qlib.pipeline.head_inputs import HeadInputs

Doubles = npt.NDArray[np.float64]
Row = tuple[str, str, float, float, float]
"""An input's name, and its row of `Contributions.table`."""

CONTEXT, SCALE, COLUMN = KINDS = ("context", "scale", "column")
"""Kinds of input: the backbone's embedding or a part of it, what normalising a window takes away,
any other."""

GRADIENT, SHAP = "gradient times input", "SHAP values"


@dataclass(frozen=True)
class Contributions:
    """What each input of a model added to one name's score, against the day's mean score.

    instrument: the name.
    score, day_mean, day_deviation: the name's score, and mean and population deviation of the
        day's scores, in the model's own units.
    rank, names: its place, 1 being the highest score (ties share their best), among how many.
    method: what `contribution` is: GRADIENT or SHAP.
    table: a row for each input, on "input", the largest contribution first. `kind`, of KINDS; a
        head that reads several contexts of a window has a row for each.
        `percentile`: share of the other names whose value is lower, ties counted half; NaN for the
        context, which is no one number, and where the value is not known. `contribution`: in the
        score's unit. `left_out`: score less the score that the name has with this input at the
        day's mean (of trees the day's median) and all others as they are.
    market: how much farther above the day's mean the score is than it would be with the market's
        state at its mean over the training days; None of a model that reads no such state. All
        names have the same, so it is no row of the table: it is in what the others' rows say.
    """

    instrument: str
    score: float
    day_mean: float
    day_deviation: float
    rank: int
    names: int
    method: str
    table: pd.DataFrame
    market: float | None = None

    @property
    def rest(self) -> float:
        """Of score less the day's mean, what the contributions do not add up to.

        0 for a linear head and for trees, up to rounding. Otherwise how far the head is from
        linear between this name and the mean.
        """
        return self.score - self.day_mean - float(self.table["contribution"].sum())

    @property
    def agreement(self) -> float:
        """Correlation, over the inputs, of `contribution` with `left_out`; NaN where one is flat.

        Near 1 the two ways of asking give the same answer; far from it neither is to be trusted.
        """
        one, other = (
            self.table[name].to_numpy(dtype=np.float64) for name in ("contribution", "left_out")
        )
        if len(one) < 2 or not (np.ptp(one) > 0 and np.ptp(other) > 0):
            return float("nan")
        return float(np.corrcoef(one, other)[0, 1])

    def by_kind(self) -> pd.DataFrame:
        """`contribution` and its number of `inputs`, summed by kind, those there are."""
        groups = self.table.groupby("kind", sort=False)["contribution"]
        return pd.DataFrame({"contribution": groups.sum(), "inputs": groups.size()})


class Trees(Protocol):
    """A LightGBM booster."""

    def predict(self, data: Any, *, pred_contrib: bool = False) -> Any:
        """(N,) scores, or (N, F + 1) SHAP values with the expected score as the last column."""


def contributions_of_head(
    head: Head,
    inputs: HeadInputs,
    names: Sequence[str],
    instrument: str,
    known: npt.NDArray[np.bool_] | None = None,
) -> Contributions:
    """Gradient times input, and leaving each out, at one name of a day.

    The gradient is the score's by the name's own inputs, with the others' and the day's mean and
    deviation as they are; the input is counted from the day's mean. For a linear head these add up
    to the score less the day's mean. An ensemble's are the mean of its members', each in deviations
    of that member's scores of the day, as its score is.

    Args:
        head: in evaluation mode; of several horizons the score, which is the first, is explained.
        inputs: of all of the day's windows.
        names: (B,) instruments, in the same order.
        instrument: of `names`.
        known: (B, F) which features are of a known value; None: all. Others are at the day's median
            and have no percentile.

    Raises:
        BarDataError: the instrument has no window that day.

    Source:
        Shrikumar et al., "Not just a black box: learning important features through propagating
        activation differences" (2016), on gradient times input.
    """
    import torch

    from kronos_qlib.model.alpha_head import compared

    place = _place(names, instrument)
    context, features, market = inputs.tensors(next(head.parameters()).device)
    score = head.with_day_held(context, features, market)
    with torch.enable_grad():
        moved = context if head.reads is None else compared(context)
        moved, seen = moved.clone().requires_grad_(True), features.clone().requires_grad_(True)
        scores = score(moved, seen, market)
        found = torch.autograd.grad(scores[place], (moved, seen), allow_unused=True)
    by_context, by_feature = (
        torch.zeros_like(one) if grad is None else grad
        for one, grad in zip((moved, seen), found, strict=True)
    )
    scores, moved, seen = scores.detach(), moved.detach(), seen.detach()
    mean = features.mean(dim=0)
    rows: list[Row] = []

    def lost_without(context: Tensor, features: Tensor) -> float:
        with torch.inference_mode():
            return float(scores[place] - score(context, features, market)[place])

    # The mean of contexts that are compared is 0: the input itself is the distance to it.
    for name, columns in context_parts(head.reads, context.shape[1]).items():
        emptied = moved.clone()
        emptied[place, columns] = 0.0
        added = float((by_context[place, columns] * moved[place, columns]).sum())
        rows.append((name, CONTEXT, np.nan, added, lost_without(emptied, seen)))
    parts = (by_feature[place] * (features[place] - mean)).tolist()
    standing = _percentiles(
        inputs.features if known is None else np.where(known, inputs.features, np.nan), place
    )
    for column, name in enumerate(inputs.names):
        emptied = seen.clone()
        emptied[place, column] = mean[column]
        kind = SCALE if name in SCALE_FEATURES else COLUMN
        without = lost_without(moved, emptied)
        rows.append((name, kind, float(standing[column]), parts[column], without))
    of_market = None
    if (usual := head.usual_market) is not None:
        with torch.inference_mode():
            otherwise = scores - score(moved, seen, usual)
        of_market = float(otherwise[place] - otherwise.mean())
    values = scores.cpu().numpy().astype(np.float64)
    return _contributions(rows, values, place, instrument, GRADIENT, of_market)


def context_parts(reads: ContextConfig | None, width: int) -> dict[str, slice]:
    """Columns of contexts (B, width) by what they are of, each part of one width; {} of none."""
    if reads is None:
        return {}
    each = width // reads.parts
    names = [CONTEXT] if reads.parts == 1 else [f"{CONTEXT}: {name}" for name in reads.part_names]
    return {name: slice(at * each, (at + 1) * each) for at, name in enumerate(names)}


def contributions_of_trees(
    trees: Trees, features: pd.DataFrame, instrument: str, kinds: Mapping[str, str] | None = None
) -> Contributions:
    """SHAP values of boosted trees less the day's mean of them, and leaving each column out.

    They add up to the score less the day's mean.

    Args:
        trees: a LightGBM booster of one output.
        features: (B, F) of all of the day's names, on the instruments; NaN where not known.
        instrument: of these.
        kinds: of columns that are not plain: those of CONTEXT count as one input.

    Raises:
        BarDataError: the instrument has no row that day.

    Source:
        Lundberg et al., "From local explanations to global understanding with explainable AI for
        trees" (2020).
    """
    kinds = kinds or {}
    place = _place([str(name) for name in features.index], instrument)
    values = features.to_numpy()
    shap = np.asarray(trees.predict(values, pred_contrib=True), dtype=np.float64)[:, :-1]
    scores = np.asarray(trees.predict(values), dtype=np.float64)
    parts = shap[place] - shap.mean(axis=0)
    columns = [str(name) for name in features.columns]
    of_context = np.array([kinds.get(name) == CONTEXT for name in columns])
    groups = [[at] for at in np.flatnonzero(~of_context).tolist()]
    if of_context.any():
        groups.append(np.flatnonzero(of_context).tolist())
    emptied = np.repeat(values[place][None], len(groups), axis=0)
    median = features.median().to_numpy(dtype=emptied.dtype)
    for row, group in enumerate(groups):
        emptied[row, group] = median[group]
    without = np.asarray(trees.predict(emptied), dtype=np.float64)
    standing = _percentiles(values, place)
    rows: list[Row] = []
    for row, group in enumerate(groups):
        first = group[0]
        if of_context[first]:
            name, kind, percentile = CONTEXT, CONTEXT, np.nan
        else:
            name, percentile = columns[first], float(standing[first])
            kind = kinds.get(name, COLUMN)
        added = float(parts[group].sum())
        rows.append((name, kind, percentile, added, float(scores[place] - without[row])))
    return _contributions(rows, scores, place, instrument, SHAP)


def _contributions(
    rows: Sequence[Row],
    scores: Doubles,
    place: int,
    instrument: str,
    method: str,
    market: float | None = None,
) -> Contributions:
    columns = ["input", "kind", "percentile", "contribution", "left_out"]
    table = pd.DataFrame(rows, columns=columns).set_index("input")
    largest = np.argsort(-table["contribution"].abs().to_numpy(), kind="stable")
    return Contributions(
        instrument=instrument,
        score=float(scores[place]),
        day_mean=float(scores.mean()),
        day_deviation=float(scores.std()),
        rank=1 + int((scores > scores[place]).sum()),
        names=len(scores),
        method=method,
        table=table.iloc[largest],
        market=market,
    )


def _place(names: Sequence[str], instrument: str) -> int:
    if instrument not in names:
        raise BarDataError(
            f"{instrument} is not among the {len(names)} names that were scored that day"
        )
    return list(names).index(instrument)


def _percentiles(values: npt.NDArray[Any], place: int) -> Doubles:
    """(F,) share of the other known values that are lower than the one at `place`, of (B, F)."""
    found = np.full(values.shape[1], np.nan)
    for column in range(values.shape[1]):
        known = np.isfinite(values[:, column])
        if known[place] and known.sum() > 1:
            ranks = rankdata(values[known, column])
            found[column] = (ranks[int(known[:place].sum())] - 1) / max(1, len(ranks) - 1)
    return found
