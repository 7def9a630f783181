"""What a model's scores are, and which signals are kept beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kronos_qlib.settings import (
    check_known,
    from_mapping,
    require,
)


@dataclass(frozen=True, kw_only=True)
class EnsembleConfig:
    """Which readings of a window have their paths pooled: every lookback at every temperature."""

    lookbacks: Sequence[int] | None = None
    """Last bars of the window that a member sees, normalised by these; a window with fewer is seen
    whole. None: the window as it is."""
    temperatures: Sequence[float] | None = None
    """None: that of `sampling`. Each member draws `sampling.paths` paths."""

    def __post_init__(self) -> None:
        for name, least in (("lookbacks", 2), ("temperatures", 0)):
            values = getattr(self, name)
            if values is None:
                continue
            kinds = (int,) if name == "lookbacks" else (int, float)
            require(
                isinstance(values, (list, tuple))
                and len(values) == len(set(values)) > 0
                and all(
                    isinstance(value, kinds) and not isinstance(value, bool) and value >= least
                    for value in values
                ),
                f"ensemble.{name} must be a list of different numbers of at least {least}, got "
                f"{values!r}",
            )


@dataclass(frozen=True, kw_only=True)
class SectorsConfig:
    """Where `neutralise: [sector]` finds sectors. They do not change with time: as known today."""

    file: str | None = None
    """A CSV or Parquet file with the columns "instrument" and "sector"."""
    of: Mapping[str, str] | None = None
    """Instrument to sector, in the workflow file itself."""
    unknown: str = "error"
    """An instrument without a sector is an "error", or one of a "group" of such."""

    def __post_init__(self) -> None:
        check_known(self, unknown=("error", "group"))
        require((self.file is None) != (self.of is None), "sectors takes either `file` or `of`")


@dataclass(frozen=True, kw_only=True)
class SignalsConfig:
    """What a model's scores are, and which signals are kept beside them."""

    score: str | None = None
    """A signal, such as "expected_return" or "quantile@0.05", or "alpha". None: "alpha" with an
    alpha head, otherwise "expected_return"."""
    keep: Sequence[str] | None = None
    """Signals of `KronosModel.signals`. None: with an alpha head what it says, and no path is
    drawn; otherwise all that take no number, and three that do."""
    ensemble: EnsembleConfig | None = None
    """Fields of `EnsembleConfig`."""
    shape: Sequence[str | Mapping[str, Any]] = ()
    """Steps that turn the signal named by `score` into the score, see `signals.shaping`: winsorise,
    neutralise, rank, zscore, smooth."""
    sectors: SectorsConfig | None = None
    """Fields of `SectorsConfig`."""

    def __post_init__(self) -> None:
        for name in ("keep", "shape"):
            value = getattr(self, name)
            require(
                value is None or isinstance(value, (list, tuple)),
                f"{name} must be a list, got {value!r}",
            )
        require(self.shape is not None, "shape must be a list, got None")
        for name, kind in (("ensemble", EnsembleConfig), ("sectors", SectorsConfig)):
            value = getattr(self, name)
            if value is not None and not isinstance(value, kind):  # a mapping in a file
                made: Any = from_mapping(kind, value, where=name)
                object.__setattr__(self, name, made)
