"""A workflow at several settings: one job, whose blocks are runs that land in MLflow.

A run is done as `kronos-qlib run` does it, with its records, and the job keeps which run each
variant became: a second start does those that are missing. Where the model is a KronosModel its
scoring is done by the backend, and the blocks of a run that was stopped are kept.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kronos_qlib.errors import ConfigError
from kronos_qlib.pipeline.block_jobs.job_folder import Block, JobFolder
from kronos_qlib.pipeline.block_jobs.run_blocks import JobResult, OneProcess, run_job
from kronos_qlib.plugin.scoring_jobs.backend_settings import BackendConfig
from kronos_qlib.plugin.scoring_jobs.job_inputs import provider_digest
from kronos_qlib.plugin.task_sections import class_of, mapping_of
from kronos_qlib.plugin.workflows.templates import load_yaml

if TYPE_CHECKING:
    import pyarrow as pa

    from kronos_qlib.pipeline.block_jobs.run_blocks import Compute

KRONOS = "KronosModel"
"""The model whose scoring a backend does."""
BLOCKS = "blocks"
"""Folder within the job's, of the scores of runs under way."""


@dataclass(frozen=True)
class SweepWork:
    """Runs one workflow, a variant a block."""

    workflow: str
    market: str | None
    changes: tuple[str, ...]
    backend: BackendConfig
    report: Callable[[str], None] | None

    def open(self) -> Compute:
        """Nothing is loaded before a run."""
        return self.run

    def run(self, block: Block) -> pa.Table:
        """One run.

        Returns:
            A row: the variant, its experiment and its run.

        Raises:
            As `plan_run` and the run itself.
        """
        import pyarrow as pa

        from kronos_qlib.plugin.workflows.execution import plan_run, run_plan

        own = [*self.changes, *block.asked["changes"]]
        if _model_of(self.workflow, self.market, own) == KRONOS:
            own.append(f"backend={json.dumps(asdict(self.backend))}")
        plan = plan_run(self.workflow, self.market, own)
        run_id = run_plan(plan) or ""
        row = {"variant": block.asked["variant"], "experiment": plan.experiment, "run": run_id}
        if self.report is not None:
            self.report(f"{row['variant']}: experiment {plan.experiment}, run {run_id[:8]}")
        return pa.table({name: [value] for name, value in row.items()})


def _model_of(workflow: str, market: str | None, changes: Sequence[str]) -> str:
    from kronos_qlib.plugin.workflows.workflow_file import read_workflow

    config = read_workflow(workflow, market, changes).config
    return class_of(mapping_of(config.get("task")).get("model"))


def run_sweep(
    workflow: str,
    sweeps: Sequence[str],
    folder: Path,
    *,
    backend: BackendConfig,
    market: str | None = None,
    changes: Sequence[str] = (),
    show_progress: bool = False,
    report: Callable[[str], None] | None = None,
) -> JobResult:
    """Run a workflow at every combination of some settings.

    Args:
        workflow, market, changes: as of `read_workflow`.
        sweeps: "KEY=A,B,C" each, or "KEY=[A, B]" in YAML; keys as those of `changes`.
        folder: of this job alone; `read_parts` reads the table of its runs.
        backend: who scores; its folder is set here.
        show_progress, report: as of `run_job`.

    Raises:
        ConfigError: a sweep names no setting or no value; the folder holds another job, or began
            on other bars; or Ray is to score a model that scores in this process alone.
        JobBusyError, JobError: as of `JobFolder.open` and `run_job`. Runs that failed are in the
            result.
    """
    from kronos_qlib.plugin.workflows.workflow_file import read_workflow

    blocks = variants_of(sweeps)
    # A file that cannot be read is refused before any run.
    first = read_workflow(workflow, market, [*changes, *blocks[0].asked["changes"]])
    text = first.path.read_bytes()
    providers = set()
    for block in blocks:
        own = [*changes, *block.asked["changes"]]
        try:
            config = read_workflow(workflow, market, own).config
        except ConfigError:  # its run says so, and the others are done
            continue
        providers |= _providers_of(mapping_of(config.get("qlib_init")).get("provider_uri"))
        kind = class_of(mapping_of(config.get("task")).get("model"))
        if backend.name != "local" and kind != KRONOS:
            raise ConfigError(
                f"a {kind or 'model without a class'} scores in the process of its run, and "
                f"--backend {backend.name} of a sweep is of a {KRONOS}'s scoring: say --backend "
                f"local ({block.asked['variant']})"
            )
    facts = {
        "workflow": hashlib.sha256(text).hexdigest()[:16],
        "bars": provider_digest(sorted(providers)),
        "market": str(market),
        "changes": "; ".join(changes),
        "sweep": "; ".join(sweeps),
    }
    scores = replace(backend, folder=str(folder.absolute() / BLOCKS))
    work = SweepWork(workflow, market, tuple(changes), scores, report)
    with backend.held(), JobFolder.open(folder, facts, blocks) as job:
        # A run that failed would fail again: what may pass is tried by a later start.
        return run_job(job, work, OneProcess(), show_progress=show_progress, most_attempts=1)


def _providers_of(uri: Any) -> set[str]:
    """Folders of a workflow's `provider_uri`: one, or one for each frequency."""
    found = [*uri.values()] if isinstance(uri, Mapping) else [uri]
    return {str(one) for one in found if one}


def variants_of(sweeps: Sequence[str]) -> list[Block]:
    """Every combination of the values, the last sweep's changing fastest.

    Raises:
        ConfigError: names what is no setting with values.
    """
    axes: list[list[tuple[str, Any]]] = []
    for sweep in sweeps:
        key, sign, text = sweep.partition("=")
        key = key.strip()
        if not sign or not key or not text.strip():
            raise ConfigError(f"--sweep is KEY=VALUE,VALUE such as seed=0,1,2, got {sweep!r}")
        is_list = text.strip().startswith("[")
        values = load_yaml(text if is_list else f"[{text}]", f"--sweep {key}")
        if not isinstance(values, list) or not values:
            raise ConfigError(f"--sweep {key} needs one value or more, got {text!r}")
        axes.append([(key, value) for value in values])
    twice = {axis[0][0] for axis in axes}
    if len(twice) < len(axes):
        raise ConfigError("--sweep names a setting twice")
    found = []
    for number, chosen in enumerate(itertools.product(*axes)):
        variant = ", ".join(f"{key} {_text(value)}" for key, value in chosen)
        name = re.sub(r"[^A-Za-z0-9.=-]+", "_", "_".join(f"{k}={_text(v)}" for k, v in chosen))
        changes = [f"{key}={_text(value)}" for key, value in chosen]
        asked: Mapping[str, Any] = {"variant": variant, "changes": changes}
        found.append(Block(f"{number:04d}_{name[:80]}".replace("=", "-"), asked))
    return found


def _text(value: Any) -> str:
    """A value as YAML reads it back."""
    return value if isinstance(value, str) else json.dumps(value)
