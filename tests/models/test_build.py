import json
import sys

import open_clip
import pytest
import torch

from hnpretrain.models import ModelSettings, build, export, load
from hnpretrain.models.store import CONFIG_NAME, WEIGHTS_NAME
from tests.support.hugging_face import text_configs

TINY = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"arch": "ViT-B-33"}, "'ViT-B-33' is no open_clip architecture; did you mean 'ViT-B-32'"),
        ({"arch": "ViT-B-32", "pretrained": "opanai"}, "nor one of ViT-B-32's tags; did you mean"),
        ({}, "set either model.arch"),
        ({"arch": "ViT-B-32", "lock_image": True, "lock_text": True}, "nothing is left to train"),
        ({"config": {**TINY, "text_cfg": {"heads": 0}}}, "open_clip cannot build model.config"),
        ({"arch": "ViT-B-32", "config": TINY}, "set either model.arch"),
        ({"config": {"embed_dim": 4}}, "model.config lacks vision_cfg, text_cfg"),
        ({"config": TINY, "pretrained": "openai"}, "a custom config has no tags"),
        ({"config": {**TINY, "vision_cfg": {"depth": 3}}}, "open_clip cannot build model.config"),
        ({"config": TINY, "augmentation": {"flip": 1}}, "open_clip cannot build model.config"),
    ],
)
def test_wrong_models_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        build(ModelSettings(**settings))


def test_an_architecture_by_name():
    loaded = build(ModelSettings(arch="ViT-S-32"))
    assert loaded.config == open_clip.get_model_config("ViT-S-32")
    assert loaded.tokenizer(["a"]).shape == (1, 77)


def test_a_custom_config_decides_tokens_and_pixels():
    loaded = build(ModelSettings(config=TINY))
    assert loaded.tokenizer(["a cat", "a dog"]).shape == (2, 16)
    assert loaded.model.visual.image_size in (32, (32, 32))


def test_without_weights_all_else_is_as_the_tag_says(tmp_path, monkeypatch):
    """Nor is anything downloaded."""
    (tmp_path / "tiny-tagged.json").write_text(json.dumps(TINY))
    open_clip.add_model_config(tmp_path)
    weights = build(ModelSettings(config=TINY)).model.state_dict()
    torch.save({**weights, "logit_scale": weights["logit_scale"].squeeze()}, tmp_path / "file.pt")
    tag = {"url": "https://nowhere", "quick_gelu": True, "mean": (0.1,) * 3, "std": (0.2,) * 3}
    tag |= {"interpolation": "bilinear", "resize_mode": "squash"}
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "tiny-tagged", {"tag": tag})
    settings = ModelSettings(arch="tiny-tagged", pretrained="tag")
    without = build(settings, with_weights=False)
    monkeypatch.setattr(
        open_clip.factory, "download_pretrained", lambda *_, **__: str(tmp_path / "file.pt")
    )
    having = build(settings)
    assert having.config == without.config
    assert having.config["quick_gelu"]
    assert having.model.visual.preprocess_cfg == without.model.visual.preprocess_cfg
    assert having.model.visual.preprocess_cfg["resize_mode"] == "squash"
    for transform in ("preprocess_train", "preprocess_val"):
        assert str(getattr(having, transform)) == str(getattr(without, transform))
    assert str(having.model) == str(without.model)
    assert having.pretrained == without.pretrained == "tag"
    loaded = having.model.state_dict()
    assert all(tensor.equal(loaded[name]) for name, tensor in weights.items())
    assert not without.model.state_dict()["visual.proj"].equal(loaded["visual.proj"])


@pytest.mark.parametrize("tower", ["image", "text"])
def test_locking(tower):
    loaded = build(ModelSettings(config=TINY, **{f"lock_{tower}": True}))
    trained = {n for n, p in loaded.model.named_parameters() if p.requires_grad}
    assert any(name.startswith("visual.") for name in trained) == (tower == "text")
    assert ("token_embedding.weight" in trained) == (tower == "image")


@pytest.mark.parametrize("custom_text", [False, True])
def test_export_and_load_give_equal_embeddings(tmp_path, custom_text):
    torch.manual_seed(0)
    built = build(ModelSettings(config={**TINY, "custom_text": custom_text}))
    source = tmp_path / "checkpoint"
    _as_checkpoint(built, source)
    export(str(source), str(tmp_path / "export"))
    again = load(str(tmp_path / "export"))
    theirs = open_clip.create_model(f"local-dir:{tmp_path / 'export'}")
    tokens = built.tokenizer(["a cat on a mat"])
    image = torch.rand(1, 3, 32, 32)
    expected = built.model.eval()
    weights = {name: tensor.squeeze() for name, tensor in expected.state_dict().items()}
    for model in (again.model, theirs.eval()):
        state = {name: tensor.squeeze() for name, tensor in model.state_dict().items()}
        assert state.keys() == weights.keys()
        assert all(torch.equal(state[name], weights[name]) for name in weights)
        with torch.no_grad():
            # Not to the bit: where a tensor starts in memory decides how it is summed up.
            close(model.encode_text(tokens), expected.encode_text(tokens))
            close(model.encode_image(image), expected.encode_image(image))
    assert json.loads((tmp_path / "export/open_clip_config.json").read_text())["model_cfg"] == {
        **TINY,
        "custom_text": custom_text,
    }


def close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.fixture
def hf_names(tmp_path):
    return text_configs(tmp_path / "hub")


@pytest.mark.parametrize("kind", ["siglip", "bert"])
def test_a_hugging_face_tokenizer_goes_along(tmp_path, hf_names, kind):
    torch.manual_seed(0)
    config = {
        "embed_dim": 16,
        "custom_text": True,
        "init_logit_bias": -10,
        "vision_cfg": TINY["vision_cfg"],
        "text_cfg": hf_names[kind],
    }
    built = build(ModelSettings(config=config))
    built.model.eval()
    texts = ["a dog", "a cat, a cat and much more than that", "A Dog!"]
    tokens = built.tokenizer(texts)
    assert tokens.shape == (3, 6)
    # SigLIP's text is cleaned of case and punctuation first.
    assert torch.equal(tokens[0], tokens[2]) == (kind == "siglip")

    _as_checkpoint(built, tmp_path / "checkpoint")
    # Neither the tokenizer nor the text tower's first weights are looked for by name again.
    for file in (tmp_path / "hub").iterdir():
        if file.name != "config.json":
            file.unlink()
    export(str(tmp_path / "checkpoint"), str(tmp_path / "export"))
    for folder in (tmp_path / "checkpoint", tmp_path / "export"):
        again = load(str(folder))
        assert torch.equal(again.tokenizer(texts), tokens)
        with torch.no_grad():
            close(again.model.encode_text(tokens), built.model.encode_text(tokens))
    theirs = open_clip.get_tokenizer(f"local-dir:{tmp_path / 'export'}")
    assert torch.equal(theirs(texts), tokens)


def test_a_tokenizer_that_is_not_found_is_one_line(tmp_path):
    text = {**TINY["text_cfg"], "hf_tokenizer_name": str(tmp_path)}
    with pytest.raises(ValueError, match=r"open_clip cannot build model\.config: ") as caught:
        build(ModelSettings(config={**TINY, "text_cfg": text}))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("arch", ["ViT-B-16-SigLIP", "roberta-ViT-B-32"])
def test_without_transformers_the_remedy_is_named(monkeypatch, arch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ValueError, match=rf"cannot build {arch}: .*install 'hnpretrain\[hf\]'"):
        build(ModelSettings(arch=arch))


def _as_checkpoint(built, folder):
    """The part of a DeepSpeed checkpoint that holds the weights."""
    from hnpretrain.models.store import write_config

    folder.mkdir()
    weights = {f"model.{name}": tensor for name, tensor in built.model.state_dict().items()}
    torch.save({"module": weights}, folder / "mp_rank_00_model_states.pt")
    write_config(built, folder)


def test_what_is_no_model(tmp_path):
    with pytest.raises(ValueError, match="no export, no checkpoint and no run"):
        load(str(tmp_path))
    with pytest.raises(ValueError, match="neither a folder"):
        load("/nowhere")
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": TINY}))
    with pytest.raises(ValueError, match="holds neither"):
        load(str(tmp_path))


@pytest.mark.parametrize(
    "source, message",
    [
        ("RN50:", r"'RN50:': write ARCH:TAG.* \(RN50's tags: openai, yfcc15m, cc12m\)"),
        (":openai", "':openai': write ARCH:TAG"),
        ("RN51:", r"'RN51:': write ARCH:TAG.*list_pretrained\(\)"),
        ("RN51:openai", "'RN51' is no open_clip architecture"),
    ],
)
def test_weights_without_a_name_are_refused(source, message):
    """Without a tag open_clip would take random weights."""
    with pytest.raises(ValueError, match=message):
        load(source)


STATES = "mp_rank_00_model_states.pt"


def _cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _other_shapes(path):
    other = build(ModelSettings(config={**TINY, "embed_dim": 8}))
    _as_checkpoint(other, path.parent / "other")
    (path.parent / "other" / STATES).replace(path)


@pytest.mark.parametrize(
    "kind, file, damage, message",
    [
        ("export", CONFIG_NAME, _cut, "it is no JSON"),
        ("export", CONFIG_NAME, lambda path: path.write_text("{}"), "it has no 'model_cfg'"),
        ("export", CONFIG_NAME, lambda path: path.write_text("[]"), "it has no 'model_cfg'"),
        ("export", CONFIG_NAME, lambda path: path.write_bytes(b"\xff\x00"), "it is no JSON"),
        ("export", WEIGHTS_NAME, _cut, ""),
        ("export", WEIGHTS_NAME, lambda path: path.write_bytes(b""), ""),
        ("checkpoint", CONFIG_NAME, _cut, "it is no JSON"),
        ("checkpoint", STATES, _cut, "it is cut, or no file of weights"),
        ("checkpoint", STATES, lambda path: path.write_bytes(b""), "it is cut, or no file"),
        ("checkpoint", STATES, lambda path: path.write_bytes(b"junk" * 99), "it is cut, or no"),
        ("checkpoint", STATES, lambda path: torch.save({"x": 1}, path), "it has no 'module'"),
        ("checkpoint", STATES, lambda path: torch.save({"module": 1}, path), "it has no 'module'"),
        ("checkpoint", STATES, lambda path: torch.save([1], path), "it has no 'module'"),
        ("checkpoint", STATES, _other_shapes, "size mismatch"),
    ],
)
def test_a_damaged_file_is_named(tmp_path, kind, file, damage, message):
    _as_checkpoint(build(ModelSettings(config=TINY)), tmp_path / "checkpoint")
    export(str(tmp_path / "checkpoint"), str(tmp_path / "export"))
    path = tmp_path / kind / file
    damage(path)
    with pytest.raises(ValueError, match=f" is damaged: .*{message}") as caught:
        load(str(tmp_path / kind))
    said = str(caught.value)
    assert said.startswith(f"{path} is damaged: ")
    assert said.endswith("; copy or export it again")
    assert "\n" not in said
    assert "weights_only" not in said
    assert len(said) < 600
