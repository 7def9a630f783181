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
    from kronos_qlib.model.alpha_head import AlphaHead
    from kronos_qlib.pipeline.scoring import HeadInputs

Doubles = npt.NDArray[np.float64]
Row = tuple[str, str, float, float, float]
"""An input's name, and its row of `Contributions.table`."""

CONTEXT, SCALE, COLUMN = KINDS = ("context", "scale", "column")
"""Kinds of input: the backbone's embedding, what normalising a window takes away, any other."""

GRADIENT, SHAP = "gradient times input", "SHAP values"


@dataclass(frozen=True)
class Contributions:
    """What each input of a model added to one name's score, against the day's mean score.

    instrument: the name.
    score, day_mean, day_deviation: the name's score, and mean and population deviation of the
        day's scores, in the model's own units.
    rank, names: its place, 1 being the highest score (ties share their best), among how many.
    method: what `contribution` is: GRADIENT or SHAP.
    table: a row for each input, on "input", the largest contribution first. `kind`, of KINDS.
        `percentile`: share of the other names whose value is lower, ties counted half; NaN for the
        context, which is no one number, and where the value is not known. `contribution`: in the
        score's unit. `left_out`: score less the score that the name has with this input at the
        day's mean (of trees the day's median) and all others as they are.
    """

    instrument: str
    score: float
    day_mean: float
    day_deviation: float
    rank: int
    names: int
    method: str
    table: pd.DataFrame

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
    head: AlphaHead, inputs: HeadInputs, names: Sequence[str], instrument: str
) -> Contributions:
    """Gradient times input, and leaving each out, at one name of a day.

    The gradient is the score's by the name's own inputs, with the others' and the day's mean and
    deviation as they are; the input is counted from the day's mean. For a linear head these add up
    to the score less the day's mean.

    Args:
        head: in evaluation mode.
        inputs: of all of the day's windows.
        names: (B,) instruments, in the same order.
        instrument: of `names`.

    Raises:
        BarDataError: the instrument has no window that day.

    Source:
        Shrikumar et al., "Not just a black box: learning important features through propagating
        activation differences" (2016), on gradient times input.
    """
    import torch

    from kronos_qlib.model.alpha_head import compared

    place = _place(names, instrument)
    device = next(head.parameters()).device
    context, features = inputs.tensors(device)
    reads_context = head.reads_context
    with torch.enable_grad():
        moved = (compared(context) if reads_context else context).requires_grad_(True)
        seen = features.clone().requires_grad_(True)
        scores = head.of_compared(moved, seen)
        asked = (moved, seen) if reads_context else (seen,)
        found = torch.autograd.grad(scores[place], asked, allow_unused=True)
    gradients = [
        torch.zeros_like(one) if grad is None else grad
        for one, grad in zip(asked, found, strict=True)
    ]
    own = scores[place].item()
    seen, moved = seen.detach(), moved.detach()
    mean = features.mean(dim=0)
    rows: list[Row] = []

    def score_with(context: Any, features: Any) -> float:
        with torch.inference_mode():
            return float(head.of_compared(context, features)[place])

    if reads_context:
        # The mean of contexts that are compared is 0: the input itself is the distance to it.
        emptied = moved.clone()
        emptied[place] = 0.0
        added = float((gradients[0][place] * moved[place]).sum())
        rows.append((CONTEXT, CONTEXT, np.nan, added, own - score_with(emptied, seen)))
    parts = (gradients[-1][place] * (features[place] - mean)).tolist()
    standing = _percentiles(inputs.features, place)
    for column, name in enumerate(inputs.names):
        emptied = seen.clone()
        emptied[place, column] = mean[column]
        kind = SCALE if name in SCALE_FEATURES else COLUMN
        without = own - score_with(moved, emptied)
        rows.append((name, kind, float(standing[column]), parts[column], without))
    values = scores.detach().cpu().numpy().astype(np.float64)
    return _contributions(rows, values, place, instrument, GRADIENT)


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
    rows: Sequence[Row], scores: Doubles, place: int, instrument: str, method: str
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
