"""One of the processes that `launch.train_in_processes` begins: `python -m … FOLDER`."""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
from pathlib import Path

import joblib
import torch

from kronos_qlib.training.launch import EVENTS, JOB, RESULT, Job, write_problem
from kronos_qlib.training.loop import train
from kronos_qlib.training.team import process_rank


def main(folder: Path) -> int:
    """Do this process' part of a job; what comes of it is left in the folder."""
    threading.Thread(target=end_with_parent, daemon=True).start()
    logging.basicConfig(level=logging.INFO if process_rank() == 0 else logging.ERROR)
    try:
        work(folder)
    except Exception as problem:
        write_problem(folder, process_rank(), problem)
        return 1
    return 0


def end_with_parent() -> None:
    """A parent that is killed tells nobody, and without it nobody would hear of the result."""
    os.read(0, 1)  # not by sys.stdin, whose lock Python wants when it ends
    os._exit(1)


def work(folder: Path) -> None:
    job: Job = joblib.load(folder / JOB, mmap_mode="r")
    device = torch.device(job.device)
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    if tokenizer := getattr(job.step, "tokenizer", None):
        tokenizer.to(device)

    def tell(kind: str, number: int, row: dict[str, float]) -> None:
        with (folder / EVENTS).open("a") as file:
            file.write(json.dumps([kind, number, row]) + "\n")

    report = train(
        job.step,
        job.training,
        job.validation,
        job.config,
        device=device,
        show_progress=job.show_progress,
        on_epoch=lambda number, row: tell("epoch", number, row),
        on_steps=lambda number, row: tell("steps", number, row),
        log_every=job.log_every,
        store=job.store,
    )
    if process_rank() == 0:
        result = {
            "best": {name: value.cpu() for name, value in job.step.net.state_dict().items()},
            "last": report.last,
            "history": report.history,
            "best_epoch": report.best_epoch,
            "steps": report.steps,
        }
        torch.save(result, folder / RESULT)
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
