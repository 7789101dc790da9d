"""The job: what it writes, and that nothing but source and settings decides the bytes."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

import shard_tools.prepare
import shard_tools.workers
from hnpretrain.shards.index import read_index
from hnpretrain.shards.marker import read_marker
from hnpretrain.shards.schema import Sample
from hnpretrain.shards.tar import decode_sample
from shard_tools.job import JobState, build
from shard_tools.negatives import FrequencyTable, NegativeMaker, NegativeSettings
from shard_tools.settings import BuildSettings
from shard_tools.sources import SourceSettings
from shard_tools.verify import verify
from tests.shards.conftest import (
    PHOTOS,
    folder_bytes,
    img2dataset_members,
    photos_settings,
    png_bomb,
    write_jsonl,
    write_tar,
)


def read_samples(folder: Path) -> list[Sample]:
    """All samples of a data set, by the offsets of the markers."""
    samples = []
    for shard in read_index(str(folder)).shards:
        offsets = read_marker(str(folder), shard.name).offsets
        data = (folder / shard.name).read_bytes()
        for i in range(shard.samples):
            samples.append(decode_sample(data[offsets[i] : offsets[i + 1]]).sample())
    return samples


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The 73 photos in shards of 1, by one process, undisturbed."""
    folder = tmp_path_factory.mktemp("built") / "shards"
    build(photos_settings(folder, samples_per_shard=1))
    return folder


def test_samples_come_back_as_they_were(built: Path, records: list[dict[str, Any]]) -> None:
    samples = {sample.key: sample for sample in read_samples(built)}
    assert len(samples) == len(records) == 73
    for record in records:
        sample = samples[Path(record["image"]).stem]
        assert sample.image == (PHOTOS / record["image"]).read_bytes()
        assert sample.extension == "jpg"
        assert [c.text for c in sample.captions] == [
            " ".join(c.split()) for c in record["captions"]
        ]
        assert sample.meta == {k: v for k, v in record.items() if k != "captions"}
        for caption in sample.captions:
            for negative in caption.negatives:
                assert caption.text[slice(*negative.span)] == negative.source
                assert negative.target in negative.text
                assert negative.text not in record["captions"]


def test_the_index_adds_up(built: Path) -> None:
    index = read_index(str(built))
    captions = [caption for sample in read_samples(built) for caption in sample.captions]
    negatives = [negative for caption in captions for negative in caption.negatives]
    assert (index.samples, index.captions, index.negatives) == (73, 365, len(negatives))
    assert index.negatives > 73
    assert index.concepts == Counter(negative.concept for negative in negatives)
    assert index.captions_with_negatives == sum(bool(c.negatives) for c in captions)
    assert index.rejects == {}
    assert list(verify(str(built), 10**8, workers=1)) == []


def test_workers_do_not_change_a_byte(tmp_path: Path, few_photos: Path) -> None:
    build(photos_settings(tmp_path / "one", few_photos, samples_per_shard=3))
    states: list[JobState] = []
    settings = photos_settings(tmp_path / "two", few_photos, samples_per_shard=3, workers=2)
    result = build(settings, states.append)
    assert folder_bytes(tmp_path / "one") == folder_bytes(tmp_path / "two")
    assert (result.built, result.kept) == (4, 0)
    last = states[-1]
    assert (last.samples, last.captions, last.shards_built, last.work_to_do) == (10, 50, 4, 10)


def test_few_shards_are_submitted_at_a_time(
    tmp_path: Path, few_photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    submitted = []

    def wait(futures: set[Any], *arguments: Any) -> Any:
        submitted.append(len(futures))
        return wait_for_futures(futures, *arguments)

    wait_for_futures = shard_tools.workers.wait
    monkeypatch.setattr(shard_tools.workers, "wait", wait)
    settings = photos_settings(tmp_path, few_photos, samples_per_shard=1, workers=2)
    assert build(settings).built == 10
    assert max(submitted) == 6


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda path: path.unlink(), "color.yaml' is not a file"),
        (lambda path: path.write_text(path.read_text() + "# changed\n"), ""),
        (
            lambda path: path.write_text(path.read_text().replace("purple", "violet")),
            "a lexicon or the spaCy model changed while the job was starting",
        ),
    ],
)
def test_a_lexicon_that_changes_while_the_job_starts(
    tmp_path: Path,
    few_photos: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[Path], None],
    message: str,
) -> None:
    """The workers read it again; a worker that can't start says why."""
    lexicon = tmp_path / "color.yaml"
    shutil.copy(Path(shard_tools.workers.__file__).parent / "lexicons" / "color.yaml", lexicon)

    def make(settings: NegativeSettings, seed: int, table: FrequencyTable | None) -> NegativeMaker:
        maker = NegativeMaker(settings, seed, table)
        if table is not None:  # words are counted
            change(lexicon)
        return maker

    monkeypatch.setattr(shard_tools.prepare, "NegativeMaker", make)
    negatives = NegativeSettings(mix={"replace.color": 1}, lexicons={"color": str(lexicon)})
    settings = photos_settings(
        tmp_path / "out", few_photos, samples_per_shard=5, workers=2, negatives=negatives
    )
    if not message:
        assert build(settings).built == 2
        return
    with pytest.raises(ValueError, match=message):
        build(settings)


def test_another_seed_gives_other_negatives_of_the_same_samples(
    tmp_path: Path, few_photos: Path
) -> None:
    for seed in (0, 1):
        build(photos_settings(tmp_path / str(seed), few_photos, seed=seed))
    first, second = (read_samples(tmp_path / seed) for seed in "01")
    assert [sample.image for sample in first] == [sample.image for sample in second]
    assert [sample.captions for sample in first] != [sample.captions for sample in second]


def test_finished_shards_are_kept(tmp_path: Path, few_photos: Path) -> None:
    settings = photos_settings(tmp_path, few_photos, samples_per_shard=3)
    build(settings)
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    bytes_before = folder_bytes(tmp_path)
    assert build(settings).kept == 4
    assert before == {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}

    # Each way to be unfinished: no marker, no tar, a cut tar, a damaged marker.
    (tmp_path / "00000.marker.json").unlink()
    (tmp_path / "00001.tar").unlink()
    with (tmp_path / "00002.tar").open("r+b") as tar:
        tar.truncate(5000)
    result = build(settings)
    assert (result.built, result.kept) == (3, 1)
    assert folder_bytes(tmp_path) == bytes_before
    assert (tmp_path / "00003.tar").stat().st_mtime_ns == before["00003.tar"]
    (tmp_path / "00002.marker.json").write_text("{")
    assert build(settings).built == 1
    assert folder_bytes(tmp_path) == bytes_before


def test_another_source_redoes_the_shards_that_it_touches(tmp_path: Path, photo: bytes) -> None:
    lines = [{"image": "x.jpg", "caption": "a red car", "key": str(i)} for i in range(4)]
    path = write_jsonl(tmp_path / "source", lines, {"x.jpg": photo})
    settings = BuildSettings(
        SourceSettings("jsonl", str(path)), str(tmp_path / "out"), samples_per_shard=2, workers=1
    )
    assert build(settings).built == 2
    lines[3]["caption"] = "a small dog"
    write_jsonl(tmp_path / "source", lines, {})
    assert build(settings).built == 1
    assert [s.captions[0].text for s in read_samples(tmp_path / "out")][2:] == [
        "a red car", "a small dog",
    ]  # fmt: skip


def test_another_image_folder_redoes_the_shards(
    tmp_path: Path, records: list[dict[str, Any]]
) -> None:
    images = [(PHOTOS / record["image"]).read_bytes() for record in records[:2]]
    path = write_jsonl(tmp_path, [{"image": "x.jpg", "caption": "a red car"}], {})
    for number, image in enumerate(images):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "x.jpg").write_bytes(image)
        source = SourceSettings("jsonl", str(path), str(folder))
        build(BuildSettings(source, str(tmp_path / "out"), workers=1))
        assert [sample.image for sample in read_samples(tmp_path / "out")] == [image]


def test_a_photo_that_was_missing_is_taken_later(tmp_path: Path, photo: bytes) -> None:
    lines = [{"image": f"{i}.jpg", "caption": "a red car"} for i in range(4)]
    path = write_jsonl(tmp_path / "source", lines, {f"{i}.jpg": photo for i in range(3)})
    settings = BuildSettings(
        SourceSettings("jsonl", str(path)), str(tmp_path / "out"), samples_per_shard=2, workers=1
    )
    settings.max_reject_share = 0.5
    assert build(settings).index.rejects == {"missing_image": 1}
    assert build(settings).kept == 2  # while it is missing there is nothing to do
    (tmp_path / "source" / "3.jpg").write_bytes(photo)
    result = build(settings)
    assert (result.built, result.kept) == (1, 1)
    assert (result.index.samples, result.index.rejects) == (4, {})
    assert build(settings).kept == 2


def test_samples_are_sorted_whatever_the_source_s_order(tmp_path: Path, photo: bytes) -> None:
    lines = [{"image": "x.jpg", "caption": "a red car", "key": key} for key in "cab"]
    path = write_jsonl(tmp_path / "source", lines, {"x.jpg": photo})
    build(BuildSettings(SourceSettings("jsonl", str(path)), str(tmp_path / "out"), workers=1))
    assert [sample.key for sample in read_samples(tmp_path / "out")] == ["a", "b", "c"]
    assert list(verify(str(tmp_path / "out"), 10**8, workers=1)) == []


def test_bad_samples_are_counted_and_named(
    tmp_path: Path, photo: bytes, records: list[dict[str, Any]]
) -> None:
    """Every kind of bad sample, in a tar; the good one beside them is built."""

    def with_image(key: str, image: bytes) -> list[tuple[str, bytes]]:
        return [(f"{key}.jpg", image), (f"{key}.txt", b"a red car")]

    good = img2dataset_members(records[0], 0)
    members = [
        *good,
        *with_image("cut", photo[:5000]),
        *with_image("empty", b""),
        *with_image("text", b"I am no image." * 100),
        *with_image("bomb", png_bomb(50_000, 50_000)),
        ("caption.jpg", photo),
        ("caption.txt", b" "),
        ("none.txt", b"a red car"),
        *good,
    ]
    write_tar(tmp_path / "source" / "00000.tar", members)
    source = SourceSettings("tar", str(tmp_path / "source"))
    out = tmp_path / "out"
    settings = BuildSettings(source, str(out), workers=1, max_reject_share=0.9)
    settings.check_images = "decode"
    index = build(settings).index
    assert index.samples == 1
    marker = read_marker(str(out), "00000.tar")
    assert {reject.key: reject.reason for reject in marker.rejected} == {
        "000000000": "duplicate_key",
        "bomb": "too_many_pixels",
        "caption": "no_caption",
        "cut": "broken_image",
        "empty": "empty_image",
        "none": "missing_image",
        "text": "not_an_image",
    }
    assert index.rejects == dict.fromkeys(sorted(r.reason for r in marker.rejected), 1)
    assert [sample.key for sample in read_samples(out)] == ["000000000"]

    settings.max_reject_share = 0.5
    with pytest.raises(ValueError, match=r"7 of 8 samples were rejected.*cut in 00000.tar"):
        build(settings)
    assert sorted(path.name for path in out.iterdir()) == [
        "00000.marker.json", "00000.tar", "build.json", "frequencies.json.gz",
    ]  # fmt: skip


def test_a_share_of_broken_tars_is_bounded(tmp_path: Path, photo: bytes) -> None:
    """However few rejects they are: what they held can't be counted."""
    members = [(f"{i}.{e}", d) for i in range(5) for e, d in (("jpg", photo), ("txt", b"a car"))]
    write_tar(tmp_path / "source" / "good.tar", members)
    (tmp_path / "source" / "bad.tar").write_bytes(b"no tar" * 1000)
    settings = BuildSettings(
        SourceSettings("tar", str(tmp_path / "source")), str(tmp_path / "out"), workers=1
    )
    settings.max_reject_share = 0.3  # of the samples known, one of six was rejected
    message = (
        r"^1 of 2 source tars are broken, more than max_reject_share=0.3 allows; no index was "
        r"written: mend the source or raise max_reject_share, and start again\..*bad.tar"
    )
    with pytest.raises(ValueError, match=message):
        build(settings)
    assert not (tmp_path / "out" / "index.json").exists()
    settings.max_reject_share = 0.5
    assert build(settings).index.rejects == {"broken_tar": 1}


def test_json_nested_to_the_limit_is_stored_or_rejected(tmp_path: Path, photo: bytes) -> None:
    members = []
    for depth in range(700, 1000):
        nested = b'{"caption": "a red car", "x": ' + b"[" * depth + b"]" * depth + b"}"
        members += [(f"{depth}.jpg", photo), (f"{depth}.json", nested)]
    write_tar(tmp_path / "source" / "0.tar", members)
    source = SourceSettings("tar", str(tmp_path / "source"))
    settings = BuildSettings(source, str(tmp_path / "out"), workers=1, max_reject_share=1)
    index = build(settings).index
    assert index.rejects == {"bad_json": 300 - index.samples}
    assert len(read_samples(tmp_path / "out")) == index.samples > 0


def test_images_are_named_for_what_they_are(tmp_path: Path, photo: bytes) -> None:
    lines = [{"image": "x.png", "caption": "a red car"}]
    path = write_jsonl(tmp_path / "source", lines, {"x.png": photo})
    build(BuildSettings(SourceSettings("jsonl", str(path)), str(tmp_path / "out"), workers=1))
    (sample,) = read_samples(tmp_path / "out")
    assert (sample.extension, sample.image) == ("jpg", photo)


# The job as a process of its own.

JOBS: list[subprocess.Popen[str]] = []


@pytest.fixture(autouse=True)
def jobs_end_with_their_test() -> Iterator[None]:
    """A job that hangs, and its workers, must not stay when its test has failed."""
    yield
    while JOBS:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(JOBS.pop().pid, signal.SIGKILL)


def start_job(
    folder: Path,
    workers: int = 2,
    manifest: Path = PHOTOS / "data.jsonl",
    samples_per_shard: int = 1,
) -> subprocess.Popen[str]:
    command = [
        sys.executable, "-m", "hnpretrain.cli", "shard", "build", "source.kind=jsonl",
        f"source.path={manifest}", f"source.images={PHOTOS}", f"output={folder}",
        f"samples_per_shard={samples_per_shard}", f"workers={workers}",
        "negatives.count_captions=365",  # of many photos, as many as all 73 have
    ]  # fmt: skip
    job = subprocess.Popen(
        command, start_new_session=True, text=True, stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL, preexec_fn=_interruptible,
    )  # fmt: skip
    JOBS.append(job)
    return job


def many_photos(tmp_path: Path, records: list[dict[str, Any]], times: int) -> Path:
    """A manifest of 73 x `times` samples: enough that no machine is done when it is interrupted."""
    lines = [{**r, "key": f"{n}-{r['coco_id']}"} for n in range(times) for r in records]
    return write_jsonl(tmp_path / "source", lines, {})


def _interruptible() -> None:
    # A shell starts what runs in its background with SIGINT ignored, and that is inherited.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])


def wait_for_shards(job: subprocess.Popen[str], folder: Path, count: int) -> None:
    deadline = time.monotonic() + 120
    while len(list(folder.glob("*.marker.json"))) < count:
        assert job.poll() is None, job.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.002)


def leftovers(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.endswith(".tmp")]


def worker_ids(job: subprocess.Popen[str]) -> list[int]:
    children = Path(f"/proc/{job.pid}/task/{job.pid}/children").read_text().split()
    workers = []
    for child in children:
        with contextlib.suppress(FileNotFoundError):  # it has ended since
            if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes():
                workers.append(int(child))
    return workers


def test_a_killed_job_goes_on_where_it_was(built: Path, tmp_path: Path) -> None:
    job = start_job(tmp_path)
    wait_for_shards(job, tmp_path, 5)
    os.killpg(job.pid, signal.SIGKILL)
    job.communicate()
    finished = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("*.marker.json")}
    assert 5 <= len(finished) < 73
    assert not (tmp_path / "index.json").exists()
    # As a kill in mid-write leaves it, wherever this one fell:
    (tmp_path / ".00070.tar.1.tmp").write_bytes(b"half")

    result = build(photos_settings(tmp_path, samples_per_shard=1))
    assert result.kept == len(finished)
    assert folder_bytes(tmp_path) == folder_bytes(built)
    for name, mtime in finished.items():
        assert (tmp_path / name).stat().st_mtime_ns == mtime


def started_workers(job: subprocess.Popen[str], _: Path) -> None:
    """Waits until both workers run, long before they have built anything."""
    deadline = time.monotonic() + 120
    while len(worker_ids(job)) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.002)


def three_shards(job: subprocess.Popen[str], folder: Path) -> None:
    wait_for_shards(job, folder, 3)


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
    ("wait", "workers"), [(started_workers, 2), (three_shards, 2), (three_shards, 1)]
)
def test_a_stopped_job_leaves_nothing_half_written(
    tmp_path: Path,
    records: list[dict[str, Any]],
    stop: signal.Signals,
    wait: Callable[[subprocess.Popen[str], Path], None],
    workers: int,
) -> None:
    folder = tmp_path / "shards"
    folder.mkdir()
    job = start_job(folder, workers, many_photos(tmp_path, records, 10))
    wait(job, folder)
    ids = worker_ids(job)
    assert len(ids) == (workers if workers > 1 else 0)
    os.killpg(job.pid, stop)  # as a terminal or a scheduler does: workers get it too
    _, error = job.communicate(timeout=120)
    assert job.returncode == 130
    assert error.splitlines()[-1].startswith("stopped: finished shards are kept")
    assert "Traceback" not in error
    assert leftovers(folder) == []
    assert not (folder / "index.json").exists()
    assert len(list(folder.glob("*.marker.json"))) < 730
    assert not any(Path(f"/proc/{worker}").exists() for worker in ids)


@pytest.mark.timeout(120)  # reading the line below waits for ever if it does not come
def test_a_second_ctrl_c_does_not_wait_for_the_workers(tmp_path: Path) -> None:
    job = start_job(tmp_path)
    wait_for_shards(job, tmp_path, 3)
    ids = worker_ids(job)
    assert len(ids) == 2
    for worker in ids:
        os.kill(worker, signal.SIGSTOP)  # so that none of them ends by itself
    os.kill(job.pid, signal.SIGINT)
    assert job.stderr is not None
    assert "stopping after the samples at hand; Ctrl-C again stops at once\n" in job.stderr
    os.kill(job.pid, signal.SIGINT)
    _, error = job.communicate(timeout=20)
    assert job.returncode == 130
    assert [line[:9] for line in error.splitlines()] == ["stopped: "]
    assert not any(Path(f"/proc/{worker}").exists() for worker in ids)


def test_a_killed_worker_ends_the_job_with_one_line(tmp_path: Path) -> None:
    job = start_job(tmp_path)
    wait_for_shards(job, tmp_path, 1)
    os.kill(worker_ids(job)[0], signal.SIGKILL)
    _, error = job.communicate(timeout=120)
    assert job.returncode == 1
    assert error.splitlines()[-1].startswith("error: a worker process died")
    assert "Traceback" not in error


def test_a_worker_that_is_killed_while_idle_ends_the_job_too(
    tmp_path: Path, records: list[dict[str, Any]]
) -> None:
    """It waits for work inside a lock, which the other one then waits for."""
    folder = tmp_path / "shards"
    job = start_job(folder, 2, many_photos(tmp_path, records, 40), 40 * len(records) - 1)
    wait_for_shards(job, folder, 1)  # the one of a single photo
    workers = [psutil.Process(worker) for worker in worker_ids(job)]
    before = [worker.cpu_times().user for worker in workers]
    time.sleep(1)
    idle, busy = sorted(
        zip(workers, before, strict=True), key=lambda item: item[0].cpu_times().user - item[1]
    )
    assert busy[0].cpu_times().user > busy[1]
    assert not (folder / "00000.marker.json").exists()
    idle[0].kill()
    _, error = job.communicate(timeout=60)
    assert job.returncode == 1
    assert error.splitlines()[-1].startswith("error: a worker process died")
    assert not busy[0].is_running()


def test_a_worker_that_is_killed_while_the_job_stops_does_not_hold_it(
    tmp_path: Path, records: list[dict[str, Any]]
) -> None:
    """As when Ctrl-C is pressed because memory runs out, and does."""
    folder = tmp_path / "shards"
    job = start_job(folder, 2, many_photos(tmp_path, records, 10))
    wait_for_shards(job, folder, 3)
    ids = worker_ids(job)
    for worker in ids:  # so that neither can end before the kill
        os.kill(worker, signal.SIGSTOP)
    os.kill(job.pid, signal.SIGINT)
    time.sleep(1)
    os.kill(ids[0], signal.SIGKILL)
    os.kill(ids[1], signal.SIGCONT)
    _, error = job.communicate(timeout=60)
    assert job.returncode == 130
    assert "Traceback" not in error
    assert not (folder / "index.json").exists()


def test_building_loads_no_torch(tmp_path: Path, few_photos: Path) -> None:
    code = """
import sys
import shard_tools.commands
assert not {"torch", "spacy", "PIL", "fsspec"} & set(sys.modules), "commands must be light"
from shard_tools.job import build
from shard_tools.settings import BuildSettings
from shard_tools.sources import SourceSettings
result = build(BuildSettings(SourceSettings("jsonl", *sys.argv[2:]), sys.argv[1], workers=1))
assert result.index.negatives > 0
assert "torch" not in sys.modules
"""
    arguments = [sys.executable, "-c", code, str(tmp_path), str(few_photos), str(PHOTOS)]
    subprocess.run(arguments, check=True)


def test_markers_are_json_that_others_can_read(built: Path) -> None:
    marker = json.loads((built / "00000.marker.json").read_text())
    assert marker["format"] == 1
    assert marker["offsets"] == [0, marker["bytes"] - 1024]
