"""Benchmarks from the Hugging Face hub: what is asked of it, and what it may answer. No network."""

from pathlib import Path

import huggingface_hub
import pyarrow
import pyarrow.parquet
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError

from hnpretrain.eval import benchmarks
from hnpretrain.eval.scorers import Cosine


def test_the_files_are_fetched_and_read_as_local_ones(tmp_path, paint, color_encoder, monkeypatch):
    asked = []

    def download(name, **options):
        asked.append((name, options))
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    (tmp_path / "data").mkdir()
    row = {
        "concept": "color",
        "coco_caption": "a red car",
        "coco_image": paint("red"),
        "inpaint_caption": "a blue car",
        "inpaint_image": paint("blue"),
    }
    table = pyarrow.table({name: [value] for name, value in row.items()})
    pyarrow.parquet.write_table(table, tmp_path / "data" / "test-00000-of-00001.parquet")
    result = benchmarks.load("inpaintcoco", Path("hub")).run(color_encoder, Cosine())
    assert result["group"].value == 1
    patterns = ["*.parquet", "data/*.parquet"]
    options = {"repo_type": "dataset", "allow_patterns": patterns}
    assert asked == [("phiyodr/InpaintCOCO", options)]


def test_what_is_not_there_in_this_layout_says_where_to_get_it():
    with pytest.raises(ValueError, match=r"sugarcrepe=hub: it is not on the hub .*RAIVNLab"):
        benchmarks.load("sugarcrepe", Path("hub"))


@pytest.mark.parametrize("error", [LocalEntryNotFoundError("offline"), OSError("no network")])
def test_a_hub_that_cannot_be_reached_is_one_line(monkeypatch, error):
    def download(*_, **__):
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(ValueError, match=r"winoground=hub: facebook/winoground cannot be fetched"):
        benchmarks.load("winoground", Path("hub"))


def test_every_data_set_there_has_its_files_told():
    for kind in benchmarks.KINDS.values():
        assert bool(kind.about.hub) == bool(kind.about.files), kind.about.name
