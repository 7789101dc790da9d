"""What the loader gives out: the same samples for every number of ranks and workers, from any
position, with broken samples named and replaced."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from hnpretrain.data.loader import DataSettings, Loader, Position, make_plan
from hnpretrain.data.texts import TextLayout
from hnpretrain.shards.index import read_index
from hnpretrain.shards.schema import Caption, Negative, Sample
from tests.support.datasets import photo_samples, tile, write_dataset

LENGTH = 6
END = 10**9
PADDED = TextLayout("padded")


def transform(image: Image.Image) -> torch.Tensor:
    # One random number an image stands for the augmentation.
    pixels = torch.tensor(np.asarray(image.resize((2, 2)))).permute(2, 0, 1).float()
    return pixels + torch.rand(())


def tokenize(texts: list[str]) -> torch.Tensor:
    rows = torch.zeros(len(texts), LENGTH, dtype=torch.int64)
    for row, text in zip(rows, texts, strict=True):
        row[0] = sum(ord(c) * (i + 1) for i, c in enumerate(text))
        row[1] = END
    return rows


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiles")
    write_dataset(folder, (tile(i) for i in range(100)), per_shard=13)
    return folder


def loader(folder, rank=0, world_size=1, **settings):
    fields = {"negatives": 2, "streams": 4, "block_size": 6, "workers": 0, **settings}
    layout, micro_batches = fields.pop("layout", PADDED), fields.pop("micro_batches", 1)
    data = DataSettings(shards=str(folder), **fields)
    index = read_index(str(folder))
    plan = make_plan(data, index, batch_size=8, seed=5, world_size=world_size)
    return Loader(data, index, plan, transform, tokenize, layout, rank, world_size, micro_batches)


def batches(the_loader, start=Position(), epochs=2):  # noqa: B008
    """Of loaders whose steps have one batch."""
    return [
        (position, batch, rejects)
        for position, (batch,), rejects in the_loader.batches(start, epochs)
    ]


def same(a, b):
    return (
        a.keys == b.keys
        and torch.equal(a.image_BCHW, b.image_BCHW)
        and all(
            torch.equal(x, getattr(b.texts, name))
            for name, x in vars(a.texts).items()
            if x is not None
        )
        and torch.equal(a.negative_mask_BK, b.negative_mask_BK)
    )


def texts_of(batch):
    """(B, 1 + K, L) of padded rows; captions where there is no negative."""
    return batch.texts.token_NL[batch.texts.place_BC]


def test_every_sample_once_an_epoch(folder):
    for epoch in (0, 1):
        keys = [k for p, b, _ in batches(loader(folder)) if p.epoch == epoch for k in b.keys]
        assert len(keys) == len(set(keys)) == 96


@pytest.mark.parametrize("layout", [PADDED, TextLayout("trees")])
def test_workers_do_not_change_batches(folder, layout):
    alone = batches(loader(folder, workers=0, layout=layout))
    for workers in (1, 3, 9):
        shared = batches(loader(folder, workers=workers, layout=layout))
        assert len(alone) == len(shared)
        for (position_a, a, _), (position_b, b, _) in zip(alone, shared, strict=True):
            assert position_a == position_b
            assert same(a, b)


def test_ranks_split_the_same_global_batches(folder):
    alone = batches(loader(folder))
    for world_size in (2, 4):
        parts = [batches(loader(folder, rank, world_size)) for rank in range(world_size)]
        for step, (_, whole, _) in enumerate(alone):
            keys = [key for part in parts for key in part[step][1].keys]
            assert sorted(keys) == sorted(whole.keys)


@pytest.mark.parametrize("start", [Position(0, 5), Position(0, 11), Position(1, 0), Position(1, 7)])
@pytest.mark.parametrize("workers", [0, 2])
def test_resuming_gives_the_same_batches(folder, start, workers):
    whole = batches(loader(folder))
    rest = batches(loader(folder, workers=workers), start)
    expected = whole[start.epoch * 12 + start.step :]
    assert [p for p, _, _ in rest] == [p for p, _, _ in expected]
    assert all(same(a, b) for (_, a, _), (_, b, _) in zip(rest, expected, strict=True))


def test_resuming_reads_one_block_a_stream(folder, monkeypatch):
    """A seek fetches the blocks that hold the position, and decodes nothing before it."""
    reads = []
    import hnpretrain.data.streams as streams

    original = streams.storage.read_range
    monkeypatch.setattr(
        streams.storage, "read_range", lambda *a, **k: reads.append(a) or original(*a, **k)
    )
    the_loader = loader(folder)
    decoded = []
    decode = type(the_loader._decoder).__call__
    monkeypatch.setattr(
        type(the_loader._decoder),
        "__call__",
        lambda self, raw, epoch: decoded.append(raw.key) or decode(self, raw, epoch),
    )
    _, (batch,), _ = next(the_loader.batches(Position(1, 8), 2))
    assert sorted(decoded) == sorted(batch.keys)
    assert sum(path.endswith(".tar") for path, *_ in reads) <= 8  # a block may touch two shards


def test_negatives_do_not_change_images_and_captions(folder):
    with_negatives = batches(loader(folder, negatives=2))
    without = batches(loader(folder, negatives=0))
    for (_, a, _), (_, b, _) in zip(with_negatives, without, strict=True):
        assert a.keys == b.keys
        assert torch.equal(a.image_BCHW, b.image_BCHW)
        assert torch.equal(texts_of(a)[:, :1], texts_of(b))
        assert b.negative_mask_BK.shape == (8, 0)


def test_captions_and_augmentation_change_with_the_epoch(folder):
    rows = {}
    for position, batch, _ in batches(loader(folder)):
        texts = texts_of(batch)[:, 0, 0]
        for key, image, text in zip(batch.keys, batch.image_BCHW, texts, strict=True):
            rows[position.epoch, key] = (image.sum().item(), text.item())
    both = [key for epoch, key in rows if epoch == 0 and (1, key) in rows]
    assert len(both) > 80
    assert all(rows[0, key][0] != rows[1, key][0] for key in both)
    changed = sum(rows[0, key][1] != rows[1, key][1] for key in both)
    assert 25 < changed < 70  # one of two captions, drawn anew


def test_more_negatives_than_stored_are_masked(folder):
    _, (batch,), _ = next(loader(folder, negatives=5).batches(Position(), 1))
    assert batch.negative_mask_BK.tolist() == [[True, True, False, False, False]] * 8
    assert len(batch.texts.token_NL) == 8 * 3
    assert (texts_of(batch)[:, 3:] == texts_of(batch)[:, :1]).all()
    assert (texts_of(batch)[:, 1:3, 0] != texts_of(batch)[:, :1, 0]).all()


def test_micro_batches_split_a_step_in_order(folder):
    layout = TextLayout("trees")
    for whole, (_, parts, _) in zip(
        batches(loader(folder)),
        loader(folder, workers=2, layout=layout, micro_batches=4).batches(Position(), 2),
        strict=True,
    ):
        _, batch, _ = whole
        assert [len(part.keys) for part in parts] == [2, 2, 2, 2]
        assert sum((part.keys for part in parts), ()) == batch.keys
        assert torch.equal(torch.cat([part.image_BCHW for part in parts]), batch.image_BCHW)
        ends = [part.texts.token_RL.gather(1, part.texts.query_RQ).flatten() for part in parts]
        assert all(
            (end[part.texts.place_BC] == END).all() for part, end in zip(parts, ends, strict=True)
        )


@pytest.mark.parametrize("negatives", [1, 2, 3])
def test_negatives_that_differ_past_the_tokenizer_s_cut_are_not_given(tmp_path, negatives):
    """To the text tower they are the caption; others are taken in their place, or none."""

    def cut(texts: list[str]) -> torch.Tensor:
        return torch.tensor([[len(word) for word in text.split()[:LENGTH]] for text in texts])

    caption = "a bb ccc dddd a bb red"
    texts = ("a bb ccc dddd a bb blue", "a bb ccc dddd a ccc red", "bb bb ccc dddd a bb red")
    made = tuple(Negative(text, "object", "replace", "a", "b", (0, 1)) for text in texts)
    samples = [replace(tile(i), captions=(Caption(caption, made),)) for i in range(40)]
    write_dataset(tmp_path, samples, per_shard=40)
    the_loader = loader(tmp_path, negatives=negatives)
    the_loader._decoder = replace(the_loader._decoder, tokenizer=cut)
    for _, batch, _ in batches(the_loader, epochs=1):
        assert (batch.negative_mask_BK.sum(1) == min(negatives, 2)).all()
        for (text, *rows), mask in zip(texts_of(batch), batch.negative_mask_BK, strict=True):
            there = [row for row, valid in zip(rows, mask, strict=True) if valid]
            assert not any(torch.equal(row, text) for row in there)


def broken(sample: Sample, image: bytes) -> Sample:
    return replace(sample, image=image)


def test_broken_samples_are_named_and_replaced(tmp_path):
    samples = [tile(i) for i in range(100)]
    samples[7] = broken(samples[7], b"no image at all")
    samples[42] = broken(samples[42], samples[42].image[:60])
    write_dataset(tmp_path, samples, per_shard=30)
    rejects, keys = [], []
    for _, batch, refused in batches(loader(tmp_path, workers=2), epochs=1):
        assert len(batch.keys) == 8
        rejects += refused
        keys += batch.keys
    assert sorted((r.key, r.reason) for r in rejects) == [
        ("000007", "not_an_image"),
        ("000042", "broken_image"),
    ]
    assert rejects[0].detail.startswith(("000000.tar sample 7: ", "000030.tar sample 12: "))
    assert "000007" not in keys
    assert "000042" not in keys


@pytest.mark.parametrize("workers", [0, 2])
def test_nothing_but_broken_samples_stops_with_one_error(tmp_path, workers):
    write_dataset(tmp_path, [broken(tile(i), b"x") for i in range(20)], per_shard=20)
    with pytest.raises(ValueError, match=r"^\d samples in a row could not be decoded: 0000\d\d: "):
        batches(loader(tmp_path, workers=workers))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_missing_shard_stops_with_one_error(tmp_path, workers):
    write_dataset(tmp_path, [tile(i) for i in range(40)], per_shard=20)
    (tmp_path / "000020.tar").unlink()
    with pytest.raises(FileNotFoundError, match=r"000020\.tar"):
        batches(loader(tmp_path, workers=workers))


def test_a_marker_of_another_build_is_refused(tmp_path):
    write_dataset(tmp_path / "a", [tile(i) for i in range(20)], per_shard=20)
    write_dataset(tmp_path / "b", [tile(i + 1) for i in range(20)], per_shard=20)
    (tmp_path / "a/000000.marker.json").write_bytes(
        (tmp_path / "b/000000.marker.json").read_bytes()
    )
    with pytest.raises(ValueError, match="does not agree with the index"):
        batches(loader(tmp_path / "a"))


def test_images_are_bounded(folder):
    seen = batches(loader(folder, max_pixels=16 * 16), epochs=1)
    assert not any(refused for _, _, refused in seen)
    with pytest.raises(ValueError, match="16 x 16 pixels, more than the 255 allowed"):
        batches(loader(folder, max_pixels=16 * 16 - 1))


def test_streaming_from_s3_in_forked_workers(bucket, folder):
    """The parent has talked to the store before it forks, as training does with the index."""
    write_dataset(f"{bucket}/tiles", (tile(i) for i in range(100)), per_shard=13)
    local, remote = loader(folder, workers=2), loader(f"{bucket}/tiles", workers=2)
    for (_, a, _), (_, b, _) in zip(batches(local), batches(remote), strict=True):
        assert same(a, b)


def test_real_photos(tmp_path):
    write_dataset(tmp_path, photo_samples(), per_shard=20)
    seen = batches(loader(tmp_path, workers=2), epochs=1)
    assert len(seen) == 9
    assert not any(refused for _, _, refused in seen)
    assert len({key for _, batch, _ in seen for key in batch.keys}) == 72
