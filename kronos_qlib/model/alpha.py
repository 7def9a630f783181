"""AlphaHead: from what the predictor has read of a window to one number that ranks a day's shares.

Shape letters: B windows of one day, D width of the context, F features.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

TINY = 1e-6


class AlphaHead(nn.Module):
    """A small network on the context vector and on what the window's normalisation took away.

    Both are compared over one day's windows: what moves the whole market moves no rank. A narrow
    layer stands between the context and the rest, which otherwise learns the days by heart: they
    are few, and a context has many columns.

    Args:
        d_model: width of the context.
        features: columns beside it, standardised over the day (see `data.features`).
        context_width: columns that are made of the context; 0 leaves it out.
        hidden: width of the hidden layer.
        dropout: share of both inputs and of the hidden layer left out in training.
    """

    def __init__(
        self, d_model: int, features: int, context_width: int, hidden: int, dropout: float
    ) -> None:
        super().__init__()
        self.settings = {
            "d_model": d_model,
            "features": features,
            "context_width": context_width,
            "hidden": hidden,
            "dropout": dropout,
        }
        self.narrow = nn.Linear(d_model, context_width) if context_width else None
        self.drop = nn.Dropout(dropout)
        self.inner = nn.Linear(context_width + features, hidden)
        self.outer = nn.Linear(hidden, 1)

    def forward(self, context: Tensor, features: Tensor) -> Tensor:
        """Scores of one day's windows: context (B, D) and features (B, F) to (B,)."""
        parts = [features]
        if self.narrow is not None:
            parts.insert(0, self.narrow(self.drop(compared(context))))
        mixed = self.inner(self.drop(torch.cat(parts, dim=-1)))
        out: Tensor = self.outer(self.drop(nn.functional.silu(mixed)))
        return out.squeeze(-1)


def compared(context: Tensor) -> Tensor:
    """Each column less its mean over the day, in units of its deviation; 0 where all are alike."""
    centred = context - context.mean(dim=0, keepdim=True)
    return centred / (centred.square().mean(dim=0, keepdim=True).sqrt() + TINY)
