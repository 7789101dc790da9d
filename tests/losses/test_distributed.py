"""The loss on 1, 2 and 4 gloo ranks: exact global gradients, and disagreement that never hangs."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch

from hnpretrain.losses.oracle import oracle_loss
from tests.losses import dense_terms
from tests.losses.loss_cases import Case, assert_close, error, oracle
from tests.losses.rank_worker import (
    COMMS,
    DTYPES,
    LOCAL_BATCH,
    OBJECTIVES,
    SCALES,
    SCOPES,
    SMOOTHING,
    Towers,
    case_for,
    extreme_case,
    launch,
    tower_inputs,
)

TOLERANCE = {"float64": 1e-10, "float32": 1e-5, "bfloat16": 2e-2}
Found = list[dict[str, Any]]

on_any_world = pytest.mark.parametrize("ranks", [1, 2, 3, 4], ids=lambda ranks: f"W{ranks}")
on_several_ranks = pytest.mark.parametrize("ranks", [2, 3, 4], ids=lambda ranks: f"W{ranks}")
in_each_scope = pytest.mark.parametrize("scope", SCOPES)
by_each_comm = pytest.mark.parametrize("comm", COMMS)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Found]:
    """world(W): what each of W ranks found. A world is launched at most once."""
    return functools.cache(lambda ranks: launch(ranks, tmp_path_factory.mktemp(f"W{ranks}")))


def joined(results: Found) -> dict[str, torch.Tensor]:
    """The global gradients that the ranks' ones stand for after the data-parallel mean.

    A W-th of each rank's feature gradients, one after the other; of the scale, which all ranks
    share, the mean.
    """
    ranks = len(results)
    grads = [result["grads"] for result in results]
    whole = {
        name: torch.cat([grad[name] for grad in grads]) / ranks
        for name, first in grads[0].items()
        if first is not None and first.ndim > 0
    }
    return whole | {"logit_scale": torch.stack([grad["logit_scale"] for grad in grads]).mean()}


@on_any_world
@in_each_scope
@by_each_comm
@pytest.mark.parametrize("K", [0, 3])
@pytest.mark.parametrize("dtype", list(DTYPES))
def test_gradients_are_the_oracles(
    world: Callable[[int], Found], ranks: int, scope: str, comm: str, dtype: str, K: int
) -> None:
    expected = oracle(case_for(ranks, K).leaves(DTYPES[dtype]), scope, ranks)
    for tile in (2**20, 50):
        results = [found[f"{scope}-K{K}-{dtype}-{comm}-tile{tile}"] for found in world(ranks)]
        assert all(torch.equal(result["total"], results[0]["total"]) for result in results)
        assert_close(results[0]["total"], joined(results), expected, TOLERANCE[dtype])


@on_any_world
@in_each_scope
def test_metrics_cover_the_global_batch(
    world: Callable[[int], Found], ranks: int, scope: str
) -> None:
    case = case_for(ranks)
    positive = (case.image * case.text).sum(-1, keepdim=True)
    margins = (positive - (case.image[:, None] * case.negative).sum(-1))[case.mask]
    for found in world(ranks):
        metrics = found[f"{scope}-K3-float64-ring-tile50"]["metrics"]
        assert metrics["negatives"].item() == len(margins)
        assert metrics["negative_margin"].item() == pytest.approx(margins.mean().item())
        accuracy = (margins > 0).double().mean().item()
        assert metrics["negative_accuracy"].item() == pytest.approx(accuracy)


@on_any_world
@in_each_scope
@by_each_comm
def test_locked_text_tower(
    world: Callable[[int], Found], ranks: int, scope: str, comm: str
) -> None:
    results = [found[f"{scope}-{comm}-locked-text"] for found in world(ranks)]
    total, grads = oracle(case_for(ranks), scope, ranks)
    kept = {name: grads[name] for name in ("image", "logit_scale")}
    assert_close(results[0]["total"], joined(results), (total, kept), 1e-10)


@on_any_world
@in_each_scope
def test_the_oracle_backend_agrees(world: Callable[[int], Found], ranks: int, scope: str) -> None:
    results = [found[f"{scope}-oracle"] for found in world(ranks)]
    expected = oracle(case_for(ranks), scope, ranks)
    assert_close(results[0]["total"], joined(results), expected, 1e-10)


@on_any_world
@in_each_scope
def test_data_parallel_towers_learn_as_one_process(
    world: Callable[[int], Found], ranks: int, scope: str
) -> None:
    model = Towers()
    images, captions, mask = tower_inputs(ranks)
    image, text, negative, scale = model(images, captions)
    oracle_loss(image, text, negative, mask, scale, scope, ranks).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad.norm() > 0
        for found in world(ranks):
            assert error(found[f"{scope}-ddp"][name], parameter.grad) < 1e-10, name


@on_any_world
@in_each_scope
@by_each_comm
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_extreme_scales_and_duplicates(
    world: Callable[[int], Found], ranks: int, scope: str, comm: str, scale: float, dtype: str
) -> None:
    expected = oracle(extreme_case(ranks, scale).leaves(DTYPES[dtype]), scope, ranks)
    results = [found[f"s{scale:g}-{scope}-{dtype}-{comm}"] for found in world(ranks)]
    assert_close(results[0]["total"], joined(results), expected, TOLERANCE[dtype])


def _dense_objective(objective: str, case: Case) -> torch.Tensor:
    if objective == "siglip":
        return dense_terms.sigmoid(case, torch.tensor(-3.0, dtype=torch.float64))
    total = dense_terms.smoothed(case, "global", SMOOTHING)
    if objective == "ceclip":
        rank = dense_terms.rank(case, torch.zeros(3, dtype=torch.float64))
        return total + 0.2 * rank + 0.3 * dense_terms.intra_modal(case)
    return total + (dense_terms.own_choice(case, 0, 0) if objective == "tsvlc" else 0.0)


@on_any_world
@by_each_comm
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_objectives_are_the_global_ones(
    world: Callable[[int], Found], ranks: int, comm: str, objective: str
) -> None:
    case = case_for(ranks).leaves(torch.float64)
    expected = _dense_objective(objective, case)
    expected.backward()
    grads = {name: torch.where(grad.isnan(), 0.0, grad) for name, grad in case.grads().items()}
    results = [found[f"{objective}-{comm}"] for found in world(ranks)]
    assert all(torch.equal(result["total"], results[0]["total"]) for result in results)
    assert_close(results[0]["total"], joined(results), (expected.detach(), grads), 1e-10)
    if objective == "ceclip":
        zeros = torch.zeros(3, dtype=torch.float64)
        moved = dense_terms.next_thresholds(case, zeros, 10.0)
        for result in results:
            torch.testing.assert_close(result["thresholds"][0], moved, rtol=1e-6, atol=1e-6)


@on_several_ranks
def test_ranks_may_differ_in_negatives_that_stay_at_home(
    world: Callable[[int], Found], ranks: int
) -> None:
    case = case_for(ranks)
    case.mask[:LOCAL_BATCH, 1:] = False  # what rank 0 leaves away
    for found in world(ranks):
        assert error(found["own-different-K"], oracle(case, "own", ranks)[0]) < 1e-10


@in_each_scope
@by_each_comm
def test_group_is_a_world_of_its_own(world: Callable[[int], Found], scope: str, comm: str) -> None:
    expected = oracle(case_for(2), scope, ranks=2)
    results = [found[f"{scope}-{comm}-group"] for found in world(4)]
    for pair in (results[:2], results[2:]):
        assert_close(pair[0]["total"], joined(pair), expected, 1e-10)


def test_not_a_member_of_the_group(world: Callable[[int], Found]) -> None:
    for rank, found in enumerate(world(4)):
        assert f"rank {rank} of the world is not in the loss's group" in found["not-a-member"]


@on_several_ranks
@pytest.mark.parametrize(
    "what, message",
    [
        ("batch", r"differ in batch b: \[3, 6\b.*drop or pad the last partial batch"),
        ("K", r"differ in negatives per caption K: \[1, 3\b.*pad to one K"),
        ("dtype", r"differ in text dtype: \[torch.float32, torch.float64\b.*one precision"),
        ("gradient", r"differ in whether text needs a gradient: \[1, 0\b.*on all ranks or on none"),
        ("scope", r"differ in scope: \['own', 'local'.*give every rank the same"),
        ("term-K", r"differ in negatives per caption K: \[1, 3\b.*pad to one K"),
        ("settings", r"differ in other settings of the loss: .*form, label smoothing and terms"),
        ("comm", r"differ in comm: \['gather', 'ring'.*give every rank the same"),
    ],
)
def test_ranks_that_disagree_are_all_refused(
    world: Callable[[int], Found], ranks: int, what: str, message: str
) -> None:
    for found in world(ranks):
        assert re.search(message, found[f"refused-{what}"])


@on_several_ranks
def test_one_ranks_wrong_input_stops_all(world: Callable[[int], Found], ranks: int) -> None:
    for rank, found in enumerate(world(ranks)):
        told = "must have one shape" if rank == 1 else r"refused on rank\(s\) \[1\]"
        assert re.search(told, found["refused-shape"])


@on_several_ranks
def test_what_a_term_refuses_on_one_rank_stops_all(
    world: Callable[[int], Found], ranks: int
) -> None:
    for rank, found in enumerate(world(ranks)):
        told = (
            r"thresholds for \d negatives, the batch has 3" if rank else r"refused on rank\(s\) \[1"
        )
        assert re.search(told, found["refused-thresholds"])
