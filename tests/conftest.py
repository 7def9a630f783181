"""What several tests share: the golden files, tiny seeded networks, the profiles of hypothesis."""

from __future__ import annotations

import math
import os

if "PYTEST_XDIST_WORKER" in os.environ:  # before torch is imported: workers share the cores
    os.environ.setdefault("OMP_NUM_THREADS", "1")

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, is_hypothesis_test, settings
from tiny_networks import Pair, build_pair

from kronos_qlib.inference.sampling import SamplingConfig, sample_ids
from kronos_qlib.model.tokenizer import KronosTokenizer
from kronos_qlib.model.transformer import Kronos

GOLDEN = Path(__file__).parent / "parity" / "golden"

# No deadline: a busy machine must not turn a test red.
COMMON = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
# The same examples in every run, half of those that a test asks for: what none of them has broken
# before is looked for at night.
settings.register_profile("steady", COMMON, derandomize=True)
STEADY_SHARE = 0.5
# New examples in every run, NIGHTLY_TIMES those asked for; what failed is printed, to be repeated.
NIGHTLY = "nightly"
NIGHTLY_TIMES = 5
settings.register_profile(NIGHTLY, COMMON, derandomize=False, print_blob=True)
# `--hypothesis-profile` is read after this and wins.
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE") or "steady")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Most tests bound their examples themselves: the share of a run applies to that."""
    shares = {"steady": STEADY_SHARE, NIGHTLY: NIGHTLY_TIMES}
    share = shares.get(settings.get_current_profile_name())
    if share is None:
        return
    own = "_hypothesis_internal_use_settings"
    done = set()
    for item in items:
        test = getattr(getattr(item, "obj", None), "__func__", getattr(item, "obj", None))
        if not is_hypothesis_test(test) or test in done:
            continue
        done.add(test)
        asked = getattr(test, own, None) or settings()
        setattr(test, own, settings(asked, max_examples=math.ceil(share * asked.max_examples)))


@dataclass(frozen=True)
class Golden:
    """A tiny published-style checkpoint, its inputs and what every stage must return."""

    folder: Path
    arrays: dict[str, np.ndarray]

    def tensor(self, name: str) -> torch.Tensor:
        return torch.from_numpy(np.array(self.arrays[name]))

    def pair(self) -> Pair:
        return KronosTokenizer.from_pretrained(self.folder), Kronos.from_pretrained(self.folder)


@pytest.fixture(scope="session")
def make_minutes() -> Callable[..., pd.DataFrame]:
    """Builds a long table of 5-minute A-share bars, labelled by their close."""
    return build_minutes


def build_minutes(instruments: int = 3, days: int = 6, seed: int = 0) -> pd.DataFrame:
    """Random walks from Monday 2024-06-17; every seventh bar after the first has no trade."""
    rng = np.random.default_rng(seed)
    sessions = [
        pd.date_range("09:35", "11:30", freq="5min"),
        pd.date_range("13:05", "15:00", freq="5min"),
    ]
    clock = [time - time.normalize() for session in sessions for time in session]
    times = pd.DatetimeIndex(
        [day + at for day in pd.bdate_range("2024-06-17", periods=days) for at in clock]
    )
    tables = []
    for number in range(instruments):
        close = 10 * np.exp(np.cumsum(rng.normal(0, 0.002, len(times))))
        opened = np.concatenate(([10.0], close[:-1]))
        spread = rng.uniform(0, 0.01, (2, len(times)))
        volume = rng.integers(0, 50, len(times)) * 100.0
        bars = pd.DataFrame(
            {
                "symbol": f"SH60000{number}",
                "date": times,
                "open": opened,
                "high": np.maximum(opened, close) + spread[0],
                "low": np.minimum(opened, close) - spread[1],
                "close": close,
                "volume": volume,
                "amount": volume * (opened + close) / 2,
                "factor": 1.0 + number,
            }
        )
        tables.append(bars[(np.arange(len(times)) + number) % 7 != 6])
    return pd.concat(tables, ignore_index=True)


@pytest.fixture(params=["a", "b"])
def golden(request) -> Golden:
    """a has a learned time embedding, b a fixed one."""
    folder = GOLDEN / request.param
    with np.load(folder / "golden.npz") as file:
        return Golden(folder, {name: file[name] for name in file.files})


@pytest.fixture(scope="session")
def make_pair() -> Callable[..., Pair]:
    """Builds a tiny seeded tokenizer and predictor, in evaluation mode."""
    return build_pair


@pytest.fixture
def tiny_pair() -> Pair:
    return build_pair()


@pytest.fixture(scope="session")
def generate_plainly() -> Callable[..., tuple[torch.Tensor, torch.Tensor]]:
    """The published algorithm: every path reads its whole context anew for every bar."""
    return draw_plainly


@torch.inference_mode()
def draw_plainly(
    model: Kronos,
    tokens: tuple[torch.Tensor, torch.Tensor],
    stamps: torch.Tensor,
    horizon: int,
    how: SamplingConfig,
    uniforms: torch.Tensor,
    max_context: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    s1, s2 = (ids.repeat_interleave(how.paths, dim=0) for ids in tokens)
    stamps = stamps.repeat_interleave(how.paths, dim=0)
    chance = uniforms.flatten(0, 1)
    lookback = s1.shape[1]
    for step in range(horizon):
        seen = slice(max(0, lookback + step - max_context), lookback + step)
        logits, context = model.decode_s1(s1[:, seen], s2[:, seen], stamps[:, seen])
        next_s1 = sample_ids(logits[:, -1], how, chance[:, step, 0])[:, None]
        logits = model.decode_s2(context, next_s1, how.rotate_s2)
        next_s2 = sample_ids(logits[:, -1], how, chance[:, step, 1])[:, None]
        s1, s2 = torch.cat((s1, next_s1), dim=1), torch.cat((s2, next_s2), dim=1)
    return s1[:, lookback:], s2[:, lookback:]
