"""What each input added to a name's score: sums that are known, and names that keep theirs."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kronos_qlib.data.windows.scale_features import SCALE_FEATURES, standardised_over_day
from kronos_qlib.errors import BarDataError
from kronos_qlib.model.alpha_head import AlphaHead, compared
from kronos_qlib.pipeline.contributions import (
    COLUMN,
    CONTEXT,
    SCALE,
    contributions_of_head,
    contributions_of_trees,
)
from kronos_qlib.pipeline.scoring import HeadInputs

WIDTH = 6
FEATURES = (*SCALE_FEATURES[:4], "earnings", "news")


class LinearHead(AlphaHead):
    """Weights on the inputs and nothing else."""

    def of_compared(self, context: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        parts = [features] if self.narrow is None else [self.narrow(context), features]
        return (torch.cat(parts, dim=-1) @ self.inner.weight.T).sum(-1)


def head_of(kind=AlphaHead, context_width=3, seed=0):
    torch.manual_seed(seed)
    return kind(WIDTH, len(FEATURES), context_width, 5, 0.1).eval()


def day_of(names=12, seed=0, width=WIDTH):
    rng = np.random.default_rng(seed)
    features = standardised_over_day(rng.normal(size=(names, len(FEATURES))).astype(np.float32))
    contexts = rng.normal(2.0, 3.0, size=(names, width)).astype(np.float32)
    return HeadInputs(contexts, features, FEATURES), [f"S{place}" for place in range(names)]


@given(st.integers(3, 30), st.integers(0, 5), st.sampled_from([0, 3]))
def test_contributions_of_a_linear_head_sum_to_the_score_less_the_days_mean(names, seed, width):
    head = head_of(LinearHead, width, seed)
    inputs, instruments = day_of(names, seed)
    scores = head(*inputs.tensors()).detach().numpy()
    for place in (0, names - 1):
        found = contributions_of_head(head, inputs, instruments, instruments[place])
        assert found.score == pytest.approx(scores[place], abs=1e-5)
        assert found.table["contribution"].sum() == pytest.approx(
            scores[place] - scores.mean(), abs=1e-4
        )
        assert found.rest == pytest.approx(0, abs=1e-4)
        np.testing.assert_allclose(
            found.table["left_out"], found.table["contribution"], rtol=1e-3, atol=1e-4
        )
        assert found.agreement == pytest.approx(1, abs=1e-3)
        assert found.rank == 1 + (scores > scores[place]).sum() and found.names == names


def test_each_kind_of_input_has_its_own_row():
    inputs, instruments = day_of()
    found = contributions_of_head(head_of(), inputs, instruments, "S3")
    assert set(found.table.index) == {CONTEXT, *FEATURES}
    kinds = found.table["kind"]
    assert kinds[CONTEXT] == CONTEXT and kinds["news"] == COLUMN
    assert kinds[SCALE_FEATURES[0]] == SCALE
    assert found.by_kind()["inputs"].to_dict() == {CONTEXT: 1, SCALE: 4, COLUMN: 2}
    assert found.by_kind()["contribution"].sum() == pytest.approx(found.table["contribution"].sum())
    assert found.table["contribution"].abs().is_monotonic_decreasing
    without = contributions_of_head(head_of(context_width=0), day_of(width=0)[0], instruments, "S3")
    assert set(without.table.index) == set(FEATURES)


def test_gradients_are_those_of_finite_differences_and_the_day_stays_as_it_was():
    head, (inputs, instruments) = head_of(), day_of()
    found = contributions_of_head(head, inputs, instruments, "S5").table
    context, features = inputs.tensors()
    context, step = compared(context), 1e-3

    def moved(by, column=None):
        one, other = context.clone(), features.clone()
        if column is None:
            one[5] *= 1 + by
        else:
            other[5, column] *= 1 + by
        with torch.no_grad():
            return head.of_compared(one.double(), other.double())[5].item()

    head = head.double()
    for name, column in [(CONTEXT, None), *((name, at) for at, name in enumerate(FEATURES))]:
        slope = (moved(step, column) - moved(-step, column)) / (2 * step)
        assert found.loc[name, "contribution"] == pytest.approx(slope, abs=1e-4)


def test_names_in_another_order_keep_their_contributions():
    """Rows are found by name: one off by a place would explain another share's score."""
    head, (inputs, instruments) = head_of(), day_of()
    order = np.random.default_rng(1).permutation(len(instruments))
    shuffled = HeadInputs(inputs.contexts[order], inputs.features[order], inputs.names)
    renamed = [instruments[place] for place in order]
    assert renamed != instruments
    for name in instruments:
        one = contributions_of_head(head, inputs, instruments, name)
        other = contributions_of_head(head, shuffled, renamed, name)
        assert one.rank == other.rank
        pd.testing.assert_frame_equal(
            one.table.sort_index(), other.table.sort_index(), rtol=1e-3, atol=1e-5
        )


def test_an_input_that_is_the_same_for_all_adds_nothing():
    inputs, instruments = day_of()
    flat = inputs.features.copy()
    flat[:, 2] = 0.0
    found = contributions_of_head(
        head_of(), HeadInputs(inputs.contexts, flat, FEATURES), instruments, "S1"
    ).table.loc[FEATURES[2]]
    assert found["contribution"] == found["left_out"] == 0
    assert found["percentile"] == 0.5


def test_weights_stay_and_no_gradient_is_left():
    head, (inputs, instruments) = head_of(), day_of()
    before = {name: weight.clone() for name, weight in head.state_dict().items()}
    contributions_of_head(head, inputs, instruments, "S1")
    assert all(torch.equal(before[name], weight) for name, weight in head.state_dict().items())
    assert all(weight.grad is None for weight in head.parameters())


def test_a_name_that_was_not_scored_is_named():
    inputs, instruments = day_of()
    with pytest.raises(BarDataError, match="S99 is not among the 12 names"):
        contributions_of_head(head_of(), inputs, instruments, "S99")


@pytest.fixture(scope="module")
def trees():
    """Trees on columns of which two matter, and a day of 40 names."""
    lightgbm = pytest.importorskip("lightgbm")
    rng = np.random.default_rng(0)
    columns = ["A", "B", "NOISE", "CONTEXT0", "CONTEXT1"]
    table = pd.DataFrame(rng.normal(size=(600, 5)), columns=columns)
    target = table["A"] - 2 * table["B"] + 0.5 * table["CONTEXT1"]
    settings = {"num_leaves": 8, "verbose": -1, "num_threads": 1, "min_data_in_leaf": 5}
    booster = lightgbm.train(settings, lightgbm.Dataset(table, target), num_boost_round=40)
    day = table.head(40).set_axis([f"S{place}" for place in range(40)])
    return booster, day


def test_shap_values_sum_to_the_score_less_the_days_mean(trees):
    booster, day = trees
    scores = booster.predict(day.to_numpy())
    for place in (0, 7, 39):
        found = contributions_of_trees(
            booster, day, f"S{place}", {"CONTEXT0": CONTEXT, "CONTEXT1": CONTEXT}
        )
        assert found.score == pytest.approx(scores[place])
        assert found.rest == pytest.approx(0, abs=1e-9)
        assert set(found.table.index) == {"A", "B", "NOISE", CONTEXT}
        assert found.agreement > 0.9
    assert found.by_kind()["inputs"].to_dict() == {CONTEXT: 1, COLUMN: 3}


def test_shap_follows_the_name_and_its_columns(trees):
    booster, day = trees
    high = day["B"].idxmax()
    found = contributions_of_trees(booster, day.sample(frac=1, random_state=0), high)
    assert found.table.index[0] == "B" and found.table["contribution"].iloc[0] < 0
    assert found.table.loc["B", "percentile"] == 1
    assert abs(found.table.loc["NOISE", "contribution"]) < 0.1 * abs(
        found.table.loc["B", "contribution"]
    )
    pd.testing.assert_frame_equal(found.table, contributions_of_trees(booster, day, high).table)


def test_a_missing_value_of_a_table_has_no_standing(trees):
    booster, day = trees
    gone = day.copy()
    gone.loc["S3", "A"] = np.nan
    gone["NOISE"] = np.nan
    found = contributions_of_trees(booster, gone, "S3")
    assert np.isnan(found.table.loc["A", "percentile"])
    assert np.isnan(found.table.loc["NOISE", "percentile"])
    assert found.table.loc["NOISE", "left_out"] == 0
    assert found.rest == pytest.approx(0, abs=1e-9)
    assert np.isfinite(found.table[["contribution", "left_out"]]).all(axis=None)
