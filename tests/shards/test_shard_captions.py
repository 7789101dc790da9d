"""Captions of any length, script and number come back as they were, from manifests and tars."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hnpretrain.shards.index import read_index
from hnpretrain.shards.marker import read_marker
from hnpretrain.shards.schema import Caption
from hnpretrain.shards.tar import decode_sample
from shard_tools import builder
from shard_tools.job import build
from shard_tools.negatives import CaptionedSample, MadeNegatives, NegativeMaker
from shard_tools.settings import BuildSettings
from shard_tools.sources import SourceSettings
from tests.shards.conftest import Ran, write_jsonl, write_tar

LONG = 100_000
ODD = {
    "long": ("a red car by a small bench and " * LONG)[: LONG - 1] + "d",
    "one word": "a" * LONG,
    "points": "." * LONG,
    "punctuation": "?! ... -- ,,, ;;",
    "quotes": "a \"red\" 'car' <script>alert(1)</script> & \\n {x} %s",
    "chinese": "\u4e00\u8f86\u7ea2\u8272\u7684\u6c7d\u8f66" * 1000,
    "arabic": "\u0633\u064a\u0627\u0631\u0629 \u062d\u0645\u0631\u0627\u0621 a red car",
    "emoji": "a red \U0001f697 and \U0001f468\u200d\U0001f469\u200d\U0001f467" * 1000,
    "combining": "a red c" + "\u0301" * LONG + "ar",
    "controls": "a red\x00 car\x07 by\x1b[31m a\x7f dog\x08",
    "directions": "a \u202ered\u202c car\u200b by\u2066 a dog\u2069",
    "no characters": "a red car \ufffe \uffff \U0010ffff \ufeff \ufffd",
    "letters": "\uff41 \uff52\uff45\uff44 car, a \ufb01ne stra\u00dfe, \u0130stanbul",
    "capitals": "A RED CAR BY A DOG",
    "one letter": "a",
}


def samples_of(folder: Path) -> dict[str, tuple[Caption, ...]]:
    captions = {}
    for shard in read_index(str(folder)).shards:
        offsets = read_marker(str(folder), shard.name).offsets
        data = (folder / shard.name).read_bytes()
        for i in range(shard.samples):
            sample = decode_sample(data[offsets[i] : offsets[i + 1]]).sample()
            captions[sample.key] = sample.captions
    return captions


def jsonl_of(folder: Path, captions: dict[str, list[str]], photo: bytes) -> SourceSettings:
    lines = [{"image": "x.jpg", "captions": c, "key": k} for k, c in captions.items()]
    return SourceSettings("jsonl", str(write_jsonl(folder, lines, {"x.jpg": photo})))


def tar_of(folder: Path, captions: dict[str, list[str]], photo: bytes) -> SourceSettings:
    members = []
    for key, texts in captions.items():
        fields = json.dumps({"captions": texts}, ensure_ascii=False).encode()
        members += [(f"{key}.jpg", photo), (f"{key}.json", fields)]
    write_tar(folder / "00000.tar", members)
    return SourceSettings("tar", str(folder))


SOURCES = pytest.mark.parametrize("source_of", [jsonl_of, tar_of])
SourceOf = Callable[[Path, dict[str, list[str]], bytes], SourceSettings]


@SOURCES
def test_odd_captions_come_back(
    tmp_path: Path, photo: bytes, command: Callable[..., Ran], source_of: SourceOf
) -> None:
    captions = {str(number): [text] for number, text in enumerate(ODD.values())}
    captions["all"] = list(ODD.values())
    source = source_of(tmp_path / "source", captions, photo)
    out = tmp_path / "out"
    index = build(BuildSettings(source, str(out), workers=1)).index
    assert (index.samples, index.captions, index.rejects) == (len(ODD) + 1, 2 * len(ODD), {})
    found = samples_of(out)
    for key, texts in captions.items():
        assert [caption.text for caption in found[key]] == [" ".join(t.split()) for t in texts]
        for caption in found[key]:
            for negative in caption.negatives:
                assert caption.text[slice(*negative.span)] == negative.source
    for look in ("verify", "stats", "preview"):
        ran = command("shard", look, str(out))
        assert ran.status == 0, ran.err


@SOURCES
@pytest.mark.timeout(120)
def test_ten_thousand_captions_on_one_image(
    tmp_path: Path, photo: bytes, source_of: SourceOf
) -> None:
    texts = [f"number {i}" if i % 5 else f"a red car by bench {i}" for i in range(10_000)]
    source = source_of(tmp_path / "source", {"x": texts, "y": ["a dog"]}, photo)
    index = build(BuildSettings(source, str(tmp_path / "out"), workers=1)).index
    assert (index.samples, index.captions) == (2, 10_001)
    assert [caption.text for caption in samples_of(tmp_path / "out")["x"]] == texts


def test_a_batch_is_bounded_by_its_captions_too(
    tmp_path: Path, photo: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """64 images of 10,000 captions each would take gigabytes."""
    sizes: list[int] = []
    make = NegativeMaker.make

    def make_and_count(maker: NegativeMaker, samples: list[CaptionedSample]) -> list[MadeNegatives]:
        sizes.append(sum(len(sample.captions) for sample in samples))
        return make(maker, samples)

    monkeypatch.setattr(NegativeMaker, "make", make_and_count)
    monkeypatch.setattr(builder, "_BATCH_CAPTIONS", 10)
    captions = {str(i): ["a dog"] * 4 for i in range(10)}
    source = jsonl_of(tmp_path / "source", captions, photo)
    build(BuildSettings(source, str(tmp_path / "out"), workers=1))
    assert sizes == [12, 12, 12, 4]


@pytest.mark.parametrize(
    "line, message",
    [
        (b'{"image": "x.jpg", "caption": "a\xff car"}', "line 1: not JSON: 'utf-8' codec can't"),
        (b'{"image": "x.jpg", "caption": "a\x00 car"}', "line 1: not JSON: Invalid control char"),
        (b'{"image": "x.jpg", "caption": "a \\udc00 car"}', "line 1: a caption is no valid"),
        (b'{"image": "x.jpg", "caption": " \\u2003\\n"}', "line 1: a caption is empty"),
    ],
)  # fmt: skip
def test_a_caption_that_is_no_text_refuses_a_manifest(
    tmp_path: Path, command: Callable[..., Ran], line: bytes, message: str
) -> None:
    (tmp_path / "data.jsonl").write_bytes(line + b"\n")
    ran = command(
        "shard", "build", "source.kind=jsonl", f"source.path={tmp_path / 'data.jsonl'}",
        f"output={tmp_path / 'out'}",
    )  # fmt: skip
    assert ran.status == 1
    assert f"data.jsonl, {message}" in ran.err
    assert not (tmp_path / "out").exists()


def test_a_caption_that_is_no_text_is_named_in_a_tar_s_marker(tmp_path: Path, photo: bytes) -> None:
    texts: dict[str, dict[str, Any]] = {
        "bytes": {"txt": b"a \xff car"},
        "cut": {"txt": "a caf\u00e9".encode()[:-1]},
        "json": {"json": b'{"caption": "a \xff car"}'},
        "half": {"json": b'{"captions": ["a \\ud800 car", "a red car"]}'},
        "empty": {"txt": b" \n\t"},
        "latin": {"txt": "a caf\u00e9".encode("latin-1")},
        "null": {"json": b'{"captions": [null, 5, ["a"], "a dog"]}'},
        "good": {"txt": b"a red car by a dog"},
    }
    members = []
    for key, given in texts.items():
        members += [(f"{key}.jpg", photo), *((f"{key}.{e}", data) for e, data in given.items())]
    write_tar(tmp_path / "source" / "0.tar", members)
    settings = BuildSettings(
        SourceSettings("tar", str(tmp_path / "source")), str(tmp_path / "out"), workers=1
    )
    settings.max_reject_share = 0.9
    index = build(settings).index
    assert sorted(samples_of(tmp_path / "out")) == ["good", "half", "null"]
    named = [(r.key, r.reason) for r in read_marker(str(tmp_path / "out"), "0.tar").rejected]
    assert named == [
        ("bytes", "no_caption"), ("cut", "no_caption"), ("empty", "no_caption"),
        ("half", "bad_caption"), ("json", "bad_json"), ("latin", "no_caption"),
        ("null", "bad_caption"), ("null", "bad_caption"), ("null", "bad_caption"),
    ]  # fmt: skip
    assert index.rejects == {"bad_caption": 4, "bad_json": 1, "no_caption": 4}
