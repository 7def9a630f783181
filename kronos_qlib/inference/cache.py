"""Keys and values kept while decoding: the prompt's once per window, each path's own beside it."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor


class KeyValueStore:
    """What one attention layer remembers.

    The prompt's keys and values are held once per window, (B, H, T, W), and shared by that
    window's P paths without a copy; each path's own bars follow in (B, H, P, S, W).
    Rows of newest bars, R = B * P, are window-major: the paths of the first window, then of the
    second.
    """

    def __init__(self, paths: int, steps: int) -> None:
        """Room for `paths` futures per window, of at most `steps` bars each."""
        self.paths, self.steps = paths, steps
        self.taken = 0
        self._prompt: tuple[Tensor, Tensor] | None = None
        self._own: tuple[Tensor, Tensor] | None = None

    @property
    def is_empty(self) -> bool:
        return self._prompt is None

    @property
    def length(self) -> int:
        """Bars remembered, so the position of the next one."""
        return 0 if self._prompt is None else self._prompt[0].shape[2] + self.taken

    def keep(self, k: Tensor, v: Tensor) -> None:
        """Remember prompts, k and v (B, T, H, W), or every path's newest bars, (R, S, H, W)."""
        if self._prompt is None:
            self._prompt = (k.transpose(1, 2).contiguous(), v.transpose(1, 2).contiguous())
            if self.steps:
                rows, _, heads, width = k.shape
                shape = (rows, heads, self.paths, self.steps, width)
                self._own = (k.new_empty(shape), v.new_empty(shape))
            return
        stop = self.taken + k.shape[1]
        assert self._own is not None and stop <= self.steps, "the store is full"
        for room, new in zip(self._own, (k, v), strict=True):
            room[:, :, :, self.taken : stop] = self._by_window(new)
        self.taken = stop

    def keep_and_attend(
        self, q: Tensor, k: Tensor, v: Tensor, keep_only: bool = False
    ) -> Tensor | None:
        """Remember k and v, and attend causally from the same bars' queries.

        Args:
            q, k, v: (B, T, H, W) or (R, S, H, W).
            keep_only: do not attend.

        Returns:
            (B, T, H * W) or (R, S, H * W); None with `keep_only`.
        """
        was_empty = self.is_empty
        self.keep(k, v)
        if keep_only:
            return None
        if not was_empty:
            return self.attend(q)
        assert self._prompt is not None
        mixed = F.scaled_dot_product_attention(q.transpose(1, 2), *self._prompt, is_causal=True)
        return mixed.transpose(1, 2).flatten(2)

    def attend(self, q: Tensor) -> Tensor:
        """Attend from every path's newest bars to the prompt and to the path's own bars.

        Args:
            q: (R, S, H, W), queries of the S bars remembered last, each of which sees those
                before it; or of one bar, if nothing came after the prompt yet.

        Returns:
            (R, S, H * W).
        """
        assert self._prompt is not None, "nothing to attend to"
        prompt_k, prompt_v = self._prompt
        grouped = self._by_window(q).contiguous()  # (B, H, P, S, W)
        queries, seen = grouped.shape[3], prompt_k.shape[2]
        # One product per window and head, whatever the number of paths.
        scores = grouped.flatten(2, 3) @ prompt_k.transpose(-1, -2)
        scores = scores.view(*grouped.shape[:4], seen)
        if self.taken:
            assert self._own is not None
            own_k, own_v = (room[:, :, :, : self.taken] for room in self._own)
            own_scores = grouped @ own_k.transpose(-1, -2)  # (B, H, P, S, taken)
            if queries > 1:
                later = torch.ones(queries, self.taken, dtype=torch.bool, device=q.device).triu(
                    self.taken - queries + 1
                )
                own_scores = own_scores.masked_fill(later, -torch.inf)
            scores = torch.cat((scores, own_scores), dim=-1)
        weights = torch.softmax(scores.float() / math.sqrt(q.shape[-1]), dim=-1).to(q.dtype)
        mixed = (weights[..., :seen].flatten(2, 3) @ prompt_v).view(grouped.shape)
        if self.taken:
            mixed = mixed + weights[..., seen:] @ own_v
        # (B, H, P, S, W) to (R, S, H * W)
        return mixed.permute(0, 2, 3, 1, 4).flatten(3).flatten(0, 1)

    def _by_window(self, rows: Tensor) -> Tensor:
        """(R, S, H, W) to (B, H, P, S, W)."""
        return rows.view(-1, self.paths, *rows.shape[1:]).permute(0, 3, 1, 2, 4)
