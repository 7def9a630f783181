"""The benchmark of windows runs, and compares the same windows."""

from __future__ import annotations

import json

import pytest

pytestmark = pytest.mark.integration


def test_the_benchmark_of_windows_at_toy_size(load_benchmark, tmp_path, monkeypatch, capsys):
    """Its own check refuses to print unless our windows are the published ones."""
    table = tmp_path / "windows.json"
    sizes = ["--instruments-daily", "12", "--years", "1", "--seconds", "0.1", "--batch-sizes", "8"]
    what = ["--cases", "day:20:5", "--methods", "ours", "published", "--json", str(table)]
    monkeypatch.chdir(tmp_path)
    assert load_benchmark("windows").main([*sizes, *what]) == 0
    ours, published = json.loads(table.read_text(encoding="utf-8"))["rows"]
    assert ours["windows"] == published["windows"] > 0
    assert ours["bars"] * 24 == ours["raw"]
    assert ours["difference"]["float64"] <= 1
    assert "| day 20 + 5 | ours | 12 |" in capsys.readouterr().out
