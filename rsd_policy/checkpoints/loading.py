"""Policies in memory: loading a checkpoint directory and writing one."""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from rsd_policy.backbones.mini import MiniBackbone, MiniConfig
from rsd_policy.checkpoints.manifest import (
    FORMAT_VERSION,
    MANIFEST,
    manifest_digest,
    read_manifest,
    resolve_checkpoint,
    sha256,
    verify_files,
)
from rsd_policy.codec import RFSQCodec
from rsd_policy.errors import CheckpointError
from rsd_policy.heads import RFSQDraftModel, RFSQHead

SHARD_BYTES = 15 * 2**20
"""Weights are split into files below this size, so that they travel through ordinary git hosting."""


@dataclass
class Policy:
    """Everything the engine needs, on one device, in evaluation mode.

    Attributes:
        name: directory name of the checkpoint.
        backbone: gives `preprocess`, `embed`, `forward_layers`, `action_hidden`.
        head: main head, all levels.
        draft: early-exit head, coarse levels.
        codec: tokens <-> actions.
        exit_layer: k; the draft reads the hidden states after layers 0 .. k-1.
        manifest: the checkpoint's manifest.
    """

    name: str
    backbone: MiniBackbone
    head: RFSQHead
    draft: RFSQDraftModel
    codec: RFSQCodec
    exit_layer: int
    manifest: dict[str, Any]

    @property
    def horizon(self) -> int:
        """T, steps of a chunk."""
        return self.head.horizon

    def modules(self) -> dict[str, nn.Module]:
        """The trainable parts by the name of their weight files."""
        return {"backbone": self.backbone, "head": self.head, "draft": self.draft}

    def to(self, device: torch.device) -> Policy:
        """Move all modules to a device; returns self."""
        for module in self.modules().values():
            module.to(device)
        return self


def build_policy(name: str, manifest: dict[str, Any]) -> Policy:
    """Modules of a manifest's architecture with untrained weights.

    Raises:
        CheckpointError: the architecture is unknown or an entry does not fit it.
    """
    architecture = manifest["architecture"]
    kind = architecture.get("backbone")
    if kind != "mini":
        raise CheckpointError(f"checkpoint '{name}': expected backbone 'mini', got '{kind}'")
    try:
        config = MiniConfig.from_manifest(architecture["mini"])
        statistics = manifest["proprio"]
        backbone = MiniBackbone(config, torch.tensor(statistics["mean"]), torch.tensor(statistics["std"]))
        codec = RFSQCodec.from_manifest(manifest["codec"])
        common = {"hidden_size": backbone.hidden_size, "horizon": config.horizon, "slots": backbone.slots}
        head = RFSQHead(**common, **architecture["head"], levels=codec.levels, bins=codec.bins)
        draft = RFSQDraftModel(**common, **architecture["draft"], bins=codec.bins)
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"checkpoint '{name}': architecture entry missing, misnamed or wrong: {error}") from error
    exit_layer = int(manifest["exit_layer"])
    if not 0 < exit_layer < backbone.num_layers:
        raise CheckpointError(f"exit_layer: expected 1 .. {backbone.num_layers - 1}, got {exit_layer}")
    policy = Policy(name, backbone, head, draft, codec, exit_layer, manifest)
    for module in policy.modules().values():
        module.eval().requires_grad_(False)
    return policy


def load_policy(name_or_path: str | Path = "mini") -> Policy:
    """Load a policy from a shipped name or a checkpoint directory, on the CPU, in float32.

    Every file is compared with its sha256 before it is read; every tensor of the architecture must be there with its
    shape, and no other.

    Raises:
        CheckpointError: missing, altered, or of another architecture.
    """
    directory = resolve_checkpoint(name_or_path)
    manifest = read_manifest(directory)
    verify_files(directory, manifest)
    policy = build_policy(directory.name, manifest)
    tensors: dict[str, Tensor] = {}
    for file in manifest["files"]:
        tensors.update(load_file(directory / file))
    for prefix, module in policy.modules().items():
        state = {key[len(prefix) + 1 :]: value for key, value in tensors.items() if key.startswith(prefix + ".")}
        load_strictly(module, state, f"checkpoint '{directory}', {prefix}")
    return policy


def load_strictly(module: nn.Module, state: dict[str, Tensor], where: str) -> None:
    """Load float weights into a module; any missing, unexpected or misshapen tensor is an error that lists them."""
    own = module.state_dict()
    missing = sorted(own.keys() - state.keys())
    unexpected = sorted(state.keys() - own.keys())
    shapes = [
        f"{key}: expected {list(own[key].shape)}, got {list(state[key].shape)}"
        for key in sorted(own.keys() & state.keys())
        if own[key].shape != state[key].shape
    ]
    if missing or unexpected or shapes:
        raise CheckpointError(f"{where}: missing {missing}; unexpected {unexpected}; wrong shapes {shapes}")
    broken = [key for key, value in state.items() if not bool(torch.isfinite(value).all())]
    if broken:
        raise CheckpointError(f"{where}: tensors hold NaN or infinity: {broken}")
    module.load_state_dict({key: value.float() for key, value in state.items()})


def save_policy(directory: Path, policy: Policy) -> None:
    """Write a checkpoint directory: float16 safetensors shards and the manifest, which is written last.

    Args:
        directory: must not hold a checkpoint yet.
        policy: its manifest is completed with the format version and the files' sha256.
    """
    directory.mkdir(parents=True, exist_ok=True)
    if (directory / MANIFEST).exists():
        raise CheckpointError(f"{directory}: holds a checkpoint already; choose another directory or remove it first")
    shards: list[dict[str, Tensor]] = [{}]
    size = 0
    for prefix, module in policy.modules().items():
        for key, value in module.state_dict().items():
            tensor = value.detach().cpu().to(torch.float16).contiguous()
            if size + tensor.nbytes > SHARD_BYTES and shards[-1]:
                shards.append({})
                size = 0
            shards[-1][f"{prefix}.{key}"] = tensor
            size += tensor.nbytes
    files = {}
    for i, shard in enumerate(shards):
        name = f"weights-{i + 1:05d}-of-{len(shards):05d}.safetensors"
        save_file(shard, directory / name)
        files[name] = sha256(directory / name)
    policy.manifest["format_version"] = FORMAT_VERSION
    policy.manifest["files"] = files
    policy.manifest["manifest_sha256"] = manifest_digest(policy.manifest)
    write_json(directory / MANIFEST, policy.manifest)


def write_json(path: Path, value: Any) -> None:
    """Write JSON so that a reader sees the old file or the new one, never half of it."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    with os.fdopen(handle, "w") as file:
        json.dump(value, file, indent=2)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    os.chmod(temporary, 0o644)
    os.replace(temporary, path)
