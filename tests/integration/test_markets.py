"""Market profiles: what each holds, what is refused, and that they say what the templates ask."""

from __future__ import annotations

import ast
import datetime
import inspect
import math
import os
import textwrap
from dataclasses import asdict
from functools import lru_cache
from itertools import pairwise

import jinja2
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2 import meta

from kronos_qlib.cli.main import main
from kronos_qlib.errors import ConfigError
from kronos_qlib.plugin.workflows.markets import (
    DATES,
    PROFILE_KEYS,
    MarketProfile,
    as_yaml,
    read_market,
    variable_of,
)
from kronos_qlib.plugin.workflows.shipped import find_market, markets, workflows
from kronos_qlib.plugin.workflows.templates import load_yaml, quoted, render_template
from kronos_qlib.plugin.workflows.workflow_copy import own_workflow
from kronos_qlib.plugin.workflows.workflow_file import read_workflow

pytestmark = pytest.mark.integration

MINE = {
    "provider_uri": "data/mine",
    "region": "us",
    "benchmark": "MEAN",
    "train_start": "2013-01-02",
    "train_end": "2014-12-31",
    "valid_start": "2015-01-01",
    "valid_end": "2015-06-30",
    "test_start": "2015-07-01",
    "test_end": "2015-12-31",
    "open_cost": 0.0005,
    "close_cost": 0.0005,
}


@pytest.fixture(autouse=True)
def no_variables(monkeypatch):
    for name in [name for name in os.environ if name.startswith("KRONOS_")]:
        monkeypatch.delenv(name)


@pytest.mark.parametrize("name", markets())
def test_a_shipped_profile_says_everything(name):
    """A key left out would be the class' default, which nobody reads in the file."""
    text = markets()[name].read_text(encoding="utf-8")
    assert list(yaml.safe_load(text)) == list(PROFILE_KEYS)
    assert text.isascii() and max(map(len, text.splitlines())) <= 100
    profile = read_market(name)
    assert profile.bars_per_year > 0


def test_the_demo_profile_is_the_workflows_own_defaults():
    """Otherwise `qrun` on a file and `kronos-qlib run` of its name would be different runs."""
    for name, path in workflows().items():
        plain, profiled = read_workflow(name).config, read_workflow(name, "demo").config
        assert plain == profiled, path


def test_every_key_of_a_profile_is_a_variable_of_the_workflows():
    known = {variable_of(key) for key in PROFILE_KEYS}
    read = {}
    for name, path in workflows().items():
        text = path.read_text(encoding="utf-8")
        read[name] = meta.find_undeclared_variables(jinja2.Environment().parse(text))
    assert known <= set().union(*read.values())
    train = {variable_of("train_start"), variable_of("train_end")}
    beyond = {variable_of("beyond_calendar")}
    assert known - read["kronos_zero_shot"] == train
    assert known - read["lightgbm"] == beyond
    for name in ("kronos", "kronos_alpha", "kronos_lightgbm"):
        assert not known - read[name]


def test_hours_around_the_clock_make_a_year_of_8760():
    profile = read_market("crypto_1h")
    assert (profile.bars_per_year, profile.days_per_year) == (8760, 365)
    task = read_workflow("kronos_zero_shot", "crypto_1h").config["task"]
    assert task["bars_per_year"] == 8760 and task["days_per_year"] == 365
    scaled = {
        record["class"]: record["kwargs"]
        for record in task["records"]["of_paths"]
        if "kwargs" in record
    }
    assert scaled["PortfolioReportRecord"]["days_per_year"] == "<days_per_year>"
    assert scaled["SigAnaRecord"]["ann_scaler"] == "<bars_per_year>"


def test_what_a_profile_leaves_out_follows_from_the_rest():
    profile = MarketProfile(**MINE)
    assert profile.start == profile.train_start == "2013-01-02"
    assert profile.bars_per_year == profile.days_per_year == 252
    assert MarketProfile(**MINE, days_per_year=365).bars_per_year == 365
    with pytest.raises(ConfigError, match="how many bars of 5min has a year"):
        MarketProfile(**MINE, freq="5min")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"topkk": 3}, "no setting 'topkk'; did you mean 'topk'"),
        ({"valid_start": "2014-12-31"}, "train_end 2014-12-31 is not before valid_start.*overlap"),
        ({"test_start": "2015-06-30 10:30"}, "valid_end 2015-06-30 is not before test_start"),
        ({"train_end": "2012-01-01"}, "ends before it begins"),
        ({"start": "2013-01-03"}, "handler would begin after the segment"),
        ({"test_end": "31.12.2015"}, "test_end must be a date such as 2020-01-31, got '31.12"),
        ({"test_end": 20151231}, "test_end must be a date"),
        ({"test_end": "2015-13-01"}, "test_end must be a date"),
        ({"test_end": None}, "test_end must be a date"),
        ({"test_end": "2015-12-31T00:00+08:00"}, "without a time zone"),
        ({"topk": "many"}, "topk must be a number, got 'many'"),
        ({"topk": 2.5}, "topk must be a whole number"),
        ({"topk": True}, "topk must be a number"),
        ({"topk": 3, "n_drop": 5}, "n_drop lie between 1 and topk"),
        ({"open_cost": 5}, "open_cost is a fraction of the money traded"),
        ({"limit_threshold": 9.5}, "limit_threshold is a fraction"),
        ({"account": math.nan}, "account must be a number"),
        ({"region": "jp"}, "region is one of cn, us, tw"),
        ({"freq": "hourly"}, 'freq must be "day" or as "5min"'),
        ({"freq": "week"}, 'freq must be "day" or as "5min"'),
        ({"market": ["a", "b"]}, "market must be a text"),
        ({"benchmark": "A\x7f"}, "benchmark holds characters that do not show"),
        ({"benchmark": ""}, "benchmark must be a text"),
        ({"days_per_year": 0}, "days_per_year must be above 0"),
    ],
)
def test_what_cannot_work_is_named(changes, message, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(MINE | changes), encoding="utf-8")
    with pytest.raises(ConfigError, match=message) as refused:
        read_market(path)
    assert str(path) in str(refused.value)


def test_what_is_missing_is_named_at_once(tmp_path):
    path = tmp_path / "mine.yaml"
    few = {key: MINE[key] for key in ("provider_uri", "region", "train_start")}
    path.write_text(yaml.safe_dump(few), encoding="utf-8")
    with pytest.raises(ConfigError, match="lacks benchmark, train_end, valid_start"):
        read_market(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- 1", "must be a mapping"),
        ("", "must be a mapping"),
        ("a: [", "cannot be read"),
        ("task: {}", "is a workflow, not the profile"),
    ],
)
def test_a_file_that_is_no_profile_is_refused(text, message, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=message):
        read_market(path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("csi30", "no market 'csi30'; did you mean 'csi300'"),
        ("nowhere.yaml", "there is no file .*nowhere.yaml; the markets that come"),
        ("some/where", "there is no file .*where; the markets"),
        (".", "is a folder"),
    ],
)
def test_a_market_that_is_not_there_names_the_nearest(name, message):
    with pytest.raises(ConfigError, match=message):
        find_market(name)


def test_an_end_of_minute_bars_covers_its_day():
    """To Qlib's own handlers a bare date ends bars of minutes at its midnight: the day was lost."""
    minutes = MarketProfile(**MINE, freq="5min", bars_per_year=12096).variables()
    assert minutes["KRONOS_TEST_END"] == "2015-12-31 23:59:59"
    assert minutes["KRONOS_TEST_START"] == "2015-07-01"
    assert MarketProfile(**MINE).variables()["KRONOS_TEST_END"] == "2015-12-31"
    given_time = MINE | {"test_end": "2015-12-31 15:00"}
    timed = MarketProfile(**given_time, freq="5min", bars_per_year=12096).variables()
    assert timed["KRONOS_TEST_END"] == "2015-12-31 15:00:00"


@settings(max_examples=20)
@given(
    topk=st.integers(1, 500),
    account=st.floats(1, 1e15) | st.integers(1, 10**15),
    cost=st.floats(0, 0.0999),
    limit=st.none() | st.floats(1e-6, 1) | st.just(math.inf),
    folder=st.text(
        st.characters(codec="ascii", min_codepoint=32, max_codepoint=126), min_size=1
    ).filter(str.strip),
)
def test_values_survive_the_template(topk, account, cost, limit, folder):
    """Every value that a profile can hold comes out of a rendered workflow as it went in."""
    changed = {"topk": topk, "n_drop": 1, "account": account, "open_cost": cost}
    profile = MarketProfile(**MINE | changed | {"limit_threshold": limit, "provider_uri": folder})
    text = template()
    config = load_yaml(
        render_template(text, quoted(text, profile.variables()), find_market("us")), "it"
    )
    backtest = config["task"]["backtest"]
    assert (backtest["topk"], backtest["limit_threshold"]) == (topk, limit)
    assert backtest["account"] == account and backtest["open_cost"] == cost
    assert config["qlib_init"]["provider_uri"] == folder
    assert str(config["segments"]["test"][1]) == profile.test_end


@lru_cache
def template() -> str:
    return own_workflow("lightgbm")


def test_a_profile_is_printed_and_taken_back(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["workflow", "--market", "us", "--out", "mine.yaml"]) == 0
    assert read_market("mine.yaml") == read_market("us")
    assert main(["workflow", "--market", "us", "--out", "mine.yaml"]) == 2
    assert "mine.yaml exists" in capsys.readouterr().err


def test_a_line_stands_under_each_field():
    body = ast.parse(textwrap.dedent(inspect.getsource(MarketProfile))).body[0].body
    for field, line in pairwise(body):
        if isinstance(field, ast.AnnAssign):
            assert isinstance(line, ast.Expr), f"{field.target.id} has no line"


def test_dates_come_from_yaml_as_dates_or_texts():
    as_dates = {key: datetime.date.fromisoformat(MINE[key]) for key in DATES if key in MINE}
    assert MarketProfile(**MINE | as_dates) == MarketProfile(**MINE)
    assert asdict(MarketProfile(**MINE))["test_end"] == "2015-12-31"
    assert as_yaml("hold", 1.0) == "1" and as_yaml("x", True) == "true"
