"""The MCP server, asked by the package's own client."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import anyio
import numpy as np
import pandas as pd
import pytest
from mcp import Client, StdioServerParameters

from kronos_qlib.webui.mcp_server import make_server
from kronos_qlib.webui.service import Places, Service

ROOT = Path(__file__).parents[2]
QUICK = {"horizon": 3, "paths": 20}


def bars(count=80):
    close = 10 * np.exp(np.cumsum(np.random.default_rng(0).normal(0, 0.02, count)))
    days = pd.bdate_range("2024-01-01", periods=count)
    return [
        {"timestamp": f"{day:%Y-%m-%d}", "open": c, "high": c * 1.01, "low": c * 0.99, "close": c}
        for day, c in zip(days, close.tolist(), strict=True)
    ]


@pytest.fixture
def places(tmp_path):
    return Places(
        store=tmp_path / "kept", tracking_uri=f"sqlite:///{(tmp_path / 'n.db').as_posix()}"
    )


def asked(server, *calls):
    """The answers to calls of tools, over one connection."""

    async def ask():
        async with Client(server) as client:
            return [await client.call_tool(name, arguments) for name, arguments in calls]

    return run(ask)


def run(ask):
    """What a coroutine returns, in a thread: a browser's tests leave a loop in this one."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(anyio.run, ask).result()


def test_the_tools_are_the_four_and_say_what_they_take(places):
    async def ask():
        async with Client(make_server(Service(places))) as client:
            return (await client.list_tools()).tools

    tools = {tool.name: tool for tool in run(ask)}
    assert set(tools) == {"forecast", "rank", "compare", "models"}
    for tool in tools.values():
        assert tool.description
        assert tool.output_schema
    assert "path" not in tools["forecast"].input_schema["properties"]


def test_a_forecast_is_the_service_s_own(places):
    service = Service(places)
    call = ("forecast", {**QUICK, "bars": bars(), "seed": 2, "lookback": 50, "past_windows": 2})
    found, listed = asked(make_server(service), call, ("models", {}))
    assert not found.is_error, found.content
    answer = found.structured_content
    kept = service.forecast(answer["id"])
    assert answer["close"] == kept.quantiles["close"]
    assert answer["timestamps"] == kept.timestamps
    assert answer["track_record"]["past"]["windows"] == 2
    assert "history" not in answer
    assert listed.structured_content["models"][0]["name"] == "nano"


def test_what_cannot_be_is_told_to_the_model_in_words(places):
    answers = asked(
        make_server(Service(places)),
        ("forecast", {}),
        ("forecast", {**QUICK, "instrument": "SH600000"}),
        ("forecast", {**QUICK, "bars": bars(), "exchange": "NOPE"}),
        ("forecast", {**QUICK, "bars": bars(), "checkpoint": "/etc/passwd"}),
        ("forecast", {"bars": bars(), "horizon": 0}),
        ("rank", {}),
        ("compare", {"runs": ["a", "b"]}),
        ("compare", {"runs": []}),
    )
    for answer, words in zip(
        answers,
        [
            "bars: give bars",
            "--data",
            "NOPE",
            "no checkpoint",
            "horizon",
            "MLflow",
            "MLflow",
            "runs",
        ],
        strict=True,
    ):
        assert answer.is_error
        assert words in answer.content[0].text
        assert "Traceback" not in answer.content[0].text


def test_the_command_speaks_by_standard_input_and_output(places, tmp_path):
    """Whatever a library prints must not come between the messages."""
    server = StdioServerParameters(
        command=sys.executable,
        args=["-m", "kronos_qlib", "mcp", "--store", str(places.store)],
        env={"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        cwd=str(tmp_path),
    )
    found, again = asked(
        server,
        ("forecast", {**QUICK, "bars": bars()}),
        ("forecast", {**QUICK, "bars": bars(), "calibration": "none"}),
    )
    assert not found.is_error, found.content
    assert found.structured_content["id"] != again.structured_content["id"]
    assert not again.structured_content["calibrated"]
    assert len(list(places.store.glob("*.json"))) == 2
