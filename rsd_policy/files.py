"""Files that a reader sees whole or not at all, whoever is killed while they are written."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A path beside `path` to write to; when the block ends well, that file takes the name, else it is removed."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")  # of another suffix than what is searched for
    try:
        yield partial
        with partial.open("rb") as file:
            os.fsync(file.fileno())  # before the name changes: a power cut must not leave an empty file under it
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Replace a text file, UTF-8."""
    with whole_file(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any, indent: int | None = 2) -> None:
    """Replace a JSON file."""
    write_text(path, json.dumps(value, indent=indent) + "\n")
