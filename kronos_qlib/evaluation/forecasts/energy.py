"""The energy score: a forecast of whole paths, judged by the path that came.

Shape letters: N windows, P paths, H bars of the horizon.
"""

from __future__ import annotations

import numpy as np

from kronos_qlib.errors import BarDataError
from kronos_qlib.evaluation.forecasts.distributions import Floats

AT_ONCE = 1 << 22
"""Pairs of paths whose distances are held in memory."""


def energy_score(paths: Floats, came: Floats, *, is_fair: bool = True) -> Floats:
    """(N,) mean distance of the paths from what came, less half the mean distance of two paths.

    Distances are Euclidean, of whole paths: CRPS for vectors. It knows how bars of one path hang
    together, as a mean of CRPS by bar does not.

    Args:
        paths: (N, P, H), such as log returns from the last close. came: (N, H) likewise.
        is_fair: divide the distances by P (P - 1), for independent draws: the expectation does not
            depend on P. False: by P^2, for paths that stand for a distribution. Of quantiles at
            each bar in the order of drawn paths that is too high, by 0.6 % with 50 paths of a walk.

    Raises:
        BarDataError: shapes do not agree, or there are fewer than 2 paths.

    Source:
        Gneiting and Raftery, "Strictly proper scoring rules, prediction, and estimation", JASA 102
        (2007), section 4.3.
    """
    if paths.ndim != 3 or came.shape != (len(paths), paths.shape[2]) or paths.shape[1] < 2:
        raise BarDataError(
            "expected paths (N, P, H), 2 at least, and what came (N, H), got "
            f"{paths.shape} and {came.shape}"
        )
    count = paths.shape[1]
    missed = np.linalg.norm(paths - came[:, None], axis=-1).mean(axis=1)
    apart = np.empty(len(paths))
    step = max(1, AT_ONCE // count**2)
    for start in range(0, len(paths), step):
        some = slice(start, start + step)
        # Around what came: the squares cancel in the less.
        near = paths[some] - came[some, None]
        squares = (near**2).sum(axis=-1)
        products = near @ near.transpose(0, 2, 1)
        square = squares[:, :, None] + squares[:, None] - 2 * products
        square[:, np.arange(count), np.arange(count)] = 0
        apart[some] = np.sqrt(np.maximum(square, 0)).sum(axis=(1, 2))
    pairs = count * (count - 1) if is_fair else count**2
    return np.asarray(missed - apart / (2 * pairs))
