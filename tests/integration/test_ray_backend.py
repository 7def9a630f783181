"""Blocks on Ray: the bits of one process, whatever is killed, and nothing done twice."""

from __future__ import annotations

import os
import pickle
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import block_work
import pandas as pd
import pytest
from block_work import FACTS, Squares, Threads, blocks_of

from kronos_qlib.data.windows.window_dataset import WindowDataset
from kronos_qlib.errors import ConfigError, JobError
from kronos_qlib.pipeline.block_jobs.job_folder import JobFolder, outcomes_of, read_parts
from kronos_qlib.pipeline.block_jobs.ray_backend import RayBackend
from kronos_qlib.pipeline.block_jobs.run_blocks import OneProcess, run_job
from kronos_qlib.plugin.dataset import KronosDataset, KronosHandler
from kronos_qlib.plugin.lookahead import open_provider
from kronos_qlib.plugin.model import KronosModel

ray = pytest.importorskip("ray", reason="the extra ray is not installed")
pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(sys.platform == "win32", reason="signals of Unix end the workers"),
]

BLOCKS = 40
QUIET = {"device": "cpu", "show_progress": False, "sampling": {"paths": 2}}


@pytest.fixture(scope="module")
def two_cpus():
    """One Ray for all: two CPUs, no dashboard."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("RAY_USAGE_STATS_ENABLED", "0")
        tests = str(Path(block_work.__file__).parent)
        patched.setenv("PYTHONPATH", os.pathsep.join([tests, os.environ.get("PYTHONPATH", "")]))
        how = {"num_cpus": 2, "include_dashboard": False, "log_to_driver": False}
        try:
            ray.init(address="local", object_store_memory=100 * 2**20, **how)
        except Exception:  # on a busy machine its processes wait for each other too short a while
            ray.shutdown()
            ray.init(address="local", object_store_memory=100 * 2**20, **how)
        yield
        ray.shutdown()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The job as nothing disturbs it, in one process."""
    folder = tmp_path_factory.mktemp("whole") / "job"
    with JobFolder.open(folder, FACTS, blocks_of(BLOCKS)) as job:
        run_job(job, Squares(), OneProcess())
    return {path.name: path.read_bytes() for path in (folder / "parts").iterdir()}


def parts_of(folder):
    return {path.name: path.read_bytes() for path in (folder / "parts").glob("*.parquet")}


def test_scores_on_every_cpu_are_those_of_one_process(provider, two_cpus, tmp_path):
    """Two actors on two CPUs stood still where Ray Data had to read with a third."""
    open_provider(provider)
    dataset = KronosDataset(
        KronosHandler("all"), {"test": ("2020-12-07", "2020-12-11")}, lookback=20, horizon=3
    )
    expected = KronosModel(**QUIET).signals(dataset)
    how = {"name": "ray", "workers": 2, "moments": 2, "folder": str(tmp_path)}
    model = KronosModel(**QUIET, backend=how)
    found = model.signals(dataset)
    pd.testing.assert_frame_equal(found, expected, check_exact=True)
    [job] = tmp_path.iterdir()
    outcomes = outcomes_of(job).values()
    assert len(outcomes) == 3 and all(outcome.worker for outcome in outcomes)
    assert str(os.getpid()) not in {outcome.worker.rpartition(":")[2] for outcome in outcomes}
    model.backend = KronosModel(**QUIET, backend={**how, "workers": 1}).backend
    again = model.signals(dataset)  # from the folder, whoever did it
    pd.testing.assert_frame_equal(again, expected, check_exact=True)
    assert pickle.loads(pickle.dumps(model)).backend == model.backend


def test_bars_that_only_this_process_has_are_refused(bars):
    source = WindowDataset.from_file(bars, {"test": 1.0}, lookback=20, horizon=3)
    with pytest.raises(ConfigError, match="workers open the bars themselves"):
        KronosModel(**QUIET, backend="ray").predict(source)


def test_workers_have_the_threads_of_their_cpus(two_cpus, tmp_path):
    with JobFolder.open(tmp_path / "job", FACTS, blocks_of(1)) as job:
        run_job(job, Threads(), RayBackend(cpus_per_worker=2))
    assert read_parts(tmp_path / "job").to_pylist() == [{"torch": 2, "omp": "2"}]


def test_more_than_there_is_room_for_is_refused(two_cpus, tmp_path):
    for backend in (RayBackend(workers=3), RayBackend(gpus_per_worker=1)):
        with (
            JobFolder.open(tmp_path / "job", FACTS, blocks_of(4)) as job,
            pytest.raises(ConfigError, match="Ray has 2 CPUs and 0 GPUs, which is room for"),
        ):
            run_job(job, Squares(), backend)


def test_an_address_of_another_ray_is_refused(two_cpus, tmp_path):
    """It was ignored where this process was on a Ray already."""
    here = ray.get_runtime_context().gcs_address
    port = here.rpartition(":")[2]
    with JobFolder.open(tmp_path / "job", FACTS, blocks_of(2)) as job:
        with pytest.raises(ConfigError, match=f"this process is on a Ray at {here}: leave address"):
            run_job(job, Squares(), RayBackend(address="192.0.2.1:6379"))
        assert run_job(job, Squares(), RayBackend(address=here, workers=1)).rows == 6
    for same in (f"{socket.gethostname()}:{port}", "auto", None):
        with RayBackend(address=same).held():
            assert ray.is_initialized()


def test_five_killed_workers_change_nothing(two_cpus, tmp_path, whole):
    folder, killed = tmp_path / "job", set()
    with JobFolder.open(folder, FACTS, blocks_of(BLOCKS)) as job:
        note = job.note

        def note_and_kill(outcome):
            note(outcome)
            process = int(outcome.worker.rpartition(":")[2])
            if len(killed) < 5 and process not in killed:
                killed.add(process)
                os.kill(process, signal.SIGKILL)

        job.note = note_and_kill
        result = run_job(job, Squares(seconds=0.02), RayBackend(workers=2))
    assert len(killed) == 5 and not result.failed and result.new == BLOCKS
    assert parts_of(folder) == whole


def test_a_block_that_kills_its_worker_is_named_and_tried_alone(two_cpus, tmp_path, whole):
    """As one does that needs more memory than there is."""
    trouble, folder = tmp_path / "trouble", tmp_path / "job"
    trouble.mkdir()
    (trouble / "b013").write_text("die")
    (trouble / "b017").write_text("raise")

    def start(backend):
        with JobFolder.open(folder, FACTS, blocks_of(BLOCKS)) as job:
            return run_job(job, Squares(trouble=trouble), backend, most_attempts=2)

    result = start(RayBackend(workers=1))
    assert result.new == BLOCKS - 2
    assert result.failed == {
        "b013": "2 workers ended while they did it: killed, or out of memory (fewer moments a "
        "block, or memory_mb, make it smaller)",
        "b017": "MemoryError: no more",
    }
    with pytest.raises(JobError, match="2 of 40 blocks failed"):
        result.check(folder)
    for name in ("b013", "b017"):
        (trouble / name).unlink()
    assert start(OneProcess()).new == 2, "these alone, by whichever backend"
    assert parts_of(folder) == whole


def test_work_that_no_worker_can_open_stops_the_job(two_cpus, tmp_path):
    with (
        JobFolder.open(tmp_path / "job", FACTS, blocks_of(4)) as job,
        pytest.raises(JobError, match="cannot begin: the bars are not on this machine"),
    ):
        run_job(job, Squares(opens=False), RayBackend(workers=1))


def test_a_driver_that_is_killed_twice_loses_nothing_done(tmp_path, whole):
    folder = tmp_path / "job"
    command = [sys.executable, block_work.__file__, str(folder), str(BLOCKS)]
    done = 0
    for _ in range(2):
        driver = subprocess.Popen([*command, "0.1", "ray", "1"], stdout=subprocess.DEVNULL)
        before, deadline = done, time.monotonic() + 180
        while done < before + 4 and time.monotonic() < deadline and driver.poll() is None:
            time.sleep(0.02)
            done = len(outcomes_of(folder))
        driver.send_signal(signal.SIGKILL)
        driver.wait()
        assert before + 4 <= done < BLOCKS
        times = {path: path.stat().st_mtime_ns for path in (folder / "parts").glob("*.parquet")}
    last = [*command, "0"]  # here, so that what Ray left is taken up by another backend too
    out = subprocess.run(last, capture_output=True, text=True, check=True).stdout
    assert out.startswith("108 rows")
    kept = {path: path.stat().st_mtime_ns for path in times}
    assert kept == times, "what was done is not done again"
    assert parts_of(folder) == whole
