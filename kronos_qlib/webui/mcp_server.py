"""The service for programs that speak MCP: forecast, rank, compare, models, by standard input."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any, Literal

import anyio
import anyio.to_thread
from mcp.server.mcpserver import Context, MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from pydantic import BaseModel, Field, ValidationError

from kronos_qlib.errors import KronosError
from kronos_qlib.markup import one_line
from kronos_qlib.version import __version__
from kronos_qlib.webui.schemas import (
    MOST_HORIZON,
    MOST_JSON_BARS,
    MOST_LOOKBACK,
    MOST_PATHS,
    Bar,
    CheckpointUsed,
    Compared,
    Levels,
    Models,
    Outlook,
    PredictRequest,
    ShownBar,
    TrackRecord,
    UniverseRow,
    faults_of,
)
from kronos_qlib.webui.service import Service
from kronos_qlib.webui.work.job_queue import QueuedJob

INSTRUCTIONS = """\
Forecasts of candlesticks (K-lines) by Kronos, each a distribution: quantiles of every bar to come,
not one line. Say how sure a forecast is (its quantiles; whether it is calibrated; its notes), and
never more. Returns are 0.01 for one percent. Nothing here is advice to trade."""
STEP = 0.1
"""Seconds between looks at a job."""


class ForecastFound(BaseModel):
    """A forecast without the bars it saw, which the caller has."""

    id: str
    instrument: str
    calibrated: bool
    calibration: str
    notes: list[str]
    checkpoint: CheckpointUsed
    settings: dict[str, Any]
    last_timestamp: str
    last_close: float
    timestamps: list[str]
    close: Levels
    high: Levels
    low: Levels
    prob_up: list[float]
    outlook: Outlook
    realised: list[ShownBar] | None
    track_record: TrackRecord


class Ranking(BaseModel):
    """The names that a run ranks highest."""

    run: str
    run_id: str
    day: str
    names: int
    rows: list[UniverseRow]
    notes: list[str]


def make_server(service: Service) -> MCPServer[Any]:
    """The server over a service, which it closes at its end."""

    @asynccontextmanager
    async def life(_: MCPServer[Any]) -> AsyncIterator[None]:
        try:
            yield
        finally:
            service.close()

    server: MCPServer[Any] = MCPServer(
        "kronos-qlib",
        title="Kronos forecasts",
        instructions=INSTRUCTIONS,
        version=__version__,
        lifespan=life,
        log_level="ERROR",
    )

    @server.tool(title="Forecast the bars to come")
    async def forecast(
        ctx: Context[Any, Any],
        bars: Annotated[
            list[Bar] | None,
            Field(description="of one instrument, oldest first", max_length=MOST_JSON_BARS),
        ] = None,
        instrument: Annotated[
            str | None, Field(description="of the Qlib folder; or the name of the bars")
        ] = None,
        date: Annotated[
            str | None, Field(description="of the last bar that is seen; the newest")
        ] = None,
        horizon: Annotated[int, Field(ge=1, le=MOST_HORIZON)] = 10,
        paths: Annotated[int, Field(ge=2, le=MOST_PATHS)] = 100,
        lookback: Annotated[int | None, Field(ge=2, le=MOST_LOOKBACK)] = None,
        exchange: Annotated[
            str | None, Field(description="XSHG, XNYS, 24/7, ...: its holidays are kept")
        ] = None,
        freq: Annotated[str | None, Field(description="or a pandas frequency")] = None,
        temperature: Annotated[float, Field(gt=0, le=10)] = 1.0,
        top_p: Annotated[float, Field(gt=0, le=1)] = 1.0,
        top_k: Annotated[int, Field(ge=0)] = 0,
        seed: Annotated[int, Field(ge=0, lt=2**53)] = 0,
        calibration: Literal["auto", "none"] = "auto",
        checkpoint: Annotated[str, Field(description="a name of the tool models")] = "nano",
        past_windows: Annotated[
            int, Field(ge=0, le=60, description="windows before, scored too: how right it has been")
        ] = 0,
    ) -> ForecastFound:
        """Draw paths of the bars after the last one; quantiles of them by level and bar."""
        given = {
            "bars": bars,
            "instrument": instrument,
            "date": date,
            "horizon": horizon,
            "paths": paths,
            "lookback": lookback,
            "exchange": exchange,
            "freq": freq,
            "temperature": temperature,
            "top_p": top_p,
            "top_k": top_k,
            "seed": seed,
            "calibration": calibration,
            "checkpoint": checkpoint,
        }
        asked = await _called(lambda: PredictRequest.model_validate(given))
        share = 1 / (1 + past_windows)
        found = await _done(service, await _called(lambda: service.predict(asked)), ctx, 0, share)
        if past_windows:
            job = await _called(lambda: service.track_record(found, past_windows))
            await _done(service, job, ctx, share, 1)
        whole = await _called(lambda: service.forecast(found))
        return ForecastFound(
            **{
                name: getattr(whole, name)
                for name in ForecastFound.model_fields
                if name not in ("close", "high", "low")
            },
            **{name: whole.quantiles[name] for name in ("close", "high", "low")},
        )

    @server.tool(title="Rank the newest day by a run")
    async def rank(
        ctx: Context[Any, Any],
        run: Annotated[
            str | None, Field(description="an experiment's name or a run's id; the newest run")
        ] = None,
        top: Annotated[int, Field(ge=1, le=500)] = 20,
        fresh: Annotated[
            bool, Field(description="score the newest day of its bars now, which takes longer")
        ] = False,
    ) -> Ranking:
        """The names that a finished run of MLflow ranks highest on its newest day, with the
        percentile of each score among the name's own of the last 60 days."""
        found = await _called(lambda: service.universe(run, fresh))
        if isinstance(found, QueuedJob):
            found = await _done(service, found, ctx, 0, 1)
        rows = [row.model_copy(update={"sparkline": []}) for row in found.rows[:top]]
        return Ranking(
            run=found.run,
            run_id=found.run_id,
            day=found.day,
            names=len(found.rows),
            rows=rows,
            notes=found.notes,
        )

    @server.tool(title="Set runs side by side")
    async def compare(
        ctx: Context[Any, Any],
        runs: Annotated[
            list[str], Field(min_length=1, max_length=8, description="experiments' names or ids")
        ],
    ) -> Compared:
        """Measures, paired tests, blends and notes of finished runs of MLflow; no curves."""
        found = await _called(lambda: service.compare(runs))
        if isinstance(found, QueuedJob):
            found = await _done(service, found, ctx, 0, 1)
        without = dict.fromkeys(("equity", "drawdown", "rank_ic"))
        compared: Compared = found.model_copy(update=without)
        return compared

    @server.tool(title="Checkpoints that forecast may be asked for")
    async def models() -> Models:
        """Bundled, published and the owner's own checkpoints: size, context, whether it is here."""
        found: Models = await _called(service.known_models)
        return found

    return server


def run(service: Service) -> None:
    """Serve by standard input and output until the client goes."""
    make_server(service).run("stdio")


async def _called(work: Any) -> Any:
    """What a call of the service returns, in a thread; its errors as the client's to read."""
    try:
        return await anyio.to_thread.run_sync(work)
    except ValidationError as problem:
        faults = "; ".join(f"{one.field}: {one.message}" for one in faults_of(problem))
        raise ToolError(faults) from None
    except KronosError as problem:
        raise ToolError(_words(problem)) from None


async def _done(
    service: Service, job: QueuedJob, ctx: Context[Any, Any], first: float, last: float
) -> Any:
    """The result of a job, its progress told; a client that goes away cancels it."""
    try:
        told = -1.0
        while not job.done.is_set():
            if job.progress > told:
                told = job.progress
                await ctx.report_progress(first + (last - first) * told, 1.0, job.label)
            await anyio.sleep(STEP)
    except anyio.get_cancelled_exc_class():
        service.cancel(job.id)
        raise
    if job.state == "done":
        return job.result
    if isinstance(job.error, KronosError):
        raise ToolError(_words(job.error))
    raise ToolError(f"{job.label} {job.state}; the log of the server says more")


def _words(problem: KronosError) -> str:
    field = getattr(problem, "field", None)
    text = one_line(str(problem))
    return f"{field}: {text}" if field else text
