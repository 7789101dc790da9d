"""Scenes: streams, layout, and statistics that give no answer away."""

import itertools
from collections import Counter

import numpy as np
import pytest

from hnpretrain.worlds.scene import (
    COLORS,
    KINDS,
    PLACES,
    SIZES,
    SPLITS,
    Scene,
    sample_scene,
    stream,
)

COUNT = 4000


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [sample_scene(stream(0, "train", i)) for i in range(COUNT)]


def test_a_scene_depends_on_seed_split_and_index_alone(scenes: list[Scene]) -> None:
    assert sample_scene(stream(0, "train", 7)) == scenes[7]
    assert sample_scene(stream(1, "train", 7)) != scenes[7]
    assert len(set(scenes)) == COUNT


def test_splits_share_no_scene(scenes: list[Scene]) -> None:
    for split in set(SPLITS) - {"train"}:
        others = {sample_scene(stream(0, split, i)) for i in range(500)}
        assert others.isdisjoint(scenes)


@pytest.mark.parametrize("seed, split, index", [(0, "dev", 0), (-1, "train", 0), (0, "train", -1)])
def test_stream_refuses_unknown_splits_and_negative_numbers(
    seed: int, split: str, index: int
) -> None:
    with pytest.raises(ValueError, match=r"dev|negative"):
        stream(seed, split, index)


def test_things_lie_in_the_picture_and_apart(scenes: list[Scene]) -> None:
    for scene in scenes:
        for x0, y0, x1, y1 in (thing.box for thing in scene.things):
            assert 0 <= x0 < x1 <= 1
            assert 0 <= y0 < y1 <= 1
        for one, other in itertools.combinations(scene.things, 2):
            apart_x = max(one.box[0], other.box[0]) - min(one.box[2], other.box[2])
            apart_y = max(one.box[1], other.box[1]) - min(one.box[3], other.box[3])
            assert max(apart_x, apart_y) > 0.01


def test_kinds_and_colors_differ_within_a_scene(scenes: list[Scene]) -> None:
    for scene in scenes:
        assert len({thing.kind for thing in scene.things}) == len(scene.things)
        assert len({thing.color for thing in scene.things}) == len(scene.things)


def test_no_size_lies_between_small_and_large(scenes: list[Scene]) -> None:
    scales = {
        size: [thing.scale for scene in scenes for thing in scene.things if thing.size == size]
        for size in SIZES
    }
    assert max(scales["small"]) <= 0.34
    assert min(scales["large"]) >= 0.41


def test_every_scene_of_several_things_has_a_relation(scenes: list[Scene]) -> None:
    for scene in scenes:
        pairs = list(itertools.permutations(range(len(scene.things)), 2))
        relations = [scene.relation(i, j) for i, j in pairs]
        assert any(relations) or not pairs


def test_attributes_are_uniform(scenes: list[Scene]) -> None:
    things = [thing for scene in scenes for thing in scene.things]
    attributes: list[tuple[list[str], list[str]]] = [
        ([t.kind for t in things], list(KINDS)),
        ([t.color for t in things], list(COLORS)),
        ([t.size for t in things], list(SIZES)),
        ([str(s.place(0)) for s in scenes if len(s.things) == 1], list(PLACES)),
        (
            [str(s.relation(0, 1)) for s in scenes if len(s.things) == 2],
            ["left", "right", "above", "below"],
        ),
    ]
    for values, allowed in attributes:
        counts, expected = Counter(values), len(values) / len(allowed)
        assert counts.keys() == set(allowed)
        # Five standard deviations of a multinomial count.
        for value in allowed:
            assert abs(counts[value] - expected) < 5 * expected**0.5, (value, counts)


@pytest.mark.parametrize(
    "one, other", list(itertools.combinations(["kind", "color", "size", "flip"], 2))
)
def test_attributes_tell_nothing_of_each_other(scenes: list[Scene], one: str, other: str) -> None:
    pairs = [(getattr(t, one), getattr(t, other)) for s in scenes for t in s.things]
    rows, columns = (
        {value: i for i, value in enumerate(sorted(set(v)))} for v in zip(*pairs, strict=True)
    )
    table = np.zeros((len(rows), len(columns)))
    for row, column in pairs:
        table[rows[row], columns[column]] += 1
    expected = table.sum(1, keepdims=True) * table.sum(0, keepdims=True) / table.sum()
    chi2 = float(((table - expected) ** 2 / expected).sum())
    freedom = (len(rows) - 1) * (len(columns) - 1)
    assert chi2 < freedom + 4 * (2 * freedom) ** 0.5
