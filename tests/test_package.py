"""The package outside its source tree, as pip and colcon install it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PARTS = ["setup.py", "setup.cfg", "pyproject.toml", "package.xml", "resource", "launch", "config", "models"]


@pytest.fixture(scope="module")
def prefix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where `pip install .` put the package; its dependencies are those of the environment of the tests."""
    source, prefix = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("prefix")
    for part in [*PARTS, "rsd_policy", "sim_bridge"]:
        copy = shutil.copytree if (ROOT / part).is_dir() else shutil.copy
        copy(ROOT / part, source / part)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    pip += ["--no-build-isolation", "--ignore-installed", "--prefix", str(prefix), str(source)]
    subprocess.run(pip, check=True, env=os.environ | {"PYTHONPATH": ""})
    return prefix


def installed(prefix: Path, *command: str) -> str:
    """Output of a command that sees the installed package, not the sources."""
    (site,) = prefix.glob("lib/python3.*/site-packages")
    environment = os.environ | {"PYTHONPATH": str(site), "PYTHONNOUSERSITE": "1"}
    return subprocess.run(
        [*command], cwd=prefix, env=environment, capture_output=True, text=True, check=True, timeout=120
    ).stdout


def test_the_installed_package_has_its_model_configuration_and_robots(prefix: Path) -> None:
    """The shipped mini, config/eval.yaml and the robots were found in a source tree alone."""
    code = "import rsd_policy; from rsd_policy import load_policy; from rsd_policy.settings import shared_settings\n"
    code += "from rsd_policy.share import shared_path\n"
    code += "print(rsd_policy.__file__, load_policy('mini').kind, shared_settings()['execute_steps'])\n"
    code += "print(shared_path('config/robots'), shared_path('launch/eval.launch.py').is_file())"
    file, kind, steps, robots, launch = installed(prefix, sys.executable, "-c", code).split()
    assert file.startswith(str(prefix))
    assert (kind, steps, launch) == ("mini", "8", "True")
    assert robots == f"{prefix}/share/rsd_policy/config/robots"


def test_the_installed_command_runs(prefix: Path) -> None:
    assert "usage: rsd SUBCOMMAND" in installed(prefix, str(prefix / "bin" / "rsd"), "--help")
    assert "usage: rsd bench" in installed(prefix, str(prefix / "bin" / "rsd"), "bench", "--help")


def test_what_is_imported_without_an_extra_is_among_the_dependencies() -> None:
    """cv2 came with robosuite alone, and inference needs it."""
    setup, manifest = (ROOT / "setup.py").read_text(), (ROOT / "package.xml").read_text()
    assert '"opencv-python>=' in setup.partition("install_requires=")[2].partition("]")[0]
    assert "<exec_depend>python3-opencv</exec_depend>" in manifest
