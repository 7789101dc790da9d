"""A folder to review, made of real photos, and the server as a process that can be killed."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from hnpretrain.inpaint.folder import Folder
from hnpretrain.inpaint.records import Candidate, Check, Decision, Proposal, to_json
from hnpretrain.shards.images import DEFAULT_MAX_PIXELS, png_of

PHOTOS = Path(__file__).parents[1] / "assets" / "coco_ccby"
# Category, what is said of it, and what is said then; the photos are the first that have one.
_EDITS = (
    ("bus", "color", "recolor", "a red bus", "a green bus"),
    ("dog", "size", "enlarge", "a small dog", "a big dog"),
    ("train", "color", "recolor", "a yellow train", "a blue train"),
    ("cat", "object", "remove", "a cat", "an empty place"),
    ("pizza", "object", "replace", "a pizza", "a cake"),
    ("car", "color", "recolor", "a white car", "a red car"),
)
_COMMAND = (sys.executable, "-m", "hnpretrain.cli", "inpaint", "review")


def make_folder(root: Path) -> Folder:
    """Six proposals: each with one candidate that passes its checks, and one that does not; the
    last with the latter alone.
    """
    folder = Folder(root)
    records = [json.loads(line) for line in (PHOTOS / "data.jsonl").read_text().splitlines()]
    proposals = []
    for number, (category, concept, edit, words, new_words) in enumerate(_EDITS):
        record, polygons = _first_with(category, records)
        ident = f"p{number}-{category}"
        data = (PHOTOS / record["image"]).read_bytes()
        mask = Image.new("L", (record["width"], record["height"]))
        for polygon in polygons:
            ImageDraw.Draw(mask).polygon(polygon, fill=255)
        _write(root / f"photos/{ident}.jpg", data)
        _write(root / f"masks/{ident}.png", png_of(mask))
        proposals.append(
            Proposal(
                id=ident,
                key=str(record["coco_id"]),
                photo=f"photos/{ident}.jpg",
                source_caption=record["captions"][0],
                caption=f"There is {words} in the picture.",
                new_caption=f"There is {new_words} in the picture.",
                concept=concept,
                edit=edit,
                source=words,
                target=new_words,
                span=(9, 9 + len(words)),
                noun=category,
                category=category,
                mask=f"masks/{ident}.png",
                things=1,
                area=0.1,
                score=1.0 - number / 10,
            )
        )
        photo = Image.open(io.BytesIO(data)).convert("RGB")
        last = number == len(_EDITS) - 1
        for which in range(1 if last else 0, 2):
            hue, saturation, value = photo.convert("HSV").split()
            turned = hue.point(lambda h, by=90 + 60 * which: (h + by) % 256)
            edited = Image.merge("HSV", (turned, saturation, value)).convert("RGB")
            edited = Image.composite(edited, photo, mask)
            add_candidate(folder, ident, f"recolor-{which}", edited, passed=which == 0)
    lines = "".join(json.dumps(to_json(proposal)) + "\n" for proposal in proposals)
    _write(root / "proposals.jsonl", lines.encode())
    return folder


def add_candidate(
    folder: Folder, proposal: str, ident: str, image: Image.Image, passed: bool = True
) -> None:
    """A candidate with two checks, one of which measured infinity."""
    place = f"candidates/{proposal}/{ident}"
    _write(folder.root / f"{place}.png", png_of(image))
    candidate = Candidate(
        id=ident,
        proposal=proposal,
        editor=ident.partition("-")[0],
        image=f"{place}.png",
        changed=f"masks/{proposal}.png",
        seed=1,
        settings={},
        details={},
        checks={
            "outside": Check(float("inf"), True),
            "seam": Check(1.25 if passed else 9.87654, passed),
        },
    )
    _write(folder.root / f"{place}.json", json.dumps(to_json(candidate)).encode())


def _first_with(
    category: str, records: list[dict[str, Any]]
) -> tuple[dict[str, Any], list[list[float]]]:
    for record in records:
        for instance in record["instances"]:
            _, _, width, height = instance["bbox"]
            if instance["category"] == category and width * height > 4000:
                return record, instance["polygons"]
    raise ValueError(f"no photo has a {category}")


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def decision(
    proposal: str = "p0-bus", verdict: str = "accept", reviewer: str = "ana", **fields: Any
) -> Decision:
    """A decision with plain captions."""
    others: Mapping[str, Any] = {
        "candidate": "recolor-0",
        "caption": "a red bus",
        "new_caption": "a green bus",
        "time": 1.5,
    }
    return Decision(proposal, reviewer, verdict, **{**others, **fields})


@dataclass
class Served:
    """A running server.

    Attributes:
        folder: that is reviewed.
        link: that it printed.
        port: that it listens on.
        token: of the link.
        process: which it is.
    """

    folder: Folder
    link: str
    port: int
    token: str
    process: subprocess.Popen[str]

    def kill(self) -> None:
        """As a power cut does to a process; it is gone when this returns."""
        self.process.kill()
        self.process.wait()

    def interrupt(self) -> tuple[int, str, str]:
        """Ctrl-C: (exit status, stdout since the link, stderr)."""
        self.process.send_signal(signal.SIGINT)
        out, err = self.process.communicate(timeout=20)
        return self.process.returncode, out, err


@contextlib.contextmanager
def served(
    folder: Folder,
    reviewer: str = "",
    port: int = 0,
    everything: bool = False,
    max_pixels: int = DEFAULT_MAX_PIXELS,
) -> Iterator[Served]:
    """The command as a process of its own, which is gone afterwards."""
    options = [f"--reviewer={reviewer}", f"--port={port}", f"--max-pixels={max_pixels}"]
    if everything:
        options.append("--all")
    with subprocess.Popen(
        [*_COMMAND, str(folder.root), *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stderr is not None
            for line in process.stdout:
                if found := re.search(r"http://127\.0\.0\.1:(\d+)/\?token=(\S+)", line):
                    yield Served(folder, found[0], int(found[1]), found[2], process)
                    break
            else:
                raise RuntimeError(process.stderr.read())
        finally:
            process.kill()
