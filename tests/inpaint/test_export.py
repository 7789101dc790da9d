"""What people accepted becomes a data set: which pairs, in which form, with which card."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image, ImageDraw

from hnpretrain.inpaint.candidates import Cannot, Slot, write_cannot
from hnpretrain.inpaint.decisions import Decisions
from hnpretrain.inpaint.export import ExportSettings, export, pairs_of
from hnpretrain.inpaint.folder import Folder
from hnpretrain.inpaint.pair_shards import edits
from hnpretrain.inpaint.pictures import as_it_lies
from hnpretrain.inpaint.records import Candidate, Check, Decision, Proposal, to_json
from hnpretrain.inpaint.selection import Pair, check_captions
from hnpretrain.shards.index import read_index
from hnpretrain.shards.marker import read_marker
from hnpretrain.shards.tar import decode_sample
from shard_tools.edits import locate
from shard_tools.verify import verify
from tests.support.loading import batches, loader

PHOTOS = Path(__file__).parents[1] / "assets" / "coco_ccby"
MAX_PIXELS = 10**7
# Caption, what stands for a word of it, and the concept, in turn.
EDITS = (
    ("a red thing in the picture", "red", "blue", "color", "recolor"),
    ("a small thing in the picture", "small", "large", "size", "enlarge"),
    ("a cup in the picture", "cup", "umbrella", "object", "replace"),
)
COLUMNS = [
    "concept", "coco_caption", "coco_image", "inpaint_caption", "inpaint_image", "mask", "worker",
    "coco_details", "inpaint_details",
]  # fmt: skip


@functools.cache
def records() -> list[dict[str, Any]]:
    lines = (PHOTOS / "data.jsonl").read_text().splitlines()
    return [record for record in map(json.loads, lines) if record["instances"]]


def png(image: Image.Image | np.ndarray) -> bytes:
    buffer = io.BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(buffer, "PNG")
    return buffer.getvalue()


def write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def make_folder(root: Path, count: int = 6, per_photo: int = 1) -> Folder:
    """Real photos and their things, each with two candidates: of the second a check failed."""
    folder = Folder(root)
    proposals = []
    for number in range(count):
        record = records()[number // per_photo]
        caption, source, target, concept, edit = EDITS[number % len(EDITS)]
        new_caption = caption.replace(
            f"a {source}", f"{'an' if target[0] in 'u' else 'a'} {target}"
        )
        photo = (PHOTOS / record["image"]).read_bytes()
        key = f"{record['coco_id']:012d}"
        proposal = Proposal(
            id=f"{key}-{concept}-{number}",
            key=key,
            photo=f"photos/{key}.jpg",
            source_caption=record["captions"][0],
            caption=caption,
            new_caption=new_caption,
            concept=concept,
            edit=edit,
            source=source,
            target=target,
            span=(2, 2 + len(source)),
            noun="thing",
            category=record["instances"][0]["category"],
            mask=f"masks/{number}.png",
            things=1,
            area=0.1,
            score=1.0 / (number + 1),
            meta={f: record[f] for f in ("coco_id", "license", "license_url", "flickr_page")},
        )
        proposals.append(proposal)
        write(root / proposal.photo, photo)
        mask = draw(record)
        write(root / proposal.mask, png(mask))
        for which in range(2):
            add_candidate(folder, proposal, np.asarray(mask) > 0, which)
    lines = [json.dumps(to_json(proposal)) for proposal in proposals]
    write(root / "proposals.jsonl", "\n".join(lines).encode())
    return folder


def draw(record: Mapping[str, Any]) -> Image.Image:
    mask = Image.new("L", (record["width"], record["height"]))
    for polygon in record["instances"][0]["polygons"]:
        ImageDraw.Draw(mask).polygon(polygon, fill=255)
    return mask


def add_candidate(folder: Folder, proposal: Proposal, changed_HW: np.ndarray, which: int) -> None:
    name = f"{'recolor' if proposal.edit == 'recolor' else 'resize'}-{which}"
    place = f"candidates/{proposal.id}/{name}"
    image_HWC = np.array(Image.open(folder.root / proposal.photo).convert("RGB"))
    image_HWC[changed_HW] = image_HWC[changed_HW][:, ::-1] // (which + 1)
    candidate = Candidate(
        id=name,
        proposal=proposal.id,
        editor=name[:-2],
        image=f"{place}.png",
        changed=f"{place}-changed.png",
        seed=which,
        settings={"strength": 0.5},
        details={"prompt": proposal.target},
        checks={"seam": Check(0.1, True), "outside": Check(33.3, which == 0)},
    )
    write(folder.path(candidate.image), png(image_HWC))
    write(folder.path(candidate.changed), png(changed_HW.astype(np.uint8) * 255))
    write(folder.path(f"{place}.json"), json.dumps(to_json(candidate)).encode())


def decide(
    folder: Folder, reviewer: str, verdicts: Mapping[int, str], time: float = 1.0, **fields: Any
) -> None:
    """A verdict of each proposal of these numbers, on its first candidate."""
    proposals = folder.proposals()
    with Decisions(folder, reviewer) as decisions:
        for number, verdict in verdicts.items():
            proposal = proposals[number]
            made = Decision(
                proposal=proposal.id,
                reviewer=reviewer,
                verdict=verdict,
                candidate=folder.candidates_of(proposal.id)[0].id,
                caption=proposal.caption,
                new_caption=proposal.new_caption,
                time=time + number,
            )
            decisions.append(dataclasses.replace(made, **fields))


def rows_of(out: Path) -> list[dict[str, Any]]:
    return pq.read_table(out / "pairs.parquet").to_pylist()


def numbers_of(folder: Folder, rows: Sequence[Mapping[str, Any]]) -> list[int]:
    ids = [proposal.id for proposal in folder.proposals()]
    return [ids.index(row["inpaint_details"]["id"]) for row in rows]


def digest(folder: Path) -> dict[str, str]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return make_folder(tmp_path / "inpaint")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def test_a_row_has_all_that_is_known(folder: Folder, out: Path) -> None:
    decide(folder, "ana", {0: "accept"}, caption="a  dark red thing", new_caption="a blue thing")
    result = export(folder, out, ExportSettings())
    assert (result.pairs, result.concepts, result.editors) == (1, {"color": 1}, {"recolor": 1})
    assert result.reasons == {"not_judged": 5}
    assert pq.read_schema(out / "pairs.parquet").names == COLUMNS
    (row,) = rows_of(out)
    proposal = folder.proposals()[0]
    candidate = folder.candidates_of(proposal.id)[0]
    assert row["coco_image"]["bytes"] == (folder.root / proposal.photo).read_bytes()
    assert row["inpaint_image"]["bytes"] == (folder.root / candidate.image).read_bytes()
    assert row["mask"]["bytes"] == (folder.root / candidate.changed).read_bytes()
    assert row["coco_image"]["path"] == "000000-coco.jpg"
    told = (row["concept"], row["coco_caption"], row["inpaint_caption"], row["worker"])
    assert told == ("color", "a dark red thing", "a blue thing", "ana")
    details, new_details = row["coco_details"], row["inpaint_details"]
    assert details["captions"] == [proposal.source_caption]
    assert details["id"] == proposal.key
    assert details["image_license"] == "Attribution License"
    assert details["page"] == proposal.meta["flickr_page"]
    assert json.loads(details["meta"]) == proposal.meta
    assert new_details["prompt"] == "blue"
    assert json.loads(new_details["checks"])["outside"] == {"value": 33.3, "passed": True}
    assert json.loads(new_details["settings"]) == candidate.settings
    assert json.loads(new_details["reviewers"]) == {"ana": "accept"}


@pytest.mark.parametrize(
    "require, expected", [("any", [0, 1, 2]), ("majority", [0, 1]), ("all", [0])]
)
def test_how_many_must_have_accepted(
    folder: Folder, out: Path, require: str, expected: list[int]
) -> None:
    decide(folder, "ana", {0: "accept", 1: "accept", 2: "accept", 3: "reject", 4: "skip"})
    decide(folder, "ben", {0: "accept", 1: "accept", 2: "reject"})
    decide(folder, "cy", {0: "skip", 1: "reject"})
    export(folder, out, ExportSettings(require=require))
    assert numbers_of(folder, rows_of(out)) == expected
    left = [json.loads(line) for line in (out / "left_out.jsonl").read_text().splitlines()]
    assert left[-2]["reason"] == "not_judged"  # who skips does not judge
    assert left[-3] == {
        "proposal": folder.proposals()[3].id,
        "reason": "rejected",
        "detail": "0 of 1 accepted it",
    }


def test_half_is_no_majority(folder: Folder, out: Path) -> None:
    decide(folder, "ana", {0: "accept", 1: "accept"})
    decide(folder, "ben", {0: "reject"})
    export(folder, out, ExportSettings(require="majority"))
    assert numbers_of(folder, rows_of(out)) == [1]


def test_the_candidate_of_most_people_with_the_captions_of_the_last(
    folder: Folder, out: Path
) -> None:
    decide(folder, "ana", {0: "accept"}, time=10, caption="the first red thing")
    decide(folder, "ben", {0: "accept"}, time=20, caption="the second red thing")
    decide(folder, "cy", {0: "accept"}, time=30, candidate="recolor-1", caption="a third")
    export(folder, out, ExportSettings())
    (row,) = rows_of(out)
    assert row["inpaint_details"]["candidate"] == "recolor-0"
    assert row["coco_caption"] == "the second red thing"
    assert row["worker"] == "ana, ben"
    assert json.loads(row["inpaint_details"]["reviewers"]).keys() == {"ana", "ben", "cy"}


def test_what_was_undone_does_not_count(folder: Folder, out: Path) -> None:
    decide(folder, "ana", {0: "accept", 1: "accept"})
    decide(folder, "ana", {1: "undo"})
    result = export(folder, out, ExportSettings())
    assert numbers_of(folder, rows_of(out)) == [0]
    assert result.reasons == {"not_judged": 5}


def test_names_can_be_kept_out(folder: Folder, out: Path) -> None:
    decide(folder, "zoe", {0: "accept", 1: "reject"})
    decide(folder, "ana", {0: "accept", 1: "accept"})
    export(folder, out, ExportSettings(require="any", anonymous=True))
    assert [row["worker"] for row in rows_of(out)] == ["reviewer-1, reviewer-2", "reviewer-1"]
    for path in out.iterdir():
        assert b"zoe" not in path.read_bytes(), path
        assert b'"ana"' not in path.read_bytes(), path
    assert "reviewer-1 and reviewer-2 | 2 | 1 (50%)" in (out / "README.md").read_text()


def test_unreviewed_takes_the_first_that_passed_where_nobody_judged(
    folder: Folder, out: Path
) -> None:
    proposals = folder.proposals()
    for path in (folder.root / "candidates" / proposals[2].id).glob("*-0.json"):
        path.unlink()  # only the candidate that failed is left
    decide(folder, "ana", {0: "reject", 1: "accept"})
    result = export(folder, out, ExportSettings(unreviewed=True))
    rows = rows_of(out)
    assert numbers_of(folder, rows) == [1, 3, 4, 5]
    assert [row["worker"] for row in rows] == ["ana", "recolor", "resize", "resize"]
    assert result.reasons == {"no_candidate_passed": 1, "rejected": 1}
    told = [pair.proposal.id for pair in pairs_of(folder, "majority", unreviewed=True)]
    assert told == [row["inpaint_details"]["id"] for row in rows]
    assert "3 were seen by nobody" in (out / "README.md").read_text()


def test_what_is_damaged_is_named_and_survived(folder: Folder, out: Path) -> None:
    proposals = folder.proposals()
    decide(folder, "ana", dict.fromkeys(range(6), "accept"))
    places = [folder.root / "candidates" / proposal.id for proposal in proposals]
    (places[0] / "recolor-0.json").unlink()
    (places[1] / "resize-0.json").write_text('{"id": ')
    picture = places[2] / "resize-0.png"
    picture.write_bytes(picture.read_bytes()[:-200])
    write(places[3] / "recolor-0-changed.png", png(Image.new("L", (8, 8), 255)))
    write(places[4] / "resize-1.json", b"[]")  # nobody asks for it
    result = export(folder, out, ExportSettings())
    assert numbers_of(folder, rows_of(out)) == [4, 5]
    reasons = [each.reason for each in result.left_out]
    assert reasons == ["candidate_gone", "damaged_candidate", "damaged_picture", "damaged_picture"]
    assert "broken_image" in result.left_out[2].detail
    assert "the mask of changes has (8, 8) pixels" in result.left_out[3].detail
    assert len(result.damaged) == 2
    told = (out / "left_out.jsonl").read_text() + (out / "README.md").read_text()
    assert str(folder.root) not in told
    assert f"candidates/{proposals[1].id}/resize-0.json" in told


@pytest.mark.parametrize(
    "name, reason",
    [("photo", "damaged_picture"), ("image", "damaged_picture"), ("changed", "damaged_picture")],
)
def test_a_missing_picture_is_named(folder: Folder, out: Path, name: str, reason: str) -> None:
    decide(folder, "ana", {0: "accept", 1: "accept"})
    proposal = folder.proposals()[0]
    candidate = folder.candidates_of(proposal.id)[0]
    paths = {"photo": proposal.photo, "image": candidate.image, "changed": candidate.changed}
    folder.path(paths[name]).unlink()
    result = export(folder, out, ExportSettings())
    assert result.left_out[0].reason == reason
    assert paths[name] in result.left_out[0].detail


def test_an_empty_change_is_no_pair(folder: Folder, out: Path) -> None:
    decide(folder, "ana", {0: "accept", 1: "accept"})
    candidate = folder.candidates_of(folder.proposals()[0].id)[0]
    with Image.open(folder.path(candidate.changed)) as changed:
        write(folder.path(candidate.changed), png(Image.new("L", changed.size)))
    result = export(folder, out, ExportSettings())
    assert result.left_out[0].detail == "recolor-0: the mask of changes is empty"


def test_a_record_that_names_a_file_elsewhere_reads_nothing(folder: Folder, out: Path) -> None:
    decide(folder, "ana", {0: "accept", 1: "accept"})
    path = folder.candidate_files(folder.proposals()[0].id)[0]
    value = json.loads(path.read_bytes())
    path.write_text(json.dumps({**value, "image": "../../../etc/passwd"}))
    result = export(folder, out, ExportSettings())
    assert "lies outside" in result.left_out[0].detail


@pytest.mark.parametrize(
    "caption, detail",
    [
        ("A blue thing, in the picture.", "same but for case"),
        ("  ", "a caption is empty"),
        ("a \ud800 thing", "no valid Unicode"),
    ],
)
def test_captions_that_make_no_pair(folder: Folder, out: Path, caption: str, detail: str) -> None:
    decide(folder, "ana", {0: "accept"}, caption=caption)
    decide(folder, "ana", {1: "accept"})
    result = export(folder, out, ExportSettings())
    assert result.left_out[0].reason == "bad_captions"
    assert detail in result.left_out[0].detail
    assert result.pairs == 1


def test_captions_are_checked_before_a_person_is_believed() -> None:
    assert check_captions(" a  cat.", "a dog.") == ("a cat.", "a dog.")
    with pytest.raises(ValueError, match=r"^the captions are the same but for .* \('a cat\.'\)"):
        check_captions("a cat.", "A cat")


def test_a_proposal_that_is_gone_is_named(folder: Folder, out: Path) -> None:
    decide(folder, "ana", {0: "accept", 1: "accept"})
    lines = folder.proposals_file.read_text().splitlines()
    folder.proposals_file.write_text("\n".join(lines[1:]))
    result = export(folder, out, ExportSettings())
    assert result.left_out[-1].reason == "proposal_gone"
    assert result.pairs == 1


def test_a_few_of_each_photo_and_as_many_of_each_concept(tmp_path: Path, out: Path) -> None:
    folder = make_folder(tmp_path / "inpaint", count=8, per_photo=4)
    settings = ExportSettings(unreviewed=True, max_per_photo=2)
    result = export(folder, out, settings)
    assert numbers_of(folder, rows_of(out)) == [0, 1, 4, 5]
    assert result.reasons == {"more_of_the_photo": 4}
    result = export(folder, out, ExportSettings(unreviewed=True, balance=True))
    assert numbers_of(folder, rows_of(out)) == [0, 1, 2, 3, 4, 5]
    assert result.concepts == {"color": 2, "object": 2, "size": 2}
    assert result.reasons == {"balance": 2}


def test_the_same_again_gives_the_same_bytes(folder: Folder, tmp_path: Path) -> None:
    decide(folder, "ana", dict.fromkeys(range(6), "accept"))
    for format_ in ("parquet", "shards"):
        settings = ExportSettings(format=format_, pairs_per_shard=2)
        first, again = tmp_path / f"{format_}-1", tmp_path / f"{format_}-2"
        export(folder, first, settings)
        before = digest(first)
        export(folder, first, settings)
        export(folder, again, settings)
        assert digest(first) == before == digest(again)


def test_datasets_reads_it_with_pictures_decoded(folder: Folder, out: Path) -> None:
    """In a process of its own: `datasets` reads its switches when it is imported."""
    decide(folder, "ana", {0: "accept", 1: "accept"})
    # A photo that is to be turned: all three pictures must stay of one size.
    proposal = folder.proposals()[1]
    photo = Image.open(folder.root / proposal.photo)
    exif = Image.Exif()
    exif[0x0112] = 6
    photo.save(folder.root / proposal.photo, exif=exif)
    export(folder, out, ExportSettings())
    code = """
import sys, datasets
data, cache = sys.argv[1:]
ways = {"path": "parquet", "data_files": data + "/pairs.parquet", "split": "train"}
for ways in ways, {"path": data, "split": "test"}:  # the latter by the card's front matter
    rows = datasets.load_dataset(**ways, cache_dir=cache)
    assert isinstance(rows.features["coco_image"], datasets.Image), rows.features
    for row in rows:
        images = [row[name] for name in ("coco_image", "inpaint_image", "mask")]
        assert len({image.size for image in images}) == 1, images
        print(row["concept"], images[2].mode, row["coco_details"]["captions"][0])
"""
    environment = {**os.environ, "HF_DATASETS_OFFLINE": "1", "HF_HUB_OFFLINE": "1"}
    environment["HF_HOME"] = str(out.parent / "hf")
    arguments = [sys.executable, "-c", code, str(out), str(out.parent / "cache")]
    done = subprocess.run(
        arguments, capture_output=True, text=True, check=False, env=environment, timeout=120
    )
    assert done.returncode == 0, done.stderr
    captions = [each.source_caption for each in folder.proposals()]
    assert done.stdout.splitlines() == 2 * [f"color L {captions[0]}", f"size L {captions[1]}"]


@pytest.mark.parametrize("format_", ["JPEG", "PNG", "WEBP"])
def test_a_photo_that_others_would_turn_or_refuse_becomes_pixels(format_: str) -> None:
    """Pillow raises for an EXIF block without a TIFF header, where `datasets` asks for it."""
    turned = Image.Exif()
    turned[0x0112] = 6
    for exif in (turned, b"Exif\0\0??*\0\0\0\0\x08\0\0"):
        buffer = io.BytesIO()
        Image.new("RGB", (20, 10), "red").save(buffer, format_, exif=exif)
        photo = as_it_lies(buffer.getvalue(), 1000)
        with Image.open(io.BytesIO(photo)) as image:
            assert (image.size, image.getexif().get(0x0112, 1)) == ((20, 10), 1)
    buffer = io.BytesIO()
    Image.new("RGB", (20, 10), "red").save(buffer, format_)
    assert as_it_lies(buffer.getvalue(), 1000) == buffer.getvalue()


def test_the_evaluation_scores_it_by_concept(folder: Folder, out: Path) -> None:
    """A model whose features know each picture and each caption gets all right."""
    import torch

    from hnpretrain.eval import benchmarks
    from hnpretrain.eval.encode import Encoder
    from hnpretrain.eval.scorers import Cosine

    decide(folder, "ana", dict.fromkeys(range(6), "accept"))
    export(folder, out, ExportSettings())
    rows = rows_of(out)
    captions = [row[name] for row in rows for name in ("coco_caption", "inpaint_caption")]
    pictures = [
        np.asarray(Image.open(io.BytesIO(row[name]["bytes"])).convert("RGB"))
        for row in rows
        for name in ("coco_image", "inpaint_image")
    ]
    # Captions come again from row to row: what matters is the side of the pair that they are on.
    side_of = {caption: n % 2 for n, caption in enumerate(captions)}
    known = {hashlib.sha256(p.tobytes()).digest(): n % 2 for n, p in enumerate(pictures)}
    assert len(known) == len(pictures)

    class Knows(torch.nn.Module):
        def encode_image(self, sides_B1: torch.Tensor) -> torch.Tensor:
            return torch.eye(2)[sides_B1[:, 0].long()]

        encode_text = encode_image

    def look(image: Image.Image) -> torch.Tensor:
        return torch.tensor([known[hashlib.sha256(np.asarray(image).tobytes()).digest()]])

    def read(texts: list[str]) -> torch.Tensor:
        return torch.tensor([[side_of[text]] for text in texts])

    encoder = Encoder(Knows(), look, read, batch_size=4, threads=1)
    result = benchmarks.load("inpaintcoco", out).run(encoder, Cosine())
    for score in ("text", "image", "group"):
        assert result[score].value == 1
        for concept in ("color", "size", "object"):
            assert (result[f"{score}/{concept}"].value, result[f"{score}/{concept}"].count) == (
                1,
                2,
            )


def samples_of(out: Path) -> list[Any]:
    samples = []
    for shard in read_index(str(out)).shards:
        data, marker = (out / shard.name).read_bytes(), read_marker(str(out), shard.name)
        for start, end in zip(marker.offsets, marker.offsets[1:], strict=False):
            samples.append(decode_sample(data[start:end]).sample())
    return samples


def test_shards_have_each_other_as_negatives(folder: Folder, out: Path) -> None:
    decide(folder, "ana", dict.fromkeys(range(5), "accept"))
    result = export(folder, out, ExportSettings(format="shards", pairs_per_shard=2))
    assert list(verify(str(out), MAX_PIXELS, 1, deep=True)) == []
    index = read_index(str(out))
    assert (index.samples, len(index.shards), result.pairs) == (10, 3, 5)
    assert index.concepts == {"color": 4, "object": 2, "size": 4}
    assert index.strategies == {"inpaint": 10}
    samples = samples_of(out)
    for number, proposal in enumerate(folder.proposals()[:5]):
        photo, picture = samples[2 * number : 2 * number + 2]
        assert photo.key == f"{number:06d}-{proposal.id}-a"
        assert picture.key == f"{number:06d}-{proposal.id}-b"
        assert photo.image == (folder.root / proposal.photo).read_bytes()
        assert photo.captions[0].text == picture.captions[0].negatives[0].text == proposal.caption
        assert picture.captions[0].text == photo.captions[0].negatives[0].text
        assert photo.captions[0].negatives[0].target == proposal.target
        assert picture.captions[0].negatives[0].source == proposal.target
        assert photo.meta == {**proposal.meta, "pair": proposal.id, "side": "photo"}
    # Fewer pairs than before: what is left of the others would be no part of the index.
    decide(folder, "ana", dict.fromkeys(range(2, 5), "reject"))
    export(folder, out, ExportSettings(format="shards", pairs_per_shard=2))
    assert list(verify(str(out), MAX_PIXELS, 1)) == []
    assert len(list(out.glob("*.tar"))) == 1


def test_the_loader_of_trainings_reads_them(folder: Folder, out: Path) -> None:
    decide(folder, "ana", dict.fromkeys(range(6), "accept"))
    export(folder, out, ExportSettings(format="shards", pairs_per_shard=4))
    found = batches(loader(str(out), batch_size=4, streams=1))
    keys = {key for position, batch, _ in found if position.epoch == 0 for key in batch.keys}
    assert keys == {sample.key for sample in samples_of(out)}
    for _, batch, _ in found:
        assert batch.texts.place_BC.shape[1] > 1
        # Every caption has a negative, which is another text than the caption.
        assert (batch.texts.place_BC[:, 0] != batch.texts.place_BC[:, 1]).all()


def test_no_pair_is_torn_apart_by_the_order_of_keys(tmp_path: Path, out: Path) -> None:
    folder = make_folder(tmp_path / "inpaint", count=2)
    one, other = folder.proposals()
    renamed = []
    for proposal, name in ((one, "x"), (other, "x-a" + "y" * 150)):
        (folder.root / "candidates" / proposal.id).rename(folder.root / "candidates" / name)
        for path in (folder.root / "candidates" / name).glob("*.json"):
            text = path.read_text().replace(proposal.id, name)
            path.write_text(text)
        renamed.append(dataclasses.replace(proposal, id=name))
    folder.proposals_file.write_text("\n".join(json.dumps(to_json(each)) for each in renamed))
    export(folder, out, ExportSettings(format="shards", unreviewed=True))
    sides = [(s.meta["pair"], s.meta["side"]) for s in samples_of(out)]
    assert sides == [(p.id, side) for p in renamed for side in ("photo", "inpainted")]


@pytest.mark.parametrize(
    "caption, new_caption",
    [
        ("a red bus on a road", "a blue bus on a road"),
        ("a bus on a road", "a small bus on a road"),
        ("red bus", "bus"),
        ("a bus", "a bus that is red"),
        ("a cup of tea", "an umbrella of tea"),
        ("a cup", "two large umbrellas on a road"),
        ("A bus and a bus", "A bus and a bus and a bus"),
    ],
)
def test_edited_captions_get_a_span_that_fits(
    folder: Folder, caption: str, new_caption: str
) -> None:
    proposal = folder.proposals()[0]
    candidate = folder.candidates_of(proposal.id)[0]
    forth, back = edits(Pair(proposal, candidate, caption, new_caption))
    locate(caption, forth)
    locate(new_caption, back)
    assert (forth.text, back.text) == (new_caption, caption)
    assert (forth.source, forth.target) == (back.target, back.source)


def front_matter(card: str) -> dict[str, Any]:
    start, middle, rest = card.split("---\n", 2)
    assert start == ""
    assert rest.startswith("\n# ")
    return yaml.safe_load(middle)


def test_the_card_tells_what_is_in_and_what_is_not(folder: Folder, out: Path) -> None:
    rows = [{"reason": "no_mask"}, {"reason": "no_mask"}, {"reason": "too_small"}]
    folder.left_out_file.write_text("".join(json.dumps(row) + "\n" for row in rows) + "{")
    decide(folder, "ana", {0: "accept", 1: "accept", 2: "reject"}, note="a | seam <b>\nthere")
    decide(folder, "ben", {0: "accept", 2: "reject"})
    lines = [json.loads(line) for line in folder.proposals_file.read_text().splitlines()]
    lines[1]["meta"] = {}
    folder.proposals_file.write_text("\n".join(map(json.dumps, lines)))
    title = "Pairs: of 'photos' # 1"
    export(folder, out, ExportSettings(title=title))
    card = (out / "README.md").read_text()
    head = front_matter(card)
    assert head["pretty_name"] == title
    assert head["license"] == "other"
    assert head["size_categories"] == ["n<1K"]
    assert head["configs"][0]["data_files"] == [{"split": "test", "path": "pairs.parquet"}]
    for line in (
        "2 pairs of pictures over 2 photos.",
        "| concept | recolor | resize | all |",
        "| color | 1 | 0 | 1 |",
        "| all | 1 | 1 | 2 |",
        '| resize | 8 | 1 | {"strength": 0.5} |',
        "| no_mask | 2 |",
        "| outside | resize | 4 | 8 |",
        "| (no note) | 1 |",
        "| a \\| seam &lt;b> there | 1 |",
        "| not_judged | 3 |",
        "| ana | 2 | 1 | 0 |",
        "2 proposals were judged by two people or more, who all agreed on 2 of them (100%).",
        "| ana and ben | 2 | 2 (100%) | 1.00 |",
        "| Attribution License | http://creativecommons.org/licenses/by/2.0/ | 1 |",
        "| not stated | not stated | 1 |",
    ):
        assert line in card, line
    assert "a licence that forbids adaptations (ND)" in card
    pages = [line.split("\t")[3] for line in (out / "attributions.tsv").read_text().splitlines()]
    keys = sorted(folder.proposals()[:2], key=lambda proposal: proposal.key)
    assert pages == ["page", *(each.meta.get("flickr_page", "") for each in keys)]


def test_the_card_counts_what_could_not_be_made_as_generate_does(folder: Folder, out: Path) -> None:
    proposals = folder.proposals()
    place = folder.root / "candidates" / proposals[0].id
    for number in range(4):
        slot = Slot(proposals[0].id, "replace", number)
        cannot = Cannot(slot.id, slot.proposal, slot.editor, 0, {}, f"only {number}.5 % fit")
        write_cannot(folder, slot, cannot)
    (place / "replace-2.cannot").write_bytes(b'{"id": ')  # cut short
    (place / "notes.cannot").write_bytes(b"of somebody")
    # Written before the picture that is there now: `generate` counts the picture alone.
    slot = Slot(proposals[0].id, "recolor", 0)
    write_cannot(folder, slot, Cannot(slot.id, slot.proposal, slot.editor, 0, {}, "too pale"))
    export(folder, out, ExportSettings(unreviewed=True))
    card = (out / "README.md").read_text()
    assert "| replace | only N % fit | 3 |" in card
    assert "too pale" not in card


def test_a_card_of_shards_points_at_them(folder: Folder, out: Path) -> None:
    export(folder, out, ExportSettings(format="shards", unreviewed=True))
    card = (out / "README.md").read_text()
    assert front_matter(card)["configs"][0]["data_files"][0]["path"] == "pairs-*.tar"
    assert "Nobody has judged anything." in card


def test_nothing_to_export_is_one_clear_error(folder: Folder, out: Path) -> None:
    with pytest.raises(ValueError, match=r"no pair is left \(6 not_judged\); accept some with"):
        export(folder, out, ExportSettings())
    assert not out.exists()
    with pytest.raises(ValueError, match=r"holds no proposals\.jsonl"):
        export(Folder(out), out.parent / "other", ExportSettings())


def test_other_data_is_left_alone(folder: Folder, out: Path) -> None:
    unreviewed = ExportSettings(unreviewed=True)
    for name in ("pairs.parquet", "README.md", "left_out.jsonl", "export.json"):
        write(out / name, b"of somebody")
        with pytest.raises(ValueError, match="out is not empty, and no earlier export with format"):
            export(folder, out, unreviewed)
        assert [path.name for path in out.iterdir()] == [name]
        assert (out / name).read_bytes() == b"of somebody"
        (out / name).unlink()
    for name in ("photos", "masks/set", "donors", "candidates/x/y", "decisions"):
        with pytest.raises(
            ValueError, match=f"lies in .*{name.split('/')[0]}, which is of another"
        ):
            export(folder, folder.root / name, unreviewed)
    with pytest.raises(ValueError, match="is the folder of the proposals"):
        export(folder, folder.root, unreviewed)
    write(out.parent / "file", b"")
    with pytest.raises(ValueError, match="is a file"):
        export(folder, out.parent / "file", unreviewed)


def test_only_an_export_of_the_same_format_is_replaced(folder: Folder) -> None:
    """Also one that was killed before its card; in the folder of the proposals, where it may be."""
    out = folder.root / "export"
    out.mkdir()
    export(folder, out, ExportSettings(unreviewed=True))
    first = digest(out)
    with pytest.raises(ValueError, match="no earlier export with format=shards"):
        export(folder, out, ExportSettings(format="shards", unreviewed=True))
    assert digest(out) == first
    (out / "README.md").unlink()
    (out / "pairs.parquet").write_bytes(b"cut")
    export(folder, out, ExportSettings(unreviewed=True))
    assert digest(out) == first


@pytest.mark.parametrize(
    "settings",
    [
        {"format": "parquets"},
        {"require": "most"},
        {"max_per_photo": -1},
        {"pairs_per_shard": 0},
        {"max_pixels": 0},
        {"title": " "},
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        ExportSettings(**settings)
