"""The command and a real (random, tiny) open_clip model on the real photos."""

import json
import subprocess
import sys

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from typer.testing import CliRunner

from hnpretrain.eval import benchmarks
from hnpretrain.eval.benchmarks.base import Benchmark
from hnpretrain.eval.commands import app
from hnpretrain.eval.encode import Encoder
from hnpretrain.models import LoadedModel, ModelSettings, build
from hnpretrain.models.store import WEIGHTS_NAME, write_config

TINY = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "patch_size": 16, "width": 32, "layers": 1, "head_width": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}


@pytest.fixture(scope="module")
def tiny() -> LoadedModel:
    torch.manual_seed(0)
    return build(ModelSettings(config=TINY))


@pytest.fixture(scope="module")
def export(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("export")
    tensors = {name: tensor.contiguous() for name, tensor in tiny.model.state_dict().items()}
    save_file(tensors, folder / WEIGHTS_NAME)
    write_config(tiny, folder)
    return folder


@pytest.fixture
def photos(assets):
    return assets / "coco_ccby" / "data.jsonl"


def test_a_real_model_on_the_real_photos(tiny, photos):
    suite: list[Benchmark] = [benchmarks.load(name, photos) for name in ("sugarcrepe", "retrieval")]
    encoder = Encoder(tiny.model, tiny.preprocess_val, tiny.tokenizer, batch_size=16)
    sugarcrepe, retrieval = benchmarks.run(suite, encoder)
    assert sugarcrepe["acc"].count == 134
    assert [sugarcrepe[name].count for name in ("add", "replace", "swap")] == [52, 72, 10]
    lines = [json.loads(line) for line in photos.read_text().splitlines()]
    assert retrieval["text_retrieval_recall@1"].count == len(lines) == 73
    texts = sum(len(line["captions"]) for line in lines)
    assert retrieval["image_retrieval_recall@1"].count == texts
    for result in (sugarcrepe, retrieval):
        for score in result.scores:
            assert 0 <= score.accuracy.value <= 1
            assert 0 <= score.accuracy.standard_error <= 0.5
    # A model with random weights knows nothing.
    assert abs(sugarcrepe["acc"].value - 0.5) < 4 * (0.25 / 134) ** 0.5
    ways = [retrieval[f"image_retrieval_recall@{k}"].value for k in (1, 5, 10)]
    assert ways == sorted(ways)


def test_the_photos_scores_pair_by_pair(tiny, photos):
    """Each decision agrees with open_clip used plainly, one image and two captions at a time."""
    suite = benchmarks.load("sugarcrepe", photos)
    right = 0
    with torch.no_grad():
        for pair in suite.pairs:
            pixels = tiny.preprocess_val(Image.open(pair.image))[None]
            image = tiny.model.encode_image(pixels, normalize=True)
            tokens = tiny.tokenizer([pair.caption, pair.negative])
            positive, negative = (image @ tiny.model.encode_text(tokens, normalize=True).T)[0]
            right += bool(positive > negative)
    encoder = Encoder(tiny.model, tiny.preprocess_val, tiny.tokenizer)
    assert suite.run(encoder)["acc"].value == pytest.approx(right / len(suite.pairs))


def test_the_command_writes_table_and_json(export, photos, tmp_path):
    out = tmp_path / "out.json"
    request = ["--benchmark", f"sugarcrepe={photos}", "--benchmark", f"retrieval={photos}"]
    done = CliRunner().invoke(
        app, [str(export), *request, "--device", "cpu", "--json", str(out)], catch_exceptions=False
    )
    assert done.exit_code == 0
    lines = done.stdout.splitlines()
    assert any(line.startswith("sugarcrepe, ") for line in lines)
    assert any(line.startswith("macro ") and "mean of the 7 categories" in line for line in lines)
    assert any(line.startswith("text_retrieval_recall@10 ") for line in lines)
    value = json.loads(out.read_text())
    assert [result["dataset"] for result in value["results"]] == ["sugarcrepe", "retrieval/data"]
    assert value["results"][0]["model"] == str(export)
    assert value["results"][0]["scores"][-2]["count"] == 134


def test_the_json_is_there_even_if_the_table_cannot_be_shown(export, photos, tmp_path, monkeypatch):
    def fail(*_: object) -> None:
        raise BrokenPipeError

    monkeypatch.setattr("hnpretrain.eval.report.print_result", fail)
    out = tmp_path / "out.json"
    request = ["--benchmark", f"sugarcrepe={photos}", "--device", "cpu", "--json", str(out)]
    assert CliRunner().invoke(app, [str(export), *request]).exit_code != 0
    assert json.loads(out.read_text())["results"]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--benchmark", "sugarcrepe"], "write NAME=DATA"),
        (["--benchmark", "sugarcrepe="], "write NAME=DATA"),
        (["--benchmark", "retreival=x.json"], "did you mean 'retrieval'"),
        (["--benchmark", "retrieval=PHOTOS", "--device", "gpu"], "--device='gpu' is not one of"),
        (["--benchmark", "retrieval=PHOTOS", "--json", "no/such/o.json"], "is not a folder"),
        (["--benchmark", "retrieval=PHOTOS", "--json", "."], "is a folder; name a file"),
        (["--benchmark", "retrieval=PHOTOS,no/such"], "image folder 'no/such'"),
    ],
)
def test_wrong_requests_fail_before_the_model_is_loaded(photos, arguments, message):
    arguments = [argument.replace("PHOTOS", str(photos)) for argument in arguments]
    done = CliRunner().invoke(app, ["no-such-model", *arguments])
    assert isinstance(done.exception, ValueError)
    assert message in str(done.exception)


def test_asking_for_cuda_without_one_is_an_error(photos, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    arguments = ["no-such-model", "--benchmark", f"retrieval={photos}", "--device", "cuda"]
    done = CliRunner().invoke(app, arguments)
    assert isinstance(done.exception, ValueError)
    assert "no CUDA device" in str(done.exception)


def test_no_benchmark_is_wrong_use():
    done = CliRunner().invoke(app, ["no-such-model"])
    assert done.exit_code == 2
    assert "--benchmark" in done.output


def test_the_command_module_loads_no_torch():
    code = "import sys, hnpretrain.eval.commands; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
