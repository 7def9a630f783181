"""A job of blocks: done once each, whatever ends in between; no other job's results are taken."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import block_work
import pyarrow.parquet as pq
import pytest
from block_work import FACTS, Squares, blocks_of

from kronos_qlib.errors import ConfigError, JobBusyError, JobError
from kronos_qlib.pipeline.block_jobs import job_folder
from kronos_qlib.pipeline.block_jobs.job_folder import JobFolder, Outcome, outcomes_of, read_parts
from kronos_qlib.pipeline.block_jobs.run_blocks import OneProcess, Worker, run_job


def start(folder, work=None, count=12, facts=FACTS, **how):
    with JobFolder.open(folder, facts, blocks_of(count), **how) as job:
        return run_job(job, work or Squares(), OneProcess())


def parts_of(folder):
    return {path.name: path.read_bytes() for path in (folder / "parts").iterdir()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "job"
    start(folder)
    return folder


def test_blocks_are_done_in_order_and_read_back(whole):
    table = read_parts(whole)
    numbers = [number for number in range(12) if number % 10 != 9]
    assert table.column("number").to_pylist() == [one for one in numbers for _ in range(3)]
    assert table.column_names == ["number", "value"]
    assert read_parts(whole, ["value"]).num_columns == 1
    assert len(parts_of(whole)) == 11, "a block without a row has no file"
    assert outcomes_of(whole)["b009"].rows == 0


def test_a_second_start_does_nothing(whole):
    before = {path: path.stat().st_mtime_ns for path in (whole / "parts").iterdir()}
    result = start(whole, Squares(opens=False))
    assert (result.new, result.blocks, result.rows) == (0, 12, 33)
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_what_differs_is_said_and_nothing_is_done(whole):
    before = parts_of(whole)
    with pytest.raises(ConfigError, match="seed is 1 there and 2 here; lookback is not set there"):
        start(whole, facts={**FACTS, "seed": "2", "lookback": "90"})
    with pytest.raises(ConfigError, match="its blocks are others"):
        start(whole, count=13)
    assert parts_of(whole) == before


def test_a_folder_of_other_files_is_not_taken(tmp_path):
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(ConfigError, match=r"holds letter\.txt"):
        start(tmp_path)


def test_a_failing_block_is_named_and_tried_alone(tmp_path, whole):
    trouble, folder = tmp_path / "trouble", tmp_path / "job"
    trouble.mkdir()
    (trouble / "b004").write_text("refuse")
    (trouble / "b007").write_text("raise")
    (trouble / "b002").write_text("once")
    result = start(folder, Squares(trouble=trouble))
    assert result.new == 10
    assert result.failed == {"b004": "block b004 cannot be", "b007": "MemoryError: no more"}
    with pytest.raises(JobError, match=r"2 of 12 blocks failed.*b004: block b004 cannot be"):
        result.check(folder)
    kept = parts_of(folder)
    (trouble / "b004").unlink()
    again = start(folder, Squares(trouble=trouble))
    assert again.new == 1 and set(again.failed) == {"b007"}, "the other one alone was tried"
    (trouble / "b007").unlink()
    assert start(folder, Squares(trouble=trouble)).failed == {}
    assert parts_of(folder).items() >= kept.items()
    assert read_parts(folder).equals(read_parts(whole))


@pytest.mark.parametrize(("what", "times"), [("refuse", 1), ("raise", 3)])
def test_an_error_of_ours_is_not_tried_again(tmp_path, monkeypatch, what, times):
    begun, begin = [], job_folder.PartWriter.begin

    def counted(self, block):
        begun.append(block.name)
        return begin(self, block)

    monkeypatch.setattr(job_folder.PartWriter, "begin", counted)
    (tmp_path / "b000").write_text(what)
    assert start(tmp_path / "job", Squares(trouble=tmp_path), count=1).failed
    assert begun == ["b000"] * times
    assert not (tmp_path / "job" / "attempts").exists()


def test_a_folder_that_machines_do_not_share_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(job_folder, "ARRIVAL_SECONDS", 0.3)
    with JobFolder.open(tmp_path / "job", FACTS, blocks_of(2)) as job:
        with pytest.raises(JobError, match=r"there:7 wrote the block b000, .* all of them share"):
            job.note(Outcome("b000", rows=3, bytes=9, worker="there:7"))
        assert not job.done


def test_work_that_cannot_be_opened_stops_the_job(tmp_path):
    with pytest.raises(JobError, match="cannot begin: the bars are not on this machine"):
        start(tmp_path / "job", Squares(opens=False))
    assert outcomes_of(tmp_path / "job") == {}
    assert start(tmp_path / "job").rows == 33


@pytest.mark.parametrize("cut", [1, 20])
def test_a_half_written_line_is_dropped(tmp_path, whole, cut):
    start(tmp_path / "job")
    manifest = tmp_path / "job" / "manifest.jsonl"
    manifest.write_bytes(manifest.read_bytes()[:-cut])
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "job" / "parts").iterdir()}
    result = start(tmp_path / "job", Squares(opens=False))
    assert result.new == 0, "the part was there, its line alone was lost"
    assert {path: path.stat().st_mtime_ns for path in times} == times
    assert read_parts(tmp_path / "job").equals(read_parts(whole))
    assert all(json.loads(line) for line in manifest.read_bytes().splitlines())


def test_a_line_of_something_else_is_named(tmp_path):
    start(tmp_path / "job")
    with (tmp_path / "job" / "manifest.jsonl").open("a") as file:
        file.write('{"who": "knows"}\n')
    with pytest.raises(JobError, match="a line that is not about a block"):
        start(tmp_path / "job")


def test_a_damaged_or_foreign_part_is_made_again(tmp_path, whole):
    folder = tmp_path / "job"
    start(folder)
    before = parts_of(folder)
    (folder / "parts" / "b001.parquet").write_bytes(before["b001.parquet"][:100])
    (folder / "parts" / "b002.parquet").unlink()
    (folder / "parts" / "b003.parquet").write_bytes(before["b004.parquet"])
    assert start(folder).new == 3
    assert parts_of(folder) == before


def test_a_part_whose_body_is_damaged_is_made_again(tmp_path):
    """Its size and its footer are as before."""
    folder = tmp_path / "job"
    start(folder)
    before = parts_of(folder)
    for name in ("b001", "b002"):
        data = bytearray(before[f"{name}.parquet"])
        data[40] ^= 1
        (folder / "parts" / f"{name}.parquet").write_bytes(data)
    with pytest.raises(JobError, match=r"b00[12]\.parquet cannot be read: it is not what"):
        read_parts(folder)
    manifest = folder / "manifest.jsonl"  # of the second the line is lost too
    lines = manifest.read_bytes().splitlines(keepends=True)
    manifest.write_bytes(b"".join(line for line in lines if b'"b002"' not in line))
    assert start(folder).new == 2
    assert parts_of(folder) == before


@dataclass(frozen=True)
class OnDevice(Squares):
    """Numbers of a device that a file names, which may change between two blocks."""

    device: str = ""
    source: Path | None = None

    def open(self):
        return OnDevice(device=self.source.read_text(), source=self.source)

    def __call__(self, block):
        return self.compute(block)


def test_numbers_of_another_device_are_not_mixed_in(tmp_path, caplog):
    """The device that a job named was the driver's, whatever the workers had."""
    source, folder = tmp_path / "device", tmp_path / "job"
    source.write_text("cpu")
    work = OnDevice(source=source)
    with JobFolder.open(folder, FACTS, blocks_of(3)) as job:
        for block in job.unfinished()[:1]:
            job.note(Worker(work, job.writer(1)).do(block))
        assert outcomes_of(folder)["b000"].device == "cpu"
        early = job.writer(3)
        source.write_text("cuda")
        refused = Worker(work, early).do(job.unfinished()[0])
        assert refused.stops and "it computes on cuda, and blocks of this job were" in refused.error
        # A worker that began before any block was done knows of no other device.
        late = Worker(work, replace(early, device="")).do(job.unfinished()[0])
        with pytest.raises(JobError, match="blocks of this job were computed on cpu"):
            job.note(late)
    source.write_text("cpu")
    assert start(folder, work, count=3).new == 2
    assert "b001.parquet was computed on cuda and the others on cpu" in caplog.text
    assert {one.device for one in outcomes_of(folder).values()} == {"cpu"}


def test_threads_stay_those_that_a_job_was_begun_with(tmp_path):
    start(tmp_path / "job", threads=3)
    with JobFolder.open(tmp_path / "job", FACTS, blocks_of(12), threads=8) as job:
        assert job.threads == 3


def test_two_drivers_do_not_share_a_folder(tmp_path):
    with (
        JobFolder.open(tmp_path / "job", FACTS, blocks_of(2)),
        pytest.raises(JobBusyError, match=r"another process works on the job in .*job"),
    ):
        start(tmp_path / "job", count=2)


def test_a_killed_driver_loses_the_block_at_hand(tmp_path, whole):
    folder, script = tmp_path / "job", block_work.__file__
    command = [sys.executable, script, str(folder), "12"]
    driver = subprocess.Popen([*command, "0.15"], stdout=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while len(outcomes_of(folder)) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    driver.kill()
    driver.communicate()
    done = len(outcomes_of(folder))
    assert 3 <= done < 12
    times = {path: path.stat().st_mtime_ns for path in (folder / "parts").glob("*.parquet")}
    out = subprocess.run([*command, "0"], capture_output=True, text=True, check=True).stdout
    assert out.startswith("33 rows")
    assert {path: path.stat().st_mtime_ns for path in times} == times
    assert read_parts(folder).equals(read_parts(whole))
    assert parts_of(folder) == parts_of(whole)


def test_a_part_names_its_job_and_block(whole):
    about = pq.read_metadata(Path(whole) / "parts" / "b000.parquet").metadata
    with JobFolder.open(whole, FACTS, blocks_of(12)) as job:
        assert json.loads(about[job_folder.ABOUT_PART]) == {"job": job.digest, "block": "b000"}
