"""Frozen settings, checked at birth, that YAML keys, fields and flags share name for name."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from difflib import get_close_matches
from typing import Any, TypeVar

from kronos_qlib.errors import ConfigError, shown

T = TypeVar("T")

MAX_BITS = 20
"""Bits per token half: 2**20 rows of embedding is far above any published size (10)."""
MAX_LAYERS = 256
MAX_WIDTH = 2**16
MAX_PARAMETERS = 2**31
"""Four times the largest network of the paper, which has 0.5 billion. A file that asks for more is
a mistake, or means to exhaust the machine that opens it."""

PRECISIONS = ("float32", "bfloat16", "float16")


def from_mapping(kind: type[T], values: Mapping[str, Any], where: str | None = None) -> T:
    """Build a setting from a file's mapping; an unknown or a missing key is an error.

    Args:
        kind: a dataclass.
        values: what the file says.
        where: the file or section to name in an error; the class' name by default.

    Raises:
        ConfigError: a key is unknown (with the nearest known one), missing, or has a bad value.
    """
    where = where or kind.__name__
    if not isinstance(values, Mapping):
        raise ConfigError(f"{where} must be a mapping of settings, got {shown(values)}")
    known = {field.name: field for field in fields(kind)}  # type: ignore[arg-type]
    for key in values:
        if key not in known:
            near = get_close_matches(str(key)[:80], known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
            raise ConfigError(f"{where} has no setting {shown(key)}; {hint}")
    missing = [
        name
        for name, field in known.items()
        if name not in values and field.default is MISSING and field.default_factory is MISSING
    ]
    if missing:
        raise ConfigError(f"{where} lacks {', '.join(missing)}")
    try:
        return kind(**values)
    except ConfigError as bad:
        raise ConfigError(f"{where}: {bad}") from bad


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise ConfigError(message)


def _check_whole(owner: object, *names: str, least: int = 1, most: int | None = None) -> None:
    for name in names:
        value = getattr(owner, name)
        is_whole = isinstance(value, int) and not isinstance(value, bool)
        _require(
            is_whole and value >= least,
            f"{name} must be a whole number of at least {least}, got {shown(value)}",
        )
        _require(
            most is None or value <= most, f"{name} must be at most {most}, got {shown(value)}"
        )


def _check_number(owner: object, *names: str) -> None:
    for name in names:
        value = getattr(owner, name)
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        # A whole number may be larger than any float.
        is_finite = is_number and abs(value) <= sys.float_info.max
        _require(is_finite, f"{name} must be a number, got {shown(value)}")


def _check_choice(owner: object, *names: str) -> None:
    for name in names:
        value = getattr(owner, name)
        _require(isinstance(value, bool), f"{name} must be true or false, got {shown(value)}")


def _check_known(owner: object, **known: Sequence[str]) -> None:
    for name, choices in known.items():
        value = getattr(owner, name)
        _require(value in choices, f"{name} is one of {', '.join(choices)}, got {value!r}")


def _check_dropouts(owner: object, *names: str) -> None:
    _check_number(owner, *names)
    for name in names:
        value = getattr(owner, name)
        _require(0 <= value < 1, f"{name} must lie in [0, 1), got {value}")


def _check_optimizer(config: TrainingConfig | AlphaConfig) -> None:
    _require(config.learning_rate > 0, f"learning_rate must be above 0, got {config.learning_rate}")
    _require(config.clip_norm > 0, f"clip_norm must be above 0, got {config.clip_norm}")
    _require(config.weight_decay >= 0, f"weight_decay must not be negative: {config.weight_decay}")
    _require(
        0 <= config.warmup_share < 1, f"warmup_share must lie in [0, 1), got {config.warmup_share}"
    )


_PUBLISHED_LENGTH = {"epochs": 30, "windows_per_epoch": 100_000, "validation_windows": 20_000}

PRESETS: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "published": {
        "tokenizer": {**_PUBLISHED_LENGTH, "learning_rate": 2e-4, "clip_norm": 2.0},
        "predictor": {
            **_PUBLISHED_LENGTH,
            "learning_rate": 4e-5,
            "clip_norm": 3.0,
            "teacher_forcing": False,
        },
        "alpha": {},
    },
    "gentle": {
        "tokenizer": {"learning_rate": 1e-5, "clip_norm": 2.0, "lora_rank": 8},
        "predictor": {"learning_rate": 1e-5, "clip_norm": 3.0, "lora_rank": 8},
        "alpha": {"backbone": "lora", "backbone_learning_rate": 1e-5},
    },
}
"""Defaults of the stages by preset. "published" is the authors' finetuning (finetune/config.py of
their repository), in everything that differs from `TrainingConfig` (AdamW .9/.95, decay .1, one
cycle with 3 % warm-up, batches of 50), its 30 epochs included;
"gentle" what they advise since users found whole markets at 1e-4 worse than no finetuning."""


def _check_network(config: TokenizerConfig | PredictorConfig, *layers: str) -> None:
    _check_whole(config, "d_model", "n_heads", most=MAX_WIDTH)
    _check_whole(config, "ff_dim", most=4 * MAX_WIDTH)
    _check_whole(config, "s1_bits", "s2_bits", most=MAX_BITS)
    _check_whole(config, *layers, most=MAX_LAYERS)
    _check_dropouts(config, "ffn_dropout_p", "attn_dropout_p", "resid_dropout_p")
    _require(
        config.d_model % config.n_heads == 0 and config.d_model // config.n_heads % 2 == 0,
        f"d_model {config.d_model} must split into {config.n_heads} heads of even width",
    )
    block = config.d_model * (4 * config.d_model + 3 * config.ff_dim)
    vocabulary = 2**config.s1_bits + 2**config.s2_bits
    blocks = 1 + sum(getattr(config, name) for name in layers)
    size = block * blocks + 2 * config.d_model * vocabulary
    _require(
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
        _check_network(self, "n_enc_layers", "n_dec_layers")
        _check_whole(self, "d_in", most=1024)
        _check_whole(self, "group_size")
        _check_number(self, "beta", "gamma0", "gamma", "zeta")
        bits = self.s1_bits + self.s2_bits
        _require(
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
        _check_network(self, "n_layers")
        _check_dropouts(self, "token_dropout_p")
        _check_choice(self, "learn_te")
        _require(
            self.d_model % 8 == 0,
            f"d_model {self.d_model} must split into the s2 head's 4 heads of even width",
        )


@dataclass(frozen=True)
class HeadConfig:
    """Sizes of an `AlphaHead`, key for key its `config.json`."""

    d_model: int
    """Width of the context it reads."""
    features: int
    """Columns beside the context."""
    context_width: int
    """Columns made of the context; 0 leaves it out."""
    hidden: int
    dropout: float
    names: Sequence[str]
    """Of the features."""

    def __post_init__(self) -> None:
        _check_whole(self, "d_model", "hidden", most=MAX_WIDTH)
        _check_whole(self, "features", "context_width", least=0, most=MAX_WIDTH)
        _check_dropouts(self, "dropout")
        _require(
            isinstance(self.names, (list, tuple))
            and all(isinstance(name, str) for name in self.names),
            f"names must be a list of names, got {shown(self.names)}",
        )


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """How futures are drawn from the predictor. The defaults are the paper's for its backtest."""

    paths: int = 10
    """Independent futures per window."""
    temperature: float = 0.6
    """Divides the logits; 0 always takes the likeliest token."""
    top_k: int = 0
    """Keep the k likeliest tokens; 0 keeps all."""
    top_p: float = 0.9
    """After top_k, keep the smallest set whose probability exceeds this."""
    rotate_s2: bool = False
    """Rotate the s2 attention by position when generating, as training does. The published code
    does not rotate there, and published results depend on it."""
    anchor: bool = True
    """Move the prices of every path by what the last close seen lost on its way through the tokens,
    so that a forecast begins where the bars end; False gives the published numbers."""
    stratified: bool = False
    """At every draw, let a window's paths divide the chance evenly among them (a Latin hypercube):
    the mean of n is about as steady as that of 1.4 to 2.5 n independent ones
    (benchmarks/draws.py)."""
    common: bool = False
    """The same chance for every instrument of a day: what is common in the noise of their scores
    cancels in a ranking, about as 1.0 to 1.4 times the paths would (benchmarks/draws.py)."""

    def __post_init__(self) -> None:
        _check_whole(self, "paths")
        _check_whole(self, "top_k", least=0)
        _check_number(self, "temperature", "top_p")
        _check_choice(self, "rotate_s2", "anchor", "stratified", "common")
        _require(self.temperature >= 0, f"temperature must not be negative, got {self.temperature}")
        _require(0 < self.top_p <= 1, f"top_p must lie in (0, 1], got {self.top_p}")


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """One stage of training: the tokenizer's or the predictor's."""

    epochs: int = 1
    """Passes; each sees `windows_per_epoch` windows."""
    windows_per_epoch: int | None = None
    """Windows drawn for one epoch, without repeats; None takes all of them."""
    validation_windows: int = 2000
    """At most so many windows, evenly spaced over the validation segment, are scored after each
    epoch: always the same ones."""
    batch_size: int = 50
    """Windows per step."""
    learning_rate: float = 4e-5
    """Peak of the one-cycle schedule."""
    warmup_share: float = 0.03
    """Share of all steps spent rising from a tenth of the peak."""
    weight_decay: float = 0.1
    """Of AdamW, whose betas are 0.9 and 0.95."""
    clip_norm: float = 3.0
    """Largest norm of the gradient."""
    patience: int | None = None
    """Stop after so many epochs without a better validation loss; None never stops early."""
    teacher_forcing: bool = True
    """Predictor: feed the s2 head the true next s1. False feeds one sampled from the model's own
    distribution, as published."""
    shift_dates: bool = False
    """Predictor: train each window under the days and months of another part of the year. A few
    years' dates can be learned by heart, and what the market did on each: nano's validation loss
    was 2.154 with true dates and 2.098 with shifted ones. What the seasons tell is lost."""
    loss_bars: str = "all"
    """Bars whose tokens are targets: "all" of a window, or its "horizon" only."""
    lora_rank: int | None = None
    """Rank of the LoRA adapters that are trained instead of the weights, and merged into them at
    the end; None trains all weights."""
    lora_alpha: float = 16.0
    """Adapters count lora_alpha / lora_rank times."""
    accumulation: int = 1
    """Parts that a batch is worked through in, for memory; the step is that of the whole batch."""
    precision: str = "float32"
    """Of the forward and backward pass; "bfloat16" and, on a GPU, "float16" keep the weights and
    the losses in float32."""
    seed: int = 0
    """Of the order of windows, dropout and sampled s1."""

    def __post_init__(self) -> None:
        _check_whole(self, "epochs", "batch_size", "validation_windows", "accumulation")
        _check_whole(self, "seed", least=0)
        for name in ("windows_per_epoch", "patience", "lora_rank"):
            if getattr(self, name) is not None:
                _check_whole(self, name)
        _check_number(self, "lora_alpha")
        _check_known(self, loss_bars=("all", "horizon"), precision=PRECISIONS)
        _check_number(self, "learning_rate", "warmup_share", "weight_decay", "clip_norm")
        _check_choice(self, "teacher_forcing", "shift_dates")
        _check_optimizer(self)

    @property
    def metric(self) -> str:
        """What chooses the epoch that is kept."""
        return "loss"


@dataclass(frozen=True, kw_only=True)
class AlphaConfig:
    """The stage that trains an alpha head: one number for a window, learned from what is traded.

    Defaults were chosen on A-shares, with nano's contexts, trained to 2001-12, by the Rank IC of
    the first half of 2002, several seeds together.
    """

    loss: str = "ic"
    """"ic": 1 - the day's correlation of scores and ranked labels; "mse": squared error on them;
    "rank": every pair of a day in its right order."""
    backbone: str = "frozen"
    """"frozen": the predictor's contexts are read once; "lora", "whole": adapters on it, or all of
    it, are trained with the head."""
    backbone_learning_rate: float = 1e-5
    """Peak for the backbone's weights or adapters, where they are trained."""
    lora_rank: int = 8
    """Rank of the adapters of backbone "lora", which are merged into its weights at the end."""
    lora_alpha: float = 16.0
    """Adapters count lora_alpha / lora_rank times."""
    context_width: int = 16
    """Columns made of the context; 0 leaves it out, and the head sees the scale alone."""
    hidden: int = 64
    """Width of the hidden layer."""
    dropout: float = 0.0
    """Share of inputs and hidden units left out in training."""
    epochs: int = 8
    """Passes over the days."""
    validation_days: int | None = None
    """At most so many days, evenly spaced over the validation segment, judge an epoch; None takes
    all. A trained backbone reads each of their windows anew after every epoch."""
    windows_per_day: int | None = None
    """Windows of each day that a step sees, 5 at least, drawn anew each epoch; None takes all."""
    learning_rate: float = 7e-4
    """Peak of the one-cycle schedule."""
    warmup_share: float = 0.03
    """Share of all steps spent rising from a tenth of the peak."""
    weight_decay: float = 0.1
    """Of AdamW, whose betas are 0.9 and 0.95."""
    clip_norm: float = 1.0
    """Largest norm of the gradient."""
    metric: str = "rank_ic"
    """What chooses the epoch that is kept, on the validation segment: "rank_ic", "ic" or "loss"."""
    patience: int | None = None
    """Stop after so many epochs that were no better; None never stops early."""
    precision: str = "float32"
    """As of `TrainingConfig`."""
    seed: int = 0
    """Of new weights, the order of days, windows and dropout."""

    def __post_init__(self) -> None:
        _check_whole(self, "epochs", "hidden", "lora_rank")
        _check_whole(self, "seed", "context_width", least=0)
        for name in ("patience", "validation_days"):
            if getattr(self, name) is not None:
                _check_whole(self, name)
        if self.windows_per_day is not None:
            _check_whole(self, "windows_per_day", least=5)
        _check_dropouts(self, "dropout")
        _check_number(self, "learning_rate", "warmup_share", "weight_decay", "clip_norm")
        _check_number(self, "backbone_learning_rate", "lora_alpha")
        _check_optimizer(self)
        _require(
            self.backbone_learning_rate > 0,
            f"backbone_learning_rate must be above 0, got {self.backbone_learning_rate}",
        )
        _check_known(
            self,
            loss=("ic", "mse", "rank"),
            backbone=("frozen", "lora", "whole"),
            metric=("rank_ic", "ic", "loss"),
            precision=PRECISIONS,
        )
        _require(
            self.backbone == "frozen" or self.context_width > 0,
            "context_width 0 leaves the context out: a trained backbone would learn nothing",
        )


@dataclass(frozen=True, kw_only=True)
class EnsembleConfig:
    """Which readings of a window have their paths pooled: every lookback at every temperature."""

    lookbacks: Sequence[int] | None = None
    """Last bars of the window that a member sees, normalised by these; a window with fewer is seen
    whole. None: the window as it is."""
    temperatures: Sequence[float] | None = None
    """None: that of `sampling`. Each member draws `sampling.paths` paths."""

    def __post_init__(self) -> None:
        for name, least in (("lookbacks", 2), ("temperatures", 0)):
            values = getattr(self, name)
            if values is None:
                continue
            kinds = (int,) if name == "lookbacks" else (int, float)
            _require(
                isinstance(values, (list, tuple))
                and len(values) == len(set(values)) > 0
                and all(
                    isinstance(value, kinds) and not isinstance(value, bool) and value >= least
                    for value in values
                ),
                f"ensemble.{name} must be a list of different numbers of at least {least}, got "
                f"{values!r}",
            )


@dataclass(frozen=True, kw_only=True)
class SectorsConfig:
    """Where `neutralise: [sector]` finds sectors. They do not change with time: as known today."""

    file: str | None = None
    """A CSV or Parquet file with the columns "instrument" and "sector"."""
    of: Mapping[str, str] | None = None
    """Instrument to sector, in the workflow file itself."""
    unknown: str = "error"
    """An instrument without a sector is an "error", or one of a "group" of such."""

    def __post_init__(self) -> None:
        _check_known(self, unknown=("error", "group"))
        _require((self.file is None) != (self.of is None), "sectors takes either `file` or `of`")


@dataclass(frozen=True, kw_only=True)
class SignalsConfig:
    """What a model's scores are, and which signals are kept beside them."""

    score: str | None = None
    """A signal, such as "expected_return" or "quantile@0.05", or "alpha". None: "alpha" with an
    alpha head, otherwise "expected_return"."""
    keep: Sequence[str] | None = None
    """Signals of `KronosModel.signals`. None: with an alpha head what it says, and no path is
    drawn; otherwise all that take no number, and three that do."""
    ensemble: EnsembleConfig | None = None
    """Fields of `EnsembleConfig`."""
    shape: Sequence[str | Mapping[str, Any]] = ()
    """Steps that turn the signal named by `score` into the score, see `signals.shaping`: winsorise,
    neutralise, rank, zscore, smooth."""
    sectors: SectorsConfig | None = None
    """Fields of `SectorsConfig`."""

    def __post_init__(self) -> None:
        for name in ("keep", "shape"):
            value = getattr(self, name)
            _require(
                value is None or isinstance(value, (list, tuple)),
                f"{name} must be a list, got {value!r}",
            )
        _require(self.shape is not None, "shape must be a list, got None")
        for name, kind in (("ensemble", EnsembleConfig), ("sectors", SectorsConfig)):
            value = getattr(self, name)
            if value is not None and not isinstance(value, kind):  # a mapping in a file
                made: Any = from_mapping(kind, value, where=name)
                object.__setattr__(self, name, made)
