"""Small random checkpoints on disk, written once per session and variant."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.backbones.openvla.random_checkpoint import write_adapter, write_checkpoint


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`write_checkpoint`'s options -> directory; not to be changed (see `own_checkpoint`)."""
    written: dict[str, Path] = {}

    def get(**options: Any) -> Path:
        key = repr(sorted(options.items()))
        if key not in written:
            written[key] = write_checkpoint(tmp_path_factory.mktemp("openvla"), **options)
        return written[key]

    return get


@pytest.fixture
def own_checkpoint(checkpoint: Callable[..., Path], tmp_path: Path) -> Callable[..., Path]:
    """As `checkpoint`, but a copy that the test may damage."""

    def get(**options: Any) -> Path:
        return Path(shutil.copytree(checkpoint(**options), tmp_path / "checkpoint", dirs_exist_ok=True))

    return get


@pytest.fixture
def adapter_checkpoint(checkpoint: Callable[..., Path], tmp_path: Path) -> Path:
    """An OFT checkpoint whose LoRA adapter is not merged: heads and statistics, but no weights of the model."""
    base = checkpoint()
    for path in (*base.glob("*_checkpoint.pt"), base / "dataset_statistics.json"):
        shutil.copy(path, tmp_path)
    write_adapter(tmp_path, str(base))
    return tmp_path
