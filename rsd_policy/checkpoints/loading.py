"""Policies in memory: loading a checkpoint directory and writing one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from rsd_policy.backbones.base import Backbone
from rsd_policy.backbones.mini import MiniBackbone, MiniConfig
from rsd_policy.checkpoints.external import load_external, recorded_backbone
from rsd_policy.checkpoints.manifest import (
    FORMAT_VERSION,
    MANIFEST,
    external_source,
    manifest_digest,
    read_manifest,
    resolve_checkpoint,
    sha256,
    verify_files,
)
from rsd_policy.checkpoints.policy import Heads, Policy
from rsd_policy.codec import RFSQCodec
from rsd_policy.device import parse_device
from rsd_policy.errors import CheckpointError
from rsd_policy.files import write_json
from rsd_policy.heads import DeviationPredictor, RFSQDraftModel, RFSQHead

SHARD_BYTES = 15 * 2**20
"""Weights are split into files below this size, so that they travel through ordinary git hosting."""


def build_policy(name: str, manifest: dict[str, Any], backbone: Backbone | None = None) -> Policy:
    """Modules of a manifest's architecture; their weights are untrained.

    Args:
        name: of the policy.
        manifest: without `files`, if need be.
        backbone: to be used in place of a new one; needed for an external one.

    Raises:
        CheckpointError: the architecture is unknown or an entry does not fit it.
    """
    architecture = manifest["architecture"]
    try:
        if backbone is None:
            backbone = _new_mini(name, manifest)
        codec = RFSQCodec.from_manifest(manifest["codec"])
        common: dict[str, Any] = {"hidden_size": backbone.hidden_size, "horizon": backbone.horizon}
        common["slots"] = backbone.slots
        # Checkpoints made before there was a choice took the arg max, and their gates were calibrated with it.
        head_sizes, draft_sizes = ({"choice": "mode", **architecture[part]} for part in ("head", "draft"))
        head = RFSQHead(**common, **head_sizes, levels=codec.levels, bins=codec.bins)
        draft = RFSQDraftModel(**common, **draft_sizes, bins=codec.bins)
        deviation = None
        if (sizes := architecture.get("deviation")) is not None:
            deviation = DeviationPredictor(**common, levels=draft.levels, choice=draft.choice, **sizes)
        exit_layer = int(manifest["exit_layer"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"checkpoint '{name}': architecture entry missing, misnamed or wrong: {error}") from error
    if not 0 < exit_layer < backbone.num_layers:
        raise CheckpointError(f"exit_layer: expected 1 .. {backbone.num_layers - 1}, got {exit_layer}")
    policy = Policy(name, backbone, manifest, Heads(head, draft, codec, exit_layer), deviation=deviation)
    for module in policy.modules().values():
        module.eval().requires_grad_(False)
    return policy


def _new_mini(name: str, manifest: dict[str, Any]) -> MiniBackbone:
    kind = manifest["architecture"].get("backbone")
    if kind != "mini":
        raise CheckpointError(f"checkpoint '{name}': expected backbone 'mini' or 'openvla', got '{kind}'")
    statistics = manifest["proprio"]
    config = MiniConfig.from_manifest(manifest["architecture"]["mini"])
    return MiniBackbone(config, torch.tensor(statistics["mean"]), torch.tensor(statistics["std"]))


def load_policy(
    name_or_path: str | Path = "mini",
    device: str | torch.device = "cpu",
    *,
    norm_key: str | None = None,
    cameras: Sequence[str] | None = None,
    base: str | Path | None = None,
) -> Policy:
    """Load a policy.

    A checkpoint of ours is a shipped name (`mini`) or a directory with a `manifest.json`. Every file is compared with
    its sha256 before it is read; every tensor of the architecture must be there with its shape, and no other. It runs
    in float32; heads on an external backbone take that backbone's precision.

    A checkpoint of OpenVLA or OpenVLA-OFT is a directory in its public layout, its folder in the hub's cache, a LoRA
    adapter for one as PEFT saves it, or a hub id (`organisation/name`). It
    answers in mode `baseline` with the output head that it came with. It runs in bfloat16 on a GPU, float32 on a CPU.

    Args:
        name_or_path: as above.
        device: torch device to load to.
        norm_key: which of an OpenVLA checkpoint's action statistics to use; None when it has one.
        cameras: which images of an Observation an OpenVLA checkpoint reads, in its order; None: `agentview` and `wrist`
            for OpenVLA-OFT, `agentview` for OpenVLA. The checkpoint's files do not tell.
        base: directory or hub id of the weights that a checkpoint stands on, where they are not where it says: the base
            model of an unmerged LoRA adapter, or the external backbone of heads of ours.

    Raises:
        CheckpointError: missing, altered, or of another architecture; or `norm_key` or `cameras` with a checkpoint of
            ours, which has fixed both; or `base` with one that stands on no other.
        SetupError: no such GPU, or the hub cannot be reached.
        RSDError: `device` is not the name of a device.
    """
    target = parse_device(device)
    external = external_source(name_or_path)
    if external is not None:
        return load_external(external, target, norm_key=norm_key, cameras=cameras, base=base)
    directory = resolve_checkpoint(name_or_path)
    if norm_key is not None or cameras is not None:
        raise CheckpointError(
            f"policy '{name_or_path}': expected no norm key and no cameras, which its checkpoint has fixed; "
            f"got norm_key {norm_key!r}, cameras {cameras!r}"
        )
    manifest = read_manifest(directory)
    if base is not None and manifest["architecture"].get("backbone") == "mini":
        raise CheckpointError(f"policy '{name_or_path}': expected no base, as its checkpoint is whole; got '{base}'")
    verify_files(directory, manifest)
    policy = build_policy(directory.name, manifest, recorded_backbone(manifest, target, base))
    tensors: dict[str, Tensor] = {}
    for file in manifest["files"]:
        tensors.update(load_file(directory / file))
    for prefix, module in policy.modules().items():
        state = {key[len(prefix) + 1 :]: value for key, value in tensors.items() if key.startswith(prefix + ".")}
        load_strictly(module, state, f"checkpoint '{directory}', {prefix}")
    if policy.kind != "mini":
        for module in (policy.head, policy.draft):
            module.to(policy.dtype)
    else:
        # Images come channels last: convolutions of that form copy neither them nor what follows. The stems take a
        # fifth less time so (2 cores of a Xeon), with the same bits there.
        policy.mini.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return policy.to(target)


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
