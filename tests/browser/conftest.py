"""One server on a small made-up market, one browser, and what holds for every page that is opened:
no message in its console, no request to another host, no undocumented failure."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import urlopen

import mlflow
import numpy as np
import pandas as pd
import pytest
from tiny_networks import build_pair

from kronos_qlib.data.files.synthetic import MarketConfig, make_market
from kronos_qlib.plugin.provider.writer import write_provider

NEEDED = 'needs `pip install "kronos-qlib[web]" playwright axe-playwright-python`'
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FLAGS = (
    "--headless",
    "--no-sandbox",  # a container's root has none
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
WIDE, NARROW = 1400, 390
COST = 0.001
GIVEN_UP = {
    "status": 202,
    "json": {
        "job": "0" * 20,
        "kind": "track_record",
        "label": "track record",
        "about": {},
        "state": "cancelled",
        "progress": 0,
        "eta": None,
        "position": None,
        "status_url": f"/jobs/{'0' * 20}",
        "result_url": None,
        "result": None,
        "error": None,
    },
}
"""The answer to who wants past windows measured, in a test that is not about them."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.integration)


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Chromium without a window; tests are skipped, and say why, where there is none."""
    driver = pytest.importorskip("playwright.sync_api", reason=NEEDED)
    named = os.environ.get("KRONOS_CHROMIUM")
    found = named or next(filter(None, map(shutil.which, BROWSERS)), None)
    with driver.sync_playwright() as playwright:
        try:
            chromium = playwright.chromium.launch(executable_path=found, args=list(FLAGS))
        except driver.Error as reason:
            pytest.skip(
                "no browser: install Debian's chromium (apt-get install chromium), or name one by "
                f"KRONOS_CHROMIUM ({str(reason).splitlines()[0]})"
            )
        yield chromium
        chromium.close()


@pytest.fixture(scope="session")
def bars() -> pd.DataFrame:
    config = MarketConfig(instruments=12, sectors=2, years=1.5, suspended_share=0, seed=3)
    return make_market(config).bars


@dataclass(frozen=True)
class Site:
    """A running page and what it was started with."""

    address: str
    store: Path
    market: Path
    instruments: tuple[str, ...]
    seen_until: str
    """A day after which a month of bars is known."""


@pytest.fixture(scope="session")
def site(
    browser: Any, bars: pd.DataFrame, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Site]:
    """`kronos-qlib web` on a market of a dozen names, two runs, and a checkpoint of the owner's."""
    pytest.importorskip("flask_openapi3", reason=NEEDED)
    pytest.importorskip("waitress", reason=NEEDED)
    folder = tmp_path_factory.mktemp("web")
    market = folder / "market"
    write_provider(bars, market, benchmark="BENCH", future_bars=20)
    for part, network in zip(("tokenizer", "predictor"), build_pair(), strict=True):
        network.save_pretrained(folder / "checkpoints" / "tiny" / part)
    uri = f"sqlite:///{(folder / 'mlflow.db').as_posix()}"
    add_runs(uri, folder, bars, market)
    command = [sys.executable, "-m", "kronos_qlib", "web", "--port", "0", "--no-browser"]
    places = {"data": market, "checkpoints": folder / "checkpoints", "store": folder / "kept"}
    for option, place in places.items():
        command += [f"--{option}", str(place)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    with (folder / "errors.log").open("w") as errors:
        server = subprocess.Popen(
            [*command, "--tracking-uri", uri],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=environment,
        )
        try:
            assert server.stdout is not None
            address = server.stdout.readline().strip()
            assert address.startswith("http://"), (folder / "errors.log").read_text()
            wait_until_ready(address)
            days = sorted(set(bars["date"].astype(str).str[:10]))
            names = tuple(sorted(bars["symbol"].unique()))
            yield Site(address.rstrip("/"), folder / "kept", market, names, days[-30])
        finally:
            server.terminate()
            with suppress(subprocess.TimeoutExpired):
                server.wait(20)
            server.kill()
    assert "Traceback" not in (folder / "errors.log").read_text()


def wait_until_ready(address: str) -> None:
    """Until the default checkpoint is in memory: pages are looked at before that too, not here."""
    for _ in range(600):
        with urlopen(f"{address.rstrip('/')}/health") as answer:
            if json.load(answer)["model"] == "ready":
                return
        time.sleep(0.1)
    raise AssertionError("the model did not load")


def add_runs(uri: str, folder: Path, bars: pd.DataFrame, provider: Path) -> None:
    """Two finished runs with scores, labels and backtests: one that knows something, one not.

    The model of the first can be made again, and is last week's losers; that of the second cannot.
    """
    client = mlflow.MlflowClient(uri)
    rng = np.random.default_rng(2)
    days = pd.bdate_range("2021-04-01", periods=60, name="datetime")
    index = pd.MultiIndex.from_product(
        [days, sorted(bars["symbol"].unique())], names=["datetime", "instrument"]
    )
    label = pd.Series(rng.normal(0, 0.02, len(index)), index)
    market = rng.normal(0, 0.01, len(days))
    scores = {
        "good": label * 0.5 + rng.normal(0, 0.02, len(index)),
        "blind, seed 2": pd.Series(rng.normal(0, 1, len(index)), index),
    }
    segments = {"segments": {"test": ["2021-04-01", "2021-06-23"]}}
    handler = {
        "class": "KronosHandler",
        "module_path": "kronos_qlib.plugin.dataset",
        "kwargs": {"instruments": "all", "end_time": "2021-06-23"},
    }
    reversal = {
        "model": {
            "class": "BaselineModel",
            "module_path": "kronos_qlib.plugin.baselines",
            "kwargs": {"kind": "reversal"},
        },
        "dataset": {
            "class": "KronosDataset",
            "module_path": "kronos_qlib.plugin.dataset",
            "kwargs": {"handler": handler, **segments, "lookback": 20, "horizon": 3},
        },
    }
    trees = {"model": {"class": "LGBModel", "kwargs": {}}, "dataset": {"kwargs": segments}}
    for name, score in scores.items():
        experiment = client.create_experiment(name, (folder / "artifacts").as_uri())
        run_id = client.create_run(experiment).info.run_id
        place = folder / name
        (place / "portfolio_report").mkdir(parents=True)
        score.to_frame("score").to_pickle(place / "pred.pkl")
        label.to_frame("LABEL0").to_pickle(place / "label.pkl")
        (place / "task").write_bytes(pickle.dumps(reversal if name == "good" else trees))
        (place / "weights").mkdir()
        state = {"provider_uri": str(provider), "region": "us"}
        (place / "weights" / "state.json").write_text(json.dumps(state), encoding="utf-8")
        net = market + rng.normal(0.0005, 0.004, len(days))
        columns = {"return": net + COST, "bench": market, "cost": COST, "turnover": 0.3}
        report = pd.DataFrame({**columns, "net_return": net, "excess_return": net - market}, days)
        report.to_csv(place / "portfolio_report" / "daily.csv")
        client.log_artifacts(run_id, place)
        for metric in ("IC", "ICIR", "Rank IC", "Rank ICIR"):
            client.log_metric(run_id, metric, 0.3 if name == "good" else 0.01)
        client.set_terminated(run_id)


@dataclass
class Visit:
    """A page that is open, and all that its browser said and asked for."""

    page: Any
    site: Site
    said: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    answers: list[Any] = field(default_factory=list)
    refused: list[tuple[int, str]] = field(default_factory=list)
    expected: set[int] = field(default_factory=set)
    """Statuses of 400 and above that a test means to bring about."""

    def __post_init__(self) -> None:
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(f"error: {error}"))
        self.page.on("dialog", self._surprised)
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("response", self._answered)

    def _surprised(self, dialog: Any) -> None:
        self.said.append(f"a script of a name ran: {dialog.message}")
        dialog.dismiss()

    def _answered(self, response: Any) -> None:
        self.answers.append(response)
        if response.status >= 400:
            self.refused.append((response.status, response.url))

    def open(self, path: str = "/") -> Any:
        """Go there; the page."""
        self.page.goto(self.site.address + path)
        return self.page

    def forecast(self, instrument: str | None = None, date: str | None = None, **settings: str):
        """Ask for a forecast of the folder by the form, and wait until it is drawn."""
        page = self.page
        page.fill("#instrument", instrument or self.site.instruments[0])
        page.fill("#date", self.site.seen_until if date is None else date)
        self.settle(**settings)
        page.click("#go")
        return self.drawn()

    def settle(self, **settings: str) -> None:
        """Fill in settings: few paths and bars where a test does not say."""
        for name, value in {"paths": "20", "horizon": "5", **settings}.items():
            if not self.page.is_visible(f"#{name}"):
                self.page.click("summary:text-is('Sampling')")
            self.page.fill(f"#{name}", value)

    def drawn(self) -> Any:
        """Wait until the forecast that was asked for is drawn."""
        self.page.wait_for_selector("#forecast[data-drawn]:not([aria-busy])")
        return self.page

    def overflow(self) -> int:
        """Pixels by which the page is wider than its window."""
        return self.page.evaluate(
            "document.documentElement.scrollWidth - document.documentElement.clientWidth"
        )

    def check(self) -> None:
        """What holds of every visit."""
        host = urlsplit(self.site.address).netloc
        strangers = [
            url for url in self.requests if urlsplit(url).scheme in ("http", "https", "ws", "wss")
        ]
        assert {urlsplit(url).netloc for url in strangers} <= {host}
        unexpected = [one for one in self.refused if one[0] not in self.expected]
        assert not unexpected
        # The browser itself reports an answer of 400 and above.
        own = [text for text in self.said if not text.startswith("Failed to load resource")]
        assert own == []


@pytest.fixture
def visit(browser: Any, site: Site) -> Iterator[Callable[..., Visit]]:
    """Opens a browser of its own, as wide as asked; what holds of every visit is checked after."""
    visits: list[Visit] = []

    def start(width: int = WIDE, height: int = 900, *, judges: bool = False, **how: Any) -> Visit:
        how = {"reduced_motion": "reduce", **how}
        context = browser.new_context(viewport={"width": width, "height": height}, **how)
        context.set_default_timeout(90_000)  # a busy machine turns no test red
        visits.append(Visit(context.new_page(), site))
        if not judges:  # twenty past windows a forecast are most of the work
            visits[-1].page.route("**/track-record", lambda asked: asked.fulfill(**GIVEN_UP))
        return visits[-1]

    yield start
    for each in visits:
        each.page.context.close()
    for each in visits:
        each.check()
