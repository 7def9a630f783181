"""Paths drawn by what was recorded for a batch of that shape: the prompt and all steps as one.

A step is hundreds of small operations, which Python asks a GPU for one by one, and it waits for the
device at every check of logits. Recorded, a whole batch is asked for at once and checked at its
end. Shape letters: B windows, P paths, R = B * P rows (window-major), L bars of a lookback.
"""

from __future__ import annotations

import copy
import logging
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from kronos_qlib.inference.generate import S1_LOGITS, S2_LOGITS, generate
from kronos_qlib.inference.packed import PackedKronos, TokenPair, require_finite
from kronos_qlib.inference.sampling import SamplingConfig

logger = logging.getLogger(__name__)

MOST_REPLAYS = 8
"""Shapes that are kept recorded; of more the one that was used the longest ago goes."""
MOST_SHAPES = 64
"""Shapes that are remembered as having come once."""
Body = Callable[..., tuple[Tensor, ...]]


class Replay(Protocol):
    """What was recorded."""

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Results for other inputs of the same shapes. They stay while the recorder's lock is held
        and nothing else is replayed."""


class Recorder(Protocol):
    """Records computations, as `cuda_graphs.CudaRecorder` does."""

    lock: threading.Lock
    """To be held while one is recorded, or replayed and its results copied."""
    is_off: bool
    """Whether one has failed: then nothing more is recorded, whatever the weights are."""

    def __call__(self, body: Body, inputs: Sequence[Tensor]) -> tuple[tuple[Tensor, ...], Replay]:
        """Compute once, then record the same: what was computed, and the recording.

        Raises:
            RuntimeError: it cannot be recorded.
        """


@dataclass(frozen=True)
class Shape:
    """All that a recording depends on beside its inputs and the network."""

    windows: int
    """A `bucket`."""
    lookback: int
    horizon: int
    paths: int
    how: SamplingConfig
    max_context: int


class RecordedDrawing:
    """Draws as `generate` does, from the second batch of a shape on by replaying a recording.

    A batch of fewer windows than its bucket is filled up; windows do not feel their neighbours. A
    recording is used only after it gave the tokens that were drawn without it. Where one fails, a
    warning says so and all is drawn by `generate` from then on.

    Args:
        net: whose weights are read; they must stay as they are.
        record: makes the recordings.
    """

    def __init__(self, net: PackedKronos, record: Recorder) -> None:
        self.net, self._record = net, record
        self._replays: OrderedDict[Shape, Replay] = OrderedDict()
        self._once: deque[Shape] = deque(maxlen=MOST_SHAPES)

    @property
    def recorded(self) -> list[Shape]:
        """Shapes that are drawn by a recording, the one used last at the end."""
        with self._record.lock:
            return [*self._replays]

    @torch.inference_mode()
    def __call__(
        self,
        tokens: TokenPair,
        stamps: Tensor,
        horizon: int,
        how: SamplingConfig,
        uniforms: Tensor,
        max_context: int,
        each_step: Callable[[], None] | None = None,
    ) -> TokenPair:
        """Continue each window by `horizon` bars.

        Args:
            tokens, stamps, horizon, how, uniforms, max_context: as of `generate`.
            each_step: called once for each bar, but where a recording draws only after the whole
                batch: it cannot end the work earlier.

        Returns:
            The drawn tokens, each (R, horizon) int64, rows window-major.

        Raises:
            CheckpointError: logits are not finite.
        """
        windows, paths = uniforms.shape[:2]
        # What is done with uniforms before, and with bars after, needs no recording of its own.
        drawn_by = replace(how, paths=paths, anchor=True, common=False, stratified=False)
        shape = Shape(bucket(windows), tokens[0].shape[1], horizon, paths, drawn_by, max_context)
        with self._record.lock:
            drawn = self._replayed(shape, (*tokens, stamps, uniforms))
        if drawn is None:
            return generate(
                self.net, tokens, stamps, horizon, how, uniforms, max_context, each_step
            )
        if each_step is not None:
            for _ in range(horizon):
                each_step()
        s1, s2 = (ids[: windows * paths] for ids in drawn)
        return s1, s2

    def _replayed(self, shape: Shape, given: Sequence[Tensor]) -> TokenPair | None:
        """Tokens of the filled batch, in memory of their own; None: there is no recording."""
        replay = self._replays.get(shape)
        if replay is None and (self._record.is_off or shape not in self._once):
            self._once.append(shape)
            return None
        inputs = [_filled_up(each, shape.windows) for each in given]
        if replay is not None:
            self._replays.move_to_end(shape)
        found = self._recorded(shape, inputs) if replay is None else replay(*inputs)
        if found is None:
            return None
        s1, s2, *notes = found
        drawn = s1.clone(), s2.clone()
        # The first look at a result: the device is waited for, so the memory is free afterwards.
        for note, what in zip(notes, (S1_LOGITS, S2_LOGITS), strict=True):
            require_finite(note, what)
        return drawn

    def _recorded(self, shape: Shape, inputs: Sequence[Tensor]) -> tuple[Tensor, ...] | None:
        """Results of a batch that is drawn and recorded; None: it could not be."""
        body = body_of(self.net, shape)
        try:
            computed, replay = self._record(body, inputs)
            found = replay(*inputs)
        except RuntimeError as failed:  # torch's, also of a lack of memory
            self._turn_off(str(failed))
            return None
        if not all(map(torch.equal, computed[:2], found[:2])):
            self._turn_off("a recording gave other tokens than were drawn without it")
            return None
        self._once.remove(shape)
        self._replays[shape] = replay
        if len(self._replays) > MOST_REPLAYS:  # after the new one, which may share its memory
            self._replays.popitem(last=False)
        return found

    def _turn_off(self, why: str) -> None:
        self._record.is_off = True
        self._replays.clear()
        logger.warning("paths are drawn without recordings (CUDA graphs) from now on: %s", why)


class LateCheck:
    """Notes whether logits are finite, for a look at the end: none may be taken before.

    What is not finite is drawn from as 0: an id beyond the vocabulary would end a GPU's work for
    good, with a message of its own.
    """

    def __init__(self) -> None:
        self._notes: dict[str, list[Tensor]] = {S1_LOGITS: [], S2_LOGITS: []}

    def __call__(self, logits: Tensor, what: str) -> Tensor:
        """Logits (R, V) that can be drawn from."""
        self._notes[what].append((logits * 0).sum())
        return logits.nan_to_num(0.0, 0.0, 0.0)

    @property
    def notes(self) -> tuple[Tensor, ...]:
        """Of s1 and of s2, (steps,) each: 0 where the logits were finite, NaN where not."""
        return tuple(torch.stack(each) for each in self._notes.values())


def body_of(net: PackedKronos, shape: Shape) -> Body:
    """Drawing a filled batch as a function of tensors alone, which looks at none of them.

    Returns:
        From s1 (B, L), s2 (B, L), stamps (B, L + horizon, 5) and uniforms (B, P, horizon, 2) to the
        drawn s1 and s2, (R, horizon) each, and the notes of `LateCheck` on either.
    """
    own = _with_own_tables(net)

    def body(s1: Tensor, s2: Tensor, stamps: Tensor, uniforms: Tensor) -> tuple[Tensor, ...]:
        check = LateCheck()
        drawn = generate(
            own,
            (s1, s2),
            stamps,
            shape.horizon,
            shape.how,
            uniforms,
            shape.max_context,
            check=check,
        )
        return *drawn, *check.notes

    return body


def bucket(windows: int) -> int:
    """So many windows, or up to an eighth more: eight sizes from each power of two to the next."""
    step = 1 << max(0, (windows - 1).bit_length() - 4)
    return -(-windows // step) * step


def _filled_up(rows: Tensor, count: int) -> Tensor:
    """(B, ...) to (count, ...), the last one repeated: whatever is wrong, is wrong without it."""
    spare = count - len(rows)
    return torch.cat((rows, rows[-1:].expand(spare, *rows.shape[1:]))) if spare else rows


def _with_own_tables(net: PackedKronos) -> PackedKronos:
    """The same network beside rotary tables that stay: the net's are replaced by longer ones."""
    own = copy.copy(net)
    own.s2_turn = copy.copy(net.s2_turn)
    turns = {id(block.turn): copy.copy(block.turn) for block in net.blocks}
    own.blocks = [copy.copy(block) for block in net.blocks]
    for block in own.blocks:
        block.turn = turns[id(block.turn)]
    return own
