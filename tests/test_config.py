from dataclasses import dataclass, field
from pathlib import Path

import pytest

from hnpretrain import config
from hnpretrain.inpaint.settings import InpaintSettings
from hnpretrain.train.settings import TrainSettings
from launch import settings as launch_settings
from launch.settings import ArrayLaunch, TrainingLaunch
from shard_tools.settings import BuildSettings

CONFIGS = Path(__file__).parents[1] / "configs"


@dataclass
class Inner:
    rate: float = 0.5
    names: list[str] = field(default_factory=lambda: ["a"])


@dataclass
class Outer:
    epochs: int = 1
    inner: Inner = field(default_factory=Inner)
    free: dict[str, int] = field(default_factory=dict)
    folder: str = ""
    files: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.epochs < 1:
            raise ValueError(f"epochs={self.epochs} must be at least 1")


def test_overrides_beat_yaml_beats_defaults(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("epochs: 2\ninner: {rate: 0.25}\nfree: {any: 3}\n")
    loaded = config.load(Outer, path, ["inner.rate=1e-3", "inner.names=[x,y]"])
    assert loaded == Outer(epochs=2, inner=Inner(rate=1e-3, names=["x", "y"]), free={"any": 3})


def test_yaml_round_trip(tmp_path):
    settings = Outer(epochs=3, inner=Inner(rate=0.125), free={"k": 1})
    path = tmp_path / "c.yaml"
    path.write_text(config.to_yaml(settings))
    assert config.load(Outer, path) == settings


@pytest.mark.parametrize(
    "overrides, message",
    [
        (["epoch=2"], "unknown key epoch; did you mean 'epochs'"),
        (["inner.rat=2"], "unknown key inner.rat; did you mean 'rate'"),
        (["inner=3"], "inner must be a mapping"),
        (["epochs=soon"], "epochs: Value 'soon'"),
        (["epochs=0"], "epochs=0 must be at least 1"),
        (["epochs"], "write it as key=value"),
        (["=3"], "write it as key=value"),
    ],
)
def test_wrong_overrides_name_the_key(overrides, message):
    with pytest.raises(ValueError, match=message):
        config.load(Outer, None, overrides)


@pytest.mark.parametrize(
    "text", ["0123", "2024_01_02", "1e3", "no", "null", "dir #1", "{0..9}.tar", "a=b", "", "x: y"]
)
def test_texts_are_taken_as_they_stand(text, tmp_path):
    """YAML would read numbers, truth values, comments and mappings into the names of folders."""
    loaded = config.load(Outer, None, [f"folder={text}"])
    assert loaded.folder == text
    assert config.load(Outer, None, [f"files.a={text}"]).files == {"a": text}
    (tmp_path / "c.yaml").write_text(config.to_yaml(loaded))
    assert config.load(Outer, tmp_path / "c.yaml") == loaded


def test_quotes_around_a_text_are_no_part_of_it():
    assert config.load(Outer, None, ["folder='a b'"]).folder == "a b"
    assert config.load(Outer, None, ['folder=""']).folder == ""


def test_a_text_may_refer_to_other_settings(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("folder: runs/${epochs}\ninner: {rate: '${epochs}'}\n")
    loaded = config.load(Outer, path, ["epochs=3"])
    assert (loaded.folder, loaded.inner.rate) == ("runs/3", 3.0)
    assert config.load(Outer, path, ["folder=${epochs}/${inner.rate}"]).folder == "1/1.0"
    path.write_text("folder: ???\n")
    assert config.load(Outer, path, ["folder=x"]).folder == "x"


def test_what_yaml_makes_of_an_unquoted_text_is_refused(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("folder: 0123\n")
    with pytest.raises(ValueError, match="folder must be a text, got 83: put it in quotes"):
        config.load(Outer, path)


def test_changes_name_the_keys():
    before = Outer(epochs=1, free={"a": 1, "b": 2})
    after = Outer(epochs=2, inner=Inner(rate=0.1), free={"a": 1, "c": 3})
    assert config.changes(before, before) == {}
    assert config.changes(before, after) == {
        "epochs": (1, 2),
        "inner.rate": (0.5, 0.1),
        "free.b": (2, None),
        "free.c": (None, 3),
    }


def test_wrong_files(tmp_path):
    with pytest.raises(ValueError, match="is not a file"):
        config.load(Outer, tmp_path / "missing.yaml")
    path = tmp_path / "list.yaml"
    path.write_text("- 1\n- 2\n")
    with pytest.raises(ValueError, match="must be a mapping"):
        config.load(Outer, path)
    path.write_text("a: [1\n")
    with pytest.raises(ValueError, match=r"list\.yaml"):
        config.load(Outer, path)


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("vit-*.yaml")), ids=lambda path: path.stem)
def test_recipes_are_settings_of_a_training(path):
    settings = config.load(TrainSettings, path)
    assert settings.output == f"runs/{path.stem}"
    settings.loss.make(settings.data.negatives)
    ranks = launch_settings.read(TrainingLaunch, str(path), []).ranks
    assert settings.batch_size % ranks == 0


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("shards-*.yaml")), ids=lambda path: path.stem)
def test_recipes_are_settings_of_a_build(path):
    config.load(BuildSettings, path)
    launch_settings.read(ArrayLaunch, str(path), [])


def test_the_recipe_of_inpainting_is_settings(tmp_path):
    settings = config.load(InpaintSettings, CONFIGS / "inpaint.yaml", [f"output={tmp_path}"])
    assert settings.require_output() == str(tmp_path)


def test_urls_are_told_without_their_secrets():
    """Where they are keys too, and those that differ in nothing else stay apart."""
    url = "https://me:my@secret@store/shards"
    value = {
        "a": f"from {url}?X-Amz-Signature=my-secret to s3://me:secret@bucket: no such file",
        "mixture": {f"{url}?sig=1": 1.0, f"{url}?sig=2": 2.0},
    }
    clean = "https://store/shards"
    assert config.without_secrets(value) == {
        "a": f"from {clean} to s3://bucket: no such file",
        "mixture": {clean: 1.0, f"{clean} (another)": 2.0},
    }
    other = {"a": [1, None, "what?"], "b": {"c": "s3://bucket/a@b/{0..9}-??.tar"}}
    assert config.without_secrets(other) == other
