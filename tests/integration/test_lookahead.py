"""No look-ahead: every bar after a random t is replaced, and nothing at or before t may change."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from kronos_qlib.data.files.synthetic import MarketConfig, make_market
from kronos_qlib.data.windows.gather import gather
from kronos_qlib.errors import BarDataError, ConfigError, LookaheadError
from kronos_qlib.plugin.dataset import KronosDataset
from kronos_qlib.plugin.lookahead import (
    check_lookahead,
    compare_scores,
    open_provider,
    replaced_after,
)
from kronos_qlib.plugin.model import KronosModel
from kronos_qlib.plugin.provider.writer import write_provider

pytestmark = pytest.mark.integration

LOOKBACK, LEAST, HORIZON = 40, 25, 5


@pytest.fixture(scope="module")
def markets(make_minutes):
    config = MarketConfig(instruments=6, sectors=2, years=0.7, effect=0.5, seed=11)
    daily = make_market(config).bars
    return {"day": daily, "5min": make_minutes(instruments=4, days=4)}


def what_is_known(folder, freq: str, segments) -> dict[str, pd.DataFrame]:
    """Scores, windows as they are gathered, and the handler's fields, all by (time, name)."""
    open_provider(folder, freq, "cn")
    handler = {
        "class": "KronosHandler",
        "module_path": "kronos_qlib.plugin.dataset",
        "kwargs": {"freq": freq},
    }
    dataset = KronosDataset(
        handler, segments, lookback=LOOKBACK, horizon=HORIZON, min_bars=LEAST,
        beyond_calendar="XSHG",
    )  # fmt: skip
    known = {}
    for name, windows in (
        ("to score", dataset.windows("all")),
        ("to train", dataset.training_windows("all")),
    ):
        batch = gather(windows, np.arange(len(windows)))
        parts = (batch.z, batch.stamps, batch.counted)
        flat = np.concatenate([part.reshape(len(windows), -1) for part in parts], axis=1)
        index = windows.index
        if windows.ahead:  # known when its horizon is
            ended = windows.table.times_at(windows.ends[:] + windows.ahead)
            index = pd.MultiIndex.from_arrays([ended, index.get_level_values(1)], names=index.names)
        known[name] = pd.DataFrame(flat, index=index)
    known["fields"] = dataset.prepare("all", col_set="feature")
    model = KronosModel(sampling={"paths": 2}, device="cpu", show_progress=False, max_context=50)
    known["scores"] = model.predict(dataset, "scored").to_frame()
    return known


@pytest.mark.parametrize("freq", ["day", "5min"])
@pytest.mark.parametrize("seed", [0, 1])
def test_nothing_known_at_t_changes_when_every_later_bar_does(markets, tmp_path, freq, seed):
    bars = markets[freq]
    times = np.unique(bars["date"].to_numpy())
    t = pd.Timestamp(np.random.default_rng(seed).choice(times[LOOKBACK + 5 : -10]))
    at = np.searchsorted(times, t.to_datetime64())
    segments = {
        "all": (times[0], times[-1]),
        "scored": (times[at - 4], times[min(at + 4, len(times) - 1)]),
    }
    write_provider(bars, tmp_path / "before", freq=freq)
    write_provider(replaced_after(bars, t, seed=seed), tmp_path / "after", freq=freq)
    before, after = (what_is_known(tmp_path / name, freq, segments) for name in ("before", "after"))
    assert len(before["scores"]) > 8
    for name in before:
        compared, later, moved = compare_scores(before[name], after[name], t)
        assert compared, name
        assert later, name
        # The fields of a bar that is not there are NaN before and after.
        assert moved > 0.8 * later, f"{name}: the later bars were to change something"


# What follows holds other models to the same, and shows what is found of a leak.

SEGMENTS = {
    "train": ("2020-03-02", "2020-05-29"),
    "valid": ("2020-06-01", "2020-06-30"),
    "test": ("2020-07-01", "2020-08-20"),
}
MOMENTS = ["2020-07-20", "2020-08-07"]
LABEL = "Ref($close, -2) / Ref($close, -1) - 1"
FEATURES = [
    "$close / Ref($close, 1) - 1",
    "$close / Ref($close, 5) - 1",
    "Std($close, 10) / $close",
]


def scores_of_trees(*features: str, label: str = LABEL):
    """LightGBM trained anew on the folder's bars."""

    def scores_of(folder):
        from qlib.contrib.model.gbdt import LGBModel
        from qlib.data.dataset import DatasetH
        from qlib.data.dataset.handler import DataHandlerLP

        fields = {"feature": (list(features), [f"f{n}" for n in range(len(features))])}
        fields["label"] = ([label], ["LABEL0"])
        handler = DataHandlerLP(
            "all",
            data_loader={"class": "QlibDataLoader", "kwargs": {"config": fields}},
            learn_processors=["DropnaLabel"],
        )
        model = LGBModel(
            num_boost_round=10, num_leaves=4, num_threads=1, min_data_in_leaf=10, seed=0
        )
        dataset = DatasetH(handler, SEGMENTS)
        model.fit(dataset)
        scores = model.predict(dataset)
        assert scores.nunique() > 10
        return scores

    return scores_of


def scores_of_head(folder):
    """An alpha head trained anew, on the ranking of each day's labels."""
    handler = {"class": "KronosHandler", "module_path": "kronos_qlib.plugin.dataset"}
    dataset = KronosDataset(
        {**handler, "kwargs": {"label": LABEL}}, SEGMENTS, lookback=LOOKBACK, horizon=HORIZON
    )
    model = KronosModel(training={"alpha": {"epochs": 1}}, device="cpu", show_progress=False)
    model.fit(dataset)
    return model.signals(dataset)


OPTIONS = {
    "pooled contexts": {"context": {"bars": 5, "layers": [2, 3]}},
    "attention across names": {"attention": 4, "hidden": 16},
    "horizons": {"horizons": [1, 2, 5], "drop_extremes": 0.05},
    "all": {
        "context": {"bars": 5, "layers": [2, 3], "dtype": "float16"},
        "attention": 4,
        "hidden": 16,
        "horizons": [1, 2, 5],
        "drop_extremes": 0.05,
        "linear_path": True,
        "seeds": 2,
    },
}


@pytest.fixture(scope="module")
def shared_contexts(tmp_path_factory):
    """One folder for all bars of a check: what is found there must be of the very same bars."""
    return tmp_path_factory.mktemp("contexts")


@pytest.mark.parametrize("option", OPTIONS)
def test_no_option_of_a_head_reads_later_bars(markets, option, shared_contexts):
    """Contexts come from one folder, so a file of other bars would show too."""

    def scores_of(folder):
        handler = {"class": "KronosHandler", "module_path": "kronos_qlib.plugin.dataset"}
        dataset = KronosDataset(
            {**handler, "kwargs": {"label": LABEL}}, SEGMENTS, lookback=LOOKBACK, horizon=HORIZON
        )
        model = KronosModel(
            training={"alpha": {"epochs": 2, **OPTIONS[option]}},
            device="cpu",
            show_progress=False,
            contexts_folder=str(shared_contexts),
        )
        model.fit(dataset)
        return model.signals(dataset)

    report = check_lookahead(markets["day"], scores_of, MOMENTS[:1])
    assert report.compared > 50
    assert report.moved > 0.5


def test_a_neutral_head_reads_no_later_bars(shared_contexts):
    """Its scores depend on all names of their day, and on those alone."""
    config = MarketConfig(instruments=90, sectors=2, years=0.5, effect=0.5, seed=11)
    segments = {
        "train": ("2020-03-02", "2020-04-10"),
        "valid": ("2020-04-13", "2020-04-24"),
        "test": ("2020-04-27", "2020-05-22"),
    }

    def scores_of(folder):
        handler = {"class": "KronosHandler", "module_path": "kronos_qlib.plugin.dataset"}
        dataset = KronosDataset(
            {**handler, "kwargs": {"label": LABEL}}, segments, lookback=LOOKBACK, horizon=HORIZON
        )
        model = KronosModel(
            training={"alpha": {"epochs": 2, "neutral": True}},
            device="cpu",
            show_progress=False,
            contexts_folder=str(shared_contexts),
        )
        model.fit(dataset)
        scores = model.signals(dataset)
        assert scores["score"].std() > 0
        return scores

    report = check_lookahead(make_market(config).bars, scores_of, ["2020-05-08"])
    assert report.compared > 500
    assert report.moved > 0.5


@pytest.mark.parametrize("scores_of", [scores_of_trees(*FEATURES), scores_of_head])
def test_models_that_are_trained_on_the_way_are_honest(markets, scores_of):
    report = check_lookahead(markets["day"], scores_of, MOMENTS)
    assert report.moments == tuple(map(pd.Timestamp, MOMENTS))
    assert report.compared > 100
    assert report.moved > 0.5


def test_a_label_shifted_by_a_day_is_caught(markets):
    """Tomorrow's return is learned and is known: only the moment's own scores are past the mark."""
    tomorrow = "Ref($close, -1) / $close - 1"
    leaking = scores_of_trees(*FEATURES, tomorrow, label=tomorrow)
    with pytest.raises(LookaheadError, match=r"SYM\d+ at 2020-08-07 00:00:00 changes: \w+ turns"):
        check_lookahead(markets["day"], leaking, MOMENTS[1:])


def prices(folder, expression: str) -> pd.Series:
    from qlib.data import D

    table = D.features(D.instruments("all"), [expression], "2020-06-01", "2020-08-20")
    return table.iloc[:, 0].swaplevel().rename("score").sort_index()


def test_what_a_whole_period_says_is_caught_on_its_first_day(markets):
    def standardised(folder):
        score = prices(folder, "$close / Ref($close, 5) - 1")
        return (score - score.mean()) / score.std()

    with pytest.raises(LookaheadError, match=r"SYM0001 at 2020-06-01 00:00:00 changes: \w+ turns"):
        check_lookahead(markets["day"], standardised, MOMENTS[:1])


def test_a_score_only_for_those_that_trade_tomorrow_is_caught(markets):
    def survivors(folder):
        score = prices(folder, "$close / Ref($close, 5) - 1")
        tomorrow = prices(folder, "Ref($close, -1)")
        return score[tomorrow.notna()]

    with pytest.raises(LookaheadError, match=r"at 2020-07-20 .* its score is gone"):
        check_lookahead(markets["day"], survivors, MOMENTS[:1], suspended=0.9)


def test_a_check_that_shows_nothing_is_refused(markets):
    bars = markets["day"]
    steady = prices_once(bars)
    rng = np.random.default_rng(0)
    with pytest.raises(ConfigError, match="read the folder that is given"):
        check_lookahead(bars, lambda folder: steady, MOMENTS[:1])
    with pytest.raises(ConfigError, match="seed what it draws"):
        check_lookahead(bars, lambda folder: steady + rng.normal(), MOMENTS[:1])
    with pytest.raises(ConfigError, match="one moment or more"):
        check_lookahead(bars, lambda folder: steady, [])
    with pytest.raises(BarDataError, match="does not part them"):
        check_lookahead(bars, lambda folder: steady, ["2030-01-01"])


def prices_once(bars: pd.DataFrame) -> pd.Series:
    index = pd.MultiIndex.from_frame(bars[["date", "symbol"]], names=["datetime", "instrument"])
    return pd.Series(bars["close"].to_numpy(), index=index, name="score").sort_index()
