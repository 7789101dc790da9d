"""Masks of COCO instances and of folders, beside COCO's own code and in every broken form."""

import gzip
import io
import json
import pickle

import numpy as np
import pytest
from PIL import Image

from hnpretrain.inpaint.masks import BadMask, InstanceMasks, MaskFolder
from hnpretrain.inpaint.photos import Photo, read_photos
from hnpretrain.inpaint.regions import region_mask
from hnpretrain.shards.schema import Caption
from shard_tools.sources import SourceSettings
from tests.support.shards import PHOTOS

# By pycocotools 2.0.11: a disc in strips, and areas in pixels of instances of the photos.
DISC = {
    "size": [40, 50],
    "counts": "]:5P16K4M2N2N2V12gN000O2O000X10iNN10001N10Z1LkNN3L5Jnd0",
}
AREAS = {
    ("000000000790", "dog"): [1481],
    ("000000000790", "potted plant"): [3081, 2361],
    ("000000000790", "chair"): [1900, 408, 229, 30],
    ("000000000790", "dining table"): [18285],
    ("000000000790", "cake"): [370],  # of three polygons
}


@pytest.fixture(scope="module")
def photos():
    source = SourceSettings("jsonl", str(PHOTOS / "data.jsonl"))
    return {photo.key: photo for photo in read_photos(source, 1_000_000)}


def disc():
    y, x = np.mgrid[:40, :50]
    return ((x - 20) ** 2 + (y - 15) ** 2 < 150) & (x % 7 > 0)


def runs(mask_HW):
    """Run lengths down the columns, those of the ground first."""
    flat = np.concatenate([[False], mask_HW.T.ravel()])
    return np.diff([0, *np.flatnonzero(np.diff(flat)), mask_HW.size]).tolist()


def photo_with(*instances, key="a", **meta):
    return Photo(key, b"", "jpg", (Caption("a dog"),), (), {"instances": list(instances), **meta})


def dog(region, **more):
    return {"category": "dog", "segmentation": region, **more}


SQUARE = [10, 10, 20, 10, 20, 20, 10, 20]


def things(photo, size=(50, 40), categories=("dog",)):
    return InstanceMasks().things(photo, size, "dog", categories)


def area(photo, **changes):
    return [int(thing.mask_HW.sum()) for thing in things(photo, **changes)]


def reason(call, *arguments, **changes):
    with pytest.raises(BadMask) as caught:
        call(*arguments, **changes)
    assert caught.value.detail
    assert "\n" not in str(caught.value)
    return caught.value.reason


# Instances


@pytest.mark.parametrize(("key", "category"), AREAS)
def test_polygons_cover_what_coco_says(photos, key, category):
    found = InstanceMasks().things(photos[key], (340, 224), "it", [category])
    assert {thing.category for thing in found} == {category}
    assert {thing.mask_HW.shape for thing in found} == {(224, 340)}
    assert {thing.mask_HW.dtype for thing in found} == {np.dtype(bool)}
    areas = [int(thing.mask_HW.sum()) for thing in found]
    # COCO's code rounds corners to fifths of a pixel.
    assert areas == pytest.approx(AREAS[key, category], rel=0.01, abs=5)


def test_polygons_lie_in_the_box_that_coco_gives(photos):
    count = 0
    for photo in photos.values():
        size = photo.meta["width"], photo.meta["height"]
        by_category = {}
        for instance in photo.meta["instances"]:
            by_category.setdefault(instance["category"], []).append(instance["bbox"])
        for category, boxes in by_category.items():
            for thing, box in zip(
                InstanceMasks().things(photo, size, "", [category]), boxes, strict=True
            ):
                rows, columns = np.nonzero(thing.mask_HW)
                x, y, width, height = box
                assert x - 0.6 <= columns.min()
                assert columns.max() + 1 <= x + width + 0.6
                assert y - 0.6 <= rows.min()
                assert rows.max() + 1 <= y + height + 0.6
                count += 1
    assert count == 426


def test_a_pixel_belongs_to_a_polygon_if_its_center_does():
    assert area(photo_with(dog([SQUARE]))) == [100]
    (thing,) = things(photo_with(dog([[9.6, 9.4, 20.4, 9.4, 20.4, 20.6, 9.6, 20.6]])))
    expected = np.zeros((40, 50), bool)
    expected[9:21, 10:20] = True
    assert (thing.mask_HW == expected).all()


def test_fragments_are_one_thing_and_may_overlap():
    (thing,) = things(photo_with(dog([SQUARE, [15, 15, 25, 15, 25, 25, 15, 25]])))
    assert thing.mask_HW.sum() == 175


def test_only_what_the_noun_may_name_is_given_in_its_order():
    photo = photo_with(
        dog([[0, 0, 5, 0, 5, 5, 0, 5]]), {"category": "Cat", "polygons": [SQUARE]}, dog([SQUARE])
    )
    assert area(photo) == [25, 100]
    assert [t.category for t in things(photo, categories=("cat", "dog"))] == ["dog", "Cat", "dog"]
    assert things(photo, categories=("car",)) == []
    assert things(photo, categories=()) == []


def test_polygons_partly_outside_are_clipped():
    photo = photo_with(dog([[-1e6, 30, 10, 30, 10, 1e6, -1e6, 1e6]]))
    (thing,) = things(photo)
    expected = np.zeros((40, 50), bool)
    expected[30:, :10] = True
    assert (thing.mask_HW == expected).all()


@pytest.mark.parametrize(
    ("region", "expected"),
    [
        ([[60, 10, 70, 10, 70, 20]], "outside"),
        ([SQUARE, [-9, -9, -1, -9, -1, -1]], "outside"),
        ([[10, 10, 20, 20]], "broken_mask"),
        ([SQUARE[:-1]], "broken_mask"),
        ([[float("nan"), *SQUARE[1:]]], "broken_mask"),
        ([[float("inf"), *SQUARE[1:]]], "broken_mask"),
        ([[10**400, *SQUARE[1:]]], "broken_mask"),
        ([[1e300, *SQUARE[1:]]], "broken_mask"),
        ([["10", *SQUARE[1:]]], "broken_mask"),
        ([[True, *SQUARE[1:]]], "broken_mask"),
        (SQUARE, "broken_mask"),  # a polygon, not a list of them
        ([[10.1, 10.1, 10.2, 10.1, 10.2, 10.2]], "empty_mask"),
        ([], "empty_mask"),
        ([[0, 0, 50, 0, 50, 40, 0, 40]], "full_mask"),
        (None, "no_mask"),
        ("polygon", "no_mask"),
    ],
)
def test_polygons_that_cannot_be_used(region, expected):
    # One of two dogs is enough: nobody knows how many there are.
    assert reason(things, photo_with(dog([SQUARE]), dog(region))) == expected
    assert things(photo_with(dog(region)), categories=("cat",)) == []


def test_a_crowd_is_of_nobody_knows_how_many():
    photo = photo_with(
        dog([SQUARE]), dog(DISC, iscrowd=1), {"category": "cat", "polygons": [SQUARE]}
    )
    assert reason(things, photo) == "crowd"
    assert area(photo, categories=("cat",)) == [100]


def test_masks_are_scaled_from_the_annotated_size():
    rectangle = [100, 100, 300, 100, 300, 200, 100, 200]
    photo = photo_with(dog([rectangle]), width=500, height=400)
    (thing,) = things(photo)
    expected = np.zeros((40, 50), bool)
    expected[10:20, 10:30] = True
    assert (thing.mask_HW == expected).all()
    # Rounded sides are no other shape.
    assert area(photo_with(dog([SQUARE]), width=640, height=427), size=(336, 224))
    large = region_mask(DISC, (50, 40), (150, 120))
    assert (large == np.kron(disc(), np.ones((3, 3), bool))).all()
    assert (
        region_mask({"size": [120, 150], "counts": runs(large)}, (150, 120), (50, 40)) == disc()
    ).all()


@pytest.mark.parametrize("size", [(400, 500), (500, 500), (1, 4)])
def test_a_photo_that_was_cropped_or_turned_is_refused(size):
    width, height = size
    assert reason(things, photo_with(dog([SQUARE]), width=width, height=height)) == "mask_size"


@pytest.mark.parametrize("size", [("500", 400), (500.0, 400), (0, 0), (500, None)])
def test_a_size_that_is_none_is_refused(size):
    width, height = size
    photo = photo_with(dog([SQUARE]), width=width, height=height)
    assert reason(things, photo) == "broken_instances"


# Run lengths


def test_run_lengths_compressed_or_not():
    assert (region_mask(DISC, (50, 40), (50, 40)) == disc()).all()
    plain = {"size": [40, 50], "counts": runs(disc())}
    assert (region_mask(plain, (50, 40), (50, 40)) == disc()).all()
    corner = np.zeros((40, 50), bool)
    corner[0, 0] = corner[-1, -1] = True
    assert runs(corner) == [0, 1, 1998, 1]
    found = region_mask({"size": [40, 50], "counts": runs(corner)}, (50, 40), (50, 40))
    assert (found == corner).all()
    assert area(photo_with(dog(DISC, iscrowd=0))) == [416]


COUNTS = runs(disc())


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"counts": COUNTS[:-1]}, "broken_mask"),  # cut
        ({"counts": [*COUNTS, 1]}, "broken_mask"),  # too long
        ({"counts": DISC["counts"][:-3]}, "broken_mask"),  # cut between numbers or within one
        ({"counts": DISC["counts"][:-1]}, "broken_mask"),
        ({"counts": DISC["counts"] + "1"}, "broken_mask"),
        ({"counts": "o" * 10_000 + "0"}, "broken_mask"),  # a number without end
        ({"counts": DISC["counts"] + "\u00e9"}, "broken_mask"),
        ({"counts": DISC["counts"] + " "}, "broken_mask"),
        ({"counts": [-5, 2005]}, "broken_mask"),
        ({"counts": [10**30, 5]}, "broken_mask"),
        ({"counts": [5.0, 1995]}, "broken_mask"),
        ({"counts": []}, "broken_mask"),
        ({"counts": None}, "broken_mask"),
        ({"size": [50, 40]}, "mask_size"),
        ({"size": [10**6, 10**6], "counts": [10**12]}, "mask_size"),
        ({"size": [2**40, 1]}, "broken_mask"),
        ({"size": [40]}, "broken_mask"),
        ({"size": None}, "broken_mask"),
        ({"counts": [2000]}, "empty_mask"),
        ({"counts": [0, 2000]}, "full_mask"),
    ],
)
def test_run_lengths_that_cannot_be_used(change, expected):
    assert reason(things, photo_with(dog({**DISC, **change}))) == expected


def test_a_claim_of_a_huge_picture_takes_no_memory_of_its_size():
    side = 10**6
    photo = photo_with(
        dog({"size": [side, side], "counts": [side * side // 2, side * side // 2]}),
        width=side,
        height=side,
    )
    assert area(photo, size=(40, 40)) == [800]  # the right half


# Where instances are told


def coco_json(folder, **changes):
    fields = {
        "images": [{"id": 7, "width": 500, "height": 400}, {"id": 8}, {"id": "nine"}],
        "categories": [{"id": 1, "name": "dog"}, {"id": 2, "name": "cat"}],
        "annotations": [
            {"image_id": 7, "category_id": 1, "segmentation": [[100, 100, 200, 100, 200, 200]]},
            {"image_id": 7, "category_id": 2, "segmentation": DISC, "iscrowd": 1},
            {"image_id": "nine", "category_id": 1, "segmentation": DISC, "iscrowd": 0},
        ],
        **changes,
    }
    path = folder / "instances.json"
    path.write_text(json.dumps({k: v for k, v in fields.items() if v is not None}))
    return str(path)


def of_id(number):
    return Photo("a", b"", "jpg", (Caption("a dog"),), (), {"id": number})


def test_a_coco_json_is_asked_by_the_photos_id(tmp_path):
    masks = InstanceMasks(coco_json(tmp_path))
    (thing,) = masks.things(of_id(7), (50, 40), "dog", ["dog"])
    rows, columns = np.nonzero(thing.mask_HW)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (10, 19, 10, 19)
    assert reason(masks.things, of_id(7), (50, 40), "cat", ["cat"]) == "crowd"
    assert masks.things(of_id(8), (50, 40), "dog", ["dog"]) == []
    assert masks.things(of_id("nine"), (50, 40), "dog", ["dog"])[0].mask_HW.sum() == 416
    for number in (10, "7", None, 7.0, True, [7]):
        assert reason(masks.things, of_id(number), (50, 40), "dog", ["dog"]) == "no_instances"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"categories": None}, "no 'categories'; a COCO instances json is"),
        ({"images": None}, "no 'images'"),
        ({"annotations": [{"image_id": 7, "caption": "a dog"}]}, "no 'category_id'"),
        ({"annotations": [{"image_id": 70, "category_id": 1}]}, "image 70 and category 1"),
        ({"annotations": [{"image_id": 7, "category_id": 3}]}, "image 7 and category 3"),
        ({"annotations": [{"image_id": [7], "category_id": 1}]}, "unhashable"),
        ({"annotations": [7]}, "a COCO instances json is"),
        ({"categories": [{"id": 1, "name": 5}]}, "image 7 and category 1"),
        ({"images": [{"id": 7, "width": -1, "height": 4}]}, "no size in pixels"),
    ],
)
def test_a_json_of_another_form_is_refused_in_a_line(tmp_path, change, message):
    with pytest.raises(ValueError, match=message) as caught:
        InstanceMasks(coco_json(tmp_path, **change))
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(str(tmp_path))


def test_a_captions_json_has_no_instances(tmp_path):
    real = PHOTOS.parent / "coco_captions_val2017.json.gz"
    captions = tmp_path / "captions.json"
    captions.write_bytes(gzip.decompress(real.read_bytes()))
    with pytest.raises(ValueError, match="a COCO instances json is"):
        InstanceMasks(str(captions))
    # Nor has what `coco` makes of one.
    photo = Photo("a", b"", "jpg", (Caption("a dog"),), (), {"id": 7, "file_name": "a.jpg"})
    assert reason(things, photo) == "no_instances"


@pytest.mark.parametrize("content", [b"{", b"[]", b"7", b"\xff", b"[" * 100_000])
def test_what_is_no_json_object_is_refused(tmp_path, content):
    (tmp_path / "instances.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"instances\.json: "):
        InstanceMasks(str(tmp_path / "instances.json"))
    with pytest.raises(ValueError, match=r"masks\.path=.* is not a file"):
        InstanceMasks(str(tmp_path / "none.json"))


@pytest.mark.parametrize("instances", [{}, "dog", None])
def test_a_sample_without_a_list_of_instances(instances):
    photo = Photo("a", b"", "jpg", (Caption("a dog"),), (), {"instances": instances})
    assert reason(things, photo) == "no_instances"


@pytest.mark.parametrize("instance", ["dog", {}, {"category": 3}])
def test_an_instance_of_another_form(instance):
    assert reason(things, photo_with(instance)) == "broken_instances"


def test_bad_masks_cross_processes():
    error = pickle.loads(pickle.dumps(BadMask("crowd", "many")))
    assert (error.reason, error.detail, str(error)) == ("crowd", "many", "crowd: many")


# Folders


def save(path, pixels, kind="PNG"):
    path.parent.mkdir(exist_ok=True)
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(path, kind)


def grey(mask_HW, value=255):
    return mask_HW.astype(np.uint8) * np.uint8(value)


def corner(count):
    mask_HW = np.zeros((40, 50), bool)
    mask_HW[0, :count] = True
    return mask_HW


def folder_areas(folder, noun, categories=(), key="a"):
    found = MaskFolder(str(folder)).things(photo_with(key=key), (50, 40), noun, categories)
    return [(thing.category, int(thing.mask_HW.sum())) for thing in found]


def test_masks_are_named_by_keys_and_nouns(tmp_path):
    for count, name in enumerate(
        ("a.dog.10", "a.dog.9", "a.dog", "a.stop_sign", "a.T-shirt", "a-b.dog", "c", "d.1", "d.0"),
        1,
    ):
        save(tmp_path / f"{name}.png", grey(corner(count)))
    assert folder_areas(tmp_path, "dog") == [("dog", 3), ("dog", 2), ("dog", 1)]
    assert folder_areas(tmp_path, "dogs", ["dog"]) == [("dog", 3), ("dog", 2), ("dog", 1)]
    assert folder_areas(tmp_path, "Stop sign") == [("Stop sign", 4)]
    assert folder_areas(tmp_path, "t-shirt") == [("t-shirt", 5)]
    assert folder_areas(tmp_path, "dog", key="a-b") == [("dog", 6)]
    assert folder_areas(tmp_path, "cat") == []
    assert folder_areas(tmp_path, "../c") == []
    assert folder_areas(tmp_path, "dog", key="b") == []
    # Without a noun, any is meant.
    assert folder_areas(tmp_path, "cat", ["pet"], key="c") == [("cat", 7)]
    assert folder_areas(tmp_path, "cat", key="d") == [("cat", 9), ("cat", 8)]


def test_a_mask_without_a_noun_stands_back_where_nouns_have_theirs(tmp_path):
    save(tmp_path / "a.png", grey(corner(1)))
    save(tmp_path / "a.dog.png", grey(corner(2)))
    assert folder_areas(tmp_path, "dog") == [("dog", 2)]
    assert folder_areas(tmp_path, "cat") == []


@pytest.mark.parametrize(
    "image",
    [
        grey(disc()),
        grey(disc(), 1),
        disc(),
        disc().astype(np.uint16) * np.uint16(65535),
        np.stack([grey(disc())] * 3, axis=-1),
        np.stack([grey(disc())] * 3 + [grey(np.ones_like(disc()))], axis=-1),
        Image.fromarray(grey(disc())).convert("P"),
        np.where(disc(), np.uint8(200), np.uint8(90)),
    ],
    ids=["L", "of 0 and 1", "1", "16 bits", "RGB", "RGBA", "palette", "soft"],
)
def test_masks_of_any_mode(tmp_path, image):
    save(tmp_path / "a.dog.png", image)
    (thing,) = MaskFolder(str(tmp_path)).things(photo_with(), (50, 40), "dog", [])
    assert thing.mask_HW.dtype == bool
    assert (thing.mask_HW == disc()).all()


def png(mask_HW):
    file = io.BytesIO()
    Image.fromarray(grey(mask_HW)).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (png(disc().T), "mask_size"),
        (png(disc()[:-1]), "mask_size"),
        (png(np.ones((400, 500), bool)), "mask_size"),
        (png(np.ones((1, 2000), bool)), "mask_size"),
        (png(np.zeros((40, 50), bool)), "empty_mask"),
        (png(np.ones((40, 50), bool)), "full_mask"),
        (png(disc())[:80], "broken_mask"),
        (b"", "broken_mask"),
        (b"no image at all", "broken_mask"),
    ],
    ids=["turned", "smaller", "larger", "strip", "empty", "full", "cut", "nothing", "text"],
)
def test_masks_that_cannot_be_used(tmp_path, content, expected):
    save(tmp_path / "a.dog.0.png", grey(disc()))
    (tmp_path / "a.dog.1.png").write_bytes(content)
    masks = MaskFolder(str(tmp_path))
    assert reason(masks.things, photo_with(), (50, 40), "dog", []) == expected
    assert masks.things(photo_with(), (50, 40), "cat", []) == []


def test_a_file_larger_than_any_mask_is_not_read(tmp_path):
    save(tmp_path / "a.dog.png", grey(disc()))
    with (tmp_path / "a.dog.png").open("ab") as file:
        file.truncate(65 * 2**20)  # a hole
    assert (
        reason(MaskFolder(str(tmp_path)).things, photo_with(), (50, 40), "dog", []) == "broken_mask"
    )


@pytest.mark.parametrize("name", ["a b.png", "a.dog.cat.png", ".png", "a..png", "a.dog.x.1.png"])
def test_a_name_of_another_form_is_refused(tmp_path, name):
    save(tmp_path / name, grey(disc()))
    with pytest.raises(ValueError, match=r"is named neither KEY\.png"):
        MaskFolder(str(tmp_path))


def test_a_folder_without_masks_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"no \.png there"):
        MaskFolder(str(tmp_path))
    with pytest.raises(ValueError, match="is not a folder"):
        MaskFolder(str(tmp_path / "none"))
