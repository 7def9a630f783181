"""Training in several processes of this machine, begun from within one: a notebook, or `qrun`.

Workers are plain commands, `python -m kronos_qlib.training.worker FOLDER`, so nothing depends on
how the parent was started and no `if __name__ == "__main__"` is asked of anyone. The windows lie in
files that all workers map: there is one copy of them, in the page cache. These files are in a
folder that only this user can read, which goes when training ends, by an error or by SIGTERM too;
after SIGKILL the next training of this user removes it.
"""

from __future__ import annotations

import builtins
import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import joblib
import torch

from kronos_qlib import errors
from kronos_qlib.configs import AlphaConfig, TrainingConfig
from kronos_qlib.errors import ConfigError, KronosError, TrainingError
from kronos_qlib.owners import is_free, lock_of
from kronos_qlib.training.loop import OnEpoch, OnSteps, TrainingReport
from kronos_qlib.training.steps import Step, TrainingData
from kronos_qlib.training.store import RunStore

logger = logging.getLogger(__name__)

JOB, EVENTS, RESULT, PROBLEM = "job.joblib", "events.jsonl", "result.pt", "problem-{rank}.json"
FOLDER, OWNER = "kronos-work-", ".owner"
"""Beginning of a work folder's name, and in it the lock of the process that made it."""
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
        TrainingError: as of `train`; or a worker was killed (says which and by what), or ended
            without an error.
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
    with work_folder() as folder:
        job = Job(step, training, validation, config, device.type, show_progress, log_every, store)
        joblib.dump(job, folder / JOB)
        workers = _start(folder, processes, device)
        try:
            for kind, number, row in _events(folder, workers):
                call = on_epoch if kind == "epoch" else on_steps
                if call:
                    call(number, row)
            codes = [worker.poll() for worker in workers]
        finally:
            _stop(workers)
        _check(folder, workers, codes, resumes=store is not None)
        result = torch.load(folder / RESULT, map_location="cpu", weights_only=True)
    step.net.load_state_dict(result["best"])
    step.net.to(device).eval()
    if tokenizer:
        tokenizer.to(device)
    return TrainingReport(result["history"], result["best_epoch"], result["steps"], result["last"])


@contextmanager
def work_folder() -> Iterator[Path]:
    """A folder of this process in the machine's temporary one, readable by this user alone.

    Those that killed processes left are removed first. Within, a signal that asks this process to
    end (SIGTERM, SIGHUP) is an exit, so that what was begun is ended.
    """
    remove_abandoned()
    with _signals_as_exits():
        folder = Path(tempfile.mkdtemp(prefix=FOLDER))  # mode 0700
        lock = lock_of(folder / OWNER)
        try:
            yield folder
        finally:
            lock.release()
            shutil.rmtree(folder, ignore_errors=True)


def remove_abandoned() -> None:
    """Remove work folders with bars whose process is gone; of a process that lives, none."""
    for folder in Path(tempfile.gettempdir()).glob(f"{FOLDER}*"):
        try:
            mine = not hasattr(os, "getuid") or folder.lstat().st_uid == os.getuid()
        except OSError:
            continue
        # The job is written under the lock: of a folder without one the lock may be just being
        # taken, and to try it would take it from its owner.
        is_begun = folder.is_dir() and not folder.is_symlink() and (folder / JOB).exists()
        if mine and is_begun and is_free(folder / OWNER):
            shutil.rmtree(folder, ignore_errors=True)
            logger.warning("removed %s, which a killed training left", folder)


@contextmanager
def _signals_as_exits() -> Iterator[None]:
    """Within, signals that would end this process without another line of Python raise SystemExit.

    Elsewhere than in the main thread Python takes no signals, and this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before: dict[int, Any] = {}

    def leave(number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_IGN)  # once is enough: ending takes some seconds
        if callable(before[number]):
            before[number](number, frame)
        raise SystemExit(128 + number)

    try:
        for name in ("SIGTERM", "SIGHUP", "SIGBREAK"):
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) not in (signal.SIG_IGN, None):
                before[number] = signal.signal(number, leave)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


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


def write_problem(folder: Path, rank: int, problem: BaseException) -> None:
    """Leave for the parent what a worker met."""
    found = {"kind": type(problem).__name__, "text": str(problem)}
    (folder / PROBLEM.format(rank=rank)).write_text(json.dumps(found), encoding="utf-8")


def _read_problem(file: Path) -> Exception:
    """The same as an error: of our kinds and Python's own; of others the text."""
    try:
        left = json.loads(file.read_text(encoding="utf-8"))
        kind, text = str(left["kind"]), str(left["text"])
    except (OSError, ValueError, KeyError, TypeError) as cut_short:  # by a full disk
        return TrainingError(f"a training process failed, and its error was lost: {cut_short}")
    found = getattr(errors, kind, None) or getattr(builtins, kind, None)
    if isinstance(found, type) and issubclass(found, Exception):
        with suppress(TypeError):  # some take more than a text
            return found(text)
    return RuntimeError(f"{kind}: {text}")


def _check(
    folder: Path,
    workers: Sequence[subprocess.Popen[bytes]],
    codes: Sequence[int | None],
    *,
    resumes: bool,
) -> None:
    """Raise what the workers met: an error of ours first, then a kill, since others follow from it.

    Args:
        codes: exit codes before any worker was stopped from here; None of one that still ran.
    """
    problems: list[Exception] = []
    silent = {}
    for rank, code in enumerate(codes):
        file = folder / PROBLEM.format(rank=rank)
        if file.exists():
            problems.append(_read_problem(file))
        elif code:
            silent[rank] = code
    for problem in problems:
        if isinstance(problem, KronosError):
            raise problem
    if silent:
        ends = "; ".join(
            f"process {rank} of {len(workers)} (pid {workers[rank].pid}) {how_it_ended(code)}"
            for rank, code in silent.items()
        )
        again = " Start it again: it goes on from its last state." if resumes else ""
        raise TrainingError(f"training ended before its time: {ends}.{again}")
    for problem in problems:
        raise problem
    if not (folder / RESULT).exists():
        raise TrainingError("training processes ended without a result and without an error")


def how_it_ended(code: int) -> str:
    """What an exit code says of a process that left no error.

    >>> how_it_ended(3)
    'ended with exit code 3 and without an error'
    """
    if code > 0xFFFF:  # on Windows what killed a process is a large number
        return f"was killed, exit code {code:#x}"
    if code > 0:
        return f"ended with exit code {code} and without an error"
    try:
        name = f"signal {-code}, {signal.Signals(-code).name}"
    except ValueError:
        name = f"signal {-code}"
    memory = (
        " (by hand, or by the system because memory ran out: the kernel's log, dmesg, says which; "
        "a smaller batch_size or fewer n_processes need less)"
    )
    return f"was killed by {name}{memory if -code == getattr(signal, 'SIGKILL', 9) else ''}"
