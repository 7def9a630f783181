"""AlphaHead: from the embedding of a window's last bar to one number that ranks a day's shares.

Shape letters: B windows of one day, D width of the context, F features.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from kronos_qlib.errors import CheckpointConfigError, CheckpointError, ConfigError
from kronos_qlib.model.checkpoints import pretrained as checkpoint
from kronos_qlib.model.checkpoints import weights
from kronos_qlib.model.sizes import HeadConfig
from kronos_qlib.settings import from_mapping
from kronos_qlib.strict_json import read_object

TINY = 1e-6
SIZES = ("d_model", "features", "context_width", "hidden", "dropout")
"""Keys of a head's config.json beside the names of its features."""


class AlphaHead(nn.Module):
    """A small network on the context vector and on what the window's normalisation took away.

    Both are standardised over one day's windows: what moves the whole market moves no rank. A
    narrow layer lies between the context and the rest, which would otherwise overfit: a context
    has many columns, and the days are few.

    Args:
        d_model: width of the context.
        features: columns beside it, standardised over the day (see
            `data.windows.scale_features`).
        context_width: columns that are made of the context; 0 leaves it out.
        hidden: width of the hidden layer.
        dropout: share of both inputs and of the hidden layer left out in training.
    """

    def __init__(
        self, d_model: int, features: int, context_width: int, hidden: int, dropout: float
    ) -> None:
        super().__init__()
        sizes = (d_model, features, context_width, hidden, dropout)
        self.settings = dict(zip(SIZES, sizes, strict=True))
        self.narrow = nn.Linear(d_model, context_width) if context_width else None
        self.drop = nn.Dropout(dropout)
        self.inner = nn.Linear(context_width + features, hidden)
        self.outer = nn.Linear(hidden, 1)

    def save_pretrained(self, path: str | Path, names: Sequence[str]) -> Path:
        """Write `config.json` and `model.safetensors` into the folder `path`.

        Args:
            names: of the features, in their order.
        """
        config = {**self.settings, "names": list(names)}
        return checkpoint.replace_files(path, config, weights.to_bytes(self))

    @classmethod
    def from_pretrained(cls, path: str | Path, d_model: int, names: Sequence[str]) -> AlphaHead:
        """Load what `save_pretrained` wrote, in evaluation mode.

        Args:
            d_model: width of the predictor's context.
            names: of the features that it will be given.

        Raises:
            CheckpointError: a file is missing, damaged or does not fit the other, or the head is
                of another predictor's width, or of other features than this version has.
        """
        folder = checkpoint.folder_of(path)
        file = folder / checkpoint.CONFIG_FILE
        try:
            config = from_mapping(HeadConfig, read_object(file), where=str(file))
        except ConfigError as bad:
            raise CheckpointConfigError(str(bad)) from bad
        if list(config.names) != list(names):
            raise CheckpointError(f"{folder} was trained on other features than this version has")
        if config.d_model != d_model:
            raise CheckpointError(
                f"{folder} reads contexts of width {config.d_model}, the predictor's have "
                f"{d_model}: load it with the predictor that it was trained on"
            )
        if config.features != len(names):
            raise CheckpointConfigError(
                f"{file}: features is {config.features}, there are {len(names)} names"
            )
        source = folder / checkpoint.WEIGHTS_FILE
        with weights.opened(source) as (data, header):
            with torch.device("meta"):
                head = cls(**{name: getattr(config, name) for name in SIZES})
            weights.fill(head, data, header, source)
        return head.eval()

    def forward(self, context: Tensor, features: Tensor) -> Tensor:
        """Scores of one day's windows: context (B, D) and features (B, F) to (B,)."""
        return self.of_compared(compared(context) if self.reads_context else context, features)

    @property
    def reads_context(self) -> bool:
        """Whether the context is among its inputs."""
        return self.narrow is not None

    def of_compared(self, context: Tensor, features: Tensor) -> Tensor:
        """`forward` of contexts (B, D) that are `compared` already: its inputs as it weighs them.

        Here one window's input can be moved, or differentiated by, with the day's mean and
        deviation as they were.
        """
        parts = [features]
        if self.narrow is not None:
            parts.insert(0, self.narrow(self.drop(context)))
        mixed = self.inner(self.drop(torch.cat(parts, dim=-1)))
        out: Tensor = self.outer(self.drop(nn.functional.silu(mixed)))
        return out.squeeze(-1)


def compared(context: Tensor) -> Tensor:
    """Columns (B, D) standardised over the day, to (B, D); 0 where all values are equal."""
    centred = context - context.mean(dim=0, keepdim=True)
    return centred / (centred.square().mean(dim=0, keepdim=True).sqrt() + TINY)
