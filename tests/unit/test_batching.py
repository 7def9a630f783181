"""Micro-batches: everything is drawn once, within the budget, by threads that leave no trace."""

from __future__ import annotations

import threading
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kronos_qlib.errors import ConfigError
from kronos_qlib.inference.batching import MEBIBYTE, Sizes, plan_batches, run_batches
from kronos_qlib.inference.packed import Turn
from kronos_qlib.inference.predictor import KronosPredictor
from kronos_qlib.inference.products import packed_product


def sizes(make_pair, lookback=90, horizon=10, max_context=512, **network):
    tokenizer, model = make_pair(**network)
    return Sizes(model.config, tokenizer.config, lookback, horizon, max_context, 4)


@given(
    series=st.integers(0, 200),
    paths=st.integers(1, 300),
    memory_mb=st.sampled_from([1, 10, 20, 5000]),
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
    plan = plan_batches(sizes(make_pair), 1, 10_000, 20, 1)
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
        done, seen = [], []
        batches = plan.batches(64, 20)
        list(run_batches(lambda rows, futures: done.append((rows, futures)), batches, plan))
        assert len(done) == len(batches)
        assert torch.get_num_threads() == 2
        # Nor may a thread that begins while another forecasts find one thread only.
        later = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
        for number, _ in enumerate(run_batches(lambda rows, futures: None, batches, plan)):
            if not number:
                later.start()
                later.join()
        assert seen == [2]

        def fail(rows, futures):
            raise ValueError("a bad batch")

        with pytest.raises(ValueError, match="a bad batch"):
            list(run_batches(fail, batches, plan))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_a_long_lookback_is_counted_though_the_network_reads_its_end(make_pair):
    """20,000 bars were planned as 2.5 MiB and took 86: the tokenizer encodes them all."""
    long, short = (
        sizes(make_pair, bars, 10, max_context=100).batch_bytes(1, 1) for bars in (20_000, 100)
    )
    assert long > 3 * short


def test_a_table_that_another_worker_replaces_meanwhile(make_pair):
    """Two workers growing one rotary table could slice the shorter one."""
    rotary = make_pair()[1].transformer[0].self_attn.rotary
    bars = torch.ones(1, 40, 2, 8)
    expected = Turn(rotary)(bars, 0)

    class Meddled(Turn):
        def __setattr__(self, name, value):
            shorter = name == "table" and len(value) > 10
            super().__setattr__(name, value[:2] if shorter else value)

    turn = Meddled(rotary)
    assert torch.equal(turn(bars, 0), expected)
    assert len(turn.table) == 2
    assert torch.equal(turn(bars, 0), expected)


def test_one_predictor_serves_several_threads(make_pair):
    tokenizer, model = make_pair()
    forecaster = KronosPredictor(model, tokenizer, device="cpu")
    bars = 50 + np.random.default_rng(0).normal(size=(40, 30, 6)).cumsum(axis=1)
    stamps = np.ones((40, 34, 5), dtype=int)

    def paths(length):
        return forecaster.paths(bars[:, :length], stamps[:, :length], stamps[:, 30:], 4)

    alone = {length: paths(length) for length in (10, 20, 30)}
    with ThreadPoolExecutor(3) as pool:
        together = dict(zip(alone, pool.map(paths, alone), strict=True))
    for length, expected in alone.items():
        np.testing.assert_allclose(together[length], expected, rtol=1e-4)


def test_a_cpu_without_bfloat16_products_draws_all_the_same(make_pair, monkeypatch):
    """oneDNN refuses to pack bfloat16 for older CPUs, in words about avx_ne_convert."""
    monkeypatch.setattr(packed_product, "can_pack", lambda dtype: dtype == torch.float32)
    tokenizer, model = make_pair()
    forecaster = KronosPredictor(model, tokenizer, device="cpu", dtype="bfloat16")
    bars = 50 + np.random.default_rng(0).normal(size=(2, 30, 6)).cumsum(axis=1)
    stamps = np.ones((2, 34, 5), dtype=int)
    drawn = forecaster.paths(bars, stamps[:, :30], stamps[:, 30:], 4, sample_count=3)
    assert np.isfinite(drawn).all()


@pytest.mark.parametrize("lacking", ["namespace", "arguments", "values"])
def test_a_torch_without_the_private_products_draws_the_same(make_pair, monkeypatch, lacking):
    """They are torch's own and may go, or be called otherwise: F.linear then does all of it."""
    tokenizer, model = make_pair()
    bars = 50 + np.random.default_rng(0).normal(size=(2, 30, 6)).cumsum(axis=1)
    stamps = np.ones((2, 34, 5), dtype=int)

    def drawn():
        forecaster = KronosPredictor(model, tokenizer, device="cpu")
        return forecaster.paths(bars, stamps[:, :30], stamps[:, 30:], 4, sample_count=3)

    expected = drawn()
    ops, asked = torch.ops.mkldnn, []

    def product(*args):
        asked.append(args)
        if lacking == "arguments":
            raise TypeError("unexpected arguments")
        return torch.zeros(len(args[0]), 8)

    product.binary = lambda x, *_: torch.zeros_like(x)
    others = {"_linear_pointwise": product, "_reorder_linear_weight": ops._reorder_linear_weight}
    gone = SimpleNamespace(**({} if lacking == "namespace" else others))
    monkeypatch.setattr(torch.ops, "mkldnn", gone)
    packed_product.can_pack.cache_clear()
    try:
        np.testing.assert_allclose(drawn(), expected, rtol=1e-4)
        assert len(asked) <= 2, "asked once, by the trial, and never for a forecast"
    finally:
        packed_product.can_pack.cache_clear()


def stratified_draws(forecaster, paths, horizon):
    bars = 50 + np.random.default_rng(0).normal(size=(1, 8, 6)).cumsum(axis=1)
    stamps = np.ones((1, 8 + horizon, 5), dtype=int)
    return forecaster.paths(
        bars, stamps[:, :8], stamps[:, 8:], horizon, sample_count=paths, stratified=True
    )


def test_random_numbers_are_in_the_budget_too(make_pair, monkeypatch):
    """Those of all paths were made outside the plan: 144 MB here, whatever `memory_mb` was."""
    tokenizer, model = make_pair()
    forecaster = KronosPredictor(model, tokenizer, device="cpu", memory_mb=20)

    def forecast_nothing(packed, bars, stamps, how, uniforms, each_step):
        return np.zeros((len(bars), uniforms.shape[1], uniforms.shape[2], 6), dtype=np.float32)

    monkeypatch.setattr(forecaster, "_forecast", forecast_nothing)
    tracemalloc.start()
    try:
        drawn = stratified_draws(forecaster, 200_000, 10)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < drawn.nbytes + 20 * MEBIBYTE


def test_stratified_paths_do_not_depend_on_the_budget(make_pair):
    tokenizer, model = make_pair()
    narrow, wide = (
        KronosPredictor(model, tokenizer, device="cpu", memory_mb=memory_mb)
        for memory_mb in (12, 2048)
    )
    assert narrow.plan(1, 8, 2, 3000, True).paths < 3000 == wide.plan(1, 8, 2, 3000, True).paths
    drawn = [stratified_draws(forecaster, 3000, 2) for forecaster in (narrow, wide)]
    np.testing.assert_array_equal(*drawn)


def test_more_stratified_paths_than_the_budget_can_sort_are_refused(make_pair):
    size = sizes(make_pair)
    with pytest.raises(ConfigError, match=r"1000000 stratified paths need about 24 MiB .* is 20;"):
        plan_batches(size, 1, 1_000_000, 20, 1, stratified=True)
    assert plan_batches(size, 1, 1_000_000, 20, 1).peak_bytes <= 20 * MEBIBYTE
    plan = plan_batches(size, 1, 1_000_000, 24, 1, stratified=True)
    assert plan.peak_bytes <= 24 * MEBIBYTE
