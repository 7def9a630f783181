"""What each stage costs as names and years grow: CPU seconds and peak memory, with exponents.

Simulated daily markets (`data.files.synthetic`), each written as a Qlib folder and taken through in
a fresh process, on one thread:
- write: bars to a Qlib folder, the folder read back. read: its bars to a table.
- find: every window of 90 bars. gather: all of them normalised, in batches of 256.
- score: contexts and an alpha head, on the last days of the market, --scored for each year; paths:
  5 paths of 5 bars likewise, on --drawn days. The network is a small one (width 16): a real one's
  arithmetic is the same for every window, which generation.py and draws.py measure.
- reports: daily ICs with their errors, decay, tenths and their order, autocorrelation, turnover,
  terciles of the market, and a stationary bootstrap of 2,000 draws, of a score of every window.
- backtest: Qlib's TopK-dropout of that score, 50 names.

Points: --names at one year, and --names-by-year at each of --years. Work is what a stage walks
over: bars, windows, or rows of scores.

Exponents: of CPU seconds over work, least squares on logarithms along one axis, and between its two
largest points, where constant parts weigh least. 1 is linear; a constant part makes it less. One
above 1.15 is named. The same of the peak memory of scoring over names, where 0 is flat: a day's
windows are read in blocks. Memory is what a stage took at its highest beyond what there was when it
began (Linux; elsewhere not known).

Points stay in --work, so that a run goes on where it was stopped; changed code is not noticed.

Example:
    python benchmarks/growth.py --json growth.json
    python benchmarks/growth.py --names 50 200 --years 1 2 --names-by-year 50
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from finetuning import forget, keep, recall, versions
from intervals import stationary
from qlib.backtest import backtest
from windows import Memory

from kronos_qlib import KronosPredictor
from kronos_qlib.data.files.synthetic import MarketConfig, make_market
from kronos_qlib.data.windows.scale_features import SCALE_FEATURES
from kronos_qlib.evaluation.ranking.conditions import by_state, known_terciles
from kronos_qlib.evaluation.ranking.day_tables import to_wide
from kronos_qlib.evaluation.ranking.groups import group_returns, group_table, monotonicity
from kronos_qlib.evaluation.ranking.information_coefficient import daily_ic, decay, summarise
from kronos_qlib.evaluation.ranking.stability import rank_autocorrelation, top_turnover
from kronos_qlib.evaluation.text_table import format_rows
from kronos_qlib.inference.sampling import SamplingConfig
from kronos_qlib.model.alpha_head import AlphaHead
from kronos_qlib.model.tokenizer import KronosTokenizer
from kronos_qlib.model.transformer import Kronos
from kronos_qlib.pipeline.scoring import scores_from_alpha, signals_from_paths
from kronos_qlib.plugin.dataset import KronosDataset, KronosHandler
from kronos_qlib.plugin.lookahead import open_provider
from kronos_qlib.plugin.provider.writer import write_provider
from kronos_qlib.plugin.records.backtest_record import BacktestConfig, qlib_config
from kronos_qlib.plugin.runs.quiet import quiet_backtest
from kronos_qlib.training.batches import EpochSampler, Segment

MEAN = "MEAN"
LOOKBACK = 90
MIB = 2**20
LINEAR = 1.15
FLAT = 0.15
STAGES = ("write", "read", "find", "gather", "score", "paths", "reports", "backtest")
IN_BLOCKS = ("score", "paths")
"""Stages whose memory does not depend on names."""
WIDTH = 16
SIZES: dict[str, Any] = {
    "s1_bits": 4, "s2_bits": 4, "d_model": WIDTH, "n_heads": 2, "ff_dim": 24,
    "ffn_dropout_p": 0.0, "attn_dropout_p": 0.0, "resid_dropout_p": 0.0,
}  # fmt: skip
LOSSES = {"beta": 0.05, "gamma0": 1.0, "gamma": 1.1, "zeta": 0.05, "group_size": 1}

Point = tuple[int, float]
"""Names, and years."""


def small_predictor() -> KronosPredictor:
    torch.manual_seed(0)
    tokenizer = KronosTokenizer(d_in=6, n_enc_layers=2, n_dec_layers=2, **SIZES, **LOSSES)
    net = Kronos(n_layers=2, token_dropout_p=0.0, learn_te=True, **SIZES)
    return KronosPredictor(net.eval(), tokenizer.eval(), "cpu")


class Meter:
    """CPU seconds, memory and work of one stage after another."""

    def __init__(self) -> None:
        self.found: dict[str, dict[str, float | None]] = {}

    def stage(self, name: str, do: Callable[[], Any], work: Callable[[Any], int]) -> Any:
        memory = Memory()
        began = time.process_time()
        result = do()
        seconds = time.process_time() - began
        peak = memory.peak()
        self.found[name] = {
            "cpu": seconds,
            "peak": None if peak is None else peak / MIB,
            "work": work(result),
        }
        print(f"  {name}: {seconds:.1f} s", file=sys.stderr, flush=True)
        return result


def measure(point: Point, folder: Path, scored: int, drawn: int) -> dict[str, Any]:
    """All stages of one point, in a process that has done nothing else."""
    torch.set_num_threads(1)
    names, years = point
    how = MarketConfig(instruments=names, sectors=8, years=years, intraday_steps=4, late_share=0.0)
    parts = [make_market(how).bars]
    meter = Meter()
    meter.stage(
        "write",
        lambda: write_provider(parts[0], folder, benchmark=MEAN, future_bars=20),
        lambda _: len(parts[0]),
    )
    parts.clear()
    open_provider(folder, region="cn", logging_level=logging.WARNING)
    dataset = KronosDataset(KronosHandler("all"), {"test": (None, None)}, lookback=LOOKBACK,
                            horizon=5)  # fmt: skip
    source = meter.stage("read", lambda: dataset.source, lambda found: len(found.table))
    windows = meter.stage("find", lambda: source.labelled_windows("test"), len)

    def gather_all() -> int:
        segment, done = Segment(windows), 0
        room = segment.memory(256)
        for which in EpochSampler(len(segment), 256, seed=0).epoch(1):
            done += len(segment.batch(which, "cpu", room))
        return done

    meter.stage("gather", gather_all, int)

    def newest(days: int) -> Any:
        moments = windows.moments()[-max(1, round(days * years)) :]
        return windows.take(slice(moments[0].start, moments[-1].stop))

    predictor = small_predictor()
    head = AlphaHead(WIDTH, len(SCALE_FEATURES), 8, 16, 0.0).eval()
    some = newest(scored)
    meter.stage("score", lambda: scores_from_alpha(predictor, head, some), len)
    few = newest(drawn)
    drawing = SamplingConfig(paths=5, stratified=True)
    meter.stage(
        "paths",
        lambda: signals_from_paths(predictor, source, few, drawing, ("expected_return",), seed=0),
        len,
    )
    rng = np.random.default_rng(0)
    score = pd.Series(rng.normal(size=len(windows)), index=windows.index, name="score")
    labels = pd.Series(source.label.of(windows), index=score.index)
    meter.stage("reports", lambda: reports(score, labels), lambda _: len(score))
    meter.stage("backtest", lambda: traded(score.to_frame(), names), lambda _: len(score))
    return meter.found


def reports(score: pd.Series, labels: pd.Series) -> None:
    """What a signal report measures of a score and its label."""
    wide, returns = to_wide(score), to_wide(labels)
    daily = daily_ic(wide, returns)["rank_ic"]
    summarise(daily)
    decay(wide, {horizon: returns for horizon in (1, 2, 5, 10)})
    parted = group_returns(wide, returns, 10)
    group_table(parted)
    monotonicity(parted)
    rank_autocorrelation(wide, range(1, 11))
    top_turnover(wide, 0.1)
    by_state(daily, known_terciles(returns.std(axis=1)))
    stationary(np.random.default_rng(0), 2000)(daily.dropna().to_numpy()[None], 1)


def traded(score: pd.DataFrame, names: int) -> None:
    config = qlib_config(BacktestConfig(benchmark=MEAN, topk=min(50, names // 2)), score)
    config["strategy"]["kwargs"]["signal"] = score
    with quiet_backtest():
        backtest(executor=config["executor"], strategy=config["strategy"], **config["backtest"])


# Exponents.


def exponents(work: Sequence[float], cost: Sequence[float]) -> tuple[float, float]:
    """Slope of log cost over log work: of all points, and of the two with the most work."""
    order = np.argsort(work)
    x, y = np.log(np.asarray(work)[order]), np.log(np.maximum(np.asarray(cost)[order], 1e-9))
    whole = np.polyfit(x, y, 1)[0]
    return float(whole), float((y[-1] - y[-2]) / (x[-1] - x[-2]))


def fitted(rows: Sequence[dict[str, Any]], axis: str) -> list[dict[str, Any]]:
    """Exponents of each stage along one axis, "names" or "years", and what is to be named."""
    found = []
    for stage in STAGES:
        own = [row["stages"][stage] for row in rows]
        work = [one["work"] for one in own]
        whole, last = exponents(work, [one["cpu"] for one in own])
        one = {"stage": stage, "along": axis, "cpu": whole, "cpu_last": last, "named": ""}
        if max(whole, last) > LINEAR:
            one["named"] = f"above {LINEAR}"
        peaks = [each["peak"] for each in own]
        if axis == "names" and stage in IN_BLOCKS and None not in peaks:
            along = [row["names"] for row in rows]
            one["memory"], one["memory_last"] = exponents(along, [max(1.0, p) for p in peaks])
            if one["memory_last"] > FLAT:
                one["named"] += f"{'; ' if one['named'] else ''}memory grows with names"
        found.append(one)
    return found


def show(rows: Sequence[dict[str, Any]], fits: Sequence[dict[str, Any]]) -> str:
    head = ["names", "years", "stage", "work", "CPU s", "us a unit", "peak MiB"]
    lines = [head, ["---"] * len(head)]
    for row in rows:
        for stage in STAGES:
            one = row["stages"][stage]
            peak = "-" if one["peak"] is None else f"{one['peak']:,.0f}"
            lines.append([
                f"{row['names']:,}", f"{row['years']:g}", stage, f"{one['work']:,}",
                f"{one['cpu']:.2f}", f"{1e6 * one['cpu'] / one['work']:,.1f}", peak,
            ])  # fmt: skip
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    head = ["stage", "along", "CPU", "CPU, last two", "memory", "memory, last two", ""]
    table = [head]
    for one in fits:
        memory = [f"{one[name]:.2f}" if name in one else "-" for name in ("memory", "memory_last")]
        cpu = [f"{one[name]:.2f}" for name in ("cpu", "cpu_last")]
        table.append([one["stage"], one["along"], *cpu, *memory, one["named"]])
    return f"{text}\n\nExponents:\n{format_rows(table)}"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, default=Path("demo/growth"), help="what is kept")
    parser.add_argument("--names", type=int, nargs="+", default=[100, 500, 5000])
    parser.add_argument("--years", type=float, nargs="+", default=[1, 3, 10])
    parser.add_argument("--names-by-year", type=int, default=500, metavar="NAMES")
    parser.add_argument("--scored", type=int, default=4, help="days of a year (%(default)s)")
    parser.add_argument("--drawn", type=int, default=1, help="days of a year (%(default)s)")
    parser.add_argument("--json", type=Path, help="write the table here too")
    args = parser.parse_args(argv)
    if len(set(args.names)) < 2 or len(set(args.years)) < 2:
        parser.error("an exponent needs two names and two years or more")
    if min(args.years) < 0.8 or min(args.names) < 20:
        parser.error(f"a year has windows of {LOOKBACK} bars from 0.8 on, and tenths 20 names")
    by_names = [(names, 1.0) for names in sorted(set(args.names))]
    by_years = [(args.names_by_year, years) for years in sorted(set(args.years))]
    rows = {}
    for point in dict.fromkeys([*by_names, *by_years]):
        kept = args.work / f"{point[0]}x{point[1]:g}.point"
        settings = {"point": point, "scored": args.scored, "drawn": args.drawn, **versions()}
        if (note := recall(kept, settings)) is not None:
            rows[point] = {"names": point[0], "years": point[1], "stages": note["stages"]}
            continue
        forget(kept)
        print(f"{point[0]} names x {point[1]:g} years", file=sys.stderr, flush=True)
        spawn = multiprocessing.get_context("spawn")
        with (
            tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder,
            ProcessPoolExecutor(1, mp_context=spawn) as fresh,
        ):
            job = fresh.submit(measure, point, Path(folder) / "qlib", args.scored, args.drawn)
            stages = job.result()
        kept.touch()
        keep(kept, settings, stages=stages)
        rows[point] = {"names": point[0], "years": point[1], "stages": stages}
    fits = [
        *fitted([rows[point] for point in by_names], "names"),
        *fitted([rows[point] for point in by_years], "years"),
    ]
    print(show(list(rows.values()), fits))
    if args.json:
        found = {"rows": list(rows.values()), "exponents": fits, "torch": torch.__version__}
        args.json.write_text(json.dumps(found, indent=1), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
