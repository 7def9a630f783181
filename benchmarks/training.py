"""How fast training steps are, against the published training loop on the same bars and machine.

The published loop, written plainly, in float32: a data set that slices a frame of bars and time
fields for each window and normalises it, a loader with two workers, a network that leaves every
gradient to autograd, tokens made inside the step, s1 drawn from the model's own distribution, the
loss asked for after every step. The published quantizer has a grouped codebook besides, which no
loss uses; that is left out. Ours is `loop.train` as `KronosModel.fit` calls it, the predictor's
tokens made beforehand; it feeds the true s1 unless --drawn-s1. Random weights and random walks
serve: the arithmetic is the same.

Each method has a process of its own, and both work in turns. A round is some steps after one that
is not timed; figures are medians of the rounds.
bfloat16 of ours stands beside the published float32.

Columns: windows a second of both, from step to step, without validation; their ratio; the share of
what one large product of that type reaches in the same run, by the arithmetic of a step (forward
and backward, every product once); for the predictor, windows a second whose tokens are made
beforehand; and with these counted once in a run of three epochs, windows a second and the ratio.
mini and small have tokenizers of one size.

Example:
    python benchmarks/training.py --json training.json
    python benchmarks/training.py --cases predictor:nano:float32 tokenizer:nano:float32 --profile
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import statistics
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F  # noqa: N812
from generation import machine_gflops
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, RandomSampler

from kronos_qlib.data.windows.bar_table import BarTable
from kronos_qlib.data.windows.find import windows_to_train
from kronos_qlib.model.checkpoints.pretrained import sizes_of
from kronos_qlib.model.cpu_training import Dropout
from kronos_qlib.model.layers import Attention, RMSNorm, Rotary, TimeEmbedding
from kronos_qlib.model.sizes import PredictorConfig, TokenizerConfig
from kronos_qlib.model.tokenizer import KronosTokenizer
from kronos_qlib.model.transformer import Kronos, TokenEmbedding
from kronos_qlib.schema import BAR_COLUMNS, TIME_FIELDS
from kronos_qlib.training.batches import Segment, with_tokens
from kronos_qlib.training.loop import train
from kronos_qlib.training.losses import PredictorStep, TokenizerStep
from kronos_qlib.training.stage_settings import TrainingConfig

STAGES, DTYPES = ("tokenizer", "predictor"), ("float32", "bfloat16")
CASES = ("tokenizer:nano", "tokenizer:mini", "predictor:nano", "predictor:mini", "predictor:small")
INSTRUMENTS, BARS = 200, 300
WARM = 1
"""Steps of a round that are not timed."""
MOST_STEPS, FEWEST_STEPS = 40, 2
PUBLISHED_SHARE = 0.25
"""Of the machine's speed, roughly: by it steps are chosen."""
EPOCHS = 3
"""Of the run that makes its tokens once."""


@dataclass(frozen=True)
class Case:
    stage: str
    size: str
    dtype: str

    @classmethod
    def parse(cls, text: str) -> Case:
        parts = text.split(":")
        if len(parts) != 3 or parts[0] not in STAGES or parts[2] not in DTYPES:
            raise argparse.ArgumentTypeError("expected stage:size:type, as predictor:nano:float32")
        return cls(*parts)


@dataclass(frozen=True)
class Work:
    """A round, the same for both methods."""

    stage: str
    size: str
    steps: int
    batch: int = 50
    lookback: int = 90
    horizon: int = 10
    workers: int = 2
    drawn_s1: bool = False
    own_time: bool = False

    def now(self) -> float:
        """Seconds: on the clock, or those that this process has computed."""
        return time.process_time() if self.own_time else time.perf_counter()

    @property
    def windows(self) -> int:
        return (WARM + self.steps) * self.batch

    def pair(self) -> tuple[Kronos, KronosTokenizer]:
        torch.manual_seed(0)
        predictor, tokenizer = (sizes_of(self.size, role) for role in ("predictor", "tokenizer"))
        return Kronos(**predictor), KronosTokenizer(**tokenizer).eval()


def walks() -> pd.DataFrame:
    """Daily bars indexed by (instrument, datetime)."""
    rng = np.random.default_rng(0)

    def noise(scale: float) -> np.ndarray:
        return scale * rng.standard_normal((INSTRUMENTS, BARS))

    close = 10 * np.exp(noise(0.02).cumsum(axis=1))
    opened = close * np.exp(noise(0.01))
    high = np.maximum(opened, close) * np.exp(np.abs(noise(0.01)))
    low = np.minimum(opened, close) * np.exp(-np.abs(noise(0.01)))
    volume = np.exp(12 + noise(0.6))
    values = np.stack((opened, high, low, close, volume, volume * (high + low) / 2), axis=-1)
    names = [f"SH{600000 + number}" for number in range(INSTRUMENTS)]
    dates = pd.bdate_range("2020-01-01", periods=BARS)
    index = pd.MultiIndex.from_product((names, dates), names=["instrument", "datetime"])
    return pd.DataFrame(values.reshape(-1, 6), index=index, columns=list(BAR_COLUMNS))


# The published way: its windows, its network, its loop.


class PlainWindows(Dataset[tuple[Tensor, Tensor]]):
    """A frame for each instrument, with columns of time fields, and a list of its windows."""

    def __init__(self, bars: pd.DataFrame, lookback: int, horizon: int) -> None:
        self.lookback, self.length = lookback, lookback + horizon
        self.frames: dict[str, pd.DataFrame] = {}
        self.places: list[tuple[str, int]] = []
        for name, own in bars.groupby(level="instrument"):
            index = own.index.get_level_values("datetime")
            self.frames[name] = own.reset_index(drop=True).assign(
                minute=index.minute, hour=index.hour, weekday=index.day_of_week, day=index.day,
                month=index.month,
            )  # fmt: skip
            self.places += [(name, start) for start in range(len(own) - self.length + 1)]

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor]:
        name, start = self.places[number]
        window = self.frames[name].iloc[start : start + self.length]
        x = window[list(BAR_COLUMNS)].to_numpy().astype(np.float32)
        stamps = window[list(TIME_FIELDS)].to_numpy().astype(np.float32)
        past = x[: self.lookback]
        x = np.clip((x - past.mean(axis=0)) / (past.std(axis=0) + 1e-5), -5, 5)
        return torch.from_numpy(x), torch.from_numpy(stamps)


def rms_norm(self: RMSNorm, x: Tensor) -> Tensor:
    wide = x.float()
    normed = wide * torch.rsqrt(torch.mean(wide * wide, dim=-1, keepdim=True) + self.eps)
    return normed.to(x) * self.weight


def rotary(self: Rotary, x: Tensor, start: int = 0) -> Tensor:
    bars = x.shape[-2]
    if getattr(self, "tabulated", None) != bars:
        angles = torch.arange(bars)[:, None] * self.inv_freq
        angles = torch.cat((angles, angles), dim=-1)
        self.tabulated, self.tables = bars, (angles.cos(), angles.sin())
    first, second = x.chunk(2, dim=-1)
    return x * self.tables[0] + torch.cat((-second, first), dim=-1) * self.tables[1]


def rotated(self: Attention, queries: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
    q, k = self.split(self.q_proj(queries)), self.split(self.k_proj(keys))
    return self.rotary(q), self.rotary(k)


def attend(self: Attention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    dropout_p = self.attn_dropout_p if self.training else 0.0
    return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout_p, is_causal=True)


def embed_tokens(self: TokenEmbedding, s1_ids: Tensor, s2_ids: Tensor) -> Tensor:
    pair = (self.emb_s1(s1_ids) * self.scale, self.emb_s2(s2_ids) * self.scale)
    return self.fusion_proj(torch.cat(pair, dim=-1))


def embed_times(self: TimeEmbedding, stamp: Tensor) -> Tensor:
    parts = [self.get_submodule(f"{field}_embed") for field in TIME_FIELDS]
    minute, *others = (part(stamp[..., place].long()) for place, part in enumerate(parts))
    return sum(others, start=minute)


@contextmanager
def plainly() -> Iterator[None]:
    """Within, the two networks compute as the published ones do, where ours do otherwise."""
    with ExitStack() as stack:
        for owner, name, plain in (
            (RMSNorm, "forward", rms_norm),
            (Rotary, "forward", rotary),
            (Attention, "rotated", rotated),
            (Attention, "attend_causally", attend),
            (Dropout, "forward", nn.Dropout.forward),
            (TokenEmbedding, "forward", embed_tokens),
            (TimeEmbedding, "forward", embed_times),
        ):
            stack.enter_context(patch.object(owner, name, plain))
        yield


def predictor_loss(pair: tuple[Kronos, KronosTokenizer], z: Tensor, stamps: Tensor) -> Tensor:
    net, tokenizer = pair
    with torch.no_grad():
        s1, s2 = tokenizer.encode(z)
    both = net(s1[:, :-1], s2[:, :-1], stamps[:, :-1])  # draws the next s1
    losses = [
        F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
        for logits, ids in zip(both, (s1, s2), strict=True)
    ]
    return (losses[0] + losses[1]) / 2


def tokenizer_loss(pair: tuple[Kronos, KronosTokenizer], z: Tensor, stamps: Tensor) -> Tensor:
    (from_s1, from_all), bsq_loss, _, _ = pair[1](z)
    return (F.mse_loss(from_s1, z) + F.mse_loss(from_all, z) + bsq_loss) / 2


PLAIN_LOSSES = {"predictor": predictor_loss, "tokenizer": tokenizer_loss}


def published_round(work: Work) -> float:
    """Windows a second."""
    pair = work.pair()
    net = pair[("predictor", "tokenizer").index(work.stage)].train()
    dataset = PlainWindows(walks(), work.lookback, work.horizon)
    loader = DataLoader(
        dataset,
        work.batch,
        sampler=RandomSampler(dataset, num_samples=work.windows),
        num_workers=work.workers,
        drop_last=True,
    )
    optimizer = torch.optim.AdamW(net.parameters(), lr=4e-5, betas=(0.9, 0.95), weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=4e-5, total_steps=10_000, pct_start=0.03, div_factor=10
    )
    losses, times = [], []
    with plainly():
        for z, stamps in loader:
            loss = PLAIN_LOSSES[work.stage](pair, z, stamps)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(net.parameters(), max_norm=3.0)
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
            times.append(work.now())
    assert len(losses) == WARM + work.steps and np.isfinite(losses).all()
    return work.steps * work.batch / (times[-1] - times[WARM - 1])


# Ours.


def our_round(work: Work, dtype: str) -> tuple[float, float | None]:
    """Windows a second of steps, and of tokens made beforehand."""
    predictor, tokenizer = work.pair()
    windows = windows_to_train(BarTable.from_frame(walks()), work.lookback, work.horizon)
    chosen = np.random.default_rng(0).permutation(len(windows))[: work.windows + 16]
    segment = Segment(windows.take(np.sort(chosen[16:])))
    validation = Segment(windows.take(np.sort(chosen[:16])))
    speed, step = None, TokenizerStep(tokenizer)
    if work.stage == "predictor":
        began = work.now()
        segment = with_tokens(segment, tokenizer)
        speed = len(segment) / (work.now() - began)
        step = PredictorStep(predictor, tokenizer, teacher_forcing=not work.drawn_s1)
    config = TrainingConfig(
        batch_size=work.batch, precision=dtype, teacher_forcing=not work.drawn_s1
    )
    times: list[float] = []

    def mark(step: int, row: dict[str, float]) -> None:
        times.append(work.now())

    train(step, segment, validation, config, on_steps=mark, log_every=1)
    assert len(times) == WARM + work.steps
    return work.steps * work.batch / (times[-1] - times[WARM - 1]), speed


def profile(work: Work, dtype: str) -> dict[str, float]:
    """Share of one thread's time by operation, ours; the rest is Python and waiting."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    our_round(work, dtype)
    began = time.perf_counter()
    with torch.profiler.profile() as seen:
        our_round(work, dtype)
    spent = time.perf_counter() - began
    torch.set_num_threads(threads)
    return {event.key: event.self_cpu_time_total / 1e6 / spent for event in seen.key_averages()}


def flops_per_window(work: Work) -> float:
    """Multiplications and additions that a step takes at least for one of its windows.

    Every product of the forward pass once, and twice in the backward pass.
    """
    if work.stage == "predictor":
        bars = work.lookback + work.horizon - 1
        net = PredictorConfig(**sizes_of(work.size, "predictor"))
        tokens = 2**net.s1_bits + 2**net.s2_bits
        # Each token's half of the projection once in a batch, or each bar's.
        embedded = min(2 * bars, tokens / work.batch) * net.d_model**2
        blocks, attentions = net.n_layers, net.n_layers + 1
        ends = embedded + bars * (4 * net.d_model**2 + tokens * net.d_model)
    else:
        bars = work.lookback + work.horizon
        net = TokenizerConfig(**sizes_of(work.size, "tokenizer"))
        blocks = attentions = net.n_enc_layers - 1 + 2 * (net.n_dec_layers - 1)
        ends = bars * net.d_model * (3 * net.d_in + 2 * (net.s1_bits + net.s2_bits) + net.s1_bits)
    block = 4 * net.d_model**2 + 3 * net.d_model * net.ff_dim
    pairs = bars**2 / 2  # (query, key) of causal attention
    products = bars * blocks * block + 2 * net.d_model * attentions * pairs + ends
    return 3 * 2.0 * products


# The whole of it.


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    every = [Case.parse(f"{case}:{dtype}") for case in CASES for dtype in DTYPES]
    parser.add_argument("--cases", type=Case.parse, nargs="+", default=every)
    parser.add_argument("--batch", type=int, default=50)
    parser.add_argument("--lookback", type=int, default=90)
    parser.add_argument("--horizon", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3, help="of each method")
    parser.add_argument("--steps", type=int, help="of a round")
    parser.add_argument(
        "--seconds", type=float, default=12, help="of a published round, about: decides --steps"
    )
    parser.add_argument("--workers", type=int, default=2, help="of the published loader")
    parser.add_argument("--drawn-s1", action="store_true", help="ours draws s1 too, as published")
    parser.add_argument(
        "--own-time",
        action="store_true",
        help="count what each process itself computes, where other work has the cores; the "
        "published loader then has no workers. Threads are as many as OMP_NUM_THREADS says: 1",
    )
    parser.add_argument("--profile", action="store_true", help="where a round of ours goes")
    parser.add_argument("--json", type=Path, help="write the table here too")
    args = parser.parse_args(argv)
    groups: dict[tuple[str, str], list[str]] = {}
    for case in args.cases:
        groups.setdefault((case.stage, case.size), []).append(case.dtype)

    print(f"{torch.get_num_threads()} threads, {args.rounds} rounds\n")
    print(
        "| stage | size | type | published windows/s | ours windows/s | ratio | share "
        f"| tokens windows/s | all in, {EPOCHS} epochs | ratio |\n" + "|---" * 10 + "|"
    )
    rows, profiles = [], []
    for (stage, size), dtypes in groups.items():
        found = measure(stage, size, dtypes, args)
        for row in found:
            tokens = "-" if row["tokens"] is None else f"{row['tokens']:,.0f}"
            print(
                f"| {stage} | {size} | {row['dtype']} | {row['published']:,.1f} "
                f"| {row['ours']:,.1f} | {row['ratio']:.1f}x | {row['share']:.0%} | {tokens} "
                f"| {row['all_in']:,.1f} | {row['all_in_ratio']:.1f}x |",
                flush=True,
            )
        rows += found
        profiles += [row for row in found if "profile" in row]
    for row in profiles:
        print(f"\n{row['stage']} {row['size']} {row['dtype']}, one thread:")
        for name, share in list(row["profile"].items())[:12]:
            print(f"    {share:6.1%}  {name}")
    if args.json:
        result = {"threads": torch.get_num_threads(), "torch": torch.__version__, "rows": rows}
        args.json.write_text(json.dumps(result, indent=1), encoding="utf-8")
    return 0


def measure(
    stage: str, size: str, dtypes: list[str], args: argparse.Namespace
) -> list[dict[str, Any]]:
    """A row for each type, beside the same published rounds."""
    fastest = {dtype: [machine_gflops(getattr(torch, dtype), 2)] for dtype in {*dtypes, "float32"}}
    steps = {"batch": args.batch, "lookback": args.lookback, "horizon": args.horizon}
    flops = flops_per_window(Work(stage, size, 1, **steps))
    per_step = args.batch * flops / (PUBLISHED_SHARE * fastest["float32"][0] * 1e9)
    count = args.steps or min(MOST_STEPS, max(FEWEST_STEPS, math.ceil(args.seconds / per_step)))
    work = Work(
        stage,
        size,
        count,
        **steps,
        workers=0 if args.own_time else args.workers,
        drawn_s1=args.drawn_s1,
        own_time=args.own_time,
    )
    plain: list[float] = []
    fast: dict[str, list[tuple[float, float | None]]] = {dtype: [] for dtype in dtypes}
    with ExitStack() as stack:
        # Not multiprocessing.Pool: its workers may not have those of a loader.
        spawn = multiprocessing.get_context("spawn")
        published, ours = (
            stack.enter_context(ProcessPoolExecutor(1, mp_context=spawn)) for _ in range(2)
        )
        # A machine's speed drifts with its neighbours: all are timed in turns.
        for number in range(args.rounds):
            plain.append(published.submit(published_round, work).result())
            for dtype in dtypes:
                fast[dtype].append(ours.submit(our_round, work, dtype).result())
                fastest[dtype].append(machine_gflops(getattr(torch, dtype), 2))
            print(f"{stage} {size}: round {number + 1} done", file=sys.stderr, flush=True)
        shares = {}
        if args.profile:
            shares = {dtype: ours.submit(profile, work, dtype).result() for dtype in dtypes}
    rows = []
    for dtype in dtypes:
        rate = statistics.median(rate for rate, _ in fast[dtype])
        made = [speed for _, speed in fast[dtype] if speed is not None]
        tokens = statistics.median(made) if made else None
        all_in = 1 / (1 / rate + 1 / tokens / EPOCHS) if tokens else rate
        usual, reached = statistics.median(plain), rate * flops / 1e9
        row = {
            **asdict(work), "dtype": dtype, "published": usual, "ours": rate,
            "ratio": rate / usual, "tokens": tokens, "all_in": all_in,
            "all_in_ratio": all_in / usual, "flops_per_window": flops, "gflops": reached,
            "large_product_gflops": statistics.median(fastest[dtype]),
            "share": reached / statistics.median(fastest[dtype]),
            "published_rounds": plain, "our_rounds": [rate for rate, _ in fast[dtype]],
        }  # fmt: skip
        if dtype in shares:
            order = sorted(shares[dtype].items(), key=lambda pair: -pair[1])
            row["profile"] = dict(order[:20])
        rows.append(row)
    return rows


if __name__ == "__main__":
    raise SystemExit(main())
