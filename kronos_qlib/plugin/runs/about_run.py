"""A run's description in MLflow: its name, its verdict, what it was made of, which market.

A list of runs then shows what each was, whether its score is significant, and ten numbers before
the hundred others.
"""

from __future__ import annotations

import hashlib
import logging
import platform
import re
import subprocess
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pandas as pd
from qlib.config import C
from qlib.workflow.recorder import MLflowRecorder, Recorder

from kronos_qlib.data.windows.bar_table import BarTable
from kronos_qlib.errors import KronosError
from kronos_qlib.markup import one_line
from kronos_qlib.plugin.qlib_internals import data_folder, loaded_frame
from kronos_qlib.plugin.records.artifacts import frequency_of, load_task
from kronos_qlib.plugin.task_sections import is_map, label_bars_of, value_at
from kronos_qlib.version import __version__

logger = logging.getLogger(__name__)

NOTE = "mlflow.note.content"
"""Tag that MLflow shows as a run's description."""
UNNAMED = ("", "mlflow_recorder")
"""Default names of a run; the second is Qlib's."""
LONGEST_NAME = 120
"""Letters."""

VERDICTS = {part: f"kronos_qlib.verdict.{part}" for part in ("signal", "money")}
"""Tags that the description is put together from, in this order."""
PACKAGES = ("torch", "pyqlib")
VERSION = "kronos_qlib.version"
GIT = "kronos_qlib.git"
WEIGHTS, BARS = "kronos_qlib.weights", "kronos_qlib.bars"
PROVIDER, UNIVERSE, DAYS = (f"kronos_qlib.{part}" for part in ("provider", "universe", "days"))
"""Tags of a run's market: the folder of its bars, the names it chose from, first and last score."""

KEY_PREFIX = "0_key."
"""Sorts before all other metrics of a run, Qlib's `1day.…` too."""
KEY_METRICS = {
    "rank_ic": "rank_ic.mean",
    "rank_ic_t": "rank_ic.t",
    "rank_ic_neutralised": "rank_ic.neutralised",
    "excess_return": "excess_return",
    "excess_return_t": "excess_return_t",
    "information_ratio": "information_ratio",
    "deflated_sharpe": "deflated_sharpe",
    "annual_return": "annual_return",
    "max_drawdown": "max_drawdown",
    "turnover": "turnover",
}
"""The ten metrics that are logged a second time under KEY_PREFIX, and what each is a copy of."""

GENERIC = {"", "market", "provider", "data", "qlib", "qlib_data", "bars"}
"""Names of folders that do not distinguish markets: the folder above them does."""


def key_metrics(metrics: Mapping[str, float]) -> dict[str, float]:
    """Those of KEY_METRICS that are among some metrics and known, under names that come first."""
    return {
        KEY_PREFIX + short: float(metrics[name])
        for short, name in KEY_METRICS.items()
        if name in metrics and np.isfinite(metrics[name])
    }


def describe_run(recorder: Recorder, model: object, dataset: object, scores: pd.DataFrame) -> None:
    """Name a run and tag it with what it was made of.

    Of what MLflow refuses nothing but a warning comes: a run is not lost by it.

    Args:
        model, dataset: that made the scores.
        scores: on (datetime, instrument).
    """
    if not isinstance(recorder, MLflowRecorder):
        return
    tag_versions(recorder)
    task = _attempt("its task", lambda: load_task(recorder)) or {}
    name_run(recorder, task or {"model": {"class": type(model).__name__}})
    times = pd.DatetimeIndex(scores.index.get_level_values("datetime"))
    tags = {
        WEIGHTS: _attempt("digests of weights", lambda: weights_digest(model)),
        BARS: _attempt("digests of bars", lambda: bars_digest(dataset)),
        PROVIDER: _attempt("the folder of its bars", lambda: _folder_of(scores.index)),
        UNIVERSE: universe_of(task),
        DAYS: f"{times.min():%Y-%m-%d}/{times.max():%Y-%m-%d}",
    }
    _tag(recorder, {name: value for name, value in tags.items() if value})


def name_run(recorder: Recorder, task: Mapping[str, Any] | None = None) -> None:
    """Give a run a name that says what it is, unless it has one that was chosen.

    Args:
        task: of its workflow; None reads what was kept with the run.
    """
    if not isinstance(recorder, MLflowRecorder):
        return

    def rename() -> None:
        run = recorder.client.get_run(recorder.id)
        if (run.info.run_name or "") not in UNNAMED:
            return
        found = run_name(task if task is not None else load_task(recorder), _provider())
        if found:
            recorder.client.update_run(recorder.id, name=found)
            recorder.name = found

    _attempt("its name", rename)


def run_name(task: Mapping[str, Any], provider: str = "") -> str:
    """As "KronosModel nano alpha · demo": the model, and the universe or the market's folder.

    Args:
        task: a workflow's, as it was made.
        provider: the folder of bars.

    Returns:
        "" where the task names no model.
    """
    model = model_name(task.get("model"))
    if not model:
        return ""
    handler = value_at(task, "dataset", "kwargs", "handler", "class")
    if isinstance(handler, str) and not handler.endswith("KronosHandler"):
        model += f" {handler.rpartition('.')[2]}"
    universe = universe_of(task)
    market = universe if universe and universe != "all" else folder_name(provider)
    bars = label_bars_of(task)
    about = [market, f"{bars} bars" if bars > 1 else ""]
    name = " · ".join(part for part in (model, ", ".join(filter(None, about))) if part)
    name = one_line(name)
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…"


def model_name(config: object) -> str:
    """A model's class, its checkpoint and how it was trained: "KronosModel nano finetuned"."""
    if isinstance(config, str):
        return config.rpartition(".")[2]
    name = str(value_at(config, "class") or "").rpartition(".")[2]
    kwargs = value_at(config, "kwargs")
    members = value_at(kwargs, "members")
    if is_map(rolled := value_at(kwargs, "model")):
        every = value_at(kwargs, "every")
        return f"{model_name(rolled)} retrained" + (f" every {every}" if every else "")
    if isinstance(members, list | tuple):
        return f"{name} {' + '.join(filter(None, map(model_name, members)))}"
    checkpoint = value_at(kwargs, "checkpoint")
    if not name or not checkpoint:
        return name
    training = value_at(kwargs, "training")
    trained = {stage for stage, how in training.items() if how} if is_map(training) else set()
    words = [name, re.split(r"[\\/]", str(checkpoint).rstrip("\\/"))[-1]]
    if value_at(kwargs, "from_scratch"):
        words.append("from scratch")
    elif trained & {"predictor", "tokenizer"}:
        words.append("finetuned")
    if "alpha" in trained or value_at(kwargs, "alpha_head"):
        words.append("alpha")
    return " ".join(words if len(words) > 2 else [*words, "zero-shot"])


def universe_of(task: Mapping[str, Any]) -> str:
    """The universe that a task chose from, in a word; "" where it names none."""
    found = value_at(task, "dataset", "kwargs", "handler", "kwargs", "instruments")
    if is_map(found):
        found = found.get("market")
    if isinstance(found, list | tuple):
        digest = hashlib.sha256("\n".join(sorted(map(str, found))).encode()).hexdigest()
        return f"{len(found)} names {digest[:8]}"
    return one_line(str(found)) if found else ""


def folder_name(path: str) -> str:
    """The part of a folder's path that names the market: `demo` of `demo/market`."""
    parts = [part for part in PurePosixPath(path.replace("\\", "/")).parts if part != "/"]
    named = [part for part in parts if part.lower().strip("./~") not in GENERIC]
    return named[-1] if named else ""


def tag_versions(recorder: Recorder) -> None:
    """Tag a run with versions (this package's, of PACKAGES, Python's) and the working folder's git
    revision. Of a run that has them nothing is changed: they are those it began with."""
    if not isinstance(recorder, MLflowRecorder):
        return

    def write() -> None:
        if VERSION in recorder.client.get_run(recorder.id).data.tags:
            return
        tags = {f"{VERSION}.{name}": version(name) for name in PACKAGES}
        tags |= {VERSION: __version__, f"{VERSION}.python": platform.python_version()}
        if revision := git_revision(Path.cwd()):
            tags[GIT] = revision
        _tag(recorder, tags)

    _attempt("its versions", write)


def git_revision(folder: Path) -> str:
    """The commit of a working folder, and " with changes" where files differ; "" without git."""

    def git(*words: str) -> str:
        done = subprocess.run(
            ["git", *words], cwd=folder, capture_output=True, text=True, timeout=10, check=True
        )
        return done.stdout.strip()

    try:
        revision = git("rev-parse", "HEAD")
        changed = git("status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return ""
    return f"{revision} with changes" if changed else revision


def weights_digest(model: object) -> str:
    """Digests of the weights that scored, as "predictor … tokenizer …"; "" where there are none.

    The same weights have the same digest, in whichever folder and on whichever device. Of a blend
    the digests of its members; of LightGBM that of the trees.
    """
    if callable(newest := getattr(model, "newest_model", None)):  # of the last of several rolls
        return weights_digest(newest())
    members = getattr(model, "members", None)
    if isinstance(members, Mapping):
        each = {name: weights_digest(member) for name, member in members.items()}
        return "; ".join(f"{name}: {digest}" for name, digest in each.items() if digest)
    trees = getattr(getattr(model, "model", None), "model_to_string", None)
    if callable(trees):
        return f"trees {hashlib.sha256(trees().encode()).hexdigest()[:16]}"
    from torch.nn import Module  # which LightGBM does without

    from kronos_qlib.model.checkpoints.pretrained import fingerprint

    pair = getattr(model, "predictor", None)
    nets = {
        "predictor": getattr(pair, "model", None),
        "tokenizer": getattr(pair, "tokenizer", None),
        "alpha": getattr(model, "head", None),
    }
    return " ".join(
        f"{name} {fingerprint(net)}" for name, net in nets.items() if isinstance(net, Module)
    )


def bars_digest(dataset: object) -> str:
    """A digest of the bars that a data set read, training segment included.

    Of a KronosDataset that of its table of bars, the same for every model on it. Of other data sets
    that of the handler's frame, features and labels, which compares with its like alone.
    """
    table = getattr(getattr(dataset, "bar_handler", None), "bars", None)
    if isinstance(table, BarTable):
        return table_digest(table)
    frame = loaded_frame(getattr(dataset, "handler", None))
    if frame is None:
        return ""
    return f"frame {frame_digest(frame)[:16]}"


def table_digest(table: BarTable) -> str:
    """A digest of a table of bars and of its instruments' names."""
    names = "\n".join(table.instruments)
    return f"bars {hashlib.sha256(f'{table.checksums} {names}'.encode()).hexdigest()[:16]}"


def frame_digest(frame: pd.DataFrame) -> str:
    """SHA-256 of a frame's columns, index and values, in hexadecimal digits."""
    digest = hashlib.sha256(repr([*map(str, frame.columns)]).encode())
    rows = pd.util.hash_pandas_object(frame.index.to_frame(), index=False)
    digest.update(rows.to_numpy().tobytes())
    for place in range(frame.shape[1]):  # a column at a time: the whole may be gigabytes
        digest.update(np.ascontiguousarray(frame.iloc[:, place].to_numpy()).data)
    return digest.hexdigest()


def add_verdict(recorder: Recorder, part: str, text: str) -> None:
    """Make a sentence part of the run's description in MLflow, unless it has another.

    Args:
        part: a key of VERDICTS; what the run had under it before is replaced.
        text: Markdown.
    """
    if not isinstance(recorder, MLflowRecorder):
        return

    def write() -> None:
        tags = recorder.client.get_run(recorder.id).data.tags
        ours = {name: tags[tag] for name, tag in VERDICTS.items() if tag in tags}
        is_ours = tags.get(NOTE, "") in ("", _joined(ours))
        ours[part] = text
        recorder.client.set_tag(recorder.id, VERDICTS[part], text)
        if is_ours:
            recorder.client.set_tag(recorder.id, NOTE, _joined(ours))

    _attempt("its description", write)


def same_market(one: Mapping[str, str], other: Mapping[str, str]) -> str:
    """Why two runs are not of one market, by their tags; "" where nothing says so.

    A folder of bars may have been moved or be shared between machines: its last two names count.
    """
    for tag, what in ((PROVIDER, "bars of"), (UNIVERSE, "universe")):
        mine, its = one.get(tag, ""), other.get(tag, "")
        if tag == PROVIDER:
            mine, its = ("/".join(PurePosixPath(path).parts[-2:]) for path in (mine, its))
        if mine and its and mine != its:
            return f"{what} {its}, here {mine}"
    spans = [each.get(DAYS, "").split("/") for each in (one, other)]
    if all(len(span) == 2 for span in spans):
        (first, last), (its_first, its_last) = spans
        if its_last < first or last < its_first:
            return f"days {its_first} to {its_last}, here {first} to {last}"
    return ""


def _joined(parts: Mapping[str, str]) -> str:
    return "\n\n".join(parts[name] for name in VERDICTS if name in parts)


def _folder_of(index: pd.Index) -> str:
    is_moment = index.get_level_values("datetime").nunique() == 1  # which has no frequency
    return data_folder("day" if is_moment else frequency_of(index)).absolute().as_posix()


def _provider() -> str:
    """The folder of Qlib's bars, of the first frequency that has one."""
    uris = C.provider_uri if getattr(C, "registered", False) else {}
    return next((str(uri) for uri in uris.values()), "") if is_map(uris) else str(uris)


def _tag(recorder: MLflowRecorder, tags: Mapping[str, str]) -> None:
    def write() -> None:
        for name, value in tags.items():
            recorder.client.set_tag(recorder.id, name, value)

    _attempt("its tags", write)


def _attempt(what: str, do: Callable[[], Any]) -> Any:
    """What comes of it; None and a warning where something fails: a run is not lost by its tags."""
    try:
        return do()
    except Exception as problem:  # MLflow's, sqlite's, the network's, or another model's
        if isinstance(problem, KronosError):
            logger.warning("the run is not tagged with %s: %s", what, problem)
        else:
            logger.warning(
                "the run is not tagged with %s: %s: %s", what, type(problem).__name__, problem
            )
        return None
