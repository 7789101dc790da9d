import json

import open_clip
import pytest
import torch

from hnpretrain.models import ModelSettings, build, export, load

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
