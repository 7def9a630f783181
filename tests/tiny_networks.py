"""Tiny seeded networks, for fixtures and for processes that a test starts (`conftest` cannot be
imported by name: there is one in each folder of tests)."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from kronos_qlib.model.alpha_head import AlphaHead
from kronos_qlib.model.tokenizer import KronosTokenizer
from kronos_qlib.model.transformer import Kronos

Pair = tuple[KronosTokenizer, Kronos]


def build_pair(
    seed: int = 0,
    *,
    s1_bits: int = 4,
    s2_bits: int = 3,
    d_model: int = 16,
    n_heads: int = 2,
    n_layers: int = 2,
    dropout: float = 0.0,
    learn_te: bool = True,
) -> Pair:
    sizes = {
        "s1_bits": s1_bits,
        "s2_bits": s2_bits,
        "d_model": d_model,
        "n_heads": n_heads,
        "ff_dim": 24,
        "ffn_dropout_p": dropout,
        "attn_dropout_p": dropout,
        "resid_dropout_p": dropout,
    }
    losses = {"beta": 0.05, "gamma0": 1.0, "gamma": 1.1, "zeta": 0.05, "group_size": 1}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tokenizer = KronosTokenizer(d_in=6, n_enc_layers=2, n_dec_layers=3, **sizes, **losses)
        predictor = Kronos(n_layers=n_layers, token_dropout_p=dropout, learn_te=learn_te, **sizes)
        # Fresh heads are nearly flat; sharper ones make the draws differ from step to step.
        for head in (predictor.head.proj_s1, predictor.head.proj_s2):
            head.weight.data *= 3.5
    return tokenizer.eval(), predictor.eval()


def load_part(folder: Path, part: str, features: Sequence[str]) -> torch.nn.Module:
    """A tokenizer, predictor or alpha head of width 16 from the folder of this name."""
    if part == "alpha":
        return AlphaHead.from_pretrained(folder / part, 16, features)
    return {"tokenizer": KronosTokenizer, "predictor": Kronos}[part].from_pretrained(folder / part)


def peak_memory() -> int:
    """Bytes that this process took at most; a test that asks is skipped where nobody says."""
    resource = pytest.importorskip("resource", reason="Windows does not say")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
