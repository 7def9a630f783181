"""What the page, the API and the MCP server ask: forecasts, kept ones, runs. It knows no HTTP."""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from kronos_qlib.errors import KronosError
from kronos_qlib.version import __version__
from kronos_qlib.webui.schemas import (
    Bar,
    Compared,
    Forecast,
    Health,
    Instruments,
    Kept,
    KeptCalibration,
    Models,
    PredictRequest,
    Runs,
    Settings,
    Universe,
    UploadSettings,
    Why,
)
from kronos_qlib.webui.work.held_models import DEFAULT, HeldModels
from kronos_qlib.webui.work.job_queue import JobQueue, QueuedJob

if TYPE_CHECKING:
    from kronos_qlib.data.files.read import BarFile
    from kronos_qlib.plugin.provider.folder_bars import FolderBars
    from kronos_qlib.webui.work.forecast_answer import Answer, Series
    from kronos_qlib.webui.work.kept_forecasts import KeptForecasts
    from kronos_qlib.webui.work.run_views import RunViews
    from kronos_qlib.webui.work.upload_reader import UploadReader

logger = logging.getLogger(__name__)

INSTRUMENTS_SHOWN = 50
BARS_GIVEN = "the request"
"""What messages call bars that came with it."""
REMEMBERED_SERIES = 16
"""Series whose bars are in memory for a track record, those forecast last."""
REMEMBERED_ANSWERS = 32
"""Forecasts in memory that were not to be kept."""


@dataclass(frozen=True)
class Places:
    """Where the owner's things are. Nothing of this ever comes from a client."""

    data: Path | None = None
    """A Qlib folder."""
    checkpoints: Path | None = None
    """A folder of checkpoints."""
    store: Path = Path("kronos_forecasts")
    """Of kept forecasts; made with the first."""
    tracking_uri: str = "sqlite:///mlflow.db"
    """Of MLflow."""


class Service:
    """Everything behind the page. Heavy libraries are imported where they are first needed.

    Args:
        device: a torch device; None as found.
        most_waiting: forecasts that may wait for the one that is computed.
    """

    def __init__(
        self, places: Places | None = None, device: str | None = None, most_waiting: int = 16
    ) -> None:
        self.places = places or Places()
        self.models = HeldModels(self.places.checkpoints, device)
        self.work = JobQueue("kronos-model", most_waiting)
        """What needs a model: one thing at a time."""
        self.reading = JobQueue("kronos-runs", most_waiting)
        """What reads runs."""
        self._begun = time.monotonic()
        self._lock = threading.RLock()
        self._parts: dict[str, Any] = {}
        self._series: OrderedDict[str, Series] = OrderedDict()
        self._unkept: OrderedDict[str, Answer] = OrderedDict()

    def warm(self) -> None:
        """Load the default checkpoint behind whatever is asked meanwhile."""

        def load(job: QueuedJob) -> str:
            self.models.get(DEFAULT)
            self._uploads.warm()
            if self.places.data is not None:
                try:
                    _ = self._folder
                except KronosError as problem:
                    logger.warning("%s", problem)
            return DEFAULT

        self.work.submit("load", DEFAULT, load, about={"checkpoint": DEFAULT}, must=True)

    def close(self) -> None:
        """End threads and processes."""
        self.work.close()
        self.reading.close()
        with self._lock:
            if "uploads" in self._parts:
                self._parts["uploads"].close()

    # What is computed

    def predict(self, asked: PredictRequest) -> QueuedJob:
        """Forecast bars of a request, or an instrument of the Qlib folder.

        Returns:
            The job; its result is the id of the forecast.

        Raises:
            FieldError: a field cannot be.
            QueueFullError: too many wait.
        """
        from kronos_qlib.webui.work.forecast_answer import FieldError, series_of

        self._check_checkpoint(asked.checkpoint)
        if asked.bars is None and asked.instrument is None:
            raise FieldError(
                "bars", "give bars, or the name of an instrument of the Qlib folder (instrument)"
            )
        if asked.bars is not None:
            table = self.bars_of(asked.bars, asked.instrument)
            series = series_of(table, None, asked.date, "bars", BARS_GIVEN)
        else:
            assert asked.instrument is not None
            series = self._stored_series(asked.instrument, asked.date)
        return self._forecast(series, asked)

    def predict_file(self, name: str, data: bytes, asked: UploadSettings) -> QueuedJob:
        """Forecast an uploaded file; returns and raises as `predict` does."""
        from kronos_qlib.webui.work.forecast_answer import series_of
        from kronos_qlib.webui.work.upload_reader import shown_name

        self._check_checkpoint(asked.checkpoint)
        table = self.read_file(name, data, asked)
        series = series_of(table, asked.instrument, asked.date, "file", shown_name(name))
        return self._forecast(series, asked)

    def bars_of(self, bars: Sequence[Bar], name: str | None) -> BarFile:
        """Bars of a request as read from a table, as strictly.

        Raises:
            FieldError: names the bar and its field.
        """
        from kronos_qlib.data.columns.values import symbol_problem
        from kronos_qlib.data.files.read import read_bars
        from kronos_qlib.webui.work.forecast_answer import FieldError, bar_faults, frame_of_bars

        if name is not None and (not name.strip() or symbol_problem(name.strip())):
            reason = symbol_problem(name.strip()) or "the name is blank"
            raise FieldError("instrument", reason)
        frame = frame_of_bars(bars)
        with bar_faults():
            return read_bars(frame, symbol=name or "BARS")

    def read_file(self, name: str, data: bytes, asked: UploadSettings) -> BarFile:
        """The bars of an uploaded file.

        Raises:
            FieldError: it cannot be read.
            QueueFullError: too many files wait.
        """
        from kronos_qlib.errors import BarDataError, ConfigError
        from kronos_qlib.webui.work.forecast_answer import FieldError

        settings = asked.model_dump(include={"zone", "date_order", "encoding"})
        try:
            return self._uploads.read(name, data, settings)
        except (BarDataError, ConfigError) as problem:
            raise FieldError("file", str(problem)) from problem

    def track_record(self, forecast_id: str, windows: int) -> QueuedJob:
        """Score the last windows before a forecast; the job's result is the forecast's id.

        Raises:
            UnknownForecastError: there is no such forecast.
            FieldError: its bars are not at hand any more.
        """
        answer = self._answer(forecast_id)
        series = self._series_again(answer)

        def score(job: QueuedJob) -> str:
            from kronos_qlib.webui.work.forecast_answer import FieldError
            from kronos_qlib.webui.work.track_record import past_windows

            forecast = answer.forecast
            held = self.models.get(forecast.checkpoint.name)
            if held.digest[: len(forecast.checkpoint.digest)] != forecast.checkpoint.digest:
                raise FieldError(
                    "checkpoint",
                    f"the weights of {held.name} are others than those that made this forecast: "
                    "forecast again",
                )
            settings = Settings.model_validate(forecast.settings)
            found = past_windows(
                series, settings, forecast.bars_seen, windows, held, job.span(0.02, 0.98)
            )
            self._change(
                forecast_id,
                past=None if isinstance(found, str) else found,
                past_reason=found if isinstance(found, str) else None,
            )
            return forecast_id

        label = f"track record of {answer.forecast.instrument}"
        return self.work.submit("track_record", label, score, about={"forecast": forecast_id})

    def load(self, checkpoint: str) -> QueuedJob:
        """Load a checkpoint that is listed.

        Raises:
            FieldError: it is none of those.
        """
        self._check_checkpoint(checkpoint)

        def load(job: QueuedJob) -> str:
            return self.models.get(checkpoint).name

        return self.work.submit("load", checkpoint, load, about={"checkpoint": checkpoint})

    # What is kept

    def forecast(self, forecast_id: str) -> Forecast:
        """A forecast, kept or not.

        Raises:
            UnknownForecastError: there is no such.
        """
        return self._answer(forecast_id).forecast

    def kept(self, q: str = "", offset: int = 0, limit: int = 100) -> Kept:
        """The kept forecasts of instruments whose name holds `q`, newest first."""
        return self._kept.list(q, offset, limit)

    def delete(self, forecast_id: str) -> None:
        """Forget a forecast.

        Raises:
            UnknownForecastError: there is no such.
        """
        with self._lock:
            self._series.pop(forecast_id, None)
            if self._unkept.pop(forecast_id, None) is not None:
                return
        self._kept.delete(forecast_id)

    def reconcile(self, forecast_id: str, table: BarFile | None = None) -> Forecast:
        """Add to a forecast what came since.

        Args:
            table: bars that hold those; None asks the Qlib folder.

        Raises:
            UnknownForecastError: there is no such forecast.
            FieldError: the bars are of another series, or none came.
        """
        from kronos_qlib.webui.work.forecast_answer import FieldError
        from kronos_qlib.webui.work.reconciling import reconciled

        answer = self._answer(forecast_id)
        forecast = answer.forecast
        if table is None:
            if forecast.source != "qlib":
                raise FieldError(
                    "bars",
                    "this forecast is of bars that were given: give those that came since, from "
                    f"{forecast.last_timestamp} on",
                )
            table = self._stored(forecast.instrument)
        changed = reconciled(answer, table)
        self._put(changed)
        return changed.forecast

    def calibration(self) -> KeptCalibration:
        """How all kept forecasts have done."""
        return self._kept.calibration()

    # What there is

    def known_models(self) -> Models:
        """The checkpoints that may be asked for."""
        return self.models.known()

    def instruments(self, q: str = "") -> Instruments:
        """Instruments of the Qlib folder whose name holds `q`."""
        from kronos_qlib.webui.work.forecast_answer import time_of

        if self.places.data is None:
            return Instruments(
                folder=None, freq=None, first=None, last=None, total=0, instruments=[]
            )
        folder = self._folder
        wanted = q.strip().upper()
        found = [name for name in folder.names() if wanted in name.upper()]
        # What begins as typed stands before what has it inside.
        found.sort(key=lambda name: (not name.upper().startswith(wanted), name))
        calendar, is_intraday = folder.calendar, folder.freq not in ("day", "week", "month")
        return Instruments(
            folder=self.places.data.name or str(self.places.data),
            freq=folder.freq,
            first=time_of(calendar[0], is_intraday),
            last=time_of(calendar[-1], is_intraday),
            total=len(found),
            instruments=found[:INSTRUMENTS_SHOWN],
        )

    def runs(self) -> Runs:
        """Finished runs of the MLflow store."""
        return self._views.runs()

    def compare(self, names: Sequence[str]) -> Compared | QueuedJob:
        """Runs side by side: at once if they were compared before, else a job.

        Args:
            names: of `GET /runs/compare`; one may hold several, separated by commas.

        Raises:
            FieldError: a run is unknown.
        """
        names = self._views.named(names)
        known = self._views.known_comparison(names)
        if known is not None:
            return known

        def work(job: QueuedJob) -> Compared:
            return self._views.compare(names)

        label = f"comparison of {', '.join(names)}"
        return self.reading.submit("compare", label, work, about={"runs": names})

    def universe(self, run: str | None, fresh: bool) -> Universe | QueuedJob:
        """The newest day that a run ranks: at once if it was ranked before, else a job.

        Raises:
            FieldError: there is no such run.
        """
        known = self._views.known_universe(run, fresh)
        if known is not None:
            return known

        def work(job: QueuedJob) -> Universe:
            return self._views.universe(run, fresh)

        about = {**({"run": run} if run else {}), **({"fresh": "true"} if fresh else {})}
        queue = self.work if fresh else self.reading  # a fresh one needs the run's model
        label = f"ranking by {self._views.experiment(run)}"
        return queue.submit("universe", label, work, about=about)

    def why(self, instrument: str, run: str, fresh: bool) -> Why | QueuedJob:
        """What put a name where it stands: at once if it was asked before, else a job.

        Raises:
            FieldError: there is no such run.
        """
        known = self._views.known_why(instrument, run, fresh)
        if known is not None:
            return known

        def work(job: QueuedJob) -> Why:
            return self._views.why(instrument, run, fresh)

        about = {"instrument": instrument, "run": run, **({"fresh": "true"} if fresh else {})}
        return self.work.submit("why", f"reasons of {instrument}", work, about=about)

    def health(self) -> Health:
        """Whether it works, and how busy it is."""
        waiting, running = self.work.counts
        state: Literal["loading", "ready", "failed"] = self.models.is_ready()
        return Health(
            status="ok",
            version=__version__,
            model=state,
            queued=waiting,
            running=running,
            uptime=round(time.monotonic() - self._begun, 1),
        )

    # Jobs

    def job(self, job_id: str) -> QueuedJob | None:
        """A job of either queue."""
        return self.work.get(job_id) or self.reading.get(job_id)

    def pending(self) -> list[QueuedJob]:
        """What is at work or waits, of both queues."""
        return [*self.work.pending, *self.reading.pending]

    def cancel(self, job_id: str) -> QueuedJob | None:
        """End a job; None if there is no such."""
        return self.work.cancel(job_id) or self.reading.cancel(job_id)

    def position(self, job: QueuedJob) -> int | None:
        """Place of a job in its queue, 1 the next; None where it does not wait."""
        return self.work.position(job) or self.reading.position(job)

    # Inside

    def _forecast(self, series: Series, asked: Settings) -> QueuedJob:
        def work(job: QueuedJob) -> str:
            from kronos_qlib.webui.work.forecast_answer import answer_of
            from kronos_qlib.webui.work.reconciling import with_realised

            held = self.models.get(asked.checkpoint)
            job.tell(0.02)
            answer = answer_of(series, asked, held, job.span(0.02, 0.98))
            answer = with_realised(answer, series.came)
            job.tell(0.99)
            with self._lock:
                self._series[answer.forecast.id] = series
                self._series.move_to_end(answer.forecast.id)
                while len(self._series) > REMEMBERED_SERIES:
                    self._series.popitem(last=False)
                if not asked.keep:
                    self._unkept[answer.forecast.id] = answer
                    self._unkept.move_to_end(answer.forecast.id)
                    while len(self._unkept) > REMEMBERED_ANSWERS:
                        self._unkept.popitem(last=False)
            if asked.keep:
                self._kept.keep(answer)
            return answer.forecast.id

        about = {"instrument": series.name}
        return self.work.submit("forecast", f"forecast of {series.name}", work, about=about)

    def _answer(self, forecast_id: str) -> Answer:
        with self._lock:
            if forecast_id in self._unkept:
                return self._unkept[forecast_id]
        return self._kept.read(forecast_id)

    def _put(self, answer: Answer) -> None:
        with self._lock:
            if answer.forecast.id in self._unkept:
                self._unkept[answer.forecast.id] = answer
                return
        self._kept.update(answer)

    def _change(self, forecast_id: str, **record: Any) -> None:
        """Put into a forecast's track record what was computed meanwhile."""
        from kronos_qlib.webui.work.forecast_answer import Answer

        answer = self._answer(forecast_id)
        changed = answer.forecast.track_record.model_copy(update=record)
        forecast = answer.forecast.model_copy(update={"track_record": changed})
        self._put(Answer(forecast, answer.sample))

    def _series_again(self, answer: Answer) -> Series:
        from kronos_qlib.webui.work.forecast_answer import FieldError, digest_of

        forecast = answer.forecast
        with self._lock:
            if forecast.id in self._series:
                return self._series[forecast.id]
        if forecast.source != "qlib":
            raise FieldError(
                "forecast",
                "the bars of this forecast are not in memory any more (they are not kept, only "
                "their digest is): ask for the forecast again, then for its track record",
            )
        series = self._stored_series(forecast.instrument, forecast.last_timestamp)
        if digest_of(series.bars.tail(forecast.bars_seen)) != forecast.bars_digest:
            raise FieldError(
                "forecast",
                f"the bars of {forecast.instrument} up to {forecast.last_timestamp} are others now "
                "than when it was forecast: forecast it again",
            )
        return series

    def _stored_series(self, instrument: str, date: str | None) -> Series:
        from kronos_qlib.webui.work.forecast_answer import series_of

        name = self.places.data.name if self.places.data else ""
        return series_of(self._stored(instrument), None, date, "qlib", name)

    def _stored(self, instrument: str) -> BarFile:
        from kronos_qlib.data.files.read import BarFile
        from kronos_qlib.webui.work.forecast_answer import FieldError, fault_of

        if self.places.data is None:
            raise FieldError(
                "instrument",
                "there is no Qlib folder here: start with --data FOLDER, or give bars",
            )
        with fault_of("instrument"):
            return BarFile(self._folder.read(instrument), ())

    def _check_checkpoint(self, name: str) -> None:
        from kronos_qlib.webui.work.forecast_answer import fault_of

        with fault_of("checkpoint"):
            self.models.check(name)

    def _part(self, name: str, make: Callable[[], Any]) -> Any:
        """One of the service's parts, made when it is first needed."""
        with self._lock:
            if name not in self._parts:
                self._parts[name] = make()
            return self._parts[name]

    @property
    def _uploads(self) -> UploadReader:
        def make() -> UploadReader:
            from kronos_qlib.webui.work.upload_reader import UploadReader

            return UploadReader()

        found: UploadReader = self._part("uploads", make)
        return found

    @property
    def _kept(self) -> KeptForecasts:
        def make() -> KeptForecasts:
            from kronos_qlib.webui.work.kept_forecasts import KeptForecasts

            return KeptForecasts(self.places.store)

        found: KeptForecasts = self._part("kept", make)
        return found

    @property
    def _folder(self) -> FolderBars:
        def make() -> FolderBars:
            from kronos_qlib.plugin.provider.folder_bars import FolderBars

            assert self.places.data is not None
            return FolderBars(self.places.data)

        found: FolderBars = self._part("folder", make)
        return found

    @property
    def _views(self) -> RunViews:
        def make() -> RunViews:
            from kronos_qlib.webui.work.run_views import RunViews

            return RunViews(self.places.tracking_uri)

        found: RunViews = self._part("views", make)
        return found
