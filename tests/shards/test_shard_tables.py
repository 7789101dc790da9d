"""csv, tsv and parquet: the samples of the same jsonl, and one clear line for what is wrong."""

from __future__ import annotations

import csv
import datetime
import decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from hnpretrain.shards import storage
from shard_tools.sources import SourceSample, SourceSettings, plan_source
from tests.shards.conftest import PHOTOS

# A comma, quotes, a line end and other scripts in the captions.
CAPTIONS = [
    'a "red" car, and a dog', "two\nlines of text", "caf\u00e9 \u732b", " a  cat ", "a 'b' c",
]  # fmt: skip


def rows() -> list[dict[str, Any]]:
    images = sorted(path.name for path in (PHOTOS / "images").iterdir())
    return [
        {"image": images[n], "caption": caption, "note": str(n)}
        for n, caption in enumerate(CAPTIONS)
    ]


def write(path: Path, table: list[dict[str, Any]]) -> None:
    """As pandas and others write them."""
    if path.suffix == ".parquet":
        parquet.write_table(pa.Table.from_pylist(table), path, row_group_size=2)
        return
    if path.suffix == ".tsv":
        lines = [list(table[0]), *(row.values() for row in table)]
        path.write_text("".join("\t".join(line) + "\n" for line in lines))
        return
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(table[0]))
        writer.writeheader()
        writer.writerows(table)


def settings_of(path: Path, **changes: str) -> SourceSettings:
    kind = path.suffix.removeprefix(".")
    return SourceSettings(kind, str(path), str(PHOTOS / "images"), **changes)


@pytest.mark.parametrize("kind", ["csv", "tsv", "parquet"])
@pytest.mark.parametrize("samples_per_shard", [1, 2, 3, 5, 9])
def test_tables_give_what_was_written(tmp_path: Path, kind: str, samples_per_shard: int) -> None:
    table = rows()
    if kind == "tsv":  # which has no way to write it
        table[1]["caption"] = "two lines of text"
    path = tmp_path / f"data.{kind}"
    write(path, table)
    shards = plan_source(settings_of(path), samples_per_shard)
    assert [shard.samples for shard in shards] == [
        min(samples_per_shard, 5 - start) for start in range(0, 5, samples_per_shard)
    ]
    assert sum(shard.captions or 0 for shard in shards) == 5
    samples = [sample for shard in shards for sample in shard.read()]
    for row, sample in zip(table, samples, strict=True):
        assert isinstance(sample, SourceSample)
        assert sample.key == Path(row["image"]).stem
        assert sample.captions == (" ".join(row["caption"].split()),)
        assert sample.image == (PHOTOS / "images" / row["image"]).read_bytes()
        assert sample.meta == {"image": row["image"], "note": row["note"]}
    texts = [texts.captions for shard in shards for texts in shard.read_texts()]
    assert texts == [sample.captions for sample in samples]  # type: ignore[union-attr]


@pytest.mark.parametrize("kind", ["csv", "tsv", "parquet", "jsonl"])
def test_fields_with_other_names(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"data.{kind}"
    if kind == "jsonl":
        path.write_text('{"filepath": "000000000790.jpg", "title": "a cake", "key": "k"}\n')
    else:
        write(path, [{"filepath": "000000000790.jpg", "title": "a cake", "key": "k"}])
    with pytest.raises(ValueError, match="no field 'image' with the image's name"):
        plan_source(settings_of(path), 1)
    with pytest.raises(ValueError, match="no field 'text'"):
        plan_source(settings_of(path, image_field="filepath", caption_field="text"), 1)
    settings = settings_of(path, image_field="filepath", caption_field="title")
    (shard,) = plan_source(settings, 1)
    (sample,) = shard.read()
    assert isinstance(sample, SourceSample)
    assert (sample.key, sample.captions) == ("k", ("a cake",))
    assert sample.meta == {"filepath": "000000000790.jpg"}


def test_parquet_with_lists_dates_and_bytes(tmp_path: Path) -> None:
    row = {
        "image": "000000000790.jpg",
        "captions": ["a cake", "a cake on a table"],
        "objects": ["cake"],
        "day": datetime.date(2024, 2, 29),
        "price": decimal.Decimal("1.50"),
        "size": {"width": 3, "missing": None},
        "thumbnail": b"\xff",
    }
    write(tmp_path / "data.parquet", [row])
    (sample,) = plan_source(settings_of(tmp_path / "data.parquet"), 1)[0].read()
    assert isinstance(sample, SourceSample)
    assert (sample.captions, sample.objects) == (("a cake", "a cake on a table"), ("cake",))
    assert sample.meta == {
        "image": "000000000790.jpg",
        "objects": ["cake"],
        "day": "2024-02-29",
        "price": "1.50",
        "size": {"width": 3, "missing": None},
    }


def test_excel_s_mark_and_blank_lines_are_no_data(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    path.write_bytes("\ufeffimage,caption\r\n\r\na.jpg,a car\r\n\r\n".encode())
    (shard,) = plan_source(settings_of(path), 1)
    assert [texts.captions for texts in shard.read_texts()] == [("a car",)]


def test_a_caption_as_long_as_a_book_is_read(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    path.write_text("image,caption\na.jpg," + "word " * 60_000 + "\n")
    (shard,) = plan_source(settings_of(path), 1)
    assert [len(texts.captions[0]) for texts in shard.read_texts()] == [299_999]


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "not one line"),
        (b"image,caption\n", "not one line"),
        (b"image,caption\na.jpg\n", "line 2: 1 values, but the first line names 2 columns"),
        (b"image,caption\na.jpg,a,b\n", "line 2: 3 values"),
        (b"image,image\na.jpg,b\n", "two columns have one name: image, image"),
        (b"image,caption\na.jpg,\n", "line 2: a caption is empty"),
        (b"image,caption\na.jpg,\xff\n", "line 2: 'utf-8' codec can't decode"),
        (b'image,caption\na.jpg,"a" b\n', "line 2: not a table of values"),
        (b'image,caption\na.jpg,"never closed\n', "not a table of values: unexpected end of data"),
        (b"image,caption\na.jpg,a\nb/a.jpg,b\n", "line 3: lines 2 and 3 have one key, 'a'"),
        (b"image,caption\n../a.jpg,a\n", "line 2: image '../a.jpg' is not inside"),
    ],
)
def test_csv_of_another_shape(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "data.csv"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message.replace("(", r"\(")) as error:
        plan_source(settings_of(path), 1)
    assert str(error.value).startswith(str(path))


@pytest.mark.parametrize(
    "table, message",
    [
        ([{"image": "a.jpg", "caption": None}], "row 0: a caption must be a string, got None"),
        ([{"image": "a.jpg", "captions": []}], "row 0: 'captions' is an empty list"),
        ([{"image": "a.jpg", "caption": "a", "x": float("nan")}], "row 0: Out of range float"),
        ([{"image": "a.jpg", "caption": "a"}] * 2, "row 1: rows 0 and 1 have one key, 'a'"),
        ([{"image": "a.jpg", "caption": "a", "x": {"y": b"z"}}], "a bytes in a column"),
    ],
)
def test_parquet_of_another_shape(
    tmp_path: Path, table: list[dict[str, Any]], message: str
) -> None:
    path = tmp_path / "data.parquet"
    write(path, table)
    with pytest.raises(ValueError, match=message):
        plan_source(settings_of(path), 1)


def test_no_parquet(tmp_path: Path) -> None:
    path = tmp_path / "data.parquet"
    path.write_bytes(b"no parquet" * 100)
    with pytest.raises(ValueError, match=r"data.parquet: not a parquet file that can be read"):
        plan_source(settings_of(path), 1)
    parquet.write_table(pa.table({"image": pa.array([], pa.string())}), path)
    with pytest.raises(ValueError, match=r"data.parquet: not one row"):
        plan_source(settings_of(path), 1)


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_table_that_changes_meanwhile_is_noticed(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"data.{kind}"
    write(path, rows())
    shards = plan_source(settings_of(path), 2)
    before = [shard.fingerprint() for shard in shards]
    table = rows()
    table[4]["caption"] = "a 'x' c"
    write(path, table)
    with pytest.raises(ValueError, match="changed while the job was running"):
        list(shards[2].read())
    # Planned again, it touches one shard.
    after = [shard.fingerprint() for shard in plan_source(settings_of(path), 2)]
    assert [a == b for a, b in zip(before, after, strict=True)] == [True, True, False]


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_tables_on_s3(tmp_path: Path, bucket: str, kind: str) -> None:
    path = tmp_path / f"data.{kind}"
    write(path, rows())
    url = f"{bucket}/tables/data.{kind}"
    storage.write_bytes(url, path.read_bytes())
    remote = SourceSettings(kind, url, str(PHOTOS / "images"))
    local = plan_source(settings_of(path), 2)
    for shard, other in zip(plan_source(remote, 2), local, strict=True):
        assert list(shard.read()) == list(other.read())


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"kind": "tar", "image_field": "x"}, "go with source.kind=jsonl, csv, tsv, parquet, not"),
        ({"kind": "coco", "caption_field": "x"}, "not coco"),
        ({"kind": "csv", "image_field": ""}, "source.image_field is empty"),
    ],
)
def test_fields_that_do_not_fit(changes: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SourceSettings(**changes)
