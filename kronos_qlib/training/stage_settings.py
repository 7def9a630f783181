"""Settings of the stages of training, and the presets of their defaults."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kronos_qlib.data.windows.scale_features import SCALE_FEATURES
from kronos_qlib.errors import short_repr
from kronos_qlib.model.sizes import (
    LAST_ALONE,
    MOST_LANDMARKS,
    MOST_OUTPUTS,
    MOST_SEEDS,
    ContextConfig,
    as_context,
    check_attention,
    fewest_names,
)
from kronos_qlib.settings import (
    check_choice,
    check_dropouts,
    check_known,
    check_names,
    check_number,
    check_whole,
    require,
)

PRECISIONS = ("float32", "bfloat16", "float16")
MOST_EXTREMES = 0.4
"""At either end of a day's labels; what is left in the middle says little."""


def check_optimizer(config: TrainingConfig | AlphaConfig) -> None:
    """Refuse settings of AdamW and its schedule that cannot work.

    Raises:
        ConfigError: names the setting.
    """
    require(config.learning_rate > 0, f"learning_rate must be above 0, got {config.learning_rate}")
    require(config.clip_norm > 0, f"clip_norm must be above 0, got {config.clip_norm}")
    require(config.weight_decay >= 0, f"weight_decay must not be negative: {config.weight_decay}")
    require(
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


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """One stage of training: the tokenizer's or the predictor's."""

    epochs: int = 1
    """Passes; each sees `windows_per_epoch` windows."""
    windows_per_epoch: int | None = None
    """Windows drawn for one epoch, without repeats; None takes all of them."""
    validation_windows: int = 2000
    """Windows, at most, that are scored after each epoch: evenly spaced over the validation
    segment, always the same ones."""
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
    """Stop after this many epochs without a better validation loss; None never stops early."""
    teacher_forcing: bool = True
    """Predictor: feed the s2 head the true next s1. False feeds one sampled from the model's own
    distribution, as published."""
    shift_dates: bool = False
    """Predictor: train each window under the days and months of another part of the year. A few
    years' dates are few enough to overfit: nano's validation loss was 2.154 with true dates and
    2.098 with shifted ones. Seasonal effects are lost."""
    loss_bars: str = "all"
    """Bars whose tokens are targets: "all" of a window, or its "horizon" only."""
    lora_rank: int | None = None
    """Rank of the LoRA adapters that are trained instead of the weights, and merged into them at
    the end; None trains all weights."""
    lora_alpha: float = 16.0
    """The adapters' output is scaled by lora_alpha / lora_rank."""
    accumulation: int = 1
    """Parts that a batch is accumulated from, for memory; the step is that of the whole batch."""
    precision: str = "float32"
    """Of the forward and backward pass; "bfloat16" and, on a GPU, "float16" keep the weights and
    the losses in float32."""
    compiled: bool = False
    """Whether `torch.compile` compiles the Transformer blocks, which needs what it needs: on a GPU
    Triton, on a CPU a C++ compiler. For long runs: it takes a minute or so."""
    activation_checkpointing: bool = False
    """Compute each block again in the backward pass, by the same random numbers, so that a step
    keeps the inputs of blocks only: more time, a fraction of the memory, the same losses."""
    fsdp: bool = False
    """Predictor: share weights, gradients and the optimizer's moments out among the processes, by
    torch's `fully_shard`, for networks that one device does not hold. A state in `resume_folder`
    goes on in any number of them from 2. Not with adapters, and not in float16."""
    seed: int = 0
    """Of the order of windows, dropout and sampled s1."""

    def __post_init__(self) -> None:
        check_whole(self, "epochs", "batch_size", "validation_windows", "accumulation")
        check_whole(self, "seed", least=0)
        for name in ("windows_per_epoch", "patience", "lora_rank"):
            if getattr(self, name) is not None:
                check_whole(self, name)
        check_number(self, "lora_alpha")
        check_known(self, loss_bars=("all", "horizon"), precision=PRECISIONS)
        check_number(self, "learning_rate", "warmup_share", "weight_decay", "clip_norm")
        check_choice(self, "teacher_forcing", "shift_dates", "compiled")
        check_choice(self, "activation_checkpointing", "fsdp")
        require(
            not self.fsdp or self.lora_rank is None,
            "fsdp shares out what is trained, and with lora_rank that is little: leave one of them "
            "out",
        )
        require(
            not (self.compiled and (self.fsdp or self.activation_checkpointing)),
            "compiled blocks go neither with fsdp nor with activation_checkpointing: leave one out",
        )
        require(
            not self.fsdp or self.precision != "float16",
            "fsdp with precision float16 would scale gradients that no process sees whole: take "
            "bfloat16",
        )
        check_optimizer(self)

    @property
    def metric(self) -> str:
        """The validation metric by which the epoch that is kept is chosen."""
        return "loss"


@dataclass(frozen=True, kw_only=True)
class AlphaConfig:
    """The stage that trains an alpha head: one number for a window, learned from the label.

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
    """The adapters' output is scaled by lora_alpha / lora_rank."""
    context_width: int = 16
    """Columns made of the context; 0 leaves it out, and the head sees the scale alone."""
    features: Sequence[str] = ()
    """Columns beside context and scale: names of the handler's features, of Alpha158's, or Qlib
    expressions, such as "$pe". Each is ranked over the day; a window without a value takes the
    median of its day, and nothing else is made up. Later bars are refused."""
    hidden: int = 64
    """Width of the hidden layer."""
    dropout: float = 0.0
    """Share of inputs and hidden units left out in training."""
    epochs: int = 8
    """Passes over the days."""
    validation_days: int | None = None
    """Days, at most, that judge an epoch, evenly spaced over the validation segment; None takes
    all. A trained backbone reads each of their windows anew after every epoch."""
    windows_per_day: int | None = None
    """Windows of each day that a step sees, 5 at least, drawn anew each epoch; None takes all."""
    span: int = 1
    """Days in a row of which each name's bars are read once, by the scale of its first window, with
    a context after every day: by a frozen backbone, to learn from; in a step of one that is trained
    along, or of a GRU. 10 days take two to three times as long as one. What judges an epoch, and
    every score, is of a window by itself."""
    learning_rate: float = 7e-4
    """Peak of the one-cycle schedule."""
    warmup_share: float = 0.03
    """Share of all steps spent rising from a tenth of the peak."""
    weight_decay: float = 0.1
    """Of AdamW, whose betas are 0.9 and 0.95."""
    clip_norm: float = 1.0
    """Largest norm of the gradient."""
    metric: str = "rank_ic"
    """By which the epoch that is kept is chosen, on validation: "rank_ic", "ic" or "loss"."""
    patience: int | None = None
    """Stop after this many epochs without a better metric; None never stops early."""
    precision: str = "float32"
    """As of `TrainingConfig`."""
    seed: int = 0
    """Of new weights, the order of days, windows and dropout."""
    seeds: int = 1
    """Heads that are trained from as many seeds, `seed` and those after it, and scored as one: the
    mean of their scores, each standardised over the day. More than one needs a frozen backbone."""
    linear_path: bool = False
    """A linear map of the inputs beside the hidden layer, which is multiplied by a learned gate
    that begins at 0: a new head is linear."""
    horizons: Sequence[int] | None = None
    """Bars of the label's return, its own among them, that are learned together, such as [1, 2, 5,
    10]; the score is what is said of its own. Segments are purged by the longest. None: its own."""
    drop_extremes: float = 0.0
    """Share of each day's windows, at either end of its labels, that training leaves out; those
    that judge an epoch stay whole."""
    context: ContextConfig = LAST_ALONE
    """What is read of a window's contexts beside the last: fields of `ContextConfig`."""
    attention: int = 0
    """Landmarks of an attention across the names of a day, gated by the market's state: the means
    over its names of all that the window's normalisation took away. A batch is then the whole day,
    also of windows without a label. 0: none; 16 is a start."""
    neutral: bool = False
    """Learn what the scale features leave: target and score of each day are the residuals of least
    squares on the day's scale features, 70 names of a day at least. These features hold the styles
    (volatility, size, reversal), whose returns vary so much from day to day that what a context
    adds is not seen beside them. A neutral score has none: blend it with one that has."""
    initial: str = "pretrained"
    """"random" begins with new weights of the predictor, by `seed`, in place of the checkpoint's:
    what the same network and budget give without pretraining. Its tokenizer stays."""
    shift_dates: bool = False
    """Train a backbone on each window under the days and months of another part of the year, as of
    `TrainingConfig`: what the market did on a day could be learned from its date. Validation and
    every score have the true dates."""

    def __post_init__(self) -> None:
        check_names(self, "features")
        check_whole(self, "epochs", "hidden", "lora_rank")
        check_whole(self, "seed", "context_width", least=0)
        for name in ("patience", "validation_days"):
            if getattr(self, name) is not None:
                check_whole(self, name)
        if self.windows_per_day is not None:
            check_whole(self, "windows_per_day", least=5)
        check_dropouts(self, "dropout")
        check_number(self, "learning_rate", "warmup_share", "weight_decay", "clip_norm")
        check_number(self, "backbone_learning_rate", "lora_alpha")
        check_optimizer(self)
        require(
            self.backbone_learning_rate > 0,
            f"backbone_learning_rate must be above 0, got {self.backbone_learning_rate}",
        )
        check_known(
            self,
            loss=("ic", "mse", "rank"),
            backbone=("frozen", "lora", "whole"),
            metric=("rank_ic", "ic", "loss"),
            precision=PRECISIONS,
        )
        require(
            self.backbone == "frozen" or self.context_width > 0,
            "context_width 0 leaves the context out: a trained backbone would learn nothing",
        )
        self._check_options()

    def _check_options(self) -> None:
        check_whole(self, "seeds", most=MOST_SEEDS)
        check_whole(self, "attention", least=0, most=MOST_LANDMARKS)
        check_whole(self, "span")
        check_choice(self, "linear_path", "shift_dates", "neutral")
        check_number(self, "drop_extremes")
        check_known(self, initial=("pretrained", "random"))
        object.__setattr__(self, "context", as_context(self.context))
        check_attention(self.attention, self.hidden)
        require(
            0 <= self.drop_extremes <= MOST_EXTREMES,
            f"drop_extremes must lie in [0, {MOST_EXTREMES}], got {self.drop_extremes}: it is a "
            "share at either end",
        )
        if self.horizons is not None:
            require(
                isinstance(self.horizons, (list, tuple))
                and bool(self.horizons)
                and all(type(bars) is int and bars >= 1 for bars in self.horizons)
                and len(set(self.horizons)) == len(self.horizons) <= MOST_OUTPUTS,
                f"horizons must be a list of bars, each once, from 1, got "
                f"{short_repr(self.horizons)}",
            )
            object.__setattr__(self, "horizons", tuple(sorted(self.horizons)))
        require(
            self.seeds == 1 or self.backbone == "frozen",
            f"seeds {self.seeds} would train as many backbones, and a model has one: keep the "
            "backbone frozen, or take seeds 1",
        )
        require(
            not self.attention or self.windows_per_day is None,
            "attention compares all windows of a day with each other: leave windows_per_day out",
        )
        require(
            self.span == 1 or self.context_width > 0,
            "context_width 0 leaves the context out: there is nothing for `span` to read",
        )
        require(
            self.context == LAST_ALONE or self.context_width > 0,
            "context_width 0 leaves the context out: there is nothing for `context` to say",
        )
        require(
            self.initial == "pretrained" or self.context_width > 0,
            "context_width 0 leaves the context out: initial random would throw the predictor's "
            "weights away, and no head would read the new ones",
        )
        require(
            self.context.dtype == "float32" or self.backbone == "frozen",
            f"context.dtype {self.context.dtype} rounds contexts that are kept; a backbone that is "
            "trained along has its own read anew, in float32: leave dtype out, or keep it frozen",
        )

        least = fewest_names(len(SCALE_FEATURES))
        require(
            not self.neutral or self.windows_per_day is None or self.windows_per_day >= least,
            f"windows_per_day {self.windows_per_day} are too few to be neutral to "
            f"{len(SCALE_FEATURES)} scale features: take {least} at least, or leave it out",
        )
        require(
            not (self.neutral and self.linear_path and not self.context_width),
            "linear_path of the scale features alone is what neutral takes away: leave one out, or "
            "give a context_width",
        )
        require(
            not self.shift_dates or self.backbone != "frozen",
            "shift_dates is of a backbone that is trained along: a frozen one reads true dates, "
            "and learns none",
        )

    @property
    def outputs(self) -> int:
        """Horizons that a head learns."""
        return 1 if self.horizons is None else len(self.horizons)
