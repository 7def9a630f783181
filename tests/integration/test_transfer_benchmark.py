"""The benchmark of finetuning on one market for another, on simulated markets."""

from __future__ import annotations

import io
import re
from contextlib import redirect_stderr, redirect_stdout

import numpy as np
import pandas as pd
import pytest

from kronos_qlib.data.calendar.stamps import stamps_of
from kronos_qlib.data.files.synthetic import MarketConfig, make_market

pytestmark = pytest.mark.integration

SPANS = {
    "train": ("2020-01-01", "2020-04-30"),
    "valid": ("2020-05-01", "2020-06-12"),
    "judged": ("2020-08-03", "2020-09-30"),
}
SMALL = {
    "names": 8, "train-moments": 12, "valid-moments": 6, "judged-moments": 14, "drawn-moments": 10,
    "windows": 16, "epochs": 1, "paths": 2, "lookback": 20, "seeds": 2,
}  # fmt: skip


@pytest.fixture(scope="module")
def transfer(load_benchmark):
    return load_benchmark("transfer")


@pytest.fixture(scope="module")
def run(transfer, tmp_path_factory):
    """Runs it in this process: what it printed and told; and its folder."""
    folder = tmp_path_factory.mktemp("transfer")
    markets = {}
    for number, name in enumerate(("a", "b")):
        config = MarketConfig(instruments=9, sectors=2, years=0.8, effect=0.4, seed=number)
        make_market(config).bars.to_parquet(folder / f"{name}.parquet")
        markets[name] = transfer.Market(f"{name}.parquet", **SPANS)
    work = folder / "work"
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(transfer, "MARKETS", markets)

        def run_it(*arguments):
            sizes = [word for name, size in SMALL.items() for word in (f"--{name}", str(size))]
            where = ["--data", str(folder), "--work", str(work), "--device", "cpu"]
            printed, told = io.StringIO(), io.StringIO()
            with redirect_stdout(printed), redirect_stderr(told):
                assert transfer.main([*where, *sizes, *arguments]) == 0
            return printed.getvalue(), told.getvalue()

        yield run_it, work


@pytest.fixture(scope="module")
def whole(run):
    return run[0]()


def test_every_row_of_every_market_is_judged_on_the_same_rows(whole, run):
    table = pd.read_csv(run[1] / "transfer.csv", keep_default_na=False, na_values=[""])
    assert table.groupby(["judged", "method"]).size().to_dict() == {
        (judged, method): 4 if method == "paths" else 3
        for judged in "ab"
        for method in ("paths", "head", "head without context")
    }
    of_a = table[table["judged"] == "a"].set_index(["method", "row"])
    assert (of_a.groupby("method")[["pairs", "days"]].nunique() == 1).all().all()
    assert of_a.loc["paths", "days"].max() == 10 and of_a.loc["head", "days"].max() == 14
    assert 60 < of_a.loc["paths", "pairs"].max() <= 80 < of_a.loc["head", "pairs"].max() <= 112
    assert set(of_a.loc["paths"].index) == {"zero-shot", "home", "away, b", "all"}
    assert (of_a["low"] < of_a["rank_ic"]).all() and (of_a["nw_low"] < of_a["nw_high"]).all()
    assert (of_a["bootstrap_low"] <= of_a["rank_ic"]).all()
    apart = of_a.loc[("head", "away, b"), "rank_ic"] - of_a.loc[("head", "home"), "rank_ic"]
    assert of_a.loc[("head", "away, b"), "less_home_mean"] == pytest.approx(apart, abs=1e-6)
    assert not of_a["later"].any()
    assert re.search(r"\| a \| 14, \d+ \| head \| away, b \| 2020-06 \|", whole[0])


def test_away_is_the_model_that_is_home_elsewhere(whole, run):
    assert whole[1].count(": training") == 4 + 2 * 2 * 3  # a, b, both, zero-shot; heads of 2 seeds
    again, told = run[0]()
    assert ": training" not in told and ": scoring" not in told, "what was made is used again"
    assert again == whole[0]
    other, _ = run[0]("--methods", "head", "--judge", "b")
    assert "read 1 times before" in other
    _, told = run[0]("--methods", "head", "--judge", "b", "--judged-moments", "13")
    assert ": training" not in told and ": scoring b" in told


def test_a_table_of_two_markets_purges_each_and_reads_the_same(whole, run, transfer):
    sizes = {key.replace("-", "_"): value for key, value in SMALL.items() if key != "seeds"}
    bench = transfer.Bench(run[1].parent, run[1], transfer.Budget(**sizes, horizon=2), 1)
    both, alone = bench.learned(("a", "b")), bench.learned(("b",))
    for segment in ("train", "valid"):
        found = both.labelled_windows(segment)
        names = found.index.get_level_values("instrument").str[0]
        of_b = found.take(np.flatnonzero(names == "b"))
        own = alone.labelled_windows(segment)
        # The same windows, so contexts that were read for one table are found for the other.
        assert of_b.index.equals(own.index) and len(own)
        assert (of_b.bars(slice(None)) == own.bars(slice(None))).all()
        assert found.index.to_frame(index=False).groupby("datetime")["instrument"].agg(
            lambda day: day.str[0].nunique()
        ).eq(1).all(), "no moment compares names of two markets"  # fmt: skip
        assert np.isfinite(both.label.of(found)).mean() > 0.9
        # The newest bar that a label or a horizon reads lies in the segment of its own market.
        for name, move in (("a", transfer.moves_of("a")), ("b", transfer.moves_of("b"))):
            end = pd.Timestamp(SPANS[segment][1]) + move[segment == "valid"]
            mine = found.times[names == name]
            calendar = pd.DatetimeIndex(both.table.calendar)
            assert calendar[calendar.get_indexer([mine.max()])[0] + 2] <= end
            trained = both.training_windows(segment)
            last = both.table.times_at(trained.ends[:] + trained.ahead)
            inside = trained.index.get_level_values("instrument").str[0] == name
            assert last[inside].max() <= end.to_datetime64()
    assert both.bounds("train")[1] < both.bounds("valid")[0]


def test_moved_dates_read_the_same_and_real_markets_end_before_what_is_judged(transfer):
    days = np.arange("2000-01-01", "2023-01-01", dtype="datetime64[h]").astype("datetime64[ns]")
    markets = transfer.MARKETS  # the real ones, unless a fixture has put others there
    for cycle in (-3, -1, 2):
        assert (stamps_of(days) == stamps_of(days + cycle * transfer.CYCLE.to_timedelta64())).all()
    for market in markets.values():
        assert market.train[1] < market.valid[0] and market.valid[1] < market.judged[0]
