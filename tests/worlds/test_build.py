"""Files: the formats, their bytes, and the commands that write them."""

import hashlib
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from PIL import Image
from typer.testing import CliRunner

from hnpretrain.worlds.build import pairs_of, write_pairs, write_source
from hnpretrain.worlds.commands import app
from hnpretrain.worlds.pairs import CONCEPTS

INPAINTCOCO_FIELDS = {
    "concept", "coco_caption", "coco_image", "inpaint_caption", "inpaint_image", "mask", "worker",
    "coco_details", "inpaint_details",
}  # fmt: skip


def digest(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_source_format(tmp_path: Path) -> None:
    captions = write_source(tmp_path / "world", 12, seed=1, image_size=48, captions=3)
    records = [json.loads(line) for line in captions.read_text().splitlines()]
    assert len(records) == 12
    for record in records:
        with Image.open(tmp_path / "world" / record["image"]) as image:
            assert (image.size, image.mode) == ((48, 48), "RGB")
        assert len(record["captions"]) == 3
        assert record["objects"] == [thing["kind"] for thing in record["scene"]["things"]]
    assert len(list((tmp_path / "world" / "images").iterdir())) == 12
    assert [p.name for p in sorted((tmp_path / "world").iterdir())] == ["captions.jsonl", "images"]


def test_same_seed_same_bytes_and_a_larger_set_begins_with_the_smaller(tmp_path: Path) -> None:
    one, same, larger, other = (tmp_path / name for name in ("one", "same", "larger", "other"))
    write_source(one, 8, seed=5)
    write_source(same, 8, seed=5)
    write_source(larger, 12, seed=5)
    write_source(other, 8, seed=6)
    assert digest(one) == digest(same)
    assert digest(one).keys() == digest(other).keys()
    assert not set(digest(one).values()) & set(digest(other).values())
    pictures = {name: d for name, d in digest(one).items() if name.endswith(".png")}
    assert pictures.items() <= digest(larger).items()
    text = (larger / "captions.jsonl").read_text()
    assert text.startswith((one / "captions.jsonl").read_text())


def test_splits_and_pairs_share_no_picture(tmp_path: Path) -> None:
    pictures: list[str] = []
    for split in ("train", "valid", "test"):
        write_source(tmp_path / split, 40, split=split)
        pictures += digest(tmp_path / split / "images").values()
    table = pq.read_table(write_pairs(tmp_path / "pairs.parquet", 10))
    for column in ("coco_image", "inpaint_image"):
        pictures += [hashlib.sha256(v["bytes"]).hexdigest() for v in table[column].to_pylist()]
    assert len(set(pictures)) == len(pictures) == 3 * 40 + 2 * 40


def test_an_interrupted_write_leaves_no_captions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_source(tmp_path, 3)

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(Path, "write_bytes", fail)
    with pytest.raises(OSError, match="disk full"):
        write_source(tmp_path, 3, seed=1)
    assert not (tmp_path / "captions.jsonl").exists()


def test_pairs_parquet_has_inpaintcocos_format(tmp_path: Path) -> None:
    path = write_pairs(tmp_path / "deep" / "pairs.parquet", 5, seed=2, image_size=64)
    table = pq.read_table(path)
    assert set(table.column_names) == INPAINTCOCO_FIELDS
    rows = table.to_pylist()
    assert [row["concept"] for row in rows] == [c for c in CONCEPTS for _ in range(5)]
    features = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]
    assert features.keys() == INPAINTCOCO_FIELDS
    for row, pair in zip(rows, pairs_of(5, seed=2), strict=True):
        assert row["coco_caption"] == pair.caption != row["inpaint_caption"]
        for name, mode in (("coco_image", "RGB"), ("inpaint_image", "RGB"), ("mask", "L")):
            assert features[name] == {"_type": "Image"}
            with Image.open(io.BytesIO(row[name]["bytes"])) as image:
                assert (image.size, image.mode) == ((64, 64), mode)
        facts = json.loads(row["coco_details"]["scene"])
        assert [t["kind"] for t in facts["things"]] == [t.kind for t in pair.scene.things]
    again = write_pairs(tmp_path / "again.parquet", 5, seed=2, image_size=64)
    assert again.read_bytes() == path.read_bytes()
    assert [p.name for p in path.parent.iterdir()] == ["pairs.parquet"]


def test_a_larger_pair_set_holds_the_smaller() -> None:
    smaller, larger = list(pairs_of(2)), list(pairs_of(4))
    assert [pair for i, pair in enumerate(larger) if i % 4 < 2] == smaller


@pytest.mark.parametrize("write", [write_source, write_pairs])
def test_counts_below_one_are_refused(tmp_path: Path, write: object) -> None:
    assert callable(write)
    with pytest.raises(ValueError, match="at least 1"):
        write(tmp_path / "out", 0)
    assert not (tmp_path / "out").exists()


def test_wrong_arguments_leave_nothing(tmp_path: Path) -> None:
    wrongs: tuple[dict[str, Any], ...] = ({"split": "dev"}, {"image_size": 8}, {"captions": 0})
    for wrong in wrongs:
        with pytest.raises(ValueError, match=r"dev|32 pixels|at least 1"):
            write_source(tmp_path / "out", 3, **wrong)
        assert not (tmp_path / "out").exists()


def test_commands(tmp_path: Path) -> None:
    run = CliRunner().invoke
    result = run(app, ["scenes", str(tmp_path / "world"), "--count", "4", "--size", "32"])
    assert result.exit_code == 0, result.output
    assert len((tmp_path / "world" / "captions.jsonl").read_text().splitlines()) == 4
    result = run(app, ["pairs", str(tmp_path / "p.parquet"), "--per-concept", "2", "--seed", "3"])
    assert result.exit_code == 0, result.output
    assert pq.read_table(tmp_path / "p.parquet").num_rows == 8
    result = run(app, ["sheet", str(tmp_path / "sheet.png"), "--columns", "4"])
    assert result.exit_code == 0, result.output
    with Image.open(tmp_path / "sheet.png") as image:
        assert image.width > 4 * 128
    assert run(app, ["scenes", str(tmp_path / "w"), "--count", "0"]).exit_code == 2
    assert run(app, ["pairs"]).exit_code == 2


def test_the_world_needs_no_torch() -> None:
    code = (
        "import sys, hnpretrain.worlds.commands as c; assert 'pyarrow' not in sys.modules\n"
        "import hnpretrain.worlds.build; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
