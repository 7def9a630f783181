"""New weights begin as published: deviations, zeros and ones."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from kronos_qlib.model.layers import FixedEmbedding, RMSNorm, TimeEmbedding
from kronos_qlib.model.tokenizer import KronosTokenizer
from kronos_qlib.model.transformer import Kronos

WIDTH, FEEDFORWARD = 64, 96
SIZES = {"s1_bits": 8, "s2_bits": 7, "d_model": WIDTH, "n_heads": 4, "ff_dim": FEEDFORWARD}
DROPOUTS = {"ffn_dropout_p": 0.0, "attn_dropout_p": 0.0, "resid_dropout_p": 0.0}


def new_predictor(learn_te=True, seed=0, **more):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Kronos(
            n_layers=2, token_dropout_p=0.0, learn_te=learn_te, **SIZES, **DROPOUTS, **more
        )


def assert_normal(weight, deviation):
    """Mean, deviation and kurtosis as of so many normal numbers, at five standard errors."""
    count = weight.numel()
    values = weight.detach().double().flatten() / deviation
    assert abs(float(values.mean())) < 5 / count**0.5
    assert abs(float(values.std()) - 1) < 5 / (2 * count) ** 0.5
    assert abs(float((values**4).mean()) - 3) < 5 * (96 / count) ** 0.5


def test_linear_maps_are_xavier_normal_with_zero_bias():
    net = new_predictor()
    maps = [part for part in net.modules() if isinstance(part, nn.Linear)]
    assert len(maps) == 1 + 2 * (4 + 3) + 4 + 2  # fusion, two blocks, s2 attention, two heads
    for part in maps:
        assert_normal(part.weight, (2 / (part.in_features + part.out_features)) ** 0.5)
        assert part.bias is None or not part.bias.any()


def test_every_learned_embedding_is_normal_by_the_width():
    """The time tables once began at deviation 1: the date outweighed the bar."""
    net = new_predictor()
    tables = {name: part for name, part in net.named_modules() if isinstance(part, nn.Embedding)}
    assert len(tables) == 2 + 5
    for table in tables.values():
        assert_normal(table.weight, WIDTH**-0.5)
    ids = torch.arange(128)
    token = net.embedding.emb_s1(ids) * net.embedding.scale
    date = net.time_emb(torch.zeros(1, 5))
    assert token.std() > 3 * date.std()


def test_norms_are_one_and_fixed_tables_stay_sinusoidal():
    net = new_predictor(learn_te=False)
    norms = [part for part in net.modules() if isinstance(part, RMSNorm)]
    assert len(norms) == 2 * 2 + 2
    assert all((part.weight == 1).all() for part in norms)
    for (_, table), (_, expected) in zip(
        net.time_emb.named_parameters(),
        TimeEmbedding(WIDTH, learned=False).named_parameters(),
        strict=True,
    ):
        assert torch.equal(table, expected)
        assert not table.requires_grad
    assert isinstance(net.time_emb.get_submodule("minute_embed"), FixedEmbedding)


def test_a_part_that_is_brought_keeps_its_weights():
    part = TimeEmbedding(WIDTH, learned=True)
    before = {name: value.clone() for name, value in part.state_dict().items()}
    net = new_predictor(time_emb=part)
    assert net.time_emb is part
    assert all(torch.equal(part.state_dict()[name], value) for name, value in before.items())


def test_a_new_tokenizer_begins_with_torchs_defaults():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        losses = {"beta": 0.05, "gamma0": 1.0, "gamma": 1.1, "zeta": 0.05, "group_size": 5}
        net = KronosTokenizer(d_in=6, n_enc_layers=2, n_dec_layers=2, **SIZES, **DROPOUTS, **losses)
    for part in net.modules():
        if isinstance(part, nn.Linear):
            bound = part.in_features**-0.5  # uniform on both sides of zero
            assert 0.9 * bound < part.weight.abs().max() <= bound
            assert part.bias is None or (part.bias.abs().max() <= bound and part.bias.any())


@pytest.mark.parametrize("learn_te", [True, False])
def test_a_seed_gives_the_same_new_weights(learn_te):
    one, other = (new_predictor(learn_te, seed=7).state_dict() for _ in range(2))
    assert all(torch.equal(one[name], other[name]) for name in one)
