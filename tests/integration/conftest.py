"""A small market and its provider, and a run to hang records on."""

from __future__ import annotations

import importlib
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType

import mlflow
import mlflow.store.db.utils
import numpy as np
import pandas as pd
import pytest
import sqlalchemy
from qlib.workflow.recorder import MLflowRecorder

from kronos_qlib.data.files.synthetic import MarketConfig, make_market
from kronos_qlib.plugin.provider.writer import write_provider


@pytest.fixture(scope="session")
def load_benchmark() -> Iterator[Callable[[str], ModuleType]]:
    """Imports a script of benchmarks/ by its name, once."""
    with pytest.MonkeyPatch.context() as patched:
        patched.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
        yield importlib.import_module


@pytest.fixture(scope="session", autouse=True)
def quick_stores(tmp_path_factory) -> Iterator[None]:
    """MLflow's second new database and those after it are copies of the first, which took it some
    two seconds and as many migrations as it ever had. Other processes make their own."""
    make = getattr(mlflow.store.db.utils, "_initialize_tables", None)
    if make is None:  # of another MLflow: then each takes its time
        yield
        return
    template = tmp_path_factory.mktemp("first_store") / "mlflow.db"

    def copied(engine: sqlalchemy.Engine) -> None:
        path = engine.url.database
        is_new = (
            engine.dialect.name == "sqlite" and not sqlalchemy.inspect(engine).get_table_names()
        )
        if is_new and path and template.exists():
            copy_database(template, path)
            return
        make(engine)
        if is_new and path:
            copy_database(path, template)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(mlflow.store.db.utils, "_initialize_tables", copied)
        yield


def copy_database(source: Path | str, target: Path | str) -> None:
    """By sqlite, which minds what others have open."""
    one, other = sqlite3.connect(source), sqlite3.connect(target)
    try:
        one.backup(other)
    finally:
        one.close()
        other.close()


@pytest.fixture(scope="module")
def bars():
    config = MarketConfig(instruments=8, sectors=2, years=1.0, suspended_share=0.02, seed=3)
    return make_market(config).bars


@pytest.fixture(scope="module")
def provider(bars, tmp_path_factory):
    target = tmp_path_factory.mktemp("market") / "qlib"
    write_provider(bars, target, benchmark="BENCH", future_bars=20)
    return target


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A tracking URI with one experiment; creating the database is what takes the time."""
    folder = tmp_path_factory.mktemp("store")
    uri = f"sqlite:///{(folder / 'mlflow.db').as_posix()}"
    mlflow.MlflowClient(uri).create_experiment("demo", (folder / "artifacts").as_uri())
    return uri


@pytest.fixture
def recorder(store, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # Qlib records `git diff` of where it stands
    before = mlflow.get_tracking_uri()
    experiment = mlflow.MlflowClient(store).get_experiment_by_name("demo")
    recorder = MLflowRecorder(experiment.experiment_id, store, "a run")
    recorder.start_run()
    yield recorder
    recorder.end_run("FINISHED")
    mlflow.set_tracking_uri(before)


@pytest.fixture(scope="session")
def dump_folder() -> Callable[..., Path]:
    """Writes bars as Qlib's own dump_bin does: only the fields that are asked for."""
    return dump_bars


def dump_bars(
    folder: Path,
    bars: pd.DataFrame,
    fields: Sequence[str] = ("open", "high", "low", "close", "volume", "factor"),
    freq: str = "day",
) -> Path:
    """bars: symbol, date and the fields."""
    shape = "%Y-%m-%d" if freq == "day" else "%Y-%m-%d %H:%M:%S"
    calendar = pd.DatetimeIndex(bars["date"].unique()).sort_values()
    for name in ("calendars", "instruments"):
        (folder / name).mkdir(parents=True)
    (folder / "calendars" / f"{freq}.txt").write_text("\n".join(calendar.strftime(shape)) + "\n")
    lines = []
    for symbol, own in bars.groupby("symbol"):
        own = own.set_index("date")
        start, stop = calendar.get_indexer([own.index.min(), own.index.max()])
        dense = own.reindex(calendar[start : stop + 1])
        (folder / "features" / symbol.lower()).mkdir(parents=True)
        for field in fields:
            values = np.concatenate([[start], dense[field].to_numpy("<f4")]).astype("<f4")
            values.tofile(folder / "features" / symbol.lower() / f"{field}.{freq}.bin")
        lines.append("\t".join([symbol, *calendar[[start, stop]].strftime(shape)]))
    (folder / "instruments" / "all.txt").write_text("\n".join(lines) + "\n")
    return folder
