"""What the README prints runs as printed."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

from kronos_qlib.data.synthetic import MarketConfig, make_market

pytestmark = pytest.mark.integration

README = Path(__file__).parents[2] / "README.md"


def test_the_python_example_runs(tmp_path, monkeypatch, capsys):
    (example,) = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    (tmp_path / "example.py").write_text(example, encoding="utf-8")
    market = tmp_path / "demo" / "market"
    market.mkdir(parents=True)
    config = MarketConfig(instruments=4, sectors=2, years=1.0)
    make_market(config).bars.to_parquet(market / "bars.parquet")
    monkeypatch.chdir(tmp_path)
    names = runpy.run_path("example.py")
    assert names["forecast"].shape == (10, 6)
    assert names["forecast"].notna().all().all()
    assert "close" in capsys.readouterr().out
