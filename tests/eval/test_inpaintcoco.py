"""InpaintCOCO's parquet form: scores by concept, the tie row, bounded memory, broken files."""

import math
import os
import tracemalloc

import pyarrow
import pyarrow.parquet
import pytest

from hnpretrain.eval import benchmarks
from hnpretrain.eval.results import Withheld
from hnpretrain.eval.scorers import Cosine
from tests.eval.helpers import assert_at_chance, assert_scores

IMAGE = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])


def write_parquet(path, rows, image_type=IMAGE, row_group_size=2, drop=()):
    """Rows of (concept, caption, image, inpainted caption, inpainted image), as on the hub."""
    wrap = (
        (lambda data: {"bytes": data, "path": None}) if image_type == IMAGE else (lambda data: data)
    )
    concepts, captions, images, new_captions, new_images = zip(*rows, strict=True)
    columns = {
        "concept": pyarrow.array(concepts, pyarrow.string()),
        "coco_caption": pyarrow.array(captions, pyarrow.string()),
        "coco_image": pyarrow.array([wrap(data) for data in images], image_type),
        "inpaint_caption": pyarrow.array(new_captions, pyarrow.string()),
        "inpaint_image": pyarrow.array([wrap(data) for data in new_images], image_type),
        # Columns that the reader must pass over: the real file has a mask image and more.
        "mask": pyarrow.array([wrap(b"not an image") for _ in rows], image_type),
        "worker": pyarrow.array(["w0"] * len(rows)),
    }
    table = pyarrow.table({name: column for name, column in columns.items() if name not in drop})
    pyarrow.parquet.write_table(table, path, row_group_size=row_group_size)
    return path


@pytest.fixture
def rows(paint):
    def row(concept, caption, image, new_caption, new_image):
        return concept, f"a {caption} car", paint(image), f"the {new_caption} car", paint(new_image)

    identical = ("color", "a red car", paint("red"), "a red car", paint("blue"))
    return [
        row("object", "red", "red", "blue", "blue"),  # all right
        row("object", "blue", "red", "red", "blue"),  # all wrong
        row("size", "red", "red", "red", "red"),  # ties: all wrong
        identical,  # ties: all wrong
        row("color", "green", "green", "yellow", "yellow"),  # all right
        row("color", "red", "red", "green", "yellow"),  # yellow is nearer to red than to green
    ]


@pytest.mark.parametrize("image_type", [IMAGE, pyarrow.binary(), pyarrow.large_binary()])
@pytest.mark.parametrize("row_group_size", [1, 4, 100])
def test_scores_by_hand(tmp_path, rows, color_encoder, image_type, row_group_size):
    path = write_parquet(tmp_path / "test.parquet", rows, image_type, row_group_size)
    result = benchmarks.load("inpaintcoco", path).run(color_encoder, Cosine())
    # The last row: cos(yellow, red) = .79 > cos(yellow, green) = .75, so its second image prefers
    # the other caption; both captions prefer their own image.
    expected = {
        "text": (2 / 6, 6),
        "text/color": (1 / 3, 3),
        "text/object": (1 / 2, 2),
        "text/size": (0, 1),
        "text/concept-macro": ((1 / 2 + 0 + 1 / 3) / 3, 6),
        "image": (3 / 6, 6),
        "image/color": (2 / 3, 3),
        "image/object": (1 / 2, 2),
        "image/size": (0, 1),
        "image/concept-macro": ((1 / 2 + 0 + 2 / 3) / 3, 6),
        "group": (2 / 6, 6),
        "group/color": (1 / 3, 3),
        "group/object": (1 / 2, 2),
        "group/size": (0, 1),
        "group/concept-macro": ((1 / 2 + 0 + 1 / 3) / 3, 6),
        "pair": (5 / 12, 12),
        "pair/color": (3 / 6, 6),
        "pair/object": (2 / 4, 4),
        "pair/size": (0, 2),
        "pair/concept-macro": ((1 / 2 + 0 + 1 / 2) / 3, 12),
    }
    assert_scores(result, expected)
    # Rows of `pair` have 2, 0, 0, 0, 2 and 1 right answers: the error is that of six items.
    shares = [1, 0, 0, 0, 1, 1 / 2]
    spread = math.sqrt(sum((share - 5 / 12) ** 2 for share in shares) / (6 * 5))
    assert result["pair"].standard_error == pytest.approx(spread)
    # Row 2 differs in words that this model's tokenizer passes over.
    assert result.notes == (
        "2 items have captions of equal tokens (row 2, row 3): always a tie, counted as wrong",
    )
    # Red is the commonest color of the pictures: whoever sees none guesses it.
    assert result["text_only"].count == 6


def test_a_random_scorer_is_at_chance(tmp_path, rows, color_encoder):
    path = write_parquet(tmp_path / "test.parquet", rows)
    assert_at_chance(benchmarks.load("inpaintcoco", path), color_encoder)


def test_several_files_are_read_in_order(tmp_path, rows, color_encoder):
    write_parquet(tmp_path / "test-00001-of-00002.parquet", rows[2:])
    write_parquet(tmp_path / "test-00000-of-00002.parquet", rows[:2])
    (tmp_path / "README.md").write_text("not data")
    split = benchmarks.load("inpaintcoco", tmp_path)
    concepts = [item.groups["concept"] for item in split.items]
    assert concepts == ["object", "object", "size", "color", "color", "color"]
    whole = write_parquet(tmp_path / "whole.pq", rows)
    want = benchmarks.load("inpaintcoco", whole).run(color_encoder, Cosine())
    got = split.run(color_encoder, Cosine())
    assert got.scores == want.scores


def test_an_empty_caption_is_scored_and_noted(tmp_path, rows, color_encoder):
    rows[0] = (*rows[0][:3], "", rows[0][4])
    path = write_parquet(tmp_path / "test.parquet", rows)
    result = benchmarks.load("inpaintcoco", path).run(color_encoder, Cosine())
    assert result["text"].count == 6
    assert "1 captions are empty: scored as they stand" in result.notes[1]


def test_a_random_model_is_at_chance(tmp_path, paint, random_encoder):
    rows = [
        (
            ("object", "size", "color")[number % 3],
            f"caption {number}",
            paint(4000 * number),
            f"edited {number}",
            paint(4000 * number + 1),
        )
        for number in range(1260)
    ]
    path = write_parquet(tmp_path / "test.parquet", rows, row_group_size=100)
    result = benchmarks.load("inpaintcoco", path).run(random_encoder, Cosine())
    for score in result.scores:
        off = abs(score.accuracy.value - score.chance)
        assert off < 3 * score.accuracy.standard_error, score.name
    assert result["text"].count == 1260
    assert result["pair"].count == 2520


def test_images_are_held_a_few_row_groups_at_a_time(tmp_path, rows):
    """What is held while the images stream by stays far below the file's size."""
    big = [(*row[:2], os.urandom(200_000), row[3], os.urandom(200_000)) for row in rows * 20]
    path = tmp_path / "big.parquet"
    write_parquet(path, big, row_group_size=4)
    tracemalloc.start()
    try:
        benchmark = benchmarks.load("inpaintcoco", path)
        read = [len(image.read()) for item in benchmark.items for image in item.images]
        held = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert read == [200_000] * 2 * len(big)
    assert held < 8_000_000 < len(big) * 2 * 200_000 / 5


@pytest.mark.parametrize("column", ["concept", "coco_caption", "coco_image", "inpaint_image"])
def test_a_missing_column_is_named(tmp_path, rows, column):
    path = write_parquet(tmp_path / "test.parquet", rows, drop=(column,))
    with pytest.raises(ValueError, match=f"lacks the columns {column} .it has .*mask"):
        benchmarks.load("inpaintcoco", path)


@pytest.mark.parametrize("image_type", [IMAGE, pyarrow.binary()])
@pytest.mark.parametrize("absent", [None, b""])
@pytest.mark.parametrize("column, name", [(2, "coco_image"), (4, "inpaint_image")])
def test_an_absent_image_is_named(tmp_path, rows, color_encoder, image_type, absent, column, name):
    path = tmp_path / "test.parquet"
    rows[3] = (*rows[3][:column], absent, *rows[3][column + 1 :])
    write_parquet(path, rows, image_type)
    with pytest.raises(Withheld, match=f"row 3 {name}: the image's bytes must be in the file"):
        benchmarks.load("inpaintcoco", path).run(color_encoder, Cosine())


def test_a_file_damaged_within_is_named(tmp_path, rows, color_encoder):
    """Its end, which Arrow reads first, is whole."""
    path = write_parquet(tmp_path / "test.parquet", rows)
    data = bytearray(path.read_bytes())
    start = pyarrow.parquet.read_metadata(path).row_group(1).column(2).data_page_offset
    data[start : start + 40] = b"\xff" * 40
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"test\.parquet is not a readable parquet file"):
        benchmarks.load("inpaintcoco", path).run(color_encoder, Cosine())


def test_broken_rows_are_named(tmp_path, rows, color_encoder):
    path = tmp_path / "test.parquet"
    write_parquet(path, [*rows[:3], (None, *rows[3][1:])])
    with pytest.raises(ValueError, match="row 3: 'concept' must be a non-empty string"):
        benchmarks.load("inpaintcoco", path)
    write_parquet(path, [*rows[:3], (*rows[3][:3], None, rows[3][4])])
    with pytest.raises(ValueError, match="row 3: 'inpaint_caption' must be a string"):
        benchmarks.load("inpaintcoco", path)
    write_parquet(path, [*rows[:3], (*rows[3][:4], b"\x89PNG but not really")])
    with pytest.raises(ValueError, match=r"test\.parquet row 3 inpaint_image cannot be read"):
        benchmarks.load("inpaintcoco", path).run(color_encoder, Cosine())


def test_files_that_are_no_parquet_are_one_clear_error(tmp_path, rows):
    with pytest.raises(ValueError, match=r"no \*\.parquet in"):
        benchmarks.load("inpaintcoco", tmp_path)
    with pytest.raises(ValueError, match="no such file or folder"):
        benchmarks.load("inpaintcoco", tmp_path / "gone.parquet")
    path = write_parquet(tmp_path / "test.parquet", rows)
    with pytest.raises(ValueError, match="takes no image folder"):
        benchmarks.load("inpaintcoco", path, tmp_path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match="not a readable parquet file"):
        benchmarks.load("inpaintcoco", path)
    path.write_bytes(b"")
    with pytest.raises(ValueError, match="not a readable parquet file"):
        benchmarks.load("inpaintcoco", path)
