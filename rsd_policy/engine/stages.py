"""The stages of one inference, plain or as CUDA graphs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from rsd_policy.backbones.base import Backbone
from rsd_policy.checkpoints.policy import Heads
from rsd_policy.engine.cuda_graph import GraphedStage
from rsd_policy.heads import DeviationPredictor


@dataclass(frozen=True)
class Stages:
    """What lies between a backbone's inputs and tokens.

    Attributes:
        embed: the backbone's inputs -> x [B, S, hidden_size].
        layers_early: x -> x after layers 0 .. k-1.
        draft: x after layer k-1 -> tokens and margins [3, B, T, D], and what they were read from.
        deviation: the latter and what else DeviationPredictor.forward reads -> probability [B, T]; None for a policy
            that was never calibrated.
        layers_late: x after layer k-1 -> x after the last layer.
        head: x after the last layer -> tokens and margins [8, B, T, D].
    """

    embed: Callable[[Any], Tensor]
    layers_early: Callable[[Tensor], Tensor]
    draft: Callable[[Tensor], Any]
    layers_late: Callable[[Tensor], Tensor]
    head: Callable[[Tensor], Any]
    deviation: Callable[..., Tensor] | None = None

    @classmethod
    def of(
        cls, backbone: Backbone, heads: Heads, deviation: DeviationPredictor | None = None, *, graphed: bool
    ) -> Stages:
        """Stages of a policy; `graphed` needs it to be on a GPU."""

        def draft(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            hidden = backbone.exit_hidden(x)
            return (*heads.draft(hidden), hidden)

        calls: list[Callable[..., Any]] = [
            lambda inputs: backbone.embed(inputs),
            lambda x: backbone.forward_layers(x, 0, heads.exit_layer),
            draft,
            lambda x: backbone.forward_layers(x, heads.exit_layer, backbone.num_layers),
            lambda x: heads.head(backbone.action_hidden(x)),
        ]
        if deviation is not None:
            calls.append(deviation)
        if graphed:
            pool = torch.cuda.graph_pool_handle()
            embed = GraphedEmbed(backbone, pool) if backbone.static_embed else calls[0]
            calls = [embed, *(GraphedStage(call, pool) for call in calls[1:])]
        return cls(*calls)


class GraphedEmbed:
    """`embed` of a backbone as a CUDA graph, for inputs that are a dataclass of tensors and None."""

    def __init__(self, backbone: Backbone, pool: Any) -> None:
        self._backbone = backbone
        self._pool = pool
        self._stages: dict[tuple[str, ...], GraphedStage] = {}

    def __call__(self, inputs: Any) -> Tensor:
        """[B, S, hidden_size]."""
        tensors = {f.name: value for f in fields(inputs) if (value := getattr(inputs, f.name)) is not None}
        names = tuple(tensors)
        if names not in self._stages:

            def embed(*values: Tensor) -> Tensor:
                return self._backbone.embed(replace(inputs, **dict(zip(names, values, strict=True))))

            self._stages[names] = GraphedStage(embed, self._pool)
        x: Tensor = self._stages[names](*tensors.values())
        return x
