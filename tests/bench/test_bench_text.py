"""`hnpretrain bench text` on a tiny model: figures, errors, and what is refused."""

import json

import pytest
from typer.testing import CliRunner

from hnpretrain.bench.captions import read_captions
from hnpretrain.bench.encoders import obstacle_to_compilation
from hnpretrain.cli import app


def _run(*arguments):
    return CliRunner().invoke(app, ["bench", "text", *arguments, "--device", "cpu"])


def test_rows_hold_time_memory_and_errors(tmp_path, tiny_model, captions):
    file = tmp_path / "rows.json"
    sizes = ("--batch", "8", "--negatives", "0,3", "--repeats", "2")
    result = _run(captions, "--arch", tiny_model, *sizes, "--json", str(file))
    assert result.exit_code == 0, result.output
    found = {0: {}, 3: {}}
    for row in json.loads(file.read_text()):
        found[row["K"]][row["case"]] = row
        assert row["arch"] == tiny_model
        assert row["samples_per_second"] == pytest.approx(8 / row["seconds"])
        assert row["ratio"] == pytest.approx(row["ours"] / row["peer"])
        assert row["peak_bytes"] > 0
        assert row["feature_error"] < 1e-5
        assert row["gradient_error"] < 1e-5
        assert (row["layout_seconds"] is None) == row["case"].startswith("open_clip")
    ours = {"ours, trees", "ours, trimmed"}
    assert found[0].keys() == ours | {"open_clip, captions"}
    assert found[3].keys() == ours | {"open_clip, captions", "open_clip, all"}
    tokens = {name: row["tokens"] for name, row in found[3].items()}
    assert tokens["open_clip, captions"] == 8 * 77
    assert tokens["open_clip, all"] == 8 * 4 * 77
    assert tokens["ours, trees"] < tokens["ours, trimmed"] < tokens["open_clip, all"]
    for shown in ("arch=tiny.json, B=8, K=3", "open_clip, all", "laying texts out: trees"):
        assert shown in result.output


def test_bf16_is_coarse_for_all(tmp_path, tiny_model, captions):
    file = tmp_path / "rows.json"
    sizes = ("--batch", "4", "--negatives", "0", "--repeats", "1", "--dtype", "bf16")
    result = _run(captions, "--arch", tiny_model, *sizes, "--json", str(file))
    assert result.exit_code == 0, result.output
    for row in json.loads(file.read_text()):
        assert 1e-4 < row["feature_error"] < 2e-2


def test_dropout_is_no_error(tmp_path, tiny_hugging_face_model, captions):
    file = tmp_path / "rows.json"
    sizes = ("--batch", "4", "--negatives", "1", "--repeats", "1")
    result = _run(captions, "--arch", tiny_hugging_face_model, *sizes, "--json", str(file))
    assert result.exit_code == 0, result.output
    rows = {row["case"]: row for row in json.loads(file.read_text())}
    assert rows.keys() == {"open_clip, captions", "open_clip, all", "ours, trimmed"}
    for row in rows.values():
        assert row["feature_error"] < 1e-5
        assert row["gradient_error"] < 1e-5


def test_nothing_is_compiled_without_a_compiler(monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    assert obstacle_to_compilation("cpu") == "there is no C++ compiler 'g++'"


def test_one_word_of_a_negative_is_new(captions):
    drawn = read_captions(captions).draw(50, 4, seed=0)
    for caption, *negatives in drawn:
        assert len({caption, *negatives}) == 5
        for negative in negatives:
            pairs = list(zip(caption.split(), negative.split(), strict=True))
            assert sum(a != b for a, b in pairs) == 1
    # Fewer negatives are the first ones, of the same captions.
    assert [row[:2] for row in drawn] == read_captions(captions).draw(50, 1, seed=0)
    assert drawn != read_captions(captions).draw(50, 4, seed=1)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("--arch", "ViT-B-33"), "nor a json file with a model config; did you mean 'ViT-B-32'?"),
        (("--arch", "nowhere.json"), "'nowhere.json' holds no open_clip model config"),
        (("--batch", "0"), "give whole numbers of at least 1"),
        (("--dtype", "fp16"), "--dtype 'fp16' is not one of fp32, bf16"),
    ],
)
def test_wrong_options(captions, arguments, message):
    result = _run(captions, *arguments)
    assert result.exit_code == 2
    assert message in " ".join(result.output.replace("\u2502", " ").split())


def test_a_model_config_may_lack_something(tmp_path, captions):
    file = tmp_path / "model.json"
    file.write_text('{"model_cfg": {"embed_dim": 4, "vision_cfg": {}}}')
    result = _run(captions, "--arch", str(file))
    assert result.exit_code == 2
    assert "it lacks text_cfg" in " ".join(result.output.replace("\u2502", " ").split())


@pytest.mark.parametrize(
    "content, message",
    [
        (None, "is no COCO captions json"),
        ('{"annotations": []}', "it holds no caption"),
        ('{"annotations": [{"image_id": 1, "caption": "A cat."}]}', "there are 1"),
    ],
)
def test_wrong_captions(tmp_path, tiny_model, content, message):
    file = tmp_path / "captions.json"
    if content is not None:
        file.write_text(content)
    result = _run(str(file), "--arch", tiny_model)
    assert isinstance(result.exception, ValueError)
    assert message in str(result.exception)


def test_a_model_that_sees_its_padding_leaves_nothing_to_compare(tmp_path, captions):
    bidirectional = {"vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
    bidirectional |= {"no_causal_mask": True, "pool_type": "last"}
    config = {"embed_dim": 16, "vision_cfg": {}, "text_cfg": bidirectional, "custom_text": True}
    file = tmp_path / "model.json"
    file.write_text(json.dumps(config))
    result = _run(captions, "--arch", str(file), "--batch", "2", "--negatives", "1")
    assert isinstance(result.exception, ValueError)
    assert "nothing to compare: the text tower is bidirectional" in str(result.exception)
