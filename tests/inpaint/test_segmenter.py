"""CLIPSeg of random weights, made here and saved; and the settings that choose masks."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from hnpretrain.config import load
from hnpretrain.inpaint import segmenter
from hnpretrain.inpaint.masks import BadMask, InstanceMasks, MaskFolder
from hnpretrain.inpaint.photos import Photo
from hnpretrain.inpaint.segmenter import ClipSegMasks, MaskSettings, masks_of
from hnpretrain.shards.images import decode_image
from tests.support.shards import photo_samples

TOWER = {
    **{"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 3},
    "num_attention_heads": 2,
}


def save_clipseg(folder):
    """As `save_pretrained` leaves it, with its processor: photos are 64 x 64 to it."""
    letters = [chr(97 + n) + end for n in range(26) for end in ("", "</w>")]
    vocabulary = {
        token: n for n, token in enumerate([*letters, "<|startoftext|>", "<|endoftext|>"])
    }
    tokenizer = transformers.CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=24)
    config = transformers.CLIPSegConfig(
        projection_dim=8,
        reduce_dim=8,
        extract_layers=[0, 1],
        decoder_num_attention_heads=2,
        decoder_intermediate_size=16,
        text_config={
            **{**TOWER, "vocab_size": len(vocabulary), "max_position_embeddings": 24},
            **{"eos_token_id": tokenizer.eos_token_id, "bos_token_id": tokenizer.bos_token_id},
        },
        vision_config={**TOWER, "image_size": 64, "patch_size": 8},
    )
    torch.manual_seed(0)
    model = transformers.CLIPSegForImageSegmentation(config)
    for parameter in model.parameters():  # so that photos and words show in the answers
        torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    images = transformers.ViTImageProcessor(size={"height": 64, "width": 64})
    transformers.CLIPSegProcessor(images, tokenizer).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return save_clipseg(tmp_path_factory.mktemp("models") / "clipseg")


@pytest.fixture(scope="module")
def photo():
    return as_photo(photo_samples(1)[0])


def as_photo(sample):
    return Photo(sample.key, sample.image, "jpg", sample.captions)


def size_of(photo):
    return decode_image(photo.image, 1_000_000).size


def find(masks, photo, noun="cake"):
    return masks.things(photo, size_of(photo), noun, [])


def clipseg(path, **changes):
    settings = {"threshold": 0.5, "least_component": 0.01, "device": "cpu", **changes}
    return masks_of(MaskSettings("clipseg", path, **settings))


def expected_probability(path, photo, prompt):
    """By transformers' own example, then resized by Pillow."""
    model = transformers.CLIPSegForImageSegmentation.from_pretrained(path)
    processor = transformers.AutoProcessor.from_pretrained(path)
    image = decode_image(photo.image, 1_000_000)
    inputs = processor(text=[prompt], images=[image], padding=True, return_tensors="pt")
    with torch.no_grad():
        probability_HW = model(**inputs).logits.squeeze().sigmoid().numpy()
    assert probability_HW.shape == (64, 64)
    return np.asarray(Image.fromarray(probability_HW).resize(image.size, Image.Resampling.BILINEAR))


def test_things_are_the_connected_regions_of_what_the_model_answers(saved, photo):
    probability_HW = expected_probability(saved, photo, "a photo of a cake")
    threshold = float(np.quantile(probability_HW, 0.8))
    found = find(clipseg(saved, threshold=threshold, least_component=0), photo)
    assert {thing.category for thing in found} == {"cake"}
    union_HW = np.sum([thing.mask_HW for thing in found], axis=0)
    assert union_HW.max() == 1  # no two share a pixel
    # Pixels of the threshold's own probability may differ by rounding.
    assert (union_HW == (probability_HW >= threshold)).mean() > 0.999
    areas = [thing.mask_HW.sum() for thing in found]
    assert areas == sorted(areas, reverse=True)

    least = (areas[1] - 0.5) / union_HW.size
    large = find(clipseg(saved, threshold=threshold, least_component=least), photo)
    assert [thing.mask_HW.sum() for thing in large] == [a for a in areas if a >= areas[1]]
    assert len(large) < len(found)


def test_regions_that_touch_at_corners_are_one_thing(monkeypatch, saved, photo):
    width, height = size_of(photo)
    probability_HW = np.zeros((height, width), np.float32)
    probability_HW[10:30, 10:30] = probability_HW[30:50, 30:50] = 0.5
    probability_HW[100:150, 100:150] = 0.9
    probability_HW[200:202, 200:202] = 1.0  # noise
    monkeypatch.setattr(segmenter._Model, "probability", lambda *_: probability_HW)
    found = find(clipseg(saved, least_component=0.005), photo)
    assert [int(thing.mask_HW.sum()) for thing in found] == [2500, 800]
    assert found[1].mask_HW[10:50, 10:50].sum() == 800
    assert [int(t.mask_HW.sum()) for t in find(clipseg(saved, threshold=0.6), photo)] == [2500]
    assert find(clipseg(saved, least_component=0.9), photo) == []


def test_the_prompt_and_the_photo_decide(saved, photo):
    model = segmenter._Model(saved, torch.device("cpu"))
    other = as_photo(photo_samples(2)[1])
    answers = []
    for which in (photo, other):
        for prompt in ("a cake", "a dog"):
            answers.append(model.probability(which, size_of(which), prompt))
            expected = expected_probability(saved, which, prompt)
            np.testing.assert_allclose(answers[-1], expected, atol=1e-6)
    assert np.abs(answers[0] - answers[1]).max() > 1e-5
    assert abs(answers[0].mean() - answers[2].mean()) > 1e-4


def test_each_noun_of_a_photo_is_asked_once(monkeypatch, saved, photo):
    asked = []

    def probability(_, photo, size, prompt):
        asked.append((photo.key, prompt))
        return np.tri(*size[::-1], dtype=np.float32)

    monkeypatch.setattr(segmenter._Model, "probability", probability)
    masks = clipseg(saved, prompt="{noun}, {noun}!")
    other = as_photo(photo_samples(2)[1])
    one, two = find(masks, photo), find(masks, photo)
    assert (one[0].mask_HW == two[0].mask_HW).all()
    for which in (photo, other, photo):
        find(masks, which, "dog")
    assert asked == [
        (photo.key, "cake, cake!"),
        *((key, "dog, dog!") for key in (photo.key, other.key, photo.key)),
    ]


def test_all_of_the_photo_is_no_thing(saved, photo):
    masks = clipseg(saved, threshold=1e-9)
    for _ in range(2):
        with pytest.raises(BadMask, match="full_mask"):
            find(masks, photo)
    assert find(clipseg(saved, threshold=1 - 1e-9), photo) == []


def test_twice_gives_the_same_and_a_long_prompt_is_cut(saved, photo):
    long = "a very long word " * 30
    one, two = (find(clipseg(saved, threshold=0.4), photo, long) for _ in range(2))
    assert len(one) == len(two)
    assert all((a.mask_HW == b.mask_HW).all() for a, b in zip(one, two, strict=True))


def test_a_folder_that_is_not_there_is_told_at_once(tmp_path):
    for path in (str(tmp_path / "none"), "./none", "models/of/mine"):
        with pytest.raises(ValueError, match=r"masks\.path=.*none|mine' is not a folder"):
            clipseg(path)


def drop(name):
    return lambda folder: (folder / name).unlink()


def another_kind(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "bert"}))


def cut_weights(folder):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])


def without_decoder(folder):
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    kept = {name: value for name, value in tensors.items() if not name.startswith("decoder.")}
    save_file(kept, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (another_kind, "its model_type is 'bert', not 'clipseg'"),
        (drop("config.json"), ""),
        (drop("model.safetensors"), ""),
        (drop("tokenizer.json"), "tokenizer knows no words"),
        (drop("processor_config.json"), ""),
        (lambda folder: (folder / "config.json").write_text("{"), ""),
        (cut_weights, "weights are damaged"),
        (without_decoder, "of its weights are not there, such as decoder."),
    ],
)
def test_what_is_no_whole_clipseg_is_told_in_a_line(tmp_path, photo, monkeypatch, change, message):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    path = save_clipseg(tmp_path / "model")
    change(tmp_path / "model")
    with pytest.raises(ValueError, match=r"masks\.path=.* cannot load it as CLIPSeg: ") as caught:
        find(clipseg(path), photo)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_model_that_answers_nan_is_refused(tmp_path, photo):
    path = save_clipseg(tmp_path / "model")
    model = transformers.CLIPSegForImageSegmentation.from_pretrained(path)
    torch.nn.init.constant_(model.decoder.film_mul.weight, float("nan"))
    model.save_pretrained(path)
    with pytest.raises(ValueError, match="the model answers NaN"):
        find(clipseg(path), photo)


def test_devices_that_are_not_there(saved):
    with pytest.raises(ValueError, match=r"masks\.device='tpv': auto, cpu, cuda or cuda:NUMBER"):
        clipseg(saved, device="tpv")
    absent = f"cuda:{torch.cuda.device_count()}"
    with pytest.raises(ValueError, match=rf"masks\.device='{absent}': torch sees"):
        clipseg(saved, device=absent)


def test_settings_choose_the_masks(tmp_path, saved):
    assert isinstance(masks_of(MaskSettings()), InstanceMasks)
    Image.new("L", (4, 4)).save(tmp_path / "a.dog.png")
    assert isinstance(masks_of(MaskSettings("folder", str(tmp_path))), MaskFolder)
    yaml = tmp_path / "masks.yaml"
    yaml.write_text(f"kind: clipseg\npath: {saved}\nprompt: '{{noun}}'\n")
    settings = load(MaskSettings, yaml, ["threshold=0.3"])
    assert (settings.threshold, settings.prompt) == (0.3, "{noun}")
    assert isinstance(masks_of(settings), ClipSegMasks)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "instance"}, "did you mean 'instances'"),
        ({"kind": "folder"}, "masks.path is empty: masks.kind=folder needs a folder of PNGs"),
        ({"kind": "clipseg"}, "masks.path is empty: masks.kind=clipseg needs a CLIPSeg model"),
        ({"threshold": 0.0}, "masks.threshold=0.0"),
        ({"threshold": float("nan")}, "masks.threshold=nan"),
        ({"prompt": "a photo"}, "write {noun} where"),
        ({"least_component": 1.0}, "masks.least_component=1.0"),
    ],
)
def test_wrong_settings(changes, message):
    with pytest.raises(ValueError, match=message):
        MaskSettings(**changes)


def test_settings_photos_and_masks_load_nothing_heavy():
    code = (
        "import hnpretrain.inpaint.segmenter, sys\n"
        "print(*{name.split('.')[0] for name in sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = {"torch", "transformers", "diffusers", "cv2", "spacy", "pyarrow", "open_clip"}
    assert not set(done.stdout.split()) & heavy
