"""How fast paths are drawn, against the published algorithm on the same weights and machine.

The published algorithm, written plainly: every path of every series reads its whole context anew
for every bar, every position goes through the heads, and every path's whole sequence is decoded,
in float32. Random weights serve: the arithmetic is the same.

Columns: milliseconds a series of both (median of repeats); their ratio; the share of paths that
are the same in both (float32: all but draws within rounding of the boundary between two tokens;
narrower types round, so their paths are others); tokens that ours draws a second; GFLOP/s that it
reaches, and their share of what one large product of that type reaches in the same run; peak
memory of one call of ours in a fresh process, above what was there before, and what was planned.

`--task embed`: contexts of windows (`KronosPredictor.embed`), whatever windows overlap. Windows a
second (median of repeats); milliseconds of each; GFLOP/s, counting of every product what the
newest bar's context needs; their share of what a large product of that type reaches, timed in
turns with it.

`--task calls`: `predict_paths` of one series of 90 bars, 10 ahead: median and 95th percentile of
milliseconds a call, and milliseconds a bar ahead, from the difference to a call of one bar.

`--task int8`: milliseconds of a block's products in float32, bfloat16 and int8; of int8 the
product alone, the quantizing of its rows, and both with what makes numbers of the result;
with `--signed` those of signed numbers, which a CPU without AMX has no fast kernel for.

Example:
    python benchmarks/generation.py --json generation.json
    python benchmarks/generation.py --cases small:90:10:5 --dtypes bfloat16 --profile
    python benchmarks/generation.py --task embed --sizes nano small --lookbacks 90 250
    python benchmarks/generation.py --task calls --sizes nano --paths 1 20 --dtypes float32
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import torch

from kronos_qlib.data.windows.scale import WindowScale
from kronos_qlib.inference.devices import DTYPES
from kronos_qlib.inference.predictor import KronosPredictor
from kronos_qlib.inference.products.int8_product import Int8Product, Rows, quantized
from kronos_qlib.inference.products.packed_product import Product
from kronos_qlib.inference.sampling import SamplingConfig, key_of, path_uniforms, sample_ids
from kronos_qlib.model.sizes import PredictorConfig, TokenizerConfig
from kronos_qlib.model.tokenizer import KronosTokenizer
from kronos_qlib.model.transformer import Kronos
from kronos_qlib.schema import BAR_COLUMNS

SIZES = {
    "nano": {},  # the bundled weights, with a tokenizer and vocabularies of their own
    "mini": {"n_layers": 4, "d_model": 256, "n_heads": 4, "ff_dim": 512},
    "small": {"n_layers": 8, "d_model": 512, "n_heads": 8, "ff_dim": 1024},
    "base": {"n_layers": 12, "d_model": 832, "n_heads": 16, "ff_dim": 2048},
}
CONTEXT = {"nano": 512, "mini": 2048, "small": 512, "base": 512}
TOKENIZER = {
    "d_in": 6, "d_model": 256, "n_heads": 4, "ff_dim": 512, "n_enc_layers": 4, "n_dec_layers": 4,
    "beta": 0.05, "gamma0": 1.0, "gamma": 1.1, "zeta": 0.05, "group_size": 4,
}  # fmt: skip
SHARED = {
    "s1_bits": 10, "s2_bits": 10, "ffn_dropout_p": 0.0, "attn_dropout_p": 0.0,
    "resid_dropout_p": 0.0,
}  # fmt: skip
CASES = ("small:90:10:5", "small:90:10:20", "mini:400:112:5")
LOOKBACKS = (60, 90, 250, 400)
CALLS_PATHS = (1, 5, 20, 100)
SECONDS_OF_OURS = 3.0
"""Series are chosen so that one call of ours takes about this long."""


_counting = time.perf_counter


def clock() -> float:
    """Seconds: of the clock, or of this process' own computing (`--cpu-time`)."""
    return _counting()


def count_cpu_time() -> None:
    """From now on; for one thread on a machine that has other work."""
    global _counting
    torch.set_num_threads(1)
    _counting = time.process_time


@dataclass(frozen=True)
class Case:
    size: str
    lookback: int
    horizon: int
    paths: int

    @classmethod
    def parse(cls, text: str) -> Case:
        size, *numbers = text.split(":")
        if size not in SIZES or len(numbers) != 3:
            raise argparse.ArgumentTypeError("expected size:lookback:horizon:paths")
        return cls(size, *map(int, numbers))


@torch.inference_mode()
def draw_as_published(
    model: Kronos,
    tokenizer: KronosTokenizer,
    bars: np.ndarray,
    stamps: np.ndarray,
    how: SamplingConfig,
) -> np.ndarray:
    """(series, paths, horizon, 6) bars, everything recomputed."""
    lookback, horizon = bars.shape[1], stamps.shape[1] - bars.shape[1]
    scale = WindowScale.of(bars)
    z = torch.from_numpy(scale.to_z(bars)).repeat_interleave(how.paths, dim=0)
    every_stamp = torch.from_numpy(stamps).repeat_interleave(how.paths, dim=0)
    uniforms = path_uniforms(0, [key_of(row) for row in bars], how.paths, horizon).flatten(0, 1)
    s1, s2 = tokenizer.encode(z)
    for step in range(horizon):
        seen = every_stamp[:, : lookback + step]
        s1_logits, context = model.decode_s1(s1, s2, seen)
        next_s1 = sample_ids(s1_logits[:, -1], how, uniforms[:, step, 0])[:, None]
        attended = model.dep_layer.cross_attn.read_once(
            model.embedding.emb_s1(next_s1), context, rotate=False
        )
        s2_logits = model.head.proj_s2(model.dep_layer.norm(context + attended))
        next_s2 = sample_ids(s2_logits[:, -1], how, uniforms[:, step, 1])[:, None]
        s1, s2 = torch.cat((s1, next_s1), dim=1), torch.cat((s2, next_s2), dim=1)
    ahead = tokenizer.decode((s1, s2))[:, -horizon:].numpy()
    return scale.to_bars(ahead.reshape(len(bars), -1, 6)).reshape(len(bars), how.paths, horizon, 6)


def flops_per_series(model: PredictorConfig, tokenizer: TokenizerConfig, case: Case) -> float:
    """Multiplications and additions that drawing one series takes at least: every product once."""
    past, ahead, paths = case.lookback, case.horizon, case.paths

    def block(width: int, ff: int) -> int:
        return 4 * width**2 + 3 * width * ff

    read = past + paths * (ahead - 1)  # bars that go through the predictor
    every = model.n_layers * block(model.d_model, model.ff_dim) + 2 * model.d_model**2
    heads = (2**model.s1_bits + 2**model.s2_bits + 2 * model.d_model) * model.d_model
    pairs = past**2 / 2 + paths * ahead * (past + ahead / 2)  # (query, key) pairs of attention
    total = read * every + paths * ahead * heads + 2 * model.d_model * (model.n_layers + 1) * pairs
    half = block(tokenizer.d_model, tokenizer.ff_dim)
    layers = tokenizer.n_enc_layers + tokenizer.n_dec_layers - 2
    coded = (layers - 1) * past + (tokenizer.n_dec_layers - 1) * paths * ahead
    total += coded * half + 2 * tokenizer.d_model * layers * pairs
    return 2.0 * total


def flops_per_context(model: PredictorConfig, tokenizer: TokenizerConfig, bars: int) -> float:
    """As `flops_per_series`, of one window's context: of the last block the newest bar alone."""
    pairs = bars**2 / 2  # (query, key) pairs of attention

    def block(half: PredictorConfig | TokenizerConfig) -> float:
        width = half.d_model
        return bars * (4 * width**2 + 3 * width * half.ff_dim) + 2 * width * pairs

    width = model.d_model
    last = 2 * bars * width**2 + 2 * width**2 + 3 * width * model.ff_dim + 2 * width * bars
    encoder = (tokenizer.n_enc_layers - 1) * block(tokenizer)
    return 2.0 * (encoder + (model.n_layers - 1) * block(model) + last)


def median_seconds(work: Callable[[], object], repeats: int) -> float:
    """The caller has warmed up."""
    times = []
    for _ in range(repeats):
        began = clock()
        work()
        times.append(clock() - began)
    return statistics.median(times)


@torch.inference_mode()
def machine_gflops(dtype: torch.dtype, repeats: int = 7) -> float:
    """What a large product reaches in the library that is fastest here for it."""
    x, linear = torch.randn(4096, 2048), torch.nn.Linear(2048, 2048, bias=False)
    ways: list[Callable[[], object]]
    if dtype == torch.int8:
        ready, whole = quantized(x), Int8Product([linear])
        ways = [lambda: whole(ready)]
    else:
        narrow, weight, packed = x.to(dtype), linear.weight.to(dtype), Product([linear], dtype)
        ways = [lambda: torch.nn.functional.linear(narrow, weight), lambda: packed(narrow)]
    best = 0.0
    for way in ways:
        way()
        best = max(best, 2 * 4096 * 2048 * 2048 / median_seconds(way, repeats) / 1e9)
    return best


def peak_mb(work: Callable[[], object]) -> float:
    """Most resident memory while working, above what was resident before, in MiB."""
    process, done = psutil.Process(), threading.Event()
    before = most = process.memory_info().rss

    def watch() -> None:
        nonlocal most
        while not done.wait(0.002):
            most = max(most, process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        work()
    finally:
        done.set()
        watcher.join()
    return (most - before) / 2**20


GROUPS = {
    "products with weights": ("_linear_pointwise", "addmm", "mm", "linear"),
    "attention": ("bmm", "flash_attention", "_softmax", "baddbmm"),
    "sums, scales, rotations": ("mul", "sum", "add", "rsqrt", "div", "vecdot", "pow", "mean"),
    "copies and casts": ("copy_", "cat", "_to_copy", "contiguous", "clone", "index_select"),
    "sampling": ("cumsum", "searchsorted", "masked_fill", "gather", "neg", "le", "lt", "minimum"),
}


def profile(work: Callable[[], object]) -> dict[str, float]:
    """Share of one thread's time by kind of operation; the rest is Python and small operations."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # one worker: the profiler sees everything in one place
    try:
        began = clock()
        with torch.profiler.profile() as seen:
            work()
        spent = clock() - began
    finally:
        torch.set_num_threads(threads)
    shares: dict[str, float] = defaultdict(float)
    for event in seen.key_averages():
        name = event.key.removeprefix("aten::").removeprefix("mkldnn::")
        group = next(
            (
                group
                for group, names in GROUPS.items()
                if name.rstrip("_") in {each.rstrip("_") for each in names}
                or (group == "attention" and "attention" in name)
            ),
            "other operations",
        )
        shares[group] += event.self_cpu_time_total / 1e6 / spent
    shares["Python, NumPy, waiting"] = 1 - sum(shares.values())
    return dict(shares)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--task", choices=["draw", "embed", "calls", "int8"], default="draw")
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=["nano", "small", "base"])
    parser.add_argument("--lookbacks", type=int, nargs="+", default=LOOKBACKS)
    parser.add_argument("--paths", type=int, nargs="+", default=CALLS_PATHS, help="of calls")
    parser.add_argument("--calls", type=int, default=40, help="of each kind of call")
    parser.add_argument("--cases", type=Case.parse, nargs="+", default=[*map(Case.parse, CASES)])
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--series", type=int, help="series in one call of ours")
    parser.add_argument("--plain-series", type=int, default=2, help="of the published algorithm")
    parser.add_argument("--repeats", type=int, default=3, help="of both")
    parser.add_argument("--memory-mb", type=int, default=2048)
    parser.add_argument("--profile", action="store_true", help="where the time goes")
    parser.add_argument("--json", type=Path, help="write the table here too")
    parser.add_argument("--no-peak", action="store_true", help="of memory: start no process")
    parser.add_argument("--signed", action="store_true", help="of int8 products; may take minutes")
    parser.add_argument("--cpu-time", action="store_true", help="own computing, on one thread")
    args = parser.parse_args(argv)
    if args.cpu_time:
        count_cpu_time()

    fastest = {dtype: machine_gflops(DTYPES[dtype]) for dtype in args.dtypes}
    speeds = ", ".join(f"{speed:.0f} in {dtype}" for dtype, speed in fastest.items())
    print(f"{torch.get_num_threads()} threads; GFLOP/s of a large product: {speeds}")
    rows = TASKS[args.task](args, fastest)
    if args.json:
        result = {
            "threads": torch.get_num_threads(), "torch": torch.__version__,
            "large_product_gflops": fastest, "rows": rows,
        }  # fmt: skip
        args.json.write_text(json.dumps(result, indent=1), encoding="utf-8")
    return 0


@dataclass(frozen=True)
class Call:
    """One call of ours, the same in every process."""

    case: Case
    dtype: str
    series: int
    memory_mb: int

    def pair(self) -> tuple[Kronos, KronosTokenizer]:
        if self.case.size == "nano":
            return Kronos.from_pretrained("nano"), KronosTokenizer.from_pretrained("nano")
        torch.manual_seed(0)
        tokenizer = KronosTokenizer(**TOKENIZER, **SHARED).eval()
        sizes = SIZES[self.case.size]
        return Kronos(**sizes, **SHARED, token_dropout_p=0.0, learn_te=True).eval(), tokenizer

    def inputs(self) -> tuple[np.ndarray, np.ndarray]:
        case, rng = self.case, np.random.default_rng(0)
        steps = rng.normal(0, 0.02, (self.series, case.lookback, 6))
        bars = (10 * np.exp(steps.cumsum(axis=1))).astype(np.float32)
        length = case.lookback + case.horizon
        return bars, rng.integers(0, (60, 24, 7, 32, 13), (self.series, length, 5))

    def predictor(self) -> KronosPredictor:
        return KronosPredictor(
            *self.pair(), "cpu", CONTEXT[self.case.size], dtype=self.dtype, memory_mb=self.memory_mb
        )

    def ready(self) -> tuple[KronosPredictor, Callable[[], np.ndarray]]:
        """The forecaster, its weights packed, and the call."""
        forecaster = self.predictor()
        bars, stamps = self.inputs()

        def work(series: int = self.series, paths: int = self.case.paths) -> np.ndarray:
            past, ahead = np.split(stamps[:series], [self.case.lookback], axis=1)
            return forecaster.paths(
                bars[:series],
                past,
                ahead,
                self.case.horizon,
                sample_count=paths,
                coherent=False,
                anchor=False,
            )

        work(1, 1)
        return forecaster, work

    def embedding(self) -> tuple[KronosPredictor, Callable[[], np.ndarray]]:
        """The forecaster, its weights packed, and a call that reads the windows' contexts."""
        forecaster = self.predictor()
        bars, stamps = self.inputs()
        seen = stamps[:, : self.case.lookback]
        forecaster.embed(bars[:2], seen[:2])
        return forecaster, lambda: forecaster.embed(bars, seen)


def peak_of(call: Call) -> float:
    """MiB; to be run in a process that has drawn nothing yet."""
    _, work = call.ready()
    return peak_mb(work)


def measure(case: Case, args: argparse.Namespace, fastest: dict[str, float]) -> list[dict]:
    call = Call(case, "float32", 4, args.memory_mb)
    model, tokenizer = call.pair()
    flops = flops_per_series(model.config, tokenizer.config, case)
    how = SamplingConfig(paths=case.paths, temperature=1.0, top_p=0.9)
    slowest = min(fastest.values())
    series = args.series or int(np.clip(SECONDS_OF_OURS * slowest * 0.7e9 / flops, 4, 128))
    few = min(args.plain_series, 1 if case.horizon > 50 else series)
    bars, stamps = replace(call, series=series).inputs()
    plain_times = []

    def published() -> np.ndarray:
        began = clock()
        drawn = draw_as_published(model, tokenizer, bars[:few], stamps[:few], how)
        plain_times.append(clock() - began)
        return drawn

    rows = []
    for dtype in args.dtypes:
        call = Call(case, dtype, series, args.memory_mb)
        peak = float("nan")
        if not args.no_peak:
            with multiprocessing.get_context("spawn").Pool(1) as fresh:
                peak = fresh.apply(peak_of, (call,))
        forecaster, ours = call.ready()
        ours()
        # A machine's speed drifts with its neighbours': both are timed in turns.
        fast_times = []
        for _ in range(args.repeats):
            if len(plain_times) < args.repeats:
                plainly_drawn = published()
            began = clock()
            drawn = ours()
            fast_times.append(clock() - began)
        same = np.isclose(plainly_drawn, drawn[:few], rtol=1e-4, atol=1e-4).all(axis=(2, 3)).mean()
        fast = statistics.median(fast_times) / series
        plain = statistics.median(plain_times) / few
        reached = flops / fast / 1e9
        plan = forecaster.plan(series, case.lookback, case.horizon, case.paths)
        row = {
            **asdict(case), "dtype": dtype, "series": series, "published_s": plain, "ours_s": fast,
            "ratio": plain / fast, "same_paths": float(same),
            "tokens": 2 * series * case.paths * case.horizon,
            "tokens_per_s": 2 * case.paths * case.horizon / fast,
            "gflops": reached, "share_of_large_product": reached / fastest[dtype],
            "peak_mb": peak, "planned_mb": plan.peak_bytes / 2**20, "workers": plan.workers,
        }  # fmt: skip
        print(
            f"{case.size:6s}{case.lookback:8d}{case.horizon:8d}{case.paths:6d} {dtype:8s}"
            f"{plain * 1e3:13.0f}{fast * 1e3:9.2f}{plain / fast:7.1f}{same:6.0%}"
            f"{row['tokens_per_s']:11.0f}{reached:9.0f}{reached / fastest[dtype]:6.0%}"
            f"{peak:10.0f}{row['planned_mb']:8.0f}",
            flush=True,
        )
        if args.profile:
            row["profile"] = profile(ours)
            for group, share in sorted(row["profile"].items(), key=lambda pair: -pair[1]):
                print(f"    {share:6.1%}  {group}")
        rows.append(row)
    return rows


def draw_rows(args: argparse.Namespace, fastest: dict[str, float]) -> list[dict]:
    print(
        "size  lookback horizon paths dtype    published ms  ours ms  ratio  same   tokens/s  "
        "GFLOP/s share  peak MiB planned"
    )
    return [row for case in args.cases for row in measure(case, args, fastest)]


def embed_rows(args: argparse.Namespace, fastest: dict[str, float]) -> list[dict]:
    print("size  lookback dtype     windows  windows/s  ms a window  GFLOP/s  share")
    rows = []
    for size, bars, dtype in product(args.sizes, args.lookbacks, args.dtypes):
        model, tokenizer = Call(Case(size, bars, 0, 1), dtype, 2, args.memory_mb).pair()
        seen = min(bars, CONTEXT[size])
        flops = flops_per_context(model.config, tokenizer.config, seen)
        windows = args.series or int(np.clip(fastest[dtype] * 0.5e9 / flops, 8, 2000))
        call = Call(Case(size, bars, 0, 1), dtype, windows, args.memory_mb)
        _, work = call.embedding()
        seconds, large = [], []
        for _ in range(args.repeats):
            large.append(machine_gflops(DTYPES[dtype], repeats=1))
            seconds.append(median_seconds(work, 1))
        each = statistics.median(seconds) / windows
        reached, most = flops / each / 1e9, statistics.median(large)
        row = {
            "size": size, "lookback": bars, "dtype": dtype, "windows": windows,
            "windows_per_s": 1 / each, "gflops": reached, "large_product_gflops": most,
            "share_of_large_product": reached / most,
        }  # fmt: skip
        print(
            f"{size:6s}{bars:8d} {dtype:9s}{windows:8d}{1 / each:11.1f}{each * 1e3:13.2f}"
            f"{reached:9.0f}{reached / most:7.0%}",
            flush=True,
        )
        if args.profile:
            row["profile"] = profile(work)
            for group, share in sorted(row["profile"].items(), key=lambda pair: -pair[1]):
                print(f"    {share:6.1%}  {group}")
        rows.append(row)
    return rows


def seconds_of_call(
    forecaster: KronosPredictor, frame: pd.DataFrame, times: pd.Index, paths: int, ahead: int
) -> float:
    began = clock()
    forecaster.predict_paths(
        [frame], [times[: len(frame)]], [times[len(frame) : len(frame) + ahead]],
        sample_count=paths, verbose=False, calibration=None,
    )  # fmt: skip
    return clock() - began


def call_rows(args: argparse.Namespace, fastest: dict[str, float]) -> list[dict]:
    print("size  dtype     paths  median ms  95th  ms a bar ahead")
    rows = []
    for size, dtype in product(args.sizes, args.dtypes):
        call = Call(Case(size, 90, 10, 1), dtype, 1, args.memory_mb)
        forecaster = call.predictor()
        times = pd.date_range("2024-01-01", periods=100, freq="D")
        bars = call.inputs()[0][0]
        bars[:, :4] = np.sort(bars[:, :4])[:, [1, 3, 0, 2]]  # open, high, low, close
        frame = pd.DataFrame(bars, columns=BAR_COLUMNS)
        asking = partial(seconds_of_call, forecaster, frame, times)
        for paths in args.paths:
            both = [(asking(paths, 10), asking(paths, 1)) for _ in range(args.calls + 1)]
            whole, of_one = 1e3 * np.array(both[1:]).T
            row = {
                "size": size, "dtype": dtype, "paths": paths, "median_ms": np.median(whole),
                "p95_ms": np.quantile(whole, 0.95), "bar_ms": np.median(whole - of_one) / 9,
            }  # fmt: skip
            print(
                f"{size:6s}{dtype:9s}{paths:6d}{row['median_ms']:11.1f}{row['p95_ms']:6.1f}"
                f"{row['bar_ms']:12.2f}",
                flush=True,
            )
            rows.append(row)
    return rows


def int8_rows(args: argparse.Namespace, fastest: dict[str, float]) -> list[dict]:
    print("rows  in   out    float32 ms  bfloat16  int8  its rows quantized  together  (signed)")
    rows = []
    sizes = {SIZES[size].get("d_model"): SIZES[size].get("ff_dim") for size in args.sizes}
    for (width, ff), count in product(sizes.items(), (3000, 320)):
        if width is None:
            continue
        for inner, outer in ((width, 3 * width), (width, width), (width, ff), (ff, width)):
            row = {
                "rows": count,
                "in": inner,
                "out": outer,
                **int8_product(count, inner, outer, args.signed),
            }
            print("  ".join(f"{each:.3g}" for each in row.values()), flush=True)
            rows.append(row)
    return rows


@torch.inference_mode()
def int8_product(
    rows: int, inner: int, outer: int, signed: bool, repeats: int = 15
) -> dict[str, float]:
    """Milliseconds of one product (rows, inner) by (inner, outer), in turns.

    The op of int8 takes no scale of rows, so that finding it, dividing and multiplying by it are
    eager operations.
    """
    linear, x = torch.nn.Linear(inner, outer, bias=False), torch.randn(rows, inner)
    narrow = x.to(torch.bfloat16)
    exact, rounded = Product([linear], torch.float32), Product([linear], torch.bfloat16)
    whole = Int8Product([linear])
    ids, _ = quantized(x)
    unscaled = Rows(ids, torch.ones(()))
    ways: dict[str, Callable[[], object]] = {
        "float32_ms": lambda: exact(x), "bfloat16_ms": lambda: rounded(narrow),
        "int8_ms": lambda: whole._unscaled(unscaled), "quantizing_ms": lambda: quantized(x),
        "together_ms": lambda: whole(x),
    }  # fmt: skip
    if signed:
        ops, zeros = torch.ops.onednn, torch.zeros(outer, dtype=torch.int32)
        weight = ops.qlinear_prepack((linear.weight / whole.scale[:, None]).round().char(), None)
        below = (ids.int() - 128).char()
        plain = (None, 1.0, 0, torch.float32, "none", [], "")
        ways["signed_ms"] = lambda: ops.qlinear_pointwise(
            below, 1.0, 0, weight, whole.scale, zeros, *plain
        )
    seconds: dict[str, list[float]] = defaultdict(list)
    for _ in range(repeats):
        for name, way in ways.items():
            seconds[name].append(median_seconds(way, 1))
    return {name: 1e3 * statistics.median(each[1:]) for name, each in seconds.items()}


TASKS = {"draw": draw_rows, "embed": embed_rows, "calls": call_rows, "int8": int8_rows}


if __name__ == "__main__":
    raise SystemExit(main())
