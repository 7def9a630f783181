"""LoRA by `peft`: small matrices beside the weights are trained, then merged into them."""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from kronos_qlib.extras import require

ADAPTED = r".*(self_attn|cross_attn)\.(q|k|v|out)_proj|.*ffn\.w[123]"
"""Projections of every attention and feed-forward layer, in tokenizer and predictor."""


@contextmanager
def adapters(net: nn.Module, rank: int | None, alpha: float, seed: int) -> Iterator[None]:
    """Within, only adapters of `net` are trained; at the end they are merged into its weights.

    Args:
        rank: of the adapters; None: none are made and all weights are trained.
        alpha: their output is scaled by alpha / rank.
        seed: of their first values; their output is 0 at first.

    Raises:
        MissingDependencyError: peft, of the extra "train", is not installed and a rank is given.

    Source: Hu et al., arXiv 2106.09685.
    """
    if rank is None:
        yield
        return
    peft = require("peft", for_="LoRA")
    trained = {name for name, weight in net.named_parameters() if weight.requires_grad}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = peft.LoraConfig(r=rank, lora_alpha=alpha, target_modules=ADAPTED)
        peft.inject_adapter_in_model(config, net)
    try:
        yield
    finally:
        merge_adapters(net)
        for name, weight in net.named_parameters():
            weight.requires_grad_(name in trained)


def merge_adapters(net: nn.Module) -> nn.Module:
    """Merge the adapters in `net`, if it has any, into its weights, and remove them."""
    made_by = sys.modules.get("peft.tuners.tuners_utils")
    if made_by is None:  # nobody has imported peft, so there are none
        return net
    layer_type = made_by.BaseTunerLayer
    found = [(name, part) for name, part in net.named_modules() if isinstance(part, layer_type)]
    for name, part in found:
        layer: Any = part
        layer.merge()
        path, _, last = name.rpartition(".")
        setattr(net.get_submodule(path), last, layer.get_base_layer())
    if hasattr(net, "peft_config"):
        del net.peft_config
    return net


def merged_copy(net: nn.Module, weights: dict[str, torch.Tensor]) -> nn.Module:
    """A copy of `net` with these weights, each of its own shape, and its adapters merged."""
    other = copy.deepcopy(net)
    other.load_state_dict(weights)
    return merge_adapters(other)


@contextmanager
def frozen(*parts: nn.Module) -> Iterator[None]:
    """Within, these parts are not trained."""
    trained = [weight for part in parts for weight in part.parameters() if weight.requires_grad]
    for weight in trained:
        weight.requires_grad_(False)
    try:
        yield
    finally:
        for weight in trained:
            weight.requires_grad_(True)
