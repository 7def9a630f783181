"""Pages that are no files of docs/: one a module of the package, one a notebook."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sources import PACKAGE, ROOT, documented, first_line, home_of

Nav = list[dict[str, Any]]


def api_pages() -> dict[str, str]:
    """Path below docs/ to text, for every module that has a page."""
    made = {_page(module): _module_page(module) for module in documented()}
    made["api/kronos_qlib.md"] = _public_page()
    return made


def api_nav() -> Nav:
    """The pages in the tree of their packages."""
    root: dict[str, Any] = {}
    for module, path in documented().items():
        parts = module.split(".")[1:]
        place = root
        for part in parts[:-1]:
            place = place.setdefault(part, {})
        if path.name == "__init__.py":  # a package with names of its own, beside its modules
            place.setdefault(parts[-1], {})["package"] = _page(module)
        else:
            place[parts[-1]] = _page(module)
    return [{"kronos_qlib": "api/kronos_qlib.md"}, *_nav_of(root)]


def api_index() -> str:
    """A line for every module, by package."""
    lines = ["- [`kronos_qlib`](kronos_qlib.md): the names that `import kronos_qlib` offers."]
    package = None
    for module, path in documented().items():
        parent = module.rpartition(".")[0]
        if parent != package:
            package = parent
            about = first_line(PACKAGE.parent.joinpath(*parent.split("."), "__init__.py"))
            lines += ["", f"## {parent}", "", about, ""]
        name = module.rpartition(".")[2]
        lines.append(f"- [`{name}`]({_page(module).removeprefix('api/')}): {first_line(path)}")
    return "\n".join(lines)


def notebook_pages() -> Iterator[tuple[str, str | bytes]]:
    """Path below docs/ and content of each notebook and its pictures, with the outputs it keeps."""
    import nbformat
    from nbconvert import MarkdownExporter

    for path in notebooks():
        notebook = nbformat.read(path, as_version=4)
        for cell in notebook.cells:
            for output in cell.get("outputs", ()):
                # Matplotlib's one-line text beside a picture says nothing.
                if "image/png" in output.get("data", {}):
                    output["data"].pop("text/plain", None)
        resources = {"unique_key": path.stem, "output_files_dir": path.stem}
        text, found = MarkdownExporter().from_notebook_node(notebook, resources)
        note = (
            f"*The notebook `notebooks/{path.name}`, with the outputs of its last run; "
            "`make notebooks` runs it anew.*"
        )
        title, _, rest = text.lstrip().partition("\n")
        yield f"notebooks/{path.stem}.md", f"{title}\n\n{note}\n{rest}"
        for name, content in found["outputs"].items():
            yield f"notebooks/{Path(name).as_posix()}", content


def notebook_nav() -> Nav:
    return [{_title(path): f"notebooks/{path.stem}.md"} for path in notebooks()]


def notebooks() -> list[Path]:
    return sorted((ROOT / "notebooks").glob("*.ipynb"))


def _title(path: Path) -> str:
    import nbformat

    first = nbformat.read(path, as_version=4).cells[0]["source"]
    return str(first.splitlines()[0].lstrip("# "))


def _page(module: str) -> str:
    return f"api/{module.removeprefix('kronos_qlib.').replace('.', '/')}.md"


def _module_page(module: str) -> str:
    return f"# {module}\n\n::: {module}\n"


def _public_page() -> str:
    """What `import kronos_qlib` offers, each name linked to where it is documented."""
    import kronos_qlib

    text = ["# kronos_qlib", "", first_line(PACKAGE / "__init__.py"), ""]
    for name in kronos_qlib.__all__:
        if not name.startswith("_"):
            home = home_of(name)
            about = inspect.getdoc(getattr(kronos_qlib, name)) or ""
            line = " ".join(about.split("\n\n")[0].split())
            text.append(f"- [`{name}`][{home}.{name}]: {line}")
    return "\n".join(text)


def _nav_of(place: dict[str, Any]) -> Nav:
    return [
        {name: below if isinstance(below, str) else _nav_of(below)} for name, below in place.items()
    ]
