"""Training on two machines, one of which is killed in the middle and comes back.

Two network namespaces of this machine, each with its own address, stand for the machines; between
them is a cable (veth). `torchrun --nnodes 2` runs the same workflow file on both. The second one is
killed (SIGKILL to launcher and worker) once a state beyond `--kill-after` steps is written, and is
started again: torchrun puts both together anew, and the run goes on from its last state. Its
weights are compared with those of a run that nobody disturbed.

    python benchmarks/two_hosts.py

Needs Linux, root and `ip` of iproute2.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

PORT = 29411
PATIENCE = 600.0
"""Seconds after which a step that has not come is an error."""


def why_not() -> str | None:
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
class Host:
    """A namespace that stands for a machine."""

    space: str
    address: str
    device: str
    is_first: bool
    running: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start(self, command: list[str], first: Host, log: Path) -> subprocess.Popen[bytes]:
        """Run torchrun's part of this machine; both meet at the first one's address."""
        launch = [
            "ip", "netns", "exec", self.space,
            sys.executable, "-m", "torch.distributed.run",
            "--nnodes", "2", "--nproc-per-node", "1", "--max-restarts", "3",
            "--rdzv-backend", "c10d", "--rdzv-id", "two-hosts",
            "--rdzv-endpoint", f"{first.address}:{PORT}",
            "--rdzv-conf", f"is_host={int(self.is_first)}",
            "--local-addr", self.address,
            *command,
        ]  # fmt: skip
        environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": self.device}
        with log.open("ab") as stream:
            # A session of its own: a kill of its group is a kill of the machine.
            process = subprocess.Popen(
                launch,
                env=environment,
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.running.append(process)
        return process

    def kill(self) -> None:
        """SIGKILL to all that runs in the namespace."""
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
def two_hosts() -> Iterator[tuple[Host, Host]]:
    """Two namespaces with a cable between them; all that runs in them ends with the block."""
    mark = f"kq{os.getpid()}"
    hosts = (
        Host(f"{mark}a", "10.77.0.1", f"{mark}a", is_first=True),
        Host(f"{mark}b", "10.77.0.2", f"{mark}b", is_first=False),
    )

    def ip(*words: str) -> None:
        subprocess.run(["ip", *words], check=True, capture_output=True)

    try:
        for host in hosts:
            ip("netns", "add", host.space)
        first, second = hosts
        ip("link", "add", first.device, "type", "veth", "peer", "name", second.device)
        for host in hosts:
            ip("link", "set", host.device, "netns", host.space)
            ip("-n", host.space, "addr", "add", f"{host.address}/24", "dev", host.device)
            for device in (host.device, "lo"):
                ip("-n", host.space, "link", "set", device, "up")
        yield hosts
    finally:
        for host in hosts:
            host.kill()
            subprocess.run(["ip", "netns", "del", host.space], check=False, capture_output=True)


def newest_step(states: Path) -> int:
    """Steps of the newest state; 0 where there is none."""
    return max((int(path.stem) for path in states.glob("*/[0-9]*.state")), default=0)


def wait_for(what: str, is_there: Any, processes: list[subprocess.Popen[bytes]]) -> None:
    """Wait until something holds.

    Raises:
        RuntimeError: a process ended with an error before, or it took too long.
    """
    until = time.monotonic() + PATIENCE
    while not is_there():
        for process in processes:
            if process.poll():
                raise RuntimeError(f"a launcher ended with {process.returncode} before {what}")
        if time.monotonic() > until:
            raise RuntimeError(f"{what} did not come in {PATIENCE:.0f} s")
        time.sleep(0.02)


def train_on_two(
    workflow: Path, out: Path, states: Path, log: Path, kill_after: int | None = None
) -> dict[str, float]:
    """Train a workflow file on both, the second killed after some steps and started again.

    Args:
        states: the folder that the workflow names as `resume_folder`.
        kill_after: None lets both run to the end.

    Returns:
        `killed at`, steps of the newest state when it was killed, and `seconds`.
    """
    command = ["-m", "kronos_qlib.cli", "finetune", str(workflow), "--out", str(out)]
    begun, found = time.monotonic(), {}
    with two_hosts() as (first, second):
        running = [host.start(command, first, log) for host in (first, second)]
        if kill_after is not None:
            wait_for("a state", lambda: newest_step(states) >= kill_after, running)
            second.kill()
            found["killed at"] = float(newest_step(states))
            if (out / "predictor").exists():
                raise RuntimeError("the run had ended before the kill")
            running[1] = second.start(command, first, log)
        wait_for("the end", lambda: all(one.poll() is not None for one in running), running)
        if any(one.returncode for one in running):
            raise RuntimeError(f"torchrun failed, see {log}")
    return found | {"seconds": time.monotonic() - begun}


def write_workflow(folder: Path, bars: Path, steps: int = 60) -> Path:
    """A small new predictor on the bundled tokenizer, without dropout; states every step."""
    from kronos_qlib.model.checkpoints.pretrained import sizes_of

    sizes = dict(sizes_of("nano", "predictor"))
    sizes |= {name: 0.0 for name in sizes if name.endswith("_p")}
    sizes |= {"d_model": 16, "n_heads": 2, "n_layers": 1, "ff_dim": 16}
    (folder / "sizes" / "predictor").mkdir(parents=True)
    text = json.dumps(sizes)
    (folder / "sizes" / "predictor" / "config.json").write_text(text, encoding="utf-8")
    stage = {"epochs": 2, "windows_per_epoch": 8 * steps // 2, "validation_windows": 32}
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
    }
    dataset = {
        "from_file": str(bars),
        "segments": {"train": 0.7, "valid": 0.2, "test": 0.1},
        "lookback": 20,
        "horizon": 3,
        "beyond_calendar": "weekdays",
    }
    task = {"model": {"class": "KronosModel", "kwargs": settings}, "dataset": dataset}
    path = folder / "two.yaml"
    path.write_text(yaml.safe_dump({"task": task}, sort_keys=False), encoding="utf-8")
    return path


def main() -> None:
    """Two runs, one of them disturbed."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", maxsplit=1)[0])
    parser.add_argument("--kill-after", type=int, default=20, help="steps (%(default)s)")
    parser.add_argument("--steps", type=int, default=200, help="of the run (%(default)s)")
    chosen = parser.parse_args()
    if reason := why_not():
        sys.exit(reason)
    from kronos_qlib.data.files.synthetic import MarketConfig, make_market
    from kronos_qlib.model.checkpoints.pretrained import fingerprint
    from kronos_qlib.model.transformer import Kronos

    with tempfile.TemporaryDirectory() as place:
        bars = Path(place) / "bars.parquet"
        make_market(MarketConfig(instruments=8, sectors=2, years=1.0, seed=3)).bars.to_parquet(bars)
        digests = []
        for name, kill_after in (("left alone", None), ("killed", chosen.kill_after)):
            folder = Path(place) / name
            folder.mkdir()
            workflow = write_workflow(folder, bars, chosen.steps)
            log = folder / "log.txt"
            try:
                told = train_on_two(workflow, folder / "out", folder / "states", log, kill_after)
            except RuntimeError as problem:
                sys.exit(f"{log.read_text(errors='replace')[-3000:]}\n{problem}")
            digests.append(fingerprint(Kronos.from_pretrained(folder / "out" / "last")))
            values = ", ".join(f"{key} {value:.0f}" for key, value in told.items())
            print(f"{name}: {values}, weights {digests[-1]}", flush=True)
        print("the same bits" if digests[0] == digests[1] else "OTHER BITS")
        sys.exit(digests[0] != digests[1])


if __name__ == "__main__":
    main()
