"""Whether something has become slower: costs of our work in large products of the same run.

Machines differ and drift, so no time is compared. Each task is timed in turns with a large product
of that run, by the process' own computing on one thread; its cost is the median over rounds of one
over the other. `guard.json` has the costs of each kind of CPU that somebody measured, the highest
of three each. What seems to have lost more than 20 % of its speed is measured again, twice; it is
named if it stays so.

All in float32: beside other work a large bfloat16 product on a matrix unit ran at 298 to 759
GFLOP/s within one hour, and what does not use the unit did not change with it.

Exit code 1: something is named. 2: nothing is known of this kind of CPU; `--keep` adds it.

Example:
    python benchmarks/guard.py
    python benchmarks/guard.py --keep
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from generation import Call, Case, clock, count_cpu_time

from kronos_qlib.inference.products.packed_product import Product

KEPT = Path(__file__).with_name("guard.json")
LOSS = 0.2
"""Share of its speed that a task may seem to lose."""
ATTEMPTS = 3
WAYS_TO_MULTIPLY = ("amx_bf16", "avx512_bf16", "avx512_f", "avx2", "sve", "neon")
"""Capabilities that decide how fast a product is to the rest, the fastest first."""


def contexts(size: str, bars: int, windows: int) -> Callable[[], object]:
    """Reading of windows' contexts."""
    _, work = Call(Case(size, bars, 0, 1), "float32", windows, 2048).embedding()
    return work


def paths(size: str, series: int, count: int) -> Callable[[], object]:
    """Drawing 10 bars after 90."""
    _, work = Call(Case(size, 90, 10, count), "float32", series, 2048).ready()
    return work


TASKS: dict[str, Callable[[], Callable[[], object]]] = {
    "contexts, nano": lambda: contexts("nano", 90, 66),
    "contexts, small": lambda: contexts("small", 90, 8),
    "one series, nano, 1 path": lambda: paths("nano", 1, 1),
    "64 series, nano, 5 paths": lambda: paths("nano", 64, 5),
    "8 series, small, 5 paths": lambda: paths("small", 8, 5),
}


class Measured:
    """Costs of tasks in large products, each made ready once.

    Args:
        rounds: turns of task and product.
    """

    def __init__(self, rounds: int) -> None:
        self.rounds = rounds
        self._product = large_product()
        self._ready: dict[str, Callable[[], object]] = {}

    def __call__(self, name: str) -> float:
        if name not in self._ready:
            self._ready[name] = TASKS[name]()
        work, multiply = self._ready[name], self._product
        work(), multiply()
        costs = []
        for _ in range(self.rounds):
            before, own, after = (seconds(each) for each in (multiply, work, multiply))
            costs.append(own / (0.5 * (before + after)))
        return statistics.median(costs)


def large_product() -> Callable[[], object]:
    """1,024 rows by 2,048 x 2,048."""
    packed = Product([torch.nn.Linear(2048, 2048, bias=False)], torch.float32)
    x = torch.randn(1024, 2048)
    return lambda: packed(x)


def seconds(work: Callable[[], object]) -> float:
    """Of one call."""
    began = clock()
    work()
    return clock() - began


def fallen(
    kept: Mapping[str, float], measure: Callable[[str], float], attempts: int = ATTEMPTS
) -> dict[str, float]:
    """Tasks that lost more than `LOSS` of their speed in every attempt, and their least cost.

    Args:
        kept: the cost of each task as it was.
        measure: the cost of a task now.
    """
    found = {}
    for name, before in kept.items():
        least = float("inf")
        for _ in range(attempts):
            least = min(least, measure(name))
            if before / least >= 1 - LOSS:
                break
        else:
            found[name] = least
    return found


def kind_of_cpu() -> str:
    """By the capability that its products use."""
    has = getattr(torch.cpu, "get_capabilities", dict)()  # not in every torch
    other = torch.backends.cpu.get_cpu_capability().lower()
    return next((way for way in WAYS_TO_MULTIPLY if has.get(way)), other)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--keep", action="store_true", help="write this machine's costs")
    parser.add_argument("--file", type=Path, default=KEPT)
    args = parser.parse_args(argv)
    count_cpu_time()
    every = json.loads(args.file.read_text(encoding="utf-8")) if args.file.exists() else {}
    kind, measure = kind_of_cpu(), Measured(args.rounds)
    if args.keep:
        every[kind] = {
            name: round(max(measure(name) for _ in range(ATTEMPTS)), 3) for name in TASKS
        }
        args.file.write_text(json.dumps(every, indent=1) + "\n", encoding="utf-8")
        print(f"costs of {kind} are in {args.file}")
        return 0
    if kind not in every:
        print(f"no costs of a CPU with {kind} are kept; of {', '.join(every) or 'none'}: --keep")
        return 2

    def told(name: str) -> float:
        cost = measure(name)
        before = every[kind][name]
        print(f"{name:28s}{cost:10.3f} large products, {before:.3f} kept", flush=True)
        return cost

    found = fallen(every[kind], told)
    for name, cost in found.items():
        lost = 1 - every[kind][name] / cost
        print(f"{name} lost {lost:.0%} of its speed: {cost:.3f} large products a call")
    return 1 if found else 0


if __name__ == "__main__":
    raise SystemExit(main())
