"""`kronos-qlib forecast`: a file of bars in; a table and a picture of the bars to come out."""

from __future__ import annotations

import argparse
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING

from kronos_qlib.cli.parsers import check_output, describe
from kronos_qlib.cli.reading import add_reading, reading_of
from kronos_qlib.errors import ConfigError
from kronos_qlib.schema import CLOSE

if TYPE_CHECKING:
    import pandas as pd

    from kronos_qlib.inference.forecast import Forecast

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
AUTO, NONE = "auto", "none"
"""Words of --calibration; a file of such a name is ./auto."""
CANDLES = 80
"""Most bars of the past in the picture."""
PATHS_FOR_A_BAND = 19
"""The fewest paths whose lowest and highest are a band of 90 %."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    describe(
        parser,
        "Draw the bars after the last one of a file: their mean and quantiles as CSV, and a "
        "picture. The same file, settings and seed give the same forecast. Its spread is "
        "calibrated by what lies beside the weights; where nothing fits, the line, the table and "
        "the picture say uncalibrated: drawn paths are too bold, and no share of them is a "
        "probability.",
        "kronos-qlib forecast 600977.csv --exchange XSHG --model small --lookback 400 --horizon 48",
        "kronos-qlib forecast bars.parquet --symbol AAPL --exchange XNYS --out aapl.csv",
        "kronos-qlib forecast coins.csv --symbol BTC --paths 200 --quantiles 0.1 0.5 0.9",
        "kronos-qlib forecast aapl.csv --model small --calibration mine.json",
    )
    parser.add_argument("source", type=Path, help="a .csv, .parquet or .feather file of bars")
    parser.add_argument("--symbol", help="which instrument, when the file has several")
    ahead = parser.add_mutually_exclusive_group()
    ahead.add_argument(
        "--exchange",
        metavar="CODE",
        help="whose trading times the bars to come have: XSHG, XNYS, 24/7, ...; knows holidays "
        "(the weekdays and times of the bars read; knows none)",
    )
    ahead.add_argument(
        "--freq",
        metavar="FREQ",
        help="or a pandas frequency, the step of the bars: 5min, B, D, W-FRI; knows none",
    )
    parser.add_argument(
        "--model", default="nano", help="alias, Hub id or folder; see kronos-qlib models (nano)"
    )
    parser.add_argument("--tokenizer", help="its tokenizer, if not under the same name")
    parser.add_argument("--device", help="a torch device (CUDA, Apple's or the CPU, as found)")
    parser.add_argument("--horizon", type=int, default=10, help="bars to come (%(default)s)")
    parser.add_argument(
        "--lookback", type=int, help="bars seen (as many as leave the model room for the horizon)"
    )
    parser.add_argument(
        "--slide",
        action="store_true",
        help="see as many bars as the model can, and reread every path for every bar to come: slow",
    )
    parser.add_argument(
        "--paths",
        type=int,
        default=100,
        help="futures drawn (%(default)s); 1 is one path, without band or quantiles",
    )
    parser.add_argument(
        "--no-anchor",
        dest="anchor",
        action="store_false",
        help="leave paths where the tokens put them, as published; by default they begin at the "
        "last close",
    )
    parser.add_argument(
        "--calibration",
        default=AUTO,
        metavar="auto|none|FILE",
        help="auto: what lies beside the weights, if it fits them and the bars; none: paths as "
        "they were drawn; or a file of kronos-qlib calibrate, which must fit (%(default)s)",
    )
    parser.add_argument("--temperature", type=float, default=1.0, help="(%(default)s)")
    parser.add_argument("--top-p", type=float, default=1.0, help="(%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="(%(default)s)")
    parser.add_argument(
        "--quantiles",
        type=float,
        nargs="+",
        metavar="Q",
        help=f"of the close ({' '.join(map(str, QUANTILES))})",
    )
    add_reading(parser)
    parser.add_argument(
        "--out", type=Path, default=Path("forecast.csv"), help="the table (%(default)s)"
    )
    parser.add_argument("--picture", type=Path, help="(--out's name, ending in .png)")
    parser.add_argument("--overwrite", action="store_true", help="replace older results")
    parser.set_defaults(command=forecast)


def forecast(arguments: argparse.Namespace) -> None:
    picture = arguments.picture or arguments.out.with_suffix(".png")
    levels = _levels(arguments)
    _check_targets(arguments, picture)
    bars, notes = _bars_of(arguments)
    import pandas as pd

    from kronos_qlib.evaluation.forecasts.candles import candle_figure
    from kronos_qlib.inference.predictor import KronosPredictor
    from kronos_qlib.pipeline.one_series import (
        bars_seen,
        check_seen,
        times_ahead,
        tokenizer_taken,
    )

    predictor = KronosPredictor.from_pretrained(
        arguments.model, arguments.tokenizer, arguments.device
    )
    context = predictor.max_context
    lookback, cut = bars_seen(
        len(bars),
        context,
        model=arguments.model,
        source=str(arguments.source),
        lookback=arguments.lookback,
        horizon=arguments.horizon,
        slide=arguments.slide,
    )
    window = bars.tail(lookback)
    notes = (*notes, *tokenizer_taken(predictor, arguments.model, arguments.tokenizer), *cut)
    notes = (*notes, *check_seen(window, str(arguments.source)))
    ahead = times_ahead(
        bars, window, arguments.horizon, exchange=arguments.exchange, freq=arguments.freq
    )
    is_slow = lookback + arguments.horizon > context
    if is_slow:
        print(
            f"{lookback} bars seen and {arguments.horizon} to come are more than the {context} "
            f"that {arguments.model} sees at once: it rereads every path for every bar beyond, "
            "which is slow, and the later bars, drawn from its own, are not to be trusted",
            flush=True,
        )
    found: Forecast = predictor.predict_paths(
        [window],
        [window["date"]],
        [ahead.times],
        arguments.horizon,
        T=arguments.temperature,
        top_p=arguments.top_p,
        sample_count=arguments.paths,
        anchor=arguments.anchor,
        calibration=_calibration(arguments),
        verbose=is_slow,
        seed=arguments.seed,
        keys=[window["symbol"].iloc[0]],
        warn=False,  # it is printed as notes
    )[0]
    quantiles = pd.DataFrame(index=found.mean.index)
    if levels:
        quantiles = pd.DataFrame(found.quantiles(levels)["close"])
    _table(found, quantiles).to_csv(arguments.out, index=False, lineterminator="\n")
    candle_figure(
        window.set_index("date").tail(CANDLES),
        found.mean,
        quantiles,
        _title(found, arguments),
        mean_label="mean" if len(found.paths) > 1 else "one path",
    ).savefig(picture)
    if arguments.calibration != NONE:
        notes = (*notes, found.calibration)  # on what, or why not
    notes = (*notes, *_beyond_paths(found, levels))
    for note in (*notes, *ahead.doubts):
        print(f"note: {note}")
    rule = arguments.exchange or arguments.freq or ahead.rule
    print(_summary(bars, window, found, arguments, context, rule))
    print(f"{arguments.out} and {picture}")


def _calibration(arguments: argparse.Namespace) -> str | Path | None:
    asked: str = arguments.calibration
    return {AUTO: AUTO, NONE: None}.get(asked, Path(asked))


def _mark(found: Forecast) -> str:
    """The mark of the printed line, the column `calibration` and the picture: drawn paths are known
    to be too bold."""
    return "calibrated" if found.is_calibrated else "uncalibrated"


def _beyond_paths(found: Forecast, levels: list[float]) -> list[str]:
    """A note on quantiles of calibrated paths that lie beyond the outermost of them."""
    paths = len(found.paths)
    needed = {level: 0.5 / min(level, 1 - level) for level in levels if 0 < level < 1}
    beyond = [level for level, least in needed.items() if least > paths + 1e-9]
    if not found.is_calibrated or not beyond:
        return []
    least = ceil(max(needed[level] for level in beyond) - 1e-9)
    names = ", ".join(f"{level:g}" for level in beyond)
    return [
        f"quantiles {names} lie beyond the outermost of {paths} paths, which stands in their "
        f"place: draw {least} (--paths)"
    ]


def _levels(arguments: argparse.Namespace) -> list[float]:
    """Quantiles that are asked for, in order; none of a single path."""
    asked: list[float] | None = arguments.quantiles
    if arguments.paths == 1:
        if asked is not None:
            raise ConfigError(
                "--quantiles of one path would all be that path; draw more (--paths), or leave "
                "--quantiles out"
            )
        return []
    levels = list(QUANTILES) if asked is None else asked
    if not all(0 <= level <= 1 for level in levels):
        raise ConfigError(f"--quantiles lie in 0 to 1, got {levels}")
    return sorted(set(levels))


def _check_targets(arguments: argparse.Namespace, picture: Path) -> None:
    from kronos_qlib.data.files.read import check_apart

    if arguments.out.suffix.lower() != ".csv":
        raise ConfigError(f"--out {arguments.out}: expected a name ending in .csv")
    if picture.suffix.lower() not in (".png", ".pdf", ".svg"):
        raise ConfigError(f"--picture {picture}: expected a name ending in .png, .pdf or .svg")
    for target in (arguments.out, picture):
        check_apart(target, arguments.source)
        check_output(target, arguments.overwrite)


def _bars_of(arguments: argparse.Namespace) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """The traded bars of the instrument asked for, in order, and notes of reading it."""
    from kronos_qlib.data.files.read import read_bars
    from kronos_qlib.pipeline.one_series import traded_bars

    table = read_bars(arguments.source, **reading_of(arguments))
    return traded_bars(table, arguments.symbol, str(arguments.source))


def _table(found: Forecast, quantiles: pd.DataFrame) -> pd.DataFrame:
    """A row per bar to come: the mean of the paths, quantiles of the close, share that rose.

    Of a single path it is that path, and there are no quantiles and no share.
    """
    table = found.mean.rename_axis("date").reset_index()
    for level in quantiles:
        table[f"close_q{level:g}"] = quantiles[level].to_numpy()
    if len(found.paths) > 1:
        table["prob_up"] = (found.paths[:, :, CLOSE] > found.last_close).mean(axis=0)
    table.insert(0, "symbol", found.name)
    table.insert(2, "calibration", _mark(found))
    table.insert(3, "anchored", found.anchored)
    return table


def _title(found: Forecast, arguments: argparse.Namespace) -> str:
    return (
        f"{found.name}: {arguments.horizon} bars ahead, {_drawn(found)} of {arguments.model}, "
        f"{_mark(found)}"
    )


def _drawn(found: Forecast) -> str:
    return "one path" if len(found.paths) == 1 else f"{len(found.paths)} paths"


def _summary(
    bars: pd.DataFrame,
    window: pd.DataFrame,
    found: Forecast,
    arguments: argparse.Namespace,
    context: int,
    rule: str,
) -> str:
    from kronos_qlib.data.calendar.time_text import show_span

    seen, ahead = window["date"].to_numpy(), found.mean.index.to_numpy()
    lines = [
        f"{found.name}: {len(bars)} bars read, the last {len(seen)} seen, {show_span(seen)}",
        f"{arguments.model} sees {context} bars at once",
    ]
    lines += [
        f"{arguments.horizon} bars to come, {show_span(ahead)}, by {rule}",
        f"return from {found.last_close:.6g} ({'anchored' if found.anchored else 'not anchored'}) "
        f"to the last of them, {_drawn(found)}, "
        f"{_mark(found)}: {_spread(found)}",
    ]
    return "\n".join(lines)


def _spread(found: Forecast) -> str:
    """Returns of the paths in words: no quantile that their number does not support."""
    moves = found.returns()
    if len(moves) == 1:
        return f"{_percent(moves[0])}, one draw of many that could be"
    share = f"mean {_percent(moves.mean())}, {(moves > 0).mean():.0%} of the paths up"
    closes = found.quantiles((0.05, 0.5, 0.95))["close"].iloc[-1]
    low, middle, high = map(_percent, closes / found.last_close - 1)
    if len(moves) < PATHS_FOR_A_BAND:
        lowest, highest = _percent(moves.min()), _percent(moves.max())
        return f"median {middle}, lowest {lowest}, highest {highest}, {share}"
    return f"median {middle}, 90 % of the paths within {low} and {high}, {share}"


def _percent(share: float) -> str:
    """Signed, to the hundredth; what rounds to nothing is not below it."""
    return f"{round(share, 4) + 0.0:+.2%}"
