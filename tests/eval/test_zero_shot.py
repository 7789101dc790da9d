"""Zero-shot classification: against open_clip's own code, by hand, and both forms of the data."""

import io
import tarfile

import open_clip
import pytest
import torch
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg
from PIL import Image
from torch import nn
from torch.nn import functional

from hnpretrain.eval.benchmarks import zero_shot
from hnpretrain.eval.benchmarks.zero_shot import (
    ZERO_SHOT,
    ZERO_SHOT_SIMPLE,
    class_ranks,
    class_vectors,
)
from hnpretrain.eval.encode import Encoder
from hnpretrain.eval.results import Withheld
from hnpretrain.eval.scorers import Cosine, Random


def write_folders(folder, paint, classes):
    """Class folders of images of the given colours."""
    for name, colors in classes.items():
        (folder / name).mkdir(parents=True)
        for number, color in enumerate(colors):
            (folder / name / f"{number}.png").write_bytes(paint(color))
    return folder


def write_tar(path, samples):
    """Members (name, bytes) as webdataset writes them."""
    with tarfile.open(path, "w") as tar:
        for name, data in samples:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


CLASSES = {
    "blue_car": ["blue", "blue", "red"],
    "green_car": ["green"],
    "red_car": ["red", "red", "red", "yellow"],
}


@pytest.fixture
def folders(tmp_path, paint):
    return write_folders(tmp_path / "cars", paint, CLASSES)


@pytest.fixture
def shards(tmp_path, paint):
    """The same images and classes as CLIP_benchmark stores them."""
    data = tmp_path / "wds_cars"
    (data / "test").mkdir(parents=True)
    samples = [
        (f"s{label}{number}", paint(color), str(label))
        for label, colors in enumerate(CLASSES.values())
        for number, color in enumerate(colors)
    ]
    for shard, part in enumerate((samples[:3], samples[3:])):
        members = [
            (f"{key}.{extension}", content)
            for key, image, label in part
            for extension, content in (("cls", label.encode()), ("png", image), ("json", b"{}"))
        ]
        write_tar(data / "test" / f"{shard}.tar", members)
    (data / "test" / "nshards.txt").write_text("2\n")
    (data / "classnames.txt").write_text("blue car\ngreen car\nred car\n")
    return data


def test_scores_by_hand_in_both_forms(folders, shards, color_encoder):
    # The red photo of a blue car is wrong. Yellow is nearer to red (.79) than to green (.75).
    expected = {"acc1": (7 / 8, 8), "mean_per_class_recall": ((2 / 3 + 1 + 1) / 3, 8)}
    results = [ZERO_SHOT.load(data, None, False) for data in (folders, shards)]
    for name, result in zip(
        ("zero_shot/cars", "zero_shot/wds_cars"),
        [each.run(color_encoder, Cosine()) for each in results],
        strict=True,
    ):
        assert (result.dataset, result.task) == (name, "zeroshot_classification")
        # There are three classes: the right one is among the first five whatever happens.
        assert [score.name for score in result.scores] == list(expected)
        for score in result.scores:
            value, count = expected[score.name]
            assert (score.accuracy.value, score.accuracy.count) == (pytest.approx(value), count)
            assert score.chance == pytest.approx(1 / 3)
        assert result.notes == ("8 images, 3 classes, 80 templates (open_clip's OPENAI_IMAGENET)",)
        right = result.outcomes["acc1"].margins > 0
        assert right.flatten().tolist() == [True, True, False, True, True, True, True, True]
        assert result.groups["class"][:4] == ["blue car"] * 3 + ["green car"]
    assert results[0].items[0].name == "blue_car/0.png"
    assert results[1].items[0].name == "0.tar/s00"


def test_a_random_model_agrees_with_open_clip(tmp_path):
    torch.manual_seed(0)
    model = CLIP(
        16,
        CLIPVisionCfg(layers=1, width=64, head_width=32, patch_size=8, image_size=16),
        CLIPTextCfg(context_length=24, width=32, heads=2, layers=1),
    ).eval()
    # As it is made, a caption's feature is that of its last token, whatever the words are.
    for weight in model.parameters():
        nn.init.normal_(weight, std=0.3)
    tokenizer = open_clip.SimpleTokenizer(context_length=24)
    classes = ["tench", "great white shark", "hen", "sea_lion", "gold  fish", "Tree Frog"]

    def to_pixels(image):
        pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
        return pixels.view(16, 16, 3).permute(2, 0, 1).float() / 25 - 5

    # Coarse patterns: to a model that knows nothing, fine noise all looks alike.
    generator = torch.Generator().manual_seed(1)
    coarse = torch.randint(0, 256, (60, 2, 2, 3), generator=generator, dtype=torch.uint8)
    drawn = coarse.repeat_interleave(8, dim=1).repeat_interleave(8, dim=2).numpy()
    labels = [min(number % 7, 4) for number in range(60)]  # the sixth class has no image
    for number, (pixels, label) in enumerate(zip(drawn, labels, strict=True)):
        folder = tmp_path / "noise" / str(label)
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / f"{number:02}.png")
    (tmp_path / "noise" / "classnames.txt").write_text("\n".join(classes))

    encoder = Encoder(model, to_pixels, tokenizer, batch_size=16, threads=1)
    templates = open_clip.SIMPLE_IMAGENET_TEMPLATES
    with torch.no_grad():
        weights_DC = open_clip.build_zero_shot_classifier(model, tokenizer, classes, templates)
        images = torch.stack([to_pixels(Image.fromarray(pixels)) for pixels in drawn])
        logits_NC = functional.normalize(model.encode_image(images), dim=-1) @ weights_DC
    torch.testing.assert_close(class_vectors(encoder, classes, templates), weights_DC.T)

    result = ZERO_SHOT_SIMPLE.load(tmp_path / "noise", None, False).run(encoder, Cosine())
    label_N = torch.tensor(labels)
    for k in (1, 5):
        right_N = (logits_NC.topk(k).indices == label_N[:, None]).any(dim=1)
        assert result[f"acc{k}"].value == pytest.approx(right_N.float().mean().item())
        assert 0 < result[f"acc{k}"].value < 1
    right_N = logits_NC.argmax(dim=1) == label_N
    recalls = [right_N[label_N == label].float().mean() for label in range(5)]
    assert result["mean_per_class_recall"].value == pytest.approx(sum(recalls).item() / 5)
    assert "1 classes have no image: not in mean_per_class_recall" in result.notes


def test_ranks_agree_with_a_direct_loop(monkeypatch):
    monkeypatch.setattr(zero_shot, "_CHUNK", 7)
    generator = torch.Generator().manual_seed(2)
    image_ND = functional.normalize(torch.randn(50, 8, generator=generator), dim=-1)
    class_CD = functional.normalize(torch.randn(9, 8, generator=generator), dim=-1)
    class_CD[4] = class_CD[2]
    label_N = torch.randint(0, 9, (50,), generator=generator)
    ranks = class_ranks(image_ND, class_CD, label_N)
    for image_D, label, higher, rank in zip(
        image_ND, label_N.tolist(), ranks.higher, ranks.rank, strict=True
    ):
        own = (image_D.double() @ class_CD[label].double()).float()
        others = [
            (image_D.double() @ class_CD[other].double()).float()
            for other in range(9)
            if other != label
        ]
        assert higher == sum(other > own for other in others)
        assert rank == sum(other >= own for other in others)
        assert rank - higher == (label in (2, 4))


def test_classes_of_one_name_tie(tmp_path, paint, color_encoder):
    data = write_folders(tmp_path / "x", paint, {"a": ["red"], "b": ["blue"], "c": ["red"]})
    (data / "classnames.txt").write_text("red\nblue\nred\n")
    result = ZERO_SHOT.load(data, None, False).run(color_encoder, Cosine())
    assert result["acc1"].value == pytest.approx(1 / 3)
    assert [score.ties for score in result.scores] == [2, 2]
    assert "1 names are of several classes (red): always a tie, counted as wrong" in result.notes


def test_top_five(tmp_path, paint, color_encoder):
    # "dark" is no word that the model knows: it is nearest to all colours' mean, not to green.
    classes = {"a": ["red"], "b": ["blue"], "c": ["green"], "d": ["yellow"], "e": ["green"]}
    data = write_folders(tmp_path / "x", paint, classes)
    (data / "classnames.txt").write_text("red\nblue\ngreen\nyellow\ndark\n")
    result = ZERO_SHOT.load(data, None, False).run(color_encoder, Cosine())
    assert [score.name for score in result.scores] == ["acc1", "acc5", "mean_per_class_recall"]
    assert result["acc5"].value == 1
    assert result["acc1"].value == pytest.approx(4 / 5)
    assert result.scores[1].chance == 1


def test_templates_of_the_data(folders, color_encoder):
    def texts(kind):
        templates = kind.load(folders, None, False).templates
        return [template("red car") for template in templates.of_name]

    assert texts(ZERO_SHOT) == [each("red car") for each in open_clip.OPENAI_IMAGENET_TEMPLATES]
    assert len(texts(ZERO_SHOT)) == 80
    assert len(texts(ZERO_SHOT_SIMPLE)) == 7
    path = folders / "zeroshot_classification_templates.txt"
    path.write_text("a photo of {c}.\r\nthis {} is {0}\n")
    assert texts(ZERO_SHOT) == ["a photo of red car.", "this red car is {0}"]
    assert texts(ZERO_SHOT_SIMPLE) == texts(ZERO_SHOT)
    result = ZERO_SHOT.load(folders, None, False).run(color_encoder, Cosine())
    assert result.notes[0].endswith("2 templates (of zeroshot_classification_templates.txt)")
    path.write_text("a photo of {c}.\na photo\n")
    with pytest.raises(ValueError, match="line 2: a template needs"):
        ZERO_SHOT.load(folders, None, False)
    path.write_text("a photo of {c}.\n\na photo of a {c}.\n")
    with pytest.raises(ValueError, match="line 2 is empty"):
        ZERO_SHOT.load(folders, None, False)


def test_names_of_classes(tmp_path, paint):
    wordnet = {f"n{number:08}": ["red"] for number in range(1000)}
    imagenet = ZERO_SHOT.load(write_folders(tmp_path / "in", paint, wordnet), None, False)
    assert imagenet.classes == tuple(open_clip.IMAGENET_CLASSNAMES)
    few = write_folders(tmp_path / "few", paint, dict(list(wordnet.items())[:9]))
    with pytest.raises(ValueError, match=r"lacks classnames\.txt: .* such as 'n00000000'"):
        ZERO_SHOT.load(few, None, False)

    # Numbers are lines, in whatever order the folders stand.
    numbers = write_folders(tmp_path / "v2", paint, {name: ["red"] for name in ("0", "10", "2")})
    with pytest.raises(ValueError, match=r"lacks classnames\.txt: .* such as '0'"):
        ZERO_SHOT.load(numbers, None, False)
    (numbers / "classnames.txt").write_text("\n".join(f"class {n}" for n in range(11)))
    loaded = ZERO_SHOT.load(numbers, None, False)
    assert [(item.name, item.label) for item in loaded.items] == [
        ("0/0.png", 0),
        ("10/0.png", 10),
        ("2/0.png", 2),
    ]
    (numbers / "classnames.txt").write_text("\n".join(f"class {n}" for n in range(10)))
    with pytest.raises(ValueError, match="10 names, and none for class folder '10'"):
        ZERO_SHOT.load(numbers, None, False)


def test_missing_images(folders, shards, color_encoder):
    (folders / "red_car" / "0.png").unlink()
    (folders / "red_car" / "0.png").symlink_to(folders / "gone.png")
    with pytest.raises(Withheld, match=r"1 of 8 images .*red_car/0\.png: no such file"):
        ZERO_SHOT.load(folders, None, False).run(color_encoder, Cosine())
    (folders / "green_car" / "0.png").write_bytes(b"no image")
    result = ZERO_SHOT.load(folders, None, True).run(color_encoder, Cosine())
    assert (result["acc1"].count, result.left_out) == (6, 2)
    assert result["mean_per_class_recall"].value == pytest.approx((2 / 3 + 1) / 2)
    assert any(note.startswith("PARTIAL: 2 images left out") for note in result.notes)

    write_tar(shards / "test" / "0.tar", [("a.cls", b"0"), ("a.png", b"no image")])
    with pytest.raises(Withheld, match=r"1 of 6 images .*0\.tar sample 'a' cannot be read"):
        ZERO_SHOT.load(shards, None, False).run(color_encoder, Cosine())


def test_other_scorers_and_image_folders_are_refused(folders, color_encoder):
    with pytest.raises(ValueError, match="takes the scorer cosine, not random"):
        ZERO_SHOT.load(folders, None, False).run(color_encoder, Random())
    with pytest.raises(ValueError, match="zero_shot takes no image folder"):
        ZERO_SHOT.load(folders, folders, False)


def test_malformed_folders_are_one_clear_error(folders, tmp_path):
    with pytest.raises(ValueError, match=r"class folder .*cars holds no image"):
        ZERO_SHOT.load(folders.parent, None, False)
    with pytest.raises(ValueError, match="is not a folder"):
        ZERO_SHOT.load(tmp_path / "gone", None, False)
    with pytest.raises(ValueError, match="holds neither class folders nor tars"):
        ZERO_SHOT.load(folders / "red_car", None, False)
    names = folders / "classnames.txt"
    for content, message in (
        (b"a\nb\n", "has 2 names, and .*cars has 3 class folders"),
        (b"a\n\nb\nc", "line 2 is empty"),
        (b"\na\nb\nc", "line 1 is empty"),
        (b"", "line 1 is empty"),
        (b"a\n\xff", "not a readable text file"),
    ):
        names.write_bytes(content)
        with pytest.raises(ValueError, match=message) as caught:
            ZERO_SHOT.load(folders, None, False)
        assert "classnames.txt" in str(caught.value)


@pytest.mark.parametrize(
    "members, message",
    [
        ([("a.cls", b"0")], "sample 'a' must have one image .* got the members cls"),
        ([("a.png", b"x"), ("a.jpg", b"x"), ("a.cls", b"0")], "must have one image"),
        ([("a.png", b"x")], "sample 'a' has no .cls"),
        ([("a.png", b"x"), ("a.npy", b"0")], "has no .cls .* npy, png"),
        ([("a.png", b"x"), ("a.cls", b"3")], "one of the 3 classes .* got '3'"),
        ([("a.png", b"x"), ("a.cls", b"-1")], "got '-1'"),
        ([("a.png", b"x"), ("a.cls", b"\x80\x04K\x01.")], r"\.cls must be the number"),
        ([("a.png", b"x"), ("a.cls", b"")], "got ''"),
        ([("a.png", b"x"), ("a.cls", b"0")] * 2, r"has the image '0\.tar/a' twice"),
    ],
)
def test_malformed_tars_are_one_clear_error(shards, members, message):
    write_tar(shards / "test" / "0.tar", members)
    with pytest.raises(ValueError, match=message) as caught:
        ZERO_SHOT.load(shards, None, False)
    assert "\n" not in str(caught.value)


def test_broken_tars_are_named(shards, color_encoder):
    path = shards / "test" / "1.tar"
    whole = path.read_bytes()
    loaded = ZERO_SHOT.load(shards, None, False)
    for content in (whole[:2000], whole[: 2 * 512], b"oops" * 999):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"1\.tar cannot be read: not a whole tar"):
            ZERO_SHOT.load(shards, None, False)
    # Cut after it was read: its images are bad ones.
    with pytest.raises(Withheld, match=r"5 of 8 images .*1\.tar sample 's10' cannot be read"):
        loaded.run(color_encoder, Cosine())
    path.unlink()
    with pytest.raises(ValueError, match=r"nshards\.txt counts '2' tars, there are 1"):
        ZERO_SHOT.load(shards, None, False)
    (shards / "test" / "nshards.txt").write_text("1")
    assert len(ZERO_SHOT.load(shards, None, False).items) == 3
    (shards / "classnames.txt").unlink()
    with pytest.raises(ValueError, match=r"lacks classnames\.txt"):
        ZERO_SHOT.load(shards, None, False)


def test_tars_may_lie_in_the_folder_itself(shards):
    for path in (shards / "test").iterdir():
        path.rename(shards / path.name)
    assert len(ZERO_SHOT.load(shards, None, False).items) == 8


def test_a_model_that_knows_nothing_is_at_chance(tmp_path, paint, random_encoder):
    classes = {
        f"thing {label}": [8000 * label + 97 * number for number in range(60)]
        for label in range(10)
    }
    folder = write_folders(tmp_path / "things", paint, classes)
    result = ZERO_SHOT_SIMPLE.load(folder, None, False).run(random_encoder, Cosine())
    for score, chance in zip(result.scores, (1 / 10, 5 / 10, 1 / 10), strict=True):
        assert score.chance == pytest.approx(chance)
        assert abs(score.accuracy.value - chance) < 3 * (chance * (1 - chance) / 600) ** 0.5
