"""A computation on a CUDA GPU as one CUDA graph: all its kernels, launched at once.

Not run on a GPU so far; tests hold it against torch's own context manager with stand-ins for the
device. Source of its rules: "CUDA semantics" of torch's notes, the sections on CUDA graphs.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

_RECORDING = threading.Lock()
"""A process may record one graph at a time."""
_UNFINISHED: list[torch.cuda.CUDAGraph] = []
"""Graphs being recorded, and those that failed: torch's allocator goes on to ask these."""


class CudaGraph:
    """A recorded computation. It reads and writes the memory that it was recorded with.

    Args:
        body: what was recorded: whatever tensors it holds are among that memory.
        inputs, results: the tensors that it was called with, and those that it returned.
    """

    def __init__(
        self,
        graph: torch.cuda.CUDAGraph,
        body: Callable[..., tuple[Tensor, ...]],
        inputs: Sequence[Tensor],
        results: tuple[Tensor, ...],
    ) -> None:
        self.graph, self.body, self.inputs, self.results = graph, body, inputs, results

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """What `body` would return; the next call overwrites it."""
        for kept, given in zip(self.inputs, inputs, strict=True):
            kept.copy_(given)
        self.graph.replay()
        return self.results


class CudaRecorder:
    """Makes CUDA graphs on one device, which share one pool of memory.

    What one leaves there the next may overwrite: `lock` is to be held while one runs and until its
    results have been copied. `is_off` is for the caller, as of `recorded_drawing.Recorder`.
    """

    def __init__(self, device: torch.device) -> None:
        self.device, self.lock, self.is_off = device, threading.Lock(), False
        self._stream: torch.cuda.Stream | None = None
        self._graphs: weakref.WeakSet[CudaGraph] = weakref.WeakSet()

    def __call__(
        self, body: Callable[..., tuple[Tensor, ...]], inputs: Sequence[Tensor]
    ) -> tuple[tuple[Tensor, ...], CudaGraph]:
        """Compute once, then record the same; `lock` is held.

        Args:
            body: waits for no result of its own, and gives what depends on nothing but its inputs
                and on tensors that it holds.
            inputs: on the device.

        Returns:
            What was computed, and the graph.

        Raises:
            RuntimeError: `body` cannot be recorded, or there is too little memory.
        """
        own = [given.clone() for given in inputs]
        with _RECORDING, torch.cuda.device(self.device):
            here = torch.cuda.current_stream()
            if self._stream is None:
                self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            self._stream.wait_stream(here)
            # In a `with` of its own: where a recording fails, torch's leaves the stream in place.
            with torch.cuda.stream(self._stream):
                # It loads kernels, makes tables and gives libraries their memory, none of which
                # may happen while a graph is recorded.
                computed = body(*own)
                graph = torch.cuda.CUDAGraph()
                # By a graph that lives: a pool that no graph uses any more cannot be taken up.
                alive = [*self._graphs]
                pool = alive[0].graph.pool() if alive else None
                _UNFINISHED.append(graph)
                with torch.cuda.graph(
                    graph, pool=pool, stream=self._stream, capture_error_mode="thread_local"
                ):
                    results = body(*own)
                _UNFINISHED.remove(graph)
            here.wait_stream(self._stream)
        recorded = CudaGraph(graph, body, own, results)
        self._graphs.add(recorded)
        return computed, recorded


def recorder_for(device: torch.device, is_wanted: bool) -> CudaRecorder | None:
    """What records on the device; None where nothing is recorded: on any but a CUDA GPU."""
    return CudaRecorder(device) if is_wanted and device.type == "cuda" else None
