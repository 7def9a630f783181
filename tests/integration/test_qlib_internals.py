"""What Qlib does not promise is still as `plugin.qlib_internals` found it, and used there alone."""

from __future__ import annotations

import ast
import re
from importlib import import_module
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from qlib.data import D
from qlib.data.base import Expression
from qlib.data.cache import H
from qlib.data.data import ExpressionD
from qlib.data.dataset.handler import DataHandler
from qlib.data.dataset.loader import StaticDataLoader
from qlib.log import TimeInspector
from qlib.workflow import R
from qlib.workflow.exp import MLflowExperiment
from qlib.workflow.recorder import MLflowRecorder

import kronos_qlib.plugin.qlib_internals as internals
from kronos_qlib.errors import ConfigError
from kronos_qlib.plugin.expressions import FURTHEST, Reach, reach_of
from kronos_qlib.plugin.lookahead import open_provider

pytestmark = pytest.mark.integration

PLUGIN = Path(internals.__file__).parent
PRIVATE_MODULES = ("qlib.data.cache", "qlib.data.data", "qlib.data.storage")


def is_private(module):
    return any(module == one or module.startswith(f"{one}.") for one in PRIVATE_MODULES)


def test_each_of_them_names_a_test_that_is_there():
    source = Path(internals.__file__).read_text(encoding="utf-8")
    named = re.findall(r"(test_\w+\.py)::(test_\w+)", source)
    functions = [node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)]
    for file, name in named:
        text = Path(__file__).with_name(file).read_text(encoding="utf-8")
        assert f"def {name}(" in text, f"{file} has no {name}"
    for function in functions:
        assert re.search(r"test_\w+\.py::", ast.get_docstring(function) or ""), function.name


def test_no_other_file_of_the_plugin_reaches_into_qlib():
    """Private attributes are of our own objects: of `self`, or of a class of the same file."""
    for path in PLUGIN.rglob("*.py"):
        if path == Path(internals.__file__):
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        own = {
            node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")
            for one in ast.walk(tree)
            if isinstance(one, ast.Assign | ast.AnnAssign)
            for node in (one.targets if isinstance(one, ast.Assign) else [one.target])
        } | {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
        hooks = {
            name
            for kept in (internals.OVERRIDDEN, internals.ATTRIBUTES)
            for names in kept.values()
            for name in names
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module:
                assert not is_private(node.module), f"{path.name}: {node.module}"
            if isinstance(node, ast.Attribute) and re.match(r"_[a-z]", node.attr):
                assert node.attr in own | hooks, f"{path.name}:{node.lineno} .{node.attr}"


def test_qlib_still_has_the_methods_that_are_overridden():
    for name, methods in internals.OVERRIDDEN.items():
        module, _, kind = name.rpartition(".")
        found = getattr(import_module(module), kind)
        for method in methods:
            assert callable(getattr(found, method)), f"{name}.{method}"


def test_qlibs_objects_still_have_these_attributes(tmp_path):
    uri = f"sqlite:///{(tmp_path / 'mlflow.db').as_posix()}"
    made = {
        "MLflowExperiment": MLflowExperiment("1", "demo", uri),
        "MLflowRecorder": MLflowRecorder("1", uri, "a run"),
    }
    for name, attributes in internals.ATTRIBUTES.items():
        for attribute in attributes:
            assert isinstance(getattr(made[name.rpartition(".")[2]], attribute), str)


def test_caches_are_forgotten(provider):
    open_provider(provider)
    D.calendar()
    assert len(H["c"])
    internals.clear_caches()
    assert not len(H["c"])


def test_no_run_is_open_without_init(monkeypatch):
    monkeypatch.setattr(R, "_provider", None)
    assert not internals.has_open_run()


def test_metrics_are_dropped_without_a_run(provider, tmp_path, monkeypatch):
    """Qlib begins a run in ./mlruns for the first metric that is logged without one."""
    monkeypatch.chdir(tmp_path)
    open_provider(provider)
    with internals.metrics_dropped():
        R.log_metrics(loss=1.0)
    assert not any(tmp_path.iterdir())
    assert "log_metrics" not in vars(R)


def test_timers_are_quiet():
    before = TimeInspector.timer_logger.level
    try:
        internals.quiet_timers()
        assert not TimeInspector.timer_logger.isEnabledFor(20)
    finally:
        TimeInspector.timer_logger.setLevel(before)


def test_a_handlers_frame_is_found(provider):
    open_provider(provider)
    index = pd.MultiIndex.from_product(
        [pd.date_range("2020-01-01", periods=2), ["A", "B"]], names=["datetime", "instrument"]
    )
    frame = pd.DataFrame({"x": np.arange(4.0)}, index=index)
    handler = DataHandler(data_loader=StaticDataLoader(frame))
    pd.testing.assert_frame_equal(internals.loaded_frame(handler), frame)
    assert internals.loaded_frame(None) is None


@pytest.mark.parametrize(
    "expression",
    [
        "Ref($close, -2) / Ref($close, -1) - 1",
        "Ref($close, -5) / $close - 1",
        "Log(Ref($close, -3) / Ref($open, -1))",
        "Mean(Ref($close, -5), 3) / Ref($close, -1) - 1",
        "If($close > Ref($open, -4), Ref(Ref($close, -2), -7), $high)",
        "Corr($close, Ref($volume, 5), 10)",
        "$close",
        "Greater($close, -1)",
    ],
)
def test_an_expression_reaches_as_far_as_qlib_reads_for_it(provider, expression):
    open_provider(provider)
    parsed: Expression = ExpressionD.get_expression_instance(expression)
    assert reach_of(expression).furthest == max(0, int(parsed.get_extended_window_size()[1]))


@pytest.mark.parametrize(
    ("expression", "nearest", "furthest", "bars"),
    [
        ("Ref($close, -6) / Ref($close, -1) - 1", 1, 6, 5),
        ("Ref($close, -5) / $close - 1", 5, 5, 5),
        ("Ref(Ref($close, -5), 2)", 3, 3, 3),
        ("Delta($close, -2)", 2, 2, 2),
        ("Ref($close, N=-4)", 4, 4, 4),
        ("Greater($close, -1)", 0, 0, 1),  # was taken for one bar ahead
        ("$close", 0, 0, 1),
        (f"Ref($close, -{'9' * 5000})", FURTHEST, FURTHEST, FURTHEST),
    ],
)
def test_a_label_runs_between_the_nearest_and_the_furthest_bar(expression, nearest, furthest, bars):
    found = reach_of(expression)
    assert found == Reach(nearest, furthest) and found.bars == bars


@pytest.mark.parametrize("text", ["Ref($close", "", "a b", "\x00"])
def test_what_is_no_expression_is_refused(text):
    with pytest.raises(ConfigError, match="is no expression of Qlib's"):
        reach_of(text)
