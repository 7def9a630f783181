"""ImportanceRecord on a run with an alpha head, and on one without."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from kronos_qlib.errors import ConfigError
from kronos_qlib.plugin.baselines import BaselineModel
from kronos_qlib.plugin.dataset import KronosDataset, KronosHandler
from kronos_qlib.plugin.lookahead import open_provider
from kronos_qlib.plugin.model import KronosModel
from kronos_qlib.plugin.records import ImportanceRecord
from kronos_qlib.plugin.records.run_check import await_metrics

pytestmark = pytest.mark.integration

SEGMENTS = {
    "train": ("2020-03-01", "2020-07-31"),
    "valid": ("2020-08-01", "2020-09-30"),
    "test": ("2020-10-01", "2020-12-15"),
}


def test_the_inputs_of_a_head_are_shuffled_and_kept(recorder, provider):
    open_provider(provider)
    dataset = KronosDataset(KronosHandler("all", end_time="2020-12-31"), SEGMENTS, 20, 3)
    head = {"epochs": 1, "hidden": 8, "context_width": 2}
    model = KronosModel(training={"alpha": head}, device="cpu", show_progress=False)
    model.fit(dataset)
    record = ImportanceRecord(recorder, model, dataset, days=12, shuffles=2)
    record.generate()
    await_metrics(recorder)
    folder = Path(recorder.download_artifact("importance"))
    assert sorted(path.name for path in folder.iterdir()) == sorted(record.list())
    table = pd.read_csv(folder / "importance.csv", index_col=0)
    assert list(table.index[:2]) == ["context", "scale features"]
    logged = recorder.list_metrics()
    assert logged["importance.context"] == pytest.approx(table.loc["context", "mean"], abs=1e-5)
    assert logged["importance.scale_features_low"] < logged["importance.scale_features_high"]
    assert not any("scale:_" in name for name in logged)
    page = (folder / "summary.md").read_text(encoding="utf-8")
    assert "On 12 days of the segment test" in page and "nan" not in page
    assert len(pd.read_parquet(folder / "importance_days.parquet")) == 12


def test_what_has_no_head_or_was_learned_from_is_refused(recorder):
    with pytest.raises(ConfigError, match="learned by heart"):
        ImportanceRecord(recorder, None, None, segment="train")
    with pytest.raises(ConfigError, match="shuffles and days are 1 or more"):
        ImportanceRecord(recorder, None, None, shuffles=0)
    for model in (BaselineModel("reversal"), KronosModel(show_progress=False)):
        with pytest.raises(ConfigError, match=f"{type(model).__name__} has none"):
            ImportanceRecord(recorder, model, None).generate()
