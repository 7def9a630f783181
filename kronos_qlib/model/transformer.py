"""Kronos: the autoregressive predictor of the next two tokens.

Shape letters: B windows, T bars, D width.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from kronos_qlib.errors import ConfigError
from kronos_qlib.model.checkpoints import pretrained as checkpoint
from kronos_qlib.model.cpu_training import Dropout
from kronos_qlib.model.layers import (
    Attention,
    RMSNorm,
    TimeEmbedding,
    TimeFeatures,
    TransformerBlock,
    check_time_features,
)
from kronos_qlib.model.sizes import ContextConfig, PredictorConfig
from kronos_qlib.model.tokenizer import KronosTokenizer

S2_HEADS = 4
"""Heads of the s2 attention, whatever the model's own count."""


class TokenEmbedding(nn.Module):
    """One vector for a bar's two tokens."""

    def __init__(self, s1_bits: int, s2_bits: int, d_model: int) -> None:
        super().__init__()
        self.emb_s1 = nn.Embedding(2**s1_bits, d_model)
        self.emb_s2 = nn.Embedding(2**s2_bits, d_model)
        self.fusion_proj = nn.Linear(2 * d_model, d_model)
        self.scale = math.sqrt(d_model)

    def forward(self, s1_ids: Tensor, s2_ids: Tensor) -> Tensor:
        """(B, T) int64 each to (B, T, D)."""
        if self._is_short_to_tabulate(s1_ids.numel()):
            # Linear in each half: what the projection makes of every token, once.
            to_s1, to_s2 = (self.fusion_proj.weight * self.scale).chunk(2, dim=1)
            tables = (
                F.linear(self.emb_s1.weight, to_s1, self.fusion_proj.bias),
                F.linear(self.emb_s2.weight, to_s2),
            )
            return F.embedding(s1_ids, tables[0]) + F.embedding(s2_ids, tables[1])
        pair = torch.cat((self.emb_s1(s1_ids), self.emb_s2(s2_ids)), dim=-1)
        out: Tensor = self.fusion_proj(pair * self.scale)
        return out

    def _is_short_to_tabulate(self, bars: int) -> bool:
        """Whether there are fewer tokens than bars; not beside an adapter, which adds its own."""
        tokens = self.emb_s1.num_embeddings + self.emb_s2.num_embeddings
        return tokens < 2 * bars and type(self.fusion_proj) is nn.Linear


class S2Attention(Attention):
    """Cross-attention from the next s1 to the context, before the s2 head.

    Source: the paper, section "Hierarchical autoregressive modeling".
    """

    def forward(self, query: Tensor, context: Tensor) -> Tensor:
        """Causal, with queries and keys rotated by position: (B, T, D) each, to (B, T, D)."""
        v = self.split(self.v_proj(context))
        return self.join(self.attend_causally(*self.rotated(query, context), v))

    def read_once(self, query: Tensor, context: Tensor, rotate: bool) -> Tensor:
        """From one query per row, (B, 1, D), to its whole context (B, T, D): (B, 1, D)."""
        q, k = self.split(self.q_proj(query)), self.split(self.k_proj(context))
        if rotate:  # the query has the position of the last bar, which it continues
            q, k = self.rotary(q, context.shape[1] - 1), self.rotary(k)
        v = self.split(self.v_proj(context))
        return self.join(F.scaled_dot_product_attention(q, k, v))


class DependencyLayer(nn.Module):
    """Conditions the context on the next s1, so that s2 is drawn given s1."""

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.cross_attn = S2Attention(d_model, S2_HEADS)
        self.norm = RMSNorm(d_model)


class TokenHeads(nn.Module):
    """The two linear maps onto the vocabularies."""

    def __init__(self, s1_bits: int, s2_bits: int, d_model: int) -> None:
        super().__init__()
        self.proj_s1 = nn.Linear(d_model, 2**s1_bits)
        self.proj_s2 = nn.Linear(d_model, 2**s2_bits)


def _begin(part: nn.Module) -> None:
    """New weights, as published; norms are one already, sinusoidal tables stay what they are."""
    if isinstance(part, nn.Linear):
        nn.init.xavier_normal_(part.weight)
        if part.bias is not None:
            nn.init.zeros_(part.bias)
    elif isinstance(part, nn.Embedding) and part.weight.requires_grad:
        nn.init.normal_(part.weight, std=part.embedding_dim**-0.5)


class Kronos(checkpoint.Checkpointed):
    """Decoder-only Transformer over bars; s1 of the next bar first, then s2 given s1.

    New linear maps are Xavier-normal with zero bias; new embeddings, the learned time tables among
    them, normal with deviation D^-1/2: a token's is multiplied by sqrt(D) and so outweighs the
    date's at the start.

    Args:
        time_emb: in place of the published sum of five tables, to which `learn_te` belongs; what
            it must do is stated in `layers.TimeFeatures`.

    Raises:
        ConfigError: a size is impossible, or `time_emb` does not keep its protocol.

    Source: the paper, section "Hierarchical autoregressive modeling"; published `Kronos`. Keys of
    `config.json` are the arguments.
    """

    config: PredictorConfig

    def __init__(
        self,
        s1_bits: int,
        s2_bits: int,
        n_layers: int,
        d_model: int,
        n_heads: int,
        ff_dim: int,
        ffn_dropout_p: float,
        attn_dropout_p: float,
        resid_dropout_p: float,
        token_dropout_p: float,
        learn_te: bool,
        time_emb: TimeFeatures | None = None,
    ) -> None:
        super().__init__()
        self.config = PredictorConfig(
            s1_bits=s1_bits,
            s2_bits=s2_bits,
            n_layers=n_layers,
            d_model=d_model,
            n_heads=n_heads,
            ff_dim=ff_dim,
            ffn_dropout_p=ffn_dropout_p,
            attn_dropout_p=attn_dropout_p,
            resid_dropout_p=resid_dropout_p,
            token_dropout_p=token_dropout_p,
            learn_te=learn_te,
        )
        self.embedding = TokenEmbedding(s1_bits, s2_bits, d_model)
        self.time_emb: TimeFeatures
        self.time_emb = TimeEmbedding(d_model, learned=learn_te)
        self.token_dropout = Dropout(token_dropout_p)
        self.transformer = nn.ModuleList(
            TransformerBlock(
                d_model, n_heads, ff_dim, ffn_dropout_p, attn_dropout_p, resid_dropout_p
            )
            for _ in range(n_layers)
        )
        self.norm = RMSNorm(d_model)
        self.dep_layer = DependencyLayer(d_model)
        self.head = TokenHeads(s1_bits, s2_bits, d_model)
        self.apply(_begin)
        if time_emb is not None:  # with the weights it comes with
            check_time_features(time_emb, d_model)
            self.time_emb = time_emb

    @property
    def replaced(self) -> dict[str, str]:
        """The time embedding's class name, where it is not the published one."""
        kind = type(self.time_emb)
        return {} if kind is TimeEmbedding else {"time_emb": kind.__name__}

    def forward(
        self,
        s1_ids: Tensor,
        s2_ids: Tensor,
        stamp: Tensor | None = None,
        use_teacher_forcing: bool = False,
        s1_targets: Tensor | None = None,
        *,
        rng: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Logits of every position's next tokens; causal in training and in evaluation alike.

        Args:
            s1_ids, s2_ids: (B, T) int64.
            stamp: (B, T, 5) int64 minute, hour, weekday, day, month of each bar itself.
            use_teacher_forcing: give the s2 head the true next s1, `s1_targets`. Otherwise it
                gets one from the model's own distribution: sampled in training, as published;
                the likeliest in evaluation, so that a validation loss is not random.
            s1_targets: (B, T) int64, the s1 of each position's next bar.
            rng: source of the sampled s1; torch's own, which dropout uses too, by default.

        Returns:
            (s1_logits, s2_logits), (B, T, 2**s1_bits) and (B, T, 2**s2_bits).

        Raises:
            ConfigError: `s1_targets` is missing with teacher forcing, or given without.

        Source: published `Kronos.forward`, but for its s2 attention, which is not causal in
        evaluation mode.
        """
        if use_teacher_forcing != (s1_targets is not None):
            raise ConfigError(
                "s1_targets goes with use_teacher_forcing=True, and only with it: got "
                f"use_teacher_forcing={use_teacher_forcing} and s1_targets "
                f"{'missing' if s1_targets is None else 'given'}"
            )
        s1_logits, context = self.decode_s1(s1_ids, s2_ids, stamp)
        if s1_targets is not None:
            next_s1 = s1_targets
        elif self.training:
            probabilities = s1_logits.detach().float().softmax(dim=-1).flatten(0, 1)
            next_s1 = torch.multinomial(probabilities, 1, generator=rng).view_as(s1_ids)
        else:
            next_s1 = s1_logits.argmax(dim=-1)
        return s1_logits, self._s2_logits_in_training(context, next_s1)

    def decode_s1(
        self, s1_ids: Tensor, s2_ids: Tensor, stamp: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Logits of every position's next s1, (B, T, 2**s1_bits), and the context, (B, T, D).

        Source: published `Kronos.decode_s1`.
        """
        context = self.read(s1_ids, s2_ids, stamp)
        return self.head.proj_s1(context), context

    def decode_s2(self, context: Tensor, s1_ids: Tensor, rotate: bool = False) -> Tensor:
        """Logits of the next s2 given the next s1.

        Args:
            context: (B, T, D) from `decode_s1`.
            s1_ids: (B, 1) int64, the s1 of the bar after the last; or (B, T), one after each
                position, which is the training form: causal, always rotated.
            rotate: with one s1, rotate query and keys by their positions, as in training. The
                published code does not: it builds the tables for a query of length 1.

        Returns:
            (B, 1, 2**s2_bits) or (B, T, 2**s2_bits).

        Raises:
            ValueError: the ids are neither one nor as many as the bars.

        Source: published `Kronos.decode_s2`.
        """
        bars = context.shape[1]
        if s1_ids.shape[1] == bars and bars > 1:
            return self._s2_logits_in_training(context, s1_ids)
        if s1_ids.shape[1] != 1:
            raise ValueError(f"expected 1 or {bars} s1 ids per row, got {s1_ids.shape[1]}")
        query = self.embedding.emb_s1(s1_ids)
        attended = self.dep_layer.cross_attn.read_once(query, context, rotate)
        out: Tensor = self.head.proj_s2(self.dep_layer.norm(context[:, -1:] + attended))
        return out

    def read(self, s1_ids: Tensor, s2_ids: Tensor, stamp: Tensor | None = None) -> Tensor:
        """The context after every bar: (B, T) int64 ids to (B, T, D)."""
        *_, hidden = self._through_blocks(s1_ids, s2_ids, stamp)
        context: Tensor = self.norm(hidden)
        return context

    def read_newest(
        self,
        s1_ids: Tensor,
        s2_ids: Tensor,
        stamp: Tensor,
        lengths: Tensor,
        pooling: ContextConfig,
    ) -> Tensor:
        """What is read of windows' contexts, with gradients; `inference.packed` has none.

        Args:
            s1_ids, s2_ids: (B, T) int64. stamp: (B, T, 5) int64.
            lengths: (B,) int64, bars seen; those after them are padding.

        Returns:
            (B, pooling.parts * D): the context after the last bar, then what `pooling` adds.
        """
        return self.read_after(s1_ids, s2_ids, stamp, lengths[:, None] - 1, pooling)[:, 0]

    def read_after(
        self,
        s1_ids: Tensor,
        s2_ids: Tensor,
        stamp: Tensor,
        places: Tensor,
        pooling: ContextConfig,
    ) -> Tensor:
        """The same after several bars of each window, which is read once.

        Args:
            s1_ids, s2_ids, stamp: as of `read_newest`.
            places: (B, K) int64, the bars, from 0, after which contexts are wanted.

        Returns:
            (B, K, pooling.parts * D).
        """
        row = torch.arange(len(s1_ids), device=s1_ids.device)[:, None]
        of_layers = []
        hidden = s1_ids
        for number, hidden in enumerate(self._through_blocks(s1_ids, s2_ids, stamp), 1):
            if number in pooling.layers:
                last = hidden[row, places]
                of_layers.append(F.rms_norm(last, last.shape[-1:], eps=self.norm.eps))
        context = self.norm(hidden)
        parts = [context[row, places]]
        if pooling.bars > 1:
            bars = torch.arange(context.shape[1], device=context.device) - places[..., None]
            counted = ((bars <= 0) & (bars > -pooling.bars)).to(context.dtype)
            parts.append(counted @ context / counted.sum(dim=-1, keepdim=True))
        if of_layers:
            parts.append(torch.stack(of_layers).mean(dim=0))
        return torch.cat(parts, dim=-1)

    def _through_blocks(
        self, s1_ids: Tensor, s2_ids: Tensor, stamp: Tensor | None
    ) -> Iterator[Tensor]:
        """What comes out of each block, (B, T, D)."""
        hidden = self.embedding(s1_ids, s2_ids)
        if stamp is not None:
            hidden = hidden + self.time_emb(stamp).to(hidden.dtype)
        hidden = self.token_dropout(hidden)
        for block in self.transformer:
            hidden = block(hidden)
            yield hidden

    def _s2_logits_in_training(self, context: Tensor, next_s1: Tensor) -> Tensor:
        # The published forward is not causal here in evaluation mode, so its validation loss
        # sees later bars (fault 2); this one is causal always.
        attended = self.dep_layer.cross_attn(self.embedding.emb_s1(next_s1), context)
        out: Tensor = self.head.proj_s2(self.dep_layer.norm(context + attended))
        return out

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path,
        revision: str | None = None,
        time_emb: TimeFeatures | None = None,
    ) -> Kronos:
        """Load an alias (nano, mini, small, base), a Hub id or a folder, in evaluation mode.

        Args:
            time_emb: of the class that the predictor was saved with, if not the published one; it
                takes the file's weights.

        Raises:
            CheckpointError: a file is missing or does not fit, or the hub is out of reach, or the
                file was saved with another class of time features.
            ConfigError: `config.json` has an unknown key or a bad value.
        """
        return checkpoint.load(
            cls, PredictorConfig, "predictor", name_or_path, revision, time_emb=time_emb
        )

    def save_pretrained(
        self,
        path: str | Path,
        tokenizer: KronosTokenizer | None = None,
        max_context: int | None = None,
    ) -> Path:
        """Write `config.json` and `model.safetensors` into the folder `path`.

        Args:
            tokenizer: the one this predictor was trained with. Its fingerprint goes into the
                file's header, so that another tokenizer of the same sizes is refused later.
            max_context: the most bars it has seen at once in training, kept in the header too;
                None keeps the number of the file it was loaded from.
        """
        header = {}
        if tokenizer is not None:
            header[checkpoint.PARTNER_KEY] = checkpoint.fingerprint(tokenizer)
        if max_context is None and self.origin is not None:
            max_context = self.origin.max_context
        if max_context is not None:
            header[checkpoint.CONTEXT_KEY] = str(max_context)
        return checkpoint.save(self, path, header)
