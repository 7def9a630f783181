"""What a notebook shows of data sets: a line, where arrays filled the screen."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from kronos_qlib.data.windows.bar_table import BarTable
from kronos_qlib.data.windows.window_dataset import WindowDataset


@pytest.fixture(scope="module")
def dataset():
    days = pd.bdate_range("2024-01-01", periods=60)
    bars = pd.concat(
        pd.DataFrame({"symbol": f"S{number}", "date": days}) for number in range(5)
    ).reset_index(drop=True)
    close = 10 + np.sin(np.arange(len(bars)))
    bars = bars.assign(open=close, high=close, low=close, close=close, volume=1.0)
    segments = {"train": ("2024-01-01", "2024-02-09"), "test": slice("2024-03-08", None)}
    return WindowDataset.from_file(bars, segments, lookback=5, horizon=2)


def test_data_sets_are_shown_in_a_line(dataset):
    table = (
        "BarTable(300 bars of 5 instruments (S0, S1, S2 and 2 more), 60 times from 2024-01-01 to "
    )
    assert repr(dataset.table) == f"{table}2024-03-22)"
    assert repr(dataset) == (
        f"WindowDataset({table}2024-03-22), lookback=5, horizon=2, train 2024-01-01 to 2024-02-09, "
        "test 2024-03-08 to None)"
    )
    windows = dataset.windows("test")
    assert repr(windows) == "Windows(55 of 5 bars, ending from 2024-03-08 to 2024-03-22)"
    trained = repr(dataset.training_windows("train"))
    assert trained.startswith("Windows(120 of 5 bars and 2 ahead, ending from 2024-01-05 to ")
    assert repr(windows.take(slice(0, 0))) == "Windows(0 of 5 bars)"
    assert repr(BarTable.empty()) == "BarTable(0 bars of 0 instruments)"
