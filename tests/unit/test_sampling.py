"""Logits to ids: what is filtered, what is drawn and how often."""

from __future__ import annotations

import hashlib
import tracemalloc

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from kronos_qlib.inference import sampling
from kronos_qlib.inference.sampling import (
    SamplingConfig,
    keep_top_k,
    keep_top_p,
    path_uniforms,
    place_uniforms,
    sample_ids,
    sorting_bytes,
    uniforms_in,
)

CHANCES = torch.tensor([[0.1, 0.5, 0.05, 0.3, 0.05]])
LOGITS = CHANCES.log()
ALMOST_ONE = 0.99999994
"""The largest float32 below 1."""


def kept(weights):
    return weights[0].nonzero().flatten().tolist()


def config(temperature=1.0, top_k=0, top_p=1.0):
    return SamplingConfig(temperature=temperature, top_k=top_k, top_p=top_p)


def draws(logits, how, uniforms):
    uniforms = torch.as_tensor(uniforms, dtype=torch.float32)
    return sample_ids(logits.expand(len(uniforms), -1), how, uniforms).tolist()


@pytest.mark.parametrize(
    ("k", "tokens"), [(1, [1]), (2, [1, 3]), (3, [0, 1, 3]), (99, [*range(5)])]
)
def test_top_k_keeps_the_likeliest(k, tokens):
    assert kept(keep_top_k(CHANCES, k)) == tokens


@pytest.mark.parametrize(("p", "tokens"), [(0.01, [1]), (0.6, [1, 3]), (0.85, [0, 1, 3])])
def test_the_token_that_crosses_top_p_stays(p, tokens):
    """0.5 and 0.3 together exceed 0.6: dropping the token that crosses would leave one."""
    assert kept(keep_top_p(CHANCES, p)) == tokens


def test_drawing_leaves_the_logits_alone():
    """The published filters write minus infinity into their caller's logits."""
    logits, weights = LOGITS.clone(), CHANCES.clone()
    draws(logits, config(top_k=2, top_p=0.6), [0.5])
    assert torch.equal(logits, LOGITS)
    keep_top_k(weights, 2), keep_top_p(weights, 0.6)
    assert torch.equal(weights, CHANCES)


def test_top_p_applies_after_top_k():
    """The published code forgets top_p when top_k is given."""
    uniforms = np.linspace(0, ALMOST_ONE, 501)
    assert set(draws(LOGITS, config(top_k=3), uniforms)) == {0, 1, 3}
    assert set(draws(LOGITS, config(top_k=3, top_p=0.6), uniforms)) == {1, 3}
    # 0.5 of the 0.8 that top_k leaves is already above 0.6: top_p sees renormalised chances.
    assert set(draws(LOGITS, config(top_k=2, top_p=0.6), uniforms)) == {1}


def test_temperature_zero_takes_the_likeliest():
    """The published code divides by zero."""
    assert draws(LOGITS, config(temperature=0), [0, 0.5, ALMOST_ONE]) == [1, 1, 1]


def test_a_low_temperature_sharpens():
    hot, cold = (
        draws(LOGITS, config(temperature=value), np.linspace(0, ALMOST_ONE, 1001)).count(1)
        for value in (2.0, 0.5)
    )
    assert hot < 500 < 600 < cold


@pytest.mark.parametrize("uniform", [0.0, ALMOST_ONE, 1.0])
@pytest.mark.parametrize("width", [5, 1024])
def test_a_filtered_token_is_never_drawn(uniform, width):
    """Rounding in the cumulative sum must not reach past the last token that is left."""
    rng = torch.Generator().manual_seed(0)
    logits = torch.randn(200, width, generator=rng) * 3
    uniforms = torch.full((200,), uniform)
    ids = sample_ids(logits, config(top_k=3, top_p=0.9), uniforms)
    allowed = keep_top_p(keep_top_k(logits.softmax(dim=-1), 3), 0.9) > 0
    assert allowed.gather(1, ids[:, None]).all()


def test_frequencies_are_the_probabilities():
    uniforms = path_uniforms(3, [b"share"], 1, 10_000).flatten()
    ids = sample_ids(LOGITS.expand(len(uniforms), -1), config(), uniforms)
    counts = np.bincount(ids.numpy(), minlength=5)
    expected = CHANCES[0].double() / CHANCES.sum() * len(uniforms)
    assert chisquare(counts, expected.numpy() * counts.sum() / expected.sum().item()).pvalue > 0.01


def test_chance_depends_on_seed_and_key_only():
    alone = path_uniforms(1, [b"b"], 2, 3)
    together = path_uniforms(1, [b"a", b"b", b"c"], 2, 3)
    assert torch.equal(together[1], alone[0])
    assert not torch.equal(together[0], together[1])
    assert not torch.equal(path_uniforms(2, [b"b"], 2, 3), alone)
    assert ((together >= 0) & (together < 1)).all()


def test_stratified_paths_divide_every_draw_evenly():
    drawn = path_uniforms(4, [b"a", b"b"], 7, 3, stratified=True)
    strata = (drawn * 7).floor().sort(dim=1).values
    assert torch.equal(strata, torch.arange(7.0)[None, :, None, None].expand(2, 7, 3, 2))
    # In an order of its own at every draw, or a path would keep its rank for good.
    ranks = drawn[0].argsort(dim=0).flatten(1).T
    assert len({tuple(rank.tolist()) for rank in ranks}) > 3
    assert torch.equal(drawn[1:], path_uniforms(4, [b"b"], 7, 3, stratified=True))
    assert ((drawn >= 0) & (drawn < 1)).all()


def test_a_stratified_path_alone_is_as_uniform_as_any():
    keys = [str(place).encode() for place in range(4000)]
    first = path_uniforms(0, keys, 3, 1, stratified=True)[:, 0, 0, 0]
    counts = np.histogram(first.numpy(), bins=20, range=(0, 1))[0]
    assert chisquare(counts).pvalue > 0.01


def test_ties_with_the_token_that_crosses_stay():
    """Which of two equal tokens a sort puts first must not decide which one is dropped."""
    assert kept(keep_top_p(torch.tensor([[0.4, 0.3, 0.3]]), 0.5)) == [0, 1, 2]


@pytest.mark.parametrize("tiny", [1e-40, 1e-308])
def test_a_tiny_temperature_takes_the_likeliest(tiny):
    """Logits over 1e-40 were infinite, and their softmax no number; 1e-308 is 0 to a float32."""
    for top_p in (0.9, 1.0):
        how = config(temperature=tiny, top_p=top_p)
        assert draws(LOGITS, how, [0, 0.5, ALMOST_ONE]) == [1] * 3


def test_any_whole_number_is_a_seed():
    """A seed of 2**130, as from a hash, overflowed; negative ones go on giving what they gave."""
    seeds = (-1, 0, 1, 2**64, 2**127)
    firsts = {float(path_uniforms(seed, [b"a"], 1, 1)[0, 0, 0, 0]) for seed in seeds}
    assert len(firsts) == len(seeds)
    path_uniforms(2**130, [b"a"], 1, 1)


@pytest.mark.parametrize(
    ("stratified", "paths", "steps", "digest"),
    [
        (False, 7, 3, "2b7291aaa857b7ee"),
        (False, 301, 5, "f51f967b3dac11f9"),
        (True, 7, 3, "51d19539f33055e0"),
        (True, 1, 1, "46e6ffa9ab883e05"),
        (True, 2000, 2, "2c0961cd1704ee0a"),
        (True, 301, 5, "096fc81e8ffc2abd"),
    ],
)
@pytest.mark.parametrize("chunk", [sampling.CHUNK_DRAWS, 64, 1])
def test_random_numbers_made_in_pieces_are_those_made_at_once(
    monkeypatch, stratified, paths, steps, digest, chunk
):
    """Digests of the numbers before they were made in pieces: no seed may change its paths."""
    monkeypatch.setattr(sampling, "CHUNK_DRAWS", chunk)
    found = path_uniforms(5, [b"a", b"SH600000", b""], paths, steps, stratified)
    assert hashlib.sha256(found.numpy().tobytes()).hexdigest()[:16] == digest


def test_a_hundred_thousand_stratified_paths_take_no_memory_beside_the_result():
    """A million draws of ten bars took 614 MB that no budget knew of."""
    paths, steps = 100_000, 10
    room = np.empty((1, paths, steps, 6), dtype=np.float32)
    tracemalloc.start()
    try:
        place_uniforms(room, 0, [b"a"], stratified=True)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < sorting_bytes(paths) + 2**21
    drawn = uniforms_in(room)[0]
    strata = np.sort((drawn.astype(np.float64) * paths).astype(int), axis=0)
    assert np.abs(strata - np.arange(paths)[:, None, None]).max() <= 1  # float32 rounds at an edge
