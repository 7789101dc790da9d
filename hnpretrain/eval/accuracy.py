"""A share of right answers, with its standard error."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Accuracy:
    """A share of right answers.

    Attributes:
        value: in [0, 1].
        count: the answers it was taken over.
        standard_error: of `value`, in the same unit.
    """

    value: float
    count: int
    standard_error: float

    @classmethod
    def of(cls, correct: Tensor | np.ndarray | Sequence[bool], clusters: int = 1) -> Accuracy:
        """The mean of right/wrong answers (micro average).

        Args:
            correct: N booleans or 0/1.
            clusters: how many consecutive answers stem from one item. Answers of one item are not
                independent, so the error is taken over items; with 1 it is
                sqrt(p (1 - p) / (N - 1)). Of a single item nothing is known: 0.5, the most.

        Raises:
            ValueError: there is no answer, or N is no multiple of `clusters`.
        """
        correct_N = torch.as_tensor(correct).double().flatten()
        count = correct_N.numel()
        if count == 0:
            raise ValueError("an accuracy needs at least one answer, got none")
        if count % clusters:
            raise ValueError(f"{count} answers do not divide into clusters of {clusters}")
        value = correct_N.mean()
        residual = (correct_N - value).view(-1, clusters).sum(1)
        items = residual.numel()
        if items == 1:
            return cls(float(value), count, 0.5)
        error = (residual.square().sum() * items / (items - 1)).sqrt() / count
        return cls(float(value), count, float(error))

    @classmethod
    def macro(cls, groups: Sequence[Accuracy]) -> Accuracy:
        """The mean of the groups' accuracies, each group weighing the same whatever its size.

        The error is sqrt(sum of squared errors) / groups, for groups drawn independently.
        """
        if not groups:
            raise ValueError("a macro average needs at least one group, got none")
        return cls(
            sum(group.value for group in groups) / len(groups),
            sum(group.count for group in groups),
            math.sqrt(sum(group.standard_error**2 for group in groups)) / len(groups),
        )
