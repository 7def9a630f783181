"""Generation over random sizes: the cache, the batch and the decoder change no token."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kronos_qlib.inference.generate import decode_drawn, generate
from kronos_qlib.inference.packed import PackedKronos, PackedTokenizer
from kronos_qlib.inference.predictor import KronosPredictor
from kronos_qlib.inference.sampling import SamplingConfig, path_uniforms, sample_ids

networks = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 3),
        "s1_bits": st.integers(1, 5),
        "s2_bits": st.integers(1, 5),
        "d_model": st.sampled_from([8, 16, 24]),
        "n_heads": st.sampled_from([1, 2, 4]),
        "n_layers": st.integers(1, 3),
        "learn_te": st.booleans(),
    }
)
settings_of_sampling = st.builds(
    SamplingConfig,
    paths=st.integers(1, 3),
    temperature=st.sampled_from([0.0, 0.6, 1.0]),
    top_k=st.sampled_from([0, 1, 3]),
    top_p=st.sampled_from([0.5, 0.9, 1.0]),
    rotate_s2=st.booleans(),
)
shapes = st.fixed_dictionaries(
    # A context of 1 to 60 makes windows that fit, slide and are cut, and horizons beyond it.
    {
        "windows": st.integers(1, 3),
        "lookback": st.integers(2, 9),
        "horizon": st.sampled_from([1, 2, 3, 4, 7, 18, 35]),
        "max_context": st.one_of(st.integers(1, 12), st.integers(13, 60)),
    }
)


def tokens_of(tokenizer, windows, length, seed=0):
    rng = np.random.default_rng(seed)
    return tuple(
        torch.from_numpy(rng.integers(0, 2**bits, (windows, length)))
        for bits in (tokenizer.s1_bits, tokenizer.s2_bits)
    )


def stamps_for(windows, length):
    fields = np.random.default_rng(1).integers(0, (60, 24, 7, 32, 13), (windows, length, 5))
    return torch.from_numpy(fields)


def chances(how, windows, horizon):
    return path_uniforms(5, [bytes([place]) for place in range(windows)], how.paths, horizon)


@settings(max_examples=60)
@given(sizes=networks, how=settings_of_sampling, shape=shapes)
def test_the_cache_changes_no_token(make_pair, generate_plainly, sizes, how, shape):
    """Cached keys must be those a fresh reading would give, also when the window slides."""
    tokenizer, model = make_pair(**sizes)
    windows, horizon = shape["windows"], shape["horizon"]
    tokens = tokens_of(tokenizer, windows, shape["lookback"])
    stamps = stamps_for(windows, shape["lookback"] + horizon)
    uniforms = chances(how, windows, horizon)
    asked = (tokens, stamps, horizon, how, uniforms, shape["max_context"])
    cached, plain = generate(PackedKronos(model), *asked), generate_plainly(model, *asked)
    assert cached[0].shape == (windows * how.paths, horizon)
    assert torch.equal(cached[0], plain[0])
    assert torch.equal(cached[1], plain[1])


@settings(max_examples=40)
@given(sizes=networks, shape=shapes, paths=st.integers(1, 3))
def test_decoding_ahead_is_plain_decoding(make_pair, sizes, shape, paths):
    """The prompt decoded once for all paths gives the bars of the joined tokens."""
    tokenizer, _ = make_pair(**sizes)
    windows, horizon, context = shape["windows"], shape["horizon"], shape["max_context"]
    before = tokens_of(tokenizer, windows, shape["lookback"])
    drawn = tokens_of(tokenizer, windows * paths, horizon, seed=1)
    found, newest = decode_drawn(PackedTokenizer(tokenizer), before, drawn, paths, context)
    joined = [
        torch.cat((past.repeat_interleave(paths, dim=0), ahead), dim=1)[:, -context:]
        for past, ahead in zip(before, drawn, strict=True)
    ]
    decoded = tokenizer.decode(joined)
    expected = decoded[:, -horizon:]
    assert found.shape == (windows * paths, horizon, 6)
    assert newest.shape == (windows, 6)
    if horizon < decoded.shape[1]:
        seen = decoded[::paths, -horizon - 1]
        torch.testing.assert_close(newest, seen, rtol=1e-5, atol=1e-5)
    # A horizon beyond the context has earlier bars too; the last `context` are the same.
    torch.testing.assert_close(found[:, -expected.shape[1] :], expected, rtol=1e-5, atol=1e-5)
    assert torch.isfinite(found).all()


@settings(max_examples=40)
@given(seed=st.integers(0, 999), how=settings_of_sampling, rows=st.integers(1, 4))
def test_drawing_leaves_the_logits_alone(seed, how, rows):
    """The published filter wrote minus infinity into its caller's logits."""
    rng = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, 11, generator=rng)
    before = logits.clone()
    ids = sample_ids(logits, how, torch.rand(rows, generator=rng))
    assert torch.equal(logits, before)
    assert ((ids >= 0) & (ids < 11)).all()


# The order of sums in a matrix product may depend on the batch, so a draw within rounding of the
# boundary between two tokens could move. With these seeds none is so near: equal, not close.
@settings(max_examples=20)
@given(
    series=st.integers(2, 6),
    memory_mb=st.sampled_from([10, 1000]),
    order_seed=st.integers(0, 5),
    with_keys=st.booleans(),
    stratified=st.booleans(),
)
def test_a_series_does_not_feel_its_neighbours(
    make_pair, series, memory_mb, order_seed, with_keys, stratified
):
    """Scores must not depend on which other shares are asked for, in which order or batches."""
    tokenizer, model = make_pair()
    bars, stamps = random_series(series)
    keys = [f"share {place}" for place in range(series)] if with_keys else None

    def paths(which, memory_mb):
        forecaster = KronosPredictor(
            model, tokenizer, device="cpu", max_context=16, memory_mb=memory_mb
        )
        chosen = None if keys is None else [keys[place] for place in which]
        past, ahead = stamps[which, :12], stamps[which, 12:]
        options = {"sample_count": 30, "keys": chosen, "stratified": stratified}
        return forecaster.paths(bars[which], past, ahead, 4, **options)

    together = paths(np.arange(series), 1000)
    order = np.random.default_rng(order_seed).permutation(series)[: series - 1]
    np.testing.assert_allclose(paths(order, memory_mb), together[order], rtol=1e-4, atol=1e-4)


def random_series(count):
    rng = np.random.default_rng(2)
    bars = 100 + rng.normal(size=(count, 12, 6)).cumsum(axis=1)
    return bars.astype(np.float32), stamps_for(count, 16).numpy()
