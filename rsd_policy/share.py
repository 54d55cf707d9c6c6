"""Where the package's own data files are: launch files, configuration, models."""

from __future__ import annotations

from pathlib import Path


def shared_path(name: str) -> Path:
    """Path of a file or directory that comes with the package, from the root of the repository ("config/eval.yaml").

    In a source tree it lies there; an install (pip's or colcon's) has it under PREFIX/share/rsd_policy, where PREFIX is
    above the site-packages that hold this module. What exists nowhere is named as in the source tree.
    """
    source = Path(__file__).resolve().parents[1]
    if not (source / "package.xml").is_file():
        for prefix in source.parents:
            installed = prefix / "share" / "rsd_policy" / name
            if installed.exists():
                return installed
    return source / name
