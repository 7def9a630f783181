"""An alpha head through Qlib: it finds a planted effect, nothing in noise, and sees no future."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from qlib.utils import init_instance_by_config

from kronos_qlib.data.files.synthetic import MarketConfig, make_market
from kronos_qlib.errors import ConfigError, TrainingError
from kronos_qlib.inference.predictor import KronosPredictor
from kronos_qlib.plugin.dataset import KronosDataset
from kronos_qlib.plugin.lookahead import open_provider
from kronos_qlib.plugin.model import KronosModel
from kronos_qlib.plugin.provider.expression_label import ExpressionLabel
from kronos_qlib.plugin.provider.writer import write_provider
from kronos_qlib.schema import BAR_COLUMNS

pytestmark = pytest.mark.integration

SEGMENTS = {
    "train": ("2020-01-01", "2020-12-31"),
    "valid": ("2021-01-01", "2021-03-31"),
    "test": ("2021-04-01", "2021-12-30"),
}
ALPHA = {"alpha": {"epochs": 6, "hidden": 16, "dropout": 0.1}}
LOOKBACK = 20


def market(effect: float, seed: int = 4, names: int = 24) -> pd.DataFrame:
    config = MarketConfig(instruments=names, sectors=3, years=2.0, effect=effect, seed=seed)
    return make_market(config).bars


@pytest.fixture(scope="module")
def bars():
    return market(0.3)


@pytest.fixture(scope="module")
def provider(bars, tmp_path_factory):
    folder = tmp_path_factory.mktemp("alpha") / "qlib"
    write_provider(bars, folder)
    return folder


def dataset_of(folder, segments=SEGMENTS, **kwargs) -> KronosDataset:
    open_provider(folder)
    handler = {
        "class": "KronosHandler",
        "module_path": "kronos_qlib.plugin.dataset",
        "kwargs": kwargs,
    }
    return KronosDataset(handler, segments, lookback=LOOKBACK, horizon=5)


def model_of(training=ALPHA) -> KronosModel:
    return KronosModel(training=training, device="cpu", show_progress=False)


@pytest.fixture(scope="module")
def fitted(provider):
    model = model_of()
    model.fit(dataset_of(provider))
    return model


def daily_rank_ic(scores: pd.Series, dataset: KronosDataset) -> pd.Series:
    labels = dataset.prepare("test", col_set="label").iloc[:, 0]
    both = pd.DataFrame({"score": scores, "label": labels}).dropna()
    days = both.groupby(level="datetime")
    return days.apply(lambda day: day["score"].corr(day["label"], method="spearman"))


def t_of(daily: pd.Series) -> float:
    return float(daily.mean() / daily.std() * np.sqrt(len(daily)))


def test_a_planted_effect_is_found_on_days_never_seen(fitted, provider):
    dataset = dataset_of(provider)
    daily = daily_rank_ic(fitted.predict(dataset), dataset)
    assert len(daily) > 150
    assert t_of(daily) > 4
    assert daily.mean() > 0.08


def test_nothing_is_found_in_noise(tmp_path):
    """A signal on pure noise would be a leak."""
    folder = tmp_path / "qlib"
    write_provider(market(0.0, seed=7), folder)
    dataset = dataset_of(folder)
    model = model_of()
    model.fit(dataset)
    assert abs(t_of(daily_rank_ic(model.predict(dataset), dataset))) < 3


EVERYTHING = {
    "epochs": 4,
    "hidden": 16,
    "seeds": 2,
    "linear_path": True,
    "horizons": [1, 2, 5],
    "drop_extremes": 0.05,
    "context": {"bars": 5, "layers": [2, 3], "dtype": "float16"},
    "attention": 8,
}
"""Every option at once: what each may know is the union."""


@pytest.fixture(scope="module")
def fitted_with_all(provider):
    model = model_of({"alpha": EVERYTHING})
    model.fit(dataset_of(provider))
    return model


def test_a_planted_effect_is_found_with_every_option(fitted_with_all, provider):
    dataset = dataset_of(provider)
    daily = daily_rank_ic(fitted_with_all.predict(dataset), dataset)
    assert len(daily) > 150
    assert t_of(daily) > 4


def test_nothing_is_found_in_noise_with_every_option(tmp_path):
    """Pooled contexts, later horizons, extremes and the others of a day hold no future either."""
    folder = tmp_path / "qlib"
    write_provider(market(0.0, seed=8), folder)
    dataset = dataset_of(folder)
    model = model_of({"alpha": EVERYTHING})
    model.fit(dataset)
    daily = daily_rank_ic(model.predict(dataset), dataset)
    assert abs(t_of(daily)) < 3
    assert daily.abs().mean() > 0.05, "scores are no constant"


QUARTER = ("2021-04-01", "2021-06-30")
"""Of the test: enough to be scored several times."""


def test_every_option_is_in_the_pickle_and_in_the_folder(fitted_with_all, provider, tmp_path):
    dataset = dataset_of(provider)
    scores = fitted_with_all.predict(dataset, QUARTER)
    assert len(scores) > 1000
    assert pickle.loads(pickle.dumps(fitted_with_all)).predict(dataset, QUARTER).equals(scores)
    fitted_with_all.save_pretrained(str(tmp_path))
    assert sorted(path.name for path in (tmp_path / "alpha").iterdir()) == [
        "config.json",
        "model.safetensors",
    ]
    saved = {"checkpoint": str(tmp_path), "alpha_head": str(tmp_path / "alpha")}
    again = KronosModel(**saved, device="cpu", show_progress=False)
    assert again.predict(dataset, QUARTER).equals(scores)
    day = scores.index.get_level_values("datetime").unique()[30]
    alone = again.predict(dataset, (day, day))
    assert alone.equals(scores[scores.index.get_level_values("datetime") == day])
    with pytest.raises(ConfigError, match=r"train on has .*attention 8 \(asked for: 0\)"):
        other = KronosModel(**saved, training={"alpha": {"seeds": 2}}, device="cpu")
        other.fit(dataset)
    with pytest.raises(ConfigError, match="alpha_head was trained on other weights than those"):
        KronosModel(**saved, training={"alpha": {"initial": "random"}}, device="cpu")


def test_contexts_in_a_folder_change_no_score(provider, tmp_path, monkeypatch):
    """Read once for two heads and the scores of both; another run reads none at all."""
    read = []
    embed = KronosPredictor.embed

    def counted(self, x, *args, **kwargs):
        read.append(len(x))
        return embed(self, x, *args, **kwargs)

    monkeypatch.setattr(KronosPredictor, "embed", counted)
    segments = {**SEGMENTS, "train": ("2020-10-01", "2020-12-31")}
    scores, counts = {}, {}
    for name, folder, quick in (
        ("none", None, {"hidden": 8}),
        ("first", tmp_path / "contexts", {"hidden": 8}),
        ("second", tmp_path / "contexts", {"hidden": 8}),
        ("later labels", tmp_path / "contexts", {"hidden": 16, "horizons": [1, 5]}),
    ):
        read.clear()
        dataset = dataset_of(provider, segments)
        model = KronosModel(
            training={"alpha": {"epochs": 1, **quick}},
            device="cpu",
            show_progress=False,
            contexts_folder=None if folder is None else str(folder),
        )
        model.fit(dataset)
        scores[name] = model.predict(dataset, ("2021-04-01", "2021-04-20"))
        counts[name] = sum(read)
    assert scores["none"].equals(scores["first"]) and scores["none"].equals(scores["second"])
    assert counts["none"] == counts["first"] > 1000
    assert counts["second"] == counts["later labels"] == 0
    assert pickle.loads(pickle.dumps(model))._contexts_folder is None, "a path of this machine"


def test_the_history_shows_what_was_chosen_by(fitted):
    rows = fitted.history["alpha"]
    assert [row["epoch"] for row in rows] == list(range(7))
    assert {"valid_loss", "valid_ic", "valid_rank_ic", "train_loss"} <= rows[-1].keys()
    assert set(fitted.trained_weights) == {"alpha"}, "the backbone was frozen"


def test_a_pickle_scores_alike_and_a_day_alone_too(fitted, provider):
    dataset = dataset_of(provider)
    scores = fitted.predict(dataset, QUARTER)
    again = pickle.loads(pickle.dumps(fitted))
    assert again.predict(dataset, QUARTER).equals(scores)
    day = scores.index.get_level_values("datetime").unique()[30]
    alone = again.predict(dataset, (day, day))
    assert alone.equals(scores[scores.index.get_level_values("datetime") == day])


def test_the_newest_day_is_scored_without_a_calendar_to_come(fitted, provider, bars, tmp_path):
    """A head draws no bars to come, so it needs no stamps of them."""
    folder = tmp_path / "qlib"
    shutil.copytree(provider, folder)
    (folder / "calendars" / "day_future.txt").unlink()
    newest = bars["date"].max()
    scores = fitted.predict(dataset_of(folder), (newest, newest))
    assert len(scores) == (bars["date"] == newest).sum()


def test_no_score_changes_when_every_later_bar_does(bars, provider, tmp_path):
    """Trained and scored again after every bar past t was replaced."""
    t = pd.Timestamp("2021-06-15")
    changed = bars.copy()
    later = (changed["date"] > t).to_numpy()
    rng = np.random.default_rng(0)
    columns = [*BAR_COLUMNS[:4]]
    factors = rng.uniform(0.5, 2, later.sum())
    changed.loc[later, columns] = changed.loc[later, columns].mul(factors, axis=0)
    changed.loc[later, "amount"] = rng.uniform(1, 1e6, later.sum())
    write_provider(changed, tmp_path / "qlib")
    quick = {"alpha": {"epochs": 2, "hidden": 8}}
    segments = {
        "train": ("2020-09-01", "2020-12-31"),
        "valid": ("2021-01-01", "2021-02-26"),
        "test": ("2021-06-01", "2021-07-15"),
    }
    scores = []
    for folder in (provider, tmp_path / "qlib"):
        dataset = dataset_of(folder, segments)
        model = model_of(quick)
        model.fit(dataset)
        scores.append(model.predict(dataset))
    past = [one[one.index.get_level_values("datetime") <= t] for one in scores]
    assert len(past[0]) > 100
    assert past[0].equals(past[1])
    later_same = (scores[0] == scores[1])[scores[0].index.get_level_values("datetime") > t]
    assert later_same.mean() < 0.1


def test_the_training_segment_ends_before_its_labels_would_look_past_it(provider):
    source = dataset_of(provider).source
    train, valid = source.labelled_windows("train"), source.labelled_windows("valid")
    calendar = source.table.calendar
    last = np.searchsorted(calendar, train.times.max())
    assert calendar[last + source.label.ahead] <= np.datetime64("2020-12-31")
    assert calendar[last + source.label.ahead + 1] > np.datetime64("2020-12-31")
    assert valid.times.min() > np.datetime64("2020-12-31")


def test_a_whole_backbone_is_trained_with_its_head(provider):
    few = {"epochs": 1, "backbone": "whole", "windows_per_day": 6, "metric": "loss"}
    dataset = dataset_of(provider, {**SEGMENTS, "train": ("2020-11-01", "2020-12-31")})
    model = model_of({"alpha": {**few, "learning_rate": 1e-3}})
    model.fit(dataset)
    kept = model.history["alpha"]
    assert len(kept) == 2
    assert set(model.trained_weights) == {"alpha", "predictor"}
    scores = model.predict(dataset, ("2021-12-29", "2021-12-30"))
    again = pickle.loads(pickle.dumps(model))
    assert again.predict(dataset, ("2021-12-29", "2021-12-30")).equals(scores)


@pytest.mark.parametrize(
    ("expression", "ahead"),
    [
        ("Ref($close, -2) / Ref($close, -1) - 1", 2),
        ("Ref($close,-6)/Ref($close,-1)-1", 6),
        ("Ref($close, -5) / $close - 1", 5),
        ("Log(Ref($close, -3) / Ref($open, -1))", 3),
    ],
)
def test_a_label_is_what_qlib_computes(provider, expression, ahead):
    dataset = dataset_of(provider, label=expression)
    source = dataset.source
    windows = source.windows("test")
    found = source.label.of(windows)
    asked = ExpressionLabel(expression, from_bars=False).of(windows)
    np.testing.assert_allclose(found, asked, rtol=1e-4, atol=1e-6)
    assert source.label.ahead == ahead
    newest = windows.times > np.sort(np.unique(windows.times))[-ahead - 1]
    assert np.isnan(found[newest]).all()
    assert np.isfinite(found[~newest]).mean() > 0.9


def test_a_head_alone_on_few_names_is_refused(tmp_path):
    folder = tmp_path / "qlib"
    write_provider(market(0.1, names=4), folder)
    with pytest.raises(TrainingError, match="no day with 5 windows whose label is known"):
        model_of().fit(dataset_of(folder))
    with pytest.raises(ConfigError, match="alpha has no setting 'epoch'; did you mean 'epochs'"):
        model_of({"alpha": {"epoch": 3}})


def test_the_blend_of_styles_and_what_they_leave_is_as_the_page_writes_it(tmp_path):
    page = Path(__file__).parents[2] / "docs" / "how-to" / "alpha-head.md"
    text = page.read_text(encoding="utf-8").split("{ #neutral }")[1]
    config = yaml.safe_load(text.split("```yaml")[1].split("```")[0])["task"]["model"]
    for member in config["kwargs"]["members"]:
        member["kwargs"]["training"]["alpha"]["epochs"] = 1
        member["kwargs"] |= {"device": "cpu", "show_progress": False}
    folder = tmp_path / "qlib"
    write_provider(market(0.3, names=90), folder)
    segments = {
        "train": ("2020-03-02", "2020-04-30"),
        "valid": ("2020-05-04", "2020-05-29"),
        "test": ("2020-06-01", "2020-06-30"),
    }
    dataset = dataset_of(folder, segments)
    model = init_instance_by_config(config)
    model.fit(dataset)
    found = model.signals(dataset)
    ranks = found[["styles", "neutral"]].groupby(level="datetime").rank(pct=True)
    expected = 0.8 * ranks["styles"] + 0.2 * ranks["neutral"]
    np.testing.assert_allclose(found["score"], expected, rtol=1e-6)
    alike = ranks.groupby(level="datetime").corr(method="spearman").xs("styles", level=1)
    assert alike["neutral"].abs().mean() < 0.25, "what is left of a score holds little of styles"
