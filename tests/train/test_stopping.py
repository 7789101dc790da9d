"""A run that is asked to stop saves at the step's edge, and says so to whoever started it."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
from fsspec.asyn import AsyncFileSystem
from fsspec.exceptions import FSTimeoutError

from hnpretrain.data import cache as cache_module
from hnpretrain.data.cache import ShardCache
from hnpretrain.data.mixture import read_mixture
from hnpretrain.data.plan import Run
from hnpretrain.data.streams import ShardSet
from hnpretrain.shards import storage
from hnpretrain.train import loop, stopping
from hnpretrain.train.edge import Wish
from hnpretrain.train.log import read_log
from hnpretrain.train.settings import TrainSettings
from tests.support.training import (
    clean_environment,
    end,
    lines_of,
    loss_lines,
    ranks_of,
    start,
    train_here,
    wait_for_lines,
    write_recipe,
)


@pytest.fixture
def recipe(tmp_path, shards):
    return write_recipe(tmp_path / "recipe.yaml", shards, batch_size=8, epochs=2)


@pytest.mark.parametrize("number", stopping.SIGNALS)
def test_a_signal_saves_at_the_edge_of_its_step(tmp_path, recipe, monkeypatch, number):
    """Here it comes while the third step is computed, and the fourth one tells it to all."""
    train_here(recipe, f"output={tmp_path}/alone")
    take = loop.train_step

    def signalled(run, *rest):
        if run.progress.global_step == 2:
            os.kill(os.getpid(), number)
        return take(run, *rest)

    before = signal.getsignal(number)
    with monkeypatch.context() as patch:
        patch.setattr(loop, "train_step", signalled)
        with pytest.raises(stopping.Stopped) as stopped:
            train_here(recipe, f"output={tmp_path}/run")
    assert stopped.value.code == 75
    assert signal.getsignal(number) == before
    assert (tmp_path / "run/checkpoints/latest").read_text() == "step_00000004"
    train_here(recipe, f"output={tmp_path}/run")
    assert loss_lines(tmp_path / "run") == loss_lines(tmp_path / "alone")


def test_a_signal_in_the_last_step_is_no_stop(tmp_path, recipe, monkeypatch):
    take = loop.train_step

    def signalled(run, batches, rate, _):
        return take(run, batches, rate, Wish(stop=run.progress.global_step == 9))

    monkeypatch.setattr(loop, "train_step", signalled)
    train_here(recipe, f"output={tmp_path}/run")
    assert len(loss_lines(tmp_path / "run")) == 10


def test_the_same_signal_again_ends_at_once():
    """But not one that comes with the first, which a scheduler sent to launcher and ranks alike.

    Nor another one: SIGUSR1 ahead and SIGTERM at the limit may meet a run that saves.
    """
    script = (
        "import os, signal, time\n"
        "from hnpretrain.train import stopping\n"
        "with stopping.StopRequest() as stop:\n"
        "    os.kill(os.getpid(), signal.SIGUSR2)\n"
        "    os.kill(os.getpid(), signal.SIGUSR2)\n"
        "    stopping._ONE_SIGNAL = 0.0\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    print(stop.signal.name, flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    time.sleep(60)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout == "SIGUSR2\n"
    assert done.returncode == -signal.SIGTERM


def test_what_has_saved_ends_with_its_own_status():
    """Launchers end the other ranks as soon as one has left."""
    script = (
        "import os, signal, sys\n"
        "from hnpretrain.train import stopping\n"
        "stopping.stay()\n"
        "for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):\n"
        "    os.kill(os.getpid(), number)\n"
        "raise stopping.Stopped\n"
    )
    done = subprocess.run([sys.executable, "-c", script], timeout=60, check=False)
    assert done.returncode == 75


def test_the_launcher_hands_it_on_and_tells_that_the_run_is_saved(tmp_path, recipe):
    """Two ranks; the signal comes to the launcher alone."""
    command = [sys.executable, "-m", "hnpretrain.cli", "launch", "local", str(recipe)]
    command += [f"output={tmp_path}/run", "epochs=2000", "--nproc", "2"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=clean_environment()
    )
    try:
        wait_for_lines(process, tmp_path / "run", 5)
        process.send_signal(signal.SIGUSR2)
        output, error = process.communicate(timeout=100)
    finally:
        end(process)
    assert process.returncode == 75, error
    assert error == ""
    step = read_log(tmp_path / "run", "step")[-1]["global_step"]
    assert f"stopped at step {step} and saved" in output
    assert (tmp_path / "run/checkpoints/latest").read_text() == f"step_{step:08d}"


def node(recipe, run, port, nodes=2):
    """Starts what a node of a cluster would run."""
    command = [sys.executable, "-m", "launch.torchrun", "--nproc_per_node=1", f"--nnodes={nodes}"]
    command += ["--rdzv_backend=c10d", f"--rdzv_endpoint=127.0.0.1:{port}", "--rdzv_id=7"]
    command += ["-m", "hnpretrain.train", str(recipe), f"output={run}", "epochs=2000"]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=clean_environment()
    )


@pytest.fixture
def port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_of_two_nodes_one_gets_the_signal(tmp_path, recipe, port):
    nodes = [node(recipe, tmp_path / "run", port) for _ in range(2)]
    try:
        wait_for_lines(nodes[0], tmp_path / "run", 5)
        nodes[1].send_signal(signal.SIGUSR1)
        told = [each.communicate(timeout=100) for each in nodes]
    finally:
        for each in nodes:
            end(each)
    assert [each.returncode for each in nodes] == [75, 75], told
    step = read_log(tmp_path / "run", "step")[-1]["global_step"]
    assert (tmp_path / "run/checkpoints/latest").read_text() == f"step_{step:08d}"


def test_a_node_that_waits_for_another_ends_on_a_signal(tmp_path, recipe, port):
    process = node(recipe, tmp_path / "run", port)
    try:
        deadline = time.monotonic() + 100
        while socket.socket().connect_ex(("127.0.0.1", port)):  # nobody listens yet
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.1)
        time.sleep(1)
        process.send_signal(signal.SIGTERM)
        _, error = process.communicate(timeout=60)
    finally:
        end(process)
    assert process.returncode == 128 + signal.SIGTERM
    assert error == "stopped: the same command goes on from the last checkpoint\n"


@pytest.mark.parametrize("cached", [False, True])
def test_ranks_wait_longer_than_for_a_shard_that_hangs(tmp_path, shards, monkeypatch, cached):
    """Each request of a block is answered at the last try, and as late as it may be."""
    mixture = read_mixture({str(shards): 1.0})
    clock = 0.0
    tries = Counter()

    def wait(seconds):
        nonlocal clock
        clock += seconds

    class Hanging(AsyncFileSystem):
        def _answer(self, asked, seconds, answer):
            wait(seconds)
            tries[asked] += 1
            if tries[asked] % storage._ATTEMPTS:
                raise FSTimeoutError
            return answer

        def info(self, path, timeout):
            size = Path(path).stat().st_size
            return self._answer(path, timeout, {"type": "file", "size": size})

        def cat_file(self, path, start, end, timeout):
            del timeout  # of the few bytes that these are; a large block has full requests
            seconds = storage._seconds_for(storage._REQUEST_BYTES)
            return self._answer((path, start), seconds, Path(path).read_bytes()[start:end])

    monkeypatch.setattr(storage, "filesystem", lambda path: (Hanging(), path))
    faked = SimpleNamespace(monotonic=lambda: clock, sleep=wait, time=time.time)
    monkeypatch.setattr(storage, "time", faked)
    monkeypatch.setattr(cache_module, "time", faked)
    monkeypatch.setattr(cache_module, "_CHUNK_BYTES", 10_000)  # else the shard is one
    monkeypatch.setattr(storage, "random", SimpleNamespace(random=lambda: 1.0))
    cache = ShardCache(str(tmp_path / "cache"), 1e9) if cached else None
    if cached:  # another process is at it for as long as one waits for that
        wait(cache_module._PATIENCE_SECONDS)
    samples = ShardSet(mixture, cache).read(Run(shard=0, start=0, stop=17, passage=0))
    assert len(samples) == 17
    assert len(tries) == 4  # the marker's size and bytes, the shard's likewise
    if cached:
        assert tries[str(shards / "000000.tar"), 0] == 2 * storage._ATTEMPTS
        assert "bytes came within 5 minutes" in cache.notes()[0]
    one_more = storage._ATTEMPTS * storage._seconds_for(storage._REQUEST_BYTES)
    assert clock + one_more < 60 * TrainSettings().collective_timeout


def test_a_rank_that_hangs_is_noticed(tmp_path, recipe):
    """It is stopped, so that its connections stay open."""
    process = start(recipe, f"output={tmp_path}/run", "epochs=2000", "collective_timeout=0.05")
    try:
        wait_for_lines(process, tmp_path / "run", 5)
        os.kill(ranks_of(process)[1], signal.SIGSTOP)
        stopped = time.monotonic()
        told = ""
        for line in process.stdout:
            if line.startswith("[rank 0] error: "):
                told = line
                break
    finally:
        end(process)
    assert "has not answered within the time-out (collective_timeout, in minutes)" in told
    assert 2 < time.monotonic() - stopped < 60
    assert lines_of(tmp_path / "run") >= 5
