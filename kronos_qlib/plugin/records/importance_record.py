"""What each group of an alpha head's inputs is worth on a segment, by shuffling it."""

from __future__ import annotations

import math
from typing import Any

from qlib.workflow.record_temp import RecordTemp
from qlib.workflow.recorder import Recorder

from kronos_qlib.errors import ConfigError, in_words
from kronos_qlib.evaluation.ranking.signal_figures import interval_figure
from kronos_qlib.evaluation.text_table import DASH, format_rows
from kronos_qlib.markup import markdown
from kronos_qlib.pipeline.importance import MARKET_GROUP, Importance, permutation_importance
from kronos_qlib.plugin.baselines.gru_model import READS_BARS, GRUModel
from kronos_qlib.plugin.dataset import source_of
from kronos_qlib.plugin.model import KronosModel
from kronos_qlib.plugin.records.artifacts import experiment_of, load_task, saved_files
from kronos_qlib.plugin.task_sections import label_bars_of


class ImportanceRecord(RecordTemp):
    """Permutation importance of an alpha head's inputs: context, scale features, columns, market.

    Each group is shuffled among the names of a day, several times, and the drop of the day's Rank
    IC is taken; the market's state, which those names share, is another day's. Logs
    `importance.context`, `importance.scale_features`, `importance.columns`, `importance.market`,
    those there are, each with `_low` and `_high`, and leaves in the folder `importance` of the run
    summary.md, importance.csv, importance_days.parquet and importance.png, with each part of the
    context, the families of scale features and each column too.
    """

    artifact_path = "importance"
    needs_extra = "report"
    reads = ()
    leaves = ("summary.md", "importance.csv", "importance_days.parquet", "importance.png")

    def __init__(
        self,
        recorder: Recorder,
        model: Any,
        dataset: Any,
        segment: str = "test",
        shuffles: int = 5,
        days: int | None = 60,
        seed: int = 0,
    ) -> None:
        """
        Args:
            model, dataset: <MODEL> and <DATASET> of the workflow; a KronosModel with an alpha head.
            segment: of the data set; not the one that the head learned from.
            shuffles: of each group and day.
            days: at most so many days of the segment, evenly spaced; null takes all.
            seed: of the shuffles.
        """
        super().__init__(recorder=recorder)
        if segment == "train":
            raise ConfigError(
                "ImportanceRecord: on 'train' a head's inputs are worth what it learned by heart; "
                "say valid or test"
            )
        if shuffles < 1 or (days is not None and days < 1) or seed < 0:
            raise ConfigError(
                f"shuffles and days are 1 or more and seed is 0 or more, got {shuffles}, {days} "
                f"and {seed}"
            )
        self.model, self.dataset, self.segment = model, dataset, segment
        self.shuffles, self.days, self.seed = shuffles, days, seed

    def list(self) -> list[str]:
        """Files of the record."""
        return [*self.leaves]

    def generate(self, **kwargs: object) -> None:
        """Shuffle, measure and keep.

        Raises:
            ConfigError: the model is no KronosModel with an alpha head, or the data set has no
                windows or not all columns.
            BarDataError: the segment has no day with enough labels.
        """
        model = self.model
        if isinstance(model, GRUModel):
            raise ConfigError(
                f"ImportanceRecord shuffles a model's inputs, and {READS_BARS}: leave the record "
                "out of its workflow"
            )
        if not isinstance(model, KronosModel) or model.head is None:
            raise ConfigError(
                "ImportanceRecord shuffles the inputs of an alpha head, and this run's "
                f"{type(model).__name__} has none: leave the record out of its workflow"
            )
        source = source_of(self.dataset, reader="ImportanceRecord")
        windows = source.windows(self.segment)
        found = permutation_importance(
            model.predictor,
            model.head,
            windows,
            source.label,
            shuffles=self.shuffles,
            seed=self.seed,
            most_days=self.days,
            # The data set's own label, which may not be the one that the task's handler names.
            label_bars=source.label.bars or label_bars_of(load_task(self.recorder)),
            **model.how_head_reads(source, windows),
        )
        title = f"{experiment_of(self.recorder)}: what Rank IC loses without an input"
        figure = interval_figure(found.table, title, "Drop of Rank IC, 95 % interval")
        with saved_files(self) as folder:
            page = f"# {markdown(title)}\n\n{importance_page(found, self.segment)}\n"
            (folder / "summary.md").write_text(page, encoding="utf-8")
            found.table.to_csv(folder / "importance.csv", float_format="%.6g")
            found.drops.to_parquet(folder / "importance_days.parquet")
            figure.savefig(folder / "importance.png")
        metrics = {
            f"importance.{str(name).replace(' ', '_')}{end}": float(row[column])
            for name, row in found.table.iterrows()
            if ":" not in str(name)
            for column, end in (("mean", ""), ("low", "_low"), ("high", "_high"))
        }
        self.recorder.log_metrics(**{name: it for name, it in metrics.items() if math.isfinite(it)})


def importance_page(found: Importance, segment: str) -> str:
    """Sentences and a table, as Markdown."""
    table = found.table
    clear = [str(name) for name in table.index if table.loc[name, "low"] > 0]
    lines = [
        f"On {len(found.drops)} days of the segment {markdown(segment)} the head has a Rank IC of "
        f"{found.rank_ic.mean():+.4f}; each group of inputs was shuffled {found.shuffles} times "
        "among the names of a day."
    ]
    lines.append(
        f"A significant drop comes from {in_words(list(map(markdown, clear)))}."
        if clear
        else "No group's drop is significant."
    )
    others = [str(name) for name in table.index if not table.loc[name, "low"] > 0]
    if clear and others:
        lines.append(f"Not significant: {in_words(list(map(markdown, others)))}.")
    rows = [["", "inputs", "drop of Rank IC", "95% interval", "t"]]
    for name, row in table.iterrows():
        bounds = DASH if math.isnan(row["low"]) else f"{row['low']:+.4f} to {row['high']:+.4f}"
        t = DASH if math.isnan(row["t"]) else f"{row['t']:+.2f}"
        rows.append([str(name), f"{row['inputs']:.0f}", f"{row['mean']:+.4f}", bounds, t])
    note = (
        "A group that another stands in for loses little though both matter: the drop is what the "
        "head would miss. Intervals are of one group each, not corrected for their number."
    )
    if MARKET_GROUP in table.index:
        note += " The market's state, which all names of a day share, was taken from other days."
    return "\n\n".join([" ".join(lines), format_rows(rows, markdown=True), note])
