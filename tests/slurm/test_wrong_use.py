"""What cannot work is told in one line, before anything is submitted where that can be known."""

import re
import subprocess
from pathlib import Path

import pytest

from launch import queue
from launch.follow import status
from launch.training import submit
from tests.launch.test_script import GOLDEN
from tests.slurm.jobs import state, wait_for_state
from tests.support.training import write_recipe

LAUNCH = "{nodes: 2, gpus_per_node: 0, minutes: 10}"


@pytest.fixture
def recipe(tmp_path, shards):
    return write_recipe(tmp_path / "recipe.yaml", shards, batch_size=8, launch=LAUNCH)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("launch.partition=gpu,urgnt", "launch.partition='urgnt' is not one of this cluster's: "
         "gpu, urgent; did you mean 'urgent'?"),
        ("launch.constraint=fast", "Slurm refuses the job: Batch job submission failed: Invalid "
         "feature specification"),
        ("launch.ranks_per_node=3", "the global batch_size=8 must be a multiple of the 6 ranks"),
    ],
)  # fmt: skip
def test_wrong_settings(cluster, recipe, tmp_path, override, message):
    del cluster
    run = tmp_path / "refused"
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        submit(str(recipe), [f"output={run}", override])
    assert "\n" not in str(error.value)
    assert not list(run.glob("launch/*"))
    assert not queue.run("squeue", "--noheader", "--name=hnpretrain-refused").strip()


def test_a_folder_that_one_node_does_not_see(cluster, recipe):
    record = submit(str(recipe), [f"output={cluster.private / 'run'}"])
    wait_for_state(record, "FAILED")
    log = Path(record.log).read_text()
    place = Path(record.log).parent
    assert log.startswith(f"error: not seen on n2: {place} n2: {place.parents[1]}: set output")
    assert "hnpretrain.train" not in log
    assert "last checkpoint: none yet" in status(record.output)


def test_a_run_is_submitted_once(cluster, recipe, tmp_path):
    del cluster
    held = [f"output={tmp_path / 'run'}", "launch.sbatch={hold: true}"]
    record = submit(str(recipe), held)
    assert state(record) == "PENDING"
    with pytest.raises(
        ValueError, match=rf"the job {record.jobs[0]} of .* is not over: .*launch cancel"
    ):
        submit(str(recipe), held)
    queue.run("scancel", *record.jobs)


def test_the_script_of_eight_nodes_is_one_that_slurm_takes(cluster, tmp_path):
    """The golden one, scaled down to the two nodes of the cluster, whose GPUs Slurm but counts."""
    del cluster
    script = tmp_path / "script.sh"
    script.write_text(GOLDEN.read_text().replace("#SBATCH --nodes=8", "#SBATCH --nodes=2"))
    done = subprocess.run(
        ["sbatch", "--test-only", str(script)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "on nodes n[1-2] in partition gpu" in done.stderr


def test_a_run_whose_folder_alone_is_not_shared(cluster, recipe, tmp_path):
    record = submit(
        str(recipe), [f"output={cluster.private / 'other'}", f"launch.folder={tmp_path / 'jobs'}"]
    )
    wait_for_state(record, "FAILED")
    told = f"error: not seen on n2: {cluster.private / 'other'}: set output, or launch.folder, to"
    assert Path(record.log).read_text().startswith(told)
    with pytest.raises(ValueError, match="nothing was launched for"):
        status("another", str(tmp_path / "jobs"))
