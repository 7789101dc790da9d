"""The end of a batch script, with a stand-in for scontrol."""

import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path("launch/requeue.sh").absolute()


class Job:
    """A job that ends again and again.

    Attributes:
        restarts: how often Slurm has started it again.
    """

    def __init__(self, folder):
        self.folder = folder
        self.restarts = 0
        (folder / "run/checkpoints").mkdir(parents=True)
        (folder / "bin").mkdir()
        scontrol = folder / "bin/scontrol"
        scontrol.write_text('#!/bin/sh\necho "$@" >>"$ASKED"\n')
        scontrol.chmod(0o755)

    def save(self, step):
        (self.folder / "run/checkpoints/latest").write_text(f"step_{step:08d}")

    def end(self, status, requeues=100, failures=3):
        """Whether it went back to the queue, and what the script printed."""
        asked = self.folder / "asked"
        asked.unlink(missing_ok=True)
        environment = {
            "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}",
            "ASKED": str(asked),
            "SLURM_JOB_ID": "7",
            "SLURM_RESTART_COUNT": str(self.restarts),
        }
        done = subprocess.run(
            ["bash", SCRIPT, str(status), self.folder / "run", self.folder, str(requeues),
             str(failures)],
            env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == status
        assert done.stderr == ""
        is_back = asked.exists()
        if is_back:
            assert asked.read_text() == "requeue 7\n"
            self.restarts += 1
        return is_back, done.stdout


@pytest.fixture
def job(tmp_path):
    return Job(tmp_path)


def test_done(job):
    job.save(10)
    assert job.end(0) == (False, "")


def test_asked_to_stop(job):
    job.save(10)
    assert job.end(75) == (
        True,
        "launch: it was asked to stop (status 75): back to the queue, requeue 1 of at most 100\n",
    )


@pytest.mark.parametrize("status", [138, 140, 143])
def test_asked_to_stop_while_it_was_starting(job, status):
    """Also before there is a checkpoint, but not for ever."""
    assert [job.end(status)[0] for _ in range(4)] == [True, True, True, False]
    told = job.end(status)[1]
    assert f"while it was starting (status {status}), 5 times in a row: not started again" in told


def test_cancelled(job):
    job.save(10)
    (job.folder / "cancelled").touch()
    assert job.end(75) == (
        False, "launch: cancelled; the same command goes on from step_00000010\n"
    )  # fmt: skip


def test_the_requeues_are_bounded(job):
    assert [job.end(75, requeues=2)[0] for _ in range(3)] == [True, True, False]
    assert "after 2 requeues: not started again" in job.end(75, requeues=2)[1]


def test_a_failure_before_the_first_checkpoint(job):
    is_back, told = job.end(1)
    assert not is_back
    assert "the run failed (status 1) before it had a checkpoint: not started again" in told


def test_failures_in_a_row_without_a_new_checkpoint(job):
    job.save(10)
    assert [job.end(137)[0] for _ in range(3)] == [True] * 3
    job.save(20)
    assert [job.end(1)[0] for _ in range(4)] == [True, True, True, False]
    is_back, told = job.end(1)
    assert not is_back
    assert "it failed (status 1) after step_00000020, 5 times in a row: not started again" in told


def test_slurm_refuses(job):
    job.save(10)
    (job.folder / "bin/scontrol").write_text("#!/bin/sh\nexit 1\n")
    assert job.end(75) == (
        False,
        "launch: it was asked to stop (status 75): back to the queue, requeue 1 of at most 100\n"
        "launch: scontrol requeue failed: start it again by hand\n",
    )
