"""The benchmark of finetuning, on a simulated market: what it judges, keeps, and does not see."""

from __future__ import annotations

import importlib
import io
import json
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from kronos_qlib.data.files.synthetic import MarketConfig, make_market

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
SETTINGS = {
    "region": "us",
    "segments": {
        "train": ["2020-01-01", "2020-06-30"],
        "valid": ["2020-07-01", "2020-08-14"],
        "test": ["2020-08-17", "2020-09-25"],
    },
    "least_share": 0.2,
    "lookback": 20,
    "horizon": 3,
    "device": "cpu",
    "sampling": {"paths": 2},
    "training": {
        "alpha frozen": {"alpha": {"epochs": 2, "hidden": 8}},
        "scale alone": {"alpha": {"epochs": 2, "hidden": 8}},
    },
    "lightgbm": {"lambda_l1": 0.0, "lambda_l2": 1.0, "num_leaves": 4, "num_threads": 1},
}
ALL = ["zero-shot", "alpha frozen", "scale alone", "lightgbm", "lightgbm + embeddings", "blend"]


@pytest.fixture(scope="module")
def bars(tmp_path_factory):
    config = MarketConfig(instruments=16, sectors=2, years=0.8, effect=0.4, seed=3)
    path = tmp_path_factory.mktemp("finetuning") / "bars.parquet"
    bars = make_market(config).bars
    stray = bars[bars["date"] == "2020-07-10"].head(2)  # a Saturday follows, of two bars
    bars = pd.concat([bars, stray.assign(date=pd.Timestamp("2020-07-11"))], ignore_index=True)
    bars.to_parquet(path)
    return path


@pytest.fixture(scope="module")
def benchmark():
    """The script as a module; it imports the one beside it."""
    with pytest.MonkeyPatch.context() as patched:
        patched.syspath_prepend(str(ROOT / "benchmarks"))
        yield importlib.import_module("finetuning")


@pytest.fixture(scope="module")
def run(benchmark, bars):
    """Runs it in this process: its table, and what it printed and told."""

    def run(*arguments, settings=SETTINGS):
        folder = bars.parent
        own, table = folder / "settings.json", folder / "table.json"
        own.write_text(json.dumps(settings), encoding="utf-8")
        where = ["--work", str(folder / "work"), "--settings", str(own), "--json", str(table)]
        printed, told = io.StringIO(), io.StringIO()
        with redirect_stdout(printed), redirect_stderr(told):
            assert benchmark.main([str(bars), *where, *arguments]) == 0
        return json.loads(table.read_text(encoding="utf-8")), printed.getvalue(), told.getvalue()

    return run


@pytest.fixture(scope="module")
def judged(run):
    return run("--rows", *ALL)


def made(told):
    """What was trained or scored."""
    lines = [line[9:] for line in told.splitlines() if line[2:3] == ":" == line[5:6]]
    return [line for line in lines if ": training" in line or ": scoring" in line]


def test_all_rows_are_judged_on_the_same_days_and_names(judged):
    table, printed, _ = judged
    rows = {row["row"]: row for row in table["rows"]}
    assert list(rows) == ALL
    assert len({(row["days"], row["pairs"]) for row in rows.values()}) == 1
    assert rows["blend"]["days"] == 31, "33 weekdays less the two whose labels lie beyond"
    assert 31 * 14 < rows["blend"]["pairs"] <= 31 * 16
    assert rows["blend"]["train"] == rows["alpha frozen"]["train"] + rows["lightgbm"]["train"]
    assert rows["lightgbm"]["rank_ic"] > 0.05, "an effect is planted"
    assert [(pair["of"], pair["less"]) for pair in table["differences"]] == [
        ("blend", "lightgbm"),
        ("alpha frozen", "lightgbm"),
        ("lightgbm + embeddings", "lightgbm"),
        ("alpha frozen", "scale alone"),
    ]
    assert "| lightgbm + embeddings | " in printed
    assert "- blend - lightgbm: " in printed


def test_the_figures_are_those_of_the_scores_it_keeps(judged, bars):
    work = bars.parent / "work"
    names = {"lightgbm": "lightgbm", "blend": "blend", "zero-shot": "zero-shot"}
    scores = {name: pd.read_parquet(work / "rows" / place / "valid.parquet")["score"]
              for name, place in names.items()}  # fmt: skip
    table = pd.read_parquet(bars)
    table = table[table["date"] != pd.Timestamp("2020-07-11")]
    closes = table.pivot(index="date", columns="symbol", values="close")
    label = (closes.shift(-2) / closes.shift(-1) - 1).stack().rename("label")
    label.index.names = ["datetime", "instrument"]
    both = pd.concat([*scores.values(), label], axis=1, join="inner", keys=[*scores, "label"])
    both = both.dropna()
    for row in judged[0]["rows"]:
        if row["row"] in scores:
            days = both.groupby(level="datetime")[[row["row"], "label"]]
            daily = days.apply(lambda day: day.corr(method="spearman").iloc[0, 1])
            assert daily.mean() == pytest.approx(row["rank_ic"], abs=1e-6)
            assert daily.mean() / daily.std() == pytest.approx(row["rank_icir"], abs=1e-4)


def test_judging_validation_sees_no_bar_of_the_test(judged, bars):
    """Its folder ends with the validation segment."""
    work = bars.parent / "work"
    calendar = (work / "valid" / "qlib" / "calendars" / "day.txt").read_text().split()
    assert calendar[-1] == "2020-08-14"
    assert "2020-07-11" not in calendar, "two bars make no trading day"
    volume = np.fromfile(next((work / "valid" / "qlib").glob("features/*/volume.day.bin")), "<f4")
    assert len(volume) - 1 <= len(calendar)


def test_what_was_made_is_used_again_and_other_settings_make_it_anew(judged, run):
    assert "scale alone: training" in made(judged[2])
    again, _, told = run("--rows", *ALL)
    assert made(told) == []
    assert again == judged[0]
    other = {
        **SETTINGS,
        "training": {**SETTINGS["training"], "scale alone": {"alpha": {"hidden": 4}}},
    }
    *_, told = run("--rows", "scale alone", "lightgbm", settings=other)
    assert made(told) == ["scale alone: training", "scale alone: scoring valid"]


def test_the_test_half_is_scored_by_the_models_of_validation(judged, run, bars):
    table, _, told = run("--judge", "test", "--rows", "lightgbm", "alpha frozen", "blend")
    assert made(told) == ["alpha frozen: scoring test", "lightgbm: scoring test"]
    assert {row["days"] for row in table["rows"]} == {28}
    scores = pd.read_parquet(bars.parent / "work" / "rows" / "blend" / "test.parquet")
    days = scores.index.get_level_values("datetime")
    assert (days.min(), days.max()) == (pd.Timestamp("2020-08-17"), pd.Timestamp("2020-09-23"))


def test_a_setting_that_is_not_known_is_refused(run):
    with pytest.raises(SystemExit, match="it has no 'lookbak'"):
        run(settings={"lookbak": 20})
    with pytest.raises(SystemExit, match="training has no 'alpha frosen'"):
        run(settings={"training": {"alpha frosen": {}}})
