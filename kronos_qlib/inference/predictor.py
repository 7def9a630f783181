"""KronosPredictor: bars in, sampled bars out, in the bars' own units.

Shape letters: L bars of a lookback.
"""

from __future__ import annotations

import itertools
import logging
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import nn

from kronos_qlib.calibration.calibration import FILE, Calibration
from kronos_qlib.data.calendar.stamps import stamps_of
from kronos_qlib.data.windows.scale import WindowScale
from kronos_qlib.data.windows.segments import Moment
from kronos_qlib.errors import BarDataError, ConfigError
from kronos_qlib.inference.batching import (
    BatchPlan,
    Sizes,
    plan_batches,
    planned_threads,
    run_batches,
)
from kronos_qlib.inference.calibrating import (
    FEW_DRAWN,
    PATHS,
    WINDOWS,
    calibration_on,
    checkpoint_of,
)
from kronos_qlib.inference.choice import (
    UNCALIBRATED,
    Chosen,
    check_drawn,
    check_request,
    choose,
    sort_out,
)
from kronos_qlib.inference.devices import pick_device, pick_dtype
from kronos_qlib.inference.forecast import PRICES, Forecast, make_coherent
from kronos_qlib.inference.frames import series_of_frames, warn_of_doubts, whole
from kronos_qlib.inference.generate import decode_drawn, generate
from kronos_qlib.inference.graphs.cuda_graphs import recorder_for
from kronos_qlib.inference.graphs.recorded_drawing import RecordedDrawing
from kronos_qlib.inference.options import (
    AUTO,
    PUBLISHED,
    FrameOptions,
    PathOptions,
    Request,
)
from kronos_qlib.inference.packed import (
    PackedKronos,
    PackedTime,
    PackedTokenizer,
    between_dtype,
    kept_dtype,
    read_contexts,
    require_finite,
)
from kronos_qlib.inference.sampling import SamplingConfig, key_of, place_uniforms, uniforms_in
from kronos_qlib.log import progress
from kronos_qlib.model.checkpoints.pretrained import check_pair
from kronos_qlib.model.layers import TIME_TABLE_ROWS
from kronos_qlib.model.sizes import ContextConfig
from kronos_qlib.model.tokenizer import KronosTokenizer
from kronos_qlib.model.transformer import Kronos
from kronos_qlib.schema import BAR_COLUMNS, CLOSE, TIME_FIELDS

if TYPE_CHECKING:
    from typing_extensions import Unpack  # typing has it from Python 3.11 on

logger = logging.getLogger(__name__)

Floats = npt.NDArray[np.float32]
Stamps = npt.NDArray[np.integer]


@dataclass(frozen=True)
class Packed:
    """Both halves laid out for decoding."""

    net: PackedKronos
    tokenizer: PackedTokenizer
    recorded: RecordedDrawing | None = None
    """Draws by recordings of `net`; None: each batch is drawn step by step."""


class Drawing(Protocol):
    """Draws the paths of some series from what was kept of their prompts."""

    def __call__(
        self,
        rows: slice,
        ahead: Stamps,
        uniforms: torch.Tensor,
        each_step: Callable[[], None] | None,
    ) -> Floats:
        """
        Args:
            rows: which of the series that were asked for.
            ahead: (B, H, 5) int64 stamps of the bars to come of those.
            uniforms: (B, P, H, 2) random numbers.
            each_step: to be called after each bar.

        Returns:
            (B, P, H, 6) float32 bars in their own units.
        """


class KronosPredictor:
    """Forecasts series with a predictor and the tokenizer it was trained with.

    Weights that are trained, loaded or replaced meanwhile are those of the next call. What torch
    does not count goes unseen: a change through `.data` or NumPy, and one in place of weights that
    were made in inference mode. Change weights under `torch.no_grad()`.

    Args:
        device: a torch device; None takes CUDA, then Apple's GPU, then the CPU.
        max_context: bars that the network sees at once: 512 for the published small and base,
            2048 for mini. Never more than the checkpoint's own number, where it has one (nano:
            100). A longer lookback is cut to its last bars; a longer forecast slides: once
            lookback and drawn bars exceed it, every path is read anew for every bar, which is
            exact and many times slower, so leave room for `pred_len` where speed matters.
        clip: normalised bars are clipped to this many standard deviations.
        dtype: "float32", or "bfloat16" for weights and activations (norms, rotary tables, softmax
            and sampling stay in float32): about twice as fast where the machine multiplies it
            natively. "int8", on a CPU with AVX-512 VNNI, for the products of the predictor (the
            tokenizer, keys and values in bfloat16): a larger network is faster still. The tokens
            drawn differ, as after any rounding; benchmarks/number_types.py has what that costs.
        memory_mb: budget in MiB for what forecasting allocates beside weights, bars and result.
            It sets the micro-batches, not what is drawn.
        cuda_graphs: on a CUDA GPU, draw a batch whose shape has come before by a CUDA graph of the
            whole drawing. Batches are filled up to a few sizes, by an eighth at most and beyond
            `memory_mb`, and the memory of the largest stays taken. Nothing on other devices, with
            a replaced time embedding, nor for what `StreamingPredictor` keeps in mode "fast".

    Raises:
        CheckpointError: the two halves do not belong together.
        ConfigError: a setting cannot work, or this machine has no such device or products; when
            something is asked for, also that a part of a half has a `forward` of its own, such as a
            projection with an adapter. Time features and quantizer may.
    """

    cuda_graphs = True

    calibration: Calibration | None
    """What `calibrate` fitted, and "auto" takes first; it may be set. None: the file beside the
    weights, if there is one."""

    def __init__(
        self,
        model: Kronos,
        tokenizer: KronosTokenizer,
        device: str | torch.device | None = None,
        max_context: int = 512,
        clip: float = 5,
        dtype: str | torch.dtype = "float32",
        memory_mb: int = 2048,
        cuda_graphs: bool = True,
    ) -> None:
        if not isinstance(model, Kronos) or not isinstance(tokenizer, KronosTokenizer):
            raise ConfigError(
                "expected KronosPredictor(model: Kronos, tokenizer: KronosTokenizer), got "
                f"{type(model).__name__} and {type(tokenizer).__name__}"
            )
        check_pair(model, tokenizer)
        max_context = whole("max_context", max_context)
        if not clip > 0:
            raise ConfigError(f"clip must be above 0, got {clip}")
        self.device = pick_device(device)
        self.dtype = pick_dtype(dtype, self.device)
        self.memory_mb = whole("memory_mb", memory_mb)
        # In training mode they would drop out and the forecast would be noise (fault 1).
        self.model = model.to(self.device).eval()
        self.tokenizer = tokenizer.to(self.device).eval()
        known = model.origin.max_context if model.origin else None
        self.max_context = min(max_context, known) if known else max_context
        self.clip = float(clip)
        self.cuda_graphs = bool(cuda_graphs)
        self._recorder = recorder_for(self.device, self.cuda_graphs)
        self._cut: set[int] = set()
        self._packed: Packed | None = None
        self._packed_from: list[tuple[int, int]] = []
        self.calibration = None
        self._checkpoint = ""
        self._checkpoint_from: list[tuple[int, int]] = []
        self._logged: set[str] = set()

    def __getstate__(self) -> dict[str, Any]:
        """Without what belongs to this process: weights as a library packs them, CUDA graphs."""
        return self.__dict__ | {"_packed": None, "_packed_from": [], "_recorder": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._recorder = recorder_for(self.device, self.cuda_graphs)

    @classmethod
    def from_pretrained(
        cls,
        checkpoint: str | Path,
        tokenizer: str | Path | None = None,
        device: str | torch.device | None = None,
    ) -> KronosPredictor:
        """Load both halves of a checkpoint, to see as many bars at once as it has been trained on.

        Args:
            checkpoint: an alias (nano, mini, small, base), a Hub id or a folder.
            tokenizer: where its tokenizer is, if not under the same name.
            device: as of the class.

        Raises:
            CheckpointError: a file is missing or does not fit, or the Hub is out of reach.
            ConfigError: this machine has no such device.
        """
        codes = KronosTokenizer.from_pretrained(tokenizer or checkpoint)
        model = Kronos.from_pretrained(checkpoint)
        # Weights that do not say how much they have seen at once are taken for published ones.
        known = model.origin.max_context if model.origin else None
        return cls(model, codes, device=device, max_context=known or 512)

    def predict(
        self,
        df: pd.DataFrame,
        x_timestamp: Any,
        y_timestamp: Any = None,
        pred_len: int | None = None,
        T: float = 1.0,  # noqa: N803  (its published name)
        top_k: int = 0,
        top_p: float = 0.9,
        sample_count: int = 1,
        verbose: bool = True,
        **options: Unpack[FrameOptions],
    ) -> pd.DataFrame:
        """Forecast one series; the mean of its sampled paths.

        Args:
            df: (L rows) open, high, low, close[, volume[, amount]] in their own units.
            x_timestamp: the L timestamps of `df`: a Series, a DatetimeIndex, an array or a list.
            y_timestamp: the `pred_len` timestamps after them; None makes them from `exchange`,
                from `freq`, or, without both, at the weekdays and times of day of the past. What
                of them is doubtful is logged.
            pred_len: bars to forecast; None takes as many as `y_timestamp` has.
            T: temperature; 0 takes the likeliest token.
            top_k: 0 keeps all tokens. top_p applies after it.
            sample_count: paths to average.
            verbose: show progress.
            options: exchange, freq, seed, coherent, calibration, and `sampling` in place of the
                four above, or anchor, stratified, rotate_s2: see `inference.options.FrameOptions`.
                `coherent=False, anchor=False` gives the published numbers; calibration is None
                unless asked for, and a calibrated mean lies near the last close.

        Returns:
            `pred_len` rows by time, the columns of `schema.BAR_COLUMNS`.

        Raises:
            BarDataError, CalendarError, ConfigError: name the series and what is wrong.

        Source: published `KronosPredictor.predict`.
        """
        how = Request.of((T, top_k, top_p), sample_count, verbose, options)
        ahead = None if y_timestamp is None else [y_timestamp]
        [found] = self._forecasts([df], [x_timestamp], ahead, pred_len, how)
        return self._logged_mean(found, how)

    def predict_batch(
        self,
        df_list: Sequence[pd.DataFrame],
        x_timestamp_list: Sequence[Any],
        y_timestamp_list: Sequence[Any] | None = None,
        pred_len: int | None = None,
        T: float = 1.0,  # noqa: N803
        top_k: int = 0,
        top_p: float = 0.9,
        sample_count: int = 1,
        verbose: bool = True,
        **options: Unpack[FrameOptions],
    ) -> list[pd.DataFrame]:
        """Forecast several series, of equal length or not; arguments as in `predict`.

        Returns:
            One frame per series, in the order given.

        Source: published `KronosPredictor.predict_batch`.
        """
        how = Request.of((T, top_k, top_p), sample_count, verbose, options)
        found = self._forecasts(df_list, x_timestamp_list, y_timestamp_list, pred_len, how)
        return [self._logged_mean(forecast, how) for forecast in found]

    def predict_paths(
        self,
        df_list: Sequence[pd.DataFrame],
        x_timestamp_list: Sequence[Any],
        y_timestamp_list: Sequence[Any] | None = None,
        pred_len: int | None = None,
        T: float = 1.0,  # noqa: N803
        top_k: int = 0,
        top_p: float = 0.9,
        sample_count: int = 20,
        verbose: bool = True,
        keys: Sequence[str] | None = None,
        **options: Unpack[FrameOptions],
    ) -> list[Forecast]:
        """Sampled paths of several series, of equal length or not; arguments as in `predict`.

        Args:
            keys: a name for each series: it keys the random numbers as in `paths`, errors use it.
            options: as in `predict`, with `calibration="auto"` where none is given: calibrated by
                what `calibrate` fitted or what lies beside the weights; `Forecast.calibration`
                says so, or why not. None leaves the paths as they were drawn.

        Returns:
            One `Forecast` per series, in the order given: its mean, quantiles, probabilities.
        """
        asked = {"calibration": AUTO, **options}
        how = Request.of((T, top_k, top_p), sample_count, verbose, asked, usual_paths=20)
        return self._forecasts(df_list, x_timestamp_list, y_timestamp_list, pred_len, how, keys)

    def _forecasts(
        self,
        frames: Sequence[pd.DataFrame],
        past: Sequence[Any],
        ahead: Sequence[Any] | None,
        pred_len: int | None,
        how: Request,
        keys: Sequence[str] | None = None,
    ) -> list[Forecast]:
        series = series_of_frames(
            frames, past, ahead, pred_len, keys, how.exchange, how.freq, warn=how.warn
        )
        if how.warn:
            warn_of_doubts(series, keys, self.max_context)
        by_length: dict[int, list[int]] = defaultdict(list)
        for place, one in enumerate(series):
            by_length[len(one.bars)].append(place)
        results: dict[int, Forecast] = {}
        for places in by_length.values():
            group = [series[place] for place in places]
            drawn, chosen = self.draw(
                np.stack([one.bars for one in group]),
                stamps_of(np.stack([one.past for one in group])),
                stamps_of(np.stack([one.ahead for one in group])),
                how,
                None if keys is None else [keys[place] for place in places],
            )
            for place, one, paths, taken in zip(places, group, drawn, chosen, strict=True):
                close = float(one.bars[-1, CLOSE])
                name = "" if keys is None else keys[place]
                results[place] = Forecast(
                    paths, one.ahead, close, name, how.sampling.anchor, taken.text
                )
        return [results[place] for place in range(len(series))]

    def paths(
        self,
        x: Floats,
        x_stamp: Stamps,
        y_stamp: Stamps,
        pred_len: int,
        T: float = 1.0,  # noqa: N803
        top_k: int = 0,
        top_p: float = 0.9,
        sample_count: int = 1,
        seed: int = 0,
        keys: Sequence[str] | None = None,
        verbose: bool = False,
        **options: Unpack[PathOptions],
    ) -> Floats:
        """Sample futures of several series of one length.

        Args:
            x: (series, L, 6) bars in their own units, columns as in `schema.BAR_COLUMNS`.
            x_stamp, y_stamp: (series, L, 5) and (series, pred_len, 5) time fields of those bars.
            seed, keys: a series' paths depend on the seed, its key and its bars only; without
                keys the rises and falls of its bars are the key, so that the unit of prices or
                volume decides nothing. Equal keys give common random numbers, whose noise cancels
                between series.
            options: coherent, calibration (None unless asked for), and `sampling` in place of T,
                top_k, top_p and sample_count, or anchor, stratified, rotate_s2: see
                `inference.options.PathOptions`.

        Returns:
            (series, sample_count, pred_len, 6) float32 bars in their own units.

        Raises:
            BarDataError: shapes do not agree, or a value is not finite.
            ConfigError: a sampling setting cannot work, or one path exceeds the memory budget.
        """
        how = Request.of((T, top_k, top_p), sample_count, verbose, {**options, "seed": seed})
        pred_len = whole("pred_len", pred_len)
        _check_stamps(y_stamp, (len(x), pred_len, len(TIME_FIELDS)), "y_stamp", keys)
        result, chosen = self.draw(x, x_stamp, y_stamp, how, keys)
        for one in chosen:
            self._log_uncalibrated(one.text, how)
        return result

    def draw(
        self,
        x: Floats,
        x_stamp: Stamps,
        y_stamp: Stamps,
        request: Request,
        keys: Sequence[str] | None,
        drawing: Drawing | None = None,
    ) -> tuple[Floats, list[Chosen]]:
        """What `paths` and `predict_paths` are made of: random numbers, batches, calibration.

        Args:
            x, x_stamp, y_stamp, keys: as in `paths`.
            request: the arguments of the call.
            drawing: draws a batch in place of a full read of its bars; None: a full read.

        Returns:
            As `paths`, and the calibration that each series took.

        Raises:
            BarDataError, ConfigError: as of `paths`.
        """
        how, pred_len = request.sampling, y_stamp.shape[1]
        x = _checked(x, x_stamp, keys)
        chosen = check_request(self._choose(request.calibration), request)
        result = np.empty((len(x), how.paths, pred_len, len(BAR_COLUMNS)), dtype=np.float32)
        if not len(x):
            return result, []
        x, x_stamp = self._seen(x, x_stamp)
        taken = sort_out(chosen, x, x_stamp, lambda series: _name(series, keys))
        stamps = np.concatenate((x_stamp, y_stamp), axis=1)
        packed = self.engine()

        plan = self.plan(len(x), x.shape[1], pred_len, how.paths, how.stratified)
        names = [key_of(row) for row in x] if keys is None else [str(key).encode() for key in keys]
        place_uniforms(result, request.seed, names, how.stratified)

        batches = plan.batches(len(x), how.paths)
        each_step = _counted(request.on_progress, len(batches) * pred_len)

        def draw(rows: slice, futures: slice) -> None:
            past = x[rows]
            uniforms = torch.from_numpy(uniforms_in(result[rows, futures]).copy())
            if drawing is None:
                drawn = self._forecast(packed, past, stamps[rows], how, uniforms, each_step)
            else:
                drawn = drawing(rows, np.asarray(y_stamp)[rows], uniforms, each_step)
            result[rows, futures] = make_coherent(drawn, past) if request.coherent else drawn

        _run(draw, plan, batches, "forecasting", request.verbose)
        taken = check_drawn(taken, result, lambda series: _name(series, keys))
        can = np.flatnonzero([one.calibration is not None for one in taken])
        if len(can) == len(x):
            chosen.apply(result, x, x_stamp, y_stamp, how, self.memory_mb)
        elif len(can):
            moved = result[can]
            chosen.apply(moved, x[can], x_stamp[can], y_stamp[can], how, self.memory_mb)
            result[can] = moved
        return result, taken

    def calibrate(
        self,
        bars: str | Path | pd.DataFrame,
        *,
        lookback: int = 90,
        horizon: int = 10,
        first: Moment | None = None,
        last: Moment | None = None,
        windows: int = WINDOWS,
        drawn: int = FEW_DRAWN,
        sampling: SamplingConfig | None = None,
        seed: int = 0,
        show_progress: bool = True,
        repair: Iterable[str] = (),
        **reading: Any,
    ) -> Calibration:
        """Fit a calibration on the past of one's own bars, for `predict_paths` and others to take.

        It walks over windows whose next bars have come, and fits the spread of their returns on
        their past volatility. Minutes at most; `calibration.save(path)` keeps it, and
        `calibration=path` takes it up later. It belongs to these weights, and to bars of the kind
        it was fitted on: of a day and longer, or shorter.

        Args:
            bars: a long table (symbol, date, open, ...), or a file or folder as
                `WindowDataset.from_file` takes them.
            lookback: bars that a window sees, 23 at least: as many as forecasts will be given.
            horizon: bars ahead; farther ones, forecast later, grow with the square root of time.
            first, last: of the bars to forecast, both inclusive; None: as far as bars go. No bar
                after `last` is used, whatever the file holds.
            windows: how many at most, evenly spaced in time; 220 at least must be there.
            drawn: windows of them that paths are drawn for, to learn whether their spread and mean
                say anything that past volatility does not; 0: none, which takes seconds.
            sampling: how; None: as `predict_paths` does. Of forecasts drawn in another way only
                the past volatility decides.
            seed: the same seed and bars give the same calibration.
            show_progress: on a terminal or in a notebook.
            repair, reading: symbol, columns, encoding, ... as in `WindowDataset.from_file`.

        Returns:
            The calibration, which is the attribute `calibration` from now on.

        Raises:
            BarDataError: bars cannot be read, or are too few: says how many windows are needed.
            ConfigError: a setting cannot work.
        """
        if sampling is None:
            sampling = SamplingConfig(
                paths=PATHS,
                temperature=PUBLISHED["T"],
                top_k=int(PUBLISHED["top_k"]),
                top_p=PUBLISHED["top_p"],
            )
        self.calibration = calibration_on(
            self,
            bars,
            sampling,
            lookback=whole("lookback", lookback),
            horizon=whole("horizon", horizon),
            first=first,
            last=last,
            windows=whole("windows", windows),
            drawn=whole("drawn", drawn, least=0),
            seed=whole("seed", seed, least=None),
            show_progress=show_progress,
            repair=repair,
            **reading,
        )
        return self.calibration

    def save_pretrained(self, path: str | Path) -> Path:
        """Write both halves into `path`/predictor and `path`/tokenizer, loadable by `path`.

        The calibration that "auto" would take is written beside the predictor's weights.
        """
        folder = Path(path)
        chosen = self._choose(AUTO)
        self.tokenizer.save_pretrained(folder / "tokenizer")
        saved = self.model.save_pretrained(folder / "predictor", self.tokenizer)
        if chosen.calibration is not None:
            chosen.calibration.save(saved / FILE)
        return folder

    def _choose(self, asked: Any) -> Chosen:
        origin = self.model.origin
        folder = None if origin is None else origin.folder
        return choose(asked, self.calibration, folder, self._fingerprint)

    def _fingerprint(self) -> str:
        """Of both halves as they are: it reads all weights, so once for as long as they stay."""
        now = self._weights_now()
        if now != self._checkpoint_from:
            self._checkpoint, self._checkpoint_from = checkpoint_of(self), now
        return self._checkpoint

    def _logged_mean(self, found: Forecast, how: Request) -> pd.DataFrame:
        self._log_uncalibrated(found.calibration, how)
        return found.mean

    def _log_uncalibrated(self, text: str, how: Request) -> None:
        """Results that cannot say it leave it to the log, once for each reason."""
        if how.calibration is None or not text.startswith(UNCALIBRATED) or text in self._logged:
            return
        self._logged.add(text)
        logger.warning(text)

    def plan(
        self, series: int, lookback: int, pred_len: int, sample_count: int, stratified: bool = False
    ) -> BatchPlan:
        """The micro-batches that `paths` would use, with an estimate of their memory.

        Raises:
            ConfigError: one path of one series exceeds the budget `memory_mb`, or sorting
                the stratified paths does.
        """
        sizes = Sizes(
            self.model.config,
            self.tokenizer.config,
            lookback,
            pred_len,
            self.max_context,
            kept_dtype(self.dtype).itemsize,
            between_dtype(self.dtype).itemsize,
        )
        threads = planned_threads() if self.device.type == "cpu" else None
        return plan_batches(sizes, series, sample_count, self.memory_mb, threads, stratified)

    def embed(
        self,
        x: Floats,
        x_stamp: Stamps,
        keys: Sequence[str] | None = None,
        verbose: bool = False,
        pooling: ContextConfig | None = None,
    ) -> Floats:
        """The context vector, the embedding of the last bar, for use as features.

        Args:
            x, x_stamp: as in `paths`.
            keys: names of the series, for errors.
            pooling: what is read beside it; None: nothing.

        Returns:
            (series, d_model) float32; with `pooling`, (series, pooling.parts * d_model), rounded
            to its dtype.

        Raises:
            BarDataError: shapes do not agree, or a value is not finite.
            ConfigError: the predictor has no such layer, or a context is too large for float16.
        """
        return self.embed_span(x, x_stamp, 1, keys, verbose, pooling)[:, 0]

    def embed_span(
        self,
        x: Floats,
        x_stamp: Stamps,
        count: int,
        keys: Sequence[str] | None = None,
        verbose: bool = False,
        pooling: ContextConfig | None = None,
    ) -> Floats:
        """Context vectors after each of the newest bars, of bars that are read once.

        The scale is of the bars up to the first of those, so that no context depends on a bar after
        its own. The first is what `embed` gives of its bars, to rounding; a later one has the scale
        of the first, and has seen bars that `embed` would have left behind.

        Args:
            x: (series, L, 6), of which the newest `count` are not all: L > count, at most
                `max_context`, where `count` is not 1.
            count: contexts of a series.
            x_stamp, keys, verbose, pooling: as of `embed`.

        Returns:
            (series, count, pooling.parts * d_model) float32.

        Raises:
            BarDataError, ConfigError: as of `embed`; there are too few bars, or too many.
        """
        pooling = pooling or ContextConfig()
        pooling.check_layers(self.model.config.n_layers)
        x = _checked(x, x_stamp, keys)
        width = pooling.parts * self.model.config.d_model
        count = whole("count", count, least=None)
        if count != 1 and not 1 <= count < x.shape[1] <= self.max_context:
            raise ConfigError(
                f"{count} contexts of {x.shape[1]} bars that are read at once: expected 1 or more, "
                f"fewer than the bars, and {self.max_context} bars at most, which the network "
                "attends to"
            )
        result = np.empty((len(x), count, width), dtype=np.float32)
        if not len(x):
            return result
        x, stamps = self._seen(x, x_stamp)
        packed = self.engine()

        def read(rows: slice, _: slice) -> None:
            result[rows] = self._embed(packed, x[rows], stamps[rows], pooling, count)

        plan = self.plan(len(x), x.shape[1], 1, 1)
        _run(read, plan, plan.batches(len(x), 1), "embedding", verbose)
        return _rounded(result, pooling.dtype)

    @torch.inference_mode()
    def _forecast(
        self,
        packed: Packed,
        bars: Floats,
        stamps: Stamps,
        how: SamplingConfig,
        uniforms: torch.Tensor,
        each_step: Callable[[], None] | None,
    ) -> Floats:
        horizon, paths = stamps.shape[1] - bars.shape[1], uniforms.shape[1]
        scale = WindowScale.of(bars)
        tokens = packed.tokenizer.encode(self.normalised(scale, bars))
        moments = torch.from_numpy(stamps.astype(np.int64)).to(self.device)
        places = uniforms.to(self.device)
        draw = packed.recorded or partial(generate, packed.net)
        drawn = draw(tokens, moments, horizon, how, places, self.max_context, each_step)
        ahead, newest = decode_drawn(packed.tokenizer, tokens, drawn, paths, self.max_context)
        return in_units(scale, ahead, newest, bars[:, -1, CLOSE], how)

    @torch.inference_mode()
    def _embed(
        self, packed: Packed, bars: Floats, stamps: Stamps, pooling: ContextConfig, count: int
    ) -> Floats:
        scale = WindowScale.of(bars[:, : bars.shape[1] - count + 1])
        s1, s2 = packed.tokenizer.encode(self.normalised(scale, bars))
        moments = torch.from_numpy(stamps.astype(np.int64)).to(self.device)
        newest = read_contexts(packed.net, s1, s2, moments, pooling, count)
        require_finite(newest, "contexts of the predictor")
        return newest.cpu().numpy()

    def _seen(self, x: Floats, stamps: Stamps) -> tuple[Floats, Stamps]:
        """The bars that the network attends to: what is normalised is what is seen."""
        seen = slice(-self.max_context, None)
        if x.shape[1] > self.max_context and x.shape[1] not in self._cut:
            self._cut.add(x.shape[1])  # logged once: a backtest asks for each day
            logger.warning(
                "a lookback of %d bars is more than the %d that the network sees: the last %d "
                "are used, the others are ignored",
                *(x.shape[1], self.max_context, self.max_context),
            )
        return x[:, seen], np.asarray(stamps)[:, seen]

    def normalised(self, scale: WindowScale, bars: Floats) -> torch.Tensor:
        """Z-scores of bars (B, T, 6), clipped, on the device."""
        return torch.from_numpy(scale.to_z(bars, self.clip)).to(self.device)

    def engine(self) -> Packed:
        """Both halves packed for decoding: again whenever a weight has changed since."""
        now = self._weights_now()
        if self._packed is None or now != self._packed_from:
            net = PackedKronos(self.model, self.dtype)
            tokenizer = PackedTokenizer(self.tokenizer, kept_dtype(self.dtype))
            recorded = None
            # A part that we do not know may look at what it computes, which no graph can.
            if self._recorder is not None and isinstance(net.time, PackedTime):
                # It reads these copies of the weights, so it comes and goes with them.
                recorded = RecordedDrawing(net, self._recorder)
            self._packed = Packed(net, tokenizer, recorded)
            self._packed_from = now
        return self._packed

    @property
    def computed_in(self) -> str:
        """Device and number types, on which all that it gives depends beyond a last bit."""
        text = f"{self.device.type} {self.dtype}"
        if self.dtype == torch.int8:  # what is beside its products is another on another CPU
            text += f" and {kept_dtype(self.dtype)}"
        return text

    def _weights_now(self) -> list[tuple[int, int]]:
        """What changes with any weight."""
        # By modules' own tables: `modules()` looks for parts that are shared, and asking for a
        # state_dict takes twice as long again, for every call.
        parts: list[nn.Module] = [self.model, self.tokenizer]
        weights: list[torch.Tensor] = []
        for part in parts:  # which grows
            parts.extend(inner for inner in part._modules.values() if inner is not None)
            for kept in (part._parameters, part._buffers):
                weights.extend(weight for weight in kept.values() if weight is not None)
        # Training writes in place, which torch counts; loading may put another tensor there.
        try:
            now = [(weight.data_ptr(), weight._version) for weight in weights]
        except RuntimeError:  # but not of tensors that were made in inference mode
            versions = (0 if weight.is_inference() else weight._version for weight in weights)
            now = [(weight.data_ptr(), one) for weight, one in zip(weights, versions, strict=True)]
        # A replaced part may have no weight at all.
        now.append((id(self.model.time_emb), id(self.tokenizer.quantizer)))
        return now


def in_units(
    scale: WindowScale,
    ahead: torch.Tensor,
    newest: torch.Tensor,
    closes: Floats,
    how: SamplingConfig,
) -> Floats:
    """Decoded paths in the units of their bars, anchored if that is asked for.

    Args:
        scale: of B lookbacks.
        ahead, newest: (B * P, H, 6) and (B, 6) normalised, from `decode_drawn`.
        closes: (B,) last closes seen.

    Returns:
        (B, P, H, 6) float32.

    Raises:
        CheckpointError: the bars are not finite.
    """
    require_finite(ahead, "bars of the tokenizer")
    windows, (rows, horizon, _) = len(closes), ahead.shape
    futures = scale.to_bars(ahead.cpu().numpy().reshape(windows, -1, len(BAR_COLUMNS)))
    if how.anchor:
        seen = scale.to_bars(newest.cpu().numpy()[:, None])
        futures[..., PRICES] += (closes[:, None] - seen[..., CLOSE])[..., None]
    return futures.reshape(windows, rows // windows, horizon, -1)


def _run(
    work: Callable[[slice, slice], None],
    plan: BatchPlan,
    batches: Sequence[tuple[slice, slice]],
    what: str,
    show: bool,
) -> None:
    done = run_batches(work, batches, plan)
    for _ in progress(done, what, unit="batch", show=show, total=len(batches)):
        pass


def _rounded(contexts: Floats, dtype: str) -> Floats:
    """As float32 numbers that a narrower type holds."""
    if dtype == "float32":
        return contexts
    with np.errstate(over="ignore"):
        found = contexts.astype(dtype).astype(np.float32)
    if not np.isfinite(found).all():
        raise ConfigError(
            f"contexts of up to {np.abs(contexts).max():.3g} do not fit {dtype}: leave "
            "context.dtype at float32"
        )
    return found


def _counted(on_progress: Callable[[float], None] | None, steps: int) -> Callable[[], None] | None:
    """What counts steps of several threads and tells the share that is done."""
    if on_progress is None:
        return None
    done, lock = itertools.count(1), threading.Lock()

    def each_step() -> None:
        with lock:
            on_progress(next(done) / steps)

    return each_step


def _checked(x: Floats, stamps: Stamps, keys: Sequence[str] | None) -> Floats:
    """Bars as float32, refused where they or their stamps cannot be read."""
    x = np.asarray(x, dtype=np.float32)
    if x.ndim != 3 or x.shape[2] != len(BAR_COLUMNS) or x.shape[1] < 2:
        raise BarDataError(
            f"expected bars of shape (series, at least 2 bars, {len(BAR_COLUMNS)}), got {x.shape}"
        )
    if isinstance(keys, str):
        raise BarDataError(f"keys is a list of names, one for each series, got {keys!r}")
    if keys is not None and len(keys) != len(x):
        raise BarDataError(f"expected {len(x)} keys, one for each series, got {len(keys)}")
    broken = np.argwhere(~np.isfinite(x))
    if len(broken):
        series, bar, column = broken[0]
        name = _name(series, keys)
        raise BarDataError(f"{name}: {BAR_COLUMNS[column]} of bar {bar} is missing or not finite")
    _check_stamps(stamps, (*x.shape[:2], len(TIME_FIELDS)), "x_stamp", keys)
    return x


def _name(series: int, keys: Sequence[str] | None) -> str:
    return f"series {series}" if keys is None else str(keys[series])


def _check_stamps(
    stamps: Stamps, expected: tuple[int, ...], name: str, keys: Sequence[str] | None
) -> None:
    if np.shape(stamps) != expected:
        raise BarDataError(
            f"expected {name} of shape {expected} (series, bars, fields), got {np.shape(stamps)}"
        )
    if not np.issubdtype(np.asarray(stamps).dtype, np.integer):
        raise BarDataError(f"{name} holds whole numbers, got {np.asarray(stamps).dtype}")
    outside = (np.asarray(stamps) < 0) | (np.asarray(stamps) >= list(TIME_TABLE_ROWS.values()))
    if outside.any():
        series, bar, field = np.argwhere(outside)[0]
        raise BarDataError(
            f"{name} of {_name(series, keys)}, bar {bar}: {TIME_FIELDS[field]} is "
            f"{np.asarray(stamps)[series, bar, field]}; a stamp is minute, hour, weekday, day, "
            "month (kronos_qlib.data.calendar.stamps.stamps_of makes them)"
        )
