"""A job runs the code and the settings as they were when it was submitted."""

import stat
import subprocess
import sys

from hnpretrain.config import load
from hnpretrain.train.settings import TrainSettings
from launch import executor, snapshot
from launch.settings import TrainingLaunch
from tests.support.training import clean_environment

SECRET = "s3://key:secret@bucket/shards"


def test_the_copy_goes_before_the_folder_that_the_job_starts_in(tmp_path):
    """Where others edit the code meanwhile."""
    snapshot.write(tmp_path / "job", TrainSettings())
    assert not list((tmp_path / "job").rglob("__pycache__"))
    edited = tmp_path / "edited"
    for package in ("hnpretrain", "launch", "shard_tools"):
        (edited / package).mkdir(parents=True)
        (edited / package / "__init__.py").write_text("raise SystemExit('edited')\n")
    script = "import hnpretrain.cli, launch, shard_tools; print(hnpretrain.__file__)"
    exports = executor._exports(TrainingLaunch(), tmp_path / "job")
    command = "; ".join([*exports, f'exec "{sys.executable}" -c "{script}"'])
    done = subprocess.run(
        ["bash", "-c", command], cwd=edited, env=clean_environment(), capture_output=True,
        text=True, check=True,
    )  # fmt: skip
    assert done.stdout == f"{tmp_path}/job/code/hnpretrain/__init__.py\n"


def test_the_settings_are_whole_and_for_the_user_alone(tmp_path):
    settings = load(TrainSettings, None, [f"data.shards={SECRET}", "batch_size=64"])
    snapshot.write(tmp_path, settings)
    config = tmp_path / snapshot.CONFIG
    assert load(TrainSettings, config) == settings
    assert stat.S_IMODE(config.stat().st_mode) == 0o600


def test_data_of_the_packages_is_there(tmp_path):
    """Without it shard jobs would fail on the nodes."""
    snapshot.write(tmp_path, TrainSettings())
    assert (tmp_path / "code/launch/requeue.sh").is_file()
    assert (tmp_path / "code/shard_tools/lexicons/color.yaml").is_file()
