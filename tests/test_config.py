from dataclasses import dataclass, field

import pytest

from hnpretrain import config


@dataclass
class Inner:
    rate: float = 0.5
    names: list[str] = field(default_factory=lambda: ["a"])


@dataclass
class Outer:
    epochs: int = 1
    inner: Inner = field(default_factory=Inner)
    free: dict[str, int] = field(default_factory=dict)

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
