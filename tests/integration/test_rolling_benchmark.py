"""The benchmark of retraining, on a simulated market."""

from __future__ import annotations

import io
from contextlib import redirect_stderr, redirect_stdout

import pandas as pd
import pytest
from qlib.data import D

from kronos_qlib.data.files.synthetic import MarketConfig, make_market

pytestmark = pytest.mark.integration

SEGMENTS = {
    "train": ("2020-03-02", "2020-04-15"),
    "valid": ("2020-04-16", "2020-05-15"),
    "test": ("2020-05-18", "2020-06-19"),
}
ROWS = ["lightgbm, never", "lightgbm, anew"]


def test_rows_are_rolled_tested_in_pairs_and_kept(load_benchmark, tmp_path, monkeypatch):
    rolling = load_benchmark("rolling")
    config = MarketConfig(instruments=12, sectors=2, years=0.5, effect=0.4, seed=3)
    make_market(config).bars.to_parquet(tmp_path / "bars.parquet")
    market = load_benchmark("alpha").Market("bars.parquet", SEGMENTS)
    monkeypatch.setattr(rolling, "MARKETS", {rolling.MARKET: market})
    config_of = rolling.RollingBench.config

    def few(bench, kind, seed):
        found = config_of(bench, kind, seed)
        own = {"num_leaves": 4, "lambda_l1": 0.0, "lambda_l2": 1.0, "num_boost_round": 8}
        return {**found, "kwargs": {**found["kwargs"], **own}}

    def table(bench, first, last):
        """In the place of Alpha158, which takes most of the time."""
        columns = {
            ("feature", "R5"): "$close / Ref($close, 5) - 1",
            ("feature", "RANGE"): "$high / $low",
            ("label", "LABEL0"): "Ref($close, -2) / Ref($close, -1) - 1",
        }
        frame = D.features(D.instruments("all"), [*columns.values()], first, last).swaplevel()
        return frame.set_axis(pd.MultiIndex.from_tuples([*columns]), axis=1).sort_index()

    monkeypatch.setattr(rolling.RollingBench, "config", few)
    monkeypatch.setattr(rolling.RollingBench, "table", table)

    def run() -> tuple[str, str]:
        printed, told = io.StringIO(), io.StringIO()
        arguments = ["--data", str(tmp_path), "--work", str(tmp_path / "work"), "--every", "10"]
        with redirect_stdout(printed), redirect_stderr(told):
            assert rolling.main([*arguments, "--no-backtest", "--rows", *ROWS]) == 0
        return printed.getvalue(), told.getvalue()

    printed, told = run()
    assert "1 trainings" in told and "3 trainings" in told
    assert "trained again every 10 trading days, train expanding" in printed
    differences = pd.read_csv(tmp_path / "work" / "rolling_differences.csv")
    assert ["lightgbm, anew", "lightgbm, never"] in differences[["of", "less"]].to_numpy().tolist()
    again, told = run()
    assert "training" not in told, "what was made is used again"
    assert again == printed
    # Until the second training both are one model.
    scores = [
        pd.read_parquet(path)["score"] for path in (tmp_path / "work" / "rows").rglob("*.parquet")
    ]
    both = pd.concat(scores, axis=1, keys=["a", "b"]).dropna()
    days = both.index.get_level_values("datetime")
    same = (both["a"] == both["b"]).groupby(days).all()
    assert same.iloc[:10].all() and not same.iloc[10:].any()
