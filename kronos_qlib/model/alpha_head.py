"""AlphaHead: from the embedding of a window's last bar to one number that ranks a day's shares.

Shape letters: B windows of one day, D width of the context, C width of all contexts that are read,
F features, M columns of the market's state, H horizons, L landmarks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from kronos_qlib.errors import CheckpointConfigError, CheckpointError, ConfigError
from kronos_qlib.model.checkpoints import pretrained as checkpoint
from kronos_qlib.model.checkpoints import weights
from kronos_qlib.model.sizes import ATTENTION_HEADS, ContextConfig, HeadConfig, fewest_names
from kronos_qlib.settings import from_mapping
from kronos_qlib.strict_json import read_object

TINY = 1e-6
PENALTY = 1e-6
"""On squared weights of a day's least squares, per name, of features of one deviation: features
that say the same have a solution too."""
NOTHING_LEFT = 1e-5
"""What features leave of a column is rounding if its deviation is a smaller share."""
STATE_LIMIT = 3.0
"""Deviations from the training days' mean at which a market's state is held: what lies farther out
was never learned."""


class AcrossNames(nn.Module):
    """Attention among the shares of one day, through a few landmarks, gated by the market's state.

    Landmarks attend to all shares, then each share attends to the landmarks: B * L products in
    place of B * B, so 5,000 shares cost 5,000 times the landmarks. Its output map begins at zero,
    so a new head scores as without it.

    What it adds must differ between shares, since what is the same for all moves no rank: shares
    are normalised, and each landmark is kept beside what it has read, or all would be one mean.

    Source: induced set attention, Lee et al., "Set Transformer", arXiv 1810.00825; a gate by the
    market, Li et al., "MASTER", arXiv 2312.15235.
    """

    market_level: Tensor
    market_spread: Tensor

    def __init__(self, hidden: int, landmarks: int, market: int) -> None:
        super().__init__()
        # Of one deviation: smaller ones attend to all shares alike.
        self.inducing_points = nn.Parameter(torch.randn(landmarks, hidden))
        self.to_keys, self.to_values = nn.Linear(hidden, hidden), nn.Linear(hidden, hidden)
        self.to_queries = nn.Linear(hidden, hidden)
        self.gate = nn.Linear(market, hidden)
        self.out = nn.Linear(hidden, hidden)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)
        self.register_buffer("market_level", torch.zeros(market))
        self.register_buffer("market_spread", torch.ones(market))

    def fit_market(self, states: Tensor) -> None:
        """Take level and spread of the market's state from the training days, (days, M)."""
        self.market_level.copy_(states.mean(dim=0))
        self.market_spread.copy_(states.std(dim=0, correction=0))

    def forward(self, x: Tensor, market: Tensor) -> Tensor:
        """(B, hidden) of one whole day and its market's state (M,), to (B, hidden)."""
        x, points = F.layer_norm(x, x.shape[-1:]), self.inducing_points
        told = points + _attend(points, self.to_keys(x), self.to_values(x))
        mixed = _attend(self.to_queries(x), told, told)
        state = (market - self.market_level) / (self.market_spread + TINY)
        gate = torch.sigmoid(self.gate(state.clamp(-STATE_LIMIT, STATE_LIMIT)))
        added: Tensor = self.out(gate * mixed)
        return added


def _attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """(N, hidden) queries over (K, hidden) keys and values, in heads: (N, hidden)."""
    q, k, v = (
        part.view(len(part), ATTENTION_HEADS, -1).transpose(0, 1)[None] for part in (q, k, v)
    )
    mixed = F.scaled_dot_product_attention(q, k, v)
    return mixed[0].transpose(0, 1).flatten(1)


class AlphaHead(nn.Module):
    """A small network on the context vector and on what the window's normalisation took away.

    Both are standardised over one day's windows: what moves the whole market moves no rank. A
    narrow layer lies between the context and the rest, which would otherwise overfit: a context
    has many columns, and the days are few.

    A score is a place among the day's windows: all of them are to be given at once.

    Args:
        d_model: width of the predictor's context.
        features: columns beside it, standardised over the day (see
            `data.windows.scale_features`).
        context_width: columns that are made of the context; 0 leaves it out.
        hidden: width of the hidden layer.
        dropout: share of both inputs and of the hidden layer left out in training.
        options: the other fields of `HeadConfig`.

    Raises:
        ConfigError: a size or an option cannot work.
    """

    def __init__(
        self,
        d_model: int,
        features: int,
        context_width: int,
        hidden: int,
        dropout: float,
        **options: Any,
    ) -> None:
        super().__init__()
        how = HeadConfig(d_model, features, context_width, hidden, dropout, **options)
        if how.seeds != 1:
            raise ConfigError(f"an AlphaHead is one network, got seeds={how.seeds}: AlphaEnsemble")
        self.config = how
        read = how.context.parts * d_model
        self.narrow = nn.Linear(read, context_width) if context_width else None
        self.drop = nn.Dropout(dropout)
        self.inner = nn.Linear(context_width + features, hidden)
        self.outer = nn.Linear(hidden, how.outputs)
        self.direct = self.hidden_gate = self.across = None
        if how.linear_path:
            self.direct = nn.Linear(context_width + features, how.outputs)
            # 0: a new head is linear, and takes in the hidden layer as far as that helps.
            self.hidden_gate = nn.Parameter(torch.zeros(()))
        if how.attention:
            self.across = AcrossNames(hidden, how.attention, how.market)

    @property
    def names(self) -> tuple[str, ...]:
        """Of the features, in their order."""
        return tuple(self.config.names)

    @property
    def reads(self) -> ContextConfig | None:
        """Which contexts it is to be given; None: none."""
        return None if self.narrow is None else self.config.context

    @property
    def members(self) -> Sequence[AlphaHead]:
        """The networks that it is made of."""
        return (self,)

    def save_pretrained(
        self, path: str | Path, names: Sequence[str] | None = None, backbone: str | None = None
    ) -> Path:
        """Write `config.json` and `model.safetensors` into the folder `path`.

        Args:
            names: of the features, in their order; None: as it knows them.
            backbone: fingerprint of the networks whose contexts it reads; None: as it knows them.
        """
        return _save(self, path, names, backbone)

    @classmethod
    def from_pretrained(
        cls, path: str | Path, d_model: int, names: Sequence[str] | None = None
    ) -> Head:
        """Load what `save_pretrained` wrote, in evaluation mode: one network or an ensemble.

        Args:
            d_model: width of the predictor's context.
            names: that those of its features must begin with, further ones being a handler's
                columns; None: whatever it was trained on.

        Raises:
            CheckpointError: a file is missing, damaged or does not fit the other, or the head is
                of another predictor's width, or of other features than these.
        """
        folder = checkpoint.folder_of(path)
        file = folder / checkpoint.CONFIG_FILE
        values = read_object(file)
        try:
            config = from_mapping(HeadConfig, values, where=str(file))
            if "names" not in values:
                raise ConfigError(f"{file} lacks names")
        except ConfigError as bad:
            raise CheckpointConfigError(str(bad)) from bad
        if names is not None and list(config.names[: len(names)]) != list(names):
            raise CheckpointError(f"{folder} was trained on other features than this version has")
        if config.d_model != d_model:
            raise CheckpointError(
                f"{folder} reads contexts of width {config.d_model}, the predictor's have "
                f"{d_model}: load it with the predictor that it was trained on"
            )
        if config.features != len(config.names):
            raise CheckpointConfigError(
                f"{file}: features is {config.features}, there are {len(config.names)} names"
            )
        source = folder / checkpoint.WEIGHTS_FILE
        with weights.opened(source) as (data, header):
            with weights.shapes_alone():
                head = head_of(config)
            weights.fill(head, data, header, source)
        return head.eval()

    def forward(
        self,
        context: Tensor,
        features: Tensor,
        market: Tensor | None = None,
        styles: Tensor | None = None,
    ) -> Tensor:
        """Scores of one day's windows.

        Args:
            context: (B, C) contexts, as `reads` says; (B, 0) where it reads none.
            features: (B, F), standardised over the day.
            market: (M,) the day's market state, see `training.alpha.day_inputs`; needed where
                the head has an attention across names.
            styles: (B, F) features that a neutral head's scores are neutral to; None: `features`.

        Returns:
            (B,) in units of its own; a neutral head's are 0 on a day of fewer names than
            `fewest_names`.
        """
        return self.by_horizon(context, features, market, styles)[:, 0]

    def by_horizon(
        self,
        context: Tensor,
        features: Tensor,
        market: Tensor | None,
        styles: Tensor | None = None,
    ) -> Tensor:
        """(B, H) scores of each horizon, the label's own first; arguments as of `forward`."""
        return self._scores(self._compared(context), features, market, styles)

    def of_compared(
        self, context: Tensor, features: Tensor, market: Tensor | None = None
    ) -> Tensor:
        """`forward` of contexts that are `compared` already: its inputs as it weighs them.

        Here one window's input can be moved, or differentiated by, with the day's mean and
        deviation of contexts as they were. A neutral head's least squares are of the moved
        inputs; `with_day_held` keeps those too.

        Args:
            context: (B, C). features, market: as of `forward`.

        Returns:
            (B,) scores.
        """
        return self._scores(context, features, market)[:, 0]

    def with_day_held(
        self, context: Tensor, features: Tensor, market: Tensor | None = None
    ) -> Callable[[Tensor, Tensor, Tensor | None], Tensor]:
        """`of_compared` with all that is compared over the day as it is on this one.

        Of a neutral head the weights too by which features explain the scores: what one name's
        feature adds is then less what those weights take away for it.

        Args:
            context, features, market: as of `forward`, (B, C), (B, F) and (M,).
        """
        if not 0 < fewest_names(self.config.neutral) <= len(features):
            return self.of_compared
        with torch.no_grad():
            outputs = self._outputs(self._compared(context), features, market)
            styles = style_weights(outputs, self._styles(features))

        def held(context: Tensor, features: Tensor, market: Tensor | None) -> Tensor:
            outputs = self._outputs(context, features, market)
            return (outputs - _explained(styles, self._styles(features)))[:, 0]

        return held

    @property
    def usual_market(self) -> Tensor | None:
        """(M,) mean of the market's state over the training days; None: it reads no such state."""
        return None if self.across is None else self.across.market_level

    def _compared(self, context: Tensor) -> Tensor:
        return context if self.narrow is None else compared(context)

    def _styles(self, features: Tensor) -> Tensor:
        return features[:, : self.config.neutral]

    def _scores(
        self,
        context: Tensor,
        features: Tensor,
        market: Tensor | None,
        styles: Tensor | None = None,
    ) -> Tensor:
        outputs = self._outputs(context, features, market)
        if not self.config.neutral:
            return outputs
        return neutralised(outputs, self._styles(features if styles is None else styles))

    def _outputs(self, context: Tensor, features: Tensor, market: Tensor | None) -> Tensor:
        parts = [features]
        if self.narrow is not None:
            parts.insert(0, self.narrow(self.drop(context)))
        given = self.drop(torch.cat(parts, dim=-1))
        hidden = F.silu(self.inner(given))
        if self.across is not None:
            assert market is not None, "this head's attention has a gate by the market's state"
            hidden = hidden + self.across(hidden, market)
        out: Tensor = self.outer(self.drop(hidden))
        if self.direct is not None and self.hidden_gate is not None:
            out = self.direct(given) + self.hidden_gate * out
        return out

    def fit_market(self, states: Tensor) -> None:
        """Take the scale of the market's state from the training days, (days, M)."""
        if self.across is not None:
            self.across.fit_market(states)


class AlphaEnsemble(nn.Module):
    """Heads that differ by their seeds alone, scored as one: the mean of standardised scores.

    Args:
        heads: two or more of one `HeadConfig`.

    Raises:
        ConfigError: they differ, or are fewer.
    """

    def __init__(self, heads: Sequence[AlphaHead]) -> None:
        super().__init__()
        if len(heads) < 2 or any(head.config != heads[0].config for head in heads):
            raise ConfigError("an ensemble is of two or more heads of the same sizes and options")
        self.heads = nn.ModuleList(heads)
        self.config = replace(heads[0].config, seeds=len(heads))

    @property
    def names(self) -> tuple[str, ...]:
        """Of the features, in their order."""
        return self.members[0].names

    @property
    def reads(self) -> ContextConfig | None:
        """Which contexts it is to be given; None: none."""
        return self.members[0].reads

    @property
    def members(self) -> Sequence[AlphaHead]:
        """The networks that it is made of."""
        return [head for head in self.heads if isinstance(head, AlphaHead)]

    def save_pretrained(
        self, path: str | Path, names: Sequence[str] | None = None, backbone: str | None = None
    ) -> Path:
        """As of `AlphaHead`: one folder."""
        return _save(self, path, names, backbone)

    def forward(
        self,
        context: Tensor,
        features: Tensor,
        market: Tensor | None = None,
        styles: Tensor | None = None,
    ) -> Tensor:
        """(B,) the mean over members of their scores standardised over the day; see `AlphaHead`."""
        each = torch.stack(
            [head(context, features, market, styles) for head in self.members], dim=1
        )
        return compared(each.float()).mean(dim=1)

    def with_day_held(
        self, context: Tensor, features: Tensor, market: Tensor | None = None
    ) -> Callable[[Tensor, Tensor, Tensor | None], Tensor]:
        """As of `AlphaHead`: each member's (B,) scores keep this day's mean and deviation too."""
        with torch.no_grad():
            each = [head(context, features, market) for head in self.members]
            mean, deviation = _day_scale(torch.stack(each, dim=1).float())
        members = [head.with_day_held(context, features, market) for head in self.members]

        def held(context: Tensor, features: Tensor, market: Tensor | None) -> Tensor:
            each = [member(context, features, market) for member in members]
            standardised = (torch.stack(each, dim=1).float() - mean) / deviation
            return standardised.mean(dim=1)

        return held

    @property
    def usual_market(self) -> Tensor | None:
        """(M,) as of `AlphaHead`; the members learned from the same days."""
        return self.members[0].usual_market


Head = AlphaHead | AlphaEnsemble


def head_of(config: HeadConfig) -> Head:
    """A new head or ensemble of these sizes, its weights by torch's own generator."""
    sizes = {
        name: getattr(config, name) for name in HeadConfig.__dataclass_fields__ if name != "seeds"
    }
    if config.seeds == 1:
        return AlphaHead(**sizes)
    return AlphaEnsemble([AlphaHead(**sizes) for _ in range(config.seeds)])


def _save(head: Head, path: str | Path, names: Sequence[str] | None, backbone: str | None) -> Path:
    config = head.config if names is None else replace(head.config, names=tuple(names))
    if backbone is not None:
        config = replace(config, backbone=backbone)
    return checkpoint.replace_files(path, config.written(), weights.to_bytes(head))


def neutralised(columns: Tensor, features: Tensor) -> Tensor:
    """What is left of a day's columns after least squares on features and a constant.

    `signals.shaping.Neutralise` does so with scores that are made; this one is learned through.

    Args:
        columns: (B, K). features: (B, F), standardised over the day.

    Returns:
        (B, K); 0 of fewer names than `fewest_names`, and in columns that features explain but for
        rounding.
    """
    if len(columns) < fewest_names(features.shape[1]):
        return columns * 0
    left = columns - _explained(style_weights(columns, features), features)
    spread, whole = (part.detach().std(dim=0, correction=0) for part in (left, columns))
    kept: Tensor = left * (spread > NOTHING_LEFT * whole)
    return kept


def style_weights(columns: Tensor, features: Tensor) -> Tensor:
    """(F + 1, K) weights by which features (B, F) and a constant explain columns (B, K)."""
    inputs, wide = _with_constant(features), _in_float64(columns)
    with torch.autocast(inputs.device.type, enabled=False):
        penalty = PENALTY * len(inputs) * torch.eye(inputs.shape[1]).to(inputs)
        weights: Tensor = torch.linalg.solve(inputs.mT @ inputs + penalty, inputs.mT @ wide)
        return weights


def _explained(weights: Tensor, features: Tensor) -> Tensor:
    with torch.autocast(weights.device.type, enabled=False):
        return (_with_constant(features) @ weights).to(features)


def _with_constant(features: Tensor) -> Tensor:
    wide = _in_float64(features)
    return torch.cat((wide.new_ones(len(wide), 1), wide), dim=1)


def _in_float64(values: Tensor) -> Tensor:
    """On the CPU where the device has no such type."""
    return (values.cpu() if values.device.type == "mps" else values).double()


def compared(context: Tensor) -> Tensor:
    """Columns (B, D) standardised over the day, to (B, D); 0 where all values are equal."""
    centred = context - context.mean(dim=0, keepdim=True)
    return centred / _deviation(centred)


def _day_scale(columns: Tensor) -> tuple[Tensor, Tensor]:
    """(1, D) each: mean of columns (B, D) over the day, and their deviation, which is above 0."""
    mean = columns.mean(dim=0, keepdim=True)
    return mean, _deviation(columns - mean)


def _deviation(centred: Tensor) -> Tensor:
    """(1, D) of columns (B, D) less their means."""
    return centred.square().mean(dim=0, keepdim=True).sqrt() + TINY
