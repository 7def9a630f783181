"""Bars that break a rule: what is done with them, which were left out, and the error for others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from kronos_qlib.data.rules import (
    FLOAT32_SLACK,
    INCOMPLETE,
    INVALID,
    PRICES,
    REPEATED,
    RULES,
    UNTRADED,
    find_faults,
)
from kronos_qlib.errors import BarDataError, ConfigError, some_of
from kronos_qlib.schema import BAR_COLUMNS

Floats = npt.NDArray[np.float32]


Ints = npt.NDArray[np.int64]


Incomplete = Literal["error", "skip"]
"""What to do with a bar that has some of its values and lacks others."""


Invalid = Literal["error", "skip", "keep"]
"""What to do with a bar whose numbers cannot be: a price of 0 or less, high below low, high and low
that do not span open and close, a negative volume or amount."""


Untraded = Literal["skip", "error", "keep"]
"""What to do with a bar on whose day nothing traded, see `rules.is_untraded` and `is_repeated`;
"keep" keeps those that have all their values."""


EXAMPLES = 3
"""Instruments that a message names."""


@dataclass(frozen=True, eq=False)
class LeftOut:
    """Bars that were there and were left out, by instrument and then by time.

    owners: (L,) places in the table's instruments. places: (L,) in its calendar.
    rules: (L,) places in `rules.RULES` of the first rule that each breaks.
    """

    owners: Ints = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    places: Ints = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    rules: Ints = field(default_factory=lambda: np.zeros(0, dtype=np.int64))

    def __len__(self) -> int:
        return len(self.owners)

    def of(self, number: int) -> range:
        """The entries of one instrument."""
        return range(*np.searchsorted(self.owners, [number, number + 1]).tolist())

    def counts(
        self, entries: range | None = None, start: int = 0, stop: int | None = None
    ) -> dict[str, int]:
        """How many of some entries, at places from `start` up to, without, `stop`, broke each rule.

        Of rules that none broke nothing.
        """
        those = slice(None) if entries is None else slice(entries.start, entries.stop)
        places = self.places[those]
        due = (places >= start) & (places < (np.inf if stop is None else stop))
        numbers = np.bincount(self.rules[those][due], minlength=len(RULES)).tolist()
        return {rule: count for rule, count in zip(RULES, numbers, strict=True) if count}


@dataclass(frozen=True)
class FaultPolicy:
    """What is done with bars that break a rule.

    Raises:
        ConfigError: as of `check_choices`.
    """

    incomplete: Incomplete = "error"
    invalid: Invalid = "error"
    untraded: Untraded = "skip"

    def __post_init__(self) -> None:
        check_choices(incomplete=self.incomplete, invalid=self.invalid, untraded=self.untraded)

    def action(self, rule: str) -> str:
        """What is done with bars that break one of `rules.RULES`: "skip", "error" or "keep"."""
        found: str = getattr(self, _setting_of(rule))
        return found

    @property
    def errors(self) -> list[int]:
        """Places in `rules.RULES` of the rules that a bar must not break."""
        return [place for place, rule in enumerate(RULES) if self.action(rule) == "error"]

    def broken_rules(self, bars: Floats, *, others_trade: bool) -> Ints:
        """(n,) place in `rules.RULES` of the first rule that each bar breaks; -1 where none.

        Args:
            bars: (n, 6) of one instrument, in order of time.
            others_trade: see `rules.is_untraded`.
        """
        flags = find_faults(bars, slack=FLOAT32_SLACK, others_trade=others_trade)
        if self.untraded == "keep":  # what has a price and a size at all
            kept = np.isfinite(bars).all(axis=1) & (bars[:, :PRICES] > 0).all(axis=1)
            flags[UNTRADED] &= ~kept
            flags[REPEATED][:] = False
        found = np.full(len(bars), -1, dtype=np.int64)
        for place, rule in reversed(list(enumerate(RULES))):
            if rule not in INVALID or self.invalid != "keep":
                found[flags[rule]] = place
        return found


def fault_error(
    where: str, rule: str, bar: Floats, alike: Mapping[str, int], others: int
) -> BarDataError:
    """The error to raise for bars that break a rule.

    Args:
        where: instrument and time of the first such bar.
        bar: (6,) its values.
        alike: bars that break this rule, by instrument.
        others: bars that break other rules.
    """
    more = f"; {count_of(others, 'bar')} under other rules" if others else ""
    return BarDataError(
        f"{where}: {_explain(rule, bar)} ({count_of(sum(alike.values()), 'such bar')} of "
        f"{some_of(list(alike), EXAMPLES)}{more}); correct the bars at their source, or leave such "
        f"bars out, as if suspended, with {_setting_of(rule)}='skip'"
    )


def _setting_of(rule: str) -> str:
    """The setting that decides about bars that break a rule."""
    if rule in INVALID:
        return "invalid"
    return "incomplete" if rule == INCOMPLETE else "untraded"


def check_choices(**settings: str) -> None:
    """Check settings of what to do with faulty bars.

    Raises:
        ConfigError: `incomplete`, `invalid` or `untraded` is none of its words.
    """
    known = {"incomplete": Incomplete, "invalid": Invalid, "untraded": Untraded}
    for name, value in settings.items():
        if value not in get_args(known[name]):
            words = " or ".join(repr(word) for word in get_args(known[name]))
            raise ConfigError(f"{name} must be {words}, got {value!r}")


def _explain(rule: str, bar: Floats) -> str:
    """What is wrong with one bar."""
    if rule == INCOMPLETE:
        lacking = [BAR_COLUMNS[place] for place in np.flatnonzero(~np.isfinite(bar))]
        if len(lacking) > 1 and lacking[-1] == "amount":  # it may be derived from the others
            lacking.pop()
        verb = "is" if len(lacking) == 1 else "are"
        return f"{', '.join(lacking)} {verb} missing or not finite beside values that are given"
    values = ", ".join(
        f"{name} {value:.7g}" for name, value in zip(BAR_COLUMNS, bar.tolist(), strict=True)
    )
    return f"{rule}: {values}"


def count_of(number: int, what: str) -> str:
    """A number of things in words: "1 bar", "2 bars"."""
    return f"{number} {what}{'' if number == 1 else 's'}"
