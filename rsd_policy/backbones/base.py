"""What the engine, the heads and their training ask of a backbone; `mini` and `openvla` both give it."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor

from rsd_policy.observation import Observation


class Backbone(Protocol):
    """A stack of transformer layers over [vision | proprio | prompt | action slots].

    Attributes:
        num_layers: N, transformer layers.
        hidden_size: width of the hidden states.
        slots: hidden states per chunk that a head reads: T, or T*7.
        horizon: T, steps of a chunk.
        static_embed: `embed` launches the same kernels for all inputs of the same shapes and asks the host nothing, so
            that it can be recorded as a CUDA graph; its inputs are then a dataclass of tensors (or None).
    """

    num_layers: int
    hidden_size: int
    slots: int
    horizon: int
    static_embed: bool

    def preprocess(self, observations: list[Observation]) -> Any:
        """Model-ready tensors of a batch, on the backbone's device; what only `embed` understands.

        Raises:
            ObservationError: a camera is missing, or the observations do not fit into one batch.
        """

    def embed(self, inputs: Any) -> Tensor:
        """Token sequence before the first layer: [B, S, hidden_size]."""

    def forward_layers(self, x: Tensor, start: int, stop: int) -> Tensor:
        """Run layers start .. stop-1 on [B, S, hidden_size].

        Running 0 .. k and then k .. N gives what 0 .. N gives. A normalisation after the last layer belongs to it.
        """

    def action_hidden(self, x: Tensor) -> Tensor:
        """Hidden states of the action slots after any layer: [B, slots, hidden_size]."""

    def exit_hidden(self, x: Tensor) -> Tensor:
        """What the draft and the gate read after layer k-1: [B, slots, hidden_size]. `x` itself is left as it is."""
