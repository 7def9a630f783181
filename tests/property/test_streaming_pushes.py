"""Whatever order bars come in, an exact stream knows what a full read of the same bars knows."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kronos_qlib.data.calendar.stamps import bars_ahead
from kronos_qlib.errors import CalendarError
from kronos_qlib.inference.predictor import KronosPredictor
from kronos_qlib.inference.sampling import SamplingConfig
from kronos_qlib.inference.streaming.streaming_predictor import StreamingPredictor

LOOKBACK, HOURS = 5, 14
TIMES = pd.date_range("2024-03-01", periods=HOURS, freq="h")
HOW = SamplingConfig(paths=2, temperature=1.0)

pushes = st.lists(
    st.tuples(st.integers(0, HOURS - 1), st.sampled_from([1.0, 1.0, 1.2])), max_size=14
)


def bar(hour, factor):
    rng = np.random.default_rng(hour)
    low, opened, close, high = np.sort(rng.uniform(9, 11, 4)) * factor
    return {
        "symbol": "A", "date": TIMES[hour], "open": opened, "high": high, "low": low,
        "close": close, "volume": 10.0 + rng.uniform(), "amount": 100.0,
    }  # fmt: skip


@settings(max_examples=8)
@given(pushes=pushes, mode=st.sampled_from(["exact", "fast"]))
def test_every_order_of_pushes(make_pair, pushes, mode):
    tokenizer, model = make_pair()
    predictor = KronosPredictor(model, tokenizer, device="cpu", max_context=16)
    stream = StreamingPredictor(
        predictor, lookback=LOOKBACK, mode=mode, hold=3, sampling=HOW, freq="h"
    )
    most = LOOKBACK + (3 if mode == "fast" else 0)
    known: dict[int, float] = {}
    for hour, factor in [*((hour, 1.0) for hour in range(4)), *pushes]:
        pushed = stream.push(bar(hour, factor))
        oldest = min(known, default=0)
        if known.get(hour) == factor:
            assert pushed.outcome == "repeated"
        elif len(known) == most and hour < oldest:
            assert pushed.outcome == "too late"
        else:
            is_newest = hour > max(known, default=-1)
            known[hour] = factor
            known = dict(sorted(known.items())[-most:])
            if pushed.outcome == "waiting":
                assert pushed.forecast is None
            else:
                appended = mode == "fast" and is_newest and pushed.outcome == "appended"
                assert appended or pushed.outcome == "read"
        if pushed.forecast is None:
            if len(known) >= LOOKBACK:
                times = [TIMES[one] for one in list(known)[-LOOKBACK:]]
                with pytest.raises(CalendarError):
                    bars_ahead(times, 1, freq="h")
        elif pushed.age == 0:
            window = pd.DataFrame([bar(*each) for each in list(known.items())[-LOOKBACK:]])
            [full] = predictor.predict_paths(
                [window], [window["date"]], pred_len=1, keys=["A"], sampling=HOW, freq="h",
                warn=False, verbose=False,
            )  # fmt: skip
            assert np.array_equal(pushed.forecast.paths, full.paths)
            assert (pushed.forecast.times == full.times).all()
