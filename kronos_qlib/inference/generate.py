"""Continue windows bar by bar: cached while they fit the context, recomputed when it slides.

Shape letters: B windows, P paths, R = B * P rows (window-major), L bars of a lookback.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from kronos_qlib.inference.packed import (
    PackedKronos,
    PackedTokenizer,
    Reader,
    TokenPair,
    require_finite,
)
from kronos_qlib.inference.sampling import SamplingConfig, sample_ids

S1_LOGITS, S2_LOGITS = "s1 logits of the predictor", "s2 logits of the predictor"


def checked(logits: Tensor, what: str) -> Tensor:
    """Logits (R, V) as they are.

    Raises:
        CheckpointError: they are not finite; names `what`.
    """
    require_finite(logits, what)
    return logits


@torch.inference_mode()
def generate(
    net: PackedKronos,
    tokens: TokenPair,
    stamps: Tensor,
    horizon: int,
    how: SamplingConfig,
    uniforms: Tensor,
    max_context: int,
    each_step: Callable[[], None] | None = None,
    begun: tuple[Reader, Tensor] | None = None,
    check: Callable[[Tensor, str], Tensor] = checked,
) -> TokenPair:
    """Continue each window by `horizon` bars along as many paths as `uniforms` has.

    The prompt is read once per window and shared by its paths. Once lookback and drawn bars
    exceed `max_context`, every kept key would have to forget the oldest bar, so from there on the
    last `max_context` bars are read anew for every step, which is exact.

    Args:
        tokens: s1 and s2 of the lookbacks, each (B, L) int64.
        stamps: (B, L + horizon, 5) int64.
        uniforms: (B, P, horizon, 2) float32 in [0, 1), see `path_uniforms`.
        max_context: bars that the predictor attends to at once.
        each_step: called after each bar; what it raises ends the work.
        begun: a reader that has read the lookbacks, with room for `horizon` - 1 bars of each path,
            and the context after them, (B * P, D). All must fit `max_context`; `tokens` and
            `stamps` may then begin at the last bar of the lookbacks.
        check: from logits (R, V) and their name to what is drawn from.

    Returns:
        The drawn tokens, each (B * P, horizon) int64, rows window-major.

    Raises:
        CheckpointError: logits are not finite.

    Source: the published generation, which reads every window anew for every bar and path.
    """
    paths = uniforms.shape[1]
    lookback = tokens[0].shape[1]
    held = min(lookback, max_context)
    cached_steps = min(horizon, max_context - held + 1)

    s1, s2 = (_extended(ids, paths, horizon) for ids in tokens)
    every_stamp = stamps.repeat_interleave(paths, dim=0)
    numbers = uniforms.flatten(0, 1)  # (R, horizon, 2)
    prompt = slice(lookback - held, lookback)
    if begun is None:
        reader = Reader(net, paths, cached_steps - 1, how.rotate_s2)
        newest = reader.read(tokens[0][:, prompt], tokens[1][:, prompt], stamps[:, prompt])
    else:
        reader, newest = begun
    for step in range(horizon):
        at = lookback + step
        if step == 0:
            pass  # the lookbacks have been read
        elif step < cached_steps:
            last = slice(at - 1, at)
            newest = reader.read(s1[:, last], s2[:, last], every_stamp[:, last])
        else:  # every path's window is a prompt of its own
            seen = slice(at - max_context, at)
            reader = Reader(net, 1, 0, how.rotate_s2)
            newest = reader.read(s1[:, seen], s2[:, seen], every_stamp[:, seen])
        logits = check(reader.s1_logits(newest), S1_LOGITS)
        s1[:, at] = sample_ids(logits, how, numbers[:, step, 0])
        logits = check(reader.s2_logits(newest, s1[:, at]), S2_LOGITS)
        s2[:, at] = sample_ids(logits, how, numbers[:, step, 1])
        if each_step is not None:
            each_step()
    return s1[:, lookback:], s2[:, lookback:]


@torch.inference_mode()
def decode_drawn(
    net: PackedTokenizer, tokens: TokenPair, drawn: TokenPair, paths: int, max_context: int
) -> tuple[Tensor, Tensor]:
    """Bars of the drawn tokens, and of the last token before them.

    As published, the last `max_context` tokens are decoded together. A forecast of that length
    or more takes earlier tokens too, in stretches whose first half only lends context.

    Args:
        tokens: s1 and s2 of the lookbacks, each (B, L) int64.
        drawn: from `generate`, each (B * P, horizon) int64.

    Returns:
        (B * P, horizon, 6) float32 normalised bars, and (B, 6), the last bar of each lookback as
        its tokens have it.

    Source: the published generation.
    """
    horizon = drawn[0].shape[1]
    kept = max_context - horizon
    if kept > 0:
        return net.decode_ahead((tokens[0][:, -kept:], tokens[1][:, -kept:]), drawn, paths)
    s1, s2 = (
        torch.cat((before.repeat_interleave(paths, dim=0), after), dim=1)
        for before, after in zip(tokens, drawn, strict=True)
    )
    parts: list[Tensor] = []
    wanted, stop = horizon + 1, s1.shape[1]  # the last of the lookback too
    while wanted:
        start = max(0, stop - max_context)
        bars = net.decode((s1[:, start:stop], s2[:, start:stop]))
        # Only the latest stretch is kept whole; in an earlier one the first half lends context.
        whole = not parts or start == 0
        kept = min(wanted, bars.shape[1] if whole else -(-bars.shape[1] // 2))
        parts.append(bars[:, -kept:])
        wanted, stop = wanted - kept, stop - kept
    bars = torch.cat(parts[::-1], dim=1)
    return bars[:, 1:], bars[::paths, 0]


def _extended(ids: Tensor, paths: int, horizon: int) -> Tensor:
    """(B, L) to (B * P, L + horizon), the new places empty."""
    rows = ids.repeat_interleave(paths, dim=0)
    return torch.cat((rows, rows.new_zeros(rows.shape[0], horizon)), dim=1)
