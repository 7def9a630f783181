"""Training in several processes of this machine, begun from within one: a notebook, or `qrun`.

Workers are plain commands, `python -m kronos_qlib.training.worker FOLDER`, so nothing depends on
how the parent was started and no `if __name__ == "__main__"` is asked of anyone. The windows lie in
files that all workers map: there is one copy of them, in the page cache.
"""

from __future__ import annotations

import json
import logging
import os
import pickle
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import joblib
import torch

from kronos_qlib.configs import AlphaConfig, TrainingConfig
from kronos_qlib.errors import ConfigError, KronosError, TrainingError
from kronos_qlib.training.loop import OnEpoch, OnSteps, TrainingReport
from kronos_qlib.training.steps import Step, TrainingData
from kronos_qlib.training.store import RunStore

logger = logging.getLogger(__name__)

JOB, EVENTS, RESULT, PROBLEM = "job.joblib", "events.jsonl", "result.pt", "problem-{rank}.pickle"
POLL_SECONDS = 0.1
LAST_WORDS_SECONDS = 5.0
"""How long other workers may go on when one has failed: the first may say why."""


@dataclass(frozen=True)
class Job:
    """What a worker is given."""

    step: Any
    training: Any
    validation: Any
    config: TrainingConfig | AlphaConfig
    device: str
    show_progress: bool
    log_every: int
    store: RunStore | None


def train_in_processes(
    step: Step,
    training: TrainingData,
    validation: TrainingData,
    config: TrainingConfig | AlphaConfig,
    processes: int,
    *,
    device: torch.device | str = "cpu",
    show_progress: bool = False,
    on_epoch: OnEpoch | None = None,
    on_steps: OnSteps | None = None,
    log_every: int = 20,
    store: RunStore | None = None,
) -> TrainingReport:
    """`train`, by so many processes that share every batch; arguments as of `loop.train`.

    On a CPU the cores are divided among them; with CUDA each has a GPU of its own.

    Raises:
        ConfigError: there are fewer GPUs, or the device cannot be shared.
        TrainingError: as of `train`; or a worker ended without a word.
    """
    device = torch.device(device)
    if device.type == "cuda" and processes > torch.cuda.device_count():
        raise ConfigError(
            f"n_processes {processes} needs as many GPUs, there are {torch.cuda.device_count()}"
        )
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"n_processes is for CPU and CUDA; on {device.type} leave it at 1")
    step.net.to("cpu")
    if tokenizer := getattr(step, "tokenizer", None):
        tokenizer.to("cpu")
    with tempfile.TemporaryDirectory(prefix="kronos-") as name:
        folder = Path(name)
        job = Job(step, training, validation, config, device.type, show_progress, log_every, store)
        joblib.dump(job, folder / JOB)
        workers = _start(folder, processes, device)
        try:
            for kind, number, row in _events(folder, workers):
                call = on_epoch if kind == "epoch" else on_steps
                if call:
                    call(number, row)
        finally:
            _stop(workers)
        _check(folder, workers)
        result = torch.load(folder / RESULT, map_location="cpu", weights_only=True)
    step.net.load_state_dict(result["best"])
    step.net.to(device).eval()
    if tokenizer:
        tokenizer.to(device)
    return TrainingReport(result["history"], result["best_epoch"], result["steps"], result["last"])


def _start(folder: Path, processes: int, device: torch.device) -> list[subprocess.Popen[bytes]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    threads = max(1, torch.get_num_threads() // processes) if device.type == "cpu" else 1
    shared = {
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": str(threads),
        # Classes of the caller's own must be found by the workers too.
        "PYTHONPATH": os.pathsep.join(part for part in sys.path if part),
    }
    if sys.platform == "win32":
        shared["USE_LIBUV"] = "0"  # torch's wheels for Windows have none
    command = [sys.executable, "-m", "kronos_qlib.training.worker", str(folder)]
    return [
        # Nothing is written to the pipe: it ends when this process does, however it does.
        subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            env=os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(processes)
    ]


def _events(
    folder: Path, workers: list[subprocess.Popen[bytes]]
) -> Iterator[tuple[str, int, dict[str, float]]]:
    """What the first worker tells, as it tells it, until all have ended or one has failed."""
    read = 0
    failed_at: float | None = None
    while True:
        codes = [worker.poll() for worker in workers]
        if (folder / EVENTS).exists():
            with (folder / EVENTS).open("rb") as file:
                file.seek(read)
                told = file.read()
            whole = told[: told.rfind(b"\n") + 1]
            read += len(whole)
            for line in whole.splitlines():
                kind, number, row = json.loads(line)
                yield kind, number, row
        if all(code is not None for code in codes):
            return
        if any(code for code in codes):
            failed_at = failed_at or time.monotonic()
            if time.monotonic() - failed_at > LAST_WORDS_SECONDS:
                return
        time.sleep(POLL_SECONDS)


def _stop(workers: list[subprocess.Popen[bytes]]) -> None:
    for worker in workers:
        if worker.poll() is None:
            worker.terminate()
    for worker in workers:
        try:
            worker.wait(LAST_WORDS_SECONDS)
        except subprocess.TimeoutExpired:
            worker.kill()
            worker.wait()
        if worker.stdin:
            worker.stdin.close()


def _check(folder: Path, workers: list[subprocess.Popen[bytes]]) -> None:
    """Raise what the workers met: an error of ours first, since others may follow from it."""
    problems = []
    for rank in range(len(workers)):
        file = folder / PROBLEM.format(rank=rank)
        if file.exists():
            problems.append(pickle.loads(file.read_bytes()))  # our own worker wrote it
    for problem in sorted(problems, key=lambda one: not isinstance(one, KronosError)):
        raise problem
    codes = {rank: worker.returncode for rank, worker in enumerate(workers) if worker.returncode}
    if codes:
        told = ", ".join(f"{rank} with exit code {code}" for rank, code in codes.items())
        raise TrainingError(
            f"training processes ended without a word: {told}; a negative code is a signal, and -9 "
            "most often means that memory ran out"
        )
