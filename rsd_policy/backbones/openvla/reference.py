"""The policies that the checkpoints were published as: OFT's regression head and OpenVLA's action tokens."""

from __future__ import annotations

from abc import abstractmethod

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from rsd_policy.backbones.openvla.backbone import OpenVLABackbone
from rsd_policy.backbones.openvla.heads import L1ActionHead
from rsd_policy.backbones.openvla.units import token_values
from rsd_policy.errors import InferenceError, NonFiniteError
from rsd_policy.observation import ACTION_DIM, Observation


class ReferencePolicy(nn.Module):
    """Observations -> actions with the checkpoint's own head.

    Attributes:
        recordable: actions follow from the hidden states by `action_head` alone, as a CUDA graph can hold it.
    """

    recordable = False

    def __init__(self, backbone: OpenVLABackbone) -> None:
        super().__init__()
        self.backbone = backbone

    @torch.inference_mode()
    def forward(self, observations: list[Observation]) -> NDArray[np.float32]:
        """Actions for a batch of any instructions; those with prompts of one length are computed together.

        Returns:
            float32 [B, T, 7], ready for LIBERO's `env.step`: OSC_POSE units, gripper -1 open, +1 close.

        Raises:
            ObservationError: a camera is missing or a prompt is too long.
            NonFiniteError: the model produced NaN or infinity.
            InferenceError: the model produced no action.
        """
        groups: dict[int, list[int]] = {}
        for i, observation in enumerate(observations):
            groups.setdefault(len(self.backbone.tokenizer(observation.instruction)), []).append(i)
        actions = np.empty((len(observations), self.backbone.horizon, ACTION_DIM), dtype=np.float32)
        for members in groups.values():
            inputs = self.backbone.preprocess([observations[i] for i in members])
            actions[members] = self.from_embedded(self.backbone.embed(inputs))
        return actions

    @torch.inference_mode()
    def from_embedded(self, x: Tensor) -> NDArray[np.float32]:
        """Actions of sequences that are embedded already, [B, S, hidden_size]; result and errors as `forward`."""
        normalised = self.normalised_actions(x)
        if not np.all(np.isfinite(normalised)):
            raise NonFiniteError(
                "the model's actions hold NaN or infinity: expected finite numbers; no action was produced. "
                "Check the images and the checkpoint (rsd doctor)"
            )
        return self.backbone.units.actions(normalised)

    @abstractmethod
    def normalised_actions(self, x: Tensor) -> NDArray[np.float64]:
        """Embedded sequences [B, S, hidden_size] -> [B, T, 7], motion in [-1, 1], gripper in [0, 1]."""


class L1Policy(ReferencePolicy):
    """OpenVLA-OFT: all steps at once by regression."""

    recordable = True

    def __init__(self, backbone: OpenVLABackbone) -> None:
        super().__init__(backbone)
        self.action_head = L1ActionHead(backbone.hidden_size)

    def normalised_actions(self, x: Tensor) -> NDArray[np.float64]:
        hidden = self.backbone.forward_layers(x, 0, self.backbone.num_layers)
        return self.action_head(self.backbone.action_hidden(hidden)).double().cpu().numpy()


class TokenPolicy(ReferencePolicy):
    """OpenVLA: seven tokens, each the most probable after those before it; one step."""

    def normalised_actions(self, x: Tensor) -> NDArray[np.float64]:
        config = self.backbone.config
        vocabulary = config.llama.vocab_size - config.padded_tokens
        values = token_values(self.decode_tokens(x), vocabulary, config.action_bins)
        return values.reshape(len(x), 1, ACTION_DIM)

    def decode_tokens(self, x: Tensor) -> NDArray[np.int64]:
        """Greedy action tokens [B, 7] after embedded prompts [B, S, hidden_size].

        Raises:
            InferenceError: the model ended its answer before seven tokens.
        """
        backbone, language_model = self.backbone, self.backbone.language_model
        assert language_model.lm_head is not None  # causal models are built with it
        caches = language_model.model.empty_caches(x)
        tokens: list[Tensor] = []
        for _ in range(ACTION_DIM):
            x = backbone.forward_layers(x, 0, backbone.num_layers, caches)
            tokens.append(language_model.lm_head(x[:, -1]).argmax(dim=-1))
            x = language_model.model.embed_tokens(tokens[-1])[:, None]
        ids = torch.stack(tokens, dim=1).cpu().numpy()
        if np.any(ids == backbone.config.llama.eos_token_id):
            raise InferenceError(
                f"the model ended its answer early: expected {ACTION_DIM} action tokens, got {ids.tolist()}; "
                "the checkpoint is not trained for actions or the instruction is unlike its training"
            )
        return ids
