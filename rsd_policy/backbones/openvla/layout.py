"""How directories of public checkpoints are laid out, without importing torch."""

from __future__ import annotations

from pathlib import Path

from rsd_policy.errors import CheckpointError

CONFIG = "config.json"
ADAPTER = "lora_adapter"
ADAPTER_CONFIG = "adapter_config.json"

CACHED = "models--"
"""Begins the name of a repository's folder in the hub's cache: `models--openvla--openvla-7b`."""


def is_layout(directory: Path) -> bool:
    """Whether a directory looks like one of OpenVLA: the model, an adapter for it, or the hub's cache of one."""
    return (
        (directory / CONFIG).is_file()
        or adapter_directory(directory) is not None
        or (directory.name.startswith(CACHED) and directory.is_dir())
    )


def adapter_directory(directory: Path) -> Path | None:
    """Where the LoRA adapter of a checkpoint is: in its folder `lora_adapter`, or, saved by PEFT alone, in itself."""
    return next((place for place in (directory / ADAPTER, directory) if (place / ADAPTER_CONFIG).is_file()), None)


def snapshot(directory: Path) -> Path:
    """The directory with the files: of a repository's folder in the hub's cache the snapshot of `main`, else itself.

    Raises:
        CheckpointError: the cache has no snapshot of `main`, and not one alone of anything else.
    """
    if not directory.name.startswith(CACHED):
        return directory
    main = directory / "refs" / "main"
    there = sorted(path for path in (directory / "snapshots").glob("*") if path.is_dir())
    named = [path for path in there if main.is_file() and path.name == main.read_text().strip()]
    if len(found := named or there) != 1:
        raise CheckpointError(
            f"{directory}: expected the hub's cache of a checkpoint, with the snapshot that refs/main names or one "
            f"alone, got {[path.name for path in there]} in snapshots/; name one of them, or fetch the checkpoint again"
        )
    return found[0]
