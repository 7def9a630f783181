"""Logits to ids: temperature, top-k, top-p, and a draw by inverse CDF.

Shape letters: R rows (windows x paths), V tokens of a vocabulary.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from kronos_qlib.settings import (
    check_choice,
    check_number,
    check_whole,
    require,
)


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """How futures are drawn from the predictor. The defaults are the paper's for its backtest."""

    paths: int = 10
    """Independent futures per window."""
    temperature: float = 0.6
    """Divides the logits; 0 always takes the likeliest token."""
    top_k: int = 0
    """Keep the k likeliest tokens; 0 keeps all."""
    top_p: float = 0.9
    """After top_k, keep the smallest set whose probability exceeds this."""
    rotate_s2: bool = False
    """Rotate the s2 attention by position when generating, as training does. The published code
    does not rotate there, and published results depend on it."""
    anchor: bool = True
    """Move the prices of every path by what the last close seen lost on its way through the tokens,
    so that a forecast begins where the bars end; False gives the published numbers."""
    stratified: bool = False
    """At every draw, let a window's paths divide the probability evenly (a Latin hypercube): the
    mean of n has about the variance of that of 1.4 to 2.5 n independent ones
    (benchmarks/draws.py)."""
    common: bool = False
    """The same random numbers for every instrument of a day: what is common in the noise of their
    scores cancels in a ranking, about as 1.0 to 1.4 times the paths would (benchmarks/draws.py)."""

    def __post_init__(self) -> None:
        check_whole(self, "paths")
        check_whole(self, "top_k", least=0)
        check_number(self, "temperature", "top_p")
        check_choice(self, "rotate_s2", "anchor", "stratified", "common")
        require(self.temperature >= 0, f"temperature must not be negative, got {self.temperature}")
        require(0 < self.top_p <= 1, f"top_p must lie in (0, 1], got {self.top_p}")


ONE_STEP = 2.0**-23
"""Relative distance of neighbouring float32 numbers, at most."""
ALMOST_ONE = 1 - 2.0**-24
"""The largest float32 below 1."""
MOST_TEMPERATURE = torch.finfo(torch.float32).max
"""Beyond it minus infinity divided by it would be no number."""
RESULT_COLUMNS = 6
"""Numbers of a bar in the result, in whose memory its random numbers are kept."""
CHUNK_DRAWS = 2**15
"""Draws whose random numbers are made at a time, a MiB at most."""


def sample_ids(logits: Tensor, how: SamplingConfig, uniforms: Tensor) -> Tensor:
    """Draw one token per row.

    Args:
        logits: (R, V) float, left untouched.
        uniforms: (R,) float32 in [0, 1), a random number for each row.

    Returns:
        (R,) int64: the first token whose cumulative probability exceeds the row's uniform, so a
        row's draw depends on its own logits and uniform alone.

    Source: the published sampling, which skips top_p where top_k is given and draws by torch's
    global generator.
    """
    if how.temperature < torch.finfo(torch.float32).tiny:  # 0, or 0 to a float32
        return logits.argmax(dim=-1)
    # Less the largest, which changes no probability and keeps a tiny temperature finite.
    scaled = (logits - logits.amax(dim=-1, keepdim=True)).float()
    if how.top_k:  # of logits: at a very high temperature all weights are the same float32
        scaled = keep_top_k(scaled, how.top_k)
    weights = scaled.div_(min(how.temperature, MOST_TEMPERATURE)).exp_()
    if how.top_p < 1:
        weights = keep_top_p(weights, how.top_p)
    cumulative = weights.cumsum(dim=-1)
    total = cumulative[:, -1:]
    # Strictly below the total, or rounding could pick a token that was filtered out.
    target = torch.minimum(uniforms[:, None] * total, total * (1 - ONE_STEP))
    return torch.searchsorted(cumulative, target, right=True).squeeze(-1)


def keep_top_k(logits: Tensor, k: int) -> Tensor:
    """(R, V) logits, minus infinity outside the k largest of each row; ties with the k-th stay."""
    least = logits.topk(min(k, logits.shape[-1]), dim=-1).values[..., -1:]
    return logits.masked_fill(logits < least, -torch.inf)


def keep_top_p(weights: Tensor, p: float) -> Tensor:
    """(R, V) weights, zero outside the smallest likeliest set whose share exceeds p.

    The token that crosses p stays, so at least one does; so do ties with it.

    Args:
        weights: not negative; probabilities, or in proportion to them.

    Source: Holtzman et al., arXiv 1904.09751.
    """
    ordered = _ascending(weights)
    cumulative = ordered.cumsum(dim=-1)
    # A token stays if those before it, the larger ones, have at most p of all: if it and those
    # after it have the rest at least.
    first = torch.searchsorted(cumulative, cumulative[..., -1:] * (1 - p))
    return weights.masked_fill(weights < ordered.gather(-1, first), 0)


def _ascending(weights: Tensor) -> Tensor:
    """Values of each row, largest last."""
    if weights.device.type != "cpu":
        return weights.sort(dim=-1).values
    # Seven times as fast as torch's: NumPy sorts values alone, by vector instructions.
    return torch.from_numpy(np.sort(weights.numpy(), axis=-1))


def key_of(bars: npt.NDArray[np.float32]) -> bytes:
    """The key of a series without a name: where each column of its bars (L, 6) rises and falls.

    The same in every unit of prices and volume, which the bars themselves are not.
    """
    return np.sign(np.diff(bars, axis=0)).astype(np.int8).tobytes()


def path_uniforms(
    seed: int, keys: Sequence[bytes], paths: int, steps: int, stratified: bool = False
) -> Tensor:
    """The random numbers of every draw, in memory of their own; see `place_uniforms`.

    Returns:
        (series, paths, steps, 2) float32 in [0, 1): for s1 and for s2 of every step.
    """
    out = np.empty((len(keys), paths, steps, RESULT_COLUMNS), dtype=np.float32)
    place_uniforms(out, seed, keys, stratified)
    return torch.from_numpy(uniforms_in(out).copy())


def uniforms_in(out: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """The numbers that `place_uniforms` wrote: a view (..., 2) of the result (..., 6)."""
    return out[..., :2]


def place_uniforms(
    out: npt.NDArray[np.float32], seed: int, keys: Sequence[bytes], stratified: bool = False
) -> None:
    """Write the random numbers of every draw into the memory of that draw's bar.

    They come from a counter-based generator keyed by seed and series. A series' numbers depend on
    the seed and its key only: not on its neighbours in a batch, on their order, or on the process
    that draws them. Without `stratified` a path's do not depend on how many paths there are
    either. A bar of six numbers holds its two random numbers, and the two in float64 by which its
    path is ordered among the others: a million paths take no memory beside the
    result, but `sorting_bytes`.

    Args:
        out: (series, paths, steps, 6) float32, in C order; it is overwritten.
        stratified: a Latin hypercube: at every draw the paths of a series divide [0, 1) evenly
            among them, in an order of their own. Each path alone is distributed as before, and a
            mean over paths has less variance (measured in benchmarks/draws.py).

    Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (2011), Philox; McKay,
    Beckman and Conover (1979), Latin hypercubes.
    """
    paths, steps = out.shape[1:3]
    chunk = max(1, CHUNK_DRAWS // max(1, steps))
    slices = [slice(start, min(start + chunk, paths)) for start in range(0, paths, chunk)]
    for one, key in zip(out, keys, strict=True):
        digest = hashlib.blake2b(key, digest_size=16, salt=_salt(seed)).digest()
        bits = np.random.Philox(key=np.frombuffer(digest, dtype="<u8"))
        rng = np.random.Generator(bits)
        drawn = uniforms_in(one)
        for part in slices:
            drawn[part] = rng.random((part.stop - part.start, steps, 2), dtype=np.float32)
        if not stratified:
            continue
        order = one.view(np.float64)[..., 1:]  # (paths, steps, 2), beside the float32 numbers
        for part in slices:
            order[part] = rng.random((part.stop - part.start, steps, 2))
        for step, which in np.ndindex(steps, 2):
            _stratify(drawn[:, step, which], order[:, step, which], slices)


def _stratify(
    drawn: npt.NDArray[np.float32], order: npt.NDArray[np.float64], slices: Sequence[slice]
) -> None:
    """Move the numbers (paths,) of one draw into strata, in place."""
    stratum = np.ascontiguousarray(order).argsort()
    for part in slices:
        drawn[part] = np.minimum((stratum[part] + drawn[part]) / len(drawn), ALMOST_ONE)


def sorting_bytes(paths: int) -> int:
    """What `place_uniforms` allocates, stratified: one draw's numbers and their order."""
    return 16 * paths


def _salt(seed: int) -> bytes:
    return (int(seed) % 2**128).to_bytes(16, "little")
