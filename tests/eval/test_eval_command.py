"""The command and a real (random, tiny) open_clip model on the real photos."""

import json
import shutil
import subprocess
import sys

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from hnpretrain.eval import benchmarks
from hnpretrain.eval.benchmarks.sugarcrepe import CATEGORIES
from hnpretrain.eval.commands import app
from hnpretrain.eval.encode import Encoder
from hnpretrain.eval.scorers import Cosine
from hnpretrain.models import LoadedModel
from tests.support.models import tiny_model, write_export
from tests.support.training import clean_environment


@pytest.fixture(scope="module")
def tiny() -> LoadedModel:
    return tiny_model()


@pytest.fixture(scope="module")
def export(tiny, tmp_path_factory):
    return write_export(tiny, tmp_path_factory.mktemp("export"))


@pytest.fixture
def photos(assets):
    return assets / "coco_ccby" / "data.jsonl"


def test_a_real_model_on_the_real_photos(tiny, photos):
    encoder = Encoder(tiny.model, tiny.preprocess_val, tiny.tokenizer, batch_size=16)
    sugarcrepe, retrieval = (
        benchmarks.load(name, photos).run(encoder, Cosine()) for name in ("sugarcrepe", "retrieval")
    )
    assert sugarcrepe["acc"].count == 134
    sizes = [sugarcrepe[f"acc/{name}"].count for name in ("add", "replace", "swap")]
    assert sizes == [52, 72, 10]
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
    """Each decision is that of the official evaluation's rule, with open_clip used plainly: one
    image and two captions at a time, right if the first one's similarity is above the other's.
    """
    suite = benchmarks.load("sugarcrepe", photos)
    right = []
    with torch.no_grad():
        for item in suite.items:
            pixels = tiny.preprocess_val(Image.open(item.images[0].path))[None]
            image = tiny.model.encode_image(pixels, normalize=True)
            tokens = tiny.tokenizer(list(item.captions))
            positive, negative = (image @ tiny.model.encode_text(tokens, normalize=True).T)[0]
            right.append(bool(positive > negative))
    encoder = Encoder(tiny.model, tiny.preprocess_val, tiny.tokenizer)
    result = suite.run(encoder, Cosine())
    assert (result.outcomes["acc"].margins[:, 0] > 0).tolist() == right
    assert {item.groups["category"] for item in suite.items} == set(CATEGORIES)
    for category in CATEGORIES:
        own = [
            answer
            for item, answer in zip(suite.items, right, strict=True)
            if item.groups["category"] == category
        ]
        assert result[f"acc/{category}"].value == pytest.approx(sum(own) / len(own))


def test_the_command_writes_table_and_json(export, photos, tmp_path):
    out = tmp_path / "out.json"
    request = ["--benchmark", f"sugarcrepe={photos}", "--benchmark", f"retrieval={photos}"]
    done = CliRunner().invoke(
        app, [str(export), *request, "--device", "cpu", "--json", str(out)], catch_exceptions=False
    )
    assert done.exit_code == 0
    lines = done.stdout.splitlines()
    assert any(line.startswith("sugarcrepe, ") for line in lines)
    macro = [line for line in lines if line.startswith("acc/category-macro ")]
    assert "mean of 7 groups" in macro[0]
    assert any(line.startswith("text_retrieval_recall@10 ") for line in lines)
    value = json.loads(out.read_text())
    assert [result["dataset"] for result in value["results"]] == ["sugarcrepe", "retrieval/data"]
    assert value["results"][0]["model"] == str(export)
    assert value["results"][0]["scores"][0]["count"] == 134


def test_missing_and_broken_images_are_named_and_the_score_is_withheld(export, photos, tmp_path):
    """The other benchmark is scored; with --partial both are, and the first is marked."""
    folder = tmp_path / "photos"
    shutil.copytree(photos.parent, folder)
    lines = map(json.loads, photos.read_text().splitlines())
    gone, broken, *_ = (folder / line["image"] for line in lines if line["sugarcrepe"])
    gone.unlink()
    broken.write_bytes(broken.read_bytes()[:200])
    out = tmp_path / "out.json"
    asked = ["--benchmark", f"sugarcrepe={folder / 'data.jsonl'}"]
    asked += ["--benchmark", f"retrieval={photos}", "--device", "cpu", "--json", str(out)]
    done = CliRunner().invoke(app, [str(export), *asked])
    assert done.exit_code == 1
    assert f"image {gone}: no such file" in done.stderr
    assert f"image {broken} cannot be read" in done.stderr  # told at once, not after the other
    assert "sugarcrepe: withheld" in done.stderr
    value = json.loads(out.read_text())
    assert [result["dataset"] for result in value["results"]] == ["retrieval/data"]
    (lacking,) = value["withheld"]
    assert lacking["dataset"] == "sugarcrepe"
    assert len(lacking["reasons"]) == 2

    # What is broken shows when it is opened.
    shutil.copy(photos.parent / "images" / gone.name, gone)
    done = CliRunner().invoke(app, [str(export), *asked])
    assert done.exit_code == 1
    assert f"image {broken} cannot be read" in done.stderr
    assert "retrieval/data, " in done.stdout

    done = CliRunner().invoke(app, [str(export), *asked, "--partial"], catch_exceptions=False)
    assert done.exit_code == 0
    assert "note: PARTIAL: " in done.stdout
    whole, part = (
        next(each for each in json.loads(out.read_text())["results"] if each["dataset"] == name)
        for name in ("retrieval/data", "sugarcrepe")
    )
    assert whole["left_out"] == 0
    assert part["left_out"] == 134 - part["scores"][0]["count"] > 0


def test_scores_of_others_are_not_lost_with_one_that_fails(export, photos, tmp_path):
    out = tmp_path / "out.json"
    asked = ["--benchmark", f"sugarcrepe={photos}", "--benchmark", f"retrieval={photos}"]
    asked += ["--scorer", "random", "--device", "cpu", "--json", str(out)]
    done = CliRunner().invoke(app, [str(export), *asked])
    assert "takes the scorer cosine" in str(done.exception)
    assert [each["dataset"] for each in json.loads(out.read_text())["results"]] == ["sugarcrepe"]


def test_too_large_a_batch_is_one_line(export, photos, monkeypatch):
    def fail(*_):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried ...")

    monkeypatch.setattr(Encoder, "_encoded", fail)
    asked = ["--benchmark", f"retrieval={photos}", "--device", "cpu"]
    done = CliRunner().invoke(app, [str(export), *asked])
    assert isinstance(done.exception, ValueError)
    assert "lower --batch-size" in str(done.exception)


def test_the_list_needs_no_model():
    done = CliRunner().invoke(app, ["--list"], catch_exceptions=False)
    assert done.exit_code == 0
    assert all(f"\n{name}: " in f"\n{done.stdout}" for name in benchmarks.KINDS)


def test_a_warm_cache_runs_no_tower(export, photos, tmp_path, monkeypatch):
    asked = ["--benchmark", f"sugarcrepe={photos}", "--benchmark", f"retrieval={photos}"]
    asked += ["--device", "cpu", "--json", str(tmp_path / "out.json")]
    plain = scores_in(tmp_path / "out.json", [str(export), *asked])
    cached = [str(export), *asked, "--cache", str(tmp_path / "cache")]
    assert scores_in(tmp_path / "out.json", cached) == plain

    def fail(*_):
        pytest.fail("a tower ran")

    monkeypatch.setattr(Encoder, "_encoded", fail)
    assert scores_in(tmp_path / "out.json", cached) == plain


def test_two_processes_have_the_scores_of_one(export, photos, tmp_path):
    out = tmp_path / "out.json"
    asked = [str(export), "--benchmark", f"sugarcrepe={photos}", "--benchmark"]
    asked += [f"retrieval={photos}", "--device", "cpu", "--json", str(out), "--batch-size", "16"]
    alone = scores_in(out, asked)
    told = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *("--nproc_per_node", "2", "-m", "hnpretrain.cli", "eval", *asked),
        ],
        capture_output=True,
        text=True,
        check=True,
        env=clean_environment(),
    ).stdout
    assert told.count("sugarcrepe, ") == 1
    assert answers_in(out) == alone


def scores_in(out, arguments):
    assert CliRunner().invoke(app, arguments, catch_exceptions=False).exit_code == 0
    return answers_in(out)


def answers_in(out):
    """Every score, and every margin to the last bit."""
    return [(each["scores"], each["outcomes"]) for each in json.loads(out.read_text())["results"]]


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
