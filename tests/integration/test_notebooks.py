"""The notebooks run from top to bottom, keep what they printed, and leave the code to the package.

Executed with smaller settings in place of the cell tagged "parameters", and in a temporary copy of
the folders that they reach for.
"""

from __future__ import annotations

import ast
import base64
import os
import re
import shutil
import subprocess
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbformat import NotebookNode
from qlib.data import D
from qlib.data.cache import H

from kronos_qlib.data.files.synthetic import MarketConfig
from kronos_qlib.errors import ConfigError
from kronos_qlib.plugin.demo import open_demo

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
MOST_BYTES = 400_000

SMALLER = {
    "01_first_forecast": "INSTRUMENTS, PATHS, WINDOWS = 12, 40, 40",
    "02_alpha_exploration": """
INSTRUMENTS, PATHS = 12, 3  # of two paths each would be as skew as the other
FIRST_DAY, LAST_DAY = "2022-07-01", "2022-08-31"
""",
    "03_kronos_vs_lightgbm": """
INSTRUMENTS = 12
SETTINGS = {
    "KRONOS_PROVIDER_URI": "../demo/market",
    "KRONOS_START": "2022-01-03",
    "KRONOS_TRAIN_START": "2022-01-03",
    "KRONOS_TRAIN_END": "2022-04-29",
    "KRONOS_VALID_START": "2022-05-02",
    "KRONOS_VALID_END": "2022-06-15",
    "KRONOS_TEST_START": "2022-06-16",
    "KRONOS_TEST_END": "2022-08-31",
    "KRONOS_EPOCHS": "1",
    "KRONOS_LOOKBACK": "30",
    "KRONOS_TOPK": "4",
    "KRONOS_N_DROP": "1",
    "KRONOS_THREADS": "1",
    "KRONOS_LAMBDA_L1": "5",  # held back for the whole market, few names teach nothing
    "KRONOS_LAMBDA_L2": "50",
}
""",
    "04_every_day": """
INSTRUMENTS, NAMES, DAYS = 12, 12, 5
SETTINGS = {
    "KRONOS_START": "2022-01-03",
    "KRONOS_TRAIN_START": "2022-08-01",
    "KRONOS_TRAIN_END": "2022-08-31",
    "KRONOS_VALID_START": "2022-09-01",
    "KRONOS_VALID_END": "2022-09-30",
    "KRONOS_TEST_START": "2022-10-03",
    "KRONOS_TEST_END": "2022-11-30",
    "KRONOS_EPOCHS": "1",
    "KRONOS_LOOKBACK": "30",
    "KRONOS_TOPK": "4",
    "KRONOS_N_DROP": "1",
    "KRONOS_THREADS": "1",
}
""",
}


def code_of(notebook: NotebookNode) -> str:
    """All code, without the lines that IPython alone understands."""
    cells = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    return "\n".join(re.sub(r"^[%!].*$", "", source, flags=re.MULTILINE) for source in cells)


def outputs_of(notebook: NotebookNode) -> list[NotebookNode]:
    return [output for cell in notebook.cells for output in cell.get("outputs", [])]


def images_of(notebook: NotebookNode) -> list[bytes]:
    found = [output.get("data", {}).get("image/png") for output in outputs_of(notebook)]
    return [base64.b64decode(image) for image in found if image]


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def path(request) -> Path:
    return request.param


def test_every_notebook_has_smaller_settings():
    assert [path.stem for path in NOTEBOOKS] == sorted(SMALLER)


def test_the_code_is_the_package_s(path):
    """A notebook calls; whatever has to be defined belongs where it is tested."""
    tree = ast.parse(code_of(nbformat.read(path, 4)))
    defining = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)
    assert not [ast.unparse(node) for node in ast.walk(tree) if isinstance(node, defining)]


def test_outputs_are_kept(path):
    notebook = nbformat.read(path, 4)
    counts = [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"]
    assert counts == list(range(1, len(counts) + 1)), "executed in order, in one go"
    assert images_of(notebook)
    assert all(image.startswith(b"\x89PNG") for image in images_of(notebook))
    assert path.stat().st_size < MOST_BYTES
    assert notebook.metadata.kernelspec.name == "python3"


def test_outputs_are_of_no_machine_and_no_moment(path):
    notebook = nbformat.read(path, 4)
    told = [output for output in outputs_of(notebook) if output.get("name") == "stderr"]
    assert not told, "a warning or a log among the outputs"
    assert all(output.output_type != "error" for output in outputs_of(notebook))
    assert not any("execution" in cell.metadata for cell in notebook.cells), "times of cells"
    text = re.sub(r'"image/png": "[^"]*"', "", path.read_text(encoding="utf-8"))
    for strange in (r"/work\b", r"/root\b", r"/home/", r"/tmp\b", r"/Users/", r"\b[A-Z]:\\+\w"):
        assert not re.search(strange, text), f"{strange} in {path.name}"
    assert not re.search(r"\b[0-9a-f]{32}\b", text), "the id of a run"


@pytest.mark.integration
def test_it_runs(path, tmp_path, monkeypatch):
    for name in [name for name in os.environ if name.startswith("KRONOS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    # Qlib asks git for what was changed, and a folder that is no clone makes git talk.
    subprocess.run(["git", "init", "--quiet", str(tmp_path)], check=True)
    shutil.copytree(ROOT / "workflows", tmp_path / "workflows")
    folder = tmp_path / "notebooks"
    folder.mkdir()
    notebook = nbformat.read(path, 4)
    (parameters,) = (
        cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ())
    )
    parameters.source = SMALLER[path.stem]
    client = NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    )
    client.execute()  # raises where a cell fails
    assert images_of(notebook)
    assert not [output for output in outputs_of(notebook) if output.get("name") == "stderr"]


@pytest.mark.integration
def test_a_demo_market_is_made_once(tmp_path):
    small = MarketConfig(instruments=3, sectors=1, years=0.5)
    bars = open_demo(tmp_path / "market", small)
    assert bars["symbol"].nunique() == 3
    again = open_demo(tmp_path / "market", MarketConfig(instruments=5, sectors=1, years=0.5))
    assert again.equals(bars), "a market that is there is opened as it is"
    (tmp_path / "other").mkdir()
    with pytest.raises(ConfigError, match=r"no bars\.parquet"):
        open_demo(tmp_path / "other", small)


@pytest.mark.integration
def test_a_demo_market_of_minutes_is_opened_as_one(tmp_path):
    config = MarketConfig(instruments=3, sectors=1, start="2024-01-01", years=0.25, freq="5min")
    bars = open_demo(tmp_path / "market", config)
    H.clear()
    closes = D.features(["SYM0001"], ["$close"], freq="5min")["$close"].dropna()
    expected = bars.loc[bars["symbol"] == "SYM0001", "close"]
    assert len(closes) == len(expected) > 1000
    assert closes.to_numpy() == pytest.approx(expected.to_numpy())
