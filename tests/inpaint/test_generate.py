"""`generate`: the same bytes again, after kills, in parts and processes; what it refuses."""

import contextlib
import io
import json
import multiprocessing
import os
import signal
import time
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from hnpretrain.config import load
from hnpretrain.inpaint import candidates
from hnpretrain.inpaint.checks import Checks, CheckSettings
from hnpretrain.inpaint.editors.base import CannotEdit, Edited, Editor
from hnpretrain.inpaint.editors.diffusion import DiffusionSettings
from hnpretrain.inpaint.editors.donors import Cutting, DonorWriter
from hnpretrain.inpaint.folder import Folder
from hnpretrain.inpaint.generate import (
    EDITORS,
    GenerateSettings,
    GenerateState,
    editors_of,
    generate,
)
from hnpretrain.inpaint.maker import Debt, assign
from hnpretrain.inpaint.progress import GenerateProgress
from hnpretrain.inpaint.records import EDITS, Check, to_json
from hnpretrain.inpaint.working import working_alone
from hnpretrain.shards.images import png_of
from tests.support.inpainting import write_pipeline, write_proposals
from tests.support.programs import hnpretrain


@dataclass
class Painter(Editor):
    """Fills the mask with a color that is drawn; what else it does, its fields say."""

    name: str = "painter"
    edits: tuple = ("recolor",)
    batch_size: int = 1
    is_seeded: bool = True
    brightness: int = 255
    cannot: tuple = ()  # ids of proposals
    sleep: float = 0.0
    die: str = ""  # at a proposal
    raise_at: str = ""
    seen: list = field(default_factory=list)

    @property
    def settings(self):
        return {"brightness": self.brightness, "pair": (1, 2.5)}

    def edit(self, tasks):
        self.seen.append([task.proposal.id for task in tasks])
        time.sleep(self.sleep)
        return [self._one(task) for task in tasks]

    def _one(self, task):
        if task.proposal.id == self.die:
            os._exit(9)
        if task.proposal.id == self.raise_at:
            raise ValueError("no such color")
        if task.proposal.id in self.cannot:
            return CannotEdit(f"only {task.seed % 100}% of it are red")
        image_HWC = task.photo_HWC.copy()
        color = np.random.default_rng(task.seed).integers(0, self.brightness, 3)
        image_HWC[task.mask_HW] = color
        return Edited(image_HWC, task.mask_HW, {"color": tuple(map(int, color))})


@dataclass
class Checking:
    """Some pass and some don't, by what the picture and those before it are."""

    duplicate: float = 20.0

    @property
    def settings(self):
        return {"duplicate": self.duplicate}

    def __call__(self, task, edited, earlier):
        nearest = min(
            (
                float(np.abs(edited.image_HWC - each.image_HWC.astype(float)).mean())
                for each in earlier
            ),
            default=100.0,
        )
        change = float((edited.image_HWC != task.photo_HWC).any(2).mean())
        outside_HW = ~edited.changed_HW
        same = np.array_equal(edited.image_HWC[outside_HW], task.photo_HWC[outside_HW])
        return {
            "change": Check(change, same),
            "duplicate": Check(nearest, nearest > self.duplicate),
            "earlier": Check(float(len(earlier)), True),
        }


check = Checking()


def files_of(folder):
    root = folder.root / "candidates"
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def settings_of(**changes):
    return GenerateSettings(**({"candidates": 3} | changes))


@pytest.fixture
def folder(tmp_path):
    return write_proposals(tmp_path / "work", 4)


def test_candidates_are_made_recorded_and_counted(folder):
    result = generate(folder, settings_of(), [Painter()], check)
    counts = result.editors["painter"]
    assert (result.proposals, result.without_editor, result.broken) == (4, 0, [])
    assert (counts.made, counts.kept, counts.cannot.total()) == (12, 0, 0)
    assert counts.seconds_each > 0
    found = [each for p in folder.proposals() for each in folder.candidates_of(p.id)]
    assert counts.passed == sum(each.passed for each in found)
    assert counts.failed["duplicate"] == sum(not each.checks["duplicate"].passed for each in found)
    assert [each.id for each in found[:3]] == ["painter-0", "painter-1", "painter-2"]
    assert len({each.seed for each in found}) == 12
    assert all(0 <= each.seed < 2**53 for each in found)
    # Each is compared with those before it.
    assert [each.checks["earlier"].value for each in found[:3]] == [0, 1, 2]
    first, proposal = found[0], folder.proposals()[0]
    assert first.settings == {"brightness": 255, "pair": [1, 2.5]}
    task = candidates.read_task(folder, proposal, 10**7)
    edited = candidates.read_edited(folder, first, 10**7)
    assert np.array_equal(edited.changed_HW, task.mask_HW)
    assert np.array_equal(
        edited.image_HWC, Painter()._one(replace(task, seed=first.seed)).image_HWC
    )


def test_what_is_finished_is_kept(folder):
    first = generate(folder, settings_of(), [Painter()], check)
    before = {path: path.stat().st_mtime_ns for path in folder.root.rglob("*.png")}
    editor = Painter()
    again = generate(folder, settings_of(), [editor], check)
    assert editor.seen == []
    counts = again.editors["painter"]
    assert (counts.made, counts.kept) == (0, 12)
    assert (counts.passed, counts.failed) == (
        first.editors["painter"].passed,
        first.editors["painter"].failed,
    )
    assert before == {path: path.stat().st_mtime_ns for path in folder.root.rglob("*.png")}


def test_more_candidates_come_to_those_that_are_there(folder, tmp_path):
    generate(folder, settings_of(candidates=1), [Painter()], check)
    generate(folder, settings_of(), [Painter(batch_size=4)], check)
    whole = write_proposals(tmp_path / "whole", 4)
    generate(whole, settings_of(), [Painter()], check)
    assert files_of(folder) == files_of(whole)


@pytest.mark.parametrize("name", ["painter-1.png", "painter-1-changed.png", "painter-1.json"])
def test_what_is_lost_is_made_again(folder, name):
    generate(folder, settings_of(), [Painter()], check)
    before = files_of(folder)
    for proposal in ("p1", "p2"):
        path = folder.root / "candidates" / proposal / name
        path.unlink()
    if name.endswith("json"):
        path.write_bytes(before[f"p2/{name}"][:30])  # cut short
    result = generate(folder, settings_of(), [Painter()], check)
    assert result.editors["painter"].made == 2
    assert files_of(folder) == before


@pytest.mark.parametrize("name", ["painter-1.png", "painter-1-changed.png"])
def test_a_picture_that_was_cut_short_is_made_again(folder, name):
    first = generate(folder, settings_of(), [Painter()], check).editors["painter"]
    before = files_of(folder)
    path = folder.root / "candidates/p1" / name
    path.write_bytes(before[f"p1/{name}"][:60])
    counts = generate(folder, settings_of(), [Painter()], check).editors["painter"]
    assert (counts.made, counts.kept, counts.passed) == (1, 11, first.passed)
    assert files_of(folder) == before


@pytest.mark.parametrize("is_whole", [False, True])
@pytest.mark.parametrize("bounds", [20.0, 1.0])
def test_what_others_are_compared_with_is_made_again_where_it_is_damaged(folder, bounds, is_whole):
    """Its size is as it was; without the bytes, nobody can say whether the next one is like it."""
    generate(folder, settings_of(candidates=2), [Painter()], check)
    before = files_of(folder)
    path = folder.root / "candidates/p1/painter-0.png"
    damaged = before["p1/painter-0.png"][:-40]
    if is_whole:
        with Image.open(path) as image:
            damaged = png_of(Image.new("RGB", image.size))
    path.write_bytes(damaged.ljust(len(before["p1/painter-0.png"]), b"\0"))
    states = []
    result = generate(folder, settings_of(), [Painter()], Checking(bounds), report=states.append)
    counts = result.editors["painter"]
    assert result.broken == []
    assert (counts.made, counts.kept + counts.rechecked) == (5, 7)
    found = [each for p in folder.proposals() for each in folder.candidates_of(p.id)]
    assert counts.passed == sum(each.passed for each in found)
    failing = sum(not each.checks["duplicate"].passed for each in found)
    assert counts.failed == ({"duplicate": failing} if failing else {})
    assert path.read_bytes() == before["p1/painter-0.png"]
    state = states[-1]
    assert (state.made, state.rechecked, state.kept) == (5, counts.rechecked, counts.kept)
    assert state.done == state.to_do


def test_other_bounds_are_held_against_the_pictures_that_are_there(folder, tmp_path):
    generate(folder, settings_of(), [Painter(cannot=("p2",))], check)
    folder.decisions.mkdir()
    (folder.decisions / "ann.jsonl").write_text('{"proposal": "p0"}\n')
    before = {path: path.stat().st_mtime_ns for path in folder.root.rglob("*.png")}
    editor, states = Painter(cannot=("p2",)), []
    stricter = Checking(duplicate=1000.0)
    again = generate(folder, settings_of(), [editor], stricter, report=states.append)
    counts = again.editors["painter"]
    assert editor.seen == []
    assert (counts.made, counts.kept, counts.rechecked, counts.pictures) == (0, 0, 9, 9)
    # The first ones are like none before them, by 100.
    assert (counts.passed, counts.failed) == (0, {"duplicate": 9})
    assert before == {path: path.stat().st_mtime_ns for path in folder.root.rglob("*.png")}
    assert states[-1] == GenerateState(3, 9, 0, 0, False, 9)
    fresh = write_proposals(tmp_path / "fresh", 4)
    generate(fresh, settings_of(), [Painter(cannot=("p2",))], stricter)
    assert files_of(folder) == files_of(fresh)
    third = generate(folder, settings_of(), [editor], stricter).editors["painter"]
    assert (third.kept, third.rechecked, third.failed) == (9, 0, counts.failed)


def test_bounds_and_lost_pictures_at_once(folder, tmp_path):
    """What is checked anew is compared with what is made anew."""
    generate(folder, settings_of(), [Painter()], check)
    for name in ("p0/painter-0.png", "p0/painter-1.json", "p3/painter-2.png"):
        (folder.root / "candidates" / name).unlink()
    other = Checking(duplicate=10.0)
    settings = settings_of(candidates=4, devices=["cpu", "cpu"])
    counts = generate(folder, settings, [Painter(batch_size=4)], other).editors["painter"]
    assert (counts.made, counts.rechecked, counts.kept) == (7, 9, 0)
    fresh = write_proposals(tmp_path / "fresh", 4)
    generate(fresh, settings_of(candidates=4), [Painter()], other)
    assert files_of(folder) == files_of(fresh)


def test_every_editor_makes_its_own(tmp_path):
    folder = write_proposals(tmp_path, 4, edits=("recolor", "remove", "shrink"))
    editors = [Painter(), Painter(name="other", edits=("remove", "recolor"))]
    result = generate(folder, settings_of(candidates=2), editors, check)
    assert result.without_editor == 1
    assert {name: each.made for name, each in result.editors.items()} == {"painter": 4, "other": 6}
    assert sorted(each.id for each in folder.candidates_of("p0")) == [
        *("other-0", "other-1", "painter-0", "painter-1")
    ]
    assert [each.id for each in folder.candidates_of("p1")] == ["other-0", "other-1"]
    assert not (folder.root / "candidates/p2").exists()
    with pytest.raises(ValueError, match="painter, painter: no name twice"):
        generate(folder, settings_of(), [Painter(), Painter()], check)


def test_an_editor_without_a_seed_makes_one(folder):
    editors = [Painter(is_seeded=False), Painter(name="other")]
    result = generate(folder, settings_of(), editors, check)
    assert {name: each.made for name, each in result.editors.items()} == {"painter": 4, "other": 12}


def test_the_best_come_first_and_batches_are_full(folder):
    editor = Painter(batch_size=2)
    generate(folder, settings_of(), [editor], check)
    assert editor.seen == [
        *(["p0", "p0"], ["p0", "p1"], ["p1", "p1"]),
        *(["p2", "p2"], ["p2", "p3"], ["p3", "p3"]),
    ]
    proposals = folder.proposals()
    for size, owed in ((4, 1), (4, 3), (3, 6), (8, 6), (1, 2)):
        debts = {0: [Debt(each, tuple(range(owed))) for each in proposals * 6]}
        works = list(assign(debts, [Painter(batch_size=size)]))
        assert sum((work.debts for work in works), ()) == tuple(debts[0])
        assert all(work.pictures % size == 0 for work in works[:-1])


def test_what_cannot_be_made_is_recorded_and_not_tried_again(folder):
    result = generate(folder, settings_of(), [Painter(cannot=("p1",))], check)
    counts = result.editors["painter"]
    assert (counts.made, counts.cannot) == (9, {"only N% of it are red": 3})
    assert folder.candidates_of("p1") == []
    editor = Painter(cannot=("p1",))
    again = generate(folder, settings_of(), [editor], check).editors["painter"]
    assert (again.made, again.kept, again.cannot) == (0, 9, counts.cannot)
    assert editor.seen == []
    # Under other settings it may be made; then nothing says that it can't.
    other = settings_of(rebuild=True)
    third = generate(folder, other, [Painter(brightness=9)], check).editors["painter"]
    assert (third.made, third.cannot) == (12, {})
    assert not [name for name in files_of(folder) if name.endswith(".cannot")]


def test_other_settings_are_refused_with_each_difference(folder):
    generate(folder, settings_of(), [Painter()], check)
    before = files_of(folder)
    message = (
        r"12 candidates were made otherwise, candidates/p0/painter-0 with \(there -> now\) "
        r"settings\.brightness: 255 -> 9\. rebuild=true makes them anew"
    )
    with pytest.raises(ValueError, match=message):
        generate(folder, settings_of(), [Painter(brightness=9)], check)
    with pytest.raises(ValueError, match=r"12 candidates .* seed: \d+ -> \d+\. rebuild"):
        generate(folder, settings_of(), [Painter()], check, seed=1)
    assert files_of(folder) == before
    rebuilt = generate(folder, settings_of(rebuild=True), [Painter()], check, seed=1)
    assert rebuilt.editors["painter"].made == 12
    assert files_of(folder).keys() == before.keys()
    after = files_of(folder)
    assert not [name for name in after if name.endswith("json") and after[name] == before[name]]
    # What was made anew is kept; another rebuild has nothing to do.
    again = generate(folder, settings_of(rebuild=True), [Painter()], check, seed=1)
    assert again.editors["painter"].made == 0


def test_pictures_that_people_judged_are_not_exchanged(folder):
    generate(folder, settings_of(), [Painter()], check)
    folder.decisions.mkdir()
    (folder.decisions / "ann.jsonl").write_text('{"proposal": "p0"}\n')
    before = files_of(folder)
    with pytest.raises(ValueError, match="would exchange 12 pictures under what people said"):
        generate(folder, settings_of(rebuild=True), [Painter()], check, seed=1)
    assert files_of(folder) == before
    # More of the same are no exchange.
    more = generate(folder, settings_of(candidates=4), [Painter()], check)
    assert more.editors["painter"].made == 4


def test_broken_photos_and_masks_are_named_and_survived(tmp_path):
    folder = write_proposals(tmp_path, 6)
    proposals = folder.proposals()
    photo = folder.path(proposals[0].photo)
    good = photo.read_bytes()
    photo.write_bytes(good[: len(good) // 2])
    folder.path(proposals[1].photo).unlink()
    Image.new("L", (20, 20), 255).save(folder.path(proposals[2].mask))
    with Image.open(folder.path(proposals[3].mask)) as mask:
        Image.new("L", mask.size).save(folder.path(proposals[3].mask))
    folder.path(proposals[4].mask).write_bytes(b"no picture")
    result = generate(folder, settings_of(), [Painter(), Painter(name="other")], check)
    assert [each.made for each in result.editors.values()] == [3, 3]
    assert {each.proposal: each.reason for each in result.broken} == {
        **{"p0": "broken_image", "p1": "missing_file", "p2": "other_size"},
        **{"p3": "empty_mask", "p4": "not_an_image"},
    }
    assert result.broken_by_reason.total() == 5
    assert "20 x 20 pixels, but the photo has" in result.broken[2].detail
    # Mended, they are made.
    photo.write_bytes(good)
    assert generate(folder, settings_of(), [Painter()], check).editors["painter"].made == 3


def test_a_photo_outside_of_the_folder_is_not_read(tmp_path):
    folder = write_proposals(tmp_path / "work", 1)
    record = json.loads(folder.proposals_file.read_text())
    (tmp_path / "secret.jpg").write_bytes(folder.path(record["photo"]).read_bytes())
    folder.proposals_file.write_text(json.dumps({**record, "photo": "../secret.jpg"}))
    result = generate(folder, settings_of(), [Painter()], check)
    assert result.broken_by_reason == {"outside_folder": 1}


def test_parts_and_processes_give_the_same_bytes(folder, tmp_path):
    generate(folder, settings_of(), [Painter(), Painter(name="other")], check)
    parts = write_proposals(tmp_path / "parts", 4)
    made = [
        generate(parts, settings_of(part=n, parts=3), [Painter(), Painter(name="other")], check)
        for n in range(3)
    ]
    assert [each.proposals for each in made] == [2, 1, 1]
    assert files_of(parts) == files_of(folder)
    several = write_proposals(tmp_path / "several", 4)
    states = []
    result = generate(
        several,
        settings_of(devices=["cpu", "cpu"]),
        [Painter(batch_size=2), Painter(name="other")],
        check,
        report=states.append,
    )
    assert files_of(several) == files_of(folder)
    assert [each.made for each in result.editors.values()] == [12, 12]
    assert states[-1] == GenerateState(0, 24, 24, 0, False)


def test_a_process_that_dies_is_named(folder):
    with pytest.raises(ChildProcessError, match=r"processes on cpu, cpu died .* are kept"):
        generate(
            folder, settings_of(devices=["cpu", "cpu"]), [Painter(die="p2", sleep=0.05)], check
        )
    result = generate(folder, settings_of(), [Painter()], check).editors["painter"]
    assert result.made + result.kept == 12


@pytest.mark.parametrize("devices", [[], ["cpu", "cpu"]])
def test_an_editor_s_error_comes_out(folder, devices):
    with pytest.raises(ValueError, match="no such color"):
        generate(folder, settings_of(devices=devices), [Painter(raise_at="p1")], check)


class Calling(Checking):
    """Calls something before it looks at a picture."""

    def __init__(self, call):
        super().__init__()
        self._call = call

    def __call__(self, task, edited, earlier):
        self._call()
        return super().__call__(task, edited, earlier)


def test_a_part_is_made_by_one_job(folder):
    tried = []

    def inside():
        busy = r"part 0 of 2 is being made by process \d+ .*; wait for it to end"
        for part, parts, message in ((0, 2, busy), (1, 2, ""), (0, 1, busy), (2, 3, busy)):
            settings = settings_of(part=part, parts=parts)
            with pytest.raises(ValueError, match=message) if message else contextlib.nullcontext():
                generate(folder, settings, [Painter()], check)
        with pytest.raises(ValueError, match=busy), working_alone(folder):
            pass
        tried.append(True)

    generate(folder, settings_of(part=0, parts=2, candidates=1), [Painter()], Calling(inside))
    assert tried
    assert not list(folder.root.glob(".*"))


def test_a_folder_that_changes_as_a_whole_is_left_alone(folder):
    with working_alone(folder):
        with pytest.raises(ValueError, match="it is being made by process"):
            generate(folder, settings_of(), [Painter()], check)
        with pytest.raises(ValueError, match="it is being made by"), working_alone(folder):
            pass
    assert not list(folder.root.glob(".*"))
    # What a process that was killed left behind is nobody's.
    (folder.root / ".working-0-of-7.lock").write_text("{}")
    assert generate(folder, settings_of(), [Painter()], check).editors["painter"].made == 12


def test_the_editors_without_weights(tmp_path):
    folder = write_proposals(tmp_path, 5, edits=EDITS)
    settings = GenerateSettings(candidates=1, devices=["cpu", "cpu"])
    editors = editors_of(settings, folder, "cpu")
    assert [editor.name for editor in editors] == list(EDITORS[:-1])
    assert {edit for editor in editors for edit in editor.edits} == set(EDITS)
    result = generate(folder, settings, editors, Checks.of(CheckSettings()))
    assert result.without_editor == 0
    assert [each.made + each.cannot.total() for each in result.editors.values()] == [1, 2, 1, 1]
    made = [each for p in folder.proposals() for each in folder.candidates_of(p.id)]
    assert all("change_inside" in each.checks for each in made)


def test_a_model_that_is_none_is_told_before_any_work(folder, tmp_path):
    config = tmp_path / "inpaint.yaml"
    config.write_text("checks: {device: cpu}\n")
    overrides = (f"output={folder.root}", f"checks.model={tmp_path}/nowhere")
    for proposal in folder.proposals():
        folder.path(proposal.photo).unlink()  # no picture gets as far as its checks
    told = hnpretrain("inpaint", "generate", config, *overrides, status=1)
    (line,) = told.strip().splitlines()
    assert line.startswith("error: ")
    assert "nowhere" in line


def _write_donors(folder, count):
    """So many balls, of photos of their own."""
    rows, columns = np.mgrid[:160, :160] - 80
    mask_HW = rows**2 + columns**2 < 50**2
    writer = DonorWriter(folder)
    for number in range(count):
        photo_HWC = np.full((160, 160, 3), 230, np.uint8)
        photo_HWC[mask_HW] = (250 // count * number, 20, 40)
        assert writer.add(Cutting(f"key{number}", "ball", photo_HWC, mask_HW)) == ""
    writer.close()


def _aims_at_balls(folder):
    """Makes its proposals those of replacing a disc by a ball."""
    lines = []
    for proposal in folder.proposals():
        with Image.open(folder.path(proposal.mask)) as image:
            rows, columns = np.mgrid[: image.height, : image.width]
        disc_HW = (rows - rows.max() / 2) ** 2 + (columns - columns.max() / 2) ** 2 < 40**2
        Image.fromarray(disc_HW.astype(np.uint8) * 255).save(folder.path(proposal.mask))
        lines.append(json.dumps(to_json(replace(proposal, target="a ball"))) + "\n")
    folder.proposals_file.write_text("".join(lines))


def test_candidates_take_donors_in_turn(tmp_path):
    folder = write_proposals(tmp_path, 2, edits=("replace",))
    _aims_at_balls(folder)
    _write_donors(folder, 3)
    settings = GenerateSettings(editors=["replace"], candidates=4)
    checks = Checks.of(CheckSettings())
    made = generate(folder, settings, editors_of(settings, folder, "cpu"), checks)
    counts = made.editors["replace"]
    assert (counts.made, counts.cannot) == (6, {"there is no further donor": 2})
    assert "duplicate" not in counts.failed
    orders = [
        tuple(each.details["donor_key"] for each in folder.candidates_of(proposal.id))
        for proposal in folder.proposals()
    ]
    assert all(sorted(order) == ["key0", "key1", "key2"] for order in orders)
    assert len(set(orders)) > 1
    again = generate(folder, settings, editors_of(settings, folder, "cpu"), checks, seed=0)
    assert again.editors["replace"].kept == 6
    # Other donors may be another choice; those of another kind are none.
    lines = folder.donors_file.read_text()
    donor = json.loads(lines.splitlines()[0])
    folder.donors_file.write_text(lines + json.dumps({**donor, "category": "cat"}) + "\n")
    kept = generate(folder, settings, editors_of(settings, folder, "cpu"), checks)
    assert kept.editors["replace"].kept == 6
    _write_donors(folder, 4)
    with pytest.raises(ValueError, match=r"8 candidates were made otherwise, .*settings\.donors: "):
        generate(folder, settings, editors_of(settings, folder, "cpu"), checks)


# Kills


def _diffusion(model):
    chosen = DiffusionSettings(
        model=str(model), size=64, steps=2, batch_size=2, grow_mask=6, soft_edge=4
    )
    return GenerateSettings(editors=["diffusion"], candidates=3, diffusion=chosen)


@dataclass
class Killing(Checking):
    """The check, but the process is killed at a call, before or between the candidate's files."""

    call: int = 1
    between: bool = False

    def __call__(self, task, edited, earlier):
        self.call -= 1
        if self.call == 0:
            if not self.between:
                os.kill(os.getpid(), signal.SIGKILL)
            write_bytes = candidates._write_bytes

            def kill_at_record(folder, name, data):
                if name.endswith(".json"):
                    # As a write that was cut leaves it.
                    path = folder.path(name)
                    path.with_name(f".{path.name}.1.tmp").write_bytes(data[:9])
                    os.kill(os.getpid(), signal.SIGKILL)
                write_bytes(folder, name, data)

            candidates._write_bytes = kill_at_record
        return super().__call__(task, edited, earlier)


def _in_child(root, settings, checker, editors):
    folder = Folder(root)
    generate(folder, settings, editors or editors_of(settings, folder, "cpu"), checker)


def _started(*arguments):
    """A process that has run `generate`."""
    child = multiprocessing.get_context("spawn").Process(target=_in_child, args=arguments)
    child.start()
    child.join(120)
    return child


def test_a_pipeline_of_diffusers_gives_equal_bytes_twice_and_after_kills(tmp_path):
    settings = _diffusion(write_pipeline(tmp_path / "tiny"))
    once, again, killed = (write_proposals(tmp_path / name, 3) for name in ("a", "b", "c"))
    for folder in (once, again):
        result = generate(folder, settings, editors_of(settings, folder, "cpu"), check)
        assert result.editors["diffusion"].made == 9
    expected = files_of(once)
    assert len(expected) == 27
    assert files_of(again) == expected
    pictures = {data for name, data in expected.items() if "changed" not in name}
    assert len(pictures) == 18  # no two candidates are one picture
    child = _started(killed.root, settings, Killing(call=5, between=True), [])
    assert child.exitcode == -signal.SIGKILL
    assert sum(len(killed.candidates_of(f"p{n}")) for n in range(3)) == 4
    result = generate(killed, settings, editors_of(settings, killed, "cpu"), check)
    assert (result.editors["diffusion"].kept, result.editors["diffusion"].made) == (4, 5)
    assert files_of(killed) == expected


def test_kills_at_any_moment_change_no_byte(folder, tmp_path):
    generate(folder, settings_of(), [Painter(batch_size=2)], check)
    killed = write_proposals(tmp_path / "killed", 4)
    done = 0
    for call, between in ((1, False), (3, True), (4, False), (2, True), (1, True)):
        editors = [Painter(batch_size=2)]
        child = _started(killed.root, settings_of(), Killing(call=call, between=between), editors)
        assert child.exitcode == -signal.SIGKILL
        done += call - 1
        assert sum(len(killed.candidates_of(f"p{n}")) for n in range(4)) == done
    counts = generate(killed, settings_of(), [Painter(batch_size=2)], check).editors["painter"]
    assert (counts.kept, counts.made) == (done, 12 - done)
    assert files_of(killed) == files_of(folder)


class Slow(Checking):
    def __call__(self, task, edited, earlier):
        time.sleep(0.1)
        return super().__call__(task, edited, earlier)


def _stoppable(root, devices):
    # A shell's background job ignores Ctrl-C, and so would all that it starts.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        generate(Folder(root), settings_of(devices=devices), [Painter(sleep=0.2)], Slow())
    except KeyboardInterrupt:
        os._exit(130)


@pytest.mark.parametrize(
    "devices, number", [([], signal.SIGTERM), ([], signal.SIGINT), (["cpu", "cpu"], signal.SIGTERM)]
)
def test_signals_stop_it_and_what_is_finished_stays(folder, devices, number):
    child = multiprocessing.get_context("spawn").Process(
        target=_stoppable, args=(folder.root, devices)
    )
    child.start()
    deadline = time.monotonic() + 60
    while not list(folder.root.glob("candidates/*/*.json")):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(child.pid, number)
    child.join(60)
    assert child.exitcode == 130
    assert not list(folder.root.rglob(".*"))  # neither locks nor temporary files
    found = files_of(folder)
    assert len(found) % 3 == 0
    finished = len(found) // 3
    assert 0 < finished < 12
    counts = generate(folder, settings_of(), [Painter()], check).editors["painter"]
    assert (counts.kept, counts.made) == (finished, 12 - finished)


# Settings and words


@pytest.mark.parametrize(
    "overrides, message",
    [
        (["editors=[recolour]"], "editors='recolour' is not one of .* did you mean 'recolor'"),
        (["editors=[]"], "at least one"),
        (["editors=[recolor,recolor]"], "none twice"),
        (["candidates=0"], "candidates=0"),
        (["parts=2", "part=2"], "part=2: between 0 and parts - 1 = 1"),
        (["parts=0"], "parts=0"),
        (["devices=[gpu]"], "devices: 'gpu' is not cpu, mps, cuda or cuda:NUMBER"),
        (["devices=[cpu,'cuda:0']"], "all of one kind"),
        (["diffusion.size=5"], "size=5"),
        (["diffusion.prompts=a"], r"unknown key diffusion\.prompts; did you mean 'prompt'"),
    ],
)
def test_wrong_settings_are_refused(overrides, message):
    with pytest.raises(ValueError, match=message):
        load(GenerateSettings, overrides=overrides)


def test_devices(monkeypatch):
    import torch

    assert GenerateSettings().found_devices() == ["cpu"]
    assert GenerateSettings(devices=["cpu", "cpu"]).found_devices() == ["cpu", "cpu"]
    diffusion = GenerateSettings(editors=["diffusion"])
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert diffusion.found_devices() == ["cpu"]
    with pytest.raises(ValueError, match="torch sees 0 CUDA devices here, and no cuda:0"):
        GenerateSettings(devices=["cuda:0"]).found_devices()
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert diffusion.found_devices() == ["cuda:0", "cuda:1"]
    assert GenerateSettings(devices=["cuda:1"]).found_devices() == ["cuda:1"]
    with pytest.raises(ValueError, match="sees 2 CUDA devices here, and no cuda:2"):
        GenerateSettings(devices=["cuda:2"]).found_devices()


def test_progress_is_a_line_now_and_then(monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    out = io.StringIO()
    progress = GenerateProgress(Console(file=out, width=80))
    for made in range(0, 41):
        clock[0] += 0.5
        progress(GenerateState(7, 41, made, 1 if made == 40 else 0, False))
    lines = out.getvalue().splitlines()
    assert len(lines) == 5
    assert lines[0] == "pictures 9/41 | 0.50 s each, 7 from before, 0:00:16 to go"
    assert lines[-1] == "pictures 41/41 | 0.49 s each, 7 from before, 1 not made"
    progress(GenerateState(7, 50, 45, 0, True))
    assert "stopping after the pictures at hand" in out.getvalue()
