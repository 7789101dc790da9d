"""The plan's promises: every sample once, the same batches for every W, arithmetic resume."""

import itertools
import math
from collections import Counter
from fractions import Fraction

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from hnpretrain.data.plan import Part, Plan, choose_streams


def plan(shards=(7, 13, 1, 30, 20), streams=4, batch_size=8, block_size=5, seed=3):
    return Plan((Part(shards),), streams, batch_size, block_size, seed)


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
    assert all(number < p.parts[0].shard_samples[shard] for shard, number in seen)


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
        ({"shards": (3, 2)}, "5 samples of an epoch do not fill one global batch of 8"),
        ({"shards": ()}, "0 samples of an epoch do not fill"),
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


def mixed(weights, sizes=((30, 34), (40,), (3, 13)), streams=4, batch_size=8, block_size=10):
    parts = tuple(Part(size, weight) for size, weight in zip(sizes, weights, strict=True))
    return Plan(parts, streams, batch_size, block_size, seed=3)


def shown(the_plan, epoch):
    """How often an epoch shows each sample, whose draws are made in which pass."""
    seen = Counter()
    for stream in range(the_plan.streams):
        position = 0
        while position < the_plan.stream_length:
            block = the_plan.block(epoch, stream, position)
            for run in block.runs:
                seen.update((run.shard, i, run.passage) for i in range(run.start, run.stop))
            position = the_plan.block_at(stream, position)[2]
    return seen


def test_a_mixture_shows_each_set_as_often_as_its_weight_says():
    """Sizes that four streams divide: nothing is left out."""
    p = mixed((1, 2, 0.5))
    assert p.shards == 5
    assert p.samples == p.streams * p.stream_length == 64 + 80 + 8
    epochs = [shown(p, epoch) for epoch in range(4)]
    for number, epoch in enumerate(epochs):
        assert set(epoch.values()) == {1}  # never twice in one pass
        assert sum(shard < 2 for shard, _, _ in epoch) == 64
        assert {passage for shard, _, passage in epoch if shard < 2} == {number}
        twice = Counter(i for shard, i, _ in epoch if shard == 2)
        assert set(twice.values()) == {2}
    for first, second in (epochs[:2], epochs[2:]):
        halves = [{s for s in epoch if s[0] > 2} for epoch in (first, second)]
        assert len(halves[0]) == len(halves[1]) == 8
        assert len({s[:2] for s in halves[0] | halves[1]}) == 16


@pytest.mark.parametrize("weights", [(1, 1, 1), (1, 0.3, 2.7), (0.01, 5, 1)])
def test_blocks_hold_the_sets_in_proportion(weights):
    p = mixed(weights, sizes=((300,), (80, 50), (77,)))
    share = [math.floor(w * n) / p.samples for w, n in zip(weights, (300, 130, 77), strict=True)]
    part_of = [0, 1, 1, 2]
    for epoch, stream in itertools.product(range(3), range(p.streams)):
        position = 0
        while position < p.stream_length:
            _, first, last = p.block_at(stream, position)
            counts = Counter()
            for run in p.block(epoch, stream, position).runs:
                counts[part_of[run.shard]] += run.stop - run.start
            for number in range(3):
                assert abs(counts[number] - share[number] * (last - first)) <= 3
            assert counts.total() == last - first
            position = last


@given(st.lists(st.integers(0, 20), min_size=1, max_size=5).filter(any))
def test_with_each_position_one_set_grows(shares):
    p = Plan(tuple(Part((share,)) for share in shares), 1, 1, 4, seed=0)
    splits = [p._split(position) for position in range(p.stream_length + 1)]
    assert splits[0] == [0] * len(shares)
    assert splits[-1] == shares
    for before, after in itertools.pairwise(splits):
        assert sorted(b - a for a, b in zip(before, after, strict=True))[-2:] in ([0, 1], [1])


@given(
    st.sampled_from([0.1, 0.3, 0.7, 0.29, 1.7, 1, 2.5]),
    st.lists(st.integers(0, 40), min_size=1, max_size=4),
    st.sampled_from([1, 2, 5]),
    st.integers(1, 12),
)
def test_no_weight_shows_a_sample_of_a_pass_twice_or_loses_one(weight, shards, streams, epochs):
    """What is written 0.29 is 29 of 100, and each epoch begins where the one before has ended."""
    part = Part(tuple(shards), weight)
    count = Fraction(str(weight)) * sum(shards) // 1
    assume(count >= streams)
    p = Plan((part,), streams, streams, block_size=7, seed=3)
    assert p.samples == count
    seen = Counter()
    for epoch in range(epochs):
        of_epoch = shown(p, epoch)
        assert of_epoch.total() == p.samples - p.left_out
        seen += of_epoch
    assert set(seen.values()) == {1}
    if streams == 1:
        passes = Counter(passage for _, _, passage in seen)
        whole, rest = divmod(epochs * count, sum(shards))
        assert passes == Counter({n: sum(shards) for n in range(whole)} | {whole: rest})


def test_left_out_is_counted_of_each_set():
    p = mixed((1, 2, 0.5), sizes=((31, 34), (40,), (3, 13)), batch_size=16)
    # Streams of 16 + 20 + 2 samples, of which an epoch shows the first 36.
    assert p.left_out == 65 + 80 + 8 - 4 * 36
    assert p.left_out_of == [5, 4, 0]
