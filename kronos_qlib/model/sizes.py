"""Sizes of the networks, as their config.json has them, and how large one may be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

from kronos_qlib.errors import short_repr
from kronos_qlib.settings import (
    check_choice,
    check_dropouts,
    check_known,
    check_number,
    check_whole,
    from_mapping,
    require,
)

MAX_BITS = 20
"""Bits per token half: 2**20 rows of embedding is far above any published size (10)."""
MAX_LAYERS = 256
MAX_WIDTH = 2**16
MAX_PARAMETERS = 2**31
"""Four times the largest network of the paper, which has 0.5 billion. A file that asks for more is
a mistake, or means to exhaust the machine that opens it."""


def check_network(config: TokenizerConfig | PredictorConfig, *layers: str) -> None:
    """Refuse sizes that cannot work or that no machine should build.

    Args:
        layers: names of the fields that count blocks.

    Raises:
        ConfigError: names the field, or the sizes that together are too large.
    """
    check_whole(config, "d_model", "n_heads", most=MAX_WIDTH)
    check_whole(config, "ff_dim", most=4 * MAX_WIDTH)
    check_whole(config, "s1_bits", "s2_bits", most=MAX_BITS)
    check_whole(config, *layers, most=MAX_LAYERS)
    check_dropouts(config, "ffn_dropout_p", "attn_dropout_p", "resid_dropout_p")
    require(
        config.d_model % config.n_heads == 0 and config.d_model // config.n_heads % 2 == 0,
        f"d_model {config.d_model} must split into {config.n_heads} heads of even width",
    )
    block = config.d_model * (4 * config.d_model + 3 * config.ff_dim)
    vocabulary = 2**config.s1_bits + 2**config.s2_bits
    blocks = 1 + sum(getattr(config, name) for name in layers)
    size = block * blocks + 2 * config.d_model * vocabulary
    require(
        size <= MAX_PARAMETERS,
        f"{', '.join((*layers, 'd_model', 'ff_dim', 's1_bits', 's2_bits'))} make a network of "
        f"{size:.1e} parameters, at most {MAX_PARAMETERS:.1e} are built",
    )


@dataclass(frozen=True)
class TokenizerConfig:
    """Sizes of a `KronosTokenizer`, key for key its `config.json`."""

    d_in: int
    """Columns of a bar: 6."""
    d_model: int
    n_heads: int
    ff_dim: int
    n_enc_layers: int
    """One more than the encoder blocks built, as in the published files."""
    n_dec_layers: int
    """One more than the decoder blocks built."""
    ffn_dropout_p: float
    attn_dropout_p: float
    resid_dropout_p: float
    s1_bits: int
    s2_bits: int
    beta: float
    """Weight of the commitment term of the quantization loss."""
    gamma0: float
    """Weight of the per-sample entropy, inside zeta."""
    gamma: float
    """Weight of the codebook entropy, inside zeta."""
    zeta: float
    """Weight of both entropies."""
    group_size: int
    """Unused by the loss; divides the number of bits and leaves a buffer in the checkpoint."""

    @property
    def blocks(self) -> int:
        """Transformer blocks that are built."""
        return self.n_enc_layers + self.n_dec_layers - 2

    def __post_init__(self) -> None:
        check_network(self, "n_enc_layers", "n_dec_layers")
        check_whole(self, "d_in", most=1024)
        check_whole(self, "group_size")
        check_number(self, "beta", "gamma0", "gamma", "zeta")
        bits = self.s1_bits + self.s2_bits
        require(
            bits % self.group_size == 0,
            f"group_size {self.group_size} must divide s1_bits + s2_bits = {bits}",
        )


@dataclass(frozen=True)
class PredictorConfig:
    """Sizes of a `Kronos` predictor, key for key its `config.json`."""

    s1_bits: int
    s2_bits: int
    n_layers: int
    d_model: int
    n_heads: int
    ff_dim: int
    ffn_dropout_p: float
    attn_dropout_p: float
    resid_dropout_p: float
    token_dropout_p: float
    learn_te: bool
    """Whether the five time tables are learned; sinusoidal and fixed otherwise."""

    @property
    def blocks(self) -> int:
        """Transformer blocks that are built."""
        return self.n_layers

    def __post_init__(self) -> None:
        check_network(self, "n_layers")
        check_dropouts(self, "token_dropout_p")
        check_choice(self, "learn_te")
        require(
            self.d_model % 8 == 0,
            f"d_model {self.d_model} must split into the s2 head's 4 heads of even width",
        )


MOST_SEEDS = 100
MOST_OUTPUTS = 64
MOST_LANDMARKS = 1024
ATTENTION_HEADS = 4
"""Heads of the attention across the names of a day."""


@dataclass(frozen=True)
class ContextConfig:
    """What of a window's contexts is read, beside the one after its last bar."""

    bars: int = 1
    """Newest bars whose contexts' mean is read too, fewer where a window is shorter; 1: none."""
    layers: Sequence[int] = ()
    """Blocks of the predictor, from 1, the mean of whose outputs after the last bar is read too,
    each divided by its root mean square."""
    dtype: str = "float32"
    """"float16" rounds every context to it, on disk, in training and in scoring: half the disk. It
    needs a frozen backbone."""

    def __post_init__(self) -> None:
        check_whole(self, "bars")
        check_known(self, dtype=("float32", "float16"))
        require(
            isinstance(self.layers, (list, tuple))
            and all(type(layer) is int and 1 <= layer <= MAX_LAYERS for layer in self.layers)
            and len(set(self.layers)) == len(self.layers),
            f"layers must be a list of blocks, each once, from 1, got {short_repr(self.layers)}",
        )
        object.__setattr__(self, "layers", tuple(sorted(self.layers)))

    @property
    def parts(self) -> int:
        """Vectors of the predictor's width that are read of a window."""
        return len(self.part_names)

    @property
    def part_names(self) -> tuple[str, ...]:
        """What each of these vectors is of, in their order."""
        found = ["last bar"]
        if self.bars > 1:
            found.append(f"newest {self.bars} bars")
        if self.layers:
            found.append(f"layers {', '.join(map(str, self.layers))}")
        return tuple(found)

    def check_layers(self, blocks: int) -> None:
        """Refuse blocks that a predictor has not.

        Raises:
            ConfigError: names them.
        """
        beyond = [layer for layer in self.layers if layer > blocks]
        require(not beyond, f"context.layers names {beyond}, and the predictor has {blocks} blocks")


LAST_ALONE = ContextConfig()
"""The context after the last bar, as it is."""


def as_context(value: object) -> ContextConfig:
    """A `ContextConfig` from the mapping that a file has; None is the default.

    Raises:
        ConfigError: a key is unknown, or has a bad value.
    """
    if isinstance(value, ContextConfig):
        return value
    given: Mapping[str, object] = {} if value is None else value  # type: ignore[assignment]
    return from_mapping(ContextConfig, given, where="context")


def fewest_names(features: int) -> int:
    """Names of a day whose scores can be neutral to so many features: two for each unknown.

    Of fewer names nothing would be left but noise.
    """
    return 2 * (features + 1) if features else 0


@dataclass(frozen=True)
class HeadConfig:
    """Sizes of an `AlphaHead`, key for key its `config.json`; those with a default may lack."""

    d_model: int
    """Width of the predictor's context."""
    features: int
    """Columns beside the context."""
    context_width: int
    """Columns made of the context; 0 leaves it out."""
    hidden: int
    dropout: float
    names: Sequence[str] = ()
    """Of the features."""
    linear_path: bool = False
    """Whether a linear map of the inputs is added to a hidden layer that has a gate."""
    attention: int = 0
    """Landmarks of the attention across the names of a day; 0: none."""
    market: int = 0
    """Columns of the day's market state, by which that attention is gated; 0 without one."""
    outputs: int = 1
    """Horizons that it learns; the first one's is the score."""
    seeds: int = 1
    """Members of an ensemble."""
    context: ContextConfig = LAST_ALONE
    """Which contexts it reads."""
    neutral: int = 0
    """So many of the first features are explained away: a day's scores are what is left of them
    after least squares on these; 0: none."""
    backbone: str = ""
    """Fingerprint of predictor and tokenizer whose contexts it learned from; "": not known."""

    def __post_init__(self) -> None:
        require(isinstance(self.backbone, str), "backbone must be a fingerprint, a text")
        check_whole(self, "d_model", "hidden", most=MAX_WIDTH)
        check_whole(self, "features", "context_width", "market", least=0, most=MAX_WIDTH)
        check_whole(self, "neutral", least=0, most=self.features)
        check_whole(self, "attention", least=0, most=MOST_LANDMARKS)
        check_whole(self, "outputs", most=MOST_OUTPUTS)
        check_whole(self, "seeds", most=MOST_SEEDS)
        check_choice(self, "linear_path")
        check_dropouts(self, "dropout")
        object.__setattr__(self, "context", as_context(self.context))
        require(
            isinstance(self.names, (list, tuple))
            and all(isinstance(name, str) for name in self.names),
            f"names must be a list of names, got {short_repr(self.names)}",
        )
        object.__setattr__(self, "names", tuple(self.names))
        check_attention(self.attention, self.hidden)
        require(
            bool(self.market) == bool(self.attention),
            f"market is {self.market} and attention {self.attention}: an attention across names "
            "has a gate by the market's state, and nothing else reads that",
        )
        width = self.context_width + self.features
        each = (
            self.context.parts * self.d_model * self.context_width
            + width * (self.hidden + self.outputs)
            + self.hidden * (self.outputs + 5 * self.hidden + self.market + self.attention)
        )
        require(
            each * self.seeds <= MAX_PARAMETERS,
            f"d_model, features, context_width, hidden and seeds make a head of "
            f"{each * self.seeds:.1e} parameters, at most {MAX_PARAMETERS:.1e} are built",
        )

    def written(self) -> dict[str, object]:
        """What `config.json` has: options at their default are left out, as before there were."""
        found: dict[str, object] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name == "context":
                if value != LAST_ALONE:
                    found["context"] = {
                        "bars": value.bars, "layers": list(value.layers), "dtype": value.dtype
                    }  # fmt: skip
            elif field.name == "names":
                found["names"] = list(value)
            elif field.name in OLDEST or value != field.default:
                found[field.name] = value
        return found


OLDEST = ("d_model", "features", "context_width", "hidden", "dropout")
"""Keys that every head's file has, beside the names of its features."""


def check_attention(landmarks: int, hidden: int) -> None:
    """Refuse an attention whose heads do not divide the hidden layer.

    Raises:
        ConfigError: says by what it must divide.
    """
    require(
        not landmarks or hidden % ATTENTION_HEADS == 0,
        f"an attention of {ATTENTION_HEADS} heads needs a hidden width that these divide, got "
        f"hidden {hidden}",
    )


@dataclass(frozen=True)
class GRUConfig:
    """Sizes of a `GRUReader`, key for key its `config.json`."""

    hidden: int = 64
    """Width of its state."""
    layers: int = 2
    dropout: float = 0.0
    """Share of the states between layers left out in training."""

    def __post_init__(self) -> None:
        check_whole(self, "hidden", most=MAX_WIDTH)
        check_whole(self, "layers", most=MAX_LAYERS)
        check_dropouts(self, "dropout")
        size = 6 * self.layers * self.hidden**2
        require(
            size <= MAX_PARAMETERS,
            f"layers and hidden make a network of {size:.1e} parameters, at most "
            f"{MAX_PARAMETERS:.1e} are built",
        )
        require(
            self.layers > 1 or self.dropout == 0,
            f"dropout {self.dropout} lies between layers, and there is one: leave it at 0",
        )
