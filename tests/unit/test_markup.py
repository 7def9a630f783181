"""Hostile names in lines, in Markdown, in figures and on the page."""

import io
import re

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kronos_qlib.evaluation.compare.comparison import (
    Comparison,
    Signal,
    common_equity,
    compare_signals,
)
from kronos_qlib.evaluation.compare.comparison_text import comparison_text
from kronos_qlib.evaluation.compare.page import comparison_page
from kronos_qlib.evaluation.figures import new_figure
from kronos_qlib.evaluation.ranking.signal_figures import interval_figure
from kronos_qlib.evaluation.text_table import format_rows
from kronos_qlib.markup import figure_text, inline_markdown, markdown, one_line

HOSTILE = [
    "a|b",
    "a\nb",
    "# heading",
    "- item",
    "1. item",
    "`code`",
    "*bold* _em_ __b__ ~~s~~",
    "[text](javascript:alert(1))",
    "![x](https://evil.example/x.png)",
    "<script>alert(1)</script>",
    "</script><script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "https://evil.example www.evil.example",
    "&lt;b&gt;",
    "@someone",
    "$\\frac{1}{0}$",
    "\x1b[31mred\x1b[0m",
    "\u202eevil",
    "\ud800",
    "a\r\n\r\n# b",
    "%{y}<extra></extra>",
    "---",
]


def test_a_plain_name_stays_as_it_is():
    for name in (
        "kronos_zero_shot",
        "lightgbm",
        "kronos (before)",
        "SH600000",
        "沪深 300",
        "a-b.c",
    ):
        assert markdown(name) == inline_markdown(name) == one_line(name) == name


def test_names_in_markdown():
    assert markdown("a|b") == r"a\|b"
    assert markdown("# a\n# b") == r"\# a # b"
    assert markdown("- a") == r"\- a" and markdown("1. a") == r"1\. a"
    assert markdown("[a](b)") == r"\[a\](b)"
    assert markdown("<b>&@") == "&lt;b&gt;&amp;&#64;"
    assert markdown("a_b _c_ *d*") == r"a_b \_c\_ \*d\*"
    assert markdown("http://a www.b") == "http&#58;//a www&#46;b"
    assert one_line("a\x1b[31m\u202e\ud800b") == "a\ufffd[31m\ufffd\ufffdb"


@given(st.text(st.characters(), max_size=40))
def test_any_name_is_one_harmless_line(name):
    line = one_line(name)
    line.encode("utf-8")
    assert "\n" not in line and "\x1b" not in line
    shown = markdown(name)
    assert "<" not in shown and not re.search(r"(?<!\\)(\\\\)*[|`\[]", shown)
    assert not re.match(r"[-+=#]|\d+\.", shown)


@given(st.lists(st.text(max_size=10), min_size=2, max_size=2))
def test_a_cell_makes_no_other(names):
    lines = format_rows([["", "n"], names], markdown=True).split("\n")
    assert len(lines) == 3
    assert len(re.findall(r"(?<!\\)(?:\\\\)*\|", lines[2])) == 3
    assert len(format_rows([["", "n"], names]).split("\n")) == 3


def named(one: str, other: str) -> Comparison:
    days = pd.bdate_range("2022-07-01", periods=40, name="datetime")
    names = [f"S{number}" for number in range(8)]
    index = pd.MultiIndex.from_product([days, names], names=["datetime", "instrument"])
    rng = np.random.default_rng(0)
    label = pd.Series(rng.normal(size=len(index)), index)
    scores = {name: label + rng.normal(size=len(index)) for name in (one, other)}
    table = pd.DataFrame({"ic": [0.1, 0.2], "run_id": ["12345678"] * 2}, index=[one, other])
    reports = {}
    for name in (one, other):
        excess, bench = rng.normal(0, 0.01, (2, 40))
        money = {"net_return": excess + bench, "excess_return": excess, "bench": bench}
        reports[name] = pd.DataFrame(money, days)
    return Comparison(
        table=table.rename_axis("run"),
        signals=compare_signals({name: Signal(scores[name], label) for name in scores}),
        equity=common_equity(reports),
        settings=pd.DataFrame({one: {"Model": one}, other: {"Model": other}}),
        notes=(f"{one} is not in the tests: {other}.",),
    )


@pytest.mark.parametrize("name", [name for name in HOSTILE if name != "\ud800"])
def test_a_hostile_name_is_shown_and_does_nothing(name):
    found = named(name, "plain")
    terminal, marked = comparison_text(found), comparison_text(found, markdown=True)
    for text in (terminal, marked):
        assert "\x1b" not in text and "\u202e" not in text
    assert (
        "<script" not in marked and "<img" not in marked and "](" not in marked.replace("\\]", "")
    )
    usual = comparison_text(named("usual", "plain"), markdown=True)
    pattern = re.compile(r"^(#+ |\d+\. |- |\||[-=]{3})", re.MULTILINE)
    assert [each for each in pattern.findall(marked)] == [each for each in pattern.findall(usual)]

    page = comparison_page(found, name)
    page.encode("utf-8")
    body = page[page.index("<body>") :]
    usual_page = comparison_page(named("usual", "plain"), "usual")
    tags = re.compile(r"<(/?[a-z0-9]+)", re.IGNORECASE)
    assert tags.findall(body) == tags.findall(usual_page[usual_page.index("<body>") :])

    rows = pd.DataFrame({"mean": 0.1, "low": 0.0, "high": 0.2}, index=[name])
    interval_figure(rows, name, "mean").savefig(io.BytesIO())


def test_a_title_is_no_formula():
    """A run was lost when its experiment was called so: matplotlib could not read its title."""
    for name in HOSTILE:
        new_figure(name).savefig(io.BytesIO())
    assert figure_text("a $5") == r"a \$5"
