"""KronosPredictor: bars in, sampled bars out, in the bars' own units."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from kronos_qlib.configs import SamplingConfig
from kronos_qlib.data.calendar import stamps_of
from kronos_qlib.data.windows import WindowScale
from kronos_qlib.errors import BarDataError, ConfigError
from kronos_qlib.inference.engine import PackedKronos, PackedTokenizer
from kronos_qlib.inference.frames import bars_of_frame, timestamps_of
from kronos_qlib.inference.generate import decode_drawn, generate
from kronos_qlib.inference.sampling import path_uniforms
from kronos_qlib.log import progress
from kronos_qlib.model.checkpoint import check_pair
from kronos_qlib.model.tokenizer import KronosTokenizer
from kronos_qlib.model.transformer import Kronos
from kronos_qlib.schema import BAR_COLUMNS

Floats = npt.NDArray[np.float32]

BATCH_BARS = 100_000
"""Bars that go through the network together; bounds memory, does not change what is drawn."""


class KronosPredictor:
    """Forecasts series with a predictor and the tokenizer it was trained with.

    Args:
        device: a torch device; None takes CUDA, then Apple's GPU, then the CPU.
        max_context: bars that the network sees at once: 512 for the published small and base,
            2048 for mini. Never more than the checkpoint's own number, where it has one (nano:
            100). A longer lookback is cut to its last bars; a longer forecast slides.
        clip: normalised bars are clipped to this many standard deviations.

    Raises:
        CheckpointError: the two halves do not belong together.
    """

    def __init__(
        self,
        model: Kronos,
        tokenizer: KronosTokenizer,
        device: str | torch.device | None = None,
        max_context: int = 512,
        clip: float = 5,
    ) -> None:
        if not isinstance(model, Kronos) or not isinstance(tokenizer, KronosTokenizer):
            raise ConfigError(
                "expected KronosPredictor(model: Kronos, tokenizer: KronosTokenizer), got "
                f"{type(model).__name__} and {type(tokenizer).__name__}"
            )
        check_pair(model, tokenizer)
        if max_context < 1:
            raise ConfigError(f"max_context must be at least 1 bar, got {max_context}")
        if not clip > 0:
            raise ConfigError(f"clip must be above 0, got {clip}")
        self.device = pick_device(device)
        # In training mode they would drop out and the forecast would be noise (fault 1).
        self.model = model.to(self.device).eval()
        self.tokenizer = tokenizer.to(self.device).eval()
        known = model.origin.max_context if model.origin else None
        self.max_context = min(max_context, known) if known else max_context
        self.clip = float(clip)
        self._packed: tuple[PackedKronos, PackedTokenizer] | None = None
        self._packed_from: list[tuple[int, int]] = []

    def predict(
        self,
        df: pd.DataFrame,
        x_timestamp: Any,
        y_timestamp: Any,
        pred_len: int,
        T: float = 1.0,  # noqa: N803  (its published name)
        top_k: int = 0,
        top_p: float = 0.9,
        sample_count: int = 1,
        verbose: bool = True,
        seed: int = 0,
    ) -> pd.DataFrame:
        """Forecast one series; the mean of its sampled paths.

        Args:
            df: (L rows) open, high, low, close[, volume[, amount]] in their own units.
            x_timestamp, y_timestamp: the L timestamps of `df` and the `pred_len` after them: a
                Series, a DatetimeIndex, an array or a list.
            T: temperature; 0 takes the likeliest token.
            top_k: 0 keeps all tokens. top_p applies after it.
            sample_count: paths to average.
            verbose: show progress.
            seed: the same seed and bars give the same forecast, whatever else is in a batch.

        Returns:
            `pred_len` rows by y_timestamp, the columns of `schema.BAR_COLUMNS`.

        Raises:
            BarDataError, CalendarError, ConfigError: name the series and what is wrong.
        """
        return self.predict_batch(
            [df],
            [x_timestamp],
            [y_timestamp],
            pred_len,
            T,
            top_k,
            top_p,
            sample_count,
            verbose,
            seed,
        )[0]

    def predict_batch(
        self,
        df_list: Sequence[pd.DataFrame],
        x_timestamp_list: Sequence[Any],
        y_timestamp_list: Sequence[Any],
        pred_len: int,
        T: float = 1.0,  # noqa: N803
        top_k: int = 0,
        top_p: float = 0.9,
        sample_count: int = 1,
        verbose: bool = True,
        seed: int = 0,
    ) -> list[pd.DataFrame]:
        """Forecast several series, of equal length or not; arguments as in `predict`.

        Returns:
            One frame per series, in the order given.
        """
        counts = {len(df_list), len(x_timestamp_list), len(y_timestamp_list)}
        if len(counts) != 1:
            raise BarDataError(
                f"got {len(df_list)} frames, {len(x_timestamp_list)} x_timestamps and "
                f"{len(y_timestamp_list)} y_timestamps; each series needs one of each"
            )
        by_length: dict[int, list[int]] = defaultdict(list)
        bars, times = [], []
        for place, frame in enumerate(df_list):
            name = f"series {place}"
            bars.append(bars_of_frame(frame, name))
            past = timestamps_of(x_timestamp_list[place], len(frame), name, "x_timestamp")
            ahead = timestamps_of(y_timestamp_list[place], pred_len, name, "y_timestamp")
            times.append(timestamps_of([*past, *ahead], len(frame) + pred_len, name, "the time"))
            by_length[len(frame)].append(place)
        results: dict[int, pd.DataFrame] = {}
        for length, places in by_length.items():
            stamps = stamps_of(np.stack([times[place] for place in places]))
            paths = self.paths(
                np.stack([bars[place] for place in places]),
                stamps[:, :length],
                stamps[:, length:],
                pred_len,
                T=T,
                top_k=top_k,
                top_p=top_p,
                sample_count=sample_count,
                seed=seed,
                verbose=verbose,
            )
            for place, mean in zip(places, paths.mean(axis=1), strict=True):
                index = pd.DatetimeIndex(times[place][length:])
                results[place] = pd.DataFrame(mean, index=index, columns=list(BAR_COLUMNS))
        return [results[place] for place in range(len(df_list))]

    def paths(
        self,
        x: Floats,
        x_stamp: npt.NDArray[np.integer],
        y_stamp: npt.NDArray[np.integer],
        pred_len: int,
        T: float = 1.0,  # noqa: N803
        top_k: int = 0,
        top_p: float = 0.9,
        sample_count: int = 1,
        seed: int = 0,
        keys: Sequence[str] | None = None,
        verbose: bool = False,
        rotate_s2: bool = False,
    ) -> Floats:
        """Sample futures of several series of one length.

        Args:
            x: (series, L, 6) bars in their own units, columns as in `schema.BAR_COLUMNS`.
            x_stamp, y_stamp: (series, L, 5) and (series, pred_len, 5) time fields of those bars.
            seed, keys: a series' paths depend on the seed, its key and its bars only; without
                keys the bars themselves are the key.
            rotate_s2: see `SamplingConfig.rotate_s2`.

        Returns:
            (series, sample_count, pred_len, 6) float32 bars in their own units.

        Raises:
            BarDataError: shapes do not agree, or a value is not finite.
            ConfigError: a sampling setting cannot work.
        """
        how = SamplingConfig(
            paths=sample_count, temperature=T, top_k=top_k, top_p=top_p, rotate_s2=rotate_s2
        )
        x = np.asarray(x, dtype=np.float32)
        _check_shapes(x, np.shape(x_stamp), np.shape(y_stamp), pred_len, keys)
        stamps = np.concatenate((x_stamp, y_stamp), axis=1)
        names = [row.tobytes() for row in x] if keys is None else [key.encode() for key in keys]
        result = np.empty((len(x), how.paths, pred_len, len(BAR_COLUMNS)), dtype=np.float32)
        length = min(x.shape[1], self.max_context) + pred_len
        size = max(1, BATCH_BARS // (length * how.paths))
        engine = self._engine()
        starts = range(0, len(x), size)
        for start in progress(starts, "forecasting", unit="batch", show=verbose):
            part = slice(start, start + size)
            uniforms = path_uniforms(seed, names[part], how.paths, pred_len)
            result[part] = self._forecast(engine, x[part], stamps[part], how, uniforms)
        return result

    @torch.inference_mode()
    def _forecast(
        self,
        engine: tuple[PackedKronos, PackedTokenizer],
        bars: Floats,
        stamps: npt.NDArray[np.integer],
        how: SamplingConfig,
        uniforms: torch.Tensor,
    ) -> Floats:
        net, tokenizer = engine
        horizon = stamps.shape[1] - bars.shape[1]
        scale = WindowScale.of(bars)
        z = torch.from_numpy(scale.to_z(bars, self.clip)).to(self.device)
        tokens = tokenizer.encode(z)
        moments = torch.from_numpy(stamps.astype(np.int64)).to(self.device)
        drawn = generate(
            net, tokens, moments, horizon, how, uniforms.to(self.device), self.max_context
        )
        ahead = decode_drawn(tokenizer, tokens, drawn, how.paths, self.max_context)
        futures = ahead.cpu().numpy().reshape(len(bars), how.paths * horizon, -1)
        return scale.to_bars(futures).reshape(len(bars), how.paths, horizon, -1)

    def _engine(self) -> tuple[PackedKronos, PackedTokenizer]:
        """Both halves packed for decoding: again whenever a weight has changed since."""
        weights = [*self.model.state_dict().values(), *self.tokenizer.state_dict().values()]
        # Training writes in place, which torch counts; loading may put another tensor there.
        now = [(weight.data_ptr(), weight._version) for weight in weights]
        if self._packed is None or now != self._packed_from:
            self._packed = PackedKronos(self.model), PackedTokenizer(self.tokenizer)
            self._packed_from = now
        return self._packed


def pick_device(device: str | torch.device | None) -> torch.device:
    """The device that was asked for; for None or "auto" CUDA, then Apple's GPU, then the CPU.

    Raises:
        ConfigError: this machine has no such device.
    """
    if device is not None and device != "auto":
        try:
            chosen = torch.device(device)
        except RuntimeError as unknown:
            raise ConfigError(f"no device is called {device!r}; try 'auto' or 'cpu'") from unknown
        if (chosen.type == "cuda" and not torch.cuda.is_available()) or (
            chosen.type == "mps" and not torch.backends.mps.is_available()
        ):
            raise ConfigError(
                f"this machine has no device {device!r}; set device to 'auto' or 'cpu'"
            )
        return chosen
    if torch.cuda.is_available():
        return torch.device("cuda")
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def _check_shapes(
    x: Floats,
    x_stamp: tuple[int, ...],
    y_stamp: tuple[int, ...],
    pred_len: int,
    keys: Sequence[str] | None,
) -> None:
    if pred_len < 1:
        raise ConfigError(f"pred_len must be at least 1 bar, got {pred_len}")
    if x.ndim != 3 or x.shape[2] != len(BAR_COLUMNS) or x.shape[1] < 2:
        raise BarDataError(
            f"expected bars of shape (series, at least 2 bars, {len(BAR_COLUMNS)}), got {x.shape}"
        )
    expected = (x.shape[0], x.shape[1], 5), (x.shape[0], pred_len, 5)
    if (x_stamp, y_stamp) != expected:
        raise BarDataError(
            f"expected stamps of shapes {expected[0]} and {expected[1]}, "
            f"got {x_stamp} and {y_stamp}"
        )
    if keys is not None and len(keys) != len(x):
        raise BarDataError(f"expected {len(x)} keys, one for each series, got {len(keys)}")
    broken = np.argwhere(~np.isfinite(x))
    if len(broken):
        series, bar, column = broken[0]
        name = f"series {series}" if keys is None else keys[series]
        raise BarDataError(f"{name}: {BAR_COLUMNS[column]} of bar {bar} is missing or not finite")
