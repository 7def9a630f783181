"""The house rules that a machine can keep: light imports, downward imports, one Qlib folder."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import kronos_qlib

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "kronos_qlib"

LOOK = """
import json, os, random, sys, warnings
before = (dict(os.environ), list(warnings.filters), random.getstate())
import kronos_qlib
after = (dict(os.environ), list(warnings.filters), random.getstate())
heavy = {"torch", "qlib", "pandas", "matplotlib", "mlflow", "numpy"} & set(sys.modules)
print(json.dumps({"heavy": sorted(heavy), "unchanged": before == after}))
"""
LOOK_AT_NAMES = """
import json, os, random, warnings
import numpy, pandas, torch
before = (dict(os.environ), list(warnings.filters), random.getstate())
tensors = torch.get_rng_state()
numbers = numpy.random.get_state()[1].tolist()
from kronos_qlib import Kronos, KronosPredictor, KronosTokenizer
after = (dict(os.environ), list(warnings.filters), random.getstate())
same = torch.equal(tensors, torch.get_rng_state())
print(json.dumps({"unchanged": before == after and same
    and numbers == numpy.random.get_state()[1].tolist()
    and torch.get_default_dtype() == torch.float32 and torch.is_grad_enabled()}))
"""


def run(*arguments):
    done = subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def modules():
    return sorted(PACKAGE.rglob("*.py"))


def imports_of(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module


def test_importing_the_package_costs_nothing_and_changes_nothing():
    assert json.loads(run("-c", LOOK)) == {"heavy": [], "unchanged": True}


def test_importing_the_networks_changes_no_global_state():
    assert json.loads(run("-c", LOOK_AT_NAMES)) == {"unchanged": True}


@pytest.mark.parametrize("name", kronos_qlib.__all__)
def test_every_public_name_resolves(name):
    assert getattr(kronos_qlib, name) is not None
    assert name in dir(kronos_qlib)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'Kornos'"):
        kronos_qlib.Kornos  # noqa: B018


def test_imports_point_downwards():
    """The contracts are in pyproject.toml."""
    pytest.importorskip("importlinter", reason="import-linter is not installed")
    code = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports())"
    assert "0 broken" in run("-c", code)


@pytest.mark.parametrize(
    "path",
    [path for path in modules() if PACKAGE / "plugin" not in path.parents],
    ids=lambda path: str(path.relative_to(PACKAGE)),
)
def test_only_the_plugin_knows_qlib(path):
    roots = {name.split(".")[0] for name in imports_of(path)}
    assert "qlib" not in roots, f"{path} imports qlib; move that part to kronos_qlib/plugin"
