"""Stepping parameters as one vector does what AdamW, clipping and averaging do with each of them."""

from __future__ import annotations

import copy

import torch
from torch import nn

from rsd_policy.training.mini.parameter_vector import LARGEST_NORM, FlatTraining, decays, parameter_groups
from rsd_policy.training.team import Team


def model() -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(5, 7), nn.LayerNorm(7), nn.Linear(7, 3))
    layers.register_parameter("position", nn.Parameter(torch.randn(4, 4)))
    return layers


def test_flat_steps_equal_those_of_separate_parameters() -> None:
    flat_model, plain = model(), model()
    training = FlatTraining(flat_model, learning_rate=1e-2, weight_decay=0.1)
    average = copy.deepcopy(plain)
    optimizer = torch.optim.AdamW(parameter_groups(plain, 0.1), lr=1e-2, betas=(0.9, 0.95))
    generator = torch.Generator().manual_seed(1)
    for step in range(6):
        x = torch.randn(16, 5, generator=generator)
        for net in (flat_model, plain):
            (10.0 * net(x).square().mean() + net.get_parameter("position").sum()).backward()
        training.step(0.5, 0.8, Team())
        assert all(p.grad is None for p in flat_model.parameters())
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 * 0.5
        norm = nn.utils.clip_grad_norm_(plain.parameters(), LARGEST_NORM)
        assert norm > LARGEST_NORM or step > 0
        optimizer.step()
        optimizer.zero_grad()
        for mean, value in zip(average.parameters(), plain.parameters(), strict=True):
            mean.data.lerp_(value.data, 0.2)
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(flat_model.state_dict()[name], value)
        torch.testing.assert_close(training.average.state_dict()[name], average.state_dict()[name])


def test_loading_a_state_reaches_the_vector() -> None:
    """Views must stay views: otherwise a resumed training would step weights that the model does not use."""
    first, second = model(), model()
    with torch.no_grad():
        for parameter in second.parameters():
            parameter.mul_(2.0)
    training = FlatTraining(first, learning_rate=1e-2, weight_decay=0.0)
    first.load_state_dict(second.state_dict())
    for parameter in first.parameters():
        parameter.grad = torch.zeros_like(parameter)
    training.step(1.0, 0.0, Team())
    for name, value in second.state_dict().items():
        torch.testing.assert_close(training.average.state_dict()[name], value)


def test_matrices_decay_and_positions_do_not() -> None:
    named = dict(model().named_parameters())
    assert {name for name, parameter in named.items() if decays(name, parameter)} == {"0.weight", "2.weight"}
