"""How fast `kronos-qlib web` begins and answers, and whether its memory stays flat.

    python benchmarks/web.py                       the tables of README.md
    python benchmarks/web.py --clients 4 --requests 20 --skip-soak     seconds

It starts the server as a user does, in a process of its own, and asks by HTTP: time from the start
to the first page, with the model loading behind; a forecast with nano (90 bars, 10 ahead, 30
paths) one at a time, then by several clients at once; bytes of the first load; and a soak, whose
answers are 200, 202 or 429 and whose memory is that of the whole process. Other work on the machine
makes every time longer: run it alone, on as many cores as you mean.
"""

from __future__ import annotations

import argparse
import http.client
import json
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil

from kronos_qlib.evaluation.text_table import format_rows

BARS, HORIZON, PATHS = 90, 10, 30


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--clients", type=int, default=20, help="of the soak (%(default)s)")
    parser.add_argument("--requests", type=int, default=200, help="of each (%(default)s)")
    parser.add_argument("--single", type=int, default=40, help="forecasts, one at a time")
    parser.add_argument("--skip-soak", action="store_true")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        server = Server(Path(folder))
        try:
            rows = [["", "measured", "promised"]]
            for row in measured(server, chosen):
                print(": ".join(row[:2]), file=sys.stderr, flush=True)
                rows.append(row)
            print(format_rows(rows))
        finally:
            server.stop()


def measured(server: Server, chosen: argparse.Namespace) -> Iterator[list[str]]:
    """A row for each figure: what it is, the measure, what is promised."""
    yield ["start to the first page", f"{server.first_page:.2f} s", "2 s"]
    yield ["start to a loaded model", f"{server.until_ready():.2f} s", ""]
    own, plotly = first_load(server)
    yield ["first load, without Plotly", f"{own / 2**20:.2f} MB", "2 MB"]
    yield ["Plotly, compressed", f"{plotly / 2**20:.2f} MB", ""]
    bars = walk()
    for seed in range(3):
        forecast(server.port, bars, seed)
    alone = [forecast(server.port, bars, 10 + seed)[1] for seed in range(chosen.single)]
    yield ["a forecast, median", f"{np.median(alone):.3f} s", "0.4 s"]
    four = many(server.port, bars, 4, max(1, chosen.single // 2), 1000)
    times = [seconds for status, seconds in four if status == 200]
    yield ["4 clients, 95th percentile", f"{np.quantile(times, 0.95):.3f} s", "1 s"]
    yield ["4 clients, answers", answers_of(four), "200"]
    if chosen.skip_soak:
        return
    total = chosen.clients * chosen.requests
    early = many(server.port, bars, chosen.clients, max(1, 100 // chosen.clients), 10_000)
    before = server.memory()
    left = chosen.requests - max(1, 100 // chosen.clients)
    late = many(server.port, bars, chosen.clients, left, 100_000)
    after = server.memory()
    yield [f"{total} requests of {chosen.clients}", answers_of(early + late), "200, 429"]
    growth = f"{after / before - 1:+.1%}"
    yield [f"memory after 100, {total}", f"{before >> 20}, {after >> 20} MB", ""]
    yield ["growth", growth, "10 %"]


class Server:
    """`kronos-qlib web` in a process of its own."""

    def __init__(self, folder: Path) -> None:
        self.begun = time.perf_counter()
        command = [sys.executable, "-m", "kronos_qlib", "web", "--port", "0", "--no-browser"]
        self.process = subprocess.Popen(
            [*command, "--store", str(folder / "kept")], stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        self.port = int(re.findall(r":(\d+)/", self.process.stdout.readline())[0])
        status, _ = get(self.port, "/")
        assert status == 200
        self.first_page = time.perf_counter() - self.begun

    def until_ready(self) -> float:
        while json.loads(get(self.port, "/health")[1])["model"] == "loading":
            time.sleep(0.02)
        return time.perf_counter() - self.begun

    def memory(self) -> int:
        """Resident bytes of the server."""
        time.sleep(1)
        return int(psutil.Process(self.process.pid).memory_info().rss)

    def stop(self) -> None:
        for child in psutil.Process(self.process.pid).children():
            child.kill()
        self.process.kill()
        self.process.wait()


def walk() -> list[dict[str, object]]:
    rng = np.random.default_rng(0)
    close = 10 * np.exp(np.cumsum(rng.normal(0, 0.02, BARS)))
    days = np.arange("2024-01-01", "2025-01-01", dtype="datetime64[D]")
    days = days[np.is_busday(days)][:BARS]
    return [
        {
            "timestamp": str(day),
            "open": c,
            "high": c * 1.01,
            "low": c * 0.99,
            "close": c,
            "volume": 1000.0,
        }
        for day, c in zip(days, close.tolist(), strict=True)
    ]


def get(port: int, path: str, packed: bool = False) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    headers = {"Accept": "text/html" if path == "/" else "*/*"}
    connection.request(
        "GET", path, headers=headers | ({"Accept-Encoding": "gzip"} if packed else {})
    )
    answer = connection.getresponse()
    found = answer.status, answer.read()
    connection.close()
    return found


def first_load(server: Server) -> tuple[int, int]:
    """Bytes of the page with all static files, and of Plotly."""
    page = get(server.port, "/", packed=True)[1]
    text = page.decode()
    digest = re.findall(r"/static/([0-9a-f]{12})/", text)[0]
    static = Path(__file__).parents[1] / "kronos_qlib" / "webui" / "static"
    own = len(page)
    for path in sorted(static.iterdir()):
        status, data = get(server.port, f"/static/{digest}/{path.name}", packed=True)
        own += len(data) if status == 200 else 0
    plotly = re.findall(r"/static/plotly-[^\"]+", text)[0]
    return own, len(get(server.port, plotly, packed=True)[1])


def forecast(port: int, bars: list[dict[str, object]], seed: int) -> tuple[int, float]:
    body = {"bars": bars, "horizon": HORIZON, "paths": PATHS, "seed": seed, "wait": 10}
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    begun = time.perf_counter()
    connection.request(
        "POST", "/predict", json.dumps(body | {"keep": False}), {"Content-Type": "application/json"}
    )
    answer = connection.getresponse()
    answer.read()
    seconds = time.perf_counter() - begun
    connection.close()
    return answer.status, seconds


def many(
    port: int, bars: list[dict[str, object]], clients: int, requests: int, first: int
) -> list[tuple[int, float]]:
    """What several clients at once got, each one request after another."""
    found: list[tuple[int, float]] = []

    def ask(number: int) -> None:
        for turn in range(requests):
            found.append(forecast(port, bars, first + number * 1000 + turn))

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def answers_of(found: list[tuple[int, float]]) -> str:
    counts = Counter(status for status, _ in found)
    return ", ".join(f"{count} x {status}" for status, count in sorted(counts.items()))


if __name__ == "__main__":
    main()
