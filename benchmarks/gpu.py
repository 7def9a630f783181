"""What a GPU computes as a CPU does, and how fast it draws, reads contexts and trains.

Not run on a GPU so far: no figure of README or docs is of this file. `gpu.sh` is the command.

- same: in float32, from the same weights and random numbers: the share of nano's drawn paths that
  are the CPU's (all but draws within rounding of the boundary between two tokens), of those drawn
  by CUDA graphs that are the GPU's own without them (100 % is expected), the largest difference of
  contexts, and of a training step's gradients, both relative to their norm.
- draw: bars a second drawn by 5 and 100 paths of nano and small, step by step and by CUDA graphs
  once these are recorded, and contexts a second. A predictor has no float16.
- train: windows a second of predictor and tokenizer by number type, compiled or not: the median
  from step to step, after the steps in which a compiler works.

Each part is left out once `--most-seconds` are over, and that is said. Weights of small are random.

Example:
    python benchmarks/gpu.py --device cuda --json gpu.json
    python benchmarks/gpu.py --device cpu --sizes nano --series 8 --steps 2
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from training import Work, walks

from kronos_qlib import KronosPredictor
from kronos_qlib.data.windows.bar_table import BarTable
from kronos_qlib.data.windows.find import windows_to_train
from kronos_qlib.training.batches import Segment
from kronos_qlib.training.loop import train
from kronos_qlib.training.losses import PredictorStep, TokenizerStep
from kronos_qlib.training.stage_settings import TrainingConfig

LOOKBACK, HORIZON = 90, 10
WARM = 4
"""Steps that are not timed: a compiler works in them."""
Row = dict[str, Any]


def inputs(series: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Bars, and the time fields of them and of those to come."""
    rng = np.random.default_rng(0)
    steps = rng.normal(0, 0.02, (series, LOOKBACK, 6)).astype(np.float32)
    stamps = rng.integers(0, (60, 24, 7, 32, 13), (series, LOOKBACK + HORIZON, 5))
    return 10 * np.exp(steps.cumsum(axis=1)), stamps[:, :LOOKBACK], stamps[:, LOOKBACK:]


def predictor_of(
    size: str, device: str, dtype: str = "float32", graphs: bool = False
) -> KronosPredictor:
    options: dict[str, Any] = {"dtype": dtype, "cuda_graphs": graphs}
    if size == "nano":
        half = KronosPredictor.from_pretrained(size, device="cpu")
        return KronosPredictor(half.model, half.tokenizer, device, 512, **options)
    return KronosPredictor(*Work("predictor", size, 1).pair(), device, 512, **options)


def gradients(device: str) -> torch.Tensor:
    """Of nano's predictor on one batch, without dropout, all of them in a row on the CPU."""
    predictor = predictor_of("nano", device)
    windows = windows_to_train(BarTable.from_frame(walks()), LOOKBACK, HORIZON)
    batch = Segment(windows).batch(np.arange(0, len(windows), len(windows) // 32), device)
    loss = PredictorStep(predictor.model, predictor.tokenizer).losses(batch)["loss"]
    loss.backward()
    found = [weight.grad for weight in predictor.model.parameters() if weight.grad is not None]
    return torch.cat([grad.flatten().cpu() for grad in found])


def by_graphs(device: str) -> tuple[bool, ...]:
    """With and without, where there are any."""
    return (False, True) if device.startswith("cuda") else (False,)


def recorded(predictor: KronosPredictor) -> str:
    """How many graphs the predictor draws by."""
    drawing = predictor.engine().recorded
    return "none" if drawing is None else str(len(drawing.recorded))


def same(args: argparse.Namespace) -> list[Row]:
    bars, past, ahead = inputs(args.series)
    few = slice(0, min(64, args.series))
    drawn, contexts, grads = [], [], []

    def paths(predictor: KronosPredictor, seed: int = 0) -> np.ndarray:
        return predictor.paths(bars[few], past[few], ahead[few], HORIZON, sample_count=5, seed=seed)

    def agree(one: np.ndarray, other: np.ndarray) -> str:
        return f"{np.isclose(one, other, rtol=1e-4, atol=1e-4).all(axis=(2, 3)).mean():.1%}"

    def apart(one: np.ndarray, other: np.ndarray) -> str:
        return f"{np.linalg.norm(one - other) / np.linalg.norm(one):.1e}"

    for device in ("cpu", args.device):
        predictor = predictor_of("nano", device)
        drawn.append(paths(predictor))
        contexts.append(predictor.embed(bars[few], past[few]))
        grads.append(gradients(device).numpy())
    row: Row = {"same paths": agree(*drawn)}
    if True in by_graphs(args.device):
        graphed = predictor_of("nano", args.device, graphs=True)
        for seed in (1, 2):  # recorded by other random numbers than those that are compared
            paths(graphed, seed)
        row["same by graphs"] = agree(drawn[1], paths(graphed))
        row["graphs"] = recorded(graphed)
    return [row | {"contexts apart": apart(*contexts), "gradients apart": apart(*grads)}]


def seconds_of(work: Callable[[], object], warm: int = 1, repeats: int = 3) -> float:
    """Median, after those that are not timed. What is timed ends on the host."""
    times = []
    for _ in range(warm + repeats):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return statistics.median(times[warm:])


def draw(args: argparse.Namespace) -> list[Row]:
    bars, past, ahead = inputs(args.series)
    rows = []
    for size in args.sizes:
        for dtype in ("float32", "bfloat16"):
            for graphs in by_graphs(args.device):
                if time.monotonic() > args.ends:
                    return rows
                predictor = predictor_of(size, args.device, dtype, graphs)
                row: Row = {"size": size, "type": dtype}
                for paths in (5, 100):

                    def forecast(
                        predictor: KronosPredictor = predictor, paths: int = paths
                    ) -> object:
                        return predictor.paths(bars, past, ahead, HORIZON, sample_count=paths)

                    made = args.series * paths * HORIZON
                    # The first batch of a shape is drawn without a graph, the second recorded.
                    row[f"bars/s, {paths} paths"] = f"{made / seconds_of(forecast, warm=2):,.0f}"

                def embed(predictor: KronosPredictor = predictor) -> object:
                    return predictor.embed(bars, past)

                row["contexts/s"] = f"{args.series / seconds_of(embed):,.0f}"
                row["graphs"] = recorded(predictor)
                rows.append(row)
    return rows


def training(args: argparse.Namespace) -> list[Row]:
    windows = windows_to_train(BarTable.from_frame(walks()), LOOKBACK, HORIZON)
    chosen = np.random.default_rng(0).permutation(len(windows))
    precisions = ["float32", "bfloat16"] + ["float16"] * args.device.startswith("cuda")
    rows = []
    for size in args.sizes:
        for stage in ("predictor", "tokenizer"):
            for precision in precisions:
                for compiled in (False, True) if args.device.startswith("cuda") else (False,):
                    if time.monotonic() > args.ends:
                        return rows
                    model, tokenizer = Work(stage, size, 1).pair()
                    step: Any = TokenizerStep(tokenizer)
                    if stage == "predictor":
                        tokenizer.to(args.device)
                        step = PredictorStep(model, tokenizer)
                    count = (WARM + args.steps) * args.batch
                    parts = [
                        Segment(windows.take(np.sort(places)))
                        for places in (chosen[16 : 16 + count], chosen[:16])
                    ]
                    config = TrainingConfig(
                        batch_size=args.batch, precision=precision, compiled=compiled
                    )
                    report = train(step, *parts, config, device=args.device, log_every=1)
                    rates = [row["windows_per_second"] for row in report.steps[WARM:]]
                    rows.append(
                        {
                            "size": size, "stage": stage, "type": precision, "compiled": compiled,
                            "windows/s": f"{statistics.median(rates):,.0f}",
                            "loss": f"{report.history[-1]['train_loss']:.4f}",
                        }
                    )  # fmt: skip
    return rows


PARTS = {"same": same, "draw": draw, "train": training}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--sizes", nargs="+", default=["nano", "small"])
    parser.add_argument("--series", type=int, default=512)
    parser.add_argument("--batch", type=int, default=50)
    parser.add_argument("--steps", type=int, default=20, help="of training, timed")
    parser.add_argument("--most-seconds", type=float, default=330)
    parser.add_argument("--json", type=Path, help="write the tables here too")
    args = parser.parse_args()
    if args.device.startswith("cuda") and not torch.cuda.is_available():
        parser.exit(1, "benchmarks/gpu.py: torch sees no CUDA GPU here, nothing was measured\n")
    args.ends = time.monotonic() + args.most_seconds
    name = torch.cuda.get_device_name(args.device) if args.device.startswith("cuda") else "CPU"
    print(f"{name}, torch {torch.__version__}")
    found: dict[str, list[Row]] = {}
    for part, work in PARTS.items():
        if time.monotonic() > args.ends:
            print(f"\n{part}: left out, {args.most_seconds:.0f} s are over")
            continue
        rows = found[part] = work(args)
        names = list(rows[0]) if rows else []
        print(f"\n{part}\n| {' | '.join(names)} |\n{'|---' * len(names)}|")
        for row in rows:
            print(f"| {' | '.join(str(row[name]) for name in names)} |", flush=True)
    if args.json:
        args.json.write_text(json.dumps(found, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
