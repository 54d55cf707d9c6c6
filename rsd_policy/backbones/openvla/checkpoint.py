"""`load_openvla`: a public OpenVLA or OpenVLA-OFT checkpoint as a policy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import cast

import torch

from rsd_policy.backbones.openvla.backbone import Layout, OpenVLABackbone
from rsd_policy.backbones.openvla.config import OpenVLAConfig, read_json
from rsd_policy.backbones.openvla.files import CheckpointFiles, find_files
from rsd_policy.backbones.openvla.loading import (
    LM_HEAD,
    allocate,
    file_tensors,
    fill,
    read_pickle,
    read_safetensors,
    shorten,
)
from rsd_policy.backbones.openvla.preprocessing import ImagePreprocessing, PixelNormalisation
from rsd_policy.backbones.openvla.reference import L1Policy, ReferencePolicy, TokenPolicy
from rsd_policy.backbones.openvla.tokenizer import TOKENIZER, PromptTokenizer
from rsd_policy.backbones.openvla.units import Units
from rsd_policy.backbones.openvla.vision import unused_parameters
from rsd_policy.errors import CheckpointError

PROCESSOR = "preprocessor_config.json"
OFT_CAMERAS = ("agentview", "wrist")
OFT_HORIZON = 8
VISION, PROJECTOR, LANGUAGE = "vision_backbone", "projector", "language_model"


@dataclass
class OpenVLAPolicy:
    """A public checkpoint in memory.

    Attributes:
        name: what it was loaded from.
        reference: the published policy, observations -> actions; it holds the backbone.
        norm_key: dataset whose statistics give the units.
    """

    name: str
    reference: ReferencePolicy
    norm_key: str

    @property
    def backbone(self) -> OpenVLABackbone:
        """The layers below the published head, for heads of our own."""
        return self.reference.backbone

    @property
    def horizon(self) -> int:
        """T, steps of a chunk."""
        return self.backbone.horizon

    def to(self, device: torch.device) -> OpenVLAPolicy:
        """Move the weights to a device; returns self."""
        self.reference.to(device)
        return self


def load_openvla(
    path_or_id: str | Path,
    *,
    norm_key: str | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    cameras: Sequence[str] | None = None,
    horizon: int | None = None,
    center_crop: bool = True,
    base: str | Path | None = None,
) -> OpenVLAPolicy:
    """Load a checkpoint from its public files, unchanged.

    A checkpoint with `action_head--*_checkpoint.pt` is OpenVLA-OFT, others are OpenVLA. Whether the state is an input
    follows from `proprio_projector--*_checkpoint.pt`. How many images and steps a checkpoint has is not in its files:
    the defaults are those of the published LIBERO checkpoints.

    Args:
        path_or_id: directory with `config.json`, safetensors, `tokenizer.json`, ...; or a hub id.
        norm_key: dataset whose statistics give the units; not needed when the checkpoint has one.
        device: where the weights go, shard by shard, without a second copy.
        dtype: of the weights; default bfloat16 on a GPU (as published), float32 on a CPU.
        cameras: names in `Observation.images` in the order of training; default agentview and wrist for OFT, agentview
            for OpenVLA.
        horizon: T; default 8 for OFT, 1 for OpenVLA (which has no other).
        center_crop: see `ImagePreprocessing`.
        base: weights below an unmerged adapter, a directory or hub id; default what the adapter names.

    Raises:
        CheckpointError: missing or altered files, another architecture, unknown norm_key; lists what differs.
        SetupError: a hub id, but no hub; a missing package; or too little memory.
    """
    files = find_files(path_or_id, base)
    config = OpenVLAConfig.from_directory(files.weights, files.directory)
    parallel = files.action_head is not None
    if not parallel and horizon not in (None, 1):
        raise CheckpointError(f"horizon: OpenVLA predicts 1 step, got {horizon}")
    layout = Layout(parallel, files.proprio_projector is not None, horizon or (OFT_HORIZON if parallel else 1))
    key = config.norm_key(norm_key)
    units = Units.from_statistics(config.norm_stats, key, layout.proprio)
    views = tuple(cameras) if cameras is not None else (OFT_CAMERAS if parallel else OFT_CAMERAS[:1])
    images = ImagePreprocessing(views, center_crop=center_crop, normalisation=read_normalisation(files))
    tokenizer = PromptTokenizer(files.beside(TOKENIZER), config.llama.vocab_size, config.llama.bos_token_id)
    target = torch.device(device)
    precision = dtype or (torch.bfloat16 if target.type == "cuda" else torch.float32)
    policy_class = L1Policy if parallel else TokenPolicy

    def build() -> ReferencePolicy:
        return policy_class(OpenVLABackbone(config, layout, images, tokenizer, units))

    reference = cast(ReferencePolicy, allocate(build, target, precision))
    load_weights(reference, files, target)
    return OpenVLAPolicy(str(path_or_id), reference, key)


def read_normalisation(files: CheckpointFiles) -> PixelNormalisation:
    """Of the checkpoint's image processor; the published one where the file is not there."""
    path = files.beside(PROCESSOR) / PROCESSOR
    return PixelNormalisation.from_processor_config(read_json(path)) if path.is_file() else PixelNormalisation()


def load_weights(reference: ReferencePolicy, files: CheckpointFiles, device: torch.device) -> None:
    """Fill an allocated policy from the files; errors as `fill`."""
    backbone = reference.backbone
    model = {
        **file_tensors(backbone.vision_backbone, f"{VISION}."),
        **file_tensors(backbone.projector, f"{PROJECTOR}."),
        **file_tensors(backbone.language_model, f"{LANGUAGE}."),
    }

    # In the files, but without influence on the actions.
    never_read = {f"{VISION}.{name}" for name in unused_parameters(backbone.config.vision)}
    if backbone.layout.parallel:
        never_read.add(LM_HEAD)
    adapter = files.adapter
    tensors = read_safetensors(files.shards, device)
    fill(model, tensors, str(files.weights), ignored=never_read, change=adapter.merge if adapter else None)
    if adapter and (left := sorted(adapter.unmerged - never_read)):
        raise CheckpointError(f"{files.directory}: the adapter changes weights that the model has not: {shorten(left)}")
    pickled = partial(read_pickle, device=device)
    if files.proprio_projector and backbone.proprio_projector is not None:
        where = files.proprio_projector
        fill(file_tensors(backbone.proprio_projector), pickled(where), str(where))
    if files.action_head and isinstance(reference, L1Policy):
        fill(file_tensors(reference.action_head), pickled(files.action_head), str(files.action_head))
