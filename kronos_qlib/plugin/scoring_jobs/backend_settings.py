"""Where scoring is done: in this process, or by workers of Ray."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

from kronos_qlib.errors import ConfigError, short_repr
from kronos_qlib.settings import check_known, check_number, check_whole, from_mapping, require

if TYPE_CHECKING:
    from kronos_qlib.pipeline.block_jobs.run_blocks import Backend

OF_RAY = ("address", "workers", "cpus_per_worker", "gpus_per_worker")
"""Settings that another backend has not."""


@runtime_checkable
class Holding(Protocol):
    """A backend that begins something which several jobs may share."""

    def held(self) -> AbstractContextManager[None]:
        """Within, it is there."""


@dataclass(frozen=True, kw_only=True)
class BackendConfig:
    """How the blocks of a scoring are done."""

    name: Literal["local", "ray"] = "local"
    """"local": one after another in this process; "ray": by actors, which needs the extra "ray"."""
    address: str | None = None
    """Of a Ray cluster, as `ray.init` takes it; None: this process' own, or one begun here."""
    workers: int | None = None
    """Actors; None: as many as the cluster's CPUs, or GPUs, allow."""
    cpus_per_worker: int = 1
    """CPUs of each worker, and its threads."""
    gpus_per_worker: float = 0.0
    """GPUs of each worker; 0.5 puts two on one."""
    moments: int | None = None
    """Days, or times of bars of minutes, in a block; None: 5, or 4 times as many as smoothed scores
    reach back, where that is more."""
    folder: str | None = None
    """Where results of blocks are kept, each job's in a folder of its own, so that a scoring which
    was stopped goes on; on a cluster one that all machines have. None keeps nothing."""

    def __post_init__(self) -> None:
        check_known(self, name=("local", "ray"))
        if self.moments is not None:
            check_whole(self, "moments")
        check_number(self, "gpus_per_worker")
        for name in ("address", "folder"):
            value = getattr(self, name)
            is_text = value is None or (isinstance(value, str) and bool(value))
            require(is_text, f"{name} is a text, got {short_repr(value)}")
        if self.name == "local":
            given = [name for name in OF_RAY if getattr(self, name) != getattr(BackendConfig, name)]
            if given:
                raise ConfigError(f"the backend local has no {', '.join(given)}; ray has")
            if self.moments is not None and self.folder is None:
                raise ConfigError(
                    "moments of the backend local say how many days a file in folder has, and "
                    "folder is not given: name one, or leave moments out"
                )
        elif self.address is not None and self.folder is None:
            raise ConfigError(
                "a cluster's workers write into a folder that all of its machines have: name it "
                "(folder)"
            )
        else:
            self.make()

    @classmethod
    def of(cls, value: str | Mapping[str, Any] | None) -> BackendConfig | None:
        """From a workflow's setting `backend`: a name, or a mapping; None where there is none.

        Raises:
            ConfigError: names what is wrong.
        """
        if value is None:
            return None
        settings = {"name": value} if isinstance(value, str) else value
        return from_mapping(cls, settings, where="backend")

    def make(self) -> Backend:
        """The backend.

        Raises:
            ConfigError: a number cannot be.
        """
        if self.name == "local":
            from kronos_qlib.pipeline.block_jobs.run_blocks import OneProcess

            return OneProcess()
        from kronos_qlib.pipeline.block_jobs.ray_backend import RayBackend

        return RayBackend(
            address=self.address,
            workers=self.workers,
            cpus_per_worker=self.cpus_per_worker,
            gpus_per_worker=self.gpus_per_worker,
        )

    def held(self) -> AbstractContextManager[None]:
        """Within, the workers' Ray stays as it is for several jobs, one after another.

        Raises:
            JobError: Ray cannot be started or reached.
        """
        made = self.make()
        return made.held() if isinstance(made, Holding) else nullcontext()

    def check_packages(self) -> None:
        """
        Raises:
            MissingDependencyError: the extra is not installed.
        """
        if self.name == "ray":
            from kronos_qlib.extras import check_extra

            check_extra("ray", for_="the backend ray")
