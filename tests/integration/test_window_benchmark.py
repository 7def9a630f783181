"""The benchmark of windows runs, and compares the same windows."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]


def test_the_benchmark_of_windows_at_toy_size(tmp_path):
    """Its own check refuses to print unless our windows are the published ones."""
    table = tmp_path / "windows.json"
    sizes = ["--instruments-daily", "12", "--years", "1", "--seconds", "0.1", "--batch-sizes", "8"]
    what = ["--cases", "day:20:5", "--methods", "ours", "published", "--json", str(table)]
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "windows.py"), *sizes, *what],
        cwd=tmp_path, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    ours, published = json.loads(table.read_text(encoding="utf-8"))["rows"]
    assert ours["windows"] == published["windows"] > 0
    assert ours["bars"] * 24 == ours["raw"]
    assert ours["difference"]["float64"] <= 1
    assert "| day 20 + 5 | ours | 12 |" in done.stdout
