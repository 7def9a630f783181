"""mkdocs calls these while it builds: pages from the sources, and what a strict build refuses."""

from __future__ import annotations

import logging
import re
from typing import Any

import commands_page
import docstrings
import generated_pages
import includes
import settings_page
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, Files

log = logging.getLogger("mkdocs.hooks.kronos_qlib")  # a warning fails a strict build

SETTINGS = re.compile(r"<!-- settings: ([\w.]+) -->")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put the generated pages into the navigation, and count what docstrings lack."""
    for section in config.nav or ():
        for name, pages in section.items():
            if name == "API":
                pages += generated_pages.api_nav()
            elif name == "Notebooks":
                pages += generated_pages.notebook_nav()
    for line in docstrings.over_limits():
        log.warning(line)
    return config


@event_priority(100)
def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are no files."""
    made: list[tuple[str, Any]] = list(generated_pages.api_pages().items())
    for path, content in [*made, *generated_pages.notebook_pages()]:
        files.append(File.generated(config, path, content=content))
    return files


@event_priority(100)
def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Fill the marks of a page: includes, tables of settings, commands, the list of modules."""
    text = includes.included(page.file.src_uri, markdown)
    text = SETTINGS.sub(lambda mark: settings_page.table(mark[1]), text)
    for mark, fill in {
        "<!-- presets -->": settings_page.presets,
        "<!-- signals -->": settings_page.signals,
        "<!-- commands -->": commands_page.commands,
        "<!-- modules -->": generated_pages.api_index,
    }.items():
        if mark in text:
            text = text.replace(mark, fill())
    return text
