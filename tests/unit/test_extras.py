"""What a plain install lacks is an error that says which extra brings it, and nothing else is."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from torch import nn

import kronos_qlib
from kronos_qlib import extras
from kronos_qlib.cli.main import main
from kronos_qlib.errors import KronosError, MissingDependencyError
from kronos_qlib.evaluation.compare.page import comparison_page
from kronos_qlib.evaluation.forecasts.distributions import PathDistribution
from kronos_qlib.evaluation.portfolio.metrics import portfolio_metrics, wealth_measures
from kronos_qlib.training.lora import adapters

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "kronos_qlib"
MODULES = [(extra, root) for extra, roots in extras.EXTRAS.items() for root in roots]
ROOTS = {root for _, root in MODULES}

RETURNS = pd.Series(
    [0.01, -0.02, 0.015, 0.0], index=pd.bdate_range("2024-01-01", periods=4), name="return"
)


def give_none(monkeypatch, *roots):
    """As if these packages were not installed."""
    for name in list(sys.modules):
        if name.partition(".")[0] in roots:
            monkeypatch.delitem(sys.modules, name)
    for root in roots:
        monkeypatch.setitem(sys.modules, root, None)


def project():
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def names(requirements):
    return {re.split(r"[\[<>=!~; ]", one, maxsplit=1)[0] for one in requirements}


def distribution_of(root):
    return {"empyrical": "empyrical-reloaded"}.get(root, root.replace("_", "-"))


@pytest.mark.parametrize(("extra", "root"), MODULES)
def test_a_missing_module_names_its_extra_and_the_command(monkeypatch, extra, root):
    give_none(monkeypatch, root)
    with pytest.raises(MissingDependencyError) as missing:
        extras.require(f"{root}.some", for_="what you ask for")
    said = str(missing.value)
    assert said.startswith("what you ask for needs ")
    assert root in said
    assert f'pip install "kronos-qlib[{extra}]"' in said
    assert isinstance(missing.value, KronosError)
    assert isinstance(missing.value, ImportError)
    assert missing.value.name == root
    with pytest.raises(MissingDependencyError, match=re.escape(f"kronos-qlib[{extra}]")):
        extras.check_extra(extra, for_="what you ask for")


def test_all_that_is_missing_is_named_at_once(monkeypatch):
    give_none(monkeypatch, "plotly", "scoringrules")
    with pytest.raises(MissingDependencyError, match="plotly, scoringrules"):
        extras.check_extra("report", for_="a report")


def test_a_broken_package_says_itself_what_it_lacks(tmp_path, monkeypatch):
    """To install what is installed would mend nothing."""
    (tmp_path / "peft.py").write_text("import no_such_library\n", encoding="utf-8")
    for name in [name for name in sys.modules if name.partition(".")[0] == "peft"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="no_such_library") as broken:
        extras.require("peft", for_="LoRA")
    assert not isinstance(broken.value, MissingDependencyError)


def ask_for_lora():
    with adapters(nn.Linear(2, 2), 2, 1.0, 0):
        pass


def ask_for_crps():
    rng = np.random.default_rng(0)
    closes = 10 + rng.normal(0, 0.1, (3, 5, 2))
    PathDistribution(closes, np.full(3, 10.0)).crps(rng.normal(0, 0.01, (3, 2)))


def ask_for_portfolio_metrics():
    report = pd.DataFrame({"return": RETURNS, "bench": 0.001, "cost": 0.0, "turnover": 0.5})
    portfolio_metrics(report)


ASKED = {
    "peft": [ask_for_lora],
    "empyrical": [ask_for_portfolio_metrics, lambda: wealth_measures(RETURNS, 0 * RETURNS)],
    "plotly": [lambda: comparison_page(None)],
    "scoringrules": [ask_for_crps],
}
"""Work that needs each module; statsmodels' is in the records'."""


@pytest.mark.parametrize(("root", "work"), [(root, one) for root in ASKED for one in ASKED[root]])
def test_work_without_its_package_says_so(monkeypatch, root, work):
    give_none(monkeypatch, root)
    with pytest.raises(MissingDependencyError, match=root):
        work()


def test_compare_is_refused_before_a_run_is_read(monkeypatch, capsys):
    give_none(monkeypatch, "plotly")
    assert main(["compare", "some", "--tracking-uri", "sqlite:////no/such/folder/store.db"]) == 1
    assert 'pip install "kronos-qlib[report]"' in capsys.readouterr().err


def test_extras_are_those_of_pyproject():
    optional = project()["optional-dependencies"]
    for extra, roots in extras.EXTRAS.items():
        own = [one for one in optional[extra] if not one.startswith("kronos-qlib[")]
        assert set(map(distribution_of, roots)) == names(own)
    of_all = [extra for extra in extras.EXTRAS if extra not in extras.SERVICES]
    assert optional["all"] == [f"kronos-qlib[{','.join(of_all)}]"]
    assert "kronos-qlib[all]" in optional["dev"], "the tests need them all"


def test_few_packages_are_needed_by_all():
    needed = project()["dependencies"]
    assert len(needed) <= 16
    assert not names(needed) & set(map(distribution_of, ROOTS))


def imports_outside_of_typing(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name.partition(".")[0], node) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.partition(".")[0], node


SERVERS = {
    PACKAGE / "webui" / f"{name}.py": extra
    for name, extra in {
        "app": "web",
        "mcp_server": "mcp",
        "problems": "web",
        "security": "web",
        "serving": "web",
        "static_files": "web",
        "wire_errors": "web",
    }.items()
}
"""Modules that are of an extra as a whole, which the commands that import them check before."""


@pytest.mark.parametrize("path", SERVERS, ids=lambda path: path.stem)
def test_a_server_takes_packages_of_its_own_extra_alone(path):
    found = {root for root, _ in imports_outside_of_typing(path) if root in ROOTS}
    assert found <= set(extras.EXTRAS[SERVERS[path]])


@pytest.mark.parametrize(
    ("command", "root", "extra"), [("web", "waitress", "web"), ("mcp", "mcp", "mcp")]
)
def test_a_server_without_its_packages_says_so(monkeypatch, capsys, tmp_path, command, root, extra):
    monkeypatch.chdir(tmp_path)
    give_none(monkeypatch, root)
    assert main([command]) == 1
    assert f'pip install "kronos-qlib[{extra}]"' in capsys.readouterr().err


@pytest.mark.parametrize(
    "path",
    sorted(set(PACKAGE.rglob("*.py")) - set(SERVERS)),
    ids=lambda path: str(path.relative_to(PACKAGE)),
)
def test_packages_of_extras_are_got_by_require(path):
    found = {root for root, _ in imports_outside_of_typing(path) if root in ROOTS}
    assert not found, f"get {', '.join(found)} by kronos_qlib.extras.require"


PLAIN = """
import sys
sys.modules.update(dict.fromkeys({blocked}))
from importlib import import_module
for name in {modules}:
    import_module(name)
"""


def test_every_module_is_imported_in_a_plain_install():
    modules = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in sorted(set(PACKAGE.rglob("*.py")) - set(SERVERS))
        if not path.stem.startswith("__")
    ]
    code = PLAIN.format(blocked=sorted(ROOTS), modules=modules)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stderr
    assert kronos_qlib.__name__ in modules[0]
