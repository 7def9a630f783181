"""The report of a ledger: its entries, what came of them, and what was promised."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from qlib.data import D

from kronos_qlib.errors import ConfigError, KronosError, LedgerError, in_words, some_of
from kronos_qlib.evaluation.live.drift import Reference, drift_of
from kronos_qlib.evaluation.live.live_quality import LiveQuality, ewma_quantiles, live_quality
from kronos_qlib.evaluation.ranking.uncertainty import DailyMean
from kronos_qlib.ledger.entry import Entry
from kronos_qlib.ledger.ledger import Ledger
from kronos_qlib.ledger.verification import verify
from kronos_qlib.plugin.live.earned import earned_table
from kronos_qlib.plugin.live.recording import ORDERS, SCORES
from kronos_qlib.plugin.provider.faults import check_folder
from kronos_qlib.plugin.provider.reader import read_calendar
from kronos_qlib.plugin.records.baseline_scores import baselines_at
from kronos_qlib.plugin.registry.inputs import read_reference
from kronos_qlib.plugin.registry.promises import read_promise

BASELINES = ("reversal", "momentum")
"""Scores of past bars that stand beside the model's."""
DRIFT_DAYS = 20
"""Newest days whose scores and inputs are compared with the reference."""
BEFORE = pd.Timedelta(days=200)
"""Read before the first day: a volatility's past."""


def live_report(
    folder: Path | str,
    *,
    provider_uri: str,
    version: str | None = None,
    head: str | None = None,
) -> LiveQuality:
    """Join a ledger's entries with what came, and measure them.

    Args:
        folder: of the ledger.
        provider_uri: the folder of bars, as they are now.
        version: of the model whose days are looked at; None takes that of the newest scores.
        head: as of `verify`.

    Raises:
        ConfigError: there is no such ledger, folder or version, or no scores at all.
        LedgerError: the ledger is not as it was left: a report of it would say nothing.
    """
    found = verify(folder, head)
    if not found.is_whole:
        raise LedgerError(
            f"{found.faults[0].words} ({len(found.faults)} faults): a report of this ledger would "
            "say nothing; kronos-qlib ledger verify says what is wrong"
        )
    ledger, notes = Ledger(folder), list(found.notes)
    everything = valid_entries(ledger.entries(SCORES), notes)
    if not everything:
        raise ConfigError(f"{folder} has no scores that came before the market opened")
    scored = _of_version(everything, version, notes)
    newest = scored[-1].facts
    lacking = [name for name in ("freq", "horizon", "label", "label_bars") if name not in newest]
    if lacking:
        raise ConfigError(
            f"entry {scored[-1].number} does not say its {in_words(lacking)}: outcomes are joined "
            "with scores that `record_scores` (kronos-qlib daily) has written"
        )
    days = {entry.day for entry in scored}
    ordered = [entry for entry in valid_entries(ledger.entries(ORDERS), notes) if entry.day in days]
    _open(provider_uri, ordered)
    tables = pd.concat(
        {pd.Timestamp(entry.day): _scores_of(ledger, entry) for entry in scored},
        names=["datetime"],
    )
    calendar = pd.DatetimeIndex(read_calendar(str(newest["freq"])))
    horizon = int(newest["horizon"])
    labels, returns, closes = _outcomes(tables.index, newest, horizon)
    quantiles = tables[[name for name in tables if str(name).startswith("q")]].dropna()
    quantiles = quantiles.rename(columns=lambda name: float(str(name)[1:]))
    walk = None
    if len(quantiles.columns):
        index = pd.DatetimeIndex(quantiles.index.get_level_values("datetime")).unique()
        walk = ewma_quantiles(
            closes, index, horizon, [float(str(each)) for each in quantiles.columns]
        )
    money = None
    if ordered:
        try:
            money = earned_table([(entry, ledger.table(entry)) for entry in ordered], calendar)
            money["equal_weight"] = _alike(closes, tables.index, pd.DatetimeIndex(money.index))
        except ConfigError as problem:
            notes.append(f"What orders would have earned is not known: {problem}.")
    return live_quality(
        scores=tables["score"],
        labels=labels,
        label_bars=int(newest["label_bars"]),
        baselines=_baselines(tables.index, notes),
        quantiles=quantiles,
        returns=returns,
        ewma=walk,
        horizon=horizon,
        money=money,
        promised=_promises(newest, ordered, notes),
        drift=_drift(scored),
        notes=[*notes, _drift_note(scored)],
        about=_about(scored, found.head, newest),
    )


def valid_entries(entries: Sequence[Entry], notes: list[str]) -> list[Entry]:
    """Of each day the newest entry that came before the market opened, by day; notes on others."""
    valid: dict[Any, Entry] = {}
    for entry in entries:
        if not entry.is_late:
            valid[entry.day] = entry
    late = [f"{entry.kind} of {entry.day}" for entry in entries if entry.is_late]
    if late:
        notes.append(f"Left out, as they came after the market opened: {some_of(late, 5)}.")
    unknown = [entry.number for entry in entries if entry.opens is None]
    if unknown:
        notes.append(
            f"Of {len(unknown)} entries of {entries[0].kind} nobody said when the market opened "
            f"(`exchange` does): that they came before is not known (entry {some_of(unknown, 5)})."
        )
    return [valid[day] for day in sorted(valid)]


def _of_version(entries: list[Entry], version: str | None, notes: list[str]) -> list[Entry]:
    def named(entry: Entry) -> tuple[str, str]:
        model = entry.facts.get("model", {})
        return str(model.get("name")), str(model.get("version"))

    wanted = named(entries[-1]) if version is None else None
    chosen = [
        entry
        for entry in entries
        if (named(entry) == wanted if version is None else named(entry)[1] == version)
    ]
    if not chosen:
        known = sorted({named(entry)[1] for entry in entries})
        raise ConfigError(f"no scores of version {version}; the ledger has {', '.join(known)}")
    if len(chosen) < len(entries):
        notes.append(
            f"{len(entries) - len(chosen)} days of other models or versions are left out "
            "(--model-version names another)."
        )
    return chosen


def _scores_of(ledger: Ledger, entry: Entry) -> pd.DataFrame:
    return ledger.table(entry).set_index("instrument")


def _open(provider_uri: str, ordered: Sequence[Entry]) -> None:
    """Open Qlib on the bars, in the region that orders were made in."""
    import qlib

    from kronos_qlib.plugin.runs.quiet import quiet_libraries

    quiet_libraries()
    check_folder(Path(provider_uri).expanduser())
    region = str(ordered[-1].facts.get("region", "us")) if ordered else "us"
    qlib.init(
        provider_uri=provider_uri,
        region=region,
        skip_if_reg=False,
        clear_mem_cache=True,
        logging_level="WARNING",
    )


def _outcomes(
    index: pd.Index, facts: Mapping[str, Any], horizon: int
) -> tuple[pd.Series[float], pd.Series[float], pd.DataFrame]:
    """Labels, returns over the horizon, and all closes (days, names)."""
    names = sorted(index.get_level_values("instrument").unique())
    times = index.get_level_values("datetime")
    freq = str(facts["freq"])
    asked = [str(facts["label"]), f"Ref($close, -{horizon}) / $close - 1"]
    frame = D.features(names, asked, times.min(), times.max(), freq=freq)
    frame = frame.set_axis(["label", "came"], axis=1).swaplevel().reindex(index)
    closes = D.features(names, ["$close"], times.min() - BEFORE, None, freq=freq)["$close"]
    return frame["label"], frame["came"], closes.unstack("instrument")


def _alike(closes: pd.DataFrame, index: pd.Index, days: pd.DatetimeIndex) -> pd.Series[float]:
    """The mean return on each day of all names that are scored in the ledger."""
    names = index.get_level_values("instrument").unique()
    returns: pd.Series[float] = closes[list(names)].pct_change(fill_method=None).mean(axis=1)
    return returns.reindex(days)


def _baselines(index: pd.Index, notes: list[str]) -> pd.DataFrame | None:
    if index.get_level_values("datetime").nunique() < 2:
        return None  # one moment has no frequency
    try:
        return baselines_at(index, BASELINES)
    except KronosError as problem:
        notes.append(f"No baseline of scores: {problem}.")
        return None


def _promises(
    facts: Mapping[str, Any], ordered: Sequence[Entry], notes: list[str]
) -> dict[str, DailyMean]:
    found = {name: read_promise(each) for name, each in facts.get("promised", {}).items()}
    if any(entry.facts.get("weights") for entry in ordered):
        notes.append("Orders were weighed, and the backtest was TopK's: it promises no return.")
        found = {name: each for name, each in found.items() if "return" not in name}
    return {name: promise for name, promise in found.items() if promise is not None}


def _drift(entries: Sequence[Entry]) -> dict[str, float]:
    spreads: dict[str, Reference] = {
        name: read_reference(each) for name, each in entries[-1].facts.get("spreads", {}).items()
    }
    return drift_of(spreads, [entry.facts.get("counts", {}) for entry in entries[-DRIFT_DAYS:]])


def _drift_note(entries: Sequence[Entry]) -> str:
    days = min(len(entries), DRIFT_DAYS)
    return (
        f"Drift is of the newest {days} day{'s' if days != 1 else ''} with scores, all names "
        "together: names of one day move together, so of a few days it moves by chance."
    )


def _about(entries: Sequence[Entry], head: str, facts: Mapping[str, Any]) -> dict[str, str]:
    model = facts.get("model", {})
    return {
        "Model": f"{model.get('name')}, version {model.get('version')}, run {model.get('run')}",
        "Days": f"{len(entries)}, {entries[0].day} to {entries[-1].day}",
        "Head": head,
    }
