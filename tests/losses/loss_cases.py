"""Inputs of the loss's tests, and the comparison with the float64 oracle that they share."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn.functional import normalize

from hnpretrain.losses.oracle import oracle_loss

INPUTS = ("image", "text", "negative", "logit_scale")


@dataclass
class Case:
    """The inputs of a global batch: image, text (B, D), negative (B, K, D), mask (B, K)."""

    image: torch.Tensor
    text: torch.Tensor
    negative: torch.Tensor | None
    mask: torch.Tensor | None
    logit_scale: torch.Tensor

    def leaves(self, dtype: torch.dtype, device: str = "cpu") -> Case:
        """A copy in `dtype` whose tensors are leaves that want gradients; the scale stays fp32+."""

        def leaf(x: torch.Tensor | None) -> torch.Tensor | None:
            return None if x is None else x.detach().to(device, dtype).requires_grad_()

        wide = torch.float64 if dtype == torch.float64 else torch.float32
        scale = self.logit_scale.detach().to(device, wide).requires_grad_()
        mask = None if self.mask is None else self.mask.to(device)
        return Case(leaf(self.image), leaf(self.text), leaf(self.negative), mask, scale)

    def part(self, rank: int, ranks: int) -> Case:
        """The rank-th of `ranks` equal parts, as detached tensors."""

        def slice_of(x: torch.Tensor | None) -> torch.Tensor | None:
            return None if x is None else x.chunk(ranks)[rank]

        features = [slice_of(x) for x in (self.image, self.text, self.negative, self.mask)]
        return Case(*features, self.logit_scale)

    def arguments(self) -> tuple[torch.Tensor | None, ...]:
        """In the order of the loss's own signature."""
        return self.image, self.text, self.negative, self.mask, self.logit_scale

    def grads(self) -> dict[str, torch.Tensor]:
        named = {name: getattr(self, name) for name in INPUTS}
        return {name: x.grad for name, x in named.items() if x is not None}


def make_case(
    seed: int = 0,
    B: int = 12,
    D: int = 16,
    K: int = 3,
    scale: float = 20.0,
    valid: float = 0.6,
    noise: float = 1.0,
) -> Case:
    """Unit-norm features: captions near their images, negatives near their captions, `noise` apart.

    A share `valid` of the negatives is valid, at random; the second row has none, where there is a
    second row and a mask that is not full. Masked negatives hold NaN.
    """
    generator = torch.Generator().manual_seed(seed)

    def noisy(x: torch.Tensor) -> torch.Tensor:
        drawn = torch.randn(x.shape, generator=generator, dtype=torch.float64)
        return normalize(x + noise * normalize(drawn, dim=-1), dim=-1)

    image = normalize(torch.randn(B, D, generator=generator, dtype=torch.float64), dim=-1)
    text = noisy(image)
    logit_scale = torch.tensor(scale, dtype=torch.float64)
    if K == 0:
        return Case(image, text, None, None, logit_scale)
    negative = noisy(text[:, None].expand(B, K, D))
    mask = torch.rand(B, K, generator=generator) < valid
    if B > 1 and valid < 1:
        mask[1] = False
    return Case(image, text, negative.masked_fill(~mask[..., None], torch.nan), mask, logit_scale)


def oracle(case: Case, scope: str, ranks: int = 1) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The float64 loss of the global batch and its gradients, at the very values of `case`."""
    exact = case.leaves(torch.float64)
    total = oracle_loss(*exact.arguments(), scope=scope, ranks=ranks)
    total.backward()
    return total.detach(), exact.grads()


def error(value: torch.Tensor, expected: torch.Tensor) -> float:
    """|value - expected| / |expected|, in the Euclidean norm; 0 where both are zero."""
    difference = (value.detach().double().cpu() - expected).norm().item()
    return 0.0 if difference == 0 else difference / max(expected.norm().item(), 1e-300)


def assert_close(
    total: torch.Tensor,
    grads: dict[str, torch.Tensor],
    expected: tuple[torch.Tensor, dict[str, torch.Tensor]],
    tolerance: float,
) -> None:
    """Value and every gradient lie within `tolerance` of the expected, relative to their norms."""
    errors = {"total": error(total, expected[0])}
    assert grads.keys() == expected[1].keys()
    errors |= {name: error(grad, expected[1][name]) for name, grad in grads.items()}
    assert all(value <= tolerance for value in errors.values()), errors
