"""The 73 real photos through the whole path, by the commands that a user types."""

import json
import subprocess
import sys

import open_clip
import pytest
import torch
from PIL import Image

from hnpretrain.models import load
from tests.support.datasets import PHOTOS
from tests.support.training import TINY_MODEL, clean_environment, loss_lines


def hnpretrain(*arguments):
    words = [str(argument) for argument in arguments]
    done = subprocess.run(
        [sys.executable, "-m", "hnpretrain.cli", *words],
        capture_output=True,
        text=True,
        timeout=300,
        env=clean_environment(),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def close(a, b):
    # Not to the bit: where a tensor starts in memory decides how it is summed up.
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("photos")


@pytest.fixture(scope="module")
def shards(folder):
    hnpretrain(
        "shard",
        "build",
        "source.kind=jsonl",
        f"source.path={PHOTOS / 'data.jsonl'}",
        f"output={folder / 'shards'}",
        "samples_per_shard=25",
    )
    return folder / "shards"


@pytest.fixture(scope="module")
def run(folder, shards):
    recipe = folder / "photos.yaml"
    recipe.write_text(f"epochs: 1\nbatch_size: 16\nlog_every: 1\n{TINY_MODEL}")
    hnpretrain(
        "launch",
        "local",
        recipe,
        f"output={folder / 'run'}",
        f"data.shards={shards}",
        "data.negatives=3",
        "--nproc",
        2,
    )
    return folder / "run"


def test_build_and_verify(shards):
    assert "all is well" in hnpretrain("shard", "verify", shards)
    index = json.loads((shards / "index.json").read_text())
    assert index["samples"] == 73
    assert set(index["concepts"]) == {"object", "color", "size", "location"}


def test_training_used_the_negatives(run):
    lines = loss_lines(run)
    assert len(lines) == 4
    assert all(0 < line["negatives"] <= 48 for line in lines)


def test_evaluation_on_their_own_pairs(folder, run):
    data = PHOTOS / "data.jsonl"
    benchmark = f"sugarcrepe={data}"
    printed = hnpretrain("eval", run, "--benchmark", benchmark, "--json", folder / "eval.json")
    (result,) = json.loads((folder / "eval.json").read_text())["results"]
    pairs = sum(len(json.loads(line)["sugarcrepe"]) for line in data.read_text().splitlines())
    assert {s["name"]: s["count"] for s in result["scores"]}["acc"] == pairs
    assert 0 <= result["metrics"]["acc"] <= 1
    assert f"{100 * result['metrics']['acc']:.2f}" in printed


def test_export_reloads_in_open_clip_with_equal_embeddings(folder, run):
    hnpretrain("export", run, folder / "export")
    source = f"local-dir:{folder / 'export'}"
    model, preprocess = open_clip.create_model_from_pretrained(source)
    tokenizer = open_clip.get_tokenizer(source)
    trained = load(str(run))
    photo = Image.open(PHOTOS / "images" / "000000000790.jpg")
    with torch.no_grad():
        assert torch.equal(preprocess(photo), trained.preprocess_val(photo))
        pixels = preprocess(photo)[None]
        close(model.encode_image(pixels), trained.model.encode_image(pixels))
        tokens = tokenizer(["a family at a table with a cake"])
        assert torch.equal(tokens, trained.tokenizer(["a family at a table with a cake"]))
        close(model.encode_text(tokens), trained.model.encode_text(tokens))
    assert model.logit_scale.shape == ()
    assert model.logit_scale.item() == trained.model.logit_scale.item()
