"""A network shared out among processes: each keeps a part of every weight, gradient and moment.

By torch's `fully_shard` (FSDP2): a block's weights are put together when it is computed and are
given away after it. States are torch.distributed.checkpoint's, which any number of processes reads.

Source: Zhao et al., arXiv 2304.11277.
"""

from __future__ import annotations

import copy
import hashlib
import importlib
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kronos_qlib.errors import CheckpointError, ConfigError
from kronos_qlib.model.layers import TransformerBlock
from kronos_qlib.training.parallel.distributed import process_count, process_rank, raise_together

READ_BYTES = 1 << 22
CHECKPOINTS = "torch.distributed.checkpoint"
"""Imported where a state is read or written; it exports its names without saying so to mypy."""


def check_shared_out(processes: int) -> None:
    """Refuse to share a network out among one.

    Raises:
        ConfigError: there is one process.
    """
    if processes < 2:
        raise ConfigError(
            "fsdp shares the network out among processes, and there is one: start the run by "
            "torchrun, or with n_processes, or leave fsdp out"
        )


def sharded(net: nn.Module, device: torch.device) -> nn.Module:
    """A copy of `net` that all processes hold together, with the first one's values.

    It is laid out on the meta device, where weights take no memory, and only then is each process'
    own part made: `net` itself may stay on the CPU.

    Args:
        net: of the same sizes in every process; where it is on the meta device, as it may be in all
            but the first, it needs no memory at all.

    Raises:
        ConfigError: there is one process.
    """
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

    shell = laid_out(net, device)
    shell.to_empty(device=device)
    values = net.state_dict() if process_rank() == 0 else {}
    whole = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    set_model_state_dict(shell, values, options=whole)
    kept = set(net.state_dict())
    for name, value in net.named_buffers():
        if name not in kept:
            shell.get_buffer(name).copy_(value)
    return shell


def laid_out(net: nn.Module, device: torch.device) -> nn.Module:
    """`sharded` without values: every weight's shape, and which part of it is here, on meta.

    Raises:
        ConfigError: there is one process.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    check_shared_out(process_count())
    memo: dict[int, Any] = {
        id(weight): nn.Parameter(
            torch.empty_like(weight, device="meta"), requires_grad=weight.requires_grad
        )
        for weight in net.parameters()
    }
    shell = copy.deepcopy(net, memo)
    mesh = init_device_mesh(device.type, (process_count(),))
    for part in shell.modules():
        if isinstance(part, TransformerBlock):
            fully_shard(part, mesh=mesh)
    fully_shard(shell, mesh=mesh)
    return shell


def whole(value: Tensor) -> Tensor:
    """A tensor (...) put together from the parts of all processes, which all must call this."""
    from torch.distributed.tensor import DTensor

    return value.full_tensor() if isinstance(value, DTensor) else value


def own_part(value: Tensor) -> Tensor:
    """What of a tensor (...) is here, fewer rows; all of it where it is not shared out."""
    from torch.distributed.tensor import DTensor

    return value.to_local() if isinstance(value, DTensor) else value


def moments(net: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The optimizer's tensors by the weights' names, made where it has none yet."""
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

    found: dict[str, Any] = get_optimizer_state_dict(net, optimizer)["state"]  # type: ignore[assignment]
    return found


def set_moments(
    net: nn.Module, optimizer: torch.optim.Optimizer, values: Mapping[str, Any]
) -> None:
    """Set what `moments` returned; the settings of its groups stay."""
    from torch.distributed.checkpoint.state_dict import (
        get_optimizer_state_dict,
        set_optimizer_state_dict,
    )

    state = get_optimizer_state_dict(net, optimizer)
    state["state"] = dict(values)
    set_optimizer_state_dict(net, optimizer, state)


def save_shards(folder: Path, tensors: dict[str, Any]) -> dict[str, str]:
    """Write tensors, each process its parts; all processes come here.

    Args:
        folder: that all processes see; it is there whole, or not at all.

    Returns:
        SHA-256 of its files by name; in the first process, elsewhere nothing.

    Raises:
        TrainingError: it cannot be written, in all processes alike. What was there before stays.
    """
    dcp: Any = importlib.import_module(CHECKPOINTS)
    draft = folder.with_name(f".{folder.name}.new")
    is_first = process_rank() == 0
    digests: dict[str, str] = {}

    def begin() -> None:
        if is_first:
            draft.parent.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(draft, ignore_errors=True)

    def write() -> None:
        dcp.save(tensors, storage_writer=dcp.FileSystemWriter(draft))

    def finish() -> None:
        if is_first:
            digests.update({path.name: _digest(path) for path in sorted(draft.iterdir())})
            shutil.rmtree(folder, ignore_errors=True)  # of a run that stopped before its state
            os.replace(draft, folder)  # noqa: PTH105

    for part in (begin, write, finish):
        failed = None
        try:
            part()
        except (OSError, dcp.CheckpointException) as problem:
            failed = (
                f"the state of the shared network cannot be written to {folder}: {problem}. Make "
                "room and start again: the run goes on from the state before it"
            )
        raise_together(failed)
    return digests


def load_shards(folder: Path, tensors: dict[str, Any]) -> None:
    """Fill tensors from what `save_shards` wrote, in this or another number of processes.

    Raises:
        CheckpointError: it lacks one of them, or has it in another shape.
    """
    dcp: Any = importlib.import_module(CHECKPOINTS)
    try:
        dcp.load(tensors, storage_reader=dcp.FileSystemReader(folder))
    except (RuntimeError, ValueError, KeyError, dcp.CheckpointException) as problem:
        raise CheckpointError(
            f"{folder} is not of this network: {problem}; take the old settings, or another folder"
        ) from problem


def check_shards(folder: Path, digests: Mapping[str, str]) -> None:
    """Compare the files of a folder with the digests that `save_shards` returned.

    Raises:
        CheckpointError: one is missing or damaged; names it.
    """
    for name, digest in digests.items():
        try:
            found = _digest(folder / name)
        except OSError as problem:
            raise CheckpointError(f"{folder / name} cannot be read: {problem}") from problem
        if found != digest:
            raise CheckpointError(f"{folder / name} is truncated or damaged")


def _digest(path: Path) -> str:
    found = hashlib.sha256()
    with path.open("rb") as stream:
        while piece := stream.read(READ_BYTES):
            found.update(piece)
    return found.hexdigest()
