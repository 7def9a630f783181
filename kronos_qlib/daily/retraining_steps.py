"""An evening's part of retraining: a candidate is trained, follows the days, and is judged once.

Each evening, before the scores, a candidate that has followed enough days is judged on the days
after its training whose labels are known; after the ledger it scores the day, and when the next
training is due, it is made. One at a time: the days that judge a candidate are counted beforehand
and looked at once, so that 5 % of equally good ones are promoted, and not more by looking nightly.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from typing import Any

import pandas as pd

from kronos_qlib.daily.candidate_folder import CANDIDATES, CandidateFolder
from kronos_qlib.daily.daily_settings import SIGNIFICANT, DailyConfig, RollingConfig
from kronos_qlib.daily.day_folder import DayFolder, read_json, write_json
from kronos_qlib.data.calendar.time_text import show_time
from kronos_qlib.files import recover, replacing
from kronos_qlib.ledger.ledger import Ledger
from kronos_qlib.plugin.live.judging import judge
from kronos_qlib.plugin.lookahead import open_provider
from kronos_qlib.plugin.provider.faults import stored_calendar
from kronos_qlib.plugin.registry.newest_scores import NewestScores
from kronos_qlib.plugin.rolling.candidates import (
    Candidate,
    learned_to,
    promote,
    train_candidate,
    version_in_force,
)

CANDIDATE, VERDICT, PROMOTION = "candidate", "verdict", "promotion"
"""Kinds of entries in the ledger."""
CONTEXTS = "contexts"


class RetrainingSteps:
    """What `rolling:` asks of an evening.

    Args:
        score: a model's scores of a day.
    """

    def __init__(
        self,
        config: DailyConfig,
        rolling: RollingConfig,
        ledger: Ledger,
        score: Callable[[str, pd.Timestamp], NewestScores],
        say: Callable[[str], None],
    ) -> None:
        self.config, self.rolling, self.ledger = config, rolling, ledger
        self.score, self.say = score, say
        self.model, self.store = str(config.model), config.tracking_uri
        self.champion_file = config.home / CANDIDATES / "champion.json"

    def decide(self, day: pd.Timestamp, opens: dt.datetime | None) -> None:
        """Judge a candidate that has followed enough days, promote it or not, and note who is in
        force, whoever changed that."""
        recover(self.champion_file)
        for each in CandidateFolder.all(self.config.home):
            recover(each.verdict)
        folder = self._newest()
        if folder is not None and folder.is_open:
            self._judge(folder, day)
        if folder is not None and not folder.is_open:
            self._apply(folder, day, opens)
        self._note_champion(day, opens, {"by": "hand"})

    def follow(self, day: pd.Timestamp, opens: dt.datetime | None) -> None:
        """Let the candidate score the day; train the next one where that is due."""
        folder = self._newest()
        if folder is not None and folder.is_open and folder.day < day:
            if not folder.score_file(day).is_file():
                known = folder.read()
                found = self.score(f"models:/{known['name']}/{known['version']}", day)
                folder.write_scores(day, found.table[["score"]])
            return
        if folder is not None and folder.is_open and folder.day == day:
            self._record(folder, day, opens)  # a start before this one was killed
            return
        if self._is_due(day, folder):
            self._train(day, opens)

    def _newest(self) -> CandidateFolder | None:
        found = CandidateFolder.all(self.config.home)
        return found[-1] if found else None

    def _place(self, day: pd.Timestamp) -> int:
        """A day's place in the folder's calendar: that of the last day up to it."""
        calendar = pd.DatetimeIndex(stored_calendar(self.config.provider_uri, "day"))
        return int(calendar.searchsorted(day, side="right")) - 1

    def _is_due(self, day: pd.Timestamp, folder: CandidateFolder | None) -> bool:
        last = folder.day if folder is not None else learned_to(self.model, tracking_uri=self.store)
        return last is None or self._place(day) - self._place(last) >= self.rolling.every

    def _train(self, day: pd.Timestamp, opens: dt.datetime | None) -> None:
        config, folder = self.config, CandidateFolder(self.config.home, day)
        self.say(f"{show_time(day)}: training a candidate, {self.rolling.start}")
        found: Candidate = train_candidate(
            self.model,
            day=day,
            how=self.rolling,
            mark=f"{config.home.resolve().as_posix()} {day:%Y-%m-%d}",
            tracking_uri=self.store,
            provider_uri=str(config.provider_uri),
            contexts_folder=config.home / CANDIDATES / CONTEXTS,
            trust=config.trust,
        )
        folder.keep(
            folder.about,
            {
                "name": found.name,
                "version": found.version,
                "champion": found.champion,
                "segments": {name: list(ends) for name, ends in found.segments.items()},
                "label": found.label,
                "label_bars": found.label_bars,
                "ahead": found.ahead,
                "freq": found.freq,
                "facts": found.facts,
            },
        )
        spans = ", ".join(f"{name} {' to '.join(ends)}" for name, ends in found.segments.items())
        self.say(
            f"{show_time(day)}: version {found.version} of {found.name} is a candidate ({spans}); "
            f"it will be judged on {self.rolling.judge_days} days from now on"
        )
        self._record(folder, day, opens)

    def _record(
        self, folder: CandidateFolder, day: pd.Timestamp, opens: dt.datetime | None
    ) -> None:
        known = folder.read()
        rows = [(name, *ends) for name, ends in known["segments"].items()]
        table = pd.DataFrame(rows, columns=["segment", "first", "last"])
        self.ledger.append(CANDIDATE, day.date(), table, known["facts"], opens=opens)

    def _judge(self, folder: CandidateFolder, day: pd.Timestamp) -> None:
        known = folder.read()
        in_force = version_in_force(self.model, tracking_uri=self.store)
        if in_force != known["champion"]:
            words = (
                f"not judged: version {in_force} is in force, and it was to replace version "
                f"{known['champion']}"
            )
            self._close(folder, day, {"words": words, "promote": False})
            return
        last = self._place(day) - int(known["ahead"])
        rival: dict[pd.Timestamp, pd.Series[float]] = {}
        for one in folder.scored_days():
            kept = DayFolder(self.config.home, one)
            if one > folder.day and self._place(one) <= last and kept.scores.is_dir():
                scores = kept.read_scores()
                if scores.version == known["champion"]:
                    rival[one] = scores.table["score"]
        count = self.rolling.judge_days
        if len(rival) < count:
            return
        days = sorted(rival)[:count]
        open_provider(self.config.provider_uri, region=self.config.region, logging_level="WARNING")
        found = judge(
            {one: folder.read_scores(one) for one in days},
            {one: rival[one] for one in days},
            label=known["label"],
            label_bars=int(known["label_bars"]),
            freq=known["freq"],
        )
        is_promoted = found.is_better and self.rolling.promote == SIGNIFICANT
        self._close(folder, day, {**found.as_json(), "promote": is_promoted})

    def _close(self, folder: CandidateFolder, day: pd.Timestamp, found: dict[str, Any]) -> None:
        folder.keep(folder.verdict, {"day": f"{day:%Y-%m-%d}", **found})
        what = "it is promoted" if found["promote"] else "the champion stays"
        known = folder.read()
        self.say(
            f"{show_time(day)}: candidate {known['version']} of {known['name']}: {found['words']}; "
            f"{what}"
        )

    def _apply(self, folder: CandidateFolder, day: pd.Timestamp, opens: dt.datetime | None) -> None:
        """What a verdict of this day asks for; once more after a kill."""
        verdict, known = read_json(folder.verdict), folder.read()
        if verdict["day"] != f"{day:%Y-%m-%d}":
            return
        facts = {"candidate": known["version"], "champion": known["champion"], **verdict}
        table = pd.DataFrame({"day": [f"{one:%Y-%m-%d}" for one in folder.scored_days()]})
        self.ledger.append(VERDICT, day.date(), table, facts, opens=opens)
        in_force = version_in_force(self.model, tracking_uri=self.store)
        if verdict["promote"] and in_force == known["champion"]:
            promote(self.model, known["version"], tracking_uri=self.store)
        if verdict["promote"]:
            self._note_champion(day, opens, {"by": "paired test", "words": verdict["words"]})

    def _note_champion(
        self, day: pd.Timestamp, opens: dt.datetime | None, why: dict[str, Any]
    ) -> None:
        """Record in the ledger that another version is in force than at the last start."""
        now = version_in_force(self.model, tracking_uri=self.store)
        known = self.champion_file.is_file()
        before = str(read_json(self.champion_file)["version"]) if known else None
        if before == now:
            return
        if before is not None:
            facts = {"model": self.model, "from": before, "to": now, **why}
            table = pd.DataFrame({"version": [before, now]})
            self.ledger.append(PROMOTION, day.date(), table, facts, opens=opens)
            self.say(f"{show_time(day)}: version {now} is in force, and was {before} ({why['by']})")
        with replacing(self.champion_file) as draft:
            write_json(draft, {"version": now})
