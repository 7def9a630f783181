"""The benchmark of alpha heads and their rivals, on a simulated market: rows, records, resuming."""

from __future__ import annotations

import io
import json
from contextlib import redirect_stderr, redirect_stdout

import numpy as np
import pandas as pd
import pytest
import yaml

from kronos_qlib.data.files.synthetic import MarketConfig, make_market

pytestmark = pytest.mark.integration

SEGMENTS = {
    "train": ("2020-01-01", "2020-05-29"),
    "valid": ("2020-06-01", "2020-07-15"),
    "test": ("2020-07-16", "2020-09-04"),
}
FEW = {"num_leaves": 4, "num_threads": 1, "lambda_l1": 0.0, "lambda_l2": 1.0}
ROWS = {
    "lightgbm": {"lightgbm": FEW},
    "gru": {"gru": {"hidden": 4, "training": {"epochs": 1, "hidden": 4}}},
    "head": {"alpha": {"epochs": 1, "hidden": 8}},
    "head without context": {"alpha": {"epochs": 1, "hidden": 8, "context_width": 0}},
    "left": {"residual": {"of": "lightgbm", "folds": 2},
             "alpha": {"epochs": 1, "hidden": 8, "context_width": 0}},
    "lightgbm + left": {"blend": ["lightgbm", "left"]},
}  # fmt: skip
CHEAP = ["lightgbm", "head without context", "lightgbm + left", "left"]


@pytest.fixture(scope="module")
def benchmark(load_benchmark):
    return load_benchmark("alpha")


@pytest.fixture(scope="module")
def run(benchmark, tmp_path_factory):
    """Runs it in this process: what it printed and told, and its folder."""
    folder = tmp_path_factory.mktemp("alpha")
    bars = make_market(MarketConfig(instruments=14, sectors=2, years=0.7, effect=0.4, seed=3)).bars
    bars.to_parquet(folder / "bars.parquet")
    work = folder / "work"
    with pytest.MonkeyPatch.context() as patched:
        market = benchmark.Market("bars.parquet", SEGMENTS)
        patched.setattr(benchmark, "MARKETS", {"small": market})

        def run_it(*arguments, rows=ROWS, seeds=2):
            own = folder / "own.yaml"
            own.write_text(yaml.safe_dump(rows), encoding="utf-8")
            where = ["--data", str(folder), "--market", "small", "--work", str(work)]
            how = ["--settings", str(own), "--seeds", str(seeds), "--lookback", "20"]
            printed, told = io.StringIO(), io.StringIO()
            with redirect_stdout(printed), redirect_stderr(told):
                assert benchmark.main([*where, *how, "--device", "cpu", *arguments]) == 0
            return printed.getvalue(), told.getvalue()

        yield run_it, work


@pytest.fixture(scope="module")
def chosen(run):
    return run[0]("--choose", "--rows", *CHEAP)


def made(told: str) -> list[str]:
    return [line for line in told.splitlines() if ": training" in line or ": scoring" in line]


def test_choosing_reads_no_bar_of_the_test(chosen, run):
    printed, _ = chosen
    assert "small, valid 2020-06-01 to 2020-07-15" in printed
    assert "Settings tried on validation in work, blends too: 4." in printed
    work = run[1]
    assert not (work / "test").exists()
    calendar = (work / "valid" / "qlib" / "calendars" / "day.txt").read_text().split()
    assert calendar[-1] == "2020-07-15"
    table = pd.read_csv(work / "valid_rows.csv").set_index("row")
    assert set(table.index) == set(CHEAP)
    assert table["days"].nunique() == table["pairs"].nunique() == 1
    assert table.loc["lightgbm", "rank_ic"] > 0.05, "an effect is planted"
    assert (table["low"] < table["rank_ic"]).all()
    assert (table["rank_ic"] < table["bootstrap_high"]).all()
    assert np.isfinite(table[["nw_low", "ir_net", "excess_net", "turnover"]]).all().all()
    assert (table["excess_net"] < table["excess_gross"]).all()
    differences = pd.read_csv(work / "valid_differences.csv")
    assert ["left", "lightgbm"] in differences[["of", "less"]].to_numpy().tolist()


def test_figures_are_those_of_the_scores_it_keeps(chosen, run):
    work = run[1]
    label = pd.read_parquet(work / "valid" / "labels.parquet")["label"]
    places = {path.parent.parent.name.rsplit("-", 1)[0]: path.parent.parent
              for path in work.glob("rows/*/0/valid.parquet")}  # fmt: skip
    scores = {name: [pd.read_parquet(place / seed / "valid.parquet")["score"] for seed in "01"]
              for name, place in places.items()}  # fmt: skip
    both = pd.concat([one for each in scores.values() for one in each] + [label], axis=1).dropna()
    daily = [
        both.iloc[:, [place, -1]].groupby(level="datetime").apply(
            lambda day: day.corr(method="spearman").iloc[0, 1]
        )
        for place in range(both.shape[1] - 1)
    ]  # fmt: skip
    table = pd.read_csv(work / "valid_rows.csv").set_index("row")
    for number, name in enumerate(scores):
        row = table.loc[name.replace("_", " ")]
        own = [one.mean() for one in daily[2 * number : 2 * number + 2]]
        assert row["rank_ic"] == pytest.approx(np.mean(own), abs=1e-6)
        assert row["seed_low"] == pytest.approx(min(own), abs=1e-6)


def test_what_was_made_is_used_again_and_other_settings_are_counted(chosen, run):
    again, told = run[0]("--choose", "--rows", *CHEAP)
    assert made(told) == []
    assert again == chosen[0]
    told_of = {**ROWS, "left over": {"neutralised": "head without context"}}
    _, told = run[0]("--choose", "--no-backtest", "--rows", "left over", rows=told_of, seeds=1)
    assert made(told) == [], "of scores that are there"
    other = {**ROWS, "wider": {"alpha": {"epochs": 1, "hidden": 16, "context_width": 0}}}
    printed, told = run[0]("--choose", "--no-backtest", "--rows", "wider", rows=other, seeds=1)
    assert "blends too: 6." in printed
    assert len(made(told)) == 2


def test_the_test_is_read_once_and_said(chosen, run):
    printed, told = run[0]("--test", "--rows", "lightgbm", "left", "--no-backtest")
    assert not [line for line in made(told) if "training" in line], "models are validation's"
    assert "The test was read 0 times before" in printed
    again, _ = run[0]("--test", "--rows", "lightgbm", "left", "--no-backtest")
    assert again == printed, "the same reading is no second one"
    held = ["--rows", "lightgbm", "left", "--against", "left"]
    run[0]("--test", *held, "--no-backtest")
    differences = pd.read_csv(run[1] / "test_differences.csv")
    assert differences[["of", "less"]].to_numpy().tolist() == [["lightgbm", "left"]]
    printed, _ = run[0]("--test", "--rows", "lightgbm", "--no-backtest")
    assert "The test was read 1 times before" in printed
    assert ": lightgbm, left" in printed
    assert len(json.loads((run[1] / "test_read.json").read_text())) == 2


def test_networks_are_rows_too(run):
    """The GRU, and a head with context, whose contexts stay in the folder."""
    printed, _ = run[0]("--choose", "--rows", "gru", "head", "--no-backtest", seeds=1)
    assert "gru" in printed
    assert any((run[1] / "contexts").iterdir())


def test_a_blend_of_other_members_is_another_reading_and_contexts_are_of_weights_as_they_are(
    benchmark, tmp_path
):
    file = tmp_path / "bars.parquet"
    file.write_bytes(b"bars")

    def bench(hidden):
        rows = {**ROWS, "left": {"alpha": {"hidden": hidden}}}
        market = benchmark.Market(file.name, SEGMENTS)
        return benchmark.Bench(market, file, tmp_path, rows, "test", checkpoint="small")

    decided = [bench(hidden).decided_by("lightgbm + left") for hidden in (8, 8, 16)]
    assert decided[0] == decided[1] != decided[2]
    # Published weights would be trained along by their preset.
    model = bench(8).model({"alpha": {"epochs": 1}})
    assert model.training.preset == "gentle" and model.training.alpha.backbone == "frozen"


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({"one": {"alhpa": {}}}, "one: has one of lightgbm, gru, alpha, blend"),
        ({"one": {"alpha": {}, "gru": {}}}, "one: has one of"),
        ({"one": {"blend": ["nothing"]}}, "'nothing' is no row that can be blended"),
        ({"one": {"alpha": {}, "residual": {"of": "gru"}}}, "'gru' is no row of LightGBM"),
        ({"one": {"lightgbm": {}, "residual": {"of": "gru"}}}, "residual goes with alpha or gru"),
        ({"one": 3}, "one: must be a mapping"),
        ({"one": {"blend": ["gru", "head"], "weights": [1]}}, "weights are one for each row"),
        ({"one": {"neutralised": "nothing"}}, "is no row that can be blended or neutralised"),
        ({"one": {"alpha": {}, "neutral": True}}, "neutral goes with lightgbm, not with alpha"),
        ({"one": {"lightgbm": {}, "neutral": False}}, "one: neutral is true, or left out"),
        ({"one": {"blend": ["gru", "head"], "weights": [1, 0]}}, "one: weights are above 0"),
        ({"one": {"neutralised": ["head"]}}, "one: neutralised names one row"),
    ],
)
def test_rows_that_cannot_be_are_refused(run, rows, message):
    with pytest.raises(SystemExit, match=message):
        run[0]("--choose", rows={**ROWS, **rows})


def days_of(days, names, width, rng):
    """An index by day and name, and styles (N, F) standardised over each day."""
    dates = pd.bdate_range("2021-01-04", periods=days)
    index = pd.MultiIndex.from_product(
        [dates, [f"S{number:02d}" for number in range(names)]], names=["datetime", "instrument"]
    )
    styles = rng.normal(size=(days, names, width))
    styles = (styles - styles.mean(axis=1, keepdims=True)) / styles.std(axis=1, keepdims=True)
    return index, styles.reshape(-1, width)


def test_what_styles_leave_of_scores_is_of_their_own_day(benchmark):
    rng = np.random.default_rng(0)
    index, styles = days_of(4, 30, 3, rng)
    values = pd.Series(styles @ [3.0, -2.0, 1.0] + rng.normal(size=len(index)), index)
    found = benchmark.neutralised_by_day(
        values.swaplevel().sample(frac=1, random_state=1), pd.DataFrame(styles, index)
    )
    assert found.index.equals(index)
    assert abs(np.corrcoef(values, styles[:, 0])[0, 1]) > 0.5
    for day in index.get_level_values("datetime").unique():
        both = np.c_[found[day].to_numpy(), styles[index.get_level_values("datetime") == day]]
        assert np.abs(np.corrcoef(both.T)[0, 1:]).max() < 1e-3
        assert found[day].std() > 0.1
    fewer = benchmark.neutralised_by_day(values.iloc[:90], pd.DataFrame(styles, index))
    pd.testing.assert_series_equal(fewer, found.iloc[:90])


def test_a_blend_may_weigh_its_rows(benchmark):
    rng = np.random.default_rng(1)
    index, _ = days_of(3, 8, 1, rng)
    one, other = (pd.Series(rng.normal(size=len(index)), index) for _ in range(2))
    ranks = [part.groupby(level="datetime").rank(pct=True) for part in (one, other)]
    found = benchmark.mean_percentile([one, other], [0.8, 0.2])
    np.testing.assert_allclose(found, 0.8 * ranks[0] + 0.2 * ranks[1])
    equal = benchmark.mean_percentile([one, other])
    np.testing.assert_allclose(equal, (ranks[0] + ranks[1]) / 2)


def test_what_a_context_says_beside_the_features_is_measured(load_benchmark):
    """A planted context is found in every half year, and one of noise in none."""
    benchmark, rng = load_benchmark("context_information"), np.random.default_rng(2)
    dates = pd.bdate_range("2020-01-01", "2021-06-30")
    for size in (0.0, 0.3):
        _, features = days_of(len(dates), 20, 3, rng)
        contexts = rng.normal(size=(len(features), 4))
        label = 0.5 * features[:, 0] + size * contexts[:, 2] + rng.normal(size=len(features))
        day = np.repeat(np.arange(len(dates)), 20)
        ranks = pd.Series(label).groupby(day).rank()
        target = ranks.groupby(day).transform(lambda one: (one - one.mean()) / one.std(ddof=0))
        given = (features, contexts, target.to_numpy(), label)
        days = benchmark.Days(*(one.astype(np.float32) for one in given), day, dates)
        found = benchmark.measure(days)
        assert list(found) == ["2020 H1", "2020 H2", "2021 H1"]
        for half in found.values():
            assert half["base"].mean() > 0.25
            t = half["context"].mean() / half["context"].std() * len(half["context"]) ** 0.5
            assert t > 8 if size else abs(t) < 3.5
            assert not size or half["sum"].mean() > half["base"].mean() + 0.03
