"""The alpha head's side of training: whole days as batches, and losses on what is traded.

Shape letters: N windows of a segment, B windows of a day, T bars, F features, D context.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F  # noqa: N812
from scipy.stats import rankdata
from torch import Tensor, nn

from kronos_qlib.data.windows.faulty_bars import Floats, Ints
from kronos_qlib.data.windows.gather import WindowBatch, gather
from kronos_qlib.data.windows.label import Label
from kronos_qlib.data.windows.scale_features import scale_features, standardised_over_day
from kronos_qlib.data.windows.window import Windows
from kronos_qlib.errors import BarDataError, TrainingError
from kronos_qlib.model.alpha_head import AlphaHead
from kronos_qlib.model.gru_reader import GRUReader
from kronos_qlib.model.tokenizer import KronosTokenizer
from kronos_qlib.model.transformer import Kronos
from kronos_qlib.training.batches import shuffled
from kronos_qlib.training.distributed import Share
from kronos_qlib.training.losses import Losses, check_finite, encode_exactly, in_pieces
from kronos_qlib.training.stage_settings import AlphaConfig

CHUNK_VALUES = 2**22
"""Windows x bars x width x layers of a backbone that are read at a time."""
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
    apart = target[:, None] - target[None, :]
    loss = F.softplus(-(scores[:, None] - scores[None, :]) * apart.sign())
    return (loss * apart.abs()).sum() / apart.abs().sum().clamp_min(1e-8)


ALPHA_LOSSES: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "ic": ic_loss,
    "mse": mse_loss,
    "rank": rank_loss,
}


@dataclass(frozen=True)
class AlphaBatch:
    """One day's windows, ready for a loss.

    features: (B, F) float32, standardised over the whole day.
    target: (B,) float32, the label's rank over the whole day, standardised.
    context: (B, D) float32, embedded beforehand; None where the backbone reads `z` itself.
    z, stamps: (b, T, 6) and (b, T, 5), as of `TrainingBatch`, of this process' own windows; None
        beside a context.
    lengths: (b,) int64, bars seen.
    share: which of the B windows those b are; None where they are all.
    """

    features: Tensor
    target: Tensor
    context: Tensor | None
    z: Tensor | None
    stamps: Tensor | None
    lengths: Tensor
    share: Share | None = None

    def __len__(self) -> int:
        return len(self.features)


@dataclass(frozen=True, eq=False)
class AlphaSegment:
    """A segment's windows, the features that a head sees beside the context, and its targets.

    windows: (N,) by time. features: (N, F) standardised over each day, the scale's and then the
    columns that a handler gave. returns: (N,) the label as it is, NaN where unknown. target: (N,) its standardised rank. days: those with enough labels.
    contexts: (N, D) embedded beforehand, when the backbone is frozen.
    """

    windows: Windows
    features: Floats
    returns: Floats
    target: Floats
    days: list[slice]
    contexts: Floats | None = None

    @classmethod
    def of(
        cls,
        windows: Windows,
        label: Label,
        contexts: Floats | None = None,
        columns: Floats | None = None,
    ) -> AlphaSegment:
        """From windows by time, labels known or not; `contexts` and `columns` are theirs."""
        returns = label.of(windows)
        target = np.full(len(windows), np.nan, dtype=np.float32)
        days = []
        for day in windows.moments():
            known = day.start + np.flatnonzero(np.isfinite(returns[day]))
            if len(known) >= LEAST_WINDOWS:
                target[known] = standardised_over_day(returns[known, None])[:, 0]
                days.append(day)
        return cls(windows, day_features(windows, columns), returns, target, days, contexts)

    def __len__(self) -> int:
        return len(self.windows)

    def sampler(self, config: AlphaConfig) -> DaySampler:
        """Its days as a stage is set to take them."""
        return DaySampler(self, seed=config.seed, windows_per_day=config.windows_per_day)

    def to_judge_by(self, config: AlphaConfig) -> AlphaSegment:
        """At most `validation_days` of its days, evenly spaced: always the same ones."""
        most = config.validation_days
        if most is None or len(self.days) <= most:
            return self
        which = np.linspace(0, len(self.days) - 1, most).round().astype(int)
        return replace(self, days=[self.days[place] for place in which])

    def memory(self, size: int) -> WindowBatch | None:
        """Memory for the bars of up to `size` windows; None beside contexts, which need none."""
        if self.contexts is not None:
            return None
        return WindowBatch.empty(size, self.windows.lookback)

    def batch(
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
            return torch.from_numpy(values).to(device)

        own = which if share is None else which[share.rows]
        lengths = np.full(len(own), self.windows.lookback, dtype=np.int64)
        if self.windows.lengths is not None:
            lengths = self.windows.lengths[own].astype(np.int64)
        context = z = stamps = None
        if self.contexts is not None:
            context = tensor(self.contexts[which])
        else:
            filled = gather(self.windows, own, out=out)
            z, stamps = tensor(filled.z), tensor(filled.stamps)
        return AlphaBatch(
            features=tensor(self.features[which]),
            target=tensor(self.target[which]),
            context=context,
            z=z,
            stamps=stamps,
            lengths=tensor(lengths),
            share=share,
        )


def day_features(windows: Windows, columns: Floats | None = None) -> Floats:
    """(N, F) scale features of windows by time, each standardised over its day.

    Args:
        columns: (N, C) that follow them, standardised alike; NaN takes the median of its day.

    Raises:
        BarDataError: names a window whose bars have no logarithm.
    """
    features = np.empty((len(windows), 0), dtype=np.float32)
    for number, day in enumerate(windows.moments()):
        one = windows.take(day)
        raw = [(which, scale_features(group.bars(slice(None)))) for which, group in one.by_length()]
        if not number:
            features = np.empty((len(windows), raw[0][1].shape[1]), dtype=np.float32)
        for which, values in raw:
            features[day.start + which] = values
        broken = np.flatnonzero(~np.isfinite(features[day]).all(axis=1))
        if len(broken):  # one would spoil the ranks of all
            raise BarDataError(
                f"{one.describe(broken[:1])[0]}: a price that is not positive, or an amount below "
                f"0, lies in the window ({len(broken)} such windows that day); repair the bars "
                "(data_prep/check_bars.py lists them)"
            )
        features[day] = standardised_over_day(features[day])
    if columns is None or not columns.shape[1]:
        return features
    ranks = np.empty(columns.shape, dtype=np.float32)
    for day in windows.moments():
        ranks[day] = standardised_over_day(columns[day])
    return np.concatenate((features, ranks), axis=1)


class DaySampler:
    """Every day once per epoch, whole or as a sample of its windows, in one order per seed."""

    def __init__(
        self, segment: AlphaSegment, *, seed: int, windows_per_day: int | None = None
    ) -> None:
        self.segment, self.seed, self.windows_per_day = segment, seed, windows_per_day
        sizes = [day.stop - day.start for day in segment.days]
        self.largest = min(max(sizes, default=0), windows_per_day or len(segment))

    def __len__(self) -> int:
        """Days per epoch."""
        return len(self.segment.days)

    def epoch(self, number: int, start: int = 0) -> Iterator[Ints]:
        """The labelled windows of each day, (B,) places among the segment's, after `start` days."""
        days = shuffled(len(self), self.seed, number)[start:]
        for place in days.tolist():
            day = self.segment.days[place]
            which = day.start + np.flatnonzero(np.isfinite(self.segment.target[day]))
            if self.windows_per_day is not None and len(which) > self.windows_per_day:
                rng = np.random.default_rng((self.seed, number, place))
                which = np.sort(rng.choice(which, self.windows_per_day, replace=False))
            yield which


class AlphaNet(nn.Module):
    """A head, and the predictor or GRU whose context it reads, where that is trained with it."""

    def __init__(self, head: AlphaHead, predictor: Kronos | GRUReader | None = None) -> None:
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

    def targets(self, batch: AlphaBatch) -> Tensor:
        """Windows of this process: () int64."""
        return batch.lengths.new_tensor(len(batch.lengths))

    def losses(self, batch: AlphaBatch, pieces: int = 1) -> Losses:
        """The loss of one whole day, () float, whatever the process; see `Step`.

        Contexts are read a few windows at a time by themselves: `pieces` is always 1.
        """
        return {"loss": self.criterion(self.scores(batch), batch.target)}

    def scores(self, batch: AlphaBatch) -> Tensor:
        """(B,) float32 of one day's windows; a correlation takes no fewer digits.

        A head compares each context with those of the whole day, so every process has all of them
        and scores its own windows.
        """
        share = batch.share or Share(len(batch))
        context = batch.context
        if context is None:
            context = share.gather(self._read(batch))
        scores: Tensor = self.net.head(context, batch.features)
        return share.gather(scores[share.rows].float())

    def _read(self, batch: AlphaBatch) -> Tensor:
        """(b, D) contexts, a few windows at a time, so that only these are kept of a whole day."""
        net, tokenizer, z, stamps = self.net.predictor, self.tokenizer, batch.z, batch.stamps
        assert net is not None and z is not None and stamps is not None
        if isinstance(net, GRUReader):
            context: Tensor = net(z, stamps, batch.lengths)
            return context.to(batch.features.dtype)
        assert tokenizer is not None

        def read(z: Tensor, stamps: Tensor, lengths: Tensor) -> Tensor:
            s1, s2 = encode_exactly(tokenizer, z)
            context = net.read(s1, s2, stamps)
            return context[torch.arange(len(z), device=z.device), lengths - 1]

        few = max(8, CHUNK_VALUES // (z.shape[1] * net.config.d_model * net.config.n_layers))
        pieces = -(-len(z) // few)
        return in_pieces(read, z, stamps, batch.lengths, pieces=pieces).to(batch.features.dtype)

    @torch.inference_mode()
    def validate(
        self, segment: AlphaSegment, config: AlphaConfig, device: torch.device | str
    ) -> dict[str, float]:
        """Mean daily loss, IC and Rank IC over a segment: no dropout, whole days."""
        self.net.eval()
        rows = []
        memory = segment.memory(max((day.stop - day.start for day in segment.days), default=0))
        for day in segment.days:
            which = np.arange(day.start, day.stop)
            batch = segment.batch(which, device, memory, Share.here(len(which)))
            scores = self.scores(batch)
            known = torch.isfinite(batch.target)
            losses = {"loss": self.criterion(scores[known], batch.target[known])}
            check_finite(losses, segment.windows.take(which))
            loss = float(losses["loss"])
            kept = known.cpu().numpy()
            rows.append(
                (loss, *correlations(scores.cpu().numpy()[kept], segment.returns[day][kept]))
            )
        means = np.mean(rows, axis=0).tolist()
        return dict(zip(("valid_loss", "valid_ic", "valid_rank_ic"), means, strict=True))


def correlations(scores: Floats, returns: Floats) -> tuple[float, float]:
    """One day's IC and Rank IC of scores and returns (B,); 0 where either is constant."""

    def correlation(one: npt.NDArray[Any], other: npt.NDArray[Any]) -> float:
        one, other = one - one.mean(), other - other.mean()
        norm = float(np.sqrt((one @ one) * (other @ other)))
        return float(one @ other) / norm if norm > 0 else 0.0

    wide = scores.astype(np.float64), returns.astype(np.float64)
    return correlation(*wide), correlation(rankdata(wide[0]), rankdata(wide[1]))


def check_days(segment: AlphaSegment, name: str) -> None:
    """Refuse a segment without a day to train or to judge on.

    Raises:
        TrainingError: names the segment.
    """
    if not segment.days:
        raise TrainingError(
            f"the {name} segment has no day with {LEAST_WINDOWS} windows whose label is known; an "
            "alpha head compares many instruments of a day: widen the segment or the universe"
        )
