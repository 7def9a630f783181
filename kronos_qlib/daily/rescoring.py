"""Scores of days whose windows hold a bar that changed since: made again, beside the first ones.

What was said on the day stays: in the ledger, and in the day's own folder.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from kronos_qlib.daily.daily_settings import DailyConfig
from kronos_qlib.daily.day_folder import DayFolder, write_json
from kronos_qlib.data.calendar.stamps import Times
from kronos_qlib.data.calendar.time_text import show_time
from kronos_qlib.errors import some_of
from kronos_qlib.files import recover, replacing
from kronos_qlib.plugin.provider.appending.append import read_log
from kronos_qlib.plugin.provider.appending.changed_history import REBASED
from kronos_qlib.plugin.provider.faults import stored_calendar
from kronos_qlib.plugin.registry.newest_scores import NewestScores

RESCORED = "rescored"
"""Folder in the home folder, with one for each append that changed the past: its line in the
folder's log, and the line's digest, for another log may come in this one's place."""


def rescore(
    config: DailyConfig,
    score: Callable[[pd.Timestamp], NewestScores],
    say: Callable[[str], None],
) -> None:
    """Score again the done days that a changed past concerns.

    A rebase concerns none: windows are scaled by their own mean and spread.

    Args:
        score: the scores of a day on the bars that are there now.

    Raises:
        BarDataError: the folder's log is damaged.
    """
    calendar = stored_calendar(config.provider_uri, "day")
    log = read_log(config.provider_uri)
    for number, entry in enumerate(log, start=1):
        changes = [each for each in entry.get("changes", ()) if each["kind"] != REBASED]
        said = hashlib.sha256(json.dumps(entry, sort_keys=True).encode()).hexdigest()
        target = config.home / RESCORED / f"{number:06d}-{said[:8]}"
        recover(target)
        if not changes or target.exists():
            continue
        days = affected_days(config.home, calendar, changes, config.window)
        # Days that this append brought, or a later one, were scored with it. Not the others after
        # them: a day that was missing may come late.
        since = {pd.Timestamp(time) for one in log[number - 1 :] for time in one.get("times", ())}
        days = [day for day in days if day not in since]
        kept = days[-config.rescore_days :] if config.rescore_days else []
        with replacing(target) as draft:
            draft.mkdir()
            moved = {f"{day:%Y-%m-%d}": _again(config.home, day, score(day), draft) for day in kept}
            about = {
                "changes": changes,
                "names whose score moved": moved,
                "not scored again": [f"{day:%Y-%m-%d}" for day in days[: len(days) - len(kept)]],
            }
            write_json(draft / "about.json", about)
        if kept:
            say(
                f"scored again after changes of {some_of([c['symbol'] for c in changes])}: "
                f"{len(kept)} days from {show_time(kept[0])} to {show_time(kept[-1])}, in {target}"
            )
        if len(days) > len(kept):
            say(
                f"{len(days) - len(kept)} older days are concerned and were not scored again "
                f"(rescore_days {config.rescore_days})"
            )


def affected_days(
    home: Path, calendar: Times, changes: Sequence[Mapping[str, Any]], window: int
) -> list[pd.Timestamp]:
    """The days with scores of ours whose windows reach a changed bar, oldest first.

    Args:
        calendar: (K,).
        changes: of a line of the folder's log.
        window: bars that a score looks back on at most.
    """
    is_concerned = np.zeros(len(calendar), dtype=bool)
    for change in changes:
        first = int(np.searchsorted(calendar, pd.Timestamp(change["first"]).to_datetime64()))
        last = int(np.searchsorted(calendar, pd.Timestamp(change["last"]).to_datetime64()))
        is_concerned[first : last + window] = True
    found = [pd.Timestamp(time) for time in calendar[is_concerned]]
    return [day for day in found if DayFolder(home, day).scores.is_dir()]


def _again(home: Path, day: pd.Timestamp, found: NewestScores, draft: Path) -> int:
    """Write a day's new scores with its first ones; how many names moved."""
    first = DayFolder(home, day).read_scores().table["score"].rename("first_score")
    table = found.table.join(first, how="outer")
    table.to_parquet(draft / f"{day:%Y-%m-%d}.parquet")
    same = np.isclose(table["score"], table["first_score"], rtol=1e-6, atol=1e-9, equal_nan=True)
    return int((~same).sum())
