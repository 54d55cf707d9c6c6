"""What the engine, the heads and their training ask of a backbone; `mini` and `openvla` both give it."""

from __future__ import annotations

from typing import Any, Protocol

from numpy.typing import NDArray
from torch import Tensor

from rsd_policy.observation import Observation


class Backbone(Protocol):
    """A stack of transformer layers over [vision | proprio | prompt | action slots].

    Attributes:
        num_layers: N, transformer layers.
        hidden_size: width of the hidden states.
        slots: hidden states per chunk that a head reads: T, or T*7.
        horizon: T, steps of a chunk.

    `prepare`, `embed`, `forward_layers`, `exit_hidden` and `late_hidden` launch the same kernels for all inputs of the
    same shapes and ask the host nothing while `kernels.enabled()`, so that they can be recorded as a CUDA graph.
    """

    num_layers: int
    hidden_size: int
    slots: int
    horizon: int

    def stage(self, observations: list[Observation]) -> dict[str, NDArray[Any]]:
        """What of a batch has to go to the device; shapes and types tell which recording it fits.

        Raises:
            ObservationError: as `preprocess`.
        """

    def prepare(self, staged: dict[str, Tensor]) -> Any:
        """`stage`'s tensors, on the backbone's device by now -> what `embed` understands."""

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

    def late_hidden(self, x: Tensor, start: int) -> Tensor:
        """`action_hidden` of layers start .. N-1: [B, slots, hidden_size]. A recorded graph computes no others."""

    def action_hidden(self, x: Tensor) -> Tensor:
        """Hidden states of the action slots after any layer: [B, slots, hidden_size]."""

    def exit_hidden(self, x: Tensor) -> Tensor:
        """What the draft and the gate read after layer k-1: [B, slots, hidden_size]. `x` itself is left as it is."""


def hidden_states(backbone: Backbone, inputs: Any, exit_layer: int) -> tuple[Tensor, Tensor]:
    """What the draft and what the main head read of a batch, as in inference: `exit_hidden` and `late_hidden`.

    Args:
        inputs: of `preprocess`.

    Returns:
        early, late: [B, slots, hidden_size].
    """
    x = backbone.forward_layers(backbone.embed(inputs), 0, exit_layer)
    return backbone.exit_hidden(x), backbone.late_hidden(x, exit_layer)
