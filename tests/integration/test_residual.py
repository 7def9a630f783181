"""A member of a blend that learns what another leaves: scores of days that no model had learned."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from qlib.data.dataset.handler import DataHandlerLP
from qlib.data.dataset.loader import QlibDataLoader

from kronos_qlib.data.files.synthetic import MarketConfig, make_market
from kronos_qlib.data.windows.scale_features import standardised_over_day
from kronos_qlib.errors import ConfigError
from kronos_qlib.plugin.blend import BlendModel
from kronos_qlib.plugin.dataset import KronosDataset
from kronos_qlib.plugin.explain.reasons import reasons_of
from kronos_qlib.plugin.lookahead import open_provider
from kronos_qlib.plugin.provider.writer import write_provider
from kronos_qlib.plugin.qlib_internals import metrics_dropped
from kronos_qlib.plugin.residual import residual_source, scores_out_of_fold, split_days

pytestmark = pytest.mark.integration

SEGMENTS = {
    "train": ("2020-02-01", "2020-05-29"),
    "valid": ("2020-06-01", "2020-06-30"),
    "test": ("2020-07-01", "2020-08-31"),
}
AHEAD = 2
LIGHTGBM = {
    "name": "trees",
    "class": "LGBModel",
    "module_path": "qlib.contrib.model.gbdt",
    "kwargs": {"num_leaves": 4, "num_threads": 1, "num_boost_round": 10, "seed": 0},
}
GRU = {
    "name": "gru",
    "class": "GRUModel",
    "module_path": "kronos_qlib.plugin.baselines",
    "kwargs": {"hidden": 4, "training": {"epochs": 1, "hidden": 4}, "device": "cpu",
               "show_progress": False},
}  # fmt: skip
MOMENTUM = {
    "name": "momentum",
    "class": "BaselineModel",
    "module_path": "kronos_qlib.plugin.baselines",
    "kwargs": {"kind": "momentum"},
}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("residual") / "qlib"
    config = MarketConfig(instruments=12, sectors=2, years=0.7, effect=0.4, seed=2)
    write_provider(make_market(config).bars, folder)
    open_provider(folder)
    span = {"start_time": SEGMENTS["train"][0], "end_time": SEGMENTS["test"][1]}
    handler = {
        "class": "Alpha158",
        "module_path": "qlib.contrib.data.handler",
        "kwargs": {
            **span,
            "instruments": "all",
            "label": ["Ref($close, -2) / Ref($close, -1) - 1"],
            "learn_processors": [{"class": "DropnaLabel"}],
        },
    }
    return KronosDataset(handler, SEGMENTS, lookback=10, horizon=3)


class Memory:
    """Knows by heart the label of every row that it has learned, and nothing else."""

    learned: dict

    def fit(self, dataset) -> None:
        table = dataset.prepare("train", col_set=["feature", "label"], data_key="learn")
        self.learned = table["label"].iloc[:, 0].to_dict()
        self.days = set(table.index.get_level_values("datetime"))

    def predict(self, dataset, segment) -> pd.Series:
        rows = dataset.prepare(segment, col_set="feature", data_key="infer").index
        return pd.Series([self.learned.get(row, 0.0) for row in rows], index=rows)


def test_no_row_is_scored_by_a_model_that_has_learned_it(dataset):
    """In-sample scores of such a model are the labels: they would leave nothing."""
    made = []

    def make() -> Memory:
        made.append(Memory())
        return made[-1]

    fitted = make()
    fitted.fit(dataset)
    scores = scores_out_of_fold(make, fitted, dataset, 4, AHEAD)
    assert (scores == 0).all()
    rows = pd.concat([dataset.prepare(name, col_set="feature", data_key="infer")
                      for name in ("train", "valid")]).index  # fmt: skip
    assert scores.index.is_unique
    assert set(scores.index) == set(rows)
    assert len(made) == 5
    for fold in made[1:]:
        assert 0.6 < len(fold.days) / len(fitted.days) < 0.8


@given(days=st.integers(8, 80), folds=st.integers(2, 6), ahead=st.integers(0, 5))
def test_no_label_overlaps_with_those_of_the_days_scored(days, folds, ahead):
    try:
        found = list(split_days(np.arange(days), folds, ahead))
    except ConfigError:
        assert days / folds <= 2 * ahead + days / folds  # too little is left
        return
    assert np.concatenate([scored for scored, _ in found]).tolist() == list(range(days))
    for scored, learned in found:
        apart = np.abs(scored[:, None] - learned[None, :])
        assert apart.min() > ahead
        near = (np.arange(days) >= scored[0] - ahead) & (np.arange(days) <= scored[-1] + ahead)
        assert len(learned) == days - near.sum(), "nothing else is left out"


def test_residuals_are_what_the_scores_leave(dataset):
    source = dataset.source
    windows = source.windows("train")
    rng = np.random.default_rng(0)
    label = pd.Series(source.label.of(windows), index=windows.index)
    scores = label.fillna(0) + 2 * label.std() * rng.normal(size=len(label))
    left = residual_source(source, scores)
    found = left.label.of(windows)
    learned = left.label.of(source.labelled_windows("train"))
    ranks = np.full(len(windows), np.nan)
    for day in windows.moments():
        known = day.start + np.flatnonzero(label.notna().to_numpy()[day])
        ranks[known] = standardised_over_day(scores.to_numpy()[known, None])[:, 0]
    known = np.isfinite(found)
    assert known.sum() == label.notna().sum()
    own = source.labelled_windows("train")
    inside = np.isin(windows.ends[:], own.ends[:]) & known
    assert abs(np.corrcoef(found[inside], ranks[inside])[0, 1]) < 1e-3
    assert np.isfinite(learned).sum() == inside.sum()
    assert left.label.ahead == source.label.ahead
    assert source.label.of(windows)[known] == pytest.approx(label[known]), "the source is as before"


def test_scores_of_other_names_are_refused(dataset):
    strange = pd.Series([1.0], index=pd.MultiIndex.from_tuples(
        [(pd.Timestamp("2020-03-02"), "NOBODY")], names=["datetime", "instrument"]))  # fmt: skip
    with pytest.raises(ConfigError, match="no window of the segment train has both"):
        residual_source(dataset.source, strange)


def test_a_blend_trains_its_head_on_what_the_trees_leave(dataset):
    usual = BlendModel([GRU, LIGHTGBM])
    left = BlendModel([GRU, LIGHTGBM], residual={"of": "trees", "folds": 3})
    for blend in (usual, left):
        with metrics_dropped():  # Qlib's LightGBM wants a run for them
            blend.fit(dataset)
    found, other = left.signals(dataset), usual.signals(dataset)
    assert list(found.columns) == ["score", "gru", "trees"]
    pd.testing.assert_series_equal(found["trees"], other["trees"])
    assert not np.allclose(found["gru"], other["gru"])
    # Why a name stands where it stands.
    day, name = found.index[-1]
    reasons = reasons_of(left, dataset, name, day)
    assert list(reasons.parts) == ["trees"] and not reasons.notes
    assert "reads the raw bars of a window" in reasons.unexplained["gru"]
    with pytest.raises(ConfigError, match="a GRUModel reads the raw bars of a window"):
        reasons_of(left.members["gru"], dataset, name, day)


def test_what_a_head_learned_of_residuals_is_said_where_its_score_is_explained(dataset):
    head = {"epochs": 1, "hidden": 4, "context_width": 0}
    kronos = {
        "class": "KronosModel",
        "module_path": "kronos_qlib.plugin.model",
        "kwargs": {"training": {"alpha": head}, "device": "cpu", "show_progress": False},
        "name": "kronos",
    }
    blend = BlendModel([kronos, LIGHTGBM], residual={"of": "trees", "folds": 2})
    with metrics_dropped():
        blend.fit(dataset)
    day, name = blend.predict(dataset).index[-1]
    reasons = reasons_of(blend, dataset, name, day)
    assert list(reasons.parts) == ["kronos", "trees"]
    [note] = reasons.notes
    assert note.startswith("kronos was trained on what trees leaves of the label")


@pytest.mark.parametrize(
    ("members", "residual", "message"),
    [
        ([GRU, LIGHTGBM], {"of": "forest"}, "'forest' is no member of the blend: gru, trees"),
        ([MOMENTUM, LIGHTGBM], {"of": "trees"}, "a BaselineModel cannot"),
        (
            [GRU, LIGHTGBM],
            {"of": "trees", "folds": 1},
            "folds must be a whole number of at least 2",
        ),
        ([GRU, LIGHTGBM], {"by": "trees"}, "residual has no setting 'by'"),
        (
            [GRU, {**GRU, "name": "other"}],
            {"of": "other"},
            r"residual\.of is a model of tables, as LightGBM, .* other is a GRUModel",
        ),
        (
            [{**GRU, "kwargs": {"training": {"horizons": [1, 5]}}}, LIGHTGBM],
            {"of": "trees"},
            r"gru has horizons \[1, 5\], and what trees leaves is of the label",
        ),
    ],
)
def test_a_residual_that_cannot_work_is_refused(members, residual, message):
    with pytest.raises(ConfigError, match=message):
        BlendModel(members, residual=residual)


def test_folds_are_purged_by_whichever_label_looks_farthest(dataset, monkeypatch):
    """Of trees that learn a week's return beside a head of the next day's."""
    asked = []

    def keep(make, fitted, data, folds, ahead):
        asked.append(ahead)
        return pd.Series(dtype=float)

    monkeypatch.setattr("kronos_qlib.plugin.blend.scores_out_of_fold", keep)
    blend = BlendModel([GRU, LIGHTGBM], residual={"of": "trees"})
    blend._scores_to_leave(blend.residual, dataset)
    loader = QlibDataLoader(
        {"feature": (["$close"], ["C"]), "label": (["Ref($close, -6) / $close - 1"], ["L"])}
    )
    handler = DataHandlerLP("all", data_loader=loader, learn_processors=[], init_data=False)
    near = {"label": "Ref($close, -2) / Ref($close, -1) - 1"}
    week = KronosDataset(handler, SEGMENTS, lookback=10, horizon=3, bar_handler=near)
    blend._scores_to_leave(blend.residual, week)
    assert asked == [AHEAD, 6]
