"""A KronosModel's `predict` and `signals`, done by the workers that its setting `backend` names."""

from __future__ import annotations

import contextlib
import hashlib
import json
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from qlib.log import get_module_logger

from kronos_qlib.data.windows.segments import Segment, places_of
from kronos_qlib.data.windows.window_dataset import describe_dropped, no_windows
from kronos_qlib.errors import ConfigError, NothingToScoreError
from kronos_qlib.pipeline.block_jobs.job_folder import JobFolder
from kronos_qlib.pipeline.block_jobs.run_blocks import run_job
from kronos_qlib.plugin.dataset import KronosDataset
from kronos_qlib.plugin.runs.about_run import weights_digest
from kronos_qlib.plugin.scoring_jobs.backend_settings import BackendConfig
from kronos_qlib.plugin.scoring_jobs.block_scoring import (
    ScoringWork,
    What,
    blocks_of,
    qlib_settings,
    read_scores,
    usual_moments,
)
from kronos_qlib.plugin.scoring_jobs.job_inputs import inputs_of
from kronos_qlib.plugin.scoring_jobs.shipped_model import ShippedModel, settings_of_kronos
from kronos_qlib.version import __version__

if TYPE_CHECKING:
    from kronos_qlib.plugin.model import KronosModel

logger = get_module_logger(__name__)

WINDOWED = ("lookback", "horizon", "min_bars", "max_age_days", "beyond_calendar")
"""Settings of a data set that decide its windows."""


def frame_on_backend(
    model: KronosModel, dataset: Any, segment: Segment, what: What
) -> pd.DataFrame:
    """What the model says of a segment, each block of its days by a worker.

    Args:
        what: "scores" or "signals".

    Returns:
        As the model's `signals`; of "scores" the column "score" alone. The same bits as in this
        process, on one kind of CPU.

    Raises:
        ConfigError: the data set is none that workers can open.
        JobError: blocks failed; names them.
        NothingToScoreError: no window ends in the segment.
    """
    how = model.backend
    assert how is not None
    how.check_packages()
    if not isinstance(dataset, KronosDataset):
        raise ConfigError(
            "backend: workers open the bars themselves, from Qlib's folder, and a "
            f"{type(dataset).__name__} has them in this process: give a KronosDataset, or leave "
            "backend out"
        )
    source = dataset.source
    windows = source.windows(segment)
    if not len(windows):
        raise NothingToScoreError(no_windows(source, segment, windows.dropped))
    logger.info(f"{len(windows)} windows to score{describe_dropped(windows.dropped)}")
    if jumps := windows.describe_jumps():
        logger.warning(jumps)
    moments = source.table.calendar[
        slice(*places_of(source.table.calendar, *source.bounds(segment)))
    ]
    each = how.moments or usual_moments(model)
    end = pd.Timestamp(moments[-1])
    inputs = inputs_of(model, dataset, end)
    shipped, threads = ShippedModel.of(model), torch.get_num_threads()
    work = ScoringWork(shipped, dataset, qlib_settings(), what, threads, end, inputs)
    facts = {
        "what": what,
        "weights": weights_digest(model),
        **inputs,
        "from": str(moments[0]),
        "to": str(moments[-1]),
        "moments of a block": str(each),
        **{f"model {name}": text for name, text in settings_of_kronos(model).items()},
        **{f"dataset {name}": str(getattr(dataset, name)) for name in WINDOWED},
    }
    with (
        _folder(how, facts) as folder,
        JobFolder.open(folder, facts, blocks_of(moments, each), work.threads, versions()) as job,
    ):
        result = run_job(
            job,
            replace(work, threads=job.threads),  # as the job was begun
            how.make(),
            show_progress=model.show_progress,
            report=logger.info,
            unit="window",
        )
        result.check(folder if how.folder else "a temporary folder (name one to keep them: folder)")
        frame = read_scores(folder)
    if len(frame) != len(windows):
        raise ConfigError(
            f"the workers scored {len(frame)} windows and {len(windows)} are here: their folder of "
            "bars is another than this machine's"
        )
    return frame


def versions() -> dict[str, str]:
    """What numbers may depend on beside what is asked for."""
    return {"kronos_qlib": __version__, "torch": torch.__version__}


@contextlib.contextmanager
def _folder(how: BackendConfig, facts: Mapping[str, str]) -> Iterator[Path]:
    """Of this job: a folder of its own among those that are kept, or one that goes away."""
    if how.folder is not None:
        digest = hashlib.sha256(json.dumps(dict(facts), sort_keys=True).encode()).hexdigest()
        yield Path(how.folder).expanduser().absolute() / f"scores-{digest[:16]}"
        return
    with tempfile.TemporaryDirectory(prefix="kronos-qlib-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)
