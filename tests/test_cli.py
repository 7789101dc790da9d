"""The command line as a program: help, exit status, one clear line for an error."""

import os
import signal
import subprocess
import sys
import time

import pytest

from hnpretrain import cli
from tests.support.training import clean_environment, write_recipe

COMMANDS = ["demo", "world", "shard", "plan", "train", "launch", "eval", "export", "bench"]
COMMANDS += ["checkpoint", "inpaint"]


def run(*arguments, module="hnpretrain.cli"):
    command = [sys.executable, "-m", module, *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=120, env=clean_environment()
    )


def test_help_names_every_command():
    done = run("--help")
    assert done.returncode == 0
    assert all(f" {command} " in done.stdout for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_has_help(command):
    done = run(command, "--help")
    assert done.returncode == 0
    assert "Usage:" in done.stdout


@pytest.mark.parametrize("arguments", [["trian"], ["train"], ["eval", "x"], ["export", "a"]])
def test_wrong_use_is_status_2(arguments):
    done = run(*arguments)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["train", "nowhere.yaml"], "error: config 'nowhere.yaml' is not a file"),
        (["eval", "nowhere", "--benchmark", "sugercrepe=x"], "did you mean 'sugarcrepe'"),
        (["export", "/nowhere", "/tmp/none"], "error: '/nowhere' is neither a folder"),
        (
            ["checkpoint", "convert", "/nowhere"],
            "/nowhere is neither a checkpoint nor a run",
        ),
        (["shard", "verify", "/nowhere"], "error: "),
        (["launch", "local", "x.yaml", "--nproc", "0"], "error: --nproc=0 must be at least 1"),
        (["launch", "local", "x.yaml", "--nproc", "2"], "error: config 'x.yaml' is not a file"),
        (["launch", "status", "runs/x"], "error: nothing was launched for runs/x: "),
        (
            ["launch", "logs", "s3://me:pw@b/x"],
            "error: s3://b/x is a URL: set launch.folder (--folder",
        ),
    ],
)
def test_failure_is_status_1_and_one_line(arguments, message):
    done = run(*arguments)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert message in line


def test_an_error_tells_no_password():
    done = run("shard", "stats", "foo://me:my-secret@store/shards")
    assert done.returncode == 1
    assert "'foo://store/shards/index.json': Protocol not known" in done.stderr
    assert "my-secret" not in done.stderr


def test_a_failure_of_all_ranks_is_one_line(tmp_path):
    """Neither one a rank, nor torchrun's table."""
    recipe = write_recipe(tmp_path / "recipe.yaml", tmp_path / "nowhere")
    done = run("launch", "local", str(recipe), "--nproc", "2")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"[rank 0] error: {tmp_path}/nowhere/index.json does not exist")


@pytest.mark.parametrize("where", ["first", "on the way", "last"])
def test_a_rank_that_has_lost_another_leaves_it_to_that_to_tell(tmp_path, where):
    """Whether the launcher ends it before its own error, while that is on its way, or after it."""
    script = tmp_path / "lost.py"
    script.write_text(f"""
import os, signal, threading
from hnpretrain.cli import run_command
from hnpretrain.train.stopping import StopRequest

def end():
    os.kill(os.getpid(), signal.SIGTERM)

def command():
    with StopRequest():
        if {where!r} == "first":
            end()
        try:
            raise ConnectionError("another rank is gone")
        finally:
            if {where!r} == "on the way":
                end()
            if {where!r} == "last":
                threading.Timer(2, end).start()

run_command(command)
""")
    group = {"RANK": "0", "WORLD_SIZE": "2"}
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=100,
        env=clean_environment() | group, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (1, "")
    assert time.monotonic() - started < cli._OTHER_RANKS_WAIT


def test_a_killed_rank_is_told_in_one_line(tmp_path):
    script = tmp_path / "killed.py"
    script.write_text("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n")
    done = run("--standalone", "--nproc_per_node=1", str(script), module="launch.torchrun")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: rank 0 was ended by SIGKILL")


def test_torchrun_may_not_restart_what_was_asked_to_stop():
    done = run("--standalone", "--max_restarts=3", "nothing.py", module="launch.torchrun")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: --max_restarts=3 would start a run again that was asked to stop")


def test_ranks_share_the_cores(tmp_path):
    script = tmp_path / "threads.py"
    # In one write each: two ranks share the pipe.
    script.write_text("import os\nos.write(1, f\"{os.environ['OMP_NUM_THREADS']}\\n\".encode())\n")
    cores = len(os.sched_getaffinity(0))
    command = [sys.executable, "-m", "launch.torchrun", "--standalone"]
    environment = clean_environment()
    for told, expected in (({}, cores // 2 or 1), ({"OMP_NUM_THREADS": "7"}, 7)):
        environment.pop("OMP_NUM_THREADS", None)
        done = subprocess.run(
            [*command, "--nproc_per_node=2", str(script)],
            capture_output=True, text=True, timeout=100, env=environment | told, check=True,
        )  # fmt: skip
        assert done.stdout.split() == [str(expected)] * 2


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_launch_is_one_line(tmp_path, stop):
    script = tmp_path / "endless.py"
    ready = tmp_path / "ready"
    script.write_text(
        "import pathlib, signal, time\n"
        "signal.signal(signal.SIGINT, signal.SIG_DFL)\n"
        f"pathlib.Path({str(ready)!r}).touch()\n"
        "time.sleep(600)\n"
    )
    command = [sys.executable, "-m", "launch.torchrun", "--standalone", str(script)]
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env=clean_environment(),
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    while not ready.exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(stop)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 128 + stop
    assert error == "stopped: the same command goes on from the last checkpoint\n"


def test_training_as_a_module():
    done = run("--help", module="hnpretrain.train")
    assert done.returncode == 0
    done = run("nowhere.yaml", module="hnpretrain.train")
    assert done.returncode == 1
    assert done.stderr == "error: config 'nowhere.yaml' is not a file\n"
