"""Evenings of `daily` with the model in force, out of the registry, and its orders."""

from __future__ import annotations

import mlflow
import pandas as pd
import pytest
from daily_world import World
from qlib.model.trainer import task_train

from kronos_qlib.daily.day_folder import DayFolder
from kronos_qlib.errors import DailyError
from kronos_qlib.ledger.ledger import Ledger
from kronos_qlib.plugin.lookahead import open_provider
from kronos_qlib.plugin.provider.faults import stored_calendar
from kronos_qlib.plugin.registry.newest_scores import newest_scores
from kronos_qlib.plugin.registry.registered_models import register

pytestmark = pytest.mark.integration

TASK = {
    "model": {
        "class": "KronosModel",
        "module_path": "kronos_qlib.plugin.model",
        "kwargs": {"device": "cpu", "show_progress": False, "sampling": {"paths": 2}},
    },
    "dataset": {
        "class": "KronosDataset",
        "module_path": "kronos_qlib.plugin.dataset",
        "kwargs": {
            "handler": {
                "class": "KronosHandler",
                "module_path": "kronos_qlib.plugin.dataset",
                "kwargs": {"instruments": "all", "end_time": "2020-04-07"},
            },
            "segments": {"test": ("2020-04-01", "2020-04-07")},
            "lookback": 20,
            "horizon": 3,
        },
    },
    "record": [
        {
            "class": "KronosSignalRecord",
            "module_path": "kronos_qlib.plugin.records.signal_record",
            "kwargs": {"model": "<MODEL>", "dataset": "<DATASET>"},
        }
    ],
}
MORE = """exchange: XSHG
tracking_uri: sqlite:///mlflow.db
orders: {positions: positions.csv, cash: 100000, strategy: {benchmark: MEAN, topk: 2, n_drop: 1}}"""


@pytest.fixture
def world(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("KRONOS_MLFLOW_URI", raising=False)
    world = World(tmp_path / "world").make(more=MORE)
    (world.folder / "positions.csv").write_text("instrument,quantity,days\n")
    return world


def test_two_evenings_with_the_champion(world):
    uri = f"sqlite:///{(world.folder / 'mlflow.db').as_posix()}"
    manager = {
        "class": "KronosExpManager",
        "module_path": "kronos_qlib.plugin.runs.manager",
        "kwargs": {"uri": uri, "default_exp_name": "workflow"},
    }
    before = mlflow.get_tracking_uri()
    open_provider(world.qlib, exp_manager=manager)
    try:
        task_train(TASK, experiment_name="small")
    finally:
        mlflow.set_tracking_uri(before)
    first, second = world.days[:2]
    world.drop_day(first)
    # The run is there, and nobody has registered it: the bars go in, and nothing follows.
    with pytest.raises(DailyError, match=r"step scores of 2020-04-08: .*small"):
        world.evening(first)
    assert pd.Timestamp(stored_calendar(world.qlib, "day")[-1]) == first
    assert not DayFolder(world.home, first).scores.exists()
    assert not Ledger(world.home / "ledger").entries()
    register("small", "small", tracking_uri=uri)
    assert world.evening(first).days == (first,)
    world.drop_day(second)
    assert world.evening(second).days == (second,)
    entries = Ledger(world.home / "ledger").entries()
    assert [(entry.kind, entry.day) for entry in entries] == [
        (kind, day.date()) for day in (first, second) for kind in ("scores", "orders")
    ]
    assert not any(entry.is_late for entry in entries)
    for day in (first, second):
        kept = DayFolder(world.home, day).read_scores()
        again = newest_scores(
            "models:/small@champion",
            tracking_uri=uri,
            provider_uri=str(world.qlib),
            day=f"{day:%Y-%m-%d}",
        )
        # The folder has a day more by now: what was scored saw nothing of it.
        pd.testing.assert_frame_equal(kept.table, again.table, check_exact=True)
        orders = pd.read_csv(DayFolder(world.home, day).orders / "orders.csv")
        assert set(orders["instrument"]) <= set(kept.table.index)
        assert len(orders)
