"""Training in several processes of this machine, started from within one: a notebook, or `qrun`.

`torch.multiprocessing` starts them and ends them all when one fails or this process ends. As with
Python's own `multiprocessing`, a script's entry must be under `if __name__ == "__main__"`.
"""

from __future__ import annotations

import copy
import io
import logging
import math
import os
import signal
import socket
import sys
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection, wait
from traceback import format_exc
from typing import Any

import torch
import torch.multiprocessing as mp

from kronos_qlib import errors
from kronos_qlib.errors import ConfigError, TrainingError
from kronos_qlib.training.loop import OnEpoch, OnSteps, TrainingReport, train
from kronos_qlib.training.losses import Step, TrainingData
from kronos_qlib.training.stage_settings import AlphaConfig, TrainingConfig

POLL_SECONDS = 0.2
LAST_WORDS_SECONDS = 5.0
"""How long other processes may go on when one has failed, to report why."""


def train_in_processes(
    step: Step,
    training: TrainingData,
    validation: TrainingData,
    config: TrainingConfig | AlphaConfig,
    processes: int,
    *,
    device: torch.device | str = "cpu",
    on_epoch: OnEpoch | None = None,
    on_steps: OnSteps | None = None,
    **settings: Any,
) -> TrainingReport:
    """`train`, by several processes that share every batch; arguments as of `loop.train`.

    On a CPU the threads are divided among them; with CUDA each has a GPU of its own. Each has a
    copy of the windows' table.

    Raises:
        ConfigError: there are fewer GPUs, or the device cannot be shared.
        TrainingError: as of `train`; or a process was killed (names rank and signal).
    """
    device = torch.device(device)
    if device.type == "cuda" and processes > torch.cuda.device_count():
        raise ConfigError(
            f"n_processes {processes} needs as many GPUs, there are {torch.cuda.device_count()}"
        )
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"n_processes is for CPU and CUDA; on {device.type} leave it at 1")
    tokenizer = getattr(step, "tokenizer", None)
    for part in filter(None, (step.net, tokenizer)):
        part.to("cpu")
    threads = max(1, torch.get_num_threads() // processes)
    job = (step, training, validation, config, {"device": device.type, **settings})
    pipes = [mp.get_context("spawn").Pipe(duplex=False) for _ in range(processes)]
    senders = [sender for _, sender in pipes]
    context = mp.start_processes(  # type: ignore[attr-defined,no-untyped-call]
        _work, (_environment(processes), senders, threads, job), processes, join=False
    )
    for sender in senders:
        sender.close()  # each process has its own: a pipe ends with it
    try:
        result = _received([pipe for pipe, _ in pipes], context.processes, on_epoch, on_steps)
    finally:
        for process in context.processes:
            if process.is_alive():
                process.terminate()
            process.join()
    step.net.load_state_dict(result["best"])
    step.net.to(device).eval()
    if tokenizer is not None:
        tokenizer.to(device)
    return TrainingReport(result["history"], result["best_epoch"], result["steps"], result["last"])


def _environment(processes: int) -> dict[str, str]:
    """Variables that a launcher sets for each process, but for its rank."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    # torch's wheels for Windows have no libuv.
    return shared | ({"USE_LIBUV": "0"} if sys.platform == "win32" else {})


def _work(
    rank: int,
    environment: dict[str, str],
    senders: Sequence[Connection],
    threads: int,
    job: tuple[Any, Any, Any, Any, dict[str, Any]],
) -> None:
    """A process' part of a job; it sends its results to the process that started it."""
    for number, sender in enumerate(senders):
        if number != rank:
            sender.close()
    send = senders[rank].send
    os.environ.update(environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)})
    torch.set_num_threads(threads)
    logging.basicConfig(level=logging.INFO if rank == 0 else logging.ERROR)
    shared, training, validation, config, settings = job
    step = copy.deepcopy(shared)  # the tensors of an argument lie in memory that all have
    if tokenizer := getattr(step, "tokenizer", None):
        on_gpu = settings["device"] == "cuda"
        tokenizer.to(torch.device("cuda", rank) if on_gpu else "cpu")
    try:
        report = train(
            step,
            training,
            validation,
            config,
            on_epoch=lambda number, row: send(("epoch", number, row)),
            on_steps=lambda number, row: send(("steps", number, row)),
            **settings,
        )
    except Exception as problem:
        is_ours = isinstance(problem, errors.KronosError)
        send(("problem", type(problem).__name__, str(problem) if is_ours else format_exc()))
        raise
    if rank == 0:
        weights = io.BytesIO()
        best = {name: value.cpu() for name, value in step.net.state_dict().items()}
        torch.save({"best": best, "last": report.last}, weights)
        send(("weights", 0, weights.getvalue()))
        found = {"history": report.history, "best_epoch": report.best_epoch}
        send(("report", 0, found | {"steps": report.steps}))


def _received(
    receivers: list[Connection],
    processes: Sequence[Any],
    on_epoch: OnEpoch | None,
    on_steps: OnSteps | None,
) -> dict[str, Any]:
    """The processes' results, until all have ended, or one has failed and the others hang.

    Raises:
        KronosError: the first error of theirs; or names the process that was killed.
        RuntimeError: another error, with its traceback.
    """
    result: dict[str, Any] = {}
    problems: dict[int, Exception] = {}
    ranks: dict[Any, int] = {receiver: rank for rank, receiver in enumerate(receivers)}
    failed_at = math.inf
    while ranks and time.monotonic() < failed_at + LAST_WORDS_SECONDS:
        ready: list[Any] = wait(list(ranks), POLL_SECONDS)
        for receiver in ready:
            try:
                kind, what, found = receiver.recv()
            except (EOFError, OSError):  # it has ended
                processes[ranks.pop(receiver)].join(LAST_WORDS_SECONDS)
                continue
            if kind == "problem":
                problems[ranks[receiver]] = _error(what, found)
            elif kind == "weights":
                result |= torch.load(io.BytesIO(found), map_location="cpu", weights_only=True)
            elif kind == "report":
                result |= found
            elif call := {"epoch": on_epoch, "steps": on_steps}[kind]:
                call(what, found)
        if any(process.exitcode for process in processes):
            failed_at = min(failed_at, time.monotonic())
    _raise_first(problems, processes)
    if "best" not in result or "history" not in result:
        raise TrainingError("a training process ended without a result and without an error")
    return result


def _raise_first(problems: dict[int, Exception], processes: Sequence[Any]) -> None:
    """Raise an error of this package first, then a kill, which causes errors in the others."""
    for problem in problems.values():
        if isinstance(problem, errors.KronosError):
            raise problem
    for rank, process in enumerate(processes):
        if process.exitcode and rank not in problems:
            raise TrainingError(
                f"training ended before its time: process {rank} of {len(processes)} (pid "
                f"{process.pid}) {how_it_ended(process.exitcode)}. With a resume_folder the next "
                "start goes on from the last state"
            )
    for problem in problems.values():
        raise problem


def how_it_ended(code: int) -> str:
    """The meaning of an exit code, for a process that sent no error.

    >>> how_it_ended(3)
    'ended with exit code 3; what it wrote to stderr says why'
    """
    if code > 0:
        return f"ended with exit code {code}; what it wrote to stderr says why"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    memory = (
        " (by hand, or by a system whose memory ran out: a smaller batch_size or fewer n_processes "
        "need less)"
    )
    return f"was killed by {name}{memory if name == 'SIGKILL' else ''}"


def _error(kind: str, text: str) -> Exception:
    known = getattr(errors, kind, None)
    if isinstance(known, type) and issubclass(known, errors.KronosError):
        return known(text)
    return RuntimeError(f"{kind} in a training process:\n{text}")
