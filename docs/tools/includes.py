"""Files of the repository that are pages: `<!-- include: benchmarks/README.md -->`.

Included, not copied: the file stands where it is read in the repository, and its links are turned
to the site's pages. What has no page (a script, a folder) keeps its text and loses its link.
"""

from __future__ import annotations

import posixpath
import re
from functools import cache
from pathlib import Path

from sources import ROOT

DOCS = ROOT / "docs"
MARK = re.compile(r"<!-- include: (\S+)( or nothing)? -->")
LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\[\]]*\])*)\]\(([^()\s]+)\)")


def included(page: str, markdown: str) -> str:
    """A page's text with its includes in place.

    Args:
        page: its path below docs/.
        markdown: its text.

    Raises:
        FileNotFoundError: a file to include is not there, and is not marked "or nothing".
    """

    def fill(mark: re.Match[str]) -> str:
        path = ROOT / mark[1]
        if not path.is_file() and mark[2]:
            return ""
        return _turned(path.read_text(encoding="utf-8"), Path(mark[1]).parent.as_posix(), page)

    return MARK.sub(fill, markdown)


@cache
def pages() -> dict[str, str]:
    """File of the repository to the page that shows it."""
    found = {}
    for path in DOCS.rglob("*.md"):
        page = path.relative_to(DOCS).as_posix()
        found[f"docs/{page}"] = page
        for mark in MARK.finditer(path.read_text(encoding="utf-8")):
            found[mark[1]] = page
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        found[f"notebooks/{path.name}"] = f"notebooks/{path.stem}.md"
    found["notebooks"] = "notebooks/index.md"
    return found


def _turned(text: str, folder: str, page: str) -> str:
    """A text's relative links, as seen from a page of the site."""

    def turn(link: re.Match[str]) -> str:
        image, shown, target = link.groups()
        if re.match(r"[a-z]+:|#", target):
            return link[0]
        target, hash_, anchor = target.partition("#")
        path = posixpath.normpath(posixpath.join(folder, target))
        if path in pages():
            there = pages()[path]
        elif path.startswith("docs/") and (ROOT / path).is_file():
            there = path.removeprefix("docs/")  # a picture
        else:
            return shown
        near = posixpath.relpath(there, posixpath.dirname(page) or ".")
        return f"{image}[{shown}]({near}{hash_}{anchor})"

    return LINK.sub(turn, text)
