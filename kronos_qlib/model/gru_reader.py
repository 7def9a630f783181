"""GRUReader: a plain recurrent network in Kronos' place, learned from nothing but the bars at hand.

Shape letters: B windows, T bars, D width of the hidden state.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor, nn

from kronos_qlib.errors import CheckpointConfigError, ConfigError
from kronos_qlib.model.checkpoints import pretrained as checkpoint
from kronos_qlib.model.checkpoints import weights
from kronos_qlib.model.sizes import GRUConfig
from kronos_qlib.schema import BAR_COLUMNS, TIME_FIELDS
from kronos_qlib.settings import from_mapping
from kronos_qlib.strict_json import read_object

LARGEST = {"minute": 59.0, "hour": 23.0, "weekday": 6.0, "day": 31.0, "month": 12.0}
"""Of each time field: all are brought to -0.5 to 0.5."""
CHUNK = 200
"""Windows that run through the recurrence together: more leave a core's cache, and take longer."""


class GRUReader(nn.Module):
    """A GRU over a window's bars and times; its state after the last bar is the window's context.

    It sees what Kronos sees: bars normalised by their own lookback, and their time fields.

    Args:
        config: sizes.

    Source:
        Cho et al., "Learning phrase representations using RNN encoder-decoder" (2014); in two
        layers a usual baseline on daily bars, as Qlib's own.
    """

    largest: Tensor

    def __init__(self, config: GRUConfig) -> None:
        super().__init__()
        self.config = config
        self.gru = nn.GRU(
            len(BAR_COLUMNS) + len(TIME_FIELDS),
            config.hidden,
            config.layers,
            dropout=config.dropout if config.layers > 1 else 0.0,
            batch_first=True,
        )
        largest = torch.tensor([LARGEST[name] for name in TIME_FIELDS])
        self.register_buffer("largest", largest, persistent=False)

    def forward(self, z: Tensor, stamps: Tensor, lengths: Tensor) -> Tensor:
        """Contexts (B, D) of bars z (B, T, 6), their stamps (B, T, 5) and bars seen (B,)."""
        return self.read_after(z, stamps, lengths[:, None] - 1)[:, 0]

    def read_after(self, z: Tensor, stamps: Tensor, places: Tensor) -> Tensor:
        """Contexts (B, K, D) after several bars of each window, at `places` (B, K) from 0."""
        times = stamps.to(z.dtype) / self.largest - 0.5
        inputs = torch.cat((z, times), dim=-1)
        parts = []
        for begin in range(0, len(inputs), CHUNK):
            bars, wanted = inputs[begin : begin + CHUNK], places[begin : begin + CHUNK]
            states, _ = self.gru(bars)
            parts.append(states[torch.arange(len(bars), device=z.device)[:, None], wanted])
        return torch.cat(parts)

    def save_pretrained(self, path: str | Path) -> Path:
        """Write `config.json` and `model.safetensors` into the folder `path`."""
        return checkpoint.replace_files(path, asdict(self.config), weights.to_bytes(self))

    @classmethod
    def from_pretrained(cls, path: str | Path) -> GRUReader:
        """Load what `save_pretrained` wrote, in evaluation mode.

        Raises:
            CheckpointError: a file is missing or damaged, or does not fit the other.
        """
        folder = checkpoint.folder_of(path)
        file = folder / checkpoint.CONFIG_FILE
        try:
            config = from_mapping(GRUConfig, read_object(file), where=str(file))
        except ConfigError as bad:
            raise CheckpointConfigError(str(bad)) from bad
        source = folder / checkpoint.WEIGHTS_FILE
        with weights.opened(source) as (data, header):
            net = cls(config)
            weights.fill(net, data, header, source)
        return net.eval()
