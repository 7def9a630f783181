"""How long the alpha workflow takes beside LightGBM's, whole, on a large simulated market.

`kronos-qlib run kronos_alpha` and `kronos-qlib run lightgbm` as they ship, each in a process of its
own: reading bars, training, scores, reports, backtest, MLflow. The first is run twice: it reads
contexts, then finds them on disk (`contexts_folder`). Seconds on the wall, and those that the
processes computed (not on Windows). Market and runs stay in `--work`; a market that is there is
taken, contexts are always read.

Example:
    python benchmarks/alpha_workflow.py
    python benchmarks/alpha_workflow.py --names 100 --years 3 --work demo/alpha_workflow_100
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from kronos_qlib.evaluation.text_table import format_rows

Row = dict[str, Any]


def children_seconds() -> float:
    """What processes that were waited for have computed."""
    spent = os.times()
    return spent.children_user + spent.children_system


def timed(name: str, command: list[str], log: Path) -> Row:
    """Run `kronos-qlib` with those arguments; what it prints goes to the file."""
    print(f"{name}: {' '.join(command)}", flush=True)
    began, spent = time.perf_counter(), children_seconds()
    with log.open("w", encoding="utf-8") as out:
        done = subprocess.run(
            [sys.executable, "-m", "kronos_qlib", *command], stdout=out, stderr=subprocess.STDOUT
        )
    if done.returncode:
        raise SystemExit(f"{name} failed with exit code {done.returncode}: see {log}")
    wall, busy = time.perf_counter() - began, children_seconds() - spent
    print(f"{name}: {wall:.0f} s, {busy:.0f} CPU s", flush=True)
    measured = round(busy) if os.name != "nt" else ""
    return {"workflow": name, "wall s": round(wall), "CPU s": measured}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--names", type=int, default=1200, help="instruments (%(default)s)")
    parser.add_argument("--years", type=float, default=3, help="from 2020 on, 3 at least")
    parser.add_argument(
        "--span", type=int, default=10, help="days that training contexts are read at once by"
    )
    parser.add_argument("--work", type=Path, default=Path("demo/alpha_workflow"))
    parser.add_argument("--json", type=Path, help="write the table here too")
    args = parser.parse_args()
    if args.years < 3:
        parser.error("--years must be 3 or more: the workflows' test segment ends with 2022")
    args.work.mkdir(parents=True, exist_ok=True)
    market = args.work / f"market_{args.names}_{args.years:g}"
    if not market.is_dir():
        part = market.with_name(f"{market.name}_part")  # renamed when it is whole
        made = ["data", "demo", str(part), "--instruments", str(args.names), "--overwrite"]
        timed("market", [*made, "--years", str(args.years)], args.work / "market.log")
        part.rename(market)
    uri = f"sqlite:///{(args.work / 'mlflow.db').resolve().as_posix()}"
    common = ["--set", f"provider_uri={market.as_posix()}", "--set", f"mlflow_uri={uri}"]
    with tempfile.TemporaryDirectory(dir=args.work, ignore_cleanup_errors=True) as folder:
        alpha = ["kronos_alpha", *common, "--set", f"contexts_folder={Path(folder).as_posix()}"]
        alpha += ["--set", f"training.alpha.span={args.span}"]
        runs = {
            "lightgbm": ["lightgbm", *common],
            "kronos_alpha": alpha,
            "kronos_alpha, contexts on disk": alpha,
        }
        rows = [
            timed(name, ["run", *command], args.work / f"run_{number}.log")
            for number, (name, command) in enumerate(runs.items())
        ]
    names = list(rows[0])
    print(format_rows([names, *([str(row[name]) for name in names] for row in rows)]))
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
