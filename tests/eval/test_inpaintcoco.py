"""InpaintCOCO's parquet form: scores by concept, the tie row, bounded memory, broken files."""

import math

import pyarrow
import pyarrow.parquet
import pytest

from hnpretrain.eval import benchmarks

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
    result = benchmarks.load("inpaintcoco", path).run(color_encoder)
    # The last row: cos(yellow, red) = .79 > cos(yellow, green) = .75, so its second image prefers
    # the other caption; both captions prefer their own image.
    expected = {
        "text": (2 / 6, 6),
        "text/object": (1 / 2, 2),
        "text/size": (0, 1),
        "text/color": (1 / 3, 3),
        "text/macro": ((1 / 2 + 0 + 1 / 3) / 3, 6),
        "image": (3 / 6, 6),
        "image/object": (1 / 2, 2),
        "image/size": (0, 1),
        "image/color": (2 / 3, 3),
        "image/macro": ((1 / 2 + 0 + 2 / 3) / 3, 6),
        "group": (2 / 6, 6),
        "group/object": (1 / 2, 2),
        "group/size": (0, 1),
        "group/color": (1 / 3, 3),
        "group/macro": ((1 / 2 + 0 + 1 / 3) / 3, 6),
        "pair": (5 / 12, 12),
        "pair/object": (2 / 4, 4),
        "pair/size": (0, 2),
        "pair/color": (3 / 6, 6),
        "pair/macro": ((1 / 2 + 0 + 1 / 2) / 3, 12),
    }
    assert [score.name for score in result.scores] == list(expected)
    for name, (value, count) in expected.items():
        assert (result[name].value, result[name].count) == (pytest.approx(value), count), name
    # Rows of `pair` have 2, 0, 0, 0, 2 and 1 right answers: the error is that of six items.
    shares = [1, 0, 0, 0, 1, 1 / 2]
    spread = math.sqrt(sum((share - 5 / 12) ** 2 for share in shares)) / 6
    assert result["pair"].standard_error == pytest.approx(spread)
    # Row 2 differs in words that this model's tokenizer passes over.
    assert result.notes == (
        "2 rows (2, 3, from 0) with two captions of equal tokens: always a tie, counted as wrong",
    )


def test_several_files_are_read_in_order(tmp_path, rows, color_encoder):
    write_parquet(tmp_path / "test-00001-of-00002.parquet", rows[2:])
    write_parquet(tmp_path / "test-00000-of-00002.parquet", rows[:2])
    (tmp_path / "README.md").write_text("not data")
    split = benchmarks.load("inpaintcoco", tmp_path)
    assert split.concepts == ("object", "object", "size", "color", "color", "color")
    whole = write_parquet(tmp_path / "whole.pq", rows)
    want = benchmarks.load("inpaintcoco", whole).run(color_encoder)
    got = split.run(color_encoder)
    assert got.scores == want.scores


def test_an_empty_caption_is_scored_and_noted(tmp_path, rows, color_encoder):
    rows[0] = (*rows[0][:3], "", rows[0][4])
    path = write_parquet(tmp_path / "test.parquet", rows)
    result = benchmarks.load("inpaintcoco", path).run(color_encoder)
    assert result["text"].count == 6
    assert "1 row (0, from 0) with an empty caption" in result.notes[1]


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
    result = benchmarks.load("inpaintcoco", path).run(random_encoder)
    for score in result.scores:
        off = abs(score.accuracy.value - score.chance)
        assert off < 3 * score.accuracy.standard_error, score.name
    assert result["text"].count == 1260
    assert result["pair"].count == 2520


def test_images_are_held_a_few_rows_at_a_time(tmp_path, rows):
    """Memory that Arrow holds while the images stream by stays far below the file's size."""
    content = b"x" * 200_000
    big = [(*row[:2], content, row[3], content) for row in rows * 20]
    path = tmp_path / "big.parquet"
    write_parquet(path, big, row_group_size=4)
    benchmark = benchmarks.load("inpaintcoco", path)
    before = pyarrow.total_allocated_bytes()
    held = [pyarrow.total_allocated_bytes() - before for _ in benchmark._images()]
    assert len(held) == 2 * len(big)
    assert 0 < max(held) < 12_000_000 < len(big) * 2 * len(content) / 3


@pytest.mark.parametrize("column", ["concept", "coco_caption", "coco_image", "inpaint_image"])
def test_a_missing_column_is_named(tmp_path, rows, column):
    path = write_parquet(tmp_path / "test.parquet", rows, drop=(column,))
    with pytest.raises(ValueError, match=f"lacks the columns {column} .it has .*mask"):
        benchmarks.load("inpaintcoco", path)


@pytest.mark.parametrize("image_type", [IMAGE, pyarrow.binary()])
@pytest.mark.parametrize("absent", [None, b""])
@pytest.mark.parametrize("column, name", [(2, "coco_image"), (4, "inpaint_image")])
def test_an_absent_image_is_found_before_any_model_runs(
    tmp_path, rows, image_type, absent, column, name
):
    path = tmp_path / "test.parquet"
    rows[3] = (*rows[3][:column], absent, *rows[3][column + 1 :])
    write_parquet(path, rows, image_type)
    with pytest.raises(ValueError, match=f"row 3 {name}: the image's bytes must be in the file"):
        benchmarks.load("inpaintcoco", path)


def test_a_file_damaged_within_is_named(tmp_path, rows):
    """Its end, which Arrow reads first, is whole."""
    path = write_parquet(tmp_path / "test.parquet", rows)
    data = bytearray(path.read_bytes())
    start = pyarrow.parquet.read_metadata(path).row_group(1).column(2).data_page_offset
    data[start : start + 40] = b"\xff" * 40
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"test\.parquet is not a readable parquet file"):
        benchmarks.load("inpaintcoco", path)


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
        benchmarks.load("inpaintcoco", path).run(color_encoder)


def test_files_that_are_no_parquet_are_one_clear_error(tmp_path, rows):
    with pytest.raises(ValueError, match=r"no \.parquet file"):
        benchmarks.load("inpaintcoco", tmp_path)
    with pytest.raises(ValueError, match="no such file or folder"):
        benchmarks.load("inpaintcoco", tmp_path / "gone.parquet")
    path = write_parquet(tmp_path / "test.parquet", rows)
    with pytest.raises(ValueError, match="is not needed"):
        benchmarks.load("inpaintcoco", path, tmp_path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match="not a readable parquet file"):
        benchmarks.load("inpaintcoco", path)
    path.write_bytes(b"")
    with pytest.raises(ValueError, match="not a readable parquet file"):
        benchmarks.load("inpaintcoco", path)
