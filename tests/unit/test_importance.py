"""Permutation importance: the input that matters is found, what is not read costs nothing."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from kronos_qlib.data.windows.bar_table import BarTable
from kronos_qlib.data.windows.find import windows_to_score
from kronos_qlib.data.windows.scale_features import SCALE_FEATURES
from kronos_qlib.errors import BarDataError, ConfigError
from kronos_qlib.inference.predictor import KronosPredictor
from kronos_qlib.model.alpha_head import AlphaEnsemble, AlphaHead
from kronos_qlib.model.sizes import ContextConfig
from kronos_qlib.pipeline.importance import Group, input_groups, permutation_importance
from kronos_qlib.pipeline.scoring import scores_from_alpha
from kronos_qlib.schema import BAR_COLUMNS
from kronos_qlib.training.alpha import correlations, day_features, day_inputs

DAYS = pd.bdate_range("2024-01-01", periods=40)
PLAIN = SimpleNamespace(device="cpu")
"""All that is read of a predictor whose context no head reads."""


@pytest.fixture(scope="module")
def windows():
    rng = np.random.default_rng(0)
    frames = {}
    for number in range(15):
        close = 10 * np.exp(np.cumsum(rng.normal(0, 0.02, len(DAYS))))
        opened = close * np.exp(rng.normal(0, 0.01, len(DAYS)))
        volume = rng.uniform(1e4, 1e5, len(DAYS))
        high, low = np.maximum(opened, close) * 1.01, np.minimum(opened, close) * 0.99
        bars = np.stack([opened, high, low, close, volume, volume * close], axis=1)
        frames[f"S{number:02d}"] = pd.DataFrame(bars, index=DAYS, columns=list(BAR_COLUMNS))
    return windows_to_score(BarTable.from_frame(pd.concat(frames)), 12)


@dataclass
class Planted:
    """A label that is one of the features, and noise."""

    feature: str
    noise: float = 0.5
    ahead = 1

    def of(self, windows):
        rng = np.random.default_rng(0)
        own = day_features(windows)[:, SCALE_FEATURES.index(self.feature)]
        return own + self.noise * rng.normal(size=len(own)).astype(np.float32)


def reading(*features: str) -> AlphaHead:
    """A head that adds up some features and reads nothing else."""
    head = AlphaHead(16, len(SCALE_FEATURES), 0, len(features), 0.0).eval()
    with torch.no_grad():
        head.inner.weight.zero_()
        for row, name in enumerate(features):
            head.inner.weight[row, SCALE_FEATURES.index(name)] = 0.1
        head.inner.bias.zero_()
        head.outer.weight.fill_(1.0)
    return head


def test_what_the_head_reads_and_the_label_is_made_of_is_found(windows):
    head = reading("return_5", "amount")
    found = permutation_importance(PLAIN, head, windows, Planted("return_5"))
    table = found.table["mean"]
    assert table["scale: return"] > 0.3 and found.table.loc["scale: return", "low"] > 0
    assert table["scale: body"] == table["scale: volatility"] == 0, "not read at all"
    assert table["scale features"] == pytest.approx(found.rank_ic.mean(), abs=0.1)
    assert abs(table["scale: amount"]) < table["scale: return"] / 2, "read, and of little use"
    assert found.table.loc["scale: return", "inputs"] == sum(
        name.startswith("return") for name in SCALE_FEATURES
    )
    assert len(found.drops) == len(DAYS) - 11


def test_a_label_of_noise_has_no_significant_input(windows):
    found = permutation_importance(PLAIN, reading("return_5"), windows, Planted("return_5", 1e3))
    assert found.table.loc["scale: return", "low"] < 0 < found.table.loc["scale: return", "high"]


def test_a_day_has_its_own_orders_whatever_other_days_are_asked_for(windows):
    head, label = reading("return_5", "amount"), Planted("return_5")
    whole = permutation_importance(PLAIN, head, windows, label, shuffles=2)
    few = permutation_importance(PLAIN, head, windows, label, shuffles=2, most_days=7)
    assert len(few.drops) == 7 and few.drops.index[[0, -1]].equals(whole.drops.index[[0, -1]])
    pd.testing.assert_frame_equal(few.drops, whole.drops.loc[few.drops.index])
    again = permutation_importance(PLAIN, head, windows, label, shuffles=2, seed=1)
    assert not again.drops.equals(whole.drops)


def test_days_before_1970_are_shuffled_too(windows):
    """Their seconds are counted below 0, which no seed may be."""
    table = windows.table
    early = BarTable(
        table.values,
        table.places,
        table.calendar - np.timedelta64(70 * 365, "D"),
        table.instruments,
        table.offsets,
    )
    found = permutation_importance(
        PLAIN,
        reading("return_5"),
        windows_to_score(early, 12),
        Planted("return_5"),
        shuffles=1,
        most_days=3,
    )
    assert found.drops.index.max() < pd.Timestamp("1970")
    assert found.table.loc["scale: return", "mean"] > 0.1


def test_the_context_is_a_group_and_columns_are(windows, tiny_pair):
    tokenizer, net = tiny_pair
    predictor = KronosPredictor(net, tokenizer, "cpu", 32)
    torch.manual_seed(0)
    head = AlphaHead(16, len(SCALE_FEATURES), 3, 4, 0.0).eval()
    found = permutation_importance(
        predictor, head, windows, Planted("return_5"), shuffles=1, most_days=3
    )
    assert list(found.table.index[:2]) == ["context", "scale features"]
    assert (found.drops["context"] != 0).any() and np.isnan(found.table["low"]).all()
    names, whole = ["return_1", "earnings", "return_2", "news"], slice(0, 16)
    groups = input_groups(names, {"context": whole}, reads_market=True)
    assert groups == {
        "context": Group(1, contexts=(whole,)),
        "scale features": Group(2, features=(0, 2)),
        "scale: return": Group(2, features=(0, 2)),
        "columns": Group(2, features=(1, 3)),
        "column: earnings": Group(1, features=(1,)),
        "column: news": Group(1, features=(3,)),
        "market": Group(1, market=True),
    }
    assert input_groups([]) == {}


def test_what_cannot_be_measured_is_refused(windows):
    class Unknown(Planted):
        def of(self, windows):
            return np.full(len(windows), np.nan)

    with pytest.raises(BarDataError, match="5 names with a label"):
        permutation_importance(PLAIN, reading("amount"), windows, Unknown("amount"))
    for how in ({"shuffles": 0}, {"most_days": 0}, {"seed": -1}):
        with pytest.raises(ConfigError, match="1 or more"):
            permutation_importance(PLAIN, reading("amount"), windows, Planted("amount"), **how)


def test_a_heads_options_count_as_they_do_when_it_scores(windows, tiny_pair):
    """Rank IC is that of the scores, whatever the head reads, and each input has its group."""
    tokenizer, net = tiny_pair
    predictor = KronosPredictor(net, tokenizer, "cpu", 32)
    some = windows.take(
        np.concatenate([np.arange(*day.indices(len(windows))) for day in windows.moments()[:4]])
    )
    names = (*SCALE_FEATURES, "earnings")
    torch.manual_seed(0)
    options = {
        "names": names,
        "attention": 2,
        "market": len(SCALE_FEATURES),
        "context": ContextConfig(bars=3, layers=(1,)),
    }
    heads = [AlphaHead(16, len(names), 3, 8, 0.0, **options) for _ in range(2)]
    for head in heads:  # as if it had learned
        head.fit_market(torch.from_numpy(day_inputs(some)[1]))
        for weight in head.across.parameters():
            torch.nn.init.normal_(weight)
    head = AlphaEnsemble(heads).eval()
    earnings = np.random.default_rng(3).normal(size=(len(some), 1)).astype(np.float32)
    features, label = day_features(some, earnings), Planted("return_5")
    how = {"features": features, "shuffles": 1}
    found = permutation_importance(predictor, head, some, label, **how)
    parts = ["context: last bar", "context: newest 3 bars", "context: layers 1"]
    assert list(found.table.index[:5]) == ["context", *parts, "scale features"]
    assert list(found.table.index[-3:]) == ["columns", "column: earnings", "market"]
    assert found.table.loc["context", "inputs"] == 3 and found.table.loc["market", "inputs"] == 1
    assert (found.drops.abs().max() > 0).all(), "every group is read"
    scores = scores_from_alpha(predictor, head, some, features=features)
    returns = label.of(some)
    expected = [correlations(scores[day], returns[day])[1] for day in some.moments()]
    np.testing.assert_allclose(found.rank_ic, expected, atol=1e-9)
    one = permutation_importance(predictor, head, some, label, most_days=1, **how)
    assert "market" not in one.table.index, "there is no other day to take one from"
    with pytest.raises(ConfigError, match=r"other features .*earnings"):
        permutation_importance(predictor, head, some, label)


def test_a_market_that_is_the_same_every_day_has_nothing_to_lose(windows, monkeypatch):
    def same(windows):
        features, market = day_inputs(windows)
        return features, np.zeros_like(market)

    monkeypatch.setattr("kronos_qlib.training.alpha.day_inputs", same)
    names, market = SCALE_FEATURES, len(SCALE_FEATURES)
    torch.manual_seed(0)
    head = AlphaHead(16, market, 0, 8, 0.0, names=names, attention=2, market=market).eval()
    torch.nn.init.normal_(head.across.out.weight)
    found = permutation_importance(PLAIN, head, windows, Planted("amount"), shuffles=2, most_days=4)
    assert (found.drops["market"] == 0).all() and (found.drops["scale features"] != 0).any()
