"""Progress bars that callers ask for. Loggers are plain `logging.getLogger(__name__)`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

T = TypeVar("T")


def progress(
    items: Iterable[T], what: str, *, unit: str, total: int | None = None, show: bool = True
) -> Iterable[T]:
    """Yield `items`, with a bar on stderr if `show`."""
    from tqdm.auto import tqdm

    return tqdm(items, desc=what, unit=unit, total=total, disable=not show, mininterval=1.0)
