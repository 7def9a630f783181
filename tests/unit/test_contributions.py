"""What each input added to a name's score: sums that are known, and names that keep theirs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kronos_qlib.data.windows.scale_features import SCALE_FEATURES, standardised_over_day
from kronos_qlib.errors import BarDataError
from kronos_qlib.model.alpha_head import AlphaEnsemble, AlphaHead, compared
from kronos_qlib.model.sizes import ContextConfig
from kronos_qlib.pipeline.contributions import (
    COLUMN,
    CONTEXT,
    SCALE,
    contributions_of_head,
    contributions_of_trees,
)
from kronos_qlib.pipeline.head_inputs import HeadInputs

WIDTH = 6
M = 3
"""Columns of the market's state."""
OPTIONS = [
    {},
    {"linear_path": True},
    {"attention": 2},
    {"outputs": 3},
    {"seeds": 3},
    {"seeds": 2, "attention": 3, "linear_path": True, "outputs": 2},
]
READINGS = [ContextConfig(), ContextConfig(bars=4), ContextConfig(bars=4, layers=(1, 2))]
FEATURES = (*SCALE_FEATURES[:4], "earnings", "news")


def head_of(context_width=3, seed=0, **options):
    """A head whose every weight is drawn anew."""
    torch.manual_seed(seed)
    if options.get("attention"):
        options["market"] = M
    sizes = (WIDTH, len(FEATURES), context_width, 8, 0.1)
    heads = [AlphaHead(*sizes, **options) for _ in range(options.pop("seeds", 1))]
    head = (AlphaEnsemble(heads) if len(heads) > 1 else heads[0]).eval()
    for number, member in enumerate(heads):
        member.fit_market(torch.randn(20, M, generator=torch.Generator().manual_seed(5)))
        if member.across is not None:  # as if it had learned
            for weight in member.across.parameters():
                torch.nn.init.normal_(weight)
        if member.hidden_gate is not None:
            torch.nn.init.constant_(member.hidden_gate, 0.7)
        with torch.no_grad():  # members whose scores are of other sizes
            member.outer.weight *= 1 + 4 * number
    return head


def linear_head(context_width=3, seed=0, **options):
    """One that is linear as a new head with `linear_path` is: its hidden layer's gate is shut."""
    head = head_of(context_width, seed, linear_path=True, **options)
    for number, member in enumerate(head.members):
        torch.nn.init.zeros_(member.hidden_gate)
        with torch.no_grad():
            member.direct.weight *= 1 + 4 * number
    return head


def day_of(names=12, seed=0, width=WIDTH):
    rng = np.random.default_rng(seed)
    features = standardised_over_day(rng.normal(size=(names, len(FEATURES))).astype(np.float32))
    contexts = rng.normal(2.0, 3.0, size=(names, width)).astype(np.float32)
    market = rng.normal(size=M).astype(np.float32)
    return HeadInputs(contexts, features, FEATURES, market), [f"S{place}" for place in range(names)]


@settings(max_examples=30, deadline=None)
@given(
    names=st.integers(3, 30),
    seed=st.integers(0, 5),
    width=st.sampled_from([0, 3]),
    seeds=st.integers(1, 3),
    context=st.sampled_from(READINGS),
    outputs=st.integers(1, 2),
)
def test_contributions_of_a_linear_head_sum_to_the_score_less_the_days_mean(
    names, seed, width, seeds, context, outputs
):
    """An ensemble of linear heads too: each member's counted in its own deviations."""
    head = linear_head(width, seed, seeds=seeds, context=context, outputs=outputs)
    inputs, instruments = day_of(names, seed, WIDTH * context.parts)
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
    head, (inputs, instruments) = head_of(linear_path=True), day_of()
    found = contributions_of_head(head, inputs, instruments, "S5").table
    context, features, _ = inputs.tensors()
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


@pytest.mark.parametrize("options", OPTIONS)
def test_names_in_another_order_keep_their_contributions(options):
    """Rows are found by name: one off by a place would explain another share's score."""
    head, (inputs, instruments) = head_of(**options), day_of()
    order = np.random.default_rng(1).permutation(len(instruments))
    shuffled = HeadInputs(
        inputs.contexts[order], inputs.features[order], inputs.names, inputs.market
    )
    renamed = [instruments[place] for place in order]
    assert renamed != instruments
    for name in instruments:
        one = contributions_of_head(head, inputs, instruments, name)
        other = contributions_of_head(head, shuffled, renamed, name)
        assert one.rank == other.rank
        pd.testing.assert_frame_equal(
            one.table.sort_index(), other.table.sort_index(), rtol=1e-3, atol=1e-5
        )


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("context", READINGS)
def test_leaving_out_is_the_heads_own_score_with_that_input_at_the_days_mean(options, context):
    """By hand: what the head says of the day, for whichever options, and one number changed."""
    head = head_of(**options, context=context)
    inputs, instruments = day_of(width=WIDTH * context.parts)
    found = contributions_of_head(head, inputs, instruments, "S4")
    market = inputs.tensors()[2] if head.usual_market is not None else None
    kinds = found.by_kind()["inputs"]
    assert kinds.to_dict() == {CONTEXT: context.parts, SCALE: 4, COLUMN: 2}

    def scores_of(contexts, features):
        """(members, B), of contexts that are compared."""
        with torch.inference_mode():
            each = [head.of_compared(contexts, features, market) for head in head.members]
        return torch.stack(each).numpy()

    contexts, features, _ = inputs.tensors()
    contexts = compared(contexts)
    before = scores_of(contexts, features)
    scale = before.std(axis=1) if len(before) > 1 else np.ones(1)
    level = before.mean(axis=1) if len(before) > 1 else np.zeros(1)
    own = ((before[:, 4] - level) / scale).mean()
    with torch.inference_mode():
        assert head(*inputs.tensors())[4].item() == pytest.approx(own, abs=1e-5)
    assert found.score == pytest.approx(own, abs=1e-5)
    for name in ("news", SCALE_FEATURES[0]):
        changed = features.clone()
        changed[4, FEATURES.index(name)] = changed[:, FEATURES.index(name)].mean()
        without = ((scores_of(contexts, changed)[:, 4] - level) / scale).mean()
        assert found.table.loc[name, "left_out"] == pytest.approx(own - without, abs=1e-4)
    rows = found.table.index[found.table["kind"] == CONTEXT]
    parts = [CONTEXT] if context.parts == 1 else [f"context: {it}" for it in context.part_names]
    assert sorted(rows) == sorted(parts)
    for place, name in enumerate(parts):
        changed = contexts.clone()
        changed[4, place * WIDTH : (place + 1) * WIDTH] = 0
        without = ((scores_of(changed, features)[:, 4] - level) / scale).mean()
        assert found.table.loc[name, "left_out"] == pytest.approx(own - without, abs=1e-4)


def test_an_ensembles_contributions_are_the_mean_of_its_members_in_their_own_deviations():
    head, (inputs, instruments) = head_of(seeds=3), day_of()
    whole = contributions_of_head(head, inputs, instruments, "S7").table
    each = [contributions_of_head(one, inputs, instruments, "S7") for one in head.members]
    deviations = [one.day_deviation for one in each]
    assert max(deviations) > 2 * min(deviations), "else a plain mean would pass"
    for column in ("contribution", "left_out"):
        parts = [one.table[column] / one.day_deviation for one in each]
        expected = pd.concat(parts, axis=1).mean(axis=1)
        np.testing.assert_allclose(whole[column], expected[whole.index], rtol=1e-3, atol=1e-4)


def test_the_market_moves_a_score_against_a_usual_day_and_is_no_row():
    head, (inputs, instruments) = head_of(attention=2), day_of()
    usual = head.usual_market
    with torch.inference_mode():
        contexts, features, market = inputs.tensors()
        moved = (head(contexts, features, market) - head(contexts, features, usual)).numpy()
    for place in (0, 6):
        found = contributions_of_head(head, inputs, instruments, f"S{place}")
        assert found.market == pytest.approx(moved[place] - moved.mean(), abs=1e-6)
        assert set(found.table.index) == {CONTEXT, *FEATURES}
        assert abs(found.market) > 1e-4
    on_a_usual_day = replace(inputs, market=usual.numpy())
    assert contributions_of_head(head, on_a_usual_day, instruments, "S0").market == 0
    assert contributions_of_head(head_of(), inputs, instruments, "S0").market is None


def test_a_value_that_is_not_known_has_no_percentile_and_counts_in_no_others():
    inputs, instruments = day_of(names=5)
    known = np.ones(inputs.features.shape, dtype=bool)
    known[1, 4] = known[2, 5] = False
    order = inputs.features[:, 5].argsort()
    top = int(order[order != 2][-1])
    found = contributions_of_head(head_of(), inputs, instruments, "S1", known).table
    assert np.isnan(found.loc["earnings", "percentile"])
    assert np.isfinite(found.loc[[SCALE_FEATURES[0], "news"], "percentile"]).all()
    found = contributions_of_head(head_of(), inputs, instruments, f"S{top}", known).table
    assert found.loc["news", "percentile"] == 1


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
