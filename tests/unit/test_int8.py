"""Products in int8: near the exact ones, row by row, and refused where they would be slow."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from kronos_qlib.errors import CheckpointError, ConfigError
from kronos_qlib.inference import devices
from kronos_qlib.inference import packed as engine
from kronos_qlib.inference.batching import Sizes
from kronos_qlib.inference.generate import generate
from kronos_qlib.inference.kv_cache import KeyValueStore
from kronos_qlib.inference.packed import PackedKronos
from kronos_qlib.inference.predictor import KronosPredictor
from kronos_qlib.inference.products import int8_product
from kronos_qlib.inference.products.int8_product import (
    ZERO,
    Int8Product,
    can_multiply_int8,
    quantized,
    quantized_norm,
)
from kronos_qlib.inference.products.packed_product import Product, normalised
from kronos_qlib.inference.sampling import SamplingConfig, path_uniforms
from kronos_qlib.model.layers import RMSNorm

natively = pytest.mark.skipif(not can_multiply_int8(), reason="this CPU has no VNNI")

IN, OUT = 96, 40


def rows(count=50, width=IN, seed=0):
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def linear():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return torch.nn.Linear(IN, OUT).requires_grad_(False)


def error(found, exact):
    return float((found - exact).norm() / exact.norm())


def test_rows_are_whole_numbers_of_their_own_scale():
    x = torch.tensor([[0.5, -1.0, 0.25], [0.0, 0.0, 0.0], [3e30, 1e30, -3e30], [1e-20, 0, 0]])
    ids, scale = quantized(x)
    expected = [[192, 1, 160], [128, 128, 128], [255, 170, 1], [255, 128, 128]]
    assert ids.tolist() == expected
    found = (ids.float() - ZERO) * scale
    assert (found - x).abs().max(dim=1).values.le(0.51 * scale[:, 0]).all()
    one = quantized(x[2:3])
    assert torch.equal(one.ids, ids[2:3]) and torch.equal(one.scale, scale[2:3])
    overwritten = x.clone()
    assert torch.equal(quantized(overwritten, overwrite=True).ids, ids)


def test_a_norm_is_a_scale_of_its_rows():
    x = rows().mul_(torch.logspace(-3, 3, 50)[:, None])
    ids, scale = quantized_norm(x, torch.tensor(1e-5))
    assert error((ids.float() - ZERO) * scale, normalised(x, torch.tensor(1e-5))) < 0.01
    wider, scales = quantized_norm(x.view(5, 10, IN), torch.tensor(1e-5), spare=3)
    assert wider.shape == (53, IN) and torch.equal(wider[:50], ids)
    assert torch.equal(scales[:50], scale) and not scales[50:].any()


@natively
def test_products_are_near_the_exact_ones(linear):
    x, other = rows(), rows(width=OUT, seed=1)
    norm = RMSNorm(IN)
    norm.weight.data.uniform_(0.5, 1.5)
    bare = torch.nn.Linear(IN, OUT, bias=False).requires_grad_(False)
    exact, whole = Product([linear, linear], torch.float32), Int8Product([linear, linear])
    assert error(whole(x), exact(x)) < 0.02
    assert error(whole(x.bfloat16()), exact(x)) < 0.02
    exact, whole = Product([linear], torch.float32), Int8Product([linear])
    assert error(whole.swish(x), exact.swish(x)) < 0.02
    assert error(whole.plus(x, other), exact.plus(x, other)) < 0.02
    exact, whole = Product([bare], torch.float32, norm), Int8Product([bare], norm)
    normed, expected = quantized_norm(x, torch.tensor(1e-5)), normalised(x, torch.tensor(1e-5))
    assert error(whole(normed), exact(expected)) < 0.02
    ids, scale = whole.times(normed, other)
    assert error((ids.float() - ZERO) * scale, exact.times(expected, other)) < 0.02
    assert torch.equal(other, rows(width=OUT, seed=1))


@natively
def test_a_row_feels_no_other(linear):
    product, x = Int8Product([linear]), rows(200)
    x[7] *= 1e6
    together = product(x)
    for part in (slice(0, 1), slice(8, 40), slice(100, 200)):
        assert torch.equal(product(x[part].clone()), together[part])


@natively
@pytest.mark.parametrize("broken", [torch.nan, torch.inf])
def test_what_is_not_finite_stays_so(linear, broken):
    """A cast of NaN to whole numbers would be a plausible number."""
    x = rows(3)
    x[1, 2] = broken
    found = Int8Product([linear])(x)
    assert not found[1].isfinite().any()
    assert found[[0, 2]].isfinite().all()


@natively
@pytest.mark.parametrize("bars", [1, 15, 33, 90])
def test_blocks_in_int8_are_near_those_in_float32(make_pair, bars):
    _, model = make_pair(d_model=32)
    exact, whole = (
        engine._packed_blocks(model.transformer, dtype)[-1] for dtype in (torch.float32, torch.int8)
    )
    x = rows(3 * bars, 32).view(3, bars, 32)
    with torch.inference_mode():
        expected = exact.read_prompt(x, None)
        store = KeyValueStore(paths=2, steps=3, dtype=torch.bfloat16)
        found = whole.read_prompt(x, store)
        assert error(found, expected) < 0.02
        assert store.prompt[0].dtype == torch.bfloat16
        assert torch.equal(whole.read_prompt(x[1:2], None), found[1:2])
        newest = whole.read_newest(x, None, bars=2)
        assert error(newest, expected[:, -2:]) < 0.02
        longer = torch.cat((x, x[:, -1:]), dim=1).repeat_interleave(2, dim=0)
        stepped = whole.read_next(longer[:, -1:], store)
        assert error(stepped, exact.read_prompt(longer, None)[:, -1:]) < 0.02


def series(count, length=24):
    rng = np.random.default_rng(2)
    bars = 100 + rng.normal(size=(count, length, 6)).cumsum(axis=1)
    return bars.astype(np.float32), np.ones((count, length + 4, 5), dtype=int)


@natively
def test_batches_and_budgets_change_no_bit(make_pair):
    """Of a row's own scale: one of the whole batch would make a path depend on its neighbours."""
    tokenizer, model = make_pair(d_model=32)
    bars, stamps = series(12)

    def drawn(which, memory_mb=500, paths=7):
        predictor = KronosPredictor(model, tokenizer, "cpu", dtype="int8", memory_mb=memory_mb)
        past, ahead = np.split(stamps[which], [24], axis=1)
        return predictor.paths(bars[which], past, ahead, 4, sample_count=paths)

    whole = drawn(slice(None))
    assert np.isfinite(whole).all()
    for part in (slice(3, 4), slice(5, 12)):
        np.testing.assert_array_equal(drawn(part), whole[part])
    np.testing.assert_array_equal(drawn(slice(None), memory_mb=10), whole)
    np.testing.assert_array_equal(drawn(slice(None), paths=3), whole[:, :3])
    predictor = KronosPredictor(model, tokenizer, "cpu", dtype="int8")
    contexts = predictor.embed(bars, stamps[:, :24])
    np.testing.assert_array_equal(predictor.embed(bars[4:5], stamps[4:5, :24]), contexts[4:5])


@natively
def test_cached_keys_draw_what_a_fresh_reading_does(make_pair):
    """Keys are kept in bfloat16, so that a draw near the boundary of two tokens may differ."""
    tokenizer, model = make_pair(d_model=32)
    packed, how = PackedKronos(model, torch.int8), SamplingConfig(paths=5, temperature=1.0)
    rng = np.random.default_rng(0)
    tokens = tuple(
        torch.from_numpy(rng.integers(0, 2**bits, (20, 12)))
        for bits in (tokenizer.s1_bits, tokenizer.s2_bits)
    )
    uniforms = path_uniforms(5, [bytes([place]) for place in range(20)], 5, 2)
    stamps = torch.ones(20, 14, 5, dtype=torch.int64)
    cached = generate(packed, tokens, stamps, 2, how, uniforms, max_context=50)
    # The second bar by reading the prompt and the first anew.
    longer = tuple(
        torch.cat((ids.repeat_interleave(5, dim=0), first[:, :1]), dim=1)
        for ids, first in zip(tokens, cached, strict=True)
    )
    anew = generate(
        packed, longer, stamps.repeat_interleave(5, dim=0), 1, replace(how, paths=1),
        uniforms[:, :, 1:].reshape(100, 1, 1, 2), max_context=50,
    )  # fmt: skip
    same = (cached[0][:, 1] == anew[0][:, 0]) & (cached[1][:, 1] == anew[1][:, 0])
    assert same.float().mean() > 0.9


@natively
def test_weights_that_are_not_finite_are_named(make_pair):
    tokenizer, model = make_pair()
    model.transformer[0].ffn.w1.weight.data[0, 0] = torch.nan
    bars, stamps = series(2)
    predictor = KronosPredictor(model, tokenizer, "cpu", dtype="int8")
    with pytest.raises(CheckpointError, match="not finite"):
        predictor.embed(bars, stamps[:, :24])


def test_int8_is_planned_between_the_other_types(make_pair):
    tokenizer, model = make_pair(d_model=64, n_layers=8)
    narrow, whole, wide = (
        Sizes(model.config, tokenizer.config, 90, 2, 512, kept, between).batch_bytes(30, 2)
        for kept, between in ((2, 2), (2, 4), (4, 4))
    )
    assert narrow < whole < wide


@natively
def test_a_predictor_plans_int8_as_it_computes(make_pair):
    tokenizer, model = make_pair(d_model=64, n_layers=8)
    plans = [
        KronosPredictor(model, tokenizer, "cpu", dtype=dtype).plan(30, 90, 2, 2).peak_bytes
        for dtype in ("bfloat16", "int8", "float32")
    ]
    assert plans == sorted(plans) and len(set(plans)) == 3


def test_without_the_products_int8_is_refused(make_pair, monkeypatch):
    tokenizer, model = make_pair()
    monkeypatch.setattr(devices, "can_multiply_int8", lambda: False)
    with pytest.raises(ConfigError, match=r"int8 needs a CPU with AVX-512 VNNI .* take 'bfloat16'"):
        KronosPredictor(model, tokenizer, "cpu", dtype="int8")
    with pytest.raises(ConfigError, match="int8 is for a CPU, the device is cuda; take 'bfloat16'"):
        devices.pick_dtype("int8", torch.device("cuda"))


@pytest.mark.parametrize("lacking", ["VNNI", "namespace", "arguments", "values"])
def test_a_torch_or_a_cpu_without_them_is_found_out(monkeypatch, lacking):
    """They are torch's own and may go; without VNNI sums may be cut off at 16 bits."""

    def product(ids, *args):
        if lacking == "arguments":
            raise TypeError("unexpected arguments")
        return torch.full((3, 16), float(2**15 - 1))

    ops = {"qlinear_pointwise": product, "qlinear_prepack": lambda ids, shape: ids}
    if lacking == "VNNI":
        monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: False)
    else:
        monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: True)
        monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
        gone = SimpleNamespace(**({} if lacking == "namespace" else ops))
        monkeypatch.setattr(torch.ops, "onednn", gone)
    int8_product.can_multiply_int8.cache_clear()
    try:
        assert not can_multiply_int8()
    finally:
        int8_product.can_multiply_int8.cache_clear()


@natively
def test_where_bfloat16_is_slow_the_rest_is_float32(make_pair, monkeypatch):
    """CPUs of some years have VNNI and no products of bfloat16."""
    tokenizer, model = make_pair()
    bars, stamps = series(2)
    monkeypatch.setattr(engine, "can_pack", lambda dtype: dtype == torch.float32)
    predictor = KronosPredictor(model, tokenizer, "cpu", dtype="int8")
    packed = predictor.engine()
    assert packed.tokenizer.dtype == packed.net.kept == torch.float32
    assert predictor.computed_in == "cpu torch.int8 and torch.float32", "contexts are kept apart"
    exact = KronosPredictor(model, tokenizer, "cpu").embed(bars, stamps[:, :24])
    found = predictor.embed(bars, stamps[:, :24])
    np.testing.assert_allclose(found, exact, atol=0.05 * np.abs(exact).max())
