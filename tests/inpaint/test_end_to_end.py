"""The whole path by the commands that a user types, on real photos."""

import json
from collections import Counter

import pyarrow.parquet as pq
import pytest

from hnpretrain.inpaint.folder import Folder
from tests.support.models import tiny_model, write_export
from tests.support.programs import hnpretrain
from tests.support.shards import PHOTOS

CONFIG = f"""
source: {{kind: jsonl, path: {PHOTOS}/data.jsonl, images: {PHOTOS}}}
seed: 1
propose: {{most: 24}}
generate: {{candidates: 2}}
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with proposals and candidates, and its config."""
    folder = tmp_path_factory.mktemp("inpaint")
    config = folder / "inpaint.yaml"
    config.write_text(CONFIG)
    proposed = hnpretrain("inpaint", "propose", config, f"output={folder}/pairs")
    assert "73 photos: 24 proposals in" in proposed
    assert "left out:" in proposed
    made = hnpretrain("inpaint", "generate", config, f"output={folder}/pairs")
    assert all(f"{editor}: " in made for editor in ("recolor", "resize", "remove", "replace"))
    return folder / "pairs", config


def test_photos_become_a_benchmark(made, tmp_path):
    folder, _ = made
    told = hnpretrain("inpaint", "export", folder, tmp_path / "set", "--unreviewed")
    rows = pq.read_table(tmp_path / "set" / "pairs.parquet").to_pylist()
    assert f"{len(rows)} pairs" in told
    assert len(rows) >= 10
    assert {row["concept"] for row in rows} == {"color", "size", "object"}
    hnpretrain("world", "pairs", tmp_path / "world.parquet", "--per-concept", 5)
    (tmp_path / "model").mkdir()
    model = write_export(tiny_model(), tmp_path / "model")
    scored = tmp_path / "scores.json"
    pairs = f"inpaintcoco={tmp_path}/set/pairs.parquet"
    world = f"inpaintcoco={tmp_path}/world.parquet"
    hnpretrain("eval", model, "--benchmark", pairs, "--benchmark", world, "--json", scored)
    ours, rendered = json.loads(scored.read_text())["results"]
    counts = Counter(row["concept"] for row in rows)
    for metric in ("text", "image", "group"):
        told = {score["name"]: score["count"] for score in ours["scores"]}
        assert told[metric] == len(rows)
        assert {concept: told[f"{metric}/{concept}"] for concept in counts} == counts
        assert {"name": f"{metric}/location", "count": 5}.items() <= next(
            score for score in rendered["scores"] if score["name"] == f"{metric}/location"
        ).items()


def test_generate_goes_on_where_it_was(made):
    folder, config = made
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.png")}
    first = Folder(folder).proposals()[0]
    names = sorted((folder / "candidates" / first.id).iterdir())
    record = next(path for path in names if path.suffix in (".json", ".cannot"))
    content = record.read_bytes()
    record.unlink()
    hnpretrain("inpaint", "generate", config, f"output={folder}")
    assert record.read_bytes() == content
    after = {path: path.stat().st_mtime_ns for path in folder.rglob("*.png")}
    changed = {path.parent.name for path in after if after[path] != before.get(path)}
    assert changed <= {first.id}


def test_a_sheet_shows_the_pairs(made, tmp_path):
    folder, _ = made
    told = hnpretrain("inpaint", "sheet", folder, tmp_path / "sheet.png", "--unreviewed")
    assert "pairs: " in told
    assert (tmp_path / "sheet.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (("generate", "output="), "output is empty"),
        (("propose", "output=s3://b/x"), "must be a local folder"),
        (("propose", "generate.editors=[recolour]"), "'recolour'"),
        (("propose", "propose.concept=[color]"), "did you mean 'concepts'"),
        (("propose", "masks.kind=clipseg"), "masks.path is empty"),
    ],
)
def test_wrong_use_is_one_line(made, tmp_path, command, message):
    _, config = made
    name, *overrides = command
    told = hnpretrain("inpaint", name, config, f"output={tmp_path}/x", *overrides, status=1)
    (line,) = told.strip().splitlines()
    assert line.startswith("error: ")
    assert message in line
