"""Whether what comes in, or goes out, is still spread as it was when the model was judged."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kronos_qlib.errors import ConfigError

BINS = 10
"""Of the reference, of as many values each where ties allow it."""
MODERATE, LARGE = 0.1, 0.25
"""Population stability indices from which a shift is called moderate, and large: the convention of
credit scoring, not a test. A market's volatility alone moves them."""

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Reference:
    """How values were spread once: by edges, and the share of them in each bin."""

    edges: tuple[float, ...]
    """Increasing, one fewer than bins; a value on an edge is in the bin above."""
    shares: tuple[float, ...]
    """They sum to 1."""

    def __post_init__(self) -> None:
        rising = all(one < other for one, other in zip(self.edges, self.edges[1:], strict=False))
        if len(self.shares) != len(self.edges) + 1 or not rising:
            raise ConfigError(
                f"a reference has rising edges and one share more, got {len(self.edges)} edges and "
                f"{len(self.shares)} shares"
            )
        if not math.isclose(sum(self.shares), 1, abs_tol=1e-6) or min(self.shares) < 0:
            raise ConfigError(f"shares of a reference sum to 1, got {sum(self.shares):g}")


def reference_of(values: npt.ArrayLike, bins: int = BINS) -> Reference | None:
    """The spread of values, those that are no finite number left out.

    Returns:
        None where fewer than `bins` values are known, or all are the same.
    """
    known = _known(values)
    if len(known) < bins or np.ptp(known) == 0:
        return None
    edges = np.unique(np.quantile(known, np.arange(1, bins) / bins))
    edges = edges[edges > known.min()]  # a bin below the smallest value is empty for ever
    if not len(edges):
        edges = np.array([np.nextafter(known.min(), np.inf)])
    counts = counts_in(known, edges.tolist())
    return Reference(tuple(edges.tolist()), tuple((np.array(counts) / len(known)).tolist()))


def counts_in(values: npt.ArrayLike, edges: Sequence[float]) -> list[int]:
    """Values in each bin; what is no finite number is in none."""
    places = np.searchsorted(np.asarray(edges, dtype=np.float64), _known(values), side="right")
    return [int(count) for count in np.bincount(places, minlength=len(edges) + 1)]


def population_stability(shares: Sequence[float], counts: Sequence[int]) -> float:
    """The population stability index of counts against the shares that were expected.

    The sum over bins of (actual - expected) ln(actual / expected), which is 0 for the same spread.
    An empty bin counts as half a value, or the index would be infinite.

    Returns:
        NaN where nothing was counted.

    Raises:
        ConfigError: there are not as many counts as shares.

    Source:
        Siddiqi, "Credit risk scorecards", Wiley (2006); the sum of both Kullback-Leibler
        divergences.
    """
    if len(shares) != len(counts):
        raise ConfigError(f"{len(counts)} counts for {len(shares)} bins")
    total = sum(counts)
    if not total:
        return math.nan
    least = 0.5 / total
    expected = np.maximum(np.asarray(shares, dtype=np.float64), least)
    actual = np.maximum(np.asarray(counts, dtype=np.float64) / total, least)
    expected, actual = expected / expected.sum(), actual / actual.sum()
    return float(((actual - expected) * np.log(actual / expected)).sum())


def drift_word(index: float) -> str:
    """A population stability index in a word."""
    if math.isnan(index):
        return "unknown"
    return "large" if index >= LARGE else "moderate" if index >= MODERATE else "small"


def drift_of(
    references: Mapping[str, Reference], counts: Sequence[Mapping[str, Sequence[int]]]
) -> dict[str, float]:
    """The index of each input, of the counts of several days together.

    Args:
        references: by input.
        counts: of each day, by input; days that lack an input are passed over.
    """
    found = {}
    for name, reference in references.items():
        days = [each[name] for each in counts if len(each.get(name, ())) == len(reference.shares)]
        total = np.sum(days, axis=0).tolist() if days else [0] * len(reference.shares)
        found[name] = population_stability(reference.shares, total)
    return found


def _known(values: npt.ArrayLike) -> Floats:
    found = np.asarray(values, dtype=np.float64).ravel()
    return found[np.isfinite(found)]
