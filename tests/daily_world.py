"""A small market that comes day by day, and a model of a few lines: for the tests of `daily`.

    python tests/daily_world.py FOLDER NAMES DAYS [EVENTS ...]

plays DAYS days in FOLDER, where a world of so many NAMES was made. For each number of EVENTS one
child after another is killed by SIGKILL at that many changes of the file system; the last one is
left alone.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import os
import signal
import sqlite3
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from kronos_qlib.daily import daily_run
from kronos_qlib.daily.daily_settings import DailyConfig, read_daily
from kronos_qlib.daily.day_folder import DayFolder
from kronos_qlib.data.files.synthetic import MarketConfig, make_market
from kronos_qlib.plugin.provider.writer import write_provider
from kronos_qlib.plugin.registry.newest_scores import NewestScores
from kronos_qlib.schema import BAR_COLUMNS

FIRST = pd.Timestamp("2020-04-08")
"""The first evening; the folder has the days before."""
HOLIDAYS = pd.DatetimeIndex(
    [
        *("2020-01-01", "2020-01-24", "2020-01-27", "2020-01-28", "2020-01-29", "2020-01-30"),
        *("2020-01-31", "2020-04-06", "2020-05-01", "2020-05-04", "2020-05-05", "2020-06-25"),
        "2020-06-26",
    ]
)
"""Weekdays on which Shanghai is closed: the market keeps its days."""

CONFIG = """
home: home
provider_uri: qlib
bars: {{drop: drops, benchmark: MEAN, future_bars: 10{bars}}}
model: "models:/small@champion"
zone: Asia/Shanghai
region: us
window: 20
rescore_days: 3
{more}
"""


class World:
    """A folder with a market, its configuration, and the days to come."""

    def __init__(self, folder: Path, names: int = 4) -> None:
        self.folder = folder
        config = MarketConfig(
            instruments=names, sectors=2, years=0.6, suspended_share=0.02, late_share=0.0, seed=11
        )
        bars = make_market(config).bars
        bars = bars[~bars["date"].isin(HOLIDAYS)].reset_index(drop=True)
        numbers = [*BAR_COLUMNS, "factor"]
        bars[numbers] = bars[numbers].astype(np.float32).astype(np.float64)
        self.bars = bars
        days = pd.DatetimeIndex(np.unique(bars["date"]))
        self.days = days[days >= FIRST]
        self.qlib, self.drops, self.home = (folder / name for name in ("qlib", "drops", "home"))
        self.config_file = folder / "daily.yaml"

    def make(self, *, bars: str = "", more: str = "") -> World:
        """Write the folder as it is before the first evening."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.drops.mkdir()
        past = self.bars[self.bars["date"] < self.days[0]]
        write_provider(past, self.qlib, market="demo", benchmark="MEAN", future_bars=10)
        self.configure(bars=bars, more=more)
        return self

    def configure(self, *, bars: str = "", more: str = "") -> None:
        """Write the configuration."""
        self.config_file.write_text(CONFIG.format(bars=bars, more=more), encoding="utf-8")

    @property
    def config(self) -> DailyConfig:
        return read_daily(self.config_file)

    def of(self, *days: pd.Timestamp) -> pd.DataFrame:
        """The bars of some days."""
        return self.bars[self.bars["date"].isin(days)]

    def drop(self, bars: pd.DataFrame, name: str) -> Path:
        """Put bars into the drop folder, whole at once."""
        path = self.drops / name
        draft = self.folder / f"{name}.part"
        bars.to_csv(draft, index=False, lineterminator="\n")
        draft.replace(path)
        return path

    def drop_day(self, day: pd.Timestamp) -> Path:
        return self.drop(self.of(day), f"{day:%Y-%m-%d}.csv")

    def evening(self, day: pd.Timestamp, hour: int = 18, **how: Any) -> daily_run.DailyReport:
        """Start `daily` in the evening of a day."""
        how.setdefault("say", lambda line: None)
        return daily_run.run_daily(self.config, now=moment(day, hour), **how)

    def play(self, count: int) -> None:
        """The first days, those that are done passed over."""
        for day in self.days[:count]:
            if not DayFolder(self.home, day).is_done:
                if not (self.drops / f"{day:%Y-%m-%d}.csv").exists():
                    self.drop_day(day)
                self.evening(day)

    def contents(self) -> dict[str, str]:
        """All that is there but locks: the digest of each file, of a database its rows."""
        found = {}
        for path in sorted(self.folder.rglob("*")):
            if not path.is_file() or path.suffix == ".lock":
                continue
            name = path.relative_to(self.folder).as_posix()
            if path.suffix in (".db", ".sqlite", ".sqlite3"):
                with sqlite3.connect(path) as base:
                    content = "\n".join(base.iterdump()).encode()
                base.close()
            elif path.name.endswith(("-wal", "-shm", "-journal")):
                continue
            else:
                content = path.read_bytes()
            found[name] = hashlib.sha256(content).hexdigest()
        return found


def moment(day: pd.Timestamp, hour: int = 18) -> dt.datetime:
    """An hour of a day in Shanghai."""
    zone = dt.timezone(dt.timedelta(hours=8))
    return dt.datetime(day.year, day.month, day.day, hour, tzinfo=zone)


def small_scores(
    model: str,
    *,
    provider_uri: str,
    day: str,
    **others: Any,
) -> NewestScores:
    """Last week's losers first, read off the closes of the folder up to the day."""
    folder = Path(provider_uri)
    place = (folder / "calendars" / "day.txt").read_text().split().index(day)
    scores = {}
    for line in (folder / "instruments" / "all.txt").read_text().splitlines():
        name = line.split("\t")[0]
        values = np.fromfile(folder / "features" / name.lower() / "close.day.bin", dtype="<f4")
        first, closes = int(values[0]), values[1:].astype(np.float64)
        closes = closes[: place - first + 1]
        if len(closes) > 5 and place - first < len(values) - 1 and np.isfinite(closes[-1]):
            scores[name] = -float(closes[-1] / closes[np.isfinite(closes)][-6] - 1)
    table = pd.DataFrame({"score": pd.Series(scores).rename_axis("instrument")})
    table = table.sort_values("score", ascending=False, kind="stable")
    return NewestScores(
        model=model,
        version="1",
        day=pd.Timestamp(day),
        table=table,
        facts={"small": 1},
        notes=(),
        ranking=table.reset_index().assign(rank=range(1, len(table) + 1)),
    )


CHANGES = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "sqlite3.connect")


def kill_after(events: int) -> None:
    """SIGKILL this process at so many changes of the file system from now on."""
    left = events

    def count(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal left
        if event == "open":
            mode, flags = arguments[1], arguments[2]
            is_change = bool(mode and set(mode) & set("wax+")) or bool(
                isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR)
            )
        else:
            is_change = event in CHANGES
        if is_change:
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)


def main(folder: str, names: str, days: str, *events: str) -> None:
    world = World(Path(folder), int(names))
    daily_run.newest_scores = small_scores
    kills = 0
    for number in (*map(int, events), 0):
        child = os.fork()
        if not child:
            if number:
                kill_after(number)
            world.play(int(days))
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status):
            kills += 1
        elif os.WEXITSTATUS(status):
            sys.exit(f"a child failed with exit code {os.WEXITSTATUS(status)}")
    sys.stdout.write(f"{kills}\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
