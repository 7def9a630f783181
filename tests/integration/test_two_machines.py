"""Training on two machines, one of which is killed in the middle and comes back.

Two network namespaces of this machine, each with its own address, stand for the machines; a cable
is between them. `torchrun --nnodes 2` runs the same workflow file on both.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest
import torch
import yaml

from kronos_qlib.cli.main import main
from kronos_qlib.model.checkpoints.pretrained import fingerprint, sizes_of
from kronos_qlib.model.transformer import Kronos

pytestmark = pytest.mark.integration

PORT = 29411
PATIENCE = 300.0
STEPS, KILLED_AFTER = 40, 8
"""Of the run, and states that are there when the second machine is killed."""


def why_not():
    """Why namespaces cannot be made here; None where they can."""
    if not sys.platform.startswith("linux"):
        return "network namespaces are Linux's"
    if os.getuid() != 0:
        return "network namespaces need root"
    if shutil.which("ip") is None:
        return "there is no `ip`: install iproute2"
    probe = f"kq{os.getpid()}p"
    made = subprocess.run(["ip", "netns", "add", probe], capture_output=True, check=False)
    if made.returncode:
        return f"no network namespace can be made: {made.stderr.decode().strip()}"
    subprocess.run(["ip", "netns", "del", probe], check=True)
    return None


@dataclass
class Machine:
    """A namespace that stands for one."""

    space: str
    address: str
    is_first: bool
    running: list[subprocess.Popen] = field(default_factory=list)

    def start(self, command, first, log):
        """Torchrun's part of this machine; both meet at the first one's address."""
        meet = f"is_host={int(self.is_first)},keep_alive_interval=1,keep_alive_max_attempt=3"
        launch = [
            "ip", "netns", "exec", self.space,
            sys.executable, "-m", "torch.distributed.run",
            "--nnodes", "2", "--nproc-per-node", "1", "--max-restarts", "3",
            "--rdzv-backend", "c10d", "--rdzv-id", "two-machines",
            "--rdzv-endpoint", f"{first.address}:{PORT}", "--rdzv-conf", meet,
            "--local-addr", self.address,
            *command,
        ]  # fmt: skip
        how = {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": self.space}
        # Otherwise the one that stays never says where its store is to one that comes back.
        how["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
        with log.open("ab") as stream:
            process = subprocess.Popen(launch, env=os.environ | how, stdout=stream, stderr=stream)
        self.running.append(process)
        return process

    def kill(self):
        """SIGKILL to all that runs there, launcher and worker."""
        found = subprocess.run(
            ["ip", "netns", "pids", self.space], capture_output=True, text=True, check=False
        )
        for process in found.stdout.split():
            try:
                os.kill(int(process), signal.SIGKILL)
            except ProcessLookupError:
                continue
        for launched in self.running:
            launched.wait()


@contextmanager
def two_machines():
    """All that runs on them ends with the block."""
    mark = f"kq{os.getpid()}"
    machines = (
        Machine(f"{mark}a", "10.77.0.1", is_first=True),
        Machine(f"{mark}b", "10.77.0.2", is_first=False),
    )

    def ip(*words):
        subprocess.run(["ip", *words], check=True, capture_output=True)

    try:
        for machine in machines:
            ip("netns", "add", machine.space)
        first, second = machines
        ip("link", "add", first.space, "type", "veth", "peer", "name", second.space)
        for machine in machines:
            ip("link", "set", machine.space, "netns", machine.space)
            ip("-n", machine.space, "addr", "add", f"{machine.address}/24", "dev", machine.space)
            for device in (machine.space, "lo"):
                ip("-n", machine.space, "link", "set", device, "up")
        yield machines
    finally:
        for machine in machines:
            machine.kill()
            command = ["ip", "netns", "del", machine.space]
            subprocess.run(command, check=False, capture_output=True)


def wait_for(what, is_there, processes, log):
    until = time.monotonic() + PATIENCE
    while not is_there():
        ended = [process.returncode for process in processes if process.poll()]
        if ended or time.monotonic() > until:
            pytest.fail(f"{what} did not come, exit codes {ended}: {log.read_text()[-3000:]}")
        time.sleep(0.02)


def written(folder, file, **model):
    """A small new predictor on the bundled tokenizer, without dropout; a state every step."""
    sizes = {**sizes_of("nano", "predictor"), "d_model": 16, "n_heads": 2, "n_layers": 1}
    sizes |= {"ff_dim": 16, **{name: 0.0 for name in sizes if name.endswith("_p")}}
    (folder / "sizes" / "predictor").mkdir(parents=True)
    (folder / "sizes" / "predictor" / "config.json").write_text(json.dumps(sizes))
    stage = {"epochs": 2, "windows_per_epoch": 8 * STEPS // 2, "validation_windows": 32}
    settings = {
        "checkpoint": str(folder / "sizes"),
        "tokenizer": "nano",
        "from_scratch": True,
        "max_context": 30,
        "device": "cpu",
        "show_progress": False,
        "training": {"predictor": {**stage, "batch_size": 8, "learning_rate": 1e-3}},
        "resume_folder": str(folder / "states"),
        "resume_every": 1,
        **model,
    }
    dataset = {
        "from_file": str(file),
        "segments": {"train": 0.7, "valid": 0.2, "test": 0.1},
        "lookback": 20,
        "horizon": 3,
        "beyond_calendar": "weekdays",
    }
    task = {"model": {"class": "KronosModel", "kwargs": settings}, "dataset": dataset}
    path = folder / "my.yaml"
    path.write_text(yaml.safe_dump({"task": task}, sort_keys=False))
    return path


def test_a_machine_that_is_killed_comes_back_and_the_run_ends_with_its_bits(bars, tmp_path):
    """Its launcher and its worker are killed; the other machine's launcher waits for it, and both
    go on from the last state."""
    if reason := why_not():
        pytest.skip(reason)
    file, log = tmp_path / "bars.parquet", tmp_path / "log.txt"
    bars.to_parquet(file)
    out, states = tmp_path / "out", tmp_path / "two" / "states"
    workflow = written(tmp_path / "two", file)
    command = ["-m", "kronos_qlib.cli", "finetune", str(workflow), "--out", str(out)]

    def newest():
        return max((int(path.stem) for path in states.glob("*/[0-9]*.state")), default=0)

    with two_machines() as (first, second):
        running = [machine.start(command, first, log) for machine in (first, second)]
        wait_for("a state", lambda: newest() >= KILLED_AFTER, running, log)
        second.kill()
        assert newest() < STEPS and not out.exists(), "it is killed in the middle"
        running[1] = second.start(command, first, log)
        wait_for("the end", lambda: None not in [one.poll() for one in running], running, log)
        assert [one.returncode for one in running] == [0, 0]
    assert "going on after epoch" in log.read_text()

    threads = torch.get_num_threads()
    torch.set_num_threads(2)  # one of each process
    try:
        alone = written(tmp_path / "one", file, n_processes=2)
        assert main(["finetune", str(alone), "--out", str(tmp_path / "alone")]) == 0
    finally:
        torch.set_num_threads(threads)
    found, expected = (
        fingerprint(Kronos.from_pretrained(folder / "last")) for folder in (out, tmp_path / "alone")
    )
    assert found == expected
