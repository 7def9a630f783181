"""Kronos and its tokenizer laid out for decoding: products fused and packed, prompts shared.

The networks in `model/` are written to be read and trained. This is the same arithmetic in the
order a machine likes: a prompt is read once per window whatever the number of paths; queries, keys
and values are one product; residuals and gates are folded into the products that feed them; and on
a CPU the weights are packed once into the layout of oneDNN, which alone doubles the speed of a
product in float32 on the machines we measured (benchmarks/generation.py).

Shape letters: B windows, P paths, R = B * P rows (window-major), T bars, D width, H heads,
W head width.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from kronos_qlib.errors import CheckpointError, ConfigError
from kronos_qlib.inference.kv_cache import (
    KeyValueStore,
    attend_causally,
    attend_newest,
    spare_keys,
)
from kronos_qlib.inference.products.int8_product import Int8Product, Rows, quantized_norm
from kronos_qlib.inference.products.packed_product import (
    Product,
    can_pack,
    eps_of,
    normalised,
)
from kronos_qlib.model.checkpoints.weights import all_finite
from kronos_qlib.model.cpu_training import Dropout
from kronos_qlib.model.layers import (
    Attention,
    FeedForward,
    FixedEmbedding,
    RMSNorm,
    Rotary,
    SelfAttention,
    TimeEmbedding,
    TimeFeatures,
    TransformerBlock,
)
from kronos_qlib.model.sizes import ContextConfig
from kronos_qlib.model.tokenizer import KronosTokenizer
from kronos_qlib.model.transformer import (
    DependencyLayer,
    Kronos,
    S2Attention,
    TokenEmbedding,
    TokenHeads,
)

GOOD_TOKENS = 3000
"""Bars of prompts read at a time on a CPU: that many fill its caches without leaving them."""
NO_CHANGE = (Dropout.forward, nn.Dropout.forward, nn.Identity.forward)
"""What does nothing when evaluated."""
COMPUTED = {
    *NO_CHANGE,
    *(
        kind.forward
        for kind in (
            *(nn.Linear, nn.Embedding, RMSNorm, Rotary, FeedForward, SelfAttention),
            *(TransformerBlock, TokenEmbedding, S2Attention, DependencyLayer, TokenHeads),
            *(TimeEmbedding, FixedEmbedding),
        )
    ),
}
"""What the layout for decoding computes by itself, from the weights of these parts."""
TokenPair = tuple[Tensor, Tensor]
"""s1 and s2 ids of the same shape."""


class AnyProduct(Protocol):
    """A `Product`, or one of int8, which reads quantized rows too: what the norm before it gives.

    What `times` gives is for the next product alone.
    """

    def __call__(self, x: Any) -> Tensor:
        """(..., in) to (..., out)."""

    def swish(self, x: Any) -> Tensor:
        """silu of the product: (..., in) to (..., out)."""

    def plus(self, x: Any, other: Tensor) -> Tensor:
        """The product plus `other`: (..., in) and (..., out) to (..., out)."""

    def times(self, x: Any, other: Tensor) -> Any:
        """The product times `other` by elements: (..., in) and (..., out) to (..., out)."""


def between_dtype(dtype: torch.dtype) -> torch.dtype:
    """Of the numbers between the products of `dtype`."""
    return torch.float32 if dtype == torch.int8 else dtype


def kept_dtype(dtype: torch.dtype) -> torch.dtype:
    """Of keys and values, and of the tokenizer, beside products of `dtype`.

    A wrong token costs more than a rounded number, and a tokenizer is small: beside int8 it is in
    bfloat16, or in float32 where the machine does not multiply bfloat16.
    """
    if dtype != torch.int8:
        return dtype
    return torch.bfloat16 if can_pack(torch.bfloat16) else torch.float32


def _product(
    maps: Sequence[nn.Linear], dtype: torch.dtype, norm: RMSNorm | None = None
) -> AnyProduct:
    return Int8Product(maps, norm) if dtype == torch.int8 else Product(maps, dtype, norm)


def _norm_before(dtype: torch.dtype) -> Callable[..., Any]:
    """What a product of this type reads after a norm."""
    return quantized_norm if dtype == torch.int8 else normalised


def _heads(x: Tensor, heads: int) -> Tensor:
    """(..., H * W) to (..., H, W)."""
    return x.view(*x.shape[:-1], heads, -1)


class Turn:
    """Rotary positions as unit complex numbers: tables in float32 whatever the weights' type.

    Args:
        heads: that are turned at once, at most; 1: any number, a head at a time. The table is
            repeated for each, so that a bar's heads are one row of numbers to the machine.
    """

    def __init__(self, rotary: Rotary, heads: int = 1) -> None:
        self.rates, self.heads = rotary.inv_freq.detach(), heads
        self.table = self._build(0)
        self._last: tuple[tuple[int, int, int], Tensor] | None = None

    def __call__(self, x: Tensor, start: int | Tensor) -> Tensor:
        """As `in_place`, but in memory of its own."""
        turned = x.clone()
        self.in_place(turned, start)
        return turned

    def in_place(self, x: Tensor, start: int | Tensor) -> None:
        """Rotate (N, T, H, W), where adjacent pairs turn together, by positions from `start`.

        Args:
            x: its last two dimensions lie side by side in memory.
            start: of all; or (B,) int64, each for N / B rows in a row.
        """
        bars, heads = x.shape[1:3]
        if isinstance(start, Tensor):
            every = self._at(0, int(start.max()) + bars)[:, :1]  # or a copy for every head
            places = start[:, None] + torch.arange(bars, device=start.device)
            table = every[places.repeat_interleave(len(x) // len(start), dim=0)]
        else:
            table = self._of_heads(start, bars, heads)
            if self.heads > 1:
                x = x.view(*x.shape[:2], -1)
        wide = x.float()
        pairs = wide.view(*x.shape[:-1], -1, 2)
        if x.device.type == "mps":  # where not every torch multiplies complex numbers
            (real, imaginary), (cos, sin) = pairs.unbind(-1), table.unbind(-1)
            parts = real * cos - imaginary * sin, real * sin + imaginary * cos
            pairs.copy_(torch.stack(parts, dim=-1))
        else:
            torch.view_as_complex(pairs).mul_(torch.view_as_complex(table))
        if wide is not x:
            x.copy_(wide)

    def _of_heads(self, start: int, bars: int, heads: int) -> Tensor:
        """A table whose shape goes with (N, T, heads * W / 2, 2), or with a head at a time."""
        key, last = (start, bars, heads), self._last
        if last is None or last[0] != key:  # the blocks of a stack ask for the same in turn
            table = self._at(start, bars)
            last = key, table[:, :heads].flatten(1, 2) if self.heads > 1 else table
            self._last = last
        return last[1]

    def _at(self, start: int, count: int) -> Tensor:
        # In a local variable: another thread may assign a shorter table meanwhile.
        table = self.table
        if start + count > len(table):
            self.table = table = self._build(2 * (start + count))
        return table[start : start + count]

    def _build(self, positions: int) -> Tensor:
        """(positions, heads, W / 2, 2): cosine and sine."""
        angles = torch.arange(positions, device=self.rates.device)[:, None] * self.rates
        table = torch.stack((angles.cos(), angles.sin()), dim=-1)[:, None]
        return table.repeat(1, self.heads, 1, 1)


def interleaved(linear: nn.Linear, heads: int, scale: float = 1.0) -> nn.Linear:
    """The same map times `scale`, each head's outputs in the order 0, W/2, 1, W/2 + 1, ...

    The published half layout turns output i together with i + W/2. Reordered alike, queries and
    keys keep their scores, and a pair that turns together is one complex number.
    """
    width = linear.out_features // heads
    order = torch.arange(width).view(2, width // 2).t().flatten()
    rows = (torch.arange(heads)[:, None] * width + order).flatten()
    out = nn.Linear(linear.in_features, linear.out_features, device="meta")
    for name in ("weight", "bias"):
        values = getattr(linear, name).detach()[rows.to(linear.weight.device)] * scale
        setattr(out, name, nn.Parameter(values, requires_grad=False))
    return out


def queries_of(attention: Attention) -> nn.Linear:
    """The map to queries, interleaved, with the scale of attention in it."""
    width = attention.q_proj.out_features // attention.n_heads
    return interleaved(attention.q_proj, attention.n_heads, 1 / math.sqrt(width))


class PackedBlock:
    """One Transformer block over prompts, then over the newest bars of their paths.

    Args:
        turn: a table for the queries and keys of all heads.
        is_last: of its stack, so that prompts may be read for their newest bars alone.
    """

    def __init__(
        self, block: TransformerBlock, turn: Turn, dtype: torch.dtype, is_last: bool
    ) -> None:
        attention = block.self_attn
        self.heads, self.turn = attention.n_heads, turn
        self.eps = eps_of(block.norm1), eps_of(block.norm2)
        self.normed = _norm_before(dtype)
        queries, keys = queries_of(attention), interleaved(attention.k_proj, self.heads)
        self.inputs = _product([queries, keys, attention.v_proj], dtype, block.norm1)
        self.apart: tuple[AnyProduct, AnyProduct] | None = None
        if is_last:  # copies, since a part of a packed weight cannot be multiplied
            others = _product([keys, attention.v_proj], dtype, block.norm1)
            self.apart = _product([queries], dtype, block.norm1), others
        self.output = _product([attention.out_proj], dtype)
        self.gate, self.up = (
            _product([part], dtype, block.norm2) for part in (block.ffn.w1, block.ffn.w3)
        )
        self.down = _product([block.ffn.w2], dtype)

    def read_prompt(self, x: Tensor, store: KeyValueStore | None) -> Tensor:
        """Take in prompts (B, T, D); without a store nothing is kept."""
        many = max(1, GOOD_TOKENS // x.shape[1]) if x.device.type == "cpu" else len(x)
        if len(x) <= many:
            return self._read_together(x, store, len(x))
        out = torch.empty_like(x)
        for part, found in zip(torch.split(x, many), torch.split(out, many), strict=True):
            found.copy_(self._read_together(part, store, len(x)))
        return out

    def _read_together(self, x: Tensor, store: KeyValueStore | None, every_window: int) -> Tensor:
        (windows, bars, _), spare = x.shape, spare_keys(x)
        every = self.inputs(self.normed(x, self.eps[0], spare))
        parts = _heads(every[: windows * bars].view(windows, bars, -1), 3 * self.heads)
        self.turn.in_place(parts[:, :, : 2 * self.heads], 0)
        q, k, v = parts.chunk(3, dim=2)
        if store is not None:
            store.keep_prompt(k, v, every_window)
        if spare:  # each window's keys go on into the next one's, which no query of it sees
            shape = (windows, bars + spare, *k.shape[2:])
            k, v = (
                every.as_strided(shape, part.stride(), part.storage_offset()) for part in (k, v)
            )
        return self._finish(x, attend_causally(q, k, v))

    def read_newest(self, x: Tensor, store: KeyValueStore | None, bars: int = 1) -> Tensor:
        """Take in prompts (B, T, D), and return the output of the last `bars` of them alone."""
        assert self.apart is not None, "only the last block may leave bars out"
        of_queries, of_others = self.apart
        normed, newest = self.normed(x, self.eps[0]), slice(max(0, x.shape[1] - bars), None)
        asking = normed.bars(newest) if isinstance(normed, Rows) else normed[:, newest]
        q = _heads(of_queries(asking), self.heads)
        both = _heads(of_others(normed), 2 * self.heads)
        self.turn.in_place(q, x.shape[1] - q.shape[1])
        k, v = both[:, :, : self.heads], both[:, :, self.heads :]
        self.turn.in_place(k, 0)
        if store is not None:
            store.keep_prompt(k, v)
        return self._finish(x[:, newest], attend_newest(q, k, v))

    def read_more(self, x: Tensor, store: KeyValueStore) -> Tensor:
        """Take in one more bar of each prompt, (B, 1, D)."""
        return self._finish(x, store.read_more(*self._parts(x, store.length)))

    def read_next(self, x: Tensor, store: KeyValueStore) -> Tensor:
        """Take in each path's newest bar, (R, 1, D)."""
        q, k, v = self._parts(x, store.length)
        store.keep(k, v)
        return self._finish(x, store.attend(q))

    def read_ahead(self, x: Tensor, store: KeyValueStore) -> Tensor:
        """All bars of each path after the prompt at once, (R, S, D); the store stays as it is."""
        return self._finish(x, store.attend_ahead(*self._parts(x, store.length)))

    def _parts(self, x: Tensor, start: int | Tensor) -> Sequence[Tensor]:
        """Queries and keys, turned, and values, each (N, T, H, W)."""
        parts = _heads(self.inputs(self.normed(x, self.eps[0])), 3 * self.heads)
        self.turn.in_place(parts[:, :, : 2 * self.heads], start)
        return parts.chunk(3, dim=2)

    def _finish(self, x: Tensor, mixed: Tensor) -> Tensor:
        x = self.output.plus(mixed, x)
        normed = self.normed(x, self.eps[1])
        return self.down.plus(self.up.times(normed, self.gate.swish(normed)), x)


def check_parts(net: nn.Module, names: Sequence[str]) -> None:
    """Refuse a part in another's place, such as an adapter, whose `forward` would not be called.

    Hooks, and other methods that a subclass overrides, are not looked for.

    Args:
        names: of the parts whose weights are read.

    Raises:
        ConfigError: names the part.
    """
    for name in names:
        _check_part(net.get_submodule(name), name)


def _check_part(part: nn.Module, path: str) -> None:
    if isinstance(part, nn.ModuleList):  # a stack
        for number, block in enumerate(part):
            if not isinstance(block, TransformerBlock) and _forward(block) not in NO_CHANGE:
                raise _refused(block, f"{path}.{number}")
    elif _forward(part) not in COMPUTED:
        raise _refused(part, path)
    if not isinstance(part, (nn.Linear, nn.Embedding)):
        for name, inner in part.named_children():
            if name != "parametrizations":  # what they make is read as a weight
                _check_part(inner, f"{path}.{name}")


def _forward(part: nn.Module) -> object:
    return getattr(type(part), "forward", None)


def _refused(part: nn.Module, path: str) -> ConfigError:
    kind = type(part)
    return ConfigError(
        f"{path} is a {kind.__module__}.{kind.__qualname__}: forecasts are computed from weights "
        "as by the published part of that place, and its own `forward` would not be called; put "
        "the published part back, and merge adapters into the weights"
    )


def _packed_blocks(
    blocks: nn.ModuleList, dtype: torch.dtype, reads_all: bool = False
) -> list[PackedBlock]:
    """A stack's, in order.

    Args:
        reads_all: every bar is wanted of the last block too, which then needs no weights apart.
    """
    plain = [block for block in blocks if isinstance(block, TransformerBlock)]
    if not plain:
        return []
    attention = plain[0].self_attn
    turn = Turn(attention.rotary, 2 * attention.n_heads)
    return [
        PackedBlock(block, turn, dtype, is_last=block is plain[-1] and not reads_all)
        for block in plain
    ]


class PackedKronos:
    """The predictor, ready to decode; holds copies of the weights as they are now.

    Args:
        dtype: of the products; see `between_dtype` and `kept_dtype` for what is beside them.
    """

    def __init__(self, net: Kronos, dtype: torch.dtype = torch.float32) -> None:
        check_parts(net, ("embedding", "transformer", "norm", "dep_layer", "head"))
        if type(net.time_emb) is TimeEmbedding:  # another is called itself, whatever is in it
            check_parts(net, ("time_emb",))
        self.blocks = _packed_blocks(net.transformer, dtype)
        self.kept = kept_dtype(dtype)
        of_products, dtype = dtype, between_dtype(dtype)
        self.norm_eps, self.norm_weight = eps_of(net.norm), net.norm.weight.detach().to(dtype)
        # The fusion of the two embeddings is linear: each half goes through it once and for all.
        embedding = net.embedding
        left, right = embedding.fusion_proj.weight.detach().chunk(2, dim=1)
        self.s1_table = (embedding.emb_s1.weight.detach() * embedding.scale @ left.t()).to(dtype)
        fused = embedding.emb_s2.weight.detach() * embedding.scale @ right.t()
        self.s2_table = (fused + embedding.fusion_proj.bias.detach()).to(dtype)
        self.time = packed_time(net.time_emb, dtype)
        self.s1_head = _product([net.head.proj_s1], of_products)
        self.s2_norm_eps, self.s2_normed = eps_of(net.dep_layer.norm), _norm_before(of_products)
        self.s2_head = _product([net.head.proj_s2], of_products, net.dep_layer.norm)
        attention = net.dep_layer.cross_attn
        self.s2_heads = attention.n_heads
        self.s2_turn = Turn(attention.rotary, self.s2_heads)
        # A query is asked by an s1 alone: there are as many as tokens.
        asking = embedding.emb_s1.weight.detach().to(dtype)
        with torch.inference_mode():
            self.s2_queries = Product([queries_of(attention)], dtype)(asking)
        keys = interleaved(attention.k_proj, self.s2_heads)
        self.s2_keys_values = _product([keys, attention.v_proj], of_products)
        self.s2_output = _product([attention.out_proj], of_products)

    def embed(self, s1: Tensor, s2: Tensor, stamps: Tensor) -> Tensor:
        """Tokens (N, T) and stamps (N, T, 5) to what the first block reads, (N, T, D)."""
        x = F.embedding(s1, self.s1_table) + F.embedding(s2, self.s2_table)
        return x.add_(self.time(stamps))


class Reader:
    """Reads one batch of windows: their prompts once, then each path's newest bars.

    Args:
        paths: futures per window. steps: bars that each of them will read back, at most.
        rotate_s2: rotate the s2 attention by position, as in training.
    """

    def __init__(self, net: PackedKronos, paths: int, steps: int, rotate_s2: bool = False) -> None:
        self.net, self.paths, self.rotate_s2 = net, paths, rotate_s2
        self.stores = [KeyValueStore(paths, steps, net.kept) for _ in net.blocks]
        self.s2_store = KeyValueStore(paths, steps, net.kept)

    def read(self, s1: Tensor, s2: Tensor, stamps: Tensor) -> Tensor:
        """Take in bars and return the context of the newest, one per path: (R, D).

        Args:
            s1, s2: (B, T) int64 the first time, the prompts; then (R, 1), each path's newest bar.
            stamps: (B, T, 5) or (R, 1, 5) int64.
        """
        is_prompt = self.s2_store.is_empty
        net = self.net
        x = net.embed(s1, s2, stamps)
        for block, store in zip(net.blocks, self.stores, strict=True):
            x = block.read_prompt(x, store) if is_prompt else block.read_next(x, store)
        context = normalised(x, net.norm_eps) * net.norm_weight
        self._keep_for_s2(context, is_prompt)
        newest = context[:, -1]
        return newest.repeat_interleave(self.paths, dim=0) if is_prompt else newest

    def read_more(self, s1: Tensor, s2: Tensor, stamps: Tensor) -> Tensor:
        """Take in one more bar of each prompt, whose keys and values the stores have adopted.

        Args:
            s1, s2: (B, 1) int64. stamps: (B, 1, 5) int64.

        Returns:
            The context after it, (B, D).
        """
        net = self.net
        x = net.embed(s1, s2, stamps)
        for block, store in zip(net.blocks, self.stores, strict=True):
            x = block.read_more(x, store)
        context = normalised(x, net.norm_eps) * net.norm_weight
        self.s2_store.lengthen(*self._for_s2(context))
        return context[:, -1]

    def s1_logits(self, newest: Tensor) -> Tensor:
        """(R, 2**s1_bits) float32 from the newest bars' context."""
        return self.net.s1_head(newest).float()

    def s2_logits(self, newest: Tensor, s1: Tensor) -> Tensor:
        """(R, 2**s2_bits) float32, given the s1 (R,) drawn for the next bar."""
        net = self.net
        query = _heads(F.embedding(s1, net.s2_queries)[:, None], net.s2_heads)
        if self.rotate_s2:
            net.s2_turn.in_place(query, self.s2_store.length - 1)
        attended = net.s2_output.plus(self.s2_store.attend(query)[:, 0], newest)
        return net.s2_head(net.s2_normed(attended, net.s2_norm_eps)).float()

    def _keep_for_s2(self, context: Tensor, is_prompt: bool) -> None:
        k, v = self._for_s2(context)
        (self.s2_store.keep_prompt if is_prompt else self.s2_store.keep)(k, v)

    def _for_s2(self, context: Tensor) -> tuple[Tensor, Tensor]:
        net = self.net
        both = _heads(net.s2_keys_values(context), 2 * net.s2_heads)
        k, v = both[:, :, : net.s2_heads], both[:, :, net.s2_heads :]
        if self.rotate_s2:
            net.s2_turn.in_place(k, self.s2_store.length)
        return k, v


def read_contexts(
    net: PackedKronos,
    s1: Tensor,
    s2: Tensor,
    stamps: Tensor,
    pooling: ContextConfig,
    count: int = 1,
) -> Tensor:
    """What is read of windows' contexts; nothing is kept to draw from.

    Args:
        s1, s2: (B, T) int64. stamps: (B, T, 5) int64.
        count: newest bars, after each of which a context is wanted.

    Returns:
        (B, count, pooling.parts * D): the context after the bar, then what `pooling` adds.
    """
    read = pooling.bars + count - 1
    x = net.embed(s1, s2, stamps)
    of_layers = []
    for number, block in enumerate(net.blocks, 1):
        # Of the last block only what is read: it does some tenth to quarter of all the work.
        is_last = number == len(net.blocks)
        x = block.read_newest(x, None, read) if is_last else block.read_prompt(x, None)
        if number in pooling.layers:
            of_layers.append(normalised(x[:, -count:], net.norm_eps).float())
    newest = (normalised(x[:, -read:], net.norm_eps) * net.norm_weight).float()
    parts = [newest[:, -count:]]
    if pooling.bars > 1:
        ends = range(newest.shape[1] - count + 1, newest.shape[1] + 1)
        means = [newest[:, max(0, end - pooling.bars) : end].mean(dim=1) for end in ends]
        parts.append(torch.stack(means, dim=1))
    if of_layers:
        parts.append(torch.stack(of_layers).mean(dim=0))
    return torch.cat(parts, dim=-1)


def require_finite(values: Tensor, what: str) -> None:
    """Refuse NaN and infinity, from which sampling would still draw plausible tokens.

    Args:
        values: (...) float.

    Raises:
        CheckpointError: names `what`.
    """
    if not all_finite(values):
        raise CheckpointError(
            f"{what} are not finite: the weights are too large to compute with, or too large for "
            "a dtype narrower than float32; take another checkpoint"
        )


def packed_time(time: TimeFeatures, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    """A function from stamps (..., 5) to vectors (..., D); a replaced part is called itself."""
    if type(time) is TimeEmbedding:
        return PackedTime(time, dtype)
    part = as_is(time)
    return lambda stamps: part(stamps).to(dtype)


def as_is(part: Any) -> Any:
    """A copy in evaluation mode: training that goes on must not make forecasts noise (fault 1)."""
    return copy.deepcopy(part).eval()


class PackedTime:
    """The five time tables as one, summed in a single look-up."""

    def __init__(self, time: TimeEmbedding, dtype: torch.dtype) -> None:
        tables = [table.detach() for table in time.tables()]
        self.dtype = dtype
        self.table = torch.cat(tables)
        rows = torch.tensor([0, *(len(table) for table in tables[:-1])])
        self.offsets = rows.cumsum(0).to(self.table.device)

    def __call__(self, stamps: Tensor) -> Tensor:
        """(..., 5) whole numbers to (..., D)."""
        ids = (stamps.long() + self.offsets).flatten(0, -2)
        if ids.device.type == "mps":  # where not every torch has the bag
            summed = F.embedding(ids, self.table).sum(dim=-2)
        else:
            summed = F.embedding_bag(ids, self.table, mode="sum")
        return summed.view(*stamps.shape[:-1], -1).to(self.dtype)


class PackedTokenizer:
    """The tokenizer, ready to encode prompts and to decode what follows them."""

    def __init__(self, net: KronosTokenizer, dtype: torch.dtype = torch.float32) -> None:
        parts = ("encoder", "decoder", "embed", "quant_embed", "post_quant_embed", "head")
        check_parts(net, parts)
        self.dtype, self.quantizer = dtype, as_is(net.quantizer)
        self.encoder = _packed_blocks(net.encoder, dtype, reads_all=True)
        self.decoder = _packed_blocks(net.decoder, dtype)
        self.embed = Product([net.embed], dtype)
        self.to_code = Product([net.quant_embed], dtype)
        self.from_code = Product([net.post_quant_embed], dtype)
        self.head = Product([net.head], dtype)

    def encoder_stores(self) -> list[KeyValueStore]:
        """Empty ones, for `encode` to fill."""
        return [KeyValueStore(paths=1, steps=0) for _ in self.encoder]

    def decoder_stores(self, paths: int) -> list[KeyValueStore]:
        """Empty ones, for `decode_prompt` to fill."""
        return [KeyValueStore(paths, steps=0) for _ in self.decoder]

    def encode(self, z: Tensor, stores: Sequence[KeyValueStore] | None = None) -> TokenPair:
        """(B, T, 6) normalised bars to s1 and s2, (B, T) int64 each.

        Args:
            stores: where keys and values are kept: empty ones, or those of the bars before, which
                z (B, 1, 6) continues. None: they are not kept.
        """
        x = self.embed(z.to(self.dtype))
        kept: Sequence[KeyValueStore | None] = stores or [None] * len(self.encoder)
        for block, store in zip(self.encoder, kept, strict=True):
            if store is None or store.is_empty:
                x = block.read_prompt(x, store)
            else:
                x = block.read_more(x, store)
        code = self.to_code(x).float()
        require_finite(code, "codes of the tokenizer")
        ids: TokenPair = self.quantizer.to_ids(code)
        return ids

    def decode(self, tokens: TokenPair) -> Tensor:
        """(N, T) ids to (N, T, 6) float32 normalised bars."""
        x = self._embed_ids(tokens)
        for block in self.decoder:
            x = block.read_prompt(x, None)
        return self.head(x).float()

    def decode_ahead(
        self, prompt: TokenPair, drawn: TokenPair, paths: int
    ) -> tuple[Tensor, Tensor]:
        """Decode drawn tokens after prompts (B, T), which are decoded once for all paths.

        Returns:
            The drawn bars (R, S, 6) and the last bar of each prompt (B, 6), float32 normalised.
        """
        stores = self.decoder_stores(paths)
        newest = self.decode_prompt(prompt, stores)
        return self.decode_after(drawn, stores), newest

    def decode_prompt(self, prompt: TokenPair, stores: Sequence[KeyValueStore]) -> Tensor:
        """The last bar (B, 6) of prompts (B, T), whose keys and values are kept.

        Args:
            stores: empty ones, or those of the bars before, which a prompt (B, 1) continues.
        """
        x = self._embed_ids(prompt)
        for block, store in zip(self.decoder, stores, strict=True):
            if not store.is_empty:
                x = block.read_more(x, store)
            elif store is stores[-1]:  # of the prompt's bars only the last is asked for
                x = block.read_newest(x, store)
            else:
                x = block.read_prompt(x, store)
        return self.head(x[:, -1]).float()

    def decode_after(self, drawn: TokenPair, stores: Sequence[KeyValueStore]) -> Tensor:
        """Bars (R, S, 6) of tokens drawn after the prompts of `stores`, which stay as they are."""
        x = self._embed_ids(drawn)
        for block, store in zip(self.decoder, stores, strict=True):
            x = block.read_ahead(x, store)
        return self.head(x).float()

    def _embed_ids(self, tokens: TokenPair) -> Tensor:
        return self.from_code(self.quantizer.to_codes(*tokens).to(self.dtype))
