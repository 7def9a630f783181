"""`benchmarks/guard.py` names what became slower, and not what the machine's noise made slow."""

import importlib
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def guard():
    """The script as a module."""
    with pytest.MonkeyPatch.context() as patched:
        patched.syspath_prepend(str(ROOT / "benchmarks"))
        yield importlib.import_module("guard")


def measured(costs):
    """One cost after another, of each task."""
    left = {name: iter(each) for name, each in costs.items()}
    return lambda name: next(left[name])


def test_what_stays_slow_is_named_by_its_least_cost(guard):
    kept = {"slow": 1.0, "noisy": 1.0, "same": 2.0, "faster": 2.0}
    costs = {"slow": [1.5, 1.3, 1.4], "noisy": [4.0, 1.3, 1.24], "same": [2.4], "faster": [0.5]}
    assert guard.fallen(kept, measured(costs)) == {"slow": 1.3}


@pytest.mark.parametrize("cost, code", [(1.0, 0), (1.24, 0), (1.26, 1)])
def test_the_exit_code_says_whether_something_fell(
    guard, tmp_path, monkeypatch, capsys, cost, code
):
    file = tmp_path / "costs.json"
    monkeypatch.setattr(guard, "Measured", lambda rounds: lambda name: 1.0)
    monkeypatch.setattr(guard, "count_cpu_time", lambda: None)
    assert guard.main(["--file", str(file)]) == 2
    assert guard.main(["--file", str(file), "--keep"]) == 0
    assert set(json.loads(file.read_text())[guard.kind_of_cpu()]) == set(guard.TASKS)
    monkeypatch.setattr(guard, "Measured", lambda rounds: lambda name: cost)
    assert guard.main(["--file", str(file)]) == code
    assert ("lost 21% of its speed" in capsys.readouterr().out) == bool(code)


def test_the_kept_costs_are_of_the_tasks_that_there_are(guard):
    kept = json.loads(guard.KEPT.read_text(encoding="utf-8"))
    assert kept
    for costs in kept.values():
        assert set(costs) == set(guard.TASKS)
        assert all(cost > 0 for cost in costs.values())
