"""How fast paths are drawn, against the published algorithm on the same weights and machine.

The published algorithm, written plainly: every path of every series reads its whole context anew
for every bar, every position goes through the heads, and every path's whole sequence is decoded,
in float32. Random weights serve: the arithmetic is the same.

Columns: milliseconds a series of both (median of repeats); their ratio; the share of paths that
are the same in both (float32: all but draws within rounding of the boundary between two tokens;
bfloat16 rounds, so its paths are others); tokens that ours draws a second; GFLOP/s that it
reaches, and their share of what one large product of that type reaches in the same run; peak
memory of one call of ours in a fresh process, above what was there before, and what was planned.

Example:
    python benchmarks/generation.py --json generation.json
    python benchmarks/generation.py --cases small:90:10:5 --dtypes bfloat16 --profile
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
from pathlib import Path

import numpy as np
import psutil
import torch

from kronos_qlib.data.windows.scale import WindowScale
from kronos_qlib.inference.packed import Product
from kronos_qlib.inference.predictor import KronosPredictor
from kronos_qlib.inference.sampling import SamplingConfig, key_of, path_uniforms, sample_ids
from kronos_qlib.model.sizes import PredictorConfig, TokenizerConfig
from kronos_qlib.model.tokenizer import KronosTokenizer
from kronos_qlib.model.transformer import Kronos

SIZES = {
    "mini": {"n_layers": 4, "d_model": 256, "n_heads": 4, "ff_dim": 512},
    "small": {"n_layers": 8, "d_model": 512, "n_heads": 8, "ff_dim": 1024},
    "base": {"n_layers": 12, "d_model": 832, "n_heads": 16, "ff_dim": 2048},
}
CONTEXT = {"mini": 2048, "small": 512, "base": 512}
TOKENIZER = {
    "d_in": 6, "d_model": 256, "n_heads": 4, "ff_dim": 512, "n_enc_layers": 4, "n_dec_layers": 4,
    "beta": 0.05, "gamma0": 1.0, "gamma": 1.1, "zeta": 0.05, "group_size": 4,
}  # fmt: skip
SHARED = {
    "s1_bits": 10, "s2_bits": 10, "ffn_dropout_p": 0.0, "attn_dropout_p": 0.0,
    "resid_dropout_p": 0.0,
}  # fmt: skip
CASES = ("small:90:10:5", "small:90:10:20", "mini:400:112:5")
SECONDS_OF_OURS = 3.0
"""Series are chosen so that one call of ours takes about this long."""


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


def median_seconds(work: Callable[[], object], repeats: int) -> float:
    """The caller has warmed up."""
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def machine_gflops(dtype: torch.dtype, repeats: int = 7) -> float:
    """What a large product reaches in the library that is fastest here for it."""
    x, weight = torch.randn(4096, 2048).to(dtype), torch.randn(2048, 2048).to(dtype)
    ways: list[Callable[[], object]] = [lambda: torch.nn.functional.linear(x, weight)]
    linear = torch.nn.Linear(2048, 2048, bias=False)
    packed = Product([linear], dtype)
    ways.append(lambda: packed(x))
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
        began = time.perf_counter()
        with torch.profiler.profile() as seen:
            work()
        spent = time.perf_counter() - began
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
    parser.add_argument("--cases", type=Case.parse, nargs="+", default=[*map(Case.parse, CASES)])
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--series", type=int, help="series in one call of ours")
    parser.add_argument("--plain-series", type=int, default=2, help="of the published algorithm")
    parser.add_argument("--repeats", type=int, default=3, help="of both")
    parser.add_argument("--memory-mb", type=int, default=2048)
    parser.add_argument("--profile", action="store_true", help="where the time goes")
    parser.add_argument("--json", type=Path, help="write the table here too")
    args = parser.parse_args(argv)

    fastest = {dtype: machine_gflops(getattr(torch, dtype)) for dtype in args.dtypes}
    speeds = ", ".join(f"{speed:.0f} in {dtype}" for dtype, speed in fastest.items())
    print(f"{torch.get_num_threads()} threads; GFLOP/s of a large product: {speeds}")
    print(
        "size  lookback horizon paths dtype    published ms  ours ms  ratio  same   tokens/s  "
        "GFLOP/s share  peak MiB planned"
    )
    rows = []
    for case in args.cases:
        rows += measure(case, args, fastest)
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

    def ready(self) -> tuple[KronosPredictor, Callable[[], np.ndarray]]:
        """The forecaster, its weights packed, and the call."""
        context = CONTEXT[self.case.size]
        forecaster = KronosPredictor(
            *self.pair(), "cpu", context, dtype=self.dtype, memory_mb=self.memory_mb
        )
        bars, stamps = self.inputs()

        def work(series: int = self.series, paths: int = self.case.paths) -> np.ndarray:
            past, ahead = np.split(stamps[:series], [self.case.lookback], axis=1)
            return forecaster.paths(
                bars[:series], past, ahead, self.case.horizon, sample_count=paths, coherent=False
            )

        work(1, 1)
        return forecaster, work


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
        began = time.perf_counter()
        drawn = draw_as_published(model, tokenizer, bars[:few], stamps[:few], how)
        plain_times.append(time.perf_counter() - began)
        return drawn

    rows = []
    for dtype in args.dtypes:
        call = Call(case, dtype, series, args.memory_mb)
        with multiprocessing.get_context("spawn").Pool(1) as fresh:
            peak = fresh.apply(peak_of, (call,))
        forecaster, ours = call.ready()
        ours()
        # A machine's speed drifts with its neighbours': both are timed in turns.
        fast_times = []
        for _ in range(args.repeats):
            if len(plain_times) < args.repeats:
                plainly_drawn = published()
            began = time.perf_counter()
            drawn = ours()
            fast_times.append(time.perf_counter() - began)
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


if __name__ == "__main__":
    raise SystemExit(main())
