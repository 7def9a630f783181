"""What a run's score, and every signal kept beside it, knew of the returns that followed."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
import pandas as pd
from qlib.workflow.record_temp import ACRecordTemp, SignalRecord
from qlib.workflow.recorder import Recorder

from kronos_qlib.errors import ConfigError, UndefinedMetricError
from kronos_qlib.evaluation.ranking.day_tables import LEAST_PAIRS, full_days, to_wide
from kronos_qlib.evaluation.ranking.groups import (
    best_less_worst,
    group_returns,
    group_table,
    monotonicity,
)
from kronos_qlib.evaluation.ranking.information_coefficient import (
    SUMMARY,
    by_year,
    daily_ic,
    decay,
    exact_zero,
    paired_rank_ic,
    summarise,
    summarise_difference,
)
from kronos_qlib.evaluation.ranking.signal_figures import (
    autocorrelation_figure,
    decay_figure,
    group_figure,
    ic_figure,
)
from kronos_qlib.evaluation.ranking.signal_text import signal_page, signal_verdict
from kronos_qlib.evaluation.ranking.stability import coverage, rank_autocorrelation, top_turnover
from kronos_qlib.evaluation.ranking.uncertainty import by_day, daily_mean, fewest_days
from kronos_qlib.extras import require
from kronos_qlib.plugin.qlib_internals import data_folder
from kronos_qlib.plugin.records.artifacts import (
    count_signals,
    experiment_of,
    features_at,
    first_of_equals,
    frequency_of,
    load_needed,
    load_predictions,
    load_signals,
    load_task,
    saved_files,
)
from kronos_qlib.plugin.records.baseline_scores import baselines_at
from kronos_qlib.plugin.records.signal_rows import (
    baseline_metrics,
    neutralised,
    or_unknown,
    signal_row,
)
from kronos_qlib.plugin.records.style_report import (
    STYLE_FILES,
    STYLE_METRICS,
    sectors_of_task,
    style_report,
)
from kronos_qlib.plugin.runs.about_run import add_verdict, key_metrics
from kronos_qlib.plugin.task_sections import label_bars_of
from kronos_qlib.signals.past_bars import BASELINES, STYLES

logger = logging.getLogger(__name__)

HORIZONS = (1, 2, 5, 10)
"""Bars of the returns that the decay is measured on."""
LAGS = tuple(range(1, 11))
"""Bars between the scores whose order is compared."""

SIGNAL_REPORT_METRICS = (
    *(
        f"{kind}.{name}"
        for kind in ("ic", "rank_ic")
        for name in ("mean", "std", "ratio", "t", "low", "high")
    ),
    "rank_ic.days",
    "rank_ic.days_left_out",
    *(f"rank_ic.h{horizon}{end}" for horizon in HORIZONS for end in ("", "_t")),
    "spread",
    "spread_t",
    "monotonicity",
    "monotonicity_low",
    "monotonicity_high",
    "autocorrelation.lag1",
    "autocorrelation.lag5",
    "autocorrelation.lag10",
    "top_turnover",
    "coverage",
    "signals_tried",
    *(
        f"{before}{name}{after}"
        for name in ("momentum", "reversal", "low_volatility")
        for before, after in (
            ("baseline.", ".rank_ic"),
            ("baseline.", ".with_score"),
            ("rank_ic.less_", ""),
            ("rank_ic.less_", "_low"),
            ("rank_ic.less_", "_high"),
        )
    ),
    *(f"rank_ic.neutralised{end}" for end in ("", "_low", "_high")),
    *STYLE_METRICS,
)
"""What SignalReportRecord logs with its usual settings; see there. The baseline low_amount is not
among them: not every provider has what was traded."""


def later_return(price: str, delay: int, bars: int) -> str:
    """Qlib's expression of the return over some bars, from the price `delay` bars later."""
    return f"Ref({price}, -{delay + bars}) / Ref({price}, -{delay}) - 1"


FILES = (
    "summary.md",
    "daily_ic.parquet",
    "summary.csv",
    "by_year.csv",
    "by_horizon.csv",
    "groups.csv",
    "autocorrelation.csv",
    "signals.csv",
    "baselines.csv",
    "ic.png",
    "decay.png",
    "groups.png",
    "autocorrelation.png",
    *STYLE_FILES,
)


class SignalReportRecord(ACRecordTemp):
    """Measure a run's score against its label and against later returns, with errors.

    Works for any Qlib model whose run has pred.pkl and label.pkl, at any frequency. Of several
    times a day the mean is the day's, and means, errors and tests are of days. Metrics, of the
    label unless a horizon is named:

        ic.mean, ic.std, ic.ratio: mean of the daily Pearson correlation, its daily standard
            deviation, and mean / std, not annualised. `rank_ic.` is Spearman's.
        ic.t, ic.low, ic.high: the mean in standard errors that count the dependence of days; its
            95 % interval. One test: see `ranking.uncertainty.daily_mean`.
        rank_ic.days, rank_ic.days_left_out: days that have one, days that order nothing (see
            `evaluation.ranking.information_coefficient.daily_ic`).
        rank_ic.h5, rank_ic.h5_t: against the return from the close of the next bar over 5 bars,
            and its t, the overlap counted. `rank_ic.y2022`: of a calendar year.
        spread, spread_t: mean label of the best tenth less the worst tenth's, a return over the
            label's bars, before cost (of the outermost that hold a name, where many scores are
            equal).
        monotonicity, …_low, …_high: Spearman of the tenth's number and its mean return.
        autocorrelation.lag5: mean correlation of ranks with those of 5 bars before.
        top_turnover: share of the best tenth that is new at every bar.
        coverage: share of labelled names that have a score.
        signals_tried: how many different signals the run kept, its score included. The best of
            many looks good by luck: in signals.csv `p_holm` is each p-value after Holm's
            correction for that number.
        baseline.reversal.rank_ic, rank_ic.less_reversal, …_low, …_high, …_t: the Rank IC of a
            signal that costs nothing (of `signals.past_bars.BASELINES`, from Qlib's bars up to the
            score's), and what the score's is above it, day by day, on the rows that have both.
            `baseline.reversal.with_score`: mean rank correlation of the two.
        rank_ic.neutralised, …_low, …_high, …_t: of what is left of the day's ranks of the score
            after least squares on the ranks of all baselines; 0 for a score made of them alone.
            A t is not logged where there is no standard error.
        exposure.size, …_low, …_high: mean rank correlation of the score with a style (size,
            volatility, turnover, momentum, reversal, of `signals.past_bars.STYLES`); of `sector`,
            where the model's `signals.sectors` says them, the adjusted share of variance between
            sectors. attributed.NAME: what that style earned of the book of the score's ranks, a
            return over a bar before cost; `attributed.rest` what is not of the styles.
        rank_ic.rest: of what the styles leave of the day's ranks; rank_ic.not_styles: the share
            of the ranks' variance that it is. rank_ic.delayed: of the return one bar later, and
            rank_ic.lost_by_delay that less the Rank IC, paired.
        long_only_net, long_short_net: mean return over a bar, after `cost_bp`, of the best tenth
            over the mean of all names, and of the best less the worst. All with _low and _high.
        oracle_ic, oracle_rank_ic, oracle_share: where the provider's folder holds oracle.parquet
            (a simulated market: the label's true expected value), what the truth itself reaches on
            the rows that the score has, and the score's Rank IC as a share of it.

    The first paragraph of summary.md is the run's description in MLflow, and the three of
    `about_run.KEY_METRICS` among the above are logged once more under names that come first.

    Leaves FILES in the folder `signal_report` of the run, summary.md to be read first;
    daily_ic.parquet has `ic`, `rank_ic` and `pairs` on datetime. Days on which fewer than
    LEAST_PAIRS names have a score are stray (a Saturday): the log counts them, and what compares
    neighbouring days passes over them.
    """

    artifact_path = "signal_report"
    needs_extra = "report"
    depend_cls = SignalRecord
    reads = ("pred.pkl", "label.pkl")
    leaves = FILES

    def __init__(
        self,
        recorder: Recorder,
        horizons: Sequence[int] = HORIZONS,
        groups: int = 10,
        top: float = 0.1,
        price: str = "$close",
        baselines: Sequence[str] = tuple(BASELINES),
        styles: Sequence[str] = tuple(STYLES),
        label_bars: int | None = None,
        cost_bp: float = 10.0,
        title: str | None = None,
        seed: int = 0,
        skip_existing: bool = False,
    ) -> None:
        """
        Args:
            horizons: bars of the returns of the decay.
            groups: parts that a day's names are divided into by score.
            top: best names whose turnover is measured: a share below 1, else a number.
            price: Qlib expression of what returns are taken of.
            baselines: what stands beside the score; none: []. They read whole bars, `$open` to
                `$close` and volume.
            styles: of `signals.past_bars.STYLES`, what the score may hold; none: []. They read the
                same bars.
            label_bars: over which the label's return runs, so that neighbouring days overlap; None
                reads the label's expression in the run's task, and takes Qlib's usual 1 where the
                task has none.
            cost_bp: basis points of the money traded that the books of the best and the worst pay.
            title: above the figures; None takes the experiment's name.
            seed: of the draws behind the interval of the monotonicity.
            skip_existing: Qlib's: do nothing where the run has the files already.
        """
        super().__init__(recorder=recorder, skip_existing=skip_existing)
        if not horizons or any(horizon < 1 for horizon in horizons):
            raise ConfigError(f"horizons count bars, each 1 or more, got {list(horizons)}")
        if label_bars is not None and label_bars < 1:
            raise ConfigError(f"label_bars must be 1 or more, got {label_bars}")
        if not 0 <= cost_bp < 1e4:
            raise ConfigError(f"cost_bp are basis points from 0, got {cost_bp}")
        strange = [name for name in baselines if name not in BASELINES]
        if strange:
            raise ConfigError(f"baselines are {', '.join(BASELINES)}, got {', '.join(strange)}")
        strange = [name for name in styles if name not in STYLES]
        if strange:
            raise ConfigError(f"styles are {', '.join(STYLES)}, got {', '.join(strange)}")
        self.horizons = tuple(sorted(set(horizons)))
        self.groups = groups
        self.top = top
        self.price = price
        self.baselines = tuple(baselines)
        self.styles = tuple(styles)
        self.label_bars = label_bars
        self.cost_bp = cost_bp
        self.title = title
        self.seed = seed

    def list(self) -> list[str]:
        """Files of the record."""
        return [*self.leaves]

    def check(self, include_self: bool = False, parents: bool = True) -> None:
        """Qlib's, of the record's own files."""
        # Qlib's generate() would forgive a missing file; `_generate` names it and raises.
        super().check(include_self=include_self, parents=False)

    def _generate(self, *args: object, **kwargs: object) -> dict[str, object]:
        who = type(self).__name__
        pred = load_predictions(self.recorder, who)
        label = load_needed(
            self.recorder, "label.pkl", reader=who, writer="KronosSignalRecord"
        ).iloc[:, 0]
        score, labels = to_wide(pred.iloc[:, 0]), to_wide(label)
        whole = full_days(score)
        if len(whole) < len(score):
            logger.warning(
                "%d of %d days have fewer than %d scores and are left out",
                len(score) - len(whole),
                len(score),
                LEAST_PAIRS,
            )
        task = load_task(self.recorder)
        overlap = self.label_bars or label_bars_of(task)
        how = {"horizon": overlap}

        daily = daily_ic(score, labels)
        self._refuse_short(daily, overlap)
        found = {name: summarise(daily[name], **how) for name in ("ic", "rank_ic")}
        years = by_year(daily["rank_ic"], **how)
        by_horizon, returns = self._later_returns(pred.index, overlap)
        horizons = decay(score, by_horizon)
        parted = group_returns(score, labels, self.groups)
        groups = group_table(parted, **how)
        order = monotonicity(parted, seed=self.seed, **how)
        spread = best_less_worst(parted)
        apart = daily_mean(spread, label_bars=overlap, name="the spread")
        memory = rank_autocorrelation(whole, [lag for lag in LAGS if lag < len(whole)])
        renewed = float(top_turnover(whole, self.top).mean())
        signals, tried = self._signal_table(pred, labels, **how)
        known = self._from_bars(pred.iloc[:, 0])
        beside, differences = self._beside_baselines(pred.iloc[:, 0], known, labels, **how)
        if len(beside):
            rows = beside.assign(kind="baseline").reindex(columns=list(signals))
            signals = pd.concat([signals, rows]).rename_axis("signal")

        metrics = {
            f"{kind}.{name}": found[kind][name]
            for kind in found
            for name in ("mean", "std", "ratio", "t", "low", "high")
        }
        metrics["rank_ic.days"] = found["rank_ic"]["days"]
        metrics["rank_ic.days_left_out"] = found["rank_ic"]["left_out"]
        for horizon, row in horizons.iterrows():
            metrics[f"rank_ic.h{horizon}"] = row["mean"]
            metrics[f"rank_ic.h{horizon}_t"] = row["t"]
        metrics |= {f"rank_ic.y{year}": mean for year, mean in years["mean"].dropna().items()}
        metrics |= {"spread": apart.mean, "spread_t": apart.t}
        metrics |= dict(
            zip(("monotonicity", "monotonicity_low", "monotonicity_high"), order, strict=True)
        )
        alike = memory["mean"].dropna().to_dict()
        metrics |= {f"autocorrelation.lag{lag}": alike[lag] for lag in (1, 5, 10) if lag in alike}
        metrics |= {
            "top_turnover": renewed,
            "coverage": coverage(score, labels),
            "signals_tried": float(count_signals(pred, load_signals(self.recorder))),
            **self._against_oracle(pred, labels, score),
        }
        metrics |= baseline_metrics(beside, differences)

        title = self.title or experiment_of(self.recorder)
        styles = style_report(
            title,
            whole,
            known[[name for name in self.styles if name in known]],
            returns,
            label_bars=overlap,
            top=1 / self.groups,
            cost_bp=self.cost_bp,
            sectors=sectors_of_task(task),
        )
        metrics |= styles.metrics
        tables = {
            "summary": pd.DataFrame.from_dict(
                {**found, **differences}, orient="index", columns=list(SUMMARY)
            ).rename_axis("correlation"),
            "by_year": years,
            "by_horizon": horizons,
            "groups": groups,
            "autocorrelation": memory,
            "signals": signals,
            "baselines": beside,
            **styles.tables,
        }
        page = signal_page(
            title,
            tables["summary"],
            years,
            horizons,
            signals,
            beside,
            {name: BASELINES[name].definition for name in BASELINES},
            tried=tried,
            more=styles.page,
        )
        figures = {
            "ic": ic_figure(daily["rank_ic"], found["rank_ic"], f"{title}: Rank IC of the score"),
            "decay": decay_figure(horizons, f"{title}: how long the score knows"),
            "groups": group_figure(groups, order, f"{title}: returns by score"),
            "autocorrelation": autocorrelation_figure(
                memory, renewed, f"{title}: how fast the order changes"
            ),
            "styles": styles.figure,
        }
        with saved_files(self) as folder:
            daily.to_parquet(folder / "daily_ic.parquet")
            styles.days.to_parquet(folder / "style_days.parquet")
            (folder / "summary.md").write_text(page, encoding="utf-8")
            for name, table in tables.items():
                table.to_csv(folder / f"{name}.csv", float_format="%.6g")
            for name, figure in figures.items():
                figure.savefig(folder / f"{name}.png")
        metrics = {name: float(value) for name, value in metrics.items()}
        self.recorder.log_metrics(**metrics, **key_metrics(metrics))
        verdict = signal_verdict(tables["summary"], years, signals, beside, tried=tried)
        add_verdict(self.recorder, "signal", verdict)
        return {}

    def _refuse_short(self, daily: pd.DataFrame, overlap: int) -> None:
        """Say what is lacking before anything is measured, and which setting would help."""
        longest = max(*self.horizons, overlap)
        ranked = daily["rank_ic"].dropna()
        known = len(by_day(ranked))
        # A horizon of h bars loses up to h - overlap of these days where the calendar ends.
        needed = fewest_days(longest, len(ranked), known)
        if 0 < known < needed:
            raise UndefinedMetricError(
                f"SignalReportRecord: {known} days of {len(by_day(daily))} have a Rank IC, and "
                f"{needed} are the fewest for a standard error of returns over {longest} bars; "
                "test on a longer segment"
                + (
                    ", or set shorter `horizons`"
                    if known >= fewest_days(overlap, len(ranked), known)
                    else ""
                )
            )

    def _from_bars(self, score: pd.Series[float]) -> pd.DataFrame:
        """Baselines and styles at the rows that have a score."""
        index = score[np.isfinite(score)].sort_index().index
        kinds = [*dict.fromkeys([*self.baselines, *self.styles])]
        return baselines_at(index, kinds) if kinds else pd.DataFrame(index=index)

    def _beside_baselines(
        self, score: pd.Series[float], known: pd.DataFrame, labels: pd.DataFrame, **how: int
    ) -> tuple[pd.DataFrame, dict[str, dict[str, float]]]:
        """baselines.csv, a row each, and rows of summary.csv: differences, and what is left."""
        score = score[np.isfinite(score)].rename("score").sort_index()
        known = known[[name for name in self.baselines if name in known]]
        if known.empty:
            return pd.DataFrame(), {}
        wide, rows, found = to_wide(score), {}, {}
        everything = int(daily_ic(wide, labels)["pairs"].sum())
        for name in known:
            other = to_wide(known[name])
            daily = paired_rank_ic(wide, other, labels)
            pairs = int(daily["pairs"].sum())
            both = daily[["score", "other"]].dropna()
            rows[name] = {
                **signal_row(other, wide, labels, self.top, **how),
                "score_rank_ic": float(both["score"].mean()),
                "pairs": pairs,
                "pairs_left_out": everything - pairs,
            }
            found[f"rank_ic.less_{name}"] = or_unknown(
                f"the score less {name}",
                summarise_difference,
                daily["score"],
                daily["other"],
                how=how,
            )
        left = neutralised(score, known)
        daily = daily_ic(to_wide(left), labels) if len(left) else pd.DataFrame({"rank_ic": []})
        made_of_them = len(left) and (left == 0).all() and daily["pairs"].max() > known.shape[1] + 1
        found["rank_ic.neutralised"] = (
            exact_zero(len(by_day(daily)), 0)
            if made_of_them
            else or_unknown("what baselines leave", summarise, daily["rank_ic"], how=how)
        )
        return pd.DataFrame.from_dict(rows, orient="index").rename_axis("baseline"), found

    def _later_returns(
        self, index: pd.Index, overlap: int
    ) -> tuple[dict[int, pd.DataFrame], dict[str, pd.DataFrame]]:
        """Returns from the close of the bar after the score, days by names.

        By horizon, and by the names that `style_report` reads; Qlib is asked once for all.
        """
        by_horizon = {horizon: later_return(self.price, 1, horizon) for horizon in self.horizons}
        named = {
            "label": later_return(self.price, 1, overlap),
            "label_delayed": later_return(self.price, 2, overlap),
            "bar": later_return(self.price, 1, 1),
            "bar_delayed": later_return(self.price, 2, 1),
        }
        each = list(dict.fromkeys([*by_horizon.values(), *named.values()]))
        frame = features_at(index, each, frequency_of(index))
        found = {text: to_wide(frame.iloc[:, place]) for place, text in enumerate(each)}
        return (
            {horizon: found[text] for horizon, text in by_horizon.items()},
            {name: found[text] for name, text in named.items()},
        )

    def _signal_table(
        self, pred: pd.DataFrame, labels: pd.DataFrame, **how: int
    ) -> tuple[pd.DataFrame, int]:
        """A row per kept signal, the score first: what it knew, how it moves, what it resembles.

        The other is how many different signals the p-values were corrected for.
        """
        kept = load_signals(self.recorder)
        columns = {"score": pred.iloc[:, 0]}
        if kept is not None:
            columns |= {str(name): kept[name] for name in kept if name != "score"}
        score = to_wide(columns["score"])
        rows = {
            name: signal_row(to_wide(values), score, labels, self.top, **how)
            for name, values in columns.items()
        }
        table = pd.DataFrame.from_dict(rows, orient="index").rename_axis("signal")
        # A signal that is another under a new name, as the score often is, is no second trial.
        first = first_of_equals(pred, kept)
        tried = table.loc[[name for name in table.index if first[name] == name], "p"].dropna()
        multitest = require("statsmodels.stats.multitest", for_="the correction for signals tried")
        holm = multitest.multipletests(tried, method="holm")[1]
        corrected = pd.Series(holm, index=tried.index)
        corrected = corrected.reindex([first[name] for name in table.index]).set_axis(table.index)
        table.insert(list(table).index("p") + 1, "p_holm", corrected)
        table.insert(0, "kind", ["score", *["signal"] * (len(table) - 1)])
        return table, len(tried)

    def _against_oracle(
        self, pred: pd.DataFrame, labels: pd.DataFrame, score: pd.DataFrame
    ) -> dict[str, float]:
        """What a perfect model reaches on the rows of the score; nothing for a real market."""
        path = data_folder(frequency_of(pred.index)) / "oracle.parquet"
        if not path.is_file():
            return {}
        truth = to_wide(pd.read_parquet(path).iloc[:, 0])
        truth = truth.reindex(index=score.index, columns=score.columns)
        both = truth.notna() & score.notna()
        if not both.to_numpy().any():
            raise UndefinedMetricError(f"{path} and the score have no row in common")
        truth, ours = truth.where(both), score.where(both)
        daily = daily_ic(truth, labels)
        if daily["rank_ic"].isna().all():
            logger.info("%s is the same for all names: nothing was planted to be found", path)
            return {}
        best = float(daily["rank_ic"].mean())
        metrics = {"oracle_ic": float(daily["ic"].mean()), "oracle_rank_ic": best}
        if best <= 0:
            logger.warning(
                "The truth's own Rank IC is %.4f over these days: too few for a share of it",
                best,
            )
            return metrics
        return {**metrics, "oracle_share": float(daily_ic(ours, labels)["rank_ic"].mean()) / best}
