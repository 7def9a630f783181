"""Times as text, read strictly, for tables and for the predictor alike.

The year comes first, or the month has a name, or the caller says the order: "02/01/2024" is January
in one country and February in the next, whatever the other rows hold. Times are wall-clock time of
the exchange: an offset is dropped, not converted, so that both sides of a daylight-saving change
keep their hour. What counts instants, times in UTC and counts since 1970, needs the exchange's zone
to become wall-clock time.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

import numpy as np
import numpy.typing as npt
import pandas as pd

from kronos_qlib.errors import ConfigError

Times = npt.NDArray[np.datetime64]

DATE_ORDERS = ("ymd", "dmy", "mdy")
"""Year, day and month of a date of digits, in their order."""

CLOCK = (
    r"(?:(?P<hour>\d{1,2}):(?P<minute>\d{2})(?::(?P<second>\d{2})(?:[.,](?P<fraction>\d{1,9}))?)?"
    r"|(?P<digits>\d{4}(?:\d{2})?))"
    r"(?:\.0+)?(?P<zone> ?(?:Z|UTC|GMT)| ?(?:UTC|GMT)?[+-]\d{2}(?::?\d{2})?)?"
)
MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
NAMED = rf"(?P<name>{'|'.join(MONTHS)})[a-z]*"

DATE_TEXT = re.compile(
    r"(?P<year>\d{4})(?:(?P<sep>[-/.])(?P<month>\d{1,2})(?P=sep)(?P<day>\d{1,2})"
    r"|年(?P<month_zh>\d{1,2})月(?P<day_zh>\d{1,2})日|(?P<packed>\d{4})(?:\.0+(?!\d|:))?)"
    rf"(?:(?:T| +){CLOCK})?",
    re.ASCII,
)
"""Year first, so that no day can be taken for a month."""
PACKED_TEXT = re.compile(r"(\d{4})(\d\d)(\d\d)(\d\d)(\d\d)(?:(\d\d)(\d{3})?)?", re.ASCII)
"""202401020935, 20240102093500 and 20240102093500000, which ends in milliseconds."""
NAMED_TEXT = re.compile(
    rf"(?:(?P<day>\d{{1,2}})[- ]{NAMED}[-, ]+|{NAMED.replace('name', 'first')}\.? +(?P<second_day>"
    rf"\d{{1,2}}),? +)(?P<year>\d{{4}}|\d{{2}})(?: +{CLOCK})?",
    re.ASCII | re.IGNORECASE,
)
"""18-Jun-2024 and Jun 18, 2024; 18-Jun-24 only where the caller says the order."""
ORDERED_TEXT = re.compile(
    r"(?P<one>\d{1,2})(?P<sep>[-/.])(?P<two>\d{1,2})(?P=sep)(?P<year>\d{4}|\d{2})"
    rf"(?:(?:T|,? +){CLOCK})?",
    re.ASCII,
)
"""Day first or month first."""

EPOCH_TEXT = re.compile(r"(1\d{9}(?:\d{3}){0,3})(?:\.0+)?", re.ASCII)
"""A count since 1970 from 2001 to 2033. Not 2024010209, an hour without its marks."""
EPOCH_VALUE = re.compile(r"(\d{9,19})(?:\.0+)?", re.ASCII)
EPOCH_UNITS = {
    10: ("seconds", "s"),
    13: ("milliseconds", "ms"),
    16: ("microseconds", "us"),
    19: ("nanoseconds", "ns"),
}
"""By its digits: what such a count counts, and what pandas calls that."""

DAY_COUNT_TEXT = re.compile(r"([1-6]\d{4})(?:\.\d+)?", re.ASCII)
"""A count of days since 1970 (from 1997 on) or, as in Excel, since 1899-12-30."""
EXCEL_1970 = 25569
ABBREVIATED_TEXT = re.compile(r"(.*\d) ?\(?([A-Z]{3,4})\)?", re.ASCII)
"""A zone by its letters, such as EST, which is an hour in New York and another in Sydney."""
CLOCK_CHANGE = timedelta(hours=1)

FIRST_YEAR, LAST_YEAR = 1678, 2261
"""The whole years that pandas' nanoseconds hold."""
EARLIEST, LATEST = datetime(FIRST_YEAR, 1, 1), datetime(2262, 4, 11)


class TimeTextError(ValueError):
    """Text that is no time, or that may be several.

    entry: where it stands. text: what it is.
    """

    def __init__(self, entry: int, text: str, problem: str | None = None) -> None:
        super().__init__(problem or text)
        self.entry, self.text, self.problem = entry, text, problem


@dataclass(frozen=True)
class ReadTimes:
    """Times out of text.

    times: (n,) datetime64[us], wall-clock time.
    offset: None where no time had an offset, else the first one's text. is_utc: whether all of
    them are 0. epoch: what was counted since 1970, None where it was not. apart: two offsets that
    no change of clocks explains, and which no one exchange has.
    """

    times: Times
    offset: str | None = None
    is_utc: bool = False
    epoch: str | None = None
    apart: tuple[str, str] | None = None


def read_texts(texts: Sequence[str], order: str = "ymd") -> ReadTimes:
    """Read times, each text once: dates repeat across instruments.

    Counts since 1970 are taken as UTC. The caller decides what UTC means.

    Args:
        texts: without blanks around them.
        order: see `DATE_ORDERS`.

    Raises:
        TimeTextError: one is no time, or some have an offset and others have none.
    """
    codes, unique = pd.factorize(np.array(texts, dtype=object))
    distinct: list[str] = unique.tolist()
    epoch = _epoch_unit(distinct)
    if epoch is not None:
        name, unit = EPOCH_UNITS[epoch]
        counts = np.array([int(text.split(".")[0]) for text in distinct], dtype=np.int64)
        moments = counts.astype(f"datetime64[{unit}]").astype("datetime64[us]")
        return ReadTimes(moments[codes], "UTC", True, name)
    read: list[datetime] = []
    offsets: list[str | None] = []
    for place, text in enumerate(distinct):
        try:
            moment, offset = parse_time(text, order)
        except ValueError:
            raise TimeTextError(int((codes == place).argmax()), text) from None
        read.append(moment)
        offsets.append(offset)
    zoned = [offset for offset in offsets if offset is not None]
    if zoned and len(zoned) < len(offsets):
        place = next(i for i, each in enumerate(offsets) if (each is None) != (offsets[0] is None))
        entry = int((codes == place).argmax())
        has, had = ("no", "have one") if offsets[place] is None else ("a", "have none")
        raise TimeTextError(
            entry,
            distinct[place],
            f"the time {distinct[place]!r} carries {has} time zone, while those before {had}",
        )
    times = np.array(read, dtype="datetime64[us]")
    return ReadTimes(
        times[codes] if len(times) else times,
        zoned[0] if zoned else None,
        bool(zoned) and all(not re.search("[1-9]", offset) for offset in zoned),
        apart=_far_apart(zoned),
    )


def parse_time(text: str, order: str = "ymd") -> tuple[datetime, str | None]:
    """One time as wall-clock time, and its offset as it is written.

    Raises:
        ValueError: it is none, or the day may be the month.
    """
    text, half = split_half(text)
    packed = PACKED_TEXT.fullmatch(text)
    if packed is not None and half is None:
        year, month, day, hour, minute, second, milli = (int(each or 0) for each in packed.groups())
        return _within(datetime(year, month, day, hour, minute, second, milli * 1000)), None
    if match := DATE_TEXT.fullmatch(text):
        part = match.groupdict()
        of_month, of_day = part["month"] or part["month_zh"], part["day"] or part["day_zh"]
        if part["packed"]:
            of_month, of_day = part["packed"][:2], part["packed"][2:]
    elif (match := NAMED_TEXT.fullmatch(text)) and (order != "ymd" or len(match["year"]) == 4):
        part = match.groupdict()
        of_month = str(1 + MONTHS.index((part["name"] or part["first"]).lower()))
        of_day = part["day"] or part["second_day"]
    elif order != "ymd" and (match := ORDERED_TEXT.fullmatch(text)):
        part = match.groupdict()
        of_day, of_month = part["one"], part["two"]
        if order == "mdy":
            of_day, of_month = of_month, of_day
    else:
        raise ValueError(text)
    if len(part["year"]) == 2:  # as POSIX has it
        part["year"] = ("19" if int(part["year"]) >= 69 else "20") + part["year"]
    if part["digits"]:
        part["hour"], part["minute"], part["second"] = (
            part["digits"][place : place + 2] or None for place in (0, 2, 4)
        )
    hour, minute, second = (int(part[name] or 0) for name in ("hour", "minute", "second"))
    if half is not None:
        if not part["hour"] or not 1 <= hour <= 12:
            raise ValueError(text)
        hour = hour % 12 + half
    fraction = (part["fraction"] or "").rstrip("0")
    if len(fraction) > 6:
        raise ValueError(text)
    micros = int(fraction.ljust(6, "0"))
    moment = datetime(int(part["year"]), int(of_month), int(of_day), hour, minute, second, micros)
    return _within(moment), part["zone"].strip() if part["zone"] else None


def split_half(text: str) -> tuple[str, int | None]:
    """Text without AM or PM at its end, and the hours that these add; None where neither stands."""
    if text[-2:].upper() not in ("AM", "PM"):
        return text, None
    return text[:-2].rstrip(), 0 if text[-2:].upper() == "AM" else 12


def parse_date(text: str) -> datetime:
    """A date such as 2024-06-18 or 20240618, with a time of day or without, and no zone.

    Raises:
        ValueError: It is none.
    """
    moment, offset = parse_time(text)
    if offset is not None:
        raise ValueError(text)
    return moment


def to_zone(times: Times, zone: str) -> Times:
    """UTC to the wall-clock time of a zone; bars that all stand at midnight UTC are days, and stay.

    Raises:
        ConfigError: there is no such zone.
    """
    find_zone(zone)
    if is_midnight(times):
        return times
    local = pd.DatetimeIndex(times).tz_localize("UTC").tz_convert(zone).tz_localize(None)
    return np.asarray(local.to_numpy())


def find_zone(zone: str) -> ZoneInfo:
    """The zone of a name such as "Asia/Shanghai".

    Raises:
        ConfigError: there is no such zone.
    """
    try:
        return ZoneInfo(zone)
    except Exception as bad:  # KeyError, ValueError or OSError, by the name
        raise ConfigError(
            f'zone is a name such as "Asia/Shanghai", "America/New_York" or "UTC", got {zone!r}'
        ) from bad


def instants(texts: Sequence[str], order: str = "ymd") -> Times:
    """(n,) datetime64[us] in UTC of times with offsets, each converted by its own."""
    moments = {}
    for text in set(texts):
        moment, offset = parse_time(text, order)
        moments[text] = moment - _shift_of(offset)
    return np.array([moments[text] for text in texts], dtype="datetime64[us]")


def is_midnight(times: Times) -> bool:
    """Whether all times are days."""
    return bool((times == times.astype("datetime64[D]")).all())


def check_utc_days(times: Times) -> str | None:
    """What is wrong with one bar a day in UTC at another hour than midnight; None if nothing.

    Such a bar is the midnight of another zone, mostly of the day after: a daily bar of Frankfurt
    stands at 22:00 or 23:00 UTC of the day before.
    """
    moments = np.unique(times)
    if len(moments) < 2 or is_midnight(moments):
        return None
    if np.median(np.diff(moments) / np.timedelta64(1, "h")) < 20:
        return None
    shown = str(np.datetime_as_string(moments[-1], unit="m")).replace("T", " ")
    return (
        f"these are daily bars in UTC at another time than midnight, such as {shown}: midnight of "
        'another zone, often of the day after; convert them, with .tz_convert("Europe/Berlin") or '
        "the zone of your exchange, or say with .tz_localize(None) that they are its own clock"
    )


def _shift_of(offset: str | None) -> timedelta:
    """What an offset such as +05:30, UTC+8 or Z adds to UTC."""
    sign_and_digits = re.search(r"([+-])(\d{2}):?(\d{2})?", offset or "")
    if not sign_and_digits:
        return timedelta(0)
    sign, hours, minutes = sign_and_digits.groups()
    return timedelta(hours=int(hours), minutes=int(minutes or 0)) * int(f"{sign}1")


def _far_apart(offsets: Sequence[str]) -> tuple[str, str] | None:
    shifts = {offset: _shift_of(offset) for offset in set(offsets)}
    if len(shifts) < 2:
        return None
    least, most = min(shifts, key=shifts.__getitem__), max(shifts, key=shifts.__getitem__)
    return (least, most) if shifts[most] - shifts[least] > CLOCK_CHANGE else None


def _epoch_unit(distinct: Sequence[str]) -> int | None:
    """The digits of the largest count, where all texts are counts since 1970."""
    if not distinct or EPOCH_VALUE.fullmatch(distinct[0]) is None:
        return None  # the usual column of dates, found out at its first value
    values = [EPOCH_VALUE.fullmatch(text) for text in distinct]
    largest = max((value[1] for value in values if value), key=int)
    if not all(values) or EPOCH_TEXT.fullmatch(largest) is None:
        return None
    # Counts before September 2001 have a digit less: the newest decides. Never two: 8 are a date.
    if min(len(value[1]) for value in values if value) < len(largest) - 1:
        return None
    return len(largest)


def _within(moment: datetime) -> datetime:
    if not EARLIEST <= moment <= LATEST:
        raise ValueError(f"{moment} is beyond pandas' nanoseconds")
    return moment


def texts_of(values: Iterable[object]) -> list[str]:
    """Values as text without blanks around it.

    Raises:
        ValueError: Python writes out no whole number of thousands of digits.
    """
    return [str(value).strip() for value in values]
