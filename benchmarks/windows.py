"""How fast windows become training batches, and what that takes, beside Qlib and as published.

Two synthetic Qlib providers, random walks with late listings, delistings and 2 % of days
suspended: many names of daily bars, and fewer of 5-minute bars. On each, every method in a fresh
process of its own:
- ours: `KronosDataset`, `EpochSampler` and `Segment.batch` into memory taken once.
- mapped: the same from the files of `kronos-qlib data table`, which are written before.
- published: a dict of frames with columns of time fields, a list of (symbol, start), and for each
  window `iloc`, mean and deviation of its lookback, two tensors; a batch is their `torch.stack`.
- TSDatasetH: Qlib's, its batches normalised as a user would. It has no time fields, and leaves
  windows with a suspended day in, as NaN: both are work that it does not do here.

Columns: seconds from constructing the data set to train, valid and test windows and the first
normalised batch (Qlib initialised, nothing read, files in the page cache); normalised windows a
second in batches, the median of some rounds, one process, the sampler included; the ratio to
published; resident memory that the start added, after a collection and malloc_trim, its data sets
and first batch alive, beyond what Qlib's first calendar and universe left (some 11 MiB, most of
them imports, for every method alike); that, and the highest in between, over the raw bars: 24
bytes for each bar that is there. Qlib reads in this same process (--kernels 1), so that all it
takes is counted. Pages of mapped files are resident memory too, though the system may take them
back at any time; the last lines say what a process has of its own (Linux).

Nothing is printed unless our windows are those of the published approach: as many, and some
hundred of them with the same time fields and the same z as published but in float64, within 1e-5
absolute plus relative. In float32, as published, quiet 5-minute bars are further off than that.

Example:
    python benchmarks/windows.py --json windows.json
    python benchmarks/windows.py --instruments-daily 50 --years 2 --instruments-5min 5 --days 40
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import logging
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
import qlib
import torch
from qlib.data import D
from qlib.data.dataset import TSDatasetH
from qlib.data.dataset.handler import DataHandlerLP

from kronos_qlib.data.windows.window import Windows
from kronos_qlib.plugin.dataset import KronosDataset
from kronos_qlib.plugin.provider.mapped_bars import write_table
from kronos_qlib.schema import BAR_COLUMNS, TIME_FIELDS
from kronos_qlib.training.batches import EpochSampler, Segment

CASES = ("day:90:10", "5min:90:10", "5min:400:10")
FIELDS = (*BAR_COLUMNS, "factor")
BAR_BYTES = 4 * len(BAR_COLUMNS)
BARS_A_DAY = {"day": 1, "5min": 48}
SHARES = {"train": 0.8, "valid": 0.1, "test": 0.1}
LATE, DELISTED, SUSPENDED, SUSPENSION_DAYS = 0.4, 0.04, 0.02, 5
FUTURE_DAYS = 30
BLOCK = 250
"""Instruments simulated at a time."""
CHECKED = 400
"""Windows compared with the published approach."""
ROUNDS = 5
MIB = 2**20
LEAST_RATIO, MOST_START_S, MOST_RESIDENT = 20.0, 3.0, 1.3


# The providers.


@dataclass(frozen=True)
class Market:
    """A synthetic provider, as its settings decide it."""

    freq: str
    instruments: int
    days: int
    seed: int = 0

    @property
    def names(self) -> list[str]:
        return [f"SH{600000 + number}" for number in range(self.instruments)]

    def calendar(self, days: int) -> pd.DatetimeIndex:
        dates = pd.bdate_range("2010-01-01" if self.freq == "day" else "2019-01-02", periods=days)
        if self.freq == "day":
            return dates
        halves = [
            pd.timedelta_range(f"{opens}h", periods=25, freq="5min")[1:] for opens in (9.5, 13)
        ]
        clock = np.concatenate(halves)
        return pd.DatetimeIndex((dates.to_numpy()[:, None] + clock).ravel())


def open_market(market: Market, folder: Path) -> dict[str, Any]:
    """Write the provider unless it is there; what it holds: bars by instrument, segments."""
    note = folder / "made.json"
    if note.exists():
        made = json.loads(note.read_text(encoding="utf-8"))
        if made["market"] != asdict(market):
            raise SystemExit(f"{folder} holds another market, {made['market']}; name a new folder")
        for path in folder.glob("features/*/*.bin"):
            path.read_bytes()  # into the page cache, for the first method as for the last
        return made
    made = {"market": asdict(market), **write_market(market, folder)}
    note.write_text(json.dumps(made), encoding="utf-8")
    return made


def write_market(market: Market, folder: Path) -> dict[str, Any]:
    rng = np.random.default_rng(market.seed)
    calendar = market.calendar(market.days)
    for name in ("calendars", "instruments", "features"):
        (folder / name).mkdir(parents=True)
    style = "%Y-%m-%d" if market.freq == "day" else "%Y-%m-%d %H:%M:%S"
    for mark, days in (("", market.days), ("_future", market.days + FUTURE_DAYS)):
        lines = market.calendar(days).strftime(style)
        (folder / "calendars" / f"{market.freq}{mark}.txt").write_text("\n".join([*lines, ""]))
    bars, lines = {}, []
    for start in range(0, market.instruments, BLOCK):
        names = market.names[start : start + BLOCK]
        values, first_days, last_days = simulate(market, len(names), rng)
        for number, name in enumerate(names):
            span = slice(first_days[number], last_days[number])
            own = values[number, :, span]
            write_features(folder / "features" / name.lower(), market.freq, span.start, own)
            bars[name] = int(np.isfinite(own[0]).sum())
            lines.append(
                f"{name}\t{calendar[span.start]:{style}}\t{calendar[span.stop - 1]:{style}}"
            )
    (folder / "instruments" / "all.txt").write_text("\n".join([*lines, ""]))
    ends = np.round(np.cumsum(list(SHARES.values())) * market.days).astype(int)
    starts = [0, *ends[:-1]]
    dates = calendar.normalize().unique()
    segments = {
        name: (f"{dates[begin]:%Y-%m-%d}", f"{dates[end - 1]:%Y-%m-%d}")
        for name, begin, end in zip(SHARES, starts, ends, strict=True)
    }
    return {"bars": bars, "segments": segments, "times": len(calendar)}


def simulate(
    market: Market, size: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(size, fields, K) float32 with NaN where suspended; the first place and the end of each."""
    a_day, days = BARS_A_DAY[market.freq], market.days
    places, deviation = days * a_day, 0.02 / a_day**0.5

    def noise(scale: float) -> np.ndarray:
        return scale * rng.standard_normal((size, places), dtype=np.float32)

    values = np.empty((size, len(FIELDS), places), dtype=np.float32)
    opened, high, low, close, volume, amount, factor = values.swapaxes(0, 1)
    level = rng.uniform(3, 60, (size, 1)).astype(np.float32)
    close[:] = level * np.exp(np.cumsum(noise(deviation), axis=1))
    opened[:] = close * np.exp(noise(deviation))
    high[:] = np.maximum(opened, close) * np.exp(np.abs(noise(deviation / 2)))
    low[:] = np.minimum(opened, close) * np.exp(-np.abs(noise(deviation / 2)))
    volume[:] = np.exp(rng.uniform(12, 16, (size, 1)) + noise(0.6)) / a_day
    amount[:] = volume * (high + low) / 2
    factor[:] = rng.uniform(0.5, 2, (size, 1))
    # A suspension lasts some days; they overlap a little.
    suspended = np.zeros((size, days), dtype=bool)
    begins = rng.random((size, days)) < SUSPENDED / SUSPENSION_DAYS
    for later in range(SUSPENSION_DAYS):
        suspended[:, later:] |= begins[:, : days - later]
    values.swapaxes(0, 1)[:, np.repeat(suspended, a_day, axis=1)] = np.nan
    listed = np.where(rng.random(size) < LATE, rng.integers(0, days, size), 0)
    left = np.where(rng.random(size) < DELISTED, rng.integers(days // 2, days, size), days)
    left = np.where(left > listed, left, days)
    return values, listed * a_day, left * a_day


def write_features(folder: Path, freq: str, start: int, values: np.ndarray) -> None:
    """One file a field: the place of the first value, then the values."""
    folder.mkdir()
    stored = np.empty((len(FIELDS), values.shape[1] + 1), dtype="<f4")
    stored[:, 0], stored[:, 1:] = start, values
    for field, row in zip(FIELDS, stored, strict=True):
        (folder / f"{field}.{freq}.bin").write_bytes(row)


# What is measured, in a process that has done nothing else.


@dataclass(frozen=True)
class Case:
    freq: str
    lookback: int
    horizon: int

    @classmethod
    def parse(cls, text: str) -> Case:
        freq, *numbers = text.split(":")
        if freq not in BARS_A_DAY or len(numbers) != 2:
            raise argparse.ArgumentTypeError("expected freq:lookback:horizon, freq day or 5min")
        return cls(freq, *map(int, numbers))

    @property
    def bars(self) -> int:
        return self.lookback + self.horizon


@dataclass(frozen=True)
class Job:
    """One method on one provider."""

    case: Case
    folder: Path
    segments: dict[str, tuple[str, str]]
    names: list[str] | None
    """Instruments; None for all there are."""
    batch_sizes: tuple[int, ...]
    seconds: float
    """To count windows for, with each batch size."""
    kernels: int

    @property
    def pool(self) -> Any:
        return D.instruments("all") if self.names is None else self.names


Batches = Callable[[int], Iterator[int]]
"""For a batch size, yields normalised batches without end, and the size of each."""


class Clock:
    """Seconds of each part of a start."""

    def __init__(self) -> None:
        self.parts: dict[str, float] = {}
        self.last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.parts[name], self.last = now - self.last, now


class Memory:
    """Resident memory beyond what there was when this was made, in bytes."""

    def __init__(self) -> None:
        self.before = self._now()
        # Linux forgets the highest so far; elsewhere it would be that of the imports.
        self.has_peak = sys.platform == "linux"
        if self.has_peak:
            Path("/proc/self/clear_refs").write_text("5")

    def grown(self) -> int:
        return self._now() - self.before

    def peak(self) -> int | None:
        if not self.has_peak:
            return None
        status = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        [highest] = [line.split()[1] for line in status if line.startswith("VmHWM:")]
        return int(highest) * 1024 - self.before

    def _now(self) -> int:
        gc.collect()
        with suppress(OSError, AttributeError):  # not glibc
            ctypes.CDLL("libc.so.6").malloc_trim(0)
        return psutil.Process().memory_info().rss


def own_bytes() -> int:
    """Resident memory without pages of files, in bytes; 0 where that is not known."""
    if sys.platform != "linux":
        return 0
    status = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    [own] = [line.split()[1] for line in status if line.startswith("RssAnon:")]
    return int(own) * 1024


def measure(method: str, job: Job) -> dict[str, Any]:
    began = time.perf_counter()
    qlib.init(
        provider_uri={job.case.freq: str(job.folder)},
        region="cn",
        kernels=job.kernels,
        logging_level=logging.WARNING,
    )
    init_s = time.perf_counter() - began
    clock = Clock()
    began = time.perf_counter()
    D.list_instruments(D.instruments("all"), freq=job.case.freq, as_list=True)
    memory = Memory()
    clock.lap("calendar, universe")
    before = own_bytes()
    made, batches, details = METHODS[method](job, clock)
    next(batches(min(job.batch_sizes)))
    clock.lap("first batch")
    start_s = time.perf_counter() - began
    peak, resident, own = memory.peak(), memory.grown(), own_bytes() - before
    speeds = {size: speed(batches(size), job.seconds) for size in job.batch_sizes}
    result = {
        "init_s": init_s, "start_s": start_s, "parts_s": clock.parts, "resident": resident,
        "own": own, "peak": peak, "windows_per_s": speeds, **details(),
    }  # fmt: skip
    if method == "ours":
        result["difference"] = difference(made[1]["train"], job)
    return result


def speed(batches: Iterator[int], seconds: float) -> float:
    """Windows a second, the median of some rounds."""
    next(batches)
    rates = []
    for _ in range(ROUNDS):
        began, done = time.perf_counter(), 0
        while (spent := time.perf_counter() - began) < seconds / ROUNDS:
            done += next(batches)
        rates.append(done / spent)
    return statistics.median(rates)


# The methods: what is kept alive, its batches, and further numbers.

Made = tuple[Any, Batches, Callable[[], dict[str, Any]]]


def ours(job: Job, clock: Clock, table: Path | None = None) -> Made:
    case = job.case
    dataset = KronosDataset(
        handler={
            "class": "KronosHandler",
            "module_path": "kronos_qlib.plugin.dataset",
            "kwargs": {
                "instruments": job.names or "all",
                "freq": case.freq,
                **({} if table is None else {"table": str(table)}),
            },
        },
        segments=job.segments,
        lookback=case.lookback,
        horizon=case.horizon,
    )
    bars = dataset.bar_handler.bars
    clock.lap("bars")
    windows = {name: dataset.training_windows(name) for name in ("train", "valid")}
    windows["test"] = dataset.windows("test")
    clock.lap("windows")
    segment = Segment(windows["train"])

    def batches(size: int) -> Iterator[int]:
        sampler, room = EpochSampler(len(segment), size, seed=0), segment.memory(size)
        for number in count():
            for which in sampler.epoch(number):
                yield len(segment.batch(which, "cpu", room))

    def details() -> dict[str, Any]:
        return {
            "windows": len(segment), "bars": len(bars), "table_bytes": bars.nbytes,
            "ends_bytes": sum(part.ends.nbytes for part in windows.values()),
        }  # fmt: skip

    return (dataset, windows), batches, details


def mapped(job: Job, clock: Clock) -> Made:
    return ours(job, clock, table_of(job.folder))


def table_of(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.table")


def write_mapped(folder: Path, freq: str) -> None:
    """The table of a provider, unless it is there; in a process of its own."""
    qlib.init(provider_uri={freq: str(folder)}, region="cn", logging_level=logging.WARNING)
    names = D.list_instruments(D.instruments("all"), freq=freq, as_list=True)
    write_table(table_of(folder), names, freq)


VALUES = ["open", "high", "low", "close", "vol", "amt"]
TIMES = list(TIME_FIELDS)


def frames_of(pool: Any, job: Job) -> dict[str, pd.DataFrame]:
    """The published approach's bars: a frame for each symbol, without the suspended days."""
    frame = D.features(pool, [f"${name}" for name in BAR_COLUMNS], freq=job.case.freq)
    frame.columns = VALUES
    frames = {}
    for symbol, own in frame.groupby(level="instrument"):
        bars = own.droplevel("instrument").dropna()
        if len(bars):
            frames[symbol] = bars
    return frames


def with_times(bars: pd.DataFrame) -> pd.DataFrame:
    index = bars.index
    return bars.assign(
        minute=index.minute, hour=index.hour, weekday=index.weekday, day=index.day,
        month=index.month,
    )  # fmt: skip


def window_as_published(
    frame: pd.DataFrame, start: int, case: Case, kind: type = np.float32, own_floor: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """z and time fields of one window; `own_floor`: with our floor, relative to the level."""
    window = frame.iloc[start : start + case.bars]
    x = window[VALUES].values.astype(kind)
    stamps = window[TIMES].values.astype(np.float32)
    past = x[: case.lookback]
    mean, deviation = past.mean(axis=0), past.std(axis=0)
    floor = 1e-6 * np.abs(past).max(axis=0) if own_floor else 1e-5
    x = np.clip((x - mean) / (deviation + floor), -5, 5)
    return torch.from_numpy(x), torch.from_numpy(stamps)


def published(job: Job, clock: Clock) -> Made:
    case, frames = job.case, frames_of(job.pool, job)
    clock.lap("bars")
    kept: dict[str, dict[str, pd.DataFrame]] = {name: {} for name in job.segments}
    places: dict[str, list[tuple[str, int]]] = {name: [] for name in job.segments}
    for symbol in list(frames):
        whole = frames.pop(symbol)
        for name, (first, last) in job.segments.items():
            part = whole.loc[first:last]
            if len(part) < case.bars:
                continue
            kept[name][symbol] = with_times(part)
            places[name] += [(symbol, start) for start in range(len(part) - case.bars + 1)]
    clock.lap("windows")
    train, index = kept["train"], places["train"]

    def batches(size: int) -> Iterator[int]:
        rng = np.random.default_rng(0)
        while True:
            chosen = [index[number] for number in rng.integers(len(index), size=size).tolist()]
            pairs = [window_as_published(train[symbol], start, case) for symbol, start in chosen]
            z, stamps = (torch.stack(column) for column in zip(*pairs, strict=True))
            yield len(z) if len(stamps) == size else 0

    return (kept, places), batches, lambda: {"windows": len(index)}


def ts_dataset(job: Job, clock: Clock) -> Made:
    case = job.case
    columns = ([f"${name}" for name in BAR_COLUMNS], list(BAR_COLUMNS))
    loader = {
        "class": "QlibDataLoader",
        "kwargs": {"config": {"feature": columns}, "freq": case.freq},
    }
    handler = DataHandlerLP(instruments=job.pool, data_loader=loader)
    clock.lap("bars")
    dataset = TSDatasetH(step_len=case.bars, handler=handler, segments=job.segments)
    made = {name: dataset.prepare(name, col_set="feature") for name in job.segments}
    clock.lap("windows")
    sampler = made["train"]

    def batches(size: int) -> Iterator[int]:
        rng = np.random.default_rng(0)
        while True:
            x = sampler[rng.integers(len(sampler), size=size).tolist()]
            past = x[:, : case.lookback]
            mean = past.mean(axis=1, keepdims=True)
            deviation = past.std(axis=1, keepdims=True) + 1e-5
            yield len(torch.from_numpy(np.clip((x - mean) / deviation, -5, 5)))

    def details() -> dict[str, Any]:
        some = sampler[np.random.default_rng(1).integers(len(sampler), size=CHECKED).tolist()]
        lost = float(np.isnan(some).any(axis=(1, 2)).mean())
        return {"windows": len(sampler), "windows_with_nan": lost}

    return (dataset, made), batches, details


METHODS = {"ours": ours, "mapped": mapped, "published": published, "TSDatasetH": ts_dataset}


def difference(train: Windows, job: Job) -> dict[str, float]:
    """How far z of some of our windows are from the published ones, at the worst.

    float64, float32: computed as published in that type, but with our floor of the spread, over
        1e-5 + 1e-5 |z|.
    """
    case, rng = job.case, np.random.default_rng(2)
    which = np.sort(rng.choice(len(train), min(CHECKED, len(train)), replace=False))
    batch = Segment(train).batch(which)
    index = train.take(which).index
    frames = frames_of(sorted(set(index.get_level_values("instrument"))), job)
    found = []
    for own, own_stamps, (moment, symbol) in zip(batch.z, batch.stamps, index, strict=True):
        frame = with_times(frames[symbol])
        start = frame.index.get_loc(moment) - case.lookback + 1
        z, stamps = window_as_published(frame, start, case, np.float64, own_floor=True)
        if not torch.equal(own_stamps.float(), stamps):
            raise SystemExit(f"{symbol} at {moment}: other time fields than published")
        narrow = window_as_published(frame, start, case, own_floor=True)[0]
        found.append((
            float(((own - z).abs() / (1e-5 + 1e-5 * z.abs())).max()),
            float(((own - narrow).abs() / (1e-5 + 1e-5 * narrow.abs())).max()),
        ))  # fmt: skip
    return dict(zip(("float64", "float32"), np.max(found, axis=0).tolist(), strict=True))


# The whole of it.


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", type=Case.parse, nargs="+", default=[*map(Case.parse, CASES)])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=[*METHODS])
    parser.add_argument("--instruments-daily", type=int, default=5000)
    parser.add_argument("--years", type=float, default=10, help="of daily bars")
    parser.add_argument("--instruments-5min", type=int, default=300)
    parser.add_argument("--days", type=int, default=243, help="of 5-minute bars")
    parser.add_argument("--published-instruments", type=int, help="at most, for this method")
    parser.add_argument("--ts-instruments", type=int, help="at most, for TSDatasetH")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[50, 256])
    parser.add_argument("--seconds", type=float, default=4.0, help="to count windows for")
    parser.add_argument("--kernels", type=int, default=1, help="processes in which Qlib reads")
    parser.add_argument("--folder", type=Path, help="keep the providers here and use them again")
    parser.add_argument("--json", type=Path, help="write the table here too")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as passing:
        rows = measure_all(args, args.folder or Path(passing))
    show(rows)
    if args.json:
        versions = {"qlib": qlib.__version__, "numpy": np.__version__, "pandas": pd.__version__}
        args.json.write_text(json.dumps({**versions, "rows": rows}, indent=1), encoding="utf-8")
    return 0


def measure_all(args: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """A row for each case and method."""
    markets = {
        "day": Market("day", args.instruments_daily, round(args.years * 243)),
        "5min": Market("5min", args.instruments_5min, args.days),
    }
    limits = {"published": args.published_instruments, "TSDatasetH": args.ts_instruments}
    rows: list[dict[str, Any]] = []
    for case in args.cases:
        market = markets[case.freq]
        provider = open_market(market, folder / case.freq)
        found: dict[str, dict[str, Any]] = {}
        for method in args.methods:
            limit = limits.get(method)
            names = None if limit is None or limit >= market.instruments else market.names[:limit]
            job = Job(
                case=case,
                folder=folder / case.freq,
                segments={name: tuple(ends) for name, ends in provider["segments"].items()},
                names=names,
                batch_sizes=tuple(args.batch_sizes),
                seconds=args.seconds,
                kernels=args.kernels,
            )
            # Not multiprocessing.Pool: its workers may not have the processes Qlib reads with.
            spawn = multiprocessing.get_context("spawn")
            if method == "mapped" and not table_of(job.folder).exists():
                with ProcessPoolExecutor(1, mp_context=spawn) as fresh:
                    fresh.submit(write_mapped, job.folder, case.freq).result()
            with ProcessPoolExecutor(1, mp_context=spawn) as fresh:
                result = fresh.submit(measure, method, job).result()
            bars = sum(provider["bars"][name] for name in names or market.names)
            found[method] = {
                "case": asdict(case), "method": method, "times": provider["times"],
                "instruments": len(names or market.names), "raw": bars * BAR_BYTES, **result,
            }  # fmt: skip
            print(f"{case.freq} {case.bars} {method}: done", file=sys.stderr, flush=True)
        check_same(found)
        rows += found.values()
    return rows


def check_same(found: dict[str, dict[str, Any]]) -> None:
    """Refuse to compare work that is not the same."""
    if "ours" in found and (apart := found["ours"]["difference"]["float64"]) > 1:
        raise SystemExit(f"z differ from the published ones, {apart:.2g} x what is allowed")
    both = [found[name] for name in ("ours", "published") if name in found]
    if len({row["instruments"] for row in both}) == 1 and len({row["windows"] for row in both}) > 1:
        counts = " and ".join(str(row["windows"]) for row in both)
        raise SystemExit(f"ours and published have {counts} windows to train on: nothing to show")


def show(rows: list[dict[str, Any]]) -> None:
    print(
        "| bars | method | instruments | windows | batch | start s | windows/s | x published "
        "| resident MiB | x raw | peak x raw |\n" + "|---" * 11 + "|"
    )
    plain = {
        (row["case"]["freq"], row["case"]["lookback"], size): rate
        for row in rows if row["method"] == "published"
        for size, rate in row["windows_per_s"].items()
    }  # fmt: skip
    targets: list[tuple[str, float, bool]] = []
    for row in rows:
        case, raw, is_ours = Case(**row["case"]), row["raw"], row["method"] == "ours"
        what = f"{case.freq} {case.lookback} + {case.horizon}"
        for size, rate in row["windows_per_s"].items():
            usual = plain.get((case.freq, case.lookback, size))
            peak = "-" if row["peak"] is None else f"{row['peak'] / raw:.2f}"
            print(
                f"| {what} | {row['method']} | {row['instruments']:,} | {row['windows']:,} "
                f"| {size} | {row['start_s']:.2f} | {rate:,.0f} "
                f"| {'-' if usual is None else f'{rate / usual:.1f}'} "
                f"| {row['resident'] / MIB:,.0f} | {row['resident'] / raw:.2f} | {peak} |"
            )
            if is_ours and usual is not None:
                ratio = rate / usual
                targets.append((f"{what}, {size}: x published", ratio, ratio >= LEAST_RATIO))
        if is_ours:
            held = row["resident"] / raw
            targets.append((f"{what}: resident x raw", held, held <= MOST_RESIDENT))
        if is_ours and case.freq == "day":
            start = row["start_s"]
            targets.append((f"{what}: start s", start, start < MOST_START_S))
    print(
        f"\nTargets: {LEAST_RATIO:g} x published, daily start under {MOST_START_S:g} s, resident "
        f"{MOST_RESIDENT:g} x raw at most"
    )
    for name, value, is_met in targets:
        print(f"- {name} {value:.2f}: {'met' if is_met else 'MISSED'}")
    print("\nWhere the starts go, in seconds (qlib.init before it), and what else was found:")
    for row in rows:
        parts = ", ".join(f"{name} {spent:.2f}" for name, spent in row["parts_s"].items())
        case = row["case"]
        more = ""
        if row["method"] == "ours":
            table, ends = row["table_bytes"] / row["raw"], row["ends_bytes"] / row["raw"]
            worst = row["difference"]
            more = (
                f"; table {table:.2f} and windows {ends:.2f} x raw; z within "
                f"{worst['float64']:.3f}e-5 of published in float64, {worst['float32']:.2f}e-5 in "
                "float32"
            )
        elif row["method"] == "TSDatasetH":
            more = f"; {row['windows_with_nan']:.0%} of windows have a NaN"
        print(
            f"- {case['freq']} {case['lookback']} {row['method']}: {parts} "
            f"(init {row['init_s']:.2f}); {row['own'] / MIB:,.0f} MiB of its own{more}"
        )


if __name__ == "__main__":
    raise SystemExit(main())
