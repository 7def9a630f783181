"""The GRU through Qlib: it learns what bars hold, goes on where it stopped, and sees no future."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from kronos_qlib.data.files.synthetic import MarketConfig, make_market
from kronos_qlib.errors import CheckpointError, ConfigError
from kronos_qlib.model.gru_reader import CHUNK, GRUReader
from kronos_qlib.model.sizes import GRUConfig
from kronos_qlib.plugin.baselines import BaselineModel, GRUModel
from kronos_qlib.plugin.dataset import KronosDataset, KronosHandler
from kronos_qlib.plugin.lookahead import check_lookahead, open_provider
from kronos_qlib.plugin.preflight.planned_run import PlannedRun
from kronos_qlib.plugin.preflight.run_outputs import kept_folders
from kronos_qlib.plugin.provider.writer import write_provider
from kronos_qlib.plugin.runs.kept_models import FOLDER, STATE, needs_state, restore, write_model
from kronos_qlib.plugin.runs.known_tasks import check_known
from kronos_qlib.plugin.workflows.estimate import estimate

pytestmark = pytest.mark.integration

SEGMENTS = {
    "train": ("2020-01-01", "2020-04-30"),
    "valid": ("2020-05-01", "2020-05-29"),
    "test": ("2020-06-01", "2020-09-10"),
}
QUICK = {"epochs": 4, "hidden": 8, "learning_rate": 1e-2}


def market(effect: float, seed: int = 4) -> pd.DataFrame:
    config = MarketConfig(instruments=14, sectors=2, years=0.7, effect=effect, seed=seed)
    return make_market(config).bars


@pytest.fixture(scope="module")
def provider(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gru") / "qlib"
    write_provider(market(0.4), folder)
    return folder


def dataset_of(folder: Path, **others) -> KronosDataset:
    open_provider(folder)
    return KronosDataset(KronosHandler(), SEGMENTS, lookback=12, horizon=3, **others)


def model_of(training=QUICK, **others) -> GRUModel:
    return GRUModel(hidden=8, training=training, device="cpu", show_progress=False, **others)


@pytest.fixture(scope="module")
def fitted(provider):
    model = model_of()
    model.fit(dataset_of(provider))
    return model


def t_of(scores: pd.Series, dataset: KronosDataset) -> float:
    windows = dataset.source.windows("test")
    label = pd.Series(dataset.source.label.of(windows), index=windows.index, name="label")
    both = pd.concat([scores, label], axis=1, join="inner").dropna()
    days = both.groupby(level="datetime")
    daily = days.apply(lambda day: day["score"].corr(day["label"], method="spearman"))
    return float(daily.mean() / daily.std() * np.sqrt(len(daily)))


def test_a_planted_effect_is_found_on_days_never_seen(fitted, provider):
    dataset = dataset_of(provider)
    assert t_of(fitted.predict(dataset), dataset) > 4
    assert set(fitted.history) == {"gru"}
    rows = fitted.history["gru"]
    assert [row["epoch"] for row in rows] == [0, 1, 2, 3, 4]
    assert max(row["valid_rank_ic"] for row in rows) > rows[0]["valid_rank_ic"]


def test_nothing_is_found_in_noise(tmp_path):
    write_provider(market(0.0, seed=8), tmp_path / "qlib")
    dataset = dataset_of(tmp_path / "qlib")
    model = model_of()
    model.fit(dataset)
    assert abs(t_of(model.predict(dataset), dataset)) < 3


def test_no_score_changes_when_every_later_bar_does():
    def scores_of(folder: Path) -> pd.Series:
        dataset = KronosDataset(KronosHandler(), SEGMENTS, lookback=12, horizon=3)
        model = model_of({**QUICK, "epochs": 1, "features": ["ROC5"]})
        model.fit(dataset)
        return model.predict(dataset)

    assert check_lookahead(market(0.4), scores_of, ["2020-07-10"]).moved > 0.5


def test_a_pickle_and_a_folder_score_alike_and_a_day_alone_too(fitted, provider, tmp_path):
    dataset = dataset_of(provider)
    scores = fitted.predict(dataset)
    fitted.save_pretrained(str(tmp_path))
    day = scores.index.get_level_values("datetime").unique()[30]
    alone = scores[scores.index.get_level_values("datetime") == day]
    for again in (pickle.loads(pickle.dumps(fitted)), model_of(weights=str(tmp_path))):
        assert again.predict(dataset).equals(scores)
        pd.testing.assert_series_equal(again.predict(dataset, (day, day)), alone, rtol=1e-4)
    (tmp_path / "gru" / "config.json").write_text('{"hidden": 9, "layers": 2, "dropout": 0.0}')
    with pytest.raises(CheckpointError):
        model_of(weights=str(tmp_path)).predict(dataset)


def test_the_seed_decides_and_another_is_another_model(fitted, provider):
    dataset = dataset_of(provider)
    again, other = model_of(), model_of({**QUICK, "seed": 1})
    again.fit(dataset)
    other.fit(dataset)
    assert again.predict(dataset).equals(fitted.predict(dataset))
    assert not other.predict(dataset).equals(fitted.predict(dataset))


def test_a_run_that_was_stopped_goes_on_to_the_same_bits(fitted, provider, tmp_path, monkeypatch):
    from kronos_qlib.training import loop

    dataset, seen = dataset_of(provider), []
    learn = loop._Run.learn

    def stopped(run, which):
        seen.append(len(which))
        if len(seen) > 100:
            raise KeyboardInterrupt
        learn(run, which)

    how = {"resume_folder": str(tmp_path / "states"), "resume_every": 20}
    monkeypatch.setattr(loop._Run, "learn", stopped)
    with pytest.raises(KeyboardInterrupt):
        model_of(**how).fit(dataset)
    monkeypatch.setattr(loop._Run, "learn", learn)
    again = model_of(**how)
    again.fit(dataset)
    assert again.trained_weights == fitted.trained_weights


def test_short_windows_read_what_they_have():
    """The context is the state after a window's own last bar, whatever follows and beside whom."""
    torch.manual_seed(0)
    net = GRUReader(GRUConfig(hidden=8)).eval()
    z = torch.randn(CHUNK + 3, 10, 6)
    stamps = torch.randint(1, 12, (CHUNK + 3, 10, 5))
    lengths = torch.arange(CHUNK + 3) % 8 + 3
    with torch.inference_mode():
        found = net(z, stamps, lengths)
        for row in (0, 5, CHUNK, CHUNK + 2):
            seen = int(lengths[row])
            one = net(z[row : row + 1, :seen], stamps[row : row + 1, :seen], lengths[row : row + 1])
            torch.testing.assert_close(found[row], one[0], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"training": {"backbone": "lora"}}, "training.backbone is of a pretrained backbone"),
        ({"training": {"lora_rank": 4}}, "training.lora_rank is of a pretrained"),
        ({"training": {"context_width": 0}}, "would leave the GRU out"),
        ({"training": {"seeds": 3}}, "train a GRUModel from each `seed`, and blend them"),
        ({"training": {"epoch": 3}}, "training has no setting 'epoch'; did you mean 'epochs'"),
        ({"hidden": 0}, "GRUModel: hidden must be a whole number"),
        ({"layers": 1, "dropout": 0.1}, "dropout 0.1 lies between layers"),
        ({"resume_every": 0}, "resume_every must be at least 1"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        GRUModel(**settings)


def test_it_says_what_it_needs(provider):
    dataset = dataset_of(provider)
    with pytest.raises(ConfigError, match="GRUModel has no weights yet: call `fit`"):
        model_of().predict(dataset)
    with pytest.raises(ConfigError, match=r"GRUModel reads windows .* got dict"):
        model_of().fit({})
    with pytest.raises(ConfigError, match="does not use a reweighter"):
        model_of().fit(dataset, reweighter=1)


def test_a_baseline_takes_windows_without_qlib(provider):
    source = dataset_of(provider).source
    scores = BaselineModel("momentum", bars=5, skip=0).predict(source)
    assert len(scores) == len(source.windows("test"))


def test_a_run_keeps_it_in_plain_files(fitted, provider, tmp_path):
    """As `kronos-qlib score` rebuilds it: nothing is unpickled."""
    dataset = dataset_of(provider)
    write_model(fitted, tmp_path)
    state = json.loads((tmp_path / STATE).read_text(encoding="utf-8"))
    files = {path.name: path.read_bytes() for path in (tmp_path / FOLDER).iterdir()}
    again = model_of()
    assert needs_state(again)
    restore(again, state["model"], files)
    assert again.predict(dataset).equals(fitted.predict(dataset))
    assert not needs_state(model_of(weights=str(tmp_path)))
    check_known({"model": {"class": "GRUModel", "module_path": "kronos_qlib.plugin.baselines"}})


def test_its_time_is_estimated_from_what_it_reads(provider, monkeypatch):
    where = "kronos_qlib.plugin.workflows.estimate._seconds_each"
    monkeypatch.setattr(where, lambda work: work(1) or 0.001)
    source = dataset_of(provider).source
    found = {name: source.windows(name) for name in SEGMENTS}

    def seconds(**training) -> float:
        parts = estimate({}, model_of(training), {}, source, found)
        return next(part.seconds for part in parts if part.what == "training")

    assert seconds(epochs=40) > 4 * seconds(epochs=2)
    assert seconds(epochs=40, windows_per_day=5) < seconds(epochs=40)
    assert seconds(epochs=40, span=10) < seconds(epochs=40) / 3
    del found["test"]
    assert seconds(epochs=40) > 4 * seconds(epochs=2), "with nothing to score too"
    found["test"] = source.windows("test")
    parts = estimate({}, model_of(weights="saved"), {}, source, found)
    assert {part.what for part in parts} == {"start, reports and backtest", "scores"}


def test_its_folder_of_states_is_looked_at_before_a_run():
    settings = {"class": "GRUModel", "kwargs": {"resume_folder": "states"}}
    blend = {"class": "BlendModel", "kwargs": {"members": [settings, {"class": "LGBModel"}]}}
    for model in (settings, blend):
        [(setting, folder)] = kept_folders(PlannedRun({}, {"model": model}, None))
        assert (setting, folder.name) == ("resume_folder", "states")
