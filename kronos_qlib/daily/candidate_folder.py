"""What a candidate leaves in the home folder, from its training to its verdict.

candidates/2024-03-05/candidate.json    what was trained that evening
                      scores/2024-03-06.parquet   what it says of the days since, ordering nothing
                      verdict.json      how it stood beside the champion
candidates/champion.json                the version that was in force last
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from kronos_qlib.daily.day_folder import read_json, write_json
from kronos_qlib.files import recover, replacing

CANDIDATES = "candidates"
FORM = "%Y-%m-%d"


class CandidateFolder:
    """The files of one candidate."""

    def __init__(self, home: Path, day: pd.Timestamp) -> None:
        self.day = day
        self.path = home / CANDIDATES / f"{day:{FORM}}"
        self.about, self.verdict = self.path / "candidate.json", self.path / "verdict.json"
        self.scores = self.path / "scores"

    @classmethod
    def all(cls, home: Path) -> list[CandidateFolder]:
        """Those whose training ended, oldest first."""
        found = []
        for about in sorted((home / CANDIDATES).glob("????-??-??/candidate.json")):
            found.append(cls(home, pd.Timestamp(about.parent.name)))
        return found

    @property
    def is_open(self) -> bool:
        """Whether it has no verdict yet."""
        return not self.verdict.is_file()

    def read(self) -> dict[str, Any]:
        """What was trained.

        Raises:
            BarDataError: the file is damaged.
        """
        return read_json(self.about)

    def keep(self, target: Path, values: Mapping[str, Any]) -> None:
        """Write one of its JSON files, whole."""
        with replacing(target) as draft:
            write_json(draft, values)

    def score_file(self, day: pd.Timestamp) -> Path:
        """Where its scores of a day are."""
        return self.scores / f"{day:{FORM}}.parquet"

    def write_scores(self, day: pd.Timestamp, table: pd.DataFrame) -> None:
        """Keep its scores of a day, unless they are there."""
        target = self.score_file(day)
        recover(target)
        if target.is_file():
            return
        with replacing(target) as draft:
            table.to_parquet(draft)

    def scored_days(self) -> list[pd.Timestamp]:
        """Days that it has scored, in order."""
        return [pd.Timestamp(path.stem) for path in sorted(self.scores.glob("????-??-??.parquet"))]

    def read_scores(self, day: pd.Timestamp) -> pd.Series[float]:
        """Its scores of a day, on instrument."""
        found: pd.Series[float] = pd.read_parquet(self.score_file(day))["score"]
        return found
