"""Keys and values kept while decoding: the prompt's once per window, each path's own beside it."""

from __future__ import annotations

import math

import torch
from torch import Tensor


class KeyValueStore:
    """What one attention layer remembers.

    The prompt's keys and values are held once per window, (B, H, T, W), and shared by that
    window's P paths without a copy; each path's own bars follow in (B, H, P, S, W).
    Rows of a step are window-major: the paths of the first window, then of the second.
    """

    def __init__(self, paths: int, steps: int) -> None:
        """Room for `paths` futures per window, of at most `steps` bars each."""
        self.paths = paths
        self.steps = steps
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

    def keep_prompt(self, k: Tensor, v: Tensor) -> None:
        """Remember the prompt: k and v are (B, H, T, W)."""
        self._prompt = (k, v)
        if self.steps:
            rows, heads, _, width = k.shape
            room = (rows, heads, self.paths, self.steps, width)
            self._own = (k.new_empty(room), v.new_empty(room))

    def append(self, k: Tensor, v: Tensor) -> None:
        """Remember one more bar of every path: k and v are (B * P, H, 1, W)."""
        assert self._own is not None and self.taken < self.steps, "the store is full"
        for room, new in zip(self._own, (k, v), strict=True):
            room[:, :, :, self.taken] = self._by_window(new)
        self.taken += 1

    def attend(self, q: Tensor) -> Tensor:
        """Attend from one query per path to the prompt and to the path's own bars.

        Args:
            q: (B * P, H, 1, W).

        Returns:
            (B * P, H, 1, W).
        """
        assert self._prompt is not None, "nothing to attend to"
        prompt_k, prompt_v = self._prompt
        grouped = self._by_window(q)  # (B, H, P, W)
        scale = 1.0 / math.sqrt(q.shape[-1])
        scores = grouped @ prompt_k.transpose(-1, -2)  # (B, H, P, T): one product per window
        if self.taken == 0:
            weights = torch.softmax(scores.float() * scale, dim=-1).to(q.dtype)
            mixed = weights @ prompt_v
        else:
            assert self._own is not None
            own_k, own_v = (room[:, :, :, : self.taken] for room in self._own)
            own_scores = (own_k @ grouped.unsqueeze(-1)).squeeze(-1)  # (B, H, P, S)
            both = torch.cat((scores, own_scores), dim=-1).float() * scale
            weights = torch.softmax(both, dim=-1).to(q.dtype)
            prompt_weights, own_weights = weights.split([prompt_k.shape[2], self.taken], dim=-1)
            mixed = prompt_weights @ prompt_v
            mixed = mixed + (own_weights.unsqueeze(-2) @ own_v).squeeze(-2)
        return mixed.transpose(1, 2).flatten(0, 1).unsqueeze(2)

    def _by_window(self, rows: Tensor) -> Tensor:
        """(B * P, H, 1, W) to (B, H, P, W)."""
        return rows.squeeze(2).unflatten(0, (-1, self.paths)).transpose(1, 2)


class DecodingCache:
    """One store for every layer of the predictor and one for its s2 attention."""

    def __init__(self, layers: int, paths: int, steps: int) -> None:
        self.layers = [KeyValueStore(paths, steps) for _ in range(layers)]
        self.s2 = KeyValueStore(paths, steps)
