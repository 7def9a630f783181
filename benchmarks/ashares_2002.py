"""Both workflows on real A-share bars: the README's table.

Train to 2001-12, validate to 2002-06, test 2002-07 to 2002-12, all names that traded, benchmark
their equal-weight mean. The Qlib folder is made anew, by data_prep/csv_to_qlib.py.

Example:
    python benchmarks/ashares_2002.py cn_daily_2000_2002.parquet --work demo/ashares_2002
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SETTINGS = {
    "KRONOS_REGION": "cn",
    "KRONOS_MARKET": "all",
    "KRONOS_BENCHMARK": "MEAN",
    "KRONOS_START": "2000-01-04",
    "KRONOS_TRAIN_START": "2000-01-04",
    "KRONOS_TRAIN_END": "2001-12-31",
    "KRONOS_VALID_START": "2002-01-01",
    "KRONOS_VALID_END": "2002-06-30",
    "KRONOS_TEST_START": "2002-07-01",
    "KRONOS_TEST_END": "2002-12-31",
    "KRONOS_TOPK": "50",
    "KRONOS_N_DROP": "5",
    "KRONOS_LIMIT_THRESHOLD": "0.095",
    "KRONOS_OPEN_COST": "0.0005",
    "KRONOS_CLOSE_COST": "0.0015",
}


def folder_command(bars: Path, folder: Path) -> list[str]:
    """What makes the Qlib folder anew, for a Python to run: a script and its arguments."""
    script = str(ROOT / "data_prep" / "csv_to_qlib.py")
    benchmark = SETTINGS["KRONOS_BENCHMARK"]
    return [script, str(bars), str(folder), "--benchmark", benchmark, "--overwrite"]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bars", type=Path, help="cn_daily_2000_2002.parquet")
    parser.add_argument(
        "--work", type=Path, default=Path("demo/ashares_2002"), help="scratch folder"
    )
    args = parser.parse_args(argv)
    work = args.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    bars = args.bars.resolve()

    # Settings given by hand in the environment win, so that a variant is one variable away.
    environment = SETTINGS | {"KRONOS_PROVIDER_URI": (work / "qlib").as_posix()} | dict(os.environ)

    def run(*command: str) -> None:
        subprocess.run([sys.executable, *command], cwd=work, env=environment, check=True)

    run(*folder_command(bars, work / "qlib"))
    for name in ("kronos", "lightgbm"):
        workflow = str(ROOT / "workflows" / f"workflow_{name}.yaml")
        run("-c", "from qlib.cli.run import run; run()", workflow)
    run("-m", "kronos_qlib.cli", "compare", "kronos", "lightgbm", "--markdown")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
