"""The house rules that a machine can keep: light imports, downward imports, one Qlib folder."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

import kronos_qlib

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "kronos_qlib"

MODULES = {"cli": 19}
"""Folders that may have more than 12 modules: a command of the command line is a module."""

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


def test_no_two_modules_have_one_name():
    """Eight names stood twice in the package, and a search opened the wrong file."""
    names = [path.name for path in modules() if path.stem not in ("__init__", "__main__")]
    twice = sorted(name for name, count in Counter(names).items() if count > 1)
    assert not twice, f"{', '.join(twice)}: give each module a name of its own"


def test_no_folder_has_more_modules_than_one_sees_at_a_glance():
    folders = Counter(
        path.parent.relative_to(PACKAGE).as_posix()
        for path in modules()
        if path.stem not in ("__init__", "__main__")
    )
    full = {name: count for name, count in folders.items() if count > MODULES.get(name, 12)}
    assert not full, f"{full}: part the folder into packages"


def test_imports_point_downwards():
    """The contracts are in pyproject.toml."""
    pytest.importorskip("importlinter", reason="import-linter is not installed")
    code = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports())"
    assert "0 broken" in run("-c", code)


RUNS_CODE = {
    "pickle": {"load", "loads", "Unpickler", "_Unpickler"},
    "joblib": {"load"},
    "torch": {"load"},
    "dill": {"load", "loads"},
    "cloudpickle": {"load", "loads"},
    "marshal": {"load", "loads"},
    "shelve": {"open"},
    "yaml": {"load", "full_load", "unsafe_load"},
    "pandas": {"read_pickle"},
    "numpy": {"load"},
}
"""Functions that run, or may run, what the writer of a file put there."""
ALIASES = {"np": "numpy", "pd": "pandas"}
MAY_RUN = {
    (
        "plugin/pickles/pickle_steps.py",
        "pickle._Unpickler",
    ): "stand-ins for every name; nothing runs",
    ("plugin/pickles/load_pickle.py", "pickle.load"): "the user's own run, where --trust is said",
    ("training/parallel/processes.py", "torch.load"): "of our own process, by a pipe; weights_only",
    ("training/resume.py", "torch.load"): "states: tensors, numbers and texts; weights_only",
}
"""Who may, and whose files it reads."""


def readers_in(path):
    """Calls and names of RUNS_CODE, and methods that unpickle: Qlib's `load_object` and `load`."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute):
            if node.attr == "load_object" or ast.unparse(node) == "self.load":
                yield ast.unparse(node)
            root = ast.unparse(node.value)
            if node.attr in RUNS_CODE.get(ALIASES.get(root, root), ()):
                yield f"{root}.{node.attr}"
        elif isinstance(node, ast.ImportFrom) and node.module in RUNS_CODE:
            names = {alias.name for alias in node.names}
            yield from (f"{node.module}.{name}" for name in names & RUNS_CODE[node.module])
        elif isinstance(node, ast.keyword) and node.arg == "allow_pickle":
            yield "allow_pickle"
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
            safe = any(
                word.arg == "weights_only" and ast.unparse(word.value) == "True"
                for word in node.keywords
            )
            if not safe:
                yield "torch.load without weights_only=True"


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_nothing_unpickles_what_a_stranger_could_have_written(path):
    """A shared store's pickles ran their writer's code in `compare`."""
    name = path.relative_to(PACKAGE).as_posix()
    found = {reader for reader in readers_in(path) if (name, reader) not in MAY_RUN}
    assert not found, (
        f"{name} has {', '.join(sorted(found))}: read it by plugin/pickles/load_pickle.py"
    )


def test_the_list_of_readers_is_not_longer_than_it_must_be():
    found = {
        (path.relative_to(PACKAGE).as_posix(), one)
        for path in modules()
        for one in readers_in(path)
    }
    assert found == set(MAY_RUN)


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("import pickle\npickle.loads(b)", {"pickle.loads"}),
        ("from pickle import load", {"pickle.load"}),
        ("recorder.load_object('x')", {"recorder.load_object"}),
        ("torch.load(f)", {"torch.load", "torch.load without weights_only=True"}),
        ("np.load(f, allow_pickle=True)", {"np.load", "allow_pickle"}),
        ("pd.read_pickle(f)", {"pd.read_pickle"}),
        ("self.load('pred.pkl')", {"self.load"}),
        ("pickle.dumps(b); json.loads(b)", set()),
    ],
)
def test_a_reader_is_seen(code, found, tmp_path):
    (tmp_path / "some.py").write_text(code, encoding="utf-8")
    assert set(readers_in(tmp_path / "some.py")) == found


@pytest.mark.parametrize(
    "path",
    [path for path in modules() if PACKAGE / "plugin" not in path.parents],
    ids=lambda path: str(path.relative_to(PACKAGE)),
)
def test_only_the_plugin_knows_qlib(path):
    roots = {name.split(".")[0] for name in imports_of(path)}
    assert "qlib" not in roots, f"{path} imports qlib; move that part to kronos_qlib/plugin"
