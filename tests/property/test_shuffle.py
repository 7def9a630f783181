"""The shuffle and the sampler: every window once, in an order that only the key decides."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from kronos_qlib.data.windows.bar_table import BarTable
from kronos_qlib.data.windows.find import windows_to_train
from kronos_qlib.errors import ConfigError
from kronos_qlib.schema import BAR_COLUMNS
from kronos_qlib.training import batches
from kronos_qlib.training.batches import EpochSampler, Segment, permuted, shuffled


@settings(max_examples=60)
@given(size=st.integers(1, 5000), seed=st.integers(0, 2**40), epoch=st.integers(0, 50))
def test_a_shuffle_is_the_permutation_of_numpy(size, seed, epoch):
    """The order in which runs were trained before stays theirs."""
    order = shuffled(size, seed, epoch)
    assert order.dtype == np.int32, "half of numpy's own room"
    np.testing.assert_array_equal(order, np.random.default_rng((seed, epoch)).permutation(size))
    assert sorted(order.tolist()) == list(range(size))


def test_ranks_split_the_batches_that_one_process_takes():
    """The shuffle is shared: three ranks take one process's steps, on the same windows."""
    size, batch = 103, 10
    whole = list(EpochSampler(size, batch, seed=1).epoch(2))
    parts = [list(EpochSampler(size, batch, seed=1, rank=r, ranks=3).epoch(2)) for r in range(3)]
    assert len({len(part) for part in parts}) == 1
    for step, one in enumerate(whole):
        split = np.concatenate([part[step] for part in parts])
        assert sorted(split.tolist()) == sorted(one.tolist())
    assert sorted(np.concatenate(whole).tolist()) == list(range(size))


@pytest.mark.parametrize("limit", [None, 57])
def test_an_epoch_goes_on_where_it_was_left(limit):
    sampler = EpochSampler(103, 10, seed=1, limit=limit)
    whole = [batch.tolist() for batch in sampler.epoch(4)]
    assert len(whole) == len(sampler)
    for done in range(len(sampler) + 1):
        assert [batch.tolist() for batch in sampler.epoch(4, start=done)] == whole[done:]


def test_the_order_hangs_on_seed_and_epoch_alone():
    def order(seed, epoch):
        return np.concatenate(list(EpochSampler(500, 50, seed=seed).epoch(epoch))).tolist()

    assert order(0, 1) == order(0, 1)
    assert len({tuple(order(seed, epoch)) for seed in range(3) for epoch in range(3)}) == 9


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        ({"size": 0, "batch_size": 5}, "at least 1, got 0"),
        ({"size": 5, "batch_size": 0}, "at least 1, got 5, 0"),
        ({"size": 5, "batch_size": 5, "limit": 0}, "at least 1"),
        ({"size": 5, "batch_size": 5, "seed": -1}, "seed must not be negative"),
        ({"size": 5, "batch_size": 5, "rank": 2, "ranks": 2}, "rank must lie from 0 to 1"),
    ],
)
def test_a_sampler_that_cannot_work_is_refused(settings_, message):
    with pytest.raises(ConfigError, match=message):
        EpochSampler(**{"seed": 0, **settings_})


def test_two_loader_workers_see_every_window_once():
    """Fault 3: workers that share a generator and ignore the index repeat each other's windows."""
    days = pd.bdate_range("2024-01-01", periods=40)
    index = pd.MultiIndex.from_product([list("abc"), days])
    values = np.random.default_rng(0).uniform(1, 9, (len(index), len(BAR_COLUMNS)))
    table = BarTable.from_frame(
        pd.DataFrame(values, index=index, columns=list(BAR_COLUMNS)), invalid="keep"
    )
    segment = Segment(windows_to_train(table, 5, 2))
    batches = list(EpochSampler(len(segment), 8, seed=0).epoch(1))
    loader = DataLoader(
        segment,
        batch_size=None,
        sampler=batches,
        num_workers=2,
        multiprocessing_context="spawn",
    )
    loaded = list(loader)
    assert sum(len(batch) for batch in loaded) == len(segment)
    for which, batch in zip(batches, loaded, strict=True):
        assert batch.z.equal(segment.batch(which).z)
    seen = {batch.z[row].numpy().tobytes() for batch in loaded for row in range(len(batch))}
    assert len(seen) == len(segment)


@given(size=st.integers(1, 700), seed=st.integers(0, 9), epoch=st.integers(0, 5))
def test_an_order_that_is_computed_place_by_place_is_one_too(size, seed, epoch):
    order = permuted(np.arange(size), size, seed, epoch)
    assert np.array_equal(np.sort(order), np.arange(size))
    some = np.arange(0, size, 3)
    assert np.array_equal(permuted(some, size, seed, epoch), order[some])
    if size > 200:
        assert not np.array_equal(order, permuted(np.arange(size), size, seed, epoch + 1))
        assert abs(np.corrcoef(order, np.arange(size))[0, 1]) < 0.4


def test_epochs_of_more_windows_than_an_order_has_room_for(monkeypatch):
    sampler = EpochSampler(12_000_000_000, 50, seed=1)
    batch = next(sampler.epoch(1, start=200_000_000))
    assert len(batch) == 50 and batch.min() >= 0 and batch.max() < 12_000_000_000
    assert (np.diff(batch) > 0).all()
    monkeypatch.setattr(batches, "MOST_SHUFFLED", 10)
    small = EpochSampler(103, 10, seed=1)
    assert sorted(np.concatenate(list(small.epoch(2))).tolist()) == list(range(103))
    few = EpochSampler(103, 10, seed=1, limit=25)
    assert len(set(np.concatenate(list(few.epoch(2))).tolist())) == 25
