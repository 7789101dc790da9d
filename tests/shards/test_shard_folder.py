"""An output folder belongs to one set of settings, one array and one job at a time."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hnpretrain.shards.lock import locked
from shard_tools.dry_run import plan
from shard_tools.job import build, count
from shard_tools.negatives import NegativeSettings
from shard_tools.settings import BuildSettings
from shard_tools.sources import SourceSettings
from tests.shards.conftest import (
    PHOTOS,
    Ran,
    folder_bytes,
    img2dataset_members,
    photos_settings,
    write_jsonl,
    write_tar,
)

Command = Callable[..., Ran]


@pytest.fixture
def built(tmp_path: Path, few_photos: Path) -> Path:
    build(photos_settings(tmp_path / "built", few_photos, samples_per_shard=2))
    return tmp_path / "built"


def settings_of(built: Path, few_photos: Path, **changes: Any) -> BuildSettings:
    return photos_settings(built, few_photos, **{"samples_per_shard": 2, **changes})


# Settings.


def test_other_settings_are_refused_with_every_difference(built: Path, few_photos: Path) -> None:
    before = folder_bytes(built)
    settings = settings_of(
        built, few_photos, samples_per_shard=3, seed=1, max_pixels=10**6, check_images="header"
    )
    settings.negatives = NegativeSettings(per_caption=1)
    with pytest.raises(ValueError, match=r"was made with other settings") as caught:
        build(settings)
    for difference in (
        'check_images: "decode" -> "header"; max_pixels: 100000000 -> 1000000; ',
        "negatives.per_caption: 3 -> 1; ",
        "samples_per_shard: 2 -> 3; seed: 0 -> 1. ",
        "rebuild=true makes all shards anew, or choose another folder",
    ):
        assert difference in str(caught.value)
    assert "\n" not in str(caught.value)
    assert folder_bytes(built) == before


def test_what_changes_no_byte_is_no_difference(built: Path, few_photos: Path) -> None:
    settings = settings_of(
        built, few_photos, workers=2, max_reject_share=0.5, parts=1, check_images="decode"
    )
    settings.negatives = NegativeSettings(batch_size=7, count_captions=9)
    assert build(settings).kept == 5


def test_rebuild_makes_all_anew(built: Path, few_photos: Path, tmp_path: Path) -> None:
    build(settings_of(tmp_path / "fresh", few_photos, seed=1))
    assert build(settings_of(built, few_photos, seed=1, rebuild=True)).built == 5
    assert folder_bytes(built) == folder_bytes(tmp_path / "fresh")
    assert build(settings_of(built, few_photos, seed=1, rebuild=True)).kept == 5


def test_rebuild_with_another_lexicon_counts_again(
    built: Path, few_photos: Path, tmp_path: Path
) -> None:
    table = (built / "frequencies.json.gz").read_bytes()
    lexicon = tmp_path / "color.yaml"
    text = (Path(__file__).parents[2] / "shard_tools/lexicons/color.yaml").read_text()
    lexicon.write_text(text.replace("purple", "violet"))
    settings = settings_of(built, few_photos)
    settings.negatives = NegativeSettings(lexicons={"color": str(lexicon)})
    with pytest.raises(ValueError, match=r"color: \"[0-9a-f]+\.\.\. -> \""):
        build(settings)
    assert (built / "frequencies.json.gz").read_bytes() == table
    settings.rebuild = True
    assert build(settings).built == 5
    assert (built / "frequencies.json.gz").read_bytes() != table
    assert build(settings).kept == 5


def test_a_folder_that_does_not_tell_its_settings_is_refused(built: Path, few_photos: Path) -> None:
    before = folder_bytes(built)
    (built / "build.json").unlink()
    with pytest.raises(ValueError, match=r"other settings .*: unknown, there is no build.json"):
        build(settings_of(built, few_photos))
    assert build(settings_of(built, few_photos, rebuild=True)).kept == 5
    assert folder_bytes(built) == before


@pytest.mark.parametrize("content", ["{", "[]", "\ud800".encode(errors="surrogatepass")])
def test_a_damaged_record_is_refused(built: Path, few_photos: Path, content: str | bytes) -> None:
    data = content.encode() if isinstance(content, str) else content
    (built / "build.json").write_bytes(data)
    with pytest.raises(ValueError, match=r"build.json: .*; remove the folder, or put the file"):
        build(settings_of(built, few_photos))


# Images.


@pytest.mark.parametrize(
    "kind, check, kept",
    [
        ("tar", "auto", True), ("tar", "decode", False), ("tar", "header", True),
        ("jsonl", "auto", False), ("jsonl", "header", True),
    ],
)  # fmt: skip
def test_which_images_are_decoded(
    tmp_path: Path, photo: bytes, kind: str, check: str, kept: bool
) -> None:
    """A photo that is cut behind its header shows it."""
    cut = photo[: len(photo) // 2]
    if kind == "tar":
        write_tar(tmp_path / "in" / "0.tar", [("k.jpg", cut), ("k.txt", b"a red car")])
        source = SourceSettings("tar", str(tmp_path / "in"))
    else:
        path = write_jsonl(
            tmp_path / "in", [{"image": "k.jpg", "caption": "a car"}], {"k.jpg": cut}
        )
        source = SourceSettings("jsonl", str(path))
    settings = BuildSettings(source, str(tmp_path / "out"), workers=1, check_images=check)
    if kept:
        assert build(settings).index.samples == 1
        assert cut in (tmp_path / "out" / settings_name(kind)).read_bytes()
    else:
        with pytest.raises(ValueError, match="1 broken_image"):
            build(settings)


def settings_name(kind: str) -> str:
    return "0.tar" if kind == "tar" else "00000.tar"


def test_headers_are_checked_all_the_same(tmp_path: Path, photo: bytes) -> None:
    members = [("a.jpg", photo), ("a.txt", b"a car"), ("b.jpg", b"no image"), ("b.txt", b"a dog")]
    write_tar(tmp_path / "in" / "0.tar", members)
    source = SourceSettings("tar", str(tmp_path / "in"))
    settings = BuildSettings(source, str(tmp_path / "out"), workers=1, max_reject_share=0.5)
    assert build(settings).index.rejects == {"not_an_image": 1}


# Two jobs.


def start(
    output: Path, *arguments: str, manifest: Path = PHOTOS / "data.jsonl"
) -> subprocess.Popen[str]:
    command = [
        sys.executable, "-m", "hnpretrain.cli", "shard", "build", "source.kind=jsonl",
        f"source.path={manifest}", f"source.images={PHOTOS}", "samples_per_shard=1", "workers=1",
        f"output={output}", *arguments,
    ]  # fmt: skip
    return subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def test_a_second_job_is_refused_until_the_first_is_killed(tmp_path: Path) -> None:
    first = start(tmp_path / "out")
    try:
        while not list((tmp_path / "out").glob("*.marker.json")):
            assert first.poll() is None, first.communicate()[1]
        os.kill(first.pid, signal.SIGSTOP)  # so that it can't end meanwhile
        before = folder_bytes(tmp_path / "out")
        settings = photos_settings(tmp_path / "out", samples_per_shard=1)
        message = rf"is being built by process {first.pid} on {socket.gethostname()} since "
        with pytest.raises(ValueError, match=message):
            build(settings)
        assert folder_bytes(tmp_path / "out") == before
        assert plan(settings).owner is not None
    finally:
        os.killpg(first.pid, signal.SIGKILL)
        first.communicate()
    assert plan(settings).owner is None
    result = build(settings)
    assert (result.built + result.kept, result.kept >= 1) == (73, True)
    assert [path.name for path in (tmp_path / "out").iterdir() if path.name[0] == "."] == []


# Arrays.


def test_parts_in_any_order_give_the_bytes_of_one_job(
    built: Path, few_photos: Path, tmp_path: Path
) -> None:
    out = tmp_path / "parts"
    results = [build(settings_of(out, few_photos, part=part, parts=3)) for part in (2, 0, 1)]
    assert [(r.built, r.owed) for r in results] == [(1, 4), (2, 2), (2, 0)]
    assert results[0].index.samples == 2
    assert folder_bytes(out) == folder_bytes(built)
    # Again: any part finds all done, and the index as it is.
    assert build(settings_of(out, few_photos, part=0, parts=3)).owed == 0
    assert folder_bytes(out) == folder_bytes(built)


def test_a_part_that_redoes_shards_takes_the_index_away(
    tmp_path: Path, records: list[dict[str, Any]]
) -> None:
    for number in range(4):
        write_tar(tmp_path / "in" / f"{number}.tar", img2dataset_members(records[number], number))
    source = SourceSettings("tar", str(tmp_path / "in"))

    def job(part: int) -> Any:
        return build(BuildSettings(source, str(tmp_path / "out"), workers=1, part=part, parts=2))

    assert (job(0).owed, job(1).owed) == (2, 0)
    write_tar(tmp_path / "in" / "4.tar", img2dataset_members(records[4], 4))
    write_tar(tmp_path / "in" / "5.tar", img2dataset_members(records[5], 5))
    result = job(1)
    assert (result.built, result.kept, result.owed) == (1, 2, 1)
    assert not (tmp_path / "out" / "index.json").exists()
    result = job(0)
    assert (result.built, result.kept, result.owed, result.index.samples) == (1, 2, 0, 6)
    assert (tmp_path / "out" / "index.json").exists()


def test_a_part_does_not_finish_with_another_s_outdated_shard(
    tmp_path: Path, few_photos: Path
) -> None:
    out, own = tmp_path / "out", tmp_path / "own.jsonl"
    own.write_bytes(few_photos.read_bytes())
    for part in (0, 1):
        build(settings_of(out, own, part=part, parts=2))
    lines = own.read_text("utf-8").splitlines()
    record = json.loads(lines[2])  # of the second shard, which is part 1's
    record["captions"] = ["A caption that was not there."]
    own.write_text("\n".join([*lines[:2], json.dumps(record), *lines[3:]]) + "\n", "utf-8")
    (out / "index.json").unlink()
    assert build(settings_of(out, own, part=0, parts=2)).owed == 1
    assert not (out / "index.json").exists()
    assert build(settings_of(out, own, part=1, parts=2)).built == 1
    assert (out / "index.json").exists()


def test_counting_keeps_the_table_that_shards_were_made_with(
    built: Path, few_photos: Path, tmp_path: Path
) -> None:
    lexicon = tmp_path / "size.yaml"
    lexicon.write_text("concept: size\nextends: builtin\nwords: [roomy]\n")
    before = folder_bytes(built)
    settings = settings_of(built, few_photos)
    settings.negatives = NegativeSettings(lexicons={"size": str(lexicon)})
    with pytest.raises(ValueError, match="was made with other settings"):
        count(settings)
    assert folder_bytes(built) == before


def test_parts_side_by_side(tmp_path: Path, few_photos: Path) -> None:
    """As an array runs them: each its own process, and one counts for all."""
    build(photos_settings(tmp_path / "one", few_photos, samples_per_shard=1))
    jobs = [
        start(tmp_path / "two", f"part={part}", "parts=2", manifest=few_photos) for part in range(2)
    ]
    errors = [job.communicate(timeout=120)[1] for job in jobs]
    assert [job.returncode for job in jobs] == [0, 0], errors
    assert folder_bytes(tmp_path / "two") == folder_bytes(tmp_path / "one")


def test_other_parts_are_refused_while_parts_run(built: Path, few_photos: Path) -> None:
    with locked(str(built / ".build-1-of-2.lock")):
        for parts, message in ((1, "not parts=1"), (3, "not parts=3")):
            with pytest.raises(ValueError, match=rf"in other parts \(1 of 2, .*{message}"):
                build(settings_of(built, few_photos, parts=parts))
        with pytest.raises(ValueError, match="is being built by process"):
            build(settings_of(built, few_photos, part=1, parts=2))
        assert build(settings_of(built, few_photos, part=0, parts=2)).kept == 3
    assert build(settings_of(built, few_photos)).kept == 5


def test_the_last_part_checks_what_was_rejected(tmp_path: Path, photo: bytes) -> None:
    lines = [{"image": f"{i}.jpg", "caption": "a red car"} for i in range(4)]
    path = write_jsonl(tmp_path, lines, {f"{i}.jpg": photo for i in range(1, 4)})

    def job(part: int) -> Any:
        source = SourceSettings("jsonl", str(path))
        settings = BuildSettings(source, str(tmp_path / "out"), samples_per_shard=1, workers=1)
        settings.part, settings.parts = part, 2
        return build(settings)

    assert job(0).owed == 2
    with pytest.raises(ValueError, match=r"1 of 4 samples were rejected.*0 in 00000.tar"):
        job(1)


# Dry runs.


def test_a_dry_run_writes_nothing(tmp_path: Path, few_photos: Path, command: Command) -> None:
    arguments = [
        "shard", "build", "source.kind=jsonl", f"source.path={few_photos}",
        f"source.images={PHOTOS}", f"output={tmp_path / 'out'}", "samples_per_shard=4",
        "workers=1",
    ]  # fmt: skip
    ran = command(*arguments, "--dry-run")
    assert (ran.status, ran.err) == (0, "")
    assert not (tmp_path / "out").exists()
    for line in (
        "samples_per_shard: 4",
        "3 shards to build, 0 kept, of 3 in the source",
        "to build: 10 samples with 50 captions",
        "images: decoded to their end",
        f"first counts the words of 50 captions (3 shards) into {tmp_path}/out/frequencies",
    ):
        assert line in ran.out

    assert command(*arguments).status == 0
    (tmp_path / "out" / "00001.marker.json").unlink()
    before = folder_bytes(tmp_path / "out")
    ran = command(*arguments, "--dry-run")
    assert "1 shards to build, 2 kept, of 3 in the source" in ran.out
    assert "to build: 4 samples with 20 captions" in ran.out
    assert "counts the words" not in ran.out
    ran = command(*arguments, "--dry-run", "part=2", "parts=3")
    assert "part 2 of 3: 0 shards to build, 1 kept, of 3 in the source" in ran.out
    ran = command(*arguments, "--dry-run", "seed=1", "rebuild=true")
    assert "settings differ (there -> now): seed: 0 -> 1" in ran.out
    ran = command(*arguments, "--dry-run", "seed=1")
    assert (ran.status, "seed: 0 -> 1" in ran.err) == (1, True)
    assert folder_bytes(tmp_path / "out") == before


def test_a_dry_run_finds_what_a_build_would(tmp_path: Path, command: Command) -> None:
    arguments = ["shard", "build", "--dry-run", "source.kind=tar", f"output={tmp_path / 'out'}"]
    write_tar(tmp_path / "in" / "0.tar", [("a.jpg", b"a")])
    for more, part in (
        (f"source.path={tmp_path / 'none'}", "there is no"),
        (f"source.path={tmp_path / 'in'} output={tmp_path / 'in'}", "the source's own folder"),
        (f"source.path={tmp_path / 'in'} negatives.lexicons.color=none.yaml", "none.yaml"),
        (f"source.path={tmp_path / 'in'} negatives.frequencies=none.gz", "'none.gz' is not a file"),
    ):
        ran = command(*arguments, *more.split())
        assert (ran.status, part in ran.err) == (1, True), ran.err
    ran = command(*arguments, f"source.path={tmp_path / 'in'}")
    assert "to build: 0.000 GB of tars" in ran.out
    assert "(as many source shards as that takes)" in ran.out
