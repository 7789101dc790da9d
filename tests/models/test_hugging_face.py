"""Models of others: Hugging Face's beside transformers' own answers, and open_clip's folders."""

import json
import sys
import warnings

import numpy as np
import open_clip
import pytest
import torch
import transformers
from open_clip.transformer import QuickGELU
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from hnpretrain.eval.encode import Encoder
from hnpretrain.eval.images import ImageSource
from hnpretrain.eval.store import fingerprint
from hnpretrain.models import ModelSettings, build, export, load
from hnpretrain.models.store import CONFIG_NAME, WEIGHTS_NAME, write_config, write_weights
from tests.models.test_build import TINY

TOWER = {
    **{"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2},
    "num_attention_heads": 2,
}
CAPTIONS = ["a cat", "a dog and a cat and a dog and a cat and a dog", "cat", "A Cat"]
LENGTH = 10


def photo(seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (40, 56, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def clip(folder, eos_token_id=None):
    """A CLIPModel with its processor, as `save_pretrained` leaves it."""
    letters = [chr(97 + n) + end for n in range(26) for end in ("", "</w>")]
    vocabulary = {
        token: n for n, token in enumerate([*letters, "<|startoftext|>", "<|endoftext|>"])
    }
    tokenizer = transformers.CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=77)
    eos = tokenizer.eos_token_id if eos_token_id is None else eos_token_id
    config = transformers.CLIPConfig(
        projection_dim=8,
        text_config={
            **{**TOWER, "vocab_size": len(vocabulary), "max_position_embeddings": LENGTH},
            **{"eos_token_id": eos, "bos_token_id": tokenizer.bos_token_id, "pad_token_id": eos},
        },
        vision_config={**TOWER, "image_size": 32, "patch_size": 16},
    )
    images = transformers.CLIPImageProcessor(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
    )
    return _save(folder, transformers.CLIPModel, config, images, tokenizer)


def words():
    """A tokenizer of four words that knows them in lower case alone."""
    known = ["<pad>", "<unk>", "<eos>", "a", "cat", "dog", "and"]
    tokenizer = Tokenizer(models.WordLevel({w: n for n, w in enumerate(known)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A <eos>", special_tokens=[("<eos>", 2)]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        unk_token="<unk>",
        eos_token="<eos>",
    )


SIGLIP_TEXT = {**TOWER, "vocab_size": 7, "max_position_embeddings": LENGTH}
SIGLIP_TEXT |= {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 2, "projection_size": 16}


def siglip(folder):
    config = transformers.SiglipConfig(
        text_config=SIGLIP_TEXT, vision_config={**TOWER, "image_size": 32, "patch_size": 16}
    )
    images = transformers.SiglipImageProcessor(size={"height": 32, "width": 32})
    return _save(folder, transformers.SiglipModel, config, images, words())


def siglip2(folder):
    """NaFlex, whose images leave some of 23 patches empty; its tokenizer would pad on the left."""
    symbols = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "\u2581", *"acdgnot"]
    tokenizer = transformers.Siglip2Tokenizer(
        vocab={symbol: n for n, symbol in enumerate(symbols)}, padding_side="left"
    )
    config = transformers.Siglip2Config(
        text_config={**SIGLIP_TEXT, "vocab_size": len(symbols)},
        vision_config={**TOWER, "num_patches": 16, "patch_size": 8},
    )
    images = transformers.Siglip2ImageProcessor(patch_size=8, max_num_patches=23)
    return _save(folder, transformers.Siglip2Model, config, images, tokenizer)


def _save(folder, kind, config, images, tokenizer):
    torch.manual_seed(0)
    model = kind(config).eval()
    # So that wrong pixels and tokens show in the features.
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    images.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model, images, tokenizer


FAMILIES = {"clip": clip, "siglip": siglip, "siglip2": siglip2}


@pytest.fixture(params=FAMILIES)
def saved(request, tmp_path):
    """The folder, and transformers' model, image processor and tokenizer."""
    return tmp_path / "model", *FAMILIES[request.param](tmp_path / "model")


def test_features_are_those_of_transformers(saved):
    folder, model, images, tokenizer = saved
    loaded = load(str(folder))
    pixels = torch.stack([loaded.preprocess_val(photo(n)) for n in range(2)])
    tokens = loaded.tokenizer(CAPTIONS)
    assert tokens.dtype == torch.int64
    assert tokens.shape == (4, LENGTH)
    assert not loaded.model.training
    with torch.no_grad():
        got = loaded.model.encode_image(pixels), loaded.model.encode_text(tokens)
        inputs = images(images=[photo(0), photo(1)], return_tensors="pt")
        assert inputs.get("pixel_attention_mask", torch.zeros(1)).min() == 0
        expected = model.get_image_features(**inputs).pooler_output
        torch.testing.assert_close(got[0], expected)
        for row, caption in enumerate(CAPTIONS):
            torch.testing.assert_close(got[1][row], _text_feature(model, tokenizer, caption))
    assert not torch.allclose(got[0][0], got[0][1], atol=1e-2)
    assert not torch.allclose(got[1][0], got[1][1], atol=1e-2)
    assert torch.equal(got[1][0], got[1][3])  # of another case
    assert loaded.preprocess_val(photo().convert("L")).shape == pixels[0].shape


def _text_feature(model, tokenizer, caption):
    """As transformers' documentation tells to: CLIP's captions alone and unpadded."""
    options = {"truncation": True, "max_length": LENGTH, "return_tensors": "pt"}
    if model.config.model_type == "clip":
        return model.get_text_features(**tokenizer([caption], **options)).pooler_output[0]
    ids = tokenizer([caption.lower()], padding="max_length", padding_side="right", **options)
    return model.get_text_features(input_ids=ids["input_ids"]).pooler_output[0]


def test_the_config_and_the_transform_tell_models_apart(saved):
    """A feature cache goes by them."""
    folder, _, images, _ = saved
    first = load(str(folder))
    assert first.name == str(folder)
    assert first.config["model_type"] in FAMILIES
    assert first.config["text_config"]["max_position_embeddings"] == LENGTH
    told = [fingerprint(each.model, each.config, each.preprocess_val) for each in (first, first)]
    images.image_mean = [0.1, 0.2, 0.3]
    images.save_pretrained(folder)
    other = load(str(folder))
    told.append(fingerprint(other.model, other.config, other.preprocess_val))
    assert told[0] == told[1] != told[2]
    assert not torch.allclose(first.preprocess_val(photo()), other.preprocess_val(photo()))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_evaluation_takes_it(saved, tmp_path, precision):
    folder, model, images, _ = saved
    for n in range(3):
        photo(n).save(tmp_path / f"{n}.png")
    loaded = load(str(folder))
    encoder = Encoder(
        loaded.model, loaded.preprocess_val, loaded.tokenizer, batch_size=2, precision=precision
    )
    got = encoder.encode_images(ImageSource.file(tmp_path / f"{n}.png") for n in range(3))
    inputs = images(images=[photo(n) for n in range(3)], return_tensors="pt")
    with torch.no_grad():
        expected = model.get_image_features(**inputs).pooler_output
    expected = torch.nn.functional.normalize(expected, dim=-1)
    atol = 1e-5 if precision == "fp32" else 0.1
    torch.testing.assert_close(got, expected, rtol=0, atol=atol)
    texts = encoder.encode_texts(CAPTIONS)
    assert torch.equal(texts[0], texts[3])


def test_half_precision_weights_become_float32(tmp_path):
    model, *_ = clip(tmp_path)
    model.half().save_pretrained(tmp_path)
    loaded = load(str(tmp_path))
    assert {each.dtype for each in loaded.model.parameters()} == {torch.float32}


def test_an_old_config_s_end_token(tmp_path):
    """Where eos_token_id is 2, transformers takes the highest id."""
    model, _, tokenizer = clip(tmp_path, eos_token_id=2)
    loaded = load(str(tmp_path))
    with torch.no_grad():
        got = loaded.model.encode_text(loaded.tokenizer(CAPTIONS))
        for row, caption in enumerate(CAPTIONS):
            torch.testing.assert_close(got[row], _text_feature(model, tokenizer, caption))


def _other_family(folder):
    text_tower = {**TOWER, "vocab_size": 7}
    transformers.BertModel(transformers.BertConfig(**text_tower)).save_pretrained(folder)


def _one_tower(folder):
    """The config of a whole model over the weights of its text tower."""
    model, *_ = clip(folder)
    config = (folder / "config.json").read_text()
    model.text_model.save_pretrained(folder)
    (folder / "config.json").write_text(config)


def _without(*names):
    def damage(folder):
        clip(folder)
        for name in names:
            (folder / name).unlink()

    return damage


def _cut(folder):
    siglip(folder)
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])


def _larger_vocabulary(folder):
    siglip(folder)
    value = json.loads((folder / "tokenizer.json").read_text())
    value["model"]["vocab"]["a"] = 99
    (folder / "tokenizer.json").write_text(json.dumps(value))


def _needs_sentencepiece(folder):
    siglip(folder)
    path = folder / "tokenizer_config.json"
    path.write_text(
        json.dumps({**json.loads(path.read_text()), "tokenizer_class": "SiglipTokenizer"})
    )


@pytest.mark.parametrize(
    "make, message",
    [
        (_other_family, "its model_type is 'bert'; clip, siglip, siglip2 are evaluated"),
        (_one_tower, r"\d+ of its weights are not there, such as "),
        (_without("preprocessor_config.json"), ""),
        (_without("tokenizer.json", "tokenizer_config.json"), ""),
        (_without("model.safetensors"), ""),
        (_cut, ""),
        (_larger_vocabulary, "its tokenizer gives id 99, of 7 known"),
        (_needs_sentencepiece, ""),
        (lambda folder: clip(folder, eos_token_id=5), "ends no text with .*eos_token_id=5"),
        (lambda folder: (folder / "config.json").write_text("{"), ""),
        (lambda folder: (folder / "config.json").write_text("{}"), ""),
    ],
)
def test_what_cannot_be_loaded_is_named_in_a_line(tmp_path, make, message):
    make(tmp_path)
    with pytest.raises(ValueError, match=f"transformers cannot load .*: .*{message}") as caught:
        load(str(tmp_path))
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_without_transformers_the_remedy_is_named(tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text("{}")
    monkeypatch.setitem(sys.modules, "transformers", None)
    for source in (str(tmp_path), "hf:openai/clip-vit-base-patch32"):
        with pytest.raises(ValueError, match=r"pip install 'hnpretrain\[hf\]'"):
            load(source)


def test_a_name_of_the_hub(tmp_path, monkeypatch):
    """transformers itself finds it; here, in a folder beside us."""
    siglip(tmp_path / "some/siglip")
    monkeypatch.chdir(tmp_path)
    loaded = load("hf:some/siglip")
    assert loaded.name == "some/siglip"
    assert loaded.tokenizer(["a cat"]).tolist() == [[3, 4, 2, *[0] * 7]]


def test_a_hugging_face_model_is_not_exported(tmp_path):
    clip(tmp_path)
    with pytest.raises(ValueError, match="a model of Hugging Face, which open_clip does not load"):
        export(str(tmp_path), str(tmp_path / "export"))
    assert not (tmp_path / "export").exists()
    with pytest.raises(ValueError, match="it holds no averages"):
        load(str(tmp_path), ema=True)


# open_clip's own


def tiny_folder(folder, preprocess=None, name=WEIGHTS_NAME):
    """A folder as open_clip's users push it to the hub; its weights in the file of that name."""
    torch.manual_seed(0)
    built = build(ModelSettings(config=TINY))
    folder.mkdir(parents=True, exist_ok=True)
    if name.endswith(".bin"):
        weights = built.model.state_dict()
        torch.save({**weights, "logit_scale": weights["logit_scale"].squeeze()}, folder / name)
    else:
        write_weights(built.model.state_dict(), folder, name)
    write_config(built, folder)
    config = json.loads((folder / CONFIG_NAME).read_text())
    config["preprocess_cfg"] |= preprocess or {}
    (folder / CONFIG_NAME).write_text(json.dumps(config))
    return built


@pytest.mark.parametrize(
    "name",
    [WEIGHTS_NAME, "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin"],
)
def test_an_open_clip_folder_of_others(tmp_path, name):
    statistics = {"mean": [0.5] * 3, "std": [0.25] * 3, "resize_mode": "squash"}
    built = tiny_folder(tmp_path, statistics, name)
    (tmp_path / "config.json").write_text("{}")  # a folder may be both; open_clip's comes first
    loaded = load(str(tmp_path))
    tokens = built.tokenizer(["a cat"])
    with torch.no_grad():
        torch.testing.assert_close(
            loaded.model.encode_text(tokens), built.model.eval().encode_text(tokens)
        )
    _normalised(loaded.preprocess_val, statistics["mean"], statistics["std"])


@pytest.mark.parametrize("content", [b"", b"junk" * 99])
def test_a_damaged_bin_is_named(tmp_path, content):
    tiny_folder(tmp_path, name="open_clip_pytorch_model.bin")
    (tmp_path / "open_clip_pytorch_model.bin").write_bytes(content)
    with pytest.raises(ValueError, match=r"open_clip_pytorch_model\.bin is damaged: it is cut, or"):
        load(str(tmp_path))


def test_an_open_clip_model_of_the_hub(tmp_path, monkeypatch):
    """Only one file of weights is fetched."""
    name = "open_clip_pytorch_model.bin"
    built = tiny_folder(tmp_path, name=name)
    asked = []

    def snapshot(repository, allow_patterns):
        asked.append((repository, allow_patterns[0]))
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    loaded = load("hf-hub:some/clip")
    assert asked[-1] == ("some/clip", name)
    tokens = built.tokenizer(["a cat"])
    with torch.no_grad():
        torch.testing.assert_close(
            loaded.model.encode_text(tokens), built.model.eval().encode_text(tokens)
        )
    (tmp_path / CONFIG_NAME).unlink()
    with pytest.raises(ValueError, match=r"has no open_clip_config\.json; is it one for hf:some"):
        load("hf-hub:some/clip")


def _normalised(transform, mean, std):
    """Whether a white and a black picture come out as (1 - mean) / std and -mean / std."""
    for value in (0, 255):
        got = transform(Image.new("RGB", (32, 32), (value,) * 3))
        expected = (value / 255 - torch.tensor(mean)) / torch.tensor(std)
        torch.testing.assert_close(got.mean((1, 2)), expected, rtol=0, atol=1e-4)


def _tagged(tmp_path, monkeypatch, arch, tag, config=None):
    """A tiny architecture whose tag has these properties; nothing is downloaded."""
    (tmp_path / "configs").mkdir(exist_ok=True)
    (tmp_path / f"configs/{arch}.json").write_text(json.dumps({**TINY, **(config or {})}))
    open_clip.add_model_config(tmp_path / "configs")
    weights = build(ModelSettings(config=TINY)).model.state_dict()
    file = tmp_path / "file.pt"
    torch.save({**weights, "logit_scale": weights["logit_scale"].squeeze()}, file)
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, arch, {"tag": {**tag, "url": "nowhere"}})
    monkeypatch.setattr(open_clip.factory, "download_pretrained", lambda *_, **__: str(file))


@pytest.mark.parametrize(
    "arch, tag",
    [
        ("ViT-B-16-SigLIP", "webli"),
        ("ViT-B-32", "openai"),
        ("coca_ViT-B-32", "laion2b_s13b_b90k"),
        ("MobileCLIP-S1", "datacompdr"),
    ],
)
def test_pixels_are_normalised_as_the_tag_says(tmp_path, monkeypatch, arch, tag):
    """SigLIP's mean is 0.5, OpenAI's is not, and MobileCLIP's is 0."""
    known = dict(open_clip.get_pretrained_cfg(arch, tag))
    _tagged(tmp_path, monkeypatch, "tiny-normalised", known)
    loaded = load("tiny-normalised:tag")
    _normalised(loaded.preprocess_val, known["mean"], known["std"])
    assert loaded.model.visual.preprocess_cfg["interpolation"] == known["interpolation"]


def test_quick_gelu_is_switched_on_where_the_tag_has_it(tmp_path, monkeypatch):
    """open_clip 3.3 itself only warns, of its own OpenAI weights too."""
    _tagged(tmp_path, monkeypatch, "tiny-gelu", {"quick_gelu": True})
    with pytest.warns(UserWarning, match="QuickGELU mismatch"):
        theirs = open_clip.create_model("tiny-gelu", pretrained="tag")
    assert not any(isinstance(each, QuickGELU) for each in theirs.modules())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ours = load("tiny-gelu:tag")
    assert sum(isinstance(each, QuickGELU) for each in ours.model.modules()) == 2  # one a tower
    assert ours.config["quick_gelu"]


def test_quick_gelu_for_weights_without_it_is_refused(tmp_path, monkeypatch):
    _tagged(tmp_path, monkeypatch, "tiny-act", {})
    _tagged(tmp_path, monkeypatch, "tiny-act-quickgelu", {}, {"quick_gelu": True})
    message = "trained with GELU, not QuickGELU; take tiny-act:tag$"
    with pytest.raises(ValueError, match=message):
        load("tiny-act-quickgelu:tag")
    assert not any(isinstance(each, QuickGELU) for each in load("tiny-act:tag").model.modules())
    # A tag that open_clip lists for the other architecture alone.
    with pytest.raises(ValueError, match="take ViT-B-32:laion2b_s34b_b79k"):
        load("ViT-B-32-quickgelu:laion2b_s34b_b79k")


def test_open_clip_s_own_tags_need_no_refusal():
    """The one tag that says GELU of a QuickGELU architecture has no other, and was trained so."""
    refused = []
    for arch, tags in open_clip.pretrained._PRETRAINED.items():
        config = open_clip.get_model_config(arch)
        for tag, properties in tags.items():
            if config.get("quick_gelu") and not properties.get("quick_gelu"):
                refused.append(f"{arch}:{tag}")
    assert refused == ["roberta-ViT-B-32:laion2b_s12b_b32k"]
