"""What was read of the prompts of many instruments: keys, values and contexts, each in its slot.

Shape letters: S slots, B of them in a batch, P paths, T bars of a prompt, H heads, W head width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from kronos_qlib.data.windows.scale import WindowScale
from kronos_qlib.inference.generate import generate
from kronos_qlib.inference.kv_cache import KeyValueStore
from kronos_qlib.inference.packed import PackedKronos, PackedTokenizer, Reader
from kronos_qlib.inference.sampling import SamplingConfig
from kronos_qlib.schema import BAR_COLUMNS, TIME_FIELDS

MOST_RUNS = 6
"""Up to this many parts of a batch are cheaper one by one than a copy of their keys together."""

Slots = npt.NDArray[np.int64]
"""(B,) increasing: of a batch."""


class KeptPrompts:
    """Memory for prompts of at most `room` bars, a slot for each.

    A slot holds the keys and values of every attention (the tokenizer's encoder, the predictor, its
    s2 attention, the tokenizer's decoder), and of its last bar the context, the bar as its tokens
    have it, and their ids.

    Args:
        rotate_s2: as of `SamplingConfig`.
    """

    def __init__(
        self,
        net: PackedKronos,
        tokenizer: PackedTokenizer,
        device: torch.device,
        room: int,
        rotate_s2: bool,
    ) -> None:
        self.net, self.tokenizer, self.device = net, tokenizer, device
        self.room, self.rotate_s2 = room, rotate_s2
        self.slots = 0
        self._layers: list[tuple[Tensor, Tensor]] = []  # each (S, H, room, W)
        self._newest: list[Tensor] = []  # context (S, D), bar (S, 6), s1 and s2 (S, 1)

    @property
    def nbytes(self) -> int:
        """Bytes of all slots together."""
        every = [*self._newest, *(part for pair in self._layers for part in pair)]
        return sum(part.numel() * part.element_size() for part in every)

    @torch.inference_mode()
    def grow(self, slots: int) -> None:
        """Have at least so many slots, and then a quarter more: each growth is a copy."""
        if slots <= self.slots:
            return
        if not self.slots:  # one bar that is nobody's says which shapes there are
            z = torch.zeros(1, 1, len(BAR_COLUMNS), device=self.device)
            stamps = torch.zeros(1, 1, len(TIME_FIELDS), dtype=torch.int64, device=self.device)
            stores, self._newest = self._read(z, stamps)
            for store in stores:
                k, v = (part.new_zeros(*part.shape[:2], self.room, part.shape[3])
                        for part in store.prompt)  # fmt: skip
                self._layers.append((k, v))
        else:
            slots = max(slots, self.slots * 5 // 4)
        self._newest = [_grown(part, slots) for part in self._newest]
        self._layers = [(_grown(k, slots), _grown(v, slots)) for k, v in self._layers]
        self.slots = slots

    @torch.inference_mode()
    def read_anew(self, slots: Slots, z: Tensor, stamps: Tensor) -> None:
        """Read whole prompts into slots.

        Args:
            z: (B, T, 6) normalised bars. stamps: (B, T, 5) int64.
        """
        stores, newest = self._read(z, stamps)
        which = _indices(slots)
        bars = z.shape[1]
        for (k, v), store in zip(self._layers, stores, strict=True):
            k[which, :, :bars], v[which, :, :bars] = store.prompt
        self._keep_newest(slots, newest)

    @torch.inference_mode()
    def read_more(self, slots: Slots, lengths: Tensor, z: Tensor, stamps: Tensor) -> None:
        """Read one more bar into slots.

        Args:
            lengths: (B,) int64, bars that they hold.
            z: (B, 1, 6) by the scale of their prompts. stamps: (B, 1, 5) int64.
        """
        which = _indices(slots)
        encoder, reader, decoder = self._stores(1, 0)
        stores = [*encoder, *reader.stores, reader.s2_store, *decoder]
        for (k, v), store in zip(self._layers, stores, strict=True):
            store.adopt(k[which], v[which], lengths)
        s1, s2 = self.tokenizer.encode(z, encoder)
        context = reader.read_more(s1, s2, stamps)
        bar = self.tokenizer.decode_prompt((s1, s2), decoder)
        if not isinstance(which, slice):  # what was written went into a copy
            row = torch.arange(len(slots), device=self.device)
            for (k, v), store in zip(self._layers, stores, strict=True):
                new_k, new_v = store.prompt
                k[which, :, lengths] = new_k[row, :, lengths]
                v[which, :, lengths] = new_v[row, :, lengths]
        self._keep_newest(slots, [context, bar, s1, s2])

    @torch.inference_mode()
    def draw(
        self,
        slots: Slots,
        lengths: int | Tensor,
        ahead: Tensor,
        how: SamplingConfig,
        uniforms: Tensor,
        each_step: Callable[[], None] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Draw paths after the prompts of slots.

        Args:
            lengths: bars that each holds, or (B,) int64, see `KeyValueStore.adopt`.
            ahead: (B, horizon, 5) int64 stamps. uniforms: (B, P, horizon, 2), as of `generate`.

        Returns:
            As `decode_drawn`: (B * P, horizon, 6) and (B, 6), normalised.
        """
        horizon, paths = ahead.shape[1], uniforms.shape[1]
        which = _indices(slots)
        _, reader, decoder = self._stores(paths, horizon - 1)
        stores = [*reader.stores, reader.s2_store, *decoder]
        for (k, v), store in zip(self._layers[-len(stores) :], stores, strict=True):
            store.adopt(k[which], v[which], lengths)
        context, bar, s1, s2 = (part[which] for part in self._newest)
        # The stamp of the last bar read is asked for no more, any will do.
        stamps = torch.cat((ahead[:, :1], ahead), dim=1)
        begun = reader, context.repeat_interleave(paths, dim=0)
        most = self.room + horizon
        drawn = generate(self.net, (s1, s2), stamps, horizon, how, uniforms, most, each_step, begun)
        return self.tokenizer.decode_after(drawn, decoder), bar

    def _read(self, z: Tensor, stamps: Tensor) -> tuple[list[KeyValueStore], list[Tensor]]:
        """What a slot keeps of whole prompts."""
        encoder, reader, decoder = self._stores(1, 0)
        s1, s2 = self.tokenizer.encode(z, encoder)
        context = reader.read(s1, s2, stamps)
        bar = self.tokenizer.decode_prompt((s1, s2), decoder)
        stores = [*encoder, *reader.stores, reader.s2_store, *decoder]
        return stores, [context, bar, s1[:, -1:], s2[:, -1:]]

    def _stores(
        self, paths: int, steps: int
    ) -> tuple[list[KeyValueStore], Reader, list[KeyValueStore]]:
        reader = Reader(self.net, paths, steps, self.rotate_s2)
        return self.tokenizer.encoder_stores(), reader, self.tokenizer.decoder_stores(paths)

    def _keep_newest(self, slots: Slots, newest: Sequence[Tensor]) -> None:
        for kept, new in zip(self._newest, newest, strict=True):
            kept[_indices(slots)] = new


class HeldScales:
    """The scale by which each slot's prompt was normalised: (S, 6) each, float64."""

    def __init__(self) -> None:
        self.mean = np.empty((0, len(BAR_COLUMNS)))
        self.spread = np.empty((0, len(BAR_COLUMNS)))

    def grow(self, slots: int) -> None:
        """Have at least so many slots."""
        more = np.zeros((max(0, slots - len(self.mean)), len(BAR_COLUMNS)))
        self.mean = np.concatenate((self.mean, more))
        self.spread = np.concatenate((self.spread, more))

    def keep(self, slots: Slots, scale: WindowScale) -> None:
        """Of lookbacks in these slots."""
        self.mean[slots], self.spread[slots] = scale.mean[:, 0], scale.spread[:, 0]

    def of(self, slots: Slots) -> WindowScale:
        """(B, 1, 6) each."""
        return WindowScale(self.mean[slots][:, None], self.spread[slots][:, None])


def runs_of(slots: Slots) -> list[slice]:
    """The parts of a batch whose slots lie side by side; all of it where these are many."""
    ends = [*(np.flatnonzero(np.diff(slots) > 1) + 1).tolist(), len(slots)]
    if len(ends) > MOST_RUNS:
        return [slice(0, len(slots))]
    return [slice(start, stop) for start, stop in zip([0, *ends], ends, strict=False)]


def _indices(slots: Slots) -> slice | Tensor:
    """A slice where slots lie side by side: a view, where other indices make a copy."""
    first, last = int(slots[0]), int(slots[-1])
    if last - first + 1 == len(slots):
        return slice(first, last + 1)
    return torch.from_numpy(slots)


def _grown(part: Tensor, slots: int) -> Tensor:
    """(S, ...) with as many rows as there are to be slots."""
    out = part.new_zeros(slots, *part.shape[1:])  # what is free must be finite
    out[: len(part)] = part[: len(out)]
    return out
