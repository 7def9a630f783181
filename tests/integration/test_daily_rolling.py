"""Retraining by `daily`: a candidate is trained, follows the days, and is judged once."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
from daily_world import World, moment
from qlib.model.trainer import task_train

from kronos_qlib.daily import daily_run, retraining_steps
from kronos_qlib.daily.candidate_folder import CandidateFolder
from kronos_qlib.daily.daily_settings import read_daily
from kronos_qlib.daily.day_folder import DayFolder, read_json
from kronos_qlib.errors import ConfigError, DailyError
from kronos_qlib.ledger.ledger import Ledger
from kronos_qlib.plugin.lookahead import open_provider
from kronos_qlib.plugin.provider.faults import stored_calendar
from kronos_qlib.plugin.provider.writer import write_provider
from kronos_qlib.plugin.registry.model_folder import source_of_folder
from kronos_qlib.plugin.registry.newest_scores import NewestScores, newest_scores
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
ROLLING = "rolling: {every: 10, judge_days: 16%s}"
VERDICT = 18
"""The evening of the verdict: 16 days after the first, whose labels take two more."""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A market that is all there; what an evening may see of it is its day's."""
    world = World(tmp_path_factory.mktemp("made") / "world", names=8)
    world.make()
    shutil.rmtree(world.qlib)
    write_provider(world.bars, world.qlib, benchmark="MEAN", future_bars=10)
    return world


class Evenings:
    """Evenings of retraining, and what is in the place of MLflow and the models.

    The champion's scores know nothing; a candidate's know what comes, as far as its skill goes.
    """

    def __init__(self, world: World, folder: Path, monkeypatch: Any, skill: float, more: str = ""):
        self.days, self.skill = world.days, skill
        text = world.config_file.read_text().partition("rolling:")[0] + ROLLING % more
        file = world.folder / f"{folder.name}.yaml"
        file.write_text(text.replace("home: home", f"home: {folder.as_posix()}"))
        self.config = read_daily(file)
        self.version, self.trained, self.marks = "1", {}, []
        self.said: list[str] = []
        closes = world.bars.pivot(index="date", columns="symbol", values="close")
        self.returns = closes.shift(-2) / closes.shift(-1) - 1
        monkeypatch.setattr(retraining_steps, "train_candidate", self.train)
        monkeypatch.setattr(retraining_steps, "promote", self.promote)
        monkeypatch.setattr(retraining_steps, "version_in_force", lambda *_, **__: self.version)
        monkeypatch.setattr(retraining_steps, "learned_to", lambda *_, **__: None)

    def train(self, model: str, *, day: pd.Timestamp, mark: str, **others: Any) -> Candidate:
        self.marks.append(mark)
        version = self.trained.setdefault(mark, str(len(self.trained) + 2))
        return Candidate(
            name="small", version=version, champion=self.version,
            segments={"train": ("2020-01-02", "2020-03-02"), "valid": ("2020-03-03", f"{day:%F}")},
            label=LABEL, label_bars=1, ahead=2, freq="day",
            facts={"model": {"version": version}},
        )  # fmt: skip

    def promote(self, model: str, version: str, **others: Any) -> None:
        self.version = version

    def score(self, model: str, day: pd.Timestamp) -> NewestScores:
        version = self.version if "@" in model else model.rpartition("/")[2]
        known = self.returns.loc[day].fillna(0)
        rng = np.random.default_rng([day.day_of_year, int(version)])
        table = pd.Series(rng.normal(0, 0.02, len(known)), known.index, name="score").to_frame()
        table["score"] += self.skill * known * (version != "1")
        table = table.rename_axis("instrument")
        return NewestScores(model, version, day, table, {}, (), table.reset_index())

    def steps(self, day: pd.Timestamp) -> retraining_steps.RetrainingSteps:
        ledger = Ledger(self.config.ledger_folder, clock=lambda: moment(day))
        assert self.config.rolling is not None
        return retraining_steps.RetrainingSteps(
            self.config, self.config.rolling, ledger, self.score, self.said.append
        )

    def evening(self, number: int) -> None:
        """As `daily` has it: the verdict, the champion's scores, then the candidate."""
        day = self.days[number]
        self.steps(day).decide(day, None)
        folder = DayFolder(self.config.home, day)
        if not folder.scores.is_dir():
            folder.write_scores(self.score(str(self.config.model), day))
        self.steps(day).follow(day, None)

    def play(self, count: int) -> Evenings:
        for number in range(count):
            self.evening(number)
        return self

    @property
    def entries(self) -> list[tuple[str, str]]:
        entries = Ledger(self.config.ledger_folder).entries()
        return [(entry.kind, f"{entry.day:%Y-%m-%d}") for entry in entries]

    def files(self) -> dict[str, bytes]:
        home = self.config.home
        return {
            path.relative_to(home).as_posix(): path.read_bytes()
            for path in sorted(home.rglob("*"))
            if path.is_file() and path.suffix in (".json", ".parquet")
        }


@pytest.fixture(scope="module")
def followed(made, tmp_path_factory):
    """The home of a candidate on the eve of its verdict."""
    folder = tmp_path_factory.mktemp("followed") / "home"
    with pytest.MonkeyPatch.context() as patched:
        Evenings(made, folder, patched, skill=8.0).play(VERDICT)
    return folder


@pytest.fixture
def eve(made, followed, tmp_path, monkeypatch):
    """Begins that evening in a home of its own."""

    def begin(name: str, more: str = "") -> Evenings:
        shutil.copytree(followed, tmp_path / name)
        played = Evenings(made, tmp_path / name, monkeypatch, 8.0, more)
        played.trained["the first"] = "2"
        return played

    return begin


def test_a_better_candidate_is_promoted_after_the_days_that_were_agreed_and_no_earlier(eve):
    played = eve("home")
    assert CandidateFolder.all(played.config.home)[0].is_open
    played.evening(VERDICT)
    played.evening(VERDICT + 1)
    home, days = played.config.home, [f"{day:%F}" for day in played.days]
    first = CandidateFolder.all(home)[0]
    assert first.day == played.days[0]
    followed = list(played.days[1:17])
    assert first.scored_days() == [*followed, played.days[17]]
    verdict = read_json(first.verdict)
    assert (verdict["day"], verdict["days"]) == (days[VERDICT], 16)
    assert verdict["promote"] and verdict["is_better"] and verdict["p"] < 0.05
    assert played.version == "2"
    each = []
    for day in followed:
        came = played.returns.loc[day]
        both = (first.read_scores(day), DayFolder(home, day).read_scores().table["score"])
        each.append([scores.corr(came, method="spearman") for scores in both])
    expected = np.mean(each, axis=0)
    assert [verdict["candidate"], verdict["champion"]] == pytest.approx(expected, abs=1e-4)
    # That evening's scores are the new one's, and those before stay what they were.
    versions = [
        DayFolder(home, day).read_scores().version for day in played.days[VERDICT - 1 : VERDICT + 2]
    ]
    assert versions == ["1", "2", "2"]
    assert played.entries == [
        ("candidate", days[0]),
        ("verdict", days[VERDICT]),
        ("promotion", days[VERDICT]),
        ("candidate", days[VERDICT]),
    ]
    assert "it is promoted" in "\n".join(played.said)


@pytest.mark.parametrize("is_better", [False, True], ids=["not better", "promote: never"])
def test_one_that_is_not_better_or_is_not_to_be_promoted_stays_a_candidate(eve, is_better):
    played = eve("home", ", promote: never" if is_better else "")
    first = CandidateFolder.all(played.config.home)[0]
    if not is_better:
        rng = np.random.default_rng(3)
        for day in first.scored_days():
            scores = first.read_scores(day)
            scores[:] = rng.normal(size=len(scores))
            scores.to_frame().to_parquet(first.score_file(day))
    played.evening(VERDICT)
    verdict = read_json(first.verdict)
    assert not verdict["promote"]
    assert verdict["is_better"] == is_better
    assert played.version == "1"
    assert "the champion stays" in "\n".join(played.said)
    assert [kind for kind, _ in played.entries] == ["candidate", "verdict", "candidate"]


def test_an_evening_that_is_cut_off_after_any_step_comes_to_the_same_end(eve, monkeypatch):
    other = eve("whole")
    other.evening(VERDICT)
    other.evening(VERDICT + 1)
    whole, played = other.files(), eve("home")
    calls = 0

    def dying(works):
        def call(*arguments, **others):
            nonlocal calls
            found = works(*arguments, **others)
            calls -= 1
            if calls == 0:
                raise KeyboardInterrupt
            return found

        return call

    for owner, name in (
        (Ledger, "append"),
        (CandidateFolder, "keep"),
        (retraining_steps, "promote"),
        (retraining_steps, "train_candidate"),
    ):
        monkeypatch.setattr(owner, name, dying(getattr(owner, name)))
    cuts = 0
    for number in (VERDICT, VERDICT + 1):
        while True:
            cuts += 1
            calls = cuts
            try:
                played.evening(number)
            except KeyboardInterrupt:
                continue
            break
    assert cuts > 5
    found = played.files()
    # A ledger's names are their digests: the same entries, and not one twice.
    assert sorted(found) == sorted(whole)
    assert found == whole
    assert len(set(played.marks)) == 1


def test_a_promotion_by_hand_is_recorded_and_ends_the_comparison(made, tmp_path, monkeypatch):
    played = Evenings(made, tmp_path / "one", monkeypatch, skill=0.0).play(3)
    played.version = "2"
    played.evening(3)
    assert [kind for kind, _ in played.entries] == ["candidate", "verdict", "promotion"]
    assert "not judged: version 2 is in force" in "\n".join(played.said)
    promotion = Ledger(played.config.ledger_folder).entries("promotion")[0]
    facts = [promotion.facts[name] for name in ("from", "to", "by")]
    assert facts == ["1", "2", "hand"]


def test_a_training_that_fails_leaves_the_day_done_and_is_tried_again(tmp_path, monkeypatch):
    world = World(tmp_path / "world").make(more=ROLLING % "")
    fake = Evenings(world, tmp_path / "home", monkeypatch, skill=0.0)
    order = []

    def newest(model, *, day, **others):
        order.append("score")
        return fake.score(model, pd.Timestamp(day))

    def train(model, *, day, **others):
        order.append("train")
        assert pd.Timestamp(stored_calendar(world.qlib, "day")[-1]) == day, "no later bar is there"
        assert DayFolder(world.home, day).scores.is_dir()
        if len(order) < 3:
            raise RuntimeError("out of memory")
        return fake.train(model, day=day, **others)

    monkeypatch.setattr(daily_run, "newest_scores", newest)
    monkeypatch.setattr(retraining_steps, "train_candidate", train)
    first, second = world.days[:2]
    world.drop_day(first)
    with pytest.raises(DailyError, match=rf"step candidate of {first:%F}: .*out of memory"):
        world.evening(first)
    assert DayFolder(world.home, first).is_done
    world.drop_day(second)
    assert world.evening(second).days == (second,)
    assert [folder.day for folder in CandidateFolder.all(world.home)] == [second]
    assert order == ["score", "train"] * 2
    kinds = [entry.kind for entry in Ledger(world.home / "ledger").entries()]
    assert kinds == ["scores", "scores", "candidate"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("rolling: {evry: 10}", "evry"),
        ("rolling: {judge_days: 5}", "judge_days 5 are too few for the paired test"),
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
            "training": {"epochs": 2, "hidden": 4, "learning_rate": 1e-2, "metric": "loss"},
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
    given = {"day": day, "tracking_uri": uri, "how": RetrainConfig()}
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
