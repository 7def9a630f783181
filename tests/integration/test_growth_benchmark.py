"""The benchmark of growth: what its stages walk over, and which exponents it names."""

from __future__ import annotations

import pytest
import torch

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def growth(load_benchmark):
    return load_benchmark("growth")


def test_every_stage_walks_over_all_that_there_is(growth, tmp_path):
    threads = torch.get_num_threads()
    try:
        found = growth.measure((20, 0.55), tmp_path / "qlib", 6, 2)
    finally:
        torch.set_num_threads(threads)
    assert tuple(found) == growth.STAGES
    work = {name: one["work"] for name, one in found.items()}
    assert work["write"] == work["read"] > 20 * 130
    # Windows of 90 bars, the label's two days left out.
    assert work["find"] == work["gather"] == work["reports"] == work["backtest"]
    assert 20 * 35 < work["find"] < 20 * 60
    assert 55 < work["score"] <= 3 * 20 and 15 < work["paths"] <= 20
    assert all(one["cpu"] >= 0 for one in found.values())


def rows(cost, peak):
    """Of 100, 500 and 5,000 names at 10 rows each, by functions of names."""
    return [
        {
            "names": names,
            "years": 1,
            "stages": {
                stage: {"work": 10 * names, "cpu": cost(names), "peak": peak(names)}
                for stage in ("write", "read", "find", "gather", "score", "paths", "reports",
                              "backtest")
            },
        }
        for names in (100, 500, 5000)
    ]  # fmt: skip


def test_what_is_not_linear_is_named(growth):
    linear = growth.fitted(rows(lambda names: 2.0 + names, lambda names: 40.0), "names")
    assert [one["named"] for one in linear] == [""] * len(growth.STAGES)
    assert linear[0]["cpu_last"] == pytest.approx(1.0, abs=0.01) and linear[0]["cpu"] < 1
    score = next(one for one in linear if one["stage"] == "score")
    assert abs(score["memory"]) < 1e-9 and score["memory_last"] == 0
    # A part that is quadratic shows between the largest points, where least squares do not see it.
    bent = growth.fitted(rows(lambda names: 200 + names**2 / 5000, lambda names: names), "names")
    assert bent[0]["cpu"] < 1 < growth.LINEAR < bent[0]["cpu_last"]
    assert bent[0]["named"] == "above 1.15"
    named = {one["stage"]: one["named"] for one in bent}
    assert named["score"].endswith("memory grows with names") and "memory" not in named["read"]
    assert not any("memory" in one["named"] for one in growth.fitted(rows(float, float), "years"))
    assert "reports" in growth.show(rows(float, float), bent)
