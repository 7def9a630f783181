"""The API end to end: what is asked by HTTP, with nano and a small simulated market."""

from __future__ import annotations

import io
import json
import re
import threading
import time
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from kronos_qlib.data.files.synthetic import MarketConfig
from kronos_qlib.inference.predictor import KronosPredictor
from kronos_qlib.plugin.demo import write_demo
from kronos_qlib.webui import schemas
from kronos_qlib.webui.app import make_app
from kronos_qlib.webui.security import Guard
from kronos_qlib.webui.service import Places, Service

HORIZON, PATHS = 4, 20
QUICK = {"horizon": HORIZON, "paths": PATHS, "wait": 10}


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    folder = tmp_path_factory.mktemp("web")
    write_demo(folder / "market", MarketConfig(instruments=6, years=1.0, late_share=0.0))
    (folder / "checkpoints").mkdir()
    return Places(
        folder / "market",
        folder / "checkpoints",
        folder / "kept",
        f"sqlite:///{(folder / 'mlflow.db').as_posix()}",
    )


@pytest.fixture(scope="module")
def service(places):
    made = Service(places, most_waiting=4)
    made.models.get("nano")
    yield made
    made.close()


@pytest.fixture
def client(service):
    return make_app(service).test_client()


def walk(bars=120, seed=0, first="2024-01-01"):
    rng = np.random.default_rng(seed)
    close = 10 * np.exp(np.cumsum(rng.normal(0, 0.02, bars)))
    opened = np.concatenate(([10.0], close[:-1]))
    return pd.DataFrame(
        {
            "timestamp": [f"{day:%Y-%m-%d}" for day in pd.bdate_range(first, periods=bars)],
            "open": opened,
            "high": np.maximum(opened, close) * 1.01,
            "low": np.minimum(opened, close) * 0.99,
            "close": close,
            "volume": rng.uniform(1e5, 1e6, bars),
        }
    )


def bars_of(table):
    return json.loads(table.to_json(orient="records"))


def finished(client, answer, seconds=120):
    """The job of a 202, once it has ended."""
    assert answer.status_code == 202, answer.text
    url = answer.json["status_url"]
    until = time.monotonic() + seconds
    while (job := client.get(url).json)["state"] in ("queued", "running"):
        assert time.monotonic() < until
        time.sleep(0.02)
    schemas.Job.model_validate(job)
    return job


def problem(answer, status, field=None):
    assert answer.status_code == status, answer.text
    assert answer.mimetype == "application/problem+json"
    found = schemas.Problem.model_validate(answer.json)
    assert found.status == status
    assert "Traceback" not in answer.text
    if field is not None:
        assert found.field == field
        assert found.errors[0].field == field
    return found


def test_a_forecast_is_the_predictor_s_own(client):
    table = walk()
    asked = {**QUICK, "bars": bars_of(table), "seed": 3, "lookback": 60, "single_paths": 5}
    answer = client.post("/predict", json=asked)
    assert answer.status_code == 200
    found = schemas.Forecast.model_validate(answer.json)
    predictor = KronosPredictor.from_pretrained("nano")
    window = table.tail(60).assign(
        amount=lambda bars: bars["volume"] * bars[["open", "high", "low", "close"]].mean(axis=1)
    )
    ahead = pd.bdate_range(table["timestamp"].iloc[-1], periods=HORIZON + 1)[1:]
    (own,) = predictor.predict_paths(
        [window],
        [pd.to_datetime(window["timestamp"])],
        [ahead],
        HORIZON,
        top_p=1.0,
        sample_count=PATHS,
        verbose=False,
        seed=3,
        keys=["BARS"],
    )
    assert found.timestamps == [f"{day:%Y-%m-%d}" for day in ahead]
    quantiles = own.quantiles(schemas.LEVELS)
    for column in schemas.COLUMNS:
        for level in schemas.LEVELS:
            np.testing.assert_allclose(
                found.quantiles[column][f"{level:g}"], quantiles[column, level], rtol=1e-6
            )
    np.testing.assert_allclose(found.paths, own.paths[:5, :, 3], rtol=1e-6)
    assert found.calibrated == own.is_calibrated
    assert found.outlook.last_return == pytest.approx(own.returns().mean())
    assert found.settings["lookback"] == 60
    assert [bar.timestamp for bar in found.history][-1] == table["timestamp"].iloc[-1]


def test_the_same_request_is_the_same_forecast_and_kept_once(client):
    asked = {**QUICK, "bars": bars_of(walk(seed=1)), "instrument": "same"}
    one, two = (client.post("/predict", json=asked).json for _ in range(2))
    assert one["id"] == two["id"]
    assert one["quantiles"] == two["quantiles"]
    assert client.get("/forecasts?q=same").json["total"] == 1
    other = client.post("/predict", json={**asked, "seed": 1}).json
    assert other["id"] != one["id"]
    assert other["quantiles"] != one["quantiles"]


@pytest.mark.parametrize("suffix", ["csv", "parquet", "feather", "xlsx"])
def test_a_file_gives_the_forecast_of_its_bars(client, suffix):
    table = walk(seed=2).rename(columns={"timestamp": "date"})
    sink = io.BytesIO()
    if suffix == "csv":
        sink.write(table.to_csv(index=False).encode())
    elif suffix == "xlsx":
        table.to_excel(sink, index=False)
    else:
        getattr(table, f"to_{suffix}")(sink)
    sink.seek(0)
    form = {**{name: str(value) for name, value in QUICK.items()}, "seed": ""}
    answer = client.post("/predict", data={**form, "file": (sink, f"../x/ABC.{suffix}")})
    assert answer.status_code == 200, answer.text
    assert answer.json["instrument"] == "ABC"
    assert answer.json["source"] == "file"
    assert answer.json["source_name"] == f"ABC.{suffix}"
    bars = bars_of(table.rename(columns={"date": "timestamp"}))
    given = client.post("/predict", json={**QUICK, "bars": bars, "instrument": "ABC"}).json
    for level, values in given["quantiles"]["close"].items():
        np.testing.assert_allclose(answer.json["quantiles"]["close"][level], values, rtol=1e-5)


def test_a_job_tells_its_progress_and_gives_the_forecast(client):
    asked = {**QUICK, "bars": bars_of(walk(seed=3)), "wait": 0}
    job = finished(client, client.post("/predict", json=asked))
    assert job["state"] == "done"
    assert job["progress"] == 1.0
    assert client.get(job["result_url"]).json["id"] == job["result"]


def slow(service):
    """A request that takes long, beyond what nano sees at once, and is at work."""
    asked = {"bars": bars_of(walk(seed=4)), "horizon": 400, "paths": 500, "wait": 0, "keep": False}
    return asked


def test_cancelling_ends_what_is_computed_and_what_waits(client, service):
    running = client.post("/predict", json=slow(service)).json
    waiting = client.post("/predict", json=slow(service)).json
    until = time.monotonic() + 60
    while client.get(running["status_url"]).json["progress"] <= 0.02:
        assert time.monotonic() < until
        time.sleep(0.01)
    state = client.get(waiting["status_url"]).json
    assert (state["state"], state["position"]) == ("queued", 1)
    listed = schemas.Jobs.model_validate(client.get("/jobs").json).jobs
    assert [one.job for one in listed] == [running["job"], waiting["job"]]
    assert [one.state for one in listed] == ["running", "queued"]
    assert listed[0].about == {"instrument": "BARS"}
    assert client.delete(waiting["status_url"]).json["state"] == "cancelled"
    client.delete(running["status_url"])
    while (state := client.get(running["status_url"]).json)["state"] == "running":
        assert time.monotonic() < until
        time.sleep(0.01)
    assert state["state"] == "cancelled"
    assert state["result_url"] is None
    assert client.get("/jobs").json == {"jobs": []}
    assert client.post("/predict", json={**QUICK, "bars": bars_of(walk())}).status_code == 200


def test_a_full_queue_says_when_to_ask_again(client, service):
    jobs = [client.post("/predict", json=slow(service)) for _ in range(7)]
    refused = [answer for answer in jobs if answer.status_code == 429]
    try:
        assert refused
        found = problem(refused[0], 429)
        assert int(refused[0].headers["Retry-After"]) >= 1
        assert "ask again" in found.detail
        assert client.get("/health").status_code == 200
    finally:
        for answer in jobs:
            if answer.status_code == 202:
                client.delete(answer.json["status_url"])
    until = time.monotonic() + 60
    while service.work.counts != (0, 0):
        assert time.monotonic() < until
        time.sleep(0.01)


def test_a_name_of_the_folder_is_forecast_and_scored_against_what_came(client):
    names = client.get("/instruments?q=sym").json
    assert names["total"] == 6
    day = "2020-10-01"
    asked = {**QUICK, "lookback": 60, "instrument": names["instruments"][0], "date": day}
    found = client.post("/predict", json=asked).json
    assert found["last_timestamp"] <= day
    assert all(bar["timestamp"] <= day for bar in found["history"]), "nothing after the date"
    assert [bar["timestamp"] for bar in found["realised"]] > [day]
    methods = [one["method"] for one in found["track_record"]["this_window"]]
    assert methods == ["kronos", "last_price", "historical_volatility"]
    job = finished(
        client, client.post(f"/forecasts/{found['id']}/track-record", json={"windows": 5})
    )
    record = client.get(job["result_url"]).json["track_record"]
    assert record["past"]["windows"] == 5
    assert record["past"]["last"] < found["last_timestamp"]
    assert [one["method"] for one in record["past"]["scores"]] == methods
    assert 0 <= record["past"]["better_than"]["last_price"] <= 1
    dates = [one["date"] for one in record["past"]["by_window"]]
    assert dates == sorted(dates)


def test_what_comes_after_the_date_changes_no_forecast(client):
    """The bars to come would be seen if they were not cut off."""
    table = walk(seed=6)
    cut = table["timestamp"].iloc[89]
    whole = {**QUICK, "bars": bars_of(table), "date": cut}
    part = {**QUICK, "bars": bars_of(table.iloc[:90])}
    one, two = (client.post("/predict", json=asked).json for asked in (whole, part))
    assert one["quantiles"] == two["quantiles"]
    assert one["id"] == two["id"]


def test_a_kept_forecast_is_reconciled_reopened_and_deleted(client):
    table = walk(seed=7)
    first = client.post("/predict", json={**QUICK, "bars": bars_of(table.iloc[:100])}).json
    assert first["realised"] is None
    url = f"/forecasts/{first['id']}"
    problem(client.post(f"{url}/reconcile", json={}), 422, "bars")
    problem(client.post(f"{url}/reconcile", json={"bars": bars_of(walk(seed=8))}), 422, "bars")
    found = client.post(f"{url}/reconcile", json={"bars": bars_of(table)}).json
    assert [bar["close"] for bar in found["realised"]] == pytest.approx(
        table["close"].iloc[100 : 100 + HORIZON].tolist(), rel=1e-5
    )
    assert found["track_record"]["this_window"]
    assert client.get(url).json == found
    csv = table.rename(columns={"timestamp": "date"}).to_csv(index=False).encode()
    by_file = client.post(f"{url}/reconcile", data={"file": (io.BytesIO(csv), "a.csv")})
    assert by_file.json["realised"] == found["realised"]
    assert client.get("/forecasts/calibration").json["bars"] >= HORIZON
    assert client.delete(url).status_code == 204
    problem(client.get(url), 404)
    problem(client.delete(url), 404)


def test_what_is_not_to_be_kept_is_answered_and_not_written(client, places):
    before = set(places.store.glob("*")) if places.store.exists() else set()
    asked = {**QUICK, "bars": bars_of(walk(seed=9)), "keep": False}
    found = client.post("/predict", json=asked).json
    assert not found["kept"]
    assert client.get(f"/forecasts/{found['id']}").status_code == 200
    assert set(places.store.glob("*")) == before


def changed(table, place, **values):
    bars = bars_of(table)
    bars[place].update(values)
    return bars


@pytest.mark.parametrize(
    ("asked", "field"),
    [
        ({"bars": changed(walk(), 5, timestamp="monday")}, "bars[5].timestamp"),
        ({"bars": changed(walk(), 5, close="9")}, "bars[5].close"),
        ({"bars": changed(walk(), 5, close=None)}, "bars[5].close"),
        ({"bars": changed(walk(), 110, close=0.01)}, "bars"),
        ({"bars": changed(walk(), 5, volume=None)}, "bars[5].volume"),
        ({"bars": changed(walk(), 5, extra=1)}, "bars[5].extra"),
        ({"bars": changed(walk(), 110, volume=1e300)}, "bars"),
        ({"bars": changed(walk(), 110, volume=-1.0)}, "bars"),
        ({"bars": bars_of(walk().assign(open=0.0, high=0.0, low=0.0, close=0.0))}, "bars"),
        ({"bars": bars_of(walk())[:1]}, "bars"),
        ({"bars": []}, "bars"),
        ({"bars": bars_of(walk()), "horizon": 0}, "horizon"),
        ({"bars": bars_of(walk()), "horizon": 10_000}, "horizon"),
        ({"bars": bars_of(walk()), "horizon": "4"}, "horizon"),
        ({"bars": bars_of(walk()), "paths": 1}, "paths"),
        ({"bars": bars_of(walk()), "top_p": 0}, "top_p"),
        ({"bars": bars_of(walk()), "temperature": -1}, "temperature"),
        ({"bars": bars_of(walk()), "lookback": 200}, "lookback"),
        ({"bars": bars_of(walk()), "exchange": "XNYS"}, "exchange"),
        ({"bars": bars_of(walk()), "exchange": "NOPE"}, "exchange"),
        ({"bars": bars_of(walk()), "freq": "5min"}, "freq"),
        ({"bars": bars_of(walk()), "freq": "never"}, "freq"),
        ({"bars": bars_of(walk()), "checkpoint": "../../etc"}, "checkpoint"),
        ({"bars": bars_of(walk()), "checkpoint": "NeoQuasar/Kronos-base"}, "checkpoint"),
        ({"bars": bars_of(walk()), "calibration": "/etc/passwd"}, "calibration"),
        ({"bars": bars_of(walk()), "date": "soon"}, "date"),
        ({"bars": bars_of(walk()), "date": "1999-01-01"}, "date"),
        ({"bars": bars_of(walk()), "instrument": "a\u202eb"}, "instrument"),
        ({"instrument": "NOPE"}, "instrument"),
        ({"instrument": "../../../etc/passwd"}, "instrument"),
        ({}, "bars"),
        ({"path": "/etc/passwd"}, "path"),
        ({"url": "http://evil.example"}, "url"),
    ],
)
def test_a_bad_request_names_its_field(client, asked, field):
    found = problem(client.post("/predict", json={**QUICK, **asked}), 422, field)
    assert len(found.detail) <= 1000


def test_two_bars_of_one_time_are_refused(client):
    bars = changed(walk(), 5, timestamp=walk()["timestamp"].iloc[4])
    assert "bars" in problem(client.post("/predict", json={**QUICK, "bars": bars}), 422).field


def test_a_body_that_is_no_object_is_the_body_s_fault(client):
    for body in (b"null", b"1", b'"x"'):
        found = client.post("/predict", data=body, headers={"Content-Type": "application/json"})
        assert problem(found, 422, "body").detail.startswith("body: ")


def test_a_temperature_that_is_0_to_a_float32_takes_the_likeliest(client):
    asked = {**QUICK, "bars": bars_of(walk()), "keep": False, "temperature": 1e-308}
    answer = client.post("/predict", json=asked)
    assert answer.status_code == 200, answer.text


def test_names_of_runs_may_hold_commas(service, monkeypatch):
    views = service._views
    known = {"a, b": 1, "a": 2, "c": 3}
    store = SimpleNamespace(get_experiment_by_name=known.get)
    monkeypatch.setattr(views, "_open", lambda: store)
    assert views.named(["a, b", "c"]) == ["a, b", "c"]
    assert views.named(["a, b"]) == ["a, b"]
    assert views.named(["a,c"]) == ["a", "c"]
    assert views.named(["a, b", "c,d,"]) == ["a, b", "c", "d"]


@pytest.mark.parametrize(
    ("data", "kind", "status"),
    [
        (b"{", "application/json", 400),
        (b"", "application/json", 400),
        (b"[]", "application/json", 422),
        (b'{"bars": NaN}', "application/json", 422),
        (b"[" * 100_000, "application/json", 400),
        (b"{}", "text/plain", 415),
        (b"{}", "", 415),
        (b"a=1", "application/x-www-form-urlencoded", 415),
        (b"x", "multipart/form-data; boundary=y", 422),
        (b"x", "multipart/form-data", 422),
        (b" " * (9 * 2**20), "application/json", 413),
        (b" " * (30 * 2**20), "application/json", 413),
    ],
)
def test_a_body_that_is_none_is_told_so(client, data, kind, status):
    answer = client.post("/predict", data=data, headers={"Content-Type": kind} if kind else {})
    problem(answer, status)


def test_a_file_that_is_too_large_is_refused(client):
    big = io.BytesIO(b"x" * (20 * 2**20 + 10))
    problem(client.post("/predict", data={"file": (big, "a.csv")}), 413)


@pytest.mark.parametrize(
    "form",
    [
        {"file": (io.BytesIO(b"x"), "a.csv"), "other": (io.BytesIO(b"x"), "b.csv")},
        {"file": (io.BytesIO(b"x"), "")},
        {"file": "text", "other": (io.BytesIO(b"x"), "a.csv")},
        {"file": (io.BytesIO(b"x"), "a.csv"), "horizon": "many"},
        {"file": (io.BytesIO(b"x"), "a.pkl")},
        {"file": (io.BytesIO(b"date,close\n"), "a.csv"), "encoding": "rot13"},
        {"file": (io.BytesIO(b"date,close\n"), "a.csv"), "zone": "../../etc"},
    ],
)
def test_a_form_that_cannot_be_names_what_is_wrong(client, form):
    assert problem(client.post("/predict", data=form, buffered=True), 422).field


def test_no_message_shows_where_the_owner_s_things_are(client, places):
    for answer in (
        client.post("/predict", json={"instrument": "NOPE"}),
        client.get("/universe"),
        client.get("/runs"),
        client.get("/runs/compare?runs=x"),
        client.get("/instruments"),
        client.get("/models"),
        client.get("/forecasts"),
    ):
        assert str(places.data.parent) not in answer.text


def test_a_folder_of_bars_that_is_gone_is_named(client, places):
    """It was called a fault of the program."""
    assert client.get("/instruments").status_code == 200
    away = places.data.with_name("away")
    places.data.rename(away)
    try:
        answer = client.get("/instruments")
    finally:
        away.rename(places.data)
    problem(answer, 503)
    assert re.match(r"market[/\\]calendars[/\\]day.txt: ", answer.json["detail"])
    assert str(places.data.parent) not in answer.text
    assert client.get("/instruments").status_code == 200


def test_without_a_store_of_runs_the_pages_say_so_in_words(client):
    assert "no MLflow database" in client.get("/runs").json["reason"]
    problem(client.get("/universe"), 422, "run")
    problem(client.get("/runs/compare?runs=a,b"), 422, "runs")
    problem(client.get("/universe/SYM0001/why?run=a"), 422, "run")


def test_checkpoints_are_listed_and_a_broken_one_says_why(client, places):
    broken = places.checkpoints / "mine" / "predictor"
    broken.mkdir(parents=True)
    (broken / "config.json").write_text("{}", encoding="utf-8")
    listed = {one["name"]: one for one in client.get("/models").json["models"]}
    assert listed["nano"]["state"] == "loaded"
    assert listed["local/mine"]["kind"] == "folder"
    job = finished(client, client.post("/models/load", json={"checkpoint": "local/mine"}))
    assert job["state"] == "failed"
    assert str(places.checkpoints.parent) not in json.dumps(job)
    listed = {one["name"]: one for one in client.get("/models").json["models"]}
    assert listed["local/mine"]["state"] == "broken"
    assert client.post("/predict", json={**QUICK, "bars": bars_of(walk())}).status_code == 200


def test_pages_and_data_share_addresses(client):
    for path in ("/universe", "/runs"):
        page = client.get(path, headers={"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"})
        assert page.mimetype == "text/html"
        assert client.get(path).mimetype.endswith("json")
        assert "Accept" in page.headers["Vary"]


def test_minutes_keep_their_times(client):
    times = [
        day + pd.Timedelta(hours=9, minutes=35 + 5 * place)
        for day in pd.bdate_range("2024-06-03", periods=6)
        for place in range(24)
    ]
    table = walk(bars=len(times)).assign(timestamp=[str(time) for time in times])
    found = client.post("/predict", json={**QUICK, "bars": bars_of(table), "exchange": None}).json
    assert found["is_intraday"]
    assert found["timestamps"][0].startswith("2024-06-11T09:35")
    assert found["history"][-1]["timestamp"] == times[-1].isoformat()


def test_many_at_once_get_a_forecast_or_429_and_nothing_else(service):
    """A small soak: benchmarks/web.py has the long one, with memory."""
    app = make_app(service, Guard())
    bars, found = bars_of(walk(seed=11)), []

    def ask(number):
        client = app.test_client()
        for turn in range(6):
            asked = {**QUICK, "bars": bars, "seed": number * 10 + turn, "keep": False}
            answer = client.post("/predict", json=asked)
            found.append(answer.status_code)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 48
    assert set(found) <= {200, 202, 429}
    assert 200 in found
