import math

import pytest
import torch
from torch import nn

from hnpretrain.train.optimizer import OptimizerSettings, learning_rate, parameter_groups


class Tower(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)
        self.norm = nn.LayerNorm(2)
        self.logit_scale = nn.Parameter(torch.ones(1))


def test_matrices_decay_and_nothing_else():
    tower = Tower()
    decayed, plain = parameter_groups(tower, 0.2)
    assert decayed["params"] == [tower.linear.weight]
    assert decayed["weight_decay"] == 0.2
    assert plain["weight_decay"] == 0
    assert len(plain["params"]) == 4


def test_locked_parameters_are_left_out():
    tower = Tower()
    tower.linear.requires_grad_(False)
    (plain,) = parameter_groups(tower, 0.2)
    assert len(plain["params"]) == 3


def test_warm_up_and_cosine():
    settings = OptimizerSettings(lr=1.0, warmup_steps=4)
    rates = [learning_rate(settings, step, 12) for step in range(12)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates[4:] == [0.5 * (1 + math.cos(math.pi * i / 8)) for i in range(8)]
    assert learning_rate(settings, 12, 12) == 0
    assert learning_rate(OptimizerSettings(lr=1.0, warmup_steps=0), 0, 3) == 1


@pytest.mark.parametrize("field", ["lr", "eps", "weight_decay", "warmup_steps", "max_grad_norm"])
def test_wrong_settings(field):
    for value in (-1, math.inf, math.nan):
        with pytest.raises(ValueError, match=f"optimizer.{field}={value}"):
            OptimizerSettings(**{field: value})


@pytest.mark.parametrize("betas", [(0.9,), (0.9, 1.0), (-0.1, 0.9)])
def test_wrong_betas(betas):
    with pytest.raises(ValueError, match=r"optimizer.betas=\[.*\] must be two numbers"):
        OptimizerSettings(betas=betas)
