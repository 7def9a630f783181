"""Weights of a long-only book by a linear programme: expected return, less costs and tail risk.

Shape letters: N names, S joint outcomes (a past day each), Q quantile levels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import linprog
from scipy.sparse import csr_array, eye_array, hstack, vstack

from kronos_qlib.errors import ConfigError
from kronos_qlib.settings import check_number, check_whole, require

Floats = npt.NDArray[np.float64]
ROUNDS = 8
"""Programmes at most that are solved for costs with a least one; each takes the last one's trades
for what a trade costs."""
NO_TRADE = 1e-9
"""Share of the book below which a change of weight is rounding."""
LEAST_DAYS = 20
"""Past days that can say how names move together."""


@dataclass(frozen=True, kw_only=True)
class WeightConfig:
    """How money is parted among names where weights are asked for in place of TopK."""

    aversion: float = 0.1
    """What a unit of tail loss costs, in units of expected return. At 1 a name has to be expected
    to earn what it loses in the worst outcomes: few are."""
    tail: float = 0.1
    """Share of the worst outcomes whose mean loss is the tail loss (CVaR)."""
    most: float = 0.1
    """Largest share of the book that one name may have."""
    days: int = 250
    """Past days that say how names move together."""

    def __post_init__(self) -> None:
        check_number(self, "aversion", "tail", "most")
        check_whole(self, "days", least=LEAST_DAYS)
        require(self.aversion >= 0, f"aversion must not be negative, got {self.aversion}")
        require(
            0.1 <= self.tail <= 1,
            f"tail must lie in [0.1, 1]: of twenty outcomes fewer say nothing, got {self.tail}",
        )
        require(0 < self.most <= 1, f"most must lie in (0, 1], got {self.most}")


def joint_outcomes(quantiles: Floats, past: Floats) -> Floats:
    """Returns of names that each have their forecast's distribution and move together as the past.

    Paths are drawn for each name alone, as if no two had anything in common: a book of many would
    look free of risk. So a past day's ranks say which of its outcomes each name has together with
    the others.

    Args:
        quantiles: (N, Q) of each name's return, by rising levels that are equally spaced: as many
            outcomes, each as likely as the others.
        past: (S, N) returns of past days, NaN where a name did not trade: there it is taken to
            have moved as the others' mean.

    Returns:
        (S, N).

    Source:
        Clark, Gangopadhyay, Hay, Rajagopalan and Wilby, "The Schaake shuffle", Journal of
        Hydrometeorology 5 (2004).
    """
    known = np.isfinite(past)
    count = np.maximum(known.sum(axis=1), 1)
    market = np.where(known, past, 0.0).sum(axis=1) / count
    filled = np.where(known, past, market[:, None])
    ranks = np.argsort(np.argsort(filled, axis=0, kind="stable"), axis=0, kind="stable")
    levels = quantiles.shape[1]
    places = (ranks + 0.5) / len(past) * levels - 0.5
    at = np.arange(levels, dtype=np.float64)
    columns = [np.interp(place, at, own) for place, own in zip(places.T, quantiles, strict=True)]
    return np.stack(columns, axis=1)


def target_weights(
    outcomes: Floats,
    held: Floats,
    low: Floats,
    high: Floats,
    *,
    budget: float,
    costs: tuple[float, float],
    how: WeightConfig,
    least_cost: float = 0.0,
) -> Floats:
    """The weights with the highest mean return, less costs and `aversion` times the tail loss.

    A least cost of each trade makes the programme one of whole numbers; it is solved by a sequence
    of linear ones, in which a trade costs by its size what it cost in the one before. The best that
    they find, by what it truly costs, is taken: it need not be the best of all.

    Args:
        outcomes: (S, N) returns, each row as likely as any other.
        held: (N,) weights now, shares of the book's value.
        low, high: (N,) between which each weight lies.
        budget: that all together may have.
        costs: fractions of the money bought, and of that sold.
        least_cost: of each trade, as a share of the book's value.

    Returns:
        (N,) weights.

    Raises:
        ConfigError: no weights keep all bounds, or the solver finds none.

    Source:
        Rockafellar and Uryasev, "Optimization of conditional value-at-risk", Journal of Risk 2
        (2000): CVaR as a linear programme. The sequence for a least cost: Kim and Pardalos, "A
        solution approach to the fixed charge network flow problem using a dynamic slope scaling
        procedure", Operations Research Letters 24 (1999).
    """
    if (least := float(low.sum())) > budget + 1e-9:
        raise ConfigError(
            f"what is held and cannot be sold tonight is {least:.1%} of the book, and risk_degree "
            f"lets {budget:.1%} be held: no weights keep both; raise strategy.risk_degree, or "
            "leave orders.weights out for an evening"
        )
    rates = [np.full(outcomes.shape[1], rate) for rate in costs]
    best, least_loss = None, np.inf
    for _ in range(ROUNDS if least_cost > 0 else 1):
        found = np.clip(_solved(outcomes, held, low, high, budget, rates, how), low, high)
        changes = [(found - held).clip(0), (held - found).clip(0)]
        loss = _loss(outcomes, found, how) + sum(
            float(np.maximum(rate * change, least_cost)[change > NO_TRADE].sum())
            for rate, change in zip(costs, changes, strict=True)
        )
        if loss < least_loss:
            best, least_loss = found, loss
        before = rates
        rates = [
            # Who did not trade keeps its rate; a trade never costs more than it is worth.
            np.where(change > NO_TRADE, np.clip(least_cost / change.clip(NO_TRADE), rate, 1), kept)
            for rate, kept, change in zip(costs, before, changes, strict=True)
        ]
        if all(np.allclose(one, other) for one, other in zip(rates, before, strict=True)):
            break
    assert best is not None
    return best


def _loss(outcomes: Floats, weights: Floats, how: WeightConfig) -> float:
    """What the programme makes small, without costs."""
    losses = np.sort(-(outcomes @ weights))[::-1]
    edge = losses[min(len(losses), int(np.ceil(how.tail * len(losses) - 1e-9))) - 1]
    tail = edge + np.maximum(losses - edge, 0).mean() / how.tail
    return float(losses.mean() + how.aversion * tail)


def _solved(
    outcomes: Floats,
    held: Floats,
    low: Floats,
    high: Floats,
    budget: float,
    rates: Sequence[Floats],
    how: WeightConfig,
) -> Floats:
    """(N,) the best weights where trades cost by size: `rates` (N,) of buying and of selling."""
    days, names = outcomes.shape
    # Variables: weights, bought, sold, the loss at the edge of the tail, and losses beyond it.
    goal = np.concatenate(
        [
            -outcomes.mean(axis=0),
            *rates,
            [how.aversion],
            np.full(days, how.aversion / (how.tail * days)),
        ]
    )
    one = eye_array(names)
    traded = hstack([one, -one, one, csr_array((names, 1 + days))])  # weight - bought + sold
    beyond = hstack(
        [-outcomes, csr_array((days, 2 * names)), -np.ones((days, 1)), -eye_array(days)]
    )
    spent = csr_array(np.concatenate([np.ones(names), np.zeros(2 * names + 1 + days)])[None])
    found = linprog(
        goal,
        A_ub=vstack([beyond, spent]),
        b_ub=np.concatenate([np.zeros(days), [budget]]),
        A_eq=traded,
        b_eq=held,
        bounds=[
            *zip(low.tolist(), high.tolist(), strict=True),
            *[(0, None)] * (2 * names),
            (None, None),
            *[(0, None)] * days,
        ],
        method="highs",
    )
    if found.status != 0:
        raise ConfigError(f"no weights were found: {found.message}")
    weights: Floats = found.x[:names]
    return weights
