"""The benchmark of anchors: its parts add up, and it measures an error that was put there."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from kronos_qlib.data.files.synthetic import MarketConfig, make_market
from kronos_qlib.inference.predictor import KronosPredictor

pytestmark = pytest.mark.integration

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "anchor.py"


@pytest.fixture(scope="module")
def anchor():
    spec = importlib.util.spec_from_file_location("benchmarks_anchor", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their annotations up there
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def market():
    return make_market(MarketConfig(instruments=6, sectors=2, years=0.5, seed=1)).bars


def test_gaps_are_the_error_and_the_drift(anchor, market, tiny_pair):
    tokenizer, net = tiny_pair
    predictor = KronosPredictor(net, tokenizer, device="cpu")
    windows, left_out = anchor.choose(market, 40, 20, seed=0)
    assert len(windows) + left_out == 40 and windows.ahead == 1
    again, _ = anchor.choose(market, 40, 20, seed=0)
    assert windows.ends[:].tolist() == again.ends[:].tolist()
    gaps = anchor.measure(predictor, windows, paths=5, seed=3)
    assert np.abs(gaps.error).max() > 0 and np.abs(gaps.drift).max() > 0
    bars = windows.bars(slice(None))
    np.testing.assert_allclose(gaps.moved, bars[:, -1, 3] / bars[:, -2, 3].astype(float) - 1)
    rows = anchor.rows_of("some", gaps, left_out, 5)
    assert [row["paths begin"] for row in rows] == ["anchored", "as published"]
    assert rows[0]["size_pct"] == pytest.approx(100 * np.abs(gaps.drift).mean())
    assert rows[1]["mean_dev"] == pytest.approx(((gaps.error + gaps.drift) / gaps.deviation).mean())


def test_the_share_of_tokens_is_what_was_put_there(anchor):
    rng = np.random.default_rng(0)
    error, drift = rng.normal(0, [[0.03], [0.01]], (2, 5000))
    days = np.repeat(np.arange(50), 100).astype("datetime64[D]")
    gaps = anchor.Gaps(error, drift, drift, np.ones(5000), days)
    assert gaps.share == pytest.approx(0.9, abs=0.02)
    mean, spread = anchor.clustered(np.repeat(rng.normal(size=50), 100), days)
    assert spread == pytest.approx(1 / np.sqrt(50), rel=0.3) and abs(mean) < 4 * spread


def test_it_prints_a_table_and_writes_it(anchor, market, tmp_path, capsys):
    market.to_parquet(tmp_path / "some.parquet")
    out = tmp_path / "gaps.csv"
    asked = [str(tmp_path / "some.parquet"), "--windows", "20", "--paths", "3", "--csv", str(out)]
    assert anchor.main(asked) == 0
    assert "| some | as published |" in capsys.readouterr().out
    table = pd.read_csv(out)
    assert table["token_share"].iloc[0] == 0 and len(table) == 2
