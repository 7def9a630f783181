"""LoRA: only adapters are trained, and after it the network is a plain one again."""

from __future__ import annotations

import copy
import sys

import pytest
import torch
from torch import nn

from kronos_qlib.model.checkpoints.weights import to_bytes
from kronos_qlib.model.layers import Attention
from kronos_qlib.training.lora import adapters, frozen, merged_copy

IDS = torch.tensor([[1, 2, 3, 4]])


def logits(net):
    with torch.no_grad():
        return torch.cat(net(IDS, IDS, None, True, IDS), dim=-1)


def test_adapters_start_as_nothing_and_only_they_are_trained(tiny_pair):
    _, net = tiny_pair
    before, names = logits(net), set(net.state_dict())
    with adapters(net, 2, 4.0, seed=0):
        trained = [name for name, weight in net.named_parameters() if weight.requires_grad]
        assert trained and all("lora_" in name for name in trained)
        attentions = [part for part in net.modules() if isinstance(part, Attention)]
        assert len([name for name in trained if "_proj" in name]) == 2 * 4 * len(attentions)
        assert torch.equal(logits(net), before)
    assert set(net.state_dict()) == names
    assert all(weight.requires_grad for weight in net.parameters())
    assert torch.allclose(logits(net), before, atol=1e-6)


def test_what_adapters_learned_is_in_the_weights_after_it(tiny_pair):
    _, net = tiny_pair
    before = copy.deepcopy(net)
    with adapters(net, 2, 4.0, seed=0):
        torch.manual_seed(1)
        for name, weight in net.named_parameters():
            if "lora_" in name:
                weight.data.normal_(std=0.3)
        learned = logits(net)
        last = {name: value.clone() for name, value in net.state_dict().items()}
        other = merged_copy(net, last)
    assert not torch.allclose(learned, logits(before), atol=1e-3)
    assert torch.allclose(logits(net), learned, atol=1e-5)
    assert to_bytes(other) == to_bytes(net)
    changed = {
        name
        for name, value in net.state_dict().items()
        if not torch.equal(value, before.state_dict()[name])
    }
    assert changed and all("_proj.weight" in name or ".ffn.w" in name for name in changed)
    assert not any(name.startswith("head.") for name in changed)


def test_they_are_taken_out_when_training_fails(tiny_pair):
    _, net = tiny_pair
    names = set(net.state_dict())
    with pytest.raises(RuntimeError), adapters(net, 2, 4.0, seed=0):
        raise RuntimeError
    assert set(net.state_dict()) == names
    assert not hasattr(net, "peft_config")


def test_without_a_rank_all_weights_are_trained(tiny_pair):
    _, net = tiny_pair
    with adapters(net, None, 4.0, seed=0):
        assert all(weight.requires_grad for weight in net.parameters())


def test_frozen_parts_are_trained_again_after_it(tiny_pair):
    _, net = tiny_pair
    net.norm.weight.requires_grad_(False)
    with frozen(net.head, net.norm):
        assert not any(weight.requires_grad for weight in net.head.parameters())
    assert all(weight.requires_grad for weight in net.head.parameters())
    assert not net.norm.weight.requires_grad, "it was not before either"


def test_weights_without_adapters_need_no_peft(monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "peft"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "peft", None)
    net = nn.Linear(2, 2)
    last = {name: weight + 1 for name, weight in net.state_dict().items()}
    copied = merged_copy(net, last)
    assert torch.equal(copied.weight, last["weight"])
    assert not torch.equal(net.weight, last["weight"])
