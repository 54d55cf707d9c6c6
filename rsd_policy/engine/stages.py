"""The stages of one inference, computed where they are called; `recorded.py` has the same ones as CUDA graphs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rsd_policy import kernels
from rsd_policy.checkpoints.policy import Policy
from rsd_policy.codec import RFSQCodec
from rsd_policy.engine.timing import StageClock
from rsd_policy.errors import NonFiniteError
from rsd_policy.observation import ACTION_DIM, Observation

if TYPE_CHECKING:
    from rsd_policy.backbones.openvla.reference import ReferencePolicy


@dataclass(frozen=True)
class Decoded:
    """Tokens of one head with what is decoded from them, on the host.

    Attributes:
        tokens: int64 [levels, T, 7]. actions: float32 [T, 7], action units.
    """

    tokens: NDArray[np.int64]
    actions: NDArray[np.float32]


@dataclass(frozen=True)
class Draft(Decoded):
    """A draft, and on demand the probability [T] of each prefix to be within tolerance (DeviationPredictor)."""

    probability: Callable[[], NDArray[np.float32]]


class Stages:
    """Stages of a policy with heads; a call returns what waits for its result (here: computes it).

    Args:
        policy: on the device.
        device: of the policy.
    """

    def __init__(self, policy: Policy, device: torch.device) -> None:
        self._policy = policy
        self._device = device

    @torch.inference_mode()
    def early(self, observation: Observation, clock: StageClock) -> Tensor:
        """x [1, S, hidden_size] after layers 0 .. k-1."""
        backbone = self._policy.backbone
        inputs = backbone.preprocess([observation])
        clock.mark("preprocess")
        x = backbone.embed(inputs)
        clock.mark("vision")
        x = backbone.forward_layers(x, 0, self._policy.exit_layer)
        clock.mark("layers_early")
        return x

    def draft(self, x: Tensor, last_action: NDArray[np.float32] | None, clock: StageClock) -> Callable[[], Draft]:
        """The draft of x after layer k-1; `last_action` [7] was executed last, None before the first."""
        return partial(self._draft, x, last_action, clock)

    def late(self, x: Tensor, clock: StageClock) -> Callable[[], Decoded]:
        """What the main head says after layers k .. N-1."""
        return partial(self._late, x, clock)

    @torch.inference_mode()
    def _draft(self, x: Tensor, last_action: NDArray[np.float32] | None, clock: StageClock) -> Draft:
        hidden = self._policy.backbone.exit_hidden(x)
        tokens, margins = self._policy.draft(hidden)
        clock.mark("draft")
        actions = self._policy.codec.decode(tokens)
        decoded = decoded_on_host(tokens, margins, actions)
        clock.mark("decode")
        probability = partial(self._probability, hidden, margins, actions, last_action, clock)
        return Draft(decoded.tokens, decoded.actions, probability)

    @torch.inference_mode()
    def _probability(
        self,
        hidden: Tensor,
        margins: Tensor,
        actions: Tensor,
        last_action: NDArray[np.float32] | None,
        clock: StageClock,
    ) -> NDArray[np.float32]:
        assert self._policy.deviation is not None, "checked when the engine was made"
        tail, first = (torch.from_numpy(array).to(self._device) for array in action_inputs(last_action))
        probability: NDArray[np.float32] = (
            self._policy.deviation(hidden, margins.float(), actions, tail, first)[0].cpu().numpy()
        )
        clock.mark("gate")
        return probability

    @torch.inference_mode()
    def _late(self, x: Tensor, clock: StageClock) -> Decoded:
        hidden = self._policy.backbone.late_hidden(x, self._policy.exit_layer)
        clock.mark("layers_late")
        tokens, margins = self._policy.head(hidden)
        clock.mark("head")
        decoded = decoded_on_host(tokens, margins, self._policy.codec.decode(tokens))
        clock.mark("decode")
        return decoded


class Reference:
    """The output head that a published policy came with."""

    def __init__(self, reference: ReferencePolicy) -> None:
        self._reference = reference

    @torch.inference_mode()
    def actions(self, observation: Observation, clock: StageClock) -> NDArray[np.float32]:
        """float32 [T, 7]; errors as `ReferencePolicy.forward`."""
        backbone = self._reference.backbone
        inputs = backbone.preprocess([observation])
        clock.mark("preprocess")
        x = backbone.embed(inputs)
        clock.mark("vision")
        actions: NDArray[np.float32] = self._reference.from_embedded(x)[0]
        clock.mark("reference")
        return actions


def decoded_on_host(tokens: Tensor, margins: Tensor, actions: Tensor) -> Decoded:
    """One head's answer to one observation: tokens and margins [levels, 1, T, 7], actions [1, T, 7].

    Raises:
        NonFiniteError: the margins hold NaN or infinity.
    """
    check_finite(bool(torch.isfinite(margins).all()))
    return Decoded(tokens[:, 0].cpu().numpy(), actions[0].cpu().numpy())


def check_finite(finite: bool) -> None:
    """Raises NonFiniteError for margins that hold NaN or infinity."""
    if not finite:
        raise NonFiniteError(
            "the model's logits hold NaN or infinity: expected finite numbers; no action was produced. "
            "Check the images and the checkpoint (rsd doctor)"
        )


def action_inputs(last_action: NDArray[np.float32] | None) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """What DeviationPredictor is told of the last executed command: last_action [1, 7] and first [1]."""
    tail = np.zeros(ACTION_DIM, np.float32) if last_action is None else last_action
    return tail[None], np.array([last_action is None])


def decode(codec: RFSQCodec, tokens: Tensor) -> Tensor:
    """Actions [B, T, 7] of tokens [levels, B, T, 7]; in a recorded graph in one kernel, equal in every bit."""
    if not kernels.enabled():
        return codec.decode(tokens)
    from rsd_policy.kernels import levels

    return levels.decode(codec, tokens)
