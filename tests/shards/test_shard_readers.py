"""Other people's readers read our shards: plain webdataset, and open_clip's own pipeline."""

from __future__ import annotations

import argparse
import functools
import io
from pathlib import Path
from typing import Any

import numpy as np
import open_clip_train.data
import pytest
import webdataset
from PIL import Image

from shard_tools.job import build
from tests.shards.conftest import PHOTOS, photos_settings


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory, few_photos: Path) -> Path:
    folder = tmp_path_factory.mktemp("readers") / "shards"
    build(photos_settings(folder, few_photos, samples_per_shard=5))
    return folder


def test_plain_webdataset(shards: Path, records: list[dict[str, Any]]) -> None:
    urls = f"{shards}/{{00000..00001}}.tar"
    samples = {s["__key__"]: s for s in webdataset.WebDataset(urls, shardshuffle=False)}
    assert len(samples) == 10
    for record in records[:10]:
        sample = samples[Path(record["image"]).stem]
        assert sample["jpg"] == (PHOTOS / record["image"]).read_bytes()
        assert sample["txt"].decode() == " ".join(record["captions"][0].split())
        assert sample["json"].startswith(b'{"captions":[')


@pytest.mark.parametrize("is_train", [True, False])
def test_open_clip_s_own_loader(
    shards: Path,
    records: list[dict[str, Any]],
    is_train: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # open_clip asks for webdataset <= 0.2.86, which had no marks between shards to choke on.
    expander = functools.partial(open_clip_train.data.tar_file_expander, eof_value=None)
    monkeypatch.setattr(open_clip_train.data, "tar_file_expander", expander)
    urls = f"{shards}/{{00000..00001}}.tar"
    arguments = argparse.Namespace(
        train_data=urls, val_data=urls, train_num_samples=10, val_num_samples=10,
        train_data_upsampling_factors=None, dataset_resampled=False, seed=0, batch_size=5,
        workers=0, world_size=1,
    )  # fmt: skip
    images: list[np.ndarray] = []

    def preprocess(image: Image.Image) -> int:
        images.append(np.asarray(image))
        return len(images) - 1

    info = open_clip_train.data.get_wds_dataset(
        arguments, preprocess, is_train, tokenizer=lambda text: [text]
    )
    pairs = [
        pair for numbers, texts in info.dataloader for pair in zip(numbers, texts, strict=True)
    ]
    expected = {" ".join(record["captions"][0].split()): record for record in records[:10]}
    assert {text for _, text in pairs} == set(expected)
    for number, text in pairs:
        data = (PHOTOS / expected[text]["image"]).read_bytes()
        original = Image.open(io.BytesIO(data)).convert("RGB")
        np.testing.assert_array_equal(images[int(number)], np.asarray(original))
