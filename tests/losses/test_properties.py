"""Any shape, mask, scale and tile: the loss is the oracle's, value and gradients."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hnpretrain.losses import HardNegativeContrastiveLoss, blocked
from tests.losses.loss_cases import make_case, oracle


@pytest.mark.parametrize("backend", ["blocked", "oracle"])
@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    B=st.integers(1, 24),
    D=st.integers(1, 12),
    K=st.integers(0, 4),
    scope=st.sampled_from(["own", "local", "global"]),
    scale=st.sampled_from([0.5, 1.0, 14.3, 100.0]),
    valid=st.sampled_from([0.0, 0.3, 1.0]),
    noise=st.sampled_from([0.3, 1.0, 6.0]),
    copies=st.booleans(),
    tile=st.integers(1, 300),
    seed=st.integers(0, 10**6),
)
def test_the_loss_is_the_oracles(
    backend: str,
    B: int,
    D: int,
    K: int,
    scope: str,
    scale: float,
    valid: float,
    noise: float,
    copies: bool,
    tile: int,
    seed: int,
) -> None:
    case = make_case(seed=seed, B=B, D=D, K=K, scale=scale, valid=valid, noise=noise)
    if copies:  # the same pair twice: logits are equal, and no row can be certain
        case.image[B // 2], case.text[B // 2] = case.image[0], case.text[0]
    inputs = case.leaves(torch.float64)
    before, blocked.CPU_TILE_ELEMENTS = blocked.CPU_TILE_ELEMENTS, tile
    try:
        total = HardNegativeContrastiveLoss(scope, backend=backend)(*inputs.arguments()).total
        total.backward()
    finally:
        blocked.CPU_TILE_ELEMENTS = before
    expected = oracle(inputs, scope)
    for name, grad in expected[1].items():
        torch.testing.assert_close(inputs.grads()[name], grad, rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(total.detach(), expected[0], rtol=1e-9, atol=1e-12)
