"""`launch inpaint` on a real Slurm: an array of which a task is killed, and finished later."""

import os
import shutil
import signal
from pathlib import Path

import psutil

from launch import queue
from launch.inpaint import submit
from tests.slurm.jobs import wait
from tests.support.programs import hnpretrain
from tests.support.shards import PHOTOS

TASKS = 3
CONFIG = f"""
source: {{kind: jsonl, path: {PHOTOS}/data.jsonl, images: {PHOTOS}}}
propose: {{most: 12}}
generate: {{candidates: 2}}
launch: {{cpus: 1, minutes: 10}}
"""


def pictures_of(folder):
    return {
        path.relative_to(folder): path.read_bytes()
        for path in (folder / "candidates").rglob("*")
        if path.is_file()
    }


def are_over(record):
    # Accounting may hear of a quick task before it knows the others.
    states = queue.states(record.jobs[0])
    return len(states) == TASKS and not any(each.is_active for each in states)


def kill_part(record, part):
    config = str(Path(record.log).parent / "config.yaml")

    def killed():
        for process in psutil.process_iter(["cmdline"]):
            if {config, f"generate.part={part}"} <= set(process.info["cmdline"] or []):
                os.kill(process.pid, signal.SIGKILL)
                return True
        return False

    wait(f"the process of part {part}", killed)


def test_an_array_makes_what_one_machine_makes(cluster, tmp_path):
    del cluster
    config, one, many = tmp_path / "inpaint.yaml", tmp_path / "one", tmp_path / "many"
    config.write_text(CONFIG)
    hnpretrain("inpaint", "propose", config, f"output={one}")
    shutil.copytree(one, many)
    hnpretrain("inpaint", "generate", config, f"output={one}")

    record = submit(str(config), [f"output={many}"], TASKS)
    kill_part(record, 1)
    wait("the end of the array", lambda: are_over(record))
    states = [each.state for each in queue.states(record.jobs[0])]
    assert states == ["COMPLETED", "FAILED", "COMPLETED"]
    assert len(pictures_of(many)) < len(pictures_of(one))

    record = submit(str(config), [f"output={many}"], TASKS)
    wait("the end of the array", lambda: are_over(record))
    assert [each.state for each in queue.states(record.jobs[0])] == ["COMPLETED"] * TASKS
    assert pictures_of(many) == pictures_of(one)
