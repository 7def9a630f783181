"""What a worker does with a block of days: scores, signals, contexts or paths, as a table.

A block is a span of the calendar, with all names of the universe: a batch is made of one day's
windows, by whose number a matrix product rounds, and heads, blends and market states compare the
names of a day. So a block has the bits that the day would have anywhere else.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import pandas as pd
from qlib.config import C

from kronos_qlib.errors import ConfigError, NothingToScoreError
from kronos_qlib.pipeline.block_jobs.job_folder import Block, read_parts
from kronos_qlib.plugin.baselines import GRUModel
from kronos_qlib.plugin.dataset import KronosDataset, KronosHandler
from kronos_qlib.plugin.model import KronosModel
from kronos_qlib.plugin.scoring_jobs.job_inputs import check_inputs
from kronos_qlib.plugin.scoring_jobs.shipped_model import ShippedModel

if TYPE_CHECKING:
    import numpy.typing as npt
    import pyarrow as pa

    from kronos_qlib.data.windows.window import Windows
    from kronos_qlib.pipeline.block_jobs.run_blocks import Compute

What = Literal["scores", "signals", "contexts", "paths"]
WHAT: tuple[What, ...] = get_args(What)
INDEX = ("datetime", "instrument")
USUAL_MOMENTS, HISTORIES = 5, 4
"""Moments of a block: so many, or as many times what smoothed scores reach back."""
SHAPE = b"shape"
"""Key of a part's metadata: the shape of a window's array."""


@dataclass(frozen=True)
class ScoringWork:
    """What a worker opens: a model, a data set and where its bars are. Bars are not in it."""

    model: ShippedModel
    dataset: Any
    """A data set, whose pickle has no bars, or its config."""
    qlib: Mapping[str, Any]
    """What `qlib.init` takes."""
    what: What
    threads: int
    """That batches are planned for."""
    end: pd.Timestamp
    """Of the job's last day."""
    inputs: Mapping[str, str] | None = None
    """What `inputs_of` said where the job was begun; None compares nothing."""

    def open(self) -> Compute:
        """
        Raises:
            ConfigError: the folder of bars is not on this machine, or the model would read
                something else of it than where the job was begun.
        """
        import qlib
        from qlib.utils import init_instance_by_config

        from kronos_qlib.plugin.provider.faults import check_folder
        from kronos_qlib.plugin.runs.quiet import quiet_imports, quiet_libraries

        if not is_open(self.qlib):  # in a run's own process its recorder stays as it is
            quiet_libraries()
            for folder in set(self.qlib["provider_uri"].values()):
                check_folder(Path(folder))
            qlib.init(**self.qlib, skip_if_reg=False, logging_level="WARNING")
        with quiet_imports():
            dataset = self.dataset
            if isinstance(dataset, Mapping):
                dataset = init_instance_by_config(dict(dataset))
            model = self.model.open()
            _fill_handler(model, dataset)
            scored = BlockScoring(model, dataset, self.what)
            if self.inputs is not None:
                check_inputs(self.inputs, model, scored.dataset, self.end)
        return OpenedScoring(scored, self.threads, devices_of(model))


@dataclass(frozen=True)
class OpenedScoring:
    """A worker's `Compute`."""

    scored: BlockScoring
    threads: int
    device: str
    """See `devices_of`."""

    def __call__(self, block: Block) -> pa.Table | None:
        from kronos_qlib.inference.batching import planned_for

        with planned_for(self.threads):
            return self.scored.table(
                pd.Timestamp(block.asked["first"]), pd.Timestamp(block.asked["last"])
            )


def devices_of(model: Any) -> str:
    """Kinds of devices that a model's networks are on in this process; "" where it has none.

    Beside int8 stands what a CPU computes the rest in, which others compute otherwise.
    """
    import torch

    from kronos_qlib.inference.devices import pick_device
    from kronos_qlib.plugin.scoring_jobs.shipped_model import leaves

    found = set()
    for one in leaves(model):
        if isinstance(one, KronosModel):
            predictor = one.predictor
            narrow = predictor.dtype == torch.int8
            found.add(predictor.computed_in if narrow else predictor.device.type)
        elif isinstance(one, GRUModel):
            found.add(pick_device(one.device).type)
    return ", ".join(sorted(found))


def qlib_settings() -> dict[str, Any]:
    """What `qlib.init` was given here of the bars, for other processes: whole paths."""
    uris: Mapping[str, Any] = C.provider_uri
    return {
        "provider_uri": {
            str(freq): str(Path(str(uri)).expanduser().absolute()) for freq, uri in uris.items()
        },
        "region": str(C.region),
        "custom_ops": list(C["custom_ops"]),
    }


def is_open(settings: Mapping[str, Any]) -> bool:
    """Whether Qlib is on these bars in this process."""
    return bool(C.registered) and qlib_settings() == settings


class BlockScoring:
    """A model on its data set, a span of days at a time.

    Raises:
        ConfigError: contexts or paths are asked of another model than a KronosModel.
    """

    def __init__(self, model: Any, dataset: Any, what: What) -> None:
        check_what(model, what)
        dataset = copy.copy(dataset)  # whose segments are moved, with the handler that has the bars
        self.model, self.dataset, self.what = model, dataset, what
        members = [*getattr(model, "dataset_configs", {})]
        self._datasets = [dataset, *(model.dataset_of(name, dataset) for name in members)]

    def table(self, first: pd.Timestamp, last: pd.Timestamp) -> pa.Table | None:
        """The result over a span of the calendar; None where nothing can be scored.

        Returns:
            Columns datetime and instrument, by these; then "score" and others, or "context" or
            "paths", a list of float32 of each window, whose shape is in the table's metadata.
        """
        for dataset in self._datasets:
            dataset.segments = {**dataset.segments, "test": (first, last)}
        if self._has_no_row():
            return None
        try:
            if self.what in ("scores", "signals"):
                return self._scores()
            windows = self.dataset.source.windows("test")
            if not len(windows):
                return None
            return self._contexts(windows) if self.what == "contexts" else self._paths(windows)
        except NothingToScoreError:
            return None

    def _has_no_row(self) -> bool:
        """Of a model of tables, which would fail in words of its own."""
        from qlib.data.dataset.handler import DataHandlerLP

        if isinstance(self.dataset, KronosDataset) or hasattr(self.model, "members"):
            return False
        found = self.dataset.prepare("test", col_set="feature", data_key=DataHandlerLP.DK_I)
        return not len(found)

    def _scores(self) -> pa.Table:
        import pyarrow as pa

        from kronos_qlib.plugin.records.signal_record import frame_of, signals_frame

        if self.what == "signals":
            frame = signals_frame(self.model, self.dataset)
        else:
            found = self.model.predict(self.dataset, "test")
            frame = frame_of(found, type(self.model).__name__, "test")[["score"]]
        return pa.Table.from_pandas(frame.reset_index(), preserve_index=False)

    def _contexts(self, windows: Windows) -> pa.Table:
        from kronos_qlib.pipeline.contexts import contexts_of, stored_contexts

        head, folder = self.model.head, self.model.contexts_folder
        pooling = None if head is None else head.reads
        if folder is None:
            contexts = contexts_of(self.model.predictor, windows, pooling=pooling)
        else:
            stored = stored_contexts(self.model.predictor, windows, folder, pooling=pooling)
            contexts = stored[:]
        return _arrays("context", windows, contexts)

    def _paths(self, windows: Windows) -> pa.Table:
        found: npt.NDArray[np.float32] | None = None
        for places, _, paths in self.model.paths_of(self.dataset.source, windows):
            if found is None:
                found = np.empty((len(windows), *paths.shape[1:]), dtype=np.float32)
            found[places] = paths
        assert found is not None
        return _arrays("paths", windows, found)


def _fill_handler(model: Any, dataset: Any) -> None:
    """Read the frames of a handler that came without them, if a head reads columns beside the bars.

    A KronosHandler reads them when they are asked for; Qlib's do when they are made alone.
    """
    from kronos_qlib.pipeline.stages import columns_of
    from kronos_qlib.plugin.scoring_jobs.shipped_model import leaves

    handler = getattr(dataset, "handler", None)
    if handler is None or isinstance(handler, KronosHandler) or hasattr(handler, "_data"):
        return
    heads = [one.head for one in leaves(model) if isinstance(one, KronosModel)]
    if any(head is not None and columns_of(head.names) for head in heads):
        handler.setup_data()


def check_what(model: Any, what: str) -> None:
    """
    Raises:
        ConfigError: there is no such thing, or not of this model.
    """
    if what not in WHAT:
        raise ConfigError(f"what is scored is one of {', '.join(WHAT)}, got {what!r}")
    if what in ("contexts", "paths") and not isinstance(model, KronosModel):
        raise ConfigError(
            f"{what} are a KronosModel's, and this is a {type(model).__name__}: ask for scores or "
            "signals"
        )


def usual_moments(model: Any) -> int:
    """Days of a block, for a model whose smoothed scores need days before them to be scored too."""
    from kronos_qlib.plugin.scoring_jobs.shipped_model import leaves

    back = [one.days_of_history for one in leaves(model) if isinstance(one, KronosModel)]
    return max([USUAL_MOMENTS, *(HISTORIES * days for days in back)])


def blocks_of(moments: npt.NDArray[np.datetime64], each: int) -> list[Block]:
    """Moments (N,) of a calendar in blocks of so many, the last one shorter."""
    found = []
    for start in range(0, len(moments), each):
        own = pd.DatetimeIndex(moments[start : start + each])
        name = f"{start // each:06d}-{own[0]:%Y%m%d-%H%M}"
        found.append(Block(name, {"first": own[0].isoformat(), "last": own[-1].isoformat()}))
    return found


def read_scores(folder: str | Path) -> pd.DataFrame:
    """The scores or signals of a job: on (datetime, instrument), "score" first.

    Raises:
        JobError: no block is done.
    """
    frame: pd.DataFrame = read_parts(folder).to_pandas()
    return frame.set_index([*INDEX]).sort_index()


def read_arrays(folder: str | Path) -> tuple[pd.MultiIndex, npt.NDArray[np.float32]]:
    """The contexts (N, C) or paths (N, P, H, 6) of a job, and the windows (N) that they are of.

    Raises:
        ConfigError: the job is of scores or signals.
        JobError: no block is done.
    """
    table = read_parts(folder)
    shape = (table.schema.metadata or {}).get(SHAPE)
    if shape is None:
        raise ConfigError(f"{folder} holds scores or signals: read_scores reads them")
    own = table.column(len(INDEX)).combine_chunks()
    values = own.flatten().to_numpy(zero_copy_only=False)
    index = pd.MultiIndex.from_frame(table.select([*INDEX]).to_pandas())
    return index, values.reshape(len(index), *map(int, shape.split(b",")))


def _arrays(name: str, windows: Windows, values: npt.NDArray[np.float32]) -> pa.Table:
    import pyarrow as pa

    index: pd.MultiIndex = windows.index
    flat = np.ascontiguousarray(values.reshape(len(values), -1))
    own = pa.FixedSizeListArray.from_arrays(pa.array(flat.reshape(-1)), flat.shape[1])
    frame = index.to_frame(index=False)
    columns = {label: pa.array(frame[label]) for label in INDEX}
    shape: Sequence[int] = values.shape[1:]
    return pa.table({**columns, name: own}).replace_schema_metadata(
        {SHAPE: ",".join(map(str, shape)).encode()}
    )
