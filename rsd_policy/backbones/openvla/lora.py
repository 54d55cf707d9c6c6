"""LoRA adapters as PEFT saves them (`lora_adapter/`), merged into the base weights while these are loaded.

    W' = W + (alpha / r) B A

Hu et al., LoRA: Low-Rank Adaptation of Large Language Models, 2021. OpenVLA-OFT's training leaves such an adapter
beside the merged weights, or alone when merging is left for later.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from rsd_policy.backbones.openvla.config import read_json
from rsd_policy.backbones.openvla.layout import ADAPTER_CONFIG
from rsd_policy.errors import CheckpointError

ADAPTER_WEIGHTS = "adapter_model.safetensors"

BASE = "base_model_name_or_path"
"""Entry of the configuration: the base weights' directory or hub id where the adapter was trained."""

PREFIX = "base_model.model."

PLAIN: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    "use_dora": (False,),
    "use_rslora": (False,),
    "fan_in_fan_out": (False,),
    "modules_to_save": (None, []),
    "rank_pattern": (None, {}),
    "alpha_pattern": (None, {}),
    "layer_replication": (None,),
}
"""Entries of the configuration with the values under which the formula above is the whole truth."""


class LoraAdapter:
    """An adapter's matrices by the name of the weight that they change.

    Args:
        directory: holds `adapter_config.json` and `adapter_model.safetensors`.

    Raises:
        CheckpointError: a file is missing, or the adapter is of a kind with another formula.
    """

    def __init__(self, directory: Path) -> None:
        config = read_json(directory / ADAPTER_CONFIG)
        other = {name: config[name] for name, plain in PLAIN.items() if name in config and config[name] not in plain}
        if other:
            raise CheckpointError(
                f"{directory / ADAPTER_CONFIG}: expected a plain LoRA adapter, got {other}; "
                "merge it with PEFT (merge_and_unload) and load the merged weights"
            )
        try:
            self.scale = float(config["lora_alpha"]) / float(config["r"])
            tensors = load_file(directory / ADAPTER_WEIGHTS)
        except (KeyError, TypeError, ZeroDivisionError) as error:
            raise CheckpointError(f"{directory / ADAPTER_CONFIG}: expected lora_alpha and r: {error}") from error
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{directory / ADAPTER_WEIGHTS}: {error}; fetch the checkpoint again") from error
        self.base = str(config.get(BASE) or "")
        self.unmerged = {self._weight_name(key) for key in tensors}
        self._tensors = tensors

    @staticmethod
    def _weight_name(key: str) -> str:
        name = key.removeprefix(PREFIX)
        for suffix in (".lora_A.weight", ".lora_B.weight"):
            if key.startswith(PREFIX) and name.endswith(suffix):
                return name.removesuffix(suffix) + ".weight"
        raise CheckpointError(
            f"{ADAPTER_WEIGHTS}: expected tensors named {PREFIX}<layer>.lora_A.weight or .lora_B.weight, got '{key}'"
        )

    def merge(self, name: str, weight: Tensor) -> Tensor:
        """The weight with its update, computed in float32; as it is when the adapter does not change it.

        Raises:
            CheckpointError: the adapter's matrices do not fit.
        """
        if name not in self.unmerged:
            return weight
        self.unmerged.discard(name)
        stem = PREFIX + name.removesuffix(".weight")
        pair = [self._tensors.get(f"{stem}.lora_{part}.weight") for part in "BA"]
        b, a = pair
        if b is None or a is None:
            raise CheckpointError(f"{ADAPTER_WEIGHTS}: expected both lora_A and lora_B for '{name}', got one of them")
        if b.ndim != 2 or a.ndim != 2 or b.shape[1] != a.shape[0] or weight.shape != (b.shape[0], a.shape[1]):
            raise CheckpointError(
                f"{ADAPTER_WEIGHTS}: B {list(b.shape)} and A {list(a.shape)} do not fit '{name}' {list(weight.shape)}; "
                "the adapter belongs to another base model"
            )
        b, a = (matrix.to(weight.device, torch.float32) for matrix in (b, a))
        return weight.float() + self.scale * (b @ a)
