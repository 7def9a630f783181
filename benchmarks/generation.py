"""How fast paths are drawn, against the published algorithm on the same weights and machine.

The published algorithm, written plainly: every path of every series reads its whole context anew
for every bar, every position goes through the heads, and every path's whole sequence is decoded.
Random weights serve: the arithmetic is the same.

Example:
    python benchmarks/generation.py --size small --paths 5 20 --json generation.json
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from kronos_qlib.configs import SamplingConfig
from kronos_qlib.data.windows import WindowScale
from kronos_qlib.inference.predictor import KronosPredictor
from kronos_qlib.inference.sampling import path_uniforms, sample_ids
from kronos_qlib.model.tokenizer import KronosTokenizer
from kronos_qlib.model.transformer import Kronos

LOOKBACK, HORIZON = 90, 10
SIZES = {
    "mini": {"n_layers": 4, "d_model": 256, "n_heads": 4, "ff_dim": 512},
    "small": {"n_layers": 8, "d_model": 512, "n_heads": 8, "ff_dim": 1024},
}
TOKENIZER = {
    "d_in": 6, "d_model": 256, "n_heads": 4, "ff_dim": 512, "n_enc_layers": 4, "n_dec_layers": 4,
    "beta": 0.05, "gamma0": 1.0, "gamma": 1.1, "zeta": 0.05, "group_size": 4,
}  # fmt: skip
SHARED = {
    "s1_bits": 10, "s2_bits": 10, "ffn_dropout_p": 0.0, "attn_dropout_p": 0.0,
    "resid_dropout_p": 0.0,
}  # fmt: skip


@torch.inference_mode()
def draw_as_published(
    model: Kronos,
    tokenizer: KronosTokenizer,
    bars: np.ndarray,
    stamps: torch.Tensor,
    how: SamplingConfig,
) -> np.ndarray:
    """(series, paths, HORIZON, 6) bars, everything recomputed."""
    scale = WindowScale.of(bars)
    z = torch.from_numpy(scale.to_z(bars)).repeat_interleave(how.paths, dim=0)
    every_stamp = stamps.repeat_interleave(how.paths, dim=0)
    uniforms = path_uniforms(0, [row.tobytes() for row in bars], how.paths, HORIZON).flatten(0, 1)
    s1, s2 = tokenizer.encode(z)
    for step in range(HORIZON):
        seen = every_stamp[:, : LOOKBACK + step]
        s1_logits, context = model.decode_s1(s1, s2, seen)
        next_s1 = sample_ids(s1_logits[:, -1], how, uniforms[:, step, 0])[:, None]
        attended = model.dep_layer.cross_attn.read_once(
            model.embedding.emb_s1(next_s1), context, rotate=False
        )
        s2_logits = model.head.proj_s2(model.dep_layer.norm(context + attended))
        next_s2 = sample_ids(s2_logits[:, -1], how, uniforms[:, step, 1])[:, None]
        s1, s2 = torch.cat((s1, next_s1), dim=1), torch.cat((s2, next_s2), dim=1)
    ahead = tokenizer.decode((s1, s2))[:, -HORIZON:].numpy()
    return scale.to_bars(ahead.reshape(len(bars), -1, 6)).reshape(len(bars), how.paths, HORIZON, 6)


def seconds_per_series(work: Callable[[], object], series: int, repeats: int) -> float:
    """Median over repeats; the caller has warmed up."""
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return statistics.median(times) / series


def machine_gflops(repeats: int = 5) -> float:
    """What a large float32 product reaches by torch's own linear map."""
    x, weight = torch.randn(4096, 2048), torch.randn(2048, 2048)
    torch.nn.functional.linear(x, weight)
    spent = seconds_per_series(lambda: torch.nn.functional.linear(x, weight), 1, repeats)
    return 2 * 4096 * 2048 * 2048 / spent / 1e9


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--paths", type=int, nargs="+", default=[5, 20])
    parser.add_argument("--series", type=int, default=64, help="series in one call of ours")
    parser.add_argument("--plain-series", type=int, default=4, help="of the published algorithm")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the table here too")
    args = parser.parse_args(argv)

    torch.manual_seed(0)
    tokenizer = KronosTokenizer(**TOKENIZER, **SHARED).eval()
    model = Kronos(**SIZES[args.size], **SHARED, token_dropout_p=0.0, learn_te=True).eval()
    forecaster = KronosPredictor(model, tokenizer, device="cpu")
    rng = np.random.default_rng(0)
    bars = 10 * np.exp(rng.normal(0, 0.02, (args.series, LOOKBACK, 6)).cumsum(axis=1))
    bars = bars.astype(np.float32)
    stamps = rng.integers(0, (60, 24, 7, 32, 13), (args.series, LOOKBACK + HORIZON, 5))

    gflops = machine_gflops()
    print(f"{args.size}, lookback {LOOKBACK}, horizon {HORIZON}, float32, "
          f"{torch.get_num_threads()} threads; a large product: {gflops:.0f} GFLOP/s")  # fmt: skip
    print("paths  published, ms a series  ours, ms a series  ratio  same paths")
    rows = []
    few = slice(args.plain_series)
    for paths in args.paths:
        how = SamplingConfig(paths=paths, temperature=1.0, top_p=0.9)

        def published(how: SamplingConfig = how) -> np.ndarray:
            seen = torch.from_numpy(stamps[few])
            return draw_as_published(model, tokenizer, bars[few], seen, how)

        def ours(paths: int = paths) -> np.ndarray:
            past, ahead = stamps[:, :LOOKBACK], stamps[:, LOOKBACK:]
            return forecaster.paths(
                bars, past, ahead, HORIZON, T=1.0, top_p=0.9, sample_count=paths
            )

        # The same uniforms for both: a path differs only where a draw falls within rounding of
        # the boundary between two tokens.
        same = np.isclose(published(), ours()[few], rtol=1e-4, atol=1e-4).all(axis=(2, 3)).mean()
        plain = seconds_per_series(published, args.plain_series, 1)
        fast = seconds_per_series(ours, args.series, args.repeats)
        ratio = plain / fast
        print(
            f"{paths:5d} {plain * 1e3:24.1f} {fast * 1e3:18.2f} {ratio:6.1f} {same:11.1%}",
            flush=True,
        )
        row = {"paths": paths, "published_s": plain, "ours_s": fast, "ratio": ratio}
        rows.append({**row, "same_paths": float(same)})
    if args.json:
        result = {"size": args.size, "machine_gflops": gflops, "rows": rows}
        args.json.write_text(json.dumps(result, indent=1), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
