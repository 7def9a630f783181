"""What the repository promises outside the package: workflows, pins, hooks and the changelog."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from kronos_qlib.version import __version__

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
FORMS = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))
HOOKS = ROOT / ".pre-commit-config.yaml"


def text_of(path):
    return path.read_text(encoding="utf-8")


def pyproject():
    return tomllib.loads(text_of(ROOT / "pyproject.toml"))["project"]


def make_targets():
    return set(re.findall(r"^([a-z]+):", text_of(ROOT / "Makefile"), re.MULTILINE))


def runs_of(path):
    steps = [
        step for job in yaml.safe_load(text_of(path))["jobs"].values() for step in job["steps"]
    ]
    return [step["run"] for step in steps if "run" in step]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_names_what_is_there(path):
    found = yaml.safe_load(text_of(path))
    assert {"name", "jobs", "permissions"} <= set(found)
    assert found["permissions"] == {"contents": "read"}
    for job in found["jobs"].values():
        assert job["timeout-minutes"] <= 180
    asked = {
        target
        for run in runs_of(path)
        for words in re.findall(r"\bmake ((?:[a-z]+ ?)+)", run)
        for target in words.split()
    }
    # The site and its target come with the change that adds docs/.
    assert asked - make_targets() <= ({"docs"} if not (ROOT / "docs").exists() else set())


def test_every_promised_python_is_tested_on_every_system():
    low, high = re.fullmatch(r">=3\.(\d+),<3\.(\d+)", pyproject()["requires-python"]).groups()
    matrix = yaml.safe_load(text_of(ROOT / ".github/workflows/tests.yml"))["jobs"]["tests"][
        "strategy"
    ]["matrix"]
    assert matrix["python"] == [f"3.{minor}" for minor in range(int(low), int(high))]
    assert [name.partition("-")[0] for name in matrix["os"]] == ["ubuntu", "macos", "windows"]
    extremes = {one["dependencies"]: one for one in matrix["include"]}
    assert extremes["oldest"]["python"] == matrix["python"][0]
    assert (ROOT / extremes["oldest"]["constraints"]).is_file()
    assert extremes["newest"]["constraints"] == ""


def pins(name):
    lines = text_of(ROOT / name).splitlines()
    return dict(re.findall(r"^([\w.-]+)==([\w.]+)", "\n".join(lines), re.MULTILINE))


def normal(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def numbers(version):
    return [*map(int, version.split("."))] + [0] * (3 - version.count("."))


def test_the_oldest_pins_are_the_lower_bounds():
    """Bounds that nobody runs are wishes: numpy 1.24 was promised and could not be installed."""
    optional = pyproject()["optional-dependencies"]
    needed = [*pyproject()["dependencies"], *optional["train"], *optional["report"]]
    oldest = {normal(name): version for name, version in pins("constraints-oldest.txt").items()}
    for requirement in needed:
        name, bound = re.fullmatch(r"([\w.-]+)>=([\d.]+)", requirement).groups()
        assert numbers(oldest[normal(name)])[:2] == numbers(bound)[:2], requirement


def test_hooks_have_the_versions_of_the_pins():
    hooks = yaml.safe_load(text_of(HOOKS))
    assert {repo["repo"] for repo in hooks["repos"]} == {"local"}, "versions are the pins' own"
    ruff = [
        one
        for repo in hooks["repos"]
        for hook in repo["hooks"]
        for one in hook.get("additional_dependencies", [])
    ]
    assert set(ruff) == {f"ruff=={pins('constraints.txt')['ruff']}"}


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.name)
def test_an_issue_form_can_be_read(path):
    form = yaml.safe_load(text_of(path))
    if path.name != "config.yml":
        assert {"name", "description", "body"} <= set(form)
        assert any(part["type"] == "textarea" for part in form["body"])


def test_the_changelog_and_the_version_agree():
    """A release's heading is its version; before it, "Unreleased (VERSION)"."""
    newest = re.search(r"^## (.+)$", text_of(ROOT / "CHANGELOG.md"), re.MULTILINE)[1]
    assert newest.startswith((f"Unreleased ({__version__})", f"{__version__} ("))
    assert "version" in pyproject()["dynamic"] and "version" not in pyproject()
    assert re.fullmatch(r"\d+\.\d+\.\d+", __version__)


@pytest.mark.parametrize("name", ["CONTRIBUTING.md", "SECURITY.md"])
def test_what_a_guide_names_is_there(name):
    said = text_of(ROOT / name)
    for path in re.findall(r"`((?:kronos_qlib|tests|workflows|\.github)/[\w./-]+)`", said):
        assert (ROOT / path).exists(), f"{name} names {path}"
    for target in re.findall(r"`make ([a-z]+)`", said):
        assert target in make_targets() | {"docs"}, f"{name} names make {target}"


def test_the_table_of_places_leads_where_it_says():
    """Each row of CONTRIBUTING's table names files that are there, and names that stand in them."""
    table = text_of(ROOT / "CONTRIBUTING.md").partition("| to change | open |")[2]
    rows = table.partition("\n\n")[0].splitlines()[2:]
    assert len(rows) > 10
    for row in rows:
        named = re.findall(r"`([\w./]+)`", row.rpartition(" | ")[2])
        places = [name for name in named if "/" in name or name.endswith(".py")]
        found = [ROOT / "kronos_qlib" / name for name in places]
        assert found and all(place.exists() for place in found), row
        files = [
            file for place in found for file in (place.glob("*.py") if place.is_dir() else [place])
        ]
        text = "".join(map(text_of, files))
        assert all(name in text for name in named if name not in places), row


def test_nothing_that_is_read_has_marks_of_a_merge():
    """A page went out with both sides of one."""
    folders = ("docs", "kronos_qlib", "tests", "benchmarks", "workflows", ".github")
    kinds = (".md", ".py", ".toml", ".yml", ".yaml", ".json", ".js", ".css", ".html")
    paths = [path for folder in folders for path in (ROOT / folder).rglob("*")]
    texts = [path for path in (*ROOT.glob("*"), *paths) if path.suffix in kinds and path.is_file()]
    assert len(texts) > 300
    marks = re.compile(r"^(<{7}|>{7}) ", re.MULTILINE)
    assert not [str(path) for path in texts if marks.search(text_of(path))]


def test_every_package_is_in_the_tree():
    """Two folders of the plugin, preflight and pickles, were on no map."""
    tree = text_of(ROOT / "CONTRIBUTING.md").partition("```\nkronos_qlib/\n")[2].partition("```")[0]
    shown = set(re.findall(r"^ +(\w+)/ ", tree, re.MULTILINE))
    packages = {file.parent.name for file in (ROOT / "kronos_qlib").glob("*/**/__init__.py")}
    assert packages == shown


@settings(max_examples=7)
@given(st.none())
def _bounded(_):
    """Of the nightly profile; not a test."""


def test_the_nightly_profile_multiplies_what_a_test_bounds(pytestconfig):
    """Else it would draw new examples, but no more of them: most tests bound theirs."""
    hooks = pytestconfig.pluginmanager.get_plugins()
    (shared,) = [one for one in hooks if hasattr(one, "NIGHTLY_TIMES")]

    class Item:
        obj = staticmethod(_bounded)

    before = settings.get_current_profile_name()
    own = _bounded._hypothesis_internal_use_settings
    try:
        settings.load_profile(shared.NIGHTLY)
        assert not settings().derandomize and settings().print_blob
        shared.pytest_collection_modifyitems([Item(), Item()])
        found = _bounded._hypothesis_internal_use_settings
        assert found.max_examples == 7 * shared.NIGHTLY_TIMES
    finally:
        settings.load_profile(before)
        _bounded._hypothesis_internal_use_settings = own
    shared.pytest_collection_modifyitems([Item()])
    assert _bounded._hypothesis_internal_use_settings.max_examples == (
        7 * shared.NIGHTLY_TIMES if before == shared.NIGHTLY else 4
    )
