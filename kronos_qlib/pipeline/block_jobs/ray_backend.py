"""A job's blocks on Ray: Ray Data maps them over a pool of actors.

A block is a name and a span, so the driver and Ray's object store hold no bars: each actor opens
the data itself, and writes its results itself. No task of Ray reads anything, so a pool may take
every CPU that there is. The model is put into the object store once, and each actor takes it from
there once.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import sys
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from kronos_qlib.errors import ConfigError, JobError
from kronos_qlib.extras import require
from kronos_qlib.markup import cause_of
from kronos_qlib.pipeline.block_jobs.job_folder import Block, Outcome, PartWriter
from kronos_qlib.pipeline.block_jobs.run_blocks import Work, Worker, this_worker

logger = logging.getLogger(__name__)

STORE_BYTES = 256 * 2**20
"""Of the object store of a Ray that is started here, beside the model: blocks are a line each."""
STARTS = 2
"""Times that a Ray of this machine is started: its processes give each other half a minute."""
FOR = "the backend ray"


@dataclass(frozen=True, kw_only=True)
class RayBackend:
    """Blocks on actors of Ray.

    Args:
        address: of a cluster, as `ray.init` takes it; "auto" for the one that this machine is of.
            None: the Ray that this process has begun already, else one of this machine, which ends
            with the work. Where this process is on a Ray already, it must be that of the address;
            "auto" is whichever it is on.
        workers: actors; None: as many as the cluster's CPUs, or GPUs, allow.
        cpus_per_worker: CPUs of each, and threads of torch and of other libraries in it.
        gpus_per_worker: GPUs of each, as Ray's `num_gpus`: 0.5 puts two on one.

    Raises:
        ConfigError: a number cannot be.
    """

    address: str | None = None
    workers: int | None = None
    cpus_per_worker: int = 1
    gpus_per_worker: float = 0.0

    def __post_init__(self) -> None:
        for name in ("workers", "cpus_per_worker"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < 1):
                raise ConfigError(f"{name} is a whole number of at least 1, got {value!r}")
        if not self.gpus_per_worker >= 0:
            raise ConfigError(f"gpus_per_worker must be 0 or more, got {self.gpus_per_worker}")

    def outcomes(
        self, work: Work, blocks: Sequence[Block], writer: PartWriter
    ) -> Generator[Outcome, None, None]:
        """
        Raises:
            ConfigError: the cluster is too small for one worker; or this process is on another Ray.
            JobError: Ray cannot be started or reached, or fails as a whole.
            MissingDependencyError: the extra "ray" is not installed.
        """
        ray = require("ray", for_=FOR)
        data = require("ray.data", for_=FOR)
        with self._session(ray, len(ray.cloudpickle.dumps(work))):
            workers = self._pool_size(ray, len(blocks))
            context = data.DataContext.get_current()
            context.enable_progress_bars = False  # ours counts what matters
            context.print_on_execution_start = False
            shared = ray.put((work, writer))  # once: all workers take it from there
            items = [{"name": one.name, "asked": json.dumps(dict(one.asked))} for one in blocks]
            rows = data.from_items(items, override_num_blocks=len(items)).map(
                _Actor,
                # In a list, so that Ray hands over the reference and not what it refers to.
                fn_constructor_args=([shared], self.cpus_per_worker),
                # One block in the hand of each, none waiting: the last ones are shared out evenly.
                compute=data.ActorPoolStrategy(size=workers, max_tasks_in_flight_per_actor=1),
                num_cpus=self.cpus_per_worker,
                num_gpus=self.gpus_per_worker or None,
                runtime_env={"env_vars": thread_variables(self.cpus_per_worker)},
            )
            try:
                for row in rows.iter_rows():
                    yield Outcome(**row)
            except ray.exceptions.RayError as problem:
                raise JobError(
                    f"Ray gave up: {type(problem).__name__}: {cause_of(problem)}. What is done is "
                    "kept; start again to go on"
                ) from problem

    def held(self) -> AbstractContextManager[None]:
        """Within, Ray stays for several jobs, one after another.

        Raises:
            ConfigError, JobError, MissingDependencyError: as of `outcomes`.
        """
        return self._session(require("ray", for_=FOR), STORE_BYTES)

    @contextmanager
    def _session(self, ray: Any, nbytes: int) -> Iterator[None]:
        """Ray is there within; what was begun for it ends with it."""
        if ray.is_initialized():
            _check_address(ray, self.address)
            yield
            return
        _start(ray, self.address, nbytes)
        _joined.append(self.address)
        try:
            yield
        finally:
            _joined.remove(self.address)
            ray.shutdown()

    def _pool_size(self, ray: Any, blocks: int) -> int:
        there: Mapping[str, float] = ray.cluster_resources()
        room = int(there.get("CPU", 0) // self.cpus_per_worker)
        if self.gpus_per_worker:
            room = min(room, int(there.get("GPU", 0) / self.gpus_per_worker))
        asked = self.workers or room
        if not room or asked > room:
            raise ConfigError(
                f"Ray has {there.get('CPU', 0):g} CPUs and {there.get('GPU', 0):g} GPUs, which is "
                f"room for {room} workers of {self.cpus_per_worker} CPUs and "
                f"{self.gpus_per_worker:g} GPUs, and {self.workers or 'one or more'} are asked "
                "for: ask for fewer or smaller ones, or wait until the cluster's nodes are there"
            )
        return max(1, min(asked, blocks))


class _Actor:
    """A worker in an actor: Ray makes one in each of its processes."""

    def __init__(self, shared: Sequence[Any], threads: int) -> None:
        pin_threads(threads)
        self._shared = shared[0]
        self._worker: Worker | None = None

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        if self._worker is None:
            # Not above: what fails there is tried again, over and over, and said in a long story.
            try:
                ray = require("ray", for_=FOR)
                self._worker = Worker(*ray.get(self._shared))
            except Exception as problem:
                why = f"the work cannot be read there: {type(problem).__name__}: {problem}"
                return asdict(Outcome(row["name"], worker=this_worker(), error=why, stops=True))
        return asdict(self._worker.do(Block(row["name"], json.loads(row["asked"]))))


def thread_variables(threads: int) -> dict[str, str]:
    """What libraries read how many threads they may begin from, before they are loaded."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_MAX_THREADS")
    return dict.fromkeys(names, str(threads))


def pin_threads(threads: int) -> None:
    """Of torch in this process, if it is loaded: the variables above came too late for it."""
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(threads)


_joined: list[str | None] = []
"""The address of the Ray that a backend has begun or joined, as it was given."""


def _check_address(ray: Any, address: str | None) -> None:
    """Refuse an address that is not that of the Ray which this process is on.

    Raises:
        ConfigError: says which it is on.
    """
    if address in (None, "auto", *_joined):
        return
    try:
        here = str(ray.get_runtime_context().gcs_address)
    except Exception as problem:  # of a client, which has none
        here = f"another one ({type(problem).__name__})"
    assert address is not None
    if not _is_same_address(address, here, str(ray.util.get_node_ip_address())):
        raise ConfigError(
            f"address {address} is asked for, and this process is on a Ray at {here}: leave "
            "address out to use that one, or call ray.shutdown() before"
        )


def _is_same_address(one: str, other: str, own: str) -> bool:
    """Whether two texts HOST:PORT are of one machine's port, by whichever names.

    Args:
        own: this machine's address to others, which its own names may not lead to.
    """
    (host, _, port), (other_host, _, other_port) = one.rpartition(":"), other.rpartition(":")
    if not host or port != other_port:
        return False
    return bool(_addresses_of(host, own) & _addresses_of(other_host, own))


def _addresses_of(host: str, own: str) -> set[str]:
    try:
        found = {str(each[4][0]) for each in socket.getaddrinfo(host.strip("[]"), None)}
    except OSError:
        return {host}
    is_here = any(each.startswith("127.") or each in ("::1", own) for each in found)
    return found | {own} if is_here else found


def _start(ray: Any, address: str | None, nbytes: int) -> None:
    """A Ray of this machine without dashboard or reports to anybody; or join a cluster."""
    if address is not None:
        try:
            ray.init(address=address, log_to_driver=False)
        except Exception as problem:
            raise JobError(
                f"no Ray is reached at {address}: {type(problem).__name__}: {cause_of(problem)}"
            ) from problem
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    for left in reversed(range(STARTS)):
        try:
            ray.init(
                address="local",
                include_dashboard=False,
                log_to_driver=False,
                object_store_memory=STORE_BYTES + 2 * nbytes,
            )
            return
        except Exception as problem:
            ray.shutdown()
            if not left:
                raise JobError(
                    f"Ray does not start on this machine: {type(problem).__name__}: "
                    f"{cause_of(problem)}"
                ) from problem
            logger.warning("Ray did not start, and is started once more: %s", cause_of(problem))
