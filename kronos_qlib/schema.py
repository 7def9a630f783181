"""The schema: a bar's columns and a stamp's fields, in their order, with units."""

from __future__ import annotations

OPEN, HIGH, LOW, CLOSE, VOLUME, AMOUNT = range(6)
"""Positions in the last axis of every bar array; the order the checkpoints were trained on."""

BAR_COLUMNS = ("open", "high", "low", "close", "volume", "amount")
"""Prices in money per share, volume in shares, amount in money traded."""

PRICE_COLUMNS, SIZE_COLUMNS = BAR_COLUMNS[: CLOSE + 1], BAR_COLUMNS[VOLUME:]

TIME_FIELDS = ("minute", "hour", "weekday", "day", "month")
"""A stamp's fields in order: weekday counts from Monday 0, day is of the month, month from 1."""

LONG_COLUMNS = ("symbol", "date", *BAR_COLUMNS, "factor")
"""A long table of bars. Prices are adjusted (raw price x factor), volume is raw / factor, so that
price x volume stays money; amount is the money actually traded. This is Qlib's convention."""
