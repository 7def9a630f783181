"""How fast `kronos-qlib web` begins and answers, and whether its memory stays flat.

    python benchmarks/web.py                                  every figure, about eight minutes
    python benchmarks/web.py --only start forecast            some of them: start, load, forecast,
                                                              clients, soak
    python benchmarks/web.py --only soak --requests 10        seconds, to see that it works

It starts the server as a user does, in a process of its own, and asks by HTTP. start: from the
command to the first page, with the model loading behind. load: bytes of the first page with all
that it needs. forecast: nano, 90 bars, 10 ahead, 30 paths, one request after another. clients: the
same by 4 clients at once. soak: 20 clients x 200 requests, of ten seven forecasts (3 ahead, 5
paths, so that it takes minutes and not an hour), one that is kept, one of an uploaded file, one
list of what is kept; 429 counts as an answer, as it does for a client. Memory is that of the
server's processes, after the first 100 requests and after the last. Other work on the machine makes
every time longer: run it alone, on as many cores as you mean (taskset -c 0,1).
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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil

from kronos_qlib.evaluation.text_table import format_rows

BARS, HORIZON, PATHS = 90, 10, 30


FIGURES = ("start", "load", "forecast", "clients", "soak")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--only", nargs="+", choices=FIGURES, default=FIGURES, help="(all)")
    parser.add_argument("--starts", type=int, default=3, help="starts (%(default)s)")
    parser.add_argument("--single", type=int, default=40, help="forecasts, each way (%(default)s)")
    parser.add_argument("--clients", type=int, default=20, help="of the soak (%(default)s)")
    parser.add_argument("--requests", type=int, default=200, help="of each (%(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there too")
    chosen = parser.parse_args()
    rows = [["", "measured", "promised"]]
    for row in measured(chosen):
        print(": ".join(row[:2]), file=sys.stderr, flush=True)
        rows.append(row)
    print(format_rows(rows))
    print(f"\n{cores()} cores, {' '.join(['python', 'benchmarks/web.py', *sys.argv[1:]])}")
    if chosen.json is not None:
        chosen.json.write_text(json.dumps(rows[1:], indent=1), encoding="utf-8")


def cores() -> int:
    """That this process may use."""
    return len(psutil.Process().cpu_affinity()) if sys.platform == "linux" else psutil.cpu_count()


def measured(chosen: argparse.Namespace) -> Iterator[list[str]]:
    """A row for each figure: what it is, the measure, what is promised."""
    if "start" in chosen.only:
        pages, models = [], []
        for _ in range(chosen.starts):
            with running() as server:
                pages.append(server.first_page)
                models.append(server.until_ready())
        yield ["start to the first page, median", f"{np.median(pages):.2f} s", "2 s"]
        yield ["start to a loaded model, median", f"{np.median(models):.2f} s", ""]
    if not {"load", "forecast", "clients", "soak"} & set(chosen.only):
        return
    with running() as server:
        server.until_ready()
        yield from asked(server, chosen)


def asked(server: Server, chosen: argparse.Namespace) -> Iterator[list[str]]:
    """The rows of one server."""
    port, bars = server.port, walk()
    if "load" in chosen.only:
        own, plotly = first_load(server)
        yield ["first load, without Plotly", f"{own / 2**20:.2f} MB", "2 MB"]
        yield ["Plotly, compressed", f"{plotly / 2**20:.2f} MB", ""]

    def one(number: int) -> tuple[int, float]:
        return forecast(port, bars, number)

    for number in range(3):
        one(number)
    if "forecast" in chosen.only:
        times = [one(10 + number)[1] for number in range(chosen.single)]
        yield ["a forecast, median", f"{np.median(times):.3f} s", "0.4 s"]
        yield ["a forecast, 95th percentile", f"{np.quantile(times, 0.95):.3f} s", ""]
    if "clients" in chosen.only:
        four = many(4, chosen.single, 1000, one)
        times = [seconds for status, seconds in four if status == 200]
        yield ["4 clients, median", f"{np.median(times):.3f} s", ""]
        yield ["4 clients, 95th percentile", f"{np.quantile(times, 0.95):.3f} s", "1 s"]
        yield ["4 clients, answers", answers_of(four), "200"]
    if "soak" in chosen.only:
        yield from soaked(server, chosen)


def soaked(server: Server, chosen: argparse.Namespace) -> Iterator[list[str]]:
    """Many clients at once, of many kinds of request."""
    port, bars = server.port, walk()
    few = {"horizon": 3, "paths": 5}
    table = "".join(
        f"{bar['timestamp']},{bar['open']},{bar['high']},{bar['low']},{bar['close']}\n"
        for bar in bars
    )
    part = 'Content-Disposition: form-data; name="{}"'
    form = "".join(
        f"--b\r\n{part.format(name)}\r\n\r\n{value}\r\n"
        for name, value in {**few, "keep": "false", "wait": 10}.items()
    )
    form += f'--b\r\n{part.format("file")}; filename="A.csv"\r\n\r\n'
    form += f"timestamp,open,high,low,close\n{table}\r\n--b--\r\n"

    def one(number: int) -> tuple[int, float]:
        kind = number % 10
        if kind == 0:
            return timed(port, "GET", "/forecasts")
        if kind == 1:
            return timed(port, "POST", "/predict", form, "multipart/form-data; boundary=b")
        return forecast(port, bars, number, keep=kind == 2, **few)

    first = max(1, min(100 // chosen.clients, chosen.requests // 2))
    begun = time.perf_counter()
    early = many(chosen.clients, first, 10_000, one)
    before = server.memory()
    late = many(chosen.clients, chosen.requests - first, 100_000, one)
    after = server.memory()
    total = chosen.clients * chosen.requests
    yield [f"{total} requests of {chosen.clients}", answers_of(early + late), "200, 429"]
    yield ["they took", f"{time.perf_counter() - begun:.0f} s", ""]
    megabytes = f"{before / 2**20:.0f}, {after / 2**20:.0f} MB"
    yield [f"memory after {first * chosen.clients}, {total}", megabytes, ""]
    yield ["growth", f"{after / before - 1:+.1%}", "10 %"]


@contextmanager
def running() -> Iterator[Server]:
    """A server of its own store."""
    with tempfile.TemporaryDirectory() as folder:
        server = Server(Path(folder))
        try:
            yield server
        finally:
            server.stop()


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
        """Resident bytes of the server, and of its process that reads files."""
        time.sleep(1)
        server = psutil.Process(self.process.pid)
        every = [server, *server.children(recursive=True)]
        return sum(int(process.memory_info().rss) for process in every)

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


def timed(
    port: int, method: str, path: str, body: str | None = None, kind: str = "application/json"
) -> tuple[int, float]:
    """Status of an answer, and the seconds until it was read."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    begun = time.perf_counter()
    connection.request(method, path, body, {"Content-Type": kind} if body else {})
    answer = connection.getresponse()
    answer.read()
    seconds = time.perf_counter() - begun
    connection.close()
    return answer.status, seconds


def forecast(
    port: int, bars: list[dict[str, object]], seed: int, **settings: object
) -> tuple[int, float]:
    """One forecast of bars, not kept unless asked for."""
    body = {"horizon": HORIZON, "paths": PATHS, "seed": seed, "wait": 10, "keep": False}
    return timed(port, "POST", "/predict", json.dumps({**body, "bars": bars, **settings}))


def many(
    clients: int, requests: int, first: int, ask: Callable[[int], tuple[int, float]]
) -> list[tuple[int, float]]:
    """What several clients at once got, each one request after another."""
    found: list[tuple[int, float]] = []

    def go(client: int) -> None:
        for turn in range(requests):
            found.append(ask(first + client * 1000 + turn))

    threads = [threading.Thread(target=go, args=(client,)) for client in range(clients)]
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
