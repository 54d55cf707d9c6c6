"""A model's parameters as one vector: what a step does with all of them is then a few kernels and not hundreds.

A training step of a small model is mostly launching: averaging gradients, clipping, AdamW and the moving average, each
for hundreds of tensors, keep the CPU busy for longer than the GPU computes.
"""

from __future__ import annotations

import copy
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from rsd_policy.training.team import Team

M = TypeVar("M", bound=nn.Module)

LARGEST_NORM = 1.0
"""Gradients are scaled down to this norm."""

ALIGNMENT = 64
"""Numbers to whose multiples a parameter's place in the vector is padded: GPU kernels are slower at odd addresses."""


class FlatTraining(Generic[M]):
    """A model and the exponential moving average of its weights, stepped as vectors.

    Args:
        model: its parameters become views of one vector; they keep their values.
        weight_decay: of matrices, see `decays`.
        learning_rate: at a factor of 1.

    Attributes:
        average: a copy of the model with averaged weights.
        optimizer: AdamW over the vectors.
    """

    def __init__(self, model: M, learning_rate: float, weight_decay: float) -> None:
        self.average: M = copy.deepcopy(model).requires_grad_(False)
        self._parameters, decayed = _in_order(model)
        count = sum(_places(self._parameters[:decayed]))
        self._values = _flatten(self._parameters)
        self._averages = _flatten(_in_order(self.average)[0])
        self._padding = self._values.new_zeros(ALIGNMENT)
        self._learning_rate = learning_rate
        # Slices of the same vector: the optimiser sees two tensors.
        self._parts = [nn.Parameter(part) for part in (self._values[:count], self._values[count:])]
        groups = [
            {"params": [part], "weight_decay": w} for part, w in zip(self._parts, (weight_decay, 0.0), strict=True)
        ]
        fused = self._values.is_cuda
        self.optimizer = torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.95), fused=fused)

    def step(self, factor: float, decay: float, team: Team) -> None:
        """Apply the gradients that the model's parameters hold, and drop them.

        Args:
            factor: of the learning rate. decay: of the moving average. team: whose gradients are averaged.

        Raises:
            RuntimeError: a parameter has no gradient.
        """
        pieces = []
        for parameter, place in zip(self._parameters, _places(self._parameters), strict=True):
            if parameter.grad is None:
                raise RuntimeError("training step: expected a gradient of every parameter; call backward first")
            pieces += [parameter.grad.flatten(), self._padding[: place - parameter.numel()]]
        vector = torch.cat(pieces)
        team.average(vector)
        count = len(self._parts[0])
        self._parts[0].grad, self._parts[1].grad = vector[:count], vector[count:]
        nn.utils.clip_grad_norm_(self._parts, LARGEST_NORM)
        for group in self.optimizer.param_groups:
            group["lr"] = self._learning_rate * factor
        self.optimizer.step()
        self._averages.lerp_(self._values, 1.0 - decay)
        for parameter in self._parameters:
            parameter.grad = None


def decays(name: str, parameter: Tensor) -> bool:
    """Whether weight decay applies: to matrices, not to biases, norms, positions and embeddings."""
    return parameter.ndim >= 2 and not name.endswith(("position", "slot", "queries"))


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """The parameters as groups of an optimiser: those that decay, and the rest."""
    parameters, count = _in_order(model)
    return [
        {"params": parameters[:count], "weight_decay": weight_decay},
        {"params": parameters[count:], "weight_decay": 0.0},
    ]


def _in_order(model: nn.Module) -> tuple[list[nn.Parameter], int]:
    """Those that decay come first; and how many they are."""
    named = list(model.named_parameters())
    decayed = [p for name, p in named if decays(name, p)]
    return decayed + [p for name, p in named if not decays(name, p)], len(decayed)


def _places(parameters: list[nn.Parameter]) -> list[int]:
    """Numbers that each takes in the vector."""
    return [-(-p.numel() // ALIGNMENT) * ALIGNMENT for p in parameters]


def _flatten(parameters: list[nn.Parameter]) -> Tensor:
    """One vector with the parameters' values, which become views of it; zeros in between."""
    places = _places(parameters)
    vector = parameters[0].detach().new_zeros(sum(places))
    for parameter, place in zip(parameters, vector.split(places), strict=True):
        part = place[: parameter.numel()].view_as(parameter)
        part.copy_(parameter.detach())
        parameter.data = part
    return vector
