"""KronosTokenizer: normalised bars to two tokens a bar, and back."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from kronos_qlib.configs import TokenizerConfig
from kronos_qlib.model import checkpoint
from kronos_qlib.model.layers import TransformerBlock
from kronos_qlib.model.quantizer import (
    BinarySphericalQuantizer,
    BitTokenizer,
    pack_bits,
    unpack_bits,
)


class KronosTokenizer(nn.Module):
    """Autoencoder whose code for a bar is `s1_bits + s2_bits` signs.

    Shape letters: B windows, T bars, C columns (`d_in`). Encoder and decoder are causal: a bar's
    tokens depend on no later bar.

    Source: the paper, section "K-line tokenization"; keys of `config.json` are the arguments.
    """

    def __init__(
        self,
        d_in: int,
        d_model: int,
        n_heads: int,
        ff_dim: int,
        n_enc_layers: int,
        n_dec_layers: int,
        ffn_dropout_p: float,
        attn_dropout_p: float,
        resid_dropout_p: float,
        s1_bits: int,
        s2_bits: int,
        beta: float,
        gamma0: float,
        gamma: float,
        zeta: float,
        group_size: int,
    ) -> None:
        super().__init__()
        self.config = TokenizerConfig(
            d_in=d_in,
            d_model=d_model,
            n_heads=n_heads,
            ff_dim=ff_dim,
            n_enc_layers=n_enc_layers,
            n_dec_layers=n_dec_layers,
            ffn_dropout_p=ffn_dropout_p,
            attn_dropout_p=attn_dropout_p,
            resid_dropout_p=resid_dropout_p,
            s1_bits=s1_bits,
            s2_bits=s2_bits,
            beta=beta,
            gamma0=gamma0,
            gamma=gamma,
            zeta=zeta,
            group_size=group_size,
        )
        self.origin: checkpoint.Origin | None = None
        bits = s1_bits + s2_bits

        def blocks(count: int) -> nn.ModuleList:
            dropouts = (ffn_dropout_p, attn_dropout_p, resid_dropout_p)
            return nn.ModuleList(
                TransformerBlock(d_model, n_heads, ff_dim, *dropouts) for _ in range(count)
            )

        self.embed = nn.Linear(d_in, d_model)
        # The published files count one block more than they hold.
        self.encoder = blocks(n_enc_layers - 1)
        self.decoder = blocks(n_dec_layers - 1)
        self.quant_embed = nn.Linear(d_model, bits)
        self.post_quant_embed_pre = nn.Linear(s1_bits, d_model)
        self.post_quant_embed = nn.Linear(bits, d_model)
        self.tokenizer = BitTokenizer(
            BinarySphericalQuantizer(bits, beta, gamma0, gamma, zeta, group_size)
        )
        self.head = nn.Linear(d_model, d_in)

    @property
    def s1_bits(self) -> int:
        return self.config.s1_bits

    @property
    def s2_bits(self) -> int:
        return self.config.s2_bits

    def forward(
        self, x: Tensor, counted: Tensor | None = None
    ) -> tuple[tuple[Tensor, Tensor], Tensor, Tensor, Tensor]:
        """Reconstruct bars through their tokens, for training.

        Args:
            x: (B, T, C) float, normalised bars.
            counted: (B, T) bool, the bars that `bsq_loss` may count; None counts all.

        Returns:
            ((recon_s1, recon), bsq_loss, quantized, indices): reconstructions (B, T, C) from the
            s1 half and from all bits; the scalar quantization loss; codes (B, T, bits); and the
            unsplit token ids (B, T) int64.
        """
        quantized, bsq_loss = self.tokenizer(self._project(x), counted)
        recon_s1 = self._reconstruct(self.post_quant_embed_pre(quantized[..., : self.s1_bits]))
        recon = self._reconstruct(self.post_quant_embed(quantized))
        return (recon_s1, recon), bsq_loss, quantized, pack_bits(quantized)

    @torch.no_grad()
    def encode(self, x: Tensor, half: bool = True) -> tuple[Tensor, Tensor] | Tensor:
        """Token ids of normalised bars.

        Args:
            x: (B, T, C) float.
            half: True gives the pair (s1, s2), False the unsplit index.

        Returns:
            Ids (B, T) int64, or two such tensors.
        """
        projected = self._project(x)
        # Zero counts as -1, while pack_bits (as the published id rule) takes >= 0 for a one.
        signs = torch.where(projected > 0, 1.0, -1.0)
        if not half:
            return pack_bits(signs)
        return pack_bits(signs[..., : self.s1_bits]), pack_bits(signs[..., self.s1_bits :])

    @torch.no_grad()
    def decode(self, ids: Sequence[Tensor] | Tensor, half: bool = True) -> Tensor:
        """Bars from token ids.

        Args:
            ids: the pair (s1, s2), each (B, T) int64, or with `half` False the unsplit index.

        Returns:
            (B, T, C) normalised bars.
        """
        if half:
            s1, s2 = ids
            signs = torch.cat(
                (unpack_bits(s1, self.s1_bits), unpack_bits(s2, self.s2_bits)), dim=-1
            )
        else:
            assert isinstance(ids, Tensor), "half=False takes one tensor of unsplit ids"
            signs = unpack_bits(ids, self.s1_bits + self.s2_bits)
        return self._reconstruct(self._embed_signs(signs))

    def _project(self, x: Tensor) -> Tensor:
        hidden = self.embed(x)
        for block in self.encoder:
            hidden = block(hidden)
        out: Tensor = self.quant_embed(hidden)
        return out

    def _embed_signs(self, signs: Tensor) -> Tensor:
        codes = signs / math.sqrt(signs.shape[-1])
        out: Tensor = self.post_quant_embed(codes.to(self.post_quant_embed.weight.dtype))
        return out

    def _reconstruct(self, hidden: Tensor) -> Tensor:
        for block in self.decoder:
            hidden = block(hidden)
        out: Tensor = self.head(hidden)
        return out

    @classmethod
    def from_pretrained(
        cls, name_or_path: str | Path, revision: str | None = None
    ) -> KronosTokenizer:
        """Load an alias (nano, mini, small, base), a Hub id or a folder, in evaluation mode.

        An alias or a Hub id of a predictor is refused; the alias stands for its tokenizer.

        Raises:
            CheckpointError: a file is missing or does not fit, or the hub is out of reach.
            ConfigError: `config.json` has an unknown key or a bad value.
        """
        return checkpoint.load(cls, TokenizerConfig, "tokenizer", name_or_path, revision)

    def save_pretrained(self, path: str | Path) -> Path:
        """Write `config.json` and `model.safetensors` into the folder `path`."""
        return checkpoint.save(self, self.config, path)
