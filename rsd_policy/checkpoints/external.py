"""Checkpoints of other projects: OpenVLA and OpenVLA-OFT, alone or below heads of ours."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from rsd_policy.backbones.base import Backbone
from rsd_policy.backbones.openvla.config import read_json
from rsd_policy.backbones.openvla.files import find_files
from rsd_policy.backbones.openvla.layout import ADAPTER_CONFIG
from rsd_policy.backbones.openvla.lora import BASE
from rsd_policy.checkpoints.manifest import DEFAULT_ACCEPTANCE, sha256
from rsd_policy.checkpoints.policy import Policy
from rsd_policy.errors import CheckpointError, SetupError

PLACES = ("source", "base")
"""Entries of `architecture.openvla` that say where the weights were, not which they are."""

_WHOLE_BYTES = 2**24
"""Files up to this size are digested whole."""


def load_external(
    source: str,
    device: torch.device,
    *,
    norm_key: str | None = None,
    cameras: Sequence[str] | None = None,
    base: str | Path | None = None,
) -> Policy:
    """An OpenVLA checkpoint as a policy with its own output head; see `load_policy`."""
    from rsd_policy.backbones.openvla.checkpoint import load_openvla  # needs the tokenizer's package

    loaded = load_openvla(source, norm_key=norm_key, device=device, cameras=cameras, base=base)
    entry = {
        "source": _absolute(source),
        "base": None if base is None else _absolute(base),
        "identity": identity(source, base),
        "norm_key": loaded.norm_key,
        "cameras": list(loaded.backbone.images.cameras),
        "horizon": loaded.horizon,
    }
    manifest = {
        "architecture": {"backbone": "openvla", "openvla": entry},
        "acceptance": DEFAULT_ACCEPTANCE,
        "accuracy": {},
        "gate": None,
    }
    return Policy(source, loaded.backbone, manifest, reference=loaded.reference)


def _absolute(path_or_id: str | Path) -> str:
    path = Path(path_or_id).expanduser()
    return str(path.resolve() if path.is_dir() else path_or_id)


def recorded_backbone(
    manifest: dict[str, Any], device: torch.device, place: str | Path | None = None
) -> Backbone | None:
    """The external backbone that a checkpoint of ours stands on; None when the checkpoint holds its own.

    Args:
        place: directory or hub id of the backbone now; None: where it was when the heads were trained.

    Raises:
        CheckpointError, SetupError: the backbone is not there, or is another than the one that the heads were trained
            for.
    """
    architecture = manifest["architecture"]
    if architecture.get("backbone") != "openvla":
        return None
    try:
        entry = architecture["openvla"]
        source, norm_key, cameras = str(place or entry["source"]), entry["norm_key"], entry["cameras"]
        expected, horizon = entry["identity"], entry["horizon"]
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"manifest entry architecture.openvla: missing or wrong: {error}") from error
    try:
        policy = load_external(source, device, norm_key=norm_key, cameras=cameras, base=entry.get("base"))
    except (CheckpointError, SetupError) as error:
        raise type(error)(
            f"backbone '{source}' of these heads: {error}; when it is at another place, say where with --base "
            "(base= of load_policy)"
        ) from error
    found = policy.manifest["architecture"]["openvla"]
    if found["identity"] != expected or found["horizon"] != horizon:
        raise CheckpointError(
            f"backbone '{source}': expected the weights that the heads were trained for "
            f"({expected[:16]}..., horizon {horizon}), got others ({found['identity'][:16]}..., horizon "
            f"{found['horizon']}); say where the original is with --base (base= of load_policy), or train heads for "
            "these (./rsd train-heads)"
        )
    entry.update({key: found[key] for key in PLACES})  # what is saved of the policy names the place where it was found
    return policy.backbone


def identity(source: str, base: str | Path | None = None) -> str:
    """Hex digest that tells one checkpoint of another project from another.

    Covers the names and sizes of all weight and JSON files and their content: all of it up to 16 MiB, beyond that the
    first and last MiB, so that 15 GB need not be read twice. It finds another checkpoint or a truncated file, not every
    flipped bit. Where a checkpoint lies does not count, nor where an unmerged adapter says that its base does.

    Args:
        source: directory or hub id.
        base: of an unmerged adapter, see `load_policy`.

    Raises:
        CheckpointError, SetupError: as `load_policy`.
    """
    files = find_files(source, base)
    digest = hashlib.sha256()
    for directory in dict.fromkeys((files.directory, files.weights)):
        for path in sorted(p for p in directory.rglob("*") if p.suffix in (".safetensors", ".pt", ".json")):
            size = path.stat().st_size
            if files.adapter and path.name == ADAPTER_CONFIG:
                settings = {key: value for key, value in read_json(path).items() if key != BASE}
                content, size = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest(), 0
            else:
                content = sha256(path) if size <= _WHOLE_BYTES else _ends(path, size)
            digest.update(f"{path.relative_to(directory).as_posix()} {size} {content}\n".encode())
    return digest.hexdigest()


def _ends(path: Path, size: int) -> str:
    with path.open("rb") as file:
        first = file.read(2**20)
        file.seek(size - 2**20)
        return hashlib.sha256(first + file.read()).hexdigest()
