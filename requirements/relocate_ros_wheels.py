"""Makes the ROS wheels of this environment usable for building: run once after pip, with the environment's python.

The CMake exports in the wheels name the include directories of the machine that built them (/opt/python/cpXY-cpXY/...);
CMake refuses paths that do not exist, so they are replaced by those of the running interpreter and its numpy.
"""

from __future__ import annotations

import re
import sys
import sysconfig
from pathlib import Path

NUMPY_INCLUDE = re.compile(r"/opt/python/cp\d+-cp\d+/lib/python3\.\d+/site-packages/numpy/(?:_core|core)/include")
PYTHON_INCLUDE = re.compile(r"/opt/python/cp\d+-cp\d+/include/python3\.\d+")


def relocate(prefix: Path, python_include: str, numpy_include: str) -> list[Path]:
    """Rewrite the include directories in `prefix`/share/*/cmake/*.cmake; returns the files that changed."""
    changed = []
    for path in sorted(prefix.glob("share/*/cmake/*.cmake")):
        before = path.read_text(encoding="utf-8", errors="surrogateescape")
        after = PYTHON_INCLUDE.sub(python_include, NUMPY_INCLUDE.sub(numpy_include, before))
        if after != before:
            path.write_text(after, encoding="utf-8", errors="surrogateescape")
            changed.append(path)
    return changed


if __name__ == "__main__":
    import numpy

    files = relocate(Path(sys.prefix), sysconfig.get_paths()["include"], numpy.get_include())
    print(f"rewrote the include directories of {len(files)} CMake exports")
