"""A run's scores, labels and task as Parquet and JSON: what another process may read.

They stand beside Qlib's pickles of the same, and comparisons read them instead. It needs MLflow
and no Qlib.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import logging
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from kronos_qlib.errors import MissingArtifactError, printable, short_repr
from kronos_qlib.markup import cause_of
from kronos_qlib.plugin.pickles.load_pickle import load_pickle

if TYPE_CHECKING:
    from mlflow import MlflowClient

logger = logging.getLogger(__name__)

KEYS = ("datetime", "instrument")
"""Index of every table here."""
BESIDE = b"kronos_qlib.sha256_of_pickle"
"""Where a Parquet file says which pickle it was written beside."""
LARGEST_FILE = 2**31
"""Bytes of an artifact that is read."""
PLAIN_ROWS, ROWS_A_BYTE = 2**22, 4
"""Rows that a Parquet file may have whatever its size, and beyond them per byte: 5,000 names
over 10 years are 12 million, and their scores take 50 MB and more."""
PLAIN_BYTES, UNPACKED = 2**26, 100
"""Bytes that it may unpack to whatever its size, and beyond them as a multiple of its size."""
LARGEST_TASK = 2**24
"""Bytes of settings."""


@dataclass(frozen=True)
class Kept:
    """One thing of a run in its two forms."""

    plain: str
    pickled: str


SCORES = Kept("scores.parquet", "pred.pkl")
LABELS = Kept("labels.parquet", "label.pkl")
TASK = Kept("task.json", "task")


def write_table(table: pd.DataFrame, path: Path, pickled: bytes) -> None:
    """A table on (datetime, instrument) as Parquet, and which pickle it stands beside.

    Args:
        table: its columns are named by texts.
        pickled: the bytes of that pickle. Where they are others when the table is read, something
            (Qlib's online update) has written scores anew, and the table is old.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    flat = table.rename_axis(index=list(KEYS)).rename(columns=str).reset_index()
    found = pa.Table.from_pandas(flat, preserve_index=False)
    digest = hashlib.sha256(pickled).hexdigest().encode()
    # With checksums a byte that a disk or a network changed is no other score.
    pq.write_table(found.replace_schema_metadata({BESIDE: digest}), path, write_page_checksum=True)


def task_json(task: Mapping[str, Any]) -> str:
    """A task as JSON: dates and paths as text, other objects by the name of their class."""
    return json.dumps(_as_json(task), indent=1, allow_nan=True)


def _as_json(value: object) -> object:
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, Mapping):
        return {str(key): _as_json(one) for key, one in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_as_json(one) for one in value]
    if isinstance(value, np.generic):
        return _as_json(value.item())
    if isinstance(value, dt.date | dt.time | dt.timedelta | PurePath):
        return str(value)
    return f"{type(value).__module__}.{type(value).__qualname__}"


def read_table(client: MlflowClient, run_id: str, kept: Kept) -> pd.DataFrame:
    """Scores or labels of a run on (datetime, instrument), from Parquet if it has that.

    Raises:
        MissingArtifactError: there is none, it is damaged, too large, or empty of columns.
        UnsafeArtifactError: there is a pickle alone, and reading it would run code.
    """
    names = artifacts(client, run_id)
    if kept.plain not in names and kept.pickled not in names:
        raise MissingArtifactError(
            f"run {run_id} has no {kept.pickled}, which SignalRecord and KronosSignalRecord leave"
        )
    digest = None
    if kept.plain in names:
        with artifact(client, run_id, kept.plain) as path:
            table, written_beside = _read_parquet(path, f"{kept.plain} of run {run_id}")
        if kept.pickled not in names:
            return table
        with artifact(client, run_id, kept.pickled) as path:
            digest = _digest(path)
        if written_beside == digest:
            return table
        logger.warning(
            "run %s: %s was written anew after %s, and is read instead",
            run_id,
            kept.pickled,
            kept.plain,
        )
    with artifact(client, run_id, kept.pickled) as path:
        return as_table(load_pickle(path, f"{kept.pickled} of run {run_id}"), kept.pickled, run_id)


def as_table(found: object, name: str, run_id: str) -> pd.DataFrame:
    """What a pickle held, if it is a table of scores or labels.

    Raises:
        MissingArtifactError: it is something else.
    """
    table = found.to_frame("score") if isinstance(found, pd.Series) else found
    if not isinstance(table, pd.DataFrame) or not len(table.columns):
        raise MissingArtifactError(
            f"{name} of run {run_id} holds no table of scores but {type(found).__name__}; run its "
            "workflow again"
        )
    if set(table.index.names) != set(KEYS) or table.index.nlevels != len(KEYS):
        raise MissingArtifactError(
            f"{name} of run {run_id} is not on {' and '.join(KEYS)} but on "
            f"{short_repr(list(table.index.names))}; run its workflow again"
        )
    return table.swaplevel() if table.index.names[0] == KEYS[1] else table


def read_task(client: MlflowClient, run_id: str, *, any_class: bool = False) -> dict[str, Any]:
    """The workflow's task as it was kept with the run; {} for a run made otherwise.

    Args:
        any_class: of objects in a pickled task take the class's name; without it they are refused.

    Raises:
        MissingArtifactError: it is damaged or too large.
        UnsafeArtifactError: there is a pickle alone, and it names other than plain values.
    """
    names = artifacts(client, run_id)
    found: object = {}
    if TASK.plain in names:
        found = read_json(client, run_id, TASK.plain)
    elif TASK.pickled in names:
        with artifact(client, run_id, TASK.pickled, LARGEST_TASK) as path:
            found = load_pickle(path, f"{TASK.pickled} of run {run_id}", any_class=any_class)
    return dict(found) if isinstance(found, Mapping) else {}


def read_json(client: MlflowClient, run_id: str, name: str) -> dict[str, Any]:
    """The object in a run's JSON file; {} where it holds something else.

    Raises:
        MissingArtifactError: it is not there, damaged or too large.
    """
    with artifact(client, run_id, name, LARGEST_TASK) as path:
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as problem:
            raise MissingArtifactError(
                f"{name} of run {run_id} is no JSON ({problem}); run its workflow again"
            ) from problem
    return dict(found) if isinstance(found, Mapping) else {}


def artifacts(client: MlflowClient, run_id: str, folder: str | None = None) -> list[str]:
    """Paths of a run's files in a folder, or at its top.

    Raises:
        MissingArtifactError: MLflow cannot list them; a link to nothing is enough for that.
    """
    return list(_sizes(client, run_id, folder))


def _sizes(client: MlflowClient, run_id: str, folder: str | None) -> dict[str, int | None]:
    from mlflow.exceptions import MlflowException

    try:
        return {each.path: each.file_size for each in client.list_artifacts(run_id, folder)}
    except (MlflowException, OSError) as problem:
        raise MissingArtifactError(
            f"the files of run {run_id} cannot be listed: MLflow says {cause_of(problem)}"
        ) from problem


@contextmanager
def artifact(
    client: MlflowClient, run_id: str, name: str, largest: int = LARGEST_FILE
) -> Iterator[Path]:
    """A copy of a run's file, gone afterwards.

    Raises:
        MissingArtifactError: it has more bytes than `largest`, is not there though listed, is a
            link out of the run's folder, a pipe or a device, or MLflow cannot get it.
    """
    from mlflow.exceptions import MlflowException

    folder = name.rpartition("/")[0]
    size = _sizes(client, run_id, folder or None).get(name)
    if size is not None and size > largest:
        raise MissingArtifactError(
            f"{name} of run {run_id} has {size:,} bytes, and {largest:,} are the most that is read"
        )
    with tempfile.TemporaryDirectory() as place:
        try:
            path = Path(client.download_artifacts(run_id, name, place))
        except (MlflowException, OSError) as problem:
            raise MissingArtifactError(
                f"{name} of run {run_id} is listed and cannot be read: MLflow says "
                f"{cause_of(problem)}"
            ) from problem
        if not path.is_file():
            raise MissingArtifactError(f"{name} of run {run_id} is no file")
        yield path


def read_signals(
    client: MlflowClient, run_id: str, name: str, wanted: Sequence[str]
) -> pd.DataFrame:
    """Some columns of a run's Parquet table of signals, those of them that it has.

    Returns:
        On (datetime, instrument); without columns where the run has no such table or none of them.

    Raises:
        MissingArtifactError: it is damaged or too large.
    """
    if name not in artifacts(client, run_id, name.rpartition("/")[0] or None):
        return pd.DataFrame()
    with artifact(client, run_id, name) as path:
        return _read_parquet(path, f"{name} of run {run_id}", wanted)[0]


def _read_parquet(
    path: Path, where: str, asked: Sequence[str] | None = None
) -> tuple[pd.DataFrame, str]:
    """The first column beside the keys, and the digest of the pickle that it was written beside.

    Of several columns, where `asked` names some, those that there are.

    Columns are taken as Arrow has them, and nothing that the file says of pandas is minded.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    time, name = KEYS
    try:
        # As a dictionary a long name costs its bytes once, as a text again in every row.
        with pq.ParquetFile(path, read_dictionary=[name], page_checksum_verification=True) as file:
            _check_size(file.metadata, path.stat().st_size, where)
            kinds = {one.name: one.type for one in file.schema_arrow}
            lacking = [key for key in KEYS if key not in kinds]
            values = [each for each in kinds if each not in KEYS]
            if lacking or not values:
                raise MissingArtifactError(
                    f"{where} has no column {' and '.join(lacking) or 'beside the keys'}; run its "
                    "workflow again"
                )
            text = getattr(kinds[name], "value_type", kinds[name])
            wanted = {
                time: pa.types.is_timestamp(kinds[time]),
                name: pa.types.is_string(text) or pa.types.is_large_string(text),
            }
            for one in values[:1] if asked is None else [one for one in asked if one in values]:
                wanted[one] = pa.types.is_primitive(kinds[one]) and not pa.types.is_temporal(
                    kinds[one]
                )
            for column, is_good in wanted.items():
                if not is_good:
                    raise MissingArtifactError(
                        f"{where} has {kinds[column]!s:.80} in its column {printable(column)}; "
                        f"expected times in {time}, texts in {name} and numbers; run its workflow "
                        "again"
                    )
            found = file.read(columns=list(wanted))
        digest = (found.schema.metadata or {}).get(BESIDE, b"").decode("ascii", "replace")
        flat = found.replace_schema_metadata(None).to_pandas()
        names = flat.pop(name)
        index = pd.MultiIndex.from_arrays([flat.pop(time), names], names=list(KEYS))
        table = flat.set_index(index.set_levels(names.cat.categories, level=name))
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError, MemoryError) as problem:
        raise MissingArtifactError(
            f"{where} cannot be read: it is damaged, or no table with the columns "
            f"{' and '.join(KEYS)} ({cause_of(problem)})"
        ) from problem
    return table, digest


def _check_size(about: Any, size: int, where: str) -> None:
    """Refuse a table that claims more rows or bytes than a file of this size can hold."""
    unpacked = sum(about.row_group(each).total_byte_size for each in range(about.num_row_groups))
    if about.num_rows > max(PLAIN_ROWS, ROWS_A_BYTE * size) or unpacked > max(
        PLAIN_BYTES, UNPACKED * size
    ):
        raise MissingArtifactError(
            f"{where} has {size:,} bytes and says that they are {about.num_rows:,} rows, unpacked "
            f"{unpacked:,} bytes: it is not read"
        )


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        found = hashlib.sha256()
        while part := file.read(2**20):
            found.update(part)
    return found.hexdigest()
