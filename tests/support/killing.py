"""Kills a build with SIGKILL at random moments and starts it again, until its shards are done."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from hnpretrain.shards import storage

# Who is killed: all processes of the job at once, one worker, or the job without its workers.
_VICTIMS = ("all", "all", "worker", "job")
# The share of kills that come before the job's first shard; the others come with one of its next
# shards, and some milliseconds more. Counted in shards, since a busy machine keeps no time.
_EARLY = 0.4
_SHARDS = 24
_SECONDS = 0.1


def files_of(folder: str) -> dict[str, bytes]:
    """Name to bytes of all files of a folder or URL, hidden ones too."""
    names = storage.list_files(folder, "")
    return {name: storage.read_bytes(storage.join(folder, name)) for name in names}


class Killing:
    """One series of kills.

    Args:
        arguments: of `hnpretrain`, without the output.
        output: folder or URL of the shards; emptied whenever they are done.
        expected: what an uninterrupted build leaves there.
        seed: of victims and moments.

    Attributes:
        killed: counts by victim.
        finished: how often the shards were done, and as expected.
        unfinished: counts of shards that were there when a kill came.
    """

    def __init__(
        self, arguments: Sequence[str], output: str, expected: Mapping[str, bytes], seed: int
    ) -> None:
        self.killed: Counter[str] = Counter()
        self.finished = 0
        self.unfinished: list[int] = []
        self._command = [sys.executable, "-m", "hnpretrain.cli", *arguments, f"output={output}"]
        self._output = output
        self._expected = expected
        self._random = random.Random(seed)
        self._seconds_to_first_shard = 0.0
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115

    def run(self, kills: int) -> None:
        """Kills this many times, then lets the job end."""
        while self.killed.total() < kills:
            early = self._seconds_to_first_shard and self._random.random() < _EARLY
            with self._job() as job:
                if early:
                    self._wait(job, self._random.uniform(0, self._seconds_to_first_shard))
                else:
                    self._wait_for_shards(job, self._random.randint(1, _SHARDS))
                    self._wait(job, self._random.uniform(0, _SECONDS))
                if job.poll() is None:
                    self._kill(job, self._random.choice(_VICTIMS))
                else:
                    self._check_end(job)
        with self._job() as job:
            job.wait(timeout=300)
            self._check_end(job)

    def _wait(self, job: subprocess.Popen[bytes], seconds: float) -> None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            job.wait(seconds)

    def _wait_for_shards(self, job: subprocess.Popen[bytes], count: int) -> None:
        """Waits until the job has finished so many more shards, or has ended."""
        start, before = time.monotonic(), self._markers()
        while job.poll() is None and (more := self._markers() - before) < count:
            if more and not self._seconds_to_first_shard:
                self._seconds_to_first_shard = time.monotonic() - start
            time.sleep(0.005)

    @contextlib.contextmanager
    def _job(self) -> Iterator[subprocess.Popen[bytes]]:
        """A started job, in a process group of its own, which is gone afterwards."""
        self._errors.seek(0)
        self._errors.truncate()
        job = subprocess.Popen(
            self._command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=self._errors
        )
        try:
            yield job
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(job.pid, signal.SIGKILL)
            job.wait()

    def _error(self) -> str:
        """What the latest job said."""
        self._errors.seek(0)
        return self._errors.read().decode()

    def _kill(self, job: subprocess.Popen[bytes], victim: str) -> None:
        workers = worker_ids(job.pid)
        if victim == "worker" and workers:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._random.choice(workers), signal.SIGKILL)
            # The job ends by itself, unless it had no more need of the worker.
            if job.wait(timeout=60) == 0:
                self._check_end(job)
            else:
                assert "error: a worker process died" in self._error()
        elif victim == "job":
            job.kill()
            job.wait()
            _wait_until(lambda: not any(Path(f"/proc/{worker}").exists() for worker in workers))
        else:
            victim = "all"
            os.killpg(job.pid, signal.SIGKILL)
            job.wait()
        self.killed[victim] += 1
        self.unfinished.append(self._markers())

    def _markers(self) -> int:
        try:
            return len(storage.list_files(self._output, ".marker.json"))
        except FileNotFoundError:
            return 0

    def _check_end(self, job: subprocess.Popen[bytes]) -> None:
        assert job.returncode == 0, self._error()
        found = files_of(self._output)
        assert found.keys() == self._expected.keys()
        differing = [name for name, data in found.items() if data != self._expected[name]]
        assert not differing, differing
        self.finished += 1
        for name in found:
            storage.remove(storage.join(self._output, name))


def worker_ids(parent: int) -> list[int]:
    """Process ids of a job's workers."""
    workers = []
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has ended since
        for child in Path(f"/proc/{parent}/task/{parent}/children").read_text().split():
            if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes():
                workers.append(int(child))
    return workers


def _wait_until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline, "workers outlive their job"
        time.sleep(0.01)
