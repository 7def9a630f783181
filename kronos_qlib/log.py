"""Progress bars on request, lines about long work, and silence for the notice that gym prints.

Loggers are plain `logging.getLogger(__name__)`.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Sized
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


REPORT_SECONDS = 30.0
"""From one line about a long work to the next."""


def reported(
    items: Iterable[T],
    what: str,
    report: Callable[[str], None] | None,
    *,
    unit: str,
    total: int | None = None,
    every: float = REPORT_SECONDS,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[T]:
    """Yield `items`, with a line now and then for where a bar is not seen, such as a log file.

    Args:
        what: is being done, the line's beginning.
        report: takes a line, such as a logger's `info`; None: nobody.
        unit: of one item, for which "s" makes the plural.
        total: how many items there are; None: as many as `items` has.
        every: seconds from one line to the next. What takes less is done in silence.
        clock: seconds from any moment on.
    """
    if report is None:
        yield from items
        return
    if total is None and isinstance(items, Sized):
        total = len(items)
    begun = last = clock()
    for done, item in enumerate(items, 1):
        yield item
        now = clock()
        if now - last >= every and done != total:
            last = now
            left = "" if total is None else f" of {total}"
            more = "" if total is None else _left((now - begun) / done * (total - done))
            report(f"{what}: {done}{left} {unit}s{more}")


def _left(seconds: float) -> str:
    if seconds < 90:
        return f", about {seconds:.0f} seconds left"
    return f", about {seconds / 60:.0f} minutes left"


def quiet_gym() -> None:
    """For the rest of the process: gym, which Qlib's strategies import, prints no notice.

    Commands and runs begin with it; importing this package does not.
    """
    with contextlib.suppress(ImportError):
        from gym_notices import notices  # type: ignore[import-untyped]

        notices.notices.clear()
