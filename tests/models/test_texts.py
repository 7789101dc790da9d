"""Texts of any layout give the features and gradients of each text encoded by itself."""

import functools
import gzip
import json
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from hnpretrain.data.texts import TextLayout
from hnpretrain.data.trees import TokenTrees
from hnpretrain.models import ModelSettings, build
from hnpretrain.models.texts import TextEncoder, choose_layout
from hnpretrain.models.trees import ATTENTIONS, visible

ASSETS = Path(__file__).parents[1] / "assets"
TEXT = {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 3}
VISION = {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16}


def model_of(**text):
    torch.manual_seed(1)
    config = {"embed_dim": 32, "vision_cfg": dict(VISION), "text_cfg": {**TEXT, **text}}
    custom = config["text_cfg"].pop("custom", False)
    if custom:
        config["custom_text"] = True
    return build(ModelSettings(config=config)).model


@pytest.fixture(scope="module")
def texts():
    """1,000 real captions, each with eight negatives: (1000, 9, 77)."""
    with gzip.open(ASSETS / "coco_captions_val2017.json.gz") as file:
        captions = [a["caption"] for a in json.load(file)["annotations"]]
    generator = np.random.default_rng(0)
    captions = [captions[i] for i in generator.choice(len(captions), 1000, replace=False)]
    words = [word for caption in captions for word in caption.split()]

    def with_word(caption, place):
        changed = caption.split()
        changed[place] = generator.choice(words)
        return " ".join(changed)

    long = " ".join(words[:100])
    rows = []
    for number, caption in enumerate(captions):
        rows.append(long if number == 7 else caption)
        rows += [with_word(caption, generator.integers(len(caption.split()))) for _ in range(3)]
        rows += [
            with_word(caption, 0),
            with_word(caption, -1),
            f"{caption} {long}" if number % 50 == 0 else with_word(caption, -1),
            caption,
            "",
        ]
    return open_clip.get_tokenizer("ViT-B-32")(rows).unflatten(0, (1000, 9))


def features_and_gradients(model, encode, weight_BCD):
    model.zero_grad()
    features_BCD = encode()
    (features_BCD * weight_BCD).sum().backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return features_BCD.detach(), gradients


def each_by_itself(model, token_BCL, weight_BCD):
    """open_clip's own features of all rows, padded, a part at a time."""
    parts = []
    model.zero_grad()
    for tokens, weight in zip(token_BCL.split(100), weight_BCD.split(100), strict=True):
        features = model.encode_text(tokens.flatten(0, 1), normalize=True)
        features = features.unflatten(0, tokens.shape[:2])
        (features * weight).sum().backward()
        parts.append(features.detach())
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return torch.cat(parts), gradients


def assert_equal(found, expected, tolerance=1e-5):
    torch.testing.assert_close(found[0], expected[0], rtol=tolerance, atol=tolerance)
    assert found[1].keys() == expected[1].keys()
    for name, gradient in expected[1].items():
        error = (found[1][name] - gradient).norm() / gradient.norm()
        assert error < tolerance, (name, error)


@pytest.fixture(scope="module")
def reference(texts):
    """A model, a mask and weights; features of each text by itself; gradients by column of texts.

    The gradients for any choice of columns are the sums of theirs.
    """
    model = model_of()
    generator = torch.Generator().manual_seed(0)
    mask_BC = torch.rand(texts.shape[:2], generator=generator) < 0.9
    mask_BC[:, 0] = True
    weight_BCD = torch.randn(*texts.shape[:2], 32, generator=generator)
    weight_BCD[~mask_BC] = 0.0
    columns = [
        each_by_itself(model, texts[:, c : c + 1], weight_BCD[:, c : c + 1]) for c in range(9)
    ]
    features_BCD = torch.cat([features for features, _ in columns], dim=1)
    return model, mask_BC, weight_BCD, features_BCD, [gradients for _, gradients in columns]


@pytest.mark.parametrize("negatives", range(9))
def test_trees_of_a_thousand_captions_are_exact(texts, reference, negatives):
    """Negatives that differ anywhere, in the first word and in the last; that are longer than the
    tower reads; equal to the caption; or empty. Some are masked."""
    model, mask_BC, weight_BCD, features_BCD, gradients = reference
    generator = torch.Generator().manual_seed(negatives)
    # Of the eight kinds other ones for each K; all for K = 8.
    chosen = [0, *(torch.randperm(8, generator=generator)[:negatives] + 1).tolist()]
    mask_BC = mask_BC[:, chosen]
    trees = choose_layout(model).layout.lay_out(texts[:, chosen], mask_BC)
    assert isinstance(trees, TokenTrees)
    found = features_and_gradients(model, lambda: TextEncoder(model)(trees), weight_BCD[:, chosen])
    expected = torch.where(mask_BC[..., None], features_BCD[:, chosen], features_BCD[:, :1])
    sums = {name: sum(gradients[c][name] for c in chosen) for name in gradients[0]}
    assert_equal(found, (expected, sums))


TOWERS = {
    "clip": {},
    "custom": {"custom": True},
    "eos": {"custom": True, "pool_type": "eos", "eos_id": 49407},
    "clip-eos": {"pool_type": "eos", "eos_id": 49407},
    "layer-scale": {"ls_init_value": 0.5},
    "biased-projection": {"proj_bias": True},
    "no-projection": {"custom": True, "proj_type": "none", "width": 32},
    "one-layer": {"layers": 1},
    "no-causal": {"custom": True, "no_causal_mask": True, "pool_type": "last"},
    "class-token": {"custom": True, "embed_cls": True},
    "custom-blocks": {"custom": True, "block_type": "custom"},
}


@pytest.mark.parametrize(
    "tower, kind, reason",
    [
        ("clip", "trees", "causal and read at its end token"),
        ("custom", "trees", "causal and read at its end token"),
        ("eos", "trees", "causal and read at its end token"),
        ("clip-eos", "trees", "causal and read at its end token"),
        ("layer-scale", "trees", "causal"),
        ("biased-projection", "trees", "causal"),
        ("no-projection", "trees", "causal"),
        ("one-layer", "trees", "causal"),
        ("no-causal", "padded", "the text tower is bidirectional"),
        ("class-token", "padded", "a class token of its own"),
        ("custom-blocks", "padded", "made of CustomResidualAttentionBlock"),
    ],
)
def test_each_tower_takes_the_fewest_tokens_that_leave_its_features(texts, tower, kind, reason):
    model = model_of(**TOWERS[tower])
    chosen = choose_layout(model)
    assert chosen.layout.kind == kind
    assert reason in chosen.reason
    token_BCL = texts[10:50, :6]
    mask_BC = torch.ones(40, 6, dtype=torch.bool)
    weight_BCD = torch.randn(40, 6, 32)
    expected = each_by_itself(model, token_BCL, weight_BCD)
    encode = TextEncoder(model)
    allowed = ["auto", "padded"] if kind == "padded" else ["auto", "trimmed", "padded"]
    for wanted in allowed:
        laid = choose_layout(model, wanted).layout.lay_out(token_BCL, mask_BC)
        assert (laid.tokens == 240 * 77) == ("padded" in (wanted, kind))
        assert laid.tokens <= 240 * 77
        found = features_and_gradients(model, functools.partial(encode, laid), weight_BCD)
        assert_equal(found, expected)


@pytest.mark.parametrize("tower", ["no-causal", "class-token", "custom-blocks"])
def test_what_would_change_features_is_refused(tower):
    model = model_of(**TOWERS[tower])
    for wanted in ("trees", "trimmed"):
        message = f"model.text_layout={wanted} would change this model's features: the text tower"
        with pytest.raises(ValueError, match=message):
            choose_layout(model, wanted)
    with pytest.raises(ValueError, match=r"this model has none: .* Take another loss.objective"):
        choose_layout(model, words=True)


def test_what_is_asked_for_is_told_as_such():
    model = model_of()
    reason = choose_layout(model, "padded").reason
    assert reason.startswith("it is asked for, where auto would take trees: the text tower is caus")
    with pytest.raises(ValueError, match=r"model.text_layout='tree' is not one of .*'trees'"):
        choose_layout(model, "tree")
    with pytest.raises(ValueError, match="padded gives none; set it to auto or"):
        choose_layout(model, "padded", words=True)


def test_a_hugging_face_tower_gets_trimmed_rows(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.RobertaConfig(
        vocab_size=200,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=80,
    )
    transformers.RobertaModel(config).save_pretrained(tmp_path)
    text = {"hf_model_name": str(tmp_path), "hf_model_pretrained": False}
    model = open_clip.model.CustomTextCLIP(32, dict(VISION), {"width": 32, **text}).eval()
    chosen = choose_layout(model)
    assert chosen.layout.kind == "trimmed"
    assert "HFTextEncoder, which masks padding" in chosen.reason
    token_BCL = torch.randint(3, 200, (8, 3, 20))
    for row, length in zip(token_BCL.flatten(0, 1), range(3, 9 * 3), strict=False):
        row[length // 2 :] = config.pad_token_id
    laid = chosen.layout.lay_out(token_BCL, torch.ones(8, 3, dtype=torch.bool))
    assert laid.tokens == 24 * 13
    found = TextEncoder(model)(laid)
    expected = model.encode_text(token_BCL.flatten(0, 1), normalize=True)
    torch.testing.assert_close(found.flatten(0, 1), expected, rtol=1e-5, atol=1e-5)


def test_words_are_those_of_each_text_by_itself(texts):
    model = model_of()
    token_BCL = texts[:20, :6]
    mask_BC = torch.rand(20, 6) < 0.8
    mask_BC[:, 0] = True
    layout = choose_layout(model, words=True).layout
    trees = layout.lay_out(token_BCL, mask_BC)
    features_BCD, words_BCWD = TextEncoder(model).with_words(trees)
    states = []
    hook = model.ln_final.register_forward_hook(lambda *call: states.append(call[2]))
    expected = model.encode_text(token_BCL.flatten(0, 1), normalize=True).unflatten(0, (20, 6))
    hook.remove()
    all_words_BCWD = (states[0] @ model.text_projection).unflatten(0, (20, 6))
    torch.testing.assert_close(features_BCD[mask_BC], expected[mask_BC], rtol=1e-5, atol=1e-5)
    W = words_BCWD.shape[2]
    ends_BC = token_BCL.argmax(dim=2)
    place_W = torch.arange(W)
    inside = (place_W > 0) & (place_W <= ends_BC[..., None]) & mask_BC[..., None]
    assert torch.equal(trees.word_mask_BCW, inside)
    torch.testing.assert_close(
        words_BCWD[inside], all_words_BCWD[:, :, :W][inside], rtol=1e-5, atol=1e-5
    )


def test_checkpointed_and_autocast_trees(texts):
    model = model_of()
    token_BCL = texts[:30, :5]
    trees = TextLayout("trees").lay_out(token_BCL, torch.ones(30, 5, dtype=torch.bool))
    encode = TextEncoder(model)
    weight_BCD = torch.randn(30, 5, 32)
    plain = features_and_gradients(model, lambda: encode(trees), weight_BCD)
    with torch.autocast("cpu", torch.bfloat16):
        half = features_and_gradients(model, lambda: encode(trees), weight_BCD)
        theirs = each_by_itself(model, token_BCL, weight_BCD)
    # No further off than open_clip's own rows.
    off, their_off = ((found[0] - plain[0]).norm() for found in (half, theirs))
    assert off < 1.5 * their_off < 0.02 * plain[0].norm()
    for name, gradient in plain[1].items():
        off, their_off = ((found[1][name] - gradient).norm() for found in (half, theirs))
        assert off < 1.5 * their_off, name
    runs = []
    model.transformer.resblocks[1].mlp.register_forward_pre_hook(lambda *_: runs.append("mlp"))
    model.set_grad_checkpointing()
    kept = features_and_gradients(model, lambda: encode(trees), weight_BCD)
    assert runs == ["mlp", "mlp"]  # once more in the backward pass
    assert_equal(kept, plain, tolerance=1e-6)


def test_trees_compile(texts):
    model = model_of(layers=2)
    trees = TextLayout("trees").lay_out(texts[:16, :4], torch.ones(16, 4, dtype=torch.bool))
    more = TextLayout("trees").lay_out(texts[20:30, :4], torch.ones(10, 4, dtype=torch.bool))
    encode = TextEncoder(model)
    compiled = torch.compile(encode.__call__, backend="aot_eager", fullgraph=True)
    for laid in (trees, more):
        weight_BCD = torch.randn(*laid.place_BC.shape, 32)
        plain = features_and_gradients(model, functools.partial(encode, laid), weight_BCD)
        made = features_and_gradients(model, functools.partial(compiled, laid), weight_BCD)
        assert_equal(made, plain, tolerance=1e-5)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_both_attentions_see_the_same(texts):
    """FlexAttention trains on a GPU alone, so here it is held to its forward pass."""
    trees = TextLayout("trees").lay_out(texts[:16, :4], torch.ones(16, 4, dtype=torch.bool))
    R, L = trees.until_RL.shape
    q, k, v = torch.randn(3, R, 2, L, 16)
    mask_R1LL = visible(trees.until_RL)[:, None]
    expected = scaled_dot_product_attention(q, k, v, attn_mask=mask_R1LL)
    for attention in ATTENTIONS.values():
        torch.testing.assert_close(
            attention(trees.until_RL)(q, k, v), expected, rtol=1e-5, atol=1e-5
        )


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("attention", ["sdpa", "flex"])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-4), (torch.bfloat16, 3e-2)])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_trees_on_cuda(texts, attention, dtype, tolerance, checkpointing):
    model = model_of().cuda()
    model.set_grad_checkpointing(checkpointing)
    token_BCL = texts[:100, :5]
    trees = TextLayout("trees").lay_out(token_BCL, torch.ones(100, 5, dtype=torch.bool))
    weight_BCD = torch.randn(100, 5, 32, device="cuda")
    expected = each_by_itself(model, token_BCL.cuda(), weight_BCD)
    encode = TextEncoder(model, attention)
    on_device = trees.to(torch.device("cuda"))
    with torch.autocast("cuda", dtype, enabled=dtype != torch.float32):
        found = features_and_gradients(model, lambda: encode(on_device), weight_BCD)
    assert_equal(found, expected, tolerance=tolerance)
