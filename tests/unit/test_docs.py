"""The README's size, and what the documentation's pages are made of."""

from __future__ import annotations

import dataclasses
import re
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
DOCS = ROOT / "docs"
sys.path.insert(0, str(DOCS / "tools"))

import commands_page  # noqa: E402
import docstrings  # noqa: E402
import generated_pages  # noqa: E402
import includes  # noqa: E402
import settings_page  # noqa: E402
import sources  # noqa: E402

LINK = re.compile(r"\]\(([^()\s]+)\)")
MARK = re.compile(r"<!-- settings: ([\w.]+) -->")
CLASSES = MARK.findall((DOCS / "reference" / "settings.md").read_text(encoding="utf-8"))


def pages():
    return sorted(DOCS.rglob("*.md"))


def test_the_readme_is_read_in_five_minutes():
    text = README.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 130
    assert len(text.split()) <= 900


def test_the_readme_has_one_picture_and_its_links_lead_somewhere():
    text = README.read_text(encoding="utf-8")
    assert text.count("![") == 1
    targets = [target.partition("#")[0] for target in LINK.findall(text)]
    missing = [one for one in targets if "://" not in one and not (ROOT / one).exists()]
    assert not missing
    assert (DOCS / "images" / "forecast.png").stat().st_size < 100_000


def test_examples_of_the_readme_are_short():
    """Eight lines that forecast, and about eight that rank shares."""
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        assert len([line for line in block.splitlines() if line.strip()]) <= 9


def test_public_names_lack_no_more_docstrings_than_they_did():
    """Lower LIMITS of docs/tools/docstrings.py whenever this has room; they only fall."""
    assert not docstrings.over_limits()


@pytest.mark.parametrize(
    ("code", "lacks"),
    [
        ("def f(x: Tensor) -> None: ...", {"docstring"}),
        ('def f(x: Tensor) -> None:\n    """Fills x."""', {"shape"}),
        ('def f(x: Tensor) -> None:\n    """Fills x, (B, T) float."""', set()),
        ('def f(x: int) -> None:\n    """Checks x."""\n    raise ValueError("x")', {"raises"}),
        (
            'def f(x: int) -> None:\n    """Checks x.\n\n    Raises:\n        ValueError: x."""\n'
            '    raise ValueError("x")',
            set(),
        ),
    ],
)
def test_what_a_docstring_lacks_is_seen(code, lacks):
    import ast

    [(_, node, owner)] = sources.public(ast.parse(code))
    assert set(docstrings._lacks(node, owner)) == lacks


@pytest.mark.parametrize("name", CLASSES)
def test_every_setting_has_type_default_and_meaning(name):
    found = settings_page.settings_of(name)
    assert found
    for one in found:
        assert one.kind and one.default and one.meaning, f"{name}.{one.name}"
    assert settings_page.table(name).count("\n") >= len(found)


def test_defaults_are_those_of_the_code():
    """The tables by hand had context_width 8, epochs 3 and rate 0.001 of the alpha head."""
    from kronos_qlib.training.stage_settings import AlphaConfig

    shown = {one.name: one.default for one in settings_page.settings_of("AlphaConfig")}
    assert set(shown) == {field.name for field in dataclasses.fields(AlphaConfig)}
    assert shown["context_width"] == f"`{AlphaConfig().context_width}`"
    assert shown["learning_rate"] == f"`{AlphaConfig().learning_rate:g}`"
    assert shown["patience"] == "`null`"


def test_every_setting_that_a_workflow_uses_is_in_a_table():
    known = {one.name for name in CLASSES for one in settings_page.settings_of(name)}
    for path in (ROOT / "workflows").glob("*.yaml"):
        for section in ("sampling", "training", "signals"):
            for block in re.findall(
                rf"^ +{section}:\n((?: {{8,}}.*\n)+)", path.read_text("utf-8"), re.M
            ):
                for key in re.findall(r"^ +(\w+): [^\n{]", block, re.M):
                    assert key in known | {"alpha", "predictor", "tokenizer"}, (path.name, key)


def test_a_class_without_meaning_is_refused(monkeypatch):
    with pytest.raises(LookupError, match="no module"):
        settings_page.table("NoSuchConfig")
    monkeypatch.setattr(settings_page, "_meanings", lambda kind, taker: {})
    with pytest.raises(LookupError, match="no line that says what it means"):
        settings_page.table("SamplingConfig")


def test_every_command_and_flag_is_on_the_page():
    text = commands_page.commands()
    for command in (
        "forecast",
        "calibrate",
        "finetune",
        "compare",
        "score",
        "models",
        "data check",
    ):
        assert f"kronos-qlib {command}" in text
    for flag in ("--horizon", "--html", "--repair", "--top"):
        assert flag in text


def test_every_file_of_docs_is_in_the_navigation():
    config = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    listed = set(re.findall(r"[\w/-]+\.md", config))
    assert {path.relative_to(DOCS).as_posix() for path in pages()} == listed


@pytest.mark.parametrize("path", pages(), ids=lambda path: path.relative_to(DOCS).as_posix())
def test_links_between_pages_lead_somewhere(path):
    """Pages that the build makes (api/, notebooks/) are checked by the strict build."""
    for target in LINK.findall(path.read_text(encoding="utf-8")):
        file = target.partition("#")[0]
        if file and "://" not in file and not re.search(r"(^|/)(api|notebooks)/|^0\d_", file):
            there = (path.parent / file).resolve()
            made = file in ("kronos_qlib.md",) or path.parent.name in ("api", "notebooks")
            assert there.is_file() or made, target


def leaves(nav):
    if isinstance(nav, str):
        return [nav]
    below = nav.values() if isinstance(nav, dict) else nav
    return [leaf for one in below for leaf in leaves(one)]


def test_every_module_is_once_in_the_navigation(tmp_path, monkeypatch):
    pages = generated_pages.api_pages()
    assert sorted(leaves(generated_pages.api_nav())) == sorted(pages)
    assert len(pages) == len(sources.documented()) + 1
    package = tmp_path / "kronos_qlib"
    (package / "data" / "files").mkdir(parents=True)
    for name in ("data/files/__init__.py", "data/files/read.py", "data/files/check.py"):
        (package / name).write_text("def one():\n    ...\n", encoding="utf-8")
    found = {
        sources.PACKAGE.name + f".{name}": package / file
        for name, file in [
            ("data.bars", "data/files/check.py"),
            ("data.files", "data/files/__init__.py"),
            ("data.files.read", "data/files/read.py"),
        ]
    }
    monkeypatch.setattr(generated_pages, "documented", lambda: found)
    nav = generated_pages.api_nav()[1:]
    assert leaves(nav) == ["api/data/bars.md", "api/data/files.md", "api/data/files/read.md"]


def test_links_of_an_included_file_are_turned_to_pages():
    text = includes.included("benchmarks.md", "<!-- include: benchmarks/README.md -->")
    assert "(models/nano.md)" in text and "(index.md)" in text
    home = includes.included("index.md", "<!-- include: README.md -->")
    assert "(images/forecast.png)" in home and "(results.md)" in home and "(changelog.md)" in home
    assert includes.included("x.md", "<!-- include: NO_SUCH.md or nothing -->") == ""
    with pytest.raises(FileNotFoundError):
        includes.included("x.md", "<!-- include: NO_SUCH.md -->")


def test_pages_load_nothing_from_elsewhere():
    config = yaml.load(  # its tags, if any, are mkdocs' own
        (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), Loader=yaml.BaseLoader
    )
    assert config["theme"]["font"] == "false"
    assert "extra_javascript" not in config
    for path in [*pages(), DOCS / "styles" / "site.css"]:
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"<script|@import|url\(|src=.https?:|!\[[^]]*\]\(https?:", text), path
