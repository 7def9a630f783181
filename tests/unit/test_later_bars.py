"""Columns of an alpha head, without Qlib: no expression reads later bars, no gap is filled."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kronos_qlib.data.windows.scale_features import standardised_over_day
from kronos_qlib.errors import ConfigError
from kronos_qlib.plugin.expressions import check_no_later_bars, reach_of

WRAPPED = ("{}", "Mean({}, 5)", "{} / $open - 1", "If({} > $open, 1, 0)", "Abs(Log({}))")
SHIFTED = st.tuples(st.integers(-9, 9), st.integers(-9, 9), st.sampled_from(WRAPPED))


@given(SHIFTED)
def test_an_expression_passes_only_if_its_net_shift_is_not_ahead(drawn):
    inner, outer, wrapped = drawn
    text = wrapped.format(f"Ref(Ref($close, {inner}), {outer})")
    ahead = max(0, -(inner + outer))
    if ahead == 0:
        check_no_later_bars(text, "features")
        assert reach_of(text).furthest == 0
    else:
        with pytest.raises(ConfigError, match=rf"reads {ahead} bars? after its own"):
            check_no_later_bars(text, "features")


@pytest.mark.parametrize(
    "shift", ["0-1", "-1.0", "1 - 2", "int(-1)", "-(1)*1", "$volume", "True", "'-1'"]
)
@pytest.mark.parametrize("operator", ["Ref", "Delta"])
def test_a_shift_that_is_no_whole_number_as_it_stands_is_refused(operator, shift):
    """Qlib evaluates it as Python, and then reads ahead."""
    with pytest.raises(ConfigError, match="shifts by something else than a whole number"):
        check_no_later_bars(f"Mean({operator}($close, {shift}), 3)", "features")


def test_a_look_back_by_a_signed_number_passes():
    check_no_later_bars("Ref($close, +5) / Delta($close, 3)", "features")
    with pytest.raises(ConfigError, match="reads 3 bars after"):
        check_no_later_bars("Delta($close, -3)", "features")


@given(st.lists(st.one_of(st.just(float("nan")), st.floats(-1e6, 1e6, width=32)), min_size=2))
def test_what_is_not_known_is_the_median_and_moves_no_other(values):
    column = np.array(values, dtype=np.float32)
    ranks = standardised_over_day(column[:, None])[:, 0]
    known = np.isfinite(column)
    assert (ranks[~known] == 0).all()
    if known.any():
        alone = standardised_over_day(column[known][:, None])[:, 0]
        np.testing.assert_allclose(ranks[known], alone, rtol=1e-6, atol=1e-7)
        assert abs(ranks[known].mean()) < 1e-5


def test_an_infinite_value_is_the_largest_and_no_gap():
    ranks = standardised_over_day(np.array([[1.0], [np.inf], [2.0], [-np.inf]], np.float32))[:, 0]
    assert np.argsort(ranks).tolist() == [3, 0, 2, 1]
