"""One tree of errors. A message says what was expected, what came, and what to do."""

from __future__ import annotations

import reprlib
from collections.abc import Sequence

_SHORT = reprlib.Repr()
_SHORT.maxlevel = 2
_SHORT.maxstring = _SHORT.maxother = 80


def short_repr(value: object) -> str:
    """What came, for a message: its repr, cut short however long or deep it is."""
    return _SHORT.repr(value)


def printable(name: str) -> str:
    """A name out of a file, for a message: as it is, if a terminal can show it."""
    return name if name.isprintable() and 0 < len(name) <= 300 else short_repr(name)


def some_of(items: Sequence[object], most: int = 3, between: str = ", ") -> str:
    """The first few of several, and how many more there are: "a, b, c and 4 more"."""
    shown_ones = between.join(map(str, items[:most]))
    if len(items) <= most:
        return shown_ones
    return f"{shown_ones}{between.rstrip(' ,')} and {len(items) - most} more"


def in_words(names: Sequence[str]) -> str:
    """One or more names as a sentence lists them: "a", "a, b and c"."""
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


class KronosError(Exception):
    """Everything this package raises on purpose; catch this to catch it all."""


class ConfigError(KronosError, ValueError):
    """A setting is unknown, or its value cannot work."""


class RefusedRunError(ConfigError):
    """A run that would fail later, refused before it begins: `problems`, a line for each."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        if len(self.problems) == 1:
            super().__init__(f"this run would fail: {self.problems[0]}")
        else:
            head = f"this run would fail for {len(self.problems)} reasons:"
            super().__init__("\n- ".join((head, *self.problems)))

    def __reduce__(self) -> tuple[type, tuple[tuple[str, ...]]]:
        return type(self), (self.problems,)


class BarDataError(KronosError, ValueError):
    """Bars break a promise of the schema: order, gaps, NaN, high below low."""


class CalendarError(KronosError, ValueError):
    """Timestamps are missing, out of order, or not to be had for the bars to come."""


class CheckpointError(KronosError, RuntimeError):
    """A checkpoint is missing, unreachable, or does not fit the network or its partner."""


class CheckpointConfigError(CheckpointError, ConfigError):
    """The `config.json` of a checkpoint has an unknown key or a value that cannot work."""


class TrainingError(KronosError, RuntimeError):
    """Training cannot start or go on: no windows, or a loss that is not finite."""


class UndefinedMetricError(KronosError, ValueError):
    """A backtest report for which a metric has no value: no trade, no loss, a hole."""


class MissingDependencyError(KronosError, ImportError):
    """A package of an extra is needed and not installed; the message names extra and command."""


class MissingArtifactError(KronosError, RuntimeError):
    """A record needs what an earlier record was to leave behind."""


class UnsafeArtifactError(MissingArtifactError):
    """A run's file can be read only by running code that its writer put there: it is not read."""


class LookaheadError(KronosError, RuntimeError):
    """A score changes when bars that come after it do: it has seen the future."""


class LedgerError(KronosError, RuntimeError):
    """The ledger is not as it was left, or an entry cannot be appended to it now."""


class NoBarsError(BarDataError):
    """A table has no row."""


class DailyError(KronosError, RuntimeError):
    """A step of a day failed: what earlier steps did stays, and the next start goes on with it."""


class DailyBusyError(DailyError):
    """Another process works on the same days."""


class JobError(KronosError, RuntimeError):
    """Blocks of a job failed, or it cannot begin or go on: what is done stays for a later start."""


class JobBusyError(JobError):
    """Another process works on the same job."""


class NothingToScoreError(BarDataError):
    """A segment in which no window or row can be scored."""
