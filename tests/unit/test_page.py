"""The page of a comparison: whole, escaped, and asking nothing of a network."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from plotly.offline import get_plotlyjs

from kronos_qlib.evaluation.compare.comparison import (
    Comparison,
    Signal,
    common_equity,
    compare_signals,
)
from kronos_qlib.evaluation.compare.comparison_text import MEASURES, holding_rows
from kronos_qlib.evaluation.compare.page import comparison_page

RNG = np.random.default_rng(1)
DAYS = pd.bdate_range("2022-07-01", periods=40, name="datetime")
INDEX = pd.MultiIndex.from_product([DAYS, list("abcdefgh")], names=["datetime", "instrument"])
LABEL = pd.Series(RNG.normal(0, 0.02, len(INDEX)), INDEX)
RUNS = ["kronos", "<b>gbm</b>"]


@pytest.fixture(scope="module")
def comparison():
    scores = [LABEL + RNG.normal(0, 0.02, len(INDEX)), pd.Series(RNG.normal(size=320), INDEX)]
    net = RNG.normal(0, 0.01, (40, 2))
    reports = {
        name: pd.DataFrame(
            {"net_return": net[:, place], "excess_return": net[:, place], "bench": 0.0}, index=DAYS
        )
        for place, name in enumerate(RUNS)
    }
    table = pd.DataFrame({"ic": [0.1, np.nan], "run_id": ["1234567890", "x"]}, index=RUNS)
    return Comparison(
        table=table,
        signals=compare_signals(
            {name: Signal(score, LABEL) for name, score in zip(RUNS, scores, strict=True)}
        ),
        equity=common_equity(reports),
        settings=pd.DataFrame({name: ["90"] for name in RUNS}, index=["Lookback, bars"]),
        notes=("a note & more",),
    )


@pytest.fixture(scope="module")
def page(comparison):
    return comparison_page(comparison, "Kronos & LightGBM")


class Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))


def test_the_page_loads_nothing(page):
    tags = Tags()
    tags.feed(page)
    assert not [each for each in tags.found if {"src", "href"} & set(each[1])]
    assert not [tag for tag, _ in tags.found if tag in ("link", "iframe", "img", "object")]
    # The library speaks of addresses in its own text; nothing else on the page does.
    library = get_plotlyjs()
    assert page.count(library) == 1
    assert not re.findall(r"https?://|@import|url\(|cdn", page.replace(library, ""))
    policy = next(each for tag, each in tags.found if tag == "meta" and "http-equiv" in each)
    assert policy["content"].startswith("default-src 'none'")


def test_the_page_says_it_all(page):
    headings = re.findall(r"<h2>(.*?)</h2>", page)
    assert headings == [
        "What each run measured",
        "Equity after cost",
        "Excess over the benchmark, after cost",
        "Rank IC on the same rows",
        "Cumulative Rank IC",
        "Is the difference significant?",
        "Correlation of the signals",
        "What a blend adds",
        "What each run was asked for",
        "Notes and definitions",
    ]
    assert page.count('class="plotly-graph-div"') == 4
    assert "kronos has a daily Rank IC" in page and "is significant at 5%" in page
    assert "summed and not compounded" in page and "252 days to a year for all" in page
    assert "<td>-</td>" in page and "238 days" not in page
    assert "Neither order nor excess is significant" in page
    heading = re.findall(r"<thead><tr>(.*?)</tr></thead>", page)[0]
    assert heading.endswith("<th>benchmark</th>")


def test_every_table_has_a_hint_and_scrolls_by_itself(page):
    """On a phone the right half of a table lay beyond the edge, and nothing said so."""
    tags = Tags()
    tags.feed(page.replace(get_plotlyjs(), ""))
    tables = [place for place, (tag, _) in enumerate(tags.found) if tag == "table"]
    assert len(tables) == 6
    for place in tables:
        (outer, box), (before, hint) = tags.found[place - 1], tags.found[place - 2]
        assert outer == "div" and box["class"].startswith("wide") and box["tabindex"] == "0"
        assert before == "p" and hint["class"] == "hint"


def test_names_are_text_and_not_markup(page):
    assert "<b>gbm</b>" not in page.replace(get_plotlyjs(), "")
    assert "&lt;b&gt;gbm&lt;/b&gt;" in page and "a note &amp; more" in page


def test_a_lone_run_without_signal_or_backtest_still_has_a_page(comparison):
    table = comparison.table.iloc[:1]
    bare = Comparison(table=table, signals=None, equity=None, settings=pd.DataFrame())
    page = comparison_page(bare)
    assert "Nothing is tested" in page and 'class="plotly-graph-div"' not in page


def test_what_each_score_holds_stands_side_by_side(comparison):
    held = {
        RUNS[0]: pd.DataFrame(
            [[0.0123, 0.001, 0.02], [0.5, 0.4, 0.6], [0.01, -0.1, 0.1]],
            index=["rank_ic.rest", "exposure.size", "exposure.<sector>"],
            columns=["mean", "low", "high"],
        ),
        RUNS[1]: pd.DataFrame(
            [[-0.2, np.nan, np.nan], [0.0012, 0.0002, 0.002]],
            index=["exposure.size", "long_short_net"],
            columns=["mean", "low", "high"],
        ),
    }
    filled = replace(comparison, holdings=held)
    assert holding_rows(filled) == [
        ["", *RUNS],
        ["size", "+0.50 (significant)", "-0.20 (not tested)"],
        ["<sector>", "+0.01 (not significant)", "-"],
        ["Rank IC, styles taken out", "+0.0123 (significant)", "-"],
        ["Best less worst, after cost, bp a bar", "-", "+12.0 (significant)"],
    ]
    page = comparison_page(filled)
    assert "What each score holds" in page and "&lt;sector&gt;" in page
    assert holding_rows(comparison) == [], "older runs say nothing of it"
    assert "What each score holds" not in comparison_page(comparison)


def test_every_measure_can_be_written():
    for name, write in MEASURES.values():
        assert name and write("x" * 9 if name == "MLflow run" else 0.5)
