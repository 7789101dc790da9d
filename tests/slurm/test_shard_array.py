"""`launch shards` on a real Slurm: an array of which two tasks are killed, and finished later."""

import os
import signal
from pathlib import Path

import psutil

from hnpretrain.config import load, to_yaml
from hnpretrain.shards.marker import marker_name
from launch import queue
from launch.follow import status
from launch.shards import submit
from shard_tools.job import build
from shard_tools.settings import BuildSettings
from shard_tools.sources import SourceSettings
from tests.slurm.jobs import wait
from tests.support.shards import PHOTOS

TASKS = 6
KILLED = (1, 4)
LAUNCH = "launch: {cpus: 1, minutes: 10}\n"


def shards_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def are_over(record):
    return not any(each.is_active for job in record.jobs for each in queue.states(job))


def kill_parts(record, parts):
    """Kills the builds of these parts as soon as they have begun."""
    left = set(parts)
    config = str(Path(record.log).parent / "config.yaml")

    def all_killed():
        for process in psutil.process_iter(["cmdline"]):
            command = process.info["cmdline"] or []
            for part in list(left):
                if {config, f"part={part}"} <= set(command):
                    os.kill(process.pid, signal.SIGKILL)
                    left.discard(part)
        return not left

    wait("all parts' processes", all_killed)


def test_a_second_call_finishes_exactly_what_is_missing(cluster, tmp_path):
    del cluster
    source = SourceSettings("jsonl", str(PHOTOS / "data.jsonl"), str(PHOTOS))
    settings = BuildSettings(source, str(tmp_path / "out"), samples_per_shard=7, workers=1)
    config = tmp_path / "shards.yaml"
    config.write_text(to_yaml(settings) + LAUNCH)

    work, record = submit(str(config), [], TASKS)
    assert work.counts
    assert (work.parts, work.owed) == (tuple(range(TASKS)), 11)
    assert len(record.jobs) == 3  # counting, the array, the end
    kill_parts(record, KILLED)
    wait("the end of all jobs", lambda: are_over(record))
    array, finishing = (queue.states(job) for job in record.jobs[1:])
    assert [each.state for each in array] == [
        "FAILED" if task in KILLED else "COMPLETED" for task in range(TASKS)
    ]
    assert finishing[0].state == "CANCELLED"  # there was nothing to sum up
    assert f"job {record.jobs[1]}: 6 tasks: 4 COMPLETED, 2 FAILED" in status(record.output)
    assert not (tmp_path / "out" / "index.json").exists()
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.tar")}

    work, record = submit(str(config), [], TASKS)
    assert not work.counts
    assert work.parts == KILLED
    assert work.owed == 4  # shards 1, 4, 7 and 10
    wait("the end of all jobs", lambda: are_over(record))
    assert [each.state for job in record.jobs for each in queue.states(job)] == ["COMPLETED"] * 3
    log = Path(record.log.replace("{task}", "0")).read_text(errors="replace")  # srun cuts lines
    assert "2 shards built, 0 kept" in log
    for name, time in before.items():
        assert (tmp_path / "out" / name).stat().st_mtime_ns == time
        assert (tmp_path / "out" / marker_name(name)).exists()

    work, record = submit(str(config), [], TASKS)
    assert work.is_done
    assert record is None

    build(load(BuildSettings, config, [f"output={tmp_path / 'alone'}"]))
    assert shards_of(tmp_path / "out") == shards_of(tmp_path / "alone")
