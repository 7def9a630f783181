"""Retraining by `daily`: a candidate is trained, follows the days, and is judged once."""

from __future__ import annotations

from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
from daily_world import World, small_scores
from qlib.model.trainer import task_train

from kronos_qlib.daily import daily_run, retraining_steps
from kronos_qlib.daily.candidate_folder import CandidateFolder
from kronos_qlib.daily.day_folder import DayFolder, read_json
from kronos_qlib.errors import ConfigError, DailyError
from kronos_qlib.ledger.ledger import Ledger
from kronos_qlib.plugin.lookahead import open_provider
from kronos_qlib.plugin.provider.faults import stored_calendar
from kronos_qlib.plugin.provider.writer import write_provider
from kronos_qlib.plugin.registry.model_folder import source_of_folder
from kronos_qlib.plugin.registry.newest_scores import newest_scores
from kronos_qlib.plugin.registry.registered_models import (
    find_registered,
    register,
    registered_folder,
)
from kronos_qlib.plugin.rolling import candidates
from kronos_qlib.plugin.rolling.candidates import Candidate, train_candidate
from kronos_qlib.plugin.rolling.retraining import RetrainConfig

pytestmark = pytest.mark.integration

LABEL = "Ref($close, -2) / Ref($close, -1) - 1"
ROLLING = "rolling: {every: 10, judge_days: 10%s}"


class Registry:
    """In the place of MLflow: versions, who is in force, and what was trained when."""

    def __init__(self, world: World, skill: float) -> None:
        self.world, self.skill = world, skill
        self.version, self.trained, self.marks = "1", {}, []
        closes = world.bars.pivot(index="date", columns="symbol", values="close")
        self.returns = closes.shift(-2) / closes.shift(-1) - 1

    def train(self, model: str, *, day: pd.Timestamp, mark: str, **others: Any) -> Candidate:
        self.marks.append(mark)
        version = self.trained.setdefault(mark, str(len(self.trained) + 2))
        calendar = stored_calendar(self.world.qlib, "day")
        assert pd.Timestamp(calendar[-1]) == day, "no later bar is there"
        return Candidate(
            name="small", version=version, champion=self.version,
            segments={"train": ("2020-01-02", "2020-03-02"), "valid": ("2020-03-03", f"{day:%F}")},
            label=LABEL, label_bars=1, ahead=2, freq="day",
            facts={"model": {"version": version}},
        )  # fmt: skip

    def score(self, model: str, *, day: str, **others: Any) -> Any:
        """The champion knows nothing; a candidate knows what comes, as far as its skill goes."""
        found = small_scores(model, day=day, **others)
        rng = np.random.default_rng([int(day.replace("-", "")), len(model)])
        noise = pd.Series(rng.normal(0, 0.02, len(found.table)), found.table.index)
        version = model.rpartition("/")[2] if "@" not in model else self.version
        if version != "1":
            noise = noise + self.skill * self.returns.loc[day].reindex(noise.index).fillna(0)
        table = noise.rename("score").to_frame().sort_values("score", ascending=False)
        return type(found)(**{**vars(found), "table": table, "version": version})

    def promote(self, model: str, version: str, **others: Any) -> None:
        self.version = version


def played(folder, monkeypatch, days: int, *, skill: float, more: str = "") -> tuple[World, Any]:
    world = World(folder, names=8).make(more=ROLLING % more)
    registry = put(monkeypatch, world, skill)
    lines: list[str] = []
    for day in world.days[:days]:
        world.drop_day(day)
        world.evening(day, say=lines.append)
    return world, (registry, lines)


def put(monkeypatch, world: World, skill: float) -> Registry:
    registry = Registry(world, skill)
    monkeypatch.setattr(daily_run, "newest_scores", registry.score)
    monkeypatch.setattr(retraining_steps, "train_candidate", registry.train)
    monkeypatch.setattr(retraining_steps, "promote", registry.promote)
    monkeypatch.setattr(
        retraining_steps, "version_in_force", lambda model, **others: registry.version
    )
    monkeypatch.setattr(retraining_steps, "learned_to", lambda model, **others: None)
    return registry


def kinds(world: World) -> list[tuple[str, str]]:
    entries = Ledger(world.home / "ledger").entries()
    return [(entry.kind, f"{entry.day:%m-%d}") for entry in entries if entry.kind != "scores"]


def test_a_better_candidate_is_promoted_after_the_days_that_were_agreed_and_no_earlier(
    tmp_path, monkeypatch
):
    world, (registry, lines) = played(tmp_path / "world", monkeypatch, 14, skill=8.0)
    first = CandidateFolder.all(world.home)[0]
    assert first.day == world.days[0]
    followed = world.days[1:11]
    judged = world.days[12]  # the label of the tenth day is known two days after it
    verdict = read_json(first.verdict)
    assert (verdict["day"], verdict["days"]) == (f"{judged:%Y-%m-%d}", 10)
    assert verdict["promote"] and verdict["is_better"] and verdict["p"] < 0.05
    assert registry.version == "2"
    assert first.scored_days()[:10] == list(followed)
    by_hand = [  # the paired difference, from the files
        [
            scores.corr(registry.returns.loc[day].reindex(scores.index), method="spearman")
            for scores in (
                first.read_scores(day),
                DayFolder(world.home, day).read_scores().table["score"],
            )
        ]
        for day in followed
    ]
    means = np.mean(by_hand, axis=0)
    assert verdict["candidate"] == pytest.approx(means[0], abs=1e-4)
    assert verdict["champion"] == pytest.approx(means[1], abs=1e-4)
    # That evening's scores are the new one's, and those before stay what they were.
    versions = [DayFolder(world.home, day).read_scores().version for day in world.days[11:14]]
    assert versions == ["1", "2", "2"]
    assert kinds(world) == [
        ("candidate", f"{world.days[0]:%m-%d}"),
        ("verdict", f"{judged:%m-%d}"),
        ("promotion", f"{judged:%m-%d}"),
        ("candidate", f"{judged:%m-%d}"),
    ]
    assert any("it is promoted" in line for line in lines)


@pytest.mark.parametrize(("skill", "more"), [(0.0, ""), (8.0, ", promote: never")])
def test_one_that_is_not_better_or_is_not_to_be_promoted_stays_a_candidate(
    tmp_path, monkeypatch, skill, more
):
    world, (registry, lines) = played(tmp_path / "world", monkeypatch, 13, skill=skill, more=more)
    verdict = read_json(CandidateFolder.all(world.home)[0].verdict)
    assert not verdict["promote"]
    assert verdict["is_better"] == bool(skill)
    assert registry.version == "1"
    assert any("the champion stays" in line for line in lines)
    assert [kind for kind, _ in kinds(world)] == ["candidate", "verdict", "candidate"]


def test_a_kill_between_any_two_steps_is_brought_to_the_same_end(tmp_path, monkeypatch):
    """Each thing that an evening of a verdict does fails once, after it is done or before."""
    whole, _ = played(tmp_path / "whole", monkeypatch, 13, skill=8.0)
    expected = {
        name: digest for name, digest in whole.contents().items()
        if name.startswith("home/") and "index" not in name
    }  # fmt: skip
    world, (registry, _) = played(tmp_path / "world", monkeypatch, 12, skill=8.0)
    day = world.days[12]
    world.drop_day(day)
    steps = ("append", "keep", "promote", "train", "write_scores")
    for number in range(1, 12):
        left = number

        def dying(works):
            def call(*arguments, **others):
                nonlocal left
                left -= 1
                found = works(*arguments, **others)
                if left == 0:
                    raise KeyboardInterrupt
                return found

            return call

        with monkeypatch.context() as patched:
            patched.setattr(Ledger, "append", dying(Ledger.append))
            patched.setattr(CandidateFolder, "keep", dying(CandidateFolder.keep))
            patched.setattr(retraining_steps, "promote", dying(registry.promote))
            patched.setattr(retraining_steps, "train_candidate", dying(registry.train))
            try:
                world.evening(day)
            except KeyboardInterrupt:
                continue
            break
    assert number > 3, steps
    found = {name: world.contents()[name] for name in expected}
    assert found == expected
    assert len(set(registry.marks)) == 2, "no training is made twice under another mark"


def test_a_promotion_by_hand_is_recorded_and_ends_the_comparison(tmp_path, monkeypatch):
    world, (registry, lines) = played(tmp_path / "world", monkeypatch, 3, skill=0.0)
    registry.version = "2"
    world.drop_day(world.days[3])
    world.evening(world.days[3], say=lines.append)
    assert [kind for kind, _ in kinds(world)] == ["candidate", "verdict", "promotion"]
    assert "not judged: version 2 is in force" in "\n".join(lines)
    promotion = Ledger(world.home / "ledger").entries("promotion")[0]
    assert (promotion.facts["from"], promotion.facts["to"], promotion.facts["by"]) == (
        "1",
        "2",
        "hand",
    )


def test_a_training_that_fails_leaves_the_day_done_and_is_tried_again(tmp_path, monkeypatch):
    world = World(tmp_path / "world", names=8).make(more=ROLLING % "")
    registry = put(monkeypatch, world, 0.0)

    def broken(*arguments, **others):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(retraining_steps, "train_candidate", broken)
    first, second = world.days[:2]
    world.drop_day(first)
    with pytest.raises(DailyError, match=rf"step candidate of {first:%F}: .*out of memory"):
        world.evening(first)
    assert DayFolder(world.home, first).is_done
    monkeypatch.setattr(retraining_steps, "train_candidate", registry.train)
    world.drop_day(second)
    assert world.evening(second).days == (second,)
    assert [folder.day for folder in CandidateFolder.all(world.home)] == [second]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("rolling: {evry: 10}", "evry"),
        ("rolling: {every: 5}", "judge_days 5 are too few for the paired test"),
        ("rolling: {promote: always}", "promote"),
        ("rolling: monthly", "rolling is a mapping"),
    ],
)
def test_settings_that_cannot_work_are_refused(tmp_path, more, message):
    world = World(tmp_path / "world").make(more=more)
    with pytest.raises(ConfigError, match=message):
        _ = world.config


def test_rolling_needs_a_model_by_its_alias(tmp_path):
    world = World(tmp_path / "world").make(more="rolling: {every: 10}")
    text = world.config_file.read_text().replace("models:/small@champion", "models:/small/1")
    world.config_file.write_text(text)
    with pytest.raises(ConfigError, match=r"models:/NAME@ALIAS, got 'models:/small/1'"):
        _ = world.config


# A model that is trained.

TASK = {
    "model": {
        "class": "GRUModel",
        "module_path": "kronos_qlib.plugin.baselines",
        "kwargs": {
            "hidden": 4,
            "device": "cpu",
            "show_progress": False,
            "training": {"epochs": 1, "hidden": 4},
        },
    },
    "dataset": {
        "class": "KronosDataset",
        "module_path": "kronos_qlib.plugin.dataset",
        "kwargs": {
            "handler": {
                "class": "KronosHandler",
                "module_path": "kronos_qlib.plugin.dataset",
                "kwargs": {"instruments": "all", "end_time": "2020-03-24"},
            },
            "segments": {
                "train": ("2020-01-20", "2020-02-20"),
                "valid": ("2020-02-21", "2020-03-06"),
                "test": ("2020-03-09", "2020-03-24"),
            },
            "lookback": 10,
            "horizon": 2,
        },
    },
    "record": [
        {
            "class": "KronosSignalRecord",
            "module_path": "kronos_qlib.plugin.records.signal_record",
            "kwargs": {"model": "<MODEL>", "dataset": "<DATASET>"},
        }
    ],
}


def test_a_candidate_is_the_champions_kind_on_bars_of_the_evening_and_before(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    world = World(tmp_path / "world", names=7).make()
    uri = f"sqlite:///{(tmp_path / 'mlflow.db').as_posix()}"
    manager = {
        "class": "KronosExpManager",
        "module_path": "kronos_qlib.plugin.runs.manager",
        "kwargs": {"uri": uri, "default_exp_name": "workflow"},
    }
    before = mlflow.get_tracking_uri()
    open_provider(world.qlib, exp_manager=manager)
    try:
        task_train(TASK, experiment_name="small")
    finally:
        mlflow.set_tracking_uri(before)
    register("small", "small", tracking_uri=uri)
    day = pd.Timestamp("2020-03-27")
    given = {"day": day, "tracking_uri": uri, "how": RetrainConfig(start="warm")}
    found = train_candidate(
        "models:/small@champion", mark="one", provider_uri=str(world.qlib), **given
    )
    assert found.segments == {
        "train": ("2020-01-20", "2020-03-12"),
        "valid": ("2020-03-13", "2020-03-27"),
    }
    assert (found.version, found.champion, found.ahead) == ("2", "1", 2)
    # The same evening once more is the same version; with other bars after it the same weights.
    again = train_candidate(
        "models:/small@champion", mark="one", provider_uri=str(world.qlib), **given
    )
    assert again == found
    rng = np.random.default_rng(0)
    bars = world.bars[world.bars["date"] < world.days[0]].copy()
    later = bars["date"] > day
    prices = ["open", "high", "low", "close"]
    bars.loc[later, prices] *= np.exp(rng.normal(0, 0.1, (int(later.sum()), 1)))
    write_provider(bars, tmp_path / "other", benchmark="MEAN")
    other = train_candidate(
        "models:/small@champion", mark="two", provider_uri=str(tmp_path / "other"), **given
    )
    client = mlflow.MlflowClient(uri)
    files = []
    for name in ("models:/small@champion", found.uri, other.uri):
        version = find_registered(client, name)
        with registered_folder(client, version) as folder:
            files.append(dict(source_of_folder(folder, name).read()))
            if version.version != "1":
                about = read_json(folder / "about.json")
                assert about["spreads"] and about["promised_by"]
    assert files[1] == files[2]
    assert files[0]["gru.safetensors"] != files[1]["gru.safetensors"]
    # It scores by itself, and takes the champion's place by hand.
    assert candidates.learned_to(found.uri, tracking_uri=uri) == day
    scores = newest_scores(found.uri, tracking_uri=uri, provider_uri=str(world.qlib))
    assert len(scores.table) >= 6
    register(found.uri, "small", tracking_uri=uri)
    assert find_registered(client, "models:/small@champion").version == "2"
    with pytest.raises(ConfigError, match="is a version of 'small', not of 'large'"):
        register(found.uri, "large", tracking_uri=uri)
