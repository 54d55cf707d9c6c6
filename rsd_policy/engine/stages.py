"""The stages of one inference as functions of tensors, plain or as CUDA graphs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rsd_policy.backbones.base import Backbone
from rsd_policy.checkpoints.policy import Heads
from rsd_policy.engine.cuda_graph import GraphedStage


@dataclass(frozen=True)
class Stages:
    """What lies between the embedded observation x [B, S, hidden_size] and tokens.

    Attributes:
        layers_early: x -> x after layers 0 .. k-1.
        draft: x after layer k-1 -> tokens and margins [3, B, T, D].
        layers_late: x after layer k-1 -> x after the last layer.
        head: x after the last layer -> tokens and margins [8, B, T, D].
    """

    layers_early: Callable[[Tensor], Tensor]
    draft: Callable[[Tensor], Any]
    layers_late: Callable[[Tensor], Tensor]
    head: Callable[[Tensor], Any]

    @classmethod
    def of(cls, backbone: Backbone, heads: Heads, *, graphed: bool) -> Stages:
        """Stages of a policy; `graphed` needs it to be on a GPU."""
        calls: list[Callable[..., Any]] = [
            lambda x: backbone.forward_layers(x, 0, heads.exit_layer),
            lambda x: heads.draft(backbone.action_hidden(x)),
            lambda x: backbone.forward_layers(x, heads.exit_layer, backbone.num_layers),
            lambda x: heads.head(backbone.action_hidden(x)),
        ]
        if graphed:
            pool = torch.cuda.graph_pool_handle()
            calls = [GraphedStage(call, pool) for call in calls]
        return cls(*calls)
