"""What the API takes and gives: the contract of the page, of its clients and of the MCP server.

Times are ISO 8601 texts of the exchange's wall clock, without a zone: "2024-06-18" for bars of a
day and longer, "2024-06-18T09:35:00" for shorter ones. Prices are in the bars' own units. Shares
(of paths, of windows) lie in [0, 1], returns are 0.01 for one percent.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from kronos_qlib.markup import one_line
from kronos_qlib.schema import BAR_COLUMNS

MOST_JSON_BARS = 20_000
"""Bars of one JSON request; a file may have more."""
MOST_HORIZON, MOST_PATHS, MOST_LOOKBACK = 512, 1000, 2048
MOST_WINDOWS = 60
"""Past windows of one track record."""
MOST_COMPARED = 8
"""Runs side by side: each has a colour."""
LEVELS = (0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95)
"""Quantiles of every forecast: the bands of 50, 80 and 90 % and the median."""
COLUMNS = BAR_COLUMNS

ShortText = Annotated[str, StringConstraints(min_length=1, max_length=80)]
Id = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{20}$")]
Levels = dict[str, list[float]]
"""By level as text ("0.05"): one value per bar to come."""


class Model(BaseModel):
    """No field that is not named here, no NaN, no infinity."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class Bar(Model):
    """One bar, in its own units. Volume and amount may be left out."""

    timestamp: Annotated[str, StringConstraints(min_length=1, max_length=40)] = Field(
        description='"2024-06-18", "2024-06-18 09:35"'
    )
    open: float
    high: float
    low: float
    close: float
    volume: float | None = None
    amount: float | None = None


class ShownBar(Model):
    """One bar of the past, as it was read."""

    timestamp: str
    open: float
    high: float
    low: float
    close: float
    volume: float
    amount: float


class Settings(Model):
    """What a forecast is asked for, besides its bars."""

    exchange: ShortText | None = Field(
        None,
        description="whose trading times the bars to come have: XSHG, XNYS, 24/7, ...; knows "
        "holidays. With neither exchange nor freq: the weekdays and times of the bars given",
    )
    freq: ShortText | None = Field(
        None, description="or a pandas frequency, the step of the bars: 5min, B, D, W-FRI"
    )
    horizon: int = Field(10, ge=1, le=MOST_HORIZON, description="bars to come")
    paths: int = Field(100, ge=2, le=MOST_PATHS, description="futures drawn")
    lookback: int | None = Field(
        None,
        ge=2,
        le=MOST_LOOKBACK,
        description="bars seen; as many as leave the model room for the horizon if not given",
    )
    temperature: float = Field(1.0, gt=0, le=10)
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=0, le=1_000_000, description="0 keeps all tokens")
    seed: int = Field(0, ge=0, lt=2**53, description="same bars, settings, seed: same forecast")
    calibration: Literal["auto", "none"] = Field(
        "auto", description="auto: what lies beside the weights, if it fits; none: as drawn"
    )
    checkpoint: ShortText = Field("nano", description="a name that GET /models lists")
    single_paths: int = Field(
        0, ge=0, le=50, description="closes of so many single paths are in the answer too"
    )
    keep: bool = Field(True, description="among the kept forecasts; else for this session alone")
    wait: float = Field(
        2.0,
        ge=0,
        le=10,
        description="seconds to wait for the result before the answer is 202 and a job to poll; "
        "0 answers 202 at once",
    )


class PredictRequest(Settings):
    """A forecast of bars given here, or of an instrument of the owner's Qlib folder.

    Give `bars`, or `instrument` with or without `date`: of bars, `instrument` is their name.
    """

    bars: list[Bar] | None = Field(None, min_length=2, max_length=MOST_JSON_BARS)
    instrument: ShortText | None = Field(
        None, description="of the Qlib folder, see GET /instruments; or the name of `bars`"
    )
    date: ShortText | None = Field(
        None,
        description="of the last bar that is seen: what came after it is `realised`; the newest "
        "if not given",
    )


class UploadSettings(Settings):
    """The form fields beside `file`."""

    instrument: ShortText | None = Field(None, description="which, when the file has several")
    date: ShortText | None = Field(None, description="of the last bar seen; the newest")
    zone: ShortText | None = Field(None, description="of the exchange, such as Asia/Shanghai")
    date_order: Literal["ymd", "dmy", "mdy"] = "ymd"
    encoding: ShortText = "utf-8"


class MethodScore(Model):
    """How one method would have done."""

    method: Literal["kronos", "last_price", "historical_volatility"]
    crps: float = Field(description="mean over bars, in units of return; lower is better")
    coverage: dict[str, float] | None = Field(
        description='share of bars within each central band, by level ("0.9"); None of a method '
        "that gives one number and no band"
    )


class WindowScore(Model):
    """One past window."""

    date: str = Field(description="of its last bar seen")
    crps: dict[str, float] = Field(description="by method")


class PastWindows(Model):
    """The last windows of this instrument whose bars to come are all known, none overlapping."""

    windows: int
    first: str = Field(description="last bar seen of the oldest window")
    last: str
    scores: list[MethodScore]
    by_window: list[WindowScore] = Field(description="oldest first")
    better_than: dict[str, float] = Field(
        description="by baseline: the share of windows in which kronos lost less CRPS"
    )
    notes: list[str] = Field([], description="why it may flatter, a sentence each")


class TrackRecord(Model):
    """How far it has been right here."""

    this_window: list[MethodScore] | None = None
    this_window_reason: str | None = Field(None, description="why there is none")
    past: PastWindows | None = None
    past_reason: str | None = None


class CheckpointUsed(Model):
    """Which weights drew it."""

    name: str
    revision: str | None = Field(description="of the Hub; None of bundled and local ones")
    digest: str = Field(description="first letters of the weights' own digest")


class Outlook(Model):
    """What the paths say of the return from the last close to the last bar to come."""

    last_return: float = Field(
        validation_alias=AliasChoices("last_return", "expected_return"),  # its name in older files
        description="mean over paths",
    )
    prob_up: float = Field(description="share of paths that end above the last close")
    volatility: float = Field(description="mean over paths, per bar")
    shortfall_5: float = Field(description="mean return of the worst 5 % of the paths")


class Forecast(Model):
    """A forecast, as it is answered, kept and reopened."""

    id: Id
    created: str = Field(description="UTC, ISO 8601 with Z")
    instrument: str
    source: Literal["bars", "file", "qlib"]
    source_name: str = Field(description="of the file or folder, for people; not a path")
    is_intraday: bool
    rule: str = Field(description="by which the timestamps follow: XSHG, 5min, or in words")
    settings: dict[str, Any] = Field(description="those of the request, lookback as it was taken")
    checkpoint: CheckpointUsed
    calibrated: bool
    calibration: str = Field(description="calibrated on what; or uncalibrated, and why")
    anchored: bool
    notes: list[str] = Field(description="what a reader must know, a sentence each")
    bars_digest: str = Field(description="SHA-256 of the bars seen")
    bars_seen: int
    last_timestamp: str
    last_close: float
    timestamps: list[str] = Field(description="of the bars to come")
    quantiles: dict[str, Levels] = Field(
        description="by column (close, open, high, low, volume, amount), then level"
    )
    mean: dict[str, list[float]] = Field(description="by column")
    paths: list[list[float]] | None = Field(description="closes of single paths, if asked for")
    prob_up: list[float] = Field(description="per bar: share of paths above the last close")
    outlook: Outlook
    history: list[ShownBar] = Field(description="the newest bars seen, oldest first")
    realised: list[ShownBar] | None = Field(
        description="those of the bars to come that are known, from the first on; None: none"
    )
    track_record: TrackRecord
    kept: bool


class Problem(Model):
    """RFC 9457: what is wrong, and with which field."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    field: str | None = Field(None, description="of the request, if it is one field's fault")
    errors: list[FieldProblem] | None = Field(None, description="every field that is wrong")


class FieldProblem(Model):
    """One field of a request that cannot be."""

    field: str
    message: str


class Job(Model):
    """Something that is computed or waits for its turn."""

    job: Id
    kind: Literal["forecast", "track_record", "universe", "compare", "load", "why"]
    label: str = Field(description="for people: what it is about")
    about: dict[str, str | list[str]] = Field(
        description="what was asked for: instrument, forecast, checkpoint, run, runs, fresh"
    )
    state: Literal["queued", "running", "done", "failed", "cancelled"]
    progress: float = Field(ge=0, le=1)
    eta: float | None = Field(description="seconds until it is done, if it can be told")
    position: int | None = Field(description="in the queue, 1 is next; None once it runs")
    status_url: str
    result_url: str | None = Field(description="where to GET what it made, once it is done")
    result: str | None = Field(description="the id of the forecast, if it makes one")
    error: Problem | None = Field(description="why it failed")


class Jobs(Model):
    """What is computed now, and what waits."""

    jobs: list[Job] = Field(
        description="first those at work, then those that wait, in their order; a job that has "
        "ended is not among them: GET /jobs/{job}"
    )


class ModelInfo(Model):
    """A checkpoint that the owner allows."""

    name: str
    kind: Literal["bundled", "hub", "folder"]
    parameters: int | None
    max_context: int | None = Field(description="bars seen at once")
    revision: str | None
    state: Literal["loaded", "loading", "here", "to fetch", "broken"]
    device: str | None = Field(description="while it is loaded")
    problem: str | None = Field(default=None, description="of a broken one")


class Models(Model):
    """The checkpoints there are."""

    models: list[ModelInfo]
    default: str


class LoadRequest(Model):
    """Which checkpoint to load."""

    checkpoint: ShortText


class Instruments(Model):
    """Instruments of the Qlib folder."""

    folder: str | None = Field(description="its name; None: the page was started without --data")
    freq: str | None
    first: str | None = Field(description="of the calendar")
    last: str | None
    total: int = Field(description="instruments that match")
    instruments: list[str] = Field(description="the first 50 that match")


class KeptSummary(Model):
    """A kept forecast in the list."""

    id: Id
    created: str
    instrument: str
    source: Literal["bars", "file", "qlib"]
    source_name: str
    checkpoint: str
    calibrated: bool
    last_timestamp: str
    last_close: float
    until: str = Field(description="the last bar to come")
    horizon: int
    paths: int
    last_return: float = Field(description="mean over paths of the return to the last bar to come")
    realised: int = Field(description="bars to come that are known by now")
    crps: float | None = Field(description="over those, once all are known")


class Kept(Model):
    """A page of the list of kept forecasts."""

    forecasts: list[KeptSummary] = Field(description="newest first")
    total: int
    unreadable: list[str] = Field(description="files of the store that are no forecasts")


class ReconcileRequest(Model):
    """Bars that came since, from the last one seen on; without them the Qlib folder is asked."""

    bars: list[Bar] | None = Field(None, min_length=1, max_length=MOST_JSON_BARS)


class ReconcileUpload(Model):
    """The form fields beside `file`, a file of bars that came since."""

    instrument: ShortText | None = None
    zone: ShortText | None = None
    date_order: Literal["ymd", "dmy", "mdy"] = "ymd"
    encoding: ShortText = "utf-8"


class CoverageByHorizon(Model):
    """How the kept forecasts have done at one bar to come."""

    bar: int = Field(description="1 the first to come")
    forecasts: int
    coverage: dict[str, float] = Field(description='by level of the band, "0.5", "0.8", "0.9"')
    crps: float


class KeptCalibration(Model):
    """How the kept forecasts have done against what came."""

    forecasts: int = Field(description="kept ones with at least one known bar")
    bars: int
    by_horizon: list[CoverageByHorizon]
    pit: list[int] = Field(description="counts of ten equal bins of [0, 1]; flat is calibrated")
    reason: str | None = Field(description="why there is nothing yet")


class UniverseRow(Model):
    """One name of a ranked day."""

    rank: int
    instrument: str
    score: float
    percentile: float | None = Field(
        description="of this score among the name's own of the last 60 days"
    )
    sparkline: list[float | None] = Field(description="its scores of those days, oldest first")
    expected_return: float | None = Field(
        description="mean close over all bars to come and all paths, against the last close"
    )
    prob_up: float | None = Field(description="share of paths whose last bar closes higher")
    volatility: float | None = Field(description="mean over paths, per bar")
    shortfall_5: float | None = Field(
        description="mean return to the last bar of the worst 5 % of the paths"
    )
    last_bar: str | None
    age_days: int | None


class Universe(Model):
    """One day, ranked."""

    run: str
    run_id: str
    day: str
    fresh: bool = Field(description="scored now; else what the run itself predicted last")
    days: list[str] = Field(description="of the sparklines")
    rows: list[UniverseRow]
    notes: list[str]


class Contribution(Model):
    """What one input added to a score, in the score's units, against the day's mean score."""

    model: str = Field(description="of a blend the member; else the model's class")
    feature: str
    kind: str = Field(description="context, scale, column: what sort of input it is")
    percentile: float | None = Field(
        description="share of the day's names whose input is lower, if it is one number"
    )
    contribution: float
    left_out: float | None = Field(description="change of the score without the input")


class Why(Model):
    """Why a name stands where it does."""

    run: str
    run_id: str
    instrument: str
    day: str
    method: str = Field(description="gradient times input, SHAP, ...")
    score: float
    rank: int
    names: int = Field(description="that are ranked that day")
    contributions: list[Contribution] = Field(
        description="largest first; Kronos' context is one of them"
    )
    words: list[str]


class RunSummary(Model):
    """One finished run."""

    run_id: str
    experiment: str
    name: str = Field(description="to ask for it: GET /runs/compare?runs=NAME&runs=...")
    model: str | None
    finished: str | None
    metrics: dict[str, float | None] = Field(
        description="ic, icir, rank_ic, rank_ic_t, excess_return, excess_low, excess_high, "
        "information_ratio, sharpe, max_drawdown, turnover, ..."
    )


class Runs(Model):
    """The newest finished runs."""

    runs: list[RunSummary]
    measures: dict[str, str] = Field(description="key of `metrics` to its name for people")
    reason: str | None = Field(description="why there are none")


class Curve(Model):
    """One line of a chart."""

    name: str
    values: list[float | None]


class Curves(Model):
    """Lines over one axis: days, or what else `days` says."""

    days: list[str]
    curves: list[Curve]


class PairTest(Model):
    """One series tested against another on the same days."""

    one: str
    other: str
    difference: float | None
    low: float | None
    high: float | None
    p_value: float | None
    reason: str | None = Field(description="why there is no test")


class BlendRow(Model):
    """An equal-weight blend, tested against its better member."""

    members: list[str]
    rank_ic: float
    test: PairTest = Field(description="against the better member")


class CompareRow(Model):
    """One run of a comparison."""

    run: str
    measures: dict[str, float | None]
    rank_ic_low: float | None = Field(description="of its 95 % interval, as those below")
    rank_ic_high: float | None
    excess_low: float | None = Field(description="of the excess return a year")
    excess_high: float | None


class Compared(Model):
    """Runs side by side: the report of `kronos-qlib compare`, as numbers."""

    rows: list[CompareRow]
    measures: dict[str, str] = Field(description="key to its name for people")
    equity: Curves | None = Field(description="growth of 1, after cost, and the benchmark")
    drawdown: Curves | None
    rank_ic: Curves | None = Field(description="rolling mean of the daily Rank IC")
    rolling_days: int
    deciles: Curves | None = Field(description="mean return by tenth of the score, lowest first")
    decay: Curves | None = Field(description="mean Rank IC of the score of k days before")
    correlation: list[list[float | None]]
    signal_tests: list[PairTest] = Field(description="of the daily Rank IC")
    return_tests: list[PairTest] = Field(description="of the daily excess return")
    blends: list[BlendRow]
    notes: list[str]
    definitions: list[str] = Field(description="what the measures mean, a paragraph each")


class Health(Model):
    """Whether the program works, and how busy it is."""

    status: Literal["ok"]
    version: str
    model: Literal["loading", "ready", "failed"]
    queued: int
    running: int
    uptime: float = Field(description="seconds")


class ForecastPath(Model):
    """Of an address: which forecast."""

    id: Id


class JobPath(Model):
    """Of an address: which job."""

    job: Id


class InstrumentQuery(Model):
    """Which instruments to list."""

    q: str = Field("", max_length=80, description="a part of the name")


class KeptQuery(Model):
    """Which kept forecasts to list."""

    q: str = Field("", max_length=80, description="a part of the instrument's name")
    offset: int = Field(0, ge=0, le=10_000_000)
    limit: int = Field(100, ge=1, le=500)


class UniverseQuery(Model):
    """Whose ranking, and of which day."""

    run: ShortText | None = Field(
        None, description="an experiment's name or a run's id; without one, the newest run"
    )
    fresh: bool = Field(False, description="score the newest day of its bars now: a job")


class CompareQuery(Model):
    """Which runs to compare."""

    runs: list[Annotated[str, StringConstraints(min_length=1, max_length=2000)]] = Field(
        min_length=1,
        max_length=MOST_COMPARED,
        description="an experiment's name or a run's id, the parameter again for each; or several "
        "in one, separated by commas, where no run has that whole name",
    )


class WhyPath(Model):
    """Of an address: which instrument."""

    instrument: ShortText


class WhyQuery(Model):
    """By which run it ranks where it does."""

    run: ShortText
    fresh: bool = Field(False, description="on the newest day of the bars, as of GET /universe")


class TrackRecordRequest(Model):
    """How many past windows to score."""

    windows: int = Field(20, ge=1, le=MOST_WINDOWS)


Problem.model_rebuild()


def faults_of(error: ValidationError) -> list[FieldProblem]:
    """Every field that a request has wrong, twenty at most."""
    found = []
    for one in error.errors(include_url=False, include_context=False, include_input=False)[:20]:
        name = ""
        for part in one["loc"]:
            name += f"[{part}]" if isinstance(part, int) else f".{part}" if name else str(part)
        message = re.sub(r"\s+", " ", str(one["msg"]))
        found.append(FieldProblem(field=one_line(name)[:100] or "body", message=message))
    return found
