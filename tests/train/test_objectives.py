"""Every objective by name in a short training: terms in the log, thresholds in the checkpoint."""

import json

import pytest
import torch

from hnpretrain.data.texts import TextLayout
from hnpretrain.losses.objectives import OBJECTIVES
from hnpretrain.models import ModelSettings, build
from hnpretrain.models.parts import PatchRecorder
from hnpretrain.models.texts import TextEncoder
from hnpretrain.runs import latest_checkpoint
from tests.support.training import kill_after, loss_lines, start, train, train_here, write_recipe

TERMS = {
    "clip": set(),
    "hn": set(),
    "negclip": set(),
    "ceclip": {"rank", "intra_modal"},
    "tsvlc": {"own_choice"},
    "fscclip": {"focal_choice", "local_choice"},
    "siglip": set(),
}


def recipe(folder, shards):
    return write_recipe(folder / "recipe.yaml", shards, batch_size=8, checkpoint="{every: 3}")


@pytest.mark.parametrize("objective", list(OBJECTIVES))
def test_an_objective_trains_and_logs_its_terms(tmp_path, shards, objective):
    bias = ["model.config.init_logit_bias=-10"] if objective == "siglip" else []
    run = tmp_path / "run"
    train_here(recipe(tmp_path, shards), f"output={run}", f"loss.objective={objective}", *bias)
    lines = loss_lines(run)
    assert len(lines) == 5
    weights = OBJECTIVES[objective].terms
    assert weights.keys() == TERMS[objective]
    for line in lines:
        told = line["contrastive"] + sum(w * line[name] for name, w in weights.items())
        assert line["loss"] == pytest.approx(told, rel=1e-5)
    # Of the adaptive rank, the first step of an epoch has nothing to rank by but the order.
    assert all(line[name] > 0 for line in lines[1:] for name in weights)


def test_thresholds_are_in_the_checkpoint_and_go_on(tmp_path, shards):
    path, options = recipe(tmp_path, shards), ("loss.objective=ceclip", "epochs=4")
    alone, killed = tmp_path / "alone", tmp_path / "killed"
    train(path, f"output={alone}", *options)
    kill_after(start(path, f"output={killed}", *options), killed, lines=8)
    state = json.loads((latest_checkpoint(killed) / "state.json").read_text())
    assert max(state["loss"]["terms.rank.thresholds"]) > 0
    assert "going on at" in train(path, f"output={killed}", *options)
    assert loss_lines(killed) == loss_lines(alone)


def test_siglip_wants_a_bias(tmp_path, shards):
    with pytest.raises(ValueError, match=r"loss\.objective=siglip needs a model with a logit bias"):
        train_here(recipe(tmp_path, shards), f"output={tmp_path / 'run'}", "loss.objective=siglip")


def test_patches_and_words_are_what_the_towers_pool():
    """The word at the end token, projected and normalised, is the text feature."""
    loaded = build(
        ModelSettings(
            config={
                "embed_dim": 16,
                "vision_cfg": {
                    "image_size": 32,
                    "layers": 1,
                    "width": 32,
                    "head_width": 16,
                    "patch_size": 16,
                },
                "text_cfg": {
                    "context_length": 16,
                    "vocab_size": 49408,
                    "width": 16,
                    "heads": 2,
                    "layers": 1,
                },
            }
        )
    )
    model = loaded.model.eval()
    recorder = PatchRecorder(model)
    tokens = loaded.tokenizer(["a red car", "", "a small dog on a large bench"])
    texts = TextLayout("trees", words=True).lay_out(
        tokens[:, None], torch.ones(3, 1, dtype=torch.bool)
    )
    features, words = TextEncoder(model).with_words(texts)
    text = model.encode_text(tokens, normalize=True)
    torch.testing.assert_close(features[:, 0], text)
    counts = texts.word_mask_BCW.sum(dim=-1)[:, 0]
    assert counts.tolist() == [4, 1, 8]
    # The start token is none of the words, so the last word's place is their number.
    ends = words[torch.arange(3), 0, counts]
    torch.testing.assert_close(torch.nn.functional.normalize(ends, dim=-1), text)
    model.encode_image(torch.zeros(2, 3, 32, 32))
    assert recorder.patches().shape == (2, 4, 16)


def test_parts_need_towers_that_have_them():
    loaded = build(ModelSettings(arch="RN50"))
    with pytest.raises(ValueError, match="features of patches need a ViT"):
        PatchRecorder(loaded.model)
