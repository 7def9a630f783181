"""The part of a signal report that a sceptic asks for next: styles, states, delay, books."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from kronos_qlib.evaluation.portfolio.paper_books import BOOKS, paper_books
from kronos_qlib.evaluation.ranking.conditions import by_state, known_terciles
from kronos_qlib.evaluation.ranking.day_tables import to_wide
from kronos_qlib.evaluation.ranking.exposure import attribution, daily_exposures
from kronos_qlib.evaluation.ranking.information_coefficient import (
    SUMMARY,
    daily_ic,
    summarise,
    summarise_difference,
    summarise_if_enough,
)
from kronos_qlib.evaluation.ranking.signal_figures import style_figure
from kronos_qlib.evaluation.ranking.style_text import Row, style_page
from kronos_qlib.plugin.records.signal_rows import or_unknown
from kronos_qlib.plugin.task_sections import mapping_of, value_at
from kronos_qlib.signals.past_bars import STYLES
from kronos_qlib.signals.shaping import read_sectors

logger = logging.getLogger(__name__)

MARKET = {"trend": "momentum", "turbulence": "volatility"}
"""Measures of the market, and the style whose mean over the day's names each is."""

STYLE_METRICS = (
    *(
        f"exposure.{name}{end}"
        for name in ("volatility", "momentum", "reversal")
        for end in ("", "_low", "_high")
    ),
    *(
        f"{name}{end}"
        for name in ("rank_ic.rest", "rank_ic.delayed", "rank_ic.lost_by_delay")
        for end in ("", "_low", "_high")
    ),
    *(f"{name}_net{end}" for name in BOOKS for end in ("", "_low", "_high")),
)
"""What is logged whatever the provider has; exposures of size and turnover need a volume."""

STYLE_FILES = (
    "exposures.csv",
    "attribution.csv",
    "conditions.csv",
    "books.csv",
    "style_days.parquet",
    "styles.png",
)


@dataclass(frozen=True)
class StyleReport:
    """What a signal report shows of styles, states, delay and books.

    tables: exposures, attribution, conditions and books, SUMMARY as columns. days: all of it by
    day. metrics: names and numbers that are known. page: Markdown sections. figure: styles.png.
    """

    tables: Mapping[str, pd.DataFrame]
    days: pd.DataFrame
    metrics: Mapping[str, float]
    page: str
    figure: Any


def style_report(
    title: str,
    score: pd.DataFrame,
    styles: pd.DataFrame,
    returns: Mapping[str, pd.DataFrame],
    *,
    label_bars: int,
    top: float,
    cost_bp: float,
    sectors: Mapping[str, str] | None = None,
) -> StyleReport:
    """Measure what a score holds, and when and at what price it is worth something.

    Args:
        title: above the figure.
        score: days by names, without stray days: books are held from each to the next.
        styles: a column each of STYLES that is known, on (datetime, instrument).
        returns: days by names, each from the close of the bar after the score unless it is
            delayed by one more: `label` and `label_delayed` over the label's bars, `bar` and
            `bar_delayed` over one.
        label_bars: bars of the label.
        top: share of the names on a side of a book.
        cost_bp: basis points of the money traded.
        sectors: of the names; None where the run does not say.
    """
    how = {"horizon": label_bars}
    wide = {str(name): to_wide(styles[name]).reindex(index=score.index) for name in styles}
    held = daily_exposures(score, wide, sectors)
    parted = attribution(score, returns["bar"], wide, sectors)
    left = parted if label_bars == 1 else attribution(score, returns["label"], wide, sectors)
    exposures = {str(name): summarise_if_enough(held[name]) for name in held}
    parts = {str(name): summarise_if_enough(parted.returns[name]) for name in parted.returns}
    daily = {
        "rank_ic": daily_ic(score, returns["label"])["rank_ic"],
        "delayed": daily_ic(score, returns["label_delayed"])["rank_ic"],
        "rest": left.rest_rank_ic,
    }
    both = pd.concat([daily["rank_ic"], daily["delayed"]], axis=1, join="inner").dropna()
    conditions = {
        ("all days", ""): _known("the Rank IC", daily["rank_ic"], **how),
        ("styles taken out", ""): _known("what styles leave", daily["rest"], **how),
        ("a bar later", ""): _known("the Rank IC a bar later", daily["delayed"], **how),
        ("a bar later", "less on time"): or_unknown(
            "what a delay costs", summarise_difference, both.iloc[:, 1], both.iloc[:, 0], how=how
        ),
    }
    market = {}
    for measure, style in MARKET.items():
        if style not in wide:
            continue
        market[measure] = known_terciles(wide[style].where(score.notna()).mean(axis=1))
        for state, row in by_state(daily["rank_ic"], market[measure], **how).items():
            conditions[(measure, state)] = row
    books: dict[tuple[str, str], pd.Series[float]] = {}
    for late, name in ((False, "bar"), (True, "bar_delayed")):
        found = paper_books(score, returns[name], top=top, cost_bp=cost_bp)
        for column in found:
            books[(str(column), "a bar later" if late else "on time")] = found[column]
    book_rows = {key: summarise_if_enough(series) for key, series in books.items()}

    tables = {
        "exposures": _table(exposures, ["style"]),
        "attribution": _table(parts, ["part"]),
        "conditions": _table(conditions, ["condition", "state"]),
        "books": _table(book_rows, ["book", "traded"]),
    }
    days = pd.concat(
        {
            "exposure": held,
            "attributed": parted.returns,
            "rank_ic": pd.DataFrame(daily),
            "market": pd.DataFrame(market),
            "book": pd.DataFrame({f"{book} {when}": it for (book, when), it in books.items()}),
        },
        axis=1,
        sort=True,  # some begin or end within the others' days
    )
    days.columns = pd.Index([".".join(map(str, pair)) for pair in days.columns.to_flat_index()])
    return StyleReport(
        tables=tables,
        days=days.rename_axis("datetime"),
        metrics=_metrics(exposures, parts, conditions, book_rows, parted.left),
        page=style_page(
            exposures,
            parts,
            conditions,
            book_rows,
            {name: STYLES[name].definition for name in wide},
            left=parted.left,
            top=top,
            cost_bp=cost_bp,
        ),
        figure=style_figure(
            held, tables["exposures"], tables["attribution"], f"{title}: what the score holds"
        ),
    )


def sectors_of_task(task: Mapping[str, Any]) -> dict[str, str] | None:
    """The sectors that a workflow's model is told of by `signals.sectors`; None where it is not.

    Raises:
        ConfigError: they are in a file that is missing or no table of sectors.
    """
    settings = mapping_of(value_at(task, "model", "kwargs", "signals", "sectors"))
    if isinstance(of := settings.get("of"), Mapping):
        return {str(name): str(sector) for name, sector in of.items()}
    return read_sectors(str(settings["file"])) if settings.get("file") else None


def _known(what: str, daily: pd.Series[float], **how: int) -> dict[str, float]:
    return or_unknown(what, summarise, daily, how={"horizon": 1, **how})


def _table(rows: Mapping[Any, Mapping[str, float]], names: list[str]) -> pd.DataFrame:
    table = pd.DataFrame(list(rows.values()), columns=list(SUMMARY), dtype=np.float64)
    keys = list(rows)
    table.index = (
        pd.MultiIndex.from_tuples(keys, names=names)
        if len(names) > 1
        else pd.Index(keys, name=names[0])
    )
    return table


def _metrics(
    exposures: Mapping[str, Row],
    parts: Mapping[str, Row],
    conditions: Mapping[tuple[str, str], Row],
    books: Mapping[tuple[str, str], Row],
    left: float,
) -> dict[str, float]:
    rows = {f"exposure.{name}": row for name, row in exposures.items()}
    rows |= {f"attributed.{name}": row for name, row in parts.items()}
    rows |= {
        "rank_ic.rest": conditions["styles taken out", ""],
        "rank_ic.delayed": conditions["a bar later", ""],
        "rank_ic.lost_by_delay": conditions["a bar later", "less on time"],
    }
    rows |= {f"{book}_net": books[f"{book}_net", "on time"] for book in BOOKS}
    found = {"rank_ic.not_styles": left}
    for name, row in rows.items():
        found |= {f"{name}{end}": row[column] for column, end in ENDS.items()}
    return {name: value for name, value in found.items() if np.isfinite(value)}


ENDS = {"mean": "", "low": "_low", "high": "_high"}
"""What of a summary is logged, and the end of its name."""
