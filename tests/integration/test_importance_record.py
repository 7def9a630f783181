"""ImportanceRecord on a run with an alpha head, and on one without."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from kronos_qlib.data.windows.scale_features import SCALE_FEATURES
from kronos_qlib.errors import ConfigError
from kronos_qlib.inference.predictor import KronosPredictor
from kronos_qlib.plugin.baselines import BaselineModel, GRUModel
from kronos_qlib.plugin.dataset import KronosDataset, KronosHandler
from kronos_qlib.plugin.explain.reasons import reasons_of
from kronos_qlib.plugin.explain.reasons_text import reasons_text
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


def test_every_option_of_a_head_has_its_group(recorder, provider, tmp_path, monkeypatch):
    """And contexts are taken from the folder where training left them."""
    open_provider(provider)
    dataset = KronosDataset(KronosHandler("all", end_time="2020-12-31"), SEGMENTS, 20, 3)
    head = {
        "epochs": 1,
        "hidden": 8,
        "context_width": 2,
        "seeds": 2,
        "attention": 2,
        "linear_path": True,
        "horizons": [1, 3],
        "features": ["KMID", "$close / Ref($close, 7)"],
        "context": {"bars": 3},
    }
    model = KronosModel(
        training={"alpha": head},
        device="cpu",
        show_progress=False,
        contexts_folder=str(tmp_path / "contexts"),
    )
    model.fit(dataset)
    files = sorted((tmp_path / "contexts").rglob("*.*"))
    assert files
    record = ImportanceRecord(recorder, model, dataset, segment="valid", days=6, shuffles=1)
    with monkeypatch.context() as patched:  # most days were read for training
        read = []
        embed = KronosPredictor.embed
        patched.setattr(
            KronosPredictor, "embed", lambda *given, **how: read.append(1) or embed(*given, **how)
        )
        record.generate()
    assert len(read) < 6 and sorted((tmp_path / "contexts").rglob("*.*")) == files
    folder = Path(recorder.download_artifact("importance"))
    table = pd.read_csv(folder / "importance.csv", index_col=0)
    assert list(table.index[:3]) == ["context", "context: last bar", "context: newest 3 bars"]
    assert list(table.index[-4:-1]) == [
        "columns",
        "column: KMID",
        "column: $close / Ref($close, 7)",
    ]
    assert table.index[-1] == "market"
    assert "taken from other days" in (folder / "summary.md").read_text(encoding="utf-8")
    # The same inputs explain a score of the day.
    day = model.predict(dataset, "valid").index[0][0]
    scores = model.predict(dataset, slice(day, day)).droplevel("datetime")
    found = reasons_of(model, dataset, scores.idxmax(), day)
    [part] = found.parts.values()
    assert part.score == pytest.approx(found.score, rel=1e-5, abs=1e-6) and found.rank == 1
    assert set(table.index[1:3]) < set(part.table.index)
    assert part.by_kind()["inputs"].to_dict() == {
        "context": 2,
        "scale": len(SCALE_FEATURES),
        "column": 2,
    }
    text = reasons_text(found)
    assert "2 parts of Kronos' context" in text and "The market's state" in text


def test_what_has_no_head_or_was_learned_from_is_refused(recorder):
    with pytest.raises(ConfigError, match="learned by heart"):
        ImportanceRecord(recorder, None, None, segment="train")
    for how in ({"shuffles": 0}, {"days": 0}, {"seed": -1}):
        with pytest.raises(ConfigError, match="shuffles and days are 1 or more"):
            ImportanceRecord(recorder, None, None, **how)
    with pytest.raises(ConfigError, match="a GRUModel reads the raw bars of a window"):
        ImportanceRecord(recorder, GRUModel(show_progress=False), None).generate()
    for model in (BaselineModel("reversal"), KronosModel(show_progress=False)):
        with pytest.raises(ConfigError, match=f"{type(model).__name__} has none"):
            ImportanceRecord(recorder, model, None).generate()
