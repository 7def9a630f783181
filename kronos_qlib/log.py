"""Progress bars on request, and silence for the notice that gym prints.

Loggers are plain `logging.getLogger(__name__)`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from typing import TypeVar

T = TypeVar("T")


def progress(
    items: Iterable[T], what: str, *, unit: str, total: int | None = None, show: bool = True
) -> Iterable[T]:
    """Yield `items`, with a bar if `show`, on a terminal or in a notebook.

    A log file or a pipe would get a line for every second of it.
    """
    from tqdm.auto import tqdm

    is_off = None if show else True  # None: off where stderr is no terminal
    return tqdm(items, desc=what, unit=unit, total=total, disable=is_off, mininterval=1.0)


def quiet_gym() -> None:
    """For the rest of the process: gym, which Qlib's strategies import, prints no notice.

    Commands and runs begin with it; importing this package does not.
    """
    with contextlib.suppress(ImportError):
        from gym_notices import notices  # type: ignore[import-untyped]

        notices.notices.clear()
