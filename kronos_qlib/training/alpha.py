"""The alpha head's side of training: whole days as batches, and losses on what is traded.

Shape letters: N windows of a segment, B windows of a day, T bars, F features, C contexts that are
read, H horizons, M columns of the market's state.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from kronos_qlib.data.windows.faulty_bars import Floats, Ints
from kronos_qlib.data.windows.gather import WindowBatch, gather
from kronos_qlib.data.windows.label import Label
from kronos_qlib.data.windows.scale_features import (
    SCALE_FEATURES,
    scale_features,
    standardised_over_day,
)
from kronos_qlib.data.windows.window import Windows
from kronos_qlib.errors import BarDataError, TrainingError
from kronos_qlib.model.alpha_head import AlphaHead, Head, neutralised
from kronos_qlib.model.gru_reader import GRUReader
from kronos_qlib.model.sizes import fewest_names
from kronos_qlib.model.tokenizer import KronosTokenizer
from kronos_qlib.model.transformer import Kronos
from kronos_qlib.training.batches import (
    MOST_TOKEN_BYTES,
    Segment,
    shuffled,
    token_bytes,
    with_tokens,
)
from kronos_qlib.training.hardware import on_device
from kronos_qlib.training.losses import (
    Losses,
    check_finite,
    encode_exactly,
    in_pieces,
    shifted_dates,
)
from kronos_qlib.training.parallel.distributed import Share
from kronos_qlib.training.spans import SpanBatch, SpanSampler, span_batch
from kronos_qlib.training.stage_settings import AlphaConfig

CHUNK_VALUES = 2**22
"""Windows x bars x width x layers of a backbone that are read at a time."""
PAIR_BLOCKS = 8
"""In which a day's pairs are compared: the fewer, the more are computed for nothing."""
LEAST_WINDOWS = 5
"""Windows with a label that a day needs: a correlation over fewer is noise."""


def ic_loss(scores: Tensor, target: Tensor) -> Tensor:
    """1 - the correlation of scores and targets over the day, (B,) float each, to ()."""
    scores, target = scores - scores.mean(), target - target.mean()
    loss: Tensor = 1 - (scores * target).sum() / (scores.norm() * target.norm()).clamp_min(1e-8)
    return loss


def mse_loss(scores: Tensor, target: Tensor) -> Tensor:
    """Mean squared error on the standardised target: (B,) float each, to ()."""
    return F.mse_loss(scores, target)


def rank_loss(scores: Tensor, target: Tensor) -> Tensor:
    """Logistic loss of every pair's order, weighted by the difference of its targets.

    Args:
        scores, target: (B,) float, of one day.

    Returns:
        () float, in nats.

    Source: RankNet, Burges et al., "Learning to rank using gradient descent" (2005).
    """
    # Of a pair the one whose target is higher comes first; the other way round weighs nothing. In
    # the order of targets these are the pairs on one side of the diagonal, a block of rows at once.
    order = target.argsort(descending=True)
    scores, target = scores[order], target[order]
    losses, weights = scores.new_zeros(()), scores.new_zeros(())
    rows = max(1, -(-len(scores) // PAIR_BLOCKS))
    for start in range(0, len(scores), rows):
        above, below = slice(start, start + rows), slice(start, None)
        weight = F.relu(target[above, None] - target[None, below])
        loss = F.softplus(scores[None, below] - scores[above, None])
        losses, weights = losses + (loss * weight).sum(), weights + weight.sum()
    return losses / weights.clamp_min(1e-8)


ALPHA_LOSSES: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "ic": ic_loss,
    "mse": mse_loss,
    "rank": rank_loss,
}


class Contexts(Protocol):
    """Contexts (N, C) of windows, in memory or on disk."""

    def __getitem__(self, which: Any) -> Floats:
        """(B, C) float32 of the chosen windows, by places or a slice."""


@dataclass(frozen=True)
class AlphaBatch:
    """One day's windows, ready for a loss.

    features: (B, F) float32, standardised over the whole day.
    target: (B,) float32, the label's rank over the whole day, standardised; NaN where it has none.
    known: (B,) bool, which have one; None where all have.
    others: (B, H - 1) float32, the same over other horizons; None without any.
    market: (M,) float32, the market's state that day.
    context: (B, C) float32, embedded beforehand; None where the backbone reads `z` itself.
    z, stamps: (b, T, 6) and (b, T, 5), as of `TrainingBatch`, of this process' own windows; None
        beside a context.
    lengths: (b,) int64, bars seen.
    tokens: s1 and s2, (b, T) int64 each, where they were made beforehand.
    share: which of the B windows those b are; None where they are all.
    """

    features: Tensor
    target: Tensor
    known: Tensor | None
    others: Tensor | None
    market: Tensor
    context: Tensor | None
    z: Tensor | None
    stamps: Tensor | None
    lengths: Tensor
    tokens: tuple[Tensor, Tensor] | None = None
    share: Share | None = None

    def __len__(self) -> int:
        return len(self.features)


@dataclass(frozen=True, eq=False)
class AlphaSegment:
    """A segment's windows, the features that a head sees beside the context, and its targets.

    windows: (N,) by time. features: (N, F) standardised over each day. returns: (N,) the label as
    it is, NaN where unknown. target: (N,) its standardised rank. days: those with enough labels.
    contexts: (N, C) embedded beforehand, when the backbone is frozen. others: (N, H - 1) as
    `target`, of other horizons. market: (moments, M) the market's states; states: (N,) which of
    them is each window's. tokens: s1 and s2, (N, T) each, where a backbone reads windows anew.
    span: days in a row that a batch is of. least: targets that a day has at least.
    """

    windows: Windows
    features: Floats
    returns: Floats
    target: Floats
    days: list[slice]
    contexts: Contexts | None = None
    others: Floats | None = None
    market: Floats | None = None
    states: Ints | None = None
    tokens: tuple[npt.NDArray[Any], npt.NDArray[Any]] | None = None
    span: int = 1
    least: int = LEAST_WINDOWS

    @classmethod
    def of(
        cls,
        windows: Windows,
        label: Label | None,
        contexts: Contexts | None = None,
        *,
        columns: Floats | None = None,
        others: Sequence[Label] = (),
        neutral: bool = False,
    ) -> AlphaSegment:
        """From windows by time, labels known or not; `contexts` are theirs.

        Args:
            label: None of windows that are scored alone.
            columns: (N, C) beside the scale features, as of `day_features`.
            others: labels that are learned beside the first, which is the one that counts.
            neutral: targets are what the scale features leave of them, see `neutralised`.
        """
        moments = windows.moments()
        scale, market = day_inputs(windows)
        returns = np.full(len(windows), np.nan, dtype=np.float32)
        if label is not None:
            returns = label.of(windows)
        styles = scale if neutral else None
        least = fewest_names(scale.shape[1]) if neutral else LEAST_WINDOWS
        target, days = _ranked(returns, moments, least, styles)
        beside = [_ranked(other.of(windows), moments, least, styles)[0] for other in others]
        return cls(
            windows,
            _with_columns(windows, scale, columns),
            returns,
            target,
            days,
            contexts,
            np.stack(beside, axis=1) if beside else None,
            market,
            np.repeat(np.arange(len(moments)), [day.stop - day.start for day in moments]),
            least=least,
        )

    def __len__(self) -> int:
        return len(self.windows)

    def sampler(self, config: AlphaConfig) -> DaySampler | SpanSampler:
        """Its days as a stage is set to take them.

        Contexts are compared over a batch: without its extremes, which are known by their labels
        alone, a day would be another than it is where it is scored.
        """
        settings: dict[str, Any] = {
            "seed": config.seed,
            "windows_per_day": config.windows_per_day,
            "whole": config.windows_per_day is None
            and (config.attention > 0 or config.drop_extremes > 0),
        }
        if self.span > 1:
            return SpanSampler(self, span=self.span, **settings)
        return DaySampler(self, **settings)

    def without_extremes(self, share: float) -> AlphaSegment:
        """Without the targets of those windows of each day that lie at either end of its labels.

        Their other inputs stay: a day is as it was for the names that are left. Days that keep too
        few targets are left out.

        Args:
            share: of the day's labels, at either end; at most the whole number below it.
        """
        if not share:
            return self
        target = _without_ends(self.target, self.days, share)
        others = self.others
        if others is not None:
            columns = [_without_ends(column, self.days, share) for column in others.T]
            others = np.stack(columns, axis=1)
        kept = [day for day in self.days if np.isfinite(target[day]).sum() >= self.least]
        return replace(self, target=target, others=others, days=kept)

    def to_judge_by(self, config: AlphaConfig) -> AlphaSegment:
        """At most `validation_days` of its days, evenly spaced: always the same ones."""
        most = config.validation_days
        if most is None or len(self.days) <= most:
            return self
        which = np.linspace(0, len(self.days) - 1, most).round().astype(int)
        return replace(self, days=[self.days[place] for place in which])

    def memory(self, size: int) -> WindowBatch | None:
        """Memory for the bars of up to `size` windows; None beside contexts, which need none.

        Nor do spans, of which each has as many bars as its names trade on.
        """
        if self.contexts is not None or self.span > 1:
            return None
        return WindowBatch.empty(size, self.windows.lookback)

    def batch(
        self,
        which: Ints,
        device: torch.device | str = "cpu",
        out: WindowBatch | None = None,
        share: Share | None = None,
    ) -> AlphaBatch | SpanBatch:
        """The chosen windows of a day, or of `span` days, whose readings the processes share.

        Args:
            which, device, out, share: as of `day_batch`.
        """
        if self.span > 1:
            return span_batch(self, which, self.span, device)
        return self.day_batch(which, device, out, share)

    def day_batch(
        self,
        which: Ints,
        device: torch.device | str = "cpu",
        out: WindowBatch | None = None,
        share: Share | None = None,
    ) -> AlphaBatch:
        """The chosen windows of a day; `out` and `share` as for `Segment.batch`.

        Of the day's other windows only the bars are left out: a score is a place among all.
        """

        def tensor(values: npt.NDArray[Any]) -> Tensor:
            return on_device(values, device)

        own = which if share is None else which[share.rows]
        lengths = np.full(len(own), self.windows.lookback, dtype=np.int64)
        if self.windows.lengths is not None:
            lengths = self.windows.lengths[own].astype(np.int64)
        context = z = stamps = tokens = None
        if self.contexts is not None:
            context = tensor(self.contexts[which])
        else:
            filled = gather(self.windows, own, out=out)
            z, stamps = tensor(filled.z), tensor(filled.stamps)
            if self.tokens is not None:
                s1, s2 = (tensor(ids[own].astype(np.int64)) for ids in self.tokens)
                tokens = (s1, s2)
        return replace(
            self.day_alone(which, device),
            context=context,
            z=z,
            stamps=stamps,
            lengths=tensor(lengths),
            tokens=tokens,
            share=share,
        )

    def day_alone(self, which: Ints, device: torch.device | str = "cpu") -> AlphaBatch:
        """The chosen windows of a day, without anything to read of them."""

        def tensor(values: npt.NDArray[Any]) -> Tensor:
            return on_device(values, device)

        known = np.isfinite(self.target[which])
        return AlphaBatch(
            features=tensor(self.features[which]),
            target=tensor(self.target[which]),
            known=None if known.all() else tensor(known),
            others=None if self.others is None else tensor(self.others[which]),
            market=tensor(self._market_of(which)),
            context=None,
            z=None,
            stamps=None,
            lengths=tensor(np.full(len(which), self.windows.lookback, dtype=np.int64)),
        )

    def moment_of(self, which: Ints) -> Ints:
        """(B,) the number of each chosen window's moment."""
        places: Ints = self.windows.table.places[self.windows.ends[which]].astype(np.int64)
        return places

    def _market_of(self, which: Ints) -> Floats:
        if self.market is None or self.states is None or not len(which):
            return np.empty(0, dtype=np.float32)
        state: Floats = self.market[self.states[which[0]]]
        return state


def _ranked(
    returns: Floats, moments: Sequence[slice], least: int, styles: Floats | None
) -> tuple[Floats, list[slice]]:
    """(N,) standardised ranks of a label over each day, and the days that have enough of it.

    Args:
        styles: (N, F) that are explained away; None: none.
    """
    target = np.full(len(returns), np.nan, dtype=np.float32)
    days = []
    for day in moments:
        known = day.start + np.flatnonzero(np.isfinite(returns[day]))
        if len(known) < least:
            continue
        ranks = standardised_over_day(returns[known, None])
        if styles is not None:
            ranks = _neutral(ranks, styles[known])
        target[known] = ranks[:, 0]
        days.append(day)
    return target, days


def _neutral(ranks: Floats, styles: Floats) -> Floats:
    """(B, 1) what styles (B, F) leave of a day's ranks, standardised; 0 if that is rounding."""
    left = neutralised(torch.from_numpy(ranks).double(), torch.from_numpy(styles).double())
    spread = left.square().mean().sqrt().clamp_min(1e-6)
    found: Floats = (left / spread).numpy().astype(np.float32)
    return found


def _without_ends(target: Floats, days: Sequence[slice], share: float) -> Floats:
    """(N,) targets, NaN at either end of each day."""
    found = target.copy()
    for day in days:
        known = day.start + np.flatnonzero(np.isfinite(target[day]))
        many = int(share * len(known))
        order = known[np.argsort(target[known], kind="stable")]
        found[order[:many]] = found[order[len(order) - many :]] = np.nan
    return found


def day_features(windows: Windows, columns: Floats | None = None) -> Floats:
    """(N, F) scale features of windows by time, each standardised over its day.

    Args:
        columns: (N, C) that follow them, standardised alike; NaN takes the median of its day.

    Raises:
        BarDataError: names a window whose bars have no logarithm.
    """
    return _with_columns(windows, day_inputs(windows)[0], columns)


def _with_columns(windows: Windows, features: Floats, columns: Floats | None) -> Floats:
    if columns is None or not columns.shape[1]:
        return features
    ranks = np.empty(columns.shape, dtype=np.float32)
    for day in windows.moments():
        ranks[day] = standardised_over_day(columns[day])
    return np.concatenate((features, ranks), axis=1)


def day_inputs(windows: Windows) -> tuple[Floats, Floats]:
    """What a head sees of windows by time, beside contexts.

    Returns:
        (N, F) scale features, each standardised over its day; and (moments, M) the market's state:
        the mean of each scale feature, as it is, over the windows of its moment.

    Raises:
        BarDataError: names a window whose bars have no logarithm.
    """
    days = windows.moments()
    features = np.empty((len(windows), len(SCALE_FEATURES)), dtype=np.float32)
    market = np.empty((len(days), len(SCALE_FEATURES)), dtype=np.float32)
    for number, day in enumerate(days):
        one = windows.take(day)
        for which, group in one.in_blocks():
            features[day.start + which] = scale_features(group.bars(slice(None)))
        broken = np.flatnonzero(~np.isfinite(features[day]).all(axis=1))
        if len(broken):  # one would spoil the ranks of all
            raise BarDataError(
                f"{one.describe(broken[:1])[0]}: a price that is not positive, or an amount below "
                f"0, lies in the window ({len(broken)} such windows that day); repair the bars "
                "(data_prep/check_bars.py lists them)"
            )
        market[number] = features[day].mean(axis=0, dtype=np.float64)
        features[day] = standardised_over_day(features[day])
    return features, market


class DaySampler:
    """Every day once per epoch, whole or as a sample of its windows, in one order per seed.

    Args:
        whole: of each day all windows, those without a target too; else those that have one.
    """

    def __init__(
        self,
        segment: AlphaSegment,
        *,
        seed: int,
        windows_per_day: int | None = None,
        whole: bool = False,
    ) -> None:
        self.segment, self.seed, self.windows_per_day = segment, seed, windows_per_day
        self.whole = whole
        sizes = [day.stop - day.start for day in segment.days]
        self.largest = min(max(sizes, default=0), windows_per_day or len(segment))

    def __len__(self) -> int:
        """Days per epoch."""
        return len(self.segment.days)

    def epoch(self, number: int, start: int = 0) -> Iterator[Ints]:
        """The windows of each day, (B,) places among the segment's, after `start` days."""
        days = shuffled(len(self), self.seed, number)[start:]
        for place in days.tolist():
            day = self.segment.days[place]
            which = day.start + np.flatnonzero(np.isfinite(self.segment.target[day]))
            if self.whole:
                which = np.arange(day.start, day.stop)
            if self.windows_per_day is not None and len(which) > self.windows_per_day:
                rng = np.random.default_rng((self.seed, number, place))
                which = np.sort(rng.choice(which, self.windows_per_day, replace=False))
            yield which


class AlphaNet(nn.Module):
    """A head, and the predictor or GRU whose context it reads, where that is trained with it."""

    def __init__(self, head: Head, predictor: Kronos | GRUReader | None = None) -> None:
        super().__init__()
        self.head = head
        self.predictor = predictor


@dataclass(frozen=True)
class AlphaStep:
    """Trains a head, with or without the backbone, on whole days.

    A GRU in the backbone's place needs no tokenizer.
    """

    net: AlphaNet
    tokenizer: KronosTokenizer | None
    criterion: Callable[[Tensor, Tensor], Tensor] = ic_loss
    shift_dates: bool = False
    """Whether a backbone learns each window under the dates of another part of the year."""
    needs_whole_batch = True  # a day's correlation is no mean over windows

    def __post_init__(self) -> None:
        if self.tokenizer is not None:
            self.tokenizer.eval()

    def groups(self, config: AlphaConfig) -> list[dict[str, Any]]:
        """The optimizer's: the head, and a pretrained backbone at its own rate."""
        if isinstance(self.net.predictor, GRUReader):
            return [{"params": list(self.net.parameters())}]
        backbone = self.net.predictor.parameters() if self.net.predictor else ()
        trained = [weight for weight in backbone if weight.requires_grad]
        groups: list[dict[str, Any]] = [{"params": list(self.net.head.parameters())}]
        if trained:
            groups.append({"params": trained, "lr": config.backbone_learning_rate})
        return groups

    def targets(self, batch: AlphaBatch | SpanBatch) -> Tensor:
        """Windows of this process, or readings: () int64."""
        rows = batch.places if isinstance(batch, SpanBatch) else batch.lengths
        return rows.new_tensor(len(rows))

    def losses(self, batch: AlphaBatch | SpanBatch, pieces: int = 1) -> Losses:
        """The loss of one whole day, () float, whatever the process; see `Step`.

        Of several horizons it is the mean, over those of which enough labels are known that day; of
        several days the mean too. Contexts are read a few windows at a time by themselves: `pieces`
        is always 1.
        """
        if isinstance(batch, SpanBatch):
            sizes = [len(day) for day in batch.days]
            contexts = torch.split(self._read_span(batch), sizes)
            of_days = [
                self._day_loss(replace(day, context=context))
                for day, context in zip(batch.days, contexts, strict=True)
            ]
            return {"loss": torch.stack(of_days).mean()}
        return {"loss": self._day_loss(batch)}

    def _day_loss(self, batch: AlphaBatch) -> Tensor:
        if batch.others is None:
            return self._loss(self.scores(batch), batch.target, batch.known)
        share = batch.share or Share(len(batch))
        head = self.net.head
        assert isinstance(head, AlphaHead), "members of an ensemble are trained one by one"
        scores = head.by_horizon(self._context(batch, share), batch.features, batch.market)
        scores = share.gather(scores[share.rows].float())
        found = [self._loss(scores[:, 0], batch.target, batch.known)]
        for place, target in enumerate(batch.others.T, 1):
            known = torch.isfinite(target)
            if int(known.sum()) >= LEAST_WINDOWS:
                found.append(self._loss(scores[:, place], target, known))
        return torch.stack(found).mean()

    def _loss(self, scores: Tensor, target: Tensor, known: Tensor | None) -> Tensor:
        """Of the windows that have a target."""
        if known is not None:
            scores, target = scores[known], target[known]
        return self.criterion(scores, target)

    def scores(self, batch: AlphaBatch) -> Tensor:
        """(B,) float32 of one day's windows; a correlation takes no fewer digits.

        A head compares each context with those of the whole day, so every process has all of them
        and scores its own windows.
        """
        share = batch.share or Share(len(batch))
        scores: Tensor = self.net.head(self._context(batch, share), batch.features, batch.market)
        return share.gather(scores[share.rows].float())

    def _context(self, batch: AlphaBatch, share: Share) -> Tensor:
        """(B, C) of all processes' windows."""
        return share.gather(self._read(batch)) if batch.context is None else batch.context

    def _read(self, batch: AlphaBatch) -> Tensor:
        """(b, C) contexts after the last bars."""
        assert batch.z is not None and batch.stamps is not None
        places = batch.lengths[:, None] - 1
        found = self._read_after(batch.z, batch.stamps, places, batch.tokens)
        return found[:, 0].to(batch.features.dtype)

    def _read_span(self, batch: SpanBatch) -> Tensor:
        """(B, C) contexts of all processes' windows."""
        found = batch.share.gather(self._read_after(batch.z, batch.stamps, batch.places, None))
        return found[batch.of_reading, batch.of_day].to(batch.days[0].features.dtype)

    def _read_after(
        self, z: Tensor, stamps: Tensor, places: Tensor, tokens: tuple[Tensor, Tensor] | None
    ) -> Tensor:
        """(b, K, C) contexts, a few windows at a time: of a whole day only these are kept."""
        net, tokenizer = self.net.predictor, self.tokenizer
        assert net is not None
        if isinstance(net, GRUReader):
            return net.read_after(z, stamps, places)
        assert tokenizer is not None
        if self.shift_dates and net.training:
            stamps = shifted_dates(stamps)
        pooling = self.net.head.config.context
        few = max(8, CHUNK_VALUES // (z.shape[1] * net.config.d_model * net.config.n_layers))
        pieces = -(-len(z) // few)

        def encode(z: Tensor) -> Tensor:
            return torch.stack(encode_exactly(tokenizer, z), dim=-1)

        if tokens is None:  # once: not again in the backward pass
            with torch.no_grad():
                s1, s2 = in_pieces(encode, z, pieces=pieces).unbind(dim=-1)
        else:
            s1, s2 = tokens

        def read(s1: Tensor, s2: Tensor, stamps: Tensor, places: Tensor) -> Tensor:
            return net.read_after(s1, s2, stamps, places, pooling)

        return in_pieces(read, s1, s2, stamps, places, pieces=pieces)

    @torch.inference_mode()
    def validate(
        self, segment: AlphaSegment, config: AlphaConfig, device: torch.device | str
    ) -> dict[str, float]:
        """Mean daily loss, IC and Rank IC over a segment: no dropout, whole days.

        Both ICs are with the label as it is; a neutral loss is of what styles leave of it.
        """
        self.net.eval()
        rows = []
        memory = segment.memory(max((day.stop - day.start for day in segment.days), default=0))
        for day in segment.days:
            which = np.arange(day.start, day.stop)
            batch = segment.day_batch(which, device, memory, Share.here(len(which)))
            scores = self.scores(batch)
            known = torch.isfinite(batch.target)
            losses = {"loss": self._loss(scores, batch.target, batch.known)}
            check_finite(losses, segment.windows.take(which))
            loss = float(losses["loss"])
            kept = known.cpu().numpy()
            rows.append(
                (loss, *correlations(scores.cpu().numpy()[kept], segment.returns[day][kept]))
            )
        means = np.mean(rows, axis=0).tolist()
        return dict(zip(("valid_loss", "valid_ic", "valid_rank_ic"), means, strict=True))


def with_day_tokens(
    segment: AlphaSegment,
    tokenizer: KronosTokenizer,
    most: int | None,
    epochs: int,
    device: torch.device | str,
    show_progress: bool = False,
) -> AlphaSegment:
    """The segment with all its windows' tokens, where a backbone would have them made more often.

    Args:
        most: windows of a day that a pass reads, at most; None: all.
        epochs: passes over its days.
    """
    sizes = [int(np.isfinite(segment.target[day]).sum()) for day in segment.days]
    seen = epochs * sum(size if most is None else min(size, most) for size in sizes)
    whole = Segment(segment.windows)
    if seen <= len(segment) or token_bytes(whole, tokenizer) > MOST_TOKEN_BYTES:
        return segment
    return replace(segment, tokens=with_tokens(whole, tokenizer, device, show_progress).tokens)


def correlations(scores: Floats, returns: Floats) -> tuple[float, float]:
    """One day's IC and Rank IC of scores and returns (B,); 0 where either is constant."""
    from scipy.stats import rankdata  # here, as in `standardised_over_day`

    def correlation(one: npt.NDArray[Any], other: npt.NDArray[Any]) -> float:
        one, other = one - one.mean(), other - other.mean()
        norm = float(np.sqrt((one @ one) * (other @ other)))
        return float(one @ other) / norm if norm > 0 else 0.0

    wide = scores.astype(np.float64), returns.astype(np.float64)
    return correlation(*wide), correlation(rankdata(wide[0]), rankdata(wide[1]))


def check_days(segment: AlphaSegment, name: str, drop_extremes: float = 0.0) -> None:
    """Refuse a segment without a day to train or to judge on.

    Args:
        drop_extremes: share that was left out of it at either end.

    Raises:
        TrainingError: names the segment.
    """
    if not segment.days:
        left = f" once drop_extremes {drop_extremes} is left out" if drop_extremes else ""
        raise TrainingError(
            f"the {name} segment has no day with {segment.least} windows whose label is known{left}"
            f"{', which a neutral head takes' if segment.least > LEAST_WINDOWS else ''}"
            "; an alpha head compares many instruments of a day: widen the segment or the universe"
            f"{', or leave out fewer' if drop_extremes else ''}"
        )
