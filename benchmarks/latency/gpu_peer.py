"""What people run today: OpenVLA-OFT's forward pass as published, eager, and the same under torch.compile.

One image at a time through both vision towers and the projector, transformers' Llama over the joined sequence without a
causal mask, the published head over the slots' hidden states. The weights are those of the policy beside it, copied
under the files' names, so that both must say the same. Its TensorFlow preprocessing on the CPU is
left out, in its favour.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from rsd_policy.backbones.openvla.backbone import OpenVLAInputs
from rsd_policy.backbones.openvla.loading import file_tensors
from rsd_policy.backbones.openvla.reference import L1Policy


class Peer(nn.Module):
    """Model-ready inputs -> normalised actions [B, T, 7].

    Args:
        policy: whose vision towers, projectors and head are shared, and whose language model is copied.
    """

    def __init__(self, policy: L1Policy) -> None:
        super().__init__()
        from transformers import LlamaConfig, LlamaModel

        backbone = policy.backbone
        sizes = backbone.config.llama
        weight = backbone.language_model.model.embed_tokens.weight
        config = LlamaConfig(
            vocab_size=sizes.vocab_size,
            hidden_size=sizes.hidden_size,
            intermediate_size=sizes.intermediate_size,
            num_hidden_layers=sizes.num_hidden_layers,
            num_attention_heads=sizes.num_attention_heads,
            num_key_value_heads=sizes.num_attention_heads,
            rms_norm_eps=sizes.rms_norm_eps,
            max_position_embeddings=4096,
            attn_implementation="sdpa",
            use_cache=False,
        )
        with torch.device(weight.device):
            model = LlamaModel(config).to(weight.dtype).eval().requires_grad_(False)
        own = dict(model.named_parameters())
        given = file_tensors(backbone.language_model.model)
        assert own.keys() == given.keys(), sorted(own.keys() ^ given.keys())
        for name, tensor in given.items():
            own[name].copy_(tensor)
        for layer in model.layers:
            layer.self_attn.is_causal = False
        self.llama = model
        self.policy = policy

    def forward(self, inputs: OpenVLAInputs) -> Tensor:
        """Normalised actions of the published head."""
        return self.policy.action_head(self.policy.backbone.action_hidden(self.hidden(inputs)))

    def hidden(self, inputs: OpenVLAInputs) -> Tensor:
        """Hidden states after the last layer, [B, S, hidden_size]."""
        backbone = self.policy.backbone
        embedding = self.llama.embed_tokens
        dtype = embedding.weight.dtype
        prompt = embedding(inputs.prompt)
        views = [
            backbone.projector(backbone.vision_backbone(inputs.pixels[:, view : view + 1].to(dtype)))
            for view in range(inputs.pixels.shape[1])
        ]
        state: Any = backbone.proprio_projector
        assert inputs.proprio is not None
        proprio = state(inputs.proprio.to(dtype))[:, None]
        slots = prompt.new_zeros(len(prompt), backbone.slots, backbone.hidden_size)
        stop = embedding(inputs.prompt.new_full((len(prompt), 1), backbone.config.llama.eos_token_id))
        x = torch.cat([prompt[:, :1], *views, proprio, prompt[:, 1:], slots, stop], dim=1)
        out: Tensor = self.llama(inputs_embeds=x, use_cache=False).last_hidden_state
        return out
