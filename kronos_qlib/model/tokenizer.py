"""KronosTokenizer: normalised bars to two tokens a bar, and back.

Shape letters: B windows, T bars, C columns (`d_in`), W width of a code.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from kronos_qlib.model.checkpoints import pretrained as checkpoint
from kronos_qlib.model.layers import TransformerBlock
from kronos_qlib.model.quantizer import (
    BinarySphericalQuantizer,
    BitTokenizer,
    Quantizer,
    check_quantizer,
)
from kronos_qlib.model.sizes import TokenizerConfig


class KronosTokenizer(checkpoint.Checkpointed):
    """Autoencoder whose code for a bar is two ids, of `s1_bits` and `s2_bits`.

    Encoder and decoder are causal: a bar's tokens depend on no later bar.

    Args:
        quantizer: in place of the published one, binary spherical, to which beta, gamma0, gamma,
            zeta and group_size belong; what it must do is stated in `quantizer.Quantizer`.

    Raises:
        ConfigError: a size is impossible, or the quantizer does not keep its protocol.

    Source: the paper, section "K-line tokenization"; published `KronosTokenizer`. Keys of
    `config.json` are the arguments.
    """

    config: TokenizerConfig

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
        quantizer: Quantizer | None = None,
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
        if quantizer is None:
            quantizer = BinarySphericalQuantizer(
                s1_bits, s2_bits, beta, gamma0, gamma, zeta, group_size
            )
        else:
            check_quantizer(quantizer, s1_bits, s2_bits)

        def blocks(count: int) -> nn.ModuleList:
            dropouts = (ffn_dropout_p, attn_dropout_p, resid_dropout_p)
            return nn.ModuleList(
                TransformerBlock(d_model, n_heads, ff_dim, *dropouts) for _ in range(count)
            )

        self.embed = nn.Linear(d_in, d_model)
        # The published files count one block more than they hold.
        self.encoder = blocks(n_enc_layers - 1)
        self.decoder = blocks(n_dec_layers - 1)
        self.quant_embed = nn.Linear(d_model, quantizer.width)
        self.post_quant_embed_pre = nn.Linear(quantizer.s1_width, d_model)
        self.post_quant_embed = nn.Linear(quantizer.width, d_model)
        self.tokenizer = BitTokenizer(quantizer)
        self.head = nn.Linear(d_model, d_in)

    @property
    def quantizer(self) -> Quantizer:
        """The published files have it at `tokenizer.bsq`."""
        return self.tokenizer.bsq

    @property
    def replaced(self) -> dict[str, str]:
        """The quantizer's class name, where it is not the published one."""
        kind = type(self.quantizer)
        return {} if kind is BinarySphericalQuantizer else {"quantizer": kind.__name__}

    def forward(
        self, x: Tensor, counted: Tensor | None = None
    ) -> tuple[tuple[Tensor, Tensor], Tensor, Tensor, Tensor]:
        """Reconstruct bars through their tokens, for training.

        Args:
            x: (B, T, C) float, normalised bars.
            counted: (B, T) bool, the bars that `bsq_loss` may count; None counts all.

        Returns:
            ((recon_s1, recon), bsq_loss, quantized, indices): reconstructions (B, T, C) from the
            s1 part and from the whole code; the scalar quantization loss; codes (B, T, W); and
            the unsplit token ids (B, T) int64.

        Source: published `KronosTokenizer.forward`.
        """
        projected = self.project(x)
        quantized, bsq_loss = self.tokenizer(projected, counted)
        ids = self.join(*self.quantizer.to_ids(projected))
        return self.reconstruct(quantized), bsq_loss, quantized, ids

    def project(self, x: Tensor) -> Tensor:
        """What the quantizer is given: bars (B, T, C) float to vectors (B, T, W)."""
        hidden = self.embed(x)
        for block in self.encoder:
            hidden = block(hidden)
        out: Tensor = self.quant_embed(hidden)
        return out

    def reconstruct(self, codes: Tensor) -> tuple[Tensor, Tensor]:
        """Bars (B, T, C) from the s1 part of codes (B, T, W), and from the whole of them."""
        s1_part = codes[..., : self.quantizer.s1_width]
        from_s1 = self._decoded(self.post_quant_embed_pre(s1_part))
        return from_s1, self._decoded(self.post_quant_embed(codes))

    def join(self, s1: Tensor, s2: Tensor) -> Tensor:
        """The unsplit index, s1 in its lowest bits: (B, T) int64 each."""
        return s1 + (s2 << self.s1_bits)

    @torch.no_grad()
    def encode(self, x: Tensor, half: bool = True) -> tuple[Tensor, Tensor] | Tensor:
        """Token ids of normalised bars.

        Args:
            x: (B, T, C) float.
            half: True gives the pair (s1, s2), False the unsplit index.

        Returns:
            Ids (B, T) int64, or two such tensors.

        Source: published `KronosTokenizer.encode`.
        """
        s1, s2 = self.quantizer.to_ids(self.project(x))
        return (s1, s2) if half else self.join(s1, s2)

    @torch.no_grad()
    def decode(self, ids: Sequence[Tensor] | Tensor, half: bool = True) -> Tensor:
        """Bars from token ids.

        Args:
            ids: the pair (s1, s2), each (B, T) int64, or with `half` False the unsplit index.

        Returns:
            (B, T, C) normalised bars.

        Source: published `KronosTokenizer.decode`.
        """
        if half:
            s1, s2 = ids
        else:
            assert isinstance(ids, Tensor), "half=False takes one tensor of unsplit ids"
            s1, s2 = ids & (2**self.s1_bits - 1), ids >> self.s1_bits
        codes = self.quantizer.to_codes(s1, s2).to(self.post_quant_embed.weight.dtype)
        return self._decoded(self.post_quant_embed(codes))

    def _decoded(self, hidden: Tensor) -> Tensor:
        for block in self.decoder:
            hidden = block(hidden)
        out: Tensor = self.head(hidden)
        return out

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path,
        revision: str | None = None,
        quantizer: Quantizer | None = None,
    ) -> KronosTokenizer:
        """Load an alias (nano, mini, small, base), a Hub id or a folder, in evaluation mode.

        An alias or a Hub id of a predictor is refused; the alias stands for its tokenizer.

        Args:
            quantizer: of the class that the tokenizer was saved with, if not the published one;
                it takes the file's weights.

        Raises:
            CheckpointError: a file is missing or does not fit, or the hub is out of reach, or the
                file was saved with another class of quantizer.
            ConfigError: `config.json` has an unknown key or a bad value.
        """
        return checkpoint.load(
            cls, TokenizerConfig, "tokenizer", name_or_path, revision, quantizer=quantizer
        )

    def save_pretrained(self, path: str | Path) -> Path:
        """Write `config.json` and `model.safetensors` into the folder `path`."""
        return checkpoint.save(self, path)
