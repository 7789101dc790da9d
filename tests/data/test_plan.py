"""The plan's promises: every sample once, the same batches for every W, arithmetic resume."""

import itertools

import pytest

from hnpretrain.data.plan import Plan, choose_streams


def plan(shards=(7, 13, 1, 30, 20), streams=4, batch_size=8, block_size=5, seed=3):
    return Plan(shards, streams, batch_size, block_size, seed)


def stream_samples(the_plan, epoch, stream):
    """All (shard, number) of a stream in the order in which they are given out."""
    position = 0
    while position < the_plan.stream_length:
        _, first, last = the_plan.block_at(stream, position)
        assert first == position < last
        block = the_plan.block(epoch, stream, position)
        line = [(run.shard, i) for run in block.runs for i in range(run.start, run.stop)]
        assert sorted(block.order) == list(range(last - first))
        yield from (line[i] for i in block.order)
        position = last


@pytest.mark.parametrize("epoch", [0, 1, 5])
def test_an_epoch_shows_each_sample_once(epoch):
    p = plan()
    seen = [s for stream in range(p.streams) for s in stream_samples(p, epoch, stream)]
    assert len(seen) == len(set(seen)) == p.streams * p.stream_length
    assert p.samples - len(seen) < p.streams
    assert all(number < p.shard_samples[shard] for shard, number in seen)


@pytest.mark.parametrize("shards", [(71,), (1,) * 71, (70, 1), (0, 40, 0, 31)])
def test_any_cut_into_shards(shards):
    p = plan(shards=shards)
    seen = [s for stream in range(p.streams) for s in stream_samples(p, 0, stream)]
    assert len(set(seen)) == p.streams * (71 // p.streams)


def test_epochs_and_seeds_differ():
    orders = [
        list(stream_samples(plan(seed=seed), epoch, 0))
        for seed, epoch in itertools.product((1, 2), (0, 1))
    ]
    assert all(a != b for a, b in itertools.combinations(orders, 2))
    assert list(stream_samples(plan(), 2, 1)) == list(stream_samples(plan(), 2, 1))


def test_streams_are_shuffled_within_blocks_alone():
    p = plan(shards=(100,), streams=1, batch_size=10, block_size=10)
    numbers = [number for _, number in stream_samples(p, 0, 0)]
    assert numbers != sorted(numbers)
    for start in range(0, 100, 10):
        assert sorted(numbers[start : start + 10]) == list(range(start, start + 10))


def test_ranks_share_the_streams():
    p = plan(streams=8)
    for world_size in (1, 2, 4, 8):
        parts = [p.streams_of(rank, world_size) for rank in range(world_size)]
        assert sorted(itertools.chain(*parts)) == list(range(8))
        assert all(v % world_size == rank for rank, part in enumerate(parts) for v in part)


def test_left_out_is_counted():
    p = plan(shards=(103,), streams=4, batch_size=8)
    assert p.steps_per_epoch == 12  # streams of 25, two samples each a step
    assert p.left_out == 103 - 96


@pytest.mark.parametrize(
    "change, message",
    [
        ({"streams": 3}, "streams=3 must divide the global batch_size=8"),
        ({"streams": 0}, "must all be at least 1"),
        ({"shards": (3, 2)}, "5 samples do not fill one global batch of 8"),
        ({"shards": ()}, "0 samples do not fill"),
    ],
)
def test_what_does_not_go_together(change, message):
    with pytest.raises(ValueError, match=message):
        plan(**change)


def test_ranks_that_do_not_divide():
    with pytest.raises(ValueError, match="3 ranks must divide streams=4"):
        plan().streams_of(0, 3)


def test_every_position_of_a_block_finds_it():
    p = plan()
    for stream in range(p.streams):
        blocks = [p.block_at(stream, position) for position in range(p.stream_length)]
        for position, (_, first, last) in enumerate(blocks):
            assert first <= position < last <= first + p.block_size
        assert len(set(blocks)) == blocks[-1][0] + 1
    with pytest.raises(ValueError, match="stream 0 has 17 samples, not 17"):
        p.block_at(0, 17)


def test_streams_do_not_fetch_in_the_same_step():
    p = plan(shards=(800,), streams=8, batch_size=8, block_size=16)
    starts = [{p.block_at(v, position)[1] for position in range(100)} for v in range(8)]
    for a, b in itertools.combinations(starts, 2):
        assert a & b == {0}


@pytest.mark.parametrize("batch_size, world_size", [(8, 2), (96, 3), (7, 7), (1000, 8)])
def test_chosen_streams_fit(batch_size, world_size):
    streams = choose_streams(batch_size, world_size)
    assert batch_size % streams == 0
    assert streams % world_size == 0


def test_chosen_streams():
    assert choose_streams(4096, 1) == choose_streams(4096, 16) == 64
    assert choose_streams(4096, 128) == 128
    assert choose_streams(1000, 1) == 50
    with pytest.raises(ValueError, match="batch_size=10 must be a multiple of the 4 ranks"):
        choose_streams(10, 4)
