"""Reading, verifying and writing checkpoint directories without importing torch.

A checkpoint is a directory with `manifest.json` and `*.safetensors`. The manifest holds the format version, the
architecture, the codec's constants, normalisation statistics, the gate's calibration, provenance, measured accuracies
and the sha256 of each file. No pickle is read.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from rsd_policy.backbones.openvla.layout import is_layout
from rsd_policy.errors import CheckpointError
from rsd_policy.libero import TOLERANCE
from rsd_policy.share import shared_path

FORMAT_VERSION = 2
MANIFEST = "manifest.json"
REQUIRED = (
    "format_version",
    "architecture",
    "codec",
    "proprio",
    "exit_layer",
    "acceptance",
    "gate",
    "accuracy",
    "provenance",
    "files",
    "manifest_sha256",
)
COPY_OF = "copy_of"
"""Entry of the provenance of a copy whose gate promises another alpha by default than the source's: the source."""

DEFAULT_ACCEPTANCE: dict[str, Any] = {"threshold": 0.7, "tolerance": list(TOLERANCE)}
"""Least fraction of equal draft tokens (0.7 in the original project), and largest deviation per step, action units."""

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")

SHIPPED = shared_path("models")
"""Directory of the checkpoints that come with the package; each is a subdirectory named after the policy."""


def resolve_checkpoint(name_or_path: str | Path) -> Path:
    """Directory of a checkpoint given the name of a shipped one ("mini") or a path.

    Raises:
        CheckpointError: no such directory, or it has no manifest.
    """
    shipped = SHIPPED / str(name_or_path)
    path = shipped if (shipped / MANIFEST).is_file() else Path(name_or_path).expanduser()
    if not (path / MANIFEST).is_file():
        names = ", ".join(shipped_names()) or "none shipped"
        raise CheckpointError(
            f"no checkpoint '{name_or_path}': expected a shipped name ({names}) or a directory holding {MANIFEST}"
        )
    return path


def shipped_names() -> list[str]:
    """Names of the checkpoints that come with the package."""
    return sorted(entry.parent.name for entry in SHIPPED.glob(f"*/{MANIFEST}"))


def external_source(name_or_path: str | Path) -> str | None:
    """Path or hub id when the name is one of an OpenVLA checkpoint; None when it is one of ours, or nothing known.

    A path that exists is never taken for a hub id.
    """
    path = Path(name_or_path).expanduser()
    if (SHIPPED / str(name_or_path) / MANIFEST).is_file() or (path / MANIFEST).is_file():
        return None
    if path.exists():
        return str(path) if is_layout(path) else None
    return str(name_or_path) if _HUB_ID.fullmatch(str(name_or_path)) else None


def read_manifest(directory: Path) -> dict[str, Any]:
    """Parse and check the manifest of a checkpoint directory; the files it lists are not read.

    Raises:
        CheckpointError: not JSON, another format version, altered, or an entry is missing.
    """
    path = directory / MANIFEST
    try:
        manifest = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: expected a JSON manifest: {error}; fetch the checkpoint again") from error
    if not isinstance(manifest, dict):
        raise CheckpointError(f"{path}: expected a JSON object, got {type(manifest).__name__}")
    missing = [key for key in REQUIRED if key not in manifest]
    if missing:
        raise CheckpointError(f"{path}: missing entries {missing}; the checkpoint is incomplete")
    if manifest["format_version"] != FORMAT_VERSION:
        raise CheckpointError(
            f"{path}: expected format version {FORMAT_VERSION}, got {manifest['format_version']}; "
            "use the release of rsd_policy that wrote it"
        )
    if manifest["manifest_sha256"] != manifest_digest(manifest):
        raise CheckpointError(
            f"{path}: its content does not have the sha256 it states; it is altered, fetch the checkpoint again"
        )
    return manifest


def names_of(directory: Path) -> list[str]:
    """Digests under which results of a checkpoint are recorded: its manifest's, and that of the manifest whose copy it
    is with another alpha (runs record their own alpha)."""
    digests = [sha256(directory / MANIFEST)]
    source = read_manifest(directory)["provenance"].get(COPY_OF)
    return [*digests, source["manifest_sha256"]] if source else digests


def manifest_digest(manifest: dict[str, Any]) -> str:
    """Hex sha256 of a manifest's content without its own `manifest_sha256`, whatever its layout in the file."""
    content = {key: value for key, value in manifest.items() if key != "manifest_sha256"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def verify_files(directory: Path, manifest: dict[str, Any]) -> None:
    """Compare every listed file with its sha256.

    Raises:
        CheckpointError: a file is missing, outside the directory, or altered.
    """
    for name, expected in manifest["files"].items():
        path = directory / name
        if Path(name).name != name:
            raise CheckpointError(f"{directory / MANIFEST}: file name '{name}' leaves the checkpoint directory")
        if not path.is_file():
            raise CheckpointError(f"{path}: file is missing; fetch the checkpoint again")
        actual = sha256(path)
        if actual != expected:
            raise CheckpointError(
                f"{path}: expected sha256 {expected[:16]}..., got {actual[:16]}...; the file is truncated or altered, "
                "fetch the checkpoint again"
            )


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _digest(file)


def _digest(file: Any) -> str:
    # Python 3.10 has no hashlib.file_digest.
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()
