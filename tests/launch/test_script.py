"""The batch script, without Slurm."""

import re
from pathlib import Path

import pytest

from launch.training import dry_run, submit
from tests.support.training import write_recipe

GOLDEN = Path(__file__).with_name("eight_nodes.sh")
LAUNCH = """
  nodes: 8
  gpus_per_node: 8
  cpus_per_rank: 12
  partition: gpu
  account: vision
  qos: high
  constraint: h100
  mem_gb: 1000
  sbatch: {exclusive: true, nice: 100}
  srun: ['--container-image=/images/torch.sqsh', '--container-mounts=/shared']
  prelude: ['module load cuda/12.8']
  environment: {NCCL_SOCKET_IFNAME: ib0, WANDB_API_KEY: my-secret}
"""


@pytest.fixture
def recipe(tmp_path, shards):
    return write_recipe(tmp_path / "recipe.yaml", shards, batch_size=64, launch=LAUNCH)


def test_eight_nodes_of_eight_gpus(recipe, tmp_path, monkeypatch):
    """As the file beside this one has it; nothing is written, no Slurm is needed."""
    monkeypatch.setenv("PATH", "")
    script = dry_run(str(recipe), ["output=/shared/runs/vit-b-16", "launch.python=python"])
    assert script == GOLDEN.read_text()
    assert list(tmp_path.iterdir()) == [recipe]


def test_no_slurm_on_this_machine(recipe, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ValueError, match=r"^sbatch is not on this machine: submit from"):
        submit(str(recipe), [f"output={tmp_path / 'run'}"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["launch.nodes=3"], "the global batch_size=64 must be a multiple of the 24 ranks"),
        (["launch.nodes=2", "data.streams=8"], "16 ranks must divide streams=8"),
    ],
)
def test_ranks_that_do_not_fit_the_plan(recipe, tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        dry_run(str(recipe), [f"output={tmp_path / 'run'}", *settings])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("launch.sbatch={time: 3}", "launch.sbatch.time: set launch.minutes"),
        ("launch.sbatch={job_name: x}", "launch.sbatch.job_name: the launcher sets it"),
        ("launch.sbatch={p: gpu}", "launch.sbatch.p='gpu': write a long option"),
        ("launch.environment={a-b: x}", "launch.environment: 'a-b' is no name of a variable"),
        ("launch.cluster=local", "launch.prelude is for slurm"),
        ("launch.minutes=3", "launch.signal_seconds=180 must be less than"),
        ("launch.task=gpu", "launch.task='gpu' is not one of rank, node"),
        ("launch.nods=3", "unknown key launch.nods; did you mean 'nodes'?"),
    ],
)
def test_wrong_settings(recipe, tmp_path, override, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        dry_run(str(recipe), [f"output={tmp_path / 'run'}", override])


def test_options_of_sbatch(recipe, tmp_path):
    options = (
        "launch.sbatch={nodelist: [a, b], exclusive: false, comment: null, oversubscribe: true}"
    )
    script = dry_run(str(recipe), [f"output={tmp_path / 'run'}", options])
    assert "#SBATCH --nodelist=a,b\n" in script
    assert "#SBATCH --oversubscribe\n" in script
    assert "--exclusive" not in script
    assert "--comment" not in script
