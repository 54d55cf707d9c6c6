"""OpenVLA and OpenVLA-OFT as a backbone: observation -> token sequence -> Llama layers -> hidden states of the action.

    OpenVLA-OFT  [BOS][256 patches per image][proprio?][rest of the prompt][T*7 action slots][stop]   bidirectional
    OpenVLA      [BOS][256 patches][rest of the prompt]                                                causal

Action slots enter as zeros; their positions alone tell them apart. The hidden states that OFT's head reads start one
position before the slots, at the prompt's last token, as in training (each position predicts the next one's token).
Source: modeling_prismatic.py of moojink/openvla-oft and of openvla/openvla.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from rsd_policy import kernels
from rsd_policy.backbones.openvla.config import LlamaConfig, OpenVLAConfig
from rsd_policy.backbones.openvla.heads import ProprioProjector
from rsd_policy.backbones.openvla.llama import KeyValueCache, LlamaStack
from rsd_policy.backbones.openvla.preprocessing import ImagePreprocessing
from rsd_policy.backbones.openvla.projector import FusedProjector
from rsd_policy.backbones.openvla.tokenizer import PromptTokenizer
from rsd_policy.backbones.openvla.units import Units
from rsd_policy.backbones.openvla.vision import DinoSigLIPVision
from rsd_policy.errors import ObservationError
from rsd_policy.observation import ACTION_DIM, Observation


@dataclass
class OpenVLAInputs:
    """Model-ready tensors of a batch of observations.

    Attributes:
        pixels: float32 [B, n, 6, 224, 224], normalised for DINOv2 and SigLIP.
        prompt: int64 [B, L], from the start token to the empty token.
        proprio: float32 [B, 8], normalised to [-1, 1]; None for models without.
    """

    pixels: Tensor
    prompt: Tensor
    proprio: Tensor | None


@dataclass(frozen=True)
class Layout:
    """What the weights' files do not say about the sequence.

    Attributes:
        parallel: OpenVLA-OFT's sequence with action slots; False: OpenVLA's.
        proprio: whether the state is a token.
        horizon: T, steps of a chunk; 1 for OpenVLA.
    """

    parallel: bool
    proprio: bool
    horizon: int


class LanguageModel(nn.Module):
    """Names of the files: `model.` is the stack; `lm_head.` is there only where tokens are decoded."""

    def __init__(self, config: LlamaConfig, causal: bool) -> None:
        super().__init__()
        self.model = LlamaStack(config, causal)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False) if causal else None


class OpenVLABackbone(nn.Module):
    """See the module's docstring. Parameters are named as in the checkpoint's files, but for `llama.py`'s joined ones.

    Args:
        config: of the checkpoint.
        layout: of the sequence.
        images: frames -> pixels.
        tokenizer: instruction -> ids.
        units: for the state.
    """

    def __init__(
        self,
        config: OpenVLAConfig,
        layout: Layout,
        images: ImagePreprocessing,
        tokenizer: PromptTokenizer,
        units: Units,
    ) -> None:
        super().__init__()
        width = config.llama.hidden_size
        self.config = config
        self.layout = layout
        self.images = images
        self.tokenizer = tokenizer
        self.units = units
        self.num_layers = config.llama.num_hidden_layers
        self.hidden_size = width
        self.horizon = layout.horizon
        self.slots = layout.horizon * ACTION_DIM if layout.parallel else 1
        self.vision_backbone = DinoSigLIPVision(config.vision)
        self.projector = FusedProjector(config.vision.width, width)
        self.language_model = LanguageModel(config.llama, causal=not layout.parallel)
        self.proprio_projector = ProprioProjector(width) if layout.proprio else None

    def stage(self, observations: list[Observation]) -> dict[str, NDArray[Any]]:
        """Frames of each camera, prompts and normalised states of a batch.

        Returns:
            "frames.CAMERA" uint8 [B, H, W, 3], "prompt" int64 [B, L] and, for models with a state, "proprio" float32
            [B, 8].

        Raises:
            ObservationError: as `preprocess`, or frames of a camera differ in size within the batch.
        """
        staged: dict[str, NDArray[Any]] = {}
        frames = [self.images.frames(observation) for observation in observations]
        for name, of_camera in zip(self.images.cameras, zip(*frames, strict=True), strict=True):
            if len({frame.shape for frame in of_camera}) > 1:
                raise ObservationError(
                    f"image '{name}': expected frames of one size in a batch, got {[list(f.shape) for f in of_camera]}"
                )
            staged[f"frames.{name}"] = of_camera[0][None] if len(of_camera) == 1 else np.stack(of_camera)
        return staged | self._prompt_and_state(observations)

    def prepare(self, staged: dict[str, Tensor]) -> OpenVLAInputs:
        """Pixels of `stage`'s frames, all of one size at once."""
        frames = [staged[f"frames.{name}"] for name in self.images.cameras]
        if len({frame.shape for frame in frames}) == 1:
            together = torch.stack(frames, dim=1)
            pixels = self.images.pixels(together.flatten(0, 1)).unflatten(0, together.shape[:2])
        else:
            pixels = torch.stack([self.images.pixels(frame) for frame in frames], dim=1)
        return OpenVLAInputs(pixels, staged["prompt"], staged.get("proprio"))

    def preprocess(self, observations: list[Observation]) -> OpenVLAInputs:
        """Pixels, prompts and states of a batch, on the weights' device.

        Raises:
            ObservationError: a camera is missing, a prompt is too long, or prompts differ in their number of tokens:
                such observations do not share a sequence length, so they need batches of their own.
        """
        device = self.language_model.model.embed_tokens.weight.device
        rest = {name: torch.from_numpy(a).to(device) for name, a in self._prompt_and_state(observations).items()}
        return OpenVLAInputs(self.images(observations, device), rest["prompt"], rest.get("proprio"))

    def _prompt_and_state(self, observations: list[Observation]) -> dict[str, NDArray[Any]]:
        prompts = [self.tokenizer(observation.instruction) for observation in observations]
        if len({len(prompt) for prompt in prompts}) > 1:
            raise ObservationError(
                f"instructions: expected prompts of one length in a batch, got {[len(p) for p in prompts]} tokens; "
                "put observations with the same instruction into one batch"
            )
        arrays: dict[str, NDArray[Any]] = {"prompt": np.array(prompts, dtype=np.int64)}
        if self.units.proprio is not None:
            state = self.units.proprio.normalise(np.stack([o.proprio for o in observations]).astype(np.float64))
            arrays["proprio"] = state
        return arrays

    def embed(self, inputs: OpenVLAInputs) -> Tensor:
        """Token sequence before the first layer.

        Returns:
            [B, S, hidden_size] in the weights' dtype, S = L + 256 n (+ 1 with proprio) (+ T*7 + 1 with slots).
        """
        embedding = self.language_model.model.embed_tokens
        dtype = embedding.weight.dtype
        prompt = embedding(inputs.prompt)
        parts = [prompt[:, :1], self.projector(self.vision_backbone(inputs.pixels.to(dtype)))]
        if self.proprio_projector is not None and inputs.proprio is not None:
            parts.append(self.proprio_projector(inputs.proprio.to(dtype))[:, None])
        parts.append(prompt[:, 1:])
        if self.layout.parallel:
            parts.append(prompt.new_zeros(len(prompt), self.slots, self.hidden_size))
            stop = inputs.prompt.new_full((len(prompt), 1), self.config.llama.eos_token_id)
            parts.append(embedding(stop))
        return torch.cat(parts, dim=1)

    def forward_layers(self, x: Tensor, start: int, stop: int, caches: list[KeyValueCache] | None = None) -> Tensor:
        """Run layers start .. stop-1; the model's final norm belongs to the last layer.

        `forward_layers(forward_layers(x, 0, k), k, N)` is `forward_layers(x, 0, N)`.

        Args:
            x: [B, S, hidden_size].
            start: first layer.
            stop: layer after the last one.
            caches: for decoding token by token, see `LlamaStack.forward_layers`.
        """
        return self.language_model.model.forward_layers(x, start, stop, caches)

    def late_hidden(self, x: Tensor, start: int) -> Tensor:
        """`action_hidden` after layers start .. N-1."""
        if not kernels.enabled():
            return self.action_hidden(self.forward_layers(x, start, self.num_layers))
        return self.language_model.model.fused(x, start, self.num_layers, self._read_slots)

    @property
    def _read_slots(self) -> slice:
        """Positions of `action_hidden`; behind OFT's are the last slot and the stop token."""
        return slice(-(self.slots + 2), -2) if self.layout.parallel else slice(-1, None)

    def action_hidden(self, x: Tensor) -> Tensor:
        """Hidden states that predict the action: [B, T*7, hidden_size] (OFT), or [B, 1, hidden_size] (OpenVLA).

        The same positions after any layer; the final norm is in them only after the last.
        """
        return x[:, self._read_slots]

    def exit_hidden(self, x: Tensor) -> Tensor:
        """What the draft reads: `action_hidden`."""
        return self.action_hidden(x)
