"""The blocks that tokenizer and predictor share: norm, rotary, attention, feed-forward, time.

Shape letters: B windows, T bars, D width, H heads, W head width.
Source: the paper (arXiv 2508.02739); parameter names are those of the published weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import chain
from typing import Any, Protocol

import torch
import torch.nn.functional as F  # noqa: N812  (its name everywhere)
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from kronos_qlib.errors import ConfigError
from kronos_qlib.model import cpu_training
from kronos_qlib.model.cpu_training import Dropout

TIME_TABLE_ROWS = {"minute": 60, "hour": 24, "weekday": 7, "day": 32, "month": 13}
"""Rows of the five time tables, in the order of a stamp's fields (`schema.TIME_FIELDS`)."""


class RMSNorm(nn.Module):
    """Root-mean-square norm, computed in float32 at least, whatever the input's type.

    Source: Zhang and Sennrich, arXiv 1910.07467.
    """

    def __init__(self, dim: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) float of any type, to the same type."""
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        if cpu_training.is_here(x) and wide.dtype == self.weight.dtype:
            return cpu_training.scaled_norm(x, self.weight, self.eps)
        normed = F.rms_norm(wide, self.weight.shape, eps=self.eps)
        if self.weight.dtype == wide.dtype:  # also where autocast gives it bfloat16
            return (normed * self.weight).to(x.dtype)
        return normed.to(x.dtype) * self.weight


class FeedForward(nn.Module):
    """SwiGLU without biases: `w2(silu(w1 x) * w3 x)`.

    Source: Shazeer, arXiv 2002.05202.
    """

    def __init__(self, d_model: int, ff_dim: int, dropout_p: float = 0.0) -> None:
        super().__init__()
        self.w1 = nn.Linear(d_model, ff_dim, bias=False)
        self.w3 = nn.Linear(d_model, ff_dim, bias=False)
        self.w2 = nn.Linear(ff_dim, d_model, bias=False)
        self.dropout = Dropout(dropout_p)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) float to (..., D)."""
        out: Tensor = self.dropout(self.w2(F.silu(self.w1(x)) * self.w3(x)))
        return out


class Rotary(nn.Module):
    """Rotary position embedding in the half layout, its tables always in float32.

    Source: Su et al., arXiv 2104.09864.
    """

    inv_freq: Tensor

    def __init__(self, head_width: int, base: float = 10000.0) -> None:
        super().__init__()
        self.head_width, self.base = head_width, base
        self.register_buffer("inv_freq", self._frequencies())

    def _frequencies(self) -> Tensor:
        powers = torch.arange(0, self.head_width, 2, dtype=torch.float32) / self.head_width
        return 1.0 / self.base**powers

    def constants(self) -> dict[str, Tensor]:
        """Values that its buffers must have, by name: `inv_freq`, float32 of shape (W / 2,)."""
        return {"inv_freq": self._frequencies()}

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Rotary:
        # A cast to bfloat16 rounds the frequencies and loses the position (fault 11).
        exact = self.inv_freq
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self.inv_freq.dtype != exact.dtype:
            self.inv_freq = exact.to(self.inv_freq.device)
        return self

    def forward(self, x: Tensor, start: int = 0) -> Tensor:
        """Rotate (..., T, W) by the positions start .. start + T - 1."""
        positions = torch.arange(
            start, start + x.shape[-2], device=x.device, dtype=self.inv_freq.dtype
        )
        angles = positions[:, None] * self.inv_freq
        cos, sin = angles.cos(), angles.sin()
        first, second = x.to(cos.dtype).chunk(2, dim=-1)
        turned = torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
        return turned.to(x.dtype)


class Attention(nn.Module):
    """Multi-head attention with biased projections; the parts that self and cross share.

    Source: Vaswani et al., arXiv 1706.03762, with the rotation of arXiv 2104.09864.
    """

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        attn_dropout_p: float = 0.0,
        resid_dropout_p: float = 0.0,
    ) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.q_proj = nn.Linear(d_model, d_model)
        self.k_proj = nn.Linear(d_model, d_model)
        self.v_proj = nn.Linear(d_model, d_model)
        self.out_proj = nn.Linear(d_model, d_model)
        self.rotary = Rotary(d_model // n_heads)
        self.attn_dropout_p = attn_dropout_p
        self.resid_dropout = Dropout(resid_dropout_p)

    def split(self, x: Tensor) -> Tensor:
        """(B, T, D) to (B, H, T, W)."""
        rows, bars, width = x.shape
        return x.view(rows, bars, self.n_heads, width // self.n_heads).transpose(1, 2)

    def join(self, heads: Tensor) -> Tensor:
        """(B, H, T, W) to (B, T, D), through the output projection."""
        merged = heads.transpose(1, 2).flatten(2)
        out: Tensor = self.resid_dropout(self.out_proj(merged))
        return out

    def rotated(self, queries: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
        """Projected and rotated by position: (B, T, D) each to (B, H, T, W).

        The components of a head may be in another order, the same one in both.
        """
        # An adapter in a projection's place adds its own.
        are_plain = type(self.q_proj) is type(self.k_proj) is nn.Linear
        if are_plain and cpu_training.is_here(queries):
            frequencies = self.rotary.inv_freq
            q = cpu_training.turned_in_pairs(self.q_proj, queries, self.n_heads, frequencies)
            return q, cpu_training.turned_in_pairs(self.k_proj, keys, self.n_heads, frequencies)
        q, k = self.split(self.q_proj(queries)), self.split(self.k_proj(keys))
        return self.rotary(q), self.rotary(k)

    def attend_causally(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """(B, H, T, W) each, to (B, H, T, W)."""
        dropout_p = self.attn_dropout_p if self.training else 0.0
        if cpu_training.is_here(q):
            return cpu_training.attended_causally(q, k, v, dropout_p)
        return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout_p, is_causal=True)


class SelfAttention(Attention):
    """Causal self-attention, queries and keys rotated by position."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) float to (B, T, D)."""
        return self.join(self.attend_causally(*self.rotated(x, x), self.split(self.v_proj(x))))


class TransformerBlock(nn.Module):
    """Pre-norm block: attention, then feed-forward. Always causal.

    recompute: whether the backward pass computes the block again, by the same random numbers, so
        that nothing within it is kept meanwhile (activation checkpointing, arXiv 1604.06174).
    """

    recompute = False

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        ff_dim: int,
        ffn_dropout_p: float = 0.0,
        attn_dropout_p: float = 0.0,
        resid_dropout_p: float = 0.0,
    ) -> None:
        super().__init__()
        self.norm1 = RMSNorm(d_model)
        self.self_attn = SelfAttention(d_model, n_heads, attn_dropout_p, resid_dropout_p)
        self.norm2 = RMSNorm(d_model)
        self.ffn = FeedForward(d_model, ff_dim, ffn_dropout_p)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) float to (B, T, D)."""
        if self.recompute and torch.is_grad_enabled():
            out: Tensor = checkpoint(self._through, x, use_reentrant=False)
            return out
        return self._through(x)

    def _through(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.norm1(x))
        out: Tensor = x + self.ffn(self.norm2(x))
        return out


class FixedEmbedding(nn.Module):
    """A sinusoidal table that is not trained.

    Source: Vaswani et al., arXiv 1706.03762, section 3.5.
    """

    def __init__(self, rows: int, width: int) -> None:
        super().__init__()
        position = torch.arange(rows, dtype=torch.float32)[:, None]
        rate = torch.exp(
            torch.arange(0, width, 2, dtype=torch.float32) * -(math.log(10000.0) / width)
        )
        table = torch.zeros(rows, width)
        table[:, 0::2] = torch.sin(position * rate)
        table[:, 1::2] = torch.cos(position * rate)
        self.emb = nn.Embedding(rows, width, _weight=table)
        self.emb.weight.requires_grad_(False)

    def forward(self, ids: Tensor) -> Tensor:
        """(...) int64 to (..., D) float."""
        out: Tensor = self.emb(ids)
        return out


class TimeEmbedding(nn.Module):
    """Sum of the five tables, one for each field of a stamp."""

    def __init__(self, d_model: int, learned: bool) -> None:
        super().__init__()
        for field, rows in TIME_TABLE_ROWS.items():
            table = nn.Embedding(rows, d_model) if learned else FixedEmbedding(rows, d_model)
            self.add_module(f"{field}_embed", table)

    def tables(self) -> list[Tensor]:
        """The five tables' weights, each (rows, D), in the order of a stamp's fields."""
        parts = (self.get_submodule(f"{field}_embed") for field in TIME_TABLE_ROWS)
        tables = [part.emb if isinstance(part, FixedEmbedding) else part for part in parts]
        return [table.weight for table in tables if isinstance(table, nn.Embedding)]

    def forward(self, stamp: Tensor) -> Tensor:
        """(..., 5) whole numbers minute, hour, weekday, day, month, of any type, to (..., D)."""
        stamp = stamp.long()
        tables = self.tables()
        out = F.embedding(stamp[..., 0], tables[0])
        for place, table in enumerate(tables[1:], start=1):
            out = out + F.embedding(stamp[..., place], table)
        return out


class TimeFeatures(Protocol):
    """What a predictor asks of the part that embeds stamps, which is an `nn.Module` too.

    In evaluation mode no call changes the module, and several threads may call it. A checkpoint
    keeps its parameters, its buffers and its class' name.
    """

    __call__: Callable[..., Any]  # torch's own, which leads to `forward`

    def forward(self, stamp: Tensor) -> Tensor:
        """Added to the embedding of each bar's tokens.

        Args:
            stamp: (B, T, 5) int64 minute, hour, weekday, day, month of the bars; the result for
                a bar may depend on its own stamp only.

        Returns:
            (B, T, D) float, D the predictor's width.
        """


def check_time_features(time_emb: TimeFeatures, d_model: int) -> None:
    """Refuse what does not turn stamps into vectors of width `d_model`.

    Raises:
        ConfigError: it is no module, or gives something else; the message has both.
    """
    name = type(time_emb).__name__
    if not isinstance(time_emb, nn.Module):
        raise ConfigError(
            f"{name} is no torch.nn.Module; see kronos_qlib.model.layers.TimeFeatures"
        )
    with torch.device(device_of(time_emb)), torch.no_grad():
        found = time_emb(torch.tensor([[[0] * 5, [rows - 1 for rows in TIME_TABLE_ROWS.values()]]]))
    if not found.is_floating_point() or found.shape != (1, 2, d_model):
        raise ConfigError(
            f"{name} must turn stamps (1, 2, 5) into floats (1, 2, {d_model}), by d_model; got "
            f"{found.dtype} {tuple(found.shape)}"
        )


def device_of(module: nn.Module) -> torch.device:
    """The device of its weights; the CPU if it has none, whatever torch's default is."""
    for weight in chain(module.parameters(), module.buffers()):
        return weight.device
    return torch.device("cpu")
