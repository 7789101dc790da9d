"""What the loader gives out: the same samples for every number of ranks and workers, from any
position, with broken samples named and replaced."""

from collections import defaultdict
from dataclasses import replace

import pytest
import torch

from hnpretrain.data.loader import DataSettings, Position
from hnpretrain.data.samples import draws_for
from hnpretrain.data.streams import BadShard
from hnpretrain.data.texts import TextLayout
from hnpretrain.shards.schema import Caption, Negative, Sample
from tests.support.datasets import photo_samples, tile, write_dataset
from tests.support.loading import END, LENGTH, PADDED, batches, loader, number_at, same


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiles")
    write_dataset(folder, (tile(i) for i in range(100)), per_shard=13)
    return folder


def texts_of(batch):
    """(B, 1 + K, L) of padded rows; captions where there is no negative."""
    return batch.texts.token_NL[batch.texts.place_BC]


@pytest.mark.parametrize("batch_size, shown", [(8, 96), (4, 100)])
def test_every_sample_once_an_epoch(folder, batch_size, shown):
    """Also where the last block of a stream is of one sample, as that of stream 0 is."""
    the_loader = loader(folder, batch_size=batch_size)
    assert the_loader.plan.block_at(0, 24) == (4, 24, 25)
    seen = batches(the_loader)
    for epoch in (0, 1):
        keys = [key for p, batch, _ in seen if p.epoch == epoch for key in batch.keys]
        assert len(keys) == len(set(keys)) == shown


def test_a_mixture_is_read_from_all_its_folders(tmp_path, folder):
    """Two epochs show a set of weight 0.5 once; another of weight 2 with new draws each time."""
    for name in ("half", "twice"):
        samples = (replace(tile(i), key=f"{name}{i:02}") for i in range(16))
        write_dataset(tmp_path / name, samples, per_shard=5)
    mixture = {str(folder): 1, f"{tmp_path}/half": 0.5, f"{tmp_path}/twice": 2}
    found = batches(loader(mixture, streams=2))
    assert len(found) == 2 * (100 + 8 + 32) // 8 - 1  # a stream has 70 samples, four a step
    images = defaultdict(list)
    for _, batch, _ in found:
        for key, image in zip(batch.keys, batch.image_BCHW, strict=True):
            images[key].append(image)
    halves = [len(x) for key, x in images.items() if key.startswith("half")]
    assert len(halves) >= 10  # some are left out at the ends of epochs
    assert set(halves) == {1}
    for key, shown in images.items():
        if key.startswith("twice"):
            assert len(shown) in (3, 4)
            assert len({tuple(image.flatten().tolist()) for image in shown}) == len(shown)
    parts = [batches(loader(mixture, rank, 2, streams=2, workers=1)) for rank in (0, 1)]
    for step, (_, whole, _) in enumerate(found):
        assert sorted(parts[0][step][1].keys + parts[1][step][1].keys) == sorted(whole.keys)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"shards": "a", "mixture": {"b": 1}}, "set either data.shards or data.mixture"),
        (
            {"mixture": {"b": 0}},
            "mixture: b has weight 0; it must be above 0 and at most 1000",
        ),
        ({"mixture": {"b": float("nan")}}, "b has weight nan"),
    ],
)
def test_wrong_mixtures(settings, message):
    with pytest.raises(ValueError, match=message):
        DataSettings(**settings)


def test_a_mixture_that_has_moved_is_read_alike(tmp_path):
    for name, count in (("a", 24), ("b", 16)):
        samples = (replace(tile(i), key=f"{name}{i:02}") for i in range(count))
        write_dataset(tmp_path / name, samples, per_shard=5)
    before = loader({f"{tmp_path}/a": 1, f"{tmp_path}/b": 0.5})
    whole = batches(before)
    for old, new in (("a", "z"), ("b", "y")):
        (tmp_path / old).rename(tmp_path / new)
    after = loader({f"{tmp_path}/z": 1.0, f"{tmp_path}/y": 0.5})
    assert after._mixture.fingerprint == before._mixture.fingerprint
    assert all(same(a, b) for (_, a, _), (_, b, _) in zip(whole, batches(after), strict=True))
    (tmp_path / "z").rename(tmp_path / "x")  # the other one is the first by name now
    swapped = loader({f"{tmp_path}/y": 0.5, f"{tmp_path}/x": 1})
    assert swapped._mixture.fingerprint == before._mixture.fingerprint
    assert all(same(a, b) for (_, a, _), (_, b, _) in zip(whole, batches(swapped), strict=True))


@pytest.mark.parametrize("again", ["{}/", "{}/../tiles"])
def test_a_data_set_is_given_once(tmp_path, again):
    place = str(tmp_path / "tiles")
    write_dataset(place, (tile(i) for i in range(20)), per_shard=5)
    with pytest.raises(ValueError, match=r"tiles and /.* hold the same shards; .* weight 1.5 "):
        loader({place: 1, again.format(place): 0.5})


def test_a_data_set_too_small_to_be_shown_is_refused(tmp_path, folder):
    write_dataset(tmp_path / "few", [tile(i) for i in range(6)], per_shard=3)
    mixture = {str(folder): 1, f"{tmp_path}/few": 0.5}
    with pytest.raises(ValueError, match=r"^nothing of /.*/few .* 0.5 of its 6 samples, 3, .* 4 s"):
        loader(mixture)
    assert sorted(loader(mixture, batch_size=2, streams=2).plan.left_out_of) == [0, 3 - 2]


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
    # Each stream's block and the one behind it; a block may touch two shards.
    assert sum(path.endswith(".tar") for path, *_ in reads) <= 16


EPOCHS = 3


@pytest.fixture(scope="module")
def alone(folder):
    """Three epochs of one rank that reads in its own process."""
    return batches(loader(folder), epochs=EPOCHS)


def test_three_epochs_show_what_the_plan_says(folder, alone):
    plan = loader(folder).plan
    assert len(alone) == EPOCHS * plan.steps_per_epoch
    for position, batch, tally in alone:
        expected = [
            f"{number_at(plan, position.epoch, stream, place):06d}"
            for stream in range(plan.streams)
            for place in range(2 * position.step, 2 * position.step + 2)
        ]
        assert list(batch.keys) == expected
        assert tally.is_plain
        assert tally.ledger.read == 8
    for epoch in range(EPOCHS):
        keys = [
            key for position, batch, _ in alone if position.epoch == epoch for key in batch.keys
        ]
        assert len(keys) == len(set(keys)) == 96


@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_three_epochs_are_the_same_for_all_ranks_and_workers(folder, alone, world_size, workers):
    parts = [
        batches(loader(folder, rank, world_size, workers=workers), epochs=EPOCHS)
        for rank in range(world_size)
    ]
    assert [position for position, _, _ in alone] == [position for position, _, _ in parts[0]]
    for step, (position, whole, _) in enumerate(alone):
        assert all(part[step][0] == position for part in parts)
        assert rows(whole) == rows(*(part[step][1] for part in parts))


def rows(*parts):
    """The samples of a global batch, in the order of their keys."""
    found = []
    for part in parts:
        for key, image, texts in zip(part.keys, part.image_BCHW, texts_of(part), strict=True):
            found.append((key, image.tolist(), texts.tolist()))
    return sorted(found)


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


def test_draws_of_a_key_stay_what_they_were():
    assert draws_for(1, 2, "caf\u00e9/7").integers(2**63) == 7165473743945263622
    assert draws_for(1, 2, "caf\udce9/7").integers(2**63) == 3483404339500573869


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
    for _, batch, tally in batches(loader(tmp_path, workers=2), epochs=1):
        assert len(batch.keys) == 8
        rejects += tally.rejects
        keys += batch.keys
    assert sorted((r.key, r.reason, r.detail.partition(":")[0]) for r in rejects) == [
        ("000007", "not_an_image", f"{tmp_path / '000000.tar'} sample 7"),
        ("000042", "broken_image", f"{tmp_path / '000030.tar'} sample 12"),
    ]
    assert "000007" not in keys
    assert "000042" not in keys


@pytest.mark.parametrize("workers", [0, 2])
def test_nothing_but_broken_samples_stops_with_one_error(tmp_path, workers):
    write_dataset(tmp_path, [broken(tile(i), b"x") for i in range(20)], per_shard=20)
    with pytest.raises(ValueError, match=r"^nothing can stand in .*000000\.tar sample \d+: begins"):
        batches(loader(tmp_path, workers=workers))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_missing_shard_stops_with_one_error(tmp_path, workers):
    write_dataset(tmp_path, [tile(i) for i in range(40)], per_shard=20)
    (tmp_path / "000020.tar").unlink()
    with pytest.raises(BadShard, match=r"^shard /.*/000020\.tar: .*data\.on_bad_shard=skip"):
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
    assert all(tally.is_plain for _, _, tally in seen)
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
    assert all(tally.is_plain for _, _, tally in seen)
    assert len({key for _, batch, _ in seen for key in batch.keys}) == 72
