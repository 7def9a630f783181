"""The state of a training run on disk, from which it can resume: whole files, or none."""

from __future__ import annotations

import hashlib
import io
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from filelock import Timeout
from torch import Tensor

from kronos_qlib.errors import CheckpointError, ConfigError, TrainingError
from kronos_qlib.files import replacing
from kronos_qlib.owners import lock_of
from kronos_qlib.training.parallel.sharding import check_shards

logger = logging.getLogger(__name__)

KEPT = 2
"""Newest states that stay: if the last one is damaged, the one before it is used."""
SUFFIX = ".state"
SHARDS = ".shards"
"""A folder beside a state, of a network that processes share out; see `sharding`."""
LOCK = ".lock"
KIND = "kind of state"
"""The part of a signature that releases differ in, and no setting does."""


class RunStore:
    """A folder with the newest states of one run, each a file that is complete or not there.

    A state is a mapping of tensors, numbers, texts and lists; nothing in it is code. Its file
    begins with the digest of the rest, and is flushed to the disk before it takes its place. Of a
    network that processes share out, tensors lie in a folder beside it whose digests it has.

    Args:
        folder: of this run alone; made when first written.
        signature: what a run must share with the one that left its state here to go on from it,
            by name; all of it text.
        every: steps from one state to the next.
    """

    def __init__(
        self, folder: str | Path, signature: dict[str, str] | None = None, every: int = 500
    ) -> None:
        if every < 1:
            raise ConfigError(f"a state is kept every 1 or more steps, got {every}")
        self.folder = Path(folder)
        self.signature = dict(signature or {})
        self.every = every

    @contextmanager
    def held(self) -> Iterator[None]:
        """Within, the folder is locked for other runs; a killed process frees it.

        Raises:
            TrainingError: another run has it, or the folder cannot be written.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = lock_of(self.folder / LOCK)
        except Timeout as taken:
            raise TrainingError(
                f"another run is at work in {self.folder}: two would delete each other's states. "
                "Give this one a folder of its own, or wait for the other"
            ) from taken
        except OSError as problem:
            raise TrainingError(f"no states can be kept in {self.folder}: {problem}") from problem
        try:
            yield
        finally:
            lock.release()

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Write the state after `step` steps, and delete those before the last two.

        Raises:
            TrainingError: the disk is full or the folder cannot be written. What was there stays.
        """
        payload = io.BytesIO()
        torch.save({"signature": self.signature, "step": step, "state": state}, payload)
        data = payload.getbuffer()
        target = self.folder / f"{step:012d}{SUFFIX}"
        try:
            for left in self.folder.glob(f".*{SUFFIX}.*"):
                left.unlink(missing_ok=True)  # of a writer that was killed
            with replacing(target) as draft, draft.open("wb") as file:
                file.write(hashlib.sha256(data).digest())
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            for old in self._files()[KEPT:]:
                old.unlink(missing_ok=True)
            kept = {file.stem for file in self._files()}
            for folder in self.folder.glob(f"*{SHARDS}"):
                if folder.stem not in kept:
                    shutil.rmtree(folder, ignore_errors=True)
            for left in self.folder.glob(f".*{SHARDS}.new"):
                shutil.rmtree(left, ignore_errors=True)  # of processes that were killed
        except OSError as problem:
            good = next(iter(self._files()), None)
            raise TrainingError(
                f"the state after {step} steps cannot be written to {self.folder}: {problem}; "
                f"{f'{good.name} is the last good one' if good else 'there is none before it'}. "
                "Make room and start again: the run goes on from there"
            ) from problem

    def shards(self, step: int) -> Path:
        """Where the parts of a network lie that processes share out, beside the state."""
        return self.folder / f"{step:012d}{SHARDS}"

    def load(self) -> tuple[int, dict[str, Any]] | None:
        """Steps done and the newest state that is whole; None where the run is to begin.

        Raises:
            CheckpointError: there are states and none is whole.
            ConfigError: the state is another run's; names what differs.
        """
        files = self._files()
        for file in files:
            try:
                found = _read(file)
                check_shards(file.with_suffix(SHARDS), found["state"].get("shards") or {})
            except (OSError, CheckpointError) as problem:
                logger.warning("%s: the state before it is used", problem)
                continue
            self._check(found["signature"], file)
            return int(found["step"]), found["state"]
        if files:
            raise CheckpointError(
                f"none of the {len(files)} states in {self.folder} is whole; remove the folder to "
                "begin again"
            )
        return None

    def _files(self) -> list[Path]:
        """The states, newest first."""
        if not self.folder.is_dir():
            return []
        return sorted(self.folder.glob(f"[0-9]*{SUFFIX}"), reverse=True)

    def _check(self, signature: dict[str, str], file: Path) -> None:
        kinds = signature.get(KIND), self.signature.get(KIND)
        if kinds[0] != kinds[1]:
            raise ConfigError(
                f"{file} was kept by another release, whose training computes or keeps something "
                f"otherwise ({KIND} {kinds[0]}, and here {kinds[1]}): whatever the settings, this "
                "one cannot go on from it. Go on with that release, or name another resume_folder "
                "to begin anew"
            )
        names = sorted({*signature, *self.signature})
        changed = [name for name in names if signature.get(name) != self.signature.get(name)]
        if changed:
            raise ConfigError(
                f"{file} is of a run with other {', '.join(changed)}; it cannot go on with these. "
                "Take the old settings, or name another resume_folder to begin anew"
            )


def _read(file: Path) -> dict[str, Any]:
    data = file.read_bytes()
    digest, payload = data[:32], data[32:]
    if hashlib.sha256(payload).digest() != digest:
        raise CheckpointError(f"{file} is truncated or damaged")
    found: dict[str, Any] = torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
    return found


def random_state(device: torch.device) -> list[Tensor]:
    """States of torch's own generators, the CPU's and a GPU's: (bytes,) uint8 each."""
    states = [torch.get_rng_state()]
    return [*states, torch.cuda.get_rng_state(device)] if device.type == "cuda" else states


def set_random_state(device: torch.device, states: list[Tensor]) -> None:
    """Set the generators to the states that `random_state` returned, of the same shape."""
    torch.set_rng_state(states[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states[1], device)
