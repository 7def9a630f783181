"""The benchmark of forecasts, on simulated markets: its table, and what it does not see."""

from __future__ import annotations

import io
import json
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from kronos_qlib.data.files.synthetic import MarketConfig, make_market

pytest.importorskip("arch", reason="the benchmark fits GARCH with arch: it is NOT tested")
pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
FEW = ["--windows", "24", "--paths", "19", "--lookback", "25", "--horizon", "2"]


@pytest.fixture(scope="module")
def benchmark(load_benchmark):
    return load_benchmark("forecasts")


@pytest.fixture(scope="module")
def folder(tmp_path_factory, benchmark):
    """Two files of one market: the second goes on after the last day, at another price."""
    folder = tmp_path_factory.mktemp("forecasts")
    bars = make_market(MarketConfig(instruments=6, sectors=2, years=0.9, seed=3)).bars
    stray = bars[bars["date"] == "2020-07-10"].head(2)  # a Saturday follows, of two bars
    bars = pd.concat([bars, stray.assign(date=pd.Timestamp("2020-07-11"))], ignore_index=True)
    bars.to_parquet(folder / "one.parquet")
    late = bars["date"] > "2020-10-30"
    changed = bars.copy()
    changed.loc[late, ["open", "high", "low", "close"]] *= 2
    changed.to_parquet(folder / "two.parquet")
    return folder


@pytest.fixture(scope="module")
def result(benchmark, folder):
    """Both markets' rows by (market, horizon, method), and what was printed."""
    spans = ("2020-07-01", "2020-08-14"), ("2020-08-17", "2020-10-30")
    markets = {name: benchmark.Market(f"{name}.parquet", *spans) for name in ("one", "two")}
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patched, redirect_stdout(printed):
        patched.setattr(benchmark, "MARKETS", markets)
        file = folder / "found.json"
        assert benchmark.main(["--data", str(folder), *FEW, "--json", str(file)]) == 0
    return json.loads(file.read_text(encoding="utf-8")), printed.getvalue()


def test_every_market_has_every_method_at_every_horizon(result):
    found, printed = result
    assert list(found["markets"]) == ["one", "two"]
    rows = pd.DataFrame(found["markets"]["one"]["rows"])
    assert set(rows["horizon"]) == {"1", "all"}
    methods = set(rows["method"])
    assert {"kronos", "kronos_calibrated", "ewma", "garch_calibrated", "har"} < methods
    assert "oracle_scale" in methods
    kinds = rows.set_index("method")["kind"].to_dict()
    assert kinds["kronos"] == "forecast"
    assert kinds["garch"] == "baseline"
    assert kinds["oracle_scale"] == "bound"
    assert "## two" in printed
    assert "one, bar 1; best baseline:" in printed
    assert "| kronos |" in printed
    notes = found["markets"]["one"]["notes"]
    assert notes["test"]["windows"] == 24
    fitted = notes["paths"]["fitted"]["kronos_calibrated"]
    assert "up to 2020-08-1" in fitted, "to the end of valid, with the horizon in it"
    assert f"kronos_calibrated: {fitted}" in printed
    assert rows.set_index("method").loc["kronos_calibrated", "coverage_90"].notna().all()


def test_no_bar_after_the_last_day_is_read(result):
    found, _ = result
    one, two = (pd.DataFrame(found["markets"][name]["rows"]) for name in ("one", "two"))
    pd.testing.assert_frame_equal(one, two)


def test_a_method_from_paths_is_added_in_one_place(benchmark, folder, monkeypatch):
    """Paths that are what came, spread evenly: dependent ones are scored by the empirical CRPS."""

    def methods(source, model, test):
        ends = test.outcomes.closes
        factors = 1 + 0.01 * np.linspace(-1, 1, 19)[:, None]
        return [
            benchmark.PathMethod("known", ends[:, None] * factors, dependent=True),
            benchmark.PathMethod("kronos", test.closes),
        ]

    monkeypatch.setattr(benchmark, "path_methods", methods)
    spans = ["--valid", "2020-07-01", "2020-08-14", "--test", "2020-08-17", "2020-10-30"]
    printed = io.StringIO()
    with redirect_stdout(printed):
        arguments = [str(folder / "one.parquet"), *spans, *FEW, "--weekdays"]
        arguments += ["--json", str(folder / "own.json")]
        assert benchmark.main(arguments) == 0
    rows = pd.DataFrame(json.loads((folder / "own.json").read_text())["markets"]["one"]["rows"])
    crps = rows[rows["horizon"] == "1"].set_index("method")["crps"]
    assert crps["known"] < 0.5 * crps.drop("known").min()


def test_the_calibration_that_ships_is_judged_too(benchmark, folder, tmp_path):
    """One fitted on daily bars beside the weights; of other weights it is not taken."""
    model = benchmark.KronosModel("nano", show_progress=False)
    market = benchmark.Market(
        "one.parquet", ("2020-07-01", "2020-08-14"), ("2020-08-17", "2020-10-30")
    )
    source = benchmark.source_of(folder / "one.parquet", market, 25, 2)
    windows = benchmark.sample_windows(benchmark.known_windows(source, "test")[0], 24, 0)
    outcomes = benchmark.outcomes_of(source, windows, 20)
    closes = benchmark.draw_closes(model.predictor, source, windows, model.sampling, 0)
    model.save_pretrained(str(tmp_path))
    sample = benchmark.sample_of(model.predictor, source, "before", model.sampling, drawn=0)
    shipped = benchmark.fit_calibration(model.predictor, [sample], model.sampling)
    shipped.save(tmp_path / "predictor" / "calibration.json")
    ours = benchmark.KronosModel(str(tmp_path), show_progress=False)
    test = benchmark.Part(windows, outcomes, closes)
    found = {one.name: one for one in benchmark.path_methods(source, ours, test)}
    assert set(found) == {"kronos", "kronos_calibrated", "kronos_shipped"}
    assert found["kronos_shipped"].dependent
    replace(shipped, checkpoint="0-0").save(tmp_path / "predictor" / "calibration.json")
    names = [one.name for one in benchmark.path_methods(source, ours, test)]
    assert names == ["kronos", "kronos_calibrated"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give a file of bars"),
        (["bars.parquet", "--data", "."], "give a file of bars"),
        (["bars.parquet", "--valid", "2020-01-01", "2020-02-01"], "needs --valid and --test"),
        (["--data", ".", "--markets", "mars"], "invalid choice"),
    ],
)
def test_what_cannot_be_judged_is_said(benchmark, arguments, message):
    said = io.StringIO()
    with redirect_stderr(said), pytest.raises(SystemExit):
        benchmark.main(arguments)
    assert message in said.getvalue()
