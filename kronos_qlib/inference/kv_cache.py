"""Keys and values kept while decoding: the prompt's once per window, each path's own besides.

Shape letters: B windows, P paths, R = B * P rows (window-major), T bars of a prompt, S bars drawn
so far, H heads, W head width. Queries come with the scale of attention already in them.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

FEW_STEPS = 16
"""Up to this many bars of its own, a path's attention to them is faster as a product and a sum than
as thousands of tiny matrix products (benchmarks/generation.py has horizons 10 and 112)."""


VECTOR = 16
"""Numbers that a CPU's attention works on at once. What is over it takes one at a time, so that
90 keys took a third longer than 96."""


def spare_keys(x: Tensor) -> int:
    """How many further keys make attention within prompts (B, T, D) faster on their device."""
    return -x.shape[1] % VECTOR if x.device.type == "cpu" and x.shape[1] > VECTOR else 0


def attend_causally(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attend within prompts.

    Args:
        q: (B, T, H, W).
        k, v: (B, at least T, H, W); no query sees a bar after its own, nor the spare ones, which
            must be finite.

    Returns:
        (B, T, H * W).
    """
    q, k, v = (part.transpose(1, 2) for part in (q, k, v))
    mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=1.0)
    return mixed.transpose(1, 2).flatten(2)


def attend_newest(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attend from the last bars of prompts alone.

    Args:
        q: (B, N, H, W) of the last N of T bars.
        k, v: (B, T, H, W).

    Returns:
        (B, N, H * W).
    """
    bars, newest = k.shape[1], q.shape[1]
    seen = None  # one bar sees all
    if newest > 1:
        every = torch.ones(newest, bars, dtype=torch.bool, device=q.device)
        seen = every.tril(bars - newest)
    q, k, v = (part.transpose(1, 2) for part in (q, k, v))
    mixed = F.scaled_dot_product_attention(q, k, v, seen, scale=1.0)
    return mixed.transpose(1, 2).flatten(2)


class KeyValueStore:
    """Keys and values of one attention layer.

    The prompt's keys and values are held once per window and shared by that window's paths
    without a copy; the paths' own bars lie beside them, in the layout that their number likes.
    """

    def __init__(self, paths: int, steps: int, dtype: torch.dtype | None = None) -> None:
        """Memory for `paths` futures per window, of at most `steps` bars each.

        Args:
            dtype: of what is kept and attended to; None: as it comes.
        """
        self.paths, self.steps, self.dtype = paths, steps, dtype
        self.taken = 0
        self._is_few = steps <= FEW_STEPS
        self._prompt: tuple[Tensor, Tensor] | None = None
        self._room: tuple[Tensor, Tensor] | None = None
        self._come = 0
        self._lengths: Tensor | None = None
        self._own: tuple[Tensor, Tensor] | None = None

    @property
    def is_empty(self) -> bool:
        """Whether no prompt has been read."""
        return self._prompt is None

    @property
    def length(self) -> int | Tensor:
        """Bars remembered, so the position of the next one; (B,) where prompts differ in length."""
        if self._lengths is not None:
            return self._lengths + self.taken
        return 0 if self._prompt is None else self._prompt[0].shape[2] + self.taken

    def keep_prompt(self, k: Tensor, v: Tensor, windows: int | None = None) -> None:
        """Remember prompts, k and v (B, T, H, W).

        Args:
            windows: how many there will be; they may come some at a time. None: these are all.
        """
        assert self.is_empty, "a store remembers one prompt per window"
        # (B, H, T, W): a window's head is one matrix.
        k, v = k.transpose(1, 2), v.transpose(1, 2)
        if windows is None or windows == len(k):
            return self.adopt(self._compact(k), self._compact(v), k.shape[2])
        if self._room is None:
            shape, dtype = (windows, *k.shape[1:]), self.dtype or k.dtype
            self._room = k.new_empty(shape, dtype=dtype), v.new_empty(shape, dtype=dtype)
        start, stop = self._come, self._come + len(k)
        self._room[0][start:stop], self._room[1][start:stop] = k, v
        self._come = stop
        if stop == windows:
            self.adopt(*self._room, k.shape[2])
        return None

    def adopt(self, k: Tensor, v: Tensor, length: int | Tensor) -> None:
        """Take prompts that were read before, without a copy.

        Args:
            k, v: (B, H, room, W), the first `length` bars in use; `lengthen` writes into what is
                free behind them.
            length: of all prompts; or (B,) int64, of each. Then all of the room is read and what
                is free weighs nothing, so that a prompt's result does not depend on the lengths of
                others; it must be finite.
        """
        assert self.is_empty, "a store remembers one prompt per window"
        self._room = (k, v)
        if isinstance(length, Tensor):
            self._lengths, self._prompt = length, (k, v)
        else:
            self._prompt = (k[:, :, :length], v[:, :, :length])
        if self.steps:
            windows, heads, _, width = k.shape
            shape = (windows, heads, self.paths)
            if self._is_few:
                own = k.new_empty((self.steps, *shape, width))
            else:
                own = k.new_zeros((*shape, FEW_STEPS, width))
            self._own = (own, own.clone())

    @property
    def prompt(self) -> tuple[Tensor, Tensor]:
        """Keys and values of the prompts, (B, H, T, W) each."""
        assert self._prompt is not None, "no prompt has been read"
        return self._prompt

    def lengthen(self, k: Tensor, v: Tensor) -> None:
        """Add a bar to every prompt, k and v (B, 1, H, W), before a path has bars of its own."""
        assert self._room is not None and not self.taken, "a prompt ends where paths begin"
        (room_k, room_v), at = self._room, self.length
        k, v = k.to(room_k.dtype), v.to(room_v.dtype)
        if isinstance(at, Tensor):
            row = torch.arange(len(at), device=at.device)
            room_k[row, :, at], room_v[row, :, at] = k[:, 0], v[:, 0]
            self._lengths = at + 1
        else:
            assert at < room_k.shape[2], "no room for another bar"
            room_k[:, :, at], room_v[:, :, at] = k[:, 0], v[:, 0]
            self._prompt = (room_k[:, :, : at + 1], room_v[:, :, : at + 1])

    def read_more(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Add a bar to every prompt and attend from it: all (B, 1, H, W), to (B, 1, H * W)."""
        self.lengthen(k, v)
        return self._rows(self._attend_prompt(self._compact(q.transpose(1, 2))))

    def keep(self, k: Tensor, v: Tensor) -> None:
        """Remember every path's newest bar, k and v (R, 1, H, W)."""
        assert self._own is not None and self.taken < self.steps, "the store is full"
        if not self._is_few and self.taken == self._own[0].shape[3]:
            # Twice the memory, all in use: a product would copy a slice of a larger one each step.
            own_k, own_v = (torch.cat((own, torch.zeros_like(own)), dim=3) for own in self._own)
            self._own = (own_k, own_v)
        for own, new in zip(self._own, (k, v), strict=True):
            if self._is_few:
                own[self.taken] = self._by_window(new[:, 0])
            else:
                own[:, :, :, self.taken] = self._by_window(new[:, 0])
        self.taken += 1

    def attend(self, q: Tensor) -> Tensor:
        """Attend from every path's newest bar, q (R, 1, H, W), to all remembered: (R, 1, H * W)."""
        queries = self._compact(self._by_window(q[:, 0]))  # (B, H, P, W)
        if not self.taken:
            return self._rows(self._attend_prompt(queries))
        assert self._own is not None
        if self._is_few:
            own_k, own_v = (own[: self.taken] for own in self._own)  # (S, B, H, P, W)
            own = (queries * own_k).sum(dim=-1, dtype=torch.float32).permute(1, 2, 3, 0)
        else:
            own_k, own_v = self._own  # (B, H, P, at least S, W)
            own = (queries[:, :, :, None] @ own_k.transpose(-1, -2)).squeeze(3).float()
            own[..., self.taken :] = -torch.inf  # places still empty, whose values are zero
        mixed, weights = self._weigh(queries, own)
        if self._is_few:
            mixed = mixed + (weights.permute(3, 0, 1, 2)[..., None] * own_v).sum(dim=0)
        else:
            mixed = mixed + (weights[:, :, :, None] @ own_v).squeeze(3)
        return self._rows(mixed)

    def attend_ahead(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attend from bars that follow the prompt to it and, causally, to one another.

        Args:
            q, k, v: (R, S, H, W), which are not kept.

        Returns:
            (R, S, H * W).
        """
        rows, bars, heads, width = q.shape
        windows = rows // self.paths
        grouped = q.view(windows, self.paths, bars, heads, width).permute(0, 3, 1, 2, 4)
        queries = grouped.reshape(windows, heads, self.paths * bars, width)
        own = q.transpose(1, 2) @ k.permute(0, 2, 3, 1)  # (R, H, S, S)
        later = torch.ones(bars, bars, dtype=torch.bool, device=q.device).triu(1)
        own = own.float().masked_fill(later, -torch.inf)
        own = own.view(windows, self.paths, heads, bars, bars).transpose(1, 2)
        mixed, weights = self._weigh(queries, own.reshape(windows, heads, -1, bars))
        weights = weights.view(windows, heads, self.paths, bars, bars).transpose(1, 2)
        of_own = weights.reshape(rows, heads, bars, bars) @ v.transpose(1, 2)  # (R, H, S, W)
        mixed = mixed.view(windows, heads, self.paths, bars, width).permute(0, 2, 3, 1, 4)
        return (mixed.reshape(rows, bars, heads, width) + of_own.transpose(1, 2)).flatten(2)

    def _attend_prompt(self, queries: Tensor) -> Tensor:
        assert self._prompt is not None, "nothing to attend to"
        k, v = self._prompt
        scores = self._in_use((queries @ k.transpose(-1, -2)).float())
        return torch.softmax(scores, dim=-1).to(v.dtype) @ v

    def _weigh(self, queries: Tensor, own: Tensor) -> tuple[Tensor, Tensor]:
        """One softmax over the prompt's scores and the own ones.

        Args:
            queries: (B, H, N, W), N of one window together, so that the prompt costs one product
                per window and head whatever the number of paths.
            own: (B, H, N, S) float32 scores.

        Returns:
            The prompt's values mixed (B, H, N, W), and the weights of the own (B, H, N, S).
        """
        assert self._prompt is not None, "nothing to attend to"
        k, v = self._prompt
        of_prompt = self._in_use((queries @ k.transpose(-1, -2)).float())
        scores = torch.cat((of_prompt, own), dim=-1)
        weights = torch.softmax(scores, dim=-1).to(v.dtype)
        seen = k.shape[2]
        return weights[..., :seen] @ v, weights[..., seen:]

    def _in_use(self, scores: Tensor) -> Tensor:
        """Scores (B, H, N, T) of prompts, minus infinity behind the end of each."""
        if self._lengths is None:
            return scores
        places = torch.arange(scores.shape[-1], device=scores.device)
        return scores.masked_fill_((places >= self._lengths[:, None])[:, None, None], -torch.inf)

    def _compact(self, x: Tensor) -> Tensor:
        """In one piece and of the type that is kept."""
        if self.dtype in (None, x.dtype):  # `to` would return it as it lies, in pieces
            return x.contiguous()
        return x.to(self.dtype, memory_format=torch.contiguous_format)

    def _by_window(self, rows: Tensor) -> Tensor:
        """(R, H, W) to (B, H, P, W)."""
        return rows.view(-1, self.paths, *rows.shape[1:]).transpose(1, 2)

    @staticmethod
    def _rows(mixed: Tensor) -> Tensor:
        """(B, H, P, W) to (R, 1, H * W)."""
        return mixed.transpose(1, 2).flatten(2).flatten(0, 1)[:, None]
