"""Student's t: its CRPS, the slope of it, and quantiles.

A closed form here, since calibration is part of every forecast and the package that has it
(`scoringrules`) comes with an extra.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


def student_crps(z: Floats, dof: float) -> tuple[Floats, Floats]:
    """CRPS of a standard t and its derivative by z.

    Of a t with scale s it is s x that of z / s.

    Args:
        z: of any shape, what came.
        dof: above 1.

    Returns:
        Two arrays of the shape of `z`.

    Source:
        Jordan, Krueger and Lerch, "Evaluating probabilistic forecasts with scoringRules", Journal
        of Statistical Software 90 (2019), appendix A.
    """
    # Here: scipy adds filters of warnings, and importing the networks changes no global state.
    from scipy.special import beta, stdtr

    below = 2 * stdtr(dof, z) - 1
    density = np.exp(-(dof + 1) / 2 * np.log1p(z * z / dof)) / (np.sqrt(dof) * beta(0.5, dof / 2))
    constant = 2 * np.sqrt(dof) / (dof - 1) * beta(0.5, dof - 0.5) / beta(0.5, dof / 2) ** 2
    crps = z * below + 2 * density * (dof + z * z) / (dof - 1) - constant
    return np.asarray(crps), np.asarray(below)


def student_quantiles(count: int, dof: float) -> Floats:
    """(count,) quantiles of a standard t at (i - 1/2) / count, in increasing order.

    As draws they have the least CRPS that `count` equal weights can have.

    Source:
        Bröcker, "Evaluating raw ensembles with the continuous ranked probability score", QJRMS 138
        (2012).
    """
    # Here: scipy adds filters of warnings, and importing the networks changes no global state.
    from scipy.special import stdtrit

    return np.asarray(stdtrit(dof, (np.arange(count) + 0.5) / count))
