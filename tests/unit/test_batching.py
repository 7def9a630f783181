"""Micro-batches: everything is drawn once, within the budget, by threads that leave no trace."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kronos_qlib.errors import ConfigError
from kronos_qlib.inference.batching import MEBIBYTE, Sizes, plan_batches, run_batches
from kronos_qlib.inference.predictor import KronosPredictor


def sizes(make_pair, lookback=90, horizon=10, max_context=512, **network):
    tokenizer, model = make_pair(**network)
    return Sizes(model.config, tokenizer.config, lookback, horizon, max_context, 4)


@given(
    series=st.integers(0, 200),
    paths=st.integers(1, 300),
    memory_mb=st.sampled_from([1, 3, 50, 5000]),
    threads=st.sampled_from([None, 1, 2, 16]),
    horizon=st.sampled_from([1, 10, 300]),
)
def test_every_future_is_drawn_once_within_the_budget(
    make_pair, series, paths, memory_mb, threads, horizon
):
    size = sizes(make_pair, 20, horizon, max_context=100)
    try:
        plan = plan_batches(size, series, paths, memory_mb, threads)
    except ConfigError:
        assert size.batch_bytes(1, 1) > memory_mb * MEBIBYTE
        return
    seen = np.zeros((series, paths), dtype=int)
    for rows, futures in plan.batches(series, paths):
        seen[rows, futures] += 1
        drawn = seen[rows, futures].shape
        assert size.batch_bytes(*drawn) * plan.workers <= memory_mb * MEBIBYTE
    assert (seen == 1).all()
    assert plan.peak_bytes <= memory_mb * MEBIBYTE
    assert plan.workers * plan.threads <= max(threads or 1, 1)


def test_many_paths_of_one_series_are_split(make_pair):
    """Ten thousand futures of one series must not need the memory of ten thousand series."""
    plan = plan_batches(sizes(make_pair), 1, 10_000, 10, 1)
    assert plan.series == 1
    assert 1 < plan.paths < 10_000


def test_few_series_are_spread_over_the_cores(make_pair):
    plan = plan_batches(sizes(make_pair), 40, 20, 2048, 16)
    assert len(plan.batches(40, 20)) >= 8
    assert plan.workers >= 8


@pytest.mark.parametrize("series", [40, 66, 82, 100, 350])
def test_the_last_round_leaves_no_worker_idle(make_pair, series):
    """82 series in batches of 33 were three batches for two workers."""
    plan = plan_batches(sizes(make_pair), series, 5, 2048, 2)
    assert plan.workers == 2
    assert len(plan.batches(series, 5)) % 2 == 0


def test_a_budget_too_small_for_one_path_is_named(make_pair):
    tokenizer, model = make_pair(d_model=256)
    forecaster = KronosPredictor(model, tokenizer, device="cpu", memory_mb=1)
    with pytest.raises(ConfigError, match=r"needs about \d+ MiB, the budget memory_mb is 1;"):
        forecaster.plan(1, 400, 112, 5)


def test_threads_are_as_before_when_all_is_done_or_one_fails(make_pair):
    """Torch's number of threads is process-wide: a forecast must not change the caller's."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        plan = plan_batches(sizes(make_pair), 64, 20, 2048, 2)
        assert plan.workers == 2
        done = []
        batches = plan.batches(64, 20)
        list(run_batches(lambda rows, futures: done.append((rows, futures)), batches, plan))
        assert len(done) == len(batches)
        assert torch.get_num_threads() == 2

        def fail(rows, futures):
            raise ValueError("a bad batch")

        with pytest.raises(ValueError, match="a bad batch"):
            list(run_batches(fail, batches, plan))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
