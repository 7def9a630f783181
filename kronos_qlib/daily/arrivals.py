"""Which of the days that came can go in, and why the others wait."""

from __future__ import annotations

import datetime as dt
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from kronos_qlib.daily.daily_settings import DailyConfig
from kronos_qlib.data.calendar.exchanges import exchange_times, session_open
from kronos_qlib.data.calendar.stamps import Times
from kronos_qlib.data.calendar.time_text import show_time
from kronos_qlib.data.files.advice import advise, describe_advice
from kronos_qlib.data.files.check import (
    check_bars,
    describe_report,
    errors_of,
    repeated_bars,
)
from kronos_qlib.data.files.repair import repair_bars
from kronos_qlib.data.rules import JUMP
from kronos_qlib.errors import BarDataError, ConfigError, some_of
from kronos_qlib.plugin.provider.faults import check_market, stored_calendar
from kronos_qlib.plugin.provider.feature_files import FeatureFiles
from kronos_qlib.plugin.provider.writable_bars import ALL_MARKET
from kronos_qlib.schema import BAR_COLUMNS

PAST_BARS = 60
"""Days of the folder that checks see before the new ones: as many as a split's rule looks at."""
MOST = 0.5
"""Share of a day's names above which what is odd of them is odd of the day."""


@dataclass(frozen=True)
class Waiting:
    """A day that came and does not go in yet."""

    day: pd.Timestamp
    reason: str

    def __str__(self) -> str:
        return f"{show_time(self.day)} waits: {self.reason}"


@dataclass(frozen=True)
class Arrivals:
    """Bars that keep the rules, by what is to be done with their days.

    bars: of the schema; those of days that wait are among them.
    ready: days that are not in the calendar and can go in, oldest first.
    """

    bars: pd.DataFrame
    ready: tuple[pd.Timestamp, ...]
    waiting: tuple[Waiting, ...]
    notes: tuple[str, ...]

    def until(self, day: pd.Timestamp | None, calendar: Times) -> pd.DataFrame:
        """The bars of days in the calendar, of late days, and of this one."""
        dates = self.bars["date"]
        held_back = {each.day for each in self.waiting}
        last = pd.Timestamp(calendar[-1]) if day is None else day
        return self.bars[(dates <= last) & ~dates.isin(held_back)]


def sort_out(
    bars: pd.DataFrame,
    config: DailyConfig,
    now: dt.datetime,
    accepted: Collection[pd.Timestamp] = (),
    files: Mapping[Path, Collection[pd.Timestamp]] | None = None,
) -> Arrivals:
    """Repair and check bars, and say which days can go in.

    Args:
        bars: as of `read_dropped`.
        now: with a zone.
        accepted: days that somebody has looked at: they go in with few names, without a day
            before them, or as the day before once more.
        files: the days that each file has bars of, for messages.

    Raises:
        BarDataError: bars break a rule of `data check`. Names the worst, and what to do.
        CalendarError: the folder's calendar is damaged, or is not the exchange's.
    """
    calendar = stored_calendar(config.provider_uri, "day")
    if bars.empty:
        return Arrivals(bars, (), (), ())
    bars = bars.assign(date=pd.to_datetime(bars["date"]).dt.normalize())
    past, usual = _past(config.provider_uri, calendar, bars, config.bars.usual_days)
    bars, notes, repeated, jumps = _checked(bars, past, config, files or {})
    dates = pd.DatetimeIndex(np.unique(bars["date"].to_numpy("datetime64[ns]")))
    new = dates[~dates.isin(pd.DatetimeIndex(calendar))]
    benchmark = (config.bars.benchmark or "").upper()
    members = bars[bars["symbol"] != benchmark]
    counts = members.groupby("date")["symbol"].nunique()
    again, moved = (
        odd[odd["symbol"] != benchmark].groupby("date")["symbol"].nunique()
        for odd in (repeated, jumps)
    )
    due = _due(calendar, config.exchange, new)
    ready: list[pd.Timestamp] = []
    waiting: list[Waiting] = []
    for day in new:
        reason = too_early(day, config, now)
        if not reason and day not in accepted:
            names = int(counts.get(day, 0))
            reason = (
                _incomplete(names, usual, config)
                or _once_more(int(again.get(day, 0)), names)
                or _all_jump(int(moved.get(day, 0)), names, config)
                or _out_of_turn(day, config.exchange, due, ready, calendar)
            )
            if reason:
                reason += f"; --accept {day:%Y-%m-%d} takes it as it is"
        if not reason and waiting and waiting[-1].day > pd.Timestamp(calendar[-1]):
            reason = f"{show_time(waiting[-1].day)} comes before it"
        if reason:
            waiting.append(Waiting(day, reason))
        else:
            ready.append(day)
    return Arrivals(bars, tuple(ready), tuple(waiting), tuple(notes))


def _past(
    folder: Path, calendar: Times, bars: pd.DataFrame, usual_days: int
) -> tuple[pd.DataFrame, float]:
    """The folder's last bars of the names that came, and how many names a day usually has."""
    files = FeatureFiles(folder, "day", [f"${name}" for name in BAR_COLUMNS], calendar)
    names = {name.upper() for name in check_market(folder, ALL_MARKET).names}
    came = set(bars["symbol"].str.upper())
    start = max(0, len(calendar) - PAST_BARS)
    counts = np.zeros(len(calendar), dtype=np.int64)
    parts = []
    for symbol, places, values in files.read(sorted(names | came), (start, len(calendar))):
        there = np.isfinite(values[:, BAR_COLUMNS.index("close")])
        if symbol in names:
            counts[places[there]] += 1
        if symbol in came and there.any():
            part = pd.DataFrame(values[there].astype(np.float64), columns=list(BAR_COLUMNS))
            parts.append(part.assign(symbol=symbol, date=calendar[places[there]]))
    usual = float(np.median(counts[-usual_days:]))
    past = pd.concat(parts, ignore_index=True) if parts else bars.iloc[:0]
    return past, usual


def _checked(
    bars: pd.DataFrame,
    past: pd.DataFrame,
    config: DailyConfig,
    files: Mapping[Path, Collection[pd.Timestamp]],
) -> tuple[pd.DataFrame, list[str], pd.DataFrame, pd.DataFrame]:
    """The bars repaired, notes on them, those that are the bar before once more, and the jumps.

    Raises:
        BarDataError: some break a rule.
    """
    settings = config.bars
    bars = bars.assign(symbol=bars["symbol"].str.upper())
    factor = bars["factor"]
    mended, record = repair_bars(
        bars.assign(factor=factor.fillna(1.0)), settings.repair, max_move=settings.max_move
    )
    if factor.isna().any():
        known = bars.set_index(["symbol", "date"])["factor"]
        known = known[~known.index.duplicated(keep="last")]
        own = pd.MultiIndex.from_frame(mended[["symbol", "date"]])
        mended["factor"] = known.reindex(own).to_numpy()
    filled = mended.assign(factor=mended["factor"].fillna(1.0))
    report = check_bars(filled, max_move=None, find_gaps=False)
    refused = errors_of(report)
    # Moves and repeats from the last bar of the folder on: what is older came earlier. A last bar
    # that comes again counts as it comes: it is on the base of those after it.
    newer = filled[filled["date"] > past["date"].max()] if len(past) else filled
    joint = pd.concat([past, filled], ignore_index=True)[["symbol", "date", *BAR_COLUMNS]]
    joint = joint.drop_duplicates(["symbol", "date"], keep="last")
    joint = joint.sort_values(["symbol", "date"], ignore_index=True)
    moved = check_bars(joint, max_move=settings.max_move, find_gaps=False)
    moved = moved[(moved["severity"] == "warning") & moved["date"].isin(newer["date"].unique())]
    asked = moved[moved["rule"].isin(settings.refuse)]
    refused = pd.concat([refused, asked]) if len(asked) else refused
    if len(refused):
        worst = refused.iloc[0]
        names = [path.name for path, days in files.items() if worst["date"] in days]
        where = f"{some_of(names)}: " if names else ""
        counts = refused.groupby("rule").size()
        total = ", ".join(f"{rule} {count}" for rule, count in counts.items())
        lines = describe_advice(advise(filled, refused), "bars.repair: ").splitlines()
        advice = "; ".join(line.strip() for line in lines)
        raise BarDataError(
            f"{where}{worst['symbol']} {show_time(worst['date'])}: {worst['rule']}: "
            f"{worst['detail']}. Bars that break a rule: {total}. {advice}"
        )
    notes = [f"repaired:\n{describe_report(record)}"] if len(record) else []
    jumps = moved[moved["rule"] == JUMP]
    if len(jumps):
        notes.append(f"moves beyond bars.max_move:\n{describe_report(jumps)}")
    is_new = joint["date"].isin(newer["date"].unique()).to_numpy()
    return mended, notes, joint[repeated_bars(joint) & is_new], jumps


def too_early(day: pd.Timestamp, config: DailyConfig, now: dt.datetime) -> str:
    """Why a day is not over by the clock; "" where it is, or where nobody said when it is."""
    local = config.local(now)
    if day.date() > local.date():
        return (
            f"by this machine's clock it is {local:%Y-%m-%d %H:%M} and that day is still to come: "
            "one of the two is wrong"
        )
    if config.ready_at and day.date() == local.date() and f"{local:%H:%M}" < config.ready_at:
        return f"it is {local:%H:%M}, and bars of the day are final from {config.ready_at} on"
    return ""


def _incomplete(names: int, usual: float, config: DailyConfig) -> str:
    least = config.bars.complete * usual
    if names >= least:
        return ""
    return (
        f"it has bars of {names} name{'s' if names != 1 else ''}, and usual are {usual:g} (at "
        f"least {np.ceil(least):g} are asked for, bars.complete {config.bars.complete:g})"
    )


def _once_more(same: int, names: int) -> str:
    if not names or same <= MOST * names:
        return ""
    return f"{same} of its {names} names bring the bar before once more, volume and all"


def _all_jump(jumps: int, names: int, config: DailyConfig) -> str:
    if not names or jumps <= MOST * names:
        return ""
    return (
        f"the prices of {jumps} of its {names} names move by more than {config.bars.max_move:.0%} "
        "from the close before: are they in another unit, or of another day?"
    )


def _due(calendar: Times, exchange: str | None, new: pd.DatetimeIndex) -> pd.DatetimeIndex | None:
    """The exchange's days after the calendar's end, as far as the new ones reach."""
    if exchange is None or not len(new) or new[-1] <= pd.Timestamp(calendar[-1]):
        return None
    count = int((new[-1] - pd.Timestamp(calendar[-1])).days) + 1
    return pd.DatetimeIndex(exchange_times(calendar[-PAST_BARS:], count, exchange))


def _out_of_turn(
    day: pd.Timestamp,
    exchange: str | None,
    due: pd.DatetimeIndex | None,
    ready: Sequence[pd.Timestamp],
    calendar: Times,
) -> str:
    if day < pd.Timestamp(calendar[0]):
        return f"the folder's bars begin on {show_time(pd.Timestamp(calendar[0]))}"
    if due is None or day not in due:
        reason = _no_trading_day(day, exchange, calendar)
        if reason or due is None or day < pd.Timestamp(calendar[-1]):
            return reason
    lacking = [one for one in due if one < day and one not in ready]
    if not lacking:
        return ""
    shown = some_of([show_time(one) for one in lacking])
    return f"the exchange was open on {shown}, and there are no bars of it"


def _no_trading_day(day: pd.Timestamp, exchange: str | None, calendar: Times) -> str:
    """Why there is no trading on a day, as far as is known: by the exchange, else by weekdays."""
    if exchange is not None:
        try:
            session_open(day.date(), exchange)
        except ConfigError:
            return "it is no day of the exchange"
        return ""
    past = pd.DatetimeIndex(calendar[-PAST_BARS:])
    if len(past) < PAST_BARS or day.day_of_week in past.day_of_week:
        return ""
    return f"it is a {day.day_name()}, and none of the folder's last {PAST_BARS} days is"
