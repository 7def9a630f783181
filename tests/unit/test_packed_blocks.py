"""The packed blocks leave work out, and give what the plain ones give."""

from types import SimpleNamespace

import pytest
import torch

from kronos_qlib.inference import packed as engine
from kronos_qlib.inference.kv_cache import KeyValueStore, attend_causally, attend_newest
from kronos_qlib.inference.packed import Turn
from kronos_qlib.model.layers import Rotary, TransformerBlock

HEADS, WIDTH = 2, 8


@pytest.fixture(scope="module")
def blocks():
    """Two plain blocks, whose norms have weights of their own."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        plain = torch.nn.ModuleList(TransformerBlock(HEADS * WIDTH, HEADS, 24) for _ in range(2))
        for block in plain:
            block.norm1.weight.data.uniform_(0.5, 1.5)
    return plain.eval().requires_grad_(False)


def windows(bars, count=3):
    rng = torch.Generator().manual_seed(bars)
    return torch.randn(count, bars, HEADS * WIDTH, generator=rng)


@pytest.mark.parametrize("bars", [1, 2, 15, 16, 17, 31, 33, 90, 96])
def test_prompts_of_any_length_are_read_as_by_the_plain_blocks(blocks, bars):
    """Above 16 bars the keys go on to a multiple of 16, into the next window's."""
    x = windows(bars)
    expected = blocks[0](x)
    [block] = engine._packed_blocks(blocks[:1], torch.float32)
    with torch.inference_mode():
        torch.testing.assert_close(block.read_prompt(x, None), expected, rtol=1e-5, atol=1e-5)
        store = KeyValueStore(paths=1, steps=0)
        torch.testing.assert_close(block.read_prompt(x, store), expected, rtol=1e-5, atol=1e-5)
        assert store.prompt[0].shape == (3, HEADS, bars, WIDTH)
        alone = block.read_prompt(x[1:2], None)
        torch.testing.assert_close(alone, block.read_prompt(x, None)[1:2], rtol=0, atol=0)


def test_prompts_read_some_at_a_time_are_those_read_together(blocks, monkeypatch):
    x = windows(20, count=7)
    [block] = engine._packed_blocks(blocks[:1], torch.float32)
    one, other = (KeyValueStore(paths=2, steps=3) for _ in range(2))
    with torch.inference_mode():
        expected = block.read_prompt(x, one)
        monkeypatch.setattr(engine, "GOOD_TOKENS", 65)  # three windows
        assert torch.equal(block.read_prompt(x, other), expected)
        assert torch.equal(block.read_prompt(x, None), expected)
        assert other.length == one.length == 20
        for found, kept in zip(other.prompt, one.prompt, strict=True):
            assert torch.equal(found, kept)
        following = windows(1, count=14)
        assert torch.equal(block.read_next(following, other), block.read_next(following, one))


@pytest.mark.parametrize("newest", [1, 2, 5, 200])
@pytest.mark.parametrize("bars", [2, 20, 90])
def test_the_newest_bars_alone_are_those_of_the_whole_prompt(blocks, bars, newest):
    x = windows(bars)
    expected = blocks[1](x)[:, -newest:]
    [_, block] = engine._packed_blocks(blocks, torch.float32)
    whole, kept = (KeyValueStore(paths=1, steps=0) for _ in range(2))
    with torch.inference_mode():
        found = block.read_newest(x, kept, newest)
        block.read_prompt(x, whole)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    for one, other in zip(kept.prompt, whole.prompt, strict=True):
        torch.testing.assert_close(one, other)


def test_only_the_last_block_may_leave_bars_out(blocks):
    first, last = engine._packed_blocks(blocks, torch.float32)
    assert first.apart is None and last.apart is not None
    with pytest.raises(AssertionError):
        first.read_newest(windows(4), None)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_spare_keys_weigh_nothing(dtype):
    rng = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 21, HEADS, WIDTH, generator=rng).to(dtype) for _ in range(3))
    far = torch.full((2, 11, HEADS, WIDTH), 1e3, dtype=dtype)
    found = attend_causally(q, torch.cat((k, far), dim=1), torch.cat((v, far), dim=1))
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(found, attend_causally(q, k, v), rtol=tolerance, atol=tolerance)
    newest = attend_newest(q[:, -3:], k, v)
    torch.testing.assert_close(newest, found[:, -3:], rtol=tolerance, atol=tolerance)


def test_another_device_gets_no_spare_keys():
    """Its own kernels align a causal mask otherwise, and gain nothing."""
    there = SimpleNamespace(shape=(3, 90, 16), device=SimpleNamespace(type="cuda"))
    assert engine.spare_keys(there) == 0
    assert engine.spare_keys(windows(90)) == 6


@pytest.mark.parametrize("start", [0, 7, torch.tensor([3, 0])])
@pytest.mark.parametrize("most", [1, 3, 6])
def test_heads_turn_alike_in_place_and_not(start, most):
    """Against the plain half layout; the table is for one head, for these, or for more."""
    x = torch.randn(4, 5, 3, WIDTH, generator=torch.Generator().manual_seed(1))
    rotary, order = Rotary(WIDTH), torch.arange(WIDTH).view(2, -1).t().flatten()
    starts = start.repeat_interleave(2).tolist() if isinstance(start, torch.Tensor) else [start] * 4
    expected = torch.stack(
        [rotary(row.transpose(0, 1), at).transpose(0, 1) for row, at in zip(x, starts, strict=True)]
    )[..., order]
    wide = torch.cat((x[..., order], torch.zeros(4, 5, 2, WIDTH)), dim=2)
    part, before = wide[:, :, :3], wide.clone()
    turn = Turn(rotary, most)
    torch.testing.assert_close(turn(part, start), expected)
    assert torch.equal(wide, before)
    turn.in_place(part, start)
    torch.testing.assert_close(part, expected)
    assert not wide[:, :, 3:].any()


@pytest.mark.parametrize("dtype", [None, torch.float32, torch.bfloat16])
def test_what_is_kept_lies_in_one_piece(dtype):
    """Each step multiplies by it; `Tensor.to` returns a tensor of the type asked for as it lies."""
    k, v = torch.randn(2, 3, 5, 4, 8)
    whole, parts = (KeyValueStore(paths=2, steps=1, dtype=dtype) for _ in range(2))
    whole.keep_prompt(k, v)
    parts.keep_prompt(k[:2], v[:2], 3)
    parts.keep_prompt(k[2:], v[2:], 3)
    for store in (whole, parts):
        for kept, given in zip(store._prompt, (k, v), strict=True):
            assert kept.is_contiguous() and kept.dtype == (dtype or k.dtype)
            assert torch.equal(kept, given.transpose(1, 2).to(kept.dtype))
