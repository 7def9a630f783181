"""One evening: bars, members, scores, orders, ledger. Each step is there whole or not at all.

What has been done is read off what is there, so that a process may be killed anywhere and the next
one goes on: the bars of a day are in the Qlib folder's calendar; scores and orders are folders of
the day's own; the ledger knows its entries; `done.json` ends a day. Of several days that came, each
goes through all steps before the next one goes in: no score can see a later day. A candidate that
cannot be trained or scored ends the start, but not the day: the next one tries again.
"""

from __future__ import annotations

import datetime as dt
import json
import shutil
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from filelock import Timeout

from kronos_qlib.daily.arrivals import PAST_BARS, Arrivals, sort_out, too_early
from kronos_qlib.daily.daily_settings import DailyConfig
from kronos_qlib.daily.day_folder import DayFolder, last_heads, write_json
from kronos_qlib.daily.drop_folder import (
    Dropped,
    read_dropped,
    read_taken,
    still_taken,
    write_taken,
)
from kronos_qlib.daily.fetching import FETCHED, fetch
from kronos_qlib.daily.rescoring import rescore
from kronos_qlib.daily.retraining_steps import RetrainingSteps
from kronos_qlib.data.calendar.exchanges import exchange_times
from kronos_qlib.data.calendar.stamps import Times
from kronos_qlib.data.calendar.time_text import show_time
from kronos_qlib.errors import ConfigError, DailyBusyError, DailyError, KronosError, some_of
from kronos_qlib.files import recover, replacing
from kronos_qlib.ledger.ledger import Ledger, utc_now
from kronos_qlib.owners import lock_of
from kronos_qlib.plugin.live.recording import opening_of, record_orders, record_scores
from kronos_qlib.plugin.lookahead import open_provider
from kronos_qlib.plugin.orders.book import Book
from kronos_qlib.plugin.orders.making import Orders, make_orders
from kronos_qlib.plugin.provider.appending.append import AppendSummary, append_bars, read_log
from kronos_qlib.plugin.provider.appending.changed_history import REBASED
from kronos_qlib.plugin.provider.faults import feature_folder, stored_calendar
from kronos_qlib.plugin.provider.members import write_members
from kronos_qlib.plugin.registry.newest_scores import NewestScores, newest_scores

CLOCK = "clock.json"
CLOCK_SLACK = dt.timedelta(minutes=2)
"""How far a clock may be set back between two runs without a word."""
SHOWN = 10
"""Changes of the past that are told one by one."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class DailyReport:
    """What one start did."""

    days: tuple[pd.Timestamp, ...]
    """Days that are done now and were not before."""
    waiting: tuple[str, ...]
    """Why something waits, a sentence each."""


def run_daily(
    config: DailyConfig,
    *,
    now: dt.datetime | None = None,
    accepted: Collection[pd.Timestamp] = (),
    patience: float = 0.0,
    say: Say = print,
) -> DailyReport:
    """Bring in what came and do what is due; once that is done, nothing.

    Args:
        now: the time, with a zone, that stands in the ledger and that days are compared with; None
            is this machine's clock, each time that it is asked for. Another one is for replays.
        accepted: days to take although they look incomplete.
        patience: seconds to wait for another process on the same days.
        say: is told, line by line, what is done.

    Raises:
        ConfigError: positions or cash cannot be used, or something is held that has no bars; no bar
            went in.
        DailyBusyError: another process is at work.
        DailyError: a step failed, or the clock was set back. Names the step and the day.
    """
    clock = utc_now if now is None else lambda: now
    check_book(config, clock())
    with _alone(config, patience):
        with _step("clock", place=config.home):
            _check_clock(config.home, clock())
        return _Evening(config, clock, accepted, say).run()


def check_book(config: DailyConfig, now: dt.datetime) -> Book | None:
    """Refuse positions and cash that no orders can be made of, before any work.

    Returns:
        What is held; None where no orders are asked for.

    Raises:
        ConfigError: a file is missing, or a line of it cannot be used. Names file and line.
    """
    if config.orders is None:
        return None
    today = pd.Timestamp(config.local(now).date())
    return config.orders.book(today, stored_calendar(config.provider_uri, "day"))


class _Evening:
    """One start of `daily`."""

    def __init__(
        self,
        config: DailyConfig,
        clock: Callable[[], dt.datetime],
        accepted: Collection[pd.Timestamp],
        say: Say,
    ) -> None:
        self.config, self.accepted, self.say = config, accepted, say
        self.now = clock()
        # Asked when an entry is appended: what took until the market had opened came late.
        self.ledger = Ledger(config.ledger_folder, clock=clock)
        self.done: list[pd.Timestamp] = []
        self.brought: set[pd.Timestamp] = set()
        """Days that this start has appended."""
        self.is_open: pd.Timestamp | None = None
        """The day up to which Qlib has read the folder in this process."""

    def run(self) -> DailyReport:
        config = self.config
        with _step("bars"):
            recover(config.provider_uri)
            if config.bars.source is not None:
                fetch(config, self.now, self.say)
        said: set[str] = set()
        first = True
        while True:
            with _step("bars"):
                dropped, arrivals = self._arrivals(said)
                newest = self._newest()
                was_appended = self._was_appended(newest)
            if first:
                with _step("positions", passes=(ConfigError,)):
                    self._check_holdings(arrivals)
            # A day whose steps were cut off; the folder's own last one, if nothing newer is there.
            if first and (not arrivals.ready or was_appended):
                self._finish(newest, self._later(newest, arrivals))
            first = False
            day = arrivals.ready[0] if arrivals.ready else None
            with _step("bars", day, config.provider_uri):
                self._append(dropped, arrivals, day)
            if day is None:
                break
            newest = self._newest()
            self._finish(newest, self._later(newest, arrivals))
        if config.model is not None:
            with _step("scores of a changed past"):
                rescore(config, self._scores, self.say)
        came = self.brought | {each.day for each in arrivals.waiting}
        for day in sorted({*self.accepted} - came):
            self.say(f"note: --accept {show_time(day)}: no new bars of that day came")
        waiting = [*dropped.waiting, *map(str, arrivals.waiting)]
        for line in waiting:
            self.say(line)
        if not self.done and not waiting:
            self.say(f"nothing new: {show_time(self._newest())} is done")
        return DailyReport(tuple(self.done), tuple(waiting))

    def _check_holdings(self, arrivals: Arrivals) -> None:
        """Refuse a holding that would have no price, before anything goes in.

        Raises:
            ConfigError: names it.
        """
        book, folder = check_book(self.config, self.now), self.config.provider_uri
        if book is None:
            return
        settings = self.config.bars
        came = {*arrivals.bars["symbol"].str.upper(), *map(str.upper, settings.renames.values())}
        unknown = [
            name
            for name in map(str, book.holdings.index)
            if name.upper() not in came
            and not (folder / "features" / feature_folder(name)).is_dir()
        ]
        if unknown:
            raise ConfigError(
                f"{some_of(unknown)} is held, and neither {folder} nor what came has bars of it: "
                "was it renamed, or is it spelt otherwise there? Correct the positions"
            )

    # Bars

    def _arrivals(self, said: set[str]) -> tuple[Dropped, Arrivals]:
        config = self.config
        folders = [config.home / FETCHED]
        if config.bars.drop is not None:
            folders.append(config.bars.drop)
        taken = still_taken(read_taken(config.home), self._newest())
        dropped = read_dropped(folders, config.bars, taken)
        arrivals = sort_out(dropped.bars, config, self.now, self.accepted, dropped.days)
        for note in (*dropped.notes, *arrivals.notes):
            if note not in said:
                said.add(note)
                self.say(f"note: {note}")
        return dropped, arrivals

    def _append(self, dropped: Dropped, arrivals: Arrivals, day: pd.Timestamp | None) -> None:
        """Append one day, with what came of the past; or what came of the past alone."""
        config, settings = self.config, self.config.bars
        calendar = stored_calendar(config.provider_uri, "day")
        bars = arrivals.until(day, calendar)
        if len(bars):
            summary = append_bars(
                bars,
                config.provider_uri,
                benchmark=settings.benchmark,
                extra=settings.extra,
                future_bars=settings.future_bars,
                future_times=self._future(calendar, day),
                renames=settings.renames,
            )
            self.brought |= {*summary.times}
            self._tell(summary)
        known = pd.DatetimeIndex(stored_calendar(config.provider_uri, "day"))
        if taken := dropped.taken_by(known):
            write_taken(config.home, {**read_taken(config.home), **taken})

    def _tell(self, summary: AppendSummary) -> None:
        for time in summary.times:
            self.say(f"{show_time(time)}: bars in {summary.target}")
        for note in summary.notes:
            self.say(f"note: {note}")
        for change in summary.changes[:SHOWN]:
            self.say(f"the past changed: {change}")
        if len(summary.changes) > SHOWN:
            self.say(f"the past changed: and {len(summary.changes) - SHOWN} more instruments")
        corrected = [change for change in summary.changes if change.kind != REBASED]
        if corrected:
            first = min(change.first for change in corrected)
            last = max(change.last for change in corrected)
            calendar = stored_calendar(self.config.provider_uri, "day")
            place = int(calendar.searchsorted(last.to_datetime64())) + self.config.window - 1
            end = calendar[min(place, len(calendar) - 1)]
            self.say(
                f"windows to be scored again: those that end from {show_time(first)} to "
                f"{show_time(end)}, of "
                + _counted(len({change.symbol for change in corrected}), "instrument")
            )

    def _future(self, calendar: Times, day: pd.Timestamp | None) -> Times | None:
        config = self.config
        if config.exchange is None or day is None or day <= pd.Timestamp(calendar[-1]):
            return None
        past = np.append(calendar[-PAST_BARS:], day.to_datetime64())
        return exchange_times(past, max(1, config.bars.future_bars), config.exchange)

    def _newest(self) -> pd.Timestamp:
        return pd.Timestamp(stored_calendar(self.config.provider_uri, "day")[-1])

    def _later(self, day: pd.Timestamp, arrivals: Arrivals) -> pd.Timestamp | None:
        """The first day after this one that is over and has bars, if not all yet; None where this
        is the last."""
        came = [*arrivals.ready, *(each.day for each in arrivals.waiting)]
        over = [other for other in came if not too_early(other, self.config, self.now)]
        return min((other for other in over if other > day), default=None)

    def _was_appended(self, day: pd.Timestamp) -> bool:
        log = read_log(self.config.provider_uri)
        return any(f"{day:%Y-%m-%d}" in entry.get("times", ()) for entry in log)

    # What follows from them

    def _finish(self, day: pd.Timestamp, later: pd.Timestamp | None) -> None:
        """All steps after the bars, of the folder's newest day.

        Args:
            later: a day after it that has come already: nothing can be ordered for that any more.
        """
        folder = DayFolder(self.config.home, day)
        if folder.is_done:
            return
        with _step("home", day):
            folder.recover()
        facts: dict[str, object] = {"late": later is not None}
        with _step("opening", day):
            opens = self._opens(day, later)
        retraining = self._retraining()
        if self.config.members is not None:
            with _step("members", day):
                self._members()
        if retraining is not None:
            with _step("promotion", day):
                retraining.decide(day, opens)
        if self.config.model is not None:
            with _step("scores", day, folder.path):
                found = self._kept_scores(folder)
            orders = None
            if self.config.orders is not None and later is None:
                with _step("orders", day, folder.path):
                    orders = self._kept_orders(folder, found)
            elif self.config.orders is not None:
                self.say(f"{show_time(day)}: no orders, the next day has come already")
            with _step("ledger", day, self.config.ledger_folder):
                facts |= self._record(found, orders, day, opens)
        failed = None
        if retraining is not None:
            try:
                with _step("candidate", day):
                    retraining.follow(day, opens)
            except DailyError as problem:  # the evening's orders stand, and tomorrow's must come
                failed = problem
        with _step("home", day, folder.path):
            folder.finish(facts)
        self.done.append(day)
        if failed is not None:
            raise failed

    def _members(self) -> None:
        members = self.config.members
        if members is not None:
            for summary in write_members(
                self.config.provider_uri,
                members.indices,
                name=members.name,
                mean=members.mean,
                overwrite=True,
            ):
                self.say(str(summary))

    def _retraining(self) -> RetrainingSteps | None:
        rolling = self.config.rolling
        if rolling is None:
            return None
        return RetrainingSteps(self.config, rolling, self.ledger, self._scores_of, self.say)

    def _scores(self, day: pd.Timestamp) -> NewestScores:
        return self._scores_of(str(self.config.model), day)

    def _scores_of(self, model: str, day: pd.Timestamp) -> NewestScores:
        config = self.config
        self.is_open = None  # the model opens Qlib on the folder as it is now
        return newest_scores(
            model,
            tracking_uri=config.tracking_uri,
            provider_uri=str(config.provider_uri),
            day=f"{day:%Y-%m-%d}",
            beyond_calendar=config.exchange,
            trust=config.trust,
        )

    def _kept_scores(self, folder: DayFolder) -> NewestScores:
        if not folder.scores.is_dir():
            found = self._scores(folder.day)
            folder.write_scores(found)
            for note in found.notes:
                self.say(f"note: {note}")
            self.say(
                f"{show_time(folder.day)}: {_counted(len(found.table), 'name')} scored by "
                f"{found.model}, version {found.version}"
            )
        return folder.read_scores()

    def _kept_orders(self, folder: DayFolder, scores: NewestScores) -> Orders:
        """The day's orders. Those that are kept are made again from the book kept with them."""
        self._open()
        if folder.orders.is_dir():
            return self._orders(scores, folder.read_book())
        found = self._orders(scores, self._book(folder.day))
        folder.write_orders(found)
        for note in found.notes:
            self.say(f"note: {note}")
        self.say(
            f"{show_time(folder.day)}: {_counted(len(found.table), 'order')} for "
            f"{show_time(found.day)}"
            + (f", {_counted(left, 'name')} left alone" if (left := len(found.left_alone)) else "")
            + f", in {folder.orders}"
        )
        return found

    def _orders(self, scores: NewestScores, book: Book) -> Orders:
        trading = self.config.orders
        assert trading is not None
        return make_orders(
            scores.table["score"],
            book,
            trading.strategy,
            evening=scores.day,
            day=self._following(scores.day),
            how=trading.how,
            weights=trading.weights,
            quantiles=scores.table,
        )

    def _book(self, day: pd.Timestamp) -> Book:
        trading = self.config.orders
        assert trading is not None
        book = trading.book(day, stored_calendar(self.config.provider_uri, "day"))
        return Book(book.cash, book.holdings.sort_index())  # in the order that is kept

    def _record(
        self,
        scores: NewestScores,
        orders: Orders | None,
        day: pd.Timestamp,
        opens: dt.datetime | None,
    ) -> dict[str, object]:
        self._look_for_last_head(day)
        entries = [record_scores(self.ledger, scores, opens=opens)]
        if orders is not None:
            entries.append(record_orders(self.ledger, orders, opens=opens))
        self.say(f"{show_time(day)}: ledger {entries[-1].head}")
        if entries[-1].is_late and opens is not None:
            self.say(
                f"warning: the market had opened by {opens:%Y-%m-%d %H:%M} UTC: what is said of "
                f"{show_time(day)} came late, and counts in no figure of the report"
            )
        return {"ledger": [entry.head for entry in entries]}

    def _look_for_last_head(self, day: pd.Timestamp) -> None:
        """Warn of a ledger without the entry that the day before left: `done.json` names it."""
        heads = last_heads(self.config.home, day)
        known = {entry.head for entry in self.ledger.entries()}
        lacking = [head for head in heads if head not in known]
        if lacking:
            self.say(
                f"warning: the ledger does not have entry {lacking[0]}, which an earlier day left "
                "there: it was cut, written anew or taken away since"
            )

    def _following(self, day: pd.Timestamp) -> pd.Timestamp | None:
        """The exchange's next day; None where none is named: then the folder's calendar says."""
        if self.config.exchange is None:
            return None
        calendar = stored_calendar(self.config.provider_uri, "day")
        past = calendar[calendar <= day.to_datetime64()][-PAST_BARS:]
        return pd.Timestamp(exchange_times(past, 1, self.config.exchange)[0])

    def _opens(self, day: pd.Timestamp, later: pd.Timestamp | None) -> dt.datetime | None:
        """When the market opens after a day; where no exchange is named, None or, if a later day
        has come, that day's beginning."""
        following = self._following(day)
        if following is not None and self.config.exchange is not None:
            return opening_of(following, self.config.exchange)
        if later is None:
            return None
        zone = self.config.local(self.now).tzinfo
        return dt.datetime.combine(later.date(), dt.time(), zone)

    def _open(self) -> None:
        newest = self._newest()
        if self.is_open != newest:
            open_provider(
                self.config.provider_uri, region=self.config.region, logging_level="WARNING"
            )
            self.is_open = newest


@contextmanager
def _alone(config: DailyConfig, patience: float) -> Iterator[None]:
    """Hold the home folder and the Qlib folder against other starts.

    Raises:
        DailyBusyError: another process has one of them.
        DailyError: a lock cannot be made.
    """
    place = config.provider_uri
    locks = {
        config.home: config.home / ".daily.lock",
        place: place.with_name(f".{place.name}.daily.lock"),
    }
    with ExitStack() as held:
        for busy, path in locks.items():
            with _step("start"):
                path.parent.mkdir(parents=True, exist_ok=True)
            try:
                lock = lock_of(path, patience)
            except Timeout:
                raise DailyBusyError(
                    f"another `kronos-qlib daily` is at work on {busy}: this one did "
                    "nothing; start it again later, or let it wait (--wait SECONDS)"
                ) from None
            except OSError as problem:
                raise DailyError(f"{path} cannot be locked: {problem}; nothing was done") from (
                    problem
                )
            held.callback(lock.release)
        yield


@contextmanager
def _step(
    name: str,
    day: pd.Timestamp | None = None,
    place: Path | None = None,
    passes: tuple[type[Exception], ...] = (),
) -> Iterator[None]:
    """Say in which step something failed.

    Args:
        place: that it writes to, for failures that name no file, such as a full disk.
        passes: errors that are raised as they are.

    Raises:
        DailyError: in place of what was raised.
    """
    try:
        yield
    except DailyError:
        raise
    except passes:
        raise
    except Exception as problem:  # models raise whatever they like
        when = "" if day is None else f" of {show_time(day)}"
        what = _words(problem)
        if place is not None and isinstance(problem, OSError) and problem.filename is None:
            what += f" (for {place})"
        raise DailyError(
            f"step {name}{when}: {what.rstrip('.')}. Nothing of this step was kept; what earlier "
            "ones made stays, and the next start goes on from here"
        ) from problem


def _words(problem: Exception) -> str:
    """What a failure says of itself."""
    if isinstance(problem, KronosError):
        return str(problem) or "no message"
    said: object = problem
    if isinstance(problem, shutil.Error) and problem.args and isinstance(problem.args[0], list):
        (_, _, said), *others = problem.args[0]  # of each file that could not be copied
        said = f"{said}, and {_counted(len(others), 'file')} more" if others else said
    return f"{type(problem).__name__}: {str(said) or 'no message'}"


def _counted(number: int, word: str) -> str:
    return f"{number} {word}{'s' if number != 1 else ''}"


def _check_clock(home: Path, now: dt.datetime) -> None:
    """Keep the newest time seen.

    Raises:
        DailyError: the clock shows an earlier one.
    """
    path = home / CLOCK
    recover(path)
    if path.is_file():
        try:
            seen = dt.datetime.fromisoformat(json.loads(path.read_text(encoding="utf-8"))["seen"])
            if seen.tzinfo is None:
                raise ValueError(f"{seen} has no zone")
        except (ValueError, TypeError, KeyError) as problem:
            raise DailyError(
                f"{path} is damaged ({problem}): it holds the time of the last start, by which a "
                "clock that was set back is seen. Look at this machine's clock, and remove the file"
            ) from None
        if now < seen - CLOCK_SLACK:
            raise DailyError(
                f"this machine's clock shows {now:%Y-%m-%d %H:%M} and the last start was at "
                f"{seen:%Y-%m-%d %H:%M} (UTC): it was set back. Nothing was done: the ledger would "
                f"bear a wrong time. Set the clock; if the last start's was wrong, remove {path}"
            )
        if now <= seen:
            return
    with replacing(path) as draft:
        write_json(draft, {"seen": now.astimezone(dt.timezone.utc).isoformat()})
