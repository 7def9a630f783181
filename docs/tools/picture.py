"""The README's picture: one share of the demo market, as nano forecasts it, and what came.

kronos-qlib data demo demo/market
python docs/tools/picture.py demo/market/bars.parquet docs/images/forecast.png
"""

from __future__ import annotations

import sys

import pandas as pd

from kronos_qlib import Kronos, KronosPredictor, KronosTokenizer
from kronos_qlib.evaluation.forecasts.candles import candle_figure


def main(source: str, target: str) -> None:
    bars = pd.read_parquet(source).query("symbol == 'SYM0001'").set_index("date")
    past, came = bars.iloc[-100:-10], bars.iloc[-10:]
    predictor = KronosPredictor(
        Kronos.from_pretrained("nano"), KronosTokenizer.from_pretrained("nano"), max_context=100
    )
    [drawn] = predictor.predict_paths(
        [past], [past.index], [came.index], sample_count=300, top_p=1.0, keys=["SYM0001"]
    )
    mark = "calibrated" if drawn.is_calibrated else "uncalibrated"
    figure = candle_figure(
        past,
        drawn.mean,
        drawn.quantiles([0.05, 0.25, 0.5, 0.75, 0.95])["close"],
        f"SYM0001 of the demo market: 90 bars seen, nano's bands ({mark}), and what came",
        came=came["close"],
    )
    figure.savefig(target, dpi=110, bbox_inches="tight", pil_kwargs={"optimize": True})


if __name__ == "__main__":
    main(*sys.argv[1:])
