"""What a training step on a CPU computes otherwise has the results of the plain operations."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from kronos_qlib.model import cpu_training
from kronos_qlib.model.cpu_training import Dropout, attended_causally, dropped
from kronos_qlib.training.losses import next_token_losses, reconstruction_losses

BARS = 9


@pytest.fixture
def plainly(monkeypatch):
    """A function that calls another with torch's own operations alone."""

    def call(work, *args):
        with monkeypatch.context() as patched:
            patched.setattr(cpu_training, "is_here", lambda x: False)
            return work(*args)

    return call


def predictor_gradients(net, kind=torch.float32):
    """The loss, and its gradient of every weight, by name; `kind` as of autocast."""
    rng = torch.Generator().manual_seed(0)
    s1, s2, stamp = (
        torch.randint(7, shape, generator=rng) for shape in [(3, BARS)] * 2 + [(3, BARS, 5)]
    )
    counted = torch.ones(3, BARS - 1, dtype=torch.bool)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=kind == torch.bfloat16):
        logits = net(s1[:, :-1], s2[:, :-1], stamp[:, :-1], True, s1[:, 1:])
        loss = next_token_losses(*logits, s1[:, 1:], s2[:, 1:], counted)["loss"]
    return found_of(net, loss)


def tokenizer_gradients(net):
    x = torch.randn(3, BARS, 6, generator=torch.Generator().manual_seed(0))
    counted = torch.ones(3, BARS, dtype=torch.bool)
    (from_s1, from_all), bsq_loss, _, _ = net(x, counted)
    return found_of(net, reconstruction_losses(from_s1, from_all, x, bsq_loss, counted)["loss"])


def found_of(net, loss):
    net.zero_grad()
    loss.backward()
    grads = {
        name: weight.grad for name, weight in net.named_parameters() if weight.grad is not None
    }
    return {"loss": loss.detach()} | {name: grad.clone() for name, grad in grads.items()}


@pytest.mark.parametrize("role", ["tokenizer", "predictor"])
def test_losses_and_gradients_are_those_of_the_plain_operations(make_pair, plainly, role):
    tokenizer, predictor = make_pair()
    net, gradients = {
        "tokenizer": (tokenizer.train(), tokenizer_gradients),
        "predictor": (predictor.train(), predictor_gradients),
    }[role]
    found, expected = gradients(net), plainly(gradients, net)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("most_bars", [BARS, 1], ids=["products", "kernel"])
def test_bfloat16_gradients_point_where_float32_ones_do(make_pair, monkeypatch, most_bars):
    """Both ways in which attention of few and of many bars is computed."""
    monkeypatch.setattr(cpu_training, "MOST_BARS", most_bars)
    net = make_pair()[1].train()
    narrow, wide = predictor_gradients(net, torch.bfloat16), predictor_gradients(net)
    assert float(narrow["loss"]) == pytest.approx(float(wide["loss"]), rel=0.01)
    for name, value in wide.items():
        if value.ndim == 2:
            together = nn.functional.cosine_similarity(
                value.flatten(), narrow[name].float().flatten(), dim=0
            )
            assert together > 0.98, name


def test_an_adapter_in_a_projections_place_adds_its_own(make_pair, plainly):
    class Adapter(nn.Linear):
        def forward(self, x):
            return super().forward(x) + x.flip(-1)

    net = make_pair()[1].train()
    before = predictor_gradients(net)["loss"]
    for block in net.transformer:
        block.self_attn.k_proj.__class__ = Adapter
    found, expected = predictor_gradients(net), plainly(predictor_gradients, net)
    torch.testing.assert_close(found["loss"], expected["loss"])
    assert not torch.allclose(found["loss"], before)


@pytest.mark.parametrize("p", [0.1, 0.25, 0.5, 0.999])
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_dropped_elements_are_zero_and_the_mean_is_kept(p, kind):
    torch.manual_seed(0)
    x = torch.ones(399, 1001, dtype=kind)  # not by four
    found = dropped(x, p).float()
    zero, scaled = found.unique().tolist()
    assert zero == 0
    assert scaled == pytest.approx(1 / (1 - p), rel=0.01)
    deviation = (p / (1 - p) / x.numel()) ** 0.5
    assert found.mean().item() == pytest.approx(
        1, abs=5 * deviation + (kind != torch.float32) * 4e-3
    )
    # Neighbours are drawn apart: those that share 64 bits, too.
    kept = (found > 0).double().flatten()
    for apart in (1, 2, 3, 4):
        both = ((kept[apart:] - 1 + p) * (kept[:-apart] - 1 + p)).mean().item()
        assert abs(both) < 5 * p * (1 - p) / x.numel() ** 0.5, apart


def test_dropout_follows_torchs_generator_and_ends_with_training():
    x, layer = torch.ones(7, 5), Dropout(0.4)
    torch.manual_seed(3)
    first = layer(x)
    torch.manual_seed(3)
    assert torch.equal(layer(x), first)
    assert not torch.equal(layer(x), first)
    assert torch.equal(layer.eval()(x), x)
    assert torch.equal(dropped(x, 0.0), x)
    assert torch.equal(dropped(x, 1e-9), x)
    assert not dropped(x, 1.0).any()


def test_attention_with_dropout_is_causal_and_right_on_average():
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 2, BARS, 4) for _ in range(3))
    expected = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    torch.testing.assert_close(attended_causally(q, k, v, 0.0), expected)
    many = [x.expand(3000, -1, -1, -1) for x in (q, k, v)]
    found = attended_causally(*many, 0.2)
    error = found.std(dim=0) / len(found) ** 0.5
    assert ((found.mean(dim=0) - expected[0]).abs() < 5 * error + 1e-6).all()
    later = v.clone()
    later[:, :, 5:] += 3
    torch.manual_seed(1)
    one = attended_causally(q, k, v, 0.2)
    torch.manual_seed(1)
    other = attended_causally(q, k, later, 0.2)
    assert torch.equal(one[:, :, :5], other[:, :, :5])
    assert not torch.equal(one, other)
