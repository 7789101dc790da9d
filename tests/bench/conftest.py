"""A model that takes milliseconds, and real captions."""

import json
from pathlib import Path

import pytest

from tests.support.hugging_face import text_configs


@pytest.fixture
def tiny_config():
    image = {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16}
    text = {"vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
    return {"embed_dim": 16, "vision_cfg": image, "text_cfg": text}


@pytest.fixture
def tiny_model(tmp_path, tiny_config):
    """A file, for `--arch`."""
    file = tmp_path / "tiny.json"
    file.write_text(json.dumps(tiny_config))
    return str(file)


@pytest.fixture
def tiny_hugging_face_model(tmp_path, tiny_config):
    """Likewise, with a text tower that masks padding, and has dropout."""
    file = tmp_path / "hugging_face.json"
    text = text_configs(tmp_path / "hub")["bert"]
    file.write_text(json.dumps({**tiny_config, "custom_text": True, "text_cfg": text}))
    return str(file)


@pytest.fixture(scope="session")
def captions():
    return str(Path(__file__).parents[1] / "assets/coco_captions_val2017.json.gz")
