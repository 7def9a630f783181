"""Runs of the owner's MLflow store as the page shows them: a list, a comparison, a ranked day."""

from __future__ import annotations

import math
import threading
import time
from collections import OrderedDict
from collections.abc import Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import pandas as pd

from kronos_qlib.errors import KronosError, MissingArtifactError
from kronos_qlib.evaluation.compare.comparison import Blend, Comparison, Equity, Pair, Signal
from kronos_qlib.evaluation.compare.comparison_text import DEFINITIONS, MEASURES
from kronos_qlib.evaluation.ranking.day_tables import to_wide
from kronos_qlib.evaluation.ranking.groups import group_returns
from kronos_qlib.evaluation.ranking.information_coefficient import daily_ic
from kronos_qlib.plugin.overview.day_ranking import KEY_SIGNALS, percentiles, stored_scores
from kronos_qlib.plugin.overview.run_list import list_runs
from kronos_qlib.plugin.runs.stored_runs import read_signal
from kronos_qlib.plugin.runs.tracking import find_run, open_tracking
from kronos_qlib.webui.schemas import (
    MOST_COMPARED,
    BlendRow,
    Compared,
    CompareRow,
    Contribution,
    Curve,
    Curves,
    PairTest,
    Runs,
    RunSummary,
    Universe,
    UniverseRow,
    Why,
)
from kronos_qlib.webui.work.forecast_answer import FieldError, fault_of, time_of

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

ROLLING_DAYS = 20
LAGS = range(11)
"""Days that a score is old in the decay of its Rank IC."""
REMEMBERED = 16
"""Answers that are kept, each by the runs that it is of, which never change."""

FRESH_SECONDS = 600.0
"""How long a day that was scored now is the newest: bars may come."""

Found = TypeVar("Found")


class RunViews:
    """Answers about the runs of one store, read without unpickling anything.

    Args:
        tracking_uri: of MLflow.
    """

    def __init__(self, tracking_uri: str) -> None:
        self.tracking_uri = tracking_uri
        self._client: MlflowClient | None = None
        self._known: OrderedDict[Hashable, tuple[float, Any]] = OrderedDict()
        self._lock = threading.Lock()

    def runs(self) -> Runs:
        """The newest finished runs; with the reason where there are none."""
        measures = {name: text for name, (text, _) in MEASURES.items() if name != "run_id"}
        try:
            found = list_runs(self._open())
        except KronosError as reason:
            return Runs(runs=[], measures=measures, reason=str(reason))
        return Runs(
            runs=[
                RunSummary(
                    run_id=one.run_id,
                    experiment=one.experiment,
                    name=one.experiment if one.is_latest else one.run_id[:8],
                    model=one.title or None,
                    finished=None
                    if one.finished is None
                    else one.finished.strftime("%Y-%m-%dT%H:%M:%SZ"),
                    metrics=dict(one.metrics),
                )
                for one in found
            ],
            measures=measures,
            reason=None if found else "no run in the store has finished: run a workflow first",
        )

    def named(self, given: Sequence[str]) -> list[str]:
        """Names of runs as they were asked for: one of these may hold commas, or several names."""
        names: list[str] = []
        for one in given:
            parts = [part for part in map(str.strip, one.split(",")) if part]
            names += [one] if len(parts) < 2 or self._is_experiment(one) else parts
        return names

    def known_comparison(self, names: Sequence[str]) -> Compared | None:
        """That of these runs, if it was made before."""
        known: Compared | None = self._remembered(("compare", *self._ids(names)))
        return known

    def compare(self, names: Sequence[str]) -> Compared:
        """The report of `kronos-qlib compare` as numbers.

        Raises:
            FieldError: a run is unknown, or they cannot be compared.
        """
        with fault_of("runs"):
            key = ("compare", *self._ids(names))
            known: Compared | None = self._remembered(key)
            return known or self._remember(key, self._compare(names))

    def known_universe(self, run: str | None, fresh: bool) -> Universe | None:
        """That of this run, if it was made before."""
        with fault_of("run"):
            known: Universe | None = self._remembered(
                ("universe", self._find(run).info.run_id, fresh)
            )
            return known

    def universe(self, run: str | None, fresh: bool) -> Universe:
        """One day, ranked: the newest that the run predicted, or the newest of its bars.

        Raises:
            FieldError: there is no such run, or it keeps no scores.
        """
        with fault_of("run"):
            found = self._find(run)
            answer = self._universe(found, fresh)
            key = ("universe", found.info.run_id, fresh)
            return self._remember(key, answer, FRESH_SECONDS if fresh else math.inf)

    def experiment(self, run: str | None) -> str:
        """The name for people of the run that `universe` ranks.

        Raises:
            FieldError: there is no such run.
        """
        with fault_of("run"):
            return str(self._open().get_experiment(self._find(run).info.experiment_id).name)

    def known_why(self, instrument: str, run: str, fresh: bool) -> Why | None:
        """Why this name stands where it does, if it was asked before."""
        with fault_of("run"):
            key = ("why", self._find(run).info.run_id, instrument, fresh)
        found: Why | None = self._remembered(key)
        return found

    def why(self, instrument: str, run: str, fresh: bool) -> Why:
        """What each input added to a name's score, on the day that `universe` ranks.

        Raises:
            FieldError: there is no such run or name, or its model cannot be explained.
        """
        from kronos_qlib.plugin.explain.reasons import reasons_of
        from kronos_qlib.plugin.explain.reasons_text import part_sentences, reasons_table
        from kronos_qlib.plugin.runs.newest_day import open_run

        with fault_of("run"):
            found = self._find(run)
            run_id = found.info.run_id
            day = None
            if not fresh:
                newest = stored_scores(self._open(), found, 1).history.index[-1]
                day = str(pd.Timestamp(newest))
            opened = open_run(run_id, tracking_uri=self.tracking_uri, day=day)
        with fault_of("instrument"):
            reasons = reasons_of(opened.model, opened.dataset, instrument, opened.day)
        table = reasons_table(reasons).sort_values(
            "contribution", key=abs, ascending=False, kind="stable"
        )
        words = [f"{name}: {part_sentences(part)}" for name, part in reasons.parts.items()]
        words += [f"{name}: {reason}" for name, reason in reasons.unexplained.items()]
        answer = Why(
            run=opened.experiment,
            run_id=run_id,
            instrument=instrument,
            day=time_of(opened.day, opened.day != opened.day.normalize()),
            method=", ".join(dict.fromkeys(part.method for part in reasons.parts.values())),
            score=reasons.score,
            rank=reasons.rank,
            names=reasons.names,
            contributions=[
                Contribution(
                    model=str(row["model"]),
                    feature=str(row["input"]),
                    kind=str(row["kind"]),
                    percentile=_number(row["percentile"]),
                    contribution=float(row["contribution"]),
                    left_out=None if pd.isna(row["left_out"]) else -float(row["left_out"]),
                )
                for row in table.to_dict("records")
            ],
            words=[*words, *reasons.notes],
        )
        key = ("why", run_id, instrument, fresh)
        return self._remember(key, answer, FRESH_SECONDS if fresh else math.inf)

    def _open(self) -> MlflowClient:
        from kronos_qlib.plugin.runs.quiet import quiet_libraries

        with self._lock:
            if self._client is None:
                quiet_libraries()
                self._client = open_tracking(self.tracking_uri)
            return self._client

    def _find(self, run: str | None) -> Run:
        client = self._open()
        if run is not None:
            return find_run(client, run)
        newest = list_runs(client, 1)
        if not newest:
            raise MissingArtifactError("no run in the store has finished: run a workflow first")
        return client.get_run(newest[0].run_id)

    def _is_experiment(self, name: str) -> bool:
        with fault_of("runs"):
            return self._open().get_experiment_by_name(name) is not None

    def _ids(self, names: Sequence[str]) -> list[str]:
        if not 1 <= len(names) <= MOST_COMPARED:
            raise FieldError("runs", f"name 1 to {MOST_COMPARED} runs, got {len(names)}")
        if len(set(names)) < len(names):
            raise FieldError("runs", "each run once, please")
        with fault_of("runs"):
            return [find_run(self._open(), name).info.run_id for name in names]

    def _remembered(self, key: Hashable) -> Any:
        with self._lock:
            if key not in self._known:
                return None
            until, answer = self._known[key]
            if time.monotonic() > until:
                del self._known[key]
                return None
            self._known.move_to_end(key)
            return answer

    def _remember(self, key: Hashable, answer: Found, seconds: float = math.inf) -> Found:
        with self._lock:
            self._known[key] = time.monotonic() + seconds, answer
            while len(self._known) > REMEMBERED:
                self._known.popitem(last=False)
        return answer

    def _compare(self, names: Sequence[str]) -> Compared:
        from kronos_qlib.plugin.runs.run_comparison import comparison_of

        client = self._open()
        # The name to show is the one that was asked for.
        runs = {name: find_run(client, name) for name in names}
        found = comparison_of(client, runs)
        signals: dict[str, Signal] = {}
        for name, run in runs.items():
            try:
                signals[name] = read_signal(client, run)
            except MissingArtifactError:
                continue  # a note of the comparison says so
        return compared_of(found, signals)

    def _universe(self, run: Run, fresh: bool) -> Universe:
        client = self._open()
        stored = stored_scores(client, run)
        experiment = client.get_experiment(run.info.experiment_id).name
        if not fresh:
            scores = stored.history.iloc[-1].dropna()
            ranked = scores.sort_index().sort_values(ascending=False, kind="stable")
            table = pd.DataFrame({"score": ranked})
            day, notes = stored.history.index[-1], []
            signals = stored.signals
        else:
            from kronos_qlib.plugin.runs.newest_day import open_run, score_opened

            newest = score_opened(open_run(run.info.run_id, tracking_uri=self.tracking_uri))
            table = newest.table.set_index("instrument")[["score", "last_bar", "age_days"]]
            day, notes = newest.day, list(newest.notes)
            signals = newest.frame.rename(columns={one: key for key, one in KEY_SIGNALS.items()})
            signals = signals[signals.columns.intersection(list(KEY_SIGNALS))]
        history = stored.history[stored.history.index < day]
        if fresh or len(history):
            history = pd.concat([history, pd.DataFrame(table["score"]).T.set_axis([day])]).tail(
                len(stored.history)
            )
        if not len(signals.columns):
            notes.append(
                "the model says a score alone, and no expected return, risk or chance"
                if fresh
                else "the run keeps a score alone, and no expected return, risk or chance"
            )
        is_intraday = bool(pd.Timestamp(day) != pd.Timestamp(day).normalize())
        return Universe(
            run=experiment,
            run_id=run.info.run_id,
            day=time_of(day, is_intraday),
            fresh=fresh,
            days=[time_of(one, is_intraday) for one in history.index],
            rows=_rows(table, history, signals),
            notes=notes,
        )


def _rows(table: pd.DataFrame, history: pd.DataFrame, signals: pd.DataFrame) -> list[UniverseRow]:
    share = percentiles(history, table["score"])
    columns = history.reindex(columns=table.index)
    others = signals.reindex(index=table.index, columns=list(KEY_SIGNALS))
    rows = []
    for place, (name, row) in enumerate(table.iterrows()):
        last_bar = row.get("last_bar")
        has_bar = last_bar is not None and not pd.isna(last_bar)
        rows.append(
            UniverseRow(
                rank=place + 1,
                instrument=str(name),
                score=float(row["score"]),
                percentile=_number(share.loc[str(name)]),
                sparkline=[_number(value) for value in columns.iloc[:, place]],
                **{key: _number(others.iloc[place][key]) for key in KEY_SIGNALS},
                last_bar=time_of(last_bar, False) if has_bar else None,
                age_days=int(row["age_days"]) if has_bar else None,
            )
        )
    return rows


def compared_of(found: Comparison, signals: Mapping[str, Signal]) -> Compared:
    """A comparison as the page draws it.

    Args:
        signals: of the runs that keep scores and labels, by the comparison's names.
    """
    shown = {
        name: text
        for name, (text, _) in MEASURES.items()
        if name in found.table and name != "run_id"
    }
    judged = found.signals
    rows = []
    for name, row in found.table.iterrows():
        mean = None if judged is None else judged.means.get(str(name))
        low, high = (None, None) if mean is None else mean.interval()
        rows.append(
            CompareRow(
                run=str(name),
                measures={key: _number(row[key]) for key in shown},
                rank_ic_low=low,
                rank_ic_high=high,
                excess_low=_number(row.get("excess_low")),
                excess_high=_number(row.get("excess_high")),
            )
        )
    equity = found.equity
    wealth = None if equity is None else _wealth(equity)
    daily = None if judged is None else judged.daily
    return Compared(
        rows=rows,
        measures=shown,
        equity=None if wealth is None else _curves(wealth),
        drawdown=None if wealth is None else _curves(wealth / wealth.cummax().clip(lower=1) - 1),
        rank_ic=None
        if daily is None
        else _curves(daily.rolling(ROLLING_DAYS, min_periods=ROLLING_DAYS // 2).mean()),
        rolling_days=ROLLING_DAYS,
        deciles=_deciles(signals),
        decay=_decay(signals),
        correlation=[]
        if judged is None
        else [[_number(one) for one in row] for row in judged.correlation.to_numpy()],
        signal_tests=[] if judged is None else [_test(pair) for pair in judged.pairs],
        return_tests=[] if equity is None else [_test(pair) for pair in equity.pairs],
        blends=[] if judged is None else [_blend(one) for one in judged.blends],
        notes=list(found.notes),
        definitions=list(DEFINITIONS),
    )


def _wealth(equity: Equity) -> pd.DataFrame:
    """Growth of 1, after cost, and the benchmark's."""
    return (1 + pd.concat([equity.net, equity.bench], axis=1)).cumprod()


def _deciles(signals: Mapping[str, Signal]) -> Curves | None:
    """Mean return, less the day's, of each tenth of the names, the highest scores last."""
    found = {}
    for name, signal in signals.items():
        try:
            daily = group_returns(to_wide(signal.score), to_wide(signal.label))
        except KronosError:
            continue  # fewer names than tenths, or no day with returns
        found[name] = daily.mean()
    return _curves_of(found, [str(number) for number in range(1, 11)])


def _decay(signals: Mapping[str, Signal]) -> Curves | None:
    """Mean Rank IC of the scores of some days before."""
    found = {}
    for name, signal in signals.items():
        score, label = to_wide(signal.score), to_wide(signal.label)
        found[name] = [daily_ic(score.shift(lag), label)["rank_ic"].mean() for lag in LAGS]
    return _curves_of(found, [str(lag) for lag in LAGS])


def _curves_of(found: Mapping[str, Any], axis: list[str]) -> Curves | None:
    if not found:
        return None
    curves = [
        Curve(name=name, values=[_number(one) for one in values]) for name, values in found.items()
    ]
    return Curves(days=axis, curves=curves)


def _curves(table: pd.DataFrame) -> Curves:
    days = [time_of(day, False) for day in table.index]
    columns = {str(name): values.to_numpy() for name, values in table.items()}
    found = _curves_of(columns, days)
    return found or Curves(days=days, curves=[])


def _test(pair: Pair) -> PairTest:
    low = high = difference = p_value = None
    if pair.difference is not None:
        low, high = pair.difference.interval()
        difference, p_value = pair.difference.mean, pair.difference.p
    return PairTest(
        one=pair.one,
        other=pair.other,
        difference=_number(difference),
        low=_number(low),
        high=_number(high),
        p_value=_number(p_value),
        reason=pair.reason or None,
    )


def _blend(blend: Blend) -> BlendRow:
    return BlendRow(members=list(blend.members), rank_ic=blend.rank_ic, test=_test(blend.test))


def _number(value: Any) -> float | None:
    """A number for JSON: None for what is missing or not finite."""
    if value is None or pd.isna(value):
        return None
    found = float(np.float64(value))
    return float(f"{found:.7g}") if math.isfinite(found) else None
