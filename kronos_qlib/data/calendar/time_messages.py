"""Error messages for text that is no time, or whose time zone is open: what to do about it."""

from __future__ import annotations

from kronos_qlib.data.calendar.timestamps import (
    ABBREVIATED_TEXT,
    DAY_COUNT_TEXT,
    EPOCH_TEXT,
    EPOCH_UNITS,
    EXCEL_1970,
    NAMED_TEXT,
    ORDERED_TEXT,
    parse_time,
)


def time_message(text: str, *, in_table: bool = True) -> str:
    """Error message for text that is no time.

    Args:
        in_table: whether `read_bars` and the command line are at work, which have settings.
    """
    wanted = f"expected a date like 2024-06-18 or 2024-06-18 09:35:00, got {text[:60]!r}"
    if epoch := EPOCH_TEXT.fullmatch(text):
        return epoch_message(text, EPOCH_UNITS[len(epoch[1])][0], in_table=in_table)
    if match := ORDERED_TEXT.fullmatch(text):
        why = ", in which the day or the month may come first"
        if in_table:
            return f'{wanted}{why}: say which with date_order="dmy" or "mdy" (--date-order dmy)'
        sep, year = match["sep"], "%Y" if len(match["year"]) == 4 else "%y"
        clock = "" if len(text) <= 10 else " %H:%M:%S" if match["second"] else " %H:%M"
        return (
            f"{wanted}{why}: say which with pd.to_datetime(..., "
            f'format="%d{sep}%m{sep}{year}{clock}") or "%m{sep}%d{sep}{year}{clock}"'
        )
    if (match := NAMED_TEXT.fullmatch(text)) and len(match["year"]) == 2:
        way = "pd.to_datetime(..., format=...)"
        if in_table:
            way = 'date_order="dmy" (--date-order dmy)'
        return f"{wanted}, whose year has two digits: if it stands last, say so with {way}"
    if match := ABBREVIATED_TEXT.fullmatch(text):
        try:
            parse_time(match[1])
        except ValueError:
            return wanted
        return (
            f"{wanted}: the letters {match[2]} may mean several zones; take them off if they are "
            "the exchange's own, or write the offset, such as -05:00"
        )
    if match := DAY_COUNT_TEXT.fullmatch(text):
        since = "1899-12-30" if int(match[1]) >= EXCEL_1970 else "1970-01-01"
        whose = " as Excel counts them" if int(match[1]) >= EXCEL_1970 else ""
        return (
            f"{wanted}, which looks like days since {since}{whose}: convert them before, with "
            f'pd.to_datetime(..., unit="D", origin="{since}")'
        )
    try:
        _, offset = parse_time(text)
    except ValueError:
        return wanted
    return zone_message(text) if offset else wanted


def zone_message(text: str) -> str:
    """Error message for a time with a zone that may not be the exchange's."""
    return (
        f"the time {text!r} carries a time zone, and may not be the exchange's local time: say the "
        'exchange\'s with zone="Asia/Shanghai" (--zone Asia/Shanghai), or "UTC" for coins; or drop '
        "it before, with .tz_localize(None), of a column .dt.tz_localize(None)"
    )


def epoch_message(text: str, name: str, *, in_table: bool = True) -> str:
    """Error message for a count since 1970 of seconds or parts of them."""
    unit = dict(EPOCH_UNITS.values())[name]
    if in_table:
        return (
            f"{text!r} looks like {name} since 1970, which are UTC: say the exchange's zone with "
            'zone="Asia/Shanghai" (--zone Asia/Shanghai), or "UTC" for coins; or convert them '
            f'before, with pd.to_datetime(..., unit="{unit}")'
        )
    return (
        f"{text!r} looks like {name} since 1970, which are UTC: convert them to the exchange's "
        f'time, with pd.to_datetime(pd.Index(times).astype("int64"), unit="{unit}", '
        'utc=True).tz_convert("Asia/Shanghai").tz_localize(None)'
    )


def mixed_offsets_message(apart: tuple[str, str], *, in_table: bool = True) -> str:
    """Error message for times whose offsets are those of several zones."""
    way = (
        'say the zone to read all in with zone="America/New_York" (--zone America/New_York)'
        if in_table
        else "convert all to the exchange's, with "
        'pd.to_datetime(x_timestamp, utc=True).tz_convert("America/New_York")'
    )
    return (
        f"the times have offsets from {apart[0]} to {apart[1]}, further apart than a change of "
        f"clocks moves them: {way}, or give each exchange's bars by themselves"
    )
