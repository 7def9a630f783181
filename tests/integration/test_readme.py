"""What the README prints runs as printed."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

from kronos_qlib.data.synthetic import MarketConfig, make_market
from kronos_qlib.plugin.storage import write_provider

pytestmark = pytest.mark.integration

README = Path(__file__).parents[2] / "README.md"


def test_the_python_examples_run(tmp_path, monkeypatch, capsys):
    examples = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert len(examples) == 4
    market = make_market(MarketConfig(instruments=4, sectors=2))
    write_provider(market.bars, tmp_path / "demo" / "market", beside={"bars": market.bars})
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for number, example in enumerate(examples):  # each goes on where the one before it ended
        script = tmp_path / f"example{number}.py"
        script.write_text(example, encoding="utf-8")
        names |= runpy.run_path(str(script), init_globals=names)
    forecast = names["forecast"]
    assert forecast.shape == (10, 6)
    assert forecast.notna().all().all()
    printed = capsys.readouterr().out
    assert "close" in printed
    assert "<Forecast SYM0001: 100 paths of 10 bars" in printed
    assert printed.count("Name: score") == 2, "from the Qlib folder, and from the file alone"
